# SPDX-License-Identifier: Apache-2.0
"""A daemon is two processes: what parses has given up rights, and what has them parses nothing (docs/security.md)."""

import ctypes
import os
import platform
import signal
import socket
import struct
import sys

import pytest

from bed import SHARED, Bed, wait_for
from failures import comm
from godwit import HELPER, MIB, STARTER, Counter, half_of, make_hosts
from live import Churn

SYSTEM = 1
WORKDIR = "/run/godwit"


@pytest.fixture(scope="module")
def bed():
    with Bed() as made:
        yield made


@pytest.fixture
def two(bed):
    return make_hosts(bed, "a", "b")


def status(host, pid):
    lines = host.read(f"/proc/{pid}/status").splitlines()
    return {name: value.split() for name, value in (line.split(":", 1) for line in lines)}


# ---- what it is ----

@pytest.mark.parametrize("background", [False, True])
def test_the_parser_has_no_rights(two, background):
    """No capability and no way to any, a filter, and a view of nothing but the store."""
    _, b = two
    cache = b.cache("--accept", background=background)
    host, pid = b.host, cache.pid
    about = status(host, pid)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(about[name][0], 16) == 0, (name, about[name])
    assert about["NoNewPrivs"] == ["1"] and about["Seccomp"] == ["2"] and about["Threads"] == ["1"]
    assert os.listdir(host.path(f"/proc/{pid}/root")) == [] and os.listdir(host.path(f"/proc/{pid}/cwd")) == []
    mounts = [line.split()[4] for line in host.read(f"/proc/{pid}/mountinfo").splitlines()]
    assert mounts == ["/"]
    # A directory that was opened before leads out of any root.
    inside = os.stat(host.path(f"/proc/{pid}/root"))
    for fd in host.fds(pid):
        path = host.path(f"/proc/{pid}/fd/{fd}")
        if path.is_dir():
            assert os.path.samestat(os.stat(path), inside)
            assert os.path.samestat(os.stat(path / ".."), inside) or not (path / ".." / "etc").exists()
    starter = half_of(host, pid)
    assert int(status(host, starter)["CapEff"][0], 16) != 0
    # Nothing of the network, and of local clients, is open in the one that has rights.
    kinds = [what for what in host.fds(starter).values() if what.startswith("socket:")]
    assert len(kinds) == 2, host.fds(starter)
    cache.stop()
    b.wait_gone("cache.sock.lock", "image-cache.log")


DAC_OVERRIDE, DAC_READ_SEARCH, KILL, NET_ADMIN, SYS_PTRACE, SYS_ADMIN = 1, 2, 5, 12, 19, 21


def has_only(about, *capabilities):
    bits = sum(1 << c for c in capabilities)
    for name, want in {"CapInh": 0, "CapAmb": 0, "CapPrm": bits, "CapEff": bits, "CapBnd": bits}.items():
        assert int(about[name][0], 16) == want, (name, about[name])


@pytest.mark.parametrize("background", [False, True])
def test_the_proxy_may_look_and_no_more(two, background):
    """What looks into processes has what that takes, and a filter; what stops them has no connection to anybody."""
    a, b = two
    b.cache()
    proxy = a.proxy(b, background=background)
    parser, helper = proxy.pids
    about = status(a.host, parser)
    has_only(about, DAC_READ_SEARCH, SYS_PTRACE, SYS_ADMIN)
    assert about["NoNewPrivs"] == ["1"] and about["Seccomp"] == ["2"] and about["Threads"] == ["1"]
    about = status(a.host, helper)
    has_only(about, DAC_OVERRIDE, KILL, NET_ADMIN, SYS_PTRACE, SYS_ADMIN)
    assert about["NoNewPrivs"] == ["1"] and about["Seccomp"] == ["0"] and about["Threads"] == ["1"]
    kinds = [what for what in a.host.fds(helper).values() if what.startswith("socket:")]
    assert len(kinds) == 1, a.host.fds(helper)
    assert not any(what == WORKDIR for what in a.host.fds(parser).values())
    proxy.stop()
    a.wait_gone("proxy.sock.lock", "image-proxy.log")


def test_what_it_starts_has_all_rights(two):
    """A restored process has what it had: nothing is inherited from a filter, and no_new_privs is not set."""
    a, b = two
    b.cache("--accept")
    counter = Counter(a.host)
    before = status(a.host, counter.pid)
    a.migrate(counter.pid, "10.77.0.2")
    counter.runs_on(b.host)
    after = status(b.host, counter.pid)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"):
        assert before[name] == after[name], name


# ---- what it may not ----

class Registers(ctypes.Structure):
    """user_regs_struct of x86-64."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in (
        "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs "
        "gs").split()]


ATTACH, DETACH, GETREGS, SETREGS = 16, 17, 12, 13


def ptrace(request, pid, data=None):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def machine_pid(host, pid):
    """What a process of the host is called outside."""
    for found in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{found}/status", encoding="utf-8") as f:
                names = next(line.split()[1:] for line in f if line.startswith("NSpid:"))
            if names[-1] == str(pid) and os.stat(f"/proc/{found}/ns/pid").st_ino == os.stat(
                    host.path("/proc/1/ns/pid")).st_ino:
                return int(found)
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            pass
    raise AssertionError(f"no process {pid} on {host.name}")


def make_it_call(host, pid, number, *arguments):
    """Has a process that waits in the kernel make this system call when it goes on."""
    pid = machine_pid(host, pid)
    ptrace(ATTACH, pid)
    os.waitpid(pid, 0x40000000)  # __WALL
    registers = Registers()
    ptrace(GETREGS, pid, ctypes.byref(registers))
    registers.rip -= 2  # it stands behind the instruction
    registers.rax, registers.orig_rax = number, (1 << 64) - 1
    for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), (*arguments, 0, 0, 0, 0, 0, 0)):
        setattr(registers, name, value)
    ptrace(SETREGS, pid, ctypes.byref(registers))
    ptrace(DETACH, pid)


FORBIDDEN = {
    "execve": (59, 0, 0, 0),
    "fork": (57,),
    "clone": (56, signal.SIGCHLD),
    "ptrace": (101, ATTACH, 1),
    "mount": (165, 0, 0, 0, 0),
    "unshare": (272, 0x20000),
    "chroot": (161, 0),
    "setuid": (105, 0),
    "kill": (62, 1, signal.SIGKILL),
    "pidfd_send_signal": (424, 0, signal.SIGKILL, 0, 0),
    "process_vm_writev": (311, 1, 0, 0, 0, 0),
    "userfaultfd": (323, 0),
    "bpf": (321, 0, 0, 0),
    "io_uring_setup": (425, 1, 0),
    "connect": (42, 0, 0, 0),
    "socket AF_INET": (41, socket.AF_INET, socket.SOCK_STREAM, 0),
    "socket AF_UNIX": (41, socket.AF_UNIX, socket.SOCK_STREAM, 0),
    "mmap executable": (9, 0, 4096, 5, 0x22, (1 << 64) - 1, 0),
    "mprotect executable": (10, 0, 4096, 5),
    "tgkill of another": (234, 1, 1, signal.SIGKILL),
    # A descriptor's owner is sent whatever signal was chosen, whoever that is.
    "fcntl F_SETOWN": (72, 0, 8, 1),
    "fcntl F_SETOWN_EX": (72, 0, 15, 0),
    "fcntl F_SETSIG": (72, 0, 10, signal.SIGKILL),
    "fcntl F_SETFL O_ASYNC": (72, 0, 4, 0o20000),
    # What listens can connect.
    "sendto somebody": (44, 0, 0, 0, 0, 0x1000, 16),
    "sendto MSG_FASTOPEN": (44, 0, 0, 0, 0x20000000, 0, 0),
    "sendmsg MSG_FASTOPEN": (46, 0, 0, 0x20000000),
    "setns": (308, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "open_by_handle_at": (304, 0, 0, 0),
    "finit_module": (313, 0, 0, 0),
    "kexec_file_load": (320, 0, 0, 0, 0, 0),
    "pidfd_getfd": (438, 0, 0, 0),
    "process_madvise": (440, 0, 0, 0, 0, 0),
}

CWD = (1 << 64) - 100

FORBIDDEN_TO_THE_PROXY = {
    **FORBIDDEN,
    "openat to write": (257, CWD, 0, os.O_WRONLY),
    "openat to read and write": (257, CWD, 0, os.O_RDWR),
    "openat to create": (257, CWD, 0, os.O_CREAT),
    "openat to truncate": (257, CWD, 0, os.O_TRUNC),
    "openat2": (437, CWD, 0, 0, 24),
    "mkdirat": (258, CWD, 0, 0),
    "unlinkat": (263, CWD, 0, 0),
    "renameat2": (316, CWD, 0, CWD, 0, 0),
    "linkat": (265, CWD, 0, CWD, 0, 0),
    "ioctl UFFDIO_COPY": (16, 0, 0xc028aa03, 0),
    "ioctl UFFDIO_ZEROPAGE": (16, 0, 0xc020aa04, 0),
    "ioctl SIOCGSKNS": (16, 0, 0x894c, 0),
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
@pytest.mark.parametrize("name", FORBIDDEN)
def test_forbidden_calls_kill_it(two, name):
    """The kernel kills it on the spot, its other half ends, and the next image-cache starts."""
    _, b = two
    cache = b.cache("--accept")
    starter = half_of(b.host, cache.pid)
    make_it_call(b.host, cache.pid, *FORBIDDEN[name])
    cache.end(-signal.SIGSYS)
    b.host.wait_dead(starter)
    assert "it was killed, by somebody or for a system call that it may not make" in cache.log()
    again = b.cache("--accept")
    assert again.alive and len(again.pids) == 2
    again.stop()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
@pytest.mark.parametrize("name", FORBIDDEN_TO_THE_PROXY)
def test_forbidden_calls_kill_the_proxy(two, name):
    a, b = two
    b.cache()
    proxy = a.proxy(b)
    helper = half_of(a.host, proxy.pid)
    make_it_call(a.host, proxy.pid, *FORBIDDEN_TO_THE_PROXY[name])
    proxy.end(-signal.SIGSYS)
    a.host.wait_dead(helper)
    assert "image-proxy: the process that serves others has gone without a word" in proxy.log()
    a.proxy(b).stop()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
def test_allowed_calls_do_not(two):
    """The test's own way of making it call something is no harm: it can fail."""
    _, b = two
    cache = b.cache("--accept")
    make_it_call(b.host, cache.pid, 39)  # getpid
    assert b.status()[0]["daemon"] == "image-cache" and cache.alive
    proxy = two[0].proxy(b)
    make_it_call(two[0].host, proxy.pid, 72, 0, 1)  # fcntl F_GETFD: 0, as if nothing had happened meanwhile
    assert two[0].status()[0]["daemon"] == "image-proxy" and proxy.alive


def test_link_local_stranger(two):
    """Its address has an interface; finding the name of that takes a socket, which a parser may not make."""
    a, b = two
    devices = []
    for number, host in enumerate((a.host, b.host), 1):
        lines = host.run(["cat", "/proc/net/if_inet6"], check=True).stdout.splitlines()
        devices.append(next(line.split()[5] for line in lines if line.startswith("fd77")))
        host.run(["ip", "-6", "addr", "add", f"fe80::77:{number}/64", "dev", devices[-1], "nodad"], check=True)
    cache = b.cache(address="::")
    knock = "import socket, sys; socket.create_connection((sys.argv[1], 9996), 10).close()"
    a.host.run([sys.executable, "-c", knock, f"fe80::77:2%{devices[0]}"], check=True)
    cache.wait_log("fe80::77:1")
    assert b.status()[0]["daemon"] == "image-cache" and cache.alive


# ---- two that live and die together ----

def test_killed_parser_takes_the_starter_along(two):
    _, b = two
    cache = b.cache("--accept")
    starter = half_of(b.host, cache.pid)
    cache.signal(signal.SIGKILL)
    cache.end(-signal.SIGKILL)
    b.host.wait_dead(starter)
    b.cache("--accept").stop()


def test_killed_starter_takes_the_parser_along(two):
    _, b = two
    cache = b.cache("--accept")
    b.host.kill(half_of(b.host, cache.pid))
    cache.end(SYSTEM)
    assert "the process that starts criu has gone (killed): ending, as if killed" in cache.log()
    b.cache("--accept").stop()


def test_signals_are_the_parsers(two):
    """What a terminal or a unit sends to all of them ends it in order, by the parser."""
    _, b = two
    for sig in (signal.SIGINT, signal.SIGTERM):
        cache = b.cache("--accept")
        for pid in reversed(cache.pids):
            b.host.kill(pid, sig)
        cache.end()
        assert "has gone" not in cache.log()
        b.wait_gone("cache.sock.lock", "image-cache.log")


def test_log_is_opened_anew_by_both(two):
    """SIGHUP: a log that was moved away is written no longer, by neither."""
    a, b = two
    cache = b.cache("--accept")
    old, log = b.host.path(f"{WORKDIR}/old.log"), b.host.path(f"{WORKDIR}/image-cache.log")
    log.rename(old)
    cache.signal(signal.SIGHUP)
    wait_for(log.exists, 10, "the new log")
    said = old.read_text()
    counter = Counter(a.host)
    a.migrate(counter.pid, "10.77.0.2")
    assert old.read_text() == said
    assert "criu restore is started" in log.read_text() and "prepared" in log.read_text()


def test_systemd_is_told_of_the_parser(two):
    """READY=1 comes, and the sender is the process that was started."""
    _, b = two
    path = b.host.path("/run/notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        notify.bind(str(path))
        notify.settimeout(10)
        cache = b.cache("--accept", env={**os.environ, "NOTIFY_SOCKET": "/run/notify"})
        text, controls, _, _ = notify.recvmsg(100, socket.CMSG_SPACE(12))
        assert text == b"READY=1"
        assert struct.unpack("3i", controls[0][2])[0] == machine_pid(b.host, cache.pid)
        cache.stop()


def test_names_tell_who_is_who(two):
    a, b = two
    cache = b.cache("--accept")
    assert [comm(b.host, p) for p in cache.pids] == ["godwit", STARTER]
    assert [comm(a.host, p) for p in a.proxy(b).pids] == ["godwit", HELPER]


def test_halves_of_a_proxy_die_together(two):
    a, b = two
    b.cache()
    proxy = a.proxy(b)
    parser, helper = proxy.pids
    a.host.kill(helper)
    proxy.end(SYSTEM)
    assert "the process that stops tasks has gone (killed): ending, as if killed" in proxy.log()
    proxy = a.proxy(b)
    parser, helper = proxy.pids
    a.host.kill(parser)
    proxy.end(-signal.SIGKILL)
    a.host.wait_dead(helper)
    for sig in (signal.SIGINT, signal.SIGTERM):
        proxy = a.proxy(b)
        for pid in reversed(proxy.pids):
            a.host.kill(pid, sig)
        proxy.end()
        a.wait_gone("proxy.sock.lock", "image-proxy.log")


def test_log_of_a_proxy_is_opened_anew(two):
    """SIGHUP: by both halves; what the second writes is told when the first is killed."""
    a, b = two
    b.cache()
    proxy = a.proxy(b)
    old, log = a.host.path(f"{WORKDIR}/old.log"), a.host.path(f"{WORKDIR}/image-proxy.log")
    log.rename(old)
    proxy.signal(signal.SIGHUP)
    wait_for(log.exists, 10, "the new log")
    said = old.read_text()
    counter = Counter(a.host)
    a.dump(counter.pid)
    proxy.signal(signal.SIGKILL)
    proxy.end(-signal.SIGKILL)
    proxy.wait_log("has gone without a word")
    assert old.read_text() == said and "complete" in log.read_text()


@pytest.mark.parametrize("address", ["10.77.0.2", "fd77::2", "there.test", "unix:/run/relay.sock"])
def test_proxy_dials_again(two, address):
    """The link comes back, by whatever name, although who reads it may not make a socket."""
    a, b = two
    on = "unix:/run/relay.sock" if address.startswith("unix:") else {"fd77::2": address}.get(address, "10.77.0.2")
    there = a if address.startswith("unix:") else b
    a.host.path("/etc/hosts").write_text("127.0.0.1 localhost\n10.77.0.2 there.test\n")
    cache = there.cache(address=on)
    proxy = a.proxy(there, address=address)
    for _ in range(2):
        cache.stop()
        a.host.wait_for(lambda: a.link() != "up", 10, "the link to end")
        cache = there.cache(address=on)
        a.wait_linked()
    assert proxy.alive


BUSY = """
import ctypes, mmap, os, sys, time
memory, shared, page = bytearray(os.urandom(1 << 20) * 16), mmap.mmap(-1, 1 << 20), 0
shared.write(os.urandom(1 << 20))
if os.fork() == 0:
    time.sleep(1000)
if sys.argv[2] == "hidden":
    ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE
open(sys.argv[1], "w").write("ready")
while True:
    memory[page << 12] ^= 1
    page = (page + 1) % 4096
    time.sleep(0.0005)
"""


@pytest.mark.parametrize("tracker", ["uffd-wp", "soft-dirty", "compare"])
@pytest.mark.parametrize("who", ["root", "user", "hidden"])
def test_proxy_follows_whoever(two, tracker, who):
    """Also a process of another user, one that nobody but root may look into, with a child, and with shared memory."""
    a, b = two
    b.cache()
    proxy = a.proxy(b)
    ready = f"{SHARED}/{tracker}-{who}"
    a.host.path(ready).write_text("")
    a.host.path(ready).chmod(0o666)
    user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"] if who != "root" else []
    pid = a.host.spawn([*user, sys.executable, "-c", BUSY, ready, who])
    wait_for(lambda: a.host.read(ready) == "ready", 10, "it to begin")
    first = a.pre_dump(pid, "--tracker", tracker)
    if tracker == "soft-dirty" and "no soft-dirty bits" in first.err:
        pytest.skip("this kernel has no soft-dirty bits")
    for done in first, a.pre_dump(pid):  # a dump of another user's takes CAP_SYS_RESOURCE, which not every machine gives
        assert "cannot be followed" not in done.err, done.err
    sent = [int(line.split(", ")[1].split()[0]) for line in proxy.log().splitlines() if " complete, " in line]
    # The memory of the child is that of its parent: with the frames of pages it crosses the link once.
    most = 30 if tracker == "uffd-wp" else 60
    assert 17 * MIB < sent[0] < most * MIB and sent[1] < sent[0], sent


@pytest.mark.parametrize("tracker", ["uffd-wp", "soft-dirty"])
def test_proxy_follows_what_has_a_filter(two, tracker):
    """The filter of the process is suspended while a userfaultfd is made in it; the proxy's own would forbid that."""
    a, b = two
    b.cache()
    a.proxy(b)
    churn = Churn(a.host, "--seccomp", 1, "--mib", 8)
    first = a.pre_dump(churn.pid, "--tracker", tracker)
    if tracker == "soft-dirty" and "no soft-dirty bits" in first.err:
        pytest.skip("this kernel has no soft-dirty bits")
    for done in first, a.pre_dump(churn.pid), a.dump(churn.pid):
        assert "cannot be followed" not in done.err, done.err
    b.restore()
    churn.runs_on(b.host)
    churn.check_all(b.host)
