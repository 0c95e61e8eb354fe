"""What happens when: attacks on both sides one after the other, and a fault now and then, all of it by one seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

SHORTEST_ATTACK_S, LONGEST_ATTACK_S = 6.0, 10.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 8.0, 12.0  # between faults
END_S = 6.0  # without a fault


class Act(NamedTuple):
    """An attack or a fault, from `at` to `until`, in seconds from the start. `seed` is for what it draws itself."""

    at: float
    until: float
    kind: str  # "inside", "outside" or "fault"
    name: str
    seed: int


def make_plan(
    seed: int, seconds: float, attacks: Mapping[str, Sequence[str]], faults: Mapping[str, float]
) -> list[Act]:
    """Return the acts in the order of their times; attacks are names by side, faults names and how long they last."""
    random = Random(seed)
    acts = []
    for side, names in attacks.items():
        draw = _deck(random, names)
        at = 0.0
        while at < seconds:
            until = min(seconds, at + random.uniform(SHORTEST_ATTACK_S, LONGEST_ATTACK_S))
            acts.append(Act(at, until, side, next(draw), random.getrandbits(32)))
            at = until
    draw = _deck(random, list(faults))
    at = random.uniform(SHORTEST_PAUSE_S, LONGEST_PAUSE_S)
    while True:
        name = next(draw)
        until = at + faults[name]
        if until > seconds - END_S:
            break
        acts.append(Act(at, until, "fault", name, random.getrandbits(32)))
        at = until + random.uniform(SHORTEST_PAUSE_S, LONGEST_PAUSE_S)
    return sorted(acts)


def _deck(random: Random, names: Sequence[str]) -> Iterator[str]:
    """Draw names so that each comes once before any comes again."""
    while True:
        yield from random.sample(names, len(names))
