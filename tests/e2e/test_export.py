# SPDX-License-Identifier: Apache-2.0
"""Snapshots as ordinary images of criu: written to a directory, and read from one."""

import json
import os
import subprocess

import pytest

from bed import SLOW, fetched, workload
from godwit import BUSY, MIB, NOT_FOUND, PEER, REFUSED, USAGE, Counter
from live import Dirty

pytestmark = pytest.mark.timeout(120 * SLOW)


def names(host, directory):
    return sorted(os.listdir(host.path(directory)))


def criu_restore(side, directory):
    """By unmodified criu, from the directory alone."""
    side.criu("restore", "-d", "-D", directory, "-W", "/tmp", "-o", "/tmp/restore.log")


def test_export(pair):
    """A dump as it came; the snapshot stays, and can be restored by either."""
    a, b, counter = pair.a, pair.b, pair.counter()
    a.dump(counter.pid, "--snapshot", "s0")
    used = b.used_bytes()
    b.run("export", "s0", "/tmp/images")
    assert {"inventory.img", "pstree.img", f"core-{counter.pid}.img", f"pagemap-{counter.pid}.img", "pages-1.img"} <= set(
        names(b.host, "/tmp/images"))
    b.wait_state("s0", "ready")
    assert b.used_bytes() == used
    criu_restore(b, "/tmp/images")
    counter.runs_on(b.host)
    b.host.kill(counter.pid)
    b.host.wait_dead(counter.pid)
    b.restore("--snapshot", "s0")
    counter.runs_on(b.host)


def test_export_of_one_of_a_chain(pair):
    """Whole, and without parents."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 32, 20)
    for _ in range(3):
        a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--snapshot", "end")
    b.run("export", "end", "/tmp/images")
    assert "parent" not in names(b.host, "/tmp/images")
    b.wait_state("end", "ready")
    b.forget("end")
    assert b.used_bytes() == 0
    criu_restore(b, "/tmp/images")
    dirty.check(b.host)


CRIT = fetched("crit")


@pytest.mark.skipif(not CRIT, reason="scripts/setup has fetched no crit, and GODWIT_CRIT names none")
def test_crit_reads_it(pair):
    """All images of one of a chain; and what the pagemap tells is what there is of pages."""

    def crit(*argv):
        return subprocess.run([CRIT, *argv], check=True, capture_output=True, text=True).stdout

    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 16, 20)
    for _ in range(2):
        a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--snapshot", "end")
    b.run("export", "end", "/tmp/images")
    directory = b.host.path("/tmp/images")
    for image in directory.glob("*.img"):
        if not image.name.startswith("pages-"):
            assert json.loads(crit("decode", "-i", str(image)))["entries"]
    assert f"{dirty.pid}" in crit("x", str(directory), "ps")
    _, *entries = json.loads(crit("decode", "-i", str(directory / f"pagemap-{dirty.pid}.img")))["entries"]
    assert all(entry["flags"] & 4 and not entry["flags"] & 1 for entry in entries), "present, and not a parent's"
    assert sum(entry["compat_nr_pages"] for entry in entries) * 4096 == (directory / "pages-1.img").stat().st_size
    b.restore()
    dirty.check(b.host)


def test_export_that_is_refused(pair):
    a, b, counter = pair.a, pair.b, pair.counter()
    done = b.run("export", "none", "/tmp/images", code=NOT_FOUND)
    assert "none" in done.err and not b.host.path("/tmp/images").exists()
    a.dump(counter.pid, "--snapshot", "s1")
    b.host.mkdir("/tmp/full")
    b.host.write("/tmp/full/file", "precious")
    assert "is not empty" in b.run("export", "s1", "/tmp/full", code=USAGE).err
    assert names(b.host, "/tmp/full") == ["file"]
    b.run("export", "s1", "/no/such/place", code=1)
    b.run("export", "s1", code=USAGE)
    b.restore()
    counter.runs_on(b.host)


def test_export_of_a_pre_dump(pair):
    """Memory, and no process: as criu page-server would leave it.  It stays what it is."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 16, 5)
    a.pre_dump(dirty.pid, "--snapshot", "s0")
    b.run("export", "s0", "/tmp/images")
    assert names(b.host, "/tmp/images") == [f"pagemap-{dirty.pid}.img", "pages-1.img"]
    assert b.host.path("/tmp/images/pages-1.img").stat().st_size > 16 * MIB
    b.wait_state("s0", "pre-dumped")
    assert a.dump(dirty.pid, "--snapshot", "s1", "--json").json["parent"] == "s0"
    b.restore()
    dirty.check(b.host)


def test_export_to_a_full_disk(pair):
    """It fails, and leaves nothing behind; the snapshot is whole."""
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 16)
    a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--snapshot", "s0")
    b.host.mkdir("/tmp/small")
    b.host.run(["mount", "-t", "tmpfs", "-o", "size=4M", "small", "/tmp/small"], check=True)
    done = b.run("export", "s0", "/tmp/small", code=1)
    assert "No space left" in done.err and names(b.host, "/tmp/small") == []
    done = b.run("export", "s0", "/tmp/small/deeper", code=1)
    assert names(b.host, "/tmp/small") == []
    b.wait_state("s0", "ready")
    b.restore()
    dirty.check(b.host)


def test_import(pair):
    """What criu has written by itself is a snapshot like any other."""
    a, b, counter = pair.a, pair.b, pair.counter()
    b.host.mkdir("/tmp/images")
    moved = Counter(b.host, "other")
    b.criu("dump", "-t", moved.pid, "-D", "/tmp/images", "-W", "/tmp", "-o", "/tmp/dump.log")
    done = b.run("import", "/tmp/images", "--snapshot", "s0")
    assert "s0" in done.out
    assert b.state("s0") == "ready"
    b.restore("--snapshot", "s0")
    moved.runs_on(b.host)
    counter.runs_on(a.host)


def test_there_and_back_by_a_directory(pair):
    a, b = pair.a, pair.b
    dirty = Dirty(a.host, 32, 20)
    a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--snapshot", "s0")
    b.run("export", "s0", "/tmp/images")
    b.wait_state("s0", "ready")
    b.run("import", "/tmp/images", "--snapshot", "s0", code=BUSY)
    b.forget("s0")
    b.run("import", "/tmp/images")
    assert len(b.snapshots()) == 1 and b.used_bytes() > 32 * MIB
    b.restore()
    dirty.check(b.host)


def cut_pages(host):
    path = host.path("/tmp/images/pages-1.img")
    os.truncate(path, path.stat().st_size - 1)


BAD = {
    "no-inventory": (lambda host: host.path("/tmp/images/inventory.img").unlink(), USAGE, "no inventory.img"),
    "a-parent": (lambda host: host.path("/tmp/images/parent").symlink_to("../other"), USAGE, "has a parent"),
    "pages-cut-short": (cut_pages, REFUSED, "its pagemap"),
    "no-pages": (lambda host: host.path("/tmp/images/pages-1.img").unlink(), REFUSED, "pages-1.img"),
}


@pytest.mark.parametrize("how", BAD)
def test_import_of_what_is_none(pair, how):
    """One clear line, and nothing of it stays."""
    b = pair.b
    spoil, code, said = BAD[how]
    b.host.mkdir("/tmp/images")
    pid = b.host.spawn([workload("counter"), "/tmp/face"])
    b.criu("dump", "-t", pid, "-D", "/tmp/images", "-W", "/tmp", "-o", "/tmp/dump.log")
    spoil(b.host)
    done = b.run("import", "/tmp/images", code=code)
    assert said in done.err and len(done.err.splitlines()) == 1
    assert b.snapshots() == {} and b.used_bytes() == 0


def test_import_without_a_cache(two):
    a, _ = two
    a.host.mkdir("/tmp/images")
    a.host.write("/tmp/images/inventory.img", "x")
    assert "no image-cache works" in a.run("import", "/tmp/images", code=PEER).err
    assert "no image-cache works" in a.run("export", "s0", "/tmp/out", code=PEER).err
    assert not a.host.path("/tmp/out").exists()
