"""The kernel's snapshot turned into the rows of the path."""

from __future__ import annotations

import numpy as np

from fastmasq.daemon.rows import addresses_by_name, external_addresses, link_row, local_addresses, route_rows
from fastmasq.kernel.addresses import InterfaceAddress
from fastmasq.kernel.links import Link, make_link
from fastmasq.kernel.routes import Route
from fastmasq.kernel.watch import Snapshot
from fastmasq.path import rows as shared
from tests.support.harness import address

MAC = bytes.fromhex("020000000101")
ADDRESS = InterfaceAddress(0xC8C8C8C8, 24)


def a_link(**fields: object) -> Link:
    usual = {"name": "eth1", "ifindex": 3, "role": "outside", "up": True, "mtu": 1400, "mac": MAC}
    return Link(**{**usual, "header_length": 14, "addresses": (ADDRESS,), "qdisc": "noqueue", **fields})


def test_a_link() -> None:
    row = link_row(a_link())
    assert (row["side"], row["mtu"], row["address"], row["up"]) == (shared.OUTSIDE, 1400, 0xC8C8C8C8, 1)
    assert (row["header_length"], row["mac"].tobytes()) == (14, MAC)


def test_macvlans_over_a_link() -> None:
    row = link_row(a_link(macvlans=(b"\0\0\x5e\0\1\x33", MAC)))
    assert row["macvlan_count"] == 2
    assert row["macvlans"].tobytes() == b"\0\0\x5e\0\1\x33" + MAC + bytes(36)
    assert link_row(a_link(macvlans=(MAC,) * 9))["macvlan_count"] == 8


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


MODEM = InterfaceAddress(address("192.168.100.2"), 24)
SECOND = InterfaceAddress(address("200.200.200.201"), 24, secondary=True)
TO_MODEM = Route(address("192.168.100.0"), address("192.168.100.255"), "unicast", 3, source=MODEM.address)
ON_LINK = Route(address("200.200.200.0"), address("200.200.200.255"), "unicast", 3, source=ADDRESS.address)


def by_default(gateway: str, source: int = 0) -> tuple[Route, ...]:
    """Return routes to the internet over a gateway, and to the two networks on the outside link."""
    hop = {"ifindex": 3, "gateway": address(gateway), "source": source}
    last = 0xFFFFFFFF
    return (
        Route(0, TO_MODEM.first - 1, "unicast", **hop),
        TO_MODEM,
        Route(TO_MODEM.last + 1, ON_LINK.first - 1, "unicast", **hop),
        ON_LINK,
        Route(ON_LINK.last + 1, last, "unicast", **hop),
    )


def outside(routes: tuple[Route, ...], *addresses: InterfaceAddress, wanted=(), before: int | None = None) -> list[str]:
    """Return the addresses that inside hosts leave with."""
    snapshot = Snapshot(1, (a_link(addresses=addresses or (MODEM, ADDRESS)),), routes)
    found = external_addresses(snapshot, wanted, before)
    return [str(InterfaceAddress(each, 32)).partition("/")[0] for each in found]


def test_the_address_of_the_outside_is_that_which_fits_the_next_hop_of_the_default_route() -> None:
    """The modem's network comes first on the link; the kernel takes the address that fits the route, and so do we."""
    both = ["200.200.200.200", "192.168.100.2"]
    assert outside(by_default("200.200.200.1")) == both
    assert outside(by_default("200.200.200.1"), ADDRESS, MODEM) == both
    assert outside(by_default("192.168.100.1")) == both[::-1]
    assert outside(by_default("192.168.100.1", source=ADDRESS.address)) == both
    assert outside(by_default("200.200.200.1", source=SECOND.address), MODEM, ADDRESS, SECOND)[0] == "200.200.200.201"
    assert outside(by_default("10.9.9.9"))[0] == "192.168.100.2", "it fits none: the first"


def test_without_a_default_route_the_address_stays_what_it_was() -> None:
    assert outside((TO_MODEM, ON_LINK), before=ADDRESS.address)[0] == "200.200.200.200"
    assert outside((TO_MODEM, ON_LINK), before=address("200.200.200.99"))[0] == "192.168.100.2"
    assert outside((), before=None) == ["192.168.100.2"]


def test_without_an_address_there_is_none() -> None:
    snapshot = Snapshot(1, (make_link("ppp0", "outside", None, ()),), ())
    assert external_addresses(snapshot, (), None) == external_addresses(snapshot, ("200.200.200.200",), None) == []


def test_addresses_of_the_settings_count_while_the_link_has_them() -> None:
    wanted = ("200.200.200.200", "200.200.200.99", "200.200.200.201")
    assert outside(by_default("192.168.100.1"), MODEM, ADDRESS, SECOND, wanted=wanted) == [wanted[0], wanted[2]]


def test_routes_over_the_outside_link_name_the_address_that_fits() -> None:
    link = a_link(addresses=(MODEM, ADDRESS))
    routes = (*by_default("200.200.200.1"), Route(0, 0, "unicast", ifindex=2), Route(0, 0, "local", ifindex=3))
    _, rows = route_rows(routes, {2: 0, 3: 1}, outside=link)
    assert rows["source"].tolist() == [ADDRESS.address, MODEM.address, *[ADDRESS.address] * 3, 0, 0]
    _, rows = route_rows(routes, {2: 0, 3: 1})
    assert not rows["source"].any()


def test_the_outside_link_has_the_first_of_them() -> None:
    snapshot = Snapshot(1, (a_link(addresses=(MODEM, ADDRESS)),), ())
    found = addresses_by_name(snapshot, ADDRESS.address)
    assert found["eth1"] == found["outside"] == ADDRESS.address
