"""`fastmasq confirm`: keeps the change that the running forwarder would take back by itself."""

from __future__ import annotations

import click

from fastmasq.cli.options import client_options, find_socket


@click.command()
@client_options
def confirm(socket: str | None, config: str | None) -> None:
    """Keep the change that would go back by itself.

    `fastmasq rule load --confirm 60` and `fastmasq reload --confirm 60` make a change that goes back after a minute,
    unless this command comes first. Type it where the change would have locked you out: if you can, it has not.
    """
    from fastmasq.control.client import call

    click.echo(f"{call(find_socket(socket, config), 'confirm')['confirmed']} is confirmed")
