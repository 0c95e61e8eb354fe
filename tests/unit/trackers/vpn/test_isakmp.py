"""ISAKMP by cookies: K-1 to K-11, E-32, and what ESP learns from it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmasq.path.verdict import DROP_CODE
from fastmasq.trackers.vpn.isakmp import SHORTEST_LIFETIME, IpsecSettings
from fastmasq.trackers.vpn.preload import Announcement, add, flush
from fastmasq.wire.tunnels import NO_COOKIE, Isakmp, read_isakmp
from tests.support.tracker_network import (
    ANSWER,
    I1,
    I2,
    MINUTE,
    NEXT_M,
    OTHER_ANSWER,
    OTHER_R,
    QUICK,
    SECOND,
    A,
    B,
    C,
    M,
    R,
    header,
    ipsec,
    negotiate,
)  # fmt: skip


def test_k2_to_k4_cookies_tell_hosts_apart() -> None:
    both = ipsec()
    assert both.isakmp_outbound(A, M, R, header(I1), 0).to == (M,)
    assert both.isakmp_outbound(B, M, R, header(I2), 0).to == (M,)
    assert both.isakmp_inbound(R, M, header(I2, OTHER_ANSWER), 0).to == (B,)
    assert both.isakmp_inbound(R, M, header(I1, ANSWER), 0).to == (A,)


def test_k3_several_exchanges_of_one_pair_are_normal() -> None:
    both = ipsec()
    for cookie in (I1, I2):
        both.isakmp_outbound(A, M, R, header(cookie), 0)
    assert len(both.exchanges.exchanges) == 2


def test_k4_the_whole_cookie_and_the_remote_count() -> None:
    """The 2.0 kernels compared 32 bits and no remote."""
    both = ipsec(remote_phase1=False)
    both.isakmp_outbound(A, M, R, header(b"same" + b"1111"), 0)
    both.isakmp_outbound(B, M, R, header(b"same" + b"2222"), 0)
    assert both.isakmp_inbound(R, M, header(b"same" + b"1111", ANSWER), 0).to == (A,)
    assert both.isakmp_inbound(OTHER_R, M, header(b"same" + b"1111", ANSWER), 0).local


def test_k5_zero_cookies_are_said_and_go_to_the_last_active_host() -> None:
    both = ipsec()
    out = both.isakmp_outbound(A, M, R, header(NO_COOKIE), 0)
    assert out.to == (M,)
    assert [event.text for event in out.events] == ["ip_masq_out_get_isakmp(): zero cookie from 10.0.0.2"]
    assert both.isakmp_outbound(B, M, R, header(NO_COOKIE), SECOND).to == (M,), "no collision of nothing"
    back = both.isakmp_inbound(R, M, header(NO_COOKIE, ANSWER), 2 * SECOND)
    assert back.to == (B,)
    assert both.isakmp_inbound(OTHER_R, M, header(NO_COOKIE), 0).events[0].text == (
        "ip_masq_in_get_isakmp(): zero cookie from 199.0.0.2"
    )


def test_k5_the_line_is_limited() -> None:
    both = ipsec()
    said = [len(both.isakmp_outbound(A, M, R, header(NO_COOKIE), second * SECOND).events) for second in range(130)]
    assert sum(said) == 3


@pytest.mark.parametrize("outbound", [True, False])
def test_k6_every_packet_either_way_renews(outbound: bool) -> None:
    both = ipsec()
    both.isakmp_outbound(A, M, R, header(I1), 0)
    later = 29 * MINUTE
    if outbound:
        both.isakmp_outbound(A, M, R, header(I1), later)
    else:
        both.isakmp_inbound(R, M, header(I1, ANSWER), later)
    both.expire(later + 30 * MINUTE - 1)
    assert len(both.exchanges.exchanges) == 1
    both.expire(later + 30 * MINUTE)
    assert not both.exchanges.exchanges


def test_a_lifetime_under_fifteen_minutes_is_fifteen() -> None:
    assert IpsecSettings(lifetime=MINUTE).lifetime == SHORTEST_LIFETIME == 15 * MINUTE
    assert IpsecSettings(lifetime=16 * MINUTE).lifetime == 16 * MINUTE


def test_k7_k8_a_colliding_new_exchange_waits_until_the_responder_is_known() -> None:
    both = ipsec()
    both.isakmp_outbound(A, M, R, header(I1), 0)
    refused = both.isakmp_outbound(B, M, R, header(I1), 1)
    assert refused.drop == "isakmp_collision" and refused.events[0].other == A
    assert both.isakmp_outbound(B, M, OTHER_R, header(I1), 1).to == (M,), "another remote is no collision"
    assert both.isakmp_outbound(A, M, R, header(I1), 2).to == (M,), "the first repeats itself"
    assert both.isakmp_inbound(R, M, header(I1, ANSWER), 3).to == (A,)
    assert both.isakmp_outbound(B, M, R, header(I1), 4).to == (M,)
    assert both.isakmp_inbound(R, M, header(I1, OTHER_ANSWER), 5).to == (B,)
    assert both.isakmp_inbound(R, M, header(I1, ANSWER), 6).to == (A,)
    assert both.isakmp_outbound(B, M, R, header(I1, OTHER_ANSWER), 7).row.inside == B


def test_k9_a_remote_initiator_needs_a_redirect() -> None:
    both = ipsec()
    decision = both.isakmp_inbound(R, M, header(I1), 0)
    assert decision.local and decision.events[0].kind == "isakmp_unknown"
    assert both.isakmp_inbound(R, M, header(I1), 1, redirect=C).to == (C,)
    assert both.isakmp_outbound(C, M, R, header(I1, ANSWER), 2).to == (M,)
    assert both.isakmp_inbound(R, M, header(I1, ANSWER), 3).to == (C,)
    assert len(both.exchanges.exchanges) == 1


def test_k10_rekeying_inside_phase_1_and_a_new_phase_1_of_the_remote() -> None:
    both = ipsec()
    both.isakmp_outbound(A, M, R, header(I1), 0)
    both.isakmp_inbound(R, M, header(I1, ANSWER), 1)
    assert both.isakmp_inbound(R, M, header(I1, ANSWER, QUICK, 7), 2).to == (A,)
    guessed = both.isakmp_inbound(R, M, header(I2), 3)
    assert guessed.to == (A,) and guessed.events[0].kind == "isakmp_guessed"
    assert both.isakmp_outbound(A, M, R, header(I2, OTHER_ANSWER), 4).row.responder == OTHER_ANSWER
    assert both.isakmp_inbound(R, M, header(I2, OTHER_ANSWER), 5).to == (A,)


def test_k10_the_last_active_host_and_only_if_wanted() -> None:
    both, strict = ipsec(), ipsec(remote_phase1=False)
    for one in (both, strict):
        one.isakmp_outbound(A, M, R, header(I1), 0)
        one.isakmp_outbound(B, M, R, header(I2), SECOND)
    assert both.isakmp_inbound(R, M, header(b"unknown!"), 2 * SECOND).to == (B,)
    assert strict.isakmp_inbound(R, M, header(b"unknown!"), 2 * SECOND).local


def test_k11_pending_esp_never_delays_isakmp() -> None:
    both = ipsec()
    both.esp_outbound(A, M, R, 0x1000, 1, 0)
    assert both.esp_outbound(B, M, R, 0x2000, 1, 0).drop == "esp_blocked"
    assert both.isakmp_outbound(B, M, R, header(I2), 0).to == (M,)


def test_e32_parallel_off_keeps_a_remote_for_one_host() -> None:
    both = ipsec(parallel=False)
    both.isakmp_outbound(A, M, R, header(I1), 0)
    refused = both.isakmp_outbound(B, M, R, header(I2), 1)
    assert refused.drop == "parallel_disabled"
    assert refused.events[0].text == (
        "ISAKMP 10.0.0.3 -> 199.0.0.1 blocked: parallel sessions disabled, 10.0.0.2 has one."
    )
    assert both.esp_outbound(B, M, R, 0x2000, 1, 2).drop == "parallel_disabled"
    assert both.isakmp_outbound(B, M, OTHER_R, header(I2), 2).to == (M,)
    assert both.isakmp_outbound(A, M, R, header(I2), 3).to == (M,), "E-33: its own host is not concerned"
    assert both.isakmp_outbound(B, M, R, header(I2), 31 * MINUTE).to == (M,), "E-31: after the entries have expired"


def test_refusals_have_names() -> None:
    assert ipsec(exchanges=0).isakmp_outbound(A, M, R, header(I1), 0).drop == "isakmp_full"
    both = ipsec(exchanges_per_host=1)
    both.isakmp_outbound(A, M, R, header(I1), 0)
    refused = both.isakmp_outbound(A, M, R, header(I2), 0)
    assert refused.drop == "isakmp_host_limit" and refused.drop in DROP_CODE
    assert both.isakmp_outbound(B, M, R, header(I2), 0).to == (M,)


def test_rows_follow_the_address() -> None:
    both = ipsec()
    both.isakmp_outbound(A, M, R, header(I1), 0)
    both.move(M, NEXT_M)
    assert both.isakmp_inbound(R, NEXT_M, header(I1, ANSWER), 1).to == (A,)


# --- what ESP learns -------------------------------------------------------------------------------------------------


def test_a_quick_mode_is_a_negotiation_once_both_have_spoken() -> None:
    both = ipsec()
    both.isakmp_outbound(A, M, R, header(I1, ANSWER, QUICK, 5), 0)
    assert both.exchanges.negotiations(R, 0) == []
    both.isakmp_inbound(R, M, header(I1, ANSWER, QUICK, 5), SECOND)
    both.isakmp_outbound(A, M, R, header(I1, ANSWER, QUICK, 5), SECOND)
    assert [(one.inside, one.since) for one in both.exchanges.negotiations(R, SECOND)] == [(A, SECOND)]
    both.exchanges.claim(A, R, SECOND)
    assert both.exchanges.negotiations(R, SECOND) == []


def test_ikev2_counts_requests_of_each_side_for_itself() -> None:
    """RFC 7296 section 2.2: both sides may have a request with the same id under way."""
    both = ipsec()
    request, answer = (Isakmp(I1, ANSWER, 0x20, 36, flags, 2, 80) for flags in (0x08, 0x20))
    both.isakmp_outbound(A, M, R, request, 0)
    both.isakmp_inbound(R, M, request, 1)
    assert both.exchanges.negotiations(R, 1) == []
    both.isakmp_inbound(R, M, answer, 2)
    both.isakmp_outbound(A, M, R, answer, 3)
    assert len(both.exchanges.negotiations(R, 3)) == 2


def test_a_negotiation_nobody_uses_stops_counting() -> None:
    both = ipsec()
    at = negotiate(both, A, 0, I1)
    assert both.exchanges.negotiations(R, at + both.settings.negotiation_window - 1)
    assert not both.exchanges.negotiations(R, at + both.settings.negotiation_window)


def test_the_fastest_of_the_last_eight_answers_counts() -> None:
    """So that a path that has become slower is followed, and one late answer is not."""
    both = ipsec()
    times, least = (300, 200, *[250] * 7, 400), []
    for start, rtt in enumerate(times):
        both.isakmp_outbound(A, M, R, header(I1), start * SECOND)
        both.isakmp_inbound(R, M, header(I1, ANSWER), start * SECOND + rtt * 1_000_000)
        least.append(both.exchanges.rtt(R) // 1_000_000)
    assert least == [300, *[200] * 8, 250]


def test_a_message_that_has_no_answer_is_not_timed() -> None:
    """The third of a quick mode; what comes next may be the remote's own, minutes later."""
    both = ipsec()
    at = negotiate(both, A, 0, I1, rtt=SECOND // 10)
    for now, message_id in ((at + 10 * MINUTE, 7), (at + 20 * MINUTE, 8)):
        both.isakmp_inbound(R, M, header(I1, I1[::-1], QUICK, message_id), now)
        negotiate(both, A, now + SECOND, I1, rtt=SECOND // 5, message_id=message_id + 10)
    assert both.exchanges._times[R] == [SECOND // 10, SECOND // 5, SECOND // 5]


# --- fuzz ---------------------------------------------------------------------------------------------------------

cookies = st.sampled_from([NO_COOKIE, I1, I2, ANSWER, OTHER_ANSWER])
packets = st.tuples(
    st.booleans(), st.sampled_from([A, B, C]), st.sampled_from([R, OTHER_R]),
    st.builds(
        lambda initiator, responder, rest: initiator + responder + rest,
        cookies, cookies, st.binary(min_size=12, max_size=60),
    ),
    st.integers(0, 10 * MINUTE),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(packets, max_size=40))
def test_any_headers_in_any_order(sequence: list[tuple[bool, int, int, bytes, int]]) -> None:
    """Nothing raises; sizes hold; a packet from outside goes to hosts that talked to that remote, or to the gateway."""
    both = ipsec(exchanges=6, exchanges_per_host=3)
    now, spoke = 0, set()
    for outbound, inside, remote, octets, pause in sequence:
        now += pause
        read = read_isakmp(octets)
        if outbound:
            decision = both.isakmp_outbound(inside, M, remote, read, now)
            assert decision.drop or decision.to == (M,)
            spoke.add((inside, remote))
        else:
            decision = both.isakmp_inbound(remote, M, read, now)
            assert all((host, remote) in spoke for host in decision.to)
        assert not decision.drop or decision.drop in DROP_CODE
        assert all(event.text for event in decision.events)
        assert len(both.exchanges.exchanges) <= 6
    both.expire(now + 31 * MINUTE)
    assert not both.exchanges.exchanges and both.exchanges.rtt(R) is both.exchanges.rtt(OTHER_R) is None


def test_h_86_a_rekey_after_the_entry_has_timed_out_is_said_once() -> None:
    both = ipsec(remote_phase1=True, lifetime=30 * MINUTE)
    both.isakmp_outbound(A, M, R, header(I1), 0)
    both.isakmp_inbound(R, M, header(I1, ANSWER), 0)
    both.isakmp_outbound(B, M, OTHER_R, header(I2), 0)
    late = [both.isakmp_inbound(R, M, header(I1, ANSWER), 31 * MINUTE) for _ in range(2)]
    assert [[event.kind for event in decision.events] for decision in late] == [
        ["isakmp_unknown", "isakmp_forgotten"], ["isakmp_unknown"],
    ]  # fmt: skip
    hint = late[0].events[1]
    assert (hint.level, hint.inside, hint.remote) == ("warning", A, R)
    assert "raise [vpn] ipsec_lifetime above the rekey interval" in hint.text
    never_answered = both.isakmp_inbound(OTHER_R, M, header(NO_COOKIE), 31 * MINUTE)
    assert [event.kind for event in never_answered.events] == ["isakmp_zero_cookie_in"]


def test_h_86_zero_cookies_from_a_remote_whose_entry_has_timed_out() -> None:
    both = ipsec()
    for _ in range(2):
        both.isakmp_outbound(A, M, R, header(I1), 0)
        both.isakmp_inbound(R, M, header(I1, ANSWER), 0)
    decision = both.isakmp_inbound(R, M, header(NO_COOKIE), 31 * MINUTE)
    assert [event.kind for event in decision.events] == ["isakmp_zero_cookie_in", "isakmp_forgotten"]


def test_h_86_a_host_that_has_begun_anew_is_not_said_to_be_forgotten() -> None:
    both = ipsec(remote_phase1=False)
    both.isakmp_outbound(A, M, R, header(I1), 0)
    both.isakmp_inbound(R, M, header(I1, ANSWER), 0)
    both.isakmp_outbound(A, M, R, header(I2), 31 * MINUTE)
    decision = both.isakmp_inbound(R, M, header(I1, ANSWER), 32 * MINUTE)
    assert [event.kind for event in decision.events] == ["isakmp_unknown"]


def test_h_86_esp_in_use_keeps_the_entry_that_its_rekeying_needs() -> None:
    """K-6 alone lets it time out under traffic, and the remote's quick mode then finds nobody."""
    both = ipsec()
    both.isakmp_outbound(A, M, R, header(I1), 0)
    both.isakmp_inbound(R, M, header(I1, ANSWER), 0)
    both.isakmp_outbound(A, M, R, header(I2), SECOND)
    both.isakmp_inbound(R, M, header(I2, OTHER_ANSWER), SECOND)
    both.esp_outbound(A, M, R, 0x1000, 1, 2 * SECOND)
    for minute in range(0, 120, 10):
        assert both.esp_inbound(R, M, 0x5000, 1, minute * MINUTE + 3 * SECOND).to == (A,)
    now = 125 * MINUTE
    assert both.isakmp_inbound(R, M, header(I2, OTHER_ANSWER, QUICK, 7), now).row.initiator == I2
    assert [row.initiator for row in both.exchanges.exchanges.values()] == [I2], "the last, not all that ever were"
    assert both.isakmp_inbound(R, M, header(NO_COOKIE), now).to == (A,), "K-5"
    both.expire(now + 30 * MINUTE + 1)
    assert not both.exchanges.exchanges, "ESP was idle for as long"


def test_h_86_a_new_phase_1_of_the_remote_finds_the_host_that_uses_esp() -> None:
    """K-10: for the remote that lets its own phase 1 run out and begins another."""
    both = ipsec()
    both.isakmp_outbound(A, M, R, header(I1), 0)
    both.isakmp_inbound(R, M, header(I1, ANSWER), 0)
    both.esp_outbound(A, M, R, 0x1000, 1, SECOND)
    for minute in (0, 20, 40):
        assert both.esp_inbound(R, M, 0x5000, 1, minute * MINUTE + 3 * SECOND).to == (A,)
    assert both.isakmp_inbound(R, M, header(OTHER_ANSWER), 50 * MINUTE).to == (A,)


def test_h_86_an_sa_kept_for_ever_does_not_keep_the_entry_of_a_host_without_it() -> None:
    both = ipsec()
    both.isakmp_outbound(A, M, R, header(I1), 0)
    add(both.esp, Announcement(inside=A, remote=R, masq=M, inbound_spi=0x5000, lifetime=-1), 0, None)
    both.expire(100 * MINUTE)
    assert len(both.exchanges.exchanges) == 1
    flush(both.esp, None)
    both.expire(131 * MINUTE)
    assert not both.exchanges.exchanges
