# SPDX-License-Identifier: Apache-2.0
"""The same process moved back and forth, again and again, under load and through faults at random.

After each migration, whatever became of it: one copy, every byte of it right, nothing of ours left, and both image-caches
have the descriptors, mounts and memory that they had.  Which fault, when and with which options comes from a seed of its
own for each, that is printed: GODWIT_SEED=S begins with the same.  GODWIT_FULL=1: 1,000 migrations; GODWIT_SOAK=N: N.
"""

import collections
import os
import random
import signal
import subprocess
import time

import pytest

from bed import BedError, wait_for
from failures import CRIU_BREAKS_MAX, FRAMES, FULL, PORT, Man
from godwit import ABORTED, BUSY, CRIU, DOUBT, MIB, PEER, REFUSED, Godwit, make_hosts
from live import CACHE_FILES, Churn, filling, new_seed, ours, pagers

MIGRATIONS = int(os.environ.get("GODWIT_SOAK") or (1000 if FULL else 6))
TIMEOUT = 2  # seconds of silence
WARM = 5  # migrations after which an image-cache has the memory it needs

CHURN = ["--threads", 3, "--mib", 24, "--rate", 40, "--exec-ms", 0, "--fork-ms", 500]
LOAD = ["--threads", 1, "--mib", 8, "--rate", 20, "--exec-ms", 0, "--fork-ms", 0]

TRACKERS = ["uffd-wp", "compare"]
OPTIONS = [[], [], ["--verify"], ["--eager"], ["--max-rounds", "1"], ["--stop-and-copy"], ["--downtime", "1", "--max-rounds", "5"],
           ["--downtime", "1", "--bandwidth", "60M", "--max-rounds", "5"]]

UP = ["PREAMBLE", "HELLO", "CHECK", "SNAPSHOT_BEGIN", "STREAM_JOIN", "SPACE_BEGIN", "PAGES", "PAGE_RUNS", "ROUND_END",
      "IMAGE_BEGIN", "IMAGE_DATA", "IMAGE_END", "SPACE_END", "SNAPSHOT_END", "VERDICT", "SETTLED"]
DOWN = ["HELLO", "CHECKED", "SNAPSHOT_ACCEPT", "STREAM_JOINED", "SNAPSHOT_ACK", "PREPARED", "VERDICT_ACK", "RESTORED"]
MANY = {"SPACE_BEGIN", "PAGES", "PAGE_RUNS", "ROUND_END", "IMAGE_BEGIN", "IMAGE_DATA", "IMAGE_END"}  # frames in a migration
ACTIONS = ["cut", "cut-middle", "close", "stall", "garbage", "flip", "drop", "delay:0.3"]
VICTIMS = ["migrate", "criu", "godwit-hook", "cache", "starter", "keeper", "criu there", "hook there", "pager"]


class Side(Godwit):
    """A host with an image-cache, and a man in the middle on its way to the other."""

    man = cache_now = before = None

    def start(self):
        self.cache_now = self.cache("--accept", "--timeout", TIMEOUT)
        self.moved_here = self.bytes = 0
        # What it tells of its start goes through a pipe, which it closes behind that.
        self.host.wait_for(lambda: "pipe" not in self.cache_now.fds(), 10, "the image-cache to have begun")
        self.before = self.before or self.measure()  # the next one needs the same

    def meet(self, other):
        self.man = Man(self.host, (other.host.address, 9996))

    # ---- growth ----

    def measure(self):
        """(descriptors, mounts) of the image-cache when it has nothing to do."""
        mounts = self.host.read(f"/proc/{self.cache_now.pid}/mountinfo").splitlines()
        return self.cache_now.fds(), [line.split()[4] for line in mounts]

    def check_growth(self):
        self.host.wait_for(lambda: self.measure() == self.before, 10,
                           lambda: f"the image-cache on {self.host.name} to have what it had: {self.before}, {self.measure()}")
        assert self.used_bytes() == 0
        if self.moved_here == WARM:
            self.bytes = self.cache_now.rss()
        elif self.moved_here > WARM:
            grown = self.cache_now.rss() - self.bytes
            assert grown < 2 * MIB, f"the image-cache on {self.host.name} has grown by {grown} bytes in {self.moved_here} migrations"


class Soak:
    def __init__(self, here, there, seed):
        self.here, self.there, self.seed = here, there, seed
        self.made = 0
        self.count = collections.Counter()
        self.churn = None
        self.loads = [Churn(side.host, *LOAD, name=f"load-{side.host.name}", seed=seed, slots=1) for side in (here, there)]

    def begin(self):
        self.made += 1
        self.churn = Churn(self.here.host, *CHURN, name=f"churn{self.made}", seed=self.seed + self.made, slots=3)

    # ---- one migration ----

    def step(self, seed):
        rng = random.Random(seed)
        tracker = rng.choice(TRACKERS)
        argv = ["--tracker", tracker, "--streams", rng.choice([1, 1, 2, 4]), *rng.choice(OPTIONS)]
        fault = rng.choice([self.no_fault, self.link_fault, self.link_fault, self.killed])
        self.here.man.arm()
        began = time.monotonic()
        try:
            status, told = fault(rng, argv)
            where = self.settle(status, told)
        except (AssertionError, BedError) as e:
            raise AssertionError(f"GODWIT_SEED={seed}, migration {sum(self.count.values())}: {tracker}: {e}\n"
                                 f"{self.here.logs()}\n{self.there.logs()}") from e
        self.count[where] += 1
        print(f"{time.monotonic() - began:5.1f} s  GODWIT_SEED={seed} {' '.join(map(str, argv))}: {told}: {where}", flush=True)

    def migrate(self, argv):
        return self.here.begin_migrate(self.churn.pid, f"127.0.0.1:{PORT}", "--timeout", TIMEOUT, *argv)

    @staticmethod
    def end(migrate):
        try:
            _, err = migrate.process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{migrate} hangs") from None
        return migrate.process.returncode, " ".join(err.splitlines()[-1:])

    def no_fault(self, rng, argv):
        status, err = self.end(self.migrate(argv))
        return status, f"no fault: {status} {err}"

    def link_fault(self, rng, argv):
        """Some frame has an accident; the next connections are well."""
        names = [("up", n) for n in UP] + [("down", n) for n in DOWN]
        direction, name = rng.choice(names)
        kind = "preamble" if name == "PREAMBLE" else FRAMES[name]
        nth, action = rng.choice([1, 2, 4, 8, 16]) if name in MANY else 1, rng.choice(ACTIONS)
        self.here.man.arm((f"{direction}:{kind}:{nth}", action))
        status, err = self.end(self.migrate(argv))
        fired = self.here.man.fired.is_set()
        self.here.man.disarm()
        return status, f"{direction}:{name.lower()}:{nth} {action}{'' if fired else ' (not there)'}: {status} {err}"

    def killed(self, rng, argv):
        """A program dies at some moment."""
        who, at = rng.choice(VICTIMS), rng.uniform(0, 0.8)
        migrate = self.migrate(argv)
        time.sleep(at)
        side, pids = self.victims(who, migrate)
        for pid in pids[:1]:
            try:
                side.host.kill(pid)
            except ProcessLookupError:
                pass
        if who in ("cache", "starter"):
            side.host.wait_dead(side.cache_now.pid)
            side.cache_now.process.communicate()
            side.start()
        status, err = self.end(migrate)
        return status, f"{who} killed at {at:.2f} s{'' if pids else ' (not there)'}: {status} {err}"

    def victims(self, who, migrate):
        """The side, and the pids there; of the pager's two processes the leader."""
        if who == "cache":
            return self.there, [self.there.cache_now.pid]
        if who == "starter":
            return self.there, self.there.cache_now.pids[1:]
        if who == "migrate":
            return self.here, [] if migrate.ended else [migrate.process.host_pid]
        if who == "pager":
            return self.there, sorted(pagers(self.there))
        name = {"keeper": "godwit", "criu there": "criu", "hook there": "godwit-hook"}.get(who)
        side, name = (self.there, name) if name else (self.here, who)
        found = [pid for pid, is_name in ours(side).items() if is_name == name]
        # A `criu check` that is killed leaves a child of its own behind, for ever.
        return side, [pid for pid in found if name != "criu" or "check" not in side.host.read(f"/proc/{pid}/cmdline", "")]

    # ---- what became of it ----

    def settle(self, status, told):
        """What an operator does; then everything is looked at.  Returns how it went."""
        assert status in (0, -signal.SIGKILL, PEER, DOUBT, REFUSED, ABORTED, CRIU), told
        self.resolve()
        if "criu killed" in told and not self.trees():
            # It was killed while it worked inside the process: that window is CRIU's.
            for side in (self.here, self.there):
                self.take_logs(side)
            self.begin()
            return "ended by the kill of criu"
        wait_for(lambda: len(self.trees()) == 1 and not self.busy(), 20, lambda: f"one copy: {self.trees()} {self.busy()}; {told}")
        side = self.trees()[0]
        assert status in (-signal.SIGKILL, DOUBT) or (status == 0) == (side is self.there), f"it is on {side.host.name}: {told}"
        self.churn.runs_on(side.host)
        self.churn.check_all(side.host)
        assert self.trees() == [side]
        for load in self.loads:
            load.right()
        moved = side is self.there
        self.nothing_left()
        if moved:
            self.there.moved_here += 1
            self.here, self.there = self.there, self.here
        return "moved" if moved else "ran on"

    def trees(self):
        """The sides on which processes of the churn are."""
        loads = {load.pid for load in self.loads}
        return [side for side in (self.here, self.there) if set(self.churn.tree(side.host)) - loads]

    def busy(self):
        """{pid: name} of what is at work still."""
        return {**ours(self.here), **ours(self.there)}

    def journal(self):
        return {s["migration"]: s["decision"] for s in self.here.status() if "migration" in s}

    def resolve(self):
        self.here.host.run([self.here_program, "resolve", "-W", self.here.workdir])

        def resolved():
            for name in self.journal():
                done = self.here.host.run([self.here_program, "resolve", name, "-W", self.here.workdir, "--timeout", TIMEOUT])
                assert done.returncode in (0, PEER, BUSY, DOUBT, ABORTED), done
            return not self.journal()

        wait_for(resolved, 40, lambda: f"the journal to be empty: {self.journal()}", every=0.1)

    @property
    def here_program(self):
        return self.here.daemons[-1].argv[0]

    @staticmethod
    def take_logs(side):
        """Removes what a criu that failed leaves on purpose."""
        for path in side.host.path(side.workdir).iterdir():
            if path.name.startswith(("migrate-", "incoming-")) and path.is_dir():
                logs = [log.name for log in path.iterdir()]
                if logs in (["dump.log"], ["restore.log"]):
                    (path / logs[0]).unlink()
                    path.rmdir()

    @staticmethod
    def forget_notes(side):
        """An image-cache that did not hear `settled` keeps a note for an hour."""
        for name in [name for name, s in side.snapshots().items() if s["state"] == "restored"]:
            side.run("resolve", name, "--resume")

    def nothing_left(self):
        for side in (self.here, self.there):
            def clean(side=side):
                if filling(side):
                    return False
                self.forget_notes(side)
                self.take_logs(side)
                return not side.snapshots() and set(side.files()) <= set(CACHE_FILES) and side.files(f"{side.workdir}/images") == []

            side.host.wait_for(clean, 20, lambda s=side: f"nothing to be left on {s.host.name}: {s.files()} {s.snapshots()}")
            side.check_growth()


@pytest.mark.timeout(60 + 60 * MIGRATIONS)
def test_back_and_forth(bed):
    seed = new_seed()
    sides = [Side(g.host) for g in make_hosts(bed, "a", "b")]
    for side in sides:
        side.start()
    sides[0].meet(sides[1])
    sides[1].meet(sides[0])
    soak = Soak(*sides, seed)
    soak.begin()
    rng = random.Random(seed)
    try:
        soak.step(seed)
        for _ in range(MIGRATIONS - 1):
            soak.step(rng.randrange(1, 1 << 30))
    finally:
        print(dict(soak.count))
        for side in sides:
            side.man.close()
    for load, side in zip(soak.loads, sides):
        load.check_all(side.host)
    assert soak.count["moved"] >= MIGRATIONS // 4 and soak.count["ended by the kill of criu"] <= CRIU_BREAKS_MAX + MIGRATIONS // 100
