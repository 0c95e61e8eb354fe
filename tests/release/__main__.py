"""`scripts/dev release-check`: builds the packages, then installs each as its users would and lets it forward."""

from __future__ import annotations

import os
import sys
import time

import click

from fastmasq.errors import FastmasqError, KernelError
from fastmasq.lab.demo import ending_cleanly
from tests.release import programs
from tests.release.checks import CHECKS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="[CHECK]...", nargs=-1, type=click.Choice(list(CHECKS)))
def release_check(names: tuple[str, ...]) -> None:
    """Check the packages: all of it, or what is named. A line for each check; exit status 1 if one fails.

    It builds what is out of date, and keeps Debian roots and what else takes long in build/release.
    """
    if os.geteuid() != 0:
        raise KernelError("it needs root: run it with sudo")
    programs.build()
    failures = 0
    for name in names or CHECKS:
        print(f"{name:<18}", end="", flush=True)
        started = time.monotonic()
        try:
            said = CHECKS[name]()
        except FastmasqError as error:
            failures += 1
            said = f"FAILED: {error}"
        print(f"{said:<90} {time.monotonic() - started:5.1f} s", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    try:
        with ending_cleanly():
            release_check(prog_name="scripts/dev release-check")
    except FastmasqError as error:
        click.echo(f"release-check: {error}", err=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
