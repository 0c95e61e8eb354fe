"""Triggers as data: ports for a fixed host, ranges that a control connection opens, ports that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from fastmasq.errors import ConfigurationError
from fastmasq.policy.forwards import OUTSIDE, Forward, Target, read_address, write_ports
from fastmasq.wire.numbers import TCP, UDP

NUMBERS = {"tcp": TCP, "udp": UDP}

Protocol = Literal["tcp", "udp"]
TriggerRow = tuple[int, int, int, int, int, bool, bool]
DirectRow = tuple[int, int, int]


class Trigger(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row of `ipmasqadm autofw` (original-systems 5.5), about the outside link, whatever address it has.

    "range": external ports `first` to `last` lead to the same ports of `host`; without a host, of the inside host that
    has last contacted the control port: for 15 s after each contact if is_timed, and for packets from the contacted
    address only if peer_only. "port": the external port `first` leads to the port `hidden` of `host`. "direct":
    outbound sessions towards the ports `first` to `last` keep their source port. A row that is to `steal` may take the
    ports of running programs of the host.
    """

    kind: Literal["range", "port", "direct"]
    protocol: Protocol
    first: int
    last: int
    host: str = ""
    hidden: int = 0
    control_protocol: Protocol | None = None
    control_port: int = 0
    is_timed: bool = True
    peer_only: bool = False
    steal: bool = False

    def __str__(self) -> str:
        opened = f" by {self.control_protocol} {self.control_port}" if self.control_protocol else ""
        return f"{self.kind} {self.protocol} {write_ports(OUTSIDE, self.first, self.last)}{opened}"

    @property
    def is_trigger(self) -> bool:
        return self.kind == "range" and not self.host


class Change(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change: "add" takes the place of a row for the same ports, "delete" wants all but the limits to be equal."""

    action: Literal["add", "delete", "clear"]
    row: Trigger | None = None


def apply(rows: Sequence[Trigger], changes: Iterable[Change]) -> tuple[Trigger, ...]:
    """Return the rows after all changes, the newest first. Raises ConfigurationError when a change cannot be made."""
    result = tuple(rows)
    for change in changes:
        row = change.row
        if change.action == "clear":
            result = ()
        elif row is None:
            raise ConfigurationError(f"trigger {change.action}: which row?")
        elif change.action == "add":
            check(row)
            result = (row, *(one for one in result if str(one) != str(row)))
        else:
            left = tuple(one for one in result if _what(one) != _what(row))
            if left == result:
                raise ConfigurationError(f"trigger {row} is not in use")
            result = left
    return result


def _what(row: Trigger) -> tuple[str, str, int]:
    return str(row), row.host, row.hidden


def check(row: Trigger) -> None:
    """Raise ConfigurationError for a row that cannot be."""
    if not 1 <= row.first <= row.last <= 65535:
        raise ConfigurationError(f"trigger {row}: ports run from 1 to 65535, the smaller first")
    if row.is_trigger and not (row.control_protocol and 1 <= row.control_port <= 65535):
        raise ConfigurationError(
            f"trigger {row}: a range needs the host that gets it (-h), or the control port that opens it (-c)"
        )
    if row.kind == "port" and not (row.first == row.last and 1 <= row.hidden <= 65535):
        raise ConfigurationError(f"trigger {row}: one external port leads to one port, from 1 to 65535")
    if row.kind != "direct" and not row.is_trigger:
        address = read_address(row.host)
        if address is None or address.is_multicast or address.is_loopback or address.is_unspecified:
            raise ConfigurationError(f"trigger {row}: {row.host} cannot be the address of an inside host")


# -- what they come to -----------------------------------------------------------------------------------------------


def port_forwards(rows: Iterable[Trigger]) -> tuple[Forward, ...]:
    """Return the port forwards that rows with a fixed host are."""
    return tuple(
        Forward(
            protocol=row.protocol,
            listen=OUTSIDE,
            first=row.first,
            last=row.last,
            targets=(Target(row.host, row.hidden or row.first),),
        )
        for row in rows
        if row.kind != "direct" and not row.is_trigger
    )


def trigger_rows(rows: Iterable[Trigger]) -> list[TriggerRow]:
    """Return what path.triggers_and_marks.TriggerTable.set_rows takes."""
    return [
        (
            NUMBERS[row.protocol],
            row.first,
            row.last,
            NUMBERS[row.control_protocol],
            row.control_port,
            row.is_timed,
            row.peer_only,
        )
        for row in rows
        if row.is_trigger
    ]


def direct_rows(rows: Iterable[Trigger]) -> list[DirectRow]:
    """Return what path.triggers_and_marks.TriggerTable.set_rows takes."""
    return [(NUMBERS[row.protocol], row.first, row.last) for row in rows if row.kind == "direct"]
