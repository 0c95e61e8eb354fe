"""The result: one table with machine, kernel and spread for people, as Markdown too, and every sample as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from fastmasq.units import format_count
from fastmasq_bench.lab.figures import Figure, Sample
from fastmasq_bench.lab.rounds import Series

BASELINE, OURS, BESIDE = "kernel", "fastmasq", ("flowtable", "offload", "limit")

_SETTING = "veth, offloads on except where a line says off; the kernel with receive steering at its best for each line;"


@dataclass(frozen=True)
class Line:
    """One figure with the series of the baseline and ours, of which one may be missing, and of BESIDE what there is."""

    figure: Figure
    baseline: Series | None
    ours: Series | None
    beside: Mapping[str, Series] = field(default_factory=dict)

    @property
    def programs(self) -> list[Series]:
        """All series that there are."""
        return [series for series in (self.baseline, self.ours, *self.beside.values()) if series]

    @property
    def ratio(self) -> float | None:
        """Our median as a multiple of the baseline's; None unless there are both."""
        if (
            not self.figure.has_baseline
            or not (self.ours and self.baseline and self.baseline.median)
            or self.ours.median is None
        ):
            return None
        return self.ours.median / self.baseline.median

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is none, or nothing to tell by."""
        goal = self.figure.goal
        achieved = None if goal is None else self.ratio if goal.relative else self.ours and self.ours.median
        if goal is None or achieved is None:
            return None
        return achieved >= goal.limit if self.figure.higher_is_better else achieved <= goal.limit


@dataclass(frozen=True)
class Report:
    """All lines, and under what conditions they came about. source_alone is in packets per second."""

    lines: Sequence[Line]
    machine: dict[str, Any]
    source_alone: float
    rounds: int

    def failures(self) -> list[str]:
        """Return a line for every measurement that did not succeed."""
        measured = [(line.figure, series) for line in self.lines for series in line.programs]
        return [f"{figure.title}: {failure}" for figure, series in measured for failure in series.failures]

    def table(self) -> Table:
        """Return the table: medians with the lowest and the highest value, the ratio, the goal, and what was lost."""
        title = f"{self._conditions()}\n"
        table = Table(title=title, title_justify="left", title_style="", box=None, header_style="dim", pad_edge=False)
        table.add_column("figure")
        for name in (BASELINE, OURS, "ratio", *self._beside(), "goal", "lost, k / f", "ring drops, k / f"):
            table.add_column(name, justify="right")
        for line in self.lines:
            table.add_row(*_cells(line, self._beside()))
        return table

    def markdown(self) -> str:
        """Return the medians and their ratios as a table of Markdown, beneath a paragraph about machine and day."""
        rows = [
            ("figure", BASELINE, OURS, "ratio", *self._beside()),
            ("---", "---:", "---:", "---:", *("---:" for _ in self._beside())),
            *(
                (_name(line), _median(line.baseline), _median(line.ours), _ratio(line), *beside)
                for line in self.lines
                for beside in [[_median(line.beside.get(name)) for name in self._beside()]]
            ),
        ]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return f"{self._conditions()}; medians.\n\n{table}\n"

    def document(self) -> dict[str, Any]:
        """Return everything as plain values: for each figure and program all samples by steering, and the best one."""
        return {
            "machine": self.machine,
            "rounds": self.rounds,
            "source_alone": self.source_alone,
            "figures": [_plain(line) for line in self.lines],
        }

    def _beside(self) -> list[str]:
        """Return which of BESIDE were measured."""
        return [name for name in BESIDE if any(name in line.beside for line in self.lines)]

    def _conditions(self) -> str:
        """Return three lines: the machine and the day, the network, the run."""
        host = self.machine
        return (
            f"{host['time'][:10]}: {machine_line(host)}, {host['memory_gib']} GiB, {host['distribution']}, "
            f"Python {host['python']};\n{_SETTING}\n"
            f"rounds: {self.rounds}; the packet source alone: {format_count(self.source_alone)} packets/s"
        )


def make_lines(series: dict[tuple[str, str], Series]) -> list[Line]:
    """Return a line for each figure from series by figure and program, in the same order."""
    figures = {one.figure.name: one.figure for one in series.values()}
    return [
        Line(
            figure,
            series.get((name, BASELINE)),
            series.get((name, OURS)),
            {program: series[name, program] for program in BESIDE if (name, program) in series},
        )
        for name, figure in figures.items()
    ]


def describe_machine() -> dict[str, Any]:
    """Return what figures depend on: processors, memory, kernel, and how busy the machine is at this moment."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory_kib = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "processor": models[0] if models else platform.machine(),
        "processors": os.cpu_count(),
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release(),
        "distribution": _distribution(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine_line(host: dict[str, Any]) -> str:
    """Return what describe_machine says as the first line of a table."""
    return f"{host['processors']} x {host['processor']}, Linux {host['kernel']}, load {host['load_average']}"


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return "unknown distribution"


def _cells(line: Line, beside: Sequence[str]) -> tuple[str | Text, ...]:
    return (
        _name(line),
        _value(line.baseline),
        _value(line.ours),
        _ratio(line),
        *(_value(line.beside.get(name)) for name in beside),
        _goal(line),
        _pair(line, lambda sample: sample.loss, lambda loss: f"{100 * loss:.2g} %"),
        _pair(line, lambda sample: sample.drops, format_count),
    )


def _name(line: Line) -> str:
    return f"{line.figure.title}, {line.figure.unit}"


def _ratio(line: Line) -> str:
    return "" if line.ratio is None else f"{line.ratio:.2f}"


def _median(series: Series | None) -> str:
    """Return the median alone: 1.09 M."""
    if series is None:
        return ""
    if series.median is None:
        return "failed" if series.failures else "-"
    return format_count(series.median)


def _value(series: Series | None) -> str:
    """Return median, spread and, where there is a choice, the best steering: 1.09 M (1.05 M-1.11 M) others."""
    text = _median(series)
    if series is None or series.median is None:
        return text
    values = [sample.value for sample in series.result]
    if len(values) > 1:
        text += f" ({format_count(min(values))}-{format_count(max(values))})"
    return f"{text} {series.best}" if len(series.samples) > 1 else text


def _goal(line: Line) -> Text:
    goal = line.figure.goal
    if goal is None:
        return Text()
    limit = f"{'>=' if line.figure.higher_is_better else '<='} {goal.limit:g}"
    verdict, style = {True: (" met", "green"), False: (" missed", "red"), None: ("", "")}[line.met]
    return Text(limit + verdict, style)


def _pair(line: Line, read: Callable[[Sample], float | None], show: Callable[[float], str]) -> str:
    """Return the medians of a property of the samples, the baseline's and ours; nothing if neither knows it."""
    shown = []
    for series in (line.baseline, line.ours):
        known = [value for sample in (series.result if series else []) if (value := read(sample)) is not None]
        shown.append(show(median(known)) if known else "-")
    return "" if shown == ["-", "-"] else " / ".join(shown)


def _plain(line: Line) -> dict[str, Any]:
    figure = line.figure
    return {
        "name": figure.name,
        "title": figure.title,
        "unit": figure.unit,
        "higher_is_better": figure.higher_is_better,
        "goal": figure.goal and vars(figure.goal),
        "ratio": line.ratio,
        "met": line.met,
        **{series.forwarder: _plain_series(series) for series in line.programs},
    }


def _plain_series(series: Series) -> dict[str, Any]:
    samples = {steering: [vars(sample) for sample in group] for steering, group in series.samples.items()}
    return {"median": series.median, "steering": series.best, "samples": samples, "failures": series.failures}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
