"""Preloading of SAs in the running forwarder: for root on the control socket, for inside hosts on `control/inside.py`.

Control methods, with parameters and result (addresses as text, SPIs as numbers, seconds):

    esp {"inside": "10.0.0.2"}                            optional; only those of this host
     -> [{"inside": "10.0.0.2", "remote": "199.0.0.1", "masq": "200.200.200.200", "inbound_spi": 20480,
          "outbound_spi": 4096, "lifetime_s": 3600, "age_s": 12.5, "left_s": 3587.5}]
        outbound_spi is null while unknown, lifetime_s null for the usual one and "until-deleted" for ever
    esp.change {"do": "add", "inside": ..., "remote": ..., "inbound_spi": ..., "outbound_spi": ..., "masq": ...,
                "lifetime_s": ...}                        the last three are optional, and as in the result
     -> {"changed": 1}
    esp.change {"do": "replace", ...}                     the same, and root may take the inbound SPI from another host
    esp.change {"do": "delete", "remote": ..., "inbound_spi": ..., "masq": ...}
    esp.change {"do": "flush", "inside": ...}             inside is optional

An inside host has the same methods for itself: `inside` is its own address, which it may leave out, and `masq` is the
present external one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from fastmasq.clock import now_ns
from fastmasq.daemon.vpn import Vpn
from fastmasq.errors import FastmasqError
from fastmasq.trackers.vpn import preload
from fastmasq.trackers.vpn.events import dotted
from fastmasq.trackers.vpn.evidence import Association
from fastmasq.trackers.vpn.preload import UNTIL_DELETED, Announcement, PreloadError
from fastmasq.units import NS_PER_SECOND

LONGEST_S = 366 * 86_400
_NOT_FOLLOWED = (
    "IPsec is not followed, so there is nothing to preload: [vpn] ipsec is off, or the host has UDP port 500"
)


class Selection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of `esp`."""

    inside: str | None = None


class Change(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of `esp.change`."""

    do: Literal["add", "replace", "delete", "flush"]
    inside: str | None = None
    remote: str | None = None
    inbound_spi: int = 0
    outbound_spi: int | None = None
    masq: str | None = None
    lifetime_s: int | str | None = None


class Preload:
    """What root and inside hosts may ask of the trackers; without `vpn` everything is refused.

    `why_not_inside` returns why an address is no inside host's, None if it is.
    """

    def __init__(self, vpn: Vpn | None, why_not_inside: Callable[[int], str | None]) -> None:
        self.vpn = vpn
        self._why_not_inside = why_not_inside

    def handlers(self) -> dict[str, Callable[[dict], object]]:
        """Return the control methods, for root."""
        return {
            "esp": lambda params: self.listed(None, params),
            "esp.change": lambda params: self.change(None, params),
        }

    def inside_handlers(self) -> dict[str, Callable[[int, dict], object]]:
        """Return the same for inside hosts."""
        return {"esp": self.listed, "esp.change": self.change}

    def listed(self, caller: int | None, params: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what is preloaded, see above; `caller` is an inside host, or None for root. Raises PreloadError."""
        table = self._followed().ipsec.esp
        inside = _read(params, Selection).inside
        host = None if inside is None else _address("inside", inside)
        now = now_ns()
        return [
            _describe(row, table.ends(row), now) for row in preload.listed(table, caller) if host in (None, row.inside)
        ]

    def change(self, caller: int | None, params: dict[str, Any]) -> dict[str, int]:
        """Make a change whole, or raise PreloadError."""
        vpn = self._followed()
        change = _read(params, Change)
        try:
            return {"changed": self._make(vpn, change, caller)}
        finally:
            vpn.follow_rows()

    def _make(self, vpn: Vpn, change: Change, caller: int | None) -> int:
        table = vpn.ipsec.esp
        own = None if caller is None else dotted(caller)
        if change.do == "flush":
            inside = change.inside or own
            host = None if inside is None else _address("inside", inside)
            if caller not in (None, host):
                raise PreloadError("EPERM", f"{own} may not speak for {inside}; only the host itself, or root")
            return preload.flush(table, host)
        remote, masq = _address("remote", change.remote), _masq(vpn, change.masq, caller)
        if change.do == "delete":
            preload.delete(table, remote, masq, change.inbound_spi, caller)
            return 1
        inside = _address("inside", change.inside or own)
        if caller is None and (reason := self._why_not_inside(inside)):
            raise PreloadError("EINVAL", f"inside: {dotted(inside)} is no inside host: {reason}")
        announcement = Announcement(
            inside=inside,
            remote=remote,
            masq=masq,
            inbound_spi=change.inbound_spi,
            outbound_spi=change.outbound_spi or 0,
            lifetime=_lifetime(change.lifetime_s),
        )
        preload.add(table, announcement, now_ns(), caller, replace=change.do == "replace")
        return 1

    def _followed(self) -> Vpn:
        if self.vpn is None or not self.vpn.settings.ipsec:
            raise FastmasqError(_NOT_FOLLOWED)
        return self.vpn


def _read(params: dict[str, Any], kind: type) -> Any:
    try:
        return msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise PreloadError("EINVAL", str(error)) from None


def _address(name: str, text: str | None) -> int:
    """Return the address of one host."""
    if text is None:
        raise PreloadError("EINVAL", f"{name}: missing; name an address")
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        raise PreloadError("EINVAL", f"{name}: {text!r} is not an IPv4 address") from None
    if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_reserved:
        raise PreloadError("EINVAL", f"{name}: {text} is not the address of a host")
    return int(address)


def _masq(vpn: Vpn, text: str | None, caller: int | None) -> int:
    """Return the external address: the one that the route has now, or one of ours that root has named."""
    present = vpn.address(caller)
    if text is None:
        if present is None:
            raise PreloadError("ENOENT", "the outside link has no address now; try again when it has one")
        return present
    named = _address("masq", text)
    allowed = {present} if caller is not None else {present, *vpn.forwards.listening()}
    if named not in allowed:
        listed = ", ".join(dotted(address) for address in sorted(allowed - {None})) or "none now"
        raise PreloadError("EINVAL", f"masq: {text} is no external address of this gateway; there is {listed}")
    return named


def _lifetime(seconds: int | str | None) -> int | None:
    """Return nanoseconds as an Announcement has them."""
    if seconds is None:
        return None
    if seconds == UNTIL_DELETED:
        return -1
    if isinstance(seconds, str) or not 1 <= seconds <= LONGEST_S:
        raise PreloadError(
            "EINVAL", f"lifetime_s: {seconds!r} is not a number from 1 to {LONGEST_S}, or {UNTIL_DELETED!r}"
        )
    return seconds * NS_PER_SECOND


def _describe(row: Association, ends: int | None, now: int) -> dict[str, Any]:
    lifetime: int | str | None = row.lifetime // NS_PER_SECOND or None
    return {
        "inside": dotted(row.inside),
        "remote": dotted(row.remote),
        "masq": dotted(row.masq),
        "inbound_spi": row.ispi,
        "outbound_spi": row.ospi or None,
        "lifetime_s": UNTIL_DELETED if row.lifetime < 0 else lifetime,
        "age_s": round((now - row.since) / NS_PER_SECOND, 1),
        "left_s": None if ends is None else round(max(0, ends - now) / NS_PER_SECOND, 1),
    }
