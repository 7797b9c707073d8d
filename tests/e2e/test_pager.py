# SPDX-License-Identifier: Apache-2.0
"""Real processes, dumped by criu, restored with --lazy-pages, and filled by godwit's pager."""

import contextlib
import json
import signal

import pytest

from bed import SHARED, build_dir, wait_for
from godwit import check_memory

IMAGES, WORK = "/run/images", "/run/work"


class Pager:
    """The pager of a host, by hand."""

    def __init__(self, host, criu):
        self.host, self.criu = host, criu
        host.run(["mkdir", IMAGES, WORK], check=True)

    def tool(self, *argv):
        return self.host.run([build_dir() / "bench" / "bench-pager", *argv], check=True).stdout

    def look(self):
        return json.loads(self.tool("look", IMAGES))

    def dump(self, pid, *piece):
        """Dumps the process and makes what the pager reads of its images."""
        self.host.run([self.criu, "dump", "-t", pid, "-D", IMAGES, "-o", "dump.log"], check=True)
        self.host.wait_dead(pid)
        self.tool("images", IMAGES, *piece)
        self.tool("blank", IMAGES)  # nothing can come from there any more

    def restore(self):
        return self.host.run([self.criu, "restore", "-d", "--lazy-pages", "-D", IMAGES, "-W", WORK,
                              "-o", "restore.log"])

    def end(self, phase="done"):
        view = wait_for(lambda: v if not (v := self.look())["alive"] else None, 30, self.look)
        assert view["phase"] == phase, view
        return view

    def kill(self, which):
        """Kills one of the two and waits until there are two again.  False: they have ended."""
        view = self.look()
        if view["phase"] != "filling":
            return False
        try:
            self.host.kill(view[which])
        except ProcessLookupError:
            return True
        wait_for(lambda: (v := self.look())["takeovers"] > view["takeovers"] or not v["alive"], 10)
        return True


@pytest.fixture
def pager(hosts, criu):
    return Pager(hosts[0], criu)


def spawn(bed, host, *argv):
    pid = host.spawn([bed.workload("selfcheck"), argv[0], f"{SHARED}/out", *argv[1:]])
    host.wait_text(f"{SHARED}/out", "ok 0", 60)
    return pid


@pytest.mark.parametrize("which", ["leader", "standby", "nobody"])
def test_runs_while_it_is_filled(bed, pager, which):
    """Killed again and again; the process writes all the time, and finds every page as it was."""
    host = pager.host
    pid = spawn(bed, host, 192, 40)
    pager.dump(pid, 16)
    pager.tool("start", IMAGES, WORK)
    done = pager.restore()
    assert done.returncode == 0, host.read(f"{WORK}/restore.log")
    pager.tool("release", IMAGES)
    killed = 0
    while which != "nobody" and pager.kill(which):
        killed += 1
    check_memory(host, pid, f"{SHARED}/out", 1)
    view = pager.end()
    assert view["filled"] == view["pages"] > 192 * 256
    # The last kill may have found it ending.
    assert killed - 1 <= view["takeovers"] <= killed and (killed > 0) == (which != "nobody")
    check_memory(host, pid, f"{SHARED}/out", 2)
    assert not host.path(f"{WORK}/lazy-pages.socket").exists()
    space = next(host.path(IMAGES).glob("space-*"))
    assert space.stat().st_blocks * 512 < 4 << 20  # it has been given back


def test_nothing_is_read_to_be_skipped(bed, pager):
    """It reads its maps; each page goes from where it lies to where it belongs, and all that are listed do."""
    host = pager.host
    pid = spawn(bed, host, 192)
    pager.dump(pid, 16)
    pager.tool("start", IMAGES, WORK)
    leader = pager.look()["leader"]
    assert pager.restore().returncode == 0
    pager.tool("release", IMAGES)
    read = 0
    while pager.look()["alive"]:
        text = host.read(f"/proc/{leader}/io", "")
        read = int(text.split("rchar: ")[1].split()[0]) if "rchar: " in text else read
    view = pager.end()
    assert view["filled"] == view["pages"] > 192 * 256 and view["takeovers"] == 0
    assert 0 < read < 1 << 20, f"{read} bytes were read by read()"
    check_memory(host, pid, f"{SHARED}/out", 1)


def test_killed_while_criu_restores(bed, pager):
    """Before criu has finished, and once more when it has."""
    host = pager.host
    pid = spawn(bed, host, 64)
    pager.dump(pid, 16)
    pager.tool("start", IMAGES, WORK)
    leader = pager.look()["leader"]
    with host.popen([pager.criu, "restore", "-d", "--lazy-pages", "-D", IMAGES, "-W", WORK, "-o", "restore.log"]) as p:
        host.wait_for(lambda: not host.path(f"{WORK}/lazy-pages.socket").exists(), 10)
        host.kill(leader)
        assert p.wait(30) == 0
    view = pager.look()
    if view["alive"]:
        with contextlib.suppress(ProcessLookupError):  # it may end meanwhile
            host.kill(view["leader"])
    assert pager.end()["takeovers"] >= 1
    check_memory(host, pid, f"{SHARED}/out", 1)


def test_a_family(bed, pager):
    """Several processes, with threads and a pty: each has a userfaultfd of its own."""
    host = pager.host
    path = f"{SHARED}/tree"
    pid = host.spawn([bed.workload("tree"), path])
    host.wait_text(path, "round", 10)
    pager.host.run([pager.criu, "dump", "-t", pid, "-D", IMAGES, "-o", "dump.log", "--shell-job"], check=True)
    host.wait_dead(pid)
    pager.tool("images", IMAGES, 4)
    pager.tool("blank", IMAGES)
    pager.tool("start", IMAGES, WORK)
    before = host.read(path)
    done = pager.host.run([pager.criu, "restore", "-d", "--lazy-pages", "--shell-job", "-D", IMAGES, "-W", WORK,
                           "-o", "restore.log"])
    assert done.returncode == 0, host.read(f"{WORK}/restore.log")
    view = pager.end()
    assert view["filled"] == view["pages"] > 0
    host.wait_for(lambda: int(host.read(path).split()[1]) > int(before.split()[1]) + 20, 10)
    assert host.read(path).startswith("round")


def test_a_restore_that_fails(bed, pager):
    """criu gives up; the pager ends when nothing is left, and the images serve another restore."""
    host = pager.host
    pid = spawn(bed, host, 32)
    pager.dump(pid)
    pager.tool("start", IMAGES, WORK)
    done = host.run([pager.criu, "restore", "-d", "--lazy-pages", "-D", IMAGES, "-W", WORK, "-o", "restore.log",
                     "--action-script", "/bin/false"])
    assert done.returncode != 0
    view = pager.end("failed")
    assert "given the restore up" in view["text"]
    pager.tool("start", IMAGES, WORK)
    assert pager.restore().returncode == 0
    pager.end()
    check_memory(host, pid, f"{SHARED}/out", 1)


def test_both_killed_is_told(bed, pager):
    """Before anybody has connected: the view says so, and no restore succeeds."""
    host = pager.host
    pid = spawn(bed, host, 64)
    pager.dump(pid)
    pager.tool("start", IMAGES, WORK)
    view = pager.look()
    host.kill(view["standby"], signal.SIGSTOP)
    host.kill(view["leader"], signal.SIGSTOP)
    host.kill(view["standby"])
    host.kill(view["leader"])
    view = wait_for(lambda: v if not (v := pager.look())["alive"] else None, 10)
    assert view["phase"] == "waiting"
    assert pager.restore().returncode != 0  # nobody listens
