"""Drives the VPN trackers: gives them the packets that wait for their word, and the path what they have settled.

    path --punt--> _control, _tunnel, _isakmp, _quote --> tracker --Decision--> path: sent, copied or dropped
    trackers: rows made, changed, gone --> TunnelRows --> the path moves their packets alone
    once a second: what the path moved --> trackers; control connections that have ended; rows whose time is over

Everything here happens in the main thread. A tracker's word is asked for by few packets: those of control connections
and of ISAKMP, and of tunnels until they are settled.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from msgspec.structs import replace

from fastmasq.clock import now_ns
from fastmasq.config.schema import Settings
from fastmasq.daemon.kept_tunnels import KeptTunnels
from fastmasq.daemon.leads import Leads
from fastmasq.daemon.ports import is_bound
from fastmasq.daemon.tunnel_rows import INBOUND, OUTBOUND, Key, TunnelRows, Way
from fastmasq.daemon.vpn_health import Health, Trackers
from fastmasq.daemon.vpn_listing import Listing
from fastmasq.log_limit import LogLimit
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rows import INSIDE, OUTSIDE
from fastmasq.table.keys import ends_of
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import SESSION_HAIRPIN, STATES, row_and_direction
from fastmasq.trackers.vpn.calls import Call, CallSettings, CallTable
from fastmasq.trackers.vpn.connection import FINISHED, OVER, Connection, KeptConnection
from fastmasq.trackers.vpn.decision import Decision, dropped
from fastmasq.trackers.vpn.events import Event
from fastmasq.trackers.vpn.evidence import Association
from fastmasq.trackers.vpn.ipsec import Ipsec
from fastmasq.trackers.vpn.isakmp import IpsecSettings
from fastmasq.trackers.vpn.pptp import ControlFollower, Direction, Followed
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire.numbers import ESP, GRE, ISAKMP_PORT, PPTP_PORT, TCP, UDP
from fastmasq.wire.tunnels import NO_COOKIE, read_esp, read_gre, read_isakmp

log = logging.getLogger("fastmasq.vpn")

MOST_NEWS = 256  # events that are kept for whoever takes them
LINES_PER_SECOND = 20  # of the log
ASK_AGAIN = 60 * NS_PER_SECOND
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_ICMP_LENGTH, _UDP_LENGTH, _COOKIE_LENGTH = 8, 8, 8
_SYN, _RST, _ACK = 0x02, 0x04, 0x10


def ipsec_settings(settings: Settings) -> IpsecSettings:
    """Return the trackers' settings: 1999's rules to the letter with `compat`, else with all the evidence."""
    vpn = settings.vpn
    return IpsecSettings(
        lifetime=vpn.ipsec_lifetime,
        init_lifetime=vpn.ipsec_init_lifetime,
        init_retries=vpn.ipsec_init_retries,
        squelch=vpn.ipsec_squelch,
        guess=vpn.ipsec_guess,
        most_candidates=vpn.ipsec_guess_hosts,
        guess_margin=vpn.ipsec_guess_margin,
        remote_phase1=vpn.ipsec_remote_phase1,
        parallel=vpn.ipsec_parallel,
        evidence=settings.compat == "modern",
    )


def followable(settings: Settings, *, observes: bool) -> Settings:
    """Return the settings without what cannot be followed. A host with an IKE daemon keeps IPsec itself."""
    wanted = settings.vpn
    if wanted.ipsec and is_bound(UDP, ISAKMP_PORT):
        log.warning("a program of this host has UDP port 500, so IPsec of inside hosts is not followed")
        wanted = replace(wanted, ipsec=False)
    if wanted.preload and not wanted.ipsec:
        log.warning("IPsec is not followed, so nobody is listened to on [vpn] preload = %s", wanted.preload)
        wanted = replace(wanted, preload=0)
    if observes:
        wanted = replace(wanted, preload=0)  # nobody is answered
    return replace(settings, vpn=wanted)


class Vpn:
    """The trackers of one gateway. `address` returns the one that a host's packets leave with now, or None."""

    def __init__(
        self,
        settings: Settings,
        table: MasqTable,
        forwarder: Forwarder,
        forwards: Leads,
        address: Callable[..., int | None],
    ) -> None:
        self.settings = settings.vpn
        self.table = table
        self.forwarder = forwarder
        self.forwards = forwards
        self.address = address
        self.calls = CallTable(CallSettings(loose_source=settings.vpn.pptp_loose_source))
        self.ipsec = Ipsec(ipsec_settings(settings))
        self.connections: dict[int, Connection] = {}  # by row of the session
        self._numbers = 0
        self._tunnels: dict[tuple[int, int], set[int]] = {}  # numbers of the SAs of an inside host with a remote
        self._refused: set[int] = set()  # rows of sessions that there was no room to follow
        self._ask_again_at = 0
        self._limit = LogLimit(log, LINES_PER_SECOND, "VPNs")
        self._news: deque[Event] = deque(maxlen=MOST_NEWS)
        forwarder.follow(pptp=settings.vpn.pptp, ipsec=settings.vpn.ipsec)
        table.follow_ports([PPTP_PORT] * settings.vpn.pptp)
        self.rows = TunnelRows(forwarder)
        trackers = Trackers(self.connections, self.calls, self.ipsec)
        self.kept = KeptTunnels(trackers)
        self.health = Health(trackers, forwards, table, forwarder)
        self.listing = Listing(settings.vpn, trackers, self.health, self.rows, table, forwarder)

    def protocols(self) -> list[int]:
        """Return the IP protocols that are ours, and not the host's."""
        return [GRE] * self.settings.pptp + [ESP] * self.settings.ipsec

    def handlers(self) -> dict[str, Callable[[dict], object]]:
        """Return the control methods."""
        return {"vpn": lambda params: self.listing.describe(now_ns(), params)}

    def take_news(self) -> list[Event]:
        """Return what trackers had to say since the last call, the last of it if it is much."""
        news = list(self._news)
        self._news.clear()
        return news

    # -- packets that wait -----------------------------------------------------------------------------------------

    def decide(
        self, kind: str, side: int, ref: int, packet: bytes, now: int
    ) -> tuple[Decision, tuple[tuple[int, bytes], ...]]:  # fmt: skip
        """Decide about a packet that waits, and put into the path what that has settled; return also edits of it."""
        edits: tuple[tuple[int, bytes], ...] = ()
        tunnel: Key | None = None
        if kind == "control":
            decision, edits = self._control(ref, packet, now)
        elif kind == "tunnel":
            decision, tunnel = self._tunnel(side, packet, now)
        elif kind == "isakmp":
            decision = self._isakmp(side, packet, now)
        else:
            decision = self._quote(side, packet)
        self.follow_rows()
        if tunnel is not None:
            self.rows.count(tunnel, side)
        self._say(decision.events)
        return decision, edits

    def _tunnel(self, side: int, packet: bytes, now: int) -> tuple[Decision, Key | None]:
        """Decide about GRE or ESP that no row of the path explains; return also which tunnel's packet is let pass."""
        source, destination, protocol, payload = _read(packet)
        if protocol == GRE:
            decision = self._gre(side, source, destination, read_gre(payload).call_id, now)
            row = decision.row
        else:
            spi, sequence = read_esp(payload)
            decision = self._esp(side, source, destination, spi, sequence, now)
            row = self.ipsec.esp.by_outbound(source, destination, spi) if side == OUTBOUND else decision.row
        is_counted = decision.to and row is not None
        return decision, ("gre" if protocol == GRE else "esp", row.number) if is_counted else None

    def _gre(self, side: int, source: int, destination: int, call_id: int, now: int) -> Decision:
        if side == OUTBOUND:
            return self.calls.outbound(source, self.address(source), destination, call_id, now)
        redirect = self.forwards.redirected(GRE, source)
        return _or_drop(self.calls.inbound(source, destination, call_id, now, redirect), "gre_no_row")

    def _esp(self, side: int, source: int, destination: int, spi: int, sequence: int, now: int) -> Decision:
        if side == OUTBOUND:
            known = self.ipsec.esp.masq_of(source, destination, spi)
            masq = self._masq(source, self.ipsec.masq_with(source, destination) if known is None else known)
            return self.ipsec.esp_outbound(source, masq, destination, spi, sequence, now)
        redirect = self.forwards.redirected(ESP, source)
        return _or_drop(self.ipsec.esp_inbound(source, destination, spi, sequence, now, redirect), "esp_no_row")

    def _isakmp(self, side: int, packet: bytes, now: int) -> Decision:
        """Decide about UDP from port 500 to port 500; what is too short for ISAKMP follows the last that was not."""
        source, destination, _, payload = _read(packet)
        header = read_isakmp(payload[_UDP_LENGTH:])
        if side == OUTBOUND:
            if header is None:
                return Decision(to=(self.address(source),))
            masq = self._masq(source, self.ipsec.exchanges.masq_of(source, destination, header))
            return self.ipsec.isakmp_outbound(source, masq, destination, header, now)
        if header is None:
            return self._to(self.ipsec.exchanges.host_of(source, destination, None))
        redirect = self.forwards.target_of(destination, "udp", ISAKMP_PORT)
        return _or_drop(self.ipsec.isakmp_inbound(source, destination, header, now, redirect), "isakmp_no_row")

    def _masq(self, host: int, known: int | None) -> int:
        """Return the address that a packet leaves with: that of its row, which `move` keeps right, else the usual."""
        return self.address(host) if known is None else known

    def _quote(self, side: int, packet: bytes) -> Decision:
        """Decide about an ICMP error that quotes ISAKMP, or ESP that is not settled: whose packet it was (C-48)."""
        quoted = packet[(packet[0] & 15) * 4 + _ICMP_LENGTH :]
        source, destination, protocol, payload = _read(quoted)
        if side == OUTBOUND:  # from an inside host, about what came in
            return self._to(self.ipsec.masq_with(destination, source))
        if protocol == ESP:
            return self._to(self.ipsec.esp.host_of(destination, source, read_esp(payload).spi), "esp_no_row")
        cookie = payload[_UDP_LENGTH : _UDP_LENGTH + _COOKIE_LENGTH]
        initiator = cookie if len(cookie) == _COOKIE_LENGTH and cookie != NO_COOKIE else None
        return self._to(self.ipsec.exchanges.host_of(destination, source, initiator))

    @staticmethod
    def _to(address: int | None, reason: str = "isakmp_no_row") -> Decision:
        return dropped(reason) if address is None else Decision(to=(address,))

    # -- PPTP control connections --------------------------------------------------------------------------------------

    def _control(self, ref: int, packet: bytes, now: int) -> tuple[Decision, tuple[tuple[int, bytes], ...]]:
        """Read a segment of a control connection; return what becomes of it and of its payload."""
        row, way = row_and_direction(ref)
        direction = "outbound" if way == OUTBOUND else "inbound"
        source, destination, _, segment = _read(packet)
        with self.forwarder.locked():
            session = self.table.sessions[row].copy()
        ports = (int.from_bytes(segment[:2], "big"), int.from_bytes(segment[2:4], "big"))
        if ends_of(session["flow"][way]) != (source, ports[0], destination, ports[1]):
            return Decision(to=(0,)), ()  # the session has closed meanwhile, and another has its row
        followed = [(row, session, direction)]
        if session["flags"] & SESSION_HAIRPIN:
            followed += self._receiver(session)
        payload = segment[(segment[12] >> 4) * 4 :]
        edits: tuple[tuple[int, bytes], ...] = ()
        events: tuple[Event, ...] = ()
        for one in followed:
            result = self._follow(*one, segment, payload, now)
            payload, edits, events = result.applied(payload), edits + result.edits, events + result.events
            if result.drop:
                return dropped(result.drop, *events), ()
        return Decision(to=(0,), events=events), edits

    def _receiver(self, sender: np.void) -> list[tuple[int, np.void, Direction]]:
        """Return the session by which a packet that turns round comes in again, as the other follower's part of it."""
        flow = sender["flow"][OUTBOUND]
        ends = (int(flow[name]) for name in ("saddr", "sid", "daddr", "did"))
        with self.forwarder.locked():
            found = self.table.find(TCP, OUTSIDE, *ends)
            return [] if found is None else [(found[0], self.table.sessions[found[0]].copy(), "inbound")]

    def _follow(
        self, row: int, session: np.void, direction: Direction, segment: bytes, payload: bytes, now: int
    ) -> Followed:  # fmt: skip
        """Have the follower of a session's connection read a segment that goes its way; `payload` as it comes to it."""
        is_syn = bool(segment[13] & _SYN)
        connection = self._connection(row, session, now, anew=is_syn)
        if connection is None:
            return Followed()
        connection.accepted |= is_syn and bool(segment[13] & _ACK)
        if segment[13] & _RST and direction == "inbound" and not (connection.accepted or connection.serves):
            self.health.reports.note_refusal(connection.inside, connection.remote)
        sequence = int.from_bytes(segment[4:8], "big")
        if is_syn:
            if connection.is_begun_again(direction, sequence, segment):
                connection.state = "transitory"  # what was before is over
                self._say(self._end(connection, now))
                begun = connection.reopening
                connection = self._connection(row, session, now, anew=False)
                if connection is None:
                    return Followed()
                connection.isns.update([begun, (direction, sequence)])
                connection.follower.begin(*begun)
            if connection.isns.get(direction) == sequence:
                connection.follower.begin(direction, sequence)
            sequence = (sequence + 1) % (1 << 32)
        followed = connection.follower.follow(direction, sequence, payload, now)
        self.kept.note_connection(connection)
        self._leave_if_done(connection)
        return followed

    def _leave_if_done(self, connection: Connection) -> None:
        """Have the path pass a connection on unasked of which nothing has to be seen any more."""
        if connection.follower.is_done and not connection.unread:
            connection.unread = True
            with self.forwarder.locked():
                self.table.leave_unread(connection.row, True)

    def _connection(self, row: int, session: np.void, now: int, *, anew: bool) -> Connection | None:
        """Return the control connection of a session, a new one if the row, or with a SYN the session, is another's.

        None if there are too many to follow: the session is then left alone for a while.
        """
        outbound = session["flow"][OUTBOUND]
        ends = ends_of(outbound)
        present = self.connections.get(row)
        if present is not None:
            if present.key == ends and not (anew and STATES[session["state"]] in FINISHED):
                return present
            if present.key == ends:
                present.state = STATES[session["state"]]
            self._say(self._end(present, now))
        self._numbers += 1
        refused = self.calls.attach(self._numbers, ends.saddr, int(outbound["saddr"]), ends.daddr)
        if refused:
            self._say(refused)
            self._refused.add(row)
            with self.forwarder.locked():
                self.table.leave_unread(row, True)
            return None
        connection = self._add_connection(row, ends, self._numbers, now)
        if not connection.serves:
            self.health.reports.note_connection(ends.saddr, ends.daddr, now)
        return connection

    def _add_connection(self, row: int, ends: tuple[int, int, int, int], number: int, since: int) -> Connection:
        """Return a control connection that has been attached under a number."""
        inside, _, remote, port = ends
        self.connections[row] = Connection(
            row=row,
            key=ends,
            inside=inside,
            remote=remote,
            number=number,
            follower=ControlFollower(self.calls, number),
            since=since,
            serves=port != PPTP_PORT,
        )
        return self.connections[row]

    def _end(self, connection: Connection, now: int) -> tuple[Event, ...]:
        """Forget a control connection: closed by its ends, if that was seen, or lost."""
        del self.connections[connection.row]
        self.kept.note_connection(connection)
        if connection.unread:
            with self.forwarder.locked():
                self.table.leave_unread(connection.row, False)
        return connection.follower.end(now, by_peer=connection.is_closed)

    def _watch_connections(self, now: int) -> None:
        """Notice which control connections are over: what closes them is judged by their sessions, not by us."""
        connections = list(self.connections.values())
        with self.forwarder.locked():
            sessions = self.table.sessions[[connection.row for connection in connections]] if connections else []
        for connection, session in zip(connections, sessions, strict=True):
            state = STATES[session["state"]]
            if state == "free" or connection.key != ends_of(session["flow"][OUTBOUND]):
                self._say(self._end(connection, now))
                continue
            if state in OVER and connection.state not in OVER:
                self._say(connection.follower.end(now))
                self.kept.note_connection(connection)
            connection.state = state

    def _ask_again(self, now: int) -> None:
        """Let the path ask again about sessions that there was no room for: their rows may be another's by now."""
        if now < self._ask_again_at:
            return
        self._ask_again_at = now + ASK_AGAIN
        with self.forwarder.locked():
            for row in self._refused:
                if row not in self.connections:
                    self.table.leave_unread(row, False)
        self._refused.clear()

    # -- once in a while -------------------------------------------------------------------------------------------

    def every_second(self, now: int) -> None:
        """Tell the trackers what the path has moved, and let end what is over."""
        self._limit.every_second()
        for (kind, number), outbound_ns, inbound_ns, sequence in self.rows.moved(now):
            if kind == "gre":
                self.calls.saw(number, outbound_ns, inbound_ns)
                row = self.calls.calls.get(number)
            else:
                self.ipsec.esp.saw(number, outbound_ns, inbound_ns, sequence)
                row = self.ipsec.esp.rows.get(number)
            if row is not None:
                self.kept.note_times(row)
        self._watch_connections(now)
        self._ask_again(now)
        self._say(self.calls.expire(now))
        self.ipsec.expire(now)
        self.follow_rows()
        self.kept.every_second()
        for line in self.health.look(now, self._limit.left):
            if self._limit.allows(logging.WARNING):
                log.warning("%s", line)

    def addresses(self) -> set[int]:
        """Return the external addresses of everything that is followed."""
        esp, exchanges = self.ipsec.esp.rows, self.ipsec.exchanges.exchanges
        return {row.masq for rows in (self.calls.controls, self.calls.calls, exchanges, esp) for row in rows.values()}

    def move(self, old: int, new: int) -> None:
        """Let everything on an external address that has been left follow to the new one (P-28, E-10)."""
        self._say(self.calls.move(old, new))
        self._say(self.ipsec.move(old, new))
        for connection in self.connections.values():
            self.kept.note_connection(connection)
        self.follow_rows()

    # -- what a run before has left --------------------------------------------------------------------------------

    def adopt_connection(self, kept: KeptConnection, now: int) -> Connection | str:
        """Return the control connection that another process has followed, if its session is here; or why not."""
        if kept.since > now:
            return "torn"
        found = self.table.find(TCP, INSIDE, *kept.key)
        if found is None:
            return "no session"
        row, _ = found
        if row in self.connections:
            return "twice"
        inside, _, remote, _ = kept.key
        if self.calls.attach(self._numbers + 1, inside, kept.masq, remote):
            return "no room"
        self._numbers += 1
        connection = self._add_connection(row, kept.key, self._numbers, kept.since)
        self.calls.controls[connection.number].made = kept.made
        connection.accepted, connection.isns = kept.accepted, kept.isns
        connection.follower.lost = kept.lost
        return connection

    def go_on_following(self, connection: Connection, kept: KeptConnection, calls: Mapping[int, Call]) -> None:
        """Go on with the streams of such a connection; `calls` are those adopted, by the numbers that they had."""
        session = self.table.sessions[connection.row]
        fin = STATES[session["state"]] in FINISHED  # which counts in `end`, and is no octet of the stream
        outbound, inbound = (int(session["tcp"]["end"][way]) - fin for way in (OUTBOUND, INBOUND))
        sent: dict[Direction, int] = {"outbound": outbound, "inbound": inbound}
        self._say(connection.follower.go_on(kept.streams, sent, calls))
        self._leave_if_done(connection)

    def begin_with_adopted(self) -> None:
        """Have the path move what was adopted."""
        self.follow_rows()
        self.health.go_on()

    # -- within ----------------------------------------------------------------------------------------------------

    def follow_rows(self) -> None:
        """Have the path move what the trackers have settled, and nothing else, once it outlives this process."""
        self.kept.flush()
        for call in self.calls.take_changes():
            self._place_call(call)
        for association in self.ipsec.esp.take_changes():
            self._place_association(association)

    def _place_call(self, call: Call) -> None:
        key = ("gre", call.number)
        if call.state == "closed":
            self.rows.forget(key)
            return
        inbound = Way((call.remote, call.masq, call.external_id), (call.remote, call.inside), call.local_id)
        outbound = None
        if call.remote_id is not None or call.state == "passthrough":
            outbound = Way((call.inside, call.remote, call.remote_id), (call.masq, call.remote))
        self._place(call, key, GRE, outbound, inbound)

    def _place_association(self, row: Association) -> None:
        key = ("esp", row.number)
        self._say(self.note_tunnel(row))
        if row.state == "closed":
            self.rows.forget(key)
            return
        if row.state != "established":
            self.rows.remove(key)
            return
        outbound = Way((row.inside, row.remote, row.ospi), (row.masq, row.remote)) if row.ospi else None
        self._place(row, key, ESP, outbound, Way((row.remote, row.masq, row.ispi), (row.remote, row.inside)))

    def note_tunnel(self, row: Association) -> tuple[Event, ...]:
        """Take note of an SA; return whether an IPsec tunnel begins by it, which was the first, or ends with the last.

        One that was made by hand says nothing of the other end.
        """
        if row.preloaded:
            return ()
        ends = (row.inside, row.remote)
        present = self._tunnels.get(ends, set())
        after = present | {row.number} if row.state == "established" else present - {row.number}
        self._tunnels[ends] = after
        if not after:
            del self._tunnels[ends]
        if bool(after) == bool(present):
            return ()
        kind = "ipsec_begins" if after else "ipsec_ends"
        return (Event(kind=kind, inside=row.inside, remote=row.remote, id=row.ispi),)

    def _place(
        self, row: Call | Association, key: Key, protocol: int, outbound: Way | None, inbound: Way | None
    ) -> None:  # fmt: skip
        """Have the path move a tunnel; while it has no room, each of its packets is asked about."""
        if not self.rows.place(key, protocol, outbound, inbound):
            self._say([Event(kind="path_full", inside=row.inside, remote=row.remote)])

    def _say(self, events: Iterable[Event]) -> None:
        """Log what trackers have to say, at most LINES_PER_SECOND of it a second."""
        for event in events:
            self._news.append(event)
            level = _LEVELS[event.level]
            if self._limit.allows(level):
                log.log(level, "%s", event.text)


def _read(packet: bytes) -> tuple[int, int, int, bytes]:
    """Return source, destination, protocol and payload of an IPv4 packet whose header has been checked."""
    source, destination = int.from_bytes(packet[12:16], "big"), int.from_bytes(packet[16:20], "big")
    return source, destination, packet[9], packet[(packet[0] & 15) * 4 :]


def _or_drop(decision: Decision, reason: str) -> Decision:
    """Return a decision that is never to leave a packet to the host: what no inside host claims is dropped by name."""
    return dropped(reason, *decision.events) if decision.local else decision
