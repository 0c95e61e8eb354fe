"""Reload: what a changed configuration asks for, compared with what it asked for before, and only the difference made.

Both sides are what files say: the settings, and what the rule files come to. What has been changed at run time, by
`fastmasq forward` or `ipchains`, is left alone unless the files now say something else about just that; a rule set that
the files change takes the place of the running one as a whole. Sessions live on.

Control method, with parameters and result:

    reload {"enforce": true,                  optional; close the sessions that policy would no longer let open
            "exact": true,                    optional; have exactly what the files say, nothing that was changed since
            "confirm_s": 60}                  optional, see daemon/confirmation.py
     -> {"changed": ["masquerade.timeouts.udp", "rules", "forward tcp eth1:80 added"], "warnings": ["f.toml:7: ..."],
         "closed": 12, "reset": 3, "sessions": ["tcp 10.0.0.2:1234 -> 199.0.0.1:80: the chain forward says DENY", ...]}
        at most MOST_SHOWN sessions are named; reset says how many inside ends have been told.

What is wrong with a file, or cannot be changed while fastmasq runs, is an error, and nothing has changed then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from msgspec import Struct, structs

from fastmasq.clock import now_ns
from fastmasq.config.load import Loaded
from fastmasq.config.schema import Settings
from fastmasq.daemon import enforce
from fastmasq.daemon.confirmation import Confirmation, Seconds
from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.policy import Declared, Policy, declare, read_parameters
from fastmasq.errors import ConfigurationError, FastmasqError, KernelError
from fastmasq.policy import forwards, redirects, triggers
from fastmasq.policy.forwards import Forward
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.redirects import Redirect
from fastmasq.policy.triggers import Trigger

log = logging.getLogger("fastmasq.engine")

MOST_SHOWN = 20
_FIXED = (
    "compat",
    "interfaces",
    "vpn",
    "port_mapping",
    "limits.sessions",
    "rings",
    "takeover",
    "offload",
    "state",
    "control",
)  # what all else is built on
_BY_OUTCOME = ("rules", "forward", "redirect")  # compared by what they come to


class _Wanted(Struct, forbid_unknown_fields=True):
    enforce: bool = False
    exact: bool = False
    confirm_s: Seconds | None = None


class Reload:
    """Has a gateway follow its files, which `read_again` reads (None without any)."""

    def __init__(
        self, gateway: Gateway, read_again: Callable[[], Loaded] | None, confirmation: Confirmation
    ) -> None:  # fmt: skip
        self._gateway = gateway
        self._read_again = read_again
        self._confirmation = confirmation

    def handle(self, params: dict[str, Any]) -> dict[str, Any]:
        """Answer the control method. Raises FastmasqError, and everything is as it was then."""
        wanted = read_parameters("reload", params, _Wanted)
        if wanted.enforce and wanted.confirm_s:
            raise ConfigurationError("sessions that are closed cannot come back: enforce once the reload is confirmed")
        return self.reload(to_enforce=wanted.enforce, exactly=wanted.exact, confirm_s=wanted.confirm_s)

    def reload(
        self, *, to_enforce: bool = False, exactly: bool = False, confirm_s: int | None = None
    ) -> dict[str, Any]:  # fmt: skip
        """Read the files again and make the difference; say in the log what came of it. Raises FastmasqError."""
        if self._read_again is None:
            raise KernelError("started without a configuration, so there is nothing to reload; use `run -c FILE`")
        before, declared = self._gateway.policy(), self._gateway.declared
        try:
            self._confirmation.require_none(now_ns())
            loaded = self._read_again()
            if not confirm_s:
                _refuse_to_shut(before.settings, loaded.settings)
            result = self._reload(loaded, to_enforce=to_enforce, exactly=exactly)
        except FastmasqError as error:
            for line in str(error).splitlines():
                log.error("not reloaded: %s", line)
            raise
        for warning in result["warnings"]:
            log.warning("%s", warning)
        log.info("%s", _report(result))
        if confirm_s and result["changed"]:
            go_back = partial(setattr, self._gateway, "declared", declared)
            self._confirmation.expect("the reload", confirm_s, before, now_ns(), go_back)
        return result

    def _reload(self, loaded: Loaded, *, to_enforce: bool, exactly: bool) -> dict[str, Any]:
        new, running = declare(loaded.settings, places=loaded.places), self._gateway.policy()
        difference(self._gateway.declared, new)  # what cannot change is refused
        old = as_declared(running, self._gateway.declared) if exactly else self._gateway.declared
        changed = difference(old, new)
        if not new.rules.equals(old.rules):
            self._gateway.count()
            running = self._gateway.policy()
        self._gateway.apply(running, following(running, old, new))
        self._gateway.declared = new
        result = {"changed": changed, "warnings": [*loaded.warnings, *new.warnings]}
        if not to_enforce:
            return {**result, "closed": 0, "reset": 0, "sessions": []}
        closed = enforce.close_forbidden(self._gateway)
        return {**result, "closed": len(closed.lines), "reset": closed.reset, "sessions": closed.lines[:MOST_SHOWN]}


def as_declared(running: Policy, declared: Declared) -> Declared:
    """Return what runs as if files had said so, for the new ones to be compared with; no file says whose turn it is."""
    marks = tuple(structs.replace(one, left=None) for one in running.marks)
    return replace(declared, **{each.name: getattr(running, each.name) for each in fields(Policy)} | {"marks": marks})


def _refuse_to_shut(before: Settings, after: Settings) -> None:
    """Raise ConfigurationError where nobody could come in any more to take a change back."""
    if after.host.is_shut and not before.host.is_shut:
        raise ConfigurationError(
            '[host] unsolicited = "drop" with nothing in `open`: nobody could log in from outside any more; name what '
            "is to stay open, or have it go back by itself unless you confirm it: `fastmasq reload --confirm`"
        )


def _report(result: dict[str, Any]) -> str:
    """Return the one line for the log."""
    line = f"reloaded: {', '.join(result['changed']) or 'nothing changed'}"
    if result["closed"]:
        line += f"; {result['closed']} sessions closed, {result['reset']} inside ends reset"
    return line


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
        found.append("timeouts or dynaddr")
    found += [f"forward {one}" for one in _differing(old.forwards, new.forwards)]
    found += [f"redirect {one}" for one in _differing(old.redirects, new.redirects)]
    found += [f"trigger {one}" for one in _differing(old.triggers, new.triggers)]
    found += [f"mark {one}" for one in _differing(old.marks, new.marks)]
    return found


def following(running: Policy, old: Declared, new: Declared) -> Policy:
    """Return what becomes of the running policy when the files say `new` in place of `old`.

    Raises ConfigurationError when something made at run time is in the way.
    """
    timeouts = {key: value for key, value in vars(new.timeouts).items() if value != getattr(old.timeouts, key)}
    return Policy(
        settings=new.settings,
        rules=running.rules if new.rules.equals(old.rules) else new.rules.succeeding(running.rules),
        timeouts=replace(running.timeouts, **timeouts),
        dynaddr=running.dynaddr if new.dynaddr == old.dynaddr else new.dynaddr,
        forwards=forwards.apply(running.forwards, forward_changes(running.forwards, old, new)),
        redirects=redirects.apply(running.redirects, redirect_changes(running.redirects, old, new)),
        triggers=triggers.apply(running.triggers, trigger_changes(running.triggers, old, new)),
        marks=mark_targets(running.marks, old, new),
        leased=running.leased,
        places=new.places,
    )


def forward_changes(running: Sequence[Forward], old: Declared, new: Declared) -> list[forwards.Change]:
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


def trigger_changes(running: Sequence[Trigger], old: Declared, new: Declared) -> list[triggers.Change]:
    """Return the same for triggers."""
    gone, changed = _gone_and_changed(running, old.triggers, new.triggers)
    deleted = [one for key, one in _by_identity(running).items() if key in _by_identity(gone)]
    return [
        *(triggers.Change(action="delete", row=one) for one in deleted),
        *(triggers.Change(action="add", row=one) for one in changed),
    ]


def mark_targets(running: Sequence[MarkTarget], old: Declared, new: Declared) -> tuple[MarkTarget, ...]:
    """Return what becomes of the running hosts of marks; one that stays as it was keeps what is left of its turn."""
    gone, changed = _gone_and_changed(running, old.marks, new.marks)
    without, instead = _by_identity(gone), _by_identity(changed)
    kept = [instead.pop(str(one), one) for one in running if str(one) not in without]
    return (*kept, *instead.values())


def _gone_and_changed(running: Iterable[Any], old: Sequence[Any], new: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return what the new files leave out and is running still, and what they bring or say otherwise."""
    wanted, present = _by_identity(new), _by_identity(running)
    gone = [one for key, one in _by_identity(old).items() if key not in wanted and key in present]
    before = set(old)
    return gone, [one for one in new if one not in before]


def _differing(old: Iterable[Any], new: Iterable[Any]) -> list[str]:
    """Return the spellings of all that are not in both alike, each with what has become of it."""
    before, after = _by_identity(old), _by_identity(new)
    gone = [f"{key} removed" for key in before if key not in after]
    came = [f"{key} added" for key in after if key not in before]
    return [*gone, *came, *(f"{key} changed" for key in after if key in before and before[key] != after[key])]


def _by_identity(policies: Iterable[Any]) -> dict[str, Any]:
    """Return forwards or redirects by what tells them apart: their spelling, which names all but where they lead."""
    return {str(one): one for one in policies}
