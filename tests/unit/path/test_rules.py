"""Packets meet the chains in the order and with the addresses of 1999 (T-1 to T-9), remembered verdicts or not."""

from __future__ import annotations

import ipaddress

import pytest

from fastmasq.policy.chains import Match, Rule, RuleSet
from tests.support.harness import HOWTO_ROUTES, Harness, address, unicast
from tests.support.packets import TCP, UDP, decode, icmp_error, tcp, udp
from tests.support.path_network import HERE, INSIDE, OUTSIDE, THERE, answer, dropped, only, passes, query, refused

PUBLIC = ("200.200.200.200", 4000)
REGISTERED = ("222.0.0.2", 4000)
ROUTED = [*HOWTO_ROUTES, ("222.0.0.0/24", unicast("inside"))]


def net(text: str) -> tuple[int, int]:
    network = ipaddress.IPv4Network(text)
    return int(network.network_address), int(network.netmask)


def rules(**policies: str) -> RuleSet:
    """Return a set with these policies; without one of forward, that chain is the built-in policy."""
    result = RuleSet(default_forward="forward" not in policies)
    for chain, policy in policies.items():
        result.set_policy(chain, policy)
    return result


def tight() -> RuleSet:
    """All policies DENY, and only UDP from and to the two ends accepted, by the addresses of T-1."""
    result = rules(input="DENY", forward="DENY", output="DENY")
    result.append(
        "input", Rule(match=Match(interface="eth0", source=net("10.0.0.2/32"), protocol=UDP), target="ACCEPT")
    )
    result.append("input", Rule(match=Match(interface="eth1", destination=net("200.200.200.200/32")), target="ACCEPT"))
    result.append("forward", Rule(match=Match(interface="eth1", source=net("10.0.0.2/32")), target="MASQ"))
    result.append("output", Rule(match=Match(interface="eth1", source=net("200.200.200.200/32")), target="ACCEPT"))
    result.append("output", Rule(match=Match(interface="eth0", destination=net("10.0.0.2/32")), target="ACCEPT"))
    return result


def harness_with(rule_set: RuleSet, *, cache: bool = True, **settings) -> Harness:
    harness = Harness(**settings)
    harness.set_rule_set(rule_set, cache=cache)
    return harness


@pytest.mark.parametrize("cache", [True, False])
def test_t1_each_chain_sees_its_addresses_and_interface_and_counts(cache):
    harness = harness_with(tight(), cache=cache)
    for _ in range(3):
        passes(harness, INSIDE, query(UDP))
        passes(harness, OUTSIDE, answer(UDP))
    out, back = 3 * len(query(UDP)), 3 * len(answer(UDP))
    assert harness.rule_counts() == {
        ("input", 1): (3, out),
        ("forward", 1): (3, out),
        ("output", 1): (3, out),
        ("input", 2): (3, back),
        ("output", 2): (3, back),
    }
    assert harness.rule_table.remembered == (2 if cache else 0)


def test_t2_masqueraded_replies_never_see_forward():
    harness = harness_with(tight())
    passes(harness, INSIDE, query(UDP))
    harness.set_rule_set(rules(forward="DENY"))
    passes(harness, OUTSIDE, answer(UDP))
    assert dropped(harness, INSIDE, query(UDP)) == "forward_denied"


@pytest.mark.parametrize(
    ("chain", "reason"), [("input", "input_denied"), ("forward", "forward_denied"), ("output", "output_denied")]
)
def test_t9_deny_says_nothing(chain, reason):
    harness = harness_with(rules(**{"forward": "MASQ", chain: "DENY"}))
    assert dropped(harness, INSIDE, query(UDP)) == reason


@pytest.mark.parametrize(("chain", "code"), [("input", 3), ("forward", 1), ("output", 1)])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_t9_reject_tells_the_sender(chain, code, protocol):
    harness = harness_with(rules(**{"forward": "MASQ", chain: "REJECT"}))
    reason, told = refused(harness, INSIDE, query(protocol))
    assert reason == f"{chain}_rejected"
    assert (told[20], told[21]) == (3, code)
    assert told[28:48] == query(protocol)[:20]


def test_t4_routed_packets_keep_their_addresses_in_both_directions():
    harness = harness_with(rules(forward="ACCEPT"), routes=ROUTED)
    assert decode(passes(harness, INSIDE, udp(REGISTERED, THERE))).source == address(REGISTERED[0])
    assert decode(passes(harness, OUTSIDE, udp(THERE, REGISTERED))).destination == address(REGISTERED[0])
    assert harness.sessions() == []


def test_t4_from_outside_nothing_is_routed_while_nobody_has_touched_forward():
    harness = harness_with(rules(output="REJECT"), routes=ROUTED)
    assert dropped(harness, OUTSIDE, udp(THERE, REGISTERED)) == "policy_refused"


def test_s26_a_session_whose_masq_rule_has_gone_leaves_as_the_chain_says():
    harness = harness_with(rules(forward="MASQ"))
    passes(harness, INSIDE, query(UDP))
    harness.set_rule_set(rules(forward="ACCEPT"))
    assert decode(passes(harness, INSIDE, query(UDP))).source == address(HERE[0])
    harness.set_rule_set(rules(forward="DENY"))
    assert dropped(harness, INSIDE, query(UDP)) == "forward_denied"


def test_t7_errors_about_masqueraded_flows_skip_forward():
    harness = harness_with(rules(forward="MASQ"))
    sent = passes(harness, INSIDE, query(UDP))
    harness.set_rule_set(rules(forward="DENY"))
    passes(harness, OUTSIDE, icmp_error("199.0.0.254", PUBLIC[0], 3, 1, sent))
    harness.set_rule_set(rules(forward="DENY", output="DENY"))
    assert dropped(harness, OUTSIDE, icmp_error("199.0.0.254", PUBLIC[0], 3, 1, sent)) == "output_denied"


@pytest.mark.parametrize("chain", ["input", "forward"])
def test_c22_a_denied_packet_does_not_touch_the_timer(chain):
    harness = harness_with(rules(forward="MASQ"))
    passes(harness, INSIDE, query(UDP))
    harness.set_rule_set(rules(**{"forward": "MASQ", chain: "DENY"}))
    harness.advance(200)
    dropped(harness, INSIDE, query(UDP))
    harness.advance(150)
    assert harness.sessions() == []


def test_a_changed_rule_holds_for_the_next_packet_of_a_live_session():
    harness = harness_with(tight())
    for _ in range(2):
        passes(harness, INSIDE, query(UDP))
    assert harness.rule_table.remembered
    changed = tight()
    changed.insert("output", Rule(match=Match(destination=net("199.0.0.1/32")), target="DENY"))
    harness.rule_table.load(harness.compiled)
    passes(harness, INSIDE, query(UDP))
    harness.set_rule_set(changed)
    assert dropped(harness, INSIDE, query(UDP)) == "output_denied"


def test_a_remembered_verdict_is_not_used_for_another_class_of_segment():
    rule_set = rules(forward="MASQ")
    rule_set.append(
        "input",
        Rule(match=Match(protocol=TCP, interface="eth0", syn=True, destination_ports=((81, 81),)), target="DENY"),
    )
    rule_set.append("input", Rule(match=Match(protocol=TCP, syn=True)))
    harness = harness_with(rule_set)
    passes(harness, INSIDE, tcp(HERE, THERE, "S", seq=1000))
    passes(harness, OUTSIDE, tcp(THERE, PUBLIC, "SA", seq=5000, ack=1001))
    for _ in range(4):
        passes(harness, INSIDE, tcp(HERE, THERE, "A", seq=1001, ack=5001))
    passes(harness, INSIDE, tcp(HERE, THERE, "S", seq=1000))
    assert harness.rule_counts()["input", 2][0] == 2


def test_s53_tos_is_rewritten_for_remembered_and_other_packets_alike():
    rule_set = rules(forward="MASQ")
    rule_set.append("output", Rule(match=Match(protocol=UDP, interface="eth1"), tos=(0x01, 0x10)))
    harness = harness_with(rule_set)
    for _ in range(3):
        assert decode(passes(harness, INSIDE, query(UDP, tos=0x08))).tos == 0x10


def test_s53_a_logging_rule_asks_for_a_line_for_every_packet():
    rule_set = rules(forward="MASQ")
    rule_set.append("input", Rule(match=Match(protocol=UDP), log=True))
    harness = harness_with(rule_set)
    for _ in range(3):
        passes(harness, INSIDE, query(UDP))
    records, suppressed = harness.rule_table.drain_log()
    assert len(records) == 3 and not suppressed
    assert harness.compiled.places[records[0]["row"]] == ("input", 1)
    for _ in range(200):
        passes(harness, INSIDE, query(UDP))
    records, suppressed = harness.rule_table.drain_log()
    assert len(records) + suppressed == 200 and suppressed >= 100


def test_packets_held_for_their_next_hop_are_counted_once():
    harness = Harness()
    harness.set_rule_set(tight())
    only(harness.send(INSIDE, query(UDP)))
    assert {place: packets for place, (packets, _) in harness.rule_counts().items()} == {
        ("input", 1): 1,
        ("forward", 1): 1,
        ("output", 1): 1,
    }


def test_s53_masq_towards_an_inside_network_lets_pass_as_it_is():
    harness = harness_with(rules(forward="MASQ"), routes=ROUTED)
    assert decode(passes(harness, OUTSIDE, udp(THERE, REGISTERED))).source == address(THERE[0])


def test_t5_the_hosts_own_packets_are_left_to_its_kernel():
    harness = harness_with(rules(input="DENY", forward="MASQ"))
    before = harness.forwarder.verdicts()["deliver"]
    assert harness.send(INSIDE, udp(HERE, ("10.0.0.1", 53))) == []
    assert harness.forwarder.verdicts()["deliver"] == before + 1
    assert harness.rule_counts() == {}


def test_t8_accounting_counts_a_packet_in_and_out():
    rule_set = rules()
    rule_set.append("acct", Rule(match=Match(direction="in", source=net("10.0.0.2/32"))))
    rule_set.append("acct", Rule(match=Match(direction="out", source=net("200.200.200.200/32"))))
    harness = harness_with(rule_set)
    for _ in range(3):
        passes(harness, INSIDE, query(UDP))
    counts = harness.rule_counts()
    assert counts["acct", 1][0] == counts["acct", 2][0] == 3
