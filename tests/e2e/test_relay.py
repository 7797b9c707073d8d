# SPDX-License-Identifier: Apache-2.0
"""The relay: every action does what it says, seen from both ends."""

import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

RELAY = Path(__file__).with_name("relay.py")
PREAMBLE = b"preamble-16bytes"


def frame(kind, payload=b"", session=7, item=9):
    return struct.pack("<HHIIIQQ", kind, 0, len(payload), session, item, 0, 0) + payload


@pytest.fixture
def relay(hosts):
    """Starts a relay in a host and returns (process, near end, far end); sockets are made in that host's network."""
    a, _ = hosts
    started = []

    def start(*rules):
        far = in_network(a, lambda: socket.create_server(("127.0.0.1", 0)))
        argv = [sys.executable, RELAY, "--listen", "127.0.0.1:7000", "--log", "/tmp/relay.log",
                "--connect", f"127.0.0.1:{far.getsockname()[1]}", *rules]
        p = a.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(p)
        assert p.stdout.readline() == "LISTENING\n"
        near = in_network(a, lambda: socket.create_connection(("127.0.0.1", 7000)))
        start.far = far
        end, _ = far.accept()
        for s in (near, end):
            s.settimeout(5)
        return p, near, end

    yield start
    for p in started:
        p.kill()
        p.communicate()


def in_network(host, make):
    """Calls make() on a thread that is in the host's network, and so are the sockets made there."""
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    got = []

    def run():
        with open(f"/proc/{host.init_pid}/ns/net", "rb") as ns:
            assert libc.setns(ns.fileno(), 0x40000000) == 0
        got.append(make())

    t = threading.Thread(target=run)
    t.start()
    t.join()
    return got[0]


def read_exactly(s, n):
    data = b""
    while len(data) < n:
        piece = s.recv(n - len(data))
        if not piece:
            break
        data += piece
    return data


def is_reset(s):
    try:
        return s.recv(1) is None
    except ConnectionResetError:
        return True


def test_passes_everything_on(relay, hosts):
    _, near, far = relay()
    big = bytes(range(256)) * 4096
    up = PREAMBLE + frame(1, b"hello") + frame(2) + frame(3, big)
    t = threading.Thread(target=near.sendall, args=(up,))
    t.start()
    assert read_exactly(far, len(up)) == up
    t.join()
    far.sendall(PREAMBLE + frame(0x10, b"answer"))
    assert read_exactly(near, 16 + 38) == PREAMBLE + frame(0x10, b"answer")
    near.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    far.close()
    assert near.recv(1) == b""
    log = [line.split()[1:] for line in hosts[0].read("/tmp/relay.log").splitlines()]
    assert ["up", "preamble", "16", "-", "-"] in log and ["up", "3", str(len(big)), "7", "9"] in log
    assert ["down", "16", "6", "7", "9"] in log


def test_cut(relay):
    _, near, far = relay("--match", "up:2:2", "--action", "cut")
    near.sendall(PREAMBLE + frame(2, b"one") + frame(2, b"two"))
    assert read_exactly(far, 16 + 35) == PREAMBLE + frame(2, b"one")
    assert is_reset(far) and is_reset(near)


def test_cut_middle(relay):
    _, near, far = relay("--match", "up:2", "--action", "cut-middle")
    near.sendall(PREAMBLE + frame(2, bytes(100)))
    assert len(read_exactly(far, 16 + 66)) == 16 + 66
    assert is_reset(far) and is_reset(near)


def test_cut_preamble(relay):
    _, near, far = relay("--match", "down:preamble", "--action", "cut")
    near.sendall(PREAMBLE)
    assert read_exactly(far, 16) == PREAMBLE
    far.sendall(PREAMBLE)
    assert is_reset(near)


def test_close(relay):
    _, near, far = relay("--match", "up:2", "--action", "close")
    near.sendall(PREAMBLE + frame(2, b"x"))
    assert read_exactly(far, 100) == PREAMBLE + frame(2, b"x")
    assert near.recv(1) == b""


def test_stall(relay):
    _, near, far = relay("--match", "up:any", "--action", "stall")
    near.sendall(PREAMBLE + frame(1))
    assert read_exactly(far, 16) == PREAMBLE
    far.settimeout(0.3)
    with pytest.raises(TimeoutError):
        far.recv(1)
    far.sendall(PREAMBLE)
    assert read_exactly(near, 16) == PREAMBLE


def test_garbage_and_flip_and_drop(relay):
    _, near, far = relay("--match", "up:1", "--action", "garbage", "--match", "up:2", "--action", "flip",
                         "--match", "up:3", "--action", "drop")
    one, two, three, four = frame(1, b"a" * 64), frame(2, b"b" * 64), frame(3, b"c" * 64), frame(4)
    near.sendall(PREAMBLE + one + two + three + four)
    assert read_exactly(far, 16) == PREAMBLE
    assert read_exactly(far, len(one)) != one
    got = read_exactly(far, len(two))
    assert got[:32] == two[:32] and sum(x != y for x, y in zip(got, two)) == 1
    assert read_exactly(far, len(four)) == four


def test_delay(relay):
    _, near, far = relay("--match", "up:1", "--action", "delay:0.3")
    start = time.monotonic()
    near.sendall(PREAMBLE + frame(1))
    read_exactly(far, 48)
    assert 0.3 <= time.monotonic() - start < 3


def test_one_byte(relay):
    _, near, far = relay("--match", "up:preamble", "--action", "one-byte")
    sent = PREAMBLE + frame(1, bytes(1000))
    near.sendall(sent)
    assert read_exactly(far, len(sent)) == sent


def test_rate(relay):
    _, near, far = relay("--match", "up:1", "--action", "rate:100000")
    sent = PREAMBLE + frame(1, bytes(50000))
    start = time.monotonic()
    near.sendall(sent)
    assert read_exactly(far, len(sent)) == sent
    near.sendall(frame(2))
    assert read_exactly(far, 32) == frame(2)
    assert 0.4 <= time.monotonic() - start < 3


def test_one_connection_of_several(relay, hosts):
    p, near, far = relay("--match", "up:1@2", "--action", "drop")
    near.sendall(PREAMBLE + frame(1) + frame(2))
    assert read_exactly(far, 80) == PREAMBLE + frame(1) + frame(2)
    second = in_network(hosts[0], lambda: socket.create_connection(("127.0.0.1", 7000)))
    other, _ = relay.far.accept()
    other.settimeout(5)
    second.sendall(PREAMBLE + frame(1) + frame(2))
    assert read_exactly(other, 48) == PREAMBLE + frame(2)


def test_hold(relay):
    p, near, far = relay("--match", "up:5", "--action", "hold")
    near.sendall(PREAMBLE + frame(5, b"late"))
    assert p.stdout.readline() == "HELD up 5\n"
    assert read_exactly(far, 16) == PREAMBLE
    far.settimeout(0.2)
    with pytest.raises(TimeoutError):
        far.recv(1)
    p.stdin.write("go\n")
    p.stdin.flush()
    far.settimeout(5)
    assert read_exactly(far, 36) == frame(5, b"late")


def test_no_one_there(hosts):
    a, _ = hosts
    with a.popen([sys.executable, RELAY, "--listen", "127.0.0.1:7000", "--connect", "127.0.0.1:1"],
                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as p:
        p.stdout.readline()
        near = in_network(a, lambda: socket.create_connection(("127.0.0.1", 7000)))
        assert is_reset(near)
        p.kill()
