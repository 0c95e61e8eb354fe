"""`fastmasq rule load`: adds the rules of a script of 1999 to those of the running forwarder."""

from __future__ import annotations

from typing import Any

import click

from fastmasq.cli.options import client_options, confirm_option, find_socket, json_option, waiting_line


@click.command()
@client_options
@click.option("--strict", is_flag=True, help="Repair nothing: take what the programs of 1999 took, refuse the rest.")
@confirm_option
@json_option
@click.argument("file")
@click.argument("arguments", nargs=-1)
def load(
    socket: str | None,
    config: str | None,
    strict: bool,
    confirm_s: int | None,
    as_json: bool,
    file: str,
    arguments: tuple[str, ...],
) -> None:
    """Do what the ipfwadm and ipchains commands in FILE say, all of it or nothing.

    ARGUMENTS are what $1, $2, ${4} stand for in the file: let /etc/ppp/ip-up.local say `fastmasq rule load FILE "$@"`.
    Lines of other programs are ignored with a warning. Mistakes are printed as FILE:LINE: what; suggestion.
    """
    import msgspec

    from fastmasq.cli.render import print_json
    from fastmasq.control.client import call
    from fastmasq.legacy.names import Names
    from fastmasq.legacy.script import may_be_left_out, prepare

    path = find_socket(socket, config)
    present = _rule_set(call(path, "rules"))
    prepared = prepare([file], Names(), present, tolerant=not strict, arguments=arguments)
    lines = [{"place": file, "method": "rules.change", "params": {"changes": msgspec.to_builtins(prepared.changes)}}]
    for place, request, _ in prepared.others:
        method, params = request.call()
        optional = not strict and may_be_left_out(request)
        lines.append({"place": place, "method": method, "params": params, "optional": optional})
    made = call(path, "policy.change", lines=lines, **({"confirm_s": confirm_s} if confirm_s else {}))
    warnings = [*prepared.warnings, *made["warnings"]]
    confirm_s = confirm_s if made["changes"] else None
    if as_json:
        print_json({"file": file, "changes": made["changes"], "warnings": warnings, "confirm_s": confirm_s})
        return
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{file}: {made['changes']} changes made")
    if confirm_s:
        click.echo(waiting_line(confirm_s))


def _rule_set(answer: dict[str, Any]) -> Any:
    """Return the rule set that the control method `rules` describes."""
    import msgspec

    from fastmasq.policy.chains import ACCOUNTING, Chain, RuleSet

    rules = RuleSet()
    chains = {chain.name: chain for chain in msgspec.convert(answer["chains"], list[Chain])}
    rules.accounting = chains.pop(ACCOUNTING)
    rules.chains = chains
    rules.default_forward = answer["default_forward"]
    return rules
