"""`fastmasq rule trace`: which rules a packet would meet on its way through the gateway, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import AddressValueError, IPv4Address, IPv4Interface
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fastmasq.cli.options import LINK, client_options, find_socket, json_option
from fastmasq.errors import ConfigurationError
from fastmasq.wire.numbers import ICMP, TCP, UDP

if TYPE_CHECKING:
    from fastmasq.policy.evaluate import Decision, Packet

_HIGH_PORT = 40000


class Stage(NamedTuple):
    """One chain of the way, the packet as it sees it, and what it decides; None: the chain has no say yet."""

    chain: str
    packet: Packet
    decision: Decision | None
    verdict: str


@click.command()
@client_options
@click.option("--protocol", metavar="NAME", default="tcp", show_default=True, help="Name or number, such as udp or 47.")
@click.option("--from", "source", metavar="ADDR[:PORT]", required=True, help=f"Sender; without a port, {_HIGH_PORT}.")
@click.option("--to", "destination", metavar="ADDR[:PORT]", required=True, help="Destination.")
@click.option("--in", "arriving", metavar="LINK", type=LINK, help="The link it arrives by; none: the gateway sends it.")
@click.option("--out", "leaving", metavar="LINK", type=LINK, help="The link it leaves by; none: it is for the gateway.")
@click.option("--syn", is_flag=True, help="It opens a TCP connection: SYN without ACK.")
@click.option("--ack", is_flag=True, help="It is a later TCP segment: with ACK or RST.")
@click.option("--fragment", is_flag=True, help="It is a second or further fragment.")
@click.option("--icmp", metavar="TYPE[/CODE]", help="It is this ICMP message, such as 8 or 3/4.")
@json_option
def trace(
    socket: str | None,
    config: str | None,
    protocol: str,
    source: str,
    destination: str,
    arriving: str | None,
    leaving: str | None,
    syn: bool,
    ack: bool,
    fragment: bool,
    icmp: str | None,
    as_json: bool,
) -> None:
    """Say which rules a packet would meet, as the first of its session, and what becomes of it. Nothing is counted.

    It passes input on the link it arrives by, forward on the link it leaves by, and output there, masqueraded if
    forward says so: `--from 10.0.0.2 --to 199.0.0.1:80 --in eth0 --out eth1`.
    """
    from fastmasq.cli.render import print_json

    if not arriving and not leaving:
        raise click.UsageError("name the link it arrives by (--in), the one it leaves by (--out), or both.")
    if syn and ack:
        raise click.UsageError("--syn and --ack exclude each other: --syn is SYN without ACK.")
    packet = _packet(protocol, source, destination, fragment, icmp, syn=syn, ack=ack)
    stages = list(_journey(find_socket(socket, config), packet, arriving, leaving))
    if as_json:
        print_json([_as_json(one) for one in stages])
    else:
        click.echo("\n".join(_lines(stages)))


# -- the packet --------------------------------------------------------------------------------------------------------


def _packet(
    protocol: str, source: str, destination: str, fragment: bool, icmp: str | None, *, syn: bool, ack: bool
) -> Packet:
    """Return the packet of the options. Raises ConfigurationError."""
    from fastmasq.legacy.names import Names
    from fastmasq.policy.evaluate import Packet

    known = int(protocol) if protocol.isdigit() else Names().protocol(protocol)
    number = ICMP if icmp else known
    if number is None or not 1 <= number <= 255:
        raise ConfigurationError(f"--protocol {protocol}: no such protocol; write its number, such as 47 for GRE")
    sender, source_port = _end("--from", source)
    receiver, destination_port = _end("--to", destination)
    if number == ICMP:
        if icmp is None and not fragment:
            raise ConfigurationError("--protocol icmp: which message? write for example --icmp 8")
        source_port, destination_port = _icmp(icmp) if icmp else (0, 0)
    elif number in (TCP, UDP) and not fragment:
        if destination_port is None:
            raise ConfigurationError(f"--to {destination}: to which port? write for example {destination}:80")
        source_port = _HIGH_PORT if source_port is None else source_port
    return Packet(
        source=sender,
        destination=receiver,
        protocol=number,
        source_port=source_port or 0,
        destination_port=destination_port or 0,
        syn=syn,
        ack=ack,
        fragment=fragment,
    )


def _end(option: str, text: str) -> tuple[int, int | None]:
    """Return address and port of "10.0.0.2:80"; None where there is no port. Raises ConfigurationError."""
    address, colon, port = text.partition(":")
    try:
        number = int(IPv4Address(address))
    except AddressValueError:
        raise ConfigurationError(f"{option} {text}: {address!r} is no IPv4 address; write 10.0.0.2:80") from None
    if not colon:
        return number, None
    if not port.isdigit() or int(port) > 0xFFFF:
        raise ConfigurationError(f"{option} {text}: {port!r} is no port; write a number up to 65535")
    return number, int(port)


def _icmp(text: str) -> tuple[int, int]:
    """Return type and code of "3/4"; the code is 0 where there is none. Raises ConfigurationError."""
    kind, _, code = text.partition("/")
    if not all(part.isdigit() and int(part) <= 0xFF for part in (kind, code or "0")):
        raise ConfigurationError(f"--icmp {text}: write type and code as numbers, such as 8 or 3/4")
    return int(kind), int(code or 0)


# -- its way -----------------------------------------------------------------------------------------------------------


def _journey(socket: str, packet: Packet, arriving: str | None, leaving: str | None) -> Iterator[Stage]:
    """Yield the chains a packet passes, up to the one that stops it."""
    from msgspec.structs import replace

    from fastmasq.control.client import call
    from fastmasq.policy.chains import ACCEPT, FORWARD, INPUT, MASQ, OUTPUT

    status = call(socket, "status")
    links = {link["name"]: link for link in status["links"]}
    if arriving:
        stage = _ask(socket, INPUT, _on(packet, arriving, links))
        yield stage
        if stage.verdict != ACCEPT:
            return
        packet = _changed(packet, stage)
    if not leaving:
        return
    packet = replace(_on(packet, leaving, links), direction="out")
    if arriving:
        untouched = call(socket, "rules", chain=FORWARD)["default_forward"]
        stage = (
            Stage(FORWARD, packet, None, _untouched(links, arriving, leaving))
            if untouched
            else _ask(socket, FORWARD, packet)
        )
        yield stage
        if stage.verdict not in (ACCEPT, MASQ):
            return
        packet = _changed(packet, stage)
        if stage.verdict == MASQ:
            external = status["external"]["address"]
            if external is None:
                raise ConfigurationError(f"{leaving} has no address to masquerade with now; try again when it has")
            packet = replace(packet, source=int(IPv4Address(external)))
    yield _ask(socket, OUTPUT, packet)


def _on(packet: Packet, link: str, links: dict[str, dict[str, Any]]) -> Packet:
    """Return the packet on a link, which rules may know by its address."""
    from msgspec.structs import replace

    if link not in links and link != "lo":
        raise ConfigurationError(f"{link}: fastmasq has no such link; it has {', '.join(links)}")
    addresses = ["127.0.0.1/8"] if link == "lo" else links[link]["addresses"]
    own = int(IPv4Interface(addresses[0]).ip) if addresses else 0
    return replace(packet, interface=str(link), interface_address=own)


def _ask(socket: str, chain: str, packet: Packet) -> Stage:
    import msgspec

    from fastmasq.control.client import call
    from fastmasq.policy.evaluate import Decision

    answer = call(socket, "rules.check", chain=chain, packet=msgspec.to_builtins(packet))
    decision = msgspec.convert(answer, Decision)
    return Stage(chain, packet, decision, decision.verdict)


def _untouched(links: dict[str, dict[str, Any]], arriving: str, leaving: str) -> str:
    """Return what the chain forward means before anybody has touched it; by lo nothing is ever forwarded (T-5)."""
    from fastmasq.policy.chains import ACCEPT, DENY, MASQ

    if arriving not in links or leaving not in links or links[arriving]["role"] != "inside":
        return DENY
    return ACCEPT if links[leaving]["role"] == "inside" else MASQ


def _changed(packet: Packet, stage: Stage) -> Packet:
    """Return the packet with the mark and the type of service that a chain gave it."""
    from msgspec.structs import replace

    return replace(packet, mark=stage.decision.mark, tos=stage.decision.tos) if stage.decision else packet


# -- in words ----------------------------------------------------------------------------------------------------------


def _as_json(stage: Stage) -> dict[str, Any]:
    import msgspec

    from fastmasq.legacy.names import write_dotted

    decided = msgspec.to_builtins(stage.decision) if stage.decision else {}
    packet = msgspec.to_builtins(stage.packet)
    packet |= {key: write_dotted(packet[key]) for key in packet.keys() & {"source", "destination", "interface_address"}}
    return {"chain": stage.chain, "packet": packet, **decided, "verdict": stage.verdict}


def _lines(stages: Iterable[Stage]) -> Iterator[str]:
    stage = None
    for stage in stages:
        packet = stage.packet
        yield f"{stage.chain} on {packet.interface}: {_write(packet)}"
        if stage.decision is None:
            yield "  untouched: from inside to outside is masqueraded, between inside links routed, nothing comes in"
        for step in stage.decision.steps if stage.decision else ():
            where = f"rule {step.number}" if step.number else "policy"
            yield f"  {step.chain} {where}: {step.target or 'counted, goes on'}"
        port = stage.decision.redirect_port if stage.decision else 0
        yield f"  -> {stage.verdict}{f' to port {port}' if port else ''}"


def _write(packet: Packet) -> str:
    """Return a packet's ends as in a log; of ICMP its type and code instead of ports."""
    from fastmasq.legacy.names import Names, write_dotted

    name = Names().protocol_name(packet.protocol) or str(packet.protocol)
    source, destination = write_dotted(packet.source), write_dotted(packet.destination)
    if packet.protocol in (TCP, UDP) and not packet.fragment:
        source, destination = f"{source}:{packet.source_port}", f"{destination}:{packet.destination_port}"
    elif packet.protocol == ICMP and not packet.fragment:
        name += f" {packet.source_port}/{packet.destination_port}"
    return f"{name} {source} -> {destination}"
