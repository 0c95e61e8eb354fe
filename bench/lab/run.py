"""One run of the benchmark: makes the network, measures with a progress line, removes everything again."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fastmasq.errors import KernelError
from fastmasq_bench.lab.forwarders import FORWARDERS, large_connection_table
from fastmasq_bench.lab.measure import MEASUREMENTS, Lengths, source_alone
from fastmasq_bench.lab.network import Network
from fastmasq_bench.lab.rounds import Rounds
from fastmasq_bench.report import Report, describe_machine, make_lines

FEWEST_PROCESSORS = 2
_BUSY = 0.5


def run(prefix: str, lengths: Lengths, rounds: int, only: Collection[str], forwarders: Collection[str]) -> Report:
    """Measure in a lab of this prefix; empty collections mean all. Raises KernelError where that is not possible."""
    check_host()
    measurements = [measurement for measurement in MEASUREMENTS if not only or measurement.name in only]
    names = [name for name in FORWARDERS if not forwarders or name in forwarders]
    machine = describe_machine()
    if machine["load_average"] > _BUSY:
        load = machine["load_average"]
        print(
            f"the machine is busy (load {load}), which slows fastmasq more than the kernel: better wait",
            file=sys.stderr,
        )
    with (
        make_progress() as progress,
        large_connection_table(),
        Network(prefix) as network,
    ):
        contestants = []
        for forwarder in (FORWARDERS[name](network) for name in names):
            if reason := forwarder.why_not():
                print(f"{forwarder.name} is left out: {reason}", file=sys.stderr)
            else:
                contestants.append(forwarder)

        def tell(number: int, what: str) -> None:
            progress.update(task, description=what, completed=number)

        measured = Rounds(network, contestants, measurements, lengths, tell)
        task = progress.add_task("the packet source alone", total=measured.count(rounds))
        ceiling = source_alone(network, lengths)
        measured.run(rounds)
    return Report(make_lines(measured.series), machine, ceiling, rounds)


def check_host() -> None:
    """Raise KernelError where the lab's figures cannot be measured."""
    if os.geteuid() != 0:
        raise KernelError("the benchmark needs root: run it with sudo")
    if (os.cpu_count() or 1) < FEWEST_PROCESSORS:
        raise KernelError(f"the benchmark needs {FEWEST_PROCESSORS} processors, one for the source of packets")


def make_progress() -> Progress:
    """Return a line on standard error that says what is measured and how long it will take; it vanishes at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
