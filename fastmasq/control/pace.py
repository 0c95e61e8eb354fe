"""Sockets of a loop that together get so much work done in a tick and no more, whoever sends to them, and however much.

Once a tick's work is done the loop asks none of them until the next tick: what comes meanwhile waits in the sockets, or
is lost there, and costs nothing here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

TICK_S = 0.1


class Pace:
    """Has readers of a loop do at most `most` things in a tick, all together."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop = loop
        self._most = most
        self._left = most
        self._readers: dict[socket.socket, Callable[[], None]] = {}
        self._tick: asyncio.TimerHandle | None = None

    def begin(self, reader: socket.socket, action: Callable[[], None]) -> None:
        """Do this whenever there is something to read, which is to ask `is_left` before each thing, and `count` it."""
        self._readers[reader] = action
        if self.is_left:
            self._loop.add_reader(reader, action)

    def end(self, reader: socket.socket) -> None:
        """Ask a socket no more."""
        if self._readers.pop(reader, None) is not None:
            self._loop.remove_reader(reader)

    @property
    def is_left(self) -> bool:
        """Whether anything may still be done in this tick."""
        return self._left > 0

    def count(self) -> None:
        """Note that one thing is being done."""
        if self._tick is None:
            self._tick = self._loop.call_later(TICK_S, self._begin_tick)
        self._left -= 1
        if not self.is_left:
            for reader in self._readers:
                self._loop.remove_reader(reader)

    def _begin_tick(self) -> None:
        was_done = not self.is_left
        self._tick, self._left = None, self._most
        if was_done:
            for reader, action in self._readers.items():
                self._loop.add_reader(reader, action)

    def close(self) -> None:
        """Ask none of them any more."""
        for reader in list(self._readers):
            self.end(reader)
        if self._tick is not None:
            self._tick.cancel()
