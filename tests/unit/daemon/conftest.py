"""A gateway host of its own for tests that need the kernel: eth0 inside, eth1 outside, and this thread in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.net_namespaces import Gateway


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    with made.host.entered():
        yield made
    made.remove()
