"""The manual pages: one for each command and name, every option and key in them, nothing roff would stumble over."""

from __future__ import annotations

import re

import pytest

from fastmasq import program
from fastmasq.cli.main import COMMANDS, fastmasq
from fastmasq.config.load import SAMPLE
from fastmasq.deploy import man_pages

MACROS = {".TH", ".SH", ".SS", ".PP", ".TP", ".TQ", ".IP", ".RS", ".RE", ".EX", ".EE", ".nh"}


@pytest.fixture(scope="module")
def pages() -> dict[tuple[str, int], str]:
    return {(page.name, page.section): page.text for page in man_pages.pages(fastmasq)}


def plain(text: str) -> str:
    """Return a page as it is read, without its marks."""
    text = re.sub(r"\\f[BIR]|\\&", "", text)
    for written, letter in (
        (r"\-", "-"),
        (r"\(aq", "'"),
        (r"\(ti", "~"),
        (r"\(ha", "^"),
        (r"\(ga", "`"),
        (r"\e", "\\"),
    ):
        text = text.replace(written, letter)
    return text


def test_every_command_and_every_name_has_a_page(pages: dict[tuple[str, int], str]) -> None:
    assert {name for name, section in pages if section == 1} == {"fastmasq", *(f"fastmasq-{name}" for name in COMMANDS)}
    assert {*man_pages.SAME_PAGE, *(name for name, section in pages if section == 8)} == set(program.LEGACY)
    assert {name for name, section in pages if section == 5} == {"fastmasq.toml"}


def test_every_option_is_in_the_page_of_its_command(pages: dict[tuple[str, int], str]) -> None:
    for name in COMMANDS:
        command = fastmasq.get_command(None, name)
        words = plain(pages[f"fastmasq-{name}", 1])
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in words, f"{name} {option}"


def test_every_key_is_in_the_page_of_the_configuration(pages: dict[tuple[str, int], str]) -> None:
    words = plain(pages["fastmasq.toml", 5])
    for line in SAMPLE.read_text().splitlines():
        if key := re.match(r"#?(\w+ = .+|\[+\w[\w.]*\]+)$", line):
            assert key[1] in words.replace(r"\(dq", '"'), line
    assert "Reason: more ports mean fewer changed ones." in words


def test_roff_is_given_no_other_macro(pages: dict[tuple[str, int], str]) -> None:
    for key, text in pages.items():
        for line in text.splitlines():
            assert not line.startswith(".") or line.split()[0] in MACROS, (key, line)
            assert not line.startswith("'"), (key, line)
            assert line, f"{key}: an empty line"


def test_the_names_of_1999_say_how_they_are_called(pages: dict[tuple[str, int], str]) -> None:
    for name in ("ipfwadm", "ipchains", "ipportfw", "ipmasqadm", "ipfwd"):
        words = plain(pages[name, 8])
        assert re.search(rf"^{name}(, [a-z-]+)* - ", words, re.MULTILINE)
        assert "Where they differ from the originals" in words
    assert "ipchains, ipchains-save, ipchains-restore - " in plain(pages["ipchains", 8])
