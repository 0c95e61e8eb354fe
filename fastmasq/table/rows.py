"""The numpy mirrors of the table's C rows (rows.pxd and beside it): sessions, mappings and hosts seen from Python."""

from __future__ import annotations

from types import ModuleType

import numpy as np

FLOW = np.dtype(
    [
        ("key0", "u8"),
        ("key1", "u8"),
        ("saddr", "u4"),
        ("daddr", "u4"),
        ("sid", "u2"),
        ("did", "u2"),
        ("address_delta", "u2"),
        ("transport_delta", "u2"),
        ("hop", "u2"),
        ("path_mtu", "u2"),
        ("packets", "u4"),
    ]
)
TCP_END = np.dtype([("end", "u4"), ("ack", "u4"), ("edge", "u4")])
SESSION = np.dtype(
    [
        ("flow", FLOW, 2),
        ("tcp", TCP_END, 2),
        ("expires", "u4"),
        ("timer_next", "u4"),
        ("timer_prev", "u4"),
        ("mapping", "u4"),
        ("known", "u4"),
        ("state", "u1"),
        ("flags", "u1"),
        ("scale", "u1"),
        ("port_class", "u1"),
    ]
)
CARRIED = np.dtype(
    [("packets", "u8", 2), ("octets", "u8", 2), ("ticket", "u4"), ("rules", "u4", 2), ("reserved", "u4", 5)]
)
TALLY = np.dtype([("octets", "u8", 2), ("charged_packets", "u8", 2), ("charged_octets", "u8", 2)])
MAPPING = np.dtype([("address", "u4"), ("host", "u4"), ("sessions", "u4"), ("id", "u2"), ("in_use", "u2")])
BUCKET = np.dtype([("tokens", "u4"), ("stamp_ms", "u4")])
HOST = np.dtype(
    [
        ("address", "u4"),
        ("sessions", "u4"),
        ("ports", "u4", 3),
        ("bucket", BUCKET),
        ("next_free", "u4"),
        ("network", "u4"),
    ]
)
NETWORK = np.dtype(
    [
        ("address", "u4"),
        ("hosts", "u4"),
        ("sessions", "u4"),
        ("ports", "u4", 3),
        ("next_free", "u4"),
        ("reserved", "u4"),
    ]
)

EDIT = np.dtype(
    [("at", "u4"), ("shift", "u4"), ("before", "u2"), ("after", "u2"), ("reserved", "u4"), ("text", "u8", 6)]
)
STREAM = np.dtype([("key0", "u8"), ("key1", "u8"), ("made", "u4", 2), ("reserved", "u4", 2)])

FOLLOWER = np.dtype(
    [("key0", "u8"), ("key1", "u8"), ("expected", "u4", 2), ("facts", "u4"), ("progress", "u1", 2), ("reserved", "u2")]
)
"""How far a TCP connection was read that is followed, for the process that comes next; see daemon/kept_followers.py."""

HEADER = np.dtype([("secret", "u8", 2), ("external", "u4", 4), ("pool", "u4", 4), ("current", "u4"), ("rows", "u4")])
"""What the rows that outlive a table mean: external addresses in the order of their pools (0 for none), those that
inside hosts are dealt out to by the secret, or the one of all, and how many rows of sessions may have been used."""

INDEX_ENTRY = np.dtype([("hash", "u4"), ("ref", "u4")])
TARGET = np.dtype(
    [("address", "u4"), ("weight", "u4"), ("left", "u4"), ("next", "u4"), ("port", "u2"), ("reserved", "u2")]
)
REMOTE = np.dtype([("address", "u4"), ("mask", "u4"), ("next", "u4"), ("port", "u2"), ("reserved", "u2")])
FORWARD = np.dtype([("turn", "u4"), ("targets", "u4"), ("half_open", "u4"), ("opened", "u4"), ("remotes", "u4")])

POOLS = 12  # external addresses times classes
PORTS = 65536  # rows of mappings in each pool
POOL_WORDS = 1024
HOST_ROWS = 65536  # and as many of networks, since each has a host
WHEEL_SLOTS = 32768
YOUNG = 32768  # sessions that the smallest indexes of a table have room for
SIZES = 4  # of indexes at the most
FORWARD_ROWS = 65536  # forwards at once, each port of a range being one
TARGET_ROWS = 65536
REMOTE_ROWS = 32768  # of whom forwards are for
STREAMS = 512  # TCP connections that have edits, at the most
EDITS = 16  # places of those of one direction
TEXT = 48  # octets that an edit may leave
FOLLOWED_PORTS = 32

OUTBOUND, INBOUND = 0, 1
SESSION_HAIRPIN = 0x01
MAPPING_FORWARD, MAPPING_ORPHAN, MAPPING_BY_SESSION = 3, 4, 5
CLASS_NONE = 3  # of sessions of protocols without ports
STATES = (
    "free",
    "syn-sent",
    "syn-received",
    "established",
    "fin-out",
    "fin-in",
    "closing",
    "transitory",
    "resumed",
    "active",
    "active",
    "unanswered",
    "unanswered",
    "active",
    "expected",
)
"""Names of the states for people, in the order of `State` in rows.pxd."""


def pattern(size: int) -> bytes:
    """Return so many octets that tell where a field lies: no two nearby are the same, and only the last is 0."""
    return (bytes(range(1, 256)) * (size // 255 + 1))[: size - 1] + b"\0"


def mirrors(dtype: np.dtype, size: int, struct: dict) -> bool:
    """Whether a numpy type has the size and the fields of a C struct, each where that has it.

    struct: what Cython makes of one that has the octets of a `pattern` as long as it. It takes an array of octets for
    text, which it reads to the first 0: the last octet of the struct.
    """
    return dtype.itemsize == size and _is_same(np.frombuffer(pattern(size), dtype)[0], struct)


def compare(module: ModuleType, name: str, size: int, struct: dict) -> None:
    """Raise ImportError if the type of this name in a module does not mirror a C struct, see `mirrors`."""
    if not mirrors(getattr(module, name), size, struct):
        raise ImportError(f"{module.__name__} and the structs beside it disagree about the layout of {name}")


def _is_same(field, value) -> bool:
    if isinstance(value, dict):
        names = field.dtype.names or ()
        return names == tuple(value) and all(_is_same(field[name], value[name]) for name in names)
    if isinstance(value, bytes):
        return field.dtype.itemsize == 1 and field.tobytes() == (value + b"\0")[: field.size]
    if isinstance(value, list):
        return field.shape[:1] == (len(value),) and all(map(_is_same, field, value))
    return field.ndim == 0 and field.dtype.names is None and field.item() == value


def row_and_direction(ref: int) -> tuple[int, int]:
    """Return what a reference to a flow is of (rows.pxd, ref_of)."""
    return ref >> 1, ref & 1
