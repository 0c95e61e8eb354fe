"""Reads the output of `nft -j list ruleset`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastmasq.errors import ConfigurationError
from fastmasq.migrate.foreign import ForeignChain, ForeignRule
from fastmasq.migrate.nft_rules import STATEMENTS, Condition, build

_FAMILIES = ("ip", "inet")
_HARMLESS = ("counter", "comment")


def read(text: str) -> Iterator[ForeignChain]:
    """Yield the chains of all IPv4 tables. In place of a line a rule has its position in the list.

    Raises ConfigurationError for what is not nft's.
    """
    try:
        yield from _chains(json.loads(text)["nftables"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # whatever it is, nft has not made it
        raise ConfigurationError("not the output of `nft -j list ruleset`") from None


def _chains(objects: Sequence[Mapping[str, Any]]) -> list[ForeignChain]:
    """Return the chains of all tables; raises whatever comes of what is not nft's."""
    chains: dict[tuple[str, str, str], ForeignChain] = {}
    for place, entry in enumerate(objects, 1):
        kind, content = next(iter(entry.items()), ("", {}))
        if kind == "chain" and content["family"] in _FAMILIES:
            chains[_key(content, "name")] = ForeignChain(
                name=content["name"],
                kind=content.get("type", "filter"),
                hook=content.get("hook", ""),
                policy=content.get("policy", "accept"),
                line=place,
            )
        elif kind == "rule" and content["family"] in _FAMILIES:
            chains[_key(content, "chain")].rules += _rules(content["expr"], place)
    return list(chains.values())


def _key(content: Mapping[str, Any], name: str) -> tuple[str, str, str]:
    return content["family"], content["table"], content[name]


def _rules(expressions: list[Mapping[str, Any]], place: int) -> Iterator[ForeignRule]:
    base = ForeignRule(line=place, text=" ".join(json.dumps(expression) for expression in expressions))
    conditions = []
    for expression in expressions:
        name, content = next(iter(expression.items()))
        if name == "match":
            conditions.append(_condition(content))
        elif name in STATEMENTS:
            base.action, base.to = STATEMENTS[name], _target(content)
        elif name == "log":
            base.log = True
        elif name not in _HARMLESS:
            base.unknown.append(name)
    yield from build(base, conditions)


def _condition(content: Mapping[str, Any]) -> Condition:
    values = _values(content["right"])
    inverted = content["op"] == "!="
    if content["op"] not in ("==", "!=", "in"):
        return Condition(f"{json.dumps(content['left'])} {content['op']}", False, values)
    return Condition(_field(content["left"]), inverted, values)


def _field(left: Any) -> str:
    """Return "ip saddr", "iifname", "ct state"; of anything else its JSON."""
    match left:
        case {"meta": {"key": key}}:
            return key
        case {"payload": {"protocol": protocol, "field": field}}:
            return f"{protocol} {field}"
        case {"ct": {"key": key}}:
            return f"ct {key}"
        case {"&": [inner, list() as mask]} if set(mask) in ({"fin", "syn", "rst", "ack"}, {"syn", "rst", "ack"}):
            return _field(inner)
    return json.dumps(left)


def _values(right: Any) -> list[str]:
    match right:
        case {"set": list() as elements} | list(elements):
            return [value for element in elements for value in _values(element)]
        case {"prefix": {"addr": address, "len": length}}:
            return [f"{address}/{length}"]
        case {"range": [first, last]}:
            return [f"{first}-{last}"]
        case str() | int():
            return [str(right)]
    return [json.dumps(right)]


def _target(content: Any) -> str:
    """Return what a statement names: a chain, or an address and a port."""
    if not isinstance(content, dict):
        return ""
    if "target" in content:
        return content["target"]
    port = _values(content["port"])[0] if "port" in content else ""
    address = _values(content["addr"])[0] if "addr" in content else ""
    return f"{address}:{port}" if port else address
