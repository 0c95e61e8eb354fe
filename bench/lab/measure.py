"""The measurements: each takes a forwarder that forwards, puts a load on it, and returns samples of its figures."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fastmasq.errors import FastmasqError, KernelError
from fastmasq.lab import services
from fastmasq.lab.topology import SERVER_ADDRESS
from fastmasq.wire.numbers import ESP, GRE
from fastmasq_bench.flows import LARGE_FRAME, REFLECT_PORT, SMALL_FRAME, Flows, Tunnels
from fastmasq_bench.lab import figures
from fastmasq_bench.lab.figures import Figure, Sample
from fastmasq_bench.lab.forwarders import Forwarder, busy_seconds
from fastmasq_bench.lab.network import Network
from fastmasq_bench.lab.traffic import Delivery, Traffic, best_delivery, lossless_delivery
from fastmasq_bench.round_trip import time_round_trips

ONE = Flows(hosts=1, ports=1)
THOUSAND = Flows(hosts=10)
FIFTY_THOUSAND = Flows(hosts=250, remotes=2)
THOUSAND_ANSWERED = Flows(hosts=10, remote_port=REFLECT_PORT)

BACKGROUND_RATE = 100_000
MEMORY_RATE = 200_000
TUNNEL_START_RATE = 1000  # a second: a tracker looks at each

_OVERLOAD = 2.0
_ENOUGH = 0.95
_IPERF_PATIENCE_S = 20
_READY_S = 5.0
_SETTLE_S = 0.5


@dataclass(frozen=True)
class Lengths:
    """How long things are measured."""

    warm_s: float
    window_s: float
    best_steps: int
    lossless_steps: int
    tcp_s: int
    idle_s: float
    round_trips: int
    pauses_s: float  # how long questions are asked that have pauses before them
    session_remotes: int  # to how many remote hosts sessions are opened for their rate, 25 000 to each
    memory_remotes: int  # the same for their memory; 40 fill fastmasq's table


FULL = Lengths(0.2, 0.8, 5, 9, tcp_s=3, idle_s=5, round_trips=20_000, pauses_s=5, session_remotes=32, memory_remotes=40)
QUICK = Lengths(0.1, 0.3, 4, 7, tcp_s=1, idle_s=2, round_trips=5_000, pauses_s=2, session_remotes=12, memory_remotes=40)


@dataclass(frozen=True)
class Bench:
    """A forwarder at work on the network, and how long to measure it."""

    network: Network
    forwarder: Forwarder
    lengths: Lengths

    def wait_until_ready(self) -> None:
        """Return when a packet has been to the server and back. Raises KernelError if that takes too long."""
        deadline = time.monotonic() + _READY_S
        with self.network.echo_client() as client:
            while time_round_trips(client, 1)[0] < 0:
                if time.monotonic() > deadline:
                    raise KernelError(f"{self.forwarder.name}: no UDP packet came back from the lab's server")

    def drops(self) -> int:
        """Return the packets that found a full queue or ring on their way into the gateway from inside."""
        return self.network.gateway.dropped() + self.forwarder.ring_drops()

    def offer(self, traffic: Traffic, rate: float) -> Delivery:
        """Send for a while at a rate; 0 is as fast as it goes."""
        before = self.drops()
        delivery = traffic.offer(rate, self.lengths.warm_s, self.lengths.window_s)
        return replace(delivery, drops=self.drops() - before)

    def offer_sessions(self, traffic: Traffic, rate: float) -> Delivery:
        """Send one packet of every flow into an empty table."""
        self.forwarder.empty()
        self.wait_until_ready()
        before = self.drops()
        delivery = traffic.offer_once(rate)
        return replace(delivery, drops=self.drops() - before)

    def best(self, traffic: Traffic) -> Delivery:
        """Return the most of this traffic that is delivered at any rate."""
        return best_delivery(partial(self.offer, traffic), self.lengths.best_steps)


@dataclass(frozen=True)
class Measurement:
    """A function with the figures that its samples belong to, in the same order."""

    name: str
    figures: tuple[Figure, ...]
    measure: Callable[[Bench], tuple[Sample, ...]]


def source_alone(network: Network, lengths: Lengths) -> float:
    """Return the packets per second that the source makes when the gateway drops them at once."""
    with network.dropping_gateway(), Traffic(network, THOUSAND, arrival=network.gateway) as traffic:
        return traffic.offer(0, lengths.warm_s, lengths.window_s).delivered


def _packets(bench: Bench, flows: Flows, length: int = SMALL_FRAME) -> tuple[Sample]:
    with Traffic(bench.network, flows, length) as traffic:
        return (_sample(bench.best(traffic)),)


def _lossless(bench: Bench) -> tuple[Sample]:
    with Traffic(bench.network, THOUSAND) as traffic:
        return (_sample(lossless_delivery(partial(bench.offer, traffic), bench.lengths.lossless_steps)),)


def _answered(bench: Bench) -> tuple[Sample]:
    with Traffic(bench.network, THOUSAND_ANSWERED, arrival=bench.network.inside) as traffic:
        return (_sample(bench.best(traffic)),)


def _sessions(bench: Bench) -> tuple[Sample]:
    """Send packets of which every one opens a session."""
    with Traffic(bench.network, Flows(hosts=250, remotes=bench.lengths.session_remotes)) as traffic:
        return (_sample(best_delivery(partial(bench.offer_sessions, traffic), bench.lengths.best_steps)),)


def _tunnels(bench: Bench, protocol: int, count: int) -> tuple[Sample, Sample]:
    """Measure so many tunnels once both their ways are known, and as many UDP flows right after."""
    tunnels = Tunnels(protocol, count)
    with Traffic(bench.network, tunnels) as traffic:
        traffic.offer_once(TUNNEL_START_RATE)
        bench.network.answer(tunnels)
        time.sleep(_SETTLE_S)
        through = bench.best(traffic)
    with Traffic(bench.network, Flows(hosts=min(count, 10), ports=max(1, count // 10))) as traffic:
        udp = bench.best(traffic)
    return _sample(through), Sample(through.delivered / udp.delivered)


def _with_rules(bench: Bench, rules: int, measure: Callable[[Bench], tuple[Sample, ...]]) -> tuple[Sample, ...]:
    """Measure behind so many rules of the forward chain that do not match."""
    with bench.forwarder.ruled(rules):
        bench.wait_until_ready()
        return measure(bench)


def _overload(bench: Bench) -> tuple[Sample]:
    """Offer twice the best rate, or as near to it as this machine comes with one source or with two."""
    with Traffic(bench.network, THOUSAND) as traffic:
        best = bench.best(traffic).delivered
        delivery = bench.offer(traffic, _OVERLOAD * best)
    if delivery.offered < _ENOUGH * _OVERLOAD * best:
        with Traffic(bench.network, THOUSAND, processors=(0, 1)) as traffic:
            delivery = max(delivery, bench.offer(traffic, _OVERLOAD * best), key=lambda one: one.offered)
    note = f"offered {delivery.offered / best:.2f} times its best"
    return (Sample(delivery.delivered / best, delivery.loss, delivery.drops, note),)


def _bulk_tcp(bench: Bench, arguments: tuple[str, ...] = ()) -> tuple[Sample, Sample]:
    """Measure the rate, and the time that all processors were busy with a Gbit: client, server and all between them."""
    before = busy_seconds()
    received = _iperf(bench, arguments)
    spent = busy_seconds() - before
    return Sample(received["bits_per_second"]), Sample(1000 * spent / (8 * received["bytes"] / 1e9))


def _bulk_tcp_plain(bench: Bench, arguments: tuple[str, ...] = ()) -> tuple[Sample]:
    """Measure the rate with all offloads of the lab's interfaces off."""
    bench.network.lab.offloads(False)
    try:
        return (Sample(_iperf(bench, arguments)["bits_per_second"]),)
    finally:
        bench.network.lab.offloads(True)


def _iperf(bench: Bench, arguments: tuple[str, ...]) -> dict[str, float]:
    """Return what iperf3 says was received, in all. Raises FastmasqError with what it said if nothing was."""
    seconds = bench.lengths.tcp_s
    command = ["iperf3", "-c", SERVER_ADDRESS, "-p", str(services.IPERF_PORT), "-J", "-t", str(seconds), *arguments]
    lab = bench.network.lab
    server = services.start_iperf(lab)
    try:
        done = lab.exec("inside", command, capture_output=True, text=True, timeout=seconds + _IPERF_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise FastmasqError(f"{bench.forwarder.name}: iperf3 hung for {_IPERF_PATIENCE_S} s") from None
    finally:
        server.stop()
    report = json.loads(done.stdout or "{}")
    if done.returncode:
        raise FastmasqError(f"{bench.forwarder.name}: iperf3: {report.get('error', done.stderr.strip())}")
    return report["end"]["sum_received"]


def _round_trip(bench: Bench, pause_ns: int = 0) -> tuple[Sample, Sample]:
    count = round(bench.lengths.pauses_s * 1e9 / pause_ns) if pause_ns else bench.lengths.round_trips
    before = bench.drops()
    with bench.network.echo_client() as client:
        time_round_trips(client, count // 10, pause_ns)
        times = time_round_trips(client, count, pause_ns)
    return _percentiles(bench, times, bench.drops() - before)


def _first_round_trip(bench: Bench, pause_ns: int) -> tuple[Sample, Sample]:
    """Ask each question from a port of its own, so that it opens a session."""
    before = bench.drops()
    times = []
    for _ in range(round(bench.lengths.pauses_s * 1e9 / pause_ns)):
        with bench.network.echo_client() as client:
            times += list(time_round_trips(client, 1, pause_ns))
    return _percentiles(bench, np.array(times), bench.drops() - before)


def _percentiles(bench: Bench, times: np.ndarray, drops: int) -> tuple[Sample, Sample]:
    """Return median and 99 % of round trips in nanoseconds, of which negative ones had no answer."""
    answered = times[times >= 0]
    if not len(answered):
        raise FastmasqError(f"{bench.forwarder.name}: no echo came back")
    loss = 1 - len(answered) / len(times)
    median, high = (Sample(float(value) / 1000, loss, drops) for value in np.percentile(answered, (50, 99)))
    return median, high


def _round_trip_apart(bench: Bench) -> tuple[Sample, Sample]:
    """Bind client and server to two processors: like hosts of their own, they cannot hand a processor to each other."""
    everywhere = os.sched_getaffinity(0)
    bench.network.place_echo({1})
    os.sched_setaffinity(0, {0})
    try:
        return _round_trip(bench)
    finally:
        os.sched_setaffinity(0, everywhere)
        bench.network.place_echo(everywhere)


def _round_trip_loaded(bench: Bench) -> tuple[Sample, Sample]:
    with Traffic(bench.network, THOUSAND) as traffic, traffic.background(BACKGROUND_RATE):
        time.sleep(bench.lengths.warm_s)
        return _round_trip(bench)


def _idle(bench: Bench) -> tuple[Sample, ...]:
    time.sleep(_SETTLE_S)
    started, before = time.monotonic(), bench.forwarder.processor_seconds()
    if before is None:
        return ()
    time.sleep(bench.lengths.idle_s)
    used = bench.forwarder.processor_seconds() - before
    return (Sample(100 * used / (time.monotonic() - started)),)


def _memory(bench: Bench) -> tuple[Sample]:
    """Open as many sessions as the table has room for."""
    flows = Flows(hosts=250, remotes=bench.lengths.memory_remotes)
    before = bench.forwarder.memory_without_sessions()
    bench.wait_until_ready()
    with Traffic(bench.network, flows) as traffic:
        delivery = traffic.offer_once(MEMORY_RATE)
        grown = bench.forwarder.memory() - before
    sessions = flows.count * (1 - delivery.loss)
    if not sessions:
        raise FastmasqError(f"{bench.forwarder.name}: no session was opened")
    return (Sample(grown / sessions, delivery.loss, note=f"{sessions:.0f} sessions"),)


def _sample(delivery: Delivery) -> Sample:
    return Sample(delivery.delivered, delivery.loss, delivery.drops)


MEASUREMENTS = (
    Measurement("packets-1", (figures.PACKETS_1,), partial(_packets, flows=ONE)),
    Measurement("packets-1000", (figures.PACKETS_1000,), partial(_packets, flows=THOUSAND)),
    Measurement("packets-50000", (figures.PACKETS_50000,), partial(_packets, flows=FIFTY_THOUSAND)),
    Measurement("packets-large", (figures.PACKETS_LARGE,), partial(_packets, flows=THOUSAND, length=LARGE_FRAME)),
    Measurement("lossless", (figures.LOSSLESS,), _lossless),
    Measurement("answered", (figures.ANSWERED,), _answered),
    Measurement("sessions", (figures.SESSIONS,), _sessions),
    *(
        Measurement(
            f"packets-rules-{count}",
            (figure,),
            partial(_with_rules, rules=count, measure=partial(_packets, flows=THOUSAND)),
        )
        for count, figure in figures.PACKETS_RULES.items()
    ),
    *(
        Measurement(f"sessions-rules-{count}", (figure,), partial(_with_rules, rules=count, measure=_sessions))
        for count, figure in figures.SESSIONS_RULES.items()
    ),
    *(
        Measurement(f"{name}-{count}", both, partial(_tunnels, protocol={"gre": GRE, "esp": ESP}[name], count=count))
        for (name, count), both in figures.TUNNELS.items()
    ),
    Measurement("overload", (figures.OVERLOAD,), _overload),
    Measurement("tcp-up", (figures.TCP_UP, figures.TCP_UP_COST), _bulk_tcp),
    Measurement("tcp-down", (figures.TCP_DOWN, figures.TCP_DOWN_COST), partial(_bulk_tcp, arguments=("-R",))),
    Measurement("tcp-8", (figures.TCP_8, figures.TCP_8_COST), partial(_bulk_tcp, arguments=("-P", "8"))),
    Measurement("tcp-up-plain", (figures.TCP_UP_PLAIN,), _bulk_tcp_plain),
    Measurement("tcp-down-plain", (figures.TCP_DOWN_PLAIN,), partial(_bulk_tcp_plain, arguments=("-R",))),
    Measurement("tcp-8-plain", (figures.TCP_8_PLAIN,), partial(_bulk_tcp_plain, arguments=("-P", "8"))),
    Measurement("rtt", (figures.RTT_MEDIAN, figures.RTT_99), _round_trip),
    Measurement("rtt-200us", (figures.RTT_200US_MEDIAN, figures.RTT_200US_99), partial(_round_trip, pause_ns=200_000)),
    Measurement("rtt-10ms", (figures.RTT_10MS_MEDIAN, figures.RTT_10MS_99), partial(_round_trip, pause_ns=10_000_000)),
    Measurement(
        "rtt-first", (figures.RTT_FIRST_MEDIAN, figures.RTT_FIRST_99), partial(_first_round_trip, pause_ns=10_000_000)
    ),
    Measurement("rtt-apart", (figures.RTT_APART_MEDIAN, figures.RTT_APART_99), _round_trip_apart),
    Measurement("rtt-loaded", (figures.RTT_LOADED_MEDIAN, figures.RTT_LOADED_99), _round_trip_loaded),
    Measurement("idle", (figures.IDLE,), _idle),
    Measurement("memory", (figures.MEMORY,), _memory),
)
