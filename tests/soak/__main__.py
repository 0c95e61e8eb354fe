"""`scripts/dev soak`: ordinary hosts go on through fastmasq while it is attacked and things break around it."""

from __future__ import annotations

import secrets

import click

from tests.soak.command import conclude, for_root, main
from tests.soak.place import Place, on_small_disk, prefix
from tests.soak.run import soak
from tests.soak.verdict import describe, growth, judge, losses


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("seconds", type=click.IntRange(20), default=600)
@click.option("--seed", type=int, help="Do what the run with this seed did.  [default: another each time]")
@click.option("-v", "--verbose", is_flag=True, help="Say what happens when.")
def command(seconds: int, seed: int | None, verbose: bool) -> None:
    """Attack a gateway that twenty ordinary hosts use, and break things around it, for so many SECONDS (600).

    The end is a table of what was promised and what was found; exit status 1 if anything was not kept. A short run is
    for developing: its first fifth, from which memory may not grow, is too short for all to have happened once.

    `scripts/dev soak restart` kills, stops and starts the gateway instead.
    """
    for_root()
    seed = secrets.randbits(32) if seed is None else seed
    click.echo(f"seed {seed}")
    with Place(prefix(), command=on_small_disk()) as place:
        found = soak(place, seed, seconds, click.echo if verbose else lambda _: None)
    bars = judge(found)
    for line in losses(found):
        click.echo(line)
    if verbose:
        click.echo("\n".join(growth(found)))
    conclude(found.log, describe(found, bars), bars)


if __name__ == "__main__":
    main(command, "scripts/dev soak")
