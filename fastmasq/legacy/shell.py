"""Splits a shell script into simple commands, as far as that is possible without running it.

Understood: comments, continued lines, quotes, variables set in the script, arguments, redirections, and the joints
; & && || | of commands. What only a shell can know (a command substitution, a variable from elsewhere) makes a command
doubtful: its words are useless, `doubt` says why. What steers the shell (if, for, functions) is left to the caller: it
comes as a command that begins with that word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=", re.ASCII)
_BRACED = re.compile(r"\{(\w+)\}", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*|\d|[@*#?$!-]", re.ASCII)
_BLANK = re.compile(r"(?:[ \t\r]|\\\r?\n)+|#[^\n]*")
_SEPARATOR = re.compile(r"&&|\|\||[;&|\n]")
_REDIRECTION = re.compile(r"\d?(?:>>|>&|<<|>|<)[ \t]*|&>[ \t]*")


LONGEST_WORD = 4096  # characters; what is longer is none of our programs', and no number of Python's


class Command(Struct):
    """One simple command. line: where it begins, from 1. joint: what stands before it: "", "&&", "||" or "|".

    redirected: the file its output goes to, "" for none. doubt: why its words cannot be known, "" when they are.
    """

    line: int
    joint: str
    words: list[str]
    redirected: str = ""
    doubt: str = ""


def commands(text: str, arguments: Sequence[str] = ()) -> Iterator[Command]:
    """Return the commands of a script in order; assignments are carried out and do not appear.

    arguments: what $1, $2 ... stand for.
    """
    variables = {str(number): argument for number, argument in enumerate(arguments, 1)}
    variables |= {"@": " ".join(arguments), "*": " ".join(arguments), "#": str(len(arguments))}
    reading = _Reading(text, variables)
    while (command := reading.command()) is not None:
        if command.words or command.doubt:
            yield command


class _Reading:
    """A place in the text, and the variables set so far; a variable of doubtful value is None."""

    def __init__(self, text: str, variables: dict[str, str | None]) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.joint = ""
        self.variables = variables

    def command(self) -> Command | None:
        """Return the next command, perhaps without words; None at the end."""
        if self.at >= len(self.text):
            return None
        command = Command(self.line, self.joint, [])
        self.joint = ""
        while self.at < len(self.text):
            self._skip_blanks()
            separator = _SEPARATOR.match(self.text, self.at)
            redirection = _REDIRECTION.match(self.text, self.at)
            if redirection and (not separator or separator[0] == "&"):
                self._redirect(redirection[0], command)
            elif separator:
                self._advance(separator.end())
                self.joint = separator[0] if separator[0] in ("&&", "||", "|") else ""
                break
            elif self.at < len(self.text):
                self._word_into(command)
        return command

    def _skip_blanks(self) -> None:
        while True:
            blank = _BLANK.match(self.text, self.at)
            if not blank:
                return
            self._advance(blank.end())

    def _advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def _redirect(self, operator: str, command: Command) -> None:
        self._advance(self.at + len(operator))
        target, doubt = self._word()
        if "<<" in operator:
            command.doubt = "a here-document"
        elif ">" in operator and not operator.startswith("2") and "&" not in operator:
            command.redirected = " ".join(target)
            command.doubt = command.doubt or doubt

    def _word_into(self, command: Command) -> None:
        if not command.words:
            command.line = self.line
        assignment = _ASSIGNMENT.match(self.text, self.at)
        if assignment and command.words in ([], ["export"]):
            self.at = assignment.end()
            value, doubt = self._word()
            self.variables[assignment[1]] = None if doubt else " ".join(value)
            command.words.clear()
            return
        words, doubt = self._word()
        command.words += words
        command.doubt = command.doubt or doubt

    def _word(self) -> tuple[list[str], str]:
        """Read up to the word's end; return the words it becomes (an unquoted variable may be several), and a doubt."""
        word, doubt = _Word(), ""
        start = self.at
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter in " \t\r\n;&|<>" or (letter in "()" and self.at > start):
                break
            if letter == "\\":
                if self.text[self.at + 1 : self.at + 2] != "\n":
                    word.add(self.text[self.at + 1 : self.at + 2])
                self._advance(self.at + 2)
            elif letter == "'":
                end = self._find("'")
                word.add(self.text[self.at + 1 : end])
                self._advance(end + 1)
            elif letter == '"':
                inside, doubted = self._double_quoted()
                word.add(inside)
                doubt = doubt or doubted
            elif letter in "$`":
                value, doubted = self._expansion()
                word.add_split(value)
                doubt = doubt or doubted
            else:
                word.add(letter)
                self.at += 1
        return word.words(), doubt or ("a word that is too long" if word.is_too_long else "")

    def _find(self, quote: str) -> int:
        """Return where a quoted text ends; a quote that is not closed ends with the script."""
        end = self.text.find(quote, self.at + 1)
        return len(self.text) if end < 0 else end

    def _double_quoted(self) -> tuple[str, str]:
        inside, doubt = "", ""
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] != '"':
            letter = self.text[self.at]
            if letter in "$`":
                value, doubted = self._expansion()
                inside, doubt = (inside + value)[: LONGEST_WORD + 1], doubt or doubted
                continue
            if letter == "\\" and self.text[self.at + 1 : self.at + 2] in ('"', "\\", "$", "`", "\n"):
                self._advance(self.at + 1)
                letter = self.text[self.at] if self.text[self.at] != "\n" else ""
            inside += letter if len(inside) <= LONGEST_WORD else ""
            self._advance(self.at + 1)
        self.at += 1
        return inside, doubt

    def _expansion(self) -> tuple[str, str]:
        """Return the value of what begins here with $ or `, and a doubt."""
        if self.text[self.at] == "`":
            self._advance(self._find("`") + 1)
            return "", "the output of a command"
        if self.text.startswith("$(", self.at):
            end = self.text.find(")", self.at)
            self._advance(len(self.text) if end < 0 else end + 1)
            return "", "the output of a command"
        match = _BRACED.match(self.text, self.at + 1) or _NAME.match(self.text, self.at + 1)
        if not match:
            is_braced = self.text.startswith("${", self.at)
            self.at += 1
            return ("", "an expansion of a shell") if is_braced else ("$", "")
        self.at = match.end()
        name = match[1] if match.re is _BRACED else match[0]
        value = self.variables.get(name)
        if value is not None:
            return value, ""
        if name.isdigit():
            return "", f"argument {name}, which is not given"
        where = "has a value that only a shell can find" if name in self.variables else "is not set in this file"
        return "", f"${name}, which {where}"


class _Word:
    """What one word of the script becomes: several, or none, when variables in it hold blanks, or nothing."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self.is_too_long = False
        self._is_open = False  # whether what comes next still belongs to the last of them

    def add(self, text: str) -> None:
        """Add text as it is; even an empty one makes a word."""
        if not self._is_open:
            self._words.append("")
            self._is_open = True
        if len(self._words[-1]) + len(text) > LONGEST_WORD:
            self.is_too_long = True
        else:
            self._words[-1] += text

    def add_split(self, value: str) -> None:
        """Add the value of a variable outside quotes: blanks in it end words."""
        for index, part in enumerate(value.split()):
            self._is_open &= not (index or value[0].isspace())
            self.add(part)
        self._is_open &= not value[-1:].isspace()

    def words(self) -> list[str]:
        return self._words
