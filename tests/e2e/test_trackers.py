# SPDX-License-Identifier: Apache-2.0
"""How a process is followed where the kernel, or the process, does not let it be followed in the best way.

The workload knows every byte of its memory, as in test_live.py; the kernel is made to lack a feature for godwit and for
the criu that it starts (workload `lacking`).
"""

import contextlib
import ctypes
import mmap
import re
import signal
import struct
import time

import pytest

from bed import criu, workload
from godwit import Running, patience, program
from live import Between, Churn, ours

KINDS = {
    "threads": (["--threads", 4, "--mib", 32], 4),
    "prefork": (["--threads", 1, "--prefork", 2, "--fork-ms", 100, "--exec-ms", 0], 3),
    "exec": (["--threads", 2, "--mib", 12, "--exec-ms", 250, "--fork-ms", 100], 2),
}


class Lacking(Between):
    """Two hosts, and a `godwit migrate` for which the kernel lacks features."""

    features = []
    environment = []

    def begin(self, pid, *argv):
        # criu notes in a file what the kernel has.  Without all of userfaultfd it calls the kernel too old, so that stays.
        if "scan" in self.features:
            without_scan()
            self.here.host.path("/run/criu.kdat").unlink(missing_ok=True)
            # On a slow machine it takes longer to make it anew than godwit waits for criu check.
            self.here.host.run([workload("lacking"), *self.features, criu(), "check"])
        return Running(self.here, ["env", *self.environment, workload("lacking"), *self.features, program(), "migrate", "-W", self.here.workdir, "-t", pid,
                                   self.there.host.address, "--insecure", "--json", *patience(argv), *argv], cwd=self.here.cwd)


def table_entry(page):
    """What /proc/self/pagemap has of a page of our own."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    with open("/proc/self/pagemap", "rb") as table:
        table.seek(address // mmap.PAGESIZE * 8)
        return struct.unpack("<Q", table.read(8))[0]


def has_soft_dirty():
    """Whether this kernel notes what was written, in its page tables."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page[0] = 1
    return bool(table_entry(page) >> 55 & 1)


def has_zero_page():
    """Whether all pages that were only read are one, as everywhere but in some virtual machines (pvm_no_zero_page)."""
    pages = [mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
    for page in pages:
        with contextlib.suppress(OSError):  # a kernel that has no huge pages
            page.madvise(mmap.MADV_NOHUGEPAGE)
        assert page[0] == 0
    return table_entry(pages[0]) == table_entry(pages[1])


def without_scan():
    """Without PAGEMAP_SCAN criu leaves out the frame that it has once seen of a page that was only read.  Where that is
    no page of zeros of all processes, it is anybody's by now, and criu loses it: of a kernel of which nothing is lacking
    that cannot come, since criu asks for such pages by their name."""
    if not has_zero_page():
        pytest.skip("this kernel has no page of zeros, so criu loses pages when it must not use PAGEMAP_SCAN")


def warnings(told):
    return " ".join(line["text"] for line in told.lines if line.get("severity") == "warning")


@pytest.fixture
def lacking(two):
    return Lacking(*two)


def start(between, kind="threads"):
    arguments, slots = KINDS[kind]
    return Churn(between.here.host, *arguments, slots=slots)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", [["scan"], ["async"]], ids=" ".join)
def test_kernel_lacks(lacking, features, kind):
    """The next way is taken, it is said why, and nothing that criu was not shown is missing."""
    lacking.features = features
    churn = start(lacking, kind)
    told = lacking.move(churn, "--verify")
    assert "--tracker compare" in warnings(told) and "Linux 6.7" in warnings(told)
    assert "criu has dumped all memory again" not in warnings(told)


@pytest.mark.skipif(not has_soft_dirty(), reason="this kernel has no soft-dirty bits")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", [[], ["scan"]], ids=lambda f: " ".join(f) or "all")
def test_soft_dirty(lacking, features, kind):
    """There and back and there: what is written while it is looked at and cleared is not lost."""
    lacking.features = features
    churn = start(lacking, kind)
    for n in range(3):
        slowly = ["--downtime", 1, "--max-rounds", 6, "--bandwidth", "40M"] if n % 2 == 0 else []
        told = lacking.move(churn, "--tracker", "soft-dirty", *slowly, *(["--verify"] if n == 1 else []))
        assert "criu has dumped all memory again" not in warnings(told) and told.last["stopped"] > 0
        # Now and then one is in vfork for too long, where all is slow; it is then criu's.
        unfollowed = re.search(r"(\d+) of (\d+) processes cannot be followed", warnings(told))
        assert not unfollowed or int(unfollowed[1]) < int(unfollowed[2]), warnings(told)


@pytest.mark.skipif(has_soft_dirty(), reason="this kernel has soft-dirty bits")
def test_no_soft_dirty(lacking):
    """Asked for where there is none: it is moved, and it is said why it stands still longer."""
    told = lacking.move(start(lacking), "--tracker", "soft-dirty")
    assert "no soft-dirty bits" in warnings(told) and "cannot be followed" in warnings(told)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tracker, features", [("auto", []), ("compare", []), ("compare", ["scan"])], ids=str)
def test_nothing_is_preloaded(lacking, tracker, features, kind):
    """criu's scans are answered from outside."""
    lacking.features = features
    told = lacking.move(start(lacking, kind), "--tracker", tracker, "--no-scan-filter", "--verify")
    assert "criu has dumped all memory again" not in warnings(told)


def test_static_criu(lacking):
    """Nothing can be preloaded into it, which godwit sees."""
    lacking.environment = [f"GODWIT_CRIU={workload('static_criu')}", f"CRIU={criu()}"]
    told = lacking.move(start(lacking), "--verify")
    assert "criu has dumped all memory again" not in warnings(told)


@pytest.mark.parametrize("tracker", ["auto", "compare"])
def test_nothing_is_preloaded_and_seccomp(lacking, tracker):
    """criu dumps all of it, and what godwit has copied is right all the same."""
    churn = Churn(lacking.here.host, "--seccomp", 1, "--mib", 16)
    told = lacking.move(churn, "--tracker", tracker, "--no-scan-filter", "--verify")
    assert "criu has dumped all memory again" in warnings(told)


def test_nobody_answers(lacking):
    """godwit is killed while criu waits for its answer: criu is told that there is no such call, and gives up."""
    churn = start(lacking)
    here = lacking.here.host
    migrate = lacking.begin(churn.pid, "--no-scan-filter")
    dump = here.wait_for(lambda: next((pid for pid, name in ours(lacking.here).items() if name == "criu"), None), 20, "criu")
    godwits = [pid for pid, name in ours(lacking.here).items() if name == "godwit"]
    for sig in signal.SIGSTOP, signal.SIGKILL:
        for pid in godwits:
            here.kill(pid, sig)
        time.sleep(0.5)
    migrate.process.wait(20)
    here.wait_for(lambda: not here.pid_alive(dump), 20, "criu to end")
    lacking.there.host.wait_for(lambda: not ours(lacking.there), 20, "the copy to be dropped")
    churn.runs_on(here)
    churn.check_all(here)


def test_only_uffd(lacking):
    """Where it must not be compared, what cannot be followed is left to criu."""
    lacking.features = ["async"]
    churn = start(lacking)
    told = lacking.move(churn, "--tracker", "uffd-wp")
    assert "cannot be followed" in warnings(told)


def test_one_of_a_tree(lacking):
    """A process that is stopped by a signal is compared, the others are not."""
    churn = start(lacking, "prefork")
    here = lacking.here.host
    child = here.wait_for(lambda: next((pid for pid in churn.tree(here) if pid != churn.pid), None), 10, "a child")
    here.kill(child, signal.SIGSTOP)
    migrate = lacking.begin(churn.pid, "--verify")
    out, err = migrate.process.communicate(timeout=60)
    print(out, err)
    assert migrate.process.returncode == 0, err
    assert "1 of " in out and "stopped by a signal" in out
    there = lacking.there.host
    there.kill(child, signal.SIGCONT)
    lacking.arrived(churn)
