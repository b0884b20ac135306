#!/usr/bin/env python3
"""Nodes of a cluster are replaced one by one by another release, under load, and then by the first one again; the
checker proves that nothing was lost, and no client saw an error.

  cluster_upgrade.py --old BIN_DIR [--new BIN_DIR]   BIN_DIR holds mainstayd; --new is MAINSTAY_BIN or build/release/bin
  cluster_upgrade.py --from GIT_REF [--new BIN_DIR]  builds that commit first, in build/upgrade
  cluster_upgrade.py ... --forward                   old to new only: where formats do not allow the way back
  cluster_upgrade.py ... --hasty --netns --seed N    --hasty: two copies in sync are enough to take the next node

Clients are as behind a balancer: any node whose /readyz says 200, asked ten times a second, a connection for each
request, and where that is refused another node."""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

from cluster_checker import BalancedLoad
from cluster_faults import agents_and_models
from cluster_harness import Cluster
from harness import BIN, ROOT, check, note, run, wait_until

IN_SYNC_FOR = 90  # seconds that copies may take to be in sync again, before the next node
options = None


def in_sync(cluster, copies):
    """Whether every shard has so many copies in sync, as each node sees it."""
    for node in cluster.nodes:
        answer = node.asked("/v1/cluster/shards")
        if not answer or len(answer["data"]) < cluster.shards:
            return False
        if any(len(shard["in_sync"]) < copies for shard in answer["data"]):
            return False
    return True


def replace(cluster, node, folder, copies):
    """As an operator would: SIGTERM, the other binary, and on when so many copies are in sync."""
    check(node.stop() == 0, "%s stops clean" % node.name, node.process.returncode, node.log()[-1500:])
    node.program = os.path.join(folder, "mainstayd")
    node.launch()
    wait_until("%s to open its door" % node.name, lambda: cluster.running(node) and node.find_door(), 30, 0.02)
    cluster.wait_served(30)
    wait_until("%d copies of every shard in sync" % copies, lambda: in_sync(cluster, copies), IN_SYNC_FOR, 0.1)


def upgrade(steps, seed, network="loopback", copies=3):
    """`steps`: (word, folder of the binary) of the release to begin with, and of each that all nodes are given after.
    `copies`: in sync, before the next node is taken."""
    folder = tempfile.mkdtemp(prefix="mainstay-upgrade-")
    ledger = os.path.join(folder, "ledger")
    cluster = load = None
    try:
        cluster = Cluster(*agents_and_models(ledger), network=network, lease="2s")
        for node in cluster.nodes:
            node.program = os.path.join(steps[0][1], "mainstayd")
        cluster.start()
        cluster.wait_in_sync()
        load = BalancedLoad(cluster, ledger, seed)
        wait_until("turns to be acknowledged", lambda: load.acknowledged() > 50, 30)
        for word, binaries in steps[1:]:
            for node in cluster.nodes:
                begun, before = time.monotonic(), load.acknowledged()
                replace(cluster, node, binaries, copies)
                note("%s: %s replaced, %d copies in sync after %4.1f s, %d turns meanwhile, %d errors of clients" %
                     (word, node.name, copies, time.monotonic() - begun, load.acknowledged() - before, len(load.errors())))
        violations = load.verdict()
        note(load.summary())
        check(not violations, "seed %d: the checker finds nothing" % seed, *violations[:12])
        check(not load.errors(), "no client saw an error", "%d" % len(load.errors()), *load.errors()[:12])
    except BaseException:
        if cluster:
            cluster.tell()
        raise
    finally:
        if load:
            load.stopping.set()
        if cluster:
            cluster.close()
        shutil.rmtree(folder, True)


def built(ref):
    """The binaries of a commit, built in a work tree of its own."""
    tree = os.path.join(ROOT, "build", "upgrade", "source")
    out = os.path.join(ROOT, "build", "upgrade", "build")
    if os.path.exists(tree):
        subprocess.run(["git", "-C", tree, "checkout", "--quiet", "--detach", ref], check=True)
    else:
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, ref], check=True)
    subprocess.run(["cmake", "-S", tree, "-B", out, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"], check=True,
                   stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", out, "--target", "mainstayd"], check=True)
    return os.path.join(out, "bin")


def upgraded():
    """From the old release to the new one under load, and back."""
    old = options.old or built(options.since)
    steps = [("old", old), ("new", options.new), ("old", old)][:2 if options.forward else 3]
    upgrade(steps, options.seed, "netns" if options.netns else "loopback", 2 if options.hasty else 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--old", help="folder of the old binaries")
    source.add_argument("--from", dest="since", help="a commit to build them of")
    parser.add_argument("--new", default=BIN)
    parser.add_argument("--forward", action="store_true", help="not back")
    parser.add_argument("--hasty", action="store_true", help="two copies in sync are enough for the next node")
    parser.add_argument("--netns", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.argv = sys.argv[:1]
    run(upgraded)
