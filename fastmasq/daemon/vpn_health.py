"""What a VPN lacks and since when, by the HOWTO's sections 5.2 and 5.3 (H-63 to H-73), and saying so once.

`fastmasq vpn` shows what has been lacking for PATIENCE_S. What has been for SAID_AFTER_S is logged once, and again only
after the VPN has worked, or has lacked nothing for FORGOTTEN_AFTER_S.
"""

from __future__ import annotations

import functools
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from fastmasq.daemon import natt
from fastmasq.trackers.vpn.calls import Call
from fastmasq.trackers.vpn.events import dotted
from fastmasq.trackers.vpn.evidence import Association
from fastmasq.trackers.vpn.isakmp import Exchange
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire.tunnels import IKE_PORT

if TYPE_CHECKING:
    from fastmasq.daemon.vpn import Connection, Vpn

GRE, ESP = 47, 50
PATIENCE_S = 10
LOOK_EVERY_S = 10
SAID_AFTER_S = 30
FORGOTTEN_AFTER_S = 600
RECENTLY_S = 60  # what has worked within it works
REPEATS, REPEATS_WITHIN_S = 5, 300  # of control connections: more are no accident
MOST_PAIRS = 4096  # of hosts whose control connections are counted

_LOST = "the stream could not be followed: its Call IDs are not translated"
_UNANSWERED = "TCP port 1723 is not answered: the server's address is wrong, or a firewall drops it"
_REFUSED = "TCP port 1723 is refused: the server's address is wrong, or nothing listens there"
_NO_CALL = "a control connection and no call: the server does not answer, or has refused; see `fastmasq test pptp`"
_CALL_UNANSWERED = "the call was asked for and not answered: look at the server"
_REPEATED = (
    f"{REPEATS} control connections within {REPEATS_WITHIN_S // 60} minutes: the ends do not agree on passwords or "
    "encryption; look at both logs"
)
_GRE_FILTERED = "no GRE either way: a router or firewall between the two ends drops protocol 47"
_GRE_OUT_ONLY = "GRE goes out and none comes in: the server, or a router on the way, drops protocol 47"
_GRE_IN_ONLY = "GRE comes in and none goes out: look at the inside host, its default route and its firewall"
_SQUELCHED = "the start was not answered and lost its turn"
_ESP_OUT_ONLY = "ESP goes out and none comes in: the server, or a router on the way, drops protocol 50"
_ESP_IN_ONLY = "ESP comes in and none goes out: look at the inside host, its default route and its firewall"
_ISAKMP_UNANSWERED = "ISAKMP is not answered: the server is not there, or something drops UDP port 500"
_ISAKMP_ONLY = "ISAKMP and no ESP: the ends do not agree, or the inside host's ESP is dropped before it gets here"

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


def of_connection(vpn: Vpn, connection: Connection, now: int) -> Finding | None:
    """Judge a control connection."""
    if connection.follower.lost:
        return Finding(_LOST, 0)
    if vpn.calls.controls[connection.number].made:
        return Finding("", now)
    if not connection.accepted:
        return Finding(_UNANSWERED, connection.since)
    return None if connection.is_closed else Finding(_NO_CALL, connection.since)


def of_call(call: Call) -> Finding | None:
    """Judge a call. What a call has lacked that lasted for PATIENCE_S and is over, it lacks for ever."""
    if call.seen_out and call.seen_in:
        return Finding("", min(call.seen_out, call.seen_in))
    since = call.since
    if call.state == "closing":
        if call.ended - call.since < PATIENCE_S * NS_PER_SECOND:
            return None
        since = 0
    if call.remote_id is None and call.state != "passthrough":
        return Finding(_CALL_UNANSWERED, since)
    return Finding(_one_way(call.seen_out, call.seen_in, _GRE_OUT_ONLY, _GRE_IN_ONLY) or _GRE_FILTERED, since)


def of_exchange(row: Exchange, has_esp: bool, natt_lacks: Callable[[], str | None]) -> Finding | None:
    """Judge an ISAKMP exchange; `natt_lacks` returns what its NAT traversal lacks, None if there is none."""
    if row.outstanding:
        return None if row.asked is None else Finding(_ISAKMP_UNANSWERED, row.asked)
    if has_esp:
        return Finding("", row.last)
    lacks = natt_lacks()
    return Finding(_ISAKMP_ONLY if lacks is None else lacks, row.last)


def of_association(row: Association) -> Finding | None:
    """Judge an SA. Before its first packet nothing can be said."""
    if row.state == "squelched":
        return Finding(_SQUELCHED, 0)
    if row.last_out and row.last_in:
        return Finding("", row.last_in)
    text = _one_way(row.last_out, row.last_in, _ESP_OUT_ONLY, _ESP_IN_ONLY)
    return Finding(text, row.since) if text else None


def _one_way(seen_out: int, seen_in: int, out_only: str, in_only: str) -> str:
    """Return what is missing, by the times packets were seen last each way, 0 for never."""
    if seen_out and not seen_in:
        return out_only
    return in_only if seen_in and not seen_out else ""


# -- all of them, once in a while ------------------------------------------------------------------------------------


class _Key(NamedTuple):
    kind: str
    inside: int
    remote: int


class Watch:
    """Finds out by itself what VPNs lack, and says it once. Times in nanoseconds."""

    def __init__(self, vpn: Vpn) -> None:
        self._vpn = vpn
        self._next = 0
        self._said: dict[tuple[_Key, str], int] = {}  # when it was last still so
        self._lacked: set[tuple[_Key, str]] = set()  # at the last look
        self._carried: set[Ends] = set()  # those with an exchange that have had ESP, or NAT traversal instead
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

    def look(self, now: int, most: int) -> Iterator[str]:
        """Yield the lines to log, at most so many, every LOOK_EVERY_S; the rest is for the next look."""
        if now < self._next:
            return
        self._next = now + LOOK_EVERY_S * NS_PER_SECOND
        lacking: dict[tuple[_Key, str], bool] = {}  # True: long enough to be said
        working: set[_Key] = set()
        for key, finding in self._findings(now):
            what = (key, finding.text)
            if finding.lacks_for(SAID_AFTER_S - LOOK_EVERY_S, now):
                lacked_before = what in self._lacked or not finding.since  # else an answer may just be on its way
                lacking[what] = lacking.get(what, False) or (lacked_before and finding.lacks_for(SAID_AFTER_S, now))
            elif not finding.text and now - finding.since < RECENTLY_S * NS_PER_SECOND:
                working.add(key)
        self._lacked = {what for what in lacking if what[0] not in working}
        oldest = now - FORGOTTEN_AFTER_S * NS_PER_SECOND
        self._said = {what: last for what, last in self._said.items() if what[0] not in working and last > oldest}
        for what in self._lacked:
            if what in self._said:
                self._said[what] = now
            elif lacking[what] and most > 0:
                most -= 1
                self._said[what] = now
                (kind, inside, remote), text = what
                family = "PPTP" if kind in ("connection", "call") else "IPsec"
                yield f"{family} {dotted(inside)} - {dotted(remote)}: {text}"

    def _findings(self, now: int) -> Iterator[tuple[_Key, Finding]]:
        """Yield all there is to say, but for servers inside: whoever knocks at them in vain is no fault of ours."""
        vpn = self._vpn
        for connection in vpn.connections.values():
            control = vpn.calls.controls.get(connection.number)
            if control is None or connection.serves or connection.follower.lost:
                continue  # lost sync has its own line
            if finding := of_connection(vpn, connection, now):
                yield _Key("connection", control.inside, control.remote), finding
        for inside, remote in self._refused:
            yield _Key("connection", inside, remote), Finding(_REFUSED, 0)
        self._refused.clear()
        yield from self._repeats(now)
        for call in vpn.calls.calls.values():
            if call.state == "passthrough" and vpn.forwards.redirected(GRE, call.remote) == call.inside:
                continue
            if finding := of_call(call):
                yield _Key("call", call.inside, call.remote), finding
        yield from self._exchanges(now)
        for row in vpn.ipsec.esp.rows.values():
            if row.state == "squelched" or self._serves(row):  # a squelched one has its own line
                continue
            if finding := of_association(row):
                yield _Key("sa", row.inside, row.remote), finding

    def _serves(self, row: Exchange | Association) -> bool:
        """Whether a forward of port 500 or a redirect of ESP names the inside host."""
        forwards = self._vpn.forwards
        servers = (forwards.target_of(row.masq, "udp", IKE_PORT), forwards.redirected(ESP, row.remote))
        return row.inside in servers

    def _repeats(self, now: int) -> Iterator[tuple[_Key, Finding]]:
        """Yield hosts that begin one control connection after the other (H-65)."""
        oldest = now - REPEATS_WITHIN_S * NS_PER_SECOND
        for (inside, remote), times in list(self._begun.items()):
            if times[-1] < oldest:
                del self._begun[inside, remote]
            elif len(times) == REPEATS and times[0] >= oldest:
                yield _Key("call", inside, remote), Finding(_REPEATED, 0)

    def _exchanges(self, now: int) -> Iterator[tuple[_Key, Finding]]:
        """Yield exchanges. An SA that has been idle for long is gone before its exchange: that lacks nothing.

        The session table is read only while an exchange that is old enough to be judged has had no data at all.
        """
        exchanges = self._vpn.ipsec.exchanges.exchanges.values()
        self._carried |= {(row.inside, row.remote) for row in self._vpn.ipsec.esp.rows.values()}
        self._carried &= {(row.inside, row.remote) for row in exchanges}
        moved = functools.cache(lambda: natt.by_ends(natt.sessions(self._vpn.table, self._vpn.forwarder)))
        for row in exchanges:
            ends = (row.inside, row.remote)
            has_data = ends in self._carried
            if self._serves(row):
                continue
            if not (has_data or row.outstanding) and now - row.last <= SAID_AFTER_S * NS_PER_SECOND:
                continue
            if finding := of_exchange(row, has_data, lambda ends=ends: moved().get(ends)):
                yield _Key("exchange", *ends), finding
                if not finding.text:
                    self._carried.add(ends)
