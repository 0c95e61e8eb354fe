"""One restart soak: hosts begin, fastmasq is killed, stopped and started while they go on, and what they notice.

There are two rounds of as many seconds as a download takes. In the first fastmasq is killed every KILL_EVERY_S; in the
second it is stopped under --keep and upgraded in turn, each once in TURN_S. A start follows at once but for upgrades,
in which another process takes the place of the running one.

Before each of these the strangers wait a moment, and the sessions are counted; they go on while fastmasq is away, and
all the time that an upgrade takes.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from fastmasq.errors import FastmasqError
from tests.soak.leaks import Leaks
from tests.soak.parts import Part, Parts, in_background, noting_mishaps
from tests.soak.place import Place
from tests.soak.restart import hosts, tunnels
from tests.soak.restart.verdict import Findings, Restart

KILL_EVERY_S, TURN_S = 5.0, 15.0
SETTLE_S = hosts.LONGEST_PAUSE_S + hosts.PATIENCE_S + 1  # then a chat that is dead has been found to be
ALL = 1_000_000


class Count(NamedTuple):
    """What was there at a time: connections begun so far by those who come and go; sessions, and how many are new."""

    begun: int
    opened: int
    sessions: frozenset[tuple[str, ...]]


def soak(place: Place, seconds: float, downloads: int, tell: Callable[[str], None]) -> Findings:
    """Soak a place that is up; `tell` gets a line for each restart."""
    found = Findings(seconds, downloads)
    with contextlib.closing(Leaks(place.lab.namespace("router"))) as leaks, Parts() as parts:
        Stage(place, parts, found, leaks, tell).play()
    found.leaks = leaks.found
    found.log += place.log()
    return found


class Stage:
    """Has the hosts begin and end, and restarts fastmasq meanwhile."""

    def __init__(self, place: Place, parts: Parts, found: Findings, leaks: Leaks, tell: Callable[[str], None]) -> None:
        self._place, self._parts, self._found, self._leaks, self._tell = place, parts, found, leaks, tell
        self._names = {host: place.lab.namespace(host) for host in ("inside", "second", "server", "router")}
        self._started = time.monotonic()
        self._downloads = 0  # begun so far
        self._last: Count | None = None  # before the last restart

    def play(self) -> None:
        self._begin("those who answer", partial(hosts.serve, self._names))
        chats = self._begin("hosts that chat", partial(hosts.chat_all, self._names))
        stream = self._begin("the host with a stream", partial(hosts.stream, self._names, self._started))
        router = self._names["router"]
        tunnelling = self._parts.begin_told("hosts with tunnels", partial(tunnels.tunnel_all, self._place.lab))
        tunnelling.answer()
        self._strangers = self._told("strangers", partial(hosts.visit_all, router, self._started))
        with noting_mishaps(self._found.mishaps, self._started):
            self._round(KILL_EVERY_S, [self._kill])
            self._round(TURN_S, [self._stop, self._upgrade])
            self._wait(SETTLE_S)
            self._compare(self._count())
            self._strangers.tell("go")
        self._found.chats, self._found.datagrams, self._found.tunnels, self._found.visits = (
            part.ask("stop") for part in (chats, stream, tunnelling, self._strangers)
        )

    def _round(self, every_s: float, restarts: Sequence[Callable[[], None]]) -> None:
        """Restart fastmasq in these ways in turn, each once in so many seconds, while files are downloaded."""
        seconds, count = self._found.seconds, self._found.downloads
        files = self._begin(
            "hosts that download",
            partial(hosts.download_all, self._names, self._downloads, count, seconds),
        )
        self._downloads += count
        begun = time.monotonic()
        pause = every_s / len(restarts)
        for number in range(int(seconds / pause)):
            self._wait(begun + (number + 0.5) * pause - time.monotonic())
            self._restart(restarts[number % len(restarts)])
        self._found.files += files.answer()

    def _restart(self, way: Callable[[], None]) -> None:
        before = self._count()
        self._compare(before)
        kind = way.__name__.strip("_")
        at = self._now()
        way()
        until = self._now()
        status = self._place.fastmasq.ask("status")
        missing = before.sessions - self._sessions()
        self._last = before
        adopted = dict(status["adopted"])
        dropped = adopted.pop("dropped")
        there_were = {"sessions": len(before.sessions), **tunnels.ADOPTED}
        restart = Restart(kind, at, until, there_were, adopted, dropped, len(missing))
        self._found.restarts.append(restart)
        self._tell(f"{at:6.1f} s  {kind:<8}forwards after {until - at:.2f} s; {restart.complaint or 'all adopted'}")

    def _compare(self, now: Count) -> None:
        """Note how many sessions were opened since the last restart for which nobody had begun a connection."""
        if self._last is not None:
            there_are = self._found.restarts[-1].adopted["sessions"] + now.opened
            there_should_be = len(self._last.sessions) + now.begun - self._last.begun
            self._found.restarts[-1].opened_anew = there_are - there_should_be

    # -- the ways to restart it ----------------------------------------------------------------------------------

    def _kill(self) -> None:
        self._end(signal.SIGKILL, -signal.SIGKILL)
        self._start()

    def _stop(self) -> None:
        self._end(signal.SIGTERM, 0)
        self._start()

    def _upgrade(self) -> None:
        self._strangers.tell("go")
        self._place.fastmasq.run_command("upgrade")

    def _end(self, number: int, status: int) -> None:
        process = self._place.fastmasq.process
        process.send_signal(number)
        ended = process.wait()
        if ended != status:
            raise FastmasqError(f"fastmasq ended with {ended} after {signal.Signals(number).name}")

    def _start(self) -> None:
        self._strangers.tell("go")
        self._found.log += self._place.log()  # a start begins another
        self._place.fastmasq.install()

    # -- hosts ---------------------------------------------------------------------------------------------------

    def _begin(self, name: str, part: Callable[[Connection], Any]) -> Part:
        """Begin a part; return it once it says that it has begun."""
        begun = self._told(name, part)
        begun.answer()
        return begun

    def _told(self, name: str, part: Callable[[Connection], Any]) -> Part:
        return self._parts.begin_told(name, lambda orders: in_background(lambda: part(orders)))

    # -- looking on ----------------------------------------------------------------------------------------------

    def _count(self) -> Count:
        """Have the strangers wait, and count."""
        visits = self._strangers.ask("hold")
        opened = self._place.fastmasq.ask("status")["sessions"]["opened_total"]
        return Count(self._downloads + visits, opened, self._sessions())

    def _sessions(self) -> frozenset[tuple[str, ...]]:
        rows = self._place.fastmasq.ask("sessions", limit=ALL)["sessions"]
        return frozenset((row["protocol"], row["inside"], row["external"], row["remote"]) for row in rows)

    def _wait(self, seconds: float) -> None:
        self._leaks.look(self._now())
        time.sleep(max(0.0, seconds))

    def _now(self) -> float:
        return time.monotonic() - self._started
