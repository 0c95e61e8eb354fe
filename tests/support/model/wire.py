"""The bytes of the specification: what a packet must look like to be touched at all, and how fields are rewritten.

Checks are made in the order written here; the first that fails names the drop reason. Checksums are never computed
from scratch but corrected for what changed (RFC 1624), so that a wrong checksum stays wrong by the same amount.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from fastmasq.wire.numbers import DCCP, ICMP, TCP, UDP, UDP_LITE

REQUESTS = {8, 13, 15, 17}  # ICMP queries with an identifier (RFC 5508 section 3)
REPLIES = {0: 8, 14: 13, 16: 15, 18: 17}  # reply: the request it answers
ERRORS = {3, 4, 11, 12}  # ICMP errors that are passed on, translated

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
FLAGS_SENT = (SYN, SYN | ACK, RST, RST | ACK, ACK, FIN | ACK, FIN | RST | ACK)  # as far as they matter

MORE_FRAGMENTS = 0x2000
LEAST_QUOTE = 8  # octets of the quoted transport header an ICMP error must contain (RFC 792)
LEAST_MTU = 68  # RFC 791: what every link can carry


class Refused(Exception):
    """The packet goes no further: the reason, and the ICMP answer its sender may get as (type, code, MTU)."""

    def __init__(self, reason: str, answer: tuple[int, int, int] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.answer = answer


@dataclass(frozen=True)
class Parsed:
    """A whole, well-formed packet. `source_id` and `destination_id` are ports, or for ICMP what stands for them:

    a request goes from (source, identifier) to (destination, request type), its reply the other way. Fragments have
    neither.
    """

    raw: bytes  # without link padding
    start: int  # where the transport header begins
    ttl: int
    df: bool
    protocol: int
    source: int
    destination: int
    source_id: int = 0
    destination_id: int = 0
    kind: int | None = None  # ICMP type
    is_fragment: bool = False
    offset: int = 0  # of a fragment, in octets

    @property
    def is_error(self) -> bool:
        return self.protocol == ICMP and self.kind in ERRORS

    @property
    def is_request(self) -> bool:
        return self.protocol == ICMP and self.kind in REQUESTS

    @property
    def is_reply(self) -> bool:
        return self.protocol == ICMP and self.kind in REPLIES


@dataclass(frozen=True)
class Segment:
    """What TCP tracking looks at; `length` counts payload only, `scale` is None unless a SYN offers one (RFC 7323)."""

    flags: int
    seq: int
    ack: int
    window: int
    length: int
    scale: int | None


# --- checks at the door ------------------------------------------------------------------------------------------


def parse(packet: bytes) -> Parsed:
    """Return the packet's fields. Raises Refused with the first thing that is wrong."""
    if len(packet) < 20:
        raise Refused("too_short")
    first, _, total, _, fragment, ttl, protocol, _, source, destination = struct.unpack(">BBHHHBBHII", packet[:20])
    if first >> 4 != 4:
        raise Refused("not_ipv4")
    start = (first & 15) * 4
    if start < 20 or start > len(packet):
        raise Refused("bad_header_length")
    if total < start or total > len(packet):
        raise Refused("bad_total_length")
    if folded_sum(packet[:start]) != 0xFFFF:
        raise Refused("bad_ip_checksum")
    check_options(packet[20:start])
    parsed = Parsed(packet[:total], start, ttl, bool(fragment & 0x4000), protocol, source, destination)
    if fragment & 0x3FFF:  # more fragments, or an offset
        return check_fragment(replace(parsed, is_fragment=True, offset=(fragment & 0x1FFF) * 8))
    return with_transport(parsed, parsed.raw[start:])


def check_options(options: bytes) -> None:
    """Refuse malformed options, and source routes (RFC 7126 section 4.3); all others pass untouched."""
    at = 0
    while at < len(options):
        if options[at] == 0:
            return
        if options[at] == 1:
            at += 1
            continue
        if at + 1 >= len(options) or options[at + 1] < 2 or at + options[at + 1] > len(options):
            raise Refused("bad_ip_options")
        if options[at] in (131, 137):
            raise Refused("source_route")
        at += options[at + 1]


def check_fragment(parsed: Parsed) -> Parsed:
    """Refuse a fragment whose place cannot be right, or whose datagram's transport header is not in its first piece."""
    body = parsed.raw[parsed.start :]
    more = struct.unpack(">H", parsed.raw[6:8])[0] & MORE_FRAGMENTS
    if not body or (more and len(body) % 8) or parsed.start + parsed.offset + len(body) > 65535:
        raise Refused("fragment_bad")
    if parsed.protocol == TCP and parsed.offset == 8:
        raise Refused("fragment_tiny")
    if parsed.offset == 0:
        try:
            with_transport(parsed, body)
        except Refused as refused:
            is_short = refused.reason == "bad_transport_header"
            raise Refused("fragment_tiny" if is_short else refused.reason) from None
    return parsed


def with_transport(parsed: Parsed, body: bytes) -> Parsed:
    """Return the packet with its ports, or identifier, after checking that its transport header is whole."""
    if len(body) < {TCP: 20, UDP: 8, ICMP: 8}.get(parsed.protocol, 0):
        raise Refused("bad_transport_header")
    if parsed.protocol == TCP and not 20 <= (body[12] >> 4) * 4 <= len(body):
        raise Refused("bad_transport_header")
    if parsed.protocol == TCP and body[13] & (FIN | SYN | RST | ACK) not in FLAGS_SENT:
        raise Refused("bad_tcp_flags")
    longest = 65535 if parsed.is_fragment else len(body)
    if parsed.protocol == UDP and not 8 <= struct.unpack(">H", body[4:6])[0] <= longest:
        raise Refused("bad_transport_header")
    return with_ids(parsed, body)


def with_ids(parsed: Parsed, body: bytes) -> Parsed:
    """Return the packet with what tells its session from others; needs the first eight octets of the body."""
    if parsed.protocol in (TCP, UDP):
        source_id, destination_id = struct.unpack(">HH", body[:4])
        return replace(parsed, source_id=source_id, destination_id=destination_id)
    if parsed.protocol != ICMP:
        return parsed
    kind, identifier = body[0], struct.unpack(">H", body[4:6])[0]
    parsed = replace(parsed, kind=kind)
    if kind in REQUESTS:
        return replace(parsed, source_id=identifier, destination_id=kind)
    if kind in REPLIES:
        return replace(parsed, source_id=REPLIES[kind], destination_id=identifier)
    return parsed


def as_whole(parsed: Parsed) -> Parsed:
    """Return the packet that a first fragment begins, with what has come of it; anything else is returned as it is."""
    if not parsed.is_fragment or parsed.offset:
        return parsed
    return replace(with_transport(parsed, parsed.raw[parsed.start :]), is_fragment=False)


def segment_of(parsed: Parsed) -> Segment:
    body = parsed.raw[parsed.start :]
    seq, ack, offset, flags, window = struct.unpack(">IIBBH", body[4:16])
    options = body[20 : (offset >> 4) * 4]
    return Segment(flags, seq, ack, window, len(body) - (offset >> 4) * 4, offered_scale(options))


def offered_scale(options: bytes) -> int | None:
    """Return the shift count of the window scale option, at most 14 (RFC 7323 section 2.3); None without one."""
    found = find_option(options, 3, 3)
    return None if found is None else min(options[found + 2], 14)


def find_option(options: bytes, kind: int, length: int) -> int | None:
    """Return where the first TCP option of a kind and length begins; None if none does before something is wrong."""
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        if at + 1 >= len(options) or options[at + 1] < 2 or at + options[at + 1] > len(options):
            return None
        if (options[at], options[at + 1]) == (kind, length):
            return at
        at += options[at + 1]
    return None


# --- ICMP errors -------------------------------------------------------------------------------------------------


def check_error(parsed: Parsed) -> Parsed:
    """Return the packet quoted in an ICMP error. Raises Refused when error or quote are damaged (RFC 5508 REQ-3).

    The quote may be cut anywhere after eight octets of its transport header; its transport checksum is not looked at.
    A fragmentation-needed must name a possible MTU, or none at all (RFC 1191 section 4). A quote of an ICMP packet
    without an identifier is returned with protocol -1: it belongs to no session.
    """
    if folded_sum(parsed.raw[parsed.start :]) != 0xFFFF:
        raise Refused("bad_icmp_checksum")
    quote = parsed.raw[parsed.start + 8 :]
    if len(quote) < 20 or quote[0] >> 4 != 4:
        raise Refused("bad_quoted_header")
    start = (quote[0] & 15) * 4
    if start < 20 or len(quote) < start + LEAST_QUOTE or folded_sum(quote[:start]) != 0xFFFF:
        raise Refused("bad_quoted_header")
    fragment, protocol = struct.unpack(">H", quote[6:8])[0], quote[9]
    if fragment & 0x1FFF:
        raise Refused("bad_quoted_header")  # a later fragment: nobody knows its ports
    kind, code = parsed.raw[parsed.start : parsed.start + 2]
    mtu = struct.unpack(">H", parsed.raw[parsed.start + 6 : parsed.start + 8])[0]
    if (kind, code) == (3, 4) and 0 < mtu < LEAST_MTU:
        raise Refused("bad_mtu_in_icmp")
    source, destination = struct.unpack(">II", quote[12:20])
    quoted = Parsed(quote, start, quote[8], bool(fragment & 0x4000), protocol, source, destination)
    quoted = with_ids(quoted, quote[start:])
    if protocol == ICMP and not (quoted.is_request or quoted.is_reply):
        return replace(quoted, protocol=-1)
    return quoted


# --- rewriting ---------------------------------------------------------------------------------------------------


def folded_sum(data: bytes) -> int:
    """Return the one's-complement sum of big-endian words; an odd octet is padded with zero (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def corrected(checksum: int, old: bytes, new: bytes) -> int:
    """Return a checksum after `old` became `new`: HC' = ~(~HC + ~m + m'), equation 3 of RFC 1624."""
    total = ~checksum & 0xFFFF
    for (before,), (after,) in zip(struct.iter_unpack(">H", old), struct.iter_unpack(">H", new), strict=True):
        total += (~before & 0xFFFF) + after
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Rewriter:
    """A packet being rewritten in place; every change is carried into the checksums that cover it."""

    def __init__(self, raw: bytes, start: int, protocol: int) -> None:
        self.raw = bytearray(raw)
        self.start = start
        self.protocol = protocol

    def _write(self, at: int, new: bytes, *checksum_fields: int) -> None:
        """Write `new` at `at` (an even offset) and correct the checksums at `checksum_fields`."""
        old = bytes(self.raw[at : at + len(new)])
        self.raw[at : at + len(new)] = new
        for field in checksum_fields:
            if field + 2 > len(self.raw):
                continue  # not inside a quote that was cut short
            checksum = struct.unpack(">H", self.raw[field : field + 2])[0]
            if self.protocol in (UDP, UDP_LITE) and field == self.start + 6:
                if checksum == 0:
                    continue  # no checksum (RFC 768)
                changed = corrected(checksum, old, new) or 0xFFFF
            else:
                changed = corrected(checksum, old, new)
            self.raw[field : field + 2] = struct.pack(">H", changed)

    def _address_checksums(self) -> tuple[int, ...]:
        covered = self.protocol in (TCP, UDP, UDP_LITE, DCCP)
        return (10, *self._transport_checksum()) if covered else (10,)

    def _transport_checksum(self) -> tuple[int, ...]:
        return (self.start + {TCP: 16, ICMP: 2}.get(self.protocol, 6),)

    def source(self, address: int, id: int | None) -> None:
        self._write(12, struct.pack(">I", address), *self._address_checksums())
        if id is not None:
            self._write(self._id_offset(0), struct.pack(">H", id), *self._transport_checksum())

    def destination(self, address: int, id: int | None) -> None:
        self._write(16, struct.pack(">I", address), *self._address_checksums())
        if id is not None:
            self._write(self._id_offset(2), struct.pack(">H", id), *self._transport_checksum())

    def _id_offset(self, port_offset: int) -> int:
        return self.start + (4 if self.protocol == ICMP else port_offset)

    def hop(self) -> None:
        """Decrement the TTL; that of what goes to a program of the host nobody has looked at, so it may wrap."""
        self._write(8, bytes(((self.raw[8] - 1) % 256, self.raw[9])), 10)

    def identification(self, number: int) -> None:
        self._write(4, struct.pack(">H", number), 10)

    @property
    def is_fragment(self) -> bool:
        return struct.unpack(">H", self.raw[6:8])[0] & 0x3FFF != 0

    @property
    def may_be_cut(self) -> bool:
        """Whether it is whole, and routers may cut it."""
        return struct.unpack(">H", self.raw[6:8])[0] & 0x7FFF == 0

    def lower_mss(self, limit: int) -> None:
        """Lower the MSS that a SYN offers, if it does and offers more (RFC 9293 section 3.7.1)."""
        header = self.raw[self.start : self.start + (self.raw[self.start + 12] >> 4) * 4]
        found = find_option(header[20:], 2, 4)
        if not header[13] & SYN or found is None:
            return
        at = 20 + found + 2
        if struct.unpack(">H", header[at : at + 2])[0] <= limit:
            return
        header[at : at + 2] = struct.pack(">H", limit)
        self._write(self.start + 20, bytes(header[20:]), *self._transport_checksum())

    def quote(self, rewritten: bytes) -> None:
        """Put the rewritten quote into an ICMP error; its length is the same."""
        at = self.start + 8
        old, new = bytes(self.raw[at:]), rewritten
        if len(old) % 2:
            old, new = old + b"\0", new + b"\0"
        self.raw[at:] = rewritten
        field = self.start + 2
        checksum = struct.unpack(">H", self.raw[field : field + 2])[0]
        self.raw[field : field + 2] = struct.pack(">H", corrected(checksum, old, new))

    def bytes(self) -> bytes:
        return bytes(self.raw)


def fragments(packet: bytes, mtu: int) -> tuple[bytes, ...]:
    """Return the packet, cut into pieces that fit `mtu`, first piece first (RFC 791 section 3.2).

    The packet may be a fragment itself: its pieces are then fragments of the datagram it is from.
    """
    if len(packet) <= mtu:
        return (packet,)
    start = (packet[0] & 15) * 4
    fragment = struct.unpack(">H", packet[6:8])[0]
    room = (mtu - start) // 8 * 8
    pieces = []
    for at in range(0, len(packet) - start, room):
        body = packet[start + at : start + at + room]
        is_last = start + at + len(body) == len(packet) and not fragment & MORE_FRAGMENTS
        header = packet[:start] if at == 0 else packet[:20] + copied_options(packet[20:start])
        flags = fragment & ~MORE_FRAGMENTS | (0 if is_last else MORE_FRAGMENTS)
        pieces.append(_piece(header, flags + at // 8, body))
    return tuple(pieces)


def copied_options(options: bytes) -> bytes:
    """Return the options of a later fragment: those with the copied bit stay, others become no-operations."""
    kept = bytearray(options)
    at = 0
    while at < len(options) and options[at] != 0:
        length = 1 if options[at] == 1 else options[at + 1]
        if not options[at] & 0x80:
            kept[at : at + length] = b"\1" * length
        at += length
    return bytes(kept)


def _piece(header: bytes, flags_and_offset: int, body: bytes) -> bytes:
    bare = header[:2] + struct.pack(">H", len(header) + len(body)) + header[4:6] + struct.pack(">H", flags_and_offset)
    bare += header[8:10] + b"\0\0" + header[12:]
    checksum = ~folded_sum(bare) & 0xFFFF
    return bare[:10] + struct.pack(">H", checksum) + bare[12:] + body
