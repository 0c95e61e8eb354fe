"""`fastmasq sessions`: the session table of the running forwarder."""

from __future__ import annotations

from typing import Any

import click

from fastmasq.cli.options import ADDRESS, client_options, find_socket, json_option

_COLUMNS = (
    *("Protocol", "State", ">Inside", ">port", ">External", ">port", ">Remote", ">port"),
    *(">Idle", ">Expires", ">Packets out", ">in"),
)


@click.command()
@client_options
@click.option("--host", metavar="ADDRESS", type=ADDRESS, help="Only sessions of this inside host.")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "icmp"]), help="Only sessions of this protocol.")
@click.option("--state", metavar="STATE", help="Only sessions in this state, such as established.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="List no more than so many."
)
@json_option
def sessions(
    socket: str | None,
    config: str | None,
    host: str | None,
    protocol: str | None,
    state: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the sessions: who talks to whom, through which port.

    Inside is the private host, external is what the internet sees of it, remote is whom it talks to. Of an ICMP query
    the identifier stands where TCP and UDP have a port.
    """
    from fastmasq.cli.render import print_json
    from fastmasq.control.client import call

    answer = call(find_socket(socket, config), "sessions", host=host, protocol=protocol, state=state, limit=limit)
    if not as_json:
        click.echo("\n".join(_table(answer["sessions"])) + _summary(answer))
        return
    print_json(answer["sessions"])
    if len(answer["sessions"]) < answer["total"]:
        click.echo(f"fastmasq: {_summary(answer)}", err=True)


def _table(sessions: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table and an empty one; nothing when there are no sessions."""
    from fastmasq.cli.render import align, endpoint, span

    rows = [
        (
            session["protocol"],
            session["state"],
            *endpoint(session["inside"]),
            *endpoint(session["external"]),
            *endpoint(session["remote"]),
            span(session["idle_s"]),
            span(session["expires_s"]),
            str(session["packets_out"]),
            str(session["packets_in"]),
        )
        for session in sessions
    ]
    return [*align(_COLUMNS, rows), "", ""] if rows else []


def _summary(answer: dict[str, Any]) -> str:
    total, shown = answer["total"], len(answer["sessions"])
    if shown < total:
        return f"{shown} of {total} sessions shown; --limit shows more, --host, --protocol and --state fewer"
    return f"{total} session{'' if total == 1 else 's'}"
