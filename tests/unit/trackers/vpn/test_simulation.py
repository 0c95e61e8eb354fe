"""The simulation of many hosts: it repeats itself from its seed, and evidence is no worse than the rules of 1999."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from fastmasq_bench.vpn.__main__ import main
from fastmasq_bench.vpn.report import MS, measure
from fastmasq_bench.vpn.simulation import SECOND, Scenario


def test_the_same_seed_gives_the_same_figures() -> None:
    scenario = Scenario(hosts=5, rtt=50 * MS, loss=0.05, behind=50 * MS, spread=60 * SECOND, seed=7)
    first, second = (measure(scenario, "", evidence=True) for _ in range(2))
    assert first == second and first["sas"] > 5
    assert measure(scenario, "", seeds=2, evidence=True)["sas"] > first["sas"]


def test_fewer_wrong_and_shorter_waits_under_loss() -> None:
    scenario = Scenario(hosts=200, rtt=50 * MS, loss=0.05)
    ours, theirs = (measure(scenario, "", evidence=evidence) for evidence in (True, False))
    assert ours["wrong"] < theirs["wrong"] and ours["waited"] < theirs["waited"]


@pytest.mark.parametrize("quiet", [0, 0.8])
def test_hosts_that_start_at_one_moment_do_not_wait_and_are_told_apart(quiet: float) -> None:
    """Answers from behind the server come in any order, and few of them are answered at once."""
    scenario = Scenario(hosts=50, rtt=50 * MS, loss=0.05, behind=200 * MS, burst=10, quiet=quiet)
    figures = measure(scenario, "", seeds=2, evidence=True)
    assert figures["sas"] > 100
    assert figures["astray"] <= figures["wrong"] < 0.01 and figures["missed"] < 0.01
    assert figures["waited"] == 0 and figures["copies"] < 0.1


def test_the_command_writes_table_figures_and_chart(tmp_path) -> None:
    json_file, chart = tmp_path / "figures.json", tmp_path / "chart.png"
    options = ["--hosts", "3", "--rtt", "50", "--loss", "0", "--json", str(json_file), "--chart", str(chart)]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 0, done.output
    assert "evidence" in json_file.read_text() and chart.read_bytes().startswith(b"\x89PNG")
