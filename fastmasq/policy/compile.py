"""Policy for new sessions, compiled to the rows that the path tests without Python."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastmasq.path.world import ACTIONS, ANY_SIDE, INSIDE, OUTSIDE, RULE

EVERYWHERE = (0, 0xFFFFFFFF)


@dataclass(frozen=True)
class Rule:
    """What to do with a packet from inside that belongs to no session: first match decides, no match drops.

    source, destination: first and last address. protocol: 0 is any. out_side: INSIDE, OUTSIDE or ANY_SIDE.
    action: "masquerade", "route" (forward untranslated), "refuse" (drop and tell the sender) or "drop".
    """

    action: str
    source: tuple[int, int] = EVERYWHERE
    destination: tuple[int, int] = EVERYWHERE
    protocol: int = 0
    out_side: int = ANY_SIDE


DEFAULT_POLICY = (Rule("masquerade", out_side=OUTSIDE), Rule("route", out_side=INSIDE))
"""Everything from inside to outside is masqueraded, inside networks reach each other, nothing is let in."""


def compile_rules(rules: tuple[Rule, ...]) -> np.ndarray:
    """Return one world.RULE row for each rule, in order."""
    rows = np.zeros(len(rules), RULE)
    for row, rule in zip(rows, rules, strict=True):
        row["source_first"], row["source_last"] = rule.source
        row["destination_first"], row["destination_last"] = rule.destination
        row["protocol"], row["out_side"], row["action"] = rule.protocol, rule.out_side, ACTIONS[rule.action]
    return rows
