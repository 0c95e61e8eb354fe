"""Text in the macros of man(7): what means something there is escaped, and what the manual's Markdown means is kept."""

from __future__ import annotations

import pytest

from fastmasq.deploy import roff


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (".TH is text", r"\&.TH is text"),
        ("'quoted'", r"\(aqquoted\(aq"),
        (r"back\slash", r"back\eslash"),
        ("--config -c", r"\-\-config \-c"),
        ("a\n.b", "a\n\\&.b"),
    ],
)
def test_what_roff_would_obey_is_literal(text: str, escaped: str) -> None:
    assert roff.escape(text) == escaped


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("run `fastmasq run`.", r"run \fBfastmasq run\fR."),
        ("**to be sure**, *perhaps*", r"\fBto be sure\fR, \fIperhaps\fR"),
        ("see [the *other* page](other.md)", r"see the \fIother\fR page"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        (".TH is text", r"\&.TH is text"),
        ("`.hidden` first", r"\fB.hidden\fR first"),
    ],
)
def test_words_are_marked(text: str, written: str) -> None:
    assert roff.inline(text) == written


def test_a_page_of_the_manual() -> None:
    page = "\n".join(
        [
            *("# Title", "", "First", "words.", "", "## `Head`", "* one", "  goes on", "* two", ""),
            *("| key | what |", "|---|---|", "| `a` | does \\| b |", "", "```toml", "x = 1", "", "y = 2", "```"),
            *("### Below", "1. first", "", "    as it is"),
        ]
    )
    assert roff.markdown(page) == [
        *(".PP", "First words.", '.SH "Head"', r".IP \(bu 4", "one goes on", r".IP \(bu 4", "two"),
        *(".TP", r"\fBa\fR", "does | b"),
        *(".PP", ".RS 4", ".EX", "x = 1", r"\&", "y = 2", ".EE", ".RE"),
        *('.SS "Below"', ".IP 1. 4", "first", ".PP", ".RS 4", ".EX", "as it is", ".EE", ".RE"),
    ]


def test_help_keeps_what_click_would_keep() -> None:
    assert roff.help_text("Says it.\n\n    \b\n      a  b\n      c  d\n\n    And on\n    it goes.\n    ") == [
        *(".PP", "Says it.", ".PP", ".RS 4", ".EX", "  a  b", "  c  d", ".EE", ".RE", ".PP", "And on it goes."),
    ]
