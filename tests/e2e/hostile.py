# SPDX-License-Identifier: Apache-2.0
"""A peer that breaks the protocol on purpose: what test_hostile.py tells, generated from tables.

    STATES of a link to an image-cache x every number of a frame   what may come there is in ALLOWED, all else is a break
    FIELDS of every message and frame x values that it may not have
    STATES x ways of ending a connection

Each case says what has to come of it: BREAK, a goodbye with a reason and the end of this connection; REFUSE, the end of
the snapshot, and the link lives; ALIVE, the link lives and answers.
"""

import socket
import ssl
import struct

import pytest

from failures import FRAMES, HEADER, NAMES, PREAMBLE, damaged, frame, hello, message, parse_message, varint, xxh3_128, xxh3_64

BREAK, REFUSE, ALIVE, CLOSE = "break", "refuse", "alive", "close"
PEER, USAGE = 4, 2
PAGE = bytes(range(256)) * 16
ADDRESS = 0x10000
TOP = 1 << 57
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
LIST_MAX = 1 << 18  # pages that a list may name
CONTROL_MAX, BULK_MAX = 1 << 16, 1 << 20

UNKNOWN = [0, 4, 99, 109, 130, 199, 203, 221, 1000, 65535]
NUMBERS = sorted({*FRAMES.values(), *UNKNOWN})


def name_of(number):
    return NAMES.get(number, f"type-{number}")


# ---- what is said ----

def bulk(kind, payload, item=1, offset=0, flags=0, session=1, length=None):
    """A data frame: the check is of the header alone."""
    head = HEADER.pack(FRAMES[kind], flags, len(payload) if length is None else length, session, item, offset, 0)[:24]
    return head + struct.pack("<Q", xxh3_64(head)) + payload


def begin(name="hostile", session=1, **more):
    return frame("SNAPSHOT_BEGIN", message(f1=name, f2=42, f3="hostile", f5=7, **more), session)


def run_of(address, pages):
    return struct.pack("<QQ", address, pages)


def sum_of(address, pages, digest=bytes(16)):
    return run_of(address, pages) + digest


def end_of(data, place=None):
    """ItemEnd of an image, or of a space with one frame of pages at a place."""
    said = data if place is None else struct.pack("<QQ", place, len(data)) + data
    return message(f1=len(data), f2=xxh3_128(said))


IMAGE = frame("IMAGE_BEGIN", message(f1="core-1.img"), 1, 1)
SPACE = frame("SPACE_BEGIN", message(f1=1, f2=42), 1, 1)
GOOD_IMAGE = IMAGE + bulk("IMAGE_DATA", b"abc") + frame("IMAGE_END", end_of(b"abc"), 1, 1)
GOOD_END = frame("SNAPSHOT_END", message(f1=1, f3=3))
SESSION = begin() + GOOD_IMAGE + GOOD_END
CHECK = frame("CHECK", message(f2="6.1.0"), 0)

# A frame of every type, as it ought to be, for item 1 of session 1.
WELL_FORMED = {
    "HELLO": hello(), "GOODBYE": message(f2="bye"), "HEARTBEAT": b"", "SNAPSHOT_BEGIN": message(f1="again", f2=42),
    "SNAPSHOT_END": b"", "SNAPSHOT_ABORT": message(f1=1, f2="no"), "VERDICT": message(f1="none", f4=1),
    "CHECK": message(f2="6.1.0"), "SETTLED": message(f1="none", f2=1), "STREAM_JOIN": message(f1=bytes(16), f2=1),
    "SNAPSHOT_ACCEPT": b"", "SNAPSHOT_ACK": b"", "SNAPSHOT_REFUSE": message(f1=1, f2="no"), "VERDICT_ACK": message(f1="none"),
    "CHECKED": b"", "PREPARED": message(f1="none"), "RESTORED": message(f1="none"), "RESTORE_FAILED": message(f1="none"),
    "STREAM_JOINED": b"", "FREEZING": b"", "IMAGE_BEGIN": message(f1="more.img"), "IMAGE_END": end_of(b""), "SPACE_BEGIN": message(f1=1, f2=43),
    "SPACE_END": message(f2=xxh3_128(b"")), "ROUND_END": b"",
}
DATA = {"IMAGE_DATA": b"abc", "PAGES": PAGE, "PAGE_RUNS": run_of(ADDRESS, 1), "PAGE_SUMS": sum_of(ADDRESS, 1)}


def any_frame(number, item=1, session=1):
    """A frame of this number; one that is not known has no payload."""
    kind = next((k for k, v in FRAMES.items() if v == number), None)
    if kind in DATA:
        flags = 1 if kind == "PAGE_RUNS" else 0
        return bulk(kind, DATA[kind], item, ADDRESS if kind == "PAGES" else 0, flags, session)
    return frame(number, WELL_FORMED.get(kind, b""), session, item)


# ---- a connection ----

class Link:
    """The hostile end of a connection.  It beats no heart: a case is over before anybody minds."""

    def __init__(self, sock, patience=20):
        self.sock = sock
        sock.settimeout(patience)
        self.refusal = self.token = None
        self.own = None  # of a data connection: its session's link
        self.name = "hostile"  # of its snapshot

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.close()

    def say(self, data):
        """False when the other side has closed the connection before all of it was taken."""
        try:
            self.sock.sendall(data)
            return True
        except (ConnectionError, ssl.SSLError):
            return False

    def exactly(self, n):
        data = b""
        while len(data) < n:
            piece = self.sock.recv(n - len(data))
            if not piece:
                raise ConnectionResetError("closed")
            data += piece
        return data

    def hear(self):
        """The next frame that is no heartbeat: (number, payload); (None, None) at the end of the connection."""
        while True:
            try:
                number, _, length, self.heard_session, _, _, _ = HEADER.unpack(self.exactly(HEADER.size))
                payload = self.exactly(length)
            except (ConnectionError, ssl.SSLError):
                return None, None
            if number == FRAMES["SNAPSHOT_REFUSE"]:
                self.refusal = parse_message(payload)
            if number != FRAMES["HEARTBEAT"]:
                return number, payload

    def hear_until(self, kind):
        while True:
            number, payload = self.hear()
            if number == FRAMES[kind]:
                return payload
            assert number is not None, f"the connection ended in front of {kind}"
            assert number != FRAMES["GOODBYE"], f"{parse_message(payload)} in front of {kind}"

    def greet(self):
        self.say(PREAMBLE + frame("HELLO", hello(), 0))
        self.exactly(len(PREAMBLE))
        self.hear_until("HELLO")

    def open(self, data=b"", **more):
        self.greet()
        self.say(begin(self.name, **more))
        payload = self.hear_until("SNAPSHOT_ACCEPT")
        self.token = parse_message(payload).get(1)
        self.say(data)

    def end(self):
        """Hears the connection out: the Failure of its goodbye, {} when there was none."""
        said = {}
        while True:
            number, payload = self.hear()
            if number is None:
                return said
            if number == FRAMES["GOODBYE"]:
                said = parse_message(payload)

    def lives(self):
        """Whether it answers a question."""
        self.say(CHECK)
        while True:
            number, _ = self.hear()
            if number is None or number == FRAMES["GOODBYE"]:
                return False
            if number == FRAMES["CHECKED"]:
                return True


def shut(sock):
    """Says that no more comes, and can still hear, also by TLS."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_WR)
    except OSError:
        pass  # it has been reset


def is_reason(said):
    """Whether a goodbye says what was wrong, to people."""
    text = said.get(2, b"").decode()
    return said.get(1) == PEER and 8 < len(text) < 480 and text.isprintable()


# ---- states of a link, as an image-cache sees them ----

def connected(link, connect):
    pass


def greeted(link, connect):
    link.say(PREAMBLE)


def up(link, connect):
    link.greet()


def opened(link, connect):
    link.open()


def in_image(link, connect):
    link.open(IMAGE)


def in_space(link, connect):
    link.open(SPACE)


def refused(link, connect):
    link.greet()
    link.say(begin(".."))
    link.hear_until("SNAPSHOT_REFUSE")


def closed(link, connect):
    """The snapshot is whole, and dropped again by a verdict: nothing is left of the session."""
    link.open(GOOD_IMAGE + GOOD_END)
    link.hear_until("SNAPSHOT_ACK")
    link.say(frame("VERDICT", message(f1=link.name, f3="no", f4=7), 0))
    link.hear_until("VERDICT_ACK")


def joined(link, connect):
    """A data connection; the session's own link is link.own."""
    link.own = connect()
    link.own.name = link.name
    link.own.open(SPACE, f9=2)
    link.greet()
    link.say(frame("STREAM_JOIN", message(f1=link.own.token, f2=1)))
    link.hear_until("STREAM_JOINED")


STATES = [connected, greeted, up, opened, in_image, in_space, refused, closed, joined]
LINK = {"HEARTBEAT", "GOODBYE"}
ANYTIME = LINK | {"VERDICT", "CHECK", "SETTLED"}
ITEMS = {"IMAGE_BEGIN", "SPACE_BEGIN"}

# Frames, as any_frame() makes them, that do not break the link.
ALLOWED = {
    connected: set(),
    greeted: {"HELLO", "GOODBYE"},
    up: ANYTIME | {"SNAPSHOT_BEGIN"},
    opened: ANYTIME | ITEMS | {"FREEZING", "ROUND_END", "SNAPSHOT_END", "SNAPSHOT_ABORT"},
    in_image: ANYTIME | {"FREEZING", "IMAGE_DATA", "IMAGE_END", "ROUND_END", "SNAPSHOT_ABORT"},
    in_space: ANYTIME | {"FREEZING", "PAGES", "PAGE_RUNS", "PAGE_SUMS", "SPACE_END", "ROUND_END", "SNAPSHOT_ABORT"},
    # Everything of the session is swallowed, until its end.
    refused: ANYTIME | ITEMS | {"FREEZING", "IMAGE_DATA", "IMAGE_END", "PAGES", "PAGE_RUNS", "PAGE_SUMS", "SPACE_END", "ROUND_END",
                                "SNAPSHOT_END", "SNAPSHOT_ABORT"},
    closed: ANYTIME | {"SNAPSHOT_BEGIN"},
    joined: LINK | {"ROUND_END", "SNAPSHOT_END"},
}


def wanted(state, number):
    kind = next((k for k, v in FRAMES.items() if v == number), None)
    if kind == "GOODBYE" and state is not connected:
        return CLOSE
    if kind == "PAGE_SUMS" and state is in_space:
        return REFUSE  # that page is not there
    return ALIVE if kind in ALLOWED[state] else BREAK


def table_cases():
    """Every number in every state."""
    for state in STATES:
        for number in NUMBERS:
            yield f"{state.__name__}: {name_of(number)}", state, any_frame(number), wanted(state, number)


# ---- fields ----

def bad_ids():
    return ["", ".", "..", ".hidden", "../x", "a/b", "/", "a b", "a" * 65, "a" * 4096, "\u00e9", "a\\b", "~", "%2e%2e"]


def bad_names():
    return ["", ".", "..", "a/b", "/etc/passwd", "../x", "../../../run/godwit/cache.sock", "a" * 256, "a/", "a\x01", "a\x7f", "a\nb"]


def deep(n):
    """A message that says to be longer than it is."""
    return varint(1 << 3 | 2) + varint(n) + b"x"


def broken_messages():
    """What is no message of any kind, or one that may not come."""
    return {"of garbage": b"\xff" * 40, "cut short": message(f1="hostile")[:-2], "with an endless length": deep(U64),
            "with a length of 2 GiB": deep(1 << 31), "with an endless number": b"\x08" + b"\xff" * 11, "with a group": b"\x0b\x0c",
            "with field 0": b"\x02\x01x", "with a string that is too long": message(f1="x" * 4097),
            "with a control character": message(f1="a\x1bb")}


def field_cases():
    for ident in bad_ids():
        yield f"snapshot-begin: id {ident[:12]!r} of {len(ident)}", up, begin(ident), REFUSE
    for streams in (17, 1000, U32):
        yield f"snapshot-begin: {streams} streams", up, begin(f9=streams), REFUSE
    yield "snapshot-begin: a restore, and nobody accepts", up, begin(f6=1), REFUSE
    yield "snapshot-begin: 200 options", up, frame("SNAPSHOT_BEGIN", message(f1="hostile") + message(f7="--shell-job") * 200), REFUSE
    yield "snapshot-begin: options of 20 KiB", up, frame("SNAPSHOT_BEGIN", message(f1="hostile") + message(f7="-" + "v" * 2000) * 10), REFUSE
    for option in ("-D/", "-W/", "--images-dir", "--log-file=/etc/x"):
        yield f"snapshot-begin: option {option!r}", up, begin(f7=option), REFUSE
    yield "snapshot-begin: a session that is open", opened, begin("other"), BREAK
    yield "snapshot-begin: an id that is taken", opened, begin("hostile", 2), REFUSE
    yield "snapshot-begin: 257 at once", up, b"".join(begin("..", n) for n in range(1, 258)), BREAK
    yield "snapshot-begin: a zero byte ends an id", up, begin("hostile\0/../x"), ALIVE
    for session in (0, U32):
        yield f"snapshot-begin: session {session}", up, begin(session=session), ALIVE

    for name in bad_names():
        yield f"image-begin: name {name[:12]!r} of {len(name)}", opened, frame("IMAGE_BEGIN", message(f1=name), 1, 1), BREAK
    yield "image-begin: the longest name", opened, frame("IMAGE_BEGIN", message(f1="a" * 255), 1, 1), ALIVE
    yield "image-begin: a name for the second time", in_image, frame("IMAGE_BEGIN", message(f1="core-1.img"), 1, 2), REFUSE
    yield "image-begin: a name of the cache's own", in_space, frame("IMAGE_BEGIN", message(f1="pages-1.img"), 1, 2), REFUSE
    for kind in (0, 3, 255, 1 << 31):
        yield f"space-begin: kind {kind}", opened, frame("SPACE_BEGIN", message(f1=kind, f2=42), 1, 1), BREAK
    for n in (0, U64):
        yield f"space-begin: task {n}", opened, frame("SPACE_BEGIN", message(f1=1, f2=n), 1, 1), ALIVE

    for state, first in ((opened, 1), (in_image, 2), (in_space, 2)):
        for item in (0, first + 1, U32):
            for kind in ("IMAGE_BEGIN", "SPACE_BEGIN"):
                yield f"{state.__name__}: {kind.lower()} {item}, not {first}", state, any_frame(FRAMES[kind], item), BREAK
    for kind, state in (("IMAGE_DATA", in_image), ("IMAGE_END", in_image), ("PAGES", in_space), ("PAGE_RUNS", in_space),
                        ("PAGE_SUMS", in_space), ("SPACE_END", in_space)):
        for item in (0, 2, U32):
            yield f"{kind.lower()}: item {item}", state, any_frame(FRAMES[kind], item), BREAK

    for offset in (1, 4096, 1 << 63, U64):
        yield f"image-data: offset {offset}", in_image, bulk("IMAGE_DATA", b"abc", offset=offset), BREAK
    for address in (1, 0xfff, TOP - 1, TOP, TOP + 4096, 1 << 63, U64 - 4095, U64):
        yield f"pages: at {address:#x}", in_space, bulk("PAGES", PAGE, offset=address), BREAK
    yield "pages: beyond the end", in_space, bulk("PAGES", PAGE * 2, offset=TOP - 4096), BREAK
    yield "pages: the last there is", in_space, bulk("PAGES", PAGE, offset=TOP - 4096), ALIVE
    for length in (1, 4095, 4097, BULK_MAX - 1):
        yield f"pages: {length} bytes", in_space, bulk("PAGES", (PAGE * 257)[:length], offset=ADDRESS), BREAK
    for flags in (4, 8, 0x8000, 0xffff):
        yield f"pages: flags {flags:#x}", in_space, bulk("PAGES", PAGE, offset=ADDRESS, flags=flags), BREAK
    for flags in (0, 3, 5, 6, 7, 8, 0xffff):
        yield f"page-runs: flags {flags:#x}", in_space, bulk("PAGE_RUNS", run_of(ADDRESS, 1), flags=flags), BREAK
    for flags in (1, 2, 4):
        for length in (1, 15, 17):
            yield f"page-runs/{flags}: {length} bytes", in_space, bulk("PAGE_RUNS", bytes(length), flags=flags), BREAK
        offsets = (0, 1, 2, U64) if flags == 4 else (1, U64)
        for offset in offsets:
            yield f"page-runs/{flags}: offset {offset}", in_space, bulk("PAGE_RUNS", run_of(ADDRESS, 1), flags=flags, offset=offset), BREAK
    for flags in (1, 2):
        for address, pages in ((1, 1), (ADDRESS, 0), (ADDRESS, U64), (ADDRESS, 1 << 45), (TOP, 1), (U64 - 4095, 1), (TOP - 4096, 2),
                               (ADDRESS, 1 << 52)):
            yield f"page-runs/{flags}: {pages} at {address:#x}", in_space, bulk("PAGE_RUNS", run_of(address, pages), flags=flags), BREAK
        yield f"page-runs/{flags}: the most", in_space, bulk("PAGE_RUNS", run_of(0, LIST_MAX), flags=flags), ALIVE
        yield f"page-runs/{flags}: one too many", in_space, bulk("PAGE_RUNS", run_of(0, LIST_MAX + 1), flags=flags), BREAK
        yield (f"page-runs/{flags}: the same again and again", in_space,
               bulk("PAGE_RUNS", run_of(ADDRESS, 1 << 14) * 65536, flags=flags), BREAK)
        yield (f"page-runs/{flags}: all that there can be, bit by bit", in_space,
               b"".join(bulk("PAGE_RUNS", run_of(n << 30, LIST_MAX), flags=flags) for n in range(64)), REFUSE)
    yield "space-begin: on a data connection, what its session has not", joined, frame("SPACE_BEGIN", message(f1=2, f2=42), 1, 1), BREAK
    yield "space-begin: on a data connection, as its session", joined, SPACE, ALIVE
    yield "pages: on a data connection", joined, SPACE + bulk("PAGES", PAGE, offset=ADDRESS), ALIVE
    yield "pages: on a data connection, beyond all", joined, SPACE + bulk("PAGES", PAGE, offset=TOP), BREAK
    yield "page-sums: on a data connection, of nothing", joined, SPACE + bulk("PAGE_SUMS", sum_of(ADDRESS, 1)), REFUSE
    yield "round-end: of another session", joined, frame("ROUND_END", session=2), BREAK
    two = frame("SPACE_BEGIN", message(f1=1, f2=43), 1, 2)
    for address, pages in ((1, 1), (ADDRESS, 0), (ADDRESS, 1), (ADDRESS, U64), (TOP, 1)):
        yield (f"page-runs/4: {pages} at {address:#x}, which have not come", in_space,
               two + bulk("PAGE_RUNS", run_of(address, pages), flags=4, offset=2), BREAK)
    for pages in (0, 257, U64):
        yield f"page-sums: of {pages} pages", in_space, bulk("PAGE_SUMS", sum_of(ADDRESS, pages)), BREAK
    yield "page-sums: too many", in_space, bulk("PAGE_RUNS", run_of(ADDRESS, 256), flags=1) + bulk(
        "PAGE_SUMS", sum_of(ADDRESS, 256, xxh3_128(bytes(256 * 4096))) * 1025), BREAK
    yield "page-sums: at an odd address", in_space, bulk("PAGE_SUMS", sum_of(ADDRESS + 1, 1)), BREAK
    for length in (1, 16, 31, 33):
        yield f"page-sums: {length} bytes", in_space, bulk("PAGE_SUMS", bytes(length)), BREAK
    yield "page-sums: with an offset", in_space, bulk("PAGE_SUMS", sum_of(ADDRESS, 1), offset=1), BREAK
    yield "page-sums: flags", in_space, bulk("PAGE_SUMS", sum_of(ADDRESS, 1), flags=1), BREAK
    for address in (ADDRESS, TOP, U64 - 4095):
        yield f"page-sums: of nothing at {address:#x}", in_space, bulk("PAGE_SUMS", sum_of(address, 1)), REFUSE
    yield ("page-sums: another digest", in_space,
           bulk("PAGES", PAGE, offset=ADDRESS) + bulk("PAGE_SUMS", sum_of(ADDRESS, 1)), REFUSE)

    for state, kind in ((in_image, "IMAGE_END"), (in_space, "SPACE_END")):
        for length in (0, 1, 15, 17, 1000):
            yield f"{kind.lower()}: a digest of {length} bytes", state, frame(kind, message(f2=bytes(length)), 1, 1), BREAK
        yield f"{kind.lower()}: another digest", state, frame(kind, message(f2=bytes(16)), 1, 1), REFUSE
        for n in (1, U64):
            yield f"{kind.lower()}: {n} bytes, and there were none", state, frame(kind, message(f1=n, f2=xxh3_128(b"")), 1, 1), REFUSE
    yield "image-end: an image with a bit turned", in_image, damaged(bulk("IMAGE_DATA", b"abc")) + frame("IMAGE_END", end_of(b"abc"), 1, 1), REFUSE
    yield ("space-end: a page that exists and has not come", in_space, bulk("PAGE_RUNS", run_of(ADDRESS, 1), flags=2)
           + frame("SPACE_END", message(f1=16, f2=xxh3_128(struct.pack("<QQ", 2, 16) + run_of(ADDRESS, 1)), f3=1), 1, 1), REFUSE)
    yield ("space-end: pages at another place", in_space, bulk("PAGES", PAGE, offset=ADDRESS)
           + frame("SPACE_END", end_of(PAGE, ADDRESS + 4096), 1, 1), REFUSE)
    for kind, state, again in (("IMAGE_END", in_image, end_of(b"")), ("SPACE_END", in_space, end_of(b""))):
        yield f"{kind.lower()}: twice", state, frame(kind, again, 1, 1) * 2, BREAK
    for sums in (dict(f1=2, f3=3), dict(f1=1, f3=4), dict(f1=1, f2=1, f3=3), dict(f1=U32, f3=3), dict(f1=1, f3=U64), {}):
        yield f"snapshot-end: {sums}", opened, GOOD_IMAGE + frame("SNAPSHOT_END", message(**sums)), BREAK
    yield "snapshot-end: with an item open", in_image, frame("SNAPSHOT_END", message(f1=1)), BREAK
    yield "snapshot-end: before all streams have come", up, begin(f9=2) + frame("SNAPSHOT_END"), BREAK
    for flags in (0, 2, U32 >> 16):
        pagemap = struct.pack("<II", 0x54564319, 0x56084025) + struct.pack("<I", flags) + b"\xff" * 8
        yield (f"snapshot-end: a pagemap that is none ({flags})", opened,
               frame("IMAGE_BEGIN", message(f1="pagemap-1.img"), 1, 1) + bulk("IMAGE_DATA", pagemap)
               + frame("IMAGE_END", end_of(pagemap), 1, 1) + frame("SNAPSHOT_END", message(f1=1, f3=len(pagemap))), REFUSE)

    fields = b"\x78\x01" * BULK_MAX  # each of which is remembered, in many times the memory
    grows = struct.pack("<III", 0x54564319, 0x50273030, len(fields)) + fields
    yield ("snapshot-end: an image that grows", opened,
           frame("IMAGE_BEGIN", message(f1="pstree.img"), 1, 1) + b"".join(
               bulk("IMAGE_DATA", grows[i:i + BULK_MAX], offset=i) for i in range(0, len(grows), BULK_MAX))
           + frame("IMAGE_END", end_of(grows), 1, 1) + frame("SNAPSHOT_END", message(f1=1, f3=len(grows))), REFUSE)

    for length in (0, 1, 15, 17, 4000):
        yield f"stream-join: a token of {length}", up, frame("STREAM_JOIN", message(f1=bytes(length), f2=1)), BREAK
    for stream in (0, 1, 2, 15, 16, U32):
        yield f"stream-join: {stream}, of nobody", up, frame("STREAM_JOIN", message(f1=bytes(16), f2=stream)), BREAK
    for ident in ("none", "", "..", "a" * 4096, "../../etc"):
        yield f"verdict: of {ident[:12]!r}", up, frame("VERDICT", message(f1=ident, f2=1, f4=1), 0), ALIVE
        yield f"settled: of {ident[:12]!r}", up, frame("SETTLED", message(f1=ident, f2=1), 0), ALIVE
    yield "check: 1,500 files", up, frame("CHECK", message(f6=message(f1=1, f2="/no/such/file")) * 1500, 0), ALIVE
    yield "check: files of all kinds", up, frame("CHECK", b"".join(
        message(f6=message(f1=k, f2=p, f3=U64, f4=bytes(200), f5=U32)) for k in (0, 1, 2, 99)
        for p in ("", ".", "/", "/dev/zero", "/proc/self/mem", "/dev/full", "/run/godwit/cache.sock", "x" * 4000)), 0), ALIVE
    yield "check: pids of all kinds", up, frame("CHECK", b"".join(message(f4=n) for n in (0, 1, 2, 1 << 22, U32)) * 200, 0), ALIVE
    yield "check: memory without end", up, frame("CHECK", message(f5=U64), 0), ALIVE
    yield "check: words of all kinds", up, frame("CHECK", message(f1="%s%n" * 500, f2="9" * 4000, f3="x" * 4096, f7="--x" * 999), 0), ALIVE

    kinds = {up: ("SNAPSHOT_BEGIN", "VERDICT", "CHECK", "SETTLED", "STREAM_JOIN"),
             opened: ("IMAGE_BEGIN", "SPACE_BEGIN", "SNAPSHOT_END", "SNAPSHOT_ABORT")}
    for state, names in kinds.items():
        for kind in names:
            for what, payload in broken_messages().items():
                # Field 1 is no string everywhere; one of another type is not known, and that is no harm.
                if what.startswith("with a string") and kind in ("SPACE_BEGIN", "SNAPSHOT_END", "SNAPSHOT_ABORT", "STREAM_JOIN"):
                    continue
                if what.startswith("with a control") and kind not in ("SNAPSHOT_BEGIN", "VERDICT", "CHECK", "SETTLED", "IMAGE_BEGIN"):
                    continue
                yield f"{kind.lower()}: {what}", state, frame(kind, payload, 1, 1), BREAK


def frame_cases():
    """What no frame may be, in every state in which frames come."""
    for state in STATES[1:]:
        kind = "HELLO" if state is greeted else "HEARTBEAT"
        payload = hello() if state is greeted else b""
        yield f"{state.__name__}: a wrong check", state, frame(kind, payload, check=1), BREAK
        yield f"{state.__name__}: flags", state, frame(kind, payload, flags=1), BREAK
        yield f"{state.__name__}: a message with a bit turned", state, damaged(frame("VERDICT" if kind == "HEARTBEAT" else kind, payload or message(f1="none"))), BREAK
        for length in (CONTROL_MAX + 1, BULK_MAX, 1 << 31, U32):
            yield f"{state.__name__}: a message of {length} bytes", state, frame(kind, b"", length=length), BREAK
        for bulk_kind in DATA:
            yield f"{state.__name__}: {bulk_kind.lower()} without data", state, bulk(bulk_kind, b""), BREAK
            yield f"{state.__name__}: {bulk_kind.lower()} of {BULK_MAX + 1} bytes", state, bulk(bulk_kind, b"", length=BULK_MAX + 1), BREAK
        yield f"{state.__name__}: garbage", state, b"\xa5" * 64, BREAK
        yield f"{state.__name__}: another protocol", state, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", BREAK


def first_cases():
    """What is said first."""
    for magic in (b"GODWIT\r\n", b"godwit\n\r", bytes(8), b"\xff" * 8, b"SSH-2.0-", b"HTTP/1.1"):
        yield f"preamble: {magic!r}", connected, magic + PREAMBLE[8:], BREAK
    for major in (0, 2, 255, 65535):
        yield f"preamble: major {major}", connected, PREAMBLE[:8] + struct.pack("<HHI", major, 0, 0), BREAK
    for minor, zero in ((0, 0), (1, 0), (65535, U32)):
        yield f"preamble: minor {minor}", connected, PREAMBLE[:8] + struct.pack("<HHI", 1, minor, zero) + frame("HELLO", hello(), 0), ALIVE
    for change, want in ((dict(f3=0), BREAK), (dict(f3=512), BREAK), (dict(f3=65536), BREAK), (dict(f3=U32), BREAK), (dict(f4=""), BREAK),
                         (dict(f4="vax"), BREAK), (dict(f4="x" * 4096), BREAK), (dict(f4="x" * 4097), BREAK), (dict(f1="\x1b[2J"), BREAK),
                         (dict(f2="a\nb"), BREAK), (dict(f2="x" * 4000), ALIVE), (dict(f2="x" * 4096), BREAK), (dict(f1="", f2=""), ALIVE), (dict(f2="%s%n%d"), ALIVE),
                         (dict(f5=0), ALIVE), (dict(f5=1), ALIVE), (dict(f5=U32), ALIVE)):
        yield f"hello: {str(change)[:40]} ({len(str(change))})", greeted, frame("HELLO", hello(**change), 0), want


def named(cases):
    """The names of cases as pytest can show them."""
    return [pytest.param(name, id=name.replace("[", "(").replace("]", ")")) for name in cases]


def cases():
    """(name, state, bytes, what has to come of it), each name once."""
    return [*table_cases(), *field_cases(), *frame_cases(), *first_cases()]


# ---- TLS, before anybody is known ----

def record(kind, body, version=0x0303, length=None):
    return struct.pack(">BHH", kind, version, len(body) if length is None else length) + body


def strangers():
    """(name, bytes): said to a port that speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    client_hello = outgoing.read()
    yield "plain text", PREAMBLE + frame("HELLO", hello(), 0)
    yield "another protocol", b"GET / HTTP/1.1\r\n\r\n"
    yield "SSL 2", b"\x80\x2e\x01\0\x02\0\x15\0\0\0\x10" + bytes(40)
    for kind in (0, 20, 21, 23, 24, 255):
        yield f"a record of kind {kind}", record(kind, bytes(64))
    for length in (0, 16385, 65535):
        yield f"a record of {length} bytes", record(22, bytes(64) if length else b"", length=length)
    for version in (0, 0x0300, 0x0400, 0xffff):
        yield f"a record of version {version:#x}", record(22, client_hello[5:], version)
    for kind in (0, 2, 8, 11, 13, 15, 20, 24, 254):
        yield f"handshake message {kind} first", record(22, bytes([kind, 0, 0, 32]) + bytes(32))
    for length in (0, 1, 1 << 16, (1 << 24) - 1):
        yield f"a hello of {length} bytes", record(22, b"\x01" + struct.pack(">I", length)[1:] + client_hello[9:])
    yield "a hello, twice", client_hello * 2
    yield "a hello, then data", client_hello + record(23, bytes(64))
    yield "a hello, then plain text", client_hello + PREAMBLE
    for at in range(5, len(client_hello), 23):
        turned = bytearray(client_hello)
        turned[at] ^= 0xff
        yield f"a hello with byte {at} turned", bytes(turned)
    for at in range(0, len(client_hello), 61):
        yield f"a hello cut short at {at}", client_hello[:at]
