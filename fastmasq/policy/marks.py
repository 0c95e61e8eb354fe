"""Forwards by mark as data: which inside hosts share the sessions of packets that the input chain has marked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from fastmasq.errors import ConfigurationError
from fastmasq.policy.chains import ANY_PORT, INPUT, TARGETS, Match, Rule, RuleSet
from fastmasq.policy.forwards import ANY, LARGEST_PREFERENCE, PREFERENCE, Unknown, read_address
from fastmasq.wire.numbers import TCP, UDP

LARGEST_MARK = 0xFFFFFFFF
WIDE = 1024  # a rule that names more ports than that names none: the host needs some for itself

_PORTS = 65536
_CLASSES = {TCP: 0, UDP: 1}  # rows of ports by protocol


class MarkTarget(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An inside host that gets `preference` new sessions of a mark in a row, before it is the next one's turn.

    port 0 is the packet's own. A host with preference 0 keeps the turn until it is passed on. left: sessions until the
    turn passes on, None before the first. A mark with a host that is to `steal` may take the ports of running programs
    of this host.
    """

    mark: int
    address: str = ANY
    port: int = 0
    preference: int = PREFERENCE
    left: int | None = None
    steal: bool = False

    def __str__(self) -> str:
        return f"{self.mark} -> {self.address}:{self.port}"


class Change(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change. 0.0.0.0 and port 0 of `target` are "any" to "edit", which sets preferences, and "delete".

    "add" puts a host at the end of the mark's row; "schedule" passes the turn on now.
    """

    action: Literal["add", "edit", "delete", "schedule", "clear"]
    target: MarkTarget | None = None


def apply(targets: Sequence[MarkTarget], changes: Iterable[Change]) -> tuple[MarkTarget, ...]:
    """Return the targets after all changes; those of a mark are in order, beginning with the one whose turn it is.

    Raises ConfigurationError when a change cannot be made.
    """
    result = tuple(targets)
    for change in changes:
        if change.action == "clear":
            result = ()
        elif change.target is None:
            raise ConfigurationError(f"mark {change.action}: which mark?")
        else:
            result = _ACTIONS[change.action](result, change.target)
    return result


def _add(targets: tuple[MarkTarget, ...], new: MarkTarget) -> tuple[MarkTarget, ...]:
    check(new)
    return (*targets, new)


def _edit(targets: tuple[MarkTarget, ...], wanted: MarkTarget) -> tuple[MarkTarget, ...]:
    _check_in_use(targets, wanted.mark)
    _check_preference(wanted)
    edited = tuple(
        replace(one, preference=wanted.preference, left=wanted.preference) if _is_meant(one, wanted) else one
        for one in targets
    )
    if not any(_is_meant(one, wanted) for one in targets):
        raise Unknown(f"mark {wanted}: no such host of this mark")
    return edited


def _delete(targets: tuple[MarkTarget, ...], wanted: MarkTarget) -> tuple[MarkTarget, ...]:
    left = tuple(one for one in targets if not _is_meant(one, wanted))
    if len(left) == len(targets):
        raise Unknown(f"mark {wanted}: no such host of this mark")
    return left


def _schedule(targets: tuple[MarkTarget, ...], wanted: MarkTarget) -> tuple[MarkTarget, ...]:
    _check_in_use(targets, wanted.mark)
    mine = [one for one in targets if one.mark == wanted.mark]
    if len(mine) == 1:
        return targets
    others = list(targets)
    others.remove(mine[0])
    return (*others, replace(mine[0], left=mine[0].preference))


_ACTIONS = {"add": _add, "edit": _edit, "delete": _delete, "schedule": _schedule}


def _is_meant(one: MarkTarget, wanted: MarkTarget) -> bool:
    return one.mark == wanted.mark and wanted.address in (ANY, one.address) and wanted.port in (0, one.port)


def _check_in_use(targets: Iterable[MarkTarget], mark: int) -> None:
    if all(one.mark != mark for one in targets):
        raise ConfigurationError(f"mark {mark} is not in use")


def _check_preference(target: MarkTarget) -> None:
    if not 0 <= target.preference <= LARGEST_PREFERENCE:
        raise ConfigurationError(f"mark {target}: preference {target.preference} is not 0 to {LARGEST_PREFERENCE}")


def check(target: MarkTarget) -> None:
    """Raise ConfigurationError for a target that cannot be."""
    if not 1 <= target.mark <= LARGEST_MARK:
        raise ConfigurationError(f"mark {target}: marks run from 1 to {LARGEST_MARK}")
    if not 0 <= target.port <= 65535:
        raise ConfigurationError(f"mark {target}: ports run from 1 to 65535; 0 keeps the packet's own")
    _check_preference(target)
    address = read_address(target.address)
    if address is None or address.is_multicast or address.is_loopback or address.is_unspecified:
        raise ConfigurationError(f"mark {target}: {target.address} cannot be the address of an inside host")


# -- for the path ----------------------------------------------------------------------------------------------------


def rows_by_mark(targets: Iterable[MarkTarget]) -> dict[int, list[tuple[int, int, int, int]]]:
    """Return what path.triggers_and_marks.TriggerTable.set_rows takes."""
    rows: dict[int, list[tuple[int, int, int, int]]] = {}
    for one in targets:
        left = one.preference if one.left is None else one.left
        rows.setdefault(one.mark, []).append((int(IPv4Address(one.address)), one.port, one.preference, left))
    return rows


def targets_of(rows: Mapping[int, Sequence[tuple[int, int, int, int]]]) -> tuple[MarkTarget, ...]:
    """Return the targets that rows of TriggerTable.marks stand for."""
    return tuple(
        MarkTarget(mark=mark, address=str(IPv4Address(address)), port=port, preference=preference, left=left)
        for mark, places in rows.items()
        for address, port, preference, left in places
    )


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
