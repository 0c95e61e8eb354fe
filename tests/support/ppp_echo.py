"""A stand-in for pppd that answers LCP echo requests on its terminal, and the framing that both ends of it need.

pptp and pptpd hand PPP frames to a pppd through a terminal, octet-stuffed and with a checksum (RFC 1662), and put them
in GRE by themselves. The real pppd needs the kernel's PPP; this one needs nothing: python ppp_echo.py [ignored ...]
"""

from __future__ import annotations

import os
import struct
import sys
import tty

FLAG, ESCAPE, SWITCH = 0x7E, 0x7D, 0x20
LCP_CONFIGURE_REQUEST, LCP_ECHO_REQUEST, LCP_ECHO_REPLY = 1, 9, 10
_HEAD = b"\xff\x03\xc0\x21"  # address, control, and protocol LCP


def lcp(code: int, identifier: int, data: bytes = b"") -> bytes:
    """Return an LCP packet with a magic number of zero (RFC 1661 section 5)."""
    return _HEAD + struct.pack(">BBHI", code, identifier, 8 + len(data), 0) + data


def stuffed(frame: bytes) -> bytes:
    """Return a frame with its checksum, every control octet escaped, between flags (RFC 1662 section 4)."""
    octets = frame + struct.pack("<H", _checksum(frame))
    special = {FLAG, ESCAPE, *range(SWITCH)}
    escaped = b"".join(bytes((ESCAPE, each ^ SWITCH)) if each in special else bytes((each,)) for each in octets)
    return bytes((FLAG,)) + escaped + bytes((FLAG,))


class Frames:
    """Takes octets as they come, and returns the frames that are whole and undamaged."""

    def __init__(self) -> None:
        self._octets = b""

    def feed(self, octets: bytes) -> list[bytes]:
        *whole, self._octets = (self._octets + octets).split(bytes((FLAG,)))
        frames = [_unescaped(each) for each in whole if each]
        return [each[:-2] for each in frames if _checksum(each[:-2]) == int.from_bytes(each[-2:], "little")]


def _unescaped(octets: bytes) -> bytes:
    first, *others = octets.split(bytes((ESCAPE,)))
    return first + b"".join(bytes((each[0] ^ SWITCH,)) + each[1:] for each in others if each)


def _checksum(octets: bytes) -> int:
    """Return the FCS-16 of RFC 1662 appendix C."""
    value = 0xFFFF
    for octet in octets:
        value ^= octet
        for _ in range(8):
            value = value >> 1 ^ (0x8408 if value & 1 else 0)
    return value ^ 0xFFFF


def main() -> None:
    if os.isatty(0):
        tty.setraw(0)
    os.write(1, stuffed(_HEAD + struct.pack(">BBH", LCP_CONFIGURE_REQUEST, 1, 4)))  # pptpd waits for the first word
    frames = Frames()
    while octets := os.read(0, 4096):
        for frame in frames.feed(octets):
            if frame.startswith(_HEAD) and frame[4] == LCP_ECHO_REQUEST:
                os.write(1, stuffed(lcp(LCP_ECHO_REPLY, frame[5], frame[12:])))


if __name__ == "__main__":
    sys.exit(main())
