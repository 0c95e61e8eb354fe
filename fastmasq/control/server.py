"""Answers requests on the control socket, each method by its handler; and some of them on the status socket.

The control socket is made for its owner alone (0600), and each client must be root or the owner, whatever happened to
the file's mode since. The status socket is for the group of its folder (0660), and answers what changes nothing. When
there are too many clients, the one that has been quiet longest is closed, and so is any that is quiet for IDLE_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from fastmasq.clock import now_ns
from fastmasq.control.client import is_served
from fastmasq.control.lines import Client, LineServer
from fastmasq.control.protocol import LARGEST_REPLY, LARGEST_REQUEST, Failure, Reply, Request, decode_request, encode
from fastmasq.errors import KernelError

Handler = Callable[[dict[str, Any]], object]

MOST_CLIENTS = 16
IDLE_S = 60
_LOCK_TRIES = 50  # of 10 ms


class Server(LineServer):
    """Serves `handlers`, method name -> function of the parameters, at `path`, in a loop.

    A handler may raise FastmasqError: its text and exit status go to the client.
    """

    largest = LARGEST_REQUEST
    most = MOST_CLIENTS
    what = "control socket"
    mode = 0o600

    def __init__(
        self, path: str | Path, handlers: Mapping[str, Handler], loop: asyncio.AbstractEventLoop,
        listener: socket.socket | None = None,
    ) -> None:  # fmt: skip
        """Serve a listener that another process had at `path`, and has handed over; without one make it.

        Raises KernelError when the socket cannot be made or another server listens at `path`.
        """
        super().__init__(loop)
        self._path = os.fspath(path)
        self._handlers = handlers
        try:
            self._listener = listener or self._make()
        except KernelError:
            super().close()
            raise
        self._identity = _identity(self._path)
        self.listen(self._listener)

    def _make(self) -> socket.socket:
        """Return a listener at our path. Raises KernelError."""
        return _listen(self._path, self.what, self.mode)

    def to_hand_over(self) -> tuple[str, int]:
        """Return the path of the socket and its descriptor: who waits there is served by whoever has it next."""
        return str(self._path), self._listener.fileno()

    def every_second(self) -> None:
        """Close the connections that are idle, and make the socket anew if somebody has deleted its file.

        Raises KernelError if that cannot be.
        """
        self.drop_idle(self.loop.time() - IDLE_S)
        if _identity(self._path) is None:
            deleted, self._listener = self._listener, self._make()
            self.leave(deleted)
            self._identity = _identity(self._path)
            self.listen(self._listener)

    def close(self) -> None:
        """End all connections and remove the socket, unless another has taken its place."""
        super().close()
        if _identity(self._path) == self._identity:
            os.unlink(self._path)

    def admit(self, connection: socket.socket, peer: object) -> tuple[int, bytes] | None:
        uid = _peer_uid(connection)
        if uid not in (0, os.geteuid()):
            refused = KernelError(f"{self.what}: refused a client of user {uid}")
            self.mishaps.report(self.what, refused, now_ns())
            return None
        return uid, b""

    def answer(self, client: Client, line: bytes) -> bytes:
        reply = encode(self._reply(line))
        if len(reply) > LARGEST_REPLY:
            reply = encode(Reply(error=Failure(f"the answer has more than {LARGEST_REPLY} bytes; ask for less")))
        return reply

    def refusal(self, request: Request) -> str | None:
        """Return why a request is not for this socket, if it is not."""
        if request.method in self._handlers:
            return None
        known = ", ".join(sorted(self._handlers))
        return f"no method {request.method!r} in this version; there are {known}"

    def _reply(self, line: bytes) -> Reply:
        if len(line) > LARGEST_REQUEST:
            return Reply(error=Failure(f"a request has at most {LARGEST_REQUEST} bytes; ask for less at once", 2))
        try:
            request = decode_request(line)
        except msgspec.DecodeError as error:
            return Reply(error=Failure(f"not a request: {error}", 2))
        refusal = self.refusal(request)
        if refusal is not None:
            return Reply(error=Failure(refusal, 2))
        return self.carry_out(request.method, lambda: self._handlers[request.method](request.params))


class StatusServer(Server):
    """The same for those in the group of the socket's folder, but for what changes something.

    `handlers` are those of methods that only ask; `is_reading` judges a request by its method and parameters.
    """

    what = "status socket"
    mode = 0o660

    def __init__(
        self, path: str | Path, handlers: Mapping[str, Handler], loop: asyncio.AbstractEventLoop,
        is_reading: Callable[[str, dict[str, Any]], bool], listener: socket.socket | None = None,
    ) -> None:  # fmt: skip
        self._is_reading = is_reading
        super().__init__(path, handlers, loop, listener)

    def _make(self) -> socket.socket:
        listener = super()._make()
        with contextlib.suppress(OSError):  # it is for whoever has the folder, then
            os.chown(self._path, -1, os.stat(os.path.dirname(self._path)).st_gid)
        return listener

    def admit(self, connection: socket.socket, peer: object) -> tuple[int, bytes] | None:
        return _peer_uid(connection), b""

    def refusal(self, request: Request) -> str | None:
        if self._is_reading(request.method, request.params):
            return super().refusal(request)
        return f"{request.method} changes something, or is not known, and the status socket only tells; use sudo"


def _listen(path: str, what: str, mode: int) -> socket.socket:
    """Return a listener at a path, in place of what a dead server left there. Raises KernelError."""
    with _exclusive(os.path.dirname(path) or ".", what):
        _clear_way(path, what)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        old_mask = os.umask(0o777 & ~mode)
        try:
            listener.bind(path)
        except OSError as error:
            listener.close()
            raise KernelError(f"{what} {path}: {error.strerror or error}; choose another place") from None
        finally:
            os.umask(old_mask)
        listener.listen(MOST_CLIENTS)
        return listener


@contextlib.contextmanager
def _exclusive(folder: str, what: str) -> Iterator[None]:
    """Let one program at a time look at and replace sockets in `folder`.

    Whoever may read the folder can lock it, too: a lock that stays is a stranger's, and is not waited for any longer.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KernelError(f"{what}: folder {folder}: {error.strerror}; make it, or choose another") from None
    try:
        for _ in range(_LOCK_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _clear_way(path: str, what: str) -> None:
    """Remove the socket a dead server left behind. Raises KernelError for anything else that is there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise KernelError(f"{what} {path}: there is something that is not a socket; choose another place")
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
