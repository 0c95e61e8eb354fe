"""`scripts/dev release-figures`: size, start, memory and packet rate of each package, as a table of Markdown."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click

from fastmasq.errors import FastmasqError
from fastmasq.lab.demo import ending_cleanly
from fastmasq.units import format_count
from fastmasq_bench.lab.forwarders import FastmasqForwarder
from fastmasq_bench.lab.measure import MEASUREMENTS, QUICK, Bench
from fastmasq_bench.lab.network import Network
from fastmasq_bench.lab.rounds import measure_anew
from fastmasq_bench.lab.run import check_host
from fastmasq_bench.report import describe_machine, machine_line
from tests.release import programs
from tests.release.gateway import idle_bytes, start_seconds

FIGURE = "packets-1000"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often to measure each.")
def release_figures(rounds: int) -> None:
    """Measure the packages in dist in turn and print a table of Markdown: medians."""
    check_host()
    programs.build()
    (measurement,) = [one for one in MEASUREMENTS if one.name == FIGURE]
    samples: dict[str, list[tuple[float, float, float]]] = {}
    with programs.on_this_host() as commands, Network(f"figures-{os.getpid()}") as network:
        for number in range(rounds):
            for name in commands if number % 2 else reversed(commands):
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
                bench = Bench(network, FastmasqForwarder(network, commands[name]), QUICK)
                seconds = start_seconds(network.lab, commands[name])
                rate = measure_anew(measurement, bench)[0].value
                samples.setdefault(name, []).append((seconds, idle_bytes(network.lab, commands[name]), rate))
    sizes = {"wheel": programs.wheel(), "folder": programs.FOLDER, "file": programs.FILE}
    click.echo(f"{machine_line(describe_machine())}; rounds: {rounds}; medians.\n")
    click.echo(
        "| package | size, MB | start, s | resident when idle, MB | packets/s |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, package in sizes.items():
        click.echo(_row(name, package, samples[name]))


def _row(name: str, package: Path, measured: Sequence[tuple[float, float, float]]) -> str:
    seconds, resident, rate = (median(values) for values in zip(*measured, strict=True))
    size = package.stat().st_size / 1e6
    return f"| {name} | {size:.1f} | {seconds:.2f} | {resident / 1e6:.0f} | {format_count(rate)} |"


if __name__ == "__main__":
    try:
        with ending_cleanly():
            release_figures(prog_name="scripts/dev release-figures")
    except FastmasqError as error:
        click.echo(f"release-figures: {error}", err=True)
        sys.exit(error.exit_status)
