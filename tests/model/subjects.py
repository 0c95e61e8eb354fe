"""The two things tests put packets into, behind one face: the specification, and the packet path on its test harness.

A subject takes one packet at a time and shows what was seen: the packets that came out, and the drop counters that
moved. `difference` compares what was seen with what the specification says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol

from fastmasq.table.timeouts import Timeouts
from tests.cases.notation import show
from tests.model.nat import Model
from tests.model.state import INSIDE, OUTSIDE, SECOND, Deliver, Drop, Forward, Reply, Settings, Verdict
from tests.support.harness import Harness
from tests.support.packets import Malformed, decode, dotted, problems, reassemble

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
        if isinstance(verdict, Forward):
            return Seen([(verdict.link, piece) for piece in verdict.packets])
        if isinstance(verdict, Reply):
            return Seen([(verdict.link, verdict.packet)], {verdict.reason: 1})
        if isinstance(verdict, Drop):
            return Seen(drops={verdict.reason: 1})
        return Seen()

    def sessions(self) -> set[tuple[str, str, str, str, str]]:
        return sessions_of(self.model)


class PathSubject:
    """The packet path, on its harness."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings = settings or Settings()
        self.harness = Harness(
            ports=sorted(settings.ports),
            external=settings.outside_address,
            mtu={INSIDE: settings.inside_mtu, OUTSIDE: settings.outside_mtu},
            now_ns=START_NS,
            capacity=min(settings.sessions, 4096),
            filtering=settings.filtering,
            sessions_per_host=settings.sessions_per_host,
            ports_per_host=settings.ports_per_host,
            timeouts=Timeouts(settings.tcp_established, settings.tcp_transitory, settings.udp, settings.icmp),
        )

    @property
    def now_ns(self) -> int:
        return self.harness.now_ns

    def advance(self, seconds: float) -> None:
        self.harness.advance(seconds)

    def send(self, link: str, packet: bytes) -> Seen:
        out = self.harness.send(link, packet)
        return Seen([(one.link, one.packet) for one in out], self.harness.drops())

    def sessions(self) -> set[tuple[str, str, str, str, str]]:
        found = set()
        for row in self.harness.sessions():
            inside, external, remote = (endpoint(*row[end]) for end in ("inside", "external", "remote"))
            if row["protocol"] == "icmp":
                remote = dotted(row["remote"][0])
            found.add((row["protocol"], inside, external, remote, row["state"]))
        return found


def endpoint(address: int, port: int) -> str:
    return f"{dotted(address)}:{port}"


def sessions_of(model: Model) -> set[tuple[str, str, str, str, str]]:
    found = set()
    for session in model.sessions():
        mapping, (remote, remote_id) = session.mapping, session.remote
        name = {1: "icmp", 6: "tcp", 17: "udp"}[mapping.protocol]
        inside = endpoint(mapping.address, mapping.id)
        external = endpoint(model.external, mapping.external_id)
        shown = dotted(remote) if name == "icmp" else endpoint(remote, remote_id)
        found.add((name, inside, external, shown, session.state))
    return found


# --- comparing -----------------------------------------------------------------------------------------------------


def observed_port(seen: Seen) -> int | None:
    """Return the external port, or identifier, that the packet seen leaving has: of its new mapping, if it made one."""
    for _, packet in seen.out:
        try:
            decoded = decode(packet)
        except Malformed:
            return None
        if not decoded.is_error:
            return decoded.source_port
    return None


def difference(verdict: Verdict, seen: Seen) -> str | None:
    """Return how what was seen differs from what should have been, or None."""
    if isinstance(verdict, Forward):
        return _forward_difference(verdict, seen) or _drop_difference({}, seen)
    if isinstance(verdict, Reply):
        return _reply_difference(verdict, seen) or _drop_difference({verdict.reason: 1}, seen)
    if seen.out:
        return f"expected nothing to leave ({verdict}), but saw {seen}"
    return _drop_difference({} if isinstance(verdict, Deliver) else {verdict.reason: 1}, seen)


def _drop_difference(expected: dict[str, int], seen: Seen) -> str | None:
    return None if seen.drops == expected else f"expected drops {expected or 'none'}, but saw {seen}"


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
