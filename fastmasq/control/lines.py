"""A server of lines on asyncio that never waits for a client: one line is a request, one line its reply.

What a client may cost is bounded: a line of what it sends, one reply, and its place among the connections. While its
reply is not taken it is not read, so a slow client costs its own time. One request is answered in each turn of the
loop: a client that sends many takes turns with the others, and with all else that the loop does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from fastmasq.clock import now_ns
from fastmasq.control.protocol import Failure, Reply, encode
from fastmasq.errors import FastmasqError
from fastmasq.mishaps import Mishaps
from fastmasq.scarcity import is_scarcity

PAUSE_S = 0.5  # after a connection that there was no descriptor or memory for
WAY_S = 1.5  # for others to take what clients had to give up
_CHUNK = 64 * 1024  # bytes read at once
_log = logging.getLogger("fastmasq.control")
_MOST_LEFT_OVER = 16  # reads of what comes after the one request


class LineServer:
    """Accepts on its listeners, and answers those whom `admit` lets in with what `answer` returns.

    Subclasses have these two, and may say otherwise who goes when there is no more room (`superfluous`).
    """

    largest: int  # bytes of a line that a client sends
    most: int  # connections at a time
    answers_once = False  # one request for each connection, which is then ended gently

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.mishaps = Mishaps(_log)
        self._listening: dict[socket.socket, asyncio.TimerHandle | None] = {}  # with the end of its pause, if any
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # given up to refuse one when there are no more
        self.clients: dict[Client, None] = {}  # the one that was active last comes last
        self.chunk = memoryview(bytearray(_CHUNK))  # what a read fills before it is looked at, whoever's it is
        self._beginning: set[asyncio.Task] = set()

    def admit(self, connection: socket.socket, peer: Any) -> tuple[Any, bytes] | None:
        """Return who a client is and the line that greets it, or None for one that is turned away."""
        raise NotImplementedError

    def answer(self, client: Client, line: bytes) -> bytes:
        """Return the reply to a line, which has more than `largest` bytes if it was too long. Raises nothing."""
        raise NotImplementedError

    def superfluous(self, who: Any) -> Client | None:
        """Return the client that goes so that another may come: of too many the one that was quiet longest."""
        return next(iter(self.clients)) if len(self.clients) >= self.most else None

    def listen(self, listener: socket.socket) -> None:
        """Accept on a listener, which does not block, until `leave`."""
        self._listening[listener] = None
        self.loop.add_reader(listener, self._accept, listener)

    def leave(self, listener: socket.socket) -> None:
        """Accept on a listener no more, and close it."""
        pause = self._listening.pop(listener)
        if pause is not None:
            pause.cancel()
        self.loop.remove_reader(listener)
        listener.close()

    def close(self) -> None:
        """End all connections, which the loop closes in its next turn, and accept no more."""
        for client in list(self.clients):
            client.drop()
        for listener in list(self._listening):
            self.leave(listener)
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def drop_idle(self, since: float) -> None:
        """End the connections that have been quiet since a time of the loop."""
        for client in [client for client in self.clients if client.quiet_since <= since]:
            client.drop()

    def wait(self, seconds: float) -> None:
        """Accept nobody for a while: those who are here are answered, and those who come wait."""
        for listener in self._listening:
            self._pause(listener, seconds)

    def make_way(self) -> None:
        """Have all clients go, and none come for a moment: what they hold is needed."""
        if not self.clients:
            return
        for client in list(self.clients):
            client.drop()
        self.wait(WAY_S)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, peer = listener.accept()
        except OSError as error:
            if is_scarcity(error):
                self._refuse(listener)
            return  # else it went away again
        connection.setblocking(False)
        admitted = self.admit(connection, peer)
        if admitted is None:
            connection.close()
            return
        superfluous = self.superfluous(admitted[0])
        if superfluous is not None:
            superfluous.drop()
        client = Client(self, *admitted)
        self.clients[client] = None
        beginning = self.loop.create_task(self.loop.connect_accepted_socket(lambda: client, connection))
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)

    def _refuse(self, listener: socket.socket) -> None:
        """Have one who waits go, or the listener would be ready for ever; then pause, for descriptors to come back."""
        for client in list(self.clients)[:1]:
            client.drop()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        with contextlib.suppress(OSError):
            listener.accept()[0].close()
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._pause(listener, PAUSE_S)

    def _pause(self, listener: socket.socket, seconds: float) -> None:
        """Accept nobody for a while; the last pause that began is the one that counts."""
        pause = self._listening[listener]
        if pause is not None:
            pause.cancel()
        self.loop.remove_reader(listener)
        self._listening[listener] = self.loop.call_later(seconds, self._accept_again, listener)

    def _accept_again(self, listener: socket.socket) -> None:
        self._listening[listener] = None
        self.loop.add_reader(listener, self._accept, listener)

    def reply(self, client: Client, line: bytes) -> bytes:
        """Return what `answer` does, or that there was a mistake of ours."""
        try:
            return self.answer(client, line)
        except Exception as error:
            self.mishaps.report("a request", error, now_ns())
            return encode(Reply(error=Failure("internal error; see fastmasq's log")))

    def carry_out(self, method: str, act: Callable[[], object]) -> Reply:
        """Return the reply with what `act` returns or raises: a FastmasqError is the client's, all else for the log."""
        try:
            return Reply(act())
        except FastmasqError as error:
            return Reply(error=Failure(str(error), error.exit_status, getattr(error, "reason", msgspec.UNSET)))
        except Exception as error:
            self.mishaps.report(method, error, now_ns())
            reason = os.strerror(error.errno) if is_scarcity(error) else "internal error; see fastmasq's log"
            return Reply(error=Failure(f"{method}: {reason}"))


class Client(asyncio.BufferedProtocol):
    """One connection: what has come and was not answered, and whether its last reply was taken.

    `who` is the server's.
    """

    def __init__(self, server: LineServer, who: Any, greeting: bytes) -> None:
        self.who = who
        self.is_answered = False
        self.quiet_since = server.loop.time()
        self._server = server
        self._greeting = greeting
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._has_ended = False  # its side
        self._was_cut = False  # its last line
        self._is_gone = False
        self._is_full = False  # there is a reply that it has not taken
        self._has_turn = False  # the loop comes back to it
        self._left_over = 0

    def drop(self) -> None:
        """End it at once, whatever it has not taken."""
        self._is_gone = True
        self._server.clients.pop(self, None)
        if self._transport is not None:
            self._transport.abort()

    def tell(self, line: bytes) -> None:
        """Send a line that nobody has asked for."""
        if self._transport is not None:
            self._transport.write(line)

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        if self._is_gone:
            transport.abort()
            return
        transport.set_write_buffer_limits(0)  # `pause_writing` as soon as anything waits
        transport.write(self._greeting)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Have no more read than a line may have, and one byte."""
        if self._is_ending():
            return self._server.chunk
        return self._server.chunk[: self._server.largest + 1 - len(self._received)]

    def buffer_updated(self, count: int) -> None:
        if self._is_ending():  # read on, or the answer would be lost with what it sends after its request
            self._left_over += 1
            if self._left_over >= _MOST_LEFT_OVER:
                self._transport.close()
            return
        self._received += self._server.chunk[:count]
        self.quiet_since = self._server.loop.time()
        self._take_turn()

    def eof_received(self) -> bool:
        self._has_ended = True
        self._take_turn()
        return True  # its replies go out all the same

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._take_turn()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_gone = True
        self._server.clients.pop(self, None)

    def _is_ending(self) -> bool:
        return self.is_answered and self._server.answers_once

    def _take_turn(self) -> None:
        """Answer a request that is here, if the reply before it was taken; then it is the turn of others."""
        if self._is_gone or self._is_full or self._has_turn:
            return
        line = None if self._is_ending() else self._next_line()
        if line is None:
            self._wait()
            return
        self._server.clients[self] = self._server.clients.pop(self)
        self._transport.pause_reading()
        self.is_answered = True
        self._transport.write(self._server.reply(self, line))
        if self._is_ending():
            self._received.clear()
            self._transport.write_eof()
        self._has_turn = True
        self._server.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._has_turn = False
        self._take_turn()

    def _wait(self) -> None:
        """Wait for more of it; or close the connection, when there will be none."""
        if self._has_ended or (self._was_cut and not self._is_ending()):
            self._transport.close()
        else:
            self._transport.resume_reading()

    def _next_line(self) -> bytes | None:
        """Take the next line, without its end; one that is too long is cut, and is the last."""
        end = self._received.find(b"\n")
        if end < 0 and len(self._received) <= self._server.largest:
            return None
        if end < 0:
            end = len(self._received)
            self._was_cut = True
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line
