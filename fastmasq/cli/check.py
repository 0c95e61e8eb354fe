"""`fastmasq check`: what is wrong with a configuration, and what this host lacks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import click

from fastmasq.cli.options import CONFIG_FILE, json_option

if TYPE_CHECKING:
    from fastmasq.advice.lint import ForwardedPort
    from fastmasq.daemon.policy import Declared
    from fastmasq.policy.forwards import Forward


@click.command()
@click.option("-c", "--config", metavar="FILE", default=CONFIG_FILE, show_default=True, help="The configuration.")
@click.option("--sample", is_flag=True, help="Print a configuration with every key, its default and reason; no check.")
@json_option
@click.pass_context
def check(ctx: click.Context, config: str, sample: bool, as_json: bool) -> None:
    """Find mistakes in a configuration, and what this host lacks.

    Mistakes are printed as FILE:LINE: what; suggestion. Nothing is changed. Exit status: 0 ready to run (there may be
    warnings), 1 this host lacks something, or routes as fastmasq does not, 2 the configuration is wrong.
    """
    from fastmasq.config.load import SAMPLE, load
    from fastmasq.errors import ConfigurationError

    if sample:
        click.echo(SAMPLE.read_text(), nl=False)
        return
    from fastmasq.daemon.policy import declare

    try:
        loaded = load(config)
        declared = declare(loaded.settings, quoting=True, places=loaded.places)
    except ConfigurationError as error:
        if as_json:
            _print(config, [("error", line) for line in str(error).splitlines()])
        else:
            click.echo(str(error), err=True)
        ctx.exit(error.exit_status)
    from fastmasq.daemon.preflight import findings

    found = [("warning", warning) for warning in loaded.warnings]
    found += _remarks(declared)
    found += [(finding.severity, finding.text) for finding in findings(declared)]
    is_ready = _is_ready(found)
    if as_json:
        _print(config, found)
    else:
        for severity, text in found:
            click.echo(f"{severity}: {text}")
        if is_ready:
            click.echo(f"{config}: ready to run")
    ctx.exit(0 if is_ready else 1)


def _is_ready(found: list[tuple[str, str]]) -> bool:
    return not any(severity in ("error", "problem") for severity, _ in found)


def _print(config: str, found: list[tuple[str, str]]) -> None:
    """Print the findings, each with its severity, as JSON."""
    from fastmasq.cli.render import print_json

    findings = [{"severity": severity, "text": text} for severity, text in found]
    print_json({"config": config, "ready": _is_ready(found), "findings": findings})


def _remarks(declared: Declared) -> list[tuple[str, str]]:
    """Return what is to be said about rule files, rules and forwards: (severity, text)."""
    from fastmasq.advice.lint import Surroundings, lint

    links, addresses = declared.settings.interfaces, _addresses()
    around = Surroundings(
        inside=tuple(links.inside),
        outside=links.outside,
        addresses=addresses,
        forwards=tuple(_from_outside(declared.forwards, links.outside, addresses)),
        redirects=tuple(one.protocol for one in declared.redirects),
        pptp=declared.settings.vpn.pptp,
    )
    return [
        *(("warning", warning) for warning in declared.warnings),
        *((finding.severity, f"rules: {finding}") for finding in lint(declared.rules, around)),
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
