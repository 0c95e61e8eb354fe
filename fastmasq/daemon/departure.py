"""What becomes of tunnels and sessions of an external address that is no longer the one (P-28, E-10, C-60 to C-62)."""

from __future__ import annotations

import logging
from ipaddress import IPv4Address

from fastmasq.daemon import listing
from fastmasq.daemon.host import Host
from fastmasq.daemon.vpn import Vpn
from fastmasq.path.forwarder import Forwarder
from fastmasq.table.masq import MasqTable

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
