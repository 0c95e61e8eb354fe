"""Segments of one TCP stream in one batch leave as one large send; cut again, it is what they would have been alone."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.harness import Harness, Out
from tests.support.packets import TCP, UDP, decode, problems, tcp, udp
from tests.support.path_network import (
    EXTERNAL,
    GATEWAY_OUT,
    GSO_TCPV4,
    HERE,
    HOST,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    THERE,
    body,
    completed,
    large,
    opened,
    partial,
    passes,
)

SIZE = 1000


def segment(number: int = 0, size: int = SIZE, flags: str = "A", source=HERE, destination=THERE, **fields) -> bytes:
    """Return one of consecutive segments of a stream: SIZE octets each, the identification counting up."""
    fields = {"seq": 1 + number * SIZE, "ack": 7, "identification": 100 + number, **fields}
    return tcp(source, destination, flags, payload=body(size, number), **fields)


def send_together(harness: Harness, packets: list[bytes], link: str = INSIDE, vnet: bytes | None = None) -> list[Out]:
    for packet in packets:
        harness.inject(link, packet, vnet=vnet)
    sent = harness.run()
    assert harness.drops() == {}
    return sent


def cut(out: Out) -> list[bytes]:
    """Return the packets that a link makes of what was sent, as RFC 9293 and the virtio header have it."""
    flags, kind, headers, size, start, offset = struct.unpack("=BBHHHH", out.vnet)
    packet = out.packet
    if kind == 0:
        return [completed(packet) if flags else packet]
    assert (flags, kind, start, offset) == (1, GSO_TCPV4, 34, 16)
    whole = decode(packet)
    assert headers - 14 == len(packet) - len(whole.payload)
    assert len(packet) == struct.unpack(">H", packet[2:4])[0]
    assert problems(completed(packet)) == []
    head = packet[: headers - 14]
    pieces = []
    for at in range(0, len(whole.payload), size):
        payload = whole.payload[at : at + size]
        last = at + size >= len(whole.payload)
        piece = bytearray(head + payload)
        struct.pack_into(">H", piece, 2, len(piece))
        struct.pack_into(">H", piece, 4, (whole.identification + at // size) & 0xFFFF)
        struct.pack_into(">I", piece, 24, (struct.unpack(">I", head[24:28])[0] + at) & 0xFFFFFFFF)
        if not last:
            piece[33] &= ~0x09
        piece[10:12] = b"\0\0"
        total = sum(struct.unpack(">10H", piece[:20]))
        total = (total & 0xFFFF) + (total >> 16)
        struct.pack_into(">H", piece, 10, ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
        pieces.append(completed(partial(bytes(piece))))
    return pieces


def expected(number: int, **fields) -> bytes:
    return segment(number, source=EXTERNAL, ttl=63, **fields)


@pytest.mark.parametrize("df", [True, False])
@pytest.mark.parametrize("count", [2, 7, 60])
def test_a_run_of_segments_leaves_as_one(count: int, df: bool) -> None:
    harness = opened(TCP)
    before = harness.forwarder.traffic(1)
    sent = send_together(harness, [segment(number, df=df) for number in range(count)])
    assert len(sent) == 1
    assert sent[0].vnet == large(GSO_TCPV4, SIZE)
    assert cut(sent[0]) == [expected(number, df=df) for number in range(count)]
    assert harness.forwarder.notes()["gathered"] == count
    assert harness.forwarder.traffic(1)["tx_packets"] == before["tx_packets"] + count
    assert harness.forwarder.traffic(1)["tx_bytes"] == before["tx_bytes"] + count * (14 + 40 + SIZE)
    assert harness.forwarder.verdicts()["forward"] == 2 + count


def test_a_segment_alone_stays_as_it_was() -> None:
    [out] = send_together(opened(TCP), [segment()])
    assert (out.packet, out.vnet) == (expected(0), bytes(10))


def test_the_last_may_be_shorter_and_ends_it() -> None:
    sent = send_together(opened(TCP), [segment(0), segment(1, size=300), segment(2, seq=1 + SIZE + 300)])
    assert [cut(out) for out in sent] == [
        [expected(0), expected(1, size=300)],
        [expected(2, seq=1 + SIZE + 300)],
    ]


def test_a_push_ends_it_and_stays_on_the_last() -> None:
    sent = send_together(opened(TCP), [segment(0), segment(1, flags="PA"), segment(2)])
    assert [cut(out) for out in sent] == [[expected(0), expected(1, flags="PA")], [expected(2)]]


def test_the_way_in_is_gathered_too() -> None:
    packets = [segment(number, source=THERE, destination=EXTERNAL) for number in range(4)]
    [out] = send_together(opened(TCP), packets, OUTSIDE)
    assert cut(out) == [segment(number, source=THERE, destination=HERE, ttl=63) for number in range(4)]


def test_partial_checksums_are_gathered_without_a_look() -> None:
    packets = [partial(segment(number)) for number in range(4)]
    [out] = send_together(opened(TCP), packets, vnet=large(0, 0, 0))
    assert cut(out) == [expected(number) for number in range(4)]


def test_never_more_than_a_packet_holds() -> None:
    """Sixty-four segments of 1460 octets are more than 65 535 octets."""
    packets = [segment(number, size=1460, seq=number * 1460) for number in range(64)]
    sent = send_together(opened(TCP), packets)
    assert [len(cut(out)) for out in sent] == [44, 20]
    assert [piece for out in sent for piece in cut(out)] == [
        expected(number, size=1460, seq=number * 1460) for number in range(64)
    ]


@pytest.mark.parametrize(
    "different",
    [
        {"seq": 5000},
        {"ack": 8},
        {"window": 99},
        {"tos": 4},
        {"ttl": 60},
        {"df": True},
        {"identification": 7},
        {"size": SIZE + 1},
        {"size": 100},
        {"tcp_options": b"\x01\x01\x01\x01"},
        {"flags": "FA"},
        {"flags": "UA"},
        {"options": b"\x01\x01\x01\x01"},
    ],
    ids=str,
)
def test_what_differs_goes_by_itself_and_in_order(different: dict) -> None:
    """The first two are one send; the third is none of them, and not before them."""
    sent = send_together(opened(TCP), [segment(0), segment(1), segment(2, **different), segment(3, flags="A")])
    ttl = different.get("ttl", 64) - 1
    third = segment(2, source=EXTERNAL, **{**different, "ttl": ttl})
    pieces = [piece for out in sent for piece in cut(out)]
    assert cut(sent[0]) == [expected(0), expected(1)]
    assert pieces == [expected(0), expected(1), third, expected(3)]


def test_rfc1624_a_wrong_checksum_is_never_made_right() -> None:
    """The damaged segment travels alone, damaged by the same error."""
    packets = [segment(0), segment(1), segment(2, checksum=0x1234), segment(3)]
    sent = send_together(opened(TCP), packets)
    assert cut(sent[0]) == [expected(0), expected(1)]
    assert "tcp checksum" in " ".join(problems(sent[1].packet)).lower()
    assert cut(sent[2]) == [expected(3)]


def test_a_link_without_virtio_headers_gets_them_one_by_one() -> None:
    harness = opened(TCP, outside_vnet=False)
    sent = send_together(harness, [segment(number) for number in range(5)])
    assert [out.packet for out in sent] == [expected(number) for number in range(5)]
    assert harness.forwarder.notes()["gathered"] == 0


def test_what_must_be_fragmented_is_not_gathered() -> None:
    harness = opened(TCP, mtu={"inside": 1500, "outside": 600})
    sent = send_together(harness, [segment(number) for number in range(3)])
    assert all(len(out.packet) <= 600 and out.vnet == bytes(10) for out in sent)
    assert len(sent) == 6


def test_more_streams_than_rows() -> None:
    """Eleven streams, segment by segment in turn: each keeps its order, whatever is gathered of it."""
    harness = Harness()
    sources = [(HOST, 2000 + number) for number in range(11)]
    for source in sources:
        passes(harness, INSIDE, tcp(source, THERE, "S"))
    packets = [segment(number, source=source) for number in range(5) for source in sources]
    pieces = [piece for out in send_together(harness, packets) for piece in cut(out)]
    for _, port in sources:
        ours = [piece for piece in pieces if struct.unpack(">H", piece[20:22])[0] == port]
        assert ours == [segment(number, source=(GATEWAY_OUT, port), ttl=63) for number in range(5)]


def test_hairpin_is_gathered() -> None:
    harness = Harness()
    receiver = (OTHER_HOST, 5000)
    passes(harness, INSIDE, tcp(receiver, THERE, "S"))
    sent = send_together(harness, [segment(number, destination=(GATEWAY_OUT, 5000)) for number in range(3)])
    assert [cut(out) for out in sent] == [[expected(number, destination=receiver) for number in range(3)]]


@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {
                    "stream": st.integers(0, 9),
                    "size": st.sampled_from([SIZE, SIZE, SIZE, 300, 100, 0]),
                    "flags": st.sampled_from(["A", "A", "A", "PA", "FA"]),
                    "jump": st.sampled_from([0, 0, 0, 1]),
                }
            ),
            st.just(None),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_together_is_the_same_as_one_by_one(script: list[dict | None]) -> None:
    """Any mixture of streams and datagrams: the link makes of a batch what it makes of the packets one by one."""
    sources = [(HOST, 3000 + number) for number in range(10)]
    position = dict.fromkeys(range(10), 1)
    packets = []
    for number, step in enumerate(script):
        if step is None:
            packets.append(udp(HERE, THERE, bytes([number])))
            continue
        stream = step["stream"]
        position[stream] += step["jump"]
        packets.append(
            segment(
                0, step["size"], step["flags"], sources[stream], seq=position[stream], identification=number, df=True
            )
        )
        position[stream] += step["size"]
    one_by_one, together = Harness(), Harness()
    for harness in (one_by_one, together):
        for source in sources:
            passes(harness, INSIDE, tcp(source, THERE, "S"))
        passes(harness, INSIDE, udp(HERE, THERE, b"open"))
    separate = [piece for packet in packets for out in send_together(one_by_one, [packet]) for piece in cut(out)]
    gathered = [piece for out in send_together(together, packets) for piece in cut(out)]

    def of_stream(pieces: list[bytes], port: int) -> list[bytes]:
        """Leave out the identification: of packets that are never fragmented it means nothing (RFC 6864 section 4)."""
        return [
            piece[:4] + piece[6:10] + piece[12:] for piece in pieces if struct.unpack(">H", piece[20:22])[0] == port
        ]

    for port in {struct.unpack(">H", piece[20:22])[0] for piece in separate}:
        assert of_stream(gathered, port) == of_stream(separate, port)
    assert len(gathered) == len(separate)
    assert together.forwarder.traffic(1) == one_by_one.forwarder.traffic(1)
    assert together.forwarder.verdicts() == one_by_one.forwarder.verdicts()


def test_datagrams_are_left_alone() -> None:
    sent = send_together(opened(UDP), [udp(HERE, THERE, body(SIZE, number)) for number in range(3)])
    assert [out.packet for out in sent] == [udp(EXTERNAL, THERE, body(SIZE, number), ttl=63) for number in range(3)]
