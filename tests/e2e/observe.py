#!/usr/bin/env python3
"""What an operator watches: each family of /metrics has its line in docs/METRICS.md, the shipped dashboard and alert
rules name what is there, and a real Prometheus with the shipped settings gets an answer to every panel."""
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

from harness import PATIENCE, ROOT, Daemon, agent, check, note, run, text_of, wait_until

DASHBOARD = os.path.join(ROOT, "config", "grafana", "inference.json")
PROMETHEUS = os.path.join(ROOT, "config", "prometheus")
RULES = os.path.join(PROMETHEUS, "mainstay_rules.yml")
TOOLS = 'type = "builtin"\nnames = ["memory", "clock", "calc", "price"]\nprices = { tozek = "2.50" }'
# The shipped small model: two workers, so that one may fail; small tiers, so that all of them are used.
TINY = """
name = "mainstay_tiny"
device = "neuron_core_sim"
path = "%s"
context_window = 768
hardware = "trn2"
devices = 2
threads = 1
[kv]
device = "2MB"
host = "4MB"
disk = "16MB"
""" % os.path.join(ROOT, "config", "models", "mainstay_tiny")


def start():
    daemon = Daemon({"small": agent("small", "mainstay_tiny", TOOLS, extra="temperature = 0")}, {"tiny": TINY},
                    {"MAINSTAY_SESSION__PASSIVATE_AFTER": "100ms"})
    daemon.start()
    return daemon


def turn(daemon):
    done = daemon.turn("small", "what is 17 + 25?")
    check(text_of(done) == "17 + 25 = 42.", "the small model answers", done)


def scrape(daemon):
    return daemon.request("GET", "/metrics", auth=False).raw.decode()


def families(text):
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))


def series(text, name):
    """The values of a family, by their labels as text."""
    return {labels or "": float(value) for labels, value in re.findall(r"^%s(?:\{(.*)\})? (\S+)$" % name, text, re.M)}


def counted(daemon):
    """A scrape that knows of the turn: totals are at most a second old."""
    return wait_until("the metrics to tell of the turn", lambda: (
        lambda text: text if sum(series(text, "mainstay_model_generated_tokens_total").values()) > 0 else None)(scrape(daemon)), 10)


def names_in(text):
    """The families that queries name."""
    out = set()
    for name in re.findall(r"\bmainstay_\w+", text):
        out.add(re.sub(r"_(bucket|sum|count)$", "", name) if re.search(r"_seconds_(bucket|sum|count)$", name) else name)
    return out


def documented_families():
    """name -> type; and those of them that only a node in a cluster has."""
    with open(os.path.join(ROOT, "docs", "METRICS.md")) as file:
        lines = re.findall(r"^\| `(mainstay_\w+)` \| (\w+) \|(.*)$", file.read(), re.M)
    clustered = {name for name, _, what in lines if name.startswith(("mainstay_cluster_", "mainstay_link_")) or "(cluster)" in what}
    return {name: kind for name, kind, _ in lines}, clustered


def panels(dashboard=DASHBOARD):
    with open(dashboard) as file:
        board = json.load(file)
    return [panel for panel in board["panels"] if panel["type"] != "row"], board


def every_family_is_documented():
    """promtool is content after a turn on the small model; docs/METRICS.md has every family, of its type, and no other."""
    daemon = start()
    turn(daemon)
    text = counted(daemon)
    promtool = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    check(promtool.returncode == 0 and not promtool.stdout.strip(), "promtool is content", promtool.stdout, promtool.stderr)
    documented, clustered = documented_families()
    exposed = families(text)
    check(len(clustered) > 20 and not clustered & set(exposed), "a node alone has no family of a cluster", sorted(clustered & set(exposed)))
    documented = {name: kind for name, kind in documented.items() if name not in clustered}
    check(set(exposed) <= set(documented), "every family has its line", sorted(set(exposed) - set(documented)))
    check(set(documented) <= set(exposed), "every line has its family", sorted(set(documented) - set(exposed)))
    check(exposed == documented, "of the type that it is", {n: (exposed[n], documented[n]) for n in exposed if exposed[n] != documented[n]})
    for name in ("mainstay_worker_device_seconds_total", "mainstay_worker_device_joules_total"):
        found = series(text, name)
        check(found and all('simulated="true"' in labels for labels in found), name + " says that it is simulated", found)
    for family in exposed:
        for labels in series(text, family):
            check(set(re.findall(r'(\w+)="', labels)) <=
                  {"model", "worker", "tier", "state", "end", "simulated", "le", "status", "kind", "class", "outcome", "code",
                   "route", "version", "direction"}, "labels are of the closed list", family, labels)
    note("%d families, %d series" % (len(exposed), len([l for l in text.split("\n") if l and l[0] != "#"])))


def dashboard_and_rules_name_what_is_there():
    """Each metric in the dashboard and in the alert rules is in /metrics; the rules do what their tests say."""
    for words in (["check", "rules", RULES], ["check", "config", os.path.join(PROMETHEUS, "prometheus.yml")],
                  ["test", "rules", os.path.join(PROMETHEUS, "mainstay_rules_test.yml")]):
        done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60)
        check(done.returncode == 0, "promtool " + " ".join(words[:2]), done.stdout, done.stderr)
    daemon = start()
    turn(daemon)
    exposed = set(families(counted(daemon)))
    drawn, board = panels()
    with open(RULES) as file:
        alarmed = names_in("\n".join(line for line in file.read().split("\n") if not line.lstrip().startswith("#")))
    shown = names_in(json.dumps(board))
    check(len(shown) > 20 and len(alarmed) > 6, "names were found at all", shown, alarmed)
    check(shown <= exposed, "the dashboard names what is there", sorted(shown - exposed))
    _, clustered = documented_families()  # those are in cluster_observe.py
    check(alarmed - clustered <= exposed, "the rules name what is there", sorted(alarmed - clustered - exposed))
    of_models = {name for name in exposed if name.startswith(("mainstay_model_", "mainstay_worker_"))}
    elsewhere = {"mainstay_model_tokens_total", "mainstay_model_requests_in_flight"}  # of all models, upstream ones too
    check(of_models - elsewhere <= shown, "each family of the inference plane has a panel", sorted(of_models - elsewhere - shown))
    check(len({panel["id"] for panel in board["panels"]}) == len(board["panels"]), "panels have ids of their own")
    for panel in drawn:
        text = json.dumps(panel)
        if re.search(r"device_(seconds|joules)", text):
            check("simulated={{simulated}}" in text, "a panel of modelled figures says so", panel["title"])
            check("joules" not in text or "assumed" in panel["title"].lower(), "power is named as assumed", panel["title"])


class Prometheus:
    """A real one with the shipped settings, on a port that the system chose; ends with the test. `hasty`: alerts fire
    after seconds where they would wait for minutes."""

    def __init__(self, *targets, hasty=False):
        self.folder = tempfile.mkdtemp(prefix="mainstay-prometheus-")
        with open(RULES) as file:
            rules = file.read()
        with open(os.path.join(self.folder, os.path.basename(RULES)), "w") as file:
            file.write(re.sub(r"for: \d+[sm]", "for: 1s", rules) if hasty else rules)
        with open(os.path.join(PROMETHEUS, "prometheus.yml")) as file:
            text = file.read()
        for given, wanted in (("127.0.0.1:8080", '", "'.join(targets)), ("scrape_interval: 5s", "scrape_interval: 200ms"),
                              ("evaluation_interval: 15s", "evaluation_interval: 200ms")):
            check(given in text, "the shipped settings have %s" % given)
            text = text.replace(given, wanted)
        config = os.path.join(self.folder, "prometheus.yml")
        with open(config, "w") as file:
            file.write(text)
        self.log = os.path.join(self.folder, "log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["prometheus", "--config.file=" + config, "--storage.tsdb.path=" + os.path.join(self.folder, "data"),
                 "--web.listen-address=127.0.0.1:0"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def address(self):
        def listening():
            check(self.process.poll() is None, "Prometheus runs", self.text())
            return re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', self.text())
        return wait_until("Prometheus to listen", listening)[1]

    def text(self):
        with open(self.log) as file:
            return file.read()

    def get(self, path, **query):
        url = "http://%s/api/v1/%s?%s" % (self.address(), path, urllib.parse.urlencode(query))
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it is reading its own disk
                return None
            check(False, "Prometheus answers", url, error.read())

    def end(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, True)


def prometheus_answers_every_panel():
    """A real Prometheus scrapes the daemon: every query of the dashboard has an answer, no rule is broken, a drain is seen."""
    daemon = start()
    turn(daemon)
    server = Prometheus(daemon.address)
    try:
        wait_until("the daemon to be up", lambda: [r for r in (server.get("query", query='up{job="mainstay"}') or {}).get("result", [])
                                                   if r["value"][1] == "1"])

        def value(query):
            found = (server.get("query", query=query) or {}).get("result", [])
            return float(found[0]["value"][1]) if found else None

        def tokens():
            return value("sum(increase(mainstay_model_generated_tokens_total[1m]))") or 0

        until = time.monotonic() + PATIENCE
        while tokens() == 0:  # a rate needs two scrapes that differ
            check(time.monotonic() < until, "a rate of tokens is seen")
            turn(daemon)
        unanswered = []

        def all_answered():
            unanswered.clear()
            for panel in panels()[0]:
                for target in panel["targets"]:
                    query = target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*").replace("$instance", ".*")
                    if not server.get("query", query=query)["result"]:
                        unanswered.append((panel["title"], query))
            return not unanswered
        try:
            wait_until("every panel to have an answer", all_answered, 15, 0.2)
        finally:
            check(not unanswered, "every panel has an answer", *unanswered)
        occupied = value('sum(mainstay_model_kv_blocks{tier="device"}) / sum(mainstay_model_kv_blocks_max{tier="device"})')
        check(0 < occupied <= 1, "KV blocks are occupied", occupied)
        daemon.call("POST", "/v1/workers/mainstay_tiny/1/drain", {})
        wait_until("the drain to be seen", lambda: value('mainstay_model_workers{state="drained"}') == 1, 15, 0.1)
        rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
        check(len(rules) >= 10 and all(rule["health"] == "ok" for rule in rules), "every rule is evaluated", rules)
        firing = [rule["name"] for rule in rules if rule["state"] == "firing"]
        check(not firing, "and none fires on a node that is well", firing)
    finally:
        server.end()


if __name__ == "__main__":
    run(every_family_is_documented, dashboard_and_rules_name_what_is_there, prometheus_answers_every_panel)
