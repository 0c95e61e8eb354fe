"""What the program logs, as lines for people or as JSON for machines; packets are counted, never logged."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

SUBSYSTEMS = {
    "config": "mistakes in the configuration that are no errors",
    "control": "clients of the control socket",
    "engine": "links, addresses, ports, reloads",
    "forwards": "port forwards, and those that inside hosts ask for",
    "gateways": "application gateways: FTP and DCC",
    "hooks": "programs of yours: what they print, and how they end",
    "rules": "packets that rules log",
    "vpn": "PPTP and IPsec of inside hosts",
}  # name of the logger behind "fastmasq.": what it is about
MOST_REPEATED, REPEATED_S = 10, 60.0  # of the same line within this time
_MOST_KNOWN = 1000  # lines
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class LineFormatter(logging.Formatter):
    """`fastmasq: warning: text`; the time is the business of whoever collects standard error."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"fastmasq: {level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC, ISO 8601), level, logger, message and, after a failure, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class Repetitions(logging.Filter):
    """Lets the same line by MOST_REPEATED times in REPEATED_S; how often it came besides is said when it comes again.

    A link that flaps, or a program that alters what we alter, is no storm of lines then. Packets that rules log, which
    may be the same, have a limit of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[int, str], tuple[float, int]] = {}  # since when, and how often, by level and text

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "fastmasq.rules":
            return True
        line = (record.levelno, record.getMessage())
        since, count = self._known.get(line, (record.created, 0))
        unsaid = 0
        if not 0 <= record.created - since < REPEATED_S:
            unsaid = max(0, count - MOST_REPEATED)
            since, count = record.created, 0
        if count == 0:
            self._known.pop(line, None)  # the dictionary is in the order of their beginnings
            while len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
        self._known[line] = since, count + 1
        if unsaid:
            record.msg, record.args = f"{line[1]} (and {unsaid} times before that were not said)", ()
        return count < MOST_REPEATED


def as_json_line(message: str) -> str:
    """Return what is said on standard output in the form of the log."""
    return JsonFormatter().format(logging.LogRecord("fastmasq.engine", logging.INFO, "", 0, message, (), None))


def set_up(*, as_json: bool = False, verbose: bool = False, stream: TextIO | None = None) -> None:
    """Send what fastmasq logs to `stream` (standard error), from INFO or DEBUG; of the libraries only warnings."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    handler.addFilter(Repetitions())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("fastmasq").setLevel(logging.DEBUG if verbose else logging.INFO)
