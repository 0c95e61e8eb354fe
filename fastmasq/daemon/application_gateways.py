"""Drives the application gateways: gives them the control connections of their ports, and the table what they open.

    path --punt--> control --> follower of the connection --> edits of its stream, openings --> table: the path goes on

A connection is followed from its first SYN on, or not at all: one that an inside client opens to a port of theirs, or
a client outside through a forward to such a port. It is followed no longer when the follower says so, and then passes
unasked; what was edited of it stays so, since the table knows the edits. The process that comes next goes on following.

Control methods, with parameters and result:

    gateways
     -> {"ports": {"ftp": [21], "irc": [], "raudio": [], "vdolive": []},
         "connections": [{"protocol": "ftp", "inside": "10.0.0.2:1035", "remote": "199.0.0.1:21", "opened": 2}, ...],
         "openings": [{"protocol": "tcp", "inside": "10.0.0.2:1036", "external": "200.200.200.200:1036",
                       "remote": "199.0.0.1"}, ...],
         "opened_total": 17,
         "refused": [{"reason": "low_port", "count": 1, "meaning": "the port announced is under 1024"}, ...]}
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address
from typing import Any, NamedTuple

import numpy as np

from fastmasq.config.schema import Gateways
from fastmasq.daemon.kept_followers import Kept, KeptFollowers, has_read_all, read_kept
from fastmasq.log_limit import LogLimit
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rows import INSIDE, OUTSIDE
from fastmasq.table.keys import Ends, ends_of, protocol_of
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import EDITS, INBOUND, OUTBOUND, SESSION_HAIRPIN, STATES, row_and_direction
from fastmasq.trackers.alg.announced import RealAudioFollower, VdoLiveFollower
from fastmasq.trackers.alg.follower import Direction, External, Follower, Known
from fastmasq.trackers.alg.ftp import FtpFollower
from fastmasq.trackers.alg.irc import IrcFollower
from fastmasq.trackers.alg.refusals import REFUSALS
from fastmasq.trackers.stream import Stream
from fastmasq.trackers.vpn.decision import Decision, dropped
from fastmasq.wire.numbers import TCP

log = logging.getLogger("fastmasq.gateways")

MOST_OPENINGS = 8  # of one inside host that wait
SPARE_EDITS = 2  # what a segment may need beside those of its commands: to let go, and to hold back
MOST_EDITS = EDITS - 1  # that a segment may have
MOST_OCTETS = 1 << 20  # of one connection that are read in a second
LINES_PER_SECOND = 20  # of the log
_SYN, _ACK = 0x02, 0x10
_ENDED = ("closing", "transitory")  # states of a session on which another connection may begin
ANYBODY = 0  # in place of a remote address
_FOLLOWERS: dict[str, type[Follower]] = {
    "ftp": FtpFollower,
    "irc": IrcFollower,
    "raudio": RealAudioFollower,
    "vdolive": VdoLiveFollower,
}


class Opening(NamedTuple):
    """One session that is expected: its row, and who is expected where."""

    row: int
    protocol: int
    host: int
    port: int
    external: External
    remote: int


class Connection:
    """One control connection: its session's row and ends, its follower and its two streams."""

    follower: Follower

    def __init__(self, row: int, ends: Ends, protocol: str) -> None:
        self.row = row
        self.ends = ends
        self.protocol = protocol
        self.streams: dict[Direction, Stream] = {"outbound": Stream(), "inbound": Stream()}
        self.opened = 0
        self.octets = 0  # read in this second

    @property
    def has_read(self) -> bool:
        return any(stream.has_read for stream in self.streams.values())

    def __str__(self) -> str:
        return f"{self.protocol} {_endpoint(self.ends.saddr, self.ends.sid)} - {_endpoint(*self.remote)}"

    @property
    def remote(self) -> tuple[int, int]:
        return self.ends.daddr, self.ends.did


class ApplicationGateways:
    """The application gateways of one forwarder. others: ports whose connections other trackers follow."""

    def __init__(self, table: MasqTable, forwarder: Forwarder, others: Sequence[int]) -> None:
        self._table = table
        self._forwarder = forwarder
        self._others = others
        self._ports: dict[int, str] = {}  # the protocol of each
        self.connections: dict[int, Connection] = {}  # by row of the session
        self._openings: dict[int, list[Opening]] = {}  # by inside host
        self._kept = KeptFollowers(table)
        self.refused: Counter[str] = Counter()
        self.opened_total = 0
        self._now_ns = 0  # when the packet in hand is decided about
        self._limit = LogLimit(log, LINES_PER_SECOND, "application gateways")

    def go_by(self, settings: Gateways) -> None:
        """Follow the connections that are opened to these ports from now on; of others nothing is read any more."""
        self._ports = {port: name for name in _FOLLOWERS for port in getattr(settings, name)}
        with self._forwarder.locked():
            self._table.follow_ports([*self._others, *self._ports])
        for connection in list(self.connections.values()):
            if connection.protocol not in self._ports.values():
                self._leave(connection.row)

    def handlers(self) -> dict[str, Callable[[dict], object]]:
        """Return the control methods."""
        return {"gateways": lambda _: self.describe()}

    # -- packets that wait -----------------------------------------------------------------------------------------

    def control(self, ref: int, packet: bytes, now: int) -> Decision:
        """Read a segment of a control connection, and have the table know how it leaves; return what becomes of it."""
        row, way = row_and_direction(ref)
        with self._forwarder.locked():
            session = self._table.sessions[row].copy()
        segment = packet[(packet[0] & 15) * 4 :]
        if ends_of(session["flow"][way]) != _ends(packet, segment):
            return Decision(to=(0,))  # the session has closed meanwhile, and another has its row
        connection = self._connection(row, session, way, begins=segment[13] & (_SYN | _ACK) == _SYN)
        if connection is None:
            self._leave(row)
            if session["flags"] & SESSION_HAIRPIN:
                self._leave_receiver(session)
            return Decision(to=(0,))
        self._now_ns = now
        return self._follow(connection, way, segment)

    def _follow(self, connection: Connection, way: int, segment: bytes) -> Decision:
        direction: Direction = "outbound" if way == OUTBOUND else "inbound"
        stream, follower = connection.streams[direction], connection.follower
        sequence = int.from_bytes(segment[4:8], "big")
        if segment[13] & _SYN:
            stream.begin(sequence)
            sequence = (sequence + 1) % (1 << 32)
        payload = segment[(segment[12] >> 4) * 4 :]
        if payload and not stream.is_lost:
            if stream.is_behind_hole(sequence) and not stream.is_lost:
                return dropped("stream_out_of_order")
            if stream.is_lost:
                follower.refuse("out_of_order")
            elif not self._make_room(connection, way, payload):
                return dropped("edits_full")
            else:
                self._read(connection, way, direction, *stream.take(sequence, payload))
        self._tell(connection)
        if follower.is_done or stream.is_lost:
            self._leave(connection.row)
        else:
            self._keep(connection)
        return Decision(to=(0,))

    def _make_room(self, connection: Connection, way: int, payload: bytes) -> bool:
        """Tell a follower how many commands of a segment may be edited; return whether it may read the segment now."""
        wanted = min(connection.follower.commands_in(payload) + SPARE_EDITS, MOST_EDITS)
        with self._forwarder.locked():
            left = self._table.edits_left(connection.row, way)
            is_edited = self._table.is_edited(connection.row)
        connection.follower.room = max(0, left - SPARE_EDITS)
        return left >= wanted or not is_edited

    def _read(self, connection: Connection, way: int, direction: Direction, sequence: int, octets: bytes) -> None:
        """Have a follower read new octets, and the table know what they leave as."""
        if not octets:
            return
        connection.octets += len(octets)
        if connection.octets > MOST_OCTETS:
            connection.follower.refuse("too_much")
        changes = connection.follower.read(direction, octets)
        with self._forwarder.locked():
            for change in changes:
                at = (sequence + change.start) % (1 << 32)
                self._table.edit(connection.row, way, at, change.length, change.text, change.last)

    def _connection(self, row: int, session: np.void, way: int, *, begins: bool) -> Connection | None:
        """Return the connection of a session, a new one for a SYN that begins one; None if it is not followed."""
        ends = ends_of(session["flow"][OUTBOUND])
        present = self.connections.get(row)
        is_over = begins and present is not None and present.has_read and STATES[session["state"]] in _ENDED
        if present is not None and present.ends == ends and not is_over:
            return present
        self._forget(row)
        return self._begin(row, session, way) if begins else None

    def _begin(self, row: int, session: np.void, way: int) -> Connection | None:
        """Follow the connection of a session, which was opened this way; None if it is not one to follow."""
        protocol = self._protocol(session, way)
        if protocol is None or session["flags"] & SESSION_HAIRPIN:
            return None
        ends = ends_of(session["flow"][OUTBOUND])
        connection = Connection(row, ends, protocol)
        masq = int(session["flow"][OUTBOUND]["saddr"])
        follower = _FOLLOWERS[protocol]
        remote = ANYBODY if follower.is_for_anybody else ends.daddr
        opens = partial(self._open, connection, masq, remote, follower.protocol)
        connection.follower = follower(ends.saddr, opens, serves=way == INBOUND)
        self.connections[row] = connection
        return connection

    def _protocol(self, session: np.void, way: int) -> str | None:
        """Return the protocol of a connection that is opened this way: by the port of the end that is to serve."""
        outbound = session["flow"][OUTBOUND]
        ends = ends_of(outbound)
        served = (ends.did,) if way == OUTBOUND else (ends.sid, int(outbound["sid"]))
        found = next((self._ports[port] for port in served if port in self._ports), None)
        is_wanted = found is not None and (way == OUTBOUND or _FOLLOWERS[found].may_serve)
        return found if is_wanted else None

    def _leave(self, row: int) -> None:
        """Have the path pass on unasked what comes of a session."""
        self._forget(row)
        with self._forwarder.locked():
            self._table.leave_unread(row, True)

    def _forget(self, row: int) -> None:
        self.connections.pop(row, None)
        self._kept.forget(row)

    def _leave_receiver(self, sender: np.void) -> None:
        """The same of the session by which packets that turn round come in again."""
        flow = sender["flow"][OUTBOUND]
        with self._forwarder.locked():
            found = self._table.find(TCP, OUTSIDE, *(int(flow[name]) for name in ("saddr", "sid", "daddr", "did")))
        if found is not None:
            self._leave(found[0])

    # -- for the process that comes next, and from the one before ---------------------------------------------------

    def _keep(self, connection: Connection) -> None:
        known = connection.follower.known()
        if known is None:
            self._kept.forget(connection.row)
        else:
            self._kept.note(connection.row, known, connection.streams)

    def go_on(self, left: np.ndarray) -> None:
        """Go on with what a process before has opened, and followed, by its rows; its sessions are adopted."""
        with self._forwarder.locked():
            awaited = [(row, self._table.sessions[row]["flow"][OUTBOUND].copy()) for row in self._table.expected()]
        for row, flow in awaited:
            host, port, remote, _ = ends_of(flow)
            external = External(int(flow["saddr"]), int(flow["sid"]))
            opening = Opening(int(row), protocol_of(flow), host, port, external, remote)
            self._openings.setdefault(host, []).append(opening)
        for kept in read_kept(left):
            with self._forwarder.locked():
                found = self._table.find(TCP, INSIDE, *kept.ends)
            if found is not None and found[1] == OUTBOUND and found[0] not in self.connections:
                self._go_on(found[0], kept)

    def _go_on(self, row: int, kept: Kept) -> None:
        with self._forwarder.locked():
            session = self._table.sessions[row].copy()
            has_all = has_read_all(self._table, row, kept.streams)
        connection = self._begin(row, session, INBOUND if Known.SERVES in kept.known else OUTBOUND) if has_all else None
        if connection is None:
            self._leave(row)
            return
        connection.streams = kept.streams
        connection.follower.go_on(kept.known)
        with self._forwarder.locked():
            self._table.leave_unread(row, False)
        self._keep(connection)

    # -- openings --------------------------------------------------------------------------------------------------

    def _open(self, connection: Connection, masq: int, remote: int, protocol: int, port: int) -> External | str:
        """Expect a remote host, or ANYBODY, at a port of a connection's inside host; return where, or why not."""
        host = connection.ends.saddr
        waiting = self._waiting(host)
        known = any((each.protocol, each.port, each.remote) == (protocol, port, remote) for each in waiting)
        if len(waiting) >= MOST_OPENINGS and not known:
            return "too_many_openings"
        with self._forwarder.locked():
            found = self._table.expect(protocol, host, port, remote, masq, self._now_ns)
        if isinstance(found, str):
            return "no_room"
        row, external_port = found
        external = External(masq, external_port)
        if not known:
            waiting.append(Opening(row, protocol, host, port, external, remote))
        connection.opened += 1
        self.opened_total += 1
        return external

    def _waiting(self, host: int) -> list[Opening]:
        """Return the openings of an inside host that nobody has come to yet."""
        with self._forwarder.locked():
            waiting = [each for each in self._openings.get(host, ()) if self._is_waiting(each)]
        self._openings[host] = waiting
        return waiting

    def _is_waiting(self, opening: Opening) -> bool:
        return self._table.is_expected(opening.row, opening.host, opening.port, opening.remote)

    # -- once in a while -------------------------------------------------------------------------------------------

    def every_second(self) -> None:
        """Forget the connections and openings that are over."""
        self._limit.every_second()
        rows = list(self.connections)
        with self._forwarder.locked():
            sessions = self._table.sessions[rows] if rows else []
        for row, session in zip(rows, sessions, strict=True):
            is_over = STATES[session["state"]] in ("free", *_ENDED)
            if is_over or ends_of(session["flow"][OUTBOUND]) != self.connections[row].ends:
                self._forget(row)
            else:
                self.connections[row].octets = 0
        for host in list(self._openings):
            if not self._waiting(host):
                del self._openings[host]

    def _tell(self, connection: Connection) -> None:
        """Log and count what has come of a segment."""
        follower = connection.follower
        for port, external in follower.opened:
            if self._limit.allows(logging.INFO):
                inside = _endpoint(connection.ends.saddr, port)
                log.info("%s: %s is opened as %s for a minute", connection, inside, _endpoint(*external))
        for name in follower.refused:
            self.refused[name] += 1
            if self._limit.allows(logging.WARNING):
                then = "; it is passed on unread from here" if REFUSALS[name].ends else ""
                log.warning("%s: %s%s", connection, REFUSALS[name].sentence, then)
        follower.opened.clear()
        follower.refused.clear()

    def describe(self) -> dict[str, Any]:
        """Answer the control method."""
        openings = [each for host in list(self._openings) for each in self._waiting(host)]
        return {
            "ports": {name: [port for port, each in self._ports.items() if each == name] for name in _FOLLOWERS},
            "connections": [
                {
                    "protocol": each.protocol,
                    "inside": _endpoint(each.ends.saddr, each.ends.sid),
                    "remote": _endpoint(*each.remote),
                    "opened": each.opened,
                }
                for each in self.connections.values()
            ],
            "openings": [
                {
                    "protocol": "tcp" if each.protocol == TCP else "udp",
                    "inside": _endpoint(each.host, each.port),
                    "external": _endpoint(*each.external),
                    "remote": str(IPv4Address(each.remote)) if each.remote else "any",
                }
                for each in openings
            ],
            **self.counters(),
        }

    def counters(self) -> dict[str, Any]:
        """Return what `status` shows."""
        return {
            "opened_total": self.opened_total,
            "refused": [
                {"reason": name, "count": self.refused[name], "meaning": refusal.sentence}
                for name, refusal in REFUSALS.items()
                if self.refused[name]
            ],
        }


def _ends(packet: bytes, segment: bytes) -> Ends:
    """Return the ends of a packet of TCP whose header has been checked."""
    source, destination = int.from_bytes(packet[12:16], "big"), int.from_bytes(packet[16:20], "big")
    return Ends(source, int.from_bytes(segment[:2], "big"), destination, int.from_bytes(segment[2:4], "big"))


def _endpoint(address: int, port: int) -> str:
    return f"{IPv4Address(address)}:{port}"
