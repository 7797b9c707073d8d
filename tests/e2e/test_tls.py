# SPDX-License-Identifier: Apache-2.0
"""Links by TCP between hosts: certificates and keys, who is refused and how each side says so, and harm on the way.

Credentials are made by `godwit keygen`; those that have to be bad, by certtool.
"""

import re
import socket
import stat
import subprocess
import sys
import time

import pytest

from bed import REPO, SHARED, wait_for, workload
from credentials import A, B, TARGET, TLS, options, psk, x509
from godwit import ABORTED, BUSY, MIB, PEER, REFUSED, USAGE, WORKDIR, Counter, Godwit, check_memory, program

DEFAULT = "/etc/godwit/tls"
RELAY = REPO / "tests" / "e2e" / "relay.py"


# ---- it works ----

@pytest.mark.parametrize("target", [TARGET, "fd77::2"])
@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("kind", ["certificates", "pre-shared key"])
def test_migrate(issued, kind, streams, target):
    a, b = issued
    cache = b.cache("--accept", *options(kind, "b"), address=target)
    pid = a.host.spawn([workload("selfcheck"), 96, f"{SHARED}/self"])
    a.host.wait_text(f"{SHARED}/self", "ok 0", 30)
    done = a.migrate(pid, target, "--verify", "--downtime", 10000, "--streams", streams, *options(kind, "a"))
    assert done.err == "" and f"{pid} moved to b" in done.out
    check_memory(b.host, pid, f"{SHARED}/self", 1)
    assert cache.log().count(f"linked to host a (godwit 0.1.0, TLS 1.3, {kind})") == streams
    assert "neither encrypted" not in cache.log()


@pytest.mark.parametrize("kind", ["certificates", "pre-shared key"])
def test_dump_and_restore(issued, kind):
    a, b = issued
    cache = b.cache(*options(kind, "b"))
    proxy = a.proxy(b, *options(kind, "a"))
    pid = a.host.spawn([workload("selfcheck"), 64, f"{SHARED}/self"])
    a.host.wait_text(f"{SHARED}/self", "ok 0", 30)
    a.dump(pid)
    b.restore()
    check_memory(b.host, pid, f"{SHARED}/self", 1)
    assert f"TLS 1.3, {kind}" in cache.log() and f"TLS 1.3, {kind}" in proxy.log()


def own_etc(host):
    """Gives a host an /etc of its own above the machine's."""
    host.run(["sh", "-ec", "mkdir -p /tmp/etc; mount -t tmpfs etc /tmp/etc; mkdir /tmp/etc/up /tmp/etc/work; "
              "mount -t overlay -o lowerdir=/etc,upperdir=/tmp/etc/up,workdir=/tmp/etc/work etc /etc"], check=True)


def install(host, source):
    host.run(["sh", "-ec", f"mkdir -p -m 700 {DEFAULT}; cp -r {source} {DEFAULT}/; chmod -R go= {DEFAULT}"], check=True)


@pytest.mark.parametrize("kind", ["certificates", "pre-shared key"])
def test_default_directory(issued, kind):
    """Nothing is said on the command line; loopback is as it is, and so is what comes by --insecure."""
    a, b = issued
    for g, name in ((a, "a"), (b, "b")):
        own_etc(g.host)
        install(g.host, f"{TLS}/{name}/*" if kind == "certificates" else f"{TLS}/psk")
    cache = b.daemon("image-cache", "--accept", "--address", TARGET)
    counter = Counter(a.host)
    assert "ok       b: " in a.run("check", TARGET).out
    assert a.run("migrate", "-t", counter.pid, TARGET).err == ""
    counter.runs_on(b.host)
    assert f"TLS 1.3, {kind}" in cache.log()
    here = Godwit(a.host, "/run/other")
    local = here.daemon("image-cache")
    here.daemon("image-proxy")
    here.wait_linked()
    assert "plain text" in local.log() and "neither" not in local.log()
    assert "the peer speaks TLS" in a.run("check", TARGET, "--insecure", code=PEER).err
    cache.wait_log("the peer speaks plain text")


def test_default_directory_that_is_no_good(issued):
    """It is in the way of those only who need it."""
    a, b = issued
    own_etc(a.host)
    install(a.host, f"{TLS}/a/*")
    a.host.run(["chmod", "644", f"{DEFAULT}/key.pem"], check=True)
    a.daemon("image-cache")
    a.daemon("image-proxy")
    a.wait_linked()
    counter = Counter(a.host)
    done = a.run("migrate", "-t", counter.pid, TARGET, code=USAGE)
    assert f"{DEFAULT}/key.pem: it is secret, and others may read it" in done.err and done.err.count("\n") == 1


def test_resolve(issued):
    """The word that is still to be said is said over TLS too."""
    a, b = issued
    counter = Counter(a.host)
    started = a.host.path(f"/proc/{counter.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    a.host.mkdir("/run/godwit/journal")
    a.host.write("/run/godwit/journal/x", f"abort\nnonce=1\npid={counter.pid}\nstarted={started}\ninsecure=0\ncommand=counter\n"
                                          f"target={TARGET}\n")
    b.cache("--accept", *psk())
    assert "godwit keygen" in a.run("resolve", "x", code=USAGE).err
    a.run("resolve", "x", *psk())
    counter.runs_on(a.host)


# ---- the command line ----

def test_without_credentials(two):
    a, b = two
    counter = Counter(a.host)
    for argv in (["migrate", "-t", counter.pid, TARGET], ["check", TARGET], ["image-cache", "--address", "10.77.0.1"],
                 ["image-proxy", "--address", TARGET]):
        done = a.run(*argv, code=USAGE)
        assert "beyond this host" in done.err and "`godwit keygen`" in done.err and done.err.count("\n") == 1
    counter.runs_on(a.host)


def test_said_loudly(two):
    a, b = two
    cache = b.cache("--accept")
    proxy = a.proxy(b)
    counter = Counter(a.host)
    done = a.migrate(counter.pid, TARGET)
    assert done.err.startswith("warning  a: --insecure: whoever is on the way can read")
    done = a.host.run(["timeout", "1", program(), "image-cache", "--address", "10.77.0.1", "--insecure"])
    assert "--insecure: what goes beyond this host is neither encrypted nor authenticated" in done.stderr
    assert cache.log().count("the link from 10.77.0.1 is neither encrypted nor authenticated") == 2
    assert "the link is neither encrypted nor authenticated" in proxy.log()


def test_bad_command_lines(issued):
    a, _ = issued
    a.host.run(["sh", "-ec", f"cd {TLS}; cp psk open; chmod 644 open; echo 1234 > short; echo hello > words; chmod 600 short words; cp cacert.pem anybody; chmod 666 anybody"], check=True)
    cases = ((psk() + ["--insecure"], "--insecure is plain text"), (psk() + x509("a"), "not both"),
             (psk("open"), "others may read it: chmod 600"), (psk("short"), "has 2 bytes and needs at least 32"),
             (psk("words"), "no pre-shared key"), (x509("a") + ["--tls-cacert", f"{TLS}/anybody"], "others may change it: chmod go-w"), (psk("none"), "No such file"), (["--tls-cert", f"{TLS}/none"], "cacert.pem: No such file"),
             (x509("a")[:-1] + [f"{TLS}/b/key.pem"], "is not the key of"), (x509("a") + ["--tls-cacrl", f"{TLS}/none"], "No such file"))
    for argv, text in cases:
        for command in (["check", TARGET], ["image-proxy", "--address", TARGET]):
            done = a.run(*command, *argv, code=USAGE, timeout=10)
            assert text in done.err and done.err.count("\n") == 1, done.err
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = a.run("image-proxy", "--ps-socket", ours.fileno(), *psk(), code=USAGE, pass_fds=(ours.fileno(),))
        assert "--ps-socket is used as it is" in done.err


def test_keygen(issued):
    a, _ = issued
    for name in ("a/key.pem", "cakey.pem", "psk", "b/cert.pem"):
        assert stat.S_IMODE(a.host.path(f"{TLS}/{name}").stat().st_mode) == 0o600
    for name in ("", "a", "b"):
        assert stat.S_IMODE(a.host.path(f"{TLS}/{name}").stat().st_mode) == 0o700
    before = a.host.read(f"{TLS}/cakey.pem")
    done = a.run("keygen", TLS, "c", workdir=False)
    assert f"{TLS}/c: its files belong into {DEFAULT} on c" in done.out and a.host.read(f"{TLS}/cakey.pem") == before
    for argv, code, text in (([TLS, "d", "a"], BUSY, "tls/a is there already"), (["--psk", f"{TLS}/psk"], BUSY, "is there already"),
                             ([TLS], USAGE, "DIR and HOST"), ([], USAGE, "DIR and HOST"), ([TLS, "../x"], USAGE, "names and addresses"),
                             (["--psk", f"{TLS}/more", "x"], USAGE, "no argument"), (["/proc/none", "x"], 1, "/proc/none")):
        done = a.run("keygen", *argv, code=code, workdir=False)
        assert text in done.err and done.err.count("\n") == 1, done.err
    assert not a.host.path(f"{TLS}/d").exists()
    told = a.host.run(["openssl", "verify", "-x509_strict", "-CAfile", f"{TLS}/cacert.pem", f"{TLS}/a/cert.pem", f"{TLS}/c/cert.pem"])
    assert told.returncode == 0, told.stderr
    told = a.host.run(["openssl", "x509", "-in", f"{TLS}/b/cert.pem", "-noout", "-ext", "subjectAltName", "-checkend", str(800 * 86400)])
    assert told.returncode == 0 and "DNS:b, IP Address:10.77.0.2, IP Address:FD77" in told.stdout
    told = a.host.run(["openssl", "x509", "-in", f"{TLS}/b/cert.pem", "-noout", "-checkend", str(830 * 86400)])
    assert told.returncode == 1


# ---- who is refused ----

def certificate(a, name, template):
    """A certificate of the authority by certtool, beside those of keygen."""
    here = f"{TLS}/{name}"
    a.host.write(f"{here}/template", template + "\ndns_name=b\nip_address=10.77.0.2\nsigning_key\n")
    a.host.run(["sh", "-ec", f"cd {here}; cp ../cacert.pem .; umask 077; certtool --generate-privkey --key-type ecdsa --outfile key.pem; "
                "certtool --generate-certificate --load-privkey key.pem --load-ca-certificate ../cacert.pem "
                "--load-ca-privkey ../cakey.pem --template template --outfile cert.pem"], check=True)
    return x509(name)


def bad_expired(a):
    return certificate(a, "old", 'cn=b\nactivation_date="2020-01-01 00:00:00"\nexpiration_date="2020-02-01 00:00:00"')


def bad_early(a):
    return certificate(a, "early", 'cn=b\nactivation_date="2090-01-01 00:00:00"\nexpiration_date="2091-02-01 00:00:00"')


def bad_purpose(a):
    return certificate(a, "purpose", "cn=b\ncode_signing_key")


def bad_foreign(a):
    a.run("keygen", f"{SHARED}/other", A, B, workdir=False)
    return x509("b", f"{SHARED}/other")[2:] + ["--tls-cacert", f"{TLS}/cacert.pem"]


def revoke(a, name):
    """The list of what is revoked, with one certificate in it."""
    a.host.write(f"{TLS}/crl.template", "crl_next_update=100\ncrl_number=1\n")
    a.host.run(["sh", "-ec", f"cd {TLS}; certtool --generate-crl --load-ca-certificate cacert.pem --load-ca-privkey cakey.pem "
                f"--load-certificate {name}/cert.pem --template crl.template --outfile cacrl.pem"], check=True)
    return ["--tls-cacrl", f"{TLS}/cacrl.pem"]


def refused(a, b, mine, theirs, here, there):
    """A migration that ends before anything is touched, with a line on each side."""
    cache = b.cache("--accept", *theirs)
    counter = Counter(a.host)
    done = a.run("migrate", "-t", counter.pid, TARGET, *mine, code=PEER)
    assert re.search(here, done.err) and done.err.splitlines()[-1].count(TARGET) >= 1, done.err
    wait_for(lambda: re.search(there, cache.log()), 5, lambda: f"{there} in {cache.log()}")
    assert "linked to host" not in cache.log() and b.snapshots() == {}
    counter.runs_on(a.host)
    a.wait_gone()
    cache.stop()


BAD = {
    "expired": (bad_expired, "it has expired", "it has expired"),
    "not yet": (bad_early, "it is not valid yet", "has expired, or is not valid yet"),
    "purpose": (bad_purpose, "for another purpose", "for another purpose"),
    "foreign": (bad_foreign, "another authority has signed it", "another authority has signed it"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_certificate_of_the_server(issued, kind):
    a, b = issued
    make, told, heard = BAD[kind]
    refused(a, b, x509("a"), make(a), f"the certificate of {TARGET} is refused: .*{told}", f"refuses this host's certificate: .*{heard}")


@pytest.mark.parametrize("kind", BAD)
def test_bad_certificate_of_the_client(issued, kind):
    a, b = issued
    make, told, heard = BAD[kind]
    refused(a, b, make(a), x509("b"), f"refuses this host's certificate: .*{heard}", f"the peer's certificate is refused: .*{told}")


def test_wrong_name(issued):
    a, b = issued
    refused(a, b, x509("b"), x509("a"), f"the certificate of {TARGET} is refused: it is for another name", "has another name")


def test_revoked(issued):
    a, b = issued
    refused(a, b, x509("a"), x509("b") + revoke(a, "a"), "certificate: it is revoked", "the peer's certificate is refused: it is revoked")
    refused(a, b, x509("a") + revoke(a, "b"), x509("b"), "is refused: it is revoked", "refuses this host's certificate: it is revoked")
    # A list without this host's is in nobody's way.
    b.cache("--accept", *x509("b"), *revoke(a, "b"))
    counter = Counter(a.host, "other")
    a.migrate(counter.pid, TARGET, *x509("a"))
    counter.runs_on(b.host)


def test_other_credentials(issued):
    a, b = issued
    a.run("keygen", "--psk", f"{TLS}/psk2", workdir=False)
    other = "has another pre-shared key"
    refused(a, b, psk("psk2"), psk(), other, other)
    refused(a, b, x509("a"), psk(), "same kind of credentials", "same kind of credentials")
    refused(a, b, psk(), x509("b"), "same kind of credentials", "same kind of credentials")
    refused(a, b, ["--insecure"], x509("b"), "the peer speaks TLS", "the peer speaks plain text")
    refused(a, b, x509("a"), ["--insecure"], "the peer speaks plain text", "the peer speaks TLS")


# ---- what others see of it ----

def talk(host, argv):
    """A TLS client, with nothing to say for a second; its status, and what can be printed of its output."""
    script = 'sleep 1 | timeout 3 "$@" 2>&1 | tr -cd "\\n[:print:]"'
    return host.run(["bash", "-o", "pipefail", "-c", script, "sh", *argv])


def test_openssl(issued):
    a, b = issued
    cache = b.cache("--accept", *x509("b"))
    where = ["openssl", "s_client", "-connect", f"{TARGET}:9996", "-CAfile", f"{TLS}/cacert.pem", "-verify_ip", TARGET, "-verify_return_error"]
    mine = ["-cert", f"{TLS}/a/cert.pem", "-key", f"{TLS}/a/key.pem"]
    told = talk(a.host, where + mine).stdout
    assert "TLSv1.3" in told and "Verification: OK" in told and "godwit" in told
    assert "X25519" in told and "New Session Ticket" not in told
    told = talk(a.host, where)
    assert "alert certificate required" in told.stdout
    cache.wait_log("TLS: the peer shows no certificate")
    for old in ("-tls1_2", "-tls1_1"):
        told = talk(a.host, where + mine + [old, "-cipher", "ALL:@SECLEVEL=0"])
        assert "alert protocol version" in told.stdout, told
    assert cache.log().count("the peer does not speak TLS 1.3") == 2


def test_gnutls(issued):
    a, b = issued
    key = a.host.read(f"{TLS}/psk").strip()
    cache = b.cache("--accept", *psk())
    where = ["gnutls-cli", "--no-ca-verification", "-p", "9996", "--pskusername", "godwit", "--priority"]
    told = talk(a.host, where + ["NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK", "--pskkey", key, TARGET]).stdout
    assert "TLS1.3" in told and "PSK" in told and "godwit" in told, told
    told = talk(a.host, where + ["NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK", "--pskkey", "00" * 32, TARGET])
    assert told.returncode == 1
    cache.wait_log("has another pre-shared key")
    # Without a fresh secret in each handshake it is not done.
    told = talk(a.host, where + ["NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+PSK", "--pskkey", key, TARGET])
    assert told.returncode == 1 and "TLS1.3" not in told.stdout
    told = talk(a.host, where + ["NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+ECDHE-PSK", "--pskkey", key, TARGET])
    assert told.returncode == 1
    cache.wait_log("the peer does not speak TLS 1.3")


def test_server_with_an_older_tls(issued):
    a, b = issued
    server = b.host.popen(["openssl", "s_server", "-accept", "9996", "-tls1_2", "-cert", f"{TLS}/b/cert.pem", "-key", f"{TLS}/b/key.pem",
                           "-quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        b.host.wait_for(lambda: ":9996" in b.host.run(["ss", "-Htln"]).stdout, 5, "the server")
        counter = Counter(a.host)
        done = a.run("migrate", "-t", counter.pid, TARGET, *x509("a"), code=PEER)
        assert "does not speak TLS 1.3" in done.err and done.err.count("\n") == 1
        counter.runs_on(a.host)
    finally:
        server.kill()
        server.communicate()


def test_strangers_get_little(issued):
    """Who has not shown who he is costs a little memory, for a while, and is in nobody's way afterwards."""
    a, b = issued
    cache = b.cache("--accept", "--timeout", "2", *x509("b"))
    script = f"""
import os, socket, sys
made = []
for i in range(60):
    s = socket.create_connection(("{TARGET}", 9996))
    s.setblocking(False)
    try:
        if i % 3 == 1: s.send(b"\\x16\\x03\\x01\\x40\\x00" + b"\\x01\\xff\\xff\\xff" + bytes(16380))
        if i % 3 == 2: s.send(b"\\x16\\x03\\x01\\x02\\x00\\x01")
    except OSError: pass
    made.append(s)
print("ready", flush=True)
sys.stdin.read()
"""
    before, fds = cache.rss(), len(cache.fds())
    strangers = a.host.popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert strangers.stdout.readline() == "ready\n"
        time.sleep(0.5)
        assert cache.rss() - before < 30 * MIB
        wait_for(lambda: "did not finish the handshake within 2 s" in cache.log() and len(cache.fds()) <= fds, 6, lambda: cache.log()[-2000:])
        counter = Counter(a.host)
        a.migrate(counter.pid, TARGET, *x509("a"))
        counter.runs_on(b.host)
    finally:
        strangers.kill()
        strangers.communicate()


# ---- harm on the way ----

class Relayed:
    """A relay at the source, which sees records; b's certificate is good for its address too."""

    def __init__(self, a, *rules):
        argv = [sys.executable, RELAY, "--tls", "--listen", "127.0.0.1:9000", "--connect", f"{TARGET}:9996"]
        for match, action in rules:
            argv += ["--match", match, "--action", action]
        self.process = a.host.popen(argv, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == "LISTENING\n"
        self.target = "127.0.0.1:9000"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


HARM = {
    "cut": r"cut|reset|Broken pipe", "cut-middle": r"cut|reset|Broken pipe", "stall": r"silent|taken nothing|cut",
    # The relay may lose the other side's last word.
    "flip": r"changed on the way|reset|cut", "drop": r"changed on the way|reset|cut", "garbage": r"TLS|silent",
}


@pytest.mark.parametrize("kind", ["certificates", "pre-shared key"])
@pytest.mark.parametrize("record", [40, 1500])
@pytest.mark.parametrize("action", HARM)
def test_harm_to_a_record(issued, action, record, kind):
    """In the midst of its memory: nothing that was changed is taken for memory, and the process runs on."""
    a, b = issued
    cache = b.cache("--accept", "--timeout", "2", *options(kind, "b"))
    pid = a.host.spawn([workload("selfcheck"), 64, f"{SHARED}/self"])
    a.host.wait_text(f"{SHARED}/self", "ok 0", 30)
    with Relayed(a, (f"up:23:{record}", action)) as relay:
        done = a.migrate(pid, relay.target, "--timeout", "2", *options(kind, "a"), code=ABORTED)
    assert re.search(HARM[action], done.err), done.err
    if action in ("flip", "drop"):
        cache.wait_log("integrity error")
    check_memory(a.host, pid, f"{SHARED}/self", 1)
    b.host.wait_for(lambda: b.snapshots() == {}, 10, "the cache to let it go")
    a.migrate(pid, TARGET, *options(kind, "a"))
    check_memory(b.host, pid, f"{SHARED}/self", 2)


@pytest.mark.parametrize("action", ["cut", "cut-middle", "stall", "flip", "drop", "garbage"])
@pytest.mark.parametrize("match", ["up:22:1", "down:22:1", "up:23:1", "down:23:1", "up:23:2", "down:23:3", "up:23:3"])
def test_harm_to_the_handshake(issued, match, action):
    a, b = issued
    b.cache("--accept", "--timeout", "1", *x509("b"))
    counter = Counter(a.host)
    with Relayed(a, (match, action)) as relay:
        done = a.run("migrate", "-t", counter.pid, relay.target, "--timeout", "1", *x509("a"), code=PEER)
    assert done.err.count("\n") == 1
    counter.runs_on(a.host)
    a.migrate(counter.pid, TARGET, *x509("a"))
    counter.runs_on(b.host)


def test_one_byte_at_a_time(issued):
    a, b = issued
    b.cache("--accept", *x509("b"))
    counter = Counter(a.host)
    with Relayed(a, ("any:22:0", "one-byte")) as relay:
        a.migrate(counter.pid, relay.target, *x509("a"), timeout=120)
    counter.runs_on(b.host)


def test_harm_to_a_data_connection(issued):
    a, b = issued
    cache = b.cache("--accept", "--timeout", "2", *psk())
    pid = a.host.spawn([workload("selfcheck"), 64, f"{SHARED}/self"])
    a.host.wait_text(f"{SHARED}/self", "ok 0", 30)
    with Relayed(a, ("up:23@2:100", "flip")) as relay:
        done = a.migrate(pid, relay.target, "--streams", "4", "--timeout", "2", *psk(), code=ABORTED)
    assert "data connection" in done.err
    cache.wait_log("integrity error")
    check_memory(a.host, pid, f"{SHARED}/self", 1)


# ---- who may start what: --accept-from, --accept-options ----

def asks(a, counter, here, *criu, refusal=None):
    """Asks for a migration by --check and in earnest; what is refused is so before anything is touched."""
    passed = ["--", *criu] if criu else []
    done = a.run("migrate", "-t", counter.pid, TARGET, *here, *passed, code=REFUSED if refusal else 0)
    assert not refusal or refusal in done.err + done.out, done.out + done.err
    return done


@pytest.mark.parametrize("names, allowed", [("a", "a"), ("x,10.77.0.1", "a"), ("c", "c"), ("fd77::3,other", "c")])
def test_accept_from(issued, names, allowed):
    """The names of the certificate count, not what a host says of itself."""
    a, b = issued
    a.run("keygen", TLS, "c,fd77::3", workdir=False)
    cache = b.cache("--accept", "--accept-from", names, *x509("b"))
    counter = Counter(a.host)
    other = "c" if allowed == "a" else "a"
    asks(a, counter, x509(other), refusal="its --accept-from has no name of this host's certificate")
    assert cache.log().count("host a may start no restore: the image-cache there starts restores for others only") == 1
    told = a.run("check", TARGET, *x509(other), code=REFUSED)
    assert "--accept-from" in told.out and "criu" not in told.out.split("b: ", 1)[-1].splitlines()[0]
    counter.runs_on(a.host)
    assert b.snapshots() == {}
    asks(a, counter, x509(allowed))
    counter.runs_on(b.host)


def test_accept_from_wants_certificates(issued):
    a, b = issued
    for argv in (psk(), ["--insecure"], ["--address", "127.0.0.1"]):
        done = b.run("image-cache", "--accept", "--accept-from", "a", *argv, code=USAGE, timeout=10)
        assert "--accept-from: only certificates tell" in done.err.splitlines()[-1]
    for argv, text in ((["--accept-from", "a"], "narrow --accept"), (["--accept", "--accept-from", "a,,b"], "separated by commas"),
                       (["--accept-options", "root"], "narrow --accept"), (["--accept", "--accept-options", "images-dir"], "images-dir"),
                       (["--accept", "--accept-options", "--root"], "no name of an option"),
                       (["--accept", "--accept-options", "root=/"], "no name of an option")):
        done = b.run("image-cache", *argv, code=USAGE, timeout=10)
        assert text in done.err and done.err.count("\n") == 1, done.err


@pytest.mark.parametrize("option", [["--action-script=/bin/true"], ["--action-scr=/bin/true"], ["--libdir", "/tmp"], ["--root", "/"], ["-r/"],
                                    ["--exec-cmd"], ["--tcp-est"], ["--tcp-established=x", "y"], ["-jr/"]])
def test_options_that_are_not_taken(issued, option):
    """What criu would run, load, or look for somewhere else is not for others to say."""
    a, b = issued
    cache = b.cache("--accept", *x509("b"))
    counter = Counter(a.host)
    asks(a, counter, x509("a"), *option, refusal="is not among the options for criu")
    assert "may start no restore: " in cache.log()
    counter.runs_on(a.host)


def test_options_that_are_taken(issued):
    a, b = issued
    b.cache("--accept", "--accept-options", "file-locks,verbosity", *x509("b"))
    counter = Counter(a.host)
    asks(a, counter, x509("a"), "--tcp-close", refusal="--tcp-close: is not among")
    asks(a, counter, x509("a"), "--file-locks", "-v4")
    counter.runs_on(b.host)


def test_handed_over(issued):
    """Who brings a connection himself may do anything here: a name is not asked for."""
    a, b = issued
    cache = b.cache("--accept", "--accept-from", "nobody", *x509("b"))
    counter = Counter(b.host)
    done = b.run("check", f"exec:{program()} image-cache --stdio --accept --once -W {WORKDIR}")
    assert "--accept-from" not in done.out and "may start no restore" not in cache.log()
    counter.runs_on(b.host)
