"""One soak: starts hosts, attacks and faults when their time has come, looks on, and returns what it saw."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import psutil

from fastmasq.errors import FastmasqError
from tests.soak import attacks, ordinary
from tests.soak.faults import FAULTS
from tests.soak.leaks import Leaks
from tests.soak.parts import Part, Parts, in_background, noting_mishaps, start
from tests.soak.place import ORDINARY, Place
from tests.soak.plan import Act, make_plan
from tests.soak.verdict import Findings, Sample

WARM_S = 15.0  # before it begins: the hosts talk, and the table is filled
SETTLE_S = 2.0  # after its end
TURN_S = 0.05
SAMPLE_S = 1.0
LISTED = 200  # sessions of a host


def soak(place: Place, seed: int, seconds: float, tell: Callable[[str], None]) -> Findings:
    """Soak a place that is up for so long; `tell` gets a line for each fault, and each attack."""
    sides = {"inside": list(attacks.INSIDE), "outside": [*attacks.OUTSIDE, attacks.LOCAL]}
    plan = make_plan(seed, seconds, sides, {name: lasting.seconds for name, lasting in FAULTS.items()})
    found = Findings(seed, seconds, plan)
    with contextlib.closing(Leaks(place.lab.namespace("router"))) as leaks, Parts() as parts:
        started = time.monotonic() + WARM_S
        told = begin(parts, place, started)
        warm_up(place, started)
        Stage(place, started, found, leaks, tell).play()
        for part in told:
            part.tell("stop")
        found.pings, found.talks = ([each for each in part.answer() if each.at >= 0] for part in told)
    found.leaks = leaks.found
    found.log = place.log()
    return found


def warm_up(place: Place, until: float) -> None:
    """Have the table filled once: it begins with small indexes, and those that follow are no growth."""
    process = start(attacks.commit, "sources of a /8", "inside", place.lab.namespace("attacker"), 0, [], "")
    time.sleep(max(0.0, until - time.monotonic()))
    process.kill()
    process.join()


def begin(parts: Parts, place: Place, started: float) -> list[Part]:
    """Begin the ordinary hosts and their server; return those that tell how it went: pings and talks."""
    names = {host: place.lab.namespace(host) for host in ("inside", "second", "server")}
    parts.begin(lambda: ordinary.serve(names["server"]))
    pinging = parts.begin_told("hosts that ping", lambda orders: ordinary.ping_all(names, started, orders))
    talking = parts.begin_told(
        "hosts that talk", lambda orders: in_background(lambda: ordinary.talk_all(names, started, orders))
    )
    return [pinging, talking]


class Stage:
    """Plays the acts of a plan, each in its time, and takes a sample each second."""

    def __init__(
        self, place: Place, started: float, found: Findings, leaks: Leaks, tell: Callable[[str], None]
    ) -> None:
        self._place, self._started, self._found, self._leaks, self._tell = place, started, found, leaks, tell
        self._worker = _worker_of(place.pid)
        self._known: Sequence[dict[str, Any]] = ()

    def play(self) -> None:
        """Return when the time is over, or the process has ended."""
        coming = list(self._found.acts)
        going: list[tuple[float, contextlib.ExitStack]] = []
        next_sample = 0.0
        with contextlib.ExitStack() as whatever_goes_on:
            while (now := self._now()) < self._found.seconds:
                if not self._place.fastmasq.is_running():
                    self._found.mishaps.append(f"fastmasq ended after {now:.0f} s")
                    break
                with noting_mishaps(self._found.mishaps, self._started):
                    while going and going[0][0] <= now:
                        going.pop(0)[1].close()
                    while coming and coming[0].at <= now:
                        act = coming.pop(0)
                        stack = whatever_goes_on.enter_context(contextlib.ExitStack())
                        going = sorted([*going, (act.until, stack)], key=lambda each: each[0])
                        self._begin(act, stack)
                if now >= next_sample:
                    self._take_sample(now)
                    next_sample = now + SAMPLE_S
                time.sleep(TURN_S)
        time.sleep(SETTLE_S)
        self._take_sample(self._now())
        self._found.ring_drops = sum(link["ring_drops"] for link in self._status().get("links", ()))

    def _begin(self, act: Act, stack: contextlib.ExitStack) -> None:
        self._tell(f"{act.at:6.1f} s  {act.kind:<8}{act.name}")
        if act.kind == "fault":
            stack.enter_context(FAULTS[act.name].fault(self._place, Random(act.seed)))
            return
        host = "gateway" if act.name == attacks.LOCAL else {"inside": "attacker", "outside": "router"}[act.kind]
        process = start(
            attacks.commit, act.name, act.kind, self._place.lab.namespace(host), act.seed,
            self._sessions(Random(act.seed)), str(self._place.fastmasq.socket),
        )  # fmt: skip
        stack.callback(process.join)
        stack.callback(process.kill)

    def _sessions(self, random: Random) -> Sequence[dict[str, Any]]:
        """Return live sessions of some ordinary hosts; when nobody can ask, those of before.

        To list all of them takes memory that a forwarder does not have otherwise.
        """
        hosts_asked = [random.choice(addresses) for addresses in ORDINARY.values() for _ in range(2)]
        with contextlib.suppress(FastmasqError):
            answers = [self._place.fastmasq.ask("sessions", host=host, limit=LISTED) for host in hosts_asked]
            self._known = [each for answer in answers for each in answer["sessions"]]
        return self._known

    def _status(self) -> dict[str, Any]:
        with contextlib.suppress(FastmasqError):
            return self._place.fastmasq.ask("status")
        return {}

    def _take_sample(self, now: float) -> None:
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            resident = psutil.Process(self._place.pid).memory_info().rss
            descriptors = len(os.listdir(f"/proc/{self._place.pid}/fd"))
            self._found.samples.append(Sample(now, resident, descriptors, _waited_s(self._worker)))
        self._leaks.look(now)

    def _now(self) -> float:
        return time.monotonic() - self._started


def _worker_of(pid: int) -> Path:
    """Return the folder of the thread that moves packets: of all but the main one, that which has run longest."""
    threads = [thread for thread in Path(f"/proc/{pid}/task").iterdir() if thread.name != str(pid)]
    return max(threads, key=lambda thread: int((thread / "schedstat").read_text().split()[0]))


def _waited_s(thread: Path) -> float:
    """Return how long a thread has waited for a processor so far (Linux, Documentation/scheduler/sched-stats)."""
    return int((thread / "schedstat").read_text().split()[1]) / 1e9
