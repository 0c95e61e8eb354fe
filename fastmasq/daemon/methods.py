"""The control methods of policy: what is in force, and changes of it, each made whole or not at all."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from ipaddress import IPv4Address
from typing import Any

import msgspec
from msgspec import Struct

from fastmasq.clock import now_ns
from fastmasq.config.schema import Control
from fastmasq.control.server import StatusServer
from fastmasq.daemon import timeouts
from fastmasq.daemon.confirmation import Confirmation, Seconds
from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.leases import Leases
from fastmasq.daemon.policy import CHANGES, Line, Policy, changed, read_parameters, with_lines
from fastmasq.errors import KernelError
from fastmasq.policy.chains import Rule
from fastmasq.policy.forwards import Forward

log = logging.getLogger("fastmasq.engine")

Handler = Callable[[dict[str, Any]], object]

READING = frozenset(
    ("ping", "status", "sessions", "rules", "rules.check", "forwards", "redirects", "triggers", "marks", "vpn", "esp")
)
"""What the status socket answers; `rules` only when it sets no counters to zero."""


class Methods:
    """Lists and changes the policy of a gateway. Parameters and results are described in the modules of its parts."""

    def __init__(self, gateway: Gateway, confirmation: Confirmation, leases: Leases) -> None:
        self._gateway = gateway
        self._confirmation = confirmation
        self._leases = leases

    def handlers(self) -> dict[str, Handler]:
        """Return the methods. They raise FastmasqError; nothing has changed then."""
        gateway = self._gateway
        tell: dict[str, Callable[[Policy, Policy], dict[str, Any]]] = {
            "rules.change": lambda _old, _new: {"generation": gateway.rules.rule_set.generation},
            "forwards.change": self._tell_forwards,
            "redirects.change": lambda _, new: {"redirects": len(new.redirects)},
            "triggers.change": lambda _, new: {"rows": len(new.triggers)},
            "marks.change": lambda _, new: {"targets": len(new.marks)},
            "timeouts": lambda _, new: timeouts.describe(new.timeouts),
            "dynaddr": lambda _, new: {"value": new.dynaddr},
        }
        return {
            "rules": self._list_rules,
            "rules.check": gateway.rules.evaluate,
            "forwards": lambda _: self._list_forwards(),
            "redirects": lambda _: [msgspec.to_builtins(one) for one in gateway.redirects.redirects],
            "triggers": lambda _: gateway.triggers.describe(),
            "marks": lambda _: gateway.marks.describe(),
            "policy.change": self._change_lines,
            **self._confirmation.handlers(),
            **{method: partial(self._change, method, tell[method]) for method in CHANGES},
        }

    def _list_rules(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the chains, each rule with where it comes from: "configuration", rule files included, or "command"."""
        gateway = self._gateway
        gateway.count()
        answer = gateway.rules.listed(params)
        for chain in answer["chains"]:
            name = chain["name"]
            declared = gateway.declared.rules.rules_of(name)
            origins = _origins(gateway.rules.rule_set.rules_of(name), declared)
            chain["rules"] = [{**row, "from": origin} for row, origin in zip(chain["rules"], origins, strict=True)]
        return answer

    def _list_forwards(self) -> list[dict[str, Any]]:
        """Return the forwards, each with where it comes from: "configuration", rule files included, or "command".

        Of a lease that is the protocol that it was asked for by; it has an owner, too, and the seconds it has left.
        """
        gateway, now = self._gateway, now_ns()
        origins: dict[Forward, dict[str, Any]] = {
            forward: {"from": "configuration"} for forward in gateway.declared.forwards
        }
        for lease in self._leases:
            owner = str(IPv4Address(lease.host))
            origins[lease.forward()] = {"from": lease.by, "owner": owner, "left_s": lease.left_s(now)}
        return [
            {"from": "command", "owner": None, "left_s": None, **row, **origins.get(forward, {})}
            for forward, row in gateway.forwards.describe()
        ]

    def _tell_forwards(self, old: Policy, new: Policy) -> dict[str, Any]:
        before = set(old.forwards)
        changed = [forward for forward in new.forwards if forward not in before]
        return {"forwards": len(new.forwards), "warnings": self._gateway.forwards.reservations(changed)}

    def _change(
        self, method: str, tell: Callable[[Policy, Policy], dict[str, Any]], params: dict[str, Any]
    ) -> dict[str, Any]:  # fmt: skip
        self._confirmation.require_none(now_ns())
        if method == "rules.change":
            self._gateway.count()  # some changes set counters to zero
        old = self._gateway.policy()
        new = changed(old, method, params)
        self._gateway.apply(old, new)
        return tell(old, new)

    def _change_lines(self, params: dict[str, Any]) -> dict[str, Any]:
        wanted = read_parameters("policy", params, _Lines)
        self._confirmation.require_none(now_ns())
        self._gateway.count()
        old = self._gateway.policy()
        new, left_out, made = with_lines(old, wanted.lines)
        self._gateway.apply(old, new)
        if wanted.confirm_s and made:
            self._confirmation.expect(f"the change by {wanted.lines[0].place}", wanted.confirm_s, old, now_ns())
        return {"warnings": left_out, "changes": made}


def _origins(present: Iterable[Rule], declared: Iterable[Rule]) -> Iterator[str]:
    """Yield where each rule of a chain comes from; of equal ones the first are those that the files have."""
    left = Counter(declared)
    for rule in present:
        yield "configuration" if left[rule] > 0 else "command"
        left[rule] -= 1


def is_reading(method: str, params: dict[str, Any]) -> bool:
    """Whether a request only asks."""
    return method in READING and not params.get("zero")


def serve_reading(
    control: Control, methods: Mapping[str, Handler], loop: asyncio.AbstractEventLoop, listener: socket.socket | None
) -> StatusServer | None:
    """Have the group of /run/fastmasq read what goes on, if it may; return the server. Raises KernelError.

    listener: one that is there already, from a process before.
    """
    if control.status_socket is None:
        return None
    reading = {name: methods[name] for name in READING & {*methods}}
    try:
        return StatusServer(control.status_socket, reading, loop, is_reading, listener)
    except KernelError as error:
        if control.status != "auto":
            raise
        log.warning("%s", error)
        return None


class _Lines(Struct, forbid_unknown_fields=True):
    lines: list[Line]
    confirm_s: Seconds | None = None
