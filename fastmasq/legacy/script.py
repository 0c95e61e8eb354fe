"""Reads rule files: the scripts of 1999 with their ipfwadm and ipchains lines, without a shell.

A file is taken whole or not at all. Its lines become requests with the places they come from; lines of other programs
are ignored with a warning, and so are an `if`, a `case` or a loop that hold no rule. What a shell would not run is not
run; what it would and we cannot (a rule in an `if`, functions, the output of a command in a rule) is refused by name,
since a rule set with lines missing is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from fastmasq import files
from fastmasq.errors import ConfigurationError, FastmasqError
from fastmasq.legacy import ipchains, ipfwadm, ipfwd, ipmasqadm, ipportfw
from fastmasq.legacy.names import Names
from fastmasq.legacy.requests import Changes, Check, Forwarding, List, ListSessions, SetDynaddr, Text
from fastmasq.legacy.shell import Command, commands
from fastmasq.legacy.shell_grammar import Refused
from fastmasq.legacy.tokens import plain_dashes
from fastmasq.policy.chains import RuleError, RuleSet
from fastmasq.policy.changes import Change, make

LARGEST = 8 << 20  # octets of a rule file

Reader = Callable[..., Any]


def forwarding(parse: Callable[[Sequence[str]], Any]) -> Reader:
    """Return the reader of a program whose requests have a `kind`: "change", with `changes` and `method`, or other."""

    def read(words: Sequence[str], names: Names, **_: Any) -> Forwarding | Text:
        request = parse(words)
        if request.kind != "change":
            return Text("")
        return Forwarding(request.method, tuple(msgspec.to_builtins(request.changes)))

    return read


READERS: dict[str, Reader] = {
    "ipfwadm": ipfwadm.parse,
    "ipchains": ipchains.parse,
    "ipportfw": forwarding(ipportfw.parse),
    "ipmasqadm": forwarding(ipmasqadm.parse),
    "ipfwd": forwarding(ipfwd.parse),
}
"""The programs whose lines are read: name -> function of (words, names, tolerant=bool, chains=names of user chains).

It returns one of the requests in requests.py and raises FastmasqError."""

_NEEDS_SHELL = "needs a shell; run the script with sh, and fastmasq's programs in its PATH"
_NOT_SAID = "needs a shell, or is a mistake; `fastmasq check` says what it is"
_SHELLS = (
    *("sh", "ash", "bash", "csh", "dash", "ksh", "tcsh", "zsh", "fastmasq", "ipchains-restore", "at", "batch"),
)  # run what they read
_RUNNERS = (
    *("busybox", "chroot", "doas", "env", "ionice", "nice", "nohup", "nsenter", "setsid", "stdbuf", "su", "sudo"),
    *("time", "timeout", "unshare", "xargs"),
)  # run the program among their words
_NAMED = re.compile(rf"(?<![\w.-])({'|'.join(READERS)})(?![\w.-])")  # in a word, perhaps of another language
_POSIX_SHELLS = ("sh", "ash", "bash", "dash", "ksh", "zsh", "busybox")
_INTERPRETER = re.compile(r"#!\s*(\S*/env\s+(?:-S\s+)?)?(\S+)")
_OTHER_FORMS = (  # how the first line of rules begins that are no script
    (re.compile(r"\*(filter|nat|mangle|raw)\s*$"), "is what iptables-save prints; use `fastmasq import iptables-save`"),
    (re.compile(r"(table|flush ruleset|add table|define)\b(?! *=)"), "is what nft reads; use `fastmasq import nft`"),
    (re.compile(r":\w+ (ACCEPT|DENY|REJECT|MASQ|-)\s*$"), "is what ipchains-save prints; use ipchains-restore"),
)
_MODULES = ("modprobe", "insmod", "rmmod", "depmod")
_SILENT = ("echo", "printf", "true", "false", "test", "[", "cd", "umask", "sleep", "wait")
_LOOKING = (  # only look for, show or handle what is called like one of our programs, or run it elsewhere
    *("which", "type", "hash", "whereis", "locate", "ls", "stat", "file", "rpm", "dpkg", "cat", "head", "tail", "more"),
    *("less", "man", "grep", "egrep", "fgrep", "ps", "pidof", "pgrep", "pkill", "killall", "touch", "rm", "mkdir"),
    *("cp", "mv", "ln", "chmod", "chown", "logger", "lsmod", "chkconfig", "update-rc.d", "rc-update", "ssh", "rsh"),
)
_SETTINGS = "/proc/sys/net/ipv4/"
_HARMLESS = ("exists", "no rule", "no chain")  # why clearing away or making a chain may fail in a script run again
_TAKING_AWAY = ("delete", "withdraw")  # port forwards and redirects
_CLEARING = ("flush", "zero", "delete", "delete_equal", "delete_chain", "new_chain")


class Item(NamedTuple):
    """What one line asks for, and where it stands: "FILE:LINE"; needs_before: only if the item before it succeeds."""

    place: str
    request: Any
    needs_before: bool = False


class Script(Struct, frozen=True):
    """The requests of a file in order, and what was repaired or ignored: lines "FILE:LINE: text"."""

    items: tuple[Item, ...]
    warnings: tuple[str, ...]


def load(
    path: str | Path, names: Names, *, tolerant: bool = True, arguments: Sequence[str] = (), quoting: bool = True
) -> Script:
    """Read a rule file; arguments are what $1, ${2} ... in it stand for.

    A file that is no rule file may be a secret that somebody has named by mistake: without `quoting`, as for a log that
    others read, nothing is said of what stands in lines that are not of our programs, but where. Raises
    ConfigurationError whose text has one line for each mistake.
    """
    try:
        text = files.read(path, LARGEST).decode(errors="replace")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}; name a file of rules") from None
    return parse(text, str(path), names, tolerant=tolerant, arguments=arguments, quoting=quoting)


def parse(
    text: str, name: str, names: Names, *, tolerant: bool = True, arguments: Sequence[str] = (), quoting: bool = True
) -> Script:
    """Read the text of a rule file; `name` stands for the file in messages. Raises as `load` does."""
    reading = _Reading(name, names, tolerant, quoting)
    if "\0" in text:
        raise ConfigurationError(f"{name}: has zero octets, so it is no script; name a file of rules")
    if text.startswith("\ufeff") and tolerant:
        text = text[1:]
        reading.warnings.append(f"{name}:1: begins with a byte order mark; taken without")
    if refusal := _other_language(text, quoting=reading.may_quote):
        raise ConfigurationError(f"{name}:{refusal}")
    if tolerant and "\r\n" in text:
        text = text.replace("\r\n", "\n")
        reading.warnings.append(f"{name}:1: lines end with a carriage return; taken without")
    try:
        for command in commands(text, arguments, READERS):
            reading.take(command)
    except Refused as refused:
        reading.mistakes.append(f"{name}:{refused.line}: {refused if reading.may_quote else _NOT_SAID}")
    if reading.mistakes:
        raise ConfigurationError("\n".join(dict.fromkeys(reading.mistakes)))
    return Script(tuple(reading.items), tuple(reading.warnings))


def _other_language(text: str, *, quoting: bool) -> str:
    """Return why a text is no script for sh, with the line that says so; "" if nothing does."""
    if text.startswith("\ufeff"):
        return "1: begins with a byte order mark; save the file without"
    first = _INTERPRETER.match(text)
    if first and first[2].rpartition("/")[2] not in _POSIX_SHELLS:
        shown = first[2] if quoting else "another program"
        return f"1: is a script for {shown}, not for sh; run it with that, and fastmasq's programs in its PATH"
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            found = next((what for pattern, what in _OTHER_FORMS if pattern.match(line)), "")
            return f"{number}: {found}" if found else ""
    return ""


class Prepared(Struct, frozen=True):
    """What rule files come to: changes of chains that have been tried, the other requests in order, and warnings."""

    changes: list[Change]
    others: list[Item]
    warnings: list[str]


def prepare(
    paths: Iterable[str | Path],
    names: Names,
    rule_set: RuleSet,
    *,
    tolerant: bool = True,
    arguments: Sequence[str] = (),
    quoting: bool = True,
) -> Prepared:
    """Read rule files, one after the other, and try their changes on a copy of `rule_set`.

    Tolerant reading leaves out with a warning, as a shell would go on: clearing away what is not there, and making a
    chain that is there. Raises ConfigurationError with one line for each mistake of the first file that has any.
    """
    trial = rule_set.copy()
    prepared = Prepared([], [], [])
    for path in paths:
        script = load(path, names, tolerant=tolerant, arguments=arguments, quoting=quoting)
        prepared.warnings.extend(script.warnings)
        mistakes: list[str] = []
        may_fail = False
        for item in script.items:
            if item.needs_before and may_fail:
                mistakes.append(
                    f"{item.place}: is not run where the command before && fails; write it on a line of its own"
                )
            left_out = len(prepared.warnings)
            mistakes += _rehearse(item, trial, prepared, tolerant)
            may_fail = len(prepared.warnings) > left_out or (tolerant and may_be_left_out(item.request))
        if mistakes:
            raise ConfigurationError("\n".join(mistakes))
    return prepared


def may_be_left_out(request: Any) -> bool:
    """Whether tolerant reading leaves a line out when it cannot be done: it takes away what may not be there."""
    return isinstance(request, Forwarding) and all(change["action"] in _TAKING_AWAY for change in request.changes)


def _rehearse(item: Item, trial: RuleSet, prepared: Prepared, tolerant: bool) -> list[str]:
    """Make the changes of one line in `trial`; return what is wrong with them."""
    if not isinstance(item.request, Changes):
        prepared.others.append(item)
        return []
    mistakes = []
    for change in item.request.changes:
        try:
            make(trial, change)
        except RuleError as error:
            if tolerant and change.do in _CLEARING and error.reason in _HARMLESS:
                prepared.warnings.append(f"{item.place}: left out: {error}")
            else:
                mistakes.append(f"{item.place}: {error}")
            continue
        prepared.changes.append(change)
    return mistakes


class _Reading:
    """One pass over one file: collects requests, warnings and mistakes."""

    def __init__(self, name: str, names: Names, tolerant: bool, quoting: bool) -> None:
        self.name = name
        self.may_quote = quoting and files.caller_may_see()
        self.names = names
        self.tolerant = tolerant
        self.items: list[Item] = []
        self.warnings: list[str] = []
        self.mistakes: list[str] = []
        self.chains: set[str] = set()  # user chains made so far
        self._other_rules: set[str] = set()  # programs of later kernels whose rules have been refused
        self._forwarded: dict[str, str] = {}  # method -> the last place that set something up by it

    def take(self, command: Command) -> None:
        place = f"{self.name}:{command.line}"
        first = command.words[0] if command.words else ""
        program = first.rpartition("/")[2]
        if command.skipped:
            what = command.skipped if self.may_quote else "what only a shell can run"
            self.warnings.append(f"{place}: ignored: {what}; no rule depends on it")
            mistake = None
        elif not command.words:
            doubt = command.doubt if self.may_quote else "what only a shell can find out"
            mistake = f"the program depends on {doubt}; write it out"
        elif first.startswith("-"):
            option = f"the option {first}" if self.may_quote else "an option"
            mistake = f"begins with {option}; end the line before it with \\, or name the program"
        elif _is_script(first):
            what = first if self.may_quote else "a script"
            mistake = f"{what} may have rules of its own and is not run; name it in [rules] files, or remove the line"
        elif program in READERS:
            doubted = command.unsure or f"depends on {command.doubt}; write it out"
            mistake = doubted if command.doubt else self._read(place, command)
        elif program in _SHELLS or _may_run_ours(program, command):
            mistake = f"{program!r} {_NEEDS_SHELL}"
        else:
            mistake = self._ignore(place, program, command)
        if mistake:
            self.mistakes.append(f"{place}: {mistake}")

    def _read(self, place: str, command: Command) -> str | None:
        """Read a line of one of our programs; return what is wrong with it."""
        path, *words = command.words
        program = path.rpartition("/")[2]
        try:
            request = READERS[program](words, self.names, tolerant=self.tolerant, chains=self.chains)
        except FastmasqError as error:
            return f"{str(error).splitlines()[0]}; correct the line or remove it"
        self.warnings += [f"{place}: {warning}" for warning in request.warnings]
        if isinstance(request, List | ListSessions | Check | Text):
            self.warnings.append(f"{place}: ignored: {program} would only print something")
            return None
        if command.unsure:
            return command.unsure
        if command.opens:
            return f"is not run if the file {command.opens} cannot be opened; leave that out"
        if isinstance(request, Changes):
            self.chains.update(change.chain for change in request.changes if change.do == "new_chain")
        elif isinstance(request, Forwarding):
            self._watch_forwards(place, request)
        self.items.append(Item(place, request, command.needs_ours))
        return None

    def _watch_forwards(self, place: str, request: Forwarding) -> None:
        """Warn of a line that takes away what lines before it have set up: two blocks of a kind, joined (A-14)."""
        for change in request.changes:
            if change["action"] == "clear" and request.method in self._forwarded:
                self.warnings.append(f"{place}: takes away again what was set up by {self._forwarded[request.method]}")
            elif change["action"] not in ("clear", *_TAKING_AWAY):
                self._forwarded[request.method] = place

    def _ignore(self, place: str, program: str, command: Command) -> str | None:
        """Take a line of another program: settings written by echo are understood, the rest is ignored."""
        if command.is_captured:
            return None
        if program == "echo" and command.output.startswith(_SETTINGS):
            return self._setting(place, command.output.removeprefix(_SETTINGS), command)
        if _makes_rules(program, command.words):
            if program in self._other_rules:
                return None
            self._other_rules.add(program)
            return f"{program} makes rules that are not read here; let it run once, and `fastmasq import` what it made"
        if command.within:
            return None
        if program in _MODULES:
            self.warnings.append(f"{place}: ignored: {program}; fastmasq needs no modules of the kernel")
        elif program not in _SILENT:
            shown = " ".join(plain_dashes(word) for word in command.words[:4])
            shown = f"{shown!r}, " if self.may_quote else ""
            self.warnings.append(f"{place}: ignored: {shown}a line of another program")
        return None

    def _setting(self, place: str, setting: str, command: Command) -> str | None:
        if command.within and setting != "ip_dynaddr":
            return None
        if setting == "ip_forward":
            self.warnings.append(f"{place}: ignored: ip_forward; fastmasq forwards in place of the kernel")
        elif setting != "ip_dynaddr":
            self.warnings.append(f"{place}: ignored: {setting}, a setting of the kernel's")
        elif command.unsure:
            return command.unsure
        elif command.doubt or command.words[1:] not in [[str(value)] for value in range(8)]:
            return "ip_dynaddr takes one number from 0 to 7"
        else:
            self.items.append(Item(place, SetDynaddr(int(command.words[1]))))
        return None


def _makes_rules(program: str, words: Sequence[str]) -> bool:
    """Whether a program of later kernels makes rules, which would be missing; not where it lists or clears them."""
    if program == "nft":
        return not any(word in ("list", "flush", "delete", "-h", "-v") for word in words)
    if program in ("iptables-restore", "iptables-apply"):
        return True
    options = ("--append", "--insert", "--replace", "--policy")
    return program in ("iptables", "iptables-nft", "iptables-legacy") and any(
        word in options or word[:2] in ("-A", "-I", "-R", "-P") for word in words[1:]
    )


def _is_script(command: str) -> bool:
    """Whether a command is a file of somebody's own, by its path: `.` of it is refused as well."""
    program = command.rpartition("/")[2]
    own = command.startswith(("./", "../", "/etc/")) or program.endswith(".sh")
    return program == "run-parts" or ("/" in command and own)


def _may_run_ours(program: str, command: Command) -> bool:
    """Whether a program may run one of ours, which is among its words."""
    if program in (*_SILENT, *_MODULES, *_LOOKING):
        return False
    are_named = any(_NAMED.search(word) for word in command.words[1:])
    return are_named or (bool(command.doubt) and program in _RUNNERS)
