"""What becomes of one packet that a tracker was asked about."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from fastmasq.path.verdict import DROP_CODE
from fastmasq.trackers.vpn.events import Event


class Decision(Struct, frozen=True, kw_only=True):
    """Exactly one of three things: send, drop by name, or (neither) leave it to the gateway itself.

    to: outbound the new source address; inbound the inside hosts, each of which gets a copy.
    id: the Call ID to write into the GRE key, None leaves it.
    row: the row that explains the packet; the path may take its flow over. None: ask again for the next packet.
    """

    to: tuple[int, ...] = ()
    drop: str = ""
    id: int | None = None
    row: Any = None
    events: tuple[Event, ...] = ()

    @property
    def local(self) -> bool:
        return not self.to and not self.drop


def dropped(reason: str, *events: Event) -> Decision:
    """Return the decision to drop for a reason of `path/verdict.pxd`."""
    assert reason in DROP_CODE, reason
    return Decision(drop=reason, events=events)
