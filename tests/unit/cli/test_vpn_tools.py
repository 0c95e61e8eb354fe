"""`fastmasq test`, `traceroute` and `sniff`: their help, and one clear line for each way to ask wrongly."""

from __future__ import annotations

import os

import click
import pytest

from fastmasq.cli.main import COMMANDS, fastmasq
from fastmasq.cli.pptp_test import pptp

NOWHERE = "nowhere.invalid"  # RFC 2606 section 2: no such name, ever


@pytest.mark.parametrize("name", ["test", "traceroute", "sniff"])
def test_the_same_sentence_in_both_places(name):
    command = fastmasq.get_command(click.Context(fastmasq), name)
    assert command.help.splitlines()[0] == COMMANDS[name][2]


@pytest.mark.parametrize("words", [("test", "pptp"), ("traceroute",), ("sniff",)])
def test_every_option_is_explained(run, words):
    commands = {("test", "pptp"): pptp}
    command = commands.get(words) or fastmasq.get_command(click.Context(fastmasq), *words)
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert all(option.help for option in options)
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert all(max(option.opts, key=len) in result.stdout for option in options)
    assert "--json" in result.stdout


def test_the_group_lists_what_can_be_tested(run):
    assert "pptp  Connect to a PPTP server" in run("test", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["test", "pptp", NOWHERE], 1, f"fastmasq: {NOWHERE}: no IPv4 address found"),
        (["test", "pptp", "x" * 300], 1, "no IPv4 address found (no such name)"),
        (["test", "pptp", "::1"], 1, "fastmasq: ::1: no IPv4 address found"),
        (["test", "pptp"], 2, "Missing argument 'SERVER'"),
        (["test", "pptp", "127.0.0.1", "--port", "0"], 2, "'--port': 0 is not in the range"),
        (["traceroute", "127.0.0.1"], 2, "which protocol? write --gre for PPTP, --esp for IPsec, or --udp."),
        (["traceroute", "--gre", NOWHERE], 1, f"fastmasq: {NOWHERE}: no IPv4 address found"),
        (["traceroute", "--gre", "127.0.0.1", "--max-hops", "256"], 2, "'--max-hops': 256 is not in the range"),
        (["sniff"], 2, "Missing argument 'POINT...'"),
        (
            ["sniff", "inside", "--socket", "none.sock"],
            2,
            "inside: which link is that? name a configuration with -c FILE",
        ),
        (["sniff", "eth0", "-c", "none.toml"], 2, "none.toml: cannot be read"),
    ],
)
def test_bad_input_is_one_clear_line(run, arguments, status, said):
    result = run(*arguments)
    assert result.exit_code == status
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1 or "Usage:" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="packet sockets need root")
def test_a_link_that_is_not_there(run, tmp_path):
    result = run("sniff", "nosuchlink0", "--socket", tmp_path / "none.sock")
    assert result.exit_code == 2
    assert "nosuchlink0: No such device; this host has lo" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="packet sockets need root")
def test_inside_and_outside_are_the_running_forwarders(run, forwarder):
    """`forwarder` answers that ppp0 is outside; it is not on this host."""
    result = run("sniff", "outside", "--socket", forwarder.path)
    assert result.exit_code == 2
    assert "ppp0: No such device" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="packet sockets need root")
def test_a_capture_that_cannot_be_written(run, tmp_path):
    result = run(
        "sniff", "lo", "--seconds", "0.1", "--socket", tmp_path / "none.sock", "--write", tmp_path / "no" / "x"
    )
    assert result.exit_code == 2
    assert result.stderr == f"fastmasq: {tmp_path}/no/x: No such file or directory; name a file that can be written\n"
