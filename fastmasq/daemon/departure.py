"""What becomes of tunnels and sessions whose external address or port is ours no more (P-28, E-10, C-60 to C-62)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from ipaddress import IPv4Address

import numpy as np

from fastmasq.daemon import listing
from fastmasq.daemon.host import Host
from fastmasq.daemon.vpn import Vpn
from fastmasq.path.forwarder import Forwarder
from fastmasq.policy.forwards import Endpoint
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import OUTBOUND
from fastmasq.wire.numbers import CLASS_TCP

log = logging.getLogger("fastmasq.engine")

ENABLED, VERBOSE, RESET = 1, 2, 4  # bits of dynaddr


def leave(
    table: MasqTable, forwarder: Forwarder, vpn: Vpn | None, host: Host, dynaddr: int, old: int, new: int
) -> None:
    """Have tunnels move to the new address, and close sessions of the old one, as `[masquerade] dynaddr` wants it."""
    if vpn is not None and dynaddr & (ENABLED | VERBOSE):
        vpn.move(old, new)
    if not dynaddr:
        return
    only_without_reply = not dynaddr & RESET
    row, closed_total, reset_total = 0, 0, 0
    while row < table.fresh:
        with forwarder.locked():
            rows = table.sessions[row : row + listing.CHUNK].copy()
            closed, row = table.close_external(old, row, listing.CHUNK, only_without_reply)
        closed_total += closed
        if closed and not only_without_reply:
            rows = listing.select(rows, str(IPv4Address(old)), "tcp", None)
            reset_total += host.reset(rows[rows["flow"][:, 0]["saddr"] == old])
    if closed_total and dynaddr & VERBOSE:
        log.warning("%d sessions of %s closed, %d inside ends reset", closed_total, IPv4Address(old), reset_total)


def end(table: MasqTable, forwarder: Forwarder, host: Host, endpoints: Iterable[Endpoint]) -> int:
    """Close the sessions that inside hosts have by these external endpoints, and reset them; return how many."""
    gone = {address << 32 | port_class << 16 | port for address, port_class, port in endpoints}
    closed = 0
    for first in range(0, table.fresh, listing.CHUNK):
        with forwarder.locked():
            rows = table.sessions[first : first + listing.CHUNK]
            flows = rows["flow"][:, OUTBOUND]
            names = flows["saddr"].astype("u8") << 32 | rows["port_class"].astype("u8") << 16 | flows["sid"]
            doomed = np.flatnonzero(np.isin(names, list(gone)) & (rows["state"] != 0))
            copies = rows[doomed].copy()
            for number in doomed:
                table.close(first + int(number))
        closed += len(doomed)
        host.reset(copies[copies["port_class"] == CLASS_TCP])
    return closed
