"""Measures what an upgrade costs: which datagrams of a numbered stream, 1000 a second, are missing or late, ten times.

    python -m fastmasq_bench.upgrades [--sessions 10000] [--times 10]

The machine should be idle otherwise.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import click

from fastmasq_bench.stream import carried

SETTLE_S = 1.0  # between two upgrades


def _losses(arrived: list[tuple[int, float]]) -> tuple[int, int, float]:
    """Return how many numbers are missing in a row at most, how many came twice, and the longest silence in ms."""
    numbers = sorted({number for number, _ in arrived})
    missing = max((after - before - 1 for before, after in pairwise(numbers)), default=0)
    silence = max((after - before for (_, before), (_, after) in pairwise(arrived)), default=0.0)
    return missing, len(arrived) - len(numbers), silence * 1000


@click.command()
@click.option("--sessions", type=click.IntRange(0), default=10_000, show_default=True)
@click.option("--times", type=click.IntRange(1), default=10, show_default=True)
def main(sessions: int, times: int) -> None:
    """Print a line for each time, and the medians."""
    found = []
    with carried("upgrades", sessions) as (fastmasq, stream):
        for _ in range(times):
            time.sleep(SETTLE_S)
            first = len(stream.arrived)
            fastmasq.run_command("upgrade")
            time.sleep(SETTLE_S)
            found.append(_losses(stream.arrived[first - 1 :]))
            adopted = fastmasq.ask("status")["adopted"]
            click.echo("missing {}, twice {}, silence {:.1f} ms".format(*found[-1]) + f"; {adopted}")
    missing, _, silence = zip(*found, strict=True)
    click.echo(f"median: missing in a row {statistics.median(missing)}, silence {statistics.median(silence):.1f} ms")


if __name__ == "__main__":
    main()
