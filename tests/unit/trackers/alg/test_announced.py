"""RealAudio and VDOLive: which ports are opened and edited, in any pieces, and what is none of theirs."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.trackers.alg.announced import AnnouncingFollower, RealAudioFollower, VdoLiveFollower
from fastmasq.trackers.alg.follower import External

HOST, MASQ = 0x0A000002, 0xC8C8C8C8
VERSION = b"PNA\0\12"
END = struct.pack(">HH", 0, 0)


class Connection:
    """A follower, and which ports it has asked to have opened; each is opened as its `external`."""

    def __init__(self, kind: type[AnnouncingFollower], room: int = 8) -> None:
        self.asked: list[int] = []
        self.follower = kind(HOST, self._open, serves=False)
        self.follower.room = room

    def _open(self, port: int) -> External | str:
        self.asked.append(port)
        return External(MASQ, external(port))

    def says(self, *pieces: bytes) -> bytes:
        """Have the client say octets, in these pieces; return what leaves."""
        leaves = b""
        for octets in pieces:
            at = 0
            for change in self.follower.read("outbound", octets):
                leaves += octets[at : change.start] + change.text
                at = change.start + change.length
                assert change.text or change.last == leaves[-1:]
            leaves += octets[at:]
        return leaves


def external(port: int) -> int:
    return port ^ 0xFC00 if port >= 1024 and port ^ 0xFC00 >= 1024 else port


def record(kind: int, content: bytes) -> bytes:
    return struct.pack(">HH", kind, len(content)) + content


def sound(port: int, kind: int = 1) -> bytes:
    return record(kind, struct.pack(">H", port))


def first_of_vdo(port: int) -> bytes:
    return bytes(4) + struct.pack(">I16x8sI", 6, b"VDO Live", port)


def second_of_vdo(port: int) -> bytes:
    return bytes(4) + struct.pack(">I8sI", 1, b"VDO Live", port)


records = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([1, 7]), st.integers(0, 0xFFFF), st.binary(max_size=3)),
        st.tuples(st.integers(2, 6), st.just(0), st.binary(max_size=40)),
    ),
    max_size=3,
)


def pieces_of(octets: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
    return [octets[first:last] for first, last in pairwise(places) if first < last]


@given(records, st.lists(st.integers(0, 1000), max_size=6), st.binary(max_size=30))
def test_ports_of_realaudio_are_edited_in_any_pieces(
    said: list[tuple[int, int, bytes]], cuts: list[int], later: bytes
) -> None:
    before, after, asked = VERSION, VERSION, []
    is_read = True
    for kind, port, more in said:
        if kind not in (1, 7):
            before, after = before + record(kind, more), after + record(kind, more)
            continue
        opens = is_read and port >= 1024
        asked += [port] * opens
        is_read = is_read and (opens or port == 0)  # one that is refused ends the following
        before += record(kind, struct.pack(">H", port) + more)
        after += record(kind, struct.pack(">H", external(port) if opens else port) + more)
    connection = Connection(RealAudioFollower)
    assert connection.says(*pieces_of(before + END + later, cuts)) == after + END + later
    assert connection.asked == asked and connection.follower.is_done
    assert connection.follower.refused == ([] if is_read else ["low_port"])


@given(st.integers(1024, 0xFFFF), st.lists(st.integers(0, 35), max_size=4), st.integers(1024, 0xFFFF))
def test_the_port_of_vdolive_is_edited_in_any_pieces_and_the_same_again(port: int, cuts: list[int], other: int) -> None:
    connection = Connection(VdoLiveFollower)
    assert connection.says(*pieces_of(first_of_vdo(port), cuts)) == first_of_vdo(external(port))
    assert connection.says(b"something else") == b"something else" and not connection.follower.is_done
    again = second_of_vdo(other)
    assert connection.says(again) == (second_of_vdo(external(port)) if other == port else again)
    assert connection.asked == [port] and connection.follower.is_done and not connection.follower.refused


@pytest.mark.parametrize("kind", [RealAudioFollower, VdoLiveFollower])
@pytest.mark.parametrize(
    "said",
    [
        b"GET /PNA HTTP/1.1\r\nHost: x\r\n\r\n" + VERSION + sound(5000),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(60),
        b"PNA\1\0" + sound(5000),
        b"x" * 24 + b"VDO Live" + struct.pack(">I", 5000),
        first_of_vdo(5000).replace(b"VDO", b"vdo"),
        b"OPTIONS rtsp://x RTSP/1.0\r\n",
    ],
)
def test_rfc2577_what_does_not_begin_as_the_protocol_does_opens_nothing(
    kind: type[AnnouncingFollower], said: bytes
) -> None:
    for cut in range(len(said)):
        connection = Connection(kind)
        assert connection.says(said[:cut], said[cut:]) == said
        assert connection.follower.refused == ["not_the_protocol"] and connection.follower.is_done
        assert connection.asked == []


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6), st.sampled_from([VERSION, b"", bytes(4)]))
def test_whatever_a_client_says_as_much_leaves(said: bytes, cuts: list[int], begins: bytes) -> None:
    for kind in (RealAudioFollower, VdoLiveFollower):
        connection = Connection(kind)
        pieces = pieces_of(begins + said, cuts)
        leaves = connection.says(*pieces)
        assert 0 <= len(begins + said) - len(leaves) <= 1, "at most half a port is held back"
        assert connection.asked or leaves == (begins + said)[: len(leaves)]


def test_what_is_held_back_leaves_when_the_following_ends_meanwhile() -> None:
    connection = Connection(RealAudioFollower)
    said = VERSION + sound(5000)
    assert connection.says(said[:-1]) == said[:-2]
    connection.follower.refuse("too_much")
    assert not connection.follower.is_done
    assert connection.says(said[-1:] + END) == said[-2:] + END
    assert connection.follower.is_done and not connection.asked


def test_without_room_half_a_port_is_not_held_back() -> None:
    connection = Connection(RealAudioFollower, room=0)
    said = VERSION + sound(5000)
    assert connection.says(said[:-1], said[-1:]) == said
    assert connection.follower.refused == ["no_room"] and not connection.asked


def test_nobody_is_followed_for_ever() -> None:
    endless = Connection(RealAudioFollower)
    assert len(endless.says(VERSION, *(record(2, bytes(1000)) for _ in range(5)))) == 5 + 5 * 1004
    assert endless.follower.is_done
    other = Connection(VdoLiveFollower)
    other.says(first_of_vdo(5000), bytes(5000))
    assert other.follower.is_done
