"""`fastmasq rule reset`: gives the running forwarder the built-in policy back."""

from __future__ import annotations

import click

from fastmasq.cli.options import client_options, find_socket


@click.command()
@client_options
def reset(socket: str | None, config: str | None) -> None:
    """Masquerade everything from inside to outside again, let inside networks reach each other, and nothing in.

    The rules of the chain forward are removed; all other chains stay. This is what fastmasq does without [rules] files,
    until that chain is given a rule or another policy than ACCEPT.
    """
    from fastmasq.control.client import call

    call(find_socket(socket, config), "rules.change", changes=[{"do": "reset"}])
