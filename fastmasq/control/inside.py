"""Answers inside hosts on a TCP port of the gateway's inside addresses, each for itself alone and without waiting.

A host is who its address says, if it also knows the key of that address. One request for each connection, each message
a line of JSON:

    gateway: {"challenge": "5f0c..."}
    host:    {"request": "{\\"method\\": \\"esp\\"}", "mac": "77ab..."}
    gateway: {"result": [...]}  or  {"error": {"message": "what, where", "exit_status": 1, "reason": "EPERM"}}

mac is HMAC-SHA256 (RFC 2104) in hex, keyed with the host's key, over `fastmasq-spi 1`, the challenge and the request as
they stand there, with a newline between them. A challenge is random and good for its connection only: what is overheard
cannot be used again, and does not tell the key. The request is one of `control/protocol.py`.

Nothing here is read from a host without a key, and nobody can take the place of others: one host has at most
`MOST_OF_HOST` connections, each for at most `PATIENCE_S`, and what is sent is bounded both ways. The listeners are tied
to the inside links, so no packet from elsewhere gets to them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import ipaddress
import logging
import secrets
import selectors
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from fastmasq.clock import now_ns
from fastmasq.control.connection import LineConnection
from fastmasq.control.keys import KeyFile
from fastmasq.control.protocol import Failure, Reply, decode_request, encode
from fastmasq.errors import FastmasqError, KernelError
from fastmasq.log_limit import LogLimit
from fastmasq.units import NS_PER_SECOND

Handler = Callable[[int, dict[str, Any]], object]

LABEL = b"fastmasq-spi 1"
LARGEST_LINE = 4096  # bytes of what a host sends
MOST_CLIENTS = 256
MOST_OF_HOST = 4
PATIENCE_S = 5
LINES_PER_SECOND = 5  # of the log
_MOST_LEFT_OVER = 16  # reads of what comes after the one request
_CHUNK = 64 * 1024
_log = logging.getLogger(__name__)


class Endpoint(NamedTuple):
    """Where to listen: an inside link with its index, which a re-created link has not, and an address of it."""

    link: str
    ifindex: int
    address: int


class Signed(Struct, frozen=True, forbid_unknown_fields=True):
    """What a host sends."""

    request: str
    mac: str


class _Client(Struct, eq=False):
    """One connection of a host."""

    line: LineConnection
    address: int
    key: bytes
    challenge: bytes
    until_ns: int
    answered: bool = False
    left_over: int = 0


class InsideServer:
    """Serves `handlers`, method name -> function of the caller's address and the parameters.

    Every socket is registered in `selector` as those of `control.server.Server` are. A handler may raise FastmasqError.
    """

    def __init__(
        self, port: int, keys: KeyFile, handlers: Mapping[str, Handler], selector: selectors.BaseSelector
    ) -> None:  # fmt: skip
        self._port = port
        self._keys = keys
        self._handlers = handlers
        self._selector = selector
        self._listeners: dict[Endpoint, socket.socket] = {}
        self._clients: dict[int, _Client] = {}  # by descriptor, oldest first
        self._limit = LogLimit(_log, LINES_PER_SECOND, "inside hosts")

    def follow(self, endpoints: Iterable[Endpoint]) -> None:
        """Listen on these and no others. Raises KernelError, and listens on as many as it can."""
        wanted = set(endpoints)
        for endpoint in self._listeners.keys() - wanted:
            self._close(self._listeners.pop(endpoint))
        refused = []
        for endpoint in sorted(wanted - self._listeners.keys()):
            try:
                listener = _listen(endpoint, self._port)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):  # it has gone again: we shall be told
                    refused.append(f"{_dotted(endpoint.address)}:{self._port}: {error.strerror}")
                continue
            self._listeners[endpoint] = listener
            self._selector.register(listener, selectors.EVENT_READ, lambda _, listener=listener: self._accept(listener))
        if refused:
            raise KernelError(f"[vpn] preload: {', '.join(refused)}; choose another port")

    def every_second(self, now: int) -> None:
        """Close the connections whose time is over. Time in nanoseconds."""
        self._limit.every_second()
        for client in [client for client in self._clients.values() if client.until_ns <= now]:
            if not client.answered:
                self._send(client.line.connection, _refusal("ETIME", f"no request within {PATIENCE_S} s"))
            self._drop(client)

    def close(self) -> None:
        """Close all listeners and connections."""
        for client in list(self._clients.values()):
            self._drop(client)
        for listener in self._listeners.values():
            self._close(listener)
        self._listeners.clear()

    # -- connections -----------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, (peer, _) = listener.accept()
        except OSError:  # it went away again
            return
        connection.setblocking(False)
        address = int(ipaddress.IPv4Address(peer))
        key = self._keys.key_of(address)
        if key is None:
            self._say("%s wants to announce SPIs and has no key in %s", peer, self._keys.path)
            self._send(connection, _refusal("EPERM", f"{peer} has no key on this gateway ([vpn] preload_keys)"))
            connection.close()
            return
        self._make_room(address)
        challenge = secrets.token_hex(32).encode()
        client = _Client(LineConnection(connection, LARGEST_LINE), address, key, challenge, _deadline())
        client.line.reply = memoryview(b'{"challenge": "%b"}\n' % challenge)
        fileno = connection.fileno()
        self._clients[fileno] = client
        self._selector.register(connection, selectors.EVENT_WRITE, lambda events: self._handle(fileno, events))

    def _make_room(self, address: int) -> None:
        """Close the oldest connection of a host that has too many, or of all when there are too many."""
        own = [client for client in self._clients.values() if client.address == address]
        if len(own) >= MOST_OF_HOST:
            self._drop(own[0])
        elif len(self._clients) >= MOST_CLIENTS:
            self._drop(next(iter(self._clients.values())))

    def _handle(self, fileno: int, events: int) -> None:
        client = self._clients.get(fileno)
        if client is None:
            return
        try:
            is_over = self._finish(client) if client.answered and not client.line.reply else self._serve(client, events)
        except OSError:  # the host went away
            is_over = True
        if is_over:
            self._drop(client)
        else:
            key = self._selector.get_key(client.line.connection)
            self._selector.modify(client.line.connection, client.line.wanted_events(), key.data)

    def _serve(self, client: _Client, events: int) -> bool:
        """Go on with challenge, request and answer; return whether the host has gone without a request."""
        if events & selectors.EVENT_READ:
            client.line.receive()
        if not client.answered and not client.line.reply and (line := client.line.next_request()) is not None:
            client.answered = True
            client.line.reply = memoryview(encode(self._answer(client, line)))
        client.line.send()
        if client.answered and not client.line.reply:
            client.line.discard()
            client.line.connection.shutdown(socket.SHUT_WR)
            return False
        return client.line.is_finished()

    @staticmethod
    def _finish(client: _Client) -> bool:
        """Read what a host sends after its request, or the answer would be lost with it; return whether it is done."""
        client.left_over += 1
        with contextlib.suppress(BlockingIOError):
            return not client.line.connection.recv(_CHUNK) or client.left_over >= _MOST_LEFT_OVER
        return False

    def _drop(self, client: _Client) -> None:
        del self._clients[client.line.connection.fileno()]
        self._close(client.line.connection)

    def _close(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()

    @staticmethod
    def _send(connection: socket.socket, reply: Reply) -> None:
        """Send a line to a host that is not listened to any more, if there is room for it."""
        with contextlib.suppress(OSError):
            connection.send(encode(reply))

    # -- requests --------------------------------------------------------------------------------------------------

    def _answer(self, client: _Client, line: bytes) -> Reply:
        if len(line) > LARGEST_LINE:
            return _refusal("EINVAL", f"a line has at most {LARGEST_LINE} bytes")
        try:
            signed = msgspec.json.decode(line, type=Signed)
        except msgspec.DecodeError as error:
            return _refusal("EINVAL", f"not a signed request: {error}")
        request = signed.request.encode(errors="surrogatepass")
        if not hmac.compare_digest(
            signed.mac.encode(errors="surrogatepass"), sign(client.key, client.challenge, request)
        ):
            peer = _dotted(client.address)
            self._say("%s wants to announce SPIs and has another key than in %s", peer, self._keys.path)
            return _refusal("EPERM", f"the key is not that of {peer} on this gateway ([vpn] preload_keys)")
        return self._result(client.address, request)

    def _result(self, address: int, line: bytes) -> Reply:
        try:
            request = decode_request(line)
        except msgspec.DecodeError as error:
            return _refusal("EINVAL", f"not a request: {error}")
        handler = self._handlers.get(request.method)
        if handler is None:
            return _refusal("EINVAL", f"no method {request.method!r}; there are {', '.join(sorted(self._handlers))}")
        try:
            return Reply(handler(address, request.params))
        except FastmasqError as error:
            return Reply(error=Failure(str(error), error.exit_status, getattr(error, "reason", msgspec.UNSET)))
        except Exception:
            _log.exception("%s of an inside host failed", request.method)
            return Reply(error=Failure(f"{request.method}: internal error; see fastmasq's log"))

    def _say(self, text: str, *values: object) -> None:
        if self._limit.allows(logging.WARNING):
            _log.warning(text, *values)


def sign(key: bytes, challenge: bytes, request: bytes) -> bytes:
    """Return the mac of a request, in hex."""
    return hmac.new(key, b"\n".join((LABEL, challenge, request)), hashlib.sha256).hexdigest().encode()


def _refusal(reason: str, text: str) -> Reply:
    return Reply(error=Failure(text, 2 if reason == "EINVAL" else 1, reason))


def _deadline() -> int:
    return now_ns() + PATIENCE_S * NS_PER_SECOND


def _listen(endpoint: Endpoint, port: int) -> socket.socket:
    """Raises OSError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, endpoint.link.encode())
        listener.bind((_dotted(endpoint.address), port))
        listener.listen(MOST_CLIENTS)
    except OSError:
        listener.close()
        raise
    return listener


def _dotted(address: int) -> str:
    return str(ipaddress.IPv4Address(address))
