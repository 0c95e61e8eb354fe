"""What the commands of the soaks have in common: who may run them, how they end, and with which status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from fastmasq.errors import FastmasqError, KernelError
from fastmasq.lab.demo import ending_cleanly
from tests.soak.verdict import Bar

LOG = Path("build/soak.log")


def for_root() -> None:
    """Raises KernelError for anybody else."""
    if os.geteuid() != 0:
        raise KernelError("it needs root: run it with sudo")


def conclude(log: str, description: str, bars: Sequence[Bar]) -> NoReturn:
    """Keep what fastmasq said, print what was found, and end with 1 if anything promised was not kept."""
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text(log)
    click.echo(description)
    click.echo(f"what fastmasq said is in {LOG}")
    sys.exit(0 if all(bar.is_kept for bar in bars) else 1)


def main(command: click.Command, name: str) -> NoReturn:
    """Run a command under its name; what goes wrong is one line."""
    try:
        with ending_cleanly():
            command(prog_name=name)
    except FastmasqError as error:
        click.echo(f"soak: {error}", err=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
