#!/usr/bin/env python3
"""Every command of `mainstay` against a real daemon: tables, JSON and exit statuses."""
import json
import os
import subprocess

from harness import (BIN, BUILTIN, ROOT, Daemon, agent, check, ledger_tools, note, read_lines, run, scripted, wait_until)

MODELS = {
    "plain": scripted("plain", {"text": "heard {input}"}),
    "echoing": scripted("echoing", {"call_tool": "builtin/echo", "call_arguments": '{"text":"{input}"}'},
                        {"text": "the tool said {tool}"}),
    "flaky": scripted("flaky", {"fail_class": "rate_limited", "fail_times": 1, "text": "at last"}),
    "broken": scripted("broken", {"fail_class": "invalid", "fail_times": 100}),
    "payer": scripted("payer", {"call_tool": "ledger/pay", "call_arguments": '{"amount":{input},"delay_ms":60000}'},
                      {"text": "done {input}"}),
}
OK, FAILED, USAGE, NOT_FOUND, DENIED, UNAVAILABLE = range(6)


def start():
    daemon = Daemon({}, MODELS)
    daemon.ledger = os.path.join(daemon.folder, "ledger")
    folder = daemon.env["MAINSTAY_AGENTS__DIRECTORY"]
    for name, tools in {"talker": ("plain",), "echoer": ("echoing", BUILTIN), "flaky": ("flaky",), "broken": ("broken",),
                        "payer": ("payer", ledger_tools(daemon.ledger))}.items():
        with open(os.path.join(folder, name + ".toml"), "w") as file:
            file.write(agent(name, *tools, extra='[retry]\nbackoff = "10ms..50ms"\n'))
    daemon.start()
    return daemon


def ok(daemon, *words, **more):
    status, out, err = daemon.cli(*words, **more)
    check(status == OK, "mainstay %s ends with 0" % " ".join(words), status, out, err)
    return out, err


def ok_json(daemon, *words):
    out, _ = ok(daemon, *words, "-o", "json")
    return json.loads(out)


def agents():
    """agent apply --dry-run, apply, list, show; model list."""
    daemon = start()
    path = os.path.join(daemon.folder, "clerk.toml")
    with open(path, "w") as file:
        file.write(agent("clerk", "plain", extra='instructions = "Be exact."'))
    out, err = ok(daemon, "agent", "apply", path, "--dry-run")
    check("clerk" in err + out and "would" in err, "a dry run says what would change", out, err)
    check("clerk" not in [a["name"] for a in ok_json(daemon, "agent", "list")], "and changes nothing")
    out, err = ok(daemon, "agent", "apply", path)
    check("applied" in err and "Be exact." in out, "apply prints the difference", out, err)
    out, err = ok(daemon, "agent", "apply", path)
    check("unchanged" in err, "the same again is no change", err)
    with open(path, "w") as file:
        file.write(agent("clerk", "plain", extra='instructions = "Be brief."'))
    out, err = ok(daemon, "agent", "apply", path, "--dry-run")
    check("Be exact." in out and "Be brief." in out, "the difference has both", out)
    ok(daemon, "agent", "apply", path)
    check(ok_json(daemon, "agent", "show", "clerk")["spec"]["instructions"] == "Be brief.", "show has the latest")
    out, _ = ok(daemon, "agent", "list")
    check(out.split("\n")[0].split() == ["NAME", "VERSION", "MODEL"] and "clerk" in out, "the table", out)
    out, _ = ok(daemon, "agent", "show", "clerk")
    check("Be brief." in out, "show for people", out)
    out, _ = ok(daemon, "model", "list")
    check("plain" in out and "clerk" in out, "models and agents are listed", out)
    as_json = os.path.join(daemon.folder, "clerk2.json")
    with open(as_json, "w") as file:
        json.dump({"name": "clerk2", "model": "plain"}, file)
    ok(daemon, "agent", "apply", as_json)
    with open(path, "w") as file:
        file.write('name = "clerk"\nmodel = "plain"\ninstrutions = "x"\n')
    status, out, err = daemon.cli("agent", "apply", path)
    check(status == FAILED and "instrutions" in err and "3" in err, "an unknown key is an error with its line", status, err)
    status, _, err = daemon.cli("agent", "apply", "/nowhere.toml")
    check(status == USAGE and "/nowhere.toml" in err, "a missing file", status, err)
    status, _, err = daemon.cli("agent", "show", "nobody")
    check(status == NOT_FOUND and err, "an unknown agent", status, err)
    daemon.kill()
    daemon.start()
    check(ok_json(daemon, "agent", "show", "clerk")["spec"]["instructions"] == "Be brief.", "what was applied survives kill -9")


def sessions():
    """session list, show, events, delete; chat; explain."""
    daemon = start()
    out, err = ok(daemon, "chat", "talker", "--message", "hello")
    check(out.strip() == "heard hello", "chat --message prints the answer", out)
    conversation = err.split()[1]
    check(conversation.startswith("conv_"), "chat says its conversation", err)
    out, _ = ok(daemon, "chat", "talker", "--conversation", conversation, "--message", "again")
    check(out.strip() == "heard again", "and goes on with it", out)
    out, _ = ok(daemon, "chat", "talker", "--conversation", conversation, stdin="one\n\ntwo\n")
    check(out == "heard one\nheard two\n", "lines from a script", out)
    out, err = ok(daemon, "chat", "echoer", "--message", "ping")
    check(out.strip() == "the tool said ping" and "echo" in err, "a tool call is told", out, err)
    answer = ok_json(daemon, "chat", "talker", "--message", "json")
    check(answer["object"] == "response" and answer["status"] == "completed", "chat as JSON", answer)
    status, out, err = daemon.cli("chat", "broken", "--message", "x")
    check(status == FAILED and "model_rejected_request" in err, "a failed turn ends with 1 and its code", status, err)
    status, out, err = daemon.cli("chat", "nobody", "--message", "x")
    check(status == NOT_FOUND and "model_not_found" in err, "an unknown agent", status, err)

    listed = ok_json(daemon, "session", "list")
    mine = [s for s in listed if s["id"] == conversation]
    check(len(mine) == 1 and mine[0]["turns"] == 4 and mine[0]["state"] == "idle", "the session is listed", listed)
    out, _ = ok(daemon, "session", "list", "--limit", "1")
    check(len(out.strip().split("\n")) == 2, "--limit", out)
    out, _ = ok(daemon, "session", "show", conversation)
    check(conversation in out and "simulated" in out, "show, with usage labelled simulated", out)
    check(ok_json(daemon, "session", "show", conversation)["items"] == 8, "items are counted")
    events = ok_json(daemon, "session", "events", conversation)
    sequences = [e["sequence"] for e in events]
    check(sequences == list(range(1, len(events) + 1)), "events are numbered without a gap", sequences)
    names = [e["name"] for e in events]
    check(names[0] == "SessionCreated" and names.count("InputAccepted") == 4, "events are named", names)
    later = ok_json(daemon, "session", "events", conversation, "--after", str(sequences[-3]))
    check([e["sequence"] for e in later] == sequences[-2:], "--after", later)
    out, _ = ok(daemon, "session", "events", conversation)
    check("InputAccepted" in out, "the table of events", out)

    out, err = ok(daemon, "chat", "flaky", "--message", "x")
    retried = err.split()[1]
    out, _ = ok(daemon, "explain", retried)
    check("rate_limited" in out and "Retry" in out, "explain tells the failure and the retry", out)
    told = ok_json(daemon, "explain", retried)
    check(any(e["name"] == "StepFailed" for e in told), "explain as JSON", told)

    status, _, err = daemon.cli("session", "delete", conversation)
    check(status == USAGE and "--yes" in err, "deleting without a terminal needs --yes", status, err)
    ok(daemon, "session", "delete", conversation, "--yes")
    status, _, err = daemon.cli("session", "show", conversation)
    check(status == NOT_FOUND and "session_not_found" in err, "it is gone", status, err)
    check(all(s["id"] != conversation for s in ok_json(daemon, "session", "list")), "and not listed")


def resolve():
    """session resolve closes an unknown outcome: done with a result, failed, retry; twice is an error."""
    daemon = start()
    sessions = []
    for amount in (1, 2, 3):
        conversation = daemon.conversation()
        sessions.append(conversation)
        daemon.turn("payer", str(amount), conversation, background=True)
    wait_until("the calls to be under way", lambda: len(read_lines(daemon.ledger + ".started")) == 3)
    daemon.kill()
    daemon.start()
    calls = {}
    for conversation in sessions:
        wait_until("the outcome to be unknown", lambda: ok_json(daemon, "session", "show", conversation)["state"] == "unknown_outcome")
        calls[conversation] = [i for i in daemon.items(conversation) if i.get("status") == "unknown"][0]["id"]
        out, _ = ok(daemon, "explain", conversation)
        check("tool_outcome_unknown" in out, "explain tells the unknown outcome", out)
    one, two, three = sessions
    status, _, err = daemon.cli("session", "resolve", one, calls[one], "--as", "perhaps")
    check(status == USAGE, "a wrong word", status, err)
    status, _, err = daemon.cli("session", "resolve", one, calls[one], "--as", "done", "--result", "{")
    check(status == USAGE, "a result that is not JSON", status, err)
    ok(daemon, "session", "resolve", one, calls[one], "--as", "done", "--result", '{"receipt":"by hand"}')
    ok(daemon, "session", "resolve", two, calls[two], "--as", "failed")
    for conversation in (one, two):
        wait_until("the turn to finish", lambda: ok_json(daemon, "session", "show", conversation)["state"] == "idle")
    check("by hand" in json.dumps(daemon.items(one)), "the result is the call's output", daemon.items(one))
    check([i for i in daemon.items(two) if i["id"] == calls[two]][0]["status"] == "failed", "failed is shown")
    status, _, err = daemon.cli("session", "resolve", one, calls[one], "--as", "failed")
    check(status == NOT_FOUND and "call_not_found" in err, "it cannot be resolved twice", status, err)
    check(not read_lines(daemon.ledger), "nothing was paid behind anybody's back")
    ok(daemon, "session", "resolve", three, calls[three], "--as", "retry")
    wait_until("the payment to be tried again", lambda: len(read_lines(daemon.ledger + ".started")) == 4)
    keys = {line["key"] for line in read_lines(daemon.ledger + ".started") if line["arguments"]["amount"] == 3}
    check(len(keys) == 1, "under the same key", keys)


def workers():
    """worker list, show, drain and its undoing, on the shipped small model with two workers; no such worker."""
    daemon = Daemon({}, {"tiny": """
name = "mainstay_tiny"
device = "neuron_core_sim"
path = "%s"
context_window = 768
hardware = "trn2"
devices = 2
threads = 1
[kv]
device = "4MB"
host = "8MB"
disk = "16MB"
""" % os.path.join(ROOT, "config", "models", "mainstay_tiny"), "plain": MODELS["plain"]})
    daemon.start()
    wait_until("the model to be loaded", lambda: all(w["state"] == "up" for w in ok_json(daemon, "worker", "list")))
    listed = ok_json(daemon, "worker", "list")
    check([w["name"] for w in listed] == ["mainstay_tiny/0", "mainstay_tiny/1"], "both workers, and no model of a server", listed)
    for _ in range(2):
        check(daemon.turn("mainstay_tiny", "hello")["status"] == "completed", "the model answers")
    listed = ok_json(daemon, "worker", "list")
    check(sum(w["totals"]["steps"] for w in listed) > 0 and sum(w["accelerator"]["joules"] for w in listed) > 0, "they worked", listed)
    check(all(w["accelerator"]["simulated"] and w["accelerator"]["power"] == "assumed" for w in listed), "figures are labelled")
    out, _ = ok(daemon, "worker", "list")
    rows = out.rstrip("\n").split("\n")
    check(len(rows) == 3 and all("simulated, power assumed" in row for row in rows[1:]), "and so they are in the table", out)
    worked = max(listed, key=lambda w: w["totals"]["steps"])["name"]
    shown = ok_json(daemon, "worker", "show", worked)
    check(shown["model_figures"]["sequences"]["ended"] == 2 and shown["model_figures"]["tokens"]["generated"] > 0, "what ended", shown)
    check([t["tier"] for t in shown["model_figures"]["kv"]["tiers"]] == ["device", "host", "disk"], "all tiers", shown)
    check(any(d["decision"] == "placed" and d["worker"] == worked for d in shown["decisions"]), "and why it has what it has", shown)
    out, _ = ok(daemon, "worker", "show", worked)
    check("simulated, power assumed" in out and "KV TIER" in out and "placed" in out, "show for people", out)
    note(out)
    _, err = ok(daemon, "worker", "drain", "mainstay_tiny/1")
    check("mainstay_tiny/1 is drained" in err, "nothing runs: it is drained at once", err)
    before = ok_json(daemon, "worker", "show", "mainstay_tiny/1")["totals"]["steps"]
    for _ in range(4):
        daemon.turn("mainstay_tiny", "what time is it?")
    after = ok_json(daemon, "worker", "show", "mainstay_tiny/1")
    check(after["totals"]["steps"] == before and after["state"] == "drained", "it takes nothing new", after)
    _, err = ok(daemon, "worker", "drain", "mainstay_tiny/1", "--undo")
    check("mainstay_tiny/1 is up" in err, "and works again after", err)
    for name in ("mainstay_tiny/2", "plain/0", "nobody/0"):
        status, _, err = daemon.cli("worker", "show", name)
        check(status == NOT_FOUND and "mainstay_tiny/0, mainstay_tiny/1" in err, "what there is is named", name, err)
        status, _, err = daemon.cli("worker", "drain", name)
        check(status == NOT_FOUND and "mainstay_tiny" in err, "also where it was to be drained", name, err)
    status, _, err = daemon.cli("worker", "show", "mainstay_tiny")
    check(status == USAGE and "MODEL/INDEX" in err, "a worker's name has two parts", status, err)


def others():
    """status, version, completion, usage errors, and a daemon that is not there."""
    daemon = start()
    out, _ = ok(daemon, "status")
    check("ready" in out and daemon.address in out, "status", out)
    state = ok_json(daemon, "status")
    check(state["alive"] is True and state["ready"] is True, "status as JSON", state)
    ok(daemon, "version")
    ok(daemon, "--help")
    for shell in ("bash", "zsh"):
        out, _ = ok(daemon, "completion", shell)
        check("resolve" in out, "completion knows the commands", out[:200])
    script, _ = ok(daemon, "completion", "bash")
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    check(done.returncode == 0, "the completion script is valid bash", done.stderr)
    for words in ([], ["nonsense"], ["session"], ["session", "resolve"], ["chat"], ["status", "-o", "xml"]):
        status, _, err = daemon.cli(*words)
        check(status == USAGE and err, "mainstay %s is a usage error" % " ".join(words), status, err)
    status, _, err = daemon.cli("status", env={"MAINSTAY_ADMIN_KEY": "wrong-key-wrong-key"})
    check(status != OK, "a wrong key", status, err)
    status, _, err = daemon.cli("agent", "list", env={"MAINSTAY_ADMIN_KEY": "wrong-key-wrong-key"})
    check(status == DENIED and "unauthenticated" in err, "a wrong key is named", status, err)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MAINSTAY_")}
    done = subprocess.run([os.path.join(BIN, "mainstay"), "--data", daemon.data, "agent", "list"], env=clean,
                          capture_output=True, text=True, timeout=30)
    check(done.returncode == OK and "talker" in done.stdout, "address and key come from the data directory", done)
    daemon.stop()
    status, _, err = daemon.cli("status")
    check(status == UNAVAILABLE and err, "nobody is there", status, err)
    note("a daemon that is not there: status %d, %s" % (status, err.strip()))


if __name__ == "__main__":
    run(agents, sessions, resolve, workers, others)
