"""The simulation of many hosts: it repeats itself from its seed, and evidence is no worse than the rules of 1999."""

from __future__ import annotations

from click.testing import CliRunner

from fastmasq_bench.vpn.__main__ import main
from fastmasq_bench.vpn.report import measure


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second = (measure(5, 50, 0.05, 60, 7, "evidence", evidence=True) for _ in range(2))
    assert first == second and first["sas"] > 5


def test_fewer_wrong_and_shorter_waits_under_loss() -> None:
    ours, theirs = (measure(100, 5, 0.05, 120, 1, "", evidence=evidence) for evidence in (True, False))
    assert ours["wrong"] < theirs["wrong"] and ours["waited"] < theirs["waited"]


def test_the_command_writes_table_figures_and_chart(tmp_path) -> None:
    json_file, chart = tmp_path / "figures.json", tmp_path / "chart.png"
    options = ["--hosts", "3", "--rtt", "50", "--loss", "0", "--json", str(json_file), "--chart", str(chart)]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 0, done.output
    assert "evidence" in json_file.read_text() and chart.read_bytes().startswith(b"\x89PNG")
