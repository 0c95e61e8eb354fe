"""The command `fastmasq bench`."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import click

from fastmasq.errors import FastmasqError

_FULL_ROUNDS, _QUICK_ROUNDS = 5, 1


_OUTPUT = click.Path(dir_okay=False, path_type=Path)


class FigureName(click.ParamType):
    """The name of a measurement, or one of `others`; looked up when needed: their modules take a while to import."""

    name = "figure"

    def __init__(self, *others: str) -> None:
        self._others = others

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from fastmasq_bench.lab.measure import MEASUREMENTS

        names = [*self._others, *(measurement.name for measurement in MEASUREMENTS)]
        if value not in names:
            self.fail(f"{value!r} is none of {', '.join(names)}", param, ctx)
        return value


@click.command()
@click.option("--quick", is_flag=True, help="Measure everything once and briefly: three minutes instead of thirty.")
@click.option("--rounds", type=click.IntRange(1), help=f"How often to measure everything.  [default: {_FULL_ROUNDS}]")
@click.option("--only", type=FigureName(), multiple=True, help="Measure only this; may be given several times.")
@click.option(
    "--forwarder",
    type=click.Choice(["kernel", "flowtable", "fastmasq", "offload", "limit"]),
    multiple=True,
    help="Measure only this one.",
)
@click.option("--markdown", is_flag=True, help="Print the medians as a table of Markdown, with the machine above it.")
@click.option("--json", "json_file", type=_OUTPUT, metavar="FILE", help="Write all samples to this file.")
@click.option("--chart", "chart_file", type=_OUTPUT, metavar="FILE", help="Draw a chart into this file (.png).")
def bench(
    quick: bool,
    rounds: int | None,
    only: tuple[str, ...],
    forwarder: tuple[str, ...],
    markdown: bool,
    json_file: Path | None,
    chart_file: Path | None,
) -> None:
    """Measure fastmasq and the kernel's masquerade in turn, on the same network of namespaces.

    Beside them, where the kernel has them, its masquerade with a flow table, fastmasq with offload, and as a limit an
    eBPF program that does nothing but send packets on.

    It needs root and two processors that are otherwise idle. Meanwhile the kernel's connection table is enlarged.

    \b
    A FIGURE is one of
      packets-1 packets-1000 packets-50000 packets-large lossless answered
      gre-1 gre-10 gre-1000 esp-1 esp-10 esp-1000
      packets-rules-10 packets-rules-100 packets-rules-1000
      sessions sessions-rules-10 sessions-rules-100 sessions-rules-1000
      overload idle memory rtt rtt-200us rtt-10ms rtt-first rtt-apart rtt-loaded
      tcp-up tcp-down tcp-8
      tcp-up-plain tcp-down-plain tcp-8-plain (plain: offloads off)
    """
    from fastmasq.cli.render import make_console
    from fastmasq.lab.demo import ending_cleanly
    from fastmasq_bench.lab.measure import FULL, QUICK
    from fastmasq_bench.lab.run import run

    for file in (json_file, chart_file):
        if file is not None and not file.resolve().parent.is_dir():
            raise click.BadParameter(f"{file}: there is no such directory")
    if chart_file is not None and find_spec("matplotlib") is None:
        raise FastmasqError("--chart needs matplotlib, which is not installed: pip install 'fastmasq[bench]'")
    rounds = rounds or (_QUICK_ROUNDS if quick else _FULL_ROUNDS)
    with ending_cleanly():
        report = run(f"bench-{os.getpid()}", QUICK if quick else FULL, rounds, only, forwarder)
    if json_file:
        json_file.write_text(json.dumps(report.document(), indent=1) + "\n")
    if chart_file:
        from fastmasq_bench.chart import draw

        draw(report, chart_file)
    if markdown:
        click.echo(report.markdown(), nl=False)
    else:
        make_console().print(report.table())
    failures = report.failures()
    if failures:
        raise FastmasqError("not everything could be measured:\n" + "\n".join(dict.fromkeys(failures)))
