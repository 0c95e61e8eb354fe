"""Fixtures of the tests that run fastmasq in a lab."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastmasq.lab.topology import Lab
from tests.support.lab_network import Network


@pytest.fixture
def net(lab: Lab) -> Iterator[Network]:
    """Return the masquerade network, up, without fastmasq; what the test opens and starts in it is ended after it."""
    network = Network(lab)
    yield network
    network.close()
