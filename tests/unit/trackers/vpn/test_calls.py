"""The table of PPTP calls: ids, GRE both ways, fallbacks, timers and limits."""

from __future__ import annotations

import pytest

from fastmasq.trackers.vpn.calls import Call, CallSettings, CallTable

SECOND = 1_000_000_000
A, B, SERVER_HOST = 0x0A000002, 0x0A000003, 0x0A000004
M, M2, R, R2 = 0xC8C8C8C8, 0xC8C8C8C9, 0xC7000001, 0xC7000002
TO_A, TO_B, TO_SERVER = 1, 2, 3  # control connections


def table(**settings) -> CallTable:
    made = CallTable(CallSettings(**settings))
    made.attach(TO_A, A, M, R)
    made.attach(TO_B, B, M, R)
    return made


def opened(calls: CallTable, control: int, local_id: int, now: int = 0, peer: int | None = None) -> Call:
    call = calls.open(control, local_id, now)
    assert isinstance(call, Call), call
    if peer is not None:
        calls.learn(call, peer)
        calls.establish(call)
    return call


# --- ids ---------------------------------------------------------------------------------------------------------


def test_p40_the_own_id_is_kept_if_free_else_the_next_from_61000() -> None:
    calls = table()
    assert opened(calls, TO_A, 0x0400).external_id == 0x0400
    assert opened(calls, TO_B, 0x0400).external_id == 61000 == 0xEE48
    assert opened(calls, TO_B, 0x0401).external_id == 0x0401
    assert opened(calls, TO_A, 0x0401).external_id == 61001


def test_p40_unique_by_masquerade_address_remote_and_id_only() -> None:
    calls = table()
    calls.attach(TO_SERVER, B, M, R2)
    calls.attach(9, B, M2, R)
    assert {opened(calls, control, 7).external_id for control in (TO_A, TO_SERVER, 9)} == {7}


def test_p40_any_id_when_the_classic_range_is_full() -> None:
    calls = table(first_id=100, last_id=101)
    for control in range(10, 15):
        calls.attach(control, B, M, R)
    assert [opened(calls, control, 7).external_id for control in (10, 11, 12, 13, 14)] == [7, 100, 101, 1, 2]


def test_p41_opening_again_gives_the_same_id() -> None:
    calls = table()
    opened(calls, TO_A, 5)
    first = opened(calls, TO_B, 5)
    assert opened(calls, TO_B, 5) is first
    assert len(calls.calls) == 2


def test_an_id_that_is_used_again_on_the_same_connection_is_a_new_call() -> None:
    calls = table()
    call = opened(calls, TO_A, 5, peer=9)
    calls.retire(call, 0, "cleared")
    again = opened(calls, TO_A, 5, now=SECOND)
    assert again is call and again.state == "asked" and again.remote_id is None
    calls.expire(60 * SECOND)
    assert calls.by_local_id(TO_A, 5) is again


def test_a_reconnecting_host_gets_its_id_back() -> None:
    calls = table()
    opened(calls, TO_A, 5)
    calls.detach(TO_A, 0, ended=True)
    calls.attach(4, A, M, R)
    assert opened(calls, 4, 5).external_id == 5
    assert opened(calls, TO_B, 5).external_id == 61000


def test_a_chosen_upper_octet_is_kept() -> None:
    calls = table()
    opened(calls, TO_A, 0x1234)
    assert calls.open(TO_B, 0x1234, 0, high=0x12).external_id >> 8 == 0x12
    assert calls.open(TO_B, 0x1234, 0, high=0x13) == "no_call_id"


# --- GRE ---------------------------------------------------------------------------------------------------------


def test_p44_inbound_by_remote_address_and_id() -> None:
    calls = table()
    opened(calls, TO_A, 0x400, peer=0x11)
    second = opened(calls, TO_B, 0x400, peer=0x12)
    decision = calls.inbound(R, M, 0xEE48, 5)
    assert (decision.to, decision.id, decision.row) == ((B,), 0x400, second)
    assert calls.inbound(R, M, 0x400, 5).to == (A,)
    assert second.seen_in == 5


def test_p44_outbound_by_peer_id_else_any_row_of_the_pair() -> None:
    calls = table()
    first = opened(calls, TO_A, 1, peer=0x11)
    second = opened(calls, TO_A, 2, peer=0x12)
    assert calls.outbound(A, M, R, 0x11, 3).row is first
    assert first.seen_out == 3 and second.seen_out == 0
    decision = calls.outbound(A, M, R, 0x77, 4)
    assert decision.to == (M,) and decision.id is None and decision.row is None
    assert first.seen_out == 4, "the row used last"


def test_p45_another_source_is_refused_unless_loose() -> None:
    calls = table()
    opened(calls, TO_A, 7, peer=1)
    decision = calls.inbound(R2, M, 7, 0)
    assert decision.drop == "gre_wrong_source" and decision.events[0].other == R
    loose = table(loose_source=True)
    opened(loose, TO_A, 7, peer=1)
    assert loose.inbound(R2, M, 7, 0).to == (A,)


def test_p46_a_redirect_makes_a_passthrough_row() -> None:
    calls = CallTable()
    decision = calls.inbound(R, M, 77, 0, redirect=SERVER_HOST)
    assert decision.to == (SERVER_HOST,) and decision.id is None and decision.row.state == "passthrough"
    assert calls.inbound(R, M, 78, 1).to == (SERVER_HOST,), "any id"
    assert calls.outbound(SERVER_HOST, M, R, 5, 2).to == (M,)


def test_p46_the_only_host_with_a_control_connection() -> None:
    calls = CallTable()
    calls.attach(TO_A, A, M, R)
    assert calls.inbound(R, M, 77, 0).to == (A,)


def test_p46_nobody_or_several_leave_it_to_the_host() -> None:
    decision = table().inbound(R, M, 77, 0)
    assert decision.local
    assert decision.events[0].text == (
        "ip_fw_demasq_gre(): Inbound from 199.0.0.1 has no masq table entry (Call ID 4D)."
    )
    assert CallTable().inbound(R, M, 77, 0).local


def test_p46_outbound_without_a_row_unless_another_host_has_the_remote() -> None:
    calls = CallTable()
    assert calls.outbound(A, M, R, 5, 0).to == (M,)
    decision = calls.outbound(B, M, R, 5, 0)
    assert decision.drop == "gre_other_host"
    assert "Outbound GRE to 199.0.0.1 has no masq table entry" in decision.events[0].text
    assert calls.outbound(B, M, R2, 5, 0).to == (M,), "other remotes are not concerned"
    calls.expire(900 * SECOND)
    assert calls.outbound(B, M, R, 5, 900 * SECOND).to == (M,), "once the first has been idle for long enough"


# --- time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data_at", "ends_at"), [(None, 120), (100, 1000), (1, 901)])
def test_p47_without_control_two_minutes_then_fifteen(data_at: int | None, ends_at: int) -> None:
    calls = table()
    call = opened(calls, TO_A, 5, peer=9)
    if data_at is not None:
        calls.saw(call.number, data_at * SECOND, 0)
    calls.detach(TO_A, 0, ended=False)
    calls.expire(ends_at * SECOND - 1)
    assert call.state == "established"
    events = calls.expire(ends_at * SECOND)
    assert call.state == "closed" and [event.kind for event in events] == ["call_ended"]


def test_p47_never_shorter_than_the_control_connection() -> None:
    calls = table()
    call = opened(calls, TO_A, 5, peer=9)
    calls.inbound(R, M, 5, SECOND)
    calls.expire(10_000 * SECOND)
    assert call.state == "established"


def test_p47_thirty_seconds_after_the_end() -> None:
    calls = table()
    call = opened(calls, TO_A, 5, peer=9)
    other = opened(calls, TO_A, 6, peer=10)
    calls.retire(call, 0, "cleared")
    calls.saw(call.number, 20 * SECOND, 20 * SECOND)
    calls.expire(30 * SECOND - 1)
    assert calls.inbound(R, M, 5, 30 * SECOND - 1).to == (A,), "what is still on its way arrives"
    calls.expire(30 * SECOND)
    assert (call.state, other.state) == ("closed", "established")
    calls.detach(TO_A, 40 * SECOND, ended=True)
    calls.expire(70 * SECOND)
    assert not calls.calls


def test_p28_rows_follow_the_address() -> None:
    calls = table()
    call = opened(calls, TO_A, 5, peer=9)
    assert [event.text for event in calls.move(M, M2)] == ["change maddr from 200.200.200.200 to 200.200.200.201"]
    assert calls.inbound(R, M2, 5, 0).row is call
    assert calls.outbound(A, M, R, 9, 0).to == (M2,)


# --- limits ------------------------------------------------------------------------------------------------------


def test_refusals_have_names() -> None:
    assert table(capacity=0).open(TO_A, 1, 0) == "calls_full"
    assert table(per_host=0).open(TO_A, 1, 0) == "host_call_limit"
    assert table().open(99, 1, 0) == "no_control"
    full = table(capacity=0).outbound(A, M, R2, 1, 0)
    assert full.drop == "calls_full"
    assert [event.why for event in table(controls=2).attach(9, A, M, R)] == ["controls_full"]


def test_one_host_cannot_take_the_others_share() -> None:
    calls = table(per_host=3)
    results = [calls.open(TO_A, number, 0) for number in range(5)]
    assert results[3:] == ["host_call_limit"] * 2
    assert isinstance(calls.open(TO_B, 1, 0), Call)


def test_changes_name_every_row_once() -> None:
    calls = table()
    call = opened(calls, TO_A, 5, peer=9)
    assert list(calls.take_changes()) == [call]
    assert list(calls.take_changes()) == []
    calls.retire(call, 0, "cleared")
    calls.expire(60 * SECOND)
    assert [row.state for row in calls.take_changes()] == ["closed"]
