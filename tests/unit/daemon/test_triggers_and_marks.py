"""Triggers and marks of a running gateway: their ports are kept and guarded, changes are made all or none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.policy import forwards, marks, triggers
from fastmasq.policy.chains import Match, Rule
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.triggers import Trigger
from tests.support.packets import decode, dotted, tcp, udp
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OTHER_HOST, OUTSIDE, dropped, passes
from tests.support.policy_gateway import PolicyGateway

PEER = "199.0.0.1"
TCP, UDP = 0, 1  # rows of ports
TRIGGERED = Trigger(
    kind="range", protocol="udp", first=6970, last=7170, control_protocol="tcp", control_port=7070, peer_only=True
)
DIRECT = Trigger(kind="direct", protocol="udp", first=28800, last=28900)
FIXED = Trigger(kind="range", protocol="tcp", first=2000, last=2010, host=HOST)


class Gateway(PolicyGateway):
    """A gateway whose triggers and marks are changed; sessions may keep the ports 1024 to 32767, if any."""

    def __init__(self) -> None:
        super().__init__()
        self.host.spare[:2, 1024:32768] = True

    def add(self, *rows: Trigger) -> dict[str, Any]:
        return self.call("triggers.change", changes=[triggers.Change(action="add", row=row) for row in rows])

    def delete(self, row: Trigger) -> dict[str, Any]:
        return self.call("triggers.change", changes=[triggers.Change(action="delete", row=row)])

    def mark(self, action: str, **target: Any) -> dict[str, Any]:
        return self.call("marks.change", changes=[marks.Change(action=action, target=MarkTarget(**target))])


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


def guarded(gateway: Gateway, row: int) -> list[int]:
    return gateway.led_inside(row)


def marking(port: int, mark: int = 1) -> Rule:
    return Rule(match=Match(protocol=6, destination_ports=((port, port),)), mark=("set", mark), target="ACCEPT")


def destination(packet: bytes) -> tuple[str, int]:
    decoded = decode(packet)
    return dotted(decoded.destination), decoded.destination_port


def test_5_5_autofw_a_triggered_range_is_guarded_opened_and_shown(gateway: Gateway):
    assert gateway.add(TRIGGERED) == {"rows": 1}
    assert guarded(gateway, UDP) == list(range(6970, 7171))
    [row] = gateway.call("triggers")
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
    assert gateway.call("forwards") == []
    arrived = passes(gateway.harness, OUTSIDE, tcp((PEER, 1), (GATEWAY_OUT, 2005), "S", seq=1))
    assert destination(arrived) == (HOST, 2005)
    gateway.call("forwards.change", changes=[{"action": "clear"}])
    assert guarded(gateway, TCP) == list(range(2000, 2011))


def test_5_5_autofw_a_port_that_is_forwarded_is_refused_and_nothing_changes(gateway: Gateway):
    forward = forwards.Change(action="add", forward=forwards.read("tcp", "eth1:2003", ["10.0.0.9:80"]))
    gateway.call("forwards.change", changes=[forward])
    with pytest.raises(ConfigurationError, match="the same address and port as tcp eth1:2003"):
        gateway.add(TRIGGERED, FIXED)
    assert gateway.call("triggers") == []
    assert (guarded(gateway, TCP), guarded(gateway, UDP)) == ([2003], [])
    with pytest.raises(ConfigurationError, match="changes: "):
        gateway.call("triggers.change", changes=[{"action": "explode"}])


def test_5_5_autofw_direct_rows_may_keep_what_the_host_leaves_and_the_guard_knows(gateway: Gateway):
    gateway.add(DIRECT)
    assert guarded(gateway, UDP) == list(range(1024, 32768))
    assert guarded(gateway, TCP) == []
    assert not gateway.gateway.ports.reserved.any()
    gateway.delete(DIRECT)
    assert guarded(gateway, UDP) == []


def test_a_guard_that_refuses_leaves_all_as_it_was(gateway: Gateway):
    gateway.add(TRIGGERED)
    gateway.mark("add", mark=1, address=HOST, port=80)
    running = gateway.gateway
    before = running.triggers.triggers, running.marks.targets()
    gateway.host.refuses.add("guard")
    for change in (lambda: gateway.add(FIXED), lambda: gateway.mark("add", mark=1, address=OTHER_HOST)):
        with pytest.raises(KernelError, match="the guard refuses"):
            change()
        assert (running.triggers.triggers, running.marks.targets(), running.forwards.of_triggers) == (*before, ())


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
    shown = [(one["address"], one["left"]) for one in gateway.call("marks")]
    assert shown == [(OTHER_HOST, 1), (HOST, 2), ("10.0.0.9", 10)]
    gateway.mark("edit", mark=1, address=OTHER_HOST, preference=5)
    gateway.mark("schedule", mark=1)
    shown = [(one["address"], one["left"]) for one in gateway.call("marks")]
    assert shown == [(HOST, 2), ("10.0.0.9", 10), (OTHER_HOST, 5)]


def test_5_5_mfw_a_port_in_use_by_a_mapping_is_waited_for_and_others_are_not_given_it(gateway: Gateway):
    passes(gateway.harness, INSIDE, tcp((OTHER_HOST, 80), (PEER, 80), "S", seq=1))
    gateway.use(marking(80))
    gateway.mark("add", mark=1, address=HOST, port=80)
    assert dropped(gateway.harness, OUTSIDE, tcp(("199.0.0.9", 1), (GATEWAY_OUT, 80), "S", seq=1)) == "filtered"
    gateway.harness.advance(400)
    passes(gateway.harness, OUTSIDE, tcp(("199.0.0.9", 1), (GATEWAY_OUT, 80), "S", seq=1))
