"""What a comparison has found, as one table for people, and beneath it what could not be compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from fastmasq.cli.render import make_table
from fastmasq.units import format_count
from fastmasq_bench.compare.contest import Contest
from fastmasq_bench.compare.pairs import CONFIDENCE, Comparison
from fastmasq_bench.report import machine_line


def table(contest: Contest, rounds: int, machine: dict[str, Any]) -> Table:
    """Return a line for each figure: both medians, the ratio with its interval, the bar, and the verdict."""
    ours, theirs = contest.ours, contest.theirs
    title = (
        f"{machine_line(machine)}\n"
        f"{ours.name} ({ours.commit}) and {theirs.name} ({theirs.commit}), {rounds} rounds in turn\n"
        f"ratio: {ours.name} / {theirs.name}, turned round where less is better: more than 1 is better\n"
    )
    columns = ("figure", f">{ours.name}", f">{theirs.name}", ">ratio", f">{CONFIDENCE:.0%}", ">bar", "verdict")
    made = make_table(*columns, title=title)
    made.title_style = ""
    for comparison in contest.comparisons.values():
        made.add_row(*_cells(comparison))
    return made


def remarks(contest: Contest) -> Iterator[str]:
    """Yield a line for what only one of the trees has, and for each failure."""
    for figure, tree in contest.alone.items():
        yield f"{figure.title}: only {tree.name} has it"
    yield from contest.failures


def _cells(comparison: Comparison) -> tuple[str | Text, ...]:
    interval, misses = comparison.interval, comparison.misses
    return (
        f"{comparison.figure.title}, {comparison.figure.unit}",
        *map(format_count, comparison.medians),
        f"{comparison.ratio:.3f}",
        "-" if interval is None else f"{interval[0]:.3f}-{interval[1]:.3f}",
        f"{comparison.bar:.2f}",
        Text("missed: " + ", ".join(misses), "red") if misses else Text("met", "green"),
    )
