"""Follows one FTP control connection (RFC 959), and has the addresses and ports announced in it be external ones.

    client inside:  PORT, EPRT (RFC 2428)                     to a server outside, which connects to the client
    server inside:  227 after PASV, 229 after EPSV (2428)     to a client outside, which connects to the server

The other two ways need nothing: there the inside connects. Under TLS (RFC 4217) nothing can be read, and the connection
is passed on from the server's word on.

What a web page can make a browser send to port 21 must open nothing (RFC 2577, NAT slipstreaming): the server greets
first, the client's first line is a command of FTP, each line after it is one as well, and what is announced is the end
that announces it, at a port from 1024 on. What is refused passes as it came, and most of it ends the following.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address

from fastmasq.trackers.alg.follower import Direction, External, Follower, Known, Opens, Side
from fastmasq.trackers.alg.lines import Change, Part

_LONGEST_COMMAND = 512  # octets
_LONGEST_REPLY = 1024

_FIRST = b"USER AUTH FEAT OPTS HOST CLNT CSID SYST HELP NOOP QUIT ACCT LANG STAT PBSZ PROT CCC REIN PASV EPSV PORT EPRT"
_FIRST_VERBS = frozenset(_FIRST.split())
_ASKED = {b"PASV": Known.ASKED_PASV, b"EPSV": Known.ASKED_EPSV}
_HTTP_VERBS = frozenset(b"GET HEAD POST PUT".split())
_TELNET = re.compile(rb"(?:\xff[\xf1-\xf9])*")  # ABOR and STAT come behind such (section 4.1.3)
_COMMAND = re.compile(rb"([A-Za-z]{3,4})(?=[ \r\n])")
_ARGUMENT = re.compile(rb"(?:PORT|EPRT) +", re.IGNORECASE)
_PORT = re.compile(rb"PORT +(\d{1,3}(?:,\d{1,3}){5}) *\r?\n", re.IGNORECASE)
_EPRT = re.compile(rb"EPRT +(([!-~])(\d+)\2([0-9A-Fa-f.:]+)\2(\d{1,5})\2) *\r?\n", re.IGNORECASE)
_ANNOUNCEMENT = re.compile(rb"\n(?:PORT|EPRT|22[79]) ", re.IGNORECASE)
_GREETING = re.compile(rb"(220|120)[ -]")
_PASSIVE = re.compile(rb"227 [^0-9\r\n]*(\d{1,3}(?:,\d{1,3}){5})(?![0-9,])")
_EXTENDED = re.compile(rb"229 [^(\r\n]*\(([!-~])\1\1(\d{1,5})\1\)")
_PASSIVE_BEGINS = re.compile(rb"227 [^0-9\r\n]*(?=\d)")
_EXTENDED_BEGINS = re.compile(rb"229 [^(\r\n]*\(([!-~])\1\1(?=\d)")


class FtpFollower(Follower):
    """One control connection. `asked`: the verb that the server has to announce a port for."""

    may_serve = True

    def __init__(self, address: int, opens: Opens, *, serves: bool) -> None:
        super().__init__(address, opens, serves=serves)
        self.asked = b""
        self.wants_tls = False
        self.read_by(_Client(self), _Server(self))

    def read(self, direction: Direction, octets: bytes) -> list[Change]:
        """Return the changes of new octets of a direction."""
        if not self.has_greeted and (direction == "inbound") == self.serves:
            self.refuse("client_first")
        return super().read(direction, octets)

    def known(self) -> Known | None:
        known = super().known()
        if known is None:
            return None
        known |= Known.WANTS_TLS if self.wants_tls else Known(0)
        return known | _ASKED.get(self.asked, Known(0))

    def go_on(self, known: Known) -> None:
        super().go_on(known)
        self.wants_tls = Known.WANTS_TLS in known
        self.asked = next((verb for verb, flag in _ASKED.items() if flag in known), b"")

    @staticmethod
    def commands_in(octets: bytes) -> int:
        return 1 + len(_ANNOUNCEMENT.findall(octets))


class _Client(Side[FtpFollower]):
    longest = _LONGEST_COMMAND

    def line(self, line: bytes) -> Part | None:
        follower = self.follower
        command = _COMMAND.match(line, _TELNET.match(line).end())
        verb = command[1].upper() if command else b""
        is_first, follower.has_spoken = not follower.has_spoken, True
        if not verb or verb in _HTTP_VERBS or b" HTTP/" in line or (is_first and verb not in _FIRST_VERBS):
            follower.refuse("not_the_protocol")
            return None
        follower.has_logged_in |= verb == b"USER"
        follower.wants_tls |= verb == b"AUTH"
        if verb in _ASKED:
            follower.asked = verb
        if follower.serves or verb not in (b"PORT", b"EPRT"):
            return None
        return _six_numbers(follower, _PORT.fullmatch(line)) if verb == b"PORT" else self._eprt(line)

    def _eprt(self, line: bytes) -> Part | None:
        found = _EPRT.fullmatch(line)
        if found and int(found[3]) == 2:
            return None  # IPv6 is not ours
        address = _dotted(found[4]) if found else None
        if address is None or int(found[3]) != 1 or int(found[5]) > 65535:
            self.follower.refuse("bad_argument")
            return None
        external = self.follower.open(address, int(found[5]))
        if external is None:
            return None
        fields = (b"", b"1", str(IPv4Address(external.address)).encode(), b"%d" % external.port, b"")
        return Part(*found.span(1), found[2].join(fields))

    def holds_from(self, line: bytes) -> int | None:
        if self.follower.serves or not self.follower.has_logged_in or not self.follower.room:
            return None
        found = _ARGUMENT.match(line)
        return found.end() if found else None

    def overlong(self) -> None:
        self.follower.refuse("line_too_long")


class _Server(Side[FtpFollower]):
    longest = _LONGEST_REPLY

    def line(self, line: bytes) -> Part | None:
        follower = self.follower
        if not follower.has_greeted:
            greeting = _GREETING.match(line)
            if greeting is None:
                follower.refuse("no_greeting")
                return None
            follower.has_greeted = greeting[1] == b"220"
        if follower.wants_tls and line[:4] == b"234 ":
            follower.has_ended = True
        if not follower.serves or line[:4] not in (b"227 ", b"229 "):
            return None
        if follower.asked != (b"PASV" if line[:3] == b"227" else b"EPSV"):
            follower.refuse("unasked")
            return None
        follower.asked = b""
        return _six_numbers(follower, _PASSIVE.match(line)) if line[:3] == b"227" else self._extended(line)

    def _extended(self, line: bytes) -> Part | None:
        found = _EXTENDED.match(line)
        if found is None or int(found[2]) > 65535:
            self.follower.refuse("bad_argument")
            return None
        external = self.follower.open(self.follower.address, int(found[2]))
        return None if external is None else Part(*found.span(2), b"%d" % external.port)

    def holds_from(self, line: bytes) -> int | None:
        if not (self.follower.serves and self.follower.asked and self.follower.room):
            return None
        found = _PASSIVE_BEGINS.match(line) or _EXTENDED_BEGINS.match(line)
        return found.end() if found else None

    def overlong(self) -> None:
        if not self.follower.has_greeted:
            self.follower.refuse("no_greeting")


def _six_numbers(follower: FtpFollower, found: re.Match[bytes] | None) -> Part | None:
    """Open what a match has announced in its first group, as PORT and 227 do; none was no announcement."""
    address, port = _endpoint(found[1]) if found else (None, 0)
    if address is None:
        follower.refuse("bad_argument")
        return None
    external = follower.open(address, port)
    return None if external is None else Part(*found.span(1), _numbers(external))


def _endpoint(numbers: bytes) -> tuple[int | None, int]:
    """Return address and port of six numbers with commas between; no address if they are none."""
    parts = [int(part) for part in numbers.split(b",")]
    if max(parts) > 255:
        return None, 0
    return int.from_bytes(bytes(parts[:4]), "big"), parts[4] << 8 | parts[5]


def _numbers(external: External) -> bytes:
    octets = external.address.to_bytes(4, "big") + external.port.to_bytes(2, "big")
    return b",".join(b"%d" % octet for octet in octets)


def _dotted(text: bytes) -> int | None:
    """Return the address that four decimal numbers are, zeros before them or not."""
    parts = text.split(b".")
    if len(parts) != 4 or not all(part.isdigit() and len(part) <= 3 and int(part) <= 255 for part in parts):
        return None
    return int.from_bytes(bytes(int(part) for part in parts), "big")
