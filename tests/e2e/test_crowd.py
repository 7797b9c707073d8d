# SPDX-License-Identifier: Apache-2.0
"""What those can do to an image-cache who have not shown who they are: how many, for how long, with how much memory."""

import socket
import threading
import time

import pytest

from bed import wait_for
from credentials import TARGET, x509
from failures import FRAMES, PREAMBLE, Wire, frame, hello, in_network, message, parse_message
from godwit import LIMIT, Counter

CROWD, LINKS = 64, 64
HELLO = PREAMBLE + frame("HELLO", hello(), 0)


class Crowd:
    """Connections from a host to the image-cache, each with something said on it."""

    def __init__(self, host, count, said=b""):
        self.host, self.said, self.sockets = host, said, []
        self.add(count)

    def add(self, count):
        def connect():
            made = socket.create_connection((TARGET, 9996), timeout=10)
            made.sendall(self.said)
            return made
        self.sockets += [in_network(self.host, connect) for _ in range(count)]

    def open(self):
        """How many the image-cache has not closed."""
        alive = 0
        for s in self.sockets:
            s.setblocking(False)
            try:
                while chunk := s.recv(65536):
                    pass
                assert chunk == b""
            except BlockingIOError:
                alive += 1
            except OSError:
                pass
        return alive

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for s in self.sockets:
            s.close()


@pytest.fixture
def three(bed, issued):
    """a and b with credentials, and c, who has none."""
    a, b = issued
    return a, b, bed.host("c", cidr="10.77.0.3/24", cidr6="fd77::3/64")


def test_nobody_is_kept_out_by_waiting(three):
    """The door is full of those who say nothing; a migration goes past them, data connections too."""
    a, b, c = three
    cache = b.cache("--accept", "--timeout", 60, *x509("b"))
    with Crowd(c, CROWD + 20) as crowd:
        wait_for(lambda: crowd.open() == CROWD, 10, lambda: f"the crowd to be {CROWD}: {crowd.open()}")
        counter = Counter(a.host)
        a.migrate(counter.pid, TARGET, "--streams", 4, *x509("a"))
        counter.runs_on(b.host)
        assert crowd.open() >= CROWD - 5
        assert "64 connections have not shown who they are: the oldest from where most are (10.77.0.3) is dropped" in cache.log()


def test_nobody_is_kept_out_by_coming_again(three):
    """One who comes again and again pushes out himself."""
    a, b, c = three
    cache = b.cache("--accept", *x509("b"))
    over = threading.Event()

    def come():
        while not over.is_set():
            with Crowd(c, 40):
                pass
    threads = [threading.Thread(target=come) for _ in range(3)]
    with Crowd(c, CROWD):
        for t in threads:
            t.start()
        try:
            counter = Counter(a.host)
            a.migrate(counter.pid, TARGET, "--streams", 2, *x509("a"))
            counter.runs_on(b.host)
        finally:
            over.set()
            for t in threads:
                t.join()
    assert "more lines about strangers are left out" in cache.log()


SAID = {
    "nothing": b"",
    "the beginning of a record": bytes([22, 3, 1, 0x40, 0]) + bytes(100),
    "a handshake of 60 KiB": b"".join(bytes([22, 3, 1, 0x40, 0]) + (bytes([1, 0, 0xf0, 0]) if i == 0 else b"") + bytes(0x4000 - 4 * (i == 0))
                                      for i in range(3)),
}


@pytest.mark.parametrize("said", SAID)
def test_the_slow_are_dropped(three, said):
    """Whatever they have said, and however they dribble, their time is one --timeout; and what they cost is bounded."""
    a, b, c = three
    cache = b.cache("--accept", "--timeout", 3, *x509("b"))
    before, fds = cache.rss(), len(cache.fds())
    with Crowd(c, CROWD, SAID[said]) as crowd:
        began = time.monotonic()
        most = 0
        while crowd.open() and time.monotonic() - began < 20:
            for s in crowd.sockets:
                try:
                    s.send(b"\0")
                except OSError:
                    pass
            most = max(most, cache.rss())
            time.sleep(0.2)
        assert crowd.open() == 0 and time.monotonic() - began < 15
    assert most - before < CROWD * 200 * 1024, f"{(most - before) // CROWD} bytes each"
    b.host.wait_for(lambda: len(cache.fds()) <= fds, 5, "all descriptors to be closed")
    assert "did not finish the handshake within 3 s" in cache.log() or "TLS:" in cache.log()


def test_early_frames_are_small(two):
    """A hello has no 64 KiB."""
    a, b = two
    cache = b.cache()
    header = bytes([1, 0, 0, 0]) + (4097).to_bytes(4, "little") + bytes(24)
    with Crowd(a.host, 1, PREAMBLE + header) as crowd:
        wait_for(lambda: crowd.open() == 0, 5, "it to be refused")
    cache.wait_log("hello frame of 4097 bytes before hello, at most 4096")


def test_data_connections_are_no_links(two):
    """Whatever else is linked, a session has its streams; only one link more is one too many, and is told so."""
    a, b = two
    cache = b.cache("--accept", "--timeout", 30)

    def linked():
        return next(int(s["link"]) for s in b.status() if "link" in s)
    with Crowd(a.host, LINKS - 1, HELLO) as crowd:
        b.host.wait_for(lambda: linked() == LINKS - 1, 10, lambda: f"links: {linked()}")
        counter = Counter(a.host)
        a.migrate(counter.pid, TARGET, "--streams", 8)
        counter.runs_on(b.host)
        b.host.wait_for(lambda: linked() == LINKS - 1, 10, lambda: f"links: {linked()}")
        crowd.add(1)
        b.host.wait_for(lambda: linked() == LINKS, 10, lambda: f"links: {linked()}")
        done = a.run("check", TARGET, "--insecure", code=LIMIT)
        assert "the image-cache there serves 64 links already" in done.err
        assert crowd.open() == LINKS
    b.host.wait_for(lambda: linked() == 0, 10, lambda: f"links: {linked()}")
    a.run("check", TARGET, "--insecure")
    assert "serves 64 links already" in cache.log()


def test_more_links_than_there_are(two):
    """One that only waits, beyond the number, is told in the end."""
    a, b = two
    cache = b.cache("--timeout", 2)
    proxies = [a.daemon("image-proxy", "--address", TARGET, "--insecure")]
    a.wait_linked()
    with Crowd(a.host, LINKS, HELLO) as crowd:
        def beat():
            for s in crowd.sockets:
                try:
                    s.send(frame("HEARTBEAT", b"", 0))
                except OSError:
                    pass
            time.sleep(0.2)
            return "the image-cache there serves 64 links already" in cache.log()
        wait_for(beat, 15, "one to be sent away")
        assert crowd.open() == LINKS - 1
    assert proxies[0].alive and a.link() == "up"


def test_data_connections_go_with_their_session(two):
    """Or a source that begins one session after the other would have any number of them."""
    a, b = two
    cache = b.cache("--timeout", 3)
    link = Wire(in_network(a.host, lambda: socket.create_connection((TARGET, 9996)))).greet()
    link.send(frame("SNAPSHOT_BEGIN", message(f1="x", f9=2), 1))
    token = parse_message(link.read_until("SNAPSHOT_ACCEPT")[3])[1]
    data = Wire(in_network(a.host, lambda: socket.create_connection((TARGET, 9996)))).greet()
    data.send(frame("STREAM_JOIN", message(f1=token, f2=1), 1))
    data.read_until("STREAM_JOINED")
    with pytest.raises(TimeoutError):
        data.read(4)  # as long as its session lasts
    link.send(frame("SNAPSHOT_ABORT", message(f1=10, f2="enough"), 1))
    assert data.read(6)[0] == FRAMES["GOODBYE"]
    cache.wait_log("the session of this data connection is over")
    link.send(frame("SNAPSHOT_BEGIN", message(f1="y"), 2))
    link.read_until("SNAPSHOT_ACCEPT")
    link.close()
    data.close()
