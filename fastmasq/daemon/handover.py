"""How one process hands a gateway over to another that it has started beside it: what they say, and in which order.

    old                                       new
    starts it                                 imports, reads its configuration
              <- ready                        with what it would say of the sessions that are to go on
    stops reacting; its worker goes on
              host ->                         takes the host over, by the lock and the sockets that come with that word,
                                              and opens its rings, which hear nothing yet
              <- waits
    stops its worker between two batches
              table ->                        hears, adopts the sessions
              <- begins
    ends as by a kill

What comes in from `table` on waits in the rings of the new one. Until that says `begins` the old one has all that it
needs to go on, and does so when the new one says `failed`, ends, or takes too long. If the old one ends before, the new
one ends, too, as by a kill. Who dies afterwards has died as by any kill.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple, NoReturn

import msgspec
from msgspec import Struct

from fastmasq.errors import FastmasqError, KernelError

VARIABLE = "FASTMASQ_PREDECESSOR"  # of the new one's environment: the descriptor by which it hears of the old one
FOLLOW = signal.SIGUSR1  # to the supervisor of the old one: who sends it is the next one

_LARGEST = 64 * 1024  # octets of a word
_MOST_DESCRIPTORS = 8
_ENDING_S = 1.0  # between the end of what it says, and its own
_MISTAKE = 1  # exit status


class Word(Struct, frozen=True, omit_defaults=True):
    """One message.

    why: with `failed`, what is wrong; with `ready`, why the sessions of the old one cannot be adopted, "" if they can.
    file: with `ready`, where it would adopt them from. sockets: with `host`, the paths of the listening sockets whose
    descriptors follow that of the lock. sessions: with `host`, about how many there are. rows: with `table`, how many
    of its rows were ever used.
    """

    said: Literal["ready", "host", "waits", "table", "begins", "failed"]
    why: str = ""
    file: str = ""
    sockets: list[str] = []
    sessions: int = 0
    rows: int = 0


class Ended(Exception):
    """The other side has ended, or says what it should not; `str` is the reason."""


class Silent(Ended):
    """It has said nothing for too long."""


class _Channel:
    """One end of what they talk by; each word is a packet."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def close(self) -> None:
        self._end.close()

    def tell(self, word: Word, descriptors: Sequence[int] = ()) -> None:
        """Raises Ended."""
        try:
            socket.send_fds(self._end, [msgspec.json.encode(word)], descriptors)
        except OSError:
            raise Ended("it has ended") from None

    def hear(self, patience_s: float | None = None) -> tuple[Word, list[int]]:
        """Return the next word, and the descriptors with it. Raises Ended."""
        if not select.select([self._end], [], [], patience_s)[0]:
            raise Silent
        try:
            said, descriptors, _, _ = socket.recv_fds(self._end, _LARGEST, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            said, descriptors = b"", []
        if not said:
            raise Ended("it has ended")
        try:
            return msgspec.json.decode(said, type=Word), descriptors
        except msgspec.DecodeError:
            raise Ended("it says what this version does not understand") from None


class Successor:
    """The process that is to take our place, as we see it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it. Raises KernelError."""
        self.program = command[0]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = _Channel(ours)
        with theirs:
            variables = {**environment, VARIABLE: str(theirs.fileno())}
            try:
                self._process = subprocess.Popen(command, env=variables, pass_fds=[theirs.fileno()])
            except OSError as error:
                self._channel.close()
                raise KernelError(f"{self.program}: {error.strerror}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._channel.fileno()

    def tell(self, word: Word, descriptors: Sequence[int] = ()) -> None:
        """Raises Ended."""
        self._channel.tell(word, descriptors)

    def expect(self, said: str, patience_s: float) -> Word:
        """Return its next word, which is to be this one. Raises Ended that says what it has come to instead."""
        try:
            word, _ = self._channel.hear(patience_s)
        except Silent:
            raise Silent(f"{self.program} has said nothing for too long") from None
        except Ended:
            raise Ended(f"{self.program} {self._how_it_ended()}; what it said is in the log") from None
        if word.said == "failed":
            raise Ended(word.why)
        if word.said != said:
            raise Ended(f"{self.program} says {word.said!r}, not {said!r}")
        return word

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            return "talks no more"
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def end(self) -> None:
        """End it, whatever it does, and return when it has ended."""
        self._process.kill()
        self._process.wait()
        self._channel.close()


class Handed(NamedTuple):
    """What the old one hands over, if there is one: its lock, listening sockets by their path, so many sessions."""

    lock: int | None
    sockets: dict[str, socket.socket]
    sessions: int


class Predecessor:
    """The process whose place we are to take, as we see it. `pid` is its number."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._channel = _Channel(socket.socket(fileno=descriptor))
        self.pid = os.getppid()
        self.is_relieved = False

    def fileno(self) -> int:
        """Return a descriptor that is readable once it has ended, after `begins`."""
        return self._channel.fileno()

    def close(self) -> None:
        self._channel.close()

    def ready(self, file: str, why_not: str) -> Handed:
        """Say that we are ready; return what is handed over when it is time. Raises KernelError."""
        self._tell(Word("ready", why=why_not, file=file))
        word, (lock, *listeners) = self._expect("host")
        sockets = [socket.socket(fileno=each) for each in listeners]
        return Handed(lock, dict(zip(word.sockets, sockets, strict=True)), word.sessions)

    def take_table(self) -> int:
        """Say that we wait for it; return how many of its rows were used, when nobody moves packets any more.

        Raises KernelError.
        """
        self._tell(Word("waits"))
        word, _ = self._expect("table")
        return word.rows

    def begins(self, supervisor: int) -> None:
        """Say that everything is ours from now on: also to a supervisor (0: none), which then follows us.

        Raises KernelError.
        """
        if supervisor not in (0, self.pid):
            with suppress(ProcessLookupError):
                os.kill(supervisor, FOLLOW)
        self._tell(Word("begins"))
        self.is_relieved = True

    def fail(self, why: str, status: int) -> NoReturn:
        """Say why we cannot take its place, and end as by a kill."""
        with suppress(Ended):
            self._channel.tell(Word("failed", why=why))
        sys.stderr.flush()
        os._exit(status)

    def _tell(self, word: Word) -> None:
        try:
            self._channel.tell(word)
        except Ended:
            raise KernelError("the process to take over from has ended") from None

    def _expect(self, said: str) -> tuple[Word, list[int]]:
        try:
            word, descriptors = self._channel.hear()
        except Ended:
            raise KernelError("the process to take over from has ended") from None
        if word.said != said:
            raise KernelError(f"the process to take over from says {word.said!r}, not {said!r}")
        return word, descriptors


def predecessor() -> Predecessor | None:
    """Return the process that has started us to take its place, None if nobody has."""
    descriptor = os.environ.pop(VARIABLE, "")
    return Predecessor(int(descriptor)) if descriptor.isdecimal() else None


@contextmanager
def failure_told(predecessor: Predecessor | None) -> Iterator[None]:
    """Have a predecessor, if there is one, hear why we cannot take its place, should we fail in here; we end then."""
    try:
        yield
    except BaseException as error:
        if predecessor is None or predecessor.is_relieved:
            raise
        if isinstance(error, FastmasqError):
            predecessor.fail(str(error), error.exit_status)
        sys.excepthook(type(error), error, error.__traceback__)
        predecessor.fail("a mistake in the new program; see fastmasq's log", _MISTAKE)
