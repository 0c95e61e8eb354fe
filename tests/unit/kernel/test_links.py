"""Links: what becomes of an interface's description, and why an interface cannot be a link."""

from __future__ import annotations

import pytest

from fastmasq.kernel.addresses import InterfaceAddress, primary
from fastmasq.kernel.links import IFF_LOOPBACK, IFF_LOWER_UP, IFF_UP, Interface, complaint, header_length, make_link

ETHERNET, PPP, LOOPBACK, NONE, IPGRE = 1, 512, 772, 0xFFFE, 778


def interface(name: str, flags: int = IFF_UP | IFF_LOWER_UP, hardware: int = ETHERNET, master: int = 0) -> Interface:
    return Interface(7, name, flags, 1500, b"\2\0\0\0\0\1", hardware, master, "noqueue")


@pytest.mark.parametrize(("hardware", "length"), [(ETHERNET, 14), (LOOPBACK, 14), (PPP, 0), (NONE, 0), (IPGRE, -1)])
def test_header_length(hardware: int, length: int) -> None:
    assert header_length(hardware) == length


@pytest.mark.parametrize(("flags", "up"), [(0, False), (IFF_UP, False), (IFF_LOWER_UP, False), (0x10001, True)])
def test_up_needs_administration_and_carrier(flags: int, up: bool) -> None:
    assert make_link("eth0", "inside", interface("eth0", flags), ()).up is up


def test_missing_link() -> None:
    link = make_link("ppp0", "outside", None, ())
    assert (link.ifindex, link.up, link.mac, link.addresses) == (0, False, b"", ())


def test_primary_address_is_the_first_global_one() -> None:
    link_local = InterfaceAddress(0xA9FE0101, 16, scope=253)
    secondary = InterfaceAddress(0xC8C8C8C9, 24, secondary=True)
    first, second = InterfaceAddress(0xC8C8C8C8, 24), InterfaceAddress(0x0A000001, 8)
    assert primary([link_local, secondary, first, second]) == 0xC8C8C8C8
    assert primary([link_local, secondary]) is None


def test_complaints_say_what_to_do() -> None:
    good = interface("eth0")
    bridge = Interface(9, "br0", 0, 1500, b"", ETHERNET, 0, "")
    assert complaint("eth0", "inside", good, [good]) is None
    assert complaint("ppp0", "outside", None, [good]) is None, "it may appear later"
    assert complaint("eth7", "inside", None, [good, bridge]) == (
        "interface eth7 (inside) does not exist; there are: br0, eth0"
    )
    assert "name br0 instead" in complaint("eth0", "inside", interface("eth0", master=9), [good, bridge])
    assert "hardware type 778" in complaint("gre1", "outside", interface("gre1", hardware=IPGRE), [])
    assert "loopback" in complaint("lo", "inside", interface("lo", IFF_LOOPBACK, LOOPBACK), [])
