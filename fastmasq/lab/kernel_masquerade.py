"""The baseline: masquerading by the kernel in the gateway, with nftables."""

from __future__ import annotations

from collections.abc import Iterable

from fastmasq.errors import KernelError
from fastmasq.lab import hosts
from fastmasq.lab.topology import Lab

TABLE = "fastmasq_lab_baseline"

_RULES = """
table ip {table} {{
    {flowtable}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        oifname "eth1" masquerade
    }}
    chain forward {{
        type filter hook forward priority filter
        {filter}
    }}
}}
"""
_FLOWTABLE = "flowtable carried { hook ingress priority 0; devices = { eth0, eth1 }; }"


class KernelMasquerade:
    """nftables masquerade out of eth1 and ip_forward, in a lab's gateway; usable as a context manager."""

    name = "kernel"

    def __init__(self, lab: Lab, dropped: Iterable[str] = (), *, carries: bool = False) -> None:
        """dropped: source addresses that rules of the forward chain drop, one rule each.

        carries: what is established goes by a flow table, past these rules.
        """
        self._namespace = lab.namespace("gateway")
        rules = [f"ip saddr {address} drop" for address in dropped]
        if carries:
            rules.append("ip protocol { tcp, udp } flow add @carried")
        self._rules = _RULES.format(
            table=TABLE, filter="\n        ".join(rules), flowtable=_FLOWTABLE if carries else ""
        )

    def __enter__(self) -> KernelMasquerade:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def complaint(self) -> str:
        """Return what nftables says against its rules; "" if it would take them."""
        try:
            hosts.checked(hosts.command_in(self._namespace, ["nft", "--check", "-f", "-"]), self._rules)
        except KernelError as error:
            return str(error)
        return ""

    def install(self) -> None:
        """Start masquerading. Raises KernelError if nftables refuses."""
        hosts.checked(hosts.command_in(self._namespace, ["nft", "-f", "-"]), self._rules)
        hosts.set_sysctls(self._namespace, ipv4__ip_forward=1)

    def remove(self) -> None:
        """Stop forwarding and remove the rules; nothing to remove is fine too."""
        hosts.set_sysctls(self._namespace, ipv4__ip_forward=0)
        # `add` first: deleting a table that is not there would be an error.
        hosts.checked(
            hosts.command_in(self._namespace, ["nft", "-f", "-"]), f"add table ip {TABLE}\ndelete table ip {TABLE}\n"
        )
