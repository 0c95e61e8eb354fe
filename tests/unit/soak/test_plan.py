"""A soak can be done again: its plan follows from the seed, and has everything in turn."""

from __future__ import annotations

import itertools

import pytest

from tests.soak.plan import END_S, Act, make_plan

ATTACKS = {"inside": ["sweep", "grab", "flood"], "outside": ["forged", "odd"]}
FAULTS = {"link": 0.7, "guard": 0.0, "descriptors": 5.0}


def plan(seed: int, seconds: float = 600) -> list[Act]:
    return make_plan(seed, seconds, ATTACKS, FAULTS)


def test_a_seed_is_a_plan() -> None:
    assert plan(1) == plan(1)
    assert plan(1) != plan(2)


@pytest.mark.parametrize("side", ATTACKS)
def test_each_side_attacks_all_the_time_by_each_of_its_means(side: str) -> None:
    acts = [act for act in plan(1) if act.kind == side]
    assert acts[0].at == 0
    assert [act.at for act in acts[1:]] == [act.until for act in acts[:-1]]
    assert acts[-1].until == 600
    assert {act.name for act in acts[: len(ATTACKS[side])]} == {*ATTACKS[side]}


def test_a_fault_has_time_to_be_mended_before_the_next_and_the_end() -> None:
    faults = [act for act in plan(1) if act.kind == "fault"]
    assert {act.name for act in faults[:3]} == {*FAULTS}
    assert all(after.at - before.until >= 8 for before, after in itertools.pairwise(faults))
    assert all(act.until - act.at == pytest.approx(FAULTS[act.name]) for act in faults)
    assert faults[-1].until <= 600 - END_S
