"""Writes boxes as rules of 1999: prefixes, port ranges, inversions, or a chain of exceptions where that is shorter."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from ipaddress import IPv4Address, summarize_address_range

from fastmasq.errors import ConfigurationError
from fastmasq.migrate.regions import (
    DESTINATION,
    DESTINATION_PORT,
    PROTOCOL,
    SOURCE,
    SOURCE_PORT,
    Box,
    Ranges,
    complement,
    is_full,
)
from fastmasq.policy.chains import BUILT_IN, LONGEST_NAME, RETURN, TARGETS, Match, Rule, RuleSet
from fastmasq.wire.numbers import BY_NAME

MOST_OF_A_BOX = 512  # rules for one box

_NAMES = ("source", "destination", "protocol", "source_ports", "destination_ports")


class Writer:
    """Puts boxes into the chains of a rule set."""

    def __init__(self) -> None:
        self.rules = RuleSet()

    def new_chain(self, wanted: str) -> str:
        """Make a user chain with this name, or one like it."""
        taken = {*self.rules.chains, *TARGETS, *BUILT_IN}
        numbered = (f"{wanted[: LONGEST_NAME - 2]}{number}" for number in range(2, 100))
        name = next((each for each in (wanted, *numbered) if each not in taken), None)
        if name is None:
            raise ConfigurationError("the rules need too many chains of exceptions; nothing can be carried over")
        self.rules.new_chain(name)
        return name

    def put(
        self,
        chain: str,
        box: Box,
        target: str,
        *,
        interface: str = "",
        log: bool = False,
        syn: bool | None = None,
        redirect_port: int = 0,
    ) -> None:
        """Append what decides about the packets of a box. Raises ConfigurationError when that is too many rules."""
        pieces, exceptions = [], []
        for field in range(len(_NAMES)):
            positive, negative = _pieces(box[field], field)
            if negative is not None and len(negative) < len(positive):
                if len(negative) > 1:
                    with_ports = pieces[PROTOCOL] if field in (SOURCE_PORT, DESTINATION_PORT) else [{}]
                    exceptions += [{**protocol, **piece} for protocol in with_ports for piece in negative]
                    positive = [{}]
                else:
                    positive = [{**negative[0], f"not_{_NAMES[field]}": True}]
            pieces.append(positive)
        if exceptions:
            name = self.new_chain("but")
            for exception in exceptions:
                self.rules.append(name, Rule(match=Match(**exception), target=RETURN))
            self.rules.append(name, Rule(target=target, log=log, redirect_port=redirect_port))
            target, log, redirect_port = name, False, 0
        count = 1
        for positive in pieces:
            count *= len(positive)
        if count > MOST_OF_A_BOX:
            raise ConfigurationError(f"one case of the rules takes {count} rules of 1999; too many to be carried over")
        for combination in itertools.product(*pieces):
            fields = {name: value for piece in combination for name, value in piece.items()}
            match = Match(**fields, interface=interface, syn=syn)
            self.rules.append(chain, Rule(match=match, target=target, log=log, redirect_port=redirect_port))


def _pieces(ranges: Ranges, field: int) -> tuple[list[dict], list[dict] | None]:
    """Return what matches the values of a field piece by piece, and what matches all others (None: nothing does)."""
    if ranges == complement((), field):
        return [{}], None
    others = complement(ranges, field)
    if field in (SOURCE, DESTINATION):
        return [{_NAMES[field]: each} for each in networks(ranges)], [
            {_NAMES[field]: each} for each in networks(others)
        ]
    if field == PROTOCOL:
        positive = [{"protocol": number} for first, last in ranges for number in range(max(first, 1), last + 1)]
        return positive, [{"protocol": number} for first, last in others for number in range(first, last + 1) if number]
    return [{_NAMES[field]: (each,)} for each in ranges], [{_NAMES[field]: (each,)} for each in others]


def networks(ranges: Ranges) -> Iterator[tuple[int, int]]:
    """Yield the ranges of addresses as (address, mask)."""
    for first, last in ranges:
        for network in summarize_address_range(IPv4Address(first), IPv4Address(last)):
            yield int(network.network_address), int(network.netmask)


def describe(box: Box) -> str:
    """Return a box in words, for remarks."""
    words = []
    for field, name in ((SOURCE, "from"), (DESTINATION, "to")):
        if not is_full(box, field):
            words.append(f"{name} {describe_addresses(box[field])}")
    if not is_full(box, PROTOCOL):
        words.append(_describe_protocols(box[PROTOCOL]))
    for field, name in ((SOURCE_PORT, "source port"), (DESTINATION_PORT, "port")):
        if not is_full(box, field):
            spans = [f"{first}" if first == last else f"{first}-{last}" for first, last in box[field]]
            words.append(f"{name} {_shortened(spans)}")
    return ", ".join(words) or "everything"


def _describe_protocols(ranges: Ranges) -> str:
    others = complement(ranges, PROTOCOL)
    named, before = (others, "protocols but ") if len(others) < len(ranges) else (ranges, "")
    names = {number: name.upper() for name, number in BY_NAME.items()}
    spans = [f"{first}-{last}" if first < last else names.get(first, f"protocol {first}") for first, last in named]
    return before + _shortened(spans)


def describe_addresses(ranges: Ranges) -> str:
    """Return addresses as networks."""
    return _shortened([f"{IPv4Address(address)}/{mask.bit_count()}" for address, mask in networks(ranges)])


def _shortened(words: list[str]) -> str:
    return " ".join(words[:4]) + (" ..." if len(words) > 4 else "")
