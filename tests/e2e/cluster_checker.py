#!/usr/bin/env python3
"""What clients of a cluster were told, and whether all of it can be true.

  cluster_checker.py               the self-test: made-up histories, each with one violation, which must be found

A history is what is needed to judge and nothing else (class History): attempts at turns with the time at which each was
sent and answered; reads; what every node lists at the end; what the tool server did. check_history() gives the
violations as texts, each beginning with its rule:

  LOST       a turn that was acknowledged is in its conversation, with the answer that was acknowledged, on every node
  DOUBLED    an input stands once in its conversation, whatever was sent again; one key has one answer
  INVENTED   nothing is there that nobody sent, or that was refused
  ORDER      a turn that was answered before another was sent comes before it
  STALE      who reads sees all that was acknowledged, and all that anybody had seen, before the read began
  SPLIT      every node lists the same
  REPEATED   a call that must not run twice was not sent twice; all attempts of a call carry one key
  SILENT     a call whose end nobody knows says `unknown`; what has a receipt was done
  STREAM     the joined deltas of an item are its final text, and events are numbered without gaps
  STUCK      every turn that was accepted ends

Times are of one monotonic clock. An attempt without an answer may have taken effect at any later time."""
import collections
import concurrent.futures
import json
import random
import threading
import time

from harness import Failed, Lost, check, note, read_lines, text_of

NEVER = float("inf")


class History:
    def __init__(self):
        self.attempts = []  # dicts, see attempt()
        self.reads = []  # dicts: conversation, node, begun, ended, items [(user text, or None)] newest last
        self.final = {}  # conversation -> node -> [item as listed]
        self.responses = {}  # response id -> (node, status, output), read at the end
        self.called = []  # of the tool server: a call came in {tool, arguments, key}
        self.done = []  # ... and was carried out
        self.seen_unknown = set()  # ids of items that were listed with status unknown
        self.settled = True


def attempt(text, conversation, begun, ended=NEVER, outcome="unknown", response=None, output=None, key=None, kind="talk",
            status=None, stream=None, node="n0", code=None):
    """One request that was sent: outcome ok (an answer), refused (nothing was kept) or unknown. `stream`: of a streamed
    one, {"deltas": {item: text}, "numbers": [...]}."""
    return {"text": text, "conversation": conversation, "begun": begun, "ended": ended, "outcome": outcome,
            "response": response, "output": output, "key": key, "kind": kind, "status": status, "stream": stream,
            "node": node, "code": code}


# --- the rules, pure --------------------------------------------------------------------------------------------------

def words_of(item):
    return "".join(part.get("text", "") for part in item.get("content") or [])


def is_input(item):
    return item["type"] == "message" and item["role"] == "user"


def wanted_text(kind, text):
    return {"talk": "heard %s", "pay": "paid %s", "charge": "charged %s"}[kind] % text


def check_history(history):
    return [*unread(history), *lost_and_doubled(history), *order(history), *stale(history), *split(history),
            *calls(history), *streams(history)]


def lists_of(history):
    """conversation -> items, as the first node lists them."""
    read = {conversation: [items for items in lists.values() if items is not None]
            for conversation, lists in history.final.items()}
    return {conversation: lists[0] for conversation, lists in read.items() if lists}


def unread(history):
    for conversation, lists in history.final.items():
        for node, items in lists.items():
            if items is None:
                yield "STUCK: %s cannot be read from %s" % (conversation, node)


def lost_and_doubled(history):
    lists = lists_of(history)
    by_text = collections.defaultdict(list)
    for one in history.attempts:
        by_text[one["text"]].append(one)
    found = {conversation: collections.Counter(words_of(item) for item in items if is_input(item))
             for conversation, items in lists.items()}
    by_id = {conversation: {item["id"]: item for item in items} for conversation, items in lists.items()}
    for text, tries in by_text.items():
        conversation = tries[0]["conversation"]
        times = found.get(conversation, {}).get(text, 0)
        answers = [one for one in tries if one["outcome"] == "ok"]
        if conversation not in lists:
            continue  # unread() says so
        if answers and times == 0:
            yield "LOST: %s was acknowledged by %s and is not in %s" % (text, answers[0]["node"], conversation)
        if times > 1:
            yield "DOUBLED: %s stands %d times in %s" % (text, times, conversation)
        if times and all(one["outcome"] == "refused" for one in tries):
            yield "INVENTED: %s was refused (%s) and is in %s" % (text, tries[-1]["code"], conversation)
        if len({one["response"] for one in answers}) > 1:
            yield "DOUBLED: key %s has the answers %s" % (tries[0]["key"], sorted({one["response"] for one in answers}))
        for one in answers:
            if one["output"] != answers[0]["output"]:
                yield "DOUBLED: %s was answered twice, and differently: %s and %s" % (text, answers[0]["output"],
                                                                                       one["output"])
            if one["status"] != "completed":
                yield "STUCK: %s ended as %s (%s)" % (text, one["status"], one["code"])
                continue
            if text_of({"output": one["output"]}) != wanted_text(one["kind"], text):
                yield "LOST: the answer to %s is %r" % (text, text_of({"output": one["output"]}))
            for item in one["output"]:
                listed = by_id.get(conversation, {}).get(item["id"])
                if listed != item:
                    yield "LOST: an item of the answer to %s is listed as %s, was %s" % (text, listed, item)
            node, status, output = history.responses.get(one["response"], (None, None, None))
            if node and (status != one["status"] or output != one["output"]):
                yield "LOST: %s reads %s as %s %s, was %s %s" % (node, one["response"], status, output, one["status"],
                                                                 one["output"])
    for conversation, texts in found.items():
        for text in texts:
            if not any(one["conversation"] == conversation for one in by_text.get(text, [])):
                yield "INVENTED: %s is in %s and nobody sent it there" % (text, conversation)
    if not history.settled:
        yield "STUCK: not every session came to rest"


def positions(items):
    return {words_of(item): place for place, item in enumerate([item for item in items if is_input(item)])}


def order(history):
    per_conversation = collections.defaultdict(dict)  # text -> [first begun, first answer]
    for one in history.attempts:
        times = per_conversation[one["conversation"]].setdefault(one["text"], [NEVER, NEVER])
        times[0] = min(times[0], one["begun"])
        if one["outcome"] == "ok":
            times[1] = min(times[1], one["ended"])
    for conversation, items in lists_of(history).items():
        places = positions(items)
        turns = [(times[0], times[1], text) for text, times in per_conversation[conversation].items() if text in places]
        turns.sort()
        ends = sorted((ended, places[text], text) for _, ended, text in turns)
        at, last = 0, (-1, None)  # of those that were answered before this one was sent, the last in the list
        for begun, _, text in turns:
            while at < len(ends) and ends[at][0] < begun:
                last = max(last, (ends[at][1], ends[at][2]))
                at += 1
            if places[text] < last[0]:
                yield "ORDER: %s was answered before %s was sent, and comes after it in %s" % (last[1], text, conversation)


def stale(history):
    acknowledged = collections.defaultdict(list)
    for one in history.attempts:
        if one["outcome"] == "ok":
            acknowledged[one["conversation"]].append((one["ended"], one["text"], "acknowledged"))
    reads = collections.defaultdict(list)
    for read in history.reads:
        reads[read["conversation"]].append(read)
    for conversation, items in lists_of(history).items():
        places = positions(items)
        inputs = sorted(places, key=places.get)
        facts = [(ended, places[text], text, why) for ended, text, why in acknowledged[conversation] if text in places]
        for read in reads[conversation]:
            unknown = [text for text in read["inputs"] if text not in places]
            if unknown:
                yield "LOST: %s was read from %s in %s and is gone" % (unknown[0], read["node"], conversation)
                continue
            if read["inputs"]:
                first = places[read["inputs"][0]]
                if inputs[first:first + len(read["inputs"])] != read["inputs"]:
                    yield "ORDER: %s listed %s, which the end does not" % (read["node"], read["inputs"])
                facts.append((read["ended"], places[read["inputs"][-1]], read["inputs"][-1], "seen on " + read["node"]))
        facts.sort()
        at, last = 0, (-1, None, None)
        for read in sorted(reads[conversation], key=lambda one: one["begun"]):
            while at < len(facts) and facts[at][0] < read["begun"]:
                last = max(last, facts[at][1:])
                at += 1
            seen = places.get(read["inputs"][-1], -1) if read["inputs"] else -1
            if seen < last[0]:
                yield "STALE: %s did not list %s, which was %s %.3f s before" % (
                    read["node"], last[1], last[2], read["begun"] - max(f[0] for f in facts if f[2] == last[1] and
                                                                        f[0] < read["begun"]))


def split(history):
    for conversation, lists in history.final.items():
        nodes = sorted(node for node, items in lists.items() if items is not None)
        for node in nodes[1:]:
            if lists[node] != lists[nodes[0]]:
                yield "SPLIT: %s and %s list %s differently" % (nodes[0], node, conversation)


def calls(history):
    sent, done, keys = collections.Counter(), collections.Counter(), collections.defaultdict(set)
    for line in history.called:
        call = (line["tool"], str(line["arguments"].get("amount")))
        sent[call] += 1
        keys[call].add(line["key"])
    for line in history.done:
        done[line["tool"], str(line["arguments"].get("amount"))] += 1
    for (tool, amount), times in sent.items():
        if tool == "pay" and times > 1:
            yield "REPEATED: pay %s was sent %d times" % (amount, times)
        if len(keys[tool, amount]) > 1:
            yield "REPEATED: the attempts of %s %s carry the keys %s" % (tool, amount, sorted(keys[tool, amount]))
    for conversation, items in lists_of(history).items():
        for item in items:
            if item["type"] != "mcp_call":
                continue
            call = (item["name"], str(json.loads(item["arguments"]).get("amount")))
            receipt = "receipt: " in (item.get("output") or "")
            if receipt and not done[call]:
                yield "SILENT: %s %s has a receipt and was not done" % call
            if item["name"] != "pay" or receipt or item["id"] in history.seen_unknown:
                continue
            if sent[call]:
                yield "SILENT: %s %s was sent, has no receipt and was never unknown: %s" % (*call, item)


def streams(history):
    for one in history.attempts:
        stream = one["stream"]
        if not stream:
            continue
        if stream["numbers"] != list(range(len(stream["numbers"]))):
            yield "STREAM: the events of %s are numbered %s" % (one["text"], stream["numbers"])
        if one["outcome"] != "ok":
            continue
        for item in one["output"]:
            joined = stream["deltas"].get(item["id"], "")
            if item["type"] == "message" and joined != words_of(item):
                yield "STREAM: the deltas of %s join to %r, the text of %s is %r" % (one["text"], joined, item["id"],
                                                                                    words_of(item))


# --- clients that write histories -------------------------------------------------------------------------------------

AGENTS_OF = {
    # kind: (steps of the script, needs the tool server)
    "talk": [{"text": "heard {input}", "delay_ms": 5}],
    "pay": [{"call_tool": "ledger/pay", "call_arguments": '{"amount":{input},"delay_ms":30}'}, {"text": "paid {input}"}],
    "charge": [{"call_tool": "ledger/charge_idempotent", "call_arguments": '{"amount":{input},"delay_ms":10}'},
               {"text": "charged {input}"}],
}
UNKNOWN_CODES = ("internal", "request_timeout")  # an error answer that does not say whether anything was kept


class Load:
    """Threads that write turns, threads that read, and one that closes unknown outcomes, through all nodes."""

    headers = {}  # of each turn

    def __init__(self, cluster, ledger, seed, writers=6, readers=2, conversations=24, kinds=("talk", "pay", "charge"),
                 patience=30, pace=0.01):
        self.cluster, self.ledger, self.kinds, self.patience, self.pace = cluster, ledger, kinds, patience, pace
        self.history = History()
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.settling = False
        self.seed, self.numbers = seed, iter(range(10_001, 1 << 60))
        self.open = {}  # text -> what is to be sent again until it is answered
        self.asking = {}  # thread -> the attempt that it waits for
        self.refused = collections.Counter()
        self.only_through = None  # a node that writers are to go through
        self.conversations = [self.conversation(i) for i in range(conversations)]
        self.threads = [threading.Thread(target=self.write, args=(i,), daemon=True) for i in range(writers)]
        self.threads += [threading.Thread(target=self.read, args=(i,), daemon=True) for i in range(readers)]
        self.threads.append(threading.Thread(target=self.supervise, daemon=True))
        for thread in self.threads:
            thread.start()

    def conversation(self, i):
        until = time.monotonic() + self.patience
        while True:
            node = self.cluster.nodes[i % len(self.cluster.nodes)]
            try:
                answer = node.request("POST", "/v1/conversations", {}, {"Idempotency-Key": "conversation-%d" % i})
                if answer.status == 200:
                    return answer.json["id"]
            except Lost:
                pass
            check(time.monotonic() < until, "a conversation can be made", answer)

    def node(self, dice):
        """Any node that has a door: one that stands still or is cut off has one too. Those that ended are left out, as
        a balancer would."""
        alive = [node for node in self.cluster.nodes if node.alive() and node.address]
        if self.only_through in alive and dice.random() < 0.5:
            return self.only_through
        return dice.choice(alive or self.cluster.nodes)

    # --- writing

    def write(self, number):
        dice = random.Random("%s/%d" % (self.seed, number))
        while not self.stopping.is_set():
            with self.lock:
                text = str(next(self.numbers))
            conversation = dice.choice(self.conversations)
            kind = dice.choice([k for k in self.kinds for _ in range(4 if k == "talk" else 1)])
            how = dice.choice(["blocking", "stream"])
            key = "key-" + text if dice.random() < 0.6 else None
            self.turn(dice, text, conversation, kind, how, key)
            if key and dice.random() < 0.1:  # an answered key may be sent again, with the same body
                self.turn(dice, text, conversation, kind, how, key)
            time.sleep(self.pace)

    def turn(self, dice, text, conversation, kind, how, key):
        while True:
            one = self.send(self.node(dice), text, conversation, kind, how, key)
            if one["outcome"] == "ok" or key is None and one["outcome"] == "unknown":
                return one
            if one["outcome"] == "refused":
                self.refused[one["code"]] += 1
                if self.stopping.is_set() and not self.settling:
                    return one
            if self.stopping.is_set():
                with self.lock:
                    self.open[text] = (conversation, kind, how, key)
                return one
            time.sleep(0.05)

    def send(self, node, text, conversation, kind, how, key, patience=None):
        one = attempt(text, conversation, time.monotonic(), key=key, kind=kind, node=node.name)
        body = {"model": kind, "conversation": conversation, "input": text}
        with self.lock:
            self.history.attempts.append(one)
            self.asking[threading.get_ident()] = one
        try:
            if how == "stream":
                self.stream(node, one, body, key)
            else:
                answer = node.request("POST", "/v1/responses", body, {**self.headers, **({"Idempotency-Key": key} if key else {})},
                                      timeout=patience or self.patience)
                self.answered(one, answer)
        except (Lost, ValueError) as error:
            one["lost"] = repr(error)
            one["refused_connection"] = isinstance(error.__context__, ConnectionRefusedError)
        with self.lock:
            del self.asking[threading.get_ident()]
        return one

    def answered(self, one, answer):
        ended = time.monotonic()
        if answer.status == 200:
            self.ended(one, answer.json, ended)
            return
        one["said"] = repr(answer)
        one["code"] = answer.code
        if answer.code not in UNKNOWN_CODES:
            one["ended"], one["outcome"] = ended, "refused"

    def ended(self, one, response, when):
        one.update(response=response["id"], output=response["output"], status=response["status"], outcome="ok",
                   code=(response.get("error") or {}).get("code"), ended=when)

    def stream(self, node, one, body, key):
        stream = {"deltas": collections.defaultdict(str), "numbers": []}
        for name, event in node.stream(body, key):
            when = time.monotonic()
            if name == "http":
                return self.answered(one, event)
            one["stream"] = stream
            stream["numbers"].append(event.get("sequence_number"))
            if name == "response.output_text.delta":
                stream["deltas"][event["item_id"]] += event["delta"]
            if name in ("response.completed", "response.failed", "response.incomplete"):
                self.ended(one, event["response"], when)
            if name == "error":
                one["code"], one["said"] = event.get("code"), repr(event)

    # --- reading

    def read(self, number):
        dice = random.Random("%s/reader/%d" % (self.seed, number))
        while not self.stopping.is_set():
            node, conversation = self.node(dice), dice.choice(self.conversations)
            begun = time.monotonic()
            try:
                answer = node.request("GET", "/v1/conversations/%s/items?limit=20" % conversation,
                                      timeout=self.patience)
            except Lost:
                continue
            if answer.status == 200:
                self.was_read(conversation, node, begun, answer)
            time.sleep(self.pace)

    def was_read(self, conversation, node, begun, answer):
        with self.lock:
            self.history.reads.append({
                "conversation": conversation, "node": node.name, "begun": begun, "ended": time.monotonic(),
                "inputs": [words_of(item) for item in reversed(answer.json["data"]) if is_input(item)]})

    # --- unknown outcomes

    def supervise(self):
        dice = random.Random("%s/supervisor" % self.seed)
        while not self.stopping.wait(1):
            self.resolve(self.node(dice))

    def resolve(self, node):
        """Closes, as done, each call that is shown as unknown; whether none is left."""
        left = 0
        try:
            for conversation in self.conversations:
                session = node.request("GET", "/v1/sessions/" + conversation, timeout=5)
                if session.status != 200:
                    return False
                left += session.json["state"] != "idle"
                if session.json["state"] != "unknown_outcome":
                    continue
                page = node.request("GET", "/v1/conversations/%s/items?limit=100" % conversation, timeout=5)
                for item in page.json.get("data", []):
                    if item.get("status") != "unknown":
                        continue
                    self.history.seen_unknown.add(item["id"])
                    node.request("POST", "/v1/sessions/%s/calls/%s/resolve" % (conversation, item["id"]),
                                 {"as": "done", "result": "settled by a person"}, timeout=5)
        except (Lost, ValueError):
            return False
        return left == 0

    # --- the end

    def acknowledged(self):
        return sum(one["outcome"] == "ok" for one in self.history.attempts)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            until = time.monotonic() + self.patience + 60
            thread.join(1)
            while thread.is_alive() and time.monotonic() < until:
                # A client may wait for a turn whose call is unknown only now, and whoever closes those has stopped.
                self.resolve(next(node for node in self.cluster.nodes if node.alive()))
                thread.join(1)
            if thread.is_alive():
                one = self.asking.get(thread.ident)
                check(False, "every client ends", "waits for %.0f s: %s" % (time.monotonic() - one["begun"], one)
                      if one else thread, *(self.told_of(one["conversation"]) if one else ()))

    def told_of(self, conversation):
        """What each node says of a session that somebody waits for."""
        for node in self.cluster.nodes:
            for path in ("/v1/sessions/" + conversation, "/v1/conversations/%s/items?limit=4" % conversation):
                try:
                    yield "%s: %s" % (node.name, node.request("GET", path, timeout=5))
                except Lost as lost:
                    yield "%s: %s" % (node.name, lost)

    def settle(self, patience=60):
        """After the faults: all keys get their answer, all sessions come to rest; then everything is read."""
        self.stop()
        self.settling = True
        until = time.monotonic() + patience
        nodes = [node for node in self.cluster.nodes if node.alive()]
        while not self.resolve(nodes[0]) and time.monotonic() < until:
            time.sleep(0.2)
        dice = random.Random("%s/settle" % self.seed)
        for text, (conversation, kind, how, key) in self.open.items():
            if not key:
                continue
            while time.monotonic() < until:
                if self.send(dice.choice(nodes), text, conversation, kind, how, key, 5)["outcome"] == "ok":
                    break
                self.resolve(nodes[0])
                time.sleep(0.1)
        while not (rests := self.resolve(nodes[0])) and time.monotonic() < until:
            time.sleep(0.2)
        self.history.settled = rests
        # At once, because what is not served is waited for.
        pairs = [(conversation, node) for conversation in self.conversations for node in nodes]
        with concurrent.futures.ThreadPoolExecutor(len(pairs)) as pool:
            for (conversation, node), items in zip(pairs, pool.map(lambda pair: self.listed(pair[1], pair[0]), pairs)):
                self.history.final.setdefault(conversation, {})[node.name] = items
        answers = [one for one in self.history.attempts if one["outcome"] == "ok"]
        until = time.monotonic() + patience
        for one in dice.sample(answers, min(len(answers), 200)):
            if time.monotonic() > until:
                break
            node = dice.choice(nodes)
            try:
                answer = node.request("GET", "/v1/responses/" + one["response"], timeout=self.patience)
            except Lost:
                continue
            if answer.status not in (200, 404):
                continue  # not served: unread() has its conversation
            body = answer.json if answer.status == 200 else {}
            self.history.responses[one["response"]] = (node.name, body.get("status", answer.status), body.get("output"))
        self.history.called = read_lines(self.ledger + ".started")
        self.history.done = read_lines(self.ledger)
        return self.history

    def listed(self, node, conversation):
        try:
            return node.items(conversation)
        except (Failed, Lost):
            return None

    def verdict(self, patience=60):
        """Settles, checks; the violations."""
        return list(check_history(self.settle(patience)))

    def save(self, path):
        """What clients were told, as JSON lines by time."""
        with open(path, "w") as file:
            for one in sorted(self.history.attempts, key=lambda one: one["begun"]):
                file.write(json.dumps(one) + "\n")

    def summary(self):
        attempts = self.history.attempts
        return ("%d turns acknowledged, %d attempts unknown, %d refused (%s), %d reads, %d calls unknown" %
                (len({one["text"] for one in attempts if one["outcome"] == "ok"}),
                 sum(one["outcome"] == "unknown" for one in attempts),
                 sum(one["outcome"] == "refused" for one in attempts),
                 ", ".join("%s %d" % pair for pair in self.refused.most_common()), len(self.history.reads),
                 len(self.history.seen_unknown)))


class BalancedLoad(Load):
    """Clients as behind a balancer: any node whose /readyz says 200, asked ten times a second, a connection for each
    request, and another node where that is refused. What such a client sees beside answers is an error."""

    headers = {"Connection": "close"}

    def __init__(self, cluster, *words, **more):
        self.ready, self.failures = set(cluster.nodes), []
        self.watcher = threading.Thread(target=self.watch, args=(cluster,), daemon=True)
        super().__init__(cluster, *words, **more)
        self.watcher.start()

    def watch(self, cluster):
        while not self.stopping.wait(0.1):
            self.ready = {node for node in cluster.nodes if node.got("/readyz", timeout=1)}

    def node(self, dice):
        ready = [node for node in self.cluster.nodes if node in self.ready]
        return dice.choice(ready or self.cluster.nodes)

    def balanced(self, dice, ask):
        """`ask` of a node, and of another one as long as nobody listens."""
        node = self.node(dice)
        for _ in range(100):
            try:
                return node, ask(node)
            except Lost as lost:
                if not isinstance(lost.__context__, ConnectionRefusedError):
                    raise
                node = dice.choice([other for other in self.cluster.nodes if other is not node])
                time.sleep(0.02)
        raise Lost("nobody listens")

    def send(self, node, text, conversation, kind, how, key, patience=None):
        dice = random.Random("%s/%s" % (self.seed, text))
        one = super().send(node, text, conversation, kind, how, key, patience)
        while one.get("refused_connection"):
            with self.lock:
                self.history.attempts.remove(one)  # nothing was sent
            time.sleep(0.02)
            one = super().send(self.node(dice), text, conversation, kind, how, key, patience)
        return one

    def read(self, number):
        dice = random.Random("%s/reader/%d" % (self.seed, number))
        while not self.stopping.is_set():
            conversation, begun = dice.choice(self.conversations), time.monotonic()
            try:
                node, answer = self.balanced(dice, lambda node: node.request(
                    "GET", "/v1/conversations/%s/items?limit=20" % conversation, headers={"Connection": "close"},
                    timeout=self.patience))
            except Lost as lost:
                self.failures.append("a read: %s" % lost)
                continue
            if answer.status != 200:
                self.failures.append("a read from %s: %s" % (node.name, answer))
                continue
            self.was_read(conversation, node, begun, answer)
            time.sleep(self.pace)

    def errors(self):
        """What clients saw that was no answer, as texts."""
        with self.lock:
            bad = [one for one in self.history.attempts
                   if one["ended"] != NEVER and one["outcome"] != "ok" or one.get("lost") or one["code"]]
        return self.failures + ["%s to %s by %s: %s %s" % (one["kind"], one["conversation"], one["node"], one["outcome"],
                                                          one.get("said") or one.get("lost")) for one in bad]


# --- the self-test ----------------------------------------------------------------------------------------------------

def message(identity, role, text):
    kind = "input_text" if role == "user" else "output_text"
    return {"type": "message", "id": identity, "role": role, "content": [{"type": kind, "text": text}]}


def made_up():
    """Three turns in one conversation, the second one paid; nothing is wrong."""
    history = History()
    answer = {text: [message("msg_a" + text, "assistant", "heard " + text)] for text in ("1", "3")}
    call = {"type": "mcp_call", "id": "mcp_2", "name": "pay", "arguments": '{"amount":2}', "status": "completed",
            "output": "receipt: paid 2, key k"}
    answer["2"] = [call, message("msg_a2", "assistant", "paid 2")]
    history.attempts = [
        attempt("1", "c", 0, 1, "ok", "resp_1", answer["1"], status="completed",
                stream={"deltas": {"msg_a1": "heard 1"}, "numbers": [0, 1, 2]}),
        attempt("2", "c", 2, key="key-2", kind="pay"),
        attempt("2", "c", 3, 4, "ok", "resp_2", answer["2"], key="key-2", kind="pay", status="completed"),
        attempt("3", "c", 5, 6, "ok", "resp_3", answer["3"], status="completed"),
        attempt("4", "c", 7, 8, "refused", code="shard_unavailable"),
    ]
    items = [message("msg_1", "user", "1"), *answer["1"], message("msg_2", "user", "2"), *answer["2"],
             message("msg_3", "user", "3"), *answer["3"]]
    history.final = {"c": {"n0": items, "n1": list(items), "n2": list(items)}}
    history.reads = [{"conversation": "c", "node": "n1", "begun": 1.5, "ended": 1.6, "inputs": ["1"]},
                     {"conversation": "c", "node": "n2", "begun": 6.5, "ended": 6.6, "inputs": ["1", "2", "3"]}]
    history.responses = {"resp_1": ("n2", "completed", answer["1"])}
    line = {"tool": "pay", "arguments": {"amount": 2}, "key": "k"}
    history.called, history.done = [line], [dict(line)]
    return history


def everywhere(history, change):
    for node, items in history.final["c"].items():
        history.final["c"][node] = change(list(items))


def without(text):
    return lambda items: [item for item in items if words_of(item) != text]


def swapped(items):
    """The first turn (two items) comes last."""
    return items[2:] + items[:2]


def unknown_call(history, seen):
    everywhere(history, lambda items: [{**item, "output": "settled"} if item["type"] == "mcp_call" else item
                                       for item in items])
    history.attempts[2]["output"] = [{**history.attempts[2]["output"][0], "output": "settled"},
                                     history.attempts[2]["output"][1]]
    if seen:
        history.seen_unknown.add("mcp_2")


VIOLATIONS = {
    "an acknowledged input is gone": ("LOST", lambda h: everywhere(h, without("3"))),
    "an acknowledged answer is gone": ("LOST", lambda h: everywhere(h, without("heard 3"))),
    "an answer has changed": ("LOST", lambda h: h.responses.update(resp_1=("n1", "completed", []))),
    "an answer is not the input's": ("LOST", lambda h: h.attempts[0]["output"][0]["content"][0].update(text="heard 9")),
    "what was read is gone": ("LOST", lambda h: h.reads[0].update(inputs=["1", "77"])),
    "an input stands twice": ("DOUBLED", lambda h: everywhere(h, lambda items: items + [message("x", "user", "1")])),
    "a key has two answers": ("DOUBLED", lambda h: h.attempts[1].update(
        outcome="ok", ended=9, response="resp_9", output=h.attempts[2]["output"], status="completed")),
    "a refused turn is there": ("INVENTED", lambda h: everywhere(h, lambda items: items + [message("x", "user", "4")])),
    "nobody sent it": ("INVENTED", lambda h: everywhere(h, lambda items: items + [message("x", "user", "5")])),
    "turns are out of order": ("ORDER", lambda h: everywhere(h, swapped)),
    "a read lists another order": ("ORDER", lambda h: h.reads[1].update(inputs=["2", "1", "3"])),
    "a read lacks what was acknowledged": ("STALE", lambda h: h.reads[1].update(inputs=["1", "2"])),
    "a read lacks what another saw": ("STALE", lambda h: (h.reads[0].update(inputs=["1", "2", "3"], ended=1.6),
                                                          h.reads[1].update(begun=2, inputs=["1"]))),
    "nodes differ": ("SPLIT", lambda h: h.final["c"].update(n2=h.final["c"]["n0"][:2])),
    "a payment was sent twice": ("REPEATED", lambda h: h.called.append(h.called[0])),
    "two keys for one call": ("REPEATED", lambda h: h.called.append({**h.called[0], "key": "other"})),
    "a receipt for nothing": ("SILENT", lambda h: h.done.clear()),
    "a payment without an end": ("SILENT", lambda h: unknown_call(h, seen=False)),
    "deltas lack a piece": ("STREAM", lambda h: h.attempts[0]["stream"]["deltas"].update(msg_a1="heard")),
    "events lack a number": ("STREAM", lambda h: h.attempts[0]["stream"].update(numbers=[0, 2])),
    "a list cannot be read": ("STUCK", lambda h: h.final["c"].update(n1=None)),
    "a session does not rest": ("STUCK", lambda h: setattr(h, "settled", False)),
    "a turn failed": ("STUCK", lambda h: h.attempts[0].update(status="failed")),
}


def self_test():
    found = list(check_history(made_up()))
    check(not found, "nothing is found where nothing is wrong", *found)
    harmless = made_up()
    unknown_call(harmless, seen=True)
    found = list(check_history(harmless))
    check(not found, "an outcome that was shown as unknown is no violation", *found)
    for name, (rule, breaks) in VIOLATIONS.items():
        history = made_up()
        breaks(history)
        found = list(check_history(history))
        check(any(one.startswith(rule + ":") for one in found), "%s is found as %s" % (name, rule), *found)
    note("%d violations, each found" % len(VIOLATIONS))


if __name__ == "__main__":
    from harness import run
    run(self_test)
