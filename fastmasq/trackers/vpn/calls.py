"""The table of PPTP calls: which inside host and Call ID an external Call ID stands for, and where GRE belongs.

A *control connection* (TCP to port 1723, either way) is attached when it begins and detached when it ends; the follower
of its stream (`pptp.py`) opens, completes and retires *calls* on it. GRE finds its call by (remote, masquerade
address, Call ID) from outside and by (inside host, remote, Call ID) from inside. GRE that no call explains gets a
*passthrough* row, one inside host for each remote, whose Call IDs nobody touches (rules P-40 to P-47).

    asked --reply--> established --clear, disconnect, stop, end of control--> closing --30 s--> gone
    passthrough --idle--> gone

While its control connection lives, a call lives. When that vanished without an end (its session was lost), 2 min until
the first data and 15 min after the last remain. All sizes are fixed at start; what does not fit is refused by name.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from fastmasq.trackers.vpn.changes import Changes
from fastmasq.trackers.vpn.deadlines import FOREVER, Deadlines
from fastmasq.trackers.vpn.decision import Decision, dropped
from fastmasq.trackers.vpn.events import Event
from fastmasq.trackers.vpn.fields import Address, CallId, Number, Time
from fastmasq.trackers.vpn.unanswered import Unanswered
from fastmasq.units import NS_PER_SECOND

State = Literal["asked", "established", "closing", "passthrough", "closed"]


class CallSettings(Struct, frozen=True, kw_only=True):
    """Sizes and times of P-40 and P-47; times in nanoseconds."""

    capacity: int = 4096  # rows
    per_host: int = 256  # rows of one inside host
    controls: int = 4096  # control connections
    controls_per_host: int = 1024
    first_id: int = 61000  # external Call IDs when the host's own is taken (P-40)
    last_id: int = 65095
    before_data_ns: int = 120 * NS_PER_SECOND
    idle_ns: int = 900 * NS_PER_SECOND
    closing_ns: int = 30 * NS_PER_SECOND
    loose_source: bool = False  # take GRE from any address, as the 2.0 kernels did (P-26, P-45)


class Call(Struct, kw_only=True, eq=False, tag="call"):
    """One row (P-40). Addresses and Call IDs in host order; ids are None in a passthrough row, `remote_id` until known.

    A listing shows it as protocol GRE with source port `local_id`, masquerade port `external_id`, destination port
    `remote_id` (P-48). seen_out and seen_in are the times of the last data packets each way, 0 for never; `ended` is
    when it began to close.
    """

    number: Number
    inside: Address
    masq: Address
    remote: Address
    local_id: CallId | None = None
    external_id: CallId | None = None
    remote_id: CallId | None = None
    control: Number | None = None
    state: State = "asked"
    since: Time = 0
    seen_out: Time = 0
    seen_in: Time = 0
    ended: Time = 0

    @property
    def last_seen(self) -> int:
        return max(self.seen_out, self.seen_in)


class Control(Struct, kw_only=True, eq=False):
    """A control connection and its calls by the inside host's Call ID; `number` is whatever names it outside."""

    number: int
    inside: int
    masq: int
    remote: int
    calls: dict[int, Call] = {}
    made: int = 0  # calls so far


class CallTable:
    """All control connections and calls. Every method takes the time in nanoseconds and none reads a clock."""

    def __init__(self, settings: CallSettings | None = None) -> None:
        self.settings = settings or CallSettings()
        self.controls: dict[int, Control] = {}
        self.calls: dict[int, Call] = {}
        self._external: dict[tuple[int, int], dict[int, Call]] = {}  # (masq, external id): by remote
        self._peer: dict[tuple[int, int, int], Call] = {}  # (inside, remote, remote id)
        self._pair: dict[tuple[int, int], dict[int, Call]] = {}  # (inside, remote): by number, last used last
        self._passthrough: dict[int, Call] = {}  # by remote
        self._rows_of: Counter[int] = Counter()  # by inside host
        self._controls_of: Counter[int] = Counter()
        self._unanswered: Unanswered[Call] = Unanswered()
        self._deadlines = Deadlines()
        self._numbers = itertools.count(1)
        self._next_id = self.settings.first_id
        self._changes: Changes[Call] = Changes()

    # -- control connections -------------------------------------------------------------------------------------------

    def attach(self, number: int, inside: int, masq: int, remote: int) -> tuple[Event, ...]:
        """Register a control connection; says so if it has to be left alone because there are too many."""
        if len(self.controls) >= self.settings.controls:
            return (Event(kind="control_denied", inside=inside, remote=remote, why="controls_full"),)
        if self._controls_of[inside] >= self.settings.controls_per_host:
            return (Event(kind="control_denied", inside=inside, remote=remote, why="host_control_limit"),)
        self._controls_of[inside] += 1
        self.controls[number] = Control(number=number, inside=inside, masq=masq, remote=remote, calls={})
        return ()

    def detach(self, number: int, now: int, *, ended: bool) -> tuple[Event, ...]:
        """Forget a control connection: `ended` by FIN or RST retires its calls, else they live by their traffic."""
        control = self.controls.pop(number, None)
        if control is None:
            return ()
        self._controls_of[control.inside] -= 1
        if not self._controls_of[control.inside]:
            del self._controls_of[control.inside]
        events: list[Event] = []
        for call in list(control.calls.values()):
            if ended:
                events += self.retire(call, now, "control connection ended")
            call.control = None
            if call.state != "closing":
                self._deadlines.set(call.number, self._idle_deadline(call))
        return tuple(events)

    # -- calls, as their control connection makes them -----------------------------------------------------------------

    def open(self, number: int, local_id: int, now: int, high: int | None = None) -> Call | str:
        """Return the call of an inside host's Call ID, a new one with a free external id if need be (P-40, P-41).

        `high` is the upper octet of the external id if that has been sent already. Refusals, by name: "no_control",
        "calls_full", "host_call_limit", "no_call_id".
        """
        control = self.controls.get(number)
        if control is None:
            return "no_control"
        call = control.calls.get(local_id)
        if call is not None:
            if high is not None and call.external_id >> 8 != high:
                return "no_call_id"
            if call.state == "closing":
                self._restart(call, now)
            return call
        refusal = self._refusal(control.inside)
        if refusal:
            return refusal
        external_id = self._choose(control, local_id, high)
        if external_id is None:
            return "no_call_id"
        call = Call(
            number=next(self._numbers), inside=control.inside, masq=control.masq, remote=control.remote,
            local_id=local_id, external_id=external_id, control=number, since=now,
        )  # fmt: skip
        control.calls[local_id] = call
        control.made += 1
        self._add(call, FOREVER)
        return call

    def by_local_id(self, number: int, local_id: int) -> Call | None:
        """Return the call of a control connection that its inside host numbered so."""
        control = self.controls.get(number)
        return control.calls.get(local_id) if control else None

    def by_external_id(self, number: int, external_id: int) -> Call | None:
        """Return the call of a control connection that its remote knows by this number."""
        control = self.controls.get(number)
        call = control and self._external.get((control.masq, external_id), {}).get(control.remote)
        return call if call and call.control == number else None

    def by_remote_id(self, number: int, remote_id: int) -> Call | None:
        """Return the call of a control connection that its remote numbered so."""
        control = self.controls.get(number)
        call = control and self._peer.get((control.inside, control.remote, remote_id))
        return call if call and call.control == number else None

    def learn(self, call: Call, remote_id: int) -> None:
        """Note the remote's own Call ID."""
        if call.remote_id == remote_id:
            return
        self._forget_peer(call)
        call.remote_id = remote_id
        self._peer[call.inside, call.remote, remote_id] = call
        self._changes[call.number] = call

    def establish(self, call: Call) -> tuple[Event, ...]:
        """Note that the call was answered and accepted."""
        if call.state != "asked":
            return ()
        call.state = "established"
        self._changes[call.number] = call
        return (self._event("call_established", call, new_id=call.remote_id or 0),)

    def retire(self, call: Call, now: int, why: str) -> tuple[Event, ...]:
        """Let a call end: 30 s for what is still on its way (P-47)."""
        if call.state in ("closing", "closed"):
            return ()
        call.state, call.ended = "closing", now
        self._deadlines.set(call.number, now + self.settings.closing_ns)
        self._changes[call.number] = call
        return (self._event("call_ended", call, why=why),)

    # -- GRE -----------------------------------------------------------------------------------------------------------

    def inbound(self, remote: int, masq: int, call_id: int, now: int, redirect: int | None = None) -> Decision:
        """Decide about PPTP data from outside (P-44 to P-46); `redirect` is the inside host a redirect of 47 names."""
        holders = self._external.get((masq, call_id), {})
        call = holders.get(remote)
        if call is None and self.settings.loose_source and len(holders) == 1:
            call = next(iter(holders.values()))
        if call is None:
            call = self._passthrough.get(remote)
        if call is not None:
            self._note_data(call, now, outbound=False)
            return Decision(to=(call.inside,), id=call.local_id, row=call)
        host, why = self._only_host(remote, redirect)
        if host is not None:
            return self._pass(host, masq, remote, now, why, outbound=False)
        if holders:
            other = next(iter(holders))
            event = Event(kind="gre_wrong_source", remote=remote, other=other, id=call_id)
            return dropped("gre_wrong_source", event)
        return Decision(events=(Event(kind="gre_inbound_unknown", remote=remote, id=call_id),))

    def outbound(self, inside: int, masq: int, remote: int, call_id: int, now: int) -> Decision:
        """Decide about PPTP data from inside (P-44, P-46); `masq` is the address a new passthrough row would get."""
        call = self._peer.get((inside, remote, call_id))
        if call is None:
            rows = self._pair.get((inside, remote))
            call = next(reversed(rows.values())) if rows else None
        if call is not None:
            self._note_data(call, now, outbound=True)
            return Decision(to=(call.masq,), row=call if call.remote_id in (None, call_id) else None)
        other = self._passthrough.get(remote)
        if other is not None:
            event = Event(kind="gre_outbound_unknown", inside=inside, remote=remote, other=other.inside)
            return dropped("gre_other_host", event)
        return self._pass(inside, masq, remote, now, "no call was seen", outbound=True)

    def saw(self, number: int, outbound_ns: int, inbound_ns: int) -> None:
        """Tell when the path last moved data of a row; older times than known are ignored. Call before `expire`."""
        call = self.calls.get(number)
        if call is None:
            return
        if outbound_ns:
            self._settle(call)
        call.seen_out = max(call.seen_out, outbound_ns)
        call.seen_in = max(call.seen_in, inbound_ns)
        if call.state != "closing" and call.control is None:
            self._deadlines.set(number, self._idle_deadline(call))

    def expires(self, number: int, now: int) -> int:
        """Return when a row ends if nothing refreshes it; with a live control connection, as if that had ended."""
        when = self._deadlines.get(number)
        return now + self.settings.idle_ns if when is None or when >= FOREVER else when

    # -- time and addresses --------------------------------------------------------------------------------------------

    def expire(self, now: int) -> tuple[Event, ...]:
        """Remove the rows whose time is over."""
        events = []
        for number in self._deadlines.due(now):
            call = self.calls[number]
            if call.state != "closing" and call.local_id is not None:
                events.append(self._event("call_ended", call, why="idle"))
            self._remove(call)
        return tuple(events)

    def move(self, old: int, new: int) -> tuple[Event, ...]:
        """Let rows follow a new masquerade address (P-28); one whose external id is taken there is removed."""
        moved = [call for call in self.calls.values() if call.masq == old]
        for call in moved:
            self._forget_external(call)
            if call.remote in self._external.get((new, call.external_id), {}):
                self._remove(call)
                continue
            call.masq = new
            self._index_external(call)
            self._changes[call.number] = call
        for control in self.controls.values():
            control.masq = new if control.masq == old else control.masq
        return (Event(kind="maddr_changed", old=old, new=new),) if moved else ()

    def changed(self) -> list[Call]:
        """Return the rows that `take_changes` is about to yield."""
        return list(self._changes.values())

    def take_changes(self) -> Iterator[Call]:
        """Return the rows that were made, changed or (state "closed") removed since they were taken last, once each."""
        return self._changes.take()

    # -- rows of a run before ------------------------------------------------------------------------------------------

    def adopt(self, call: Call, now: int) -> str:
        """Go on with a row that another process has left, under a number of our own; return why not, or "".

        The connection that it names as its control has been attached before, or it goes on as one that has lost that.
        Nothing of it is believed but what a row may be, beside those that are here.
        """
        control = self.controls.get(call.control) if call.control is not None else None
        reason = self._doubt(call, control, now)
        if reason:
            return reason
        call.number = next(self._numbers)
        call.control = control.number if control else None
        counts = call.state != "passthrough" or bool(call.seen_out)
        if not counts:
            self._unanswered.make_room(self._remove)
        if self._refusal(call.inside, counts=counts):
            return "no room"
        self._add(call, self._deadline(call), counts=counts)
        if call.remote_id is not None:
            self._peer[call.inside, call.remote, call.remote_id] = call
        if call.state == "passthrough":
            self._passthrough[call.remote] = call
        if control is not None:
            control.calls[call.local_id] = call
        return ""

    def _doubt(self, call: Call, control: Control | None, now: int) -> str:
        """Return what is wrong with a row in itself, then beside others; or ""."""
        passes = call.state == "passthrough"
        lacks_ids = (call.local_id is None, call.external_id is None) != (passes, passes)
        if (
            max(call.since, call.seen_out, call.seen_in, call.ended) > now
            or lacks_ids
            or call.state == "closed"
            or (passes and (call.remote_id, call.control) != (None, None))
            or (control is not None and (control.inside, control.masq, control.remote) != _ends(call))
        ):
            return "torn"
        if passes:
            is_taken = call.remote in self._passthrough
        else:
            is_taken = call.remote in self._external.get((call.masq, call.external_id), {})
            is_taken |= control is not None and call.local_id in control.calls
        if is_taken:
            return "twice"
        call.control = control.number if control else None
        return "expired" if self._deadline(call) <= now else ""

    def _deadline(self, call: Call) -> int:
        if call.state == "closing":
            return call.ended + self.settings.closing_ns
        return FOREVER if call.control is not None else self._idle_deadline(call)

    # -- within --------------------------------------------------------------------------------------------------------

    def _refusal(self, inside: int, *, counts: bool = True) -> str:
        if len(self.calls) >= self.settings.capacity:
            return "calls_full"
        return "host_call_limit" if counts and self._rows_of[inside] >= self.settings.per_host else ""

    def _choose(self, control: Control, local_id: int, high: int | None) -> int | None:
        """Return a free external id: the host's own, else the next of the classic range, else any (P-40)."""
        holder = self._external.get((control.masq, local_id), {}).get(control.remote)
        if holder and holder.state == "closing" and (holder.inside, holder.local_id) == (control.inside, local_id):
            self._remove(holder)  # the host reuses its own number on a new connection: its old call is over
        first, last = self.settings.first_id, self.settings.last_id
        classic = itertools.chain(range(self._next_id, last + 1), range(first, self._next_id))
        if high is None:
            candidates = itertools.chain((local_id,), classic, range(1, 0x10000))
        else:
            candidates = itertools.chain((local_id,), range(high << 8, (high + 1) << 8))
        for candidate in candidates:
            if control.remote not in self._external.get((control.masq, candidate), {}) and (
                high is None or candidate >> 8 == high
            ):
                if candidate != local_id and first <= candidate <= last:
                    self._next_id = candidate + 1 if candidate < last else first
                return candidate
        return None

    def _only_host(self, remote: int, redirect: int | None) -> tuple[int | None, str]:
        """Return the inside host that GRE from a remote without a call can only be for, and why (P-46)."""
        if redirect is not None:
            return redirect, "redirect"
        hosts = {control.inside for control in self.controls.values() if control.remote == remote}
        return (hosts.pop(), "the only control connection") if len(hosts) == 1 else (None, "")

    def _pass(self, inside: int, masq: int, remote: int, now: int, why: str, *, outbound: bool) -> Decision:
        """Make a passthrough row and send the packet by it; until the host sends as well, it is none of its share."""
        if not outbound:
            self._unanswered.make_room(self._remove)
        refusal = self._refusal(inside, counts=outbound)
        if refusal:
            event = Event(kind="call_denied", inside=inside, remote=remote, why=refusal)
            return dropped("calls_full", event)
        call = Call(number=next(self._numbers), inside=inside, masq=masq, remote=remote, state="passthrough", since=now)
        self._passthrough[remote] = call
        self._add(call, now + self.settings.idle_ns, counts=outbound)
        self._note_data(call, now, outbound=outbound)
        event = Event(kind="gre_passthrough", inside=inside, remote=remote, why=why)
        return Decision(to=(masq if outbound else inside,), row=call, events=(event,))

    def _note_data(self, call: Call, now: int, *, outbound: bool) -> None:
        if outbound:
            call.seen_out = now
            self._settle(call)
            rows = self._pair[call.inside, call.remote]
            rows[call.number] = rows.pop(call.number)
        else:
            call.seen_in = now
        if call.state != "closing" and call.control is None:
            self._deadlines.set(call.number, self._idle_deadline(call))

    def _settle(self, call: Call) -> None:
        """The inside host takes part: the row is one of its own."""
        if self._unanswered.settle(call):
            self._rows_of[call.inside] += 1

    def _idle_deadline(self, call: Call) -> int:
        if call.last_seen or call.state == "passthrough":
            return call.last_seen + self.settings.idle_ns
        return call.since + self.settings.before_data_ns

    def _restart(self, call: Call, now: int) -> None:
        """Use a closing call's row for a new call with the same Call ID on the same connection."""
        call.state, call.since = "asked", now
        self._forget_peer(call)
        call.remote_id = None
        self._deadlines.set(call.number, FOREVER)
        self._changes[call.number] = call

    def _add(self, call: Call, deadline: int, *, counts: bool = True) -> None:
        self.calls[call.number] = call
        if counts:
            self._rows_of[call.inside] += 1
        else:
            self._unanswered[call.number] = call
        self._pair.setdefault((call.inside, call.remote), {})[call.number] = call
        self._index_external(call)
        self._deadlines.set(call.number, deadline)
        self._changes[call.number] = call

    def _remove(self, call: Call) -> None:
        call.state = "closed"
        del self.calls[call.number]
        if not self._unanswered.settle(call):
            self._rows_of[call.inside] -= 1
            if not self._rows_of[call.inside]:
                del self._rows_of[call.inside]
        rows = self._pair[call.inside, call.remote]
        del rows[call.number]
        if not rows:
            del self._pair[call.inside, call.remote]
        self._forget_external(call)
        self._forget_peer(call)
        if self._passthrough.get(call.remote) is call:
            del self._passthrough[call.remote]
        control = self.controls.get(call.control) if call.control is not None else None
        if control and control.calls.get(call.local_id) is call:
            del control.calls[call.local_id]
        self._deadlines.forget(call.number)
        self._changes[call.number] = call

    def _index_external(self, call: Call) -> None:
        if call.external_id is not None:
            self._external.setdefault((call.masq, call.external_id), {})[call.remote] = call

    def _forget_external(self, call: Call) -> None:
        holders = self._external.get((call.masq, call.external_id), {})
        if holders.get(call.remote) is call:
            del holders[call.remote]
            if not holders:
                del self._external[call.masq, call.external_id]

    def _forget_peer(self, call: Call) -> None:
        key = (call.inside, call.remote, call.remote_id)
        if self._peer.get(key) is call:
            del self._peer[key]

    def _event(self, kind: str, call: Call, new_id: int = 0, why: str = "") -> Event:
        return Event(
            kind=kind, inside=call.inside, remote=call.remote, id=call.external_id or 0, new_id=new_id, why=why
        )


def _ends(call: Call) -> tuple[int, int, int]:
    return call.inside, call.masq, call.remote
