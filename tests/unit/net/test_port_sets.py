"""Sets of ports and their spelling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.errors import ConfigurationError
from fastmasq.net.ports import format_ports, parse_ports, port_ranges


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
