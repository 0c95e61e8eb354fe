"""TCP resets for inside hosts whose sessions we had to close, so that their programs need not wait for a dead peer."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

import numpy as np

from fastmasq.clock import now_ns
from fastmasq.daemon import listing
from fastmasq.path.forwarder import Forwarder
from fastmasq.table.keys import ends_of
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import INBOUND, OUTBOUND
from fastmasq.wire.numbers import CLASSES
from fastmasq.wire.sums import internet_checksum, pseudo_header_sum

_RST = 0x04
_TTL = 64
_BUNCH = 256  # sessions between two looks at the clock


def reset_segments(row: np.void) -> list[bytes]:
    """Return the IPv4 packets that reset the inside end of a session as its peer would (RFC 9293 section 3.10.7).

    It believes only the sequence number that it expects next (RFC 5961 section 3.2). That is the end of what has been
    sent to it; or, if that got lost, what it acknowledged last. Nothing is returned for a session that never had both.
    """
    acknowledged, sent = int(row["tcp"][OUTBOUND]["ack"]), int(row["tcp"][INBOUND]["end"])
    if CLASSES[row["port_class"]] != "tcp" or not acknowledged:
        return []
    return [_segment(row, sequence) for sequence in dict.fromkeys((sent or acknowledged, acknowledged))]


def _segment(row: np.void, sequence: int) -> bytes:
    inside, inside_port, remote, remote_port = ends_of(row["flow"][OUTBOUND])
    tcp = struct.pack(">HHIIBBHHH", remote_port, inside_port, sequence, 0, 5 << 4, _RST, 0, 0, 0)
    checksum = internet_checksum(tcp, pseudo_header_sum(remote, inside, socket.IPPROTO_TCP, len(tcp)))
    tcp = tcp[:16] + struct.pack(">H", checksum) + tcp[18:]
    # the kernel fills in id and header checksum of a raw packet
    header = struct.pack(">BBHHHBBHII", 0x45, 0, 20 + len(tcp), 0, 0, _TTL, socket.IPPROTO_TCP, 0, remote, inside)
    return header + tcp


def end_all(table: MasqTable, forwarder: Forwarder, until_ns: int) -> tuple[int, int]:
    """Reset the inside ends of all TCP sessions; return how many were told, and how many were not before `until_ns`.

    The path must stand still, or what it sends meanwhile makes the numbers old.
    """
    told = left = 0
    for rows in listing.copies(table, forwarder):
        chosen = listing.masqueraded(listing.select(rows, None, "tcp", None))
        for first in range(0, len(chosen), _BUNCH):
            bunch = chosen[first : first + _BUNCH]
            if now_ns() < until_ns:
                told += send_resets(bunch)
            else:
                left += len(bunch)
    return told, left


def send_resets(rows: Iterable[np.void]) -> int:
    """Reset the inside end of each TCP session that has acknowledged anything; return how many were told."""
    told = 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setblocking(False)
        for row in rows:
            packets = reset_segments(row)
            try:
                for packet in packets:
                    raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
            except OSError:
                continue  # no way to that host: it will find out by itself
            told += bool(packets)
    return told
