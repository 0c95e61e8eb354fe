"""The processes that a soak consists of: each lives until it is told to end, and no longer than the soak."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from fastmasq.errors import FastmasqError, KernelError

_processes = multiprocessing.get_context("fork")


def start(life: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = _processes.Process(target=life, args=arguments, daemon=True)
    process.start()
    return process


def in_background(part: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a coroutine until SIGTERM, as the life of a process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(part())


async def told(orders: Connection) -> str:
    """Wait for an order, and return it."""
    loop = asyncio.get_running_loop()
    order = loop.create_future()
    loop.add_reader(orders.fileno(), lambda: order.done() or order.set_result(orders.recv()))
    try:
        return await order
    finally:
        loop.remove_reader(orders.fileno())


@contextlib.contextmanager
def noting_mishaps(mishaps: list[str], started: float) -> Iterator[None]:
    """Go on where fastmasq or the kernel refuses something, and note that; `started` is a monotonic time in seconds."""
    try:
        yield
    except (FastmasqError, OSError) as error:
        mishaps.append(f"at {time.monotonic() - started:.0f} s: {error}")


class Part:
    """One process that does what it is told, and answers."""

    def __init__(self, name: str, orders: Connection) -> None:
        self._name, self._orders = name, orders

    def tell(self, order: str) -> None:
        """Raises KernelError if it has ended."""
        try:
            self._orders.send(order)
        except OSError:
            raise self._ended() from None

    def answer(self) -> Any:
        """Wait for what it has to say. Raises KernelError if it has ended."""
        try:
            return self._orders.recv()
        except (EOFError, OSError):
            raise self._ended() from None

    def ask(self, order: str) -> Any:
        self.tell(order)
        return self.answer()

    def _ended(self) -> KernelError:
        return KernelError(f"{self._name} ended before they were told to; see what they said")


class Parts:
    """All of them; a context manager that ends them."""

    def __init__(self) -> None:
        self._running: list[BaseProcess] = []

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
            process.join()

    def begin(self, part: Callable[[], Coroutine[None, None, None]]) -> None:
        """Begin one that is told nothing."""
        self._running.append(start(in_background, part))

    def start(self, life: Callable[..., None], *arguments: Any) -> None:
        """Begin one that lives until it is killed."""
        self._running.append(start(life, *arguments))

    def begin_told(self, name: str, life: Callable[[Connection], None]) -> Part:
        """Begin one that is told what to do; name: who it is, in a complaint."""
        here, there = _processes.Pipe()
        self._running.append(start(life, there))
        there.close()
        return Part(name, here)
