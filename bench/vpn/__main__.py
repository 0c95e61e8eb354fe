"""`python -m fastmasq_bench.vpn`: the share of misassociated SAs and the wait for a start, 1999's rules and ours."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import click

ALGORITHMS = {"1999": False, "evidence": True}
_HOSTS = (10, 50, 100)
_RTT_MS = (5, 50, 500)
_BEHIND_MS = (0, 200)
_LOSS = (0.0, 0.05)


@click.command()
@click.option("--hosts", type=click.IntRange(1, 1000), multiple=True, default=_HOSTS, show_default=True)
@click.option("--rtt", "rtt_ms", type=click.IntRange(1, 10_000), multiple=True, default=_RTT_MS, help="In ms.")
@click.option("--behind", "behind_ms", type=click.IntRange(0, 10_000), multiple=True, default=_BEHIND_MS,
              help="Mean of what ESP's answers take longer than ISAKMP's, in ms.")  # fmt: skip
@click.option("--loss", type=click.FloatRange(0, 0.5), multiple=True, default=_LOSS, help="Share of packets, each way.")
@click.option("--spread", type=click.IntRange(1, 2000), default=600, show_default=True, help="All start within, in s.")
@click.option("--burst", type=click.IntRange(1, 1000), default=1, show_default=True, help="Hosts that start at once.")
@click.option("--quiet", type=click.FloatRange(0, 1), default=0, show_default=True,
              help="Share of what hosts would answer at once that they do not.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="Of the first run.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs, counted together.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here.")
@click.option("--chart", type=click.Path(dir_okay=False, path_type=Path), help="Draw a chart into this file (.png).")
def main(
    hosts: tuple[int, ...],
    rtt_ms: tuple[int, ...],
    behind_ms: tuple[int, ...],
    loss: tuple[float, ...],
    spread: int,
    burst: int,
    quiet: float,
    seed: int,
    seeds: int,
    json_file: Path | None,
    chart: Path | None,
) -> None:
    """Simulate so many hosts that start and rekey with one server, and say how many SAs went to the wrong host."""
    from rich.console import Console
    from rich.progress import track

    from fastmasq_bench.vpn.report import MS, draw, measure, table
    from fastmasq_bench.vpn.simulation import SECOND, Scenario

    cases = list(itertools.product(hosts, rtt_ms, behind_ms, loss, ALGORITHMS))
    figures: list[dict[str, Any]] = [
        measure(
            Scenario(one, rtt * MS, share, behind * MS, spread * SECOND, burst, quiet=quiet, seed=seed),
            name,
            seeds=seeds,
            evidence=ALGORITHMS[name],
        )
        for one, rtt, behind, share, name in track(cases, "simulating", console=Console(stderr=True), transient=True)
    ]
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
    if chart:
        draw(figures, chart)
    Console(width=None if sys.stdout.isatty() else 120).print(table(figures))


if __name__ == "__main__":
    main()
