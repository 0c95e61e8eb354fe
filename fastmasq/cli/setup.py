"""`fastmasq setup`: asks which links lead inside and outside, and writes the configuration."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastmasq.cli.options import CONFIG_FILE, LINK, require_one_side

if TYPE_CHECKING:
    from fastmasq.deploy.links import Candidate


@click.command()
@click.option("-c", "--config", metavar="FILE", default=CONFIG_FILE, show_default=True, help="The file to write.")
@click.option("--inside", metavar="LINK", type=LINK, multiple=True, help="A link to private hosts; may be repeated.")
@click.option("--outside", metavar="LINK", type=LINK, help="The link to the internet; it may come later.")
def setup(config: str, inside: tuple[str, ...], outside: str | None) -> None:
    """Ask for the two links, and write the configuration.

    Shows the links that are there; the outside one is by default that of the default route. Without questions if
    --inside and --outside are given. A file that exists is not touched.
    """
    from fastmasq.deploy import configuration, links
    from fastmasq.errors import ConfigurationError, KernelError

    if os.path.lexists(config):
        raise KernelError(f"{config} exists; change it there, or move it away (`fastmasq check` says what is wrong)")
    found = links.candidates()
    if not inside or not outside:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ConfigurationError("name the links with --inside and --outside: there is no terminal to ask at")
        outside, inside = _ask(found, outside, inside)
    _judge(found, inside, outside)
    try:
        with Path(config).open("x") as file:
            file.write(configuration.compose(list(dict.fromkeys(inside)), outside))
    except OSError as error:
        raise KernelError(f"{config}: {error.strerror}") from None
    click.echo(f"{config}: inside {', '.join(dict.fromkeys(inside))}, outside {outside}")
    click.echo(f"then: fastmasq check -c {config}")


def _ask(found: list[Candidate], outside: str | None, inside: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    from fastmasq.deploy import links

    click.echo("The links of this host:")
    for each in found:
        click.echo(f"  {each.describe()}")
    if not outside:
        default = links.default_outside(found) or None
        outside = click.prompt("Outside, the link to the internet", default=default, type=LINK)
    if not inside:
        default = " ".join(links.default_inside(found, outside)) or None
        answer = click.prompt("Inside, the link to private hosts (several with blanks)", default=default)
        inside = tuple(LINK.convert(word, None, None) for word in answer.replace(",", " ").split())
    return outside, inside


def _judge(found: list[Candidate], inside: tuple[str, ...], outside: str) -> None:
    """Raise UsageError for links that cannot be what they are named as. The outside one may come later."""
    names = [each.name for each in found]
    if not inside:
        raise click.UsageError("no inside link: name the link to private hosts.")
    require_one_side(inside, outside)
    if missing := [name for name in inside if name not in names]:
        raise click.UsageError(f"no link {', '.join(missing)} here; there are: {', '.join(names) or 'none'}.")
