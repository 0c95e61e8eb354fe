"""Follows one PPTP control connection by TCP sequence and translates the Call IDs in it, both ways.

A segment goes in, edits come out: where in its payload which octets change. Lengths never change, so neither sequence
numbers nor options do; only the checksum moves. What a field holds decides what happens to it, not who called whom
(rule P-1): the inside host's own number leaves as the external one, the external one comes back as the host's own, and
the remote's number is never touched, only learned.

Segments may split messages anywhere, hold several, repeat or overlap (P-42):

* The new part of a segment, from the next expected octet on, is read. The old part is changed where it was changed the
  first time, in the same way, whatever has become of the call since. So many edits are remembered for each direction
  that none in flight is forgotten.
* A segment that begins behind a hole cannot be read, since nobody knows where a message begins in it. It is dropped,
  and the sender repeats it in order. A sender that never fills the hole would stall, so after a few drops in a row
  the connection is passed on unread.
* If the two octets of an id are split, the first has to leave before the second is known: holding it back could stall
  the sender for ever (RFC 896 allows only one small segment in flight). The upper octet is chosen then, and the
  external id to fit it.

Lost sync, a header that is none, ends the translation of that connection, once and for all, and never the connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct

from fastmasq.trackers.vpn.calls import Call, CallTable
from fastmasq.trackers.vpn.events import Event
from fastmasq.trackers.vpn.fields import Number, Octet, SequenceNumber
from fastmasq.wire.pptp import CONNECTED, CONTROL, FIELDS_END, HEADER_LENGTH, Header, Layout, Type

Direction = Literal["outbound", "inbound"]

MOST_EDITS = 512  # octets remembered for each direction: 256 ids, more than a window of real messages holds
MOST_DROPS = 256  # segments behind one hole before the connection is passed on unread
FURTHEST = 1 << 20  # octets; no control connection has more in flight
_SEQUENCES = 1 << 32

_ALLOCATING = (
    Type.OUTGOING_CALL_REQUEST, Type.OUTGOING_CALL_REPLY, Type.INCOMING_CALL_REQUEST, Type.INCOMING_CALL_REPLY,
)  # fmt: skip
_REPLIES = (Type.OUTGOING_CALL_REPLY, Type.INCOMING_CALL_REPLY)
_ENDINGS = {Type.CALL_CLEAR_REQUEST: "cleared", Type.CALL_DISCONNECT_NOTIFY: "disconnected"}


class Followed(Struct, frozen=True, kw_only=True):
    """What to do with a segment: change (offset in payload, one or two octets), or drop it by name; and what to say."""

    edits: tuple[tuple[int, bytes], ...] = ()
    drop: str = ""
    events: tuple[Event, ...] = ()

    def applied(self, payload: bytes) -> bytes:
        """Return the payload as it leaves."""
        changed = bytearray(payload)
        for offset, octets in self.edits:
            changed[offset : offset + len(octets)] = octets
        return bytes(changed)


class KeptStream(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What another process needs to go on with a Stream; `call` is the number of its row."""

    expected: SequenceNumber | None = None
    has_read: bool = False
    head: Annotated[bytes, Meta(max_length=FIELDS_END - 1)] = b""
    skip: Annotated[int, Meta(ge=0, le=0xFFFF)] = 0
    call: Number | None = None
    upper: Octet | None = None
    edits: Annotated[tuple[tuple[SequenceNumber, Octet], ...], Meta(max_length=MOST_EDITS)] = ()


class Stream:
    """One direction: where it is, the start of the message being read, and the edits made so far."""

    def __init__(self) -> None:
        self.expected: int | None = None  # sequence number of the next octet; None until known
        self.has_read = False
        self.head = bytearray()  # of the current message, up to FIELDS_END octets
        self.skip = 0  # octets of the current message that are left and do not matter
        self.header: Header | None = None  # of the current message, once read
        self.call: Call | None = None  # that the current message is about
        self.upper: int | None = None  # upper octet already sent of an id whose lower one is still to come
        self.edits: dict[int, int] = {}  # sequence number: octet sent in place
        self.drops = 0  # since the last progress

    def remember(self, sequence: int, octet: int) -> None:
        self.edits.pop(sequence, None)
        self.edits[sequence] = octet
        if len(self.edits) > MOST_EDITS:
            del self.edits[next(iter(self.edits))]

    def repeated(self, sequence: int, length: int) -> tuple[tuple[int, bytes], ...]:
        """Return the edits that `length` octets from `sequence` on got when they were sent first."""
        if not length:
            return ()
        places = (((at - sequence) % _SEQUENCES, octet) for at, octet in self.edits.items())
        return tuple((place, bytes((octet,))) for place, octet in places if place < length)

    def next_message(self) -> None:
        self.head.clear()
        self.header, self.call, self.upper = None, None, None

    def value(self, start: int) -> int:
        """Return the id at `start` of the current message, which has been read to behind it."""
        return int.from_bytes(self.head[start : start + 2], "big")

    def kept(self) -> KeptStream:
        return KeptStream(
            expected=self.expected,
            has_read=self.has_read,
            head=bytes(self.head),
            skip=self.skip,
            call=self.call.number if self.call is not None else None,
            upper=self.upper,
            edits=tuple(self.edits.items()),
        )

    def go_on(self, kept: KeptStream, calls: Mapping[int, Call], *, outbound: bool) -> bool:
        """Be where another process was; return whether it can have been there. calls: by the numbers they had there."""
        self.expected, self.has_read, self.skip, self.upper = kept.expected, kept.has_read, kept.skip, kept.upper
        self.head[:] = kept.head
        self.header = Header.parse(kept.head)
        self.call = calls.get(kept.call) if kept.call is not None else None
        self.edits = dict(kept.edits)
        if self.expected is None:
            return not (self.has_read or self.head or self.skip or self.edits) and self.upper is None
        if len(self.head) < HEADER_LENGTH:
            return self.upper is None and not (self.head and self.skip)
        layout = self.header.layout if self.header is not None else None
        if layout is None or self.skip or len(self.head) >= min(self.header.length, FIELDS_END):
            return False
        ours = layout.call_id if outbound else layout.peer_call_id
        if ours is None or len(self.head) <= ours:
            return self.upper is None
        return self.upper is not None or len(self.head) > ours + 1


class ControlFollower:
    """The follower of one control connection, which must be attached to the table under the same number.

    `follow` must see every segment with payload, each way, before it leaves. Without `begin` (the connection is older
    than the gateway) reading starts at the first segment that begins with a message; what is before passes unread.
    """

    def __init__(self, calls: CallTable, number: int) -> None:
        self.calls = calls
        self.control = calls.controls.get(number)
        self.lost = self.control is None  # passed on unread
        self._streams = {"outbound": Stream(), "inbound": Stream()}

    def begin(self, direction: Direction, sequence: int) -> None:
        """Tell the sequence number of a SYN: the first octet of the stream follows it. A late copy changes nothing."""
        stream = self._streams[direction]
        if not stream.has_read:
            stream.expected = (sequence + 1) % _SEQUENCES

    def follow(self, direction: Direction, sequence: int, payload: bytes, now: int) -> Followed:
        """Decide about one segment whose first octet has this sequence number."""
        stream = self._streams[direction]
        if stream.expected is None and not self.lost and Header.parse(payload[:HEADER_LENGTH]):
            stream.expected = sequence
        if stream.expected is None or not payload:
            return Followed()
        ahead = _distance(stream.expected, sequence)
        old = max(0, min(-ahead, len(payload)))
        edits = stream.repeated(sequence, old)
        if self.lost or old == len(payload):
            return Followed(edits=edits)
        if ahead > 0:
            return self._hole(stream, ahead)
        stream.drops, stream.has_read = 0, True
        reader = _Reader(self, direction, stream, now)
        reader.read(payload, old, sequence)
        stream.expected = (sequence + len(payload)) % _SEQUENCES
        return Followed(edits=edits + tuple(reader.edits), events=tuple(reader.events))

    @property
    def has_read(self) -> bool:
        """Whether anything of the streams has been read."""
        return any(stream.has_read for stream in self._streams.values())

    @property
    def is_done(self) -> bool:
        """Whether no segment of the connection has to be seen any more: sync is lost, and nothing was ever changed."""
        return self.lost and not any(stream.edits for stream in self._streams.values())

    def kept(self) -> dict[Direction, KeptStream]:
        """Return what another process needs to go on with both streams."""
        return {direction: stream.kept() for direction, stream in self._streams.items()}

    def go_on(
        self, kept: Mapping[Direction, KeptStream], sent: Mapping[Direction, int], calls: Mapping[int, Call]
    ) -> tuple[Event, ...]:  # fmt: skip
        """Go on where another process was, or unread if it has missed something.

        sent: the sequence number behind the last octet that has passed each way. calls: by the numbers they had there.
        """
        events: tuple[Event, ...] = ()
        for direction, stream in self._streams.items():
            if not stream.go_on(kept.get(direction, KeptStream()), calls, outbound=direction == "outbound"):
                self._streams[direction] = Stream()
                events += self.lose("what was noted of it is damaged")
            elif stream.expected is not None and _distance(stream.expected, sent[direction]) > 0:
                events += self.lose("more of it has passed than was read")
        return events

    def end(self, now: int, *, by_peer: bool = True) -> tuple[Event, ...]:
        """Tell that the connection is over: `by_peer` with FIN or RST, otherwise its session was lost (P-47)."""
        self.lost = True
        return self.calls.detach(self.control.number, now, ended=by_peer) if self.control else ()

    def lose(self, why: str) -> tuple[Event, ...]:
        """Stop translating; say so the first time."""
        if self.lost:
            return ()
        self.lost = True
        return (Event(kind="control_lost_sync", inside=self.control.inside, remote=self.control.remote, why=why),)

    def _hole(self, stream: Stream, ahead: int) -> Followed:
        """Drop what is behind a hole; a segment further ahead than any window is nobody's and does not count."""
        stream.drops += ahead <= FURTHEST
        if stream.drops > MOST_DROPS:
            return Followed(events=self.lose("a hole in the stream is not filled"))
        return Followed(drop="stream_out_of_order")


class _Reader:
    """Reads the new octets of one segment: collects edits and events, moves the stream and the calls on."""

    def __init__(self, follower: ControlFollower, direction: Direction, stream: Stream, now: int) -> None:
        self.follower, self.calls, self.control = follower, follower.calls, follower.control
        self.outbound = direction == "outbound"
        self.stream, self.now = stream, now
        self.edits: list[tuple[int, bytes]] = []
        self.events: list[Event] = []

    def read(self, payload: bytes, start: int, sequence: int) -> None:
        """Read `payload` from `start` on, octet by octet only where fields are."""
        stream, at = self.stream, start
        while at < len(payload) and not self.follower.lost:
            if stream.skip:
                step = min(stream.skip, len(payload) - at)
                stream.skip -= step
                at += step
                continue
            stream.head.append(payload[at])
            self._octet(at, (sequence + at) % _SEQUENCES, last=at + 1 == len(payload))
            at += 1

    def _octet(self, offset: int, sequence: int, *, last: bool) -> None:
        """Act on the octet just added to the head; `last` says that the segment ends with it."""
        stream, length = self.stream, len(self.stream.head)
        if length < HEADER_LENGTH:
            return
        if length == HEADER_LENGTH:
            stream.header = Header.parse(stream.head)
            if stream.header is None:
                self.events += self.follower.lose("no PPTP message where one must begin")
                return
            self._note_stop()
        layout = stream.header.layout
        if layout is not None:
            self._field(layout, length - 1, offset, sequence, last=last)
        if layout is None or length == min(stream.header.length, FIELDS_END):
            stream.skip = stream.header.length - length
            stream.next_message()

    def _field(self, layout: Layout, at: int, offset: int, sequence: int, *, last: bool) -> None:
        """Act on the octet at `at` of the message if it is part of an id, or a result."""
        ours, theirs = layout.call_id, layout.peer_call_id
        if not self.outbound:
            ours, theirs = theirs, ours
        if ours is not None:
            if at == ours and last:
                self._send_upper(offset, sequence)
            elif at == ours + 1:
                self._translate(self.stream.value(ours), offset, sequence)
        if theirs is not None and at == theirs + 1:
            self._note_remote(self.stream.value(theirs))
        if at == layout.result:
            self._note_result(self.stream.head[at])

    # -- the inside host's number, which is translated -----------------------------------------------------------------

    def _translate(self, value: int, offset: int, sequence: int) -> None:
        """Write the other form of an id whose lower octet is at `offset`: host's own outbound, external one inbound."""
        upper = self.stream.upper
        call = self._named_outbound(value) if self.outbound else self._named_inbound(value)
        self.stream.call = call
        after = value if call is None else call.external_id if self.outbound else call.local_id
        if upper is None:
            self._write(offset - 1, sequence - 1, after.to_bytes(2, "big"), value.to_bytes(2, "big"))
        elif upper == after >> 8:
            self._write(offset, sequence, bytes((after & 0xFF,)), bytes((value & 0xFF,)))
        else:
            self._say("control_split")
        why = _ENDINGS.get(self.stream.header.control_type)
        if call is not None and self.outbound and why:
            self.events += self.calls.retire(call, self.now, why)

    def _named_outbound(self, value: int) -> Call | None:
        """Return the call that the inside host means by its own number; requests and replies make one."""
        number = self.control.number
        call = self.calls.by_local_id(number, value)
        if self.stream.header.control_type not in _ALLOCATING or (call and call.state != "closing"):
            return call
        made = self.calls.open(number, value, self.now, self.stream.upper)
        if isinstance(made, str):
            self._say("call_denied", id=value, why=made)
            return None
        self._say("call_asked", id=value, new_id=made.external_id)
        return made

    def _named_inbound(self, value: int) -> Call | None:
        """Return the call that the remote means by an external number."""
        call = self.calls.by_external_id(self.control.number, value)
        if call is None:
            self._say("call_lost", id=value, why=str(Type(self.stream.header.control_type)))
        return call

    def _send_upper(self, offset: int, sequence: int) -> None:
        """Choose the upper octet of an id whose lower one comes with the next segment."""
        upper = self.stream.head[-1]
        ids = [(call.local_id, call.external_id) for call in self.control.calls.values()]
        pairs = ids if self.outbound else [(external, local) for local, external in ids]
        chosen = {after >> 8 for before, after in pairs if before >> 8 == upper} or {upper}
        self.stream.upper = upper if upper in chosen else max(chosen)
        self._write(offset, sequence, bytes((self.stream.upper,)), bytes((upper,)))

    def _write(self, offset: int, sequence: int, octets: bytes, before: bytes) -> None:
        if octets == before:
            return
        self.edits.append((offset, octets))
        for position, octet in enumerate(octets):
            self.stream.remember((sequence + position) % _SEQUENCES, octet)

    # -- what is only read ---------------------------------------------------------------------------------------------

    def _note_remote(self, value: int) -> None:
        """Learn the remote's number from the Peer's field of what leaves; outside, it may name a call that ends."""
        if self.outbound:
            if self.stream.call is not None:
                self.calls.learn(self.stream.call, value)
            return
        why = _ENDINGS.get(self.stream.header.control_type)
        call = self.calls.by_remote_id(self.control.number, value)
        if why and call:
            self.events += self.calls.retire(call, self.now, why)

    def _note_result(self, result: int) -> None:
        """Complete the call that a reply answers, or give it up; both ids of the reply have been read before."""
        call, header = self.stream.call, self.stream.header
        if call is None or header.control_type not in _REPLIES:
            return
        if result != CONNECTED:
            self._say("call_refused", id=call.external_id, count=result)
            self.events += self.calls.retire(call, self.now, "refused")
            return
        if not self.outbound:
            self.calls.learn(call, self.stream.value(header.layout.call_id))
        self.events += self.calls.establish(call)

    def _note_stop(self) -> None:
        """A request to stop ends all calls of the connection (P-47)."""
        header = self.stream.header
        if header.message_type == CONTROL and header.control_type == Type.STOP_REQUEST:
            for call in self.control.calls.values():
                self.events += self.calls.retire(call, self.now, "stopped")

    def _say(self, kind: str, **facts: int | str) -> None:
        self.events.append(Event(kind=kind, inside=self.control.inside, remote=self.control.remote, **facts))


def _distance(start: int, sequence: int) -> int:
    """Return how far `sequence` is ahead of `start`, negative when behind (RFC 9293 section 3.4)."""
    return (sequence - start + (_SEQUENCES >> 1)) % _SEQUENCES - (_SEQUENCES >> 1)
