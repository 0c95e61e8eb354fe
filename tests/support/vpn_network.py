"""The masquerade network with PPTP and IPsec hosts on both sides of a running fastmasq, and what that says of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastmasq.lab.topology import SERVER_ADDRESS
from tests.support.ipsec_hosts import IpsecHost
from tests.support.lab_network import INSIDE_ADDRESS, Network
from tests.support.pptp_hosts import PptpHost

SECOND_INSIDE, THIRD_INSIDE = "10.0.0.3", "10.0.0.4"
SECOND_SERVER, THIRD_SERVER = "199.0.0.2", "199.0.0.3"
HOSTS = {
    INSIDE_ADDRESS: "inside",
    SECOND_INSIDE: "inside2",
    THIRD_INSIDE: "inside2",
    SERVER_ADDRESS: "server",
    SECOND_SERVER: "server",
    THIRD_SERVER: "server",
}


class VpnNetwork:
    """A Network with a third inside host and VPN hosts by address, all of which end with it."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.hosts: list[PptpHost | IpsecHost] = []
        net.ip("inside2", f"address add {THIRD_INSIDE}/8 dev eth0")

    def pptp(self, address: str, **options: int) -> PptpHost:
        return self._add(PptpHost(partial(self.net.on, HOSTS[address]), address, **options))

    def pptp_server(self, address: str = SERVER_ADDRESS, **options: int) -> PptpHost:
        return self.pptp(address, **options).listen()

    def ipsec(self, address: str, **options: bool) -> IpsecHost:
        return self._add(IpsecHost(partial(self.net.on, HOSTS[address]), address, **options))

    def listed(self, kind: str, **wanted: object) -> list[dict[str, Any]]:
        """Return what `fastmasq vpn` lists of a kind, with these values."""
        self.net.status()  # when all is quiet
        rows = self.net.fastmasq.ask("vpn")[kind]
        return [row for row in rows if all(row[name] == value for name, value in wanted.items())]

    def call_states(self) -> dict[tuple[str, str, int | None], str]:
        """Return the states of calls by inside host, remote and external Call ID."""
        return {(row["inside"], row["remote"], row["external_call_id"]): row["state"] for row in self.listed("calls")}

    def strays(self) -> list[object]:
        """Return the GRE and ESP packets that came to a host that has no call and no SA for them."""
        return [stray for host in self.hosts for stray in host.strays]

    def undisturbed(self) -> bool:
        """Return whether everything sent so far has come to where it belongs."""
        return self.net.drops() == {} and self.strays() == []

    def _add(self, host: Any) -> Any:
        self.hosts.append(self.net.keep(host))
        return host
