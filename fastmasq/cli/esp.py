"""`fastmasq esp`: SPIs of inside hosts told beforehand, so that the gateway need not find out whose an SA is."""

from __future__ import annotations

from typing import Any

import click

from fastmasq.cli.options import ADDRESS, Checked, Group, client_options, find_socket, json_option
from fastmasq.trackers.vpn.preload import SPIS, UNTIL_DELETED
from fastmasq.units import NS_PER_SECOND, parse_duration


def read_spi(text: str) -> str:
    """Return an SPI, written in decimal or as 0x and hexadecimal, in decimal. Raises ValueError."""
    try:
        number = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        raise ValueError(f"{text!r} is not an SPI; write for example 0xc1a2b3c4 or 3248665540") from None
    if number not in SPIS:
        raise ValueError(f"{text} cannot be an SPI; they are {SPIS[0]} to 0x{SPIS[-1]:x}")
    return str(number)


def read_lifetime(text: str) -> str:
    """Return whole seconds as text, or "until-deleted". Raises ValueError."""
    if text == UNTIL_DELETED:
        return text
    try:
        seconds = parse_duration(text) // NS_PER_SECOND
    except ValueError:
        raise ValueError(f"{text!r} is not a lifetime; write for example 3600, 1h or {UNTIL_DELETED}") from None
    if seconds < 1:
        raise ValueError(f"{text} is too short; a lifetime is one second at least")
    return str(seconds)


_SPI = Checked("SPI", read_spi)
_REMOTE = click.option("--remote", metavar="ADDRESS", type=ADDRESS, required=True, help="The other end of the SA.")
_INBOUND = click.option("--inbound", metavar="SPI", type=_SPI, required=True,
                        help="SPI of the packets that come in: the one that the inside host has chosen.")  # fmt: skip
_MASQ = click.option("--masq", metavar="ADDRESS", type=ADDRESS,
                     help="External address of the gateway.  [default: the one that the route has now]")  # fmt: skip


_LIFETIME_HELP = (
    "How long the SA is kept after its last packet: seconds, 1h, or until-deleted.  [default: [vpn] ipsec_lifetime]"
)
_ANNOUNCEMENT = (
    click.option("--inside", metavar="ADDRESS", type=ADDRESS, required=True, help="The inside host."),
    _REMOTE,
    _INBOUND,
    click.option("--outbound", metavar="SPI", type=_SPI, help="SPI of the packets that go out; else it is learned."),
    _MASQ,
    click.option("--lifetime", metavar="SECONDS", type=Checked("lifetime", read_lifetime), help=_LIFETIME_HELP),
    client_options,
)


def _announcement(function: Any) -> Any:
    """Add the options of add and replace."""
    for option in reversed(_ANNOUNCEMENT):
        function = option(function)
    return function


@click.group(cls=Group)
def esp() -> None:
    """Tell the SPIs of inside hosts beforehand: their ESP passes both ways at once, and nothing is guessed.

    Inside hosts can do that themselves, see `fastmasq esp script`. What is told is lost when fastmasq ends.
    """


@esp.command()
@_announcement
def add(socket: str | None, config: str | None, **sa: str | None) -> None:
    """Add the SA of an inside host. An inbound SPI that another inside host has is refused."""
    _change(socket, config, "add", sa)


@esp.command()
@_announcement
def replace(socket: str | None, config: str | None, **sa: str | None) -> None:
    """Add the SA of an inside host, and take its inbound SPI away from another that has it."""
    _change(socket, config, "replace", sa)


@esp.command()
@_REMOTE
@_INBOUND
@_MASQ
@client_options
def delete(socket: str | None, config: str | None, **sa: str | None) -> None:
    """Delete an SA, told or found out."""
    _change(socket, config, "delete", sa)


@esp.command()
@click.option("--inside", metavar="ADDRESS", type=ADDRESS, help="Only those of this host.")
@client_options
def flush(socket: str | None, config: str | None, inside: str | None) -> None:
    """Delete all SAs that were told; those found out stay."""
    _change(socket, config, "flush", {"inside": inside})


@esp.command("list")
@client_options
@click.option("--inside", metavar="ADDRESS", type=ADDRESS, help="Only those of this host.")
@json_option
def list_sas(socket: str | None, config: str | None, inside: str | None, as_json: bool) -> None:
    """List the SAs that were told; `fastmasq vpn` lists all, with their packets."""
    from fastmasq.cli.render import align, print_json, span, spi
    from fastmasq.control.client import call

    sas = call(find_socket(socket, config), "esp", **({"inside": inside} if inside else {}))
    if as_json:
        print_json(sas)
    elif not sas:
        click.echo("no SAs were told")
    else:
        rows = [
            (
                one["inside"],
                one["masq"],
                one["remote"],
                spi(one["outbound_spi"]),
                spi(one["inbound_spi"]),
                span(one["age_s"]),
                UNTIL_DELETED if one["lifetime_s"] == UNTIL_DELETED else span(one["left_s"]),
            )
            for one in sas
        ]
        columns = (">Inside", ">External", ">Remote", ">SPI out", ">SPI in", ">Age", ">Left")
        click.echo("\n".join(align(columns, rows)))


@esp.command()
@click.argument("name", type=click.Choice(["client", "strongswan", "libreswan"]))
def script(name: str) -> None:
    """Print a program for inside hosts with an IKE daemon, to be put there.

    client is fastmasq-spi, which tells the gateway; strongswan and libreswan are updown scripts that call it. How they
    are installed stands at the beginning of each.
    """
    from fastmasq.advice.templates import FOLDER

    file = {"client": "fastmasq-spi"}.get(name, f"{name}.sh")
    click.echo((FOLDER / "updown" / file).read_text(), nl=False)


def _change(socket: str | None, config: str | None, do: str, sa: dict[str, str | None]) -> None:
    from fastmasq.control.client import call

    params: dict[str, Any] = {key: sa[key] for key in ("inside", "remote", "masq") if sa.get(key)}
    params |= {f"{key}_spi": int(sa[key] or 0) for key in ("inbound", "outbound") if sa.get(key)}
    lifetime = sa.get("lifetime")
    if lifetime:
        params["lifetime_s"] = lifetime if lifetime == UNTIL_DELETED else int(lifetime)
    call(find_socket(socket, config), "esp.change", do=do, **params)
