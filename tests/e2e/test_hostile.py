# SPDX-License-Identifier: Apache-2.0
"""A peer that breaks the protocol on purpose, to a real image-cache: in plain text, by TLS before and after it has shown who
it is.  The cases are generated, see hostile.py.

Of each case: the daemon lives, drops that peer and says in one line why, a good link beside it goes on, and descriptors and
the store are as they were; of all of them together: the daemon's memory is too.
"""

import contextlib
import random
import re
import socket
import ssl
import struct
import time

import pytest

import hostile
from bed import SHARED, Bed, wait_for
from failures import frame, in_network, message, parse_message
from godwit import Godwit
from hostile import ALIVE, BREAK, CLOSE, PAGE, PEER, REFUSE, Link
from live import ours

PORT = 9996
CASES = {name: (state, data, want) for name, state, data, want in hostile.cases()}
STRANGERS = dict(hostile.strangers())
ENDS = ["close", "reset", "half-close"]
LINE_MAX = 1000  # characters of a line in the log
MIB = 1 << 20


class Target:
    """An image-cache that is told lies, and a good link to it."""

    def __init__(self, bed, tls, *options):
        self.host = bed.host("a", cidr="10.77.0.1/24")
        self.godwit = Godwit(self.host)
        self.context, credentials, self.address = None, [], "127.0.0.1"
        if tls:
            self.address = "10.77.0.1"
            credentials = self.issue()
        self.cache = self.godwit.cache("--memory-limit", "64M", *credentials, *options, address=self.address)
        self.seen = 0  # characters of the log
        self.silent_until = 0
        self.rng = random.Random(1)
        self.good = self.connect()
        self.good.greet()
        self.wait_calm(first=True)
        self.before = self.measure()
        self.bytes = self.cache.rss()

    def issue(self):
        """Credentials for both, and a client that has them."""
        ca = f"{SHARED}/tls"
        self.godwit.run("keygen", ca, "b,10.77.0.1", "peer", workdir=False)
        files = [str(self.host.path(f"{ca}/peer/{name}.pem")) for name in ("cert", "key", "cacert")]
        self.context = ssl.create_default_context(cafile=files[2])
        self.context.load_cert_chain(files[0], files[1])
        return [w for option, name in (("cacert", "cacert"), ("cert", "cert"), ("key", "key"))
                for w in (f"--tls-{option}", f"{ca}/b/{name}.pem")]

    def socket(self):
        """A connection, as it is."""
        made = in_network(self.host, lambda: socket.create_connection((self.address, PORT), 20))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def protected(self):
        made = self.socket()
        return self.context.wrap_socket(made, server_hostname=self.address) if self.context else made

    def connect(self):
        return Link(self.protected())

    # ---- looking ----

    def measure(self):
        """Descriptors of the daemon, and what its store holds."""
        return self.cache.fds(), self.godwit.files(f"{self.godwit.workdir}/images"), self.godwit.tmpfs_used()

    def wait_calm(self, first=False):
        if not first:
            wait_for(lambda: self.measure() == self.before, 10,
                     lambda: f"the image-cache to have what it had: {self.before}, {self.measure()}", every=0.002)

    def new_lines(self):
        text = self.cache.log()
        lines = text[self.seen:].splitlines()
        self.seen = len(text)
        return lines

    def check_lines(self, about, count=1):
        """It has said so many times that a link ended, and why; and nothing that is not a line for people.

        Of strangers it says no more than some lines in a second, and that it leaves out others.
        """
        lines = []

        def told():
            lines.extend(self.new_lines())
            if any("more lines about strangers are left out" in line for line in lines):
                self.silent_until = time.monotonic() + 1
            ends = sum(bool(re.search("info: (link to the source|data connection .* of host)", line)) for line in lines)
            return ends >= count or time.monotonic() < self.silent_until

        wait_for(told, 10, lambda: f"a line in the log, of {about!r}: {lines}", every=0.002)
        ends = [line for line in lines if re.search("info: (link to the source|data connection .* of host)", line)]
        silent = time.monotonic() < self.silent_until
        if not silent:
            assert len(ends) == count and about in ends[0], (about, lines)
        self.wait_calm()
        if silent:
            lines.extend(self.new_lines())  # of this end, for which nobody has waited
        for line in lines:
            assert line.isprintable() and len(line) < LINE_MAX, line

    def check_good(self):
        """The good link beside: it is answered, and now and then brings a whole snapshot."""
        assert self.good.lives(), self.cache.log()[-2000:]
        if self.rng.random() < 0.05:
            send_good(self.good)

    def check(self, about, count=1):
        assert self.cache.alive, self.cache.log()[-2000:]
        self.check_lines(about, count)
        self.check_good()
        self.wait_calm()

    def check_memory(self):
        grown = self.cache.rss() - self.bytes
        assert grown < 4 * MIB, f"the image-cache has grown by {grown} bytes"


def send_good(link):
    """A snapshot with an image and a page, which is dropped again."""
    said = struct.pack("<QQ", 0x1000, len(PAGE)) + PAGE
    link.say(hostile.begin("good") + hostile.GOOD_IMAGE + frame("SPACE_BEGIN", message(f1=1, f2=42), 1, 2)
             + hostile.bulk("PAGES", PAGE, 2, 0x1000) + frame("SPACE_END", message(f1=len(PAGE), f2=hostile.xxh3_128(said)), 1, 2)
             + frame("SNAPSHOT_END", message(f1=1, f2=1, f3=3 + len(PAGE))))
    link.hear_until("SNAPSHOT_ACK")
    link.say(frame("VERDICT", message(f1="good", f4=7), 0))
    assert parse_message(link.hear_until("VERDICT_ACK")).get(3) == 1


@pytest.fixture(scope="module", params=[pytest.param("plain", marks=pytest.mark.xdist_group("hostile")),
                                        pytest.param("tls", marks=pytest.mark.xdist_group("hostile-tls"))])
def target(request):
    with Bed() as bed:
        made = Target(bed, request.param == "tls")
        yield made
        made.check_memory()
        made.good.sock.close()


# ---- the tables ----

def still_there(link):
    """That a data connection, which has no questions, has not been closed."""
    link.say(frame("HEARTBEAT", session=0))
    link.sock.settimeout(0.05)
    try:
        return link.hear()[0] is not None
    except TimeoutError:
        return True


def check_refused(own):
    """A session that has lost a data connection is refused, and its link lives."""
    if not own.refusal:
        own.hear_until("SNAPSHOT_REFUSE")
    assert own.refusal[1] == PEER and b"data connection 1: " in own.refusal[2] and own.lives()


def leave(link):
    """Takes back what may be held of it."""
    link.say(frame("VERDICT", message(f1="hostile", f4=7), 0))
    link.hear_until("VERDICT_ACK")


def expect(link, want, own):
    asked = own or link
    if want in (BREAK, CLOSE):
        said = link.end()
        assert want == CLOSE and not said or want == BREAK and hostile.is_reason(said), said
        if own:
            check_refused(own)
        return
    assert asked.lives()
    if own and want == ALIVE:
        assert still_there(link)
    if want == REFUSE:
        assert asked.refusal and asked.refusal.get(1) and asked.refusal[2].decode().isprintable()
    leave(asked)


@pytest.mark.parametrize("name", hostile.named(CASES))
def test_case(target, name):
    state, data, want = CASES[name]
    target.new_lines()  # of a case that failed
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(target.connect())
        state(link, target.connect)
        own = link.own and stack.enter_context(link.own)
        link.say(data)
        if state in (hostile.connected, hostile.greeted) and want != CLOSE:
            link.exactly(len(hostile.PREAMBLE))
        expect(link, want, own)
    if own:
        # The session's link ends behind its data connection, and says so too.
        target.check("", count=2)
    else:
        target.check("" if want in (ALIVE, REFUSE, CLOSE) else "link to the source")


# ---- connections that end ----

def end_it(sock, how):
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half-close":
        hostile.shut(sock)
    else:
        sock.close()


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("state", hostile.STATES, ids=lambda s: s.__name__)
def test_end(target, state, how):
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(target.connect())
        state(link, target.connect)
        own = link.own and stack.enter_context(link.own)
        end_it(link.sock, how)
        if how == "half-close":
            link.end()
        if own:
            check_refused(own)
    target.check("", count=2 if own else 1)


def greeting():
    return hostile.PREAMBLE + frame("HELLO", hostile.hello(), 0)


SESSION = greeting() + hostile.begin() + hostile.GOOD_IMAGE + frame("SPACE_BEGIN", message(f1=1, f2=42), 1, 2) + hostile.bulk(
    "PAGES", PAGE, 2, 0x1000)


@pytest.mark.parametrize("at", sorted({*range(0, 16, 5), *range(16, len(SESSION) - len(PAGE), 37), len(SESSION) - len(PAGE), len(SESSION) - 1}))
def test_cut_short(target, at):
    """A session that ends in the midst of whatever it was saying."""
    with target.connect() as link:
        link.say(SESSION[:at])
    target.check("")


def test_byte_at_a_time(target):
    """What is right is right however it is cut."""
    with target.connect() as link:
        for byte in SESSION[:-len(PAGE)]:
            link.say(bytes([byte]))
        link.say(SESSION[-len(PAGE):])
        link.exactly(len(hostile.PREAMBLE))
        link.hear_until("SNAPSHOT_ACCEPT")
        assert link.lives()
    target.check("")


def test_rubbish(target):
    """Sessions with bytes changed at random: any answer, and no harm."""
    rng = random.Random(7)
    for _ in range(60):
        said = bytearray(SESSION)
        for _ in range(rng.choice([1, 2, 8])):
            said[rng.randrange(len(said))] ^= 1 << rng.randrange(8)
        with target.connect() as link:
            link.say(bytes(said))
            link.sock.shutdown(socket.SHUT_WR)
            link.end()
        target.check("")


# ---- all that one may take ----

KINDS = [pytest.param(False, id="plain", marks=pytest.mark.xdist_group("hostile")),
         pytest.param(True, id="tls", marks=pytest.mark.xdist_group("hostile-tls"))]


@pytest.fixture(params=KINDS)
def fresh(request):
    """One for a test alone: what malloc() keeps of much memory it keeps."""
    with Bed() as bed:
        made = Target(bed, request.param)
        yield made
        made.good.sock.close()


def test_one_who_does_not_listen(fresh):
    """Questions without end, and the answers are not read: the queue of answers is bounded."""
    with fresh.connect() as link:
        link.greet()
        link.sock.settimeout(0.3)
        asked = frame("CHECK", message(f6=message(f1=1, f2="/no/such/file")) * 12, 0) * 64
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            for _ in range(2000):
                link.sock.sendall(asked)
        assert fresh.cache.peak_rss() - fresh.bytes < 24 * MIB
        assert fresh.good.lives()
    fresh.check("")


def test_too_many(fresh):
    """More of those who have not shown who they are than there may be: the oldest go, and the good link lives."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(Link(fresh.socket())) for _ in range(70)]
        wait_for(lambda: fresh.cache.log().count("is dropped") >= 6, 10, "some to be dropped")
        assert fresh.good.lives()
        assert fresh.cache.peak_rss() - fresh.bytes < 24 * MIB
        assert [turned_away(link.sock) for link in made] == [True] * 6 + [False] * 64
    fresh.check("", count=64)


def turned_away(sock):
    """Whether it has been closed, behind what each is told at first."""
    sock.settimeout(0.02)
    try:
        while sock.recv(4096):
            pass
        return True
    except ConnectionError:
        return True
    except TimeoutError:
        return False


# ---- a restore that it may ask for ----

@pytest.fixture(scope="module")
def accepting():
    with Bed() as bed:
        made = Target(bed, False, "--accept")
        yield made
        made.good.sock.close()


LATER = {"nothing": b"", "an abort": frame("SNAPSHOT_ABORT", message(f1=1, f2="no")), "garbage": b"\xa5" * 64,
         "freezing, twice": frame("FREEZING"), "an image with a bit turned": hostile.IMAGE + frame("IMAGE_END", message(f2=bytes(16)), 1, 1),
         "memory that has no image": hostile.SPACE + hostile.bulk("PAGES", PAGE, offset=hostile.ADDRESS, flags=1) + frame(
             "SPACE_END", hostile.end_of(PAGE, hostile.ADDRESS), 1, 1),
         "the end, of images that are none": hostile.GOOD_IMAGE + hostile.GOOD_END}


@pytest.mark.xdist_group("hostile")
@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("lazy", [0, 1], ids=["eager", "lazy"])
@pytest.mark.parametrize("later", LATER)
def test_freezing(accepting, later, lazy, how):
    """criu and the pager are started for a process that never comes: nothing of them is left."""
    target = accepting
    with target.connect() as link:
        link.open(f6=1, f8=lazy)
        link.say(frame("FREEZING"))
        assert link.lives()
        link.say(LATER[later])
        if later.startswith("the end"):
            link.hear_until("RESTORE_FAILED")
        end_it(link.sock, how)
    target.check("")
    check_nothing_started(target.godwit)


def check_nothing_started(godwit):
    """No criu, no pager, and none of their files."""
    wait_for(lambda: not ours(godwit), 10, lambda: f"criu and the pager to end: {ours(godwit)}")
    for log in godwit.host.path(godwit.workdir).glob("incoming-*/restore.log"):
        log.unlink()
        log.parent.rmdir()
    assert godwit.is_clean(), godwit.files()


@pytest.mark.xdist_group("hostile")
@pytest.mark.parametrize("lazy", [0, 1], ids=["eager", "lazy"])
def test_freezing_and_given_up_on_another_link(accepting, lazy):
    """It says elsewhere that it goes on, before all of it has come: what was started for it ends."""
    with accepting.connect() as link, accepting.connect() as other:
        link.name = f"given-up-{lazy}"
        link.open(f6=1, f8=lazy)
        link.say(frame("FREEZING"))
        assert link.lives()
        other.greet()
        other.say(frame("VERDICT", message(f1=link.name, f3="no", f4=7), 0))
        other.hear_until("VERDICT_ACK")
        link.say(hostile.GOOD_IMAGE + hostile.GOOD_END)
        link.hear_until("SNAPSHOT_ACK")
        assert link.lives()
        check_nothing_started(accepting.godwit)
    accepting.check("", count=2)


# ---- silence ----

@pytest.mark.parametrize("tls", KINDS)
def test_silence(tls):
    """Who says nothing, in whatever state, is dropped in time, and the next may come."""
    with Bed() as bed:
        target = Target(bed, tls, "--timeout", "2")
        with contextlib.ExitStack() as stack:
            stack.enter_context(target.good)
            links = []
            for state in hostile.STATES:
                link = stack.enter_context(target.connect())
                link.name = state.__name__
                state(link, target.connect)
                links += [link, *([stack.enter_context(link.own)] if link.own else [])]
            if tls:
                links.append(stack.enter_context(Link(target.socket())))  # no handshake
            for link in links:
                assert not link.end(), "there is nobody to say it to"
        lines = []
        wait_for(lambda: lines.extend(target.new_lines()) or sum("silent for" in l or "did not finish" in l for l in lines) >= len(links) + 1,
                 10, lambda: f"a line of each: {lines}")
        with target.connect() as link:
            link.greet()
            send_good(link)


# ---- TLS, before it is known who it is ----

@pytest.fixture(scope="module")
def guarded():
    with Bed() as bed:
        made = Target(bed, tls=True)
        yield made
        made.check_memory()
        made.good.sock.close()


@pytest.mark.xdist_group("hostile-tls")
@pytest.mark.parametrize("name", hostile.named(STRANGERS))
def test_stranger(guarded, name):
    """Nothing of the protocol of links is heard from one who has not shown who he is."""
    with Link(guarded.socket()) as link:
        link.say(STRANGERS[name])
        end_it(link.sock, "half-close")
        heard = link.sock.recv(4096)
        assert not heard or heard[0] in (20, 21, 22), heard  # TLS, and no preamble
    guarded.check("")
    assert "linked to host" not in guarded.cache.log().splitlines()[-1]


@pytest.mark.xdist_group("hostile-tls")
def test_without_a_certificate(guarded):
    """A client that shows none, and says what it has to say at once."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with Link(context.wrap_socket(guarded.socket())) as link:
        link.say(SESSION)
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert link.sock.recv(4096) == b""
    guarded.check("shows no certificate")


@pytest.mark.xdist_group("hostile-tls")
def test_byte_at_a_time_tls(guarded):
    """A hello that drips in is taken as it is, and its silence counts."""
    with Link(guarded.socket()) as link:
        for byte in STRANGERS["a hello, twice"][:200]:
            link.say(bytes([byte]))
            time.sleep(0.001)
    guarded.check("")
