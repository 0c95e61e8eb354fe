"""A numbered stream of datagrams through a lab's gateway, 1000 a second, and the many sessions that live beside it."""

from __future__ import annotations

import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastmasq.lab import hosts
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from fastmasq.wire.numbers import UDP

_PORT = 9000
_EVERY_S = 0.001
_FIRST_PORT, _PORTS = 1024, 60_000
_AT_ONCE, _PAUSE_S = 500, 0.01  # so that no ring overflows
_FIRST_S = 1.0  # after the first datagram, for the next hop to become known


class Stream:
    """Numbers that inside sends to the server, and when each arrived, by `time.perf_counter`."""

    def __init__(self, lab: Lab) -> None:
        with hosts.entered(lab.namespace("server")):
            self._far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._far.bind((SERVER_ADDRESS, _PORT))
        self._far.settimeout(0.5)
        with hosts.entered(lab.namespace("inside")):
            self._near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.arrived: list[tuple[int, float]] = []
        self._is_over = False
        self._threads = [threading.Thread(target=job) for job in (self._receive, self._send)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        number, due = 0, time.perf_counter()
        while not self._is_over:
            self._near.sendto(struct.pack("!I", number), (SERVER_ADDRESS, _PORT))
            number, due = number + 1, due + _EVERY_S
            time.sleep(max(0.0, due - time.perf_counter()))

    def _receive(self) -> None:
        while not self._is_over:
            try:
                datagram = self._far.recv(64)
            except TimeoutError:
                continue
            self.arrived.append((struct.unpack("!I", datagram)[0], time.perf_counter()))

    def end(self) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()
        self._near.close()
        self._far.close()


@contextmanager
def carried(prefix: str, sessions: int) -> Iterator[tuple[Fastmasq, Stream]]:
    """Have a stream go through a fastmasq in a lab meanwhile, which so many sessions have been opened in beside it."""
    with (
        Lab(prefix, "direct") as lab,
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        Fastmasq(lab, _settings(sessions, folder)) as fastmasq,
        _flowing(lab) as stream,
    ):
        _open_sessions(lab, sessions)
        yield fastmasq, stream


@contextmanager
def _flowing(lab: Lab) -> Iterator[Stream]:
    """Have a stream flow meanwhile."""
    stream = Stream(lab)
    try:
        yield stream
    finally:
        stream.end()


def _settings(sessions: int, folder: str) -> str:
    """Return the head of a configuration by which one inside host may have so many sessions, kept in a folder."""
    capacity = max(100_000, sessions + 1000)
    return (
        f"[limits]\nsessions = {capacity}\nsessions_per_host = {capacity}\nports_per_host = 65535\n"
        f'new_sessions_per_host = "0/s"\nprefix = 0\n[state]\ndirectory = "{folder}"\n'
    )


def _open_sessions(lab: Lab, sessions: int) -> None:
    """Open so many sessions by a datagram each: from _PORTS ports of the inside host to as many remotes as it takes."""
    with (
        hosts.entered(lab.namespace("inside")),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw,
    ):
        for number in range(sessions):
            if number == 1:
                time.sleep(_FIRST_S)
            remote, port = divmod(number, _PORTS)
            raw.sendto(struct.pack("!HHHH", _FIRST_PORT + port, 10_000 + remote, 8, 0), (SERVER_ADDRESS, UDP))
            if number % _AT_ONCE == _AT_ONCE - 1:
                time.sleep(_PAUSE_S)
