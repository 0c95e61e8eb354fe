"""The guard as chains of iptables' table `raw`, for hosts that have neither eBPF at tc nor nftables at ingress.

PREROUTING of `raw` is the first that the kernel asks once IP has taken a packet in: before connections are tracked and
before a route is looked up. So the kernel begins with packets of ours, and it is slower than the others; what it drops
is what they mark, but for what it cannot see any more: frames for other stations IP itself has dropped by then, and a
fragment may have been put together with the others of its datagram, and is judged with them. TCP with less than a
header, whose ports iptables is asked for, it drops of its own accord.

    PREROUTING -i LINK -> fastmasq-SIDE -> fastmasq-ADDRESS (its ports, protocols of ours)

An update replaces the table as a whole (`iptables-restore` without flushing), which the kernel does in one step: a
packet meets the old rules or the new ones.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address

from fastmasq.kernel import iptables
from fastmasq.kernel.guard.specification import DHCP_CLIENT_PORT, NAME, Guard, GuardSpec, present
from fastmasq.kernel.ports import PortSet, port_ranges

_TABLE = "raw"
_PURPOSE = 'guard "iptables"'
_CHAIN = f"{NAME}-"
_NOT_FOR_US = "-m pkttype ! --pkt-type unicast -j RETURN"
_GROUPS = "-d 224.0.0.0/3 -j RETURN"


class IptablesGuard(Guard):
    """Everything is done by the programs iptables-legacy and iptables-legacy-restore."""

    backend = "iptables"

    def __init__(self) -> None:
        super().__init__()
        self._written: list[str] = []  # what iptables lists of ours since the last update

    def check(self) -> None:
        chain = f"{_CHAIN}probe"
        iptables.restore(
            _PURPOSE,
            _TABLE,
            [f":{chain} - [0:0]", f"-A {chain} {_NOT_FOR_US}", f"-A {chain} -p tcp --dport 1:2 -j DROP"],
            test=True,
        )

    def update(self, spec: GuardSpec) -> None:
        links = present(spec)
        chains, jumps = _chains_and_jumps(self._listed())
        wanted = dict(_chains(spec))
        lines = [f":{name} - [0:0]" for name in {**dict.fromkeys(chains), **wanted}]
        lines += [f"-D PREROUTING {jump}" for jump in jumps]
        lines += [f"-I PREROUTING {jump}" for jump in _jumps(spec)]
        lines += [f"-A {name} {rule}" for name, rules in wanted.items() for rule in rules]
        lines += [f"-X {name}" for name in chains if name not in wanted]
        iptables.restore(_PURPOSE, _TABLE, lines)
        self._written = self._listed()
        self._put_on(interface for interface, _ in links)

    def remove(self) -> bool:
        self._put_on(())
        chains, jumps = _chains_and_jumps(self._listed())
        if not chains and not jumps:
            return False
        lines = [f":{name} - [0:0]" for name in chains]
        lines += [f"-D PREROUTING {jump}" for jump in jumps]
        lines += [f"-X {name}" for name in chains]
        iptables.restore(_PURPOSE, _TABLE, lines)
        return True

    def describe(self) -> str:
        return f"iptables: chains {_CHAIN}* of table {_TABLE}, at the ingress of {self._where()}"

    def _altered(self) -> Collection[str]:
        return () if self._listed() == self._written else self.guarded

    def _listed(self) -> list[str]:
        """Return our chains, their rules, and those of PREROUTING that lead to them, also those of a predecessor."""
        if not iptables.has_table(_TABLE):
            return []
        return [line for line in iptables.chains_and_rules(_PURPOSE, _TABLE) if f" {_CHAIN}" in line]


def _chains_and_jumps(listed: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return, of what is listed, the names of our chains and the rules of PREROUTING that lead to them."""
    chains, jumps = [], []
    for line in listed:
        kind, name, *rest = shlex.split(line)
        if kind == "-N" and name.startswith(_CHAIN):
            chains.append(name)
        elif kind == "-A" and name == "PREROUTING" and any(each.startswith(_CHAIN) for each in rest):
            jumps.append(line.removeprefix("-A PREROUTING "))
    return chains, jumps


def _jumps(spec: GuardSpec) -> list[str]:
    return [f"-i {name} -j {_CHAIN}{role}" for name, role in spec.roles()]


def _chains(spec: GuardSpec) -> Iterator[tuple[str, list[str]]]:
    """Yield each chain with its rules; those of one side are asked in order, and what they leave open is dropped."""
    ours = {address: f"{_CHAIN}{address:08x}" for address in spec.external}
    to_us = [f"-d {IPv4Address(address)} -g {name}" for address, name in ours.items()]
    to_host = [f"-d {IPv4Address(address)} -j RETURN" for address in spec.accepted_addresses() if address not in ours]
    dhcp = f"-p udp --dport {DHCP_CLIENT_PORT} -j RETURN"
    if spec.inside:
        yield f"{_CHAIN}inside", [_NOT_FOR_US, *to_us, _GROUPS, *to_host, "-j DROP"]
    if spec.outside:
        yield f"{_CHAIN}outside", [_NOT_FOR_US, *to_us, _GROUPS, *to_host, dhcp, "-j DROP"]
    if spec.local:
        yield f"{_CHAIN}local", ["-j DROP"]
    for address, (tcp, udp) in spec.external.items():
        yield ours[address], [*_port_rules("tcp", tcp), *_port_rules("udp", udp), *_protocol_rules(spec.protocols)]


def _protocol_rules(ours: Collection[int]) -> list[str]:
    """To iptables protocol 0 is every protocol: where it is ours, the others are let off by name."""
    if 0 not in ours:
        return [f"-p {protocol} -j DROP" for protocol in ours]
    return [*(f"-p {protocol} -j RETURN" for protocol in range(1, 256) if protocol not in ours), "-j DROP"]


def _port_rules(protocol: str, ports: PortSet) -> list[str]:
    """Later fragments, which have no ports, fit none of them."""
    return [f"-p {protocol} --dport {first}:{last} -j DROP" for first, last in port_ranges(ports)]
