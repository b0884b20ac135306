"""Real mainstayd processes for tests: each in a temporary directory of its own, on a port that the system chose, ended
by its pid whatever happens. A test is a function that takes nothing and raises on the first thing that does not hold;
run() prints what was checked and, after a failure, the end of each daemon's log.

The binaries come from MAINSTAY_BIN (a folder), else build/release/bin.
"""
import atexit
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("MAINSTAY_BIN") or os.path.join(ROOT, "build", "release", "bin")
NODE_MODULES = os.path.join(ROOT, "tests", "e2e", "node_modules")
LEDGER_SERVER = os.path.join(ROOT, "tests", "support", "ledger_server.mjs")
PATIENCE = float(os.environ.get("MAINSTAY_TEST_PATIENCE", "60"))  # seconds that any one thing may take
LIVE = set()  # daemons that run
CREATED = []  # all of this test


class Failed(AssertionError):
    pass


class Lost(Exception):
    """No answer: the daemon died, or never was there. Whether the request had an effect is not known."""


def check(holds, text, *details):
    if not holds:
        raise Failed(text + "".join("\n    " + str(one)[:2000] for one in details))


def note(text):
    print("  " + text, flush=True)


def wait_until(what, condition, patience=None, every=0.01):
    patience = PATIENCE if patience is None else patience
    until = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise Failed("waited %.0f s for %s" % (patience, what))
        time.sleep(every)


class Answer:
    def __init__(self, status, headers, raw):
        self.status, self.headers, self.raw = status, headers, raw

    @property
    def json(self):
        return json.loads(self.raw)

    @property
    def code(self):
        """The stable code of an error answer."""
        try:
            return (self.json.get("error") or {}).get("code")
        except ValueError:
            return None

    def __repr__(self):
        return "HTTP %d %r" % (self.status, self.raw[:600])


class Daemon:
    """One data directory and the process that serves it now. `agents` and `models` are TOML texts by file name."""

    def __init__(self, agents=None, models=None, env=None, program="mainstayd", data=None, config=None, flags=()):
        self.folder = tempfile.mkdtemp(prefix="mainstay-e2e-")
        self.data = data or os.path.join(self.folder, "data")
        os.makedirs(self.data, exist_ok=True)
        self.log_path = os.path.join(self.folder, "log")
        self.program = os.path.join(BIN, program)
        self.config = config or os.path.join(ROOT, "config", "mainstay.toml")
        self.flags = list(flags)
        self.listen = "127.0.0.1:0"
        self.env = dict(env or {})
        for name, files in (("AGENTS", agents), ("MODELS", models)):
            if files is None:
                continue
            folder = os.path.join(self.folder, name.lower())
            os.makedirs(folder)
            for file, text in files.items():
                with open(os.path.join(folder, file + ".toml"), "w") as out:
                    out.write(text)
            self.env["MAINSTAY_%s__DIRECTORY" % name] = folder
        # Small segments: a fresh data directory is made in a moment.
        self.env.setdefault("MAINSTAY_STORE__SEGMENT_BYTES", "33MB")
        self.process = None
        self.address = None
        self.key = None
        self.local = threading.local()
        self.generation = 0
        CREATED.append(self)

    # --- the process ---------------------------------------------------------------------------------------------

    def spawn(self, env=None, wrapper=()):
        address = os.path.join(self.data, "listen")
        if os.path.exists(address):
            os.unlink(address)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAINSTAY_")}
        environment.update(self.env)
        environment.update(env or {})
        self.generation += 1
        with open(self.log_path, "a") as log:
            log.write("--- start %d %s\n" % (self.generation, env or ""))
            log.flush()
            self.process = subprocess.Popen(
                [*wrapper, self.program, "--config", self.config, "--data", self.data, "--listen", self.listen,
                 *self.flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True)
        LIVE.add(self)
        return self

    def start(self, env=None, crash=None, wrapper=(), ready=True, may_die=False):
        """Waits until the daemon serves. `may_die`: it may also end before that; then False comes back."""
        self.spawn({**(env or {}), **({"MAINSTAY_CRASH_POINT": crash} if crash else {})}, wrapper)
        path = os.path.join(self.data, "listen")
        key = os.path.join(self.data, "admin.key")

        def serving():
            if self.process.poll() is not None:
                if may_die:
                    return "ended"
                raise Failed("mainstayd ended at its start with status %s" % self.process.returncode)
            if not os.path.exists(path) or not (os.path.exists(key) or "MAINSTAY_ADMIN_KEY" in self.env):
                return None
            with open(path) as file:
                self.address = file.read().strip()
            self.key = self.env.get("MAINSTAY_ADMIN_KEY") or open(key).read().strip()
            try:
                return "serves" if not ready or self.request("GET", "/readyz").status == 200 else None
            except Lost:
                return None

        outcome = wait_until("mainstayd to be ready", serving)
        if outcome == "ended":
            LIVE.discard(self)
            return False
        return True

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def wait_end(self, patience=None):
        """Its status; negative: the signal that ended it."""
        try:
            status = self.process.wait(PATIENCE if patience is None else patience)
        except subprocess.TimeoutExpired:
            raise Failed("mainstayd does not end")
        LIVE.discard(self)
        return status

    def kill(self):
        if self.alive():
            self.process.send_signal(signal.SIGKILL)
        self.wait_end()

    def stop(self):
        """SIGTERM; the exit status."""
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
        return self.wait_end()

    def end(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        LIVE.discard(self)

    def discard(self):
        """Ends it and removes its files."""
        self.end()
        if self in CREATED:
            CREATED.remove(self)
        if os.environ.get("MAINSTAY_KEEP") != "1":
            shutil.rmtree(self.folder, True)

    def log(self):
        if not os.path.exists(self.log_path):
            return ""
        with open(self.log_path, errors="replace") as file:
            return file.read()

    def rss_kb(self):
        with open("/proc/%d/status" % self.process.pid) as file:
            return int(next(line for line in file if line.startswith("VmRSS")).split()[1])

    # --- its door ------------------------------------------------------------------------------------------------

    def host_port(self):
        host, port = self.address.rsplit(":", 1)
        return host, int(port)

    def connect(self, timeout=None):
        return socket.create_connection(self.host_port(), timeout or PATIENCE)

    def request(self, method, path, body=None, headers=None, auth=True, timeout=None):
        """One request on this thread's kept-alive connection. Raises Lost where no answer came."""
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        sent = {"Content-Type": "application/json"} if body is not None else {}
        if auth and self.key:
            sent["Authorization"] = "Bearer " + self.key
        sent.update(headers or {})
        mine = getattr(self.local, "connection", None)
        if mine is None or mine[0] != self.address or mine[2] != (timeout or PATIENCE):
            if mine:
                mine[1].close()
            mine = (self.address, http.client.HTTPConnection(*self.host_port(), timeout=timeout or PATIENCE),
                    timeout or PATIENCE)
            self.local.connection = mine
        try:
            mine[1].request(method, path, body, sent)
            answer = mine[1].getresponse()
            raw = answer.read()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, raw)
        except (OSError, http.client.HTTPException) as error:
            mine[1].close()
            self.local.connection = None
            raise Lost(repr(error))

    def call(self, method, path, body=None, status=200, **more):
        answer = self.request(method, path, body, **more)
        check(answer.status == status, "%s %s answers %d, not %d" % (method, path, answer.status, status),
              answer, body if not isinstance(body, bytes) else "")
        return answer.json

    def turn(self, model, text, conversation=None, key=None, status=200, **fields):
        body = {"model": model, "input": text, **fields}
        if conversation:
            body["conversation"] = conversation
        return self.call("POST", "/v1/responses", body, status, headers={"Idempotency-Key": key} if key else None)

    def stream(self, body, key=None):
        """The events of a streamed turn, one at a time, as (name, data). Ends with Lost where the connection broke."""
        connection = http.client.HTTPConnection(*self.host_port(), timeout=PATIENCE)
        try:
            headers = {"Authorization": "Bearer " + self.key, "Content-Type": "application/json"}
            if key:
                headers["Idempotency-Key"] = key
            connection.request("POST", "/v1/responses", json.dumps({**body, "stream": True}), headers)
            answer = connection.getresponse()
            if answer.status != 200:
                yield "http", Answer(answer.status, {}, answer.read())
                return
            name, last = None, None
            while True:
                line = answer.readline()
                if not line:
                    if last not in ("response.completed", "response.failed", "response.incomplete", "error"):
                        raise Lost("the stream broke after " + str(last))
                    return
                line = line.decode().rstrip("\r\n")
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: ") and line != "data: [DONE]":
                    last = name
                    yield name, json.loads(line[6:])
        except (OSError, http.client.HTTPException) as error:
            raise Lost(repr(error))
        finally:
            connection.close()

    def pages(self, path, order="asc"):
        """Every entry of a paged list."""
        found, after = [], None
        while True:
            glue = "&" if "?" in path else "?"
            page = self.call("GET", path + glue + "limit=100" + ("&order=" + order if order else "") +
                             ("&after=%s" % after if after else ""))
            found += page["data"]
            if not page["has_more"]:
                return found
            after = page["data"][-1].get("id") or page["data"][-1]["sequence"]

    def items(self, conversation):
        return self.pages("/v1/conversations/%s/items" % conversation)

    def events(self, session):
        return self.pages("/v1/sessions/%s/events" % session, order=None)

    def read(self, response):
        return self.call("GET", "/v1/responses/" + response)

    def settled(self, response, patience=None):
        def done():
            turn = self.read(response)
            return turn if turn["status"] not in ("queued", "in_progress") else None
        return wait_until("turn %s to settle" % response, done, patience)

    def conversation(self, **fields):
        return self.call("POST", "/v1/conversations", fields)["id"]

    def cli(self, *words, stdin=None, env=None, timeout=None):
        """`mainstay` against this daemon: (exit status, stdout, stderr)."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAINSTAY_")}
        environment.update({"MAINSTAY_URL": "http://" + self.address, "MAINSTAY_ADMIN_KEY": self.key, **(env or {})})
        done = subprocess.run([os.path.join(BIN, "mainstay"), *words], input=stdin, capture_output=True, text=True,
                              env=environment, timeout=timeout or PATIENCE)
        return done.returncode, done.stdout, done.stderr


def text_of(turn):
    """The text of a turn's last message."""
    messages = [item for item in turn["output"] if item["type"] == "message"]
    return "".join(part.get("text", "") for part in messages[-1]["content"]) if messages else ""


def scripted(name, *steps):
    """A scripted model's TOML; each step is a dict of the keys of docs/MODELS.md."""
    out = 'name = "%s"\ndevice = "scripted"\ncontext_window = 1000000\n' % name
    for step in steps:
        out += "\n[[script]]\n" + "".join("%s = %s\n" % (key, json.dumps(value)) for key, value in step.items())
    return out


def agent(name, model, *toolsets, extra=""):
    out = 'name = "%s"\nmodel = "%s"\n%s\n' % (name, model, extra)
    return out + "".join("\n[[tools]]\n" + tools + "\n" for tools in toolsets)


BUILTIN = 'type = "builtin"\nnames = ["memory", "clock", "echo"]'


def ledger_tools(ledger_file, more=""):
    return ('type = "mcp"\nserver_label = "ledger"\ncommand = ["node", %s]\nenv = { LEDGER_FILE = %s }\n%s' %
            (json.dumps(LEDGER_SERVER), json.dumps(ledger_file), more))


class FakeUpstream:
    """A Chat Completions server on loopback that lives in the test, so that it outlives the daemons. `decide(request)`
    gives (text, [(tool, arguments), ...]); tools are named without their server."""

    def __init__(self, decide):
        outer = self
        self.requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                text, calls = decide(body)
                offered = [tool["function"]["name"] for tool in body.get("tools", [])]
                message = {"role": "assistant", "content": text}
                if calls:
                    message["tool_calls"] = [
                        {"index": i, "id": "call_%d_%d" % (len(body["messages"]), i), "type": "function",
                         "function": {"name": next(n for n in offered if n == tool or n.endswith("__" + tool)),
                                      "arguments": json.dumps(arguments)}} for i, (tool, arguments) in enumerate(calls)]
                chunks = [{"id": "x", "object": "chat.completion.chunk", "model": body["model"],
                           "choices": [{"index": 0, "delta": message, "finish_reason": None}]},
                          {"id": "x", "object": "chat.completion.chunk", "model": body["model"],
                           "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"}],
                           "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}]
                raw = "".join("data: %s\n\n" % json.dumps(chunk) for chunk in chunks) + "data: [DONE]\n\n"
                try:
                    self.send_response(200)
                    self.send_header("Content-Type", "text/event-stream")
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw.encode())
                except OSError:
                    pass  # the daemon was killed meanwhile

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # daemons that are killed leave their connections
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = "http://127.0.0.1:%d/v1" % self.server.server_address[1]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def read_lines(path):
    """Whole JSON lines; a last one that is torn counts as not written."""
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file.read().split("\n")[:-1]]


def all_at_once(*tasks):
    """Runs functions on threads; the first failure is raised here."""
    failures = []

    def guard(task):
        try:
            task()
        except BaseException as error:  # handed to the caller below
            failures.append(error)

    threads = [threading.Thread(target=guard, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def error_codes():
    """The closed list. Where the pages that document it are there, each code that is met must have one."""
    with open(os.path.join(ROOT, "runtime", "base", "error_code.h")) as file:
        codes = set(re.findall(r"^    X\((\w+),", file.read(), re.M))
    folder = os.path.join(ROOT, "docs", "errors")
    pages = {name[:-3] for name in os.listdir(folder) if name.endswith(".md")} if os.path.isdir(folder) else set()
    return codes & pages if pages else codes


def end_all():
    for daemon in list(CREATED):
        daemon.discard()


atexit.register(end_all)
for ending in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(ending, lambda *_: sys.exit(1))


def run(*tests):
    """The main() of a test file: runs the tests (those named on the command line, else all) and ends the process."""
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")]
    failed = 0
    for test in tests:
        if wanted and test.__name__ not in wanted:
            continue
        print(test.__name__ + ": " + (test.__doc__ or "").strip().split("\n")[0], flush=True)
        begun = time.monotonic()
        try:
            test()
            print("  ok, %.1f s" % (time.monotonic() - begun), flush=True)
        except Exception as error:
            failed += 1
            logs = [(daemon.log_path, daemon.log()) for daemon in CREATED]
            if isinstance(error, Failed):
                print("  FAILED: %s" % error, flush=True)
                frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.endswith("harness.py")]
                for frame in frames[-4:]:
                    print("    at %s:%d %s" % (os.path.basename(frame.filename), frame.lineno, frame.line))
            else:
                traceback.print_exc()
            for path, log in logs:
                print("  --- end of %s\n%s" % (path, log[-3000:]), flush=True)
        finally:
            end_all()
    sys.exit(1 if failed else 0)
