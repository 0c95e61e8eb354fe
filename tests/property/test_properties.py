"""One property a test, in a dozen lines: what must hold of any masquerading gateway, whatever its rules are in detail.

Each is asked of the specification and of the packet path. None of them looks into either: packets in, packets out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support import packets, traffic
from tests.support.model.state import INSIDE, OUTSIDE, Settings
from tests.support.model.subjects import ModelSubject, PathSubject, Subject
from tests.support.packets import ICMP, TCP, UDP, Malformed, Packet, decode, problems, to_address

GATEWAY = to_address(traffic.EXTERNAL)
ONES = 0xFFFF
lists_of_outbound = st.lists(traffic.outbound(), max_size=12)
protocols = st.sampled_from([TCP, UDP, ICMP])
errors = st.integers(1, 65534)

NewSubject = Callable[..., Subject]


@pytest.fixture(params=[ModelSubject, PathSubject], ids=["specification", "path"], scope="module")
def new(request: pytest.FixtureRequest) -> NewSubject:
    return request.param


def first_packet(protocol: int, source: tuple[str, int], remote: tuple[str, int], payload: bytes = b"") -> bytes:
    """Return what opens a session; for a ping the ports are identifier and nothing."""
    if protocol == UDP:
        return packets.udp(source, remote, payload)
    if protocol == TCP:
        return packets.tcp(source, remote, "S", seq=1, payload=payload)
    return packets.ping(source[0], remote[0], source[1], payload=payload)


def answer_to(seen: bytes, payload: bytes = b"answer") -> bytes:
    """Return what the remote answers to a packet it has received."""
    packet = decode(seen)
    here, there = (packet.destination, packet.destination_port), (packet.source, packet.source_port)
    if packet.protocol == UDP:
        return packets.udp(here, there, payload)
    if packet.protocol == TCP:
        return packets.tcp(here, there, "SA", seq=77, ack=packet.seq + 1 + len(packet.payload), payload=payload)
    return packets.ping(packet.destination, packet.source, packet.source_port, kind=0, payload=payload)


# --- what comes in -----------------------------------------------------------------------------------------------


@given(strangers=st.lists(traffic.inbound() | traffic.anywhere() | traffic.damaged(traffic.inbound()), max_size=8))
def test_nothing_comes_in_unasked(new: NewSubject, strangers: list[bytes]) -> None:
    """VigNAT: block unsolicited. Without sessions nothing from outside reaches the inside, or anybody else."""
    subject = new()
    for packet in strangers:
        for link, out in subject.send(OUTSIDE, packet).out:
            assert link == OUTSIDE
            assert decode(out).is_error
    assert not subject.sessions()


@given(opened=lists_of_outbound, knocks=st.lists(traffic.inbound(), max_size=12))
def test_only_addresses_we_talked_to_come_in(new: NewSubject, opened: list[bytes], knocks: list[bytes]) -> None:
    """With address-dependent filtering a packet comes in only if its source was sent a packet before."""
    subject = new()
    talked_to = set()
    for packet in opened:
        talked_to |= {decode(out).destination for link, out in subject.send(INSIDE, packet).out if link == OUTSIDE}
    for packet in knocks:
        for link, _ in subject.send(OUTSIDE, packet).out:
            assert link == OUTSIDE or decode(packet).source in talked_to


@given(protocol=protocols, source=traffic.inside_endpoints, remote=traffic.remote_endpoints, payload=traffic.payloads)
def test_the_answer_reaches_the_sender(new, protocol: int, source, remote, payload: bytes) -> None:
    """VigNAT: forward reply. What a remote answers arrives at the endpoint that asked, with its payload as sent."""
    subject = new()
    [(link, seen)] = subject.send(INSIDE, first_packet(protocol, source, remote, payload)).out
    assert link == OUTSIDE
    assert decode(seen).payload == payload
    [(link, back)] = subject.send(OUTSIDE, answer_to(seen)).out
    back = decode(back)
    assert (link, back.destination, back.destination_port) == (INSIDE, to_address(source[0]), source[1])
    assert (back.source, back.payload) == (to_address(remote[0]), b"answer")


# --- what goes out -----------------------------------------------------------------------------------------------


def addresses_in(packet: Packet) -> set[int]:
    """Return all addresses a receiver can read, those in the quote of an ICMP error included."""
    found = {packet.source, packet.destination}
    if packet.is_error and len(packet.quote) >= 20:
        found |= {int.from_bytes(packet.quote[at : at + 4], "big") for at in (12, 16)}
    return found


@given(
    sent=st.lists(traffic.outbound() | traffic.damaged(traffic.outbound()) | traffic.anywhere(), max_size=12),
    data=st.data(),
)
def test_no_private_source_leaks(new: NewSubject, sent: list[bytes], data: st.DataObject) -> None:
    """Whatever the inside sends, right or wrong: what leaves has the external source and names no inside address."""
    subject = new()
    for packet in sent:
        out = subject.send(INSIDE, packet).out
        for seen in [seen for link, seen in out if link == OUTSIDE]:
            assert decode(seen).source == GATEWAY
            assert not any(address >> 24 == 10 for address in addresses_in(decode(seen)))
            if decode(seen).source_port is None:
                continue
            quote = answer_to(packet) if not problems(packet) else packet
            error = data.draw(traffic.errors_about(traffic.hosts, traffic.REMOTES[0], quote), label="error")
            for link, reported in subject.send(INSIDE, error).out:
                assert link == INSIDE or not any(address >> 24 == 10 for address in addresses_in(decode(reported)))


@given(sent=lists_of_outbound, remote=traffic.remote_endpoints)
def test_a_port_belongs_to_one_endpoint(new: NewSubject, sent: list[bytes], remote: tuple[str, int]) -> None:
    """RFC 4787 REQ-1, REQ-3: as long as time stands still, endpoints and external ports correspond one to one."""
    subject = new(Settings(ports=frozenset(range(1024, 1034))))
    external_of: dict[tuple[int, int, int], int] = {}
    for packet in sent:
        for link, out in subject.send(INSIDE, packet).out:
            seen, inside = decode(out), decode(packet)
            if link == OUTSIDE and seen.source_port is not None:
                endpoint = (inside.protocol, inside.source, inside.source_port)
                assert external_of.setdefault(endpoint, seen.source_port) == seen.source_port
    owners = [(protocol, port) for (protocol, _, _), port in external_of.items()]
    assert len(owners) == len(set(owners))


# --- checksums ---------------------------------------------------------------------------------------------------


def is_piece(packet: bytes) -> bool:
    return decode(packet).mf or decode(packet).offset > 0


@given(sent=lists_of_outbound)
def test_right_checksums_stay_right(new: NewSubject, sent: list[bytes]) -> None:
    """A packet without a fault leaves without a fault, and so does the answer to it."""
    subject = new()
    for packet in sent:
        right = not problems(packet)
        for link, out in subject.send(INSIDE, packet).out:
            assert not right or problems(out) == [] or is_piece(out)
            if link == OUTSIDE and not is_piece(out):
                for _, back in subject.send(OUTSIDE, answer_to(out)).out:
                    assert problems(back) == []


@given(protocol=protocols, source=traffic.inside_endpoints, remote=traffic.remote_endpoints, error=errors)
def test_wrong_checksums_stay_wrong(new, protocol: int, source, remote, error: int) -> None:
    """RFC 1624: a transport checksum that is wrong by some amount is wrong by the same amount afterwards."""
    subject = new()
    packet = bytearray(first_packet(protocol, source, remote, b"odd"))
    at = 20 + {TCP: 16, UDP: 6, ICMP: 2}[protocol]
    wrong = (int.from_bytes(packet[at : at + 2], "big") + error) % ONES
    assume(wrong)  # zero would mean none, for UDP
    packet[at : at + 2] = wrong.to_bytes(2, "big")
    [(_, seen)] = subject.send(INSIDE, bytes(packet)).out
    right = decode(seen)
    rebuilt = first_packet(protocol, (right.source, right.source_port), remote, b"odd")
    difference = int.from_bytes(seen[at : at + 2], "big") - int.from_bytes(rebuilt[at : at + 2], "big")
    assert difference % ONES == error
    assert problems(seen)


# --- time --------------------------------------------------------------------------------------------------------

LIVES = {UDP: 300.0, ICMP: 60.0, TCP: 240.0}  # seconds of a session that was opened and not answered


@given(protocol=protocols, source=traffic.inside_endpoints, remote=traffic.remote_endpoints, start=st.floats(0, 1))
def test_a_mapping_never_ends_early(new, protocol: int, source, remote, start: float) -> None:
    """RFC 4787 REQ-5, RFC 5382 REQ-5, RFC 5508 REQ-2: a millisecond before its time a session is still there."""
    subject = new()
    subject.advance(start)
    [(_, seen)] = subject.send(INSIDE, first_packet(protocol, source, remote)).out
    subject.advance(LIVES[protocol] - 0.001)
    assert len(subject.send(OUTSIDE, answer_to(seen)).out) == 1


@given(protocol=protocols, source=traffic.inside_endpoints, remote=traffic.remote_endpoints, start=st.floats(0, 1))
def test_a_dead_session_is_gone_soon(new, protocol: int, source, remote, start: float) -> None:
    """A second after its time a session is gone, with its port and everything else it held."""
    subject = new()
    subject.advance(start)
    [(_, seen)] = subject.send(INSIDE, first_packet(protocol, source, remote)).out
    subject.advance(LIVES[protocol] + 1)
    assert subject.sessions() == set()
    assert subject.send(OUTSIDE, answer_to(seen)).out == []


@given(gaps=st.lists(st.floats(0.1, 299.9), min_size=1, max_size=20), source=traffic.inside_endpoints)
def test_a_session_in_use_lives_on(new: NewSubject, gaps: list[float], source: tuple[str, int]) -> None:
    """RFC 4787 REQ-6: as long as the inside sends often enough, its external endpoint stays."""
    subject = new()
    packet = packets.udp(source, ("199.0.0.1", 53))
    [(_, first)] = subject.send(INSIDE, packet).out
    for gap in gaps:
        subject.advance(gap)
        assert subject.send(INSIDE, packet).out == [(OUTSIDE, first)]


@given(gaps=st.lists(st.floats(0.1, 7439.9), min_size=1, max_size=20), directions=st.lists(st.booleans(), min_size=20))
def test_a_connection_in_use_lives_on(new: NewSubject, gaps: list[float], directions: list[bool]) -> None:
    """RFC 5382 REQ-5: segments of either end keep an established connection."""
    subject = new()
    [(_, syn)] = subject.send(INSIDE, packets.tcp("10.0.0.2:4000", "199.0.0.1:22", "S", seq=1)).out
    subject.send(OUTSIDE, answer_to(syn, b""))
    for gap, outbound in zip(gaps, directions, strict=False):
        subject.advance(gap)
        if outbound:
            seen = subject.send(INSIDE, packets.tcp("10.0.0.2:4000", "199.0.0.1:22", "A", seq=2, ack=78))
        else:
            seen = subject.send(OUTSIDE, packets.tcp("199.0.0.1:22", "200.200.200.200:4000", "A", seq=78, ack=2))
        assert len(seen.out) == 1


# --- limits and nonsense -----------------------------------------------------------------------------------------


@given(sent=st.lists(traffic.outbound(), max_size=30))
def test_limits_hold(new: NewSubject, sent: list[bytes]) -> None:
    """No host has more sessions or ports than its share, and the table not more than it can hold."""
    settings = replace(Settings(), sessions=7, sessions_per_host=4, ports_per_host=2)
    subject = new(settings)
    for packet in sent:
        subject.send(INSIDE, packet)
        sessions = subject.sessions()
        assert len(sessions) <= settings.sessions
        hosts = [inside.partition(":")[0] for _, inside, *_ in sessions]
        assert all(hosts.count(host) <= settings.sessions_per_host for host in hosts)
        endpoints = {(protocol, inside) for protocol, inside, *_ in sessions}
        owners = [(protocol, inside.partition(":")[0]) for protocol, inside in endpoints]
        assert all(owners.count(owner) <= settings.ports_per_host for owner in owners)


@given(link=st.sampled_from([INSIDE, OUTSIDE]), octets=st.binary(max_size=120))
def test_octets_that_are_no_packet_go_nowhere(new: NewSubject, link: str, octets: bytes) -> None:
    """Anything at all may arrive; only what can be decoded leaves, and a probe flow goes on undisturbed."""
    subject = new()
    probe = packets.udp("10.0.0.2:4000", "199.0.0.1:53")
    [before] = subject.send(INSIDE, probe).out
    for noise in (octets, b"\x45" + octets, b"\x45\0\0\x1c" + octets):
        for _, out in subject.send(link, noise).out:
            try:
                decode(out)
            except Malformed as error:
                raise AssertionError(f"{noise.hex()} left as {out.hex()}: {error}") from error
    assert subject.send(INSIDE, probe).out == [before]
