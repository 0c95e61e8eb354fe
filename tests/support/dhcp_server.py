"""A DHCP server (RFC 2131) for one client: it offers one address, answers in unicast, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import NamedTuple

from tests.support.lab_network import Network

SERVER_PORT, CLIENT_PORT = 67, 68
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
REPLY = 2
_HEADER = struct.Struct(">BBBBIHH4s4s4s4s16s64s128s4s")  # RFC 2131 section 2, and the magic cookie of RFC 1497
_COOKIE = bytes((99, 130, 83, 99))
_MASK, _ROUTER, _LEASE_TIME, _TYPE, _SERVER, _RENEWAL, _REBINDING, _END = 1, 3, 51, 53, 54, 58, 59, 255


class Asked(NamedTuple):
    """One message of the client's: its type, and the address that it says it has ("0.0.0.0": none)."""

    kind: int
    has: str


class DhcpServer:
    """A server on a host's link, from now to the end of the test. `lease`, `renewal`: seconds."""

    def __init__(
        self, net: Network, host: str, interface: str, own: str, offered: str, *, lease: int, renewal: int
    ) -> None:
        self.asked: list[Asked] = []
        self._own, self._offered = socket.inet_aton(own), socket.inet_aton(offered)
        self._lease, self._renewal = lease, renewal
        server = net.udp(host, port=SERVER_PORT)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        net.serve(server, self._serve)

    def _serve(self, server: socket.socket, is_over) -> None:
        while not is_over():
            with contextlib.suppress(TimeoutError):
                self._answer(server, server.recv(2048))

    def _answer(self, server: socket.socket, message: bytes) -> None:
        fields = list(_HEADER.unpack_from(message))
        kind = _options(message[_HEADER.size :]).get(_TYPE, b"\0")[0]
        self.asked.append(Asked(kind, socket.inet_ntoa(fields[7])))
        if kind not in (DISCOVER, REQUEST):
            return
        fields[0], fields[8], fields[9] = REPLY, self._offered, self._own
        options = {
            _TYPE: bytes((OFFER if kind == DISCOVER else ACK,)),
            _SERVER: self._own,
            _LEASE_TIME: struct.pack(">I", self._lease),
            _RENEWAL: struct.pack(">I", self._renewal),
            _REBINDING: struct.pack(">I", self._lease - 1),
            _MASK: bytes((255, 255, 255, 0)),
            _ROUTER: self._own,
        }
        encoded = b"".join(bytes((number, len(value))) + value for number, value in options.items())
        server.sendto(_HEADER.pack(*fields) + encoded + bytes((_END,)), (socket.inet_ntoa(self._offered), CLIENT_PORT))


def _options(encoded: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + 1 < len(encoded) and encoded[at] != _END:
        if encoded[at] == 0:
            at += 1
            continue
        length = encoded[at + 1]
        found[encoded[at]] = encoded[at + 2 : at + 2 + length]
        at += 2 + length
    return found
