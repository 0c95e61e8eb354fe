"""A PPTP client's sockets: the control connection, and GRE of one call (RFC 2637)."""

from __future__ import annotations

import socket
from collections.abc import Callable

from fastmasq.units import NS_PER_SECOND
from fastmasq.wire.pptp import HEADER_LENGTH, Header, Type, message
from fastmasq.wire.tunnels import Gre, read_gre

# A GRE packet with sequence number 0 (section 4.1) that asks for LCP options, and for none (RFC 1661 section 5.1).
_CONFIGURE_REQUEST = bytes.fromhex("ff03 c021 01 01 0004")
_LONGEST = 65_535
_LAST_READS = 64  # of what a server has sent before it closed the connection


class ControlConnection:
    """A TCP connection to a PPTP server. Every wait ends `patience_s` after it began, by TimeoutError."""

    def __init__(self, address: str, port: int, patience_s: float, clock: Callable[[], int]) -> None:
        """Connect. Raises OSError."""
        self._patience_ns = round(patience_s * NS_PER_SECOND)
        self._clock = clock
        self._received = bytearray()
        self._stream = socket.create_connection((address, port), timeout=patience_s)
        self._stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes, answer: Type) -> bytes:
        """Send a message and return the answer, whole. Echo requests that come first are answered, others skipped.

        Raises OSError; EOFError when the server closes the connection, ValueError when it does not speak PPTP.
        """
        deadline = self._clock() + self._patience_ns
        self._stream.sendall(request)
        while True:
            header, octets = self._next(deadline)
            if header.layout is not None and header.control_type == answer:
                return octets
            if header.control_type == Type.ECHO_REQUEST:
                self._stream.sendall(message(Type.ECHO_REPLY, octets[12:16] + b"\1"))

    def tell(self, notice: bytes) -> None:
        """Send a message that has no answer. Raises OSError."""
        self._stream.sendall(notice)

    def is_closed(self) -> bool:
        """Return whether the server has closed the connection, as far as has come by now."""
        self._stream.setblocking(False)
        try:
            return any(not self._stream.recv(4096) for _ in range(_LAST_READS))
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self._stream.close()

    def _next(self, deadline: int) -> tuple[Header, bytes]:
        """Return the next message of the stream."""
        self._fill(HEADER_LENGTH, deadline)
        header = Header.parse(self._received)
        if header is None:
            raise ValueError("no PPTP header")
        self._fill(header.length, deadline)
        octets = bytes(self._received[: header.length])
        del self._received[: header.length]
        return header, octets

    def _fill(self, octets: int, deadline: int) -> None:
        while len(self._received) < octets:
            left = (deadline - self._clock()) / NS_PER_SECOND
            if left <= 0:
                raise TimeoutError
            self._stream.settimeout(left)
            piece = self._stream.recv(4096)
            if not piece:
                raise EOFError
            self._received += piece


class Data:
    """GRE of one call with a server, by a raw socket; needs CAP_NET_RAW. Opened before the call, it misses none."""

    def __init__(self, address: str) -> None:
        """Raises PermissionError."""
        self._raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE)
        self._raw.connect((address, 0))

    def greet(self, call_id: int) -> None:
        """Send an LCP Configure-Request for the server's Call ID: firewalls learn the flow, and it answers."""
        length, key = len(_CONFIGURE_REQUEST).to_bytes(2, "big"), call_id.to_bytes(2, "big")
        self._raw.send(bytes.fromhex("3001880b") + length + key + bytes(4) + _CONFIGURE_REQUEST)

    def hear(self, call_id: int, patience_s: float, clock: Callable[[], int]) -> Gre:
        """Return the first packet for our Call ID. Raises OSError: TimeoutError, or what an ICMP error said."""
        deadline = clock() + round(patience_s * NS_PER_SECOND)
        while (left := (deadline - clock()) / NS_PER_SECOND) > 0:
            self._raw.settimeout(left)
            packet = self._raw.recv(_LONGEST)
            header = read_gre(packet[(packet[0] & 15) * 4 :])
            if header is not None and header.call_id == call_id:
                return header
        raise TimeoutError

    def close(self) -> None:
        self._raw.close()
