"""Policy: all that may change while fastmasq runs, as one value; what files declare, and what requests make of it.

A request has the name and the parameters of a control method. Those that change policy:

    rules.change {"changes": [CHANGE, ...]}         policy.changes.Change; for the others policy.forwards.Change,
    forwards.change {"changes": [CHANGE, ...]}      policy.redirects.Change, policy.triggers.Change and
    redirects.change {"changes": [CHANGE, ...]}     policy.marks.Change, which msgspec.to_builtins(change) makes
    triggers.change {"changes": [CHANGE, ...]}
    marks.change {"changes": [CHANGE, ...]}
    timeouts {"tcp": 7200, "tcp_fin": 10, "udp": 60}
    dynaddr {"value": 5}                            0 to 7, see [masquerade] dynaddr

    policy.change {"lines": [{"place": "FILE:LINE", "method": ..., "params": ..., "optional": false}, ...],
                   "confirm_s": 60}                 optional, see daemon/confirmation.py
     -> {"warnings": ["FILE:LINE: left out: ...", ...], "changes": 6}
        makes many of them in order, as one change. An optional one that cannot be made is left out.

Every one of them is made whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, structs

from fastmasq.config.schema import Settings
from fastmasq.daemon import timeouts
from fastmasq.errors import ConfigurationError
from fastmasq.policy import changes, forwards, marks, redirects, triggers
from fastmasq.policy.chains import RuleError, RuleSet
from fastmasq.policy.forwards import Forward
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.redirects import Redirect
from fastmasq.policy.triggers import Trigger
from fastmasq.table.timeouts import Timeouts

if TYPE_CHECKING:
    from fastmasq.legacy.script import Item

_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class Policy:
    """What a gateway goes by. Of the settings, those that change while it runs: [masquerade] and most of [limits].

    leased: forwards that inside hosts have asked for (daemon/leases.py), which yield to all others.
    places: FILE:LINE of each forward, redirect, trigger and mark that files ask for, by its spelling.
    """

    settings: Settings
    rules: RuleSet
    timeouts: Timeouts
    dynaddr: int
    forwards: tuple[Forward, ...] = ()
    redirects: tuple[Redirect, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    marks: tuple[MarkTarget, ...] = ()
    leased: tuple[Forward, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict, compare=False)

    def placed(self, what: object, text: str) -> str:
        """Return a sentence about one of these behind its FILE:LINE, if it has one."""
        place = self.places.get(str(what))
        return f"{place}: {text}" if place else text


@dataclass(frozen=True)
class Declared(Policy):
    """All that a configuration and its rule files ask for, and what is to be said about them."""

    warnings: tuple[str, ...] = ()


_AnyPolicy = TypeVar("_AnyPolicy", bound=Policy)


def declare(settings: Settings, *, quoting: bool = False, places: Mapping[str, str] | None = None) -> Declared:
    """Read the rule files of these settings. Raises ConfigurationError with a line for each mistake.

    Messages quote lines of other programs if they are for whoever has called us, and not for a log. Rule files are run
    on what a kernel of 1999 starts with, where nothing is masqueraded unless they say so. places: those that `Loaded`
    has of the forwards and redirects of the settings.
    """
    masquerade = settings.masquerade
    written = masquerade.timeouts
    declared = Declared(
        settings,
        rules=RuleSet(default_forward=not settings.rules.files),
        timeouts=Timeouts(written.tcp_established, written.tcp_transitory, written.udp, written.icmp),
        dynaddr=masquerade.dynaddr,
        forwards=settings.forward,
        redirects=settings.redirect,
        places=places or {},
    )
    return _with_files(declared, quoting) if settings.rules.files else declared


def _with_files(declared: Declared, quoting: bool) -> Declared:
    """Do what the rule files ask for."""
    from fastmasq.legacy.names import Names  # only here: a start without rule files need not know the old commands
    from fastmasq.legacy.script import prepare

    settings = declared.settings
    tolerant = not settings.rules.strict
    prepared = prepare(settings.rules.files, Names(), declared.rules, tolerant=tolerant, quoting=quoting)
    lines = [line_of(item, tolerant=tolerant) for item in prepared.others]
    declared, left_out, _ = with_lines(replace(declared, rules=changes.apply(declared.rules, prepared.changes)), lines)
    if settings.rules.steal:
        declared = _stealing(declared, settings)
    return replace(declared, warnings=(*prepared.warnings, *left_out))


def _stealing(declared: Declared, settings: Settings) -> Declared:
    """Let what rule files ask for take the ports and protocols of running programs."""
    of_files = {
        "forwards": {*declared.forwards} - {*settings.forward},
        "redirects": {*declared.redirects} - {*settings.redirect},
        "triggers": {*declared.triggers},
        "marks": {*declared.marks},
    }
    changed = {
        name: tuple(structs.replace(one, steal=True) if one in found else one for one in getattr(declared, name))
        for name, found in of_files.items()
    }
    return replace(declared, **changed)


# -- what requests make of it ------------------------------------------------------------------------------------------


class Line(Struct, kw_only=True, forbid_unknown_fields=True):
    """A request that stands at a place of a file; an optional one is left out if it cannot be done."""

    place: str
    method: str
    params: dict[str, Any]
    optional: bool = False


def line_of(item: Item, *, tolerant: bool) -> Line:
    """Return what a line of a rule file asks for; read tolerantly, some need not be possible."""
    from fastmasq.legacy.script import may_be_left_out

    method, params = item.request.call()
    return Line(
        place=item.place, method=method, params=params, optional=tolerant and may_be_left_out(item.request)
    )  # fmt: skip


def with_lines(policy: _AnyPolicy, lines: Iterable[Line]) -> tuple[_AnyPolicy, list[str], int]:
    """Return the policy after these requests, a text for each that was left out, and how many changes they came to.

    Raises ConfigurationError that names the place.
    """
    left_out: list[str] = []
    made = 0
    for line in lines:
        before = policy
        try:
            policy = changed(policy, line.method, line.params)
        except RuleError:  # its reason is for programs
            raise
        except ConfigurationError as error:
            if not line.optional:
                raise ConfigurationError(f"{line.place}: {error}") from None
            left_out.append(f"{line.place}: left out: {error}")
        else:
            policy = replace(policy, places={**policy.places, **{str(one): line.place for one in _new(before, policy)}})
            made += len(wanted) if isinstance(wanted := line.params.get("changes"), list) else 1
    return policy, left_out, made


def _new(before: Policy, after: Policy) -> Iterator[object]:
    """Yield the forwards, redirects, triggers and marks that a change has brought."""
    for name in ("forwards", "redirects", "triggers", "marks"):
        old, new = getattr(before, name), getattr(after, name)
        if new is not old:
            known = {id(one) for one in old}
            yield from (one for one in new if id(one) not in known)


def changed(policy: _AnyPolicy, method: str, params: dict[str, Any]) -> _AnyPolicy:
    """Return the policy after a request, see above. Raises ConfigurationError for one that cannot be made."""
    make = CHANGES.get(method)
    if make is None:
        raise ConfigurationError(f"{method!r} does not change policy; there are {', '.join(CHANGES)}")
    return make(policy, params)


def _change_rules(policy: _AnyPolicy, params: dict[str, Any]) -> _AnyPolicy:
    wanted = read_parameters("rules", params, _RuleChanges).changes
    return replace(policy, rules=changes.apply(policy.rules, wanted))


def _change_forwards(policy: _AnyPolicy, params: dict[str, Any]) -> _AnyPolicy:
    leased, wanted = forwards.revoke(policy.leased, _read_changes(params, forwards.Change))
    return replace(policy, forwards=forwards.apply(policy.forwards, wanted), leased=leased)


def _change_redirects(policy: _AnyPolicy, params: dict[str, Any]) -> _AnyPolicy:
    return replace(policy, redirects=redirects.apply(policy.redirects, _read_changes(params, redirects.Change)))


def _change_triggers(policy: _AnyPolicy, params: dict[str, Any]) -> _AnyPolicy:
    return replace(policy, triggers=triggers.apply(policy.triggers, _read_changes(params, triggers.Change)))


def _change_marks(policy: _AnyPolicy, params: dict[str, Any]) -> _AnyPolicy:
    return replace(policy, marks=marks.apply(policy.marks, _read_changes(params, marks.Change)))


def _change_timeouts(policy: _AnyPolicy, params: dict[str, Any]) -> _AnyPolicy:
    return replace(policy, timeouts=timeouts.changed(policy.timeouts, params))


def _change_dynaddr(policy: _AnyPolicy, params: dict[str, Any]) -> _AnyPolicy:
    return replace(policy, dynaddr=read_parameters("dynaddr", params, _Dynaddr).value)


CHANGES: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "rules.change": _change_rules,
    "forwards.change": _change_forwards,
    "redirects.change": _change_redirects,
    "triggers.change": _change_triggers,
    "marks.change": _change_marks,
    "timeouts": _change_timeouts,
    "dynaddr": _change_dynaddr,
}


class _Dynaddr(Struct, forbid_unknown_fields=True):
    value: Annotated[int, Meta(ge=0, le=7)]


class _RuleChanges(Struct, forbid_unknown_fields=True):
    changes: list[changes.Change]


def _read_changes(params: dict[str, Any], kind: type[_Kind]) -> list[_Kind]:
    try:
        return msgspec.convert(params.get("changes"), list[kind])
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"changes: {error}") from None


def read_parameters(what: str, params: dict[str, Any], kind: type[_Kind]) -> _Kind:
    """Return the parameters of a control method as a struct. Raises ConfigurationError that says which is wrong."""
    try:
        return msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{what}: {error}") from None
