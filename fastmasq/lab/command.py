"""The commands `fastmasq lab ...` and `fastmasq demo`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from fastmasq.cli.options import Group, json_option
from fastmasq.lab.topology import DEFAULT_PREFIX, NETWORKS, SERVER_ADDRESS, Lab

_prefix_option = click.option(
    "--prefix", default=DEFAULT_PREFIX, show_default=True, help="Name of the lab; several run side by side."
)
_COMMAND_OF_ITS_OWN = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.group(cls=Group)
def lab() -> None:
    """A test network of network namespaces: the example network of the HOWTO."""


@lab.command()
@click.option("--network", type=click.Choice(list(NETWORKS)), default="masquerade", show_default=True)
@_prefix_option
def up(network: str, prefix: str) -> None:
    """Make the network.

    masquerade: private addresses 10.0.0.0/8 inside. registered: 222.0.0.0/24 inside, forwarded untranslated.
    direct: the private network without bridge and router, for measuring.
    """
    made = Lab(prefix, network)
    made.up()
    run = "fastmasq lab exec" if prefix == DEFAULT_PREFIX else f"fastmasq lab exec --prefix {prefix}"
    click.echo(f"lab {prefix!r} is up: {', '.join(made.network.hosts)}")
    click.echo(f"forward: {run} gateway fastmasq run --inside eth0 --outside eth1")
    click.echo(f"try it:  {run} inside ping -c 3 {SERVER_ADDRESS}")


@lab.command("exec", context_settings=_COMMAND_OF_ITS_OWN)
@_prefix_option
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(prefix: str, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on HOST and end with its exit status."""
    _become(prefix, host, command)


@lab.command()
@_prefix_option
@click.argument("host")
def shell(prefix: str, host: str) -> None:
    """Open a shell on HOST."""
    click.echo(f"a shell on {host} of lab {prefix!r}; exit leaves it", err=True)
    _become(prefix, host, [os.environ.get("SHELL", "/bin/sh")])


@lab.command()
@_prefix_option
def down(prefix: str) -> None:
    """End the processes of the network and remove it."""
    click.echo(f"lab {prefix!r} is down" if Lab(prefix).down() else f"lab {prefix!r} was not up")


@lab.command(short_help="Show the labs that are up.")
@json_option
def status(as_json: bool) -> None:
    """Show the labs that are up: their hosts, addresses, and the processes that run on them."""
    rows = [
        {"prefix": each.prefix, "network": each.kind, "host": host, "addresses": addresses, "processes": processes}
        for each in Lab.all_up()
        for host, addresses, processes in _hosts(each)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo("no lab is up; make one with: fastmasq lab up")
    else:
        _print_table(rows)


@click.command()
@click.option("--prefix", help="Name of the lab the demo runs in.  [default: demo-PID]")
def demo(prefix: str | None) -> None:
    """Let real programs talk through fastmasq in the example network, beside kernel masquerade.

    Makes a network of its own, prints a line for each check, and removes the network again.
    """
    from fastmasq.lab.demo import run_demo

    try:
        succeeded = run_demo(prefix or f"demo-{os.getpid()}")
    except KeyboardInterrupt:
        click.echo("\ninterrupted; the network is gone again", err=True)
        sys.exit(130)
    sys.exit(0 if succeeded else 1)


def _become(prefix: str, host: str, command: Sequence[str]) -> None:
    """Replace this process by the command on the host, so that its exit status and signals are its own."""
    from fastmasq.lab.hosts import command_in

    argv = command_in(Lab.find(prefix).namespace(host), command)
    os.execvp(argv[0], argv)


def _hosts(each: Lab) -> list[tuple[str, list[str], list[int]]]:
    processes = each.processes()
    return [
        (host, [address for group in spec.interfaces.values() for address in group], processes[host])
        for host, spec in each.network.hosts.items()
    ]


def _print_table(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("lab", "network", "host", "addresses", "processes")
    for row in rows:
        table.add_row(
            row["prefix"], row["network"], row["host"], " ".join(row["addresses"]), str(len(row["processes"]))
        )
    Console().print(table)
