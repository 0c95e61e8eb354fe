"""Reads command lines of ipmasqadm's module autofw, and writes its file of /proc."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any

from msgspec import Struct

from fastmasq.legacy import proc
from fastmasq.legacy.ipmasqadm_request import Failed, Request
from fastmasq.legacy.tokens import whole
from fastmasq.policy.forwards import ANY, read_address
from fastmasq.policy.triggers import NUMBERS, Change, Trigger

USAGE = """\
Usage:
    ipautofw <command> <options>

Valid commands:
    -A                           add new autoforward entry
    -D                           delete an autoforward entry
    -F                           flush the autoforward table

Valid options:
    -r <type> <low> <high>       forwarding on ports <low> to <high> using
                                 protocol <type> (tcp or udp)

    -h <host>                    IP address of host to receive forwarded
                                 packets

    -d <type> <low> <high>       outbound sessions to these ports keep their
                                 source port

    -p <type> <visible> <host>:<hidden>
                                 port <visible> leads to port <hidden> of <host>

    -c <type> <port>             specifies a control port and protocol

    -u                           Do _not_ require that a host connect within
                                 15 seconds of triggering the control port

    -i                           Insecure mode; any host may connect once the
                                 control port has been triggered
    -v                           Verbose mode"""

_KINDS = {"r": ("range", "-p or -d"), "d": ("direct", "-p or -r"), "p": ("port", "-r or -d")}
_TAKES = {"r": 3, "d": 3, "p": 3, "h": 1, "c": 2, "u": 0, "i": 0, "v": 0}
_ACTIVE, _TIMED, _PEER_ONLY = 1, 2, 4


class _Words(Struct):
    """What has been read of a command line: fields of the row to be, and switches."""

    row: dict[str, Any]
    host: str = ""
    is_secure: bool = True
    is_timed: bool = True
    verbose: bool = False


def parse(words: Sequence[str]) -> Request:
    """Return what the words behind "autofw" ask for. Raises Failed, in the program's words."""
    if not words:
        raise Failed(USAGE)
    command, rest = words[0][1:2], words[1:]
    if command not in ("A", "D", "F"):
        raise Failed("Command must be either -A, -D, or -F")
    if command == "F":
        if rest:
            raise Failed("The flush command does not take options")
        return Request("change", (Change(action="clear"),), module="autofw")
    found = _read(rest)
    if "kind" not in found.row:
        raise Failed("You must select a type of forwarding (direct, port, or range)")
    has_control = "control_port" in found.row
    text = "-i cannot be specified with a control port\n" if has_control and not found.is_secure else ""
    row = Trigger(
        **{"host": found.host, **found.row}, is_timed=found.is_timed, peer_only=found.is_secure and has_control
    )
    if row.is_trigger and not has_control:
        raise Failed("autofw: a range needs the host that gets it (-h), or the control port that opens it (-c)")
    if found.verbose:
        text += _announcement(command, row)
    change = Change(action="add" if command == "A" else "delete", row=row)
    return Request("change", (change,), text=text, module="autofw")


def _read(words: Sequence[str]) -> _Words:
    found = _Words({})
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        letter = word[1:2]
        if not word.startswith("-") or letter not in _TAKES:
            raise Failed(f"Invalid option: {word}")
        values, remaining = remaining[: _TAKES[letter]], remaining[_TAKES[letter] :]
        if len(values) < _TAKES[letter]:
            raise Failed(f"autofw: option -{letter} needs {_TAKES[letter]} argument{'s' * (_TAKES[letter] > 1)}")
        _take(found, letter, values)
    return found


def _take(found: _Words, letter: str, values: list[str]) -> None:
    if letter in _KINDS:
        kind, others = _KINDS[letter]
        row = {"protocol": _protocol(values[0], "protocol"), **(_bounce if kind == "port" else _range)(values[1:])}
        if "kind" in found.row:
            raise Failed(f"-{letter} cannot be used in conjunction with {others}")
        found.row.update(row, kind=kind)
    elif letter == "h":
        found.host, found.is_secure = _host(values[0]), False
    elif letter == "c":
        found.row["control_protocol"] = _protocol(values[0], "Control protocol")
        found.row["control_port"] = _port(values[1])
    elif letter == "u":
        found.is_timed = False
    elif letter == "i":
        found.is_secure = False
    else:
        found.verbose = True


def _protocol(text: str, what: str) -> str:
    protocol = {"t": "tcp", "u": "udp"}.get(text[:1])
    if protocol is None:
        raise Failed(f"{what} must be either tcp or udp")
    return protocol


def _port(text: str) -> int:
    port = whole(text) or 0
    if not 1 <= port <= 65535:
        raise Failed("Illegal port numbers")
    return port


def _range(values: list[str]) -> dict[str, Any]:
    first, last = _port(values[0]), _port(values[1])
    if last < first:
        raise Failed("Illegal port numbers")
    return {"first": first, "last": last}


def _bounce(values: list[str]) -> dict[str, Any]:
    visible = _port(values[0])
    host, _, hidden = values[1].partition(":")
    return {"first": visible, "last": visible, "host": _host(host), "hidden": _port(hidden)}


def _host(text: str) -> str:
    address = read_address(text)
    if address is None:
        raise Failed(f"Invalid IP address: {text}")
    return str(address)


def _announcement(command: str, row: Trigger) -> str:
    """Return what -v prints."""
    text = "Adding autofwd " if command == "A" else "Deleteing autofwd "
    if row.kind == "direct":
        text += f"(direct) ports {row.first} - {row.last}\n"
    elif row.kind == "port":
        text += f"{row.protocol} port {row.first} -> {row.host}:{row.hidden} "
    else:
        text += f"{row.protocol} ports {row.first} - {row.last} "
        text += f"to fixed host {row.host} " if row.host else ""
    if row.control_protocol:
        text += f"via {row.control_protocol} ctl port {row.control_port} "
    return text + "U" * row.is_timed + "S" * row.peer_only


def proc_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Return the lines of /proc/net/ip_masq/autofw for what the control method `triggers` returns."""
    return proc.autofw(
        proc.AutoForwardRow(
            kind=row["kind"],
            protocol=NUMBERS[row["protocol"]],
            low=0 if row["kind"] == "port" else row["first"],
            high=0 if row["kind"] == "port" else row["last"],
            visible=row["first"] if row["kind"] == "port" else 0,
            hidden=row["hidden"],
            where=int(IPv4Address(row["contact"] or row["host"] or ANY)),
            last_peer=int(IPv4Address(row["peer"] or ANY)),
            control_protocol=NUMBERS.get(row["control_protocol"], 0),
            control_port=row["control_port"],
            left_s=row["left_s"],
            flags=_ACTIVE * bool(row["contact"]) + _TIMED * row["is_timed"] + _PEER_ONLY * row["peer_only"],
        )
        for row in rows
    )
