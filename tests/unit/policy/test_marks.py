"""Forwards by mark as data: changes, and the ports that rules mark packets to."""

from __future__ import annotations

import numpy as np
import pytest

from fastmasq.errors import ConfigurationError
from fastmasq.policy.chains import Match, Rule, RuleSet
from fastmasq.policy.marking import marked_ports
from fastmasq.policy.marks import Change, MarkTarget, apply, check, rows_by_mark, targets_of

TCP, UDP = 0, 1


def marking(*rules: Rule, **user_chains: tuple[Rule, ...]) -> RuleSet:
    rule_set = RuleSet()
    for name, inner in user_chains.items():
        rule_set.new_chain(name)
        for rule in inner:
            rule_set.append(name, rule)
    for rule in rules:
        rule_set.append("input", rule)
    return rule_set


def to(*ranges: tuple[int, int], protocol: int = 6, mark=("set", 1), target: str = "ACCEPT", **match) -> Rule:
    return Rule(match=Match(protocol=protocol, destination_ports=ranges, **match), mark=mark, target=target)


def ports(rules: RuleSet, *marks: int) -> tuple[list[int], list[int]]:
    found = marked_ports(rules, marks or (1,))
    return np.flatnonzero(found[TCP]).tolist(), np.flatnonzero(found[UDP]).tolist()


def test_the_ports_a_rule_names_count_for_its_protocols():
    assert ports(marking(to((80, 81)))) == ([80, 81], [])
    assert ports(marking(to((53, 53), protocol=17))) == ([], [53])
    assert ports(marking(to((53, 53), protocol=0))) == ([53], [53])
    assert ports(marking(to((53, 53), (80, 80), protocol=6, not_protocol=True))) == ([], [53, 80])


def test_only_rules_that_set_a_mark_in_use_count_and_all_that_add():
    rules = marking(to((80, 80), mark=("set", 2)), to((81, 81), mark=None), to((82, 82), mark=("add", 5)))
    assert ports(rules) == ([82], [])
    assert ports(rules, 2) == ([80, 82], [])
    assert ports(RuleSet()) == ([], [])
    assert not marked_ports(rules, ()).any()


def test_rules_that_name_no_ports_or_too_many_reserve_none():
    for rule in (
        to(),
        to((0, 65535)),
        to((1024, 65535)),
        to((80, 80), not_destination_ports=True),
    ):
        assert ports(marking(rule)) == ([], [])
    assert len(ports(marking(to((2000, 3023))))[0]) == 1024


def test_a_user_chain_marks_what_reaches_it():
    jump = Rule(match=Match(protocol=6, destination_ports=((80, 89),)), target="web")
    inner = (to(protocol=0), to((85, 95), mark=("set", 2)))
    assert ports(marking(jump, web=inner), 1) == (list(range(80, 90)), [])
    assert ports(marking(jump, web=inner), 2) == (list(range(85, 90)), [])
    assert ports(marking(web=inner)) == ([], [])


def test_a_loop_of_chains_ends():
    jump = Rule(match=Match(protocol=6, destination_ports=((80, 80),)), target="web")
    assert ports(marking(jump, web=(Rule(target="web"), to()))) == ([80], [])


def test_rows_of_the_path_and_back():
    targets = (MarkTarget(mark=1, address="10.0.0.2", port=80), MarkTarget(mark=2, address="10.0.0.3", preference=0))
    rows = rows_by_mark(targets)
    assert rows == {1: [(0x0A000002, 80, 10, 10)], 2: [(0x0A000003, 0, 0, 0)]}
    assert rows_by_mark(targets_of(rows)) == rows


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (MarkTarget(mark=0, address="10.0.0.2"), "marks run from 1"),
        (MarkTarget(mark=1, address="10.0.0.2", port=65536), "ports run from 1"),
        (MarkTarget(mark=1, address="10.0.0.2", preference=-1), "preference -1 is not 0"),
        (MarkTarget(mark=1, address="224.0.0.1"), "cannot be the address of an inside host"),
        (MarkTarget(mark=1), "cannot be the address of an inside host"),
    ],
)
def test_what_cannot_be_is_refused(wrong: MarkTarget, text: str):
    with pytest.raises(ConfigurationError, match=text):
        check(wrong)
    with pytest.raises(ConfigurationError, match=text):
        apply((), [Change(action="add", target=wrong)])


def test_changes_want_a_target():
    with pytest.raises(ConfigurationError, match="which mark"):
        apply((), [Change(action="edit")])
