# SPDX-License-Identifier: Apache-2.0
"""A TCP man in the middle that understands godwit's frames and does harm where it is told to.

    relay.py --listen 10.77.0.3:9996 --connect 10.77.0.2:9996 [--log FILE] [--tls]
             [--match DIR:TYPE[/FLAGS][@CONNECTION][:NTH] --action ACTION]...

It prints "LISTENING", forwards every connection made to it, and names two directions: `up`, from the side that
connected, and `down`, towards it; `any` is both.  Each direction begins with a preamble of 16 bytes; then come
frames: a header of 32 bytes, little-endian (u16 type, u16 flags, u32 length, u32 session, u32 item, u64 offset,
u64 reserved), and `length` bytes of payload.

A rule is a --match with the --action after it.  TYPE is a number (0x.. too), `preamble`, or `any`; FLAGS, a number,
are those that the frame must have, others or not; CONNECTION, counted from 1, is the only one whose frames count; NTH, counted
from 1 per rule, over all connections, is the only frame it acts on (default 1; 0: every one).  Actions:

    cut           reset both sides before the frame's first byte is passed on
    cut-middle    pass half of the frame on, then reset both sides
    close         pass the frame on, then end the connection in good order
    stall         pass nothing on in this direction any more; the connection stays up
    garbage       pass random bytes of the frame's length on instead of header and payload
    flip          flip one bit in the middle of the payload, of the header if there is none
    drop          pass the frame over
    delay:S       wait S seconds before the frame (later ones in this direction wait behind it)
    one-byte      pass it and all that follows in this direction on one byte at a time
    rate:BYTES    pass it and all that follows in this direction on at that many bytes a second
    hold          print "HELD DIR TYPE", and go on with the frame when a line comes on standard input

With --tls it sees no frames but the records of TLS, which it cannot read: there is no preamble, a TYPE is that of a
record (22: the begin of the handshake, 23: what is encrypted), and there are no flags.

--log FILE gets a line per frame: time, direction, type, length, session, item; preambles and actions too.
Memory is bounded: a payload goes through in pieces, and a slow receiver slows the sender.
"""

import argparse
import asyncio
import os
import random
import re
import socket
import struct
import sys
import time

HEADER = struct.Struct("<HHIIIQQ")
RECORD = struct.Struct(">BHH")  # of TLS: type, version, length
PREAMBLE = 16
PIECE = 1 << 16
BURST = 0.01  # seconds of what a limited rate has missed that are made up for


class Cut(Exception):
    """A rule ends the connection."""

    def __init__(self, reset=True):
        super().__init__()
        self.reset = reset


class Rule:
    def __init__(self, match, action):
        m = re.fullmatch(r"(up|down|any):(preamble|any|0x[0-9a-fA-F]+|\d+)(?:/(\d+))?(?:@(\d+))?(?::(\d+))?", match)
        if not m:
            raise argparse.ArgumentTypeError(f"--match {match}: not DIR:TYPE[/FLAGS][@CONNECTION][:NTH]")
        self.direction, kind, flags, connection, nth = m.groups()
        self.flags = int(flags or 0)
        self.connection = int(connection or 0)
        self.kind = kind if kind in ("preamble", "any") else int(kind, 0)
        self.nth = 1 if nth is None else int(nth)
        self.seen = 0
        self.action, _, argument = action.partition(":")
        if self.action not in ACTIONS:
            raise argparse.ArgumentTypeError(f"--action {action}: not one of {', '.join(ACTIONS)}")
        self.amount = float(argument or 0)

    def fires(self, direction, kind, flags, connection):
        if self.direction not in ("any", direction) or flags & self.flags != self.flags:
            return False
        if self.connection not in (0, connection):
            return False
        if kind != self.kind and not (self.kind == "any" and kind != "preamble"):
            return False
        self.seen += 1
        return self.nth in (0, self.seen)


class Frame:
    """The unit a rule acts on: a preamble or a frame, with its payload not yet read."""

    def __init__(self, kind, head, length, flags=0):
        self.kind, self.head, self.length, self.flags = kind, head, length, flags
        self.flip_at = None  # a byte of head + payload


class Flow:
    """One direction of one connection."""

    def __init__(self, relay, direction, connection, reader, writer):
        self.relay, self.direction, self.connection, self.reader, self.writer = relay, direction, connection, reader, writer
        self.one_byte = False
        self.rate = 0  # bytes a second; 0: no limit
        self.due = 0  # when what has been sent has had its time

    async def run(self):
        try:
            while self.relay.tls:
                head = await self.reader.readexactly(RECORD.size)
                kind, _version, length = RECORD.unpack(head)
                self.relay.log(self.direction, kind, length, "-", "-")
                await self.pass_on(Frame(kind, head, length))
            await self.pass_on(Frame("preamble", await self.reader.readexactly(PREAMBLE), 0))
            while True:
                head = await self.reader.readexactly(HEADER.size)
                kind, flags, length, session, item, _offset, _reserved = HEADER.unpack(head)
                self.relay.log(self.direction, kind, length, session, item, flags, self.connection)
                await self.pass_on(Frame(kind, head, length, flags))
        except asyncio.IncompleteReadError as e:
            # The end, perhaps in the middle: what came is what is passed on.
            await self.send(e.partial)
        if self.writer.can_write_eof():
            self.writer.write_eof()

    async def pass_on(self, frame):
        if frame.kind == "preamble":
            self.relay.log(self.direction, "preamble", PREAMBLE, "-", "-")
        for rule in self.relay.rules:
            if rule.fires(self.direction, frame.kind, frame.flags, self.connection):
                self.relay.log(self.direction, "action", rule.action, frame.kind, "-")
                if await ACTIONS[rule.action](self, frame, rule):
                    return
        await self.forward(frame)

    async def forward(self, frame, limit=None):
        """Sends head and payload, up to limit bytes of both together."""
        total = len(frame.head) + frame.length
        limit = total if limit is None else limit
        done = 0
        async for piece in self.pieces(frame):
            if frame.flip_at is not None and done <= frame.flip_at < done + len(piece):
                piece = bytearray(piece)
                piece[frame.flip_at - done] ^= 1
            await self.send(piece[:limit - done])
            done += len(piece)
            if done >= limit:
                return

    async def pieces(self, frame):
        yield frame.head
        left = frame.length
        while left:
            piece = await self.reader.read(min(left, PIECE))
            if not piece:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(piece)
            yield piece

    async def send(self, data):
        step = 1 if self.one_byte else len(data) or 1
        for i in range(0, len(data), step):
            self.writer.write(data[i:i + step])
            await self.writer.drain()
        if self.rate:
            now = asyncio.get_running_loop().time()
            self.due = max(self.due, now - BURST) + len(data) / self.rate
            await asyncio.sleep(max(0, self.due - now))


async def act_cut(flow, frame, rule):
    raise Cut()


async def act_cut_middle(flow, frame, rule):
    await flow.forward(frame, (len(frame.head) + frame.length) // 2)
    # A reset throws away what is still unsent: let the half arrive first.
    await asyncio.sleep(0.1)
    raise Cut()


async def act_close(flow, frame, rule):
    await flow.forward(frame)
    raise Cut(reset=False)


async def act_stall(flow, frame, rule):
    await asyncio.Event().wait()


async def act_garbage(flow, frame, rule):
    rng = random.Random(1)
    async for piece in flow.pieces(frame):
        await flow.send(rng.randbytes(len(piece)))
    return True


async def act_flip(flow, frame, rule):
    frame.flip_at = len(frame.head) + frame.length // 2 if frame.length else len(frame.head) // 2


async def act_drop(flow, frame, rule):
    async for _ in flow.pieces(frame):
        pass
    return True


async def act_delay(flow, frame, rule):
    await asyncio.sleep(rule.amount)


async def act_one_byte(flow, frame, rule):
    flow.one_byte = True


async def act_rate(flow, frame, rule):
    flow.rate = rule.amount


async def act_hold(flow, frame, rule):
    print("HELD", flow.direction, frame.kind, flush=True)
    await flow.relay.line_from_stdin()


# An action returns true when it has dealt with the frame; otherwise the frame goes on after it.
ACTIONS = {
    "cut": act_cut, "cut-middle": act_cut_middle, "close": act_close, "stall": act_stall, "garbage": act_garbage,
    "flip": act_flip, "drop": act_drop, "delay": act_delay, "one-byte": act_one_byte, "rate": act_rate, "hold": act_hold,
}


class Relay:
    def __init__(self, listen, connect, rules, log, tls=False):
        self.listen, self.target, self.rules, self.tls = listen, connect, rules, tls
        self._log = log
        self._stdin = None
        self._stdin_lock = asyncio.Lock()
        self.accepted = 0  # connections

    def log(self, direction, kind, length, session, item, flags=0, connection=0):
        if self._log:
            print(f"{time.time():.6f}", direction, kind, length, session, item, file=self._log, flush=True)

    async def line_from_stdin(self):
        async with self._stdin_lock:
            if not self._stdin:
                self._stdin = asyncio.StreamReader()
                await asyncio.get_running_loop().connect_read_pipe(
                    lambda: asyncio.StreamReaderProtocol(self._stdin), sys.stdin)
            await self._stdin.readline()

    async def serve(self):
        server = await asyncio.start_server(self.connection, *self.listen, limit=PIECE)
        print("LISTENING", flush=True)
        async with server:
            await server.serve_forever()

    async def connection(self, reader, writer):
        self.accepted += 1
        number = self.accepted
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target, limit=PIECE)
        except OSError as e:
            print(f"relay: {self.target[0]}:{self.target[1]}: {e}", file=sys.stderr, flush=True)
            finish(writer, reset=True)
            return
        for w in (writer, far_writer):
            w.transport.set_write_buffer_limits(PIECE)
            w.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flows = [Flow(self, "up", number, reader, far_writer), Flow(self, "down", number, far_reader, writer)]
        reset = await self.run_flows(flows)
        for w in (writer, far_writer):
            finish(w, reset)

    @staticmethod
    async def run_flows(flows):
        """Returns whether the connection is to be reset."""
        tasks = [asyncio.create_task(f.run()) for f in flows]
        try:
            await asyncio.gather(*tasks)
            return False
        except Cut as e:
            return e.reset
        except OSError:
            return True  # one side is gone hard; so it shall look to the other
        finally:
            for t in tasks:
                t.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def finish(writer, reset):
    if reset:
        s = writer.get_extra_info("socket")
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()


def endpoint(text):
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: not ADDRESS:PORT")
    return host.strip("[]"), int(port)


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--listen", type=endpoint, required=True)
    p.add_argument("--connect", type=endpoint, required=True)
    p.add_argument("--match", action="append", default=[])
    p.add_argument("--action", action="append", default=[])
    p.add_argument("--log", type=lambda path: open(path, "a", encoding="ascii"))
    p.add_argument("--tls", action="store_true")
    options = p.parse_args(argv)
    if len(options.match) != len(options.action):
        p.error("each --match needs its --action")
    try:
        options.rules = [Rule(m, a) for m, a in zip(options.match, options.action)]
    except (argparse.ArgumentTypeError, ValueError) as e:
        p.error(str(e))
    return options


async def main():
    options = parse(sys.argv[1:])
    await Relay(options.listen, options.connect, options.rules, options.log, options.tls).serve()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        os._exit(130)
