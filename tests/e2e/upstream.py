#!/usr/bin/env python3
"""openai_device end to end: a fake Chat Completions server that answers, refuses, stalls, breaks off and talks garbage.
What a user sees must be an answer or a failed turn with a stable code; each failure and retry is in the session's
events. The server chooses what it does by the first word of the last user message."""
import json
import time

from chat_upstream import Upstream
from harness import Daemon, agent, check, note, run, text_of, wait_until

up, replica = Upstream(), Upstream()
replica.behaviour = up.behaviour = {
    "fine": lambda h, n, r: h.answer("fine, says the upstream: %s" % r["messages"][-1]["content"]),
    # The rest comes only when the first part has been heard at the other end: passed on as it comes, or never in time.
    "paced": lambda h, n, r: (h.begin(), h.chunk({"role": "assistant", "content": "first part, "}), up.heard.wait(10),
                              h.chunk({"content": "second part" if up.heard.is_set() else "nobody heard"}),
                              h.chunk({}, "stop"), h.wfile.write(b"data: [DONE]\n\n")),
    "busy": lambda h, n, r: h.whole(429, '{"error":{"message":"slow down","type":"rate_limit_error","code":null}}',
                                    [("Retry-After", "1")]) if n == 1 else h.answer("after the wait"),
    "down": lambda h, n, r: h.whole(500, "oops", content_type="text/plain"),
    "flaky": lambda h, n, r: h.whole(503, "{}") if n < 3 else h.answer("third time"),
    "stall": lambda h, n, r: (h.begin(), h.chunk({"role": "assistant", "content": "half "}), up.closing.wait(60)),
    "stallonce": lambda h, n, r: (h.begin(), h.chunk({"content": "half "}), up.closing.wait(60)) if n == 1
    else h.answer("whole answer"),
    "cut": lambda h, n, r: (h.begin(), h.chunk({"role": "assistant", "content": "cut "})),
    "garbage": lambda h, n, r: h.whole(200, "data: {{{{\n\ndata: \xff\xfe\n\n".encode("latin-1"),
                                       content_type="text/event-stream"),
    "html": lambda h, n, r: h.whole(200, "<html>hello</html>", content_type="text/html"),
    "huge": lambda h, n, r: h.whole(200, b"data: " + b"x" * (3 << 20) + b"\n\n", content_type="text/event-stream"),
    "key": lambda h, n, r: h.whole(401, '{"error":{"message":"bad key sk-VERYSECRET","code":"invalid_api_key"}}'),
    "bad": lambda h, n, r: h.whole(400, '{"error":{"message":"no such parameter","code":"bad"}}'),
    "long": lambda h, n, r: h.whole(400, '{"error":{"message":"maximum context length is 5 tokens",'
                                         '"code":"context_length_exceeded"}}'),
    "json": lambda h, n, r: h.whole(200, json.dumps({
        "id": "x", "object": "chat.completion", "model": "fake-1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "not streamed"}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}})),
    "loose": lambda h, n, r: (h.begin(), h.chunk({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {
        "name": "no_such_tool", "arguments": "{not json"}}]}, "tool_calls"), h.wfile.write(b"data: [DONE]\n\n"))
    if n == 1 else h.answer("recovered from a tool that is not there"),
}

MODELS = {
    "up": 'name = "up"\nbase_url = ["%s"]\nupstream_model = "fake-1"\ncontext_window = 100000\napi_key = { env = "FAKE_KEY" }\n' % up.url,
    "pair": 'name = "pair"\nbase_url = ["%s", "%s"]\ncontext_window = 100000\n' % (up.url, replica.url),
    "nowhere": 'name = "nowhere"\nbase_url = ["http://127.0.0.1:9/v1"]\ncontext_window = 1000\n',
}
RETRY = '[retry]\nmax_attempts = 3\nbackoff = "20ms..80ms"\n'
AGENTS = {"up": agent("up", "up", extra='instructions = "Be kind."\n' + RETRY),
          "pair": agent("pair", "pair", extra=RETRY), "nowhere": agent("nowhere", "nowhere", extra=RETRY)}


def start():
    daemon = Daemon(AGENTS, MODELS, {"FAKE_KEY": "sk-VERYSECRET", "MAINSTAY_LIMITS__UPSTREAM_STALL": "2s"})
    daemon.start()
    return daemon


def ask(daemon, message, model="up"):
    conversation = daemon.conversation()
    turn = daemon.turn(model, message, conversation)
    return turn, [(event["name"], json.dumps(event["event"])) for event in daemon.events(conversation)], conversation


def answers_and_requests():
    """A streamed and an unstreamed answer arrive; the request carries key, instructions, history and model name."""
    daemon = start()
    conversation = daemon.conversation()
    turn = daemon.turn("up", "fine one", conversation)
    check(text_of(turn) == "fine, says the upstream: fine one", "the text arrives", turn["output"])
    check(turn["usage"]["input_tokens"] == 11 and turn["usage"]["output_tokens"] == 7, "usage arrives", turn["usage"])
    check(turn["usage"]["input_tokens_details"]["cached_tokens"] == 8, "and what of it the upstream had cached", turn["usage"])
    check("simulated" not in turn["usage"], "a real upstream is not labelled simulated")
    daemon.turn("up", "fine two", conversation)
    _, request, headers = up.seen["fine two"][0]
    check(headers.get("Authorization") == "Bearer sk-VERYSECRET", "the key is sent", headers)
    check("prompt_cache_key" not in request, "no field that a strict server would refuse", request)
    counted = daemon.request("GET", "/metrics").raw.decode()
    check('mainstay_model_tokens_total{kind="cached"} 16' in counted and 'mainstay_model_tokens_total{kind="input"} 22' in counted,
          "cached tokens are counted", counted)
    check(request["model"] == "fake-1" and request["stream"] is True, "model name and stream", request)
    roles = [(m["role"], m["content"]) for m in request["messages"]]
    check(roles == [("system", "Be kind."), ("user", "fine one"), ("assistant", "fine, says the upstream: fine one"),
                    ("user", "fine two")], "instructions and history", roles)
    deltas = []
    for name, event in daemon.stream({"model": "up", "input": "paced please"}):
        if name == "response.output_text.delta":
            deltas.append(event["delta"])
            up.heard.set()
    check(deltas == ["first part, ", "second part"], "deltas pass through", deltas)
    turn, _, _ = ask(daemon, "json please")
    check(text_of(turn) == "not streamed", "an answer that is not streamed is taken", turn)
    check("sk-VERYSECRET" not in daemon.log(), "the key is in no log")
    check(daemon.stop() == 0, "the daemon stops clean")


def sessions_stick():
    """A session's requests go to one of several addresses; where one is lost, its sessions move and no others do."""
    daemon = start()

    def place(message):
        return ["up" if one is up else "replica" for one in (up, replica) if one.seen.get(message)]

    conversations = [daemon.conversation() for _ in range(16)]
    homes, digests = {}, {}
    for conversation in conversations:
        for turn in range(2):
            message = "fine %s %d" % (conversation, turn)
            daemon.turn("pair", message, conversation)
            homes.setdefault(conversation, []).extend(place(message))
            for _, _, headers in up.seen.get(message, []) + replica.seen.get(message, []):
                digests.setdefault(conversation, set()).add(headers.get("X-Session-Id"))
    check(all(len(seen) == 2 and seen[0] == seen[1] for seen in homes.values()), "both turns at one address", homes)
    check({seen[0] for seen in homes.values()} == {"up", "replica"}, "sessions are spread", homes)
    check(all(len(seen) == 1 for seen in digests.values()), "one digest a session", digests)
    check(len({seen for one in digests.values() for seen in one}) == 16, "and no two sessions share it", digests)
    check(not any(digest in conversation for conversation in conversations for one in digests.values() for digest in one),
          "which is not the id", digests)
    replica.stop()
    noticed = []
    for conversation in conversations:
        message = "fine %s after" % conversation
        turn = daemon.turn("pair", message, conversation)
        check(turn["status"] == "completed", "the turn completes", turn)
        check(place(message) == ["up"], "where there is an answer", conversation)
        if any("transient" in json.dumps(event["event"]) for event in daemon.events(conversation)):
            noticed.append(homes[conversation][0])
    check(noticed == ["replica"], "the first session of the lost address noticed, and nobody else", noticed)
    check(daemon.stop() == 0, "the daemon stops clean")


def retries():
    """429 with Retry-After is waited for, 503 is tried again, and both are in the session's events."""
    daemon = start()
    turn, events, conversation = ask(daemon, "busy now")
    check(turn["status"] == "completed" and text_of(turn) == "after the wait", "the turn completes", turn)
    first, second = up.attempts("busy now")
    check(second - first >= 1.0, "Retry-After was waited for", second - first)
    flat = [name for name, _ in events]
    check(any("rate_limited" in text for _, text in events), "the failure is journalled with its class", *events)
    check(any("Retry" in name or "retry" in name for name in flat), "the retry is journalled", flat)
    status, out, err = daemon.cli("explain", conversation)
    check(status == 0 and "rate_limited" in out and "retry" in out.lower(), "mainstay explain shows the retry", out, err)
    turn, events, _ = ask(daemon, "flaky thing")
    check(turn["status"] == "completed" and len(up.attempts("flaky thing")) == 3, "the third attempt is the last", turn)
    turn, _, _ = ask(daemon, "stallonce now")
    check(turn["status"] == "completed" and text_of(turn) == "whole answer", "a stall is tried again", turn)
    check("half" not in json.dumps([m for m in turn["output"] if m["status"] == "completed"]),
          "half an answer is not part of the final one", turn["output"])
    check(daemon.stop() == 0, "the daemon stops clean")


def failures():
    """Each way of failing ends the turn with its stable code, after the attempts that it deserves."""
    daemon = start()
    wanted = {  # message: (code, attempts)
        "down hard": ("model_unavailable", 3),
        "stall for ever": ("model_timeout", 3),
        "cut off": ("model_unavailable", 3),
        "garbage in": ("model_protocol_error", 3),
        "html page": ("model_protocol_error", 3),
        "huge line": ("model_protocol_error", 3),
        "key wrong": ("model_auth_failed", 1),
        "bad request": ("model_rejected_request", 1),
        "long prompt": ("context_overflow", 1),
    }
    for message, (code, attempts) in wanted.items():
        turn, events, conversation = ask(daemon, message)
        check(turn["status"] == "failed" and turn["error"]["code"] == code, "'%s' ends with %s" % (message, code),
              turn["status"], turn["error"])
        check(len(up.attempts(message)) == attempts, "'%s' has %d attempts" % (message, attempts),
              len(up.attempts(message)))
        check("sk-VERYSECRET" not in json.dumps(turn) + json.dumps(events), "no key in an error", turn["error"])
        after = daemon.turn("up", "fine after " + message, conversation)
        check(after["status"] == "completed", "the session goes on after '%s'" % message, after)
        note("%s: %s after %d attempts" % (message, code, attempts))
    turn, _, _ = ask(daemon, "x", "nowhere")
    check(turn["status"] == "failed" and turn["error"]["code"] == "model_unavailable", "nobody there", turn["error"])
    turn, _, _ = ask(daemon, "loose call")
    check(turn["status"] == "completed" and "recovered" in text_of(turn), "a tool that is not there is told to the model",
          turn)
    streamed = list(daemon.stream({"model": "up", "input": "down again"}))
    check(streamed[-1][0] == "response.failed" and streamed[-1][1]["response"]["error"]["code"] == "model_unavailable",
          "a stream ends with response.failed", streamed[-1])
    check(daemon.stop() == 0, "the daemon stops clean")


def cancel_reaches_upstream():
    """A cancelled turn lets go of its upstream at once."""
    daemon = start()
    daemon.stop()
    daemon.env["MAINSTAY_LIMITS__UPSTREAM_STALL"] = "60s"
    daemon.start()
    turn = daemon.turn("up", "stall and cancel", background=True)
    wait_until("the upstream to be asked", lambda: up.attempts("stall and cancel"))
    gone = daemon.call("POST", "/v1/responses/%s/cancel" % turn["id"])
    check(gone["status"] == "cancelled", "cancelled", gone)
    check(daemon.stop() == 0, "the daemon stops clean, without waiting for the upstream")


if __name__ == "__main__":
    try:
        run(answers_and_requests, sessions_stick, retries, failures, cancel_reaches_upstream)
    finally:
        up.closing.set()
