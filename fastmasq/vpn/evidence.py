"""Whose is an inbound SPI nobody has seen before: the inside hosts that it may belong to.

The algorithm of 1999 gives it to the host whose start is pending, and lets nobody else start for minutes. The first is
wrong whenever the remote speaks first on another host's new SA, as it does after rekeying under traffic; the second
makes everybody wait for one host that gets no answer. Three things that pass by anyway tell more:

* who has negotiated an SA that no inbound SPI was seen for yet (ISAKMP, `vpn/isakmp.py`);
* how long the remote takes to answer. ISAKMP has measured the way to it; who answers ESP may be busy, or behind it, so
  the answers of starts are measured as well. A start is answered in time or hardly ever;
* the sequence number: an SA begins at 1 (RFC 4303 section 2.2), so a high number belongs to no start.

A start then has its *turn* only for as long as the answer to its last packet can take, and an SPI that comes within
that time is its answer. Any other is that of a host which has just negotiated, or an answer that comes late. If there
are several such hosts, each gets a copy of the packet, and all but one discard it, as after a guess (E-19, E-20). The
owner gives itself away: it answers at once, or is answered in time later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from fastmasq.units import NS_PER_SECOND
from fastmasq.vpn.isakmp import ExchangeTable

_MARGIN = NS_PER_SECOND // 2  # by which an answer may be later than twice ISAKMP's fastest, before any was measured
_LEAST_MARGIN = NS_PER_SECOND // 4  # the same, however fast the answers were
AT_ONCE = NS_PER_SECOND // 20  # within which an inside host answers what it got
REMEMBERED = 8  # outbound packets of an unanswered start whose times are kept


class Association(Struct, kw_only=True, eq=False):
    """One ESP row: an inside host's SA with a remote. SPIs are 0 while unknown; times in ns, 0 for never.

    sent: when its last packets left while it was outstanding. turn: when its turn began. sequence: of the last inbound
    packet seen. negotiated: it was seen in ISAKMP before it started, so its answer can be expected in time.
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
    turn: int = 0
    last_out: int = 0
    last_in: int = 0
    first_sequence: int = 0  # of the first outbound packet
    sequence: int = 0
    negotiated: bool = False
    preloaded: bool = False
    lifetime: int = 0  # ns, of a preloaded row; 0 the usual, -1 for ever
    suspected: bool = False  # that another host has the same inbound SPI; said once
    sent: list[int] = []


class Dispute(Struct, kw_only=True, eq=False):
    """An inbound SPI that may belong to several inside hosts; `last` is when they got a packet with it."""

    remote: int
    masq: int
    spi: int
    since: int
    hosts: list[int]
    last: int = 0


def patience(exchanges: ExchangeTable, remote: int) -> int | None:
    """Return how long the answer to a start may take, in ns; None if nothing is known about the remote.

    As a TCP sender waits: the mean of its answers and four times their deviation (RFC 6298 section 2).
    """
    rtt = exchanges.rtt.get(remote)
    if rtt is None:
        return None
    mean, deviation = exchanges.answers.get(remote) or _first_guess(rtt)
    return max(2 * rtt + _LEAST_MARGIN, mean + 4 * deviation)


def measure(row: Association, exchanges: ExchangeTable, now: int) -> None:
    """Note how long the answer took that comes now to a start, if it can only be that to its only packet."""
    if len(row.sent) == 1 and expecting(row, exchanges, now) and row.remote in exchanges.rtt:
        sample = now - row.sent[0]
        mean, deviation = exchanges.answers.get(row.remote) or _first_guess(exchanges.rtt[row.remote])
        exchanges.answers[row.remote] = (
            mean + (sample - mean) // 8,
            deviation + (abs(sample - mean) - deviation) // 4,
        )


def _first_guess(rtt: int) -> tuple[int, int]:
    """Return mean and deviation of answers not measured yet, in ns."""
    return rtt, (rtt + _MARGIN) // 4


def expecting(row: Association, exchanges: ExchangeTable, now: int) -> bool:
    """Whether an unknown SPI that comes now may be the answer to one of the last packets of a pending start."""
    longest = patience(exchanges, row.remote)
    if longest is None:
        return True
    shortest = exchanges.rtt[row.remote] // 2
    return any(shortest <= now - sent <= longest for sent in row.sent)


def candidates(
    remote: int, sequence: int, pending: Sequence[Association], exchanges: ExchangeTable, now: int
) -> list[int]:  # fmt: skip
    """Return the inside hosts an unknown SPI may belong to, likeliest first, at most `most_candidates`; none: guess.

    `pending` are the outstanding rows of this remote and masquerade address. Whose turn it is gets it alone; otherwise
    it is for those who have negotiated, the last first, and those whose start was not answered in time.
    """
    settings = exchanges.settings
    negotiated = [one.inside for one in reversed(exchanges.negotiations(remote, now))]
    if sequence > settings.fresh_sequence and negotiated:
        pending = [row for row in pending if row.first_sequence > settings.fresh_sequence]
        negotiated = []
    answered = [row.inside for row in pending if expecting(row, exchanges, now)]
    if answered:
        return answered[:1]
    late = [row.inside for row in sorted(pending, key=lambda row: -row.last_out)]
    return list(dict.fromkeys([*negotiated, *late]))[: settings.most_candidates]
