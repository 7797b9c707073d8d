# SPDX-License-Identifier: Apache-2.0
"""CRIU's stream protocol from CRIU's side: what `criu dump --stream` and `criu restore --stream` say to the daemons.

Per file a u32 length and a protobuf message {1: name}; from the serve socket an answer, u32 length and {1: exists};
then one byte that carries the end of a pipe.  The end of the socket is the end of the session.
"""

import os
import socket
import struct
import threading


def request(name):
    name = os.fsencode(name)
    size = len(name)
    varint = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    message = b"\x0a" + varint + name
    return struct.pack("<I", len(message)) + message


class Stream:
    """A session on a socket of a work-dir.  A context manager: closed, with all its pipes, at the end."""

    socket_name = None

    def __init__(self, godwit):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(godwit.host.path(f"{godwit.workdir}/{self.socket_name}")))
        self.fds = set()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = set()

    def close(self):
        """The end of the session."""
        self.socket.close()

    def close_fd(self, fd):
        self.fds.remove(fd)
        os.close(fd)

    def _pass(self, theirs, ours):
        self.fds.add(ours)
        try:
            socket.send_fds(self.socket, [b"\0"], [theirs])
        finally:
            os.close(theirs)
        return ours


class Capture(Stream):
    """As criu dump --stream."""

    socket_name = "streamer-capture.sock"

    def open(self, name):
        """Begins an image; returns the descriptor to write it to."""
        self.socket.sendall(request(name))
        r, w = os.pipe()
        return self._pass(r, w)

    def put(self, name, data):
        fd = self.open(name)
        write(fd, data)
        self.close_fd(fd)

    def finish(self):
        """The last image, and the end."""
        self.put("inventory.img", b"inventory")
        self.close()


class Serve(Stream):
    """As criu restore --stream."""

    socket_name = "streamer-serve.sock"

    def ask(self, name):
        """Whether there is such an image."""
        self.socket.sendall(request(name))
        return self.answer()

    def answer(self):
        reply = b""
        while len(reply) < 6:
            part = self.socket.recv(6 - len(reply))
            if not part:
                raise ConnectionResetError("the image-cache closed the session")
            reply += part
        assert reply in (b"\x02\0\0\0\x08\x01", b"\x02\0\0\0\x08\x00"), reply
        return reply[5] == 1

    def pipe(self):
        """Gives a pipe for an image that is there; returns the descriptor to read it from."""
        r, w = os.pipe()
        return self._pass(w, r)

    def get(self, name):
        """The image's content; None when there is none."""
        if not self.ask(name):
            return None
        fd = self.pipe()
        data = read(fd)
        self.close_fd(fd)
        return data


def write(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def read(fd):
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def in_background(call, *args):
    """Calls in a thread; returns a function that waits for the result, or raises what was raised."""
    result = {}

    def run():
        try:
            result["value"] = call(*args)
        except BaseException as e:  # told to who waits
            result["error"] = e

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait(timeout=30):
        thread.join(timeout)
        assert not thread.is_alive(), f"{call.__name__} hangs"
        if "error" in result:
            raise result["error"]
        return result["value"]

    wait.ended = lambda: not thread.is_alive()
    return wait
