"""NAT traversal as the session table shows it: UDP sessions with port 4500 at either end (RFC 3947, RFC 3948).

What is in them, IKE or ESP, the table does not know; `fastmasq sniff` reads it from the packets.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmasq.daemon import listing
from fastmasq.path.forwarder import Forwarder
from fastmasq.table.keys import ends_of
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import OUTBOUND
from fastmasq.trackers.vpn.findings import of_natt
from fastmasq.wire.numbers import CLASS_UDP, NATT_PORT

SHOWN = 1000  # sessions in an answer


def sessions(table: MasqTable, forwarder: Forwarder) -> np.ndarray:
    """Return copies of the sessions that have port 4500 inside or at the remote."""
    found = []
    for rows in listing.copies(table, forwarder):
        ends = ends_of(rows["flow"][:, OUTBOUND])
        has_port = (ends.sid == NATT_PORT) | (ends.did == NATT_PORT)
        found.append(rows[has_port & (rows["port_class"] == CLASS_UDP) & (rows["state"] != 0)])
    return np.concatenate(found)


def of_host(rows: np.ndarray, host: int) -> np.ndarray:
    """Return those that an inside or remote host takes part in."""
    ends = ends_of(rows["flow"][:, OUTBOUND])
    return rows[(ends.saddr == host) | (ends.daddr == host)]


def describe(row: np.void, table: MasqTable, now: int) -> dict[str, Any]:
    """Return one of them as `fastmasq vpn` shows it."""
    shown = listing.describe(row, table, now)
    names = ("state", "inside", "external", "remote", "packets_out", "packets_in", "idle_s")
    return {**{name: shown[name] for name in names}, "missing": missing(row)}


def missing(row: np.void) -> str:
    """Return what a session lacks, or an empty text."""
    return of_natt(*(int(flow["packets"]) for flow in row["flow"]))


def by_ends(rows: np.ndarray) -> dict[tuple[int, int], str]:
    """Return, for each inside host and remote that have such sessions, what they lack: the least of it."""
    found: dict[tuple[int, int], str] = {}
    for row in rows:
        flow = ends_of(row["flow"][OUTBOUND])
        ends = (flow.saddr, flow.daddr)
        found[ends] = missing(row) if ends not in found else found[ends] and missing(row)
    return found
