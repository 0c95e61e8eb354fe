"""Rows that the daemon shares with the path, as numpy types: links, routes, hops, rules, redirects, tunnels, drops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LINKS = 16
HOPS = 16384
MACVLANS = 8  # over one link
NO_LINK = 0xFF
INSIDE, OUTSIDE, LOCAL = 0, 1, 4
MAC, LINK_HEADER = 6, 14  # octets: wire/ethernet.pxd
LOG_HEADER = 60  # octets of a packet in a log record

LINK = np.dtype(
    [
        ("address", "u4"),
        ("mtu", "u4"),
        ("side", "u1"),
        ("up", "u1"),
        ("header_length", "u1"),
        ("mac", "u1", MAC),
        ("macvlan_count", "u1"),
        ("reserved", "u1", 2),
        ("macvlans", "u1", (MACVLANS, MAC)),
    ]
)
ROUTE = np.dtype(
    [("gateway", "u4"), ("mtu", "u4"), ("source", "u4"), ("kind", "u1"), ("link", "u1"), ("reserved", "u1", 2)]
)
ROUTE_KINDS = {
    name: number
    for number, name in enumerate(
        ("none", "unicast", "local", "broadcast", "multicast", "blackhole", "unreachable", "prohibit")
    )
}
HOP = np.dtype(
    [
        ("header", "u1", LINK_HEADER),
        ("link", "u1"),
        ("state", "u1"),
        ("address", "u4"),
        ("mtu", "u4"),
        ("used", "u4"),
        ("held", "u2"),
        ("wanted", "u1"),
        ("header_length", "u1"),
    ]
)
CARRIER_LINK = np.dtype([("ifindex", "u4"), ("reserved", "u2"), ("side", "u1"), ("header_length", "u1")])
CARRIER = np.dtype(
    [
        ("secret", [("k0", "u8"), ("k1", "u8")]),
        ("index_mask", "u4"),
        ("is_open", "u4"),
        ("generation", "u4"),
        ("tick", "u4"),
        ("tcp_established", "u4"),
        ("udp_active", "u4"),
        ("identification_key", "u4"),
        ("rules", "u4"),
        ("links", CARRIER_LINK, LINKS),
    ]
)
IDENTIFICATIONS = np.dtype([("counters", "u4", 4096)])
CHAIN_RULE = np.dtype(
    [
        ("source", "u4"),
        ("source_mask", "u4"),
        ("destination", "u4"),
        ("destination_mask", "u4"),
        ("target_row", "u4"),
        ("mark_and", "u4"),
        ("mark_add", "u4"),
        ("ports", "u4"),
        ("links", "u2"),
        ("flags", "u2"),
        ("chain", "u2"),
        ("source_ports", "u1"),
        ("destination_ports", "u1"),
        ("protocol", "u1"),
        ("target", "u1"),
        ("tos_and", "u1"),
        ("tos_xor", "u1"),
    ]
)
PORT_RANGE = np.dtype([("first", "u2"), ("last", "u2")])
RULE_COUNT = np.dtype([("packets", "u8"), ("octets", "u8")])
LOG_RECORD = np.dtype(
    [
        ("row", "u4"),
        ("saddr", "u4"),
        ("daddr", "u4"),
        ("sport", "u2"),
        ("dport", "u2"),
        ("link", "u1"),
        ("base", "u1"),
        ("shows", "u1"),
        ("loop", "u1"),
        ("ip", "u1", LOG_HEADER),
    ]
)
REDIRECT = np.dtype(
    [("host", "u4"), ("source_first", "u4"), ("source_last", "u4"), ("protocol", "u1"), ("reserved", "u1", 3)]
)
DROPPED_FLOW = np.dtype(
    [
        ("packets", "u8"),
        ("saddr", "u4"),
        ("daddr", "u4"),
        ("rule", "u4"),
        ("port", "u2"),
        ("protocol", "u1"),
        ("reason", "u1"),
        ("link", "u1"),
        ("has_port", "u1"),
        ("reserved", "u1", 6),
    ]
)
NO_RULE = 0xFFFFFFFF
UNTRANSLATED = np.dtype([("packets", "u8"), ("source", "u4"), ("destination", "u4")])
WAY = np.dtype(
    [
        ("key0", "u8"),
        ("key1", "u8"),
        ("quoted0", "u8"),
        ("quoted1", "u8"),
        ("packets", "u8"),
        ("saddr", "u4"),
        ("daddr", "u4"),
        ("last_ms", "u4"),
        ("sequence", "u4"),
        ("original_id", "u4"),
        ("generation", "u4"),
        ("hop", "u2"),
        ("call_id", "u2"),
        ("renumbered", "u1"),
        ("in_use", "u1"),
        ("came_by", "u1"),
        ("reserved", "u1"),
        ("serial", "u4"),
        ("padding", "u4"),
    ]
)
TUNNEL = np.dtype([("way", WAY, 2)])


def link_row(
    *, side: int, mtu: int, address: int = 0, mac: bytes = b"", header_length: int = LINK_HEADER, up: bool = True,
    macvlans: Sequence[bytes] = (),
) -> np.ndarray:  # fmt: skip
    """Return one LINK row; mac has MAC octets on links with a header, none on links that start at the IP header.

    macvlans: as many octets for each macvlan over the link; those past MACVLANS are left out.
    """
    row = np.zeros((), LINK)
    row["address"], row["mtu"], row["side"], row["up"] = address, mtu, side, up
    row["header_length"] = header_length
    if header_length:
        row["mac"] = np.frombuffer(mac, "u1")
        row["macvlan_count"] = len(macvlans[:MACVLANS])
        for place, each in zip(row["macvlans"], macvlans, strict=False):
            place[:] = np.frombuffer(each, "u1")
    return row


def shared() -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return (type, shape) of the arrays that the path shares with the kernel, if that is to carry sessions."""
    return {"hops": (HOP, (HOPS,)), "carrier": (CARRIER, (1,)), "identifications": (IDENTIFICATIONS, (1,))}
