"""The hosts, cookies and negotiations that tests of IPsec have in common."""

from __future__ import annotations

from fastmasq.trackers.vpn.ipsec import Ipsec
from fastmasq.trackers.vpn.isakmp import IpsecSettings
from fastmasq.wire.tunnels import NO_COOKIE, Isakmp

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
A, B, C = 0x0A000002, 0x0A000003, 0x0A000004
M, NEXT_M, R, OTHER_R = 0xC8C8C8C8, 0xC8C8C8C9, 0xC7000001, 0xC7000002
I1, I2, ANSWER, OTHER_ANSWER = b"initiat1", b"initiat2", b"respond1", b"respond2"
MAIN, QUICK = 2, 32


def header(initiator: bytes, responder: bytes = NO_COOKIE, exchange: int = MAIN, message_id: int = 0) -> Isakmp:
    return Isakmp(initiator, responder, 0x10, exchange, 0, message_id, 100)


def ipsec(**values) -> Ipsec:
    return Ipsec(IpsecSettings(**values))


def negotiate(
    both: Ipsec, inside: int, now: int, initiator: bytes, rtt: int = SECOND // 10, message_id: int = 1
) -> int:
    """Let a host and R go through a quick mode; return when it is over."""
    cookies = (initiator, initiator[::-1])
    both.isakmp_outbound(inside, M, R, header(*cookies, QUICK, message_id), now)
    assert both.isakmp_inbound(R, M, header(*cookies, QUICK, message_id), now + rtt).to == (inside,)
    both.isakmp_outbound(inside, M, R, header(*cookies, QUICK, message_id), now + rtt)
    return now + rtt
