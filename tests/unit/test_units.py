"""Durations, sizes, rates and counts: what people write is what is meant, and what is printed reads back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.units import format_count, format_duration, parse_duration, parse_rate

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("written", "nanoseconds"),
    [
        ("5m", 300 * SECOND),
        ("2h4m", 7440 * SECOND),
        ("2h 4m", 7440 * SECOND),
        ("1d1h1m1s1ms1us1ns", 90_061 * SECOND + 1_001_001),
        ("1.5s", 1_500_000_000),
        ("50us", 50_000),
        ("300", 300 * SECOND),
        (300, 300 * SECOND),
        (0.25, 250_000_000),
        (0, 0),
        ("0s", 0),
    ],
)
def test_durations_as_people_write_them(written, nanoseconds):
    assert parse_duration(written) == nanoseconds


@pytest.mark.parametrize("written", ["", "m", "5 minutes", "5x", "-5s", -1, "1h-4m", "5m,", "1..5s", "five", True])
def test_no_duration(written):
    with pytest.raises(ValueError, match=r"duration"):
        parse_duration(written)


@given(st.integers(min_value=0, max_value=10**18))
def test_a_printed_duration_reads_back(nanoseconds):
    assert parse_duration(format_duration(nanoseconds)) == nanoseconds


def test_durations_are_printed_short():
    assert [format_duration(seconds * SECOND) for seconds in (0, 1, 60, 7440, 86_400)] == [
        "0s",
        "1s",
        "1m",
        "2h4m",
        "1d",
    ]


@given(st.integers(min_value=0, max_value=10**12))
def test_rates(number):
    assert parse_rate(f"{number}/s") == parse_rate(f"{number} / s") == parse_rate(number) == number


@pytest.mark.parametrize("written", ["", "2000", "2000/m", "-1/s", "/s", "2k/s"])
def test_no_rate(written):
    with pytest.raises(ValueError, match="rate"):
        parse_rate(written)


def test_counts_have_three_digits():
    assert [format_count(value) for value in (0, 12, 4567, 1_200_000, 2.5e9)] == ["0", "12", "4.57 k", "1.2 M", "2.5 G"]
