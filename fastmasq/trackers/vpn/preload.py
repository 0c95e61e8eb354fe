"""Preloading SAs (section 4.8): an inside host's IKE daemon tells its SPIs, so that nothing has to be guessed.

Only root on the gateway and the inside host itself may speak for a host; otherwise one host could take another's
packets. A preloaded row never blocks anybody. Either a change happens whole, or PreloadError says why not.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from fastmasq.errors import FastmasqError
from fastmasq.trackers.vpn.esp import EspTable
from fastmasq.trackers.vpn.events import dotted
from fastmasq.trackers.vpn.evidence import Association

SPIS = range(256, 1 << 32)  # lower ones are reserved (RFC 4303 section 2.1)
UNTIL_DELETED = "until-deleted"  # how people and programs write a lifetime of -1

Reason = Literal["EEXIST", "ENOENT", "EPERM", "EINVAL", "ENOSPC"]


class PreloadError(FastmasqError):
    """A change that was refused; `reason` is for programs."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.exit_status = 2 if reason == "EINVAL" else 1


class Announcement(Struct, frozen=True, kw_only=True):
    """An SA pair as its inside host knows it. outbound_spi: 0 if unknown. lifetime: ns, None is the usual IPsec
    lifetime after the last packet, -1 until it is deleted."""

    inside: int
    remote: int
    masq: int
    inbound_spi: int
    outbound_spi: int = 0
    lifetime: int | None = None


def add(table: EspTable, sa: Announcement, now: int, caller: int | None, *, replace: bool = False) -> Association:
    """Put an SA into the table; `caller` is the inside host that asks, None is root. Raises PreloadError.

    An inbound SPI of another host is refused (EEXIST) unless `replace`; the own one is renewed. A pending start of the
    host with this outbound SPI is completed.
    """
    _check(sa, caller)
    holder = table.by_inbound(sa.remote, sa.masq, sa.inbound_spi)
    if holder is not None and holder.inside != sa.inside and (not replace or caller is not None):
        raise PreloadError(
            "EEXIST", f"SPI {sa.inbound_spi:X} from {dotted(sa.remote)} belongs to {dotted(holder.inside)} already"
        )
    started = table.by_outbound(sa.inside, sa.remote, sa.outbound_spi) if sa.outbound_spi else None
    row = _row_for(sa, started, holder)
    leaving = {one.number: one for one in (started, holder) if one is not None and one is not row}.values()
    refusal = table.refusal(sa.inside, leaving) if row is None else ""
    if refusal:
        raise PreloadError("ENOSPC", f"no row for another SA of {dotted(sa.inside)}: {refusal}")
    for one in leaving:
        table.remove(one)
    row = row or table.add(sa.inside, sa.masq, sa.remote, now)
    if sa.outbound_spi and not row.ospi:
        table.name_outbound(row, sa.outbound_spi)
    if row.ispi != sa.inbound_spi:
        table.complete(row, sa.inbound_spi)
    row.preloaded = True
    row.lifetime = 0 if sa.lifetime is None else sa.lifetime
    table.keep(row, now)
    table.claim(row, now)
    return row


def delete(table: EspTable, remote: int, masq: int, inbound_spi: int, caller: int | None) -> None:
    """Remove the SA with this inbound SPI. Raises PreloadError."""
    row = table.by_inbound(remote, masq, inbound_spi)
    if row is None or (caller is not None and row.inside != caller):
        raise PreloadError("ENOENT", f"no SA with SPI {inbound_spi:X} from {dotted(remote)}")
    table.remove(row)


def listed(table: EspTable, caller: int | None) -> list[Association]:
    """Return the preloaded rows that the caller may see, oldest first."""
    return [row for row in table.rows.values() if row.preloaded and caller in (None, row.inside)]


def flush(table: EspTable, caller: int | None) -> int:
    """Remove the preloaded rows that the caller may see; return how many."""
    rows = listed(table, caller)
    for row in rows:
        table.remove(row)
    return len(rows)


def _check(sa: Announcement, caller: int | None) -> None:
    if caller is not None and caller != sa.inside:
        raise PreloadError(
            "EPERM", f"{dotted(caller)} may not speak for {dotted(sa.inside)}; only the host itself, or root"
        )
    if sa.inbound_spi not in SPIS or (sa.outbound_spi and sa.outbound_spi not in SPIS):
        raise PreloadError("EINVAL", f"SPIs are {SPIS[0]} to {SPIS[-1]}")
    if sa.lifetime is not None and sa.lifetime < -1:
        raise PreloadError("EINVAL", "a lifetime cannot be negative")


def _row_for(sa: Announcement, started: Association | None, holder: Association | None) -> Association | None:
    """Return the row to fill in: the one with the outbound SPI, else the one with the inbound SPI; None for a new one.

    A row with another pair than the host now says is not filled in; it is to go.
    """
    if started is not None and started.ispi in (0, sa.inbound_spi) and started.masq == sa.masq:
        return started
    if (
        holder is not None
        and holder.inside == sa.inside
        and (not sa.outbound_spi or holder.ospi in (0, sa.outbound_spi))
    ):
        return holder
    return None
