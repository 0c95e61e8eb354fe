"""Port forwards on the packet path: rules PF-1 to PF-10 and T-6 over memory links."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.errors import CapacityError
from fastmasq.path.verdict import DROP_REASONS
from fastmasq.table.forward_table import ForwardTable
from fastmasq.table.rows import REMOTE_ROWS
from tests.support.harness import Harness, address
from tests.support.packets import ICMP, TCP, UDP, decode, dotted, icmp_error, problems, reassemble, tcp, udp
from tests.support.path_network import (
    GATEWAY_OUT,
    HOST,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    SERVER,
    bare,
    body,
    cut,
    dropped,
    joined,
    only,
    passes,
    through,
)

CLASS = {TCP: 0, UDP: 1}
CLIENT, OTHER_CLIENT = ("199.0.0.2", 5000), ("199.0.0.3", 5000)
WEB, OTHER_WEB = (HOST, 80), (OTHER_HOST, 80)
PUBLIC = (GATEWAY_OUT, 8080)


def forwarding(*targets, protocol: int = TCP, port: int = 8080, half_open: int = 1024, **settings) -> Harness:
    """Return a Harness that forwards PUBLIC to targets, each (endpoint, weight) or an endpoint."""
    harness = Harness(**settings)
    harness.forwards = ForwardTable(harness.table, half_open)
    place(harness, *targets, protocol=protocol, port=port)
    return harness


def place(harness: Harness, *targets, protocol: int = TCP, port: int = 8080) -> bool:
    rows = []
    for target in targets:
        (host, to), weight = target if isinstance(target[0], tuple) else (target, 10)
        rows.append((address(host), to, weight))
    return harness.forwards.place(address(GATEWAY_OUT), CLASS[protocol], port, rows)


def remove(harness: Harness, protocol: int = TCP, port: int = 8080) -> None:
    harness.forwards.remove(address(GATEWAY_OUT), CLASS[protocol], port)


def half_open(harness: Harness) -> int:
    return harness.forwards.half_open(address(GATEWAY_OUT), CLASS[TCP], 8080)


def ends(packet: bytes) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return source and destination endpoint of a packet that is whole and has right checksums."""
    assert problems(packet) == []
    decoded = decode(packet)
    return (dotted(decoded.source), decoded.source_port), (dotted(decoded.destination), decoded.destination_port)


def connect(harness: Harness, client=CLIENT, server=WEB) -> None:
    """Let a client connect through the forward to the target expected."""
    assert ends(passes(harness, OUTSIDE, tcp(client, PUBLIC, "S", seq=100))) == (client, server)
    assert ends(passes(harness, INSIDE, tcp(server, client, "SA", seq=900, ack=101))) == (PUBLIC, client)
    passes(harness, OUTSIDE, tcp(client, PUBLIC, "A", seq=101, ack=901))


def states(harness: Harness) -> list[str]:
    return sorted(session["state"] for session in harness.sessions())


def test_pf1_pf2_a_tcp_connection_comes_in_with_its_source_kept_and_answers_leave_with_the_forwarded_port():
    harness = forwarding(WEB)
    connect(harness)
    assert states(harness) == ["established"]
    data = tcp(WEB, CLIENT, "PA", seq=901, ack=101, payload=b"page")
    assert ends(passes(harness, INSIDE, data)) == (PUBLIC, CLIENT)


def test_pf1_a_udp_exchange():
    harness = forwarding(WEB, protocol=UDP)
    assert ends(passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"hello"))) == (CLIENT, WEB)
    assert states(harness) == ["unanswered"]
    assert ends(passes(harness, INSIDE, udp(WEB, CLIENT, b"answer"))) == (PUBLIC, CLIENT)
    assert states(harness) == ["active"]


def test_pf1_many_clients_have_sessions_of_their_own():
    harness = forwarding(WEB)
    for port in range(5000, 5050):
        connect(harness, (CLIENT[0], port))
    assert states(harness) == ["established"] * 50


def test_pf3_a_forward_never_goes_by_itself():
    harness = forwarding(WEB, protocol=UDP)
    passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"hello"))
    harness.advance(3600)
    assert states(harness) == []
    assert ends(passes(harness, OUTSIDE, udp(OTHER_CLIENT, PUBLIC, b"hello"))) == (OTHER_CLIENT, WEB)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_pf3_what_the_server_sends_by_itself_leaves_with_the_forwarded_port(protocol: int):
    harness = forwarding(WEB, protocol=protocol)
    packet = tcp(WEB, (SERVER, 25), "S", seq=1) if protocol == TCP else udp(WEB, (SERVER, 25), b"hello")
    assert ends(passes(harness, INSIDE, packet))[0] == PUBLIC
    other = udp((HOST, 81), (SERVER, 25), b"hello")
    assert ends(passes(harness, INSIDE, other))[0] == (GATEWAY_OUT, 81)


def test_pf4_a_forwarded_port_is_never_given_to_an_outbound_mapping():
    harness = forwarding(WEB, ports=[8080, 8082])
    assert ends(passes(harness, INSIDE, tcp((OTHER_HOST, 8080), (SERVER, 80), "S", seq=1)))[0] == (GATEWAY_OUT, 8082)
    remove(harness)
    assert ends(passes(harness, INSIDE, tcp((HOST, 8080), (SERVER, 80), "S", seq=1)))[0] == PUBLIC


def test_pf4_ports_that_masquerading_may_not_use_can_be_forwarded():
    harness = forwarding(WEB, ports=[4000])
    connect(harness)
    remove(harness)
    harness.advance(8000)
    assert harness.table.is_mapped(address(GATEWAY_OUT), 0, 8080) is False
    assert harness.send(INSIDE, tcp((HOST, 8080), (SERVER, 80), "S", seq=1))[0].packet[20:22] == (4000).to_bytes(
        2, "big"
    )


@pytest.mark.parametrize("client", [(OTHER_HOST, 5000), (HOST, 5000)], ids=["another host", "the server itself"])
def test_pf5_hairpin_shows_the_external_source_both_ways(client: tuple[str, int]):
    harness = forwarding(WEB)
    shown = (GATEWAY_OUT, 5000)
    out = only(harness.send(INSIDE, tcp(client, PUBLIC, "S", seq=100)))
    assert out.link == INSIDE and ends(out.packet) == (shown, WEB)
    out = only(harness.send(INSIDE, tcp(WEB, shown, "SA", seq=900, ack=101)))
    assert out.link == INSIDE and ends(out.packet) == (PUBLIC, client)
    out = only(harness.send(INSIDE, tcp(client, PUBLIC, "A", seq=101, ack=901)))
    assert ends(out.packet) == (shown, WEB)
    assert states(harness) == ["established", "established"]


def test_pf5_hairpin_keeps_each_client_with_its_target():
    harness = forwarding((WEB, 1), (OTHER_WEB, 1))
    for number, server in enumerate((WEB, OTHER_WEB, WEB)):
        client = ("10.0.0.9", 5000 + number)
        for flags, seq in (("S", 100), ("A", 101)):
            packet = tcp(client, PUBLIC, flags, seq=seq, ack=901 if flags == "A" else 0)
            out = only(harness.send(INSIDE, packet))
            assert ends(out.packet) == ((GATEWAY_OUT, 5000 + number), server)
            if flags == "S":
                harness.send(INSIDE, tcp(server, (GATEWAY_OUT, 5000 + number), "SA", seq=900, ack=101))


def test_pf5_hairpin_leaves_no_session_where_there_is_room_for_one_of_two():
    """While too many are half open, an endpoint has always the same target: perhaps one whose hop is not known yet."""
    harness = forwarding((WEB, 1), (OTHER_WEB, 1), protocol=UDP, half_open=1, capacity=2)
    passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"x"))
    for port in range(5000, 5008):
        assert dropped(harness, INSIDE, udp(("10.0.0.9", port), PUBLIC, b"x")) == "table_full"
        assert len(harness.sessions()) == 1


def test_pf6_an_error_about_an_answer_reaches_the_server():
    harness = forwarding(WEB, protocol=UDP)
    passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"hello"))
    answer = passes(harness, INSIDE, udp(WEB, CLIENT, b"answer"))
    error = passes(harness, OUTSIDE, icmp_error(CLIENT[0], GATEWAY_OUT, 3, 3, answer))
    assert problems(error) == []
    assert dotted(decode(error).destination) == HOST
    assert ends(decode(error).quote)[0] == WEB


def test_pf6_an_error_of_the_server_reaches_the_client():
    harness = forwarding(WEB, protocol=UDP)
    arrived = passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"hello"))
    error = passes(harness, INSIDE, icmp_error(HOST, CLIENT[0], 3, 3, arrived))
    assert problems(error) == []
    assert (dotted(decode(error).source), dotted(decode(error).destination)) == (GATEWAY_OUT, CLIENT[0])
    assert ends(decode(error).quote) == (CLIENT, PUBLIC)


def test_pf6_the_client_is_told_when_the_server_is_dead():
    harness = forwarding(WEB)
    harness.silent.add(address(HOST))
    assert harness.send(OUTSIDE, tcp(CLIENT, PUBLIC, "S", seq=100)) == []
    assert states(harness) == []
    harness.forwarder.set_neighbour(0, address(HOST), None)
    told = decode(only(harness.run()).packet)
    assert (told.protocol, told.kind, told.code, dotted(told.destination)) == (ICMP, 3, 1, CLIENT[0])
    assert dotted(told.source) == GATEWAY_OUT


def test_pf5_what_the_target_may_not_have_leaves_nothing_with_its_sender():
    harness = forwarding(WEB, protocol=UDP, sessions_per_host=1)
    passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"one"))
    assert dropped(harness, INSIDE, udp((OTHER_HOST, 5000), PUBLIC, b"two")) == "host_session_limit"
    assert states(harness) == ["unanswered"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_pf7_a_datagram_in_pieces_arrives_whole_at_one_target(order: tuple[int, ...]):
    """It opens one session, whichever piece comes first, and the answer in pieces goes back by it."""
    harness = forwarding((WEB, 1), (OTHER_WEB, 1), protocol=UDP)
    question = cut(udp(CLIENT, PUBLIC, body(), identification=7), 1200, 1200)
    arrived = through(harness, OUTSIDE, [question[number] for number in order])
    assert reassemble(sorted(arrived, key=lambda piece: decode(piece).offset)) == udp(
        CLIENT, WEB, body(), identification=7, ttl=63
    )
    back = through(harness, INSIDE, [cut(udp(WEB, CLIENT, body()), 1200, 1200)[number] for number in order])
    assert joined(back) == bare(udp(PUBLIC, CLIENT, body(), ttl=63))
    assert states(harness) == ["active"]
    assert harness.drops() == {}


def test_pf7_pieces_for_another_port_are_not_forwarded():
    harness = forwarding(WEB, protocol=UDP)
    pieces = cut(udp(CLIENT, (GATEWAY_OUT, 8081), body(), identification=7), 1200, 1200)
    assert through(harness, OUTSIDE, pieces) == []
    assert states(harness) == []


def test_pf8_sessions_are_shared_out_by_weight():
    harness = forwarding((WEB, 10), (OTHER_WEB, 5))
    servers = []
    for port in range(5000, 5030):
        servers.append(ends(passes(harness, OUTSIDE, tcp((CLIENT[0], port), PUBLIC, "S", seq=1)))[1])
    assert servers == ([WEB] * 10 + [OTHER_WEB] * 5) * 2


def test_pf8_a_session_keeps_to_its_target():
    harness = forwarding((WEB, 1), (OTHER_WEB, 1))
    connect(harness, CLIENT, WEB)
    connect(harness, OTHER_CLIENT, OTHER_WEB)
    for client, server in ((CLIENT, WEB), (OTHER_CLIENT, OTHER_WEB)) * 2:
        assert ends(passes(harness, OUTSIDE, tcp(client, PUBLIC, "A", seq=101, ack=901)))[1] == server


def test_pf8_a_target_with_weight_0_keeps_the_turn():
    harness = forwarding((WEB, 0), (OTHER_WEB, 1))
    for port in range(5000, 5005):
        assert ends(passes(harness, OUTSIDE, tcp((CLIENT[0], port), PUBLIC, "S", seq=1)))[1] == WEB


def test_pf9_a_live_session_outlives_its_forward():
    harness = forwarding(WEB)
    connect(harness)
    remove(harness)
    assert ends(passes(harness, OUTSIDE, tcp(CLIENT, PUBLIC, "A", seq=101, ack=901)))[1] == WEB
    assert ends(passes(harness, INSIDE, tcp(WEB, CLIENT, "A", seq=901, ack=101)))[0] == PUBLIC
    assert dropped(harness, OUTSIDE, tcp(OTHER_CLIENT, PUBLIC, "S", seq=1)) == "no_session"
    place(harness, OTHER_WEB)
    assert ends(passes(harness, OUTSIDE, tcp(CLIENT, PUBLIC, "A", seq=101, ack=901)))[1] == WEB
    connect(harness, OTHER_CLIENT, OTHER_WEB)


def test_pf9_changing_targets_moves_no_live_session_and_keeps_turns():
    harness = forwarding((WEB, 1), (OTHER_WEB, 3))
    connect(harness, CLIENT, WEB)
    connect(harness, OTHER_CLIENT, OTHER_WEB)
    place(harness, (OTHER_WEB, 3))
    assert ends(passes(harness, OUTSIDE, tcp(CLIENT, PUBLIC, "A", seq=101, ack=901)))[1] == WEB
    assert harness.forwards.targets(address(GATEWAY_OUT), 0, 8080) == [(address(OTHER_HOST), 80, 3, 2)]


def test_pf10_a_forward_over_a_dynamic_mapping_waits_until_that_has_ended():
    harness = Harness()
    harness.forwards = ForwardTable(harness.table)
    assert ends(passes(harness, INSIDE, udp((OTHER_HOST, 8080), (SERVER, 80), b"x")))[0] == PUBLIC
    assert place(harness, WEB, protocol=UDP) is False
    assert ends(passes(harness, OUTSIDE, udp((SERVER, 80), PUBLIC, b"x")))[1] == (OTHER_HOST, 8080)
    harness.advance(301)
    assert place(harness, WEB, protocol=UDP) is True
    assert ends(passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"x")))[1] == WEB


def test_pf10_a_forward_takes_over_the_mapping_of_its_own_target():
    harness = Harness()
    harness.forwards = ForwardTable(harness.table)
    passes(harness, INSIDE, udp((HOST, 8080), (SERVER, 80), b"x"))
    assert place(harness, (HOST, 8080), protocol=UDP) is True
    assert ends(passes(harness, OUTSIDE, udp((SERVER, 80), PUBLIC, b"x")))[1] == (HOST, 8080)
    assert ends(passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"x")))[1] == (HOST, 8080)
    harness.advance(301)
    assert states(harness) == []
    assert ends(passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"x")))[1] == (HOST, 8080)


def test_two_forwards_to_one_endpoint_refuse_what_cannot_be_told_apart():
    harness = forwarding(WEB)
    place(harness, WEB, port=8081)
    connect(harness)
    assert dropped(harness, OUTSIDE, tcp(CLIENT, (GATEWAY_OUT, 8081), "S", seq=1)) == "endpoint_clash"
    assert ends(passes(harness, OUTSIDE, tcp(OTHER_CLIENT, (GATEWAY_OUT, 8081), "S", seq=1)))[1] == WEB


# -- strangers -------------------------------------------------------------------------------------------------------


def test_repeated_syns_hold_no_session_open():
    harness = forwarding(WEB)
    for _ in range(10):
        passes(harness, OUTSIDE, tcp(CLIENT, PUBLIC, "S", seq=100))
        harness.advance(10)
    assert harness.table.counts()["opened_total"] == 2
    assert states(harness) == ["unanswered"]
    harness.advance(61)
    assert states(harness) == []


def test_a_stranger_cannot_have_a_connection_for_hours_without_hearing_the_answer():
    harness = forwarding(WEB)
    passes(harness, OUTSIDE, tcp(CLIENT, PUBLIC, "S", seq=100))
    passes(harness, INSIDE, tcp(WEB, CLIENT, "SA", seq=900, ack=101))
    passes(harness, OUTSIDE, tcp(CLIENT, PUBLIC, "S", seq=100))
    assert states(harness) == ["syn-received"]
    harness.advance(241)
    assert states(harness) == []


def test_half_open_sessions_are_counted_and_given_back():
    harness = forwarding(WEB)
    passes(harness, OUTSIDE, tcp(OTHER_CLIENT, PUBLIC, "S", seq=100))
    connect(harness)
    assert half_open(harness) == 1
    harness.advance(61)
    assert half_open(harness) == 0


def test_a_flood_of_syns_neither_fills_the_table_nor_keeps_clients_out():
    harness = forwarding(WEB, half_open=8)
    for port in range(1000, 1100):
        passes(harness, OUTSIDE, tcp(("199.0.0.9", port), PUBLIC, "S", seq=1))
    assert len(harness.sessions()) == 8
    assert ends(passes(harness, OUTSIDE, tcp(CLIENT, PUBLIC, "S", seq=100))) == (CLIENT, WEB)
    assert ends(passes(harness, INSIDE, tcp(WEB, CLIENT, "SA", seq=900, ack=101))) == (PUBLIC, CLIENT)
    assert ends(passes(harness, OUTSIDE, tcp(CLIENT, PUBLIC, "A", seq=101, ack=901))) == (CLIENT, WEB)
    assert len(harness.sessions()) == 8
    data = tcp(WEB, CLIENT, "PA", seq=901, ack=101, payload=b"page")
    assert ends(passes(harness, INSIDE, data)) == (PUBLIC, CLIENT)
    assert len(harness.sessions()) == 9  # the server's data opens one: it talks to this client


def test_during_a_flood_a_client_still_has_one_target():
    harness = forwarding((WEB, 1), (OTHER_WEB, 1), half_open=0)
    chosen = set()
    for port in range(5000, 5040):
        servers = {ends(passes(harness, OUTSIDE, tcp((CLIENT[0], port), PUBLIC, "S", seq=1)))[1] for _ in range(3)}
        assert len(servers) == 1
        chosen |= servers
    assert chosen == {WEB, OTHER_WEB}


def test_a_reset_from_a_stranger_opens_nothing_and_passes():
    harness = forwarding(WEB)
    assert ends(passes(harness, OUTSIDE, tcp(CLIENT, PUBLIC, "R", seq=1)))[1] == WEB
    assert harness.sessions() == []


def test_sessions_of_a_forward_count_for_the_host_and_leave_nothing_behind():
    harness = forwarding((WEB, 1), (OTHER_WEB, 1), sessions_per_host=2)
    for port in range(5000, 5004):
        passes(harness, OUTSIDE, tcp((CLIENT[0], port), PUBLIC, "S", seq=1))
    assert dropped(harness, OUTSIDE, tcp((CLIENT[0], 6000), PUBLIC, "S", seq=1)) == "host_session_limit"
    assert harness.table.counts()["hosts"] == 2
    harness.advance(61)
    counts = harness.table.counts()
    assert (counts["active"], counts["hosts"], counts["mappings"]) == (0, 0, 0)


def test_the_reasons_are_documented():
    assert "endpoint_clash" in dict(DROP_REASONS)


# -- for some remote endpoints only ------------------------------------------------------------------------------------


NETWORKS = st.tuples(st.sampled_from(["199.0.0.0", "199.0.0.3", "198.0.0.2", "200.200.200.200"]), st.integers(0, 32))
WHOM = st.lists(st.tuples(NETWORKS, st.sampled_from([0, 5000, 5001])), max_size=4)


def admit(harness: Harness, remotes, target=WEB) -> None:
    """Have the forward be for networks, each (address, length) and a port."""
    rows = [(address(text), (1 << 32) - (1 << 32 - length), port) for (text, length), port in remotes]
    harness.forwards.place(address(GATEWAY_OUT), CLASS[UDP], 8080, [(address(target[0]), target[1], 10)], rows)


@given(st.lists(WHOM, min_size=1, max_size=3), st.sampled_from([CLIENT, OTHER_CLIENT, ("198.0.0.2", 5001)]))
def test_rfc6887_13_a_forward_that_is_for_some_is_for_no_others(changes, client):
    """What it was for before, or somebody else's forward is for, has no say."""
    harness = forwarding(WEB, protocol=UDP)
    place(harness, OTHER_WEB, protocol=UDP, port=8081)
    for remotes in changes:
        admit(harness, remotes)
    is_for = not remotes or any(
        IPv4Address(client[0]) in IPv4Network(network, strict=False) and port in (0, client[1])
        for network, port in remotes
    )
    packet = udp(client, PUBLIC, b"hello")
    if is_for:
        assert ends(passes(harness, OUTSIDE, packet)) == (client, WEB)
    else:
        assert dropped(harness, OUTSIDE, packet) == "filtered"
    assert ends(passes(harness, OUTSIDE, udp(client, (GATEWAY_OUT, 8081), b"hello"))) == (client, OTHER_WEB)


def test_rfc6887_13_a_forward_that_is_for_some_lets_live_sessions_be_and_inside_hosts_wait():
    harness = forwarding(WEB, protocol=UDP)
    passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"hello"))
    admit(harness, [((OTHER_CLIENT[0], 32), 0)])
    assert ends(passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"again"))) == (CLIENT, WEB)
    assert dropped(harness, OUTSIDE, udp((CLIENT[0], 5001), PUBLIC, b"hello")) == "filtered"
    assert dropped(harness, INSIDE, udp((OTHER_HOST, 5000), PUBLIC, b"hello")) == "filtered"
    assert states(harness) == ["unanswered"]
    admit(harness, [((GATEWAY_OUT, 32), 5000)])
    assert ends(only(harness.send(INSIDE, udp((OTHER_HOST, 5000), PUBLIC, b"hello"))).packet)[1] == WEB


def test_rows_of_whom_forwards_are_for_come_back():
    harness = forwarding(WEB, protocol=UDP)
    some = [((CLIENT[0], 32), port) for port in range(1, 1001)]
    for _ in range(40):
        admit(harness, some)
    remove(harness, UDP)
    many = [((CLIENT[0], 32), port % 65536) for port in range(REMOTE_ROWS)]
    admit(harness, many)
    admit(harness, many)
    with pytest.raises(CapacityError):
        admit(harness, [*many, many[0]])
    passes(harness, OUTSIDE, udp(CLIENT, PUBLIC, b"hello"))
