# SPDX-License-Identifier: Apache-2.0
"""godwit migrate --streams N: memory over several connections, which come one by one and may each be lost, or be a lie.

The matrix is that of test_migrate_failures.py, for the first data connection of an ordinary migration: every frame of it
x every fault; every frame, held on its way, x the programs killed and stopped, x cancel.
"""

import os
import random
import signal
import socket
import time

import pytest

import bed as testbed
import relay
from bed import SHARED, workload
from failures import FRAMES, FULL, NAMES, Broken, Lanes, Wire, frame, in_network, message, parse_message, point_name
from godwit import ABORTED, MIB, USAGE, check_memory
from live import Between, Churn
from test_live import KINDS, SLOWLY
from test_migrate import Sshd, Stdio
from test_migrate_failures import FAULTS, MOVED, PEER, REFUSED, SEED, MigrateLane, judge, point_of, strike, victims

STREAMS = 3
DATA = 2  # the relay's number of the first data connection: the link is 1


@pytest.fixture(scope="module")
def lanes():
    made = Lanes(MigrateLane)
    yield made
    made.close()


@pytest.fixture
def between(two):
    return Between(*two)


# ---- it moves ----

@pytest.mark.parametrize("streams", [2, 4, 16])
@pytest.mark.parametrize("kind", ["four threads", "large", "prefork", "maps"])
def test_there_and_back(between, kind, streams):
    """Processes that write, map and fork: every page is compared, and is what it was."""
    arguments, slots = KINDS[kind]
    churn = Churn(between.here.host, *arguments, slots=slots)
    for how in (["--verify", *SLOWLY], ["--verify"], ["--verify", "--tracker", "compare"], ["--eager", "--verify"]):
        between.move(churn, "--streams", streams, *how)
    churn.end(between.here.host)


def test_stop_and_copy(between):
    """All of it is what criu sends."""
    arguments, slots = KINDS["large"]
    churn = Churn(between.here.host, *arguments, slots=slots)
    for how in (["--stop-and-copy"], ["--stop-and-copy", "--eager"], ["--no-scan-filter"]):
        between.move(churn, "--streams", 4, *how)
    churn.end(between.here.host)


@pytest.mark.parametrize("number", ["0", "17", "1000000"])
def test_numbers_that_are_none(two, number):
    a, _ = two
    done = a.migrate(1, "b", "--streams", number, code=USAGE)
    assert "--streams: 1 to 16" in done.err


def ordinary(lane, *argv, streams=STREAMS):
    """A process with more than sockets hold, which writes; (pid, file, the migration that has begun)."""
    pid, out = lane.spawn(16, dirty=10)
    return pid, out, lambda: lane.migrate(pid, "--streams", str(streams), *argv)


def test_each_has_its_part(lanes):
    """Memory goes over all of them, images and words over the link alone."""

    def case(lane):
        pid, out, begin = ordinary(lane, "--verify", streams=4)
        lane.man.arm()
        status, err = lane.end(begin(), "migrate")
        assert status == MOVED, err
        memory = {FRAMES[n] for n in ("SPACE_BEGIN", "PAGES", "PAGE_RUNS", "PAGE_SUMS", "ROUND_END", "SPACE_END", "SNAPSHOT_END")}
        own = {FRAMES[n] for n in ("HELLO", "HEARTBEAT", "STREAM_JOIN", "GOODBYE")}
        pages = [0] * 5
        for direction, kind, length, _, connection in lane.man.seen:
            if connection > 1 and direction == "up" and kind != "preamble" and kind not in memory | own:
                raise Broken(f"{NAMES[kind]} on connection {connection}")
            if kind == FRAMES["PAGES"]:
                pages[connection] += length
        if min(pages[1:]) < MIB or sum(pages) < 16 * MIB:
            raise Broken(f"bytes of pages on each: {pages}")
        return judge(lane, pid, out, status, err)

    lanes.run([("each has its part", case)])


def test_one_is_slow(lanes):
    """The others wait for it, in as much memory as ever."""

    def case(lane):
        pid, out = lane.spawn(64, dirty=1)
        lane.man.arm((f"up:{FRAMES['STREAM_JOIN']}@{DATA}", "rate:8000000"))
        migrate = lane.migrate(pid, "--streams", "4", "--max-rounds", "2")
        peak = 0
        while migrate.poll() is None:
            peak = max(peak, int((lane.a._status(migrate.host_pid, "VmHWM") or "0 kB").split()[0]))
            time.sleep(0.02)
        status, err = lane.end(migrate, "migrate")
        lane.man.disarm()
        if status != MOVED or peak > 40 << 10:
            raise Broken(f"{status} {err}; peak {peak} KiB")
        return f"peak {peak} KiB; {judge(lane, pid, out, status, err)}"

    print(lanes.run([("a slow one", case)]))


# ---- carriers ----

def moves_to(a, b, begin):
    """A process whose memory is more than one connection's part moves, and is right."""
    pid = a.host.spawn([workload("selfcheck"), 24, f"{SHARED}/check", 10])
    a.host.wait_text(f"{SHARED}/check", "ok 0", 20)
    migrate = begin(pid)
    yield migrate
    migrate.end()
    check_memory(b.host, pid, f"{SHARED}/check", 1)


def test_unix_socket(two):
    a, b = two
    b.cache("--accept", address=f"unix:{SHARED}/a socket")
    for _ in moves_to(a, b, lambda pid: a.begin_migrate(pid, f"unix:{SHARED}/a socket", "--streams", 3, "--verify")):
        pass


def test_program(two):
    """Each connection is another run of the command, and all come to the image-cache of one work-dir."""
    a, b = two
    stdio = Stdio(b)
    for _ in moves_to(a, b, lambda pid: a.begin_migrate(pid, stdio.target, "--streams", 3, "--verify")):
        for _ in range(3):
            stdio.serve()
    stdio.end()
    b.wait_gone("cache.sock.lock", "image-cache.log")
    a.wait_gone()


def test_program_that_leads_elsewhere(two):
    """To the image-cache of another work-dir: one line, and nothing was touched."""
    a, b = two
    stdio = Stdio(b)
    pid = a.host.spawn([workload("selfcheck"), 4, f"{SHARED}/check"])
    a.host.wait_text(f"{SHARED}/check", "ok 0", 20)
    migrate = a.begin_migrate(pid, stdio.target, "--streams", 2)
    stdio.serve()
    stdio.serve("-W", "/run/another")
    done = migrate.end(PEER)
    assert "data connection 1: no session here waits for this data connection" in done.err and done.err.count("\n") == 1
    check_memory(a.host, pid, f"{SHARED}/check", 1)


def test_program_that_runs_once(two):
    """The second connection comes to nothing: one line, within three timeouts."""
    a, b = two
    stdio = Stdio(b)
    pid = a.host.spawn([workload("selfcheck"), 4, f"{SHARED}/check"])
    a.host.wait_text(f"{SHARED}/check", "ok 0", 20)
    migrate = a.begin_migrate(pid, stdio.target, "--streams", 2, "--timeout", 1)
    stdio.serve()
    done = migrate.end(PEER)
    said = [line for line in done.err.splitlines() if line.startswith("godwit ")]  # and what the command says when it is cut off
    assert len(said) == 1 and "data connection 1: the peer did not finish the handshake" in said[0] and done.seconds < 8
    check_memory(a.host, pid, f"{SHARED}/check", 1)


def test_ssh(two):
    a, b = two
    server = Sshd(a, b)
    try:
        for _ in moves_to(a, b, lambda pid: server.begin_migrate(pid, "--streams", 3, "--verify")):
            pass
        b.wait_gone("cache.sock.lock", "image-cache.log")
        a.wait_gone()
        assert server.clients() == []
    finally:
        server.end()


# ---- its frames ----

def record():
    """[(direction, type)] of a data connection in an ordinary migration."""
    lane = MigrateLane()
    try:
        pid, out, begin = ordinary(lane)
        lane.man.arm()
        status, err = lane.end(begin(), "migrate")
        assert status == MOVED, err
        testbed.wait_for(lambda: ("up", FRAMES["GOODBYE"]) in {s[:2] for s in lane.man.seen if s[4] == DATA}, 5, "its goodbye")
        seen = {point_of(direction, kind, flags) for direction, kind, _, flags, connection in lane.man.seen if connection == DATA}
        judge(lane, pid, out, status, err)
        return sorted(seen - {(d, FRAMES["HEARTBEAT"]) for d in ("up", "down")}, key=str)
    finally:
        lane.close()


@pytest.fixture(scope="module")
def points():
    return record()


def test_every_message_is_a_point(points):
    for direction, name in (("up", "HELLO"), ("down", "HELLO"), ("up", "STREAM_JOIN"), ("down", "STREAM_JOINED"), ("up", "SPACE_BEGIN"),
                            ("up", "PAGES"), ("up", "ROUND_END"), ("up", "SPACE_END"), ("up", "SNAPSHOT_END"), ("up", "GOODBYE")):
        assert (direction, FRAMES[name]) in points
    assert point_of("up", FRAMES["PAGES"], 2) in points


HARMLESS = ("delay", "one-byte")


def fault_case(direction, kind, action):
    def case(lane):
        pid, out, begin = ordinary(lane)
        lane.man.arm((f"{direction}:{kind}@{DATA}", action))
        migrate = begin()
        if action == "stall":
            testbed.wait_for(lambda: lane.man.fired.is_set() or migrate.poll() is not None, 10, "the fault")
        status, err = lane.end(migrate, "migrate")
        fired = lane.man.fired.wait(2)
        lane.man.disarm()
        got = judge(lane, pid, out, status, err)
        if not fired:
            raise Broken(f"there was no such frame; {got}")
        if action.startswith(HARMLESS) and status:
            raise Broken(f"that is harmless: {got}")
        if kind in (FRAMES["SPACE_BEGIN"], "211", "211/2", FRAMES["SPACE_END"], FRAMES["SNAPSHOT_END"]) and \
                not action.startswith(HARMLESS) and status not in (ABORTED, MOVED):
            raise Broken(f"it was tried: {got}")
        return got

    return f"{point_name(direction, kind)} {action}", case


@pytest.mark.parametrize("action", [*FAULTS, "one-byte-frame"])
def test_faults(lanes, points, action):
    """Every frame of a data connection has an accident: aborted as with the link's, or it was no matter any more."""
    got = dict(lanes.run([fault_case(d, k, action) for d, k in points]))
    harm = {"cut", "cut-middle", "stall", "garbage", "flip"}
    for name, what in got.items():
        # Memory that did not come, or is not what it was, is never taken for whole.
        if action in harm and name.startswith(("up:pages", "up:space", "up:snapshot-end")) and not what.startswith("a;"):
            assert action == "stall" and name.startswith("up:snapshot-end"), f"{name}: {what}"


# ---- programs and the user ----

def held_case(direction, kind, name, do, check=None):
    def case(lane):
        pid, out, begin = ordinary(lane)
        lane.man.arm((f"{direction}:{kind}@{DATA}", "hold"))
        migrate = begin()
        testbed.wait_for(lambda: lane.man.is_held.is_set() or migrate.poll() is not None, 10, "the frame")
        if not lane.man.is_held.wait(1):
            raise Broken(f"migrate ended before: {lane.end(migrate, 'migrate')}")
        killed = do(lane, migrate)
        lane.man.release()
        status, err = lane.end(migrate, "migrate")
        lane.man.disarm()
        got = judge(lane, pid, out, status, err, killed=killed)
        if check:
            check(status, got)
        return got

    return f"{point_name(direction, kind)}: {name}", case


def kill(who):
    def do(lane, migrate):
        host, pids = victims(lane, migrate, who)
        strike(host, pids, signal.SIGKILL)
        if who == "cache":
            lane.cache.wait()
            lane.start_cache()
        return who == "migrate"

    return do


def stop(who):
    def do(lane, migrate):
        host, pids = victims(lane, migrate, who)
        strike(host, pids, signal.SIGSTOP)
        time.sleep(0.3)
        lane.man.release()
        strike(host, pids, signal.SIGCONT)

    return do


def interrupt(lane, migrate):
    migrate.send_signal(signal.SIGINT)
    time.sleep(0.1)


def is_moved(status, got):
    if status:
        raise Broken(f"a short stop is harmless: {got}")


@pytest.mark.parametrize("who", ["migrate", "cache"])
def test_killed(lanes, points, who):
    lanes.run([held_case(d, k, f"{who} killed", kill(who)) for d, k in points])


def test_late(lanes, points):
    lanes.run([held_case(d, k, f"{who} stopped", stop(who), is_moved) for d, k in points for who in ("migrate", "cache")])


def test_cancelled(lanes, points):
    """Ctrl-C at every message; what comes over data connections is all before the decision, but for the goodbye."""
    got = dict(lanes.run([held_case(d, k, "cancelled", interrupt) for d, k in points]))
    for name, what in got.items():
        assert what.startswith("a;") or name.startswith("up:goodbye"), f"{name}: {what}"


def random_case(seed):
    rng = random.Random(seed)
    who, at, streams = rng.choice(["migrate", "cache", "criu", "criu-b", "hook"]), rng.uniform(0, 0.9), rng.choice([2, 4, 16])

    def case(lane):
        pid, out, begin = ordinary(lane, streams=streams)
        lane.man.arm()
        began = time.monotonic()
        migrate = begin()
        time.sleep(max(0, at - (time.monotonic() - began)))
        host, pids = victims(lane, migrate, who)
        strike(host, pids, signal.SIGKILL)
        if who == "cache":
            lane.cache.wait()
            lane.start_cache()
        status, err = lane.end(migrate, "migrate")
        if who == "criu" and pids:
            return f"{status}"  # its injection may have been under way: see test_migrate_failures.py
        return judge(lane, pid, out, status, err, killed=who == "migrate" and bool(pids) and status < 0)

    return f"GODWIT_SEED={seed}: {who} at {at:.3f} s, {streams} streams", case


def test_random_kills(lanes):
    print(f"GODWIT_SEED={SEED}")
    rng = random.Random(SEED)
    lanes.run([random_case(rng.randrange(1 << 32)) for _ in range(100 if FULL else 20)])


# ---- who knows the token, and who does not ----

async def act_note(flow, frame, rule):
    """Keeps a frame, and passes it on."""
    noted = b""
    async for piece in flow.pieces(frame):
        noted += piece
        await flow.send(piece)
    flow.relay.noted.append(noted)
    return True


relay.ACTIONS["note"] = act_note


def connect(lane):
    return in_network(lane.a, lambda: Wire(socket.create_connection(("10.77.0.2", 9996)), beat=False))


def join(lane, token, stream, session=1):
    """What the image-cache says to somebody who joins: "stream-joined", or why not."""
    wire = connect(lane).greet()
    try:
        wire.send(frame("STREAM_JOIN", message(f1=token, f2=stream), session))
        kind, _, _, payload = wire.read()
        if kind == FRAMES["GOODBYE"]:
            return parse_message(payload).get(2, b"").decode()
        return NAMES[kind]
    finally:
        wire.close()


WAITS_FOR_NONE = "no session here waits for this data connection"
NOT_THAT = "there already, or one too many"


def test_tokens(lanes):
    """Connections from nobody, wrong tokens and right ones, once more, too many, and too late: nobody else is harmed."""

    def case(lane):
        pid, out, begin = ordinary(lane)
        lane.man.noted = []
        lane.man.arm((f"up:{FRAMES['STREAM_JOIN']}@{DATA}", "note"), (f"up:{FRAMES['PAGES']}@{DATA}", "hold"))
        migrate = begin()
        assert lane.man.is_held.wait(10)
        fields = parse_message(lane.man.noted[0][32:])
        token, stream = fields[1], fields[2]
        assert len(token) == 16 and stream in (1, 2), fields
        got = {}
        for name, arguments in {
                "wrong": (bytes([token[0] ^ 1]) + token[1:], 1), "zeros": (bytes(16), 1), "short": (token[:15], 1),
                "long": (token + b"x", 1), "none": (b"", 1), "another session": (token, 1, 2), "again": (token, 1),
                "the other again": (token, 2), "the link": (token, 0), "too many": (token, 3), "far too many": (token, 1 << 31)}.items():
            got[name] = join(lane, *arguments)
        mute, rude = connect(lane), connect(lane)
        rude.send(os.urandom(4096))
        idle = [connect(lane).greet() for _ in range(8)]
        for name, what in got.items():
            expected = NOT_THAT if name in ("again", "the other again", "the link", "too many", "far too many") else WAITS_FOR_NONE
            if expected not in what:
                raise Broken(f"{name}: {what}")
        if migrate.poll() is not None:
            raise Broken(f"it was harmed: {lane.end(migrate, 'migrate')}\n{lane.logs()}")
        lane.man.release()
        status, err = lane.end(migrate, "migrate")
        lane.man.disarm()
        if status != MOVED:
            raise Broken(f"it was harmed: {status} {err}\n{lane.logs()}")
        late = join(lane, token, stream)
        if WAITS_FOR_NONE not in late:
            raise Broken(f"late: {late}")
        for wire in [mute, rude, *idle]:
            wire.close()
        return judge(lane, pid, out, status, err)

    lanes.run([("tokens", case)])


async def act_no_token(flow, frame_, rule):
    """What an image-cache says that knows nothing of streams."""
    async for _ in flow.pieces(frame_):
        pass
    await flow.send(frame("SNAPSHOT_ACCEPT"))
    return True


relay.ACTIONS["no-token"] = act_no_token


def test_older_cache(lanes):
    """It is told from one that knows of streams, before anything is touched."""

    def case(lane):
        pid, out, begin = ordinary(lane)
        lane.man.arm((f"down:{FRAMES['SNAPSHOT_ACCEPT']}", "no-token"))
        status, err = lane.end(begin(), "migrate")
        lane.man.disarm()
        if status != REFUSED or "--streams 1" not in err or lane.man.accepted > 1:
            raise Broken(f"{status} {err}")
        return judge(lane, pid, out, status, err)

    lanes.run([("an older image-cache", case)])


def test_tokens_differ(lanes):
    def case(lane):
        tokens = set()
        for _ in range(3):
            pid, out, begin = ordinary(lane, streams=2)
            lane.man.noted = []
            lane.man.arm((f"up:{FRAMES['STREAM_JOIN']}@{DATA}", "note"))
            status, err = lane.end(begin(), "migrate")
            tokens.add(parse_message(lane.man.noted[0][32:])[1])
            judge(lane, pid, out, status, err)
        assert len(tokens) == 3
        return "they do"

    lanes.run([("tokens differ", case)])
