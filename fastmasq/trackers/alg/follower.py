"""What followers of all application gateways have in common: what they may open, what they refuse, when they end."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from typing import Generic, Literal, NamedTuple, TypeVar

from fastmasq.trackers.alg.lines import Change, Lines, Reader
from fastmasq.trackers.alg.refusals import REFUSALS
from fastmasq.wire.numbers import TCP

LOWEST_PORT = 1024

Direction = Literal["outbound", "inbound"]


class External(NamedTuple):
    """An external endpoint at which somebody is expected."""

    address: int
    port: int


class Known(IntFlag):
    """What another process needs to know of a control connection to go on with it, beside how far it was read."""

    SERVES = 1  # the inside host is the server
    GREETED = 2
    SPOKEN = 4
    LOGGED_IN = 8
    ASKED_PASV = 16
    ASKED_EPSV = 32
    WANTS_TLS = 64
    WITHIN_OUTBOUND = 128  # a line has begun that has not ended
    WITHIN_INBOUND = 256


_FACTS = {
    "serves": Known.SERVES,
    "has_greeted": Known.GREETED,
    "has_spoken": Known.SPOKEN,
    "has_logged_in": Known.LOGGED_IN,
}
_WITHIN: dict[Direction, Known] = {"outbound": Known.WITHIN_OUTBOUND, "inbound": Known.WITHIN_INBOUND}

Opens = Callable[[int], External | str]
"""Has somebody be expected at a port of the inside host; returns at which endpoint, or the name of a refusal."""


class Follower:
    """One control connection, from its first octet on. `refused`, `opened`: what was since it was taken last.

    address: that of the inside host; serves: it is the server. room: how many announcements may be edited before others
    are acknowledged. has_greeted, has_logged_in: whether the server, and the client, have begun as the protocol has it;
    has_spoken: the client has said a line. protocol: of what is opened; is_for_anybody: it is not for the remote host
    alone. may_serve: connections are followed also where the server is inside.
    """

    protocol = TCP
    is_for_anybody = False
    may_serve = False

    def __init__(self, address: int, opens: Opens, *, serves: bool) -> None:
        self.address = address
        self.serves = serves
        self.opens = opens
        self.refused: list[str] = []
        self.opened: list[tuple[int, External]] = []
        self.has_ended = False
        self.has_greeted = False
        self.has_logged_in = False
        self.has_spoken = False
        self.room = 0
        self._lines: dict[Direction, Lines] = {}

    def read_by(self, client: Reader, server: Reader) -> None:
        """Have these read the lines of the two ends."""
        ends = (Lines(server), Lines(client)) if self.serves else (Lines(client), Lines(server))
        self._lines = dict(zip(("outbound", "inbound"), ends, strict=True))

    def read(self, direction: Direction, octets: bytes) -> list[Change]:
        """Return the changes of new octets of a direction."""
        return self._lines[direction].read(octets)

    @staticmethod
    def commands_in(octets: bytes) -> int:
        """Return how many announcements there may be in octets, at the most."""
        raise NotImplementedError

    @property
    def is_done(self) -> bool:
        """Whether nothing of the connection has to be seen any more."""
        return self.has_ended and not any(lines.is_holding for lines in self._lines.values())

    def known(self) -> Known | None:
        """Return what another process needs to go on; None while octets are held back: it would not have them."""
        if any(lines.is_holding for lines in self._lines.values()):
            return None
        facts = [flag for name, flag in _FACTS.items() if getattr(self, name)]
        within = [flag for direction, flag in _WITHIN.items() if self._lines[direction].is_within]
        return Known(sum((*facts, *within)))

    def go_on(self, known: Known) -> None:
        """Be where another process was; what is left of a line that it has read the beginning of passes unread."""
        for name, flag in _FACTS.items():
            setattr(self, name, flag in known)
        for direction, flag in _WITHIN.items():
            if flag in known:
                self._lines[direction].pass_line()

    def refuse(self, name: str) -> None:
        """Note a refusal, once the connection is not passed on unread already."""
        if not self.has_ended:
            self.refused.append(name)
            self.has_ended = REFUSALS[name].ends

    def open(self, address: int, port: int) -> External | None:
        """Have somebody be expected at what an end has announced, if it may be."""
        if not self.has_logged_in:
            self.refuse("not_logged_in")
        elif address != self.address:
            self.refuse("other_address")
        elif port < LOWEST_PORT:
            self.refuse("low_port")
        elif not self.room:
            self.refuse("no_room")
        else:
            self.room -= 1
            external = self.opens(port)
            if not isinstance(external, str):
                self.opened.append((port, external))
                return external
            self.refuse(external)
        return None


F = TypeVar("F", bound=Follower)


class Side(Generic[F]):
    """What the readers of both ends' lines have in common: the follower."""

    def __init__(self, follower: F) -> None:
        self.follower = follower

    @property
    def has_ended(self) -> bool:
        return self.follower.has_ended
