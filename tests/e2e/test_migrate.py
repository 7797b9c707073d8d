# SPDX-License-Identifier: Apache-2.0
"""godwit migrate, check and resolve: every way to the other host, what they print, and who uses the library."""

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time

import pytest

from bed import REPO, SHARED, build_dir, wait_for, workload
from failures import program as program_of
from godwit import ABORTED, BUSY, MIB, NOT_FOUND, PEER, REFUSED, USAGE, Counter, check_memory, program
from live import Dirty

TARGET = "10.77.0.2"
CACHE_FILES = ("cache.sock", "cache.sock.lock", "image-cache.log", "images", "streamer-serve.sock")

# Joins standard input and output with a UNIX socket, as ssh does with a program on another host.
JOIN = """
import os, socket, sys, threading
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
def up():
    while data := os.read(0, 1 << 16):
        s.sendall(data)
    s.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := s.recv(1 << 16):
    os.write(1, data)
"""


@pytest.fixture
def accepting(two):
    """Hosts a and b, with an image-cache on b that accepts."""
    a, b = two
    b.cache("--accept")
    return a, b


class Stdio:
    """A listener on a socket of all hosts; each connection gets a `godwit image-cache --stdio` on host b."""

    def __init__(self, b):
        self.path = f"{b.host.path(SHARED)}/stdio"
        b.host.write(f"{SHARED}/join.py", JOIN)
        self.target = f"exec:exec /usr/bin/python3 {SHARED}/join.py {SHARED}/stdio"
        self.b = b
        self.running = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(self.path)
        self.socket.listen(8)
        self.socket.settimeout(10)

    def serve(self, *options):
        """Serves the next connection."""
        connection, _ = self.socket.accept()
        with connection:
            self.running.append(self.b.host.popen([program(), "image-cache", "--stdio", "--accept", "--once", *options],
                                                  stdin=connection, stdout=connection, stderr=subprocess.PIPE))
        return self.running[-1]

    def end(self):
        for p in self.running:
            assert p.wait(10) == 0, p.stderr.read()
            p.stderr.close()
        self.socket.close()


def arrives(counter, b):
    """The counter counts on at b, as a child of init."""
    counter.runs_on(b.host)
    wait_for(lambda: b.host._status(counter.pid, "PPid") == "1", 5, "init to be its parent")


# ---- the ways ----

@pytest.mark.parametrize("target", [TARGET, f"{TARGET}:9996", "fd77::2", "[fd77::2]:9996"])
def test_tcp(two, target):
    a, b = two
    b.cache("--accept", address="fd77::2" if "fd77" in target else None)
    counter = Counter(a.host)
    done = a.migrate(counter.pid, target)
    assert re.fullmatch(rf"{counter.pid} moved to b: down \d+ ms, total \d+\.\d s, [\d.]+ \wi?B sent\n", done.out), done.out
    assert done.err.count("\n") == 1 and "--insecure" in done.err and not a.host.pid_alive(counter.pid)
    arrives(counter, b)
    a.wait_gone()
    b.wait_gone(*CACHE_FILES)
    wait_for(lambda: b.files("/run/godwit/images") == [], 5, "the source's last word")


def test_unix_socket(two):
    a, b = two
    cache = b.cache("--accept", address=f"unix:{SHARED}/a socket")
    counter = Counter(a.host)
    a.migrate(counter.pid, f"unix:{SHARED}/a socket")
    arrives(counter, b)
    cache.stop()
    assert not b.host.path(f"{SHARED}/a socket").exists()


def test_program(two):
    """exec: the image-cache is started for the one migration, and leaves its log and its lock."""
    a, b = two
    stdio = Stdio(b)
    counter = Counter(a.host)
    migrate = a.begin_migrate(counter.pid, stdio.target)
    stdio.serve()
    migrate.end()
    arrives(counter, b)
    stdio.end()
    b.wait_gone("cache.sock.lock", "image-cache.log")
    a.wait_gone()
    assert "/run/godwit" not in b.host.run(["cat", "/proc/self/mounts"]).stdout


def test_two_by_programs_at_once(two):
    """Two connections that know nothing of one another share one image-cache."""
    a, b = two
    stdio = Stdio(b)
    counters = [Counter(a.host, f"count{i}") for i in range(2)]
    migrations = []
    for counter in counters:
        migrations.append(a.begin_migrate(counter.pid, stdio.target))
        stdio.serve()
    for m in migrations:
        m.end()
    for counter in counters:
        arrives(counter, b)
    stdio.end()
    b.wait_gone("cache.sock.lock", "image-cache.log")


def test_one_of_two_by_programs_is_cancelled(two):
    """The other, which shares its image-cache, does not notice."""
    a, b = two
    stdio = Stdio(b)
    pids, migrations = [], []
    for i, rate in enumerate(("1M", "8M")):
        pids.append(a.host.spawn([workload("selfcheck"), 32, f"{SHARED}/check{i}"]))
        a.host.wait_text(f"{SHARED}/check{i}", "ok 0", 20)
        migrations.append(a.begin_migrate(pids[i], stdio.target, "--bandwidth", rate))
        stdio.serve()
    b.host.wait_for(lambda: len(b.snapshots()) == 2, 10, "both to be on their way")
    migrations[0].process.send_signal(signal.SIGINT)
    migrations[0].end(code=ABORTED)
    check_memory(a.host, pids[0], f"{SHARED}/check0", 1)
    assert migrations[1].process.poll() is None, "the other was over before: it has to be slower"
    migrations[1].end()
    check_memory(b.host, pids[1], f"{SHARED}/check1", 1)
    for p in stdio.running:
        p.wait(10)
    b.wait_gone("cache.sock.lock", "image-cache.log")


def test_program_waits_for_its_criu(two):
    """The source has gone, satisfied, and criu has not ended yet: neither has the image-cache."""
    a, b = two
    stdio = Stdio(b)
    pid = a.host.spawn([workload("selfcheck"), 128, f"{SHARED}/check"])
    a.host.wait_text(f"{SHARED}/check", "ok 0", 20)
    migrate = a.begin_migrate(pid, stdio.target)
    stdio.serve()
    b.host.wait_for(lambda: "restoring" in b.host.read("/run/godwit/image-cache.log", ""), 20, "the restore to begin")
    keeper = b.host.wait_for(lambda: next((parent for p in b.host.pids() if program_of(b.host, p) == "criu" and
                                           program_of(b.host, parent := int(b.host._status(p, "PPid") or 0)) == "godwit"), None),
                             20, "criu to restore it")
    b.host.kill(keeper, signal.SIGSTOP)
    migrate.end()
    b.host.wait_for(lambda: "link to the source a: it ended" in b.host.read("/run/godwit/image-cache.log"), 10, "the source to go")
    time.sleep(0.5)
    assert list(b.snapshots().values()) != [], "its image-cache has gone"
    b.host.kill(keeper, signal.SIGCONT)
    stdio.end()
    b.wait_gone("cache.sock.lock", "image-cache.log")
    check_memory(b.host, pid, f"{SHARED}/check", 1)


def test_program_is_killed_while_it_holds(two):
    """ssh dies at the worst moment: the image-cache does not, and the source calls again."""
    a, b = two
    stdio = Stdio(b)
    counter = Counter(a.host)
    migrate = a.begin_migrate(counter.pid, stdio.target, "--timeout", "2")
    first = stdio.serve()
    b.host.wait_for(lambda: "prepared" in b.host.read("/run/godwit/image-cache.log", ""), 20, "it to be prepared")
    first.kill()
    connection = None
    stdio.socket.settimeout(3)
    try:
        stdio.serve()
    except TimeoutError:
        connection = "none"  # it had been let go before
    out, err = migrate.process.communicate(timeout=30)
    status = migrate.process.returncode
    assert status in (0, ABORTED), (status, out, err, connection)
    where = b if status == 0 else a
    counter.runs_on(where.host)
    wait_for(lambda: not (a if status == 0 else b).host.pid_alive(counter.pid), 10, "the other copy to end")


# ---- by ssh ----

class Sshd:
    """sshd on host b with keys of its own, and an ssh on host a that knows them."""

    def __init__(self, a, b):
        self.a, self.b = a, b
        directory = f"{SHARED}/ssh"
        for name in ("host", "user", "stranger"):
            b.host.mkdir(directory)
            b.host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{directory}/{name}"], check=True)
        b.host.mkdir("/run/sshd")
        environment = {name: value for name, value in os.environ.items() if name.startswith("GODWIT_")}
        environment["PATH"] = f"{build_dir()}:/usr/sbin:/usr/bin:/sbin:/bin"
        b.host.write(f"{directory}/sshd_config", f"""
            HostKey {directory}/host
            AuthorizedKeysFile {directory}/user.pub
            ListenAddress {b.host.address}:2222
            PidFile none
            PermitRootLogin yes
            StrictModes no
            UsePAM no
            SetEnv {" ".join(f'"{name}={value}"' for name, value in environment.items())}
            """)
        host_key = b.host.read(f"{directory}/host.pub")
        b.host.write(f"{directory}/known_hosts", f"[{b.host.address}]:2222 {host_key}")
        for name in ("user", "stranger"):
            b.host.write(f"{directory}/{name}_config", f"""
                IdentityFile {directory}/{name}
                IdentitiesOnly yes
                BatchMode yes
                UserKnownHostsFile {directory}/known_hosts
                GlobalKnownHostsFile none
                """)
        self.directory = directory
        self.target = f"ssh://root@{b.host.address}:2222"
        self.process = b.host.popen(["/usr/sbin/sshd", "-D", "-e", "-f", f"{directory}/sshd_config"], stderr=subprocess.PIPE)
        b.host.wait_for(lambda: a.host.run(["ssh", "-F", f"{directory}/user_config", "-p", "2222", b.host.address, "true"]).returncode == 0,
                        what="sshd")

    def env(self, who="user"):
        return dict(os.environ, GODWIT_SSH=f"ssh -F {self.directory}/{who}_config")

    def begin_migrate(self, pid, *argv, who="user"):
        return self.a.begin("migrate", "-t", pid, self.target, *argv, env=self.env(who))

    def clients(self):
        """Pids of the ssh clients on host a."""
        return [p for p in self.a.host.pids() if self.a.host.read(f"/proc/{p}/comm", "") == "ssh\n"]

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def sshd(two):
    server = Sshd(*two)
    yield server
    server.end()


def test_ssh(sshd):
    """No daemon, no open port of ours, no certificate, and nothing is left on either host."""
    a, b = sshd.a, sshd.b
    counter = Counter(a.host)
    before = b.host.pids()
    done = sshd.begin_migrate(counter.pid).end()
    assert done.out.startswith(f"{counter.pid} moved to b: ") and done.err == ""
    arrives(counter, b)
    b.wait_gone("cache.sock.lock", "image-cache.log")
    a.wait_gone()
    b.host.wait_for(lambda: set(b.host.pids()) <= {*before, counter.pid}, what="sshd and the image-cache to end")
    assert "/run/godwit" not in b.host.run(["cat", "/proc/self/mounts"]).stdout


def test_ssh_check(sshd):
    done = sshd.a.run("check", sshd.target, env=sshd.env())
    assert " b: criu" in done.out and "problem" not in done.out


def test_ssh_refuses(sshd):
    """A wrong key, and a host without godwit: what ssh says is seen, and one line of ours."""
    a, b = sshd.a, sshd.b
    counter = Counter(a.host)
    done = sshd.begin_migrate(counter.pid, "--timeout", "3", who="stranger").end(PEER)
    assert "Permission denied" in done.err and "ssh failed: try `ssh" in done.err
    b.host.write(f"{sshd.directory}/sshd_config", b.host.read(f"{sshd.directory}/sshd_config").replace(str(build_dir()), "/nowhere"))
    sshd.process.send_signal(signal.SIGHUP)
    done = sshd.begin_migrate(counter.pid, "--timeout", "3").end(PEER)
    assert "not found" in done.err
    counter.runs_on(a.host)
    a.wait_gone()


def test_ssh_two_at_once(sshd):
    a, b = sshd.a, sshd.b
    counters = [Counter(a.host, f"count{i}") for i in range(2)]
    for m in [sshd.begin_migrate(counter.pid) for counter in counters]:
        m.end()
    for counter in counters:
        arrives(counter, b)
    b.wait_gone("cache.sock.lock", "image-cache.log")


def test_ssh_is_killed(sshd):
    """When the destination holds the process: godwit calls again."""
    a, b = sshd.a, sshd.b
    counter = Counter(a.host)
    migrate = sshd.begin_migrate(counter.pid, "--timeout", "3")
    b.host.wait_for(lambda: "prepared" in b.host.read("/run/godwit/image-cache.log", "") or migrate.ended, 20, "it to be prepared")
    for pid in sshd.clients():
        a.host.kill(pid)
    out, err = migrate.process.communicate(timeout=30)
    status = migrate.process.returncode
    assert status in (0, ABORTED), (status, out, err)
    counter.runs_on((b if status == 0 else a).host)
    wait_for(lambda: not (a if status == 0 else b).host.pid_alive(counter.pid), 10, "the other copy to end")
    b.wait_gone("cache.sock.lock", "image-cache.log")


# ---- what moves ----

def test_tree(accepting):
    a, b = accepting
    pid = a.host.spawn([workload("tree"), f"{SHARED}/tree"])
    a.host.wait_for(lambda: len(a.host.pids()) >= 5, what="the tree")
    before = a.host.pids()
    a.migrate(pid, TARGET)
    wait_for(lambda: a.host.pids() == [], 5, lambda: f"the tree to end: {a.host.pids()}")
    assert set(before) <= set(b.host.pids())


def test_there_and_back(two):
    a, b = two
    a.cache("--accept")
    b.cache("--accept")
    pid = a.host.spawn([workload("selfcheck"), "64", f"{SHARED}/self"])
    a.host.wait_text(f"{SHARED}/self", "ok 0")
    a.migrate(pid, TARGET)
    check_memory(b.host, pid, f"{SHARED}/self", 1)
    a.host.wait_dead(pid)
    b.migrate(pid, "10.77.0.1")
    check_memory(a.host, pid, f"{SHARED}/self", 2)
    assert not b.host.pid_alive(pid)


# Sets key after key over one connection, and tells of each that was acknowledged.
LOAD = """
import itertools, socket
s = socket.create_connection(("127.0.0.1", 6380))
try:
    for i in itertools.count(1):
        s.sendall(b"SET key:%d %d\\r\\n" % (i, i))
        if s.recv(64) != b"+OK\\r\\n":
            break
        print(i, flush=True)
except OSError:
    pass
"""


def test_redis_under_load(accepting):
    """Every key that was acknowledged before the move is there afterwards."""
    a, b = accepting
    pid = a.host.spawn(["redis-server", "--bind", "0.0.0.0", "--port", "6380", "--protected-mode", "no", "--save", "", "--appendonly",
                        "no"])

    def cli(host, *argv):
        return host.run(["redis-cli", "-p", "6380", *argv]).stdout

    a.host.wait_for(lambda: cli(a.host, "ping") == "PONG\n", what="redis")
    loads = [a.host.popen(["/usr/bin/python3", "-c", LOAD], stdout=subprocess.PIPE) for _ in range(3)]
    a.host.wait_for(lambda: int(cli(a.host, "dbsize").split()[-1]) > 500, what="some keys")
    assert "--tcp-established" in a.migrate(pid, TARGET, code=REFUSED).err  # criu would not take it: named, with the option
    assert all(load.poll() is None for load in loads)
    a.migrate(pid, TARGET, "--", "--tcp-close")
    count = max(int(load.communicate(timeout=10)[0].split()[-1]) for load in loads)  # their connections ended with the process
    b.host.wait_for(lambda: cli(b.host, "ping") == "PONG\n", what="redis to answer")
    got = cli(b.host, "mget", *(f"key:{i}" for i in range(1, count + 1))).split()
    assert got == [str(i) for i in range(1, count + 1)]
    print(f"{count} keys")


# ---- what it prints ----

def test_json(accepting):
    a, b = accepting
    counter = Counter(a.host)
    lines = [json.loads(line) for line in a.migrate(counter.pid, TARGET, "--json").out.splitlines()]
    last = lines[-1]
    assert last["status"] == "completed" and last["result"] == "moved" and last["code"] == 0
    assert last["pid"] == counter.pid and last["host"] == "b" and last["id"].startswith(f"{counter.pid}-")
    assert 0 < last["downtime"] <= last["total-time"] and last["ram"]["transferred"] > 50_000 and last["ram"]["remaining"] == 0
    warnings = [line for line in lines if line.get("severity", "ok") != "ok"]
    assert len(warnings) == 1 and warnings[0]["topic"] == "link" and "--insecure" in warnings[0]["text"]
    phases = [line["status"] for line in lines[:-1] if "status" in line]
    assert phases[0] == "setup" and "active" in phases and "device" in phases and phases.count("completed") == 1
    assert next(line for line in lines if line.get("status") == "completed")["ram"]["remaining"] == 0
    arrives(counter, b)


def test_json_of_rounds(accepting):
    """What a later round has found is what remains when it begins."""
    a, b = accepting
    dirty = Dirty(a.host, 32, 20)
    lines = [json.loads(line) for line in a.migrate(dirty.pid, TARGET, "--json", "--downtime", "1").out.splitlines()]
    later = [line["ram"] for line in lines if line.get("status") == "active" and line["ram"].get("dirty-sync-count", 0) > 2]
    assert later and all(0 < ram["remaining"] < 32 * MIB <= ram["transferred"] for ram in later), later
    dirty.check(b.host)


def test_json_of_a_failure(accepting):
    a, _ = accepting
    counter = Counter(a.host)
    lines = a.run("migrate", "-t", counter.pid, f"{TARGET}:9", "--insecure", "--json", code=PEER).out.splitlines()
    last = json.loads(lines[-1])
    assert last["status"] == "failed" and last["result"] == "refused" and "refused" in last["error-desc"] and last["code"] == PEER


def test_progress(accepting):
    a, b = accepting
    counter = Counter(a.host)
    plain = a.migrate(counter.pid, TARGET, "--progress", "plain").err
    assert "setup: " in plain and "active: " in plain and "\033" not in plain
    a.host.wait_dead(counter.pid)
    arrives(counter, b)
    a.cache("--accept")
    bar = b.migrate(counter.pid, "10.77.0.1", "--progress", "bar").err
    assert "setup: " in bar and bar.endswith("\033[K")  # nothing of it stays


def test_dry_run(accepting):
    a, b = accepting
    counter = Counter(a.host)
    assert a.migrate(counter.pid, TARGET, "--dry-run").out == f"{counter.pid} can be moved to b\n"
    counter.runs_on(a.host)
    a.wait_gone()
    assert not b.host.pid_alive(counter.pid)


def test_dry_run_with_a_problem_here(accepting):
    """The other host is asked all the same, and what stands in the way here is still known in the end."""
    a, _ = accepting
    job = a.host.popen(["sleep", "60"])  # leads no session
    for command in (("migrate", "-t", job.host_pid, TARGET, "--insecure", "--dry-run"),
                    ("check", TARGET, "--insecure", "-t", job.host_pid)):
        last = a.run(*command, code=REFUSED).err.splitlines()[-1]
        assert last.startswith(f"godwit {command[0]}: ") and "session" in last, last
    job.kill()
    job.wait()


def test_downtime_is_what_the_process_felt(two):
    """The longest pause of a heartbeat inside and the downtime that godwit reports differ by at most 10 ms.

    The machine may take its time from either of the two, so the best of some attempts counts.
    """
    a, b = two
    a.cache("--accept")
    b.cache("--accept")
    path = f"{SHARED}/beat"
    pid = a.host.spawn([workload("heartbeat"), path])
    here, there, seen = a, b, []
    wait_for(lambda: here.host.path(path).exists(), what="the heartbeat")
    for _ in range(6):
        wait_for(lambda: len(here.host.path(path).read_bytes()) == 8, what="the heartbeat")
        here.host.kill(pid, signal.SIGUSR1)
        wait_for(lambda: struct.unpack("<Q", here.host.path(path).read_bytes())[0] < 50_000_000, 5, "it to begin anew")
        reported = json.loads(here.migrate(pid, there.host.address, "--json").out.splitlines()[-1])["downtime"]
        wait_for(lambda: struct.unpack("<Q", there.host.path(path).read_bytes())[0] > 10_000_000, 5, "it to beat again")
        felt = struct.unpack("<Q", there.host.path(path).read_bytes())[0] / 1e6
        seen.append((reported, felt))
        print(f"reported {reported:.1f} ms, felt {felt:.1f} ms")
        if abs(reported - felt) <= 10:
            return
        here.host.wait_dead(pid)
        here, there = there, here
    pytest.fail(f"(reported, felt) in ms: {seen}")


# ---- what it refuses ----

@pytest.mark.parametrize("target", ["ssh://", "unix:", "exec:", "b:0", "b:99999", "[fd77::2", "http://b/", "ssh://-oProxyCommand=x"])
def test_no_target(two, target):
    a, _ = two
    counter = Counter(a.host)
    done = a.migrate(counter.pid, target, code=USAGE)
    assert "is no target" in done.err and done.err.count("\n") == 1


def test_bad_command_lines(two):
    a, _ = two
    for argv, what in ((["-t", "1"], "TARGET"), (["b"], "-t PID"), (["-t", "99", "b", "c"], "one target"), (["-t", "x", "b"], "--tree x"),
                       (["-t", "99", "b", "--progress", "much"], "--progress"), (["-t", "99", "b", "--timeout", "0"], "--timeout"),
                       (["-t", "99", "b", "--", "-D", "/tmp"], "-D"), (["-t", "99", "b", "--bandwidth", "fast"], "a number of bytes: "),
                       (["-t", "99", "b", "--downtime"], "missing: MS"), (["-t", "99", "b", "--", "-R"], "godwit dump has"),
                       (["-t", "99", "b", "--verify", "--stop-and-copy"], "not with --stop-and-copy"),
                       (["-t", "99", "b", "--max-rounds", "0", "--verify"], "--verify compares"),
                       (["-t", "99", TARGET, "--psk-file", "/none"], "keygen"), (["-t", "99", TARGET], "no process")):
        done = a.run("migrate", *argv, code=NOT_FOUND if what == "no process" else USAGE)
        assert what in done.err and done.err.count("\n") == 1, done.err
    counter = Counter(a.host)
    done = a.run("migrate", "-t", counter.pid, TARGET, code=USAGE)
    assert "--insecure" in done.err


def test_nobody_there(two):
    a, b = two
    counter = Counter(a.host)
    done = a.migrate(counter.pid, TARGET, code=PEER)
    assert "Connection refused" in done.err and "`godwit image-cache` on that host" in done.err
    assert done.err.count("\n") == 1 and done.seconds < 5
    done = a.migrate(counter.pid, f"unix:{SHARED}/none", code=PEER)
    assert "No such file" in done.err
    for command, said in (("exit 3", "status 3"), ("no-such-command", "not found"), ("echo this is no godwit", ""), ("true", "status 0")):
        done = a.migrate(counter.pid, f"exec:{command} 2>/dev/null", "--timeout", "2", code=PEER)
        assert said in done.err, done.err
    counter.runs_on(a.host)
    a.wait_gone()


def test_cache_that_does_not_accept(two):
    a, b = two
    b.cache()
    counter = Counter(a.host)
    done = a.migrate(counter.pid, TARGET, code=REFUSED)
    assert "--accept" in done.err
    counter.runs_on(a.host)
    assert b.snapshots() == {}


def test_missing_option_is_named(accepting):
    """Pre-flight knows what criu would want, and nothing is touched."""
    a, b = accepting
    # A file of each host: the lock of a file that both hosts have is still taken while the source is frozen.
    for host in (a.host, b.host):
        host.write("/tmp/lock", "")
    pid = a.host.spawn(["flock", "/tmp/lock", "sleep", "1000"])
    a.host.wait_for(lambda: len(a.host.pids()) > 1, what="flock")
    assert "--file-locks" in a.migrate(pid, TARGET, code=REFUSED).err
    assert a.host.state(pid) == "S"
    a.migrate(pid, TARGET, "--", "--file-locks")


ONE_MEMORY = """
import ctypes, signal
CLONE_VM, libc = 0x100, ctypes.CDLL(None)
stack = ctypes.create_string_buffer(1 << 16)
child = libc.clone(libc.pause, ctypes.c_void_p(ctypes.addressof(stack) + (1 << 16)), CLONE_VM | signal.SIGCHLD, None)
print(child, flush=True)
signal.pause()
"""


def test_one_memory(accepting):
    """Two processes with one memory, as by clone(CLONE_VM), are not for criu: it is told before anything is touched."""
    a, _ = accepting
    pid = a.host.spawn(["/usr/bin/python3", "-S", "-c", ONE_MEMORY], stdout="/tmp/child")
    child = a.host.wait_for(lambda: a.host.read("/tmp/child", "").strip(), what="its child")
    for done in (a.migrate(pid, TARGET, code=REFUSED), a.run("check", "-t", pid, code=REFUSED)):
        assert f"process {child}, " in done.out + done.err and f"(with process {pid}): shares its memory" in done.out + done.err
    assert a.host.state(pid) == a.host.state(int(child)) == "S"


def test_pid_that_is_taken(accepting):
    a, b = accepting
    b.host.run(["sh", "-c", "echo 299 > /proc/sys/kernel/ns_last_pid"])
    a.host.run(["sh", "-c", "echo 299 > /proc/sys/kernel/ns_last_pid"])
    taken = [b.host.spawn(["sleep", "1000"]) for _ in range(6)]
    pid = next(p for p in (Counter(a.host, f"c{i}").pid for i in range(6)) if p in taken)
    done = a.migrate(pid, TARGET, code=REFUSED)
    assert f"{pid}" in done.err and "sleep" in done.err
    assert a.host.pid_alive(pid)


def test_file_that_differs(accepting):
    a, b = accepting
    copy = a.host.mkdir("bin") + "/counter"
    shutil.copy(workload("counter"), a.host.path(copy))
    path = f"{SHARED}/count"
    pid = a.host.spawn([copy, path])
    a.host.wait_for(lambda: a.host.path(path).exists(), what="the counter")
    assert copy in a.migrate(pid, TARGET, code=REFUSED).err  # missing
    b.host.mkdir("bin")
    b.host.write(copy, b"another")
    assert copy in a.migrate(pid, TARGET, code=REFUSED).err  # differs
    shutil.copy(workload("counter"), b.host.path(copy))
    a.migrate(pid, TARGET)
    assert b.host.pid_alive(pid)


def test_memory_limit(two):
    a, b = two
    b.cache("--accept", "--memory-limit", "8M")
    pid = a.host.spawn([workload("selfcheck"), "32", f"{SHARED}/self"])
    a.host.wait_text(f"{SHARED}/self", "ok 0")
    assert "memory" in a.migrate(pid, TARGET, code=REFUSED).err
    check_memory(a.host, pid, f"{SHARED}/self", 1)


# ---- check ----

def test_check(accepting):
    a, _ = accepting
    counter = Counter(a.host)
    alone = a.run("check").out
    assert "criu" in alone and " a: " in alone and " b: " not in alone and "problem" not in alone
    both = a.run("check", TARGET, "--insecure").out
    assert " b: criu" in both
    process = a.run("check", TARGET, "--insecure", "-t", counter.pid).out
    assert f"process {counter.pid}" in process
    found = [json.loads(line) for line in a.run("check", TARGET, "--insecure", "-t", counter.pid, "--json").out.splitlines()]
    found = [f for f in found if "severity" in f]
    assert {"criu", "kernel", "cpu", "pid", "memory", "file", "link"} <= {f["topic"] for f in found}
    assert a.run("check", "-t", "99999", code=NOT_FOUND).err.count("\n") == 1
    counter.runs_on(a.host)
    a.wait_gone()


def test_nothing_is_in_doubt(accepting):
    a, b = accepting
    assert a.run("resolve").out == b.run("resolve").out == "nothing is in doubt on this host\n"
    assert a.run("resolve", "no-such-one", "--kill", code=NOT_FOUND).err.count("\n") == 1
    assert b.run("resolve", "no-such-one", "--kill", code=NOT_FOUND).err.count("\n") == 1
    assert "no such migration" in b.run("resolve", "no-such-one", code=NOT_FOUND).err
    a.run("resolve", "x", "--kill", "--resume", code=USAGE)
    a.run("resolve", "--kill", code=USAGE)


# ---- the library ----

def test_resolve_when_nobody_answers(two):
    """What was called off stays noted until the other host has heard it, and the command says so."""
    a, b = two
    counter = Counter(a.host)
    started = a.host.path(f"/proc/{counter.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    a.host.mkdir("/run/godwit/journal")
    a.host.write("/run/godwit/journal/x", f"abort\nnonce=1\npid={counter.pid}\nstarted={started}\ninsecure=1\ncommand=counter\n"
                                          f"target={TARGET}\n")
    done = a.run("resolve", "x", "--timeout", "0.2", code=PEER)
    assert "godwit resolve x" in done.err and done.err.count("\n") == 1
    assert "abort" in a.run("resolve").out
    b.cache("--accept")
    a.run("resolve", "x", "--timeout", "5")
    assert a.run("resolve").out == "nothing is in doubt on this host\n"
    counter.runs_on(a.host)


def test_example(accepting):
    """examples/move.c, a program with a loop of its own."""
    a, b = accepting
    counter = Counter(a.host)
    done = a.host.run([str(build_dir() / "move"), str(counter.pid), f"unix:{SHARED}/none"],
                      env=dict(os.environ, GODWIT_HOOK=str(build_dir() / "godwit-hook")))
    assert done.returncode == PEER and "No such file" in done.stderr
    # The library is told of no --insecure there: by a socket, then.
    b.daemons[-1].stop()
    b.cache("--accept", address=f"unix:{SHARED}/cache")
    done = a.host.run([str(build_dir() / "move"), str(counter.pid), f"unix:{SHARED}/cache"],
                      env=dict(os.environ, GODWIT_HOOK=str(build_dir() / "godwit-hook")))
    assert done.returncode == 0 and f"process {counter.pid} runs on b" in done.stdout, (done.stdout, done.stderr)
    arrives(counter, b)


def test_installed_library(tmp_path):
    """A program is built against what `make install` puts somewhere, and sees the names of godwit.h and no others."""
    env = dict(os.environ, DESTDIR=str(tmp_path))
    subprocess.run(["/usr/bin/python3", "/usr/bin/meson", "install", "-C", build_dir(), "--no-rebuild"], env=env, check=True,
                   capture_output=True)
    pc = next(tmp_path.rglob("godwit.pc")).parent
    env = dict(os.environ, PKG_CONFIG_PATH=str(pc), PKG_CONFIG_SYSROOT_DIR=str(tmp_path))
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "godwit"], env=env, check=True, capture_output=True, text=True).stdout
    subprocess.run(["cc", "-Wall", "-Werror", str(REPO / "examples/move.c"), "-o", str(tmp_path / "move"), *flags.split()], check=True)
    library = next(tmp_path.rglob("libgodwit.so.0"))
    names = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout.split("\n")
    names = {line.split()[-1].split("@")[0] for line in names if line and " A " not in line}
    header = set(re.findall(r"\b(godwit_\w+)\(", (REPO / "include/godwit.h").read_text()))
    assert names == header - {"godwit_event_fn"}
    done = subprocess.run([tmp_path / "move"], env=dict(os.environ, LD_LIBRARY_PATH=str(library.parent)), capture_output=True, text=True)
    assert done.returncode == USAGE and "usage" in done.stderr


# ---- once, cancel ----

def test_once(two):
    a, b = two
    cache = b.cache("--accept", "--once")
    counter = Counter(a.host)
    a.migrate(counter.pid, TARGET)
    cache.end()
    arrives(counter, b)
    assert "/run/godwit" not in b.host.run(["cat", "/proc/self/mounts"]).stdout


def test_interrupted(accepting):
    a, b = accepting
    pid = a.host.spawn([workload("selfcheck"), "256", f"{SHARED}/self"])
    a.host.wait_text(f"{SHARED}/self", "ok 0", 30)
    migrate = a.begin_migrate(pid, TARGET)
    a.host.wait_for(lambda: a.host.state(pid) == "t" or migrate.ended, 20, "the freeze")
    migrate.process.send_signal(signal.SIGINT)
    migrate.end(code=ABORTED)
    assert "cancelled" in migrate.err and "runs on here" in migrate.err
    check_memory(a.host, pid, f"{SHARED}/self", 1)
    a.wait_gone()
    b.wait_gone(*CACHE_FILES)
    assert b.snapshots() == {} and b.used_bytes() == 0


def test_configuration_of_ones_own(two):
    """With --config criu is not started ahead, which takes that option, and all the rest is as ever."""
    a, b = two
    b.cache("--accept", "--accept-options", "any")
    counter = Counter(a.host)
    a.migrate(counter.pid, TARGET, "--", "--config", "/dev/null")
    counter.runs_on(b.host)


def test_same_process_twice(accepting):
    a, b = accepting
    pid = a.host.spawn([workload("selfcheck"), "128", f"{SHARED}/self"])
    a.host.wait_text(f"{SHARED}/self", "ok 0", 30)
    first = a.begin_migrate(pid, TARGET)
    a.host.wait_for(lambda: a.host.state(pid) == "t" or first.ended, 20, "the freeze")
    a.host.kill(first.process.host_pid, signal.SIGSTOP)
    assert "already" in a.migrate(pid, TARGET, code=BUSY).err
    a.host.kill(first.process.host_pid, signal.SIGCONT)
    first.end()
    check_memory(b.host, pid, f"{SHARED}/self", 1)
