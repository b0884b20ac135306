#!/usr/bin/env python3
"""Kills mainstayd at every instrumented point and at random, and checks that nothing acknowledged is lost, nothing is
done twice in silence, and every turn that was accepted finishes without its client.

  kill_sweep.py                    the sweep over crash_points.json, both commit modes, within minutes
  kill_sweep.py --all              more visits of each point, more random rounds
  kill_sweep.py --mutants          only: builds that break a guarantee on purpose must be caught (needs mainstayd_mutant)
  kill_sweep.py --random           only: kill -9 under the load of eight clients
  kill_sweep.py --only POINT[:N]   one point
  kill_sweep.py --seed N           of the random kills
"""
import argparse
import itertools
import json
import os
import random
import re
import sys
import threading
import time

from harness import (BIN, BUILTIN, ROOT, Daemon, Failed, FakeUpstream, Lost, agent, all_at_once, check, ledger_tools,
                     note, read_lines, run, scripted, text_of, wait_until)

POINTS = json.load(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "crash_points.json")))["points"]
SETTLED = ("completed", "failed", "incomplete", "cancelled")
numbers = itertools.count(10_001)
options = None
cli_there = os.path.exists(os.path.join(BIN, "mainstay"))


def decide_many(request):
    """The upstream behind agent `many`: four calls at once, then a text. The amount is the last user message."""
    amount = int([m for m in request["messages"] if m["role"] == "user"][-1]["content"])
    after = [m["role"] for m in request["messages"]]
    if "tool" in after[len(after) - 1 - after[::-1].index("user"):]:
        return "many done %d" % amount, []
    return "", [("pay", {"amount": amount, "delay_ms": 20}), ("charge_idempotent", {"amount": amount}),
                ("lookup", {"name": str(amount)}), ("echo", {"text": "echo %d" % amount})]


upstream = FakeUpstream(decide_many)

MODELS = {
    "talk": scripted("talk", {"call_tool": "builtin/echo", "call_arguments": '{"text":"echo {input}"}'},
                     {"text": "talk done {input} {tool}"}),
    "memo": scripted("memo", {"call_tool": "builtin/memory_set",
                              "call_arguments": '{"key":"k{input}","value":"kept {input}"}'},
                     {"call_tool": "builtin/memory_get", "call_arguments": '{"key":"k{input}"}'},
                     {"text": "memo done {input} {tool}"}),
    "noted": scripted("noted", {"call_tool": "builtin/memory_set",
                                "call_arguments": '{"key":"n{input}","value":"kept {input}"}'},
                      {"call_tool": "builtin/memory_get", "call_arguments": '{"key":"n{input}"}'},
                      {"call_tool": "builtin/memory_delete", "call_arguments": '{"key":"n{input}"}'},
                      {"text": "noted done {input} {tool}"}),
    "notes": scripted("notes", {"call_tool": "builtin/memory_list", "call_arguments": "{}"}, {"text": "{tool}"}),
    "money": scripted("money", {"call_tool": "ledger/pay", "call_arguments": '{"amount":{input},"delay_ms":15}'},
                      {"call_tool": "ledger/charge_idempotent", "call_arguments": '{"amount":{input}}'},
                      {"call_tool": "ledger/lookup", "call_arguments": '{"name":"{input}"}'},
                      {"text": "money done {input}"}),
    "nap": scripted("nap", {"call_tool": "builtin/clock_sleep", "call_arguments": '{"seconds":0.15}'},
                    {"text": "nap done {input}"}),
    "slowpay": scripted("slowpay", {"call_tool": "ledger/pay", "call_arguments": '{"amount":{input},"delay_ms":1000}'},
                        {"text": "slowpay done {input}"}),
    "bulk": scripted("bulk", {"text_bytes": 1000_000}),
    "many": 'name = "many"\nbase_url = ["%s"]\ncontext_window = 100000\n' % upstream.url,
}


class Turn:
    def __init__(self, kind, how="blocking"):
        self.kind, self.how = kind, how
        self.amount = next(numbers)
        self.text = str(self.amount)
        self.key = "key-%s" % self.text
        self.sent = False      # the request left; whether it arrived is not known
        self.accepted = None   # id of a response that was acknowledged as accepted
        self.answer = None     # the whole final answer, where one was acknowledged


class Talk:
    """One conversation and the turns that a client runs in it, one after the other."""

    def __init__(self, *turns):
        self.turns = turns
        self.key = "talk-%d" % next(numbers)
        self.id = None

    def open(self, daemon):
        self.id = daemon.call("POST", "/v1/conversations", {"metadata": {"talk": self.key}},
                              headers={"Idempotency-Key": self.key})["id"]

    def run(self, daemon):
        try:
            self.open(daemon)
            for turn in self.turns:
                turn.sent = True
                send(daemon, self, turn)
        except Lost:
            pass


def send(daemon, talk, turn):
    body = {"model": turn.kind, "conversation": talk.id, "input": turn.text}
    if turn.how == "stream":
        for name, event in daemon.stream(body, turn.key):
            if name == "http":
                raise Failed("a stream was refused: %r" % event)
            if name == "response.created":
                turn.accepted = event["response"]["id"]
            if name in ("response.completed", "response.failed", "response.incomplete"):
                turn.answer = event["response"]
        return
    if turn.how == "background":
        body["background"] = True
    answer = daemon.call("POST", "/v1/responses", body, headers={"Idempotency-Key": turn.key})
    turn.accepted = answer["id"]
    if answer["status"] in SETTLED:
        turn.answer = answer


class Bench:
    """A data directory, its ledger and everything that was promised about it."""

    def __init__(self, mode, program="mainstayd", env=None):
        self.mode = mode
        self.daemon = Daemon({}, MODELS, {"MAINSTAY_SESSION__COMMIT": mode, **(env or {})}, program)
        self.ledger = os.path.join(self.daemon.folder, "ledger")
        tools = {"talk": [BUILTIN], "memo": [BUILTIN], "noted": [BUILTIN], "notes": [BUILTIN],
                  "money": [ledger_tools(self.ledger)], "nap": [BUILTIN],
                 "many": [BUILTIN, ledger_tools(self.ledger)], "slowpay": [ledger_tools(self.ledger)], "bulk": []}
        folder = self.daemon.env["MAINSTAY_AGENTS__DIRECTORY"]
        for name, toolsets in tools.items():
            with open(os.path.join(folder, name + ".toml"), "w") as file:
                # Agents "noted" and "notes" name one memory, which all sessions of the client share.
                memory = '\n[[memory]]\nname = "notes"\nscope = "user"' if name in ("noted", "notes") else ""
                file.write(agent(name, name, *toolsets, extra='[retry]\nbackoff = "10ms..200ms"' + memory))
        self.talks = []
        self.retried = set()     # amounts whose unknown payment a person asked to be tried again
        self.unknown = 0         # calls that became unknown
        self.resumed = 0         # turns that finished without their client
        self.replayed = 0        # keys that were sent again and known
        self.ways = itertools.cycle(["done", "failed", "retry"])

    # --- the client ----------------------------------------------------------------------------------------------

    def workload(self, talks):
        self.talks += talks
        all_at_once(*[lambda talk=talk: talk.run(self.daemon) for talk in talks])

    # --- after the crash -----------------------------------------------------------------------------------------

    def recover(self, talks):
        """The daemon is gone; starts it again and checks what `talks` were promised."""
        daemon = self.daemon
        daemon.start()
        for talk in talks:
            if talk.id is None:
                talk.open(daemon)
        open_before = sum(1 for talk in talks for turn in talk.turns if turn.sent and not turn.answer)
        unknown = []
        for talk in talks:
            if self.wait_idle(talk) == "unknown_outcome":
                unknown.append(talk)
        if unknown:
            self.settle_unknown(unknown)
        self.resumed += open_before
        for talk in talks:
            self.check_talk(talk)
        self.check_ledger(talks)

    def wait_idle(self, talk):
        def state():
            answer = self.daemon.request("GET", "/v1/sessions/" + talk.id)
            check(answer.status == 200, "LOST: an acknowledged conversation is still there", talk.id, answer)
            now = answer.json["state"]
            return now if now in ("idle", "unknown_outcome") else None
        return wait_until("session %s to finish its turns by itself" % talk.id, state, 30)

    def unknown_calls(self, talk):
        return [item for item in self.daemon.items(talk.id) if item.get("status") == "unknown"]

    def settle_unknown(self, talks):
        """An unknown outcome stays so over a restart, is shown, and is closed by a person."""
        before = {talk: self.unknown_calls(talk) for talk in talks}
        for talk, calls in before.items():
            check(calls, "a session with an unknown outcome shows the call as unknown", talk.id)
            for call in calls:
                check(call["type"] == "mcp_call" and call["name"] == "pay",
                      "only a tool of class once may become unknown", call)
                check("tool_outcome_unknown" in (call["error"] or ""), "an unknown outcome says its code", call)
        self.daemon.kill()
        self.daemon.start()
        for talk, calls in before.items():
            check(self.wait_idle(talk) == "unknown_outcome" and self.unknown_calls(talk) == calls,
                  "an unknown outcome stays so over a restart", calls, self.unknown_calls(talk))
            for call in calls:
                self.unknown += 1
                how = next(self.ways)
                if how == "retry":
                    self.retried.add(json.loads(call["arguments"])["amount"])
                if cli_there and self.unknown % 2 == 1:
                    status, out, err = self.daemon.cli("session", "resolve", talk.id, call["id"], "--as", how)
                    check(status == 0, "mainstay session resolve closes an unknown outcome", out, err)
                else:
                    self.daemon.call("POST", "/v1/sessions/%s/calls/%s/resolve" % (talk.id, call["id"]), {"as": how})
            check(self.wait_idle(talk) == "idle", "a resolved turn goes on and finishes", talk.id)

    def check_talk(self, talk, resend=True):
        daemon = self.daemon
        items = daemon.items(talk.id)
        by_id = {}
        for item in items:
            check(item["id"] not in by_id, "an item is listed once", item)
            by_id[item["id"]] = item
        for turn in talk.turns:
            if turn.answer:
                now = daemon.request("GET", "/v1/responses/" + turn.answer["id"])
                check(now.status == 200, "LOST: an acknowledged turn is still there", turn.answer["id"], now)
                for key in ("id", "status", "output", "usage", "error"):
                    check(now.json[key] == turn.answer[key], "LOST: an acknowledged turn has kept its " + key,
                          turn.answer[key], now.json[key])
                for item in turn.answer["output"]:
                    check(by_id.get(item["id"]) == item, "LOST: an acknowledged item is in the conversation", item)
            elif turn.accepted:
                now = daemon.request("GET", "/v1/responses/" + turn.accepted)
                check(now.status == 200, "LOST: an accepted turn is still there", turn.accepted, now)
                check(now.json["status"] == "completed", "an accepted turn finished by itself", now.json)
        inputs = [item["content"][0]["text"] for item in items if item["type"] == "message" and item["role"] == "user"]
        for turn in talk.turns:
            known = inputs.count(turn.text)
            check(known <= 1, "DOUBLED: an input stands once in its conversation", turn.text, inputs)
            check(known == 1 or not (turn.accepted or turn.answer), "LOST: an acknowledged input is in the conversation",
                  turn.text, inputs)
            check(known == 0 or turn.sent, "nothing is there that nobody sent")
        if not resend:
            return
        again = [turn for turn in talk.turns if turn.sent]
        for turn in again:
            known = turn.text in inputs
            body = {"model": turn.kind, "conversation": talk.id, "input": turn.text}
            if turn.how == "background":
                body["background"] = True
            if turn.how == "stream":
                body["stream"] = True
            if turn.how == "stream":
                final = None
                for name, event in daemon.stream({k: v for k, v in body.items() if k != "stream"}, turn.key):
                    final = event
                check(final and "response" in final, "a key that is sent again has its answer", final)
                got = final["response"]
            else:
                answer = daemon.request("POST", "/v1/responses", body, {"Idempotency-Key": turn.key})
                check(answer.status == 200, "a key that is sent again has its answer", answer)
                got = answer.json
                if known:
                    check(answer.headers.get("idempotency-replayed") == "true", "a known key says that it was known",
                          answer.headers)
            if got["status"] not in SETTLED:
                got = daemon.settled(got["id"])
            check(got["status"] == "completed", "a turn completes", got)
            check(("%s done %s" % (turn.kind, turn.text)) in text_of(got) or turn.kind == "bulk",
                  "a turn's text follows from its input", got["output"])
            if turn.answer:
                check(got["output"] == turn.answer["output"], "DOUBLED: a key that is sent again has the recorded answer",
                      turn.answer, got)
            elif turn.accepted:
                check(got["id"] == turn.accepted, "DOUBLED: a key that is sent again means the same turn",
                      turn.accepted, got["id"])
            if turn.kind == "noted":
                outputs = [item["output"] for item in got["output"] if item["type"] == "mcp_call"]
                check(outputs == ["remembered", "kept " + turn.text, "forgotten"],
                      "REPEATED: a change of the user's memory happens once, and is there when it was answered", outputs)
            self.replayed += known
            turn.answer, turn.accepted = got, got["id"]
        now = [item["content"][0]["text"] for item in daemon.items(talk.id)
               if item["type"] == "message" and item["role"] == "user"]
        check(sorted(now) == sorted(turn.text for turn in again), "DOUBLED: each input stands once after all keys were sent again",
              now)

    def check_ledger(self, talks):
        ran = read_lines(self.ledger)
        begun = read_lines(self.ledger + ".started")
        for talk in talks:
            for turn in talk.turns:
                tools = {"money": ["pay", "charge_idempotent"], "many": ["pay", "charge_idempotent"], "slowpay": ["pay"]}
                for tool in tools.get(turn.kind, []):
                    mine = [line for line in ran if line["tool"] == tool and line["arguments"]["amount"] == turn.amount]
                    tried = [line for line in begun if line["tool"] == tool and line["arguments"]["amount"] == turn.amount]
                    most = 2 if tool == "pay" and turn.amount in self.retried else 1
                    check(len(mine) <= most, "REPEATED: %s ran at most %d times" % (tool, most), *mine)
                    check(len({line["key"] for line in mine + tried}) <= 1, "REPEATED: every attempt carries the same key",
                          *tried)
                    check(all(line["key"] for line in tried), "a call carries its key", *tried)
                    if turn.answer:
                        call = [i for i in turn.answer["output"] if i["type"] == "mcp_call" and i["name"] == tool]
                        check(len(call) == 1, "a turn has each of its calls once", turn.answer["output"])
                        if call[0]["status"] == "completed" and "receipt: " in (call[0]["output"] or ""):
                            check(len(mine) >= 1, "what has a receipt was done", call)
                looked = [line for line in begun if line["tool"] == "lookup" and line["arguments"]["name"] == turn.text]
                check(len({line["key"] for line in looked}) <= 1, "every attempt of a read carries the same key", *looked)


def usual_talks():
    return [Talk(Turn("talk"), Turn("memo"), Turn("talk", "stream")),
            Talk(Turn("money"), Turn("many", "background"), Turn("talk")),
            Talk(Turn("nap", "background"), Turn("money", "stream"), Turn("many")),
            Talk(Turn("noted"), Turn("noted", "background"))]


def bulk_talks():
    return [Talk(*[Turn("bulk") for _ in range(20)]) for _ in range(4)]


# --- the tests ----------------------------------------------------------------------------------------------------


def crash_points_are_listed():
    """crash_points.json names exactly the points of the code."""
    found = set()
    for room in ("actors", "cluster", "gateway", "runtime", "tools"):
        for folder, _, files in os.walk(os.path.join(ROOT, room)):
            for file in files:
                if file.endswith((".cpp", ".h")):
                    with open(os.path.join(folder, file)) as source:
                        found |= set(re.findall(r'\bcrash_point\("([^"]+)"\)', source.read()))
    check(found == set(POINTS), "code and list agree", "only in the code: %s" % sorted(found - set(POINTS)),
          "only in the list: %s" % sorted(set(POINTS) - found))
    note("%d points" % len(found))


def ends(daemon):
    """Whether it is dead or dying: a process that was killed answers no more, and is gone a moment later."""
    for _ in range(2):  # the first may meet a connection of before
        try:
            daemon.request("GET", "/healthz")
            return not daemon.alive()
        except Lost:
            pass
    wait_until("the daemon that answers no more to be gone", lambda: not daemon.alive())
    return True


def strike(bench, point, visit, talks, stall_ms=0):
    """Runs `talks` against a daemon that dies at the point. False: it was not reached."""
    crash = "%s:%d" % (point, visit) + (":%d" % stall_ms if stall_ms else "")
    if bench.daemon.start(crash=crash, may_die=True):
        bench.workload(talks)
        if point.startswith("state."):  # the applier comes by once a second
            try:
                wait_until("", lambda: not bench.daemon.alive(), 3)
            except Failed:
                pass
    else:
        bench.talks += talks
    struck = ends(bench.daemon)
    if struck:
        check(bench.daemon.wait_end() == -9, "the daemon died by its own hand", bench.daemon.process.returncode)
    else:
        bench.daemon.kill()
    return struck


def in_the_middle(bench):
    """kill -9 while payments are under way: all of them are unknown, and each is closed another way."""
    talks = [Talk(Turn("slowpay", "background")) for _ in range(3)]
    bench.daemon.start()
    bench.workload(talks)
    amounts = {turn.amount for talk in talks for turn in talk.turns}
    wait_until("the payments to be under way", lambda: amounts <= {
        line["arguments"].get("amount") for line in read_lines(bench.ledger + ".started")})
    bench.daemon.kill()
    before = bench.unknown
    bench.recover(talks)
    check(bench.unknown == before + 3, "each payment that was under way is unknown", bench.unknown - before)
    bench.daemon.kill()


def sweep(mode):
    bench = Bench(mode)
    bench.daemon.start()
    warm = usual_talks()
    bench.workload(warm)
    bench.daemon.kill()
    bench.recover(warm)
    bench.daemon.kill()
    struck = {point: 0 for point in POINTS}
    cases = 0
    for point, how in POINTS.items():
        visits = how["visits"]
        if options.all and not how.get("bulk"):
            visits = range(1, max(visits) * 2 + 1)
        for visit in visits:
            if options.only and options.only not in (point, "%s:%d" % (point, visit)):
                continue
            talks = bulk_talks() if how.get("bulk") else usual_talks()
            cases += 1
            begun = time.monotonic()
            try:
                hit = strike(bench, point, visit, talks)
                struck[point] += hit
                bench.recover(talks)
            except Failed as failed:
                raise Failed("%s, dying at %s:%d: %s" % (mode, point, visit, failed))
            bench.daemon.kill()
            if options.verbose:
                note("%s:%d %s, %.1f s" % (point, visit, "struck" if hit else "not reached", time.monotonic() - begun))
    if not options.only:
        in_the_middle(bench)
    bench.daemon.start()
    for talk in bench.talks:
        if talk.id:
            bench.check_talk(talk, resend=False)
    bench.check_ledger(bench.talks)
    left = text_of(bench.daemon.turn("notes", "what is there?"))
    check(left == "[]", "REPEATED: what every turn has forgotten does not come back", left)
    check(bench.daemon.stop() == 0, "the daemon stops clean")
    wanted = [point for point in POINTS if not options.only or options.only.split(":")[0] == point]
    check(all(struck[point] for point in wanted), "every point strikes", struck)
    note("%s: %d crashes in %d cases at %d points; %d turns finished without their client, %d keys replayed, %d unknown outcomes resolved"
         % (mode, sum(struck.values()), cases, len(wanted), bench.resumed, bench.replayed, bench.unknown))
    if not options.only:
        check(bench.unknown >= 3, "outcomes became unknown", bench.unknown)
        check(bench.resumed >= 10, "turns were resumed", bench.resumed)
    bench.daemon.discard()


def sweep_pipelined():
    """Every point, commit = pipelined."""
    sweep("pipelined")


def sweep_strict():
    """Every point, commit = strict."""
    sweep("strict")


def random_kills():
    """kill -9 at random moments under eight clients."""
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    note("seed %d" % seed)
    dice = random.Random(seed)
    for mode in ("pipelined", "strict"):
        bench = Bench(mode)
        rounds = 20 if options.all else 4
        for _ in range(rounds):
            bench.daemon.start()
            kinds = ["talk", "memo", "noted", "money", "many", "nap"]
            talks = [Talk(*[Turn(dice.choice(kinds), dice.choice(["blocking", "background", "stream"]))
                            for _ in range(12)]) for _ in range(8)]
            after = dice.uniform(0.05, 0.9)
            killer = threading.Timer(after, lambda: bench.daemon.process.kill())
            killer.start()
            bench.workload(talks)
            killer.join()
            bench.daemon.wait_end()
            try:
                bench.recover(talks)
            except Failed as failed:
                raise Failed("seed %d, %s, killed after %.3f s: %s" % (seed, mode, after, failed))
            bench.daemon.kill()
        check(bench.resumed >= rounds, "turns were in flight when the daemon died", bench.resumed)
        note("%s: %d kills; %d turns finished without their client, %d keys replayed, %d unknown outcomes resolved"
             % (mode, rounds, bench.resumed, bench.replayed, bench.unknown))
        bench.daemon.discard()


MUTANTS = {
    # name: (what the sweep must say, conversation that shows it)
    "ack_before_commit": ("LOST", lambda: [Talk(Turn("talk"), Turn("talk"))]),
    "dispatch_before_intent": ("REPEATED", lambda: [Talk(Turn("money"))]),
}


def mutants():
    """Broken on purpose: acknowledging before the commit and dispatching before the intent are both caught."""
    for mode in ("pipelined", "strict"):
        for mutant, (verdict, talks_of) in MUTANTS.items():
            for broken in (True, False):
                caught = []
                for visit in range(1, 8 if broken else 5):
                    bench = Bench(mode, "mainstayd_mutant", {"MAINSTAY_MUTANT": mutant} if broken else {})
                    talks = talks_of()
                    # The tool server is warm and the agents are journalled: what is counted from here are the turns.
                    bench.daemon.start()
                    bench.workload(talks_of())
                    bench.daemon.stop()
                    strike(bench, "journal.before_write", visit, talks, stall_ms=1000)
                    try:
                        bench.recover(talks)
                    except Failed as failed:
                        caught.append("visit %d: %s" % (visit, str(failed).split("\n")[0]))
                    bench.daemon.discard()
                    if caught and broken:
                        break
                if broken:
                    check(any(verdict in one for one in caught), "%s is caught, %s" % (mutant, mode), *caught)
                    note("%s, %s: caught, %s" % (mutant, mode, caught[0]))
                else:
                    check(not caught, "the same sweep without the mutant finds nothing", *caught)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--only")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    sys.argv = sys.argv[:1]
    if options.mutants:
        run(mutants)
    elif options.random:
        run(random_kills)
    else:
        run(crash_points_are_listed, sweep_pipelined, sweep_strict, *([] if options.only else [random_kills]))
