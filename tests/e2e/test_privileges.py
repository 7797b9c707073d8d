# SPDX-License-Identifier: Apache-2.0
"""An image-cache is two processes: what parses has no rights, and what has rights parses nothing (docs/security.md)."""

import ctypes
import os
import platform
import signal
import socket
import struct

import pytest

from bed import Bed, wait_for
from failures import comm
from godwit import STARTER, Counter, make_hosts, starter_of

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
    starter = starter_of(host, pid)
    assert int(status(host, starter)["CapEff"][0], 16) != 0
    # Nothing of the network, and of local clients, is open in the one that has rights.
    kinds = [what for what in host.fds(starter).values() if what.startswith("socket:")]
    assert len(kinds) == 2, host.fds(starter)
    cache.stop()
    b.wait_gone("cache.sock.lock", "image-cache.log")


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
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
@pytest.mark.parametrize("name", FORBIDDEN)
def test_forbidden_calls_kill_it(two, name):
    """The kernel kills it on the spot, its other half ends, and the next image-cache starts."""
    _, b = two
    cache = b.cache("--accept")
    starter = starter_of(b.host, cache.pid)
    make_it_call(b.host, cache.pid, *FORBIDDEN[name])
    cache.end(-signal.SIGSYS)
    b.host.wait_dead(starter)
    assert "it was killed, by somebody or for a system call that it may not make" in cache.log()
    again = b.cache("--accept")
    assert again.alive and len(again.pids) == 2
    again.stop()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
def test_allowed_calls_do_not(two):
    """The test's own way of making it call something is no harm: it can fail."""
    _, b = two
    cache = b.cache("--accept")
    make_it_call(b.host, cache.pid, 39)  # getpid
    assert b.status()[0]["daemon"] == "image-cache" and cache.alive


# ---- two that live and die together ----

def test_killed_parser_takes_the_starter_along(two):
    _, b = two
    cache = b.cache("--accept")
    starter = starter_of(b.host, cache.pid)
    cache.signal(signal.SIGKILL)
    cache.end(-signal.SIGKILL)
    b.host.wait_dead(starter)
    b.cache("--accept").stop()


def test_killed_starter_takes_the_parser_along(two):
    _, b = two
    cache = b.cache("--accept")
    b.host.kill(starter_of(b.host, cache.pid))
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
    _, b = two
    cache = b.cache("--accept")
    assert [comm(b.host, p) for p in cache.pids] == ["godwit", STARTER]
