"""`fastmasq rule`: the rules of the running forwarder, and rule sets to begin with."""

from __future__ import annotations

import click

from fastmasq.cli.rule_load import load
from fastmasq.cli.rule_template import template, templates


@click.group()
def rule() -> None:
    """Change the rules of the running forwarder, or print rule sets of the VPN Masquerade HOWTO."""


for command in (load, template, templates):
    rule.add_command(command)
