"""The sockets that PCP and NAT-PMP are spoken on: UDP port 5351 of each inside address, tied to its link.

So no packet that comes in by another link gets to them, whatever address it is for. A turn of the loop reads a few
messages, and a tick at most MOST_A_TICK of all links (control/pace.py): who sent what is lost asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterable
from functools import partial

from fastmasq.clock import now_ns
from fastmasq.control.endpoints import Endpoint, follow
from fastmasq.control.pace import Pace
from fastmasq.daemon.port_mapping import Requests
from fastmasq.errors import KernelError
from fastmasq.mishaps import Mishaps
from fastmasq.wire import natpmp, pcp

log = logging.getLogger("fastmasq.forwards")

AT_ONCE = 8  # messages read in a turn of the loop
MOST_A_TICK = 200  # messages read
ANNOUNCEMENTS = 10  # of a new epoch, each twice as long after the one before (RFC 6886 section 3.2.1)
FIRST_PAUSE_S = 0.25
ALL_HOSTS = "224.0.0.1"


class MappingServer:
    """Has messages answered on inside addresses, in a loop."""

    def __init__(self, requests: Requests, loop: asyncio.AbstractEventLoop) -> None:
        self._requests = requests
        self._loop = loop
        self._sockets: dict[Endpoint, socket.socket] = {}
        self._mishaps = Mishaps(log)
        self._pace = Pace(loop, MOST_A_TICK)
        self._announcing: asyncio.TimerHandle | None = None
        self._announced: int | None = None  # epoch

    def follow(self, endpoints: Iterable[Endpoint]) -> None:
        """Listen on these and no others. Raises KernelError, and listens on as many as it can."""
        refused = follow(self._sockets, endpoints, self._begin, self._end)
        if refused:
            said = ", ".join(f"{endpoint.dotted()}: {error.strerror}" for endpoint, error in refused)
            raise KernelError(f"[port_mapping] pcp: UDP port {natpmp.PORT}: {said}; end the program that has it")

    def _begin(self, endpoint: Endpoint) -> socket.socket:
        """Raises OSError."""
        listener = endpoint.socket(socket.SOCK_DGRAM)
        address = endpoint.dotted()
        try:
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            listener.bind((address, natpmp.PORT))
        except OSError:
            listener.close()
            raise
        self._pace.begin(listener, partial(self._read, listener))
        return listener

    def _end(self, _: Endpoint, listener: socket.socket) -> None:
        self._pace.end(listener)
        listener.close()

    def close(self) -> None:
        """Listen no more."""
        self.follow(())
        self._pace.close()
        if self._announcing is not None:
            self._announcing.cancel()

    # -- messages --------------------------------------------------------------------------------------------------

    def _read(self, listener: socket.socket) -> None:
        for _ in range(AT_ONCE):
            if not self._pace.is_left:
                return
            try:
                octets, (host, port) = listener.recvfrom(pcp.LARGEST + 4)
            except OSError:  # none is left, or a host did not want an answer
                return
            self._pace.count()
            try:
                answer = self._requests.answer(octets, int(ipaddress.IPv4Address(host)), now_ns())
            except Exception as error:
                self._mishaps.report("a message about port mappings", error, now_ns())
                continue
            if answer is not None:
                with contextlib.suppress(OSError):
                    listener.sendto(answer, (host, port))

    # -- announcements ---------------------------------------------------------------------------------------------

    def announce_news(self) -> None:
        """Tell all inside hosts of an epoch that they have not been told of by us, some times."""
        if self._announced != self._requests.epoch:
            self._announced = self._requests.epoch
            self._announce(ANNOUNCEMENTS, FIRST_PAUSE_S)

    def _announce(self, count: int, pause_s: float) -> None:
        if self._announcing is not None:
            self._announcing.cancel()
        for listener in self._sockets.values():
            for octets in self._requests.announcements(now_ns()):
                with contextlib.suppress(OSError):
                    listener.sendto(octets, (ALL_HOSTS, natpmp.CLIENT_PORT))
        if count > 1:
            self._announcing = self._loop.call_later(pause_s, self._announce, count - 1, 2 * pause_s)
