"""Resets for inside hosts: believable to the end they are sent to, and to nobody else."""

from __future__ import annotations

import numpy as np
import pytest

from fastmasq.daemon.resets import reset_segments, send_resets
from tests.support.harness import Harness
from tests.support.namespaces import Namespace
from tests.support.packets import decode, dotted, problems, tcp

CLIENT, SERVER, EXTERNAL = ("10.0.0.2", 4000), ("199.0.0.1", 80), ("200.200.200.200", 4000)


def row_after(*segments: tuple[str, str, int, int, bytes]) -> np.void:
    """Return the session's row after segments (link, flags, seq, ack, payload)."""
    harness = Harness()
    for link, flags, seq, ack, payload in segments:
        ends = (CLIENT, SERVER) if link == "inside" else (SERVER, EXTERNAL)
        assert harness.send(link, tcp(*ends, flags, seq=seq, ack=ack, payload=payload, window=500))
    return harness.table.sessions[0].copy()


OPEN = (
    ("inside", "S", 100, 0, b""),
    ("outside", "SA", 500, 101, b""),
    ("inside", "A", 101, 501, b""),
)


def test_the_number_is_the_next_that_the_inside_expects() -> None:
    [packet] = reset_segments(row_after(*OPEN))
    segment = decode(packet)
    assert (dotted(segment.source), dotted(segment.destination)) == ("199.0.0.1", "10.0.0.2")
    assert (segment.source_port, segment.destination_port) == (80, 4000)
    assert int.from_bytes(packet[24:28], "big") == 501
    assert packet[33] == 4, "RST alone"
    assert problems(packet) == ["IPv4 checksum"], "which the kernel fills in"


def test_data_that_may_have_been_lost_makes_two() -> None:
    """One is exact if the last segment has arrived, the other if it has not (RFC 5961 section 3.2)."""
    packets = reset_segments(row_after(*OPEN, ("outside", "PA", 501, 101, b"lost?")))
    assert [int.from_bytes(packet[24:28], "big") for packet in packets] == [506, 501]


def test_what_has_never_been_acknowledged_is_not_reset() -> None:
    assert reset_segments(row_after(OPEN[0])) == []


def test_only_tcp_is_reset() -> None:
    row = row_after(*OPEN)
    row["port_class"] = 1
    assert reset_segments(row) == []


@pytest.mark.parametrize("reachable", [True, False])
def test_hosts_that_are_told_are_counted(reachable: bool) -> None:
    namespace = Namespace()
    try:
        if reachable:
            namespace.ip("addr add 10.0.0.2/32 dev lo")
        with namespace.entered():
            assert send_resets([row_after(*OPEN), row_after(OPEN[0])]) == int(reachable)
    finally:
        namespace.remove()
