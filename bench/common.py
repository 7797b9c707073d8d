# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: the test bed's modules, memory that is warm, and a process that is busy with its memory."""

import json
import mmap
import os
import re
import signal
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

import bed  # noqa: E402

STEADY_SECONDS = 0.5  # before what is measured, and after it


def available_mib():
    meminfo = Path("/proc/meminfo").read_text()
    return int(re.search(r"MemAvailable:\s*(\d+)", meminfo)[1]) >> 10


def warm(mib):
    """Touches memory in huge pages and returns it: what is measured may have it after close().

    A page that a virtual machine has not touched lately can cost more than all that is measured, and one that is free for
    two seconds may have gone back to the host already.
    """
    mib = min(mib, available_mib() * 2 // 3)
    memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for at in range(0, mib << 20, 4096):
        memory[at] = 1
    return memory


def listed(kind, choices=None):
    """For an option of argparse that is repeated or a list with commas."""

    def parse(text):
        values = [kind(word) for word in text.split(",")]
        if choices and set(values) - set(choices):
            raise ValueError
        return values

    parse.__name__ = f"list of {'/'.join(choices) if choices else kind.__name__}"
    return parse


def flat(lists, default):
    """The values of such an option."""
    return [value for values in lists for value in values] if lists else default


def add_list_option(parser, name, kind, default, choices=None, help=None):
    parser.add_argument(name, type=listed(kind, choices), action="append", metavar="LIST",
                        help=f"{help} (default: {','.join(map(str, default))})")


def three(values, digits=1):
    """min, median, max."""
    return [round(f(values), digits) for f in (min, statistics.median, max)]


def first_round_mb_s(told):
    """The rate of the first round of a migration, by the last line of its --json."""
    first = json.loads(told.out.splitlines()[-1])["first-round"]
    return first["transferred"] / 1000 / first["time"]


def print_json(**fields):
    print(json.dumps(fields), flush=True)


def note(text):
    print(text, file=sys.stderr, flush=True)


class Dirty:
    """The workload `dirty` on a host: a process that writes to its memory, and tells how long it stood still."""

    def __init__(self, host, size_mib, dirty_mb_s, number=0, pid=None):
        """pid: it has been started already."""
        self.path = f"{bed.SHARED}/dirty{number}"
        self.home, self.size_mib, self.dirty_mb_s = host, size_mib, dirty_mb_s
        if not pid:
            host.path(self.path).unlink(missing_ok=True)
        self.pid = pid or host.spawn([bed.workload("dirty"), size_mib, dirty_mb_s, self.path])
        bed.wait_for(lambda: self.state == "running", 120, "the workload to fill its memory")

    def _words(self, at, count):
        try:
            data = self.home.path(self.path).read_bytes()
        except FileNotFoundError:
            data = b""
        data = data.ljust(64, b"\0")
        return [int.from_bytes(data[at + 8 * i:at + 8 * i + 8], "little") for i in range(count)]

    @property
    def state(self):
        face = self.home.path(self.path)
        return face.read_bytes()[:16].rstrip(b"\0").decode() if face.exists() else ""

    @property
    def pause_ms(self):
        """The longest since begin_anew()."""
        return self._words(16, 1)[0] / 1e6

    @property
    def written_mb(self):
        return self._words(32, 1)[0] * 4096 / 1e6

    def settle(self):
        """Lets it run for a while, sees that it writes as much as it should, and has the pause begin anew."""
        began, before = time.monotonic(), self.written_mb
        time.sleep(STEADY_SECONDS)
        rate = (self.written_mb - before) / (time.monotonic() - began)
        if abs(rate - self.dirty_mb_s) > self.dirty_mb_s / 10 + 1:
            note(f"(the workload writes {rate:.0f} MB/s instead of {self.dirty_mb_s:g}: is the machine busy?)")
        self.home.kill(self.pid, signal.SIGUSR1)
        bed.wait_for(lambda: self.pause_ms < 50, 5, "the pause to begin anew")

    def runs_on(self, host):
        """Waits until it beats as a process of this host."""
        bed.wait_for(lambda: host.pid_alive(self.pid), 30, f"pid {self.pid} on {host.name}")
        began = time.time_ns()
        bed.wait_for(lambda: self._words(24, 1)[0] > began, 30, f"a beat on {host.name}")

    def be_quiet(self, quiet=True):
        """It writes no more to its memory; or writes on."""
        with self.home.path(self.path).open("r+b") as face:
            face.seek(56)
            face.write(int(quiet).to_bytes(8, "little"))

    def check(self, host):
        """Fails if a page is not what it was, or what was written since."""
        checks = self._words(40, 1)[0]
        host.kill(self.pid, signal.SIGUSR2)
        bed.wait_for(lambda: self._words(40, 1)[0] > checks, 60, "the workload to look at its memory")
        if bad := self._words(48, 1)[0]:
            raise bed.BedError(f"{bad} pages of the moved process are wrong")

    def end(self, host):
        host.kill(self.pid)
        host.wait_dead(self.pid)


def run(main):
    """A benchmark: it tells what went wrong in its own words, and puts back what it changed when it is told to end."""
    name = f"bench/{Path(sys.argv[0]).name}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if os.geteuid() != 0:
        sys.exit(f"{name}: run as root: it makes hosts of namespaces, and CRIU needs it")
    if (load := os.getloadavg()[0]) > os.cpu_count() / 2:
        note(f"(the load average is {load:.1f}: others work here too, so expect longer times)")
    try:
        main()
    except (bed.BedError, AssertionError) as e:
        sys.exit(f"{name}: {e}")
