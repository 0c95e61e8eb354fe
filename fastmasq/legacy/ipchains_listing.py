"""Prints chains as ipchains 1.3.9 does (original-systems 5.3), byte for byte.

Rules that only ipfwadm can make are shown as far as there are words: several ports as a list.
"""

from __future__ import annotations

from fastmasq.legacy.icmp_names import name_of
from fastmasq.legacy.listing import Shown, count
from fastmasq.policy.chains import ANY_PORT, REDIRECT, Chain, Counted, Rule
from fastmasq.wire.numbers import ICMP, TCP, UDP

_WHOLE_PACKET = 0xFFFF


def chain_lines(
    chain: Chain, references: int, shown: Shown, *, verbose: bool, exact: bool, line_numbers: bool
) -> list[str]:
    """Return the listing of one chain (-L with -v, -x, --line-numbers). references: how many rules jump to it."""
    if chain.policy is None:
        lines = [f"Chain {chain.name} ({references} references):"]
    else:
        counters = f": {chain.packets} packets, {chain.bytes} bytes" if verbose else ""
        lines = [f"Chain {chain.name} (policy {chain.policy}{counters}):"]
    if chain.rules:
        lines.append(_header(verbose, exact, line_numbers))
    for number, counted in enumerate(chain.rules, 1):
        lines.append((f"{number:<4} " if line_numbers else "") + _row(counted, shown, verbose, exact))
    return lines


def rule_line(rule: Rule, shown: Shown) -> str:
    """Return how -v says which rule is changed, or which packet checked."""
    match = rule.match
    text = f"{rule.target or '-'} {_protocol(rule, shown)} opt    {_options(rule)} "
    text += f"tos 0x{rule.tos[0]:02X} 0x{rule.tos[1]:02X} "
    text += f"{'!' if match.not_interface else ' '}via {match.interface or shown.any} "
    if rule.mark is not None:
        text += f"mark 0x{rule.mark[1]:x} "
    if rule.output and rule.output != _WHOLE_PACKET:
        text += f"outsize {rule.output} "
    not_source, not_destination = "!" if match.not_source else " ", "!" if match.not_destination else ""
    text += f"  {not_source}{shown.end(match.source)} -> {not_destination}{shown.end(match.destination)}  "
    return text + _ports(rule, shown, before_redirect="")


def _header(verbose: bool, exact: bool, line_numbers: bool) -> str:
    text = f"{'num':<4} " if line_numbers else ""
    if verbose:
        text += f"{'pkts':>8} {'bytes':>10} " if exact else f"{'pkts':>5} {'bytes':>5} "
    text += f"{'target':<9}  prot opt    "
    if verbose:
        text += f"tosa tosx  {'ifname':<10} {'mark':<10} {'outsize':<7} "
    return text + f" {'source':<20}  {'destination':<20}  ports"


def _row(counted: Counted, shown: Shown, verbose: bool, exact: bool) -> str:
    rule = counted.rule
    match = rule.match
    text = ""
    if verbose:
        text += count(counted.packets, 8, exact=exact, largest_unit="G")
        text += count(counted.bytes, 10, exact=exact, largest_unit="G")
    protocol = _protocol(rule, shown)
    text += f"{rule.target or '-':<9} {protocol[0]}{protocol[1:]:<5}{_options(rule)} "
    if verbose:
        text += f"0x{rule.tos[0]:02X} 0x{rule.tos[1]:02X} "
        text += f"{'!' if match.not_interface else ' '}{match.interface or shown.any:<10} "
        text += " " * 11 if rule.mark is None else f"0x{rule.mark[1]:<10x} "
        text += f"{rule.output:<7} " if rule.output and rule.output != _WHOLE_PACKET else " " * 8
    text += f"{'!' if match.not_source else ' '}{shown.end(match.source):<20} "
    text += f"{'!' if match.not_destination else ''}{shown.end(match.destination):<20}"
    return text + _ports(rule, shown, before_redirect=" => ")


def _protocol(rule: Rule, shown: Shown) -> str:
    """Return the protocol behind its sign of inversion; those without ports are numbers with -n (A-28)."""
    return ("!" if rule.match.not_protocol else " ") + shown.protocol(rule.match.protocol)


def _options(rule: Rule) -> str:
    match = rule.match
    return (
        ("!" if match.syn is False else "-")
        + ("-" if match.syn is None else "y")
        + ("!" if match.fragment is False else "-")
        + ("-" if match.fragment is None else "f")
        + ("l" if rule.log else "-")
        + ("o" if rule.output else "-")
    )


def _ports(rule: Rule, shown: Shown, before_redirect: str) -> str:
    match = rule.match
    if match.protocol not in (ICMP, TCP, UDP):
        return "  n/a"
    if match.protocol == ICMP and not shown.numeric and not (match.not_source_ports or match.not_destination_ports):
        types, codes = match.source_ports or (ANY_PORT,), match.destination_ports or (ANY_PORT,)
        name = name_of(types[0], codes[0])
        if name:
            return f"  {name}"
    text = " !" if match.not_source_ports else "  "
    text += shown.ports(match.source_ports, match.protocol) + " -> "
    text += " !" if match.not_destination_ports else "  "
    text += shown.ports(match.destination_ports, match.protocol)
    if rule.target == REDIRECT:
        port = rule.redirect_port
        text += before_redirect + (shown.port(port, match.protocol) if port else f" {shown.any}")
    return text
