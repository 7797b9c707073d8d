# SPDX-License-Identifier: Apache-2.0
"""What test_failures.py and test_lies.py are made of.

Lane: two hosts with an image-proxy, an image-cache, and between them a man in the middle (relay.py's, run in this
process on a thread of its own, so that its rules change while the daemons live on).  Lanes work side by side, because
most of a failure is waiting for somebody to notice.

The promise that every case is judged by: at every moment exactly one intact copy.  See Case.judge().
"""

import asyncio
import collections
import ctypes
import json
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import threading
import time
import traceback

import pytest

import bed as testbed
import relay
from bed import SLOW

FULL = bool(os.environ.get("GODWIT_FULL"))
LINK_TIMEOUT = 1.5 * min(SLOW, 2)  # --timeout of the daemons; each peer that stalls takes as long
COMMAND_TIMEOUT = 2 * min(SLOW, 2)  # --timeout of dump and restore
PATIENCE = 20 * SLOW  # after that a command hangs
LANES = int(os.environ.get("GODWIT_LANES", 5 if SLOW < 2 else 3))
CASES_PER_LANE = 50  # pids of one host must not reach those of the next
PORT = 9990
WORKDIR = "/run/godwit"
HEADER = struct.Struct("<HHIIIQQ")


class Broken(Exception):
    """A promise that was not kept; the text tells which."""


# ---- numbers of the link ----

def frame_types():
    """{name: number} of src/wire/frame.h."""
    text = (testbed.REPO / "src/wire/frame.h").read_text()
    return {n: int(v) for n, v in re.findall(r"\bFRAME_([A-Z_]+) = (\d+)", text)}


FRAMES = frame_types()
NAMES = {v: n.lower().replace("_", "-") for n, v in FRAMES.items()}


def point_name(direction, kind):
    """kind: a number, or "NUMBER/FLAGS" for frames of a type that have these flags."""
    number, _, flags = str(kind).partition("/")
    name = NAMES.get(int(number), number) if number.isdigit() else number
    return f"{direction}:{name}{'/' if flags else ''}{flags}"


# ---- the network of a host ----

def in_network(host, make):
    """Calls make() on a thread that is in the host's network; sockets made there stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    got = []

    def run():
        with open(f"/proc/{host.init_pid}/ns/net", "rb") as ns:
            assert libc.setns(ns.fileno(), 0x40000000) == 0
        try:
            got.append(make())
        except BaseException as e:
            got.append(e)

    t = threading.Thread(target=run)
    t.start()
    t.join()
    if isinstance(got[0], BaseException):
        raise got[0]
    return got[0]


class Man(relay.Relay):
    """The man in the middle: relay.Relay on a thread in a host's network, with rules that can be changed."""

    def __init__(self, host, target):
        super().__init__(("127.0.0.1", PORT), target, [], None)
        self.host = host
        self.seen = []  # (direction, kind, length, flags, connection)
        self.connections = 0  # since the last kick
        self.fired = threading.Event()
        self.is_held = threading.Event()
        self._loop = None
        self._release = None
        self._tasks = set()
        up = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(up,), daemon=True)
        self._thread.start()
        if not up.wait(10):
            raise testbed.BedError("the relay does not start")

    def _run(self, up):
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self.host.init_pid}/ns/net", "rb") as ns:
            assert libc.setns(ns.fileno(), 0x40000000) == 0

        async def serve():
            self._loop = asyncio.get_running_loop()
            self._loop.set_exception_handler(lambda loop, context: None)  # broken connections are its business
            self._release = asyncio.Event()
            self._end = asyncio.Event()
            server = await asyncio.start_server(self.connection, *self.listen, limit=relay.PIECE)
            up.set()
            await self._end.wait()
            server.close()
            for t in list(self._tasks):
                t.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run(serve())

    async def connection(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        self.connections += 1
        try:
            await super().connection(reader, writer)
        finally:
            self._tasks.discard(task)

    @staticmethod
    async def run_flows(flows):
        try:
            return await relay.Relay.run_flows(flows)
        except asyncio.CancelledError:
            return True  # kicked: reset both sides

    def log(self, direction, kind, length, session, item, flags=0, connection=0):
        if kind == "action":
            self.fired.set()
        else:
            self.seen.append((direction, kind, length, flags, connection))

    async def line_from_stdin(self):
        self._release.clear()
        self.is_held.set()
        await self._release.wait()

    def _call(self, function):
        done = threading.Event()

        def call():
            function()
            done.set()

        self._loop.call_soon_threadsafe(call)
        done.wait(10)

    def arm(self, *rules):
        """Rules as (match, action), in force from now on; what was seen, fired or held before is forgotten, and connections
        are counted anew."""
        made = [relay.Rule(m, a) for m, a in rules]

        def set_rules():
            self.rules = made
            self.seen = []
            self.accepted = 0
            self.fired.clear()
            self.is_held.clear()

        self._call(set_rules)

    def release(self):
        self._call(self._release.set)

    def kick(self):
        """Resets every connection."""

        def reset():
            self.connections = 0
            for t in list(self._tasks):
                t.cancel()

        self._call(reset)

    def disarm(self):
        """No rules; what was held goes on, what was stalled is reset."""
        stalled = self.fired.is_set()
        self.arm()
        self.release()
        if stalled:
            self.kick()

    def close(self):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)


# The relay's one-byte holds its loop for as long as the peer's socket has room; this one lets others have their turn.
async def send_fairly(flow, data, send=relay.Flow.send):
    if not flow.one_byte:
        await send(flow, data)
        return
    for i in range(0, len(data), 128):
        await send(flow, data[i:i + 128])
        await asyncio.sleep(0)


relay.Flow.send = send_fairly


# One byte at a time, but for this frame and its first bytes only, so that a case takes seconds.
async def act_one_byte_frame(flow, frame, rule):
    left = 8192
    async for piece in flow.pieces(frame):
        flow.one_byte = True
        await flow.send(piece[:left])
        flow.one_byte = False
        await flow.send(piece[left:])
        left = max(0, left - len(piece))
    return True


relay.ACTIONS["one-byte-frame"] = act_one_byte_frame


# ---- a lane ----

class Lane:
    def __init__(self, cache_options=()):
        self.cases = 0
        self.cache_options = list(cache_options)
        self.bed = testbed.Bed()
        self.bed.__enter__()
        self.man = self.cache = self.proxy = None
        self.workloads = 0
        try:
            self.a = self.bed.host("a", cidr="10.77.0.1/24")
            self.b = self.bed.host("b", cidr="10.77.0.2/24")
            self.env = dict(os.environ, GODWIT_CRIU=testbed.criu())
            self.godwit = str(testbed.build_dir() / "godwit")
            self.start_cache()
            self.man = Man(self.a, ("10.77.0.2", 9996))
            self.start_proxy()
            self.wait_link()
        except BaseException:
            self.close()
            raise

    def close(self):
        if self.man:
            self.man.close()
        for p in (self.cache, self.proxy):
            if p:
                p.kill()
                p.wait()
        self.bed.__exit__(None, None, None)

    # ---- daemons ----

    def _daemon(self, host, *args):
        log = open(host.path(f"/tmp/{args[0]}.log"), "ab")
        with log:
            p = host.popen([self.godwit, args[0], "--insecure", "-v", "-W", WORKDIR, "--timeout", str(LINK_TIMEOUT), *args[1:]],
                           env=self.env, stdout=log, stderr=log)
        return p

    def start_cache(self, *options):
        sock = self.b.path(f"{WORKDIR}/cache.sock")
        if sock.exists():
            sock.unlink()
        self.cache = self._daemon(self.b, "image-cache", "--address", "10.77.0.2", *self.cache_options, *options)
        testbed.wait_for(lambda: sock.exists() or self.cache.poll() is not None, 10, "the cache to start")
        if self.cache.poll() is not None:
            raise Broken(f"the image-cache does not start: {self.log('cache')}")

    def start_proxy(self, *options):
        sock = self.a.path(f"{WORKDIR}/proxy.sock")
        if sock.exists():
            sock.unlink()
        self.proxy = self._daemon(self.a, "image-proxy", "--address", "127.0.0.1", "--port", str(PORT), *options)
        testbed.wait_for(lambda: sock.exists() or self.proxy.poll() is not None, 10, "the proxy to start")
        if self.proxy.poll() is not None:
            raise Broken(f"the image-proxy does not start: {self.log('proxy')}")

    def log(self, which, lines=12):
        host = self.b if which == "cache" else self.a
        return "\n".join(host.read(f"/tmp/image-{which}.log", "").splitlines()[-lines:])

    def logs(self):
        return f"  proxy: {self.log('proxy')}\n  cache: {self.log('cache')}".replace("\n", "\n      ")

    def revive(self):
        """Starts again what was killed on purpose."""
        if self.cache.poll() is not None:
            self.start_cache()
        if self.proxy.poll() is not None:
            self.start_proxy()

    def status(self, host):
        done = host.run([self.godwit, "status", "--json", "-W", WORKDIR], env=self.env, timeout=PATIENCE)
        if done.returncode:
            raise Broken(f"godwit status on {host.name}: {done.returncode}: {done.stderr.strip()}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def snapshots(self):
        """{id: state} in the cache."""
        return {s["snapshot"]: s["state"] for s in self.status(self.b) if "snapshot" in s}

    def link_is_up(self):
        return any(s.get("link") == "up" for s in self.status(self.a))

    def wait_link(self, timeout=8):
        try:
            # After a kick the proxy may not know yet that its link is gone.
            testbed.wait_for(lambda: self.man.connections and self.link_is_up(), timeout, "the link to be up", every=0.15)
        except testbed.BedError as e:
            raise Broken(f"{e}\n{self.logs()}") from None

    # ---- processes ----

    def spawn(self, mb=1, dirty=0):
        """A selfcheck on host a, which dirties so many MB/s; returns (pid, file)."""
        self.workloads += 1
        out = f"{testbed.SHARED}/w{self.workloads}"
        pid = self.a.spawn([testbed.workload("selfcheck"), mb, out, *([dirty] if dirty else [])])
        self.a.wait_text(out, "ok 0", 15)
        return pid, out

    def check_memory(self, host, pid, out, timeout=8):
        """Has the process check its memory; Broken if it is damaged or does not answer."""
        before = host.read(out).split()
        host.kill(pid, signal.SIGUSR1)
        try:
            testbed.wait_for(lambda: host.read(out).split() not in ([], before), timeout, "its answer")
        except testbed.BedError:
            raise Broken(f"the process on {host.name} does not answer: state {host.state(pid)}") from None
        time.sleep(0.02)
        text = host.read(out)
        if not text.startswith("ok"):
            raise Broken(f"memory is damaged on {host.name}: {text}")

    def dump(self, pid, *args, passed=(), env=None, **kw):
        argv = [self.godwit, "dump", "--remote", "-t", str(pid), "-W", WORKDIR, "--timeout", str(COMMAND_TIMEOUT), *args]
        argv += ["--", *passed] if passed else []
        return self.a.popen(argv, env={**self.env, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)

    def restore(self, snapshot=None, *args, passed=(), env=None):
        argv = [self.godwit, "restore", "--remote", "-d", "-W", WORKDIR, "--timeout", str(COMMAND_TIMEOUT), *args]
        argv += ["--snapshot", snapshot] if snapshot else []
        argv += ["--", *passed] if passed else []
        return self.b.popen(argv, env={**self.env, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def end(self, process, what):
        """Waits for a command; (status, stderr).  Broken when it hangs."""
        try:
            _, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Broken(f"godwit {what} hangs: no end within {PATIENCE} s\n{self.logs()}") from None
        return process.returncode, err.strip()

    def relatives(self, process, name):
        """Host pids of the descendants of a command whose program is called so (criu, godwit-hook)."""
        host = self.a if process.host_pid < 5300 else self.b
        children = collections.defaultdict(list)
        for pid in host.pids():
            parent = host._status(pid, "PPid")
            if parent:
                children[int(parent)].append(pid)
        found, todo = [], [process.host_pid]
        while todo:
            for pid in children[todo.pop()]:
                todo.append(pid)
                if program(host, pid) == name:
                    found.append(pid)
        return found

    def leavings(self):
        """What must not be left when nothing goes on: stopped tasks, criu and hooks; {host pid: what}."""
        found = {}
        for host in (self.a, self.b):
            for pid in host.pids():
                state = host.state(pid)
                name = program(host, pid)
                if state in ("T", "t"):
                    found[f"{host.name} {pid}"] = f"{name} in state {state}"
                elif state not in (None, "Z", "X") and name in ("criu", "godwit-hook"):
                    found[f"{host.name} {pid}"] = f"{name} still there"
        return found


def program(host, pid):
    try:
        argv = host.path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    words = [os.path.basename(w) for w in argv[:8]]
    if b"godwit-hook" in words[:3]:
        return "godwit-hook"
    if b"godwit" in words[:1]:
        return "godwit"
    for w in words:
        if w in (b"criu",):
            return "criu"
    return words[0].decode() if words else None


def comm(host, pid):
    """The name that a process has given itself."""
    try:
        return host.path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None


# ---- judging ----

def one_line(what, status, err):
    """A command that failed said why, in one line."""
    if status < 0 or status > 128:
        raise Broken(f"godwit {what} was killed by a signal or crashed: status {status}: {err}")
    lines = err.splitlines()
    if len(lines) != 1 or not lines[0].startswith(f"godwit {what}: ") or len(lines[0]) < len(f"godwit {what}: ") + 8:
        raise Broken(f"godwit {what}: status {status}, and not one line of reason: {err!r}")


class Verdict:
    """Where the process turned out to be, and how: 'source', 'restored' (at b), 'doubt' (by --take-over)."""

    def __init__(self, where, status, err, state=None):
        self.where, self.status, self.err, self.state = where, status, err, state

    def __str__(self):
        return f"{self.where}, dump {self.status} {self.err!r}"


def judge(lane, pid, out, status, err, *, dump_killed=False, self_heals=True, must=None):
    """Checks the promise once the dump has ended; leaves host b without the process and the cache without snapshots.

    status, err: of `godwit dump`.  self_heals: both daemons live, so nothing may stay in doubt.
    must: 'source' or 'moved' when only that will do.  Returns a Verdict.
    """
    a, b = lane.a, lane.b
    text = f"dump: {status} {err!r}"
    if not dump_killed and status != 0:
        one_line("dump", status, err)
    try:
        testbed.wait_for(lambda: a.state(pid) not in ("T", "t"), 14, "the process to be thawed", every=0.02)
    except testbed.BedError:
        raise Broken(f"the process is left frozen at the source, state {a.state(pid)}; {text}\n{lane.logs()}") from None
    # A source that was told to end needs a moment to go; one that lives answers.
    alive = a.pid_alive(pid)
    if alive:
        try:
            lane.check_memory(a, pid, out)
        except ProcessLookupError:
            alive = False
        except Broken:
            if a.pid_alive(pid):
                raise
            alive = False
    if not dump_killed and status == 0 and alive:
        raise Broken(f"dump said that it is done, and the process runs at the source; {text}")
    want = ("dropped",) if alive else ("ready",)

    doubted = []

    def settled():
        states = lane.snapshots()
        state = next(iter(states.values()), "dropped")
        if state == "in-doubt" and not self_heals:
            # Nobody is left to tell: it stays so.
            doubted.append(time.monotonic())
            return state if time.monotonic() - doubted[0] > 0.7 else None
        return state if state in want else None

    try:
        state = testbed.wait_for(settled, 6, "", every=0.15)
    except testbed.BedError:
        state = None
    snapshots = lane.snapshots()
    if len(snapshots) > 1:
        raise Broken(f"several snapshots: {snapshots}; {text}")
    if state is None:
        where = "the process runs at the source" if alive else "the process has ended at the source"
        raise Broken(f"{where}, and the cache has {snapshots or 'nothing'} (expected: {want}); {text}\n{lane.logs()}")

    if must == "source" and not alive or must == "moved" and alive:
        raise Broken(f"it should be {must}: alive at the source: {alive}, the cache has {snapshots}; {text}\n{lane.logs()}")
    for name in snapshots if alive or state == "in-doubt" else ():
        refused, why = lane.end(lane.restore(name, "--wait", "0.2"), "restore")
        if refused == 0:
            raise Broken(f"two copies: snapshot {name} ({state}) was restored by default; {text}")
        one_line("restore", refused, why)
        if refused != 7:
            raise Broken(f"a restore of a snapshot in doubt ends with {refused}, not 7: {why}")
    if alive:
        if not dump_killed and status == 0:
            raise Broken(f"dump ended with 0 and the process runs at the source; {text}")
        for name in snapshots:
            b.run([lane.godwit, "forget", "-W", WORKDIR, name], check=True)
        return Verdict("source", status, err)

    if not dump_killed and status not in (0, 7):
        raise Broken(f"the process has ended at the source, and dump says {status} (0 or 7 expected): {err}")
    name = next(iter(snapshots))
    restored, why = lane.end(lane.restore(name, *(["--take-over"] if state == "in-doubt" else [])), "restore")
    if restored:
        raise Broken(f"no copy: it cannot be restored ({state}): {restored} {why}; {text}\n{criu_log(b)}")
    lane.check_memory(b, pid, out)
    b.kill(pid)
    b.wait_dead(pid)
    if lane.snapshots():
        raise Broken(f"a restored snapshot is still there: {lane.snapshots()}")
    return Verdict("restored", status, err, state)


def criu_broke_it(lane, pid, err):
    """Whether a process ended with the `criu dump` that was killed while it worked inside it; it is then as it is.

    That window is CRIU's: of 105 kills of a stock `criu dump --leave-running` at random moments 5 ended the process.
    """
    def broken():
        return not lane.a.pid_alive(pid) and not lane.b.pid_alive(pid) and not lane.snapshots()

    if "killed by signal 9" not in err:
        return False
    try:
        testbed.wait_for(broken, 1, "its end", every=0.05)  # it ends by a signal of its own, in a moment
    except testbed.BedError:
        return False
    return True


# How many cases of one test may end so; more would be ours.
CRIU_BREAKS_MAX = 2
CRIU_BROKE = "ended by the kill of criu"


def check_breaks(got):
    breaks = [name for name, verdict in got if verdict == CRIU_BROKE]
    assert len(breaks) <= CRIU_BREAKS_MAX, breaks


def criu_log(host):
    text = ""
    for log in sorted(host.path(WORKDIR).glob("*/*.log")):
        errors = [l for l in log.read_text(errors="replace").splitlines() if "Error" in l or "Warn" in l]
        text += f"{log.parent.name}: " + " | ".join(errors[:6]) + "\n"
    return text


def check_calm(lane, allow=()):
    """Nothing is stopped, no criu or hook is left, both daemons live."""
    try:
        testbed.wait_for(lambda: not lane.leavings(), 13, "", every=0.15)
    except testbed.BedError:
        raise Broken(f"left behind: {lane.leavings()}\n{lane.logs()}") from None
    for name, p in (("image-proxy", lane.proxy), ("image-cache", lane.cache)):
        if p.poll() is not None:
            raise Broken(f"the {name} has ended with {p.returncode}\n{lane.logs()}")


def migrate(lane, pid=None, out=None):
    """An ordinary migration through the lane's daemons, there and checked."""
    if pid is None or not lane.a.pid_alive(pid):
        pid, out = lane.spawn()
    lane.wait_link()
    status, err = lane.end(lane.dump(pid), "dump")
    if status:
        raise Broken(f"an ordinary migration afterwards fails: {status} {err}\n{criu_log(lane.a)}{lane.logs()}")
    judge(lane, pid, out, status, err, must="moved")


def follow_up(lane, pid, out):
    """The daemons go on: an ordinary migration through them, after each third case of a lane or, with FULL, each."""
    if FULL or lane.cases % 3 == 0:
        migrate(lane, pid, out)
    elif lane.a.pid_alive(pid):
        lane.a.kill(pid)


# ---- many cases at once ----

class Lanes:
    """Runs cases, functions of a lane, on several lanes at once.  make: what makes a lane."""

    def __init__(self, make=Lane):
        self.make = make
        self.free = queue.SimpleQueue()
        self.made = []
        self.lock = threading.Lock()

    def _take(self):
        try:
            return self.free.get_nowait()
        except queue.Empty:
            lane = self.make()
            with self.lock:
                self.made.append(lane)
            return lane

    def _drop(self, lane):
        with self.lock:
            self.made.remove(lane)
        lane.close()

    def run(self, cases, lanes=LANES):
        """cases: [(name, function)].  Returns [(name, what the function returned)]; fails the test if any raised."""
        todo = queue.SimpleQueue()
        for case in cases:
            todo.put(case)
        good, bad = [], []

        def work():
            while True:
                try:
                    name, function = todo.get_nowait()
                except queue.Empty:
                    return
                lane, began = None, time.monotonic()
                try:
                    lane = self._take()
                    good.append((name, function(lane)))
                except Exception as e:
                    # Not format_exc(): it parses source, which CPython 3.11 cannot do on several threads at once.
                    where = "".join(f"\n  {f.filename}:{f.lineno} {f.line}" for f in traceback.extract_tb(e.__traceback__))
                    text = str(e) if isinstance(e, Broken) else f"{type(e).__name__}: {e}{where}"
                    bad.append((name, text))
                    if lane:
                        self._drop(lane)
                        lane = None
                print(f"{time.monotonic() - began:6.2f} s  {name}: {good[-1][1] if lane else 'FAILED: ' + bad[-1][1].splitlines()[0]}", flush=True)
                if lane:
                    lane.cases += 1
                    if lane.cases >= CASES_PER_LANE:
                        self._drop(lane)
                    else:
                        self.free.put(lane)

        threads = [threading.Thread(target=work) for _ in range(min(lanes, len(cases)))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if bad:
            report = "\n".join(f"--- {name}\n{text}" for name, text in sorted(bad))
            pytest.fail(f"{len(bad)} of {len(cases)} cases failed:\n{report}", pytrace=False)
        return good

    def close(self):
        for lane in list(self.made):
            lane.close()


# ---- protobuf and frames by hand ----

def varint(n):
    out = b""
    while True:
        out += bytes([n & 0x7f | (0x80 if n > 0x7f else 0)])
        n >>= 7
        if not n:
            return out


def message(**fields):
    """message(f1=..., f2=...): field numbers; int and bool as varint, str and bytes with their length."""
    out = b""
    for key, value in fields.items():
        number = int(key[1:])
        if isinstance(value, (str, bytes)):
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
        else:
            out += varint(number << 3) + varint(int(value))
    return out


def parse_message(data):
    """{field: last value} of a message of varints and strings."""
    got, at = {}, 0

    def take():
        nonlocal at
        n = shift = 0
        while True:
            byte = data[at]
            at += 1
            n |= (byte & 0x7f) << shift
            shift += 7
            if byte < 0x80:
                return n

    while at < len(data):
        key = take()
        if key & 7 == 0:
            got[key >> 3] = take()
        else:
            length = take()
            got[key >> 3] = data[at:at + length]
            at += length
    return got


PREAMBLE = b"godwit\r\n" + struct.pack("<HHI", 1, 0, 0)


def frame(kind, payload=b"", session=1, item=0, offset=0, flags=0, check=None, length=None):
    """A frame as it ought to be, but for what is given: the length, or the check at the header's end."""
    kind = FRAMES[kind] if isinstance(kind, str) else kind
    head = HEADER.pack(kind, flags, len(payload) if length is None else length, session, item, offset, 0)[:24]
    if check is None:
        check = xxh3_64(head)
        if payload and kind not in (FRAMES["IMAGE_DATA"], FRAMES["PAGES"]):
            check = xxh3_64(payload, check)
    return head + struct.pack("<Q", check) + payload


def damaged(whole):
    """The same frame with a bit turned in its payload."""
    return whole[:-1] + bytes([whole[-1] ^ 1])


def hello(**change):
    fields = dict(f1="a liar", f2="nowhere", f3=4096, f4=os.uname().machine, f5=1500)
    fields.update(change)
    return message(**fields)


def xxh3_64(data, seed=0):
    lib = ctypes.CDLL("libxxhash.so.0")
    lib.XXH3_64bits_withSeed.restype = ctypes.c_uint64
    lib.XXH3_64bits_withSeed.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]
    return lib.XXH3_64bits_withSeed(data, len(data), seed)


def xxh3_128(data):
    lib = ctypes.CDLL("libxxhash.so.0")

    class Hash(ctypes.Structure):
        _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]

    lib.XXH3_128bits.restype = Hash
    lib.XXH3_128bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    h = lib.XXH3_128bits(data, len(data))
    return struct.pack(">QQ", h.high, h.low)


class Wire:
    """One end of a link, in Python.  read() gives (kind, session, item, payload), heartbeats left out."""

    def __init__(self, sock, beat=True):
        self.sock = sock
        sock.settimeout(6)
        self._lock = threading.Lock()
        self._beating = beat
        self._thread = None

    def greet(self, preamble=PREAMBLE, say=None):
        self.send(preamble + frame("HELLO", hello() if say is None else say, 0))
        self.exactly(16)
        kind, *_ = self.read()
        assert kind == FRAMES["HELLO"]
        if self._beating:
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
        return self

    def _beat(self):
        while self._beating:
            try:
                self.send(frame("HEARTBEAT", session=0))
            except OSError:
                return
            time.sleep(0.25)

    def send(self, data):
        with self._lock:
            self.sock.sendall(data)

    def exactly(self, n):
        data = b""
        while len(data) < n:
            piece = self.sock.recv(n - len(data))
            if not piece:
                raise ConnectionResetError("closed")
            data += piece
        return data

    def read(self, patience=5):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            kind, _, length, session, item, offset, _ = HEADER.unpack(self.exactly(HEADER.size))
            payload = self.exactly(length)
            if kind != FRAMES["HEARTBEAT"]:
                return kind, session, item, payload
        raise TimeoutError("nothing but heartbeats")

    def read_until(self, *kinds):
        """Frames until one of these kinds; ConnectionResetError when the link ends before."""
        kinds = [FRAMES[k] for k in kinds]
        while True:
            got = self.read()
            if got[0] in kinds:
                return got
            if got[0] in (FRAMES["GOODBYE"], FRAMES["SNAPSHOT_REFUSE"], FRAMES["SNAPSHOT_ABORT"]):
                raise ConnectionResetError(f"{NAMES[got[0]]}: {parse_message(got[3])}")

    def close(self):
        self._beating = False
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if self._thread:
            self._thread.join()
        self.sock.close()
