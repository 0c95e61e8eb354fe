"""Goes on with the calls and SAs of a process that has died: no octet that it has left is trusted.

A control connection is one whose session was adopted. Its follower goes on where it was; if more has passed since than
it has read, or what it has left cannot be, the connection goes on unread. Calls follow, then SAs, ISAKMP exchanges, and
what is known of remotes. Each row is judged by itself and beside those before it, by its own table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from fastmasq.daemon.kept_tunnels import FormerTunnels
from fastmasq.daemon.vpn import Vpn
from fastmasq.trackers.vpn.calls import Call
from fastmasq.trackers.vpn.connection import Connection, KeptConnection


class Adopted(NamedTuple):
    """How many rows go on, by kind, and how many do not, by reason."""

    rows: Counter[str]
    dropped: Counter[str]


def adopt(former: FormerTunnels, vpn: Vpn, now: int) -> Adopted:
    """Have a gateway's trackers, which have seen nothing yet, go on with what was left. now is in nanoseconds."""
    result = Adopted(Counter(), Counter(torn=former.torn))
    for kind, reason in (*_adopt_pptp(former, vpn, now), *_adopt_ipsec(former, vpn, now)):
        if reason:
            result.dropped[reason] += 1
        else:
            result.rows[kind] += 1
    vpn.begin_with_adopted()
    return Adopted(result.rows, +result.dropped)


def _adopt_pptp(former: FormerTunnels, vpn: Vpn, now: int) -> Iterator[tuple[str, str]]:
    """Yield the kind of each row, and why it does not go on, or ""."""
    if not vpn.settings.pptp:
        yield from (("", "not followed") for _ in (*former.connections, *former.calls))
        return
    connections: dict[int, tuple[Connection, KeptConnection]] = {}
    for kept in former.connections:
        found = vpn.adopt_connection(kept, now)
        if isinstance(found, str):
            yield "control", found
            continue
        connections[kept.number] = found, kept
        yield "control", ""
    calls: dict[int, Call] = {}
    for call in sorted(former.calls, key=lambda call: (call.state != "closing", call.seen_out, call.number)):
        number, connection = call.number, connections.get(call.control)
        call.control = connection[0].number if connection is not None else None
        reason = vpn.calls.adopt(call, now)
        if not reason:
            calls[number] = call
        yield "call", reason
    for connection, kept in connections.values():
        vpn.go_on_following(connection, kept, calls)


def _adopt_ipsec(former: FormerTunnels, vpn: Vpn, now: int) -> Iterator[tuple[str, str]]:
    """Yield the same."""
    if not vpn.settings.ipsec:
        yield from (("", "not followed") for _ in (*former.associations, *former.exchanges))
        return
    for row in sorted(former.associations, key=lambda row: (row.since, row.number)):
        reason = vpn.ipsec.esp.adopt(row, now)
        if not reason:
            vpn.note_tunnel(row)  # which is no news
        yield "sa", reason
    for row in sorted(former.exchanges, key=lambda row: (row.last, row.number)):
        yield "exchange", vpn.ipsec.exchanges.adopt(row, now)
    for known in former.evidence:
        vpn.ipsec.exchanges.adopt_evidence(known, now)
