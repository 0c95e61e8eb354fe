"""`fastmasq sessions`: the session table of the running forwarder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import click

from fastmasq.cli.options import ADDRESS, client_options, find_socket, json_option

STATES = (
    *("syn-sent", "syn-received", "established", "fin-out", "fin-in", "closing", "transitory", "resumed"),
    *("active", "unanswered", "expected"),
)
_ENDS = ("Proto", "State", "Inside")
_COUNTS = (">Idle", ">Out", ">In", ">Expires")
_COLUMNS = (*_ENDS, ">Port", "Remote", *_COUNTS)
_WIDE_COLUMNS = (*_ENDS, "External", "Remote", *_COUNTS)
_WIDTH = 80  # where nothing says how wide a line may be


@click.command()
@client_options
@click.option("--host", metavar="ADDRESS", type=ADDRESS, help="Only with this address inside, outside or remote.")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "icmp"]), help="Only sessions of this protocol.")
@click.option("--state", metavar="STATE", help=f"Only in this state: {', '.join(STATES)}.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="List no more than so many."
)
@click.option("--wide", is_flag=True, help="Show all in one line, however long.")
@json_option
def sessions(
    socket: str | None,
    config: str | None,
    host: str | None,
    protocol: str | None,
    state: str | None,
    limit: int,
    wide: bool,
    as_json: bool,
) -> None:
    """List the sessions: who talks to whom, through which port.

    Inside is the private host, external is what the internet sees of it, remote is whom it talks to. Of an ICMP query
    the identifier stands where TCP and UDP have a port. Out and In are packets. Sessions are listed by their external
    address, with their port there; columns that there is no room for are left out, and named below the table.
    """
    from fastmasq.cli.render import print_json
    from fastmasq.control.client import call

    answer = call(find_socket(socket, config), "sessions", host=host, protocol=protocol, state=state, limit=limit)
    if as_json:
        print_json(answer["sessions"])
        if len(answer["sessions"]) < answer["total"]:
            click.echo(f"fastmasq: {_summary(answer)}", err=True)
        return
    found = answer["sessions"]
    for line in _wide(found) if wide else _by_address(found, _room()):
        click.echo(line)
    click.echo(_summary(answer))


def _room() -> int:
    """Return how many characters a line may have."""
    is_known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size((_WIDTH, 24)).columns if is_known else _WIDTH


def _wide(sessions: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table with everything, and an empty one; none without sessions."""
    from fastmasq.cli.render import align

    if sessions:
        yield from align(_WIDE_COLUMNS, [_cells(session, session["external"]) for session in sessions])
        yield ""


def _by_address(sessions: list[dict[str, Any]], room: int) -> Iterator[str]:
    """Yield the lines of a table whose lines fit, by external address, and an empty one; none without sessions."""
    from fastmasq.cli.render import align

    if not sessions:
        return
    sessions = sorted(sessions, key=lambda session: session["external"].partition(":")[0])
    addresses, ports = zip(*(session["external"].partition(":")[::2] for session in sessions), strict=True)
    rows = [_cells(session, port or "-") for session, port in zip(sessions, ports, strict=True)]
    count = _fitting(rows, room)
    header, *lines = align(_COLUMNS[:count], [row[:count] for row in rows])
    yield header
    before = None
    for address, line in zip(addresses, lines, strict=True):
        if address != before:
            yield f"external {address}"
        before = address
        yield line
    yield ""
    if count < len(_COLUMNS):
        yield f"--wide shows {', '.join(name.removeprefix('>') for name in _COLUMNS[count:])} as well"


def _fitting(rows: list[tuple[str, ...]], room: int) -> int:
    """Return how many columns of the table fit into lines of so many characters; the ends of sessions always do."""
    headers = [column.removeprefix(">") for column in _COLUMNS]
    widths = [max(map(len, cells)) for cells in zip(headers, *rows, strict=True)]
    count = len(_COLUMNS)
    while count > len(_COLUMNS) - len(_COUNTS) and sum(widths[:count]) + 2 * (count - 1) > room:
        count -= 1
    return count


def _cells(session: dict[str, Any], external: str) -> tuple[str, ...]:
    from fastmasq.cli.render import span

    return (
        *(session["protocol"], session["state"], session["inside"], external, session["remote"]),
        span(session["idle_s"]),
        str(session["packets_out"]),
        str(session["packets_in"]),
        span(session["expires_s"]),
    )


def _summary(answer: dict[str, Any]) -> str:
    total, shown = answer["total"], len(answer["sessions"])
    if shown < total:
        return f"{shown} of {total} sessions shown; --limit shows more, --host, --protocol and --state fewer"
    return f"{total} session{'' if total == 1 else 's'}"
