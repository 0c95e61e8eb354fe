"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from ipaddress import AddressValueError, IPv4Address
from typing import Any

import click

from fastmasq.config.values import DEFAULT_SOCKET, USUAL_SOCKETS, InterfaceName, SocketPath

CONFIG_FILE = "/etc/fastmasq.toml"
SOCKET_VARIABLE = "FASTMASQ_SOCKET"

_Function = Callable[..., Any]
_LONGEST_SENTENCE = 400  # click cuts it after 45 characters


class Checked(click.ParamType):
    """An option's type: what `read` makes of the text; a ValueError of it is the user's mistake."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _read_address(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except AddressValueError:
        raise ValueError(f"{text!r} is not an IPv4 address; write for example 10.0.0.2") from None


ADDRESS = Checked("address", _read_address)
LINK = Checked("link", InterfaceName.read)
SOCKET = Checked("path", lambda text: SocketPath.read(os.path.abspath(text)))


def client_options(function: _Function) -> _Function:
    """Add --socket and --config: how a client finds the running forwarder (see `find_socket`)."""
    socket = click.option(
        "--socket",
        metavar="PATH",
        type=SOCKET,
        envvar=SOCKET_VARIABLE,
        show_envvar=True,
        help="The control socket of the forwarder.",
    )
    config = click.option(
        "-c",
        "--config",
        metavar="FILE",
        help=f"Without --socket: take the socket named in this configuration.  [default: {DEFAULT_SOCKET}]",
    )
    return socket(config(function))


class Group(click.Group):
    """A group whose help has the first sentence of each command whole."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(_LONGEST_SENTENCE)) for name, command in commands])


def json_option(function: _Function) -> _Function:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(function)


def confirm_option(function: _Function) -> _Function:
    """Add --confirm: the change goes back by itself."""
    return click.option(
        "--confirm",
        "confirm_s",
        metavar="SECONDS",
        type=click.IntRange(1, 86_400),
        help="Go back to what was before after so long, unless `fastmasq confirm` comes.",
    )(function)


def waiting_line(confirm_s: int) -> str:
    """Return what is said of a change that goes back by itself."""
    return f"this goes back in {confirm_s} s, unless you say `fastmasq confirm`"


def require_one_side(inside: Collection[str], outside: str) -> None:
    """Raise UsageError for a link that is named on both sides."""
    if outside in inside:
        raise click.UsageError(f"{outside} is named inside and outside: a link has one side.")


def find_socket(socket: str | None, config: str | None) -> str:
    """Return --socket or FASTMASQ_SOCKET, else what the configuration says, else the usual place that serves us."""
    if socket:
        return socket
    from fastmasq.control.client import find_running

    if not config:
        return find_running(USUAL_SOCKETS)
    from fastmasq.config.load import load

    control = load(config).settings.control
    return find_running([path for path in (control.socket, control.status_socket) if path])
