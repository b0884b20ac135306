"""Real clusters for tests: etcd and some mainstayd as processes of one machine, in folders of their own, ended by their
pids whatever happens; and the network between them, which can be broken and healed in two ways:

  Loopback   a small TCP proxy before each node's link port, and before each member of etcd for each node. Runs everywhere.
             Bytes are held back, as by a network that loses everything: no connection is closed.
  Namespaces one network namespace for each node and for each member of etcd, joined by a bridge in another, which this process enters;
             packets are dropped by nft. Needs root, iproute2 and nftables. Where it cannot be had, that is a failure,
             unless MAINSTAY_NETNS=0 says that it is known.

Both speak of directions (a, b): what a sends does not come to b."""
import atexit
import ctypes
import errno
import http.client
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import harness
from harness import BIN, Daemon, Failed, Lost, check, wait_until

ETCD = "etcd"
ADMIN_KEY = "msk_cluster_tests_0123456789"
tenant_of_admin = 1


# --- which shard ------------------------------------------------------------------------------------------------------

def xxh64_of_12(data):
    """xxHash64, seed 0, of exactly 12 bytes (the only length that shard_of needs)."""
    mask = (1 << 64) - 1
    p1, p2, p3, p4, p5 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63,
                          0x27D4EB2F165667C5)

    def rotated(value, by):
        return ((value << by) | (value >> (64 - by))) & mask

    low, high = struct.unpack("<QI", data)
    out = (p5 + 12) & mask
    out ^= rotated(low * p2 & mask, 31) * p1 & mask
    out = (rotated(out, 27) * p1 + p4) & mask
    out ^= high * p1 & mask
    out = (rotated(out, 23) * p2 + p3) & mask
    out = ((out ^ (out >> 33)) * p2) & mask
    out = ((out ^ (out >> 29)) * p3) & mask
    return out ^ (out >> 32)


def shard_of(conversation, shards):
    """As runtime/base/id.h: the family is the first 8 bytes of a session id."""
    bits = 0
    for letter in conversation.split("_", 1)[1][:13]:
        bits = bits << 5 | "abcdefghijklmnopqrstuvwxyz234567".index(letter)
    return xxh64_of_12(struct.pack("<IQ", tenant_of_admin, bits >> 1)) % shards


# --- networks ---------------------------------------------------------------------------------------------------------

def free_port():
    """Below the ports that the system gives to whoever connects, so that nobody takes it while its owner restarts."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise


def etcd_names(members):
    return [ETCD] if members == 1 else [ETCD + str(i) for i in range(members)]


class Network:
    """What is wrong between whom: (a, b) -> None, or how."""

    can_lose, can_delay = False, False

    def __init__(self, names):
        self.names = list(names)
        self.members = [name for name in self.names if name.startswith(ETCD)]

    def close(self):
        pass

    def wrapper(self, _name):
        """Words before a process's own."""
        return ()

    def cut(self, a, b):
        self.one_way(a, b)
        self.one_way(b, a)

    def isolate(self, name):
        for other in self.names:
            if other != name:
                self.cut(name, other)


class Loopback(Network):
    can_delay = True

    def __init__(self, names, pid_of):
        super().__init__(names)
        self.pid_of = pid_of
        self.changed = threading.Condition()
        self.broken = {}  # (a, b) -> "hold", or seconds that everything takes
        self.proxies = []
        self.ports = {name: free_port() for name in names}
        self.peer_ports = {name: free_port() for name in self.members}
        self.doors = {}  # (who, to) -> proxy's address; who None: whoever connects
        self.closed = False
        for name in names:
            if name in self.members:
                continue
            self.listen(None, name)
            for member in self.members:
                self.listen(name, member)

    def host(self, _name):
        return "127.0.0.1"

    def link_listen(self, name):
        return "127.0.0.1:%d" % self.ports[name]

    def link_advertise(self, name):
        return self.doors[None, name]

    def etcd_listen(self, member):
        return "127.0.0.1:%d" % self.ports[member]

    def etcd_peer(self, member):
        return "127.0.0.1:%d" % self.peer_ports[member]

    def etcd_for(self, name):
        return [self.doors[name, member] for member in self.members]

    def one_way(self, a, b):
        with self.changed:
            self.broken[a, b] = "hold"

    def delay(self, a, b, seconds):
        with self.changed:
            self.broken[a, b] = self.broken[b, a] = seconds

    def heal(self):
        with self.changed:
            self.broken.clear()
            self.changed.notify_all()

    def close(self):
        self.closed = True
        self.heal()
        for proxy in self.proxies:
            proxy.close()

    def listen(self, who, to):
        proxy = socket.socket()
        proxy.bind(("127.0.0.1", 0))
        proxy.listen(128)
        self.proxies.append(proxy)
        self.doors[who, to] = "127.0.0.1:%d" % proxy.getsockname()[1]
        threading.Thread(target=self.accept, args=(proxy, who, to), daemon=True).start()

    def accept(self, proxy, who, to):
        while not self.closed:
            try:
                near, address = proxy.accept()
            except OSError:
                return
            threading.Thread(target=self.join, args=(near, who or self.dialler(address[1], proxy), to),
                             daemon=True).start()

    def dialler(self, port, proxy):
        """Which node has this end of a connection, from /proc: all nodes dial the same address."""
        wanted = "0100007F:%04X 0100007F:%04X" % (port, proxy.getsockname()[1])
        with open("/proc/net/tcp") as table:
            inodes = [line.split()[9] for line in table if wanted in line]
        for name in self.names:
            folder = "/proc/%s/fd" % self.pid_of(name)
            try:
                for fd in os.listdir(folder):
                    try:
                        if inodes and os.readlink(os.path.join(folder, fd)) == "socket:[%s]" % inodes[0]:
                            return name
                    except OSError:
                        pass
            except OSError:
                pass
        return None  # it has gone meanwhile

    def pass_on(self, a, b, since):
        """Returns when what a sent at `since` may come to b."""
        with self.changed:
            while not self.closed:
                how = self.broken.get((a, b))
                if how is None:
                    return
                if how != "hold":
                    left = since + how - time.monotonic()
                    if left <= 0:
                        return
                    self.changed.wait(left)
                else:
                    self.changed.wait()

    def join(self, near, who, to):
        if who is None:
            return near.close()
        self.pass_on(who, to, time.monotonic())
        host, port = "127.0.0.1", self.ports[to]
        try:
            far = socket.create_connection((host, port), 5)
            far.settimeout(None)
        except OSError:
            return near.close()
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self.pump, args=(near, far, who, to), daemon=True).start()
        self.pump(far, near, to, who)

    def pump(self, source, sink, a, b):
        try:
            while True:
                data = source.recv(1 << 16)
                self.pass_on(a, b, time.monotonic())
                if not data:
                    break
                sink.sendall(data)
        except OSError:
            pass
        for one in (source, sink):
            try:
                one.shutdown(socket.SHUT_RDWR)  # wakes the pump of the other direction
            except OSError:
                pass


def command(*words, may_fail=False):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0 and not may_fail:
        raise Failed("%s: %s" % (" ".join(words), done.stderr.strip()))
    return done.returncode == 0


class Namespaces(Network):
    can_lose = True
    entered = None  # hub of this process

    def __init__(self, names, _pid_of):
        super().__init__(names)
        base = "ms%d" % os.getpid()
        self.hub = base + "h"
        self.spaces = {name: base + name for name in names}
        self.addresses = {name: "10.77.0.%d" % (10 + i) for i, name in enumerate(names)}
        atexit.register(self.close)
        try:
            self.make()
        except (Failed, OSError) as error:
            self.close()
            raise Failed("no network namespaces here (root, iproute2, nftables; MAINSTAY_NETNS=0 goes without): %s" % error)

    def make(self):
        command("ip", "netns", "add", self.hub)
        inside = ("ip", "netns", "exec", self.hub)
        command(*inside, "ip", "link", "set", "lo", "up")
        command(*inside, "ip", "link", "add", "bridge", "type", "bridge")
        command(*inside, "ip", "address", "add", "10.77.0.1/24", "dev", "bridge")
        command(*inside, "ip", "link", "set", "bridge", "up")
        for i, (name, space) in enumerate(self.spaces.items()):
            command("ip", "netns", "add", space)
            command(*inside, "ip", "link", "add", "port%d" % i, "type", "veth", "peer", "name", "eth0", "netns", space)
            command(*inside, "ip", "link", "set", "port%d" % i, "master", "bridge", "up")
            there = ("ip", "netns", "exec", space)
            command(*there, "ip", "link", "set", "lo", "up")
            command(*there, "ip", "address", "add", self.addresses[name] + "/24", "dev", "eth0")
            command(*there, "ip", "link", "set", "eth0", "up")
            command(*there, "nft", "add table ip faults; add chain ip faults in { type filter hook input priority 0; }")
        # Threads that this one makes are in it as well; those that are there already stay where they are.
        with open("/run/netns/" + self.hub) as space:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(space.fileno(), 0x40000000) != 0:  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), "setns")

    def close(self):
        for space in [*self.spaces.values(), self.hub]:
            if os.path.exists("/run/netns/" + space):
                command("ip", "netns", "del", space, may_fail=True)

    def wrapper(self, name):
        return ("nsenter", "--net=/run/netns/" + self.spaces[name])

    def host(self, name):
        return self.addresses[name]

    def link_listen(self, name):
        return self.addresses[name] + ":7400"

    def link_advertise(self, name):
        return self.link_listen(name)

    def etcd_listen(self, member):
        return self.addresses[member] + ":2379"

    def etcd_peer(self, member):
        return self.addresses[member] + ":2380"

    def etcd_for(self, _name):
        return [self.etcd_listen(member) for member in self.members]

    def rule(self, a, b, text):
        command("ip", "netns", "exec", self.spaces[b], "nft", "add rule ip faults in ip saddr %s %s" %
                (self.addresses[a], text))

    def one_way(self, a, b):
        self.rule(a, b, "drop")

    def lose(self, percent):
        """Of all packets between all."""
        for a in self.names:
            for b in self.names:
                if a != b:
                    self.rule(a, b, "numgen random mod 100 < %d drop" % percent)

    def heal(self):
        for space in self.spaces.values():
            command("ip", "netns", "exec", space, "nft", "flush chain ip faults in")


NETWORKS = {"loopback": Loopback, "netns": Namespaces}


# --- processes --------------------------------------------------------------------------------------------------------

class EtcdMember:
    """One process. It is no Daemon: it has neither door nor key."""

    def __init__(self, network, name):
        self.network, self.name = network, name
        self.folder = tempfile.mkdtemp(prefix="mainstay-etcd-")
        self.process = None
        atexit.register(self.discard)

    def launch(self):
        network = self.network
        url, peer = ("http://" + at for at in (network.etcd_listen(self.name), network.etcd_peer(self.name)))
        everybody = ",".join("%s=http://%s" % (name, network.etcd_peer(name)) for name in network.members)
        with open(os.path.join(self.folder, "log"), "a") as log:
            self.process = subprocess.Popen(
                [*network.wrapper(self.name), "etcd", "--name", self.name, "--data-dir", os.path.join(self.folder, "data"),
                 "--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer,
                 "--initial-advertise-peer-urls", peer, "--initial-cluster", everybody],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def asked(self, method, path, timeout=1):
        """Its answer as JSON; None: none."""
        connection = http.client.HTTPConnection(*self.network.etcd_listen(self.name).rsplit(":", 1), timeout=timeout)
        try:
            connection.request(method, path, "{}" if method == "POST" else None)
            return json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()

    def serves(self):
        check(self.process.poll() is None, "etcd runs", self.log()[-2000:])
        return (self.asked("GET", "/health") or {}).get("health") == "true"

    def leads(self):
        said = self.asked("POST", "/v3/maintenance/status") or {}
        return bool(said.get("leader")) and said["leader"] == said["header"]["member_id"]

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, which):
        self.process.send_signal(which)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def log(self):
        if self.process is None:
            return ""
        with open(os.path.join(self.folder, "log"), errors="replace") as file:
            return file.read()

    def discard(self):
        if self.alive():
            self.kill()
        shutil.rmtree(self.folder, True)


class Etcd:
    """All members of one etcd; what is done to it is done to all."""

    def __init__(self, network):
        self.members = [EtcdMember(network, name) for name in network.members]

    @property
    def process(self):
        return self.members[0].process

    def start(self):
        """Those that do not run; until all serve."""
        for member in self.members:
            if not member.alive():
                member.launch()
        for member in self.members:
            wait_until("%s to serve" % member.name, member.serves, 30, 0.05)

    def leader(self):
        return wait_until("a leader of etcd", lambda: next((one for one in self.members if one.alive() and one.leads()), None),
                          30, 0.05)

    def signal(self, which):
        for member in self.members:
            member.signal(which)

    def kill(self):
        for member in self.members:
            member.kill()

    def discard(self):
        for member in self.members:
            member.discard()


class Node(Daemon):
    """One of a cluster's daemons."""

    def __init__(self, cluster, name, data=None, **more):
        super().__init__(program=cluster.program, data=data, **more)
        self.cluster, self.name = cluster, name
        self.listen = cluster.network.host(name) + ":0"
        self.stopped = False
        self.env["MAINSTAY_ADMIN_KEY"] = ADMIN_KEY
        place = os.path.join(self.folder, "cluster")
        done = subprocess.run([os.path.join(BIN, "mainstay"), "cluster", "join", cluster.authority, "--out", place,
                               "--output", "json"], capture_output=True, text=True)
        check(done.returncode == 0, "mainstay cluster join makes a certificate", done.stdout, done.stderr)
        self.uuid = json.loads(done.stdout)["node"]
        self.config = os.path.join(self.folder, "mainstay.toml")
        network = cluster.network
        with open(self.config, "w") as file:
            file.write('[cluster]\ncoordinator = "etcd"\ndirectory = "%s"\nendpoints = %s\nlisten = "%s"\n'
                       'advertise = "%s"\nshards = %d\nlease = "%s"\n' %
                       (place, json.dumps(["http://" + at for at in network.etcd_for(name)]), network.link_listen(name),
                        network.link_advertise(name), cluster.shards, cluster.lease))

    def launch(self, env=None):
        """Starts the process; does not wait until it serves."""
        self.stopped = False
        self.spawn(env, self.cluster.network.wrapper(self.name))

    def find_door(self):
        """The address in use, once it is there; whether it answers is another question."""
        path = os.path.join(self.data, "listen")
        if os.path.exists(path):
            with open(path) as file:
                self.address, self.key = file.read().strip() or self.address, ADMIN_KEY
            return True
        return False

    def stand_still(self):
        self.stopped = True
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)
        self.stopped = False

    def forget(self):
        """Its disk is lost: whatever stands in the data directory. The certificate is kept."""
        for entry in os.listdir(self.data):
            path = os.path.join(self.data, entry)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)

    def got(self, path, timeout=3):
        """The answer to a GET; None where there is none, or no good one, now."""
        if not self.alive() or self.stopped or not self.find_door():
            return None
        try:
            answer = self.request("GET", path, timeout=timeout)
        except Lost:
            return None
        return answer if answer.status == 200 else None

    def asked(self, path, timeout=3):
        answer = self.got(path, timeout)
        return answer and answer.json


class Cluster:
    """Nodes n0, n1, ... and their etcd of so many members. `agents` and `models` as of Daemon; `data` names the data
    directories of some."""

    def __init__(self, agents, models, nodes=3, shards=24, lease="2s", network="loopback", program="mainstayd",
                 env=None, data=None, etcd=1):
        self.shards, self.lease, self.program = shards, lease, program
        self.folder = tempfile.mkdtemp(prefix="mainstay-cluster-")
        self.authority = os.path.join(self.folder, "authority")
        self.nodes = []
        names = ["n%d" % i for i in range(nodes)]
        self.network = NETWORKS[network](names + etcd_names(etcd), self.pid_of)
        self.etcd = Etcd(self.network)
        done = subprocess.run([os.path.join(BIN, "mainstay"), "cluster", "init", self.authority], capture_output=True,
                              text=True)
        check(done.returncode == 0, "mainstay cluster init makes a CA", done.stdout, done.stderr)
        for name in names:
            self.nodes.append(Node(self, name, agents=agents, models=models, env=env, data=(data or {}).get(name)))

    def pid_of(self, name):
        for node in self.nodes:
            if node.name == name and node.process:
                return node.process.pid
        return 0

    def start(self):
        self.etcd.start()
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            wait_until("%s to open its door" % node.name, lambda: self.running(node) and node.find_door(), 30, 0.02)
        return self.wait_served()

    def running(self, node):
        check(node.alive(), "%s runs" % node.name, node.process.returncode, node.log()[-1500:])
        return True

    def leaders(self):
        """shard -> node that leads and serves it, as each node says of itself."""
        found = {}
        for node in self.nodes:
            answer = node.asked("/v1/cluster/shards")
            for shard in answer["data"] if answer else []:
                if shard["led_here"] and shard["serving"]:
                    found[shard["shard"]] = node
        return found

    def leader(self, conversation, patience=30):
        shard = shard_of(conversation, self.shards)
        return wait_until("a leader of shard %d" % shard, lambda: self.leaders().get(shard), patience, 0.05)

    def conversation_led_by(self, node):
        """A new one."""
        def one():
            conversation = node.conversation()
            return conversation if self.leaders().get(shard_of(conversation, self.shards)) is node else None
        return wait_until("a conversation that %s leads" % node.name, one, 30)

    def wait_linked(self):
        """Until every node has a link to every other."""
        wait_until("all links", lambda: all(other["linked"] for node in self.nodes
                                            for other in node.asked("/v1/cluster/nodes")["data"]), 30)

    def wait_served(self, patience=60):
        """Until every shard is led by a node that serves it, and every node says that it is ready; the seconds."""
        begun = time.monotonic()

        def served():
            return (all(self.running(node) for node in self.nodes) and len(self.leaders()) == self.shards and
                    all(node.got("/readyz") for node in self.nodes))
        try:
            wait_until("", served, patience, 0.05)
        except Failed as failed:
            if not str(failed).startswith("waited"):
                raise
            raise Failed("not healthy after %.0f s: %s" % (patience, self.sick()))
        return time.monotonic() - begun

    def wait_in_sync(self, patience=180):
        """Until every shard has all of its copies in sync; the seconds."""
        begun = time.monotonic()

        def whole():
            answers = [node.asked("/v1/cluster/shards") for node in self.nodes]
            return all(answer and len(answer["data"]) == self.shards and
                       all(len(shard["in_sync"]) == len(self.nodes) for shard in answer["data"]) for answer in answers)
        try:
            wait_until("", whole, patience, 0.2)
        except Failed:
            raise Failed("not in sync after %.0f s: %s" % (patience, self.sick()))
        return time.monotonic() - begun

    def sick(self):
        led = self.leaders()
        said = ["unserved shards %s" % sorted(set(range(self.shards)) - set(led))]
        for node in self.nodes:
            status = node.asked("/v1/cluster") or {}
            said.append("%s: %s %s" % (node.name, "runs" if node.alive() else "ended", status.get("problems")))
        return "; ".join(said)

    def tell(self, lines=25):
        """The ends of all logs, after a failure; whole ones stay in the folder MAINSTAY_LOGS, if that is set."""
        for name, log in ((one.name, one.log()) for one in [*self.nodes, *self.etcd.members]):
            kept = os.environ.get("MAINSTAY_LOGS")
            if kept:
                os.makedirs(kept, exist_ok=True)
                with open(os.path.join(kept, name + ".log"), "w") as file:
                    file.write(log)
            print("  --- end of the log of %s\n%s" % (name, "\n".join(log.splitlines()[-lines:])), flush=True)

    def close(self):
        for node in self.nodes:
            node.discard()
        self.etcd.discard()
        self.network.close()
        shutil.rmtree(self.folder, True)


def netns_wanted():
    return os.environ.get("MAINSTAY_NETNS") != "0"
