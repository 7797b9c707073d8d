# SPDX-License-Identifier: Apache-2.0
"""Whatever breaks, whenever it breaks: exactly one intact copy of the process, and nothing hangs.

The cases are generated: every frame of an ordinary migration x every fault of the relay; every program x every stage x
kill and stop.  Lies are in test_lies.py.  What each is judged by is in failures.py.  GODWIT_FULL=1 runs more of each,
GODWIT_SEED=N repeats the random ones.
"""

import contextlib
import os
import random
import signal
import time

import pytest

import bed as testbed
import failures
from failures import (CRIU_BROKE, FRAMES, FULL, LINK_TIMEOUT, WORKDIR, Broken, Lane, Lanes, check_breaks, check_calm,
                      criu_broke_it, criu_log, follow_up, judge, migrate, one_line, point_name)

SEED = int(os.environ.get("GODWIT_SEED") or random.SystemRandom().randrange(1 << 32))


@pytest.fixture(scope="module")
def lanes():
    made = Lanes()
    yield made
    made.close()


@pytest.fixture
def lane():
    made = Lane()
    yield made
    made.close()


# ---- 1. the link ----

# Frame types that an ordinary migration has in each direction; test_every_frame_is_known finds out when that changes.
ACTIONS = ["cut", "cut-middle", "close", "stall", "garbage", "flip", "drop", "delay:0.4", "one-byte-frame"]
HARMLESS = ("delay", "one-byte-frame")


@pytest.fixture(scope="module")
def points(lanes):
    """[(direction, type)] of an ordinary migration, the beginning of the connection included."""
    lane = Lane()
    try:
        lane.man.arm()
        lane.man.kick()
        lane.wait_link()
        testbed.wait_for(lambda: {("up", FRAMES["HEARTBEAT"]), ("down", FRAMES["HEARTBEAT"])} <= {s[:2] for s in lane.man.seen},
                         5, "heartbeats")
        migrate(lane)
        check_calm(lane)
        return sorted({s[:2] for s in lane.man.seen}, key=str)
    finally:
        lane.close()


def fault_case(direction, kind, action, nth=1):
    def case(lane):
        handshake = kind in ("preamble", FRAMES["HELLO"])
        pid, out = lane.spawn()
        lane.wait_link()
        lane.man.arm((f"{direction}:{kind}:{nth}", action))
        if handshake:
            lane.man.kick()
            testbed.wait_for(lane.man.fired.is_set, 5, "the proxy to dial")
        elif kind == FRAMES["HEARTBEAT"]:
            lane.man.fired.wait(3)
        status, err = lane.end(lane.dump(pid), "dump")
        fired = lane.man.fired.is_set()
        harmless = action.startswith(HARMLESS) or kind == FRAMES["HEARTBEAT"] and action == "drop"
        got = judge(lane, pid, out, status, err, must="moved" if harmless else None)
        if not fired:
            raise Broken(f"there was no such frame; {got}")
        if harmless and status:
            raise Broken(f"the fault is harmless, and dump fails: {got}\n{lane.logs()}")
        lane.man.disarm()
        check_calm(lane)
        follow_up(lane, pid, out)
        return got

    return f"{point_name(direction, kind)}{f'#{nth}' if nth > 1 else ''} {action}", case


@pytest.mark.parametrize("action", ACTIONS)
def test_link(lanes, points, action):
    """Every kind of frame, in each direction, has an accident."""
    cases = [fault_case(d, k, action) for d, k in points]
    if FULL:
        cases += [fault_case(d, k, action, 2) for d, k in points if k in map(FRAMES.get, (
            "SPACE_BEGIN", "PAGES", "SPACE_END", "IMAGE_BEGIN", "IMAGE_DATA", "IMAGE_END"))]
    got = lanes.run(cases)
    # A fault before the acknowledgement is the dump's failure, and one after it is not: both must have happened.
    if action in ("cut", "stall"):
        assert {v.where for _, v in got} == {"source", "restored"}


def test_link_one_byte_at_a_time(lanes):
    """The whole connection, both ways, from its first byte on."""

    def case(lane):
        lane.man.arm(("up:preamble", "one-byte"), ("down:preamble", "one-byte"))
        # The relay holds what the proxy has sent, and takes seconds over it: that is no cache that does not answer.
        lane.proxy.kill()
        lane.proxy.wait()
        lane.start_proxy("--timeout", "20")
        lane.wait_link()
        out = f"{testbed.SHARED}/count"
        pid = lane.a.spawn([testbed.workload("counter"), out])
        testbed.wait_for(lambda: lane.a.path(out).exists() and testbed.read_counter(lane.a, out).state == "running", 5, "it to count")
        status, err = lane.end(lane.dump(pid), "dump")
        assert (status, err) == (0, "")
        assert lane.end(lane.restore(), "restore") == (0, "")
        before = testbed.read_counter(lane.b, out).counter
        testbed.wait_for(lambda: testbed.read_counter(lane.b, out).counter > before + 10, 5, "the counter to go on")
        assert testbed.read_counter(lane.b, out).state == "running"
        lane.b.kill(pid)
        lane.man.disarm()
        lane.proxy.kill()
        lane.proxy.wait()
        lane.start_proxy()
        lane.wait_link()
        check_calm(lane)
        return "moved"

    lanes.run([("one byte at a time", case)])


# ---- 2. killed and stopped at each stage of a dump ----

# The user's action script runs before godwit's hook, so at post-dump nothing has been asked yet.
BLOCK = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = "$GODWIT_TEST_STAGE" ] || exit 0
: > /tmp/reached
while [ ! -e /tmp/go ]; do sleep 0.02; done
"""

SCRIPT_STAGES = ["pre-dump", "post-dump"]
HELD_STAGES = {
    "opening": ("up", "SNAPSHOT_BEGIN"),
    "pages": ("up", "PAGES"),
    "images": ("up", "IMAGE_DATA"),
    "before-the-end": ("up", "SNAPSHOT_END"),
    "before-the-ack": ("down", "SNAPSHOT_ACK"),
    "before-the-verdict": ("up", "VERDICT"),
    "before-the-verdict-ack": ("down", "VERDICT_ACK"),
}
STAGES = [*SCRIPT_STAGES, *HELD_STAGES]
# Before this stage the source must live on, from it on it must have ended, whoever dies.
DEAD_FROM = STAGES.index("before-the-verdict")
# What is not there yet, or not any more.
ABSENT = {"criu": ("opening", "before-the-verdict-ack"),
          "hook": ("opening", "pre-dump", "pages", "post-dump", "before-the-verdict", "before-the-verdict-ack")}
TARGETS = ["proxy", "cache", "criu", "dump", "hook"]


class Block:
    """The action script that waits at a stage."""

    def __init__(self, host, stage):
        self.host = host
        for name in ("go", "reached"):
            host.path(f"/tmp/{name}").unlink(missing_ok=True)
        host.write("/tmp/block.sh", BLOCK)
        host.path("/tmp/block.sh").chmod(0o755)
        self.passed = ("--action-script", "/tmp/block.sh")
        self.env = {"GODWIT_TEST_STAGE": stage}

    def reached(self):
        return self.host.path("/tmp/reached").exists()

    def release(self):
        self.host.write("/tmp/go", "")


def victims(lane, dump, target):
    """(host, pids) of a target of a dump that is under way."""
    if target == "cache":
        return lane.b, [lane.cache.host_pid]
    if target == "proxy":
        return lane.a, [lane.proxy.host_pid]
    if target == "dump":
        return lane.a, [dump.host_pid] if dump.poll() is None else []
    return lane.a, lane.relatives(dump, "godwit-hook" if target == "hook" else target)


def strike(host, pids, sig):
    for pid in pids:
        try:
            host.kill(pid, sig)
        except ProcessLookupError:
            pass


def dump_case(stage, target, sig):
    def case(lane):
        pid, out = lane.spawn()
        lane.wait_link()
        block = Block(lane.a, stage)
        lane.man.arm(*([(f"{HELD_STAGES[stage][0]}:{FRAMES[HELD_STAGES[stage][1]]}", "hold")] if stage in HELD_STAGES else []))
        dump = lane.dump(pid, passed=block.passed, env=block.env)
        here = lane.man.is_held.is_set if stage in HELD_STAGES else block.reached
        testbed.wait_for(lambda: here() or dump.poll() is not None, 10, f"the stage {stage}")
        if dump.poll() is not None:
            raise Broken(f"dump ended before {stage}: {lane.end(dump, 'dump')}")
        if target in ("hook", "criu") and stage == "before-the-end":
            time.sleep(0.05)  # the hook has asked, or it would not be the end
        host, pids = victims(lane, dump, target)
        if not pids:
            # It had gone a moment before: an ordinary migration, then.
            lane.man.release()
            block.release()
            return f"no {target} any more: {judge(lane, pid, out, *lane.end(dump, 'dump'), must='moved')}"
        began = time.monotonic()
        strike(host, pids, sig)
        if target == "cache" and sig == signal.SIGKILL:
            lane.cache.wait()
        if target == "proxy" and sig == signal.SIGKILL:
            lane.proxy.wait()
        time.sleep(0.02)
        block.release()
        lane.man.release()
        if sig == signal.SIGSTOP:
            # Long enough for everybody to notice; what is told to go on then is of yesterday.
            frozen = time.monotonic() + 2 * LINK_TIMEOUT
            while time.monotonic() < frozen and (dump.poll() is None or time.monotonic() < began + LINK_TIMEOUT + 0.5):
                time.sleep(0.02)
            if target in ("proxy", "cache") and lane.a.state(pid) in ("T", "t"):
                # A stalled daemon: the source must be let go all the same, while the daemon still stands.
                try:
                    testbed.wait_for(lambda: lane.a.state(pid) not in ("T", "t"), 12 - (time.monotonic() - began), "")
                except testbed.BedError:
                    raise Broken(f"the source stays frozen while the {target} is stopped\n{lane.logs()}") from None
            thawed = time.monotonic() - began
            strike(host, pids, signal.SIGCONT)
        status, err = lane.end(dump, "dump")
        lane.revive()
        if target == "criu" and sig == signal.SIGKILL and stage in ("pre-dump", "pages") and criu_broke_it(lane, pid, err):
            lane.man.disarm()
            return CRIU_BROKE
        killed = target == "dump" and sig == signal.SIGKILL
        # Only a proxy that is dead takes what it knew with it.
        got = judge(lane, pid, out, status, err, dump_killed=killed, self_heals=(target, sig) != ("proxy", signal.SIGKILL))
        where = STAGES.index(stage)
        if where >= DEAD_FROM and got.where == "source":
            raise Broken(f"the source had ended at {stage}, and lives: {got}")
        if where < STAGES.index("before-the-ack") and target in ("proxy", "cache") and got.where != "source":
            raise Broken(f"nobody can have acknowledged at {stage}, and the source has ended: {got}")
        lane.man.disarm()
        check_calm(lane)
        follow_up(lane, pid, out)
        return f"{got}{f', frozen for {thawed:.1f} s' if sig == signal.SIGSTOP and target in ('proxy', 'cache') else ''}"

    return f"{stage}: {signal.Signals(sig).name} {target}", case


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("target", TARGETS)
def test_dump(lanes, target, sig):
    """Each program of a dump is killed, or stopped for a while, at each stage."""
    check_breaks(lanes.run([dump_case(stage, target, sig) for stage in STAGES if stage not in ABSENT.get(target, ())]))


# ---- 2b. killed and stopped at each stage of a restore ----

RESTORE_STAGES = ["waiting", "pre-restore", "post-restore", "pre-resume", "post-resume"]
RESTORE_TARGETS = ["restore", "criu", "hook", "cache"]


def restore_case(stage, target, sig):
    def case(lane):
        a, b = lane.a, lane.b
        pid, out = lane.spawn()
        lane.wait_link()
        if stage != "waiting":
            assert lane.end(lane.dump(pid, "--snapshot", "it"), "dump")[0] == 0
        block = Block(b, stage)
        restore = lane.restore("it", passed=block.passed, env=block.env)
        if stage == "waiting":
            testbed.wait_for(lambda: any(f.startswith("socket:") for f in b.fds(restore.host_pid).values()), 10, "it to ask the cache")
            time.sleep(0.1)
        else:
            testbed.wait_for(lambda: block.reached() or restore.poll() is not None, 10, f"the stage {stage}")
            if restore.poll() is not None:
                raise Broken(f"restore ended before {stage}: {lane.end(restore, 'restore')}")
        pids = {"restore": [restore.host_pid], "cache": [lane.cache.host_pid]}.get(target)
        if pids is None:
            if target == "hook":
                # It lives for a moment only: stop whatever comes.
                block.release()
                end = time.monotonic() + 1.5
                pids = []
                while not pids and time.monotonic() < end and restore.poll() is None:
                    pids = lane.relatives(restore, "godwit-hook")
            else:
                pids = lane.relatives(restore, "criu")
        strike(b, pids, sig)
        if target == "cache" and sig == signal.SIGKILL:
            lane.cache.wait()
        time.sleep(0.02)
        block.release()
        if sig == signal.SIGSTOP:
            time.sleep(2 * LINK_TIMEOUT)
            strike(b, pids, signal.SIGCONT)
        if stage == "waiting":
            if target == "cache" or target == "criu":
                lane.revive()
            if target in ("restore", "cache") and (sig == signal.SIGKILL or target == "cache"):
                if target == "cache":
                    status, err = lane.end(restore, "restore")
                    if status == 0:
                        raise Broken("restore says that it is done, and there was nothing")
                    one_line("restore", status, err)
                    restore = None
            lane.wait_link()
            assert lane.end(lane.dump(pid, "--snapshot", "it"), "dump")[0] == 0
        status, err = lane.end(restore, "restore") if restore else (1, "")
        if sig == signal.SIGKILL and target == "restore":
            status = -9
        elif restore and status:
            one_line("restore", status, err)
        lane.revive()
        if a.pid_alive(pid):
            raise Broken("the source lives again")
        return judge_restore(lane, pid, out, f"restore: {status} {err!r}", done=status == 0)

    return f"{stage}: {signal.Signals(sig).name} {target}", case


def judge_restore(lane, pid, out, text, done=None):
    """After the dump has succeeded: the process runs at b, or its snapshot is there and can be restored."""
    b = lane.b
    try:
        testbed.wait_for(lambda: not [p for p in b.pids() if failures.program(b, p) in ("criu", "godwit-hook")], 13, "")
    except testbed.BedError:
        raise Broken(f"criu or a hook is left at b: {lane.leavings()}; {text}\n{lane.logs()}") from None
    try:
        testbed.wait_for(lambda: b.state(pid) not in ("T", "t"), 3, "")
    except testbed.BedError:
        raise Broken(f"half restored: the process at b is left in state {b.state(pid)}; {text}\n{lane.logs()}") from None
    runs = b.pid_alive(pid)
    if runs:
        try:
            lane.check_memory(b, pid, out)
        except (Broken, ProcessLookupError):
            if b.pid_alive(pid):
                raise
            runs = False  # criu had killed it when it ended
    if done and not runs:
        raise Broken(f"restore said it is done, and nothing runs; {text}\n{lane.logs()}")
    try:
        testbed.wait_for(lambda: not {"restoring", "held", "receiving"} & set(lane.snapshots().values()), 5, "")
    except testbed.BedError:
        raise Broken(f"the snapshot stays {lane.snapshots()}; {text}\n{lane.logs()}") from None
    with contextlib.suppress(testbed.BedError):  # an image-cache that was killed is told by a proxy that is there, in a moment
        testbed.wait_for(lambda: "in-doubt" not in lane.snapshots().values(), 2, "")
    snapshots = lane.snapshots()
    if len(snapshots) > 1:
        raise Broken(f"several snapshots: {snapshots}")
    name, state = next(iter(snapshots.items()), (None, None))
    if runs and state:
        refused, why = lane.end(lane.restore(name, "--wait", "0.2"), "restore")
        if state == "ready" or refused != 7:
            raise Broken(f"it runs at b and the snapshot is {state}: restoring it by default gives {refused} {why}; {text}")
        b.run([lane.godwit, "forget", "-W", WORKDIR, name], check=True)
    if runs:
        b.kill(pid)
        b.wait_dead(pid)
        check_calm(lane)
        follow_up(lane, pid, out)
        return f"runs at b, snapshot {state}; {text}"
    if not state:
        raise Broken(f"no copy: nothing runs and the cache has nothing; {text}\n{lane.logs()}")
    if state != "ready":
        refused, why = lane.end(lane.restore(name, "--wait", "0.2"), "restore")
        if refused != 7:
            raise Broken(f"snapshot {state}: restoring it by default gives {refused} {why}")
    again, why = lane.end(lane.restore(name, *(["--take-over"] if state != "ready" else [])), "restore")
    if again:
        raise Broken(f"no copy: snapshot {state} cannot be restored: {again} {why}; {text}\n{criu_log(b)}{lane.logs()}")
    lane.check_memory(b, pid, out)
    b.kill(pid)
    b.wait_dead(pid)
    check_calm(lane)
    return f"restored again from {state}; {text}"


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP])
def test_restore(lanes, sig):
    """Each program of a restore is killed, or stopped for a while, at each stage."""
    lanes.run([restore_case(stage, target, sig) for stage in RESTORE_STAGES for target in RESTORE_TARGETS
               if not (stage == "waiting" and target in ("criu", "hook"))])


def test_cache_killed_with_snapshots(lane):
    """A new image-cache in the same work-dir has what the killed one had: complete ones, and no others."""
    whole, whole_out = lane.spawn()
    assert lane.end(lane.dump(whole, "--snapshot", "whole"), "dump")[0] == 0
    part, part_out = lane.spawn(8)
    lane.man.arm((f"up:{FRAMES['PAGES']}:20", "hold"))
    dump = lane.dump(part, "--snapshot", "part")
    assert lane.man.is_held.wait(5)
    testbed.wait_for(lambda: lane.snapshots() == {"whole": "ready", "part": "receiving"}, 3, "part to arrive")
    lane.cache.kill()
    lane.cache.wait()
    lane.start_cache()
    lane.man.release()
    assert lane.snapshots() == {"whole": "ready"}
    assert lane.b.run(["ls", f"{WORKDIR}/images"]).stdout.split() == ["whole"]
    status, err = lane.end(dump, "dump")
    assert status == 4
    one_line("dump", status, err)
    lane.check_memory(lane.a, part, part_out)
    assert lane.end(lane.restore("whole"), "restore") == (0, "")
    lane.check_memory(lane.b, whole, whole_out)
    lane.b.kill(whole)
    lane.man.disarm()
    migrate(lane, part, part_out)
    check_calm(lane)


# ---- 3. memory ----

def test_memory_limit():
    """A snapshot above the cache's limit is refused in time; what fits goes through afterwards."""
    lane = Lane(cache_options=["--memory-limit", "8M"])
    try:
        for _ in range(2):
            pid, out = lane.spawn(32)
            status, err = lane.end(lane.dump(pid), "dump")
            assert status == 6, err
            judge(lane, pid, out, status, err, must="source")
            assert lane.status(lane.b)[0]["used_bytes"] == 0
            lane.a.kill(pid)
        migrate(lane)
        # Two that fit one by one and not together.
        kept, kept_out = lane.spawn()
        assert lane.end(lane.dump(kept, "--snapshot", "kept"), "dump")[0] == 0
        pid, out = lane.spawn()
        status, err = lane.end(lane.dump(pid), "dump")
        assert status == 6, err
        lane.check_memory(lane.a, pid, out)
        assert lane.end(lane.restore("kept"), "restore") == (0, "")
        lane.check_memory(lane.b, kept, kept_out)
        lane.b.kill(kept)
        lane.b.wait_dead(kept)
        migrate(lane, pid, out)
        check_calm(lane)
    finally:
        lane.close()


@pytest.mark.parametrize("room", ["4M", "5000k", "20k"])
def test_store_without_room(lane, room):
    """The machine itself has no memory left for the store, whatever the limit says."""
    lane.b.run(["mount", "-o", f"remount,size={room}", f"{WORKDIR}/images"], check=True)
    pid, out = lane.spawn(8)
    status, err = lane.end(lane.dump(pid), "dump")
    assert status == 6, f"{status} {err}\n{lane.logs()}"
    judge(lane, pid, out, status, err, must="source")
    check_calm(lane)
    lane.b.run(["mount", "-o", "remount,size=100%", f"{WORKDIR}/images"], check=True)
    migrate(lane, pid, out)
    check_calm(lane)


@pytest.mark.parametrize("what", ["bytes", "inodes"])
@pytest.mark.parametrize("where", ["source", "destination"])
def test_run_is_full(lane, where, what):
    """Nothing can be written to /run: a migration works without its logs, or fails and leaves the process alone."""
    host = lane.a if where == "source" else lane.b
    used = int(host.run(["df", "--output=" + ("used" if what == "bytes" else "iused"), "/run"]).stdout.split()[-1])
    option = f"size={max(used, 4)}k" if what == "bytes" else f"nr_inodes={used + 1}"
    host.run(["mount", "-o", f"remount,{option}", "/run"], check=True)
    host.run(["sh", "-c", "cat /dev/zero > /run/fill 2>/dev/null; true"])
    pid, out = lane.spawn()
    status, err = lane.end(lane.dump(pid, "--snapshot", "it"), "dump")
    if status:
        assert status in (1, 3), err
        judge(lane, pid, out, status, err, must="source")
    else:
        restored, why = lane.end(lane.restore("it"), "restore")
        if restored:
            one_line("restore", restored, why)
            assert lane.snapshots() == {"it": "ready"}, f"{lane.snapshots()}; {why}"
    host.path("/run/fill").unlink(missing_ok=True)
    host.run(["mount", "-o", "remount,size=50%,nr_inodes=100k", "/run"], check=True)
    if not status:
        if restored:
            assert lane.end(lane.restore("it"), "restore")[0] == 0
        lane.check_memory(lane.b, pid, out)
        lane.b.kill(pid)
        lane.b.wait_dead(pid)
    check_calm(lane)
    migrate(lane, pid, out)


# ---- 4. at random ----

RANDOM_TARGETS = ["proxy", "cache", "dump", "criu", "hook", "restore", "criu-restore"]


def random_case(seed):
    rng = random.Random(seed)
    target, at = rng.choice(RANDOM_TARGETS), rng.uniform(0, 0.6)

    def case(lane):
        a, b = lane.a, lane.b
        pid, out = lane.spawn(rng.choice([1, 1, 4, 16]))
        lane.wait_link()
        began = time.monotonic()
        restore = lane.restore("it", "--wait", "6")
        dump = lane.dump(pid, "--snapshot", "it")
        time.sleep(max(0, at - (time.monotonic() - began)))
        if target in ("restore", "criu-restore"):
            host, pids = b, [restore.host_pid] if target == "restore" else lane.relatives(restore, "criu")
        else:
            host, pids = victims(lane, dump, target)
        strike(host, pids, signal.SIGKILL)
        for p in (lane.proxy, lane.cache):
            if p.host_pid in pids:
                p.wait()
        status, err = lane.end(dump, "dump")
        if target != "dump" and status:
            one_line("dump", status, err)
        lane.revive()
        restored, why = lane.end(restore, "restore")
        if target == "criu" and pids and criu_broke_it(lane, pid, err):
            return CRIU_BROKE
        if target != "restore" and restored:
            one_line("restore", restored, why)
        text = f"dump {status} {err!r}, restore {restored} {why!r}"
        runs_at_b = b.pid_alive(pid)
        if a.pid_alive(pid) and runs_at_b:
            time.sleep(0.5)
            if a.pid_alive(pid):
                raise Broken(f"two copies; {text}\n{lane.logs()}")
        if a.pid_alive(pid):
            got = judge(lane, pid, out, status, err, dump_killed=target == "dump", self_heals=target != "proxy")
        else:
            got = judge_restore(lane, pid, out, text, done=restored == 0)
        check_calm(lane)
        return f"{'hit' if pids else 'missed'}: {got}"

    return f"GODWIT_SEED={seed}: {target} at {at:.3f} s", case


def test_random_kills(lanes):
    """A random program dies at a random time of a migration.  GODWIT_SEED repeats all of it, or one case alone."""
    print(f"GODWIT_SEED={SEED}")
    if os.environ.get("GODWIT_SEED_ONLY"):
        lanes.run([random_case(SEED)])
        return
    rng = random.Random(SEED)
    check_breaks(lanes.run([random_case(rng.randrange(1 << 32)) for _ in range(300 if FULL else 60)]))
