"""Network interfaces as the kernel describes them, and those of them that are our links, followed by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from fastmasq.kernel import netlink, rtnetlink
from fastmasq.kernel.addresses import InterfaceAddress, address_request, read_addresses

IFF_UP, IFF_LOOPBACK, IFF_LOWER_UP = 0x1, 0x8, 0x10000

UNSUPPORTED = -1

_SKIP_STATISTICS = 8

# ARPHRD_* (linux/if_arp.h) to the bytes in front of the IP header on an AF_PACKET tap.
_HEADER_LENGTHS = {
    1: 14,  # Ethernet: physical, veth, bridge, VLAN sub-interface
    772: 14,  # loopback: Ethernet with zero addresses
    512: 0,  # ppp
    0xFFFE: 0,  # none: tun, WireGuard
}


class Interface(NamedTuple):
    """Any interface of the namespace, ours or not. `hardware` is ARPHRD_*; `master` an ifindex, 0 if none.

    `below` is the ifindex of the interface that it is a macvlan over, 0 if it is none.
    """

    ifindex: int
    name: str
    flags: int
    mtu: int
    mac: bytes
    hardware: int
    master: int
    qdisc: str
    below: int = 0


class Link(NamedTuple):
    """One of our links at one moment; a missing one has ifindex 0 and is down.

    `up` is administrative state and carrier. `header_length` is 14 (Ethernet) or 0 (packets start at the IP header);
    UNSUPPORTED says that this type of link cannot be used, see `complaint`. `macvlans` has the link addresses of those
    over it, as VRRP has, and `macvlan_numbers` their ifindexes: what comes for them is for us, too.
    """

    name: str
    ifindex: int
    role: str
    up: bool
    mtu: int
    mac: bytes
    header_length: int
    addresses: tuple[InterfaceAddress, ...]
    qdisc: str
    macvlans: tuple[bytes, ...] = ()
    macvlan_numbers: tuple[int, ...] = ()


def read_interfaces(messages: Iterable[bytes]) -> Iterator[Interface]:
    """Yield what the RTM_NEWLINK messages describe; those about wireless links or bridge ports describe none."""
    for message in messages:
        family, hardware, ifindex, flags, _ = rtnetlink.IFINFOMSG.read(message)
        values = rtnetlink.IFINFOMSG.attributes(message)
        name = netlink.read_text(values, rtnetlink.IFLA_IFNAME)
        kind = netlink.read_text(netlink.attributes(values.get(rtnetlink.IFLA_LINKINFO, b"")), rtnetlink.IFLA_INFO_KIND)
        if family or ifindex <= 0 or not name or rtnetlink.IFLA_MTU not in values:
            continue
        yield Interface(
            ifindex=ifindex,
            name=name,
            flags=flags,
            mtu=netlink.read_number(values, rtnetlink.IFLA_MTU),
            mac=netlink.read_mac(values, rtnetlink.IFLA_ADDRESS) if header_length(hardware) == 14 else b"",
            hardware=hardware,
            master=netlink.read_number(values, rtnetlink.IFLA_MASTER),
            qdisc=netlink.read_text(values, rtnetlink.IFLA_QDISC),
            below=netlink.read_number(values, rtnetlink.IFLA_LINK) if kind == "macvlan" else 0,
        )


def dump_request() -> bytes:
    """Return the body of an RTM_GETLINK dump of all interfaces, without their statistics."""
    return rtnetlink.IFINFOMSG.pack() + netlink.number(rtnetlink.IFLA_EXT_MASK, _SKIP_STATISTICS)


def list_interfaces() -> list[Interface]:
    """Return all interfaces of the current network namespace."""
    requests = netlink.RequestSocket()
    try:
        messages, _ = requests.dump(netlink.RTM_GETLINK, dump_request())
    finally:
        requests.close()
    return list(read_interfaces(messages))


def interface_addresses() -> dict[str, tuple[int, ...]]:
    """Return all interfaces of the current network namespace by name, and the addresses that each of them has."""
    requests = netlink.RequestSocket()
    try:
        messages, _ = requests.dump(netlink.RTM_GETADDR, address_request())
    finally:
        requests.close()
    found: dict[int, list[int]] = {}
    for ifindex, each in read_addresses(messages):
        found.setdefault(ifindex, []).append(each.address)
    return {each.name: tuple(found.get(each.ifindex, ())) for each in list_interfaces()}


def header_length(hardware: int) -> int:
    """Return the bytes in front of the IP header for an ARPHRD_* type, or UNSUPPORTED."""
    return _HEADER_LENGTHS.get(hardware, UNSUPPORTED)


def macvlans(interface: Interface, interfaces: Iterable[Interface], links: Collection[str]) -> list[Interface]:
    """Return the macvlans over an interface that are up, and neither a port of anything nor one of these links."""
    over = (each for each in interfaces if each.below == interface.ifindex and each.flags & IFF_UP)
    return [each for each in over if not each.master and each.name not in links]


def make_link(
    name: str, role: str, interface: Interface | None, addresses: Iterable[InterfaceAddress],
    macvlans: Iterable[Interface] = (),
) -> Link:  # fmt: skip
    if interface is None:
        return Link(name, 0, role, up=False, mtu=0, mac=b"", header_length=14, addresses=(), qdisc="")
    over = [each for each in macvlans if each.mac]
    return Link(
        name=name,
        ifindex=interface.ifindex,
        role=role,
        up=bool(interface.flags & IFF_UP and interface.flags & IFF_LOWER_UP),
        mtu=interface.mtu,
        mac=interface.mac,
        header_length=header_length(interface.hardware),
        addresses=tuple(addresses),
        qdisc=interface.qdisc,
        macvlans=tuple(each.mac for each in over),
        macvlan_numbers=tuple(each.ifindex for each in over),
    )


def complaint(name: str, role: str, interface: Interface | None, interfaces: Iterable[Interface]) -> str | None:
    """Return the one line that says why `name` cannot be a link of ours, or None. Only inside links must be there."""
    if interface is None:
        if role != "inside":
            return None
        names = ", ".join(sorted(each.name for each in interfaces if not each.flags & IFF_LOOPBACK)) or "none but lo"
        return f"interface {name} ({role}) does not exist; there are: {names}"
    if interface.flags & IFF_LOOPBACK:
        return f"interface {name} ({role}) is the loopback interface; name the one that leads to the {role} network"
    if header_length(interface.hardware) == UNSUPPORTED:
        return (
            f"interface {name} ({role}) is of hardware type {interface.hardware}; "
            "fastmasq works on Ethernet-like, ppp and tun interfaces"
        )
    if interface.master:
        masters = [each.name for each in interfaces if each.ifindex == interface.master]
        over = masters[0] if masters else f"interface number {interface.master}"
        return f"interface {name} ({role}) belongs to {over}; name {over} instead"
    return None
