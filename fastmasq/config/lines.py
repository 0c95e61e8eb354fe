"""Finds the line on which each key and list element of a TOML text stands.

tomllib gives values without their place. This scanner gives the places without the values; it is only used on text
that tomllib has accepted, so it checks nothing.
"""

from __future__ import annotations

import re
import tomllib

Place = tuple[str | int, ...]  # keys, and indices in lists: ("forward", 0, "listen")

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'  # up to two quotes may stand right before the closing three
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'",
    re.DOTALL,
)
_PLAIN = re.compile(r"[^,\]}#\n]*")  # a number, a date (it may have a blank inside), true, false


def find_lines(text: str) -> dict[Place, int]:
    """Return the line, from 1, of every table, key and list element in well-formed TOML."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Place, int] = {}
        self._counted_to, self._line = 0, 1
        self._last_index: dict[Place, int] = {}  # of each array of tables

    def document(self) -> None:
        table: Place = ()
        self._take(_BLANK)
        while self.at < len(self.text):
            if self.text.startswith("[", self.at):
                table = self._header()
            else:
                self._pair(table)
            self._take(_BLANK)

    def _header(self) -> Place:
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        names = self._key()
        self.at += 2 if is_array else 1
        path: Place = ()
        for name in names[:-1]:
            path = self._enter((*path, name))
        path += (names[-1],)
        self._mark(path)
        if not is_array:
            return self._enter(path)
        self._last_index[path] = self._last_index.get(path, -1) + 1
        path = self._enter(path)
        self._mark(path)
        return path

    def _enter(self, path: Place) -> Place:
        """Return `path` or, where it is an array of tables, the path of its last table."""
        return (*path, self._last_index[path]) if path in self._last_index else path

    def _pair(self, table: Place) -> None:
        names = self._key()
        for length in range(1, len(names) + 1):
            self._mark(table + names[:length])
        self._take(_SPACE)
        self.at += 1  # the equals sign
        self._take(_SPACE)
        self._value(table + names)

    def _key(self) -> tuple[str, ...]:
        names = []
        while True:
            self._take(_SPACE)
            if self.text[self.at] in "\"'":
                names.append(tomllib.loads("key = " + self._take(_STRING))["key"])
            else:
                names.append(self._take(_BARE_KEY))
            self._take(_SPACE)
            if not self.text.startswith(".", self.at):
                return tuple(names)
            self.at += 1

    def _value(self, path: Place) -> None:
        first = self.text[self.at]
        if first in "\"'":
            self._take(_STRING)
        elif first in "[{":
            self._container(path, is_list=first == "[")
        else:
            self._take(_PLAIN)

    def _container(self, path: Place, is_list: bool) -> None:
        index = 0
        self.at += 1
        self._take(_BLANK)
        while self.text[self.at] not in "]}":
            if is_list:
                self._mark((*path, index))
                self._value((*path, index))
            else:
                self._pair(path)
            index += 1
            self._take(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1
                self._take(_BLANK)
        self.at += 1

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match, f"{pattern.pattern} does not match at {self.at}"
        self.at = match.end()
        return match[0]

    def _mark(self, path: Place) -> None:
        self._line += self.text.count("\n", self._counted_to, self.at)
        self._counted_to = self.at
        self.lines.setdefault(path, self._line)
