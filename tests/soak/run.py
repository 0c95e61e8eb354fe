"""One soak: starts hosts, attacks and faults when their time has come, looks on, and returns what it saw."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import psutil

from fastmasq.errors import FastmasqError, KernelError
from fastmasq.lab import hosts
from tests.soak import attacks, ordinary
from tests.soak.faults import FAULTS
from tests.soak.place import ORDINARY, Place
from tests.soak.plan import Act, make_plan
from tests.soak.verdict import Findings, Sample
from tests.support.packets import to_address

WARM_S = 15.0  # before it begins: the hosts talk, and the table is filled
SETTLE_S = 2.0  # after its end
TURN_S = 0.05
SAMPLE_S = 1.0
LEAKS = 20  # are enough
LISTED = 200  # sessions of a host
PRIVATE = (("10.0.0.0", 8), ("172.16.0.0", 12), ("192.168.0.0", 16), ("169.254.0.0", 16))
SO_ATTACH_FILTER = 26
_LOAD, _AND, _EQUALS, _RETURN = 0x20, 0x54, 0x15, 0x06  # of a packet filter (Linux, filter.txt)
ETH_P_IP = 0x0800

_processes = multiprocessing.get_context("fork")


def soak(place: Place, seed: int, seconds: float, tell: Callable[[str], None]) -> Findings:
    """Soak a place that is up for so long; `tell` gets a line for each fault, and each attack."""
    sides = {"inside": list(attacks.INSIDE), "outside": [*attacks.OUTSIDE, attacks.LOCAL]}
    plan = make_plan(seed, seconds, sides, {name: lasting.seconds for name, lasting in FAULTS.items()})
    found = Findings(seed, seconds, plan)
    with contextlib.ExitStack() as stack:
        sniffer = stack.enter_context(_sniffer(place.lab.namespace("router")))
        started = time.monotonic() + WARM_S
        parts = Parts(place, started)
        stack.callback(parts.end)
        parts.begin()
        warm_up(place, started)
        Stage(place, started, found, sniffer, tell).play()
        found.pings, found.talks = ([each for each in noted if each.at >= 0] for noted in parts.results())
    found.log = place.log()
    return found


def warm_up(place: Place, until: float) -> None:
    """Have the table filled once: it begins with small indexes, and those that follow are no growth."""
    process = start(attacks.commit, "sources of a /8", "inside", place.lab.namespace("attacker"), 0, [], "")
    time.sleep(max(0.0, until - time.monotonic()))
    process.kill()
    process.join()


class Parts:
    """The ordinary hosts and their server: processes that end with this one."""

    def __init__(self, place: Place, started: float) -> None:
        self._place, self._started = place, started
        self._orders: list[Connection] = []
        self._running: list[BaseProcess] = []

    def begin(self) -> None:
        names = {host: self._place.lab.namespace(host) for host in ("inside", "second", "server")}
        self._running.append(start(ordinary.in_background, lambda: ordinary.serve(names["server"])))
        self._start(lambda orders: ordinary.ping_all(names, self._started, orders))
        self._start(lambda orders: ordinary.in_background(lambda: ordinary.talk_all(names, self._started, orders)))

    def results(self) -> list[Any]:
        """Have the hosts end; return what they have noted. Raises KernelError if one has ended before."""
        try:
            for orders in self._orders:
                orders.send("stop")
            return [orders.recv() for orders in self._orders]
        except (EOFError, OSError):
            raise KernelError("the ordinary hosts ended before they were told to; see what they said") from None

    def end(self) -> None:
        for process in self._running:
            process.kill()
            process.join()

    def _start(self, life: Callable[[Connection], None]) -> None:
        here, there = _processes.Pipe()
        self._orders.append(here)
        self._running.append(start(life, there))
        there.close()


def start(life: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = _processes.Process(target=life, args=arguments, daemon=True)
    process.start()
    return process


class Stage:
    """Plays the acts of a plan, each in its time, and takes a sample each second."""

    def __init__(
        self, place: Place, started: float, found: Findings, sniffer: socket.socket, tell: Callable[[str], None]
    ) -> None:
        self._place, self._started, self._found, self._sniffer, self._tell = place, started, found, sniffer, tell
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
                with self._noting_mishaps():
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
        while len(self._found.leaks) < LEAKS:
            try:
                packet = self._sniffer.recv(65_600)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # said once, when its link went down; it hears again
                    raise
                continue
            source, destination = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
            self._found.leaks.append(f"{source} to {destination}, protocol {packet[9]}, at {now:.0f} s")

    @contextlib.contextmanager
    def _noting_mishaps(self) -> Iterator[None]:
        try:
            yield
        except (FastmasqError, OSError) as error:
            self._found.mishaps.append(f"at {self._now():.0f} s: {error}")

    def _now(self) -> float:
        return time.monotonic() - self._started


def _worker_of(pid: int) -> Path:
    """Return the folder of the thread that moves packets: of all but the main one, that which has run longest."""
    threads = [thread for thread in Path(f"/proc/{pid}/task").iterdir() if thread.name != str(pid)]
    return max(threads, key=lambda thread: int((thread / "schedstat").read_text().split()[0]))


def _waited_s(thread: Path) -> float:
    """Return how long a thread has waited for a processor so far (Linux, Documentation/scheduler/sched-stats)."""
    return int((thread / "schedstat").read_text().split()[1]) / 1e9


def _sniffer(namespace: str) -> socket.socket:
    """Return a socket that hears what comes to eth0 with a private source (RFC 1918, RFC 3927)."""
    code = []
    for number, (network, length) in enumerate(PRIVATE):
        mask = 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF
        found = 3 * (len(PRIVATE) - number) - 2  # how far it is to the last line
        code += [(_LOAD, 0, 0, 12), (_AND, 0, 0, mask), (_EQUALS, found, 0, to_address(network))]
    code += [(_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFF)]
    lines = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    with hosts.entered(namespace):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(code), ctypes.addressof(lines)))
    made.setblocking(False)
    made.bind(("eth0", ETH_P_IP))
    return made
