# SPDX-License-Identifier: Apache-2.0
"""Snapshots that are written to a disk as well: image-cache --spool."""

import os
import signal
import time

import pytest

from bed import SLOW
from godwit import BUSY, MIB, Counter, Pair
from test_export import criu_restore
from live import Dirty
from test_incremental import loses_by_stream

pytestmark = pytest.mark.timeout(120 * SLOW)

SPOOL = "/tmp/spool"


@pytest.fixture
def spooled(bed, request):
    """As `pair`, and the image-cache has a spool."""
    p = Pair(bed, cache=["--spool", SPOOL])
    yield p
    if request.node.passed:
        p.check()


def names(host, directory=SPOOL):
    path = host.path(directory)
    return sorted(os.listdir(path)) if path.exists() else []


def spool(side, snapshot):
    return side.snapshots().get(snapshot, {}).get("spool")


def wait_spool(side, snapshot, how, timeout=20):
    side.host.wait_for(lambda: (spool(side, snapshot) or "").startswith(how), timeout,
                       lambda: f"{snapshot} to be {how} ({side.snapshots()})")


def writer(side):
    """The process that writes the spool."""
    pids = [pid for pid in side.host.pids() if side.host.read(f"/proc/{pid}/comm", "").strip() == "godwit-spool"]
    assert len(pids) <= 1
    return pids[0] if pids else None


def restore_from(side, name):
    side.host.write("/tmp/restore.log", "")
    criu_restore(side, f"{SPOOL}/{name}")


def test_a_snapshot_is_written(spooled):
    """By itself, whole and for nobody else to read; unmodified criu restores it, and so does godwit what stays."""
    a, b, counter = spooled.a, spooled.b, spooled.counter()
    a.dump(counter.pid, "--snapshot", "s0")
    wait_spool(b, "s0", "written")
    assert names(b.host) == ["s0"] and {"inventory.img", "pages-1.img"} <= set(names(b.host, f"{SPOOL}/s0"))
    assert b.host.path(SPOOL).stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o77 == 0 for path in b.host.path(SPOOL).rglob("*"))
    assert "  spool: written" in b.run("status").out
    restore_from(b, "s0")
    counter.runs_on(b.host)
    b.host.kill(counter.pid)
    b.host.wait_dead(counter.pid)
    b.restore("--snapshot", "s0")
    counter.runs_on(b.host)
    assert names(b.host) == ["s0"]


def test_one_of_a_chain_is_written_whole(spooled):
    """Without parents; a pre-dump, which is no process, is not."""
    a, b = spooled.a, spooled.b
    dirty = Dirty(a.host, 32, 20)
    for _ in range(3):
        a.pre_dump(dirty.pid)
    assert names(b.host) == [] and all(s["spool"] == "" for s in b.snapshots().values())
    a.dump(dirty.pid, "--snapshot", "first", "--leave-running")
    a.dump(dirty.pid, "--snapshot", "end")
    wait_spool(b, "first", "written")
    wait_spool(b, "end", "written")
    assert names(b.host) == ["end", "first"]
    assert "parent" not in names(b.host, f"{SPOOL}/end")
    for snapshot in ("first", "end"):
        b.forget(snapshot)
    assert b.used_bytes() == 0 and names(b.host) == ["end", "first"], "what is on the disk stays"
    restore_from(b, "end")
    dirty.check(b.host)


def test_a_restore_does_not_wait(spooled):
    """It goes on while the disk stands still; the snapshot stays until it is written, and cannot run twice."""
    a, b = spooled.a, spooled.b
    dirty = Dirty(a.host, 16, 20)
    a.pre_dump(dirty.pid)
    stopped = writer(b)
    b.host.kill(stopped, signal.SIGSTOP)
    waiting = b.begin_restore("-d", "--snapshot", "s0", "--wait", 20)
    a.dump(dirty.pid, "--snapshot", "s0")
    waiting.end()
    dirty.check(b.host)
    assert b.state("s0") == "restored" and spool(b, "s0") == "writing" and names(b.host) == []
    for option in ([], ["--take-over"]):
        done = b.restore("--snapshot", "s0", *option, code=BUSY)
        assert "has been restored" in done.err
    b.host.kill(stopped, signal.SIGCONT)
    b.wait_state("s0", None)
    assert names(b.host) == ["s0"] and b.used_bytes() == 0
    b.host.kill(dirty.pid)
    b.host.wait_dead(dirty.pid)
    restore_from(b, "s0")
    dirty.check(b.host)


def test_forgotten_while_it_is_written(spooled):
    """Then it is not in the spool; the next one is."""
    a, b, counter = spooled.a, spooled.b, spooled.counter()
    stopped = writer(b)
    b.host.kill(stopped, signal.SIGSTOP)
    for snapshot in ("s0", "s1"):
        a.dump(counter.pid, "--snapshot", snapshot, "--leave-running")
    wait_spool(b, "s0", "writing")
    assert spool(b, "s1") == "waiting"
    b.forget("s0")
    b.host.kill(stopped, signal.SIGCONT)
    wait_spool(b, "s1", "written")
    assert names(b.host) == ["s1"]
    b.forget("s1")


def test_two_of_one_id(spooled):
    """What is there is never touched: the second has a name of its own."""
    a, b, counter = spooled.a, spooled.b, spooled.counter()
    for name in ("s0", "s0~2", "s0~3"):
        a.dump(counter.pid, "--snapshot", "s0", "--leave-running")
        wait_spool(b, "s0", "written")
        b.forget("s0")
        assert name in names(b.host)
        spooled.cache.wait_log(f"in the spool: {SPOOL}/{name}\n")
    a.host.kill(counter.pid)
    a.host.wait_dead(counter.pid)
    restore_from(b, "s0")
    counter.runs_on(b.host)


def begun(side, name, timeout=20):
    """Waits until some of it has been written, and stops who writes it."""
    pages = side.host.path(f"{SPOOL}/.{name}.part/pages-1.img")
    pid = writer(side)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            if pages.stat().st_size > MIB:
                side.host.kill(pid, signal.SIGSTOP)
                return pid if pages.exists() else None
        except FileNotFoundError:
            if name in names(side.host):
                return None
    return None


def test_killed_in_the_midst(two):
    """What is half written is cleared, and written whole by the next image-cache."""
    a, b = two
    cache = b.cache("--spool", SPOOL)
    a.proxy(b)
    dirty = Dirty(a.host, 192)
    a.dump(dirty.pid, "--snapshot", "s0")
    pid = begun(b, "s0")
    assert pid, "it was too fast to be stopped"
    assert names(b.host) == [".s0.part"]
    cache.signal(signal.SIGKILL)
    cache.end(-signal.SIGKILL)
    b.host.wait_dead(pid)
    b.host.mkdir(f"{SPOOL}/.mine")
    b.cache("--spool", SPOOL)
    wait_spool(b, "s0", "written")
    assert names(b.host) == [".mine", "s0"]
    restore_from(b, "s0")
    dirty.check(b.host)
    b.forget("s0")


def test_killed_after_a_restore(two):
    """The process runs already: the next image-cache writes the copy, and cannot be asked to run it again; one without a
    spool frees it."""
    a, b = two
    first = None
    for option in (["--spool", SPOOL], []):
        cache = b.cache("--spool", SPOOL)
        proxy = a.proxy(b)
        counter = Counter(a.host, "second" if first else "first")
        first = first or counter
        stopped = writer(b)
        b.host.kill(stopped, signal.SIGSTOP)
        a.dump(counter.pid, "--snapshot", "s0")
        b.restore()
        assert b.state("s0") == "restored"
        cache.signal(signal.SIGKILL)
        cache.end(-signal.SIGKILL)
        b.host.wait_dead(stopped)
        cache = b.cache(*option)
        b.wait_state("s0", None)
        counter.runs_on(b.host)
        b.host.kill(counter.pid)
        b.host.wait_dead(counter.pid)
        assert names(b.host) == ["s0"]
        for daemon in (proxy, cache):
            daemon.stop()
    restore_from(b, "s0")
    first.runs_on(b.host)


def test_the_writer_is_killed(two):
    """It is told, nothing is lost, and the next image-cache does it."""
    a, b = two
    cache = b.cache("--spool", SPOOL)
    a.proxy(b)
    counter = Counter(a.host)
    b.host.kill(writer(b))
    cache.wait_log("has ended: start the image-cache anew")
    a.dump(counter.pid, "--snapshot", "s0")
    b.wait_state("s0", "ready")
    assert spool(b, "s0") == "failed: what writes it has ended"
    cache.stop()
    b.cache("--spool", SPOOL)
    wait_spool(b, "s0", "written")
    b.restore()
    counter.runs_on(b.host)


def test_a_full_disk(two):
    """A line in the log and in the status, and nothing half written; the snapshot is there, others come and go."""
    a, b = two
    b.host.mkdir("/tmp/small")
    b.host.run(["mount", "-t", "tmpfs", "-o", "size=8M,mode=700", "small", "/tmp/small"], check=True)
    cache = b.cache("--spool", "/tmp/small")
    a.proxy(b)
    dirty, counter = Dirty(a.host, 16), Counter(a.host)
    a.dump(dirty.pid, "--snapshot", "big")
    wait_spool(b, "big", "failed")
    assert "No space left" in spool(b, "big") and "No space left" in b.run("status").out
    cache.wait_log("snapshot big: is not in the spool /tmp/small: writing it: No space left on device")
    assert names(b.host, "/tmp/small") == []
    a.dump(counter.pid, "--snapshot", "small")
    wait_spool(b, "small", "written")
    assert names(b.host, "/tmp/small") == ["small"]
    b.restore("--snapshot", "big")
    dirty.check(b.host)
    b.restore("--snapshot", "small")
    counter.runs_on(b.host)


def test_once(two):
    """The image-cache ends when what was restored is written."""
    a, b = two
    cache = b.cache("--spool", SPOOL, "--once")
    a.proxy(b)
    counter = Counter(a.host)
    stopped = writer(b)
    b.host.kill(stopped, signal.SIGSTOP)
    a.dump(counter.pid, "--snapshot", "s0")
    b.restore()
    assert cache.alive
    b.host.kill(stopped, signal.SIGCONT)
    cache.end()
    assert names(b.host) == ["s0"]
    b.host.wait_dead(stopped)


def test_a_restore_that_has_no_room_goes_first(two):
    """Pages are moved from under the spool rather than that a process waits for memory."""
    a, b = two
    b.cache("--spool", SPOOL, "--memory-limit", "48M")
    a.proxy(b)
    dirty = Dirty(a.host, 32)
    a.pre_dump(dirty.pid)
    stopped = writer(b)
    b.host.kill(stopped, signal.SIGSTOP)
    a.dump(dirty.pid, "--snapshot", "s0")
    loses_by_stream(b, "s0")
    b.restore()
    dirty.check(b.host)
    b.host.kill(stopped, signal.SIGCONT)
    b.wait_state("s0", None)
    b.host.wait_for(lambda: names(b.host) == [], 10, "the spool to be empty")


def test_places_that_are_refused(two):
    """In one line, before anything works."""
    _, b = two
    b.host.mkdir("/tmp/open")
    b.host.path("/tmp/open").chmod(0o777)
    b.host.write("/tmp/file", "")
    for place, said in (("/tmp/open", "spool /tmp/open: must belong to this user"),
                        ("/tmp/open/deeper", "spool /tmp/open/deeper: a directory above it"),
                        ("/tmp/file", "spool /tmp/file: is no directory")):
        done = b.run("image-cache", "--address", "127.0.0.1", "--spool", place, code=1)
        assert said in done.err and len(done.err.splitlines()) == 1
    cache = b.cache("--spool", SPOOL)
    done = b.run("image-cache", "--address", "127.0.0.1", "--port", 7, "--spool", SPOOL, "-W", "/tmp/other", workdir=False,
                 code=BUSY)
    assert "another image-cache writes there" in done.err
    pid = writer(b)
    cache.stop()
    b.host.wait_dead(pid)


def test_in_the_background(two):
    """Nothing of who started it is held open, and it ends with it."""
    _, b = two
    cache = b.cache("--spool", SPOOL, background=True)
    pid = writer(b)
    assert {what for fd, what in b.host.fds(pid).items() if int(fd) < 3} == {"/dev/null"}
    cache.stop()
    b.host.wait_dead(pid)
