"""Application gateways in the path: what is opened and for whom, every field that an edit changes, and what ends it."""

from __future__ import annotations

import struct

import pytest

from fastmasq.config.schema import Gateways
from fastmasq.config.values import Ports
from fastmasq.policy.forwards import Forward, Target
from fastmasq.table import memory
from tests.support.adoption import shared
from tests.support.edited_stream import Talk
from tests.support.packets import TCP, UNREACHABLE, decode, dotted, icmp, ipv4, problems, tcp, udp
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OTHER_HOST, OUTSIDE
from tests.support.vpn_gateway import CAPACITY, OTHER_REMOTE, REMOTE, Gateway

FTP, IRC = 21, 6667
CLIENT, SERVER = (HOST, 4000), (REMOTE, FTP)
GREETING, USER = b"220 hello\r\n", b"USER me\r\n"
PORT = b"PORT 10,0,0,2,156,64\r\n"  # 40000
PORT_OUTSIDE = b"PORT 200,200,200,200,156,64\r\n"
OFFER = b"PRIVMSG you :\x01DCC CHAT chat 167772162 40000\x01\r\n"
LONGER = len(PORT_OUTSIDE) - len(PORT)
FORWARD = Forward(protocol="tcp", listen=GATEWAY_OUT, first=FTP, last=FTP, targets=(Target(HOST, FTP),))


def talk(gateway: Gateway, *, port: int = FTP, client: int = 4000, begun: bool = True) -> Talk:
    """Return the control connection of a client inside, which has logged in."""
    made = Talk(gateway, (INSIDE, (HOST, client)), (OUTSIDE, (REMOTE, port)))
    if begun:
        made.say("server", GREETING)
        made.say("client", USER)
    return made


def served(gateway: Gateway) -> Talk:
    """Return the control connection of a client outside to a server behind the forward."""
    made = Talk(gateway, (OUTSIDE, (REMOTE, 4000)), (INSIDE, (HOST, FTP)), (GATEWAY_OUT, FTP))
    made.say("server", GREETING)
    made.say("client", USER)
    return made


def syn(remote: str, port: int = 40000, source: int = 20, flags: str = "S") -> bytes:
    return tcp((remote, source), (GATEWAY_OUT, port), flags, seq=1)


def refused(gateway: Gateway) -> dict[str, int]:
    return dict(gateway.gateways.refused)


# -- openings ----------------------------------------------------------------------------------------------------------


def test_rfc959_what_a_client_announces_is_open_for_the_server_alone_and_once() -> None:
    gateway = Gateway()
    control = talk(gateway)
    assert gateway.dropped(OUTSIDE, syn(REMOTE)) == "no_session"
    assert control.say("client", PORT) == USER + PORT_OUTSIDE
    assert gateway.dropped(OUTSIDE, syn(OTHER_REMOTE)) == "filtered"
    arrived = decode(gateway.passes(OUTSIDE, syn(REMOTE)))
    assert (dotted(arrived.destination), arrived.destination_port) == (HOST, 40000)
    assert not gateway.gateways.describe()["openings"]
    answer = decode(gateway.passes(INSIDE, tcp((HOST, 40000), (REMOTE, 20), "SA", seq=5, ack=2)))
    assert (dotted(answer.source), answer.source_port) == (GATEWAY_OUT, 40000)


def test_an_opening_is_over_after_a_minute() -> None:
    gateway = Gateway()
    control = talk(gateway)
    control.say("client", PORT)
    [opening] = gateway.gateways.describe()["openings"]
    assert opening == {
        "protocol": "tcp",
        "inside": f"{HOST}:40000",
        "external": f"{GATEWAY_OUT}:40000",
        "remote": REMOTE,
    }
    gateway.second(61)
    assert not gateway.gateways.describe()["openings"]
    assert gateway.dropped(OUTSIDE, syn(REMOTE)) == "no_session"


@pytest.mark.parametrize("flags", ["SA", "A", "RA", "FA"])
def test_only_a_syn_comes_by_an_opening(flags: str) -> None:
    gateway = Gateway(filtering="address-and-port-dependent")
    talk(gateway).say("client", PORT)
    assert gateway.dropped(OUTSIDE, syn(REMOTE, flags=flags)) == "filtered"
    gateway.passes(OUTSIDE, syn(REMOTE))


def test_another_port_is_given_where_the_announced_one_is_taken() -> None:
    gateway = Gateway()
    gateway.passes(INSIDE, tcp((OTHER_HOST, 40000), (OTHER_REMOTE, 80), "S"))
    leaves = talk(gateway).say("client", PORT)
    assert leaves.startswith(USER + b"PORT 200,200,200,200,") and not leaves.endswith(PORT_OUTSIDE)
    high, low = leaves.split(b",")[-2:]
    arrived = decode(gateway.passes(OUTSIDE, syn(REMOTE, int(high) << 8 | int(low))))
    assert (dotted(arrived.destination), arrived.destination_port) == (HOST, 40000)


def test_rfc2577_a_host_has_at_most_eight_openings_that_wait() -> None:
    gateway = Gateway()
    control = talk(gateway)
    for number in range(9):
        control.say("client", b"PORT 10,0,0,2,156,%d\r\n" % number)
    assert refused(gateway) == {"too_many_openings": 1} and gateway.gateways.opened_total == 8
    assert len(gateway.gateways.describe()["openings"]) == 8
    for _ in range(3):
        control.say("client", b"PORT 10,0,0,2,156,0\r\n")  # the same again is no other one
    gateway.passes(OUTSIDE, syn(REMOTE, 156 << 8))
    control.say("client", b"PORT 10,0,0,2,157,0\r\n")
    assert refused(gateway) == {"too_many_openings": 1}


def test_rfc959_a_server_behind_a_forward_is_reached_where_it_says() -> None:
    gateway = Gateway(forwards=[FORWARD])
    control = served(gateway)
    control.say("client", b"PASV\r\n")
    assert control.say("server", b"227 Ok (10,0,0,2,156,64)\r\n").endswith(b"227 Ok (200,200,200,200,156,64)\r\n")
    assert gateway.dropped(OUTSIDE, syn(OTHER_REMOTE, source=5000)) == "filtered"
    arrived = decode(gateway.passes(OUTSIDE, syn(REMOTE, source=5000)))
    assert (dotted(arrived.destination), arrived.destination_port) == (HOST, 40000)


# -- who is followed ---------------------------------------------------------------------------------------------------


def test_an_empty_list_is_off_and_ports_are_what_the_settings_say() -> None:
    gateway = Gateway(gateways=Gateways(ftp=Ports()))
    assert talk(gateway).say("client", PORT) == USER + PORT and gateway.asked == 0
    gateway.gateways.go_by(Gateways(ftp=Ports((2121,))))
    assert talk(gateway, client=4001).say("client", PORT) == USER + PORT
    control = talk(gateway, port=2121, client=4002)
    assert control.say("client", PORT) == USER + PORT_OUTSIDE
    gateway.gateways.go_by(Gateways(ftp=Ports()))
    assert control.say("client", PORT) == USER + PORT_OUTSIDE + PORT, "it goes on as it is"


def test_what_is_not_seen_from_its_first_syn_is_not_read() -> None:
    gateway = Gateway()
    gateway.passes(INSIDE, tcp(CLIENT, SERVER, "PA", seq=1, ack=1, payload=USER + PORT))
    asked = gateway.asked
    assert decode(gateway.passes(INSIDE, tcp(CLIENT, SERVER, "PA", seq=1, ack=1, payload=PORT))).payload == PORT
    assert gateway.asked == asked and gateway.gateways.opened_total == 0


def test_bulk_data_of_what_is_no_control_connection_is_not_asked_about() -> None:
    gateway = Gateway()
    control = talk(gateway, begun=False)
    control.say("server", b"\0binary\n")
    assert refused(gateway) == {"no_greeting": 1}
    asked = gateway.asked
    for _ in range(20):
        control.say("server", bytes(1400))
    assert gateway.asked == asked


def test_bulk_data_within_the_protocol_is_read_only_so_far() -> None:
    gateway = Gateway()
    control = talk(gateway)
    line = b"211-" + b"x" * 1000 + b"\r\n"
    for _ in range(17):
        control.say("server", line * 60, size=1400)
        assert not refused(gateway)
    asked = gateway.asked
    for _ in range(4):
        control.say("server", line * 60, size=1400)
    assert refused(gateway) == {"too_much": 1} and gateway.asked <= asked + 2
    assert control.say("client", PORT) == USER + PORT


def test_bulk_data_behind_an_edit_keeps_its_shift_without_being_asked_about() -> None:
    gateway = Gateway()
    control = talk(gateway)
    control.say("client", PORT)
    control.say("client", b"AUTH TLS\r\n")
    control.say("server", b"234 go\r\n")
    asked = gateway.asked
    for _ in range(20):
        control.say("client", bytes(1400))
        control.say("server", bytes(1400))
    assert gateway.asked == asked and control.said["client"][-28000:] == bytes(28000)
    assert control.received["server"].octets.endswith(PORT_OUTSIDE + b"AUTH TLS\r\n" + bytes(28000))


def test_a_connection_that_follows_on_the_same_ports_is_read_anew() -> None:
    gateway = Gateway()
    first = talk(gateway)
    first.say("client", PORT)
    gateway.passes(INSIDE, first.segment("client", "RA", len(first.said["client"])))
    again = Talk(gateway, (INSIDE, CLIENT), (OUTSIDE, SERVER), first=(99000, 5000))
    again.say("server", GREETING)
    again.say("client", USER)
    assert again.say("client", PORT) == USER + PORT_OUTSIDE


# -- what outlives the process -----------------------------------------------------------------------------------------


def killed(*talks: Talk, lacking: str = "", **options) -> Gateway:
    """Return the gateway that goes on after that of these connections was killed; they go on through it."""
    [before] = {each.gateway for each in talks}
    if lacking:
        memory.lay_out(CAPACITY, before.rows).followers[lacking] = 0
    again = Gateway(buffer=shared(CAPACITY), after=before, **options)
    for each in talks:
        each.gateway = again
    return again


def lasting(**options) -> Gateway:
    return Gateway(buffer=shared(CAPACITY), **options)


SAYS = [("server", GREETING), ("client", USER), ("server", b"331 x\r\n"), ("client", PORT), ("server", b"200 y\r\n")]


@pytest.mark.parametrize("kill_at", range(len(SAYS)))
def test_a_client_is_followed_through_kills_wherever_they_strike(kill_at: int) -> None:
    control = talk(lasting(), begun=False)
    for number, (end, said) in enumerate(SAYS):
        if number == kill_at:
            for _ in range(2):
                killed(control)
        control.say(end, said)
    assert control.received["server"].octets == USER + PORT_OUTSIDE
    killed(control)
    assert control.say("client", PORT.replace(b"156", b"157")).endswith(PORT_OUTSIDE.replace(b"156", b"157"))
    assert not refused(control.gateway)
    for port in (156 << 8 | 64, 157 << 8 | 64):
        arrived = decode(control.gateway.passes(OUTSIDE, syn(REMOTE, port)))
        assert (dotted(arrived.destination), arrived.destination_port) == (HOST, port), "what was opened before is open"


def test_a_server_is_followed_through_a_kill() -> None:
    control = served(lasting(forwards=[FORWARD]))
    control.say("client", b"EPSV\r\n")
    killed(control, forwards=[FORWARD])
    said = control.say("server", b"229 Ok (|||40000|)\r\n227 Ok (10,0,0,2,156,64)\r\n")
    assert refused(control.gateway) == {"unasked": 1} and control.gateway.gateways.opened_total == 1
    assert said.endswith(b"227 Ok (10,0,0,2,156,64)\r\n")


def test_an_offer_is_edited_after_a_kill() -> None:
    options = {"gateways": Gateways(irc=Ports((IRC,)))}
    control = chat(lasting(**options))
    killed(control, **options)
    assert control.say("client", OFFER).endswith(OFFER.replace(b"167772162", b"3368601800"))


def test_rfc2577_a_kill_makes_nobody_trusted() -> None:
    """Who had not logged in has not afterwards, and who has been refused stays so."""
    early, refusing = lasting(), lasting()
    control, other = talk(early, begun=False), talk(refusing)
    control.say("server", GREETING)
    other.say("client", b"GET / HTTP/1.1\r\n")
    for each in (control, other):
        killed(each)
        assert each.say("client", PORT).endswith(PORT)
    assert refused(control.gateway) == {"not_logged_in": 1} and not other.gateway.gateways.connections


@pytest.mark.parametrize("rest", [b"x\r\n", b"PORT 10,0,0,2,156,64\r\n"])
def test_what_is_left_of_a_line_passes_after_a_kill(rest: bytes) -> None:
    control = talk(lasting())
    control.say("client", b"STAT ")
    killed(control)
    assert control.say("client", rest).endswith(b"STAT " + rest)
    assert control.say("client", PORT).endswith(PORT_OUTSIDE) and not refused(control.gateway)


@pytest.mark.parametrize("lacking", ["key0", "expected"])
def test_what_was_edited_and_not_noted_goes_on_unread(lacking: str) -> None:
    control = talk(lasting())
    control.say("client", PORT)
    gateway = killed(control, lacking=lacking)
    assert not gateway.gateways.connections
    assert control.say("client", PORT) == USER + PORT_OUTSIDE + PORT and gateway.asked == 0


def test_a_command_that_is_held_back_is_not_read_on_after_a_kill() -> None:
    control = talk(lasting())
    control.said["client"] += PORT
    control.send("client", len(USER), len(USER) + 10)
    assert not killed(control).gateways.connections


def test_a_port_that_is_followed_no_more_is_not_after_a_kill() -> None:
    control = talk(lasting())
    gateway = killed(control, gateways=Gateways(ftp=Ports()))
    assert control.say("client", PORT) == USER + PORT and not gateway.gateways.connections


def test_of_so_many_connections_is_kept_how_far_they_were_read() -> None:
    gateway = lasting()
    most = memory.stream_rows(CAPACITY)
    talks = [talk(gateway, client=4000 + number) for number in range(most + 1)]
    gateway.passes(INSIDE, talks[0].segment("client", "RA", len(USER)))
    gateway.second()
    talks[-1].say("client", b"NOOP\r\n")
    again = killed(*talks[1:])
    assert len(again.gateways.connections) == most
    assert all(each.say("client", PORT).endswith(PORT_OUTSIDE) for each in talks[1:9])


# -- DCC ---------------------------------------------------------------------------------------------------------------


def chat(gateway: Gateway) -> Talk:
    """Return the connection of an IRC client inside, which the server has welcomed."""
    made = Talk(gateway, (INSIDE, (HOST, 4000)), (OUTSIDE, (REMOTE, IRC)))
    made.say("client", b"NICK me\r\nUSER me 0 * :me\r\n")
    made.say("server", b":irc.net 001 me :Welcome\r\n")
    return made


def test_dcc_is_off_unless_ports_are_named() -> None:
    gateway = Gateway()
    assert chat(gateway).say("client", OFFER).endswith(OFFER) and gateway.asked == 0


def test_what_a_client_offers_is_open_for_anybody_once() -> None:
    gateway = Gateway(gateways=Gateways(irc=Ports((IRC,))))
    control = chat(gateway)
    assert control.say("client", OFFER, piece=7).endswith(OFFER.replace(b"167772162", b"3368601800"))
    [opening] = gateway.gateways.describe()["openings"]
    assert opening["remote"] == "any"
    arrived = decode(gateway.passes(OUTSIDE, syn(OTHER_REMOTE, source=5000)))
    assert (dotted(arrived.destination), arrived.destination_port) == (HOST, 40000)
    assert gateway.dropped(OUTSIDE, syn("199.0.0.77", source=5000)) == "filtered"


def test_a_server_behind_a_forward_is_no_client_that_offers() -> None:
    forward = Forward(protocol="tcp", listen=GATEWAY_OUT, first=IRC, last=IRC, targets=(Target(HOST, IRC),))
    gateway = Gateway(forwards=[forward], gateways=Gateways(irc=Ports((IRC,))))
    control = Talk(gateway, (OUTSIDE, (REMOTE, 4000)), (INSIDE, (HOST, IRC)), (GATEWAY_OUT, IRC))
    control.say("client", b"NICK me\r\n")
    assert control.say("server", b":irc.net 001 me :Welcome\r\n" + OFFER).endswith(OFFER)
    assert gateway.asked == 1 and not gateway.gateways.connections


# -- RealAudio --------------------------------------------------------------------------------------------------------

PNA = b"PNA\0\12\0\1\0\2\x9c\x40\0\0\0\0"  # port 40000


def test_where_a_player_wants_its_sound_the_server_may_send() -> None:
    gateway = Gateway(gateways=Gateways(raudio=Ports((7070,))))
    gateway.passes(INSIDE, udp((OTHER_HOST, 40000), (OTHER_REMOTE, 53), b""))
    control = talk(gateway, port=7070, begun=False)
    leaves = control.say("client", PNA, piece=5)
    port = int.from_bytes(leaves[9:11], "big")
    assert len(leaves) == len(PNA) and port != 40000 and leaves.replace(leaves[9:11], b"\x9c\x40") == PNA
    sound = udp((REMOTE, 6970), (GATEWAY_OUT, port), b"sound")
    assert gateway.dropped(OUTSIDE, udp((OTHER_REMOTE, 6970), (GATEWAY_OUT, port), b"noise")) == "filtered"
    for _ in range(2):
        arrived = decode(gateway.passes(OUTSIDE, sound))
        assert (dotted(arrived.destination), arrived.destination_port) == (HOST, 40000)
    assert gateway.dropped(OUTSIDE, udp((OTHER_REMOTE, 6970), (GATEWAY_OUT, port), b"noise")) == "filtered"
    asked = gateway.asked
    control.say("client", bytes(100))
    assert gateway.asked == asked, "it is passed on unread from its last record on"


def test_a_player_is_not_followed_unless_ports_are_named_nor_a_server_inside() -> None:
    gateway = Gateway()
    assert talk(gateway, port=7070, begun=False).say("client", PNA) == PNA and gateway.asked == 0
    forward = Forward(protocol="tcp", listen=GATEWAY_OUT, first=7070, last=7070, targets=(Target(HOST, 7070),))
    gateway = Gateway(forwards=[forward], gateways=Gateways(raudio=Ports((7070,))))
    control = Talk(gateway, (OUTSIDE, (REMOTE, 4000)), (INSIDE, (HOST, 7070)), (GATEWAY_OUT, 7070))
    assert control.say("server", PNA) == PNA and not gateway.gateways.connections


# -- segments ----------------------------------------------------------------------------------------------------------


def edited() -> tuple[Gateway, Talk]:
    """Return a connection in which a command has become longer."""
    gateway = Gateway()
    control = talk(gateway)
    control.say("client", PORT)
    return gateway, control


def test_c70_numbers_and_acknowledgments_are_shifted_behind_an_edit() -> None:
    _, control = edited()
    end = len(USER + PORT)
    out = control.passes("client", control.segment("client", "A", end))
    assert out.seq == 1001 + end + LONGER
    back = control.passes("server", control.segment("server", "A", len(GREETING)))
    assert back.ack == 1001 + end


def test_rfc2018_blocks_of_selective_acknowledgments_are_shifted() -> None:
    gateway, control = edited()
    first = 1001 + len(USER + PORT) + LONGER
    blocks = bytes((1, 1, 5, 18)) + struct.pack(">4I", first + 10, first + 20, 1001, 1001 + len(USER) + 3)
    arrived = control.passes("server", control.segment("server", "A", len(GREETING), options=blocks))
    raw = arrived.body[20:40]
    assert struct.unpack(">4I", raw[4:20]) == (first + 10 - LONGER, first + 20 - LONGER, 1001, 1001 + len(USER) + 3)
    assert problems(arrived.raw) == [] and gateway.harness.drops() == {}


def test_a_segment_that_an_edit_makes_too_long_is_cut_in_two() -> None:
    gateway = Gateway()
    control = talk(gateway)
    said = b"STAT x\r\n" * 179 + PORT  # 1454 octets
    said = b"NOOP\r\n" + said
    control.said["client"] += said
    start = len(USER)
    packet = control.segment("client", "PA", start, said, df=True)
    sent = gateway.send(INSIDE, packet)
    assert len(packet) == 1500 and [len(out.packet) for out in sent] == [1500, 40 + LONGER]
    parts = [decode(out.packet) for out in sent]
    assert b"".join(part.payload for part in parts) == said[: -len(PORT)] + PORT_OUTSIDE
    assert parts[1].seq == parts[0].seq + 1460 and [part.flags for part in parts] == [0x10, 0x18]
    assert all(problems(out.packet) == [] for out in sent)


def test_a_wrong_checksum_is_not_read_and_stays_wrong() -> None:
    gateway = Gateway()
    control = talk(gateway)
    out = gateway.send(INSIDE, control.segment("client", "PA", len(USER), PORT, checksum=0x1234))
    assert decode(out[0].packet).payload == PORT and problems(out[0].packet) and gateway.gateways.opened_total == 0
    assert control.say("client", PORT) == USER + PORT_OUTSIDE


def test_a_fragment_of_what_has_to_be_edited_is_dropped_by_name() -> None:
    gateway, control = edited()
    segment = decode(control.segment("client", "PA", len(USER), PORT)).body
    pieces = [
        ipv4(HOST, REMOTE, TCP, segment[:32], mf=True, identification=7),
        ipv4(HOST, REMOTE, TCP, segment[32:], offset=32, identification=7),
    ]
    assert [out for piece in pieces for out in gateway.send(INSIDE, piece)] == []
    assert gateway.harness.drops().keys() == {"edit_in_fragment", "fragment_refused"}


def test_rfc5927_an_error_quotes_the_number_that_its_hearer_knows() -> None:
    gateway, control = edited()
    end = len(USER + PORT)
    left = control.passes("client", control.segment("client", "PA", end, b"NOOP\r\n"))
    error = icmp("199.0.0.254", GATEWAY_OUT, UNREACHABLE, 4, rest=1400, payload=left.raw[:28])
    heard = decode(gateway.passes(OUTSIDE, error))
    quoted = heard.payload
    assert struct.unpack(">I", quoted[24:28])[0] == 1001 + end
