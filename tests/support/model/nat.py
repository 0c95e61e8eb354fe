"""The executable specification: what fastmasq does to one packet, in slow, plain, obvious Python.

The network is the HOWTO's: an inside link with 10.0.0.1/8, an outside link with 200.200.200.200/24 and the default
route. `Model.step` takes one packet from a link and says what becomes of it:

* Forward - it leaves on a link, translated or not, in one or more pieces;
* Reply   - it goes no further, and its sender is told so by an ICMP error; a drop reason is counted;
* Deliver - it is for the gateway host itself: the kernel decides;
* Drop    - it goes no further; a drop reason is counted;
* Several - it is a piece of a datagram: what became of it and of those that waited for it.

A third link leads to programs of the host: what a rule redirects to them (T-10) leaves by it, and their answers come
from it.

Principles. A packet that is not forwarded changes nothing: no session, no state, no timer. A packet that turns round
on the inside (hairpin) is treated as if it had gone out and come back: it meets the sender's session on its way out and
the receiver's on its way in. Rate limits are not part of the specification.

What the specification leaves open is which external port a new mapping gets when its own cannot be kept (but it is the
same for an endpoint whenever the same are free), which target of a port forward serves a remote endpoint while there is
no room for its session, and the identification of a packet that leaves in pieces or may be cut further on. The caller
passes what was observed; `WrongPort` or `WrongTarget` is raised if it breaks the rules.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

from fastmasq.wire.numbers import AH
from tests.support import packets
from tests.support.model import tcp
from tests.support.model.datagrams import HOST, LIFE, REFUSED, Datagram
from tests.support.model.state import (
    INSIDE,
    OUTSIDE,
    PROGRAMS,
    SECOND,
    Deliver,
    Drop,
    Forward,
    Mapping,
    Observed,
    PlainSession,
    PortForward,
    ProgramRedirect,
    ProgramSession,
    Reply,
    Session,
    Settings,
    Several,
    Target,
    Verdict,
    WrongPort,
    WrongTarget,
)
from tests.support.model.tcp import IN, OUT
from tests.support.model.wire import (
    ICMP,
    REPLIES,
    REQUESTS,
    RST,
    TCP,
    UDP,
    Parsed,
    Refused,
    Rewriter,
    as_whole,
    check_error,
    fragments,
    parse,
    segment_of,
)
from tests.support.packets import dotted, to_address

QUOTE = 548  # octets of a packet that are quoted in an answer: 576 less both headers (RFC 1812 section 4.3.2.3)
HOLD_DOWN = 120 * SECOND  # a port given back is not for another host (RFC 6888 REQ-8)
LOW_PORTS = 1024  # ports under this are a class of their own (RFC 4787 REQ-3a)
CLIENT_PORTS = 32768  # from here on are those that clients' kernels choose

LIMITED_BROADCAST = 0xFFFFFFFF
MARTIAN_NETWORKS = tuple(IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "240.0.0.0/4"))
MULTICAST = IPv4Network("224.0.0.0/4")
LOOPBACK = IPv4Network("127.0.0.0/8")
PROGRAM_NETWORK = IPv4Network("169.254.255.0/27")  # where programs of the host are reached; on no wire
PROGRAM_ADDRESSES = [int(PROGRAM_NETWORK[number]) for number in (1, 2)]
UNANSWERED = 60 * SECOND  # a TCP client has given up by then
SHORT = 3  # less than one part in so many is left
PATIENCE = 4 * SECOND  # with what nobody has answered, while something is short
WITHOUT_PORTS = 600 * SECOND

AnySession = Session | PlainSession | ProgramSession


class Model:
    """The translation state, and what it makes of each packet."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.external = to_address(self.settings.outside_address)
        self.own = {to_address(self.settings.inside_address), self.external}
        self.inside_network = IPv4Network(self.settings.inside_network)
        self.outside_network = IPv4Network(self.settings.outside_network)
        self.mtu = {INSIDE: self.settings.inside_mtu, OUTSIDE: self.settings.outside_mtu, PROGRAMS: 1500}
        self.by_inside: dict[tuple[int, int, int], Mapping] = {}  # (protocol, address, id)
        self.by_external: dict[tuple[int, int], Mapping] = {}  # (protocol, external id)
        self.held_down: dict[tuple[int, int], tuple[int, int]] = {}  # (protocol, external id): last owner, end (ns)
        self.last: dict[tuple[int, int, int], int] = {}  # external id that an inside endpoint had last
        self.choices: dict[tuple[int, int, int], list[tuple[int, frozenset[int]]]] = {}  # what endpoints were given, of
        self.plain: dict[tuple[int, int], PlainSession] = {}  # (protocol, remote address)
        self.programs: dict[tuple, ProgramSession] = {}  # (protocol, client's link, client, what it asked for)
        self.datagrams: dict[tuple, Datagram] = {}  # (link, source, destination, protocol, identification)
        self.orphans = 0  # pieces that have waited in vain
        self.served: dict[tuple, tuple[int, int]] = {}  # (mapping, remote endpoint): target while no session can be had
        self.now_ns = 0
        self.short_second = -1  # in which it was last asked whether something is short
        self.observed = Observed()
        self.datagram: Datagram | None = None  # that of the piece in hand
        self.came_from = b""  # the source of the packet in hand
        self.link = INSIDE  # that the packet in hand has come by
        for forward in self.settings.forwards:
            self.add_forward(forward)

    def step(self, link: str, packet: bytes, now_ns: int, observed: Observed | None = None) -> Verdict:
        """Return what becomes of a packet that arrives on `link`; `observed` is what has been seen of free choices."""
        self.expire(now_ns)
        self.observed = observed or Observed()
        self.datagram = None
        self.link = link
        try:
            parsed = parse(packet)
        except Refused as refused:
            return Drop(refused.reason)
        if parsed.is_fragment and self.is_reassembled(link, parsed):
            return self.piece(link, parsed)
        return self.handled(link, parsed)

    def handled(self, link: str, packet: Parsed) -> Verdict:
        """Return what becomes of a well-formed packet, or of one that stands for its datagram."""
        self.came_from = packet.raw[12:16]
        try:
            if link == PROGRAMS:
                return self.from_program(packet)
            if self.is_broadcast(packet.destination) or is_within(packet.destination, MULTICAST):
                return Deliver()
            self.check_addresses(link, packet)
            if self.is_for_program(link, packet):
                return self.to_program(link, packet)
            return self.inside(packet) if link == INSIDE else self.outside(packet)
        except Refused as refused:
            return self.refused(link, packet, refused)

    def refused(self, link: str, packet: Parsed, refused: Refused) -> Verdict:
        if refused.answer and may_be_answered(packet):
            return Reply(link, self.answer(link, packet, *refused.answer), refused.reason)
        return Drop(refused.reason)

    # -- where it comes from, where it goes ------------------------------------------------------------------------

    def check_addresses(self, link: str, packet: Parsed) -> None:
        """Refuse addresses that cannot be right (RFC 1812 section 5.3.7)."""
        if is_within(packet.destination, *MARTIAN_NETWORKS, PROGRAM_NETWORK):
            raise Refused("martian_destination")
        if not self.may_be_source(link, packet.source) and not self.is_report(link, packet):
            raise Refused("martian_source")

    def may_be_source(self, link: str, address: int) -> bool:
        """Return whether the way back to a source leads over the link it came from (RFC 3704 section 2.2)."""
        return self.may_be_router(address) and is_within(address, self.inside_network) == (link == INSIDE)

    def may_be_router(self, address: int) -> bool:
        """Return whether an address can be that of a host, other than this one, on whatever link."""
        if is_within(address, *MARTIAN_NETWORKS, MULTICAST, PROGRAM_NETWORK):
            return False
        return address not in self.own and not self.is_broadcast(address)

    def is_report(self, link: str, packet: Parsed) -> bool:
        """Return whether a packet is an error that quotes a session exactly: a router may have whatever address."""
        if not packet.is_error or packet.is_fragment or not self.may_be_router(packet.source):
            return False
        try:
            quoted = check_error(packet)
        except Refused:
            return False
        if packet.destination != quoted.source:
            return False
        program = self.find_program_client(link, quoted)
        if program:
            return tcp_quote_is_recent(program, OUT, quoted)
        if link == OUTSIDE:
            return quoted.destination not in self.own and bool(self.find_quoted_sender(packet))
        return bool(self.find_quoted_receiver(quoted))

    def is_broadcast(self, address: int) -> bool:
        networks = (self.inside_network, self.outside_network)
        ends = [int(end) for network in networks for end in (network.network_address, network.broadcast_address)]
        return address == LIMITED_BROADCAST or address in ends

    def inside(self, packet: Parsed) -> Verdict:
        """A packet from the inside link, its header and addresses found good."""
        error = self.error_for_program(INSIDE, packet) if packet.is_error else None
        if error:
            return error
        if packet.destination == self.external:
            return self.to_external_endpoint(packet)
        if packet.destination in self.own:
            return Deliver()
        if is_within(packet.destination, self.inside_network):
            self.check_way(packet, INSIDE)
            return self.forward(INSIDE, Rewriter(packet.raw, packet.start, packet.protocol))
        return self.forward(OUTSIDE, self.outbound(packet, OUTSIDE))

    def outside(self, packet: Parsed) -> Verdict:
        """A packet from the outside link, its header and addresses found good."""
        if packet.destination not in self.own:
            return self.outside_to_others(packet)
        if packet.destination == self.external and is_plain(packet):
            return self.plain_in(packet)
        if packet.destination != self.external or not self.is_translated(packet):
            return Deliver()
        target = self.find_target(packet)
        if target is None:
            return self.unclaimed(packet)
        self.check_way(packet, INSIDE)
        return self.forward(INSIDE, self.inbound(packet, *target))

    def outside_to_others(self, packet: Parsed) -> Verdict:
        """A packet from outside to an address that is none of ours: nobody's, unless a program has answered as that."""
        try:
            error = self.error_for_program(OUTSIDE, packet) if packet.is_error else None
        except Refused as refused:
            if refused.answer:
                raise
            error = None  # damaged: it says nothing about whom it is for
        if error is None:
            raise Refused("policy_refused")
        return error

    def to_external_endpoint(self, packet: Parsed) -> Verdict:
        """A packet from inside to the external address: it turns round if it belongs to a mapping (RFC 4787 REQ-9)."""
        if packet.is_error:
            return self.hairpin_error(packet)
        if packet.is_fragment or packet.protocol not in (TCP, UDP):
            return Deliver()
        target = self.by_external.get((packet.protocol, packet.destination_id))
        if target is None:
            return self.unclaimed(packet)
        sender = self.by_inside.get((packet.protocol, packet.source, packet.source_id))
        session = sender and target.sessions.get((self.external, sender.external_id))
        known = self.find_session(packet)
        if session and packet.protocol == TCP and known is None and is_reset(packet):
            self.check_way(packet, INSIDE)  # refuses a connection that only the other host has a session of
            turned = self.with_external_source(packet, sender)
        else:
            turned = self.outbound(packet, INSIDE)
        returning = as_whole(parse(turned.bytes()))
        session = target.sessions.get((returning.source, returning.source_id))
        try:
            return self.forward(INSIDE, self.inbound(returning, target, session))
        except Refused:
            opened = self.find_session(packet)
            if known is None and opened:
                self.end(opened)
            raise

    def is_translated(self, packet: Parsed) -> bool:
        """Return whether a packet to the external address may be for the inside at all; all else is for the host."""
        if packet.is_fragment:
            return False
        return packet.protocol in (TCP, UDP) or packet.is_error or packet.is_reply

    def unclaimed(self, packet: Parsed) -> Verdict:
        """A packet to the external address that no mapping claims: the host's own, unless its port is for mappings."""
        if packet.protocol in (TCP, UDP) and packet.destination_id in self.settings.ports:
            raise Refused("no_session")
        return Deliver()

    def check_way(self, packet: Parsed, link: str) -> None:
        """Refuse what cannot leave on `link`: the TTL has run out, or the packet is too long and must stay whole."""
        if packet.ttl <= 1 and link != PROGRAMS:  # what is for this host may come with its last hop
            raise Refused("ttl_exceeded", (11, 0, 0))
        if packet.df and len(packet.raw) > self.mtu[link]:
            raise Refused("fragmentation_needed", (3, 4, self.mtu[link]))

    def forward(self, link: str, rewriter: Rewriter) -> Forward:
        rewriter.hop()
        if self.datagram and self.datagram.identification is not None:
            rewriter.identification(self.datagram.identification)
        elif self.settings.renumbers and rewriter.may_be_cut and rewriter.raw[12:16] != self.came_from:
            rewriter.identification(self.observed.identification or 0)
        if rewriter.protocol == TCP and (self.datagram or not rewriter.is_fragment):
            self.clamp(link, rewriter)
        return Forward(link, fragments(rewriter.bytes(), self.mtu[link]))

    def clamp(self, link: str, rewriter: Rewriter) -> None:
        """Lower what a SYN offers as its MSS to what both links can carry (RFC 6691 section 2)."""
        fitting = min(self.mtu[self.link], self.mtu[link]) - 40
        if self.settings.mss != "off":
            rewriter.lower_mss(fitting if self.settings.mss == "auto" else self.settings.mss)

    # -- outbound ---------------------------------------------------------------------------------------------------

    def outbound(self, packet: Parsed, link: str) -> Rewriter:
        """Give a packet that leaves on `link` its external source; open a session or move it on."""
        if is_plain(packet):
            return self.plain_out(packet, link)
        if packet.is_error:
            rewriter = self.outbound_error(packet)
            self.check_way(packet, link)
            return rewriter
        if packet.protocol == ICMP and not packet.is_request:
            raise Refused("no_session" if packet.is_reply else "icmp_type_refused")
        session = self.find_session(packet)
        if session is None and packet.protocol == TCP and is_reset(packet):
            raise Refused("no_session")
        self.check_way(packet, link)
        if session is None:
            mapping = self.crowded(packet) or self.open(packet).mapping
            return self.with_external_source(packet, mapping)
        self.send(session, packet)
        return self.with_external_source(packet, session.mapping)

    def send(self, session: AnySession, packet: Parsed) -> None:
        """Move a session on by a packet from the end that the gateway hides."""
        if packet.protocol == TCP:
            self.advance(session, OUT, packet)
            return
        session.answered = True
        self.refresh(session)

    def with_external_source(self, packet: Parsed, mapping: Mapping) -> Rewriter:
        rewriter = Rewriter(packet.raw, packet.start, packet.protocol)
        rewriter.source(self.external, mapping.external_id)
        return rewriter

    def find_session(self, packet: Parsed) -> Session | None:
        mapping = self.by_inside.get((packet.protocol, packet.source, packet.source_id))
        session = mapping and mapping.sessions.get((packet.destination, packet.destination_id))
        return session if session and session.inside == (packet.source, packet.source_id) else None

    def open(self, packet: Parsed) -> Session:
        connection = tcp.opened(segment_of(packet)) if packet.protocol == TCP else None
        self.check_limits(packet)
        key = (packet.protocol, packet.source, packet.source_id)
        mapping = self.by_inside.get(key) or Mapping(*key, self.external_id(*key))
        session = Session(mapping, (packet.destination, packet.destination_id), connection=connection)
        session.target = key[1:] if mapping.targets else None
        if session.remote in mapping.sessions:
            raise Refused("endpoint_clash", (3, 13, 0))  # another target of the forward has this remote endpoint
        mapping.sessions[session.remote] = session
        self.held_down.pop((packet.protocol, mapping.external_id), None)
        self.by_inside[key] = self.by_external[packet.protocol, mapping.external_id] = mapping
        self.refresh(session)
        return session

    def check_limits(self, packet: Parsed) -> None:
        """Refuse a new session that is over a limit; the sender is told which (RFC 5508 REQ-8, RFC 6888 REQ-11)."""
        self.check_room()
        self.check_share(packet.source)
        if (packet.protocol, packet.source, packet.source_id) in self.by_inside:
            return
        owners = [one.address for one in self.by_inside.values() if one.protocol == packet.protocol and not one.targets]
        mine = owners.count(packet.source)
        if mine >= self.settings.ports_per_host:
            raise Refused("host_port_limit", (3, 13, 0))
        if not self.settings.prefix:
            return
        left = self.ports_left(packet.protocol, low=packet.protocol == ICMP or packet.source_id < LOW_PORTS)
        if left and mine >= left:
            raise Refused("host_port_limit", (3, 13, 0))
        if left and sum(self.is_neighbour(owner, packet.source) for owner in owners) >= left:
            raise Refused("network_limit", (3, 13, 0))

    def ports_left(self, protocol: int, low: bool) -> int:
        """Return how many external ports can still be given, those held down included; low ones only if `low`."""
        allowed = self.settings.identifiers if protocol == ICMP else self.settings.ports
        held = {id for kind, id in self.held_down if kind == protocol and id in allowed}
        taken = held | {id for kind, id in self.by_external if kind == protocol and id in allowed}
        free = len(allowed) - len(taken) if low else high_ports(allowed) - high_ports(frozenset(taken))
        return free + high_ports(frozenset(held))

    def check_room(self) -> None:
        if len(list(self.all_sessions())) >= self.settings.sessions:
            raise Refused("table_full", (3, 1, 0))

    def payers(self) -> list[int]:
        """Return the host that each session counts for."""
        ours = [*self.sessions(), *self.plain.values()]
        return [session.inside[0] for session in ours] + [session.payer for session in self.programs.values()]

    def is_neighbour(self, one: int, other: int) -> bool:
        """Return whether two hosts share what a network may have."""
        return (one ^ other) >> (32 - self.settings.prefix) == 0

    def check_share(self, host: int) -> None:
        """Refuse a session to a host that has its share: what may be set, or as much as is left for others."""
        payers = self.payers()
        mine, left = payers.count(host), self.settings.sessions - len(payers)
        if mine >= self.settings.sessions_per_host or (self.settings.prefix and mine >= left):
            raise Refused("host_session_limit", (3, 13, 0))
        if self.settings.prefix and sum(self.is_neighbour(payer, host) for payer in payers) >= left:
            raise Refused("network_limit", (3, 13, 0))

    def external_id(self, protocol: int, host: int, wanted: int) -> int:
        """Return the port of a new mapping: the inside one if free, else any like it (RFC 4787 REQ-3a, REQ-4).

        A port held down (RFC 6888 REQ-8) is free for its last owner, if it is the inside one, and may be if it is like
        that or was the endpoint's; when nothing else is left, the one held longest is free for anybody, any of them if
        several were closed at the same time. Which is up to the translator, but of the same free ports an endpoint is
        always given the same. Raises Refused when there is none, WrongPort when the observed one is not among those
        that may be given.
        """
        allowed = self.settings.identifiers if protocol == ICMP else self.settings.ports
        ends = {id: end for (kind, id), (_, end) in self.held_down.items() if kind == protocol and id in allowed}
        held = {id: self.held_down[protocol, id][0] for id in ends}
        free = {id for id in allowed if (protocol, id) not in self.by_external and id not in held}
        if wanted in free or held.get(wanted) == host:
            return self.given({wanted}, wanted)
        alike = free if protocol == ICMP else like(free, wanted)
        candidates = set(alike)
        if not candidates:
            low_too = protocol == ICMP or wanted < LOW_PORTS
            left = {id: end for id, end in ends.items() if id >= LOW_PORTS or low_too}
            candidates = {id for id, end in left.items() if end == min(left.values())}
        mine = {id for id, owner in held.items() if owner == host}
        back = mine & {self.last.get((protocol, host, wanted))}
        chosen = self.given(candidates | back | (mine if protocol == ICMP else like(mine, wanted)), wanted)
        self.check_choice((protocol, host, wanted), chosen, alike)
        return chosen

    def given(self, candidates: set[int], wanted: int) -> int:
        """Return the port that was given, as far as that can be seen, or else any of the candidates."""
        if not candidates:
            raise Refused("ports_exhausted", (3, 1, 0))
        if self.observed.port is None:
            return min(candidates)
        if self.observed.port not in candidates:
            raise WrongPort(
                f"external port {self.observed.port} for inside port {wanted}: not one of {sorted(candidates)[:9]}"
            )
        return self.observed.port

    def check_choice(self, endpoint: tuple[int, int, int], chosen: int, free: set[int]) -> None:
        """Raise WrongPort if an endpoint was given another port before, although both were free then and are now."""
        if self.observed.port is None or chosen not in free:
            return
        before = self.choices.setdefault(endpoint, [])
        for port, others in before:
            if port != chosen and port in free and chosen in others:
                raise WrongPort(f"external port {chosen} for inside port {endpoint[2]}: it was {port} before")
        before.append((chosen, frozenset(free)))

    # -- inbound ----------------------------------------------------------------------------------------------------

    def find_target(self, packet: Parsed) -> tuple[Mapping, Session | None] | None:
        """Return mapping and session that a packet to the external address is for, or None when no mapping claims it.

        Without a session the filter decides. Raises Refused when it refuses.
        """
        if packet.is_error:
            # what turned round has not left: nobody outside can have seen it
            return None if check_error(packet).destination in self.own else self.find_quoted_sender(packet)
        mapping = self.by_external.get((packet.protocol, packet.destination_id))
        if mapping is None:
            return None
        session = mapping.sessions.get((packet.source, packet.source_id))
        if session or self.admits(mapping, packet):
            return mapping, session
        if packet.protocol == ICMP:
            return None  # the host pings as well
        raise Refused("filtered")

    def admits(self, mapping: Mapping, packet: Parsed) -> bool:
        """Return whether a packet without a session may come in by a mapping (RFC 4787 section 5)."""
        if mapping.targets:
            return self.is_for(mapping, packet)
        if self.settings.filtering == "endpoint-independent":
            return True
        if self.settings.filtering == "address-and-port-dependent":
            return False
        return any(address == packet.source for address, _ in mapping.sessions)

    def inbound(self, packet: Parsed, mapping: Mapping, session: Session | None) -> Rewriter:
        """Give a packet its inside destination. Without a session it passes and leaves no trace."""
        if packet.is_error:
            return self.inbound_error(packet, session)
        if session is None and mapping.targets:
            if not self.is_for(mapping, packet):
                raise Refused("filtered")
            session = self.open_forwarded(packet, mapping)
        if session:
            self.receive(session, packet)
        rewriter = Rewriter(packet.raw, packet.start, packet.protocol)
        if session is None and mapping.targets:
            rewriter.destination(*self.target_without_session(packet, mapping))
        else:
            rewriter.destination(*(session.inside if session else (mapping.address, mapping.id)))
        return rewriter

    def receive(self, session: AnySession, packet: Parsed) -> None:
        """Move a session on by a packet of its remote end."""
        if packet.protocol == TCP:
            self.advance(session, IN, packet)
        elif session.state == tcp.UNANSWERED:
            self.refresh(session)  # what nobody answers, such as log messages, keeps to one target
        session.heard = True

    # -- port forwards ----------------------------------------------------------------------------------------------

    def add_forward(self, forward: PortForward) -> None:
        """Let an external port lead to its targets, and what they send leave by it (PF-3)."""
        targets = [Target((to_address(host), port), weight, weight) for host, port, weight in forward.targets]
        remotes = tuple((IPv4Network(network), port) for network, port in forward.remotes)
        mapping = Mapping(forward.protocol, 0, 0, forward.port, targets=targets, remotes=remotes)
        self.by_external[forward.protocol, forward.port] = mapping
        for target in targets:
            self.by_inside[forward.protocol, *target.endpoint] = mapping

    def is_for(self, mapping: Mapping, packet: Parsed) -> bool:
        """Return whether a forward is for the remote endpoint that a packet is of (RFC 6887 section 13.3)."""
        source = IPv4Address(packet.source)
        return not mapping.remotes or any(
            source in network and port in (0, packet.source_id) for network, port in mapping.remotes
        )

    def is_crowded(self, mapping: Mapping) -> bool:
        return mapping.half_open >= self.settings.half_open

    def open_forwarded(self, packet: Parsed, mapping: Mapping) -> Session | None:
        """Open a session with the target whose turn it is (PF-8); None if the packet or a limit forbids it."""
        connection = tcp.begun_outside(segment_of(packet)) if packet.protocol == TCP else None
        if packet.protocol == TCP and connection is None:
            return None
        try:
            self.check_room()
            if self.is_crowded(mapping):
                return None
            turn = mapping.targets[0]
            if (mapping.protocol, INSIDE, turn.endpoint, (packet.source, packet.source_id)) in self.programs:
                raise Refused("endpoint_clash")  # to its target, a program is that remote endpoint
            self.check_share(turn.endpoint[0])
        except Refused as refused:
            raise Refused(refused.reason) from None  # the outside is not told
        session = Session(
            mapping, (packet.source, packet.source_id), 0, connection, turn.endpoint, answered=False, heard=True
        )
        mapping.sessions[session.remote] = session
        self.refresh(session)
        if turn.weight:
            turn.left -= 1
            if turn.left == 0:
                turn.left = turn.weight
                mapping.targets.append(mapping.targets.pop(0))
        return session

    def target_without_session(self, packet: Parsed, mapping: Mapping) -> tuple[int, int]:
        """Return where a packet that opens no session goes: while none can be opened, always to the same target."""
        if not self.is_crowded(mapping):
            return mapping.targets[0].endpoint
        key = (mapping.protocol, mapping.external_id, packet.source, packet.source_id)
        endpoints = [target.endpoint for target in mapping.targets]
        chosen = self.served.setdefault(key, self.observed.target or endpoints[0])
        if chosen not in endpoints or self.observed.target not in (None, chosen):
            raise WrongTarget(f"{self.observed.target} gets a packet of {key} to {endpoints}, of which {chosen} is its")
        return chosen

    def crowded(self, packet: Parsed) -> Mapping | None:
        """Return the forward of an answer for which there is no room: it leaves without a session.

        An answer opens a session of which only one end has been heard, like a stranger's packet.
        """
        mapping = self.by_inside.get((packet.protocol, packet.source, packet.source_id))
        if not mapping or not mapping.targets or packet.protocol != TCP:
            return None
        if tcp.opened(segment_of(packet)).state not in tcp.HALF_OPEN or not self.is_crowded(mapping):
            return None
        self.check_limits(packet)
        return None if (packet.destination, packet.destination_id) in mapping.sessions else mapping

    # -- protocols without ports ------------------------------------------------------------------------------------

    def plain_in(self, packet: Parsed) -> Verdict:
        """A protocol without ports, from outside to the external address: for a redirect's host, or for this one."""
        session = self.plain.get((packet.protocol, packet.source))
        host = session.inside[0] if session else self.find_redirect(packet.protocol, packet.source)
        if host is None:
            return Deliver()
        self.check_way(packet, INSIDE)
        if session is None:
            try:
                self.check_room()
                if self.payers().count(host) >= (self.settings.sessions_per_host + 1) // 2:
                    raise Refused("host_session_limit")  # strangers have half of it
                session = self.open_plain(packet.protocol, host, packet.source)
            except Refused as refused:
                raise Refused(refused.reason) from None  # the outside is not told
        session.heard = True
        rewriter = Rewriter(packet.raw, packet.start, packet.protocol)
        rewriter.destination(host, None)
        return self.forward(INSIDE, rewriter)

    def plain_out(self, packet: Parsed, link: str) -> Rewriter:
        """A protocol without ports, from inside: a redirect's host's, or without one that of who has the remote."""
        session = self.plain.get((packet.protocol, packet.destination))
        begins = session is None or session.inside[0] != packet.source
        host = self.find_redirect(packet.protocol, packet.destination)
        if begins and packet.source != host and (host is not None or packet.protocol not in self.settings.by_address):
            raise Refused("ah_not_masqueraded" if packet.protocol == AH else "protocol_not_masqueraded")
        self.check_way(packet, link)
        if begins:
            self.check_room()
            if session:
                raise Refused("endpoint_clash", (3, 13, 0))  # another host has the remote
            if host is None:
                self.check_share(packet.source)
            session = self.open_plain(packet.protocol, packet.source, packet.destination)
        self.refresh(session)
        session.answered = True
        rewriter = Rewriter(packet.raw, packet.start, packet.protocol)
        rewriter.source(self.external, None)
        return rewriter

    def find_redirect(self, protocol: int, remote: int) -> int | None:
        """Return the inside host that gets a protocol from a remote address: the narrowest network decides."""
        fitting = [
            (IPv4Network(redirect.source).prefixlen, to_address(redirect.host))
            for redirect in self.settings.redirects
            if redirect.protocol == protocol and is_within(remote, IPv4Network(redirect.source))
        ]
        return max(fitting)[1] if fitting else None

    def open_plain(self, protocol: int, host: int, remote: int) -> PlainSession:
        session = self.plain[protocol, remote] = PlainSession(protocol, (host, None), remote)
        self.refresh(session)
        return session

    # -- programs of this host --------------------------------------------------------------------------------------

    def is_for_program(self, link: str, packet: Parsed) -> bool:
        """Return whether a rule gives a packet to a program: none of another session, none to an address of ours."""
        if packet.protocol not in (TCP, UDP) or packet.is_fragment or packet.destination in self.own:
            return False
        if self.program_key(link, packet) in self.programs:
            return True
        if link == INSIDE and self.find_session(packet):
            return False
        return self.find_program_rule(packet) is not None

    def find_program_rule(self, packet: Parsed) -> ProgramRedirect | None:
        wanted = (packet.protocol, packet.destination_id)
        return next((rule for rule in self.settings.programs if (rule.protocol, rule.port) == wanted), None)

    def program_key(self, link: str, packet: Parsed) -> tuple:
        client = (packet.source, packet.source_id)
        return packet.protocol, link, client, (packet.destination, packet.destination_id)

    def to_program(self, link: str, packet: Parsed) -> Verdict:
        """A packet that a rule redirects, whatever its destination (T-10): as if from the client to the program."""
        session = self.programs.get(self.program_key(link, packet))
        if session is None and packet.protocol == TCP and tcp.begun_outside(segment_of(packet)) is None:
            raise Refused("no_session")
        self.check_way(packet, PROGRAMS)
        if session is None:
            try:
                session = self.open_program(link, packet)
            except Refused as refused:
                raise Refused(refused.reason, refused.answer if link == INSIDE else None) from None
        self.receive(session, packet)
        rewriter = Rewriter(packet.raw, packet.start, packet.protocol)
        rewriter.destination(*session.program)
        return self.forward(PROGRAMS, rewriter)

    def open_program(self, link: str, packet: Parsed) -> ProgramSession:
        """Open a session at an address of the programs where the client has none with that port."""
        protocol, _, client, asked = key = self.program_key(link, packet)
        port = self.find_program_rule(packet).program_port or packet.destination_id
        self.check_room()
        taken = {(one.protocol, one.client, one.program) for one in self.programs.values()}
        free = [address for address in PROGRAM_ADDRESSES if (protocol, client, (address, port)) not in taken]
        if not free:
            raise Refused("endpoint_clash", (3, 13, 0))
        seen = self.observed.target and self.observed.target[0]
        address = free[0] if seen not in free or free[0] == PROGRAM_ADDRESSES[0] else seen
        payer = client[0] if link == INSIDE else address
        self.check_share(payer)
        connection = tcp.begun_outside(segment_of(packet)) if protocol == TCP else None
        session = ProgramSession(protocol, link, client, asked, (address, port), payer, connection=connection)
        self.programs[key] = session
        self.refresh(session)
        return session

    def from_program(self, packet: Parsed) -> Verdict:
        """What a program sends: to a client it gets the source that the client asked, to others nothing leaves."""
        if packet.is_error:
            return self.error_from_program(packet)
        source, destination = (packet.source, packet.source_id), (packet.destination, packet.destination_id)
        session = self.find_program_session(packet.protocol, source, destination)
        if session is None:
            raise Refused("no_session")
        self.check_way(packet, session.link)
        self.send(session, packet)
        rewriter = Rewriter(packet.raw, packet.start, packet.protocol)
        rewriter.source(*session.asked)
        return self.forward(session.link, rewriter)

    def find_program_session(self, protocol: int, program: tuple, client: tuple) -> ProgramSession | None:
        wanted = (protocol, program, client)
        return next((one for one in self.programs.values() if (one.protocol, one.program, one.client) == wanted), None)

    def error_from_program(self, packet: Parsed) -> Verdict:
        """The host reports about a packet that it got for a program: the client gets it from where it had sent that."""
        quoted = check_error(packet)
        receiver, sender = (quoted.destination, quoted.destination_id), (quoted.source, quoted.source_id)
        session = self.find_program_session(quoted.protocol, receiver, sender)
        if not session or packet.destination != quoted.source or not tcp_quote_is_recent(session, IN, quoted):
            raise Refused("no_session")
        self.check_way(packet, session.link)
        inner = Rewriter(quoted.raw, quoted.start, quoted.protocol)
        inner.destination(*session.asked)
        outer = Rewriter(packet.raw, packet.start, packet.protocol)
        outer.quote(inner.bytes())
        outer.source(session.asked[0], None)
        return self.forward(session.link, outer)

    def error_for_program(self, link: str, packet: Parsed) -> Verdict | None:
        """An error about what a program has sent to a client on this link; None if it is about anything else."""
        quoted = check_error(packet)
        session = self.find_program_client(link, quoted)
        if not session or packet.destination != quoted.source:
            return None
        if not tcp_quote_is_recent(session, OUT, quoted):
            if link == INSIDE and not is_within(packet.destination, self.inside_network):
                raise Refused("no_session")  # not either about what came in by a mapping of the client's
            return None
        self.check_way(packet, PROGRAMS)
        inner = Rewriter(quoted.raw, quoted.start, quoted.protocol)
        inner.source(*session.program)
        outer = Rewriter(packet.raw, packet.start, packet.protocol)
        outer.quote(inner.bytes())
        outer.destination(session.program[0], None)
        return self.forward(PROGRAMS, outer)

    def find_program_client(self, link: str, quoted: Parsed) -> ProgramSession | None:
        """Return the session of a client on this link that a quoted packet was to, as if from what it had asked."""
        client, asked = (quoted.destination, quoted.destination_id), (quoted.source, quoted.source_id)
        return self.programs.get((quoted.protocol, link, client, asked))

    # -- datagrams in pieces ----------------------------------------------------------------------------------------

    def is_reassembled(self, link: str, packet: Parsed) -> bool:
        """Return whether a fragment is of a datagram that may be translated; others are routed one by one.

        While a rule redirects to programs, that is any datagram that is not for an address of ours (C-57).
        """
        routed = not is_within(packet.destination, LOOPBACK, MULTICAST) and packet.destination not in self.own
        routed = routed and not self.is_broadcast(packet.destination)
        if link == PROGRAMS:
            return routed and is_within(packet.source, PROGRAM_NETWORK)
        if not self.may_be_source(link, packet.source):
            return False
        if packet.destination == self.external:
            return True
        if self.settings.programs:
            return routed
        leaves = link == INSIDE and not is_within(packet.destination, self.inside_network, PROGRAM_NETWORK)
        return routed and leaves

    def piece(self, link: str, packet: Parsed) -> Verdict:
        """A piece of a datagram: it waits for the first, shares its fate, or decides that of those that have waited."""
        key = (link, packet.source, packet.destination, packet.protocol, packet.raw[4:6])
        datagram = self.datagrams.setdefault(key, Datagram(self.now_ns))
        datagram.waiting.append(packet)
        if datagram.fate is None and packet.offset:
            return Several(())
        datagram.waiting.sort(key=lambda piece: piece is not packet)
        verdicts = tuple(self.placed(link, piece, datagram) for piece in datagram.waiting)
        datagram.waiting = []
        if datagram.is_complete and datagram.fate != REFUSED:
            del self.datagrams[key]
        return Several(verdicts)

    def placed(self, link: str, packet: Parsed, datagram: Datagram) -> Verdict:
        self.datagram = datagram
        wrong = datagram.place(packet)
        if wrong:
            return wrong
        if packet.offset:
            return self.follow(link, packet, datagram)
        if link == INSIDE:
            datagram.identification = self.observed.identification
        verdict = self.handled(link, as_whole(packet))
        if isinstance(verdict, Forward):
            datagram.fate = verdict
        else:
            datagram.fate = HOST if isinstance(verdict, Deliver) else REFUSED
        return verdict

    def follow(self, link: str, packet: Parsed, datagram: Datagram) -> Verdict:
        """Do with a later piece what was done with the first: it gets the same addresses."""
        if datagram.fate == HOST:
            return Deliver()
        if datagram.fate == REFUSED:
            return Drop("fragment_refused")
        first = parse(datagram.fate.packets[0])
        try:
            self.check_way(packet, datagram.fate.link)
        except Refused as refused:
            return self.refused(link, packet, refused)
        rewriter = Rewriter(packet.raw, packet.start, protocol=0)
        rewriter.source(first.source, None)
        rewriter.destination(first.destination, None)
        return self.forward(datagram.fate.link, rewriter)

    # -- ICMP errors ------------------------------------------------------------------------------------------------

    def find_quoted_sender(self, packet: Parsed) -> tuple[Mapping, Session] | None:
        """Return mapping and session of the packet that an error from outside quotes (RFC 5508 REQ-4)."""
        quoted = check_error(packet)
        if quoted.source != self.external or quoted.is_reply:
            return None
        if is_plain(quoted):
            session = self.plain.get((quoted.protocol, quoted.destination))
            return session and (None, session)
        mapping = self.by_external.get((quoted.protocol, quoted.source_id))
        session = mapping and mapping.sessions.get((quoted.destination, quoted.destination_id))
        if not session or not tcp_quote_is_recent(session, OUT, quoted):
            return None
        return mapping, session

    def inbound_error(self, packet: Parsed, session: Session | PlainSession) -> Rewriter:
        quoted = check_error(packet)
        inner = Rewriter(quoted.raw, quoted.start, quoted.protocol)
        inner.source(*session.inside)
        outer = Rewriter(packet.raw, packet.start, packet.protocol)
        outer.quote(inner.bytes())
        outer.destination(session.inside[0], None)
        return outer

    def outbound_error(self, packet: Parsed) -> Rewriter:
        """An error from inside about a packet that came in: through a session, or statelessly through a mapping.

        Any router on the inside may report (RFC 5508 REQ-5), but only to the sender of the packet it quotes.
        """
        quoted = check_error(packet)
        if packet.destination != quoted.source:
            raise Refused("no_session")
        inner = Rewriter(quoted.raw, quoted.start, quoted.protocol)
        inner.destination(self.external, self.quoted_external_id(quoted))
        outer = Rewriter(packet.raw, packet.start, packet.protocol)
        outer.quote(inner.bytes())
        outer.source(self.external, None)
        return outer

    def quoted_external_id(self, quoted: Parsed) -> int | None:
        """Return the external port that a packet quoted by an inside host was sent to; None: it has none."""
        if is_plain(quoted):
            session = self.plain.get((quoted.protocol, quoted.source))
            if session is None or session.inside[0] != quoted.destination:
                raise Refused("no_session")
            return None
        receiver = (quoted.destination, quoted.destination_id)
        mapping = self.by_inside.get((quoted.protocol, *receiver))
        if not mapping or quoted.is_request:
            raise Refused("no_session")
        session = mapping.sessions.get((quoted.source, quoted.source_id))
        if session and session.inside == receiver and not tcp_quote_is_recent(session, IN, quoted):
            raise Refused("no_session")
        return mapping.external_id

    def find_quoted_receiver(self, quoted: Parsed) -> Session | PlainSession | None:
        """Return the session by which a packet quoted by the inside has come in."""
        if is_plain(quoted):
            session = self.plain.get((quoted.protocol, quoted.source))
            return session if session and session.inside[0] == quoted.destination else None
        receiver = (quoted.destination, quoted.destination_id)
        mapping = self.by_inside.get((quoted.protocol, *receiver))
        session = mapping and mapping.sessions.get((quoted.source, quoted.source_id))
        if not session or quoted.is_request or session.inside != receiver:
            return None
        return session if tcp_quote_is_recent(session, IN, quoted) else None

    def hairpin_error(self, packet: Parsed) -> Verdict:
        """An error about a packet that turned round goes the same way back (RFC 5508 REQ-7), or is for the host."""
        try:
            returning = as_whole(parse(self.outbound_error(packet).bytes()))
        except Refused as refused:
            if refused.reason == "no_session":
                return Deliver()
            raise
        target = self.find_quoted_sender(returning)
        if target is None:
            return Deliver()
        self.check_way(packet, INSIDE)
        return self.forward(INSIDE, self.inbound_error(returning, target[1]))

    # -- sessions and their time ------------------------------------------------------------------------------------

    def advance(self, session: AnySession, direction: str, packet: Parsed) -> None:
        step = tcp.stepped(session.connection, direction, segment_of(packet))
        session.connection = step.connection
        if step.refreshed:
            self.refresh(session)

    def refresh(self, session: AnySession) -> None:
        session.expires = self.now_ns + self.lifetime(session)

    def lifetime(self, session: AnySession) -> int:
        if session.connection and session.state == tcp.UNANSWERED:
            return min(self.settings.tcp_transitory, UNANSWERED)
        if session.connection:
            long_lived = session.connection.state in tcp.LONG_LIVED
            return self.settings.tcp_established if long_lived else self.settings.tcp_transitory
        if isinstance(session, PlainSession):
            return WITHOUT_PORTS
        return self.settings.icmp if session.protocol == ICMP else self.settings.udp

    def expire(self, now_ns: int) -> None:
        """Forget what is dead at `now_ns`; a mapping goes with its last session."""
        if now_ns < self.now_ns:
            raise ValueError("time does not run backwards")
        self.now_ns = now_ns
        for session in list(self.sessions()):
            if session.expires <= now_ns:
                self.end(session)
        self.plain = {key: session for key, session in self.plain.items() if session.expires > now_ns}
        self.programs = {key: session for key, session in self.programs.items() if session.expires > now_ns}
        self.held_down = {port: (owner, end) for port, (owner, end) in self.held_down.items() if end > now_ns}
        for key, datagram in list(self.datagrams.items()):
            if datagram.since + LIFE <= now_ns:
                self.orphans += len(datagram.waiting)
                del self.datagrams[key]
        self.relieve()

    def relieve(self) -> None:
        """While something is short, which is asked once a second, forget what nobody has answered for a while."""
        second = self.now_ns // SECOND
        if not self.settings.prefix or second == self.short_second:
            return
        self.short_second = second
        if not self.is_short():
            return
        going = [one for one in self.all_sessions() if is_unanswered(one) and self.may_go_at(one) < self.now_ns]
        for session in going:
            if isinstance(session, Session):
                self.end(session)
        self.plain = {key: session for key, session in self.plain.items() if session not in going}
        self.programs = {key: session for key, session in self.programs.items() if session not in going}

    def may_go_at(self, session: AnySession) -> int:
        """Return the time from which on a session may go if it is unanswered."""
        return session.expires - self.lifetime(session) + PATIENCE

    def is_short(self) -> bool:
        if self.settings.sessions - len(list(self.all_sessions())) < self.settings.sessions // SHORT:
            return True
        for protocol in (TCP, UDP, ICMP):
            allowed = self.settings.identifiers if protocol == ICMP else self.settings.ports
            if self.ports_left(protocol, low=False) < high_ports(allowed) // SHORT:
                return True
        return False

    def end(self, session: Session) -> None:
        """Forget a session; its mapping goes with its last one, unless it is a port forward's."""
        mapping = session.mapping
        del mapping.sessions[session.remote]
        if not mapping.sessions and not mapping.targets:
            del self.by_inside[mapping.protocol, mapping.address, mapping.id]
            del self.by_external[mapping.protocol, mapping.external_id]
            self.held_down[mapping.protocol, mapping.external_id] = (mapping.address, self.now_ns + HOLD_DOWN)
            self.last[mapping.protocol, mapping.address, mapping.id] = mapping.external_id

    def sessions(self) -> Iterator[Session]:
        """Return the sessions of all mappings."""
        for mapping in self.by_external.values():
            yield from mapping.sessions.values()

    def all_sessions(self) -> Iterator[AnySession]:
        yield from self.sessions()
        yield from self.plain.values()
        yield from self.programs.values()

    def answer(self, link: str, packet: Parsed, kind: int, code: int, mtu: int) -> bytes:
        """Return the ICMP error that tells a packet's sender, on the link it came from, why it went no further.

        A program is told as if by its client: the host would take none from an address of its own.
        """
        own = {INSIDE: to_address(self.settings.inside_address), OUTSIDE: self.external}.get(link, packet.destination)
        return packets.icmp_error(own, packet.source, kind, code, packet.raw[:QUOTE], mtu=mtu)

    def __str__(self) -> str:
        lines = []
        for session in self.all_sessions():
            shown = " ".join(f"{dotted(address)}:{id or 0}" for address, id in self.ends(session))
            lines.append(f"protocol {session.protocol} {session.state} {shown}")
        return "\n".join(lines)

    def ends(self, session: AnySession) -> tuple[tuple[int, int | None], ...]:
        """Return the endpoint that the gateway hides, the one that it shows instead, and the remote one."""
        if isinstance(session, ProgramSession):
            return session.program, session.asked, session.client
        if isinstance(session, PlainSession):
            return session.inside, (self.external, None), (session.remote, None)
        return session.inside, (self.external, session.mapping.external_id), session.remote


# --- small questions -------------------------------------------------------------------------------------------------


def is_within(address: int, *networks: IPv4Network) -> bool:
    return any(int(network.network_address) == address & int(network.netmask) for network in networks)


def may_be_answered(packet: Parsed) -> bool:
    """Return whether an ICMP error may be sent about a packet (RFC 1812 section 4.3.2.7).

    Never about a later fragment, an ICMP error, or ICMP of a type that nobody knows.
    """
    if packet.offset:
        return False
    kinds = packet.raw[packet.start : packet.start + 1]
    return packet.protocol != ICMP or any(kind in REQUESTS or kind in REPLIES for kind in kinds)


def is_plain(packet: Parsed) -> bool:
    """Return whether a packet is of a protocol without ports."""
    return packet.protocol not in (TCP, UDP, ICMP) and packet.protocol != -1


def is_unanswered(session: AnySession) -> bool:
    """Return whether only the end that has begun a session has been heard."""
    if session.connection:
        return session.state in tcp.OPENING
    return session.state == tcp.UNANSWERED or not (session.heard and session.answered)


def is_reset(packet: Parsed) -> bool:
    return bool(segment_of(packet).flags & RST)


def tcp_quote_is_recent(session: Session | ProgramSession, direction: str, quoted: Parsed) -> bool:
    """Return whether a quoted TCP segment was sent in `direction` not long ago (RFC 5927 section 4.1)."""
    end = session.connection and session.connection.ends[direction].end
    if end is None:
        return True
    seq = int.from_bytes(quoted.raw[quoted.start + 4 : quoted.start + 8], "big")
    return (end - seq) % 2**32 <= tcp.LARGEST_WINDOW


@functools.lru_cache(maxsize=16)
def high_ports(ids: frozenset[int]) -> int:
    """Return how many of these are no low ports; of all ports there are it is asked with each step."""
    return sum(id >= LOW_PORTS for id in ids)


def like(free: set[int], wanted: int) -> set[int]:
    """Return the free ports that may stand in for `wanted`: of its class and parity, of its class, or above 1023.

    Of these, none that a client's kernel would choose while there is another.
    """
    classes = [range(1, LOW_PORTS), range(LOW_PORTS, 65536)]
    for wanted_class in classes if wanted < LOW_PORTS else classes[1:]:
        same_class = free.intersection(wanted_class)
        same_parity = {port for port in same_class if port % 2 == wanted % 2}
        if same_class:
            found = same_parity or same_class
            return {port for port in found if port < CLIENT_PORTS} or found
    return set()
