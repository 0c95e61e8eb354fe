"""Changes that go back by themselves unless somebody confirms them: a rule that locks its author out does not last.

Control methods, with parameters and result:

    policy.change {..., "confirm_s": 60}      go back to the policy of before after so long, unless confirmed
    reload {..., "confirm_s": 60}
    confirm {}
     -> {"confirmed": "rule load /etc/rc.firewall"}
    confirm {"undo": true}                    go back now
     -> {"undone": "rule load /etc/rc.firewall"}

One change at a time waits, and no other is made meanwhile, by whomever: it would go back with it, or stand in its way.
What changes nothing does not wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

from msgspec import Meta, Struct

from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.policy import Policy, read_parameters
from fastmasq.errors import ConfigurationError, FastmasqError
from fastmasq.units import NS_PER_SECOND

log = logging.getLogger("fastmasq.engine")

LONGEST_S = 86_400

Seconds = Annotated[int, Meta(ge=1, le=LONGEST_S)]


@dataclass(frozen=True)
class _Waiting:
    """A change that waits: its name, until when (ns), what goes back, and what else to do then."""

    what: str
    until: int
    before: Policy
    go_back: Callable[[], None]


class Confirmation:
    """The change of a gateway's policy that waits to be confirmed, if one does. Times in nanoseconds."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._waiting: _Waiting | None = None
        self._refusal = ""  # why it could not go back, as was said

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], object]]:
        """Return the control methods."""
        return {"confirm": self.confirm}

    @property
    def waits(self) -> bool:
        return self._waiting is not None

    def require_none(self, now: int) -> None:
        """Raise ConfigurationError if a change waits: no other can be made."""
        waiting = self._waiting
        if waiting is not None:
            left = max(0, waiting.until - now) // NS_PER_SECOND
            raise ConfigurationError(
                f"nothing was changed: {waiting.what} waits to be confirmed, and goes back in {left} s; "
                "say `fastmasq confirm` to keep it, or `fastmasq confirm --undo` to have it go back now"
            )

    def expect(
        self, what: str, seconds: int, before: Policy, now: int, go_back: Callable[[], None] = lambda: None
    ) -> None:
        """Have a change that has just been made go back to the policy `before` it, unless it is confirmed in time."""
        self._waiting = _Waiting(what, now + seconds * NS_PER_SECOND, before, go_back)
        self._refusal = ""
        log.info("%s goes back in %d s unless `fastmasq confirm` says otherwise", what, seconds)

    def confirm(self, params: dict[str, Any]) -> dict[str, Any]:
        """Answer the control method. Raises ConfigurationError when nothing waits, and FastmasqError as `_go_back`."""
        wanted = read_parameters("confirm", params, _Wanted)
        waiting = self._waiting
        if waiting is None:
            raise ConfigurationError("no change waits to be confirmed; it may have gone back already, see the log")
        if wanted.undo:
            self._go_back(waiting)
            log.warning("%s is undone, so all is as it was before it", waiting.what)
            return {"undone": waiting.what}
        self._waiting = None
        log.info("%s is confirmed", waiting.what)
        return {"confirmed": waiting.what}

    def describe(self, now: int) -> dict[str, Any] | None:
        """Return what waits and how long still, for `status`."""
        if self._waiting is None:
            return None
        return {"what": self._waiting.what, "left_s": round(max(0, self._waiting.until - now) / NS_PER_SECOND, 1)}

    def every_second(self, now: int) -> None:
        """Go back when the time is over; what the kernel refuses just then is tried again."""
        waiting = self._waiting
        if waiting is None or now < waiting.until:
            return
        try:
            self._go_back(waiting)
        except FastmasqError as error:
            if str(error) != self._refusal:
                log.error("%s was not confirmed, and cannot go back now: %s", waiting.what, error)
            self._refusal = str(error)
            return
        log.warning("%s was not confirmed, so all is as it was before it", waiting.what)

    def _go_back(self, waiting: _Waiting) -> None:
        """Have all as it was before a change, which waits no more. Raises FastmasqError, and it waits on then."""
        self._gateway.count()
        running, before = self._gateway.policy(), waiting.before
        self._gateway.apply(
            running, replace(before, rules=before.rules.succeeding(running.rules), leased=running.leased)
        )
        waiting.go_back()
        self._waiting = None


class _Wanted(Struct, forbid_unknown_fields=True):
    undo: bool = False
