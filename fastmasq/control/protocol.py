"""What is said on the control socket: one JSON object a line, each request followed by its reply.

    {"method": "sessions", "params": {"protocol": "tcp", "limit": 10}}
    {"result": {"total": 1, "sessions": [...]}}

or, when it cannot be done, `{"error": {"message": "what, where, what to do", "exit_status": 1}}`, which for a RuleError
or a PreloadError has its "reason" too. A connection may carry several requests, and several may be sent at once;
replies come in the same order.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

_Kind = TypeVar("_Kind")

LARGEST_REQUEST = 8 * 1024 * 1024  # bytes in a line, as those below; the most rules there can be fit in one
LARGEST_REPLY = 64 * 1024 * 1024


class Request(Struct, frozen=True, forbid_unknown_fields=True):
    """What a client asks."""

    method: str
    params: dict[str, Any] = {}


class Failure(Struct, frozen=True):
    """Why there is no result: the line for the user, the status the client should exit with, a reason for programs."""

    message: str
    exit_status: int = 1
    reason: str | UnsetType = UNSET


class Reply(Struct, frozen=True, omit_defaults=True):
    """What a server answers: an error, or else the result (which may be null)."""

    result: Any = None
    error: Failure | None = None


def encode(message: Request | Reply) -> bytes:
    """Return the line for a message. Raises TypeError when a result is not made of JSON's types."""
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises msgspec.DecodeError, which says what is wrong."""
    return decode(line, Request)


def decode_reply(line: bytes) -> Reply:
    """Raises msgspec.DecodeError, which says what is wrong."""
    return decode(line, Reply)


def decode(line: bytes, kind: type[_Kind]) -> _Kind:
    """Return what a line of JSON says. Raises msgspec.DecodeError, also for one that is nested too deep."""
    try:
        return msgspec.json.decode(line, type=kind)
    except RecursionError:
        raise msgspec.DecodeError("nested too deep") from None
