#!/usr/bin/env python3
"""Measures a cluster of three nodes and one etcd on this machine, in ratios to one node of the same run, and holds the
figures against the project's targets.

  bench/cluster.py [--bin build/release/bin] [--only turns,reads,...] [--out FILE] [--page FILE] [--check]

  turns     replicated turns/s at 64 connections beside one node's, alternating; CPU, syncs and bytes a turn
  reads     a GET at one node, at the owner in a cluster (one round of confirmation), through another node (one hop)
  idle      CPU of nodes that have nothing to do, with 24 and with 1024 shards
  move      moves of a shard whose session has 1 MB of history, under a client that asks without pause
  sessions  10,000 sessions in one shard: moves of it, and a copy that comes back with an empty disk
  failover  kill -9 of a node, again and again: until every shard that it led takes writes

Everything: about 20 minutes, most of it waiting for copies to come back. Each section is written to --out when it ends
and kept there, so that sections may be measured one at a time. The model is scripted: what is measured is Mainstay.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "e2e")]
sys.dont_write_bytecode = True

NODES = 3
LEASE_S = 5
CONNECTIONS = 64
QUIET_LOAD = 1.0
SECTIONS = ("turns", "reads", "idle", "move", "sessions", "failover")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "build/release/bin", help="where the binaries are")
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma-separated sections")
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench_cluster.json")
    parser.add_argument("--page", type=Path, help="write the report as Markdown too")
    parser.add_argument("--seconds", type=float, default=6, help="window of each run of turns")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind of turns")
    parser.add_argument("--moves", type=int, default=60)
    parser.add_argument("--shard-moves", type=int, default=8, help="of the shard with many sessions")
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target does not hold")
    options = parser.parse_args()
    options.only = options.only.split(",")
    unknown = set(options.only) - set(SECTIONS)
    if unknown:
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    return options


OPTIONS = arguments()
os.environ["MAINSTAY_BIN"] = str(OPTIONS.bin.resolve())  # read by the harness when it is imported

import cluster_harness  # noqa: E402
from cluster_harness import ADMIN_KEY, Cluster, free_port, shard_of  # noqa: E402
from harness import Daemon, Lost, scripted, wait_until  # noqa: E402
from page import table  # noqa: E402
from servers import METRIC  # noqa: E402
from targets import Targets, figure  # noqa: E402

AGENT = (HERE / "config/agents/bench.toml").read_text()
MODEL = (HERE / "config/models/scripted.toml").read_text()
# No tools, and room for any history: what is asked of it is one step.
PLAIN = scripted("plain", {"text_bytes": 400}).replace("1000000", "60000000")
ENVIRONMENT = {"MAINSTAY_LOG__LEVEL": "warn", "MAINSTAY_SESSION__COMMIT": "strict",
               "MAINSTAY_STORE__SEGMENT_BYTES": "64MB"}
TICKS = os.sysconf("SC_CLK_TCK")


class Direct(cluster_harness.Network):
    """Nobody between the nodes: each at a port of its own on loopback."""

    def __init__(self, names, _pid_of):
        super().__init__(names)
        self.ports = {name: free_port() for name in names}
        self.peer_ports = {name: free_port() for name in self.members}

    def host(self, _name):
        return "127.0.0.1"

    def link_listen(self, name):
        return f"127.0.0.1:{self.ports[name]}"

    link_advertise = link_listen

    def etcd_listen(self, member):
        return f"127.0.0.1:{self.ports[member]}"

    def etcd_peer(self, member):
        return f"127.0.0.1:{self.peer_ports[member]}"

    def etcd_for(self, _name):
        return [self.etcd_listen(member) for member in self.members]


cluster_harness.NETWORKS["direct"] = Direct


def started(shards=24):
    agents, models = {"bench": AGENT}, {"scripted": MODEL, "plain": PLAIN}
    cluster = Cluster(agents, models, nodes=NODES, shards=shards, lease=f"{LEASE_S}s", network="direct",
                      env=ENVIRONMENT)
    cluster.start()
    cluster.wait_in_sync()
    return cluster


def alone():
    daemon = Daemon({"bench": AGENT}, {"scripted": MODEL, "plain": PLAIN}, {**ENVIRONMENT, "MAINSTAY_ADMIN_KEY": ADMIN_KEY})
    daemon.start()
    return daemon


def cpu_seconds(pid):
    """Of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def metrics(node):
    """Sums over labels, and single series by their text."""
    text = node.request("GET", "/metrics").raw.decode()
    totals = {}
    for name, value in METRIC.findall(text):
        totals[name] = totals.get(name, 0.0) + float(value)
    for line in text.splitlines():
        if line and line[0] != "#" and "{" in line:
            series, value = line.rsplit(" ", 1)
            totals[series] = float(value)
    return totals


def percentiles(seconds):
    ordered = sorted(seconds)

    def at(share):
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000

    return {"count": len(ordered), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": ordered[-1] * 1000}


def say(text):
    print(time.strftime("%H:%M:%S ") + text, flush=True)


# --- turns ------------------------------------------------------------------------------------------------------------

def switches(pid):
    """How often a thread of the process had nothing to do and gave its core away."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except OSError:
            continue  # it has ended
        count += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return count


def counters(daemons, etcd):
    out = {"syncs": 0, "frames": 0, "switches": 0, "link_bytes": 0, "replicated_bytes": 0, "entries": 0, "cpu": 0, "etcd_cpu": 0}
    for daemon in daemons:
        found = metrics(daemon)
        out["syncs"] += found["mainstay_journal_syncs_total"] + found["mainstay_state_syncs_total"]
        out["frames"] += found.get('mainstay_link_frames_total{direction="sent"}', 0)
        out["switches"] += switches(daemon.process.pid)
        out["link_bytes"] += found.get('mainstay_link_bytes_total{direction="sent"}', 0)
        out["replicated_bytes"] += found.get('mainstay_cluster_replicated_bytes_total{direction="sent"}', 0)
        out["entries"] += found.get('mainstay_cluster_replicated_entries_total{direction="sent"}', 0)
        out["cpu"] += cpu_seconds(daemon.process.pid)
    if etcd:
        out["etcd_cpu"] = cpu_seconds(etcd.process.pid)
    return out


def load(doors, daemons, etcd, connections, seconds, name):
    """bench_load at each of the doors at once; what all daemons spend meanwhile."""
    share = connections // len(doors)
    runs = []
    for i, door in enumerate(doors):
        more = ["--disk", door.data] if i == 0 else []
        count = share + (connections % len(doors) if i == 0 else 0)
        runs.append(subprocess.Popen(
            [str(OPTIONS.bin / "bench_load"), door.address, "--key", ADMIN_KEY, "--connections", str(count),
             "--sessions", str(4 * count), "--warmup", "2", "--seconds", str(seconds), "--session-prefix", f"{name}{i}-",
             *more], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    marks = []

    def follow(run):
        for line in run.stderr:
            if line.startswith("window"):
                marks.append(counters(daemons, etcd))

    # The windows are the same but for milliseconds; the first run's marks are taken for all.
    followers = [threading.Thread(target=follow, args=(run,)) for run in runs[:1]]
    for follower in followers:
        follower.start()
    for run in runs[1:]:
        threading.Thread(target=run.stderr.read, daemon=True).start()
    reports = [json.loads(run.stdout.read()) for run in runs]
    for run in runs:
        run.wait()
    for follower in followers:
        follower.join()
    turns = sum(report["turns"] for report in reports)
    errors = sum(sum(report["errors"].values()) + report["lost"] for report in reports)
    spent = {key: marks[1][key] - marks[0][key] for key in marks[0]}
    return {"turns_per_s": sum(report["turns_per_s"] for report in reports), "turns": turns, "errors": errors,
            "p50_ms": statistics.median(report["p50_ms"] for report in reports),
            "p99_ms": max(report["p99_ms"] for report in reports),
            "cpu_ms_per_turn": 1000 * (spent["cpu"] + spent["etcd_cpu"]) / turns,
            "load_cpu_ms_per_turn": sum(report["own_cpu_ms"] for report in reports) / turns,
            "syncs_per_turn": spent["syncs"] / turns,
            "disk_bytes_per_turn": (reports[0].get("device_bytes") or 0) / turns,
            "frames_per_turn": spent["frames"] / turns,
            "switches_per_turn": spent["switches"] / turns,
            "link_bytes_per_turn": spent["link_bytes"] / turns,
            "replicated_bytes_per_turn": spent["replicated_bytes"] / turns,
            "entries_per_turn": spent["entries"] / turns}


def measure_turns():
    cluster = started()
    single = alone()
    kinds = {"one node": ([single], [single], None), "cluster, one door": (cluster.nodes[:1], cluster.nodes, cluster.etcd),
             "cluster, three doors": (cluster.nodes, cluster.nodes, cluster.etcd)}
    runs = {kind: [] for kind in kinds}
    for round_ in range(OPTIONS.rounds):
        for kind, (doors, daemons, etcd) in kinds.items():
            runs[kind].append(load(doors, daemons, etcd, CONNECTIONS, OPTIONS.seconds, f"r{round_}"))
            last = runs[kind][-1]
            say(f"turns: {kind}: {last['turns_per_s']:.0f}/s, p50 {last['p50_ms']:.2f} ms, p99 {last['p99_ms']:.1f} ms, "
                f"{last['cpu_ms_per_turn']:.3f} ms CPU, {last['errors']} errors")
            time.sleep(1)
    ones = [load(doors, daemons, etcd, 1, OPTIONS.seconds / 2, "one")
            for doors, daemons, etcd in (kinds["one node"], kinds["cluster, one door"])]
    out = {"runs": runs}
    for kind, found in runs.items():
        out[kind] = {key: statistics.median(run[key] for run in found) for key in found[0]}
        out[kind]["errors"] = sum(run["errors"] for run in found)
    out["one node, one connection"], out["cluster, one door, one connection"] = ones
    commit = {}
    for node in cluster.nodes:
        for series, value in metrics(node).items():
            if series.startswith("mainstay_cluster_commit_duration_seconds_"):
                commit[series] = commit.get(series, 0) + value
    out["commit_mean_ms"] = 1000 * commit["mainstay_cluster_commit_duration_seconds_sum"] / max(
        1, commit["mainstay_cluster_commit_duration_seconds_count"])
    cluster.close()
    single.discard()
    return out


# --- reads ------------------------------------------------------------------------------------------------------------

def measure_reads():
    cluster = started()
    single = alone()
    doors = {}
    here = cluster.nodes[0].conversation()
    owner = cluster.leader(here)
    other = next(node for node in cluster.nodes if node is not owner)
    owner.turn("plain", "hello", here)
    there = single.conversation()
    single.turn("plain", "hello", there)
    for kind, door, conversation in (("one node", single, there), ("at the owner", owner, here),
                                     ("through another node", other, here)):
        doors[kind] = (door, f"/v1/conversations/{conversation}/items")
    took = {kind: [] for kind in doors}
    for _ in range(20):  # alternating, a hundred each
        for kind, (door, path) in doors.items():
            for _ in range(100):
                begun = time.monotonic()
                door.call("GET", path)
                took[kind].append(time.monotonic() - begun)
    out = {kind: percentiles(found) for kind, found in took.items()}
    out["confirmation_ms"] = out["at the owner"]["p50_ms"] - out["one node"]["p50_ms"]
    out["hop_ms"] = out["through another node"]["p50_ms"] - out["at the owner"]["p50_ms"]
    say("reads: " + ", ".join(f"{kind} {found['p50_ms']:.3f} ms" for kind, found in out.items() if isinstance(found, dict)))
    cluster.close()
    single.discard()
    return out


# --- idle -------------------------------------------------------------------------------------------------------------

def measure_idle():
    out = {}
    for shards in (24, 1024):
        begun = time.monotonic()
        cluster = started(shards)
        formed = time.monotonic() - begun
        time.sleep(15)  # placement is at rest, segments are made
        pids = [node.process.pid for node in cluster.nodes]
        before, etcd, at = [cpu_seconds(pid) for pid in pids], cpu_seconds(cluster.etcd.process.pid), time.monotonic()
        time.sleep(20)
        wall = time.monotonic() - at
        spent = [cpu_seconds(pid) - was for pid, was in zip(pids, before)]
        out[str(shards)] = {"formed_s": formed, "nodes_percent": 100 * sum(spent) / wall,
                            "each_percent": [100 * one / wall for one in spent],
                            "etcd_percent": 100 * (cpu_seconds(cluster.etcd.process.pid) - etcd) / wall,
                            "rss_mb": [node.rss_kb() / 1024 for node in cluster.nodes]}
        say(f"idle: {shards} shards: {out[str(shards)]}")
        cluster.close()
    return out


# --- moves ------------------------------------------------------------------------------------------------------------

class Asking:
    """A client that asks one thing without pause, and remembers when each answer came."""

    def __init__(self, door, ask):
        self.door, self.ask, self.stopping, self.failures, self.answers = door, ask, False, [], []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopping:
            begun = time.monotonic()
            try:
                answer = self.ask(self.door)
                if answer.status != 200:
                    self.failures.append(repr(answer))
            except Lost as lost:
                self.failures.append(repr(lost))
            self.answers.append((begun, time.monotonic()))

    def stop(self):
        self.stopping = True
        self.thread.join()

    def longest(self, since, until):
        """The longest time without an answer that overlaps the window: the pause that the client sees."""
        return max((end - begun for begun, end in self.answers if end >= since and begun <= until), default=0.0)


def leader_of(cluster, shard):
    return wait_until(f"a leader of shard {shard}", lambda: cluster.leaders().get(shard), 30, 0.01)


def move_of(cluster, shard, door, asking, settle):
    """Moves the shard to the other of the two nodes that are not the door; how long that took, and each client's pause."""
    leader = leader_of(cluster, shard)
    to = next(node for node in cluster.nodes if node is not door and node is not leader)
    begun = time.monotonic()
    leader.call("POST", f"/v1/cluster/shards/{shard}/move", {"to": to.uuid})
    deadline = begun + 60
    while time.monotonic() < deadline:
        known = to.asked(f"/v1/cluster/shards/{shard}")
        if known and known["led_here"] and known["serving"]:
            break
        time.sleep(0.005)
    else:
        raise AssertionError("a move did not end")
    ended = time.monotonic()
    time.sleep(settle)
    return {"move_s": ended - begun, **{name: one.longest(begun, ended + settle) for name, one in asking.items()}}


def moved(cluster, conversation, door, count, settle):
    shard = shard_of(conversation, cluster.shards)
    turns = iter(range(1_000_000_000))
    asking = {"turns": Asking(door, lambda node: node.request("POST", "/v1/responses", {
                  "model": "plain", "conversation": conversation, "input": "again"},
                  headers={"Idempotency-Key": f"move-{next(turns)}"})),
              "reads": Asking(door, lambda node: node.request(
                  "GET", f"/v1/conversations/{conversation}/items?limit=1&order=desc"))}
    time.sleep(1)
    found = []
    if leader_of(cluster, shard) is door:  # it is to be the third
        move_of(cluster, shard, door, asking, settle)
    quiet = time.monotonic()
    time.sleep(2)
    usual = {name: percentiles([end - begun for begun, end in one.answers if begun > quiet]) for name, one in asking.items()}
    for number in range(count):
        found.append(move_of(cluster, shard, door, asking, settle))
        if leader_of(cluster, shard) is door:  # placement had another wish
            move_of(cluster, shard, door, asking, settle)
        if number % 10 == 9:
            say(f"move {number + 1}: pauses so far up to {1000 * max(one['turns'] for one in found):.0f} ms")
    for one in asking.values():
        one.stop()
    out = {"moves": len(found), "move": percentiles([one["move_s"] for one in found]),
           "without": usual, "failures": sum(len(one.failures) for one in asking.values()),
           "first_failure": next((failure for one in asking.values() for failure in one.failures), None)}
    for name, one in asking.items():
        out[f"pause_{name}"] = percentiles([each[name] for each in found])
        out[f"answers_{name}"] = len(one.answers)
    return out


def measure_move():
    cluster = started()
    door = cluster.nodes[2]
    conversation = cluster.nodes[0].conversation()
    for part in range(20):
        door.turn("plain", f"{part} " + "history " * 6550, conversation)
    out = moved(cluster, conversation, door, OPTIONS.moves, 0.3)
    out["history_bytes"] = sum(len(json.dumps(item)) for item in door.items(conversation)[:40])
    say(f"move: turns pause {out['pause_turns']}, reads {out['pause_reads']}, {out['failures']} failures")
    cluster.close()
    return out


# --- many sessions ----------------------------------------------------------------------------------------------------

def measure_sessions():
    cluster = started(1)
    door = cluster.nodes[2]
    subprocess.run([str(OPTIONS.bin / "bench_load"), door.address, "--key", ADMIN_KEY, "--workload", "w4", "--sessions",
                    str(OPTIONS.sessions), "--connections", "64"], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    conversation = door.conversation()
    out = {"sessions": OPTIONS.sessions}
    out["hand_over"] = moved(cluster, conversation, door, OPTIONS.shard_moves, 1)
    say(f"sessions: hand-over, turns pause {out['hand_over']['pause_turns']}, {out['hand_over']['failures']} failures")

    leader = leader_of(cluster, 0)
    victim = next(node for node in cluster.nodes if node is not leader)
    cluster.wait_in_sync()
    victim.kill()
    victim.forget()
    while len(leader.asked("/v1/cluster/shards/0")["in_sync"]) == NODES:
        time.sleep(0.02)
    installed = 'mainstay_cluster_snapshots_total{outcome="installed"}'
    sent = metrics(leader)["mainstay_cluster_snapshot_sent_bytes_total"]
    wanted = leader.asked("/v1/cluster/shards/0")["commit_index"]
    begun = time.monotonic()
    victim.launch()
    times = {}
    while "in_sync_s" not in times:
        time.sleep(0.02)
        now = time.monotonic() - begun
        assert now < 180, f"the copy does not come back: {times}"
        if "door_s" not in times:
            if victim.find_door():
                times["door_s"] = now
            continue
        if "installed_s" not in times and metrics(victim)[installed] > 0:
            times["installed_s"] = now
        known, own = leader.asked("/v1/cluster/shards/0"), victim.asked("/v1/cluster/shards/0")
        if "caught_up_s" not in times and own and own["commit_index"] >= wanted:
            times["caught_up_s"] = now
        if known and len(known["in_sync"]) == NODES:
            times["in_sync_s"] = now
    out["empty_disk"] = {**times, "entries": wanted, "snapshot_bytes": metrics(leader)["mainstay_cluster_snapshot_sent_bytes_total"] - sent}
    say(f"sessions: empty disk: {out['empty_disk']}")
    cluster.close()
    return out


# --- failover ---------------------------------------------------------------------------------------------------------

def measure_failover():
    cluster = started()
    conversations, made = {}, []
    while len(conversations) < cluster.shards:
        conversation = cluster.nodes[len(made) % NODES].conversation()  # of a shard that the asked node leads
        made.append(conversation)
        assert len(made) < 5000, "every shard has a conversation"
        conversations.setdefault(shard_of(conversation, cluster.shards), conversation)
    took, kills, in_sync = [], [], []
    for number in range(OPTIONS.kills):
        led = cluster.leaders()
        victim = max(cluster.nodes, key=lambda node: sum(leader is node for leader in led.values()))
        lost = [shard for shard, leader in led.items() if leader is victim]
        others = [node for node in cluster.nodes if node is not victim]
        time.sleep(number * 0.37 % 1.7)  # at any moment of the lease
        found = {}
        killed = time.monotonic()
        victim.kill()

        def write(shard, door, attempt=0):
            while True:
                try:
                    answer = door.request("POST", "/v1/responses", {
                        "model": "plain", "conversation": conversations[shard], "input": "again"},
                        headers={"Idempotency-Key": f"kill-{number}-{shard}"}, timeout=60)
                    if answer.status == 200:
                        found[shard] = time.monotonic() - killed
                        return
                except Lost:
                    pass
                attempt += 1
                assert attempt < 600, f"shard {shard} does not take writes again"
                time.sleep(0.05)

        writers = [threading.Thread(target=write, args=(shard, others[shard % 2])) for shard in lost]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert len(found) == len(lost), f"written {sorted(found)} of {sorted(lost)}"
        took += found.values()
        kills.append({"shards": len(lost), "first_s": min(found.values()), "last_s": max(found.values())})
        begun = time.monotonic()
        victim.launch()
        cluster.wait_served()
        cluster.wait_in_sync(150)
        in_sync.append(time.monotonic() - begun)
        say(f"failover {number + 1}: {len(lost)} shards, {min(found.values()):.2f} to {max(found.values()):.2f} s, "
            f"in sync again after {in_sync[-1]:.1f} s")
        time.sleep(3)  # primaries are evened out
    out = {"kills": kills, "writable": percentiles(took), "in_sync_again_s": statistics.median(in_sync)}
    cluster.close()
    return out


# --- report -----------------------------------------------------------------------------------------------------------

def machine():
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    return {"cpus": os.cpu_count(), "cpu": model, "kernel": platform.release()}


def targets(report):
    out = Targets()

    def get(*path):
        value = report
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    one, three = get("turns", "one node", "turns_per_s"), get("turns", "cluster, three doors", "turns_per_s")
    # Beside others the single node loses most, and the ratio says nothing: then it counts as not measured.
    quiet = report.get("load", {}).get("turns", 99) < QUIET_LOAD
    out.at_least("replicated turns/s, share of one node's (quiet machine)", three / one if one and three and quiet else None,
                 0.25, "x")
    one, three = get("turns", "one node", "cpu_ms_per_turn"), get("turns", "cluster, three doors", "cpu_ms_per_turn")
    out.at_most("CPU of all per turn, times one node's", three / one if one and three else None, 4, "x")
    out.at_most("turns refused or lost under load", get("turns", "cluster, three doors", "errors"), 0, "")
    writable = get("failover", "writable", "p99_ms")
    out.at_most("kill -9: writable again, p99 over all shards", writable and writable / 1000, LEASE_S + 2, "s")
    out.at_least("kills", len(get("failover", "kills") or []) or None, 10, "")
    out.at_most("move of a session of 1 MB: pause of turns, p99", get("move", "pause_turns", "p99_ms"), 250, "ms")
    out.at_most("the same, of reads", get("move", "pause_reads", "p99_ms"), 250, "ms")
    out.at_most("failed requests over these moves", get("move", "failures"), 0, "")
    out.at_least("these moves", get("move", "moves"), 50, "")
    out.at_most("hand-over of a shard of 10,000 sessions: longest pause", get("sessions", "hand_over", "pause_turns", "max_ms"),
                1000, "ms")
    out.at_most("failed requests over these", get("sessions", "hand_over", "failures"), 0, "")
    out.at_least("these hand-overs", get("sessions", "hand_over", "moves"), 5, "")
    return out


def page(report, rows):
    made = report["machine"]
    lines = ["# Benchmarks of a cluster", "",
             f"Made by `bench/cluster.py`: {NODES} nodes, one etcd and the clients on one machine, {made['cpus']} cores "
             f"({made['cpu']}), kernel {made['kernel']}, one disk; strict commits, 3 copies, lease {LEASE_S} s, 24 shards where "
             "nothing else is said. Three nodes on two cores are no cluster anybody would run: what holds here are the "
             "ratios, the pauses, and what a turn costs in all. Network is loopback.", "",
             table_of_sections(report), ""]
    if "turns" in report:
        turns = report["turns"]
        kinds = ["one node", "cluster, one door", "cluster, three doors", "one node, one connection",
                 "cluster, one door, one connection"]
        lines += ["## Turns", "", f"{CONNECTIONS} connections; medians of {OPTIONS.rounds} alternating runs (one connection: "
                  "one run). A turn is three steps and four durable records. CPU is of all nodes and etcd together. A new "
                  "conversation belongs to the node that was asked, so that no request is sent on: at one door that node leads "
                  "all that is used and the others keep copies, at three doors the work is even.", ""]
        lines += table(["what", "turns/s", "p50 ms", "p99 ms", "CPU ms/turn", "load CPU ms/turn", "syncs/turn", "switches/turn",
                        "frames/turn", "KB to disk/turn", "KB on links/turn", "of it entries", "errors"],
                       [[kind, turns[kind]["turns_per_s"], turns[kind]["p50_ms"], turns[kind]["p99_ms"],
                         turns[kind]["cpu_ms_per_turn"], turns[kind]["load_cpu_ms_per_turn"], turns[kind]["syncs_per_turn"],
                         turns[kind]["switches_per_turn"], turns[kind]["frames_per_turn"],
                         turns[kind]["disk_bytes_per_turn"] / 1024, turns[kind]["link_bytes_per_turn"] / 1024,
                         turns[kind]["replicated_bytes_per_turn"] / 1024, turns[kind]["errors"]] for kind in kinds]) + [""]
        lines += ["Where others use the machine too (the load above), one node loses more to them than three do and the ratio of "
                  "rates flatters the cluster. CPU per turn does not depend on that: on cores that have nothing else to do, the "
                  "quarter that is wanted is four times the CPU.", ""]
        lines += [f"A record's commit takes {turns['commit_mean_ms']:.2f} ms on average over all of these runs.", ""]
    if "reads" in report:
        reads = report["reads"]
        kinds = ["one node", "at the owner", "through another node"]
        lines += ["## Reads", "", f"A list of a conversation's items, one after the other, {reads['one node']['count']} each, alternating. "
                  f"The round that confirms a read adds {reads['confirmation_ms']:.3f} ms, a hop {reads['hop_ms']:.3f} ms (differences "
                  "of medians).", ""]
        lines += table(["where", "p50 ms", "p99 ms"], [[kind, reads[kind]["p50_ms"], reads[kind]["p99_ms"]] for kind in kinds]) + [""]
    if "idle" in report:
        lines += ["## Nothing to do", "", "Over 20 s; percent of one core.", ""]
        lines += table(["shards", "all three nodes", "etcd", "memory of a node MB", "from the start until all is in sync s"],
                       [[shards, found["nodes_percent"], found["etcd_percent"], max(found["rss_mb"]), found["formed_s"]]
                        for shards, found in report["idle"].items()]) + [""]

    def moves_table(found):
        return table(["client", "answers", "p50 without moves ms", "pause p50 ms", "pause p99 ms", "longest ms"],
                     [[name, found[f"answers_{name}"], found["without"][name]["p50_ms"], found[f"pause_{name}"]["p50_ms"],
                       found[f"pause_{name}"]["p99_ms"], found[f"pause_{name}"]["max_ms"]] for name in ("turns", "reads")])
    if "move" in report:
        found = report["move"]
        lines += ["## Moves under a client", "", f"{found['moves']} moves of the shard of a session with "
                  f"{found['history_bytes'] / 1e6:.1f} MB of history; one client makes turns and one reads without pause, through "
                  "the node that neither gives nor takes. The pause of a move is the longest time that a request took "
                  f"during it. Failed requests: {found['failures']}. From the wish to the new leader: p50 {found['move']['p50_ms']:.0f} ms, "
                  f"p99 {found['move']['p99_ms']:.0f} ms.", ""]
        lines += moves_table(found) + [""]
    if "sessions" in report:
        found, empty = report["sessions"]["hand_over"], report["sessions"]["empty_disk"]
        lines += [f"## {report['sessions']['sessions']} sessions in one shard", "", f"{found['moves']} moves of it, measured as above; failed "
                  f"requests: {found['failures']}. From the wish to the new leader: p50 {found['move']['p50_ms']:.0f} ms, longest "
                  f"{found['move']['max_ms']:.0f} ms.", ""]
        lines += moves_table(found) + [""]
        lines += ["A node that comes back with an empty disk, from its start (it comes in after 30 s of good behaviour):", ""]
        lines += table(["event", "after s"], [["door open", empty["door_s"]], ["snapshot installed (-: the log sufficed)", empty.get("installed_s")],
                                             ["holds all that was committed before", empty.get("caught_up_s")],
                                             ["in sync on record", empty["in_sync_s"]]])
        lines += ["", f"{empty['entries']} entries; snapshot: {empty['snapshot_bytes'] / 1e6:.1f} MB sent.", ""]
    if "failover" in report:
        found = report["failover"]
        lines += ["## Failover", "", f"{len(found['kills'])} times kill -9 of the node that leads most; a client asks each shard that it "
                  f"led, through the others, until it takes a write. All shards: p50 {found['writable']['p50_ms'] / 1000:.2f} s, p99 "
                  f"{found['writable']['p99_ms'] / 1000:.2f} s, longest {found['writable']['max_ms'] / 1000:.2f} s "
                  f"({found['writable']['count']} of them). The killed node is in sync again {found['in_sync_again_s']:.0f} s after its "
                  "start (median).", ""]
        lines += table(["kill", "shards", "first writable s", "last writable s"],
                       [[number + 1, kill["shards"], kill["first_s"], kill["last_s"]] for number, kill in enumerate(found["kills"])])
        lines += [""]
    words = {True: "yes", False: "**no**", None: "not measured"}
    lines += ["## Targets", ""]
    lines += table(["target", "measured", "wanted", "holds"],
                   [[row["target"], row["measured"], f"{row['relation']} {figure(row['limit'])} {row['unit']}".strip(),
                     words[row["holds"]]] for row in rows])
    return "\n".join(lines) + "\n"


def table_of_sections(report):
    return "Measured: " + ", ".join(f"{name} {report['when'][name]} (load {report['load'][name]:.1f} before)"
                                    for name in SECTIONS if name in report.get("when", {})) + "."


def main():
    missing = [name for name in ("mainstayd", "mainstay", "bench_load") if not (OPTIONS.bin / name).exists()]
    if missing:
        sys.exit(f"bench/cluster.py: {', '.join(missing)} not in {OPTIONS.bin}")
    report = json.loads(OPTIONS.out.read_text()) if OPTIONS.out.exists() else {}
    report["machine"] = machine()
    for name in SECTIONS:
        if name not in OPTIONS.only:
            continue
        load_before = os.getloadavg()[0]
        found = globals()[f"measure_{name}"]()
        report[name] = found
        report.setdefault("when", {})[name] = time.strftime("%Y-%m-%d %H:%M")
        report.setdefault("load", {})[name] = load_before
        OPTIONS.out.parent.mkdir(parents=True, exist_ok=True)
        OPTIONS.out.write_text(json.dumps(report, indent=1) + "\n")
    held = targets(report)
    report["targets"] = held.rows
    OPTIONS.out.write_text(json.dumps(report, indent=1) + "\n")
    if OPTIONS.page:
        OPTIONS.page.write_text(page(report, held.rows))
    held.print()
    return 1 if OPTIONS.check and any(row["holds"] is not True for row in held.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
