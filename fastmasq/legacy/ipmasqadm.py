"""Reads command lines of ipmasqadm 0.4.2, those of the module portfw itself, and writes the listing of portfw."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any

from fastmasq.errors import ConfigurationError
from fastmasq.legacy import ipmasqadm_autofw, ipmasqadm_mfw, proc
from fastmasq.legacy.force import takes_force
from fastmasq.legacy.ipmasqadm_request import Failed, Request, find_address, service_name
from fastmasq.legacy.names import Names
from fastmasq.legacy.tokens import whole
from fastmasq.policy.forwards import (
    LARGEST_PREFERENCE,
    PREFERENCE,
    Change,
    Forward,
    Target,
    read_address,
)
from fastmasq.wire.numbers import TCP, UDP

LAST_PORT = 60999
USAGE = "usage: ipmasqadm MODULE [opts]"
PORTFW_HELP = """\
portfw -a -P PROTO -L LADDR LPORT -R RADDR RPORT [-p PREF]  add or edit an entry
portfw -d -P PROTO -L LADDR LPORT [-R RADDR RPORT]          delete entries
portfw -f                                                   flush the table
portfw -l [-n]                                              list the table, -n without names
PROTO is tcp or udp; LADDR may be the name of a link, whose address may change.
"""
_ROW = "{:<4} {:<20} {:<20} {:>8} {:>8} {:>5} {:>5}"
_NUMBERS = {"tcp": TCP, "udp": UDP}


@takes_force
def parse(words: Sequence[str]) -> Request:
    """Return what the words behind the program's name ask for.

    Raises Failed (exit status 1), ConfigurationError (2) or Refused (255) with what the program would have printed.
    """
    if not words:
        raise Failed(USAGE)
    module, rest = words[0], list(words[1:])
    if module == "portfw":
        return _portfw(rest)
    if module == "autofw":
        return ipmasqadm_autofw.parse(rest)
    if module == "mfw":
        return ipmasqadm_mfw.parse(rest)
    if module == "user":
        raise Failed("user: entries cannot be made by hand in this version")
    raise Failed(f"dlopen(): /usr/lib/ipmasqadm/{module}.so: cannot open shared object file: No such file or directory")


# -- portfw ----------------------------------------------------------------------------------------------------------


def _portfw(words: list[str]) -> Request:
    found: dict[str, Any] = {}
    command, numeric = "", False
    takes = {"P": 1, "L": 2, "R": 2, "p": 1}
    for letter, values in _options(words, takes, "portfw"):
        if letter in "adfl":
            if command:
                raise ConfigurationError("portfw: multiple commands specified")
            command = letter
        elif letter == "n":
            numeric = True
        elif letter == "h":
            return Request("help", text=PORTFW_HELP)
        elif letter in takes:
            found[letter] = values
        else:
            raise ConfigurationError(f"portfw: unknown option -{letter}")
    if command == "l":
        return Request("list", numeric=numeric)
    if command == "f":
        return Request("change", (Change(action="clear"),))
    return _portfw_change(command, found, numeric)


def _portfw_change(command: str, found: dict[str, Any], numeric: bool) -> Request:
    if not command or "P" not in found or "L" not in found or (command == "a" and "R" not in found):
        raise ConfigurationError("portfw: insufficient options specified")
    protocol = {"t": "tcp", "u": "udp"}.get(found["P"][0][:1].lower())
    if protocol is None:
        raise ConfigurationError(f"portfw: invalid protocol specified: {found['P'][0]}")
    listen, port = _address(found["L"][0], numeric, links=True), _port(found["L"][1], protocol, numeric, LAST_PORT)
    targets: tuple[Target, ...] = ()
    if "R" in found:
        preference = _preference(found["p"][0]) if "p" in found else PREFERENCE
        host = _address(found["R"][0], numeric, links=False)
        targets = (Target(host, _port(found["R"][1], protocol, numeric, 65535, least=command == "a"), preference),)
    forward = Forward(protocol=protocol, listen=listen, first=port, last=port, targets=targets)
    return Request("change", (Change(action="prefer" if command == "a" else "withdraw", forward=forward),))


def _options(words: list[str], takes: dict[str, int], module: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (letter, its values) of every option; a first value may be attached, as in -Ptcp."""
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if len(word) < 2 or not word.startswith("-"):
            raise ConfigurationError(f"{module}: unknown arguments found on commandline: {word}")
        letter, attached = word[1], word[2:]
        count = takes.get(letter, 0)
        values = [attached] if attached and count else []
        if attached and not count:
            words.insert(at, f"-{attached}")  # a cluster
        while len(values) < count:
            if at == len(words):
                raise ConfigurationError(f"{module}: option -{letter} needs {count} argument{'s' * (count > 1)}")
            values.append(words[at])
            at += 1
        yield letter, values


def _address(text: str, numeric: bool, *, links: bool) -> str:
    address = find_address(text, numeric=numeric)
    if address is not None:
        return address
    if links:
        return text  # the name of a link: checked by the forwarder, which knows its own
    raise ConfigurationError(f"portfw: invalid address specified: {text}")


def _port(text: str, protocol: str, numeric: bool, most: int, *, least: int = 1) -> int:
    port = whole(text)
    if port is None:
        try:
            port = 0 if numeric else socket.getservbyname(text, protocol)
        except OSError:
            port = -1
    if not least <= port <= most:
        raise ConfigurationError(f"portfw: invalid port specified: {text}")
    return port


def _preference(text: str) -> int:
    preference = whole(text) or 0
    if not 1 <= preference <= LARGEST_PREFERENCE:
        raise ConfigurationError(f"portfw: invalid preference specified: {text}")
    return preference


# -- listings --------------------------------------------------------------------------------------------------------


def listing(forwards: Iterable[dict[str, Any]], *, numeric: bool) -> Iterator[str]:
    """Yield the lines of `ipmasqadm portfw -l`, UDP first, for what the control method `forwards` returns."""
    yield _ROW.format("prot", "localaddr", "rediraddr", "lport", "rport", "pcnt", "pref")
    host: Callable[[str], str] = str if numeric else Names().describe_text
    for protocol, listen, port, target, step in _entries(forwards):
        ports = [port, target["port"] + step]
        if not numeric:
            ports = [service_name(number, protocol) for number in ports]
        addresses = (host(listen), host(target["address"]))
        yield _ROW.format(
            protocol.upper(), *addresses, *ports, target.get("left", target["preference"]), target["preference"]
        )


def rows(forwards: Iterable[dict[str, Any]]) -> Iterator[proc.PortForwardRow]:
    """Yield the rows of /proc's tables of port forwards for what the control method `forwards` returns."""
    for protocol, listen, port, target, step in _entries(forwards):
        yield proc.PortForwardRow(
            protocol=_NUMBERS[protocol],
            address=int(read_address(listen) or 0),
            port=port,
            to_address=int(IPv4Address(target["address"])),
            to_port=target["port"] + step,
            remaining=target.get("left", target["preference"]),
            preference=target["preference"],
        )


def _entries(forwards: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str, int, dict[str, Any], int]]:
    """Yield (protocol, local address, local port, target, how far its port is from the first) of every entry."""
    for one in sorted(forwards, key=lambda one: one["protocol"] != "udp"):
        for step in range(one["last"] - one["first"] + 1):
            for target in one["targets"]:
                yield one["protocol"], one["address"] or one["listen"], one["first"] + step, target, step
