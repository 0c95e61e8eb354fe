"""Takes a command line apart as getopt did: options alone or in clusters, their arguments, and other words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

from fastmasq.errors import ConfigurationError

_NUMBER = re.compile(r"\s*[+-]?\d{1,19}", re.ASCII)
_HEX = re.compile(r"\s*\+?(?:0[xX])?[0-9a-fA-F]{1,16}", re.ASCII)

_MOST_DIGITS = 19

STRAY = ""
"""Stands for the option of a word that is none."""


class Misuse(ConfigurationError):
    """A command line that its program would not take. `text` is the reason alone, in the words of the program.

    `str` is what the program prints, over two lines; the exit status is 2.
    """

    def __init__(self, program: str, text: str, hint: str) -> None:
        super().__init__(f"{program}: {text}\n{hint}")
        self.program = program
        self.text = text


class Words:
    """The words behind a program's name, read from the left.

    short: the options by letter, each followed by ":" when it has an argument, "::" when it may have one, attached.
    long: name -> the letter it stands for. fail: raises what a mistake is reported by.
    Iterating gives (letter, argument or None) for an option, (STRAY, word) for any other word. What comes behind the
    word "--" ends up in `rest`.
    """

    def __init__(
        self,
        words: Sequence[str],
        short: str,
        fail: Callable[[str], NoReturn],
        long: Mapping[str, str] | None = None,
    ) -> None:
        self._words = list(words)
        self._arity = {letter: len(colons) for letter, colons in re.findall(r"([^:])(:*)", short)}
        self._long = long or {}
        self._fail = fail
        self._at = 0
        self._in_cluster = False
        self.rest: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        while self._at < len(self._words):
            word = self._words[self._at]
            self._at += 1
            if word == "--":
                self.rest = self._words[self._at :]
                return
            if word.startswith("--") and self._long:
                yield self._read_long(word[2:])
            elif len(word) > 1 and word.startswith("-"):
                yield from self._read_cluster(word[1:])
            else:
                yield STRAY, word

    def peek(self, ahead: int = 0) -> str | None:
        """Return the next word, or one further ahead; None behind the end, and within a cluster."""
        at = self._at + ahead
        return None if self._in_cluster or at >= len(self._words) else self._words[at]

    def take(self, stops: str = "-") -> str | None:
        """Return the next word and go past it, unless it begins with one of `stops`: then, and at the end, None."""
        word = self.peek()
        if word is None or word.startswith(tuple(stops)):
            return None
        self._at += 1
        return word

    def _read_cluster(self, letters: str) -> Iterator[tuple[str, str | None]]:
        for position, letter in enumerate(letters, 1):
            arity, attached = self._arity.get(letter), letters[position:]
            if arity is None:
                self._fail(f"invalid option -- {letter}")
            if arity == 0:
                self._in_cluster = bool(attached)
                yield letter, None
                continue
            yield (
                letter,
                attached or (None if arity == 2 else self._argument(f"option requires an argument -- {letter}")),
            )
            return

    def _read_long(self, word: str) -> tuple[str, str | None]:
        written, equals, value = word.partition("=")
        near = [name for name in self._long if name.startswith(written)]
        if not near:
            self._fail(f"unrecognized option `--{written}'")
        if written not in near and len({self._long[name] for name in near}) > 1:
            self._fail(f"option `--{written}' is ambiguous")
        name = written if written in near else near[0]
        letter = self._long[name]
        arity = self._arity[letter]
        if equals and arity == 0:
            self._fail(f"option `--{name}' doesn't allow an argument")
        if equals or arity != 1:
            return letter, value if equals else None
        return letter, self._argument(f"option `--{name}' requires an argument")

    def _argument(self, complaint: str) -> str:
        if self._at == len(self._words):
            self._fail(complaint)
        self._at += 1
        return self._words[self._at - 1]


def number(text: str, least: int, most: int) -> int | None:
    """Return the decimal number a whole text stands for, None when it is none or out of bounds."""
    if not _NUMBER.fullmatch(text):
        return None
    value = int(text)
    return value if least <= value <= most else None


def whole(text: str) -> int | None:
    """Return the number that decimal digits stand for, None for any other text, and for one that is far too long."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def hex_octet(text: str) -> int | None:
    """Return the octet written in hexadecimal digits, with or without 0x; None when it is none."""
    value = int(text, 16) if _HEX.fullmatch(text) else 256
    return value if value <= 0xFF else None


def plain_dashes(word: str) -> str:
    """Return a word with the typographic dash at its beginning written as typed: word processors change them (A-29).

    A long dash before a name was two hyphens, before a single letter one.
    """
    match = re.match("[\u2010-\u2015\u2212]+", word)
    if not match:
        return word
    rest = word[match.end() :]
    was_double = match[0] in ("\u2014", "\u2015") and len(rest) > 1
    return ("--" if was_double else "-" * len(match[0])) + rest
