"""A packet that a rule wants logged, as a line in the words of the kernels of 1999 (original-systems 5.2 and 5.3)."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastmasq.path.rules import BASES, SHOWS, TARGETS
from fastmasq.wire.numbers import ICMP, TCP, UDP

if TYPE_CHECKING:
    from fastmasq.policy.compile import CompiledChains

_HEADER = struct.Struct(">BBHHHBBH")
_NO_PORT = 65535
_TARGETS_2_0 = {"ACCEPT": "acc", "MASQ": "acc/masq", "DENY": "deny", "REJECT": "rej"}
_CHAINS_2_0 = {"input": "fw-in", "output": "fw-out", "forward": "fw-fwd"}
_LEAVING = ("forward", "output")
_NAMES = {code: name for name, code in TARGETS.items()}


def packet_line(record: np.void, compiled: CompiledChains, links: Sequence[str], compat: str) -> str:
    """Return the line for one rows.LOG_RECORD of these chains: as 2.0 wrote it under compat "2.0", else as 2.2 did."""
    chain, number = compiled.places[record["row"]]
    if record["loop"]:
        return f"IP firewall: Loop detected at `{chain}'."
    target = _target(int(record["row"]), compiled)
    if compat == "2.0":
        return f"IP {_CHAINS_2_0.get(BASES[record['base']], 'fw-acct')} {_line_2_0(record, target, links)}"
    return f"Packet log: {chain} {target or '-'} {_line_2_2(record, links)}(#{number})"


def _target(row: int, compiled: CompiledChains) -> str:
    code = int(compiled.rows[row]["target"])
    if code in _NAMES:
        return _NAMES[code]
    return compiled.places[int(compiled.rows[row]["target_row"])][0]


def _line_2_2(record: np.void, links: Sequence[str]) -> str:
    ports = (int(record["sport"]), int(record["dport"])) if record["shows"] & SHOWS["ports"] else (_NO_PORT, _NO_PORT)
    source, destination = (_address(record[name]) for name in ("saddr", "daddr"))
    syn = "SYN " if record["shows"] & SHOWS["syn"] else ""
    return (
        f"{links[record['link']]} PROTO={record['ip'][9]} {source}:{ports[0]} {destination}:{ports[1]}"
        f" {_header(record)} {syn}"
    )


def _line_2_0(record: np.void, target: str, links: Sequence[str]) -> str:
    protocol = int(record["ip"][9])
    has_ports = record["shows"] & SHOWS["ports"] and protocol != ICMP
    kind = {ICMP: f"ICMP/{record['sport']}", TCP: "TCP", UDP: "UDP"}.get(protocol, f"PROTO={protocol}")
    source, destination = (
        _address(record[address]) + (f":{record[port]}" if has_ports else "")
        for address, port in (("saddr", "sport"), ("daddr", "dport"))
    )
    said = _TARGETS_2_0.get(target, target or "-")
    return f"{said} {links[record['link']]} {kind} {source} {destination} {_header(record)}"


def _header(record: np.void) -> str:
    """Return length, TOS, identification, fragment field, TTL and options as both kernels print them.

    The record has the packet as it came; the kernels counted its TTL down before they asked forward and output.
    """
    octets = record["ip"].tobytes()
    version, tos, length, identification, fragment, ttl, _, _ = _HEADER.unpack_from(octets)
    ttl -= BASES[record["base"]] in _LEAVING or bool(record["shows"] & SHOWS["out"])
    options = octets[20 : (version & 15) * 4]
    words = "".join(f" O=0x{word:08X}" for (word,) in struct.iter_unpack(">I", options))
    return f"L={length} S=0x{tos:02X} I={identification} F=0x{fragment:04X} T={ttl}{words}"


def _address(value: np.integer) -> str:
    return str(ipaddress.IPv4Address(int(value)))
