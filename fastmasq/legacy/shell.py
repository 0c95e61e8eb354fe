"""Runs a shell script as far as rules are concerned: which commands would be run, in which order, with which words.

Nothing is started: commands are only told. Variables set in the script, its arguments, loops over words, groups and the
results of true, false and our own programs are followed. What only a shell can know (the output of a command, a
variable from elsewhere) makes a command doubtful; whether a shell would run it at all may be unsure. So it is with all
that an `if`, a `case` or a loop over the unknown holds: it is told, unsure, and variables that it sets are not known
any more. What a shell does and we do not raises `Refused` with its name, see legacy/shell_grammar.py. Where the shell
would end, we end.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence

from msgspec import Struct

from fastmasq.legacy.shell_grammar import (
    AnyCommand,
    Choice,
    Group,
    Lists,
    Loop,
    Output,
    Parameter,
    Pipeline,
    Redirection,
    Refused,
    Simple,
    Text,
    Word,
    assignment,
    needs_shell,
    not_shell,
    read,
)

LONGEST_WORD = 4096  # characters; what is longer is none of our programs', and no number of Python's
_MOST_WORDS = 4096  # in one command
_MOST_IN_LOOPS = 4 << 20  # characters of commands, since loops make many of few

_STEERING = (
    *("if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac", "select", "function"),
    *("!", "{", "}", "[[", "eval", "source", ".", "set", "shift", "trap", "return", "break", "continue", "exec"),
    *("command", "builtin", "alias", "unalias", "getopts", "local", "declare", "typeset", "let", "mapfile"),
    *("enable", "shopt", "coproc", "in"),
)
_SETTING = ("export", "readonly", "unset")
_SPECIAL = (":", "exit", *_SETTING)  # the shell ends if a file for these cannot be opened (POSIX 2.8.1)
_RESULTS = {":": True, "true": True, "false": False, "export": True, "readonly": True}
_OWN_VARIABLES = ("LINENO", "OPTIND", "OPTARG", "PPID", "PWD", "OLDPWD", "RANDOM", "SECONDS", "HOSTNAME", "UID", "EUID")
_OPEN = ("/dev/null", "/dev/console", "/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2")
_OURS = "ours"  # the result of our programs: they succeed, or the file is refused; tolerant reading leaves some out

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_BLANKS = re.compile(r"[ \t\n]+")

Result = bool | str | None
"""Whether a command succeeds; _OURS, or None for unknown."""


class Command(Struct):
    """One simple command. line: where it begins, from 1. Without words, the program itself is in doubt.

    output: the file its standard output goes to, "" for none; opens: a file that the shell may fail to open, and then
    does not run it. doubt: why its words cannot be known, unsure: why it may not be run, both "" usually. needs_ours:
    whether it stands behind && and one of our programs. is_captured: whether it stands in a command substitution.
    skipped: what is passed over here, unless one of our programs is in it: the commands told next, which are `within`.
    """

    line: int
    words: list[str]
    output: str = ""
    opens: str = ""
    doubt: str = ""
    unsure: str = ""
    needs_ours: bool = False
    is_captured: bool = False
    skipped: str = ""
    within: str = ""


def commands(text: str, arguments: Sequence[str] = (), ours: Collection[str] = ()) -> Iterator[Command]:
    """Yield the commands of a script in order; what is for the shell alone (assignments, export, exit) does not appear.

    arguments: what $1, $2 ... stand for. ours: the names of programs that succeed. Raises `Refused`.
    """
    shell = _Shell(arguments, ours)
    script = read(text)
    ending: Exception | None = None
    while ending is None:
        try:
            shell.run(next(script))
        except (StopIteration, _End, Refused) as error:
            ending = error
        yield from shell.told
        shell.told = []
    if isinstance(ending, Refused):
        raise ending


class _End(Exception):
    """The shell, or the subshell, ends here."""


class _Shell:
    """The commands told, and the variables set so far; a variable of doubtful value is None."""

    def __init__(self, arguments: Sequence[str], ours: Collection[str]) -> None:
        self.told: list[Command] = []
        self._arguments = list(arguments)
        self._ours = ours
        self._variables: dict[str, str | None] = {}
        self._constants: set[str] = set()
        self._line = 1
        self._loops = 0  # that we are in
        self._size_in_loops = 0
        self._unsure = ""  # why what is run now may not be run
        self._needs_ours = False
        self._is_captured = False
        self._within = ""  # what it is that is passed over
        self._may_break = False  # whether the innermost loop is passed over anyway
        self._output = ""  # where the output of a group goes

    # -- lists, pipelines, loops ---------------------------------------------------------------------------------------

    def run(self, lists: Lists) -> Result:
        """Run one list. Raises `_End` where the shell would end."""
        if not lists.is_background:
            return self._joined(lists)
        with self._subshell():
            self._joined(lists)
        return True

    def _joined(self, lists: Lists) -> Result:
        result: Result = True
        for joint, pipeline in lists.pipelines:
            wanted = joint != "||"
            is_sure = not joint or result is wanted or (wanted and result == _OURS and _is_simple(pipeline))
            if not is_sure and result is (not wanted):
                continue
            why = "" if is_sure else f"is run or not by what stands before {joint}; write it on a line of its own"
            self._needs_ours = is_sure and result == _OURS
            with self._doubting(why):
                found = self._pipeline(pipeline)
            self._needs_ours = False
            result = found if is_sure else None
        return result

    def _pipeline(self, pipeline: Pipeline) -> Result:
        result = self._piped(pipeline.commands) if len(pipeline.commands) > 1 else self._command(pipeline.commands[0])
        if pipeline.is_negated:
            return not result if isinstance(result, bool) else None
        return result

    def _piped(self, commands: Sequence[AnyCommand]) -> Result:
        result: Result = None
        why = ""
        for command in commands:
            before = len(self.told)
            with self._subshell(), self._doubting(why):
                result = self._command(command)
            if any(self._is_ours(told) for told in self.told[before:]):
                why = "is run while another of our programs runs before |; write it on a line of its own"
        return result

    def _command(self, command: AnyCommand) -> Result:
        if isinstance(command, Simple):
            return self._simple(command)
        self._begin(command.line, [])
        output, opens = self._redirections(command.redirections)
        before, self._output = self._output, output or self._output
        with self._doubting(f"is not run if the file {opens} cannot be opened; leave that out" if opens else ""):
            result = self._compound(command)
        self._output = before
        return None if command.redirections else result

    def _compound(self, command: Loop | Group | Choice) -> Result:
        if isinstance(command, Loop):
            return self._loop(command)
        if isinstance(command, Choice):
            return self._choice(command)
        if not command.is_apart:
            return self._body(command.body)
        with self._subshell():
            return self._body(command.body)
        return None  # it has ended itself

    def _body(self, body: Sequence[Lists]) -> Result:
        result: Result = True
        for lists in body:
            result = self.run(lists)
        return result

    def _loop(self, loop: Loop) -> Result:
        values, doubt = (self._arguments, "") if loop.words is None else self._fields(loop.words)
        if doubt:
            what = f"a loop over {doubt}"
            with self._passing_over(loop.line, what, is_loop=True), self._doubting(f"is in {what}; write it out"):
                self._assign(loop.name, None)
                self._body([*loop.body, *loop.body])
            return None
        result: Result = True
        self._loops += 1
        may_break, self._may_break = self._may_break, False
        for value in values:
            self._begin(loop.line, [value])
            self._assign(loop.name, value)
            result = self._body(loop.body)
        self._may_break = may_break
        self._loops -= 1
        return result

    def _choice(self, choice: Choice) -> None:
        """Tell what may be run, or again and again: twice, so that a loop's later turns are seen as well."""
        name, is_loop = repr(choice.name), choice.name in ("while", "until")
        why = str(needs_shell(choice.line, f"is in {name}, which"))
        with self._passing_over(choice.line, name, is_loop=is_loop):
            self._body(choice.first)
            with self._doubting(why):
                for word in choice.words:
                    self._value(word)
                for body in choice.bodies * (2 if is_loop else 1):
                    self._body(body)

    @contextlib.contextmanager
    def _passing_over(self, line: int, what: str, *, is_loop: bool) -> Iterator[None]:
        """Run something of which only a shell knows what is run: what is told is `within`, after this has been told."""
        before = self._within, self._may_break
        if not self._within and not self._is_captured:
            self.told.append(Command(line, [], skipped=what))
            self._within = what
        self._may_break |= is_loop
        yield
        self._within, self._may_break = before

    @contextlib.contextmanager
    def _subshell(self) -> Iterator[None]:
        """Run something whose variables, and whose end, are its own."""
        variables, constants = dict(self._variables), set(self._constants)
        place = self._loops, self._within, self._may_break, self._output
        with contextlib.suppress(_End):
            yield
        self._variables, self._constants = variables, constants
        self._loops, self._within, self._may_break, self._output = place

    @contextlib.contextmanager
    def _doubting(self, why: str) -> Iterator[None]:
        """Run something that may not be run, for this reason if there is none yet."""
        before = self._unsure
        self._unsure = before or why
        try:
            yield
        finally:
            self._unsure = before

    def _begin(self, line: int, words: Sequence[str]) -> None:
        self._line = line
        if self._loops:
            self._size_in_loops += sum(map(len, words)) + 64
        if self._size_in_loops > _MOST_IN_LOOPS:
            raise Refused(line, f"loops come to more than {_MOST_IN_LOOPS >> 20} MiB of commands; shorten them")

    # -- simple commands -----------------------------------------------------------------------------------------------

    def _simple(self, command: Simple) -> Result:
        self._line = command.line
        words, doubt = self._fields(command.words)
        self._begin(command.line, words)
        output, opens = self._redirections(command.redirections)
        if not words and not doubt:
            return self._assignments(command, opens)
        for variable, value in command.assignments:  # for this command alone
            self._value(value)
            self._refuse_constant(variable)
        name = words[0] if words else ""
        if name in ("break", "continue") and self._may_break and len(words) == 1:
            return None
        if name == "read":
            return self._read(words)
        if name in _STEERING or words[:2] == ["printf", "-v"]:
            raise needs_shell(command.line, repr(name))
        if name in _SPECIAL:
            if opens:
                raise needs_shell(command.line, f"{name!r} with the file {opens}")
            for variable, _ in command.assignments:
                self._assign(variable, None)
            if name == "exit":
                self._exit(command)
            if name in _SETTING:
                self._set(name, command.words[1:])
        else:
            told = Command(
                *(command.line, words, output or self._output, opens, doubt, self._unsure),
                needs_ours=self._needs_ours,
                is_captured=self._is_captured,
                within=self._within,
            )
            self.told.append(told)
            if self._is_ours(told):
                return _OURS
        return None if command.redirections else _RESULTS.get(name)

    def _is_ours(self, command: Command) -> bool:
        return bool(command.words) and command.words[0].rpartition("/")[2] in self._ours

    def _assignments(self, command: Simple, opens: str) -> Result:
        """Set variables: a command without a program."""
        result: Result = None if command.redirections else True
        for name, word in command.assignments:
            value, doubt = self._value(word)
            self._assign(name, None if doubt or opens else value)
            if any(isinstance(part, Output) for part in word):
                result = None
        return result

    def _read(self, words: Sequence[str]) -> Result:
        for variable in words[1:]:
            if variable != "-r" and not _NAME.fullmatch(variable):
                raise needs_shell(self._line, f"'read' of {variable!r}")
            if variable != "-r":
                self._assign(variable, None)
        return None

    def _exit(self, command: Simple) -> None:
        if self._unsure:
            why = self._unsure.partition(";")[0]
            raise Refused(command.line, f"'exit' {why}; leave it out, or run the script with sh")
        if len(command.words) > 2:
            raise needs_shell(command.line, "'exit' with several numbers")
        raise _End

    def _set(self, program: str, words: Sequence[Word]) -> None:
        """Do export, readonly or unset; shells differ in how they split what these assign."""
        wanted: list[tuple[str, str | None, bool]] = []  # name, value, whether it gets that value
        for word in words:
            fields, doubt = self._fields([word])
            assigned = assignment(word) if program != "unset" else None
            name = assigned[0] if assigned else "".join(fields)
            if (doubt and not assigned) or not _NAME.fullmatch(name):
                raise needs_shell(self._line, f"{program!r} of {name or doubt!r}")
            value = self._value(assigned[1])[0] if assigned else ""
            is_known = bool(assigned) and not doubt and fields == [f"{name}={value}"]
            wanted.append((name, value if is_known else None, bool(assigned) or program == "unset"))
        for name, value, is_set in wanted:
            if is_set:
                self._assign(name, value)
            if program == "readonly":
                self._constants.add(name)

    def _assign(self, name: str, value: str | None) -> None:
        self._refuse_constant(name)
        if name == "IFS":
            raise needs_shell(self._line, "IFS")
        self._variables[name] = None if self._unsure or name in _OWN_VARIABLES else value

    def _refuse_constant(self, name: str) -> None:
        if name in self._constants:
            raise not_shell(self._line, f"{name} is read-only")

    def _redirections(self, redirections: Sequence[Redirection]) -> tuple[str, str]:
        """Return the file that standard output goes to, and a file that may fail to be opened."""
        output = opens = ""
        for redirection in redirections:
            operator = redirection.operator
            target, doubted = self._value(redirection.word)
            is_output = redirection.descriptor in ("", "1") and operator[0] == ">"
            if operator in (">&", "<&"):
                if doubted or target not in ("0", "1", "2", "-"):
                    raise needs_shell(redirection.line, f"{operator + target!r}, whose file is not known here,")
                output = "" if is_output else output
            elif operator not in ("<<", "<<-"):
                output = target if is_output else output
                if target not in _OPEN or (operator[0] == "<" and target != "/dev/null"):
                    opens = target or "of an unknown name"
        return output, opens

    # -- words ---------------------------------------------------------------------------------------------------------

    def _fields(self, words: Sequence[Word]) -> tuple[list[str], str]:
        """Return what words become, and a doubt. Where that is about the first of them, there are none."""
        found: list[str] = []
        doubt = ""
        is_first_doubted = False
        for word in words:
            fields = _Fields()
            self._into(fields, word)
            doubted = fields.doubt or _doubt_of_bare(word, fields.bare) or _doubt_of_arguments(word)
            is_first_doubted |= bool(doubted) and not found
            doubt = doubt or doubted
            if len(found) > _MOST_WORDS:
                doubt = doubt or "too many words"
            else:
                found += fields.words
        return ([] if is_first_doubted else found), doubt

    def _value(self, word: Word) -> tuple[str, str]:
        """Return what a word becomes where it is not split, and a doubt."""
        fields = _Fields(splits=False)
        self._into(fields, word)
        bare = "".join(part.text for part in word if isinstance(part, Text) and not part.is_quoted)
        is_home = bare.startswith("~") or ":~" in bare
        return "".join(fields.words), fields.doubt or ("~, which only a shell can find" if is_home else "")

    def _into(self, fields: _Fields, word: Word, *, is_argument: bool = False) -> None:
        """Expand the parts of a word; is_argument: they are what an expansion results in, and so are split."""
        for part in word:
            if isinstance(part, Text):
                fields.add(part.text, is_quoted=part.is_quoted, is_split=is_argument and not part.is_quoted)
            elif isinstance(part, Parameter):
                self._parameter_into(fields, part)
            else:
                self._capture(part)
                fields.doubt = fields.doubt or "the output of a command"

    def _capture(self, output: Output) -> None:
        """Run the commands of a command substitution."""
        was_captured, self._is_captured = self._is_captured, True
        line = self._line
        with self._subshell(), self._doubting("is run within a command substitution; write it on a line of its own"):
            for lists in output.body:
                self.run(lists)
        self._is_captured, self._line = was_captured, line

    def _parameter_into(self, fields: _Fields, part: Parameter) -> None:
        name, operator = part.name, part.operator
        value, doubt = self._lookup(name)
        is_variable = _NAME.fullmatch(name) is not None
        if operator and not (is_variable or name.isdigit()):
            value, doubt = None, "an expansion of a shell"
        if operator == "":
            if name == "@" and part.is_quoted:
                fields.add_each(self._arguments)
            elif value is not None:
                fields.add(value, is_quoted=part.is_quoted, is_split=not part.is_quoted)
            fields.doubt = fields.doubt or doubt or (f"argument {name}, which is not given" if value is None else "")
        elif doubt or operator == "length" or operator[0] in "%#":
            if doubt and operator[-1] == "?":
                raise needs_shell(self._line, f"'${{{name}{operator}...}}', which may end it,")
            with self._doubting("is run or not by what a variable is"):
                self._into(_Fields(), part.argument)
                if operator[-1] == "=" and is_variable:
                    self._assign(name, None)
            fields.doubt = fields.doubt or doubt or "an expansion of a shell"
        else:
            self._choice_into(fields, part, value)

    def _choice_into(self, fields: _Fields, part: Parameter, value: str | None) -> None:
        """Expand ${name operator argument}, of a known value, None if the parameter is not set."""
        kind = part.operator[-1]
        is_missing = value is None or (part.operator[0] == ":" and not value)
        if kind == "+" or (kind == "-" and is_missing):
            if is_missing == (kind == "-"):
                self._into(fields, part.argument, is_argument=not part.is_quoted)
            return
        if is_missing and kind == "=" and _NAME.fullmatch(part.name):
            value, doubt = self._value(part.argument)
            self._assign(part.name, None if doubt else value)
            fields.doubt = fields.doubt or doubt
        elif is_missing:
            raise not_shell(self._line, f"'${{{part.name}{part.operator}...}}' finds nothing")
        fields.add(value or "", is_quoted=part.is_quoted, is_split=not part.is_quoted)

    def _lookup(self, name: str) -> tuple[str | None, str]:
        """Return the value of a parameter, None if it is not set or not known, and in the latter case a doubt."""
        if name == "#":
            return str(len(self._arguments)), ""
        if name in ("@", "*"):
            return " ".join(self._arguments), ""
        if name.isdigit() and name.strip("0"):
            number = int(name) if len(name) < 9 else len(self._arguments) + 1
            return (self._arguments[number - 1] if number <= len(self._arguments) else None), ""
        value = self._variables.get(name)
        if value is not None:
            return value, ""
        where = "has a value that only a shell can find" if name in self._variables else "is not set in this file"
        return None, f"${name}, which {where}"


def _is_simple(pipeline: Pipeline) -> bool:
    return all(isinstance(command, Simple) for command in pipeline.commands)


def _doubt_of_bare(word: Word, bare: str) -> str:
    """Return a doubt about a word for what its characters without quotes mean to a shell."""
    first = word[0] if word else None
    if isinstance(first, Text) and not first.is_quoted and first.text.startswith("~"):
        return "~, which only a shell can find"
    if "*" in bare or "?" in bare or "\\" in bare or ("[" in bare and "]" in bare):
        return "a pattern of file names, which only a shell can find"
    if "{" in bare and "}" in bare and ("," in bare or ".." in bare):
        return "braces, which not every shell expands"
    return ""


def _doubt_of_arguments(word: Word) -> str:
    """Return a doubt about a word in which "$@" stands beside what is split: dash splits it like nobody else."""
    parameters = [part for part in word if isinstance(part, Parameter)]
    has_all = any(part.name == "@" and part.is_quoted for part in parameters)
    return '"$@" beside another expansion' if has_all and not all(part.is_quoted for part in parameters) else ""


class _Fields:
    """What one word of the script becomes: several, or none, when variables in it hold blanks, or nothing."""

    def __init__(self, *, splits: bool = True) -> None:
        self.words: list[str] = []
        self.doubt = ""
        self.bare = ""  # what was not quoted
        self._splits = splits
        self._is_open = False  # whether what comes next still belongs to the last word

    def add(self, text: str, *, is_quoted: bool, is_split: bool) -> None:
        """Add text; where it is split, blanks in it end words, else even an empty one makes a word."""
        if not is_quoted and len(self.bare) <= LONGEST_WORD:
            self.bare += text
        if not (is_split and self._splits):
            self._append(text)
            return
        for index, part in enumerate(_BLANKS.split(text)):
            self._is_open &= not index
            if part:
                self._append(part)

    def add_each(self, arguments: Sequence[str]) -> None:
        """Add words that are not to be split: the first to the word that is open, the last leaves its own open."""
        for index, argument in enumerate(arguments):
            if index and self._splits:
                self._is_open = False
            elif index:
                self._append(" ")
            self._append(argument)

    def _append(self, text: str) -> None:
        if not self._is_open:
            self.words.append("")
            self._is_open = True
        if len(self.words[-1]) + len(text) > LONGEST_WORD:
            self.doubt = self.doubt or "a word that is too long"
        else:
            self.words[-1] += text
