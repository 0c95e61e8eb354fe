"""Prints chains as ipfwadm 2.3.0 does (original-systems 5.2), byte for byte.

Rules that only ipchains can make are shown as far as there are words: a jump by the name of its chain.
"""

from __future__ import annotations

from fastmasq.legacy.listing import Shown, count
from fastmasq.legacy.names import write_dotted
from fastmasq.policy.chains import ACCEPT, ACCOUNTING, DENY, MASQ, REDIRECT, REJECT, Chain, Counted, Rule
from fastmasq.wire.numbers import ICMP, TCP, UDP

POLICIES = {ACCEPT: "accept", MASQ: "accept/masquerade", REJECT: "reject", DENY: "deny"}
_TYPES = {REDIRECT: "acc/r", MASQ: "acc/m", ACCEPT: "acc", REJECT: "rej", DENY: "deny"}
_DIRECTIONS = {"in": "in", "out": "out", "both": "i/o"}


def chain_lines(chain: Chain, shown: Shown, *, extended: bool, exact: bool) -> list[str]:
    """Return the listing of one category (-l with -e, -x). Counters are shown with -e, those of accounting always."""
    is_accounting = chain.name == ACCOUNTING
    if is_accounting:
        lines = ["IP accounting rules"]
    else:
        lines = [f"IP firewall {chain.name} rules, default policy: {POLICIES[chain.policy]}"]
    has_counters = extended or is_accounting
    if chain.rules:
        lines.append(_header(is_accounting, has_counters, extended, exact))
    lines += [_row(counted, shown, is_accounting, has_counters, extended, exact) for counted in chain.rules]
    return lines


def rule_line(rule: Rule, shown: Shown, *, is_accounting: bool) -> str:
    """Return how -v says that a rule is added or deleted."""
    match = rule.match
    words = [
        _kind(rule, is_accounting),
        shown.protocol(rule.match.protocol),
        f"opt {_options(rule)}",
        f"tos 0x{rule.tos[0]:02X} 0x{rule.tos[1]:02X}",
        f"via {match.interface or shown.any} {write_dotted(match.interface_address)}  ",
        f"{shown.end(match.source)} -> {shown.end(match.destination)}  ",
    ]
    return " ".join(words) + _ports(rule, shown)


def packet_line(rule: Rule, shown: Shown) -> str:
    """Return how -v says which packet is checked."""
    match = rule.match
    return (
        f"{shown.protocol(match.protocol)} via {match.interface or shown.any} {write_dotted(match.interface_address)} "
        f"  {shown.end(match.source)} -> {shown.end(match.destination)}  {_ports(rule, shown)}"
    )


def _header(is_accounting: bool, has_counters: bool, extended: bool, exact: bool) -> str:
    text = ""
    if has_counters:
        text += f"{'pkts':>8} {'bytes':>10} " if exact else f"{'pkts':>5} {'bytes':>5} "
    text += "dir prot " if is_accounting else "type  prot "
    if extended:
        text += "opt  " + ("" if is_accounting else "tosa tosx ") + f"{'ifname':<7} {'ifaddress':<15} "
    return text + f"{'source':<20} {'destination':<20} ports"


def _row(counted: Counted, shown: Shown, is_accounting: bool, has_counters: bool, extended: bool, exact: bool) -> str:
    rule = counted.rule
    match = rule.match
    text = ""
    if has_counters:
        text += count(counted.packets, 8, exact=exact, largest_unit="M")
        text += count(counted.bytes, 10, exact=exact, largest_unit="M")
    text += f"{_kind(rule, is_accounting):<{3 if is_accounting else 5}} {shown.protocol(rule.match.protocol):<5}"
    if extended:
        address = match.interface_address
        text += f"{_options(rule)} "
        text += "" if is_accounting else f"0x{rule.tos[0]:02X} 0x{rule.tos[1]:02X} "
        text += f"{match.interface or shown.any:<7} "
        text += f"{'any' if not address and not shown.numeric else write_dotted(address):<15} "
    return text + f"{shown.end(match.source):<20} {shown.end(match.destination):<20}{_ports(rule, shown)}"


def _kind(rule: Rule, is_accounting: bool) -> str:
    return _DIRECTIONS[rule.match.direction] if is_accounting else _TYPES.get(rule.target, rule.target or "-")


def _options(rule: Rule) -> str:
    match = rule.match
    given = (match.swapped_too, match.ack, bool(match.syn), rule.log)
    return "".join(letter if is_given else "-" for letter, is_given in zip("bkyo", given, strict=True))


def _ports(rule: Rule, shown: Shown) -> str:
    match = rule.match
    if match.protocol not in (ICMP, TCP, UDP):
        return " n/a"
    text = f" {shown.ports(match.source_ports, match.protocol)}"
    if match.protocol == ICMP:
        return text
    text += f" -> {shown.ports(match.destination_ports, match.protocol)}"
    if rule.target == REDIRECT:
        port = rule.redirect_port
        text += f" => {shown.port(port, match.protocol) if port else shown.any}"
    return text
