"""Both tables against their models: any order of starts, packets, ends and pauses."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fastmasq.trackers.vpn.calls import CallSettings, CallTable
from fastmasq.trackers.vpn.ipsec import Ipsec
from fastmasq.trackers.vpn.isakmp import IpsecSettings
from fastmasq.wire.tunnels import NO_COOKIE, Isakmp
from tests.support.model.vpn import MINUTE, SECOND, CallRules, EspRules

M = 0xC8C8C8C8
hosts = st.sampled_from([0x0A000002, 0x0A000003, 0x0A000004])
remotes = st.sampled_from([0xC7000001, 0xC7000002])
spis = st.sampled_from([0, 0x1000, 0x1001, 0x2000])
pauses = st.sampled_from([0, 1, SECOND, 29 * SECOND, 30 * SECOND, 2 * MINUTE, 16 * MINUTE]) | st.integers(0, 3 * MINUTE)


class EspHistory(RuleBasedStateMachine):
    """The serialiser of 1999, E-1 to E-21, packet by packet."""

    def __init__(self) -> None:
        super().__init__()
        chosen = IpsecSettings(evidence=False, lifetime=15 * MINUTE, init_retries=2, most_candidates=2)
        self.ipsec = Ipsec(chosen)
        self.rules = EspRules(
            chosen.lifetime, chosen.init_lifetime, chosen.init_retries, chosen.squelch, chosen.guess_margin, 2
        )
        self.now = 0

    @rule(inside=hosts, remote=remotes, spi=spis)
    def outbound(self, inside: int, remote: int, spi: int) -> None:
        decision = self.ipsec.esp_outbound(inside, M, remote, spi, 1, self.now)
        expected = self.rules.outbound(inside, M, remote, spi, self.now)
        assert (decision.drop or "sent") == expected
        assert decision.drop or decision.to == (M,)

    @rule(remote=remotes, spi=spis)
    def inbound(self, remote: int, spi: int) -> None:
        decision = self.ipsec.esp_inbound(remote, M, spi, 1, self.now)
        assert (decision.drop or decision.to) == self.rules.inbound(remote, M, spi, self.now)

    @rule(inside=hosts, remote=remotes)
    def isakmp(self, inside: int, remote: int) -> None:
        self.now += 1  # the order of activity is what counts
        header = Isakmp(inside.to_bytes(8, "big"), NO_COOKIE, 0x10, 2, 0, 0, 28)
        assert self.ipsec.isakmp_outbound(inside, M, remote, header, self.now).to == (M,)
        self.rules.isakmp[inside, remote] = self.now

    @rule(pause=pauses)
    def wait(self, pause: int) -> None:
        self.now += pause

    @invariant()
    def the_same_rows(self) -> None:
        self.ipsec.expire(self.now)
        self.rules.expire(self.now)
        have = sorted((r.inside, r.remote, r.ospi, r.ispi, r.state) for r in self.ipsec.esp.rows.values())
        assert have == sorted((r.inside, r.remote, r.ospi, r.ispi, r.state) for r in self.rules.rows)

    @invariant()
    def one_start_at_a_time(self) -> None:
        for rows in self.ipsec.esp._pending.values():
            assert len(rows) == 1


class EvidenceHistory(RuleBasedStateMachine):
    """With evidence nothing is compared but what must hold whatever is decided."""

    def __init__(self) -> None:
        super().__init__()
        self.ipsec = Ipsec(IpsecSettings(associations=12, associations_per_host=5, most_candidates=2, most_copies=2))
        self.now = 0
        self.seen: set[tuple[int, int]] = set()

    @rule(inside=hosts, remote=remotes, spi=spis, sequence=st.sampled_from([1, 2, 1000]))
    def outbound(self, inside: int, remote: int, spi: int, sequence: int) -> None:
        decision = self.ipsec.esp_outbound(inside, M, remote, spi, sequence, self.now)
        assert bool(decision.drop) != (decision.to == (M,))
        self.seen.add((inside, remote))

    @rule(remote=remotes, spi=st.integers(0x5000, 0x5008), sequence=st.sampled_from([1, 2, 1000]))
    def inbound(self, remote: int, spi: int, sequence: int) -> None:
        decision = self.ipsec.esp_inbound(remote, M, spi, sequence, self.now)
        assert len(set(decision.to)) == len(decision.to) <= 2
        assert {(host, remote) for host in decision.to} <= self.seen
        assert all(event.text for event in decision.events)

    @rule(inside=hosts, remote=remotes, number=st.integers(0, 3), outbound=st.booleans())
    def quick_mode(self, inside: int, remote: int, number: int, outbound: bool) -> None:
        cookies = inside.to_bytes(8, "big"), inside.to_bytes(8, "little")
        header = Isakmp(*cookies, 0x10, 32, 1, number, 100)
        if outbound:
            self.ipsec.isakmp_outbound(inside, M, remote, header, self.now)
            self.seen.add((inside, remote))
        else:
            self.ipsec.isakmp_inbound(remote, M, header, self.now)

    @rule(pause=pauses | st.integers(0, SECOND))
    def wait(self, pause: int) -> None:
        self.now += pause

    @invariant()
    def sizes_and_indexes_hold(self) -> None:
        self.ipsec.expire(self.now)
        esp = self.ipsec.esp
        assert len(esp.rows) + len(esp.disputes) <= 12
        for row in esp.rows.values():
            assert row.state == "outstanding" or row.ispi or row.state == "squelched"
            assert not row.ispi or esp.by_inbound(row.remote, row.masq, row.ispi) is row
            assert not row.ospi or esp.by_outbound(row.inside, row.remote, row.ospi) is row
        assert all(key not in esp._in for key in esp.disputes)
        assert all(dispute.hosts for dispute in esp.disputes.values())

    def teardown(self) -> None:
        self.ipsec.expire(self.now + 60 * MINUTE)
        esp = self.ipsec.esp
        assert not (esp.rows or esp.disputes or esp.waiting or esp._out or esp._in or esp._pending or esp._rows_of)


class CallHistory(RuleBasedStateMachine):
    """Call IDs: unique, kept if free, the same again, gone when their time is over; GRE follows them."""

    CONTROLS = {number: (0x0A000002 + number % 3, 0xC7000001 + number % 2) for number in range(6)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.table = CallTable(CallSettings())
        for number, (inside, remote) in self.CONTROLS.items():
            self.table.attach(number, inside, M, remote)
        self.rules = CallRules(closing=30 * SECOND)
        self.now = 0

    @rule(control=st.sampled_from(sorted(CONTROLS)), local=st.sampled_from([1, 2, 61000, 61001]))
    def open(self, control: int, local: int) -> None:
        call = self.table.open(control, local, self.now)
        self.rules.opened(control, *self.CONTROLS[control], local, call.external_id)

    @rule(control=st.sampled_from(sorted(CONTROLS)), local=st.sampled_from([1, 2, 61000, 61001]))
    def retire(self, control: int, local: int) -> None:
        call = self.table.by_local_id(control, local)
        assert (call is not None) == ((control, local) in self.rules.rows)
        if call is not None:
            self.table.retire(call, self.now, "test")
            self.rules.retired(control, local, self.now)

    @rule(pause=pauses)
    def wait(self, pause: int) -> None:
        self.now += pause
        self.table.expire(self.now)
        self.rules.expire(self.now)

    @invariant()
    def gre_finds_every_call(self) -> None:
        assert len(self.table.calls) == len(self.rules.rows)
        for (control, local), row in self.rules.rows.items():
            assert self.table.by_local_id(control, local).external_id == row["external"]
            decision = self.table.inbound(row["remote"], M, row["external"], self.now)
            assert (decision.to, decision.id) == ((row["inside"],), local)
            assert self.table.outbound(row["inside"], M, row["remote"], 0x7777, self.now).to == (M,)


usual = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestEspHistory, TestEvidenceHistory, TestCallHistory = (
    EspHistory.TestCase,
    EvidenceHistory.TestCase,
    CallHistory.TestCase,
)
TestEspHistory.settings = TestEvidenceHistory.settings = TestCallHistory.settings = usual
