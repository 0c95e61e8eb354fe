"""What tests of the old command lines share: a host with few names, networks in short, and the reading of lines."""

from __future__ import annotations

from fastmasq.legacy import ipchains, ipfwadm
from fastmasq.legacy.names import Names, read_dotted, read_mask
from fastmasq.legacy.requests import Request
from fastmasq.policy.chains import RuleSet
from fastmasq.policy.changes import apply
from fastmasq.wire.numbers import BY_NAME, TCP, UDP

HOSTS = {"gate": ["10.0.0.1"], "many": ["192.168.1.1", "192.168.1.2", "192.168.2.1"]}
NETWORKS = {"lan": 0x0A000000}
SERVICES = {("tcp", "auth"): 113, ("tcp", "www"): 80, ("udp", "domain"): 53, ("tcp", "pptp"): 1723}
PROTOCOLS = {name: BY_NAME[name] for name in ("icmp", "tcp", "udp", "gre", "esp")}


class FewNames(Names):
    """Names as they would be on a host that knows only what stands above."""

    _networks = NETWORKS

    def hosts(self, name: str) -> list[int]:
        return [read_dotted(address) for address in HOSTS.get(name, [])]

    def _host_name(self, address: int) -> str | None:
        return next((name for name, found in HOSTS.items() if address == read_dotted(found[0])), None)

    def port(self, service: str, protocol: int) -> int | None:
        return SERVICES.get(({TCP: "tcp", UDP: "udp"}.get(protocol), service))

    def service(self, port: int, protocol: int) -> str | None:
        wanted = ({TCP: "tcp", UDP: "udp"}.get(protocol), port)
        return next((name for (kind, name), number in SERVICES.items() if (kind, number) == wanted), None)

    def protocol(self, name: str) -> int | None:
        return 0 if name.lower() == "all" else PROTOCOLS.get(name)

    def protocol_name(self, protocol: int) -> str | None:
        return next((name for name, number in PROTOCOLS.items() if number == protocol), None)


NAMES = FewNames()


def net(text: str) -> tuple[int, int]:
    """Return (address, mask) of "10.0.0.0/8"; without a mask it is one host."""
    address, _, mask = text.partition("/")
    return read_dotted(address), read_mask(mask or "32")


def read(line: str, *, tolerant: bool = False, chains: tuple[str, ...] = ()) -> Request:
    """Return what a line of one of the programs asks for."""
    program, *words = line.split()
    if program == "ipfwadm":
        return ipfwadm.parse(words, NAMES, tolerant=tolerant)
    return ipchains.parse(words, NAMES, tolerant=tolerant, chains=chains)


def chains_after(*lines: str, tolerant: bool = False) -> RuleSet:
    """Return the rule set that lines make of an empty one."""
    rules = RuleSet()
    for line in lines:
        rules = apply(rules, read(line, tolerant=tolerant).changes)
    return rules


def rules_of(rules: RuleSet, chain: str) -> list:
    return [counted.rule for counted in rules.chain(chain).rules]
