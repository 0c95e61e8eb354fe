"""What the VPNs of a gateway lack: looked for once in a while, for the log, and judged for whoever lists them.

The log leaves out what is no fault of theirs or ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fastmasq.daemon import natt
from fastmasq.daemon.leads import Leads
from fastmasq.path.forwarder import Forwarder
from fastmasq.table.masq import MasqTable
from fastmasq.trackers.vpn.calls import CallTable
from fastmasq.trackers.vpn.connection import Connection
from fastmasq.trackers.vpn.evidence import Association
from fastmasq.trackers.vpn.findings import (
    SAID_AFTER_S,
    About,
    Ends,
    Finding,
    Reports,
    of_association,
    of_call,
    of_connection,
    of_exchange,
)
from fastmasq.trackers.vpn.ipsec import Ipsec
from fastmasq.trackers.vpn.isakmp import Exchange
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire.numbers import ESP, GRE, ISAKMP_PORT


class Trackers(NamedTuple):
    """What the trackers of one gateway follow; connections by the row of their session."""

    connections: dict[int, Connection]
    calls: CallTable
    ipsec: Ipsec


class Health:
    """What the VPNs of one gateway lack. Times in nanoseconds."""

    def __init__(self, trackers: Trackers, forwards: Leads, table: MasqTable, forwarder: Forwarder) -> None:
        self._connections, self._calls, self._ipsec = trackers
        self._forwards, self._table, self._forwarder = forwards, table, forwarder
        self._carried: set[Ends] = set()  # those with an exchange that have had ESP, or NAT traversal instead
        self.reports = Reports()

    def go_on(self) -> None:
        """Take it that exchanges of a run before have had data, whose SAs may be gone: nobody is alarmed by a kill."""
        self._carried |= {(row.inside, row.remote) for row in self._ipsec.exchanges.exchanges.values()}

    def look(self, now: int, most: int) -> Iterator[str]:
        """Yield the lines to log, at most so many; most of the time there is nothing to do."""
        if self.reports.is_due(now):
            yield from self.reports.look(self._findings(now), now, most)

    def _findings(self, now: int) -> Iterator[tuple[About, Finding]]:
        """Yield all there is to say, but for servers inside: whoever knocks at them in vain is no fault of ours."""
        for connection in self._connections.values():
            control = self._calls.controls.get(connection.number)
            if control is None or connection.serves or connection.follower.lost:
                continue  # lost sync has its own line
            if finding := of_connection(connection, control.made, now):
                yield About("connection", control.inside, control.remote), finding
        for call in self._calls.calls.values():
            if call.state == "passthrough" and self._forwards.redirected(GRE, call.remote) == call.inside:
                continue
            if finding := of_call(call):
                yield About("call", call.inside, call.remote), finding
        moved = functools.cache(lambda: natt.by_ends(natt.sessions(self._table, self._forwarder)))
        for row, finding in self.exchanges(now, SAID_AFTER_S, moved):
            if finding and not self._serves(row):
                yield About("exchange", row.inside, row.remote), finding
        for row in self._ipsec.esp.rows.values():
            if row.state == "squelched" or self._serves(row):  # a squelched one has its own line
                continue
            if finding := of_association(row):
                yield About("sa", row.inside, row.remote), finding

    def _serves(self, row: Exchange | Association) -> bool:
        """Whether a forward of port 500 or a redirect of ESP names the inside host."""
        servers = (
            self._forwards.target_of(row.masq, "udp", ISAKMP_PORT),
            self._forwards.redirected(ESP, row.remote),
        )
        return row.inside in servers

    def exchanges(
        self, now: int, patience_s: float, moved: Callable[[], dict[Ends, str]]
    ) -> Iterator[tuple[Exchange, Finding | None]]:
        """Yield every exchange and what can be said of it; of one without data nothing before `patience_s` are over.

        An SA that has been idle for long is gone before its exchange: that lacks nothing. `moved` returns what sessions
        of NAT traversal lack, and is asked only about exchanges that are old enough and have had no data at all.
        """
        exchanges = self._ipsec.exchanges.exchanges.values()
        self._carried |= {(row.inside, row.remote) for row in self._ipsec.esp.rows.values()}
        self._carried &= {(row.inside, row.remote) for row in exchanges}
        for row in exchanges:
            ends = (row.inside, row.remote)
            has_data = ends in self._carried
            age = (now - row.last) / NS_PER_SECOND
            if not (has_data or row.outstanding) and age <= patience_s:
                yield row, None
                continue
            finding = of_exchange(row, has_data, lambda ends=ends: moved().get(ends))
            if finding and not finding.text and age > SAID_AFTER_S:  # before, its packets may not be answered yet
                self._carried.add(ends)
            yield row, finding
