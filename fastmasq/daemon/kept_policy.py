"""What was changed at run time, kept in a file beside the sessions, so that a start after a kill goes on with it.

Of each part of policy that runs otherwise than files have said, the file holds both: what they said, and what runs. So
a start does as a reload does (daemon/reload.py): what its configuration now says otherwise than then is done, and all
else is as it ran. The file is written as a whole each time, and there is none where nothing was changed.

While a change waits to be confirmed (daemon/confirmation.py), the file stays as it was before it: a kill is no yes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, structs

from fastmasq.daemon.confirmation import Confirmation
from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.origin import Origin
from fastmasq.daemon.policy import Policy
from fastmasq.daemon.reload import following
from fastmasq.errors import FastmasqError, KernelError
from fastmasq.kernel.run_folder import RunFolder, file_of
from fastmasq.policy import changes, forwards, marks, redirects, triggers
from fastmasq.policy.chains import ACCEPT, RuleSet
from fastmasq.policy.forwards import Forward
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.redirects import Redirect
from fastmasq.policy.triggers import Trigger
from fastmasq.table.timeouts import Timeouts

log = logging.getLogger("fastmasq.engine")

VERSION = 1
LARGEST = 32 << 20  # octets: as many rules as there can be, twice


class Rules(Struct, frozen=True, forbid_unknown_fields=True):
    """A rule set, as the changes that make it of one without rules."""

    default_forward: bool
    changes: tuple[changes.Change, ...]


class Parts(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Parts of a policy, under their names there; None for those that are as the files say."""

    rules: Rules | None = None
    timeouts: Timeouts | None = None
    dynaddr: Annotated[int, Meta(ge=0, le=7)] | None = None
    forwards: tuple[Forward, ...] | None = None
    redirects: tuple[Redirect, ...] | None = None
    triggers: tuple[Trigger, ...] | None = None
    marks: tuple[MarkTarget, ...] | None = None


class Image(Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds, as JSON: the same parts as files said them, and as they ran."""

    origin: Origin
    declared: Parts
    running: Parts


class KeptPolicy:
    """The file of one gateway in a folder, None where nothing can be kept."""

    def __init__(self, folder: RunFolder | None, gateway: Gateway, confirmation: Confirmation) -> None:
        self._folder = folder
        self._gateway = gateway
        self._confirmation = confirmation
        self._origin = Origin.here(VERSION)
        self._name = file_of(self._origin.namespace, "policy")
        self._written = -1  # changes of the gateway's policy that the file has
        self._lacks_room = False

    def take_up(self) -> None:
        """Have the gateway, which has not begun, go by what a run before has left; what cannot be is set aside."""
        try:
            content = self._folder.read(self._name, LARGEST) if self._folder is not None else None
            if content is None:
                return
            image = msgspec.json.decode(content, type=Image)
            complaint = image.origin.complaint(VERSION)
            if complaint is None:
                self._gateway.take_up(_after(image, self._gateway))
        except Exception as error:  # whatever it says, it was read from a file
            complaint = f"it is damaged: {error}" if isinstance(error, msgspec.DecodeError) else str(error)
        if complaint is None:
            names = (name for name in Parts.__struct_fields__ if getattr(image.running, name) is not None)
            log.info("what was changed at run time goes on: %s", ", ".join(names))
        else:
            path, aside = self._folder.path / self._name, self._folder.set_aside(self._name)
            log.warning("%s: what was changed at run time does not go on: %s; it is now %s", path, complaint, aside)

    def follow(self) -> None:
        """Have the file hold what is changed now, if that is news; what refuses is said, and tried again."""
        gateway = self._gateway
        if self._folder is None or self._written == gateway.changes or self._confirmation.waits:
            return
        running, declared = gateway.policy(), gateway.declared
        names = list(_differing(running, declared))
        try:
            if names:
                image = Image(self._origin, _parts(declared, names), _parts(running, names))
                self._folder.write(self._name, msgspec.json.encode(image, enc_hook=_plain))
            else:
                self._folder.remove(self._name)
        except (KernelError, OSError) as error:
            if not self._lacks_room:
                log.warning("what is changed at run time does not outlive this process: %s", error)
            self._lacks_room = True
            return
        self._lacks_room = False
        self._written = gateway.changes


def _plain(value: object) -> int:
    """Return what a value of a configuration is besides (config/values.py)."""
    if isinstance(value, int):
        return int(value)
    raise TypeError(type(value).__name__)


def _differing(running: Policy, declared: Policy) -> Iterator[str]:
    """Yield the names of the parts in which two policies differ; whose turn a mark's is does not matter."""
    for name in Parts.__struct_fields__:
        one, other = getattr(running, name), getattr(declared, name)
        if name == "rules":
            differs = not one.equals(other)
        elif name == "marks":
            differs = sorted(map(_without_turn, one)) != sorted(map(_without_turn, other))
        else:
            differs = one != other
        if differs:
            yield name


def _without_turn(target: MarkTarget) -> tuple[Any, ...]:
    return structs.astuple(structs.replace(target, left=0))


def _parts(policy: Policy, names: list[str]) -> Parts:
    found = {name: getattr(policy, name) for name in names}
    if "rules" in found:
        found["rules"] = Rules(policy.rules.default_forward, tuple(_making(policy.rules)))
    return Parts(**found)


def _making(rules: RuleSet) -> Iterator[changes.Change]:
    """Yield what makes a rule set."""
    chains = (*rules.chains.values(), rules.accounting)
    yield from (changes.Change(do="new_chain", chain=one.name) for one in chains if one.policy is None)
    for one in chains:
        yield from (changes.Change(do="append", chain=one.name, rule=counted.rule) for counted in one.rules)
        if one.policy not in (None, ACCEPT):
            yield changes.Change(do="policy", chain=one.name, target=one.policy)


def _after(image: Image, gateway: Gateway) -> Policy:
    """Return the policy to go on with. Raises FastmasqError if it cannot be, or not with what the files say now."""
    declared = gateway.declared
    parts = {each.name: getattr(declared, each.name) for each in fields(Policy)}
    running = Policy(**{**parts, **_read(image.running)})
    return following(running, replace(declared, **_read(image.declared)), declared)


def _read(parts: Parts) -> dict[str, Any]:
    """Return the parts of a policy that are there, judged as if they were asked for. Raises FastmasqError."""
    found = {name: value for name in Parts.__struct_fields__ if (value := getattr(parts, name)) is not None}
    if parts.rules is not None:
        found["rules"] = changes.apply(RuleSet(default_forward=parts.rules.default_forward), parts.rules.changes)
    if parts.forwards is not None:
        found["forwards"] = forwards.apply((), [forwards.Change(action="add", forward=one) for one in parts.forwards])
    if parts.redirects is not None:
        wanted = [redirects.Change(action="set", redirect=one) for one in parts.redirects]
        found["redirects"] = redirects.apply((), wanted)
    if parts.triggers is not None:
        newest_last = [triggers.Change(action="add", row=one) for one in reversed(parts.triggers)]
        found["triggers"] = triggers.apply((), newest_last)
    if parts.marks is not None:
        found["marks"] = marks.apply((), [marks.Change(action="add", target=one) for one in parts.marks])
    if parts.timeouts is not None and min(parts.timeouts.by_state()[1:]) <= 0:
        raise FastmasqError("a timeout of no time")
    return found
