"""What both forms of nft's output, text and JSON, come down to: conditions and statements that make a ForeignRule."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fastmasq.migrate.foreign import ForeignRule, read_icmp, read_network, read_ports, read_protocol
from fastmasq.wire.numbers import TCP

STATEMENTS = {
    **{"accept": "accept", "drop": "drop", "reject": "reject", "return": "return", "masquerade": "masquerade"},
    **{"snat": "snat", "dnat": "dnat", "redirect": "redirect", "jump": "jump"},
}
"""Statements that decide, and what a ForeignRule calls them."""


class Condition(NamedTuple):
    """A field, as nft writes it ("ip saddr"), and the values it may have, or with `inverted` may not have."""

    field: str
    inverted: bool
    values: list[str]


def build(base: ForeignRule, conditions: list[Condition]) -> Iterator[ForeignRule]:
    """Yield the rules that conditions make of `base`: one for each combination of values that cannot stand together."""
    alternatives = [_alternatives(condition) for condition in conditions]
    for combination in itertools.product(*alternatives):
        rule = ForeignRule(**{name: _copy(getattr(base, name)) for name in base.__struct_fields__})
        for condition in combination:
            _apply(rule, condition)
        yield rule


def _alternatives(condition: Condition) -> list[Condition]:
    """Return a condition value by value, unless a rule can hold all of them, or none of them may be there."""
    reader = _FIELDS.get(condition.field)
    if condition.inverted or reader is None or reader.takes_several or not condition.values:
        return [condition]
    return [condition._replace(values=[value]) for value in condition.values]


def _apply(rule: ForeignRule, condition: Condition) -> None:
    reader = _FIELDS.get(condition.field)
    shown = f"{condition.field} {'!= ' if condition.inverted else ''}{', '.join(condition.values)}"
    if reader is None or not condition.values or (condition.inverted and len(condition.values) != 1):
        rule.unknown.append(shown)
        return
    try:
        reader.put(rule, condition.values)
    except ValueError:
        rule.unknown.append(shown)
        return
    if condition.inverted:
        rule.inverted.add(reader.name)


class _Field(NamedTuple):
    name: str
    put: Callable[[ForeignRule, list[str]], None]
    takes_several: bool = False


def _one(name: str, convert: Callable[[str], Any]) -> _Field:
    return _Field(name, lambda rule, values: setattr(rule, name, convert(values[0])))


def _ports(name: str, protocol: int) -> _Field:
    def put(rule: ForeignRule, values: list[str]) -> None:
        setattr(rule, name, [read_ports(value, "-") for value in values])
        rule.protocol = protocol or rule.protocol

    return _Field(name, put, takes_several=True)


def _states(rule: ForeignRule, values: list[str]) -> None:
    rule.states = values


def _icmp_type(rule: ForeignRule, values: list[str]) -> None:
    rule.protocol, (rule.icmp_type, _) = 1, read_icmp(values[0])


def _icmp_code(rule: ForeignRule, values: list[str]) -> None:
    named = read_icmp(values[0])
    rule.protocol, rule.icmp_code = 1, named[0] if named[1] is None else named[1]


def _flags(rule: ForeignRule, values: list[str]) -> None:
    if values != ["syn"]:
        raise ValueError(values)
    rule.protocol, rule.syn = TCP, True


def _family(rule: ForeignRule, values: list[str]) -> None:
    if values not in (["ipv4"], ["ip"]):
        raise ValueError(values)


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, list | set) else value


_IN, _OUT = _one("in_link", lambda name: name.replace("*", "+")), _one("out_link", lambda name: name.replace("*", "+"))
_PROTOCOL = _one("protocol", read_protocol)
_FIELDS = {
    **{"iifname": _IN, "iif": _IN, "oifname": _OUT, "oif": _OUT},
    **{"ip saddr": _one("source", read_network), "ip daddr": _one("destination", read_network)},
    **{"ip protocol": _PROTOCOL, "l4proto": _PROTOCOL, "nfproto": _Field("nfproto", _family)},
    **{"tcp sport": _ports("source_ports", 6), "tcp dport": _ports("destination_ports", 6)},
    **{"udp sport": _ports("source_ports", 17), "udp dport": _ports("destination_ports", 17)},
    **{"th sport": _ports("source_ports", 0), "th dport": _ports("destination_ports", 0)},
    **{"icmp type": _Field("icmp_type", _icmp_type), "icmp code": _Field("icmp_code", _icmp_code)},
    **{"ct state": _Field("states", _states, takes_several=True), "tcp flags": _Field("syn", _flags)},
}
