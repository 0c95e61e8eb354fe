"""The format of ipchains-save, written and read back."""

from __future__ import annotations

import pytest

from fastmasq.errors import ConfigurationError
from fastmasq.legacy import save
from fastmasq.policy.chains import RuleSet
from fastmasq.policy.changes import Change, apply
from tests.support.legacy import NAMES, chains_after, rules_of

LINES = {
    "ipchains -A input": "-A input -s 0.0.0.0/0.0.0.0 -d 0.0.0.0/0.0.0.0",
    "ipchains -A input -p tcp -s 10.0.0.0/8 1024: -d 199.0.0.1 80 -i ppp+ -y -l -j ACCEPT": (
        "-A input -s 10.0.0.0/255.0.0.0 1024:65535 -d 199.0.0.1/255.255.255.255 80:80 -i ppp+ -p 6 -y -l -j ACCEPT"
    ),
    "ipchains -A input -p ! udp -s ! 10.0.0.1 -d ! 10.0.0.2 -i ! eth0 ! -f -j DENY": (
        "-A input -s ! 10.0.0.1/255.255.255.255 -d ! 10.0.0.2/255.255.255.255 -i ! eth0 -p ! 17 ! -f -j DENY"
    ),
    "ipchains -A input -p udp -s 0/0 ! 53 -m 5 -o 99 -t 01 10 -j REDIRECT 53": (
        "-A input -s 0.0.0.0/0.0.0.0 ! 53:53 -d 0.0.0.0/0.0.0.0 -p 17 -o 99 -m 5 -t 0x01 0x10 -j REDIRECT 53"
    ),
    "ipchains -A input -p tcp ! -y -f -m +7 -o": None,
    "ipchains -A input -p icmp --icmp-type frag -j REJECT": (
        "-A input -s 0.0.0.0/0.0.0.0 3:3 -d 0.0.0.0/0.0.0.0 4:4 -p 1 -j REJECT"
    ),
    "ipchains -A input -m -1 -j RETURN": ("-A input -s 0.0.0.0/0.0.0.0 -d 0.0.0.0/0.0.0.0 -m +4294967295 -j RETURN"),
}


@pytest.mark.parametrize(("line", "saved"), [item for item in LINES.items() if item[1]])
def test_rules_are_written_as_commands(line, saved):
    (rule,) = rules_of(chains_after(line), "input")
    assert save.rule_line("input", rule) == saved


@pytest.mark.parametrize("options", ["-b", "-k -P tcp", "-V 10.0.0.1", "-P tcp -D any/0 1 2"])
def test_what_only_ipfwadm_can_say_is_refused(options):
    (rule,) = rules_of(chains_after(f"ipfwadm -I -a accept {options}"), "input")
    with pytest.raises(ConfigurationError, match="chain input: a rule of ipfwadm with"):
        save.rule_line("input", rule)


def saved(rules: RuleSet) -> list[str]:
    chains = save.savable([*rules.chains.values(), rules.accounting])
    lines = [save.policy_line(chain) for chain in chains]
    return lines + [save.rule_line(chain.name, counted.rule) for chain in chains for counted in chain.rules]


def everything() -> RuleSet:
    return chains_after(
        "ipchains -P forward MASQ", "ipchains -N vpn", "ipchains -A input -j vpn", "ipchains -A vpn -p 47 -j ACCEPT",
        *(line for line, text in LINES.items() if text),
    )  # fmt: skip


def test_what_was_saved_is_restored():
    rules = everything()
    changes, restored, skipped = save.restore(saved(rules), NAMES, ["input", "forward", "output"], lambda name: False)
    again = apply(RuleSet(), changes)
    assert again.chains == rules.chains
    assert (restored, skipped) == (["input", "forward", "output", "vpn"], [])
    assert saved(again)[:4] == [":input ACCEPT", ":forward MASQ", ":output ACCEPT", ":vpn -"]


def test_a_user_chain_that_is_there_is_skipped_or_flushed():
    rules = everything()
    before = chains_after("ipchains -N vpn", "ipchains -A vpn -j DENY")
    for flush, targets in ((False, ["DENY"]), (True, ["ACCEPT"])):
        changes, restored, skipped = save.restore(saved(rules), NAMES, list(before.chains), {"vpn": flush}.get)
        assert ("vpn" in restored, "vpn" in skipped) == (flush, not flush)
        assert [rule.target for rule in rules_of(apply(before, changes), "vpn")] == targets


def test_full_masks_and_prefix_lengths_are_read():
    lines = ["-A input -s 10.0.0.0/8 500:500 -d 0/0 500 -p 17 -j ACCEPT", "# comment", ""]
    (change,) = save.restore(lines, NAMES, [], lambda name: False)[0]
    assert isinstance(change, Change)
    assert change.rule.match.source_ports == change.rule.match.destination_ports == ((500, 500),)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("COMMIT", "line 1: 'COMMIT' is not a line of ipchains-save"),
        ("-A input -j", "line 1: ipchains: option requires an argument -- j"),
    ],
)
def test_other_lines_are_refused(line, said):
    with pytest.raises(ConfigurationError) as caught:
        save.restore([line], NAMES, [], lambda name: False)
    assert str(caught.value) == said
