"""Sessions for people: rows of the table filtered by host, protocol and state, and spelled out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastmasq.errors import ConfigurationError
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rows import LOCAL
from fastmasq.table.keys import ends_of, protocol_of, side_of
from fastmasq.table.masq import TICK_NS, MasqTable
from fastmasq.table.rows import CLASS_NONE, OUTBOUND, STATES
from fastmasq.wire.numbers import CLASSES, ESP, GRE

CHUNK = 4096  # rows copied while the path stands still
_STATE_NAMES = sorted(set(STATES[1:]))


def copies(table: MasqTable, forwarder: Forwarder) -> Iterator[np.ndarray]:
    """Yield copies of all rows of the table, CHUNK of them at a time, between which the path goes on."""
    for first in range(0, max(1, table.fresh), CHUNK):
        with forwarder.locked():
            rows = table.sessions[first : first + CHUNK].copy()
            carried = table.carried_rows["packets"][first : first + CHUNK].astype("u4")
        if len(carried):
            rows["flow"]["packets"] += carried
        yield rows


def select(rows: np.ndarray, host: str | None, protocol: str | None, state: str | None) -> np.ndarray:
    """Return the open sessions among `rows` that match. Raises ConfigurationError for a filter that cannot match.

    host is an inside, external or remote address; protocol one of CLASSES; state one of STATES.
    """
    chosen = rows["state"] != 0
    if protocol is not None:
        if protocol not in CLASSES:
            raise ConfigurationError(f"{protocol!r} is not a protocol; there are: {', '.join(CLASSES)}")
        chosen &= rows["port_class"] == CLASSES.index(protocol)
    if state is not None:
        numbers = [number for number, name in enumerate(STATES) if name == state and number]
        if not numbers:
            raise ConfigurationError(f"{state!r} is not a state; there are: {', '.join(_STATE_NAMES)}")
        chosen &= np.isin(rows["state"], numbers)
    if host is not None:
        try:
            address = int(ipaddress.IPv4Address(host))
        except ValueError:
            raise ConfigurationError(f"{host!r} is not an IPv4 address") from None
        out = rows["flow"][:, OUTBOUND]
        ends = ends_of(out)
        chosen &= (ends.saddr == address) | (ends.daddr == address) | (out["saddr"] == address)
    return rows[chosen]


def masqueraded(rows: np.ndarray) -> np.ndarray:
    """Return the sessions that are not of programs of this host."""
    return rows[side_of(rows["flow"][:, OUTBOUND]) != LOCAL]


def describe(row: np.void, table: MasqTable, now_ns: int) -> dict[str, Any]:
    """Return one session as `fastmasq sessions` shows it."""
    out, back = row["flow"]
    protocol = _protocol_name(row)
    has_ports = protocol in ("tcp", "udp")
    has_ids = row["port_class"] != CLASS_NONE
    ends = ends_of(out)
    expires_ns = int(row["expires"]) * TICK_NS - now_ns
    return {
        "protocol": protocol,
        "state": STATES[row["state"]],
        "inside": _endpoint(ends.saddr, ends.sid if has_ids else None),
        "external": _endpoint(int(out["saddr"]), int(out["sid"]) if has_ids else None),
        "remote": _endpoint(ends.daddr, ends.did if has_ports else None),
        "expires_s": round(max(0, expires_ns) / 1e9, 1),
        "idle_s": round(max(0, table.timeout_ns(int(row["state"])) - expires_ns) / 1e9, 1),
        "packets_out": int(out["packets"]),
        "packets_in": int(back["packets"]),
    }


def _protocol_name(row: np.void) -> str:
    """Return tcp, udp or icmp; of a protocol without ports its usual name, or its number."""
    if row["port_class"] != CLASS_NONE:
        return CLASSES[row["port_class"]]
    number = protocol_of(row["flow"][OUTBOUND])
    return {GRE: "gre", ESP: "esp"}.get(number, str(number))


def _endpoint(address: int, port: int | None) -> str:
    text = str(ipaddress.IPv4Address(address))
    return text if port is None else f"{text}:{port}"
