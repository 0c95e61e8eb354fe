"""The command `scripts/dev compare`: its options, and what it refuses before it builds or measures anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fastmasq.errors import FastmasqError
from fastmasq_bench.compare import __main__ as command
from fastmasq_bench.compare.contest import make_probes
from fastmasq_bench.compare.trees import Program, program_at
from fastmasq_bench.lab.measure import MEASUREMENTS, QUICK

DEV = Path(__file__).parents[3] / "scripts/dev"


def compare(*arguments: str) -> Result:
    return CliRunner().invoke(command.compare, arguments)


def test_help_says_what_is_measured_and_what_the_exit_status_means() -> None:
    words = compare("--help").output.split()
    assert [figure for figure in command.FIGURES if figure not in words] == []
    assert {"REF", "--only", "--rounds", "Exit"} <= set(words)


def test_the_figures_measured_without_being_asked_for_exist() -> None:
    assert set(command.FIGURES) <= {"micro", *(measurement.name for measurement in MEASUREMENTS)}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Missing argument 'REF'"),
        (("HEAD", "--only", "warp"), "'warp' is none of micro, packets-1, packets-1000,"),
        (("HEAD", "--rounds", "5"), "5 is not in the range x>=6"),
        (("HEAD", "main"), "unexpected extra argument"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], complaint: str) -> None:
    done = compare(*arguments)
    assert done.exit_code == 2 and complaint in done.output


def test_no_lab_is_made_for_micro_benchmarks() -> None:
    with make_probes(["micro"], (), "never-made", QUICK) as probes:
        assert [probe.name for probe in probes] == ["micro"]


def test_what_is_no_commit_is_said_in_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["compare", "no-such-commit", "--only", "micro"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("compare: 'no-such-commit' is no commit of ")


def program(folder: Path, version: str) -> Path:
    path = folder / "fastmasq-9"
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


def test_a_program_is_started_as_it_is(tmp_path: Path) -> None:
    path = program(tmp_path, "fastmasq 9")
    assert program_at(str(path)) == Program("fastmasq-9", "9", (str(path),))


def test_what_is_no_program_may_be_a_commit(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert [program_at(path) for path in ("main", str(tmp_path), str(tmp_path / "file"))] == [None] * 3


def test_another_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FastmasqError, match="is no fastmasq: --version says 'ls 9'"):
        program_at(str(program(tmp_path, "ls 9")))


def test_a_program_has_no_micro_benchmarks(tmp_path: Path) -> None:
    done = compare(str(program(tmp_path, "fastmasq 9")), "--only", "micro")
    assert done.exit_code == 2 and "micro: fastmasq-9 is a program without micro-benchmarks" in done.output


def test_scripts_dev_knows_it() -> None:
    assert "compare REF" in subprocess.run([DEV, "help"], capture_output=True, text=True, check=True).stdout
