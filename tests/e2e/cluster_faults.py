#!/usr/bin/env python3
"""A cluster of three nodes under load and targeted faults, and a checker of what its clients were told.

  cluster_faults.py                loopback, every fault once (about 90 s; also --quick)
  cluster_faults.py --netns        in network namespaces, every fault twice, with lost packets besides (about 3 minutes)
  cluster_faults.py --quick --netns   ... every fault once
  cluster_faults.py --etcd 3       with so many members of etcd, and faults of single ones besides
  cluster_faults.py --minutes N    faults in random order for so long, in namespaces with --netns
  cluster_faults.py --mutants      only: builds that break a guarantee on purpose must be caught (needs mainstayd_mutant)
  cluster_faults.py --failover     only: how long writes stand still when a leader is killed (lease 5 s; --json FILE)
  cluster_faults.py --only NAME    one fault
  cluster_faults.py --seed N       of the order and of the clients; printed

After each fault all shards are served and all nodes ready within a bound; at the end every copy is in sync again and the
checker (cluster_checker.py) finds nothing."""
import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import observe
from cluster_checker import AGENTS_OF, Load, wanted_text
from cluster_harness import Cluster, netns_wanted, shard_of
from disk import SHIM, Mount
from harness import BIN, CREATED, Failed, Lost, agent, check, ledger_tools, note, run, scripted, text_of, wait_until

options = None
LEASE = 2.0
HEALTHY_WITHIN = 60  # seconds, for what hangs: a take-over is 2 to 3 of them, links that come back up to 2


def agents_and_models(ledger):
    models = {name: scripted(name, *steps) for name, steps in AGENTS_OF.items()}
    tools = {name: [ledger_tools(ledger)] if name != "talk" else [] for name in AGENTS_OF}
    return {name: agent(name, name, *sets) for name, sets in tools.items()}, models


class Field:
    """A cluster with load on, and what faults need."""

    def __init__(self, seed, network="loopback", program="mainstayd", lease="2s", env=None, disks=True, etcd=1,
                 **load):
        self.dice = random.Random(seed)
        self.folder = tempfile.mkdtemp(prefix="mainstay-faults-")
        self.ledger = os.path.join(self.folder, "ledger")
        self.mount, self.cluster, self.load = None, None, None
        data = {}
        if disks:
            self.mount = Mount("tmpfs", 320)
            if self.mount.mounted:
                data["n2"] = os.path.join(self.mount.folder, "data")
            elif os.environ.get("MAINSTAY_TEST_MOUNT") == "require":
                raise Failed("cannot mount a tmpfs: %s" % self.mount.why)
        agents, models = agents_and_models(self.ledger)
        env = {"MAINSTAY_STORE__DISK_RESERVE": "16MB", **(env or {})}
        try:
            self.cluster = Cluster(agents, models, network=network, program=program, lease=lease, env=env, data=data,
                                   etcd=etcd)
            for node in self.cluster.nodes:
                node.control = os.path.join(node.folder, "fail")
                node.env.update({"LD_PRELOAD": SHIM, "FAILING_DISK": node.control, "FAILING_DISK_PATH": "/journal/"})
            self.cluster.start()
            self.load = Load(self.cluster, self.ledger, seed, **load)
        except BaseException:
            self.close()
            raise

    def leader(self):
        """The node that leads a conversation picked at random, which leads others as well."""
        return self.cluster.leader(self.dice.choice(self.load.conversations), 15)

    def other(self, *nodes):
        return self.dice.choice([node for node in self.cluster.nodes if node not in nodes])

    def control(self, node, text):
        """What failing_disk.c does to the journal of a node: an errno, `d` and milliseconds, or nothing."""
        if not text:
            if os.path.exists(node.control):
                os.unlink(node.control)
            return
        with open(node.control + ".new", "w") as file:
            file.write(text)
        os.rename(node.control + ".new", node.control)

    def back(self, node):
        node.launch()
        wait_until("%s to open its door" % node.name, lambda: self.cluster.running(node) and node.find_door(), 30, 0.02)

    def close(self):
        if self.load:
            self.load.stopping.set()
        if self.cluster:
            self.cluster.close()
        if self.mount:
            self.mount.close()
        subprocess.run(["rm", "-rf", self.folder], check=False)


# --- the faults -------------------------------------------------------------------------------------------------------
# Each does harm and undoes it; what comes after must be health.


def kill_leader(field):
    """SIGKILL of the leader of a session, turns under way; it comes back after its shards went elsewhere."""
    node = field.leader()
    node.kill()
    time.sleep(field.dice.uniform(0.1, 2 * LEASE))
    field.back(node)


def kill_mid_call(field):
    """SIGKILL of a leader while it pays: the call becomes unknown."""
    node = field.leader()
    field.load.only_through = node
    lines = len(open(field.ledger + ".started").readlines()) if os.path.exists(field.ledger + ".started") else 0
    try:
        wait_until("a call to come in", lambda: os.path.exists(field.ledger + ".started") and
                   len(open(field.ledger + ".started").readlines()) > lines, 10, 0.001)
    finally:
        field.load.only_through = None
    node.kill()
    field.back(node)


def pause_leader(field):
    """SIGSTOP of a leader past its lease with requests in flight, then SIGCONT."""
    node = field.leader()
    field.load.only_through = node
    time.sleep(0.2)
    node.stand_still()
    time.sleep(LEASE + field.dice.uniform(0.8, 2))
    node.go_on()
    field.load.only_through = None


def isolate_leader(field):
    """A leader is cut off from all nodes and from etcd; clients reach it."""
    node = field.leader()
    field.load.only_through = node
    field.cluster.network.isolate(node.name)
    time.sleep(field.dice.uniform(LEASE + 1, LEASE + 3))
    field.cluster.network.heal()
    field.load.only_through = None


def cut_pair(field):
    """Two nodes do not hear each other; both hear all others."""
    node = field.leader()
    field.cluster.network.cut(node.name, field.other(node).name)
    time.sleep(field.dice.uniform(1, 4))
    field.cluster.network.heal()


def one_way_loss(field):
    """What one node sends to another is lost; the other direction works."""
    node = field.leader()
    pair = [node.name, field.other(node).name]
    field.dice.shuffle(pair)
    field.cluster.network.one_way(*pair)
    time.sleep(field.dice.uniform(1, 4))
    field.cluster.network.heal()


def etcd_one_way(field):
    """A leader's requests reach etcd, the answers do not reach the leader: every outcome is unknown."""
    node = field.leader()
    for member in field.cluster.network.members:
        field.cluster.network.one_way(member, node.name)
    time.sleep(field.dice.uniform(1, LEASE + 2))
    field.cluster.network.heal()


def slow_links(field):
    """Everything between nodes takes 40 ms."""
    names = [node.name for node in field.cluster.nodes]
    for i, a in enumerate(names):
        for b in names[i + 1:]:
            field.cluster.network.delay(a, b, 0.04)
    time.sleep(2)
    field.cluster.network.heal()


def lost_packets(field):
    """30 % of all packets between nodes and etcd are lost."""
    field.cluster.network.lose(30)
    time.sleep(field.dice.uniform(4, 8))
    field.cluster.network.heal()


def pause_etcd(field):
    """etcd stands still."""
    field.cluster.etcd.signal(signal.SIGSTOP)
    time.sleep(field.dice.uniform(0.5, 5))
    field.cluster.etcd.signal(signal.SIGCONT)


def kill_etcd(field):
    """etcd is killed and started again."""
    field.cluster.etcd.kill()
    time.sleep(field.dice.uniform(0.2, 1.5))
    field.cluster.etcd.start()


def kill_leader_without_etcd(field):
    """A leader dies while etcd stands still: nobody can take over until it goes on."""
    node = field.leader()
    field.cluster.etcd.signal(signal.SIGSTOP)
    node.kill()
    time.sleep(1)
    field.cluster.etcd.signal(signal.SIGCONT)
    field.back(node)


class LeasesHeld:
    """Around harm to one of etcd's members: no node loses its lease, so no shard has to be taken over."""

    def __init__(self, field):
        self.nodes = field.cluster.nodes

    def lost(self, node):
        text = observe.scrape(node)
        taken = observe.series(text, "mainstay_cluster_record_changes_total")
        return {"leases lost": sum(observe.series(text, "mainstay_cluster_leases_lost_total").values()),
                "shards taken over": sum(value for labels, value in taken.items()
                                         if 'change="take_over"' in labels and 'outcome="ok"' in labels)}

    def count(self):
        time.sleep(1.2)  # nodes count once a second
        return [self.lost(node) for node in self.nodes]

    def __enter__(self):
        self.before = self.count()

    def __exit__(self, failed, *_):
        if failed:
            return
        after = self.count()
        check(after == self.before, "nodes go on within their leases", self.before, after)


def kill_etcd_leader(field):
    """The member that leads etcd is killed; the others elect one of them, and nodes ask those."""
    with LeasesHeld(field):
        member = field.cluster.etcd.leader()
        member.kill()
        time.sleep(2 * LEASE)
        check(field.cluster.etcd.leader() is not member, "another member leads")
    field.cluster.etcd.start()


def pause_etcd_member(field):
    """A member stands still: it accepts connections and answers nothing. Half of the time it is the one that leads."""
    leader = field.cluster.etcd.leader()
    member = leader if field.dice.random() < 0.5 else field.dice.choice(
        [one for one in field.cluster.etcd.members if one is not leader])
    with LeasesHeld(field):
        member.signal(signal.SIGSTOP)
        time.sleep(2 * LEASE)
        member.signal(signal.SIGCONT)


def full_disk(field):
    """The disk of a node that leads some shards and follows in others is full, then has room again."""
    if not field.mount or not field.mount.mounted:
        note("SKIPPED: cannot mount a tmpfs: %s" % (field.mount and field.mount.why))
        return
    field.mount.fill()
    time.sleep(4)
    field.mount.empty()


def slow_disk(field):
    """Each sync of a node's journal takes 700 ms."""
    node = field.leader()
    field.control(node, "d700")
    time.sleep(4)
    field.control(node, None)


def failing_sync(field):
    """fdatasync answers EIO: the process ends, and comes back with all that it had."""
    node = field.leader()
    field.control(node, "5")
    status = node.wait_end(20)
    check(status == -signal.SIGABRT, "a process whose disk fails aborts", status)
    field.control(node, None)
    field.back(node)


def lost_disk(field):
    """A node is killed and its disk wiped: it comes back as another replica."""
    node = field.leader()
    node.kill()
    node.forget()
    field.back(node)


def double_restart(field):
    """Killed, started, killed before it can have settled, and started again."""
    node = field.leader()
    for _ in range(2):
        node.kill()
        node.launch()
        time.sleep(field.dice.uniform(0.05, 0.6))
    wait_until("%s to open its door" % node.name, lambda: field.cluster.running(node) and node.find_door(), 30, 0.02)


def planned_restart(field):
    """SIGTERM of a leader: it hands over before it goes."""
    node = field.leader()
    check(node.stop() == 0, "a node stops clean", node.process.returncode)
    field.back(node)


ANYWHERE = [kill_leader, kill_mid_call, pause_leader, isolate_leader, cut_pair, one_way_loss, etcd_one_way, pause_etcd,
            kill_etcd, kill_leader_without_etcd, full_disk, slow_disk, failing_sync, lost_disk, double_restart, planned_restart]
BY_NETWORK = {"loopback": [slow_links], "netns": [lost_packets]}
OF_ONE_MEMBER = [kill_etcd_leader, pause_etcd_member]


def one_fault(field, fault):
    before = field.load.acknowledged()
    begun = time.monotonic()
    try:
        fault(field)
    except Failed as failed:
        raise Failed("%s: %s" % (fault.__name__, failed))
    finally:
        harm = time.monotonic() - begun
    try:
        healthy = field.cluster.wait_served(HEALTHY_WITHIN)
        # Served is what nodes say; an acknowledged turn is what clients know.
        now = field.load.acknowledged()
        wait_until("turns to be acknowledged again", lambda: field.load.acknowledged() > now + 5, HEALTHY_WITHIN)
    except Failed as failed:
        raise Failed("after %s: %s" % (fault.__name__, failed))
    note("%-24s %4.1f s, healthy after %4.1f s, %d turns" % (fault.__name__, harm, healthy,
                                                            field.load.acknowledged() - before))


def own_checks(field):
    """What nodes themselves say of copies and sessions that cannot be right."""
    for node in field.cluster.nodes:
        bad = [line for line in node.log().splitlines() if "stops on this node" in line or "is damaged" in line]
        for line in bad[:3]:
            yield "HALTED: %s: %s" % (node.name, line)


def judge(field, seed):
    """Settles and checks everything that clients were told."""
    violations = field.load.verdict()
    violations += own_checks(field)
    note(field.load.summary())
    if violations and os.environ.get("MAINSTAY_LOGS"):
        os.makedirs(os.environ["MAINSTAY_LOGS"], exist_ok=True)
        field.load.save(os.path.join(os.environ["MAINSTAY_LOGS"], "attempts.json"))
    check(not violations, "seed %d: the checker finds nothing" % seed, "%d violations" % len(violations), *violations[:12])
    check(field.load.acknowledged() > 100, "turns were acknowledged", field.load.acknowledged())


def faults():
    """Targeted faults under load, in seeded order."""
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    network = "netns" if options.netns else "loopback"
    note("seed %d, %s, %d of etcd" % (seed, network, options.etcd))
    todo = ANYWHERE + BY_NETWORK[network] + (OF_ONE_MEMBER if options.etcd > 2 else [])
    if options.only:
        todo = [fault for fault in todo if fault.__name__ in options.only]
        check(todo, "there are such faults", options.only)
    # Impatient clients: who waits for a node that stands still sends nothing else.
    field = Field(seed, network, etcd=options.etcd, writers=10, patience=5)
    try:
        until = time.monotonic() + (options.minutes or 0) * 60
        rounds = 0
        while True:
            rounds += 1
            order = list(todo)
            field.dice.shuffle(order)
            for fault in order:
                one_fault(field, fault)
                if options.minutes and time.monotonic() > until:
                    break
            if time.monotonic() > until and (rounds >= 2 or options.quick or not options.netns or options.only):
                break
        note("all copies in sync after %.1f s" % field.cluster.wait_in_sync())
        judge(field, seed)
    except BaseException:
        field.cluster.tell()
        raise
    finally:
        field.close()


# --- broken on purpose ------------------------------------------------------------------------------------------------

MUTANTS = {
    # name: (the fault that shows it, what must be found). Random faults do not find a missing fence: a leader must wake
    # up past its lease with requests in flight. Then a replica mostly refuses to cut what it knows to be committed (I6)
    # and halts, before clients can see a loss.
    "replica_does_not_fence": (pause_leader, ("HALTED", "LOST", "STALE", "ORDER", "SPLIT", "DOUBLED")),
    "acknowledge_before_replication": (isolate_leader, ("LOST",)),
}


def mutant_rounds(mutant, broken, seed, fault):
    """Three rounds of a fault under load; the violations."""
    field = Field(seed, program="mainstayd_mutant", disks=False, env={"MAINSTAY_MUTANT": mutant} if broken else {},
                  kinds=("talk",), patience=5)
    try:
        for _ in range(3):
            try:
                fault(field)
            except Failed:
                break  # no leader is left: what is broken shows already
            time.sleep(1.5)
        return [*field.load.verdict(patience=10), *own_checks(field)]
    finally:
        field.close()


def mutants():
    """A replica that does not fence, and a leader that does not wait for replicas, are both caught; nothing else is."""
    for mutant, (fault, rules) in MUTANTS.items():
        for seed in range(1, 5):
            found = [one for one in mutant_rounds(mutant, True, seed, fault) if one.startswith(rules)]
            if found:
                break
        check(found, "%s is caught" % mutant, "%d times three rounds of %s" % (seed, fault.__name__))
        note("%s: caught by %s, seed %d, %d violations, the first: %s" % (mutant, fault.__name__, seed, len(found),
                                                                        found[0][:200]))
        found = mutant_rounds(mutant, False, seed, fault)
        check(not found, "the same faults without the mutant find nothing", *found[:5])


# --- figures ----------------------------------------------------------------------------------------------------------

def percentile(values, of):
    """The smallest value that at least `of` per cent of all do not exceed."""
    values = sorted(values)
    return values[max(0, -(-len(values) * of // 100) - 1)]


def failover():
    """From SIGKILL of a leader to the first acknowledged write on each of its sessions."""
    kills, sessions = options.kills, 48
    folder = tempfile.mkdtemp(prefix="mainstay-faults-")
    agents, models = agents_and_models(os.path.join(folder, "ledger"))
    cluster = Cluster(agents, models, lease="5s", network="netns" if options.netns else "loopback")
    seconds, rounds = [], []
    try:
        cluster.start()
        talks = [cluster.nodes[0].conversation() for _ in range(sessions)]
        for number in range(kills):
            cluster.wait_in_sync()
            led = cluster.leaders()
            most = max(cluster.nodes, key=lambda node: sum(one is node for one in led.values()))
            mine = [talk for talk in talks if led.get(shard_of(talk, cluster.shards)) is most]
            others = [node for node in cluster.nodes if node is not most]
            took, begun = {}, time.monotonic()
            most.kill()

            def write(place, talk):
                text = "%d-%s" % (number, talk)
                until = begun + 60
                while time.monotonic() < until:
                    try:
                        answer = others[place % 2].request(
                            "POST", "/v1/responses", {"model": "talk", "input": text, "conversation": talk},
                            {"Idempotency-Key": text})
                        if answer.status == 200 and answer.json["status"] == "completed":
                            took[talk] = time.monotonic() - begun
                            return
                    except Lost:
                        pass
                    time.sleep(0.01)

            threads = [threading.Thread(target=write, args=one) for one in enumerate(mine)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            check(len(took) == len(mine), "every session of the killed leader goes on", len(took), len(mine))
            seconds += took.values()
            rounds.append(max(took.values()))
            note("kill %2d: %2d sessions, first %.2f s, median %.2f s, last %.2f s" %
                 (number + 1, len(mine), min(took.values()), statistics.median(took.values()), max(took.values())))
            most.launch()
            cluster.wait_served()
        figures = {"figure": "failover_write_gap", "kills": kills, "lease_s": 5, "nodes": 3, "shards": cluster.shards,
                   "samples": len(seconds), "p50_s": round(percentile(seconds, 50), 3),
                   "p99_s": round(percentile(seconds, 99), 3), "max_s": round(max(seconds), 3),
                   "network": "netns" if options.netns else "loopback with proxies"}
        print("\n  | from SIGKILL to the first acknowledged write | p50 | p99 | max |\n  |---|---|---|---|\n"
              "  | %d kills, %d sessions, lease 5 s | %.2f s | %.2f s | %.2f s |\n" %
              (kills, len(seconds), figures["p50_s"], figures["p99_s"], figures["max_s"]))
        print(json.dumps(figures), flush=True)
        if options.json:
            with open(options.json, "w") as file:
                json.dump(figures, file)
    finally:
        cluster.close()
        subprocess.run(["rm", "-rf", folder], check=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the default")
    parser.add_argument("--netns", action="store_true")
    parser.add_argument("--etcd", type=int, default=1, choices=(1, 3, 5), help="members")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--failover", action="store_true")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--json")
    parser.add_argument("--only", action="append")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    sys.argv = sys.argv[:1]
    if options.netns and not netns_wanted():
        print("MAINSTAY_NETNS=0: without network namespaces, as was asked")
        sys.exit(0)
    run(*([mutants] if options.mutants else [failover] if options.failover else [faults]))
