# SPDX-License-Identifier: Apache-2.0
"""CRIU of 4.1 at one end and of 4.2 at the other: they count pages in different fields, of images and of the page server."""

import os

import pytest

import bed as testbed
from bed import SHARED, fetched, workload
from godwit import MIB, WORKDIR, Counter, check_memory, hook
from live import SLOW, Churn
from live import Dirty

OTHER = fetched("other-criu")

pytestmark = [
    pytest.mark.timeout(120 * SLOW),
    pytest.mark.skipif(not OTHER, reason="scripts/setup has fetched no second CRIU, and GODWIT_OTHER_CRIU names none"),
]

PORT = "9997"


@pytest.fixture(params=["to-other", "from-other"])
def crius(request):
    """The one at the source and the one at the destination."""
    both = [testbed.criu(), OTHER]
    return both if request.param == "to-other" else both[::-1]


@pytest.fixture
def hosts_of(two, crius):
    """Hosts a and b with daemons, as `pair`; and the criu of each."""
    a, b = two
    b.cache("--accept", "--criu", crius[1])
    a.proxy(b, "--page-server", PORT)
    return a, b, *crius


def test_they_differ():
    """Or there would be nothing to see here."""
    versions = [testbed.run_version(path) for path in (testbed.criu(), OTHER)]
    assert sum(version < (4, 2) for version in versions) == 1, versions


def test_dump_and_restore(hosts_of):
    """Memory of every kind, the process checks it."""
    a, b, theirs, ours = hosts_of
    path = f"{SHARED}/memory"
    pid = a.host.spawn([workload("selfcheck"), "48", path])
    a.host.wait_text(path, "ok 0")
    a.dump(pid, "--criu", theirs)
    b.restore("--criu", ours)
    check_memory(b.host, pid, path, 1)


def test_chain(hosts_of):
    a, b, theirs, ours = hosts_of
    dirty = Dirty(a.host, 32, 20)
    for _ in range(2):
        a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--criu", theirs, "--snapshot", "copy", "--leave-running")
    a.dump(dirty.pid, "--criu", theirs, "--snapshot", "end")
    b.restore("--criu", ours, "--snapshot", "end")
    dirty.check(b.host)
    b.forget("copy")


@pytest.mark.parametrize("how", ["lazy", "eager"])
def test_migrate(hosts_of, how):
    """A tree that changes all the while."""
    a, b, theirs, _ = hosts_of
    churn = Churn(a.host, "--threads", 2, "--mib", 32, "--prefork", 1, "--fork-ms", 100, "--exec-ms", 0, slots=2)
    done = a.migrate(churn.pid, b.host.address, "--criu", theirs, *(["--eager"] if how == "eager" else []), timeout=60 * SLOW)
    churn.check_all(b.host)
    churn.runs_on(b.host)
    assert "moved to" in done.out


def test_preflight_tells(hosts_of):
    """A newer criu at the source is a warning, not a refusal."""
    a, b, theirs, ours = hosts_of
    told = a.run("check", b.host.address, "--insecure", "--criu", theirs).out
    newer = testbed.run_version(theirs) > testbed.run_version(ours)
    assert ("an older criu may not know" in told) == newer, told


def test_there_and_back(hosts_of):
    """What one has written by itself is imported, moved to another directory, and restored by the other itself."""
    a, b, theirs, ours = hosts_of
    dirty = Dirty(b.host, 16)
    b.host.mkdir("/tmp/images")
    run_criu(b, theirs, "dump", "-t", dirty.pid, "-D", "/tmp/images", "-W", "/tmp", "-o", "/tmp/dump.log")
    b.run("import", "/tmp/images", "--snapshot", "s0")
    b.run("export", "s0", "/tmp/exported")
    b.forget("s0")
    run_criu(b, ours, "restore", "-d", "-D", "/tmp/exported", "-W", "/tmp", "-o", "/tmp/restore.log")
    dirty.check(b.host)


def test_page_server(hosts_of):
    """criu dump --page-server, of both forms of its header."""
    a, b, theirs, ours = hosts_of
    path = f"{SHARED}/memory"
    pid = a.host.spawn([workload("selfcheck"), "48", path])
    a.host.wait_text(path, "ok 0")
    a.host.mkdir("/tmp/images")
    run_criu(a, theirs, "dump", "-t", pid, "-D", "/tmp/images", "-o", "/tmp/dump.log", "--page-server", "--address",
             "127.0.0.1", "--port", PORT, "--action-script", hook(), env={"GODWIT_HOOK_WORKDIR": WORKDIR})
    a.host.wait_dead(pid)
    b.restore("--criu", ours)
    check_memory(b.host, pid, path, 1)


def test_stream(hosts_of):
    """Both by themselves, with no more of godwit than its sockets."""
    a, b, theirs, ours = hosts_of
    dirty = Dirty(a.host, 16)
    run_criu(a, theirs, "dump", "--stream", "-t", dirty.pid, "-D", WORKDIR, "-o", "/tmp/dump.log")
    a.host.wait_dead(dirty.pid)
    run_criu(b, ours, "restore", "--stream", "-d", "-D", WORKDIR, "-o", "/tmp/restore.log")
    dirty.check(b.host)
    b.forget(next(iter(b.snapshots())))


def test_of_each_on_one_host(hosts_of):
    """Copies of a process by both, one based on the other, restored by both."""
    a, b, theirs, ours = hosts_of
    counter, dirty = Counter(a.host), Dirty(a.host, 16, 5)
    a.pre_dump(dirty.pid)
    a.dump(dirty.pid, "--criu", ours, "--snapshot", "one", "--leave-running")
    told = a.dump(dirty.pid, "--criu", theirs, "--snapshot", "two", "--json").json
    assert told["parent"] == "one" and told["bytes"] < 16 * MIB
    b.forget("one")
    b.restore("--criu", ours, "--snapshot", "two")
    dirty.check(b.host)
    counter.runs_on(a.host)


def run_criu(side, criu, *argv, env=None):
    """Without hardware breakpoints: 4.1 waits for one for ever where there are none (src/criu/process.c)."""
    done = side.host.run([criu, *argv], env={**os.environ, "CRIU_FAULT": "130", **(env or {})})
    assert done.returncode == 0, f"{criu} {argv}: {done.returncode}\n{done.stderr}\n{side.logs()}"
