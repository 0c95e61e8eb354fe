"""`fastmasq proc`: the files that programs of 1999 read under /proc."""

from __future__ import annotations

from collections.abc import Iterable

import click

from fastmasq.cli.options import client_options, find_socket

_NAMES = (
    *("ip_masquerade", "ip_masq/tcp", "ip_masq/udp", "ip_masq/icmp", "ip_fwchains", "ip_fwnames"),
    *("ip_input", "ip_forward", "ip_output", "ip_acct"),
    *("ip_portfw", "portfw", "autofw", "mfw", "ksyms"),
)
_MOST_SESSIONS = 100_000


@click.command()
@click.argument("name", type=click.Choice(_NAMES), metavar="NAME")
@client_options
def proc(name: str, socket: str | None, config: str | None) -> None:
    """Show a file that /proc had in 1999, made from what the running forwarder does.

    \b
    ip_masquerade                      the masquerade table
    ip_masq/tcp  /udp  /icmp           the same, one protocol, as 2.2 kernels showed it
    ip_fwchains, ip_fwnames            rules and chains of 2.2
    ip_input ip_forward ip_output ip_acct   rules of 2.0, without what ipfwadm has no words for
    ip_portfw                          port forwards, as 2.0 showed them
    portfw, autofw, mfw                the same as 2.2 showed them, those by ipmasqadm autofw, and those by mark
    ksyms                              the names by which the HOWTO finds masquerading in a kernel
    """
    path = find_socket(socket, config)
    show = _SHOWS.get(name) or (_sessions if name.startswith("ip_mas") else _chains)
    for line in show(name, path):
        click.echo(line)


def _sessions(name: str, socket: str) -> Iterable[str]:
    from fastmasq.config.values import PortRanges
    from fastmasq.control.client import call
    from fastmasq.legacy.proc import SESSION_FILES, ip_masq, ip_masquerade

    status = call(socket, "status")
    ports = PortRanges.read(status["external"]["ports"]).count
    free = {protocol: max(0, ports - status["sessions"][protocol]) for protocol in ("tcp", "udp", "icmp")}
    wanted = SESSION_FILES.get(name)
    asked = {"protocol": wanted, "limit": _MOST_SESSIONS, "masqueraded": True, "tunnels": not wanted}
    sessions = call(socket, "sessions", **asked)["sessions"]
    return ip_masq(wanted, sessions, free[wanted]) if wanted else ip_masquerade(sessions, free)


def _chains(name: str, socket: str) -> Iterable[str]:
    import msgspec

    from fastmasq.control.client import call
    from fastmasq.legacy.proc import CHAIN_FILES, ip_firewall, ip_fwchains, ip_fwnames
    from fastmasq.policy.chains import ACCOUNTING, Chain

    answer = call(socket, "rules")["chains"]
    chains = msgspec.convert(answer, list[Chain])
    if name in CHAIN_FILES:
        return ip_firewall(next(chain for chain in chains if chain.name == CHAIN_FILES[name]))
    chains = [chain for chain in chains if chain.name != ACCOUNTING]
    if name == "ip_fwchains":
        return ip_fwchains(chains)
    return ip_fwnames(chains, {chain["name"]: chain["references"] for chain in answer})


def _forwards(name: str, socket: str) -> Iterable[str]:
    from fastmasq.control.client import call
    from fastmasq.legacy import ipmasqadm, proc

    rows = ipmasqadm.rows(call(socket, "forwards"))
    return (proc.ip_portfw if name == "ip_portfw" else proc.portfw)(rows)


def _triggers(name: str, socket: str) -> Iterable[str]:
    from fastmasq.control.client import call
    from fastmasq.legacy.ipmasqadm_autofw import proc_lines

    return proc_lines(call(socket, "triggers"))


def _marks(name: str, socket: str) -> Iterable[str]:
    from fastmasq.control.client import call
    from fastmasq.legacy.ipmasqadm_mfw import proc_lines

    return proc_lines(call(socket, "marks"))


def _symbols(name: str, socket: str) -> Iterable[str]:
    """Return the symbols of masquerading, and of the VPN protocols that are followed."""
    from fastmasq.control.client import call
    from fastmasq.errors import FastmasqError
    from fastmasq.legacy.proc import ksyms

    call(socket, "ping")
    try:
        vpn = call(socket, "vpn")
    except FastmasqError:  # a forwarder that follows none has no such method
        vpn = {"pptp": False, "ipsec": False}
    return ksyms(pptp=vpn["pptp"], ipsec=vpn["ipsec"])


_SHOWS = {
    **dict.fromkeys(("ip_portfw", "portfw"), _forwards),
    "autofw": _triggers,
    "mfw": _marks,
    "ksyms": _symbols,
}
