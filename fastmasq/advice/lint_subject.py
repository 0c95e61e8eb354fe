"""What lint looks at: a rule set with its surroundings, probe packets for it, and the findings that come of it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Literal

from msgspec import Struct

from fastmasq.policy.chains import DENY, FORWARD, INPUT, MASQ, OUTPUT, REJECT, Match, Rule, RuleSet
from fastmasq.policy.evaluate import LOOP, Packet, evaluate

Severity = Literal["warning", "note"]

HIGH_PORT = 40000
STRANGER = int(IPv4Address("198.51.100.1"))  # some router of the internet (RFC 5737)
LOOPBACK = int(IPv4Address("127.0.0.1"))
REFUSED = (DENY, REJECT, LOOP)


class Finding(Struct, frozen=True, kw_only=True):
    """One thing to know. chain and number say where (number 0: the chain as a whole, chain "": the set as a whole)."""

    name: str
    severity: Severity
    chain: str
    number: int
    what: str
    advice: str

    def __str__(self) -> str:
        where = f"{self.chain} rule {self.number}: " if self.number else f"chain {self.chain}: " if self.chain else ""
        return f"{where}{self.what}; {self.advice} [{self.name}]"


class ForwardedPort(Struct, frozen=True):
    """A port forward as far as rules matter: protocol number, external ports, and the inside endpoint.

    listen: the external address, 0 the one of the outside link.
    """

    protocol: int
    first: int
    last: int
    address: int
    port: int
    listen: int = 0


class Surroundings(Struct, frozen=True, kw_only=True):
    """What is known besides the rules. All integers in host order.

    inside, outside: names of links, none when not known. addresses: each existing link's own addresses, None when the
    host was not looked at. forwards: the port forwards. redirects: protocols that are redirected to an inside host.
    pptp: whether PPTP is followed, so that GRE finds its host by itself.
    """

    inside: tuple[str, ...] = ()
    outside: str = ""
    addresses: dict[str, tuple[int, ...]] | None = None
    forwards: tuple[ForwardedPort, ...] = ()
    redirects: tuple[int, ...] = ()
    pptp: bool = False


class Subject:
    """A rule set with its surroundings, and the questions that several looks ask."""

    def __init__(self, rules: RuleSet, around: Surroundings) -> None:
        self.rules = rules
        self.around = around
        self.reached_from = {base: self._reachable(base) for base in (INPUT, FORWARD, OUTPUT)}

    def rules_of(self, chain: str) -> Iterator[tuple[int, Rule]]:
        """Yield the rules of one chain with their numbers."""
        for number, counted in enumerate(self.rules.chains[chain].rules, 1):
            yield number, counted.rule

    def rules_below(self, base: str) -> Iterator[tuple[str, int, Rule]]:
        """Yield the rules of a built-in chain and of the user chains it reaches."""
        for chain in self.reached_from[base]:
            for number, rule in self.rules_of(chain):
                yield chain, number, rule

    def verdict(self, chain: str, packet: Packet) -> str:
        return evaluate(self.rules, chain, packet).verdict

    def outside_links(self) -> list[str]:
        """Return the outside link, or, when it is not known, the links that forward rules masquerade on."""
        if self.around.outside:
            return [self.around.outside]
        named = [rule.match.interface for _, _, rule in self.rules_below(FORWARD) if rule.target == MASQ]
        return list(dict.fromkeys(name for name in named if name and not name.endswith("+")))

    def inside_links(self) -> list[str]:
        """Return the inside links, or, when they are not known, the links of input rules that are not outside."""
        if self.around.inside or not self.outside_links():
            return list(self.around.inside)
        outside = (*self.outside_links(), "lo", "")
        named = [rule.match.interface for _, _, rule in self.rules_below(INPUT)]
        return list(dict.fromkeys(name for name in named if name not in outside and not name.endswith("+")))

    def own_address(self, link: str) -> int:
        """Return an address for packets to this link: its own, else one that rules name, else a stranger's."""
        own = (self.around.addresses or {}).get(link)
        if own:
            return own[0]
        for _, _, rule in self.rules_below(INPUT):
            if rule.match.interface == link and is_named(rule.match.destination) and not rule.match.not_destination:
                return rule.match.interface_address or member(rule.match.destination)
        return STRANGER + 1

    def is_foreign(self, network: tuple[int, int], interface_address: int) -> bool:
        """Return whether a network certainly holds no address of the gateway."""
        own = set() if interface_address == 0 else {interface_address}
        if self.around.addresses is not None:
            own.update(address for addresses in self.around.addresses.values() for address in addresses)
        return bool(own) and is_named(network) and not any(holds(network, address) for address in own)

    def _reachable(self, base: str) -> list[str]:
        found = [base]
        for chain in found:
            for _, rule in self.rules_of(chain):
                if rule.target in self.rules.chains and rule.target not in found:
                    found.append(rule.target)
        return found


def probe(
    match: Match, protocol: int, source_port: int = 0, destination_port: int = 0, interface: str | None = None
) -> Packet:
    """Return a packet of another protocol that is otherwise as this rule wants it."""
    link = match.interface if interface is None else interface
    return Packet(
        source=member(match.source, match.not_source),
        destination=member(match.destination, match.not_destination),
        protocol=protocol,
        source_port=source_port or _first(match.source_ports),
        destination_port=destination_port or _first(match.destination_ports),
        interface=link.replace("+", "0") if not match.not_interface else "",
        interface_address=match.interface_address,
    )


def _first(ports: tuple[tuple[int, int], ...]) -> int:
    return ports[0][0] if ports else HIGH_PORT


def member(network: tuple[int, int], inverted: bool = False) -> int:
    """Return an address of a network: its first, or for the whole internet, or all but a network, a stranger's."""
    return network[0] if is_named(network) and not inverted else STRANGER


def is_between_hosts(match: Match) -> bool:
    """Return whether a match names one end at least."""
    return is_named(match.source) or is_named(match.destination)


def is_named(network: tuple[int, int]) -> bool:
    return network[1] != 0


def holds(network: tuple[int, int], address: int) -> bool:
    return not (address ^ network[0]) & network[1]


def finding(name: str, severity: Severity, chain: str, number: int, what: str, advice: str) -> Finding:
    return Finding(name=name, severity=severity, chain=chain, number=number, what=what, advice=advice)
