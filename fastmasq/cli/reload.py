"""`fastmasq reload`: has the running forwarder read its configuration again."""

from __future__ import annotations

import click

from fastmasq.cli.options import client_options, find_socket


@click.command()
@client_options
@click.option("--enforce", is_flag=True, help="Close sessions that policy would no longer let open, and say which.")
def reload(socket: str | None, config: str | None, enforce: bool) -> None:
    """Have the running forwarder read its configuration and rule files again, and change what differs.

    Sessions live on, and so does what was changed at run time. SIGHUP does the same without --enforce. Mistakes are
    printed as FILE:LINE: what; suggestion, and nothing has changed then.
    """
    from fastmasq.control.client import call

    result = call(find_socket(socket, config), "reload", enforce=enforce)
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"changed: {', '.join(result['changed'])}" if result["changed"] else "nothing changed")
    if not enforce:
        return
    for line in result["sessions"]:
        click.echo(f"closed {line}")
    if result["closed"] > len(result["sessions"]):
        click.echo(f"and {result['closed'] - len(result['sessions'])} more")
    click.echo(f"{result['closed']} sessions closed, {result['reset']} inside ends reset")
