"""What the pairs of one figure say: their ratios, the interval that holds the ratio, and whether that is good enough.

A pair is the values of one figure that two trees had in the same round, ours first. Machines drift and neighbours come
and go, so only values of one pair are divided by each other, and only ratios are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from statistics import median

from fastmasq_bench.lab import figures
from fastmasq_bench.lab.figures import Figure

CONFIDENCE = 0.95
FEWEST_PAIRS = 6  # fewer give no interval of CONFIDENCE
BAR = 0.97
# Where other than BAR: eight streams share two processors as it falls out.
BARS = {figures.TCP_8: 0.90, figures.TCP_8_COST: 0.90}


def interval_of_median(values: Sequence[float]) -> tuple[float, float] | None:
    """Return two of the values between which the median of what they are drawn from lies with CONFIDENCE or more.

    They are order statistics, equally far from both ends and as close as can be: the k-th lowest and the k-th highest
    miss the median only if fewer than k of the values lie on one side of it, and each lies on either side like a coin.
    So nothing is assumed of how they are distributed. None if not even the lowest and the highest value will do.
    """
    ordered = sorted(values)
    count, k, misses = len(ordered), 0, 0
    while 2 * (misses + comb(count, k)) <= (1 - CONFIDENCE) * 2**count:
        misses += comb(count, k)
        k += 1
    return (ordered[k - 1], ordered[-k]) if k else None


@dataclass
class Comparison:
    """All pairs of one figure; every value is above zero."""

    figure: Figure
    pairs: list[tuple[float, float]] = field(default_factory=list)

    @property
    def medians(self) -> tuple[float, float]:
        """The medians of our values and of the others."""
        return median(ours for ours, _ in self.pairs), median(theirs for _, theirs in self.pairs)

    @property
    def ratios(self) -> list[float]:
        """How many times as good we were in each pair: more than 1 is better, also where a lower value is."""
        better = self.figure.higher_is_better
        return [ours / theirs if better else theirs / ours for ours, theirs in self.pairs]

    @property
    def ratio(self) -> float:
        """The median of the ratios; that is not the ratio of the medians."""
        return median(self.ratios)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the ratio; None if there are too few pairs."""
        return interval_of_median(self.ratios)

    @property
    def bar(self) -> float:
        """The least that the ratio may be."""
        return BARS.get(self.figure, BAR)

    @property
    def misses(self) -> list[str]:
        """What is wrong, in a few words each; empty if the ratio keeps its bar and its interval reaches 1."""
        if self.interval is None:
            return [f"{len(self.pairs)} pairs are too few"]
        wrong = []
        if self.ratio < self.bar:
            wrong.append(f"below {self.bar:.2f}")
        if self.interval[1] < 1:
            wrong.append("slower beyond doubt")
        return wrong
