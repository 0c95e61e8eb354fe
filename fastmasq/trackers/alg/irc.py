"""Follows one IRC connection of a client inside (RFC 1459), and has what its DCC offers announce be external.

    client says    DCC SEND, CHAT and the like: address and port    become external ones, and anybody may connect there
    client hears   DCC RESUME: the port that it has announced       becomes its own again
    client says    DCC ACCEPT: its own port                         becomes the external one

Who is to connect is another client, of whose address the connection says nothing: so an opening is for anybody, for one
connection and a minute. An offer with port 0 asks the other client to open a port instead, and passes as it is.

As of FTP, what a web page can make a browser send must open nothing: the client's first line is a command of IRC, and
the server has welcomed it before anything is edited.
"""

from __future__ import annotations

import re

from fastmasq.trackers.alg.follower import Follower, Opens, Side
from fastmasq.trackers.alg.lines import Part

_LONGEST = 4096  # octets: lines of 512, and tags before them (IRCv3)
_FIRST_VERBS = frozenset(b"CAP NICK PASS USER".split())
_COMMAND = re.compile(rb"(?:@\S+ +)?([A-Za-z]+)(?=[ \r\n])")
_WELCOME = re.compile(rb"(?:@\S+ +)?:\S+ +001 ")
_STARTTLS = re.compile(rb"(?:@\S+ +)?:\S+ +670 ")
_OFFER = rb"(?:SEND|CHAT|TSEND|SCHAT|MOVE) +(?:\"[^\"\r\n]*\"|[^ \r\n]+) +"
_SAYS = rb"(?:@\S+ +)?PRIVMSG +[^ \r\n]+ +:\x01DCC +"
_ANNOUNCES = re.compile(_SAYS + _OFFER + rb"((\d{1,10}) +(\d{1,5}))(?=[ \x01])", re.IGNORECASE)
_ANNOUNCES_BEGINS = re.compile(_SAYS + _OFFER + rb"(?=\d)", re.IGNORECASE)
_NAME = rb"(?:\"[^\"\r\n]*\"|[^ \r\n]+) +"
_ACCEPTS = re.compile(_SAYS + rb"ACCEPT +" + _NAME + rb"(\d{1,5})(?=[ \x01])", re.IGNORECASE)
_ACCEPTS_BEGINS = re.compile(_SAYS + rb"ACCEPT +" + _NAME + rb"(?=\d)", re.IGNORECASE)
_HEARS = rb"(?:@\S+ +)?:\S+ +PRIVMSG +[^ \r\n]+ +:\x01DCC +RESUME +" + _NAME
_RESUMES = re.compile(_HEARS + rb"(\d{1,5})(?=[ \x01])", re.IGNORECASE)
_RESUMES_BEGINS = re.compile(_HEARS + rb"(?=\d)", re.IGNORECASE)
_MESSAGE = re.compile(rb"\x01DCC ", re.IGNORECASE)
_MOST_PORTS = 64  # announced ones that are remembered, for RESUME and ACCEPT


class IrcFollower(Follower):
    """One connection of a client inside, from its first octet on."""

    is_for_anybody = True

    def __init__(self, address: int, opens: Opens, *, serves: bool) -> None:
        super().__init__(address, opens, serves=serves)
        self.externals: dict[int, int] = {}  # external port by the client's own
        self.read_by(_Client(self), _Server(self))

    @staticmethod
    def commands_in(octets: bytes) -> int:
        return 1 + len(_MESSAGE.findall(octets))


class _Client(Side[IrcFollower]):
    longest = _LONGEST

    def line(self, line: bytes) -> Part | None:
        command = _COMMAND.match(line)
        is_first, self.follower.has_spoken = not self.follower.has_spoken, True
        if command is None or b" HTTP/" in line or (is_first and command[1].upper() not in _FIRST_VERBS):
            self.follower.refuse("not_the_protocol")
            return None
        if accepted := _ACCEPTS.match(line):
            port = self.follower.externals.get(int(accepted[1]))
            return None if port is None else Part(*accepted.span(1), b"%d" % port)
        found = _ANNOUNCES.match(line)
        return self._announce(found) if found and int(found[3]) else None

    def _announce(self, found: re.Match[bytes]) -> Part | None:
        address, port = int(found[2]), int(found[3])
        if address > 0xFFFFFFFF or port > 0xFFFF:
            self.follower.refuse("bad_argument")
            return None
        external = self.follower.open(address, port)
        if external is None:
            return None
        self.follower.externals[port] = external.port
        if len(self.follower.externals) > _MOST_PORTS:
            del self.follower.externals[next(iter(self.follower.externals))]
        return Part(*found.span(1), b"%d %d" % external)

    def holds_from(self, line: bytes) -> int | None:
        if not (self.follower.has_logged_in and self.follower.room):
            return None
        found = _ANNOUNCES_BEGINS.match(line) or _ACCEPTS_BEGINS.match(line)
        return found.end() if found else None

    def overlong(self) -> None:
        self.follower.refuse("line_too_long")


class _Server(Side[IrcFollower]):
    longest = _LONGEST

    def line(self, line: bytes) -> Part | None:
        follower = self.follower
        if _WELCOME.match(line):
            follower.has_logged_in = True
        if _STARTTLS.match(line) and not follower.has_logged_in:
            follower.has_ended = True
        found = _RESUMES.match(line)
        own = [port for port, external in follower.externals.items() if found and external == int(found[1])]
        return Part(*found.span(1), b"%d" % own[0]) if own else None

    def holds_from(self, line: bytes) -> int | None:
        found = _RESUMES_BEGINS.match(line) if self.follower.externals and self.follower.room else None
        return found.end() if found else None

    def overlong(self) -> None:
        """Nothing of it is wanted."""
