"""Reads command lines of ipmasqadm's module mfw, and writes its listing and its file of /proc."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any

from msgspec import Struct

from fastmasq.errors import ConfigurationError
from fastmasq.legacy import proc
from fastmasq.legacy.ipmasqadm_request import Refused, Request, find_address, service_name
from fastmasq.legacy.names import Names
from fastmasq.policy.forwards import ANY, PREFERENCE
from fastmasq.policy.marks import Change, MarkTarget

HELP = """\
Usage: mfw -A -m FWMARK -r RADDR RPORT [-p PREF] add entry
       mfw -D -m FWMARK [-r RADDR RPORT]         delete entry
       mfw -E -m FWMARK [-r RADDR RPORT]         edit entry
       mfw -S -m FWMARK                          force scheduling
       mfw -F                                    clear table
       mfw -L                                    list table
       mfw <args> -n                             no names

FWMARK is the fwmark being redirected.
RADDR is the remote address.
RPORT is the port being redirected to.
PREF  is the preference level (load balancing, default=10)"""

INVALID = "mfw: setsockopt failed: Invalid argument"
_ACTIONS = {"A": "add", "D": "delete", "E": "edit", "S": "schedule", "F": "clear"}
_NUMBER = re.compile(r"\s*([+-]?\d{1,19})", re.ASCII)
_ROW = "{:<8} {:<20} {:>8} {:>5} {:>5}"
_HASHES = 16  # lists of marks in the kernel, by which it showed them


class _Words(Struct):
    """What has been read of a command line."""

    command: str = ""
    numeric: bool = False
    mark: int = 0
    address: str = ANY
    port: int = 0
    preference: int = PREFERENCE


class _Help(Exception):
    """The words ask for help, or are none that the program knows."""


def parse(words: Sequence[str]) -> Request:
    """Return what the words behind "mfw" ask for.

    Raises ConfigurationError (exit status 2) or Refused with what the program would have printed.
    """
    try:
        found = _read(list(words))
    except _Help:
        return Request("help", text=HELP)
    if not found.command:
        return Request("help", text=HELP)
    has_destination = found.address != ANY or found.port != 0
    if found.command in "AD" and found.mark == 0:
        raise ConfigurationError("mfw: insufficient options specified")
    if found.command in "FL" and (found.mark or has_destination):
        raise ConfigurationError("mfw: incompatible options specified")
    if found.command == "L":
        return Request("list", numeric=found.numeric, module="mfw")
    if found.command == "F":
        return Request("change", (Change(action="clear"),), module="mfw")
    if found.mark == 0 or (found.command == "A" and found.address == ANY):
        raise Refused(INVALID)
    target = MarkTarget(mark=found.mark, address=found.address, port=found.port, preference=found.preference)
    return Request("change", (Change(action=_ACTIONS[found.command], target=target),), module="mfw")


def _read(words: list[str]) -> _Words:
    found = _Words()
    others = []
    while words:
        word = words.pop(0)
        if len(word) < 2 or not word.startswith("-"):
            others.append(word)
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in "mrp":
                if not letters and not words:
                    raise _Help
                _take(found, letter, letters or words.pop(0), words)
                break
            _switch(found, letter)
    if others:
        raise ConfigurationError("mfw: unknown arguments found on commandline")
    return found


def _switch(found: _Words, letter: str) -> None:
    if letter == "n":
        found.numeric = True
    elif letter not in "AEDFSL":
        raise _Help
    elif found.command:
        raise ConfigurationError("mfw: multiple commands specified")
    else:
        found.command = letter


def _take(found: _Words, letter: str, value: str, words: list[str]) -> None:
    """Take the value of an option; the port of -r is the word after it, if there is one."""
    if letter == "m":
        found.mark = _number(value) & 0xFFFFFFFF
    elif letter == "p":
        found.preference = _number(value)
        if found.preference < 0:
            raise ConfigurationError("mfw: illegal preference value specified")
    elif found.address != ANY or found.port:
        raise ConfigurationError("mfw: multiple destinations specified")
    else:
        address = find_address(value, numeric=found.numeric)
        if address is None:
            raise ConfigurationError("mfw: illegal destination specified")
        found.address = address
        port = _port(words[0], numeric=found.numeric) if words else None
        if port is not None:
            found.port = port
            words.pop(0)


def _number(text: str) -> int:
    """Return the number that a word begins with, 0 without one."""
    match = _NUMBER.match(text)
    return int(match[1]) if match else 0


def _port(text: str, *, numeric: bool) -> int | None:
    """Return the port that a word is, None if it is none."""
    if text[:1].isdigit():
        if _number(text) > 65535:
            raise ConfigurationError("mfw: illegal destination specified")
        return _number(text)
    if not numeric and not text.startswith("-"):
        for protocol in ("tcp", "udp"):
            try:
                return socket.getservbyname(text, protocol)
            except OSError:
                continue
    return None


# -- listings --------------------------------------------------------------------------------------------------------


def listing(targets: Iterable[dict[str, Any]], *, numeric: bool) -> Iterator[str]:
    """Yield the lines of `ipmasqadm mfw -L` for what the control method `marks` returns."""
    yield _ROW.format("fwmark", "rediraddr", "rport", "pcnt", "pref")
    host: Callable[[str], str] = str if numeric else Names().describe_text
    for one in in_order(targets):
        port = str(one["port"]) if numeric else service_name(one["port"], "tcp")
        yield _ROW.format(one["mark"], host(one["address"]), port, one["left"], one["preference"])


def proc_lines(targets: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Return the lines of /proc/net/ip_masq/mfw for what the control method `marks` returns."""
    return proc.mfw(
        proc.MarkForwardRow(
            mark=one["mark"],
            to_address=int(IPv4Address(one["address"])),
            to_port=one["port"],
            remaining=one["left"],
            preference=one["preference"],
        )
        for one in in_order(targets)
    )


def in_order(targets: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return targets in the order of the kernel: by the hash of their marks, the newest mark first."""
    targets = list(targets)
    marks = list(dict.fromkeys(one["mark"] for one in targets))
    return sorted(targets, key=lambda one: (one["mark"] % _HASHES, -marks.index(one["mark"])))
