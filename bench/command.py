"""The command `fastmasq bench`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from fastmasq.errors import FastmasqError

_FULL_ROUNDS, _QUICK_ROUNDS = 5, 1


class _Names(click.ParamType):
    """The name of a measurement, looked up when it is needed: their modules take a while to import."""

    name = "figure"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from fastmasq_bench.lab.measure import MEASUREMENTS

        names = [measurement.name for measurement in MEASUREMENTS]
        if value not in names:
            self.fail(f"{value!r} is none of {', '.join(names)}", param, ctx)
        return value


@click.command()
@click.option("--quick", is_flag=True, help="Measure everything once and briefly: two minutes instead of twenty.")
@click.option("--rounds", type=click.IntRange(1), help=f"How often to measure everything.  [default: {_FULL_ROUNDS}]")
@click.option("--only", type=_Names(), multiple=True, help="Measure only this; may be given several times.")
@click.option(
    "--forwarder",
    type=click.Choice(["kernel", "fastmasq"]),
    multiple=True,
    help="Measure only one of the two; without it, both.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all samples here.")
@click.option(
    "--chart", "chart_file", type=click.Path(dir_okay=False, path_type=Path), help="Draw a chart here (.png)."
)
def bench(
    quick: bool,
    rounds: int | None,
    only: tuple[str, ...],
    forwarder: tuple[str, ...],
    json_file: Path | None,
    chart_file: Path | None,
) -> None:
    """Measure fastmasq and the kernel's masquerade in turn, on the same network of namespaces.

    It needs root, and two processors that are otherwise idle. The machine's connection tracking table is enlarged
    meanwhile. FIGUREs for --only are those of the manual, for example packets-1000, sessions, tcp-up, rtt, idle.
    """
    from fastmasq.cli.render import make_console
    from fastmasq.lab.demo import ending_cleanly
    from fastmasq_bench.lab.measure import FULL, QUICK
    from fastmasq_bench.lab.run import run

    for file in (json_file, chart_file):
        if file is not None and not file.resolve().parent.is_dir():
            raise click.BadParameter(f"{file}: there is no such directory")
    rounds = rounds or (_QUICK_ROUNDS if quick else _FULL_ROUNDS)
    with ending_cleanly():
        report = run(f"bench-{os.getpid()}", QUICK if quick else FULL, rounds, only, forwarder)
    if json_file:
        json_file.write_text(json.dumps(report.document(), indent=1) + "\n")
    if chart_file:
        from fastmasq_bench.chart import draw

        draw(report, chart_file)
    console = make_console()
    console.print(report.table())
    failures = report.failures()
    if failures:
        raise FastmasqError("not everything could be measured:\n" + "\n".join(dict.fromkeys(failures)))
