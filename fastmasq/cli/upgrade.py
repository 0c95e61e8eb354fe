"""`fastmasq upgrade`: has another program take the place of the running forwarder, without a gap."""

from __future__ import annotations

import os
import time

import click

from fastmasq.cli.options import client_options, find_socket
from fastmasq.errors import KernelError

_LOOK_S = 0.05
_PATIENCE_S = 60.0
_GONE_S = 15.0  # without an answer: nobody will come back


@click.command()
@client_options
@click.option("--program", metavar="FILE", help="Start this one.  [default: the file that the running one came from]")
@click.option("--force", is_flag=True, help="Also if the sessions that there are would be lost.")
def upgrade(socket: str | None, config: str | None, program: str | None, force: bool) -> None:
    """Have another program, usually a newer one in the same place, go on with what the running one does.

    It is started with the options of the running one, reads its configuration, and takes over between two packets, with
    all that a start after a kill goes on with. If it cannot, the running one goes on, and the reason is printed.
    SIGUSR2 does the same without options.
    """
    from fastmasq.control.client import call

    wanted = {"program": os.path.abspath(program)} if program else {}
    path = find_socket(socket, config)
    before = call(path, "upgrade.state")["process"]
    try:
        process = call(path, "upgrade", force=force, **wanted)["process"]
    except KernelError as error:
        raise _not_upgraded(str(error)) from None
    _wait(path, process)
    click.echo(f"process {process} has taken over from process {before}")


def _not_upgraded(why: str) -> KernelError:
    return KernelError(f"not upgraded, and all goes on as it was: {why}")


def _wait(path: str, process: int) -> None:
    """Return when a process has taken over. Raises KernelError if it has not, with the reason."""
    from fastmasq.control.client import call

    started = heard = time.monotonic()
    while (now := time.monotonic()) < started + _PATIENCE_S:
        try:
            told = call(path, "upgrade.state")
        except KernelError:  # it ends just now, and the next one is about to answer
            if now > heard + _GONE_S:
                raise
        else:
            heard = now
            if told["process"] == process:
                return
            if told["why_not"]:
                raise _not_upgraded(told["why_not"])
        time.sleep(_LOOK_S)
    raise KernelError(f"process {process} has not taken over within {_PATIENCE_S:.0f} s; see fastmasq's log")
