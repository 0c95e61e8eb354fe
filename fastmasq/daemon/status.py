"""What a running forwarder tells of itself: links, guard, external address, sessions, and what it drops."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Annotated, Any

from msgspec import Meta, Struct

import fastmasq
from fastmasq.clock import now_ns
from fastmasq.daemon import listing, vpn_sessions
from fastmasq.daemon.confirmation import Confirmation
from fastmasq.daemon.fallbacks import Fallbacks
from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.leases import Leases
from fastmasq.daemon.observed import observed
from fastmasq.daemon.offload import Offload
from fastmasq.daemon.policy import read_parameters
from fastmasq.daemon.rates import Rates
from fastmasq.kernel.ports import format_ports
from fastmasq.observe.counters import NOTE_SENTENCES
from fastmasq.path.verdict import DROP_REASONS
from fastmasq.units import NS_PER_SECOND

_SHOWN = ("active", "capacity", "tcp", "udp", "icmp", "mappings", "hosts")


class _Wanted(Struct, forbid_unknown_fields=True):
    host: str | None = None
    protocol: str | None = None
    state: str | None = None
    limit: Annotated[int, Meta(ge=0)] | None = None
    masqueraded: bool = False
    tunnels: bool = False


class Status:
    """Answers what is asked about a gateway that started at a time in nanoseconds.

    adopted: how many rows of the run before it goes on with, by kind; dropped: with how many it does not, by reason.
    """

    def __init__(
        self, gateway: Gateway, confirmation: Confirmation, leases: Leases, offload: Offload | None, started_ns: int,
        adopted: Mapping[str, int], dropped: Mapping[str, int],
    ) -> None:  # fmt: skip
        self._gateway = gateway
        self._confirmation = confirmation
        self._leases = leases
        self._offload = offload
        self._started_ns = started_ns
        self._adopted, self._dropped = adopted, dropped
        self._rates = Rates()
        self.fallbacks = Fallbacks(gateway.links, gateway.host)

    def every_second(self) -> None:
        """Take note of the counters, for rates."""
        self._rates.add(now_ns(), self._counters())

    def summary(self) -> str:
        """Return the one line that says what we are doing."""
        gateway = self._gateway
        interfaces, external = gateway.settings.interfaces, gateway.ports.external
        address = "no address yet" if external is None else IPv4Address(external)
        rings = ", ".join(sorted({link.ring.tap.mode for link in gateway.links.attached.values()}))
        does = "only observes" if gateway.forwarder.observes else "is forwarding"
        return (
            f"fastmasq {fastmasq.__version__} {does}: {', '.join(interfaces.inside)} -> {interfaces.outside}"
            f" ({address}), ring {rings}, guard {gateway.host.guard.backend}"
        )

    def status(self, _: dict[str, Any]) -> dict[str, Any]:
        """Answer the control method `status`."""
        gateway = self._gateway
        counts, external, guard = gateway.table.counts(), gateway.ports.external, gateway.host.guard
        return {
            "version": fastmasq.__version__,
            "pid": os.getpid(),
            "uptime_s": round((now_ns() - self._started_ns) / NS_PER_SECOND, 1),
            "compat": gateway.settings.compat,
            "links": [self._with_traffic(**link) for link in gateway.links.describe()],
            "guard": {"backend": guard.backend, "detail": guard.describe()},
            "host": {
                "unsolicited": gateway.settings.host.unsolicited,
                "open": list(map(str, gateway.settings.host.open)),
            },
            "external": {
                "address": None if external is None else str(IPv4Address(external)),
                "addresses": [str(IPv4Address(address)) for address in gateway.ports.externals],
                "missing": gateway.missing_addresses(),
                "ports": format_ports(gateway.ports.free[0] & gateway.ports.free[1]),
            },
            "host_ports": gateway.host.connects_from(),
            "sessions": {
                **{name: counts[name] for name in _SHOWN},
                "other": counts["active"] - counts["tcp"] - counts["udp"] - counts["icmp"],
                "opened_total": counts["opened_total"],
                "opened_per_s": round(self._rates.rate("opened"), 1),
            },
            "adopted": {
                "sessions": counts["adopted"],
                **{f"{kind}s": self._adopted.get(kind, 0) for kind in ("call", "sa", "exchange")},
                "dropped": self._dropped,
            },
            "gateways": gateway.application_gateways.counters(),
            "verdicts": gateway.forwarder.verdicts(),
            "offload": self._offload.describe(gateway.forwarder) if self._offload else None,
            "drops": self._describe_drops(),
            "notes": self._describe_notes(),
            "confirm": self._confirmation.describe(now_ns()),
            "port_mapping": self._leases.describe(now_ns()),
            "ip_rules": gateway.host.unfollowed(),
            "untranslated": gateway.untranslated.describe(),
            "fallbacks": self.fallbacks.in_force(),
            "observed": observed(gateway),
        }

    def sessions(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the sessions that match `host`, `protocol` and `state`, at most `limit` of them, and how many do.

        With `masqueraded`, as the kernels of 1999 listed them, sessions of the host's own programs are left out. With
        `tunnels` calls, SAs and ISAKMP exchanges follow.
        """
        wanted = read_parameters("sessions", params, _Wanted)
        table, vpn = self._gateway.table, self._gateway.vpn
        limit = wanted.limit or 1000
        now = now_ns()
        total, found = 0, []
        for rows in listing.copies(table, self._gateway.forwarder):
            chosen = listing.select(rows, wanted.host, wanted.protocol, wanted.state)
            if wanted.masqueraded:
                chosen = listing.masqueraded(chosen)
            total += len(chosen)
            found += [listing.describe(row, table, now) for row in chosen[: limit - len(found)]]
        if wanted.tunnels and vpn is not None:
            tunnels = list(vpn_sessions.sessions(vpn, now))
            total += len(tunnels)
            found += tunnels[: limit - len(found)]
        return {"total": total, "sessions": found}

    def _counters(self) -> dict[str, int]:
        gateway = self._gateway
        counters = {f"drop.{name}": count for name, count in gateway.forwarder.drops().items()}
        counters["opened"] = gateway.table.counts()["opened_total"]
        for number in gateway.links.links:
            for name, count in gateway.forwarder.traffic(number).items():
                counters[f"{number}.{name}"] = count
        for link in gateway.links.attached.values():
            link.count_drops()
        return counters

    def _with_traffic(self, number: int, ring_drops: int, **link: Any) -> dict[str, Any]:
        traffic = self._gateway.forwarder.traffic(number)
        rates = {name: self._rates.rate(f"{number}.{name}") for name in traffic}
        return {
            **link,
            **traffic,
            "ring_drops": ring_drops,
            "rx_pps": round(rates["rx_packets"], 1),
            "tx_pps": round(rates["tx_packets"], 1),
            "rx_bps": round(rates["rx_bytes"] * 8, 1),
            "tx_bps": round(rates["tx_bytes"] * 8, 1),
        }

    def _describe_notes(self) -> list[dict[str, Any]]:
        counts = self._gateway.forwarder.notes()
        return [
            {"note": name, "count": count, "sentence": NOTE_SENTENCES[name]} for name, count in counts.items() if count
        ]

    def _describe_drops(self) -> list[dict[str, Any]]:
        counts = self._gateway.forwarder.drops()
        return [
            {
                "reason": name,
                "packets": counts[name],
                "per_s": round(self._rates.rate(f"drop.{name}"), 1),
                "sentence": sentence,
            }
            for name, sentence in DROP_REASONS
            if name in counts
        ]
