"""A fake Chat Completions server on loopback that a test drives: what it does with a request is chosen by the first word of
its last user message."""
import http.server
import json
import threading
import time


class Upstream:
    def __init__(self):
        outer = self
        self.seen = {}      # user message -> list of (time, request)
        self.behaviour = {}  # first word -> function(handler, count, request)
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.heard = threading.Event()  # by the client: the first part of a paced answer

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                message = [m for m in request["messages"] if m["role"] == "user"][-1]["content"]
                with outer.lock:
                    seen = outer.seen.setdefault(message, [])
                    seen.append((time.monotonic(), request, dict(self.headers)))
                    count = len(seen)
                try:
                    outer.behaviour[message.split()[0]](self, count, request)
                except OSError:
                    pass

            def whole(self, status, body, headers=(), content_type="application/json"):
                raw = body if isinstance(body, bytes) else body.encode()
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(raw)))
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def begin(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True

            def chunk(self, delta, finish=None, usage=None):
                one = {"id": "c1", "object": "chat.completion.chunk", "model": "fake-1",
                       "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
                if usage:
                    one["usage"] = usage
                self.wfile.write(("data: %s\n\n" % json.dumps(one)).encode())
                self.wfile.flush()

            def answer(self, text):
                self.begin()
                for at in range(0, len(text), 7):
                    self.chunk({"role": "assistant", "content": text[at:at + 7]})
                self.chunk({}, "stop", {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18,
                                        "prompt_tokens_details": {"cached_tokens": 8}})
                self.wfile.write(b"data: [DONE]\n\n")

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a client that goes away in the middle is what is tested
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = "http://127.0.0.1:%d/v1" % self.server.server_address[1]

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def attempts(self, message):
        with self.lock:
            return [at for at, _, _ in self.seen.get(message, [])]
