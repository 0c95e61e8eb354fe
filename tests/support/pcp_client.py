"""A PCP client on an inside host, whose messages are scapy's (RFC 6887 sections 7 and 11 to 13)."""

from __future__ import annotations

import os
import socket
from typing import Any

from scapy.fields import (
    BitField,
    ByteEnumField,
    ByteField,
    IntField,
    IP6Field,
    ShortField,
    StrFixedLenField,
    XBitField,
)  # fmt: skip
from scapy.packet import Packet

PORT = 5351
SUCCESS, NOT_AUTHORIZED, CANNOT_PROVIDE_EXTERNAL = 0, 2, 11
PREFER_FAILURE = b"\2\0\0\0"
_ANSWERS = {0: "ANNOUNCE", 1: "MAP", 2: "PEER"}


class Request(Packet):
    """The common header of requests."""

    fields_desc = (
        ByteField("version", 2),
        BitField("is_answer", 0, 1),
        BitField("opcode", 1, 7),
        ShortField("reserved", 0),
        IntField("lifetime", 3600),
        IP6Field("client", "::"),
    )


class Answer(Packet):
    """The common header of answers."""

    fields_desc = (
        ByteField("version", 2),
        BitField("is_answer", 1, 1),
        BitField("opcode", 1, 7),
        ByteField("reserved", 0),
        ByteEnumField("result", 0, _ANSWERS),
        IntField("lifetime", 0),
        IntField("epoch", 0),
        XBitField("reserved2", 0, 96),
    )


class Map(Packet):
    """What MAP requests and answers have behind the header, and PEER's as well."""

    fields_desc = (
        StrFixedLenField("nonce", b"", 12),
        ByteField("protocol", 6),
        BitField("reserved", 0, 24),
        ShortField("inside_port", 0),
        ShortField("outside_port", 0),
        IP6Field("outside_address", "::ffff:0.0.0.0"),
    )


class Peer(Packet):
    """What PEER requests and answers have behind what MAP has."""

    fields_desc = (ShortField("port", 0), ShortField("reserved", 0), IP6Field("address", "::ffff:0.0.0.0"))


def filtered(address: str, length: int, port: int = 0) -> bytes:
    """Return the option FILTER for a remote network and a port of it (section 13.3)."""
    octets = bytes(10) + b"\xff\xff" + socket.inet_aton(address)
    return bytes((3, 0, 0, 20, 0, 96 + length)) + port.to_bytes(2, "big") + octets


class Client:
    """A host that asks, by a socket of its own; `nonce` is the same for all that it asks."""

    def __init__(self, sock: socket.socket, address: str, gateway: str) -> None:
        self._socket = sock
        self._address = address
        self._gateway = gateway
        self.nonce = os.urandom(12)

    def map(self, port: int, lifetime: int = 3600, options: bytes = b"", **fields: Any) -> tuple[Answer, Map]:
        """Ask for a mapping; return the two parts of the answer."""
        return self._ask(1, lifetime, Map(**{"nonce": self.nonce, "inside_port": port, **fields}), options)

    def peer(self, port: int, remote: tuple[str, int], lifetime: int = 3600, **fields: Any) -> tuple[Answer, Map]:
        """Ask for a session with a remote endpoint; return the same of the answer, which names that."""
        to = bytes(Peer(port=remote[1], address=f"::ffff:{remote[0]}"))
        return self._ask(2, lifetime, Map(**{"nonce": self.nonce, "inside_port": port, **fields}), to)

    def _ask(self, opcode: int, lifetime: int, asked: Map, rest: bytes) -> tuple[Answer, Map]:
        request = Request(opcode=opcode, lifetime=lifetime, client=f"::ffff:{self._address}") / asked
        self._socket.sendto(bytes(request) + rest, (self._gateway, PORT))
        octets, sender = self._socket.recvfrom(2048)
        assert sender == (self._gateway, PORT)
        answer, mapping = Answer(octets[:24]), Map(octets[24:60])
        assert (answer.version, answer.is_answer, answer.opcode) == (2, 1, opcode)
        assert (mapping.nonce, octets[60:]) == (asked.nonce, rest)
        return answer, mapping
