# SPDX-License-Identifier: Apache-2.0
"""The tools that move a process from one host to another, for the benchmarks: godwit, and two that CRIU brings."""

import re
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from common import STEADY_SECONDS, Dirty, note, warm
from bed import BedError, criu, wait_for

IMAGES_PORT, PAGES_PORT = 9001, 9002
PIPE_BYTES = 4 << 20

# The first connection becomes the standard input of a shell command.
LISTENER = """
import os, socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
connection = listener.accept()[0]
os.dup2(connection.fileno(), 0)
os.execvp("sh", ["sh", "-ec", sys.argv[3]])
"""


class Godwit:
    name = "godwit"

    def __init__(self, a, b):
        self.a, self.b = a, b
        b.cache("--accept")

    def move(self, pid, *options):
        """Returns when the process runs at the destination."""
        return self.a.migrate(pid, self.b.host.address, "--json", *options, timeout=180)

    def finish(self):
        """Waits for what is left to do then, and removes what it left."""


class Stock:
    """Scripts on both hosts, and the images in between."""

    directory = "/tmp/stock"

    def __init__(self, a, b):
        self.a, self.b = a.host, b.host

    def _tar(self):
        return f"tar -C {self.directory} -b 2048 -cf - . >/dev/tcp/{self.b.address}/{IMAGES_PORT}"

    def _listen(self, script):
        """Starts what the destination does once the images come."""
        script = f"cd {self.directory}; tar -b 2048 -xf -; exec </dev/null; {script}"
        listening = self.b.popen(["/usr/bin/python3", "-c", LISTENER, self.b.address, IMAGES_PORT, script],
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if listening.stdout.readline() != "listening\n":
            raise BedError(f"the destination does not listen: {listening.communicate()[0]}")
        return listening

    def _logs(self):
        return "".join(f"--- {host.name}: {log.name}\n" + "".join(log.read_text().splitlines(True)[-10:])
                       for host in (self.a, self.b) for log in host.path(self.directory).glob("*.log"))

    def move(self, pid):
        for host in self.a, self.b:
            host.path(self.directory).mkdir()
        listening = self._listen(self.destination)
        self.running = self.a.popen(["bash", "-ec", self.source.format(pid=pid)], cwd=self.directory, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT)
        # Nobody connects when criu has failed at the source.
        wait_for(lambda: listening.poll() is not None or self.running.poll(), 180, f"{self.name} to restore", every=0.002)
        if listening.poll() != 0:
            listening.kill()
            self._fail(listening.communicate()[0])
        listening.communicate()

    def _fail(self, output):
        self.running.kill()
        raise BedError(f"{self.name} failed: {output}{self.running.communicate()[0]}\n{self._logs()}")

    def finish(self):
        output = self.running.communicate(timeout=180)[0]
        if self.running.returncode:
            self._fail(output)
        for host in self.a, self.b:
            host.run(["rm", "-rf", self.directory], check=True)


class StopAndCopy(Stock):
    name = "stop-and-copy"

    def __init__(self, a, b):
        super().__init__(a, b)
        self.source = f"{criu()} dump -t {{pid}} -D . -o dump.log; {self._tar()}"
        self.destination = f"{criu()} restore -d -D . -o restore.log"


class PostCopy(Stock):
    name = "post-copy"

    def __init__(self, a, b):
        super().__init__(a, b)
        self.source = f"""mkfifo /tmp/stock-ready
            {criu()} dump --lazy-pages --address {self.a.address} --port {PAGES_PORT} -t {{pid}} -D . -o dump.log \\
                --status-fd 3 3>/tmp/stock-ready &
            head -c 1 /tmp/stock-ready >/tmp/stock-is-ready
            test -s /tmp/stock-is-ready && {self._tar()}
            wait $!"""
        self.destination = f"""
            {criu()} lazy-pages -d --pidfile pages.pid --page-server --address {self.a.address} --port {PAGES_PORT} \\
                -D . -o pages.log
            {criu()} restore --lazy-pages -d -D . -o restore.log"""

    def finish(self):
        self.b.wait_dead(int(self.b.read(f"{self.directory}/pages.pid")), 180)
        super().finish()
        self.a.run(["rm", "-f", "/tmp/stock-ready", "/tmp/stock-is-ready"], check=True)


TOOLS = {tool.name: tool for tool in (Godwit, StopAndCopy, PostCopy)}


@contextmanager
def large_pipes(wanted):
    """Yields whether CRIU's page server gets the pipes it needs."""
    limit = Path("/proc/sys/fs/pipe-max-size")
    before = limit.read_text()
    raised = False
    if wanted and int(before) < PIPE_BYTES:
        try:
            limit.write_text(str(PIPE_BYTES))
            raised = True
            note(f"(fs.pipe-max-size is {PIPE_BYTES} for this run, {before.strip()} again afterwards)")
        except OSError as e:
            note(f"({limit}: {e.strerror})")
    try:
        yield raised or int(before) >= PIPE_BYTES or has_resource_capability()
    finally:
        if raised:
            limit.write_text(before)


def has_resource_capability():
    """CAP_SYS_RESOURCE: no limit of pipes then."""
    held = re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())
    return bool(int(held[1], 16) >> 24 & 1)


def measure(tool, a, b, size, rate, *options):
    """One move: the pause in milliseconds, and what the tool returned."""
    memory = warm(3 * size + 64)  # images at both ends, and the process again
    process = Dirty(a.host, size, rate)
    process.settle()
    memory.close()
    told = tool.move(process.pid, *options)
    process.runs_on(b.host)
    time.sleep(STEADY_SECONDS)
    pause = process.pause_ms
    process.be_quiet()
    tool.finish()
    process.check(b.host)
    process.end(b.host)
    return pause, told
