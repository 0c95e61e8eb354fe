"""`fastmasq status`: links, rates, sessions and dropped packets of the running forwarder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fastmasq.cli.options import client_options, find_socket, json_option
from fastmasq.errors import KernelError

if TYPE_CHECKING:
    from rich.console import Console

_TUNNELS = {"calls": "calls", "sas": "SAs", "exchanges": "ISAKMP exchanges"}


@click.command()
@client_options
@json_option
def status(socket: str | None, config: str | None, as_json: bool) -> None:
    """Show links, rates, sessions and dropped packets."""
    from fastmasq.cli.render import make_console, print_json
    from fastmasq.control.client import call

    try:
        report = call(find_socket(socket, config), "status")
    except KernelError as error:
        from fastmasq.kernel.takeover import left_behind

        raise KernelError("\n".join(filter(None, (str(error), left_behind())))) from None
    if as_json:
        print_json(report)
    else:
        show(report, make_console())


def show(report: dict[str, Any], console: Console) -> None:
    """Print the answer of the method `status` for people."""
    from fastmasq.cli import observed
    from fastmasq.cli.render import span

    if report["observed"]:
        console.print(observed.sentence(report), soft_wrap=True)
    console.print(
        f"fastmasq {report['version']}, process {report['pid']}, running for {span(report['uptime_s'])}, "
        f"behaviour {report['compat']}\n"
    )
    if waiting := report["confirm"]:
        console.print(f"{waiting['what']} goes back in {span(waiting['left_s'])}, unless you say `fastmasq confirm`\n")
    tables = [_links(report["links"]), _traffic(report["links"]), _facts(report), drops(report["drops"])]
    if report["notes"]:
        tables.append(_notes(report["notes"]))
    if report["gateways"]["refused"]:
        tables.append(_refused(report["gateways"]["refused"]))
    if report["untranslated"]["packets"]:
        tables.append(_untranslated(report["untranslated"]))
    if report["observed"]:
        tables += observed.tables(report["observed"])
    if report["fallbacks"]:
        tables.append(_fallbacks(report["fallbacks"]))
    for table in tables:
        console.print(table)
        console.print()


def show_observed(report: dict[str, Any], console: Console) -> None:
    """Print what a forwarder that has only observed would have done; report is its answer to `status`."""
    from fastmasq.cli import observed

    console.print(observed.sentence(report), soft_wrap=True)
    for table in (observed.verdicts(report), drops(report["drops"]), *observed.tables(report["observed"])):
        console.print()
        console.print(table)


def _links(links: list[dict[str, Any]]) -> Any:
    from rich.text import Text

    from fastmasq.cli.render import make_table

    table = make_table("Link", "Side", "State", "Addresses", "Ring", title="Links")
    for link in links:
        extras = [name for key, name in (("vnet_header", "vnet header"), ("qdisc_bypass", "qdisc bypass")) if link[key]]
        table.add_row(
            link["name"],
            link["role"],
            Text(link["state"], style="" if link["state"] == "up" else "bold red"),
            ", ".join(link["addresses"]) or "none",
            ", ".join([link["ring"] or "none", *extras]),
        )
    return table


def _traffic(links: list[dict[str, Any]]) -> Any:
    from fastmasq.cli.render import make_table
    from fastmasq.units import format_count

    table = make_table("Link", ">In packets/s", ">bit/s", ">Out packets/s", ">bit/s", ">Lost by ring", title="Traffic")
    for link in links:
        rates = [format_count(link[key]) for key in ("rx_pps", "rx_bps", "tx_pps", "tx_bps")]
        table.add_row(link["name"], *rates, str(link["ring_drops"]))
    return table


def _facts(report: dict[str, Any]) -> Any:
    from fastmasq.cli.render import make_table
    from fastmasq.units import format_count

    guard, external, sessions, adopted = (report[name] for name in ("guard", "external", "sessions", "adopted"))
    table = make_table("", "")
    table.show_header = False
    table.columns[0].style = "bold"
    table.columns[1].no_wrap = False
    wanted = "one of these" if external["missing"] else "an address"
    address = ", ".join(external["addresses"]) or f"none: no session can be opened until the outside link has {wanted}"
    kinds = ", ".join(
        f"{kind} {sessions[kind]}" for kind in ("tcp", "udp", "icmp", "other") if sessions[kind] or kind != "other"
    )
    table.add_row("Guard", ", ".join(text for text in (guard["backend"], guard["detail"]) if text))
    if report["host"]["unsolicited"] == "drop":
        table.add_row("Host", f"silent to the outside, open: {', '.join(report['host']['open']) or 'nothing'}")
    table.add_row("External", f"{address}, ports {external['ports']}")
    if external["missing"]:
        missing = ", ".join(external["missing"])
        table.add_row("Missing", f"{missing}, of [masquerade] addresses: nobody leaves with that")
    table.add_row("Host", f"connects from ports {_connects_from(report['host_ports'])}")
    table.add_row("Sessions", f"{sessions['active']} of {sessions['capacity']} ({kinds})")
    table.add_row("", f"of {sessions['hosts']} hosts, {sessions['mappings']} external endpoints")
    table.add_row("", f"{sessions['opened_total']} opened so far, {format_count(sessions['opened_per_s'])} a second")
    if any(adopted.values()):
        dropped = ", ".join(f"{reason} {count}" for reason, count in adopted["dropped"].items())
        tunnels = "".join(f", {adopted[key]} {name}" for key, name in _TUNNELS.items() if adopted[key])
        rows = f"{adopted['sessions']} adopted from the run before{tunnels}"
        table.add_row("", f"{rows}{dropped and f'; dropped: {dropped}'}")
    for rule in report["ip_rules"]:
        table.add_row("Not followed", f"ip rule {rule}")
    if offload := report["offload"]:
        table.add_row("Kernel", _carries(offload))
    table.add_row("Packets", ", ".join(f"{verdict} {packets}" for verdict, packets in report["verdicts"].items()))
    return table


def _carries(offload: dict[str, Any]) -> str:
    share = 100 * offload["packets"] / max(offload["forwarded"], 1)
    return f"carried {share:.1f} % of packets" if offload["carries"] else f"carries no packets: {offload['why_not']}"


def _connects_from(host: dict[str, str]) -> str:
    if host["reason"]:
        return f"{host['range']}: {host['reason']}"
    return f"{host['range']}" if host["range"] == host["own"] else f"{host['range']} (without fastmasq {host['own']})"


def drops(drops: list[dict[str, Any]]) -> Any:
    """Return the table of dropped packets by reason, or a sentence where there are none."""
    from fastmasq.cli.render import make_table
    from fastmasq.units import format_count

    if not drops:
        return "No packet was dropped."
    table = make_table(">Packets", ">a second", "Reason", "", title="Dropped")
    table.columns[3].no_wrap = False
    for drop in sorted(drops, key=lambda drop: -drop["packets"]):
        table.add_row(str(drop["packets"]), format_count(drop["per_s"]), drop["reason"], drop["sentence"])
    return table


def _notes(notes: list[dict[str, Any]]) -> Any:
    from fastmasq.cli.render import make_table

    table = make_table(">Count", "Note", "", title="Noted")
    table.columns[2].no_wrap = False
    for each in notes:
        table.add_row(str(each["count"]), each["note"], each["sentence"])
    return table


def _refused(refused: list[dict[str, Any]]) -> Any:
    from fastmasq.cli.render import make_table

    table = make_table(">Count", "Refused", "", title="Refused by application gateways")
    table.columns[2].no_wrap = False
    for each in refused:
        table.add_row(str(each["count"]), each["reason"], each["meaning"])
    return table


def _untranslated(untranslated: dict[str, Any]) -> Any:
    from fastmasq.cli.render import make_table

    table = make_table(">Packets", "Private source", "Last to", title="Left with a private source")
    for host in untranslated["hosts"]:
        table.add_row(str(host["packets"]), host["source"], host["destination"])
    table.add_row(str(untranslated["packets"]), "in all", "")
    return table


def _fallbacks(fallbacks: list[dict[str, Any]]) -> Any:
    from fastmasq.cli.render import make_table

    table = make_table("Links", "", "Instead", "Cost", title="Done without, as this kernel lacks it")
    for column in table.columns[2:]:
        column.no_wrap = False
    for each in fallbacks:
        table.add_row(", ".join(each["links"]) or "all", each["use"], each["instead"], each["cost"])
    return table
