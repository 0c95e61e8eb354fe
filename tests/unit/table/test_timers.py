"""Expiry: never before the timeout, gone soon after it, whatever was refreshed, shortened, far away or late."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmasq.table.rows import STATES
from fastmasq.table.timeouts import Timeouts
from tests.support.tables import ECHO, ICMP, SECOND, TCP, TICK, UDP, is_open, make_table, opened

SOON = 2 * TICK  # how long after its timeout a session may still be there
HORIZON = 8192 * SECOND  # of the wheel
STATE = {name: STATES.index(name) for name in ("established", "transitory", "closing", "fin-out")}
PHASES = [0, 1, TICK // 2, TICK - 1, 1_000_000 * SECOND + 123_456_789]  # where in a tick a session is born


def lives_exactly(table, row: int, since_ns: int, timeout_ns: int) -> None:
    """The session is there one nanosecond before its time and gone half a second after it."""
    table.expire(since_ns + timeout_ns - 1)
    assert is_open(table, row), "gone too early"
    table.expire(since_ns + timeout_ns + SOON)
    assert not is_open(table, row), "still there"


# --- floors and values -------------------------------------------------------------------------------------------


def test_defaults_are_not_under_the_floors_of_the_rfcs() -> None:
    """RFC 5382 REQ-5: 2 h 4 min and 4 min; RFC 4787 REQ-5: 2 min, 5 recommended; RFC 5508 REQ-2: 60 s."""
    usual = Timeouts()
    assert usual.tcp_established == (2 * 60 + 4) * 60 * SECOND
    assert usual.tcp_transitory == 240 * SECOND
    assert usual.udp == 300 * SECOND
    assert usual.icmp == 60 * SECOND


def test_every_state_has_its_timeout() -> None:
    by_name = dict(zip(STATES, Timeouts(1, 2, 3, 4).by_state(), strict=True))
    assert {name for name, value in by_name.items() if value == 1} == {"established", "fin-out", "fin-in"}
    assert {name for name, value in by_name.items() if value == 2} == {
        "syn-sent",
        "syn-received",
        "closing",
        "transitory",
        "resumed",
    }
    assert Timeouts(1, 2, 3, 4).by_state()[9:] == (3, 4, 2, 3, 600 * SECOND, 60 * SECOND)  # to `expected`
    assert by_name["free"] == 0


# --- when a session ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("protocol", "seconds"), [(TCP, 240), (UDP, 300), (ICMP, 60)])
def test_never_early_and_gone_soon_after(protocol: int, seconds: int, phase: int) -> None:
    table = make_table(now_ns=phase - phase % TICK)
    row = opened(table, protocol, 4000, remote_port=ECHO, now_ns=phase)
    lives_exactly(table, row, phase, seconds * SECOND)


@pytest.mark.parametrize("timeout", [1, TICK - 1, TICK, TICK + 1, 10 * SECOND, 15 * 60 * SECOND])
@pytest.mark.parametrize("phase", PHASES)
def test_any_timeout(timeout: int, phase: int) -> None:
    table = make_table(timeouts=Timeouts(udp=timeout), now_ns=phase)
    row = opened(table, UDP, 4000, now_ns=phase)
    lives_exactly(table, row, phase, timeout)


@pytest.mark.parametrize("phase", PHASES)
def test_a_refresh_starts_the_whole_time_again(phase: int) -> None:
    table = make_table(now_ns=phase)
    row = opened(table, UDP, 4000, now_ns=phase)
    now = phase
    for pause in (299, 1, 150, 299):
        now += pause * SECOND
        table.expire(now)
        assert is_open(table, row)
        table.refresh(row, now)
    lives_exactly(table, row, now, 300 * SECOND)


def test_a_change_of_state_shortens_the_time() -> None:
    """The row waits in the wheel at its old, later time; the new one counts."""
    table = make_table()
    row = opened(table, TCP, 4000)
    table.retime(row, STATE["established"], 0)
    table.expire(100 * SECOND)
    table.retime(row, STATE["transitory"], 100 * SECOND)
    lives_exactly(table, row, 100 * SECOND, 240 * SECOND)


def test_a_change_of_state_lengthens_the_time() -> None:
    table = make_table()
    row = opened(table, TCP, 4000)
    table.retime(row, STATE["established"], 239 * SECOND)
    lives_exactly(table, row, 239 * SECOND, 7440 * SECOND)


@pytest.mark.parametrize("timeout", [HORIZON - TICK, HORIZON, HORIZON + 1, HORIZON + 10 * SECOND, 24 * 3600 * SECOND])
def test_beyond_the_horizon_of_the_wheel(timeout: int) -> None:
    """A session further away than 8192 s is linked on from the horizon; it ends at its own time all the same."""
    table = make_table(timeouts=Timeouts(udp=timeout))
    row = opened(table, UDP, 4000)
    for now in range(0, timeout, timeout // 20):
        table.expire(now)
        assert is_open(table, row)
    lives_exactly(table, row, 0, timeout)


@pytest.mark.parametrize("jump", [301 * SECOND, HORIZON + 1, 3 * 86_400 * SECOND, 60 * 86_400 * SECOND])
def test_a_jump_of_time_ends_what_is_due_and_nothing_else(jump: int) -> None:
    """The machine was suspended: one call catches up, and afterwards the wheel works as before."""
    table = make_table(capacity=4096)
    due = [opened(table, UDP, 1024 + number, now_ns=number * TICK) for number in range(1000)]
    jump += 250 * SECOND
    fresh = [opened(table, UDP, 5000 + number, now_ns=jump) for number in range(10)]
    table.expire(jump)
    assert not any(is_open(table, row) for row in due)
    assert all(is_open(table, row) for row in fresh)
    lives_exactly(table, fresh[0], jump, 300 * SECOND)
    assert table.counts()["active"] == 0


def test_a_session_opened_while_the_wheel_is_late() -> None:
    """The packet path opens sessions before it expires old ones; a new one must not fall into a slot already passed."""
    table = make_table(timeouts=Timeouts(udp=SECOND))
    table.expire(0)
    row = opened(table, UDP, 4000, now_ns=1000 * SECOND)
    lives_exactly(table, row, 1000 * SECOND, SECOND)


def test_many_in_one_slot() -> None:
    """Rows of one slot form a list; taking some from its middle, head and tail leaves the others in it."""
    table = make_table(capacity=64)
    rows = [opened(table, UDP, 4000 + number) for number in range(20)]
    for gone in (0, 19, 10, 11, 1, 18):
        table.close(rows[gone])
    table.retime(rows[5], STATE["established"], 0)
    table.expire(300 * SECOND - 1)
    assert table.counts()["active"] == 14
    table.expire(300 * SECOND + SOON)
    assert [row for row in rows if is_open(table, row)] == [rows[5]]
    assert table.counts()["expired_total"] == 13


# --- budget ------------------------------------------------------------------------------------------------------


def test_no_more_rows_are_looked_at_than_the_budget_allows() -> None:
    table = make_table()
    for number in range(100):
        opened(table, UDP, 4000 + number, now_ns=number * TICK)
    later = 1000 * SECOND
    left = 100
    for budget in (1, 7, 30, 62):
        assert table.expire(later, budget) == budget
        left -= budget
        assert table.counts()["active"] == left
    assert table.expire(later, 1000) == 0


def test_what_a_small_budget_leaves_is_not_forgotten() -> None:
    """Refreshed rows count as looked at, too; the rest is done by the next calls, whenever they come."""
    table = make_table()
    rows = [opened(table, UDP, 4000 + number) for number in range(50)]
    for row in rows[:25]:
        table.refresh(row, 200 * SECOND)
    now = 301 * SECOND
    calls = 0
    while table.expire(now, 3):
        calls += 1
        now += TICK
    assert calls == 17
    assert table.counts()["active"] == 25
    table.expire(500 * SECOND - 1)
    assert table.counts()["active"] == 25
    table.expire(500 * SECOND + SOON)
    assert table.counts()["active"] == 0


# --- new settings ------------------------------------------------------------------------------------------------


def test_C20_new_timeouts_are_not_retroactive() -> None:
    table = make_table()
    row = opened(table, UDP, 4000)
    table.set_timeouts(Timeouts(udp=10 * SECOND))
    table.expire(300 * SECOND - 1)
    assert is_open(table, row)


@pytest.mark.parametrize("seconds", [10, 299, 301, 3000])
def test_C20_new_timeouts_act_from_the_next_packet_on(seconds: int) -> None:
    table = make_table()
    row = opened(table, UDP, 4000)
    table.set_timeouts(Timeouts(udp=seconds * SECOND))
    table.refresh(row, 5 * SECOND)
    lives_exactly(table, row, 5 * SECOND, seconds * SECOND)


def test_C20_new_timeouts_act_on_new_sessions() -> None:
    table = make_table()
    table.set_timeouts(Timeouts(udp=10 * SECOND))
    lives_exactly(table, opened(table, UDP, 4000), 0, 10 * SECOND)
    assert table.timeout_ns(STATES.index("established")) >= 7440 * SECOND


# --- any order of events -----------------------------------------------------------------------------------------

events = st.lists(
    st.tuples(
        st.sampled_from(
            ["open", "refresh", "established", "transitory", "closing", "fin-out", "close", "wait", "wait"]
        ),
        st.integers(0, 15),
        st.integers(0, 3_000 * SECOND) | st.integers(0, 3 * TICK),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(events=events, budget=st.sampled_from([1 << 30, 40]))
def test_any_history(events: list[tuple[str, int, int]], budget: int) -> None:
    """Sixteen sessions in any order of opening, traffic, change of state and idling, against a list of deadlines."""
    times = {"syn-sent": 240, "established": 7440, "transitory": 240, "closing": 240, "fin-out": 7440}
    table = make_table(capacity=16)
    now = 0
    living: dict[int, tuple[int, str, int]] = {}  # number: row, state, since
    for what, number, pause in events:
        if what == "wait":
            now += pause
            table.expire(now, budget)
            for key, (row, state, since) in list(living.items()):
                age = now - since
                if age < times[state] * SECOND:
                    assert is_open(table, row), f"{state} gone after {age} ns"
                elif age >= times[state] * SECOND + SOON:
                    assert not is_open(table, row), f"{state} still there after {age} ns"
                if not is_open(table, row):
                    del living[key]
        elif what == "open" and number not in living:
            living[number] = (opened(table, TCP, 4000 + number, now_ns=now), "syn-sent", now)
        elif number in living:
            row, state, _ = living[number]
            if what == "close":
                table.close(row)
                del living[number]
            elif what == "refresh":
                table.refresh(row, now)
                living[number] = (row, state, now)
            elif what in times:
                table.retime(row, STATE[what], now)
                living[number] = (row, what, now)
    assert table.counts()["active"] == len(living)
