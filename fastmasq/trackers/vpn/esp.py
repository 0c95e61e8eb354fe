"""ESP masquerade: which outbound and which inbound SPI are one host's, though starts look alike (E-1 to E-33).

An outbound packet with a new SPI *starts* a row. Until the remote's SPI is known the row is outstanding, and others
that want the same remote wait: their packets are dropped, and the row they wait for is *blocking* from then on. A
blocking row may send `init_retries` more packets; the next one is dropped, and the row is *squelched*: it has lost its
turn. What its host sends with other SPIs meanwhile counts as well, and a host that has lost its turn does not start
again for as long as it is squelched while others wait: so one that takes a new SPI for each packet keeps nobody from
a remote for long.

                    unknown SPI from the remote
    outstanding ------------------------------------> established --lifetime--> gone
      |   ^  blocking, retries used up     squelch
      |   +-(others pass)-- squelched ------------> gone
      +--init lifetime without a packet--> gone

That is so among hosts whose ISAKMP was not seen. The others do not wait, nor are they waited for: an unknown SPI that
may belong to several hosts is *disputed*, and each of them gets copies until it is known whose it is
(`evidence.py`).

An unknown SPI that only one host can explain is associated with it at once. One that nothing explains is *guessed*:
copies go to the hosts whose ISAKMP with the remote is most recent (E-20).

Outbound `spi` and inbound `spi` are different numbers of one row. Time is nanoseconds and an argument.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator

from fastmasq.trackers.vpn.changes import Changes
from fastmasq.trackers.vpn.deadlines import FOREVER, Deadlines
from fastmasq.trackers.vpn.decision import Decision, dropped
from fastmasq.trackers.vpn.events import Event
from fastmasq.trackers.vpn.evidence import (
    AT_ONCE,
    DISPUTED_FOR,
    DISPUTED_PACKETS,
    REMEMBERED,
    Association,
    Dispute,
    candidates,
    expecting,
    measure,
    patience,
    says_little,
)
from fastmasq.trackers.vpn.isakmp import ExchangeTable, IpsecSettings
from fastmasq.trackers.vpn.unanswered import Unanswered

MOST_WAITERS = 1024  # remembered; others wait all the same
WAITERS_OF_HOST = 16


class EspTable:
    """All ESP rows and disputed SPIs; reads the ISAKMP table and claims negotiations in it."""

    def __init__(self, settings: IpsecSettings, exchanges: ExchangeTable) -> None:
        self.settings = settings
        self.exchanges = exchanges
        self.rows: dict[int, Association] = {}
        self.disputes: dict[tuple[int, int, int], Dispute] = {}  # by (remote, masq, spi)
        self.waiting: dict[tuple[int, int, int], tuple[int, int]] = {}  # (inside, remote, spi): since, last try
        self._waiters_of: Counter[int] = Counter()  # by inside host
        self._lost_turn: set[tuple[int, int]] = set()  # (inside, remote): squelched
        self._out: dict[tuple[int, int, int], Association] = {}  # (inside, remote, outbound spi)
        self._in: dict[tuple[int, int, int], Association] = {}  # (remote, masq, inbound spi)
        self._remote: dict[int, dict[int, Association]] = {}  # by number, oldest first
        self._pending: dict[int, dict[int, Association]] = {}  # outstanding, by remote and number
        self._rows_of: Counter[int] = Counter()
        self._unanswered: Unanswered[Association] = Unanswered()
        self._deadlines = Deadlines()
        self._numbers = itertools.count(1)
        self._changes: Changes[Association] = Changes()

    # -- outbound ------------------------------------------------------------------------------------------------------

    def outbound(self, inside: int, masq: int, remote: int, spi: int, sequence: int, now: int) -> Decision:
        """Decide about ESP from an inside host; `masq` is the address that the route to the remote has now."""
        self.expire(now)
        if spi == 0:
            return dropped("esp_zero_spi", Event(kind="esp_zero_out", inside=inside, remote=remote))
        row = self._out.get((inside, remote, spi))
        if row is None:
            return self._initial(inside, masq, remote, spi, sequence, now)
        if row.state == "squelched":
            return dropped("esp_squelched")
        events = self._follow_address(row, masq)
        if row.state == "outstanding":
            events += self._answered_at_once(inside, row.masq, remote, now)
        if row.state == "outstanding":
            refused = self._repeat(row, now)
            if refused is not None:
                return refused
        row.last_out = now
        self._renew(row, now)
        return Decision(to=(row.masq,), row=row if self._is_settled(row, now) else None, events=events)

    def _initial(self, inside: int, masq: int, remote: int, spi: int, sequence: int, now: int) -> Decision:
        """E-6 to E-11: the first packet of an outbound SA starts a row, completes one, or waits."""
        events = self._answered_at_once(inside, masq, remote, now)
        half = next((row for row in self.rows_with(inside, remote) if not row.ospi), None)
        if half is not None:
            half.ospi, half.last_out = spi, now
            self._settle(half)
            self._out[inside, remote, spi] = half
            self._renew(half, now)
            self._changes[half.number] = half
            return Decision(to=(half.masq,), row=half, events=events + self._follow_address(half, masq))
        negotiated = self._is_negotiated(inside, remote)
        in_the_way = [row for row in self._pending.get(remote, {}).values() if not row.negotiated]
        if in_the_way and not negotiated:
            return self._wait(in_the_way, inside, remote, spi, now)
        if not negotiated and (inside, remote) in self._lost_turn and self._others_wait(inside, remote):
            return dropped("esp_squelched")
        refusal = self.refusal(inside)
        if refusal:
            event = Event(kind="esp_table_full", inside=inside, remote=remote, id=spi, why=refusal)
            return dropped(refusal, event)
        row = self.add(inside, masq, remote, now)
        row.ospi, row.last_out, row.first_sequence, row.negotiated = spi, now, sequence, negotiated
        row.sent = [now]
        self._out[inside, remote, spi] = row
        self._pending.setdefault(remote, {})[row.number] = row
        self._renew(row, now)
        self._stop_waiting((inside, remote, spi))
        return Decision(to=(masq,), events=(Event(kind="esp_started", inside=inside, remote=remote, id=spi),))

    def _repeat(self, row: Association, now: int) -> Decision | None:
        """E-4, E-5: note another packet of a pending start; return a decision if it is not let through."""
        if row.blocking:
            row.retries += 1
            if row.retries > self.settings.init_retries:
                return self._squelch(row, now)
        row.sent = [*row.sent[1 - REMEMBERED :], now]
        return None

    def _is_negotiated(self, inside: int, remote: int) -> bool:
        """Whether a start can be told from others: the host's ISAKMP was seen, and the remote's answers were timed."""
        if not self.settings.evidence or patience(self.exchanges, remote) is None:
            return False
        return inside in self.exchanges.hosts_of(remote)

    def _wait(self, pending: list[Association], inside: int, remote: int, spi: int, now: int) -> Decision:
        """E-6: drop the packet, and let those that are waited for know that they block."""
        for row in pending:
            row.blocking = True
            self._changes[row.number] = row
        self._note_waiter((inside, remote, spi), now)
        own = next((row for row in pending if row.inside == inside), None)
        if own is not None:
            refused = self._repeat(own, now)
            if refused is not None:
                return refused
            event = Event(kind="esp_blocked_self", inside=inside, remote=remote, id=spi, new_id=own.ospi)
        else:
            event = Event(kind="esp_blocked", inside=inside, remote=remote, other=pending[0].inside, id=spi)
        return dropped("esp_blocked", event)

    def _note_waiter(self, waiter: tuple[int, int, int], now: int) -> None:
        since, _ = self.waiting.get(waiter, (now, now))
        if waiter not in self.waiting:
            if len(self.waiting) >= MOST_WAITERS or self._waiters_of[waiter[0]] >= WAITERS_OF_HOST:
                return
            self._waiters_of[waiter[0]] += 1
        self.waiting[waiter] = (since, now)
        self._deadlines.set(("wait", *waiter), now + self.settings.init_lifetime)

    def _stop_waiting(self, waiter: tuple[int, int, int]) -> None:
        if self.waiting.pop(waiter, None) is not None:
            self._waiters_of[waiter[0]] -= 1
            if not self._waiters_of[waiter[0]]:
                del self._waiters_of[waiter[0]]

    def _others_wait(self, inside: int, remote: int) -> bool:
        return any(waiter != inside and wanted == remote for waiter, wanted, _ in self.waiting)

    def _squelch(self, row: Association, now: int) -> Decision:
        """E-5: the turn is over; the row is only there to be recognised."""
        row.state = "squelched"
        self._no_longer_pending(row)
        self._deadlines.set(row.number, now + self.settings.squelch)
        self._lost_turn.add((row.inside, row.remote))
        self._deadlines.set(("turn", row.inside, row.remote), now + self.settings.squelch)
        event = Event(
            kind="esp_squelched",
            inside=row.inside,
            remote=row.remote,
            id=row.ospi,
            count=self.settings.init_retries + 1,
        )
        return dropped("esp_squelched", event)

    # -- inbound -------------------------------------------------------------------------------------------------------

    def inbound(
        self, remote: int, masq: int, spi: int, sequence: int, now: int, redirect: int | None = None
    ) -> Decision:  # fmt: skip
        """Decide about ESP from outside; `redirect` is the inside host that a redirect of protocol 50 names."""
        self.expire(now)
        if spi == 0:
            return dropped("esp_zero_spi", Event(kind="esp_zero_in", remote=remote))
        row = self._in.get((remote, masq, spi))
        if row is not None:
            events = self._suspect(row, sequence)
            row.last_in, row.sequence = now, sequence
            self._renew(row, now)
            return Decision(to=(row.inside,), row=row, events=events)
        dispute = self.disputes.get((remote, masq, spi))
        if dispute is not None:
            return self._disputed(dispute, sequence, now)
        decision = self._unknown(remote, masq, spi, sequence, now)
        is_open = decision.row is None and not decision.drop
        if redirect is not None and is_open and set(decision.to) <= {redirect}:
            return self._redirect(redirect, remote, masq, spi, sequence, now)
        return decision

    def _unknown(self, remote: int, masq: int, spi: int, sequence: int, now: int) -> Decision:
        """E-18 to E-21: associate an SPI never seen before, or guess."""
        pending = self._outstanding(remote, masq)
        if self.settings.evidence:
            hosts = candidates(remote, sequence, pending, self.exchanges, now)
        else:
            hosts = [row.inside for row in pending[:1]]
        if not hosts:
            return self._guess(remote, masq, spi, now)
        if len(hosts) == 1:
            return self._associate(hosts[0], remote, masq, spi, sequence, now, "only candidate")
        if sum(key[0] == remote for key in self.disputes) >= self.settings.disputes or self.refusal(hosts[0]):
            return self._guess(remote, masq, spi, now)
        dispute = Dispute(remote=remote, masq=masq, spi=spi, since=now, hosts=hosts)
        self.disputes[remote, masq, spi] = dispute
        decision = self._disputed(dispute, sequence, now)
        event = Event(kind="esp_disputed", remote=remote, id=spi, count=len(hosts))
        return Decision(to=decision.to, row=decision.row, events=(event, *decision.events))

    def _disputed(self, dispute: Dispute, sequence: int, now: int) -> Decision:
        """Send copies until the signs, or the SPIs of all others, name the owner."""
        remote, masq, spi = dispute.remote, dispute.masq, dispute.spi
        pending = self._outstanding(remote, masq)
        if len(dispute.hosts) == 1:
            return self._associate(dispute.hosts[0], remote, masq, spi, sequence, now, "the others have theirs")
        answers = [row for row in pending if expecting(row, self.exchanges, now)]
        for inside in {row.inside for row in answers if not says_little(row, self.exchanges, now)}:
            dispute.note_sign(inside)
        owner = dispute.owner()
        if owner is not None:
            return self._associate(owner, remote, masq, spi, sequence, now, "answered in time")
        if dispute.packets == DISPUTED_PACKETS or now - dispute.since > DISPUTED_FOR:
            return self._associate(dispute.ranking()[0], remote, masq, spi, sequence, now, "no other is likelier")
        dispute.last = now
        dispute.packets += 1
        dispute.answered.clear()
        self._deadlines.set(("dispute", remote, masq, spi), now + DISPUTED_FOR)
        return Decision(to=tuple(dispute.ranking()[: self.settings.most_copies]))

    def _answered_at_once(self, inside: int, masq: int, remote: int, now: int) -> tuple[Event, ...]:
        """Note for which disputed SPIs it is a sign that a host sends now; settle one that this makes the host's."""
        if any(
            row.inside == inside and says_little(row, self.exchanges, now) for row in self._outstanding(remote, masq)
        ):
            return ()
        for dispute in list(self.disputes.values()):
            concerned = inside in dispute.hosts and (dispute.remote, dispute.masq) == (remote, masq)
            if concerned and now - dispute.last <= AT_ONCE and inside not in dispute.answered:
                dispute.answered.add(inside)
                dispute.note_sign(inside)
                if dispute.owner() == inside:
                    return self._associate(inside, remote, masq, dispute.spi, 0, now, "it answered at once").events
        return ()

    def _outstanding(self, remote: int, masq: int) -> list[Association]:
        """Return the starts to a remote that have no inbound SPI, oldest first."""
        return [row for row in self._pending.get(remote, {}).values() if row.masq == masq]

    def _associate(
        self, inside: int, remote: int, masq: int, spi: int, sequence: int, now: int, why: str
    ) -> Decision:  # fmt: skip
        """Give an inbound SPI to a host: to its pending start, else to a row that its next start will complete."""
        disputed = self._end_dispute(remote, masq, spi)
        own = [row for row in self._outstanding(remote, masq) if row.inside == inside]
        row = max(own, key=lambda row: row.last_out, default=None)
        if row is None:
            refusal = self.refusal(inside)
            if refusal:
                return dropped(refusal, Event(kind="esp_table_full", inside=inside, remote=remote, id=spi, why=refusal))
            row = self.add(inside, masq, remote, now)
        if row.negotiated and not disputed:
            measure(row, self.exchanges, now)
        self.complete(row, spi)
        row.last_in, row.sequence = now, sequence
        self._renew(row, now)
        self.claim(row, now)
        kind = "esp_settled" if disputed else "esp_associated"
        event = Event(kind=kind, inside=inside, remote=remote, id=spi, new_id=row.ospi, why=why)
        return Decision(to=(inside,), row=row, events=(event,))

    def _redirect(self, inside: int, remote: int, masq: int, spi: int, sequence: int, now: int) -> Decision:
        """Give an SPI that nothing else explains to a redirect's host; until that sends, it is none of its share."""
        self._unanswered.make_room(self.remove)
        if not any(row.inside == inside for row in self._pending.get(remote, {}).values()) and self._has_room():
            row = self.add(inside, masq, remote, now, counts=False)
            self._pending.setdefault(remote, {})[row.number] = row
        return self._associate(inside, remote, masq, spi, sequence, now, "redirect")

    def _guess(self, remote: int, masq: int, spi: int, now: int) -> Decision:
        """E-20: a copy to each host whose ISAKMP with the remote is recent; nothing is remembered of it."""
        hosts = self.exchanges.recent_hosts(remote, masq, now) if self.settings.guess else []
        if not hosts:
            return Decision(events=(Event(kind="esp_unknown", remote=remote, id=spi),))
        kind = "esp_guess_one" if len(hosts) == 1 else "esp_guess_many"
        return Decision(
            to=tuple(hosts), events=(Event(kind=kind, remote=remote, inside=hosts[0], id=spi, count=len(hosts)),)
        )

    def _suspect(self, row: Association, sequence: int) -> tuple[Event, ...]:
        """Two hosts may have agreed on one SPI with a remote: its numbers start anew while another host waits."""
        fresh = self.settings.fresh_sequence
        others = (one for one in self._pending.get(row.remote, {}).values() if one.inside != row.inside)
        other = next(others, None)
        if other is None or row.suspected or not sequence <= fresh < row.sequence:
            return ()
        row.suspected = True
        return (Event(kind="esp_same_spi", inside=row.inside, remote=row.remote, other=other.inside, id=row.ispi),)

    # -- time, addresses, and what the path saw ------------------------------------------------------------------------

    def saw(self, number: int, outbound_ns: int, inbound_ns: int, sequence: int = 0) -> None:
        """Tell when the path last moved packets of a row, and the last inbound sequence number. Before `expire`."""
        row = self.rows.get(number)
        if row is None:
            return
        if outbound_ns:
            self._settle(row)
        row.sequence = sequence or row.sequence
        if max(outbound_ns, inbound_ns) > max(row.last_out, row.last_in):
            row.last_out, row.last_in = max(row.last_out, outbound_ns), max(row.last_in, inbound_ns)
            if row.state != "squelched":
                self._renew(row, max(row.last_out, row.last_in))

    def expire(self, now: int) -> None:
        """Remove rows, disputes and waiters whose time is over."""
        for key in self._deadlines.due(now):
            if isinstance(key, int):
                self.remove(self.rows[key])
            elif key[0] == "dispute":
                del self.disputes[key[1:]]
            elif key[0] == "turn":
                self._lost_turn.discard(key[1:])
            else:
                self._stop_waiting(key[1:])

    def move(self, old: int, new: int) -> tuple[Event, ...]:
        """Let all rows of a masquerade address follow it (E-10); disputes end, and begin again if they must."""
        moved = [row for row in self.rows.values() if row.masq == old]
        for row in moved:
            self._follow_address(row, new)
        for key in [key for key in self.disputes if key[1] == old]:
            self._end_dispute(*key)
        return (Event(kind="maddr_changed", old=old, new=new),) if moved else ()

    def changed(self) -> list[Association]:
        """Return the rows that `take_changes` is about to yield."""
        return list(self._changes.values())

    def take_changes(self) -> Iterator[Association]:
        """Return the rows that were made, changed or (state "closed") removed since they were taken last, once each."""
        return self._changes.take()

    # -- rows, also for preloading -------------------------------------------------------------------------------------

    def masq_of(self, inside: int, remote: int, spi: int) -> int | None:
        """Return the address that an inside host's packet leaves with by its row, or the one that it would complete."""
        halves = (row for row in self.rows_with(inside, remote) if not row.ospi)
        row = self._out.get((inside, remote, spi)) or next(halves, None)
        return row.masq if row else None

    def rows_with(self, inside: int, remote: int) -> list[Association]:
        """Return a host's rows with a remote, oldest first."""
        return [row for row in self._remote.get(remote, {}).values() if row.inside == inside]

    def hosts_of(self, remote: int) -> set[int]:
        """Return the inside hosts with a row of any kind for a remote (E-32)."""
        return {row.inside for row in self._remote.get(remote, {}).values()}

    def used_until(self, inside: int, remote: int) -> int:
        """Return until when a host has an established row with a remote, in ns; 0 if it has none."""
        rows = (row for row in self.rows_with(inside, remote) if row.state == "established")
        return max((self._deadlines.get(row.number) or 0 for row in rows), default=0)

    def expires(self, number: int, now: int) -> int:
        """Return when a row ends if nothing refreshes it; one that is kept until deleted, as if it were used now."""
        when = self._deadlines.get(number)
        return now + self.settings.lifetime if when is None or when >= FOREVER else when

    def host_of(self, remote: int, masq: int, spi: int) -> int | None:
        """Return the inside host that an outbound packet to a remote came from, told by its SPI (C-48)."""
        rows = self._remote.get(remote, {}).values()
        return next((row.inside for row in rows if (row.masq, row.ospi) == (masq, spi)), None)

    def by_inbound(self, remote: int, masq: int, spi: int) -> Association | None:
        return self._in.get((remote, masq, spi))

    def by_outbound(self, inside: int, remote: int, spi: int) -> Association | None:
        return self._out.get((inside, remote, spi))

    def refusal(self, inside: int, leaving: Collection[Association] = ()) -> str:
        """Return why an inside host cannot have another row once those that are leaving have gone; "" if it can."""
        if not self._has_room(len(leaving)):
            return "esp_full"
        own = self._rows_of[inside] - sum(row.inside == inside for row in leaving)
        return "esp_host_limit" if own >= self.settings.associations_per_host else ""

    def _has_room(self, leaving: int = 0) -> bool:
        return len(self.rows) + len(self.disputes) - leaving < self.settings.associations

    def add(self, inside: int, masq: int, remote: int, now: int, *, counts: bool = True) -> Association:
        """Make a row without SPIs; `refusal` must have been asked. It `counts` as one of the host's."""
        row = Association(number=next(self._numbers), inside=inside, masq=masq, remote=remote, since=now)
        self._insert(row, counts=counts)
        return row

    def adopt(self, row: Association, now: int) -> str:
        """Go on with a row that another process has left, under a number of our own; return why not, or "".

        Rows come oldest first. A row without an outbound SPI counts as one that its host has not answered.
        """
        latest = max(row.since, row.last_out, row.last_in)
        is_whole = bool(row.ispi) if row.state == "established" else bool(row.ospi) and not row.ispi
        if max(latest, *row.sent, 0) > now or not is_whole or row.state not in ("established", "outstanding"):
            return "torn"
        if (row.inside, row.remote, row.ospi) in self._out or (row.remote, row.masq, row.ispi) in self._in:
            return "twice"
        if row.lifetime >= 0 and latest + self._lifetime(row) <= now:
            return "expired"
        counts = bool(row.ospi) or row.preloaded
        if not counts:
            self._unanswered.make_room(self.remove)
        if not self._has_room() or (counts and self.refusal(row.inside)):
            return "no room"
        row.number = next(self._numbers)
        self._insert(row, counts=counts)
        if row.ospi:
            self._out[row.inside, row.remote, row.ospi] = row
        if row.ispi:
            self._in[row.remote, row.masq, row.ispi] = row
        else:
            self._pending.setdefault(row.remote, {})[row.number] = row
        self._renew(row, latest)
        return ""

    def _insert(self, row: Association, *, counts: bool) -> None:
        self.rows[row.number] = row
        if counts:
            self._rows_of[row.inside] += 1
        else:
            self._unanswered[row.number] = row
        self._remote.setdefault(row.remote, {})[row.number] = row
        self._changes[row.number] = row

    def complete(self, row: Association, ispi: int) -> None:
        """Set a row's inbound SPI, which nobody else may have, and let it be established."""
        row.ispi, row.state, row.blocking, row.sent = ispi, "established", False, []
        self._in[row.remote, row.masq, ispi] = row
        self._end_dispute(row.remote, row.masq, ispi)
        self._no_longer_pending(row)

    def claim(self, row: Association, now: int) -> None:
        """Let what a host has negotiated with a remote be done; it is a candidate only for what else it has started."""
        self.exchanges.claim(row.inside, row.remote, now)
        if not any(one.inside == row.inside for one in self._outstanding(row.remote, row.masq)):
            for dispute in self.disputes.values():
                if dispute.remote == row.remote and row.inside in dispute.hosts and len(dispute.hosts) > 1:
                    dispute.hosts.remove(row.inside)

    def name_outbound(self, row: Association, ospi: int) -> None:
        """Set the outbound SPI of a row that has none."""
        row.ospi = ospi
        self._out[row.inside, row.remote, ospi] = row
        self._changes[row.number] = row

    def ends(self, row: Association) -> int | None:
        """Return when a row's time is over unless it has packets; None for never."""
        deadline = self._deadlines.get(row.number)
        return None if deadline == FOREVER else deadline

    def keep(self, row: Association, now: int) -> None:
        """Start a row's time again."""
        self._renew(row, now)

    def remove(self, row: Association) -> None:
        """Remove a row and everything that finds it."""
        row.state = "closed"
        del self.rows[row.number]
        self._deadlines.forget(row.number)
        if not self._unanswered.settle(row):
            self._rows_of[row.inside] -= 1
            if not self._rows_of[row.inside]:
                del self._rows_of[row.inside]
        rows = self._remote[row.remote]
        del rows[row.number]
        if not rows:
            del self._remote[row.remote]
        self._no_longer_pending(row)
        if row.ospi:
            del self._out[row.inside, row.remote, row.ospi]
        if self._in.get((row.remote, row.masq, row.ispi)) is row:
            del self._in[row.remote, row.masq, row.ispi]
        self._changes[row.number] = row

    # -- within --------------------------------------------------------------------------------------------------------

    def _settle(self, row: Association) -> None:
        """The inside host takes part: the row is one of its own."""
        if self._unanswered.settle(row):
            self._rows_of[row.inside] += 1

    def _is_settled(self, row: Association, now: int) -> bool:
        """Whether the path may go on alone: established, or sending one way for long while nobody waits."""
        return row.state == "established" or (not row.blocking and now - row.since > self.settings.init_lifetime)

    def _renew(self, row: Association, now: int) -> None:
        """E-3, E-4, E-17: every packet of a living row starts its time again; a preloaded row has a time of its own."""
        self._deadlines.set(row.number, FOREVER if row.lifetime < 0 else now + self._lifetime(row))

    def _lifetime(self, row: Association) -> int:
        usual = self.settings.init_lifetime if row.state == "outstanding" else self.settings.lifetime
        return row.lifetime or usual

    def _end_dispute(self, remote: int, masq: int, spi: int) -> bool:
        """Forget a dispute; return whether there was one."""
        self._deadlines.forget(("dispute", remote, masq, spi))
        return self.disputes.pop((remote, masq, spi), None) is not None

    def _no_longer_pending(self, row: Association) -> None:
        rows = self._pending.get(row.remote, {})
        if rows.pop(row.number, None) and not rows:
            del self._pending[row.remote]
        self._changes[row.number] = row

    def _follow_address(self, row: Association, masq: int) -> tuple[Event, ...]:
        """E-10: the row has the address that the route has now, unless its inbound SPI is taken there."""
        if row.masq == masq or (row.remote, masq, row.ispi) in self._in:
            return ()
        if self._in.get((row.remote, row.masq, row.ispi)) is row:
            del self._in[row.remote, row.masq, row.ispi]
            self._in[row.remote, masq, row.ispi] = row
        old, row.masq = row.masq, masq
        self._changes[row.number] = row
        return (Event(kind="maddr_changed", old=old, new=masq),)
