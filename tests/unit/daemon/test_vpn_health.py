"""What the running forwarder says by itself of VPNs that do not work: once, after a while, and not of those that do."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from fastmasq.daemon.vpn import LINES_PER_SECOND
from fastmasq.policy.forwards import Forward, Target
from fastmasq.policy.redirects import Redirect
from fastmasq.wire.pptp import Type
from tests.support.harness import address
from tests.support.packets import decode, tcp
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OTHER_HOST, OUTSIDE
from tests.support.vpn_gateway import (
    OTHER_REMOTE,
    REMOTE,
    RESPONDER,
    THIRD_HOST,
    Control,
    Gateway,
    esp,
    exchange,
    gre,
    isakmp,
    natt,
    started,
)

SYN = {"seq": 1000}
Saying = Callable[..., list[str]]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Saying:
    """Let a gateway live for some seconds; return what it has said of VPNs that lack something."""
    caplog.set_level(logging.WARNING, "fastmasq.vpn")

    def said(gateway: Gateway, seconds: int, meanwhile: Callable[[], object] = lambda: None) -> list[str]:
        before = len(caplog.records)
        for _ in range(seconds):
            meanwhile()
            gateway.second()
        lines = [record.getMessage() for record in caplog.records[before:]]
        return [line for line in lines if line.startswith(("PPTP ", "IPsec "))]

    return said


def shown(gateway: Gateway, kind: str) -> list[dict]:
    """Return what `fastmasq vpn` shows."""
    return gateway.vpn.listing.describe(gateway.harness.now_ns, {})[kind]


def syn(gateway: Gateway, port: int = 4000, remote: str = REMOTE) -> int:
    """Send a SYN to a PPTP server; return the port that it leaves from."""
    return decode(gateway.passes(INSIDE, tcp((HOST, port), (remote, 1723), "S", **SYN))).source_port


def refuse(gateway: Gateway, port: int) -> None:
    gateway.passes(OUTSIDE, tcp((REMOTE, 1723), (GATEWAY_OUT, port), "RA", seq=0, ack=SYN["seq"] + 1))


# -- PPTP --------------------------------------------------------------------------------------------------------------


def test_h_71_gre_that_goes_out_only_is_said_once_after_30_seconds(said: Saying) -> None:
    gateway = Gateway()
    Control(gateway, HOST).call(0x4000, 0x11)

    def send() -> bytes:
        return gateway.passes(INSIDE, gre(HOST, REMOTE, 0x11))

    assert said(gateway, 29, send) == []
    [line] = said(gateway, 120, send)
    assert line == (
        f"PPTP {HOST} - {REMOTE}: GRE goes out and none comes in: the server, or a router on the way, drops protocol 47"
    )


def test_h_71_and_again_only_after_it_has_worked(said: Saying) -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    control.call(0x4000, 0x11)
    assert len(said(gateway, 60, lambda: gateway.passes(INSIDE, gre(HOST, REMOTE, 0x11)))) == 1
    gateway.passes(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 0x4000))
    assert said(gateway, 20) == []
    control.say(INSIDE, Type.CALL_CLEAR_REQUEST, 0x4000)
    control.call(0x4001, 0x12)
    assert said(gateway, 29, lambda: gateway.passes(INSIDE, gre(HOST, REMOTE, 0x12))) == []
    assert len(said(gateway, 60, lambda: gateway.passes(INSIDE, gre(HOST, REMOTE, 0x12)))) == 1


def test_h_71_a_client_that_tries_again_and_again_is_one_occurrence(said: Saying) -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    lines = []
    for number in range(4):
        control.call(0x4000 + number, 0x11 + number)
        lines += said(gateway, 31, lambda n=number: gateway.passes(INSIDE, gre(HOST, REMOTE, 0x11 + n)))
        control.say(INSIDE, Type.CALL_CLEAR_REQUEST, 0x4000 + number)
        lines += said(gateway, 60)
    assert len(lines) == 1
    assert said(gateway, 700) == []
    control.call(0x5000, 0x20)
    assert len(said(gateway, 60)) == 1, "after ten minutes of silence it is another"


def test_h_72_a_call_that_is_given_up_early_is_said_all_the_same(said: Saying) -> None:
    """pppd waits for half a minute at most."""
    gateway = Gateway()
    control = Control(gateway, HOST)
    control.call(0x4000, 0x11)
    assert said(gateway, 15, lambda: gateway.passes(INSIDE, gre(HOST, REMOTE, 0x11))) == []
    control.say(INSIDE, Type.CALL_CLEAR_REQUEST, 0x4000)
    [line] = said(gateway, 60)
    assert "GRE goes out and none comes in" in line


def test_h_72_a_call_that_was_only_tried_is_not_said(said: Saying) -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    control.call(0x4000, 0x11)
    said(gateway, 5)
    control.say(INSIDE, Type.CALL_CLEAR_REQUEST, 0x4000)
    assert said(gateway, 60) == []


def test_h_66_gre_that_comes_in_only_points_at_the_default_route(said: Saying) -> None:
    gateway = Gateway()
    Control(gateway, HOST).call(0x4000, 0x11)
    [line] = said(gateway, 60, lambda: gateway.passes(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 0x4000)))
    assert line == (
        f"PPTP {HOST} - {REMOTE}: GRE comes in and none goes out: look at the inside host, its default route and its "
        "firewall"
    )


def test_h_64_a_server_that_does_not_answer(said: Saying) -> None:
    gateway = Gateway()
    syn(gateway)
    assert said(gateway, 29) == []
    [line] = said(gateway, 60)
    assert line.startswith(f"PPTP {HOST} - {REMOTE}: TCP port 1723 is not answered: the server's address is wrong")
    [row] = shown(gateway, "connections")
    assert line.endswith(row["missing"])


def test_h_64_a_server_that_refuses(said: Saying) -> None:
    gateway = Gateway()
    lines = []
    for number in range(3):
        refuse(gateway, syn(gateway, 4000 + number))
        lines += said(gateway, 40)
    [line] = lines
    assert line.startswith(f"PPTP {HOST} - {REMOTE}: TCP port 1723 is refused")
    Control(gateway, HOST, port=5000).segment(OUTSIDE, b"", "RA")
    assert said(gateway, 40) == [], "it was accepted before"
    gateway.second(700)
    syn(gateway, 6000)
    gateway.passes(INSIDE, tcp((HOST, 6000), (REMOTE, 1723), "R", seq=1001))
    assert said(gateway, 40) == [], "the client has given up by itself"


def test_h_61_a_connection_that_was_only_tried_is_not_said(said: Saying) -> None:
    """What `fastmasq test pptp` does: connect, and close."""
    gateway = Gateway()
    control = Control(gateway, HOST)
    control.segment(INSIDE, b"", "FA")
    control.segment(OUTSIDE, b"", "FA")
    assert said(gateway, 60) == []


def test_h_72_a_control_connection_without_a_call(said: Saying) -> None:
    gateway = Gateway()
    control = Control(gateway, HOST)
    [line] = said(gateway, 60)
    assert line.startswith(f"PPTP {HOST} - {REMOTE}: a control connection and no call")
    control.call(0x4000, 0x11)
    control.say(INSIDE, Type.CALL_CLEAR_REQUEST, 0x4000)
    assert said(gateway, 60) == [], "there has been one"


def test_h_65_connections_that_are_tried_for_ever(said: Saying) -> None:
    gateway = Gateway()
    lines = []
    for number in range(8):
        control = Control(gateway, HOST, port=4000 + number)
        control.segment(INSIDE, b"", "FA")
        control.segment(OUTSIDE, b"", "FA")
        lines += said(gateway, 20)
    [line] = lines
    assert line.startswith(f"PPTP {HOST} - {REMOTE}: 5 control connections within 5 minutes: the ends do not agree")
    Control(gateway, OTHER_HOST, port=5000)
    for number in range(8):
        control = Control(gateway, HOST, OTHER_REMOTE, port=6000 + number)
        control.segment(INSIDE, b"", "FA")
        control.segment(OUTSIDE, b"", "FA")
        assert said(gateway, 90) == [] or number == 0, "four in five minutes may be"


def test_h_64_who_knocks_at_a_server_inside_is_not_said(said: Saying) -> None:
    forward = Forward(protocol="tcp", listen=GATEWAY_OUT, first=1723, last=1723, targets=(Target(THIRD_HOST, 1723),))
    gateway = Gateway(forwards=(forward,))
    for number in range(6):
        Control(gateway, THIRD_HOST, OTHER_REMOTE, 5000 + number, serves=True)
    assert said(gateway, 60) == []


# -- IPsec -------------------------------------------------------------------------------------------------------------


def test_h_63_isakmp_that_is_not_answered(said: Saying) -> None:
    gateway = Gateway()
    gateway.passes(INSIDE, isakmp(HOST, REMOTE, b"one"))
    assert said(gateway, 29) == []
    [line] = said(gateway, 60)
    assert line == (
        f"IPsec {HOST} - {REMOTE}: ISAKMP is not answered: the server is not there, or something drops UDP port 500"
    )


def test_h_63_isakmp_without_esp(said: Saying) -> None:
    gateway = Gateway()
    exchange(gateway, HOST, b"one")
    assert said(gateway, 29) == []
    [line] = said(gateway, 60)
    assert line.startswith(f"IPsec {HOST} - {REMOTE}: ISAKMP and no ESP")


def test_h_63_isakmp_with_esp_or_moved_to_port_4500_is_not_said(said: Saying) -> None:
    gateway = Gateway()
    exchange(gateway, HOST, b"one")
    started(gateway, HOST, 0x1000, 0x2000)
    exchange(gateway, OTHER_HOST, b"two")
    natt(gateway, OTHER_HOST)
    assert said(gateway, 28 * 60) == []
    gateway.passes(INSIDE, isakmp(HOST, REMOTE, b"one", RESPONDER))
    gateway.passes(INSIDE, isakmp(OTHER_HOST, REMOTE, b"two", RESPONDER))
    assert said(gateway, 10 * 60) == [], "idle SAs and sessions are gone before their exchanges"
    assert shown(gateway, "sas") == []
    assert [row["missing"] for row in shown(gateway, "exchanges")] == ["", ""], "nor is it listed as lacking"


def test_h_63_nat_traversal_that_is_not_answered(said: Saying) -> None:
    gateway = Gateway()
    exchange(gateway, HOST, b"one")
    for _ in range(3):
        natt(gateway)
    [line] = said(gateway, 60)
    assert line.startswith(f"IPsec {HOST} - {REMOTE}: UDP port 4500 goes out and nothing comes in")


def test_h_71_esp_that_goes_out_only(said: Saying) -> None:
    gateway = Gateway()
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))
    [line] = said(gateway, 60)
    assert line == (
        f"IPsec {HOST} - {REMOTE}: ESP goes out and none comes in: the server, or a router on the way, drops "
        "protocol 50"
    )


def test_h_71_a_new_sa_beside_one_that_works_is_not_said(said: Saying) -> None:
    gateway = Gateway()
    started(gateway, HOST, 0x1000, 0x2000)
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1001))

    def both_ways() -> None:
        gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000, 2))
        gateway.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x2000, 2))

    assert said(gateway, 100, both_ways) == []
    new = said(gateway, 100, lambda: gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1001, 2)))
    assert len(new) == 1, "what worked has not been used for a minute"


def test_h_63_who_knocks_at_a_server_inside_is_not_said(said: Saying) -> None:
    forward = Forward(protocol="udp", listen=GATEWAY_OUT, first=500, last=500, targets=(Target(THIRD_HOST, 500),))
    redirects = (Redirect(protocol=47, host=THIRD_HOST), Redirect(protocol=50, host=THIRD_HOST))
    gateway = Gateway(forwards=(forward,), redirects=redirects)
    gateway.passes(OUTSIDE, isakmp(REMOTE, GATEWAY_OUT, b"one"))
    gateway.passes(INSIDE, isakmp(THIRD_HOST, REMOTE, b"one", RESPONDER))
    gateway.passes(OUTSIDE, esp(OTHER_REMOTE, GATEWAY_OUT, 0x5000))
    gateway.passes(OUTSIDE, gre(OTHER_REMOTE, GATEWAY_OUT, 5))
    assert said(gateway, 60) == []
    assert all(row["missing"] for kind in ("exchanges", "sas", "calls") for row in shown(gateway, kind))


def test_h_71_an_answer_that_is_on_its_way_is_not_missed(said: Saying) -> None:
    """An SA that was preloaded long ago, and whose first packet leaves just before a look."""
    gateway = Gateway()
    ends = [address(each) for each in (HOST, GATEWAY_OUT, REMOTE)]
    row = gateway.vpn.ipsec.esp.add(*ends, gateway.harness.now_ns)
    row.ospi, row.ispi, row.state, row.preloaded = 0x1000, 0x2000, "established", True
    gateway.second(300)
    gateway.harness.advance(11)
    row.last_out = gateway.harness.now_ns
    assert said(gateway, 1) == []
    row.last_in = gateway.harness.now_ns
    assert said(gateway, 60) == []


def test_h_86_a_rekey_that_finds_its_entry_timed_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway()
    exchange(gateway, HOST, b"one")
    gateway.second(31 * 60)
    assert gateway.dropped(OUTSIDE, isakmp(REMOTE, GATEWAY_OUT, b"one", RESPONDER)) == "isakmp_no_row"
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line == (
        f"ISAKMP from {REMOTE} finds the masq table entry of {HOST} timed out: if its VPN dies periodically, raise "
        "[vpn] ipsec_lifetime above the rekey interval."
    )


# -- how much ----------------------------------------------------------------------------------------------------------


def test_lines_are_limited_and_none_is_lost(said: Saying) -> None:
    gateway = Gateway()
    remotes = [f"199.0.1.{number}" for number in range(1, LINES_PER_SECOND + 11)]
    for remote in remotes:
        gateway.passes(INSIDE, esp(HOST, remote, 0x1000))
    first = said(gateway, 39)
    assert len(first) == LINES_PER_SECOND
    rest = said(gateway, 20)
    assert {line.split(" - ")[1].split(":")[0] for line in first + rest} == set(remotes)
    assert len(rest) == 10


def test_the_session_table_is_read_only_if_need_be(said: Saying, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    monkeypatch.setattr("fastmasq.daemon.natt.sessions", lambda *_: pytest.fail("the table was read"))
    exchange(gateway, HOST, b"one")
    started(gateway, HOST, 0x1000, 0x2000)
    gateway.passes(INSIDE, isakmp(OTHER_HOST, REMOTE, b"two"))
    assert len(said(gateway, 60)) == 1
