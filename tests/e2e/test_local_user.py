# SPDX-License-Identifier: Apache-2.0
"""Another user of the host, without privileges, can do nothing: to the daemons, their sockets, their files, and to who
uses loopback."""

import json
import stat
import subprocess
import sys

import pytest

from failures import PREAMBLE, frame, hello
from godwit import PEER, WORKDIR, Counter, Godwit, program

NOBODY = 65534
HELLO = PREAMBLE + frame("HELLO", hello(), 0)
SYSTEM = 1

# What nobody tries, one line each: what it is, and what came of it ("done" or the name of an errno).
ATTEMPTS = r"""
import ctypes, errno, json, os, signal, socket, sys
workdir, pids = sys.argv[1], [int(p) for p in sys.argv[2:]]
told = {}
def attempt(what, call):
    try:
        call()
        told[what] = "done"
    except OSError as e:
        told[what] = errno.errorcode.get(e.errno, str(e.errno))
def connect(path, kind):
    with socket.socket(socket.AF_UNIX, kind) as s:
        s.connect(path)
def ptrace(pid):
    if ctypes.CDLL(None, use_errno=True).ptrace(16, pid, None, None) < 0:  # attach
        raise OSError(ctypes.get_errno(), "ptrace")
def read_memory(pid):
    with open(f"/proc/{pid}/mem", "rb") as f:
        f.read(1)
for name in ("cache.sock", "proxy.sock"):
    attempt(f"connect to {name}", lambda: connect(f"{workdir}/{name}", socket.SOCK_SEQPACKET))
for name in ("streamer-serve.sock", "streamer-capture.sock"):
    attempt(f"connect to {name}", lambda: connect(f"{workdir}/{name}", socket.SOCK_STREAM))
attempt("list images", lambda: os.listdir(f"{workdir}/images"))
for name in ("image-cache.log", "image-proxy.log", "cache.sock.lock"):
    attempt(f"read {name}", lambda: open(f"{workdir}/{name}").close())
    attempt(f"write {name}", lambda: open(f"{workdir}/{name}", "a").close())
    attempt(f"remove {name}", lambda: os.unlink(f"{workdir}/{name}"))
attempt("make a file", lambda: open(f"{workdir}/cache.sock.2", "w").close())
attempt("rename", lambda: os.rename(f"{workdir}/cache.sock", f"{workdir}/other"))
attempt("move it away", lambda: os.rename(workdir, workdir + ".old"))
for pid in pids:
    attempt(f"signal {pid}", lambda: os.kill(pid, signal.SIGTERM))
    attempt(f"trace {pid}", lambda: ptrace(pid))
    attempt(f"memory {pid}", lambda: read_memory(pid))
    attempt(f"descriptors {pid}", lambda: os.listdir(f"/proc/{pid}/fd"))
    attempt(f"environment {pid}", lambda: open(f"/proc/{pid}/environ").read())
print(json.dumps(told))
"""


def nobody(host, argv, **kw):
    """Runs a command as a user who is nobody else."""
    return host.run(["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--no-new-privs", *argv], **kw)


def own_copy(host):
    """godwit where every user can run it."""
    host.run(["sh", "-ec", f"mkdir -m 755 -p /tmp/bin; cp {program()} /tmp/bin/; chmod 755 /tmp/bin/godwit; chmod 1777 /tmp"], check=True)
    return "/tmp/bin/godwit"


@pytest.fixture
def held(two):
    """Daemons with a snapshot of a process; (a, b, cache, proxy)."""
    a, b = two
    cache, proxy = b.cache(), a.proxy(b)
    counter = Counter(a.host)
    a.dump(counter.pid)
    return a, b, cache, proxy


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_daemons_and_files(held, mode):
    a, b, cache, proxy = held
    allowed = {"ENOENT", "EACCES", "EPERM"}
    for g, daemon in ((a, proxy), (b, cache)):
        g.host.path(WORKDIR).chmod(mode)
        done = nobody(g.host, [sys.executable, "-c", ATTEMPTS, WORKDIR, *daemon.pids])
        told = json.loads(done.stdout)
        assert set(told.values()) <= allowed and list(told.values()).count("ENOENT") <= 12, told
        for pid in daemon.pids:
            assert told[f"signal {pid}"] == "EPERM" and told[f"memory {pid}"] == "EACCES"
        for path in g.host.path(WORKDIR).rglob("*"):
            st = path.lstat()
            assert st.st_uid == 0 and not stat.S_ISLNK(st.st_mode), path
            assert not stat.S_IMODE(st.st_mode) & 0o077, path
    b.restore()


def test_commands(held):
    """The commands of another user say in one line that they cannot, and change nothing."""
    a, b, cache, proxy = held
    before = {i: s["state"] for i, s in b.snapshots().items()}
    for g in (a, b):
        copy = own_copy(g.host)
        for argv in (["dump", "--remote", "-t", "1"], ["restore", "--remote"], ["forget", "x"], ["image-cache"], ["image-proxy"],
                     ["resolve", "x"]):
            done = nobody(g.host, [copy, *argv])
            assert done.returncode and done.stderr.count("\n") == 1, done
    assert {i: s["state"] for i, s in b.snapshots().items()} == before


# ---- work-dirs that others have made, or have a hand in ----

def plant_own(host):
    nobody(host, ["mkdir", "/tmp/w"], check=True)
    return "/tmp/w", "must belong to this user"


def plant_link(host):
    host.mkdir("/run/real")
    nobody(host, ["ln", "-s", "/run/real", "/tmp/w"], check=True)
    return "/tmp/w", "a symbolic link"


def plant_above(host):
    nobody(host, ["mkdir", "-m", "777", "/tmp/w"], check=True)
    host.mkdir("/tmp/w/godwit")
    return "/tmp/w/godwit", "above it belongs to another user"


def plant_link_above(host):
    """The last name is not theirs, the way there is."""
    nobody(host, ["mkdir", "-m", "777", "/tmp/w"], check=True)
    host.mkdir("/tmp/w/real/godwit")
    host.run(["ln", "-s", "/tmp/w/real", "/run/way"], check=True)
    return "/run/way/godwit", "above it belongs to another user"


def plant_writable(host):
    host.mkdir("/tmp/w")
    host.path("/tmp/w").chmod(0o770)
    return "/tmp/w", "writable by nobody else"


def plant_file(host):
    nobody(host, ["touch", "/tmp/w"], check=True)
    return "/tmp/w", "is no directory"


@pytest.mark.parametrize("plant", [plant_own, plant_link, plant_above, plant_link_above, plant_writable, plant_file])
def test_planted_work_dir(two, plant):
    a, _ = two
    a.host.path("/tmp").chmod(0o1777)
    path, text = plant(a.host)
    here = Godwit(a.host, path)
    counter = Counter(a.host)
    for argv in (["image-cache"], ["image-proxy"], ["migrate", "-t", counter.pid, "127.0.0.1"], ["dump", "--remote", "-t", counter.pid],
                 ["restore", "--remote"], ["resolve", "x"], ["image-cache", "--stdio", "--accept"]):
        done = here.run(*argv, code=SYSTEM)
        assert text in done.err and path in done.err and done.err.count("\n") == 1, done.err
    counter.runs_on(a.host)


def test_planted_files(two):
    """A daemon replaces nothing but sockets, and follows no link, in directories of others."""
    a, _ = two
    a.host.path("/tmp").chmod(0o1777)
    a.host.write("/run/precious", "as it was")
    nobody(a.host, ["ln", "-s", "/run/precious", "/tmp/link"], check=True)
    nobody(a.host, ["touch", "/tmp/file"], check=True)
    for name in ("link", "file"):
        done = a.run("image-cache", "--address", f"unix:/tmp/{name}", code=SYSTEM)
        assert f"listening on unix:/tmp/{name}: File exists" in done.err and done.err.count("\n") == 1
    done = a.run("image-cache", "--pidfile", "/tmp/link", code=SYSTEM)
    assert "pid file /tmp/link" in done.err and done.err.count("\n") == 1
    assert a.host.read("/run/precious") == "as it was" and a.host.path("/tmp/file").exists()


# ---- loopback ----

@pytest.mark.parametrize("target", ["127.0.0.1", "[::1]"])
def test_who_comes_by_loopback(two, target):
    """The port is open to every user of the host; the image-cache to root."""
    a, _ = two
    cache = a.daemon("image-cache", "--accept", "--address", target.strip("[]"))
    copy = own_copy(a.host)
    nobody(a.host, ["mkdir", "-m", "700", "/tmp/mine"], check=True)
    done = nobody(a.host, [copy, "check", target, "-W", "/tmp/mine"], timeout=20)
    assert done.returncode == PEER, done
    assert f"belongs to user {NOBODY}, who is not trusted" in done.stderr and "godwit keygen" in done.stderr
    cache.wait_log(f"loopback is every user's, and the other end belongs to user {NOBODY}")
    assert a.snapshots() == {} and "linked to host" not in cache.log()
    assert "criu" in a.run("check", target).out and "linked to host a" in cache.log()


SERVE = r"""
import socket
listener = socket.create_server(("127.0.0.1", 9996))
print("ready", flush=True)
while True:
    here, _ = listener.accept()
    here.settimeout(5)
    got = b""
    try:
        here.sendall(HELLO)
        while chunk := here.recv(65536):
            got += chunk
    except OSError:
        pass
    print(len(got), flush=True)
"""


def test_who_waits_on_a_unix_socket(two):
    """Nor to whoever has a socket where one was to be."""
    a, _ = two
    counter = Counter(a.host)
    server = a.host.popen(["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", sys.executable, "-c",
                           f"import os; HELLO = {HELLO!r}; os.umask(0)\n" + SERVE.replace(
                               'create_server(("127.0.0.1", 9996))', 'create_server("/tmp/cache", family=socket.AF_UNIX)')],
                          stdout=subprocess.PIPE)
    assert server.stdout.readline() == "ready\n"
    for argv in (["check", "unix:/tmp/cache"], ["migrate", "-t", counter.pid, "unix:/tmp/cache"]):
        done = a.run(*argv, code=PEER)
        assert f"unix:/tmp/cache: it belongs to user {NOBODY}, who is not trusted" in done.err
        assert server.stdout.readline() == "0\n"
    proxy = a.daemon("image-proxy", "--address", "unix:/tmp/cache")
    proxy.wait_log(f"belongs to user {NOBODY}")
    counter.runs_on(a.host)
    server.kill()


def test_who_waits_on_loopback(two):
    """Nor does root give anything to whoever has taken the port."""
    a, b = two
    counter = Counter(a.host)
    server = a.host.popen(["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", sys.executable, "-c",
                           f"HELLO = {HELLO!r}\n{SERVE}"], stdout=subprocess.PIPE)
    assert server.stdout.readline() == "ready\n"
    for argv in (["check", "127.0.0.1"], ["migrate", "-t", counter.pid, "127.0.0.1"]):
        done = a.run(*argv, code=PEER)
        assert f"belongs to user {NOBODY}, who is not trusted" in done.err
        assert int(server.stdout.readline()) < 1000  # preamble, hello, goodbye
    proxy = a.daemon("image-proxy")
    proxy.wait_log(f"belongs to user {NOBODY}")
    assert a.link() != "up"
    counter.runs_on(a.host)
    server.kill()
