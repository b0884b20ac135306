#!/usr/bin/env python3
"""What an operator relies on: drain, lock, metrics, configuration errors, key file, timers and sleeping sessions."""
import os
import shutil
import signal
import stat
import subprocess
import threading
import time

from harness import BUILTIN, ROOT, Daemon, agent, check, ledger_tools, note, run, scripted, text_of, wait_until

MODELS = {
    "plain": scripted("plain", {"text": "heard {input}"}),
    "slow": scripted("slow", {"text": "slow {input}", "delay_ms": 1500}),
    "recall": scripted("recall", {"text": "first you said: {first_input}"}),
    "napper": scripted("napper", {"call_tool": "builtin/clock_sleep", "call_arguments": '{"seconds":2}'},
                       {"text": "rested {input}"}),
}
AGENTS = {"napper": agent("napper", "napper", BUILTIN)}


def start(env=None):
    daemon = Daemon(AGENTS, MODELS, env)
    daemon.start()
    return daemon


def sigterm_drains():
    """SIGTERM: the turn in flight finishes and is answered, new ones are refused, readyz says 503, exit 0."""
    daemon = start()
    got = {}

    def ask():
        got["turn"] = daemon.request("POST", "/v1/responses", {"model": "slow", "input": "in flight"})

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until("the turn to be open", lambda: any(
        s["state"] == "running" for s in daemon.call("GET", "/v1/sessions")["data"]))
    idle = daemon.connect()
    kept = daemon.request("GET", "/readyz")
    check(kept.status == 200, "ready before", kept)
    daemon.process.send_signal(signal.SIGTERM)
    wait_until("readyz to say 503", lambda: daemon.request("GET", "/readyz").status == 503, 5)
    check(daemon.request("GET", "/readyz").code == "draining", "and why")
    check(daemon.request("GET", "/healthz").status == 200, "while healthz says that it lives")
    refused = daemon.request("POST", "/v1/responses", {"model": "plain", "input": "too late"})
    check(refused.status == 503 and refused.code == "draining", "a new turn is refused while draining", refused)
    thread.join()
    idle.close()
    check(got["turn"].status == 200 and got["turn"].json["status"] == "completed", "the turn in flight is answered",
          got.get("turn"))
    check(daemon.wait_end(30) == 0, "exit 0")
    check(not os.path.exists(os.path.join(daemon.data, "listen")), "the address file is gone")
    daemon.start()
    check(daemon.read(got["turn"].json["id"])["status"] == "completed", "the drained turn is on disk")


def second_daemon_is_refused():
    """A second daemon on the same directory is refused and told which process holds it."""
    daemon = start()
    other = subprocess.run([daemon.program, "--config", daemon.config, "--data", daemon.data, "--listen", "127.0.0.1:0"],
                           env={**os.environ, **daemon.env}, capture_output=True, text=True, timeout=30)
    check(other.returncode != 0, "it does not start", other)
    check(str(daemon.process.pid) in other.stderr + other.stdout, "it names the pid", other.stderr, other.stdout)
    check(daemon.turn("plain", "x")["status"] == "completed", "the first one serves on")
    check(os.path.exists(os.path.join(daemon.data, "listen")), "the first one's address file is untouched")
    note(other.stderr.strip())


def metrics_are_clean():
    """promtool finds nothing wrong with a live scrape, and no name of a user, session or tenant is a label."""
    daemon = start()
    conversation = daemon.conversation()
    for i in range(3):
        daemon.turn("plain", "x%d" % i, conversation)
    daemon.turn("napper", "x", background=True)
    daemon.request("GET", "/v1/responses/resp_nonsense")
    scrape = daemon.request("GET", "/metrics", auth=False)
    check(scrape.status == 200 and scrape.headers["content-type"].startswith("text/plain"), "served without a key", scrape)
    text = scrape.raw.decode()
    check(conversation not in text and "conv_" not in text and "resp_" not in text, "no session is a label")
    promtool = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    check(promtool.returncode == 0 and not promtool.stdout.strip(), "promtool is content", promtool.stdout, promtool.stderr)
    for family in ("mainstay_turns", "mainstay_steps", "mainstay_http"):
        check(any(line.startswith(family) for line in text.split("\n")), "there is a family %s*" % family, text[:1500])
    for path in ("/healthz", "/readyz"):
        check(daemon.request("GET", path, auth=False).status == 200, path + " without a key")
    check(daemon.request("GET", "/v1/models", auth=False).status == 401, "everything else needs the key")
    lines = [line for line in text.split("\n") if line and not line.startswith("#")]
    note("%d series" % len(lines))
    daemon.stop()
    daemon.env["MAINSTAY_METRICS__WITHOUT_KEY"] = "false"
    daemon.start()
    check(daemon.request("GET", "/metrics", auth=False).status == 401, "a setting puts the key before the metrics")
    check(daemon.request("GET", "/metrics").status == 200, "with the key they are served")


def configuration_errors():
    """A wrong setting, agent or model stops the start and names file and line; --check-config masks the key."""
    program = Daemon().program

    def attempt(text, env=None, *flags):
        daemon = Daemon()
        config = os.path.join(daemon.folder, "mainstay.toml")
        with open(config, "w") as file:
            file.write(text)
        done = subprocess.run([program, "--config", config, "--data", daemon.data, *flags], capture_output=True, text=True,
                              timeout=30, env={**{k: v for k, v in os.environ.items() if not k.startswith("MAINSTAY_")},
                                               **(env or {})})
        return done, config

    for text, line, word in [("[session]\ncommit = \"sometimes\"\n", 2, "commit"), ("[listen]\n\nadress = \"x\"\n", 3, "adress"),
                             ("[session\n", 1, ""), ("[session]\nwindow_bytes = \"many\"\n", 2, "window_bytes")]:
        done, config = attempt(text, None, "--check-config")
        check(done.returncode == 2, "a wrong setting ends with status 2", text, done)
        check("%s:%d" % (config, line) in done.stderr and word in done.stderr, "it names file and line", text, done.stderr)
    done, _ = attempt("", {"MAINSTAY_SESSION__COMMIT": "never"}, "--check-config")
    check(done.returncode == 2 and "MAINSTAY_SESSION__COMMIT" in done.stderr, "it names the variable", done.stderr)
    done, _ = attempt("", {"MAINSTAY_NO__SUCH": "1"}, "--check-config")
    check(done.returncode == 2 and "MAINSTAY_NO__SUCH" in done.stderr, "an unknown variable is an error", done.stderr)
    done, _ = attempt("", {"MAINSTAY_ADMIN_KEY": "a-very-secret-key-1234"}, "--check-config")
    check(done.returncode == 0 and "a-very-secret-key-1234" not in done.stdout + done.stderr and "***" in done.stdout,
          "the key is masked", done.stdout)
    shipped = subprocess.run([program, "--config", os.path.join(ROOT, "config", "mainstay.toml"), "--check-config"],
                             capture_output=True, text=True, timeout=30)
    check(shipped.returncode == 0 and "[session]" in shipped.stdout, "the shipped settings are valid", shipped.stderr)
    for kind, text, line in [("agents", 'name = "a"\nmodel = "m"\nmodle = "x"\n', 3), ("models", 'name = "a"\ndevice = "abacus"\n', 2)]:
        daemon = Daemon({"a": text} if kind == "agents" else {}, {"m": scripted("m", {"text": "x"}),
                                                                   **({"b": text} if kind == "models" else {})})
        done = subprocess.run([program, "--config", daemon.config, "--data", daemon.data], capture_output=True, text=True,
                              timeout=30, env={**os.environ, **daemon.env})
        file = "a.toml" if kind == "agents" else "b.toml"
        check(done.returncode != 0 and "%s:%d" % (file, line) in done.stderr, "a wrong %s file is named with its line" % kind,
              done.stderr)
    tiny = os.path.join(ROOT, "config", "models", "mainstay_tiny")
    for name, harm, words in [("fits", lambda folder: None, None),
                              ("gone", shutil.rmtree, "there is no such folder"),
                              ("torn", lambda folder: os.truncate(os.path.join(folder, "model.safetensors"), 1 << 20),
                               "model.safetensors: truncated: tensor"),
                              ("mute", lambda folder: os.unlink(os.path.join(folder, "tokenizer.json")), "tokenizer.json")]:
        daemon = Daemon({}, {"own": 'name = "own"\ndevice = "neuron_core_sim"\npath = "files"\n'})
        folder = os.path.join(daemon.env["MAINSTAY_MODELS__DIRECTORY"], "files")
        shutil.copytree(tiny, folder)
        harm(folder)
        if words is None:
            daemon.start()
            check(daemon.stop() == 0, "a model whose files fit each other is taken")
            continue
        done = subprocess.run([program, "--config", daemon.config, "--data", daemon.data], capture_output=True, text=True,
                              timeout=30, env={**os.environ, **daemon.env})
        check(done.returncode != 0 and "model own: " + folder in done.stderr and words in done.stderr and
              "model_not_loadable" in done.stderr, "a model's files are checked at the start: %s" % name, done.stderr)
    done = subprocess.run([program, "--config", "/nowhere/x.toml"], capture_output=True, text=True, timeout=30)
    check(done.returncode == 2 and "/nowhere/x.toml" in done.stderr, "a missing file is named", done.stderr)


def key_file():
    """The admin key is made once with mode 0600, survives restarts, and MAINSTAY_ADMIN_KEY replaces it."""
    daemon = start()
    path = os.path.join(daemon.data, "admin.key")
    check(stat.S_IMODE(os.stat(path).st_mode) == 0o600, "mode 0600", oct(os.stat(path).st_mode))
    key = daemon.key
    for folder, _, files in os.walk(daemon.data):
        for file in files:
            mode = stat.S_IMODE(os.stat(os.path.join(folder, file)).st_mode)
            check(file == "listen" or mode & 0o077 == 0, "data is for its owner only", file, oct(mode))
    check(key not in daemon.log(), "the key is in no log")
    check(daemon.request("GET", "/v1/models", headers={"Authorization": "Bearer " + key[:-1]}).status == 401,
          "a key that is nearly right is wrong")
    daemon.stop()
    daemon.start()
    check(daemon.key == key, "the key stays")
    daemon.stop()
    daemon.env["MAINSTAY_ADMIN_KEY"] = "another-key-of-the-operator"
    daemon.start()
    check(daemon.request("GET", "/v1/models", headers={"Authorization": "Bearer " + key}).status == 401, "the old key is out")
    check(daemon.request("GET", "/v1/models").status == 200, "the given key is in")


def timers_survive():
    """A turn that sleeps survives kill -9, fires on time or when the daemon is back, and finishes without its client."""
    daemon = start({"MAINSTAY_SESSION__PASSIVATE_AFTER": "100ms"})
    begun = time.time()
    turns = [daemon.turn("napper", "n%d" % i, background=True) for i in range(5)]
    wait_until("the timers to be set", lambda: all(
        daemon.read(turn["id"])["output"] for turn in turns))
    daemon.kill()
    daemon.start()
    for turn in turns:
        done = daemon.settled(turn["id"])
        check(done["status"] == "completed" and text_of(done).startswith("rested n"), "it finishes", done)
        check(done["completed_at"] >= int(begun) + 2, "it does not fire early", done["completed_at"], begun)
    # Overdue while the daemon was down: fires at once.
    late = daemon.turn("napper", "late", background=True)
    wait_until("the timer to be set", lambda: daemon.read(late["id"])["output"])
    daemon.kill()
    time.sleep(2.2)  # what is tested is time that passes while nobody is there
    daemon.start()
    back = time.monotonic()
    check(daemon.settled(late["id"])["status"] == "completed", "an overdue timer fires")
    check(time.monotonic() - back < 5, "soon after the start", time.monotonic() - back)


def sleeping_sessions_wake():
    """A session that left memory wakes with its history, memory and timers intact."""
    daemon = start({"MAINSTAY_SESSION__PASSIVATE_AFTER": "50ms"})
    conversations = [daemon.conversation() for _ in range(5)]
    for i, conversation in enumerate(conversations):
        daemon.turn("plain", "fact %d" % i, conversation)
        daemon.turn("plain", "more", conversation)

    def active():
        line = [l for l in daemon.request("GET", "/metrics").raw.decode().split("\n")
                if l.startswith("mainstay_sessions_active ")]
        check(line, "there is a gauge of active sessions")
        return float(line[0].split()[1])
    wait_until("all sessions to sleep", lambda: active() == 0, 15)
    for i, conversation in enumerate(conversations):
        turn = daemon.turn("recall", "?", conversation)
        check(text_of(turn) == "first you said: fact %d" % i, "the history is intact", turn)
        check(len(daemon.items(conversation)) == 6, "each item once")
    nap = daemon.turn("napper", "asleep", background=True)
    wait_until("the timer's session to sleep", lambda: active() == 0, 15)
    check(daemon.settled(nap["id"])["status"] == "completed", "the timer wakes its session")
    check(daemon.stop() == 0, "the daemon stops clean")


def settings_have_effect():
    """Steps of a turn, time of a tool call, duration of a turn: the operator's word counts where the agent says nothing."""
    daemon = Daemon({}, {
        "loop": scripted("loop", {"call_tool": "builtin/echo", "call_arguments": '{"text":"again"}'}),
        "dawdle": scripted("dawdle", {"call_tool": "ledger/slow", "call_arguments": '{"ms":60000}'}, {"text": "so be it"}),
        "endless": scripted("endless", {"text": "never", "delay_ms": 60000}),
    }, {"MAINSTAY_SESSION__STEPS_PER_TURN": "5", "MAINSTAY_LIMITS__TOOL_CALL_TIMEOUT": "2s",
        "MAINSTAY_SESSION__TURN_DURATION": "8s"})
    folder = daemon.env["MAINSTAY_AGENTS__DIRECTORY"]
    retry = '[retry]\nmax_attempts = 1\n'
    for file, text in {
            "loop": agent("loop", "loop", BUILTIN),
            "longer": agent("longer", "loop", BUILTIN, extra="[budget]\nsteps_per_turn = 9\n"),
            "dawdle": agent("dawdle", "dawdle", ledger_tools(os.path.join(daemon.folder, "ledger")), extra=retry)}.items():
        with open(os.path.join(folder, file + ".toml"), "w") as out:
            out.write(text)
    daemon.start()
    short, longer = daemon.turn("loop", "go"), daemon.turn("longer", "go")
    for turn in (short, longer):
        reason = (turn["incomplete_details"] or {}).get("reason") or turn["error"]["code"]
        check(reason == "step_limit_reached", "a runaway ends with its reason", turn)
    check(len(short["output"]) < len(longer["output"]) < 32, "each at its own bound", len(short["output"]), len(longer["output"]))
    begun = time.monotonic()
    turn = daemon.turn("dawdle", "go")
    check("tool_timeout" in str(turn), "a tool that dawdles is given up on by name", turn)
    check(time.monotonic() - begun < 7, "after its time", time.monotonic() - begun)
    turn = daemon.turn("endless", "go")
    check(turn["status"] == "failed" and turn["error"]["code"] == "turn_deadline_exceeded", "a turn has its time", turn)
    note("%d and %d items; %s" % (len(short["output"]), len(longer["output"]), turn["error"]["message"]))


if __name__ == "__main__":
    run(sigterm_drains, second_daemon_is_refused, metrics_are_clean, configuration_errors, key_file, timers_survive,
        sleeping_sessions_wake, settings_have_effect)
