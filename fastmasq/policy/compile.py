"""Chains of rules compiled to the rows that the path tests without Python."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from fastmasq.path import rules
from fastmasq.path.rows import CHAIN_RULE, PORT_RANGE
from fastmasq.policy.chains import ACCEPT, ANY_PORT, BUILT_IN, REDIRECT, Chain, Counted, Match, Rule, RuleSet
from fastmasq.policy.evaluate import fits_interface

ANY_LINK = 0xFFFF
_CHAIN_ROW = struct.Struct("=8I3H6B")  # as rows.CHAIN_RULE
_LARGEST_PROTOCOL = 0xFF


class LinkView(NamedTuple):
    """A link as rules may ask for it: its name and its addresses just now."""

    name: str
    addresses: tuple[int, ...] = ()


class CompiledChains(NamedTuple):
    """A rule set as the path reads it; `counted` has the Rule's or Chain's counters of every row, `places` its name.

    places: (chain, number) of each row, number 0 for the end of a chain.
    """

    rows: np.ndarray
    ranges: np.ndarray
    first: tuple[int, int, int, int]
    chains: int
    default_forward: bool
    accounting: bool
    counted: list[Counted | Chain]
    places: list[tuple[str, int]]

    def add(self, counts: np.ndarray, rule_set: RuleSet) -> None:
        """Add what the path has counted, one rows.RULE_COUNT for each row, to the counters of rules and policies.

        rule_set: the one compiled, or what it has become since; rules count in both, policies in this one.
        """
        for row in np.flatnonzero(counts["packets"]):
            entry = self.counted[row]
            if isinstance(entry, Chain):
                entry = rule_set.chain(entry.name)  # a built-in one, as only those have a policy
            entry.packets += int(counts["packets"][row])
            entry.bytes += int(counts["octets"][row])


def is_idle(rule_set: RuleSet) -> bool:
    """Whether a rule set changes nothing, and need not be asked at all: nobody has touched it, or put all back."""
    return (
        rule_set.default_forward
        and not rule_set.accounting.rules
        and all(not rule_set.chain(name).rules and rule_set.chain(name).policy == ACCEPT for name in BUILT_IN)
    )


def compile_chains(rule_set: RuleSet, links: Sequence[LinkView]) -> CompiledChains:
    """Return the rows of all chains, one behind the other, each ended by its policy or way back.

    links: those of the path, by number; a rule's interface and interface address become a bit for each that fits.
    Raises RuleError for a target that the path does not have.
    """
    chains = [*(rule_set.chain(name) for name in BUILT_IN), rule_set.accounting]
    chains += [chain for chain in rule_set.chains.values() if chain.name not in BUILT_IN]
    first = dict(
        zip(
            (chain.name for chain in chains),
            accumulate((len(chain.rules) + 1 for chain in chains), initial=0),
            strict=False,
        )
    )
    packed, ranges, counted, places = bytearray(), [], [], []
    for number, chain in enumerate(chains):
        end = first[chain.name] + len(chain.rules)
        for position, entry in enumerate(chain.rules, 1):
            packed += _pack(entry.rule, number, end, first, links, ranges)
            counted.append(entry)
            places.append((chain.name, position))
        target = rules.END if chain.policy is None else rules.TARGETS[chain.policy]
        packed += _CHAIN_ROW.pack(0, 0, 0, 0, 0, 0xFFFFFFFF, 0, 0, ANY_LINK, 0, number, 0, 0, 0, target, 0xFF, 0)
        counted.append(chain)
        places.append((chain.name, 0))
    return CompiledChains(
        rows=np.frombuffer(bytes(packed), CHAIN_RULE),
        ranges=np.array(ranges or [ANY_PORT], "u2").reshape(-1).view(PORT_RANGE),
        first=tuple(first[name] for name in rules.BASES),
        chains=len(chains),
        default_forward=rule_set.default_forward,
        accounting=bool(rule_set.accounting.rules),
        counted=counted,
        places=places,
    )


def _pack(
    rule: Rule,
    number: int,
    end: int,
    first: Mapping[str, int],
    links: Sequence[LinkView],
    ranges: list[tuple[int, int]],
) -> bytes:
    """Return the row of one rule of chain `number`, whose last row is `end`; its port ranges are added to `ranges`."""
    match = rule.match
    source, source_mask = match.source
    destination, destination_mask = match.destination
    target, target_row = _target(rule, end, first)
    mark_and, mark_add = 0xFFFFFFFF, 0
    if rule.mark is not None:
        mark_and, mark_add = 0 if rule.mark[0] == "set" else 0xFFFFFFFF, rule.mark[1] & 0xFFFFFFFF
    fitting = _links(match, links)
    protocol = match.protocol
    if protocol > _LARGEST_PROTOCOL:  # no packet has it
        protocol, fitting = 0, fitting if match.not_protocol else 0
    at = len(ranges)
    ranges += match.source_ports + match.destination_ports
    return _CHAIN_ROW.pack(
        source & source_mask,
        source_mask,
        destination & destination_mask,
        destination_mask,
        target_row,
        mark_and,
        mark_add,
        at,
        fitting,
        _flags(rule),
        number,
        len(match.source_ports),
        len(match.destination_ports),
        protocol,
        target,
        *rule.tos,
    )


def _target(rule: Rule, end: int, first: Mapping[str, int]) -> tuple[int, int]:
    if rule.target == REDIRECT:
        return rules.TARGETS[REDIRECT], rule.redirect_port
    if rule.target in rules.TARGETS:
        return rules.TARGETS[rule.target], end
    return rules.JUMP, first[rule.target]


def _links(match: Match, links: Sequence[LinkView]) -> int:
    """Return a bit for each link that a match's interface and interface address fit."""
    if not match.interface and not match.interface_address:
        return ANY_LINK
    return sum(
        1 << number
        for number, link in enumerate(links)
        if (not match.interface_address or match.interface_address in link.addresses)
        and (not match.interface or fits_interface(match, link.name))
    )


def _flags(rule: Rule) -> int:
    match = rule.match
    return sum(
        rules.FLAGS[name]
        for name, wanted in (
            ("not_source", match.not_source),
            ("not_destination", match.not_destination),
            ("not_protocol", match.not_protocol),
            ("not_source_ports", match.not_source_ports),
            ("not_destination_ports", match.not_destination_ports),
            ("swapped_too", match.swapped_too),
            ("log", rule.log),
            ("syn", match.syn is True),
            ("no_syn", match.syn is False),
            ("ack", match.ack),
            ("fragment", match.fragment is True),
            ("no_fragment", match.fragment is False),
            ("in", match.direction == "in"),
            ("out", match.direction == "out"),
        )
        if wanted
    )
