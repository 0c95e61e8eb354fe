"""Readers that share what may be done in a tick: no more than that, and all of it in time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from fastmasq.control.pace import TICK_S, Pace

MOST = 3


class Reading:
    """Two sockets, with who sends to them, and when what was read of which."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ends: list[tuple[socket.socket, socket.socket]]) -> None:
        self.loop = loop
        self.pace = Pace(loop, MOST)
        self.near, self.far = zip(*ends, strict=True)
        self.read: list[tuple[int, float]] = []
        self.wanted = 0

    def begin(self, number: int) -> None:
        self.pace.begin(self.near[number], partial(self._read, number))

    def _read(self, number: int) -> None:
        while self.pace.is_left:
            try:
                self.near[number].recv(1)
            except BlockingIOError:
                return
            self.pace.count()
            self.read.append((number, self.loop.time()))
            if len(self.read) == self.wanted:
                self.loop.stop()

    def until(self, count: int) -> list[float]:
        """Run until so many things have been read; return when each was."""
        self.wanted = count
        self.loop.run_forever()
        return [when for _, when in self.read]


@pytest.fixture
def reading() -> Iterator[Reading]:
    loop = asyncio.new_event_loop()
    with ExitStack() as undo:
        undo.callback(loop.close)
        ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        for each in (each for pair in ends for each in pair):
            undo.callback(each.close)
            each.setblocking(False)
        made = Reading(loop, ends)
        undo.callback(made.pace.close)
        yield made


def test_no_more_than_a_ticks_work_is_done_in_a_tick_by_all_together(reading: Reading) -> None:
    for number in (0, 1):
        reading.begin(number)
        for _ in range(MOST):
            reading.far[number].send(b"?")
    when = reading.until(2 * MOST)
    assert when[MOST] - when[0] >= TICK_S
    assert sorted(number for number, _ in reading.read) == [0] * MOST + [1] * MOST


def test_who_begins_while_all_is_done_waits_for_the_next_tick(reading: Reading) -> None:
    reading.begin(0)
    for _ in range(MOST):
        reading.far[0].send(b"?")
    reading.until(MOST)
    reading.far[1].send(b"?")
    reading.begin(1)
    when = reading.until(MOST + 1)
    assert when[-1] - when[0] >= TICK_S


def test_who_has_ended_is_asked_no_more(reading: Reading) -> None:
    for number in (0, 1):
        reading.begin(number)
    for _ in range(MOST):
        reading.far[0].send(b"?")
    reading.until(MOST)
    reading.pace.end(reading.near[1])
    for number in (1, 0):
        reading.far[number].send(b"?")
    reading.until(MOST + 1)
    assert reading.read[-1][0] == 0
