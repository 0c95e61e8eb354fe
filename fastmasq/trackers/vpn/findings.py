"""What the trackers' rows lack by the judgement of `health.py`, since when, and saying it once.

A listing shows what has been lacking for PATIENCE_S. What has been for SAID_AFTER_S is logged once, and again only
after the VPN has worked, or has lacked nothing for FORGOTTEN_AFTER_S.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from fastmasq.trackers.vpn.calls import Call
from fastmasq.trackers.vpn.connection import Connection
from fastmasq.trackers.vpn.events import dotted
from fastmasq.trackers.vpn.evidence import Association
from fastmasq.trackers.vpn.health import (
    REPEATS,
    REPEATS_WITHIN_S,
    WHOLE,
    Channel,
    Facts,
    Family,
    Judgement,
    Lack,
    judge,
    sentence,
)
from fastmasq.trackers.vpn.isakmp import Exchange
from fastmasq.units import NS_PER_SECOND

PATIENCE_S = 10
LOOK_EVERY_S = 10
SAID_AFTER_S = 30
FORGOTTEN_AFTER_S = 600
RECENTLY_S = 60  # what has worked within it works
MOST_PAIRS = 4096  # of hosts whose control connections are counted

_NATT_PACKETS = 3  # without an answer: IKE has waited for it some ten seconds (RFC 7296 section 2.4)
_NO_ANSWER = Channel(1, 0)

Ends = tuple[int, int]  # inside host and remote


class Finding(NamedTuple):
    """What something lacks, and since when; with an empty text, when it worked last. Time in nanoseconds."""

    text: str
    since: int

    def lacks_for(self, seconds: float, now: int) -> bool:
        return bool(self.text) and now - self.since > seconds * NS_PER_SECOND


def shown(finding: Finding | None, now: int) -> str:
    """Return what a listing says."""
    return finding.text if finding is not None and finding.lacks_for(PATIENCE_S, now) else ""


# -- one row; None: nothing can be said ------------------------------------------------------------------------------


def of_connection(connection: Connection, calls_made: int, now: int) -> Finding | None:
    """Judge a control connection, on which so many calls have been made."""
    if connection.follower.lost:
        return Finding(sentence(Judgement(Lack.FOLLOWING, "control")), 0)
    if calls_made:
        return Finding("", now)
    if connection.accepted and connection.is_closed:
        return None
    control = WHOLE if connection.accepted else _NO_ANSWER
    return Finding(_text(Facts(kind="gre", control=control, stage="idle")), connection.since)


def of_call(call: Call) -> Finding | None:
    """Judge a call. What a call has lacked that lasted for PATIENCE_S and is over, it lacks for ever."""
    if call.seen_out and call.seen_in:
        return Finding("", min(call.seen_out, call.seen_in))
    since = call.since
    if call.state == "closing":
        if call.ended - call.since < PATIENCE_S * NS_PER_SECOND:
            return None
        since = 0
    is_made = call.remote_id is not None or call.state == "passthrough"
    data = Channel(call.seen_out, call.seen_in)
    return Finding(_text(Facts(kind="gre", control=WHOLE, data=data, stage="made" if is_made else "asked")), since)


def of_exchange(row: Exchange, has_esp: bool, natt_lacks: Callable[[], str | None]) -> Finding | None:
    """Judge an ISAKMP exchange; `natt_lacks` returns what its NAT traversal lacks, None if there is none."""
    if row.outstanding:
        return None if row.asked is None else Finding(_text(Facts(kind="esp", control=_NO_ANSWER)), row.asked)
    if has_esp:
        return Finding("", row.last)
    lacks = natt_lacks()
    if lacks is None:
        lacks = _text(Facts(kind="esp", control=WHOLE, data=Channel(0, 0)))
    return Finding(lacks, row.last)


def of_association(row: Association) -> Finding | None:
    """Judge an SA. Before its first packet nothing can be said."""
    if row.state == "squelched":
        return Finding(sentence(Judgement(Lack.TURN, "esp")), 0)
    if row.last_out and row.last_in:
        return Finding("", row.last_in)
    if not row.last_out and not row.last_in:
        return None
    return Finding(_text(Facts(kind="esp", data=Channel(row.last_out, row.last_in))), row.since)


def of_natt(packets_out: int, packets_in: int) -> str:
    """Return what a session of NAT traversal lacks: it has no times, so patience is counted in packets."""
    if max(packets_out, packets_in) < _NATT_PACKETS:
        return ""
    return _text(Facts(kind="natt", data=Channel(packets_out, packets_in)))


def _text(facts: Facts) -> str:
    return sentence(judge(facts))


# -- all of them, once in a while ------------------------------------------------------------------------------------


class About(NamedTuple):
    """What a finding is about: a "connection", "call", "exchange" or "sa" of an inside host and a remote."""

    kind: str
    inside: int
    remote: int

    @property
    def family(self) -> Family:
        return "pptp" if self.kind in ("connection", "call") else "ipsec"


class Reports:
    """Says once what VPNs lack, from the findings it is given and what it counts itself. Times in nanoseconds."""

    def __init__(self) -> None:
        self._next = 0
        self._said: dict[tuple[About, str], int] = {}  # when it was last still so
        self._lacked: set[tuple[About, str]] = set()  # at the last look
        self._refused: set[Ends] = set()  # since the last look
        self._begun: defaultdict[Ends, deque[int]] = defaultdict(lambda: deque(maxlen=REPEATS))

    def note_connection(self, inside: int, remote: int, now: int) -> None:
        """Count a control connection that an inside host begins."""
        if len(self._begun) < MOST_PAIRS or (inside, remote) in self._begun:
            self._begun[inside, remote].append(now)

    def note_refusal(self, inside: int, remote: int) -> None:
        """Note that a server has answered the SYN of an inside host by a reset."""
        if len(self._refused) < MOST_PAIRS:
            self._refused.add((inside, remote))

    def is_due(self, now: int) -> bool:
        """Whether it is time to look, which is every LOOK_EVERY_S."""
        return now >= self._next

    def look(self, findings: Iterable[tuple[About, Finding]], now: int, most: int) -> Iterator[str]:
        """Yield the lines to log about all that there is now, at most so many; the rest is for the next look."""
        self._next = now + LOOK_EVERY_S * NS_PER_SECOND
        lacking: dict[tuple[About, str], bool] = {}  # True: long enough to be said
        working: set[About] = set()
        for about, finding in (*findings, *self._own(now)):
            what = (about, finding.text)
            if finding.lacks_for(SAID_AFTER_S - LOOK_EVERY_S, now):
                lacked_before = what in self._lacked or not finding.since  # else an answer may just be on its way
                lacking[what] = lacking.get(what, False) or (lacked_before and finding.lacks_for(SAID_AFTER_S, now))
            elif not finding.text and now - finding.since < RECENTLY_S * NS_PER_SECOND:
                working.add(about)
        self._lacked = {what for what in lacking if what[0] not in working}
        oldest = now - FORGOTTEN_AFTER_S * NS_PER_SECOND
        self._said = {what: last for what, last in self._said.items() if what[0] not in working and last > oldest}
        for what in self._lacked:
            if what in self._said:
                self._said[what] = now
            elif lacking[what] and most > 0:
                most -= 1
                self._said[what] = now
                about, text = what
                name = "PPTP" if about.family == "pptp" else "IPsec"
                yield f"{name} {dotted(about.inside)} - {dotted(about.remote)}: {text}"

    def _own(self, now: int) -> Iterator[tuple[About, Finding]]:
        """Yield servers that refuse, and hosts that begin one control connection after the other (H-65)."""
        for ends in self._refused:
            yield About("connection", *ends), Finding(_text(Facts(kind="gre", control=_NO_ANSWER, refused=True)), 0)
        self._refused.clear()
        oldest = now - REPEATS_WITHIN_S * NS_PER_SECOND
        for ends, times in list(self._begun.items()):
            if times[-1] < oldest:
                del self._begun[ends]
            elif len(times) == REPEATS and times[0] >= oldest:
                yield About("call", *ends), Finding(_text(Facts(kind="gre", repeated=True)), 0)
