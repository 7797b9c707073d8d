# SPDX-License-Identifier: Apache-2.0
"""An image-cache that breaks the protocol on purpose, to a real `godwit migrate` and a real image-proxy: every number of a
frame in every state of a migration and of a dump, and what is no frame.

Of each case: the source says goodbye and why, in one line, and the process runs on as if nothing had been tried; behind the
decision, when there is no way back, it has ended here, and does not run again.
"""

import contextlib
import os
import socket
import ssl
import struct
import threading

import pytest

import hostile
from bed import SLOW, Bed, wait_for
from credentials import TLS, x509
from failures import FRAMES, frame, in_network, message, parse_message
from godwit import ABORTED, CRIU, DOUBT, PEER, REFUSED, Counter, Godwit
from hostile import Link, any_frame, bulk, is_reason, name_of

TIMEOUT = SLOW  # seconds of silence
SAID = 1  # what WELL_FORMED gives for a reason
MIB = 1 << 20


class Gone(Exception):
    """A connection that the source had given up before anybody took it."""


class Cache:
    """One of our own: the first connection is a case's, all others are honest."""

    def __init__(self, host, context=None):
        self.context = context  # of TLS
        self.listener = in_network(host, lambda: socket.create_server(("127.0.0.1", 0), backlog=64))
        self.port = self.listener.getsockname()[1]
        self.heard = 0  # verdicts

    def accept(self, patience=20):
        self.listener.settimeout(patience)
        sock = self.listener.accept()[0]
        if self.context:
            sock.settimeout(5)
            try:
                sock = self.context.wrap_socket(sock, server_side=True)
            except (OSError, ssl.SSLError):
                raise Gone from None
        return Link(sock)

    def serve(self, is_over):
        """What an honest cache says of something that is decided, on any link, until there is nobody to say it to."""
        while not is_over():
            with contextlib.suppress(TimeoutError, Gone), self.accept(0.05) as link:
                link.sock.settimeout(2)
                with contextlib.suppress(AssertionError, TimeoutError, ConnectionError):
                    link.greet()
                    self.answer(link, is_over)

    def answer(self, link, is_over):
        while not is_over():
            number, payload = link.hear()
            if number not in (FRAMES["VERDICT"], FRAMES["SETTLED"]):
                if number in (None, FRAMES["GOODBYE"]):
                    return
                continue
            said = parse_message(payload)
            name = said[1].decode()
            self.heard += number == FRAMES["VERDICT"]
            if number == FRAMES["SETTLED"]:
                link.say(frame("VERDICT_ACK", message(f1=name, f2=said[2]), 0))
                continue
            link.say(frame("VERDICT_ACK", message(f1=name, f2=said[4], f3=1), 0))
            if said.get(2):
                link.say(frame("RESTORED", message(f1=name, f2=said[4], f3=1), 0))

    def close(self):
        self.listener.close()


# ---- states of a source: what the cache has said ----

def connected(link):
    pass


def greeted(link):
    link.say(hostile.PREAMBLE)


def up(link):
    link.greet()


def hear_begin(link):
    """Answers what is asked until a snapshot begins: its session, name and nonce are the link's from then on."""
    while True:
        number, payload = link.hear()
        if number == FRAMES["CHECK"]:
            link.say(frame("CHECKED", b"", 0))
        elif number == FRAMES["SNAPSHOT_BEGIN"]:
            said = parse_message(payload)
            link.name, link.nonce = said[1].decode(), said[5]
            link.session = link.heard_session
            return
        elif number is None:
            raise Gone


def begun(link):
    link.greet()
    hear_begin(link)


def accepted(link):
    begun(link)
    link.say(frame("SNAPSHOT_ACCEPT", session=link.session))
    while link.hear()[0] not in (FRAMES["SPACE_BEGIN"], FRAMES["IMAGE_BEGIN"]):
        pass


def ended(link):
    accepted(link)
    link.hear_until("SNAPSHOT_END")


def acked(link):
    ended(link)
    link.say(frame("SNAPSHOT_ACK", session=link.session))


def decided(link):
    """The source has ended its process."""
    acked(link)
    link.say(frame("PREPARED", message(f1=link.name, f2=link.nonce), 0))
    assert parse_message(link.hear_until("VERDICT")).get(2) == 1


def told(link):
    """The same of a dump, for which nothing need be prepared."""
    acked(link)
    assert parse_message(link.hear_until("VERDICT")).get(2) == 1


# ---- cases ----

BEFORE = (connected, greeted)
STANDINGS = {"VERDICT_ACK", "PREPARED", "RESTORED", "RESTORE_FAILED"}  # of what nobody has sent: for information
MIGRATE = {  # state: what does not break the protocol there, besides goodbye
    connected: set(), greeted: {"HELLO"}, up: {"HEARTBEAT", "CHECKED"} | STANDINGS,
    begun: {"HEARTBEAT", "CHECKED", "SNAPSHOT_ACCEPT", "SNAPSHOT_REFUSE"} | STANDINGS,
    accepted: {"HEARTBEAT", "CHECKED", "SNAPSHOT_REFUSE"} | STANDINGS,
    ended: {"HEARTBEAT", "CHECKED", "SNAPSHOT_REFUSE", "SNAPSHOT_ACK"} | STANDINGS,
    acked: {"HEARTBEAT", "CHECKED", "SNAPSHOT_REFUSE"} | STANDINGS,
    decided: {"HEARTBEAT", "CHECKED", "SNAPSHOT_REFUSE"} | STANDINGS,
}
PROXY = {  # what comes for a dump that is over is let pass
    connected: set(), greeted: {"HELLO"}, up: {"HEARTBEAT", "VERDICT_ACK", "SNAPSHOT_ACCEPT", "SNAPSHOT_ACK", "SNAPSHOT_REFUSE"},
    begun: {"HEARTBEAT", "VERDICT_ACK", "SNAPSHOT_ACCEPT", "SNAPSHOT_REFUSE"},
    accepted: {"HEARTBEAT", "VERDICT_ACK", "SNAPSHOT_REFUSE"},
    ended: {"HEARTBEAT", "VERDICT_ACK", "SNAPSHOT_REFUSE"},
    told: {"HEARTBEAT", "VERDICT_ACK", "SNAPSHOT_REFUSE", "SNAPSHOT_ACCEPT", "SNAPSHOT_ACK"},
}
NUMBERS = sorted({0, 99, 65535, *FRAMES.values()})
FEW = [0, *(FRAMES[n] for n in ("GOODBYE", "HEARTBEAT", "SNAPSHOT_BEGIN", "SNAPSHOT_ACCEPT", "PREPARED", "PAGES")), 65535]


def no_frames():
    """(name, function of the session that gives bytes): each is a break."""
    yield "garbage", lambda session: b"\xa5" * 64
    yield "a wrong check", lambda session: frame("HEARTBEAT", check=1)
    yield "a message that is too long", lambda session: frame("CHECKED", b"", length=(1 << 16) + 1)
    yield "a message without end", lambda session: frame("CHECKED", b"", length=(1 << 32) - 1)
    yield "data that is too long", lambda session: bulk("PAGES", b"", length=(1 << 20) + 1)
    yield "no data", lambda session: bulk("IMAGE_DATA", b"", session=session)
    yield "flags", lambda session: frame("HEARTBEAT", flags=1)


def broken():
    """What no message may be."""
    for what, payload in hostile.broken_messages().items():
        yield f"verdict-ack {what}", lambda session, p=payload: frame("VERDICT_ACK", p, 0)


def cases(states):
    for state, allowed in states.items():
        for number in FEW if state in BEFORE else NUMBERS:
            kind = next((k for k, v in FRAMES.items() if v == number), None)
            if states is PROXY and (state, kind) == (ended, "SNAPSHOT_ACK"):
                continue  # it is what is waited for
            is_break = kind not in allowed and not (kind == "GOODBYE" and state is not connected)
            yield f"{state.__name__}: {name_of(number)}", state, lambda session, n=number: any_frame(n, session=session), is_break
        for name, make in (*no_frames(), *(broken() if state in (up, accepted) else ())):
            yield f"{state.__name__}: {name}", state, make, True
        yield f"{state.__name__}: the end", state, lambda session: b"", False


MIGRATIONS = {name: (state, make, is_break) for name, state, make, is_break in cases(MIGRATE)}
MIGRATIONS_BY_TLS = {name: case for name, case in MIGRATIONS.items()
                     if name.split(": ")[1] in {*map(name_of, FEW), "the end", *(what for what, _ in no_frames())}}
DUMPS = {name: (state, make, is_break) for name, state, make, is_break in cases(PROXY)}


# ---- a source ----

class Source:
    """A host with a process that counts, and a cache of ours for it to be moved to."""

    def __init__(self, bed, tls=False):
        self.godwit = Godwit(bed.host("a", cidr="10.77.0.1/24"))
        self.host = self.godwit.host
        self.credentials = self.issue() if tls else []
        self.cache = Cache(self.host, self.context if tls else None)
        self.made = 0
        self.counter = None

    def issue(self):
        """Credentials for the source, and a server that has those of a cache."""
        self.godwit.run("keygen", TLS, "a", "b,127.0.0.1", workdir=False)
        own = self.host.path(f"{TLS}/b")
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=own / "cacert.pem")
        self.context.load_cert_chain(own / "cert.pem", own / "key.pem")
        self.context.verify_mode = ssl.CERT_REQUIRED
        return x509("a")

    def migrate(self):
        return self.godwit.begin_migrate(self.process().pid, f"127.0.0.1:{self.cache.port}", "--timeout", TIMEOUT, *self.credentials)

    def process(self):
        if not self.counter:
            self.made += 1
            self.counter = Counter(self.host, f"count{self.made}")
        return self.counter

    def lie(self, state, make, is_break):
        """Brings the source into a state, says something, and hears what it says."""
        for _ in range(5):
            with contextlib.suppress(Gone), self.cache.accept() as link:
                said = self.lie_to(link, state, make, is_break)
                break
        assert is_reason(said) if is_break else not said.get(1) or is_reason(said), said

    @staticmethod
    def lie_to(link, state, make, is_break):
        link.session = 1
        state(link)
        link.say(make(link.session))
        if not is_break:  # who closes before it has been seen to be root's never comes up, and is told nothing
            hostile.shut(link.sock)
        if state in BEFORE:
            with contextlib.suppress(ConnectionError):
                link.exactly(len(hostile.PREAMBLE))
        return link.end()

    def check(self, lives):
        """The process runs on; or it has ended, and all of it."""
        if lives:
            self.counter.runs_on(self.host, more=0)
            return
        self.host.wait_dead(self.counter.pid)
        face = self.counter.face().counter
        self.counter.stands()
        assert self.counter.face().counter == face
        self.counter = None


@pytest.fixture(scope="module")
def source():
    with Bed() as bed:
        made = Source(bed)
        yield made
        made.cache.close()


@pytest.fixture(scope="module")
def protected():
    with Bed() as bed:
        made = Source(bed, tls=True)
        yield made
        made.cache.close()


def one_line(command, err):
    lines = [line for line in err.splitlines() if not line.startswith(("warning", "problem"))]
    assert len(lines) == 1 and lines[0].startswith(f"godwit {command}: ") and lines[0].isprintable(), err


@pytest.mark.xdist_group("hostile-migrate")
def test_refused_for_its_criu(source):
    """That criu has failed counts at the source only of its own, which is waited for: what the other host says of its is a reason."""
    migrate = source.migrate()
    source.lie(ended, lambda session: frame("SNAPSHOT_REFUSE", message(f1=CRIU, f2="a criu of 1998"), session), False)
    source.cache.serve(lambda: migrate.ended)
    assert "a criu of 1998" in migrate.end(code=ABORTED).err
    source.check(lives=True)
    source.godwit.wait_gone("criu")


@pytest.mark.xdist_group("hostile-migrate")
@pytest.mark.parametrize("name", hostile.named(MIGRATIONS))
def test_migrate(source, name):
    lie_to_migrate(source, *MIGRATIONS[name])


@pytest.mark.xdist_group("hostile-migrate-tls")
@pytest.mark.parametrize("name", hostile.named(MIGRATIONS_BY_TLS))
def test_migrate_by_tls(protected, name):
    """By who has good credentials."""
    lie_to_migrate(protected, *MIGRATIONS_BY_TLS[name])


def lie_to_migrate(source, state, make, is_break):
    godwit, migrate = source.godwit, source.migrate()
    source.lie(state, make, is_break)
    source.cache.serve(lambda: migrate.ended)
    _, err = migrate.process.communicate()
    status = migrate.process.returncode
    if state is decided:
        assert status in (0, DOUBT), err
        forget(godwit)
    else:
        assert status in (PEER, REFUSED, ABORTED), (status, err)
        one_line("migrate", err)
    source.check(lives=state is not decided)
    godwit.wait_gone("criu")


def record(kind, body, version=0x0303, length=None):
    """Of TLS."""
    return struct.pack("!BHH", kind, version, len(body) if length is None else length) + body


def handshake(kind, body, length=None):
    return struct.pack("!I", kind << 24 | (len(body) if length is None else length)) + body


SERVER_HELLO = b"\x03\x03" + bytes(range(32)) + b"\0" + b"\x13\x02" + b"\0"  # TLS_AES_256_GCM_SHA384
STRANGERS = {  # what a server that has no credentials says in place of its hello
    "nothing": b"", "garbage": b"\xa5" * 600, "plain text": hostile.PREAMBLE + frame("HELLO", hostile.hello(), 0),
    "an alert": record(21, b"\2\x28"), "many warnings": record(21, b"\1\x5a") * 5000,
    "a record that is too long": record(22, b"\2" * 20000, length=0xffff), "an empty record": record(22, b""),
    "many empty records": record(22, b"") * 20000, "another version": record(22, handshake(2, SERVER_HELLO), version=0x0900),
    "a hello that is cut short": record(22, handshake(2, SERVER_HELLO))[:-4],
    "a hello of TLS 1.2": record(22, handshake(2, SERVER_HELLO + b"\0\0")),
    "a hello without a key": record(22, handshake(2, SERVER_HELLO + struct.pack("!HHHH", 6, 43, 2, 0x0304))),
    "a hello of 16 MiB": record(22, handshake(2, SERVER_HELLO, length=0xffffff)) + record(22, b"x" * 16384) * 300,
    "the end of the handshake": record(22, handshake(20, bytes(48))), "data": record(23, b"x" * 1000),
    "a certificate": record(22, handshake(11, bytes(1000))),
}


@pytest.mark.xdist_group("hostile-migrate-tls")
@pytest.mark.parametrize("name", STRANGERS)
def test_strangers(protected, name):
    """Who has no credentials gets nothing but the source's hello, and what it says is refused with a line."""
    migrate = protected.migrate()
    protected.cache.listener.settimeout(20)
    with protected.cache.listener.accept()[0] as sock:
        sock.settimeout(10)
        with contextlib.suppress(ConnectionError):
            sock.sendall(STRANGERS[name])
        hostile.shut(sock)
        heard = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            while more := sock.recv(65536):
                heard += more
    _, err = migrate.process.communicate(timeout=60)
    assert migrate.process.returncode == PEER, err
    one_line("migrate", err)
    assert heard[:1] == b"\x16" and len(heard) < 1000 and b"counter" not in heard
    protected.check(lives=True)


def forget(godwit):
    """What is in doubt stays in the journal, for an operator: it is this one's."""
    journal = godwit.host.path(f"{godwit.workdir}/journal")
    for entry in journal.iterdir() if journal.exists() else ():
        assert entry.read_text().startswith("commit\n")
        entry.unlink()
        journal.rmdir()


# ---- an image-proxy ----

class Proxied(Source):
    def __init__(self, bed):
        super().__init__(bed)
        self.proxy = self.godwit.daemon("image-proxy", "--address", "127.0.0.1", "--port", self.cache.port, "--timeout", 5)
        with self.cache.accept() as link:
            link.greet()
        self.seen = len(self.proxy.log())
        self.before, self.bytes = self.proxy.fds(), self.proxy.rss()

    def check_proxy(self):
        assert self.proxy.alive, self.proxy.log()
        for line in self.proxy.log()[self.seen:].splitlines():
            assert line.isprintable() and len(line) < 1000, line
        self.seen = len(self.proxy.log())


@pytest.fixture(scope="module")
def proxied():
    with Bed() as bed:
        made = Proxied(bed)
        yield made
        # What is there without a link: none is made any more when nobody listens.
        made.cache.close()
        wait_for(lambda: len(made.proxy.fds()) <= len(made.before), 10, lambda: f"{made.before} to be all it has: {made.proxy.fds()}")
        grown = made.proxy.rss() - made.bytes
        assert grown < 2 * MIB, f"the image-proxy has grown by {grown} bytes"


@pytest.mark.xdist_group("hostile-proxy")
@pytest.mark.parametrize("name", hostile.named(DUMPS))
def test_proxy(proxied, name):
    state, make, is_break = DUMPS[name]
    dump = None
    if state not in (*BEFORE, up):
        dump = proxied.godwit.begin_dump(proxied.process().pid, "--timeout", 5)
    proxied.lie(state, make, is_break)
    if dump:
        proxied.cache.heard = 0
        server = threading.Thread(target=proxied.cache.serve, args=(lambda: dump.ended,))
        server.start()
        _, err = dump.process.communicate(timeout=60)
        server.join()
        status = dump.process.returncode
        if state is told:
            assert status in (0, DOUBT), err
            proxied.cache.serve(lambda: proxied.cache.heard)  # it is said again, on this link or the next
        else:
            assert status in (PEER, CRIU, SAID), (status, err)
            one_line("dump", err)
        proxied.check(lives=state is not told)
        clear(proxied.godwit)
    proxied.check_proxy()


def clear(godwit):
    """criu's log of a dump that failed stays on purpose."""
    for directory in godwit.host.path(godwit.workdir).glob("dump-*"):
        for path in directory.iterdir():
            os.unlink(path)
        directory.rmdir()
