"""The table of ISAKMP exchanges: which inside host a pair of cookies belongs to, and who has just negotiated an SA.

Both ends use port 500 and keep it (K-2), so the cookies tell hosts apart: 8 octets of the initiator, 8 of the
responder, the latter zero until the responder's first answer has been seen. An exchange without it is *outstanding*,
and while it is, another inside host may not begin one with the same initiator cookie to the same remote (K-8).

What else the header tells is kept for ESP: when each host talked to a remote last (E-20), how fast the remote answers,
and which quick modes (IKEv2: exchanges that make a child SA) have come far enough for their SPIs to be in use. Such a
*negotiation* is worth one inbound SPI, and is claimed by it (`esp.py`).
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fastmasq.trackers.vpn.changes import Changes
from fastmasq.trackers.vpn.deadlines import Deadlines
from fastmasq.trackers.vpn.decision import Decision, dropped
from fastmasq.trackers.vpn.events import Event
from fastmasq.trackers.vpn.fields import Address, Cookie, Number, Time
from fastmasq.trackers.vpn.unanswered import Unanswered
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire.tunnels import NO_COOKIE, Isakmp

QUICK_MODE = 32  # RFC 2409 appendix A
IKE_AUTH, CREATE_CHILD_SA = 35, 36  # RFC 7296 section 3.1
_MAKES_SA = (QUICK_MODE, IKE_AUTH, CREATE_CHILD_SA)
_RESPONSE = 0x20  # flag of IKEv2 (RFC 7296 section 3.1)

_MOST_MESSAGES = 16  # unfinished exchanges remembered of one row
_ANSWERS_TIMED = 8  # of one remote, the last
_MOST_NEGOTIATIONS = 1024  # of one remote
_Conversation = Annotated[int, Meta(ge=0, le=0x1FFFFFFFF)]
_Messages = Annotated[dict[_Conversation, Literal[1, 2, 3]], Meta(max_length=_MOST_MESSAGES)]

SHORTEST_LIFETIME = 900 * NS_PER_SECOND  # a shorter IPsec lifetime counts as this (section 4.1 of 1999)


class IpsecSettings(Struct, frozen=True, kw_only=True):
    """Every constant of ISAKMP and ESP; times in nanoseconds. The defaults are those of the 2.0 and 2.2 patches.

    evidence: let what ISAKMP shows, and what hosts do, decide where 1999 took what came first, and let no start wait
    for another; off, or where no ISAKMP was seen, the rules E-1 to E-21 hold to the letter.
    """

    lifetime: int = 1800 * NS_PER_SECOND
    init_lifetime: int = 120 * NS_PER_SECOND
    init_retries: int = 5
    squelch: int = 30 * NS_PER_SECOND
    guess: bool = True
    most_candidates: int = 5
    guess_margin: int = 300 * NS_PER_SECOND
    parallel: bool = True
    remote_phase1: bool = True  # K-10: unknown cookies go to the host that talked to the remote last
    evidence: bool = True
    negotiation_window: int = 60 * NS_PER_SECOND  # how long a negotiation without traffic counts
    fresh_sequence: int = 64  # sequence numbers up to here are those of an SA that has just begun
    exchanges: int = 8192
    exchanges_per_host: int = 512
    associations: int = 16384  # ESP rows
    associations_per_host: int = 1024
    disputes: int = 32  # of one remote; further unknown SPIs are guessed, and not remembered
    most_copies: int = 16  # of one packet with a disputed SPI

    def __post_init__(self) -> None:
        if self.lifetime < SHORTEST_LIFETIME:
            from msgspec.structs import force_setattr

            force_setattr(self, "lifetime", SHORTEST_LIFETIME)


class Exchange(Struct, kw_only=True, eq=False, tag="exchange"):
    """One row: the cookies of an ISAKMP SA and the inside host that has it. `responder` is zero while outstanding."""

    number: Number
    inside: Address
    masq: Address
    remote: Address
    initiator: Cookie
    responder: Cookie = NO_COOKIE
    last: Time = 0  # ns, of the last packet either way
    asked: Time | None = None  # ns, of the first outbound packet not answered yet
    request: tuple[_Conversation, Time] | None = None  # the last unanswered conversation, and its time in ns
    told: Time | None = None  # ns, of the last line about its zero cookie
    messages: _Messages = {}  # of conversations that make SAs: directions seen, 1 out, 2 in

    @property
    def outstanding(self) -> bool:
        return self.responder == NO_COOKIE


class Negotiation(Struct, kw_only=True, eq=False):
    """An SA that an inside host has agreed on with a remote at `since`; claimed once its inbound SPI is known."""

    inside: Address
    remote: Address
    since: Time
    claimed: bool = False


class Evidence(Struct, kw_only=True, frozen=True, tag="evidence"):
    """What is known of one remote beside its exchanges: see ExchangeTable, whose fields these are."""

    remote: Address
    times: Annotated[list[Time], Meta(max_length=_ANSWERS_TIMED)] = []
    answers: tuple[Time, Time] | None = None
    negotiations: Annotated[list[Negotiation], Meta(max_length=_MOST_NEGOTIATIONS)] = []


_MOST_FORGOTTEN = 1024  # remotes
_TELL_AGAIN = 60 * NS_PER_SECOND


class ExchangeTable:
    """All ISAKMP exchanges. Times in nanoseconds, addresses as numbers in host order."""

    def __init__(self, settings: IpsecSettings) -> None:
        self.settings = settings
        self.exchanges: dict[int, Exchange] = {}
        self._times: dict[int, list[int]] = {}  # by remote: times to the last answers, ns
        self.answers: dict[int, tuple[int, int]] = {}  # by remote: mean and deviation of the time to ESP's answers, ns
        self._by_cookie: dict[tuple[int, int, bytes], dict[int, Exchange]] = {}  # (remote, masq, initiator): by number
        self._by_remote: dict[int, OrderedDict[int, Exchange]] = {}  # by number, last active last
        self._negotiations: dict[int, list[Negotiation]] = {}  # by remote, oldest first
        self._forgotten: OrderedDict[int, int] = OrderedDict()  # by remote: whose answered exchange has timed out last
        self._rows_of: Counter[int] = Counter()
        self._unanswered: Unanswered[Exchange] = Unanswered()
        self._deadlines = Deadlines()
        self._numbers = itertools.count(1)
        self._changes: Changes[Exchange] = Changes()
        self._new_evidence: set[int] = set()  # remotes

    # -- packets -------------------------------------------------------------------------------------------------------

    def outbound(self, inside: int, masq: int, remote: int, header: Isakmp, now: int) -> Decision:
        """Decide about ISAKMP from an inside host."""
        events: tuple[Event, ...] = ()
        rows = self._by_cookie.get((remote, masq, header.initiator), {})
        row = self._own(rows, inside, header.responder)
        zero = header.initiator == NO_COOKIE
        if row is None:
            rival = next((one for one in rows.values() if one.outstanding and one.inside != inside), None)
            if rival is not None and not zero:
                event = Event(kind="isakmp_collision", inside=inside, remote=remote, other=rival.inside)
                return dropped("isakmp_collision", event)
            row = self._open(inside, masq, remote, header, now)
            if isinstance(row, str):
                return dropped(row, Event(kind="isakmp_denied", inside=inside, remote=remote, why=row))
        if row.outstanding and header.responder != NO_COOKIE:
            row.responder = header.responder  # the inside host is the responder, or answered what we did not see
        if zero and (row.told is None or now - row.told >= _TELL_AGAIN):
            row.told = now
            events = (Event(kind="isakmp_zero_cookie_out", inside=inside, remote=remote),)
        self._touch(row, header, now, outbound=True)
        return Decision(to=(masq,), row=row, events=events)

    def inbound(self, remote: int, masq: int, header: Isakmp, now: int, redirect: int | None = None) -> Decision:
        """Decide about ISAKMP from outside; `redirect` is the inside host that a forward of 500/udp names (K-9)."""
        if header.initiator == NO_COOKIE:
            return self._inbound_zero(remote, masq, header, now)
        rows = self._by_cookie.get((remote, masq, header.initiator), {})
        row = self._match(rows, header.responder)
        if row is not None:
            if row.outstanding and header.responder != NO_COOKIE:
                row.responder = header.responder
            self._touch(row, header, now, outbound=False)
            return Decision(to=(row.inside,), row=row)
        inside = redirect
        events: tuple[Event, ...] = ()
        if inside is None:
            last = self.last_active(remote, masq) if self.settings.remote_phase1 else None
            if last is None:
                return Decision(events=self._of_nobody("isakmp_unknown", remote))
            inside = last.inside
            events = (Event(kind="isakmp_guessed", inside=inside, remote=remote),)
        self._unanswered.make_room(self._remove)
        row = self._open(inside, masq, remote, header, now, counts=False)
        if isinstance(row, str):
            return dropped(row, Event(kind="isakmp_denied", inside=inside, remote=remote, why=row))
        self._touch(row, header, now, outbound=False)
        return Decision(to=(inside,), row=row, events=events)

    # -- what ESP asks -------------------------------------------------------------------------------------------------

    def last_active(self, remote: int, masq: int) -> Exchange | None:
        """Return the exchange of a remote that saw a packet last."""
        rows = reversed(self._by_remote.get(remote, {}).values())
        return next((row for row in rows if row.masq == masq), None)

    def host_of(self, remote: int, masq: int, initiator: bytes | None) -> int | None:
        """Return the inside host that a packet to a remote came from, by its cookie or who talked last (C-48)."""
        rows = self._by_cookie.get((remote, masq, initiator or b""), {})
        row = next(iter(rows.values()), None) or self.last_active(remote, masq)
        return row.inside if row else None

    def masq_of(self, inside: int, remote: int, header: Isakmp | None = None) -> int | None:
        """Return the address that an inside host's packet leaves with by its row; without a header, its newest."""
        rows = (row for row in reversed(self._by_remote.get(remote, {}).values()) if row.inside == inside)
        return next((row.masq for row in rows if header is None or row.initiator == header.initiator), None)

    def recent_hosts(self, remote: int, masq: int, now: int) -> list[int]:
        """Return the inside hosts to guess from, most recently active first: at most five, 5 min left each (E-20)."""
        hosts: list[int] = []
        for row in reversed(self._by_remote.get(remote, {}).values()):
            if row.last + self.settings.lifetime - now <= self.settings.guess_margin:
                break
            if row.masq == masq and row.initiator != NO_COOKIE and row.inside not in hosts:
                hosts.append(row.inside)
                if len(hosts) == self.settings.most_candidates:
                    break
        return hosts

    def hosts_of(self, remote: int) -> set[int]:
        """Return the inside hosts that have an exchange with a remote (E-32)."""
        return {row.inside for row in self._by_remote.get(remote, {}).values()}

    def rtt(self, remote: int) -> int | None:
        """Return the shortest time of a remote's last answers, in ns; None if none was seen."""
        return min(self._times.get(remote, ()), default=None)

    def negotiations(self, remote: int, now: int) -> list[Negotiation]:
        """Return the unclaimed negotiations with a remote that still count, oldest first."""
        listed = self._negotiations.get(remote)
        if not listed:
            return []
        oldest = now - self.settings.negotiation_window
        live = [one for one in listed if not one.claimed and one.since > oldest]
        if live:
            self._negotiations[remote] = live
        else:
            del self._negotiations[remote]
        return list(live)

    def claim(self, inside: int, remote: int, now: int) -> None:
        """Let a host's negotiations with a remote be over: of the last, which replaces all, the SPI is known."""
        for one in self.negotiations(remote, now):
            if one.inside == inside:
                one.claimed = True
                self._new_evidence.add(remote)

    def note_answer(self, remote: int, mean: int, deviation: int) -> None:
        """Note the mean and the deviation of the time to ESP's answers, in ns."""
        self.answers[remote] = mean, deviation
        self._new_evidence.add(remote)

    # -- for the next run ----------------------------------------------------------------------------------------------

    def take_changes(self) -> Iterator[Exchange]:
        """Return the rows that were made, changed or removed since they were taken last, once each."""
        return self._changes.take()

    def take_evidence(self) -> Iterator[Evidence]:
        """Yield what is known of the remotes of which more was learned since it was taken last."""
        while self._new_evidence:
            yield self.evidence(self._new_evidence.pop())

    def evidence(self, remote: int) -> Evidence:
        return Evidence(
            remote=remote,
            times=self._times.get(remote, []),
            answers=self.answers.get(remote),
            negotiations=self._negotiations.get(remote, []),
        )

    def remotes(self) -> list[int]:
        return list(self._by_remote)

    def adopt(self, row: Exchange, now: int) -> str:
        """Go on with a row that another process has left, under a number of our own; return why not, or "".

        Rows come in the order of their last packets. One whose time is over goes by itself, unless it is still needed.
        """
        times = (row.last, row.asked or 0, row.told or 0, row.request[1] if row.request else 0)
        if max(times) > now:
            return "torn"
        rows = self._by_cookie.get((row.remote, row.masq, row.initiator), {}).values()
        if any((one.inside, one.responder) == (row.inside, row.responder) for one in rows):
            return "twice"
        if self._refusal(row.inside):
            return "no room"
        row.number = next(self._numbers)
        self._insert(row, row.last, counts=True)
        return ""

    def adopt_evidence(self, known: Evidence, now: int) -> None:
        """Go on with what is known of a remote, if it has rows; what cannot be is left out."""
        if known.remote not in self._by_remote:
            return
        if known.times:
            self._times[known.remote] = known.times
        if known.answers is not None and known.times:
            self.answers[known.remote] = known.answers
        negotiations = [one for one in known.negotiations if one.remote == known.remote and one.since <= now]
        if negotiations:
            self._negotiations[known.remote] = negotiations
        self._new_evidence.add(known.remote)

    # -- time and addresses --------------------------------------------------------------------------------------------

    def expire(self, now: int, used_until: Callable[[int, int], int] = lambda inside, remote: 0) -> None:
        """Remove the rows whose time is over, and what is remembered of remotes without rows.

        A host's last row with a remote stays while the two use ESP, for it is needed when the remote rekeys (H-86):
        until used_until(inside, remote), in ns.
        """
        for number in self._deadlines.due(now):
            row = self.exchanges[number]
            until = min(used_until(row.inside, row.remote), now + self.settings.lifetime)
            if until > now and self._is_last(row):
                self._deadlines.set(number, until)
                continue
            self._remove(row)
            if not row.outstanding:
                self._forgotten[row.remote] = row.inside
                self._forgotten.move_to_end(row.remote)
        while len(self._forgotten) > _MOST_FORGOTTEN:
            self._forgotten.popitem(last=False)

    def expires(self, number: int) -> int:
        """Return when a row ends if nothing refreshes it, in ns."""
        return self._deadlines.get(number) or 0

    def saw(self, number: int, last_ns: int) -> None:
        """Tell when the path last moved a packet of a row. Call in order of time, before `expire`."""
        row = self.exchanges.get(number)
        if row is not None and last_ns > row.last:
            self._note_activity(row, last_ns)

    def move(self, old: int, new: int) -> None:
        """Let rows follow a new masquerade address."""
        for row in [row for row in self.exchanges.values() if row.masq == old]:
            self._forget_cookie(row)
            row.masq = new
            self._changes[row.number] = row
            self._by_cookie.setdefault((row.remote, new, row.initiator), {})[row.number] = row

    # -- within --------------------------------------------------------------------------------------------------------

    @staticmethod
    def _own(rows: dict[int, Exchange], inside: int, responder: bytes) -> Exchange | None:
        """Return a host's row for its own packet; without a responder cookie it may be any with that initiator."""
        mine = [row for row in rows.values() if row.inside == inside]
        exact = [row for row in mine if row.responder == responder]
        loose = mine if responder == NO_COOKIE else [row for row in mine if row.outstanding]
        return next(iter(exact or loose), None)

    @staticmethod
    def _match(rows: dict[int, Exchange], responder: bytes) -> Exchange | None:
        """Return the row that cookies from outside belong to: exact, else outstanding, else the only host's."""
        exact = [row for row in rows.values() if row.responder == responder]
        outstanding = [row for row in rows.values() if row.outstanding]
        if exact or outstanding:
            return (exact or outstanding)[0]
        return next(iter(rows.values())) if len({row.inside for row in rows.values()}) == 1 else None

    def _inbound_zero(self, remote: int, masq: int, header: Isakmp, now: int) -> Decision:
        """K-5: a zero cookie names nobody; the host that talked to the remote last gets it."""
        row = self.last_active(remote, masq)
        if row is None:
            return Decision(events=self._of_nobody("isakmp_zero_cookie_in", remote))
        events: tuple[Event, ...] = ()
        if row.told is None or now - row.told >= _TELL_AGAIN:
            row.told = now
            events = (Event(kind="isakmp_zero_cookie_in", remote=remote),)
        self._touch(row, header, now, outbound=False)
        return Decision(to=(row.inside,), events=events)

    def _of_nobody(self, kind: str, remote: int) -> tuple[Event, ...]:
        """Return the events of a packet that no row explains; once among them, that its row has timed out (H-86)."""
        event = Event(kind=kind, remote=remote)
        inside = self._forgotten.pop(remote, None)
        return (event,) if inside is None else (event, Event(kind="isakmp_forgotten", inside=inside, remote=remote))

    def _open(
        self, inside: int, masq: int, remote: int, header: Isakmp, now: int, *, counts: bool = True
    ) -> Exchange | str:  # fmt: skip
        """Return a new row, or the reason why there is none. It `counts` as one of the host's."""
        refusal = self._refusal(inside, counts=counts)
        if refusal:
            return refusal
        row = Exchange(
            number=next(self._numbers), inside=inside, masq=masq, remote=remote, initiator=header.initiator,
            responder=header.responder, messages={},
        )  # fmt: skip
        self._insert(row, now, counts=counts)
        return row

    def _refusal(self, inside: int, *, counts: bool = True) -> str:
        if len(self.exchanges) >= self.settings.exchanges:
            return "isakmp_full"
        return "isakmp_host_limit" if counts and self._rows_of[inside] >= self.settings.exchanges_per_host else ""

    def _insert(self, row: Exchange, last: int, *, counts: bool) -> None:
        self.exchanges[row.number] = row
        self._forgotten.pop(row.remote, None)
        if counts:
            self._rows_of[row.inside] += 1
        else:
            self._unanswered[row.number] = row
        self._by_cookie.setdefault((row.remote, row.masq, row.initiator), {})[row.number] = row
        self._by_remote.setdefault(row.remote, OrderedDict())[row.number] = row
        self._note_activity(row, last)

    def _touch(self, row: Exchange, header: Isakmp, now: int, *, outbound: bool) -> None:
        """Note a packet: activity, the time to an answer, and how far exchanges that make SAs have come."""
        conversation = _conversation(header, outbound=outbound)
        self._note_activity(row, now)
        self._new_evidence.add(row.remote)
        if outbound:
            if self._unanswered.settle(row):
                self._rows_of[row.inside] += 1
            row.asked = now if row.asked is None else row.asked
            if row.request is None or row.request[0] != conversation:
                row.request = conversation, now
        else:
            row.asked = None
            if row.request is not None and row.request[0] == conversation:
                times = self._times.get(row.remote, [])
                self._times[row.remote] = [*times[1 - _ANSWERS_TIMED :], now - row.request[1]]
                row.request = None
        if header.exchange in _MAKES_SA and row.initiator != NO_COOKIE:
            self._note_message(row, conversation, now, outbound=outbound)

    def _note_message(self, row: Exchange, conversation: int, now: int, *, outbound: bool) -> None:
        """Note the direction of a message; once request and answer were seen, both SPIs are agreed on."""
        before = row.messages.get(conversation, 0)
        after = before | (1 if outbound else 2)
        row.messages[conversation] = after
        if len(row.messages) > _MOST_MESSAGES:
            del row.messages[next(iter(row.messages))]
        if after == 3 and before != 3:
            listed = self._negotiations.setdefault(row.remote, [])
            listed.append(Negotiation(inside=row.inside, remote=row.remote, since=now))
            if len(listed) > _MOST_NEGOTIATIONS:
                del listed[0]

    def _note_activity(self, row: Exchange, now: int) -> None:
        row.last = now
        self._changes[row.number] = row
        self._by_remote[row.remote].move_to_end(row.number)
        self._deadlines.set(row.number, now + self.settings.lifetime)

    def _is_last(self, row: Exchange) -> bool:
        """Whether no other row of the host with the remote has been active later."""
        rows = reversed(self._by_remote[row.remote].values())
        return next(one for one in rows if one.inside == row.inside) is row

    def _forget_cookie(self, row: Exchange) -> None:
        rows = self._by_cookie[row.remote, row.masq, row.initiator]
        del rows[row.number]
        if not rows:
            del self._by_cookie[row.remote, row.masq, row.initiator]

    def _remove(self, row: Exchange) -> None:
        del self.exchanges[row.number]
        self._changes[row.number] = row
        self._deadlines.forget(row.number)
        if not self._unanswered.settle(row):
            self._rows_of[row.inside] -= 1
            if not self._rows_of[row.inside]:
                del self._rows_of[row.inside]
        self._forget_cookie(row)
        rows = self._by_remote[row.remote]
        del rows[row.number]
        if not rows:
            del self._by_remote[row.remote]
            self._negotiations.pop(row.remote, None)
            self._times.pop(row.remote, None)
            self.answers.pop(row.remote, None)


def _conversation(header: Isakmp, *, outbound: bool) -> int:
    """Return what a request and its answer share: the message id, which in IKEv2 each side counts for itself."""
    if header.version >> 4 < 2:
        return header.message_id
    return header.message_id << 1 | (outbound != bool(header.flags & _RESPONSE))
