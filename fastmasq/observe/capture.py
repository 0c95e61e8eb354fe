"""Captures for tcpdump, Wireshark and scapy: pcapng files of IPv4 packets, with the link and the way of each.

Format: draft-ietf-opsawg-pcapng, in this host's byte order; one interface description for each link, times in ns.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from fastmasq.errors import ConfigurationError, KernelError

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6  # types of blocks
_BYTE_ORDER, _VERSION, _UNKNOWN_LENGTH = 0x1A2B3C4D, (1, 0), -1
_IPV4 = 228  # link type: packets begin with their IPv4 header
_LONGEST = 65_535
_END, _IF_NAME, _IF_TSRESOL, _EPB_FLAGS = 0, 2, 9, 2  # options
_NANOSECONDS = b"\x09"  # the resolution of time, as the power of ten
_RECEIVED, _SENT = 1, 2


class Capture:
    """A pcapng file that packets of some links are written to."""

    def __init__(self, path: str, links: Sequence[str]) -> None:
        """Begin the file anew. Raises ConfigurationError when it cannot be made."""
        self._path = path
        self._number = {link: number for number, link in enumerate(links)}
        try:
            self._file = open(path, "wb")  # noqa: SIM115 - it is closed by __exit__
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}; name a file that can be written") from None
        self._put(_block(_SECTION, struct.pack("=IHHq", _BYTE_ORDER, *_VERSION, _UNKNOWN_LENGTH)))
        for link in links:
            options = [(_IF_NAME, link.encode()), (_IF_TSRESOL, _NANOSECONDS)]
            self._put(_block(_INTERFACE, struct.pack("=HHI", _IPV4, 0, _LONGEST), options))

    def add(self, time_ns: int, link: str, sent: bool, packet: bytes) -> None:
        """Write a packet that was sent or received on a link, nanoseconds since 1970. Raises KernelError."""
        head = struct.pack("=IIIII", self._number[link], time_ns >> 32, time_ns & 0xFFFFFFFF, len(packet), len(packet))
        flags = struct.pack("=I", _SENT if sent else _RECEIVED)
        self._put(_block(_PACKET, head + _padded(packet), [(_EPB_FLAGS, flags)]))

    def flush(self) -> None:
        """Let other programs read what has been written. Raises KernelError."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from None

    def _put(self, block: bytes) -> None:
        try:
            self._file.write(block)
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> KernelError:
        return KernelError(f"{self._path}: {error.strerror}; the capture ends here")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError as failure:
            if error is None:
                raise self._failed(failure) from None


def _block(kind: int, body: bytes, options: Sequence[tuple[int, bytes]] = ()) -> bytes:
    """Return a block with its length before and behind."""
    listed = b"".join(struct.pack("=HH", code, len(value)) + _padded(value) for code, value in options)
    end = struct.pack("=HH", _END, 0) if options else b""
    length = struct.pack("=I", len(body) + len(listed) + len(end) + 12)
    return struct.pack("=I", kind) + length + body + listed + end + length


def _padded(octets: bytes) -> bytes:
    """Return octets with zeros up to a multiple of four."""
    return octets + bytes(-len(octets) % 4)
