"""A short comparison of this tree with itself: each side's program is started by its own Python, in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from fastmasq.lab import hosts
from fastmasq_bench.compare.contest import Contest, make_probes
from fastmasq_bench.compare.trees import Tree
from fastmasq_bench.lab.figures import RTT_99, RTT_MEDIAN
from fastmasq_bench.lab.measure import Lengths

SHORT = Lengths(
    0.05, 0.1, 2, 3, tcp_s=1, idle_s=0.2, round_trips=200, pauses_s=0.1, session_remotes=1, memory_remotes=1
)


def tree(name: str, folder: Path, log: Path) -> Tree:
    """Return a tree whose Python is this one, but writes down that it was started."""
    python = folder / name
    python.write_text(f'#!/bin/sh\necho {name} >>{log}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return Tree(name, "as it is", folder, python)


def test_two_trees_are_measured_in_turn_and_leave_nothing(lab_prefix: Callable[[], str], tmp_path: Path) -> None:
    log, prefix = tmp_path / "log", lab_prefix()
    contest = Contest(tree("ours", tmp_path, log), tree("theirs", tmp_path, log))
    with make_probes(["rtt"], (contest.ours, contest.theirs), prefix, SHORT) as probes:
        contest.run(probes, 2, lambda done, what: None)
    assert contest.failures == []
    assert log.read_text().split() == ["ours", "theirs", "theirs", "ours"]
    assert [len(contest.comparisons[figure].pairs) for figure in (RTT_MEDIAN, RTT_99)] == [2, 2]
    assert not list(hosts.NAMESPACE_DIRECTORY.glob(f"{prefix}-*"))
