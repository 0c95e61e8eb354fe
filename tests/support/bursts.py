"""Bursts of UDP: datagrams that a program sends in one call, and that pass the kernel as one packet (UDP_SEGMENT)."""

from __future__ import annotations

import socket
import struct

from tests.support.lab_network import SOL_UDP, UDP_SEGMENT

SEGMENT, SEGMENTS = 1200, 40


def send_segmented(sender: socket.socket, remote: tuple[str, int]) -> list[bytes]:
    """Have the kernel cut one large send into datagrams of SEGMENT octets (udp(7), UDP_SEGMENT); return them."""
    pieces = [bytes([number]) * SEGMENT for number in range(SEGMENTS)]
    control = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", SEGMENT))]
    sender.sendmsg([b"".join(pieces)], control, 0, remote)
    return pieces


def receive_all(receiver: socket.socket, count: int) -> list[bytes]:
    """Return the next datagrams, as many as come of `count` before none comes for a while."""
    received = []
    receiver.settimeout(0.5)
    try:
        while len(received) < count:
            received.append(receiver.recv(65536))
    except TimeoutError:
        pass
    return received
