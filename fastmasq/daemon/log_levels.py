"""Log levels that are changed while we run, by subsystem, and that change back by themselves (H-82).

Control method, with parameters and result:

    log {}                                                            only asks
    log {"subsystem": "vpn", "level": "debug", "seconds": 600}        subsystem null: all; seconds null: for ever
     -> [{"subsystem": "vpn", "says": "PPTP and IPsec of inside hosts", "level": "debug", "reverts_s": 600.0}, ...]

A subsystem's level is the one chosen at the start but for that; `reverts_s` is null unless it changes back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fastmasq.clock import now_ns
from fastmasq.errors import ConfigurationError
from fastmasq.observe.log import LEVELS, SUBSYSTEMS
from fastmasq.units import NS_PER_SECOND, format_duration

log = logging.getLogger("fastmasq.control")

LONGEST_S = 365 * 86_400


class LogLevels:
    """The levels of the subsystems' loggers, and when each changes back. Times in nanoseconds."""

    def __init__(self) -> None:
        self._until: dict[str, int] = {}  # by subsystem

    def handlers(self) -> dict[str, Callable[[dict], object]]:
        """Return the control methods."""
        return {"log": lambda params: self.handle(params, now_ns())}

    def handle(self, params: dict[str, Any], now: int) -> list[dict[str, Any]]:
        """Change what is asked for and return all levels, see above. Raises ConfigurationError; nothing has changed."""
        if params.get("level") is not None:
            subsystems, level, seconds = _read(params)
            for subsystem in subsystems:
                self._change(subsystem, level, None if seconds is None else now + round(seconds * NS_PER_SECOND))
            what = ", ".join(subsystems) if len(subsystems) < len(SUBSYSTEMS) else "everything"
            span = "from now on" if seconds is None else f"for {format_duration(round(seconds * NS_PER_SECOND))}"
            log.info("log level of %s: %s %s", what, level, span)
        return [self._describe(subsystem, now) for subsystem in SUBSYSTEMS]

    def every_second(self, now: int) -> None:
        """Change back what has had its time."""
        for subsystem in [name for name, until in self._until.items() if until <= now]:
            del self._until[subsystem]
            _logger(subsystem).setLevel(logging.NOTSET)
            log.info("log level of %s: %s again", subsystem, _level_of(subsystem))

    def _change(self, subsystem: str, level: str, until: int | None) -> None:
        _logger(subsystem).setLevel(LEVELS[level])
        self._until.pop(subsystem, None)
        if until is not None:
            self._until[subsystem] = until

    def _describe(self, subsystem: str, now: int) -> dict[str, Any]:
        until = self._until.get(subsystem)
        return {
            "subsystem": subsystem,
            "says": SUBSYSTEMS[subsystem],
            "level": _level_of(subsystem),
            "reverts_s": None if until is None else round(max(0, until - now) / NS_PER_SECOND, 1),
        }


def _read(params: dict[str, Any]) -> tuple[list[str], str, float | None]:
    """Return subsystems, level and seconds of a request. Raises ConfigurationError."""
    subsystem, level, seconds = params.get("subsystem"), params["level"], params.get("seconds")
    if subsystem is not None and subsystem not in [*SUBSYSTEMS]:
        raise ConfigurationError(f"{subsystem!r} is not a subsystem; there are: {', '.join(SUBSYSTEMS)}")
    if level not in [*LEVELS]:
        raise ConfigurationError(f"{level!r} is not a level; there are: {', '.join(LEVELS)}")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
        raise ConfigurationError(f"seconds: {seconds!r} is not a number")
    if seconds is not None and not 0 < seconds <= LONGEST_S:
        raise ConfigurationError(f"a level holds for more than 0 s and at most {LONGEST_S // 86_400} days, or for ever")
    return list(SUBSYSTEMS) if subsystem is None else [subsystem], level, seconds


def _logger(subsystem: str) -> logging.Logger:
    return logging.getLogger(f"fastmasq.{subsystem}")


def _level_of(subsystem: str) -> str:
    return logging.getLevelName(_logger(subsystem).getEffectiveLevel()).lower()
