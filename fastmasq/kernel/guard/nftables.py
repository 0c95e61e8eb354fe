"""The guard as a table of nftables, `netdev fastmasq`: a chain at the ingress hook of each link, and the sets it needs.

Every external address has rules and sets of ports of its own: one set of addresses with ports for all of them costs
some 400 ns more for a packet that is ours (Linux 6.18, a busy virtual machine).

An update is one transaction that replaces the rules within the chains and the elements within the sets. Two simpler
ways let a packet of a flood slip through at nearly every update (measured on 6.18); the host then kills a live
connection by a RST. When the table is deleted and made anew, the new chain is hooked in before the old one, and a
packet between the two is judged by each while it is empty. Sets of intervals and maps without a name have no elements
for a moment. With chains and named sets that stay, none of 25 million packets slipped through in 1500 updates.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from functools import partial

from fastmasq.errors import KernelError
from fastmasq.kernel import nft
from fastmasq.kernel.guard.specification import DHCP_CLIENT_PORT, FIRST_GROUP_ADDRESS, NAME, Guard, GuardSpec, present
from fastmasq.kernel.ports import format_ports
from fastmasq.ring.packet_socket import GUARD_MARK

_PRIORITY = -500  # ahead of other chains and of flow tables
_ATTEMPTS = 3  # an interface may vanish between our look and the transaction
_PURPOSE = 'guard "nftables"'


class NftablesGuard(Guard):
    """Everything is done by the program nft, as one script on its standard input."""

    backend = "nftables"
    marks = True

    def __init__(self) -> None:
        super().__init__()
        self._table = nft.Table(_PURPOSE, "netdev", NAME)

    def check(self) -> None:
        script = [f"add table netdev {NAME}", f"add chain netdev {NAME} probe {_hook('lo')}"]
        nft.run(_PURPOSE, "--check", script="\n".join([*script, f"add rule netdev {NAME} probe {_OURS}"]))

    def update(self, spec: GuardSpec) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            links = present(spec)
            try:
                self._table.write(partial(_script, spec, [(interface.name, role) for interface, role in links]))
            except KernelError:
                if attempt == _ATTEMPTS:
                    raise
            else:
                self._put_on(interface for interface, _ in links)
                return

    def remove(self) -> bool:
        self._put_on(())
        return self._table.delete()

    def describe(self) -> str:
        return f"nftables: table netdev {NAME} at the ingress of {self._where()}"

    def _altered(self) -> Collection[str]:
        altered = self._table.altered()
        of_links = {f"chain {_chain_name(name)}": name for name in self.guarded}
        if all(each in of_links for each in altered):
            return [of_links[each] for each in altered]
        return self.guarded  # the sets are of all links


def _script(spec: GuardSpec, links: Sequence[tuple[str, str]], objects: nft.Objects) -> str:
    """Return the transaction that makes the table, which has these objects now, say what `spec` wants."""
    chains, sets = nft.names(objects, "chain"), nft.names(objects, "set")
    lines = [f"add table netdev {NAME}"]
    wanted_sets = _sets(spec)
    for name, (kind, elements) in wanted_sets.items():
        lines += [f"add set netdev {NAME} {name} {{ {kind} }}", f"flush set netdev {NAME} {name}"]
        if elements:
            lines.append(f"add element netdev {NAME} {name} {{ {elements} }}")
    wanted = {_chain_name(name) for name, _ in links}
    lines += [f"delete chain netdev {NAME} {chain}" for chain in chains if chain not in wanted]
    for name, role in links:
        chain = f"netdev {NAME} {_chain_name(name)}"
        lines += [f"add chain {chain} {_hook(name)}", f"flush chain {chain}"]
        lines += [f"add rule {chain} {rule}" for rule in _rules(role, spec.external)]
    lines += [f"delete set netdev {NAME} {name}" for name in sets if name not in wanted_sets]
    return "\n".join(lines) + "\n"


def _sets(spec: GuardSpec) -> dict[str, tuple[str, str]]:
    """Return the type and the elements of each set."""
    ports = {
        f"{protocol}_{address:08x}": ("type inet_service; flags interval;", format_ports(of_protocol))
        for address, of_address in spec.external.items()
        for protocol, of_protocol in zip(("tcp", "udp"), of_address, strict=True)
    }
    return {
        "local": ("type ipv4_addr;", _spelled(spec.accepted_addresses())),
        "external": ("type ipv4_addr;", _spelled(spec.external)),
        "protocols": ("type inet_proto;", ", ".join(map(str, spec.protocols))),
        **ports,
    }


def _spelled(addresses: Iterable[int]) -> str:
    return ", ".join(str(ipaddress.IPv4Address(address)) for address in addresses)


def _hook(name: str) -> str:
    return f'{{ type filter hook ingress device "{name}" priority {_PRIORITY}; policy accept; }}'


def _chain_name(interface: str) -> str:
    """Return a name that nftables accepts, a different one for each interface: eth0.10 becomes link_eth0_2e10."""
    return f"link_{nft.escaped(interface)}"


# Frames for another station, and frames of a VLAN, which the kernel has yet to hand to the VLAN's own interface.
_NOT_FOR_US = ("meta pkttype != host accept", "@ll,96,16 { 0x8100, 0x88a8 } @ll,116,12 != 0 accept")

_OURS = f"meta pkttype set other meta mark set {GUARD_MARK:#x} accept"

_WITH_PORTS = "ip frag-off & 0x1fff == 0"  # a later fragment has payload where the ports would be
_OUR_PROTOCOLS = f"ip daddr @external ip protocol @protocols {_OURS}"
_NOT_LOCAL = f"ip daddr < {ipaddress.IPv4Address(FIRST_GROUP_ADDRESS)} ip daddr != @local {_OURS}"
_DHCP = f"udp dport {DHCP_CLIENT_PORT} {_WITH_PORTS} accept"


def _rules(role: str, external: Iterable[int]) -> list[str]:
    """Return the rules of one link; the common case first: what goes out on the inside, what comes back outside."""
    ours = [
        f"ip daddr {ipaddress.IPv4Address(address)} {protocol} dport @{protocol}_{address:08x} {_WITH_PORTS} {_OURS}"
        for address in external
        for protocol in ("tcp", "udp")
    ]
    if role == "local":
        return [f"meta pkttype host ip version 4 {_OURS}"]
    if role == "inside":
        return [*_NOT_FOR_US, _NOT_LOCAL, *ours, _OUR_PROTOCOLS]
    return [*_NOT_FOR_US, *ours, _OUR_PROTOCOLS, _DHCP, _NOT_LOCAL]
