"""`scripts/dev soak`: ordinary hosts go on through fastmasq while it is attacked and things break around it."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import click

from fastmasq.errors import FastmasqError, KernelError
from fastmasq.lab.demo import ending_cleanly
from tests.soak.place import Place, prefix
from tests.soak.run import soak
from tests.soak.verdict import describe, growth, judge, losses

LOG = Path("build/soak.log")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("seconds", type=click.IntRange(20), default=600)
@click.option("--seed", type=int, help="Do what the run with this seed did.  [default: another each time]")
@click.option("-v", "--verbose", is_flag=True, help="Say what happens when.")
def command(seconds: int, seed: int | None, verbose: bool) -> None:
    """Attack a gateway that twenty ordinary hosts use, and break things around it, for so many SECONDS (600).

    The end is a table of what was promised and what was found; exit status 1 if anything was not kept. A short run is
    for developing: its first fifth, from which memory may not grow, is too short for all to have happened once.
    """
    if os.geteuid() != 0:
        raise KernelError("it needs root: run it with sudo")
    seed = secrets.randbits(32) if seed is None else seed
    click.echo(f"seed {seed}")
    with Place(prefix()) as place:
        found = soak(place, seed, seconds, click.echo if verbose else lambda _: None)
    bars = judge(found)
    for line in losses(found):
        click.echo(line)
    if verbose:
        click.echo("\n".join(growth(found)))
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text(found.log)
    click.echo(describe(found, bars))
    click.echo(f"what fastmasq said is in {LOG}")
    sys.exit(0 if all(bar.is_kept for bar in bars) else 1)


if __name__ == "__main__":
    try:
        with ending_cleanly():
            command(prog_name="scripts/dev soak")
    except FastmasqError as error:
        click.echo(f"soak: {error}", err=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
