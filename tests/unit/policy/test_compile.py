"""Policy compiled to rows: what the rows say, and what the path makes of them."""

from __future__ import annotations

import pytest

from fastmasq.path.world import ACTIONS, ANY_SIDE, INSIDE, OUTSIDE, RULE
from fastmasq.policy.compile import DEFAULT_POLICY, Rule, compile_rules
from fastmasq.wire.numbers import UDP
from tests.support.harness import Harness
from tests.support.packets import ping, tcp, udp

HERE, THERE = ("10.0.0.2", 4000), ("199.0.0.1", 53)
SERVER = (0xC7000001, 0xC7000001)


def fate(rules: tuple[Rule, ...], packet: bytes) -> str:
    """Return what becomes of a packet from inside: the source it leaves with, the reason of its drop, or an answer."""
    harness = Harness(rules=rules)
    out = harness.send("inside", packet)
    dropped = next(iter(harness.drops()), "")
    if not out:
        return dropped
    source = ".".join(map(str, out[0].packet[12:16]))
    return f"{dropped}, answered" if out[0].link == "inside" else source


def test_a_row_for_each_rule_in_order() -> None:
    rows = compile_rules((Rule("refuse", (1, 2), (3, 4), UDP, INSIDE), Rule("drop")))
    assert rows.dtype == RULE
    assert rows[0].tolist()[:7] == (1, 2, 3, 4, UDP, INSIDE, ACTIONS["refuse"])
    assert rows[1].tolist()[:7] == (0, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0, ANY_SIDE, ACTIONS["drop"])


def test_an_unknown_action_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        compile_rules((Rule("accept"),))


def test_the_default_policy_masquerades_outwards() -> None:
    for packet in (udp(HERE, THERE), tcp(HERE, THERE, "S"), ping("10.0.0.2", "199.0.0.1", 7)):
        assert fate(DEFAULT_POLICY, packet) == "200.200.200.200"


def test_no_rule_is_a_drop() -> None:
    assert fate((), udp(HERE, THERE)) == "policy_refused"


def test_the_first_match_decides() -> None:
    masquerade = Rule("masquerade", out_side=OUTSIDE)
    assert fate((Rule("drop", protocol=UDP), masquerade), udp(HERE, THERE)) == "policy_refused"
    assert fate((masquerade, Rule("drop", protocol=UDP)), udp(HERE, THERE)) == "200.200.200.200"
    assert fate((Rule("drop", protocol=UDP), masquerade), tcp(HERE, THERE, "S")) == "200.200.200.200"


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (Rule("drop", destination=SERVER), True),
        (Rule("drop", destination=(0xC7000002, 0xC70000FF)), False),
        (Rule("drop", source=(0x0A000000, 0x0A000002)), True),
        (Rule("drop", source=(0x0A000003, 0x0AFFFFFF)), False),
        (Rule("drop", out_side=INSIDE), False),
        (Rule("drop", out_side=OUTSIDE), True),
        (Rule("drop", protocol=6), False),
    ],
)
def test_every_field_is_part_of_the_match(rule: Rule, matches: bool) -> None:
    assert fate((rule, Rule("masquerade")), udp(HERE, THERE)) == ("policy_refused" if matches else "200.200.200.200")


def test_a_refusal_is_answered_and_a_drop_is_not() -> None:
    assert fate((Rule("refuse"),), udp(HERE, THERE)) == "policy_refused, answered"
    assert fate((Rule("drop"),), udp(HERE, THERE)) == "policy_refused"


def test_routed_packets_keep_their_source() -> None:
    assert fate((Rule("route"),), udp(HERE, THERE)) == "10.0.0.2"
