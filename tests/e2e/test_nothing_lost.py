# SPDX-License-Identifier: Apache-2.0
"""What CRIU's own stream loses, and what is easily lost: all of it arrives through godwit dump and restore."""

import re
import signal

import pytest

from bed import SHARED, SLOW, wait_for, workload
from godwit import MIB, check_memory

pytestmark = pytest.mark.timeout(120 * SLOW)

# No named sets: those that a newer criu's nftables has restored an older system's nft cannot show.
RULES = """
table inet shop {
  chain in {
    type filter hook input priority 0; policy accept;
    ip saddr { 10.1.0.0/16, 10.2.0.1 } tcp dport { 80, 443 } accept
    tcp dport 23 reject with tcp reset
    iifname "lo" tcp dport 7000 accept
  }
}
table ip nat {
  chain out {
    type nat hook postrouting priority 100;
    oifname "gone" masquerade
  }
}
"""

NAMESPACE = """
set -e
ip link set lo up
ip address add 10.99.0.1/32 dev lo
ip route add 10.98.0.0/16 via 10.99.0.1
nft -f "$1"
"$2" 10.99.0.1 7000 "$4.server" &
while ! [ -e "$4.server" ]; do :; done
"$3" 10.99.0.1 7000 "$4" &
wait
"""


def echoed(host, path):
    words = host.wait_text(path, "ok").split()
    return int(words[1])


def goes_on(host, path, more=100):
    before = echoed(host, path)
    wait_for(lambda: echoed(host, path) > before + more, 20, f"{path} to go on")


def test_net_namespace_with_nftables_and_a_connection(pair):
    """The rules, routes and addresses of a net namespace and an established connection in it."""
    a, b, path = pair.a.host, pair.b.host, f"{SHARED}/client"
    a.write(f"{SHARED}/rules", RULES)
    pid = a.spawn(["unshare", "-n", "sh", "-c", NAMESPACE, "-", f"{SHARED}/rules", workload("tcpecho"), workload("tcpclient"), path])

    def inside(host, *argv):
        out = host.run(["nsenter", "-t", pid, "-n", *argv], check=True).stdout
        return re.sub(r"table inet CRIU-\d+ \{.*?^\}\n", "", out, flags=re.S | re.M)

    echoed(a, path)
    looks = [["nft", "list", "ruleset"], ["ip", "route"], ["ip", "-o", "address"], ["ss", "-Htn", "state", "established"]]
    before = [inside(a, *argv) for argv in looks[:3]]
    assert "10.1.0.0/16" in before[0] and "masquerade" in before[0] and "10.98.0.0/16" in before[1] and "10.99.0.1" in before[2]
    pair.move(pid, "--tcp-established", "--network-lock", "nftables")
    assert [re.sub(r"valid_lft.*", "", inside(b, *argv)) for argv in looks[:3]] == [re.sub(r"valid_lft.*", "", t) for t in before]
    assert inside(b, *looks[3]).count("10.99.0.1:7000") == 2
    goes_on(b, path)
    assert "CRIU" not in b.run(["nsenter", "-t", pid, "-n", "nft", "list", "ruleset"]).stdout, "no lock is left behind"


@pytest.mark.parametrize("cidr", ["10.77.0.100/24", "fd77::100/64"], ids=["ipv4", "ipv6"])
def test_established_connection_across_hosts(pair, cidr):
    """A server moves with its address; its client, on a third host, sees a pause and nothing else."""
    a, b = pair.a.host, pair.b.host
    c = pair.bed.host("c", cidr="10.77.0.3/24", cidr6="fd77::3/64")
    address = cidr.split("/")[0]
    a.add_address(cidr)
    pid = a.spawn([workload("tcpecho"), address, "7000", f"{SHARED}/server"])
    a.wait_text(f"{SHARED}/server", "listening")
    c.spawn([workload("tcpclient"), address, "7000", "/tmp/client"])
    echoed(c, "/tmp/client")
    pair.a.dump(pid, "--", "--tcp-established", "--network-lock", "nftables")
    b.add_address(cidr)
    # Only now do packets go to b: where nobody has the connection yet they would be answered with a reset.
    pair.b.restore("--", "--tcp-established", "--network-lock", "nftables")
    a.del_address(cidr)
    pair.bed.forget_neighbours()
    goes_on(c, "/tmp/client")
    assert b.pid_alive(pid) and not a.pid_alive(pid)


def test_connection_needs_the_option(pair):
    """Without --tcp-established criu refuses, godwit says why, and the connection goes on."""
    a, b = pair.a.host, pair.b.host
    b.spawn([workload("tcpecho"), b.address, "7000", "/tmp/server"])
    b.wait_text("/tmp/server", "listening")
    pid = a.spawn([workload("tcpclient"), b.address, "7000", "/tmp/client"])
    echoed(a, "/tmp/client")
    done = pair.a.dump(pid, code=3)
    assert "Connected TCP socket" in done.err
    pair.a.take_failure()
    goes_on(a, "/tmp/client")


def test_private_huge_pages(huge_pages, pair):
    a, b, path = pair.a.host, pair.b.host, f"{SHARED}/huge"
    pid = a.spawn([workload("hugemap"), path, "16"])
    a.wait_text(path, "ok 0")
    check_memory(a, pid, path, 1)
    assert re.search(r"Private_Hugetlb: +16384 kB", a.read(f"/proc/{pid}/smaps_rollup"))
    pair.move(pid)
    check_memory(b, pid, path, 2)
    assert re.search(r"Private_Hugetlb: +16384 kB", b.read(f"/proc/{pid}/smaps_rollup"))


@pytest.mark.parametrize("megabytes, length", [(96, 240), (1, 12)])
def test_ghost_files(pair, megabytes, length):
    """Deleted files that are still open, large and with a name as long as CRIU can restore; and their offsets."""
    a, b, path = pair.a.host, pair.b.host, f"{SHARED}/ghost"
    pid = a.spawn([workload("ghost"), path, megabytes, length])
    a.wait_text(path, "ok 0")
    check_memory(a, pid, path, 1)
    pair.a.dump(pid, "--snapshot", "ghost", "--", "--ghost-limit", "200M")
    assert pair.b.snapshots()["ghost"]["bytes"] > megabytes * MIB
    pair.b.restore()
    check_memory(b, pid, path, 2)


FAMILY = 'for i in $(seq "$1"); do sh -c \'sleep 1000; :\' & done; sleep 1000; :'


def test_many_tasks(pair):
    """61 tasks, each with an address space of its own."""
    a, b = pair.a.host, pair.b.host
    pid = a.spawn(["sh", "-c", FAMILY, "-", "30"])

    def family(host):
        own = {*pair.proxy.pids, *pair.cache.pids}
        tasks = {}
        for p in host.pids():
            if p not in own and (stat := host.read(f"/proc/{p}/stat", "")):
                tasks[p] = (host.read(f"/proc/{p}/comm"), stat.rsplit(")", 1)[1].split()[1])
        return tasks

    wait_for(lambda: list(t[0] for t in family(a).values()).count("sleep\n") == 31, 20, "the family to be complete")
    before = family(a)
    pair.move(pid)
    assert family(b) == before
    wait_for(lambda: family(a) == {}, 10, "all of it to be gone")


LOCKER = """
import fcntl, os, signal, sys
f = open(sys.argv[1], "w")
fcntl.flock(f, fcntl.LOCK_EX)
g = open(sys.argv[1] + ".posix", "w")
fcntl.lockf(g, fcntl.LOCK_EX, 100, 50)
open(sys.argv[1] + ".ready", "w").write("ready")
signal.pause()
"""

TRY_LOCKS = """
import fcntl, sys
held = []
for name, lock in (("", lambda f: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)),
                   (".posix", lambda f: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 60)),
                   (".posix", lambda f: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10))):
    try:
        lock(open(sys.argv[1] + name, "w"))
        held.append("free")
    except OSError:
        held.append("held")
print(*held)
"""


def test_file_locks(pair):
    a, b, path = pair.a.host, pair.b.host, f"{SHARED}/lock"
    pid = a.spawn(["/usr/bin/python3", "-S", "-c", LOCKER, path])
    a.wait_text(path + ".ready", "ready")

    def locks(host):
        return host.run(["/usr/bin/python3", "-S", "-c", TRY_LOCKS, path], check=True).stdout.strip()

    assert locks(a) == "held held free"
    pair.move(pid, "--file-locks")
    assert locks(b) == "held held free"
    b.kill(pid, signal.SIGTERM)
    b.wait_dead(pid)
    assert locks(b) == "free free free"
