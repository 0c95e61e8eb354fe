"""Protocols that need no gateway, as mappings are endpoint-independent: TFTP, SIP with rport, QUIC that moves."""

from __future__ import annotations

from tests.support.harness import Harness
from tests.support.packets import decode, dotted, udp
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OUTSIDE, SERVER

CLIENT, EXTERNAL = (HOST, 40000), (GATEWAY_OUT, 40000)


def leaves(harness: Harness, source: tuple[str, int], remote: tuple[str, int], payload: bytes) -> tuple[str, int]:
    """Send a datagram from inside, which arrives as it was; return where it seems to come from."""
    [out] = harness.send(INSIDE, udp(source, remote, payload))
    arrived = decode(out.packet)
    assert out.link == OUTSIDE and arrived.payload == payload
    return dotted(arrived.source), arrived.source_port


def enters(harness: Harness, remote: tuple[str, int], external: tuple[str, int], payload: bytes) -> tuple[str, int]:
    """Send a datagram from outside, which arrives as it was; return where."""
    [out] = harness.send(OUTSIDE, udp(remote, external, payload))
    arrived = decode(out.packet)
    assert out.link == INSIDE and arrived.payload == payload
    return dotted(arrived.destination), arrived.destination_port


def test_rfc1350_tftp_answers_from_another_port() -> None:
    harness = Harness()
    assert leaves(harness, CLIENT, (SERVER, 69), b"\0\1file\0octet\0") == EXTERNAL
    assert enters(harness, (SERVER, 51234), EXTERNAL, b"\0\3\0\1" + bytes(512)) == CLIENT
    assert leaves(harness, CLIENT, (SERVER, 51234), b"\0\4\0\1") == EXTERNAL
    assert enters(harness, (SERVER, 51234), EXTERNAL, b"\0\3\0\2end") == CLIENT
    assert harness.drops() == {}


def test_rfc3581_sip_with_rport_is_answered_where_it_came_from() -> None:
    harness = Harness()
    phone, proxy = (HOST, 5060), (SERVER, 5060)
    external = leaves(harness, phone, proxy, b"REGISTER sip:x SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.2:5060;rport\r\n\r\n")
    assert enters(harness, proxy, external, b"SIP/2.0 200 OK\r\n\r\n") == phone
    assert enters(harness, proxy, external, b"INVITE sip:me@10.0.0.2 SIP/2.0\r\n\r\n") == phone
    # The voice: both ends send first to where the other one says, and answer where it has come from (RFC 4961).
    assert leaves(harness, (HOST, 16384), (SERVER, 30000), b"\x80voice") == (GATEWAY_OUT, 16384)
    assert enters(harness, (SERVER, 30000), (GATEWAY_OUT, 16384), b"\x80voice") == (HOST, 16384)
    assert harness.drops() == {}


def test_rfc9000_9_a_quic_connection_moves_to_another_port() -> None:
    harness = Harness()
    server = (SERVER, 443)
    first = leaves(harness, CLIENT, server, b"\xc0initial")
    assert enters(harness, server, first, b"\xc0answer") == CLIENT
    second = leaves(harness, (HOST, 40002), server, b"\x40path challenge")
    assert second != first
    assert enters(harness, server, second, b"\x40path response") == (HOST, 40002)
    assert enters(harness, server, first, b"\x40late") == CLIENT
    assert harness.drops() == {}
