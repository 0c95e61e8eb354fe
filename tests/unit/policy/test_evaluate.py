"""The chains' semantics, one rule of the 1999 systems at a time (original-systems 5.1 to 5.3)."""

from __future__ import annotations

import ipaddress

import pytest

from fastmasq.policy.chains import Match, Rule, RuleError, RuleSet
from fastmasq.policy.evaluate import LOOP, Decision, Packet, Step, evaluate
from tests.support.harness import address


def network(text: str) -> tuple[int, int]:
    parsed = ipaddress.IPv4Network(text)
    return int(parsed.network_address), int(parsed.netmask)


def packet(protocol: int = 6, source_port: int = 1025, destination_port: int = 1723, **fields) -> Packet:
    return Packet(
        source=address("10.0.0.2"),
        destination=address("199.0.0.1"),
        protocol=protocol,
        source_port=source_port,
        destination_port=destination_port,
        **{"interface": "eth1", **fields},
    )


def verdict_of(match: Match, probe: Packet, chain: str = "input") -> bool:
    """Whether a packet fits a match."""
    rules = RuleSet()
    rules.append(chain, Rule(match=match, target="DENY"))
    return evaluate(rules, chain, probe).verdict == "DENY"


def user_chain(*rules: Rule, base: str = "forward") -> RuleSet:
    """Return rules in a user chain "mine", which the first rule of a built-in chain jumps to."""
    result = RuleSet()
    result.new_chain("mine")
    for rule in rules:
        result.append("mine", rule)
    result.append(base, Rule(target="mine"))
    return result


def test_s53_an_empty_chain_has_its_policy():
    rules = RuleSet()
    assert evaluate(rules, "input", packet()).verdict == "ACCEPT"
    rules.set_policy("forward", "MASQ")
    assert evaluate(rules, "forward", packet()) == Decision(verdict="MASQ", steps=[Step("forward", 0, "MASQ")])


def test_s53_the_first_match_decides_and_counting_rules_do_not():
    rules = RuleSet()
    rules.append("input", Rule(match=Match(protocol=17), target="REJECT"))
    rules.append("input", Rule())
    rules.append("input", Rule(match=Match(protocol=6), target="DENY"))
    rules.append("input", Rule(target="ACCEPT"))
    decision = evaluate(rules, "input", packet())
    assert decision.verdict == "DENY"
    assert decision.steps == [Step("input", 2, ""), Step("input", 3, "DENY")]


def test_s53_a_user_chain_is_left_at_its_end_and_by_return():
    rules = user_chain(
        Rule(match=Match(protocol=17), target="RETURN"), Rule(match=Match(protocol=6), target="MASQ"), base="forward"
    )
    rules.append("forward", Rule(target="REJECT"))
    assert evaluate(rules, "forward", packet()).verdict == "MASQ"
    assert evaluate(rules, "forward", packet(17)).steps == [
        Step("forward", 1, "mine"),
        Step("mine", 1, "RETURN"),
        Step("forward", 2, "REJECT"),
    ]
    assert evaluate(rules, "forward", packet(47)).steps == [Step("forward", 1, "mine"), Step("forward", 2, "REJECT")]


def test_s53_return_in_a_built_in_chain_meets_the_policy():
    rules = RuleSet()
    rules.set_policy("output", "DENY")
    rules.append("output", Rule(target="RETURN"))
    rules.append("output", Rule(target="ACCEPT"))
    assert evaluate(rules, "output", packet()).verdict == "DENY"


def test_s53_masq_and_redirect_mean_something_else_where_they_are_not_allowed():
    masq = Rule(target="MASQ")
    redirect = Rule(match=Match(protocol=6), target="REDIRECT", redirect_port=8080)
    assert evaluate(user_chain(masq, base="input"), "input", packet()).verdict == "ACCEPT"
    assert evaluate(user_chain(masq, base="output"), "output", packet()).verdict == "ACCEPT"
    assert evaluate(user_chain(redirect, base="forward"), "forward", packet()).verdict == "DENY"
    assert evaluate(user_chain(redirect, base="output"), "output", packet()).verdict == "ACCEPT"
    decision = evaluate(user_chain(redirect, base="input"), "input", packet())
    assert (decision.verdict, decision.redirect_port) == ("REDIRECT", 8080)


def test_s53_a_loop_is_found_and_the_packet_caught_in_it():
    rules = user_chain(base="input")
    rules.new_chain("other")
    rules.append("mine", Rule(target="other"))
    rules.append("other", Rule(target="mine"))
    assert evaluate(rules, "input", packet()).verdict == LOOP


def test_s53_a_chain_may_be_jumped_to_twice_when_it_has_been_left():
    rules = user_chain(Rule(), base="input")
    rules.append("input", Rule(target="mine"))
    assert evaluate(rules, "input", packet()).verdict == "ACCEPT"


def test_s53_a_user_chain_by_itself_lets_a_packet_pass_through():
    assert evaluate(user_chain(), "mine", packet()).verdict == "RETURN"
    with pytest.raises(RuleError, match="no chain"):
        evaluate(RuleSet(), "nobody", packet())


def test_s53_marks_and_tos_apply_at_every_match():
    rules = RuleSet()
    rules.append("input", Rule(mark=("set", 7), tos=(0x01, 0x10)))
    rules.append("input", Rule(match=Match(protocol=17), mark=("set", 99)))
    rules.append("input", Rule(mark=("add", 0xFFFFFFFE), tos=(0xFF, 0x08), target="ACCEPT"))
    decision = evaluate(rules, "input", packet(tos=0x04))
    assert (decision.mark, decision.tos) == (5, 0x18)


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        (Match(source=network("10.0.0.0/8")), True),
        (Match(source=network("10.0.0.0/8"), not_source=True), False),
        (Match(destination=network("10.0.0.0/8")), False),
        (Match(destination=network("10.0.0.0/8"), not_destination=True), True),
        (Match(protocol=6), True),
        (Match(protocol=6, not_protocol=True), False),
        (Match(source_ports=((1025, 1025),)), True),
        (Match(protocol=6, destination_ports=((20, 21), (1723, 1723))), True),
        (Match(protocol=6, destination_ports=((20, 21),)), False),
        (Match(protocol=6, destination_ports=((20, 21),), not_destination_ports=True), True),
        (Match(interface="eth1"), True),
        (Match(interface="eth10"), False),
        (Match(interface="eth+"), True),
        (Match(interface="+"), True),
        (Match(interface="ppp+"), False),
        (Match(interface="eth+", not_interface=True), False),
        (Match(interface_address=address("200.200.200.200")), True),
        (Match(interface_address=address("200.200.200.201")), False),
        (Match(direction="in"), True),
        (Match(direction="out"), False),
    ],
)
def test_s53_what_fits(match, fits):
    assert verdict_of(match, packet(interface_address=address("200.200.200.200"))) is fits


def test_s52_a_bidirectional_rule_also_fits_with_both_ends_exchanged():
    match = Match(source=network("199.0.0.1/32"), source_ports=((1723, 1723),), protocol=6, swapped_too=True)
    assert verdict_of(match, packet())
    assert not verdict_of(match, packet(destination_port=1724))
    ping = Match(source=network("199.0.0.1/32"), source_ports=((8, 8),), protocol=1, swapped_too=True)
    assert verdict_of(ping, packet(1, 8, 0))
    assert not verdict_of(ping, packet(1, 0, 8))


@pytest.mark.parametrize(
    ("syn", "ack", "opens", "answers"),
    [(True, False, True, False), (False, False, False, True), (None, True, False, True)],
)
def test_s52_syn_and_ack(syn, ack, opens, answers):
    match = Match(syn=syn, ack=ack)
    assert verdict_of(match, packet(syn=True)) is opens
    assert verdict_of(match, packet(ack=True)) is answers
    assert verdict_of(match, packet(17)), "only TCP has flags to ask for"


def test_s53_a_fragment_fits_no_rule_that_asks_for_ports_or_flags():
    probe = packet(fragment=True, source_port=0, destination_port=0)
    assert verdict_of(Match(protocol=6), probe)
    assert verdict_of(Match(protocol=6, source_ports=((0, 0xFFFF),)), probe)
    assert not verdict_of(Match(protocol=6, source_ports=((0, 100),)), probe)
    assert not verdict_of(Match(protocol=6, source_ports=((1, 100),), not_source_ports=True), probe)
    assert not verdict_of(Match(protocol=6, syn=True), probe)
    assert not verdict_of(Match(protocol=6, syn=False), probe)
    assert verdict_of(Match(fragment=True), probe)
    assert not verdict_of(Match(fragment=True), packet())
    assert verdict_of(Match(fragment=False), packet())


def test_s53_protocols_without_ports_fit_no_rule_that_asks_for_them():
    assert not verdict_of(Match(source_ports=((0, 100),)), packet(47, 0, 0))
    assert verdict_of(Match(source_ports=((0, 0xFFFF),)), packet(47, 0, 0))
