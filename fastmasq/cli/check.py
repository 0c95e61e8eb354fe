"""`fastmasq check`: what is wrong with a configuration, and what this host lacks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fastmasq.cli.options import CONFIG_FILE

if TYPE_CHECKING:
    from fastmasq.config.schema import Settings


@click.command()
@click.option("-c", "--config", metavar="FILE", default=CONFIG_FILE, show_default=True, help="The configuration.")
@click.option("--sample", is_flag=True, help="Print a configuration with every key, its default and reason; no check.")
@click.pass_context
def check(ctx: click.Context, config: str, sample: bool) -> None:
    """Find mistakes in a configuration, and what this host lacks for it.

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
    """Return what is to be said about the rule files, and about the rules in them. Raises ConfigurationError."""
    from fastmasq.legacy.names import Names
    from fastmasq.legacy.script import prepare
    from fastmasq.policy.chains import RuleSet
    from fastmasq.policy.changes import apply
    from fastmasq.policy.lint import Surroundings, lint

    if not settings.rules.files:
        return []
    rules = RuleSet()
    prepared = prepare(settings.rules.files, Names(), rules, tolerant=not settings.rules.strict)
    links = settings.interfaces
    around = Surroundings(inside=tuple(links.inside), outside=links.outside, addresses=_addresses())
    findings = lint(apply(rules, prepared.changes), around)
    return [
        *(f"warning: {warning}" for warning in prepared.warnings),
        *(f"{finding.severity}: rules: {finding}" for finding in findings),
    ]


def _addresses() -> dict[str, tuple[int, ...]]:
    """Return the IPv4 addresses of this host's links."""
    import socket
    from ipaddress import IPv4Address

    import psutil

    return {
        name: tuple(int(IPv4Address(one.address)) for one in addresses if one.family == socket.AF_INET)
        for name, addresses in psutil.net_if_addrs().items()
    }
