"""So many hosts, one IPsec server, and a gateway between them: a simulation that knows whose each SPI really is.

The trackers are the real ones; time, latency, loss and everybody's behaviour are made up here, from a seed. Each host
negotiates phase 1 and a quick mode when it starts, then asks somebody behind the server something now and then, who
takes longer to answer than the server's own ISAKMP. It repeats itself as TCP does, and acknowledges every other answer
at once. The other side also speaks first at times. Both sides rekey at random and use the new SA at once. A host whose
question stays unanswered through all repetitions negotiates again, as a user would.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from fastmasq.trackers.vpn.ipsec import Ipsec
from fastmasq.trackers.vpn.isakmp import QUICK_MODE, IpsecSettings
from fastmasq.wire.tunnels import NO_COOKIE, Isakmp

SECOND = 1_000_000_000
_MASQ, _REMOTE, _FIRST_HOST = 0xC8C8C8C8, 0xC7000001, 0x0A000101
_MAIN_MODE = 2
_TRIES = 5  # of a question: after 1, 2, 4, 8 and 16 s
_GIVES_UP_AFTER = 60 * SECOND  # dead peer detection, or a user


@dataclass(frozen=True)
class Scenario:
    """What happens. Times in nanoseconds; gaps are means of exponential distributions, `jitter` a share of `rtt`."""

    hosts: int
    rtt: int = SECOND // 20
    loss: float = 0.0  # of packets beyond the gateway, each way
    behind: int = 0  # mean of what an answer through an SA takes longer than one of ISAKMP
    spread: int = 600 * SECOND  # hosts start at random within this time
    burst: int = 1  # hosts that start at the same moment
    duration: int = 2400 * SECOND
    rekey: int = 600 * SECOND
    question_gap: int = 15 * SECOND
    push_gap: int = 30 * SECOND
    quiet: float = 0.0  # of what reaches an inside host and would be answered at once, the share that is not
    jitter: float = 0.2
    inside_delay: int = SECOND // 1000
    seed: int = 1


@dataclass(eq=False)
class Sa:
    """A pair of SPIs, what each end thinks of it, and what became of it at the gateway."""

    owner: Host
    ispi: int
    ospi: int
    host_ready: bool = False
    remote_ready: bool = False
    sent: int = 0
    received: int = 0
    tried: int | None = None  # when its first packet reached the gateway from inside
    passed: int | None = None  # when one was let through
    wrong: bool = False  # given to another host alone, at some time
    astray: bool = False  # the last of its packets was
    packets: int = 0  # from outside
    copies: int = 0  # of them, sent to several hosts
    missed: int = 0  # of them, not sent to their host


@dataclass(eq=False)
class Host:
    """An inside host: its phase 1, its SAs, and the questions it waits for answers to."""

    address: int
    cookies: tuple[bytes, bytes]
    sas: list[Sa] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    negotiating: bool = False

    def newest(self, ready: str) -> Sa | None:
        return next((sa for sa in reversed(self.sas) if getattr(sa, ready)), None)


class Simulation:
    """Runs one scenario with one set of tracker settings."""

    def __init__(self, scenario: Scenario, settings: IpsecSettings) -> None:
        self.scenario = scenario
        self.chance = random.Random(scenario.seed)
        self.gateway = Ipsec(settings)
        self.now = 0
        self.sas: list[Sa] = []
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._last: dict[tuple[int, bool], int] = {}  # (host, outbound): latest arrival

    def run(self) -> list[Sa]:
        """Return all SAs that came about, in order."""
        moment = 0
        for number in range(self.scenario.hosts):
            cookies = self.chance.randbytes(8), self.chance.randbytes(8)
            host = Host(_FIRST_HOST + number, cookies)
            if number % self.scenario.burst == 0:
                moment = self.chance.randrange(self.scenario.spread)
            self.at(moment, lambda host=host: self.start(host))
        while self._events and self._events[0][0] <= self.scenario.duration:
            self.now, _, action = heapq.heappop(self._events)
            action()
        return self.sas

    def at(self, delay: int, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + delay, self._order, action))

    # -- negotiating ---------------------------------------------------------------------------------------------------

    def start(self, host: Host) -> None:
        def done() -> None:
            self.negotiate(host, outbound=True)
            self.at(self.gap(self.scenario.question_gap), lambda: self.ask_again_and_again(host))
            self.at(self.gap(self.scenario.push_gap), lambda: self.push_again_and_again(host))
            self.at(self.gap(self.scenario.rekey), lambda: self.rekey(host))

        self.message(host, 2, 0, _MAIN_MODE, 0, True, lambda step: done() if step == 1 else None)

    def rekey(self, host: Host) -> None:
        self.negotiate(host, outbound=self.chance.random() < 0.5)
        self.at(self.gap(self.scenario.rekey), lambda: self.rekey(host))

    def negotiate(self, host: Host, *, outbound: bool) -> None:
        """Go through a quick mode: the initiator may use the SA when it sends the third message, the other then."""
        if host.negotiating:
            return
        host.negotiating = True
        sa = Sa(host, self.spi(), self.spi())

        def progress(step: int) -> None:
            initiator, responder = ("host_ready", "remote_ready") if outbound else ("remote_ready", "host_ready")
            if step == 1:
                host.sas.append(sa)
                self.sas.append(sa)
                setattr(sa, initiator, True)
            elif step == 2:
                setattr(sa, responder, True)
                host.negotiating = False
            if sa.host_ready and not sa.sent:
                self.at(self.scenario.inside_delay, lambda: self.ask(host))  # behind the third message

        self.message(host, 3, 0, QUICK_MODE, self.chance.randrange(1 << 32), outbound, progress)

    def message(
        self,
        host: Host,
        steps: int,
        step: int,
        exchange: int,
        number: int,
        outbound: bool,
        arrived: Callable[[int], None],
    ) -> None:
        """Send one message of an exchange, again every second while it is lost; its arrival sends the next one."""
        again = lambda: self.message(host, steps, step, exchange, number, outbound, arrived)  # noqa: E731
        cookies = host.cookies if exchange == QUICK_MODE or step else (host.cookies[0], NO_COOKIE)
        header = Isakmp(*cookies, 0x10, exchange, 1, number, 100)

        def arrive() -> None:
            arrived(step)
            if step + 1 < steps:
                self.message(host, steps, step + 1, exchange, number, not outbound, arrived)

        def from_inside() -> None:
            passed = self.gateway.isakmp_outbound(host.address, _MASQ, _REMOTE, header, self.now).to
            lost = not passed or self.lost()
            self.at(SECOND if lost else self.way(host, outbound=True), again if lost else arrive)

        def from_outside() -> None:
            passed = host.address in self.gateway.isakmp_inbound(_REMOTE, _MASQ, header, self.now).to
            self.at(self.scenario.inside_delay if passed else SECOND, arrive if passed else again)

        if outbound:
            self.at(self.scenario.inside_delay, from_inside)
        elif self.lost():
            self.at(SECOND, again)
        else:
            self.at(self.way(host, outbound=False), from_outside)

    # -- traffic -------------------------------------------------------------------------------------------------------

    def ask_again_and_again(self, host: Host) -> None:
        self.ask(host)
        self.at(self.gap(self.scenario.question_gap), lambda: self.ask_again_and_again(host))

    def push_again_and_again(self, host: Host) -> None:
        self.to_host(host, None)
        self.at(self.gap(self.scenario.push_gap), lambda: self.push_again_and_again(host))

    def ask(self, host: Host) -> None:
        self._order += 1
        question = self._order
        host.open.add(question)
        self.try_question(host, question, 0)

    def try_question(self, host: Host, question: int, tries: int) -> None:
        if question not in host.open:
            return
        if tries == _TRIES:
            host.open.discard(question)
            self.at(_GIVES_UP_AFTER, lambda: self.negotiate(host, outbound=True))
            return
        self.to_remote(host, question)
        self.at(SECOND << tries, lambda: self.try_question(host, question, tries + 1))

    def to_remote(self, host: Host, question: int | None) -> None:
        """Send on the host's newest SA; None is the answer to what the server said first."""
        sa = host.newest("host_ready")
        if sa is None:
            return
        sa.sent += 1
        sequence = sa.sent

        def at_gateway() -> None:
            sa.tried = self.now if sa.tried is None else sa.tried
            decision = self.gateway.esp_outbound(host.address, _MASQ, _REMOTE, sa.ospi, sequence, self.now)
            if not decision.to:
                return
            sa.passed = self.now if sa.passed is None else sa.passed
            if not self.lost():
                self.at(self.way(host, outbound=True), at_remote)

        def at_remote() -> None:
            if sa.remote_ready and question is not None:
                behind = self.gap(self.scenario.behind) if self.scenario.behind else 0
                self.at(behind, lambda: self.to_host(host, question))

        self.at(self.scenario.inside_delay, at_gateway)

    def to_host(self, host: Host, question: int | None) -> None:
        """Send on the server's newest SA with a host; None begins a conversation of the server's."""
        sa = host.newest("remote_ready")
        if sa is None:
            return
        sa.received += 1
        sequence = sa.received
        if self.lost():
            return

        def at_gateway() -> None:
            decision = self.gateway.esp_inbound(_REMOTE, _MASQ, sa.ispi, sequence, self.now)
            sa.astray = decision.row is not None and decision.to != (host.address,)
            sa.wrong |= sa.astray
            sa.packets += 1
            sa.copies += len(decision.to) > 1
            sa.missed += host.address not in decision.to
            if host.address in decision.to and sa.host_ready:
                self.at(self.scenario.inside_delay, at_host)

        def at_host() -> None:
            first = question in host.open
            host.open.discard(question)
            answers = question is None or (first and question % 2)  # half of the conversations are TCP's
            if answers and not (self.scenario.quiet and self.chance.random() < self.scenario.quiet):
                self.to_remote(host, None)

        self.at(self.way(host, outbound=False), at_gateway)

    # -- chance --------------------------------------------------------------------------------------------------------

    def spi(self) -> int:
        return self.chance.randrange(256, 1 << 32)

    def gap(self, mean: int) -> int:
        return round(self.chance.expovariate(1 / mean))

    def lost(self) -> bool:
        return self.chance.random() < self.scenario.loss

    def way(self, host: Host, *, outbound: bool) -> int:
        """Return the time from the gateway to the server, or back; packets of a host do not overtake each other."""
        half = self.scenario.rtt / 2
        arrival = self.now + round(half + self.chance.expovariate(1 / (half * self.scenario.jitter)))
        self._last[host.address, outbound] = max(arrival, self._last.get((host.address, outbound), 0))
        return self._last[host.address, outbound] - self.now
