"""The executable specification: what fastmasq does to one packet, in slow, plain, obvious Python.

The network is the HOWTO's: an inside link with 10.0.0.1/8, an outside link with 200.200.200.200/24 and the default
route. `Model.step` takes one packet from a link and says what becomes of it:

* Forward - it leaves on a link, translated or not, in one or more pieces;
* Reply   - it goes no further, and its sender is told so by an ICMP error; a drop reason is counted;
* Deliver - it is for the gateway host itself: the kernel decides;
* Drop    - it goes no further; a drop reason is counted.

Principles. A packet that is not forwarded changes nothing: no session, no state, no timer. A packet that turns round
on the inside (hairpin) is treated as if it had gone out and come back: it meets the sender's session on its way out and
the receiver's on its way in. Rate limits are not part of the specification.

The one thing the specification leaves open is which external port a new mapping gets when its own cannot be kept. The
caller passes the port that was observed, and `WrongPort` is raised if it breaks the rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network

from tests.model import tcp
from tests.model.state import (
    INSIDE,
    OUTSIDE,
    SECOND,
    Deliver,
    Drop,
    Forward,
    Mapping,
    Reply,
    Session,
    Settings,
    Verdict,
    WrongPort,
)
from tests.model.tcp import IN, OUT
from tests.model.wire import (
    ICMP,
    REPLIES,
    REQUESTS,
    RST,
    TCP,
    UDP,
    Parsed,
    Refused,
    Rewriter,
    check_error,
    fragments,
    parse,
    segment_of,
)
from tests.support import packets
from tests.support.packets import dotted, to_address

QUOTE = 548  # octets of a packet that are quoted in an answer: 576 less both headers (RFC 1812 section 4.3.2.3)
HOLD_DOWN = 120 * SECOND  # a port given back is not for another host (RFC 6888 REQ-8)
AH = 51  # signs the addresses
LOW_PORTS = 1024  # ports under this are a class of their own (RFC 4787 REQ-3a)

LIMITED_BROADCAST = 0xFFFFFFFF
MARTIAN_NETWORKS = tuple(IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "240.0.0.0/4"))
MULTICAST = IPv4Network("224.0.0.0/4")


class Model:
    """The translation state, and what it makes of each packet."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.external = to_address(self.settings.outside_address)
        self.own = {to_address(self.settings.inside_address), self.external}
        self.inside_network = IPv4Network(self.settings.inside_network)
        self.outside_network = IPv4Network(self.settings.outside_network)
        self.mtu = {INSIDE: self.settings.inside_mtu, OUTSIDE: self.settings.outside_mtu}
        self.by_inside: dict[tuple[int, int, int], Mapping] = {}  # (protocol, address, id)
        self.by_external: dict[tuple[int, int], Mapping] = {}  # (protocol, external id)
        self.held_down: dict[tuple[int, int], tuple[int, int]] = {}  # (protocol, external id): last owner, end (ns)
        self.now_ns = 0
        self.observed: int | None = None

    def step(self, link: str, packet: bytes, now_ns: int, observed: int | None = None) -> Verdict:
        """Return what becomes of a packet that arrives on `link`; `observed` is the port its new mapping has got."""
        self.expire(now_ns)
        self.observed = observed
        parsed = None
        try:
            parsed = parse(packet)
            if self.is_broadcast(parsed.destination) or is_within(parsed.destination, MULTICAST):
                return Deliver()
            self.check_addresses(link, parsed)
            return self.inside(parsed) if link == INSIDE else self.outside(parsed)
        except Refused as refused:
            if refused.answer and parsed and may_be_answered(parsed):
                return Reply(link, self.answer(link, parsed, *refused.answer), refused.reason)
            return Drop(refused.reason)

    # -- where it comes from, where it goes ------------------------------------------------------------------------

    def check_addresses(self, link: str, packet: Parsed) -> None:
        """Refuse addresses that cannot be right (RFC 1812 section 5.3.7)."""
        if is_within(packet.destination, *MARTIAN_NETWORKS):
            raise Refused("martian_destination")
        if not self.may_be_source(link, packet.source):
            raise Refused("martian_source")

    def may_be_source(self, link: str, address: int) -> bool:
        """Return whether the way back to a source leads over the link it came from (RFC 3704 section 2.2)."""
        if is_within(address, *MARTIAN_NETWORKS, MULTICAST) or address in self.own or self.is_broadcast(address):
            return False
        return is_within(address, self.inside_network) == (link == INSIDE)

    def is_broadcast(self, address: int) -> bool:
        networks = (self.inside_network, self.outside_network)
        return address == LIMITED_BROADCAST or address in [int(network.broadcast_address) for network in networks]

    def inside(self, packet: Parsed) -> Verdict:
        """A packet from the inside link, its header and addresses found good."""
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
            raise Refused("policy_refused")
        if packet.destination != self.external or not self.is_translated(packet):
            return Deliver()
        target = self.find_target(packet)
        if target is None:
            return self.unclaimed(packet)
        self.check_way(packet, INSIDE)
        return self.forward(INSIDE, self.inbound(packet, *target))

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
        if session and packet.protocol == TCP and self.find_session(packet) is None and is_reset(packet):
            self.check_way(packet, INSIDE)  # refuses a connection that only the other host has a session of
            turned = self.with_external_source(packet, sender)
        else:
            turned = self.outbound(packet, INSIDE)
        returning = parse(turned.bytes())
        session = target.sessions.get((returning.source, returning.source_id))
        return self.forward(INSIDE, self.inbound(returning, target, session))

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
        if packet.ttl <= 1:
            raise Refused("ttl_exceeded", (11, 0, 0))
        if packet.df and len(packet.raw) > self.mtu[link]:
            raise Refused("fragmentation_needed", (3, 4, self.mtu[link]))

    def forward(self, link: str, rewriter: Rewriter) -> Forward:
        rewriter.hop()
        return Forward(link, fragments(rewriter.bytes(), self.mtu[link]))

    # -- outbound ---------------------------------------------------------------------------------------------------

    def outbound(self, packet: Parsed, link: str) -> Rewriter:
        """Give a packet that leaves on `link` its external source; open a session or move it on."""
        assert not packet.is_fragment, "the specification knows fragments only where they are not translated"
        if packet.protocol not in (TCP, UDP, ICMP):
            raise Refused("ah_not_masqueraded" if packet.protocol == AH else "protocol_not_masqueraded")
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
            session = self.open(packet)
        elif packet.protocol == TCP:
            self.advance(session, OUT, packet)
        else:
            self.refresh(session)
        return self.with_external_source(packet, session.mapping)

    def with_external_source(self, packet: Parsed, mapping: Mapping) -> Rewriter:
        rewriter = Rewriter(packet.raw, packet.start, packet.protocol)
        rewriter.source(self.external, mapping.external_id)
        return rewriter

    def find_session(self, packet: Parsed) -> Session | None:
        mapping = self.by_inside.get((packet.protocol, packet.source, packet.source_id))
        return mapping and mapping.sessions.get((packet.destination, packet.destination_id))

    def open(self, packet: Parsed) -> Session:
        connection = tcp.opened(segment_of(packet)) if packet.protocol == TCP else None
        self.check_limits(packet)
        key = (packet.protocol, packet.source, packet.source_id)
        mapping = self.by_inside.get(key) or Mapping(*key, self.external_id(*key))
        session = Session(mapping, (packet.destination, packet.destination_id), connection=connection)
        mapping.sessions[session.remote] = session
        self.held_down.pop((packet.protocol, mapping.external_id), None)
        self.by_inside[key] = self.by_external[packet.protocol, mapping.external_id] = mapping
        self.refresh(session)
        return session

    def check_limits(self, packet: Parsed) -> None:
        """Refuse a new session that is over a limit; the sender is told which (RFC 5508 REQ-8, RFC 6888 REQ-11)."""
        mine = [mapping for mapping in self.by_inside.values() if mapping.address == packet.source]
        if len(list(self.sessions())) >= self.settings.sessions:
            raise Refused("table_full", (3, 1, 0))
        if sum(len(mapping.sessions) for mapping in mine) >= self.settings.sessions_per_host:
            raise Refused("host_session_limit", (3, 13, 0))
        if (packet.protocol, packet.source, packet.source_id) in self.by_inside:
            return
        if sum(mapping.protocol == packet.protocol for mapping in mine) >= self.settings.ports_per_host:
            raise Refused("host_port_limit", (3, 13, 0))

    def external_id(self, protocol: int, host: int, wanted: int) -> int:
        """Return the port of a new mapping: the inside one if free, else any like it (RFC 4787 REQ-3a, REQ-4).

        A port held down (RFC 6888 REQ-8) is free for its last owner; when nothing else is left, the one held longest is
        free for anybody, any of them if several were closed at the same time.
        Raises Refused when there is none, WrongPort when the observed one is not among those that may be given.
        """
        allowed = self.settings.identifiers if protocol == ICMP else self.settings.ports
        ends = {id: end for (kind, id), (_, end) in self.held_down.items() if kind == protocol and id in allowed}
        held = {id: self.held_down[protocol, id][0] for id in ends}
        free = {id for id in allowed if (protocol, id) not in self.by_external and id not in held}
        if wanted in free or held.get(wanted) == host:
            candidates = {wanted}
        else:
            candidates = free if protocol == ICMP else like(free, wanted)
        if not candidates:
            low_too = protocol == ICMP or wanted < LOW_PORTS
            left = {id: end for id, end in ends.items() if id >= LOW_PORTS or low_too}
            candidates = {id for id, end in left.items() if end == min(left.values())}
        if not candidates:
            raise Refused("ports_exhausted", (3, 1, 0))
        if self.observed is None:
            return min(candidates)
        if self.observed not in candidates:
            raise WrongPort(
                f"external port {self.observed} for inside port {wanted}: not one of {sorted(candidates)[:9]}"
            )
        return self.observed

    # -- inbound ----------------------------------------------------------------------------------------------------

    def find_target(self, packet: Parsed) -> tuple[Mapping, Session | None] | None:
        """Return mapping and session that a packet to the external address is for, or None when no mapping claims it.

        Without a session the filter decides. Raises Refused when it refuses.
        """
        if packet.is_error:
            return self.find_quoted_sender(packet)
        mapping = self.by_external.get((packet.protocol, packet.destination_id))
        if mapping is None:
            return None
        session = mapping.sessions.get((packet.source, packet.source_id))
        if session or self.admits(mapping, packet.source):
            return mapping, session
        if packet.protocol == ICMP:
            return None  # the host pings as well
        raise Refused("filtered")

    def admits(self, mapping: Mapping, remote: int) -> bool:
        """Return whether a remote address without a session may send to a mapping (RFC 4787 section 5)."""
        if self.settings.filtering == "endpoint-independent":
            return True
        if self.settings.filtering == "address-and-port-dependent":
            return False
        return any(address == remote for address, _ in mapping.sessions)

    def inbound(self, packet: Parsed, mapping: Mapping, session: Session | None) -> Rewriter:
        """Give a packet its inside destination. Without a session it passes and leaves no trace."""
        if packet.is_error:
            return self.inbound_error(packet, mapping)
        if session and packet.protocol == TCP:
            self.advance(session, IN, packet)
        rewriter = Rewriter(packet.raw, packet.start, packet.protocol)
        rewriter.destination(mapping.address, mapping.id)
        return rewriter

    # -- ICMP errors ------------------------------------------------------------------------------------------------

    def find_quoted_sender(self, packet: Parsed) -> tuple[Mapping, Session] | None:
        """Return mapping and session of the packet that an error from outside quotes (RFC 5508 REQ-4)."""
        quoted = check_error(packet)
        if quoted.source != self.external or quoted.is_reply:
            return None
        mapping = self.by_external.get((quoted.protocol, quoted.source_id))
        session = mapping and mapping.sessions.get((quoted.destination, quoted.destination_id))
        if not session or not tcp_quote_is_recent(session, OUT, quoted):
            return None
        return mapping, session

    def inbound_error(self, packet: Parsed, mapping: Mapping) -> Rewriter:
        quoted = check_error(packet)
        inner = Rewriter(quoted.raw, quoted.start, quoted.protocol)
        inner.source(mapping.address, mapping.id)
        outer = Rewriter(packet.raw, packet.start, packet.protocol)
        outer.quote(inner.bytes())
        outer.destination(mapping.address, None)
        return outer

    def outbound_error(self, packet: Parsed) -> Rewriter:
        """An error from inside about a packet that came in: through a session, or statelessly through a mapping.

        Any router on the inside may report (RFC 5508 REQ-5), but only to the sender of the packet it quotes.
        """
        quoted = check_error(packet)
        mapping = self.by_inside.get((quoted.protocol, quoted.destination, quoted.destination_id))
        if not mapping or quoted.is_request or packet.destination != quoted.source:
            raise Refused("no_session")
        session = mapping.sessions.get((quoted.source, quoted.source_id))
        if session and not tcp_quote_is_recent(session, IN, quoted):
            raise Refused("no_session")
        inner = Rewriter(quoted.raw, quoted.start, quoted.protocol)
        inner.destination(self.external, mapping.external_id)
        outer = Rewriter(packet.raw, packet.start, packet.protocol)
        outer.quote(inner.bytes())
        outer.source(self.external, None)
        return outer

    def hairpin_error(self, packet: Parsed) -> Verdict:
        """An error about a packet that turned round goes the same way back (RFC 5508 REQ-7), or is for the host."""
        try:
            returning = parse(self.outbound_error(packet).bytes())
        except Refused as refused:
            if refused.reason == "no_session":
                return Deliver()
            raise
        target = self.find_quoted_sender(returning)
        if target is None:
            return Deliver()
        self.check_way(packet, INSIDE)
        return self.forward(INSIDE, self.inbound_error(returning, target[0]))

    # -- sessions and their time ------------------------------------------------------------------------------------

    def advance(self, session: Session, direction: str, packet: Parsed) -> None:
        step = tcp.stepped(session.connection, direction, segment_of(packet))
        session.connection = step.connection
        if step.refreshed:
            self.refresh(session)

    def refresh(self, session: Session) -> None:
        session.expires = self.now_ns + self.lifetime(session)

    def lifetime(self, session: Session) -> int:
        if session.connection:
            long_lived = session.connection.state in tcp.LONG_LIVED
            return self.settings.tcp_established if long_lived else self.settings.tcp_transitory
        return self.settings.udp if session.mapping.protocol == UDP else self.settings.icmp

    def expire(self, now_ns: int) -> None:
        """Forget what is dead at `now_ns`; a mapping goes with its last session."""
        if now_ns < self.now_ns:
            raise ValueError("time does not run backwards")
        self.now_ns = now_ns
        for session in list(self.sessions()):
            if session.expires <= now_ns:
                del session.mapping.sessions[session.remote]
        for key, mapping in list(self.by_inside.items()):
            if not mapping.sessions:
                del self.by_inside[key]
                del self.by_external[mapping.protocol, mapping.external_id]
                self.held_down[mapping.protocol, mapping.external_id] = (mapping.address, now_ns + HOLD_DOWN)
        self.held_down = {port: (owner, end) for port, (owner, end) in self.held_down.items() if end > now_ns}

    def sessions(self) -> Iterator[Session]:
        for mapping in self.by_inside.values():
            yield from mapping.sessions.values()

    def answer(self, link: str, packet: Parsed, kind: int, code: int, mtu: int) -> bytes:
        """Return the ICMP error that tells a packet's sender, on the link it came from, why it went no further."""
        own = self.settings.inside_address if link == INSIDE else self.settings.outside_address
        return packets.icmp_error(own, packet.source, kind, code, packet.raw[:QUOTE], mtu=mtu)

    def __str__(self) -> str:
        lines = []
        for session in self.sessions():
            mapping = session.mapping
            ends = [(mapping.address, mapping.id), (self.external, mapping.external_id), session.remote]
            shown = " ".join(f"{dotted(address)}:{id}" for address, id in ends)
            lines.append(f"{packets.PROTOCOL_NAMES[mapping.protocol]} {session.state} {shown}")
        return "\n".join(lines)


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


def is_reset(packet: Parsed) -> bool:
    return bool(segment_of(packet).flags & RST)


def tcp_quote_is_recent(session: Session, direction: str, quoted: Parsed) -> bool:
    """Return whether a quoted TCP segment was sent in `direction` not long ago (RFC 5927 section 4.1)."""
    end = session.connection and session.connection.ends[direction].end
    if end is None:
        return True
    seq = int.from_bytes(quoted.raw[quoted.start + 4 : quoted.start + 8], "big")
    return (end - seq) % 2**32 <= tcp.LARGEST_WINDOW


def like(free: set[int], wanted: int) -> set[int]:
    """Return the free ports that may stand in for `wanted`: of its class and parity, of its class, or above 1023."""
    classes = [range(1, LOW_PORTS), range(LOW_PORTS, 65536)]
    for wanted_class in classes if wanted < LOW_PORTS else classes[1:]:
        same_class = free.intersection(wanted_class)
        same_parity = {port for port in same_class if port % 2 == wanted % 2}
        if same_class:
            return same_parity or same_class
    return set()
