#!/usr/bin/env python3
"""Model steps on other nodes, between real nodes and with the shipped small model: a session is born where its model's device is; one
that is elsewhere has its steps computed over the link, and finds its KV there; cancel, loss and refusal of a host."""
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time

from cluster_harness import Cluster, shard_of
from cluster_kv import held, long_model, steady
from harness import Daemon, check, note, run, text_of, wait_until
from inference import AGENT, MODEL, ask, computed, metric, words

SHARDS = 12
TURNS = 60  # of figure()
AGENTS = {"small": AGENT}
MODELS = {"mainstay_tiny": MODEL}
# Long enough for a test to act amid it.
STORY = "tell me a joke"


def started(*computing, models=MODELS):
    """Three nodes, of which these compute the models."""
    cluster = Cluster(AGENTS if models is MODELS else {}, models, shards=SHARDS, env={"MAINSTAY_SESSION__PASSIVATE_AFTER": "600s"})
    for number, node in enumerate(cluster.nodes):
        node.env["MAINSTAY_INFERENCE__MODELS"] = ",".join(models) if number in computing else ""
    cluster.start()
    cluster.wait_in_sync()
    for number in computing:
        node = cluster.nodes[number]
        wait_until("%s to load the model" % node.name, lambda: ready(node), 60, 0.05)
    # Nodes tell each other what they compute with their leases.
    cluster.wait_linked()
    return cluster


def ready(node):
    listed = node.asked("/v1/workers")
    return listed and listed["data"] and all(worker["state"] == "up" for worker in listed["data"])


def session_of(turn):
    """A response's id contains its session's: the first 39 letters."""
    return "conv_" + turn["id"].split("_", 1)[1][:39]


def placed(node, session):
    return [event for event in node.events(session) if '"placed"' in json.dumps(event)]


def sent(node, outcome):
    return metric(node, r'mainstay_cluster_model_steps_sent_total\{outcome="%s"\}' % outcome)


def served(node, outcome):
    return metric(node, r'mainstay_cluster_model_steps_served_total\{outcome="%s"\}' % outcome)


def serving(node):
    return metric(node, "mainstay_cluster_model_steps_serving")


def one_device():
    """One node of three computes: sessions are born there; steps of those that are elsewhere go there, and its KV is found."""
    cluster = started(2)
    try:
        door, other, host = cluster.nodes
        for node in cluster.nodes:
            nodes = {one["id"]: one["models"] for one in node.asked("/v1/cluster/nodes")["data"]}
            check(nodes == {door.uuid: [], other.uuid: [], host.uuid: ["mainstay_tiny"]}, "each node tells what it computes", nodes)
            check(bool(node.asked("/v1/workers")["data"]) == (node is host), "only that node loads it", node.name)
        listed = door.cli("node", "list")[1]
        check("mainstay_tiny" in listed and "none" in listed, "node list shows it", listed)

        # Born where the device is.
        for _ in range(4):
            turn = ask(door, "hello")
            session = session_of(turn)
            check(cluster.leaders()[shard_of(session, SHARDS)] is host, "a new session is born at the device's node", session)
            explained = door.cli("explain", session)[1]
            check("placed" in explained and "1 of 3 nodes compute it" in explained, "explain says why", explained)
        check(sent(door, "done") == 0, "so no step goes over the link")

        # A conversation that is elsewhere: steps over the link, streamed, with its KV.
        session = cluster.conversation_led_by(other)
        first = ask(other, STORY, session)
        check(sent(other, "done") >= 1 and served(host, "done") >= 1, "its steps went there", sent(other, "done"))
        explained = other.cli("explain", session)[1]
        check("placed" in explained and host.uuid[:8] + "/mainstay_tiny" in explained, "explain says where", explained)
        streamed = list(other.stream({"model": "small", "input": STORY, "conversation": session}))
        check(joined(streamed) == text_of(streamed[-1][1]["response"]) != "", "a stream's deltas are its text", streamed)
        turn = ask(other, "what is 17 + 25?", session)
        check(computed(turn) < turn["usage"]["input_tokens"] / 2, "it finds its KV there", turn["usage"])
        check(len(placed(other, session)) == 1, "and that is journalled once", placed(other, session))
        note("%d of %d tokens computed" % (computed(turn), turn["usage"]["input_tokens"]))

        # As it would have been at the device's node.
        same = cluster.conversation_led_by(host)
        check(words(ask(host, STORY, same)) == words(first), "it says what it says on that node itself")

        # The door of another node changes nothing, and a session that moves keeps its host.
        moved = ask(door, "hello", session)
        check(computed(moved) < moved["usage"]["input_tokens"] / 2, "through another door", moved["usage"])
        status, _, said = other.cli("session", "migrate", session, "--to", door.uuid)
        check(status == 0, "mainstay session migrate", said)
        wait_until("%s to lead it" % door.name, lambda: cluster.leaders().get(shard_of(session, SHARDS)) is door, 30, 0.02)
        moved = ask(door, "thank you", session)
        check(computed(moved) < moved["usage"]["input_tokens"] / 2, "after a move it finds its KV where it was", moved["usage"])
        check(sent(door, "done") >= 1, "the new owner sends its steps")

        # Deleted: its blocks go from the host, though no node that led it has any of its own.
        before = wait_until("figures", lambda: steady(host), 10)
        door.call("DELETE", "/v1/sessions/" + session)
        wait_until("the host to drop what it held of it", lambda: held(host) < before, 15, 0.2)

        # Nobody is left that computes.
        host.kill()
        cluster_waits(cluster, [door, other])
        status = door.request("POST", "/v1/responses", {"model": "small", "input": "hello"}, timeout=90)
        body = status.json
        error = body.get("error") or {}
        check(error.get("code") == "model_unavailable" and "mainstay_tiny" in error.get("message", ""), "a clear error", status.status, body)
    finally:
        cluster.close()


def joined(events):
    return "".join(data["delta"] for name, data in events if name == "response.output_text.delta")


def cluster_waits(cluster, nodes):
    wait_until("all shards to be led by the others", lambda: len(cluster.leaders()) == SHARDS and
               all(leader in nodes for leader in cluster.leaders().values()), 60, 0.1)


def alone():
    """A node that is alone and computes no model loads none, serves sessions, and fails their steps at once, naming the model."""
    daemon = Daemon(AGENTS, MODELS, {"MAINSTAY_INFERENCE__MODELS": ""})
    daemon.start()
    begun = time.monotonic()
    turn = daemon.request("POST", "/v1/responses", {"model": "small", "input": "hello"}).json
    error = turn.get("error") or {}
    check(error.get("code") == "model_unavailable" and "mainstay_tiny" in error.get("message", ""), "a clear error", turn)
    check(time.monotonic() - begun < 5, "at once: nothing is tried again")
    check(not daemon.call("GET", "/v1/workers")["data"], "it loads nothing")
    daemon.stop()


def cancelled():
    """A turn that is cancelled, or whose node is killed, ends on the host."""
    cluster = started(2)
    try:
        door, other, host = cluster.nodes
        session = cluster.conversation_led_by(other)
        ask(other, "hello", session)
        status, _, said = host.cli("worker", "drain", "mainstay_tiny/0")
        check(status == 0, "the device takes nothing new, so that a step waits there", said)
        turn = ask(other, STORY, session, background=True)
        wait_until("the step to be there", lambda: serving(host) == 1, 10)
        other.call("POST", "/v1/responses/%s/cancel" % turn["id"])
        wait_until("it to end there", lambda: serving(host) == 0, 5, 0.02)
        check(served(host, "cancelled") == 1 and sent(other, "cancelled") == 1, "cancelled, on both sides")

        turn = ask(other, STORY, session, background=True)
        wait_until("the step to be there", lambda: serving(host) == 1, 10)
        other.kill()
        wait_until("it to end there", lambda: serving(host) == 0, 10, 0.02)
        check(served(host, "cancelled") == 2, "a step of a node that is gone is cancelled")
        status, _, said = host.cli("worker", "drain", "mainstay_tiny/0", "--undo")
        check(status == 0, "it takes steps again", said)
        cluster_waits(cluster, [door, host])
        settled = door.settled(turn["id"], 60)
        check(settled["status"] == "completed", "whoever leads the session next computes it", settled)
    finally:
        cluster.close()


def moves_amid_a_step():
    """A session is migrated while its step waits or runs on another node: the next owner goes on, and the words are the same."""
    cluster = started(2)
    try:
        door, other, host = cluster.nodes
        expected = words(ask(host, STORY, cluster.conversation_led_by(host)))
        for hold in (True, False):
            session = cluster.conversation_led_by(other)
            if hold:
                check(host.cli("worker", "drain", "mainstay_tiny/0")[0] == 0, "its device takes nothing new")
            turn = ask(other, STORY, session, background=True)
            if hold:
                wait_until("the step to be there", lambda: serving(host) == 1, 10)
            status, _, said = other.cli("session", "migrate", session, "--to", door.uuid)
            check(status == 0, "mainstay session migrate", said)
            wait_until("%s to lead it" % door.name, lambda: cluster.leaders().get(shard_of(session, SHARDS)) is door, 30, 0.02)
            if hold:
                check(host.cli("worker", "drain", "mainstay_tiny/0", "--undo")[0] == 0, "it does again")
            settled = door.settled(turn["id"], 60)
            check(settled["status"] == "completed" and words(settled) == expected, "it says what it would have said", settled, expected)
            wait_until("nothing to run there", lambda: serving(host) == 0, 10)
            names = [event["name"] for event in door.events(session)]
            check("StepFailed" not in names, "and no attempt failed", names)
    finally:
        cluster.close()


def host_killed():
    """kill -9 of the host amid steps, while another node computes the model too: no client sees an error, and no word twice."""
    weights = tempfile.mkdtemp(prefix="mainstay-long-")
    cluster = started(1, 2, models=long_model(weights))
    try:
        door, one, two = cluster.nodes
        sessions = [cluster.conversation_led_by(door) for _ in range(12)]
        for session in sessions:
            ask(door, "hello", session, "long", max_output_tokens=4)
        before = {node: served(node, "done") for node in (one, two)}
        check(all(before.values()), "both compute", list(before.values()))
        results = {}

        def stream(session):
            deltas, final = [], None
            for name, data in door.stream({"model": "long", "input": STORY, "conversation": session, "temperature": 0,
                                           "max_output_tokens": 200}):
                if name == "response.output_text.delta":
                    deltas.append(data["delta"])
                if name in ("response.completed", "response.incomplete", "response.failed", "error"):
                    final = name, data
            results[session] = deltas, final
        threads = [threading.Thread(target=stream, args=(session,)) for session in sessions]
        for thread in threads:
            thread.start()
        victim = None
        until = time.monotonic() + 10
        while victim is None and time.monotonic() < until:
            victim = next((node for node in (one, two) if serving(node) >= 1), None)
        check(victim is not None, "steps run on a host")
        victim.kill()
        for thread in threads:
            thread.join(90)
        check(len(results) == len(sessions), "every stream ends", len(results))
        for session, (deltas, final) in results.items():
            check(final and final[0] == "response.incomplete", "no client sees an error", session, final)
            check(final[1]["response"]["usage"]["output_tokens"] == 200, "and each answer is whole", final)
            said = [text_of(final[1]["response"])]
            check("".join(deltas) == said[0], "the deltas are the text", deltas, said)
        check(metric(door, "mainstay_cluster_model_step_redispatches_total") >= 1, "steps were sent on",
              metric(door, "mainstay_cluster_model_step_redispatches_total"))
        note("%d steps went on elsewhere" % metric(door, "mainstay_cluster_model_step_redispatches_total"))
    finally:
        cluster.close()
        shutil.rmtree(weights, True)


def figure():
    """By hand: what a turn of one step takes where the device is, and from another node over the link (docs/BENCHMARKS_CLUSTER.md)."""
    cluster = started(2)
    try:
        door, other, host = cluster.nodes
        rows = {}
        sessions = {node.name: cluster.conversation_led_by(node) for node in (host, other)}
        for round_ in range(TURNS):
            for node in (host, other):
                session = cluster.conversation_led_by(node) if round_ % 10 == 0 else sessions[node.name]
                sessions[node.name] = session
                begun = time.monotonic()
                ask(node, "hello", session)
                if round_ % 10 != 0:  # the first of a session computes its prompt
                    rows.setdefault(node.name, []).append(time.monotonic() - begun)
        for node, where in ((host, "at the device's node"), (other, "over the link")):
            took = sorted(rows[node.name])
            note("%-22s median %6.2f ms  p95 %6.2f ms  (%d turns)" %
                 (where, 1000 * statistics.median(took), 1000 * took[len(took) * 95 // 100], len(took)))
    finally:
        cluster.close()


if __name__ == "__main__":
    run(*[figure] if "--figure" in sys.argv else [alone, one_device, cancelled, moves_amid_a_step, host_killed])
