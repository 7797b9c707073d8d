# SPDX-License-Identifier: Apache-2.0
"""What test_live.py is made of: the workload `churn`, hosts that it moves between, and what a migration told of itself."""

import json
import os
import random
import re
import signal
import struct
import time

from bed import SHARED, SLOW, wait_for, workload
from failures import comm, program as program_of
from godwit import ABORTED, REFUSED, STARTER

CACHE_FILES = ("cache.sock", "cache.sock.lock", "image-cache.log", "images", "streamer-serve.sock")
PAGER = "godwit-pager"
PATIENCE = 40


def new_seed():
    """GODWIT_SEED, or one that is printed, so that a failure can be repeated."""
    seed = int(os.environ.get("GODWIT_SEED") or random.SystemRandom().randrange(1, 1 << 30))
    print(f"GODWIT_SEED={seed}")
    return seed


class Face:
    """What churn shows: struct face of tests/workloads/churn.h."""

    NAMES = "counter beat longest_gap pid seed wanted answered forks execs written told refused".split()
    NUMBERS, TEXT, SLOTS = 16, 112, 624
    SIZE = SLOTS + 16 * 32
    WANTED = NUMBERS + 8 * NAMES.index("wanted")

    def __init__(self, data):
        self.state = data[:16].split(b"\0")[0].decode()
        for name, value in zip(self.NAMES, struct.unpack_from(f"<{len(self.NAMES)}Q", data, self.NUMBERS)):
            setattr(self, name, value)
        self.text = data[self.TEXT:self.SLOTS].split(b"\0")[0].decode()
        self.steps = struct.unpack_from("<64Q", data, self.SLOTS)[::2]


class Churn:
    """The workload `churn`; its face is on the tmpfs that all hosts see."""

    def __init__(self, host, *argv, name="churn", seed=None, slots=2):
        self.path, self.home, self.slots = f"{SHARED}/{name}", host, slots
        self.seed = seed or new_seed()
        # Where all share one slow processor it leaves that to those who look after it; criu takes that along.
        gently = ["nice", "-n", 5] if SLOW > 1 else []
        self.pid = host.spawn([*gently, workload("churn"), self.path, "--seed", self.seed, *argv], stdout=f"{self.path}.out")
        self.wait_begun()

    def wait_begun(self):
        wait_for(lambda: self._size() == Face.SIZE and self.face().state not in ("", "starting"), PATIENCE, "churn to begin")

    def _size(self):
        path = self.home.path(self.path)
        return path.stat().st_size if path.exists() else 0

    def face(self):
        return Face(self.home.path(self.path).read_bytes())

    def write(self, offset, number):
        fd = os.open(self.home.path(self.path), os.O_WRONLY)
        try:
            os.pwrite(fd, struct.pack("<Q", number), offset)
        finally:
            os.close(fd)

    def right(self):
        """Its face; AssertionError, with what it said, if it has found something wrong."""
        face = self.face()
        assert face.state == "running", f"churn is {face.state}: {face.text} (GODWIT_SEED={self.seed})"
        return face

    def alive_on(self, host):
        for _ in range(int(200 * SLOW)):
            # While a thread that is not the first executes a program, the first looks like a zombie.
            if host.pid_alive(self.pid):
                return
            time.sleep(0.01)
        said = self.home.read(f"{self.path}.out", "")
        raise AssertionError(f"churn has died on {host.name}: {self.face().text} {said} (GODWIT_SEED={self.seed})")

    def ask(self):
        """Has everything checked once; returns what its face will show as answered."""
        wanted = self.face().wanted + 1
        self.write(Face.WANTED, wanted)
        return wanted

    def wait_answer(self, host, wanted, timeout=PATIENCE):
        def answered():
            face = self.right()
            self.alive_on(host)
            return face.answered == wanted

        wait_for(answered, timeout, lambda: f"churn to have checked all it has on {host.name}, {self.face().__dict__}")

    def check_all(self, host, timeout=PATIENCE):
        """Waits until every page of every process of it has been looked at, on this host."""
        self.wait_answer(host, self.ask(), timeout)

    def runs_on(self, host, timeout=PATIENCE):
        """Every thread (and child that has a slot) goes on, on this host."""
        before = self.face().steps

        def moved_on():
            steps = self.right().steps
            self.alive_on(host)
            return all(steps[i] > before[i] for i in range(self.slots))

        wait_for(moved_on, timeout, lambda: f"all of churn to go on on {host.name}: {before} {self.face().steps}")

    def tree(self, host):
        """Pids of all its processes on a host."""
        return [pid for pid in host.pids() if program_of(host, pid) == "churn" and host.pid_alive(pid)]

    def end(self, host):
        host.kill(self.pid)
        host.wait_dead(self.pid)
        host.wait_for(lambda: not self.tree(host), what="its children to end")


class Dirty:
    """The workload `dirty`: so many MiB, of which so many MB are written to each second."""

    FACE = struct.Struct("<16s6Q")

    def __init__(self, host, mib, mbs=0, name="dirty", within=(), pid=None, idle=0):
        """Starts it; with a pid, that process becomes it."""
        self.path, self.home = f"{SHARED}/{name}", host
        self.argv = [workload("dirty"), str(mib), str(mbs), self.path, str(idle)]
        self.pid = pid or host.spawn([*within, *self.argv])
        wait_for(lambda: self.home.path(self.path).exists() and self.face()[0] == "running", 30, "dirty to begin")

    def face(self):
        data = self.home.path(self.path).read_bytes()
        state, *numbers = self.FACE.unpack(data[:self.FACE.size]) if len(data) >= self.FACE.size else (b"", *[0] * 6)
        return (state.split(b"\0")[0].decode(), *numbers)

    @property
    def written(self):
        return self.face()[3]

    def quiet(self, quiet):
        fd = os.open(self.home.path(self.path), os.O_WRONLY)
        os.pwrite(fd, struct.pack("<Q", quiet), 16 + 5 * 8)
        os.close(fd)

    def write_pages(self, count):
        """Lets it write to that many pages, and a few more."""
        before = self.written
        self.quiet(0)
        wait_for(lambda: self.written >= before + count, 30, "dirty to write")
        self.quiet(1)

    def check(self, host):
        """Every page is as it wrote it."""
        checks = self.face()[4]
        host.kill(self.pid, signal.SIGUSR2)
        wait_for(lambda: self.face()[4] > checks, 30, "dirty to have looked at its memory")
        assert self.face()[5] == 0, f"{self.face()[5]} pages are wrong"


def criu_came_amiss(text):
    """Whether criu has failed because a task that was listed had ended when it came to it; or because it came in the midst of an
    execution, which waits for threads to end that criu has stopped already.  Its --timeout of 10 s ends that, or its own abort()."""
    return re.search(r"criu dump (failed|was killed by signal 6): .*(No such (file|process)|Timeout reached)", text)


class Between:
    """Two hosts with an image-cache each, and what moves from one to the other."""

    def __init__(self, a, b):
        self.here, self.there = a, b
        for side in (a, b):
            side.cache("--accept")

    def begin(self, pid, *argv):
        also = os.environ.get("GODWIT_LIVE_OPTIONS", "").split()
        return self.here.begin_migrate(pid, self.there.host.address, "--json", *argv, *also)

    def move(self, churn, *argv, code=0, timeout=60):
        """Moves it once, and checks all that can be checked; returns what `migrate --json` told."""
        for _ in range(6):
            migrate = self.begin(churn.pid, *argv)
            out, err = migrate.process.communicate(timeout=timeout * SLOW)
            status = migrate.process.returncode
            if status == code or not self._by_chance(churn, status, out + err):
                break
        told = "\n".join(line for line in out.splitlines() if '"severity": "ok"' not in line)
        assert status == code, f"migrate: {status} {err}\n{told[-2000:]}\n{self.here.logs()}\n{self.there.logs()}"
        if code == 0:
            self.arrived(churn)
        return Told(out)

    def _by_chance(self, churn, status, text):
        """Whether it failed as it may for one that forks and executes all the time; then it runs on undisturbed."""
        if status == REFUSED and "is taken" in text:  # the pid of a child, there
            return True
        if status != ABORTED or not criu_came_amiss(text):
            return False
        print(f"by chance: {text.splitlines()[-1]}")
        churn.runs_on(self.here.host)
        churn.check_all(self.here.host)
        self.take_logs()
        return True

    def take_logs(self):
        """Removes what a criu dump that failed leaves on purpose."""
        for log in self.here.host.path("/run/godwit").glob("migrate-*/dump.log"):
            log.unlink()
            log.parent.rmdir()

    def arrived(self, churn):
        source, target = self.here, self.there
        source.host.wait_for(lambda: not churn.tree(source.host), what="its processes to end at the source")
        churn.runs_on(target.host)
        churn.check_all(target.host)
        assert not churn.tree(source.host)
        self.here, self.there = target, source
        self.nothing_left()

    def nothing_left(self):
        """No file, snapshot or program of ours is left on either host; what fills the process is waited for."""
        for side in (self.here, self.there):
            side.host.wait_for(lambda s=side: not ours(s), 20, lambda s=side: f"our programs to end on {s.host.name}: {ours(s)}")
            side.host.wait_for(lambda s=side: s.files("/run/godwit/images") == [] and s.snapshots() == {}, 5,
                               lambda s=side: f"{s.host.name} to keep nothing: {s.files('/run/godwit/images')} {s.snapshots()}")
            side.wait_gone(*CACHE_FILES)
            assert side.used_bytes() == 0


def ours(side):
    """{pid: name} of what a migration starts and ends again, on a host."""
    cache = side.daemons[-1].pid
    found = {pid: program_of(side.host, pid) or "" for pid in side.host.pids()
             if pid != cache and comm(side.host, pid) != STARTER and side.host.pid_alive(pid)}
    return {pid: name for pid, name in found.items() if name in ("criu", "godwit", "godwit-hook")} | {
        pid: PAGER for pid in pagers(side)}


def pagers(side):
    """Pids of the pagers on a host, leader and standby."""
    return [pid for pid in side.host.pids() if comm(side.host, pid) == PAGER and side.host.pid_alive(pid)]


def filling(side):
    """Whether a process runs there whose memory is still coming."""
    return any(s["state"] == "filling" for s in side.snapshots().values())


class Told:
    """The lines of `godwit migrate --json`."""

    def __init__(self, text):
        self.lines = [json.loads(line) for line in text.splitlines()]
        self.last = self.lines[-1]

    @property
    def downtime(self):
        return self.last["downtime"]

    @property
    def began(self):
        """When memory began to flow while the process runs, by its own clock, in milliseconds."""
        return next(line["total-time"] for line in self.lines if line.get("status") == "active")

    @property
    def rounds(self):
        """How many rounds there were before the freeze; None: it was stop and copy."""
        return self.last.get("rounds")

    def rate_of_rounds(self):
        """Bytes a second between the first and last line of the phase in which memory flows while the process runs."""
        lines = [line for line in self.lines if line.get("status") == "active"]
        assert len(lines) > 2, f"too few lines to tell a rate: {self.lines}"
        first, last = lines[0], lines[-1]
        return (last["ram"]["transferred"] - first["ram"]["transferred"]) / (last["total-time"] - first["total-time"]) * 1000
