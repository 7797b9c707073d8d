# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end tests; see bed.py for what a bed is."""

import fcntl
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import bed as testbed  # noqa: E402
from credentials import A, B, TLS  # noqa: E402
from godwit import Godwit, Pair, make_hosts  # noqa: E402


def pytest_collection_modifyitems(items):
    if os.geteuid() != 0:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="the test bed makes namespaces: run as root"))


@pytest.fixture
def bed():
    with testbed.Bed() as b:
        yield b


@pytest.fixture
def hosts(bed):
    """Two hosts, a and b."""
    return (bed.host("a", cidr="10.77.0.1/24", cidr6="fd77::1/64"),
            bed.host("b", cidr="10.77.0.2/24", cidr6="fd77::2/64"))


@pytest.fixture(scope="session")
def criu():
    return testbed.criu()


@pytest.fixture(scope="session")
def godwit():
    path = testbed.build_dir() / "godwit"
    if not path.exists():
        pytest.skip(f"{path} is not built")
    return str(path)


@pytest.fixture
def pair(bed, request):
    """Two hosts with an image-proxy on a and an image-cache on b, linked."""
    p = Pair(bed)
    yield p
    if request.node.passed:
        p.check()


@pytest.fixture
def two(bed):
    """Two hosts, a and b, with no daemon yet."""
    return make_hosts(bed, "a", "b")


@pytest.fixture
def issued(two):
    """Hosts a and b, with credentials for both in a directory that both see."""
    a, b = two
    a.run("keygen", TLS, A, B, workdir=False)
    a.run("keygen", "--psk", f"{TLS}/psk", workdir=False)
    return a, b


@pytest.fixture
def huge_pages():
    """Huge pages for one test at a time, given back after it."""
    with open("/proc/sys/vm/nr_hugepages", "r+") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        before = f.read()
        try:
            Path(f.name).write_text("64")
            if int(Path(f.name).read_text()) < 24:
                pytest.skip("the kernel gives no huge pages")
            yield
        except OSError as e:
            pytest.skip(f"no huge pages: {e}")
        finally:
            Path(f.name).write_text(before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that failed shows the logs of its hosts, which still run then."""
    report = (yield).get_result()
    if report.when == "call":
        item.passed = report.passed
    hosts = getattr(getattr(item, "funcargs", {}).get("bed"), "hosts", {})
    if report.failed:
        for host in hosts.values():
            report.sections.append((f"logs of host {host.name}", Godwit(host).logs()))
