"""Packets larger than the next link: refused with the MTU, fragmented, or left to be segmented; and compared."""

from __future__ import annotations

import itertools

import pytest

from tests.support.harness import HOWTO_ROUTES, Harness, unicast
from tests.support.packets import (
    TCP,
    UDP,
    decode,
    icmp_error,
    ipv4,
    ping,
    problems,
    reassemble,
    tcp,
    udp,
)
from tests.support.path_network import (
    EXTERNAL,
    GATEWAY_IN,
    GATEWAY_OUT,
    GSO_TCPV4,
    HERE,
    HOST,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    ROUTER,
    SERVER,
    THERE,
    body,
    completed,
    dropped,
    large,
    opened,
    partial,
    passes,
    refused,
)

GSO_UDP, GSO_UDP_L4, GSO_ECN = 3, 5, 0x80
MTU_OUT = 1400
RECORD_ROUTE, TIMESTAMP, ROUTER_ALERT, SECURITY = "0707040000000001", "44080501000000ff", "94040000", "8203ff"

FIN, PSH, CWR = 0x01, 0x08, 0x80


def narrow(mtu: int = MTU_OUT, **settings) -> Harness:
    return Harness(mtu={"inside": 65535, "outside": mtu}, **settings)


def is_too_big(answer: bytes, about: bytes, mtu: int) -> None:
    error = decode(answer)
    assert answer == icmp_error(
        GATEWAY_IN, HOST, 3, 4, about[:548], mtu=mtu, tos=0xC0, ttl=64, identification=error.identification
    )


# --- with DF -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("excess", [-1, 0, 1, 100])
def test_C50_df_and_too_large_is_refused_with_the_mtu(protocol: int, excess: int) -> None:
    harness = narrow()
    header = 40 if protocol == TCP else 28
    build = tcp if protocol == TCP else udp
    packet = build(HERE, THERE, payload=body(MTU_OUT - header + excess), df=True)
    if excess > 0:
        reason, answer = refused(harness, INSIDE, packet)
        assert reason == "fragmentation_needed"
        is_too_big(answer, packet, MTU_OUT)
        assert harness.sessions() == []
    else:
        assert len(passes(harness, INSIDE, packet)) == MTU_OUT + excess


@pytest.mark.parametrize(("route_mtu", "mtu"), [(0, 1400), (1300, 1300), (1400, 1400), (9000, 1400), (68, 68)])
def test_the_smaller_of_link_and_route_counts(route_mtu: int, mtu: int) -> None:
    harness = narrow(routes=[*HOWTO_ROUTES, ("199.0.0.0/24", unicast("outside", "200.200.200.1", route_mtu))])
    fits, exceeds = (udp(HERE, THERE, bytes(mtu - 28 + more), df=True) for more in (0, 1))
    assert len(passes(harness, INSIDE, fits)) == mtu
    is_too_big(refused(harness, INSIDE, exceeds)[1], exceeds, mtu)


def test_a_packet_that_is_too_large_on_the_way_in() -> None:
    harness = opened(UDP, mtu={"inside": 1400, "outside": 65535})
    packet = udp(THERE, EXTERNAL, body(1400), df=True)
    reason, answer = refused(harness, OUTSIDE, packet)
    assert reason == "fragmentation_needed"
    error = decode(answer)
    assert (error.kind, error.code, error.mtu) == (3, 4, 1400)
    assert (error.source, error.destination) == (decode(packet).destination, decode(packet).source)
    assert error.quote == packet[:548]


def test_time_runs_out_before_the_size_matters() -> None:
    packet = udp(HERE, THERE, body(5000), df=True, ttl=1)
    assert refused(narrow(), INSIDE, packet)[0] == "ttl_exceeded"


def test_an_icmp_error_that_is_too_large_is_not_answered() -> None:
    harness = opened(UDP, mtu={"inside": 600, "outside": 1500})
    packet = icmp_error(SERVER, GATEWAY_OUT, 3, 1, udp(EXTERNAL, THERE, bytes(900)), df=True)
    assert dropped(harness, OUTSIDE, packet) == "fragmentation_needed"


# --- large sends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vnet", [True, False], ids=["vnet", "plain"])
def test_segments_that_fit_are_no_large_packet(vnet: bool) -> None:
    """64 KiB with DF, and each segment fits: it is the segment that has to fit, not the send."""
    harness = narrow(outside_vnet=vnet)
    packet = partial(tcp(HERE, THERE, "A", seq=1, ack=1, payload=body(60_000), df=True))
    sent = harness.send(INSIDE, packet, vnet=large(GSO_TCPV4, MTU_OUT - 40))
    assert harness.drops() == {}
    assert len(sent) == (1 if vnet else -(-60_000 // (MTU_OUT - 40)))


@pytest.mark.parametrize("options", [0, 12])
def test_segments_that_do_not_fit_are_refused_with_the_mtu(options: int) -> None:
    """One octet too many in each; the error quotes the send, and TCP will cut it smaller."""
    harness = narrow()
    packet = partial(tcp(HERE, THERE, "A", seq=1, ack=1, payload=body(60_000), df=True, tcp_options=b"\x01" * options))
    assert len(harness.send(INSIDE, packet, vnet=large(GSO_TCPV4, MTU_OUT - 40 - options, 54 + options))) == 1
    [answer] = harness.send(INSIDE, packet, vnet=large(GSO_TCPV4, MTU_OUT - 39 - options, 54 + options))
    assert harness.drops() == {"fragmentation_needed": 1}
    assert (decode(answer.packet).mtu, answer.link) == (MTU_OUT, INSIDE)
    assert decode(answer.packet).quote == packet[:548]


def test_datagrams_sent_as_one_that_do_not_fit() -> None:
    harness = narrow()
    packet = partial(udp(HERE, THERE, body(20_000), df=True))
    assert len(harness.send(INSIDE, packet, vnet=large(GSO_UDP_L4, MTU_OUT - 28, 42, 6))) == 1
    [answer] = harness.send(INSIDE, packet, vnet=large(GSO_UDP_L4, MTU_OUT - 27, 42, 6))
    assert decode(answer.packet).mtu == MTU_OUT
    assert harness.drops() == {"fragmentation_needed": 1}


def test_segments_without_df_are_made_smaller() -> None:
    """No fragment is needed where segments can be cut shorter."""
    harness = narrow()
    packet = partial(tcp(HERE, THERE, "A", seq=1, ack=1, payload=body(20_000)))
    [out] = harness.send(INSIDE, packet, vnet=large(GSO_TCPV4, 1460))
    assert out.vnet == large(GSO_TCPV4, MTU_OUT - 40)
    assert completed(out.packet) == tcp(EXTERNAL, THERE, "A", seq=1, ack=1, payload=body(20_000), ttl=63)
    assert harness.forwarder.notes()["fragmented"] == 0


def test_datagrams_without_df_that_do_not_fit_are_dropped_by_name() -> None:
    harness = narrow()
    harness.send(INSIDE, partial(udp(HERE, THERE, body(20_000))), vnet=large(GSO_UDP_L4, 1472, 42, 6))
    assert harness.drops() == {"cannot_segment": 1}


# --- fragmentation -------------------------------------------------------------------------------------------------


def pieces_of(harness: Harness, packet: bytes, mtu: int, link: str = INSIDE, vnet: bytes | None = None) -> list[bytes]:
    """Send a packet that must come out in pieces; check each and return them."""
    sent = harness.send(link, packet, vnet=vnet)
    assert harness.drops() == {}
    assert all(out.link != link for out in sent)
    pieces = [out.packet for out in sent]
    for piece in pieces:
        assert len(piece) <= mtu
        assert problems(piece) == []
    for piece in pieces[:-1]:
        assert len(piece) + 8 > mtu, "a piece is smaller than it has to be"
    assert not any(out.vnet and any(out.vnet) for out in sent), "a fragment has no checksum to complete"
    return pieces


@pytest.mark.parametrize("vnet", [True, False], ids=["vnet", "plain"])
@pytest.mark.parametrize(
    ("mtu", "length"),
    [
        *itertools.product([MTU_OUT, 1401, 576], [MTU_OUT - 27, MTU_OUT, 3000, 9973, 65_000]),
        *itertools.product(
            [68], [MTU_OUT - 27, MTU_OUT, 3000, 9973]
        ),  # of 65 000 octets, the sender's link holds no more
    ],
)
def test_rfc4787_req13a_without_df_it_is_fragmented(mtu: int, length: int, vnet: bool) -> None:
    harness = narrow(mtu, outside_vnet=vnet)
    packet = udp(HERE, THERE, body(length), identification=0x7777, tos=0x10)
    pieces = pieces_of(harness, packet, mtu)
    assert reassemble(pieces) == udp(EXTERNAL, THERE, body(length), identification=0x7777, tos=0x10, ttl=63)
    assert harness.forwarder.notes()["fragmented"] == (length + 28 > mtu)
    assert harness.forwarder.verdicts()["forward"] == 1
    assert harness.forwarder.traffic(1)["tx_packets"] == len(pieces)
    assert harness.forwarder.traffic(1)["tx_bytes"] == sum(14 + len(piece) for piece in pieces)


def test_a_packet_that_just_fits_is_not_fragmented() -> None:
    harness = narrow()
    assert len(passes(harness, INSIDE, udp(HERE, THERE, body(MTU_OUT - 28)))) == MTU_OUT
    assert harness.forwarder.notes()["fragmented"] == 0


def test_every_protocol_is_fragmented() -> None:
    for packet, expected in [
        (tcp(HERE, THERE, "A", payload=body(4000)), tcp(EXTERNAL, THERE, "A", payload=body(4000), ttl=63)),
        (ping(HOST, SERVER, 5, payload=body(4000)), ping(GATEWAY_OUT, SERVER, 5, payload=body(4000), ttl=63)),
    ]:
        assert reassemble(pieces_of(narrow(), packet, MTU_OUT)) == expected


def test_an_answer_is_fragmented_on_the_way_in() -> None:
    harness = opened(UDP, mtu={"inside": 1000, "outside": 65535})
    pieces = pieces_of(harness, udp(THERE, EXTERNAL, body(3000), identification=5), 1000, OUTSIDE)
    assert reassemble(pieces) == udp(THERE, HERE, body(3000), identification=5, ttl=63)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("vnet", [True, False], ids=["vnet", "plain"])
def test_a_partial_checksum_is_completed_before_the_cut(protocol: int, vnet: bool) -> None:
    """No device can do it afterwards: the checksum covers all pieces."""
    build = tcp if protocol == TCP else udp
    harness = narrow(outside_vnet=vnet)
    packet = partial(build(HERE, THERE, payload=body(4000)))
    pieces = pieces_of(harness, packet, MTU_OUT, vnet=large(0, 0, 0, 16 if protocol == TCP else 6))
    assert reassemble(pieces) == build(EXTERNAL, THERE, payload=body(4000), ttl=63)


@pytest.mark.parametrize(
    ("options", "copied"),
    [
        ("", ""),
        (ROUTER_ALERT, ROUTER_ALERT),
        (RECORD_ROUTE, ""),
        (TIMESTAMP, ""),
        (RECORD_ROUTE + ROUTER_ALERT, ROUTER_ALERT),
        (SECURITY + RECORD_ROUTE, SECURITY + "00"),
        ("01" + SECURITY + "010101" + ROUTER_ALERT, SECURITY + ROUTER_ALERT + "00"),
        ("01010100", ""),
        (ROUTER_ALERT + "00" + "94040000", ROUTER_ALERT),
    ],
)
def test_rfc791_options_are_copied_by_their_flag(options: str, copied: str) -> None:
    """All are in the first fragment, those with the copied flag in every one; each header is padded to 32 bits."""
    packet = udp(HERE, THERE, body(4000), options=bytes.fromhex(options))
    pieces = pieces_of(narrow(), packet, MTU_OUT)
    header = decode(packet).options
    assert decode(pieces[0]).options == header
    for piece in pieces[1:]:
        assert decode(piece).options == bytes.fromhex(copied).ljust(-(-len(copied) // 8) * 4, b"\0")
    assert reassemble(pieces) == udp(EXTERNAL, THERE, body(4000), options=bytes.fromhex(options), ttl=63)


@pytest.mark.parametrize(("offset", "more"), [(0, True), (1480, True), (2960, False)])
def test_a_fragment_between_inside_networks_is_fragmented_on(offset: int, more: bool) -> None:
    """It is routed, not translated; its pieces go on from its own offset, and only the last one ends the packet."""
    routes = [*HOWTO_ROUTES, ("10.5.0.0/16", unicast("inside", "10.0.0.9", 700))]
    harness = Harness(mtu={"inside": 1500, "outside": 1500}, routes=routes)
    packet = ipv4(HOST, "10.5.0.1", UDP, body(1480), offset=offset, mf=more, identification=99)
    sent = harness.send(INSIDE, packet)
    pieces = [decode(out.packet) for out in sent]
    assert len(pieces) == 3
    assert b"".join(piece.body for piece in pieces) == body(1480)
    assert [piece.offset for piece in pieces] == [offset, offset + 680, offset + 1360]
    assert [piece.mf for piece in pieces] == [True, True, more]
    assert all(problems(piece.raw) == [] and piece.ttl == 63 and piece.identification == 99 for piece in pieces)


def test_a_batch_of_packets_that_are_all_cut() -> None:
    """More pieces than the sender's scratch memory holds at once; nothing may be overwritten before it is sent."""
    harness = narrow(576)
    for number in range(40):
        harness.inject(INSIDE, udp(HERE, THERE, body(3000 + number, number), identification=number))
    harness.inject(INSIDE, udp(HERE, THERE, b"whole", identification=40))
    sent = [out.packet for out in harness.run()]
    for number in range(40):
        pieces = [packet for packet in sent if decode(packet).identification == number]
        assert reassemble(pieces) == udp(EXTERNAL, THERE, body(3000 + number, number), identification=number, ttl=63)
    assert sent[-1] == udp(EXTERNAL, THERE, b"whole", identification=40, ttl=63)


# --- segmentation by us --------------------------------------------------------------------------------------------


def segments_of(packet: bytes, header: bytes, **settings) -> list[bytes]:
    """Let a large send leave on a link without virtio headers; return the segments."""
    harness = Harness(mtu={"inside": 65535, "outside": 1500}, outside_vnet=False, **settings)
    sent = harness.send(INSIDE, packet, vnet=header)
    assert harness.drops() == {}
    assert harness.forwarder.notes()["segmented"] == 1
    assert harness.forwarder.verdicts()["forward"] == 1
    assert all(out.vnet is None for out in sent)
    for out in sent:
        assert problems(out.packet) == []
    return [out.packet for out in sent]


@pytest.mark.parametrize("size", [8, 9, 536, 1448, 1460])
@pytest.mark.parametrize("length", [1, 1460, 1461, 4380, 20_000])
@pytest.mark.parametrize("sequence", [1, 0xFFFFF000])
def test_tcp_segments(size: int, length: int, sequence: int) -> None:
    """As by Linux tcp_gso_segment: sequence numbers advance, the last has FIN and PSH, identifications count up."""
    length = min(length, 900 * size)  # the memory sender's room
    packet = partial(
        tcp(
            HERE,
            THERE,
            "FPA",
            seq=sequence,
            ack=77,
            window=500,
            payload=body(length),
            identification=0xFFF0,
            df=True,
            tos=8,
        )
    )
    segments = [decode(piece) for piece in segments_of(packet, large(GSO_TCPV4, size))]
    assert len(segments) == -(-length // size)
    assert b"".join(segment.payload for segment in segments) == body(length)
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        assert segment.seq == (sequence + number * size) % 2**32
        assert segment.identification == (0xFFF0 + number) % 65536
        assert segment.flags == 0x10 | (FIN | PSH if last else 0)
        assert len(segment.payload) == (length - number * size if last else size)
        assert (segment.ack, segment.window, segment.df, segment.tos, segment.ttl) == (77, 500, True, 8, 63)
        assert (segment.source_port, segment.destination_port) == (4000, 80)


def test_tcp_options_are_in_every_segment() -> None:
    options = bytes.fromhex("0101080a0001020304050607")
    packet = partial(tcp(HERE, THERE, "A", seq=1, ack=1, payload=body(5000), tcp_options=options))
    for segment in segments_of(packet, large(GSO_TCPV4, 1448, 66)):
        assert segment[40:52] == options


def test_ip_options_are_in_every_segment() -> None:
    packet = partial(tcp(HERE, THERE, "A", seq=1, ack=1, payload=body(5000), options=b"\x94\x04\x00\x00"))
    for segment in segments_of(packet, large(GSO_TCPV4, 1400, 58, start=38)):
        assert decode(segment).options == b"\x94\x04\x00\x00"


@pytest.mark.parametrize("kind", [GSO_TCPV4, GSO_TCPV4 | GSO_ECN])
def test_rfc3168_cwr_is_in_the_first_segment_only(kind: int) -> None:
    packet = partial(tcp(HERE, THERE, "CPA", seq=1, ack=1, payload=body(5000)))
    segments = [decode(piece) for piece in segments_of(packet, large(kind, 1448))]
    assert [bool(segment.flags & CWR) for segment in segments] == [True, False, False, False]


@pytest.mark.parametrize("size", [250, 1000, 1472])
@pytest.mark.parametrize("length", [999, 1000, 1001, 30_000])
def test_udp_datagrams(size: int, length: int) -> None:
    """UDP_SEGMENT: each piece is a datagram of its own, with length and checksum."""
    packet = partial(udp(HERE, THERE, body(length), identification=7))
    datagrams = segments_of(packet, large(GSO_UDP_L4, size, 42, 6))
    assert len(datagrams) == -(-length // size)
    for number, datagram in enumerate(datagrams):
        expected = body(length)[number * size : (number + 1) * size]
        assert datagram == udp(EXTERNAL, THERE, expected, identification=7 + number, ttl=63)


def test_segments_translated_to_another_port() -> None:
    packet = partial(tcp(HERE, THERE, "A", seq=1, ack=1, payload=body(10_000)))
    for segment in segments_of(packet, large(GSO_TCPV4, 1448), ports=[61000]):
        assert (decode(segment).source_port, decode(segment).source) == (61000, 0xC8C8C8C8)


def test_what_cannot_be_segmented_is_dropped_by_name() -> None:
    """UDP fragmentation offload: nothing is sent, least of all the whole."""
    harness = Harness(mtu={"inside": 65535, "outside": 1500}, outside_vnet=False)
    packet = partial(udp(HERE, THERE, payload=body(1400)))
    assert harness.send(INSIDE, packet, vnet=large(GSO_UDP, 1400, 42, 6)) == []
    assert harness.drops() == {"cannot_segment": 1}


def test_segments_and_other_packets_in_one_batch() -> None:
    """More segments than one batch holds, between other packets: all complete, and in order."""
    harness = Harness(mtu={"inside": 65535, "outside": 1500}, outside_vnet=False)
    expected = []
    for number in range(8):
        payload = body(40_000, number)
        packet = partial(tcp(HERE, THERE, "A", seq=number * 40_000, ack=1, payload=payload))
        harness.inject(INSIDE, packet, vnet=large(GSO_TCPV4, 1000))
        harness.inject(INSIDE, udp(HERE, THERE, bytes([number])))
        expected += [payload[at : at + 1000] for at in range(0, 40_000, 1000)] + [bytes([number])]
    sent = [out.packet for out in harness.run()]
    assert all(problems(packet) == [] for packet in sent)
    assert [decode(packet).payload for packet in sent] == expected


def test_without_virtio_headers_on_the_ring_a_large_send_is_cut_to_what_every_path_takes() -> None:
    """The ring only says "checksum missing": a TCP packet over the link's MTU was a large send of some MSS."""
    harness = Harness(mtu={"inside": 1500, "outside": 1500}, outside_vnet=False)
    packet = partial(tcp(HERE, THERE, "PA", seq=1, ack=1, payload=body(10_000), df=True))
    sent = [out.packet for out in harness.send(INSIDE, packet, vnet=b"\x01" + bytes(9))]
    assert harness.drops() == {}
    assert [len(piece) for piece in sent] == [1280] * 8 + [40 + 10_000 - 8 * 1240]
    assert all(problems(piece) == [] for piece in sent)
    assert b"".join(decode(piece).payload for piece in sent) == body(10_000)


def test_without_virtio_headers_on_the_ring_a_large_send_goes_on_as_one() -> None:
    harness = Harness()
    packet = partial(tcp(HERE, THERE, "PA", seq=1, ack=1, payload=body(10_000), df=True, tcp_options=b"\x01" * 12))
    [out] = harness.send(INSIDE, packet, vnet=b"\x01" + bytes(9))
    assert out.vnet == large(GSO_TCPV4, 1280 - 52, 66)
    assert completed(out.packet) == tcp(
        EXTERNAL, THERE, "PA", seq=1, ack=1, payload=body(10_000), df=True, tcp_options=b"\x01" * 12, ttl=63
    )


def test_a_hairpin_of_a_large_send() -> None:
    """Out and in again on the same link, still one send."""
    harness = Harness(mtu={"inside": 1500, "outside": 1500})
    receiver = (OTHER_HOST, 5000)
    passes(harness, INSIDE, tcp(receiver, THERE, "S"))
    packet = partial(tcp(HERE, (GATEWAY_OUT, 5000), "PA", seq=1, ack=1, payload=body(20_000), df=True))
    [out] = harness.send(INSIDE, packet, vnet=large(GSO_TCPV4, 1460))
    assert out.link == INSIDE
    assert out.vnet == large(GSO_TCPV4, 1460)
    assert completed(out.packet) == tcp(EXTERNAL, receiver, "PA", seq=1, ack=1, payload=body(20_000), df=True, ttl=63)


# --- sizes that cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [1, 10, 24, 28, 67])
def test_rfc791_no_link_carries_less_than_68_octets(mtu: int) -> None:
    """The kernel's tables may say what they like: a packet with the longest header still leaves in pieces, and ends."""
    routes = [*HOWTO_ROUTES, ("199.0.0.0/24", unicast("outside", "200.200.200.1", mtu))]
    for harness in (narrow(routes=routes), narrow(mtu)):
        packet = udp(HERE, THERE, body(1400), options=b"\x01" * 40)
        pieces = pieces_of(harness, packet, 68)
        assert len(pieces) > 1408 // 48
        assert decode(reassemble(pieces)).payload == body(1400)
        is_too_big(refused(harness, INSIDE, packet := udp(HERE, THERE, body(100), df=True))[1], packet, 68)


@pytest.mark.parametrize("vnet", [large(GSO_TCPV4, 1448, 134, start=74), b"\x01" + bytes(9)], ids=["told", "guessed"])
@pytest.mark.parametrize("mtu", [0, 24, 68, 100, 120])
def test_no_segment_is_smaller_than_its_headers_leave_room_for(mtu: int, vnet: bytes) -> None:
    """40 octets of options in both headers: the sender is told the MTU, and nothing is cut into no octets each."""
    harness = Harness(mtu={"inside": mtu, "outside": mtu}, outside_vnet=False)
    options = {"options": b"\x01" * 40, "tcp_options": b"\x01" * 40}
    packet = partial(tcp(HERE, THERE, "A", seq=1, ack=1, payload=body(5000), df=True, **options))
    [answer] = harness.send(INSIDE, packet, vnet=vnet)
    assert (decode(answer.packet).kind, decode(answer.packet).mtu) == (3, max(mtu, 68))
    assert harness.drops() == {"fragmentation_needed": 1}


def test_a_reported_mtu_that_is_smaller_than_the_headers_leaves_segments_as_they_are() -> None:
    """RFC 1191: the least that a router may report; a large send whose size is our guess has longer headers."""
    harness = Harness()
    options = {"options": b"\x01" * 40, "tcp_options": b"\x01" * 40}
    packet = partial(tcp(HERE, THERE, "A", seq=1, ack=1, payload=body(5000), df=True, **options))
    [sent] = harness.send(INSIDE, packet, vnet=b"\x01" + bytes(9))
    told = icmp_error(ROUTER, GATEWAY_OUT, 3, 4, sent.packet[:128], mtu=68)
    assert len(harness.send(OUTSIDE, told)) == 1
    [out] = harness.send(INSIDE, packet, vnet=b"\x01" + bytes(9))
    assert out.vnet == sent.vnet == large(GSO_TCPV4, 1280 - 120, 134, start=74)


def test_a_large_send_without_payload_is_a_segment() -> None:
    harness = Harness(outside_vnet=False)
    packet = tcp(HERE, THERE, "A", seq=1, ack=1)
    [out] = harness.send(INSIDE, partial(packet), vnet=large(GSO_TCPV4, 1448))
    assert out.packet == tcp(EXTERNAL, THERE, "A", seq=1, ack=1, ttl=63)
