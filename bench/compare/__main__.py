"""`python -m fastmasq_bench.compare`, which `scripts/dev compare` calls: is this tree as fast as another?"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import click

from fastmasq.errors import FastmasqError
from fastmasq_bench.command import FigureName
from fastmasq_bench.compare import micro
from fastmasq_bench.compare.pairs import FEWEST_PAIRS

FIGURES = (micro.NAME, "packets-1000", "packets-50000", "sessions", "rtt", "tcp-8")
ROUNDS = 12

_PROJECT = Path(__file__).resolve().parents[2]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("reference", metavar="REF")
@click.option("--only", type=FigureName(micro.NAME), multiple=True, help="Only this; may be given several times.")
@click.option("--rounds", type=click.IntRange(FEWEST_PAIRS), default=ROUNDS, show_default=True,
              help="How often to measure everything of both.")  # fmt: skip
@click.pass_context
def compare(context: click.Context, reference: str, only: tuple[str, ...], rounds: int) -> None:
    """Measure this tree and the commit REF in turn, and say how many times as fast this tree is.

    REF is built in build/compare. Its forwarder is started in the same network and loaded by the same programs as this
    tree's; its micro-benchmarks are its own. REF may also be a program, such as dist/fastmasq-0.1.0-x86_64; it has no
    micro-benchmarks. Exit status: 0 every figure keeps its bar, 1 one does not, or could not be
    measured.

    \b
    A FIGURE is micro (the whole path over a memory ring, and opening sessions), or one
    of `fastmasq bench`. Without --only:
      micro packets-1000 packets-50000 sessions rtt tcp-8
    """
    from fastmasq.cli.render import make_console
    from fastmasq.lab.demo import ending_cleanly
    from fastmasq_bench.compare import report
    from fastmasq_bench.compare.contest import Contest, make_probes
    from fastmasq_bench.compare.trees import built, program_at, this_tree
    from fastmasq_bench.lab.measure import QUICK
    from fastmasq_bench.lab.run import check_host, make_progress
    from fastmasq_bench.report import describe_machine

    program = program_at(reference)
    names = only or FIGURES[bool(program) :]
    if program and micro.NAME in names:
        raise click.BadParameter(f"{micro.NAME}: {program.name} is a program without micro-benchmarks")
    if set(names) != {micro.NAME}:
        check_host()
    with ending_cleanly(), nullcontext(program) if program else built(_PROJECT, reference) as theirs:
        contest = Contest(this_tree(_PROJECT), theirs)
        machine = describe_machine()
        trees = (contest.ours, contest.theirs)
        with make_probes(names, trees, f"compare-{os.getpid()}", QUICK) as probes, make_progress() as progress:
            task = progress.add_task("", total=rounds * len(probes) * len(trees))
            contest.run(probes, rounds, lambda done, what: progress.update(task, completed=done, description=what))
    make_console().print(report.table(contest, rounds, machine))
    for remark in report.remarks(contest):
        click.echo(remark, err=True)
    context.exit(0 if contest.passed else 1)


def main() -> None:
    """Run the command as `scripts/dev compare` does."""
    try:
        compare(prog_name="scripts/dev compare")
    except FastmasqError as error:
        click.echo(f"compare: {error}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
