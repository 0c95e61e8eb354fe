"""What goes wrong while we run, in the log: each once a minute, with its place, so that nothing is a storm of lines."""

from __future__ import annotations

import logging
import os
from pathlib import PurePath

from fastmasq.errors import FastmasqError
from fastmasq.scarcity import is_scarcity
from fastmasq.units import NS_PER_SECOND

REPEAT_NS = 60 * NS_PER_SECOND
MOST_KINDS = 64  # of mishaps in a minute: what comes beyond them is a storm
_LONGEST = 400  # characters of a line


class Mishaps:
    """Says what was caught: a FastmasqError in its own words; all else is a mistake of ours, with its traceback.

    Want of descriptors or memory is nobody's mistake, and has none. What somebody else has done to us is said likewise.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[str, int] = {}  # when, by what was said
        self._unsaid: dict[str, int] = {}  # how often it has come since

    def report(self, what: str, error: BaseException, now: int) -> None:
        """Log an exception that ended `what`, unless it was logged in the last minute; time in nanoseconds."""
        if isinstance(error, FastmasqError):
            self._say(logging.ERROR, str(error), now)
        elif is_scarcity(error):
            self._say(logging.ERROR, f"{what}: {os.strerror(error.errno)}", now)
        else:
            text = f"{what}: {type(error).__name__} at {place(error)}: {error}"
            self._say(logging.ERROR, text, now, error)

    def warn(self, text: str, now: int) -> None:
        """Log a warning, unless it was logged in the last minute; time in nanoseconds."""
        self._say(logging.WARNING, text, now)

    def _say(self, level: int, text: str, now: int, traceback_of: BaseException | None = None) -> None:
        text = text[:_LONGEST]
        self._said = {key: when for key, when in self._said.items() if now - when < REPEAT_NS}
        if text in self._said or len(self._said) >= MOST_KINDS:
            if text in self._said:
                self._unsaid[text] = self._unsaid.get(text, 0) + 1
            return
        self._said[text] = now
        count = self._unsaid.pop(text, 0)
        self._unsaid = {key: count for key, count in self._unsaid.items() if key in self._said}
        again = f" ({count} times more in the minute before)" if count else ""
        self._log.log(level, "%s%s", text, again, exc_info=traceback_of)


def place(error: BaseException) -> str:
    """Return where an exception was raised, as FILE:LINE in FUNCTION."""
    trace = error.__traceback__
    if trace is None:
        return "an unknown place"
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return f"{'/'.join(PurePath(code.co_filename).parts[-2:])}:{trace.tb_lineno} in {code.co_name}"
