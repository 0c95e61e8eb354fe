"""The figures of the benchmark: what each one is called, its unit, which way is better, and the goal it has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """The limit that fastmasq should keep: a multiple of the kernel's figure, or else a plain value."""

    limit: float
    relative: bool = True


@dataclass(frozen=True)
class Figure:
    """One line of the result. Its goal is the least where higher is better, and the most where lower is.

    A figure that relates a forwarder to itself has no baseline to be compared with.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool = True
    goal: Goal | None = None
    has_baseline: bool = True


@dataclass(frozen=True)
class Sample:
    """One value of a figure.

    loss is the share of the packets that were offered and did not arrive, drops the number that found a full queue or
    ring at the gateway; None where that is not known.
    """

    value: float
    loss: float | None = None
    drops: int | None = None
    note: str = ""


PACKETS_1 = Figure("packets_1", "60-byte UDP, 1 flow", "packets/s")
PACKETS_1000 = Figure("packets_1000", "60-byte UDP, 1000 flows", "packets/s", goal=Goal(1.15))
PACKETS_50000 = Figure("packets_50000", "60-byte UDP, 50 000 flows", "packets/s", goal=Goal(1.2))
PACKETS_LARGE = Figure("packets_large", "1500-byte UDP, 1000 flows", "packets/s")
LOSSLESS = Figure("lossless", "60-byte UDP, 1000 flows, no loss", "packets/s")
ANSWERED = Figure("answered", "60-byte UDP, 1000 flows, with answers", "answers/s")
SESSIONS = Figure("sessions", "new UDP sessions", "sessions/s", goal=Goal(1.0))
OVERLOAD = Figure(
    "overload", "at twice the saturating load", "of its best", goal=Goal(0.9, relative=False), has_baseline=False
)
PACKETS_RULES = {
    count: Figure(f"packets_rules_{count}", f"60-byte UDP, 1000 flows, {count} rules", "packets/s")
    for count in (10, 100, 1000)
}
SESSIONS_RULES = {
    count: Figure(f"sessions_rules_{count}", f"new UDP sessions, {count} rules", "sessions/s")
    for count in (10, 100, 1000)
}
TUNNELS = {
    (protocol, count): (
        Figure(f"{protocol}_{count}", f"60-byte {protocol.upper()}, {count} tunnel{'s' * (count > 1)}", "packets/s"),
        Figure(
            f"{protocol}_{count}_of_udp", "    of as many UDP flows", "of its UDP rate", goal=Goal(0.9, relative=False),
            has_baseline=False,
        ),
    )
    for protocol in ("gre", "esp")
    for count in (1, 10, 1000)
}  # fmt: skip
TCP_UP = Figure("tcp_up", "bulk TCP up", "bit/s", goal=Goal(0.8))
TCP_DOWN = Figure("tcp_down", "bulk TCP down", "bit/s", goal=Goal(0.8))
TCP_8 = Figure("tcp_8", "bulk TCP up, 8 streams", "bit/s", goal=Goal(0.8))
TCP_UP_COST = Figure("tcp_up_cost", "    processor time for a Gbit up", "ms", False)
TCP_DOWN_COST = Figure("tcp_down_cost", "    processor time for a Gbit down", "ms", False)
TCP_8_COST = Figure("tcp_8_cost", "    processor time for a Gbit, 8 streams", "ms", False)
TCP_UP_PLAIN = Figure("tcp_up_plain", "bulk TCP up, offloads off", "bit/s", goal=Goal(1.0))
TCP_DOWN_PLAIN = Figure("tcp_down_plain", "bulk TCP down, offloads off", "bit/s", goal=Goal(1.0))
TCP_8_PLAIN = Figure("tcp_8_plain", "bulk TCP up, 8 streams, offloads off", "bit/s", goal=Goal(1.0))
RTT_MEDIAN = Figure("rtt_median", "UDP round trip, median", "us", False, Goal(3.0))
RTT_99 = Figure("rtt_99", "UDP round trip, 99 %", "us", False, Goal(2.0))
RTT_APART_MEDIAN = Figure("rtt_apart_median", "UDP round trip, ends on two processors, median", "us", False)
RTT_APART_99 = Figure("rtt_apart_99", "UDP round trip, ends on two processors, 99 %", "us", False)
RTT_200US_MEDIAN = Figure("rtt_200us_median", "UDP round trip after 200 us of silence, median", "us", False)
RTT_200US_99 = Figure("rtt_200us_99", "UDP round trip after 200 us of silence, 99 %", "us", False)
RTT_10MS_MEDIAN = Figure("rtt_10ms_median", "UDP round trip after 10 ms of silence, median", "us", False)
RTT_10MS_99 = Figure("rtt_10ms_99", "UDP round trip after 10 ms of silence, 99 %", "us", False)
RTT_FIRST_MEDIAN = Figure("rtt_first_median", "first UDP round trip, after 10 ms of silence, median", "us", False)
RTT_FIRST_99 = Figure("rtt_first_99", "first UDP round trip, after 10 ms of silence, 99 %", "us", False)
RTT_LOADED_MEDIAN = Figure("rtt_loaded_median", "UDP round trip at 100 000 packets/s, median", "us", False)
RTT_LOADED_99 = Figure("rtt_loaded_99", "UDP round trip at 100 000 packets/s, 99 %", "us", False)
IDLE = Figure("idle", "processor time when idle", "% of a core", False, Goal(1.0, relative=False))
MEMORY = Figure("memory", "memory per session", "bytes", False, Goal(300, relative=False))
