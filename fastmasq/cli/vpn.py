"""`fastmasq vpn`: calls and SAs that pass through, who waits for whom, and what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fastmasq.cli.options import ADDRESS, client_options, find_socket, json_option

_COMMON = ("State", ">Inside", ">External", ">Remote")
_LIGHTS = (">Out", ">last", ">In", ">last")


@click.command()
@client_options
@click.option("--host", metavar="ADDRESS", type=ADDRESS, help="Only what this inside or remote host takes part in.")
@json_option
def vpn(socket: str | None, config: str | None, host: str | None, as_json: bool) -> None:
    """List the VPNs that pass through: PPTP calls, IPsec SAs, and what they still lack.

    Out and In are the packets of a call or SA that went each way, and how long ago the last one did. Below each table
    stands what is missing, such as GRE that goes out while none comes in. Who waits for another host's start of an SA
    is listed with that host. NAT traversal is UDP with port 4500: `fastmasq sniff` tells IKE and ESP in it apart.
    """
    from fastmasq.cli.render import print_json
    from fastmasq.control.client import call

    answer = call(find_socket(socket, config), "vpn", host=host)
    if as_json:
        print_json(answer)
        return
    for title, key, columns, cells in _TABLES:
        if answer[key]:
            click.echo("\n".join(_table(title, columns, answer[key], cells)))
    off = [name for name, key in (("PPTP", "pptp"), ("IPsec", "ipsec")) if not answer[key]]
    counted = f"{len(answer['calls'])} calls, {len(answer['sas'])} SAs, {answer['natt_total']} by NAT traversal"
    click.echo(counted + (f"; {' and '.join(off)} not followed" if off else ""))


def _table(
    title: str, columns: tuple[str, ...], rows: list[dict], cells: Callable[[dict], tuple[str, ...]]
) -> list[str]:
    """Return the lines of one table with its title, what its rows lack, and an empty line."""
    from fastmasq.cli.render import align

    lines = [title, *align(columns, [cells(row) for row in rows])]
    lines += [f"  {row['inside']} - {row['remote']}: {row['missing']}" for row in rows if row.get("missing")]
    return [*lines, ""]


def _ends(row: dict[str, Any]) -> tuple[str, ...]:
    return row["state"], row["inside"], row["external"], row["remote"]


def _lights(row: dict[str, Any]) -> tuple[str, ...]:
    return str(row["packets_out"]), _ago(row["out_s"]), str(row["packets_in"]), _ago(row["in_s"])


def _ago(seconds: float | None) -> str:
    from fastmasq.cli.render import span

    return "never" if seconds is None else span(seconds)


def _spi(number: int | None) -> str:
    from fastmasq.cli.render import spi

    return spi(number)


def _call(row: dict[str, Any]) -> tuple[str, ...]:
    unknown = "any" if row["state"] == "passthrough" else "-"
    numbers = (row["call_id"], row["external_call_id"], row["remote_call_id"])
    return (*_ends(row), *(unknown if number is None else str(number) for number in numbers), *_lights(row))


def _association(row: dict[str, Any]) -> tuple[str, ...]:
    return (*_ends(row), _spi(row["outbound_spi"]), _spi(row["inbound_spi"]), *_lights(row))


def _exchange(row: dict[str, Any]) -> tuple[str, ...]:
    return (*_ends(row), row["initiator"], row["responder"], _ago(row["idle_s"]))


def _connection(row: dict[str, Any]) -> tuple[str, ...]:
    return (*_ends(row), str(row["calls"]), _ago(row["age_s"]))


def _natt(row: dict[str, Any]) -> tuple[str, ...]:
    return (*_ends(row), str(row["packets_out"]), str(row["packets_in"]), _ago(row["idle_s"]))


def _waiting(row: dict[str, Any]) -> tuple[str, ...]:
    return row["inside"], row["remote"], _spi(row["outbound_spi"]), row["waits_for"] or "-", _ago(row["for_s"])


_TABLES = (
    ("PPTP control connections", "connections", (*_COMMON, ">Calls", ">Age"), _connection),
    ("PPTP calls", "calls", (*_COMMON, ">Call ID", ">external", ">remote", *_LIGHTS), _call),
    ("ISAKMP exchanges", "exchanges", (*_COMMON, "Initiator", "Responder", ">Idle"), _exchange),
    ("IPsec SAs", "sas", (*_COMMON, ">SPI out", ">SPI in", *_LIGHTS), _association),
    ("IPsec by NAT traversal", "natt", (*_COMMON, ">Out", ">In", ">Idle"), _natt),
    ("Waiting for another start", "waiting", (">Inside", ">Remote", ">SPI out", ">Waits for", ">For"), _waiting),
)
