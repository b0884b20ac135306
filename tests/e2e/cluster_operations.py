#!/usr/bin/env python3
"""What an operator does with a cluster, with real daemons: a node that was alone becomes its first copy, a copy that
lacks what others acknowledged is forced to lead, nodes are restarted and replaced under load."""
import json
import os
import shutil
import subprocess
import tempfile
import time

import cluster_upgrade
from cluster_checker import AGENTS_OF
from cluster_harness import ADMIN_KEY, Cluster, shard_of
from harness import (BIN, BUILTIN, Daemon, Failed, agent, check, ledger_tools, note, read_lines, run, scripted, text_of,
                     wait_until)

USER_MEMORY = '[[memory]]\nname = "customer"\nscope = "user"\n'
NAP_SECONDS = 4


def agents_and_models(ledger):
    models = {
        "talk": scripted("talk", *AGENTS_OF["talk"]),
        "memo": scripted("memo", {"when": "keep", "call_tool": "builtin/memory_set",
                                  "call_arguments": '{"key":"said","value":"{input}"}'},
                         {"when": "keep", "text": "kept"},
                         {"when": "tell", "call_tool": "builtin/memory_get", "call_arguments": '{"key":"said"}'},
                         {"when": "tell", "text": "{tool}"}),
        "napper": scripted("napper", {"call_tool": "builtin/clock_sleep",
                                      "call_arguments": '{"seconds":%d}' % NAP_SECONDS}, {"text": "rested {input}"}),
        "dawdle": scripted("dawdle", {"text": "at last {input}", "delay_ms": 3000}),
        "wire": scripted("wire", {"call_tool": "ledger/pay", "call_arguments": '{"amount":{input},"delay_ms":60000}'},
                         {"text": "paid {input}"}),
    }
    agents = {"talk": agent("talk", "talk"), "dawdle": agent("dawdle", "dawdle"),
              "memo": agent("memo", "memo", BUILTIN), "napper": agent("napper", "napper", BUILTIN),
              "customer": agent("customer", "memo", BUILTIN, extra=USER_MEMORY),
              "wire": agent("wire", "wire", ledger_tools(ledger))}
    return agents, models


def mainstay(*words):
    """Offline: (exit status, stdout, stderr)."""
    done = subprocess.run([os.path.join(BIN, "mainstay"), *words], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def refused(words, status, code, why):
    got, out, error = mainstay(*words)
    check(got == status and "(%s)" % code in error, why, got, out, error)
    return error.strip()


def contents(folder):
    """Every file's bytes, but for locks and what every start counts up, be it refused: the epoch of the directory."""
    found = {}
    for place, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(place, name)
            if name in ("epoch", "lock", "lock.mdb", "listen"):
                continue
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = hash(file.read())
    return found


# --- one node becomes a cluster ---------------------------------------------------------------------------------------

class Lived:
    """A node that was alone, and all that it was told: settled turns, memories, keys, and turns that are open."""

    def __init__(self, daemon, ledger):
        self.items, self.turns, self.keyed = {}, {}, {}  # conversation -> items; response -> turn; key -> (fields, turn)
        for number in range(12):
            conversation = daemon.conversation(metadata={"number": str(number)})
            for word in ("first", "second"):
                text, key = "%s %d" % (word, number), "key-%s-%d" % (word, number)
                self.keyed[key] = (("talk", text, conversation), daemon.turn("talk", text, conversation, key))
        self.memo = daemon.conversation()
        self.keyed["memo"] = (("memo", "keep 4711", self.memo), daemon.turn("memo", "keep 4711", self.memo, "memo"))
        self.keyed["user"] = (("customer", "keep kato", None), daemon.turn("customer", "keep kato", None, "user"))
        for fields, turn in self.keyed.values():
            self.turns[turn["id"]] = turn
            if fields[2]:
                self.items[fields[2]] = daemon.items(fields[2])
        # Open when it ends: one waits for a timer, one for its model, one for a payment that nobody will know of.
        self.open = {}
        for model, text in (("napper", "n"), ("dawdle", "d"), ("wire", "77")):
            self.open[model] = daemon.turn(model, text, daemon.conversation(), "open-" + model, background=True)
        wait_until("the payment to be under way", lambda: read_lines(ledger + ".started"))
        wait_until("the timer to be set", lambda: daemon.read(self.open["napper"]["id"])["output"])

    def read_by(self, node):
        """All that is settled, word for word."""
        for conversation, items in self.items.items():
            check(node.items(conversation) == items, "%s lists %s as it was" % (node.name, conversation))
        for response, turn in self.turns.items():
            read = node.read(response)
            check(all(read[field] == turn[field] for field in ("output", "status", "usage", "created_at")),
                  "%s has the turn as it was" % node.name, read, turn)

    def asked_again(self, node):
        """A key that was answered is answered again, by the same turn."""
        for key, ((model, text, conversation), turn) in self.keyed.items():
            again = node.turn(model, text, conversation, key)
            check(again["id"] == turn["id"] and again["output"] == turn["output"], "key %s has its answer" % key, again, turn)

    def remembered_by(self, node):
        check("4711" in text_of(node.turn("memo", "tell", self.memo)), "the session's memory is there")
        check("kato" in text_of(node.turn("customer", "tell")), "the user's memory is there")
        self.items[self.memo] = node.items(self.memo)


def refusals_of_adopt(daemon, data, authority, other):
    """Each with its code, and nothing changed."""
    adopt = ("cluster", "adopt", "--cluster", authority, "--data")
    empty = os.path.join(os.path.dirname(data), "none")
    refused([*adopt, empty], 3, "not_found", "a directory that is not there")
    check(not os.path.exists(empty), "nothing is made")
    said = refused([*adopt, data], 1, "conflict", "a directory that a daemon has open")
    check(str(daemon.process.pid) in said, "which process has it", said)
    check(daemon.turn("talk", "on")["status"] == "completed", "that daemon serves on")


def refusals_of_the_adopted(data, authority, other):
    before = contents(data)
    for cluster in (authority, other):
        refused(["cluster", "adopt", "--cluster", cluster, "--data", data], 1, "conflict", "a directory of a cluster")
    alone = subprocess.run([os.path.join(BIN, "mainstayd"), "--data", data, "--listen", "127.0.0.1:0"], capture_output=True,
                           text=True, timeout=60)
    check(alone.returncode != 0 and "conflict" in alone.stderr and "belongs to a cluster" in alone.stderr,
          "it opens as a part of its cluster only", alone.returncode, alone.stderr)
    after = contents(data)
    check(after == before, "nothing has changed",
          [name for name in {*before, *after} if before.get(name) != after.get(name)])


def adopted():
    """A node with sessions becomes a cluster's first copy; all of it is replicated, goes on, and outlives its disk."""
    folder = tempfile.mkdtemp(prefix="mainstay-operations-")
    data, other, ledger = (os.path.join(folder, name) for name in ("data", "other", "ledger"))
    agents, models = agents_and_models(ledger)
    daemon = Daemon(agents, models, {"MAINSTAY_ADMIN_KEY": ADMIN_KEY}, data=data)
    daemon.name = "alone"
    cluster = None
    try:
        daemon.start()
        cluster = Cluster(agents, models, shards=1024, data={"n0": data})
        check(mainstay("cluster", "init", other)[0] == 0, "another cluster")
        lived = Lived(daemon, ledger)
        refusals_of_adopt(daemon, data, cluster.authority, other)
        daemon.kill()
        status, out, error = mainstay("cluster", "adopt", "--data", data, "--cluster", cluster.authority, "-o", "json")
        check(status == 0 and json.loads(out)["shards"] == 1024, "it is adopted", out, error)
        refusals_of_the_adopted(data, cluster.authority, other)

        first, *others = cluster.nodes
        cluster.etcd.start()
        begun = time.monotonic()
        first.launch()
        wait_until("the first copy to lead everything", lambda: cluster.running(first) and len(cluster.leaders()) == 1024,
                   30, 0.1)
        note("1024 shards led by the first copy after %.1f s" % (time.monotonic() - begun))
        lived.read_by(first)
        early = first.request("POST", "/v1/responses", {"model": "talk", "input": "early"})
        check(early.status == 503 and early.code == "under_replicated", "one copy alone takes no writes", early)
        for node in others:
            node.launch()
        begun = time.monotonic()
        cluster.wait_served()
        # A third copy is let in after its time of good behaviour; two are what an acknowledgement wants.
        wait_until("two copies of every shard", lambda: cluster_upgrade.in_sync(cluster, 2), 120, 0.2)
        note("two copies of everything %.1f s after the others' start" % (time.monotonic() - begun))

        for node in cluster.nodes:
            lived.read_by(node)
            lived.asked_again(node)
        lived.remembered_by(others[0])
        for model, wanted in (("napper", "rested n"), ("dawdle", "at last d")):
            turn = others[0].settled(lived.open[model]["id"], 20)
            check(text_of(turn) == wanted, "the turn that was open goes on: %s" % model, turn)
        wire = lived.open["wire"]
        call = wait_until("the payment to be unknown", lambda: next(
            (item for item in others[1].read(wire["id"])["output"] if item.get("status") == "unknown"), None))
        check(len(read_lines(ledger + ".started")) == 1, "it is not sent again")
        status, _, error = others[1].cli("session", "resolve", wire["conversation"]["id"], call["id"], "--as", "done",
                                         "--result", '"by hand"')
        check(status == 0, "a person settles it", error)
        check(text_of(others[0].settled(wire["id"])) == "paid 77", "and its turn goes on")
        for turn in lived.open.values():
            lived.turns[turn["id"]] = others[0].read(turn["id"])
            lived.items[turn["conversation"]["id"]] = others[0].items(turn["conversation"]["id"])

        last = others[1].turn("talk", "before the loss", next(iter(lived.items)), "last")
        lived.items[last["conversation"]["id"]] = first.items(last["conversation"]["id"])
        lived.turns[last["id"]] = last
        first.kill()
        first.forget()
        begun = time.monotonic()
        wait_until("the others to lead everything", lambda: len(cluster.leaders()) == 1024, 30, 0.1)
        note("all taken over %.1f s after the first copy was lost with its disk" % (time.monotonic() - begun))
        for node in others:
            lived.read_by(node)
            lived.asked_again(node)
        lived.remembered_by(others[1])
        first.launch()
        cluster.wait_served()
        lived.read_by(first)
    except BaseException:
        if cluster:
            cluster.tell()
        raise
    finally:
        if cluster:
            cluster.close()
        daemon.discard()
        shutil.rmtree(folder, True)


# --- the last resort --------------------------------------------------------------------------------------------------

SHARDS = 6


def shards_seen(node):
    return {shard["shard"]: shard for shard in node.call("GET", "/v1/cluster/shards")["data"]}


def forced():
    """Both copies in sync are lost; the one that is left lacks what they acknowledged alone, and is forced to lead."""
    agents, models = agents_and_models("unused")
    cluster = Cluster({"talk": agents["talk"]}, {"talk": models["talk"]}, shards=SHARDS)
    first, second, left = cluster.nodes
    try:
        cluster.start()
        cluster.wait_in_sync()
        talks = {}
        while {shard_of(one, SHARDS) for one in talks} != set(range(SHARDS)):
            conversation = cluster.nodes[len(talks) % 3].conversation()  # made on a shard that the node leads
            talks[conversation] = first.turn("talk", "both", conversation, "both-" + conversation)
        kept = {one: first.items(one) for one in talks}
        # What every copy was told to apply is on the one that will be left.
        wait_until("all copies to be level", lambda: len({json.dumps(
            [shard["last_index"] for shard in shards_seen(node).values()]) for node in cluster.nodes}) == 1, 20, 0.1)
        cluster.network.isolate(left.name)

        def without():
            seen = shards_seen(first)
            return all(left.uuid not in [copy["node"] for copy in shard["in_sync"]] and shard["primary"] != left.uuid
                       for shard in seen.values()) and len(cluster.leaders()) == SHARDS
        wait_until("the isolated copy to be out of sync", without, 30, 0.1)
        lost = {one: first.turn("talk", "alone", one, "alone-" + one) for one in talks}
        gone = first.conversation()
        level = {number: shard["last_index"] for number, shard in shards_seen(left).items()}
        wait_until("every shard to be ahead of the copy that is cut off", lambda: all(
            shard["commit_index"] > level[number] for node in (first, second) for number, shard in shards_seen(node).items()
            if shard["led_here"]), 20, 0.1)
        for node in (first, second):
            node.kill()
            node.forget()
        cluster.network.heal()

        # Nobody may lead, and everybody is told so.
        wait_until("the leases of the dead to end", lambda: (left.asked("/v1/cluster") or {}).get("nodes_live") == 1 and
                   left.asked("/v1/cluster")["shards_unavailable"] == SHARDS, 30, 0.1)
        status, out, error = left.cli("cluster", "status")
        check("nobody leads" in out and "unavailable:      %d" % SHARDS in out, "the status says so", out)
        note(next(line for line in out.splitlines() if "nobody leads" in line))
        some = next(iter(talks))
        answer = left.request("POST", "/v1/responses", {"model": "talk", "input": "now?", "conversation": some})
        check(answer.status == 503 and answer.code == "shard_unavailable", "a request is told why", answer)
        seen = shards_seen(left)
        status, out, error = left.cli("shard", "force-lead", "0")
        check(status == 2 and "nothing was done" in error and str(seen[0]["last_index"]) in error,
              "without consent it only says what is lost", status, error)
        note(error.strip())
        for body, wanted in (({}, "invalid_request"), ({"accept_loss_beyond": seen[0]["last_index"] + 1}, "conflict")):
            answer = left.request("POST", "/v1/cluster/shards/0/force_lead", body)
            check(answer.code == wanted, "consent names the index", body, answer)
        check(shards_seen(left) == seen, "nothing has changed")

        for number in range(SHARDS):
            status, out, error = left.cli("shard", "force-lead", str(number), "--accept-loss")
            check(status == 0, "the copy that is left leads shard %d" % number, out, error)
        note(error.strip())
        wait_until("it to serve", lambda: len(cluster.leaders()) == SHARDS, 20, 0.1)
        for one, items in kept.items():
            check(left.items(one) == items, "what was on this copy is there, and nothing else", left.items(one), items)
        status, _, error = left.cli("shard", "force-lead", "0", "--accept-loss")
        check(status == 1 and "is led by" in error, "once is enough", status, error)
        for node in (first, second):
            node.launch()
        cluster.wait_served()
        wait_until("two copies of every shard", lambda: cluster_upgrade.in_sync(cluster, 2), 30, 0.1)

        for node in cluster.nodes:
            for one in talks:
                check(node.items(one) == kept[one], "%s: exactly what was beyond the copy is lost" % node.name)
                check(node.request("GET", "/v1/responses/" + lost[one]["id"]).status == 404, "the lost turn is gone")
            check(node.request("GET", "/v1/conversations/" + gone).code == "session_not_found", "so is the conversation")
        for one, turn in talks.items():
            check(second.turn("talk", "both", one, "both-" + one)["id"] == turn["id"], "a key that was kept has its answer")
            again = second.turn("talk", "alone", one, "alone-" + one)
            check(again["completed_at"] > lost[one]["completed_at"], "one that was lost runs anew", again, lost[one])
            check([text_of({"output": [item]}) for item in second.items(one)].count("alone") == 1, "and stands there once")
        audited(cluster, left, seen)
        explained(cluster, next(iter(talks)))
    except BaseException:
        cluster.tell()
        raise
    finally:
        cluster.close()


def audited(cluster, left, seen):
    """Who did it, to which shard, in which epoch, and what it cost: every node tells it, also after a restart."""
    check(left.stop() == 0, "it stops")
    left.launch()
    cluster.wait_served()
    for number in range(SHARDS):
        for node in cluster.nodes:
            told = [one for one in node.call("GET", "/v1/cluster/decisions?shard=%d" % number)["data"]
                    if one["what"].startswith("forced")]
            check(len(told) == 1, "%s tells it once" % node.name, told)
            for words in (left.uuid[:8], "epoch %d" % (seen[number]["epoch"] + 1)):
                check(words in told[0]["what"], "where, and in which epoch", told)
            for words in ("admin", "after index %d" % seen[number]["last_index"],
                          *(copy["node"][:8] for copy in seen[number]["in_sync"])):
                check(words in told[0]["why"], "who, and what was lost", told)
        check("shard %d: forced to lead on node" % number in left.log(), "it is in the log")
    note("decision: %(what)s: %(why)s" % told[0])


def explained(cluster, conversation):
    """Why the session's shard is where it is, from any node, whichever planned it and whether or not it still lives."""
    shard = shard_of(conversation, SHARDS)
    decisions = [node.call("GET", "/v1/cluster/decisions?limit=100&shard=%d" % shard)["data"] for node in cluster.nodes]
    check(all(one == decisions[0] for one in decisions), "all nodes tell the same", decisions)
    check(len(decisions[0]) >= 2, "the shard's birth is told as well as the forced lead", decisions[0])
    os.environ["MAINSTAY_ADMIN_KEY"] = ADMIN_KEY
    for node in cluster.nodes:
        status, out, error = mainstay("--url", "http://" + node.address, "explain", conversation)
        check(status == 0 and out.count("Placed  shard=%d" % shard) == len(decisions[0]) and "forced to lead" in out,
              "explain shows it, through any node", status, out, error)
        check(out.index("Placed") < out.index("InputAccepted"), "at its place among what was decided", out)


# --- restarts and upgrades under load ---------------------------------------------------------------------------------

def replaced():
    """Every node is restarted in turn under load: no client sees an error."""
    cluster_upgrade.upgrade([("first", BIN), ("again", BIN)], seed=7, copies=2)


if __name__ == "__main__":
    run(adopted, forced, replaced)
