"""Readable builders for IPv4, TCP, UDP and ICMP packets, and a decoder that checks every checksum: bytes in, bytes out.

Builders make correct packets; every field can be overridden to make a wrong one. Endpoints are written "10.0.0.2:4000",
addresses "10.0.0.2". A checksum argument is the number to write, or `BAD`: the right checksum plus a fixed error, so
that a translator which updates checksums incrementally turns a BAD packet into the BAD form of the translated packet.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from operator import attrgetter

from fastmasq.wire.numbers import ICMP, TCP, UDP

PROTOCOL_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}

ECHO_REPLY, UNREACHABLE, SOURCE_QUENCH, REDIRECT, ECHO = 0, 3, 4, 5, 8
TIME_EXCEEDED, PARAMETER_PROBLEM = 11, 12
ICMP_REQUESTS = frozenset({8, 13, 15, 17})
ICMP_REPLIES = frozenset({0, 14, 16, 18})
ICMP_QUERIES = ICMP_REQUESTS | ICMP_REPLIES
ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})  # types that carry a quoted packet

FLAG_BITS = {"F": 0x01, "S": 0x02, "R": 0x04, "P": 0x08, "A": 0x10, "U": 0x20, "E": 0x40, "C": 0x80}
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

BAD = "bad"
BAD_ERROR = 0x1111  # what BAD adds to a right checksum, in one's-complement arithmetic

Checksum = int | str | None


class Malformed(ValueError):
    """The bytes are not a packet that can be decoded; str() says where it breaks."""


# --- numbers -----------------------------------------------------------------------------------------------------


@functools.lru_cache(1024)
def to_address(text: str | int) -> int:
    """Return the 32-bit number of a dotted address; numbers pass through."""
    if isinstance(text, int):
        return text
    parts = [int(part) for part in text.split(".")]
    if len(parts) != 4 or any(not 0 <= part <= 255 for part in parts):
        raise ValueError(f"{text!r} is not an IPv4 address")
    return int.from_bytes(bytes(parts), "big")


@functools.lru_cache(1024)
def dotted(address: int) -> str:
    return ".".join(str(byte) for byte in address.to_bytes(4, "big"))


def to_endpoint(text: str | tuple[str | int, int]) -> tuple[int, int]:
    """Return (address, port) of "10.0.0.2:4000"; pairs pass through."""
    if isinstance(text, tuple):
        return to_address(text[0]), text[1]
    address, _, port = text.partition(":")
    return to_address(address), int(port)


def ones_sum(data: bytes) -> int:
    """Return the folded one's-complement sum of big-endian 16-bit words; an odd octet is padded (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def internet_checksum(data: bytes) -> int:
    """Return the RFC 1071 checksum of data whose own checksum field is zero."""
    return ~ones_sum(data) & 0xFFFF


def pseudo_header(source: int, destination: int, protocol: int, length: int) -> bytes:
    return struct.pack(">IIBBH", source, destination, 0, protocol, length)


def _chosen(right: int, wanted: Checksum) -> int:
    if wanted is None:
        return right
    if wanted == BAD:
        return ones_sum(struct.pack(">HH", right, BAD_ERROR)) % 0xFFFF
    return int(wanted)


def _with_checksum(segment: bytes, at: int, right: int, wanted: Checksum) -> bytes:
    return segment[:at] + struct.pack(">H", _chosen(right, wanted)) + segment[at + 2 :]


def pattern(length: int) -> bytes:
    """Return the payload used where only its length matters."""
    return bytes(i * 7 & 0xFF for i in range(length))


# --- builders ----------------------------------------------------------------------------------------------------


def ipv4(
    source: str | int,
    destination: str | int,
    protocol: int,
    payload: bytes = b"",
    *,
    ttl: int = 64,
    tos: int = 0,
    identification: int = 0,
    df: bool = False,
    mf: bool = False,
    offset: int = 0,
    options: bytes = b"",
    version: int = 4,
    header_length: int | None = None,
    total_length: int | None = None,
    ip_checksum: Checksum = None,
) -> bytes:
    """Return an IPv4 packet. Lengths and `offset` are in octets; options are padded to a multiple of four."""
    options += b"\0" * (-len(options) % 4)
    real_length = 20 + len(options)
    header = struct.pack(
        ">BBHHHBBHII",
        version << 4 | (real_length if header_length is None else header_length) // 4,
        tos,
        real_length + len(payload) if total_length is None else total_length,
        identification,
        df << 14 | mf << 13 | offset // 8,
        ttl,
        protocol,
        0,
        to_address(source),
        to_address(destination),
    )
    header += options
    return _with_checksum(header, 10, internet_checksum(header), ip_checksum) + payload


def tcp(
    source: str | tuple[str | int, int],
    destination: str | tuple[str | int, int],
    flags: str | int = "A",
    *,
    seq: int = 0,
    ack: int = 0,
    window: int = 65535,
    urgent: int = 0,
    scale: int | None = None,
    tcp_options: bytes = b"",
    payload: bytes = b"",
    data_offset: int | None = None,
    checksum: Checksum = None,
    **ip,
) -> bytes:
    """Return a TCP segment; `flags` are letters of FSRPAUEC; `scale` adds the window scale option (RFC 7323)."""
    (saddr, sport), (daddr, dport) = to_endpoint(source), to_endpoint(destination)
    if scale is not None:
        tcp_options += bytes((1, 3, 3, scale))
    tcp_options += b"\0" * (-len(tcp_options) % 4)
    bits = flags if isinstance(flags, int) else sum(FLAG_BITS[letter] for letter in set(flags))
    real_offset = 20 + len(tcp_options)
    segment = struct.pack(
        ">HHIIBBHHH",
        sport,
        dport,
        seq & 0xFFFFFFFF,
        ack & 0xFFFFFFFF,
        (real_offset if data_offset is None else data_offset) // 4 << 4,
        bits,
        window,
        0,
        urgent,
    )
    segment += tcp_options + payload
    right = internet_checksum(pseudo_header(saddr, daddr, TCP, len(segment)) + segment)
    return ipv4(saddr, daddr, TCP, _with_checksum(segment, 16, right, checksum), **ip)


def udp(
    source: str | tuple[str | int, int],
    destination: str | tuple[str | int, int],
    payload: bytes = b"",
    *,
    length: int | None = None,
    checksum: Checksum = None,
    **ip,
) -> bytes:
    """Return a UDP datagram; checksum=0 means none (RFC 768)."""
    (saddr, sport), (daddr, dport) = to_endpoint(source), to_endpoint(destination)
    datagram = struct.pack(">HHHH", sport, dport, 8 + len(payload) if length is None else length, 0) + payload
    right = internet_checksum(pseudo_header(saddr, daddr, UDP, len(datagram)) + datagram)
    if checksum != 0:
        checksum = _chosen(right, checksum) or 0xFFFF
    return ipv4(saddr, daddr, UDP, _with_checksum(datagram, 6, right, checksum), **ip)


def icmp(
    source: str | int,
    destination: str | int,
    kind: int,
    code: int = 0,
    *,
    rest: int = 0,
    payload: bytes = b"",
    checksum: Checksum = None,
    **ip,
) -> bytes:
    """Return any ICMP message; `rest` is the 32-bit word after the checksum."""
    message = struct.pack(">BBHI", kind, code, 0, rest) + payload
    return ipv4(source, destination, ICMP, _with_checksum(message, 2, internet_checksum(message), checksum), **ip)


def ping(
    source: str | int,
    destination: str | int,
    identifier: int,
    *,
    kind: int = ECHO,
    seq: int = 0,
    payload: bytes = b"",
    **rest,
) -> bytes:
    """Return an ICMP query or its reply, which carry an identifier and a sequence number."""
    return icmp(source, destination, kind, rest=identifier << 16 | seq, payload=payload, **rest)


def icmp_error(
    source: str | int,
    destination: str | int,
    kind: int,
    code: int,
    quote: bytes,
    *,
    mtu: int = 0,
    **rest,
) -> bytes:
    """Return an ICMP error about the packet `quote`, which may be cut short; `mtu` is the next hop's (RFC 1191)."""
    return icmp(source, destination, kind, code, rest=mtu, payload=quote, **rest)


def cut(packet: bytes, transport_octets: int = 8) -> bytes:
    """Return the IPv4 header and the first octets of what follows: the least an ICMP error quotes (RFC 792)."""
    return packet[: (packet[0] & 15) * 4 + transport_octets]


def with_ip_checksum(packet: bytes) -> bytes:
    """Return the packet with a right IPv4 header checksum, whatever else is wrong with it."""
    end = (packet[0] & 15) * 4
    header = packet[:10] + b"\0\0" + packet[12:end]
    return _with_checksum(header, 10, internet_checksum(header), None) + packet[end:]


# --- decoder -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packet:
    """A decoded packet. Fields a protocol does not have are None; for ICMP queries both ports are the identifier."""

    raw: bytes
    header_length: int
    tos: int
    identification: int
    df: bool
    mf: bool
    offset: int
    ttl: int
    protocol: int
    source: int
    destination: int
    options: bytes
    body: bytes  # all octets after the IPv4 header
    source_port: int | None = None
    destination_port: int | None = None
    flags: int | None = None
    seq: int | None = None
    ack: int | None = None
    window: int | None = None
    kind: int | None = None  # ICMP type
    code: int | None = None
    rest: int | None = None  # ICMP: the word after the checksum
    payload: bytes = b""  # after the transport header

    @property
    def is_query(self) -> bool:
        return self.protocol == ICMP and self.kind in ICMP_QUERIES

    @property
    def is_error(self) -> bool:
        return self.protocol == ICMP and self.kind in ICMP_ERRORS

    @property
    def quote(self) -> bytes:
        """Return the quoted packet of an ICMP error, as far as it goes."""
        if not self.is_error:
            raise Malformed("only ICMP errors quote a packet")
        return self.payload

    @property
    def mtu(self) -> int:
        return (self.rest or 0) & 0xFFFF

    def has_flags(self, letters: str) -> bool:
        return self.flags is not None and all(self.flags & FLAG_BITS[letter] for letter in letters)


def decode(packet: bytes) -> Packet:
    """Decode a packet (cut quotes as well, as far as they go). Raises Malformed where the lengths do not fit."""
    if len(packet) < 20:
        raise Malformed(f"{len(packet)} octets are less than an IPv4 header")
    first, tos, total, identification, fragment, ttl, protocol, _, source, destination = struct.unpack(
        ">BBHHHBBHII", packet[:20]
    )
    header_length = (first & 15) * 4
    if first >> 4 != 4:
        raise Malformed(f"version {first >> 4}")
    if header_length < 20 or header_length > len(packet):
        raise Malformed(f"header length {header_length}")
    if total < header_length:
        raise Malformed(f"total length {total}")
    body = packet[header_length : max(total, header_length)]
    fields = dict(
        raw=packet,
        header_length=header_length,
        tos=tos,
        identification=identification,
        df=bool(fragment & 0x4000),
        mf=bool(fragment & 0x2000),
        offset=(fragment & 0x1FFF) * 8,
        ttl=ttl,
        protocol=protocol,
        source=source,
        destination=destination,
        options=packet[20:header_length],
        body=body,
    )
    if not fields["offset"]:
        fields.update(_transport_fields(protocol, body))
    return Packet(**fields)


def _transport_fields(protocol: int, body: bytes) -> dict:
    fields: dict = {}
    if protocol in (TCP, UDP) and len(body) >= 4:
        fields["source_port"], fields["destination_port"] = struct.unpack(">HH", body[:4])
    if protocol == TCP and len(body) >= 20:
        fields["seq"], fields["ack"], offset, fields["flags"], fields["window"] = struct.unpack(">IIBBH", body[4:16])
        fields["payload"] = body[(offset >> 4) * 4 :]
    if protocol == UDP and len(body) >= 8:
        fields["payload"] = body[8:]
    if protocol == ICMP and len(body) >= 8:
        fields["kind"], fields["code"], _, fields["rest"] = struct.unpack(">BBHI", body[:8])
        fields["payload"] = body[8:]
        if fields["kind"] in ICMP_QUERIES:
            fields["source_port"] = fields["destination_port"] = fields["rest"] >> 16
    return fields


# --- checks ------------------------------------------------------------------------------------------------------


def problems(packet: bytes) -> list[str]:
    """Return everything that is wrong with a packet: lengths, and all checksums, those of a quoted packet included."""
    try:
        decoded = decode(packet)
    except Malformed as error:
        return [str(error)]
    found = []
    if struct.unpack(">H", packet[2:4])[0] != len(packet):
        found.append(f"total length {struct.unpack('>H', packet[2:4])[0]}, but {len(packet)} octets")
    found += _header_problems(decoded)
    found += _transport_problems(decoded)
    return found


def quote_problems(quote: bytes) -> list[str]:
    """Return what is wrong with a quoted packet, which may be cut short: checksums as far as they can be checked."""
    try:
        decoded = decode(quote)
    except Malformed as error:
        return [f"quote: {error}"]
    found = _header_problems(decoded)
    if len(quote) >= struct.unpack(">H", quote[2:4])[0]:
        found += _transport_problems(decoded)
    return [f"quote: {problem}" for problem in found]


def _header_problems(packet: Packet) -> list[str]:
    header = packet.raw[: packet.header_length]
    return [] if ones_sum(header) == 0xFFFF else ["IPv4 checksum"]


def _transport_problems(packet: Packet) -> list[str]:
    if packet.offset or packet.mf:
        return []
    body = packet.body
    least = {TCP: 20, UDP: 8, ICMP: 8}.get(packet.protocol, 0)
    if len(body) < least:
        return [f"{PROTOCOL_NAMES[packet.protocol]} header cut short"]
    if packet.protocol == UDP:
        length, checksum = struct.unpack(">HH", body[4:8])
        if not 8 <= length <= len(body):
            return ["UDP length"]
        if checksum == 0:
            return []
        body = body[:length]
    if packet.protocol == TCP and not 20 <= (body[12] >> 4) * 4 <= len(body):
        return ["TCP data offset"]
    if packet.protocol in (TCP, UDP):
        body = pseudo_header(packet.source, packet.destination, packet.protocol, len(body)) + body
    elif packet.protocol != ICMP:
        return []
    found = [] if ones_sum(body) == 0xFFFF else [f"{PROTOCOL_NAMES[packet.protocol].upper()} checksum"]
    if packet.is_error:
        found += quote_problems(packet.quote)
    return found


def reassemble(pieces: list[bytes]) -> bytes:
    """Return the packet that was cut into `pieces`, in order and without gaps. Raises Malformed if they do not fit.

    It may be a fragment itself: its offset is the first piece's, and more follow if the last piece says so.
    """
    whose = attrgetter("source", "destination", "protocol", "identification", "tos", "ttl", "df")
    decoded = [decode(piece) for piece in pieces]
    first, last = decoded[0], decoded[-1]
    body = b""
    for piece in decoded:
        if whose(piece) != whose(first):
            raise Malformed("the pieces belong to different packets")
        if piece.offset != first.offset + len(body):
            raise Malformed(f"a piece at {piece.offset} where {first.offset + len(body)} was due")
        if not piece.mf and piece is not last:
            raise Malformed("a piece in the middle says it is the last")
        body += piece.body
    whole = bytearray(first.raw[: first.header_length] + body)
    whole[2:4] = struct.pack(">H", len(whole))
    whole[6:8] = struct.pack(">H", first.df << 14 | last.mf << 13 | first.offset // 8)
    return with_ip_checksum(bytes(whole))
