"""The follower of PPTP control connections: every message in any cut, repeated, overlapping, lost or damaged."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmasq.trackers.vpn.calls import CallTable
from fastmasq.trackers.vpn.pptp import MOST_DROPS, MOST_EDITS, ControlFollower
from fastmasq.wire.pptp import FIELDS_END, LAYOUTS, Header, Type, message

SECOND = 1_000_000_000
A, B, SERVER_HOST = 0x0A000002, 0x0A000003, 0x0A000004
M, R, R2 = 0xC8C8C8C8, 0xC7000001, 0xC7000002
OUT, IN = "outbound", "inbound"


def ids(kind: Type, *numbers: int, result: int = 1) -> bytes:
    """Return a message with its Call ID (and Peer's Call ID), and a result where it has one."""
    fields = struct.pack(f"!{len(numbers)}H", *numbers)
    if kind in (Type.OUTGOING_CALL_REPLY, Type.INCOMING_CALL_REPLY):
        fields += bytes((result,))
    return message(kind, fields)


def numbers_in(octets: bytes, count: int = 1) -> tuple[int, ...]:
    return struct.unpack_from(f"!{count}H", octets, 12)


class Connection:
    """A control connection through the follower: says what each side gets to see, segment by segment."""

    def __init__(self, calls: CallTable, number: int, inside: int, remote: int, start: int = 1000) -> None:
        calls.attach(number, inside, M, remote)
        self.follower = ControlFollower(calls, number)
        self.next = {OUT: start, IN: (start + 0x80000000) % (1 << 32)}
        for direction, sequence in self.next.items():
            self.follower.begin(direction, (sequence - 1) % (1 << 32))
        self.events: list = []

    def send(self, direction: str, payload: bytes, back: int = 0, now: int = 0) -> bytes:
        """Send a segment that begins `back` octets before what is new; return it as it leaves."""
        sequence = (self.next[direction] - back) % (1 << 32)
        followed = self.follower.follow(direction, sequence, payload, now)
        assert not followed.drop
        self.next[direction] = (sequence + max(len(payload), back)) % (1 << 32)
        self.events += followed.events
        return followed.applied(payload)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
def calls() -> CallTable:
    return CallTable()


def two_clients(calls: CallTable) -> tuple[Connection, Connection]:
    """Return two clients of one server that both have asked with 0x4000."""
    first, second = Connection(calls, 1, A, R), Connection(calls, 2, B, R)
    assert first.send(OUT, ids(Type.OUTGOING_CALL_REQUEST, 0x4000)) == ids(Type.OUTGOING_CALL_REQUEST, 0x4000)
    assert second.send(OUT, ids(Type.OUTGOING_CALL_REQUEST, 0x4000)) == ids(Type.OUTGOING_CALL_REQUEST, 61000)
    return first, second


# --- the vectors -------------------------------------------------------------------------------------------------


def test_p49_two_clients_and_a_server(calls: CallTable) -> None:
    first, second = two_clients(calls)
    assert first.send(IN, ids(Type.OUTGOING_CALL_REPLY, 0x11, 0x4000)) == ids(Type.OUTGOING_CALL_REPLY, 0x11, 0x4000)
    reply = second.send(IN, ids(Type.OUTGOING_CALL_REPLY, 0x12, 61000))
    assert reply == ids(Type.OUTGOING_CALL_REPLY, 0x12, 0x4000)
    server = Connection(calls, 3, SERVER_HOST, R2)
    request = ids(Type.OUTGOING_CALL_REQUEST, 0x4000)
    assert server.send(IN, request) == request, "the remote's own number is left alone"
    calls.open(3, 0x9999, 0)  # another call of the server, so that not every number is as it was
    calls.attach(4, A, M, R2)
    calls.open(4, 0x55, 0)
    answer = server.send(OUT, ids(Type.OUTGOING_CALL_REPLY, 0x55, 0x4000))
    third = numbers_in(answer, 2)
    assert third == (61001, 0x4000)
    # GRE in all six directions
    assert (calls.inbound(R, M, 0x4000, 0).to, calls.inbound(R, M, 0x4000, 0).id) == ((A,), 0x4000)
    assert (calls.inbound(R, M, 61000, 0).to, calls.inbound(R, M, 61000, 0).id) == ((B,), 0x4000)
    assert (calls.inbound(R2, M, 61001, 0).to, calls.inbound(R2, M, 61001, 0).id) == ((SERVER_HOST,), 0x55)
    for inside, remote, key in ((A, R, 0x11), (B, R, 0x12), (SERVER_HOST, R2, 0x4000)):
        decision = calls.outbound(inside, M, remote, key, 0)
        assert decision.to == (M,) and decision.id is None and decision.row.remote_id == key
    # the server's disconnect retires only its row
    second.send(IN, ids(Type.CALL_DISCONNECT_NOTIFY, 0x12))
    states = {call.external_id: call.state for call in calls.calls.values()}
    assert states[61000] == "closing"
    assert states[0x4000] == states[61001] == "established"


def test_worked_example(calls: CallTable) -> None:
    first, second = Connection(calls, 1, A, R), Connection(calls, 2, B, R)
    assert numbers_in(first.send(OUT, ids(Type.OUTGOING_CALL_REQUEST, 0x0400))) == (0x0400,)
    assert numbers_in(second.send(OUT, ids(Type.OUTGOING_CALL_REQUEST, 0x0400))) == (0xEE48,)
    assert numbers_in(first.send(IN, ids(Type.OUTGOING_CALL_REPLY, 0x11, 0x0400)), 2) == (0x11, 0x0400)
    assert numbers_in(second.send(IN, ids(Type.OUTGOING_CALL_REPLY, 0x12, 0xEE48)), 2) == (0x12, 0x0400)
    decision = calls.inbound(R, M, 0xEE48, 0)
    assert (decision.to, decision.id) == ((B,), 0x0400)
    assert calls.outbound(B, M, R, 0x12, 0).to == (M,)


# --- fields: P-1, P-20 to P-24 ------------------------------------------------------------------------------------

_OWN = [kind for kind in Type if LAYOUTS[kind].call_id is not None]
_PEER_AT_12 = [Type.INCOMING_CALL_CONNECTED, Type.WAN_ERROR_NOTIFY, Type.SET_LINK_INFO]


@pytest.mark.parametrize("kind", _OWN, ids=str)
def test_p1_the_senders_own_id(calls: CallTable, kind: Type) -> None:
    """Leaves as the external id, and stays as it is when the remote sends it."""
    _, second = two_clients(calls)
    assert numbers_in(second.send(OUT, ids(kind, 0x4000))) == (61000,)
    octets = ids(kind, 0x4000)
    if LAYOUTS[kind].peer_call_id is None:
        assert second.send(IN, octets) == octets


@pytest.mark.parametrize("kind", _PEER_AT_12, ids=str)
def test_p24_the_peers_id(calls: CallTable, kind: Type) -> None:
    """Comes back as the host's own, and is left alone when the inside host sends it."""
    _, second = two_clients(calls)
    assert numbers_in(second.send(IN, ids(kind, 61000))) == (0x4000,)
    assert second.send(OUT, ids(kind, 61000)) == ids(kind, 61000)


@pytest.mark.parametrize("kind", [kind for kind in Type if kind <= Type.ECHO_REPLY], ids=str)
@pytest.mark.parametrize("direction", [OUT, IN])
def test_messages_without_ids_pass(calls: CallTable, kind: Type, direction: str) -> None:
    _, second = two_clients(calls)
    octets = message(kind, b"\x40\x00")
    assert second.send(direction, octets) == octets


def test_unknown_types_and_management_pass(calls: CallTable) -> None:
    _, second = two_clients(calls)
    strange = Header(20, 1, 77).emit() + b"\x40\x00" * 4 + Header(16, 2, 12).emit() + b"\x40\x00" * 2
    assert second.send(OUT, strange + ids(Type.CALL_CLEAR_REQUEST, 0x4000)) == strange + ids(
        Type.CALL_CLEAR_REQUEST, 61000
    )


def test_p22_a_reply_completes_and_p21_lines_are_said(calls: CallTable) -> None:
    _, second = two_clients(calls)
    second.send(IN, ids(Type.OUTGOING_CALL_REPLY, 0x12, 61000))
    second.send(OUT, ids(Type.CALL_CLEAR_REQUEST, 0x4000))
    assert [event.text for event in second.events] == [
        "ip_masq_pptp(): Req call PPTP sess 10.0.0.3 -> 199.0.0.1 Call ID 4000 -> EE48.",
        "ip_masq_pptp(): Estab call PPTP sess 10.0.0.3 -> 199.0.0.1 Call ID EE48 peer 12.",
        "ip_masq_pptp(): Disconnect PPTP sess 10.0.0.3 -> 199.0.0.1 Call ID EE48 (cleared).",
    ]


def test_p22_a_reply_for_nobody_is_said(calls: CallTable) -> None:
    _, second = two_clients(calls)
    octets = ids(Type.OUTGOING_CALL_REPLY, 0x12, 0x7777)
    assert second.send(IN, octets) == octets
    assert second.kinds()[-1] == "call_lost"


def test_a_peers_id_of_another_connection_is_not_ours(calls: CallTable) -> None:
    """Two connections to one server do not name each other's calls."""
    first, second = two_clients(calls)
    octets = ids(Type.SET_LINK_INFO, 61000)
    assert first.send(IN, octets) == octets
    assert numbers_in(second.send(IN, octets)) == (0x4000,)


@pytest.mark.parametrize("result", [0, 2, 5])
def test_a_refused_call_ends(calls: CallTable, result: int) -> None:
    _, second = two_clients(calls)
    second.send(IN, ids(Type.OUTGOING_CALL_REPLY, 0, 61000, result=result))
    assert second.kinds()[-2:] == ["call_refused", "call_ended"]


def test_p43_an_incoming_call_to_an_inside_pns(calls: CallTable) -> None:
    """The remote is the PAC that announces a call; the inside host answers with its own number."""
    taken = Connection(calls, 9, A, R)
    taken.send(OUT, ids(Type.INCOMING_CALL_REPLY, 7, 1))
    server = Connection(calls, 1, SERVER_HOST, R)
    assert numbers_in(server.send(IN, ids(Type.INCOMING_CALL_REQUEST, 0x21))) == (0x21,)
    assert numbers_in(server.send(OUT, ids(Type.INCOMING_CALL_REPLY, 7, 0x21)), 2) == (61000, 0x21)
    assert numbers_in(server.send(IN, ids(Type.INCOMING_CALL_CONNECTED, 61000))) == (7,)
    assert calls.outbound(SERVER_HOST, M, R, 0x21, 0).row.state == "established"


def test_several_calls_on_one_connection(calls: CallTable) -> None:
    first, second = two_clients(calls)
    both = ids(Type.OUTGOING_CALL_REQUEST, 0x4001) + ids(Type.OUTGOING_CALL_REQUEST, 61000)
    sent = second.send(OUT, both)
    assert (numbers_in(sent), numbers_in(sent[168:])) == ((0x4001,), (61001,))
    assert first.follower.control.calls.keys() == {0x4000}


# --- ends: P-47 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [OUT, IN])
def test_p47_a_stop_request_ends_all_calls(calls: CallTable, direction: str) -> None:
    first, second = two_clients(calls)
    second.send(OUT, ids(Type.OUTGOING_CALL_REQUEST, 0x4001))
    second.send(direction, message(Type.STOP_REQUEST, b"\x01"))
    assert {call.state for call in second.follower.control.calls.values()} == {"closing"}
    assert {call.state for call in first.follower.control.calls.values()} == {"asked"}


def test_p47_the_end_of_the_control_connection(calls: CallTable) -> None:
    _, second = two_clients(calls)
    events = second.follower.end(0)
    assert [event.kind for event in events] == ["call_ended"]
    calls.expire(30 * SECOND)
    assert [call.inside for call in calls.calls.values()] == [A]
    assert second.follower.follow(OUT, second.next[OUT], ids(Type.CALL_CLEAR_REQUEST, 0x4000), 0).edits == ()


# --- P-42: cuts, repetitions, holes --------------------------------------------------------------------------------

CONVERSATION = [
    (OUT, message(Type.START_REQUEST)), (IN, message(Type.START_REPLY)),
    (OUT, ids(Type.OUTGOING_CALL_REQUEST, 0x4000)), (IN, ids(Type.OUTGOING_CALL_REPLY, 0x12, 61000)),
    (OUT, ids(Type.SET_LINK_INFO, 0x12)), (IN, ids(Type.SET_LINK_INFO, 61000)),
    (OUT, message(Type.ECHO_REQUEST)), (IN, message(Type.ECHO_REPLY)),
    (IN, ids(Type.WAN_ERROR_NOTIFY, 61000)),
    (OUT, ids(Type.CALL_CLEAR_REQUEST, 0x4000)), (IN, ids(Type.CALL_DISCONNECT_NOTIFY, 0x12)),
    (OUT, message(Type.STOP_REQUEST)), (IN, message(Type.STOP_REPLY)),
]  # fmt: skip


def occupied(calls: CallTable) -> Connection:
    """Return a connection whose 0x4000 has to become 61000."""
    Connection(calls, 1, A, R).send(OUT, ids(Type.OUTGOING_CALL_REQUEST, 0x4000))
    return Connection(calls, 2, B, R, start=0xFFFFFF00)  # the sequence numbers wrap


@pytest.mark.parametrize("size", [1, 2, 3, 11, 12, 13, 14, 15, 16, 17, 18, 100, 1000])
def test_p42_messages_cut_into_pieces(calls: CallTable, size: int) -> None:
    """However it is cut, the remote sees one number for the call and the host its own."""
    connection = occupied(calls)
    seen = {OUT: b"", IN: b""}
    external = None
    for direction, octets in CONVERSATION:
        if direction == IN and external:
            octets = octets.replace((61000).to_bytes(2, "big"), external.to_bytes(2, "big"))
        for start in range(0, len(octets), size):
            seen[direction] += connection.send(direction, octets[start : start + size])
        call = calls.by_local_id(2, 0x4000)
        external = call.external_id if call else external
    assert external != 0x4000
    expected = {OUT: b"", IN: b""}
    for direction, octets in CONVERSATION:
        old, new = (0x4000, external) if direction == OUT else (61000, 0x4000)
        expected[direction] += octets.replace(old.to_bytes(2, "big"), new.to_bytes(2, "big"))
    assert seen == expected
    assert not connection.follower.lost and "control_split" not in connection.kinds()


def test_p42_the_two_octets_of_an_id_in_two_segments(calls: CallTable) -> None:
    """The upper one leaves at once and unchanged, so the external id has the same."""
    connection = occupied(calls)
    request = ids(Type.OUTGOING_CALL_REQUEST, 0x4000)
    sent = connection.send(OUT, request[:13]) + connection.send(OUT, request[13:])
    (external,) = numbers_in(sent)
    assert external >> 8 == 0x40 and external != 0x4000
    again = ids(Type.CALL_CLEAR_REQUEST, 0x4000)
    assert numbers_in(connection.send(OUT, again[:13]) + connection.send(OUT, again[13:])) == (external,)


def test_p42_a_retransmission_is_translated_as_the_first_time(calls: CallTable) -> None:
    """Even after the call is gone, and the number belongs to somebody else."""
    connection = occupied(calls)
    request = ids(Type.OUTGOING_CALL_REQUEST, 0x4000)
    connection.send(OUT, request)
    assert connection.send(OUT, request, back=168) == ids(Type.OUTGOING_CALL_REQUEST, 61000)
    clear = ids(Type.CALL_CLEAR_REQUEST, 0x4000)
    connection.send(OUT, clear)
    calls.expire(100 * SECOND)
    assert calls.by_local_id(2, 0x4000) is None
    events = len(connection.events)
    sent = connection.send(OUT, request + clear, back=168 + 16)
    assert sent == ids(Type.OUTGOING_CALL_REQUEST, 61000) + ids(Type.CALL_CLEAR_REQUEST, 61000)
    assert len(connection.events) == events, "nothing happens twice"


def test_p42_a_segment_that_is_partly_old(calls: CallTable) -> None:
    connection = occupied(calls)
    both = ids(Type.OUTGOING_CALL_REQUEST, 0x4000) + ids(Type.CALL_CLEAR_REQUEST, 0x4000)
    changed = ids(Type.OUTGOING_CALL_REQUEST, 61000) + ids(Type.CALL_CLEAR_REQUEST, 61000)
    connection.send(OUT, both[:100])
    assert connection.send(OUT, both[10:], back=90) == changed[10:]


def test_p42_a_segment_behind_a_hole_is_dropped_and_read_when_it_comes_again(calls: CallTable) -> None:
    connection = occupied(calls)
    request, clear = ids(Type.OUTGOING_CALL_REQUEST, 0x4000), ids(Type.CALL_CLEAR_REQUEST, 0x4000)
    early = connection.follower.follow(OUT, (connection.next[OUT] + 168) % (1 << 32), clear, 0)
    assert early.drop == "stream_out_of_order" and not early.edits
    connection.send(OUT, request)
    assert numbers_in(connection.send(OUT, clear)) == (61000,)


def test_p42_a_hole_that_stays_does_not_stall_the_connection(calls: CallTable) -> None:
    connection = occupied(calls)
    sequence = (connection.next[OUT] + 5) % (1 << 32)
    dropped = [connection.follower.follow(OUT, sequence, b"x" * 20, 0) for _ in range(MOST_DROPS + 2)]
    assert [bool(one.drop) for one in dropped] == [True] * MOST_DROPS + [False] * 2
    assert [len(one.events) for one in dropped] == [0] * MOST_DROPS + [1, 0]


def test_p42_segments_of_nobodys_window_do_not_make_it_lose_sync(calls: CallTable) -> None:
    connection = occupied(calls)
    for number in range(100):
        wild = (connection.next[OUT] + (2 << 20) + number) % (1 << 32)
        assert connection.follower.follow(OUT, wild, b"junk" * 5, 0).drop
    assert numbers_in(connection.send(OUT, ids(Type.OUTGOING_CALL_REQUEST, 0x4000))) == (61000,)


def test_p42_lost_sync_is_said_once_and_everything_passes(calls: CallTable) -> None:
    connection = occupied(calls)
    request = ids(Type.OUTGOING_CALL_REQUEST, 0x4000)
    sent = connection.send(OUT, request + b"this is no header" + request)
    assert sent == ids(Type.OUTGOING_CALL_REQUEST, 61000) + b"this is no header" + request
    assert connection.kinds() == ["call_asked", "control_lost_sync"]
    assert connection.send(OUT, request) == request
    assert connection.send(IN, b"anything") == b"anything"
    assert connection.send(OUT, request, back=len(sent) + 168) == ids(Type.OUTGOING_CALL_REQUEST, 61000)
    assert connection.kinds().count("control_lost_sync") == 1


def test_p42_a_connection_older_than_the_gateway(calls: CallTable) -> None:
    """Reading starts where a segment begins with a message."""
    calls.attach(1, A, M, R)
    calls.attach(2, B, M, R)
    calls.open(1, 0x4000, 0)
    follower = ControlFollower(calls, 2)
    assert follower.follow(OUT, 500, b"rest of a message", 0).edits == ()
    request = ids(Type.OUTGOING_CALL_REQUEST, 0x4000)
    assert numbers_in(follower.follow(OUT, 517, request, 0).applied(request)) == (61000,)


def test_a_late_syn_changes_nothing(calls: CallTable) -> None:
    connection = occupied(calls)
    connection.send(OUT, ids(Type.OUTGOING_CALL_REQUEST, 0x4000))
    connection.follower.begin(OUT, 77)
    assert numbers_in(connection.send(OUT, ids(Type.CALL_CLEAR_REQUEST, 0x4000))) == (61000,)


def test_memory_is_bounded(calls: CallTable) -> None:
    connection = occupied(calls)
    connection.send(OUT, ids(Type.OUTGOING_CALL_REQUEST, 0x4000))
    for _ in range(MOST_EDITS):
        connection.send(IN, ids(Type.SET_LINK_INFO, 61000))
    stream = connection.follower._streams[IN]
    assert len(stream.edits) == MOST_EDITS and len(stream.head) <= 17


def test_a_connection_that_is_not_in_the_table_passes(calls: CallTable) -> None:
    follower = ControlFollower(calls, 77)
    follower.begin(OUT, 0)
    assert follower.follow(OUT, 1, ids(Type.OUTGOING_CALL_REQUEST, 5), 0).edits == ()
    assert follower.end(0) == ()


# --- fuzz ---------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), biggest=st.sampled_from([1, 3, 14, 200, 500]))
def test_p42_any_cutting_order_and_repetition(seed: int, biggest: int) -> None:
    """A sender that cuts, repeats and overlaps at random: octets leave the same each time, and the whole is right."""
    chance = random.Random(seed)
    calls = CallTable()
    connection = occupied(calls)
    octets = ids(Type.OUTGOING_CALL_REQUEST, 0x4000) + b"".join(
        ids(chance.choice((Type.OUTGOING_CALL_REQUEST, Type.CALL_CLEAR_REQUEST)), 0x4000)
        + message(chance.choice((Type.ECHO_REQUEST, Type.ECHO_REPLY)), b"\x40\x00")
        for _ in range(6)
    )
    start, left = connection.next[OUT], {}
    acknowledged = sent = 0
    while acknowledged < len(octets):
        begin = chance.randint(acknowledged, min(sent, len(octets) - 1)) if chance.random() < 0.9 else sent + 3
        payload = octets[begin : begin + chance.randint(1, biggest)]
        if not payload:
            continue
        followed = connection.follower.follow(OUT, (start + begin) % (1 << 32), payload, 0)
        assert bool(followed.drop) == (begin > sent)
        if followed.drop:
            continue
        for position, octet in enumerate(followed.applied(payload), begin):
            assert left.setdefault(position, octet) == octet, "an octet left in two forms"
        sent = max(sent, begin + len(payload))
        if chance.random() < 0.5:
            acknowledged = chance.randint(acknowledged, sent)
    whole = bytes(left[position] for position in range(len(octets)))
    external = calls.by_local_id(2, 0x4000)
    at = 0
    while at < len(octets):
        header = Header.parse(octets[at:])
        own = header.layout.call_id is not None
        expected = external.external_id.to_bytes(2, "big") if own else octets[at + 12 : at + 14]
        assert whole[at + 12 : at + 14] == expected
        at += header.length
    assert not connection.follower.lost


@settings(max_examples=200, deadline=None)
@given(
    segments=st.lists(
        st.tuples(
            st.sampled_from([OUT, IN]),
            st.integers(-40, 60),
            st.binary(max_size=40)
            | st.builds(
                lambda kind, junk: message(kind, junk)[:60], st.sampled_from(list(Type)), st.binary(max_size=4)
            ),
        ),
        max_size=30,
    )
)
def test_garbage_breaks_nothing(segments: list[tuple[str, int, bytes]]) -> None:
    """Whatever comes, edits lie within the segment, memory is bounded, and a lost connection passes everything new."""
    calls = CallTable()
    connection = occupied(calls)
    for direction, ahead, payload in segments:
        sequence = (connection.next[direction] + ahead) % (1 << 32)
        followed = connection.follower.follow(direction, sequence, payload, 0)
        assert all(at >= 0 and at + len(octets) <= len(payload) for at, octets in followed.edits)
        assert len(followed.applied(payload)) == len(payload)
        for event in followed.events:
            assert event.text and event.level
        if connection.follower.lost:
            assert not followed.drop
        elif not followed.drop and ahead <= 0:
            connection.next[direction] = (sequence + max(len(payload), -ahead)) % (1 << 32)
    assert len(calls.calls) <= 64


def test_segments_of_any_size_leave_little_behind(calls: CallTable) -> None:
    """What is kept of a stream is the head of one message and its last edits, however long the segments are."""
    connection = Connection(calls, 1, A, R)
    source = random.Random(1)
    for size in (1, 1460, 65_535, 65_535):
        pieces = [ids(Type.OUTGOING_CALL_REQUEST, source.randrange(1, 65_536)), source.randbytes(size)]
        source.shuffle(pieces)
        for direction in (OUT, IN):
            connection.send(direction, b"".join(pieces)[:65_535])
    for stream in connection.follower._streams.values():
        assert len(stream.head) <= FIELDS_END and len(stream.edits) <= MOST_EDITS
