"""What `fastmasq vpn` shows: calls, SAs and who negotiates or waits, each with what is missing if something is.

Control method, with parameters and result (addresses as text, ids as numbers, seconds):

    vpn {"host": "10.0.0.2"}                   optional; only what this inside or remote host takes part in
     -> {"pptp": true, "ipsec": true, "connections": [...], "calls": [...], "exchanges": [...], "sas": [...],
         "natt": [...], "natt_total": 0, "waiting": [...]}

What is missing is said by the rules of the HOWTO's sections 5.2 and 5.3 (H-63 to H-73).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from fastmasq.daemon import natt
from fastmasq.errors import ConfigurationError
from fastmasq.units import NS_PER_SECOND
from fastmasq.vpn.calls import Call
from fastmasq.vpn.evidence import Association
from fastmasq.vpn.isakmp import Exchange

if TYPE_CHECKING:
    from fastmasq.daemon.vpn import Connection, Vpn

PATIENCE_S = 10  # before something is called missing
_GRE_FILTERED = "no GRE either way: a router or firewall between the two ends drops protocol 47"
_GRE_OUT_ONLY = "GRE goes out and none comes in: the server, or a router on the way, drops protocol 47"
_GRE_IN_ONLY = "GRE comes in and none goes out: look at the inside host and its firewall"
_ESP_OUT_ONLY = "ESP goes out and none comes in: the server, or a router on the way, drops protocol 50"
_ESP_IN_ONLY = "ESP comes in and none goes out: look at the inside host and its firewall"
_ISAKMP_ONLY = "ISAKMP and no ESP: the ends do not agree, or the inside host's ESP is dropped before it gets here"


def describe(vpn: Vpn, now: int, params: dict[str, Any]) -> dict[str, Any]:
    """Return everything, see above. Raises ConfigurationError."""
    host = _host(params.get("host"))
    moved = natt.sessions(vpn.table, vpn.forwarder)
    lacks = natt.by_ends(moved)
    concerned = moved if host is None else natt.of_host(moved, host)
    waiting = [
        _waiting(vpn, inside, remote, spi, since, now)
        for (inside, remote, spi), (since, _) in sorted(vpn.ipsec.esp.waiting.items())
        if host in (None, inside, remote)
    ]
    return {
        "pptp": vpn.settings.pptp,
        "ipsec": vpn.settings.ipsec,
        "connections": [
            _connection(vpn, one, now)
            for one in vpn.connections.values()
            if one.number in vpn.calls.controls and _concerns(vpn.calls.controls[one.number], host)
        ],
        "calls": [_call(vpn, call, now) for call in vpn.calls.calls.values() if _concerns(call, host)],
        "exchanges": [
            _exchange(vpn, row, lacks, now) for row in vpn.ipsec.exchanges.exchanges.values() if _concerns(row, host)
        ],
        "sas": [_association(vpn, row, now) for row in vpn.ipsec.esp.rows.values() if _concerns(row, host)],
        "natt": [natt.describe(row, vpn.table, now) for row in concerned[: natt.SHOWN]],
        "natt_total": len(concerned),
        "waiting": waiting,
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


def _connection(vpn: Vpn, connection: Connection, now: int) -> dict[str, Any]:
    control = vpn.calls.controls[connection.number]
    missing = ""
    if connection.follower.lost:
        missing = "the stream could not be followed: its Call IDs are not translated"
    elif not control.calls and now - connection.since > PATIENCE_S * NS_PER_SECOND:
        missing = (
            "a control connection and no call: the server does not answer, or has refused; see `fastmasq test pptp`"
        )
    return {
        **_ends(control),
        "state": connection.state or "new",
        "age_s": _seconds(now - connection.since),
        "calls": len(control.calls),
        "missing": missing,
    }


def _call(vpn: Vpn, call: Call, now: int) -> dict[str, Any]:
    packets_out, packets_in = vpn.rows.packets(("gre", call.number))
    return {
        **_ends(call),
        "state": call.state,
        "call_id": call.local_id,
        "external_call_id": call.external_id,
        "remote_call_id": call.remote_id,
        "age_s": _seconds(now - call.since),
        **_lights(packets_out, packets_in, call.seen_out, call.seen_in, now),
        "missing": _missing_of_call(call, now),
    }


def _missing_of_call(call: Call, now: int) -> str:
    if call.state == "closing" or now - call.since < PATIENCE_S * NS_PER_SECOND:
        return ""
    if call.state == "asked":
        return "the call was asked for and not answered: look at the server"
    return _one_way(call.seen_out, call.seen_in, _GRE_FILTERED, _GRE_OUT_ONLY, _GRE_IN_ONLY)


def _one_way(seen_out: int, seen_in: int, neither: str, out_only: str, in_only: str) -> str:
    """Return what is missing, by the times packets were seen last each way, 0 for never."""
    if not seen_out and not seen_in:
        return neither
    if seen_out and not seen_in:
        return out_only
    if seen_in and not seen_out:
        return in_only
    return ""


def _exchange(vpn: Vpn, row: Exchange, natt_lacks: dict[tuple[int, int], str], now: int) -> dict[str, Any]:
    missing = ""
    idle = now - row.last
    if row.outstanding and row.asked is not None and now - row.asked > PATIENCE_S * NS_PER_SECOND:
        missing = "ISAKMP is not answered: the server is not there, or something drops UDP port 500"
    elif not row.outstanding and idle > PATIENCE_S * NS_PER_SECOND and not _has_esp(vpn, row):
        missing = natt_lacks.get((row.inside, row.remote), _ISAKMP_ONLY)
    return {
        **_ends(row),
        "state": "asked" if row.outstanding else "answered",
        "initiator": row.initiator.hex(),
        "responder": row.responder.hex(),
        "idle_s": _seconds(idle),
        "missing": missing,
    }


def _has_esp(vpn: Vpn, row: Exchange) -> bool:
    return bool(vpn.ipsec.esp.rows_with(row.inside, row.remote))


def _association(vpn: Vpn, row: Association, now: int) -> dict[str, Any]:
    packets_out, packets_in = vpn.rows.packets(("esp", row.number))
    missing = ""
    if row.state == "squelched":
        missing = "the start was not answered and lost its turn"
    elif now - row.since > PATIENCE_S * NS_PER_SECOND:
        missing = _one_way(row.last_out, row.last_in, "", _ESP_OUT_ONLY, _ESP_IN_ONLY)
    return {
        **_ends(row),
        "state": row.state,
        "outbound_spi": row.ospi or None,
        "inbound_spi": row.ispi or None,
        "blocks_others": row.blocking,
        "preloaded": row.preloaded,
        "age_s": _seconds(now - row.since),
        **_lights(packets_out, packets_in, row.last_out, row.last_in, now),
        "missing": missing,
    }


def _waiting(vpn: Vpn, inside: int, remote: int, spi: int, since: int, now: int) -> dict[str, Any]:
    rows = vpn.ipsec.esp.rows.values()
    waited_for = next((row.inside for row in rows if row.remote == remote and row.state == "outstanding"), None)
    return {
        "inside": _address(inside),
        "remote": _address(remote),
        "outbound_spi": spi,
        "waits_for": None if waited_for is None else _address(waited_for),
        "for_s": _seconds(now - since),
    }


def _ends(row: Any) -> dict[str, str]:
    return {"inside": _address(row.inside), "external": _address(row.masq), "remote": _address(row.remote)}


def _lights(packets_out: int, packets_in: int, last_out: int, last_in: int, now: int) -> dict[str, Any]:
    return {
        "packets_out": packets_out,
        "packets_in": packets_in,
        "out_s": _seconds(now - last_out) if last_out else None,
        "in_s": _seconds(now - last_in) if last_in else None,
    }


def _address(number: int) -> str:
    return str(ipaddress.IPv4Address(number))


def _seconds(nanoseconds: int) -> float:
    return round(max(0, nanoseconds) / NS_PER_SECOND, 1)
