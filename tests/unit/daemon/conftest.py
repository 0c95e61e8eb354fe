"""A gateway host of its own for tests that need the kernel: eth0 inside, eth1 outside, and this thread in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.namespaces import Gateway


@pytest.fixture
def gateway(gateway: Gateway) -> Iterator[Gateway]:
    with gateway.host.entered():
        yield gateway
