"""Netlink messages and attributes: what is put in comes out, and damaged input is dropped without an exception."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.kernel import netlink, rtnetlink


def message(kind: int, body: bytes) -> bytes:
    return netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, 0, 1, 0) + body


@given(st.dictionaries(st.integers(1, 200), st.binary(max_size=40)))
def test_attributes_come_back(values: dict[int, bytes]) -> None:
    encoded = b"".join(netlink.attribute(kind, value) for kind, value in values.items())
    assert netlink.attributes(encoded) == values


@given(st.lists(st.binary(max_size=50)))
def test_messages_come_back(bodies: list[bytes]) -> None:
    messages = [message(20, body) for body in bodies]
    datagram = b"".join(each + bytes(-len(each) % 4) for each in messages)
    assert list(netlink.split(datagram)) == messages


@given(st.binary(max_size=200))
def test_damaged_input_is_dropped(noise: bytes) -> None:
    for each in netlink.split(noise):
        assert each in noise
    netlink.attributes(noise)


def test_flags_are_not_part_of_an_attributes_type() -> None:
    assert netlink.attributes(netlink.attribute(9 | 0x8000, b"nest")) == {9: b"nest"}


def test_error_message_raises_its_number() -> None:
    with pytest.raises(OSError) as caught:
        netlink.raise_error(message(netlink.NLMSG_ERROR, struct.pack("=i", -errno.ENODEV)))
    assert caught.value.errno == errno.ENODEV
    netlink.raise_error(message(netlink.NLMSG_ERROR, struct.pack("=i", 0)))


@pytest.mark.parametrize(
    ("fixed", "kind", "names"),
    [
        (rtnetlink.IFINFOMSG, netlink.RTM_NEWLINK, "family ifi_type index flags change"),
        (rtnetlink.IFADDRMSG, netlink.RTM_NEWADDR, "family prefixlen flags scope index"),
        (rtnetlink.RTMSG, netlink.RTM_NEWROUTE, "family dst_len src_len tos table proto scope type flags"),
        (rtnetlink.FIB_RULE_HDR, netlink.RTM_NEWRULE, "family dst_len src_len tos table action flags"),
        (rtnetlink.NDMSG, netlink.RTM_NEWNEIGH, "family ifindex state flags ndm_type"),
        (rtnetlink.TCMSG, netlink.RTM_NEWTFILTER, "family index handle parent info"),
    ],
)
def test_fixed_parts_are_what_pyroute2_reads(fixed: rtnetlink.Fixed, kind: int, names: str) -> None:
    for ours, theirs in zip(fixed.fields, names.split(), strict=True):
        whole = message(kind, fixed.pack(**{ours: socket.AF_INET}))
        decoded = netlink.decode(whole)
        assert [decoded[name] for name in names.split()] == [2 * (name == theirs) for name in names.split()]
        assert fixed.read(whole) == tuple(2 * (name == theirs) for name in names.split())
        assert fixed.attributes(whole + netlink.text(3, "eth0") + netlink.number(4, 7)) == {
            3: b"eth0\0",
            4: struct.pack("=I", 7),
        }
