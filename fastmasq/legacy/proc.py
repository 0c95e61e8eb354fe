"""The files of /proc that programs of 1999 read: masquerade table, chains, forwards, exported symbols.

Each function takes plain data and returns the lines without their newlines. Formats are those of original-systems 2.13
and 5.2 to 5.5. Addresses are integers in host order, and printed as eight hexadecimal digits in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from fastmasq.legacy.names import read_dotted, write_dotted
from fastmasq.policy.chains import (
    ACCEPT,
    ACCOUNTING,
    ANY_PORT,
    DENY,
    FORWARD,
    INPUT,
    MASQ,
    OUTPUT,
    REDIRECT,
    REJECT,
    Chain,
    Counted,
    Match,
    Rule,
)
from fastmasq.wire.numbers import ICMP, TCP, UDP

JIFFIES = 100  # in a second (HZ of 1999)
LINE = 127  # characters of a line that programs seek in

_OLD_HEADER = "Prc FromIP   FPrt ToIP     TPrt Masq Init-seq  Delta PDelta Expires (free={})"
_NEW_HEADER = "Prot SrcIP    SPrt DstIP    DPrt MAddr    MPrt State        Flgs Ref Ctl Expires HRow HCol (free={})"
_FREE = ("udp", "tcp", "icmp")  # the order in the header
_ECHO_REQUEST = 8 << 8  # type and code in place of an ICMP query's remote port
_STATES = {
    **{"syn-sent": "SYN_SENT", "syn-received": "SYN_RECV", "established": "ESTABLISHED", "fin-out": "FIN_WAIT"},
    **{"fin-in": "CLOSE_WAIT", "closing": "LAST_ACK", "transitory": "CLOSE", "resumed": "ESTABLISHED"},
}
_NO_REPLY = 0x0080

_POLICIES_OF_2_0 = {DENY: 0, ACCEPT: 4, REJECT: 256, MASQ: 516}
_KINDS = {0: 0, TCP: 1, UDP: 2, ICMP: 3}
_HALF = 0xFFFFFFFF


# -- the masquerade table (C-80, C-81) ---------------------------------------------------------------------------------


def ip_masquerade(sessions: Iterable[Mapping[str, Any]], free: Mapping[str, int]) -> Iterator[str]:
    """Yield /proc/net/ip_masquerade; every line has 127 characters.

    sessions: as the control method `sessions` gives them. free: how many ports of each protocol are left. Sequence
    numbers are zero: fastmasq does not move them.
    """
    yield _OLD_HEADER.format(",".join(str(free.get(name, 0)) for name in _FREE)).ljust(LINE)
    for session in sessions:
        inside, external, remote = _endpoints(session)
        yield (
            f"{session['protocol'].upper():<4}{inside[0]:08X}:{inside[1]:04X} {remote[0]:08X}:{remote[1]:04X} "
            f"{external[1]:04X} {0:08X} {0:6d} {0:6d} {_jiffies(session):7d}"
        ).ljust(LINE)


def ip_masq(protocol: str, sessions: Iterable[Mapping[str, Any]], free: int) -> Iterator[str]:
    """Yield /proc/net/ip_masq/{tcp,udp,icmp}: the table of one protocol as 2.2 shows it.

    Of the flags only NO_REPLY is known. The last two columns were places in the kernel's hash table, here 0.
    """
    yield _NEW_HEADER.format(free).ljust(LINE)
    for session in sessions:
        if session["protocol"] != protocol:
            continue
        inside, external, remote = _endpoints(session)
        flags = 0 if session["packets_in"] else _NO_REPLY
        state = _STATES.get(session["state"], "NONE") if protocol == "tcp" else protocol.upper()
        yield (
            f"{protocol.upper():<4} {inside[0]:08X} {inside[1]:04X} {remote[0]:08X} {remote[1]:04X} "
            f"{external[0]:08X} {external[1]:04X} {state:<12} {flags:04X} {0:3d} {0:3d} {_jiffies(session):7d} "
            f"{0:4d} {0:4d}"
        ).ljust(LINE)


def _endpoints(session: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return (address, port) of the inside, external and remote endpoint."""
    found = []
    for key in ("inside", "external", "remote"):
        address, _, port = session[key].partition(":")
        found.append((read_dotted(address) or 0, int(port or 0)))
    if session["protocol"] == "icmp":
        found[2] = (found[2][0], _ECHO_REQUEST)
    return found


def _jiffies(session: Mapping[str, Any]) -> int:
    return round(session["expires_s"] * JIFFIES)


# -- chains of 2.2 (5.3) -----------------------------------------------------------------------------------------------


def ip_fwchains(chains: Iterable[Chain]) -> Iterator[str]:
    """Yield /proc/net/ip_fwchains: one line for each rule. The counters come in halves of 32 bits."""
    for chain in chains:
        for counted in chain.rules:
            rule, match = counted.rule, counted.rule.match
            source_ports, destination_ports = (
                "-".join(str(port) for port in (ports[0] if ports else ANY_PORT))
                for ports in (match.source_ports, match.destination_ports)
            )
            yield (
                f"{chain.name:>9} {_ends(match)} {match.interface.removesuffix('+') or '-'} {_flags_of_2_2(rule):X} "
                f"{_inversions(match):X} {match.protocol} {_halves(counted.packets)} {_halves(counted.bytes)} "
                f"{source_ports} {destination_ports} A{rule.tos[0]:02X} X{rule.tos[1]:02X} "
                f"{rule.redirect_port:08X} {rule.mark[1] if rule.mark else 0} {rule.output} {rule.target or '-'}"
            )


def ip_fwnames(chains: Iterable[Chain], references: Mapping[str, int]) -> Iterator[str]:
    """Yield /proc/net/ip_fwnames: one line for each chain; references is how many rules jump to it."""
    for chain in chains:
        yield (
            f"{chain.name} {chain.policy or '-'} {references.get(chain.name, 0)} "
            f"{_halves(chain.packets)} {_halves(chain.bytes)}"
        )


def _halves(number: int) -> str:
    return f"{number >> 32 & _HALF} {number & _HALF}"


def _flags_of_2_2(rule: Rule) -> int:
    """Return the bits of fw_flg in struct ip_fw; a rule without a link is one for every link."""
    match = rule.match
    bits = (
        *(rule.log, match.syn is not None, match.fragment is not None),
        *(rule.mark is not None and rule.mark[0] == "set", _is_prefix(match.interface), bool(rule.output)),
    )
    return sum(bit << place for place, bit in enumerate(bits))


def _inversions(match: Match) -> int:
    """Return the bits of fw_invflg in struct ip_fw."""
    bits = (
        *(match.not_source, match.not_destination, match.not_protocol),
        *(match.not_source_ports, match.not_destination_ports),
        *(match.not_interface, match.syn is False, match.fragment is False),
    )
    return sum(bit << place for place, bit in enumerate(bits))


def _is_prefix(interface: str) -> bool:
    return not interface or interface.endswith("+")


# -- chains of 2.0 (5.2) -----------------------------------------------------------------------------------------------


def ip_firewall(chain: Chain) -> Iterator[str]:
    """Yield /proc/net/ip_forward, ip_input, ip_output or ip_acct.

    What ipfwadm has no words for is left out: inverted conditions, other protocols, user chains.
    """
    if chain.name == ACCOUNTING:
        yield "IP accounting rules"
    else:
        yield f"IP firewall {chain.name} rules, default {_POLICIES_OF_2_0[chain.policy or ACCEPT]}"
    for counted in chain.rules:
        if _is_of_2_0(counted.rule):
            yield _line_of_2_0(counted)


def _is_of_2_0(rule: Rule) -> bool:
    match = rule.match
    known = rule.target in ("", *_POLICIES_OF_2_0, REDIRECT) and match.protocol in _KINDS
    return known and not _inversions(match) and match.fragment is None and not match.interface.endswith("+")


def _line_of_2_0(counted: Counted) -> str:
    rule, match = counted.rule, counted.rule.match
    sides = (match.source_ports, match.destination_ports)
    ports = [number for side in sides for ranges in side for number in dict.fromkeys(ranges)]
    counts = [sum(len(set(ranges)) for ranges in side) for side in sides]
    ports += [rule.redirect_port] if rule.target == REDIRECT else []
    shown = " ".join(str(port) for port in [*ports, *[0] * 10][:10])
    return (
        f"{_ends(match)} {match.interface or '-'} {match.interface_address:08X} {_flags_of_2_0(rule):X} "
        f"{counts[0]} {counts[1]} {counted.packets:<10} {counted.bytes:<10} {shown} "
        f"A{rule.tos[0]:02X} X{rule.tos[1]:02X}"
    )


def _flags_of_2_0(rule: Rule) -> int:
    match = rule.match
    flags = _KINDS[match.protocol]
    for bit, is_set in (
        (0x4, rule.target in (ACCEPT, MASQ, REDIRECT)),
        (0x8, _has_range(match.source_ports)),
        (0x10, _has_range(match.destination_ports)),
        (0x20, rule.log),
        (0x40, match.swapped_too),
        (0x80, match.syn is True),
        (0x100, rule.target == REJECT),
        (0x200, rule.target == MASQ),
        (0x400, match.ack),
        (0x800, rule.target == REDIRECT),
        (0x1000, match.direction == "in"),
        (0x2000, match.direction == "out"),
    ):
        flags |= bit if is_set else 0
    return flags


def _has_range(ports: Sequence[tuple[int, int]]) -> bool:
    return any(first != last for first, last in ports)


def _ends(match: Match) -> str:
    (source, source_mask), (destination, destination_mask) = match.source, match.destination
    return f"{source:08X}/{source_mask:08X}->{destination:08X}/{destination_mask:08X}"


# -- port forwards (5.4, 5.5) ------------------------------------------------------------------------------------------


class PortForwardRow(Struct, frozen=True, kw_only=True):
    """One target of a port forward. protocol: 6 or 17; remaining: new sessions until the next target has its turn."""

    protocol: int
    address: int
    port: int
    to_address: int
    to_port: int
    remaining: int = 10
    preference: int = 10


def ip_portfw(rows: Iterable[PortForwardRow]) -> Iterator[str]:
    """Yield /proc/net/ip_portfw of 2.0 with the patch, as `ipportfw -L` shows it."""
    yield "Prot Local Addr/Port > Remote Addr/Port"
    for row in rows:
        local, remote = f"{write_dotted(row.address)}/{row.port}", f"{write_dotted(row.to_address)}/{row.to_port}"
        yield f"{_name(row.protocol)}  {local} > {remote}"


def portfw(rows: Iterable[PortForwardRow]) -> Iterator[str]:
    """Yield /proc/net/ip_masq/portfw; lines have 63 characters, UDP comes first."""
    yield "Prot LAddr    LPort > RAddr    RPort PrCnt  Pref".ljust(63)
    for row in sorted(rows, key=lambda row: row.protocol != UDP):
        yield (
            f"{_name(row.protocol)}  {row.address:08X} {row.port:5d} > {row.to_address:08X} {row.to_port:5d} "
            f"{row.remaining:5d} {row.preference:5d}"
        ).ljust(63)


class MarkForwardRow(Struct, frozen=True, kw_only=True):
    """One target of a forward by mark; to_port 0 keeps the packet's own."""

    mark: int
    to_address: int
    to_port: int = 0
    remaining: int = 10
    preference: int = 10


def mfw(rows: Iterable[MarkForwardRow]) -> Iterator[str]:
    """Yield /proc/net/ip_masq/mfw."""
    yield "FwMark > RAddr    RPort PrCnt  Pref".ljust(63)
    for row in rows:
        yield (
            f"0x{row.mark:x} > {row.to_address:08X} {row.to_port:5d} {row.remaining:5d} {row.preference:5d}".ljust(63)
        )


class AutoForwardRow(Struct, frozen=True, kw_only=True):
    """One triggered forward. kind: "range", "direct" or "port"; last_peer and left_s only while it is active.

    flags: 1 active, 2 limited in time, 4 only for the contacted peer.
    """

    kind: str
    protocol: int
    low: int = 0
    high: int = 0
    visible: int = 0
    hidden: int = 0
    where: int = 0
    last_peer: int = 0
    control_protocol: int = 0
    control_port: int = 0
    left_s: float = 0.0
    flags: int = 0


def autofw(rows: Iterable[AutoForwardRow]) -> Iterator[str]:
    """Yield /proc/net/ip_masq/autofw."""
    yield "Type Prot Low  High Vis  Hid  Where    Last     CPto CPrt Timer Flags"
    kinds = {"range": 1, "port": 2, "direct": 3}
    for row in rows:
        yield (
            f"{kinds[row.kind]:4X} {row.protocol:4X} {row.low:04X}-{row.high:04X}/{row.visible:04X} {row.hidden:04X} "
            f"{row.where:08X} {row.last_peer:08X} {row.control_protocol:04X} {row.control_port:04X} "
            f"{round(row.left_s * JIFFIES):6d} {row.flags:4X}"
        )


def _name(protocol: int) -> str:
    return {TCP: "TCP", UDP: "UDP"}.get(protocol, "-")


# -- symbols (C-82, H-28) ----------------------------------------------------------------------------------------------

_CORE_SYMBOLS = ("ip_masq_new", "ip_masq_set_expire", "ip_masq_free_ports", "ip_masq_expire")
_PPTP_SYMBOLS = ("ip_masq_pptp", "ip_fw_masq_gre", "ip_fw_demasq_gre", "ip_masq_pptp_tcp", "ip_demasq_pptp_tcp")
_IPSEC_SYMBOLS = (
    *("ip_masq_out_get_isakmp", "ip_masq_in_get_isakmp", "ip_fw_masq_esp", "ip_fw_demasq_esp"),
    *("ip_masq_esp", "ip_demasq_esp"),
)


def ksyms(*, pptp: bool, ipsec: bool) -> Iterator[str]:
    """Yield what `grep masq /proc/ksyms` was to show: the names of all versions of the HOWTO (A-17)."""
    names = [*_CORE_SYMBOLS, *(_PPTP_SYMBOLS if pptp else ()), *(_IPSEC_SYMBOLS if ipsec else ())]
    for name in names:
        yield f"{0:08x} {name}\t[fastmasq]"


CHAIN_FILES = {"ip_input": INPUT, "ip_forward": FORWARD, "ip_output": OUTPUT, "ip_acct": ACCOUNTING}
SESSION_FILES = {"ip_masq/tcp": "tcp", "ip_masq/udp": "udp", "ip_masq/icmp": "icmp"}
