#!/usr/bin/env python3
"""Sessions that move with a warm KV cache, between real nodes and with the shipped small model: what was computed is not
computed again, the words are those of a session that never moved, and whatever does not arrive is computed."""
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time

from cluster_harness import Cluster, shard_of
from harness import ROOT, Daemon, check, note, run, wait_until
from inference import AGENT, MODEL, ask, computed, metric, words, write_llama

SHARDS = 12
MOVES = 9  # of figure()
BARE = "bare"  # the same model without tiers
AGENTS = {"small": AGENT, BARE: AGENT.replace('"small"', '"%s"' % BARE).replace('"mainstay_tiny"', '"%s"' % BARE)}
MODELS = {"mainstay_tiny": MODEL, BARE: MODEL.replace('name = "mainstay_tiny"', 'name = "%s"' % BARE)
          .replace('host = "64MB"', 'host = "0B"').replace('disk = "256MB"', 'disk = "0B"')}
TURNS = ("tell me a joke", "what is 17 + 25?", "hello")


LONG_ANSWER = 2400  # tokens: a second at the least, on a fast machine


def long_model(weights):
    """A model of random weights that speaks for a second or more."""
    write_llama(os.path.join(weights, "model"), hidden=288, layers=6, heads=6, kv=6, feed_forward=768, context=4096)
    return {"long": 'name = "long"\ndevice = "neuron_core_sim"\npath = "%s"\ncontext_window = 4096\n'
                    '[kv]\ndisk = "64MB"\n' % os.path.join(weights, "model")}


def unmoved(agent):
    """The same turns at one node: words and tokens computed, of each."""
    daemon = Daemon(AGENTS, MODELS)
    daemon.start()
    ask(daemon, "thank you", model=agent)
    session = daemon.conversation()
    turns = [ask(daemon, text, session, agent) for text in (*TURNS, "thank you")]
    daemon.stop()
    return [(words(turn), computed(turn)) for turn in turns]


def migrate(cluster, conversation, source, target):
    status, _, said = source.cli("session", "migrate", conversation, "--to", target.uuid)
    check(status == 0, "mainstay session migrate", said)
    wait_until("%s to lead it" % target.name,
               lambda: cluster.leaders().get(shard_of(conversation, SHARDS)) is target, 30, 0.02)


def transferred(node, outcome, model="mainstay_tiny"):
    return metric(node, r'mainstay_model_kv_transfer_blocks_total\{model="%s",outcome="%s"\}' % (model, outcome))


def sent_bytes(node, model):
    return metric(node, r'mainstay_model_kv_transfer_bytes_total\{direction="sent",model="%s"\}' % model)


def held(node, model="mainstay_tiny"):
    return sum(metric(node, r'mainstay_model_kv_blocks\{model="%s",tier="%s"\}' % (model, tier))
               for tier in ("device", "host", "disk"))


def steady(node):
    """Figures are a second old at most."""
    at = held(node)
    time.sleep(1.1)
    return held(node) if held(node) == at > 0 else None


def warm_sessions_move():
    """A warm session moves and computes its new tokens only; to a node without the model, or without tiers, all of them; and a deleted one is nowhere."""
    expected, expected_bare = unmoved("small"), unmoved(BARE)
    check([said for said, _ in expected] == [said for said, _ in expected_bare], "tiers change no word")
    # Nobody falls asleep: what is on disk then would come and go beside what is counted here.
    cluster = Cluster(AGENTS, MODELS, shards=SHARDS, env={"MAINSTAY_SESSION__PASSIVATE_AFTER": "600s"})
    first, second, third = cluster.nodes
    for kind in ("models", "agents"):  # the third learns of them from the others, and loads nothing before it must
        for file in os.listdir(os.path.join(third.folder, kind)):
            os.unlink(os.path.join(third.folder, kind, file))
    try:
        cluster.start()
        cluster.wait_in_sync()
        for node in (first, second):
            for model in AGENTS:
                ask(node, "thank you", cluster.conversation_led_by(node), model)  # the agents' definitions are cached
        session = cluster.conversation_led_by(first)
        turns = [ask(first, text, session) for text in TURNS]
        check([(words(turn), computed(turn)) for turn in turns] == expected[:3], "as at one node",
              [computed(turn) for turn in turns], expected)
        migrate(cluster, session, first, second)
        sent = wait_until("its blocks to be counted", lambda: transferred(first, "taken"), 10)
        moved = ask(second, "thank you", session)
        check((words(moved), computed(moved)) == expected[3], "after the move it says the same and computes the same "
              "tokens as the one that did not move", words(moved), moved["usage"], expected[3])
        kept = moved["usage"]["input_tokens"] - computed(moved)
        note("%d blocks went ahead; %d of %d tokens computed" % (sent, computed(moved), computed(moved) + kept))
        wait_until("what was sent to be received", lambda: metric(second, "mainstay_model_kv_received_blocks_total") == sent, 10)
        shown = second.cli("worker", "show", "mainstay_tiny/0", "--output", "json")
        check('"received_blocks"' in shown[1].replace(" ", ""), "worker show tells it", shown)

        # Back and forth: what is still there is not sent twice.
        migrate(cluster, session, second, first)
        wait_until("what was there to be counted", lambda: transferred(second, "known") >= sent - 1, 10)
        back = ask(first, "hello", session)
        check(computed(back) < 40, "back again it computes new tokens only", back["usage"])

        # Deleted where it is now: no node has anything of it.
        full = {node: wait_until("figures", lambda: steady(node), 10) for node in (first, second)}
        first.call("DELETE", "/v1/sessions/" + session)
        wait_until("its blocks to go everywhere", lambda: all(held(node) <= full[node] - sent for node in full), 10)
        for node in (first, second):
            again = ask(node, TURNS[0], cluster.conversation_led_by(node))
            check((words(again), computed(again)) == expected[0], "what a deleted session computed is computed again at "
                  + node.name, again["usage"], expected[0])

        # A node that has not loaded the model.
        session = cluster.conversation_led_by(first)
        for text in TURNS:
            ask(first, text, session)
        migrate(cluster, session, first, third)
        wait_until("the reason to be counted", lambda: transferred(first, "no_model"), 10)
        cold = ask(third, "thank you", session)
        check(words(cold) == expected[3][0], "a node that has to load the model says the same", words(cold))
        check(computed(cold) > expected[3][1] + 60, "and computes the whole prompt", cold["usage"], expected[3])
        wait_until("it to be counted", lambda: metric(third, "mainstay_model_prefilled_tokens_total") >= computed(cold), 10)

        # No tiers: nothing has room for what comes.
        session = cluster.conversation_led_by(first)
        for text in TURNS:
            ask(first, text, session, BARE)
        migrate(cluster, session, first, second)
        wait_until("the reason to be counted", lambda: transferred(first, "no_room", BARE), 10)
        bare = ask(second, "thank you", session, BARE)
        check(words(bare) == expected[3][0] and computed(bare) > expected[3][1], "without tiers it says the same, computed",
              bare["usage"], expected[3])
        check(not any(metric(node, "mainstay_model_kv_load_failures_total") for node in (first, second)), "nothing was damaged")

        # A node that stops hands over with everything; of these words nobody else has computed any.
        session = cluster.conversation_led_by(first)
        for text in ("how much are 12 tozek?", "what is 31 + 8?", "tell me a joke"):
            ask(first, text, session)
        check(first.stop() == 0, "exit 0")
        heir = cluster.leader(session)
        turn = ask(heir, "hello", session)
        check(turn["usage"]["input_tokens"] > 150 and computed(turn) < 40, "after a planned stop, too, new tokens only", turn["usage"])
    finally:
        cluster.close()


def what_is_said_goes_on():
    """An answer that is being said moves twice with its session: no token is said twice by a device, and the client sees one answer."""
    weights = tempfile.mkdtemp(prefix="mainstay-pause-")
    question = dict(input="say something long", max_output_tokens=LONG_ANSWER, temperature=0)
    try:
        models = long_model(weights)
        daemon = Daemon({}, models)
        daemon.start()
        unmoved = daemon.call("POST", "/v1/responses", {"model": "long", "conversation": daemon.conversation(), **question})
        daemon.stop()
        check(unmoved["usage"]["output_tokens"] == LONG_ANSWER, "the answer is long", unmoved["usage"])

        cluster = Cluster({}, models, shards=SHARDS)
        first, second, third = cluster.nodes
        try:
            cluster.start()
            cluster.wait_in_sync()
            session = cluster.conversation_led_by(first)
            said, ended, heirs, moves = "", None, [second, third], []
            for name, data in first.stream({"model": "long", "conversation": session, **question}):
                check(name not in ("error", "response.failed"), "no error", name, data)
                if name == "response.output_text.delta":
                    said += data["delta"]
                elif name in ("response.completed", "response.incomplete"):
                    ended = data["response"]
                if heirs and len(said) > 100 * (3 - len(heirs)):
                    heir = heirs.pop(0)
                    source = first if heir is second else second
                    moves.append(threading.Thread(target=migrate, args=(cluster, session, source, heir)))
                    if len(moves) > 1:
                        moves[0].join()
                    moves[-1].start()
            for move in moves:
                move.join()
            check(ended and words(ended) == words(unmoved) and said == words(unmoved)[0],
                  "it says what it says without a move, once", said, ended and words(ended), words(unmoved))
            check(ended["usage"]["output_tokens"] == LONG_ANSWER and
                  ended["usage"]["input_tokens"] == unmoved["usage"]["input_tokens"], "and counts the same", ended["usage"])
            events = first.events(session)
            paused = [event["event"]["tokens"] for event in events if event["name"] == "StepProgress"]
            check(len(paused) == 2 and 0 < paused[0] < paused[1] < LONG_ANSWER, "it was paused at each move", paused)
            check(not any(event["name"] == "StepFailed" for event in events), "no step failed")
            told = first.cli("explain", session)[1]
            check("StepProgress" in told, "explain tells of it", told)
            wait_until("every token to be counted once", lambda: LONG_ANSWER <= sum(
                metric(node, "mainstay_model_generated_tokens_total") for node in cluster.nodes) <= LONG_ANSWER + 6, 10)
            note("paused after %s of %d tokens" % (paused, LONG_ANSWER))
        finally:
            cluster.close()
    finally:
        shutil.rmtree(weights, True)


def figure():
    """By hand: what a move of a session with a warm cache costs, and what its next turn does, with tiers and without (docs/BENCHMARKS_CLUSTER.md)."""
    weights = tempfile.mkdtemp(prefix="mainstay-kv-figure-")
    try:
        write_llama(os.path.join(weights, "model"), hidden=288, layers=6, heads=6, kv=6, feed_forward=768, context=1024)
        text = 'name = "%s"\ndevice = "neuron_core_sim"\npath = "' + os.path.join(weights, "model") + '"\ncontext_window = 1024\n[kv]\n%s'
        models = {"warm": text % ("warm", 'disk = "64MB"\n'), BARE: text % (BARE, 'host = "0B"\ndisk = "0B"\n')}
        cluster = Cluster({}, models, shards=SHARDS)
        first, second, third = cluster.nodes
        try:
            cluster.start()
            cluster.wait_in_sync()
            for model in models:
                rows = []
                for number in range(MOVES):
                    session = cluster.conversation_led_by(first)
                    begun = ("%d " % number) + "".join(random.Random(number).choice("abcdefgh ") for _ in range(880))
                    ask(first, begun, session, model, max_output_tokens=16, temperature=0)
                    time.sleep(1.2)
                    sent = sent_bytes(first, model)
                    took, stop = [], threading.Event()

                    def read():
                        while not stop.is_set():
                            since = time.monotonic()
                            third.items(session)
                            took.append(time.monotonic() - since)
                    reader = threading.Thread(target=read)
                    reader.start()
                    time.sleep(0.3)
                    since = time.monotonic()
                    migrate(cluster, session, first, second)
                    moved = time.monotonic() - since
                    stop.set()
                    reader.join()
                    since = time.monotonic()
                    turn = ask(second, "go on", session, model, max_output_tokens=16, temperature=0)
                    answered = time.monotonic() - since
                    time.sleep(1.2)
                    rows.append((sent_bytes(first, model) - sent, moved, max(took),
                                 computed(turn), turn["usage"]["input_tokens"], answered))
                for what, column in zip(("bytes sent", "wish to leader s", "longest read s", "computed", "of tokens", "next turn s"), zip(*rows)):
                    note("%-5s %-17s median %10.3f  largest %10.3f" % (model, what, statistics.median(column), max(column)))
        finally:
            cluster.close()
    finally:
        shutil.rmtree(weights, True)


if __name__ == "__main__":
    run(*[figure] if "--figure" in sys.argv else [warm_sessions_move, what_is_said_goes_on])
