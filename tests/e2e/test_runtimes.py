# SPDX-License-Identifier: Apache-2.0
"""Containers of runc and podman, whose criu sends its pages to an image-proxy: the commands of docs/incremental.md."""

import itertools
import json
import os
import shutil

import pytest

from bed import SHARED, SLOW, copy_tree
from bed import criu as criu_path
from godwit import WORKDIR, Pair, hook
from test_trackers import has_soft_dirty

pytestmark = [
    pytest.mark.timeout(120 * SLOW),
    pytest.mark.skipif(not shutil.which("runc"), reason="no runc here"),
    pytest.mark.skipif(not os.path.exists("/bin/busybox"), reason="no busybox here"),
]

PORT, SPOOL, CONF, HOOK = "9997", "/tmp/spool", "/tmp/criu.conf", "/tmp/hook"
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /state/new; mv /state/new /state/count; sleep 0.02; done"

numbers = itertools.count()


@pytest.fixture
def served(bed, request):
    """A pair whose proxy takes pages by a port, and whose cache has a spool."""
    p = Pair(bed, cache=["--spool", SPOOL], proxy=["--page-server", PORT])
    p.a.host.write(HOOK, f"#!/bin/sh\nGODWIT_HOOK_WORKDIR={WORKDIR} exec {hook()}\n")
    p.a.host.path(HOOK).chmod(0o755)
    yield p
    if request.node.passed:
        p.check()


def run(side, *argv, code=0, **kw):
    done = side.host.run(argv, **kw)
    if done.returncode != code:
        log = side.host.read("/tmp/logs/dump.log", "")[-4000:]  # of runc's criu
        pytest.fail(f"{' '.join(map(str, argv))}: {done.returncode}\n{done.stdout}{done.stderr}{side.logs()}\n{log}")
    return done.stdout


def make_root(side, path):
    """A root file system with nothing but busybox."""
    for name in ("bin", "state", "proc", "dev", "sys", "tmp"):
        side.host.mkdir(f"{path}/{name}")
    shutil.copy("/bin/busybox", side.host.path(f"{path}/bin/busybox"))
    for name in ("sh", "sleep", "mv"):
        side.host.path(f"{path}/bin/{name}").symlink_to("busybox")


class Container:
    """One that counts, in a directory that all hosts see."""

    def __init__(self, side, state="state"):
        self.name = f"godwit-{os.getpid()}-{next(numbers)}"  # control groups are the machine's
        self.state = side.host.mkdir(f"{SHARED}/{state}")
        self.count_path = side.host.path(f"{self.state}/count")
        self.bundle_path = f"/tmp/bundle-{state}"
        self.sides = []

    def count(self):
        return int(self.count_path.read_text()) if self.count_path.exists() else 0

    def counts(self, side, since=0):
        """It counts on from somewhere."""
        start = max(self.count(), since)
        side.host.wait_for(lambda: self.count() > start + 5, 20, lambda: f"{self.name} to count: {self.count()}")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for side in self.sides:
            self.remove(side)


def runc(*argv):
    return ["runc", "--criu", criu_path(), "--root", "/tmp/runc", *argv]


class Runc(Container):
    def runc(self, side, *argv, **kw):
        return run(side, *runc(*argv), timeout=60, cwd="/tmp", **kw)

    def bundle(self, side, conf):
        """With a configuration of criu, as an annotation tells."""
        bundle = self.bundle_path
        make_root(side, f"{bundle}/rootfs")
        run(side, "runc", "spec", "-b", bundle)
        spec = json.loads(side.host.read(f"{bundle}/config.json"))
        spec["process"].update(terminal=False, args=["/bin/sh", "-c", COUNT])
        spec["root"]["readonly"] = False  # criu makes a directory there while it restores
        spec["annotations"] = {"org.criu.config": CONF}
        spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "network"]
        spec["mounts"].append({"destination": "/state", "type": "bind", "source": self.state, "options": ["bind", "rw"]})
        side.host.write(f"{bundle}/config.json", json.dumps(spec))
        side.host.write(CONF, conf)
        self.sides.append(side)

    def silently(self, side, *argv):
        """What stays behind has to have clean standard streams."""
        side.host.run(["/bin/sh", "-c", 'exec "$@" </dev/null >/dev/null 2>&1', "sh", *runc(*argv)], timeout=60, cwd="/tmp",
                      check=True)

    def start(self, side):
        self.silently(side, "run", "-d", "-b", self.bundle_path, self.name)
        self.counts(side)

    def restore(self, side, images):
        self.silently(side, "restore", "-d", "-b", self.bundle_path, "--image-path", images, "--work-path", "/tmp/logs",
                      self.name + "-moved")

    def listed(self, side):
        return json.loads(self.runc(side, "list", "-f", "json")) or []

    def states(self, side):
        return {c["id"]: c["status"] for c in self.listed(side)}

    def remove(self, side):
        for name in self.states(side):
            self.runc(side, "delete", "-f", name)


WAYS = {"by-an-option": (["--page-server", f"127.0.0.1:{PORT}"], ""),
        "by-configuration": ([], f"page-server\naddress 127.0.0.1\nport {PORT}\n")}


@pytest.mark.parametrize("way", WAYS)
def test_runc(served, way):
    """Its memory leaves by the page server, its other images by the hook; it is restored from the spool, and from an
    export."""
    a, b = served.a, served.b
    options, conf = WAYS[way]
    with Runc(a) as container:
        # Twice: some versions of criu read a configuration as often as runc tells of it.
        container.bundle(a, f"action-script {HOOK}\naction-script {HOOK}\n{conf}")
        container.bundle(b, "")
        container.start(a)
        container.runc(a, "checkpoint", "--image-path", "/tmp/images", "--work-path", "/tmp/logs", *options, container.name)
        assert container.states(a) == {}
        assert not [n for n in os.listdir(a.host.path("/tmp/images")) if n.startswith("pages-")], "no memory on that disk"
        stood_at = container.count()
        snapshot, = b.snapshots()
        b.host.wait_for(lambda: b.snapshots()[snapshot]["spool"] == "written", 10, "the spool")
        b.run("export", snapshot, "/tmp/exported")
        b.wait_state(snapshot, "ready")
        b.forget(snapshot)
        for images in (f"{SPOOL}/{snapshot}", "/tmp/exported"):
            container.restore(b, images)
            assert container.states(b) == {container.name + "-moved": "running"}
            container.counts(b, stood_at)
            container.remove(b)


def test_runc_without_the_hook(served):
    """A copy: its pages by the page server, its other images as they lie there."""
    a, b = served.a, served.b
    with Runc(a) as container:
        container.bundle(a, "")
        container.bundle(b, "")
        container.start(a)
        container.runc(a, "checkpoint", "--leave-running", "--image-path", "/tmp/images", "--work-path", "/tmp/logs",
                       "--page-server", f"127.0.0.1:{PORT}", container.name)
        container.counts(a)
        container.remove(a)
        snapshot, = b.snapshots()
        b.run("export", snapshot, "/tmp/images")
        copy_tree(a.host, "/tmp/images", b.host, "/tmp/others")
        for path in b.host.path("/tmp/others").iterdir():
            shutil.copy(path, b.host.path("/tmp/images"))
        container.restore(b, "/tmp/images")
        container.counts(b)
        b.wait_state(snapshot, "pre-dumped")
        b.forget(snapshot)


@pytest.mark.skipif(not has_soft_dirty(), reason="runc checkpoint --pre-dump wants soft-dirty bits")
def test_runc_pre_dumps_of_criu(served):
    """Twice while it runs, and then what has changed since."""
    a, b = served.a, served.b
    with Runc(a) as container:
        container.bundle(a, f"action-script {HOOK}\n")
        container.bundle(b, "")
        container.start(a)
        for images, *more in (("p1", "--pre-dump"), ("p2", "--pre-dump", "--parent-path", "../p1"), ("images", "--parent-path", "../p2")):
            container.runc(a, "checkpoint", *more, "--image-path", f"/tmp/{images}", "--work-path", "/tmp/logs", "--page-server",
                           f"127.0.0.1:{PORT}", container.name)
            if images != "images":
                container.counts(a)
        stood_at = container.count()
        snapshot, = (i for i, s in b.snapshots().items() if s["state"] == "ready")
        assert b.snapshots()[snapshot]["parent"], "the last is based on what came before"
        b.host.wait_for(lambda: b.snapshots()[snapshot]["spool"] == "written", 10, "the spool")
        for name in b.snapshots():
            b.forget(name)
        container.restore(b, f"{SPOOL}/{snapshot}")
        container.counts(b, stood_at)


def test_two_containers(served):
    """At once, by one page server: each is known, although all that criu calls them is 1."""
    a, b = served.a, served.b
    with Runc(a, "one") as one, Runc(a, "two") as two:
        for container in (one, two):
            container.bundle(a, f"action-script {HOOK}\npage-server\naddress 127.0.0.1\nport {PORT}\n")
            container.bundle(b, "")
            container.start(a)
        pids = {c["id"]: c["pid"] for c in one.listed(a)}
        checkpoints = [a.host.popen(runc("checkpoint", "--image-path", f"/tmp/{c.name}", "--work-path", f"/tmp/{c.name}-work", c.name),
                                    cwd="/tmp") for c in (one, two)]
        assert [c.wait(60 * SLOW) for c in checkpoints] == [0, 0], a.logs()
        for container in (one, two):
            stood_at = container.count()
            snapshot, = (s for s in b.snapshots() if s.startswith(f"{pids[container.name]}-"))
            b.host.wait_for(lambda: b.snapshots()[snapshot]["spool"] == "written", 10, "the spool")
            b.forget(snapshot)
            container.restore(b, f"{SPOOL}/{snapshot}")
            container.counts(b, stood_at)


class Podman(Container):
    def podman(self, side, *argv, **kw):
        side.host.mkdir("/tmp/bin")
        link = side.host.path("/tmp/bin/criu")
        if not link.is_symlink():
            link.symlink_to(criu_path())
        return run(side, "podman", "--runtime", "runc", "--root", "/tmp/podman", "--runroot", "/tmp/podman-run", "--cgroup-manager",
                   "cgroupfs", "--storage-driver", "vfs", "--events-backend", "none", *argv, timeout=60, cwd="/tmp",
                   env={**os.environ, "PATH": f"/tmp/bin:{os.environ['PATH']}"}, **kw)

    def remove(self, side):
        self.podman(side, "rm", "-a", "-f", "-t", "0")


@pytest.mark.skipif(not shutil.which("podman"), reason="no podman here")
def test_podman(served):
    """The page server and the hook by the configuration; what podman exports has the rest, and is put together."""
    a, b = served.a, served.b
    with Podman(a) as container:
        make_root(a, "/tmp/root")
        run(a, "tar", "-C", "/tmp/root", "-cf", "/tmp/root.tar", ".")
        a.host.write(CONF, f"action-script {HOOK}\npage-server\naddress 127.0.0.1\nport {PORT}\n")
        b.host.write(CONF, "")
        container.podman(a, "import", "/tmp/root.tar", "busy")
        container.podman(a, "save", "-o", f"{SHARED}/busy.tar", "busy")
        container.podman(b, "load", "-i", f"{SHARED}/busy.tar")
        container.sides = [a, b]
        container.podman(a, "run", "-d", "--name", container.name, "--network", "host", "--log-driver", "none", "--annotation",
                         f"org.criu.config={CONF}", "-v", f"{SHARED}/state:/state", "busy", "/bin/sh", "-c", COUNT)
        container.counts(a)
        container.podman(a, "container", "checkpoint", "--compress", "none", "--export", f"{SHARED}/container.tar", container.name)
        stood_at = container.count()
        snapshot, = b.snapshots()
        b.run("export", snapshot, "/tmp/exported")
        b.host.mkdir("/tmp/whole")
        run(b, "tar", "-C", "/tmp/whole", "-xf", f"{SHARED}/container.tar")
        for path in b.host.path("/tmp/exported").iterdir():
            shutil.copy(path, b.host.path("/tmp/whole/checkpoint"))
        run(b, "tar", "-C", "/tmp/whole", "-cf", "/tmp/whole.tar", ".")
        container.podman(b, "container", "restore", "--import", "/tmp/whole.tar")
        container.counts(b, stood_at)
        b.wait_state(snapshot, "ready")
        b.forget(snapshot)
