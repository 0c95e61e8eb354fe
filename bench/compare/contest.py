"""The contest: every figure of one tree right after that of the other, round after round, whose turn is first changing.

A probe measures some figures of one tree. The probes of the lab use this tree's network, load and counters for both;
only the program in the gateway differs, and is started by the Python of its own tree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastmasq.errors import FastmasqError
from fastmasq_bench.compare import micro
from fastmasq_bench.compare.pairs import Comparison
from fastmasq_bench.compare.trees import Program, Tree
from fastmasq_bench.lab.figures import Figure
from fastmasq_bench.lab.forwarders import FastmasqForwarder
from fastmasq_bench.lab.measure import MEASUREMENTS, Bench, Lengths, Measurement
from fastmasq_bench.lab.network import Network
from fastmasq_bench.lab.rounds import measure_anew


@dataclass(frozen=True)
class Probe:
    """Something that is measured of a tree: all its figures, or FastmasqError."""

    name: str
    measure: Callable[[Any], dict[Figure, float]]


@dataclass
class Contest:
    """Two trees, ours first, and what has been measured of them.

    failures says what went wrong, alone what only one tree has: neither makes a pair.
    """

    ours: Tree
    theirs: Tree | Program
    comparisons: dict[Figure, Comparison] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    alone: dict[Figure, Tree | Program] = field(default_factory=dict)

    def run(self, probes: Sequence[Probe], rounds: int, tell: Callable[[int, str], None]) -> None:
        """Measure so many rounds; tell is called with how many measurements are done and what comes next."""
        done = 0
        for number in range(1, rounds + 1):
            for probe in probes:
                values = {}
                for tree in (self.ours, self.theirs) if number % 2 else (self.theirs, self.ours):
                    tell(done, f"round {number} of {rounds}: {probe.name}, {tree.name}")
                    done += 1
                    try:
                        values[tree] = probe.measure(tree)
                    except FastmasqError as error:
                        self.failures.append(f"{probe.name}, {tree.name}, round {number}: {error}")
                if len(values) == 2:
                    self._pair(values[self.ours], values[self.theirs])

    @property
    def passed(self) -> bool:
        """Whether there are figures, all were measured in every round, and none misses its bar."""
        judged = self.comparisons.values()
        return bool(judged) and not self.failures and not any(comparison.misses for comparison in judged)

    def _pair(self, ours: dict[Figure, float], theirs: dict[Figure, float]) -> None:
        for figure in ours | theirs:
            if figure not in theirs:
                self.alone[figure] = self.ours
            elif figure not in ours:
                self.alone[figure] = self.theirs
            elif min(ours[figure], theirs[figure]) <= 0:
                self.failures.append(f"{figure.title}: nothing was measured")
            else:
                pair = ours[figure], theirs[figure]
                self.comparisons.setdefault(figure, Comparison(figure)).pairs.append(pair)


@contextmanager
def make_probes(
    names: Collection[str], trees: Collection[Tree | Program], prefix: str, lengths: Lengths
) -> Iterator[list[Probe]]:
    """Make the probes of these names, and a lab of this prefix if one needs it; it is gone after the context."""
    probes = [Probe(micro.NAME, micro.measure)] if micro.NAME in names else []
    measurements = [measurement for measurement in MEASUREMENTS if measurement.name in names]
    if not measurements:
        yield probes
        return
    with Network(prefix) as network:
        benches = {tree: Bench(network, FastmasqForwarder(network, tree.command), lengths) for tree in trees}
        yield probes + [_lab_probe(measurement, benches) for measurement in measurements]


def _lab_probe(measurement: Measurement, benches: dict[Tree | Program, Bench]) -> Probe:
    def measure(tree: Tree | Program) -> dict[Figure, float]:
        samples = measure_anew(measurement, benches[tree])
        return {figure: sample.value for figure, sample in zip(measurement.figures, samples, strict=True)}

    return Probe(measurement.name, measure)
