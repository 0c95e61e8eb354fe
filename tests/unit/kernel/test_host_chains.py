"""The translation of chains to nftables: what cannot be enforced is announced, and names and conditions are spelled."""

from __future__ import annotations

import pytest

from fastmasq.kernel.host_rules.chains import CounterKey, Translation, asks_nothing, translate
from fastmasq.kernel.host_rules.match import conditions
from fastmasq.kernel.host_rules.unsolicited import HOOK, Gate
from fastmasq.policy.chains import ACCEPT, DENY, FORWARD, INPUT, OUTPUT, REDIRECT, REJECT, RETURN, Match, Rule, RuleSet

ADDRESSES = {"lo": (0x7F000001,), "eth1": (0xC8C8C8C8, 0xC8C8C8C9), "ppp0": (0xC8C8C8C8,)}
NOT_ENFORCED = "rule 1 of chain {}: not enforced on the host's own packets: "


def name_of(key: CounterKey) -> str:
    return f"{key[0]}.{key[2]}"


def translated(rules: RuleSet) -> Translation:
    return translate(rules, ADDRESSES, name_of)


@pytest.mark.parametrize(
    ("chain", "rule", "said"),
    [
        (
            INPUT,
            Rule(match=Match(protocol=6), target=REDIRECT),
            "REDIRECT of packets to the host itself (they are accepted)",
        ),
        (INPUT, Rule(mark=("add", 1)), "adding to a mark (setting one is)"),
        (INPUT, Rule(output=100), "copying to listeners (-o)"),
        (OUTPUT, Rule(tos=(0xFF, 0x10)), "a TOS that depends on the packet's own, or sets its lowest two bits"),
        (OUTPUT, Rule(tos=(0x01, 0x02)), "a TOS that depends on the packet's own, or sets its lowest two bits"),
        (OUTPUT, Rule(match=Match(fragment=True)), "-f in output: datagrams are judged before they are cut"),
        (INPUT, Rule(match=Match(interface='e"0')), "interface 'e\"0'"),
    ],
)
def test_what_cannot_be_enforced_is_announced(chain: str, rule: Rule, said: str) -> None:
    rules = RuleSet()
    rules.append(chain, rule)
    assert translated(rules).not_enforced == [NOT_ENFORCED.format(chain) + said]


def test_what_can_be_enforced_is_not_announced() -> None:
    rules = RuleSet()
    rules.append(INPUT, Rule(match=Match(fragment=True), target=DENY, log=True, mark=("set", 7)))
    rules.append(OUTPUT, Rule(match=Match(protocol=6), target=REDIRECT, tos=(0x01, 0x10)))
    result = translated(rules)
    assert result.not_enforced == []

    fragment = "ip frag-off & 0x1fff != 0"
    assert result.chains["input_input"] == [
        f'{fragment} limit rate 10/second burst 20 packets log prefix "Packet log: input DENY #1 " level info',
        f'{fragment} counter name "input.0" meta mark set 7 drop',
    ]
    assert result.chains["output_output"] == ['ip protocol 6 counter name "output.0" ip dscp set 4 accept']


@pytest.mark.parametrize(
    ("count", "named"), [(1, "rule 1"), (2, "rules 1 and 2"), (3, "rules 1, 2 and 3"), (9, "rules 1, 2, 3 and 6 more")]
)
def test_many_rules_that_are_not_enforced_are_one_line(count: int, named: str) -> None:
    rules = RuleSet()
    for _ in range(count):
        rules.append("input", Rule(match=Match(protocol=6), target="REDIRECT"))
    [line] = translated(rules).not_enforced
    assert line.startswith(f"{named} of chain input: not enforced on the host's own packets: REDIRECT")


def test_nothing_is_asked_of_nftables_where_all_is_accepted() -> None:
    rules = RuleSet()
    rules.set_policy(FORWARD, DENY)
    assert asks_nothing(rules)
    assert translated(rules) == Translation()
    rules.set_policy(OUTPUT, REJECT)
    assert not asks_nothing(rules)
    assert list(translated(rules).hooks) == [OUTPUT]


def test_a_gate_is_behind_rules_where_there_are_any() -> None:
    gate = Gate(
        ["eth1", "mac0"], tcp=[(22, 22), (80, 90)], udp=[(53, 53)], protocols=[50], ping=True,
        known=[("199.0.0.1", 443, 20000)],
    )  # fmt: skip
    rules = RuleSet()
    result = translate(rules, ADDRESSES, name_of, gate=gate)
    assert result.hooks == {"unsolicited": HOOK}
    assert result.chains["unsolicited"] == [
        'iifname != { "eth1", "mac0" } accept',
        "ct state { established, related } accept",
        "ip saddr . tcp sport . tcp dport { 199.0.0.1 . 443 . 20000 } accept",
        "udp sport 67 udp dport 68 accept",
        "tcp dport { 22, 80-90 } accept",
        "udp dport { 53 } accept",
        "ip protocol { 50 } accept",
        "icmp type echo-request accept",
        "drop",
    ]
    rules.append(INPUT, Rule(match=Match(protocol=6), target=ACCEPT))
    result = translate(rules, ADDRESSES, name_of, gate=Gate(["eth1"]))
    assert result.chains["unsolicited"][1] == "meta priority fa57:1 accept"
    assert result.chains["input_input"] == ['ip protocol 6 counter name "input.0" meta priority set fa57:1 accept']
    assert result.chains["input"][-1] == 'counter name "input.0" accept', "the policy decides nothing"


def test_a_packet_that_fits_two_ways_is_counted_once() -> None:
    rules = RuleSet()
    rules.new_chain("a-b")
    either = Match(protocol=17, source_ports=((53, 53), (1, 99)))
    for target in ("", "a-b", RETURN):
        rules.append(INPUT, Rule(match=either, target=target))
    result = translated(rules)
    assert result.chains["input_input"][:2] == ["jump input_input.1any", "jump input_input.2any"]
    assert [line.rpartition('" ')[2] for line in result.chains["input_input"][2:]] == ["return", "return"]
    assert [line.rpartition('" ')[2] for line in result.chains["input_input.1any"]] == ["return", "return"]
    assert {line.rpartition('" ')[2] for line in result.chains["input_input.2any"]} == {"goto input_a_2db"}


def test_a_loop_is_cut_where_it_would_close() -> None:
    rules = RuleSet()
    for name in "ab":
        rules.new_chain(name)
    rules.append("a", Rule(target="b"))
    rules.append("b", Rule(target="a"))
    rules.append(INPUT, Rule(target="a"))
    rules.append(INPUT, Rule(target="b"))
    chains = translated(rules).chains
    ends = {
        name: chains[name][-1].rpartition('" ')[2]
        for name in chains
        if name.startswith("input_") and name != "input_input"
    }
    assert ends == {
        "input_a": "jump input_b",
        "input_b": "drop",
        "input_b.1": "jump input_a.1",
        "input_a.1": "drop",
    }


@pytest.mark.parametrize(
    ("match", "spelled"),
    [
        (Match(), [""]),
        (Match(source=(0x0A000000, 0xFF000000), not_source=True), ["ip saddr != 10.0.0.0/8"]),
        (Match(destination=(0x0A000100, 0xFF00FF00)), ["ip daddr & 255.0.255.0 == 10.0.1.0"]),
        (Match(not_destination=True), []),
        (Match(interface="ppp+"), ['iifname "ppp*"']),
        (Match(interface="+", not_interface=True), []),
        (Match(interface="a-name-too-long0", not_interface=True), [""]),
        (Match(interface_address=0xC8C8C8C8), ['iifname "eth1"', 'iifname "ppp0"']),
        (Match(interface_address=0xC8C8C8C8, interface="eth+"), ['iifname "eth1"']),
        (Match(interface_address=0xC8C8C8CA), []),
        (Match(protocol=300, not_protocol=True), [""]),
        (Match(protocol=1, source_ports=((0, 300),)), ["ip protocol 1 ip frag-off & 0x1fff == 0"]),
        (Match(protocol=6, syn=True, fragment=True), []),
        (
            Match(protocol=17, source_ports=((53, 53),), swapped_too=True),
            [
                "ip protocol 17 ip frag-off & 0x1fff == 0 th sport 53",
                "ip protocol 17 ip frag-off & 0x1fff == 0 th dport 53",
            ],
        ),
        (
            Match(ack=True),
            ["ip protocol 6 ip frag-off & 0x1fff == 0 tcp flags & (ack | rst) != 0", "ip protocol != 6"],
        ),
    ],
)
def test_conditions(match: Match, spelled: list[str]) -> None:
    assert conditions(match, arriving=True, addresses=ADDRESSES) == spelled


def test_the_leaving_interface_counts_in_output() -> None:
    rules = RuleSet()
    rules.append(OUTPUT, Rule(match=Match(interface="eth1"), target=ACCEPT))
    assert translated(rules).chains["output_output"] == ['oifname "eth1" counter name "output.0" accept']
