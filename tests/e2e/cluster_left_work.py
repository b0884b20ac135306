#!/usr/bin/env python3
"""Tool calls and steps of upstream models that are under way when their session moves, between real nodes, with a real MCP
server and a fake upstream: they stay where they are, and their outcomes follow the session. Nothing is asked for twice."""
import json
import os
import shutil
import signal
import tempfile
import threading

from chat_upstream import Upstream
from cluster_harness import Cluster, shard_of
from cluster_kv import migrate
from harness import agent, check, ledger_tools, note, read_lines, run, scripted, text_of, wait_until
from inference import metric

SHARDS = 12
DELAY_MS = 4000


class Field:
    """Three nodes whose agents pay and charge slowly, and an upstream that says the second half when it is told to."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="mainstay-left-")
        self.ledger = os.path.join(self.folder, "ledger")
        self.go_on = threading.Event()
        self.upstream = Upstream()
        self.upstream.behaviour = {"speak": lambda h, n, r: (
            h.begin(), h.chunk({"role": "assistant", "content": "the first half, "}), self.go_on.wait(60),
            h.chunk({"content": "and the second"}), h.chunk({}, "stop"), h.wfile.write(b"data: [DONE]\n\n"))}
        arguments = json.dumps({"amount": 7, "delay_ms": DELAY_MS})
        models = {name: scripted(name, {"call_tool": "ledger/" + tool, "call_arguments": arguments}, {"text": "The bank said: {tool}"})
                  for name, tool in (("pay", "pay"), ("charge", "charge_idempotent"))}
        models["up"] = 'name = "up"\nbase_url = ["%s"]\nupstream_model = "fake-1"\ncontext_window = 100000\n' % self.upstream.url
        agents = {name: agent(name, name, ledger_tools(self.ledger)) for name in ("pay", "charge")}
        self.cluster = Cluster(agents, models, shards=SHARDS, env={"MAINSTAY_CLUSTER__HAND_OVER_WAIT": "0s"})
        self.cluster.start()
        self.cluster.wait_in_sync()
        self.cluster.wait_linked()

    def close(self):
        self.go_on.set()
        self.cluster.close()
        self.upstream.stop()
        shutil.rmtree(self.folder, True)

    def started(self):
        return len(read_lines(self.ledger + ".started"))

    def paid(self):
        return len(read_lines(self.ledger))

    def left(self, node, outcome):
        return metric(node, r'mainstay_cluster_left_work_total\{outcome="%s"\}' % outcome)


class Asking(threading.Thread):
    """A client that waits for one answer."""

    def __init__(self, node, model, text, conversation):
        super().__init__(daemon=True)
        self.node, self.model, self.text, self.conversation = node, model, text, conversation
        self.turn = self.failed = None
        self.start()

    def run(self):
        try:
            self.turn = self.node.turn(self.model, self.text, self.conversation)
        except Exception as failed:  # told by answer()
            self.failed = failed

    def answer(self):
        self.join(60)
        check(self.turn is not None, "an answer without an error", self.failed)
        return self.turn


class Reading(Asking):
    """A client that reads a stream."""
    said, ended = "", None

    def run(self):
        for name, data in self.node.stream({"model": self.model, "input": self.text, "conversation": self.conversation}):
            if name in ("error", "response.failed"):
                self.failed = data
            if name == "response.output_text.delta":
                self.said += data["delta"]
            elif name in ("response.completed", "response.incomplete"):
                self.turn = data["response"]


def calls_stay_where_they_are():
    """A call that may act once, under way while its session moves twice: it is called once, and its result arrives. Then one that is cancelled after a move."""
    field = Field()
    first, second, third = field.cluster.nodes
    try:
        session = field.cluster.conversation_led_by(first)
        client = Asking(third, "pay", "pay", session)
        wait_until("the call", lambda: field.started() == 1, 20)
        migrate(field.cluster, session, first, second)
        migrate(field.cluster, session, second, third)
        check(field.paid() == 0, "both moves while it ran")
        turn = client.answer()
        check(turn["status"] == "completed" and "paid 7" in text_of(turn), "its result arrived", turn)
        check((field.started(), field.paid()) == (1, 1), "it was called once")
        check([field.left(node, "left") for node in (first, second, third)] == [1, 0, 0], "it stayed at the first")
        check(field.left(first, "given") == 1, "which gave its outcome")
        check(field.left(second, "taken") == 1 and field.left(third, "taken") == 1, "to whoever led the session")
        told = third.cli("explain", session)[1]
        check("left_behind" in told, "explain tells of it", told)

        session = field.cluster.conversation_led_by(first)
        turn = third.turn("pay", "pay", session, background=True)
        wait_until("the call", lambda: field.started() == 2, 20)
        migrate(field.cluster, session, first, second)
        wait_until("it to be taken", lambda: field.left(second, "taken") == 2, 10)
        gone = third.call("POST", "/v1/responses/%s/cancel" % turn["id"])
        check(gone["status"] == "cancelled", "it is cancelled", gone)
        wait_until("it to end where it runs", lambda: field.left(first, "given") == 2, 10)
        check(field.paid() == 1, "and nothing was paid")
    finally:
        field.close()


def a_node_is_lost_with_a_call():
    """The node where calls of sessions stayed dies with them: one that may act once is unknown until a person says what became of it, one that may be repeated is repeated."""
    field = Field()
    first, second, third = field.cluster.nodes
    try:
        pay = field.cluster.conversation_led_by(first)
        charge = wait_until("another of its shard", lambda: next(
            (one for one in (first.conversation(),) if shard_of(one, SHARDS) == shard_of(pay, SHARDS)), None), 30)
        client = Asking(third, "charge", "charge", charge)
        third.turn("pay", "pay", pay, background=True)
        wait_until("the calls", lambda: field.started() == 2, 20)
        migrate(field.cluster, pay, first, second)
        wait_until("both to be taken", lambda: field.left(second, "taken") == 2, 10)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        turn = client.answer()
        check("charged" in text_of(turn), "what may be repeated was repeated", turn)
        wait_until("the other to be unknown", lambda: any(
            event["name"] == "ToolReceipt" and event["event"].get("status") == "unknown" for event in third.events(pay)), 20)
        check(field.left(second, "missed") == 2, "both were missed")
        entries = read_lines(field.ledger)
        check(sum(entry["tool"] == "pay" for entry in entries) <= 1, "nothing was paid twice", entries)
    finally:
        field.close()


def half_said(field, text, moves):
    """A client that has heard the first half of what it asked the third node for, when the session has moved from the first to the second."""
    first, second, third = field.cluster.nodes
    session = field.cluster.conversation_led_by(first)
    client = Reading(third, "up", text, session)
    wait_until("the first half", lambda: client.said == "the first half, ", 20)
    migrate(field.cluster, session, first, second)
    wait_until("it to be taken", lambda: field.left(second, "taken") == moves, 10)
    return client


def an_upstream_goes_on():
    """An answer of an upstream that is being streamed moves with its session: the upstream is asked once, the client hears all of it, as it comes. Then its node dies."""
    field = Field()
    first = field.cluster.nodes[0]
    try:
        client = half_said(field, "speak to me", 1)
        field.go_on.set()
        turn = client.answer()
        check(client.failed is None and client.said == text_of(turn) == "the first half, and the second", "one answer", client.said, turn)
        check(len(field.upstream.attempts("speak to me")) == 1, "the upstream was asked once")

        field.go_on.clear()
        client = half_said(field, "speak again", 2)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        wait_until("the upstream to be asked again", lambda: len(field.upstream.attempts("speak again")) == 2, 20)
        field.go_on.set()
        turn = client.answer()
        check(turn["status"] == "completed" and text_of(turn).endswith("the first half, and the second"), "the answer is whole", turn)
        note("upstream asked %d times in all" % (1 + len(field.upstream.attempts("speak again"))))
    finally:
        field.close()


if __name__ == "__main__":
    run(calls_stay_where_they_are, a_node_is_lost_with_a_call, an_upstream_goes_on)
