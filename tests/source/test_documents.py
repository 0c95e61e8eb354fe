"""The documents promise nothing that is not there: links lead somewhere, and commands that are named exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fastmasq.cli.main import ALIASES, COMMANDS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "bench/NOTES.md", *sorted((ROOT / "fastmasq/manual").glob("*.md"))]

README_LINES = 120
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)\s]*)?\)")
CODE = re.compile(r"^```\w*\n(.*?)^```|^ {4}([^\n]*)|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|\| )(fastmasq|scripts/dev) ([a-z][\w-]*)", re.MULTILINE)


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
