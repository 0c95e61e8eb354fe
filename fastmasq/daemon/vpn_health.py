"""Looks once in a while at all VPNs for what they lack, and leaves out what is no fault of theirs or ours."""

from __future__ import annotations

import functools
from collections.abc import Iterator

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


class Health:
    """What the VPNs of one gateway lack. Times in nanoseconds."""

    def __init__(
        self,
        connections: dict[int, Connection],
        calls: CallTable,
        ipsec: Ipsec,
        forwards: Leads,
        table: MasqTable,
        forwarder: Forwarder,
    ) -> None:
        self._connections, self._calls, self._ipsec = connections, calls, ipsec
        self._forwards, self._table, self._forwarder = forwards, table, forwarder
        self._carried: set[Ends] = set()  # those with an exchange that have had ESP, or NAT traversal instead
        self.reports = Reports()

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
        yield from self._exchanges(now)
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

    def _exchanges(self, now: int) -> Iterator[tuple[About, Finding]]:
        """Yield exchanges. An SA that has been idle for long is gone before its exchange: that lacks nothing.

        The session table is read only while an exchange that is old enough to be judged has had no data at all.
        """
        exchanges = self._ipsec.exchanges.exchanges.values()
        self._carried |= {(row.inside, row.remote) for row in self._ipsec.esp.rows.values()}
        self._carried &= {(row.inside, row.remote) for row in exchanges}
        moved = functools.cache(lambda: natt.by_ends(natt.sessions(self._table, self._forwarder)))
        for row in exchanges:
            ends = (row.inside, row.remote)
            has_data = ends in self._carried
            if self._serves(row):
                continue
            if not (has_data or row.outstanding) and now - row.last <= SAID_AFTER_S * NS_PER_SECOND:
                continue
            if finding := of_exchange(row, has_data, lambda ends=ends: moved().get(ends)):
                yield About("exchange", *ends), finding
                if not finding.text:
                    self._carried.add(ends)
