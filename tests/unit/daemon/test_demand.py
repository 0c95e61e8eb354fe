"""Autoforwards and marks of the running forwarder: their ports are kept and guarded, changes are made all or none."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from fastmasq.daemon.demand import Demand
from fastmasq.daemon.forwards import Forwards
from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.policy import forwards, marks, triggers
from fastmasq.policy.chains import Match, Rule, RuleSet
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.triggers import AutoForward
from tests.support.harness import Harness, address
from tests.support.packets import decode, dotted, tcp, udp
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OTHER_HOST, OUTSIDE, dropped, passes

PEER = "199.0.0.1"
TCP, UDP = 0, 1  # rows of ports
TRIGGERED = AutoForward(
    kind="range", protocol="udp", first=6970, last=7170, control_protocol="tcp", control_port=7070, peer_only=True
)
DIRECT = AutoForward(kind="direct", protocol="udp", first=28800, last=28900)
FIXED = AutoForward(kind="range", protocol="tcp", first=2000, last=2010, host=HOST)


class Gateway:
    """A Harness with what its engine knows of forwards, autoforwards and marks, and what it does when they change."""

    def __init__(self) -> None:
        self.harness = Harness()
        self.forwards = Forwards(self.harness.table, self.harness.forwarder, self.follow)
        self.demand = Demand(self.harness.forwarder, self.forwards, self.follow)
        self.forwards.resolve({forwards.OUTSIDE: address(GATEWAY_OUT), "eth1": address(GATEWAY_OUT)})
        self.refuses = False
        self.guarded = np.zeros((3, 65536), bool)

    def follow(self) -> None:
        if self.refuses:
            raise KernelError("the guard refuses")
        spare = np.zeros((3, 65536), bool)
        spare[:2, 1024:32768] = self.demand.keeps_ports
        self.demand.follow_ports(spare)
        self.guarded = self.forwards.ports() | self.demand.ours
        allowed = self.harness.allowed & ~self.demand.reserved
        self.forwards.withdraw()
        self.harness.table.set_external(address(GATEWAY_OUT), allowed & ~self.forwards.ports(address(GATEWAY_OUT)))
        self.forwards.place(allowed)

    def add(self, *rows: AutoForward) -> dict[str, Any]:
        return self.demand.change_rows(
            {"changes": [msgspec.to_builtins(triggers.Change(action="add", row=row)) for row in rows]}
        )

    def delete(self, row: AutoForward) -> dict[str, Any]:
        change = triggers.Change(action="delete", row=row)
        return self.demand.change_rows({"changes": [msgspec.to_builtins(change)]})

    def mark(self, action: str, *, rules: RuleSet | None = None, **target: Any) -> dict[str, Any]:
        change = marks.Change(action=action, target=MarkTarget(**target))
        return self.demand.change_targets({"changes": [msgspec.to_builtins(change)]})

    def use(self, *rules: Rule) -> None:
        """Have the input chain consist of these rules."""
        rule_set = RuleSet()
        for rule in rules:
            rule_set.append("input", rule)
        self.demand.follow_rules(rule_set)
        self.harness.set_rule_set(rule_set)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def guarded(gateway: Gateway, row: int) -> list[int]:
    return np.flatnonzero(gateway.guarded[row]).tolist()


def marking(port: int, mark: int = 1) -> Rule:
    return Rule(match=Match(protocol=6, destination_ports=((port, port),)), mark=("set", mark), target="ACCEPT")


def destination(packet: bytes) -> tuple[str, int]:
    decoded = decode(packet)
    return dotted(decoded.destination), decoded.destination_port


def test_5_5_autofw_a_triggered_range_is_guarded_opened_and_shown(gateway: Gateway):
    assert gateway.add(TRIGGERED) == {"rows": 1}
    assert guarded(gateway, UDP) == list(range(6970, 7171))
    [row] = gateway.demand.list_rows()
    assert (row["contact"], row["peer"], row["left_s"]) == (None, None, 0)
    passes(gateway.harness, INSIDE, tcp((HOST, 1025), (PEER, 7070), "S", seq=1))
    arrived = passes(gateway.harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 7000), b"x"))
    assert destination(arrived) == (HOST, 7000)
    gateway.delete(TRIGGERED)
    assert guarded(gateway, UDP) == []
    assert gateway.harness.forwarder.triggers is None


def test_5_5_autofw_a_fixed_host_is_a_port_forward_that_no_list_of_forwards_shows(gateway: Gateway):
    gateway.add(FIXED)
    assert guarded(gateway, TCP) == list(range(2000, 2011))
    assert gateway.forwards.list_forwards() == []
    arrived = passes(gateway.harness, OUTSIDE, tcp((PEER, 1), (GATEWAY_OUT, 2005), "S", seq=1))
    assert destination(arrived) == (HOST, 2005)
    gateway.forwards.change_forwards({"changes": [{"action": "clear"}]})
    assert guarded(gateway, TCP) == list(range(2000, 2011))


def test_5_5_autofw_a_port_that_is_forwarded_is_refused_and_nothing_changes(gateway: Gateway):
    forward = forwards.Change(action="add", forward=forwards.read("tcp", "eth1:2003", ["10.0.0.9:80"]))
    gateway.forwards.change_forwards({"changes": [msgspec.to_builtins(forward)]})
    with pytest.raises(ConfigurationError, match="the same address and port as tcp eth1:2003"):
        gateway.add(TRIGGERED, FIXED)
    assert gateway.demand.list_rows() == []
    assert (guarded(gateway, TCP), guarded(gateway, UDP)) == ([2003], [])
    with pytest.raises(ConfigurationError, match="changes: "):
        gateway.demand.change_rows({"changes": [{"action": "explode"}]})


def test_5_5_autofw_direct_rows_may_keep_what_the_host_leaves_and_the_guard_knows(gateway: Gateway):
    gateway.add(DIRECT)
    assert guarded(gateway, UDP) == list(range(1024, 32768))
    assert guarded(gateway, TCP) == []
    assert not gateway.demand.reserved.any()
    gateway.delete(DIRECT)
    assert guarded(gateway, UDP) == []


def test_a_guard_that_refuses_leaves_all_as_it_was(gateway: Gateway):
    gateway.add(TRIGGERED)
    gateway.mark("add", mark=1, address=HOST, port=80)
    before = gateway.demand.rows, gateway.demand.targets()
    gateway.refuses = True
    for change in (lambda: gateway.add(FIXED), lambda: gateway.mark("add", mark=1, address=OTHER_HOST)):
        with pytest.raises(KernelError, match="the guard refuses"):
            change()
        assert (gateway.demand.rows, gateway.demand.targets(), gateway.forwards.auto) == (*before, ())


def test_5_5_mfw_the_ports_of_marking_rules_are_kept_and_guarded(gateway: Gateway):
    gateway.use(marking(80), marking(81, mark=2))
    assert guarded(gateway, TCP) == []
    gateway.mark("add", mark=1, address=HOST, port=8000)
    assert guarded(gateway, TCP) == [80]
    assert destination(passes(gateway.harness, OUTSIDE, tcp((PEER, 1), (GATEWAY_OUT, 80), "S", seq=1))) == (HOST, 8000)
    gateway.use(marking(82))
    assert guarded(gateway, TCP) == [82]
    gateway.mark("delete", mark=1)
    assert guarded(gateway, TCP) == []


def test_5_5_mfw_a_change_keeps_the_turns_of_others(gateway: Gateway):
    gateway.use(marking(80))
    for host in (HOST, OTHER_HOST):
        gateway.mark("add", mark=1, address=host, port=80, preference=2)
    for port in (1, 2, 3):
        passes(gateway.harness, OUTSIDE, tcp((PEER, port), (GATEWAY_OUT, 80), "S", seq=1))
    gateway.mark("add", mark=1, address="10.0.0.9", port=80)
    shown = [(one["address"], one["left"]) for one in gateway.demand.handlers()["mfw"]({})]
    assert shown == [(OTHER_HOST, 1), (HOST, 2), ("10.0.0.9", 10)]
    gateway.mark("edit", mark=1, address=OTHER_HOST, preference=5)
    gateway.mark("schedule", mark=1)
    shown = [(one["address"], one["left"]) for one in gateway.demand.handlers()["mfw"]({})]
    assert shown == [(HOST, 2), ("10.0.0.9", 10), (OTHER_HOST, 5)]


def test_5_5_mfw_a_port_in_use_by_a_mapping_is_waited_for_and_others_are_not_given_it(gateway: Gateway):
    passes(gateway.harness, INSIDE, tcp((OTHER_HOST, 80), (PEER, 80), "S", seq=1))
    gateway.use(marking(80))
    gateway.mark("add", mark=1, address=HOST, port=80)
    assert dropped(gateway.harness, OUTSIDE, tcp(("199.0.0.9", 1), (GATEWAY_OUT, 80), "S", seq=1)) == "filtered"
    gateway.harness.advance(400)
    passes(gateway.harness, OUTSIDE, tcp(("199.0.0.9", 1), (GATEWAY_OUT, 80), "S", seq=1))
