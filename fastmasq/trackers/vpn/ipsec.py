"""IPsec of inside hosts in one place: the ISAKMP and the ESP table, and what concerns both of them.

ISAKMP packet -> isakmp_outbound / isakmp_inbound -+          the path moves packets of settled rows by itself
ESP packet    -> esp_outbound / esp_inbound -------+-> Decision: send (copies), drop by name, or leave to the host
once a second -> saw ..., expire                  -+-> rows made, changed, closed: esp.take_changes()
"""

from __future__ import annotations

from fastmasq.trackers.vpn.decision import Decision, dropped
from fastmasq.trackers.vpn.esp import EspTable
from fastmasq.trackers.vpn.events import Event
from fastmasq.trackers.vpn.isakmp import ExchangeTable, IpsecSettings
from fastmasq.wire.tunnels import Isakmp


class Ipsec:
    """Both tables under one set of settings. Times in nanoseconds, addresses as numbers in host order."""

    def __init__(self, settings: IpsecSettings | None = None) -> None:
        self.settings = settings or IpsecSettings()
        self.exchanges = ExchangeTable(self.settings)
        self.esp = EspTable(self.settings, self.exchanges)

    def isakmp_outbound(self, inside: int, masq: int, remote: int, header: Isakmp, now: int) -> Decision:
        """Decide about a UDP packet from port 500 to port 500 of an inside host."""
        self.expire(now)
        other = self._other_owner(inside, remote)
        if other is not None:
            return _parallel(inside, remote, other, "ISAKMP")
        return self.exchanges.outbound(inside, masq, remote, header, now)

    def isakmp_inbound(
        self, remote: int, masq: int, header: Isakmp, now: int, redirect: int | None = None
    ) -> Decision:  # fmt: skip
        """Decide about a UDP packet from port 500 to port 500 of ours that the host's own IKE daemon does not claim."""
        self.expire(now)
        return self.exchanges.inbound(remote, masq, header, now, redirect)

    def esp_outbound(self, inside: int, masq: int, remote: int, spi: int, sequence: int, now: int) -> Decision:
        """Decide about an ESP packet of an inside host whose row the path does not have."""
        self.expire(now)
        if spi and self.esp.by_outbound(inside, remote, spi) is None:
            other = self._other_owner(inside, remote)
            if other is not None:
                return _parallel(inside, remote, other, "ESP")
        return self.esp.outbound(inside, masq, remote, spi, sequence, now)

    def esp_inbound(
        self, remote: int, masq: int, spi: int, sequence: int, now: int, redirect: int | None = None
    ) -> Decision:  # fmt: skip
        """Decide about an ESP packet to an address of ours whose SPI the path does not know."""
        self.expire(now)
        return self.esp.inbound(remote, masq, spi, sequence, now, redirect)

    def expire(self, now: int) -> None:
        """Remove what is over. Rows that the path moves must have been told with `saw` before."""
        self.esp.expire(now)
        self.exchanges.expire(now, self.esp.used_until)

    def move(self, old: int, new: int) -> tuple[Event, ...]:
        """Let everything follow a new masquerade address."""
        self.exchanges.move(old, new)
        return self.esp.move(old, new)

    def masq_with(self, inside: int, remote: int) -> int | None:
        """Return the address that an inside host's newest exchange with a remote has, else its newest SA; or None."""
        known = self.exchanges.masq_of(inside, remote)
        rows = self.esp.rows_with(inside, remote)
        return rows[-1].masq if known is None and rows else known

    def _other_owner(self, inside: int, remote: int) -> int | None:
        """E-32: return the other inside host that has a remote for itself; None if parallel sessions are on."""
        if self.settings.parallel:
            return None
        hosts = self.exchanges.hosts_of(remote) | self.esp.hosts_of(remote)
        return None if inside in hosts else min(hosts, default=None)


def _parallel(inside: int, remote: int, other: int, what: str) -> Decision:
    event = Event(kind="parallel_disabled", inside=inside, remote=remote, other=other, why=what)
    return dropped("parallel_disabled", event)
