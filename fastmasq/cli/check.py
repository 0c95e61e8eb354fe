"""`fastmasq check`: what is wrong with a configuration, and what this host lacks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import click

from fastmasq.cli.options import CONFIG_FILE

if TYPE_CHECKING:
    from fastmasq.advice.lint import ForwardedPort
    from fastmasq.config.schema import Settings
    from fastmasq.policy.forwards import Forward


@click.command()
@click.option("-c", "--config", metavar="FILE", default=CONFIG_FILE, show_default=True, help="The configuration.")
@click.option("--sample", is_flag=True, help="Print a configuration with every key, its default and reason; no check.")
@click.pass_context
def check(ctx: click.Context, config: str, sample: bool) -> None:
    """Find mistakes in a configuration, and what this host lacks.

    Mistakes are printed as FILE:LINE: what; suggestion. Nothing is changed. Exit status: 0 ready to run (there may be
    warnings), 1 this host lacks something, 2 the configuration is wrong.
    """
    from fastmasq.config.load import SAMPLE, load
    from fastmasq.errors import ConfigurationError

    if sample:
        click.echo(SAMPLE.read_text(), nl=False)
        return
    try:
        loaded = load(config)
    except ConfigurationError as error:
        click.echo(str(error), err=True)
        ctx.exit(error.exit_status)
    from fastmasq.daemon.preflight import findings

    try:
        remarks = _read_rules(loaded.settings)
    except ConfigurationError as error:
        click.echo(str(error), err=True)
        ctx.exit(error.exit_status)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}")
    for remark in remarks:
        click.echo(remark)
    found = findings(loaded.settings)
    for finding in found:
        click.echo(f"{finding.severity}: {finding.text}")
    if any(finding.severity == "error" for finding in found):
        ctx.exit(1)
    click.echo(f"{config}: ready to run")


def _read_rules(settings: Settings) -> list[str]:
    """Return what is to be said about the rule files, the rules and the forwards. Raises ConfigurationError."""
    from fastmasq.advice.lint import Surroundings, lint
    from fastmasq.daemon.policy import declare

    declared = declare(settings)
    links, addresses = settings.interfaces, _addresses()
    around = Surroundings(
        inside=tuple(links.inside),
        outside=links.outside,
        addresses=addresses,
        forwards=tuple(_from_outside(declared.forwards, links.outside, addresses)),
        redirects=tuple(one.protocol for one in declared.redirects),
        pptp=settings.vpn.pptp,
    )
    return [
        *(f"warning: {warning}" for warning in declared.warnings),
        *(f"{finding.severity}: rules: {finding}" for finding in lint(declared.rules, around)),
    ]


def _from_outside(
    declared: Iterable[Forward], outside: str, addresses: Mapping[str, tuple[int, ...]]
) -> Iterator[ForwardedPort]:
    """Yield the port forwards that are reached by the outside link, one for each target."""
    from ipaddress import IPv4Address

    from fastmasq.advice.lint import ForwardedPort
    from fastmasq.policy import forwards
    from fastmasq.wire.numbers import BY_NAME

    elsewhere = {address for link, own in addresses.items() if link != outside for address in own}
    for forward in declared:
        listen = forwards.read_address(forward.listen)
        own = 0 if listen is None else int(listen)
        if own in elsewhere or (listen is None and forward.listen not in (outside, forwards.OUTSIDE)):
            continue
        for target in forward.targets:
            yield ForwardedPort(
                protocol=BY_NAME[forward.protocol],
                first=forward.first,
                last=forward.last,
                address=int(IPv4Address(target.address)),
                port=target.port,
                listen=own,
            )


def _addresses() -> dict[str, tuple[int, ...]]:
    """Return the IPv4 addresses of this host's links."""
    import socket
    from ipaddress import IPv4Address

    import psutil

    return {
        name: tuple(int(IPv4Address(one.address)) for one in addresses if one.family == socket.AF_INET)
        for name, addresses in psutil.net_if_addrs().items()
    }
