"""PPTP control messages (RFC 2637 section 2): lengths, types, and the fields that translators and clients need.

All integers are big-endian; offsets count octets from the start of the message. A field named Call ID always holds the
number that the *sender* chose, Peer's Call ID the one that the *receiver* chose (rule P-1), whatever their roles are.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple, Self

HEADER_LENGTH = 12  # octets
MAGIC = 0x1A2B3C4D
CONTROL = 1  # message type; 2 is management, which nobody uses
CONNECTED = 1  # result of a call that was accepted (sections 2.8 and 2.10)

_HEADER = struct.Struct("!HHIHH")  # length, message type, magic cookie, control type, reserved


class Type(IntEnum):
    """The control message types (section 1.4)."""

    START_REQUEST = 1
    START_REPLY = 2
    STOP_REQUEST = 3
    STOP_REPLY = 4
    ECHO_REQUEST = 5
    ECHO_REPLY = 6
    OUTGOING_CALL_REQUEST = 7
    OUTGOING_CALL_REPLY = 8
    INCOMING_CALL_REQUEST = 9
    INCOMING_CALL_REPLY = 10
    INCOMING_CALL_CONNECTED = 11
    CALL_CLEAR_REQUEST = 12
    CALL_DISCONNECT_NOTIFY = 13
    WAN_ERROR_NOTIFY = 14
    SET_LINK_INFO = 15

    def __str__(self) -> str:
        return self.name.replace("_", " ").capitalize()


class Layout(NamedTuple):
    """Octets of a message, and the offsets of its Call ID, Peer's Call ID and result code; None where it has none."""

    length: int
    call_id: int | None = None
    peer_call_id: int | None = None
    result: int | None = None


LAYOUTS = {
    Type.START_REQUEST: Layout(156),
    Type.START_REPLY: Layout(156, result=14),
    Type.STOP_REQUEST: Layout(16),
    Type.STOP_REPLY: Layout(16, result=12),
    Type.ECHO_REQUEST: Layout(16),
    Type.ECHO_REPLY: Layout(20, result=16),
    Type.OUTGOING_CALL_REQUEST: Layout(168, call_id=12),
    Type.OUTGOING_CALL_REPLY: Layout(32, call_id=12, peer_call_id=14, result=16),
    Type.INCOMING_CALL_REQUEST: Layout(220, call_id=12),
    Type.INCOMING_CALL_REPLY: Layout(24, call_id=12, peer_call_id=14, result=16),
    Type.INCOMING_CALL_CONNECTED: Layout(28, peer_call_id=12),
    Type.CALL_CLEAR_REQUEST: Layout(16, call_id=12),
    Type.CALL_DISCONNECT_NOTIFY: Layout(148, call_id=12, result=14),
    Type.WAN_ERROR_NOTIFY: Layout(40, peer_call_id=12),
    Type.SET_LINK_INFO: Layout(24, peer_call_id=12),
}
FIELDS_END = 17  # no field a translator needs lies behind this offset


class Header(NamedTuple):
    """The first 12 octets of a message; `length` counts the whole message, header included."""

    length: int
    message_type: int
    control_type: int

    @classmethod
    def parse(cls, octets: bytes | bytearray) -> Self | None:
        """Return the header at the start of `octets`; None if it is not whole or not a header (section 1.4)."""
        if len(octets) < HEADER_LENGTH:
            return None
        length, message_type, magic, control_type, _ = _HEADER.unpack_from(octets)
        if magic != MAGIC or length < HEADER_LENGTH:
            return None
        return cls(length, message_type, control_type)

    def emit(self) -> bytes:
        return _HEADER.pack(self.length, self.message_type, MAGIC, self.control_type, 0)

    @property
    def layout(self) -> Layout | None:
        """Return the layout of a control message of a known type whose length has room for its fields, else None."""
        layout = LAYOUTS.get(self.control_type) if self.message_type == CONTROL else None
        return layout if layout is not None and self.length >= min(layout.length, FIELDS_END) else None

    def __str__(self) -> str:
        known = self.message_type == CONTROL and self.control_type in LAYOUTS
        name = str(Type(self.control_type)) if known else f"type {self.message_type}/{self.control_type}"
        return f"PPTP {name}, {self.length} octets"


def message(control_type: Type, fields: bytes = b"") -> bytes:
    """Return a control message of the length its type has: header, `fields` from offset 12 on, then zeros."""
    length = LAYOUTS[control_type].length
    if len(fields) > length - HEADER_LENGTH:
        raise ValueError(f"{len(fields)} octets do not fit a {control_type} of {length}")
    return (Header(length, CONTROL, control_type).emit() + fields).ljust(length, b"\0")


# -- the messages of a client, and what their answers say --------------------------------------------------------------

VERSION = 0x0100  # 1.0, the only one (section 2.1)
GENERAL_ERROR = 2  # result of every reply that has one; the octet behind it says which error

RESULTS = {
    Type.START_REPLY: {
        1: "accepted",
        3: "refused: there is a control connection from this address already",
        4: "refused: the requester is not authorized",
        5: "refused: the protocol version is not supported",
    },
    Type.STOP_REPLY: {1: "control connection closed"},
    Type.ECHO_REPLY: {1: "alive"},
    Type.OUTGOING_CALL_REPLY: {
        1: "connected",
        3: "refused: no carrier",
        4: "refused: busy",
        5: "refused: no dial tone",
        6: "refused: timed out",
        7: "refused: calls are prohibited by the server's administrator",
    },
    Type.INCOMING_CALL_REPLY: {1: "accepted", 3: "refused"},
    Type.CALL_DISCONNECT_NOTIFY: {
        0: "ended",  # sent by Microsoft's servers
        1: "ended: carrier lost",
        3: "ended by the administrator",
        4: "ended as asked",
    },
}
ERRORS = {
    0: "no reason given",
    1: "no control connection exists yet",
    2: "bad length or magic cookie",
    3: "a field's value is out of range",
    4: "out of resources",
    5: "bad Call ID",
    6: "an error of the server's own",
}

_START = struct.Struct("!HBBIIHH64s64s")  # version, result, error, framing, bearer, channels, firmware, host, vendor
_OUTGOING_CALL = struct.Struct("!HHIIIIHHH")  # Call ID, serial, bit/s from, to, bearer, framing, window, delay, phone
_OUTGOING_CALL_REPLY = struct.Struct("!HHBBHI")  # Call ID, Peer's Call ID, result, error, cause, bit/s
_ANY = 3  # framing: asynchronous and synchronous; bearer: analog and digital (sections 2.1 and 2.7)
_WINDOW = 3  # GRE packets unacknowledged
_LEAST_BPS, _MOST_BPS = 2_400, 1_000_000_000


class Start(NamedTuple):
    """A Start-Control-Connection-Request or -Reply (sections 2.1 and 2.2); of a request result and error are 0."""

    version: int
    result: int
    error: int
    firmware: int
    host: str
    vendor: str

    @classmethod
    def parse(cls, octets: bytes) -> Self | None:
        """Return the fields of a whole message, header included; None if it is cut. Names are made printable."""
        if len(octets) < HEADER_LENGTH + _START.size:
            return None
        version, result, error, _, _, _, firmware, host, vendor = _START.unpack_from(octets, HEADER_LENGTH)
        return cls(version, result, error, firmware, _name(host), _name(vendor))


class CallReply(NamedTuple):
    """An Outgoing-Call-Reply (section 2.8): the server's Call ID, the one it was asked for, and bits per second."""

    call_id: int
    peer_call_id: int
    result: int
    error: int
    cause: int
    bps: int

    @classmethod
    def parse(cls, octets: bytes) -> Self | None:
        """Return the fields of a whole message, header included; None if it is cut."""
        if len(octets) < HEADER_LENGTH + _OUTGOING_CALL_REPLY.size:
            return None
        return cls(*_OUTGOING_CALL_REPLY.unpack_from(octets, HEADER_LENGTH))


def start_request(host: str = "", vendor: str = "") -> bytes:
    """Return a Start-Control-Connection-Request of one who offers no channels (section 2.1); names up to 63 octets."""
    names = [name.encode("ascii", "replace")[:63] for name in (host, vendor)]
    return message(Type.START_REQUEST, _START.pack(VERSION, 0, 0, _ANY, _ANY, 0, 1, *names))


def outgoing_call_request(call_id: int, serial: int = 1) -> bytes:
    """Return an Outgoing-Call-Request for a virtual call, without a phone number (section 2.7)."""
    fields = (call_id, serial, _LEAST_BPS, _MOST_BPS, _ANY, _ANY, _WINDOW, 0, 0)
    return message(Type.OUTGOING_CALL_REQUEST, _OUTGOING_CALL.pack(*fields))


def result_in_words(control_type: int, result: int, error: int = 0) -> str:
    """Return what a result code of a reply means; with GENERAL_ERROR, what its error code does (section 2.16)."""
    if result == GENERAL_ERROR:
        return f"refused: {ERRORS.get(error, f'error {error}')}"
    known = RESULTS[Type(control_type)] if control_type in RESULTS else {}
    return known.get(result, f"result {result}, which has no meaning")


def _name(field: bytes) -> str:
    text = field.split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)
