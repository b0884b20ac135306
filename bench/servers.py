"""The servers under measurement: started on a free port, read from outside, ended by pid.

Both offer the same few things: endpoint ("host:port"), pid, load_options() for bench_load, counters() for what the
server itself counts, and stop().
"""

import http.client
import json
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

METRIC = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})? ([-+0-9.eE]+)", re.MULTILINE)


class BenchError(Exception):
    """The measurement itself could not be made."""


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.01)
    raise BenchError(f"{what}: not within {seconds} s")


def allocated_bytes(directory, suffix=""):
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                if name.endswith(suffix):
                    total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


class Process:
    """A child process with a log of its stderr."""

    def __init__(self, command, log, environment=None, stdout=subprocess.DEVNULL):
        self.log = Path(log)
        with open(self.log, "ab") as stderr:
            self.child = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=stdout,
                                          stderr=stderr, env=environment)

    @property
    def pid(self):
        return self.child.pid

    def require_alive(self):
        if self.child.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise BenchError(f"{self.child.args[0]} ended with {self.child.returncode}:\n{tail}")

    def kill(self):
        self.child.kill()
        self.child.wait()

    def stop(self, seconds=60):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                raise BenchError(f"{self.child.args[0]} did not end within {seconds} s of SIGTERM") from None


def request(endpoint, method, path, key=None, body=None, timeout=30):
    """(status, text) of one request over a connection of its own."""
    host, port = endpoint.rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Floor:
    """bench_floor: the bound."""

    def __init__(self, binaries, directory, sync, megabytes=256):
        self.name = f"floor-{sync}"
        self.directory = Path(directory)
        self.directory.mkdir(parents=True)
        self.process = Process([binaries / "bench_floor", "--file", self.directory / "floor.log", "--sync", sync,
                                "--file-megabytes", megabytes], self.directory / "stderr", stdout=subprocess.PIPE)
        readable, _, _ = select.select([self.process.child.stdout], [], [], 60)
        port = self.process.child.stdout.readline().decode().strip() if readable else ""
        self.process.child.stdout.close()
        if not port:
            self.process.require_alive()
            raise BenchError("bench_floor printed no port")
        self.endpoint = f"127.0.0.1:{port}"

    @property
    def pid(self):
        return self.process.pid

    def load_options(self):
        return ["--mode", "floor"]

    def counters(self):
        stats = json.loads(request(self.endpoint, "GET", "/stats")[1])
        return {"syncs": stats["syncs"], "bytes": stats["bytes"]}

    def stop(self):
        self.process.kill()  # it has no recovery and nothing to drain


class Daemon:
    """mainstayd on a data directory of its own."""

    def __init__(self, binaries, directory, config, commit, environment=()):
        self.name = commit
        self.binary = binaries / "mainstayd"
        self.directory = Path(directory)
        self.data = self.directory / "data"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.config = config
        self.environment = {**os.environ, "MAINSTAY_SESSION__COMMIT": commit, "MAINSTAY_LOG__LEVEL": "warn",
                            **dict(environment)}
        self.environment.pop("MAINSTAY_ADMIN_KEY", None)
        self.endpoint = "127.0.0.1:0"
        self.start()

    def start(self, wait_ready=True):
        """Starts it, again on the same port after a kill."""
        listen = self.data / "listen"
        listen.unlink(missing_ok=True)
        self.process = Process([self.binary, "--config", self.config, "--data", self.data, "--listen", self.endpoint],
                               self.directory / "stderr", self.environment)
        if wait_ready:
            self.wait_ready()

    def wait_ready(self, seconds=60):
        def listening():
            self.process.require_alive()
            try:
                return (self.data / "listen").read_text().strip()
            except FileNotFoundError:
                return ""

        def ready():
            self.process.require_alive()
            try:
                return request(self.endpoint, "GET", "/readyz", self.key, timeout=5)[0] == 200
            except OSError:
                return False

        self.endpoint = wait_until(listening, seconds, "mainstayd wrote no file `listen`")
        self.key = wait_until(lambda: (self.data / "admin.key").read_text().strip(), seconds, "no admin.key")
        wait_until(ready, seconds, "mainstayd was not ready")

    @property
    def pid(self):
        return self.process.pid

    def load_options(self):
        return ["--mode", "responses", "--key-file", str(self.data / "admin.key")]

    def metrics(self):
        """Sums over labels: {name: value}."""
        status, text = request(self.endpoint, "GET", "/metrics", self.key)
        if status != 200:
            raise BenchError(f"/metrics answered {status}")
        totals = {}
        for name, value in METRIC.findall(text):
            totals[name] = totals.get(name, 0.0) + float(value)
        return totals

    def counters(self):
        metrics = self.metrics()
        missing = [name for name in ("mainstay_journal_syncs_total", "mainstay_state_syncs_total",
                                     "mainstay_state_apply_backlog_bytes") if name not in metrics]
        if missing:
            raise BenchError(f"/metrics lacks {', '.join(missing)}")
        journal, state = metrics["mainstay_journal_syncs_total"], metrics["mainstay_state_syncs_total"]
        return {"syncs": journal + state, "journal_syncs": journal, "state_syncs": state,
                "backlog": metrics["mainstay_state_apply_backlog_bytes"]}

    def backlog(self):
        return self.counters()["backlog"]

    def settle(self, seconds=120):
        """Waits until everything durable is applied; seconds that took."""
        begin = time.monotonic()
        wait_until(lambda: self.backlog() == 0, seconds, "the apply backlog did not drain")
        return time.monotonic() - begin

    def allocated(self):
        """Allocated bytes of the data directory: everything, and the LMDB environments alone."""
        return {"all": allocated_bytes(self.data), "state": allocated_bytes(self.data, ".mdb")}

    def memory_kb(self):
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return {name: int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE).group(1)) for name in ("Pss", "Anonymous")}

    def open_files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def kill(self):
        self.process.kill()

    def stop(self):
        self.process.stop()
