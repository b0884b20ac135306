#!/usr/bin/env python3
"""A disk that is full, a disk that fails, and text that must be gone.

The full disk is a small tmpfs; where mounting is not allowed that test says so and is skipped, unless
MAINSTAY_TEST_MOUNT=require. The failing disk is failing_disk.so (MAINSTAY_FAILING_DISK), preloaded."""
import errno
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from harness import BIN, Daemon, Failed, Lost, check, note, run, scripted, wait_until

MODELS = {"plain": scripted("plain", {"text": "heard {input}"}), "bulk": scripted("bulk", {"text_bytes": 400_000})}
SHIM = os.environ.get("MAINSTAY_FAILING_DISK") or os.path.join(BIN, "failing_disk.so")


class Mount:
    def __init__(self, kind, size_mb):
        self.folder = tempfile.mkdtemp(prefix="mainstay-full-")
        self.image = None
        self.mounted = False
        if kind == "tmpfs":
            words = ["mount", "-t", "tmpfs", "-o", "size=%dm" % size_mb, "none", self.folder]
        else:
            self.image = self.folder + ".img"
            with open(self.image, "wb") as file:
                file.truncate(size_mb << 20)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", self.image], check=True, capture_output=True)
            words = ["mount", "-o", "loop", self.image, self.folder]
        try:
            done = subprocess.run(words, capture_output=True, text=True)
            self.mounted = done.returncode == 0
            self.why = done.stderr.strip()
        except OSError as error:
            self.why = str(error)

    def close(self):
        if self.mounted:
            subprocess.run(["umount", "-l", self.folder], check=False)
            self.mounted = False
        shutil.rmtree(self.folder, True)
        if self.image and os.path.exists(self.image):
            os.unlink(self.image)

    def fill(self, leave=0):
        """Takes the free space away; leaves `leave` bytes."""
        def filled():
            free = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize
            if free <= leave + (64 << 10):
                return True
            with open(os.path.join(self.folder, "ballast"), "ab") as file:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free - leave)
                except OSError as error:  # the daemon takes space at the same time
                    check(error.errno == errno.ENOSPC, "only the space is missing", error)
            return False
        wait_until("the disk to be full", filled, 20)

    def empty(self):
        path = os.path.join(self.folder, "ballast")
        if os.path.exists(path):
            os.unlink(path)


def full_disk(kind):
    mount = Mount(kind, 320)
    if not mount.mounted:
        mount.close()
        if os.environ.get("MAINSTAY_TEST_MOUNT") == "require":
            raise Failed("cannot mount %s: %s" % (kind, mount.why))
        note("SKIPPED: cannot mount %s: %s" % (kind, mount.why))
        return
    daemon = None
    try:
        daemon = Daemon({}, MODELS, {"MAINSTAY_STORE__DISK_RESERVE": "16MB"}, data=os.path.join(mount.folder, "data"))
        daemon.start()
        kept = []  # acknowledged: (conversation, answer)
        conversation = daemon.conversation()
        kept.append((conversation, daemon.turn("plain", "before the disk is full", conversation)))
        mount.fill(leave=4 << 20)

        refused = None
        until = time.monotonic() + 90
        while refused is None and time.monotonic() < until:
            at = daemon.request("POST", "/v1/conversations", {})
            if at.status == 200:
                conversation = at.json["id"]
                answer = daemon.request("POST", "/v1/responses", {"model": "bulk", "input": "x" * 1000,
                                                                  "conversation": conversation})
                if answer.status == 200:
                    kept.append((conversation, answer.json))
                else:
                    refused = answer
            else:
                refused = at
            if refused is not None and refused.status == 503:
                refused = None  # a backlog that the disk will not let shrink may say so first
        check(refused is not None, "writes end on a full disk", len(kept))
        check(refused.status == 507 and refused.code == "storage_full", "they are refused with 507 storage_full", refused)
        check(daemon.alive(), "the daemon lives")
        for conversation, turn in kept:
            check(daemon.read(turn["id"])["output"] == turn["output"], "reads go on")
        ready = daemon.request("GET", "/readyz")
        check(ready.status == 503 and ready.code == "storage_full", "readyz says why", ready)
        check(daemon.request("GET", "/metrics").status == 200, "metrics go on")
        note("%s: %d turns acknowledged, then 507" % (kind, len(kept)))

        daemon.kill()
        mount.fill()
        daemon.start(ready=False)
        for conversation, turn in kept:
            check(daemon.read(turn["id"])["output"] == turn["output"], "reads are served after a restart on the full disk")
        answer = daemon.request("POST", "/v1/conversations", {})
        check(answer.status in (507, 503), "writes are refused after a restart on the full disk", answer)
        check(answer.code == "storage_full", "by name", answer)

        mount.empty()

        def writes_again():
            answer = daemon.request("POST", "/v1/responses", {"model": "plain", "input": "again"})
            check(answer.status in (200, 503, 507), "only the space is missing", answer)
            return answer.json if answer.status == 200 else None
        kept.append((None, wait_until("writes to be taken again without a restart", writes_again, 20)))
        wait_until("the daemon to be ready", lambda: daemon.request("GET", "/readyz").status == 200, 20)
        for conversation, turn in kept:
            check(daemon.read(turn["id"])["output"] == turn["output"], "nothing acknowledged is lost")
        check(daemon.stop() == 0, "the daemon stops clean")
        daemon.start()
        for conversation, turn in kept:
            check(daemon.read(turn["id"])["output"] == turn["output"], "nothing acknowledged is lost after a restart")
    finally:
        if daemon:
            daemon.end()
        mount.close()


def full_tmpfs():
    """ENOSPC on tmpfs: 507, reads go on, a restart serves reads, freed space brings writes back without a restart."""
    full_disk("tmpfs")


def full_ext4():
    """The same on ext4 over a loop device, where the journal is written with O_DIRECT."""
    full_disk("ext4")


def failing_sync():
    """fdatasync answers EIO: the process ends at once, acknowledges nothing more, and recovers all that it had."""
    if not os.path.exists(SHIM):
        raise Failed("there is no %s (CMake target failing_disk)" % SHIM)
    daemon = Daemon({}, MODELS)
    control = os.path.join(daemon.folder, "fail")
    daemon.env.update({"LD_PRELOAD": SHIM, "FAILING_DISK": control, "FAILING_DISK_PATH": "/journal/"})
    rounds = 3
    kept = []
    for _ in range(rounds):
        daemon.start()
        conversation = daemon.conversation()
        lock = threading.Lock()
        counts = {"after": 0}

        def client(name):
            for i in range(100_000):
                failing = os.path.exists(control)
                try:
                    answer = daemon.request("POST", "/v1/responses", {"model": "plain", "input": "%s-%d" % (name, i)})
                except Lost:
                    return
                with lock:
                    if answer.status == 200 and answer.json["status"] == "completed":
                        kept.append(answer.json)
                        counts["after"] += failing
                    else:
                        counts["refused"] = answer

        clients = [threading.Thread(target=client, args=("c%d" % i,)) for i in range(4)]
        for one in clients:
            one.start()
        wait_until("some turns", lambda: len(kept) > 50)
        with open(control + ".new", "w") as file:
            file.write(str(errno.EIO))
        os.rename(control + ".new", control)
        status = daemon.wait_end(20)
        for one in clients:
            one.join()
        check(status == -signal.SIGABRT, "the process aborts", status)
        check(counts["after"] == 0, "nothing is acknowledged once syncs fail", counts)
        check("fdatasync" in daemon.log() and "errno 5" in daemon.log(), "the log says what failed", daemon.log()[-500:])
        os.unlink(control)
    daemon.start()
    for turn in kept:
        check(daemon.read(turn["id"])["output"] == turn["output"], "every acknowledged turn is recovered")
    check(daemon.stop() == 0, "the daemon stops clean")
    note("%d aborts on EIO, %d acknowledged turns all there" % (rounds, len(kept)))


def holders(folder, marker):
    """Files that contain the marker's bytes."""
    found = []
    for where, _, files in os.walk(folder):
        for file in files:
            path = os.path.join(where, file)
            try:
                one = open(path, "rb")
            except FileNotFoundError:  # a segment of the journal that was let go since it was listed
                continue
            with one:
                rest = b""
                while True:
                    block = one.read(1 << 20)
                    if not block:
                        break
                    if marker in rest + block:
                        found.append(path)
                        break
                    rest = block[-len(marker):]
    return found


def deleted_text_is_gone():
    """The text of a deleted session is in no file of the data directory after its lifetime; its neighbour's stays."""
    daemon = Daemon({}, MODELS, {"MAINSTAY_STORE__DELETED_TEXT_LIFETIME": "4s"})
    daemon.start()
    marker, other = b"ZEBRAXYLOPHONE-42", b"NEIGHBOURQUOKKA-17"
    conversation, neighbour = daemon.conversation(), daemon.conversation()

    def text(word):  # whole words around it: the journal's packing touches the first and the last word of a text
        return "some words before " + word.decode() + " and some more words after it"

    def keep(session, word):
        # A short row of the state is kept plain, so the marker can be found; a longer one is compressed.
        daemon.call("POST", "/v1/conversations/%s/items" % session, {"items": [{"role": "user", "content": text(word)}]})

    for _ in range(3):
        keep(conversation, marker)
        keep(neighbour, other)
        daemon.turn("plain", text(marker), conversation)
    check(holders(daemon.data, marker), "the text is on disk while the session exists")
    # Half of it only in the journal, half of it in the state already.
    wait_until("the state to hold it", lambda: any("/state/" in path for path in holders(daemon.data, marker)), 20, 0.2)
    keep(conversation, marker)
    daemon.call("DELETE", "/v1/conversations/" + conversation)
    begun = time.monotonic()
    check(daemon.request("GET", "/v1/conversations/" + conversation).status == 404, "it is gone at once for users")
    wait_until("the text to be in no file", lambda: not holders(daemon.data, marker), 20, 0.2)
    took = time.monotonic() - begun
    check(len(daemon.items(neighbour)) == 3 and holders(daemon.data, other), "the neighbour's text stays")
    daemon.kill()
    daemon.start()
    check(not holders(daemon.data, marker), "it stays gone after kill -9 and a restart", holders(daemon.data, marker))
    check(daemon.request("GET", "/v1/conversations/" + conversation).status == 404, "and so does the session")
    check(len(daemon.items(neighbour)) == 3, "the neighbour is whole")
    check(daemon.stop() == 0, "the daemon stops clean")
    check(took < 8, "within the stated time, and what one pass takes", took)
    note("gone from every file after %.1f s of a lifetime of 4 s" % took)


if __name__ == "__main__":
    run(full_tmpfs, full_ext4, failing_sync, deleted_text_is_gone)
