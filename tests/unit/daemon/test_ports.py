"""Which external ports are ours, asked on a host that has nothing but a loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from fastmasq.config.values import PortRanges
from fastmasq.daemon import ports
from tests.support.namespaces import Namespace

AUTO = PortRanges()
TCP, UDP, ICMP = range(3)


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host whose programs use 32768-60999 for connections of their own."""
    namespace = Namespace()
    namespace.sh("sysctl -qw net.ipv4.ip_local_port_range='32768 60999' net.ipv4.ip_local_reserved_ports=''")
    with namespace.entered():
        yield namespace
    namespace.remove()


def spelled(row: np.ndarray) -> str:
    return ports.format_ports(row)


def test_auto_is_all_that_the_host_does_not_use(host: Namespace) -> None:
    allowed = ports.allowed_ports(AUTO)
    assert spelled(allowed[TCP]) == spelled(allowed[UDP]) == "1-32767,61000-65535"
    assert allowed[ICMP].all()


def test_rfc6056_own_a_bound_port_is_the_hosts_protocol_by_protocol(host: Namespace) -> None:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 8080))
        server.listen()
        allowed = ports.allowed_ports(AUTO)
    assert not allowed[TCP][8080]
    assert allowed[UDP][8080]
    assert ports.allowed_ports(AUTO)[TCP][8080], "it has left it"


def test_ports_that_the_settings_name_are_taken_from_the_ephemeral_range(host: Namespace) -> None:
    allowed = ports.allowed_ports(PortRanges.read("40000-40003,61000-61001"))
    assert spelled(allowed[TCP]) == "40000-40003,61000-61001"
    assert spelled(allowed[ICMP]) == "40000-40003,61000-61001"


def test_a_bound_port_stays_with_the_host_even_if_it_is_named(host: Namespace) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.bind(("127.0.0.1", 40001))
        allowed = ports.allowed_ports(PortRanges.read("40000-40003"))
    assert spelled(allowed[UDP]) == "40000,40002-40003"
    assert spelled(allowed[TCP]) == "40000-40003"


@pytest.mark.parametrize(
    ("written", "present", "value"),
    [
        ("auto", "", None),
        ("61000-65095", "", None),
        ("40000-40003", "", "40000-40003"),
        ("40000-40003,61000-61001", "8080,40002-40010", "8080,40000-40010,61000-61001"),
    ],
)
def test_the_host_is_kept_off_what_is_in_its_ephemeral_range(
    host: Namespace, written: str, present: str, value: str | None
) -> None:
    assert ports.reservation(PortRanges.read(written), present) == value
