"""The documents promise nothing that is not there: links lead somewhere, and commands that are named exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest

from fastmasq.advice.advise import Advice, Question
from fastmasq.cli.main import ALIASES, COMMANDS, fastmasq
from fastmasq.config.load import SAMPLE
from fastmasq.kernel.guard.backends import BACKENDS
from fastmasq.observe.counters import NOTE_SENTENCES
from fastmasq.path.verdict import NOTES

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "bench/NOTES.md", *sorted((ROOT / "fastmasq/manual").glob("*.md"))]

README_LINES = 120
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)\s]*)?\)")
CODE = re.compile(r"^```\w*\n(.*?)^```|^ {4}([^\n]*)|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|\| )(fastmasq|scripts/dev) ([a-z][\w-]*)", re.MULTILINE)


BLOCK = re.compile(r"^```\w*\n(.*?)^```|^ {4}([^\n]*)", re.MULTILINE | re.DOTALL)
REDIRECTION = re.compile(r"\s\d?>+ *\S+|\s&(?=\s|$)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def developers_commands() -> set[str]:
    """Return the names of the cases in scripts/dev."""
    cases = re.findall(r"^    ([\w |-]+)\)", (ROOT / "scripts/dev").read_text(), re.MULTILINE)
    return {name.strip() for case in cases for name in case.split("|")}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_files(path: Path) -> None:
    assert [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_that_are_named_exist(path: Path) -> None:
    known = {"fastmasq": {*COMMANDS, *ALIASES}, "scripts/dev": developers_commands()}
    code = "\n".join("".join(groups) for groups in CODE.findall(path.read_text()))
    named = COMMAND.findall(code)
    assert [f"{program} {name}" for program, name in named if name not in known[program]] == []


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words after `fastmasq` of every line in a document's blocks of code that begins so, also in a pipe.

    Lines that only a shell can take apart, as those with braces, are left out, and so is what a form stands for.
    """
    lines = "\n".join("".join(groups) for groups in BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    for part in (part for line in lines for part in line.split(" | ")):
        if not part.startswith("fastmasq ") or re.search(r"[{}$]|\[|\b[A-Z]{3,}\b", part.partition("#")[0]):
            continue
        yield shlex.split(REDIRECTION.sub(" ", part), comments=True)[1:]


def complaint(words: list[str]) -> str | None:
    """Return what click says against the words of a command line; None if it would do them. Files need not be there."""
    command: click.Command = fastmasq
    parent = click.Context(fastmasq, info_name="fastmasq")
    try:
        while isinstance(command, click.Group):
            name, command, words = command.resolve_command(parent, words)
            parent = click.Context(command, parent=parent, info_name=name)
        command.make_context(command.name, list(words), parent=parent.parent)
    except click.exceptions.Exit:
        return None
    except click.UsageError as error:
        return None if error.message.endswith("No such file or directory") else error.format_message()
    return None


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_command_lines_are_such_as_the_program_takes(path: Path) -> None:
    wrong = {" ".join(words): complaint(words) for words in command_lines(path.read_text())}
    assert {line: said for line, said in wrong.items() if said} == {}


def test_wrong_command_lines_are_found() -> None:
    block = "iptables-save | fastmasq import iptables-save - >x   # read\nfastmasq check\n"
    text = f"    fastmasq status --jsom\n\n```\n{block}```\n"
    assert list(command_lines(text)) == [["status", "--jsom"], ["import", "iptables-save", "-"], ["check"]]
    assert "--jsom" in complaint(["status", "--jsom"])
    assert complaint(["check"]) is None


def test_the_readme_is_short_and_leads_to_every_page_of_the_manual() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= README_LINES
    pages = {name_of(path) for path in DOCUMENTS if path != README}
    assert pages <= set(LINK.findall(text))


def test_the_licence_comes_with_the_package() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        metadata = tomllib.load(file)
    licence = ROOT / "fastmasq/LICENSE"
    assert licence.read_text().startswith(f"{metadata['project']['license']} License")
    assert metadata["project"]["license-files"] == [name_of(licence)]
    assert licence.name in metadata["tool"]["setuptools"]["package-data"]["fastmasq"]


# What several documents and the program say must be one truth.

MANUAL = ROOT / "fastmasq/manual"


def page(name: str) -> str:
    """Return a page of the manual on one line, so that no line's end is in the way of a sentence."""
    return " ".join((MANUAL / f"{name}.md").read_text().split())


def in_order(text: str, words: Iterable[str]) -> bool:
    places = [text.index(word) for word in words]
    return places == sorted(places)


def test_guards_are_tried_in_one_order() -> None:
    guards = [name for name in BACKENDS if name != "none"]
    sample = " ".join(SAMPLE.read_text().replace("\n#", "").split())
    assert in_order(sample[sample.index('"auto" takes the first') :], [f'"{name}"' for name in guards])
    theory = page("theory-of-operation")
    assert in_order(theory[theory.index("The guard is an eBPF classifier") :], guards)
    kernels = page("kernels")
    assert in_order(
        kernels[kernels.index('`[takeover] guard = "auto"` takes the first') :], [f"`{name}`" for name in guards]
    )


def test_a_pptp_server_needs_a_forward_and_no_redirect() -> None:
    advice = Advice(Question(hosts=("10.0.0.4",), role="server", vpn="pptp"))
    assert "redirect" not in tomllib.loads(advice.toml())
    assert "A forward of the control port is all that a server needs" in page("vpn")
    assert "| TCP 1723 or UDP 500 | none for PPTP, 50 for IPsec |" in page("rules")


def test_pptp_turns_round_and_no_page_says_otherwise() -> None:
    vpn = page("vpn")
    assert "control connection and GRE turn round" in vpn
    assert re.search(r"\*\*Hairpin\*\*[^*]*PPTP \[turns round\]", vpn)


def test_redirect_to_a_proxy_works_and_no_page_says_otherwise() -> None:
    for path in DOCUMENTS:
        sentences = re.split(r"(?<=[.:;]) ", " ".join(path.read_text().split()))
        assert [one for one in sentences if "REDIRECT" in one and "refused" in one] == [], path


def test_every_note_and_reason_of_status_is_explained_in_the_manual() -> None:
    assert NOTE_SENTENCES.keys() == {*NOTES}
    assert "Notes" in (MANUAL / "counters.md").read_text()
