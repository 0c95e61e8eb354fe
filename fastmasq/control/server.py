"""Answers requests on the control socket without ever waiting for a client.

All sockets are non-blocking and live in the caller's selector. Each client has a buffer for one request and a buffer
for one reply; while its reply is not taken it is not read, so a slow client costs its own time and one reply of
memory. One request is answered for each call of `handle`: a client that sends many takes turns with the others. When
there are too many clients, the one that has been quiet longest is closed.

The socket is made for its owner alone (0600), and each client must be root or the owner, whatever happened to the
file's mode since.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import selectors
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from fastmasq.control.client import is_served
from fastmasq.control.connection import LineConnection
from fastmasq.control.protocol import LARGEST_REPLY, LARGEST_REQUEST, Failure, Reply, decode_request, encode
from fastmasq.errors import FastmasqError, KernelError

Handler = Callable[[dict[str, Any]], object]

MOST_CLIENTS = 16
_LOCK_TRIES = 200  # of 10 ms
_log = logging.getLogger(__name__)


class Server:
    """Serves `handlers`, method name -> function of the parameters, at `path`.

    Every socket is registered in `selector` with a function of the events as its data: the caller's loop says
    `key.data(events)`, or asks `filenos()` and says `handle(fileno, events)`.
    A handler may raise FastmasqError: its text and exit status go to the client.
    """

    def __init__(self, path: str | Path, handlers: Mapping[str, Handler], selector: selectors.BaseSelector) -> None:
        """Raises KernelError when the socket cannot be made or another server listens at `path`."""
        self._path = os.fspath(path)
        self._handlers = handlers
        self._selector = selector
        self._clients: dict[int, LineConnection] = {}  # by descriptor; the one that was active last comes last
        self._listener = _listen(self._path)
        self._identity = _identity(self._path)
        self._register(self._listener, selectors.EVENT_READ)

    def filenos(self) -> set[int]:
        """Return the descriptors that are ours in the selector just now."""
        return {self._listener.fileno(), *self._clients}

    def handle(self, fileno: int, events: int) -> None:
        """Do what can be done at once on a descriptor that is ready."""
        if fileno == self._listener.fileno():
            self._accept()
        elif client := self._clients.pop(fileno, None):
            self._clients[fileno] = client
            self._serve(client, events)

    def close(self) -> None:
        """Close all connections and remove the socket, unless another has taken its place."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._selector.unregister(self._listener)
        self._listener.close()
        if _identity(self._path) == self._identity:
            os.unlink(self._path)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it went away again
            return
        connection.setblocking(False)
        if _peer_uid(connection) not in (0, os.geteuid()):
            _log.warning("control socket: refused a client of user %d", _peer_uid(connection))
            connection.close()
            return
        if len(self._clients) >= MOST_CLIENTS:
            self._drop(next(iter(self._clients.values())))
        self._clients[connection.fileno()] = LineConnection(connection, LARGEST_REQUEST)
        self._register(connection, selectors.EVENT_READ)

    def _serve(self, client: LineConnection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                client.receive()
            if not client.reply and (line := client.next_request()) is not None:
                client.reply = self._answer(line)
            client.send()
        except OSError:  # the client went away
            self._drop(client)
            return
        if client.is_finished():
            self._drop(client)
        else:
            self._selector.modify(
                client.connection, client.wanted_events(), self._selector.get_key(client.connection).data
            )

    def _answer(self, line: bytes) -> memoryview:
        try:
            reply = encode(self._reply(line))
        except TypeError:
            _log.exception("control socket: a result that is not JSON")
            reply = encode(Reply(error=Failure("internal error; see fastmasq's log")))
        if len(reply) > LARGEST_REPLY:
            reply = encode(Reply(error=Failure(f"the answer has more than {LARGEST_REPLY} bytes; ask for less")))
        return memoryview(reply)

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
        try:
            return Reply(handler(request.params))
        except FastmasqError as error:
            return Reply(error=Failure(str(error), error.exit_status, getattr(error, "reason", msgspec.UNSET)))
        except Exception:
            _log.exception("control socket: %s failed", request.method)
            return Reply(error=Failure(f"{request.method}: internal error; see fastmasq's log"))

    def _register(self, connection: socket.socket, events: int) -> None:
        fileno = connection.fileno()
        self._selector.register(connection, events, lambda events: self.handle(fileno, events))

    def _drop(self, client: LineConnection) -> None:
        del self._clients[client.connection.fileno()]
        self._selector.unregister(client.connection)
        client.connection.close()


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
