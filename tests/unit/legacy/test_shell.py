"""Scripts split into commands: what a shell would do, as far as that can be known without one."""

from __future__ import annotations

import contextlib
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmasq.legacy.shell import Command, commands
from fastmasq.legacy.shell_grammar import Refused


def words(text: str, *arguments: str) -> list[list[str]]:
    return [command.words for command in commands(text, arguments)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("#!/bin/sh\n# comment\n\n", []),
        ("a b\nc", [["a", "b"], ["c"]]),
        ("a b # comment\nc#d", [["a", "b"], ["c#d"]]),
        ("a \\\n  b \\\n c", [["a", "b", "c"]]),
        ("a; b;c", [["a"], ["b"], ["c"]]),
        ("a 10 &\nb &", [["a", "10"], ["b"]]),
        ("a && b || c | d", [["a"], ["b"], ["c"], ["d"]]),
        ("a 'b c' \"d e\" f\\ g ''", [["a", "b c", "d e", "f g", ""]]),
        ('a "x\\"y\\$z"', [["a", 'x"y$z']]),
        ("a b'c'\"d\"", [["a", "bcd"]]),
        ("X=1\na $X ${X}2 '$X' \"$X\"", [["a", "1", "12", "$X", "1"]]),
        ("X='1 2'\na $X \"$X\"", [["a", "1", "2", "1 2"]]),
        ("X=\na $X b", [["a", "b"]]),
        ("A=1 B=$A\na $B", [["a", "1"]]),
        ("export A=1\na $A", [["a", "1"]]),
        ("A=1; B=2; a $A $B", [["a", "1", "2"]]),
        ("a >/dev/null 2>&1 b", [["a", "b"]]),
        ("a 2>/dev/null <in", [["a"]]),
        ("a $", [["a", "$"]]),
        ("a b <<EOF\nc d\nEOF\ne", [["a", "b"], ["e"]]),
        ("for A in 1 '2 3'; do a $A; done", [["a", "1"], ["a", "2", "3"]]),
        ("a b=c", [["a", "b=c"]]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_a15_arguments():
    assert words('a ${4} $1 $# "$@"', "ppp0", "tty", "9600", "1.2.3.4") == [
        ["a", "1.2.3.4", "ppp0", "4", "ppp0", "tty", "9600", "1.2.3.4"]
    ]


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ("a $X", "$X, which is not set in this file"),
        ("X=`ip addr`\na $X", "$X, which has a value that only a shell can find"),
        ("a $(ip addr) b", "the output of a command"),
        ('a "`ip addr`"', "the output of a command"),
        ("X=1\na ${#X}", "an expansion of a shell"),
        ("a ${X:-1}", "$X, which is not set in this file"),
        ("a ${4}", "argument 4, which is not given"),
        ("a $$", "$$, which is not set in this file"),
    ],
)
def test_doubts(text, doubt):
    assert [command.doubt for command in commands(text) if not command.is_captured] == [doubt]


def test_commands_know_their_lines_files_and_what_they_depend_on():
    text = "# first\n\na \\\nb\nX='two\nlines'\necho 7 > /proc/x\nc && d | e\nX=$(f) <g\n"
    perhaps = "is run or not by what stands before &&; write it on a line of its own"
    within = "is run within a command substitution; write it on a line of its own"
    assert list(commands(text)) == [
        Command(3, ["a", "b"]),
        Command(7, ["echo", "7"], "/proc/x", "/proc/x"),
        Command(8, ["c"]),
        Command(8, ["d"], unsure=perhaps),
        Command(8, ["e"], unsure=perhaps),
        Command(9, ["f"], unsure=within, is_captured=True),
    ]


def test_what_comes_before_a_refusal_is_told():
    script = commands("a\nb; f() { c; }\n")
    assert [next(script).words, next(script).words] == [["a"], ["b"]]
    with pytest.raises(Refused, match="a function needs a shell") as caught:
        next(script)
    assert caught.value.line == 2


@pytest.mark.parametrize(
    "text",
    [
        "a " + "$(" * 5000,
        "a " + "${X:-" * 5000,
        "for A in 1; do " * 5000,
        "A='" + "1 " * 2000 + "'\n" + "for B in $A; do " * 5 + "a; " + "done; " * 5,
    ],
    ids=["substitutions", "defaults", "loops", "many turns"],
)
def test_scripts_that_are_too_much_have_an_end(text):
    with pytest.raises(Refused, match=r"is nested too deeply|come to more than \d+ MiB"):
        for _ in commands(text):
            pass


@given(st.text(alphabet="ab1 \t\n\\'\"$`{}()<>&|;#=!-", max_size=60))
def test_any_text_comes_to_an_end(text):
    with contextlib.suppress(Refused):
        for command in commands(text, ("x",)):
            assert 1 <= command.line <= text.count("\n") + 1


PIECES = (
    *("a", "b1", "-S", "10.0.0.0/8", "x#y", "=", "é", "'x  y'", "''", '""', "'$ONE'", "\\ ", "\\$"),
    *('"q  $ONE"', '"\\$ \\" \\\\ \\a"', '"$TWO"', "$ONE", "${TWO}", "$BLANKS", "${BLANKS}", "$NONE", "$SPACE"),
    *("$1", "${4}", '"$*"', "$#"),
)
pieces = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join)
separators = st.sampled_from(
    ["\n", "\n\n", "; ", " && ", " # comment\n", ";# comment\n", " \\\n ; ", " >/dev/fd/1\n", " 2>&1\n"]
)
lines = st.tuples(st.lists(pieces, max_size=4).map(" ".join), separators)
PRELUDE = 'show() { printf "%s\\0" "$#" "$@"; }\n'
SETTINGS = "ONE=1\nTWO='2  two'\nBLANKS=' x\ty '\nSPACE=' '\nexport NONE=\n"
ARGUMENTS = ("ppp0", "tty", "9600", "1.2.3.4")


@settings(deadline=None, max_examples=150)
@given(st.lists(lines, min_size=1, max_size=8))
def test_words_are_those_of_sh(script: list[tuple[str, str]]) -> None:
    """What `sh` gives to a function that shows its arguments is what we read."""
    text = SETTINGS + "".join(f"show {words}{separator}" for words, separator in script) + "show end\n"
    done = subprocess.run(["sh", "-c", PRELUDE + text, "sh", *ARGUMENTS], capture_output=True, check=True)
    fields = iter(done.stdout.decode().split("\0")[:-1])
    expected = [[next(fields) for _ in range(int(count))] for count in fields]
    assert [command.words[1:] for command in commands(text, ARGUMENTS)] == expected
