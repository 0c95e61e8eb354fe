"""Reads command lines of ipportfw 1.11 and writes its listing."""

from __future__ import annotations

import getopt
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from msgspec import Struct

from fastmasq.errors import ConfigurationError
from fastmasq.legacy.force import takes_force
from fastmasq.policy.forwards import Change, Forward, Target, read_address

LAST_PORT = 60999  # from 61000 on ports were masquerading's
HEADER = "Prot Local Addr/Port > Remote Addr/Port"
HELP = """\
Usage: ipportfw -A -[t|u] l.l.l.l/lport -R a.a.a.a/rport   add entry
       ipportfw -D -[t|u] l.l.l.l/lport                    delete entry
       ipportfw -C                                         clear table
       ipportfw -L                                         list table
       ipportfw -h                                         this text
l.l.l.l may be the name of a link, whose address may change. --force takes the port even from a running program.
"""

_ENDPOINT = re.compile(r"([^/\s]+)/(\d{1,5})", re.ASCII)
_LINK = re.compile(r"[A-Za-z][^\s/:]{0,14}")


class Request(Struct, frozen=True):
    """What a command line asks for: "help", "list", or to make changes."""

    kind: str
    changes: tuple[Change, ...] = ()
    method: ClassVar[str] = "forwards.change"  # of the control socket


@takes_force
def parse(words: Sequence[str]) -> Request:
    """Return what the words behind the program's name ask for. Raises ConfigurationError in the program's words."""
    try:
        options, rest = getopt.gnu_getopt(list(words), "ADCLt:u:R:h")
    except getopt.GetoptError:
        return Request("help")
    command, protocol, local, remote = "", "", None, None
    for option, value in options:
        letter = option[1]
        if letter == "h":
            return Request("help")
        if letter in "ADCL":
            _refuse_if(bool(command), "multiple commands specified")
            command = letter
        elif letter in "tu":
            _refuse_if(bool(protocol), "multiple protocols specified")
            protocol = {"t": "tcp", "u": "udp"}[letter]
            local = _endpoint(value, "illegal local address/port specified", links=True)
        else:
            _refuse_if(remote is not None, "multiple destinations specified")
            remote = _endpoint(value, "illegal destination specified", links=False)
    _refuse_if(bool(rest), "unknown arguments found on commandline")
    return _request(command, protocol, local, remote)


def _request(command: str, protocol: str, local: tuple[str, int] | None, remote: tuple[str, int] | None) -> Request:
    if not command:
        return Request("help")
    if command in "CL":
        _refuse_if(bool(local or remote), "incompatible options specified")
        return Request("list") if command == "L" else Request("change", (Change(action="clear"),))
    _refuse_if(local is None or (command == "A" and remote is None), "insufficient options specified")
    _refuse_if(command == "D" and remote is not None, "incompatible options specified")
    listen, port = local or ("", 0)
    targets = (Target(*remote),) if remote else ()
    forward = Forward(protocol=protocol, listen=listen, first=port, last=port, targets=targets)
    return Request("change", (Change(action="set" if command == "A" else "delete", forward=forward),))


def _endpoint(text: str, complaint: str, *, links: bool) -> tuple[str, int]:
    match = _ENDPOINT.fullmatch(text)
    if not match or not 1 <= int(match[2]) <= LAST_PORT:
        raise _misuse(complaint)
    if read_address(match[1]) is None and not (links and _LINK.fullmatch(match[1])):
        raise _misuse(complaint)
    return match[1], int(match[2])


def _refuse_if(wrong: bool, text: str) -> None:
    if wrong:
        raise _misuse(text)


def _misuse(text: str) -> ConfigurationError:
    return ConfigurationError(f"ipportfw: {text}")


def listing(forwards: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of `ipportfw -L` for what the control method `forwards` returns."""
    yield HEADER
    for one in forwards:
        for step in range(one["last"] - one["first"] + 1):
            for target in one["targets"]:
                local = f"{one['address'] or one['listen']}/{one['first'] + step}"
                yield f"{one['protocol'].upper():<4} {local} > {target['address']}/{target['port'] + step}"
                yield ""
