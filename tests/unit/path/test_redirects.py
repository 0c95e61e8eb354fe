"""Redirected protocols on the packet path: section 5.6, C-43 and C-48, over memory links."""

from __future__ import annotations

import pytest

from fastmasq.policy.redirects import Redirect, compile_redirects
from fastmasq.wire.numbers import AH, ESP, GRE, IPV6
from tests.support.harness import Harness
from tests.support.packets import decode, dotted, icmp_error, ipv4, problems
from tests.support.path_network import (
    GATEWAY_IN,
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

REMOTE, OTHER_REMOTE = "199.0.0.2", "199.0.0.3"


def redirecting(*redirects: Redirect, **settings) -> Harness:
    harness = Harness(**settings)
    harness.forwarder.set_redirects(compile_redirects(redirects or (Redirect(protocol=GRE, host=HOST),)))
    return harness


def packet(source: str, destination: str, protocol: int = GRE, payload: bytes = b"some data", **ip) -> bytes:
    return ipv4(source, destination, protocol, payload, **ip)


def test_5_6_a_redirected_protocol_goes_to_its_host_with_the_source_kept():
    harness = redirecting()
    assert plain_ends(passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT))) == (REMOTE, HOST, b"some data")
    assert plain_ends(passes(harness, INSIDE, packet(HOST, REMOTE))) == (GATEWAY_OUT, REMOTE, b"some data")
    assert plain_ends(passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT)))[1] == HOST
    assert [session["state"] for session in harness.sessions()] == ["active"]


def test_rfc3022_5_1_no_session_shows_an_inside_address_outside():
    """A packet from outside to the inside link's address would have its answers leave with that."""
    harness = redirecting()
    assert delivered(harness, OUTSIDE, packet(REMOTE, GATEWAY_IN))
    assert plain_ends(passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT)))[1] == HOST
    assert plain_ends(passes(harness, INSIDE, packet(HOST, REMOTE)))[0] == GATEWAY_OUT


def test_strangers_have_half_of_the_hosts_share():
    harness = redirecting(sessions_per_host=4)
    for number in (1, 2):
        passes(harness, OUTSIDE, packet(f"198.51.100.{number}", GATEWAY_OUT))
    assert dropped(harness, OUTSIDE, packet("198.51.100.3", GATEWAY_OUT)) == "host_session_limit"
    assert plain_ends(passes(harness, OUTSIDE, packet("198.51.100.1", GATEWAY_OUT)))[1] == HOST
    assert plain_ends(passes(harness, INSIDE, packet(HOST, REMOTE)))[0] == GATEWAY_OUT


def test_while_sessions_are_short_those_go_of_which_one_end_has_been_heard():
    """Whichever has begun; and a stranger's, though he has sent twice."""
    hosts = {GRE: HOST, ESP: "10.1.0.2", IPV6: "10.2.0.2"}
    redirects = [Redirect(protocol=protocol, host=host) for protocol, host in hosts.items()]
    harness = redirecting(*redirects, capacity=7, prefix=24)
    for protocol, host in hosts.items():
        for _ in range(2):
            passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT, protocol))
        passes(harness, INSIDE, packet(host, OTHER_REMOTE, protocol))
    passes(harness, INSIDE, packet(HOST, REMOTE))
    harness.advance(5)
    assert [(dotted(left["inside"][0]), dotted(left["remote"][0])) for left in harness.sessions()] == [(HOST, REMOTE)]


@pytest.mark.parametrize("payload", [b"", b"1", b"123"])
def test_5_6_not_an_octet_of_the_payload_is_touched_or_needed(payload: bytes):
    harness = redirecting()
    assert plain_ends(passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT, payload=payload)))[2] == payload
    assert plain_ends(passes(harness, INSIDE, packet(HOST, REMOTE, payload=payload)))[2] == payload


def test_5_6_the_ttl_is_decremented():
    harness = redirecting()
    assert decode(passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT, ttl=9))).ttl == 8
    assert refused(harness, OUTSIDE, packet(OTHER_REMOTE, GATEWAY_OUT, ttl=1))[0] == "ttl_exceeded"
    assert len(harness.sessions()) == 1


def test_5_6_other_protocols_stay_with_the_host_itself_c43():
    harness = redirecting()
    assert delivered(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT, ESP))


def test_5_6_the_host_may_begin_itself_and_others_may_not():
    harness = redirecting()
    assert plain_ends(passes(harness, INSIDE, packet(HOST, REMOTE)))[:2] == (GATEWAY_OUT, REMOTE)
    assert plain_ends(passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT)))[1] == HOST
    assert dropped(harness, INSIDE, packet(OTHER_HOST, REMOTE)) == "protocol_not_masqueraded"
    assert dropped(harness, INSIDE, packet(HOST, REMOTE, AH)) == "ah_not_masqueraded"


def test_5_6_from_tells_hosts_apart_and_live_sessions_stay_when_it_changes():
    wide, narrow = (
        Redirect(protocol=GRE, host=HOST),
        Redirect(protocol=GRE, host=OTHER_HOST, source=f"{OTHER_REMOTE}/32"),
    )
    harness = redirecting(wide, narrow)
    assert plain_ends(passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT)))[1] == HOST
    assert plain_ends(passes(harness, OUTSIDE, packet(OTHER_REMOTE, GATEWAY_OUT)))[1] == OTHER_HOST
    harness.forwarder.set_redirects(compile_redirects([Redirect(protocol=GRE, host=OTHER_HOST)]))
    assert plain_ends(passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT)))[1] == HOST
    assert plain_ends(passes(harness, INSIDE, packet(HOST, REMOTE)))[0] == GATEWAY_OUT


def test_5_6_one_remote_belongs_to_one_inside_host():
    harness = redirecting()
    passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT))
    harness.forwarder.set_redirects(compile_redirects([Redirect(protocol=GRE, host=OTHER_HOST)]))
    assert refused(harness, INSIDE, packet(OTHER_HOST, REMOTE))[0] == "endpoint_clash"


def test_rfc6888_req11_only_the_inside_is_told_that_the_table_is_full():
    harness = redirecting(capacity=1)
    passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT))
    assert dropped(harness, OUTSIDE, packet(OTHER_REMOTE, GATEWAY_OUT)) == "table_full"
    reason, answer = refused(harness, INSIDE, packet(HOST, OTHER_REMOTE))
    assert (reason, decode(answer).kind, decode(answer).code) == ("table_full", 3, 1)


def test_c48_errors_about_a_redirected_protocol_are_translated_both_ways():
    harness = redirecting()
    arrived = passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT))
    error = passes(harness, INSIDE, icmp_error(HOST, REMOTE, 3, 2, arrived))
    assert problems(error) == []
    assert (dotted(decode(error).source), dotted(decode(error).destination)) == (GATEWAY_OUT, REMOTE)
    assert plain_ends(decode(error).quote)[:2] == (REMOTE, GATEWAY_OUT)
    answer = passes(harness, INSIDE, packet(HOST, REMOTE))
    error = passes(harness, OUTSIDE, icmp_error("199.0.0.254", GATEWAY_OUT, 3, 4, answer, mtu=1400))
    assert problems(error) == []
    assert dotted(decode(error).destination) == HOST
    assert plain_ends(decode(error).quote)[:2] == (HOST, REMOTE)
    assert decode(error).mtu == 1400


def test_sessions_without_ports_end_and_leave_nothing_behind():
    harness = redirecting()
    passes(harness, OUTSIDE, packet(REMOTE, GATEWAY_OUT))
    harness.advance(599)
    assert len(harness.sessions()) == 1
    harness.advance(3)
    counts = harness.table.counts()
    assert (counts["active"], counts["hosts"], counts["mappings"]) == (0, 0, 0)
