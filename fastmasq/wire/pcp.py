"""PCP messages (RFC 6887): what inside hosts ask of a gateway on UDP port 5351, and its answers.

All integers are big-endian. Times are seconds; an IPv4 address is an integer here, and on the wire IPv4-mapped IPv6
(section 5): ::ffff:10.0.0.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

VERSION = 2
LARGEST = 1100  # octets of a message (section 7)
SHORT_ERROR_S, LONG_ERROR_S = 30, 1800  # how long an error is likely to hold (section 7.4)
FIRST_OPTIONAL = 128  # options from this code on may be ignored (section 7.3)
NONCE_LENGTH = 12

_ANSWER = 0x80  # a bit beside the opcode
_MAPPED = bytes(10) + b"\xff\xff"  # what an IPv4 address is behind
_REQUEST = struct.Struct("!BBHI16s")  # version, opcode, reserved, lifetime, client's address
_RESPONSE = struct.Struct("!BBBBII12x")  # version, answer and opcode, reserved, result, lifetime, epoch, reserved
_MAPPING = struct.Struct("!12sB3xHH16s")  # nonce, protocol, inside port, outside port and address (section 11.1)
_PEER = struct.Struct("!H2x16s")  # the remote's port and address behind those (section 12.1)
_OPTION = struct.Struct("!BxH")  # code, length of what follows, without what fills it up to 4 octets
_FILTER = struct.Struct("!xBH16s")  # prefix length, the remote's port, its address (section 13.3)


class Opcode(IntEnum):
    """What is asked for (sections 11, 12 and 14.1)."""

    ANNOUNCE = 0
    MAP = 1
    PEER = 2


class Code(IntEnum):
    """The options (section 13)."""

    THIRD_PARTY = 1
    PREFER_FAILURE = 2
    FILTER = 3


_OPTIONS_OF = {
    Opcode.ANNOUNCE: frozenset[int](),
    Opcode.MAP: frozenset((Code.PREFER_FAILURE, Code.FILTER)),
    Opcode.PEER: frozenset[int](),
}
_LENGTHS = {Code.PREFER_FAILURE: 0, Code.FILTER: _FILTER.size}
_ONCE = frozenset((Code.PREFER_FAILURE,))


class Result(IntEnum):
    """What becomes of a request (section 7.4)."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13

    @property
    def lasts_s(self) -> int:
        """How long a client should expect it to hold (section 7.4)."""
        return SHORT_ERROR_S if self in _PASSING else LONG_ERROR_S


_PASSING = (
    Result.NETWORK_FAILURE, Result.NO_RESOURCES, Result.USER_EX_QUOTA, Result.CANNOT_PROVIDE_EXTERNAL
)  # fmt: skip


class Refused(Exception):
    """A request that is answered with an error, `result`."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.name)
        self.result = result


class Filter(NamedTuple):
    """Remotes that may use a mapping: the first `prefix` bits of an IPv4 address, and a port, 0 for any.

    A prefix of None takes all filters away.
    """

    prefix: int | None
    address: int = 0
    port: int = 0

    def data(self) -> bytes:
        return _FILTER.pack(0 if self.prefix is None else 96 + self.prefix, self.port, mapped(self.address))


class Option(NamedTuple):
    """An option and what stands in it."""

    code: int
    data: bytes = b""

    def emit(self) -> bytes:
        return _OPTION.pack(self.code, len(self.data)) + self.data + bytes(-len(self.data) % 4)


class Mapping(NamedTuple):
    """What a MAP or PEER request and its answer have in common; addresses are as on the wire, 16 octets."""

    nonce: bytes
    protocol: int
    inside_port: int
    outside_port: int
    outside_address: bytes

    def emit(self) -> bytes:
        return _MAPPING.pack(*self)


class Request(NamedTuple):
    """A request. `client` is what it takes for its own address; the last is a PEER's remote, port and address."""

    opcode: Opcode
    lifetime: int
    client: bytes
    mapping: Mapping | None = None
    options: tuple[Option, ...] = ()
    remote: tuple[int, bytes] | None = None

    def emit(self) -> bytes:
        octets = _REQUEST.pack(VERSION, self.opcode, 0, self.lifetime, self.client) + self._data()
        return octets + b"".join(option.emit() for option in self.options)

    def _data(self) -> bytes:
        data = self.mapping.emit() if self.mapping is not None else b""
        return data + _PEER.pack(*self.remote) if self.remote is not None else data

    def has(self, code: Code) -> bool:
        return any(option.code == code for option in self.options)

    def filters(self) -> list[Filter]:
        """Return the filters in the order of the message. Raises Refused for one that is none of IPv4 remotes."""
        return [_read_filter(option.data) for option in self.options if option.code == Code.FILTER]


def mapped(address: int) -> bytes:
    """Return an IPv4 address as on the wire."""
    return _MAPPED + address.to_bytes(4, "big")


def unmapped(octets: bytes) -> int | None:
    """Return the IPv4 address that stands on the wire, None if it is one of IPv6."""
    return int.from_bytes(octets[12:], "big") if octets[:12] == _MAPPED else None


def is_request(octets: bytes) -> bool:
    """Whether a datagram is to be answered at all: one with a version and an opcode, and no answer (section 8.2)."""
    return len(octets) >= 2 and not octets[1] & _ANSWER


def parse(octets: bytes) -> Request:
    """Return the request in a datagram that `is_request`. Raises Refused, in the order of section 8.2."""
    if octets[0] != VERSION:
        raise Refused(Result.UNSUPP_VERSION)
    if not _REQUEST.size <= len(octets) <= LARGEST or len(octets) % 4:
        raise Refused(Result.MALFORMED_REQUEST)
    _, opcode, _, lifetime, client = _REQUEST.unpack_from(octets)
    if opcode not in Opcode.__members__.values():
        raise Refused(Result.UNSUPP_OPCODE)
    at, mapping, remote = _REQUEST.size, None, None
    if opcode != Opcode.ANNOUNCE:
        size = _MAPPING.size + (_PEER.size if opcode == Opcode.PEER else 0)
        if len(octets) < at + size:
            raise Refused(Result.MALFORMED_REQUEST)
        mapping = Mapping(*_MAPPING.unpack_from(octets, at))
        remote = _PEER.unpack_from(octets, at + _MAPPING.size) if opcode == Opcode.PEER else None
        at += size
    options = tuple(_known(Opcode(opcode), _options(octets, at)))
    return Request(Opcode(opcode), lifetime, client, mapping, options, remote)


def _options(octets: bytes, at: int) -> Iterator[Option]:
    """Yield the options from here on. Raises Refused for one that is cut short."""
    while at < len(octets):
        if at + _OPTION.size > len(octets):
            raise Refused(Result.MALFORMED_OPTION)
        code, length = _OPTION.unpack_from(octets, at)
        at += _OPTION.size
        if at + length > len(octets):
            raise Refused(Result.MALFORMED_OPTION)
        yield Option(code, octets[at : at + length])
        at += length + -length % 4


def _known(opcode: Opcode, options: Iterable[Option]) -> Iterator[Option]:
    """Yield what of the options we act on. Raises Refused for one that may not be ignored, or not be so."""
    seen: set[int] = set()
    for option in options:
        if option.code not in _OPTIONS_OF[opcode]:
            if option.code >= FIRST_OPTIONAL:
                continue
            is_misplaced = option.code in _LENGTHS
            raise Refused(Result.MALFORMED_OPTION if is_misplaced else Result.UNSUPP_OPTION)
        if len(option.data) != _LENGTHS[Code(option.code)] or (option.code in _ONCE and option.code in seen):
            raise Refused(Result.MALFORMED_OPTION)
        seen.add(option.code)
        yield option


def _read_filter(data: bytes) -> Filter:
    prefix, port, octets = _FILTER.unpack(data)
    address = unmapped(octets)
    if prefix == 0:
        return Filter(None)
    if address is None or not 96 <= prefix <= 128:
        raise Refused(Result.MALFORMED_OPTION)
    return Filter(prefix - 96, address, port)


# -- answers -----------------------------------------------------------------------------------------------------------


def answer(request: Request, lifetime: int, epoch: int, mapping: Mapping | None = None) -> bytes:
    """Return the answer to a request that is granted for so long, with what was granted as its mapping."""
    granted = request._replace(mapping=mapping)
    octets = _RESPONSE.pack(VERSION, _ANSWER | request.opcode, 0, Result.SUCCESS, lifetime, epoch) + granted._data()
    return octets + b"".join(option.emit() for option in request.options)


def announcement(epoch: int) -> bytes:
    """Return what tells everybody that mappings may be others now (section 14.1.2)."""
    return _RESPONSE.pack(VERSION, _ANSWER | Opcode.ANNOUNCE, 0, Result.SUCCESS, 0, epoch)


def refusal(octets: bytes, result: Result, epoch: int, lifetime: int | None = None) -> bytes:
    """Return the answer to a request that is refused: a copy of it, with the result (section 8.3).

    lifetime: how long that is going to last, if not what is usual.
    """
    lasts = result.lasts_s if lifetime is None else lifetime
    header = _RESPONSE.pack(VERSION, _ANSWER | octets[1], 0, result, lasts, epoch)
    copied = octets[len(header) : LARGEST]
    return header + copied + bytes(-len(copied) % 4)
