"""Netlink messages: what is put in comes out, recorded ones are read as what they are, and no damage raises."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.kernel import neighbours, netlink, routes, rtnetlink
from fastmasq.kernel.addresses import InterfaceAddress, read_addresses
from fastmasq.kernel.links import IFF_LOWER_UP, IFF_UP, Interface, read_interfaces
from fastmasq.kernel.neighbours import Neighbour, NeighbourTable
from tests.support.harness import address
from tests.support.netlink_messages import RECORDED, damaged


def message(kind: int, body: bytes) -> bytes:
    return netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, 0, 1, 0) + body


def read_all(message: bytes) -> None:
    """Read a message as everything that the forwarder reads, whatever kind it says it is of."""
    list(read_interfaces([message]))
    list(read_addresses([message]))
    table = NeighbourTable()
    table.update(message)
    table.replace([message])
    table.take_changes()
    neighbours.concerns_us(message, {2})
    routes.concerns_us(message)
    routes.flatten([routes.read_route(message)])
    rtnetlink.TCMSG.read(message)
    rtnetlink.FIB_RULE_HDR.read(message)
    for value in rtnetlink.TCMSG.attributes(message).values():
        netlink.attributes(value)


@given(st.dictionaries(st.integers(1, 200), st.binary(max_size=40)))
def test_attributes_come_back(values: dict[int, bytes]) -> None:
    encoded = b"".join(netlink.attribute(kind, value) for kind, value in values.items())
    assert netlink.attributes(encoded) == values


@given(st.integers(0, 0xFFFFFFFF), st.text(st.characters(min_codepoint=1, codec="utf-8")))
def test_numbers_and_texts_come_back(value: int, text: str) -> None:
    values = netlink.attributes(netlink.number(4, value) + netlink.text(3, text))
    assert (netlink.read_number(values, 4), netlink.read_text(values, 3)) == (value, text)


@given(st.binary(max_size=12), st.sampled_from((netlink.read_number, netlink.read_address, netlink.read_mac)))
def test_a_value_of_another_length_is_none(value: bytes, read: Callable[[dict[int, bytes], int], int | bytes]) -> None:
    is_right = len(value) == (6 if read is netlink.read_mac else 4)
    assert bool(read({1: value}, 1)) == (is_right and (any(value) or read is netlink.read_mac))
    assert not read({1: value}, 2)


@given(st.lists(st.binary(max_size=50)))
def test_messages_come_back(bodies: list[bytes]) -> None:
    messages = [message(20, body) for body in bodies]
    datagram = b"".join(each + bytes(-len(each) % 4) for each in messages)
    assert list(netlink.split(datagram)) == messages


@given(st.binary(max_size=200))
def test_noise_is_dropped(noise: bytes) -> None:
    for each in netlink.split(noise):
        assert each in noise
        read_all(each)
    netlink.attributes(noise)


@given(st.sampled_from(sorted(RECORDED.values())), st.randoms(use_true_random=False))
def test_a_damaged_message_raises_nothing(whole: bytes, chance: random.Random) -> None:
    read_all(damaged(whole, chance))


@pytest.mark.parametrize("name", RECORDED)
def test_a_message_cut_short_anywhere_raises_nothing(name: str) -> None:
    whole = RECORDED[name]
    for length in range(netlink.HEADER.size, len(whole)):
        read_all(whole[:length])


def test_an_attribute_that_is_cut_short_is_none() -> None:
    encoded = netlink.number(4, 1500) + netlink.text(3, "eth0")
    assert netlink.attributes(encoded[:-5]) == {4: struct.pack("=I", 1500)}


def test_flags_are_not_part_of_an_attributes_type() -> None:
    assert netlink.attributes(netlink.attribute(9 | 0x8000, b"nest")) == {9: b"nest"}


def test_error_message_raises_its_number() -> None:
    with pytest.raises(OSError) as caught:
        netlink.raise_error(message(netlink.NLMSG_ERROR, struct.pack("=i", -errno.ENODEV)))
    assert caught.value.errno == errno.ENODEV
    netlink.raise_error(message(netlink.NLMSG_ERROR, struct.pack("=i", 0)))


def test_error_message_without_a_number_is_an_error() -> None:
    with pytest.raises(OSError) as caught:
        netlink.raise_error(message(netlink.NLMSG_ERROR, b"\0\0"))
    assert caught.value.errno == errno.EBADMSG


def test_interfaces_are_read() -> None:
    up = IFF_UP | IFF_LOWER_UP | 0x1042  # BROADCAST, RUNNING, MULTICAST
    br0, eth9, tun0, eth0 = read_interfaces(RECORDED[f"link {name}"] for name in ("br0", "eth9", "tun0", "eth0"))
    assert eth0 == Interface(10, "eth0", up, 1400, bytes.fromhex("020000000001"), 1, 0, "pfifo")
    assert (eth9.name, eth9.master, eth9.mac) == ("eth9", br0.ifindex, br0.mac)
    assert (tun0.name, tun0.hardware, tun0.mac, tun0.mtu, tun0.qdisc) == ("tun0", 0xFFFE, b"", 1500, "pfifo_fast")


def test_what_does_not_describe_an_interface_is_none() -> None:
    header = rtnetlink.IFINFOMSG.pack(hardware=1, ifindex=10)
    name, mtu = netlink.text(rtnetlink.IFLA_IFNAME, "eth0"), netlink.number(rtnetlink.IFLA_MTU, 1500)
    of_a_bridge_port = rtnetlink.IFINFOMSG.pack(family=7, hardware=1, ifindex=10)
    assert [each.name for each in read_interfaces([message(netlink.RTM_NEWLINK, header + name + mtu)])] == ["eth0"]
    for body in (header + name, header + mtu, of_a_bridge_port + name + mtu, header[:7]):
        assert list(read_interfaces([message(netlink.RTM_NEWLINK, body)])) == []


def test_addresses_are_read_our_own_end_of_a_point_to_point_link() -> None:
    recorded = [each for name, each in RECORDED.items() if name.startswith("address")]
    assert list(read_addresses(recorded)) == [
        (1, InterfaceAddress(address("127.0.0.1"), 8, rtnetlink.SCOPE_HOST)),
        (5, InterfaceAddress(address("192.0.2.1"), 32)),
        (10, InterfaceAddress(address("10.0.0.1"), 8)),
        (10, InterfaceAddress(address("10.0.0.3"), 8, secondary=True)),
        (12, InterfaceAddress(address("200.200.200.200"), 24)),
    ]


def test_neighbours_are_read() -> None:
    table = NeighbourTable()
    table.update(RECORDED["neighbour 10.0.0.77"])
    assert table.find(10, address("10.0.0.77")) == Neighbour(bytes.fromhex("020000000077"), neighbours.PERMANENT)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0.0.0.0/0", (0, 0, 0, routes.UNICAST, 12, address("200.200.200.1"), 0)),
        ("44.0.0.0/8", (address("44.0.0.0"), 8, 7, routes.UNICAST, 10, address("10.0.0.2"), 1300)),
        ("45.0.0.0/8", (address("45.0.0.0"), 8, 0, routes.UNICAST, 10, address("10.0.0.2"), 0)),
    ],
)
def test_routes_are_read(name: str, expected: tuple) -> None:
    recorded = RECORDED[f"route {name}"]
    assert routes.concerns_us(recorded)
    assert routes.read_route(recorded)[1:8] == expected


def test_queues_and_rules_are_read() -> None:
    for kind, parent in (("pfifo", 0xFFFFFFFF), ("clsact", 0xFFFFFFF1)):
        recorded = RECORDED[f"qdisc {kind}"]
        _, ifindex, _, found, _ = rtnetlink.TCMSG.read(recorded)
        assert (ifindex, found) == (10, parent)
        assert netlink.read_text(rtnetlink.TCMSG.attributes(recorded), rtnetlink.TCA_KIND) == kind
    for table, priority in ((255, 0), (254, 32766), (253, 32767)):
        recorded = RECORDED[f"rule {table}"]
        assert rtnetlink.FIB_RULE_HDR.read(recorded)[4:6] == (table, 1)  # to this table
        values = rtnetlink.FIB_RULE_HDR.attributes(recorded)
        assert netlink.read_number(values, rtnetlink.FRA_PRIORITY) == priority
