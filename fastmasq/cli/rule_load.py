"""`fastmasq rule load`: adds the rules of a script of 1999 to those of the running forwarder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from fastmasq.cli.options import client_options, find_socket


@click.command()
@client_options
@click.option("--strict", is_flag=True, help="Repair nothing: take what the programs of 1999 took, refuse the rest.")
@click.argument("file")
@click.argument("arguments", nargs=-1)
def load(socket: str | None, config: str | None, strict: bool, file: str, arguments: tuple[str, ...]) -> None:
    """Do what the ipfwadm and ipchains commands in FILE say, all of it or nothing.

    ARGUMENTS are what $1, $2, ${4} stand for in the file: let /etc/ppp/ip-up.local say `fastmasq rule load FILE "$@"`.
    Lines of other programs are ignored with a warning. Mistakes are printed as FILE:LINE: what; suggestion.
    """
    import msgspec

    from fastmasq.control.client import call
    from fastmasq.legacy.names import Names
    from fastmasq.legacy.script import prepare

    path = find_socket(socket, config)
    present = _rule_set(call(path, "rules"))
    prepared = prepare([file], Names(), present, tolerant=not strict, arguments=arguments)
    left_out, requests = _rehearse(path, prepared.others, tolerant=not strict)
    for warning in (*prepared.warnings, *left_out):
        click.echo(f"warning: {warning}", err=True)
    call(path, "rules.change", changes=msgspec.to_builtins(prepared.changes))
    for request in requests:
        _carry_out(path, request)
    made = len(prepared.changes) + sum(len(getattr(request, "changes", "1")) for request in requests)
    click.echo(f"{file}: {made} changes made")


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


def _rehearse(path: str, items: Iterable[Any], *, tolerant: bool) -> tuple[list[str], list[Any]]:
    """Try what lines ask for on copies of the forwards and redirects that run; return what is left out, and the rest.

    Raises ConfigurationError.
    """
    import msgspec

    from fastmasq.control.client import call
    from fastmasq.errors import ConfigurationError
    from fastmasq.legacy.requests import Forwarding
    from fastmasq.legacy.script import may_be_left_out
    from fastmasq.policy import forwards, marks, redirects, triggers

    kinds = {
        "forwards": (forwards, forwards.PortForward),
        "redirects": (redirects, redirects.Redirect),
        "autofw": (triggers, triggers.AutoForward),
        "mfw": (marks, marks.MarkTarget),
    }
    trial: dict[str, tuple] = {}
    left_out, requests = [], []
    for place, request in items:
        if isinstance(request, Forwarding):
            name = request.method.removesuffix(".change")
            policy, kind = kinds[name]
            if name not in trial:
                trial[name] = msgspec.convert(call(path, name), tuple[kind, ...])
            try:
                trial[name] = policy.apply(trial[name], msgspec.convert(list(request.changes), list[policy.Change]))
            except ConfigurationError as error:
                if not tolerant or not may_be_left_out(request):
                    raise ConfigurationError(f"{place}: {error}") from None
                left_out.append(f"{place}: left out: {error}")
                continue
        requests.append(request)
    return left_out, requests


def _carry_out(path: str, request: Any) -> None:
    """Do what a line asks for that is no change of chains."""
    from fastmasq.control.client import call
    from fastmasq.legacy.requests import Forwarding, SetDynaddr, SetTimeouts

    match request:
        case SetTimeouts():
            call(path, "timeouts", tcp=request.tcp, tcp_fin=request.tcp_fin, udp=request.udp)
        case SetDynaddr():
            call(path, "dynaddr", value=request.value)
        case Forwarding():
            call(path, request.method, changes=list(request.changes))
