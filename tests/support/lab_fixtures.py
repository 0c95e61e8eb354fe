"""Fixtures for tests that need a lab, fastmasq running in a gateway, or a host without it; and what a failure shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.topology import Lab
from tests.support.lab_network import head
from tests.support.namespaces import Gateway
from tests.support.networks import networks

KINDS = {"lab": "masquerade", "masquerade_lab": "masquerade", "gateway": "between"}  # by the fixture that takes one
SHOWN = 8000  # characters of a log


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(nextitem: pytest.Item | None) -> None:
    names = getattr(nextitem, "fixturenames", ())
    networks.expect(kind for name, kind in KINDS.items() if name in names and os.geteuid() == 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Show what fastmasq has said in the labs of a test that fails."""
    report = yield
    if report.failed:
        for lab in networks.taken():
            for log in sorted(lab.directory.glob("*/fastmasq/std*")):
                report.sections.append(
                    (f"{lab.prefix}: {log.name} of fastmasq", log.read_text(errors="replace")[-SHOWN:])
                )
    return report


def pytest_sessionfinish() -> None:
    networks.close()


@pytest.fixture
def root() -> None:
    """Skip the test of somebody who may not make network namespaces."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root: run the tests as root")


@pytest.fixture
def lab_prefix(root: None) -> Callable[[], str]:
    """Return a function that gives a prefix no other lab on this machine has."""
    return networks.prefix


@pytest.fixture
def make_lab(root: None) -> Iterator[Callable[..., Lab]]:
    """Return a function that gives a fresh lab of a network, up; all of them are taken down after the test."""
    taken: list[Lab] = []

    def make(network: str = "masquerade") -> Lab:
        taken.append(networks.take(network))
        return taken[-1]

    yield make
    for lab in taken:
        networks.give_back(lab)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """Return a host with a peer on each side, and no fastmasq."""
    made = Gateway()
    yield made
    made.remove()


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Return the masquerade network, up, with nothing running in it."""
    return make_lab()


@pytest.fixture
def masquerade_lab(make_lab: Callable[..., Lab]) -> Iterator[Callable[..., Fastmasq]]:
    """Return a function that makes a lab and starts fastmasq in its gateway; it returns once that forwards.

    It takes what Fastmasq takes (extra TOML text, inside, outside) and the network's name. After the test fastmasq is
    ended by SIGTERM and must exit with status 0, unless the test has ended it before.
    """
    started: list[Fastmasq] = []

    def start(extra: str = "", network: str = "masquerade", **interfaces: object) -> Fastmasq:
        forwarder = Fastmasq(make_lab(network), head(extra), **interfaces)
        forwarder.install()
        started.append(forwarder)
        return forwarder

    yield start
    for forwarder in started:
        if forwarder.is_running():
            forwarder.remove()
