"""Fixtures for tests that need a lab: networks with prefixes of their own, and fastmasq running in a gateway."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.topology import Lab

_numbers = itertools.count(1)


@pytest.fixture
def lab_prefix() -> Callable[[], str]:
    """Return a function that gives a prefix no other lab on this machine has."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root: run the tests as root")
    return lambda: f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def make_lab(lab_prefix: Callable[[], str]) -> Iterator[Callable[..., Lab]]:
    """Return a function that makes a lab of the given network; all of them are taken down after the test."""
    made: list[Lab] = []

    def make(network: str = "masquerade") -> Lab:
        lab = Lab(lab_prefix(), network)
        made.append(lab)
        lab.up()
        return lab

    yield make
    for lab in made:
        lab.down()


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
        forwarder = Fastmasq(make_lab(network), extra, **interfaces)
        forwarder.install()
        started.append(forwarder)
        return forwarder

    yield start
    for forwarder in started:
        if forwarder.is_running():
            forwarder.remove()
