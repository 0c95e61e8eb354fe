"""Lint by traffic: what the rules do to VPNs, ICMP errors, the gateway's own packets and forwarded services."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from fastmasq.advice.lint_subject import (
    HIGH_PORT,
    LOOPBACK,
    REFUSED,
    STRANGER,
    Finding,
    ForwardedPort,
    Subject,
    finding,
    is_between_hosts,
    probe,
)
from fastmasq.policy.chains import ACCEPT, FORWARD, INPUT, MASQ, OUTPUT, Match
from fastmasq.policy.coverage import covers
from fastmasq.policy.evaluate import Packet
from fastmasq.wire.numbers import AH, DNS_PORT, ESP, GRE, ICMP, ISAKMP_PORT, PPTP_PORT, TCP, UDP

_MASQUERADED_PORT = 61000  # the first of 1999, at which rules let sessions in that know no others
_CHANNELS = (
    (TCP, PPTP_PORT, GRE, "PPTP", "tcp 1723", "47 (GRE)"),
    (UDP, ISAKMP_PORT, ESP, "IPsec", "udp 500", "50 (ESP)"),
)


def half_vpns(look: Subject) -> Iterator[Finding]:
    """H-67: a VPN needs both channels; each rule that names one is asked about the other."""
    for base in (INPUT, FORWARD, OUTPUT):
        for chain, number, rule in look.rules_below(base):
            for protocol, port, other, name, control, data in _CHANNELS:
                if rule.target not in (ACCEPT, MASQ):
                    continue
                done = "masqueraded" if rule.target == MASQ else "let through"
                if _names_port(rule.match, protocol, port):
                    probes, missing, present = [probe(rule.match, other)], f"protocol {data}", control
                elif rule.match.protocol == other and not rule.match.not_protocol:
                    probes, missing, present = _control_probes(rule.match, protocol, port), control, f"protocol {data}"
                else:
                    continue
                if all(_refused_or_bare(look.verdict(base, probe), rule.target) for probe in probes):
                    yield finding(
                        "vpn-half",
                        "warning",
                        chain,
                        number,
                        f"{present} is {done}, but {missing} between the same hosts is not, so {name} does not work",
                        f"add the same rule for {missing}",
                    )


def _names_port(match: Match, protocol: int, port: int) -> bool:
    if match.protocol != protocol or match.not_protocol:
        return False
    sides = ((match.source_ports, match.not_source_ports), (match.destination_ports, match.not_destination_ports))
    return any((port, port) in ports and not inverted for ports, inverted in sides)


def _control_probes(match: Match, protocol: int, port: int) -> list[Packet]:
    """Return the control channel's packets that a data rule belongs to, whichever end is the server."""
    others = (HIGH_PORT, _MASQUERADED_PORT) if protocol == TCP else (port,)
    return [probe(match, protocol, *ports) for other in others for ports in ((port, other), (other, port))]


def _refused_or_bare(verdict: str, wanted: str) -> bool:
    """Return whether a packet is stopped, or leaves unmasqueraded where its companion is masqueraded."""
    return verdict in REFUSED or (wanted == MASQ and verdict != MASQ)


def ah(look: Subject) -> Iterator[Finding]:
    """H-8: AH signs the addresses that masquerading changes."""
    for chain, number, rule in look.rules_below(FORWARD):
        if rule.target == MASQ and rule.match.protocol == AH and not rule.match.not_protocol:
            yield finding(
                "ah-masqueraded",
                "warning",
                chain,
                number,
                "AH (protocol 51) signs the addresses, so a masqueraded AH packet is refused by whoever gets it",
                "use ESP (protocol 50), or route AH between registered addresses without masquerading",
            )


def other_protocols(look: Subject) -> Iterator[Finding]:
    """A-9, A-10: accept for all protocols behind denied TCP and UDP, the way out that ipfwadm left."""
    for base in (INPUT, FORWARD, OUTPUT):
        for number, rule in look.rules_of(base):
            match = rule.match
            if rule.target not in (ACCEPT, MASQ) or match.protocol or not is_between_hosts(match):
                continue
            before = [earlier for _, earlier in look.rules_of(base)][: number - 1]
            denied = {
                one.match.protocol for one in before if one.target in REFUSED and _same_but_protocol(one.match, match)
            }
            if {TCP, UDP} <= denied:
                yield finding(
                    "other-protocols",
                    "note",
                    base,
                    number,
                    "all protocols but TCP and UDP pass, not only those of a VPN (47 and 50)",
                    "write one rule for protocol 47 and one for 50; ipfwadm takes -P 47 and -P 50 here",
                )


def _same_but_protocol(earlier: Match, match: Match) -> bool:
    """Return whether an earlier rule of one protocol is as wide as this one for it."""
    if earlier.protocol not in (TCP, UDP) or earlier.not_protocol:
        return False
    narrowed = Match(
        source=match.source,
        destination=match.destination,
        interface=match.interface,
        interface_address=match.interface_address,
        protocol=earlier.protocol,
    )
    return covers(earlier, narrowed)


# -- the gateway itself -----------------------------------------------------------------------------------------------


def icmp_errors(look: Subject) -> Iterator[Finding]:
    """A-10, H-32: errors come from routers on the way, which no rule for the other end's address lets in."""
    for kind, code, said, consequence in (
        (3, 4, "3/4 (fragmentation needed)", "large transfers hang where a link has a small MTU"),
        (11, 0, "11 (time exceeded)", "traceroute shows no routers"),
    ):
        places = [(INPUT, link, look.own_address(link)) for link in look.outside_links()]
        places += [(OUTPUT, link, look.own_address(link) + 1) for link in look.inside_links()]
        for chain, link, destination in places:
            packet = Packet(
                source=STRANGER,
                destination=destination,
                protocol=ICMP,
                source_port=kind,
                destination_port=code,
                interface=link,
                interface_address=look.own_address(link),
            )
            if look.verdict(chain, packet) in REFUSED:
                way = "from" if chain == INPUT else "to"
                yield finding(
                    "icmp-blocked",
                    "warning",
                    chain,
                    0,
                    f"ICMP {said} {way} {link} is blocked: {consequence}",
                    f"accept it: ipchains -I {chain} -p icmp -s 0.0.0.0/0 {kind} -i {link} -j ACCEPT",
                )


def own_traffic(look: Subject) -> Iterator[Finding]:
    """A-11: policies that deny cut off the gateway's own programs."""
    loopback = Packet(
        source=LOOPBACK,
        destination=LOOPBACK,
        protocol=TCP,
        source_port=HIGH_PORT,
        destination_port=HIGH_PORT,
        interface="lo",
        interface_address=LOOPBACK,
    )
    for chain in (INPUT, OUTPUT):
        if look.verdict(chain, loopback) in REFUSED:
            yield finding(
                "loopback-blocked",
                "warning",
                chain,
                0,
                "no rule accepts packets of lo, so programs of the gateway cannot reach each other",
                f"ipchains -I {chain} -i lo -j ACCEPT",
            )
    for link in look.outside_links():
        question = Packet(
            source=look.own_address(link),
            destination=STRANGER,
            protocol=UDP,
            source_port=HIGH_PORT,
            destination_port=DNS_PORT,
            interface=link,
            interface_address=look.own_address(link),
        )
        if look.verdict(OUTPUT, question) in REFUSED:
            yield finding(
                "own-dns-blocked",
                "note",
                OUTPUT,
                0,
                f"questions to name servers may not leave by {link}, neither the gateway's nor those it masquerades",
                "see `fastmasq rule template dns-ipchains`",
            )


def dhcp(look: Subject) -> Iterator[Finding]:
    """A-12: a host that asks for an address has none of the network yet."""
    for link in look.inside_links():
        request = Packet(
            source=0,
            destination=0xFFFFFFFF,
            protocol=UDP,
            source_port=68,
            destination_port=67,
            interface=link,
            interface_address=look.own_address(link),
        )
        if look.verdict(INPUT, request) in REFUSED:
            yield finding(
                "dhcp-blocked",
                "note",
                INPUT,
                0,
                f"requests for an address (DHCP) from {link} are blocked",
                f"if the gateway gives out addresses: ipchains -A input -p udp -s 0/0 68 -d 0/0 67 -i {link} -j ACCEPT",
            )


# -- port forwards -----------------------------------------------------------------------------------------------------


def forwards(look: Subject) -> Iterator[Finding]:
    """T-6: a forwarded request passes input, its answer needs a MASQ verdict in forward."""
    for forward in look.around.forwards:
        name = f"{'tcp' if forward.protocol == TCP else 'udp'} {forward.first}"
        for link in look.outside_links():
            yield from _forward_on(look, forward, name, link)


def half_servers(look: Subject) -> Iterator[Finding]:
    """H-67, HOWTO 3.8: a VPN server inside needs its port forwarded and its protocol redirected."""
    for protocol, port, other, name, control, data in _CHANNELS:
        forwards = (one for one in look.around.forwards if one.protocol == protocol)
        server = next((IPv4Address(one.address) for one in forwards if one.first <= port <= one.last), None)
        if look.around.pptp and other == GRE:
            continue
        if server is not None and other not in look.around.redirects:
            yield finding(
                "vpn-half",
                "warning" if other == GRE else "note",  # ESP may come inside UDP (RFC 3948)
                "",
                0,
                f"{control} is forwarded to {server}, but protocol {data} is redirected nowhere, as {name} needs it",
                f"`fastmasq redirect add {other} {server}`",
            )
        elif server is None and other in look.around.redirects:
            listen = f"{look.around.outside or 'LINK'}:{port}"
            yield finding(
                "vpn-half",
                "note",
                "",
                0,
                f"protocol {data} is redirected, but {control} is forwarded nowhere, as {name} needs it",
                f"`fastmasq forward add {control.partition(' ')[0]} {listen} HOST:{port}`",
            )


def _forward_on(look: Subject, forward: ForwardedPort, name: str, link: str) -> Iterator[Finding]:
    own = look.own_address(link)
    request = Packet(
        source=STRANGER,
        destination=forward.listen or own,
        protocol=forward.protocol,
        source_port=HIGH_PORT,
        destination_port=forward.first,
        syn=forward.protocol == TCP,
        interface=link,
        interface_address=own,
    )
    answer = Packet(
        source=forward.address,
        destination=STRANGER,
        protocol=forward.protocol,
        source_port=forward.port,
        destination_port=HIGH_PORT,
        ack=forward.protocol == TCP,
        interface=link,
        interface_address=own,
    )
    if look.verdict(INPUT, request) in REFUSED:
        yield finding(
            "forward-without-input",
            "warning",
            INPUT,
            0,
            f"{name} is forwarded to {IPv4Address(forward.address)}, but strangers may not send to it on {link}",
            "accept them in input, or, if only some may come, see that rules name them all",
        )
    if not look.rules.default_forward and look.verdict(FORWARD, answer) != MASQ:
        yield finding(
            "forward-without-masquerade",
            "warning",
            FORWARD,
            0,
            f"{name} is forwarded to {IPv4Address(forward.address)}, but its answers are not masqueraded on {link}",
            f"ipchains -A forward -s {IPv4Address(forward.address)} -i {link} -j MASQ",
        )
