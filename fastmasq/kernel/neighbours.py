"""The kernel's neighbour table (ARP) on our links, and how to have an address resolved without waiting."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fastmasq.kernel import netlink, rtnetlink

INCOMPLETE, REACHABLE, STALE, DELAY, PROBE, FAILED = "incomplete", "reachable", "stale", "delay", "probe", "failed"
NOARP, PERMANENT, NONE, GONE = "noarp", "permanent", "none", "gone"

# NUD_* (linux/neighbour.h). "gone" is ours: the kernel deleted the entry.
_STATES = {
    0x01: INCOMPLETE,
    0x02: REACHABLE,
    0x04: STALE,
    0x08: DELAY,
    0x10: PROBE,
    0x20: FAILED,
    0x40: NOARP,
    0x80: PERMANENT,
}
_WITH_MAC = frozenset((REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT))

_NTF_USE = 0x01


class Neighbour(NamedTuple):
    """A MAC address, None while it is not known, and the kernel's opinion of it."""

    mac: bytes | None
    state: str


class NeighbourTable:
    """IPv4 neighbours by (ifindex, address), with the changes since somebody last asked."""

    def __init__(self) -> None:
        self._neighbours: dict[tuple[int, int], Neighbour] = {}
        self._changed: dict[tuple[int, int], None] = {}

    def find(self, ifindex: int, address: int) -> Neighbour | None:
        return self._neighbours.get((ifindex, address))

    def known(self) -> list[tuple[int, int, bytes]]:
        """Return (ifindex, address, MAC) of those that have answered, or were set by somebody."""
        return [(*key, each.mac) for key, each in self._neighbours.items() if each.mac and each.state != NOARP]

    def update(self, message: bytes) -> None:
        """Take in one RTM_NEWNEIGH or RTM_DELNEIGH message."""
        is_gone = netlink.message_type(message) == netlink.RTM_DELNEIGH
        for key, neighbour in _read_neighbours([message]):
            self._set(key, None if is_gone else neighbour)

    def replace(self, messages: Iterable[bytes]) -> None:
        """Take in a complete dump; what is not in it is gone."""
        current = dict(_read_neighbours(messages))
        for key in [*self._neighbours, *current]:
            self._set(key, current.get(key))

    def keep_only(self, ifindexes: set[int]) -> None:
        """Forget the neighbours on all other interfaces."""
        for key in [key for key in self._neighbours if key[0] not in ifindexes]:
            self._set(key, None)

    def _set(self, key: tuple[int, int], neighbour: Neighbour | None) -> None:
        if self._neighbours.get(key) == neighbour:
            return
        self._changed[key] = None
        if neighbour is None:
            del self._neighbours[key]
        else:
            self._neighbours[key] = neighbour

    @property
    def has_changes(self) -> bool:
        return bool(self._changed)

    def take_changes(self) -> list[tuple[int, int, bytes | None, str]]:
        """Return (ifindex, address, MAC, state) as it is now for all that changed since the last call."""
        gone = Neighbour(None, GONE)
        changes = [(*key, *self._neighbours.get(key, gone)) for key in self._changed]
        self._changed.clear()
        return changes


def concerns_us(message: bytes, ifindexes: set[int]) -> bool:
    """Tell without decoding whether a neighbour message is about an IPv4 neighbour on one of the interfaces."""
    family, ifindex, _, _, _ = rtnetlink.NDMSG.read(message)
    return family == socket.AF_INET and ifindex in ifindexes


def _read_neighbours(messages: Iterable[bytes]) -> Iterator[tuple[tuple[int, int], Neighbour]]:
    for message in messages:
        _, ifindex, number, _, _ = rtnetlink.NDMSG.read(message)
        values = rtnetlink.NDMSG.attributes(message)
        address = netlink.read_address(values, rtnetlink.NDA_DST)
        if address:
            state = _STATES.get(number, NONE)
            mac = netlink.read_mac(values, rtnetlink.NDA_LLADDR) if state in _WITH_MAC else b""
            yield (ifindex, address), Neighbour(mac or None, state)


def dump_request() -> bytes:
    """Return the body of an RTM_GETNEIGH dump of IPv4 neighbours."""
    return rtnetlink.NDMSG.pack(family=socket.AF_INET)


def forget_request(ifindex: int, address: int) -> bytes:
    """Return the body of an RTM_DELNEIGH of one neighbour."""
    body = rtnetlink.NDMSG.pack(family=socket.AF_INET, ifindex=ifindex)
    return body + netlink.attribute(rtnetlink.NDA_DST, address.to_bytes(4, "big"))


def resolve_request(ifindex: int, address: int) -> bytes:
    """Return the body of an RTM_NEWNEIGH that acts as if the host had just sent to `address`."""
    body = rtnetlink.NDMSG.pack(family=socket.AF_INET, ifindex=ifindex, flags=_NTF_USE)
    return body + netlink.attribute(rtnetlink.NDA_DST, address.to_bytes(4, "big"))
