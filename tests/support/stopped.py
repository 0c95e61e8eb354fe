"""Tables that stop at any of their writes: what each would leave is adopted, and compared with what must be there."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from fastmasq.table.keys import ends_of, protocol_of
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import CLASS_NONE, STATES
from tests.support import killed
from tests.support.adoption import adopted, assert_consistent, holds, shared
from tests.support.comparison import PROGRAM_RULES, AnySession, Comparison
from tests.support.model import tcp
from tests.support.model.nat import Model
from tests.support.model.state import Settings, Verdict
from tests.support.model.subjects import PathSubject
from tests.support.model.wire import Parsed, Rewriter
from tests.support.tables import EXTERNAL, PROTOCOLS, make_table
from tests.support.watched import WatchedMemory

CAPACITY = 32
SEEN = {tcp.OUT: 0x04, tcp.IN: 0x08}  # flags of a session's row (table/rows.pxd)
ACKED = {tcp.OUT: 0x10, tcp.IN: 0x20}

Key = tuple  # of a session: protocol; inside, external and remote endpoint. Of a port held down: HELD, protocol, port
Facts = dict[str, object]  # what is known of it, by its name; None: not known
HELD = "held"


class Stops:
    """The memory of a table, of which every write is seen, and a copy that comes behind, write by write.

    every: of so many writes only one is a stop, in turn. count: how many stops there were.
    """

    def __init__(self, every: int = 1, capacity: int = CAPACITY) -> None:
        self.memory = shared(capacity)
        self.count = 0
        self._every = every
        self._seen = 0
        self._writes: Iterator[tuple[int, bytes]] = iter(())
        self._copy = shared(capacity)
        self._watched = WatchedMemory(self.memory)

    def begin(self) -> None:
        """Have the copy be what is there now."""
        self._copy[:] = self.memory[:]

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Have `left` be about the writes that are made meanwhile."""
        with self._watched:
            yield
        self._writes = iter(self._watched.writes)

    def left(self) -> Iterator[mmap.mmap]:
        """Yield what would be left if a write had been the last one, for each stop; it changes with the next."""
        for offset, octets in self._writes:
            self._copy[offset : offset + len(octets)] = octets
            self._seen += 1
            if self._seen % self._every == 0:
                self.count += 1
                yield self._copy

    def assert_complete(self) -> None:
        """No write was overlooked: the copy becomes what is there."""
        assert all(self.left())
        assert self._copy[:] == self.memory[:]


# -- a table by itself -----------------------------------------------------------------------------------------------


def stop_story(seed: int, steps: int, *, every: int = 1) -> int:
    """Stop the story of a seed at the writes of its first steps; return how many stops there were."""
    stops = Stops(every)
    table = make_table(capacity=CAPACITY, external=None, buffer=stops.memory)
    story = killed.Story(seed, table)
    stops.begin()
    for _ in range(steps):
        before, began = known_of(table), story.now_ns
        with stops.watch():
            story.step()
        after = known_of(table)
        for left in stops.left():
            again, dropped = adopted(left, CAPACITY, began)
            assert dropped == {}
            assert before & after <= known_of(again) <= before | after
            assert_consistent(again, (EXTERNAL,))
    stops.assert_complete()
    return stops.count


def known_of(table: MasqTable) -> set[tuple]:
    """Return what should outlive a table: sessions with their external ports, and whom ports are held down for."""
    return {*killed.sessions(table).items(), *holds(table).items()}


# -- the path, beside the specification ------------------------------------------------------------------------------


class WatchedModel(Model):
    """The specification, and what it knew at each moment of a packet: before every piece, and where it turns round."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.moments: list[dict[Key, Facts]] = []

    def handled(self, link: str, packet: Parsed) -> Verdict:
        self.moments.append(known_by(self))
        return super().handled(link, packet)

    def inbound(self, *packet_and_target: object) -> Rewriter:
        self.moments.append(known_by(self))
        return super().inbound(*packet_and_target)


class StoppedPath(Comparison):
    """The path and the model under the same traffic; at every stop the path leaves what the model knows.

    A session that is there before and after a packet is left, with its external port; none is that never was; and what
    is known of a connection was known at some moment of the packet. It is the same with ports held down.
    """

    settings = replace(Comparison.settings, sessions=CAPACITY, programs=PROGRAM_RULES)
    every = 1
    count = 0  # stops of all paths

    def __init__(self) -> None:
        super().__init__()
        self.model = WatchedModel(self.settings)

    def make_subject(self) -> PathSubject:
        self.stops = Stops(self.every)
        subject = PathSubject(self.settings, buffer=self.stops.memory)
        self.stops.begin()
        return subject

    def exchange(self, link: str, packet: bytes) -> None:
        with self.stopping():
            super().exchange(link, packet)

    def let_pass(self, seconds: float) -> None:
        with self.stopping():
            super().let_pass(seconds)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Adopt afterwards what is left at each stop, and judge it."""
        began, self.model.moments = self.now_ns, [known_by(self.model)]
        with self.stops.watch():
            yield
        moments = [*self.model.moments, known_by(self.model)]
        for left in self.stops.left():
            table, dropped = adopted(left, CAPACITY, began)
            assert dropped == {}
            assert_known(known_in(table), moments)
            assert_consistent(table, (EXTERNAL,))

    def teardown(self) -> None:
        type(self).count += self.stops.count
        self.stops.assert_complete()
        super().teardown()


def assert_known(found: dict[Key, Facts], moments: list[dict[Key, Facts]]) -> None:
    """What was found is what was known at one moment or another."""
    always, ever = set.intersection(*map(set, moments)), set.union(*map(set, moments))
    assert always <= found.keys(), f"missing: {always - found.keys()}"
    assert found.keys() <= ever, f"never were: {found.keys() - ever}"
    for key, facts in found.items():
        for name, fact in facts.items():
            known = {moment[key].get(name) for moment in moments if key in moment}
            assert fact is None or fact in known, f"{key}: {name} is {fact}, never one of {known}"


def known_by(model: Model) -> dict[Key, Facts]:
    """Return what the specification knows that should outlive the process: sessions, and ports held down."""
    known: dict[Key, Facts] = {
        (session.protocol, *model.ends(session)): facts_of(session) for session in model.all_sessions()
    }
    return known | {(HELD, *port): {"for": address} for port, (address, _) in model.held_down.items()}


def facts_of(session: AnySession) -> Facts:
    facts: Facts = {"state": session.state}
    for direction, end in (session.connection.ends if session.connection else {}).items():
        facts |= {f"{direction} {name}": getattr(end, name) for name in ("end", "ack", "edge")}
    return facts


def known_in(table: MasqTable) -> dict[Key, Facts]:
    """Return the same of what there is in a table."""
    found: dict[Key, Facts] = {
        (HELD, PROTOCOLS[row >> 16], row & 0xFFFF): {"for": address} for row, address in holds(table).items()
    }
    for row in table.sessions[: table.fresh]:
        if row["state"]:
            flow = row["flow"][0]
            ends = ends_of(flow)
            endpoints = ((ends.saddr, ends.sid), (int(flow["saddr"]), int(flow["sid"])), (ends.daddr, ends.did))
            if row["port_class"] == CLASS_NONE:
                endpoints = tuple((address, None) for address, _ in endpoints)
            found[protocol_of(flow), *endpoints] = facts_in(row)
    return found


def facts_in(row: np.void) -> Facts:
    facts: Facts = {"state": STATES[row["state"]]}
    for number, direction in enumerate((tcp.OUT, tcp.IN)):
        for name, flag in (("end", SEEN), ("ack", ACKED), ("edge", ACKED)):
            facts[f"{direction} {name}"] = int(row["tcp"][number][name]) if row["flags"] & flag[direction] else None
    return facts
