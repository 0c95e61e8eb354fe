"""Changes of a running gateway's policy: all of one is made, or none, whatever refuses it and however late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from fastmasq.config.schema import Interfaces
from fastmasq.config.values import Addresses, InterfaceName, InterfaceNames, PortRanges
from fastmasq.errors import CapacityError, ConfigurationError, FastmasqError, KernelError
from fastmasq.mishaps import MOST_KINDS
from fastmasq.policy import forwards, marks, redirects, triggers
from fastmasq.policy.chains import Match, Rule, RuleError
from fastmasq.policy.changes import Change
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.redirects import Redirect
from fastmasq.policy.triggers import Trigger
from fastmasq.table.timeouts import SECOND
from tests.support.harness import address
from tests.support.packets import decode, tcp, udp
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OTHER_HOST, OUTSIDE, SERVER, dropped, passes
from tests.support.policy_gateway import PolicyGateway

PEER = "199.0.0.1"
TCP, UDP = 0, 1  # rows of ports
DENY_77 = Rule(match=Match(protocol=6, destination_ports=((77, 77),)), target="DENY")
PROXY_3128 = Rule(match=Match(protocol=6, destination_ports=((3128, 3128),)), target="REDIRECT", redirect_port=8080)
MARK_80 = Rule(match=Match(protocol=6, destination_ports=((80, 80),)), mark=("set", 1), target="ACCEPT")


def line(method: str, number: int = 0, *, optional: bool = False, **params: Any) -> dict[str, Any]:
    return {"place": f"file:{number}", "method": method, "params": params, "optional": optional}


def everything() -> list[dict[str, Any]]:
    """Return a line for each kind of policy."""
    return [
        line(
            "rules.change",
            changes=[Change(do="append", chain="input", rule=rule) for rule in (DENY_77, MARK_80, PROXY_3128)],
        ),
        line("forwards.change", 3, changes=[{"action": "add", "forward": forward("eth1:8080")}]),
        line(
            "redirects.change", 4, changes=[redirects.Change(action="set", redirect=Redirect(protocol=47, host=HOST))]
        ),
        line("triggers.change", 5, changes=[triggers.Change(action="add", row=one) for one in TRIGGERS]),
        line("marks.change", 6, changes=[marks.Change(action="add", target=MarkTarget(mark=1, address=HOST, port=80))]),
        line("timeouts", 7, tcp=600, tcp_fin=0, udp=60),
        line("dynaddr", 8, value=0),
    ]


TRIGGERS = (
    Trigger(kind="range", protocol="udp", first=6970, last=7170, control_protocol="tcp", control_port=7070),
    Trigger(kind="range", protocol="tcp", first=2000, last=2010, host=HOST),
)


def forward(listen: str, to: str = f"{HOST}:80") -> forwards.Forward:
    return forwards.read("tcp", listen, [to])


@pytest.fixture
def gateway() -> Iterator[PolicyGateway]:
    made = PolicyGateway(ports="61000-65095")
    made.call("forwards.change", changes=[{"action": "add", "forward": forward("eth1:22", f"{OTHER_HOST}:22")}])
    yield made
    made.close()


def state(gateway: PolicyGateway) -> tuple:
    """Return all that a change that is refused must leave as it was: policy, path, guard, host and table."""
    running, policy = gateway.gateway, gateway.gateway.policy()
    return (
        policy.rules._skeleton(),
        replace(policy, rules=None),
        {method: gateway.call(method) for method in ("forwards", "redirects", "triggers", "marks")},
        gateway.call("rules")["chains"],
        {one: ports.tobytes() for one, ports in gateway.host.kept.items()},
        gateway.host.protocols_kept,
        gateway.host.judged._skeleton(),
        gateway.host.reserved,
        gateway.host.reaches_proxies,
        running.forwards.placed,
        running.ports.for_mappings(address(GATEWAY_OUT)).tobytes(),
        running.ports.led_inside().tobytes(),
        dropped(gateway.harness, OUTSIDE, tcp((PEER, 1), (GATEWAY_OUT, 62000), "S", seq=1)),
    )


def refused(gateway: PolicyGateway, action: Callable[[], Any], error: type[FastmasqError], words: str) -> None:
    before = state(gateway)
    with pytest.raises(error, match=words):
        action()
    gateway.host.refuses.clear()
    assert state(gateway) == before
    gateway.gateway.look()
    assert state(gateway) == before, "and the next look finds nothing to do"


def test_lines_of_every_kind_are_one_change(gateway: PolicyGateway):
    assert gateway.call("policy.change", lines=everything()) == {"warnings": [], "changes": 10}
    policy = gateway.gateway.policy()
    assert [str(one) for one in policy.forwards] == ["tcp eth1:22", "tcp eth1:8080"]
    assert (policy.redirects, policy.triggers) == ((Redirect(protocol=47, host=HOST),), TRIGGERS[::-1])
    assert [(one.mark, one.address, one.port) for one in policy.marks] == [(1, HOST, 80)]
    assert policy.timeouts.udp == 60 * SECOND and policy.dynaddr == 0
    assert gateway.led_inside(TCP) == [22, 80, *range(2000, 2011), 8080]
    assert gateway.led_inside(UDP) == list(range(6970, 7171))
    assert gateway.host.protocols_kept == [47]
    assert gateway.host.reaches_proxies
    arrived = decode(passes(gateway.harness, OUTSIDE, tcp((PEER, 1), (GATEWAY_OUT, 80), "S", seq=1)))
    assert (arrived.destination, arrived.destination_port) == (address(HOST), 80)
    assert dropped(gateway.harness, INSIDE, tcp((HOST, 1), (PEER, 77), "S", seq=1)) == "input_denied"


@pytest.mark.parametrize("who", ["guard", "nft"])
def test_what_the_host_refuses_undoes_every_kind(gateway: PolicyGateway, who: str):
    gateway.host.refuses.add(who)
    refused(gateway, lambda: gateway.call("policy.change", lines=everything()), KernelError, f"the {who} refuses")


LAST = {
    "the endpoint of a forward that runs": (
        line("forwards.change", 9, changes=[{"action": "add", "forward": forward(f"{GATEWAY_OUT}:22")}]),
        (ConfigurationError, f"tcp {GATEWAY_OUT}:22: the same address and port as tcp eth1:22"),
    ),
    "the endpoint of a trigger": (
        line("forwards.change", 9, changes=[{"action": "add", "forward": forward("eth1:2005")}]),
        (ConfigurationError, "the same address and port"),
    ),
    "a forward that is there": (
        line("forwards.change", 9, changes=[{"action": "add", "forward": forward("eth1:22")}]),
        (ConfigurationError, "^file:9: tcp eth1:22: forwarded already"),
    ),
    "a mark without hosts": (
        line("marks.change", 9, changes=[marks.Change(action="delete", target=MarkTarget(mark=9))]),
        (ConfigurationError, "^file:9: mark 9"),
    ),
    "too many marks": (
        line(
            "marks.change", 9,
            changes=[marks.Change(action="add", target=MarkTarget(mark=mark, address=HOST)) for mark in range(1, 5000)],
        ),
        (CapacityError, "marks are forwarded: at most"),
    ),
    "too many redirects": (
        line(
            "redirects.change", 9,
            changes=[
                redirects.Change(action="set", redirect=Redirect(protocol=47, host=HOST, source=f"{PEER[:-2]}.{n}/32"))
                for n in range(256)
            ],
        ),
        (ConfigurationError, "^file:9: 257 redirects: at most"),
    ),
    "a target that does not exist": (
        line("rules.change", changes=[Change(do="append", chain="input", rule=Rule(target="nowhere"))]),
        (RuleError, "nowhere"),
    ),
    "a timeout that is none": (line("timeouts", 9, tcp=-1), (ConfigurationError, "^file:9: timeouts: ")),
    "a method that changes nothing": (line("status", 9), (ConfigurationError, "^file:9: 'status' does not change")),
}  # fmt: skip


@pytest.mark.parametrize("what", LAST)
def test_a_last_line_that_is_refused_undoes_those_before(gateway: PolicyGateway, what: str):
    last, (error, words) = LAST[what]
    refused(gateway, lambda: gateway.call("policy.change", lines=[*everything(), last]), error, words)


def test_an_optional_line_is_left_out(gateway: PolicyGateway):
    gone = [{"action": "delete", "forward": forward("eth1:9")}]
    lines = [*everything(), line("forwards.change", 9, optional=True, changes=gone)]
    answer = gateway.call("policy.change", lines=lines)
    assert answer["changes"] == 10
    [left_out] = answer["warnings"]
    assert left_out.startswith("file:9: left out: tcp eth1:9: no such forward")


def test_other_ports_are_given_back_when_the_guard_refuses(gateway: PolicyGateway):
    def change() -> None:
        old = gateway.gateway.policy()
        masquerade = msgspec.structs.replace(old.settings.masquerade, ports=PortRanges.read("50000-50010"))
        gateway.gateway.apply(old, replace(old, settings=msgspec.structs.replace(old.settings, masquerade=masquerade)))

    gateway.host.refuses.add("guard")
    refused(gateway, change, KernelError, "the guard refuses")
    gateway.host.refuses.add("reservation")
    with pytest.raises(KernelError, match="the reservation refuses"):
        change()
    gateway.host.refuses.clear()
    change()
    assert gateway.host.reserved.ports == PortRanges.read("50000-50010")
    assert decode(passes(gateway.harness, INSIDE, udp((HOST, 61000), (SERVER, 53), b"x"))).source_port // 100 == 500


def test_an_undo_that_is_refused_is_tried_again_at_the_next_look(gateway: PolicyGateway):
    before = state(gateway)
    gateway.host.refuses.add("guard")
    with pytest.raises(KernelError, match="the guard refuses"):
        gateway.call("policy.change", lines=everything())
    gateway.host.kept = {}
    gateway.host.refuses.clear()
    gateway.gateway.retry()
    assert state(gateway) == before


def test_a_rule_and_other_times_ask_nothing_of_the_guard(gateway: PolicyGateway):
    gateway.host.refuses.add("guard")
    gateway.call("rules.change", changes=[Change(do="append", chain="input", rule=DENY_77)])
    gateway.call("timeouts", tcp=600)
    gateway.call("dynaddr", value=1)
    assert dropped(gateway.harness, INSIDE, tcp((HOST, 1), (PEER, 77), "S", seq=1)) == "input_denied"


@pytest.mark.parametrize("what", ["guard", "nft"])
def test_each_second_it_is_tried_to_follow_where_something_refuses(gateway: PolicyGateway, what: str):
    gateway.host.refuses.add(what)
    with pytest.raises(KernelError, match=f"the {what} refuses"):
        gateway.move("200.200.200.201")
    for _ in range(2):
        with pytest.raises(KernelError, match=f"the {what} refuses"):
            gateway.gateway.retry()
    gateway.host.refuses.clear()
    gateway.gateway.retry()
    assert address("200.200.200.201") in gateway.host.kept
    gateway.host.refuses.add(what)
    gateway.gateway.retry()  # has nothing to do


def test_what_could_not_be_put_back_is_tried_again_each_second(gateway: PolicyGateway):
    gateway.gateway.retry()
    gateway.host.refuses.add("look")
    gateway.gateway.retry()
    with pytest.raises(KernelError, match="the look refuses"):
        gateway.gateway.look_after_host()
    with pytest.raises(KernelError, match="the look refuses"):
        gateway.gateway.retry()
    gateway.host.refuses.clear()
    gateway.gateway.retry()
    assert gateway.host.is_whole


def test_rules_that_stay_count_on_through_a_change_that_is_refused(gateway: PolicyGateway):
    gateway.call("rules.change", changes=[Change(do="append", chain="input", rule=DENY_77)])
    probe = tcp((HOST, 1), (PEER, 77), "S", seq=1)
    assert dropped(gateway.harness, INSIDE, probe) == "input_denied"
    gateway.host.refuses.add("guard")
    with pytest.raises(KernelError):
        gateway.call("policy.change", lines=everything())
    assert dropped(gateway.harness, INSIDE, probe) == "input_denied"
    [chain] = gateway.call("rules", chain="input")["chains"]
    assert [one["packets"] for one in chain["rules"]] == [2]


def test_turns_of_marks_that_a_change_leaves_alone_go_on_meanwhile(gateway: PolicyGateway):
    gateway.use(MARK_80)
    for host in (HOST, OTHER_HOST):
        gateway.call("marks.change", changes=[{"action": "add", "target": MarkTarget(mark=1, address=host, port=80)}])
    old = gateway.gateway.policy()
    passes(gateway.harness, OUTSIDE, tcp((PEER, 1), (GATEWAY_OUT, 80), "S", seq=1))
    new = marks.apply(old.marks, [marks.Change(action="add", target=MarkTarget(mark=2, address=HOST))])
    gateway.gateway.apply(old, replace(old, marks=new))
    assert [(one.mark, one.left) for one in gateway.gateway.marks.targets()] == [(1, 9), (1, 10), (2, 10)]


def test_the_guard_knows_of_a_port_before_sessions_are_led_there_and_as_long_as_they_are(gateway: PolicyGateway):
    opened: list[np.ndarray] = []
    keep = gateway.host.keep

    def look(local: list[int], external: dict[int, np.ndarray], protocols: set[int]) -> None:
        opened.append(dropped(gateway.harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 7000), b"x")))
        keep(local, external, protocols)

    gateway.host.keep = look
    gateway.call("triggers.change", changes=[triggers.Change(action="add", row=TRIGGERS[0])])
    passes(gateway.harness, INSIDE, tcp((HOST, 1025), (PEER, 7070), "S", seq=1))
    gateway.call("triggers.change", changes=[triggers.Change(action="clear")])
    assert opened == ["none", "none"], "not ours yet, and no longer"


def test_an_address_to_leave_with_that_the_link_has_not_is_said_once(
    gateway: PolicyGateway, caplog: pytest.LogCaptureFixture
):
    old = gateway.gateway.policy()
    masquerade = msgspec.structs.replace(old.settings.masquerade, addresses=Addresses([GATEWAY_OUT, "9.9.9.9"]))
    interfaces = Interfaces(inside=InterfaceNames(["eth0"]), outside=InterfaceName("eth1"))
    settings = msgspec.structs.replace(old.settings, masquerade=masquerade, interfaces=interfaces)
    gateway.gateway.apply(old, replace(old, settings=settings))
    said = "[masquerade] addresses: eth1 has no 9.9.9.9, so nobody leaves with it"
    assert caplog.messages == [said]
    assert gateway.gateway.missing_addresses() == ["9.9.9.9"]
    gateway.move(GATEWAY_OUT, "10.0.0.77")
    gateway.move("200.200.200.77")
    assert caplog.messages[1:] == [
        "eth1 has no address of [masquerade] addresses: no new sessions until it has",
        said.replace("9.9.9.9", GATEWAY_OUT),
    ]
    gateway.move(None)
    assert gateway.gateway.missing_addresses() == []


def test_a_port_that_a_program_has_just_bound_is_given_up_without_a_look_at_the_others(
    gateway: PolicyGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def kept(port: int) -> bool:
        return bool(gateway.host.kept[address(GATEWAY_OUT)][1][port])

    passes(gateway.harness, INSIDE, udp((HOST, 61001), (PEER, 53), b"?"))
    with monkeypatch.context() as unseen:
        unseen.setattr(gateway.host, "free_ports", lambda _: pytest.fail("looked at all sockets"))
        unseen.setattr(gateway.host, "keep", lambda *_: pytest.fail("told the guard"))
        gateway.gateway.give_up([(17, 53), (132, 61000), (6, 32768)])  # none of ours
    assert kept(61000) and kept(61001)
    with monkeypatch.context() as unseen:
        unseen.setattr(gateway.host, "free_ports", lambda _: pytest.fail("looked at all sockets"))
        gateway.gateway.give_up([(17, 61000), (17, 61001)])
    assert (kept(61000), kept(61001), kept(61002)) == (False, True, True)
    assert caplog.messages == ["udp port 61001: the host's now, which gets it when its sessions end"]
    passes(gateway.harness, OUTSIDE, udp((PEER, 53), (GATEWAY_OUT, 61001), b"!"))
    gateway.gateway.look()
    assert kept(61000), "the program has let it go"


def test_a_user_who_binds_one_of_our_ports_after_the_other_does_not_fill_the_log(
    gateway: PolicyGateway, caplog: pytest.LogCaptureFixture
):
    for port in range(61001, 61201):
        passes(gateway.harness, INSIDE, udp((HOST, port), (PEER, 53), b"?"))
        gateway.gateway.give_up([(17, port)])
    assert len(caplog.messages) == MOST_KINDS


def test_ports_that_sessions_keep_as_their_source_are_given_up_likewise(gateway: PolicyGateway):
    gateway.host.spare[:2, 1024:32768] = True
    direct = Trigger(kind="direct", protocol="udp", first=28800, last=28900)
    gateway.call("triggers.change", changes=[triggers.Change(action="add", row=direct)])
    gateway.gateway.give_up([(17, 5000)])
    assert not gateway.host.kept[address(GATEWAY_OUT)][1][5000]
    assert gateway.host.kept[address(GATEWAY_OUT)][1][5001]
