"""Asks the running forwarder one thing."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from fastmasq.control.protocol import LARGEST_REPLY, Request, decode_reply, encode
from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.policy.chains import REASONS, RuleError

PATIENCE_S = 10.0  # how long the forwarder may be silent
_CHUNK = 1024 * 1024


def call(socket_path: str, method: str, /, **params: Any) -> Any:
    """Return the result of `method`. Raises KernelError when nobody listens or answers, or what the reply says.

    That is a ConfigurationError, a RuleError among them, or a KernelError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        patience = struct.pack("@ll", int(PATIENCE_S), int(PATIENCE_S % 1 * 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        try:
            connection.connect(socket_path)  # without a timeout of Python's: that does not wait where the queue is full
            connection.settimeout(PATIENCE_S)
            connection.sendall(encode(Request(method, params)))
            line = _receive_line(connection, socket_path)
        except (TimeoutError, BlockingIOError):  # the latter: its queue of connections is full
            raise KernelError(f"{socket_path}: no answer within {PATIENCE_S:.0f} s; is fastmasq stopped?") from None
        except OSError as error:
            raise KernelError(_why_unreachable(socket_path, error)) from None
    try:
        reply = decode_reply(line)
    except msgspec.DecodeError as error:
        raise KernelError(f"{socket_path}: an answer that is not fastmasq's ({error}); who listens there?") from None
    if reply.error and reply.error.reason in REASONS:
        raise RuleError(reply.error.reason, reply.error.message)
    if reply.error:
        raise (ConfigurationError if reply.error.exit_status == 2 else KernelError)(reply.error.message)
    return reply.result


def is_served(socket_path: str) -> bool:
    """Return whether somebody listens at `socket_path`."""
    return _try(socket_path) == 0


def find_running(socket_paths: Sequence[str]) -> str:
    """Return the first of these where somebody listens to us, else the first where we may not ask, else the first."""
    results = {}
    for path in socket_paths:
        results[path] = _try(path)
        if results[path] == 0:
            return path
    return next((path for path, error in results.items() if error in (errno.EACCES, errno.EPERM)), socket_paths[0])


def _try(socket_path: str) -> int:
    """Return 0 if somebody listens at `socket_path`, else why we cannot reach anybody: a number of errno."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        error = probe.connect_ex(socket_path)
    return 0 if error == errno.EAGAIN else error  # a listener whose queue is full


def _receive_line(connection: socket.socket, socket_path: str) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        chunk = connection.recv(_CHUNK)
        if not chunk:
            raise KernelError(f"{socket_path}: the connection was closed without an answer; see fastmasq's log")
        received += chunk
        if len(received) > LARGEST_REPLY:
            raise KernelError(f"{socket_path}: an answer of more than {LARGEST_REPLY} bytes; ask for less")
    return bytes(received)


def _why_unreachable(socket_path: str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return f"no fastmasq is running at {socket_path}; start `fastmasq run`, or name its socket in FASTMASQ_SOCKET"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{socket_path}: only root may talk to fastmasq; use sudo"
    return f"{socket_path}: {error.strerror or error}; is this the control socket of fastmasq?"
