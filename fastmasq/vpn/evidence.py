"""Whose is an inbound SPI nobody has seen before: the inside hosts that it may belong to, likeliest first.

The algorithm of 1999 gives it to the host whose start is pending. That is wrong whenever the remote speaks first on
another host's new SA, which it does after every rekey under traffic. Three things that pass by anyway tell more:

* who has negotiated an SA that no inbound SPI was seen for yet (ISAKMP, `vpn/isakmp.py`);
* that an answer cannot come before a round trip is over, which ISAKMP has measured;
* the sequence number: an SA begins at 1 (RFC 4303 section 2.2), so a high number belongs to no start.

If several hosts remain, each gets a copy of the packet, and all but one discard it, as after a guess (E-19, E-20).
Their answers settle it: the owner's packets go out a round trip before the remote's come in, the others' by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from fastmasq.units import NS_PER_SECOND
from fastmasq.vpn.isakmp import ExchangeTable, IpsecSettings

_MARGIN = NS_PER_SECOND // 50  # by which an answer may be later than half as long again as the fastest one
REMEMBERED = 8  # outbound packets of an unanswered start whose times are kept


class Association(Struct, kw_only=True, eq=False):
    """One ESP row: an inside host's SA with a remote. SPIs are 0 while unknown; times in ns, 0 for never.

    sent: when its last packets left while it was outstanding. sequence: of the last inbound packet seen.
    """

    number: int
    inside: int
    masq: int
    remote: int
    ospi: int = 0
    ispi: int = 0
    state: Literal["outstanding", "established", "squelched", "closed"] = "outstanding"
    blocking: bool = False
    retries: int = 0
    since: int = 0
    last_out: int = 0
    last_in: int = 0
    first_sequence: int = 0  # of the first outbound packet
    sequence: int = 0
    negotiated: bool = False  # seen in ISAKMP before it started
    preloaded: bool = False
    lifetime: int = 0  # ns, of a preloaded row; 0 the usual, -1 for ever
    suspected: bool = False  # that another host has the same inbound SPI; said once
    sent: list[int] = []


class Dispute(Struct, kw_only=True, eq=False):
    """An inbound SPI that may belong to several hosts: timely answers counted by host."""

    remote: int
    masq: int
    spi: int
    since: int
    scores: dict[int, int]


def candidates(
    remote: int,
    sequence: int,
    pending: Sequence[Association],
    established: set[int],
    exchanges: ExchangeTable,
    now: int,
) -> list[int]:
    """Return the inside hosts an unknown SPI from a remote may belong to, at most `most_candidates`; none: guess.

    `pending` are the outstanding rows of this remote and masquerade address, oldest first; `established` the hosts that
    have an established row with the remote.
    """
    settings = exchanges.settings
    negotiated = exchanges.negotiations(remote, now)
    if sequence > settings.fresh_sequence and negotiated:
        old = [row.inside for row in pending if row.first_sequence > settings.fresh_sequence]
        return _distinct(old, settings)
    soonest = now - exchanges.rtt.get(remote, 0) // 2
    answered = [row.inside for row in pending if row.since <= soonest]
    rekeyed = [one.inside for one in reversed(negotiated) if one.inside in established]
    return (
        _distinct([*answered, *rekeyed], settings)
        or _distinct([one.inside for one in reversed(negotiated)], settings)
        or _distinct([row.inside for row in pending], settings)
    )


def note_answer(dispute: Dispute, pending: Sequence[Association], exchanges: ExchangeTable, now: int) -> int | None:
    """Count who sent something that this packet may answer; return the host that is far enough ahead of all others."""
    rtt = exchanges.rtt.get(dispute.remote)
    if rtt is None:
        return None
    earliest, latest = now - rtt * 3 // 2 - _MARGIN, now - rtt // 2
    for row in pending:
        if row.inside in dispute.scores and any(earliest <= time <= latest for time in row.sent):
            dispute.scores[row.inside] += 1
            row.sent = [time for time in row.sent if time > latest]  # one packet is answered once
    (first, best), (_, second) = sorted(dispute.scores.items(), key=lambda item: -item[1])[:2]
    return first if best - second >= exchanges.settings.lead else None


def _distinct(hosts: Sequence[int], settings: IpsecSettings) -> list[int]:
    return list(dict.fromkeys(hosts))[: settings.most_candidates]
