"""The whole table against a model of dicts: opening, closing and idling in any order, with few ports and rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastmasq.table.masq import MasqTable
from tests.support.tables import (
    CLASS,
    EXTERNAL,
    ICMP,
    INSIDE,
    OUTSIDE,
    PROTOCOLS,
    REPLY,
    SECOND,
    allowed,
    make_table,
)

CAPACITY = 24
POOL = range(2000, 2012)  # 12 ports for 4 hosts x 4 ports
SESSIONS_PER_HOST, PORTS_PER_HOST = 9, 4
LIFE = {6: 240 * SECOND, 17: 300 * SECOND, 1: 60 * SECOND}
SOON = SECOND // 2
HOLD_DOWN = 120 * SECOND
MAPPING_OPEN = 1

protocols = st.sampled_from(PROTOCOLS)
hosts = st.integers(0x0A000002, 0x0A000005)
ports = st.sampled_from([2000, 2001, 4000, 4001])
remotes = st.sampled_from([0xC7000001, 0xC7000002])
remote_ports = st.sampled_from([8, 13])


@dataclass
class Known:
    """What the model knows of a session."""

    row: int
    since: int
    external: int


class TableHistory(RuleBasedStateMachine):
    """Opens and closes sessions in a small table and in a dict, and compares them after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.pool = set(POOL)
        self.table = self.make_table()
        self.table.set_external(EXTERNAL, allowed(POOL))
        self.known: dict[tuple, Known] = {}  # (protocol, host, port, remote, remote port)
        self.held: dict[tuple[int, int], tuple[int, int]] = {}  # (protocol, external port): last host, since

    def make_table(self, **settings: object) -> MasqTable:
        limits = {"sessions_per_host": SESSIONS_PER_HOST, "ports_per_host": PORTS_PER_HOST}
        return make_table(capacity=CAPACITY, external=None, now_ns=self.now, **limits, **settings)

    def mappings(self) -> dict[tuple, int]:
        return {key[:3]: session.external for key, session in self.known.items()}

    def expected_refusals(self, protocol: int, host: int, port: int) -> set[str]:
        """Return what the table may answer; empty when the session must be opened."""
        mappings = self.mappings()
        taken = {external for key, external in mappings.items() if key[0] == protocol}
        refusals = set()
        if len(self.known) == CAPACITY:
            refusals.add("table_full")
        if sum(key[1] == host for key in self.known) == SESSIONS_PER_HOST:
            refusals.add("host_session_limit")
        if (protocol, host, port) not in mappings:
            if sum(key[:2] == (protocol, host) for key in mappings) >= PORTS_PER_HOST:
                refusals.add("host_port_limit")
            if not self.pool - taken:
                refusals.add("ports_exhausted")
        return refusals

    @rule(protocol=protocols, host=hosts, port=ports, remote=remotes, remote_port=remote_ports)
    def open(self, protocol: int, host: int, port: int, remote: int, remote_port: int) -> None:
        key = (protocol, host, port, remote, remote_port)
        if key in self.known:
            return
        mappings = self.mappings()
        taken = {external for owner, external in mappings.items() if owner[0] == protocol}
        refusals = self.expected_refusals(protocol, host, port)
        row = self.table.open(*key, self.now)
        if refusals:
            assert row in refusals
            return
        assert isinstance(row, int), f"{key} was refused: {row}"
        external = int(self.table.sessions["flow"][row, 0]["sid"])
        if key[:3] in mappings:
            assert external == mappings[key[:3]]
        else:
            held = {
                one: age
                for (kind, one), (_, since) in self.held.items()
                if kind == protocol
                for age in [self.now - since]
            }
            untaken = self.pool - taken
            admissible = {one for one in untaken if held.get(one, HOLD_DOWN) >= HOLD_DOWN} or untaken
            assert external in admissible or self.held[protocol, external][0] == host
            assert external == port or port not in untaken - set(held)
            self.held.pop((protocol, external), None)
        self.known[key] = Known(row, self.now, external)

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, CAPACITY))
    def close(self, number: int) -> None:
        key = sorted(self.known)[number % len(self.known)]
        self.table.close(self.known[key].row)
        self.forget(key)

    @precondition(lambda self: self.known)
    @rule(number=st.integers(0, CAPACITY))
    def refresh(self, number: int) -> None:
        session = self.known[sorted(self.known)[number % len(self.known)]]
        self.table.refresh(session.row, self.now)
        session.since = self.now

    @rule(pause=st.integers(0, 400 * SECOND))
    def wait(self, pause: int) -> None:
        self.now += pause
        self.table.expire(self.now)
        for key, session in list(self.known.items()):
            age = self.now - session.since
            present = self.table.sessions["state"][session.row] != 0
            assert present or age >= LIFE[key[0]], "gone too early"
            assert not present or age < LIFE[key[0]] + SOON, "still there"
            if not present:
                self.forget(key)
        self.held = {
            key: (host, since) for key, (host, since) in self.held.items() if self.now - since < HOLD_DOWN + SOON
        }

    def forget(self, key: tuple) -> None:
        """A session is gone; with the last one of a mapping its port is held down from now on."""
        session = self.known.pop(key)
        if key[:3] not in self.mappings():
            self.held[key[0], session.external] = (key[1], self.now)

    @rule(lost=st.sets(st.sampled_from(list(POOL)), max_size=6))
    def host_takes_ports(self, lost: set[int]) -> None:
        self.pool = set(POOL) - lost
        self.table.set_external(EXTERNAL, allowed(self.pool))

    @invariant()
    def both_flows_are_found(self) -> None:
        for (protocol, host, port, remote, remote_port), session in self.known.items():
            reply = REPLY if protocol == ICMP else 0
            assert self.table.find(protocol, INSIDE, host, port, remote, remote_port) == (session.row, 0)
            back = self.table.find(protocol, OUTSIDE | reply, remote, remote_port, EXTERNAL, session.external)
            assert back == (session.row, 1)

    @invariant()
    def counts_agree(self) -> None:
        counts = self.table.counts()
        assert counts["active"] == len(self.known)
        assert counts["mappings"] == len(self.mappings())
        assert counts["hosts"] == len({key[1] for key in self.known})
        for protocol, name in ((6, "tcp"), (17, "udp"), (1, "icmp")):
            assert counts[name] == sum(key[0] == protocol for key in self.known)
        assert counts["opened_total"] + counts["adopted"] - counts["closed_total"] == counts["active"]
        assert np.count_nonzero(self.table.sessions["state"]) == counts["active"]
        assert np.count_nonzero(self.table.mappings["in_use"] == MAPPING_OPEN) == counts["mappings"]

    @invariant()
    def external_ports_have_one_owner_each(self) -> None:
        mappings = self.mappings()
        assert len({(key[0], external) for key, external in mappings.items()}) == len(mappings)
        for port in POOL:
            for protocol in PROTOCOLS:
                mapped = any(key[0] == protocol and external == port for key, external in mappings.items())
                assert self.table.is_mapped(EXTERNAL, CLASS[protocol], port) == mapped

    @invariant()
    def remotes_are_admitted_while_a_session_holds_the_door(self) -> None:
        for (protocol, host, port), external in self.mappings().items():
            for remote in (0xC7000001, 0xC7000002):
                held = any(key[:4] == (protocol, host, port, remote) for key in self.known)
                assert self.table.admits(EXTERNAL, CLASS[protocol], external, remote) == held


TestTableHistory = TableHistory.TestCase
TestTableHistory.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
