# SPDX-License-Identifier: Apache-2.0
"""criu --page-server, unmodified, and a client of our own that speaks as it does, in both forms."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import time

import pytest

from bed import SHARED, SLOW, wait_for, workload
from bed import criu as criu_path
from godwit import MIB, WORKDIR, Pair, check_memory, hook
from live import Churn, Dirty
from test_incremental import Sharing, with_number
from test_trackers import has_soft_dirty, without_scan

pytestmark = pytest.mark.timeout(120 * SLOW)
pre_dumps_of_criu = pytest.mark.skipif(not has_soft_dirty(), reason="criu pre-dump wants soft-dirty bits")

PORT, SOCKET = "9997", f"{WORKDIR}/pages.sock"


@pytest.fixture
def served(bed, request):
    """A pair whose proxy takes pages by a port."""
    p = Pair(bed, proxy=("--page-server", PORT))
    yield p
    if request.node.passed:
        p.check()


@pytest.fixture
def local(bed, request):
    """By a UNIX socket, with a process of which clients of our own tell."""
    p = Pair(bed, proxy=("--page-server", f"unix:{SOCKET}"))
    p.a.task = numbered(p.a.host, NUMBER)
    yield p
    if request.node.passed:
        p.proxy.stop()
        p.proxy = p.a.proxy(p.b)
        p.check()


# ---- criu ----


def criu_run(side, action, pid, *argv, images="/tmp/images", with_hook=True, lacking=(), code=0):
    side.host.mkdir(images)
    by = [workload("lacking"), *lacking] if lacking else []
    done = side.host.run([*by, criu_path(), action, "-t", pid, "-D", images, "-o", "/tmp/dump.log", "--page-server", "--address",
                          "127.0.0.1", "--port", PORT, *(["--action-script", hook()] if with_hook else []), *argv],
                         env={**os.environ, "GODWIT_HOOK_WORKDIR": WORKDIR}, timeout=60)
    assert done.returncode == code, f"{done.stderr}\n{side.logs()}"


def criu_local(side, action, pid, images, *argv):
    """With no page server: what it writes stays in its directory."""
    done = side.host.run([criu_path(), action, "-t", pid, "-D", side.host.mkdir(images), "-o", "/tmp/dump.log", *argv])
    assert done.returncode == 0, f"{done.stderr}\n{side.logs()}"


def criu_dump(side, pid, *argv, **kw):
    criu_run(side, "dump", pid, *argv, **kw)


def test_dump_with_the_hook(served):
    """Pages by the connection, images by the hook, and the process ends when the destination has both."""
    a, b, counter = served.a, served.b, served.counter()
    criu_dump(a, counter.pid)
    a.host.wait_dead(counter.pid)
    b.restore()
    counter.runs_on(b.host)


def test_memory_of_every_kind(served):
    a, b, path = served.a, served.b, f"{SHARED}/memory"
    pid = a.host.spawn([workload("selfcheck"), "48", path])
    a.host.wait_text(path, "ok 0")
    criu_dump(a, pid)
    a.host.wait_dead(pid)
    b.restore()
    check_memory(b.host, pid, path, 1)


def test_hook_of_a_dump_whose_pages_went_elsewhere(served):
    """Its images are not taken for those of an earlier one's memory."""
    a, b, counter = served.a, served.b, served.counter()
    criu_dump(a, counter.pid, "--leave-running", with_hook=False)
    b.host.wait_for(lambda: [s["state"] for s in b.snapshots().values()] == ["pre-dumped"])
    a.host.mkdir("/tmp/local")
    done = a.host.run([criu_path(), "dump", "-t", counter.pid, "-D", "/tmp/local", "-o", "/tmp/dump.log", "--action-script", hook()],
                      env={**os.environ, "GODWIT_HOOK_WORKDIR": WORKDIR}, timeout=60)
    assert done.returncode != 0
    counter.runs_on(a.host)
    for snapshot in b.snapshots():
        b.forget(snapshot)


def test_dump_that_leaves_it_running(served):
    """criu ends and the process does not: nobody has said that a copy was wanted, so there is none."""
    a, b, counter = served.a, served.b, served.counter()
    criu_dump(a, counter.pid, "--leave-running")
    counter.runs_on(a.host)
    b.host.wait_for(lambda: b.snapshots() == {})


def test_copies_without_the_hook(served):
    """criu that has no images of a parent is told of none, although a dump of the same process came before."""
    a, b, counter = served.a, served.b, served.counter()
    for n in range(3):
        criu_dump(a, counter.pid, "--leave-running", images=f"/tmp/{n}", with_hook=False)
        counter.runs_on(a.host)
    assert len(b.snapshots()) == 3 and all(s["parent"] == "" for s in b.snapshots().values())
    for snapshot in b.snapshots():
        b.forget(snapshot)


def test_dump_without_the_hook(served):
    """As with criu page-server: the pages are at the destination, the other images at the source."""
    a, b, counter = served.a, served.b, served.counter()
    criu_dump(a, counter.pid, with_hook=False)
    a.host.wait_dead(counter.pid)
    [(snapshot, about)] = b.snapshots().items()
    assert about["state"] == "pre-dumped" and snapshot.startswith(f"{counter.pid}-")
    b.run("export", snapshot, "/tmp/images")
    for image in a.host.path("/tmp/images").iterdir():
        shutil.copy(image, b.host.path("/tmp/images"))
    b.wait_state(snapshot, "pre-dumped")
    b.forget(snapshot)
    b.criu("restore", "-d", "-D", "/tmp/images", "-W", "/tmp", "-o", "/tmp/restore.log")
    counter.runs_on(b.host)


def dump_by_socket(side, pid, *argv):
    """criu --ps-socket: whoever starts criu has connected."""
    shutil.rmtree(side.host.path("/tmp/images"), ignore_errors=True)
    side.host.mkdir("/tmp/images")
    with connect(side) as connected:
        fd = connected.fileno()
        return side.host.run([criu_path(), "dump", "-t", pid, "-D", "/tmp/images", "-o", "/tmp/dump.log", "--page-server",
                              "--ps-socket", fd, "--action-script", hook(), *argv],
                             env={**os.environ, "GODWIT_HOOK_WORKDIR": WORKDIR}, pass_fds=(fd,), timeout=60)


def test_by_a_socket_that_is_handed_over(local):
    a, b, counter = local.a, local.b, local.counter()
    done = dump_by_socket(a, counter.pid)
    assert done.returncode == 0, f"{done.stderr}\n{a.logs()}"
    b.restore()
    counter.runs_on(b.host)


# ---- two of one number ----


def below(host, pid):
    """The child of a process."""
    return int(wait_for(lambda: host.read(f"/proc/{pid}/task/{pid}/children", ""), 10, f"a child of {pid}"))


def numbered(host, number):
    """A process that has this number in a pid namespace of its own; its pid in the host."""
    last = f"echo {number - 1} >/proc/sys/kernel/ns_last_pid"
    return below(host, below(host, host.spawn(["unshare", "-pf", "sh", "-c", f"{last}; sleep 1000 & wait"])))


class Contained(Dirty):
    """The first process of a pid namespace, as that of a container is."""

    def __init__(self, host, mib, name):
        super().__init__(host, mib, name=name, within=["unshare", "-pf", "setsid"])
        self.pid = below(host, self.pid)

    def found(self, host):
        """Its pid on another host, where it has no other number."""
        argv = "\0".join(self.argv) + "\0"
        return next(p for p in host.pids() if host.read(f"/proc/{p}/cmdline", "") == argv)

    def check_on(self, host):
        self.pid = self.found(host)
        self.check(host)


def test_two_of_one_number(served):
    """Each has its own memory, whatever came of the other before."""
    a, b = served.a, served.b
    one, two = (Contained(a.host, mib, name) for mib, name in ((8, "one"), (12, "two")))
    criu_dump(a, one.pid, "--leave-running", with_hook=False, images="/tmp/copy")
    copy, = b.snapshots()
    for contained in (two, one):
        images = a.host.mkdir(f"/tmp/{contained.pid}")
        criu_dump(a, contained.pid, images=images)
        a.host.wait_dead(contained.pid)
        b.restore()
        contained.check_on(b.host)
        assert set(b.snapshots()) == {copy}
    b.forget(copy)


def test_child_of_a_lower_pid(served):
    """The images are those of the root, whichever of its processes is found first."""
    a, b = served.a, served.b
    a.host.run(["mkfifo", "/tmp/fork"], check=True)
    root = below(a.host, a.host.spawn(["unshare", "-pf", "setsid", "sh", "-c", "read line </tmp/fork; sleep 1000 & wait"]))
    a.host.run(["sh", "-c", "echo 250 >/proc/sys/kernel/ns_last_pid; echo >/tmp/fork"], check=True)
    assert below(a.host, root) < root
    criu_dump(a, root)
    a.host.wait_dead(root)
    b.restore()
    assert any(b.host.read(f"/proc/{p}/cmdline", "") == "sleep\x001000\x00" for p in b.host.pids())


@pre_dumps_of_criu
def test_pre_dumps_of_criu_of_two_of_one_number(served):
    """By turns: what has not changed of one is not taken from the other."""
    a, b = served.a, served.b
    both = [Contained(a.host, mib, name) for mib, name in ((4, "one"), (6, "two"))]
    for contained in both:
        criu_run(a, "pre-dump", contained.pid, "--track-mem", images=a.host.mkdir(f"/tmp/images/{contained.pid}/0"))
    assert [s["parent"] for s in b.snapshots().values()] == ["", ""]
    for contained in both:
        criu_dump(a, contained.pid, "--track-mem", "--prev-images-dir", "../0", images=a.host.mkdir(f"/tmp/images/{contained.pid}/1"))
        a.host.wait_dead(contained.pid)
        b.restore()
        contained.check_on(b.host)


def test_clients_of_two_of_one_number(local):
    """Pre-dumps by turns: a process is told of its own parent, and has its own pages."""
    a, b = local.a, local.b
    newest_of, known = {}, set()
    tasks = [a.task, numbered(a.host, NUMBER)]
    for again in range(2):
        for i, task in enumerate(tasks):
            client = Client(a, 32, task)
            assert client.parent(TASK) == again
            assert client.open(TASK) == bytes([again])
            if again:
                client.hole(TASK, 0x10000, 2)
            else:
                client.add(TASK, 0x10000, 10 * i + 1, 10 * i + 2)
            assert client.close() == 0
            snapshot, = set(b.snapshots()) - known
            known.add(snapshot)
            assert b.snapshots()[snapshot]["parent"] == newest_of.get(task, "")
            newest_of[task] = snapshot
    for i, task in enumerate(tasks):
        assert pages_of(b, newest_of[task]) == {("pagemap-77.img", 0x10000): 10 * i + 1, ("pagemap-77.img", 0x11000): 10 * i + 2}
        b.forget(newest_of[task])


def test_another_with_its_pid(local):
    """A process that has got the pid of one that has ended has no parent."""
    a, b = local.a, local.b
    pid = Dirty(a.host, 1).pid
    obj = pid << 8 | 1
    client = Client(a, 32, pid)
    assert client.parent(obj) == 0
    assert client.open(obj) == b"\0"
    client.add(obj, 0x10000, 1)
    assert client.close() == 0
    a.host.kill(pid)
    a.host.wait_dead(pid)
    with_number(a.host, pid)
    client = Client(a, 32, pid)
    assert client.parent(obj) == 0
    client.let_go()
    b.forget(newest(b))


@pytest.mark.parametrize("how", ["nobody-traces-it", "a-tracer-without-the-socket"])
def test_whose_it_is_cannot_be_told(local, how):
    """It is whole, and nobody's parent; and what was a parent before is none any more, for criu has begun to track anew."""
    a, b = local.a, local.b
    first_snapshot(a)
    for _ in range(2):
        client = Client(a, 32, None if how == "nobody-traces-it" else a.task, shared=False)
        assert client.parent(TASK) == 0
        assert client.open(TASK) == b"\0"
        client.add(TASK, 0x10000, 5)
        assert client.close() == 0
    local.proxy.wait_log("whose memory it is cannot be told")
    client = Client(a, 32)
    assert client.parent(TASK) == 0
    client.let_go()
    b.host.wait_for(lambda: all(s["state"] == "pre-dumped" for s in b.snapshots().values()))
    for snapshot in b.snapshots():
        assert b.snapshots()[snapshot]["parent"] == ""
        b.forget(snapshot)


# ---- pre-dumps of criu ----


def criu_chain(side, pid, count, *argv, **kw):
    """So many pre-dumps and a dump, each based on the one before; yields after each."""
    for i in range(count + 1):
        previous = ["--prev-images-dir", f"../{i - 1}"] if i else []
        criu_run(side, "dump" if i == count else "pre-dump", pid, "--track-mem", *previous, *argv, images=f"/tmp/images/{i}", **kw)
        yield i
    side.host.wait_dead(pid)


@pre_dumps_of_criu
@pytest.mark.parametrize("rate", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_pre_dumps_of_criu(served, count, rate):
    """criu pre-dump --track-mem, and dump: what has not changed is left to the parent (huge pages change whole)."""
    a, b = served.a, served.b
    dirty = Dirty(a.host, 32, rate)
    sizes = []
    for _ in criu_chain(a, dirty.pid, count):
        sizes += [s["bytes"] for name, s in b.snapshots().items() if s["state"] == "pre-dumped"]
    assert sizes[0] > 32 * MIB and len(sizes) == count
    assert rate > 0 or all(size < 8 * MIB for size in sizes[1:]), "all was sent again"
    b.restore()
    dirty.check(b.host)


CHURN = {  # as KINDS of test_trackers.py, without executions, which have a test below
    "threads": (["--threads", 2, "--mib", 8, "--exec-ms", 0], 2),
    "prefork": (["--threads", 1, "--mib", 4, "--prefork", 2, "--fork-ms", 100, "--exec-ms", 0], 3),
}


@pre_dumps_of_criu
@pytest.mark.parametrize("kind", CHURN)
@pytest.mark.parametrize("features", [[], ["scan"]], ids=lambda f: " ".join(f) or "all")
def test_pre_dumps_of_criu_of_churn(served, features, kind):
    """Maps, unmaps, moves, forks and executes between them, where criu has PAGEMAP_SCAN and where it reads pagemap."""
    if "scan" in features:
        without_scan()
    a, b = served.a, served.b
    arguments, slots = CHURN[kind]
    churn = Churn(a.host, *arguments, slots=slots)
    a.host.path("/run/criu.kdat").unlink(missing_ok=True)  # what it knows of the kernel
    for i in criu_chain(a, churn.pid, 3, lacking=features):
        if i < 3:
            churn.check_all(a.host)
    b.restore()
    churn.check_all(b.host)
    churn.runs_on(b.host)


@pre_dumps_of_criu
def test_pre_dumps_of_criu_of_shared_memory(served):
    """It is written to between them; criu sends all of it with the dump."""
    a, b = served.a, served.b
    sharing = Sharing(a.host, 32, 1)
    for _ in criu_chain(a, sharing.pid, 3):
        [snapshot] = b.snapshots()
        assert snapshot.startswith(f"{sharing.pid}-")
    b.restore()
    sharing.check(b.host)


@pre_dumps_of_criu
def test_pre_dumps_of_criu_of_a_number_again(served):
    """The number of a process that has ended: nothing of its memory is taken for the other's, which has no bit set."""
    a, b = served.a, served.b
    first = Dirty(a.host, 16)
    criu_run(a, "pre-dump", first.pid, "--track-mem", images="/tmp/images/0")
    of_first = newest(b)
    a.host.kill(first.pid)
    a.host.wait_dead(first.pid)
    dirty = with_number(a.host, first.pid)
    a.host.run(["sh", "-c", f"echo 4 >/proc/{dirty.pid}/clear_refs"], check=True)
    for action, images in ("pre-dump", 1), ("dump", 2):
        criu_run(a, action, dirty.pid, "--track-mem", "--prev-images-dir", f"../{images - 1}", images=f"/tmp/images/{images}")
    a.host.wait_dead(dirty.pid)
    b.restore()
    dirty.check(b.host)
    b.forget(of_first)


EXECUTES = """
import os, signal, sys
os.closerange(3, 1024)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
with open(sys.argv[1], "w") as f:
    f.write("begun")
signal.sigwait([signal.SIGUSR1])
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
os.execv(sys.argv[2], sys.argv[2:])
"""


@pre_dumps_of_criu
def test_pre_dumps_of_criu_of_another_program(served):
    """criu leaves the new program's vdso to the parent, which has none there: that one fails, and the next is whole."""
    a, b = served.a, served.b
    pid = a.host.spawn(["/usr/bin/python3", "-S", "-E", "-c", EXECUTES, f"{SHARED}/face", workload("dirty"), 16, 0, f"{SHARED}/dirty"])
    a.host.wait_text(f"{SHARED}/face", "begun")
    chain = [("pre-dump", 0), ("pre-dump", 1), ("pre-dump", 0), ("dump", 0)]
    for i, (action, code) in enumerate(chain):
        criu_run(a, action, pid, "--track-mem", *(["--prev-images-dir", f"../{i - 1}"] if i else []), images=f"/tmp/images/{i}", code=code)
        if i == 0:
            a.host.kill(pid, signal.SIGUSR1)
            dirty = Dirty(a.host, 16, pid=pid)
    assert "pages of task" in served.proxy.log()
    b.restore()
    dirty.check(b.host)
    for snapshot in b.snapshots():
        b.forget(snapshot)  # what the one that failed was based on


@pre_dumps_of_criu
def test_pre_dumps_of_criu_that_the_proxy_does_not_know(served):
    """criu that has images of it, and is told of none, sends all."""
    a, b = served.a, served.b
    dirty = Dirty(a.host, 16)
    images = [a.host.mkdir(f"/tmp/images/{i}") for i in range(2)]
    criu_run(a, "pre-dump", dirty.pid, "--track-mem", images=images[0])
    first = newest(b)
    served.proxy.stop()
    served.proxy = a.proxy(b, "--page-server", PORT)
    criu_run(a, "dump", dirty.pid, "--track-mem", "--prev-images-dir", "../0", images=images[1])
    a.host.wait_dead(dirty.pid)
    assert "all memory is sent: no snapshot before of the process is known here" in served.proxy.log()
    b.forget(first)
    b.restore()
    dirty.check(b.host)


# ---- and others who track the same process ----


def quiet_one(host):
    """Which writes only when it is told to.  Behind the last clear of its bits it is not: of huge pages a few are all."""
    dirty = Dirty(host, 16, 20)
    dirty.quiet(1)
    return dirty


@pre_dumps_of_criu
@pytest.mark.parametrize("how", ["another-directory", "the-same-directory"])
def test_pre_dumps_of_criu_with_one_elsewhere(served, how):
    """One of a chain goes to a directory, and takes the bits with it: what has come here before is no parent of the next."""
    a, b = served.a, served.b
    dirty = quiet_one(a.host)
    criu_run(a, "pre-dump", dirty.pid, "--track-mem", images="/tmp/images/0")
    first = newest(b)
    dirty.write_pages(500)
    if how == "another-directory":
        criu_local(a, "pre-dump", dirty.pid, "/tmp/images/1", "--track-mem", "--prev-images-dir", "../0")
    else:
        criu_local(a, "pre-dump", dirty.pid, "/tmp/images/0", "--track-mem")
    previous = "../1" if how == "another-directory" else "../0"
    criu_dump(a, dirty.pid, "--track-mem", "--prev-images-dir", previous, images="/tmp/images/2")
    a.host.wait_dead(dirty.pid)
    b.restore()
    dirty.check(b.host)
    assert f"all memory is sent, and nothing is left to {first}: what criu takes for the snapshot before" in served.proxy.log()
    b.forget(first)


@pre_dumps_of_criu
def test_pre_dumps_of_criu_of_who_is_followed(served):
    """By godwit, by the bits that criu clears."""
    a, b = served.a, served.b
    dirty = quiet_one(a.host)
    a.pre_dump(dirty.pid, "--snapshot", "s0", "--tracker", "soft-dirty")
    dirty.write_pages(500)
    criu_run(a, "pre-dump", dirty.pid, "--track-mem")
    done = a.dump(dirty.pid, "--snapshot", "end", "--json")
    b.restore("--snapshot", "end")
    dirty.check(b.host)
    assert done.json["parent"] == "" and "not based on snapshot s0: criu has begun to track it anew" in done.err
    assert f"process {dirty.pid} is followed no more: criu has begun to track it anew" in served.proxy.log()
    for snapshot in b.snapshots():
        b.forget(snapshot)


@pre_dumps_of_criu
def test_pre_dumps_of_criu_and_one_of_godwit(served):
    """Which clears the bits that criu has to be told of."""
    a, b = served.a, served.b
    dirty = quiet_one(a.host)
    criu_run(a, "pre-dump", dirty.pid, "--track-mem", images="/tmp/images/0")
    first = newest(b)
    dirty.write_pages(500)
    a.pre_dump(dirty.pid, "--snapshot", "s0", "--tracker", "soft-dirty")
    criu_dump(a, dirty.pid, "--track-mem", "--prev-images-dir", "../0", images="/tmp/images/1")
    a.host.wait_dead(dirty.pid)
    b.restore()
    dirty.check(b.host)
    assert f"nothing is left to {first}: godwit has begun to follow the process by its soft-dirty bits" in served.proxy.log()
    b.forget(first)
    b.forget("s0")


@pre_dumps_of_criu
def test_pre_dumps_of_criu_in_the_midst_of_one_of_godwit(served):
    """criu is refused before it has cleared anything."""
    a, b = served.a, served.b
    dirty = quiet_one(a.host)
    a.pre_dump(dirty.pid, "--snapshot", "s0", "--tracker", "soft-dirty")
    dirty.write_pages(3000)
    served.bed.slow("a", "2mbit")
    running = a.begin("pre-dump", "--remote", "-t", dirty.pid, "--snapshot", "s1", "--tracker", "soft-dirty")
    a.host.wait_for(lambda: any(s.get("bytes", 0) > 0 for s in a.status() if s.get("snapshot") == "s1"))
    criu_run(a, "pre-dump", dirty.pid, "--track-mem", code=1)
    assert f"a snapshot is being made of process {dirty.pid} by its soft-dirty bits" in served.proxy.log()
    served.bed.slow("a")
    running.end(0, timeout=60)
    dirty.write_pages(500)
    assert a.dump(dirty.pid, "--snapshot", "end", "--json").json["parent"] == "s1"
    b.restore("--snapshot", "end")
    dirty.check(b.host)


@pre_dumps_of_criu
@pytest.mark.parametrize("who", ["godwit", "criu"])
def test_pre_dumps_of_criu_of_a_part_of_a_tree(served, who):
    """The bits of a child are cleared for who follows its parent too."""
    a, b = served.a, served.b
    dirty = Dirty(a.host, 16, 20, within=["unshare", "-f"])
    dirty.quiet(1)
    root, dirty.pid = dirty.pid, below(a.host, dirty.pid)
    a.pre_dump(root, "--snapshot", "s0", "--tracker", "soft-dirty")
    dirty.write_pages(500)
    if who == "godwit":
        a.pre_dump(dirty.pid, "--snapshot", "child", "--tracker", "soft-dirty")
    else:
        criu_run(a, "pre-dump", dirty.pid, "--track-mem", "--shell-job")
    done = a.dump(root, "--snapshot", "end", "--json")
    b.restore("--snapshot", "end")
    dirty.check(b.host)
    assert done.json["parent"] == "" and "has begun to track it anew" in done.err
    for snapshot in b.snapshots():
        b.forget(snapshot)


# ---- what breaks ----


def test_no_cache(bed):
    """criu is told so, and lets the process run on."""
    p = Pair(bed, proxy=("--page-server", PORT))
    counter = p.counter()
    p.cache.stop()
    p.a.host.wait_for(lambda: p.a.link() != "up")
    criu_dump(p.a, counter.pid, code=1)
    counter.runs_on(p.a.host)


def test_link_breaks_in_the_midst(bed):
    p = Pair(bed, proxy=("--page-server", PORT))
    dirty = Dirty(p.a.host, 64)
    p.bed.slow("a", "100mbit")
    p.a.host.mkdir("/tmp/images")
    dump = p.a.host.popen([criu_path(), "dump", "-t", str(dirty.pid), "-D", "/tmp/images", "-o", "/tmp/dump.log", "--page-server",
                           "--address", "127.0.0.1", "--port", PORT])
    p.b.host.wait_for(lambda: any(s["state"] == "receiving" for s in p.b.snapshots().values()))
    p.bed.cut("a", "b")
    assert dump.wait(60) != 0
    p.bed.heal()
    p.bed.slow("a")
    dirty.check(p.a.host)


# ---- a client of our own ----

ADD_1, HOLE_1, OPEN_1, OPEN, PARENT, ADD, GET, CLOSE, FORCE_CLOSE = 1, 2, 3, 4, 5, 6, 7, 0x1023, 0x1024
PARENT_FLAG, LAZY, PRESENT = 1, 2, 4


def connect(side):
    connected = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(side.host.path(WORKDIR))
    try:
        connected.connect("pages.sock")
    finally:
        os.chdir(here)
    return connected


SEIZE = """if True:
    import ctypes, os, sys
    PTRACE_SEIZE = 0x4206
    task, images, previous = sys.argv[1:]
    os.makedirs(images)
    if previous:
        os.symlink(previous, f"{images}/parent")
    directory = os.open(images, os.O_RDONLY)
    print("seized" if ctypes.CDLL(None).ptrace(PTRACE_SEIZE, int(task), None, None) == 0 else "failed", flush=True)
    sys.stdin.read()
"""


class Client:
    """What criu says, in the form of a release: 24 bytes up to 4.1, 32 from 4.2.

    On the host a process that traces the task, as criu does, has the socket open too (unless told otherwise), and those
    that it is told of, until it is closed.  It has a directory of images, with a link to that of the last client for the
    task whose snapshot has come to something, or to another, or ("") none.
    """

    images = {}  # by host and task: the last one's

    def __init__(self, side, form, task=..., shared=True, also=(), previous=None, place="/tmp/client", within=()):
        self.form = form
        self.socket = connect(side)
        self.socket.settimeout(20)
        self.tracer = None
        self.key = None
        task = side.task if task is ... else task
        if task:
            key = (side.host, task)
            self.directory = f"{place}/{os.urandom(8).hex()}"
            previous = self.images.get(key, "") if previous is None else previous
            self.tracer = side.host.popen([*within, "/usr/bin/python3", "-c", SEIZE, task, self.directory, previous],
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                          pass_fds=[s.fileno() for s in ([self.socket] if shared else []) + list(also)])
            assert self.tracer.stdout.readline() == "seized\n"
            self.key = key if shared else None

    def let_go(self):
        """Its end, as that of criu: the task may be traced by another."""
        self.socket.close()
        if self.tracer:
            self.tracer.communicate()

    def ask(self, command, obj=0, pages=0, vaddr=0, flags=0, data=b""):
        word = command | flags << 16
        header = struct.pack("<IIQQ", word, pages, vaddr, obj) if self.form == 24 else struct.pack("<IIQQQ", word, 0, pages, vaddr, obj)
        self.socket.sendall(header + data)

    def open(self, obj):
        self.ask(OPEN, obj)
        return self.socket.recv(1)

    def parent(self, obj):
        self.ask(PARENT, obj)
        return struct.unpack("<i", self.socket.recv(4))[0]

    def add(self, obj, vaddr, *pages, flags=PRESENT | LAZY):
        self.ask(ADD, obj, len(pages), vaddr, flags, b"".join(bytes([p]) * 4096 for p in pages))

    def hole(self, obj, vaddr, pages):
        self.ask(ADD, obj, pages, vaddr, PARENT_FLAG)

    def close(self, command=CLOSE):
        """The status; None when there was none."""
        self.ask(command)
        status = self.ended()
        if status == 0 and self.key:
            self.images[self.key] = f"../{os.path.basename(self.directory)}"
        return status

    def ended(self):
        try:
            told = self.socket.recv(4)
        except ConnectionError:
            told = b""
        self.let_go()
        return struct.unpack("<i", told)[0] if len(told) == 4 else None


NUMBER = 77
TASK, SHARED_OBJECT = NUMBER << 8 | 1, 5 << 8 | 2


def pages_of(side, snapshot):
    """{(image, address): byte} of what is exported of it; every page is full of one byte."""
    side.run("export", snapshot, "/tmp/out")
    out = side.host.path("/tmp/out")
    found = {}
    for image in out.glob("pagemap-*.img"):
        data, at, runs = image.read_bytes(), 8, []
        while at < len(data):
            size = struct.unpack_from("<I", data, at)[0]
            runs.append(fields(data[at + 4:at + 4 + size]))
            at += 4 + size
        content = (out / f"pages-{runs[0][1]}.img").read_bytes()
        for run in runs[1:]:
            for i in range(run[2]):
                page, content = content[:4096], content[4096:]
                assert page == page[:1] * 4096
                found[image.name, run[1] + i * 4096] = page[0]
        assert content == b""
    shutil.rmtree(out)
    side.wait_state(snapshot, "pre-dumped")
    return found


def fields(message):
    """Numbers of a protobuf message, by field."""
    out, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        out[key >> 3] = varint()
    return out


def newest(side):
    [snapshot] = side.snapshots()
    return snapshot


@pytest.mark.parametrize("form", [24, 32])
def test_pre_dumps_with_holes(local, form):
    """Three that leave to their parents what has not changed, a task and shared memory; each has all of it."""
    a, b = local.a, local.b
    client = Client(a, form)
    assert client.parent(TASK) == 0
    assert client.open(SHARED_OBJECT) == b"\0"
    client.add(SHARED_OBJECT, 0, 50, 51)
    assert client.open(TASK) == b"\0"
    client.add(TASK, 0x10000, 1, 2, 3, 4)
    assert client.close() == 0
    first = newest(b)
    assert b.state(first) == "pre-dumped" and b.snapshots()[first]["parent"] == ""

    client = Client(a, form)
    assert client.parent(TASK) == 1
    assert client.open(TASK) == b"\1"
    client.hole(TASK, 0x10000, 1)
    client.add(TASK, 0x11000, 9)
    client.hole(TASK, 0x13000, 1)  # the page between is not there any more
    client.add(TASK, 0x20000, 8)
    assert client.close() == 0
    second = newest(b)
    assert b.snapshots()[second]["parent"] == first
    assert pages_of(b, second) == {("pagemap-77.img", 0x10000): 1, ("pagemap-77.img", 0x11000): 9, ("pagemap-77.img", 0x13000): 4,
                                   ("pagemap-77.img", 0x20000): 8}

    client = Client(a, form)
    assert client.parent(TASK) == 1
    assert client.open(SHARED_OBJECT) == b"\0", "the snapshot before has no such object"
    assert client.open(TASK) == b"\1"
    client.hole(TASK, 0x10000, 2)
    client.add(SHARED_OBJECT, 0x1000, 52)
    assert client.close() == 0
    assert pages_of(b, newest(b)) == {("pagemap-77.img", 0x10000): 1, ("pagemap-77.img", 0x11000): 9, ("pagemap-shmem-5.img", 0x1000): 52}
    b.forget(newest(b))


def test_dump_that_begins_with_shared_memory(local):
    """As criu does: the process is the same for all that."""
    first_snapshot(local.a)
    client = Client(local.a, 32)
    assert client.open(SHARED_OBJECT) == b"\0"
    client.add(SHARED_OBJECT, 0, 50)
    assert client.open(TASK) == b"\1"
    client.hole(TASK, 0x10000, 2)
    assert client.close() == 0
    local.b.forget(newest(local.b))


@pytest.mark.parametrize("form", [24, 32])
def test_many_holes(local, form):
    """More than go into a batch, mixed with pages, in two connections at once."""
    a, b = local.a, local.b
    tasks = {number: numbered(a.host, number) for number in (7, 8)}
    for again in range(2):
        clients = [(Client(a, form, task), number << 8 | 1) for number, task in tasks.items()]
        for client, obj in clients:
            assert client.parent(obj) == again
            assert client.open(obj) == bytes([again])
        for i in range(700):
            for client, obj in clients:
                if again and i % 3:
                    client.hole(obj, i * 0x2000, 1)
                else:
                    client.add(obj, i * 0x2000, (i + again) % 256)
        for client, _ in clients:
            assert client.close() == 0
    for snapshot in b.snapshots():
        found = pages_of(b, snapshot)
        assert sorted(found.values()) == sorted((i + (0 if i % 3 else 1)) % 256 for i in range(700))
        b.forget(snapshot)


def test_hole_of_more_than_one_list(local):
    """criu tells of all that has not changed in one; a frame names 1 GiB at most."""
    a, b, mib = local.a, local.b, 1100
    client = Client(a, 32)
    assert client.parent(TASK) == 0
    assert client.open(TASK) == b"\0"
    client.ask(ADD, TASK, mib * 256, 0x10000000, PRESENT | LAZY)
    for _ in range(mib):
        client.socket.sendall(b"\7" * (1 << 20))
    assert client.close() == 0
    client = Client(a, 32)
    assert client.open(TASK) == b"\1"
    client.hole(TASK, 0x10000000, mib * 256)
    assert client.close() == 0
    for snapshot in b.snapshots():
        b.forget(snapshot)


def test_holes_without_end(local):
    """More than any parent has would be told in lists for hours: it is refused, and the next snapshot is whole."""
    a, b = local.a, local.b
    client = Client(a, 32)
    assert client.parent(TASK) == 0
    client.open(TASK)
    client.add(TASK, 0x1000, 1)
    assert client.close() == 0
    client = Client(a, 32)
    assert client.open(TASK) == b"\1"
    client.hole(TASK, 0, 1 << 43)
    assert client.ended() is None
    local.proxy.wait_log("File too large")
    for snapshot in b.snapshots():
        b.forget(snapshot)


def test_commands_of_old(local):
    """ADD, HOLE and OPEN as criu said them once."""
    a, b = local.a, local.b
    for again in range(2):
        client = Client(a, 24)
        assert client.parent(TASK) == again
        client.ask(OPEN_1, TASK)
        if again:
            client.ask(HOLE_1, TASK, 1, 0x1000)
            client.ask(ADD_1, TASK, 1, 0x2000, data=b"\x07" * 4096)
        else:
            client.ask(ADD_1, TASK, 2, 0x1000, data=b"\x05" * 8192)
        assert client.close() == 0
    assert pages_of(b, newest(b)) == {("pagemap-77.img", 0x1000): 5, ("pagemap-77.img", 0x2000): 7}
    b.forget(newest(b))


def first_snapshot(side):
    client = Client(side, 32)
    client.parent(TASK)
    client.open(TASK)
    client.add(TASK, 0x10000, 1, 2)
    assert client.close() == 0


def next_parent(side, **kw):
    """Whether one that asks is told of a parent."""
    client = Client(side, 32, **kw)
    told = client.parent(TASK)
    client.let_go()
    return told


@pytest.mark.parametrize("previous", ["", "../elsewhere", "/tmp/client/elsewhere", "../no/such", "again", "."])
def test_parent_that_criu_has_none_of(local, previous):
    """What criu takes for the snapshot before is not what has come here: it has tracked anew since, or sends all anyway."""
    a, b = local.a, local.b
    first_snapshot(a)
    first, directory = newest(b), Client.images[a.host, a.task]
    a.host.mkdir("/tmp/client/elsewhere")
    if previous == "again":  # the same one, which somebody has written pages to since
        previous = directory
        a.host.path(f"/tmp/client/{directory[3:]}/pagemap-{NUMBER}.img").write_bytes(b"")
    assert next_parent(a, previous=previous) == 0
    told = "cannot be seen" if previous == "../no/such" else "--prev-images-dir"
    local.proxy.wait_log(f"all memory is sent, and nothing is left to {first}: ")
    assert told in local.proxy.log()
    b.host.wait_for(lambda: set(b.snapshots()) == {first})
    b.forget(first)


@pytest.mark.parametrize("link", ["relative", "absolute"])
def test_images_in_another_mount_namespace(local, link):
    """Of criu, where the image-proxy has nothing of that path."""
    a, b = local.a, local.b
    holder = a.host.spawn(["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt && mkdir /mnt/there && exec sleep 1000"])
    a.host.wait_for(lambda: a.host.path(f"/proc/{holder}/root/mnt/there").exists())
    there = {"place": "/mnt/there", "within": ["nsenter", "-m", "-t", holder]}
    client = Client(a, 32, **there)
    client.parent(TASK)
    client.open(TASK)
    client.add(TASK, 0x10000, 1, 2)
    assert client.close() == 0
    previous = client.directory if link == "absolute" else f"../{os.path.basename(client.directory)}"
    client = Client(a, 32, previous=previous, **there)
    assert client.parent(TASK) == 1
    assert client.open(TASK) == b"\1"
    client.hole(TASK, 0x10000, 2)
    assert client.close() == 0
    b.forget(newest(b))


def test_two_connections_for_one_task(local):
    """Of one tracer: the second is refused, and the first is whole, and a parent."""
    a, b = local.a, local.b
    second = Client(a, 32, None)
    client = Client(a, 32, also=[second.socket])
    assert client.parent(TASK) == 0
    second.ask(PARENT, TASK)
    assert second.ended() is None
    local.proxy.wait_log("another connection of criu brings its memory")
    assert client.open(TASK) == b"\0"
    client.add(TASK, 0x10000, 1, 2)
    assert client.close() == 0
    assert pages_of(b, newest(b)) == {("pagemap-77.img", 0x10000): 1, ("pagemap-77.img", 0x11000): 2}
    assert next_parent(a) == 1
    b.host.wait_for(lambda: len(b.snapshots()) == 1)
    b.forget(newest(b))


@pytest.mark.parametrize("form", [24, 32])
def test_close_by_force(local, form):
    """As criu says of a connection that it was handed (--ps-socket)."""
    a, b = local.a, local.b
    client = Client(a, form)
    client.open(TASK)
    client.add(TASK, 0x10000, 1, 2)
    assert client.close(FORCE_CLOSE) == 0
    assert pages_of(b, newest(b)) == {("pagemap-77.img", 0x10000): 1, ("pagemap-77.img", 0x11000): 2}
    b.forget(newest(b))


FIRST = {
    "add": lambda c: c.add(TASK, 0x10000, 1),
    "add-of-old": lambda c: c.ask(ADD_1, TASK, 1, 0x10000, data=bytes(4096)),
    "hole": lambda c: c.hole(TASK, 0x10000, 1),
    "hole-of-old": lambda c: c.ask(HOLE_1, TASK, 1, 0x10000),
    "get": lambda c: c.ask(GET, NUMBER, 1, 0x10000),
    "close-by-force": lambda c: c.ask(FORCE_CLOSE),
}


@pytest.mark.parametrize("form", [24, 32])
@pytest.mark.parametrize("how", FIRST)
def test_first_command_that_opens_nothing(local, how, form):
    """It is not criu, so nothing that is known changes by it."""
    a, b = local.a, local.b
    first_snapshot(a)
    client = Client(a, form)
    FIRST[how](client)
    assert client.ended() is None
    assert next_parent(a) == 1
    b.host.wait_for(lambda: len(b.snapshots()) == 1)
    b.forget(newest(b))


MISBEHAVIOUR = {
    "hole-without-a-parent": lambda c: (c.open(78 << 8 | 1), c.hole(78 << 8 | 1, 0x1000, 1)),
    "hole-that-the-parent-lacks": lambda c: (c.open(TASK), c.hole(TASK, 0x50000, 1), c.ask(CLOSE)),
    "pages-of-what-was-not-opened": lambda c: (c.open(TASK), c.add(99 << 8 | 1, 0x1000, 1)),
    "absurd-count": lambda c: (c.open(TASK), c.ask(ADD, TASK, 1 << 60, 0x1000, PRESENT)),
    "no-pages": lambda c: (c.open(TASK), c.ask(ADD, TASK, 0, 0x1000, PRESENT)),
    "an-address-that-is-none": lambda c: (c.open(TASK), c.ask(ADD, TASK, 1, 0x1001, PRESENT)),
    "unknown-command": lambda c: (c.open(TASK), c.ask(12, TASK)),
    "cut-in-a-page": lambda c: (c.open(TASK), c.ask(ADD, TASK, 2, 0x1000, PRESENT, bytes(5000)), c.socket.shutdown(socket.SHUT_WR)),
    "cut-in-a-header": lambda c: (c.open(TASK), c.socket.sendall(bytes(7)), c.socket.shutdown(socket.SHUT_WR)),
    "close-first": lambda c: c.ask(CLOSE),
    "nothing": lambda c: c.socket.shutdown(socket.SHUT_WR),
    "rubbish": lambda c: c.socket.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
}


@pytest.mark.parametrize("how", MISBEHAVIOUR)
def test_misbehaviour(local, how):
    """It is told, or hung up on; nothing of it stays, and the next is served, with no parent that it cannot trust."""
    a, b = local.a, local.b
    first_snapshot(a)
    client = Client(a, 32)
    try:
        MISBEHAVIOUR[how](client)
    except ConnectionError:
        pass
    assert client.ended() in (None, -1)
    b.host.wait_for(lambda: all(s["state"] == "pre-dumped" for s in b.snapshots().values()))
    assert len(b.snapshots()) == 1
    first_snapshot(a)
    for snapshot in b.snapshots():
        b.forget(snapshot)


def test_one_byte_at_a_time(local):
    a, b = local.a, local.b
    client = Client(a, 32)
    message = struct.pack("<IIQQQ", OPEN, 0, 0, 0, TASK)
    for byte in message:
        client.socket.sendall(bytes([byte]))
        time.sleep(0.002)
    assert client.socket.recv(1) == b"\0"
    client.add(TASK, 0x1000, 3)
    assert client.close() == 0
    assert pages_of(b, newest(b)) == {("pagemap-77.img", 0x1000): 3}
    b.forget(newest(b))


def test_parent_that_the_cache_has_lost(local):
    """An error at once, and then a full one."""
    a, b = local.a, local.b
    first_snapshot(a)
    b.forget(newest(b))
    client = Client(a, 32)
    client.ask(PARENT, TASK)
    assert client.ended() is None
    assert "its parent" in local.proxy.log()
    client = Client(a, 32)
    assert client.parent(TASK) == 0
    local.proxy.wait_log(": the snapshot before has failed")
    client.open(TASK)
    client.add(TASK, 0x1000, 1)
    assert client.close() == 0
    b.forget(newest(b))


def test_out_of_room(bed):
    """criu is told by the status, or its connection ends."""
    p = Pair(bed, cache=("--memory-limit", "2M"), proxy=("--page-server", f"unix:{SOCKET}"))
    client = Client(p.a, 24, None)
    client.open(TASK)
    try:
        for i in range(1000):
            client.add(TASK, i * 4096, 1)
        assert client.close() in (None, -1)
    except ConnectionError:
        pass
    p.b.host.wait_for(lambda: p.b.snapshots() == {})
    assert p.b.used_bytes() == 0
