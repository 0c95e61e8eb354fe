"""Evaluates a chain for one packet in slow, obvious Python: what `-C`, `-c` and traces answer, and the path's model.

A packet is what a rule can ask about, no more. The path has the same semantics over arrays (`compile`, path/rules.pxd);
a property test holds the two together.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from fastmasq.policy.chains import (
    ACCEPT,
    ANY_PORT,
    DENY,
    FORWARD,
    INPUT,
    MASQ,
    OUTPUT,
    REDIRECT,
    RETURN,
    TARGETS,
    Match,
    Rule,
    RuleSet,
)
from fastmasq.wire.numbers import ICMP, TCP, UDP

LOOP = "LOOP"
"""The verdict of a packet that came back to a chain it was still in; it is denied."""

_WITH_PORTS = (ICMP, TCP, UDP)


class Packet(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What rules see of a packet. All integers in host order.

    source_port, destination_port: of an ICMP packet its type and code; of no meaning in a fragment or another protocol.
    syn: a TCP segment with SYN set, ACK and RST clear. ack: one with ACK or RST set. fragment: a second or further one.
    interface, interface_address: the arriving one for the chain input, the leaving one for forward and output.
    direction: whether it has just come in or is about to leave; only accounting rules ask.
    """

    source: int
    destination: int
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    syn: bool = False
    ack: bool = False
    fragment: bool = False
    interface: str = ""
    interface_address: int = 0
    tos: int = 0
    mark: int = 0
    direction: Literal["in", "out"] = "in"


class Step(Struct, frozen=True):
    """A rule that matched: its chain, its number from 1, its target. Number 0 is a built-in chain's policy."""

    chain: str
    number: int
    target: str


class Decision(Struct, frozen=True, kw_only=True):
    """What a chain says about a packet.

    verdict: ACCEPT, DENY, REJECT, MASQ, REDIRECT (to redirect_port, 0 the packet's own), LOOP, or RETURN where a user
    chain evaluated by itself let it fall through. mark and tos are the packet's afterwards.
    """

    verdict: str
    redirect_port: int = 0
    mark: int = 0
    tos: int = 0
    steps: list[Step] = []


def evaluate(rule_set: RuleSet, chain: str, packet: Packet) -> Decision:
    """Return what a chain does with a packet; counts nothing. Raises RuleError ("no chain").

    First match decides; a user chain that is left at its end, or by RETURN, goes on behind the rule that jumped to it.
    A jump into a chain that has not been left yet is a loop (original-systems 5.3).
    """
    steps: list[Step] = []
    mark, tos = packet.mark, packet.tos
    callers: list[tuple[str, int]] = []  # chains not left yet, and where to go on in them
    name, position = chain, 0
    while True:
        rules = rule_set.chain(name).rules
        if position == len(rules):
            if callers:
                name, position = callers.pop()
                continue
            policy = rule_set.chain(name).policy or RETURN
            steps.append(Step(name, 0, policy))
            return Decision(verdict=_effective(policy, chain), mark=mark, tos=tos, steps=steps)
        rule = rules[position].rule
        position += 1
        if not matches(rule.match, packet):
            continue
        steps.append(Step(name, position, rule.target))
        mark, tos = _marked(rule, mark), tos & rule.tos[0] ^ rule.tos[1]
        if rule.target == RETURN:
            position = len(rules)
        elif rule.target in TARGETS:
            verdict = _effective(rule.target, chain)
            port = rule.redirect_port if verdict == REDIRECT else 0
            return Decision(verdict=verdict, redirect_port=port, mark=mark, tos=tos, steps=steps)
        elif rule.target:
            callers.append((name, position))
            if any(rule.target == active for active, _ in callers):
                return Decision(verdict=LOOP, mark=mark, tos=tos, steps=steps)
            name, position = rule.target, 0


def matches(match: Match, packet: Packet) -> bool:
    """Return whether a packet is what a match describes."""
    return (
        (match.protocol == 0 or (match.protocol == packet.protocol) != match.not_protocol)
        and _interface_matches(match, packet)
        and match.direction in ("both", packet.direction)
        and (match.fragment is None or match.fragment == packet.fragment)
        and _flags_match(match, packet)
        and (_ends_match(match, packet) or (match.swapped_too and _ends_match(match, packet, swapped=True)))
    )


def _effective(target: str, base: str) -> str:
    """Return what a target means to the built-in chain that a packet began in, wherever it was met."""
    if target == MASQ and base in (INPUT, OUTPUT):
        return ACCEPT
    if target == REDIRECT and base != INPUT:
        return DENY if base == FORWARD else ACCEPT
    return target


def _marked(rule: Rule, mark: int) -> int:
    if rule.mark is None:
        return mark
    how, number = rule.mark
    return (number if how == "set" else mark + number) & 0xFFFFFFFF


def _interface_matches(match: Match, packet: Packet) -> bool:
    if match.interface_address not in (0, packet.interface_address):
        return False
    return not match.interface or fits_interface(match, packet.interface)


def fits_interface(match: Match, name: str) -> bool:
    """Return whether an interface is the one a match names, or one of those it names with a "+" at the end."""
    wanted = match.interface
    same = name.startswith(wanted[:-1]) if wanted.endswith("+") else name == wanted
    return same != match.not_interface


def _flags_match(match: Match, packet: Packet) -> bool:
    """Only TCP has flags to ask for; a later fragment of TCP does not show them, and never fits a rule that asks."""
    if packet.protocol != TCP or (match.syn is None and not match.ack):
        return True
    if packet.fragment:
        return False
    return (match.syn is None or match.syn == packet.syn) and (packet.ack or not match.ack)


def _ends_match(match: Match, packet: Packet, *, swapped: bool = False) -> bool:
    """Compare addresses and ports; swapped exchanges the packet's ends, but not ICMP type and code."""
    source, destination = packet.source, packet.destination
    source_port, destination_port = packet.source_port, packet.destination_port
    if swapped:
        source, destination = destination, source
        if packet.protocol != ICMP:
            source_port, destination_port = destination_port, source_port
    has_ports = packet.protocol in _WITH_PORTS and not packet.fragment
    return (
        (_within(source, match.source) != match.not_source)
        and (_within(destination, match.destination) != match.not_destination)
        and _port_matches(match.source_ports, source_port, has_ports, match.not_source_ports)
        and _port_matches(match.destination_ports, destination_port, has_ports, match.not_destination_ports)
    )


def _within(address: int, network: tuple[int, int]) -> bool:
    base, mask = network
    return address & mask == base & mask


def _port_matches(ranges: tuple[tuple[int, int], ...], port: int, has_ports: bool, inverted: bool) -> bool:
    """A packet that shows no ports fits only a rule that asks for none; the full range asks for none."""
    if not ranges or not has_ports:
        return not ranges or ranges == (ANY_PORT,)
    return any(first <= port <= last for first, last in ranges) != inverted
