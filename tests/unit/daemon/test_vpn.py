"""VPN trackers on the packet path: packets that wait for their word, tunnels that the path then moves alone."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fastmasq.config.schema import Vpn as VpnSettings
from fastmasq.config.values import Duration
from fastmasq.daemon import vpn_sessions
from fastmasq.daemon.tunnel_rows import Way
from fastmasq.kernel.run_folder import RunFolder
from fastmasq.legacy import proc
from fastmasq.legacy.listing import Shown, session_lines
from fastmasq.path.rows import link_row
from fastmasq.policy.forwards import Forward, Target
from fastmasq.policy.redirects import Redirect
from fastmasq.trackers.vpn.calls import CallSettings
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire.numbers import ESP, GRE, NATT_PORT
from fastmasq.wire.pptp import Type, message
from tests.support.harness import HOWTO_ROUTES, address, plain
from tests.support.legacy import NAMES, chains_after
from tests.support.packets import decode, dotted, icmp_error, ipv4, problems, tcp, udp
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OTHER_HOST, OUTSIDE, partial
from tests.support.vpn_gateway import (
    OTHER_REMOTE,
    REMOTE,
    RESPONDER,
    THIRD_HOST,
    Control,
    Gateway,
    ends,
    esp,
    exchange,
    gre,
    id_of,
    isakmp,
    natt,
    started,
)

# -- PPTP --------------------------------------------------------------------------------------------------------------


def test_p49_two_clients_with_equal_call_ids_and_a_server() -> None:
    forward = Forward(protocol="tcp", listen=GATEWAY_OUT, first=1723, last=1723, targets=(Target(THIRD_HOST, 1723),))
    gateway = Gateway(forwards=(forward,))
    first, second = Control(gateway, HOST), Control(gateway, OTHER_HOST)
    assert first.call(0x4000, 0x11) == 0x4000
    assert second.call(0x4000, 0x12) == 61000
    server = Control(gateway, THIRD_HOST, OTHER_REMOTE, 5000, serves=True)
    assert server.say(OUTSIDE, Type.OUTGOING_CALL_REQUEST, 0x4000) == (0x4000,)
    assert server.say(INSIDE, Type.OUTGOING_CALL_REPLY, 0x55, 0x4000) == (0x55, 0x4000)
    asked = gateway.asked
    for inside, remote, peer, external_id, local_id in (
        (HOST, REMOTE, 0x11, 0x4000, 0x4000),
        (OTHER_HOST, REMOTE, 0x12, 61000, 0x4000),
        (THIRD_HOST, OTHER_REMOTE, 0x4000, 0x55, 0x55),
    ):
        out = gateway.passes(INSIDE, gre(inside, remote, peer))
        assert (ends(out), id_of(out)) == ((GATEWAY_OUT, remote), peer)
        back = gateway.passes(OUTSIDE, gre(remote, GATEWAY_OUT, external_id))
        assert (ends(back), id_of(back)) == ((remote, inside), local_id)
    assert gateway.asked == asked, "the path moves the data of calls alone"
    rows = gateway.vpn.handlers()["vpn"]({})["calls"]
    assert [(row["packets_out"], row["packets_in"]) for row in rows] == [(1, 1)] * 3


SERVER_FORWARD = Forward(protocol="tcp", listen=GATEWAY_OUT, first=1723, last=1723, targets=(Target(THIRD_HOST, 1723),))


def test_pf5_a_call_that_turns_round_is_moved_by_the_path_and_obeys_the_output_chain() -> None:
    gateway = Gateway(forwards=(SERVER_FORWARD,))
    client, server, external = (HOST, 4000), (THIRD_HOST, 1723), (GATEWAY_OUT, 1723)

    def turn(source: tuple[str, int], destination: tuple[str, int], flags: str, payload: bytes = b"") -> bytes:
        numbers = (1000, 7000) if source == client else (7000, 1000)
        seq, ack = (number + ("S" not in flags) for number in numbers)
        [out] = gateway.send(INSIDE, tcp(source, destination, flags, seq=seq, ack=ack, payload=payload))
        assert out.link == INSIDE and problems(out.packet) == []
        return out.packet

    seen = decode(turn(client, external, "S"))
    assert (dotted(seen.source), dotted(seen.destination)) == (GATEWAY_OUT, THIRD_HOST)
    outside = (GATEWAY_OUT, seen.source_port)
    assert decode(turn(server, outside, "SA")).destination_port == 4000
    asked = turn(client, external, "PA", message(Type.OUTGOING_CALL_REQUEST, struct.pack("!H", 7)))
    assert struct.unpack_from("!H", asked, 52) == (7,)
    reply = message(Type.OUTGOING_CALL_REPLY, struct.pack("!HHB", 7, 7, 1))
    assert struct.unpack_from("!HH", turn(server, outside, "PA", reply), 52) == (61000, 7)

    def data(source: str, call_id: int) -> tuple[tuple[str, str], int]:
        [out] = gateway.send(INSIDE, gre(source, GATEWAY_OUT, call_id))
        assert out.link == INSIDE and problems(out.packet) == []
        return ends(out.packet), id_of(out.packet)

    waited = gateway.asked
    assert data(HOST, 61000) == ((GATEWAY_OUT, THIRD_HOST), 7)
    assert data(THIRD_HOST, 7) == ((GATEWAY_OUT, HOST), 7)
    assert gateway.asked == waited
    rows = gateway.vpn.handlers()["vpn"]({})["calls"]
    assert [(row["inside"], row["packets_out"], row["packets_in"]) for row in rows] == [
        (HOST, 1, 1),
        (THIRD_HOST, 1, 1),
    ]
    whole = gre(HOST, GATEWAY_OUT, 61000, payload=bytes(160))[20:]
    pieces = [
        ipv4(HOST, GATEWAY_OUT, GRE, whole[at : at + 80], identification=7, offset=at, mf=at + 80 < len(whole))
        for at in range(0, len(whole), 80)
    ]
    sent = [out.packet for piece in reversed(pieces) for out in gateway.send(INSIDE, piece)]
    assert [ends(packet) for packet in sent] == [(GATEWAY_OUT, THIRD_HOST)] * 3
    gateway.harness.set_rule_set(chains_after("ipchains -A forward -j MASQ", f"ipchains -A output -d {HOST} -j DENY"))
    assert data(HOST, 61000) == ((GATEWAY_OUT, THIRD_HOST), 7)
    assert gateway.dropped(INSIDE, gre(THIRD_HOST, GATEWAY_OUT, 7)) == "output_denied"


def test_pf5_gre_to_our_own_address_without_a_call_is_dropped_by_name() -> None:
    gateway = Gateway(forwards=(SERVER_FORWARD,))
    assert gateway.dropped(INSIDE, gre(HOST, GATEWAY_OUT, 7)) == "gre_no_row"
    assert gateway.dropped(INSIDE, esp(HOST, GATEWAY_OUT, 0x1000)) == "esp_no_row"
    assert gateway.asked == 0


def test_p42_a_split_and_repeated_id_is_translated_alike_with_right_checksums() -> None:
    gateway = Gateway()
    Control(gateway, HOST).call(0x4000, 0x11)
    second = Control(gateway, OTHER_HOST)
    request = message(Type.OUTGOING_CALL_REQUEST, struct.pack("!H", 0x4000))
    arrived = b"".join(second.segment(INSIDE, request[at : at + 5])[40:] for at in range(0, len(request), 5))
    assert struct.unpack_from("!H", arrived, 12) == (61000,) or arrived[12] == 0x40
    again = second.segment(INSIDE, request, back=len(request))[40:]
    assert again == arrived


def test_p42_a_partial_checksum_is_left_partial() -> None:
    gateway = Gateway()
    Control(gateway, HOST).call(0x4000, 0x11)
    second = Control(gateway, OTHER_HOST)
    request = message(Type.OUTGOING_CALL_REQUEST, struct.pack("!H", 0x4000))
    packet = partial(
        tcp(second.host, second.remote, "PA", seq=second.next[INSIDE], ack=second.next[OUTSIDE], payload=request)
    )
    vnet = struct.pack("=BBHHHH", 1, 0, 0, 0, 34, 16)
    left = gateway.passes(INSIDE, packet, vnet)
    assert left[52:54] == struct.pack("!H", 61000)
    translated = tcp(
        second.external, second.remote, "PA", seq=second.next[INSIDE], ack=second.next[OUTSIDE], payload=left[40:]
    )
    assert left[36:38] == partial(translated)[36:38]


def test_p42_a_segment_behind_a_hole_is_dropped_by_name() -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    packet = tcp(control.host, control.remote, "PA", seq=control.next[INSIDE] + 100, ack=7001, payload=b"x" * 20)
    assert gateway.dropped(INSIDE, packet) == "stream_out_of_order"


def test_p47_a_disconnect_retires_its_call_and_the_path_forgets_it_after_30_seconds() -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    control.call(0x4000, 0x11)
    control.say(OUTSIDE, Type.CALL_DISCONNECT_NOTIFY, 0x11)
    gateway.passes(INSIDE, gre(HOST, REMOTE, 0x11))
    gateway.second(31)
    assert [row["state"] for row in gateway.vpn.handlers()["vpn"]({})["calls"]] == []


@pytest.mark.parametrize("flags", ["R", "FA"])
def test_p47_the_end_of_the_connection_ends_its_calls(flags: str) -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    control.call(0x4000, 0x11)
    gateway.second()
    control.segment(INSIDE, b"", flags)
    if flags == "FA":
        control.segment(OUTSIDE, b"", flags)
    gateway.second()
    assert [call.state for call in gateway.vpn.calls.calls.values()] == ["closing"]


def test_p47_a_blind_reset_ends_no_call() -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    control.call(0x4000, 0x11)
    forged = tcp(control.remote, control.external, "R", seq=(control.next[OUTSIDE] + 0x70000000) % (1 << 32))
    assert gateway.dropped(OUTSIDE, forged) == "tcp_rst_out_of_window"
    gateway.second()
    assert [call.state for call in gateway.vpn.calls.calls.values()] == ["established"]


def test_p46_gre_without_a_call_passes_for_the_only_host() -> None:
    gateway = Gateway()
    out = gateway.passes(INSIDE, gre(HOST, REMOTE, 0x77))
    assert (ends(out), id_of(out)) == ((GATEWAY_OUT, REMOTE), 0x77)
    asked = gateway.asked
    assert ends(gateway.passes(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 0x99)))[1] == HOST
    assert ends(gateway.passes(INSIDE, gre(HOST, REMOTE, 0x78)))[0] == GATEWAY_OUT
    assert gateway.asked == asked
    assert gateway.dropped(INSIDE, gre(OTHER_HOST, REMOTE, 0x77)) == "gre_other_host"


def test_p46_gre_from_outside_that_nothing_explains_is_dropped() -> None:
    gateway = Gateway()
    assert gateway.dropped(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 5)) == "gre_no_row"
    Control(gateway, HOST).call(0x4000, 0x11)
    assert gateway.dropped(OUTSIDE, gre(OTHER_REMOTE, GATEWAY_OUT, 0x4000)) == "gre_wrong_source"


@pytest.mark.parametrize("octets", [8, 11])
def test_gre_without_the_rest_of_its_header_is_nothing_to_follow(octets: int) -> None:
    gateway = Gateway()
    whole = decode(gre(HOST, REMOTE, 5)).body
    assert gateway.dropped(INSIDE, ipv4(HOST, REMOTE, GRE, whole[:octets])) == "protocol_not_masqueraded"
    assert gateway.asked == 0


def test_5_6_a_redirect_gets_what_no_call_claims() -> None:
    gateway = Gateway(redirects=(Redirect(protocol=GRE, host=OTHER_HOST),))
    Control(gateway, HOST).call(0x4000, 0x11)
    assert ends(gateway.passes(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 0x4000)))[1] == HOST
    assert ends(gateway.passes(OUTSIDE, gre(OTHER_REMOTE, GATEWAY_OUT, 0x4001)))[1] == OTHER_HOST
    assert ends(gateway.passes(INSIDE, gre(OTHER_HOST, OTHER_REMOTE, 3)))[0] == GATEWAY_OUT


def test_c48_errors_that_quote_gre_are_translated_with_the_call_id() -> None:
    gateway = Gateway()
    Control(gateway, HOST).call(0x4000, 0x11)
    Control(gateway, OTHER_HOST).call(0x4000, 0x12)
    out = gateway.passes(INSIDE, gre(OTHER_HOST, REMOTE, 0x12))
    error = gateway.passes(OUTSIDE, icmp_error("199.0.0.254", GATEWAY_OUT, 11, 0, out))
    assert ends(error) == ("199.0.0.254", OTHER_HOST)
    assert decode(error).body[8:][12:20] == bytes((10, 0, 0, 3, 199, 0, 0, 2))
    back = gateway.passes(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 61000))
    error = gateway.passes(INSIDE, icmp_error(OTHER_HOST, REMOTE, 3, 2, back))
    assert ends(error) == (GATEWAY_OUT, REMOTE)
    quoted = decode(error).body[8:]
    assert (quoted[16:20], quoted[26:28]) == (bytes((200, 200, 200, 200)), struct.pack("!H", 61000))


def test_a_connection_on_the_port_that_is_no_pptp_is_left_alone() -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    control.segment(INSIDE, b"GET / HTTP/1.0\r\n\r\n")
    asked = gateway.asked
    control.segment(OUTSIDE, b"HTTP/1.0 200 OK\r\n\r\n")
    assert gateway.asked == asked
    control.segment(INSIDE, b"", "FA")
    control.segment(OUTSIDE, b"", "FA")
    gateway.second()
    gateway.second(300)
    assert gateway.vpn.connections == {}
    assert Control(gateway, HOST).call(0x4000, 0x11) == 0x4000, "the row of the session is asked about again"


def test_a_port_used_again_begins_another_connection() -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    control.call(0x4000, 0x11)
    control.segment(INSIDE, b"", "FA")
    control.segment(OUTSIDE, b"", "FA")
    gateway.second()
    gateway.second(1)
    assert Control(gateway, HOST).call(0x4000, 0x12) == 0x4000


# -- ISAKMP ------------------------------------------------------------------------------------------------------------


def test_k2_both_ports_stay_500_and_cookies_tell_hosts_apart() -> None:
    gateway = Gateway()
    exchange(gateway, HOST, b"one")
    exchange(gateway, OTHER_HOST, b"two")
    assert ends(gateway.passes(OUTSIDE, isakmp(REMOTE, GATEWAY_OUT, b"one", RESPONDER)))[1] == HOST
    assert gateway.harness.sessions() == []


def test_k1_another_source_port_is_plain_udp() -> None:
    gateway = Gateway()
    gateway.passes(INSIDE, udp((HOST, 501), (REMOTE, 500), bytes(40)))
    assert gateway.asked == 0 and len(gateway.harness.sessions()) == 1


def test_k8_equal_cookies_of_two_hosts_collide_while_unanswered() -> None:
    gateway = Gateway()
    gateway.passes(INSIDE, isakmp(HOST, REMOTE, b"same"))
    assert gateway.dropped(INSIDE, isakmp(OTHER_HOST, REMOTE, b"same")) == "isakmp_collision"


def test_k10_unknown_cookies_go_to_the_host_that_talked_last_or_nowhere() -> None:
    gateway = Gateway()
    assert gateway.dropped(OUTSIDE, isakmp(REMOTE, GATEWAY_OUT, b"new")) == "isakmp_no_row"
    exchange(gateway, HOST, b"one")
    assert ends(gateway.passes(OUTSIDE, isakmp(REMOTE, GATEWAY_OUT, b"new")))[1] == HOST


def test_k9_a_forward_of_port_500_names_the_server() -> None:
    forward = Forward(protocol="udp", listen=GATEWAY_OUT, first=500, last=500, targets=(Target(THIRD_HOST, 500),))
    gateway = Gateway(forwards=(forward,), redirects=(Redirect(protocol=ESP, host=THIRD_HOST),))
    exchange(gateway, HOST, b"one")
    assert ends(gateway.passes(OUTSIDE, isakmp(OTHER_REMOTE, GATEWAY_OUT, b"cli")))[1] == THIRD_HOST
    assert ends(gateway.passes(INSIDE, isakmp(THIRD_HOST, OTHER_REMOTE, b"cli", RESPONDER)))[0] == GATEWAY_OUT
    assert ends(gateway.passes(OUTSIDE, esp(OTHER_REMOTE, GATEWAY_OUT, 0x5000)))[1] == THIRD_HOST
    asked = gateway.asked
    gateway.passes(OUTSIDE, esp(OTHER_REMOTE, GATEWAY_OUT, 0x5000, 2))
    assert gateway.asked == asked, "the path knows the server's SA now"
    assert ends(gateway.passes(INSIDE, esp(THIRD_HOST, OTHER_REMOTE, 0x6000)))[0] == GATEWAY_OUT


def test_k9_a_server_on_a_second_address_answers_from_it() -> None:
    second = "200.200.200.201"
    forward = Forward(protocol="udp", listen=second, first=500, last=500, targets=(Target(THIRD_HOST, 500),))
    routes = [*HOWTO_ROUTES, (f"{second}/32", plain("local"))]
    gateway = Gateway(forwards=(forward,), redirects=(Redirect(protocol=ESP, host=THIRD_HOST),), routes=routes)
    gateway.listen(GATEWAY_OUT, second)
    assert ends(gateway.passes(OUTSIDE, isakmp(REMOTE, second, b"cli"))) == (REMOTE, THIRD_HOST)
    assert ends(gateway.passes(INSIDE, isakmp(THIRD_HOST, REMOTE, b"cli", RESPONDER)))[0] == second
    assert ends(gateway.passes(OUTSIDE, esp(REMOTE, second, 0x5000))) == (REMOTE, THIRD_HOST)
    for number in (1, 2):
        assert ends(gateway.passes(INSIDE, esp(THIRD_HOST, REMOTE, 0x6000, number)))[0] == second


def test_strangers_cannot_use_up_the_rows_of_a_server() -> None:
    udp_500 = Forward(protocol="udp", listen=GATEWAY_OUT, first=500, last=500, targets=(Target(HOST, 500),))
    gateway = Gateway(
        forwards=(udp_500,), redirects=(Redirect(protocol=GRE, host=HOST), Redirect(protocol=ESP, host=HOST))
    )
    for number in range(1200):
        stranger = f"198.{number >> 8}.{number & 255}.1"
        for packet in (
            gre(stranger, GATEWAY_OUT, 7),
            esp(stranger, GATEWAY_OUT, 7000),
            isakmp(stranger, GATEWAY_OUT, b"x"),
        ):
            gateway.passes(OUTSIDE, packet)
        gateway.harness.advance(0.01)
    assert Control(gateway, HOST).call(0x400, 0x11) == 0x400
    exchange(gateway, HOST, b"own")
    started(gateway, HOST, 0x1000, 0x2000)
    listed = gateway.vpn.handlers()["vpn"]({})
    assert [len(listed[key]) for key in ("calls", "exchanges", "sas")] == [257, 257, 257]


def test_what_is_too_short_for_isakmp_follows_the_last_that_was_not() -> None:
    gateway = Gateway()
    exchange(gateway, HOST, b"one")
    short = udp((REMOTE, 500), (GATEWAY_OUT, 500), b"\xff")
    assert ends(gateway.passes(OUTSIDE, short))[1] == HOST
    assert ends(gateway.passes(INSIDE, udp((HOST, 500), (REMOTE, 500), b"\xff")))[0] == GATEWAY_OUT
    assert gateway.harness.sessions() == []


@pytest.mark.parametrize("octets", [8, 24])
def test_c48_errors_that_quote_isakmp_reach_the_host(octets: int) -> None:
    gateway = Gateway()
    out = gateway.passes(INSIDE, isakmp(HOST, REMOTE, b"one"))
    exchange(gateway, OTHER_HOST, b"two", OTHER_REMOTE)
    error = gateway.passes(OUTSIDE, icmp_error(REMOTE, GATEWAY_OUT, 3, 3, out[: 20 + octets]))
    assert ends(error) == (REMOTE, HOST)
    assert decode(error).body[8:][12:16] == bytes((10, 0, 0, 2))
    inbound = gateway.passes(OUTSIDE, isakmp(REMOTE, GATEWAY_OUT, b"one", RESPONDER))
    error = gateway.passes(INSIDE, icmp_error(HOST, REMOTE, 3, 3, inbound))
    assert ends(error) == (GATEWAY_OUT, REMOTE)
    assert gateway.dropped(
        OUTSIDE, icmp_error("199.0.0.9", GATEWAY_OUT, 3, 3, isakmp(GATEWAY_OUT, "199.0.0.9", b"no"))
    ) == ("isakmp_no_row")


def test_pf9_what_has_another_address_than_the_external_one_now_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors that its host sends, and the next SA, are from the address that the remote knows."""
    gateway = Gateway()
    exchange(gateway, HOST, b"one")
    inbound = gateway.passes(OUTSIDE, isakmp(REMOTE, GATEWAY_OUT, b"one", RESPONDER))
    monkeypatch.setattr(gateway.vpn, "address", lambda: address("200.200.200.77"))
    assert ends(gateway.passes(INSIDE, icmp_error(HOST, REMOTE, 3, 3, inbound))) == (GATEWAY_OUT, REMOTE)
    assert ends(gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))) == (GATEWAY_OUT, REMOTE)
    inbound = gateway.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x2000))
    assert ends(gateway.passes(INSIDE, icmp_error(HOST, REMOTE, 3, 2, inbound))) == (GATEWAY_OUT, REMOTE)


# -- ESP ---------------------------------------------------------------------------------------------------------------


def test_e18_an_answered_start_is_moved_by_the_path_alone() -> None:
    gateway = Gateway()
    started(gateway, HOST, 0x1000, 0x2000)
    started(gateway, OTHER_HOST, 0x1001, 0x2001)
    asked = gateway.asked
    for inside, ospi, ispi in ((HOST, 0x1000, 0x2000), (OTHER_HOST, 0x1001, 0x2001)):
        assert ends(gateway.passes(INSIDE, esp(inside, REMOTE, ospi, 2)))[0] == GATEWAY_OUT
        assert ends(gateway.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, ispi, 2)))[1] == inside
    assert gateway.asked == asked
    sas = gateway.vpn.handlers()["vpn"]({})["sas"]
    assert [(row["packets_out"], row["packets_in"], row["missing"]) for row in sas] == [(2, 2, "")] * 2


def test_e6_a_second_start_waits_for_the_first_and_is_listed() -> None:
    gateway = Gateway()
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))
    assert gateway.dropped(INSIDE, esp(OTHER_HOST, REMOTE, 0x1001)) == "esp_blocked"
    [waiting] = gateway.vpn.handlers()["vpn"]({})["waiting"]
    assert (waiting["inside"], waiting["waits_for"]) == (OTHER_HOST, HOST)
    gateway.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x2000))
    gateway.passes(INSIDE, esp(OTHER_HOST, REMOTE, 0x1001))


def test_e14_spi_zero_is_discarded() -> None:
    gateway = Gateway()
    assert gateway.dropped(INSIDE, esp(HOST, REMOTE, 0)) == "esp_zero_spi"
    assert gateway.dropped(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0)) == "esp_zero_spi"


def test_e20_a_guess_sends_copies_to_those_that_talked_last() -> None:
    gateway = Gateway()
    exchange(gateway, HOST, b"one")
    exchange(gateway, OTHER_HOST, b"two")
    gateway.harness.drops()
    sent = gateway.send(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x3000, 1000))
    assert [ends(out.packet) for out in sent] == [(REMOTE, OTHER_HOST), (REMOTE, HOST)]
    assert all(problems(out.packet) == [] and decode(out.packet).ttl == 63 for out in sent)
    assert gateway.harness.drops() == {}


def test_e32_parallel_sessions_can_be_off() -> None:
    gateway = Gateway(vpn=VpnSettings(ipsec_parallel=False))
    started(gateway, HOST, 0x1000, 0x2000)
    assert gateway.dropped(INSIDE, esp(OTHER_HOST, REMOTE, 0x1001)) == "parallel_disabled"


def test_esp_from_outside_that_nothing_explains_is_dropped() -> None:
    assert Gateway().dropped(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x3000)) == "esp_no_row"


def test_c48_errors_that_quote_esp_reach_the_host() -> None:
    gateway = Gateway()
    started(gateway, HOST, 0x1000, 0x2000)
    out = gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000, 2))
    error = gateway.passes(OUTSIDE, icmp_error("199.0.0.254", GATEWAY_OUT, 3, 4, out, mtu=1400))
    assert ends(error) == ("199.0.0.254", HOST)
    assert decode(error).body[8:][12:16] == bytes((10, 0, 0, 2))


def test_c48_errors_that_quote_an_unanswered_start_reach_the_host() -> None:
    gateway = Gateway()
    out = gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))
    error = gateway.passes(OUTSIDE, icmp_error("199.0.0.254", GATEWAY_OUT, 11, 0, out))
    assert ends(error) == ("199.0.0.254", HOST)
    stranger = esp(GATEWAY_OUT, REMOTE, 0x1001)
    assert gateway.dropped(OUTSIDE, icmp_error("199.0.0.254", GATEWAY_OUT, 11, 0, stranger)) == "esp_no_row"


def test_e17_what_the_path_moves_keeps_an_sa_alive() -> None:
    gateway = Gateway()
    started(gateway, HOST, 0x1000, 0x2000)
    for _ in range(5):
        gateway.second(20 * 60)
        gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000, 2))
        gateway.second()
    asked = gateway.asked
    gateway.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x2000, 2))
    assert gateway.asked == asked
    gateway.second(31 * 60)
    assert gateway.vpn.handlers()["vpn"]({})["sas"] == []
    assert gateway.dropped(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x2000, 3)) == "esp_no_row"


# -- NAT traversal: original systems 4.7 ------------------------------------------------------------------------------


def listed(gateway: Gateway, kind: str, **params: str) -> list[dict]:
    return gateway.vpn.listing.describe(gateway.harness.now_ns, params)[kind]


def test_rfc3948_sessions_of_port_4500_are_listed_with_packets_both_ways() -> None:
    gateway = Gateway()
    port = decode(natt(gateway)).source_port
    for _ in range(2):
        natt(gateway, OTHER_HOST)
    gateway.passes(INSIDE, udp((HOST, 5000), (REMOTE, 53), bytes(40)))
    gateway.passes(INSIDE, tcp((HOST, NATT_PORT), (REMOTE, NATT_PORT), "S"))
    gateway.passes(OUTSIDE, udp((REMOTE, NATT_PORT), (GATEWAY_OUT, port), b"\xff"))
    gateway.harness.advance(7)
    rows = listed(gateway, "natt")
    assert [(row["inside"], row["remote"], row["packets_out"], row["packets_in"]) for row in rows] == [
        (f"{HOST}:{NATT_PORT}", f"{REMOTE}:{NATT_PORT}", 1, 1),
        (f"{OTHER_HOST}:{NATT_PORT}", f"{REMOTE}:{NATT_PORT}", 2, 0),
    ]  # fmt: skip
    assert rows[0]["external"] == f"{GATEWAY_OUT}:{port}"
    assert {row["state"] for row in rows} == {"active"} and {row["missing"] for row in rows} == {""}
    assert all(6 <= row["idle_s"] <= 8 for row in rows)
    assert [row["inside"] for row in listed(gateway, "natt", host=OTHER_HOST)] == [f"{OTHER_HOST}:{NATT_PORT}"]
    assert len(listed(gateway, "natt", host=REMOTE)) == 2
    assert listed(gateway, "natt", host=OTHER_REMOTE) == []


def test_rfc3948_a_server_inside_is_listed_by_its_own_port() -> None:
    forward = Forward(
        protocol="udp", listen=GATEWAY_OUT, first=NATT_PORT, last=NATT_PORT, targets=(Target(THIRD_HOST, NATT_PORT),)
    )
    gateway = Gateway(forwards=(forward,))
    for _ in range(3):
        gateway.passes(OUTSIDE, udp((REMOTE, 6000), (GATEWAY_OUT, NATT_PORT), bytes(40)))
    [row] = listed(gateway, "natt")
    assert (row["inside"], row["external"], row["remote"]) == (
        f"{THIRD_HOST}:{NATT_PORT}", f"{GATEWAY_OUT}:{NATT_PORT}", f"{REMOTE}:6000",
    )  # fmt: skip
    assert "UDP port 4500 comes in and nothing goes out" in row["missing"]
    gateway.passes(INSIDE, udp((THIRD_HOST, NATT_PORT), (REMOTE, 6000), bytes(40)))
    assert listed(gateway, "natt")[0]["missing"] == ""


def test_h_71_nat_traversal_that_goes_out_only() -> None:
    gateway = Gateway()
    for count in range(1, 4):
        natt(gateway)
        [row] = listed(gateway, "natt")
        assert bool(row["missing"]) == (count == 3)
    assert row["missing"].startswith("UDP port 4500 goes out and nothing comes in")


def test_rfc3947_isakmp_that_has_moved_to_port_4500_lacks_no_esp() -> None:
    gateway = Gateway()
    exchange(gateway, HOST, b"one")
    exchange(gateway, OTHER_HOST, b"two")
    gateway.harness.advance(11)
    natt(gateway)
    for _ in range(3):
        natt(gateway, OTHER_HOST)
    assert [row["missing"] for row in listed(gateway, "exchanges", host=HOST)] == [""]
    [row] = listed(gateway, "exchanges", host=OTHER_HOST)
    assert row["missing"].startswith("UDP port 4500 goes out and nothing comes in")
    assert listed(Gateway(), "natt") == []


# -- settings and lights: the HOWTO's 3.3, 3.4, 5.1 and 5.5 ------------------------------------------------------------


def test_h_25_the_ipsec_lifetime_is_a_setting() -> None:
    for lifetime, left in ((Duration(30 * 60 * NS_PER_SECOND), 0), (Duration(2 * 3600 * NS_PER_SECOND), 1)):
        gateway = Gateway(vpn=VpnSettings(ipsec_lifetime=lifetime))
        exchange(gateway, HOST, b"one")
        started(gateway, HOST, 0x1000, 0x2000)
        gateway.second(90 * 60)
        assert (len(listed(gateway, "exchanges")), len(listed(gateway, "sas"))) == (left, left)


def test_a_tunnel_begins_with_its_first_sa_and_ends_with_its_last_and_a_restart_is_no_news(tmp_path: Path) -> None:
    def news(of: Gateway) -> list[tuple[str, int]]:
        return [(each.kind, each.inside) for each in of.vpn.take_news() if each.kind.startswith("ipsec_")]

    host, lifetime = address(HOST), VpnSettings(ipsec_lifetime=Duration(600 * NS_PER_SECOND))
    with RunFolder(tmp_path) as folder:
        gateway = Gateway(vpn=lifetime, folder=folder)
        exchange(gateway, HOST, b"one")
        started(gateway, HOST, 0x1000, 0x2000)
        gateway.second()
        assert news(gateway) == [("ipsec_begins", host)]
        started(gateway, HOST, 0x1001, 0x2001)
        for _ in range(5):
            gateway.second(300)
            gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1001))
        assert (news(gateway), len(listed(gateway, "sas"))) == ([], 1)  # it was rekeyed
        gateway = Gateway(vpn=lifetime, folder=folder, after=gateway)
        gateway.second()
        assert (news(gateway), len(listed(gateway, "sas"))) == ([], 1)
        for _ in range(5):
            gateway.second(300)
        assert news(gateway) == [("ipsec_ends", host)]


def test_h_101_life_tries_and_squelch_of_a_start_are_settings() -> None:
    gateway = Gateway(
        vpn=VpnSettings(
            ipsec_init_lifetime=Duration(60 * NS_PER_SECOND),
            ipsec_init_retries=2,
            ipsec_squelch=Duration(5 * NS_PER_SECOND),
        )
    )
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))
    gateway.second(61)
    assert listed(gateway, "sas") == [], "without the setting it would be two minutes"
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))
    assert gateway.dropped(INSIDE, esp(OTHER_HOST, REMOTE, 0x1001)) == "esp_blocked"
    for number in (2, 3):
        gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000, number))
    assert gateway.dropped(INSIDE, esp(HOST, REMOTE, 0x1000, 4)) == "esp_squelched"
    gateway.second(6)
    assert listed(gateway, "sas") == []


def test_h_29_want_11_each_protocol_is_one_switch() -> None:
    gateway = Gateway(vpn=VpnSettings(pptp=False))
    assert gateway.dropped(INSIDE, gre(HOST, REMOTE, 0x77)) == "protocol_not_masqueraded"
    assert Control(gateway, HOST).call(0x4000, 0x11) == 0x4000
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))
    assert gateway.asked == 1, "ESP alone"
    gateway = Gateway(vpn=VpnSettings(ipsec=False))
    assert gateway.dropped(INSIDE, esp(HOST, REMOTE, 0x1000)) == "protocol_not_masqueraded"
    gateway.passes(INSIDE, isakmp(HOST, REMOTE, b"one"))
    assert gateway.asked == 0 and len(gateway.harness.sessions()) == 1, "port 500 is plain UDP"
    assert Control(gateway, HOST).call(0x4000, 0x11) == 0x4000
    gateway.passes(INSIDE, gre(HOST, REMOTE, 0x11))


def test_h_62_the_two_lights_of_a_call() -> None:
    gateway = Gateway()
    Control(gateway, HOST).call(0x4000, 0x11)
    [call] = listed(gateway, "calls")
    assert (call["packets_out"], call["packets_in"], call["out_s"], call["in_s"]) == (0, 0, None, None)
    for number in range(3):
        gateway.passes(INSIDE, gre(HOST, REMOTE, 0x11, number))
    gateway.second(20)
    gateway.passes(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 0x4000))
    gateway.second(5)
    [call] = listed(gateway, "calls")
    assert (call["packets_out"], call["packets_in"]) == (3, 1)
    assert (round(call["out_s"]), round(call["in_s"])) == (25, 5)


@pytest.mark.parametrize("protocol", [0x002B, 0x8281, 0x0021], ids=["ipx", "mpls", "ip"])
def test_h_84_what_is_in_gre_is_left_alone(protocol: int) -> None:
    """IPX over PPTP needs nothing of the gateway."""
    gateway = Gateway()
    Control(gateway, HOST).call(0x4000, 0x11)
    frame = b"\xff\x03" + struct.pack("!H", protocol) + bytes(range(256))
    out = gateway.passes(INSIDE, gre(HOST, REMOTE, 0x11, payload=frame))
    back = gateway.passes(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 0x4000, payload=frame))
    assert out.endswith(frame) and back.endswith(frame)


# -- both --------------------------------------------------------------------------------------------------------------


def test_a_ttl_that_runs_out_is_answered_before_any_tracker_is_asked() -> None:
    gateway = Gateway()
    [out] = gateway.send(INSIDE, esp(HOST, REMOTE, 0x1000, ttl=1))
    assert out.link == INSIDE and decode(out.packet).body[:2] == b"\x0b\x00"
    assert gateway.asked == 0


def test_without_an_external_address_nothing_leaves() -> None:
    gateway = Gateway()
    gateway.harness.table.set_external(None, gateway.harness.allowed)
    gateway.harness.drops()
    gateway.send(INSIDE, esp(HOST, REMOTE, 0x1000))
    assert gateway.harness.drops() == {"no_external_address": 1}


def test_an_address_that_goes_while_a_packet_waits() -> None:
    gateway = Gateway()
    gateway.harness.inject(INSIDE, esp(HOST, REMOTE, 0x1000))
    gateway.harness.run()
    gateway.vpn.address = lambda: None
    gateway.settle()
    assert gateway.harness.drops() == {"no_external_address": 1}


def test_tunnels_to_another_address_of_the_gateway_are_its_own() -> None:
    gateway = Gateway(routes=[*HOWTO_ROUTES, ("200.200.200.9/32", plain("local"))])
    before = gateway.harness.forwarder.verdicts()["deliver"]
    for packet in (
        esp(REMOTE, "200.200.200.9", 5),
        gre(REMOTE, "200.200.200.9", 5),
        isakmp(REMOTE, "200.200.200.9", b"x"),
    ):
        assert gateway.send(OUTSIDE, packet) == []
    assert gateway.harness.forwarder.verdicts()["deliver"] == before + 3
    assert gateway.asked == 0


def test_one_source_cannot_have_the_whole_queue() -> None:
    gateway = Gateway()
    for spi in range(40):
        gateway.harness.inject(INSIDE, esp(HOST, REMOTE, 0x1000 + spi))
    gateway.harness.inject(INSIDE, esp(OTHER_HOST, OTHER_REMOTE, 0x1000))
    gateway.harness.run()
    assert gateway.harness.drops() == {"punts_full": 24}
    assert gateway.harness.forwarder.verdicts()["punt"] == 17


def test_rules_count_a_packet_that_waited_once() -> None:
    rules = chains_after(
        "ipchains -P forward DENY",
        f"ipchains -A input -p 50 -s {HOST}",
        f"ipchains -A forward -p 50 -s {HOST} -j MASQ",
        "ipchains -A output -p 50",
    )
    gateway = Gateway(rules=rules)
    assert ends(gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000)))[0] == GATEWAY_OUT
    counts = gateway.harness.rule_counts()
    assert [counts[name, 1][0] for name in ("input", "forward", "output")] == [1, 1, 1]
    assert gateway.dropped(INSIDE, esp(OTHER_HOST, REMOTE, 0x1001)) == "forward_denied"


def test_rules_that_deny_an_established_tunnel_stop_it() -> None:
    gateway = Gateway()
    started(gateway, HOST, 0x1000, 0x2000)
    gateway.harness.set_rule_set(
        chains_after("ipchains -A forward -j MASQ", "ipchains -A output -p 50 -d 199.0.0.2 -j DENY")
    )
    for _ in range(2):
        assert gateway.dropped(INSIDE, esp(HOST, REMOTE, 0x1000, 2)) == "output_denied"
    gateway.harness.set_rule_set(chains_after("ipchains -A forward -j MASQ"))
    for number in range(3, 6):
        gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000, number))
    assert gateway.harness.rule_counts()["forward", 1][0] == 3


def test_a_changed_external_address_takes_the_rows_along() -> None:
    gateway = Gateway()
    started(gateway, HOST, 0x1000, 0x2000)
    assert gateway.vpn.addresses() == {address(GATEWAY_OUT)}
    gateway.vpn.move(address(GATEWAY_OUT), address("200.200.200.77"))
    assert ends(gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000, 2)))[0] == "200.200.200.77"
    assert gateway.vpn.addresses() == {address("200.200.200.77")}


def test_a_mistake_of_a_tracker_costs_only_its_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    with monkeypatch.context() as patch:
        patch.setattr(gateway.vpn.ipsec, "esp_outbound", lambda *_: 1 / 0)
        assert gateway.dropped(INSIDE, esp(HOST, REMOTE, 0x1000)) == "tracker_failed"
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))


def test_a_tunnel_without_a_row_of_the_path_passes_by_its_tracker_until_one_is_free(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = Gateway()
    rows = gateway.vpn.rows
    for number in range(len(gateway.harness.forwarder.tunnels)):
        assert rows.place(("esp", -number), ESP, Way((number, 1, 1), (2, 1)), None)
    started(gateway, HOST, 0x1000, 0x2000)
    started(gateway, OTHER_HOST, 0x1001, 0x2001)
    assert "no row of the path is free for the tunnel 10.0.0.3 -> 199.0.0.2" in caplog.text

    def asked_about(host: str, ospi: int, ispi: int) -> int:
        asked = gateway.asked
        gateway.passes(INSIDE, esp(host, REMOTE, ospi, 2))
        gateway.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, ispi, 2))
        return gateway.asked - asked

    assert asked_about(HOST, 0x1000, 0x2000) == asked_about(OTHER_HOST, 0x1001, 0x2001) == 2
    rows.forget(("esp", -7))
    assert asked_about(HOST, 0x1000, 0x2000) == 0, "it has waited longest"
    assert asked_about(OTHER_HOST, 0x1001, 0x2001) == 2
    gateway.vpn.ipsec.esp.remove(gateway.vpn.ipsec.esp.by_outbound(address(OTHER_HOST), address(REMOTE), 0x1001))
    gateway.vpn.follow_rows()
    rows.forget(("esp", -8))
    assert rows.place(("gre", 1), GRE, Way((0, 2, 2), (2, 1)), None), "what has ended waits no more"


def test_a_mistake_with_one_tunnel_keeps_no_other_from_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    started(gateway, HOST, 0x1000, 0x2000)
    started(gateway, OTHER_HOST, 0x1001, 0x2001)
    with monkeypatch.context() as patch:
        patch.setattr(gateway.vpn.rows, "place", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gateway.vpn.move(address(GATEWAY_OUT), address("200.200.200.77"))
    gateway.vpn.follow_rows()
    asked = gateway.asked
    assert ends(gateway.passes(INSIDE, esp(OTHER_HOST, REMOTE, 0x1001, 2)))[0] == "200.200.200.77"
    assert gateway.asked == asked


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_fragments_of_esp_follow_the_first(order: tuple[int, ...]) -> None:
    gateway = Gateway()
    whole = esp(HOST, REMOTE, 0x1000, payload=bytes(range(200)), identification=77)
    body = whole[20:]
    pieces = [
        ipv4(HOST, REMOTE, ESP, body[at : at + 80], identification=77, offset=at, mf=at + 80 < len(body))
        for at in range(0, len(body), 80)
    ]
    sent = [out for number in order for out in gateway.send(INSIDE, pieces[number])]
    assert {ends(out.packet) for out in sent} == {(GATEWAY_OUT, REMOTE)} and len(sent) == 3


# -- as 1999 listed them -----------------------------------------------------------------------------------------------


def test_p48_c80_calls_sas_and_exchanges_in_the_masquerade_table() -> None:
    gateway = Gateway()
    Control(gateway, HOST).call(0x4000, 0x11)
    Control(gateway, OTHER_HOST).call(0x4000, 0x12)
    exchange(gateway, HOST, b"one")
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x12345678))
    listed = list(vpn_sessions.sessions(gateway.vpn, gateway.harness.now_ns))
    assert [line.rstrip() for line in proc.ip_masquerade(listed, {})][1:] == [
        "GRE 0A000002:4000 C7000002:0011 4000 00000000      0      0   90000",
        "GRE 0A000003:4000 C7000002:0012 EE48 00000000      0      0   90000",
        "ESP 0A000002:5678 C7000002:0000 0000 00000000      0      0   12000",
        "UDP 0A000002:01F4 C7000002:01F4 01F4 00000000      0      0  180000",
    ]
    gateway.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0xABCDEF01))
    lines = session_lines(
        vpn_sessions.sessions(gateway.vpn, gateway.harness.now_ns), Shown(NAMES, True), deltas=False, capitals=True
    )
    assert lines[2:5] == [
        "GRE  15:00.00 10.0.0.2             199.0.0.2            16384 (16384) -> 17",
        "GRE  15:00.00 10.0.0.3             199.0.0.2            16384 (61000) -> 18",
        "ESP  30:00.00 10.0.0.2             199.0.0.2            22136 (0) -> 61185",
    ]


# -- what could go wrong -----------------------------------------------------------------------------------------------


def fill_rows(gateway: Gateway, count: int, port: int) -> None:
    """Open so many other sessions, which take the next rows of the table."""
    for number in range(count):
        gateway.passes(INSIDE, tcp((HOST, port + number), (REMOTE, 80), "S", seq=1))


@pytest.mark.parametrize("row", [31, 40, 63])
def test_what_is_no_pptp_leaves_no_other_connection_unread(row: int) -> None:
    """The rows of both sessions are in one word of the bits that say what is left alone."""
    gateway = Gateway()
    fill_rows(gateway, 8, 2000)
    followed = Control(gateway, HOST)
    fill_rows(gateway, row - 9, 3000)
    stranger = Control(gateway, OTHER_HOST, OTHER_REMOTE)
    assert list(gateway.vpn.connections) == [8, row]
    stranger.segment(INSIDE, b"GET / HTTP/1.0\r\n\r\n")
    Control(gateway, OTHER_HOST, port=4100).call(0x400, 0x10)
    assert followed.say(INSIDE, Type.OUTGOING_CALL_REQUEST, 0x400) == (61000,)
    for _ in range(80):
        gateway.second(100)
    assert gateway.vpn.connections == {}


def test_both_ends_may_begin_again_on_the_same_ports() -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    control.call(0x400, 0x11)
    control.next = {INSIDE: 5_000_000, OUTSIDE: 900_000_000}
    for link, flags in ((INSIDE, "S"), (OUTSIDE, "SA"), (INSIDE, "A")):
        control.segment(link, b"", flags)
    assert control.call(0x400, 0x12) == 0x400


def test_a_forged_syn_begins_nothing_again() -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    gateway.send(OUTSIDE, tcp(control.remote, control.external, "S", seq=77))
    assert control.call(0x400, 0x11) == 0x400


def test_a_connection_that_follows_at_once_on_the_same_port_finds_its_call_retired() -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    control.call(0x400, 0x11)
    for link in (INSIDE, OUTSIDE):
        control.segment(link, b"", "FA")
    assert Control(gateway, HOST).call(0x400, 0x12) == 0x400
    assert [call.state for call in gateway.vpn.calls.calls.values()] == ["established"]


def test_strangers_cannot_fill_the_queue_nor_keep_trackers_busy() -> None:
    gateway = Gateway()
    for number in range(64):
        gateway.harness.inject(OUTSIDE, esp(f"199.1.{number // 8}.9", GATEWAY_OUT, 5000 + number))
    gateway.harness.run()
    assert gateway.harness.drops() == {"punts_full": 48}
    gateway.settle()
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))
    for _ in range(20):
        for number in range(20):
            gateway.harness.inject(OUTSIDE, esp(f"199.1.{number}.9", GATEWAY_OUT, 5000))
        gateway.settle()
    assert gateway.harness.drops()["esp_no_row"] <= 200, "a burst, and no more while no time passes"


def test_one_host_cannot_have_all_control_connections() -> None:
    gateway = Gateway(capacity=65536)
    gateway.vpn.calls.settings = CallSettings(controls=4, controls_per_host=3)
    for port in range(4000, 4005):
        gateway.send(INSIDE, tcp((HOST, port), (REMOTE, 1723), "S", seq=1))
    assert len(gateway.vpn.connections) == 3
    assert Control(gateway, OTHER_HOST).call(0x400, 0x11) == 0x400


def test_what_waits_is_dropped_when_its_link_changes() -> None:
    gateway = Gateway(header_length={INSIDE: 14, OUTSIDE: 0})
    gateway.harness.inject(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 7))
    gateway.harness.run()
    gateway.harness.drops()
    gateway.harness.forwarder.set_link(1, link_row(side=1, mtu=1500, mac=bytes(6), header_length=14, up=False))
    assert gateway.harness.forwarder.next_punt() is None
    assert gateway.harness.drops() == {"link_down": 1}
    assert gateway.harness.forwarder.verdicts()["punt"] == 0


def test_e20_copies_that_wait_for_a_next_hop_are_not_copied_again() -> None:
    gateway = Gateway()
    exchange(gateway, HOST, b"one")
    exchange(gateway, OTHER_HOST, b"two")
    gateway.harness.forwarder.forget_hops(0)
    asked = gateway.asked
    sent = [*gateway.send(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x3000, 1000)), *gateway.settle()]
    assert sorted(ends(out.packet)[1] for out in sent) == [HOST, OTHER_HOST]
    assert gateway.asked == asked + 1


def test_a_call_id_that_is_anothers_now_is_judged_anew() -> None:
    rules = chains_after("ipchains -A forward -j MASQ", f"ipchains -A output -d {OTHER_HOST} -j DENY")
    gateway = Gateway(rules=rules)
    control = Control(gateway, HOST)
    assert control.call(0x400, 0x11) == 0x400
    for number in range(3):
        gateway.passes(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 0x400, number))
    control.say(INSIDE, Type.CALL_CLEAR_REQUEST, 0x400)
    gateway.second(40)
    gateway.vpn.calls.attach(99, address(OTHER_HOST), address(GATEWAY_OUT), address(REMOTE))
    assert gateway.vpn.calls.open(99, 0x400, gateway.harness.now_ns).external_id == 0x400
    gateway.vpn.follow_rows()
    assert gateway.dropped(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 0x400, 9)) == "output_denied"


def strangers(gateway: Gateway, number: int, count: int = 80, sender: str | None = None) -> None:
    """Queue ESP that nothing explains, each packet from a network of its own, or all from one sender."""
    for one in range(count):
        source = sender or f"{20 + one}.{number >> 8 & 255}.{number & 255}.9"
        gateway.harness.inject(OUTSIDE, esp(source, GATEWAY_OUT, 0x5000 + number))
        if one % 60 == 59:
            gateway.harness.forwarder.step(gateway.harness.now_ns)  # as many as the ring keeps


def test_answers_are_not_kept_waiting_by_strangers() -> None:
    """A hundred exchanges and SAs, 80 packets from forged sources before each answer: all go on as when idle."""
    gateway = Gateway()
    for number in range(100):
        cookie, host = number.to_bytes(8, "big"), f"10.0.{number}.2"
        remote = f"199.0.{number}.1"
        gateway.passes(INSIDE, isakmp(host, remote, cookie))
        strangers(gateway, number)
        answered = gateway.send(OUTSIDE, isakmp(remote, GATEWAY_OUT, cookie, RESPONDER))
        assert [ends(out.packet)[1] for out in answered] == [host]
        gateway.passes(INSIDE, esp(host, remote, 0x1000))
        strangers(gateway, number)
        answered = gateway.send(OUTSIDE, esp(remote, GATEWAY_OUT, 0x2000 + number))
        assert [ends(out.packet)[1] for out in answered] == [host]
        gateway.second(0.02)
    assert gateway.harness.forwarder.drops()["punts_full"] > 10_000


def test_answers_are_not_kept_waiting_by_one_who_forges_the_remote() -> None:
    """Its ESP shares what that remote's ESP has, but not what IKE has with it, nor with others."""
    gateway = Gateway()
    for number in range(1, 21):
        cookie = number.to_bytes(8, "big")
        gateway.passes(INSIDE, isakmp(HOST, REMOTE, cookie))
        strangers(gateway, number, sender=REMOTE)
        answered = gateway.send(OUTSIDE, isakmp(REMOTE, GATEWAY_OUT, cookie, RESPONDER))
        assert HOST in [ends(out.packet)[1] for out in answered if decode(out.packet).protocol == 17]


def test_strangers_of_one_network_have_less_than_all_of_them() -> None:
    gateway = Gateway()
    strangers(gateway, 1, sender="199.9.9.9")
    gateway.settle()
    assert gateway.harness.drops() == {"punts_full": 64, "esp_no_row": 16}
    gateway.harness.inject(OUTSIDE, esp("199.9.9.10", GATEWAY_OUT, 5))
    gateway.harness.inject(OUTSIDE, esp("199.9.10.9", GATEWAY_OUT, 5))
    gateway.settle()
    assert gateway.harness.drops() == {"punts_full": 1, "esp_no_row": 1}
