"""`fastmasq log`: what it asks, what it prints, and one clear line for each way to ask wrongly."""

from __future__ import annotations

import json
import logging

import click
import pytest

from fastmasq.cli.main import COMMANDS, fastmasq
from fastmasq.daemon.log_levels import LogLevels
from fastmasq.observe.log import SUBSYSTEMS


@pytest.fixture
def log(run, forwarder):
    """Run `fastmasq log` against levels that are the running forwarder's."""
    ours = logging.getLogger("fastmasq")
    before = ours.level
    ours.setLevel(logging.INFO)
    forwarder.handlers.update(LogLevels().handlers())
    yield lambda *words: run("log", *words, "--socket", forwarder.path)
    ours.setLevel(before)
    for name in SUBSYSTEMS:
        logging.getLogger(f"fastmasq.{name}").setLevel(logging.NOTSET)


def levels(log):
    return {one["subsystem"]: (one["level"], one["reverts_s"]) for one in json.loads(log("--json").stdout)}


def test_the_same_sentence_in_both_places():
    command = fastmasq.get_command(click.Context(fastmasq), "log")
    assert command.help.splitlines()[0] == COMMANDS["log"][2]


def test_h_82_levels_are_listed(log):
    lines = log().stdout.splitlines()
    assert lines[0].split() == ["Subsystem", "Level", "For", "About"]
    assert [line.split()[:2] for line in lines[1:]] == [[name, "info"] for name in SUBSYSTEMS]


def test_h_82_ten_minutes_unless_said_otherwise(log):
    shown = log("vpn", "debug")
    assert (shown.exit_code, shown.stderr) == (0, "")
    [line] = [line for line in shown.stdout.splitlines() if line.startswith("vpn")]
    assert line.split()[:4] in (["vpn", "debug", "10m", "more"], ["vpn", "debug", "9m59s", "more"])
    log("rules", "warning", "--for", "1h")
    log("fastmasq.engine", "error", "--for", "ever")
    level, reverts_s = levels(log)["rules"]
    assert level == "warning" and 3500 < reverts_s <= 3600
    assert levels(log)["engine"] == ("error", None)


def test_h_82_a_level_alone_is_for_all(log):
    log("debug", "--for", "ever")
    assert levels(log) == dict.fromkeys(SUBSYSTEMS, ("debug", None))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["vnp", "debug"],
            "'vnp' is not a subsystem; there are: config, control, engine, forwards, gateways, hooks, rules, vpn",
        ),
        (["vpn", "loud"], "'loud' is not a level; there are: debug, info, warning, error"),
        (["vpn"], "'vpn' is not a level; there are"),
        (["vpn", "debug", "now"], "one subsystem and one level at most"),
        (["vpn", "debug", "--for", "soon"], "'soon' is not a duration; write for example 300s, 5m or 2h4m"),
        (["vpn", "debug", "--for", "0s"], "a level holds for more than 0 s"),
    ],
)
def test_h_82_bad_input_is_one_clear_line(log, words, said):
    result = log(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1 or "Usage:" in result.stderr
