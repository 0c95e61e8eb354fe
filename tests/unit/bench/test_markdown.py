"""The benchmark's table as Markdown, for documents: the machine and the day above it, and medians alone."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from fastmasq_bench import command
from fastmasq_bench.lab import run as measuring
from fastmasq_bench.lab.figures import Figure, Sample
from fastmasq_bench.lab.rounds import Series
from fastmasq_bench.report import Line, Report, describe_machine

RATE = Figure("rate", "some figure", "packets/s")
OF_UDP = Figure("of_udp", "    of as many UDP flows", "of its UDP rate", has_baseline=False)


def series(figure: Figure, name: str, *values: float, failed: bool = False) -> Series:
    """Return the series of one program, all its samples without steering."""
    samples = {"off": [Sample(value) for value in values]} if values else {}
    return Series(figure, name, samples, ["it hung"] if failed else [])


@pytest.fixture
def report() -> Report:
    """Return three lines: with both medians, with one that failed, and without a baseline."""
    lines = [
        Line(RATE, series(RATE, "kernel", 0.9e6, 1e6, 2e6), series(RATE, "fastmasq", 1.25e6)),
        Line(RATE, series(RATE, "kernel", 100.0), series(RATE, "fastmasq", failed=True)),
        Line(OF_UDP, None, series(OF_UDP, "fastmasq", 0.9876)),
    ]
    return Report(lines, describe_machine(), 1.5e6, 3)


def test_the_table_has_medians_and_ratios(report: Report) -> None:
    _, table = report.markdown().split("\n\n")
    assert table.splitlines() == [
        "| figure | kernel | fastmasq | ratio |",
        "| --- | ---: | ---: | ---: |",
        "| some figure, packets/s | 1 M | 1.25 M | 1.25 |",
        "| some figure, packets/s | 100 | failed |  |",
        "|     of as many UDP flows, of its UDP rate |  | 0.988 |  |",
    ]


def test_what_was_measured_beside_them_has_columns_of_its_own() -> None:
    limit = {"limit": series(RATE, "limit", 2e6)}
    lines = [
        Line(RATE, series(RATE, "kernel", 1e6), series(RATE, "fastmasq", 1e6), limit),
        Line(OF_UDP, None, series(OF_UDP, "fastmasq", 0.9876)),
    ]
    report = Report(lines, describe_machine(), 1.5e6, 1)
    _, table = report.markdown().split("\n\n")
    assert table.splitlines() == [
        "| figure | kernel | fastmasq | ratio | limit |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| some figure, packets/s | 1 M | 1 M | 1.00 | 2 M |",
        "|     of as many UDP flows, of its UDP rate |  | 0.988 |  |  |",
    ]
    assert [column.header for column in report.table().columns][3:6] == ["ratio", "limit", "goal"]
    assert report.document()["figures"][0]["limit"]["median"] == 2e6


def test_the_machine_and_the_day_stand_above_it(report: Report) -> None:
    above, _ = report.markdown().split("\n\n")
    for expected in (
        f"{datetime.now(UTC).year}-",
        f"{os.cpu_count()} x ",
        f"Linux {platform.release()}, ",
        f"Python {platform.python_version()}",
        "offloads on",
        "rounds: 3",
        "1.5 M packets/s",
    ):
        assert expected in above


def test_the_command_prints_it_when_asked(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "run", lambda *arguments: report)
    asked, unasked = (CliRunner().invoke(command.bench, arguments) for arguments in (["--markdown"], []))
    assert asked.stdout == report.markdown()
    assert "| --- |" not in unasked.stdout and "some figure, packets/s" in unasked.stdout
