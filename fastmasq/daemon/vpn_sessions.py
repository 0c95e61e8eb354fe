"""Calls, SAs and ISAKMP exchanges as lines of the masquerade table, as the kernels of 1999 listed them (C-80, P-48)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastmasq.daemon.vpn import Vpn
from fastmasq.trackers.vpn.events import dotted
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire.numbers import ISAKMP_PORT

_SHOWN_STATES = {"outstanding": 0, "squelched": 1}  # what stands for the inbound SPI of an SA that has none


def sessions(vpn: Vpn, now: int) -> Iterator[dict[str, Any]]:
    """Yield them in the form of the control method `sessions`.

    In place of ports GRE has Call IDs: the host's own, the external one, the remote's; 0 where none is known. ESP has
    the lower 16 bits of its outbound and inbound SPI, the latter 0 while outstanding, 1 when squelched, and 0 between.
    """
    for call in vpn.calls.calls.values():
        ids = (call.local_id or 0, call.external_id or 0, call.remote_id or 0)
        yield {
            **_line("gre", call, ids, vpn.calls.expires(call.number, now), call.last_seen, now),
            **_moved(vpn.rows.packets(("gre", call.number))),
        }
    for row in vpn.ipsec.esp.rows.values():
        ids = (row.ospi & 0xFFFF, 0, _SHOWN_STATES.get(row.state, row.ispi & 0xFFFF))
        last = max(row.last_out, row.last_in)
        yield {
            **_line("esp", row, ids, vpn.ipsec.esp.expires(row.number, now), last, now),
            **_moved(vpn.rows.packets(("esp", row.number))),
        }
    for row in vpn.ipsec.exchanges.exchanges.values():
        expires = vpn.ipsec.exchanges.expires(row.number)
        yield {**_line("udp", row, (ISAKMP_PORT,) * 3, expires, row.last, now), **_moved((0, 0))}


def _line(protocol: str, row: Any, ids: tuple[int, int, int], expires: int, last: int, now: int) -> dict[str, Any]:
    inside, external, remote = (
        f"{dotted(address)}:{number}" for address, number in zip((row.inside, row.masq, row.remote), ids, strict=True)
    )
    return {
        "protocol": protocol,
        "state": getattr(row, "state", "active"),
        "inside": inside,
        "external": external,
        "remote": remote,
        "expires_s": round(max(0, expires - now) / NS_PER_SECOND, 1),
        "idle_s": round(max(0, now - (last or now)) / NS_PER_SECOND, 1),
    }


def _moved(packets: tuple[int, int]) -> dict[str, int]:
    return {"packets_out": packets[0], "packets_in": packets[1]}
