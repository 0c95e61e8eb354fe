"""Packet sockets that only listen: what the kernel receives and sends on a link, and may be part of a VPN."""

from __future__ import annotations

import bisect
import contextlib
import select
import socket
import struct
from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.ring.packet_socket import SO_RCVBUFFORCE, attach_program
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire.numbers import AH, ESP, GRE, ICMP, ISAKMP_PORT, NATT_PORT, PPTP_PORT, TCP, UDP

_ETH_P_ALL, _ETH_P_IP = 0x0003, 0x0800
_SO_TIMESTAMPNS = 35
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_BUFFER = 8 << 20  # octets
_LONGEST = 65_535
_MOST = 64  # packets taken from one link before the others are looked at
_SETTLES_NS = 2_000_000  # after which nothing older can come
_TIMESPEC = struct.Struct("qq")


class Heard(NamedTuple):
    """One IPv4 packet, from its IP header on; whether this host sent it, and when (nanoseconds since 1970)."""

    time_ns: int
    link: str
    sent: bool
    packet: bytes


_TIME = attrgetter("time_ns")


class Listener:
    """Hears IPv4 packets of VPNs on links; it changes nothing and sends nothing."""

    def __init__(self, links: list[str], clock: Callable[[], int]) -> None:
        """Listen on these links; the clock gives nanoseconds since 1970, as the kernel stamps packets.

        Raises ConfigurationError for a link that is not there, KernelError without privilege.
        """
        self._clock = clock
        self._early: list[Heard] = []  # so young that an older one may still come by another link
        self._down: list[str] = []
        self._poll = select.poll()
        self._sockets: dict[int, tuple[str, socket.socket]] = {}
        with contextlib.ExitStack() as opened:
            for link in links:
                raw = opened.enter_context(_open(link))
                self._sockets[raw.fileno()] = (link, raw)
                self._poll.register(raw, select.POLLIN)
            self._opened = opened.pop_all()

    def hear(self, patience_s: float) -> list[Heard]:
        """Return what has come on the links, in the order of its time; empty if nothing came within `patience_s`."""
        if not self._early:
            self._poll.poll(max(0.0, patience_s * 1000))
        settled = self._clock() - _SETTLES_NS
        read, complete = self._read()
        heard = sorted([*self._early, *read], key=_TIME)
        count = bisect.bisect_right(heard, min([settled, *complete]), key=_TIME)
        self._early = heard[count:]
        if not count and self._early:
            self._poll.poll(_SETTLES_NS / 1e6)
        return heard[:count]

    def is_idle(self) -> bool:
        """Return whether nothing waits to be heard."""
        return not self._early and not self._poll.poll(0)

    def _read(self) -> tuple[list[Heard], list[int]]:
        """Return what waits in the sockets, at most _MOST of each, and the last times of those with more."""
        heard, complete = [], []
        for descriptor, _ in self._poll.poll(0):
            link, raw = self._sockets[descriptor]
            try:
                for _ in range(_MOST):
                    packet, ancillary, _, address = raw.recvmsg(_LONGEST, 64, socket.MSG_DONTWAIT)
                    heard.append(Heard(_time(ancillary), link, address[2] == socket.PACKET_OUTGOING, packet))
                complete.append(heard[-1].time_ns)
            except BlockingIOError:
                continue
            except OSError:  # ENETDOWN, once each time
                self._down.append(link)
        return heard, complete

    def went_down(self) -> list[str]:
        """Return the links that went down since the last call."""
        down, self._down = self._down, []
        return down

    def lost(self) -> int:
        """Return the packets that came faster than they were read, since the last call."""
        return sum(
            struct.unpack("II", raw.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
            for _, raw in self._sockets.values()
        )

    def close(self) -> None:
        self._opened.close()


def _time(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the time at which a packet came, by what the kernel said beside it.

    In the first moments it is the time at which the packet was read: net_enable_timestamp leaves it to a work item to
    have packets stamped on arrival, and packet_recvmsg fills in what is missing. So long links cannot be put in order.
    """
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack(value)
            return seconds * NS_PER_SECOND + nanoseconds
    return 0


def _open(link: str) -> socket.socket:
    try:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    except PermissionError:
        raise KernelError("packet sockets need CAP_NET_RAW: run it as root") from None
    try:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
        raw.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        _filter(raw)
        raw.bind((link, _ETH_P_ALL))
    except OSError as error:
        raw.close()
        names = ", ".join(name for _, name in socket.if_nameindex())
        raise ConfigurationError(f"{link}: {error.strerror}; this host has {names}") from None
    return raw


def _filter(raw: socket.socket) -> None:
    """Let the kernel keep out what `vpn_packets.decode` has no use for, and what belongs to a VLAN interface."""
    ancillary = 0xFFFFF000  # SKF_AD_OFF
    load_half, load_octet, index_header, load_half_indexed = 0x28, 0x30, 0xB1, 0x48
    equal, any_bit, give = 0x15, 0x45, 0x06
    ports = (PPTP_PORT, ISAKMP_PORT, NATT_PORT)
    # Steps by name, so that jumps need no counting; each is (code, jump if true, jump if false, value).
    steps: list[tuple[str, int, str, str, int]] = [
        ("", load_half, "", "", ancillary),  # protocol of the frame
        ("", equal, "", "drop", _ETH_P_IP),
        ("", load_half, "", "", ancillary + 48),  # whether a VLAN tag was taken off
        ("", equal, "", "drop", 0),
        ("", load_octet, "", "", 9),
        *(("", equal, "take", "", number) for number in (ICMP, GRE, ESP, AH)),
        ("", equal, "ported", "", TCP),
        ("", equal, "ported", "drop", UDP),
        ("ported", load_half, "", "", 6),
        ("", any_bit, "drop", "", 0x1FFF),  # a later fragment has no ports
        ("", index_header, "", "", 0),
        ("", load_half_indexed, "", "", 0),
        *(("", equal, "take", "", port) for port in ports),
        ("", load_half_indexed, "", "", 2),
        *(("", equal, "take", "", port) for port in ports),
        ("drop", give, "", "", 0),
        ("take", give, "", "", _LONGEST),
    ]
    places = {name: index for index, (name, *_) in enumerate(steps) if name}
    program = [
        (code, places[true] - index - 1 if true else 0, places[false] - index - 1 if false else 0, value)
        for index, (_, code, true, false, value) in enumerate(steps)
    ]
    attach_program(raw, program)
