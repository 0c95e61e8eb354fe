"""What the tests' PPTP and IPsec hosts have in common: sockets on a host of a lab, and a thread that reads them."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from tests.support.lab_network import PATIENCE_S

Place = Callable[[], AbstractContextManager]  # `with place():` the thread lives where sockets are to be made


class Speaker:
    """One host at one address. Its thread runs from `start` to `close`, which ends and closes everything."""

    def __init__(self, place: Place, address: str) -> None:
        self.address = address
        self._place = place
        self._open = contextlib.ExitStack()
        self._selector = self._open.enter_context(selectors.DefaultSelector())
        self._thread = threading.Thread(target=self._serve, name=f"{type(self).__name__} {address}")
        self._failure: Exception | None = None
        self._over = False
        awake, self._wake = os.pipe()
        self._open.callback(os.close, awake)
        self._open.callback(os.close, self._wake)
        self._selector.register(awake, selectors.EVENT_READ, lambda: os.read(awake, 64))

    def start(self) -> None:
        self._thread.start()
        self._open.callback(self._join)

    def close(self) -> None:
        """Close everything. Raises what ended the thread too early: whoever spoke to it has broken the protocol."""
        self._open.close()
        if self._failure is not None:
            raise self._failure

    def is_alive(self) -> bool:
        """Return whether the thread still answers."""
        return self._thread.is_alive()

    def make_socket(self, kind: socket.SocketKind, protocol: int = 0, port: int = 0) -> socket.socket:
        """Return a socket of the host, bound to its address, that does not block."""
        with self._place():
            made = self.keep(socket.socket(socket.AF_INET, kind, protocol))
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((self.address, port))
        made.setblocking(False)
        return made

    def keep(self, made: socket.socket) -> socket.socket:
        """Have a socket closed with everything else; return it."""
        return self._open.enter_context(made)

    def read_with(self, readable: socket.socket, read: Callable[[], object]) -> None:
        """Have the thread call `read` whenever there is something to read."""
        self._selector.register(readable, selectors.EVENT_READ, read)
        os.write(self._wake, b"!")

    def read_no_more(self, readable: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(readable)

    def _serve(self) -> None:
        try:
            while not self._over:
                for key, _ in self._selector.select():
                    key.data()
        except Exception as failure:
            self._failure = failure

    def _join(self) -> None:
        self._over = True
        os.write(self._wake, b"!")
        self._thread.join()


@contextlib.contextmanager
def talking(*ends: Callable[[float], bool]) -> Iterator[None]:
    """Have pings go through tunnels, from each end one after the other, while the block runs; all must be answered."""
    over = threading.Event()
    failures: list[str] = []

    def talk(answers: Callable[[float], bool]) -> None:
        count = 1
        while answers(PATIENCE_S) and not over.is_set():
            count += 1
        if not over.is_set():
            failures.append(f"ping {count} of {answers.__self__} was not answered")

    threads = [threading.Thread(target=talk, args=(answers,)) for answers in ends]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
