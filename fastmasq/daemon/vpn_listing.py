"""What `fastmasq vpn` shows: calls, SAs and who negotiates or waits, each with what is missing if something is.

Control method, with parameters and result (addresses as text, ids as numbers, seconds):

    vpn {"host": "10.0.0.2"}                   optional; only what this inside or remote host takes part in
     -> {"pptp": true, "ipsec": true, "connections": [...], "calls": [...], "exchanges": [...], "sas": [...],
         "natt": [...], "natt_total": 0, "waiting": [...]}

What is missing is said by the rules of the HOWTO's sections 5.2 and 5.3 (H-63 to H-73).
"""

from __future__ import annotations

import functools
import ipaddress
from typing import Any

from fastmasq.config.schema import Vpn as VpnSettings
from fastmasq.daemon import natt
from fastmasq.daemon.tunnel_rows import TunnelRows
from fastmasq.daemon.vpn_health import Health, Trackers
from fastmasq.errors import ConfigurationError
from fastmasq.path.forwarder import Forwarder
from fastmasq.table.masq import MasqTable
from fastmasq.trackers.vpn.calls import Call
from fastmasq.trackers.vpn.connection import Connection
from fastmasq.trackers.vpn.events import dotted
from fastmasq.trackers.vpn.evidence import Association
from fastmasq.trackers.vpn.findings import PATIENCE_S, Finding, of_association, of_call, of_connection, shown
from fastmasq.trackers.vpn.isakmp import Exchange
from fastmasq.units import NS_PER_SECOND


class Listing:
    """Describes the VPNs of one gateway; times in nanoseconds."""

    def __init__(
        self,
        settings: VpnSettings,
        trackers: Trackers,
        health: Health,
        rows: TunnelRows,
        table: MasqTable,
        forwarder: Forwarder,
    ) -> None:
        self._settings = settings
        self._connections, self._calls, self._ipsec = trackers
        self._health, self._rows, self._table, self._forwarder = health, rows, table, forwarder

    def describe(self, now: int, params: dict[str, Any]) -> dict[str, Any]:
        """Return everything, see above. Raises ConfigurationError."""
        host = _host(params.get("host"))
        moved = natt.sessions(self._table, self._forwarder)
        exchanges = self._health.exchanges(now, PATIENCE_S, functools.cache(lambda: natt.by_ends(moved)))
        concerned = moved if host is None else natt.of_host(moved, host)
        controls = self._calls.controls
        return {
            "pptp": self._settings.pptp,
            "ipsec": self._settings.ipsec,
            "connections": [
                self._connection(one, now)
                for one in self._connections.values()
                if one.number in controls and _concerns(controls[one.number], host)
            ],
            "calls": [self._call(call, now) for call in self._calls.calls.values() if _concerns(call, host)],
            "exchanges": [_exchange(row, finding, now) for row, finding in exchanges if _concerns(row, host)],
            "sas": [self._association(row, now) for row in self._ipsec.esp.rows.values() if _concerns(row, host)],
            "natt": [natt.describe(row, self._table, now) for row in concerned[: natt.SHOWN]],
            "natt_total": len(concerned),
            "waiting": [
                self._waiting(inside, remote, spi, since, now)
                for (inside, remote, spi), (since, _) in sorted(self._ipsec.esp.waiting.items())
                if host in (None, inside, remote)
            ],
        }

    def _connection(self, connection: Connection, now: int) -> dict[str, Any]:
        control = self._calls.controls[connection.number]
        return {
            **_ends(control),
            "state": connection.state or "new",
            "age_s": _seconds(now - connection.since),
            "calls": len(control.calls),
            "missing": shown(of_connection(connection, control.made, now), now),
        }

    def _call(self, call: Call, now: int) -> dict[str, Any]:
        packets_out, packets_in = self._rows.packets(("gre", call.number))
        return {
            **_ends(call),
            "state": call.state,
            "call_id": call.local_id,
            "external_call_id": call.external_id,
            "remote_call_id": call.remote_id,
            "age_s": _seconds(now - call.since),
            **_lights(packets_out, packets_in, call.seen_out, call.seen_in, now),
            "missing": shown(of_call(call), now),
        }

    def _association(self, row: Association, now: int) -> dict[str, Any]:
        packets_out, packets_in = self._rows.packets(("esp", row.number))
        return {
            **_ends(row),
            "state": row.state,
            "outbound_spi": row.ospi or None,
            "inbound_spi": row.ispi or None,
            "blocks_others": row.blocking,
            "preloaded": row.preloaded,
            "age_s": _seconds(now - row.since),
            **_lights(packets_out, packets_in, row.last_out, row.last_in, now),
            "missing": shown(of_association(row), now),
        }

    def _waiting(self, inside: int, remote: int, spi: int, since: int, now: int) -> dict[str, Any]:
        rows = self._ipsec.esp.rows.values()
        waited_for = next((row.inside for row in rows if row.remote == remote and row.state == "outstanding"), None)
        return {
            "inside": dotted(inside),
            "remote": dotted(remote),
            "outbound_spi": spi,
            "waits_for": None if waited_for is None else dotted(waited_for),
            "for_s": _seconds(now - since),
        }


def _host(text: object) -> int | None:
    if text is None:
        return None
    try:
        return int(ipaddress.IPv4Address(str(text)))
    except ValueError:
        raise ConfigurationError(f"host: {text!r} is not an IPv4 address") from None


def _concerns(row: Any, host: int | None) -> bool:
    return host in (None, row.inside, row.remote)


def _exchange(row: Exchange, finding: Finding | None, now: int) -> dict[str, Any]:
    return {
        **_ends(row),
        "state": "asked" if row.outstanding else "answered",
        "initiator": row.initiator.hex(),
        "responder": row.responder.hex(),
        "idle_s": _seconds(now - row.last),
        "missing": shown(finding, now),
    }


def _ends(row: Any) -> dict[str, str]:
    return {"inside": dotted(row.inside), "external": dotted(row.masq), "remote": dotted(row.remote)}


def _lights(packets_out: int, packets_in: int, last_out: int, last_in: int, now: int) -> dict[str, Any]:
    return {
        "packets_out": packets_out,
        "packets_in": packets_in,
        "out_s": _seconds(now - last_out) if last_out else None,
        "in_s": _seconds(now - last_in) if last_in else None,
    }


def _seconds(nanoseconds: int) -> float:
    return round(max(0, nanoseconds) / NS_PER_SECOND, 1)
