"""What a soak overhears outside that should have stayed inside: packets with private sources."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from fastmasq.lab import hosts
from tests.support.packets import to_address

ENOUGH = 20
PRIVATE = (("10.0.0.0", 8), ("172.16.0.0", 12), ("192.168.0.0", 16), ("169.254.0.0", 16))  # RFC 1918, RFC 3927
SO_ATTACH_FILTER = 26
_LOAD, _AND, _EQUALS, _RETURN = 0x20, 0x54, 0x15, 0x06  # of a packet filter (Linux, filter.txt)
ETH_P_IP = 0x0800


class Leaks:
    """Hears what comes to eth0 of a namespace with a private source. `found` has a line for each, up to ENOUGH."""

    def __init__(self, namespace: str) -> None:
        self.found: list[str] = []
        self._sniffer = _sniffer(namespace)

    def look(self, now: float) -> None:
        """Note what has come; `now` is for the line."""
        while len(self.found) < ENOUGH:
            try:
                packet = self._sniffer.recv(65_600)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # said once, when its link went down; it hears again
                    raise
                continue
            source, destination = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
            self.found.append(f"{source} to {destination}, protocol {packet[9]}, at {now:.0f} s")

    def close(self) -> None:
        self._sniffer.close()


def _sniffer(namespace: str) -> socket.socket:
    """Return a socket whose filter lets private sources through."""
    code = []
    for number, (network, length) in enumerate(PRIVATE):
        mask = 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF
        found = 3 * (len(PRIVATE) - number) - 2  # how far it is to the last line
        code += [(_LOAD, 0, 0, 12), (_AND, 0, 0, mask), (_EQUALS, found, 0, to_address(network))]
    code += [(_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFF)]
    lines = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    with hosts.entered(namespace):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(code), ctypes.addressof(lines)))
    made.setblocking(False)
    made.bind(("eth0", ETH_P_IP))
    return made
