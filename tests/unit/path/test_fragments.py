"""Datagrams in pieces: every order, both directions, overlaps, floods; they come out translated, and cut alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.harness import Harness
from tests.support.packets import ICMP, TCP, UDP, decode, ipv4, ping, reassemble, udp
from tests.support.path_network import (
    EXTERNAL,
    GATEWAY_OUT,
    HERE,
    HOST,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    PROTOCOLS,
    ROUTER,
    SERVER,
    THERE,
    answer,
    bare,
    body,
    cut,
    joined,
    opened,
    passes,
    query,
    through,
)


def question(protocol: int, **fields) -> bytes:
    return query(protocol, payload=body(), identification=77, **fields)


def translated(protocol: int) -> bytes:
    if protocol == ICMP:
        return ping(GATEWAY_OUT, SERVER, HERE[1], payload=body(), ttl=63)
    return query(protocol, source=EXTERNAL, payload=body(), ttl=63)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (2, 0, 1)], ids=str)
def test_rfc4787_req14_any_order_out(protocol: int, order: tuple[int, ...]) -> None:
    harness = Harness()
    pieces = cut(question(protocol), 1200, 1200)
    sent = through(harness, INSIDE, [pieces[number] for number in order])
    assert len(sent) == 3
    assert joined(sent) == bare(translated(protocol))
    assert len({decode(piece).identification for piece in sent}) == 1
    assert harness.drops() == {}
    assert harness.forwarder.verdicts() == {"forward": 3, "deliver": 0, "reply": 0, "punt": 0, "drop": 0}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=str)
def test_rfc4787_req14_any_order_in(protocol: int, order: tuple[int, ...]) -> None:
    """The identification is the remote's, and stays."""
    harness = opened(protocol)
    pieces = cut(answer(protocol, payload=body(), identification=99), 1200, 1200)
    sent = through(harness, OUTSIDE, [pieces[number] for number in order])
    assert reassemble(sorted(sent, key=lambda piece: decode(piece).offset)) == answer(
        protocol, destination=HERE, payload=body(), identification=99, ttl=63
    )
    assert harness.drops() == {}


@pytest.mark.parametrize("largest", [8, 64, 1480])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pieces_keep_their_sizes(protocol: int, largest: int) -> None:
    harness = opened(protocol)
    pieces = cut(question(protocol), max(largest, 24), *[largest] * 400)
    sent = through(harness, INSIDE, pieces)
    assert [len(piece) for piece in sent] == [len(piece) for piece in pieces]
    assert joined(sent)[16:] == bare(question(protocol))[16:] or protocol != ICMP


def test_the_largest_datagram() -> None:
    harness = Harness()
    packet = udp(HERE, THERE, body(65_507), identification=5)
    sent = through(harness, INSIDE, cut(packet, *[1480] * 44))
    assert joined(sent) == bare(udp(EXTERNAL, THERE, body(65_507), ttl=63))


def test_rfc6864_two_hosts_with_one_identification() -> None:
    """Their pieces, interleaved, leave with identifications that the remote can tell apart."""
    harness = Harness()
    first = cut(udp((HOST, 4000), THERE, body(seed=1), identification=5), 1480)
    second = cut(udp((OTHER_HOST, 4001), THERE, body(seed=2), identification=5), 1480)
    sent = through(harness, INSIDE, [piece for pair in zip(first, second, strict=True) for piece in pair])
    by_identification: dict[int, list[bytes]] = {}
    for piece in sent:
        by_identification.setdefault(decode(piece).identification, []).append(piece)
    assert sorted(map(joined, by_identification.values())) == sorted(
        bare(udp((GATEWAY_OUT, port), THERE, body(seed=seed), ttl=63)) for port, seed in ((4000, 1), (4001, 2))
    )


def test_a_duplicate_does_no_harm() -> None:
    harness = Harness()
    pieces = cut(question(UDP), 1200, 1200)
    sent = through(harness, INSIDE, [pieces[0], pieces[1], pieces[1], pieces[0], pieces[2]])
    assert joined(sent) == bare(translated(UDP))
    assert harness.drops() == {"fragment_duplicate": 2}


def test_rfc1858_an_overlap_ends_the_datagram() -> None:
    harness = Harness()
    pieces = cut(question(UDP), 1200, 1200)
    overlapping = ipv4(HOST, SERVER, UDP, bytes(64), identification=77, offset=1200 - 32, mf=True)
    assert len(through(harness, INSIDE, [pieces[0], overlapping, pieces[1], pieces[2]])) == 1
    assert harness.drops() == {"fragment_overlap": 1, "fragment_refused": 2}
    assert passes(harness, INSIDE, udp(HERE, THERE, b"others go on"))


def test_rfc1858_what_came_first_stays() -> None:
    """A piece that lies within what has come is not passed on, whatever it says."""
    harness = Harness()
    pieces = cut(question(UDP), 1200, 1200)
    within = ipv4(HOST, SERVER, UDP, bytes(64), identification=77, offset=1200 - 32, mf=True)
    assert joined(through(harness, INSIDE, [pieces[0], pieces[1], within, pieces[2]])) == bare(translated(UDP))
    assert harness.drops() == {"fragment_duplicate": 1}


def test_a_last_piece_before_the_end_is_an_overlap() -> None:
    harness = Harness()
    pieces = cut(question(UDP), 1200, 1200)
    short = ipv4(HOST, SERVER, UDP, bytes(16), identification=77, offset=1200)
    assert len(through(harness, INSIDE, [pieces[0], pieces[2], short, pieces[1]])) == 2
    assert harness.drops() == {"fragment_overlap": 1, "fragment_refused": 1}


def test_pieces_wait_fifteen_seconds_for_the_first() -> None:
    harness = Harness()
    first, *later = cut(question(UDP), 1200, 1200)
    assert through(harness, INSIDE, later) == []
    assert harness.forwarder.verdicts()["punt"] == 2
    harness.advance(14)
    assert harness.drops() == {}
    harness.advance(2)
    assert harness.drops() == {"fragment_orphan": 2}
    assert len(through(harness, INSIDE, [first])) == 1


def test_pieces_of_a_refused_packet_are_refused() -> None:
    """A stranger's datagram to an external endpoint: none of its pieces gets in, in whatever order."""
    harness = opened(UDP)
    stranger = cut(udp((ROUTER, 9), EXTERNAL, body(), identification=3), 1200, 1200)
    assert through(harness, OUTSIDE, [stranger[1], stranger[0], stranger[2]]) == []
    drops = harness.drops()
    assert drops == {"filtered": 1, "fragment_refused": 2}


def test_pieces_for_the_gateway_are_its_kernels() -> None:
    """An answer to the host's own question, which no session knows."""
    harness = opened(UDP, ports=range(10_000, 20_000))
    pieces = cut(udp(THERE, (GATEWAY_OUT, 53), body(), identification=3), 1200, 1200)
    assert through(harness, OUTSIDE, [pieces[2], pieces[0], pieces[1]]) == []
    assert harness.drops() == {}
    assert harness.forwarder.verdicts()["deliver"] == 3


def test_hairpin_in_pieces() -> None:
    harness = Harness()
    passes(harness, INSIDE, udp((OTHER_HOST, 5000), THERE))
    pieces = cut(udp(HERE, (GATEWAY_OUT, 5000), body(), identification=8), 1200, 1200)
    sent = through(harness, INSIDE, [pieces[1], pieces[2], pieces[0]])
    assert joined(sent) == bare(udp(EXTERNAL, (OTHER_HOST, 5000), body(), ttl=63))


def test_pieces_wait_for_the_next_hop_too() -> None:
    harness = Harness()
    pieces = cut(question(UDP), 1200, 1200)
    for piece in pieces:
        harness.inject(INSIDE, piece)
    sent = [out.packet for out in harness.run()]
    assert joined(sent) == bare(translated(UDP))
    assert harness.drops() == {}


def test_a_narrow_link_cuts_the_pieces_again() -> None:
    harness = opened(UDP, mtu={"inside": 1500, "outside": 600})
    sent = through(harness, INSIDE, cut(question(UDP), 1480))
    assert all(len(piece) <= 600 for piece in sent)
    assert joined(sent) == bare(translated(UDP))


def test_ttl_runs_out_in_every_piece() -> None:
    harness = opened(UDP)
    sent = [decode(out) for out in through(harness, INSIDE, cut(question(UDP, ttl=1), 1480))]
    assert harness.drops() == {"ttl_exceeded": 1, "fragment_refused": 1}
    assert [piece.protocol for piece in sent] == [ICMP]


def test_rfc4787_req14a_a_flood_of_incomplete_datagrams_harms_its_source_only() -> None:
    harness = opened(UDP)
    good = cut(udp((OTHER_HOST, 4000), THERE, body(), identification=1), 1200, 1200)
    assert through(harness, INSIDE, [good[1], good[2]]) == []
    for number in range(3000):
        harness.send(INSIDE, ipv4(HOST, SERVER, UDP, bytes(1200), identification=number, offset=1200, mf=True))
    assert len(through(harness, INSIDE, [good[0]])) == 3
    assert harness.drops() == {"fragment_orphan": 3000 - 64}


def test_rfc4787_req14a_a_datagram_of_too_many_pieces_makes_room_by_its_own_end() -> None:
    harness = opened(UDP)
    for number in range(129):
        harness.send(INSIDE, ipv4(HOST, SERVER, UDP, bytes(8), identification=1, offset=8 * (number + 1), mf=True))
    assert harness.drops() == {"fragment_orphan": 129}, "none of them was too long"


def test_rfc4787_req14a_many_sources_at_once() -> None:
    """More incomplete datagrams than rows, from everywhere: whole packets and pieces in order go on."""
    harness = opened(UDP)
    for number in range(5000):
        source = f"10.{number % 200}.{number // 200}.7"
        harness.send(INSIDE, ipv4(source, SERVER, UDP, bytes(64), identification=number, offset=1200, mf=True))
        if number % 500 == 0:
            pieces = cut(udp(HERE, THERE, body(), identification=number), 1200, 1200)
            assert len(through(harness, INSIDE, pieces)) == 3
            assert passes(harness, INSIDE, udp(HERE, THERE, b"whole"))
    assert harness.drops().keys() == {"fragment_orphan"}
    harness.advance(16)
    assert harness.forwarder.verdicts()["punt"] == 0


def named(packet: bytes) -> tuple:
    """Return what tells one datagram's pieces from another's (RFC 791 section 3.2)."""
    fields = decode(packet)
    return fields.source, fields.destination, fields.protocol, fields.identification


@given(st.data())
def test_rfc4787_req14_any_mixture(data: st.DataObject) -> None:
    """Datagrams of several hosts and protocols, cut anywhere, shuffled, with duplicates: all come out whole."""
    harness = Harness()
    datagrams, pieces = [], []
    for number in range(data.draw(st.integers(1, 6), label="datagrams")):
        protocol = data.draw(st.sampled_from([UDP, TCP, ICMP]))
        source = (data.draw(st.sampled_from([HOST, OTHER_HOST])), 4000 + number)
        length = data.draw(st.integers(200, 4000))
        packet = query(protocol, source=source, payload=body(length, number), identification=number % 3)
        if any(named(other) == named(packet) for other in datagrams):
            continue
        datagrams.append(packet)
        sizes = data.draw(st.lists(st.sampled_from([24, 48, 576, 1480]), min_size=1, max_size=8))
        parts = cut(packet, max(24, sizes[0]), *sizes[1:])
        pieces += parts if all(len(part) < 1900 for part in parts) else cut(packet, *[1480] * 3)
    data.draw(st.randoms(use_true_random=False)).shuffle(pieces)
    sent = through(harness, INSIDE, pieces)
    assert harness.drops() == {}
    by_identification: dict[tuple, list[bytes]] = {}
    for number, piece in enumerate(sent):
        fields = decode(piece)
        in_pieces = fields.mf or fields.offset
        name = (fields.protocol, fields.identification) if in_pieces else (number,)
        by_identification.setdefault(name, []).append(piece)
    one_by_one = Harness()
    whole = {joined(through(one_by_one, INSIDE, [packet])) for packet in datagrams}
    assert {joined(together) for together in by_identification.values()} == whole
