"""What a command line asks of the forwarder, whichever program it was written for: data without names or sockets.

What changes policy has a `call`: the control method that makes the change, and its parameters in JSON's types.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from fastmasq.policy.chains import Rule
from fastmasq.policy.changes import Change
from fastmasq.policy.evaluate import Packet

Call = tuple[str, dict[str, Any]]


class Changes(Struct, frozen=True):
    """Changes to be made one after the other. verbose: say each on standard output (-v)."""

    changes: tuple[Change, ...]
    verbose: bool = False
    warnings: tuple[str, ...] = ()

    def call(self) -> Call:
        return "rules.change", {"changes": msgspec.to_builtins(self.changes)}


class List(Struct, frozen=True):
    """Print one chain, or all. extended is ipfwadm's -e, verbose ipchains' -v; zero the counters in the same moment."""

    chain: str | None = None
    numeric: bool = False
    extended: bool = False
    exact: bool = False
    line_numbers: bool = False
    zero: bool = False
    warnings: tuple[str, ...] = ()


class ListSessions(Struct, frozen=True):
    """Print the masquerade table; extended adds the columns of sequence numbers."""

    numeric: bool = False
    extended: bool = False
    warnings: tuple[str, ...] = ()


class Check(Struct, frozen=True):
    """Say what a chain would do with packets that have the addresses, ports and interface of these rules."""

    chain: str
    rules: tuple[Rule, ...]
    verbose: bool = False
    warnings: tuple[str, ...] = ()


class SetTimeouts(Struct, frozen=True):
    """Idle times in seconds; 0 keeps the present one (rule C-20)."""

    tcp: int
    tcp_fin: int
    udp: int
    warnings: tuple[str, ...] = ()

    def call(self) -> Call:
        return "timeouts", {"tcp": self.tcp, "tcp_fin": self.tcp_fin, "udp": self.udp}


class SetDynaddr(Struct, frozen=True):
    """What happens to sessions when the outside address changes: 0 to 7, as in /proc/sys/net/ipv4/ip_dynaddr."""

    value: int
    warnings: tuple[str, ...] = ()

    def call(self) -> Call:
        return "dynaddr", {"value": self.value}


class Forwarding(Struct, frozen=True):
    """Changes of port forwards or redirects: the control method that makes them, and its changes in JSON's types."""

    method: str
    changes: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...] = ()

    def call(self) -> Call:
        return self.method, {"changes": list(self.changes)}


class Text(Struct, frozen=True):
    """Print this: help, or a version."""

    text: str
    warnings: tuple[str, ...] = ()


Request = Changes | List | ListSessions | Check | SetTimeouts | Text


def packet_of(rule: Rule) -> Packet:
    """Return the packet that a check describes with the options of a rule; each is a single value there."""
    match = rule.match
    first = [ports[0][0] if ports else 0 for ports in (match.source_ports, match.destination_ports)]
    return Packet(
        source=match.source[0],
        destination=match.destination[0],
        protocol=match.protocol,
        source_port=first[0],
        destination_port=first[1],
        syn=bool(match.syn),
        ack=match.ack,
        fragment=bool(match.fragment),
        interface=match.interface,
        interface_address=match.interface_address,
    )
