"""Sets of ports and their spelling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.errors import ConfigurationError
from fastmasq.kernel.links import IFF_UP, Interface
from fastmasq.kernel.ports import format_ports, is_tunnel, parse_ports, port_ranges


def port_set(*ports: int) -> np.ndarray:
    members = np.zeros(65536, dtype=np.bool_)
    members[list(ports)] = True
    return members


@given(st.sets(st.integers(0, 65535), max_size=60))
def test_spelling_comes_back(ports: set[int]) -> None:
    members = port_set(*ports)
    assert (parse_ports(format_ports(members)) == members).all()


def test_spelling() -> None:
    assert format_ports(port_set(0, 80, 81, 82, 65535)) == "0,80-82,65535"
    assert format_ports(port_set()) == ""
    assert port_ranges(np.ones(65536, dtype=np.bool_)) == [(0, 65535)]
    assert port_ranges(parse_ports("\n")) == []


@pytest.mark.parametrize("text", ["x", "80-", "90-80", "65536", "-1", "1 2"])
def test_mistakes_are_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a port or a range"):
        parse_ports(text)


@pytest.mark.parametrize(
    ("hardware", "flags", "counts"),
    [(776, IFF_UP, True), (768, IFF_UP, True), (778, IFF_UP, True), (776, 0, False), (1, IFF_UP, False)],
)
def test_a_tunnel_counts_when_it_is_up(hardware, flags, counts):
    """A module of tunnels brings a link that is down and belongs to nobody."""
    assert is_tunnel(Interface(3, "sit0", flags, 1480, b"", hardware, 0, "noqueue")) == counts
