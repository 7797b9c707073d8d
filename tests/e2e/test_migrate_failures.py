# SPDX-License-Identifier: Apache-2.0
"""godwit migrate, whatever breaks and whenever: exactly one intact copy of the process, and nothing is left behind.

The matrix is generated: every frame of an ordinary migration, in each direction, x every fault of the link; every frame,
held on its way, x every program of either side x kill and stop; every frame x cancel.  Frames of memory that are sent
while the process runs, in rounds, are points apart from those of the freeze, which have flags.  What happens while the
destination fills the process is struck by test_fill_is_struck.  The states are those of src/migrate/commit.c:
test_every_state_is_hit finds out when one of them is missed.  What each case is judged by is in judge().  GODWIT_SEED=N repeats the random ones, GODWIT_FULL=1 runs 200 of them.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import time

import pytest

import bed as testbed
from failures import CRIU_BROKE, FRAMES, FULL, LINK_TIMEOUT, PORT, WORKDIR, Broken, Lane, Lanes, in_network, check_breaks, comm, criu_broke_it, one_line, point_name, program
from godwit import STARTER, half_of
from live import PAGER

SEED = int(os.environ.get("GODWIT_SEED") or random.SystemRandom().randrange(1 << 32))
MOVED, PEER, DOUBT, BUSY, REFUSED, ABORTED = 0, 4, 7, 8, 9, 10
FROZEN = 2  # PAGES_EXIST, RUNS_EXIST: what the frames of memory have that are sent in the freeze
MEMORY = {FRAMES[name] for name in ("PAGES", "PAGE_RUNS")}


class MigrateLane(Lane):
    """Two hosts with the man in the middle, and an image-cache that accepts; no proxy."""

    def __init__(self):
        super().__init__(["--accept"])

    def start_proxy(self, *options):
        self.proxy = None

    def wait_link(self, timeout=8):
        pass

    def start_cache(self, *options):
        super().start_cache(*options)
        in_network(self.b, lambda: testbed.wait_for(self._listens, 10, "the image-cache to listen"))

    @staticmethod
    def _listens():
        try:
            socket.create_connection(("10.77.0.2", 9996)).close()
            return True
        except ConnectionRefusedError:
            return False

    def revive(self):
        if self.cache.poll() is not None:
            self.start_cache()

    def migrate(self, pid, *args):
        argv = [self.godwit, "migrate", "-t", str(pid), f"127.0.0.1:{PORT}", "-W", WORKDIR, "--timeout", str(LINK_TIMEOUT), *args]
        return self.a.popen(argv, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def resolve(self, host, *args):
        return host.run([self.godwit, "resolve", *args, "-W", WORKDIR, *(["--timeout", str(LINK_TIMEOUT)] if args else [])],
                        env=self.env, timeout=20)

    def journal(self):
        """{id: decision} of the source."""
        return {s["migration"]: s["decision"] for s in self.source_status() if "migration" in s}

    def source_status(self):
        done = self.a.run([self.godwit, "status", "--json", "-W", WORKDIR], env=self.env)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def ours(self, host):
        """{pid: program} of criu, hooks and godwit on a host, the image-cache of the lane left out."""
        found = {}
        for pid in host.pids():
            own = comm(host, pid)
            name = own if own in (PAGER, STARTER) else program(host, pid)
            if name in ("criu", "godwit-hook", "godwit", PAGER) and pid != self.cache.host_pid and host.pid_alive(pid):
                found[pid] = name
        return found

    def logs(self):
        return f"  cache: {self.log('cache')}".replace("\n", "\n      ")


@pytest.fixture(scope="module")
def lanes():
    made = Lanes(MigrateLane)
    yield made
    made.close()


# ---- judging ----

def left_behind(lane):
    """What a migration must not leave: files, snapshots, processes; what criu's own failure leaves is taken away here."""
    found = []
    for host, keep in ((lane.a, ()), (lane.b, ("cache.sock", "cache.sock.lock", "images", "streamer-serve.sock"))):
        root = host.path(WORKDIR)
        for path in root.iterdir() if root.exists() else ():
            logs = [p.name for p in path.iterdir()] if path.is_dir() and path.name.startswith(("migrate-", "incoming-")) else None
            if logs in (["dump.log"], ["restore.log"]):
                (path / logs[0]).unlink()
                path.rmdir()
            elif path.name not in keep:
                found.append(f"{host.name}: {path.name} {logs or ''}")
        found += [f"{host.name}: {name} {pid}" for pid, name in lane.ours(host).items()]
    return found + [f"snapshot {s}" for s in lane.snapshots().items()] + [f"journal {j}" for j in lane.journal().items()]


def runs(host, pid):
    """Whether the process runs, and does not stand still."""
    return host.pid_alive(pid) and host.state(pid) not in ("T", "t")


def settle(lane, text):
    """What an operator does: asks the source to settle what it has noted.  Until nothing is noted any more."""
    end = time.monotonic() + 15
    lane.resolve(lane.a)  # also clears up what a program that was killed has left
    while time.monotonic() < end:
        journal = lane.journal()
        if not journal:
            return
        for name in journal:
            done = lane.resolve(lane.a, name)
            if done.returncode not in (0, PEER, BUSY, DOUBT, ABORTED):
                raise Broken(f"godwit resolve {name} ({journal[name]}): {done.returncode} {done.stderr}; {text}\n{lane.logs()}")
        time.sleep(0.1)
    raise Broken(f"the journal keeps {lane.journal()}: {done.returncode} {done.stderr}; {text}\n{lane.logs()}")


def check_in_doubt(lane, pid, text):
    """In the window between decision and end the copy stands still at b, and both hosts name it."""
    journal = lane.journal()
    if "commit" in journal.values() and not runs(lane.b, pid) and lane.a.pid_alive(pid) is False:
        name = next(iter(journal))
        if name not in lane.snapshots():
            raise Broken(f"committed, and b does not name it: {lane.snapshots()}; {text}\n{lane.logs()}")
        return True
    return False


def judge(lane, pid, out, status, err, killed=False):
    """Exactly one copy runs, intact, and nothing is left.  Returns where it runs; ends it."""
    a, b = lane.a, lane.b
    text = f"migrate: {status} {err!r}"
    if not killed and status != MOVED:
        one_line("migrate", status, "\n".join(line for line in err.splitlines() if not line.startswith(("problem ", "warning "))))
    if not killed and status not in (MOVED, PEER, DOUBT, REFUSED, ABORTED, 3):
        raise Broken(f"an exit status that is none: {text}")
    doubt = check_in_doubt(lane, pid, text)
    settle(lane, text)
    try:
        testbed.wait_for(lambda: runs(a, pid) != runs(b, pid) and not lane.ours(a) and not lane.ours(b), 10, "", every=0.05)
    except testbed.BedError:
        raise Broken(f"not exactly one copy: a {a.state(pid)}, b {b.state(pid)}; {lane.ours(a)} {lane.ours(b)} "
                     f"{lane.snapshots()} {lane.journal()}; {text}\n{lane.logs()}") from None
    host = a if runs(a, pid) else b
    if not killed and (status == MOVED) != (host is b) and not (host is b and status == DOUBT):
        raise Broken(f"it runs on {host.name}; {text}\n{lane.logs()}")
    lane.check_memory(host, pid, out)
    other = b if host is a else a
    if other.pid_alive(pid):
        raise Broken(f"a second copy, in state {other.state(pid)}; {text}\n{lane.logs()}")
    host.kill(pid)
    host.wait_dead(pid)
    try:
        testbed.wait_for(lambda: not left_behind(lane), 6, "", every=0.1)
    except testbed.BedError:
        raise Broken(f"left behind: {left_behind(lane)}; {text}\n{lane.logs()}") from None
    return f"{host.name}{', was in doubt' if doubt else ''}; {text}"


# ---- the points ----

def point_of(direction, kind, flags):
    """A frame of memory that is sent in the freeze is another point than one of a round."""
    return direction, f"{kind}/{FROZEN}" if kind in MEMORY and flags & FROZEN else kind


def spawn_for(lane, kind):
    """The process of a case.  Where memory flows it has more than the sockets hold: so the source is where the frame is."""
    return lane.spawn(16, dirty=10) if kind in {*MEMORY, FRAMES["ROUND_END"]} else lane.spawn()


def record():
    """[(direction, type)] of an ordinary migration; type may be "NUMBER/FLAGS", see point_of()."""
    lane = MigrateLane()
    try:
        pid, out = lane.spawn()
        lane.man.arm()
        status, err = lane.end(lane.migrate(pid), "migrate")
        assert status == 0, err
        # The last word may still be on its way when the command has ended.
        testbed.wait_for(lambda: ("up", FRAMES["GOODBYE"]) in {s[:2] for s in lane.man.seen}, 5, "its goodbye")
        seen = {point_of(direction, kind, flags) for direction, kind, _, flags, _ in lane.man.seen}
        judge(lane, pid, out, status, err)
        return sorted(seen - {(d, FRAMES["HEARTBEAT"]) for d in ("up", "down")}, key=str)
    finally:
        lane.close()


@pytest.fixture(scope="module")
def points():
    return record()


def test_every_message_is_a_point(points):
    """All that section 9 of docs/protocol.md draws is in the matrix."""
    for direction, name in (("up", "CHECK"), ("down", "CHECKED"), ("up", "SNAPSHOT_BEGIN"), ("down", "SNAPSHOT_ACCEPT"),
                            ("up", "PAGES"), ("up", "IMAGE_DATA"), ("up", "SNAPSHOT_END"), ("down", "SNAPSHOT_ACK"),
                            ("down", "PREPARED"), ("up", "VERDICT"), ("down", "VERDICT_ACK"), ("down", "RESTORED"),
                            ("up", "SETTLED"), ("up", "GOODBYE"), ("up", "ROUND_END")):
        assert (direction, FRAMES[name]) in points


# ---- 1. the link ----

FAULTS = ["cut", "cut-middle", "close", "stall", "garbage", "flip", "drop", "delay:0.4"]


def fault_case(direction, kind, action):
    def case(lane):
        pid, out = spawn_for(lane, kind)
        lane.man.arm((f"{direction}:{kind}", action))
        migrate = lane.migrate(pid)
        if action == "stall":
            # A stalled connection lives: only a new one can help.
            testbed.wait_for(lambda: lane.man.fired.is_set() or migrate.poll() is not None, 10, "the fault")
        status, err = lane.end(migrate, "migrate")
        fired = lane.man.fired.wait(2)  # what was sent last may still be on its way through the relay
        lane.man.disarm()
        got = judge(lane, pid, out, status, err)
        if not fired:
            raise Broken(f"there was no such frame; {got}")
        if action.startswith("delay") and status:
            raise Broken(f"a delay is harmless: {got}")
        return got

    return f"{point_name(direction, kind)} {action}", case


@pytest.mark.parametrize("action", FAULTS)
def test_link(lanes, points, action):
    """Every frame, in each direction, has an accident."""
    lanes.run([fault_case(d, k, action) for d, k in points])


# ---- 2. programs ----

VICTIMS = ["migrate", "criu", "hook", "cache", "starter", "keeper", "criu-b", "hook-b", "pager", "standby"]
HALVES = ("cache", "starter")


def victims(lane, migrate, who):
    """(host, pids)."""
    if who == "migrate":
        return lane.a, [migrate.host_pid] if migrate.poll() is None else []
    if who == "cache":
        return lane.b, [lane.cache.host_pid]
    if who == "starter":
        starter = half_of(lane.b, lane.cache.host_pid)
        return lane.b, [starter] if starter else []
    if who in ("criu", "hook"):
        return lane.a, lane.relatives(migrate, "godwit-hook" if who == "hook" else "criu")
    if who == "keeper":
        return lane.b, [p for p, n in lane.ours(lane.b).items() if n == "godwit"]
    if who in ("pager", "standby"):
        found = sorted(p for p, n in lane.ours(lane.b).items() if n == PAGER)
        return lane.b, found[:1] if who == "pager" else found[1:2]  # the leader makes the standby: it is the older
    return lane.b, [p for p, n in lane.ours(lane.b).items() if n == ("godwit-hook" if who == "hook-b" else "criu")]


def strike(host, pids, sig):
    for pid in pids:
        try:
            host.kill(pid, sig)
        except ProcessLookupError:
            pass


def program_case(direction, kind, who, sig):
    def case(lane):
        pid, out = spawn_for(lane, kind)
        lane.man.arm((f"{direction}:{kind}", "hold"))
        migrate = lane.migrate(pid)
        testbed.wait_for(lambda: lane.man.is_held.is_set() or migrate.poll() is not None, 10, "the frame")
        if not lane.man.is_held.wait(1):
            raise Broken(f"migrate ended before: {lane.end(migrate, 'migrate')}")
        host, pids = victims(lane, migrate, who)
        strike(host, pids, sig)
        if sig == signal.SIGSTOP:
            time.sleep(0.3)
        elif who in HALVES and pids:  # neither lives without the other
            lane.cache.wait()
            lane.start_cache()  # as its unit or an operator would
        lane.man.release()
        strike(host, pids, signal.SIGCONT)
        killed = who == "migrate" and bool(pids) and sig == signal.SIGKILL
        status, err = lane.end(migrate, "migrate")
        lane.man.disarm()
        if who == "criu" and pids and criu_broke_it(lane, pid, err):
            return CRIU_BROKE
        got = judge(lane, pid, out, status, err, killed=killed)
        if sig == signal.SIGSTOP and status:
            raise Broken(f"a short stop is harmless: {got}")
        return f"{'hit' if pids else 'not there'}: {got}"

    return f"{point_name(direction, kind)}: {signal.Signals(sig).name} {who}", case


@pytest.mark.parametrize("who", VICTIMS)
def test_killed(lanes, points, who):
    """Every program of either side is killed while a frame is on its way."""
    got = lanes.run([program_case(d, k, who, signal.SIGKILL) for d, k in points])
    check_breaks(got)
    least = {"hook": 1, "hook-b": 1, "pager": 1, "standby": 1, "keeper": 3, "criu-b": 3}
    assert sum(v.startswith("hit") for _, v in got) >= least.get(who, 8), got


@pytest.mark.parametrize("who", ["migrate", "cache", "starter", "criu-b"])
def test_late(lanes, points, who):
    """What comes late is as good as what comes in time."""
    lanes.run([program_case(d, k, who, signal.SIGSTOP) for d, k in points])


# ---- 3. the user ----

def cancel_case(direction, kind, sig=signal.SIGINT):
    def case(lane):
        pid, out = spawn_for(lane, kind)
        lane.man.arm((f"{direction}:{kind}", "hold"))
        migrate = lane.migrate(pid)
        testbed.wait_for(lambda: lane.man.is_held.is_set() or migrate.poll() is not None, 10, "the frame")
        migrate.send_signal(sig)
        time.sleep(0.1)
        lane.man.release()
        status, err = lane.end(migrate, "migrate")
        lane.man.disarm()
        if status == ABORTED and lane.journal():
            raise Broken(f"the other host was there, and was not waited for: {lane.journal()}; {err}")
        return judge(lane, pid, out, status, err)

    return f"{point_name(direction, kind)}: {signal.Signals(sig).name}", case


def test_cancelled(lanes, points):
    """Ctrl-C at every message."""
    got = dict(lanes.run([cancel_case(d, k) for d, k in points]))
    for name, what in got.items():
        early = name.startswith(("up:check", "up:snapshot", "up:space", "up:page", "up:round", "up:image", "down:check", "down:snapshot",
                                 "down:prepared", "up:hello", "down:hello"))
        assert what.startswith("a;") or not early, f"{name}: {what}"
        # What is decided arrives in a moment, and is waited for.
        assert what.startswith(f"b; migrate: {MOVED} ") or not name.startswith("down:restored"), f"{name}: {what}"


def test_cancelled_twice(lanes):
    """After the decision, while the other host does not answer: the second Ctrl-C leaves it in doubt, and at once."""

    def case(lane):
        pid, out = lane.spawn()
        lane.man.arm((f"down:{FRAMES['RESTORED']}", "hold"))
        migrate = lane.migrate(pid, "--timeout", "20")
        assert lane.man.is_held.wait(10)
        migrate.send_signal(signal.SIGINT)
        time.sleep(1)
        if migrate.poll() is not None:
            raise Broken(f"the other host was not waited for: {lane.end(migrate, 'migrate')}")
        migrate.send_signal(signal.SIGINT)
        status, err = lane.end(migrate, "migrate")
        if (status, list(lane.journal().values())) != (DOUBT, ["commit"]):
            raise Broken(f"it is in doubt: {status} {err} {lane.journal()}")
        lane.man.release()
        lane.man.disarm()
        return judge(lane, pid, out, status, err)

    lanes.run([("cancelled twice", case)])


# ---- 4. the restore fails ----

def failing_case(name, prepare, mib=1):
    def case(lane):
        pid, out = lane.spawn(mib)
        lane.man.arm((f"up:{FRAMES['SNAPSHOT_END']}", "hold"))
        migrate = lane.migrate(pid)
        testbed.wait_for(lambda: lane.man.is_held.is_set() or migrate.poll() is not None, 10, "the frame")
        undo = prepare(lane, pid)
        lane.man.release()
        status, err = lane.end(migrate, "migrate")
        lane.man.disarm()
        undo()
        if status != ABORTED:
            raise Broken(f"{status} {err}")
        return judge(lane, pid, out, status, err)

    return name, case


def take_pid(lane, pid):
    """Somebody has the process id at b by now."""
    b = lane.b
    other = b.popen(["sh", "-c", f"echo {pid - 1} > /proc/sys/kernel/ns_last_pid; sleep 60 & echo $!; wait"],
                    stdout=subprocess.PIPE)
    taken = int(other.stdout.readline())
    assert taken == pid, (taken, pid)

    def undo():
        b.kill(taken)
        other.kill()
        other.communicate()

    return undo


def damage_images(lane, pid):
    """criu's images are damaged behind the cache's back."""
    images = next(iter(lane.b.path(f"{WORKDIR}/images").iterdir())) / "images"
    core = images / f"core-{pid}.img"
    testbed.wait_for(lambda: core.exists() and core.stat().st_size > 0, 5, "the image")
    time.sleep(0.05)
    core.write_bytes(b"no image")
    return lambda: None


def remove_image(lane, pid):
    images = next(iter(lane.b.path(f"{WORKDIR}/images").iterdir())) / "images"
    mm = images / f"mm-{pid}.img"
    testbed.wait_for(mm.exists, 5, "the image")
    mm.unlink()
    return lambda: None


def take_memory(lane, pid):
    """There is no room for the process at b by now: criu is refused what it asks for."""
    takers = [lane.cache.host_pid, *(p for p, name in lane.ours(lane.b).items() if name == "criu")]
    seen = [0]

    def all_there():
        seen.append(sum(s.get("used_bytes", 0) for s in lane.status(lane.b)))
        return seen[-1] == seen[-2] > 16 << 20

    testbed.wait_for(all_there, 5, lambda: f"the memory to be there: {seen}", every=0.1)

    def limit(size):
        for taker in takers:
            lane.b.run(["prlimit", "--pid", str(taker), f"--as={size}:"])

    limit(48 << 20)
    return lambda: limit("unlimited")


def test_restore_fails(lanes):
    """What pre-flight cannot see: the process runs on at the source, which says why."""
    lanes.run([failing_case("pid taken", take_pid), failing_case("images damaged", damage_images),
               failing_case("image missing", remove_image), failing_case("no memory", take_memory, mib=64)])


def test_criu_waits_for_the_last_word(lanes):
    """It has been started at b before that comes."""

    def case(lane):
        pid, out = lane.spawn()
        lane.man.arm((f"up:{FRAMES['SNAPSHOT_END']}", "hold"))
        migrate = lane.migrate(pid)
        testbed.wait_for(lambda: lane.man.is_held.is_set() or migrate.poll() is not None, 10, "the frame")
        try:
            testbed.wait_for(lambda: "criu" in lane.ours(lane.b).values(), 5, "criu to wait")
        finally:
            lane.man.release()
            status, err = lane.end(migrate, "migrate")
            lane.man.disarm()
        if status:
            raise Broken(f"{status} {err}")
        return judge(lane, pid, out, status, err)

    lanes.run([("ahead", case)])


# ---- 5. the operator ----

def operator_case(name, point, word, where):
    """The source's godwit dies at a point and never comes back to it; b's operator decides."""

    def case(lane):
        a, b = lane.a, lane.b
        pid, out = lane.spawn()
        lane.man.arm((point, "hold"))
        migrate = lane.migrate(pid)
        assert lane.man.is_held.wait(10)
        strike(a, [migrate.host_pid], signal.SIGKILL)
        migrate.communicate()
        lane.man.kick()
        lane.man.arm()
        here = (a if where == "a" else b)
        testbed.wait_for(lambda: not lane.ours(a), 10, "criu to end at the source")
        held = next(iter(lane.snapshots().items()))
        assert held[1] == "prepared" and b.pid_alive(pid), held
        assert a.pid_alive(pid) == (where == "a"), f"alive at the source: {a.pid_alive(pid)}"
        before = b.read(out)
        time.sleep(0.05)
        assert b.read(out) == before  # it stands still
        assert held[0] in lane.resolve(b).stdout and held[0] in lane.resolve(a).stdout
        asked = lane.resolve(b, held[0])
        assert asked.returncode == DOUBT and "--resume" in asked.stderr, asked
        done = lane.resolve(b, held[0], word)
        assert done.returncode == 0, done
        testbed.wait_for(lambda: runs(here, pid) and not (a if here is b else b).pid_alive(pid), 5, "the one copy")
        return judge(lane, pid, out, -9, "", killed=True)

    return name, case


def test_operator_on_the_destination(lanes):
    """Before the decision the copy is void, after it the copy is the process: the operator says so, and nobody else can."""
    lanes.run([operator_case("undecided: --kill", f"down:{FRAMES['PREPARED']}", "--kill", "a"),
               operator_case("committed: --resume", f"up:{FRAMES['VERDICT']}", "--resume", "b")])


def test_operator_on_the_source(lanes):
    """The source's journal says enough: resolve without a word does what was decided."""
    def case(point, where):
        def run(lane):
            pid, out = lane.spawn()
            lane.man.arm((point, "hold"))
            migrate = lane.migrate(pid)
            assert lane.man.is_held.wait(10)
            strike(lane.a, [migrate.host_pid], signal.SIGKILL)
            migrate.communicate()
            lane.man.kick()
            lane.man.arm()
            name, decision = next(iter(lane.journal().items()))
            assert decision == ("open" if where == "a" else "commit")
            testbed.wait_for(lambda: not lane.ours(lane.a), 10, "criu to end at the source")
            done = lane.resolve(lane.a, name)
            assert done.returncode == 0 and name in done.stdout, done
            assert lane.journal() == {}
            got = judge(lane, pid, out, -9, "", killed=True)
            assert got.startswith(where), got
            return got
        return run

    lanes.run([("undecided", case(f"down:{FRAMES['PREPARED']}", "a")), ("committed", case(f"up:{FRAMES['VERDICT']}", "b"))])


# ---- 6. at random ----

def random_case(seed):
    rng = random.Random(seed)
    who, at = rng.choice(VICTIMS), rng.uniform(0, 0.9)

    def case(lane):
        pid, out = lane.spawn(rng.choice([1, 1, 4, 16]))
        lane.man.arm()
        began = time.monotonic()
        migrate = lane.migrate(pid)
        time.sleep(max(0, at - (time.monotonic() - began)))
        host, pids = victims(lane, migrate, who)
        strike(host, pids, signal.SIGKILL)
        if who in HALVES:
            lane.cache.wait()
            lane.start_cache()
        killed = who == "migrate" and bool(pids)
        status, err = lane.end(migrate, "migrate")
        if who == "criu" and pids and criu_broke_it(lane, pid, err):
            return CRIU_BROKE
        return f"{'hit' if pids else 'missed'}: {judge(lane, pid, out, status, err, killed=killed and status < 0)}"

    return f"GODWIT_SEED={seed}: {who} at {at:.3f} s", case


def test_random_kills(lanes):
    """A random program dies at a random time.  GODWIT_SEED repeats all of it, GODWIT_SEED_ONLY=1 with it one case alone."""
    print(f"GODWIT_SEED={SEED}")
    if os.environ.get("GODWIT_SEED_ONLY"):
        lanes.run([random_case(SEED)])
        return
    rng = random.Random(SEED)
    check_breaks(lanes.run([random_case(rng.randrange(1 << 32)) for _ in range(200 if FULL else 60)]))


# ---- 7. two at once ----

def test_two_of_one_process(lanes):
    def case(lane):
        pid, out = lane.spawn()
        lane.man.arm((f"down:{FRAMES['SNAPSHOT_ACCEPT']}", "hold"))
        first = lane.migrate(pid)
        lane.man.is_held.wait(10)
        status, err = lane.end(lane.migrate(pid), "migrate")
        assert status == BUSY and "already" in err, (status, err)
        lane.man.release()
        status, err = lane.end(first, "migrate")
        lane.man.disarm()
        assert status == 0, err
        return judge(lane, pid, out, status, err)

    lanes.run([("two of one process", case)])


def test_two_processes(lanes):
    def case(lane):
        spawned = [lane.spawn() for _ in range(3)]
        ended = [lane.end(m, "migrate") for m in [lane.migrate(pid) for pid, _ in spawned]]
        for (pid, out), (status, err) in zip(spawned, ended):
            assert status == 0, err
            lane.check_memory(lane.b, pid, out)
            lane.b.kill(pid)
            lane.b.wait_dead(pid)
        testbed.wait_for(lambda: not left_behind(lane), 6, lambda: left_behind(lane))
        return "all moved"

    lanes.run([("three processes", case)])


# ---- while the destination fills it ----

def until_held(lane, direction, name):
    """A migration of which that message is on its way, and held there; (pid, file, command)."""
    pid, out = lane.spawn(64, dirty=5)
    lane.man.arm((f"{direction}:{FRAMES[name]}", "hold"))
    migrate = lane.migrate(pid, "--max-rounds", "1")
    assert lane.man.is_held.wait(40)
    return pid, out, migrate


def stop_pagers(lane):
    pagers = [p for p, n in lane.ours(lane.b).items() if n == PAGER]
    assert len(pagers) == 2, pagers
    strike(lane.b, pagers, signal.SIGSTOP)
    return pagers


def end_at_b(lane, pid, out, migrate, strike_it):
    """Everybody is let go; what is said of it, which must be that it runs at b."""
    lane.man.release()
    killed = migrate.wait(20) == -signal.SIGKILL
    status, err = lane.end(migrate, "migrate")
    lane.man.disarm()
    if strike_it in (restart_cache, restart_by_starter):
        forget_notes(lane)
    got = judge(lane, pid, out, status, err, killed=killed)
    if not got.startswith("b; migrate: " + ("" if killed else f"{MOVED} ")):
        raise Broken(f"it was to run at b: {got}\n{lane.logs()}")
    return got


def filling_case(name, strike_it, begun=False, must=True):
    """Something happens to a migration of which the process runs already, and its memory is still to come.

    begun: some of it has come.  must: there is somebody to be struck for certain.
    """

    def case(lane):
        pid, out, migrate = until_held(lane, "down", "PREPARED")
        pagers = stop_pagers(lane)
        lane.man.arm((f"down:{FRAMES['RESTORED']}", "hold"))
        lane.man.release()
        assert lane.man.is_held.wait(20)
        assert "filling" in lane.snapshots().values()
        if begun:
            strike(lane.b, pagers, signal.SIGCONT)
            time.sleep(random.uniform(0, 0.05))
        hit = strike_it(lane, migrate)
        assert hit or not must
        strike(lane.b, pagers, signal.SIGCONT)
        return f"{'hit' if hit else 'too late'}: {end_at_b(lane, pid, out, migrate, strike_it)}"

    return name, case


def forget_notes(lane):
    """An image-cache that was killed during the fill does not know any more that the source knows: it keeps a note for an hour."""
    testbed.wait_for(lambda: "filling" not in lane.snapshots().values(), 10, "the fill to be over", every=0.05)
    for name in [name for name, state in lane.snapshots().items() if state == "restored"]:
        assert lane.resolve(lane.b, name, "--resume").returncode == 0


def strike_one(who):
    """Whether there was one to be struck."""

    def do(lane, migrate):
        host, pids = victims(lane, migrate, who)
        strike(host, pids, signal.SIGKILL)
        return bool(pids)

    return do


def restart_cache(lane, migrate, who="cache"):
    host, pids = victims(lane, migrate, who)
    strike(host, pids, signal.SIGKILL)
    lane.cache.wait()
    lane.start_cache()
    return True


def restart_by_starter(lane, migrate):
    return restart_cache(lane, migrate, "starter")


def reset_link(lane, migrate):
    lane.man.kick()
    return True


def test_fill_is_struck(lanes):
    """Killed programs and broken links while the process runs and its memory is still to come: it stays right."""
    cases = [filling_case(f"{who} killed", strike_one(who)) for who in ("pager", "standby", "migrate")]
    cases += [filling_case("cache killed", restart_cache), filling_case("starter killed", restart_by_starter)]
    cases.append(filling_case("the link is reset", reset_link))
    cases += [filling_case(f"{who} killed", strike_one(who), must=False) for who in ("criu-b", "hook-b", "keeper")]
    cases += [filling_case(f"{who} killed in the midst", strike_one(who), begun=True, must=False) for who in ("pager", "standby")]
    lanes.run(cases * (5 if FULL else 1))


def forgotten_case(name, strike_it):
    """Whoever knew of criu's end is gone when it is let go; the source settles before a page more has come."""

    def case(lane):
        pid, out, migrate = until_held(lane, "up", "VERDICT")
        assert strike_it(lane, migrate)
        pagers = stop_pagers(lane)
        lane.man.release()
        migrate.wait(20)
        strike(lane.b, pagers, signal.SIGCONT)
        return end_at_b(lane, pid, out, migrate, strike_it)

    return name, case


def test_fill_goes_on_without_a_keeper(lanes):
    lanes.run([forgotten_case("keeper killed", strike_one("keeper")), forgotten_case("cache killed", restart_cache),
               forgotten_case("starter killed", restart_by_starter)])


# ---- as criu lets it go ----

# In place of the hook: the first time it kills criu when that is about to let the process go.
KILLS_CRIU = f"""#!/bin/sh
if [ "$CRTOOLS_SCRIPT_ACTION" = pre-resume ] && mkdir {WORKDIR}/struck 2>/dev/null; then
    kill -9 $(cat /proc/$GODWIT_HOOK_KEEPER/task/$GODWIT_HOOK_KEEPER/children)
fi
exec {testbed.build_dir() / "godwit-hook"}
"""


class StruckLane(MigrateLane):
    """Its criu restore is killed once, by its own hook."""

    def start_cache(self, *options):
        path = self.b.path(f"{testbed.SHARED}/hook")
        path.write_text(KILLS_CRIU)
        path.chmod(0o755)
        self.env = {**self.env, "GODWIT_HOOK": f"{testbed.SHARED}/hook"}
        super().start_cache(*options)
        self.env.pop("GODWIT_HOOK")


def test_criu_dies_as_it_lets_go():
    """Whoever hears of it first, the keeper or the hook: it is not killed when it is said to run."""
    lane = StruckLane()
    try:
        for mb in (1, 64, 64, 128, 128):
            struck = lane.b.path(f"{WORKDIR}/struck")
            pid, out = lane.spawn(mb)
            lane.man.arm()
            status, err = lane.end(lane.migrate(pid, "--eager"), "migrate")
            assert struck.is_dir()
            struck.rmdir()
            got = judge(lane, pid, out, status, err)
            assert got.startswith(f"b; migrate: {MOVED} "), f"{got}\n{lane.logs()}"
    finally:
        lane.close()


# ---- the table ----

def test_every_state_is_hit(points):
    """Each state of the source's table has a message while which it lasts, so the matrix goes through it."""
    text = (testbed.REPO / "src/migrate/commit.c").read_text()
    states = set(re.findall(r"^ +\[SOURCE_(\w+)\] = \{", text, re.M))
    during = {"CONNECTING": ("up", "HELLO"), "CHECKING": ("down", "CHECKED"), "OFFERING": ("down", "SNAPSHOT_ACCEPT"),
              "COPYING": ("up", "PAGES"), "DUMPING": ("up", "PAGE_RUNS", FROZEN), "SENDING": ("down", "SNAPSHOT_ACK"), "PREPARING": ("down", "PREPARED"),
              "COMMITTED": ("down", "RESTORED")}
    assert states == set(during)
    for direction, name, *flags in during.values():
        assert point_of(direction, FRAMES[name], sum(flags)) in points
