"""Whoever writes a table may stop at any write: every session that was whole is adopted, and nothing else.

One write of some is a stop, so that there are more situations among them. A release is tested with 20 000 in a row.
"""

from __future__ import annotations

from hypothesis import settings

from fastmasq.table import memory
from tests.support import stopped
from tests.support.adoption import adopted, assert_consistent, holds
from tests.support.killed import sessions
from tests.support.tables import EXTERNAL, NEW_EXTERNAL, TCP, UDP, allowed, make_table, opened

OTHERS = range(NEW_EXTERNAL, NEW_EXTERNAL + 4)
PORTS = range(2000, 2100)


def test_a_table_that_stops_leaves_all_its_sessions() -> None:
    assert stopped.stop_story(1, steps=150, every=11) > 150


class StoppedPath(stopped.StoppedPath):
    every = 11


TestStoppedPath = StoppedPath.TestCase
TestStoppedPath.settings = settings(max_examples=6, stateful_step_count=40, deadline=None)


def test_an_address_that_takes_another_s_rows_has_none_of_its_holds() -> None:
    stops = stopped.Stops()
    table = make_table(PORTS, capacity=stopped.CAPACITY, buffer=stops.memory)
    for number, address in enumerate((EXTERNAL, *OTHERS[:3])):
        table.set_external(address, allowed(PORTS))
        opened(table, TCP, 2000 + number)
        table.close(opened(table, UDP, 2010 + number))
    table.close_external(OTHERS[0])
    stops.begin()
    with stops.watch():
        table.set_external(OTHERS[3], allowed(PORTS))
    for left in stops.left():
        again, dropped = adopted(left, stopped.CAPACITY, 0)
        assert dropped == {} and sessions(again) == sessions(table)
        assert_consistent(again, memory.lay_out(stopped.CAPACITY, left).header["external"][0].tolist())
        assert set(holds(again)) == {1 << 16 | 2010, 7 << 16 | 2012, 10 << 16 | 2013}, "UDP's of the other addresses"
    stops.assert_complete()
