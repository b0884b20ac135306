"""Holds the log of a load run against what the server remembers: nothing acknowledged is lost, nothing is there twice.

The log is bench_load's: SENT, ACK, REFUSED and LOST lines of session and turn. Each message begins with its turn's id,
so the history says which turns it contains.
"""

import http.client
import json
from collections import Counter, defaultdict
from urllib.parse import urlencode


def read_log(path):
    """{session: {turn: last word about it}}."""
    turns = defaultdict(dict)
    with open(path) as lines:
        for line in lines:
            word, session, turn = line.split()[:3]
            turns[session][turn] = word
    return turns


class Reader:
    """Items of sessions over one kept-alive connection."""

    def __init__(self, endpoint, key):
        host, port = endpoint.rsplit(":", 1)
        self.connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self.headers = {"Authorization": f"Bearer {key}"}

    def items(self, session):
        after = None
        while True:
            query = {"order": "asc", "limit": 100, **({"after": after} if after else {})}
            self.connection.request("GET", f"/v1/conversations/{session}/items?{urlencode(query)}", headers=self.headers)
            answer = self.connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"items of {session}: {answer.status} {body[:300]!r}")
            page = json.loads(body)
            yield from page["data"]
            if not page.get("has_more"):
                return
            after = page["last_id"]

    def close(self):
        self.connection.close()


def text_of(item):
    return "".join(part.get("text", "") for part in item.get("content") or [] if isinstance(part, dict))


def turns_of(items):
    """What a history contains: how often each turn was begun, which turns ended with a final message, and how many
    settled tool calls each has. Agent `bench` makes one call a turn: model, tool, model."""
    begun, finished, results = Counter(), set(), Counter()
    turn = None
    for item in items:
        kind, settled = item.get("type"), item.get("status", "completed") == "completed"
        if kind == "message" and item.get("role") == "user":
            turn = text_of(item).split(" ", 1)[0]
            begun[turn] += 1
        elif kind in ("mcp_call", "function_call_output") and settled:
            results[turn] += 1
        elif kind == "message" and item.get("role") == "assistant" and settled and results[turn]:
            finished.add(turn)
    return begun, finished, results


def check(endpoint, key, log_path):
    reader = Reader(endpoint, key)
    verdict = dict(sessions=0, acknowledged=0, acknowledged_lost=0, acknowledged_unfinished=0, recorded_twice=0,
                   tool_results_twice=0, in_flight=0, in_flight_recorded=0, in_flight_finished=0, unknown_turns=0)
    for session, turns in read_log(log_path).items():
        begun, finished, results = turns_of(reader.items(session))
        verdict["sessions"] += 1
        verdict["recorded_twice"] += sum(1 for count in begun.values() if count > 1)
        verdict["tool_results_twice"] += sum(1 for count in results.values() if count > 1)
        verdict["unknown_turns"] += sum(1 for turn in begun if turn not in turns)
        for turn, word in turns.items():
            if word == "ACK":
                verdict["acknowledged"] += 1
                verdict["acknowledged_lost"] += turn not in begun
                verdict["acknowledged_unfinished"] += turn in begun and turn not in finished
            elif word == "LOST":
                verdict["in_flight"] += 1
                verdict["in_flight_recorded"] += turn in begun
                verdict["in_flight_finished"] += turn in finished
    reader.close()
    return verdict
