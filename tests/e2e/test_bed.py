# SPDX-License-Identifier: Apache-2.0
"""The test bed itself: what it promises, with stock CRIU and no godwit."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bed import BedError, SHARED, copy_tree, read_counter, wait_for

HERE = Path(__file__).parent

SERVE = """
import socket, sys
s = socket.create_server((sys.argv[1], 7), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
print("listening", flush=True)
c, peer = s.accept()
c.sendall(c.recv(100) + b" " + socket.gethostname().encode())
"""

ASK = """
import socket, sys
s = socket.create_connection((sys.argv[1], 7), 3); s.sendall(socket.gethostname().encode()); print(s.recv(100).decode())
"""


def python(*argv):
    return [sys.executable, "-S", "-c", *argv]


def talk(server, client, address):
    with server.popen(python(SERVE, address), stdout=subprocess.PIPE) as p:
        assert p.stdout.readline() == "listening\n"
        answer = client.run(python(ASK, address))
        p.kill()
    return answer


def hears(server, client, address):
    """What the client is told in the end: what was sent just before a link was up may be lost."""
    for _ in range(3):
        answer = talk(server, client, address)
        if answer.returncode == 0:
            break
    return answer.stdout


def run_criu(host, argv):
    done = host.run([*argv, "-v4", "-o", "/tmp/criu.log"])
    errors = [line for line in host.read("/tmp/criu.log", "").splitlines() if "Error" in line]
    assert done.returncode == 0, "\n".join([f"criu {argv[1]}: {done.returncode}", *errors])


def dump(criu, host, pid, images, *more):
    run_criu(host, [criu, "dump", "-t", pid, "-D", images, *more])


def restore(criu, host, images, *more):
    run_criu(host, [criu, "restore", "-d", "-D", images, *more])


def there_and_back(criu, hosts, pid, *more):
    """From a to a, then to b; returns when the tasks run on b."""
    a, b = hosts
    images = a.mkdir("one")
    dump(criu, a, pid, images, *more)
    a.wait_dead(pid)
    restore(criu, a, images, *more)
    assert a.pid_alive(pid)
    images = a.mkdir("two")
    dump(criu, a, pid, images, *more)
    copy_tree(a, images, b, images)
    restore(criu, b, images, *more)
    assert b.pid_alive(pid) and not a.pid_alive(pid)


def round_of(host, path):
    words = host.read(path).split()
    assert words[0] == "round", " ".join(words)
    return int(words[1])


def test_hosts_reach_each_other(hosts):
    a, b = hosts
    assert hears(a, b, a.address) == "b a\n"
    assert hears(b, a, b.address6) == "a b\n"


def test_cable_and_cut(bed, hosts):
    a, b = hosts
    bed.link_down("a")
    assert talk(a, b, a.address).returncode != 0
    bed.link_up("a")
    assert hears(a, b, a.address) == "b a\n"
    bed.cut(a, b)
    assert talk(a, b, a.address).returncode != 0
    c = bed.host("c", cidr="10.77.0.3/24")
    assert hears(a, c, a.address) == "c a\n"
    bed.heal()
    assert hears(a, b, a.address6) == "b a\n"


def test_isolation(bed, hosts):
    a, b = hosts
    a.write("/tmp/private", "a")
    assert b.read("/tmp/private", "none") == "none"
    assert not Path("/tmp/private").exists()
    a.write(f"{SHARED}/common", "a")
    assert b.read(f"{SHARED}/common") == "a" and (bed.shared / "common").read_text() == "a"
    assert set(a.run(["ls", "/sys/class/net", "/proc"]).stdout.split()) >= {"1"}
    assert "p-a" not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout
    assert a.run(["hostname"]).stdout == "a\n"


def test_run(hosts):
    a, _ = hosts
    assert a.run(["cat"], input="in").stdout == "in"
    assert a.run(["sh", "-c", "exit 3"]).returncode == 3
    assert a.run(["sh", "-c", "kill -9 $$"]).returncode == -9
    assert a.run(["sh", "-c", "echo /proc/self/fd/*"]).stdout.count("/fd/") <= 4
    with pytest.raises(FileNotFoundError):
        a.run(["no-such-program"])
    with pytest.raises(subprocess.TimeoutExpired):
        a.run(["sleep", "100"], timeout=0.2)
    with pytest.raises(BedError, match="status 1"):
        a.run(["false"], check=True)
    with a.popen(["sleep", "100"]) as p:
        assert a.pid_alive(p.host_pid) and a.read(f"/proc/{p.host_pid}/comm") == "sleep\n"
        p.terminate()
        assert p.wait(5) == -signal.SIGTERM
    r, w = os.pipe()
    with a.popen(python(f"import os; os.write({w}, b'hello\\n')"), pass_fds=[w]):
        os.close(w)
        assert os.read(r, 100) == b"hello\n"
    os.close(r)
    wait_for(lambda: not a.pids(), 5, "no process left")


def test_spawn(bed, hosts):
    a, b = hosts
    pid = a.spawn(["sh", "-c", "echo from $0; sleep 100; :", "it"], stdout="/tmp/out")
    a.wait_text("/tmp/out", "from it\n")
    stat = a.read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()
    assert stat[1] == "1" and stat[3] == str(pid), "a session leader under init"
    assert set(a.fds(pid)) == {0, 1, 2} and a.fds(pid)[1] == "/tmp/out"
    assert a.rss(pid) > 0 and a.peak_rss(pid) >= a.rss(pid)
    a.pause_process(pid)
    assert a.state(pid) == "T" and a.pid_alive(pid)
    a.resume_process(pid)
    a.kill(pid)
    a.wait_dead(pid)
    with pytest.raises(ProcessLookupError):
        a.kill(pid)
    with pytest.raises(BedError, match="No such file"):
        a.spawn(["no-such-program"])
    other = b.spawn([bed.workload("counter"), "/tmp/x"])
    assert other != pid


def test_counter_moves(bed, hosts, criu):
    a, b = hosts
    path = f"{SHARED}/count"
    pid = a.spawn([bed.workload("counter"), path])
    a.wait_for(lambda: a.path(path).exists() and read_counter(a, path).counter > 20)
    there_and_back(criu, hosts, pid)
    before = read_counter(b, path)
    b.wait_for(lambda: read_counter(b, path).counter > before.counter + 20)
    after = read_counter(b, path)
    assert after.state == "running" and after.pid == pid and after.longest_gap < 10e9


def test_tree_moves(bed, hosts, criu):
    a, b = hosts
    path = f"{SHARED}/tree"
    pid = a.spawn([bed.workload("tree"), path])
    a.wait_text(path, "round")
    a.wait_for(lambda: round_of(a, path) > 220)
    there_and_back(criu, hosts, pid)
    before = round_of(b, path)
    b.wait_for(lambda: round_of(b, path) > before + 220, 20)
    assert len(b.pids()) == 5


def check(host, pid, path, n):
    host.kill(pid, signal.SIGUSR1)
    text = host.wait_for(lambda: (t := host.read(path)).split()[1] == str(n) and t, 20, f"check {n}")
    assert text == f"ok {n}\n"


@pytest.mark.parametrize("dirty", ["0", "50"])
def test_selfcheck_moves(bed, hosts, criu, dirty):
    a, b = hosts
    path = f"{SHARED}/memory"
    pid = a.spawn([bed.workload("selfcheck"), "16", path, dirty])
    a.wait_text(path, "ok 0")
    check(a, pid, path, 1)
    there_and_back(criu, hosts, pid)
    check(b, pid, path, 2)


def test_selfcheck_sees_a_wrong_bit(bed, hosts):
    a, _ = hosts
    pid = a.spawn([bed.workload("selfcheck"), "16", "/tmp/memory"])
    a.wait_text("/tmp/memory", "ok 0")
    largest = max((int(e, 16) - int(s, 16), int(s, 16)) for s, e in
                  re.findall(r"^(\w+)-(\w+) rw-p 00000000 00:00 0 $", a.read(f"/proc/{pid}/maps"), re.M))
    with open(a.path(f"/proc/{pid}/mem"), "r+b", buffering=0) as mem:
        mem.seek(largest[1] + 4096 * 5 + 77)
        byte = mem.read(1)[0]
        mem.seek(-1, os.SEEK_CUR)
        mem.write(bytes([byte ^ 1]))
    a.kill(pid, signal.SIGUSR1)
    # The mapping may have been merged with pages just below it, so the number of the page varies.
    assert re.search(r": 1 of \d+ pages, first [0-5] ", a.wait_text("/tmp/memory", "bad 1"))


def test_ghost_moves(bed, hosts, criu):
    a, b = hosts
    pid = a.spawn([bed.workload("ghost"), f"{SHARED}/ghost", "4"])
    a.wait_text(f"{SHARED}/ghost", "ok 0")
    check(a, pid, f"{SHARED}/ghost", 1)
    there_and_back(criu, hosts, pid, "--ghost-limit", "16M")
    check(b, pid, f"{SHARED}/ghost", 2)


def test_hugemap_moves(huge_pages, bed, hosts, criu):
    a, b = hosts
    path = f"{SHARED}/huge"
    pid = a.spawn([bed.workload("hugemap"), path])
    if a.wait_for(lambda: a.read(path, "")).startswith("skip"):
        pytest.skip(a.read(path).strip())
    check(a, pid, path, 1)
    there_and_back(criu, hosts, pid)
    check(b, pid, path, 2)


def test_tcp_stays_connected(bed, hosts, criu):
    """The client is frozen and thawed where it is; its connection lives on."""
    a, b = hosts
    b.spawn([bed.workload("tcpecho"), "::", "7000", "/tmp/server"])
    b.wait_text("/tmp/server", "listening")
    pid = a.spawn([bed.workload("tcpclient"), b.address6, "7000", "/tmp/client"])
    a.wait_text("/tmp/client", "ok")
    images = a.mkdir("images")
    dump(criu, a, pid, images, "--tcp-established")
    a.wait_dead(pid)
    restore(criu, a, images, "--tcp-established")
    before = int(a.read("/tmp/client").split()[1])
    a.wait_for(lambda: int(a.wait_text("/tmp/client", "ok").split()[1]) > before + 100)


@pytest.mark.parametrize("cidr", ["10.77.0.100/24", "fd77::100/64"])
def test_tcp_moves(bed, hosts, criu, cidr):
    """A server moves with its address and its connection; the client, on a third host, sees only a pause."""
    a, b = hosts
    c = bed.host("c", cidr="10.77.0.3/24", cidr6="fd77::3/64")
    address = cidr.split("/")[0]
    a.add_address(cidr)
    pid = a.spawn([bed.workload("tcpecho"), address, "7000", f"{SHARED}/server"])
    a.wait_text(f"{SHARED}/server", "listening")
    c.spawn([bed.workload("tcpclient"), address, "7000", "/tmp/client"])
    c.wait_text("/tmp/client", "ok")
    images = a.mkdir("images")
    dump(criu, a, pid, images, "--tcp-established")
    copy_tree(a, images, b, images)
    b.add_address(cidr)
    restore(criu, b, images, "--tcp-established")
    a.del_address(cidr)
    bed.forget_neighbours()
    before = int(c.wait_text("/tmp/client", "ok").split()[1])
    c.wait_for(lambda: int(c.wait_text("/tmp/client", "ok").split()[1]) > before + 100, 20)


def test_power_failure(bed, hosts):
    a, b = hosts
    a.spawn(["sleep", "1000"])
    a.close()
    with pytest.raises(BedError, match="has ended|has it ended"):
        a.run(["true"])
    again = bed.host("a", cidr="10.77.0.1/24", cidr6="fd77::1/64")
    assert talk(again, b, again.address).stdout == "b a\n"
    assert talk(again, b, again.address6).stdout == "b a\n"


def seconds_for(sender, receiver, size):
    code = "import socket, sys; c, _ = s.accept(); c.sendall(bytes(int(sys.argv[2])))"
    with sender.popen(python(SERVE.split("c, peer")[0] + code, sender.address, str(size)), stdout=subprocess.PIPE) as p:
        p.stdout.readline()
        start = time.monotonic()
        receiver.run(python("import socket, sys\nwith socket.create_connection((sys.argv[1], 7)) as s:\n"
                            "  while s.recv(65536): pass", sender.address), check=True)
        return time.monotonic() - start


def test_slow(bed, hosts):
    a, b = hosts
    bed.slow(a, "16mbit")
    slowed = seconds_for(a, b, 2_000_000)
    assert slowed > 0.7  # a second's worth; less what the bucket lets through at once
    bed.slow(a)
    assert min(seconds_for(a, b, 2_000_000) for _ in range(3)) < slowed / 2


def machine_state():
    """What a bed could leave behind on the machine, besides processes."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "links": re.findall(r"^\d+: (\S+)", links, re.M),
        "files": [p for d in ("/tmp", "/run", "/dev/shm") for p in os.listdir(d) if "leftover" in p or "shared" == p],
    }


def commands_with(tag):
    found = []
    for p in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [p.read_bytes()] if tag.encode() in p.read_bytes() else []
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


LEAVER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored
sys.path.insert(0, sys.argv[1])
from bed import Bed
tag = sys.argv[2]
with Bed() as bed:
    a, b = bed.host(tag + "a", cidr="10.77.0.1/24"), bed.host(tag + "b", cidr="10.77.0.2/24")
    a.spawn(["sh", "-c", "sleep 1000; :", tag])
    p = b.popen(["sh", "-c", "trap : TERM HUP INT; sleep 1000; sleep 1000; :", tag])
    a.write("/tmp/leftover", "x")
    print(bed._switch.init_pid, bed._switch._outer.pid, flush=True)
    if sys.argv[3] != "None":
        time.sleep(1000)
"""


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_nothing_is_left(sig):
    tag = f"t{os.getpid()}"
    before = machine_state()
    argv = [sys.executable, "-c", LEAVER, HERE, tag, str(sig)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as p:
        try:
            switch = p.stdout.readline().split()
            assert len(switch) == 2
            if sig:
                assert len(commands_with(tag)) >= 8
                p.send_signal(sig)
            p.wait(30)
        finally:
            p.kill()
    wait_for(lambda: not commands_with(tag), 5, f"the end of {commands_with(tag)}")
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in switch), 5, "the switch's end")
    assert machine_state() == before
