"""`fastmasq forward`: ports of the outside that lead to inside hosts, listed and changed while fastmasq runs."""

from __future__ import annotations

from typing import Any

import click

from fastmasq.cli.options import Group, client_options, find_socket, json_option
from fastmasq.policy.forwards import Remotes

_PROTOCOL = click.argument("protocol", type=click.Choice(["tcp", "udp"]))
_LISTEN = click.argument("listen")


@click.group(cls=Group)
def forward() -> None:
    """Lead ports of the outside to inside hosts.

    Changes hold until fastmasq ends; write [[forward]] into the configuration to keep them. Sessions that are open
    are never touched by a change.
    """


@forward.command()
@_PROTOCOL
@_LISTEN
@click.argument("to", nargs=-1, required=True)
@click.option("--preference", "preferences", metavar="COUNT", type=click.IntRange(1), multiple=True,
              help="New sessions in a row for the target of the same place; 10 without.")  # fmt: skip
@click.option("--force", is_flag=True, help="Take the port even from a running program of the gateway.")
@client_options
def add(
    protocol: str,
    listen: str,
    to: tuple[str, ...],
    preferences: tuple[int, ...],
    force: bool,
    socket: str | None,
    config: str | None,
) -> None:
    """Forward LISTEN, such as eth1:8080 or 200.200.200.200:6000-6010, to inside endpoints TO, such as 10.0.0.2:80.

    Several targets take turns. For a range of ports, TO names the first port.
    """
    from fastmasq.policy import forwards

    new = forwards.read(protocol, listen, to, preferences, steal=force)
    _change(socket, config, forwards.Change(action="add", forward=new))


@forward.command()
@_PROTOCOL
@_LISTEN
@client_options
def delete(protocol: str, listen: str, socket: str | None, config: str | None) -> None:
    """Forward LISTEN, spelled as in the list, no longer."""
    from fastmasq.policy import forwards

    gone = forwards.read(protocol, listen, ["192.0.2.1:1"])
    _change(socket, config, forwards.Change(action="delete", forward=gone))


@forward.command()
@client_options
def clear(socket: str | None, config: str | None) -> None:
    """Forward nothing any more."""
    from fastmasq.policy import forwards

    _change(socket, config, forwards.Change(action="clear"))


@forward.command("list")
@client_options
@json_option
def list_forwards(socket: str | None, config: str | None, as_json: bool) -> None:
    """List the forwards; the target whose turn it is comes first."""
    from fastmasq.cli.render import align, print_json
    from fastmasq.control.client import call
    from fastmasq.policy.forwards import write_ports

    forwards = call(find_socket(socket, config), "forwards")
    if as_json:
        print_json(forwards)
    elif not forwards:
        click.echo("no forwards")
    else:
        rows = [
            (
                one["protocol"],
                write_ports(one["listen"], one["first"], one["last"]),
                one["address"] or "",
                ", ".join(_target(target) for target in one["targets"]),
                one["state"],
                _origin(one),
            )
            for one in forwards
        ]
        click.echo("\n".join(align(("Protocol", "Listen", "Address", "To", "State", "From"), rows)))


def _target(target: dict[str, Any]) -> str:
    return f"{target['address']}:{target['port']} ({target['preference']})"


def _origin(forward: dict[str, Any]) -> str:
    """Return where a forward comes from; of one that an inside host has asked for, who, and how long it has it."""
    from fastmasq.units import NS_PER_SECOND, format_duration

    if forward["owner"] is None:
        return str(forward["from"])
    left = format_duration(forward["left_s"] * NS_PER_SECOND)
    text = f"{forward['from']} by {forward['owner']}, {left} left"
    remotes = [str(Remotes(**one)) for one in forward["remotes"]]
    return f"{text}, for {', '.join(remotes)}" if remotes else text


def _change(socket: str | None, config: str | None, change: Any) -> None:
    import msgspec

    from fastmasq.control.client import call

    answer = call(find_socket(socket, config), "forwards.change", changes=[msgspec.to_builtins(change)])
    for warning in answer["warnings"]:
        click.echo(f"fastmasq: {warning}", err=True)
