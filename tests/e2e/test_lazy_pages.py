# SPDX-License-Identifier: Apache-2.0
"""Unmodified criu lazy-pages --page-server, which asks the image-cache for the pages of a snapshot."""

import re
import signal
import socket
import struct
import sys

import pytest

from bed import SHARED, criu, workload
from failures import in_network
from godwit import BUSY, USAGE, check_memory, make_hosts
from live import SLOW
from live import Dirty
from test_local_user import nobody

pytestmark = pytest.mark.timeout(120 * SLOW)

PORT = 9997
PAGE = 4096
GET, ADD, CLOSE = 7, 6, 0x1023
IMAGES, WORK = "/tmp/lazy", "/tmp/work"


@pytest.fixture
def asked(bed):
    """Two hosts, linked; the image-cache of b answers criu."""
    a, b = make_hosts(bed, "a", "b")
    cache = b.cache("--page-server", PORT)
    a.proxy(b)
    b.host.run(["mkdir", "-p", WORK], check=True)
    yield a, b, cache
    assert b.daemons[-1].alive


def restore_lazily(b, pid):
    """Both of unmodified criu; returns when all of the memory is there."""
    lazy = b.host.popen([criu(), "lazy-pages", "--page-server", "--address", "127.0.0.1", "--port", str(PORT),
                         "-D", IMAGES, "-W", WORK, "-o", "/tmp/lazy-pages.log"])
    b.host.wait_for(lambda: b.host.path(f"{WORK}/lazy-pages.socket").exists(), what="criu lazy-pages to listen")
    b.criu("restore", "-d", "--lazy-pages", "-D", IMAGES, "-W", WORK, "-o", "/tmp/restore.log")
    assert lazy.wait(60) == 0, b.host.read("/tmp/lazy-pages.log", "")
    assert b.host.pid_alive(pid)


def read_bytes(b, cache):
    """What the cache has read by read() and its like, so far."""
    text = b.host.read(f"/proc/{cache.pid}/io")
    return int(text.split("rchar: ")[1].split()[0])


def exported_pages(b):
    """How many pages criu is going to ask for: by the size of what is not there."""
    return sum(p.stat().st_size for p in b.host.path(IMAGES).glob("pages-*.img")) // PAGE


@pytest.mark.parametrize("chained", [False, True], ids=["whole", "chain"])
def test_restore(asked, chained):
    """The process runs, all of its memory is right, and not a byte was read that was not asked for."""
    a, b, cache = asked
    dirty = Dirty(a.host, 64, 20)
    if chained:
        a.pre_dump(dirty.pid)
        a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--snapshot", "end")
    b.run("export", "--lazy", "end", IMAGES)
    assert exported_pages(b) < 2048, "most of it stays in the image-cache"
    before = read_bytes(b, cache)
    restore_lazily(b, dirty.pid)
    dirty.check(b.host)
    cache.wait_log("pages sent")
    sent = int(cache.log().split(" pages sent")[0].split()[-1])
    read = read_bytes(b, cache) - before
    assert sent >= 64 * 256
    assert sent * PAGE <= read < sent * PAGE + 256 * 1024, f"{read} bytes were read for {sent * PAGE}"
    b.wait_state("end", "ready")
    b.forget("end")
    assert b.used_bytes() == 0


def test_restore_of_every_kind_of_memory(asked):
    """Shared memory, files and stacks are in the directory; the rest is asked for."""
    a, b, cache = asked
    path = f"{SHARED}/self"
    pid = a.host.spawn([workload("selfcheck"), 32, path])
    a.host.wait_text(path, "ok")
    a.dump(pid, "--snapshot", "end")
    b.run("export", "--lazy", "end", IMAGES)
    restore_lazily(b, pid)
    check_memory(b.host, pid, path, 1)
    b.wait_state("end", "ready")


def test_pre_dump_is_not_exported(asked):
    a, b, cache = asked
    dirty = Dirty(a.host, 4)
    a.pre_dump(dirty.pid, "--snapshot", "s0")
    assert "is a pre-dump" in b.run("export", "--lazy", "s0", IMAGES, code=USAGE).err


# ---- a client of our own ----


class Client:
    """Asks as criu does, in one of both forms."""

    def __init__(self, b, long=True):
        self.long = long
        self.socket = in_network(b.host, lambda: socket.create_connection(("127.0.0.1", PORT), 20))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.socket.close()

    def get(self, pid, vaddr, pages, command=GET):
        if self.long:
            self.socket.sendall(struct.pack("<IIQQQ", command, 0, pages, vaddr, pid))
        else:
            self.socket.sendall(struct.pack("<IIQQ", command, pages, vaddr, pid))

    def answer(self, pid, vaddr):
        head = self.receive(32 if self.long else 24)
        if self.long:
            command, _, pages, at, task = struct.unpack("<IIQQQ", head)
        else:
            command, pages, at, task = struct.unpack("<IIQQ", head)
        assert (command, at, task) == (4 << 16 | ADD, vaddr, pid)
        return self.receive(pages * PAGE)

    def receive(self, length):
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise ConnectionResetError
            data += part
        return data

    def ended(self):
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


class Held:
    """A snapshot of a process, and what its memory was from an address on."""

    def __init__(self, asked):
        self.a, self.b, self.cache = asked
        self.dirty = Dirty(self.a.host, 24)
        self.pid = self.dirty.pid
        maps = re.findall(r"^(\w+)-(\w+) rw-p 00000000 00:00 0\s*$", self.a.host.read(f"/proc/{self.pid}/maps"), re.MULTILINE)
        self.start, self.end = max(((int(s, 16), int(e, 16)) for s, e in maps), key=lambda area: area[1] - area[0])
        with self.a.host.path(f"/proc/{self.pid}/mem").open("rb") as memory:
            memory.seek(self.start)
            self.memory = memory.read(64 * PAGE)
        self.a.dump(self.pid, "--snapshot", "end")

    def client(self, long=True):
        return Client(self.b, long)

    def is_whole(self):
        """Nobody has it any more, and it can be asked for."""
        self.b.wait_state("end", "ready")
        with self.client() as client:
            client.get(self.pid, self.start, 1)
            assert client.answer(self.pid, self.start) == self.memory[:PAGE]
        self.b.wait_state("end", "ready")


@pytest.fixture
def held(asked):
    held = Held(asked)
    yield held
    held.is_whole()


@pytest.mark.parametrize("long", [False, True], ids=["24", "32"])
def test_both_forms(held, long):
    """Single pages, many, several requests at once, and what lies behind the end of the memory."""
    with held.client(long) as client:
        for first, pages in ((0, 1), (5, 20), (63, 1)):
            client.get(held.pid, held.start + first * PAGE, pages)
            assert client.answer(held.pid, held.start + first * PAGE) == held.memory[first * PAGE:(first + pages) * PAGE]
        for first in range(8):
            client.get(held.pid, held.start + first * PAGE, 1)
        for first in range(8):
            assert client.answer(held.pid, held.start + first * PAGE) == held.memory[first * PAGE:(first + 1) * PAGE]
        client.get(held.pid, held.start, 1024 if long else 1 << 20)
        assert client.answer(held.pid, held.start)[:len(held.memory)] == held.memory
        client.get(0, 0, 0, command=CLOSE)
        assert client.receive(4) == bytes(4) and client.ended()


BAD = {
    "command": (lambda h, c: c.get(h.pid, h.start, 1, command=99), "command 99, where pages are asked for"),
    "page-server": (lambda h, c: c.get(h.pid << 8 | 1, 0, 0, command=4), "command 4, where pages are asked for"),
    "no-task": (lambda h, c: c.get(h.pid + 1000, h.start, 1), "no snapshot that is ready has a task"),
    "absurd-task": (lambda h, c: c.get(1 << 40, h.start, 1), "which cannot be"),
    "outside": (lambda h, c: c.get(h.pid, 0x10000, 1), "has no page at 0x10000"),
    "no-address": (lambda h, c: c.get(h.pid, h.start + 1, 1), "which cannot be"),
    "absurd-address": (lambda h, c: c.get(h.pid, 1 << 60, 1), "which cannot be"),
    "cut": (lambda h, c: (c.socket.sendall(b"\7\0\0\0" + bytes(16)), c.socket.shutdown(socket.SHUT_WR)),
            "in the midst of a request"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("bound", [False, True], ids=["first", "later"])
def test_bad_requests(held, what, bound):
    """A line, and the end of that connection; another goes on."""
    bad, line = BAD[what]
    with held.client() as client:
        if bound:
            client.get(held.pid, held.start, 1)
            client.answer(held.pid, held.start)
            assert held.b.state("end") == "restoring"
        bad(held, client)
        assert client.ended()
    held.cache.wait_log(line if not (bound and what == "no-task") else "the memory of task")


@pytest.mark.parametrize("pages", [0, 1 << 20, 1 << 60])
def test_absurd_counts(held, pages):
    """In the long form a count that is none of criu's looks like the short form, and is refused like any other."""
    with held.client() as client:
        client.get(held.pid, held.start, pages)
        assert client.ended()
    held.cache.wait_log("which cannot be" if pages != 1 << 20 else "page-server: ")
    with held.client(long=False) as client:
        client.get(held.pid, held.start, 0)
        assert client.ended()


def test_cut_in_the_midst_of_pages(held):
    with held.client() as client:
        client.get(held.pid, held.start, 1024)
        client.receive(32 + PAGE // 2)
    held.cache.wait_log("pages sent")


def test_two_clients(held):
    """The first has it: another, a restore and forget are told so."""
    with held.client() as first:
        first.get(held.pid, held.start, 1)
        first.answer(held.pid, held.start)
        with held.client() as second:
            second.get(held.pid, held.start, 1)
            assert second.ended()
        held.b.forget("end", code=BUSY)
        held.b.restore("--snapshot", "end", code=BUSY)
        first.get(held.pid, held.start + PAGE, 1)
        assert first.answer(held.pid, held.start + PAGE) == held.memory[PAGE:2 * PAGE]


def test_killed_cache(held):
    """What was asked for is there for the next one."""
    with held.client() as client:
        client.get(held.pid, held.start, 1)
        client.answer(held.pid, held.start)
        held.cache.signal(signal.SIGKILL)
        held.cache.end(-signal.SIGKILL)
        assert client.ended()
    held.cache = held.b.cache("--page-server", PORT)
    held.is_whole()
    held.cache.signal(signal.SIGTERM)
    held.cache.end()
    held.cache = held.b.cache("--page-server", PORT)


def test_two_snapshots_of_a_task(asked):
    """Which is asked for is not known, and not guessed."""
    a, b, cache = asked
    dirty = Dirty(a.host, 4)
    a.dump(dirty.pid, "--snapshot", "one", "--leave-running")
    a.dump(dirty.pid, "--snapshot", "two", "--leave-running")
    with Client(b) as client:
        client.get(dirty.pid, 0x10000, 1)
        assert client.ended()
    cache.wait_log(f"both snapshot one and two have a task {dirty.pid}")
    b.forget("one")
    with Client(b) as client:
        client.get(dirty.pid, 0x10000, 1)
        assert client.ended()
    cache.wait_log("has no page at 0x10000")


def test_another_user(held):
    """Loopback is everybody's; memory is not."""
    ask = struct.pack("<IIQQQ", GET, 0, 1, held.start, held.pid)
    program = ("import socket, sys\ns = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 20)\n"
               "s.sendall(bytes.fromhex(sys.argv[2]))\n"
               "try:\n    print(len(s.recv(100)))\nexcept ConnectionResetError:\n    print(0)\n")
    assert nobody(held.b.host, [sys.executable, "-c", program, PORT, ask.hex()]).stdout == "0\n"
    held.cache.wait_log("page-server: ")
    assert held.b.state("end") == "ready"


def test_silent_and_many(held):
    """Those who ask for nothing are dropped in the end, and meanwhile there is only room for so many."""
    idle = [held.client() for _ in range(70)]
    assert idle[-1].ended()
    for client in idle:
        client.socket.close()
    held.b.host.wait_for(lambda: held.cache.fds().count("socket") < 20, what="the cache to close them")
