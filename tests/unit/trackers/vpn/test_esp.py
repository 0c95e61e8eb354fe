"""ESP masquerade rule by rule, E-1 to E-33, and what evidence adds to them."""

from __future__ import annotations

import pytest

from fastmasq.path.verdict import DROP_CODE
from fastmasq.trackers.vpn.evidence import patience
from fastmasq.trackers.vpn.ipsec import Ipsec
from tests.support.tracker_network import (
    I1,
    I2,
    MINUTE,
    NEXT_M,
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
)

HOSTS = [0x0A000010 + number for number in range(8)]


def started(both: Ipsec, inside: int, spi: int, now: int = 0, remote: int = R) -> None:
    decision = both.esp_outbound(inside, M, remote, spi, 1, now)
    assert decision.to == (M,), decision


def established(both: Ipsec, inside: int, ospi: int, ispi: int, now: int = 0) -> None:
    started(both, inside, ospi, now)
    assert both.esp_inbound(R, M, ispi, 1, now).to == (inside,)


def lines(decision) -> list[str]:
    return [event.text for event in decision.events]


# --- outbound ----------------------------------------------------------------------------------------------------


def test_e1_zero_spi() -> None:
    decision = ipsec().esp_outbound(A, M, R, 0, 1, 0)
    assert decision.drop == "esp_zero_spi"
    assert lines(decision) == ["ip_fw_masq_esp(): zero SPI from 10.0.0.2 discarded"]


def test_e2_squelched_is_silent_and_ends_by_itself() -> None:
    both = ipsec()
    squelch(both)
    for second in range(1, 30):
        decision = both.esp_outbound(A, M, R, 0x1000, 9, second * SECOND)
        assert decision.drop == "esp_squelched" and not decision.events
    assert both.esp_outbound(A, M, R, 0x1000, 9, 30 * SECOND).to == (M,), "an initial packet again"


def squelch(both: Ipsec) -> None:
    """Let A start, B want the same remote, and A use up its turns."""
    started(both, A, 0x1000)
    assert both.esp_outbound(B, M, R, 0x2000, 1, 0).drop == "esp_blocked"
    for _ in range(both.settings.init_retries):
        assert both.esp_outbound(A, M, R, 0x1000, 2, 0).to == (M,)
    last = both.esp_outbound(A, M, R, 0x1000, 3, 0)
    assert last.drop == "esp_squelched"
    assert lines(last) == [
        f"init 10.0.0.2 -> 199.0.0.1 SPI 1000 no response after {both.settings.init_retries + 1} tries, "
        "unblocking & squelching"
    ]


def test_e3_established_lives_by_the_ipsec_lifetime() -> None:
    both = ipsec()
    established(both, A, 0x1000, 0x5000)
    assert both.esp_outbound(A, M, R, 0x1000, 2, 29 * MINUTE).row.state == "established"
    both.expire(59 * MINUTE - 1)
    assert len(both.esp.rows) == 1
    both.expire(59 * MINUTE)
    assert not both.esp.rows


def test_e4_outstanding_waits_as_long_as_nobody_else_wants_the_remote() -> None:
    both = ipsec()
    started(both, A, 0x1000)
    for number in range(1, 100):
        assert both.esp_outbound(A, M, R, 0x1000, number, number * 119 * SECOND).to == (M,)
    both.expire((99 * 119 + 120) * SECOND)
    assert not both.esp.rows


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_e5_blocking_has_a_limited_number_of_tries(retries: int) -> None:
    squelch(ipsec(init_retries=retries))


def test_e5_longest_block_is_twelve_minutes() -> None:
    """(5 + 1) x 2 min, if each try comes at the last moment."""
    both = ipsec()
    started(both, A, 0x1000)
    assert both.esp_outbound(B, M, R, 0x2000, 1, 0).drop
    now = 0
    for _ in range(5):
        now += 2 * MINUTE - 1
        assert both.esp_outbound(A, M, R, 0x1000, 2, now).to == (M,)
    assert both.esp_outbound(B, M, R, 0x2000, 2, now + 2 * MINUTE - 1).drop == "esp_blocked"
    assert both.esp_outbound(B, M, R, 0x2000, 2, now + 2 * MINUTE).to == (M,)
    assert now + 2 * MINUTE <= 12 * MINUTE


def test_e6_others_wait_and_it_is_said_for_whom() -> None:
    both = ipsec()
    started(both, A, 0x1000)
    other = both.esp_outbound(B, M, R, 0x2000, 1, 0)
    assert lines(other) == ["ip_fw_masq_esp(): init 10.0.0.3 -> 199.0.0.1 temporarily blocked by pending 10.0.0.2 init"]
    own = both.esp_outbound(A, M, R, 0x1001, 1, 0)
    assert lines(own) == [
        "ip_fw_masq_esp(): init 10.0.0.2 -> 199.0.0.1 SPI 1001 temporarily blocked by pending init w/ SPI 1000"
    ]
    assert both.esp_outbound(B, NEXT_M, R, 0x2000, 1, 0).drop == "esp_blocked", "whatever the address"
    assert set(both.esp.waiting) == {(B, R, 0x2000), (A, R, 0x1001)}


def test_e7_tries_count_from_the_first_collision() -> None:
    both = ipsec()
    started(both, A, 0x1000)
    for _ in range(50):
        assert both.esp_outbound(A, M, R, 0x1000, 2, 0).to == (M,)
    both.esp_outbound(B, M, R, 0x2000, 1, 0)
    results = [bool(both.esp_outbound(A, M, R, 0x1000, 2, 0).drop) for _ in range(6)]
    assert results == [False] * 5 + [True]


def test_e8_other_remotes_and_established_rows_are_not_concerned() -> None:
    both = ipsec()
    established(both, C, 0x3000, 0x7000)
    started(both, A, 0x1000)
    assert both.esp_outbound(B, M, R, 0x2000, 1, 0).drop
    assert both.esp_outbound(B, M, OTHER_R, 0x2000, 1, 0).to == (M,)
    assert both.esp_outbound(C, M, R, 0x3000, 2, 0).to == (M,)
    assert both.esp_inbound(R, M, 0x7000, 2, 0).to == (C,)


def test_e9_after_squelching_the_next_contender_has_its_turn() -> None:
    both = ipsec()
    squelch(both)
    started(both, B, 0x2000)
    assert both.esp_outbound(C, M, R, 0x3000, 1, 0).drop == "esp_blocked"


def test_e10_rows_follow_the_address() -> None:
    both = ipsec()
    established(both, A, 0x1000, 0x5000)
    decision = both.esp_outbound(A, NEXT_M, R, 0x1000, 2, 1)
    assert decision.to == (NEXT_M,)
    assert lines(decision) == ["change maddr from 200.200.200.200 to 200.200.200.201"]
    assert both.esp_inbound(R, NEXT_M, 0x5000, 2, 2).to == (A,)
    both.move(NEXT_M, M)
    assert both.esp_inbound(R, M, 0x5000, 3, 3).to == (A,)


def test_e11_refusals_have_names() -> None:
    full = ipsec(associations=0).esp_outbound(A, M, R, 0x1000, 1, 0)
    assert full.drop == "esp_full" and full.drop in DROP_CODE
    assert lines(full)[0].startswith("Couldn't create masq table entry.")
    both = ipsec(associations_per_host=1)
    established(both, A, 0x1000, 0x5000)
    assert both.esp_outbound(A, M, R, 0x1001, 1, 0).drop == "esp_host_limit"
    started(both, B, 0x2000)


# --- inbound -----------------------------------------------------------------------------------------------------


def test_e15_zero_spi() -> None:
    decision = ipsec().esp_inbound(R, M, 0, 1, 0)
    assert decision.drop == "esp_zero_spi"
    assert lines(decision) == ["ip_fw_demasq_esp(): zero SPI from 199.0.0.1 discarded"]


def test_e16_spi_one_is_a_number_like_others() -> None:
    both = ipsec()
    established(both, A, 0x1000, 1)


def test_e17_renews() -> None:
    both = ipsec()
    established(both, A, 0x1000, 0x5000)
    assert both.esp_inbound(R, M, 0x5000, 2, 29 * MINUTE).to == (A,)
    assert both.esp_inbound(R, M, 0x5000, 3, 58 * MINUTE).to == (A,)
    assert both.esp_inbound(OTHER_R, M, 0x5000, 3, 58 * MINUTE).local, "of another remote it is another number"


def test_e18_the_pending_start_gets_the_unknown_spi_and_the_next_may_go() -> None:
    both = ipsec()
    started(both, A, 0x1000)
    assert both.esp_outbound(B, M, R, 0x2000, 1, 0).drop
    decision = both.esp_inbound(R, M, 0x5000, 1, 1)
    assert decision.to == (A,)
    assert lines(decision)[0].startswith("resp from 199.0.0.1 SPI 5000 routed to 10.0.0.2 (SPI 1000")
    established(both, B, 0x2000, 0x6000, 2)


def test_e19_without_evidence_the_first_unknown_spi_counts_even_if_it_is_anothers() -> None:
    both = ipsec(evidence=False)
    negotiate(both, B, 0, I2)
    started(both, A, 0x1000, SECOND)
    assert both.esp_inbound(R, M, 0x6000, 1, SECOND + 1).to == (A,)


def test_e20_guesses_go_to_the_hosts_that_rekeyed_last() -> None:
    both = ipsec()
    for second, host in enumerate(HOSTS):
        both.isakmp_outbound(host, M, R, header(bytes((1, second + 1)) * 4), second * SECOND)
    decision = both.esp_inbound(R, M, 0x5000, 1, 10 * SECOND)
    assert decision.to == tuple(HOSTS[:2:-1]) and len(decision.to) == 5
    assert lines(decision) == ["guessing from 199.0.0.1 SPI 5000 sent to 5 hosts (5 cand)"]
    assert not both.esp.rows, "no entry is made"


def test_e20_one_candidate() -> None:
    both = ipsec()
    both.isakmp_outbound(A, M, R, header(I1), 0)
    decision = both.esp_inbound(R, M, 0x5000, 1, 0)
    assert decision.to == (A,) and lines(decision) == ["guessing from 199.0.0.1 SPI 5000 sent to 10.0.0.2 (1 cand)"]


def test_e21_without_guessing_or_candidates_it_is_left_to_the_host() -> None:
    both = ipsec(guess=False)
    both.isakmp_outbound(A, M, R, header(I1), 0)
    decision = both.esp_inbound(R, M, 0x5000, 1, 0)
    assert decision.local and lines(decision) == ["Inbound from 199.0.0.1 SPI 5000 has no masq table entry."]
    assert ipsec().esp_inbound(R, M, 0x5000, 1, 0).local


@pytest.mark.parametrize(("lifetime", "last"), [(30, 25), (15, 10)])
def test_e22_more_than_five_minutes_left(lifetime: int, last: int) -> None:
    both = ipsec(lifetime=lifetime * MINUTE)
    both.isakmp_outbound(A, M, R, header(I1), 0)
    assert both.esp_inbound(R, M, 0x5000, 1, last * MINUTE - 1).to == (A,)
    assert both.esp_inbound(R, M, 0x5000, 1, last * MINUTE).local


def test_e24_an_inside_server() -> None:
    both = ipsec()
    both.isakmp_inbound(R, M, header(I1), 0, redirect=C)
    both.isakmp_outbound(C, M, R, header(I1, I2), 1)
    assert both.esp_inbound(R, M, 0x5000, 1, 2).to == (C,), "guessed"
    started(both, C, 0x3000, 3)
    assert both.esp_inbound(R, M, 0x5000, 2, 4).row.ospi == 0x3000, "associated"


def test_e30_to_e33_parallel_off() -> None:
    both = ipsec(parallel=False)
    established(both, A, 0x1000, 0x5000)
    decision = both.esp_outbound(B, M, R, 0x2000, 1, 0)
    assert decision.drop == "parallel_disabled"
    assert lines(decision) == ["ESP 10.0.0.3 -> 199.0.0.1 blocked: parallel sessions disabled, 10.0.0.2 has one."]
    established(both, A, 0x1001, 0x5001)
    assert both.esp_outbound(B, M, R, 0x2000, 1, 31 * MINUTE).to == (M,)


def test_rekeying_is_a_new_start_and_the_old_rows_idle_out() -> None:
    both = ipsec()
    established(both, A, 0x1000, 0x5000)
    established(both, A, 0x1001, 0x5001, MINUTE)
    assert len(both.esp.rows) == 2
    both.expire(30 * MINUTE)
    assert [row.ospi for row in both.esp.rows.values()] == [0x1001]


def test_the_same_spi_of_two_hosts_is_reported_once() -> None:
    both = ipsec()
    established(both, A, 0x1000, 0x5000)
    both.esp_inbound(R, M, 0x5000, 100_000, 1)
    started(both, B, 0x2000, 2)
    assert not both.esp_inbound(R, M, 0x5000, 100_001, 3).events
    said = both.esp_inbound(R, M, 0x5000, 1, 4)
    assert said.to == (A,), "the first host keeps it"
    assert lines(said)[0].startswith("199.0.0.1 seems to use SPI 5000 for 10.0.0.2 and for 10.0.0.3")
    assert not both.esp_inbound(R, M, 0x5000, 2, 5).events


def test_the_path_may_go_on_alone_with_settled_rows_only() -> None:
    both = ipsec()
    assert both.esp_outbound(A, M, R, 0x1000, 1, 0).row is None
    assert both.esp_inbound(R, M, 0x5000, 1, 0).row is not None
    assert both.esp_outbound(A, M, R, 0x1000, 2, 0).row is not None


def test_what_the_path_saw_keeps_a_row() -> None:
    both = ipsec()
    established(both, A, 0x1000, 0x5000)
    number = next(iter(both.esp.rows))
    both.esp.saw(number, 20 * MINUTE, 25 * MINUTE, 777)
    both.expire(55 * MINUTE - 1)
    assert both.esp.rows[number].sequence == 777
    both.expire(55 * MINUTE)
    assert not both.esp.rows
    assert [row.state for row in both.esp.take_changes()] == ["closed"]


# --- evidence ----------------------------------------------------------------------------------------------------


def rekeyed_and_waiting(**values) -> tuple[Ipsec, int]:
    """Return the time, B with an SA that has just been rekeyed, and A with a start whose turn is over."""
    both = ipsec(**values)
    established(both, B, 0x2000, 0x6000)
    negotiate(both, A, SECOND, I1)
    at = negotiate(both, B, 2 * SECOND, I2)
    started(both, A, 0x1000, at)
    return both, at + SECOND


def test_the_remote_may_speak_first_after_rekeying() -> None:
    """What goes wrong in 1999: its first packet on B's new SA is taken for the answer to A."""
    both, now = rekeyed_and_waiting()
    decision = both.esp_inbound(R, M, 0x6001, 1, now)
    assert set(decision.to) == {A, B} and decision.row is None and decision.events[0].kind == "esp_disputed"
    old, now = rekeyed_and_waiting(evidence=False)
    assert old.esp_inbound(R, M, 0x6001, 1, now).to == (A,)


def signs(both: Ipsec, spi: int) -> dict[int, int]:
    return both.esp.disputes[R, M, spi].signs


def test_an_spi_that_comes_in_time_is_a_sign() -> None:
    both, now = rekeyed_and_waiting()
    both.esp_outbound(A, M, R, 0x1000, 2, now)
    assert both.esp_inbound(R, M, 0x5000, 1, now + SECOND // 10).to == (A, B), "the likeliest first"
    assert signs(both, 0x5000) == {A: 1}


def test_nothing_is_answered_before_a_round_trip_is_over() -> None:
    both, now = rekeyed_and_waiting()
    both.esp_outbound(A, M, R, 0x1000, 2, now)
    assert set(both.esp_inbound(R, M, 0x6001, 1, now + SECOND // 100).to) == {A, B}
    assert signs(both, 0x6001) == {}


def test_who_answers_at_once_thrice_owns_a_disputed_spi() -> None:
    both, now = rekeyed_and_waiting()
    for number in (1, 2, 3):
        assert set(both.esp_inbound(R, M, 0x6001, number, now).to) == {A, B}
        decision = both.esp_outbound(B, M, R, 0x2001, number, now + SECOND // 100)
        assert both.esp_outbound(B, M, R, 0x2001, number, now + SECOND // 50).to == (M,), "is one sign"
        assert (decision.row is not None) == (number == 3)
        now += 2 * SECOND
    assert (decision.row.ospi, decision.row.ispi) == (0x2001, 0x6001)
    assert both.esp_inbound(R, M, 0x6001, 4, now).to == (B,)


def answered(both: Ipsec, inside: int, ospi: int, ispi: int, now: int) -> None:
    """Let a host ask, and be answered in time, until the SPI is its own."""
    for number in (1, 2, 3):
        assert both.esp_outbound(inside, M, R, ospi, number, now + number * SECOND).to == (M,)
        decision = both.esp_inbound(R, M, ispi, number, now + number * SECOND + SECOND // 10)
        assert inside in decision.to
    assert decision.to == (inside,) and decision.events[0].kind == "esp_settled"


def test_an_spi_that_answers_in_time_thrice_is_settled() -> None:
    both, now = rekeyed_and_waiting()
    answered(both, A, 0x1000, 0x5000, now)


def test_one_conversation_of_tcp_settles_an_spi() -> None:
    """SYN, SYN and ACK, ACK and a request, and the first segment of the response: then the path goes on alone."""
    both, now = rekeyed_and_waiting()
    ms = SECOND // 1000
    assert both.esp_outbound(B, M, R, 0x2001, 1, now).to == (M,)
    assert set(both.esp_inbound(R, M, 0x6001, 1, now + 100 * ms).to) == {A, B}
    for number in (2, 3):
        assert both.esp_outbound(B, M, R, 0x2001, number, now + (99 + number) * ms).to == (M,)
    decision = both.esp_inbound(R, M, 0x6001, 2, now + 202 * ms)
    assert (decision.to, decision.row.ospi, decision.row.ispi) == ((B,), 0x2001, 0x6001)


def test_hosts_that_send_together_are_told_apart_by_what_one_does_alone() -> None:
    both, now = rekeyed_and_waiting()
    for number in range(1, 6):
        for host, spi in ((A, 0x1000), (B, 0x2001)):
            assert both.esp_outbound(host, M, R, spi, number, now + number * SECOND).to == (M,)
        assert set(both.esp_inbound(R, M, 0x5000, number, now + number * SECOND + SECOND // 10).to) == {A, B}
    answered(both, A, 0x1000, 0x5000, now + 9 * SECOND)


def test_who_sends_all_the_time_has_no_signs() -> None:
    both, now = rekeyed_and_waiting()
    for number in range(30):
        both.esp_outbound(B, M, R, 0x2001, number + 1, now + number * SECOND // 20)
        if number % 10 == 9:
            both.esp_inbound(R, M, 0x5000, number, now + number * SECOND // 20 + SECOND // 40)
    assert signs(both, 0x5000) == {}


def test_a_dispute_ends_with_the_likeliest_host() -> None:
    """After a number of packets, and after a time, though the negotiation is no longer recent.

    Without any sign it is the last to negotiate.
    """
    for pause in (SECOND // 1000, 31 * SECOND):
        both, now = rekeyed_and_waiting()
        copies, now = 0, now + SECOND
        while len((decision := both.esp_inbound(R, M, 0x6001, copies + 1, now)).to) == 2:
            copies, now = copies + 1, now + pause
        assert decision.to == (B,) and decision.row.ispi == 0x6001
        assert copies == (64 if pause < SECOND else 2)


def test_no_more_copies_than_the_settings_allow() -> None:
    both = ipsec(most_copies=3)
    for number, host in enumerate(HOSTS):
        negotiate(both, host, number, bytes((1, number + 1)) * 4)
    decision = both.esp_inbound(R, M, 0x5000, 1, SECOND)
    assert decision.to == tuple(HOSTS[:-4:-1]) and decision.events[0].count == len(HOSTS)
    started(both, HOSTS[0], 0x1000, 2 * SECOND)
    assert both.esp_inbound(R, M, 0x5000, 2, 2 * SECOND + SECOND // 10).to[0] == HOSTS[0], "a sign moves it up"


def test_the_last_host_left_in_a_dispute_owns_it() -> None:
    both, now = rekeyed_and_waiting()
    both.esp_inbound(R, M, 0x6001, 1, now)
    answered(both, A, 0x1000, 0x5000, now)
    assert both.esp_inbound(R, M, 0x6001, 2, now + 6 * SECOND).to == (B,)


def test_a_high_sequence_number_answers_no_start() -> None:
    both = ipsec()
    negotiate(both, B, 0, I2)
    negotiate(both, A, 0, I1)
    started(both, A, 0x1000, SECOND)
    decision = both.esp_inbound(R, M, 0x7000, 100_000, 2 * SECOND)
    assert len(decision.to) == 2 and decision.events[0].kind == "esp_guess_many"
    assert both.esp.by_outbound(A, R, 0x1000).state == "outstanding"


def test_inbound_first_is_completed_by_the_next_start_of_the_host() -> None:
    both = ipsec()
    established(both, B, 0x2000, 0x6000)
    at = negotiate(both, B, SECOND, I2)
    assert both.esp_inbound(R, M, 0x6001, 1, at).to == (B,)
    started(both, A, 0x1000, at)
    decision = both.esp_outbound(B, M, R, 0x2001, 1, at + 1)
    assert decision.to == (M,) and (decision.row.ospi, decision.row.ispi) == (0x2001, 0x6001)


def two_negotiated() -> Ipsec:
    """Return the tables after A and B have negotiated, with a round trip of 0.1 s."""
    both = ipsec()
    for host, cookie in ((A, I1), (B, I2)):
        negotiate(both, host, 0, cookie)
    return both


def test_starts_that_were_seen_being_negotiated_do_not_wait() -> None:
    """Each is settled by its own traffic, though both SPIs were unknown at the same time."""
    both = two_negotiated()
    started(both, A, 0x1000, SECOND)
    started(both, B, 0x2000, SECOND)
    assert set(both.esp_inbound(R, M, 0x6000, 1, SECOND + SECOND // 10).to) == {A, B}
    assert set(both.esp_inbound(R, M, 0x5000, 1, SECOND + SECOND // 9).to) == {A, B}
    answered(both, A, 0x1000, 0x5000, 2 * SECOND)
    assert both.esp_inbound(R, M, 0x6000, 2, 6 * SECOND).to == (B,)


def test_e6_starts_wait_among_those_whose_isakmp_was_not_seen() -> None:
    both = ipsec()
    started(both, A, 0x1000)
    at = negotiate(both, B, 0, I2)
    started(both, B, 0x2000, at)
    assert both.esp_outbound(C, M, R, 0x3000, 1, at).drop == "esp_blocked"
    for _ in range(20):
        assert both.esp_outbound(B, M, R, 0x2000, 2, at).to == (M,), "it blocks nobody"
    assert not both.esp.by_outbound(B, R, 0x2000).blocking and both.esp.by_outbound(A, R, 0x1000).blocking


def test_a_host_that_rekeyed_long_ago_need_not_wait_either() -> None:
    both = two_negotiated()
    started(both, A, 0x1000, 5 * MINUTE)
    started(both, B, 0x2000, 5 * MINUTE)


@pytest.mark.parametrize(("answers_ms", "least_ms", "most_ms"), [((100,), 450, 450), ((500, 200), 750, 1000)])
def test_the_time_of_an_answer_follows_the_answers(answers_ms: tuple[int, ...], least_ms: int, most_ms: int) -> None:
    """Before the first it is 0.7 s; shorter when all come soon, longer when they vary."""
    both = ipsec()
    now = negotiate(both, A, 0, I1)
    assert patience(both.exchanges, R) == 700_000_000
    for number in range(8):
        started(both, A, 0x1000 + number, now)
        taken = answers_ms[number % len(answers_ms)] * SECOND // 1000
        assert both.esp_inbound(R, M, 0x5000 + number, 1, now + taken).to == (A,)
        now = negotiate(both, A, now + SECOND, I1, message_id=number + 2)
    assert least_ms * 1_000_000 <= patience(both.exchanges, R) <= most_ms * 1_000_000


def test_disputes_and_waiters_end() -> None:
    both, now = rekeyed_and_waiting()
    both.esp_inbound(R, M, 0x6001, 1, now)
    started(both, C, 0x3000, now)
    assert both.esp_outbound(HOSTS[0], M, R, 0x4000, 1, now).drop == "esp_blocked"
    assert both.esp.disputes and both.esp.waiting
    both.expire(now + 31 * MINUTE)
    assert not both.esp.disputes and not both.esp.waiting and not both.esp.rows


def test_random_spis_of_a_forger_do_not_fill_the_table() -> None:
    both, now = rekeyed_and_waiting(disputes=4)
    for number in range(100):
        both.esp_inbound(R, M, 0x9000 + number, 1, now)
    assert len(both.esp.disputes) == 4 and len(both.esp.rows) == 2


def test_quick_mode_is_what_counts() -> None:
    """A phase 1 alone makes no SA."""
    both = ipsec()
    both.isakmp_outbound(A, M, R, header(I1, I2), 0)
    both.isakmp_inbound(R, M, header(I1, I2), 1)
    assert both.exchanges.negotiations(R, 1) == []
    both.isakmp_outbound(A, M, R, header(I1, I2, QUICK, 9), 2)
    both.isakmp_inbound(R, M, header(I1, I2, QUICK, 9), 3)
    assert len(both.exchanges.negotiations(R, 3)) == 1
