"""Several changes to a rule set happen together or not at all."""

from __future__ import annotations

import msgspec
import pytest

from fastmasq.errors import ConfigurationError
from fastmasq.policy.chains import Match, Rule, RuleError, RuleSet
from fastmasq.policy.changes import Change, apply

WEB = Rule(match=Match(protocol=6, destination_ports=((80, 80),)), target="ACCEPT")


def changes(*described: dict) -> list[Change]:
    return msgspec.convert(list(described), list[Change])


def test_every_change_has_its_effect_and_the_old_set_stays():
    before = RuleSet()
    after = apply(
        before,
        changes(
            {"do": "new_chain", "chain": "vpn"},
            {"do": "append", "chain": "vpn", "rule": {"target": "ACCEPT"}},
            {"do": "append", "chain": "input", "rule": {"target": "vpn"}},
            {"do": "insert", "chain": "input", "rule": msgspec.to_builtins(WEB)},
            {"do": "insert", "chain": "input", "rule": {"target": "DENY"}, "number": 3},
            {"do": "replace", "chain": "vpn", "rule": {"target": "REJECT"}, "number": 1},
            {"do": "policy", "chain": "forward", "target": "DENY"},
        ),
    )
    assert [counted.rule.target for counted in after.chain("input").rules] == ["ACCEPT", "vpn", "DENY"]
    assert after.chain("input").rules[0].rule == WEB
    assert [counted.rule.target for counted in after.chain("vpn").rules] == ["REJECT"]
    assert after.chain("forward").policy == "DENY"
    assert not after.default_forward
    assert list(before.chains) == ["input", "forward", "output"]
    assert not before.chain("input").rules
    emptied = apply(
        after,
        changes(
            {"do": "delete_equal", "chain": "input", "rule": msgspec.to_builtins(WEB)},
            {"do": "delete", "chain": "input", "number": 2},
            {"do": "flush"},
            {"do": "zero"},
            {"do": "delete_chain"},
        ),
    )
    assert not emptied.chain("input").rules
    assert "vpn" not in emptied.chains
    assert emptied.generation > after.generation > before.generation


@pytest.mark.parametrize(
    "kept",
    [
        {"do": "flush"},
        {"do": "flush", "chain": "forward"},
        {"do": "delete_chain"},
        {"do": "zero", "chain": "forward"},
        {"do": "policy", "chain": "forward", "target": "ACCEPT"},
    ],
    ids=str,
)
def test_what_leaves_the_chain_forward_as_it_is_keeps_the_built_in_policy(kept):
    assert apply(RuleSet(), changes(kept)).default_forward
    assert not apply(RuleSet(default_forward=False), changes(kept)).default_forward


@pytest.mark.parametrize(
    "ends",
    [
        {"do": "append", "chain": "forward", "rule": {"target": "ACCEPT"}},
        {"do": "insert", "chain": "forward", "rule": {"target": "DENY"}},
        {"do": "policy", "chain": "forward", "target": "DENY"},
        {"do": "policy", "chain": "forward", "target": "REJECT"},
        {"do": "policy", "chain": "forward", "target": "MASQ"},
    ],
    ids=str,
)
def test_a_rule_or_another_policy_ends_it_and_reset_gives_it_back(ends):
    ended = apply(RuleSet(), changes(ends, {"do": "flush"}, {"do": "policy", "chain": "forward", "target": "ACCEPT"}))
    assert not ended.default_forward
    again = apply(ended, changes({"do": "append", "chain": "input", "rule": {"target": "DENY"}}, {"do": "reset"}))
    assert again.default_forward
    assert (again.chain("forward").policy, again.chain("forward").rules) == ("ACCEPT", [])
    assert len(again.chain("input").rules) == 1, "other chains stay"
    assert again.generation > ended.generation


def test_one_that_fails_undoes_them_all():
    rules = RuleSet()
    with pytest.raises(RuleError) as caught:
        apply(
            rules,
            changes({"do": "append", "chain": "input", "rule": {}}, {"do": "delete", "chain": "input", "number": 2}),
        )
    assert caught.value.reason == "no rule"
    assert not rules.chain("input").rules
    assert rules.generation == RuleSet().generation


def test_a_change_that_lacks_something_says_what():
    with pytest.raises(ConfigurationError, match="change 'append' needs 'rule'"):
        apply(RuleSet(), [Change(do="append", chain="input")])


@pytest.mark.parametrize(
    "described",
    [{"do": "adorn"}, {"do": "flush", "chian": "input"}, {"do": "append", "chain": "input", "rule": {"tos": 1}}],
)
def test_what_is_no_change_is_refused(described):
    with pytest.raises(msgspec.ValidationError):
        changes(described)


def test_what_an_old_set_counts_late_is_not_lost_to_the_new_one():
    rules = RuleSet()
    rules.append("input", WEB)
    rules.append("input", WEB)
    changed = apply(rules, changes({"do": "delete", "chain": "input", "number": 1}))
    zeroed = apply(rules, changes({"do": "zero"}))
    rules.chain("input").rules[1].packets += 1
    assert changed.chain("input").rules[0].packets == 1
    assert zeroed.chain("input").rules[1].packets == 0
