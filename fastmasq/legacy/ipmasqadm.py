"""Reads command lines of ipmasqadm 0.4.2, modules portfw and autofw, and writes the listing of portfw."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any

from msgspec import Struct

from fastmasq.errors import ConfigurationError, FastmasqError
from fastmasq.legacy import proc
from fastmasq.legacy.names import TCP, UDP
from fastmasq.policy.portfw import (
    LARGEST_PREFERENCE,
    OUTSIDE,
    PREFERENCE,
    Change,
    PortForward,
    Target,
    read_address,
)

LAST_PORT = 60999
USAGE = "usage: ipmasqadm MODULE [opts]"
PORTFW_HELP = """\
portfw -a -P PROTO -L LADDR LPORT -R RADDR RPORT [-p PREF]  add or edit an entry
portfw -d -P PROTO -L LADDR LPORT [-R RADDR RPORT]          delete entries
portfw -f                                                   flush the table
portfw -l [-n]                                              list the table, -n without names
PROTO is tcp or udp; LADDR may be the name of a link, whose address may change.
"""
AUTOFW_HELP = """\
autofw -A -r {tcp|udp} LOW HIGH -h HOST         forward a range of ports
autofw -A -p {tcp|udp} VISIBLE HOST:HIDDEN      forward a port
autofw -D ...                                   delete such an entry
autofw -F                                       flush the table
"""
_ROW = "{:<4} {:<20} {:<20} {:>8} {:>8} {:>5} {:>5}"
_NUMBERS = {"tcp": TCP, "udp": UDP}
_ABSENT = {  # module: why
    "mfw": "forwarding by mark is not available in this version",
    "user": "entries cannot be made by hand in this version",
}


class Request(Struct, frozen=True):
    """What a command line asks for: "help" (with its text), "list" or "change"."""

    kind: str
    changes: tuple[Change, ...] = ()
    numeric: bool = False
    text: str = ""


class Failed(FastmasqError):
    """What the program says when it ends with status 1."""


def parse(words: Sequence[str]) -> Request:
    """Return what the words behind the program's name ask for.

    Raises Failed (exit status 1) or ConfigurationError (2) with what the program would have printed.
    """
    if not words:
        raise Failed(USAGE)
    module, rest = words[0], list(words[1:])
    if module == "portfw":
        return _portfw(rest)
    if module == "autofw":
        return _autofw(rest)
    if module in _ABSENT:
        raise Failed(f"{module}: {_ABSENT[module]}")
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
    forward = PortForward(protocol=protocol, listen=listen, first=port, last=port, targets=targets)
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
    if read_address(text) is not None:
        return str(IPv4Address(text))
    if not numeric:
        try:
            return socket.gethostbyname(text)
        except OSError:
            pass
    if links:
        return text  # the name of a link: checked by the forwarder, which knows its own
    raise ConfigurationError(f"portfw: invalid address specified: {text}")


def _port(text: str, protocol: str, numeric: bool, most: int, *, least: int = 1) -> int:
    if text.isascii() and text.isdigit():
        port = int(text)
    else:
        try:
            port = 0 if numeric else socket.getservbyname(text, protocol)
        except OSError:
            port = -1
    if not least <= port <= most:
        raise ConfigurationError(f"portfw: invalid port specified: {text}")
    return port


def _preference(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= LARGEST_PREFERENCE):
        raise ConfigurationError(f"portfw: invalid preference specified: {text}")
    return int(text)


# -- autofw ----------------------------------------------------------------------------------------------------------


def _autofw(words: list[str]) -> Request:
    if not words or words[0] not in ("-A", "-D", "-F"):
        return Request("help", text=AUTOFW_HELP)
    command, words = words[0][1], words[1:]
    if command == "F":
        if words:
            raise Failed("The flush command does not take options")
        return Request("change", (Change(action="clear", listen=OUTSIDE),))
    takes = {"r": 3, "d": 3, "p": 3, "h": 1, "c": 2}
    found = dict(_options(list(words), takes, "autofw"))
    if sum(kind in found for kind in "rdp") != 1:
        raise Failed("You must select a type of forwarding (direct, port, or range)")
    if "d" in found or "c" in found:
        raise Failed(
            "autofw: ranges opened by a control port (-c), and direct ones (-d), are not available in this version"
        )
    forward = _autofw_port(found["p"]) if "p" in found else _autofw_range(found)
    return Request("change", (Change(action="set" if command == "A" else "delete", forward=forward),))


def _autofw_range(found: dict[str, list[str]]) -> PortForward:
    if "h" not in found:
        raise Failed("autofw: a range needs the host (-h) that gets it")
    first, last = (_autofw_number(word) for word in found["r"][1:])
    targets = (Target(_autofw_host(found["h"][0]), first),)
    return PortForward(
        protocol=_autofw_protocol(found["r"][0]), listen=OUTSIDE, first=first, last=last, targets=targets
    )


def _autofw_port(values: list[str]) -> PortForward:
    host, _, hidden = values[2].partition(":")
    visible = _autofw_number(values[1])
    targets = (Target(_autofw_host(host), _autofw_number(hidden)),)
    return PortForward(
        protocol=_autofw_protocol(values[0]), listen=OUTSIDE, first=visible, last=visible, targets=targets
    )


def _autofw_protocol(text: str) -> str:
    if text not in ("tcp", "udp"):
        raise Failed(f"autofw: {text}: not tcp or udp")
    return text


def _autofw_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise Failed(f"autofw: {text}: not a port")
    return int(text)


def _autofw_host(text: str) -> str:
    if read_address(text) is None:
        raise Failed(f"autofw: {text}: not an address")
    return text


# -- listings --------------------------------------------------------------------------------------------------------


def listing(forwards: Iterable[dict[str, Any]], *, numeric: bool) -> Iterator[str]:
    """Yield the lines of `ipmasqadm portfw -l`, UDP first, for what the control method `forwards` returns."""
    yield _ROW.format("prot", "localaddr", "rediraddr", "lport", "rport", "pcnt", "pref")
    host: Callable[[str], str] = str if numeric else _host_name
    for protocol, listen, port, target, step in _entries(forwards):
        ports = (str(port), str(target["port"] + step))
        if not numeric:
            ports = tuple(_service(text, protocol) for text in ports)
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


def autofw_rows(forwards: Iterable[dict[str, Any]]) -> Iterator[proc.AutoForwardRow]:
    """Yield the rows of /proc/net/ip_masq/autofw: what `autofw` made, which is always active, and for anybody."""
    for one in forwards:
        for target in one["targets"] if one["listen"] == OUTSIDE else ():
            single = one["first"] == one["last"]
            ports = {"visible": one["first"], "hidden": target["port"]}
            yield proc.AutoForwardRow(
                kind="port" if single else "range",
                protocol=_NUMBERS[one["protocol"]],
                where=int(IPv4Address(target["address"])),
                flags=proc.ACTIVE,
                **(ports if single else {"low": one["first"], "high": one["last"]}),
            )


def _entries(forwards: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str, int, dict[str, Any], int]]:
    """Yield (protocol, local address, local port, target, how far its port is from the first) of every entry."""
    for one in sorted(forwards, key=lambda one: one["protocol"] != "udp"):
        for step in range(one["last"] - one["first"] + 1):
            for target in one["targets"]:
                yield one["protocol"], one["address"] or one["listen"], one["first"] + step, target, step


def _host_name(address: str) -> str:
    try:
        return socket.gethostbyaddr(address)[0]
    except OSError:
        return address


def _service(port: str, protocol: str) -> str:
    try:
        return socket.getservbyport(int(port), protocol)
    except OSError:
        return port
