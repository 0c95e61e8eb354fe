"""The guard as a table of nftables, `netdev fastmasq`, with a chain at the ingress hook of each link.

An update is one transaction that replaces the rules within the chains. To delete the table and make it anew in one
transaction is not good enough: the new chain is hooked in before the old one, and a packet between the two at the moment
of the change is judged by the new chain before and by the old chain after it, that is by no rule (seen once in 20 updates
under a flood). A chain that stays is read as a whole either before or after.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from fastmasq.errors import KernelError
from fastmasq.net.guard import DHCP_CLIENT_PORT, FIRST_GROUP_ADDRESS, NAME, Guard, GuardSpec, present
from fastmasq.net.ports import format_ports

_PRIORITY = -500  # ahead of other chains and of flow tables
_ATTEMPTS = 3  # an interface may vanish between our look and the transaction
_TIMEOUT_S = 30


class NftablesGuard(Guard):
    """Everything is done by the program nft, as one script on its standard input."""

    backend = "nftables"

    def check(self) -> None:
        self._run("--check", script=f"add table netdev {NAME}\nadd chain netdev {NAME} probe {_hook('lo')}")

    def update(self, spec: GuardSpec) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            links = [(interface.name, role) for interface, role in present(spec)]
            try:
                self._run(script=_script(spec, links, self._chains()))
            except KernelError:
                if attempt == _ATTEMPTS:
                    raise
            else:
                self.guarded = tuple(name for name, _ in links)
                return

    def remove(self) -> bool:
        self.guarded = ()
        if NAME not in self._run("list", "tables", "netdev").split():
            return False
        self._run("delete", "table", "netdev", NAME)
        return True

    def describe(self) -> str:
        return f"nftables: table netdev {NAME} at the ingress of {', '.join(self.guarded) or 'no interface yet'}"

    def _chains(self) -> list[str]:
        """Return the names of the chains that our table has now, also those of a predecessor."""
        listing = self._run("list", "chains", "netdev")
        table = re.search(rf"^table netdev {NAME} {{\n(.*?)^}}", listing, re.MULTILINE | re.DOTALL)
        return re.findall(r"^\tchain (\S+) {", table[1], re.MULTILINE) if table else []

    def _run(self, *arguments: str, script: str | None = None) -> str:
        nft = shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if nft is None:
            raise KernelError('guard "nftables": the program nft is not installed; install the package nftables')
        if script is not None:
            arguments = (*arguments, "-f", "-")
        done = subprocess.run(
            [nft, *arguments], input=script, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode:
            reason = next(iter(done.stderr.splitlines()), f"nft ended with status {done.returncode}")
            raise KernelError(f'guard "nftables": {reason.strip()}')
        return done.stdout


def _script(spec: GuardSpec, links: Sequence[tuple[str, str]], chains: Sequence[str]) -> str:
    """Return the transaction that makes the table say what `spec` wants; `chains` are those it has now."""
    lines = [f"add table netdev {NAME}"]
    wanted = {_chain_name(name) for name, _ in links}
    for chain in chains:
        if chain not in wanted:
            lines.append(f"delete chain netdev {NAME} {chain}")
    for name, role in links:
        chain = f"netdev {NAME} {_chain_name(name)}"
        lines += [f"add chain {chain} {_hook(name)}", f"flush chain {chain}"]
        lines += [f"add rule {chain} {rule}" for rule in _rules(spec, role)]
    return "\n".join(lines) + "\n"


def _hook(name: str) -> str:
    return f'{{ type filter hook ingress device "{name}" priority {_PRIORITY}; policy accept; }}'


def _chain_name(interface: str) -> str:
    """Return a name that nftables accepts, a different one for each interface: eth0.10 becomes link_eth0_2e10."""
    return "link_" + re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):02x}", interface)


def _rules(spec: GuardSpec, role: str) -> list[str]:
    """Return the rules of one link, the common case first: what goes out inside, what comes back outside."""
    others = ["meta pkttype != host accept", "@ll,96,16 { 0x8100, 0x88a8 } accept"]
    if role == "inside":
        return [*others, _not_local(spec), *_ours(spec)]
    dhcp = f"udp dport {DHCP_CLIENT_PORT} {_WITH_PORTS} accept"
    return [*others, *_ours(spec), dhcp, _not_local(spec)]


_WITH_PORTS = "ip frag-off & 0x1fff == 0"  # a later fragment has payload where the ports would be


def _not_local(spec: GuardSpec) -> str:
    addresses = spec.accepted_addresses()
    local = f"ip daddr != {_set(addresses)}" if addresses else ""
    return f"ip daddr < {ipaddress.IPv4Address(FIRST_GROUP_ADDRESS)} {local} drop"


def _ours(spec: GuardSpec) -> list[str]:
    if not spec.external_addresses:
        return []
    to_us = f"ip daddr {_set(spec.external_addresses)}"
    rules = [
        f"{to_us} {protocol} dport {{ {format_ports(ports)} }} {_WITH_PORTS} drop"
        for protocol, ports in (("tcp", spec.tcp_ports), ("udp", spec.udp_ports))
        if ports.any()
    ]
    if spec.protocols:
        rules.append(f"{to_us} ip protocol {{ {', '.join(map(str, spec.protocols))} }} drop")
    return rules


def _set(addresses: Sequence[int]) -> str:
    return "{ " + ", ".join(str(ipaddress.IPv4Address(address)) for address in addresses) + " }"
