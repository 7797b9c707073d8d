# SPDX-License-Identifier: Apache-2.0
"""What is left of the memory of processes in the memory, core dumps, children and logs of godwit."""

import re
import signal

import pytest

from bed import SHARED, wait_for, workload
from credentials import TARGET, options
from failures import comm
from godwit import MIB, program

WORD = "tHEqUICKbROWNfOX"
SECRET = b"TheQuickBrownFox"
PIECE = SECRET * 32  # more than a hash keeps of what it is given
SLOWLY = ["--bandwidth", "10M"]
PAGER = "godwit-pager"
KINDS = ["plain text", "certificates", "pre-shared key"]


class Secret:
    """A process with its memory full of a known text."""

    def __init__(self, host, mib, name="secret"):
        self.pid = host.spawn([workload("secret"), mib, f"{SHARED}/{name}", WORD])
        host.wait_text(f"{SHARED}/{name}", "ok 0", 30)


def areas(host, pid):
    """(start, end, name, whether core dumps have it) of all that a process has mapped and can be read."""
    found = []
    for line in host.read(f"/proc/{pid}/smaps").splitlines():
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) (....) \S+ \S+ \S+ *(.*)", line)
        if head:
            start, end, mode, name = head.groups()
            area = [int(start, 16), int(end, 16), name, mode]
        elif line.startswith("VmFlags:") and area[3][0] == "r" and area[2] not in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
            found.append((*area[:3], "dd" not in line.split()))
    return found


def where(host, pid, secret=SECRET):
    """{name of an area: whether core dumps have it} of those in which the secret is; on the stack some 64 bytes of what was
    hashed last may be."""
    found = {}
    with open(host.path(f"/proc/{pid}/mem"), "rb", 0) as memory:
        for start, end, name, dumped in areas(host, pid):
            for at in range(start, end, 4 * MIB):
                try:
                    memory.seek(at)
                    bytes_there = memory.read(min(4 * MIB, end - at))
                except OSError:
                    continue
                if (PIECE if name == "[stack]" else secret) in bytes_there:
                    found[f"{name} {start:x}+{end - start:x}"] = dumped
    return found


def credentials(kind, host):
    return [] if kind == "plain text" else options(kind, host)


def begin(a, kind, pid, *argv):
    return a.begin_migrate(pid, TARGET, *argv, *credentials(kind, "a"))


def wait_arriving(cache, snapshots=1):
    """Waits until that many snapshots have some of their pages at the image-cache, and its window on them is open."""
    def windows():
        # Of a process whose root is the directory of all snapshots.
        return {n.split("/")[1] for _, _, n, _ in areas(cache.host, cache.pid) if "/images/" in n}
    cache.host.wait_for(lambda: len(windows()) >= snapshots and cache.godwit.used_bytes() > 4 * MIB, 20, "pages to arrive")
    return windows()


# ---- core dumps ----

def test_mappings_are_in_no_core_dump(two):
    """Page content is in memory of its own, which neither the kernel nor gcore dumps."""
    a, b = two
    cache = b.cache("--accept")
    secret = Secret(a.host, 64)
    moving = begin(a, "plain text", secret.pid, *SLOWLY)
    wait_arriving(cache)
    there, here = where(b.host, cache.pid, PIECE), where(a.host, moving.process.host_pid, PIECE)
    assert any("/images/" in name for name in there) and here
    assert not any(there.values()) and not any(here.values()), (there, here)
    moving.process.kill()
    moving.process.communicate()


def test_pager_is_in_no_core_dump(two):
    a, b = two
    b.cache("--accept")
    secret = Secret(a.host, 192)
    moving = begin(a, "plain text", secret.pid, "--stop-and-copy")

    def pagers():
        found = [p for p in b.host.pids() if "/space-1" in b.host.read(f"/proc/{p}/maps", "") and comm(b.host, p) == PAGER]
        for pid in found:
            b.host.pause_process(pid)
        return found
    pids = wait_for(pagers, 30, "a pager with pages", every=0)
    found = {name: dumped for pid in pids for name, dumped in where(b.host, pid).items()}
    for pid in pids:
        b.host.resume_process(pid)
    assert any("/space-1" in name for name in found) and not any(found.values()), found
    moving.end()


def test_no_core_dump_is_written(two):
    """The heap, where GnuTLS and libraries put what they like, is in none either."""
    a, _ = two
    script = 'ulimit -c unlimited; cd /tmp; "$@"'
    control = a.host.run(["bash", "-c", script + "; true", "sh", "bash", "-c", "kill -SEGV $$"])
    if "core dumped" not in control.stderr:
        pytest.skip("this machine writes no core dumps")
    for command in ("image-cache", "image-proxy"):
        process = a.host.popen(["bash", "-c", script + "; true", "sh", program(), command, "-W", f"/run/{command}"],
                               stderr=-1, stdout=-1)
        sock = {"image-cache": "cache.sock", "image-proxy": "proxy.sock"}[command]
        a.host.wait_for(lambda: a.host.path(f"/run/{command}/{sock}").exists(), 10, command)
        pid = next(p for p in a.host.pids() if a.host.read(f"/proc/{p}/cmdline", "").split("\0")[:2] == [program(), command])
        a.host.kill(pid, signal.SIGSEGV)
        err = process.communicate(timeout=20)[1]
        assert "Segmentation fault" in err and "core dumped" not in err


# ---- when it is over ----

@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_a_migration(issued, kind, streams):
    """Neither of one that was broken off nor of one that went well is anything left in the image-cache."""
    a, b = issued
    cache = b.cache("--accept", "-v", *credentials(kind, "b"))
    secret = Secret(a.host, 96)
    moving = begin(a, kind, secret.pid, *SLOWLY, "--streams", streams)
    wait_arriving(cache)
    moving.process.kill()
    moving.process.communicate()
    b.host.wait_for(lambda: b.snapshots() == {} and b.used_bytes() == 0, 15, "the snapshot to be dropped")
    assert where(b.host, cache.pid) == {} and b.tmpfs_used() < MIB
    done = begin(a, kind, secret.pid, "--streams", streams).end()
    assert "moved to b" in done.out
    b.host.wait_for(lambda: b.snapshots() == {}, 15, "the snapshot to be freed")
    assert where(b.host, cache.pid) == {} and b.tmpfs_used() < MIB
    b.host.kill(secret.pid, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_a_dump(issued, kind):
    """Nor in an image-proxy; and what is restored with --stream goes past the image-cache."""
    a, b = issued
    cache = b.cache("-v", *credentials(kind, "b"))
    proxy = a.proxy(b, "-v", *credentials(kind, "a"))
    secret = Secret(a.host, 64)
    a.dump(secret.pid)
    b.restore()
    for host, daemon in ((a.host, proxy), (b.host, cache)):
        host.wait_for(lambda: where(host, daemon.pid) == {}, 5, lambda: f"nothing to be left: {where(host, daemon.pid)}")
    assert b.tmpfs_used() < MIB


def test_logs_have_no_pages(two):
    """Neither what the daemons say nor what is on standard error, of a migration that fails and one that does not."""
    a, b = two
    cache = b.cache("--accept", "-v")
    proxy = a.proxy(b, "-v")
    secret = Secret(a.host, 64)
    moving = begin(a, "plain text", secret.pid, *SLOWLY)
    wait_arriving(cache)
    moving.process.kill()
    said = "".join(moving.process.communicate())
    b.host.wait_for(lambda: b.snapshots() == {}, 15, "the snapshot to be dropped")
    done = begin(a, "plain text", secret.pid).end()
    said += done.out + done.err + cache.log() + proxy.log() + a.logs() + b.logs()
    assert "linked to host a" in said and SECRET.decode() not in said


# ---- children ----

def test_children_keep_nothing_of_others(two):
    """What lives longer than a session (pager, keeper) has not inherited the memory of others."""
    a, b = two
    cache = b.cache("--accept")
    slow, quick = Secret(a.host, 96, "slow"), Secret(a.host, 192, "quick")
    moving = begin(a, "plain text", slow.pid, "--bandwidth", "2M")
    slow_id, = wait_arriving(cache)
    other = begin(a, "plain text", quick.pid, "--stop-and-copy")
    seen = set()

    def look():
        for pid in b.host.pids():
            maps = b.host.read(f"/proc/{pid}/maps", "") if pid != cache.pid else ""
            assert f"/{slow_id}/" not in maps
            seen.add(comm(b.host, pid))
        return PAGER in seen and seen & {"criu", "ld-linux-x86-64"}
    wait_for(look, 30, lambda: f"the pager and criu: {seen}", every=0)
    other.end()
    moving.process.kill()
    moving.process.communicate()
    b.host.wait_for(lambda: b.snapshots() == {} and b.tmpfs_used() < MIB, 15, "all memory to be given back")
