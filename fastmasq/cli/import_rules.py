"""`fastmasq import`: carry over what iptables or nftables do on a host today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fastmasq.cli.options import ADDRESS, LINK, Group


@click.group("import", cls=Group)
def import_rules() -> None:
    """Carry over what iptables or nft do on a host today.

    Masquerading and SNAT, DNAT and REDIRECT, and filter rules become a fastmasq.toml (--format toml) and, where it
    needs one, the file of rules it names (--format rules). What could not be carried over is listed on standard error,
    with the line and the reason: read it before you use the result.
    """


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--format", "form", type=click.Choice(["toml", "rules"]), default="toml", show_default=True),
        click.option("--address", type=ADDRESS, multiple=True, help="An address of the gateway, for its host rules."),
        click.option("--outside", type=LINK, help="The outside link.  [default: where they masquerade]"),
        click.option("--inside", type=LINK, multiple=True, help="An inside link.  [default: the others they name]"),
        click.argument("file", type=click.File()),
    ):
        function = option(function)
    return function


@import_rules.command("iptables-save")
@_options
def iptables_save(file: Any, **options: Any) -> None:
    """Read the output of `iptables-save` from FILE; - is standard input."""
    from fastmasq.migrate.iptables_save import read

    _carry(read(file.read()), **options)


@import_rules.command("nft")
@_options
def nft(file: Any, **options: Any) -> None:
    """Read the output of `nft -j list ruleset`, or of `nft list ruleset`, from FILE; - is standard input."""
    from fastmasq.migrate import nft_json, nft_text

    text = file.read()
    reader = nft_json if text.lstrip().startswith("{") else nft_text
    _carry(reader.read(text), **options)


def _carry(chains: Any, *, form: str, address: tuple[str, ...], inside: tuple[str, ...], outside: str | None) -> None:
    from fastmasq.migrate.carry import carry
    from fastmasq.migrate.files import RULES_FILE, script, toml

    carried = carry(chains, inside=inside, outside=outside or "", addresses=address)
    for note in carried.notes:
        click.echo(str(note), err=True)
    if form == "rules":
        click.echo("\n".join(script(carried)))
        return
    click.echo(toml(carried), nl=False)
    if carried.needs_rules:
        click.echo(f"Its file of rules: the same command with --format rules > {RULES_FILE}", err=True)
