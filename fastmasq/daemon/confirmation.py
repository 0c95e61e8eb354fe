"""Changes that go back by themselves unless somebody confirms them: a rule that locks its author out does not last.

Control methods, with parameters and result:

    policy.change {..., "confirm_s": 60}      go back to the policy of before after so long, unless confirmed
    reload {..., "confirm_s": 60}
    confirm {}
     -> {"confirmed": "rule load /etc/rc.firewall"}

One change at a time waits. When it goes back, so does whatever has changed after it; a reload is refused meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

from msgspec import Meta

from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.policy import Policy
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

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], object]]:
        """Return the control methods."""
        return {"confirm": self.confirm}

    def require_none(self) -> None:
        """Raise ConfigurationError if a change waits already."""
        if self._waiting is not None:
            raise ConfigurationError(
                f"{self._waiting.what} waits for `fastmasq confirm`; confirm it first, or let it go"
            )

    def expect(
        self, what: str, seconds: int, before: Policy, now: int, go_back: Callable[[], None] = lambda: None
    ) -> None:
        """Have a change that has just been made go back to the policy `before` it, unless it is confirmed in time."""
        self._waiting = _Waiting(what, now + seconds * NS_PER_SECOND, before, go_back)
        log.info("%s goes back in %d s unless `fastmasq confirm` says otherwise", what, seconds)

    def confirm(self, _: dict[str, Any]) -> dict[str, Any]:
        """Answer the control method. Raises ConfigurationError when nothing waits."""
        if self._waiting is None:
            raise ConfigurationError("no change waits to be confirmed; it may have gone back already, see the log")
        what, self._waiting = self._waiting.what, None
        log.info("%s is confirmed", what)
        return {"confirmed": what}

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
            self._gateway.count()
            running, before = self._gateway.policy(), waiting.before
            self._gateway.apply(running, replace(before, rules=before.rules.succeeding(running.rules)))
        except FastmasqError as error:
            log.error("%s was not confirmed, and cannot go back now: %s", waiting.what, error)
            return
        waiting.go_back()
        self._waiting = None
        log.warning("%s was not confirmed, so all is as it was before it", waiting.what)
