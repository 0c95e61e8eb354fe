"""Reads the grammar of the shell (POSIX.1-2017, XCU chapter 2), as far as rule scripts go: text becomes commands.

Known are simple commands with quotes, expansions, assignments, redirections and here-documents; pipelines, && and ||,
lists, and the compound commands but for functions. All else that steers a shell raises `Refused` with its name, and so
does what no shell would take. Nothing is expanded or run here: legacy/shell.py does that, command by command.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator

from msgspec import Struct

from fastmasq.errors import ConfigurationError


class Refused(ConfigurationError):
    """What a script asks of a shell that we are not, or what no shell would take; `line` is where, from 1."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def needs_shell(line: int, what: str) -> Refused:
    """Return the refusal of something that a shell would do."""
    return Refused(line, f"{what} needs a shell; run the script with sh, and fastmasq's programs in its PATH")


def not_shell(line: int, what: str) -> Refused:
    """Return the refusal of something at which a shell would end."""
    return Refused(line, f"{what}: a shell would end here; correct the line")


class Text(Struct, frozen=True):
    """Characters as they stand; quoted ones have lost their quotes."""

    text: str
    is_quoted: bool


class Parameter(Struct, frozen=True):
    """$name, ${name operator argument} with one of :- - := = :+ + :? ? % %% # ##, or ${#name}, operator "length"."""

    name: str
    is_quoted: bool
    operator: str = ""
    argument: tuple[Part, ...] = ()


class Output(Struct, frozen=True):
    """$(commands): what commands write."""

    body: tuple[Lists, ...]


Part = Text | Parameter | Output
Word = tuple[Part, ...]


class Redirection(Struct):
    """[descriptor]operator word. For << and <<- the word is the text of the here-document."""

    line: int
    operator: str
    descriptor: str
    word: Word = ()


class Simple(Struct):
    """NAME=value ... word ... and redirections; `line` is where it begins, from 1."""

    line: int
    assignments: list[tuple[str, Word]]
    words: list[Word]
    redirections: list[Redirection]


class Loop(Struct):
    """for name in words; do body; done. Without `in` the words are None, for the script's arguments."""

    line: int
    name: str
    words: list[Word] | None
    body: list[Lists]
    redirections: list[Redirection] = []


class Group(Struct):
    """{ body; }, or ( body ), which has variables of its own."""

    line: int
    body: list[Lists]
    is_apart: bool
    redirections: list[Redirection] = []


class Choice(Struct):
    """What is run or not, or again: if, case, while or until, its `name`.

    first: the condition of an `if`, which is run in any case; bodies: all other lists. words: those of a `case`.
    """

    line: int
    name: str
    first: list[Lists]
    bodies: list[list[Lists]]
    words: list[Word] = []
    redirections: list[Redirection] = []


AnyCommand = Simple | Loop | Group | Choice


class Pipeline(Struct):
    """Commands with | between them; is_negated: with ! before them."""

    commands: list[AnyCommand]
    is_negated: bool = False


class Lists(Struct):
    """Pipelines with what stands before each, "", "&&" or "||"; with & they run in the background."""

    pipelines: list[tuple[str, Pipeline]]
    is_background: bool = False


def read(text: str) -> Iterator[Lists]:
    """Yield the lists of a script one by one. Raises `Refused` where it comes to what it does not know."""
    return _Reading(text, 1, 0).lists()


_DEEPEST = 20  # loops, substitutions and arguments in each other
_REDIRECTIONS = frozenset(("<", ">", ">>", ">|", "<<", "<<-", "<&", ">&", "<>"))
_OTHER_SHELLS = frozenset(("&>", "&>>", "|&", "<<<"))  # bash and zsh know them; others read them otherwise
_COMPOUND = frozenset(("for", "case", "if", "while", "until", "{", "("))
_CLOSING = frozenset(("then", "do", "done", "elif", "else", "esac", "fi", "}"))
_OPERATORS = _REDIRECTIONS | _OTHER_SHELLS | {"\n", ";", ";;", ";&", ";;&", "&", "&&", "|", "||", "(", ")"}

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)=", re.ASCII)
_OTHER_ASSIGNED = re.compile(r"[A-Za-z_]\w*(\+=|\[.*\]\+?=)", re.ASCII)
_PARAMETER = re.compile(r"[A-Za-z_]\w*|\d|[@*#?$!-]", re.ASCII)
_BRACED = re.compile(r"([A-Za-z_]\w*|\d+|[@*#?$!-])(:?[-=?+]|%%?|##?|(?=\}))", re.ASCII)
_RESERVED = re.compile(
    r"(!|\{|\}|\[\[|case|do|done|elif|else|esac|fi|for|function|if|in|select|then|until|while)"
    r"(?=(?:\\\n)*(?:[ \t\n;&|<>()]|\Z))"
)
_BLANKS = re.compile(r"(?:[ \t]|\\\n)+")
_COMMENT = re.compile(r"#[^\n]*")
_DESCRIPTOR = re.compile(r"(\d+)(?=(?:\\\n)*[<>])", re.ASCII)
_BARE = re.compile(r"[^ \t\n\\'\"$`;&|<>()]+")
_BARE_ARGUMENT = re.compile(r"[^\\'\"$`}]+")
_QUOTED = {closing: re.compile(rf"[^\\$`\"{closing}]+" if closing else r"[^\\$`]+") for closing in ('"', "}", "")}
_ESCAPED = {'"': '$`"\\', "}": '$`"\\}', "": "$`\\"}  # by a backslash within quotes, by what closes these
_LENGTH = re.compile(r"#([A-Za-z_]\w*|\d+|[@*])\}", re.ASCII)
_PLAIN_PATTERN = re.compile(r"[^\"'\\`${}]*(?=\})")


class _Reading:
    """A place in a text. first_line: where it begins in the script; depth: how many texts it is in."""

    def __init__(self, text: str, first_line: int, depth: int) -> None:
        self.text = text
        self.at = 0
        self._first_line = first_line
        self._depth = depth
        self._line_ends = [match.start() for match in re.finditer("\n", text)]
        self._waiting: list[_HereDocument] = []  # whose text begins on the next line

    # -- lists and pipelines -------------------------------------------------------------------------------------------

    def lists(self, *ends: str) -> Iterator[Lists]:
        """Yield lists up to one of `ends`, operators or reserved words, which is not read; without, up to the text's.

        A list with here-documents comes when their text has been read.
        """
        found: list[Lists] = []
        while True:
            self._skip_lines()
            if not self._waiting:
                yield from found
                found = []
            if self.at >= len(self.text):
                if ends:
                    raise not_shell(self._line(), f"{ends[-1]!r} is missing")
                return
            if self._is_at(*ends):
                yield from found
                return
            found.append(self._list())

    def _list(self) -> Lists:
        found = Lists([("", self._pipeline())])
        while (operator := self._take("&&", "||")) is not None:
            self._skip_lines()
            found.pipelines.append((operator, self._pipeline()))
        operator, after = self._operator()
        if operator in (";", "&"):
            self.at = after
            found.is_background = operator == "&"
        elif operator not in ("", "\n", ")", ";;"):
            raise self._misplaced(operator)
        elif not operator and self.at < len(self.text) and not self._is_at(*_CLOSING):
            raise not_shell(self._line(), "a word behind a compound command")
        return found

    def _pipeline(self) -> Pipeline:
        self._skip_blanks()
        is_negated = self._take_reserved("!")
        commands = [self._command()]
        while self._take("|") is not None:
            self._skip_lines()
            commands.append(self._command())
        return Pipeline(commands, is_negated)

    def _command(self) -> AnyCommand:
        self._skip_blanks()
        line = self._line()
        reserved = _RESERVED.match(self.text, self.at)
        name = reserved[1] if reserved else self._operator()[0]
        if name not in _COMPOUND:
            if reserved is not None:
                raise needs_shell(line, repr(name))
            return self._simple()
        if self.text.startswith("((", self.at):
            raise needs_shell(line, "'((', which not every shell knows,")
        self.at = reserved.end() if reserved else self._operator()[1]
        self._go_down()
        found = self._compound(line, name)
        self._depth -= 1
        outside = Simple(line, [], [], found.redirections)
        while self._redirected(outside):
            pass
        return found

    def _compound(self, line: int, name: str) -> AnyCommand:
        """Read what stands behind the first word of a compound command, up to its last."""
        if name == "for":
            return self._loop(line)
        if name == "case":
            return self._case(line)
        if name in ("{", "("):
            body, _ = self._body("}" if name == "{" else ")")
            return Group(line, body, name == "(", [])
        if name != "if":
            return Choice(line, name, [], [self._body("do")[0], self._body("done")[0]], [], [])
        first, _ = self._body("then")
        body, end = self._body("elif", "else", "fi")
        bodies = [body]
        while end == "elif":
            bodies.append(self._body("then")[0])
            body, end = self._body("elif", "else", "fi")
            bodies.append(body)
        if end == "else":
            bodies.append(self._body("fi")[0])
        return Choice(line, name, first, bodies, [], [])

    def _body(self, *ends: str) -> tuple[list[Lists], str]:
        """Read lists, at least one, and the word or operator behind them; return it as well."""
        body = list(self.lists(*ends))
        end = next(each for each in ends if self._is_at(each))
        if not body:
            raise not_shell(self._line(), f"{end!r} behind nothing")
        if not self._take_reserved(end):
            self._take(end)
        return body, end

    def _case(self, line: int) -> Choice:
        self._skip_blanks()
        words = [self._word()]
        self._skip_lines()
        if not words[0] or not self._take_reserved("in"):
            raise not_shell(line, "'case' without 'in'")
        bodies = []
        self._skip_lines()
        while not self._take_reserved("esac"):
            self._take("(")
            words.append(self._pattern())
            while self._take("|") is not None:
                words.append(self._pattern())
            if self._take(")") is None:
                raise not_shell(self._line(), "a pattern of 'case' without ')'")
            bodies.append(list(self.lists(";;", "esac")))
            self._take(";;")
            self._skip_lines()
        return Choice(line, "case", [], bodies, words, [])

    def _pattern(self) -> Word:
        self._skip_blanks()
        word = self._word()
        if not word:
            raise not_shell(self._line(), "'case' without a pattern, or without 'esac'")
        return word

    def _loop(self, line: int) -> Loop:
        self._skip_blanks()
        name = _NAME.match(self.text, self.at)
        if name is None:
            raise not_shell(line, "'for' without the name of a variable")
        self.at = name.end()
        self._skip_lines()
        words: list[Word] | None = None
        if self._take_reserved("in"):
            words = []
            while (operator := self._take(";", "\n")) is None:
                if (misplaced := self._operator()[0]) or self.at >= len(self.text):
                    raise self._misplaced(misplaced)
                words.append(self._word())
                self._skip_blanks()
            if operator == "\n":
                self._read_here_documents()
        else:
            self._take(";")
        self._skip_lines()
        if not self._take_reserved("do"):
            raise not_shell(self._line(), "'for' without 'do'")
        return Loop(line, name[0], words, self._body("done")[0], [])

    def _simple(self) -> Simple:
        found = Simple(self._line(), [], [], [])
        while True:
            if self._redirected(found):
                continue
            operator, _ = self._operator()
            if operator or self.at >= len(self.text):
                break
            self._word_into(found)
        if operator == "(":
            raise needs_shell(self._line(), "a function")
        if not (found.words or found.assignments or found.redirections):
            raise self._misplaced(operator)
        return found

    def _redirected(self, found: Simple) -> bool:
        """Read a redirection, if one is next."""
        self._skip_blanks()
        operator, after = self._operator()
        if operator in _OTHER_SHELLS:
            raise needs_shell(self._line(), f"{operator!r}, which not every shell knows,")
        descriptor = _DESCRIPTOR.match(self.text, self.at)
        if operator in _REDIRECTIONS:
            self.at = after
            self._redirection(found, operator, "")
        elif descriptor is not None:
            self.at = descriptor.end()
            operator, self.at = self._operator()
            self._redirection(found, operator, descriptor[1])
        else:
            return False
        return True

    def _word_into(self, found: Simple) -> None:
        word = self._word()
        if found.words:
            found.words.append(word)
        elif isinstance(word[0], Text) and not word[0].is_quoted and _OTHER_ASSIGNED.match(word[0].text):
            raise needs_shell(self._line(), f"{word[0].text!r}, which not every shell knows,")
        elif assigned := assignment(word):
            found.assignments.append(assigned)
        else:
            found.words.append(word)

    def _redirection(self, found: Simple, operator: str, descriptor: str) -> None:
        line = self._line()
        if len(descriptor) > 1 or operator not in _REDIRECTIONS:
            raise needs_shell(line, f"'{descriptor}{operator}', which not every shell knows,")
        self._skip_blanks()
        redirection = Redirection(line, operator, descriptor)
        found.redirections.append(redirection)
        word = () if _DESCRIPTOR.match(self.text, self.at) else self._word()
        if not word:
            raise not_shell(line, f"{operator!r} without a file")
        if operator not in ("<<", "<<-"):
            redirection.word = word
            return
        texts = [part for part in word if isinstance(part, Text)]
        if len(texts) < len(word):
            raise needs_shell(line, "an expansion at the end of a here-document")
        is_quoted = any(part.is_quoted for part in texts)
        self._waiting.append(_HereDocument(redirection, "".join(part.text for part in texts), is_quoted))

    # -- here-documents ------------------------------------------------------------------------------------------------

    def _read_here_documents(self) -> None:
        """Read the texts that begin here, behind the end of a line."""
        waiting, self._waiting = self._waiting, []
        for document in waiting:
            first_line = self._line()
            text = self._here_text(document)
            if document.is_quoted:
                document.redirection.word = (Text(text, True),)
            else:
                inside = _Reading(text, first_line, self._depth)
                inside._go_down()
                document.redirection.word = tuple(inside._quoted(""))

    def _here_text(self, document: _HereDocument) -> str:
        """Return the lines of a here-document, and read its last line."""
        strips = document.redirection.operator == "<<-"
        lines = []
        while self.at < len(self.text):
            line = self._rest_of_line()
            line = line.lstrip("\t") if strips else line
            if line == document.end:
                return "".join(f"{line}\n" for line in lines)
            if not document.is_quoted:
                whole = line
                while (len(whole) - len(whole.rstrip("\\"))) % 2 and self.at < len(self.text):
                    line = self._rest_of_line()
                    whole = whole[:-1] + line
                    if document.end in (whole, line.lstrip("\t")):
                        raise needs_shell(self._line(), "a here-document whose last line is joined to another")
                line = whole
            lines.append(line)
        raise not_shell(document.redirection.line, f"a here-document without its end, {document.end!r}")

    def _rest_of_line(self) -> str:
        end = self.text.find("\n", self.at)
        end = len(self.text) if end < 0 else end
        line = self.text[self.at : end]
        self.at = min(end + 1, len(self.text))
        return line

    # -- words ---------------------------------------------------------------------------------------------------------

    def _word(self) -> Word:
        parts: list[Part] = []
        for part in self._unquoted(_BARE, " \t\n;&|<>()"):
            before = parts[-1] if parts else None
            if isinstance(part, Text) and isinstance(before, Text) and not (part.is_quoted or before.is_quoted):
                parts[-1] = Text(before.text + part.text, False)  # their lines are joined
            else:
                parts.append(part)
        return tuple(parts)

    def _unquoted(self, bare: re.Pattern[str], ends: str) -> Iterator[Part]:
        """Read a word, or the argument of an expansion, up to one of the characters `ends`."""
        while True:
            self._skip_joints()
            letter = self.text[self.at : self.at + 1]
            if not letter or letter in ends:
                return
            if letter == "\\":
                yield Text(self.text[self.at + 1 : self.at + 2] or "\\", True)
                self.at += 2
            elif letter == "'":
                yield Text(self._single_quoted(), True)
            elif letter == '"':
                yield from self._double_quoted()
            elif letter in "$`":
                yield self._expansion(is_quoted=False)
            else:
                match = bare.match(self.text, self.at)
                self.at = match.end()
                yield Text(match[0], False)

    def _single_quoted(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise not_shell(self._line(), "' is not closed")
        text = self.text[self.at + 1 : end]
        self.at = end + 1
        return text

    def _double_quoted(self) -> list[Part]:
        line = self._line()
        self.at += 1
        parts = list(self._quoted('"'))
        if self.text[self.at : self.at + 1] != '"':
            raise not_shell(line, '" is not closed')
        self.at += 1
        are_arguments = parts and all(isinstance(part, Parameter) and part.name == "@" for part in parts)
        return parts if are_arguments else [Text("", True), *parts]  # "" is a word, "$@" perhaps none

    def _quoted(self, closing: str) -> Iterator[Part]:
        """Read what is within double quotes, up to `closing`: ", } of an expansion's argument, or "" for the end."""
        while self.at < len(self.text):
            letter = self.text[self.at]
            if letter == closing:
                return
            if letter == "\\":
                following = self.text[self.at + 1 : self.at + 2]
                if following == "\n":
                    pass
                elif following and following in _ESCAPED[closing]:
                    yield Text(following, True)
                else:
                    yield Text(f"\\{following}", True)
                self.at += 2
            elif letter in "$`":
                yield self._expansion(is_quoted=True)
            elif letter == '"' and closing:
                raise needs_shell(self._line(), "a quote in a quoted expansion")
            else:
                match = _QUOTED[closing].match(self.text, self.at)
                self.at = match.end()
                yield Text(match[0], True)

    # -- expansions ----------------------------------------------------------------------------------------------------

    def _expansion(self, *, is_quoted: bool) -> Part:
        """Read what begins here with $ or `."""
        if self.text[self.at] == "`":
            return self._backquoted(is_quoted)
        self.at += 1
        self._skip_joints()
        if self.text.startswith("((", self.at):
            raise needs_shell(self._line(), "arithmetic")
        if self.text.startswith("(", self.at):
            return self._substitution()
        if self.text.startswith("{", self.at):
            self.at += 1
            return self._braced(is_quoted)
        if not is_quoted and self.text.startswith(("'", '"'), self.at):
            raise needs_shell(self._line(), f"'${self.text[self.at]}', which not every shell knows,")
        name = _PARAMETER.match(self.text, self.at)
        if name is None:
            return Text("$", is_quoted)
        self.at = name.end()
        if self.text.startswith("\\\n", self.at) and _NAME.fullmatch(name[0]):
            raise needs_shell(self._line(), "a name that may go on in the next line")
        return Parameter(name[0], is_quoted)

    def _substitution(self) -> Output:
        line = self._line()
        self._go_down()
        self.at += 1
        outside, self._waiting = self._waiting, []
        body = tuple(self.lists(")"))
        if self._waiting or (outside and self._line() > line):
            raise needs_shell(line, "a here-document around or in $(...)")
        self._waiting = outside
        self._depth -= 1
        self.at += 1
        return Output(body)

    def _backquoted(self, is_quoted: bool) -> Output:
        line = self._line()
        end = self.at + 1
        while end < len(self.text) and self.text[end] != "`":
            end += 2 if self.text[end] == "\\" else 1
        if end >= len(self.text):
            raise not_shell(line, "` is not closed")
        text = re.sub(r'\\([$`\\"])' if is_quoted else r"\\([$`\\])", r"\1", self.text[self.at + 1 : end])
        if self._waiting and "\n" in text:
            raise needs_shell(line, "a here-document around `...`")
        self.at = end + 1
        inside = _Reading(text, line, self._depth)
        inside._go_down()
        return Output(tuple(inside.lists()))

    def _braced(self, is_quoted: bool) -> Part:
        """Read what stands behind ${."""
        line = self._line()
        self._go_down()
        if length := _LENGTH.match(self.text, self.at):
            self.at = length.end()
            self._depth -= 1
            return Parameter(length[1], is_quoted, "length")
        found = _BRACED.match(self.text, self.at)
        if found is None:
            rest = self.text[self.at - 2 : self.at + 20].split("\n")[0]
            raise needs_shell(line, f"{rest!r}, which not every shell knows,")
        self.at = found.end()
        name, operator = found.groups()
        argument = tuple(self._argument(operator, is_quoted))
        if not self.text.startswith("}", self.at):
            raise not_shell(line, "${ is not closed")
        self.at += 1
        self._depth -= 1
        return Parameter(name, is_quoted, operator, argument)

    def _argument(self, operator: str, is_quoted: bool) -> Iterator[Part]:
        if not is_quoted:
            return self._unquoted(_BARE_ARGUMENT, "}")
        if operator[:1] not in ("%", "#"):
            return self._quoted("}")
        pattern = _PLAIN_PATTERN.match(self.text, self.at)  # quotes in it mean what they mean outside
        if pattern is None:
            raise needs_shell(self._line(), "a quote in a quoted expansion")
        self.at = pattern.end()
        return iter(())

    # -- places --------------------------------------------------------------------------------------------------------

    def _line(self) -> int:
        return self._first_line + bisect.bisect_left(self._line_ends, self.at)

    def _go_down(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Refused(self._line(), "is nested too deeply; write it out")

    def _skip_joints(self) -> None:
        """Go past backslashes at the ends of lines, which join them."""
        while self.text.startswith("\\\n", self.at):
            self.at += 2

    def _skip_blanks(self) -> None:
        """Go on to the next token, past a comment."""
        for skipped in (_BLANKS, _COMMENT):
            if match := skipped.match(self.text, self.at):
                self.at = match.end()

    def _skip_lines(self) -> None:
        """Go on to the next token, past the ends of lines and the here-documents behind them."""
        self._skip_blanks()
        while self._take("\n") is not None:
            self._read_here_documents()
            self._skip_blanks()
        if self.at >= len(self.text) and self._waiting:
            document = self._waiting[0]
            raise not_shell(document.redirection.line, f"a here-document without its end, {document.end!r}")

    def _operator(self) -> tuple[str, int]:
        """Return the operator that begins here, "" for none, and the place behind it. Lines may be joined within."""
        self._skip_joints()
        at, operator = self.at, ""
        while at < len(self.text) and operator + self.text[at] in _OPERATORS:
            operator += self.text[at]
            at += 1
            while self.text.startswith("\\\n", at):
                at += 2
        return operator, at

    def _take(self, *operators: str) -> str | None:
        """Read one of these operators if it is the next; return it, else None."""
        self._skip_blanks()
        operator, after = self._operator()
        if operator not in operators:
            return None
        self.at = after if operator != "\n" else self.at + 1
        return operator

    def _is_at(self, *ends: str) -> bool:
        reserved = _RESERVED.match(self.text, self.at)
        return (reserved[1] if reserved else self._operator()[0]) in ends

    def _take_reserved(self, word: str) -> bool:
        reserved = _RESERVED.match(self.text, self.at)
        is_next = reserved is not None and reserved[1] == word
        self.at = reserved.end() if is_next else self.at
        return is_next

    def _misplaced(self, operator: str) -> Refused:
        what = {"": "the end of the script", "\n": "the end of a line"}.get(operator, repr(operator))
        if operator in ("(", ";;", ";&", ";;&"):
            return needs_shell(self._line(), what)
        return not_shell(self._line(), f"{what} stands where a command should")


class _HereDocument(Struct):
    """One whose text has not been read: where it goes, the line that ends it, and whether nothing in it is expanded."""

    redirection: Redirection
    end: str
    is_quoted: bool


def assignment(word: Word) -> tuple[str, Word] | None:
    """Return name and value of a word that is NAME=value, else None."""
    first = word[0]
    if isinstance(first, Text) and not first.is_quoted and (assigned := _ASSIGNED.match(first.text)):
        return assigned[1], (Text(first.text[assigned.end() :], False), *word[1:])
    return None
