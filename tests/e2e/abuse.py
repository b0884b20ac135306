#!/usr/bin/env python3
"""Bad input over the real door: every answer is a 4xx (or a typed turn failure) with a code of the closed list, memory
stays within its bound, and the daemon goes on serving."""
import json
import os
import re
import socket
import threading
import time

from harness import BUILTIN, Daemon, agent, check, error_codes, note, run, scripted, wait_until


def raw(daemon, data, timeout=20.0, slow=None):
    """Sends bytes and reads until the door closes or an answer is whole; (status, body, closed)."""
    with daemon.connect(timeout) as one:
        try:
            if slow:
                for byte in data:
                    one.sendall(bytes([byte]))
                    time.sleep(slow)
            else:
                one.sendall(data)
        except OSError:
            pass  # answered and closed while we were still sending
        got = b""
        closed = False
        try:
            while True:
                head, found, rest = got.partition(b"\r\n\r\n")
                if found:
                    length = re.search(rb"(?i)content-length: (\d+)", head)
                    if length and len(rest) >= int(length[1]):
                        break
                more = one.recv(65536)
                if not more:
                    closed = True
                    break
                got += more
        except socket.timeout:
            pass
        except ConnectionResetError:
            closed = True
    status = int(got.split(b" ")[1]) if got.startswith(b"HTTP/1.1 ") else None
    return status, got.partition(b"\r\n\r\n")[2], closed


def code_of(body):
    try:
        return json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None


def start(agents=None, models=None, env=None):
    daemon = Daemon(agents or {}, models or {"plain": scripted("plain", {"text": "heard {input}"})}, env)
    daemon.start()
    return daemon


def head(daemon, line="POST /v1/responses HTTP/1.1", *fields, body=b"", host=True, length=True):
    lines = [line]
    if host:
        lines.append("Host: 127.0.0.1")
    lines.append("Authorization: Bearer " + daemon.key)
    lines.append("Content-Type: application/json")
    if length:
        lines.append("Content-Length: %d" % len(body))
    return ("\r\n".join([*lines, *fields]) + "\r\n\r\n").encode("latin-1") + body


def malformed_http():
    """Smuggling, folding, missing Host, bad chunks, long headers and noise are refused and never reach a handler."""
    daemon = start()
    codes = error_codes()
    ok = b'{"model":"plain","input":"x"}'
    auth = "Authorization: Bearer " + daemon.key
    post = "POST /v1/responses HTTP/1.1\r\nHost: a\r\n" + auth + "\r\nContent-Type: application/json\r\n"
    cases = {
        "two Content-Length": head(daemon, "POST /v1/responses HTTP/1.1", "Content-Length: 29", body=ok),
        "two different Content-Length": head(daemon, "POST /v1/responses HTTP/1.1", "Content-Length: 2", body=ok),
        "Content-Length list": (post + "Content-Length: 29, 29\r\n\r\n").encode() + ok,
        "Content-Length and chunked": head(daemon, "POST /v1/responses HTTP/1.1", "Transfer-Encoding: chunked", body=ok),
        "negative Content-Length": (post + "Content-Length: -1\r\n\r\n").encode(),
        "plus Content-Length": (post + "Content-Length: +29\r\n\r\n").encode() + ok,
        "hexadecimal Content-Length": (post + "Content-Length: 0x1d\r\n\r\n").encode() + ok,
        "overflowing Content-Length": (post + "Content-Length: 99999999999999999999999\r\n\r\n").encode(),
        "chunked twice": (post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").encode(),
        "chunked, identity": (post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n").encode(),
        "gzip, chunked": (post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n").encode(),
        "xchunked": (post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n").encode(),
        "chunked in 1.0": (post.replace("1.1", "1.0") + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n").encode(),
        "bad chunk size": (post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n").encode(),
        "huge chunk size": (post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n").encode(),
        "space before colon": head(daemon, "POST /v1/responses HTTP/1.1", "X-A : b", body=ok),
        "folded line": head(daemon, "POST /v1/responses HTTP/1.1", "X-A: b\r\n c", body=ok),
        "bare LF": head(daemon, body=ok).replace(b"\r\n", b"\n"),
        "bare CR": head(daemon, "POST /v1/responses HTTP/1.1", "X-A: b\rc", body=ok),
        "NUL in a header": head(daemon, "POST /v1/responses HTTP/1.1", "X-A: b\0c", body=ok),
        "no Host": head(daemon, body=ok, host=False),
        "two Hosts": head(daemon, "POST /v1/responses HTTP/1.1", "Host: b", body=ok),
        "no version": b"GET /\r\n\r\n",
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/9.9": head(daemon, "GET / HTTP/9.9"),
        "TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(60),
        "noise": bytes(range(256)) * 4,
        "absolute target": head(daemon, "GET http://elsewhere/ HTTP/1.1"),
        "CONNECT": head(daemon, "CONNECT a:1 HTTP/1.1"),
        "long target": head(daemon, "GET /" + "a" * 9000 + " HTTP/1.1"),
        "long header": head(daemon, "GET /v1/models HTTP/1.1", "X-A: " + "b" * 40000),
        "many headers": head(daemon, "GET /v1/models HTTP/1.1", *["X-%d: 1" % i for i in range(300)]),
        "percent NUL in the path": head(daemon, "GET /v1/agents/%00 HTTP/1.1"),
        "bad escape in the path": head(daemon, "GET /v1/agents/%zz HTTP/1.1"),
        "dot dot": head(daemon, "GET /v1/../../etc/passwd HTTP/1.1"),
        "unknown method": head(daemon, "BREW /v1/responses HTTP/1.1"),
        "wrong method": head(daemon, "PUT /v1/responses HTTP/1.1", body=ok),
        "unknown encoding": head(daemon, "POST /v1/responses HTTP/1.1", "Content-Encoding: gzip", body=ok),
        "unknown address": head(daemon, "GET /v2/anything HTTP/1.1"),
    }
    met = set()
    for name, data in cases.items():
        status, body, _ = raw(daemon, data, 5)
        check(status is not None and 400 <= status < 500, "%s is refused with a 4xx" % name, status, body)
        check(code_of(body) in codes, "%s has a code of the list" % name, body)
        met.add(code_of(body))
        check(daemon.alive(), "the daemon lives after " + name)
    # What follows a refused request on the same connection is not answered: nothing can be smuggled behind it.
    smuggled = (post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n").encode() + \
        b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: a\r\n" + auth.encode() + b"\r\n\r\n"
    with daemon.connect(5) as one:
        one.sendall(smuggled)
        got = b""
        while True:
            try:
                more = one.recv(65536)
            except ConnectionResetError:
                break
            if not more:
                break
            got += more
    check(got.count(b"HTTP/1.1 ") == 1 and b" 400 " in got[:20], "one refusal, then the connection is closed", got[:500])
    check(daemon.turn("plain", "still there")["status"] == "completed", "the daemon still serves")
    note("%d cases, codes met: %s" % (len(cases) + 1, ", ".join(sorted(met))))


def malformed_json():
    """Broken, deep, huge, mistyped and unknown JSON is refused by name."""
    daemon = start()
    codes = error_codes()
    before = daemon.rss_kb()
    conversation = daemon.conversation()
    deep = b"[" * 100_000 + b"]" * 100_000
    cases = {
        "empty": (b"", 400), "not JSON": (b"hello", 400), "half": (b'{"model":"plain"', 400),
        "array": (b"[]", 400), "null": (b"null", 400), "trailing": (b'{"model":"plain","input":"x"} x', 400),
        "deep": (b'{"model":"plain","input":' + deep + b"}", 400),
        "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
        "bad UTF-8": (b'{"model":"plain","input":"\xff\xfe"}', 400),
        "overlong UTF-8": (b'{"model":"plain","input":"\xc0\xaf"}', 400),
        "surrogate bytes": (b'{"model":"plain","input":"\xed\xa0\x80"}', 400),
        "lone surrogate escape": (b'{"model":"plain","input":"\\ud800"}', 400),
        "control character": (b'{"model":"plain","input":"\x01"}', 400),
        "comment": (b'{"model":"plain",/* x */"input":"x"}', 400),
        "NaN": (b'{"model":"plain","input":"x","temperature":NaN}', 400),
        "huge number": (b'{"model":"plain","input":"x","temperature":1e999}', 400),
        "duplicate key": (b'{"model":"plain","model":"other","input":"x","nonsense":1}', 400),
        "unknown field": (b'{"model":"plain","input":"x","frobnicate":1}', 400),
        "unknown agent": (b'{"model":"nobody","input":"x"}', 404),
        "model a number": (b'{"model":7,"input":"x"}', 400),
        "no model": (b'{"input":"x"}', 400), "no input": (b'{"model":"plain"}', 400),
        "input a number": (b'{"model":"plain","input":3}', 400),
        "input an empty item": (b'{"model":"plain","input":[{}]}', 400),
        "input of unknown type": (b'{"model":"plain","input":[{"type":"teapot"}]}', 400),
        "unknown role": (b'{"model":"plain","input":[{"role":"king","content":"x"}]}', 400),
        "image": (b'{"model":"plain","input":[{"role":"user","content":[{"type":"input_image","image_url":"x"}]}]}', 400),
        "many items": (json.dumps({"model": "plain", "input": [{"role": "user", "content": "x"}] * 500}).encode(), 400),
        "temperature 9": (b'{"model":"plain","input":"x","temperature":9}', 400),
        "negative tokens": (b'{"model":"plain","input":"x","max_output_tokens":-1}', 400),
        "metadata of 20": (json.dumps({"model": "plain", "input": "x", "metadata": {str(i): "x" for i in range(20)}}).encode(), 400),
        "metadata nested": (b'{"model":"plain","input":"x","metadata":{"a":{"b":1}}}', 400),
        "bad previous": (b'{"model":"plain","input":"x","previous_response_id":"nonsense"}', 400),
        "bad conversation": (b'{"model":"plain","input":"x","conversation":"conv_nonsense"}', 404),
        "both parents": (json.dumps({"model": "plain", "input": "x", "conversation": conversation,
                                     "previous_response_id": "resp_" + "0" * 40}).encode(), 400),
        "unknown tool type": (b'{"model":"plain","input":"x","tools":[{"type":"rocket"}]}', 400),
        "function without name": (b'{"model":"plain","input":"x","tools":[{"type":"function"}]}', 400),
        "background without store": (b'{"model":"plain","input":"x","background":true,"store":false}', 400),
        "large input": (json.dumps({"model": "plain", "input": "x" * (600 * 1024)}).encode(), 413),
        "large body": (json.dumps({"model": "plain", "input": "x" * (3 << 20)}).encode(), 413),
    }
    met = set()
    for name, (body, status) in cases.items():
        got, answer, _ = raw(daemon, head(daemon, body=body), 10)
        check(got == status, "%s is refused with %d" % (name, status), got, answer[:300])
        check(code_of(answer) in codes, "%s has a code of the list" % name, answer[:300])
        met.add(code_of(answer))
    seed = 1
    for _ in range(3000):  # mutations of a good request: never a 5xx
        body = bytearray(json.dumps({"model": "plain", "input": [{"role": "user", "content": "hello"}],
                                     "metadata": {"a": "b"}, "store": False}).encode())
        for _ in range(1 + seed % 3):
            seed = (seed * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            body[(seed >> 33) % len(body)] = (seed >> 20) & 255
        answer = daemon.request("POST", "/v1/responses", bytes(body))
        check(answer.status < 500, "a mutated request is no fault of the server's", bytes(body), answer)
    key = daemon.request("POST", "/v1/responses", {"model": "plain", "input": "x"}, {"Idempotency-Key": "k" * 1000})
    check(key.status == 400, "a long idempotency key is refused", key)
    check(daemon.items(conversation) == [], "nothing that was refused is in the session")
    check(daemon.alive() and daemon.turn("plain", "still there")["status"] == "completed", "the daemon still serves")
    grown = daemon.rss_kb() - before
    check(grown < 64 * 1024, "memory stays within 64 MB of the start", grown)
    note("%d cases and 3000 mutations, codes met: %s; memory grew by %d KB" % (len(cases), ", ".join(sorted(met)), grown))


def slow_and_many():
    """Slow headers and bodies are cut off, too many connections are told so, and others are served meanwhile."""
    daemon = start(env={"MAINSTAY_LIMITS__CONNECTIONS": "64"})
    results = {}

    def slow_header():
        with daemon.connect(40) as one:
            begun = time.monotonic()
            got = b""
            try:
                one.sendall(b"GET /v1/models HTTP/1.1\r\n")
                while time.monotonic() - begun < 30:
                    one.settimeout(1)
                    try:
                        more = one.recv(4096)
                        if not more:
                            break
                        got += more
                        continue
                    except socket.timeout:
                        one.sendall(b"X-A: b\r\n")
            except OSError:
                pass
            results["header"] = (time.monotonic() - begun, got)

    thread = threading.Thread(target=slow_header)
    thread.start()
    check(daemon.turn("plain", "meanwhile")["status"] == "completed", "others are served meanwhile")
    crowd = []
    refused = 0
    try:
        for _ in range(100):
            one = daemon.connect(5)
            crowd.append(one)
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            one.settimeout(5)
            try:
                answer = one.recv(4096)
            except ConnectionResetError:
                answer = b" 503 "  # closed before the answer could be read
            if b" 503 " in answer[:20] or answer in (b"", b" 503 "):
                refused += 1
                check(b"too_many_connections" in answer or len(answer) < 8, "the refusal names its bound", answer)
    finally:
        for one in crowd:
            one.close()
    check(refused >= 30, "connections beyond the bound are refused", refused)
    wait_until("the door to be free again", lambda: raw(daemon, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 5)[0] == 200)
    thread.join()
    took, got = results["header"]
    check(took < 20, "a slow header is cut off", took)
    check(got == b"" or code_of(got.partition(b"\r\n\r\n")[2]) == "request_timeout", "with request_timeout", got)
    note("slow header cut off after %.1f s; %d of 100 connections refused" % (took, refused))


def turns_that_misbehave():
    """A model that never stops, oversize results and unknown tools end in typed outcomes."""
    daemon = Daemon({}, {
        "loop": scripted("loop", {"call_tool": "builtin/echo", "call_arguments": '{"text":"again"}'}),
        "unknown": scripted("unknown", {"call_tool": "nowhere/nothing", "call_arguments": "{}"}, {"text": "so be it"}),
        "badargs": scripted("badargs", {"call_tool": "builtin/echo", "call_arguments": '{"wrong":1}'}, {"text": "so be it"}),
        "flood": scripted("flood", {"call_tool": "flood/flood", "call_arguments": "{}"}, {"text": "after the flood"}),
        "fails": scripted("fails", {"fail_class": "invalid", "fail_times": 100}),
    })
    server = os.path.join(daemon.folder, "flood.mjs")
    with open(server, "w") as file:
        file.write(FLOOD)
    folder = daemon.env["MAINSTAY_AGENTS__DIRECTORY"]
    flood = 'type = "mcp"\nserver_label = "flood"\ncommand = ["node", %s]\neffects = { flood = "read" }' % json.dumps(server)
    for name, tools in {"loop": [BUILTIN], "unknown": [BUILTIN], "badargs": [BUILTIN], "flood": [flood], "fails": []}.items():
        with open(os.path.join(folder, name + ".toml"), "w") as file:
            file.write(agent(name, name, *tools, extra='[retry]\nmax_attempts = 2\nbackoff = "10ms..20ms"\n'))
    daemon.start()
    codes = error_codes()
    before = daemon.rss_kb()
    turn = daemon.turn("loop", "go")
    check(turn["status"] in ("incomplete", "failed"), "a runaway ends", turn["status"])
    reason = (turn["incomplete_details"] or {}).get("reason") or turn["error"]["code"]
    check(reason == "step_limit_reached", "with its reason", turn["error"], turn["incomplete_details"])
    note("runaway: %s after %d items" % (reason, len(turn["output"])))
    for name in ("unknown", "badargs"):
        turn = daemon.turn(name, "go")
        check(turn["status"] == "completed", "%s: the model is told and goes on" % name, turn)
        call = [item for item in turn["output"] if item["type"] in ("mcp_call", "function_call")][0]
        check(call["status"] in ("failed", "completed") and (call.get("error") or call.get("output")), "the call says why", call)
    turn = daemon.turn("fails", "go")
    check(turn["status"] == "failed" and turn["error"]["code"] in codes, "a failing model has a code", turn["error"])
    turn = daemon.turn("flood", "go")
    call = [item for item in turn["output"] if item["type"] == "mcp_call"][0]
    text = json.dumps(call)
    check("tool_result_too_large" in text or turn["status"] == "failed", "an oversize result is refused by name", text[:500])
    check(len(text) < 2 << 20, "it is not kept", len(text))
    note("oversize tool result: call %s, turn %s" % (call["status"], turn["status"]))
    grown = daemon.rss_kb() - before
    check(grown < 160 * 1024, "memory stays bounded", grown)
    check(daemon.turn("unknown", "still there")["status"] == "completed", "the daemon still serves")
    check(daemon.stop() == 0, "the daemon stops clean")


FLOOD = """
import { createInterface } from "node:readline";
const send = (m) => process.stdout.write(JSON.stringify({ jsonrpc: "2.0", ...m }) + "\\n");
createInterface({ input: process.stdin }).on("line", (line) => {
  const { id, method } = JSON.parse(line);
  if (method === "initialize") return send({ id, result: { protocolVersion: "2025-11-25", capabilities: { tools: {} },
    serverInfo: { name: "flood", version: "1" } } });
  if (method === "tools/list") return send({ id, result: { tools: [{ name: "flood", inputSchema: { type: "object" } }] } });
  if (method === "tools/call") return send({ id, result: { content: [{ type: "text", text: "x".repeat(3 << 20) }] } });
  if (id !== undefined) send({ id, error: { code: -32601, message: "no" } });
}).on("close", () => process.exit(0));
"""


def queue_bounds():
    """Inputs beyond the queue of a session are refused with input_queue_full, and what was accepted is done."""
    daemon = Daemon({}, {"slow": scripted("slow", {"text": "done {input}", "delay_ms": 300})})
    daemon.start()
    conversation = daemon.conversation()
    accepted, refused = [], 0
    for i in range(40):
        answer = daemon.request("POST", "/v1/responses", {"model": "slow", "input": str(i), "conversation": conversation,
                                                          "background": True})
        if answer.status == 200:
            accepted.append(answer.json["id"])
        else:
            check(answer.status == 429 and answer.code == "input_queue_full", "the refusal names its bound", answer)
            refused += 1
    check(refused >= 10 and len(accepted) >= 16, "the queue is bounded", refused, len(accepted))
    for response in accepted:
        check(daemon.settled(response)["status"] == "completed", "what was accepted is done")
    note("%d accepted and done, %d refused" % (len(accepted), refused))


if __name__ == "__main__":
    run(malformed_http, malformed_json, slow_and_many, turns_that_misbehave, queue_bounds)
