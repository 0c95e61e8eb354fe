"""The order of the measurements: every figure of one forwarder right after that of the other, round after round.

Machines drift, so figures are only compared with figures of the same minutes: within a round each measurement is taken
of all forwarders in turn before the next one begins, and the turn changes with every round. A forwarder with several
steerings is measured with each of them in the first round; later rounds drop those that are clearly behind the best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from fastmasq.errors import FastmasqError
from fastmasq_bench.lab.figures import Figure, Sample
from fastmasq_bench.lab.forwarders import Forwarder, steering_mask
from fastmasq_bench.lab.measure import Bench, Lengths, Measurement
from fastmasq_bench.lab.network import Network

_STILL_IN_THE_RACE = 0.85


@dataclass
class Series:
    """All samples of one figure of one forwarder, by steering; failures holds what was said instead of a sample."""

    figure: Figure
    forwarder: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def best(self) -> str | None:
        """The steering with the best median; None as long as there is no sample."""
        choose = max if self.figure.higher_is_better else min
        return choose(self.samples, key=self._median_of) if self.samples else None

    @property
    def result(self) -> list[Sample]:
        """The samples that count: those of the best steering."""
        return self.samples.get(self.best or "", [])

    @property
    def median(self) -> float | None:
        """The median of the samples that count; None if there are none."""
        return self._median_of(self.best) if self.best else None

    def in_the_race(self, steering: str) -> bool:
        """Return whether the steering has not been tried yet, or may still turn out best."""
        if self.median is None or steering not in self.samples:
            return True
        mine, best = self._median_of(steering), self.median
        worse, better = (mine, best) if self.figure.higher_is_better else (best, mine)
        return worse >= _STILL_IN_THE_RACE * better

    def _median_of(self, steering: str) -> float:
        return median(sample.value for sample in self.samples[steering])


@dataclass
class Rounds:
    """Takes the measurements of all forwarders; tell is called with how many are done and what comes next."""

    network: Network
    forwarders: Sequence[Forwarder]
    measurements: Sequence[Measurement]
    lengths: Lengths
    tell: Callable[[int, str], None]
    series: dict[tuple[str, str], Series] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for measurement, forwarder in self._turns(1):
            for figure in measurement.figures:
                self.series[figure.name, forwarder.name] = Series(figure, forwarder.name)

    def count(self, rounds: int) -> int:
        """Return how many measurements so many rounds are."""
        return rounds * len(self._turns(1))

    def run(self, rounds: int) -> None:
        """Measure everything so many times; a measurement that fails is noted in its series, and the rest goes on."""
        plan = ((number, *turn) for number in range(1, rounds + 1) for turn in self._turns(number))
        for done, (number, measurement, forwarder) in enumerate(plan):
            self.tell(done, f"round {number} of {rounds}: {measurement.name}, {forwarder.name}")
            self._measure(measurement, forwarder)

    def _turns(self, number: int) -> list[tuple[Measurement, Forwarder]]:
        """Return what is measured of whom in the round of this number, in its order."""
        return [
            (measurement, forwarder)
            for measurement in self.measurements
            for forwarder in (self.forwarders if number % 2 else self.forwarders[::-1])
            if forwarder.is_told_by(measurement.name)
        ]

    def _measure(self, measurement: Measurement, forwarder: Forwarder) -> None:
        series = [self.series[figure.name, forwarder.name] for figure in measurement.figures]
        for steering in forwarder.steerings:
            if not any(one.in_the_race(steering) for one in series):
                continue
            try:
                samples = measure_anew(measurement, Bench(self.network, forwarder, self.lengths), steering)
            except FastmasqError as error:
                for one in series:
                    one.failures.append(str(error))
                continue
            for one, sample in zip(series, samples, strict=False):
                one.samples.setdefault(steering, []).append(sample)


def measure_anew(measurement: Measurement, bench: Bench, steering: str = "off") -> tuple[Sample, ...]:
    """Start the bench's forwarder, measure once it forwards, and stop it. Raises FastmasqError if any of it fails."""
    bench.network.steer(steering_mask(steering))
    try:
        bench.forwarder.start()
        bench.wait_until_ready()
        return measurement.measure(bench)
    finally:
        bench.forwarder.stop()
