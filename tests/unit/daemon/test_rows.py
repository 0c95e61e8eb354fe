"""The kernel's snapshot turned into the rows of the path."""

from __future__ import annotations

import numpy as np

from fastmasq.daemon.rows import link_row, local_addresses, route_rows
from fastmasq.kernel.addresses import InterfaceAddress
from fastmasq.kernel.links import Link, make_link
from fastmasq.kernel.routes import Route
from fastmasq.path import rows as shared

MAC = bytes.fromhex("020000000101")
ADDRESS = InterfaceAddress(0xC8C8C8C8, 24)


def a_link(**fields: object) -> Link:
    usual = {"name": "eth1", "ifindex": 3, "role": "outside", "up": True, "mtu": 1400, "mac": MAC}
    return Link(**{**usual, "header_length": 14, "addresses": (ADDRESS,), "qdisc": "noqueue", **fields})


def test_a_link() -> None:
    row = link_row(a_link())
    assert (row["side"], row["mtu"], row["address"], row["up"]) == (shared.OUTSIDE, 1400, 0xC8C8C8C8, 1)
    assert (row["header_length"], row["mac"].tobytes()) == (14, MAC)


def test_an_inside_link_without_address() -> None:
    row = link_row(a_link(role="inside", addresses=(), up=False))
    assert (row["side"], row["address"], row["up"]) == (shared.INSIDE, 0, 0)


def test_a_link_that_starts_at_the_ip_header() -> None:
    row = link_row(a_link(header_length=0, mac=b""))
    assert (row["header_length"], row["mac"].tobytes()) == (0, bytes(6))


def test_a_missing_link_is_down() -> None:
    row = link_row(make_link("ppp0", "outside", None, ()))
    assert (row["up"], row["address"], row["mac"].tobytes()) == (0, 0, bytes(6))


def test_a_link_of_a_kind_that_we_cannot_use() -> None:
    assert link_row(a_link(header_length=-1, mac=b""))["header_length"] == 0


def test_routes() -> None:
    routes = (
        Route(0, 0x09FFFFFF, "unicast", ifindex=3, gateway=0xC8C8C801),
        Route(0x0A000000, 0x0AFFFFFF, "unicast", ifindex=2, mtu=1300),
        Route(0x0B000000, 0x0B000000, "local", ifindex=1),
        Route(0x0B000001, 0xFFFFFFFF, "unicast", ifindex=99),
    )
    first, rows = route_rows(routes, {2: 0, 3: 1})
    assert first.dtype == np.dtype("u4")
    assert first.tolist() == [0, 0x0A000000, 0x0B000000, 0x0B000001]
    assert rows["kind"].tolist() == [shared.ROUTE_KINDS[kind] for kind in ("unicast", "unicast", "local", "unicast")]
    assert rows["link"].tolist() == [1, 0, shared.NO_LINK, shared.NO_LINK], "other interfaces lead nowhere"
    assert (rows["gateway"][0], rows["mtu"][1]) == (0xC8C8C801, 1300)


def test_local_addresses_are_those_that_can_appear_on_a_wire() -> None:
    routes = (
        Route(0x0A000001, 0x0A000001, "local"),
        Route(0x0AFFFFFF, 0x0AFFFFFF, "broadcast"),
        Route(0x7F000000, 0x7FFFFFFF, "local"),
        Route(0xC8C8C8C8, 0xC8C8C8C9, "local"),
        Route(0xE0000000, 0xEFFFFFFF, "multicast"),
    )
    assert local_addresses(routes) == [0x0A000001, 0x0AFFFFFF, 0xC8C8C8C8, 0xC8C8C8C9]
