"""A timeout for each protocol and state, with the floor an RFC sets and the values of 1999."""

from __future__ import annotations

from dataclasses import dataclass

SECOND = 1_000_000_000
UNANSWERED = 60 * SECOND
EXPECTED = 60 * SECOND
WITHOUT_PORTS = 600 * SECOND  # GRE without calls, 6in4 and the like


@dataclass(frozen=True)
class Timeouts:
    """Idle times in nanoseconds. Floors: RFC 5382 REQ-5 (TCP), RFC 4787 REQ-5 (UDP), RFC 5508 REQ-2 (ICMP).

    tcp_closing: after a FIN in both directions, what `ipchains -M -S` calls FIN; None is tcp_transitory.
    """

    tcp_established: int = 7440 * SECOND
    tcp_transitory: int = 240 * SECOND
    udp: int = 300 * SECOND
    icmp: int = 60 * SECOND
    tcp_closing: int | None = None

    def by_state(self) -> tuple[int, ...]:
        """Return the timeout of every state, in the order of `State` in rows.pxd; the free row's is 0."""
        return (
            0,
            self.tcp_transitory,  # syn-sent
            self.tcp_transitory,  # syn-received
            self.tcp_established,
            self.tcp_established,  # fin-out: half-closed connections may work for hours (RFC 6146 section 3.5.2.2)
            self.tcp_established,  # fin-in
            self.tcp_transitory if self.tcp_closing is None else self.tcp_closing,
            self.tcp_transitory,  # transitory
            self.tcp_transitory,  # resumed
            self.udp,
            self.icmp,
            min(self.tcp_transitory, UNANSWERED),  # opened from outside: a client has given up by then
            self.udp,
            WITHOUT_PORTS,
            EXPECTED,
        )
