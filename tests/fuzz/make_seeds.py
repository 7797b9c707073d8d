#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seed corpora of the fuzzers, seeds/fuzz_TARGET/NAME.

usage: tests/fuzz/make_seeds.py        what is there under other names (saved findings) stays
"""
import struct
from pathlib import Path

SEEDS = Path(__file__).resolve().parent / "seeds"


def save(target, name, data):
    directory = SEEDS / f"fuzz_{target}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)


# ---- protobuf ----

def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field, value):
    return varint(field << 3) + varint(value)


def text(field, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


# ---- messages: the first byte is the index in fuzz_message.c ----

HELLO = (text(1, "godwit 0.1.0") + text(2, "host") + number(3, 4096) + text(4, "x86_64")
         + number(5, 10000))
BEGIN = text(1, "seed") + number(2, 42) + text(3, "sleep") + number(4, 1)
ITEM_END = number(1, 3) + text(2, bytes(16))
MESSAGES = {
    "hello": (0, HELLO),
    "failure": (1, number(1, 6) + text(2, "out of memory")),
    "snapshot-begin": (2, BEGIN),
    "image-begin": (3, text(1, "core-1.img")),
    "space-begin": (4, number(1, 1) + number(2, 42)),
    "item-end": (5, ITEM_END),
    "snapshot-end": (6, number(1, 1) + number(2, 1) + number(3, 4099)),
    "verdict": (7, text(1, "seed") + number(2, 1) + text(3, "why")),
    "verdict-ack": (8, text(1, "seed")),
    "dump-open": (9, text(1, "seed") + number(2, 42) + text(3, "sleep")),
    "dump-opened": (10, text(1, "seed") + number(2, 1 << 63)),
    "progress": (11, number(1, 1 << 40) + text(2, "pages")),
    "exited": (12, number(1, 137)),
    "restore-open": (13, text(1, "seed") + number(2, (1 << 64) - 1) + number(3, 1)),
    "restore-ready": (14, text(1, "seed") + number(2, 7) + text(3, "/run/godwit/images")),
    "forget": (15, text(1, "seed")),
    "status": (16, text(1, "image-cache") + text(2, "host") + text(3, "up") + number(4, 5)),
    "status-snapshot": (17, text(1, "seed") + text(2, "held") + number(3, 5) + number(8, 9)),
    "facts": (18, text(1, "4.2.1") + text(2, "6.1.0") + text(3, "avx2") + number(4, 42)
              + number(5, 1 << 20) + text(7, "--shell-job")
              + text(6, number(1, 1) + text(2, "/bin/sleep") + number(3, 5) + text(4, bytes(20)))),
    "findings": (19, text(1, number(1, 2) + text(2, "pid") + text(3, "host") + text(4, "taken"))),
    "findings-unknown-inside": (19, text(1, b"\x80\0\0")),
    "findings-control-character-inside": (19, text(1, text(4, "a\x1bb"))),
    "standing": (20, text(1, "seed") + number(2, 1) + number(3, 9) + number(4, 6) + text(5, "why")),
    "resolve": (21, text(1, "seed") + number(2, 1)),
    "snapshot-accept": (22, text(1, bytes(range(16)))),
    "stream-join": (23, text(1, bytes(range(16))) + number(2, 1)),
    "spool-write": (24, text(1, "seed")),
    "spool-published": (25, text(1, "seed")),
    "control-character": (3, text(1, "a\x1bb")),
    "nul": (3, text(1, "a\0b")),
    "cut-short": (3, text(1, "core-1.img")[:-3]),
    "too-long": (3, text(1, "n" * 4097)),
    "empty": (2, b""),
}


# ---- the link: checks and digests are mended by the harness ----

GREETED, CHECKS, DIGESTS, SMALL, PIECES = 1, 2, 4, 8, 16
ALL = GREETED | CHECKS | DIGESTS


def frame(kind, payload=b"", session=1, item=0, offset=0, flags=0):
    return struct.pack("<HHIIIQQ", kind, flags, len(payload), session, item, offset, 0) + payload


def image(item, name, *pieces):
    out = frame(200, text(1, name), item=item)
    offset = 0
    for piece in pieces:
        out += frame(201, piece, item=item, offset=offset)
        offset += len(piece)
    return out + frame(202, ITEM_END, item=item)


def page(byte):
    return bytes([byte]) * 4096


def space(item, kind, number_of, *runs):
    out = frame(210, number(1, kind) + number(2, number_of), item=item)
    for vaddr, flags, pages in runs:
        out += frame(211, b"".join(map(page, pages)), item=item, offset=vaddr, flags=flags)
    return out + frame(212, ITEM_END, item=item)


def pagemap(*entries, pages_id=1):
    def prefixed(message):
        return struct.pack("<I", len(message)) + message
    out = struct.pack("<II", 0x54564319, 0x56084025) + prefixed(number(1, pages_id))
    for entry in entries:
        out += prefixed(b"".join(number(f + 1, v) for f, v in enumerate(entry) if v is not None))
    return out


def link_seeds():
    begin, end = frame(100, BEGIN), frame(101, number(1, 9))
    entry = (0x1000, 1, None, 4)
    spaces = space(1, 1, 42, (0x1000, 0, [1, 2]), (0x5000, 1, [3]))
    bodies = {
        "nothing": begin + end,
        "image": begin + image(1, "core-1.img", b"abc", b"def") + end,
        "empty-image": begin + image(1, "fdinfo-2.img") + end,
        "images": begin + b"".join(image(i, f"img-{i}", b"x" * i) for i in range(1, 6)) + end,
        "space": begin + spaces + end,
        "overwritten": begin + space(1, 1, 42, (0x1000, 0, [1, 2]), (0x2000, 0, [9])) + end,
        "descending": begin + space(1, 2, 7, (0x400000, 0, [1]), (0x1000, 1, [2])) + end,
        "end-of-memory": begin + space(1, 1, 1, ((1 << 57) - 4096, 0, [1])) + end,
        "stream-pagemap": begin + image(1, "pagemap-1.img", pagemap(entry))
        + image(2, "pages-1.img", page(5)) + end,
        "in-parent": begin + image(1, "pagemap-1.img", pagemap((0x1000, 1, 1, 1))) + end,
        "abort": begin + image(1, "a", b"1") + frame(102, number(1, 1) + text(2, "sorry")),
        "two": begin + frame(100, text(1, "other"), session=2) + image(1, "a", b"1")
        + frame(200, text(1, "b"), session=2, item=1) + end,
        "same-name": begin + image(1, "a", b"1") + image(2, "a", b"1") + end,
        "bad-name": begin + image(1, "../../x", b"1") + end,
        "bad-id": frame(100, text(1, "../x")) + image(1, "a", b"1"),
        "same-id": begin + frame(100, BEGIN, session=2) + end,
        "bad-address": begin + space(1, 1, 1, (1 << 57, 0, [1])) + end,
        "goodbye": begin + frame(2, text(2, "bye"), session=0),
        "goodbye-without-a-reason": begin + frame(2, number(1, 9), session=0),
        "heartbeats": frame(3, session=0) * 3 + begin,
        "interleaved": begin + frame(200, text(1, "a"), item=1) + frame(200, text(1, "b"), item=2)
        + frame(201, b"12", item=1) + frame(201, b"34", item=2) + frame(201, b"5", item=1, offset=2)
        + frame(202, ITEM_END, item=2) + frame(202, ITEM_END, item=1) + end,
    }
    lists = frame(210, number(1, 1) + number(2, 42), item=1) + frame(211, page(1) + page(2), item=1, offset=0x1000, flags=1)
    runs = struct.pack("<QQQQ", 0x3000, 2, 0x9000, 1)
    listed = frame(212, ITEM_END + number(3, 1), item=1)
    bodies |= {
        "zeros": begin + lists + frame(213, runs, item=1, flags=1) + frame(220) + frame(212, ITEM_END, item=1) + end,
        "listed": begin + lists + frame(213, struct.pack("<QQ", 0x1000, 2), item=1, flags=2) + listed + end,
        "listed-and-missing": begin + lists + frame(213, runs, item=1, flags=2) + listed + end,
        "unlisted": begin + lists + listed + end,
        "sums": begin + lists + frame(214, struct.pack("<QQ", 0x1000, 2) + bytes(16), item=1) + listed + end,
        "rounds": begin + lists + frame(220) + frame(211, page(3), item=1, offset=0x1000) + frame(220) + listed + end,
        "lazy": frame(100, BEGIN + number(6, 1) + number(8, 1)) + lists + listed + end,
        "freezing": frame(100, BEGIN + number(6, 1) + text(7, "--tcp-established") + text(7, "-l")) + lists + frame(104) + listed + end,
        "freezing-twice": begin + lists + frame(104) * 2 + listed + end,
        "options": frame(100, BEGIN + text(7, "--ghost-limit") + text(7, "1M")) + lists + listed + end,
        "another-option": frame(100, BEGIN + number(6, 1) + text(7, "--action-script=/x")) + lists + listed + end,
    }
    def snapshot(name, *items, pre_dump=1, parent="", nonce=0):
        return (frame(100, text(1, name) + text(10, parent) + number(11, nonce) + number(12, pre_dump)) + b"".join(items)
                + frame(101, number(1, 9)))

    def based(item, kind, number_of, *frames, last=ITEM_END):
        return (frame(210, number(1, kind) + number(2, number_of) + number(3, 1), item=item) + b"".join(frames)
                + frame(212, last, item=item))

    first = snapshot("seed", space(1, 1, 42, (0x1000, 1, [1])), frame(210, number(1, 2) + number(2, 7), item=2)
                     + frame(212, ITEM_END, item=2))
    more = frame(211, page(7), item=1, offset=0x2000, flags=2)
    exist = frame(213, struct.pack("<QQ", 0x1000, 2), item=1, flags=2)
    bodies |= {
        "pre-dump": first,
        "based": first + snapshot("next", based(1, 1, 42, more), parent="seed"),
        "based-and-listed": first + snapshot("next", based(1, 1, 42, more, exist, last=ITEM_END + number(3, 1)),
                                             image(2, "core-42.img", b"core"), parent="seed", pre_dump=0),
        "based-twice": first + snapshot("next", based(1, 1, 42, more), parent="seed")
        + snapshot("last", based(1, 1, 42), based(2, 1, 42), parent="next"),
        "based-in-two-at-once": first + frame(100, text(1, "a") + text(10, "seed"), session=2)
        + frame(210, number(1, 1) + number(2, 42) + number(3, 1), session=2, item=1)
        + snapshot("next", based(1, 1, 42, more), parent="seed"),
        "based-on-a-space-there-is-not": first + snapshot("next", based(1, 1, 43), parent="seed"),
        "based-on-nothing": begin + based(1, 1, 42),
        "parent-there-is-not": snapshot("next", spaces, parent="none"),
        "parent-with-another-nonce": first + snapshot("next", spaces, parent="seed", nonce=1),
        "parent-is-itself": snapshot("next", spaces, parent="next"),
        "parent-shares-nothing": begin + spaces + end + snapshot("next", based(1, 1, 42), parent="seed"),
        "pages-beside": snapshot("seed", image(1, "pages-1.img", b"x")),
        "migration-with-a-parent": first + frame(100, text(1, "next") + number(6, 1) + text(10, "seed")),
    }
    # What the harness takes for frames of a data connection: its number is the highest byte of the session.
    def of(stream, body):
        out, at = b"", 0
        while at < len(body):
            length, session = struct.unpack_from("<II", body, at + 4)
            out += body[at:at + 8] + struct.pack("<I", session | stream << 24) + body[at + 12:at + 32 + length]
            at += 32 + length
        return out
    three = frame(100, BEGIN + number(9, 3))
    one_space = space(1, 1, 42, (0x1000, 0, [1, 2]))
    bodies |= {
        "streams": three + of(1, one_space + end) + one_space + frame(220) + of(2, one_space + end) + end,
        "streams-end-first": three + one_space + end + of(1, one_space + end) + of(2, one_space + end),
        "streams-copies": three + of(1, frame(210, number(1, 1) + number(2, 42), item=1) + frame(211, page(1), item=1, offset=0x1000)
                                     + frame(210, number(1, 1) + number(2, 43), item=2)
                                     + frame(213, struct.pack("<QQ", 0x1000, 1), item=2, offset=1, flags=4)),
        "streams-other-spaces": three + of(1, one_space) + space(1, 1, 43),
        "streams-image": three + of(1, image(1, "a", b"1")),
        "streams-abort": three + of(1, one_space) + frame(102, number(1, 1)) + of(1, end),
        "streams-lost": three + one_space + of(1, one_space),
        "streams-too-many": frame(100, BEGIN + number(9, 17)) + of(16, one_space),
    }
    for name, body in bodies.items():
        save("link", name, bytes([ALL]) + body)
    save("link", "based-small", bytes([ALL | SMALL]) + bodies["based"])
    save("link", "image-small", bytes([ALL | SMALL]) + begin + image(1, "a", b"x" * 9000) * 1
         + image(2, "b", b"y" * 3000) + end)
    save("link", "space-small", bytes([ALL | SMALL]) + bodies["descending"])
    save("link", "image-pieces", bytes([ALL | PIECES]) + bodies["image"])
    save("link", "image-wrong-digest", bytes([GREETED | CHECKS]) + bodies["image"])
    save("link", "image-wrong-check", bytes([GREETED]) + bodies["image"])
    preamble = b"godwit\r\n" + struct.pack("<HHI", 1, 0, 0)
    hello = frame(1, HELLO, session=0)
    save("link", "raw", bytes([CHECKS | DIGESTS]) + preamble + hello + bodies["image"])
    save("link", "raw-other-major", bytes([0]) + b"godwit\r\n" + struct.pack("<HHI", 2, 0, 0))
    save("link", "raw-not-godwit", bytes([0]) + b"GET / HTTP/1.1\r\n\r\n")


# ---- CRIU's page server, little-endian hosts ----

OPEN, PARENT, ADD, CLOSE, FLUSH = 4, 5, 6, 0x1023, 0x1024


def request(form, command, pages=0, vaddr=0, obj=0, flags=0):
    word = command | flags << 16
    if form == 24:
        return struct.pack("<IIQQ", word, pages, vaddr, obj)
    return struct.pack("<IIQQQ", word, 0, pages, vaddr, obj)


def page_server_seeds():
    task, shared = 42 << 8 | 1, 7 << 8 | 2
    for form in (24, 32):
        opening = request(form, OPEN, obj=task)
        add = request(form, ADD, 1, 0x1000, task, 4) + page(1)
        bodies = {
            "open-close": opening + request(form, CLOSE),
            "one-page": opening + add + request(form, CLOSE),
            "parent-first": request(form, PARENT, obj=task) + opening + add + request(form, FLUSH),
            "two-objects": opening + request(form, OPEN, obj=shared) + add
            + request(form, ADD, 2, 0x8000, shared, 6) + page(2) + page(3) + request(form, CLOSE),
            "hole": opening + request(form, ADD, 1, 0x1000, task, 1),
            "never-opened": opening + request(form, ADD, 1, 0x1000, shared, 4) + page(1),
            "cut-short": opening + add[:-5],
            "absurd": opening + request(form, ADD, (1 << 32) - 1, 0x1000, task, 4) + page(1),
            "twice": opening * 2 + add * 2 + request(form, CLOSE) * 2,
        }
        for name, body in bodies.items():
            save("page_server", f"parse-{form}-{name}", b"\0" + body)
            save("page_server", f"door-{form}-{name}", b"\1" + body)
        odd = 43 << 8 | 1
        hole = request(form, ADD, 1, 0x2000, odd, 1)
        opening_of_odd = request(form, OPEN, obj=odd)
        bodies = {
            "holes": request(form, PARENT, obj=odd) + opening_of_odd + hole
            + request(form, ADD, 1, 0x3000, odd, 4) + page(4) + hole * 300 + request(form, CLOSE),
            "hole-without-a-parent": opening + request(form, ADD, 1, 0x1000, task, 1),
            "holes-without-end": opening_of_odd + request(form, ADD, (1 << 32) - 1, 0, odd, 1) * 300,
            "of-old": request(form, 3, obj=odd) + request(form, 2, 1, 0x1000, odd) + request(form, 1, 1, 0x2000, odd) + page(1)
            + request(form, FLUSH),
        }
        for name, body in bodies.items():
            save("page_server", f"parents-{form}-{name}", b"\3" + body)
            save("page_server", f"parse-{form}-{name}", b"\0" + body)
        save("page_server", f"parents-{form}-16-tib", b"\xff" + opening_of_odd + request(form, ADD, 1 << 31, 0, odd, 1) * 3)
    for form in (24, 32):
        get = request(form, 7, 5, 0x7f0000000000, 42)
        bodies = {
            "one": get,
            "several-and-close": get * 3 + request(form, CLOSE),
            "outside": request(form, 7, 1, 1 << 58, 42),
            "of-nothing": request(form, 7, 0, 0x1000, 42),
            "cut-short": get + get[:-1],
            "no-get": request(form, ADD, 1, 0x1000, 42),
        }
        for name, body in bodies.items():
            save("page_server", f"get-{form}-{name}", b"\0" + body)
    save("page_server", "door-close-only", b"\1" + request(24, CLOSE))


# ---- CRIU's --stream and pagemap images ----

def stream_seeds():
    def ask(name):
        message = text(1, name)
        return struct.pack("<I", len(message)) + message
    for step in (1, 255):
        first = bytes([step - 1])
        save("stream", f"one-{step}", first + ask("inventory.img") + b"\0")
        save("stream", f"three-{step}", first + b"".join(ask(n) + b"\0" for n in "abc"))
        save("stream", f"longest-{step}", first + ask("n" * 255) + b"\0")
        save("stream", f"path-{step}", first + ask("../etc/passwd"))
        save("stream", f"nul-{step}", first + ask("a\0b"))
    save("stream", "too-long", b"\x3f" + struct.pack("<I", 4097))
    save("stream", "of-nothing", b"\x3f" + struct.pack("<I", 0))
    save("stream", "malformed", b"\x3f" + struct.pack("<I", 2) + b"\x12\x00")


def space_map_seeds():
    def space_map(*entries, shared=0, id=42, count=None):
        header = b"godwitS\1" + struct.pack("<IIQQ", shared, 0, id, len(entries) if count is None else count)
        return header + b"".join(struct.pack("<QII", *e) for e in entries)
    whole = space_map((0x1000, 2, 7), (0x3000 | 1, 1, 0), (0x4000 | 2, 9, 0), (0x7f0000000000, 512, 512))
    save("space_map", "whole", whole)
    save("space_map", "shared", space_map((0, 1, 0), shared=1))
    save("space_map", "empty", space_map())
    save("space_map", "cut-short", whole[:-1])
    save("space_map", "wrong-count", space_map((0x1000, 1, 0), count=1 << 63))
    save("space_map", "overlap", space_map((0x1000, 2, 0), (0x2000, 1, 2)))
    save("space_map", "beyond", space_map(((1 << 57) - 4096, 2, 0)))
    save("space_map", "where-beyond", space_map((0x1000, 2, (1 << 32) - 1)))
    save("space_map", "both-kinds", space_map((0x1003, 1, 0)))


def lazy_seeds():
    finished = struct.pack("<I", 0x52535446)
    def pid(number):
        return struct.pack("<i", number)
    for step in (0, 7):
        first = bytes([step])
        save("lazy", f"finished-{step}", first + finished)
        save("lazy", f"zombies-{step}", first + pid(-7) + pid(-(1 << 22)) + finished)
        save("lazy", f"task-{step}", first + pid(7) + b"\0" + finished)
        save("lazy", f"cut-short-{step}", first + pid(7)[:3])
        save("lazy", f"without-its-byte-{step}", first + pid(7))
    save("lazy", "zero", b"\7" + pid(0))
    save("lazy", "too-large", b"\7" + pid((1 << 22) + 1))
    save("lazy", "least", b"\7" + pid(-(1 << 31)))
    save("lazy", "more-behind", b"\7" + finished + finished + pid(-7))


def fill_map_seeds():
    def entry(page, pages=1, offset=0, number=0):
        return struct.pack("<4Q", page * 4096, pages, offset * 4096, number)
    def whole(*entries, count=None, space=1, magic=b"godwitF\1"):
        count = len(entries) if count is None else count
        return struct.pack("<8sIIQQ", magic, space, 0, count, 0) + b"".join(entries)
    save("fill_map", "empty", whole())
    save("fill_map", "one", whole(entry(5, 3, 1, 2)))
    save("fill_map", "three", whole(entry(0), entry(1, 2, 1), entry(9, 1, 3, 7)))
    save("fill_map", "last-page", whole(entry((1 << 45) - 1)))
    save("fill_map", "too-far", whole(entry(1 << 45)))
    save("fill_map", "too-long", whole(entry((1 << 45) - 1, 2)))
    save("fill_map", "huge", whole(entry(1, (1 << 64) - 1)))
    save("fill_map", "of-nothing", whole(entry(1, 0)))
    save("fill_map", "not-a-page", whole(entry(1)).replace(b"\0\x10", b"\1\x10"))
    save("fill_map", "overlapping", whole(entry(1, 4), entry(4)))
    save("fill_map", "descending", whole(entry(4), entry(1)))
    save("fill_map", "far-offset", whole(entry(1, 1, (1 << 51) - 1)))
    save("fill_map", "count-too-large", whole(entry(1), count=2))
    save("fill_map", "count-overflows", whole(entry(1), count=(1 << 59) + 1))
    save("fill_map", "cut-short", whole(entry(1))[:-1])
    save("fill_map", "cut-header", whole()[:20])
    save("fill_map", "another-magic", whole(entry(1), magic=b"godwitF\2"))


def pagemap_seeds():
    save("pagemap", "empty", pagemap())
    save("pagemap", "old", pagemap((0x1000, 2, None, 4), (0x8000, 1, 1), (0x9000, 1, 0)))
    save("pagemap", "new", pagemap((0x1000, 0, None, 4, 2), (0x100000000, 0, None, 6, 1 << 32)))
    save("pagemap", "overlap", pagemap((0x1000, 2, None, 4), (0x2000, 1, None, 4)))
    save("pagemap", "unaligned", pagemap((0x1001, 2, None, 4)))
    save("pagemap", "no-pages", pagemap((0x1000, 0, None, 4)))
    save("pagemap", "beyond", pagemap(((1 << 57) - 4096, 0, None, 4, 2)))
    save("pagemap", "overflow", pagemap((0x1000, 0, None, 4, 1 << 52)))
    save("pagemap", "cut-short", pagemap((0x1000, 2, None, 4))[:-1])
    save("pagemap", "magic", b"\0" * 8)


def mm(*vmas):
    def vma(start, end, flags=0x22, status=1, pgoff=0):
        return text(14, number(1, start) + number(2, end) + number(3, pgoff) + number(4, 0) + number(5, 3)
                    + number(6, flags) + number(7, status) + number(8, 0))
    message = b"".join(number(n, 4096) for n in range(1, 13)) + b"".join(vma(*v) for v in vmas)
    return struct.pack("<III", 0x54564319, 0x57492820, len(message)) + message


def cow_areas_seeds():
    def pstree(*tasks):
        entries = (number(1, pid) + number(2, ppid) + number(3, 1) + number(4, 1) + number(5, pid) for pid, ppid in tasks)
        return struct.pack("<II", 0x54564319, 0x50273030) + b"".join(struct.pack("<I", len(e)) + e for e in entries)

    def save_all(name, tree, parent, child):
        save("cow_areas", name, struct.pack("<HH", len(tree), len(parent)) + tree + parent + child)
    parts = mm((0x1000, 0x3000, 0x2, 0x41), (0x5000, 0x6000, 0x2, 0x41, 0x1000))
    save_all("same", pstree((1, 0), (3, 1), (2, 1)), parts, parts)
    save_all("other-part", pstree((2, 1), (1, 0)), parts, mm((0x2000, 0x4000), (0x5000, 0x6000, 0x2, 0x41, 0x2000)))
    save_all("twice", pstree((1, 0), (2, 1), (2, 3)), parts, mm())
    save_all("no-tree", b"", mm(), parts)


def core_seeds():
    def core(*fields):
        body = b"".join(fields)
        return struct.pack("<III", 0x54564319, 0x55053847, len(body)) + body

    def thread(pointer, size):
        return text(5, number(1, 5) + text(15, number(1, pointer) + number(2, size) + number(3, 0x53053053)))
    save("core", "rseq", core(number(1, 1), thread(0x7F0000000FE0, 32)))
    save("core", "none", core(number(1, 1)))
    save("core", "without-size", core(thread(0x1000, 0)))
    save("core", "across", core(thread(0x1FF0, 0xFFFFFFFF)))
    save("core", "highest", core(thread((1 << 64) - 8, 32)))
    save("core", "magic", bytes(12))


def hook_memory_seeds():
    def pieces(*list_):
        return b"".join(struct.pack("<QQQ", place, offset, size) for place, offset, size in list_)
    place = 0x200000000000
    save("hook_memory", "one", pieces((place, 0, 4096)))
    save("hook_memory", "two", pieces((place + 8192, 4096, 4096), (place, 0, 8192)))
    save("hook_memory", "nothing", pieces((place, 0, 0)))
    save("hook_memory", "behind-the-pages", pieces((place, 16384, 4096)))
    save("hook_memory", "nowhere", pieces((4096, 0, 4096)))
    save("hook_memory", "too-long", pieces((place, 0, (1 << 64) - 1)))
    save("hook_memory", "cut-short", pieces((place, 0, 4096), (place, 0, 4096))[:-1])


def mm_seeds():
    save("mm", "empty", mm())
    save("mm", "areas", mm((0x1000, 0x3000), (0x3000, 0x5000), (0x9000, 0xA000)))
    save("mm", "kinds", mm((0x1000, 0x2000, 0x2), (0x2000, 0x3000, 0x2022), (0x3000, 0x4000, 0x22, 9),
                           (0x4000, 0x5000, 0x122), (0x5000, 0x6000, 0x21), (0x6000, 0x7000)))
    save("mm", "descending", mm((0x3000, 0x4000), (0x1000, 0x2000)))
    save("mm", "overlap", mm((0x1000, 0x4000), (0x2000, 0x5000)))
    save("mm", "nothing", mm((0x1000, 0x1000)))
    save("mm", "highest", mm(((1 << 64) - 0x1000, (1 << 64) - 1)))
    save("mm", "cut-short", mm((0x1000, 0x3000))[:-1])
    save("mm", "magic", bytes(16))


# ---- build ids ----

def note(owner=b"GNU\0", kind=3, content=bytes(range(20)), content_size=None):
    def padded(data):
        return data + bytes(-len(data) % 4)
    size = len(content) if content_size is None else content_size
    return struct.pack("<III", len(owner), size, kind) + padded(owner) + padded(content)


def elf(*segments, bits=64, count=None, at=None):
    """An ELF file; segments are (kind, bytes, the size that is told or None)."""
    header, entry = (64, 56) if bits == 64 else (52, 32)
    table = body = b""
    for kind, data, told in segments:
        size = len(data) if told is None else told
        offset = header + entry * len(segments) + len(body)
        if bits == 64:
            table += struct.pack("<IIQQQQQQ", kind, 4, offset, 0, 0, size, size, 4)
        else:
            table += struct.pack("<IIIIIIII", kind, offset, 0, 0, size, size, 4, 4)
        body += data
    word = "Q" if bits == 64 else "I"
    out = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    out += struct.pack(f"<HHI{word}{word}{word}IHHHHHH", 3, 62, 1, 0, header if at is None else at, 0,
                       0, header, entry, len(segments) if count is None else count, 0, 0, 0)
    return out + table + body


def build_id_seeds():
    load, notes = 1, 4
    for bits in (32, 64):
        whole = elf((load, b"", None), (notes, note(kind=1) + note(), None), bits=bits)
        bodies = {
            "whole": whole,
            "second-segment": elf((notes, note(b"X\0"), None), (notes, note(), None), bits=bits),
            "none": elf((load, note(), None), bits=bits),
            "cut-short": whole[:-8],
            "cut-header": whole[:60],
            "many-headers": elf((notes, note(), None), bits=bits, count=65535),
            "far-table": elf((notes, note(), None), bits=bits, at=(1 << bits) - 8),
            "huge-segment": elf((notes, note(), (1 << bits) - 1), bits=bits),
        }
        for name, body in bodies.items():
            save("build_id", f"{name}-{bits}", body)
    save("build_id", "longest", elf((notes, note(content=bytes(range(64))), None)))
    save("build_id", "too-long", elf((notes, note(content=bytes(65)), None)))
    save("build_id", "of-nothing", elf((notes, note(content=b""), None)))
    save("build_id", "huge-content", elf((notes, note(content_size=0xFFFFFFFF), None)))
    save("build_id", "huge-owner", elf((notes, struct.pack("<III", 0xFFFFFFFD, 4, 3) + bytes(8), None)))
    save("build_id", "not-elf", b"#!/bin/sh\n" + bytes(64))


# ---- the command line, the journal, what a store has written ----

def target_seeds():
    for i, word in enumerate(["host", "host:9996", "[::1]:80", "fd77::2", "10.0.0.2:65535", "unix:/run/godwit.sock",
                              "ssh://root@host:22", "ssh://-oProxyCommand=x", "exec:ssh host godwit", "http://host", ":1",
                              "host:0", "host:65536", "[::1", "a]b:1", "", "64K", "5M", "18446744073709551616", "0.5",
                              "1e9", "-1", " 1", "nan", "1000000"]):
        save("target", f"word-{i}", word.encode())


def journal_seeds():
    lines = "nonce=1\npid=42\nstarted=99\ninsecure=0\ncommand=sleep\ntarget=ssh://host\n"
    for decision in ("open", "commit", "abort"):
        save("journal", decision, f"{decision}\n{lines}".encode())
    save("journal", "no-decision", f"perhaps\n{lines}".encode())
    save("journal", "nothing", b"")
    save("journal", "empty-line", f"\ncommit\n{lines}".encode())
    save("journal", "large", b"commit\npid=4294967296\nnonce=18446744073709551616\nstarted=-1\ninsecure=2\n")
    save("journal", "long", b"open\ntarget=" + b"x" * 1500 + b"\ncommand=" + b"y" * 400 + b"\n")
    save("journal", "nul", b"commit\0\ntarget=a\0b\n")


def about_seeds():
    common = "pid=42\nnonce=7\ncharge=4096\nbytes=100\nimages=2\nhost=a\ncommand=sleep\n"
    for state in ("held", "ready", "restoring", "prepared", "started", "restored", "in-doubt", "receiving", "filling"):
        save("about", state, f"state={state}\nfallback=ready\n{common}".encode())
        save("about", f"{state}-restore", (f"state={state}\nfallback=held\n{common}restore=1\nlazy=1\ntold_prepared=1\n"
                                           "settled=0\ntoken=5\noption=--shell-job\noption=--file-locks\n").encode())
    save("about", "nothing", b"")
    save("about", "no-value", b"state\n")
    save("about", "unknown", b"state=ready\nshape=round\nangle=90\n")
    save("about", "large", f"state=ready\ncharge={(1 << 64) - 1}\nbytes={1 << 63}\npid={1 << 40}\n".encode())


# ---- local sockets ----

def local_seeds():
    packets = {"failure": (10, text(1, "x")), "done": (11, number(1, 5)), "exited": (13, number(1, 137)),
               "dump-open": (20, text(1, "seed") + number(2, 42)), "restore-open": (30, text(1, "seed") + number(2, 1)),
               "restore-ready": (31, text(1, "seed") + text(3, "/run")), "forget": (40, text(1, "seed")),
               "resolve": (41, text(1, "seed") + number(2, 1)), "attach": (42, b""), "status": (50, b""),
               "status-daemon": (51, text(1, "image-cache")), "status-snapshot": (52, text(1, "seed")),
               "spool-write": (60, text(1, "seed")), "spool-published": (64, text(1, "seed.1")),
               "hook": (1, struct.pack("<IQ", 42, 7) + b"post-restore".ljust(32, b"\0")), "longest": (40, bytes(16 << 10)),
               "too-long": (40, bytes((16 << 10) + 1))}
    for name, (kind, body) in packets.items():
        for fds in ({0, 4, 5} if name in ("dump-open", "attach") else {0, 1}):
            save("local", f"{name}-{fds}", bytes([fds]) + struct.pack("<I", kind) + body)
    save("local", "short", b"\0\x0a\0")
    save("local", "empty", b"\0")
    save("local", "empty-with-descriptors", b"\2")


# ---- pre-flight ----

def facts_seeds():
    def file(path, kind=0, **more):
        fields = {"size": (3, 5), "mode": (5, 0o100755), "written": (6, 1), "any_size": (7, 1)}
        return text(6, number(1, kind) + text(2, path) + b"".join(number(fields[k][0], v) for k, v in more.items()))
    save("facts", "host", text(1, "4.2.1") + text(2, "6.1.0-13-amd64"))
    save("facts", "odd-versions", text(1, "4.") + text(2, "99999999999.1"))
    save("facts", "cpu", text(3, "fpu") + text(3, "no_such_flag") + text(3, "x" * 4000) + text(3, ""))
    save("facts", "pids", b"".join(number(4, n) for n in (0, 1, 2, 4000000, (1 << 32) - 1)))
    save("facts", "memory", number(5, (1 << 64) - 1))
    save("facts", "files", file("/bin/true", 1) + file("/", 2) + file("/bin/sh", mode=1) + file("/dev/null") + file("relative")
         + file("/none", size=7, written=1) + file("/etc/../etc/passwd", any_size=1) + file(""))
    save("facts", "many-files", b"".join(file(f"/none/{i}") for i in range(40)))
    save("facts", "many-pids", b"".join(number(4, 0) for i in range(400)))
    save("facts", "options", text(7, "--shell-job") + text(7, "-D/"))


# ---- moves that a pager waits to understand ----

def backlog_seeds():
    def remap(at, pages):
        return bytes([0, at, pages - 1])

    def unmap(at, end):
        return bytes([1, at, end - 1])
    for name, body in {
        "moved": remap(4, 4) + unmap(4, 8),
        "smaller": remap(4, 4) + unmap(6, 8) + unmap(4, 6),
        "smaller-unregistered": remap(4, 4) + unmap(4, 6),
        "stays": remap(4, 4) + remap(4, 4),
        "others-between": remap(4, 4) + unmap(100, 120) + remap(50, 3) + unmap(50, 53) + unmap(4, 8),
        "alone": remap(4, 4),
    }.items():
        save("backlog", name, b"\0\0" + body)
        save("backlog", f"{name}-wraps", b"\xff\xff" + body)


# ---- a space ----

def shadow_seeds():
    place, lazy, listed, zero, exists, end = range(6)

    def do(what, page=0, pages=1):
        return struct.pack("<BHB", what, page, pages - 1)
    bodies = {
        "nothing": b"",
        "ascending": do(place, 0, 24) + do(place, 24, 24),
        "again": do(place, 5, 20) + do(end) + do(lazy, 10, 5),
        "across-chunks": do(place, 500, 24) + do(lazy, 510, 4),
        "descending": do(place, 40, 10) + do(place, 20, 10) + do(place, 0, 10),
        "zeros": do(place, 0, 24) + do(zero, 10, 10) + do(place, 15, 2) + do(zero, 1000, 24),
        "lists": do(place, 0, 24) + do(exists, 5, 24) + do(zero, 31, 2) + do(listed, 600, 3),
        "last": do(place, 2047, 1) + do(lazy, 1536, 24),
        "rounds": (do(place, 3) + do(end)) * 30,
    }
    for name, body in bodies.items():
        for mode in (0, 1, 6, 7):
            save("shadow", f"{name}-{mode}", bytes([mode]) + body)


# ---- who the peer is ----

def credentials_seeds():
    for i, key in enumerate((b"ab" * 32, b"AB" * 32 + b"\n", b"0" * 63, b"ab" * 31, b"ab" * 512 + b" \n\t", b"ab" * 513, b"", b"zz" * 32,
                             b"ab" * 16 + b"\n" + b"ab" * 16, b"ab" * 31 + b"a\0")):
        save("credentials", f"psk-{i}", b"\0" + key)
    for which in range(1, 5):
        save("credentials", f"nothing-{which}", bytes([which]))
        for kind in ("CERTIFICATE", "X509 CRL", "PRIVATE KEY", "EC PRIVATE KEY"):
            body = f"-----BEGIN {kind}-----\nMAA=\n-----END {kind}-----\n"
            save("credentials", f"{kind.lower().replace(' ', '-')}-{which}", bytes([which]) + body.encode())


def record(kind, body, version=0x0303):
    return struct.pack(">BHH", kind, version, len(body)) + body


def client_hello(*extensions, version=0x0303, suites=b"\x13\x01\x13\x02"):
    body = b"".join(struct.pack(">HH", kind, len(data)) + data for kind, data in extensions)
    hello = struct.pack(">H", version) + bytes(range(32)) + b"\0" + struct.pack(">H", len(suites)) + suites + b"\1\0"
    hello += struct.pack(">H", len(body)) + body
    return record(22, b"\x01" + struct.pack(">I", len(hello))[1:] + hello, 0x0301)


def tls_seeds():
    versions, groups = (43, b"\x02\x03\x04"), (10, b"\0\x02\0\x1d")
    signatures, share = (13, b"\0\x04\x04\x03\x08\x07"), (51, b"\0\x24\0\x1d\0\x20" + bytes(range(1, 33)))
    psk_modes = (45, b"\x01\x01")
    psk = (41, struct.pack(">HH", 12, 6) + b"godwit" + bytes(4) + struct.pack(">HB", 33, 32) + bytes(32))
    strangers = {
        "nothing": b"",
        "plain-text": b"godwit\r\n\1\0\0\0\0\0\0\0",
        "hello": client_hello(versions, groups, signatures, share),
        "hello-psk": client_hello(versions, groups, signatures, share, psk_modes, psk),
        "hello-twice": client_hello(versions, groups, signatures, share) * 2,
        "another-group": client_hello(versions, groups, signatures, (51, b"\0\0")),
        "tls-1.2": client_hello(groups, signatures),
        "no-suite": client_hello(versions, groups, signatures, share, suites=b"\xc0\x2f"),
        "cut-short": client_hello(versions, groups, signatures, share)[:60],
        "alert": record(21, b"\2\x28"),
        "data-first": record(23, bytes(64)),
        "empty-record": record(22, b""),
        "long-message": record(22, b"\x01\xff\xff\xff" + bytes(100)),
        "server-hello": record(22, b"\x02\0\0\x2e\x03\x03" + bytes(range(32)) + b"\0\x13\x01\0\0\x06" + b"\0\x2b\0\x02\x03\x04"),
    }
    for mode in range(4):
        for name, body in strangers.items():
            save("tls", f"{name}-{mode}", bytes([mode]) + body)
        save("tls_harm", f"unharmed-{mode}", bytes([mode]))
        for where in (0, 3, 9, 60, 120, 300, 700):
            save("tls_harm", f"harm-{where}-{mode}", bytes([mode]) + struct.pack("<HB", where, 1))


# ---- a cache that answers ----

def sender_seeds():
    accept, token = frame(150), frame(150, text(1, bytes(range(16))))
    ack, refuse = frame(151), frame(152, number(1, 6) + text(2, "out of memory"))
    bodies = {
        "nothing": b"", "accept": accept, "token": token, "whole": accept + ack, "refused": refuse,
        "refused-later": accept + refuse, "ack-first": ack, "accept-twice": accept + accept,
        "refused-behind-ack": accept + ack + refuse, "short-token": frame(150, text(1, bytes(15))),
        "goodbye": accept + frame(2, number(1, 0)), "data": accept + frame(211, page(1)), "another-session": frame(150, session=2),
        "begin": frame(100, BEGIN), "no-reason": frame(152), "heartbeats": frame(3, session=0) * 9 + accept,
    }
    for name, body in bodies.items():
        for mode in (1 | 8, 1 | 2 | 8, 1 | 4 | 8):
            save("sender", f"{name}-{mode}", bytes([mode]) + body)


# ---- what the parser of an image-cache asks ----

def ask_seeds():
    ids, kinds = b"seed", {
        "start": (1, 3, 0, b"--tcp-established\0--file-locks\0", 2, 7), "start-plain": (1, 0, 0, b"", 0, 7),
        "start-script": (1, 0, 0, b"--action-script=/x\0", 1, 7), "start-value": (1, 0, 0, b"--ghost-limit\0001M\0", 2, 7),
        "go": (2, 1, 0, b"", 0, 0), "remove": (5, 4, 0, b"", 0, 0), "clear-up": (6, 0, 0, b"", 0, 0), "root": (10, 0, 42, b"", 0, 0),
        "kill": (12, 0, 0, b"", 0, 0), "host": (13, 0, 0, b"", 0, 0), "file": (14, 8, 0, b"/bin/sh\0", 1, 0),
        "pid": (15, 0, 42, b"", 0, 0), "parent": (16, 0, 42, b"", 0, 0), "room": (17, 0, 0, b"", 0, 0), "end": (20, 48, 0, b"", 0, 0),
    }
    for name, (kind, flags, pid, strings, count, token) in kinds.items():
        identity = ids if kind <= 12 and kind != 6 else b""
        body = struct.pack("<IIIIQ65s", kind, flags, pid, count, token, identity) + strings
        for mode in (1, 0, 7):
            save("ask", f"{name}-{mode}", bytes([mode | (8 if name == "room" else 0)]) + body)


for seed, (index, body) in MESSAGES.items():
    save("message", seed, bytes([index]) + body)
link_seeds()
page_server_seeds()
stream_seeds()
pagemap_seeds()
mm_seeds()
cow_areas_seeds()
core_seeds()
hook_memory_seeds()
lazy_seeds()
space_map_seeds()
fill_map_seeds()
build_id_seeds()
target_seeds()
journal_seeds()
about_seeds()
local_seeds()
facts_seeds()
backlog_seeds()
shadow_seeds()
credentials_seeds()
tls_seeds()
sender_seeds()
ask_seeds()
