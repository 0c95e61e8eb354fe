"""A load on the network: offer it at some rate, count what arrives, and search for the best rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastmasq_bench.flows import SMALL_FRAME, Flows, Tunnels
from fastmasq_bench.lab.network import SOURCE_PROCESSOR, Counter, Network

NO_LOSS = 0.001  # the share of lost packets up to which a rate counts as free of loss
SATURATED = 0.01  # the share of lost packets from which on a higher rate is not tried

_LONGEST_S = 60.0
_STILL_S = 0.05
_DRAIN_S = 1.0


@dataclass(frozen=True)
class Delivery:
    """Packets per second that were offered and that arrived, and the share that was lost in between.

    drops is the number of packets that found a full queue or ring at the gateway.
    """

    offered: float
    delivered: float
    loss: float
    drops: int = 0


@dataclass(frozen=True)
class _Moment:
    time: float
    offered: int
    arrived: int

    def until(self, later: _Moment, end: _Moment | None = None) -> Delivery:
        """Return the rates from here to a later moment; the loss is that up to the end, when nothing is under way."""
        seconds = later.time - self.time
        offered, arrived = later.offered - self.offered, later.arrived - self.arrived
        loss = 1 - (end.arrived - self.arrived) / max(1, end.offered - self.offered)
        return Delivery(offered / seconds, arrived / seconds, max(0.0, loss))


class Traffic:
    """Sources of the same flows on the inside host, one bound to each processor; a context manager.

    arrival is the counter that their packets, or the answers to them, should reach.
    """

    def __init__(
        self,
        network: Network,
        flows: Flows | Tunnels,
        length: int = SMALL_FRAME,
        processors: tuple[int, ...] = (SOURCE_PROCESSOR,),
        arrival: Counter | None = None,
    ) -> None:
        self._packets = flows.count
        self._arrival = arrival or network.server
        frames = flows.frames(network.gateway_mac, length)
        self._sources = {processor: network.source(frames, queue) for queue, processor in enumerate(processors)}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *_: object) -> None:
        for source in self._sources.values():
            source.stop()
        self._join()
        for source in self._sources.values():
            source.close()

    def offer(self, rate: float, warm_s: float, window_s: float) -> Delivery:
        """Send at this rate in all, 0 as fast as the sources go; the figures are those of the window, after warm_s."""
        self._start(rate, warm_s + window_s)
        time.sleep(warm_s)
        first = self._now()
        time.sleep(window_s)
        last = self._now()
        self._join()
        return first.until(last, self._at_rest())

    def offer_once(self, rate: float) -> Delivery:
        """Send one packet of every flow; the rates are those until the last one is sent."""
        first = self._now()
        self._start(rate, _LONGEST_S, self._packets)
        self._join()
        return first.until(self._now(), self._at_rest())

    @contextmanager
    def background(self, rate: float) -> Iterator[None]:
        """Send at this rate as long as the context lasts."""
        self._start(rate, _LONGEST_S)
        try:
            yield
        finally:
            for source in self._sources.values():
                source.stop()
            self._join()

    def _start(self, rate: float, seconds: float, packets: int = 0) -> None:
        share = rate / len(self._sources)
        self._threads = [
            threading.Thread(target=source.run, args=(seconds, share, packets, processor))
            for processor, source in self._sources.items()
        ]
        for thread in self._threads:
            thread.start()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _now(self) -> _Moment:
        offered = sum(source.offered for source in self._sources.values())
        return _Moment(time.monotonic(), offered, self._arrival.received())

    def _at_rest(self) -> _Moment:
        """Return the counts when the last packet has arrived: when nothing has for a while."""
        deadline = time.monotonic() + _DRAIN_S
        now = self._now()
        while time.monotonic() < deadline:
            time.sleep(_STILL_S)
            before, now = now, self._now()
            if now.arrived == before.arrived:
                break
        return now


def best_delivery(offer: Callable[[float], Delivery], steps: int) -> Delivery:
    """Return the most that is delivered at any rate.

    A forwarder may deliver less the more it is offered. So, unless it delivers all that can be offered, bisect between
    what it then delivers and what it was offered for the knee, and take the best of all tries.
    """
    best = offer(0)
    low, high = best.delivered, best.offered
    if best.loss < SATURATED:
        return best
    for _ in range(steps):
        rate = (low + high) / 2
        delivery = offer(rate)
        best = max(best, delivery, key=lambda one: one.delivered)
        if delivery.loss < SATURATED:
            low = rate
        else:
            high = rate
    return best


def lossless_delivery(offer: Callable[[float], Delivery], steps: int) -> Delivery:
    """Return the highest rate without loss, by bisection; all zeros if even the lowest one tried had losses."""
    best = Delivery(0, 0, 0)
    delivery = offer(0)
    low, high = 0.0, delivery.offered
    for _ in range(steps):
        if delivery.loss < NO_LOSS:
            best = max(best, delivery, key=lambda one: one.delivered)
            low = delivery.offered
        else:
            high = min(high, delivery.offered)
        if high - low < high / 100:
            break
        delivery = offer((low + high) / 2)
    return best
