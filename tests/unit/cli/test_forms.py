"""What all commands have in common: whole sentences in help, --json with addresses as text, lists that are empty."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fastmasq.cli.main import COMMANDS, fastmasq

WITHOUT_JSON = {
    # what does something, and at most says so; what prints a file or a program; what asks at a terminal
    *(
        "run",
        "upgrade",
        "setup",
        "install",
        "uninstall",
        "confirm",
        "proc",
        "demo",
        "import iptables-save",
        "import nft",
    ),
    *("esp add", "esp replace", "esp delete", "esp flush", "esp script", "rule reset", "rule template"),
    *("forward add", "forward delete", "forward clear", "redirect add", "redirect delete", "redirect clear"),
    *("lab up", "lab down", "lab shell", "lab exec"),
}


def commands(group: click.Group = fastmasq, before: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        if before == "" and COMMANDS[name][0].startswith("fastmasq_bench"):
            continue
        command = group.get_command(context, name)
        yield f"{before}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")


ALL = dict(commands())
GROUPS = [name for name, command in ALL.items() if isinstance(command, click.Group)]


def has_json(command: click.Command) -> bool:
    return any("--json" in parameter.opts for parameter in command.params)


def test_what_lists_or_judges_has_json() -> None:
    assert {name for name, command in ALL.items() if name not in GROUPS and not has_json(command)} == WITHOUT_JSON


@pytest.mark.parametrize("name", GROUPS)
def test_the_sentences_of_commands_are_whole(run, name: str) -> None:
    shown = run(*name.split(), "--help").stdout
    assert "..." not in shown.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["forward", "list"], "no forwards\n"),
        (["redirect", "list"], "no redirects\n"),
        (["esp", "list"], "no SAs were told\n"),
    ],
    ids=" ".join,
)
def test_empty_lists_say_so(run, forwarder, words: list[str], said: str) -> None:
    forwarder.handlers["redirects"] = lambda params: []
    assert run(*words, "--socket", forwarder.path).stdout == said
    assert json.loads(run(*words, "--socket", forwarder.path, "--json").stdout) == []


def test_addresses_of_rules_are_text(run, forwarder) -> None:
    forwarder.rules.put(_with_a_rule())
    shown = json.loads(run("rule", "list", "--socket", forwarder.path, "--json").stdout)
    (rule,) = next(chain["rules"] for chain in shown["chains"] if chain["name"] == "input")
    assert rule["rule"]["match"] == {
        "source": "10.0.0.0/8", "destination": "199.0.0.1", "interface_address": "200.200.200.200"
    }  # fmt: skip
    ends = ["--from", "10.0.0.2", "--to", "199.0.0.1:80", "--in", "eth0"]
    (stage,) = json.loads(run("rule", "trace", "--socket", forwarder.path, "--json", *ends).stdout)
    assert (stage["packet"]["source"], stage["packet"]["destination"]) == ("10.0.0.2", "199.0.0.1")


def _with_a_rule():
    from fastmasq.policy.chains import Match, Rule, RuleSet

    rules = RuleSet()
    match = Match(source=(0x0A000000, 0xFF000000), destination=(0xC7000001, 0xFFFFFFFF), interface_address=0xC8C8C8C8)
    rules.append("input", Rule(match=match, target="ACCEPT"))
    return rules


def test_check_judges_as_json(run, tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text('[interfaces]\ninside = ["eth0"]\noutside = "eth1"\nx = 1\n')
    result = run("check", "-c", file, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ready"]) == (2, False)
    assert [finding["severity"] for finding in found["findings"]] == ["error"]
    assert found["findings"][0]["text"].startswith(f"{file}:4: ")
