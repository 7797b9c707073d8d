# SPDX-License-Identifier: Apache-2.0
"""The test bed: hosts on one machine, joined by a switch, with nothing shared with the machine itself.

    with Bed() as bed:
        a = bed.host("a", cidr="10.77.0.1/24", cidr6="fd77::1/64")
        b = bed.host("b", cidr="10.77.0.2/24", cidr6="fd77::2/64")
        pid = a.spawn([bed.workload("counter"), "/run/shared/count"])
        a.run([criu(), "dump", "-t", str(pid), "-D", a.mkdir("images")])

A host is a set of new namespaces (pid, net, mount, uts, ipc) with a reaping init; cgroups and users are the
machine's.  It sees the machine's files except for what is its own: /proc, /run, /tmp, /dev/shm, /dev/pts.
`host.tmp` (/tmp) is private to the host; `/run/shared` is one tmpfs seen by all hosts of a bed, for files that
must be the same on both sides of a migration, like a mapped file.  Hosts number their pids from different bases,
so that a pid of one is normally free on the others.  Network: `eth0` of each host on one bridge, which lives in a
namespace of its own; the machine's network is never touched.

Everything ends with the context, or with the Python process however it dies: the inits see their standard input
end, and with an init the kernel kills all its processes, and with these go mounts, links and files.

Needs root, and the built workloads (GODWIT_BUILD, default build/ in the source tree).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SHARED = "/run/shared"
PIDS_PER_HOST = 5000
HOSTS_WITH_OWN_PIDS = 6  # pids end at 32768
SLOW = float(os.environ.get("GODWIT_SLOW", 1))  # how much slower than others this machine is


class BedError(Exception):
    """The bed could not do what was asked; the message says what and why."""


def build_dir():
    """The build directory under test."""
    return Path(os.environ.get("GODWIT_BUILD", REPO / "build")).resolve()


def workload(name):
    """Path of a built workload, e.g. workload("counter")."""
    for path in (build_dir() / "tests" / "workloads" / name, build_dir() / name):
        if path.exists():
            return str(path)
    raise BedError(f"workload {name} is not built in {build_dir()}: build, or set GODWIT_BUILD")


def criu():
    """Path of the CRIU to test with: GODWIT_CRIU, else what scripts/setup chooses."""
    if os.environ.get("GODWIT_CRIU"):
        return os.environ["GODWIT_CRIU"]
    done = subprocess.run([REPO / "scripts" / "setup", "--print-criu"], capture_output=True, text=True)
    if done.returncode:
        raise BedError(f"no CRIU: {done.stderr.strip()}")
    os.environ["GODWIT_CRIU"] = done.stdout.strip()
    return os.environ["GODWIT_CRIU"]


def run_version(criu):
    """The version that a CRIU tells, as a tuple of two numbers."""
    text = subprocess.run([criu, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, text.split()[1].split(".")[:2]))


def fetched(what):
    """Path of what scripts/setup has fetched for the tests besides ("other-criu", "crit"), or what GODWIT_OTHER_CRIU or
    GODWIT_CRIT names; None if there is none."""
    named = os.environ.get(f"GODWIT_{what.upper().replace('-', '_')}")
    if named:
        return named
    done = subprocess.run([REPO / "scripts" / "setup", f"--print-{what}"], capture_output=True, text=True)
    return done.stdout.strip() or None


def wait_for(predicate, timeout=10, what=None, every=0.005):
    """Calls predicate until it returns something true, and returns that; BedError after timeout seconds (times SLOW).

    what says for the error what was waited for: a text, or a function that makes one then.
    """
    end = time.monotonic() + timeout * SLOW
    while True:
        got = predicate()
        if got:
            return got
        if time.monotonic() > end:
            raise BedError(f"waited {timeout} s for {what() if callable(what) else what or predicate.__name__}")
        time.sleep(every)


class Process(subprocess.Popen):
    """A running command in a host.  As subprocess.Popen, but signals go to the command itself.

    pid is that of the helper that waits for the command; machine_pid and host_pid are the command's own, seen from
    the machine and from inside its host.  The command dies with the helper.
    """

    machine_pid = host_pid = None

    def send_signal(self, sig):
        if self.poll() is None:
            try:
                os.kill(self.machine_pid or self.pid, sig)
            except ProcessLookupError:
                pass

    def __exit__(self, kind, *rest):
        if kind:
            self.kill()  # or a failed test would wait here for ever
        super().__exit__(kind, *rest)


class _Node:
    """A set of namespaces with an init: a host, or the switch."""

    def __init__(self, name, keep, base=None, first_pid=0):
        argv = [workload("hostinit"), "init", name]
        argv += [a for d in keep for a in ("--keep", d)]
        if base:
            argv += ["--base", str(base)]
        if first_pid:
            argv += ["--first-pid", str(first_pid)]
        self.name = name
        self._outer = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self._outer.stdout.readline().split()
        if line[:1] != ["ready"]:
            self.close()
            raise BedError(f"host {name} did not start (root needed); hostinit said why on stderr")
        #: pid of the host's init, seen from the machine
        self.init_pid = int(line[1])
        self.root = Path(f"/proc/{self.init_pid}/root")

    def close(self):
        """Ends the host and everything in it, as if its power failed; returns when it is gone."""
        self._outer.stdin.close()
        try:
            self._outer.wait(30)
        except subprocess.TimeoutExpired:
            self._outer.kill()
            self._outer.wait()
        self._outer.stdout.close()

    def ip(self, *args):
        """Runs `ip` in the node's network, with the machine's pids, so that it can name other hosts by pid."""
        argv = [workload("hostinit"), "enter", str(self.init_pid), "--net-only", "--", "ip", *args]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            raise BedError(f"{self.name}: ip {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def ip_batch(self, lines):
        """Several `ip` commands in one run: all of them, or an error."""
        argv = [workload("hostinit"), "enter", str(self.init_pid), "--net-only", "--", "ip", "-batch", "-"]
        done = subprocess.run(argv, input="\n".join(lines) + "\n", capture_output=True, text=True)
        if done.returncode:
            raise BedError(f"{self.name}: ip -batch: {done.stderr.strip()}")


class Host(_Node):
    """One host; made by Bed.host().  All paths and pids in its methods are those inside the host."""

    #: the host's private scratch directory
    tmp = "/tmp"
    #: the directory that all hosts of the bed share
    shared = SHARED

    def __init__(self, name, keep, base, first_pid):
        super().__init__(name, keep, base, first_pid)
        self.address = self.address6 = None

    def add_address(self, cidr):
        """Gives the host a further address, which may move to another host: see Bed.forget_neighbours()."""
        self.ip("address", "add", cidr, "dev", "eth0", *(["nodad"] if ":" in cidr else []))

    def del_address(self, cidr):
        self.ip("address", "del", cidr, "dev", "eth0")

    # ---- running things ----

    def popen(self, argv, *, pass_fds=(), cwd=None, text=True, **kw):
        """Starts a command in the host; returns a Process.

        Takes the arguments of subprocess.Popen.  stdin is /dev/null unless given; the command has no fds but 0, 1, 2
        and pass_fds.  FileNotFoundError and the like are raised as subprocess does.
        """
        kw.setdefault("stdin", subprocess.DEVNULL)
        r, w = os.pipe()
        try:
            helper = [workload("hostinit"), "enter", str(self.init_pid), "--report", str(w)]
            helper += ["--cwd", str(cwd or "/"), "--", *map(str, argv)]
            p = Process(helper, pass_fds=(*pass_fds, w), text=text, **kw)
        except BaseException:
            os.close(r)
            raise
        finally:
            os.close(w)
        with os.fdopen(r) as report:
            words = report.read().split()
        if len(words) != 3:
            p.communicate()
            raise BedError(f"{self.name}: cannot enter the host (has it ended?)")
        p.machine_pid, p.host_pid, error = map(int, words)
        if error:
            p.communicate()
            raise OSError(error, os.strerror(error), argv[0])
        return p

    def run(self, argv, *, timeout=60, check=False, input=None, **kw):
        """Runs a command in the host to its end; returns a CompletedProcess with text stdout and stderr.

        check=True raises BedError, with what the command said, if it fails.  TimeoutExpired after timeout seconds (times
        SLOW); the command is killed then.
        """
        kw.setdefault("stdout", subprocess.PIPE)
        kw.setdefault("stderr", subprocess.PIPE)
        if input is not None:
            kw["stdin"] = subprocess.PIPE
        with self.popen(argv, **kw) as p:
            try:
                out, err = p.communicate(input, timeout=timeout * SLOW)
            except BaseException:
                p.kill()
                p.wait()
                raise
        if check and p.returncode:
            raise BedError(f"{self.name}: {' '.join(map(str, argv))}: status {p.returncode}: {(err or out or '').strip()}")
        return subprocess.CompletedProcess(argv, p.returncode, out, err)

    def spawn(self, argv, *, stdout=None, cwd=None, env=None):
        """Starts a workload that can be dumped, and returns its pid in the host.

        It is a session leader, a child of the host's init, and has nothing open but /dev/null and, for stdout and stderr,
        the file stdout, all opened inside the host.
        """
        helper = [workload("hostinit"), "spawn", str(self.init_pid), "--cwd", str(cwd or "/")]
        if stdout:
            helper += ["--stdout", str(stdout)]
        done = subprocess.run([*helper, "--", *map(str, argv)], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env)
        if done.returncode:
            raise BedError(f"{self.name}: spawn {argv[0]}: {done.stderr.strip()}")
        return int(done.stdout)

    # ---- processes ----

    def _proc(self, pid, name=""):
        return self.path(f"/proc/{pid}/{name}")

    def _status(self, pid, field):
        try:
            for line in self._proc(pid, "status").read_text().splitlines():
                if line.startswith(field + ":"):
                    return line.split()[1]
        except (FileNotFoundError, ProcessLookupError):
            pass
        return None

    def pids(self):
        """All pids of the host, the init's left out."""
        return sorted(int(n) for n in os.listdir(self.path("/proc")) if n.isdigit() and n != "1")

    def pid_alive(self, pid):
        """Whether the process exists and has not ended; a stopped one is alive, a zombie is not."""
        return self._status(pid, "State") not in (None, "Z", "X")

    def state(self, pid):
        """The process's state letter as in /proc/PID/status, None if there is none."""
        return self._status(pid, "State")

    def wait_dead(self, pid, timeout=10):
        """Waits until nothing is left of the process, so that its pid is free again."""
        wait_for(lambda: self._status(pid, "State") is None, timeout, f"the end of pid {pid} on {self.name}")

    def kill(self, pid, sig=signal.SIGKILL):
        """Sends a signal to a process of the host; ProcessLookupError if there is none."""
        try:
            fd = os.open(self._proc(pid), os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise ProcessLookupError(pid) from None
        try:
            signal.pidfd_send_signal(fd, sig)
        finally:
            os.close(fd)

    def pause_process(self, pid):
        """Stops a process with SIGSTOP, and returns when it has stopped."""
        self.kill(pid, signal.SIGSTOP)
        wait_for(lambda: self.state(pid) in ("T", None), 10, f"pid {pid} to stop")

    def resume_process(self, pid):
        self.kill(pid, signal.SIGCONT)

    def rss(self, pid):
        """Resident memory in bytes, now."""
        return int(self._status(pid, "VmRSS") or 0) * 1024

    def peak_rss(self, pid):
        """The most resident memory the process has had, in bytes."""
        return int(self._status(pid, "VmHWM") or 0) * 1024

    def fds(self, pid):
        """What the process has open: {fd: what /proc says it is}."""
        d = self._proc(pid, "fd")
        found = {}
        for n in os.listdir(d):
            try:
                found[int(n)] = os.readlink(d / n)
            except FileNotFoundError:
                pass  # closed since it was listed
        return found

    # ---- files ----

    def path(self, path):
        """Where a path of the host is reached from Python."""
        return self.root / str(path).lstrip("/")

    def read(self, path, default=None):
        """The text of a file of the host; default, if given, when it, or the process that it tells of, does not exist."""
        try:
            return self.path(path).read_text()
        except (FileNotFoundError, ProcessLookupError):
            if default is None:
                raise
            return default

    def write(self, path, data):
        p = self.path(path)
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(data if isinstance(data, bytes) else data.encode())

    def mkdir(self, name):
        """Makes a directory, in host.tmp unless the path is absolute; returns its path in the host."""
        path = os.path.join(self.tmp, name)
        self.path(path).mkdir(parents=True, exist_ok=True)
        return path

    def wait_for(self, predicate, timeout=10, what=None):
        """As wait_for() of this module, ending early when the host itself has ended."""

        def asked():
            if self._outer.poll() is not None:
                raise BedError(f"host {self.name} has ended")
            return predicate()

        return wait_for(asked, timeout, what)

    def wait_text(self, path, start, timeout=10):
        """Waits until a file of the host starts with a text; returns the file's text."""
        return self.wait_for(lambda: t if (t := self.read(path, "")).startswith(start) else None, timeout,
                             lambda: f"{path} on {self.name} to start with {start!r} (it holds {self.read(path, '')!r})")


class Bed:
    """The machine room: a switch and its hosts.  A context manager; see the module's text."""

    def __init__(self, keep=()):
        """keep: further directories of the machine under /tmp, /run or /dev/shm that hosts must see.

        The source tree, the build directory and CRIU's are always seen.
        """
        self._keep = self._hidden([REPO, build_dir(), Path(criu()).parent, Path(sys.prefix), *keep])
        self._switch = None
        self._made = 0
        self.hosts = {}

    @staticmethod
    def _hidden(dirs):
        """Those of the directories that the fresh mounts of a host would hide, the outermost only."""
        dirs = {os.path.realpath(d) for d in dirs}
        dirs = {d for d in dirs if d.startswith(("/tmp/", "/run/", "/dev/shm/"))}
        return sorted(d for d in dirs if not any(d.startswith(o + "/") for o in dirs))

    def __enter__(self):
        self._switch = _Node("switch", self._keep)
        try:
            self._switch.ip_batch(["link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set br0 up"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        for host in [*self.hosts.values(), self._switch]:
            host.close()
        self.hosts = {}

    #: path of a built workload, for short
    workload = staticmethod(workload)

    def host(self, name, cidr=None, cidr6=None):
        """Adds a host on the switch.  name: at most 10 letters; it is the hostname and names the switch's port.

        A name that is in use is that of the same machine started again: the old host is ended first.
        """
        if name in self.hosts:
            self.hosts[name].close()
            self._unplug(name)
        self._made += 1
        first_pid = 300 + PIDS_PER_HOST * ((self._made - 1) % HOSTS_WITH_OWN_PIDS)
        host = Host(name, self._keep, self._switch.init_pid, first_pid)
        self.hosts[name] = host
        # The address is always the same, so that a host made anew is known to its peers.
        mac = "02:77:00:00:00:%02x" % list(self.hosts).index(name)
        self._switch.ip_batch([
            f"link add p-{name} type veth peer name eth0 address {mac} netns {host.init_pid}",
            f"link set p-{name} master br0 up",
        ])
        lines = [f"address add {cidr} dev eth0"] if cidr else []
        lines += [f"address add {cidr6} dev eth0 nodad"] if cidr6 else []
        host.ip_batch(["link set eth0 addrgenmode none", *lines, "link set eth0 up"])
        host.address = cidr and cidr.split("/")[0]
        host.address6 = cidr6 and cidr6.split("/")[0]
        return host

    @property
    def shared(self):
        """The directory that all hosts share, as Python reaches it."""
        return self._switch.root / SHARED.lstrip("/")

    # ---- the network ----

    def _unplug(self, name):
        # A namespace's links go some time after the namespace: do not wait for that.
        try:
            self._switch.ip("link", "del", f"p-{name}")
        except BedError:
            pass

    def forget_neighbours(self):
        """Makes all hosts ask anew who has an address, after one has moved."""
        for host in self.hosts.values():
            host.ip("neigh", "flush", "dev", "eth0")

    def link_down(self, name):
        """Pulls the host's cable: its link has no carrier, packets are lost, connections stay."""
        self._switch.ip("link", "set", f"p-{name}", "down")

    def link_up(self, name):
        self._switch.ip("link", "set", f"p-{name}", "up")

    def _nft(self, text):
        argv = [workload("hostinit"), "enter", str(self._switch.init_pid), "--net-only", "--", "nft", "-f", "-"]
        done = subprocess.run(argv, input=text, capture_output=True, text=True)
        if done.returncode:
            raise BedError(f"nft: {done.stderr.strip()}")

    def cut(self, a, b):
        """Loses every packet between two hosts, silently and both ways; both reach others still."""
        a, b = self._name(a), self._name(b)
        rules = "".join(f'add rule bridge cut forward iifname "p-{x}" oifname "p-{y}" drop\n' for x, y in ((a, b), (b, a)))
        self._nft("add table bridge cut\nadd chain bridge cut forward { type filter hook forward priority 0; }\n" + rules)

    def heal(self):
        """Takes all cuts back."""
        self._nft("add table bridge cut\ndelete table bridge cut\n")

    def slow(self, host, rate=None):
        """Limits what the host sends, e.g. rate="100mbit"; None: as fast as can be."""
        host = self.hosts[self._name(host)]
        argv = [workload("hostinit"), "enter", str(host.init_pid), "--net-only", "--", "tc", "qdisc"]
        if rate is None:
            argv += ["del", "dev", "eth0", "root"]
        else:
            argv += ["replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "128kb", "latency", "50ms"]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            raise BedError(f"{' '.join(argv[5:])}: {done.stderr.strip()}")

    @staticmethod
    def _name(host):
        return host if isinstance(host, str) else host.name


def copy_tree(from_host, from_path, to_host, to_path):
    """Copies a directory between hosts, by Python and not by the network."""
    shutil.copytree(from_host.path(from_path), to_host.path(to_path), dirs_exist_ok=True, symlinks=True)


class CounterFace:
    """What the workload `counter` shows in its file."""

    def __init__(self, data):
        self.state = data[:16].rstrip(b"\0").decode()
        self.counter, self.beat, self.longest_gap, self.pid = (
            int.from_bytes(data[16 + 8 * i:24 + 8 * i], "little") for i in range(4))


def read_counter(host, path):
    return CounterFace(host.path(path).read_bytes())
