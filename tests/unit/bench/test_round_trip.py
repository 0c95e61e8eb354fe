"""Round trips are timed from the question on: a pause before it is none of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fastmasq_bench.round_trip import time_round_trips

QUESTIONS, PAUSE_NS = 10, 20_000_000


@pytest.fixture
def client() -> Iterator[socket.socket]:
    """Return a socket whose other end gives everything back."""
    asking, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def echo() -> None:
        while datagram := answering.recv(64):
            answering.send(datagram)

    thread = threading.Thread(target=echo)
    thread.start()
    with asking, answering:
        yield asking
        asking.send(b"")
        thread.join()


def test_a_pause_is_before_each_question_and_not_in_its_time(client: socket.socket) -> None:
    started = time.monotonic_ns()
    times = time_round_trips(client, QUESTIONS, PAUSE_NS)
    assert time.monotonic_ns() - started >= QUESTIONS * PAUSE_NS
    assert len(times) == QUESTIONS and 0 < min(times) < PAUSE_NS
