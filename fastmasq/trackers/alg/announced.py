"""Follows connections whose client announces UDP ports in its first octets, as programs of the 1990s did.

    RealAudio   "PNA", a version of two octets, the first 0; then records: kind and length, of two octets each. Kinds 1
                and 7 begin with a port, for sound and for its repair; 0 is the last (ip_masq_raudio of 1998).
    VDOLive     a word, the word 6, at 24 "VDO Live", then a word with the port. Later a segment that begins with a
                word, the word 1 and "VDO Live" has the port once more (ip_masq_vdolive of 1998).

The ports become external ones, and the server may send there. No octet more leaves, and none less. The client speaks
first, and nothing is opened unless its very first octets are those of the protocol, which no browser can send.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastmasq.trackers.alg.follower import Direction, External, Follower, Known, Opens
from fastmasq.trackers.alg.lines import Change
from fastmasq.wire.numbers import UDP

_LONGEST = 4096  # octets of the client that are looked at
_PNA, _PNA_RECORDS = b"PNA\0", 5
_PNA_PORTS, _PNA_LAST = (1, 7), 0
_VDO_FIRST, _VDO_AGAIN, _VDO_TAG = b"\0\0\0\6", b"\0\0\0\1", b"VDO Live"
_VDO_PORT, _VDO_PORT_AGAIN = 34, 18


class AnnouncingFollower(Follower):
    """One connection of a client inside, from its first octet on."""

    protocol = UDP

    def __init__(self, address: int, opens: Opens, *, serves: bool) -> None:
        super().__init__(address, opens, serves=serves)
        self._said = bytearray()  # by the client
        self._edited = 0  # so much of it needs no looking at any more
        self._holds = False  # the last octet that was said: half of a port
        self.externals: dict[int, External] = {}  # by port

    @staticmethod
    def commands_in(octets: bytes) -> int:
        return 2

    def places(self, said: bytes) -> Iterator[int]:
        """Yield where the ports are in what a client has said, as far as that is known; in the end refuse, or end."""
        raise NotImplementedError

    def read(self, direction: Direction, octets: bytes) -> list[Change]:
        """Return the changes of new octets of a direction."""
        if direction == "inbound" or (self.has_ended and not self._holds):
            return []
        base = len(self._said)
        self._said += octets
        if self.has_ended:
            return [self._release(base)]
        changes = self._change_all(base)
        if len(self._said) > _LONGEST:
            self.has_ended = True
        return changes

    def _change_all(self, base: int) -> list[Change]:
        changes: list[Change] = []
        for place in self.places(bytes(self._said)):
            if place < self._edited or self.has_ended:
                continue
            if place >= len(self._said):
                break
            if place + 1 == len(self._said):
                if self.room:
                    self._holds = True
                    changes.append(Change(place - base, 1, b"", bytes(self._said[place - 1 : place])))
                break
            self._edited = place + 2
            changes += self._change(base, place)
        return changes

    def _change(self, base: int, place: int) -> list[Change]:
        """Open a port that was said whole, and return how it leaves."""
        if place < base and not self._holds:  # half of it has left, since there was no room to hold it back
            self.refuse("no_room")
            return []
        port = int.from_bytes(self._said[place : place + 2], "big")
        external = self.open(self.address, port) if port else None
        if self._holds:
            return [self._release(base, external)]
        if external is None or external.port == port:
            return []
        return [Change(place - base, 2, external.port.to_bytes(2, "big"))]

    def _release(self, base: int, external: External | None = None) -> Change:
        """Have the octet that is held back leave with the first one that has come now."""
        self._holds = False
        octets = bytes(self._said[base - 1 : base + 1]) if external is None else external.port.to_bytes(2, "big")
        return Change(0, 1, octets)

    def open(self, address: int, port: int) -> External | None:
        external = super().open(address, port)
        if external is not None:
            self.externals[port] = external
        return external

    def known(self) -> Known | None:
        """Return nothing: what is of use lies in the first octets."""
        return None

    @property
    def is_done(self) -> bool:
        return self.has_ended and not self._holds


class RealAudioFollower(AnnouncingFollower):
    """RealAudio, in the form before RTSP."""

    def places(self, said: bytes) -> Iterator[int]:
        if not _begins(said, 0, _PNA):
            self.refuse("not_the_protocol")
            return
        self.has_logged_in = len(said) >= len(_PNA)
        at = _PNA_RECORDS
        while at + 4 <= len(said):
            kind, length = (int.from_bytes(said[place : place + 2], "big") for place in (at, at + 2))
            if kind == _PNA_LAST:
                self.has_ended = True
                return
            if kind in _PNA_PORTS and length >= 2:
                yield at + 4
            at += 4 + length


class VdoLiveFollower(AnnouncingFollower):
    """VDOLive."""

    def places(self, said: bytes) -> Iterator[int]:
        if not (_begins(said, 4, _VDO_FIRST) and _begins(said, 24, _VDO_TAG)):
            self.refuse("not_the_protocol")
            return
        self.has_logged_in = len(said) >= _VDO_PORT - 2
        if self.has_logged_in:
            yield _VDO_PORT

    def _change_all(self, base: int) -> list[Change]:
        if base < _VDO_PORT + 2:
            return super()._change_all(base)
        segment = bytes(self._said[base:])
        if len(segment) < _VDO_PORT_AGAIN + 2 or segment[4:16] != _VDO_AGAIN + _VDO_TAG:
            return []
        self.has_ended = True
        external = self.externals.get(int.from_bytes(segment[_VDO_PORT_AGAIN : _VDO_PORT_AGAIN + 2], "big"))
        return [] if external is None else [Change(_VDO_PORT_AGAIN, 2, external.port.to_bytes(2, "big"))]


def _begins(said: bytes, at: int, wanted: bytes) -> bool:
    """Whether there is, at a place of what was said, what is wanted, as far as it has come."""
    return wanted.startswith(said[at : at + len(wanted)])
