# SPDX-License-Identifier: Apache-2.0
"""Snapshots that are based on one another: pre-dumps, dumps of a process that runs on, and what they take together."""

import contextlib
import json
import os
import signal
import struct

import pytest

from bed import SHARED, SLOW, wait_for, workload
from godwit import ABORTED, CRIU, FAILED, LIMIT, MIB, NOT_FOUND, PEER, USAGE, WORKDIR, Godwit, check_memory, hook
from live import Churn, Dirty, criu_came_amiss
from test_trackers import KINDS, has_soft_dirty

pytestmark = pytest.mark.timeout(180 * SLOW)


def chain(snapshots):
    return {i: s["parent"] for i, s in snapshots.items()}


# ---- pre-dumps ----


soft_dirty = pytest.param("soft-dirty", marks=pytest.mark.skipif(not has_soft_dirty(), reason="no soft-dirty bits here"))


@pytest.mark.parametrize("tracker", ["auto", "uffd-wp", "compare", soft_dirty])
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_pre_dumps(pair, count, tracker):
    """Only what was written is sent; the destination holds one snapshot; what is restored is right."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 48, 5)
    most = (24 if tracker != "soft-dirty" else 110) * MIB  # huge pages count whole, before the freeze and in it
    first = a.pre_dump(dirty.pid, "--snapshot", "s0", "--tracker", tracker, "--json").json
    assert first["parent"] == "" and first["bytes"] > 48 * MIB
    for i in range(1, count):
        named = ["--parent", f"s{i - 1}"] if i % 2 else []
        told = a.pre_dump(dirty.pid, "--snapshot", f"s{i}", *named, "--json").json
        assert told["parent"] == f"s{i - 1}" and told["bytes"] < most
        assert chain(b.snapshots()) == {f"s{i}": f"s{i - 1}"}, "a pre-dump is freed when the next has come"
        assert b.state(f"s{i}") == "pre-dumped"
        assert b.used_bytes() < 56 * MIB
    dirty.check(a.host)
    last = a.dump(dirty.pid, "--snapshot", "end", "--parent", f"s{count - 1}", "--json").json
    assert last["parent"] == f"s{count - 1}" and last["bytes"] < most
    assert set(b.snapshots()) == {"end"}
    b.restore("--snapshot", "end")
    dirty.check(b.host)


@pytest.mark.parametrize("tracker", ["uffd-wp", "compare", soft_dirty])
@pytest.mark.parametrize("kind", KINDS)
def test_pre_dumps_of_churn(pair, kind, tracker):
    """Maps, unmaps, moves, gives back, forks and executes all the while; every byte is looked at."""
    arguments, slots = KINDS[kind]
    churn = Churn(pair.a.host, *arguments, slots=slots)
    for _ in range(3):
        for _ in range(4):
            pair.a.pre_dump(churn.pid, "--tracker", tracker)
            churn.check_all(pair.a.host)
        dump = pair.a.begin_dump(churn.pid, "--json")
        out, err = dump.process.communicate(timeout=60 * SLOW)
        if dump.process.returncode != CRIU or not criu_came_amiss(err):
            break
        pair.a.take_failure()
    assert dump.process.returncode == 0, err
    assert json.loads(out)["parent"].startswith(f"{churn.pid}-")
    pair.b.restore()
    churn.check_all(pair.b.host)
    churn.runs_on(pair.b.host)


def test_pre_dump_does_not_stop_the_process(pair):
    dirty = Dirty(pair.a.host, 64, 5)
    pair.a.host.kill(dirty.pid, signal.SIGUSR1)
    for _ in range(3):
        pair.a.pre_dump(dirty.pid)
    assert dirty.face()[1] < 1e9
    assert pair.a.host.state(dirty.pid) != "T"
    for snapshot in pair.b.snapshots():
        pair.b.forget(snapshot)


def test_pre_dump_is_no_process(pair):
    counter = pair.counter()
    pair.a.pre_dump(counter.pid, "--snapshot", "s0")
    done = pair.b.restore("--snapshot", "s0", code=USAGE)
    assert "is a pre-dump" in done.err and "--parent s0" in done.err
    pair.b.restore("--wait", "0.2", code=NOT_FOUND)
    pair.b.forget("s0")
    counter.runs_on(pair.a.host)


def test_status_shows_who_is_followed(pair):
    counter = pair.counter()
    pair.a.pre_dump(counter.pid, "--snapshot", "s0")
    assert [(s["snapshot"], s["pid"]) for s in pair.a.status() if s.get("state") == "followed"] == [("s0", counter.pid)]
    pair.a.host.kill(counter.pid)
    pair.a.host.wait_for(lambda: not any(s.get("state") == "followed" for s in pair.a.status()))
    pair.b.forget("s0")


def test_followed_no_more(pair):
    """godwit forget at the source lets go of the process; the snapshot stays where it is."""
    dirty = Dirty(pair.a.host, 16, 5)
    pair.a.pre_dump(dirty.pid, "--snapshot", "s0")
    pair.a.forget("s1", code=NOT_FOUND)
    pair.a.forget("s0")
    assert not any(s.get("state") == "followed" for s in pair.a.status())
    pair.a.forget("s0", code=NOT_FOUND)
    pair.a.pre_dump(dirty.pid, "--parent", "s0", code=NOT_FOUND)
    assert pair.b.state("s0") == "pre-dumped"
    pair.b.forget("s0")
    pair.b.forget("s0", code=NOT_FOUND)
    dirty.check(pair.a.host)


# ---- snapshots that are kept ----


def test_ten_in_a_chain(pair):
    """A twentieth is changed between two of them; each can be restored, and any of them forgotten."""
    a, b, mib = pair.a, pair.b, 128
    dirty = Dirty(a.host, mib, 20)
    dirty.quiet(1)
    a.pre_dump(dirty.pid, "--snapshot", "base")
    names = [f"s{i}" for i in range(10)]
    sent, before = 0, dirty.written
    for name in names:
        dirty.write_pages(mib * 256 // 20)
        told = a.dump(dirty.pid, "--snapshot", name, "--leave-running", "--json").json
        written, before = dirty.written - before, dirty.written
        assert told["parent"] and told["bytes"] < (written + 512) * 4200  # and its stack, and images
        sent += told["bytes"]
    assert set(b.snapshots()) == set(names)
    # What was sent, and hardly more: 1.6 times one of them, if it is just a twentieth each time.
    together = mib * MIB + sent + 0.05 * mib * MIB
    assert b.used_bytes() < together and b.tmpfs_used() < together
    dirty.check(a.host)
    a.host.kill(dirty.pid)

    def check(name):
        b.restore("--snapshot", name, "--keep")
        dirty.check(b.host)
        b.host.kill(dirty.pid)
        b.host.wait_for(lambda: dirty.pid not in b.host.pids(), what="the copy to be gone")

    for name in names:
        check(name)
    assert b.used_bytes() < together and b.tmpfs_used() < together
    for name in ("s0", "s5", "s9", "s1"):
        b.forget(name)
        names.remove(name)
        for other in (names[0], names[-1]):
            check(other)
    for name in names[1:]:
        b.forget(name)
    assert b.used_bytes() < 1.1 * mib * MIB and b.tmpfs_used() < 1.1 * mib * MIB, "what only the others had is given back"
    b.restore("--snapshot", names[0])
    dirty.check(b.host)
    assert b.used_bytes() == 0


# ---- shared memory ----


class Sharing:
    """The workload `sharing`: a process and its child, which write to one piece of shared memory in several ways."""

    def __init__(self, host, mib, mbs):
        self.path, self.home = f"{SHARED}/sharing", host
        self.pid = host.spawn([workload("sharing"), mib, self.path, mbs])
        self.files = [self.path, f"{self.path}.child"]
        for file in self.files:
            host.wait_text(file, "ok 1", 30)
        self.pids = [self.pid, int(host.read(f"/proc/{self.pid}/task/{self.pid}/children").split()[0])]

    def check(self, host):
        """Every page is as it was written: in each process that was dumped before its first such check."""
        for file in self.files:
            self.home.write(file, "asked 0\n")
        for pid, file in zip(self.pids, self.files):
            check_memory(host, pid, file, 2)

    def kill(self, host):
        for pid in self.pids:
            host.kill(pid)
        for pid in self.pids:
            host.wait_dead(pid)


@pytest.mark.parametrize("tracker", ["auto", "compare", soft_dirty])
def test_shared_memory_in_a_chain(pair, tracker):
    """What was written of it is sent, while it is written to; pages that are given back and written as they were are
    there again; each of the chain is restored right, by itself and by --stream."""
    a, b, mib = pair.a, pair.b, 48
    sharing = Sharing(a.host, mib, 1)
    told = a.pre_dump(sharing.pid, "--snapshot", "s0", "--tracker", tracker, "--json").json
    assert told["bytes"] > mib * MIB
    most = mib * MIB // 2
    for i in range(3):
        told = a.dump(sharing.pid, "--snapshot", f"copy{i}", "--leave-running", "--json").json
        assert told["parent"] and told["bytes"] < most, told
        told = a.pre_dump(sharing.pid, "--snapshot", f"s{i + 1}", "--tracker", tracker, "--json").json
        assert told["parent"] == f"copy{i}" and told["bytes"] < most, told
    told = a.dump(sharing.pid, "--snapshot", "end", "--json").json
    assert told["parent"] == "s3" and told["bytes"] < most
    assert set(b.snapshots()) == {"copy0", "copy1", "copy2", "end"}
    assert b.used_bytes() < 2.5 * mib * MIB, "it is there once, but for what was written between them"
    for name in ("copy2", "end", "copy0"):
        b.restore("--snapshot", name)
        sharing.check(b.host)
        sharing.kill(b.host)
    b.criu("restore", "--stream", "-d", "-D", b.workdir, "-o", "/tmp/restore.log")
    b.host.path(f"{b.workdir}/stats-restore").unlink()
    sharing.check(b.host)
    b.forget("copy1")


TOGGLES = """
import mmap, os, random, signal, sys, time

os.closerange(3, 1024)

def tell(what):
    with open(sys.argv[1] + ".new", "w") as f:
        f.write(f"{what}\\n")
    os.rename(sys.argv[1] + ".new", sys.argv[1])

def check(*_):
    wrong = [i for i in range(PAGES) if i != at and memory[i * 4096:(i + 1) * 4096] != SORTS[state[i]]]
    tell(f"wrong {len(wrong)}" if wrong else "right")

PAGES, SORTS = 512, [os.urandom(4096), os.urandom(4096)]
memory, state, at = mmap.mmap(-1, PAGES * 4096), bytearray(PAGES), 0
for i in range(PAGES):
    memory[i * 4096:(i + 1) * 4096] = SORTS[0]
signal.signal(signal.SIGUSR1, check)
tell("begun")
while True:
    for at in random.choices(range(PAGES), k=50):
        memory[at * 4096:(at + 1) * 4096] = SORTS[state[at] ^ 1]
        state[at] ^= 1
    time.sleep(0.001)
"""


def test_shared_memory_that_is_as_it_was_once(pair):
    """Pages that have been something else in the freeze only: what the parent has of them is that."""
    a, b = pair.a, pair.b
    pid = a.host.spawn(["/usr/bin/python3", "-S", "-E", "-c", TOGGLES, f"{SHARED}/face"])
    face = a.host.path(f"{SHARED}/face")
    wait_for(lambda: face.exists() and face.read_text() == "begun\n", 10, "its begin")
    a.pre_dump(pid, "--snapshot", "s0")
    names = [f"copy{i}" for i in range(4)]
    for name in names:
        a.dump(pid, "--snapshot", name, "--leave-running")
    a.host.kill(pid)
    for name in names:
        face.unlink()
        b.restore("--snapshot", name)
        b.host.kill(pid, signal.SIGUSR1)
        wait_for(face.exists, 10, "its check")
        assert face.read_text() == "right\n", name
        b.host.kill(pid)
        b.host.wait_dead(pid)


SYSTEM_V = """
import ctypes, os, signal, sys

os.closerange(3, 1024)
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
M = 1 << 20

def tell(what):
    with open(sys.argv[1] + ".new", "w") as f:
        f.write(f"{what}\\n")
    os.rename(sys.argv[1] + ".new", sys.argv[1])

def wait():
    signal.sigwait([signal.SIGUSR1])

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
at = libc.shmat(libc.shmget(0, 16 * M, 0o600), None, 0)
memory = (ctypes.c_ubyte * (16 * M)).from_address(at)
is_there = bytearray(os.urandom(16 * M))
ctypes.memmove(memory, bytes(is_there), 16 * M)
tell("begun")
wait()
is_there[3 * M:4 * M] = os.urandom(M)
ctypes.memmove(at + 3 * M, bytes(is_there[3 * M:4 * M]), M)
tell("written")
wait()
tell("right" if bytes(memory) == is_there else "wrong")
signal.pause()
"""


def test_system_v_in_a_chain(pair):
    """In an ipc namespace of its own, as criu wants it."""
    a, b = pair.a, pair.b
    pid = a.host.spawn(["unshare", "-i", "/usr/bin/python3", "-S", "-E", "-c", SYSTEM_V, f"{SHARED}/face"])
    face = a.host.path(f"{SHARED}/face")

    def next_step(host, step):
        if host:
            host.kill(pid, signal.SIGUSR1)
        wait_for(lambda: face.exists() and face.read_text() == f"{step}\n", 10, step)

    next_step(None, "begun")
    assert a.pre_dump(pid, "--json").json["bytes"] > 32 * MIB
    next_step(a.host, "written")
    assert a.dump(pid, "--json").json["bytes"] < 8 * MIB
    b.restore()
    next_step(b.host, "right")


@pytest.mark.parametrize("mib", [48, 128], ids=["hook", "stream"])
def test_memfd_and_all_else_in_a_chain(pair, mib):
    """Memory of every kind that is written to; what is shared comes in the rounds too."""
    a, b, path = pair.a, pair.b, f"{SHARED}/memory"
    pid = a.host.spawn([workload("selfcheck"), mib, path, 5])
    a.host.wait_text(path, "ok 0")
    first = a.pre_dump(pid, "--json").json["bytes"]
    for _ in range(3):
        assert a.pre_dump(pid, "--json").json["bytes"] < first / 2
    a.dump(pid)
    b.restore()
    assert (read_by(b.host, pid) > 20 * MIB) == (mib > 48), "criu reads 16 MiB at most, or all"
    check_memory(b.host, pid, path, 1)


def test_shared_memory_comes_and_goes(pair):
    """An object that is there no more takes no memory at the image-proxy's, and a new one is sent whole."""
    a, b = pair.a, pair.b
    pid = a.host.spawn(["/usr/bin/python3", "-S", "-E", "-c", COMES_AND_GOES, f"{SHARED}/face"])
    face = a.host.path(f"{SHARED}/face")

    def next_step(n):
        a.host.kill(pid, signal.SIGUSR1)
        wait_for(lambda: face.exists() and face.read_text() == f"{n}\n", 10, f"step {n}")

    wait_for(lambda: face.exists() and face.read_text() == "0\n", 10, "its begin")
    assert a.pre_dump(pid, "--json").json["bytes"] > 16 * MIB
    assert a.pre_dump(pid, "--json").json["bytes"] < 4 * MIB
    assert not any("memfd" in what for what in a.host.fds(pair.proxy.pid).values())
    next_step(1)  # another one, and none
    assert a.pre_dump(pid, "--json").json["bytes"] > 8 * MIB
    next_step(2)  # larger, and with a hole
    told = a.dump(pid, "--json").json
    assert told["parent"] and 16 * MIB < told["bytes"] < 20 * MIB, "8 MiB more of it, and in the process itself"
    b.restore()
    b.host.kill(pid, signal.SIGUSR1)
    wait_for(lambda: face.read_text() == "right\n", 10, lambda: f"its check: {face.read_text()}")


COMES_AND_GOES = """
import ctypes, mmap, os, signal, sys

os.closerange(3, 1024)

def tell(what):
    with open(sys.argv[1] + ".new", "w") as f:
        f.write(f"{what}\\n")
    os.rename(sys.argv[1] + ".new", sys.argv[1])

def wait():
    signal.sigwait([signal.SIGUSR1])

M = 1 << 20
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
fd = os.memfd_create("first")
os.pwrite(fd, os.urandom(16 * M), 0)
tell(0)
wait()
os.close(fd)
fd, is_there = os.memfd_create("second"), os.urandom(8 * M)
os.pwrite(fd, is_there, 0)
tell(1)
wait()
more = os.urandom(8 * M)
os.pwrite(fd, more, 9 * M)
hole = ctypes.CDLL(None, use_errno=True).fallocate(fd, 3, ctypes.c_long(M), ctypes.c_long(M))
assert hole == 0
tell(2)
wait()
right = is_there[:M] + bytes(M) + is_there[2 * M:] + bytes(M) + more
tell("right" if os.pread(fd, 100 * M, 0) == right else "wrong")
signal.pause()
"""


def test_newest_kept_and_older_forgotten(pair):
    """For ever, in the memory of one."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 32, 20)
    dirty.quiet(1)
    a.pre_dump(dirty.pid, "--snapshot", "s0")
    for i in range(1, 25):
        dirty.write_pages(1000)
        a.dump(dirty.pid, "--snapshot", f"s{i}", "--leave-running")
        if i > 1:
            b.forget(f"s{i - 1}")
        assert b.used_bytes() < 40 * MIB and b.tmpfs_used() < 40 * MIB
    a.host.kill(dirty.pid)
    b.restore()
    dirty.check(b.host)


def test_restored_by_stream(pair):
    """criu restore --stream reads pages that lie here and there."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 32, 50)
    for _ in range(3):
        a.pre_dump(dirty.pid)
    a.dump(dirty.pid)
    b.criu("restore", "--stream", "-d", "-D", b.workdir, "-o", "/tmp/restore.log")
    dirty.check(b.host)
    for snapshot in b.snapshots():
        b.forget(snapshot)
    b.host.path(f"{b.workdir}/stats-restore").unlink(missing_ok=True)


def loses_by_stream(godwit, snapshot):
    """Gives it an image that criu --stream does not read, of a network namespace that is none of its: now its pages
    are put together first."""
    images = godwit.host.path(f"{WORKDIR}/images/{snapshot}/images")
    (images / "nftables-4711.img").write_bytes(b"rules")


def test_kept_takes_no_more(two):
    """It is restored, and kept, where there is no room for a second copy."""
    a, b = two
    b.cache("--memory-limit", "80M")
    a.proxy(b)
    dirty = Dirty(a.host, 48, 20)
    a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--snapshot", "end")
    used = b.used_bytes()
    for _ in range(2):
        b.restore("--snapshot", "end", "--keep")
        dirty.check(b.host)
        assert b.state("end") == "ready" and b.used_bytes() == used
        b.host.kill(dirty.pid)
        b.host.wait_for(lambda: dirty.pid not in b.host.pids(), what="the copy to be gone")
    b.restore("--snapshot", "end")
    dirty.check(b.host)
    assert b.used_bytes() == 0 and b.is_clean()


def pages_of(b, snapshot):
    """How many pages its memory has, by its map; and how many bytes of the file these are among."""
    memory = b.host.path(f"{WORKDIR}/images/{snapshot}/memory")
    entries = (memory / "space-1.map").read_bytes()[32:]
    return sum(pages for place, pages, _ in struct.iter_unpack("<QII", entries) if not place & 2), (memory / "space-1").stat().st_size


def read_by(host, pid):
    """Bytes that a restored task has read, as criu and by itself."""
    return int(host.read(f"/proc/{pid}/io").split("rchar: ")[1].split()[0])


def test_nothing_is_read_to_be_skipped(pair):
    """godwit restore: criu reads next to nothing, for the hook writes what it lacks; criu --stream: its own pages of those
    of the whole chain."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 64, 100)
    dirty.quiet(1)
    a.pre_dump(dirty.pid)
    for name in ("one", "two", "three"):
        dirty.write_pages(4000)
        a.dump(dirty.pid, "--snapshot", name, "--leave-running")
    a.host.kill(dirty.pid)
    pages, length = pages_of(b, "two")
    assert length > pages * 4096 + 20 * MIB, "others have pages in the file"
    b.restore("--snapshot", "two", "--keep")
    assert read_by(b.host, dirty.pid) < MIB
    dirty.check(b.host)
    b.host.kill(dirty.pid)
    b.host.wait_dead(dirty.pid)
    b.forget("two")
    pages, length = pages_of(b, "one")
    b.forget("three")
    b.criu("restore", "--stream", "-d", "-D", b.workdir, "-o", "/tmp/restore.log")
    read = read_by(b.host, dirty.pid)
    assert pages * 4096 <= read < pages * 4096 + MIB, f"{read} bytes were read for {pages} pages"
    dirty.check(b.host)
    b.forget("one")
    b.host.path(f"{b.workdir}/stats-restore").unlink(missing_ok=True)


def test_huge_pages_of_a_chain(huge_pages, pair):
    """Which criu --stream cannot restore: its pages are put together first."""
    path = f"{SHARED}/huge"
    pid = pair.a.host.spawn([workload("hugemap"), path, "16"])
    pair.a.host.wait_text(path, "ok")
    pair.a.pre_dump(pid)
    pair.a.dump(pid)
    pair.b.restore()
    check_memory(pair.b.host, pid, path, 1)


def test_tree_of_a_chain(pair):
    """Several tasks, each with pipes of its own."""
    churn = Churn(pair.a.host, *KINDS["prefork"][0], slots=KINDS["prefork"][1])
    pair.a.pre_dump(churn.pid)
    churn.check_all(pair.a.host)
    pair.a.dump(churn.pid, "--snapshot", "end")
    pair.b.restore("--snapshot", "end", "--keep")
    churn.check_all(pair.b.host)
    churn.runs_on(pair.b.host)
    pair.b.forget("end")


def running(host, *words):
    """Pids of the commands whose arguments have all of these."""
    return [p for p in host.pids() if set(words) <= set(host.read(f"/proc/{p}/cmdline", "").split("\0"))]


def kill_who_restores(pair, restore, victims):
    """What it is to be killed by: several of restore, cache, criu, hook.  Nothing of it runs then, and all is still there."""
    b = pair.b
    criu = running(b.host, "restore", "-v4", "--restore-detached")
    assert criu, "criu to be at work"
    if "criu" in victims:
        for pid in criu:
            with contextlib.suppress(ProcessLookupError):  # a child of the first one's, which ends with it
                b.host.kill(pid)
    if "restore" in victims:
        restore.process.kill()
    if "cache" in victims:
        pair.cache.signal(signal.SIGKILL)
        pair.cache.end(-signal.SIGKILL)
        pair.cache = b.cache()
    return criu


def see_it_gone(pair, restore, criu, pids):
    restore.process.communicate(timeout=60)
    assert restore.process.returncode != 0, "it was too fast to be killed"
    pair.b.host.wait_for(lambda: not {*criu, *pids} & set(pair.b.host.pids()), 30, "what criu had built to be gone")
    pair.b.wait_state("end", "ready")
    pair.b.host.path(RESTORE_LOG).unlink(missing_ok=True)


RESTORE_LOG = f"{WORKDIR}/restore-end/restore.log"
VICTIMS = {"restore": ["restore"], "cache": ["cache"], "both": ["restore", "cache"], "criu": ["criu"]}


@pytest.mark.parametrize("who", VICTIMS)
def test_killed_while_it_is_fed(pair, who):
    """Whoever dies while criu has half of the pages of a stream: nothing runs, and the next restore has them all."""
    a, b = pair.a, pair.b
    sharing = Sharing(a.host, 256, 0)
    a.pre_dump(sharing.pid)
    a.dump(sharing.pid, "--snapshot", "end")
    log = b.host.path(RESTORE_LOG)
    for _ in range(3):
        restore = b.begin_restore("-d", "--", "-v4")
        b.host.wait_for(lambda: log.exists() and "Forking task" in log.read_text(errors="replace"), what="criu to be at work")
        assert running(b.host, "--stream")
        see_it_gone(pair, restore, kill_who_restores(pair, restore, VICTIMS[who]), sharing.pids)
    b.restore()
    sharing.check(b.host)
    assert b.used_bytes() == 0


@pytest.mark.parametrize("who", [*VICTIMS, "hook", "writer", "task"])
def test_killed_while_the_hook_writes(pair, who):
    """Whoever dies while the task has half of its memory: nothing runs, and the next restore has all of it.  The hook is
    several processes, of which the first has started the others."""
    a, b = pair.a, pair.b
    writers = min(4, len(os.sched_getaffinity(0)))
    if who == "writer" and writers == 1:
        pytest.skip("on one processor the hook does it alone")
    dirty = Dirty(a.host, 512, 40)
    a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--snapshot", "end")
    for _ in range(3):
        restore = b.begin_restore("-d", "--", "-v4")

        def all_write():
            found = running(b.host, hook()) if b.host.rss(dirty.pid) > 8 * MIB else []
            return found if len(found) == writers else None

        hooks = b.host.wait_for(all_write, what="the hook to write")
        for pid in hooks:
            b.host.kill(pid, signal.SIGSTOP)
        criu = kill_who_restores(pair, restore, VICTIMS.get(who, []))
        if who in ("hook", "writer", "task"):
            b.host.kill({"hook": hooks[0], "writer": hooks[-1], "task": dirty.pid}[who])
        if who != "criu":
            for pid in hooks:
                with contextlib.suppress(ProcessLookupError):
                    b.host.kill(pid, signal.SIGCONT)
        see_it_gone(pair, restore, [*criu, *hooks], [dirty.pid])
    b.restore()
    dirty.check(b.host)
    assert b.used_bytes() == 0 and b.is_clean()


@pytest.mark.parametrize("way", ["stream", "hook"])
def test_pages_that_cannot_be_read(pair, way):
    """Less is there than the map says: criu is not let go on with what it has, and nothing is lost."""
    a, b = pair.a, pair.b
    process = Sharing(a.host, 48, 0) if way == "stream" else Dirty(a.host, 32)
    a.pre_dump(process.pid)
    a.dump(process.pid, "--snapshot", "end")
    space = max(b.host.path(f"{WORKDIR}/images/end/memory").glob("space-?"), key=lambda f: f.stat().st_size)
    content = space.read_bytes()
    os.truncate(space, len(content) // 2)
    b.restore(code=CRIU if way == "stream" else FAILED)
    b.take_failure()
    assert way == "hook" or "cannot be read" in pair.cache.log()
    assert process.pid not in b.host.pids()
    space.write_bytes(content)
    b.wait_state("end", "ready")
    b.restore()
    process.check(b.host)


def test_no_room_to_put_it_together(two):
    """To be kept it is copied, and there is no room for that: it is refused, and stays.  Not kept, it takes no more."""
    a, b = two
    b.cache("--memory-limit", "80M")
    a.proxy(b)
    dirty = Dirty(a.host, 48)
    a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--snapshot", "end")
    loses_by_stream(b, "end")
    done = b.restore("--keep", code=LIMIT)
    assert "no room to put its pages together" in done.err
    assert b.state("end") == "ready"
    b.restore()
    dirty.check(b.host)
    assert b.used_bytes() == 0


@pytest.mark.parametrize("cache_too", [False, True], ids=["restore", "restore-and-cache"])
def test_killed_while_it_is_put_together(pair, cache_too):
    """Its pages are on their way from one file to another: the next one goes on."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 256, 40)
    a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--snapshot", "end")
    loses_by_stream(b, "end")
    moved = b.host.path(f"{WORKDIR}/images/end/memory")
    for killed in range(2):
        restore = b.begin_restore("-d")
        b.host.wait_for(lambda: [f for f in moved.glob("*.moved") if f.stat().st_size > 0 or killed], what="pages to be moved")
        restore.process.kill()
        assert restore.process.wait(10) == -signal.SIGKILL, "it was too fast to be killed"
        restore.process.communicate()
        if cache_too:
            pair.cache.signal(signal.SIGKILL)
            pair.cache.end(-signal.SIGKILL)
            pair.cache = b.cache()
        b.wait_state("end", "ready")
    b.restore()
    dirty.check(b.host)
    assert b.used_bytes() == 0


def test_export_of_what_was_begun_to_be_restored(pair):
    """An export puts it together first; a stream has none of it."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 64, 40)
    a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--snapshot", "end")
    loses_by_stream(b, "end")
    b.restore("--", "--no-such-option", code=CRIU)
    b.take_failure()
    b.run("export", "end", "/tmp/images")
    b.wait_state("end", "ready")
    b.criu("restore", "-d", "-D", "/tmp/images", "-W", "/tmp", "-o", "/tmp/restore.log")
    dirty.check(b.host)
    b.forget("end")
    assert b.used_bytes() == 0


# ---- what the parent is, and is not ----


def test_parent_that_is_not_the_newest(pair):
    counter = pair.counter()
    for i in range(3):
        pair.a.pre_dump(counter.pid, "--snapshot", f"s{i}")
    for command in (pair.a.pre_dump, pair.a.dump):
        done = command(counter.pid, "--parent", "s1", code=NOT_FOUND)
        assert "since snapshot s1 is not known" in done.err and "newest of it, which is s2" in done.err
        assert "all of its memory" not in done.err, "it would be based on s2"
    counter.runs_on(pair.a.host)
    assert pair.a.dump(counter.pid, "--parent", "s2", "--json").json["parent"] == "s2"
    pair.b.restore()
    counter.runs_on(pair.b.host)


def test_process_that_cannot_be_followed(pair):
    """Nothing is kept quiet: what is not in a pre-dump is told, and the dump has it."""
    counter = pair.counter()
    pair.a.host.kill(counter.pid, signal.SIGSTOP)
    done = pair.a.pre_dump(counter.pid, "--snapshot", "s0", "--tracker", "uffd-wp")
    assert f"1 of 1 processes of {counter.pid} cannot be followed, and are left to the dump, whole: " in done.err
    pair.a.host.kill(counter.pid, signal.SIGCONT)
    done = pair.a.pre_dump(counter.pid, "--snapshot", "s1", "--tracker", "uffd-wp")
    assert "cannot be followed" not in done.err
    pair.a.dump(counter.pid)
    pair.b.restore()
    counter.runs_on(pair.b.host)


def test_parent_of_nobody(pair):
    counter = pair.counter()
    for command in (pair.a.pre_dump, pair.a.dump):
        done = command(counter.pid, "--parent", "s1", code=NOT_FOUND)
        assert "has taken no such snapshot" in done.err
    counter.runs_on(pair.a.host)


def test_parent_that_the_cache_has_lost(pair):
    """That is an error, at once; and the next is a full one, which says so."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 16, 5)
    a.pre_dump(dirty.pid, "--snapshot", "s0")
    b.forget("s0")
    for argv in ([], ["--snapshot", "again"]):
        if argv:
            done = a.pre_dump(dirty.pid, *argv, "--json")
            assert done.json["parent"] == "" and done.json["bytes"] > 16 * MIB
            assert "all memory" in done.err and "the image-cache has it no more" in done.err
        else:
            done = a.pre_dump(dirty.pid, code=NOT_FOUND)
            assert "its parent s0 is not there" in done.err
    a.dump(dirty.pid, "--parent", "again")
    b.restore()
    dirty.check(b.host)


def with_number(host, number):
    """A process of that number; starting one takes some numbers by itself."""
    for before in range(1, 20):
        host.run(["sh", "-c", f"echo {number - before} >/proc/sys/kernel/ns_last_pid"], check=True)
        dirty = Dirty(host, 16, name=f"dirty{before}")
        if dirty.pid == number:
            return dirty
        host.kill(dirty.pid)
    raise AssertionError("the number was not given again: the test shows nothing")


@pytest.mark.parametrize("tracker", ["auto", soft_dirty])
def test_number_of_another_process(pair, tracker):
    """The parent is one of a process that has ended, and whose number another has."""
    a, b = pair.a, pair.b
    first = a.host.spawn(["sleep", "1000"])
    a.pre_dump(first, "--tracker", tracker, "--snapshot", "s0")
    a.host.kill(first)
    a.host.wait_for(lambda: first not in a.host.pids())
    dirty = with_number(a.host, first)
    done = a.pre_dump(dirty.pid, "--parent", "s0", code=NOT_FOUND)
    assert "has ended" in done.err
    done = a.dump(dirty.pid, "--snapshot", "other", "--json")
    assert done.json["parent"] == "" and done.json["bytes"] > 16 * MIB
    assert "all memory" in done.err and "has ended" in done.err
    b.restore("--snapshot", "other")
    dirty.check(b.host)
    b.forget("s0")


def test_id_that_is_taken(pair):
    """Nothing was sent, so nothing is lost of what is known of the process."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 16, 5)
    a.pre_dump(dirty.pid, "--snapshot", "s0")
    a.pre_dump(dirty.pid, "--snapshot", "s0", code=8)
    assert a.dump(dirty.pid, "--json").json["parent"] == "s0"
    b.restore()
    dirty.check(b.host)


# ---- who dies ----


def test_link_breaks(pair):
    """What was on its way is lost, and so is what it was based on; the process runs, and the next is a full one."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 64, 400)
    a.pre_dump(dirty.pid, "--snapshot", "s0")
    pair.bed.slow("a", "100mbit")
    running = a.begin("pre-dump", "--remote", "-t", dirty.pid, "--snapshot", "s1")
    a.host.wait_for(lambda: any(s.get("bytes", 0) > MIB for s in a.status() if s.get("snapshot") == "s1"))
    pair.bed.cut("a", "b")
    done = running.end(PEER, timeout=40)
    assert done.err
    pair.bed.heal()
    pair.bed.slow("a")
    a.wait_linked(20)
    done = a.dump(dirty.pid, "--snapshot", "s2", "--json")
    assert done.json["parent"] == "" and "the snapshot that was to follow it failed" in done.err
    b.restore("--snapshot", "s2")
    dirty.check(b.host)
    b.wait_state("s1", None)
    b.forget("s0")


def test_cache_is_killed(pair):
    """The next one takes over what the next snapshot is based on."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 32, 10)
    a.pre_dump(dirty.pid, "--snapshot", "s0")
    a.dump(dirty.pid, "--snapshot", "s1", "--leave-running")
    pair.cache.signal(signal.SIGKILL)
    pair.cache.end(-signal.SIGKILL)
    pair.cache = b.cache()
    a.wait_linked(20)
    assert chain(b.snapshots()) == {"s1": "s0"}
    assert a.pre_dump(dirty.pid, "--snapshot", "s2", "--json").json["parent"] == "s1"
    done = a.dump(dirty.pid, "--snapshot", "s3", "--json")
    assert done.json["parent"] == "s2" and done.json["bytes"] < 16 * MIB
    b.restore("--snapshot", "s3")
    dirty.check(b.host)
    b.forget("s1")


def test_proxy_is_killed(pair):
    """What it knew is lost: a parent is refused, and without one all memory is sent."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 16, 5)
    a.pre_dump(dirty.pid, "--snapshot", "s0")
    pair.proxy.signal(signal.SIGKILL)
    pair.proxy.end(-signal.SIGKILL)
    pair.proxy = a.proxy(b)
    a.pre_dump(dirty.pid, "--parent", "s0", code=NOT_FOUND)
    assert a.pre_dump(dirty.pid, "--snapshot", "s1", "--json").json["parent"] == ""
    assert a.dump(dirty.pid, "--json").json["parent"] == "s1"
    b.restore()
    dirty.check(b.host)
    b.forget("s0")


def test_dump_fails(pair):
    """The process runs on; what the failed dump took is not missing in the next."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 32, 20)
    a.pre_dump(dirty.pid, "--snapshot", "s0")
    a.dump(dirty.pid, "--", "--no-such-option", code=3)
    a.take_failure()
    done = a.dump(dirty.pid, "--snapshot", "s1", "--json")
    assert done.json["parent"] == "" and "the snapshot that was to follow it failed" in done.err
    b.restore("--snapshot", "s1")
    dirty.check(b.host)
    b.forget("s0")


# ---- and others ----


def test_migration_of_a_process_that_is_followed(pair):
    """Two that follow a process take nothing from one another: the second compares; and what the first knows stays true."""
    a, b = pair.a, pair.b
    other = Godwit(b.host, workdir="/run/other")
    other.cache("--accept", "--port", "9999")
    target = f"{b.host.address}:9999"
    for way in ("dump", "migrate"):
        dirty = Dirty(a.host, 32, 5, name=way)
        a.pre_dump(dirty.pid, "--snapshot", f"{way}-0", "--tracker", "uffd-wp")
        given_up = a.migrate(dirty.pid, target, "--json", "--strict", "--downtime", "1", "--max-rounds", "3", code=ABORTED)
        assert "is followed already" in given_up.out
        if way == "dump":
            told = a.dump(dirty.pid, "--snapshot", "end", "--json").json
            assert told["parent"] == "dump-0" and told["bytes"] < 30 * MIB
            b.restore("--snapshot", "end")
        else:
            assert "is followed already" in a.migrate(dirty.pid, target, "--json").out
        dirty.check(b.host)
    a.host.wait_for(lambda: not any(s.get("state") == "followed" for s in a.status()))
    b.forget("migrate-0")
