"""`fastmasq rule`: the rules of the running forwarder."""

from __future__ import annotations

import click

from fastmasq.cli.rule_load import load


@click.group()
def rule() -> None:
    """Change the rules of the running forwarder."""


rule.add_command(load)
