"""`fastmasq release`: gives the host back what a killed fastmasq had changed."""

from __future__ import annotations

from pathlib import Path

import click

from fastmasq.cli.options import client_options, find_socket


@click.command()
@client_options
def release(socket: str | None, config: str | None) -> None:
    """Give the host back what a killed fastmasq had changed.

    Only needed after `kill -9` or a crash: a fastmasq that is stopped restores everything itself. What was changed is
    read from the journal, which lies beside the control socket (/run/fastmasq.journal).
    """
    from fastmasq.config.schema import Control
    from fastmasq.control.client import is_served
    from fastmasq.errors import KernelError
    from fastmasq.kernel import takeover

    control = Control(socket=find_socket(socket, config))
    if is_served(control.socket):
        raise KernelError(f"fastmasq is running at {control.socket}; stop it instead (SIGTERM), it restores everything")
    restored = takeover.release(control.journal)
    if restored and Path(control.socket).is_socket():
        Path(control.socket).unlink()  # the dead forwarder's: nobody answers there
    for line in restored:
        click.echo(line)
    if not restored:
        click.echo(f"nothing to restore: {control.journal} holds nothing")
