"""`fastmasq log`: how much the running forwarder logs, by subsystem and for a while."""

from __future__ import annotations

import click

from fastmasq.cli.options import Checked, client_options, find_socket, json_option
from fastmasq.units import NS_PER_SECOND, parse_duration

EVER = "ever"


def _read_time(text: str) -> float | None:
    """Return seconds, None for ever. Raises ValueError."""
    return None if text == EVER else parse_duration(text) / NS_PER_SECOND


@click.command()
@click.argument("words", metavar="[[SUBSYSTEM] LEVEL]", nargs=-1)
@click.option("--for", "seconds", metavar="TIME", type=Checked("time", _read_time), default="10m", show_default=True,
              help="How long; then the level is that of the start again. `ever`: until fastmasq ends.")  # fmt: skip
@client_options
@json_option
def log(words: tuple[str, ...], seconds: float | None, socket: str | None, config: str | None, as_json: bool) -> None:
    """List or change what the running forwarder logs.

    LEVEL is debug, info, warning or error: the least that is logged. Without SUBSYSTEM it is that of all. Without
    either, the levels are listed. A level changes back by itself, so that a log does not fill the disk: `fastmasq log
    vpn debug --for 10m`.
    """
    from fastmasq.cli.render import align, print_json, span
    from fastmasq.control.client import call

    if len(words) > 2:
        raise click.UsageError("one subsystem and one level at most: `fastmasq log vpn debug`.")
    params = {}
    if words:
        subsystem, level = (None, *words)[-2:]
        subsystem = subsystem and subsystem.removeprefix("fastmasq.")  # as in --log-json
        params = {"subsystem": subsystem, "level": level, "seconds": seconds}
    levels = call(find_socket(socket, config), "log", **params)
    if as_json:
        print_json(levels)
        return
    rows = [
        (
            one["subsystem"],
            one["level"],
            "" if one["reverts_s"] is None else f"{span(one['reverts_s'])} more",
            one["says"],
        )
        for one in levels
    ]
    click.echo("\n".join(align(("Subsystem", "Level", "For", "About"), rows)))
