#!/usr/bin/env python3
"""Runs openai_client.mjs, the npm client `openai`, against a daemon with scripted models."""
import os
import subprocess

from harness import ROOT, BUILTIN, Daemon, agent, check, run, scripted

MODELS = {
    "plain": scripted("plain", {"text": "plain heard: {input}"}),
    "slow": scripted("slow", {"text": "slow heard: {input}", "delay_ms": 200}),
    "endless": scripted("endless", {"text": "never", "delay_ms": 120000}),
    "recall": scripted("recall", {"text": "first you said: {first_input}"}),
    "echoing": scripted("echoing", {"call_tool": "builtin/echo", "call_arguments": '{"text":"{input}"}'},
                        {"text": "the tool said {tool}"}),
    "caller": scripted("caller", {"call_tool": "get_weather", "call_arguments": '{"city":"{input}"}'}),
    "teller": scripted("teller", {"text": "it is {tool}"}),
}


def openai_client():
    """The npm client `openai`: responses, streams, chains, forks, conversations, functions, background, errors, keys."""
    daemon = Daemon({"echo": agent("echo-agent", "echoing", BUILTIN)}, MODELS)
    daemon.start()
    done = subprocess.run(["node", os.path.join(ROOT, "tests", "e2e", "openai_client.mjs")], timeout=180,
                          env={**os.environ, "MAINSTAY_URL": "http://" + daemon.address, "MAINSTAY_KEY": daemon.key})
    check(done.returncode == 0, "every check of the client passes")
    check(daemon.stop() == 0, "the daemon stops clean")


if __name__ == "__main__":
    run(openai_client)
