# SPDX-License-Identifier: Apache-2.0
"""A peer that lies, by hand: to an image-cache and to an image-proxy.  What each case is judged by is in failures.py.
Generated from the table of states and messages they are in test_hostile.py.  GODWIT_FULL=1 runs more of each,
GODWIT_SEED=N repeats the random ones.
"""

import os
import random
import time

import pytest

import bed as testbed
from failures import (FRAMES, FULL, PREAMBLE, WORKDIR, Broken, Lane, Lanes, Wire, check_calm, damaged, follow_up, frame,
                      hello, in_network, judge, message, migrate, parse_message, varint, xxh3_128)

SEED = int(os.environ.get("GODWIT_SEED") or random.SystemRandom().randrange(1 << 32))


@pytest.fixture(scope="module")
def lanes():
    made = Lanes()
    yield made
    made.close()


@pytest.fixture
def lane():
    made = Lane()
    yield made
    made.close()


# ---- 1. to the cache ----

def image(number, name, session=1):
    return frame("IMAGE_BEGIN", message(f1=name), session, number)


def data(number, content, offset=0, session=1, **kw):
    return frame("IMAGE_DATA", content, session, number, offset, **kw)


def image_end(number, content, session=1, **change):
    return frame("IMAGE_END", message(**{"f1": len(content), "f2": xxh3_128(content), **change}), session, number)


def whole_image(number, name, content, session=1):
    return image(number, name, session) + data(number, content, 0, session) + image_end(number, content, session)


def space(number, kind=1, ident=5, session=1):
    return frame("SPACE_BEGIN", message(f1=kind, f2=ident), session, number)


PAGE = bytes(range(256)) * 16
NONCE = 77


def pages(number, vaddr, content=PAGE, session=1, **kw):
    return frame("PAGES", content, session, number, vaddr, **kw)


def space_end(number, runs, session=1, **change):
    """runs: [(vaddr, content)], a frame each."""
    digest = xxh3_128(b"".join(v.to_bytes(8, "little") + len(c).to_bytes(8, "little") + c for v, c in runs))
    return frame("SPACE_END", message(**{"f1": sum(len(c) for _, c in runs), "f2": digest, **change}), session, number)


def end(images=0, spaces=0, total=0, session=1):
    return frame("SNAPSHOT_END", message(f1=images, f2=spaces, f3=total), session)


def begin(ident="lie", session=1):
    return frame("SNAPSHOT_BEGIN", message(f1=ident, f2=5, f3="liar", f5=NONCE), session)


def verdict(ident, commit, nonce=None):
    return frame("VERDICT", message(f1=ident, f2=commit, f3="a lie", f4=nonce or NONCE), 0)


def pagemap(pages_id, vaddr, count):
    head = message(f1=pages_id)
    entry = message(f1=vaddr, f2=count, f4=4)
    return b"".join(x.to_bytes(4, "little") for x in (0x54564319, 0x56084025)) + b"".join(
        len(m).to_bytes(4, "little") + m for m in (head, entry))


GOOD = b"content of an image"
TOP = 1 << 64

# What a proxy may say once its snapshot, session 1, is accepted; and what the cache must do:
# "goodbye": it ends the link and says why, "refuse": the snapshot is refused and the link goes on, "ack": all is well.
LIES_IN_SESSION = [
    ("honest", "ack", whole_image(1, "a.img", GOOD) + space(2) + pages(2, 0x10000) + space_end(2, [(0x10000, PAGE)])
     + end(1, 1, len(GOOD) + len(PAGE))),
    ("an empty image", "ack", image(1, "a.img") + image_end(1, b"") + end(1)),
    ("a name of 255 bytes", "ack", whole_image(1, "n" * 255, GOOD) + end(1, 0, len(GOOD))),
    *[(f"image name {name[:20]!r} ({len(name)})", "goodbye", image(1, name))
      for name in ("", ".", "..", "../x", "a/b", "/etc/passwd", "../../../../tmp/x", "n" * 256, "n" * 60000, "a\nb", "a\x1bb")],
    ("a name that is not text", "goodbye", image(1, b"\xff\xfe/..") + data(1, GOOD) + image_end(1, b"") + end(1)),
    ("the same name twice", "refuse", whole_image(1, "a.img", GOOD) + image(2, "a.img")),
    ("an image in the place of the pages", "refuse", whole_image(1, "pages-1.img", GOOD) + space(2)),
    ("pages in the place of an image", "refuse", space(1) + image(2, "pages-1.img")),
    ("an image in the place of a pagemap", "refuse", whole_image(1, "pagemap-5.img", GOOD) + space(2)
     + pages(2, 0x10000) + space_end(2, [(0x10000, PAGE)])),
    ("a pagemap that promises more than there is", "refuse",
     whole_image(1, "pages-1.img", PAGE) + whole_image(2, "pagemap-5.img", pagemap(1, 0x10000, 2))
     + end(2, 0, len(PAGE) + len(pagemap(1, 0x10000, 2)))),
    ("a pagemap of 2^63 pages", "refuse",
     whole_image(1, "pages-1.img", PAGE) + whole_image(2, "pagemap-5.img", pagemap(1, 0x10000, 1 << 63))
     + end(2, 0, len(PAGE) + len(pagemap(1, 0x10000, 1 << 63)))),
    ("a pagemap of rubbish", "refuse", whole_image(1, "pagemap-5.img", GOOD) + end(1, 0, len(GOOD))),
    *[(f"first item {n}", "goodbye", image(n, "a.img")) for n in (0, 2, 1 << 31, (1 << 32) - 1)],
    ("an item number again", "goodbye", image(1, "a.img") + image(1, "b.img")),
    ("data for an item that is closed", "goodbye", whole_image(1, "a.img", GOOD) + data(1, GOOD, len(GOOD))),
    ("data for an item that never was", "goodbye", data(1, GOOD)),
    ("data for item 0", "goodbye", image(1, "a.img") + data(0, GOOD)),
    ("data for another session", "goodbye", image(1, "a.img") + data(1, GOOD, session=2)),
    ("image data for memory", "goodbye", space(1) + data(1, PAGE)),
    ("pages for an image", "goodbye", image(1, "a.img") + pages(1, 0x10000)),
    ("a gap in an image", "goodbye", image(1, "a.img") + data(1, GOOD, 1)),
    ("an image backwards", "goodbye", image(1, "a.img") + data(1, GOOD) + data(1, GOOD, 0)),
    *[(f"image data at {offset:#x}", "goodbye", image(1, "a.img") + data(1, GOOD, offset)) for offset in (1 << 63, TOP - 1, TOP - len(GOOD))],
    *[(f"a page at {vaddr:#x}", "goodbye", space(1) + pages(1, vaddr)) for vaddr in (1, 0x10800, TOP - 1, TOP - 4096, 1 << 63)],
    ("pages beyond the end of all addresses", "goodbye", space(1) + pages(1, TOP - 4096, PAGE * 2)),
    ("half a page", "goodbye", space(1) + pages(1, 0x10000, PAGE[:2048])),
    ("no page", "goodbye", space(1) + pages(1, 0x10000, b"") + space_end(1, []) + end(0, 1)),
    ("unknown flags of pages", "goodbye", space(1) + pages(1, 0x10000, flags=0x8000)),
    ("no data for no item", "goodbye", data(77, b"") + end()),
    ("memory of no kind", "goodbye", space(1, 0)),
    ("memory of an unknown kind", "goodbye", space(1, 9)),
    ("memory of a negative kind", "goodbye", space(1, TOP - 1)),
    ("the same memory twice", "refuse", space(1) + pages(1, 0x10000) + space_end(1, [(0x10000, PAGE)]) + space(2)
     + pages(2, 0x10000) + space_end(2, [(0x10000, PAGE)]) + end(0, 2, 2 * len(PAGE))),
    ("a wrong digest", "refuse", image(1, "a.img") + data(1, GOOD) + image_end(1, GOOD, f2=bytes(16))),
    ("a wrong digest of memory", "refuse", space(1) + pages(1, 0x10000) + space_end(1, [(0x11000, PAGE)])),
    ("a digest of 15 bytes", "goodbye", image(1, "a.img") + data(1, GOOD) + image_end(1, GOOD, f2=xxh3_128(GOOD)[:15])),
    ("no digest", "goodbye", image(1, "a.img") + data(1, GOOD) + image_end(1, GOOD, f2=b"")),
    ("a wrong size", "refuse", image(1, "a.img") + data(1, GOOD) + image_end(1, GOOD, f1=len(GOOD) + 1)),
    ("a size of 2^64 - 1", "refuse", image(1, "a.img") + data(1, GOOD) + image_end(1, GOOD, f1=TOP - 1)),
    ("the end of an image twice", "goodbye", whole_image(1, "a.img", GOOD) + image_end(1, GOOD)),
    ("the end of memory for an image", "goodbye", image(1, "a.img") + space_end(1, [])),
    ("the end with an item open", "goodbye", image(1, "a.img") + end(1)),
    *[(f"a wrong sum {counts}", "goodbye", whole_image(1, "a.img", GOOD) + end(*counts))
      for counts in ((0, 0, len(GOOD)), (2, 0, len(GOOD)), (1, 1, len(GOOD)), (1, 0, 0), (1, 0, TOP - 1), ((1 << 32) - 1, 0, 0))],
    ("an item after the end", "goodbye", whole_image(1, "a.img", GOOD) + end(1, 0, len(GOOD)) + image(2, "b.img")),
    ("the end twice", "goodbye", whole_image(1, "a.img", GOOD) + end(1, 0, len(GOOD)) * 2),
    ("the session again", "goodbye", begin("other")),
    ("the id again", "refuse", begin("lie", 2)),
    ("the abort of another session", "goodbye", frame("SNAPSHOT_ABORT", message(f1=1, f2="no"), 2)),
    ("an acknowledgement", "goodbye", frame("SNAPSHOT_ACK")),
    ("an acceptance", "goodbye", frame("SNAPSHOT_ACCEPT")),
    ("a verdict's acknowledgement", "goodbye", frame("VERDICT_ACK", message(f1="lie"))),
    ("a second hello", "goodbye", frame("HELLO", hello(), 0)),
    ("rubbish for a message", "goodbye", frame("IMAGE_BEGIN", b"\xff" * 40, 1, 1)),
    ("a message cut short", "goodbye", frame("IMAGE_BEGIN", message(f1="a.img")[:-2], 1, 1)),
    ("a length inside a message that is a lie", "goodbye", frame("IMAGE_BEGIN", b"\x0a" + varint(TOP - 1) + b"a", 1, 1)),
    ("a control frame of 64 KiB and a byte", "goodbye", frame("IMAGE_BEGIN", b"", 1, 1, length=(64 << 10) + 1)),
    ("a control frame of 4 GiB", "goodbye", frame("IMAGE_BEGIN", b"", 1, 1, length=(1 << 32) - 1)),
    ("a data frame of 1 MiB and a byte", "goodbye", image(1, "a.img") + data(1, b"", length=(1 << 20) + 1)),
    ("a data frame of 4 GiB", "goodbye", image(1, "a.img") + data(1, b"", length=(1 << 32) - 1)),
    ("a wrong check", "goodbye", frame("IMAGE_BEGIN", message(f1="a.img"), 1, 1, check=1)),
    ("a wrong check of data", "goodbye", image(1, "a.img") + data(1, GOOD, check=1)),
    ("a wrong check of nothing", "goodbye", frame("HEARTBEAT", b"", 0, check=0)),
    ("a name with a bit turned", "goodbye", damaged(image(1, "a.img"))),
    ("an image with a bit turned", "refuse", image(1, "a.img") + damaged(data(1, GOOD)) + image_end(1, GOOD)),
    ("pages with a bit turned", "refuse", space(1) + damaged(pages(1, 0x10000)) + space_end(1, [(0x10000, PAGE)])),
    ("flags", "goodbye", frame("IMAGE_BEGIN", message(f1="a.img"), 1, 1, flags=1)),
    ("a verdict for what is not complete", "drop", verdict("lie", True) + frame("SNAPSHOT_ABORT", message(f1=1, f2="no"))),
    ("an abort that is rubbish", "goodbye", frame("SNAPSHOT_ABORT", b"\xff")),
    ("a hundred thousand images", "goodbye", b"".join(image(n, f"i{n}") + image_end(n, b"") for n in range(1, 100002))
     if FULL else image(100001, "a.img")),
]

LIES_FOR_A_SNAPSHOT = [(f"snapshot id {i[:20]!r} ({len(i)})", "refuse", begin(i)) for i in (
    "", ".", "..", ".hidden", "../x", "a/b", "/etc", "a b", "x" * 65, "x" * 4000, "a\u00e9")] + [
    ("a snapshot id with a line's end", "goodbye", begin("a\nb")),
    ("a snapshot id of 60000 bytes", "goodbye", begin("x" * 60000)),
    ("an image without a snapshot", "goodbye", image(1, "a.img")),
    ("data without a snapshot", "goodbye", data(1, GOOD)),
    ("the end without a snapshot", "goodbye", end()),
    ("a thousand snapshots at once", "goodbye", b"".join(begin(f"s{n}", n) for n in range(1, 1000))),
    ("a thousand refused snapshots", "refuse", b"".join(begin("..", n) for n in range(1, 1000))),
    ("a verdict for nothing", "verdict-ack", verdict("nothing", True)),
    ("an abort for nothing", "verdict-ack", verdict("nothing", False)),
    ("a verdict for a path", "verdict-ack", verdict("../../etc", True)),
    ("a verdict for the honest", "verdict-ack", verdict("honest", False)),
    ("rubbish for a verdict", "goodbye", frame("VERDICT", b"\xff\xff", 0)),
    ("a goodbye with text", "close", frame("GOODBYE", message(f1=3, f2="a liar says goodbye"), 0)),
    ("a goodbye that is rubbish", "close", frame("GOODBYE", b"\xff", 0)),
]

LIES_AT_FIRST = [
    ("another protocol", "goodbye", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", None),
    ("major 2", "goodbye", b"godwit\r\n\2\0\0\0\0\0\0\0", hello()),
    ("major 0", "goodbye", b"godwit\r\n" + bytes(8), hello()),
    ("a snapshot before hello", "goodbye", PREAMBLE + begin(), None),
    ("data before hello", "goodbye", PREAMBLE + data(1, GOOD), None),
    ("no hello but rubbish", "goodbye", PREAMBLE + bytes(range(1, 200)), None),
    ("hello of rubbish", "goodbye", PREAMBLE, b"\xff" * 30),
    ("hello of 64 KiB", "goodbye", PREAMBLE, hello(f1="x" * 60000)),
    ("hello with an escape in its name", "goodbye", PREAMBLE, hello(f2="\x1b[2J")),
    ("small pages", "goodbye", PREAMBLE, hello(f3=512)),
    ("another machine", "goodbye", PREAMBLE, hello(f4="vax")),
    ("a preamble and no more", "close", PREAMBLE, None),
    ("half a preamble", "close", PREAMBLE[:7], None),
]

ANSWERS = {"GOODBYE": "goodbye", "SNAPSHOT_REFUSE": "refuse", "SNAPSHOT_ACK": "ack", "VERDICT_ACK": "verdict-ack"}


def answer_to(wire, want=None):
    """What the other side says, and its reason: 'close' when it ends the connection without a word.

    An acknowledgement is no answer to what comes after the end.
    """
    kinds = {FRAMES[k]: v for k, v in ANSWERS.items() if v != "ack" or want != "goodbye"}
    try:
        while True:
            kind, _, _, payload = wire.read()
            if kind in kinds:
                return kinds[kind], parse_message(payload)
    except (ConnectionError, TimeoutError) as e:
        return "silence" if isinstance(e, TimeoutError) else "close", {}


def reason_is_good(fields, host_text):
    text = fields.get(2, b"").decode(errors="replace")
    return fields.get(1, 0) and 8 < len(text) < 480 and text.isprintable(), f"{host_text}: {text!r}"


class Liar:
    """Many lies to one real cache, which goes on serving an honest proxy and keeps its files to itself."""

    def __init__(self, lane):
        self.lane, self.bad = lane, []
        self.pid, self.out = lane.spawn()
        assert lane.end(lane.dump(self.pid, "--snapshot", "honest"), "dump")[0] == 0
        self.files = self.listing()
        self.links = lane.a.read("/tmp/image-proxy.log").count("linked to")

    def listing(self):
        return self.lane.b.run(["find", "/run", "/tmp", "/var/tmp", "!", "-path", "/run/shared/*"]).stdout.split()

    def wire(self):
        import socket
        return Wire(in_network(self.lane.a, lambda: socket.create_connection(("10.77.0.2", 9996))), beat=False)

    def tell(self, name, want, first, lie=None, begun=False):
        """Connects, sends the lie and looks at the answer."""
        wire, known = self.wire(), len(self.bad)
        try:
            wire.sock.settimeout(4)
            try:
                if begun is not None:
                    wire.greet()
                if begun:
                    wire.send(begin())
                    wire.read_until("SNAPSHOT_ACCEPT")
                wire.send(first + (frame("HELLO", lie, 0) if lie is not None else b""))
            except ConnectionError as e:
                if e.errno is None:
                    self.bad.append(f"{name}: before the lie: {e}")
                # It has heard enough before the end of the lie; what it said is still to be read.
            if begun is None:
                wire.exactly(16)
            got, fields = ("drop", {}) if want == "drop" else answer_to(wire, want)
            if want == "drop":
                time.sleep(0.1)
            if got != want:
                self.bad.append(f"{name}: the cache's answer is {got} {fields}, expected {want}")
            elif got in ("goodbye", "refuse"):
                good, text = reason_is_good(fields, name)
                if not good:
                    self.bad.append(f"{name}: no good reason: {text}")
        finally:
            wire.close()
        self.check(name)
        print(f"{name}: {got} {str(fields.get(2, ''))[:100]}", *self.bad[known:], flush=True)

    def check(self, name):
        lane = self.lane
        if lane.cache.poll() is not None:
            self.bad.append(f"{name}: the image-cache has ended with {lane.cache.returncode}\n{lane.logs()}")
            lane.start_cache()
            return

        def clean():
            # What was complete when its liar went is in doubt, rightly.
            for ident, state in lane.snapshots().items():
                if ident != "honest" and state == "in-doubt":
                    lane.b.run([lane.godwit, "forget", "-W", WORKDIR, ident])
            return lane.snapshots() == {"honest": "ready"} and self.listing() == self.files

        try:
            testbed.wait_for(clean, 3, "", every=0.02)
        except testbed.BedError:
            now = self.listing()
            self.bad.append(f"{name}: it leaves {lane.snapshots()} {set(now) ^ set(self.files)}")
            self.files = now

    def finish(self):
        lane = self.lane
        if lane.a.read("/tmp/image-proxy.log").count("linked to") != self.links:
            self.bad.append("the honest proxy lost its link")
        assert not self.bad, f"{len(self.bad)} lies:\n" + "\n".join(self.bad)
        assert lane.end(lane.restore("honest"), "restore") == (0, "")
        lane.check_memory(lane.b, self.pid, self.out)
        lane.b.kill(self.pid)
        migrate(lane)
        check_calm(lane)


def test_lies_to_the_cache(lane):
    """A proxy that breaks the protocol is told so; the cache, its files and its other proxies are unharmed."""
    liar = Liar(lane)
    for name, want, first, lie in LIES_AT_FIRST:
        liar.tell(name, want, first, lie, begun=None)
    for name, want, lie in LIES_FOR_A_SNAPSHOT:
        liar.tell(name, want, lie)
    for name, want, lie in LIES_IN_SESSION:
        liar.tell(name, want, lie, begun=True)
    liar.finish()


def test_rubbish_to_the_cache(lane):
    """Sessions with bytes changed, at random: any answer, but no harm."""
    print(f"GODWIT_SEED={SEED}")
    rng = random.Random(SEED)
    liar = Liar(lane)
    honest = [lie for _, _, lie in LIES_IN_SESSION if len(lie) < 100000]
    for i in range(1000 if FULL else 150):
        wire = liar.wire()
        try:
            wire.sock.settimeout(0.05)
            stream = bytearray(PREAMBLE + frame("HELLO", hello(), 0) + begin(f"r{i}") + rng.choice(honest))
            for _ in range(rng.choice([1, 1, 2, 8])):
                stream[rng.randrange(16, len(stream))] = rng.randrange(256)
            wire.send(bytes(stream[:rng.choice([len(stream), rng.randrange(len(stream))])]))
            answer_to(wire)
        except ConnectionError:
            pass
        finally:
            wire.close()
        if i % 25 == 24:
            liar.check(f"rubbish {i}")
    liar.finish()


def test_a_stranger_decides(lane):
    """A verdict counts only from the host that sent the snapshot: another proxy's is not taken for it."""
    import socket
    pid, out = lane.spawn()
    lane.man.arm((f"up:{FRAMES['VERDICT']}", "hold"))
    dump = lane.dump(pid, "--snapshot", "it")
    assert lane.man.is_held.wait(5)
    stranger = Wire(in_network(lane.a, lambda: socket.create_connection(("10.77.0.2", 9996)))).greet(say=hello(f2="stranger"))
    stranger.send(verdict("it", False))
    time.sleep(0.2)
    stranger.close()
    lane.man.release()
    status, err = lane.end(dump, "dump")
    judge(lane, pid, out, status, err, must="moved")


def test_given_up_on_another_link(lane):
    """A source that has given a snapshot up says so on its new link, while the old one's bytes are still on their way."""
    import socket
    old, new = (Wire(in_network(lane.a, lambda: socket.create_connection(("10.77.0.2", 9996)))).greet() for _ in range(2))
    old.send(begin("late"))
    old.read_until("SNAPSHOT_ACCEPT")
    new.send(verdict("late", False))
    new.read_until("VERDICT_ACK")
    old.send(whole_image(1, "a.img", GOOD) + end(1, 0, len(GOOD)))
    testbed.wait_for(lambda: "late" not in lane.snapshots(), 3, "the end of the snapshot")
    old.send(begin("kept", 2) + whole_image(1, "a.img", GOOD, 2) + end(1, 0, len(GOOD), 2))
    old.read_until("SNAPSHOT_ACK")
    testbed.wait_for(lambda: lane.snapshots() == {"kept": "held"}, 3, "another snapshot of that link")
    old.close()
    new.close()


# ---- 2. to the proxy ----

class FakeCache:
    """An image-cache of our own behind the man in the middle."""

    def __init__(self, lane):
        import socket
        self.lane = lane
        self.listener = in_network(lane.a, lambda: socket.create_server(("127.0.0.1", 0)))
        self.listener.settimeout(5)
        self.honest = lane.man.target
        lane.man.target = self.listener.getsockname()
        lane.man.kick()
        self.wire = Wire(self.listener.accept()[0]).greet()
        lane.wait_link()

    def close(self):
        self.wire.close()
        self.lane.man.target = self.honest
        self.listener.close()
        self.lane.man.kick()


def refusal(code=1, text="a lie of the cache"):
    return message(f1=code, f2=text)


# (name, what the cache says, with {session} of the dump; the dump's exit code or None for any failure)
LIES_TO_PROXY = [
    ("refuse", lambda s: frame("SNAPSHOT_REFUSE", refusal(), s), 1),
    ("refuse for memory", lambda s: frame("SNAPSHOT_REFUSE", refusal(6), s), 6),
    ("refuse with no reason", lambda s: frame("SNAPSHOT_REFUSE", b"", s), None),
    ("refuse with an unknown code", lambda s: frame("SNAPSHOT_REFUSE", refusal(99), s), 4),
    ("refuse with two lines", lambda s: frame("SNAPSHOT_REFUSE", refusal(1, "one\ntwo"), s), None),
    ("refuse with 60000 bytes", lambda s: frame("SNAPSHOT_REFUSE", refusal(1, "x" * 60000), s), None),
    ("refuse of rubbish", lambda s: frame("SNAPSHOT_REFUSE", b"\xff\xff", s), None),
    ("refuse of another session", lambda s: frame("SNAPSHOT_REFUSE", refusal(), s + 7), None),
    ("ack", lambda s: frame("SNAPSHOT_ACK", b"", s), None),
    ("ack of another session", lambda s: frame("SNAPSHOT_ACK", b"", s + 7), None),
    ("ack of session 0", lambda s: frame("SNAPSHOT_ACK", b"", 0), None),
    ("accept twice", lambda s: frame("SNAPSHOT_ACCEPT", b"", s) * 2, None),
    ("accept of another session", lambda s: frame("SNAPSHOT_ACCEPT", b"", s + 7), None),
    ("verdict-ack", lambda s: frame("VERDICT_ACK", message(f1="it"), 0), None),
    ("verdict-ack of rubbish", lambda s: frame("VERDICT_ACK", b"\xff", 0), None),
    ("image data", lambda s: frame("IMAGE_DATA", b"x", s, 1), None),
    ("pages", lambda s: frame("PAGES", PAGE, s, 1), None),
    ("a snapshot", lambda s: frame("SNAPSHOT_BEGIN", message(f1="x"), s), None),
    ("a second hello", lambda s: frame("HELLO", hello(), 0), None),
    ("a frame of 4 GiB", lambda s: frame("SNAPSHOT_REFUSE", b"", s, length=(1 << 32) - 1), None),
    ("a wrong check", lambda s: frame("SNAPSHOT_ACK", b"", s, check=1), None),
    ("flags", lambda s: frame("SNAPSHOT_ACK", b"", s, flags=1), None),
    ("rubbish", lambda s: bytes(range(200)), None),
    ("goodbye", lambda s: frame("GOODBYE", refusal(1, "the cache has had enough"), 0), None),
    ("goodbye and all is well", lambda s: frame("GOODBYE", b"", 0), None),
    ("goodbye of rubbish", lambda s: frame("GOODBYE", b"\xff", 0), None),
    ("the end of the connection", None, None),
    ("silence", "silence", None),
    ("heartbeats and no more", "heartbeats", None),
]
WHEN = ["SNAPSHOT_BEGIN", "PAGES", "SNAPSHOT_END"]


def lie_case(when, name, lie, code):
    def case(lane):
        if when == "SNAPSHOT_END" and name == "ack":
            return "that is no lie"
        pid, out = lane.spawn()
        fake = FakeCache(lane)
        try:
            wire = fake.wire
            dump = lane.dump(pid, "--snapshot", "it")
            _, session, _, _ = wire.read_until("SNAPSHOT_BEGIN")
            if when != "SNAPSHOT_BEGIN":
                wire.send(frame("SNAPSHOT_ACCEPT", b"", session))
                wire.read_until(when)
            if lie == "silence":
                wire._beating = False
            elif lie is None:
                wire.close()
            elif lie != "heartbeats":
                wire.send(lie(session))
                # If it was not worth a failure the cache goes on, and refuses in the end.
                try:
                    wire.sock.settimeout(1)
                    if when == "SNAPSHOT_BEGIN" and "accept" not in name:
                        wire.send(frame("SNAPSHOT_ACCEPT", b"", session))
                    if when != "SNAPSHOT_END":
                        wire.read_until("SNAPSHOT_END", "SNAPSHOT_ABORT", "GOODBYE")
                    wire.send(frame("SNAPSHOT_REFUSE", refusal(1, "enough of that"), session))
                except (ConnectionError, TimeoutError, OSError):
                    pass
            status, err = lane.end(dump, "dump")
        finally:
            fake.close()
        if status == 0:
            raise Broken("dump succeeds with a cache that has nothing")
        got = judge(lane, pid, out, status, err, must="source")
        if code and status != code:
            raise Broken(f"dump ends with {status}, expected {code}: {err}")
        check_calm(lane)
        follow_up(lane, pid, out)
        return got

    return f"{when}: {name}", case


@pytest.mark.parametrize("when", WHEN)
def test_lies_to_the_proxy(lanes, when):
    """A cache that breaks the protocol costs the dump, never the process."""
    # An early acknowledgement is a lie only if it is read before the end has left, which pages in flight do not promise.
    lies = [lie for lie in LIES_TO_PROXY if (when, lie[0]) != ("PAGES", "ack")]
    lanes.run([lie_case(when, *lie) for lie in lies])


# With the session and the verdict's nonce.
VERDICT_LIES = [
    ("no answer", lambda s, n: b"", 7),
    ("acknowledged for another", lambda s, n: frame("VERDICT_ACK", message(f1="other", f2=n ^ 1), 0), 7),
    ("acknowledged of long ago", lambda s, n: frame("VERDICT_ACK", message(f1="it", f2=n ^ 1), 0), 7),
    ("acknowledged as rubbish", lambda s, n: frame("VERDICT_ACK", b"\xff", 0), 7),
    ("acknowledged twice", lambda s, n: frame("VERDICT_ACK", message(f1="it", f2=n), 0) * 2, 0),
    ("refused", lambda s, n: frame("SNAPSHOT_REFUSE", refusal(), s), 7),
    ("ack again", lambda s, n: frame("SNAPSHOT_ACK", b"", s), 7),
    ("goodbye", lambda s, n: frame("GOODBYE", b"", 0), 7),
]


@pytest.mark.parametrize("name, lie, code", VERDICT_LIES, ids=[v[0].replace(" ", "-") for v in VERDICT_LIES])
def test_lies_about_the_verdict(lanes, name, lie, code):
    """After the acknowledgement the process has ended here; the verdict is told again until it is acknowledged."""

    def case(lane):
        pid, _ = lane.spawn()
        fake = FakeCache(lane)
        try:
            dump = lane.dump(pid, "--snapshot", "it")
            _, session, _, _ = fake.wire.read_until("SNAPSHOT_BEGIN")
            fake.wire.send(frame("SNAPSHOT_ACCEPT", b"", session))
            fake.wire.read_until("SNAPSHOT_END")
            fake.wire.send(frame("SNAPSHOT_ACK", b"", session))
            *_, told = fake.wire.read_until("VERDICT")
            fake.wire.send(lie(session, parse_message(told)[4]))
            status, err = lane.end(dump, "dump")
        finally:
            fake.close()
        if status != code:
            raise Broken(f"dump ends with {status}, expected {code}: {err}\n{lane.logs()}")
        lane.a.wait_dead(pid)
        # The honest cache is told as well, and that it never had it is no reason to go on for ever.
        lane.wait_link()
        testbed.wait_for(lambda: not [s for s in lane.status(lane.a) if "snapshot" in s], 5, "the verdict to be told")
        check_calm(lane)
        migrate(lane)
        return f"dump {status} {err!r}"

    lanes.run([(name, case)])
