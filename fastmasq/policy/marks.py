"""Forwards by mark as data: which inside hosts share the sessions of packets that the input chain has marked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from fastmasq.errors import ConfigurationError
from fastmasq.policy.forwards import ANY, LARGEST_PREFERENCE, PREFERENCE, Unknown, read_address

LARGEST_MARK = 0xFFFFFFFF


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
