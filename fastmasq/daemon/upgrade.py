"""Upgrade: another program takes the place of this one while packets are forwarded, or this one goes on.

Control methods, with parameters and result:

    upgrade {"program": "/usr/bin/fastmasq",  optional; else the file that this one was started from
             "force": true}                   optional; also if our sessions are lost thereby
     -> {"process": 4711}                     what was started to take our place

    upgrade.state {}
     -> {"process": 4700, "why_not": ""}      who answers, and why the last upgrade has come to nothing

The new one is given our arguments, so it reads the configuration anew, as any start does. While it starts all goes on.
What happens then is told in handover.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from msgspec import Struct

from fastmasq import program
from fastmasq.clock import now_ns
from fastmasq.daemon.confirmation import Confirmation
from fastmasq.daemon.handover import Ended, Silent, Successor, Word
from fastmasq.daemon.notify import Notifier
from fastmasq.daemon.policy import read_parameters
from fastmasq.daemon.state import State
from fastmasq.errors import FastmasqError, KernelError

log = logging.getLogger("fastmasq.engine")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""Those that a forwarder reacts to."""

START_S = 30.0  # for the new one to be ready
ANSWER_S = 0.1  # for clients who have come already to be answered by us
STEP_S = 5.0  # for each step of the handover; and
SESSION_S = 20e-6  # for each session to be adopted, ten times what it takes
BEAT_S = 1.0  # between signs of life meanwhile
_INSTEAD = "; restart it, or upgrade with --force, and they are lost"


@dataclass(frozen=True)
class Succession:
    """How a program is started in our place, and what becomes of us then.

    arguments: of its command line. environment: what its differs in from ours. supervisor: the process that started
    us, and will go on with it; 0 without one. give_way: ends us, when all is that process's.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    supervisor: int
    give_way: Callable[[int], NoReturn]


class Running(Protocol):
    """What is upgraded: the engine."""

    loop: asyncio.AbstractEventLoop
    notifier: Notifier
    confirmation: Confirmation
    state: State | None

    def finish(self, seconds: float) -> None:
        """Begin nothing new with clients for so long."""

    def stand_still(self) -> tuple[Word, list[int]]:
        """Leave to a successor what only one can have; return the word `host`, and the descriptors that go with it.

        The worker goes on. Nothing else may be done afterwards but `rest` and `go_on`.
        """

    def rest(self) -> Word:
        """Have nobody move packets, as soon as the batch in hand is done; return the word `table`."""

    def go_on(self) -> None:
        """Go on after `stand_still`, and `rest` if it came to that, since the successor has failed."""


class _Wanted(Struct, forbid_unknown_fields=True):
    program: str | None = None
    force: bool = False


class Upgrade:
    """The upgrade of a forwarder, if one is under way."""

    def __init__(self, engine: Running, succession: Succession) -> None:
        self._engine = engine
        self._succession = succession
        self._successor: Successor | None = None
        self._may_lose = False
        self._why_not = ""

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], object]]:
        """Return the control methods."""
        return {"upgrade": self.begin, "upgrade.state": self._tell}

    def begin(self, params: dict[str, Any]) -> dict[str, Any]:
        """Answer the control method: start the new program. Raises FastmasqError, and nothing has changed then."""
        wanted = read_parameters("upgrade", params, _Wanted)
        engine = self._engine
        if self._successor is not None:
            raise KernelError(f"an upgrade is under way already: process {self._successor.pid} is starting")
        if engine.state is None:
            raise KernelError("what only observes is not upgraded; start it again")
        if waiting := engine.confirmation.describe(now_ns()):
            raise KernelError(f"{waiting['what']} waits for `fastmasq confirm`; confirm it first, or let it go")
        if engine.state.lacking and not wanted.force:
            raise KernelError(f"sessions cannot be handed over: {engine.state.lacking}{_INSTEAD}")
        arguments = self._succession.arguments
        command = [wanted.program, *arguments] if wanted.program else program.command(*arguments)
        environment = {**os.environ, **engine.notifier.environment(), **self._succession.environment}
        self._successor = Successor(command, environment)
        self._may_lose, self._why_not = wanted.force, ""
        log.info("upgrading: process %d starts, %s", self._successor.pid, command[0])
        engine.loop.add_reader(self._successor.fileno(), self._hear)
        self._patience = engine.loop.call_later(START_S, self._give_up, f"it is not ready after {START_S:g} s")
        return {"process": self._successor.pid}

    def _tell(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"process": os.getpid(), "why_not": self._why_not}

    def react(self) -> None:
        """Do what a signal asks for."""
        try:
            self.begin({})
        except FastmasqError as error:
            log.error("not upgraded: %s", error)

    def abandon(self) -> None:
        """Have no upgrade under way: we end."""
        if self._successor is not None:
            self._give_up("the old one ends")

    def _hear(self) -> None:
        """The new one is ready, or says why it will not be."""
        try:
            complaint = self._complaint(self._successor.expect("ready", 0))
        except Ended as ending:
            complaint = str(ending)
        if complaint:
            self._give_up(complaint)
            return
        self._patience.cancel()
        self._engine.finish(2 * ANSWER_S)
        self._patience = self._engine.loop.call_later(ANSWER_S, self._hand_over)

    def _complaint(self, ready: Word) -> str:
        """Return why our sessions would be lost, if that is not to be."""
        ours = str(self._engine.state.path or "")
        if self._may_lose:
            return ""
        if ready.why:
            return f"sessions cannot be handed over: {ready.why}{_INSTEAD}"
        if ready.file != ours:
            return f"sessions cannot be handed over: ours are in {ours}, and it looks for {ready.file}{_INSTEAD}"
        return ""

    def _hand_over(self) -> None:
        """Have the new one take our place, and end; or go on, if it does not.

        Nothing else is done in this thread meanwhile, and signals wait: for who comes out of it.
        """
        engine, successor = self._engine, self._successor
        with signals_held():
            try:
                host, descriptors = engine.stand_still()
                patience_s = STEP_S + host.sessions * SESSION_S
                successor.tell(host, descriptors)
                self._expect("waits", patience_s)
                successor.tell(engine.rest())
                self._expect("begins", patience_s)
            except Exception as error:
                self._give_up(str(error))
                engine.go_on()
                if not isinstance(error, Ended):
                    raise
                return
            if not self._succession.supervisor:
                engine.notifier.hand_over(successor.pid)
            self._succession.give_way(successor.pid)

    def _expect(self, said: str, patience_s: float) -> None:
        """Wait for a word of the new one, and let the service manager know that we live. Raises Ended."""
        until = self._engine.loop.time() + patience_s
        while True:
            self._engine.notifier.alive()
            try:
                self._successor.expect(said, BEAT_S)
                return
            except Silent:
                if self._engine.loop.time() > until:
                    raise

    def _give_up(self, why: str) -> None:
        """Have the new one end, and say why."""
        successor, self._successor = self._successor, None
        self._patience.cancel()
        self._engine.loop.remove_reader(successor.fileno())
        successor.end()
        self._engine.state.remove_successors()
        self._why_not = why
        log.error("not upgraded: %s", why)


@contextmanager
def signals_held() -> Iterator[None]:
    """Have signals wait; threads and programs that are started in here never get them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
