"""Turns scripts of 1999 into rule sets, so that tests can say rules the way their authors did."""

from __future__ import annotations

from fastmasq.legacy.names import Names
from fastmasq.legacy.script import prepare
from fastmasq.policy.chains import RuleSet
from fastmasq.policy.changes import apply


def rules_of(text: str, folder) -> RuleSet:
    """Return what a script makes of the rule set that files are run on; `folder` is for the file it has to be."""
    path = folder / "script.rules"
    path.write_text(text)
    rules = RuleSet(default_forward=False)
    return apply(rules, prepare([path], Names(), rules).changes)
