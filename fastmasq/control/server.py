"""Answers requests on the control socket, each method by its handler.

The socket is made for its owner alone (0600), and each client must be root or the owner, whatever happened to the
file's mode since. When there are too many clients, the one that has been quiet longest is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from fastmasq.control.client import is_served
from fastmasq.control.lines import Client, LineServer, carry_out
from fastmasq.control.protocol import LARGEST_REPLY, LARGEST_REQUEST, Failure, Reply, decode_request, encode
from fastmasq.errors import KernelError

Handler = Callable[[dict[str, Any]], object]

MOST_CLIENTS = 16
_LOCK_TRIES = 200  # of 10 ms
_log = logging.getLogger(__name__)


class Server(LineServer):
    """Serves `handlers`, method name -> function of the parameters, at `path`, in a loop.

    A handler may raise FastmasqError: its text and exit status go to the client.
    """

    largest = LARGEST_REQUEST
    most = MOST_CLIENTS

    def __init__(self, path: str | Path, handlers: Mapping[str, Handler], loop: asyncio.AbstractEventLoop) -> None:
        """Raises KernelError when the socket cannot be made or another server listens at `path`."""
        super().__init__(loop)
        self._path = os.fspath(path)
        self._handlers = handlers
        self._listener = _listen(self._path)
        self._identity = _identity(self._path)
        self.listen(self._listener)

    def close(self) -> None:
        """End all connections and remove the socket, unless another has taken its place."""
        self.drop_all()
        self.leave(self._listener)
        if _identity(self._path) == self._identity:
            os.unlink(self._path)

    def admit(self, connection: socket.socket, peer: object) -> tuple[int, bytes] | None:
        uid = _peer_uid(connection)
        if uid not in (0, os.geteuid()):
            _log.warning("control socket: refused a client of user %d", uid)
            return None
        return uid, b""

    def answer(self, client: Client, line: bytes) -> bytes:
        try:
            reply = encode(self._reply(line))
        except TypeError:
            _log.exception("control socket: a result that is not JSON")
            reply = encode(Reply(error=Failure("internal error; see fastmasq's log")))
        if len(reply) > LARGEST_REPLY:
            reply = encode(Reply(error=Failure(f"the answer has more than {LARGEST_REPLY} bytes; ask for less")))
        return reply

    def _reply(self, line: bytes) -> Reply:
        if len(line) > LARGEST_REQUEST:
            return Reply(error=Failure(f"a request has at most {LARGEST_REQUEST} bytes; ask for less at once", 2))
        try:
            request = decode_request(line)
        except msgspec.DecodeError as error:
            return Reply(error=Failure(f"not a request: {error}", 2))
        handler = self._handlers.get(request.method)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return Reply(error=Failure(f"no method {request.method!r} in this version; there are {known}", 2))
        return carry_out(request.method, lambda: handler(request.params), _log)


def _listen(path: str) -> socket.socket:
    with _exclusive(os.path.dirname(path) or "."):
        _clear_way(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        old_mask = os.umask(0o177)
        try:
            listener.bind(path)
        except OSError as error:
            listener.close()
            raise KernelError(f"control socket {path}: {error.strerror or error}; choose another place") from None
        finally:
            os.umask(old_mask)
        listener.listen(MOST_CLIENTS)
        return listener


@contextlib.contextmanager
def _exclusive(folder: str) -> Iterator[None]:
    """Let one program at a time look at and replace sockets in `folder`."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KernelError(f"control socket: folder {folder}: {error.strerror}; make it, or choose another") from None
    try:
        for _ in range(_LOCK_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        else:
            raise KernelError(f"control socket: folder {folder} stays locked by another program; choose another folder")
        yield
    finally:
        os.close(descriptor)


def _clear_way(path: str) -> None:
    """Remove the socket a dead server left behind. Raises KernelError for anything else that is there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise KernelError(f"control socket {path}: there is something that is not a socket; choose another place")
    if is_served(path):
        raise KernelError(f"another fastmasq is running at {path}; stop it, or choose another [control] socket")
    os.unlink(path)


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells one file from another made later at the same place; None when there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid
