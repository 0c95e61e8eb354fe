"""Raw sockets that send single IPv4 packets of a protocol with a chosen TTL, and hear the ICMP errors about them."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct

from fastmasq.errors import KernelError
from fastmasq.wire.numbers import UDP

_SOL_RAW, _ICMP_FILTER = 255, 1  # linux/icmp.h: a bit that is set keeps that ICMP type out
_UNREACHABLE, _TIME_EXCEEDED = 3, 11
_LONGEST = 65_535
_WHY = {
    errno.EPERM: "this host's own firewall drops it; look at its output rules",
    errno.EACCES: "it is a broadcast address; name a host",
    errno.ENETUNREACH: "this host has no route to it; check the default route",
    errno.EHOSTUNREACH: "the next hop does not answer; check the link",
}


class ProbeSockets:
    """Sends to one host. UDP goes from `udp_port`, other protocols by raw sockets; needs CAP_NET_RAW."""

    def __init__(self, destination: str, protocols: list[int]) -> None:
        """Open what `protocols` (numbers) need. Raises KernelError."""
        self._destination = destination
        with contextlib.ExitStack() as opened:
            try:
                self._icmp = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
                self._senders = {number: opened.enter_context(_sender(number)) for number in protocols}
            except PermissionError:
                raise KernelError("raw sockets need CAP_NET_RAW: run it as root") from None
            kept_out = ~(1 << _UNREACHABLE | 1 << _TIME_EXCEEDED) & 0xFFFFFFFF
            self._icmp.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", kept_out))
            self._opened = opened.pop_all()

    @property
    def udp_port(self) -> int:
        """Return the port that UDP comes from; 0 if UDP is not among the protocols."""
        udp = self._senders.get(UDP)
        return udp.getsockname()[1] if udp is not None else 0

    def send(self, protocol: int, octets: bytes, ttl: int, port: int = 0) -> None:
        """Send one packet; `port` is UDP's destination port. Raises KernelError when this host cannot."""
        sender = self._senders[protocol]
        try:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            sender.sendto(octets, (self._destination, port))
        except OSError as error:
            why = _WHY.get(error.errno or 0, os.strerror(error.errno or 0))
            raise KernelError(f"{self._destination}: cannot send to it: {why}") from None

    def receive(self, patience_s: float) -> bytes | None:
        """Return the next ICMP error, as an IPv4 packet; None if none comes in time."""
        if not select.select([self._icmp], [], [], max(0.0, patience_s))[0]:
            return None
        return self._icmp.recv(_LONGEST)

    def close(self) -> None:
        self._opened.close()


def _sender(protocol: int) -> socket.socket:
    """Return a socket that sends a protocol; what answers it in kind is not read, so its buffer is small."""
    if protocol == UDP:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", 0))
    else:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    return made
