"""The result as a picture: for every figure, how far fastmasq is ahead of the kernel, with spread and goal."""

from __future__ import annotations

from pathlib import Path

from fastmasq_bench.report import Line, Report

_AHEAD, _BEHIND, _GOAL = "#2a9d6f", "#d1605e", "#333333"
_WIDTH_IN, _HEIGHT_PER_LINE_IN = 9.0, 0.36


def draw(report: Report, path: Path) -> None:
    """Write the chart in the format of the file's name. Lines without both programs are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [line for line in report.lines if line.ratio][::-1]
    figure, axes = pyplot.subplots(figsize=(_WIDTH_IN, 1.6 + _HEIGHT_PER_LINE_IN * len(lines)), layout="constrained")
    for position, line in enumerate(lines):
        _bar(axes, position, line)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    axes.set_yticks(range(len(lines)), [line.figure.title for line in lines])
    axes.set_xlabel("times kernel masquerade; right is better, a diamond is a goal")
    host = report.machine
    axes.set_title(
        f"{host['processors']} x {host['processor']}, Linux {host['kernel']}, {host['time'][:10]}", fontsize=9
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _bar(axes, position: int, line: Line) -> None:
    """Draw one line; where lower is better the ratio is turned round, so that right is better everywhere."""

    def advantage(value: float) -> float:
        return value / line.baseline.median if line.figure.higher_is_better else line.baseline.median / value

    middle = advantage(line.ours.median)
    ends = sorted(advantage(sample.value) for sample in line.ours.result)
    axes.barh(position, middle - 1, left=1, height=0.6, color=_AHEAD if middle >= 1 else _BEHIND)
    axes.plot([ends[0], ends[-1]], [position, position], color="black", linewidth=1)
    goal = line.figure.goal
    if goal and goal.relative:
        limit = goal.limit if line.figure.higher_is_better else 1 / goal.limit
        axes.plot(limit, position, marker="D", color=_GOAL, markersize=4)
