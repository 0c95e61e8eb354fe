"""Reload: what a changed configuration asks for, compared with what it asked for before, and only the difference made.

Both sides are what files say: the settings, and what the rule files come to. What has been changed at run time, by
`fastmasq forward` or `ipchains`, is left alone unless the files now say something else about just that; a rule set that
the files change takes the place of the running one as a whole. Sessions live on.

Control method, with parameters and result:

    reload {"enforce": true}                  optional; close the sessions that policy would no longer let open
     -> {"changed": ["masquerade.timeouts.udp", "rules", "forward tcp eth1:8080"], "warnings": ["f.toml:7: ..."],
         "closed": 12, "reset": 3, "sessions": ["tcp 10.0.0.2:1234 -> 199.0.0.1:80: the chain forward says DENY", ...]}
        at most MOST_SHOWN sessions are named; reset says how many inside ends have been told.

What is wrong with a file, or cannot be changed while fastmasq runs, is an error, and nothing has changed then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from fastmasq.config.schema import Settings
from fastmasq.daemon import enforce, timeouts
from fastmasq.errors import ConfigurationError
from fastmasq.legacy.names import Names
from fastmasq.legacy.requests import Forwarding, SetDynaddr, SetTimeouts
from fastmasq.legacy.script import may_be_left_out, prepare
from fastmasq.policy import changes, forwards, marks, redirects, triggers
from fastmasq.policy.chains import RuleSet
from fastmasq.policy.forwards import PortForward
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.redirects import Redirect
from fastmasq.policy.triggers import AutoForward
from fastmasq.table.timeouts import Timeouts

if TYPE_CHECKING:
    from fastmasq.config.load import Loaded
    from fastmasq.daemon.engine import Engine

MOST_SHOWN = 20
_FIXED = ("compat", "interfaces", "vpn", "limits.sessions", "rings", "takeover", "control")  # what all else is built on
_BY_OUTCOME = ("rules", "forward", "redirect")  # compared by what they come to


@dataclass(frozen=True)
class Declared:
    """All that a configuration and its rule files ask for; requests are those of the rule files beyond their rules."""

    settings: Settings
    rules: RuleSet
    timeouts: Timeouts
    dynaddr: int
    forwards: tuple[PortForward, ...]
    redirects: tuple[Redirect, ...]
    auto_forwards: tuple[AutoForward, ...] = ()
    mark_targets: tuple[MarkTarget, ...] = ()
    warnings: tuple[str, ...] = ()


def declare(settings: Settings) -> Declared:
    """Read the rule files of these settings. Raises ConfigurationError with a line for each mistake.

    Rule files are run on what a kernel of 1999 starts with, where nothing is masqueraded unless they say so.
    """
    start = RuleSet(default_forward=not settings.rules.files)
    prepared = prepare(settings.rules.files, Names(), start, tolerant=not settings.rules.strict)
    masquerade = settings.masquerade
    written = masquerade.timeouts
    declared = Declared(
        settings,
        rules=changes.apply(start, prepared.changes),
        timeouts=Timeouts(written.tcp_established, written.tcp_transitory, written.udp, written.icmp),
        dynaddr=masquerade.dynaddr,
        forwards=settings.forward,
        redirects=settings.redirect,
        warnings=tuple(prepared.warnings),
    )
    left_out = []
    for item in prepared.others:
        try:
            declared = _with_request(declared, item.request)
        except ConfigurationError as error:
            if settings.rules.strict or not may_be_left_out(item.request):
                raise ConfigurationError(f"{item.place}: {error}") from None
            left_out.append(f"{item.place}: left out: {error}")
    return replace(declared, warnings=(*declared.warnings, *left_out))


def _with_request(declared: Declared, request: Any) -> Declared:
    """Return what it comes to with what one more line of a rule file asks for, that is no change of chains."""
    match request:
        case SetTimeouts():
            asked = {"tcp": request.tcp, "tcp_fin": request.tcp_fin, "udp": request.udp}
            return replace(declared, timeouts=timeouts.changed(declared.timeouts, asked))
        case SetDynaddr():
            return replace(declared, dynaddr=request.value)
        case Forwarding(method="forwards.change"):
            wanted = msgspec.convert(list(request.changes), list[forwards.Change])
            return replace(declared, forwards=forwards.apply(declared.forwards, wanted))
        case Forwarding(method="autofw.change"):
            wanted = msgspec.convert(list(request.changes), list[triggers.Change])
            return replace(declared, auto_forwards=triggers.apply(declared.auto_forwards, wanted))
        case Forwarding(method="mfw.change"):
            wanted = msgspec.convert(list(request.changes), list[marks.Change])
            return replace(declared, mark_targets=marks.apply(declared.mark_targets, wanted))
        case Forwarding():
            wanted = msgspec.convert(list(request.changes), list[redirects.Change])
            return replace(declared, redirects=redirects.apply(declared.redirects, wanted))
    return declared


# -- the difference --------------------------------------------------------------------------------------------------


def changed_keys(old: Struct, new: Struct, place: str = "") -> Iterator[str]:
    """Yield the dotted names of the keys in which two settings differ."""
    for key in old.__struct_fields__:
        before, after = getattr(old, key), getattr(new, key)
        if isinstance(before, Struct):
            yield from changed_keys(before, after, f"{place}{key}.")
        elif before != after:
            yield place + key


def difference(old: Declared, new: Declared) -> list[str]:
    """Return the names of all that differs. Raises ConfigurationError for what cannot change while fastmasq runs."""
    keys = list(changed_keys(old.settings, new.settings))
    fixed = [key for key in keys if any(f"{key}.".startswith(f"{name}.") for name in _FIXED)]
    if fixed:
        raise ConfigurationError(
            f"{', '.join(fixed)}: cannot change while fastmasq runs, so nothing was changed; restart it"
        )
    found = [key for key in keys if key.partition(".")[0] not in _BY_OUTCOME]
    if not new.rules.equals(old.rules):
        found.append("rules")
    in_file = any(key.startswith(("masquerade.timeouts", "masquerade.dynaddr")) for key in keys)
    if (old.timeouts, old.dynaddr) != (new.timeouts, new.dynaddr) and not in_file:
        found.append("timeouts or dynaddr in rule files")
    found += [f"forward {one}" for one in _differing(old.forwards, new.forwards)]
    found += [f"redirect {one}" for one in _differing(old.redirects, new.redirects)]
    found += [f"autofw {one}" for one in _differing(old.auto_forwards, new.auto_forwards)]
    found += [f"mfw {one}" for one in _differing(old.mark_targets, new.mark_targets)]
    return found


def forward_changes(running: Sequence[PortForward], old: Declared, new: Declared) -> list[forwards.Change]:
    """Return what makes of the running forwards what the new files want, without touching those made at run time."""
    gone, changed = _gone_and_changed(running, old.forwards, new.forwards)
    return [
        *(forwards.Change(action="delete", forward=one) for one in gone),
        *(forwards.Change(action="set", forward=one) for one in changed),
    ]


def redirect_changes(running: Sequence[Redirect], old: Declared, new: Declared) -> list[redirects.Change]:
    """Return the same for redirects."""
    gone, changed = _gone_and_changed(running, old.redirects, new.redirects)
    return [
        *(redirects.Change(action="delete", redirect=one) for one in gone),
        *(redirects.Change(action="set", redirect=one) for one in changed),
    ]


def auto_forward_changes(running: Sequence[AutoForward], old: Declared, new: Declared) -> list[triggers.Change]:
    """Return the same for rows of autofw."""
    gone, changed = _gone_and_changed(running, old.auto_forwards, new.auto_forwards)
    deleted = [one for key, one in _by_identity(running).items() if key in _by_identity(gone)]
    return [
        *(triggers.Change(action="delete", row=one) for one in deleted),
        *(triggers.Change(action="add", row=one) for one in changed),
    ]


def mark_targets(running: Sequence[MarkTarget], old: Declared, new: Declared) -> tuple[MarkTarget, ...]:
    """Return what becomes of the running hosts of marks; one that stays as it was keeps what is left of its turn."""
    gone, changed = _gone_and_changed(running, old.mark_targets, new.mark_targets)
    without, instead = _by_identity(gone), _by_identity(changed)
    kept = [instead.pop(str(one), one) for one in running if str(one) not in without]
    return (*kept, *instead.values())


def _gone_and_changed(running: Iterable[Any], old: Sequence[Any], new: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return what the new files leave out and is running still, and what they bring or say otherwise."""
    wanted, present = _by_identity(new), _by_identity(running)
    gone = [one for key, one in _by_identity(old).items() if key not in wanted and key in present]
    return gone, [one for one in new if one not in old]


def _differing(old: Iterable[Any], new: Iterable[Any]) -> list[str]:
    before, after = _by_identity(old), _by_identity(new)
    return [key for key in {**before, **after} if before.get(key) != after.get(key)]


def _by_identity(policies: Iterable[Any]) -> dict[str, Any]:
    """Return forwards or redirects by what tells them apart: their spelling, which names all but where they lead."""
    return {str(one): one for one in policies}


# -- making it -------------------------------------------------------------------------------------------------------


def reload(engine: Engine, loaded: Loaded, *, to_enforce: bool) -> dict[str, Any]:
    """Bring the running engine to newly loaded settings; return the result of the control method.

    Raises FastmasqError, and everything is as it was then.
    """
    old, new = engine.declared, declare(loaded.settings)
    changed = difference(old, new)
    _apply(engine, old, new)
    result = {"changed": changed, "warnings": [*loaded.warnings, *new.warnings]}
    if not to_enforce:
        return {**result, "closed": 0, "reset": 0, "sessions": []}
    closed = enforce.close_forbidden(engine)
    return {**result, "closed": len(closed.lines), "reset": closed.reset, "sessions": closed.lines[:MOST_SHOWN]}


def report(result: dict[str, Any]) -> str:
    """Return the one line for the log."""
    line = f"reloaded: {', '.join(result['changed']) or 'nothing changed'}"
    if result["closed"]:
        line += f"; {result['closed']} sessions closed, {result['reset']} inside ends reset"
    return line


def _apply(engine: Engine, old: Declared, new: Declared) -> None:
    """Make the difference: first what may be refused, each with its way back, then what cannot fail."""
    with ExitStack() as undo:
        if not new.rules.equals(old.rules):
            before = engine.rules.rule_set
            engine.rules.replace(new.rules)
            undo.callback(engine.rules.replace, before)
        present, redirected = engine.forwards.forwards, engine.forwards.redirects
        engine.forwards.replace(
            forwards.apply(present, forward_changes(present, old, new)),
            redirects.apply(redirected, redirect_changes(redirected, old, new)),
        )
        undo.callback(engine.forwards.replace, present, redirected)
        rows, targets = engine.demand.rows, engine.demand.targets()
        engine.demand.replace_rows(triggers.apply(rows, auto_forward_changes(rows, old, new)))
        undo.callback(engine.demand.replace_rows, rows)
        engine.demand.replace_targets(lambda present: mark_targets(present, old, new))
        undo.callback(engine.demand.replace_targets, lambda _: targets)
        if new.settings.masquerade.ports != old.settings.masquerade.ports:
            engine.use_ports_of(new.settings)
        undo.pop_all()
    engine.settings, engine.declared = new.settings, new
    if new.dynaddr != old.dynaddr:
        engine.dynaddr = new.dynaddr
    _apply_to_table(engine, old, new)


def _apply_to_table(engine: Engine, old: Declared, new: Declared) -> None:
    masquerade, limits = new.settings.masquerade, new.settings.limits
    times = {key: value for key, value in vars(new.timeouts).items() if value != getattr(old.timeouts, key)}
    engine.timeouts = replace(engine.timeouts, **times)
    with engine.forwarder.locked():
        engine.table.set_timeouts(engine.timeouts)
        engine.table.set_filtering(masquerade.filtering)
        engine.table.set_limits(limits.sessions_per_host, limits.ports_per_host, limits.new_sessions_per_host)
        engine.forwarder.set_hairpin(masquerade.hairpin)
    engine.follow_guard()
