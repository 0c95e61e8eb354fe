"""Which ports the rules of the input chain mark: those are not the host's while the mark leads inside."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from fastmasq.policy.chains import ANY_PORT, INPUT, TARGETS, Match, Rule, RuleSet
from fastmasq.policy.marks import MarkTarget
from fastmasq.wire.numbers import CLASS_TCP, CLASS_UDP, TCP, UDP

WIDE = 1024  # a rule that names more ports than that names none: the host needs some for itself

_PORTS = 65536
_CLASSES = {TCP: CLASS_TCP, UDP: CLASS_UDP}  # by protocol


def marked_ports(rules: RuleSet, marks: Iterable[int]) -> np.ndarray:
    """Return bool[2][65536] by class: the ports that packets must go to, for the input chain to mark them so.

    Left out are marks that packets get whatever their port: those count where the port is masquerading's anyway.
    """
    ports = np.zeros((2, _PORTS), bool)
    for _, reach in _marking(rules, set(marks)):
        ports |= reach
    return ports


def owners(rules: RuleSet, targets: Sequence[MarkTarget]) -> dict[tuple[int, int], MarkTarget]:
    """Return the same ports, as (class, port), each with a target of its mark: one that is to `steal`, if any is."""
    found: dict[tuple[int, int], MarkTarget] = {}
    by_mark: dict[int, MarkTarget] = {}
    for one in targets:
        if one.steal or one.mark not in by_mark:
            by_mark[one.mark] = one
    for rule, reach in _marking(rules, by_mark.keys()):
        leading = [one for mark, one in by_mark.items() if _sets(rule, mark)]
        for port_class, port in np.argwhere(reach).tolist():
            found.setdefault((port_class, port), leading[0])
    return found


def _marking(rules: RuleSet, marks: Collection[int]) -> Iterator[tuple[Rule, np.ndarray]]:
    """Yield the rules that may set one of these marks, each with the ports that it or those before it name."""
    if not marks:
        return
    for rule, reach in _reaches(rules, INPUT, np.ones((2, _PORTS), bool), frozenset()):
        if any(_sets(rule, mark) for mark in marks):
            yield rule, reach & ~reach.all(axis=1, keepdims=True)


def _sets(rule: Rule, mark: int) -> bool:
    """Whether a packet may have a mark by this rule; what is added may come to any."""
    return rule.mark is not None and (rule.mark[0] == "add" or rule.mark[1] == mark)


def _reaches(rules: RuleSet, name: str, before: np.ndarray, above: frozenset[str]) -> Iterator[tuple[Rule, np.ndarray]]:
    """Yield the rules that a packet to a port of `before` meets in a chain, with the ports that each leaves of them."""
    for counted in rules.chain(name).rules:
        rule = counted.rule
        if rule.mark is None and rule.target in ("", *TARGETS):
            continue
        reach = before & _named_ports(rule.match)
        yield rule, reach
        if rule.target in rules.chains and rule.target not in above:
            yield from _reaches(rules, rule.target, reach, above | {name})


def _named_ports(match: Match) -> np.ndarray:
    """Return the ports that a match may be about; all of a protocol where it names none, or too many."""
    ports = np.zeros((2, _PORTS), bool)
    ranges = () if match.not_destination_ports else match.destination_ports
    if sum(last - first + 1 for first, last in ranges) > WIDE or ANY_PORT in ranges:
        ranges = ()
    for protocol, row in _CLASSES.items():
        if match.protocol and (match.protocol == protocol) == match.not_protocol:
            continue
        if not ranges:
            ports[row] = True
        for first, last in ranges:
            ports[row, first : last + 1] = True
    return ports
