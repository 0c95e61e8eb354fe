"""The order in which two trees are measured, what makes a pair, and what keeps a comparison from passing."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fastmasq.errors import FastmasqError
from fastmasq_bench.compare import micro
from fastmasq_bench.compare.contest import Contest, Probe
from fastmasq_bench.compare.report import remarks, table
from fastmasq_bench.compare.trees import Tree
from fastmasq_bench.lab.figures import Figure

OURS, THEIRS = (Tree(name, f"{name} commit", Path(name), Path("python")) for name in ("this tree", "main"))
RATE, DELAY = Figure("rate", "some rate", "packets/s"), Figure("delay", "some delay", "us", higher_is_better=False)
MACHINE = {"processors": 2, "processor": "8086", "kernel": "2.2.19", "load_average": 0.5}


def contest_of(measure: Callable[[Tree], dict[Figure, float]], rounds: int = 6) -> tuple[Contest, list[str]]:
    """Return a contest with one probe after so many rounds, and what was told of them."""
    contest, told = Contest(OURS, THEIRS), []
    contest.run([Probe("probe", measure)], rounds, lambda done, what: told.append(f"{done}: {what}"))
    return contest, told


def shown(contest: Contest) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(table(contest, 6, MACHINE))
    return console.file.getvalue()


def test_whose_turn_is_first_changes_with_every_round() -> None:
    contest, told = contest_of(lambda tree: {RATE: 7.0 if tree is OURS else 5.0}, rounds=3)
    assert told == [
        "0: round 1 of 3: probe, this tree",
        "1: round 1 of 3: probe, main",
        "2: round 2 of 3: probe, main",
        "3: round 2 of 3: probe, this tree",
        "4: round 3 of 3: probe, this tree",
        "5: round 3 of 3: probe, main",
    ]
    assert contest.comparisons[RATE].pairs == [(7.0, 5.0)] * 3


def test_every_probe_is_taken_of_both_before_the_next_one() -> None:
    taken = []

    def probe(name: str) -> Probe:
        return Probe(name, lambda tree: taken.append((name, tree.name)) or {})

    Contest(OURS, THEIRS).run([probe("first"), probe("second")], 1, lambda done, what: None)
    assert taken == [("first", "this tree"), ("first", "main"), ("second", "this tree"), ("second", "main")]


def test_equal_trees_pass_and_a_slower_one_does_not() -> None:
    assert contest_of(lambda tree: {RATE: 5.0, DELAY: 3.0})[0].passed
    assert not contest_of(lambda tree: {RATE: 5.0, DELAY: 4.0 if tree is OURS else 3.0})[0].passed


def test_nothing_measured_is_no_success() -> None:
    assert not Contest(OURS, THEIRS).passed


def test_a_failure_costs_its_pair_and_the_success() -> None:
    calls = []

    def measure(tree: Tree) -> dict[Figure, float]:
        calls.append(tree)
        if len(calls) == 3:
            raise FastmasqError("it hung")
        return {RATE: 5.0}

    contest, _ = contest_of(measure, rounds=7)
    assert len(contest.comparisons[RATE].pairs) == 6 and not contest.comparisons[RATE].misses
    assert list(remarks(contest)) == ["probe, main, round 2: it hung"]
    assert not contest.passed


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_value_that_cannot_be_divided_by_is_a_failure(value: float) -> None:
    contest, _ = contest_of(lambda tree: {RATE: value if tree is THEIRS else 5.0}, rounds=1)
    assert list(remarks(contest)) == ["some rate: nothing was measured"] and not contest.passed


def test_what_one_tree_alone_has_is_said_and_not_judged() -> None:
    contest, _ = contest_of(lambda tree: {RATE: 5.0} if tree is THEIRS else {RATE: 5.0, DELAY: 1.0})
    assert list(contest.comparisons) == [RATE] and contest.passed
    assert list(remarks(contest)) == ["some delay: only this tree has it"]


def test_the_table_says_what_was_measured_and_which_way_the_ratio_goes() -> None:
    contest, _ = contest_of(lambda tree: {RATE: 5000.0, DELAY: 30.0 if tree is THEIRS else 40.0})
    text = shown(contest)
    for expected in (
        "2 x 8086, Linux 2.2.19, load 0.5",
        "this tree (this tree commit) and main (main commit), 6 rounds in turn",
        "ratio: this tree / main, turned round where less is better: more than 1 is better",
    ):
        assert expected in text
    rate, delay = (" ".join(line.split()) for line in text.rstrip().splitlines()[-2:])
    assert rate == "some rate, packets/s 5 k 5 k 1.000 1.000-1.000 0.97 met"
    assert delay == "some delay, us 40 30 0.750 0.750-0.750 0.97 missed: below 0.97, slower beyond doubt"


def test_figures_too_few_for_an_interval_are_shown_without_one() -> None:
    contest, _ = contest_of(lambda tree: {RATE: 5.0}, rounds=2)
    assert " ".join(shown(contest).split()).endswith("1.000 - 0.97 missed: 2 pairs are too few")


def test_micro_benchmarks_are_read_by_name_and_by_their_fastest_run() -> None:
    path = {"name": "test_whole_path[1000]", "extra_info": {"ns_per_packet": 40.0}, "stats": {"min": 3, "median": 4}}
    opening = {"name": "test_open_sessions", "extra_info": {"ns_per_packet": 600.0}, "stats": {"min": 1, "median": 1}}
    figures = micro.figures_of({"benchmarks": [path, opening]})
    assert [(figure.title, figure.unit, value) for figure, value in figures.items()] == [
        ("micro, whole path[1000]", "ns/packet", 30.0),
        ("micro, open sessions", "ns/packet", 600.0),
    ]
    assert not any(figure.higher_is_better for figure in figures)
