"""One connection of a server that never waits: requests are lines that come in, one reply at a time goes out."""

from __future__ import annotations

import contextlib
import selectors
import socket

_CHUNK = 64 * 1024  # bytes read at once


class LineConnection:
    """Bytes that came and were not answered, of which a line may have `largest`; bytes of the reply not taken yet."""

    def __init__(self, connection: socket.socket, largest: int) -> None:
        self.connection = connection
        self.largest = largest
        self.reply = memoryview(b"")
        self._received = bytearray()
        self._sends_no_more = False

    def receive(self) -> None:
        """Take some of what has come, up to one byte more than a line may have."""
        room = min(self.largest + 1 - len(self._received), _CHUNK)
        if not room:
            return
        with contextlib.suppress(BlockingIOError):
            chunk = self.connection.recv(room)
            self._received += chunk
            self._sends_no_more = not chunk

    def next_request(self) -> bytes | None:
        """Take the next line, without its end; one that is too long is cut, and is the last."""
        end = self._received.find(b"\n")
        if end < 0 and len(self._received) <= self.largest:
            return None
        if end < 0:
            end = len(self._received)
            self._sends_no_more = True
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def discard(self) -> None:
        """Forget what has come and was not answered."""
        self._received.clear()

    def send(self) -> None:
        """Send as much of the reply as the client has room for."""
        if self.reply:
            with contextlib.suppress(BlockingIOError):
                self.reply = self.reply[self.connection.send(self.reply) :]

    def is_finished(self) -> bool:
        return self._sends_no_more and not self.reply and b"\n" not in self._received

    def wanted_events(self) -> int:
        """Wait for room while there is something to send, or a request already here; else for more to read."""
        return selectors.EVENT_WRITE if self.reply or b"\n" in self._received else selectors.EVENT_READ
