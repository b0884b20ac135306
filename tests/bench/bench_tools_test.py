"""The measuring instruments are instruments only if they notice: each checker here meets a server that does wrong.

  bench_tools_test.py DIRECTORY_OF_BINARIES
"""

import http.server
import json
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from urllib.parse import parse_qs, urlparse

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "bench"))

import acknowledged  # noqa: E402
import servers  # noqa: E402
import targets  # noqa: E402

BINARIES = Path(sys.argv.pop(1)) if len(sys.argv) > 1 else Path("build/release/bin")


def message(role, text):
    return {"type": "message", "role": role, "status": "completed", "content": [{"type": "text", "text": text}]}


def turn_items(turn):
    return [message("user", f"{turn} some words"), message("assistant", "I shall ask a tool"),
            {"type": "mcp_call", "name": "echo", "output": "heard", "status": "completed"}, message("assistant", "the reply")]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, value):
        body = (value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        """Pages of two items each, so that paging is part of every case."""
        url = urlparse(self.path)
        items = self.server.histories[url.path.split("/")[3]]
        start = int(parse_qs(url.query).get("after", ["-1"])[0]) + 1
        page = [{**item, "id": str(start + i)} for i, item in enumerate(items[start : start + 2])]
        self.answer(200, {"data": page, "has_more": start + 2 < len(items), "last_id": page[-1]["id"] if page else None})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/conversations":
            return self.answer(200, {"id": "conv_1"})
        self.server.turns += 1
        self.answer(*self.server.reply)


class Server:
    def __init__(self, histories=None, reply=None):
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.histories, self.http.reply, self.http.turns = histories or {}, reply, 0
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.endpoint = f"127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


class Acknowledged(unittest.TestCase):
    LOG = "SENT a t1\nACK a t1 resp_1\nSENT a t2\nACK a t2 resp_2\nSENT a t3\nLOST a t3\n"

    def verdict(self, items):
        with tempfile.TemporaryDirectory() as folder, Server({"a": items}) as server:
            log = Path(folder) / "log"
            log.write_text(self.LOG)
            return acknowledged.check(server.endpoint, "key", log)

    def test_a_whole_history_passes(self):
        verdict = self.verdict(turn_items("t1") + turn_items("t2") + turn_items("t3"))
        self.assertEqual((verdict["acknowledged"], verdict["in_flight"], verdict["in_flight_finished"]), (2, 1, 1))
        for field in ("acknowledged_lost", "acknowledged_unfinished", "recorded_twice", "tool_results_twice"):
            self.assertEqual(verdict[field], 0, field)

    def test_a_lost_turn_is_noticed(self):
        self.assertEqual(self.verdict(turn_items("t1"))["acknowledged_lost"], 1)

    def test_a_turn_without_its_end_is_noticed(self):
        self.assertEqual(self.verdict(turn_items("t1") + turn_items("t2")[:3])["acknowledged_unfinished"], 1)

    def test_a_turn_recorded_twice_is_noticed(self):
        self.assertEqual(self.verdict(turn_items("t1") * 2 + turn_items("t2"))["recorded_twice"], 1)

    def test_a_tool_that_answered_twice_is_noticed(self):
        items = turn_items("t1") + turn_items("t2")
        self.assertEqual(self.verdict(items[:3] + [items[2]] + items[3:])["tool_results_twice"], 1)

    def test_a_tool_call_that_is_still_open_is_no_result(self):
        items = turn_items("t1") + turn_items("t2")
        items[6] = {**items[6], "status": "in_progress"}
        self.assertEqual(self.verdict(items)["acknowledged_unfinished"], 1)

    def test_an_in_flight_turn_that_never_ended_is_not_called_finished(self):
        verdict = self.verdict(turn_items("t1") + turn_items("t2") + turn_items("t3")[:3])
        self.assertEqual((verdict["in_flight_recorded"], verdict["in_flight_finished"]), (1, 0))


class Load(unittest.TestCase):
    def load(self, endpoint, *arguments):
        return json.loads(subprocess.run([BINARIES / "bench_load", endpoint, *map(str, arguments)], check=True,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60).stdout)

    def response(self, status="completed", text="x" * 400, item_status="completed"):
        return {"id": "resp_1", "status": status, "output": [
            {"type": "message", "status": item_status, "content": [{"type": "output_text", "text": text}]}]}

    def outcome(self, status, body):
        with Server(reply=(status, body)) as server:
            return self.load(server.endpoint, "--workload", "w1", "--connections", 1, "--sessions", 1, "--warmup", 0,
                             "--seconds", 0.2)

    def test_a_completed_response_with_its_reply_is_acknowledged(self):
        outcome = self.outcome(200, self.response())
        self.assertGreater(outcome["turns"], 0)
        self.assertEqual(outcome["errors"], {})

    def test_anything_less_is_counted_as_an_error(self):
        for status, body in ((200, self.response(status="incomplete")), (200, self.response(status="failed")),
                             (200, self.response(text="short")), (200, self.response(item_status="in_progress")),
                             (200, "{}"), (429, {"error": {}}), (503, self.response())):
            with self.subTest(status=status, body=body):
                outcome = self.outcome(status, body)
                self.assertEqual(outcome["turns"], 0)
                self.assertGreater(outcome["errors"][str(status)], 0)

    def test_the_floor_counts_what_the_load_counts(self):
        with tempfile.TemporaryDirectory() as folder:
            for sync in ("buffered", "direct"):
                floor = servers.Floor(BINARIES, Path(folder) / sync, sync, megabytes=16)
                try:
                    for mode in ("floor", "responses"):
                        before = floor.counters()
                        outcome = self.load(floor.endpoint, "--mode", mode, "--workload", "w4", "--sessions", 300,
                                            "--connections", 16)
                        after = floor.counters()
                        self.assertEqual((outcome["turns"], outcome["errors"]), (300, {}))
                        # 1,300 bytes of payload a turn; 16 turns at most share a group, and a group costs one sync.
                        self.assertGreaterEqual(after["bytes"] - before["bytes"], 300 * 1300)
                        self.assertGreaterEqual(after["syncs"] - before["syncs"], 300 * 4 / 16)
                        self.assertLessEqual(after["syncs"] - before["syncs"], 300 * 4)
                finally:
                    floor.stop()


class TargetRows(unittest.TestCase):
    def rows(self, report):
        return {row["target"]: row["holds"] for row in targets.evaluate(report).rows}

    def test_what_was_not_measured_never_holds(self):
        self.assertEqual(set(self.rows({}).values()), {None})

    def test_a_figure_is_held_against_the_floor_of_the_same_run(self):
        def report(syncs):
            return {"w1": [{"server": "floor-buffered", "connections": 64, "syncs_per_turn": 0.2},
                           {"server": "strict", "connections": 64, "syncs_per_turn": syncs}]}

        name = "64 connections, strict: syncs per turn, 1.2 x floor"
        self.assertIs(self.rows(report(0.23))[name], True)
        self.assertIs(self.rows(report(0.25))[name], False)

    def test_a_growing_backlog_is_told_from_a_saw_tooth(self):
        mega = 2**20
        self.assertIs(targets.backlog_is_flat([64 * mega * (i % 3) for i in range(18)]), True)
        self.assertIs(targets.backlog_is_flat([10 * mega * i for i in range(18)]), False)
        self.assertIsNone(targets.backlog_is_flat([1, 2]))


if __name__ == "__main__":
    unittest.main()
