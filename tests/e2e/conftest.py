# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end tests; see bed.py for what a bed is."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import bed as testbed  # noqa: E402


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
