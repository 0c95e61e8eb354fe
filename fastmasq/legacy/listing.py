"""What the listings of both programs have in common: counters, addresses, ports, and the table of sessions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastmasq.legacy.names import ALL, Names, read_dotted, write_dotted, write_mask
from fastmasq.policy.chains import ANY_PORT
from fastmasq.wire.numbers import ICMP, TCP, UDP

_LARGEST_PLAIN = 99_999
_LARGEST_UNIT = 9_999
_PROTOCOLS = {ALL: "all", ICMP: "icmp", TCP: "tcp", UDP: "udp"}
_SESSION_PROTOCOLS = {"tcp": TCP, "udp": UDP}
_ECHO_REQUEST = 8 << 8  # what ICMP queries have in place of a remote port: type and code (original-systems 2.3)


class Shown:
    """How values are written: with names, or numeric (-n)."""

    def __init__(self, names: Names, numeric: bool) -> None:
        self.names = names
        self.numeric = numeric
        self.any = "*" if numeric else "any"

    def end(self, end: tuple[int, int]) -> str:
        """Return an (address, mask)."""
        address, mask = end
        if mask == 0 and not self.numeric:
            return "anywhere"
        return self.address(address) + write_mask(mask)

    def address(self, address: int) -> str:
        return write_dotted(address) if self.numeric else self.names.describe(address)

    def protocol(self, protocol: int) -> str:
        """Return the word both programs know for a protocol; of others the name, or with -n the number (A-28)."""
        return (
            _PROTOCOLS.get(protocol) or (None if self.numeric else self.names.protocol_name(protocol)) or str(protocol)
        )

    def port(self, port: int, protocol: int) -> str:
        return (None if self.numeric else self.names.service(port, protocol)) or str(port)

    def ports(self, ranges: Iterable[tuple[int, int]], protocol: int) -> str:
        """Return ranges as "20:21,113"; none, and all ports, as the word for any."""
        written = [
            ":".join(self.port(port, protocol) for port in dict.fromkeys(ports))
            for ports in ranges
            if ports != ANY_PORT
        ]
        return ",".join(written) or self.any


def count(number: int, exact_width: int, *, exact: bool, largest_unit: str) -> str:
    """Return a counter and a space: in full, or from 100 000 on in thousands (K), millions (M), milliards (G)."""
    if exact:
        return f"{number:{exact_width}} "
    if number <= _LARGEST_PLAIN:
        return f"{number:5} "
    amount = (number + 500) // 1000
    unit = "K"
    if amount > _LARGEST_UNIT:
        amount, unit = (number + 500_000) // 1_000_000, "M"
    if amount > _LARGEST_UNIT and largest_unit == "G":
        amount, unit = (amount + 500) // 1000, "G"
    return f"{amount:4}{unit} "


def session_lines(sessions: Iterable[dict[str, Any]], shown: Shown, *, deltas: bool, capitals: bool) -> list[str]:
    """Return the masquerade table of -M -l and -M -L.

    sessions: as the control method `sessions` describes them. deltas: with the columns of sequence numbers, which are
    all zero: fastmasq moves no sequence numbers. capitals: protocols written as ipchains does.
    """
    sequence = f"{'initseq':>10} delta prevd " if deltas else ""
    lines = ["IP masquerading entries"]
    for session in sessions:
        if len(lines) == 1:
            lines.append(f"prot {'expire':<8} {sequence}{'source':<20} {'destination':<20} ports")
        lines.append(_session_line(session, shown, f"{0:10} {0:5} {0:5} " if deltas else "", capitals))
    return lines


def _session_line(session: dict[str, Any], shown: Shown, sequence: str, capitals: bool) -> str:
    protocol = session["protocol"]
    number = _SESSION_PROTOCOLS.get(protocol, 0)
    (inside, inside_port), (remote, remote_port) = _endpoint(session["inside"]), _endpoint(session["remote"])
    if protocol == "icmp":
        remote_port = _ECHO_REQUEST
    external_port = _endpoint(session["external"])[1]
    hundredths = round(session["expires_s"] * 100)
    expire = f"{hundredths // 6000:02}:{hundredths // 100 % 60:02}.{hundredths % 100:02}"
    return (
        f"{protocol.upper() if capitals else protocol:<5}{expire} {sequence}"
        f"{shown.address(inside):<20} {shown.address(remote):<20} "
        f"{shown.port(inside_port, number)} ({external_port}) -> {shown.port(remote_port, number)}"
    )


def _endpoint(text: str) -> tuple[int, int]:
    address, _, port = text.partition(":")
    return read_dotted(address) or 0, int(port or 0)
