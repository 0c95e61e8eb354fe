"""Protocols without ports that any inside host may begin, by addresses alone (C-30 today)."""

from __future__ import annotations

import struct

import pytest

from fastmasq.policy.redirects import Redirect, compile_redirects
from fastmasq.wire.numbers import DCCP, IPV6, SCTP, UDP_LITE
from tests.support.harness import Harness, address
from tests.support.packets import (
    decode,
    icmp_error,
    internet_checksum,
    ipv4,
    ones_sum,
    problems,
    pseudo_header,
)
from tests.support.path_network import (
    GATEWAY_OUT,
    HOST,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    delivered,
    dropped,
    passes,
    plain_ends,
    refused,
)

REMOTE, OTHER_REMOTE, ROUTER = "199.0.0.2", "199.0.0.3", "199.0.0.254"


def carrying(*protocols: int, **settings) -> Harness:
    harness = Harness(**settings)
    harness.forwarder.carry_by_address(protocols or (IPV6, SCTP, UDP_LITE, DCCP))
    return harness


def packet(source: str, destination: str, protocol: int = IPV6, payload: bytes = b"some data", **ip) -> bytes:
    return ipv4(source, destination, protocol, payload, **ip)


def summed(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    """Return a packet that begins with ports, 0 and a checksum over everything, as one of UDP-Lite does."""
    body = struct.pack(">HHHH", 4000, 7, 0, 0) + payload
    checksum = internet_checksum(pseudo_header(address(source), address(destination), protocol, len(body)) + body)
    return packet(source, destination, protocol, body[:6] + struct.pack(">H", checksum) + body[8:])


def is_summed(raw: bytes) -> bool:
    """Return whether the checksum of UDP-Lite or DCCP covers the packet's addresses."""
    decoded = decode(raw)
    pseudo = pseudo_header(decoded.source, decoded.destination, decoded.protocol, len(decoded.body))
    return ones_sum(pseudo + decoded.body) == 0xFFFF


def test_a_protocol_without_ports_leaves_with_the_external_address_and_its_answers_come_back():
    harness = carrying()
    assert plain_ends(passes(harness, INSIDE, packet(HOST, REMOTE))) == (GATEWAY_OUT, REMOTE, b"some data")
    assert plain_ends(passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT))) == (REMOTE, HOST, b"some data")
    assert harness.drops() == {}


def test_what_no_inside_host_has_begun_is_for_this_host():
    harness = carrying()
    passes(harness, INSIDE, packet(HOST, REMOTE))
    assert delivered(harness, OUTSIDE, packet(OTHER_REMOTE, GATEWAY_OUT))
    assert delivered(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT, SCTP))


def test_one_inside_host_has_a_remote_and_a_protocol_at_a_time():
    harness = carrying()
    passes(harness, INSIDE, packet(HOST, REMOTE))
    reason, answer = refused(harness, INSIDE, packet(OTHER_HOST, REMOTE))
    assert (reason, decode(answer).kind, decode(answer).code) == ("endpoint_clash", 3, 13)
    assert plain_ends(passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT)))[1] == HOST
    passes(harness, INSIDE, packet(OTHER_HOST, REMOTE, SCTP))
    passes(harness, INSIDE, packet(OTHER_HOST, OTHER_REMOTE))
    harness.advance(603)
    passes(harness, INSIDE, packet(OTHER_HOST, REMOTE))
    assert plain_ends(passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT)))[1] == OTHER_HOST


def test_c_30_other_protocols_are_dropped_by_name():
    harness = carrying(IPV6)
    assert dropped(harness, INSIDE, packet(HOST, REMOTE, SCTP)) == "protocol_not_masqueraded"
    assert dropped(harness, INSIDE, packet(HOST, REMOTE, 51)) == "ah_not_masqueraded"


def test_5_6_a_redirect_names_the_only_host():
    harness = carrying()
    harness.forwarder.set_redirects(compile_redirects([Redirect(protocol=IPV6, host=OTHER_HOST)]))
    assert dropped(harness, INSIDE, packet(HOST, REMOTE)) == "protocol_not_masqueraded"
    passes(harness, INSIDE, packet(OTHER_HOST, REMOTE))


def test_rfc6888_req3_one_host_cannot_take_the_whole_table():
    harness = carrying(sessions_per_host=1)
    passes(harness, INSIDE, packet(HOST, REMOTE))
    assert refused(harness, INSIDE, packet(HOST, OTHER_REMOTE))[0] == "host_session_limit"
    passes(harness, INSIDE, packet(OTHER_HOST, OTHER_REMOTE))


@pytest.mark.parametrize("protocol", [UDP_LITE, DCCP])
def test_rfc3828_a_checksum_over_the_addresses_stays_right(protocol):
    harness = carrying()
    for number in range(300):  # some of their checksums wrap
        sent = passes(harness, INSIDE, summed(HOST, REMOTE, protocol, struct.pack(">H", 217 * number)))
        assert plain_ends(sent)[:2] == (GATEWAY_OUT, REMOTE)
        assert is_summed(sent)
        assert is_summed(passes(harness, OUTSIDE, summed(REMOTE, GATEWAY_OUT, protocol, struct.pack(">H", number))))


@pytest.mark.parametrize("protocol", [UDP_LITE, DCCP])
def test_rfc3828_what_is_too_short_for_a_checksum_keeps_its_octets(protocol):
    harness = carrying()
    for octets in range(8):
        assert plain_ends(passes(harness, INSIDE, packet(HOST, REMOTE, protocol, b"\1" * octets)))[2] == b"\1" * octets


@pytest.mark.parametrize("protocol", [UDP_LITE, DCCP, IPV6])
def test_c48_errors_quote_what_the_host_has_sent(protocol):
    harness = carrying()
    original = summed(HOST, REMOTE, protocol, b"question")
    left = passes(harness, INSIDE, original)
    error = passes(harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 4, left, mtu=1400))
    assert problems(error) == []
    quote = decode(error).quote
    assert plain_ends(quote)[:2] == (HOST, REMOTE)
    assert decode(quote).body == decode(original).body
