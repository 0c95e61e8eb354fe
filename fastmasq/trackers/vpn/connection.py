"""A PPTP control connection as its session shows it: who serves, whether it was accepted, and whether it is over."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from fastmasq.trackers.vpn.fields import Address, Count, Number, SequenceNumber, Time
from fastmasq.trackers.vpn.pptp import ControlFollower, Direction, KeptStream

FINISHED = ("fin-out", "fin-in", "closing", "transitory")  # states of a session whose connection is being closed
OVER = ("closing", "transitory")
_ACK = 0x10


_Port = Annotated[int, Meta(ge=1, le=0xFFFF)]


class KeptConnection(Struct, kw_only=True, frozen=True, tag="control"):
    """What another process needs to go on with a Connection, whose session it has; `masq` is that of its calls."""

    number: Number
    key: tuple[Address, _Port, Address, _Port]
    masq: Address
    since: Time
    made: Count
    accepted: bool
    isns: dict[Direction, SequenceNumber]
    lost: bool
    streams: dict[Direction, KeptStream]


class Connection(Struct, kw_only=True, eq=False):
    """A PPTP control connection: its session's row and key, and the follower of its stream. `since` in nanoseconds.

    serves: the inside host is the server. accepted: its SYN was answered by one. isns: the number of each direction's
    SYN; reopening: a direction and the other number of a later SYN of it.
    """

    row: int
    key: tuple[int, int, int, int]  # the ends of its packets from inside
    inside: int
    remote: int
    number: int
    follower: ControlFollower
    since: int
    serves: bool
    state: str = ""
    unread: bool = False
    accepted: bool = False
    isns: dict[str, int] = {}
    reopening: tuple[str, int] | None = None

    def kept(self) -> KeptConnection | None:
        """Return what another process needs to go on with it; None if it is over."""
        control = self.follower.control
        if control is None or self.follower.calls.controls.get(self.number) is not control:
            return None
        return KeptConnection(
            number=self.number,
            key=self.key,
            masq=control.masq,
            since=self.since,
            made=control.made,
            accepted=self.accepted,
            isns=self.isns,
            lost=self.follower.lost,
            streams=self.follower.kept(),
        )

    @property
    def is_closed(self) -> bool:
        """Whether its end has begun."""
        return self.state in FINISHED

    def is_begun_again(self, direction: str, sequence: int, segment: bytes) -> bool:
        """Whether both ends begin anew on the same ports, as after a loss of power: one forged SYN cannot say so.

        A SYN with another number is remembered, and believed when the SYN of the other end acknowledges it.
        """
        first = self.isns.get(direction)
        if first is None and not self.follower.has_read:
            self.isns[direction] = first = sequence
        if not segment[13] & _ACK:
            self.reopening = None if sequence == first else (direction, sequence)
            return False
        acknowledged = (int.from_bytes(segment[8:12], "big") - 1) % (1 << 32)
        asked = self.reopening
        return asked is not None and asked[0] != direction and asked[1] == acknowledged
