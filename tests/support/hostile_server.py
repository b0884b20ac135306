#!/usr/bin/env python3
"""An MCP server over stdio that misbehaves in one way, named by its argument; otherwise it is polite.

It offers `go` (does what the mode says, else answers "went"), `fine` (answers "fine") and `pid`. Modes:

  polite        nothing wrong
  banner        prints lines that are no JSON before and between its messages
  endless       go: a line without an end
  wrong_ids     go: answers to ids that nobody gave, to a string of the right id, twice to the right one
  flood         go: notifications without end
  huge          go: a result of 2 MiB
  silent        go: no answer
  deaf          stops reading its input once it is initialized; SIGUSR1: exits
  slow_start    answers initialize after argv[2] milliseconds
  exits         exits with status 3 at once
  exits_on_go   go: exits with status 4, without an answer
  answers_dying go: answers and exits in one go
  closes_output go: closes its output and stays
  closes_input  go: closes its input and stays
  stubborn      ignores the end of its input and SIGTERM
  old           speaks a revision of the protocol that nobody knows
  asks          go: asks for roots, a sample and a ping, and answers with what it was told
  grows         go: offers one more tool and says so
  shouts        go: 5,000 lines on stderr
  breeds        go: starts a process in its group and answers with its id
  inside        go: answers with what it finds of its environment, descriptors and signals
"""

import json
import os
import signal
import subprocess
import sys
import time

MODE = sys.argv[1] if len(sys.argv) > 1 else "polite"
names = ["go", "fine", "pid"]
buffered = b""


def write(text):
    data = text.encode()
    while data:
        data = data[os.write(1, data):]


def send(message):
    write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")


def answer(call_id, text):
    send({"id": call_id, "result": {"content": [{"type": "text", "text": text}]}})


def read_line():
    global buffered
    while b"\n" not in buffered:
        piece = os.read(0, 65536)
        if not piece:
            if MODE == "stubborn":
                while True:
                    time.sleep(3600)
            sys.exit(0)
        buffered += piece
    line, buffered = buffered.split(b"\n", 1)
    return json.loads(line)


def inside():
    status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
    return json.dumps({
        "environment": dict(os.environ),
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "leads_group": os.getpgrp() == os.getpid(),
        "blocked": status["SigBlk"].strip(),
    })


def ask(call_id):
    told = []
    for number, method in enumerate(["roots/list", "sampling/createMessage", "ping"]):
        send({"id": f"ask-{number}", "method": method})
        reply = read_line()
        told.append({"id": reply["id"], "result": reply.get("result"), "code": reply.get("error", {}).get("code")})
    answer(call_id, json.dumps(told))


def go(call_id):
    if MODE == "endless":
        while True:
            write("x" * 65536)
    elif MODE == "wrong_ids":
        answer(call_id + 1000, "not yours")
        answer(str(call_id), "not yours")
        answer(None, "not yours")
        answer(call_id, "yours")
        answer(call_id, "again")
    elif MODE == "flood":
        while True:
            send({"method": "notifications/message", "params": {"level": "info", "data": "x"}})
    elif MODE == "huge":
        answer(call_id, "h" * (2 << 20))
    elif MODE == "silent":
        pass
    elif MODE == "exits_on_go":
        os._exit(4)
    elif MODE == "answers_dying":
        answer(call_id, "went, and gone")
        os._exit(0)
    elif MODE == "closes_output":
        os.close(1)
        time.sleep(3600)
    elif MODE == "closes_input":
        os.close(0)
        time.sleep(3600)
    elif MODE == "asks":
        ask(call_id)
    elif MODE == "grows":
        names.append(f"grown_{len(names)}")
        send({"method": "notifications/tools/list_changed"})
        answer(call_id, "grown")
    elif MODE == "shouts":
        for number in range(5000):
            os.write(2, f"shout {number} \x1b[31m\n".encode())
        answer(call_id, "shouted")
    elif MODE == "breeds":
        child = subprocess.Popen(["sleep", "3600"], stdin=0, stdout=1, stderr=2)
        answer(call_id, str(child.pid))
    elif MODE == "inside":
        answer(call_id, inside())
    else:
        answer(call_id, "went")


def handle(message):
    call_id, method = message.get("id"), message.get("method")
    if MODE == "banner":
        write("listening on stdio\n{\n")
    if method == "initialize":
        if MODE == "slow_start":
            time.sleep(int(sys.argv[2]) / 1000)
        version = "1999-01-01" if MODE == "old" else "2025-11-25"
        send({"id": call_id, "result": {"protocolVersion": version, "capabilities": {"tools": {"listChanged": True}},
                                        "serverInfo": {"name": "hostile", "version": "1"}}})
    elif method == "notifications/initialized" and MODE == "deaf":
        while True:
            time.sleep(3600)
    elif method == "tools/list":
        send({"id": call_id, "result": {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in names]}})
    elif method == "tools/call":
        name = message["params"]["name"]
        if name == "go":
            go(call_id)
        else:
            answer(call_id, str(os.getpid()) if name == "pid" else "fine")


if MODE == "exits":
    sys.exit(3)
if MODE == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if MODE == "deaf":
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
while True:
    handle(read_line())
