"""`fastmasq redirect`: protocols without ports that go to an inside host, listed and changed while fastmasq runs."""

from __future__ import annotations

import socket as sockets
from typing import Any

import click

from fastmasq.cli.options import ADDRESS, Checked, Group, client_options, find_socket, json_option


def read_protocol(text: str) -> str:
    """Return the number of a protocol given by number or name (/etc/protocols), as text. Raises ValueError."""
    if text.isascii() and text.isdigit():
        return text
    try:
        return str(sockets.getprotobyname(text))
    except OSError:
        raise ValueError(f"{text!r} is not a protocol; write its number, for example 47 for GRE") from None


_PROTOCOL = click.argument("protocol", type=Checked("protocol", read_protocol))
_FROM = click.option(
    "--from", "source", metavar="NETWORK", default="0.0.0.0/0", help="Only from these remote addresses."
)


@click.group(cls=Group)
def redirect() -> None:
    """Lead protocols without ports, such as GRE (47) and ESP (50), to inside hosts.

    Packets of open sessions are not affected. Changes hold until fastmasq ends; write [[redirect]] into the
    configuration to keep them.
    """


@redirect.command()
@_PROTOCOL
@click.argument("host", type=ADDRESS)
@_FROM
@click.option("--force", is_flag=True, help="Take the protocol even from a running program or tunnel of the gateway.")
@client_options
def add(protocol: str, host: str, source: str, force: bool, socket: str | None, config: str | None) -> None:
    """Have HOST get PROTOCOL; it takes the place of the host that got it before."""
    _change(socket, config, "set", protocol, host, source, steal=force)


@redirect.command()
@_PROTOCOL
@_FROM
@client_options
def delete(protocol: str, source: str, socket: str | None, config: str | None) -> None:
    """Redirect PROTOCOL no longer."""
    _change(socket, config, "delete", protocol, "192.0.2.1", source)


@redirect.command()
@client_options
def clear(socket: str | None, config: str | None) -> None:
    """Redirect nothing any more."""
    from fastmasq.control.client import call

    call(find_socket(socket, config), "redirects.change", changes=[{"action": "clear"}])


@redirect.command("list")
@client_options
@json_option
def list_redirects(socket: str | None, config: str | None, as_json: bool) -> None:
    """List the redirects."""
    from fastmasq.cli.render import align, print_json
    from fastmasq.control.client import call

    redirects = call(find_socket(socket, config), "redirects")
    if as_json:
        print_json(redirects)
    elif not redirects:
        click.echo("no redirects")
    else:
        rows = [(str(one["protocol"]), one["source"], one["host"]) for one in redirects]
        click.echo("\n".join(align((">Protocol", "From", "To"), rows)))


def _change(
    socket: str | None, config: str | None, action: str, protocol: str, host: str, source: str, *, steal: bool = False
) -> None:
    from fastmasq.control.client import call

    redirect: dict[str, Any] = {"protocol": int(protocol), "host": host, "source": source, "steal": steal}
    call(find_socket(socket, config), "redirects.change", changes=[{"action": action, "redirect": redirect}])
