"""Reads command lines of ipfwd: `ipfwd --masq HOST PROTOCOL &`, with the commands fastmasq adds to it."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from msgspec import Struct

from fastmasq.errors import ConfigurationError
from fastmasq.legacy.force import takes_force
from fastmasq.legacy.tokens import whole
from fastmasq.policy.redirects import EVERYWHERE, Change, Redirect, check

HELP = """\
Usage: ipfwd [--masq] [--add] [--from NETWORK] [--force] HOST PROTOCOL
       ipfwd --delete [--from NETWORK] HOST PROTOCOL
       ipfwd --list | --flush | --help
PROTOCOL is a name or a number, but not of ICMP, TCP or UDP. The command ends at once; the forwarder goes on with it.
--force takes the protocol even from a running program or tunnel.
"""
_COMMANDS = ("--add", "--delete", "--list", "--flush")


class Request(Struct, frozen=True):
    """What a command line asks for: "help", "list" or "change"."""

    kind: str
    changes: tuple[Change, ...] = ()
    method: ClassVar[str] = "redirects.change"  # of the control socket


@takes_force
def parse(words: Sequence[str]) -> Request:
    """Return what the words behind the program's name ask for. Raises ConfigurationError."""
    command, source, rest = "--add", EVERYWHERE, []
    remaining = iter(words)
    for word in remaining:
        if word in ("--help", "-h"):
            return Request("help")
        if word in _COMMANDS:
            command = word
        elif word == "--from":
            source = next(remaining, "")
        elif word == "--proxy":
            raise ConfigurationError("ipfwd: --proxy is not available: the sender's address is always kept (--masq)")
        elif word.startswith("--") and word != "--masq":
            raise ConfigurationError(f"ipfwd: unknown option {word}; see ipfwd --help")
        elif word not in ("--masq", "&"):
            rest.append(word)
    if command in ("--list", "--flush"):
        if rest:
            raise ConfigurationError(f"ipfwd: {command} takes no arguments")
        return Request("list") if command == "--list" else Request("change", (Change(action="clear"),))
    if len(rest) != 2:
        raise ConfigurationError("ipfwd: name a host and a protocol, for example: ipfwd --masq 10.0.0.2 47")
    host, protocol = rest
    try:
        wanted = check(Redirect(protocol=_protocol(protocol), host=host, source=source))
    except ConfigurationError as error:
        raise ConfigurationError(f"ipfwd: {error}") from None
    return Request("change", (Change(action="set" if command == "--add" else "delete", redirect=wanted),))


def _protocol(text: str) -> int:
    number = whole(text)
    if number is not None:
        return number
    try:
        return socket.getprotobyname(text)
    except OSError:
        raise ConfigurationError(f"{text!r} is not a protocol; write its number, for example 47 for GRE") from None


def listing(redirects: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of `ipfwd --list` for what the control method `redirects` returns."""
    yield f"{'proto':<6} {'host':<16} from"
    for one in redirects:
        yield f"{one['protocol']:<6} {one['host']:<16} {one['source']}"
