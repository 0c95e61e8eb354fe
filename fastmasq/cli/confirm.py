"""`fastmasq confirm`: keeps the change that the running forwarder would take back by itself."""

from __future__ import annotations

import click

from fastmasq.cli.options import client_options, find_socket


@click.command()
@client_options
@click.option("--undo", is_flag=True, help="Have it go back now.")
def confirm(socket: str | None, config: str | None, undo: bool) -> None:
    """Keep the change that would go back by itself.

    `fastmasq rule load --confirm 60` and `fastmasq reload --confirm 60` make a change that goes back after a minute,
    unless this command comes first. Type it where the change would have locked you out: if you can, it has not. Nobody
    can change anything else until then.
    """
    from fastmasq.control.client import call

    if undo:
        click.echo(f"{call(find_socket(socket, config), 'confirm', undo=True)['undone']} is undone")
    else:
        click.echo(f"{call(find_socket(socket, config), 'confirm')['confirmed']} is confirmed")
