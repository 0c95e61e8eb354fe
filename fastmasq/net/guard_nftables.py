"""The guard as a table of nftables, `netdev fastmasq`, with a chain at the ingress hook for each role."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
from collections.abc import Sequence

from fastmasq.errors import KernelError
from fastmasq.net.guard import DHCP_CLIENT_PORT, FIRST_GROUP_ADDRESS, NAME, Guard, GuardSpec, present
from fastmasq.net.ports import PortSet, format_ports

_PRIORITY = -500  # ahead of other chains and of flow tables
_ATTEMPTS = 3  # an interface may vanish between our look and the transaction
_TIMEOUT_S = 30


class NftablesGuard(Guard):
    """Every update is one transaction that deletes the old table and makes the new one."""

    backend = "nftables"

    def check(self) -> None:
        self._run(f"table netdev {NAME} {{ chain probe {{ {_hook(['lo'])} }}; }}", "--check")

    def update(self, spec: GuardSpec) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            links = [(interface.name, role) for interface, role in present(spec)]
            try:
                self._run(_replacement(spec, links))
            except KernelError:
                if attempt == _ATTEMPTS:
                    raise
            else:
                self.guarded = tuple(name for name, _ in links)
                return

    def remove(self) -> bool:
        self.guarded = ()
        if NAME not in self._run("list tables netdev").split():
            return False
        self._run(f"delete table netdev {NAME}")
        return True

    def describe(self) -> str:
        return f"nftables: table netdev {NAME} at the ingress of {', '.join(self.guarded) or 'no interface yet'}"

    def _run(self, script: str, *options: str) -> str:
        nft = shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if nft is None:
            raise KernelError('guard "nftables": the program nft is not installed; install the package nftables')
        done = subprocess.run(
            [nft, *options, "-f", "-"], input=script, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode:
            reason = next(iter(done.stderr.splitlines()), f"nft ended with status {done.returncode}")
            raise KernelError(f'guard "nftables": {reason.strip()}')
        return done.stdout


def _hook(names: Sequence[str]) -> str:
    devices = ", ".join(f'"{name}"' for name in names)
    return f"type filter hook ingress devices = {{ {devices} }} priority {_PRIORITY}; policy accept;"


def _replacement(spec: GuardSpec, links: Sequence[tuple[str, str]]) -> str:
    """Return the script that replaces the whole table; its first line lets the deletion succeed when there is none."""
    chains = [
        f"chain {role} {{ {_hook(names)}\n{rules}\n}}"
        for role, rules in (("inside", _inside_rules(spec)), ("outside", _outside_rules(spec)))
        if (names := [name for name, its_role in links if its_role == role])
    ]
    addresses = spec.accepted_addresses()
    elements = f"elements = {_set(addresses)};" if addresses else ""
    table = "\n".join((f"set local {{ type ipv4_addr; {elements} }}", *chains))
    return f"table netdev {NAME} {{ }}\ndelete table netdev {NAME}\ntable netdev {NAME} {{\n{table}\n}}\n"


def _inside_rules(spec: GuardSpec) -> str:
    """First the common case, what goes out."""
    return "\n".join((_NOT_LOCAL, *_ours(spec)))


def _outside_rules(spec: GuardSpec) -> str:
    """First the common case, what comes back to a port of ours."""
    return "\n".join((*_ours(spec), f"udp dport {DHCP_CLIENT_PORT} accept", _NOT_LOCAL))


_NOT_LOCAL = f"ip daddr < {ipaddress.IPv4Address(FIRST_GROUP_ADDRESS)} ip daddr != @local drop"


def _ours(spec: GuardSpec) -> list[str]:
    """Return the rules for our ports of the external addresses; a fragment without a port matches none of them."""
    if not spec.external_addresses:
        return []
    to_us = f"ip daddr {_set(spec.external_addresses)}"
    rules = [
        f"{to_us} {protocol} dport {{ {format_ports(ports)} }} drop"
        for protocol, ports in (("tcp", spec.tcp_ports), ("udp", spec.udp_ports))
        if _any(ports)
    ]
    if spec.protocols:
        rules.append(f"{to_us} ip protocol {{ {', '.join(map(str, spec.protocols))} }} drop")
    return rules


def _any(ports: PortSet) -> bool:
    return bool(ports.any())


def _set(addresses: Sequence[int]) -> str:
    return "{ " + ", ".join(str(ipaddress.IPv4Address(address)) for address in addresses) + " }"
