# SPDX-License-Identifier: Apache-2.0
"""godwit in the hosts of a test bed: its daemons and commands, and what they said when something went wrong.

    with Bed() as bed:
        a, b = Godwit(bed.host("a", ...)), Godwit(bed.host("b", ...))
        cache = b.cache()
        a.proxy(b)
        a.dump(pid)
        b.restore("-d")

A command that does not end with the status that was expected raises AssertionError with what it said and with the
logs of the host.  `Godwit.all_logs(hosts)` is what conftest.py shows of a test that failed.
"""

import json
import os
import select
import signal
import subprocess
import time

import bed as testbed
from bed import SHARED, SLOW, read_counter, wait_for, workload

FAILED, USAGE, CRIU, PEER, NOT_FOUND, LIMIT, DOUBT, BUSY, REFUSED, ABORTED = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10

WORKDIR = "/run/godwit"
STARTER = "godwit-starter"
HELPER = "godwit-helper"
MIB = 1 << 20


def program():
    return str(testbed.build_dir() / "godwit")


def hook():
    return str(testbed.build_dir() / "godwit-hook")


def without_credentials(argv):
    """What says that a link needs none, unless the arguments name some."""
    return [] if any(str(a).startswith(("--tls-", "--psk-file")) for a in argv) else ["--insecure"]


def patience(argv):
    """On a slow machine, that many times that of others for a peer that is silent, unless the arguments say how much."""
    return ["--timeout", 10 * SLOW] if SLOW > 1 and "--timeout" not in argv else []


def half_of(host, pid):
    """The pid of the half of a daemon that has rights, by that of the other; None when there is none."""
    return next((p for p in host.pids() if host.read(f"/proc/{p}/comm", "").strip() in (STARTER, HELPER)
                 and host.read(f"/proc/{p}/stat", ") ? 0").rsplit(")", 1)[1].split()[1] == str(pid)), None)


class Running:
    """A command under way in a host."""

    def __init__(self, godwit, argv, **kw):
        self.godwit, self.argv = godwit, [str(a) for a in argv]
        self.began = time.monotonic()
        self.process = godwit.host.popen(self.argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)

    def end(self, code=0, timeout=60):
        """Waits for its end, which must have this exit status; returns its output."""
        try:
            out, err = self.process.communicate(timeout=timeout * SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise AssertionError(f"{self} did not end in {timeout} s\n{self.godwit.logs()}") from None
        self.seconds = time.monotonic() - self.began
        got = self.process.returncode
        assert got == code, f"{self}: status {got}, not {code}\n{out}{err}\n{self.godwit.logs()}"
        self.out, self.err = out, err
        return self

    @property
    def ended(self):
        return self.process.poll() is not None

    @property
    def json(self):
        return json.loads(self.out)

    def wait_asked(self):
        """Waits until it is connected to its daemon; returns itself."""
        fds = f"/proc/{self.process.host_pid}/fd"

        def connected():
            try:
                return any(os.readlink(f).startswith("socket:") for f in self.godwit.host.path(fds).iterdir())
            except FileNotFoundError:
                return self.ended

        self.godwit.host.wait_for(connected, what=f"{self} to ask its daemon")
        return self

    def __str__(self):
        return f"{' '.join(['godwit', *self.argv[1:]])} on {self.godwit.host.name}"


class Daemon:
    """A running image-cache or image-proxy."""

    def __init__(self, godwit, name, argv, background=False, pass_fds=(), env=None):
        self.godwit, self.name, self.host = godwit, name, godwit.host
        self.argv = [program(), name, "-W", godwit.workdir, *map(str, argv)]
        self.log_path = f"{godwit.workdir}/{name}.log"
        if background:
            self._start_background(pass_fds, env)
        else:
            self._start_foreground(pass_fds, env)

    def _start_background(self, pass_fds, env):
        pidfile = f"{self.godwit.workdir}/{self.name}.pid"
        self.process = None
        done = self.host.run([*self.argv, "-d", "--pidfile", f"{self.name}.pid"], pass_fds=pass_fds, env=env)
        assert done.returncode == 0, f"{self.name} -d: status {done.returncode}: {done.stderr}"
        self.pid = int(self.host.read(pidfile))

    def _start_foreground(self, pass_fds, env):
        r, w = os.pipe()
        argv = [*self.argv, "-o", f"{self.name}.log", "--status-fd", str(w)]
        try:
            self.process = self.host.popen(argv, pass_fds=(*pass_fds, w), env=env, stdout=subprocess.DEVNULL,
                                           stderr=subprocess.PIPE)
        finally:
            os.close(w)
        try:
            ready = select.select([r], [], [], 10 * SLOW)[0] and os.read(r, 10)
        finally:
            os.close(r)
        if ready != b"\0":
            self.process.kill()
            err = self.process.communicate()[1]
            raise AssertionError(f"{self.name} on {self.host.name} said {ready!r}, not ready: {err}\n{self.log()}")
        self.pid = self.process.host_pid

    @property
    def alive(self):
        return self.host.pid_alive(self.pid)

    @property
    def pids(self):
        """Of its processes: a daemon is two."""
        return [p for p in (self.pid, half_of(self.host, self.pid)) if p]

    def log(self):
        return self.host.read(self.log_path, "")

    def wait_log(self, text, timeout=10):
        self.host.wait_for(lambda: text in self.log(), timeout, lambda: f"{text!r} in the log of {self.name}:\n{self.log()}")

    def signal(self, sig):
        self.host.kill(self.pid, sig)

    def end(self, code=0, timeout=15):
        """Waits until it has ended, with this status."""
        self.host.wait_dead(self.pid, timeout)
        if self.process:
            self.process.communicate()
            assert self.process.returncode == code, f"{self.name}: status {self.process.returncode}\n{self.log()}"

    def stop(self):
        self.signal(signal.SIGTERM)
        self.end()

    def fds(self):
        """Its open descriptors, without what is different each time."""
        return sorted(what.split(":")[0] for what in self.host.fds(self.pid).values())

    def peak_rss(self):
        return self.host.peak_rss(self.pid)

    def rss(self):
        return self.host.rss(self.pid)


class Godwit:
    """godwit on one host, in one work-dir."""

    def __init__(self, host, workdir=WORKDIR, cwd=None):
        self.host, self.workdir, self.cwd = host, workdir, cwd
        self.daemons = []

    # ---- daemons ----

    def daemon(self, name, *argv, **kw):
        daemon = Daemon(self, name, [*patience(argv), *argv], **kw)
        self.daemons.append(daemon)
        return daemon

    def cache(self, *argv, address=None, **kw):
        """An image-cache that listens on the host's address, or the one given."""
        return self.daemon("image-cache", "--address", address or self.host.address, *without_credentials(argv), *argv, **kw)

    def proxy(self, cache, *argv, address=None, linked=True, **kw):
        """An image-proxy for the image-cache of another Godwit; waits until they are linked."""
        daemon = self.daemon("image-proxy", "--address", address or cache.host.address, *without_credentials(argv),
                             *argv, **kw)
        if linked:
            self.wait_linked()
        return daemon

    def wait_linked(self, timeout=10):
        self.host.wait_for(lambda: self.link() == "up", timeout, f"the link of the image-proxy on {self.host.name}")

    def link(self):
        return next((s["link"] for s in self.status() if s["daemon"] == "image-proxy" and "link" in s), None)

    # ---- commands ----

    def begin(self, command, *argv, workdir=True, **kw):
        """Starts a command; returns a Running."""
        where = ["-W", self.workdir] if workdir else []
        return Running(self, [program(), command, *where, *argv], cwd=self.cwd, **kw)

    def run(self, command, *argv, code=0, timeout=60, **kw):
        return self.begin(command, *argv, **kw).end(code, timeout)

    def begin_dump(self, pid, *argv, **kw):
        return self.begin("dump", "--remote", "-t", pid, *patience(argv), *argv, **kw)

    def dump(self, pid, *argv, code=0, timeout=60, **kw):
        return self.begin_dump(pid, *argv, **kw).end(code, timeout)

    def pre_dump(self, pid, *argv, code=0, timeout=60, **kw):
        return self.run("pre-dump", "--remote", "-t", pid, *patience(argv), *argv, code=code, timeout=timeout, **kw)

    def begin_restore(self, *argv, **kw):
        return self.begin("restore", "--remote", *argv, **kw)

    def restore(self, *argv, code=0, timeout=60, **kw):
        """With -d, so that the command ends when the process runs."""
        return self.begin_restore("-d", *argv, **kw).end(code, timeout)

    def begin_migrate(self, pid, target, *argv, **kw):
        return self.begin("migrate", "-t", pid, target, *without_credentials(argv), *patience(argv), *argv, **kw)

    def migrate(self, pid, target, *argv, code=0, timeout=60, **kw):
        return self.begin_migrate(pid, target, *argv, **kw).end(code, timeout)

    def wait_gone(self, *keep, timeout=8):
        """Waits until the work-dir holds these files and no others, or is not there."""
        here = self.host.path(self.workdir)
        self.host.wait_for(lambda: not here.exists() or set(self.files()) <= set(keep), timeout,
                           lambda: f"the work-dir on {self.host.name} to hold {keep} only: {self.files()}")

    def forget(self, snapshot, code=0):
        return self.run("forget", snapshot, code=code)

    def status(self):
        """What `godwit status --json` shows: a list of objects; empty when no daemon works."""
        done = self.host.run([program(), "status", "-W", self.workdir, "--json"])
        return [json.loads(line) for line in done.stdout.splitlines()] if done.returncode == 0 else []

    def snapshots(self):
        """{id: status} of the image-cache."""
        return {s["snapshot"]: s for s in self.status() if s.get("daemon") == "image-cache" and "snapshot" in s}

    def state(self, snapshot):
        return self.snapshots().get(snapshot, {}).get("state")

    def wait_state(self, snapshot, state, timeout=10):
        """Waits until the cache's snapshot is in a state (None: gone)."""
        self.host.wait_for(lambda: self.state(snapshot) == state, timeout,
                           lambda: f"snapshot {snapshot} to be {state} ({self.snapshots()})")

    def used_bytes(self):
        return next(s["used_bytes"] for s in self.status() if "used_bytes" in s)

    # ---- the host ----

    def files(self, path=None):
        """Names in the work-dir, or in a directory of it."""
        return sorted(os.listdir(self.host.path(path or self.workdir)))

    def is_clean(self, also=()):
        """Whether the work-dir holds what the daemons put there, and nothing of a migration."""
        known = {f"{d}{e}" for d in ("image-cache", "image-proxy") for e in (".log", ".pid")} | {
            "images", "streamer-serve.sock", "streamer-capture.sock", "proxy.sock", "cache.sock", "proxy.sock.lock",
            "cache.sock.lock", *also}
        images = self.host.path(f"{self.workdir}/images")
        return set(self.files()) <= known and (not images.exists() or os.listdir(images) == [])

    def take_failure(self):
        """Removes what a command that failed leaves on purpose, its directory with criu's log; returns the log."""
        left = [d for d in self.host.path(self.workdir).iterdir() if d.name.startswith(("dump-", "restore-"))]
        assert len(left) == 1, left
        logs = list(left[0].glob("*.log"))
        text = logs[0].read_text() if logs else ""
        for path in left[0].iterdir():
            path.unlink()
        left[0].rmdir()
        return text

    def tmpfs_used(self):
        """Bytes in use on the tmpfs of the store."""
        s = os.statvfs(self.host.path(f"{self.workdir}/images"))
        return (s.f_blocks - s.f_bfree) * s.f_frsize

    def criu(self, *argv, code=0, timeout=60):
        """Runs the unmodified criu."""
        done = self.host.run([testbed.criu(), *argv], timeout=timeout)
        assert done.returncode == code, f"criu {' '.join(map(str, argv))}: {done.returncode}\n{done.stderr}\n{self.logs()}"
        return done

    def logs(self):
        """All logs in the work-dir and beside it, the ends of criu's."""
        text = []
        root = self.host.path(self.workdir)
        for path in sorted(root.glob("**/*.log")) + sorted(self.host.path("/tmp").glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()
            text += [f"--- {path.name} on {self.host.name} ({path.parent.name})", *lines[-25:]]
        return "\n".join(text)


def make_hosts(bed, *names):
    """Godwits on hosts of these names, 10.77.0.1 and fd77::1 and so on."""
    return [Godwit(bed.host(n, cidr=f"10.77.0.{i}/24", cidr6=f"fd77::{i}/64")) for i, n in enumerate(names, 1)]


class Pair:
    """Two hosts: a with an image-proxy, b with an image-cache."""

    def __init__(self, bed, cache=(), proxy=()):
        self.bed = bed
        self.a, self.b = make_hosts(bed, "a", "b")
        self.cache = self.b.cache(*cache)
        self.proxy = self.a.proxy(self.b, *proxy)

    def counter(self, on=None, name="count"):
        """Starts a counter on a (or another host)."""
        return Counter((on or self.a).host, name)

    def move(self, pid, *criu):
        """Dumps on a and restores on b."""
        passed = ["--", *criu] if criu else []
        self.a.dump(pid, *passed)
        self.b.restore(*passed)
        assert not self.a.host.pid_alive(pid) and self.b.host.pid_alive(pid)

    def check(self):
        """Daemons that should have lived have lived, and nothing is left of the migrations."""
        for daemon in (self.cache, self.proxy):
            assert daemon.alive, f"{daemon.name} has ended\n{daemon.log()}"
        self.a.host.wait_for(self.a.is_clean, 5, lambda: f"a's work-dir to be clean: {self.a.files()}")
        self.b.host.wait_for(self.b.is_clean, 5, lambda: f"b's work-dir to be clean: {self.b.files()} {self.b.files(WORKDIR + '/images')}")
        assert self.b.used_bytes() == 0


class Counter:
    """The workload `counter`; its face is on the tmpfs that all hosts see."""

    def __init__(self, host, name="count"):
        self.path = f"{SHARED}/{name}"
        self.home = host
        self.pid = host.spawn([workload("counter"), self.path])
        self.runs_on(host)

    def face(self):
        return read_counter(self.home, self.path)

    def runs_on(self, host, more=5):
        """It counts on, undamaged, as a process of this host."""
        wait_for(lambda: self.home.path(self.path).exists() and self.face().state, 10, "the counter to begin")
        before = self.face().counter
        wait_for(lambda: self.face().counter > before + more, 10, lambda: f"the counter to count on {host.name}")
        face = self.face()
        assert face.state == "running" and face.pid == self.pid and host.pid_alive(self.pid)

    def stands(self, seconds=0.05):
        """It does not count."""
        before = self.face().counter
        time.sleep(seconds)
        assert self.face().counter == before


def check_memory(host, pid, path, n):
    """Has a workload of the selfcheck kind check itself: its nth check."""
    host.kill(pid, signal.SIGUSR1)

    def told():
        text = host.read(path)
        return text if text.split()[1] == str(n) else None

    text = host.wait_for(told, 30, f"check {n} of {path}")
    assert text == f"ok {n}\n"
