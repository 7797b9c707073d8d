# SPDX-License-Identifier: Apache-2.0
"""How much memory the daemons take, and that they give it back."""

import re
import threading
import time

import pytest

from bed import SHARED, SLOW, workload
from godwit import MIB, check_memory

pytestmark = pytest.mark.timeout(120 * SLOW)


def fields(host, path):
    """{name: bytes} of a file like /proc/PID/status or smaps_rollup; empty when the process has gone."""
    try:
        return {k: int(v) * 1024 for k, v in re.findall(r"^(\w+):\s+(\d+) kB$", host.read(path, ""), re.M)}
    except OSError:  # it ended in between
        return {}


def large(host, megabytes, name="memory"):
    path = f"{SHARED}/{name}"
    pid = host.spawn([workload("selfcheck"), megabytes, path])
    host.wait_text(path, "ok 0", 30)
    return pid, path


@pytest.mark.parametrize("way, megabytes", [("godwit", 512), ("stream", 192)])
def test_proxy_stays_small(pair, way, megabytes):
    """512 MiB go through the proxy in less than 16 MiB, whichever door they come in by."""
    pid, path = large(pair.a.host, megabytes)
    if way == "godwit":
        pair.a.dump(pid)
    else:
        pair.a.criu("dump", "--stream", "-t", pid, "-D", pair.a.workdir, "-o", "/tmp/dump.log")
        pair.a.host.path(f"{pair.a.workdir}/stats-dump").unlink()
    peak = pair.proxy.peak_rss()
    snapshot = pair.b.host.wait_for(lambda: next((i for i, s in pair.b.snapshots().items() if s["state"] == "ready"), None))
    assert pair.b.snapshots()[snapshot]["bytes"] > megabytes * MIB
    assert 1 * MIB < peak < 16 * MIB, f"the proxy took {peak / MIB:.1f} MiB"
    pair.b.restore()
    check_memory(pair.b.host, pid, path, 1)


def test_proxy_stays_small_behind_a_slow_link(pair):
    """A source faster than the link is made to wait, and not stored."""
    pair.bed.slow("a", "400mbit")
    pid, path = large(pair.a.host, 96)
    pair.a.dump(pid)
    assert pair.proxy.peak_rss() < 16 * MIB
    pair.b.restore()
    check_memory(pair.b.host, pid, path, 1)


def test_proxy_stays_small_with_many_at_once(pair):
    pids = [large(pair.a.host, 32, f"m{i}") for i in range(4)]
    dumps = [pair.a.begin_dump(pid, "--snapshot", f"s{i}") for i, (pid, _) in enumerate(pids)]
    for dump in dumps:
        dump.end()
    assert pair.proxy.peak_rss() < 16 * MIB
    for i, (pid, path) in enumerate(pids):
        pair.b.restore("--snapshot", f"s{i}")
        check_memory(pair.b.host, pid, path, 1)


class Watch:
    """Samples what a host's images and processes take together, as fast as it can; peak is the most."""

    def __init__(self, side, cache):
        self.side, self.cache = side, cache
        self.peak = self.samples = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def sample(self):
        host = self.side.host
        total = self.side.tmpfs_used() + fields(host, f"/proc/{self.cache.pid}/status").get("RssAnon", 0)
        for pid in host.pids():
            if pid != self.cache.pid:
                rollup = fields(host, f"/proc/{pid}/smaps_rollup")
                total += rollup.get("Pss_Anon", 0) + rollup.get("Pss_Shmem", 0)
        return total

    def _run(self):
        while not self.ended.is_set():
            self.peak = max(self.peak, self.sample())
            self.samples += 1
            time.sleep(0.005)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.ended.set()
        self.thread.join()


def test_restore_takes_image_plus_process(pair):
    """The destination's peak is the image and the process, and a tenth; when restore has ended, the process alone."""
    pid, path = large(pair.a.host, 256)
    process = pair.a.host.rss(pid)
    pair.a.dump(pid, "--snapshot", "big")
    image = pair.b.snapshots()["big"]["bytes"]
    assert image > 256 * MIB
    assert image <= pair.b.tmpfs_used() < image * 1.02 + 4 * MIB
    with Watch(pair.b, pair.cache) as watch:
        pair.b.restore()
    assert watch.samples > 10 and watch.peak > image + process / 2, "the watch saw no restore"
    assert watch.peak < (image + process) * 1.1, f"{watch.peak / MIB:.0f} MiB for {image / MIB:.0f} + {process / MIB:.0f}"
    assert pair.b.used_bytes() == 0 and pair.b.tmpfs_used() < MIB
    assert watch.sample() < process * 1.1
    check_memory(pair.b.host, pid, path, 1)


def test_restore_of_the_last_of_a_chain_takes_no_more(pair):
    """Its pages go to criu from where they lie."""
    pid, path = large(pair.a.host, 256)
    process = pair.a.host.rss(pid)
    pair.a.pre_dump(pid)
    pair.a.dump(pid, "--snapshot", "big")
    image = pair.b.tmpfs_used()
    assert image > 256 * MIB
    with Watch(pair.b, pair.cache) as watch:
        pair.b.restore()
    assert watch.samples > 10 and watch.peak > image + process / 2, "the watch saw no restore"
    assert watch.peak < (image + process) * 1.1, f"{watch.peak / MIB:.0f} MiB for {image / MIB:.0f} + {process / MIB:.0f}"
    assert pair.b.used_bytes() == 0 and pair.b.tmpfs_used() < MIB
    check_memory(pair.b.host, pid, path, 1)


def test_cache_gives_memory_back(pair):
    """After restored, forgotten, refused and broken-off snapshots nothing is in use, and the cache itself is small."""
    pid, path = large(pair.a.host, 128)
    small = fields(pair.b.host, f"/proc/{pair.cache.pid}/status")["RssAnon"]
    for i in range(3):
        pair.a.dump(pid, "--leave-running", "--snapshot", f"s{i}")
    assert pair.b.used_bytes() > 384 * MIB and pair.b.tmpfs_used() > 384 * MIB
    pair.b.forget("s0")
    pair.b.forget("s1")
    assert 128 * MIB < pair.b.used_bytes() < 160 * MIB and pair.b.tmpfs_used() < 160 * MIB
    pair.a.host.kill(pid)
    pair.b.restore()
    assert pair.b.used_bytes() == 0 and pair.b.tmpfs_used() < MIB
    check_memory(pair.b.host, pid, path, 1)
    assert fields(pair.b.host, f"/proc/{pair.cache.pid}/status")["RssAnon"] < small + 4 * MIB


def test_used_bytes_while_it_arrives(pair):
    """The limit counts what arrives as it arrives, and what is dropped half-way is given back."""
    pid, path = large(pair.a.host, 64)
    pair.bed.slow("a", "200mbit")
    dump = pair.a.begin_dump(pid, "--snapshot", "half")
    pair.b.host.wait_for(lambda: pair.b.used_bytes() > 8 * MIB)
    dump.process.terminate()
    dump.process.communicate(timeout=20)
    assert dump.process.returncode != 0
    pair.b.wait_state("half", None)
    assert pair.b.used_bytes() == 0 and pair.b.tmpfs_used() < MIB
    pair.bed.slow("a")
    check_memory(pair.a.host, pid, path, 1)
    pair.a.take_failure()
