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

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from fastmasq.clock import now_ns
from fastmasq.control.endpoints import Endpoint, follow
from fastmasq.control.keys import KeyFile
from fastmasq.control.lines import Client, LineServer
from fastmasq.control.protocol import Failure, Reply, decode, decode_request, encode
from fastmasq.errors import KernelError
from fastmasq.log_limit import LogLimit
from fastmasq.units import NS_PER_SECOND

Handler = Callable[[int, dict[str, Any]], object]

LABEL = b"fastmasq-spi 1"
LARGEST_LINE = 4096  # bytes of what a host sends
MOST_CLIENTS = 256
MOST_OF_HOST = 4
PATIENCE_S = 5
LINES_PER_SECOND = 5  # of the log
_log = logging.getLogger(__name__)


class Signed(Struct, frozen=True, forbid_unknown_fields=True):
    """What a host sends."""

    request: str
    mac: str


class _Caller(NamedTuple):
    """Who a connection is with, and until when."""

    address: int
    key: bytes
    challenge: bytes
    until_ns: int


class InsideServer(LineServer):
    """Serves `handlers`, method name -> function of the caller's address and the parameters, in a loop.

    A handler may raise FastmasqError.
    """

    largest = LARGEST_LINE
    answers_once = True

    def __init__(
        self, port: int, keys: KeyFile, handlers: Mapping[str, Handler], loop: asyncio.AbstractEventLoop
    ) -> None:  # fmt: skip
        super().__init__(loop)
        self._port = port
        self._keys = keys
        self._handlers = handlers
        self._listeners: dict[Endpoint, socket.socket] = {}
        self._limit = LogLimit(_log, LINES_PER_SECOND, "inside hosts")

    def follow(self, endpoints: Iterable[Endpoint]) -> None:
        """Listen on these and no others. Raises KernelError, and listens on as many as it can."""
        refused = follow(self._listeners, endpoints, self._begin, lambda _, listener: self.leave(listener))
        if refused:
            said = ", ".join(f"{endpoint.dotted()}:{self._port}: {error.strerror}" for endpoint, error in refused)
            raise KernelError(f"[vpn] preload: {said}; choose another port")

    def _begin(self, endpoint: Endpoint) -> socket.socket:
        """Raises OSError."""
        listener = endpoint.socket(socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((endpoint.dotted(), self._port))
            listener.listen(MOST_CLIENTS)
        except OSError:
            listener.close()
            raise
        self.listen(listener)
        return listener

    def every_second(self, now: int) -> None:
        """Close the connections whose time is over. Time in nanoseconds."""
        self._limit.every_second()
        for client in [client for client in self.clients if client.who.until_ns <= now]:
            if not client.is_answered:
                client.tell(encode(_refusal("ETIME", f"no request within {PATIENCE_S} s")))
            client.drop()

    def close(self) -> None:
        """Close all listeners and connections."""
        super().close()
        self._listeners.clear()

    # -- who may speak ---------------------------------------------------------------------------------------------

    def admit(self, connection: socket.socket, peer: tuple[str, int]) -> tuple[_Caller, bytes] | None:
        host, _ = peer
        address = int(ipaddress.IPv4Address(host))
        key = self._keys.key_of(address)
        if key is None:
            self._say("%s wants to announce SPIs and has no key in %s", host, self._keys.path)
            refusal = _refusal("EPERM", f"{host} has no key on this gateway ([vpn] preload_keys)")
            with contextlib.suppress(OSError):
                connection.send(encode(refusal))
            return None
        challenge = secrets.token_hex(32).encode()
        until_ns = now_ns() + PATIENCE_S * NS_PER_SECOND
        return _Caller(address, key, challenge, until_ns), b'{"challenge": "%b"}\n' % challenge

    def superfluous(self, who: _Caller) -> Client | None:
        """Return the oldest connection of a host that has too many, or of all when there are too many."""
        own = [client for client in self.clients if client.who.address == who.address]
        if len(own) >= MOST_OF_HOST:
            return own[0]
        return next(iter(self.clients)) if len(self.clients) >= MOST_CLIENTS else None

    # -- requests --------------------------------------------------------------------------------------------------

    def answer(self, client: Client, line: bytes) -> bytes:
        return encode(self._reply(client.who, line))

    def _reply(self, caller: _Caller, line: bytes) -> Reply:
        if len(line) > LARGEST_LINE:
            return _refusal("EINVAL", f"a line has at most {LARGEST_LINE} bytes")
        try:
            signed = decode(line, Signed)
        except msgspec.DecodeError as error:
            return _refusal("EINVAL", f"not a signed request: {error}")
        request = signed.request.encode(errors="surrogatepass")
        if not hmac.compare_digest(
            signed.mac.encode(errors="surrogatepass"), sign(caller.key, caller.challenge, request)
        ):
            peer = _dotted(caller.address)
            self._say("%s wants to announce SPIs and has another key than in %s", peer, self._keys.path)
            return _refusal("EPERM", f"the key is not that of {peer} on this gateway ([vpn] preload_keys)")
        return self._result(caller.address, request)

    def _result(self, address: int, line: bytes) -> Reply:
        try:
            request = decode_request(line)
        except msgspec.DecodeError as error:
            return _refusal("EINVAL", f"not a request: {error}")
        handler = self._handlers.get(request.method)
        if handler is None:
            return _refusal("EINVAL", f"no method {request.method!r}; there are {', '.join(sorted(self._handlers))}")
        return self.carry_out(request.method, lambda: handler(address, request.params))

    def _say(self, text: str, *values: object) -> None:
        if self._limit.allows(logging.WARNING):
            _log.warning(text, *values)


def sign(key: bytes, challenge: bytes, request: bytes) -> bytes:
    """Return the mac of a request, in hex."""
    return hmac.new(key, b"\n".join((LABEL, challenge, request)), hashlib.sha256).hexdigest().encode()


def _refusal(reason: str, text: str) -> Reply:
    return Reply(error=Failure(text, 2 if reason == "EINVAL" else 1, reason))


def _dotted(address: int) -> str:
    return str(ipaddress.IPv4Address(address))
