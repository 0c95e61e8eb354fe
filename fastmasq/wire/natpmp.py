"""NAT-PMP messages (RFC 6886): what inside hosts ask of a gateway on UDP port 5351, and its answers.

All integers are big-endian. Times are seconds, addresses host-order integers.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple, Self

PORT = 5351  # of the gateway
CLIENT_PORT = 5350  # that announcements are sent to, at 224.0.0.1 (section 3.2.1)
VERSION = 0
ADDRESS, MAP_UDP, MAP_TCP = 0, 1, 2  # opcodes
PROTOCOLS = {MAP_UDP: "udp", MAP_TCP: "tcp"}

_ANSWER = 128  # added to the opcode of a request
_HEADER = struct.Struct("!BB")  # version, opcode
_MAP = struct.Struct("!BBHHHI")  # version, opcode, reserved, inside port, suggested outside port, lifetime
_ADDRESS_ANSWER = struct.Struct("!BBHII")  # version, opcode, result, epoch, address
_MAP_ANSWER = struct.Struct("!BBHIHHI")  # version, opcode, result, epoch, inside port, outside port, lifetime
_REFUSAL = struct.Struct("!BBHI")  # version, opcode, result, epoch


class Result(IntEnum):
    """What becomes of a request (section 3.5)."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


class Request(NamedTuple):
    """A request; one that maps nothing has zeros behind its opcode."""

    opcode: int
    inside_port: int = 0
    outside_port: int = 0  # the one suggested, 0 for any
    lifetime: int = 0  # 0: delete

    @classmethod
    def parse(cls, octets: bytes) -> Self | None:
        """Return the request in a datagram; None for an answer, and for one that is cut short or of another version.

        What follows a request is ignored, as the RFC says nothing of it.
        """
        if len(octets) < _HEADER.size:
            return None
        version, opcode = _HEADER.unpack_from(octets)
        if version != VERSION or opcode >= _ANSWER:
            return None
        if opcode not in PROTOCOLS:
            return cls(opcode)
        if len(octets) < _MAP.size:
            return None
        _, _, _, *fields = _MAP.unpack_from(octets)
        return cls(opcode, *fields)

    def emit(self) -> bytes:
        if self.opcode not in PROTOCOLS:
            return _HEADER.pack(VERSION, self.opcode)
        return _MAP.pack(VERSION, self.opcode, 0, self.inside_port, self.outside_port, self.lifetime)


def address_answer(result: Result, epoch: int, address: int) -> bytes:
    """Return the answer about the outside address, 0 while there is none; it is also what announces one."""
    return _ADDRESS_ANSWER.pack(VERSION, _ANSWER + ADDRESS, result, epoch, address)


def map_answer(request: Request, result: Result, epoch: int, outside_port: int, lifetime: int) -> bytes:
    """Return the answer to a request for a mapping, or to delete one."""
    opcode = _ANSWER + request.opcode
    return _MAP_ANSWER.pack(VERSION, opcode, result, epoch, request.inside_port, outside_port, lifetime)


def refusal(opcode: int, result: Result, epoch: int) -> bytes:
    """Return the answer to a request that is not understood."""
    return _REFUSAL.pack(VERSION, _ANSWER + opcode, result, epoch)
