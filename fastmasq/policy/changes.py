"""Changes to a rule set as data, so that several can be asked for at once and happen together or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from fastmasq.errors import ConfigurationError
from fastmasq.policy.chains import Rule, RuleSet

Operation = Literal[
    *("append", "insert", "replace", "delete", "delete_equal", "flush", "zero", "policy", "new_chain", "delete_chain"),
    "reset",
]


class Change(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One change. chain None means all of them, for flush, zero and delete_chain.

    rule: of append, insert, replace and delete_equal. number: counting from 1, of insert (default 1), replace, delete.
    target: of policy. reset is about the chain forward, which is the built-in policy then.
    """

    do: Operation
    chain: str | None = None
    rule: Rule | None = None
    number: int | None = None
    target: str | None = None


def apply(rule_set: RuleSet, changes: Iterable[Change]) -> RuleSet:
    """Return what the set becomes; the set itself stays as it is. Raises RuleError or ConfigurationError."""
    result = rule_set.copy()
    for change in changes:
        make(result, change)
    return result


def make(rules: RuleSet, change: Change) -> None:
    """Make one change in the set itself. Raises RuleError or ConfigurationError, and has changed nothing then."""
    chain = change.chain
    match change.do:
        case "flush":
            rules.flush(chain)
        case "zero":
            rules.zero(chain)
        case "delete_chain":
            rules.delete_chain(chain)
        case "new_chain":
            rules.new_chain(_needed(change, "chain"))
        case "reset":
            rules.reset_forward()
        case "policy":
            rules.set_policy(_needed(change, "chain"), _needed(change, "target"))
        case "append":
            rules.append(_needed(change, "chain"), _needed(change, "rule"))
        case "insert":
            number = 1 if change.number is None else change.number
            rules.insert(_needed(change, "chain"), _needed(change, "rule"), number)
        case "replace":
            rules.replace(_needed(change, "chain"), _needed(change, "rule"), _needed(change, "number"))
        case "delete":
            rules.delete(_needed(change, "chain"), _needed(change, "number"))
        case "delete_equal":
            rules.delete_equal(_needed(change, "chain"), _needed(change, "rule"))


def _needed(change: Change, name: str):
    value = getattr(change, name)
    if value is None:
        raise ConfigurationError(f"change {change.do!r} needs {name!r}")
    return value
