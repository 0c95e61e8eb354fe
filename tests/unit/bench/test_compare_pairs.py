"""The judgement of two trees: which way a ratio points, how sure it is, and when a bar is missed."""

from __future__ import annotations

import itertools
from statistics import median

import pytest

from fastmasq_bench.compare.pairs import BAR, CONFIDENCE, FEWEST_PAIRS, Comparison, interval_of_median
from fastmasq_bench.lab.figures import TCP_8, Figure

RATE = Figure("rate", "rate", "packets/s")
DELAY = Figure("delay", "delay", "us", higher_is_better=False)


def with_ratios(*ratios: float, figure: Figure = RATE) -> Comparison:
    """Return a comparison in which we were so many times as good."""
    return Comparison(figure, [(100.0 * ratio, 100.0) for ratio in ratios])


@pytest.mark.parametrize(("count", "k"), [(6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6)])
def test_the_interval_is_that_of_the_tables(count: int, k: int) -> None:
    """The k are those of tables of the sign test at 5 %, both sides."""
    values = [float(value) for value in range(1, count + 1)]
    assert interval_of_median(values[::-1]) == (k, count + 1 - k)


@pytest.mark.parametrize("count", range(6, 13))
def test_the_interval_holds_the_median_as_often_as_it_says_and_a_narrower_one_does_not(count: int) -> None:
    """Every way in which `count` values can lie about the median of what they are drawn from, each as likely."""
    k, _ = interval_of_median(list(range(1, count + 1)))
    below = [sum(way) for way in itertools.product((0, 1), repeat=count)]

    def coverage(k: int) -> float:
        return sum(k <= number <= count - k for number in below) / len(below)

    assert coverage(k) >= CONFIDENCE > coverage(k + 1)


def test_too_few_values_have_no_interval() -> None:
    assert interval_of_median([]) is None
    assert interval_of_median([1.0] * (FEWEST_PAIRS - 1)) is None
    assert interval_of_median([1.0] * FEWEST_PAIRS) == (1.0, 1.0)


@pytest.mark.parametrize(("figure", "ratios"), [(RATE, [2.0, 0.5]), (DELAY, [0.5, 2.0])])
def test_more_than_one_is_better_whichever_way_the_figure_goes(figure: Figure, ratios: list[float]) -> None:
    assert Comparison(figure, [(200.0, 100.0), (50.0, 100.0)]).ratios == ratios


def test_pairs_are_divided_before_anything_is_put_together() -> None:
    """A machine that doubles its speed half-way says nothing about the trees."""
    comparison = Comparison(RATE, [(99.0, 100.0), (198.0, 200.0), (99.0, 100.0)] * 4)
    assert comparison.ratio == 0.99 and comparison.interval == (0.99, 0.99)
    assert comparison.medians == (99.0, 100.0)


def test_the_ratio_is_the_median_of_the_ratios() -> None:
    ratios = [0.8, 1.3, 1.1, 0.9, 1.2, 1.4]
    assert with_ratios(*ratios).ratio == pytest.approx(median(ratios))


@pytest.mark.parametrize(
    ("comparison", "misses"),
    [
        (with_ratios(*[1.0] * 12), []),
        (with_ratios(*[BAR] * 9, *[1.0] * 3), []),
        (with_ratios(*[0.98] * 10, *[1.02] * 2), ["slower beyond doubt"]),
        (with_ratios(*[0.96] * 9, *[1.02] * 3), ["below 0.97"]),
        (with_ratios(*[0.5] * 12), ["below 0.97", "slower beyond doubt"]),
        (with_ratios(*[0.91] * 9, *[1.02] * 3, figure=TCP_8), []),
        (with_ratios(*[0.89] * 9, *[1.02] * 3, figure=TCP_8), ["below 0.90"]),
        (with_ratios(*[1.0] * 5), ["5 pairs are too few"]),
    ],
)
def test_bars(comparison: Comparison, misses: list[str]) -> None:
    assert comparison.misses == misses
