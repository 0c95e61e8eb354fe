"""How two matches relate: whether one takes every packet of the other, and which packets both take.

The first answer is on the safe side: True is certain, False may only mean that the question is too hard (a network
cut up over several rules, say).
"""

from __future__ import annotations

from msgspec.structs import replace

from fastmasq.policy.chains import ANY_PORT, Match
from fastmasq.wire.numbers import TCP


def covers(wide: Match, narrow: Match) -> bool:
    """Return whether every packet that fits `narrow` also fits `wide`."""
    if narrow.swapped_too and not wide.swapped_too:
        plain = replace(narrow, swapped_too=False)
        return covers(wide, plain) and covers(wide, _swapped(plain))
    return (
        _protocol(wide, narrow)
        and _interface(wide, narrow)
        and wide.interface_address in (0, narrow.interface_address)
        and _network(wide.source, wide.not_source, narrow.source, narrow.not_source)
        and _network(wide.destination, wide.not_destination, narrow.destination, narrow.not_destination)
        and _ports(wide.source_ports, wide.not_source_ports, narrow.source_ports, narrow.not_source_ports)
        and _ports(
            wide.destination_ports,
            wide.not_destination_ports,
            narrow.destination_ports,
            narrow.not_destination_ports,
        )
        and wide.fragment in (None, narrow.fragment)
        and wide.direction in ("both", narrow.direction)
        and _flags(wide, narrow)
    )


def meet(one: Match, other: Match) -> Match | None:
    """Return what both matches take together; None when that is nothing, or not one match."""
    if covers(other, one):
        return one
    met = one
    for names, wildcard in (
        (("interface", "not_interface"), ""),
        (("source", "not_source"), (0, 0)),
        (("destination", "not_destination"), (0, 0)),
        (("protocol", "not_protocol"), 0),
        (("source_ports", "not_source_ports"), ()),
        (("destination_ports", "not_destination_ports"), ()),
    ):
        theirs = {name: getattr(other, name) for name in names}
        mine = {name: getattr(one, name) for name in names}
        if theirs[names[0]] == wildcard or covers(Match(**theirs), Match(**mine)):
            continue
        if mine[names[0]] != wildcard and not covers(Match(**mine), Match(**theirs)):
            return None
        met = replace(met, **theirs)
    return met


def _swapped(match: Match) -> Match:
    return replace(
        match,
        source=match.destination,
        destination=match.source,
        source_ports=match.destination_ports,
        destination_ports=match.source_ports,
        not_source=match.not_destination,
        not_destination=match.not_source,
        not_source_ports=match.not_destination_ports,
        not_destination_ports=match.not_source_ports,
    )


def _protocol(wide: Match, narrow: Match) -> bool:
    if wide.protocol == 0:
        return True
    if wide.not_protocol and not narrow.not_protocol:
        return narrow.protocol not in (0, wide.protocol)
    return (wide.protocol, wide.not_protocol) == (narrow.protocol, narrow.not_protocol)


def _interface(wide: Match, narrow: Match) -> bool:
    if not wide.interface:
        return True
    if not narrow.interface:
        return False
    if wide.not_interface == narrow.not_interface:
        outer, inner = (narrow, wide) if wide.not_interface else (wide, narrow)
        return _names_within(outer.interface, inner.interface)
    plain = not (narrow.not_interface or narrow.interface.endswith("+"))
    return plain and not _names_within(wide.interface, narrow.interface)


def _names_within(outer: str, inner: str) -> bool:
    """Return whether every link that `inner` names is named by `outer`; a + at the end stands for any rest."""
    return inner.removesuffix("+").startswith(outer[:-1]) if outer.endswith("+") else inner == outer


def _network(wide: tuple[int, int], wide_not: bool, narrow: tuple[int, int], narrow_not: bool) -> bool:
    if wide_not and not narrow_not:
        return bool((wide[0] ^ narrow[0]) & wide[1] & narrow[1])  # they share no address
    if wide_not:
        wide, narrow = narrow, wide
    elif narrow_not:
        return wide[1] == 0
    return wide[1] & narrow[1] == wide[1] and not (wide[0] ^ narrow[0]) & wide[1]


def _ports(
    wide: tuple[tuple[int, int], ...], wide_not: bool, narrow: tuple[tuple[int, int], ...], narrow_not: bool
) -> bool:
    if not wide or (wide == (ANY_PORT,) and not wide_not) or (wide, wide_not) == (narrow, narrow_not):
        return True
    if not narrow or narrow == (ANY_PORT,):
        return False  # even turned round, all ports are asked of no fragment
    if wide_not and not narrow_not:
        return not any(first <= w_last and w_first <= last for first, last in narrow for w_first, w_last in wide)
    if narrow_not and not wide_not:
        return False
    outer, inner = (narrow, wide) if wide_not else (wide, narrow)
    return all(any(low <= first and last <= high for low, high in outer) for first, last in inner)


def _flags(wide: Match, narrow: Match) -> bool:
    """Flags are asked of TCP only: for other protocols a rule that asks is as wide as one that does not."""
    if narrow.protocol not in (0, TCP) and not narrow.not_protocol:
        return True
    return wide.syn in (None, narrow.syn) and (narrow.ack or not wide.ack)
