"""`fastmasq rule template` and `templates`: the HOWTO's rule sets, as they are or with your own addresses."""

from __future__ import annotations

import click

from fastmasq.cli.options import json_option


@click.command()
@click.argument("name")
@click.option("--lan", metavar="NETWORK", default="", help="Your inside network, for 10.0.0.0/8.")
@click.option("--host", metavar="ADDRESS", multiple=True, help="Your VPN client or server inside; may be repeated.")
@click.option("--peer", metavar="ADDRESS", multiple=True, help="Whom it talks to; may be repeated; or a network.")
@click.option("--public", metavar="ADDRESS", default="", help="Your outside address, for 200.200.200.200.")
@click.option("--inside", metavar="LINK", default="", help="Your inside link, for eth0.")
@click.option("--outside", metavar="LINK", default="", help="Your outside link, for ppp0 or eth1.")
def template(name: str, host: tuple[str, ...], peer: tuple[str, ...], **places: str) -> None:
    """Print a rule set of the HOWTO; `fastmasq rule templates` lists them.

    Without options it is word for word the HOWTO's. With options its example addresses and links are replaced, and its
    one misprint (-0) is corrected.
    """
    from fastmasq.advice.templates import Places, fill, text_of

    text = text_of(name)
    if host or peer or any(places.values()):
        text = fill(text, Places(hosts=host, peers=peer, **places))
    click.echo(text, nl=False)


@click.command()
@json_option
def templates(as_json: bool) -> None:
    """List the rule sets that `fastmasq rule template` prints."""
    from fastmasq.advice.templates import TEMPLATES
    from fastmasq.cli.render import align, print_json

    if as_json:
        print_json([{"name": name, "for": purpose} for name, purpose in TEMPLATES])
        return
    click.echo("\n".join(align(("Name", "What it is for"), TEMPLATES)))
