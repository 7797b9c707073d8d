# SPDX-License-Identifier: Apache-2.0
"""The mistakes that a carrier of remote images can make, each by its name, and those that others have made.

Also unmodified `criu dump --stream` and `criu restore --stream`, which speak to the daemons without godwit's commands.
"""

import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import time

import pytest

from bed import SHARED, SLOW, BedError, wait_for, workload
from godwit import ABORTED, CRIU, LIMIT, MIB, NOT_FOUND, PEER, REFUSED, Counter, Pair, check_memory, hook
from stream import Capture, Serve, in_background, read, request, write

pytestmark = pytest.mark.timeout(120 * SLOW)

SIGNALS = [signal.SIGWINCH, signal.SIGCHLD, signal.SIGURG, signal.SIGCONT, signal.SIGHUP]


def only_snapshot(side, state="ready"):
    """Waits for one snapshot in that state; returns its id."""
    return side.host.wait_for(lambda: next((i for i, s in side.snapshots().items() if s["state"] == state), None),
                              what=lambda: f"a snapshot to be {state} ({side.snapshots()})")


def send_images(pair, images):
    """One --stream session with these images; returns the snapshot's id."""
    before = set(pair.b.snapshots())
    with Capture(pair.a) as capture:
        for name, data in images.items():
            capture.put(name, data)
        capture.finish()
    pair.b.host.wait_for(lambda: [s for i, s in pair.b.snapshots().items() if i not in before and s["state"] == "ready"])
    return (set(pair.b.snapshots()) - before).pop()


def forget_started(pair):
    """A snapshot handed to a --stream client without a hook stays until it is forgotten."""
    pair.b.forget(only_snapshot(pair.b, "started"))


# ---- names ----


def test_names_are_not_cut_or_run_together(pair):
    """Names travel with their length: no byte of one is taken for the next, no NUL is needed or eaten."""
    names = ["a", "ab", "abc", "abc.img", "abc.img.1", " ", "\\", "ä.img", "-rf", "...", "%s%n", "A"]
    send_images(pair, {n: n.encode() * 3 for n in names})
    with Serve(pair.b) as serve:
        for n in reversed(names):
            assert serve.get(n) == n.encode() * 3
        for n in ("ab.", "abc.im", "", "b"):
            assert serve.ask(n) is False
    forget_started(pair)


def test_name_of_255_bytes(pair):
    longest = ["x" * 255, "y" * 254, "z" * 128, "z" * 127]
    send_images(pair, {n: n[:5].encode() for n in longest})
    with Serve(pair.b) as serve:
        assert [serve.get(n) for n in longest] == [n[:5].encode() for n in longest]
    forget_started(pair)


@pytest.mark.parametrize("name", ["x" * 256, "../escape", "/tmp/escape", "a/b", "..", ".", "", "a\tb"])
def test_name_that_is_no_name_is_refused(pair, name):
    """Nothing is written outside of the snapshot's directory, and the daemons serve the next."""
    with Capture(pair.a) as capture:
        try:
            capture.put(name, b"data")
            capture.finish()
        except (BrokenPipeError, ConnectionResetError):
            pass
        pair.a.host.wait_for(lambda: not any("snapshot" in s for s in pair.a.status()))
    assert pair.b.snapshots() == {}
    assert not pair.b.host.path("/tmp/escape").exists() and pair.b.files(f"{pair.b.workdir}/images") == []
    assert "broke the protocol" not in pair.proxy.log(), "one client's name is no reason to break the link of all"
    with Serve(pair.b) as serve:
        send_images(pair, {"good": b"1"})
        assert serve.ask(name) is False
        assert serve.get("good") == b"1"
    forget_started(pair)


# ---- images ----


def test_zero_byte_image(pair):
    """The end of an empty pipe, which is a hang-up and nothing else, is an image; what follows is not out of step."""
    images = {"empty-first": b"", "one": b"1", "empty": b"", "two": b"22"}
    send_images(pair, images)
    with Serve(pair.b) as serve:
        assert {n: serve.get(n) for n in images} == images
    forget_started(pair)


def test_absent_image_answered_at_once(pair):
    """No sooner is the snapshot there than everything not in it is known to be absent."""
    send_images(pair, {"there": b"1"})
    with Serve(pair.b) as serve:
        began = time.monotonic()
        assert not any(serve.ask(f"absent-{i}") for i in range(100))
        assert time.monotonic() - began < 1
        assert serve.get("there") == b"1"
    forget_started(pair)


def test_not_here_yet_is_not_absent(pair):
    """Asked before the dump: no answer. Asked while an image is under way: no answer either. Then: it exists."""
    with Serve(pair.b) as serve, Capture(pair.a) as capture:
        answer = in_background(serve.ask, "late")
        late = capture.open("late")
        write(late, b"first half ")
        pair.b.host.wait_for(lambda: pair.b.used_bytes() > 0)
        with pytest.raises(BedError):
            wait_for(answer.ended, 0.4)
        write(late, b"second half")
        capture.close_fd(late)
        capture.finish()
        assert answer() is True
        assert read(serve.pipe()) == b"first half second half"
    forget_started(pair)


def test_bytes_leave_while_criu_writes(pair):
    """An image is on its way long before it is whole, and so are several side by side."""
    with Capture(pair.a) as capture:
        fds = [capture.open(f"image-{i}") for i in range(3)]
        for fd in fds:
            write(fd, bytes(4 * MIB))
        pair.b.host.wait_for(lambda: pair.b.used_bytes() >= 12 * MIB)
        assert pair.proxy.peak_rss() < 16 * MIB
        for fd in fds:
            capture.close_fd(fd)
        capture.finish()
        snapshot = only_snapshot(pair.b)
    assert pair.b.snapshots()[snapshot]["bytes"] == 12 * MIB + len("inventory")
    pair.b.forget(snapshot)


def test_2000_images_at_once(pair):
    """All pipes open together, written in turns, ended in reverse; and the same on the way out."""
    count = 2000
    with Capture(pair.a) as capture:
        fds = [capture.open(f"image-{i}") for i in range(count)]
        for turn in range(3):
            for i, fd in enumerate(fds):
                write(fd, b"%d:%d " % (i, turn))
        for fd in reversed(fds):
            capture.close_fd(fd)
        capture.finish()
        snapshot = only_snapshot(pair.b)
    assert pair.b.snapshots()[snapshot]["images"] == count + 1
    with Serve(pair.b) as serve:
        fds = []
        for i in range(count):
            assert serve.ask(f"image-{i}")
            fds.append(serve.pipe())
        for i in reversed(range(count)):
            assert read(fds[i]) == b"%d:0 %d:1 %d:2 " % (i, i, i)
    forget_started(pair)


def available():
    with open("/proc/meminfo") as f:
        return int(re.search(r"MemAvailable: +(\d+)", f.read()).group(1)) * 1024


def test_image_above_4_gib(bed):
    """Neither 31 nor 32 bits hold its size; marks at the edges tell that nothing was moved."""
    if available() < 10 << 30:
        pytest.skip("less than 10 GiB of memory are available")
    pair = Pair(bed, cache=["--memory-limit", "8G"])
    chunk, size = 1 << 20, (4 << 30) + 12345
    zeros = bytes(chunk)
    marks = {at // chunk: (b"mark %d" % at).ljust(chunk, b"\0") for at in (0, 2 << 30, (4 << 30) - chunk, 4 << 30)}
    with Capture(pair.a) as capture:
        fd = capture.open("big")
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, chunk)
        for i in range(size // chunk):
            write(fd, marks.get(i, zeros))
        write(fd, marks[4096][:size % chunk])
        capture.close_fd(fd)
        capture.put("after", b"after")
        capture.finish()
        snapshot = only_snapshot(pair.b)
    assert pair.b.snapshots()[snapshot]["bytes"] == size + len(b"after") + len(b"inventory")
    with Serve(pair.b) as serve:
        assert serve.ask("big")
        fd = serve.pipe()
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, chunk)
        with os.fdopen(os.dup(fd), "rb", buffering=chunk) as f:
            assert all(f.read(chunk) == marks.get(i, zeros) for i in range(size // chunk))
            assert f.read() == marks[4096][:size % chunk]
        assert serve.get("after") == b"after"
    forget_started(pair)
    assert pair.b.used_bytes() == 0


def test_unread_image_does_not_end_a_session(pair):
    """criu closes pipes it does not want: unread, or half-read. No SIGPIPE, and the next image is whole."""
    big = os.urandom(MIB)
    send_images(pair, {"unread": big, "half": big, "wanted": big})
    with Serve(pair.b) as serve:
        assert serve.ask("unread")
        serve.close_fd(serve.pipe())
        assert serve.ask("half")
        fd = serve.pipe()
        os.read(fd, 1000)
        serve.close_fd(fd)
        assert serve.get("wanted") == big
        assert serve.get("unread") == big
    forget_started(pair)
    assert pair.cache.alive


# ---- one peer and the others ----


def test_slow_peer_does_not_block_others(pair):
    """Clients and peers that connect and then say or take nothing: a migration does not notice them."""
    send_images(pair, {"big": bytes(4 * MIB)})
    idle = []
    with Serve(pair.b) as reader, Capture(pair.a) as writer:
        assert reader.ask("big")
        reader.pipe()  # and never reads it
        writer.open("never-written")
        for side, name in ((pair.a, "proxy.sock"), (pair.b, "cache.sock")):
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            s.connect(str(side.host.path(f"{side.workdir}/{name}")))
            idle.append(s)
        silent = pair.a.host.popen(["bash", "-c", "exec 3<>/dev/tcp/10.77.0.2/9996; echo connected; sleep 100"], stdout=subprocess.PIPE)
        assert silent.stdout.readline() == "connected\n"
        counter = pair.counter()
        began = time.monotonic()
        pair.a.dump(counter.pid, "--snapshot", "quick")
        pair.b.restore("--snapshot", "quick")
        assert time.monotonic() - began < 5
        counter.runs_on(pair.b.host)
        silent.kill()
        silent.wait()
    for s in idle:
        s.close()
    forget_started(pair)
    pair.b.host.wait_for(lambda: pair.b.snapshots() == {})


def test_two_clients_keep_their_own_descriptors(pair):
    """Sessions opened together, images crossing: nothing of one ends up in another."""
    with Capture(pair.a) as one, Capture(pair.a) as two:
        fds = [one.open("x"), two.open("x"), one.open("y"), two.open("y")]
        for fd, data in zip(fds, (b"one x", b"two x", b"one y", b"two y")):
            write(fd, data)
        for session, fd in ((two, fds[3]), (one, fds[0]), (two, fds[1]), (one, fds[2])):
            session.close_fd(fd)
        two.finish()
        pair.b.host.wait_for(lambda: [s["state"] for s in pair.b.snapshots().values()].count("ready") == 1)
        one.finish()
        pair.b.host.wait_for(lambda: [s["state"] for s in pair.b.snapshots().values()].count("ready") == 2)
    with Serve(pair.b) as first, Serve(pair.b) as second, Serve(pair.b):
        got = [[s.get(n) for n in ("x", "y")] for s in (first, second)]
    assert sorted(got) == [[b"one x", b"one y"], [b"two x", b"two y"]]
    for _ in range(2):
        forget_started(pair)


def test_requests_one_byte_at_a_time(pair):
    send_images(pair, {"image": b"content"})
    with Serve(pair.b) as serve:
        for byte in request("image"):
            serve.socket.sendall(bytes([byte]))
            time.sleep(0.002)
        assert serve.answer()
        assert read(serve.pipe()) == b"content"
    forget_started(pair)


@pytest.mark.parametrize("junk", [b"", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x05\0\0\0\x0a\x64abc", b"\x02\0", b"GET / HTTP/1.0\r\n\r\n"])
@pytest.mark.parametrize("door", [Capture, Serve])
def test_junk_on_a_stream_socket(pair, door, junk):
    """The session ends; the daemons serve the next."""
    with door(pair.a if door is Capture else pair.b) as stream:
        stream.socket.sendall(junk)
        stream.socket.shutdown(socket.SHUT_WR)
        try:
            assert stream.socket.recv(10) == b""
        except ConnectionResetError:
            pass
    pair.a.host.wait_for(lambda: not any("snapshot" in s for s in pair.a.status()))
    pair.b.host.wait_for(lambda: pair.b.snapshots() == {})
    counter = pair.counter()
    pair.move(counter.pid)
    counter.runs_on(pair.b.host)


def test_stream_that_breaks_off(pair):
    """Without its last image it is no snapshot: a restore that waits is told at once."""
    restore = pair.b.begin_restore("-d").wait_asked()
    with Capture(pair.a) as capture:
        capture.put("core-1.img", b"core")
        pair.b.host.wait_for(lambda: pair.b.used_bytes() > 0)
    restore.end(code=PEER)
    assert "inventory.img" in restore.err
    assert pair.b.snapshots() == {}


def test_same_image_twice(pair):
    """Refused, and not mixed."""
    with Capture(pair.a) as capture:
        try:
            capture.put("image", b"1" * 100)
            capture.put("image", b"2" * 50)
            capture.finish()
        except (BrokenPipeError, ConnectionResetError):
            pass
        pair.a.host.wait_for(lambda: not any("snapshot" in s for s in pair.a.status()))
    assert pair.b.snapshots() == {}


# ---- signals and interruptions ----


def storm(pair, stop):
    """Signals to both daemons, as fast as they go, until stop() says so; returns how many."""
    sent = 0
    while not stop():
        for daemon in (pair.proxy, pair.cache):
            for sig in SIGNALS:
                daemon.signal(sig)
                sent += 1
        time.sleep(0.0005)
    return sent


def test_sigwinch_does_not_kill_the_daemon(pair):
    """A storm of signals that mean nothing, or a new log: interrupted system calls are gone on with."""
    path = f"{SHARED}/memory"
    pid = pair.a.host.spawn([workload("selfcheck"), "64", path])
    pair.a.host.wait_text(path, "ok 0")
    dump = pair.a.begin_dump(pid)
    assert storm(pair, lambda: dump.ended) > 200
    dump.end()
    restore = pair.b.begin_restore("-d")
    assert storm(pair, lambda: restore.ended) > 200
    restore.end()
    check_memory(pair.b.host, pid, path, 1)


def test_signals_to_the_commands(pair):
    """The same to dump and restore themselves."""
    path = f"{SHARED}/memory"
    pid = pair.a.host.spawn([workload("selfcheck"), "32", path])
    pair.a.host.wait_text(path, "ok 0")
    for command in (pair.a.begin_dump(pid), pair.b.begin_restore("-d")):
        while not command.ended:
            for sig in (signal.SIGWINCH, signal.SIGCHLD, signal.SIGURG, signal.SIGCONT):
                command.process.send_signal(sig)
            time.sleep(0.001)
        command.end()
    check_memory(pair.b.host, pid, path, 1)


def test_interrupted_dump_lets_the_process_run(pair):
    path = f"{SHARED}/memory"
    pid = pair.a.host.spawn([workload("selfcheck"), "32", path])
    pair.a.host.wait_text(path, "ok 0")
    pair.bed.slow("a", "100mbit")
    dump = pair.a.begin_dump(pid, "--snapshot", "web")
    pair.b.wait_state("web", "receiving")
    dump.process.send_signal(signal.SIGINT)
    dump.end(code=1)
    assert "interrupted" in dump.err
    pair.bed.slow("a")
    check_memory(pair.a.host, pid, path, 1)
    pair.b.wait_state("web", None)
    pair.a.take_failure()


# ---- descriptors and memory ----


def steady_fds(pair):
    """What both daemons hold when what was before has been closed: the same for half a second."""
    seen = [{d: d.fds() for d in (pair.proxy, pair.cache)}]

    def steady():
        time.sleep(0.1)
        seen.append({d: d.fds() for d in seen[0]})
        return len(seen) > 5 and all(s == seen[-1] for s in seen[-6:])

    pair.a.host.wait_for(steady, 10, lambda: f"{seen[-6:]} to stay as they are")
    return seen[-1]


def test_fds_do_not_leak(pair):
    """30 migrations: both daemons hold as many descriptors as before, and hardly more memory."""
    def migrate(n):
        for _ in range(n):
            pid = pair.a.host.spawn(["sleep", "1000"])
            pair.move(pid)
            pair.b.host.kill(pid)

    def settled(daemon, want):
        return pair.a.host.wait_for(lambda: daemon.fds() == want, 5, lambda: f"{daemon.fds()} to be {want}")

    before = steady_fds(pair)
    migrate(10)
    rss = {d: d.rss() for d in before}
    migrate(20)
    for daemon, fds in before.items():
        settled(daemon, fds)
        assert daemon.rss() < rss[daemon] + 512 * 1024


def test_fds_do_not_leak_on_errors(pair):
    """The ways that end early give theirs back, too."""
    before = steady_fds(pair)
    ghost = pair.a.host.spawn([workload("ghost"), f"{SHARED}/ghost", "2"])
    pair.a.host.wait_text(f"{SHARED}/ghost", "ok 0")
    counter = pair.counter()
    pair.a.dump(counter.pid, "--snapshot", "taken", "--leave-running")
    for i in range(5):
        pair.a.dump(ghost, "--", "--ghost-limit", "1", code=CRIU)
        pair.a.take_failure()
        pair.a.dump(counter.pid, "--snapshot", "taken", code=8)
        pair.b.restore("--snapshot", "none", "--wait", "0", code=NOT_FOUND)
        with Capture(pair.a) as capture:
            capture.open("image")
        with Capture(pair.a) as capture:
            capture.socket.sendall(request("image") + b"\0")  # no descriptor comes with the byte
        with Serve(pair.b) as serve:
            serve.socket.sendall(request("image")[:3])
        pair.a.host.run(["bash", "-c", f"exec 3<>/dev/tcp/10.77.0.2/9996; echo {i} junk >&3"])
        for side, name in ((pair.a, "proxy.sock"), (pair.b, "cache.sock")):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
                s.connect(str(side.host.path(f"{side.workdir}/{name}")))
                r, w = os.pipe()
                socket.send_fds(s, [struct.pack("<I", 99) + b"junk"], [r, w])
                os.close(r)
                os.close(w)
    pair.b.forget("taken")
    for daemon, fds in before.items():
        pair.a.host.wait_for(lambda d=daemon, f=fds: d.fds() == f, 15, lambda d=daemon, f=fds: f"{d.fds()} to be {f}")


def test_memory_is_freed_while_the_application_lives(pair):
    """A restore in the foreground stays as long as the process: the images do not."""
    path = f"{SHARED}/memory"
    pid = pair.a.host.spawn([workload("selfcheck"), "32", path])
    pair.a.host.wait_text(path, "ok 0")
    pair.a.dump(pid)
    assert pair.b.tmpfs_used() > 32 * MIB and pair.b.used_bytes() > 32 * MIB
    restore = pair.b.begin_restore()
    pair.b.host.wait_for(lambda: pair.b.snapshots() == {})
    assert pair.b.used_bytes() == 0
    pair.b.host.wait_for(lambda: pair.b.tmpfs_used() < MIB, 5, lambda: f"{pair.b.tmpfs_used()} bytes to be freed")
    assert not restore.ended
    check_memory(pair.b.host, pid, path, 1)
    pair.b.host.kill(pid)
    restore.process.communicate(timeout=10)


# ---- errors ----


def test_errno_is_not_printed_where_none_is_set(two):
    """No message ends in ": Success", whatever went wrong."""
    a, b = two
    texts = []
    cache = b.cache("--memory-limit", "8M")
    a.proxy(b)
    counter = Counter(a.host)
    pid = a.host.spawn([workload("selfcheck"), "16", f"{SHARED}/memory"])
    a.host.wait_text(f"{SHARED}/memory", "ok 0")
    texts.append(a.dump(pid, code=LIMIT).err)
    texts.append(a.dump(29999, code=NOT_FOUND).err)
    texts.append(b.restore("--wait", "0", code=NOT_FOUND).err)
    texts.append(a.restore(code=PEER).err)
    texts.append(a.run("image-cache", "--address", "10.9.9.9", "--insecure", code=1).err)
    with Capture(a) as capture:
        capture.open("image")
    a.host.run(["bash", "-c", "exec 3<>/dev/tcp/10.77.0.2/9996; echo a line of junk that is longer than a preamble >&3; cat <&3 >/dev/null"])
    restore = b.begin_restore("-d").wait_asked()
    cache.signal(signal.SIGKILL)
    cache.process.communicate()
    restore.process.wait(15)
    texts += restore.process.communicate()
    a.host.wait_for(lambda: a.link() != "up")
    texts.append(a.run("status").out)
    texts += [a.logs(), b.logs()]
    assert not any("Success" in t for t in texts), texts
    assert all(t.strip() for t in texts[:5])
    counter.runs_on(a.host)


def test_errors_reach_a_restore_that_waits(bed):
    """The dump fails, and the restore on the other host that waits for it ends with the reason."""
    pair = Pair(bed, cache=["--memory-limit", "8M"])
    pid = pair.a.host.spawn([workload("selfcheck"), "16", f"{SHARED}/memory"])
    pair.a.host.wait_text(f"{SHARED}/memory", "ok 0")
    restore = pair.b.begin_restore("-d", "--snapshot", "big").wait_asked()
    pair.a.dump(pid, "--snapshot", "big", code=LIMIT)
    restore.end(code=LIMIT)
    assert "out of memory" in restore.err
    check_memory(pair.a.host, pid, f"{SHARED}/memory", 1)


def test_source_lives_until_the_cache_has_all(bed):
    """The proxy having the bytes is not enough: cut off half-way, and again at the very end, the process runs on."""
    pair = Pair(bed, cache=["--timeout", "1"], proxy=["--timeout", "1"])
    path = f"{SHARED}/memory"
    pid = pair.a.host.spawn([workload("selfcheck"), "16", path])
    pair.a.host.wait_text(path, "ok 0")
    bed.slow("a", "100mbit")
    dump = pair.a.begin_dump(pid, "--snapshot", "web")
    pair.b.wait_state("web", "receiving")
    assert pair.a.host.pid_alive(pid)
    bed.cut("a", "b")
    dump.end(code=PEER)
    assert dump.seconds < 8
    check_memory(pair.a.host, pid, path, 1)
    pair.b.wait_state("web", None)
    bed.heal()
    bed.slow("a")
    pair.a.wait_linked(20)
    pair.move(pid)
    check_memory(pair.b.host, pid, path, 2)


# ---- the network ----


def test_port_is_the_one_that_was_said(two):
    """Not with its bytes swapped, or swapped twice."""
    a, b = two
    b.cache("--port", "9997")
    a.proxy(b, "--port", "9997")
    assert "10.77.0.2:9997 " in b.host.run(["ss", "-Htln"]).stdout
    assert "10.77.0.2:9997" in a.host.run(["ss", "-Htn"]).stdout.split()


def test_restart_on_the_same_port_at_once(pair):
    """A cache that dies with links up is started again there without waiting for old connections to fade."""
    for _ in range(3):
        pair.cache.signal(signal.SIGKILL)
        pair.cache.end(code=-9)
        pair.cache = pair.b.cache()
        pair.a.wait_linked()
    counter = pair.counter()
    pair.move(counter.pid)
    counter.runs_on(pair.b.host)


def test_peer_of_another_version_is_told_both(pair):
    """A peer of protocol 99: refused with a line that names both, on its side and in the log."""
    code = ("import socket, struct\n"
            "s = socket.create_connection(('10.77.0.2', 9996), 5)\n"
            "s.sendall(b'godwit\\r\\n' + struct.pack('<HHI', 99, 7, 0))\n"
            "d = b''\n"
            "while p := s.recv(1000): d += p\n"
            "print(d[:8], struct.unpack_from('<HH', d, 8), d[16:])\n")
    answer = pair.a.host.run(["/usr/bin/python3", "-S", "-c", code], timeout=10)
    assert answer.returncode == 0, answer.stderr
    assert "godwit" in answer.stdout and "(1, 1)" in answer.stdout
    assert "99.7" in answer.stdout, "the refused peer is told"
    pair.cache.wait_log("protocol 99.7 and this side 1.1")


@pytest.mark.parametrize("junk", ["GET / HTTP/1.0\\r\\n\\r\\n\\r\\n", "\\x00" * 64, ""])
def test_peer_that_is_not_godwit(pair, junk):
    pair.a.host.run(["bash", "-c", f"exec 3<>/dev/tcp/10.77.0.2/9996; printf '{junk}' >&3; exec 3>&-"])
    counter = pair.counter()
    pair.move(counter.pid)
    counter.runs_on(pair.b.host)
    pair.b.host.wait_for(lambda: pair.b.status()[0]["link"] == "1")


OTHER_PART = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
PLACE, PAGE, MAP_PRIVATE, MAP_FIXED = 0x100000000000, 4096, 2, 16
file = os.memfd_create("parts")
os.write(file, b"".join(bytes([65 + i]) * PAGE for i in range(20)))
def have(part):
    assert libc.mmap(PLACE, 4 * PAGE, 3, MAP_PRIVATE | MAP_FIXED, file, part * PAGE) == PLACE
def tell(*_):
    with open(sys.argv[1] + who, "w") as f:
        f.write(ctypes.string_at(PLACE, 1).decode())
have(0)
who = "child" if os.fork() == 0 else "parent"
if who == "child":
    have(16)
os.close(file)
signal.signal(signal.SIGUSR1, tell)
tell()
while True:
    signal.pause()
"""


def other_part(pair):
    """A parent and a child; tells how to ask either for what it reads of its part of the file."""
    path = f"{SHARED}/part-"
    pid = pair.a.host.spawn(["/usr/bin/python3", "-c", OTHER_PART, path])
    child = int(pair.a.host.wait_for(lambda: pair.a.host.read(f"/proc/{pid}/task/{pid}/children"), what="a child"))
    pair.a.host.wait_text(f"{path}child", "Q")
    pair.a.host.wait_text(f"{path}parent", "A")

    def check(host):
        for task, who, part in (pid, "parent", "A"), (child, "child", "Q"):
            host.path(f"{path}{who}").unlink()
            host.kill(task, signal.SIGUSR1)
            assert host.wait_for(lambda who=who: host.read(f"{path}{who}", ""), what=who) == part, who

    return pid, child, check


@pytest.mark.parametrize("way", ["dump", "migrate", "stop-and-copy"])
def test_another_part_of_a_file(bed, way):
    """A child has mapped where its parent has mapped something else of the same file: criu would give it its parent's part.
    The workload churn avoids it."""
    pair = Pair(bed, cache=["--accept"])
    pid, child, check = other_part(pair)
    if way == "dump":
        told = pair.a.dump(pid, code=REFUSED).err
        pair.a.take_failure()
    else:
        told = pair.a.migrate(pid, "10.77.0.2", *["--stop-and-copy"] * (way == "stop-and-copy"), code=ABORTED).err
    assert f"process {child} has another part of a file at 0x100000000000 than its parent {pid}" in told, told
    check(pair.a.host)
    pair.check()


# ---- unmodified criu --stream ----


def stream_dump(pair, pid, with_hook, *more):
    options = ["--action-script", hook()] if with_hook else []
    pair.a.criu("dump", "--stream", "-t", pid, "-D", pair.a.workdir, "-o", "/tmp/dump.log", "-v4", *options, *more)


def stream_restore(pair, with_hook, *more, **kw):
    options = ["--action-script", hook()] if with_hook else []
    pair.b.criu("restore", "--stream", "-d", "-D", pair.b.workdir, "-o", "/tmp/restore.log", "-v4", *options, *more, **kw)


def sweep(pair):
    """criu keeps its statistics on disk, in the images directory."""
    for side in (pair.a, pair.b):
        for path in side.host.path(side.workdir).glob("stats-*"):
            path.unlink()


WAYS = [("stream", "stream"), ("godwit", "stream"), ("stream", "godwit")]


@pytest.mark.parametrize("with_hook", [True, False], ids=["hook", "bare"])
@pytest.mark.parametrize("into, out_of", WAYS)
def test_unmodified_criu_stream(pair, into, out_of, with_hook):
    path = f"{SHARED}/memory"
    pid = pair.a.host.spawn([workload("selfcheck"), "24", path, "50"])
    pair.a.host.wait_text(path, "ok 0")
    if into == "stream":
        stream_dump(pair, pid, with_hook)
        assert not pair.a.host.pid_alive(pid)
    else:
        pair.a.dump(pid)
    snapshot = only_snapshot(pair.b)
    if out_of == "stream":
        stream_restore(pair, with_hook)
        if not with_hook:
            pair.b.wait_state(snapshot, "started")
            assert pair.b.used_bytes() > 24 * MIB
            pair.b.forget(snapshot)
    else:
        pair.b.restore()
    check_memory(pair.b.host, pid, path, 1)
    assert pair.b.snapshots() == {} and pair.b.used_bytes() == 0
    sweep(pair)


@pytest.mark.parametrize("with_hook", [True, False], ids=["hook", "bare"])
def test_criu_stream_restore_before_the_dump(pair, with_hook):
    counter = pair.counter()
    restore = in_background(stream_restore, pair, with_hook)
    pair.b.host.wait_for(lambda: pair.b.host.path("/tmp/restore.log").exists())
    stream_dump(pair, counter.pid, with_hook)
    restore()
    counter.runs_on(pair.b.host)
    if not with_hook:
        forget_started(pair)
    sweep(pair)


def test_criu_stream_dump_waits_for_the_acknowledgement(bed, criu):
    """With the hook criu kills the process only when the cache has everything; cut off, it does not."""
    pair = Pair(bed, cache=["--timeout", "1"], proxy=["--timeout", "1"])
    path = f"{SHARED}/memory"
    pid = pair.a.host.spawn([workload("selfcheck"), "16", path])
    pair.a.host.wait_text(path, "ok 0")
    bed.slow("a", "100mbit")
    dump = in_background(lambda: pair.a.host.run([criu, "dump", "--stream", "-t", str(pid), "-D", pair.a.workdir, "-o",
                                                  "/tmp/dump.log", "--action-script", hook()]))
    only_snapshot(pair.b, "receiving")
    bed.cut("a", "b")
    assert dump().returncode != 0
    check_memory(pair.a.host, pid, path, 1)
    bed.heal()
    pair.b.host.wait_for(lambda: pair.b.snapshots() == {})


def test_criu_stream_dump_leaves_running(pair):
    counter = pair.counter()
    stream_dump(pair, counter.pid, False, "--leave-running")
    counter.runs_on(pair.a.host)
    only_snapshot(pair.b)
    pair.a.host.kill(counter.pid)
    stream_restore(pair, True)
    counter.runs_on(pair.b.host)
    sweep(pair)


def test_criu_stream_restore_that_fails(pair):
    """Images that are none: criu fails, and the snapshot is not lost with it."""
    send_images(pair, {"core-1.img": b"not a core"})
    stream_restore(pair, True, code=1)
    snapshot = pair.b.host.wait_for(lambda: next((i for i, s in pair.b.snapshots().items() if s["state"] in ("ready", "started")), None))
    pair.b.forget(snapshot)
    counter = pair.counter()
    pair.move(counter.pid)
    counter.runs_on(pair.b.host)
    sweep(pair)
