# SPDX-License-Identifier: Apache-2.0
"""The four commands between two hosts: what moves, how it is asked for, and what is answered."""

import itertools
import os
import random
import re
import select
import signal
import socket
import subprocess
import time

import pytest

from bed import SHARED, SLOW, copy_tree, wait_for, workload
from godwit import BUSY, CRIU, LIMIT, MIB, NOT_FOUND, PEER, REFUSED, USAGE, Counter, Godwit, Pair, check_memory, program

pytestmark = pytest.mark.timeout(120 * SLOW)


# ---- what moves ----


def test_counter(pair):
    counter = pair.counter()
    pair.move(counter.pid)
    counter.runs_on(pair.b.host)
    assert counter.face().longest_gap < 10e9


def test_tree(pair):
    """Threads, pipes with data in them, a pty with a session on it, pending signals, timers."""
    a, b, path = pair.a.host, pair.b.host, f"{SHARED}/tree"
    pid = a.spawn([workload("tree"), path])

    def rounds():
        words = a.read(path, "round 0").split()
        assert words[0] == "round", " ".join(words)
        return int(words[1])

    wait_for(lambda: rounds() > 220, 20, "the tree to begin")
    tasks = a.pids()
    pair.move(pid)
    before = rounds()
    wait_for(lambda: rounds() > before + 220, 20, "the tree to go on")
    assert b.pids() == sorted([*[p for p in tasks if p not in pair.proxy.pids], *pair.cache.pids])


@pytest.mark.parametrize("dirty_mbps", [0, 200])
def test_selfcheck(pair, dirty_mbps):
    """Every bit of private, shared, sparse, read-only, memfd and file memory; with writes going on until the freeze."""
    path = f"{SHARED}/memory"
    pid = pair.a.host.spawn([workload("selfcheck"), "48", path, dirty_mbps])
    pair.a.host.wait_text(path, "ok 0")
    check_memory(pair.a.host, pid, path, 1)
    pair.move(pid)
    check_memory(pair.b.host, pid, path, 2)


REDIS = ["redis-server", "--save", "", "--appendonly", "no", "--enable-debug-command", "yes", "--daemonize", "no",
         "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/", "--logfile", ""]


def redis(host, *words):
    return host.run(["redis-cli", *words], timeout=30, check=True).stdout.strip()


def test_redis_with_256_mib(pair):
    a, b = pair.a.host, pair.b.host
    pid = a.spawn(REDIS, stdout="/dev/null")
    a.wait_for(lambda: a.run(["redis-cli", "ping"]).stdout == "PONG\n", what="redis")
    redis(a, "DEBUG", "POPULATE", "65536", "key", "4096")
    redis(a, "SET", "told", "before")
    redis(a, "RPUSH", "list", *map(str, range(1000)))
    digest, size = redis(a, "DEBUG", "DIGEST"), redis(a, "DBSIZE")
    assert size == "65538" and int(digest, 16)
    assert a.rss(pid) > 256 * MIB
    pair.move(pid)
    assert redis(b, "DEBUG", "DIGEST") == digest and redis(b, "DBSIZE") == size
    assert redis(b, "GET", "told") == "before" and redis(b, "SET", "told", "after") == "OK"
    assert redis(b, "DEBUG", "DIGEST") != digest


PYTHON = """
import http.server, itertools, os, random, sys, threading
def squares():
    total = 0
    for i in itertools.count():
        total += i * i
        yield i, total
state, chance = squares(), random.Random(7)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        i, total = next(state)
        body = f"{i} {total} {chance.random()}".encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler)
server.serve_forever()
"""

GET = "import sys, urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/', timeout=5).read().decode())"

PYTHON_PROGRAM = "/usr/bin/python3"


def test_python(pair):
    """A web server whose answers come from a generator, half-way through, and a random one."""
    a, b = pair.a.host, pair.b.host
    pid = a.spawn([PYTHON_PROGRAM, "-S", "-c", PYTHON])

    def ask(host):
        return host.run([PYTHON_PROGRAM, "-S", "-c", GET]).stdout.strip()

    a.wait_for(lambda: ":8000" in a.run(["ss", "-Htln"]).stdout, what="the server")
    chance = random.Random(7)
    want = [f"{i} {t} {chance.random()}" for i, t in zip(range(20), itertools.accumulate(i * i for i in range(20)))]
    assert [ask(a) for _ in range(7)] == want[:7]
    pair.move(pid)
    assert [ask(b) for _ in range(7)] == want[7:14]


NODE = """
const fs = require('fs');
function* numbers() { let a = 0n, b = 1n; for (;;) { yield a; [a, b] = [b, a + b]; } }
const state = numbers(), seen = new Map();
let n = 0;
setInterval(() => {
  const value = state.next().value;
  seen.set(n, value);
  if (n > 1 && seen.get(n) !== seen.get(n - 1) + seen.get(n - 2)) { fs.writeFileSync(process.argv[1], 'corrupt'); process.exit(1); }
  n += 1;
  fs.writeFileSync(process.argv[1] + '.new', `${n} ${value % 1000003n}\\n`);
  fs.renameSync(process.argv[1] + '.new', process.argv[1]);
}, 5);
"""


def test_node(pair):
    a, b, path = pair.a.host, pair.b.host, f"{SHARED}/node"
    pid = a.spawn(["node", "-e", NODE, path], env={**os.environ, "UV_USE_IO_URING": "0"})

    def state():
        n, value = map(int, a.read(path).split())
        last, following = 0, 1
        for _ in range(n - 1):
            last, following = following, last + following
        assert value == last % 1000003
        return n

    a.wait_for(lambda: a.read(path, "") and state() > 50, what="node")
    if "anon_inode:[io_uring]" in a.fds(pid).values():
        # Some builds cannot do without: libuv of Debian 13.
        refused = pair.a.run("check", "-t", pid, code=REFUSED)
        assert "[io_uring]" in refused.out and "kernel.io_uring_disabled" in refused.out
        pytest.skip("this node uses io_uring, which CRIU cannot take along")
    pair.move(pid)
    before = state()
    b.wait_for(lambda: state() > before + 50, what="node to go on")


def test_there_and_back(pair):
    """To b, back to a, and to b again; each host with an image-cache and an image-proxy in one work-dir."""
    a, b, counter = pair.a, pair.b, pair.counter()
    a.cache("--port", "9997")
    b.proxy(a, "--port", "9997")
    for source, target in ((a, b), (b, a), (a, b)):
        source.dump(counter.pid)
        source.host.wait_dead(counter.pid)
        target.restore()
        counter.runs_on(target.host)


# ---- waiting ----


def test_restore_before_dump(pair):
    """It waits, and goes on when the snapshot is there."""
    counter = pair.counter()
    restore = pair.b.begin_restore("-d", "--json")
    with pytest.raises(Exception, match="waited"):
        wait_for(lambda: restore.ended, 0.7, "-")
    dump = pair.a.dump(counter.pid, "--json")
    restore.end()
    assert restore.json["snapshot"] == dump.json["snapshot"]
    assert restore.json["seconds"] < restore.seconds, "the time it waited is not counted"
    counter.runs_on(pair.b.host)


def test_restore_by_name_waits_for_that_name(pair):
    one, two = pair.counter(name="one"), pair.counter(name="two")
    restore = pair.b.begin_restore("-d", "--snapshot", "second")
    pair.a.dump(one.pid, "--snapshot", "first")
    pair.b.wait_state("first", "ready")
    assert not restore.ended
    pair.a.dump(two.pid, "--snapshot", "second")
    restore.end()
    two.runs_on(pair.b.host)
    assert not pair.b.host.pid_alive(one.pid)
    pair.b.restore()
    one.runs_on(pair.b.host)


@pytest.mark.parametrize("which", [[], ["--snapshot", "none"]])
def test_restore_with_no_dump_ever(pair, which):
    done = pair.b.restore("--wait", "0.5", *which, code=NOT_FOUND)
    assert 0.4 < done.seconds < 3
    assert "the wait is over" in done.err


def test_dump_waits_for_the_cache(two):
    """A proxy whose cache is not there yet dumps as soon as it is."""
    a, b = two
    a.proxy(b, linked=False)
    counter = Counter(a.host)
    dump = a.begin_dump(counter.pid)
    b.host.wait_for(lambda: any(s.get("state") == "waiting for the link" for s in a.status()))
    counter.runs_on(a.host)
    b.cache()
    dump.end()
    b.restore()
    counter.runs_on(b.host)


def test_dump_without_a_cache(two):
    """With --timeout the proxy gives up, and the process has not been touched."""
    a, b = two
    a.proxy(b, "--timeout", "0.5", linked=False)
    counter = Counter(a.host)
    done = a.dump(counter.pid, code=PEER)
    assert "10.77.0.2" in done.err and "Connection refused" in done.err
    counter.runs_on(a.host)
    assert a.is_clean()


# ---- snapshot ids ----


def test_snapshot_id_chosen(pair):
    counter = pair.counter()
    name = "Web-1_2." + "x" * 56
    done = pair.a.dump(counter.pid, "--snapshot", name, "--json")
    assert done.json["snapshot"] == name and done.json["pid"] == counter.pid and done.json["bytes"] > 100000
    assert list(pair.b.snapshots()) == [name]
    done = pair.b.restore("--snapshot", name, "--json")
    assert done.json["snapshot"] == name


def test_snapshot_ids_generated(pair):
    counter = pair.counter()
    ids = {pair.a.dump(counter.pid, "--leave-running", "--json").json["snapshot"] for _ in range(3)}
    assert len(ids) == 3 and all(i.startswith(f"{counter.pid}-") for i in ids)
    assert set(pair.b.snapshots()) == ids
    for i in ids:
        pair.b.forget(i)


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "x" * 65, "a b", "ä"])
def test_snapshot_id_refused(pair, name):
    counter = pair.counter()
    if name:
        done = pair.a.dump(counter.pid, "--snapshot", name, code=USAGE)
        assert "snapshot id" in done.err
    pair.b.restore("--snapshot", name or "/", "--wait", "0", code=USAGE)
    counter.runs_on(pair.a.host)


def test_snapshot_id_duplicate(pair):
    one, two = pair.counter(name="one"), pair.counter(name="two")
    pair.a.dump(one.pid, "--snapshot", "same")
    done = pair.a.dump(two.pid, "--snapshot", "same", code=BUSY)
    assert "same" in done.err and "exists already" in done.err
    two.runs_on(pair.a.host)
    pair.b.restore()
    one.runs_on(pair.b.host)
    pair.a.dump(two.pid, "--snapshot", "same")
    pair.b.restore("--snapshot", "same")
    two.runs_on(pair.b.host)


def test_restore_must_say_which(pair):
    one, two = pair.counter(name="one"), pair.counter(name="two")
    pair.a.dump(one.pid, "--snapshot", "one")
    pair.a.dump(two.pid, "--snapshot", "two")
    done = pair.b.restore(code=BUSY)
    assert "2 snapshots" in done.err and "--snapshot" in done.err
    for counter, name in ((two, "two"), (one, "one")):
        pair.b.restore("--snapshot", name)
        counter.runs_on(pair.b.host)


# ---- several at once ----


def test_several_at_once(pair):
    """Four dumps and four restores, all under way together."""
    counters = [pair.counter(name=f"c{i}") for i in range(4)]
    restores = [pair.b.begin_restore("-d", "--snapshot", f"s{i}") for i in range(4)]
    dumps = [pair.a.begin_dump(c.pid, "--snapshot", f"s{i}") for i, c in enumerate(counters)]
    for command in dumps + restores:
        command.end()
    for counter in counters:
        counter.runs_on(pair.b.host)
        assert not pair.a.host.pid_alive(counter.pid)


def test_two_migrations_interleave(pair):
    """A small one overtakes a large one that began before, over the same link."""
    large = pair.a.host.spawn([workload("selfcheck"), "256", f"{SHARED}/large"])
    pair.a.host.wait_text(f"{SHARED}/large", "ok 0")
    small = pair.counter()
    pair.bed.slow("a", "1gbit")
    dump = pair.a.begin_dump(large, "--snapshot", "large")
    pair.a.host.wait_for(lambda: any(s.get("bytes", 0) > MIB for s in pair.a.status() if s.get("snapshot") == "large"))
    pair.a.dump(small.pid, "--snapshot", "small")
    pair.b.restore("--snapshot", "small")
    small.runs_on(pair.b.host)
    assert not dump.ended, "the small one did not overtake: the test shows nothing"
    dump.end()
    pair.b.restore("--snapshot", "large")
    check_memory(pair.b.host, large, f"{SHARED}/large", 1)


def test_the_same_process_twice_at_once(pair):
    counter = pair.counter()
    pair.bed.slow("a", "50mbit")
    pid = pair.a.host.spawn([workload("selfcheck"), "16", f"{SHARED}/large"])
    pair.a.host.wait_text(f"{SHARED}/large", "ok 0")
    first = pair.a.begin_dump(pid, "--snapshot", "first")
    pair.a.host.wait_for(lambda: any(s.get("snapshot") == "first" for s in pair.a.status()))
    done = pair.a.dump(pid, "--snapshot", "second", code=BUSY)
    assert "is being dumped already" in done.err
    first.end()
    pair.b.restore()
    check_memory(pair.b.host, pid, f"{SHARED}/large", 1)
    counter.runs_on(pair.a.host)


def test_two_restores_of_one_snapshot(pair):
    """The second is told that there is no more, and runs nothing."""
    counter = pair.counter()
    restores = [pair.b.begin_restore("-d", "--wait", "3") for _ in range(2)]
    pair.a.dump(counter.pid)
    codes = sorted(r.process.wait(30) for r in restores)
    for r in restores:
        r.process.communicate()
    assert codes == [0, NOT_FOUND]
    counter.runs_on(pair.b.host)
    assert len([p for p in pair.b.host.pids() if p not in pair.cache.pids]) == 1


# ---- what becomes of source and snapshot ----


def test_keep(pair):
    counter = pair.counter()
    pair.a.dump(counter.pid, "--snapshot", "kept")
    pair.b.restore("--keep")
    counter.runs_on(pair.b.host)
    assert pair.b.state("kept") == "ready"
    for _ in range(2):
        pair.b.host.kill(counter.pid)
        pair.b.host.wait_dead(counter.pid)
        pair.b.restore("--wait", "0", code=NOT_FOUND)  # who does not name it does not get it
        pair.b.restore("--keep", "--snapshot", "kept")
        counter.runs_on(pair.b.host)
    pair.b.forget("kept")
    assert pair.b.snapshots() == {}


def test_leave_running(pair):
    counter = pair.counter()
    pair.a.dump(counter.pid, "--leave-running")
    counter.runs_on(pair.a.host)
    pair.a.host.kill(counter.pid)
    pair.a.host.wait_dead(counter.pid)
    pair.b.restore()
    counter.runs_on(pair.b.host)


def test_leave_stopped(pair):
    counter = pair.counter()
    pair.a.dump(counter.pid, "--leave-stopped")
    assert pair.a.host.state(counter.pid) == "T"
    counter.stands()
    pair.b.restore()
    pair.b.host.kill(counter.pid)
    pair.a.host.resume_process(counter.pid)
    counter.runs_on(pair.a.host)


def test_restore_fails_and_can_be_tried_again(pair):
    """The pid is taken on b: exit 3 with criu's reason, and the snapshot is still there."""
    counter = pair.counter()
    pair.a.dump(counter.pid, "--snapshot", "again")
    pair.b.restore("--keep")
    done = pair.b.restore("--snapshot", "again", code=CRIU)
    assert "Error (" in done.err and "again is still there for another try" in done.err
    assert "File exists" in pair.b.take_failure()
    counter.runs_on(pair.b.host)
    pair.b.host.kill(counter.pid)
    pair.b.host.wait_dead(counter.pid)
    pair.b.restore("--snapshot", "again")
    counter.runs_on(pair.b.host)


def test_foreground_restore_is_the_parent(pair):
    """Without -d the command ends with the process, and not before."""
    counter = pair.counter()
    pair.a.dump(counter.pid)
    restore = pair.b.begin_restore()
    counter.runs_on(pair.b.host)
    assert not restore.ended
    pair.b.host.kill(counter.pid, signal.SIGTERM)
    wait_for(lambda: restore.ended, 10, "the end of restore")
    restore.process.communicate()
    pair.b.host.wait_dead(counter.pid)


def test_pidfile(pair):
    counter = pair.counter()
    pair.b.host.write("/tmp/there/pid", "old and longer than a pid")
    pair.b.cwd = "/tmp"
    pair.a.dump(counter.pid)
    pair.b.restore("--pidfile", "there/pid")
    assert pair.b.host.read("/tmp/there/pid").strip() == str(counter.pid)


def test_criu_logs_where_told(pair):
    counter = pair.counter()
    pair.a.dump(counter.pid, "-o", "mine.log", "--", "-v4")
    pair.b.restore("-o", "/tmp/restore-mine.log", "--", "-v4")
    assert "Dumping finished successfully" in pair.a.host.read("/run/godwit/mine.log")
    assert "Restore finished successfully" in pair.b.host.read("/tmp/restore-mine.log")
    pair.a.host.path("/run/godwit/mine.log").unlink()


def test_result_texts(pair):
    counter = pair.counter()
    out = pair.a.dump(counter.pid, "--snapshot", "web").out
    assert re.fullmatch(rf"process {counter.pid} dumped as snapshot web: [\d.]+ KiB in \d+\.\d\d s\n", out)
    assert re.fullmatch(r"snapshot web restored in \d+\.\d\d s\n", pair.b.restore().out)


# ---- without --remote ----


def test_plain_dump_and_restore(two):
    a, b = two
    counter = Counter(a.host)
    for side in two:
        side.host.mkdir("images")
    a.run("dump", "-t", counter.pid, "-D", "/tmp/images", workdir=False)
    assert not a.host.pid_alive(counter.pid) and (a.host.path("/tmp/images/dump.log")).exists()
    copy_tree(a.host, "/tmp/images", b.host, "/tmp/images")
    b.run("restore", "-d", "-D", "/tmp/images", "--pidfile", "/tmp/pid", workdir=False)
    counter.runs_on(b.host)
    assert b.host.read("/tmp/pid").strip() == str(counter.pid)


def test_plain_failure(two):
    a, _ = two
    a.host.mkdir("images")
    done = a.run("dump", "-t", "29999", "-D", "/tmp/images", workdir=False, code=CRIU)
    assert re.search(r"Error \(.*29999.*log: /tmp/images/dump.log", done.err, re.S)
    done = a.run("dump", "-t", "29999", workdir=False, code=USAGE)
    assert "--remote" in done.err and "-D" in done.err
    a.run("restore", workdir=False, code=USAGE)


# ---- status and forget ----


def test_status(pair):
    a, b, counter = pair.a, pair.b, pair.counter()
    assert b.status() == [{"daemon": "image-cache", "peer": "10.77.0.2", "link": "1", "used_bytes": 0,
                           "limit_bytes": b.status()[0]["limit_bytes"]}]
    assert a.status() == [{"daemon": "image-proxy", "peer": "10.77.0.2, port 9996", "link": "up"}]
    dump = a.dump(counter.pid, "--snapshot", "web", "--json").json
    daemon, snapshot = b.status()
    age = snapshot.pop("age_seconds")
    assert 0 <= age < 10
    assert snapshot.pop("images") >= 10
    assert snapshot == {"daemon": "image-cache", "snapshot": "web", "state": "ready", "bytes": dump["bytes"],
                        "pid": counter.pid, "command": "counter", "host": "a", "parent": "", "spool": ""}
    assert daemon["used_bytes"] >= dump["bytes"]
    text = b.run("status").out
    assert re.match(r"image-cache: listens on 10\.77\.0\.2, 1 link, [\d.]+ KiB in use of [\d.]+ [MG]iB\n", text)
    assert re.search(rf"^  web +ready +[\d.]+ KiB +pid {counter.pid} counter from a +[\d.]+ s$", text, re.M)
    assert a.run("status").out == "image-proxy: link to image-cache 10.77.0.2, port 9996: up\n"
    b.restore()
    assert len(b.status()) == 1 and b.used_bytes() == 0


def test_status_of_a_proxy_without_a_cache(two):
    a, b = two
    a.proxy(b, linked=False)
    a.host.wait_for(lambda: "Connection refused" in (a.link() or ""))
    text = a.run("status").out
    assert "10.77.0.2" in text and "Connection refused" in text


def test_status_while_it_moves(pair):
    path = f"{SHARED}/large"
    pid = pair.a.host.spawn([workload("selfcheck"), "16", path])
    pair.a.host.wait_text(path, "ok 0")
    pair.bed.slow("a", "100mbit")
    dump = pair.a.begin_dump(pid, "--snapshot", "web")
    pair.b.wait_state("web", "receiving")
    on_a = next(s for s in pair.a.status() if s.get("snapshot") == "web")
    assert on_a["state"] == "dumping" and on_a["pid"] == pid and on_a["command"] == "selfcheck"
    done = pair.b.forget("web", code=BUSY)
    assert "receiving" in done.err
    dump.end()
    pair.b.restore()


def test_forget(pair):
    counter = pair.counter()
    pair.a.dump(counter.pid, "--leave-running", "--snapshot", "web")
    assert pair.b.used_bytes() > 0
    pair.b.forget("web")
    assert pair.b.snapshots() == {} and pair.b.used_bytes() == 0
    assert "web" in pair.b.forget("web", code=NOT_FOUND).err
    pair.b.restore("--snapshot", "web", "--wait", "0", code=NOT_FOUND)
    counter.runs_on(pair.a.host)


# ---- exit codes and refusals ----


@pytest.mark.parametrize("argv, says", [
    ([], "usage"),
    (["fly"], "fly: no such command"),
    (["dump", "--remote"], "-t PID"),
    (["dump", "--remote", "-t", "x"], "-t|--tree"),
    (["dump", "--remote", "-t", "1", "extra"], "extra"),
    (["dump", "--remote", "-t", "1", "--fly"], "--fly"),
    (["dump", "--remote", "-t"], "missing"),
    (["dump", "--remote", "-t", "1", "-D", "/tmp"], "-D /tmp"),
    (["restore", "--remote", "-D", "/tmp"], "-D /tmp"),
    (["restore", "--remote", "--wait", "soon"], "soon"),
    (["image-cache", "--memory-limit", "much"], "much"),
    (["image-cache", "--status-fd", "77"], "77"),
    (["image-cache", "--timeout", "0"], "0.1"),
    (["image-cache", "extra"], "extra"),
    (["image-proxy", "--memory-limit", "1G"], "memory-limit"),
    (["forget"], "id"),
    (["status", "--", "x"], "--"),
])
def test_usage(two, argv, says):
    done = two[0].host.run([program(), *argv], timeout=10)
    assert done.returncode == USAGE and re.search(says, done.stderr)
    assert not two[0].host.path("/run/godwit").exists()


def test_help_and_version(two):
    host = two[0].host
    for argv in ([], ["dump"], ["restore"], ["image-cache"], ["image-proxy"], ["status"], ["forget"]):
        done = host.run([program(), *argv, "--help"])
        assert done.returncode == 0 and done.stdout.startswith("usage: godwit") and done.stderr == ""
    assert re.fullmatch(r"godwit \d+\.\d+\.\d+\n", host.run([program(), "--version"]).stdout)


@pytest.mark.parametrize("option", [
    "-D/tmp", "--images-dir=/tmp", "-W/tmp", "--work-dir", "-o/tmp/log", "--page-server", "--ps-socket=3", "--stream",
    "--lazy-pages", "--prev-images-dir=x", "--track-mem", "--auto-dedup", "--remote", "--leave-running", "-R", "-s",
    "-t1", "--tree", "--pag", "--leave-stop", "--port=1", "--address=x", "--action-script=/bin/true"])
def test_criu_options_that_are_godwits_own(pair, option):
    """--action-script is not: criu takes several."""
    counter = pair.counter()
    if option.startswith("--action-script"):
        pair.move(counter.pid, option)
        counter.runs_on(pair.b.host)
        return
    done = pair.a.dump(counter.pid, "--", option, code=USAGE)
    assert option in done.err and "cannot be passed on" in done.err
    counter.runs_on(pair.a.host)


@pytest.mark.parametrize("option", ["-d", "--restore-detached", "--pidfile=/x", "--lazy-pages", "-D/tmp", "--stream"])
def test_criu_options_refused_by_restore(pair, option):
    done = pair.b.restore("--", option, code=USAGE)
    assert option in done.err and "cannot be passed on" in done.err


def test_options_reach_criu(pair):
    """criu says itself that it does not know one, and takes one it knows."""
    counter = pair.counter()
    waiting = [pair.b.begin_restore("-d", "--wait", "20", "--snapshot", "s"), pair.b.begin_restore("-d", "--wait", "20")]
    time.sleep(0.5 * SLOW)  # until both wait
    pair.a.dump(counter.pid, "--snapshot", "s", "--", "--no-such-option", code=CRIU)
    pair.a.take_failure()
    for restore in waiting:  # there is nothing here for another try
        assert "snapshot s: its dump has failed at the source" in restore.end(code=PEER).err
    counter.runs_on(pair.a.host)
    assert pair.b.snapshots() == {}
    pair.a.dump(counter.pid, "-o", "/tmp/dump.log", "--", "--tcp-established", "-v4")
    assert "Dumping finished successfully" in pair.a.host.read("/tmp/dump.log")
    pair.b.restore("--", "--tcp-established", "-v4")
    counter.runs_on(pair.b.host)


ON_A_PTY = """
import os, pty
pid, master = pty.fork()
if pid == 0:
    os.execlp("sleep", "sleep", "1000")
os.waitpid(pid, 0)
"""


def test_shell_job_is_passed_on(pair):
    """A process on a terminal that somebody else holds: criu takes it only as a shell job."""
    host = pair.a.host
    host.spawn([PYTHON_PROGRAM, "-S", "-c", ON_A_PTY])

    def on_the_terminal():
        return next((p for p in host.pids() if host.read(f"/proc/{p}/comm", "") == "sleep\n"), None)

    pid = host.wait_for(on_the_terminal, what="a process on a pty")
    done = pair.a.dump(pid, code=CRIU)
    assert "Error (" in done.err and "Error (" in pair.a.take_failure()
    assert host.state(pid) in ("S", "R")
    pair.a.dump(pid, "--leave-running", "--snapshot", "job", "--", "--shell-job")
    assert host.state(pid) in ("S", "R")
    pair.b.forget("job")


def test_criu_failure_shows_its_first_error(pair):
    """A process criu refuses (a file whose content it may not carry): exit 3, the reason, and the process runs on."""
    host = pair.a.host
    pid = host.spawn([workload("ghost"), f"{SHARED}/ghost", "2"])
    host.wait_text(f"{SHARED}/ghost", "ok 0")
    done = pair.a.dump(pid, "-o", "/tmp/dump.log", "--", "--ghost-limit", "1024", code=CRIU)
    first = next(line for line in host.read("/tmp/dump.log").splitlines() if "Error (" in line and "RLIMIT" not in line)
    assert first[first.index("Error ("):][:200] in done.err and "/tmp/dump.log" in done.err
    check_memory(host, pid, f"{SHARED}/ghost", 1)
    assert pair.b.snapshots() == {} and pair.b.used_bytes() == 0
    pair.a.take_failure()


def test_no_such_process(pair):
    done = pair.a.dump(29999, code=NOT_FOUND)
    assert "29999" in done.err and "No such process" in done.err


def test_no_daemon(two):
    a, b = two
    counter = Counter(a.host)
    for done in (a.dump(counter.pid, code=PEER), a.restore(code=PEER), a.run("status", code=PEER), a.forget("x", code=PEER)):
        assert "/run/godwit" in done.err
    a.cache()
    assert "image-proxy" in a.dump(counter.pid, code=PEER).err
    counter.runs_on(a.host)


def test_memory_limit(bed):
    """Over the limit the dump fails in time, with the cure; the process has lost nothing."""
    pair = Pair(bed, cache=["--memory-limit", "24M"])
    path = f"{SHARED}/memory"
    pid = pair.a.host.spawn([workload("selfcheck"), "64", path])
    pair.a.host.wait_text(path, "ok 0")
    done = pair.a.dump(pid, "--snapshot", "big", code=LIMIT)
    assert "out of memory" in done.err and "24.0 MiB" in done.err and "--memory-limit" in done.err
    check_memory(pair.a.host, pid, path, 1)
    assert pair.b.snapshots() == {} and pair.b.used_bytes() == 0 and pair.b.files("/run/godwit/images") == []
    counter = pair.counter()
    pair.move(counter.pid)
    counter.runs_on(pair.b.host)


# ---- where things are ----


def test_long_work_dirs(two):
    """Longer than a socket's address may be, and not the same on both hosts."""
    a, b = two
    a.workdir = "/run/" + "/".join(["a" * 50] * 5)
    b.workdir = "/tmp/" + "/".join(["b" * 70] * 6)
    b.cache()
    a.proxy(b)
    counter = Counter(a.host)
    a.dump(counter.pid)
    b.restore()
    counter.runs_on(b.host)
    assert b.host.path(b.workdir).stat().st_mode & 0o777 == 0o700


def test_work_dir_unlike_cwd(two):
    """Relative -W, commands from another directory than the daemons', nothing written to either."""
    a, b = two
    b.cache()
    a.proxy(b)
    counter = Counter(a.host)
    for side, cwd in ((a, "/run"), (b, "/tmp/elsewhere")):
        side.host.mkdir(cwd)
        side.cwd = cwd
    a.workdir = "godwit"

    def seen():
        return {*a.host.path("/run").iterdir(), *b.host.path("/tmp/elsewhere").iterdir()} - {a.host.path("/run/criu.kdat")}

    before = seen()
    a.dump(counter.pid)
    b.restore()
    counter.runs_on(b.host)
    assert seen() == before


def test_two_work_dirs_on_one_host(two):
    """Two caches, two ports, two work-dirs, with no hand in one another."""
    a, b = two
    other_a, other_b = Godwit(a.host, "/run/other"), Godwit(b.host, "/run/other")
    b.cache()
    other_b.cache("--port", "10000")
    a.proxy(b)
    other_a.proxy(b, "--port", "10000")
    one, two_ = Counter(a.host, "one"), Counter(a.host, "two")
    a.dump(one.pid)
    other_a.dump(two_.pid)
    assert len(b.snapshots()) == len(other_b.snapshots()) == 1
    b.restore()
    other_b.restore()
    one.runs_on(b.host)
    two_.runs_on(b.host)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_work_dir_that_others_may_write(two, mode):
    a, _ = two
    a.host.mkdir("/run/godwit")
    a.host.path("/run/godwit").chmod(mode)
    done = a.run("image-cache", code=1, timeout=10)
    assert "work-dir /run/godwit" in done.err and "writable" in done.err


# ---- the link ----


def test_ps_socket(two):
    """Both daemons on one socketpair, across the hosts: no network is needed."""
    a, b = two
    ours, theirs = socket.socketpair()
    with ours, theirs:
        cache = b.daemon("image-cache", "--ps-socket", str(theirs.fileno()), pass_fds=[theirs.fileno()])
        proxy = a.daemon("image-proxy", "--ps-socket", str(ours.fileno()), pass_fds=[ours.fileno()])
    a.wait_linked()
    assert "LISTEN" not in b.host.run(["ss", "-Htln"]).stdout
    counter = Counter(a.host)
    for _ in range(2):
        a.dump(counter.pid)
        b.restore("--keep", "--snapshot", next(iter(b.snapshots())))
        counter.runs_on(b.host)
        b.forget(next(iter(b.snapshots())))
        b.host.kill(counter.pid)
        b.host.wait_dead(counter.pid)
        counter = Counter(a.host)
    proxy.stop()
    cache.end(code=PEER)


@pytest.mark.parametrize("address", ["fd77::2", "::"])
def test_ipv6(two, address):
    a, b = two
    b.cache(address=address)
    a.proxy(b, address="fd77::2")
    counter = Counter(a.host)
    a.dump(counter.pid)
    b.restore()
    counter.runs_on(b.host)


def test_localhost_both_families(two):
    """The default address: loopback only, and no --insecure."""
    a, _ = two
    a.daemon("image-cache")
    a.daemon("image-proxy")
    a.wait_linked()
    listening = a.host.run(["ss", "-Htln"]).stdout
    assert "127.0.0.1:9996" in listening and "0.0.0.0" not in listening.split("9996")[0]
    counter = Counter(a.host)
    a.dump(counter.pid)
    a.restore()
    counter.runs_on(a.host)


@pytest.mark.parametrize("daemon", ["image-cache", "image-proxy"])
@pytest.mark.parametrize("address", ["10.77.0.1", "0.0.0.0", "fd77::1", "::"])
def test_beyond_this_host_only_if_said(two, daemon, address):
    done = two[0].run(daemon, "--address", address, code=USAGE, timeout=10)
    assert f"{address} is beyond this host" in done.err and "--insecure" in done.err


def test_port_in_use(two):
    a, b = two
    a.cache()
    done = Godwit(a.host, "/run/other").run("image-cache", "--address", "10.77.0.1", "--insecure", code=1, timeout=10)
    assert "10.77.0.1, port 9996: Address already in use" in done.err


def test_no_such_host(two):
    done = two[0].run("image-cache", "--address", "no.such.host.invalid", code=PEER, timeout=30)
    assert "no.such.host.invalid" in done.err


# ---- daemons ----


ACTIVATE = """
import os, socket, sys
s = socket.create_server((sys.argv[1], 9996), family=socket.AF_INET6)
if s.fileno() != 3:
    os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), NOTIFY_SOCKET=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""


def test_socket_activation(two):
    """The listening socket is inherited, as from systemd, and READY=1 is told."""
    a, b = two
    b.host.mkdir("/run/notify")
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(b.host.path("/run/notify/socket")))
    argv = [PYTHON_PROGRAM, "-S", "-c", ACTIVATE, "fd77::2", "/run/notify/socket", program(), "image-cache", "-o", "image-cache.log"]
    with b.host.popen(argv, stderr=subprocess.PIPE) as p, notify:
        assert select.select([notify], [], [], 10)[0], "READY=1"
        assert "READY=1" in notify.recv(100).decode()
        a.proxy(b, address="fd77::2")
        counter = Counter(a.host)
        a.dump(counter.pid)
        b.restore()
        counter.runs_on(b.host)
        p.terminate()
        assert p.wait(10) == 0


def test_once(two):
    """Both end well after one migration, and take everything with them."""
    a, b = two
    cache = b.cache("--once")
    proxy = a.proxy(b, "--once")
    counter = Counter(a.host)
    a.dump(counter.pid)
    proxy.end()
    b.restore()
    cache.end()
    counter.runs_on(b.host)
    assert b.files() == ["cache.sock.lock", "image-cache.log"] and a.files() == ["image-proxy.log", "proxy.sock.lock"]
    assert "/run/godwit" not in b.host.run(["cat", "/proc/self/mounts"]).stdout


def test_tmpfs_of_its_own(pair):
    """A tmpfs in a mount namespace of the process: CRIU keeps its content as a tar file, and wants to seek in that."""
    host, other = pair.a.host, pair.b.host
    pid = host.spawn([workload("tmpfsroot"), host.mkdir("root")])
    data = f"/proc/{pid}/root/data"
    host.wait_text(f"{data}/status", "ok ")
    # The root is for the destination to provide, as a container's runtime does.
    root = other.mkdir("root")
    for name in ("proc", "dev", "data"):
        other.mkdir(f"root/{name}")
    other.write(f"{root}/self", host.path(f"/proc/{pid}/root/self").read_bytes())
    other.run(["chmod", "755", f"{root}/self"], check=True)
    other.run(["mknod", f"{root}/dev/null", "c", "1", "3"], check=True)
    other.run(["mount", "--bind", root, root], check=True)
    other.run(["mount", "--make-private", root], check=True)

    pair.a.dump(pid, "--snapshot", "it")
    assert any(i.startswith("tmpfs-") for i in pair.b.files("/run/godwit/images/it/images"))
    pair.b.restore("--", "--root", root)
    seen = int(other.read(f"{data}/status").split()[1])
    status = other.wait_for(lambda: t if int((t := other.read(f"{data}/status")).split()[1]) > seen + 3 else None)
    assert status.startswith("ok "), status
    assert other.path(f"{data}/large").stat().st_size == 3 << 20 and other.path(f"{data}/empty").stat().st_size == 0


def test_once_of_a_failure(two):
    """A dump that fails is one, too: the daemons tell so by their status."""
    a, b = two
    b.cache()
    proxy = a.proxy(b, "--once")
    pid = a.host.spawn([workload("ghost"), f"{SHARED}/ghost", "2"])
    a.host.wait_text(f"{SHARED}/ghost", "ok 0")
    a.dump(pid, "--", "--ghost-limit", "1024", code=CRIU)
    proxy.end(code=CRIU)
    check_memory(a.host, pid, f"{SHARED}/ghost", 1)


@pytest.mark.parametrize("name", ["image-cache", "image-proxy"])
def test_in_the_background(two, name):
    """-d returns when it is ready: pidfile, status-fd, a log of its own, a session of its own, no descriptors kept."""
    a, _ = two
    r, w = os.pipe()
    try:
        daemon = a.daemon(name, "--status-fd", str(w), background=True, pass_fds=[w])
        os.close(w)
        assert os.read(r, 10) == b"\0" and os.read(r, 10) == b""
    finally:
        os.close(r)
    stat = a.host.read(f"/proc/{daemon.pid}/stat").rsplit(")", 1)[1].split()
    assert stat[1] == "1" and stat[3] == str(daemon.pid)
    fds = a.host.fds(daemon.pid)
    assert fds[0] == "/dev/null" and fds[1] == fds[2] == f"/run/godwit/{name}.log"
    assert not any(what.startswith("pipe:") for what in fds.values())
    assert any(s["daemon"] == name for s in a.status())
    daemon.stop()
    assert not a.host.path(f"/run/godwit/{name}.pid").exists()


def test_background_failure_is_told(two):
    a, b = two
    done = a.run("image-cache", "-d", "--address", "10.77.0.2", "--insecure", code=1, timeout=10)
    assert "10.77.0.2" in done.err and not a.host.path("/run/godwit/image-cache.pid").exists()


@pytest.mark.parametrize("background", [False, True])
def test_log_is_opened_anew_on_sighup(two, background):
    a, b = two
    cache = b.cache(background=background)
    a.proxy(b)
    cache.wait_log("linked to host a")
    log = b.host.path(cache.log_path)
    log.rename(log.with_suffix(".old"))
    cache.signal(signal.SIGHUP)
    b.host.wait_for(log.exists, what="a new log")
    counter = Counter(a.host)
    a.dump(counter.pid, "--snapshot", "web")
    cache.wait_log("snapshot web: ready")
    assert "snapshot web" not in log.with_suffix(".old").read_text()


@pytest.mark.parametrize("name", ["image-cache", "image-proxy"])
def test_second_daemon_in_the_work_dir(pair, name):
    side = pair.b if name == "image-cache" else pair.a
    done = side.run(name, "--port", "9998", code=BUSY, timeout=10)
    assert f"another {name} works in /run/godwit" in done.err
    counter = pair.counter()
    pair.move(counter.pid)
    counter.runs_on(pair.b.host)


def test_cache_restarts_with_its_snapshots(pair):
    """What is complete outlives the cache; ready stays ready."""
    counter = pair.counter()
    pair.a.dump(counter.pid, "--snapshot", "web")
    pair.cache.stop()
    pair.cache = pair.b.cache()
    assert pair.b.state("web") == "ready" and pair.b.used_bytes() > 0
    pair.a.wait_linked()
    pair.b.restore()
    counter.runs_on(pair.b.host)


def test_completion(two):
    out = two[0].host.run([program(), "completion"]).stdout
    assert "--leave-running" in out and "image-cache" in out
    words = two[0].host.run(["bash", "-c", 'eval "$1"; COMP_WORDS=(godwit rest); COMP_CWORD=1; _godwit; echo "${COMPREPLY[@]}"',
                             "-", out]).stdout
    assert words == "restore\n"
