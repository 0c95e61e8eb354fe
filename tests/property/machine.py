"""The state machine that drives a translator and the specification with the same traffic and time, and compares them.

After every packet the two must agree on the packets out, to the octet, on the verdict and on the drop counter that
moved; after every step also on the sessions that are open. Time stands still while packets pass and moves in between,
never to less than `SLACK` after a session's end: a timer wheel may be late by one of its ticks, and only by that.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.cases.notation import show
from tests.model import tcp
from tests.model.nat import Model
from tests.model.state import INSIDE, OUTSIDE, SECOND, Session, Settings
from tests.model.subjects import START_NS, Subject, difference, observed_port, sessions_of
from tests.property import traffic
from tests.support import packets
from tests.support.packets import BAD, ICMP, TCP, UDP, dotted

SLACK = 1 * SECOND
FEW_PORTS = frozenset((*range(600, 603), *range(1024, 1030)))


def with_session(*protocols: int, state: str | None = None) -> Callable:
    """Let a rule run only while there is a session for `pick_session` to pick."""
    return precondition(lambda machine: bool(machine.sessions(*protocols, state=state)))


def near(*numbers: int | None) -> st.SearchStrategy[int]:
    """Sequence numbers mostly at, sometimes near, and rarely far from those given."""
    known = [number for number in numbers if number is not None] or [0]
    at = st.sampled_from(known)
    beside = st.tuples(at, st.sampled_from([-1, 1, -40, 200, -70_000, 2**30, -(2**30) - 1])).map(sum)
    return st.one_of(at, at, at, beside, traffic.numbers).map(lambda number: number % 2**32)


class Comparison(RuleBasedStateMachine):
    """Subclasses say which translator, and with which settings."""

    settings = Settings(ports=FEW_PORTS, outside_mtu=576, inside_mtu=600)

    def make_subject(self) -> Subject:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(self.settings)
        self.subject = self.make_subject()
        self.now_ns = START_NS

    def teardown(self) -> None:
        """Let go of the subject: a machine lives until the garbage collector comes, and a path is large."""
        del self.subject

    def exchange(self, link: str, packet: bytes) -> None:
        note(f"{link}: {show(packet)}")
        seen = self.subject.send(link, packet)
        verdict = self.model.step(link, packet, self.now_ns, observed_port(seen))
        wrong = difference(verdict, seen)
        story = f"the packet in was {link}: {show(packet)}\n{packet.hex()}\nsessions:\n{self.model}"
        assert wrong is None, f"{wrong}\n{story}"

    def sessions(self, *protocols: int, state: str | None = None) -> list[Session]:
        sessions = [session for session in self.model.sessions() if session.mapping.protocol in protocols]
        return [session for session in sessions if state in (None, session.state)]

    def pick_session(self, data: st.DataObject, *protocols: int, state: str | None = None) -> Session:
        sessions = self.sessions(*protocols, state=state)
        return sessions[data.draw(st.integers(0, len(sessions) - 1), label="session")]

    @initialize(
        udp=traffic.udp_between(traffic.inside_endpoints, traffic.remote_endpoints),
        syns=st.lists(traffic.syns, max_size=3),
    )
    def begin(self, udp: bytes, syns: list[bytes]) -> None:
        """Open a few sessions, so that there is something to answer, probe and disturb."""
        for packet in (udp, *syns):
            self.exchange(INSIDE, packet)

    # -- time ---------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1, 10, 31, 61, 121, 241, 299, 301, 3600, 7441]))
    def wait(self, seconds: float) -> None:
        target = self.now_ns + round(seconds * SECOND)
        ends = [session.expires for session in self.model.sessions()]
        ends += [end for _, end in self.model.held_down.values()]
        for end in sorted(ends):
            if target - SLACK < end <= target:
                target = end + SLACK
        self.subject.advance((target - self.now_ns) / SECOND)
        self.now_ns = target
        self.model.expire(target)

    # -- traffic that opens, answers, and probes ----------------------------------------------------------------------

    @rule(packet=traffic.outbound())
    def from_inside(self, packet: bytes) -> None:
        self.exchange(INSIDE, packet)

    @rule(packet=traffic.inbound())
    def from_outside(self, packet: bytes) -> None:
        self.exchange(OUTSIDE, packet)

    @with_session(UDP, ICMP)
    @rule(data=st.data(), seed=traffic.payloads)
    def answer(self, data: st.DataObject, seed: bytes) -> None:
        """The remote of a session answers."""
        session = self.pick_session(data, UDP, ICMP)
        mapping, (remote, remote_id) = session.mapping, session.remote
        if mapping.protocol == UDP:
            packet = packets.udp((remote, remote_id), (self.model.external, mapping.external_id), seed)
        else:
            kind = {8: 0, 13: 14, 15: 16, 17: 18}[remote_id]
            packet = packets.ping(remote, self.model.external, mapping.external_id, kind=kind, payload=seed)
        self.exchange(OUTSIDE, packet)

    @with_session(UDP, TCP)
    @rule(data=st.data(), stranger=traffic.remote_endpoints, flags=traffic.flags)
    def stranger(self, data: st.DataObject, stranger: tuple[str, int], flags: str) -> None:
        """Somebody sends to a mapping, known to it or not."""
        mapping = self.pick_session(data, UDP, TCP).mapping
        external = (self.model.external, mapping.external_id)
        if mapping.protocol == UDP:
            self.exchange(OUTSIDE, packets.udp(stranger, external, b"knock"))
        else:
            self.exchange(OUTSIDE, packets.tcp(stranger, external, flags, seq=1))

    @with_session(UDP, ICMP)
    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        """The inside goes on with a session."""
        session = self.pick_session(data, UDP, ICMP)
        mapping, (remote, remote_id) = session.mapping, session.remote
        if mapping.protocol == UDP:
            packet = packets.udp((mapping.address, mapping.id), (remote, remote_id), b"more")
        else:
            packet = packets.ping(mapping.address, remote, mapping.id, kind=remote_id)
        self.exchange(INSIDE, packet)

    # -- TCP ----------------------------------------------------------------------------------------------------------

    @with_session(TCP)
    @rule(data=st.data(), direction=st.sampled_from([tcp.OUT, tcp.IN]), flags=traffic.flags, payload=traffic.payloads)
    def segment(self, data: st.DataObject, direction: str, flags: str, payload: bytes) -> None:
        """A segment of an open connection, its numbers mostly near those that matter."""
        session = self.pick_session(data, TCP)
        own, other = session.connection.ends[direction], session.connection.ends[tcp.OTHER[direction]]
        fields = {
            "seq": data.draw(near(own.end, other.ack, other.edge), label="seq"),
            "ack": data.draw(near(other.end), label="ack"),
            "window": data.draw(st.sampled_from([0, 1, 500, 65535]), label="window"),
            "scale": data.draw(traffic.scales, label="scale") if "S" in flags else None,
            "payload": payload,
        }
        self.send_segment(session, direction, flags, **fields)

    @with_session(TCP, state=tcp.SYN_SENT)
    @rule(data=st.data())
    def handshake(self, data: st.DataObject) -> None:
        """The two segments that complete a connection whose SYN went out, and one each way after that."""
        session = self.pick_session(data, TCP, state=tcp.SYN_SENT)
        seq = data.draw(traffic.numbers, label="seq of the answer")
        scale = data.draw(traffic.scales, label="scale of the answer")
        ours = session.connection.ends[tcp.OUT].end
        self.send_segment(session, tcp.IN, "SA", seq=seq, ack=ours, scale=scale)
        self.send_segment(session, tcp.OUT, "A", seq=ours, ack=seq + 1, window=500)
        self.send_segment(session, tcp.IN, "PA", seq=seq + 1, ack=ours, window=500, payload=b"hello")

    @with_session(TCP, state=tcp.ESTABLISHED)
    @rule(data=st.data(), first=st.sampled_from([tcp.OUT, tcp.IN]), both=st.booleans())
    def close(self, data: st.DataObject, first: str, both: bool) -> None:
        """One end finishes, or both."""
        session = self.pick_session(data, TCP, state=tcp.ESTABLISHED)
        for direction in (first, tcp.OTHER[first])[: 1 + both]:
            own, other = session.connection.ends[direction], session.connection.ends[tcp.OTHER[direction]]
            self.send_segment(session, direction, "FA", seq=own.end or other.ack or 0, ack=other.end or 0)

    def send_segment(self, session: Session, direction: str, flags: str, **fields) -> None:
        mapping, remote = session.mapping, session.remote
        if direction == tcp.OUT:
            self.exchange(INSIDE, packets.tcp((mapping.address, mapping.id), remote, flags, **fields))
        elif remote[0] != self.model.external:
            self.exchange(OUTSIDE, packets.tcp(remote, (self.model.external, mapping.external_id), flags, **fields))

    # -- packets that turn round --------------------------------------------------------------------------------------

    @with_session(UDP, TCP)
    @rule(data=st.data(), sender=traffic.inside_endpoints, payload=traffic.payloads, flags=traffic.flags)
    def hairpin(self, data: st.DataObject, sender: tuple[str, int], payload: bytes, flags: str) -> None:
        mapping = self.pick_session(data, UDP, TCP).mapping
        target = (self.model.external, mapping.external_id)
        if mapping.protocol == UDP:
            self.exchange(INSIDE, packets.udp(sender, target, payload))
        else:
            self.exchange(INSIDE, packets.tcp(sender, target, flags, seq=7, payload=payload))

    # -- ICMP errors --------------------------------------------------------------------------------------------------

    @with_session(UDP, TCP, ICMP)
    @rule(data=st.data(), checksum=st.sampled_from([None, 0, BAD]), ipsum=st.sampled_from([None, None, None, BAD]))
    def error_from_outside(self, data: st.DataObject, checksum: int | str | None, ipsum: int | str | None) -> None:
        """A router or the remote reports about a packet of a session."""
        session = self.pick_session(data, UDP, TCP, ICMP)
        mapping, remote = session.mapping, session.remote
        external = (self.model.external, mapping.external_id)
        quote = self.sent_packet(data, mapping.protocol, external, remote, session, tcp.OUT, checksum, ipsum)
        packet = data.draw(traffic.errors_about(traffic.remotes, traffic.EXTERNAL, quote), label="error")
        self.exchange(OUTSIDE, packet)

    @with_session(UDP, TCP, ICMP)
    @rule(data=st.data(), checksum=st.sampled_from([None, 0, BAD]), ipsum=st.sampled_from([None, None, None, BAD]))
    def error_from_inside(self, data: st.DataObject, checksum: int | str | None, ipsum: int | str | None) -> None:
        """An inside host or router reports about a packet that came in for a session, turned round or not."""
        session = self.pick_session(data, UDP, TCP, ICMP)
        mapping, remote = session.mapping, session.remote
        inside = (mapping.address, mapping.id)
        quote = self.sent_packet(data, mapping.protocol, remote, inside, session, tcp.IN, checksum, ipsum)
        error = traffic.errors_about(traffic.hosts, dotted(remote[0]), quote)
        self.exchange(INSIDE, data.draw(error, label="error"))

    def sent_packet(self, data, protocol, source, destination, session, direction, checksum, ipsum) -> bytes:
        """Return a packet as its sender would have sent it, for an error to quote."""
        fields = {"ip_checksum": ipsum, "ttl": 9}
        if protocol == UDP:
            return packets.udp(source, destination, b"question", checksum=checksum, **fields)
        checksum = checksum or None
        if protocol == TCP:
            seq = data.draw(near(session.connection.ends[direction].end), label="quoted seq")
            return packets.tcp(source, destination, "PA", seq=seq, payload=b"data", checksum=checksum, **fields)
        kind, identifier = session.remote[1], destination[1]
        if direction == tcp.OUT:
            return packets.ping(source[0], destination[0], source[1], kind=kind, checksum=checksum, **fields)
        answer = {8: 0, 13: 14, 15: 16, 17: 18}[kind]
        return packets.ping(source[0], destination[0], identifier, kind=answer, checksum=checksum, **fields)

    # -- nonsense -----------------------------------------------------------------------------------------------------

    @rule(link=st.sampled_from([INSIDE, OUTSIDE]), packet=traffic.anywhere())
    def misplaced(self, link: str, packet: bytes) -> None:
        self.exchange(link, packet)

    @rule(link=st.sampled_from([INSIDE, OUTSIDE]), data=st.data())
    def damaged(self, link: str, data: st.DataObject) -> None:
        whole = traffic.outbound() if link == INSIDE else traffic.inbound()
        self.exchange(link, data.draw(traffic.damaged(whole), label="packet"))

    # -- always -------------------------------------------------------------------------------------------------------

    @invariant()
    def same_sessions(self) -> None:
        open_here, open_there = sessions_of(self.model), self.subject.sessions()
        assert open_here == open_there, f"only specified: {open_here - open_there}, only seen: {open_there - open_here}"
