"""The ends of flows read from their keys: of one flow, and of many at once."""

from __future__ import annotations

import pytest

from fastmasq.table.keys import Ends, ends_of, protocol_of, side_of
from tests.support.tables import (
    ECHO,
    EXTERNAL,
    HOST,
    ICMP,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    REMOTE,
    REPLY,
    TCP,
    UDP,
    make_table,
    opened,
)


def test_the_ends_of_a_flow_are_those_of_its_packets_as_they_arrive() -> None:
    table = make_table()
    out, back = table.sessions["flow"][opened(table, TCP, 40000)]
    assert ends_of(out) == Ends(HOST, 40000, REMOTE, 80)
    assert ends_of(back) == Ends(REMOTE, 80, EXTERNAL, 40000)
    assert all(isinstance(end, int) for end in ends_of(out))


@pytest.mark.parametrize(("protocol", "reply"), [(TCP, 0), (UDP, 0), (ICMP, REPLY)])
def test_protocol_and_side_are_in_the_key(protocol: int, reply: int) -> None:
    table = make_table()
    out, back = table.sessions["flow"][opened(table, protocol, 7, remote_port=ECHO)]
    assert (protocol_of(out), protocol_of(back)) == (protocol, protocol)
    assert (side_of(out), side_of(back)) == (INSIDE, OUTSIDE | reply)


def test_ends_of_many_flows_are_arrays() -> None:
    table = make_table()
    for host in (HOST, OTHER_HOST):
        opened(table, UDP, 5000, host=host)
    ends = ends_of(table.sessions["flow"][:2, 0])
    assert ends.saddr.tolist() == [HOST, OTHER_HOST]
    assert (ends.sid.tolist(), ends.daddr.tolist(), ends.did.tolist()) == ([5000] * 2, [REMOTE] * 2, [80] * 2)
    assert protocol_of(table.sessions["flow"][:2, 0]).tolist() == [UDP, UDP]
