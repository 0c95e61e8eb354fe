"""Answers the packets that wait in the path for a tracker's word: each by the tracker whose protocol it is of."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fastmasq.daemon.application_gateways import ApplicationGateways
from fastmasq.daemon.vpn import Vpn
from fastmasq.log_limit import LogLimit
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.verdict import DROP_CODE
from fastmasq.table.keys import ends_of
from fastmasq.table.rows import OUTBOUND, row_and_direction
from fastmasq.trackers.vpn.decision import Decision, dropped
from fastmasq.wire.numbers import PPTP_PORT

log = logging.getLogger("fastmasq.engine")

AT_ONCE = 64  # packets decided before other events have their turn
LINES_PER_SECOND = 20  # of the log

Edits = tuple[tuple[int, bytes], ...]


class Punts:
    """The packets that wait in one path. `address` returns the one that a host's packets leave with now, or None."""

    def __init__(
        self,
        forwarder: Forwarder,
        vpn: Vpn | None,
        gateways: ApplicationGateways,
        address: Callable[..., int | None],
    ) -> None:
        self._forwarder = forwarder
        self._vpn = vpn
        self._gateways = gateways
        self._address = address
        self._limit = LogLimit(log, LINES_PER_SECOND, "trackers")

    def answer_waiting(self, now: int) -> bool:
        """Decide about the packets that wait, at most AT_ONCE of them; return whether more do. Time in nanoseconds."""
        for _ in range(AT_ONCE):
            with self._forwarder.locked():
                punt = self._forwarder.next_punt()
            if punt is None:
                return False
            self._answer(*punt, now)
        return True

    def every_second(self) -> None:
        self._limit.every_second()

    def _answer(self, kind: str, side: int, ref: int, packet: bytes, now: int) -> None:
        """Decide about the packet that waits first, and send it."""
        edits: Edits = ()
        try:
            decision, edits = self._decide(kind, side, ref, packet, now)
        except Exception:  # the packet must not stay at the head of the queue, nor end the forwarder
            if self._limit.allows(logging.ERROR):
                log.exception("a tracker failed on %s", packet[:80].hex())
            decision = dropped("tracker_failed")
        with self._forwarder.locked():
            self._forwarder.answer_punt(decision.to, DROP_CODE.get(decision.drop, 0), decision.id, edits)

    def _decide(self, kind: str, side: int, ref: int, packet: bytes, now: int) -> tuple[Decision, Edits]:
        if self._address() is None:
            return dropped("no_external_address"), ()
        if kind == "control" and not self._is_pptp(ref):
            return self._gateways.control(ref, packet, now), ()
        if self._vpn is None:
            return dropped("tracker_failed"), ()
        return self._vpn.decide(kind, side, ref, packet, now)

    def _is_pptp(self, ref: int) -> bool:
        """Whether a flow is of a PPTP control connection: that port is an end of it, inside or outside."""
        row, _ = row_and_direction(ref)
        with self._forwarder.locked():
            outbound = self._forwarder.table.sessions[row]["flow"][OUTBOUND].copy()
        ends = ends_of(outbound)
        return self._vpn is not None and PPTP_PORT in (ends.sid, ends.did, int(outbound["sid"]))
