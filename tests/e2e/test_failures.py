# SPDX-License-Identifier: Apache-2.0
"""Whatever breaks, whenever it breaks: exactly one intact copy of the process, and nothing hangs.

The cases are generated: every frame of an ordinary migration x every fault of the relay; every program x every stage x
kill and stop; every lie x every stage.  What each is judged by is in failures.py.  GODWIT_FULL=1 runs more of each,
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
from failures import (CRIU_BROKE, FRAMES, FULL, LINK_TIMEOUT, PREAMBLE, WORKDIR, Broken, Lane, Lanes, Wire, check_breaks, check_calm,
                      criu_broke_it, criu_log, damaged, follow_up, frame, hello, in_network, judge, message, migrate, one_line, parse_message, point_name, varint, xxh3_128)

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


# ---- 3. a peer that lies: to the cache ----

def image(number, name, session=1):
    return frame("IMAGE_BEGIN", message(f1=name), session, number)


def data(number, content, offset=0, session=1, **kw):
    return frame("IMAGE_DATA", content, session, number, offset, **kw)


def image_end(number, content, session=1, **change):
    return frame("IMAGE_END", message(**{"f1": len(content), "f2": xxh3_128(content), **change}), session, number)


def whole_image(number, name, content, session=1):
    return image(number, name, session) + data(number, content, 0, session) + image_end(number, content, session)


def space(number, kind=1, ident=5, session=1):
    return frame("SPACE_BEGIN", message(f1=kind, f2=ident), session, number)


PAGE = bytes(range(256)) * 16
NONCE = 77


def pages(number, vaddr, content=PAGE, session=1, **kw):
    return frame("PAGES", content, session, number, vaddr, **kw)


def space_end(number, runs, session=1, **change):
    """runs: [(vaddr, content)], a frame each."""
    digest = xxh3_128(b"".join(v.to_bytes(8, "little") + len(c).to_bytes(8, "little") + c for v, c in runs))
    return frame("SPACE_END", message(**{"f1": sum(len(c) for _, c in runs), "f2": digest, **change}), session, number)


def end(images=0, spaces=0, total=0, session=1):
    return frame("SNAPSHOT_END", message(f1=images, f2=spaces, f3=total), session)


def begin(ident="lie", session=1):
    return frame("SNAPSHOT_BEGIN", message(f1=ident, f2=5, f3="liar", f5=NONCE), session)


def verdict(ident, commit, nonce=None):
    return frame("VERDICT", message(f1=ident, f2=commit, f3="a lie", f4=nonce or NONCE), 0)


def pagemap(pages_id, vaddr, count):
    head = message(f1=pages_id)
    entry = message(f1=vaddr, f2=count, f4=4)
    return b"".join(x.to_bytes(4, "little") for x in (0x54564319, 0x56084025)) + b"".join(
        len(m).to_bytes(4, "little") + m for m in (head, entry))


GOOD = b"content of an image"
TOP = 1 << 64

# What a proxy may say once its snapshot, session 1, is accepted; and what the cache must do:
# "goodbye": it ends the link and says why, "refuse": the snapshot is refused and the link goes on, "ack": all is well.
LIES_IN_SESSION = [
    ("honest", "ack", whole_image(1, "a.img", GOOD) + space(2) + pages(2, 0x10000) + space_end(2, [(0x10000, PAGE)])
     + end(1, 1, len(GOOD) + len(PAGE))),
    ("an empty image", "ack", image(1, "a.img") + image_end(1, b"") + end(1)),
    ("a name of 255 bytes", "ack", whole_image(1, "n" * 255, GOOD) + end(1, 0, len(GOOD))),
    *[(f"image name {name[:20]!r} ({len(name)})", "goodbye", image(1, name))
      for name in ("", ".", "..", "../x", "a/b", "/etc/passwd", "../../../../tmp/x", "n" * 256, "n" * 60000, "a\nb", "a\x1bb")],
    ("a name that is not text", "goodbye", image(1, b"\xff\xfe/..") + data(1, GOOD) + image_end(1, b"") + end(1)),
    ("the same name twice", "refuse", whole_image(1, "a.img", GOOD) + image(2, "a.img")),
    ("an image in the place of the pages", "refuse", whole_image(1, "pages-1.img", GOOD) + space(2)),
    ("pages in the place of an image", "refuse", space(1) + image(2, "pages-1.img")),
    ("an image in the place of a pagemap", "refuse", whole_image(1, "pagemap-5.img", GOOD) + space(2)
     + pages(2, 0x10000) + space_end(2, [(0x10000, PAGE)])),
    ("a pagemap that promises more than there is", "refuse",
     whole_image(1, "pages-1.img", PAGE) + whole_image(2, "pagemap-5.img", pagemap(1, 0x10000, 2))
     + end(2, 0, len(PAGE) + len(pagemap(1, 0x10000, 2)))),
    ("a pagemap of 2^63 pages", "refuse",
     whole_image(1, "pages-1.img", PAGE) + whole_image(2, "pagemap-5.img", pagemap(1, 0x10000, 1 << 63))
     + end(2, 0, len(PAGE) + len(pagemap(1, 0x10000, 1 << 63)))),
    ("a pagemap of rubbish", "refuse", whole_image(1, "pagemap-5.img", GOOD) + end(1, 0, len(GOOD))),
    *[(f"first item {n}", "goodbye", image(n, "a.img")) for n in (0, 2, 1 << 31, (1 << 32) - 1)],
    ("an item number again", "goodbye", image(1, "a.img") + image(1, "b.img")),
    ("data for an item that is closed", "goodbye", whole_image(1, "a.img", GOOD) + data(1, GOOD, len(GOOD))),
    ("data for an item that never was", "goodbye", data(1, GOOD)),
    ("data for item 0", "goodbye", image(1, "a.img") + data(0, GOOD)),
    ("data for another session", "goodbye", image(1, "a.img") + data(1, GOOD, session=2)),
    ("image data for memory", "goodbye", space(1) + data(1, PAGE)),
    ("pages for an image", "goodbye", image(1, "a.img") + pages(1, 0x10000)),
    ("a gap in an image", "goodbye", image(1, "a.img") + data(1, GOOD, 1)),
    ("an image backwards", "goodbye", image(1, "a.img") + data(1, GOOD) + data(1, GOOD, 0)),
    *[(f"image data at {offset:#x}", "goodbye", image(1, "a.img") + data(1, GOOD, offset)) for offset in (1 << 63, TOP - 1, TOP - len(GOOD))],
    *[(f"a page at {vaddr:#x}", "goodbye", space(1) + pages(1, vaddr)) for vaddr in (1, 0x10800, TOP - 1, TOP - 4096, 1 << 63)],
    ("pages beyond the end of all addresses", "goodbye", space(1) + pages(1, TOP - 4096, PAGE * 2)),
    ("half a page", "goodbye", space(1) + pages(1, 0x10000, PAGE[:2048])),
    ("no page", "goodbye", space(1) + pages(1, 0x10000, b"") + space_end(1, []) + end(0, 1)),
    ("unknown flags of pages", "goodbye", space(1) + pages(1, 0x10000, flags=0x8000)),
    ("no data for no item", "goodbye", data(77, b"") + end()),
    ("memory of no kind", "goodbye", space(1, 0)),
    ("memory of an unknown kind", "goodbye", space(1, 9)),
    ("memory of a negative kind", "goodbye", space(1, TOP - 1)),
    ("the same memory twice", "refuse", space(1) + pages(1, 0x10000) + space_end(1, [(0x10000, PAGE)]) + space(2)
     + pages(2, 0x10000) + space_end(2, [(0x10000, PAGE)]) + end(0, 2, 2 * len(PAGE))),
    ("a wrong digest", "refuse", image(1, "a.img") + data(1, GOOD) + image_end(1, GOOD, f2=bytes(16))),
    ("a wrong digest of memory", "refuse", space(1) + pages(1, 0x10000) + space_end(1, [(0x11000, PAGE)])),
    ("a digest of 15 bytes", "goodbye", image(1, "a.img") + data(1, GOOD) + image_end(1, GOOD, f2=xxh3_128(GOOD)[:15])),
    ("no digest", "goodbye", image(1, "a.img") + data(1, GOOD) + image_end(1, GOOD, f2=b"")),
    ("a wrong size", "refuse", image(1, "a.img") + data(1, GOOD) + image_end(1, GOOD, f1=len(GOOD) + 1)),
    ("a size of 2^64 - 1", "refuse", image(1, "a.img") + data(1, GOOD) + image_end(1, GOOD, f1=TOP - 1)),
    ("the end of an image twice", "goodbye", whole_image(1, "a.img", GOOD) + image_end(1, GOOD)),
    ("the end of memory for an image", "goodbye", image(1, "a.img") + space_end(1, [])),
    ("the end with an item open", "goodbye", image(1, "a.img") + end(1)),
    *[(f"a wrong sum {counts}", "goodbye", whole_image(1, "a.img", GOOD) + end(*counts))
      for counts in ((0, 0, len(GOOD)), (2, 0, len(GOOD)), (1, 1, len(GOOD)), (1, 0, 0), (1, 0, TOP - 1), ((1 << 32) - 1, 0, 0))],
    ("an item after the end", "goodbye", whole_image(1, "a.img", GOOD) + end(1, 0, len(GOOD)) + image(2, "b.img")),
    ("the end twice", "goodbye", whole_image(1, "a.img", GOOD) + end(1, 0, len(GOOD)) * 2),
    ("the session again", "goodbye", begin("other")),
    ("the id again", "refuse", begin("lie", 2)),
    ("the abort of another session", "goodbye", frame("SNAPSHOT_ABORT", message(f1=1, f2="no"), 2)),
    ("an acknowledgement", "goodbye", frame("SNAPSHOT_ACK")),
    ("an acceptance", "goodbye", frame("SNAPSHOT_ACCEPT")),
    ("a verdict's acknowledgement", "goodbye", frame("VERDICT_ACK", message(f1="lie"))),
    ("a second hello", "goodbye", frame("HELLO", hello(), 0)),
    ("rubbish for a message", "goodbye", frame("IMAGE_BEGIN", b"\xff" * 40, 1, 1)),
    ("a message cut short", "goodbye", frame("IMAGE_BEGIN", message(f1="a.img")[:-2], 1, 1)),
    ("a length inside a message that is a lie", "goodbye", frame("IMAGE_BEGIN", b"\x0a" + varint(TOP - 1) + b"a", 1, 1)),
    ("a control frame of 64 KiB and a byte", "goodbye", frame("IMAGE_BEGIN", b"", 1, 1, length=(64 << 10) + 1)),
    ("a control frame of 4 GiB", "goodbye", frame("IMAGE_BEGIN", b"", 1, 1, length=(1 << 32) - 1)),
    ("a data frame of 1 MiB and a byte", "goodbye", image(1, "a.img") + data(1, b"", length=(1 << 20) + 1)),
    ("a data frame of 4 GiB", "goodbye", image(1, "a.img") + data(1, b"", length=(1 << 32) - 1)),
    ("a wrong check", "goodbye", frame("IMAGE_BEGIN", message(f1="a.img"), 1, 1, check=1)),
    ("a wrong check of data", "goodbye", image(1, "a.img") + data(1, GOOD, check=1)),
    ("a wrong check of nothing", "goodbye", frame("HEARTBEAT", b"", 0, check=0)),
    ("a name with a bit turned", "goodbye", damaged(image(1, "a.img"))),
    ("an image with a bit turned", "refuse", image(1, "a.img") + damaged(data(1, GOOD)) + image_end(1, GOOD)),
    ("pages with a bit turned", "refuse", space(1) + damaged(pages(1, 0x10000)) + space_end(1, [(0x10000, PAGE)])),
    ("flags", "goodbye", frame("IMAGE_BEGIN", message(f1="a.img"), 1, 1, flags=1)),
    ("a verdict for what is not complete", "drop", verdict("lie", True) + frame("SNAPSHOT_ABORT", message(f1=1, f2="no"))),
    ("an abort that is rubbish", "goodbye", frame("SNAPSHOT_ABORT", b"\xff")),
    ("a hundred thousand images", "goodbye", b"".join(image(n, f"i{n}") + image_end(n, b"") for n in range(1, 100002))
     if FULL else image(100001, "a.img")),
]

LIES_FOR_A_SNAPSHOT = [(f"snapshot id {i[:20]!r} ({len(i)})", "refuse", begin(i)) for i in (
    "", ".", "..", ".hidden", "../x", "a/b", "/etc", "a b", "x" * 65, "x" * 4000, "a\u00e9")] + [
    ("a snapshot id with a line's end", "goodbye", begin("a\nb")),
    ("a snapshot id of 60000 bytes", "goodbye", begin("x" * 60000)),
    ("an image without a snapshot", "goodbye", image(1, "a.img")),
    ("data without a snapshot", "goodbye", data(1, GOOD)),
    ("the end without a snapshot", "goodbye", end()),
    ("a thousand snapshots at once", "goodbye", b"".join(begin(f"s{n}", n) for n in range(1, 1000))),
    ("a thousand refused snapshots", "refuse", b"".join(begin("..", n) for n in range(1, 1000))),
    ("a verdict for nothing", "verdict-ack", verdict("nothing", True)),
    ("an abort for nothing", "verdict-ack", verdict("nothing", False)),
    ("a verdict for a path", "verdict-ack", verdict("../../etc", True)),
    ("a verdict for the honest", "verdict-ack", verdict("honest", False)),
    ("rubbish for a verdict", "goodbye", frame("VERDICT", b"\xff\xff", 0)),
    ("a goodbye with text", "close", frame("GOODBYE", message(f1=3, f2="a liar says goodbye"), 0)),
    ("a goodbye that is rubbish", "close", frame("GOODBYE", b"\xff", 0)),
]

LIES_AT_FIRST = [
    ("another protocol", "goodbye", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", None),
    ("major 2", "goodbye", b"godwit\r\n\2\0\0\0\0\0\0\0", hello()),
    ("major 0", "goodbye", b"godwit\r\n" + bytes(8), hello()),
    ("a snapshot before hello", "goodbye", PREAMBLE + begin(), None),
    ("data before hello", "goodbye", PREAMBLE + data(1, GOOD), None),
    ("no hello but rubbish", "goodbye", PREAMBLE + bytes(range(1, 200)), None),
    ("hello of rubbish", "goodbye", PREAMBLE, b"\xff" * 30),
    ("hello of 64 KiB", "goodbye", PREAMBLE, hello(f1="x" * 60000)),
    ("hello with an escape in its name", "goodbye", PREAMBLE, hello(f2="\x1b[2J")),
    ("small pages", "goodbye", PREAMBLE, hello(f3=512)),
    ("another machine", "goodbye", PREAMBLE, hello(f4="vax")),
    ("a preamble and no more", "close", PREAMBLE, None),
    ("half a preamble", "close", PREAMBLE[:7], None),
]

ANSWERS = {"GOODBYE": "goodbye", "SNAPSHOT_REFUSE": "refuse", "SNAPSHOT_ACK": "ack", "VERDICT_ACK": "verdict-ack"}


def answer_to(wire, want=None):
    """What the other side says, and its reason: 'close' when it ends the connection without a word.

    An acknowledgement is no answer to what comes after the end.
    """
    kinds = {FRAMES[k]: v for k, v in ANSWERS.items() if v != "ack" or want != "goodbye"}
    try:
        while True:
            kind, _, _, payload = wire.read()
            if kind in kinds:
                return kinds[kind], parse_message(payload)
    except (ConnectionError, TimeoutError) as e:
        return "silence" if isinstance(e, TimeoutError) else "close", {}


def reason_is_good(fields, host_text):
    text = fields.get(2, b"").decode(errors="replace")
    return fields.get(1, 0) and 8 < len(text) < 480 and text.isprintable(), f"{host_text}: {text!r}"


class Liar:
    """Many lies to one real cache, which goes on serving an honest proxy and keeps its files to itself."""

    def __init__(self, lane):
        self.lane, self.bad = lane, []
        self.pid, self.out = lane.spawn()
        assert lane.end(lane.dump(self.pid, "--snapshot", "honest"), "dump")[0] == 0
        self.files = self.listing()
        self.links = lane.a.read("/tmp/image-proxy.log").count("linked to")

    def listing(self):
        return self.lane.b.run(["find", "/run", "/tmp", "/var/tmp", "!", "-path", "/run/shared/*"]).stdout.split()

    def wire(self):
        import socket
        return Wire(in_network(self.lane.a, lambda: socket.create_connection(("10.77.0.2", 9996))), beat=False)

    def tell(self, name, want, first, lie=None, begun=False):
        """Connects, sends the lie and looks at the answer."""
        wire, known = self.wire(), len(self.bad)
        try:
            wire.sock.settimeout(4)
            try:
                if begun is not None:
                    wire.greet()
                if begun:
                    wire.send(begin())
                    wire.read_until("SNAPSHOT_ACCEPT")
                wire.send(first + (frame("HELLO", lie, 0) if lie is not None else b""))
            except ConnectionError as e:
                if e.errno is None:
                    self.bad.append(f"{name}: before the lie: {e}")
                # It has heard enough before the end of the lie; what it said is still to be read.
            if begun is None:
                wire.exactly(16)
            got, fields = ("drop", {}) if want == "drop" else answer_to(wire, want)
            if want == "drop":
                time.sleep(0.1)
            if got != want:
                self.bad.append(f"{name}: the cache's answer is {got} {fields}, expected {want}")
            elif got in ("goodbye", "refuse"):
                good, text = reason_is_good(fields, name)
                if not good:
                    self.bad.append(f"{name}: no good reason: {text}")
        finally:
            wire.close()
        self.check(name)
        print(f"{name}: {got} {str(fields.get(2, ''))[:100]}", *self.bad[known:], flush=True)

    def check(self, name):
        lane = self.lane
        if lane.cache.poll() is not None:
            self.bad.append(f"{name}: the image-cache has ended with {lane.cache.returncode}\n{lane.logs()}")
            lane.start_cache()
            return

        def clean():
            # What was complete when its liar went is in doubt, rightly.
            for ident, state in lane.snapshots().items():
                if ident != "honest" and state == "in-doubt":
                    lane.b.run([lane.godwit, "forget", "-W", WORKDIR, ident])
            return lane.snapshots() == {"honest": "ready"} and self.listing() == self.files

        try:
            testbed.wait_for(clean, 3, "", every=0.02)
        except testbed.BedError:
            now = self.listing()
            self.bad.append(f"{name}: it leaves {lane.snapshots()} {set(now) ^ set(self.files)}")
            self.files = now

    def finish(self):
        lane = self.lane
        if lane.a.read("/tmp/image-proxy.log").count("linked to") != self.links:
            self.bad.append("the honest proxy lost its link")
        assert not self.bad, f"{len(self.bad)} lies:\n" + "\n".join(self.bad)
        assert lane.end(lane.restore("honest"), "restore") == (0, "")
        lane.check_memory(lane.b, self.pid, self.out)
        lane.b.kill(self.pid)
        migrate(lane)
        check_calm(lane)


def test_lies_to_the_cache(lane):
    """A proxy that breaks the protocol is told so; the cache, its files and its other proxies are unharmed."""
    liar = Liar(lane)
    for name, want, first, lie in LIES_AT_FIRST:
        liar.tell(name, want, first, lie, begun=None)
    for name, want, lie in LIES_FOR_A_SNAPSHOT:
        liar.tell(name, want, lie)
    for name, want, lie in LIES_IN_SESSION:
        liar.tell(name, want, lie, begun=True)
    liar.finish()


def test_rubbish_to_the_cache(lane):
    """Sessions with bytes changed, at random: any answer, but no harm."""
    print(f"GODWIT_SEED={SEED}")
    rng = random.Random(SEED)
    liar = Liar(lane)
    honest = [lie for _, _, lie in LIES_IN_SESSION if len(lie) < 100000]
    for i in range(1000 if FULL else 150):
        wire = liar.wire()
        try:
            wire.sock.settimeout(0.05)
            stream = bytearray(PREAMBLE + frame("HELLO", hello(), 0) + begin(f"r{i}") + rng.choice(honest))
            for _ in range(rng.choice([1, 1, 2, 8])):
                stream[rng.randrange(16, len(stream))] = rng.randrange(256)
            wire.send(bytes(stream[:rng.choice([len(stream), rng.randrange(len(stream))])]))
            answer_to(wire)
        except ConnectionError:
            pass
        finally:
            wire.close()
        if i % 25 == 24:
            liar.check(f"rubbish {i}")
    liar.finish()


def test_a_stranger_decides(lane):
    """A verdict counts only from the host that sent the snapshot: another proxy's is not taken for it."""
    import socket
    pid, out = lane.spawn()
    lane.man.arm((f"up:{FRAMES['VERDICT']}", "hold"))
    dump = lane.dump(pid, "--snapshot", "it")
    assert lane.man.is_held.wait(5)
    stranger = Wire(in_network(lane.a, lambda: socket.create_connection(("10.77.0.2", 9996)))).greet(say=hello(f2="stranger"))
    stranger.send(verdict("it", False))
    time.sleep(0.2)
    stranger.close()
    lane.man.release()
    status, err = lane.end(dump, "dump")
    judge(lane, pid, out, status, err, must="moved")


def test_given_up_on_another_link(lane):
    """A source that has given a snapshot up says so on its new link, while the old one's bytes are still on their way."""
    import socket
    old, new = (Wire(in_network(lane.a, lambda: socket.create_connection(("10.77.0.2", 9996)))).greet() for _ in range(2))
    old.send(begin("late"))
    old.read_until("SNAPSHOT_ACCEPT")
    new.send(verdict("late", False))
    new.read_until("VERDICT_ACK")
    old.send(whole_image(1, "a.img", GOOD) + end(1, 0, len(GOOD)))
    testbed.wait_for(lambda: "late" not in lane.snapshots(), 3, "the end of the snapshot")
    old.send(begin("kept", 2) + whole_image(1, "a.img", GOOD, 2) + end(1, 0, len(GOOD), 2))
    old.read_until("SNAPSHOT_ACK")
    testbed.wait_for(lambda: lane.snapshots() == {"kept": "held"}, 3, "another snapshot of that link")
    old.close()
    new.close()


# ---- 3b. a peer that lies: to the proxy ----

class FakeCache:
    """An image-cache of our own behind the man in the middle."""

    def __init__(self, lane):
        import socket
        self.lane = lane
        self.listener = in_network(lane.a, lambda: socket.create_server(("127.0.0.1", 0)))
        self.listener.settimeout(5)
        self.honest = lane.man.target
        lane.man.target = self.listener.getsockname()
        lane.man.kick()
        self.wire = Wire(self.listener.accept()[0]).greet()
        lane.wait_link()

    def close(self):
        self.wire.close()
        self.lane.man.target = self.honest
        self.listener.close()
        self.lane.man.kick()


def refusal(code=1, text="a lie of the cache"):
    return message(f1=code, f2=text)


# (name, what the cache says, with {session} of the dump; the dump's exit code or None for any failure)
LIES_TO_PROXY = [
    ("refuse", lambda s: frame("SNAPSHOT_REFUSE", refusal(), s), 1),
    ("refuse for memory", lambda s: frame("SNAPSHOT_REFUSE", refusal(6), s), 6),
    ("refuse with no reason", lambda s: frame("SNAPSHOT_REFUSE", b"", s), None),
    ("refuse with an unknown code", lambda s: frame("SNAPSHOT_REFUSE", refusal(99), s), 4),
    ("refuse with two lines", lambda s: frame("SNAPSHOT_REFUSE", refusal(1, "one\ntwo"), s), None),
    ("refuse with 60000 bytes", lambda s: frame("SNAPSHOT_REFUSE", refusal(1, "x" * 60000), s), None),
    ("refuse of rubbish", lambda s: frame("SNAPSHOT_REFUSE", b"\xff\xff", s), None),
    ("refuse of another session", lambda s: frame("SNAPSHOT_REFUSE", refusal(), s + 7), None),
    ("ack", lambda s: frame("SNAPSHOT_ACK", b"", s), None),
    ("ack of another session", lambda s: frame("SNAPSHOT_ACK", b"", s + 7), None),
    ("ack of session 0", lambda s: frame("SNAPSHOT_ACK", b"", 0), None),
    ("accept twice", lambda s: frame("SNAPSHOT_ACCEPT", b"", s) * 2, None),
    ("accept of another session", lambda s: frame("SNAPSHOT_ACCEPT", b"", s + 7), None),
    ("verdict-ack", lambda s: frame("VERDICT_ACK", message(f1="it"), 0), None),
    ("verdict-ack of rubbish", lambda s: frame("VERDICT_ACK", b"\xff", 0), None),
    ("image data", lambda s: frame("IMAGE_DATA", b"x", s, 1), None),
    ("pages", lambda s: frame("PAGES", PAGE, s, 1), None),
    ("a snapshot", lambda s: frame("SNAPSHOT_BEGIN", message(f1="x"), s), None),
    ("a second hello", lambda s: frame("HELLO", hello(), 0), None),
    ("a frame of 4 GiB", lambda s: frame("SNAPSHOT_REFUSE", b"", s, length=(1 << 32) - 1), None),
    ("a wrong check", lambda s: frame("SNAPSHOT_ACK", b"", s, check=1), None),
    ("flags", lambda s: frame("SNAPSHOT_ACK", b"", s, flags=1), None),
    ("rubbish", lambda s: bytes(range(200)), None),
    ("goodbye", lambda s: frame("GOODBYE", refusal(1, "the cache has had enough"), 0), None),
    ("goodbye and all is well", lambda s: frame("GOODBYE", b"", 0), None),
    ("goodbye of rubbish", lambda s: frame("GOODBYE", b"\xff", 0), None),
    ("the end of the connection", None, None),
    ("silence", "silence", None),
    ("heartbeats and no more", "heartbeats", None),
]
WHEN = ["SNAPSHOT_BEGIN", "PAGES", "SNAPSHOT_END"]


def lie_case(when, name, lie, code):
    def case(lane):
        if when == "SNAPSHOT_END" and name == "ack":
            return "that is no lie"
        pid, out = lane.spawn()
        fake = FakeCache(lane)
        try:
            wire = fake.wire
            dump = lane.dump(pid, "--snapshot", "it")
            _, session, _, _ = wire.read_until("SNAPSHOT_BEGIN")
            if when != "SNAPSHOT_BEGIN":
                wire.send(frame("SNAPSHOT_ACCEPT", b"", session))
                wire.read_until(when)
            if lie == "silence":
                wire._beating = False
            elif lie is None:
                wire.close()
            elif lie != "heartbeats":
                wire.send(lie(session))
                # If it was not worth a failure the cache goes on, and refuses in the end.
                try:
                    wire.sock.settimeout(1)
                    if when == "SNAPSHOT_BEGIN" and "accept" not in name:
                        wire.send(frame("SNAPSHOT_ACCEPT", b"", session))
                    if when != "SNAPSHOT_END":
                        wire.read_until("SNAPSHOT_END", "SNAPSHOT_ABORT", "GOODBYE")
                    wire.send(frame("SNAPSHOT_REFUSE", refusal(1, "enough of that"), session))
                except (ConnectionError, TimeoutError, OSError):
                    pass
            status, err = lane.end(dump, "dump")
        finally:
            fake.close()
        if status == 0:
            raise Broken("dump succeeds with a cache that has nothing")
        got = judge(lane, pid, out, status, err, must="source")
        if code and status != code:
            raise Broken(f"dump ends with {status}, expected {code}: {err}")
        check_calm(lane)
        follow_up(lane, pid, out)
        return got

    return f"{when}: {name}", case


@pytest.mark.parametrize("when", WHEN)
def test_lies_to_the_proxy(lanes, when):
    """A cache that breaks the protocol costs the dump, never the process."""
    # An early acknowledgement is a lie only if it is read before the end has left, which pages in flight do not promise.
    lies = [lie for lie in LIES_TO_PROXY if (when, lie[0]) != ("PAGES", "ack")]
    lanes.run([lie_case(when, *lie) for lie in lies])


# With the session and the verdict's nonce.
VERDICT_LIES = [
    ("no answer", lambda s, n: b"", 7),
    ("acknowledged for another", lambda s, n: frame("VERDICT_ACK", message(f1="other", f2=n ^ 1), 0), 7),
    ("acknowledged of long ago", lambda s, n: frame("VERDICT_ACK", message(f1="it", f2=n ^ 1), 0), 7),
    ("acknowledged as rubbish", lambda s, n: frame("VERDICT_ACK", b"\xff", 0), 7),
    ("acknowledged twice", lambda s, n: frame("VERDICT_ACK", message(f1="it", f2=n), 0) * 2, 0),
    ("refused", lambda s, n: frame("SNAPSHOT_REFUSE", refusal(), s), 7),
    ("ack again", lambda s, n: frame("SNAPSHOT_ACK", b"", s), 7),
    ("goodbye", lambda s, n: frame("GOODBYE", b"", 0), 7),
]


@pytest.mark.parametrize("name, lie, code", VERDICT_LIES, ids=[v[0].replace(" ", "-") for v in VERDICT_LIES])
def test_lies_about_the_verdict(lanes, name, lie, code):
    """After the acknowledgement the process has ended here; the verdict is told again until it is acknowledged."""

    def case(lane):
        pid, _ = lane.spawn()
        fake = FakeCache(lane)
        try:
            dump = lane.dump(pid, "--snapshot", "it")
            _, session, _, _ = fake.wire.read_until("SNAPSHOT_BEGIN")
            fake.wire.send(frame("SNAPSHOT_ACCEPT", b"", session))
            fake.wire.read_until("SNAPSHOT_END")
            fake.wire.send(frame("SNAPSHOT_ACK", b"", session))
            *_, told = fake.wire.read_until("VERDICT")
            fake.wire.send(lie(session, parse_message(told)[4]))
            status, err = lane.end(dump, "dump")
        finally:
            fake.close()
        if status != code:
            raise Broken(f"dump ends with {status}, expected {code}: {err}\n{lane.logs()}")
        lane.a.wait_dead(pid)
        # The honest cache is told as well, and that it never had it is no reason to go on for ever.
        lane.wait_link()
        testbed.wait_for(lambda: not [s for s in lane.status(lane.a) if "snapshot" in s], 5, "the verdict to be told")
        check_calm(lane)
        migrate(lane)
        return f"dump {status} {err!r}"

    lanes.run([(name, case)])


# ---- 4. memory ----

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


# ---- 5. at random ----

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
