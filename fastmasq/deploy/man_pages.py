"""The manual pages of a host: made of the commands' help, the sample configuration, and the manual's page on 1999."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from fastmasq import __version__
from fastmasq.config.load import SAMPLE
from fastmasq.config.values import DEFAULT_SOCKET, SERVICE_SOCKET
from fastmasq.deploy import configuration, roff
from fastmasq.errors import FastmasqError
from fastmasq.legacy import ipchains, ipfwadm, ipfwd, ipmasqadm, ipportfw

MANUAL = Path(__file__).parents[1] / "manual"

_EXIT_STATUSES = (
    ("0", "done"),
    ("1", "failed; standard error says what, where, and what to do"),
    ("2", "the command line or the configuration is wrong"),
    ("3", "done, but something was left out (import)"),
    ("130", "interrupted from the keyboard"),
)
_FILES = (
    (configuration.PATH, "the configuration, see fastmasq.toml(5)"),
    (DEFAULT_SOCKET, "where the other commands reach a forwarder that was started by hand"),
    (SERVICE_SOCKET, "where they reach the service"),
)
_LEGACY = {
    "ipfwadm": ("change and list the rules of a forwarder as in Linux 2.0", ipfwadm.HELP),
    "ipchains": ("change and list the rules of a forwarder as in Linux 2.2", ipchains.HELP),
    "ipportfw": ("forward ports to inside hosts as in Linux 2.0", ipportfw.HELP),
    "ipmasqadm": ("forward ports to inside hosts as in Linux 2.2", ipmasqadm.USAGE + "\n" + ipmasqadm.PORTFW_HELP),
    "ipfwd": ("lead a protocol without ports to an inside host", ipfwd.HELP),
}
SAME_PAGE = {"ipchains-save": "ipchains", "ipchains-restore": "ipchains"}
"""Programs of 1999 whose page is that of another."""


class Page(NamedTuple):
    """A manual page, and the section of the manual it belongs to."""

    name: str
    section: int
    text: str


def pages(commands: click.Group) -> Iterator[Page]:
    """Yield all pages for these commands; those of packages that are not here have none."""
    context = click.Context(commands, info_name="fastmasq", max_content_width=1000)
    found = dict(_load(commands, context))
    yield Page("fastmasq", 1, roff.page(_overview(commands, context, found)))
    for name, command in found.items():
        own = click.Context(command, parent=context, info_name=name)
        yield Page(f"fastmasq-{name}", 1, roff.page(_command(own)))
    yield Page("fastmasq.toml", 5, roff.page(_configuration(SAMPLE.read_text())))
    for name, (sentence, usage) in _LEGACY.items():
        yield Page(name, 8, roff.page(_of_1999(name, sentence, usage)))


def _load(commands: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    for name in commands.list_commands(context):
        try:
            command = commands.get_command(context, name)
        except FastmasqError:
            continue
        if command is not None:
            yield name, command


def _overview(commands: click.Group, context: click.Context, found: dict[str, click.Command]) -> list[str]:
    lines = roff.title("fastmasq", 1, __version__, "a masquerading gateway in user space")
    lines += [roff.heading("SYNOPSIS"), rf"{roff.bold('fastmasq')} {roff.italic('COMMAND')} [{roff.italic('OPTIONS')}]"]
    lines += [roff.heading("DESCRIPTION"), *roff.help_text(commands.help or ""), roff.heading("COMMANDS")]
    for name, command in found.items():
        lines += roff.described(rf"{roff.bold(f'fastmasq-{name}')}(1)", [roff.inline(_sentence(command))])
    lines += [roff.heading("OPTIONS"), *_options(context)]
    lines.append(roff.heading("EXIT STATUS"))
    for status, meaning in _EXIT_STATUSES:
        lines += roff.described(roff.bold(status), [roff.inline(meaning)])
    lines.append(roff.heading("FILES"))
    for path, meaning in _FILES:
        lines += roff.described(roff.italic(path), [roff.inline(meaning)])
    return lines + _see_also("fastmasq.toml(5)", *(f"{name}(8)" for name in _LEGACY))


def _command(context: click.Context) -> list[str]:
    """Return the page of a command; those below it have a section each."""
    command = context.command
    lines = roff.title(f"fastmasq-{context.info_name}", 1, __version__, _sentence(command).rstrip("."))
    lines += [roff.heading("SYNOPSIS"), _usage(context)]
    lines += [roff.heading("DESCRIPTION"), *roff.help_text(command.help or "")]
    lines += [roff.heading("OPTIONS"), *_options(context)]
    if isinstance(command, click.Group):
        lines.append(roff.heading("COMMANDS"))
        for below in _below(context):
            lines += [roff.heading(below.command_path, 2), _usage(below)]
            lines += [*roff.help_text(below.command.help or ""), *_options(below)]
    return lines + _see_also("fastmasq(1)", "fastmasq.toml(5)")


def _below(context: click.Context) -> Iterator[click.Context]:
    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None and not command.hidden:
            below = click.Context(command, parent=context, info_name=name)
            yield below
            if isinstance(command, click.Group):
                yield from _below(below)


def _sentence(command: click.Command) -> str:
    return (command.help or "").strip().split("\n")[0]


def _usage(context: click.Context) -> str:
    pieces = context.command.collect_usage_pieces(context)
    return " ".join([roff.bold(context.command_path), *map(roff.italic, pieces)])


def _options(context: click.Context) -> list[str]:
    lines: list[str] = []
    for parameter in context.command.get_params(context):
        names, meaning = parameter.get_help_record(context) or ("", "")
        if meaning:  # an argument without one is in the synopsis, and in the text
            lines += roff.described(roff.bold(names), [roff.inline(meaning)])
    return lines


def _configuration(sample: str) -> list[str]:
    """Return the page of the configuration: the sample's comments, each behind the keys that it is about."""
    lines = roff.title("fastmasq.toml", 5, __version__, "configuration of the masquerading gateway fastmasq")
    lines.append(roff.heading("DESCRIPTION"))
    for block in re.split(r"\n\n+", sample.strip()):
        lines += _settings(block.split("\n"))
    return lines + _see_also("fastmasq(1)", "fastmasq-check(1)", "fastmasq-setup(1)")


def _settings(block: list[str]) -> Iterator[str]:
    """Yield what a block of the sample says: a section's head, and comments, each followed by its keys."""
    comments: list[str] = []
    keys: list[str] = []
    if match := re.search(r"^#?(\[+\w[\w.]*\]+)$", "\n".join(block), re.MULTILINE):
        yield roff.heading(match[1])
        block = [line for line in block if not line.endswith(match[1])]
    for line in [*block, "# "]:
        if not line.startswith("# ") and line != "#":
            keys.append(line.removeprefix("#"))
            continue
        if keys:
            yield from _keys(keys, comments)
            comments, keys = [], []
        comments.append(line.removeprefix("#").strip())
    yield from _comments(comments)


def _keys(keys: list[str], comments: list[str]) -> Iterator[str]:
    first, *others = keys
    yield from [".TP", roff.bold(first)]
    for key in others:
        yield from [".TQ", roff.bold(key)]
    yield roff.inline(" ".join(comments)) or r"\&"


def _comments(comments: list[str]) -> Iterator[str]:
    for part in "\n".join(comments).split("\n\n"):
        if part.strip():
            yield from roff.paragraph(part)


def _of_1999(name: str, sentence: str, usage: str) -> list[str]:
    lines = roff.title(name, 8, __version__, sentence, [same for same, other in SAME_PAGE.items() if other == name])
    lines += [roff.heading("SYNOPSIS"), *roff.example(usage.strip("\n"))]
    lines += [roff.heading("DESCRIPTION"), *roff.markdown((MANUAL / "legacy-commands.md").read_text())]
    return lines + _see_also("fastmasq(1)", *(f"{other}(8)" for other in _LEGACY if other != name))


def _see_also(*names: str) -> list[str]:
    marked = [rf"{roff.bold(name)}({section}" for name, section in (each.split("(") for each in names)]
    return [roff.heading("SEE ALSO"), ",\n".join(marked)]
