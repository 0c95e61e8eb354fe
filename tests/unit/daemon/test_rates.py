"""Counters turned into rates."""

from __future__ import annotations

import pytest

from fastmasq.daemon.rates import WINDOW, Rates

SECOND = 1_000_000_000


def filled(*samples: tuple[float, int]) -> Rates:
    rates = Rates()
    for seconds, count in samples:
        rates.add(round(seconds * SECOND), {"packets": count})
    return rates


@pytest.mark.parametrize("samples", [[], [(1, 500)], [(1, 500), (1, 900)]])
def test_without_two_moments_there_is_no_rate(samples: list[tuple[float, int]]) -> None:
    assert filled(*samples).rate("packets") == 0.0


def test_the_mean_over_what_is_there() -> None:
    assert filled((1, 100), (2, 300), (3, 400)).rate("packets") == 150.0
    assert filled((0, 0), (2.5, 1000)).rate("packets") == 400.0


def test_what_is_older_than_the_window_is_forgotten() -> None:
    samples = [(0, 0), (1, 1_000_000), *((2 + number, 1_000_000 + 10 * number) for number in range(WINDOW + 1))]
    assert filled(*samples).rate("packets") == 10.0


def test_a_counter_that_is_new_or_gone() -> None:
    rates = Rates()
    rates.add(0, {"old": 10})
    rates.add(SECOND, {"new": 5})
    assert (rates.rate("new"), rates.rate("never")) == (5.0, 0.0)


def test_samples_are_snapshots() -> None:
    counters = {"packets": 0}
    rates = Rates()
    rates.add(0, counters)
    counters["packets"] = 100
    rates.add(SECOND, counters)
    assert rates.rate("packets") == 100.0
