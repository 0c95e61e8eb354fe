"""`fastmasq rule`: the rules of the running forwarder, and rule sets to begin with."""

from __future__ import annotations

import click

from fastmasq.cli.options import Group
from fastmasq.cli.rule_list import list_rules
from fastmasq.cli.rule_load import load
from fastmasq.cli.rule_reset import reset
from fastmasq.cli.rule_template import template, templates
from fastmasq.cli.rule_trace import trace


@click.group(cls=Group)
def rule() -> None:
    """List, question and change the rules of the running forwarder, or print rule sets of the VPN Masquerade HOWTO."""


for command in (list_rules, trace, load, reset, template, templates):
    rule.add_command(command)
