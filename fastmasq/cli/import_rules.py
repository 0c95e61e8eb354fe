"""`fastmasq import`: carry over what iptables or nftables do on a host today."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, BinaryIO

import click

from fastmasq.cli.options import ADDRESS, LINK, Checked, Group
from fastmasq.config.values import InterfaceName
from fastmasq.errors import ConfigurationError, FastmasqError

LEFT_OUT = 3  # exit status: done, but something is missing
LARGEST = 32 << 20  # octets: of half a million rules


@click.group("import", cls=Group)
def import_rules() -> None:
    """Carry over what iptables or nft do on a host today.

    The rules are evaluated as the kernel does it: for which packets they masquerade, forward, accept. That becomes a
    fastmasq.toml (--format toml) and, where it needs one, the file of rules it names (--format rules).

    What could not be carried over is listed on standard error, with its place and the reason, and at the head of the
    file; nothing passes for which it would have had to be asked. The exit status is 3 then. The manual's page
    migration.md says what is carried over.
    """


def _read_inside(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the name of a link and the networks behind it; raises ValueError."""
    name, _, networks = text.partition("=")
    found = tuple(networks.split(",")) if networks else ()
    for network in found:
        try:
            IPv4Network(network, strict=False)
        except ValueError:
            raise ValueError(f"{network!r} is not an IPv4 network; write for example wg0=10.8.0.0/24") from None
    return InterfaceName.read(name), found


def _read(file: BinaryIO) -> bytes:
    """Return what a file or a pipe holds. Raises ConfigurationError for one that has no end."""
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ConfigurationError(f"{file.name}: has more than {LARGEST} octets; name a file of rules")
    return data


def _text(data: bytes, name: str) -> str:
    """Return what a file has. Raises ConfigurationError for one that is no text."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise ConfigurationError(f"{name}: has zero octets, as UTF-16 has; save it as UTF-8")
    return data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--format", "form", type=click.Choice(["toml", "rules"]), default="toml", show_default=True),
        click.option("--address", type=ADDRESS, multiple=True, help="An address of the gateway, for its host rules."),
        click.option("--outside", type=LINK, help="The outside link.  [default: where they masquerade]"),
        click.option(
            "--inside",
            metavar="LINK[=NETWORKS]",
            type=Checked("link", _read_inside),
            multiple=True,
            help="An inside link, and what is behind it: eth0, wg0=10.8.0.0/24.  [default: where that comes from]",
        ),
        click.argument("file", type=click.File("rb")),
    ):
        function = option(function)
    return function


@import_rules.command("iptables-save")
@_options
def iptables_save(file: BinaryIO, **options: Any) -> None:
    """Read the output of `iptables-save` from FILE; - is standard input."""
    from fastmasq.migrate.iptables_save import read

    _carry(read(_text(_read(file), file.name)), **options)


@import_rules.command("nft")
@_options
def nft(file: BinaryIO, **options: Any) -> None:
    """Read rules of nft from FILE; - is standard input.

    FILE is what `nft -f` reads, for example /etc/nftables.conf, or what `nft list ruleset` or `nft -j list ruleset`
    prints. nft itself reads it, in an empty network namespace; the host's rules are not touched.
    """
    from fastmasq.kernel.links import list_interfaces
    from fastmasq.migrate import nft_json, nft_load

    data, written = _read(file), None
    text = _text(data, file.name)
    is_file = Path(file.name).is_file() and text.encode() == data  # what came by a pipe cannot be read twice
    links = [*dict(options["inside"]), options["outside"] or "", *(each.name for each in list_interfaces())]
    try:
        text, written = nft_load.load(file.name, None if is_file else text, links)
    except FastmasqError:
        if not nft_load.is_json(text):  # which can be read without nft, if without its words
            raise
    try:
        _carry(nft_json.read(text, written), **options)
    except ConfigurationError as error:
        if '"xt":' not in text:
            raise
        raise ConfigurationError(f"{error}; {nft_load.OF_IPTABLES}") from None


def _carry(
    chains: Any,
    *,
    form: str,
    address: tuple[str, ...],
    inside: tuple[tuple[str, tuple[str, ...]], ...],
    outside: str | None,
) -> None:
    from fastmasq.migrate.carry import carry
    from fastmasq.migrate.files import RULES_FILE, script, toml
    from fastmasq.migrate.foreign import read_network
    from fastmasq.migrate.links import this_host
    from fastmasq.migrate.regions import ranges_of

    networks = {link: ranges_of(read_network(each) for each in named) for link, named in inside if named}
    carried = carry(
        chains,
        inside=list(dict(inside)),
        outside=outside or "",
        addresses=address,
        networks=networks,
        here=this_host(),
    )
    for note in carried.notes:
        click.echo(str(note), err=True)
    if form == "rules":
        click.echo("\n".join(script(carried)))
    else:
        click.echo(toml(carried), nl=False)
        if carried.needs_rules:
            click.echo(f"Its file of rules: the same command with --format rules > {RULES_FILE}", err=True)
    if carried.missing:
        click.get_current_context().exit(LEFT_OUT)
