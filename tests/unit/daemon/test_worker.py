"""The worker's loop over memory rings: it moves packets, sleeps, wakes, asks for next hops, and ends when told to."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator

import pytest

from fastmasq.daemon.worker import Worker
from fastmasq.ring.packet_socket import open_sender, open_tap
from fastmasq.ring.ring import RxRing, TxBatch
from tests.support.harness import STATION_MAC, Harness
from tests.support.namespaces import Namespace, join
from tests.support.packets import udp

PATIENCE_S = 10.0
HERE, THERE = ("10.0.0.2", 4000), ("199.0.0.1", 53)
NEXT_HOP = 0xC8C8C801


class Running:
    """A worker in its thread. Nothing wakes it for a memory ring but `wake`, as for a link that has been attached."""

    def __init__(self, busy_poll_ns: int) -> None:
        self.harness = Harness(now_ns=time.monotonic_ns())
        self.worker = Worker(self.harness.forwarder, busy_poll_ns)
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()

    def inject(self, packet: bytes) -> None:
        with self.harness.forwarder.locked():
            self.harness.inject("inside", packet)
        self.worker.wake()

    def received(self) -> int:
        with self.harness.forwarder.locked():
            return self.harness.forwarder.traffic(0)["rx_packets"]

    def wait_until(self, count: int) -> None:
        until = time.monotonic() + PATIENCE_S
        while self.received() < count and time.monotonic() < until:
            time.sleep(0.001)
        assert self.received() == count

    def resolve(self) -> None:
        """Tell the next hop, and have the worker look again, as the daemon does."""
        with self.harness.forwarder.locked():
            assert self.harness.forwarder.wanted_hops() == [(1, NEXT_HOP)]
            self.harness.forwarder.set_neighbour(1, NEXT_HOP, STATION_MAC["outside"])
        self.worker.wake()

    def sent(self) -> list[bytes]:
        with self.harness.forwarder.locked():
            return [frame[14:] for _, frame in self.harness.senders["outside"].pop()]

    def next_sent(self) -> list[bytes]:
        """Return what is sent next, waiting for it."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            sent = self.sent()
            if sent:
                return sent
        return []

    def end(self) -> None:
        self.worker.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), "the worker does not end"


@pytest.fixture(params=[0, 50_000, 1_000_000_000], ids=["sleeps-at-once", "watches", "watches-long"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    made = Running(request.param)
    yield made
    made.end()
    made.worker.close()


def test_it_ends_when_told_to_from_its_sleep_or_its_watch(running: Running) -> None:
    running.end()
    running.worker.stop()


def test_a_worker_stopped_before_it_runs_does_not_begin() -> None:
    harness = Harness()
    worker = Worker(harness.forwarder)
    worker.stop()
    harness.inject("inside", udp(HERE, THERE))
    worker.run()
    assert harness.rings["inside"].pending()
    worker.close()


def test_it_is_woken_to_look_again(running: Running) -> None:
    for count in range(1, 6):
        running.inject(udp(HERE, THERE, bytes([count])))
        running.wait_until(count)


def test_it_asks_for_a_next_hop_and_sends_when_it_is_known(running: Running) -> None:
    assert select.select([running.worker.notify], [], [], 0)[0] == []
    packet = udp(HERE, THERE, b"first")
    running.inject(packet)
    assert select.select([running.worker.notify], [], [], PATIENCE_S)[0], "the daemon is not told"
    os.eventfd_read(running.worker.notify)
    assert running.sent() == []
    running.resolve()
    assert running.next_sent() == [udp(("200.200.200.200", 4000), THERE, b"first", ttl=63)]
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(running.worker.notify)  # it may have asked again before it was answered
    running.inject(udp(HERE, THERE, b"second"))
    assert running.next_sent() == [udp(("200.200.200.200", 4000), THERE, b"second", ttl=63)]
    assert select.select([running.worker.notify], [], [], 0)[0] == [], "it goes on asking"


def test_time_passes_while_no_packet_does(running: Running) -> None:
    """It wakes by itself to end sessions: this one was opened when its last tick was over a minute ago."""
    long_ago = time.monotonic_ns() - 59_500_000_000
    with running.harness.forwarder.locked():
        row = running.harness.table.open(1, 0x0A000002, 77, 0xC7000001, 8, long_ago)
    running.worker.wake()
    until = time.monotonic() + PATIENCE_S
    while running.harness.table.sessions["state"][row] and time.monotonic() < until:
        time.sleep(0.01)
    assert running.harness.table.counts()["expired_total"] == 1


def test_under_load_nothing_is_lost_and_the_order_is_kept(running: Running) -> None:
    """Frames one by one, as fast as Python can: it pauses between turns for them to gather, and takes all.

    The first waits for its next hop; those that come after it is known must not overtake it.
    """
    running.inject(udp(HERE, THERE))
    assert select.select([running.worker.notify], [], [], PATIENCE_S)[0]
    running.resolve()
    running.wait_until(1)
    sent: list[bytes] = []
    for number in range(1, 2000):
        running.inject(udp(HERE, THERE, number.to_bytes(2, "big")))
        if number % 50 == 0:
            running.wait_until(number + 1)
            sent += running.sent()
    running.wait_until(2000)
    sent += running.sent()
    assert [packet[28:] for packet in sent] == [b"", *(number.to_bytes(2, "big") for number in range(1, 2000))]


@pytest.mark.machine
@pytest.mark.parametrize("mode", ["v2", "v3", "socket"])
def test_a_link_that_goes_down_leaves_the_worker_asleep(mode: str) -> None:
    """The error of its socket is taken off, so that waiting for the ring still waits; then frames come again."""
    here, there = Namespace(), Namespace()
    join(here, "eth0", there, "eth0")
    harness = Harness()
    worker = Worker(harness.forwarder, 0)
    with here.entered():
        ring, sender = RxRing(open_tap("eth0", mode)), TxBatch(open_sender("eth0"))
    harness.forwarder.attach(0, ring, sender)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        here.ip("link set eth0 down")
        here.ip("link set eth0 up")
        before = time.thread_time_ns(), time.process_time_ns()
        time.sleep(0.5)
        spent = time.process_time_ns() - before[1] - (time.thread_time_ns() - before[0])
        assert spent < 250_000_000, "it does not sleep"
        there.python(
            "import socket; s = socket.socket(17, 3); s.bind(('eth0', 0)); s.send(bytes(12) + b'\\x08\\x00')"
        ).wait()
        until = time.monotonic() + PATIENCE_S
        while not harness.forwarder.traffic(0)["rx_packets"] and time.monotonic() < until:
            time.sleep(0.01)
        assert harness.forwarder.traffic(0)["rx_packets"] == 1
    finally:
        worker.stop()
        thread.join(PATIENCE_S)
        worker.close()
        harness.forwarder.attach(0, None, None)
        ring.close()
        sender.close()
        here.remove()
        there.remove()
