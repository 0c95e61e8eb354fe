"""The state machine that drives a translator and the specification with the same traffic and time, and compares them.

After every packet the two must agree on the packets out, to the octet, on the verdict and on the drop counter that
moved; after every step also on the sessions that are open. Time stands still while packets pass and moves in between,
never to less than `SLACK` after a session's end: a timer wheel may be late by one of its ticks, and only by that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastmasq.wire.numbers import DCCP, UDP_LITE
from tests.support import packets, traffic
from tests.support.model import tcp
from tests.support.model.datagrams import LIFE
from tests.support.model.nat import Model
from tests.support.model.state import (
    INSIDE,
    OUTSIDE,
    PROGRAMS,
    SECOND,
    Mapping,
    PlainSession,
    PortForward,
    ProgramRedirect,
    ProgramSession,
    Redirect,
    Session,
    Settings,
)
from tests.support.model.subjects import START_NS, Subject, difference, observed, sessions_of
from tests.support.notation import show
from tests.support.packets import BAD, ICMP, TCP, UDP, dotted

SLACK = 1 * SECOND
FEW_PORTS = frozenset((*range(600, 603), *range(1024, 1028), 40000, 40001))
FORWARDS = (  # of two ports that masquerading may use, and one that it may not; targets send by themselves, too
    PortForward(TCP, 1025, (("10.0.0.2", 1024, 2), ("10.0.0.3", 1024, 1))),
    PortForward(UDP, 1025, (("10.0.0.2", 1024, 1), ("10.0.0.3", 600, 2))),
    PortForward(UDP, 22, (("10.200.0.4", 40000, 0), ("10.0.0.3", 40000, 1))),
)
FORWARDS_FOR_SOME = (  # the same, two of them not for all remotes; one of those may be an inside host's
    replace(FORWARDS[0], remotes=(("199.0.0.2/32", 0), ("62.0.0.0/8", 80))),
    replace(FORWARDS[1], remotes=(("199.0.0.0/31", 53), ("200.200.200.200/32", 1024))),
    FORWARDS[2],
)
REDIRECTS = (Redirect(47, "10.0.0.2"), Redirect(47, "10.0.0.3", "62.0.0.0/8"), Redirect(50, "10.200.0.4"))
PROGRAM_RULES = (  # ports of remotes that are asked, and of our own address, which no rule takes
    ProgramRedirect(TCP, 80, 8080),
    ProgramRedirect(TCP, 1024, 8080),
    ProgramRedirect(UDP, 53),
    ProgramRedirect(UDP, 1025, 53),
)
AnySession = Session | PlainSession | ProgramSession
BY_ADDRESS = (41, 47, 50, UDP_LITE, DCCP)  # GRE and ESP are some hosts' by the redirects
EVERY_PROTOCOL = (UDP, TCP, ICMP, *BY_ADDRESS)


def with_session(*protocols: int, state: str | None = None) -> Callable:
    """Let a rule run only while there is a session for `pick_session` to pick."""
    return precondition(lambda machine: bool(machine.sessions(*protocols, state=state)))


def with_mapping() -> Callable:
    """Let a rule run only while there is a mapping for `pick_mapping` to pick."""
    return precondition(lambda machine: bool(machine.mappings()))


def near(*numbers: int | None) -> st.SearchStrategy[int]:
    """Sequence numbers mostly at, sometimes near, and rarely far from those given."""
    known = [number for number in numbers if number is not None] or [0]
    at = st.sampled_from(known)
    beside = st.tuples(at, st.sampled_from([-1, 1, -40, 200, -70_000, 2**30, -(2**30) - 1])).map(sum)
    return st.one_of(at, at, at, beside, traffic.numbers).map(lambda number: number % 2**32)


class Comparison(RuleBasedStateMachine):
    """Subclasses say which translator, and with which settings."""

    settings = Settings(
        ports=FEW_PORTS,
        outside_mtu=576,
        inside_mtu=600,
        forwards=FORWARDS,
        half_open=1,
        redirects=REDIRECTS,
        by_address=frozenset(BY_ADDRESS),
    )

    def make_subject(self) -> Subject:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(self.settings)
        self.subject = self.make_subject()
        self.now_ns = START_NS
        self.on_the_way: list[tuple[str, bytes]] = []  # pieces that have not arrived yet, and the link they arrive on

    def teardown(self) -> None:
        """Let go of the subject: a machine lives until the garbage collector comes, and a path is large."""
        del self.subject

    def exchange(self, link: str, packet: bytes) -> None:
        note(f"{link}: {show(packet)}")
        seen = self.subject.send(link, packet)
        verdict = self.model.step(link, packet, self.now_ns, observed(seen))
        wrong = difference(verdict, seen)
        story = f"the packet in was {link}: {show(packet)}\n{packet.hex()}\nsessions:\n{self.model}"
        assert wrong is None, f"{wrong}\n{story}"

    def sessions(self, *protocols: int, state: str | None = None) -> list[AnySession]:
        sessions = [session for session in self.model.all_sessions() if session.protocol in protocols]
        return [session for session in sessions if state in (None, session.state)]

    def pick_session(self, data: st.DataObject, *protocols: int, state: str | None = None) -> AnySession:
        sessions = self.sessions(*protocols, state=state)
        return sessions[data.draw(st.integers(0, len(sessions) - 1), label="session")]

    def mappings(self) -> list[Mapping]:
        return [mapping for mapping in self.model.by_external.values() if mapping.protocol in (UDP, TCP)]

    def pick_mapping(self, data: st.DataObject) -> Mapping:
        mappings = self.mappings()
        return mappings[data.draw(st.integers(0, len(mappings) - 1), label="mapping")]

    def outward(self, session: AnySession) -> tuple[str, tuple, tuple]:
        """Return the link that a packet of a session's hidden end arrives on, its source and its destination."""
        hidden, _, remote = self.model.ends(session)
        return PROGRAMS if isinstance(session, ProgramSession) else INSIDE, hidden, remote

    def inward(self, session: AnySession) -> tuple[str, tuple, tuple]:
        """Return the link that a packet of a session's remote end arrives on, its source and its destination."""
        _, shown, remote = self.model.ends(session)
        return session.link if isinstance(session, ProgramSession) else OUTSIDE, remote, shown

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
        self.let_pass(seconds)

    @precondition(lambda machine: any(datagram.waiting for datagram in machine.model.datagrams.values()))
    @rule(seconds=st.sampled_from([13, 16]))
    def wait_in_vain(self, seconds: float) -> None:
        """The first piece of a datagram is late, or too late."""
        self.let_pass(seconds)

    def let_pass(self, seconds: float) -> None:
        target = self.now_ns + round(seconds * SECOND)
        ends = [session.expires for session in self.model.all_sessions()]
        ends += [end for _, end in self.model.held_down.values()]
        ends += [self.model.may_go_at(session) for session in self.model.all_sessions()]
        ends += [datagram.since + LIFE for datagram in self.model.datagrams.values()]
        for end in sorted(ends):
            if target - SLACK < end <= target:
                target = end + SLACK
        self.subject.advance((target - self.now_ns) / SECOND)
        self.now_ns = target
        self.model.expire(target)
        given_up, self.model.orphans = self.model.orphans, 0
        assert self.subject.drops() == ({"fragment_orphan": given_up} if given_up else {})

    # -- traffic that opens, answers, and probes ----------------------------------------------------------------------

    @rule(packet=traffic.outbound())
    def from_inside(self, packet: bytes) -> None:
        self.exchange(INSIDE, packet)

    @rule(packet=traffic.inbound())
    def from_outside(self, packet: bytes) -> None:
        self.exchange(OUTSIDE, packet)

    @with_session(UDP, ICMP, 47, 50)
    @rule(data=st.data(), seed=traffic.payloads)
    def answer(self, data: st.DataObject, seed: bytes) -> None:
        """The remote of a session answers."""
        self.answer_in(self.pick_session(data, UDP, ICMP, 47, 50), seed)

    @with_session(UDP, ICMP, 47, 50)
    @rule(data=st.data())
    def answers_alone(self, data: st.DataObject) -> None:
        """Only the remote goes on with a session, for a while."""
        session = self.pick_session(data, UDP, ICMP, 47, 50)
        for _ in range(3):
            self.answer_in(session, b"and more")
            self.let_pass(121)

    def answer_in(self, session: AnySession, seed: bytes) -> None:
        link, source, destination = self.inward(session)
        if session.protocol == UDP:
            packet = packets.udp(source, destination, seed)
        elif session.protocol != ICMP:
            packet = packets.ipv4(source[0], destination[0], session.protocol, seed)
        else:
            kind = {8: 0, 13: 14, 15: 16, 17: 18}[source[1]]
            packet = packets.ping(source[0], destination[0], destination[1], kind=kind, payload=seed)
        self.exchange(link, packet)

    @with_mapping()
    @rule(data=st.data(), stranger=traffic.remote_endpoints, flags=traffic.flags)
    def stranger(self, data: st.DataObject, stranger: tuple[str, int], flags: str) -> None:
        """Somebody sends to a mapping, known to it or not."""
        mapping = self.pick_mapping(data)
        external = (self.model.external, mapping.external_id)
        if mapping.protocol == UDP:
            self.exchange(OUTSIDE, packets.udp(stranger, external, b"knock"))
        else:
            self.exchange(OUTSIDE, packets.tcp(stranger, external, flags, seq=1))

    @with_session(UDP, ICMP, 47, 50)
    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        """The inside, or a program, goes on with a session."""
        session = self.pick_session(data, UDP, ICMP, 47, 50)
        link, source, destination = self.outward(session)
        if session.protocol == UDP:
            packet = packets.udp(source, destination, b"more")
        elif session.protocol != ICMP:
            packet = packets.ipv4(source[0], destination[0], session.protocol, b"more")
        else:
            packet = packets.ping(source[0], destination[0], source[1], kind=destination[1])
        self.exchange(link, packet)

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

    def send_segment(self, session: AnySession, direction: str, flags: str, **fields) -> None:
        link, source, destination = self.outward(session) if direction == tcp.OUT else self.inward(session)
        if source[0] != self.model.external:
            self.exchange(link, packets.tcp(source, destination, flags, **fields))

    # -- port forwards ------------------------------------------------------------------------------------------------

    @rule(
        forward=st.sampled_from(FORWARDS),
        client=traffic.inside_endpoints | traffic.remote_endpoints,
        flags=traffic.flags,
    )
    def to_forward(self, forward: PortForward, client: tuple[str, int], flags: str) -> None:
        """Somebody, outside or inside, wants something of a forwarded port."""
        link = INSIDE if client[0].startswith("10.") else OUTSIDE
        external = (self.settings.outside_address, forward.port)
        if forward.protocol == UDP:
            self.exchange(link, packets.udp(client, external, b"request"))
        else:
            self.exchange(link, packets.tcp(client, external, flags, seq=1))

    @rule(data=st.data(), forward=st.sampled_from(FORWARDS), flags=st.sampled_from(["SA", "SA", "RA", "S", "A"]))
    def from_target(self, data: st.DataObject, forward: PortForward, flags: str) -> None:
        """A target answers a packet that has opened no session, or begins itself."""
        source = data.draw(st.sampled_from([target[:2] for target in forward.targets]), label="target")
        remote = data.draw(traffic.remote_endpoints | traffic.external_endpoints, label="remote")
        served = [(key[2:], target) for key, target in self.model.served.items() if key[0] == forward.protocol]
        if served and data.draw(st.sampled_from([True, True, False]), label="served"):
            remote, source = data.draw(st.sampled_from(served), label="who")
        if forward.protocol == UDP:
            self.exchange(INSIDE, packets.udp(source, remote, b"service"))
        else:
            self.exchange(INSIDE, packets.tcp(source, remote, flags, seq=9, ack=2))

    # -- programs of this host ----------------------------------------------------------------------------------------

    @precondition(lambda machine: bool(machine.settings.programs))
    @rule(data=st.data(), redirect=st.sampled_from(PROGRAM_RULES), flags=traffic.flags, lives=traffic.lives)
    def to_program(self, data: st.DataObject, redirect: ProgramRedirect, flags: str, lives: dict) -> None:
        """Somebody sends to a port that a rule takes, inside or outside, of whatever address."""
        link = data.draw(st.sampled_from([INSIDE, INSIDE, OUTSIDE]), label="link")
        client = data.draw(traffic.inside_endpoints if link == INSIDE else traffic.remote_endpoints, label="client")
        asked = (data.draw(traffic.any_address, label="asked"), redirect.port)
        if redirect.protocol == UDP:
            self.exchange(link, packets.udp(client, asked, b"request", **lives))
        else:
            self.exchange(link, packets.tcp(client, asked, flags, seq=1, **lives))

    @precondition(lambda machine: bool(machine.settings.programs))
    @rule(client=traffic.any_endpoint, port=st.sampled_from([53, 8080]), protocol=st.sampled_from([TCP, UDP]))
    def from_program(self, client: tuple[str, int], port: int, protocol: int) -> None:
        """A program sends to somebody, a client of its or not."""
        if protocol == UDP:
            self.exchange(PROGRAMS, packets.udp((traffic.PROGRAM, port), client, b"response"))
        else:
            self.exchange(PROGRAMS, packets.tcp((traffic.PROGRAM, port), client, "SA", seq=9, ack=2))

    # -- protocols without ports --------------------------------------------------------------------------------------

    @rule(
        redirect=st.sampled_from(REDIRECTS),
        remote=traffic.remotes,
        address=st.sampled_from([traffic.EXTERNAL, traffic.EXTERNAL, Settings.inside_address]),
        out=st.booleans(),
        fields=traffic.ip_fields,
    )
    def without_ports(self, redirect: Redirect, remote: str, address: str, out: bool, fields: dict) -> None:
        """A redirected protocol, from its host or from outside, to this or that address of ours."""
        ends = (redirect.host, remote) if out else (remote, address)
        self.exchange(INSIDE if out else OUTSIDE, packets.ipv4(*ends, redirect.protocol, b"without ports", **fields))

    @rule(
        data=st.data(),
        protocol=st.sampled_from(BY_ADDRESS),
        host=traffic.hosts,
        remote=traffic.remotes,
        out=st.booleans(),
        payload=st.sampled_from([b"", b"short", b"12345678", b"with a checksum, or what could be one"]),
    )
    def by_address(self, data: st.DataObject, protocol: int, host: str, remote: str, out: bool, payload: bytes) -> None:
        """Whatever inside host sends in a protocol without ports, or its remote answers; often one that is known."""
        if self.sessions(*BY_ADDRESS) and data.draw(st.booleans(), label="known"):
            session = self.pick_session(data, *BY_ADDRESS)
            protocol, remote = session.protocol, dotted(session.remote)
        ends = (host, remote) if out else (remote, traffic.EXTERNAL)
        self.exchange(INSIDE if out else OUTSIDE, packets.ipv4(*ends, protocol, payload))

    # -- datagrams in pieces ------------------------------------------------------------------------------------------

    @rule(data=st.data(), known=st.booleans())
    def pieces(self, data: st.DataObject, known: bool) -> None:
        """Somebody sends a datagram in pieces, of a session or not; some arrive at once, in whatever order."""
        link = data.draw(st.sampled_from([INSIDE, OUTSIDE]), label="link")
        whole = data.draw(traffic.long_outbound if link == INSIDE else traffic.long_inbound, label="datagram")
        if known and self.sessions(*EVERY_PROTOCOL):
            session = self.pick_session(data, *EVERY_PROTOCOL)
            way = data.draw(st.sampled_from([self.outward, self.inward]), label="way")
            link, source, destination = way(session)
            whole = data.draw(traffic.long_between(session.protocol, source, destination), label="datagram")
        pieces = data.draw(traffic.cut_up(whole), label="pieces")
        others = data.draw(traffic.cut_up(whole), label="pieces cut otherwise")
        more = data.draw(st.sampled_from([[], [], pieces[:1], pieces[-1:], others[1:2], others[1:2]]), label="more")
        order = data.draw(st.permutations(pieces + more), label="order")
        at_once = data.draw(st.integers(1, len(order)), label="at once")
        self.on_the_way += [(link, piece) for piece in order[at_once:]]
        for piece in order[:at_once]:
            self.exchange(link, piece)

    @precondition(lambda machine: machine.on_the_way)
    @rule(data=st.data(), again=st.booleans())
    def piece(self, data: st.DataObject, again: bool) -> None:
        """A piece that has been on the way arrives, perhaps twice."""
        at = data.draw(st.integers(0, len(self.on_the_way) - 1), label="piece")
        self.exchange(*(self.on_the_way[at] if again else self.on_the_way.pop(at)))

    # -- packets that turn round --------------------------------------------------------------------------------------

    @with_mapping()
    @rule(data=st.data(), sender=traffic.inside_endpoints, payload=traffic.payloads, flags=traffic.flags)
    def hairpin(self, data: st.DataObject, sender: tuple[str, int], payload: bytes, flags: str) -> None:
        mapping = self.pick_mapping(data)
        target = (self.model.external, mapping.external_id)
        if mapping.protocol == UDP:
            self.exchange(INSIDE, packets.udp(sender, target, payload))
        else:
            self.exchange(INSIDE, packets.tcp(sender, target, flags, seq=7, payload=payload))

    # -- ICMP errors --------------------------------------------------------------------------------------------------

    @with_session(*EVERY_PROTOCOL)
    @rule(data=st.data(), checksum=st.sampled_from([None, 0, BAD]), ipsum=st.sampled_from([None, None, None, BAD]))
    def error_from_outside(self, data: st.DataObject, checksum: int | str | None, ipsum: int | str | None) -> None:
        """A router or the remote reports about a packet of a session."""
        self.report(data, self.pick_session(data, *EVERY_PROTOCOL), checksum, ipsum)

    @precondition(lambda machine: bool(machine.model.programs))
    @rule(data=st.data())
    def error_for_program(self, data: st.DataObject) -> None:
        """The same about what a program has answered, or would have."""
        sessions = list(self.model.programs.values())
        self.report(data, sessions[data.draw(st.integers(0, len(sessions) - 1), label="session")], None, None)

    def report(self, data: st.DataObject, session: AnySession, checksum: int | str | None, ipsum: str | None) -> None:
        link, remote, shown = self.inward(session)
        quote = self.sent_packet(data, session, tcp.OUT, (shown, remote), checksum, ipsum)
        routers = traffic.hosts | traffic.remotes | traffic.any_address
        self.exchange(link, data.draw(traffic.errors_about(routers, dotted(shown[0]), quote), label="error"))

    @with_session(*EVERY_PROTOCOL)
    @rule(data=st.data(), checksum=st.sampled_from([None, 0, BAD]), ipsum=st.sampled_from([None, None, None, BAD]))
    def error_from_inside(self, data: st.DataObject, checksum: int | str | None, ipsum: int | str | None) -> None:
        """An inside host or router, or a program's host, reports about a packet that came for a session."""
        session = self.pick_session(data, *EVERY_PROTOCOL)
        link, hidden, remote = self.outward(session)
        quote = self.sent_packet(data, session, tcp.IN, (remote, hidden), checksum, ipsum)
        routers = traffic.hosts | traffic.remotes | traffic.any_address
        reporters = routers if link == INSIDE else st.just(dotted(hidden[0]))
        self.exchange(link, data.draw(traffic.errors_about(reporters, dotted(remote[0]), quote), label="error"))

    def sent_packet(self, data, session, direction, ends, checksum, ipsum) -> bytes:
        """Return a packet between these ends as its sender would have sent it, for an error to quote."""
        (source, destination), protocol = ends, session.protocol
        fields = {"ip_checksum": ipsum, "ttl": 9}
        if protocol == UDP:
            return packets.udp(source, destination, b"question", checksum=checksum, **fields)
        checksum = checksum or None
        if protocol == TCP:
            seq = data.draw(near(session.connection.ends[direction].end), label="quoted seq")
            return packets.tcp(source, destination, "PA", seq=seq, payload=b"data", checksum=checksum, **fields)
        if protocol != ICMP:
            return packets.ipv4(source[0], destination[0], protocol, b"without ports", **fields)
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
