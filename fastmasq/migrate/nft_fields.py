"""Reads the comparisons of nft's JSON: what a field of a packet, or what conntrack knows of it, is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastmasq.migrate.foreign import (
    FLOW,
    PACKET,
    WHOLE_MARK,
    Fact,
    Flags,
    LinkIs,
    Mark,
    Marking,
    Never,
    Test,
    Within,
    read_icmp,
    read_network,
    read_ports,
    read_protocol,
)
from fastmasq.migrate.regions import (
    DESTINATION,
    DESTINATION_PORT,
    PROTOCOL,
    SOURCE,
    SOURCE_PORT,
    TOP,
    Ranges,
    complement,
    ranges_of,
)
from fastmasq.wire.numbers import ICMP, TCP, UDP


def tests_of(left: Any, op: str, values: Sequence[Any]) -> list[Test]:
    """Return the tests of a comparison. Raises ValueError, LookupError or TypeError for what is not known."""
    match left:
        case {"meta": {"key": "iifname" | "iif" as key}} | {"meta": {"key": "oifname" | "oif" as key}}:
            names = tuple(_text(value).replace("*", "+") for value in values)
            return [LinkIs("in" if key.startswith("iif") else "out", names, _inverted(op))]
        case {"meta": {"key": "l4proto"}} | {"payload": {"protocol": "ip", "field": "protocol"}}:
            return _within(PROTOCOL, op, values, lambda text: read_protocol(text)[0])
        case {"meta": {"key": "nfproto"}}:
            return [Fact("nfproto", _texts(values), _inverted(op))]
        case {"meta": {"key": "protocol"}} | {"payload": {"protocol": "ether", "field": "type"}}:
            return [Fact("nfproto", _texts(values), _inverted(op))]
        case {"meta": {"key": "pkttype"}}:
            return [Fact("pkttype", _texts(values), _inverted(op))]
        case {"meta": {"key": "mark"}} | {"ct": {"key": "mark"}}:
            return [_mark(left, op, values, 0xFFFFFFFF)]
        case {"&": [{"meta": {"key": "mark"}} | {"ct": {"key": "mark"}} as inner, int() as mask]}:
            return [_mark(inner, op, values, mask)]
        case {"meta": {"key": "ipsec"}}:
            return [Fact("ipsec", frozenset({"no"} if values[0] in (False, 0, "missing") else {"yes"}), _inverted(op))]
        case {"ct": {"key": "state" | "status" | "direction" as key}}:
            return [_conntrack(key, op, values)]
        case {"payload": {"protocol": "ip", "field": "saddr" | "daddr" as field}}:
            return _within(SOURCE if field == "saddr" else DESTINATION, op, values, read_network)
        case {"payload": {"protocol": "tcp" | "udp" | "th" as protocol, "field": "sport" | "dport" as field}}:
            ports = _within(SOURCE_PORT if field == "sport" else DESTINATION_PORT, op, values, _range)
            numbers = {"tcp": TCP, "udp": UDP}
            return [*_of_protocol(numbers[protocol]), *ports] if protocol in numbers else ports
        case {"payload": {"protocol": "icmp", "field": "type"}}:
            return [*_of_protocol(ICMP), *_within(SOURCE_PORT, op, values, _icmp_type)]
        case {"payload": {"protocol": "icmp", "field": "code"}}:
            return [*_of_protocol(ICMP), *_within(DESTINATION_PORT, op, values, _icmp_code)]
        case {"payload": {"protocol": "ip6" | "icmpv6" | "arp"}}:
            return [Never()]
        case {"payload": {"protocol": "tcp", "field": "flags"}}:
            return [*_of_protocol(TCP), *_flags(None, op, values)]
        case {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, mask]}:
            return [*_of_protocol(TCP), *_flags(_flag_names(mask), op, values)]
        case {"&": [{"payload": {"protocol": "ip", "field": "frag-off"}}, int()]} if values in ([0], ["0"]):
            return [Fact("fragment", frozenset({"no"}), _inverted(op))]
        case {"payload": {"protocol": "ip", "field": "version"}}:
            return [Fact("nfproto", frozenset({"ipv4"} if values == [4] else {"ipv6"}), _inverted(op))]
        case {"fib": {"result": "type", "flags": flags}} if listed(flags)[0] in ("saddr", "daddr"):
            flag, *others = listed(flags)
            if others:
                raise ValueError(flags)
            return [Fact(f"{flag} type", _texts(values), _inverted(op))]
        case {"fib": {"result": "oif" | "oifname" | "check", "flags": flags}} if {"saddr", "iif"} <= set(listed(flags)):
            missing = values[0] in (False, 0, "", "missing", "0")
            return [Fact("path back", frozenset({"missing" if missing else "exists"}), _inverted(op))]
    raise ValueError(left)


def implied_by(left: Any) -> list[Test]:
    """Return the tests of having a field at all."""
    match left:
        case {"concat": parts}:
            return [test for part in parts for test in implied_by(part)]
        case {"payload": {"protocol": "tcp" | "udp" | "icmp" as protocol}}:
            return _of_protocol({"tcp": TCP, "udp": UDP, "icmp": ICMP}[protocol])
        case {"payload": {"protocol": "ip6" | "icmpv6"}}:
            return [Never()]
    return []


def _inverted(op: str) -> bool:
    if op not in ("==", "!=", "in", "!"):
        raise ValueError(op)
    return op in ("!=", "!")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value


def _texts(values: Sequence[Any]) -> frozenset[str]:
    return frozenset(_text(value) for value in values)


def _of_protocol(number: int) -> list[Test]:
    return [Within(PROTOCOL, ((number, number),))]


def _within(field: int, op: str, values: Sequence[Any], read_one: Callable[[str], tuple[int, int]]) -> list[Test]:
    """Return the test that a field has one of these values, or stands so to the one."""
    ranges: Ranges = ranges_of(read_one(words(value)) for value in values)
    if op in ("<", "<=", ">", ">="):
        [(first, last)] = ranges
        bounds = {"<": (0, first - 1), "<=": (0, last), ">": (last + 1, TOP[field]), ">=": (first, TOP[field])}
        ranges = ranges_of([bounds[op]])
    elif _inverted(op):
        ranges = complement(ranges, field)
    return [Within(field, ranges)] if ranges else [Never()]


def _range(text: str) -> tuple[int, int]:
    return read_ports(text, "-")


def _icmp_type(text: str) -> tuple[int, int]:
    if "-" in text and text.replace("-", "").isdecimal():
        return read_ports(text, "-")
    kinds, codes = read_icmp(text)
    if codes != ((0, 0xFFFF),):
        raise ValueError(text)
    return kinds[0]


def _icmp_code(text: str) -> tuple[int, int]:
    if text.replace("-", "").isdecimal():
        return read_ports(text, "-")
    _, codes = read_icmp({"prot-unreachable": "protocol-unreachable", "frag-needed": "fragmentation-needed"}.get(
        text, {"net-unreachable": "network-unreachable", "net-prohibited": "network-prohibited",
               "admin-prohibited": "communication-prohibited"}.get(text, text)))  # fmt: skip
    return codes[0]


def _mark(left: Any, op: str, values: Sequence[Any], mask: int) -> Mark:
    [value] = values
    of = FLOW if "ct" in left else PACKET
    return Mark(int(value), mask, _inverted(op), f"{shown(left)} {op} {value}", of)


def marking_of(of: str, expression: Any) -> Marking:
    """Return what a mark becomes that is set to an expression."""
    match expression:
        case int():
            return Marking(of, "", 0, expression)
        case {"meta": {"key": "mark"}}:
            return Marking(of, PACKET, WHOLE_MARK)
        case {"ct": {"key": "mark"}}:
            return Marking(of, FLOW, WHOLE_MARK)
        case {"&": [inner, int() as bits]}:
            before = marking_of(of, inner)
            return before._replace(mask=before.mask & bits, value=before.value & bits)
        case {"|": [inner, int() as bits]}:
            before = marking_of(of, inner)
            return before._replace(mask=before.mask & ~bits, value=before.value & ~bits | bits)
        case {"^": [inner, int() as bits]}:
            before = marking_of(of, inner)
            return before._replace(value=before.value ^ bits)
    return Marking(of)


def _conntrack(key: str, op: str, values: Sequence[Any]) -> Test:
    """Return the test of a state, a status or a direction; of a status, which has many bits, whether one is set."""
    if key == "status" and (op not in ("in", "!") or _texts(values) != {"dnat"}):
        raise ValueError(values)
    return Fact(f"ct {key}", _texts(values), _inverted(op))


def _flag_names(expression: Any) -> frozenset[str]:
    """Return the flags of `syn`, `syn | ack`, or a list of them."""
    match expression:
        case {"|": parts}:
            return frozenset().union(*(_flag_names(part) for part in parts))
        case list():
            return frozenset().union(*(_flag_names(part) for part in expression))
        case str():
            return frozenset({expression})
        case 0:
            return frozenset()
    raise ValueError(expression)


def _flags(mask: frozenset[str] | None, op: str, values: Sequence[Any]) -> list[Test]:
    """Return the test of TCP flags: "in" asks for any of these, "!" for none, and the others for exactly the one."""
    every = frozenset({"fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"})
    if mask is None and op in ("in", "!"):
        return [Flags(frozenset().union(*map(_flag_names, values)), frozenset(), inverted=op == "in")]
    [wanted] = values
    return [Flags(every if mask is None else mask, _flag_names(wanted), _inverted(op))]


def words(value: Any) -> str:
    match value:
        case None:
            return ""
        case str() | int():
            return str(value)
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case dict() if value:
            return str(next(iter(value)))
    return "?"


def shown(left: Any) -> str:
    """Return an expression much as nft writes it."""
    match left:
        case {"payload": {"protocol": protocol, "field": field}}:
            return f"{protocol} {field}"
        case {"fib": {"result": result, "flags": flags}}:
            return f"fib {' . '.join(map(shown, listed(flags)))} {result}"
        case {"concat": parts}:
            return " . ".join(map(shown, listed(parts)))
        case {"set": parts}:
            return f"{{ {', '.join(map(shown, listed(parts)))} }}"
        case {"range": _} | {"prefix": _}:
            return words(left)
        case dict() if left:
            name, inner = next(iter(left.items()))
            if isinstance(inner, dict):
                return " ".join([name, *map(words, inner.values())])
            return f" {name} ".join(map(shown, listed(inner)))
    return words(left)


def listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]
