"""Whose is an inbound SPI nobody has seen before: the inside hosts that it may belong to, and what tells the owner.

The algorithm of 1999 gives it to the host whose start is pending, and lets nobody else start for minutes. The first is
wrong whenever the remote speaks first on another host's new SA, as it does after rekeying under traffic; the second
makes everybody wait for one host that gets no answer. Things that pass by anyway tell more:

* who has negotiated an SA that no inbound SPI was seen for yet (ISAKMP, `isakmp.py`), or has started one: it is the
  SPI of one of these;
* the sequence number: an SA begins at 1 (RFC 4303 section 2.2), so a high number belongs to no start.

If there are several such hosts the SPI is *disputed*: each gets a copy of the packet, and all but one discard it, as
after a guess (E-19, E-20). So not knowing costs copies and not an SA, nobody has to wait for anybody, and there is time
to collect *signs*. A packet is a sign for a host

* if it can be the answer to what the host has sent: it comes within the time that the remote takes. ISAKMP has measured
  the way to it; who answers ESP may be busy, or behind it, so the answers of starts are measured as well;
* if the host sends something right after it got the packet.

One packet may be so by chance, and hosts that start together repeat themselves together. So the owner is who is ahead
of all others by LEAD signs. A host that sends all the time has no signs, since with it everything is by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fastmasq.trackers.vpn.fields import Address, Count, Number, SequenceNumber, Spi, Time
from fastmasq.trackers.vpn.isakmp import ExchangeTable
from fastmasq.units import NS_PER_SECOND

_MARGIN = NS_PER_SECOND // 2  # by which an answer may be later than twice ISAKMP's fastest, before any was measured
_LEAST_MARGIN = NS_PER_SECOND // 4  # the same, however fast the answers were
AT_ONCE = NS_PER_SECOND // 20  # within which an inside host answers what it got
LEAD = 3  # signs by which the owner of a disputed SPI is ahead of all other hosts
FEW = 4  # packets within the time of an answer; who sends more sends all the time
DISPUTED_FOR = 60 * NS_PER_SECOND  # after which the likeliest host gets a disputed SPI
DISPUTED_PACKETS = 64  # the same, in packets with copies
REMEMBERED = 8  # outbound packets of an unanswered start whose times are kept


class Association(Struct, kw_only=True, eq=False, tag="sa"):
    """One ESP row: an inside host's SA with a remote. SPIs are 0 while unknown; times in ns, 0 for never.

    sent: when its last packets left while it was outstanding. sequence: of the last inbound packet seen. negotiated:
    its host was seen in ISAKMP before it started, so its answer can be told from others'.
    """

    number: Number
    inside: Address
    masq: Address
    remote: Address
    ospi: Spi = 0
    ispi: Spi = 0
    state: Literal["outstanding", "established", "squelched", "closed"] = "outstanding"
    blocking: bool = False
    retries: Count = 0
    since: Time = 0
    last_out: Time = 0
    last_in: Time = 0
    first_sequence: SequenceNumber = 0  # of the first outbound packet
    sequence: SequenceNumber = 0
    negotiated: bool = False
    preloaded: bool = False
    lifetime: Annotated[int, Meta(ge=-1, le=1 << 62)] = 0  # ns, of a preloaded row; 0 the usual, -1 for ever
    suspected: bool = False  # that another host has the same inbound SPI; said once
    sent: Annotated[list[Time], Meta(max_length=REMEMBERED)] = []


class Dispute(Struct, kw_only=True, eq=False):
    """An inbound SPI that may belong to several inside hosts, and how many of its packets were a sign for each.

    last: when copies went to hosts. packets: how many did. answered: who has answered the last at once.
    """

    remote: int
    masq: int
    spi: int
    since: int
    hosts: list[int]
    last: int = 0
    packets: int = 0
    signs: dict[int, int] = {}
    answered: set[int] = set()

    def note_sign(self, inside: int) -> None:
        self.signs[inside] = self.signs.get(inside, 0) + 1

    def ranking(self) -> list[int]:
        """Return the hosts, likeliest first."""
        return sorted(self.hosts, key=lambda host: -self.signs.get(host, 0))

    def owner(self) -> int | None:
        """Return the host that is ahead of all others; None if no host is so by LEAD signs."""
        first, second = ([self.signs.get(host, 0) for host in self.ranking()] + [0, 0])[:2]
        return self.ranking()[0] if first - second >= LEAD else None


def patience(exchanges: ExchangeTable, remote: int) -> int | None:
    """Return how long the answer to a start may take, in ns; None if nothing is known about the remote.

    As a TCP sender waits: the mean of its answers and four times their deviation (RFC 6298 section 2).
    """
    rtt = exchanges.rtt(remote)
    if rtt is None:
        return None
    mean, deviation = exchanges.answers.get(remote) or _first_guess(rtt)
    return max(2 * rtt + _LEAST_MARGIN, mean + 4 * deviation)


def measure(row: Association, exchanges: ExchangeTable, now: int) -> None:
    """Note how long the answer took that comes now to a start, if it can only be that to its only packet."""
    rtt = exchanges.rtt(row.remote)
    if len(row.sent) == 1 and expecting(row, exchanges, now) and rtt is not None:
        sample = now - row.sent[0]
        mean, deviation = exchanges.answers.get(row.remote) or _first_guess(rtt)
        mean, deviation = mean + (sample - mean) // 8, deviation + (abs(sample - mean) - deviation) // 4
        exchanges.note_answer(row.remote, mean, deviation)


def _first_guess(rtt: int) -> tuple[int, int]:
    """Return mean and deviation of answers not measured yet, in ns."""
    return rtt, (rtt + _MARGIN) // 4


def says_little(row: Association, exchanges: ExchangeTable, now: int) -> bool:
    """Whether a start has sent so much within the time of an answer that whatever comes may be the answer."""
    longest = patience(exchanges, row.remote)
    return longest is not None and sum(now - sent <= longest for sent in row.sent) > FEW


def expecting(row: Association, exchanges: ExchangeTable, now: int) -> bool:
    """Whether an unknown SPI that comes now may be the answer to one of the last packets of a pending start."""
    longest = patience(exchanges, row.remote)
    if longest is None:
        return True
    shortest = exchanges.rtt(row.remote) // 2
    return any(shortest <= now - sent <= longest for sent in row.sent)


def candidates(
    remote: int, sequence: int, pending: Sequence[Association], exchanges: ExchangeTable, now: int
) -> list[int]:  # fmt: skip
    """Return the inside hosts an unknown SPI may belong to, likeliest first; none: guess.

    `pending` are the outstanding rows of this remote and masquerade address. The last to negotiate is the likeliest.
    """
    settings = exchanges.settings
    negotiated = [one.inside for one in reversed(exchanges.negotiations(remote, now))]
    if sequence > settings.fresh_sequence and negotiated:
        pending = [row for row in pending if row.first_sequence > settings.fresh_sequence]
        negotiated = []
    late = [row.inside for row in sorted(pending, key=lambda row: -row.last_out)]
    return list(dict.fromkeys([*negotiated, *late]))
