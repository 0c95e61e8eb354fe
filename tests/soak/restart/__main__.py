"""`scripts/dev soak restart`: what sessions notice of kills, stops, starts and upgrades under them."""

from __future__ import annotations

import click

from tests.soak.command import conclude, for_root, main
from tests.soak.restart.place import place
from tests.soak.restart.run import soak
from tests.soak.restart.verdict import describe, judge


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("seconds", type=click.IntRange(15), default=60)
@click.option("--downloads", metavar="N", type=click.IntRange(1), default=200, show_default=True, help="At a time.")
@click.option("-v", "--verbose", is_flag=True, help="Say what happens when.")
def command(seconds: int, downloads: int, verbose: bool) -> None:
    """Kill a gateway that twenty hosts use every 5 seconds, then stop, start and upgrade it: nothing may be lost.

    SECONDS (60) is how long a download takes; there are two rounds of them, the first with kills. The end is a table of
    what was promised and what was found; exit status 1 if anything was not kept. What it says about times is worth
    something on a machine that has nothing else to do.
    """
    for_root()
    with place() as made:
        found = soak(made, seconds, downloads, click.echo if verbose else lambda _: None)
    bars = judge(found)
    conclude(found.log, describe(found, bars), bars)


if __name__ == "__main__":
    main(command, "scripts/dev soak restart")
