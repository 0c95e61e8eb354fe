"""`fastmasq reload`: has the running forwarder read its configuration again."""

from __future__ import annotations

import click

from fastmasq.cli.options import client_options, confirm_option, find_socket, json_option, waiting_line


@click.command()
@client_options
@click.option("--enforce", is_flag=True, help="Close sessions that policy would no longer let open, and say which.")
@click.option("--exact", is_flag=True, help="Undo what was changed at run time: have exactly what the files say.")
@confirm_option
@json_option
def reload(
    socket: str | None, config: str | None, enforce: bool, exact: bool, confirm_s: int | None, as_json: bool
) -> None:  # fmt: skip
    """Have the running forwarder read its configuration and rule files again, and change what differs.

    Sessions live on, and without --exact so does what was changed at run time. SIGHUP does the same without options.
    Mistakes are printed as FILE:LINE: what; suggestion, and nothing has changed then.
    """
    from fastmasq.cli.render import print_json
    from fastmasq.control.client import call

    if enforce and confirm_s:
        raise click.UsageError("--enforce goes without --confirm: sessions that are closed cannot come back.")
    wanted = {"confirm_s": confirm_s} if confirm_s else {}
    result = call(find_socket(socket, config), "reload", enforce=enforce, exact=exact, **wanted)
    confirm_s = confirm_s if result["changed"] else None
    if as_json:
        print_json({**result, "confirm_s": confirm_s})
        return
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"changed: {', '.join(result['changed'])}" if result["changed"] else "nothing changed")
    if confirm_s:
        click.echo(waiting_line(confirm_s))
    if not enforce:
        return
    for line in result["sessions"]:
        click.echo(f"closed {line}")
    if result["closed"] > len(result["sessions"]):
        click.echo(f"and {result['closed'] - len(result['sessions'])} more")
    click.echo(f"{result['closed']} sessions closed, {result['reset']} inside ends reset")
