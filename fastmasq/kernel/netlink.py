"""netlink in raw form (netlink(7)): an event socket, a request socket, and attributes read and written.

A message here is the `bytes` of one netlink message with its 16-byte header, which is in host byte order. Reading one
never raises: of a message that is cut short, or whose attributes have other lengths than they should, what is not there
is 0 or empty. There is no library between, since the forwarder needs a descriptor to poll, reads that never block, to
learn of ENOBUFS at once, and to look at ten thousand routes in 15 ms.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping

from fastmasq.errors import KernelError

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
NLM_F_DUMP_INTR = 0x10

NETLINK_SOCK_DIAG, NETLINK_NETFILTER = 4, 12

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_GETNETCONF = 82
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46

GROUP_LINK, GROUP_NEIGHBOUR, GROUP_TC, GROUP_IPV4_ADDRESS, GROUP_IPV4_ROUTE = 0x1, 0x4, 0x8, 0x10, 0x40
GROUP_IPV4_NETCONF = 0x800000
GROUP_NFTABLES = 0x40  # of NETLINK_NETFILTER

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id
ATTRIBUTE = struct.Struct("=HH")  # length with this header, type

_NLA_TYPE_MASK = 0x3FFF  # without the flags "nested" and "network byte order"
_RECEIVE_BYTES = 1 << 18  # the kernel fills at most 32 KiB of a dump into one datagram
_REPLY_TIMEOUT_S = 5
_INTERRUPTED_DUMPS = 8  # give up on a consistent dump after so many, and look again later
_SO_RCVBUFFORCE = 33


def message_type(message: bytes) -> int:
    return HEADER.unpack_from(message)[1]


def attributes(encoded: bytes) -> dict[int, bytes]:
    """Return the values in a sequence of attributes by type; a malformed rest is dropped."""
    values: dict[int, bytes] = {}
    offset = 0
    while offset + ATTRIBUTE.size <= len(encoded):
        length, kind = ATTRIBUTE.unpack_from(encoded, offset)
        if not ATTRIBUTE.size <= length <= len(encoded) - offset:
            break
        values[kind & _NLA_TYPE_MASK] = encoded[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return values


def attribute(kind: int, value: bytes) -> bytes:
    """Return one encoded attribute, padded to the 4 bytes that netlink aligns to."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    """Return an encoded attribute that is a number of 32 bits in host byte order."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """Return an encoded attribute that is a text."""
    return attribute(kind, value.encode() + b"\0")


def read_number(values: Mapping[int, bytes], kind: int) -> int:
    """Return the attribute that is a number of 32 bits in host byte order; 0 if there is none."""
    value = values.get(kind, b"")
    return int.from_bytes(value, sys.byteorder) if len(value) == 4 else 0


def read_address(values: Mapping[int, bytes], kind: int) -> int:
    """Return the attribute that is an IPv4 address, in host byte order; 0 if there is none."""
    value = values.get(kind, b"")
    return int.from_bytes(value, "big") if len(value) == 4 else 0


def read_mac(values: Mapping[int, bytes], kind: int) -> bytes:
    """Return the attribute that is a MAC address of 6 octets; b"" if there is none."""
    value = values.get(kind, b"")
    return value if len(value) == 6 else b""


def read_text(values: Mapping[int, bytes], kind: int) -> str:
    """Return the attribute that is a text; "" if there is none."""
    return values.get(kind, b"").partition(b"\0")[0].decode(errors="replace")


def split(datagram: bytes) -> Iterator[bytes]:
    """Yield the messages of one datagram; a malformed rest is dropped."""
    offset = 0
    while offset + HEADER.size <= len(datagram):
        length = HEADER.unpack_from(datagram, offset)[0]
        if not HEADER.size <= length <= len(datagram) - offset:
            return
        yield datagram[offset : offset + length]
        offset += (length + 3) & ~3


class EventSocket:
    """What the kernel announces, in the network namespace this was made in."""

    def __init__(self, groups: int, receive_buffer: int, protocol: int = socket.NETLINK_ROUTE) -> None:
        """Subscribe to the bit set `groups`; `receive_buffer` is in bytes, beyond the system's limit if we may.

        Raises KernelError.
        """
        self._socket = _open(protocol, groups)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, limit: int) -> tuple[list[bytes], bool]:
        """Return up to about `limit` waiting messages, and whether the kernel had to drop some. Never blocks."""
        messages: list[bytes] = []
        lost = False
        while len(messages) < limit:
            try:
                messages += split(self._socket.recv(_RECEIVE_BYTES))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
        return messages, lost

    def close(self) -> None:
        self._socket.close()


class RequestSocket:
    """Questions to the kernel with their answers; apart from events, so that neither can overflow the other."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        """Raises KernelError."""
        self._socket = _open(protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", _REPLY_TIMEOUT_S, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._discard_unread()
        self._sequence += 1
        length = HEADER.size + len(body)
        self._socket.send(HEADER.pack(length, kind, flags | NLM_F_REQUEST, self._sequence, 0) + body)

    def _discard_unread(self) -> None:
        """Throw away error answers to `tell` that nobody waited for, before they fill the receive buffer."""
        while True:
            try:
                self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def _replies(self) -> Iterator[bytes]:
        while True:
            try:
                datagram = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                raise KernelError(f"netlink: no answer from the kernel within {_REPLY_TIMEOUT_S} s") from None
            for message in split(datagram):
                if HEADER.unpack_from(message)[3] == self._sequence:
                    yield message

    def tell(self, kind: int, flags: int, body: bytes) -> None:
        """Send a request whose outcome shows in events only; an error answer is thrown away."""
        self._send(kind, flags, body)

    def ask(self, kind: int, flags: int, body: bytes) -> None:
        """Do one request and wait for its acknowledgement. Raises OSError with the kernel's error number."""
        self._send(kind, flags | NLM_F_ACK, body)
        for message in self._replies():
            if message_type(message) == NLMSG_ERROR:
                raise_error(message)
                return

    def get(self, kind: int, body: bytes) -> bytes:
        """Do one request that one message answers, and return that. Raises OSError with the kernel's error number."""
        self._send(kind, 0, body)
        reply = next(self._replies())
        if message_type(reply) == NLMSG_ERROR:
            raise_error(reply)
        return reply

    def dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        """Return all objects of a kind, and whether the list is consistent (no change happened while it was made)."""
        messages: list[bytes] = []
        for _ in range(_INTERRUPTED_DUMPS):
            messages, consistent = self._dump_once(kind, body)
            if consistent:
                return messages, True
        return messages, False

    def _dump_once(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        messages: list[bytes] = []
        consistent = True
        self._send(kind, NLM_F_DUMP, body)
        for message in self._replies():
            _, answer, flags, _, _ = HEADER.unpack_from(message)
            consistent = consistent and not flags & NLM_F_DUMP_INTR
            if answer == NLMSG_DONE:
                break
            if answer == NLMSG_ERROR:
                raise_error(message)
            messages.append(message)
        return messages, consistent


def _open(protocol: int, groups: int = 0) -> socket.socket:
    """Return a socket that hears of `groups`. Raises KernelError."""
    opened: socket.socket | None = None
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        opened.bind((0, groups))
    except OSError as error:
        if opened is not None:
            opened.close()
        raise KernelError(f"netlink: the kernel gives no socket (protocol {protocol}): {error.strerror}") from None
    return opened


def raise_error(message: bytes) -> None:
    """Raise OSError for an NLMSG_ERROR message, unless its number is 0 (an acknowledgement)."""
    encoded = message[HEADER.size : HEADER.size + 4]
    number = -int.from_bytes(encoded, sys.byteorder, signed=True) if len(encoded) == 4 else errno.EBADMSG
    if number:
        raise OSError(number, os.strerror(number))
