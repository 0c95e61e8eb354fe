"""The two things tests put packets into, behind one face: the specification, and the packet path on its test harness.

A subject takes one packet at a time and shows what was seen: the packets that came out, and the drop counters that
moved. `difference` compares what was seen with what the specification says.
"""

from __future__ import annotations

import functools
import mmap
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from operator import attrgetter
from typing import Protocol

import numpy as np

from fastmasq.policy.chains import Match, Rule, RuleSet
from fastmasq.policy.redirects import Redirect, compile_redirects
from fastmasq.table.forward_table import ForwardTable
from fastmasq.table.timeouts import Timeouts
from tests.support.harness import Harness, address
from tests.support.model.nat import Model
from tests.support.model.state import (
    INSIDE,
    OUTSIDE,
    SECOND,
    Deliver,
    Drop,
    Forward,
    Observed,
    PortForward,
    Reply,
    Settings,
    Several,
    Verdict,
)
from tests.support.notation import show
from tests.support.packets import TCP, Malformed, decode, dotted, problems, reassemble

START_NS = 1_000 * SECOND


@dataclass(frozen=True)
class Seen:
    """What one packet caused: packets out as (link, packet), in order, and how far which drop counter moved."""

    out: list[tuple[str, bytes]] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{link}: {show(packet)}" for link, packet in self.out]
        lines += [f"drop {reason} {count}" for reason, count in self.drops.items()]
        return "; ".join(lines) or "nothing"


class Subject(Protocol):
    """A translator under test, alone in the HOWTO's network, with a clock that moves only by `advance`."""

    settings: Settings
    now_ns: int

    def advance(self, seconds: float) -> None: ...

    def send(self, link: str, packet: bytes) -> Seen: ...

    def drops(self) -> dict[str, int]:
        """Return how far which drop counter has moved by itself since the last packet: pieces that waited in vain."""

    def sessions(self) -> set[tuple[str, str, str, str, str]]:
        """Return (protocol, inside, external, remote, state) of every session; for ICMP the remote is an address."""


class ModelSubject:
    """The specification as a subject."""

    def __init__(self, settings: Settings | None = None, model: Model | None = None) -> None:
        self.settings = settings or Settings()
        self.model = model or Model(self.settings)
        self.now_ns = START_NS

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * SECOND)
        self.model.expire(self.now_ns)

    def send(self, link: str, packet: bytes) -> Seen:
        verdict = self.model.step(link, packet, self.now_ns)
        return Seen(
            [(one.link, packet) for one in each(verdict) for packet in packets_of(one)],
            drops_of(verdict),
        )

    def drops(self) -> dict[str, int]:
        orphans, self.model.orphans = self.model.orphans, 0
        return {"fragment_orphan": orphans} if orphans else {}

    def sessions(self) -> set[tuple[str, str, str, str, str]]:
        return sessions_of(self.model)


@functools.cache
def pool(ports: frozenset[int]) -> np.ndarray:
    return np.array(sorted(ports))


class PathSubject:
    """The packet path, on its harness; buffer: where its table is to live."""

    on: type[Harness] = Harness

    def __init__(self, settings: Settings | None = None, buffer: mmap.mmap | None = None) -> None:
        self.settings = settings = settings or Settings()
        self.harness = self.on(
            ports=pool(settings.ports),
            external=settings.outside_address,
            mtu={INSIDE: settings.inside_mtu, OUTSIDE: settings.outside_mtu},
            now_ns=START_NS,
            capacity=min(settings.sessions, 4096),
            filtering=settings.filtering,
            sessions_per_host=settings.sessions_per_host,
            ports_per_host=settings.ports_per_host,
            prefix=settings.prefix,
            timeouts=Timeouts(settings.tcp_established, settings.tcp_transitory, settings.udp, settings.icmp),
            buffer=buffer,
        )
        self.forwards = ForwardTable(self.harness.table, settings.half_open)
        for forward in settings.forwards:
            targets = [(address(host), port, weight) for host, port, weight in forward.targets]
            port_class = 0 if forward.protocol == TCP else 1
            self.forwards.place(address(settings.outside_address), port_class, forward.port, targets, _remotes(forward))
        redirects = [Redirect(protocol=one.protocol, host=one.host, source=one.source) for one in settings.redirects]
        self.harness.forwarder.set_renumbering(settings.renumbers)
        self.harness.forwarder.set_redirects(compile_redirects(redirects))
        self.harness.forwarder.carry_by_address(settings.by_address)
        if settings.programs:
            rules = RuleSet()
            for one in settings.programs:
                match = Match(protocol=one.protocol, destination_ports=((one.port, one.port),))
                rules.append("input", Rule(match=match, target="REDIRECT", redirect_port=one.program_port))
            self.harness.set_rule_set(rules)

    @property
    def now_ns(self) -> int:
        return self.harness.now_ns

    def advance(self, seconds: float) -> None:
        self.harness.advance(seconds)

    def send(self, link: str, packet: bytes) -> Seen:
        out = self.harness.send(link, packet)
        return Seen([(one.link, one.packet) for one in out], self.harness.drops())

    def drops(self) -> dict[str, int]:
        return self.harness.drops()

    def sessions(self) -> set[tuple[str, str, str, str, str]]:
        found = set()
        for row in self.harness.sessions():
            inside, external, remote = (endpoint(*row[end]) for end in ("inside", "external", "remote"))
            if row["protocol"] == "icmp":
                remote = dotted(row["remote"][0])
            found.add((row["protocol"], inside, external, remote, row["state"]))
        return found


def _remotes(forward: PortForward) -> list[tuple[int, int, int]]:
    """Return whom a forward is for as ForwardTable has it."""
    networks = ((IPv4Network(network), port) for network, port in forward.remotes)
    return [(int(network.network_address), int(network.netmask), port) for network, port in networks]


def endpoint(address: int, port: int) -> str:
    return f"{dotted(address)}:{port}"


def sessions_of(model: Model) -> set[tuple[str, str, str, str, str]]:
    found = set()
    for session in model.all_sessions():
        name = {1: "icmp", 6: "tcp", 17: "udp"}.get(session.protocol, "other")
        inside, external, remote = (endpoint(host, port or 0) for host, port in model.ends(session))
        shown = remote.partition(":")[0] if name == "icmp" else remote
        found.add((name, inside, external, shown, session.state))
    return found


# --- comparing -----------------------------------------------------------------------------------------------------


def observed(seen: Seen) -> Observed:
    """Return what the packet seen leaving shows of choices that are free, such as its new mapping's external port."""
    for _, packet in seen.out:
        try:
            decoded = decode(packet)
        except Malformed:
            return Observed()
        if not decoded.is_error:
            target = (decoded.destination, decoded.destination_port)
            return Observed(decoded.source_port, target, decoded.identification)
        return Observed(identification=decoded.identification)
    return Observed()


def each(verdict: Verdict) -> tuple[Forward | Reply | Deliver | Drop, ...]:
    return verdict.verdicts if isinstance(verdict, Several) else (verdict,)


def packets_of(verdict: Forward | Reply | Deliver | Drop) -> tuple[bytes, ...]:
    """Return the packets that leave by a verdict."""
    if isinstance(verdict, Forward):
        return verdict.packets
    return (verdict.packet,) if isinstance(verdict, Reply) else ()


def drops_of(verdict: Verdict) -> dict[str, int]:
    """Return how often which drop reason is counted by a verdict."""
    return dict(Counter(one.reason for one in each(verdict) if isinstance(one, (Reply, Drop))))


def difference(verdict: Verdict, seen: Seen) -> str | None:
    """Return how what was seen differs from what should have been, or None."""
    if isinstance(verdict, Several):
        return _pieces_difference(verdict, seen) or _drop_difference(drops_of(verdict), seen)
    if isinstance(verdict, Forward):
        return _forward_difference(verdict, seen) or _drop_difference({}, seen)
    if isinstance(verdict, Reply):
        return _reply_difference(verdict, seen) or _drop_difference({verdict.reason: 1}, seen)
    if seen.out:
        return f"expected nothing to leave ({verdict}), but saw {seen}"
    return _drop_difference({} if isinstance(verdict, Deliver) else {verdict.reason: 1}, seen)


def _drop_difference(expected: dict[str, int], seen: Seen) -> str | None:
    return None if seen.drops == expected else f"expected drops {expected or 'none'}, but saw {seen}"


def _pieces_difference(verdict: Several, seen: Seen) -> str | None:
    """Compare the pieces of a datagram that left, in order; or the answer to its first one."""
    answers = [one for one in verdict.verdicts if isinstance(one, Reply)]
    if answers:
        return _reply_difference(answers[0], seen)
    expected = [(one.link, packet) for one in verdict.verdicts for packet in packets_of(one)]
    return None if seen.out == expected else f"expected {Seen(expected)}, but saw {seen}"


def _forward_difference(verdict: Forward, seen: Seen) -> str | None:
    expected = "; ".join(f"{verdict.link}: {show(piece)}" for piece in verdict.packets)
    if any(link != verdict.link for link, _ in seen.out) or not seen.out:
        return f"expected {expected}, but saw {seen}"
    pieces = [packet for _, packet in seen.out]
    if len(verdict.packets) == 1:
        return None if pieces == list(verdict.packets) else f"expected {expected}, but saw {seen}"
    return fragment_difference(list(verdict.packets), pieces)


def fragment_difference(expected: list[bytes], pieces: list[bytes]) -> str | None:
    """Compare two ways of cutting one packet: the same whole, pieces no longer than the longest expected, in order."""
    longest = max(len(piece) for piece in expected)
    if any(len(piece) > longest for piece in pieces):
        return f"a piece is longer than {longest} octets"
    for piece in pieces:
        if decode(piece).options and decode(piece).offset:
            continue  # later pieces may leave out options or blank them
        if "IPv4 checksum" in problems(piece):
            return f"a piece has a wrong IPv4 checksum: {show(piece)}"
    try:
        same = reassemble(pieces) == reassemble(expected)
    except Malformed as error:
        return f"the pieces do not fit together: {error}"
    return None if same else f"expected the pieces of {show(reassemble(expected))}, but {show(reassemble(pieces))}"


def _reply_difference(verdict: Reply, seen: Seen) -> str | None:
    expected = f"{verdict.link}: {show(verdict.packet)}"
    if len(seen.out) != 1 or seen.out[0][0] != verdict.link:
        return f"expected the answer {expected}, but saw {seen}"
    return answer_difference(verdict.packet, seen.out[0][1])


def answer_difference(expected: bytes, answer: bytes) -> str | None:
    """Compare two answers of the gateway's own; TTL, type of service, identification and DF are up to it."""
    try:
        ours, theirs = decode(expected), decode(answer)
    except Malformed as error:
        return f"the answer is {error}"
    wrong = [problem for problem in problems(answer) if not problem.startswith("quote: ")]
    if wrong:
        return f"the answer has a wrong {', '.join(wrong)}: {show(answer)}"
    fixed = attrgetter("source", "destination", "protocol", "options", "kind", "code", "rest", "payload")
    return None if fixed(ours) == fixed(theirs) else f"expected the answer {show(expected)}, but {show(answer)}"
