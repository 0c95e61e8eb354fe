"""What PCP and NAT-PMP messages of inside hosts come to: leases and peers, and the answers that say so.

Both protocols have one port, and the first octet of a message says which it is (RFC 6887 appendix A). A mapping asked
for by one is none for the other: what PCP has a nonce for, NAT-PMP cannot take away.

What a host may cost is bounded. Beyond a number of messages in a second, and beyond a smaller one of those that change
something, it gets no answer, as if they had been lost: it asks again later, and later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Network
from typing import Literal

from fastmasq.daemon.leases import Leases, Refused, Towards, Why, Wish
from fastmasq.daemon.peers import Between
from fastmasq.policy.forwards import Remotes
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire import natpmp, pcp
from fastmasq.wire.numbers import TCP, UDP

SHORTEST_S = 120  # of PCP (RFC 6887 section 15)
MOST_HOSTS = 4096  # whose messages are counted

_PROTOCOLS: dict[int, Literal["tcp", "udp"]] = {TCP: "tcp", UDP: "udp"}
_PCP = {
    Why.FORBIDDEN: pcp.Result.NOT_AUTHORIZED,
    Why.FOREIGN: pcp.Result.NOT_AUTHORIZED,
    Why.QUOTA: pcp.Result.USER_EX_QUOTA,
    Why.FULL: pcp.Result.NO_RESOURCES,
    Why.NO_ADDRESS: pcp.Result.NETWORK_FAILURE,
    Why.TAKEN: pcp.Result.CANNOT_PROVIDE_EXTERNAL,
    Why.FAILED: pcp.Result.NO_RESOURCES,
    Why.REMOTES: pcp.Result.EXCESSIVE_REMOTE_PEERS,
    Why.UNREACHABLE: pcp.Result.NOT_AUTHORIZED,
}
_NATPMP = {
    Why.FORBIDDEN: natpmp.Result.NOT_AUTHORIZED,
    Why.FOREIGN: natpmp.Result.NOT_AUTHORIZED,
    Why.QUOTA: natpmp.Result.OUT_OF_RESOURCES,
    Why.FULL: natpmp.Result.OUT_OF_RESOURCES,
    Why.NO_ADDRESS: natpmp.Result.NETWORK_FAILURE,
    Why.TAKEN: natpmp.Result.OUT_OF_RESOURCES,
    Why.FAILED: natpmp.Result.OUT_OF_RESOURCES,
    Why.REMOTES: natpmp.Result.OUT_OF_RESOURCES,
    Why.UNREACHABLE: natpmp.Result.NOT_AUTHORIZED,
}


class Bucket:
    """A bucket of tokens for each host: how many it gets in a second, and has after it took none for a while."""

    def __init__(self, per_second: int, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left: dict[int, tuple[float, int]] = {}  # of each host, and as of when

    def take(self, host: int, now: int) -> bool:
        """Count one; return whether it was left. Of more hosts than MOST_HOSTS the longest quiet one is new again."""
        left, since = self._left.pop(host, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_second / NS_PER_SECOND)
        if len(self._left) >= MOST_HOSTS:
            del self._left[next(iter(self._left))]
        self._left[host] = (left - 1 if left >= 1 else left, now)
        return left >= 1


class Requests:
    """Answers messages by leases. `why_not_inside` returns why an address is no inside host's, None if it is."""

    def __init__(self, leases: Leases, why_not_inside: Callable[[int], str | None]) -> None:
        self._leases = leases
        self._why_not_inside = why_not_inside
        self._messages = Bucket(50, 200)
        self._changes = Bucket(10, 64)
        self._changes_of_all = Bucket(20, 100)
        self.unanswered = 0  # messages, since their hosts sent too many

    def answer(self, octets: bytes, host: int, now: int) -> bytes | None:
        """Return the answer to a message that came from an address, None for none; time in nanoseconds."""
        if not pcp.is_request(octets) or self._why_not_inside(host) is not None:
            return None
        if not self._messages.take(host, now):
            self.unanswered += 1
            return None
        answer = self._answer_natpmp if octets[0] == natpmp.VERSION else self._answer_pcp
        return answer(octets, host, now)

    @property
    def epoch(self) -> int:
        """When the present epoch began, in nanoseconds."""
        return self._leases.epoch_ns

    def announcements(self, now: int) -> tuple[bytes, bytes]:
        """Return what PCP and NAT-PMP tell everybody of a new epoch (RFC 6887 section 14.1, RFC 6886 section 3.2.1)."""
        return pcp.announcement(self._leases.epoch_s(now)), self._address_answer(0, now)

    def _address_answer(self, host: int, now: int) -> bytes:
        """Return what NAT-PMP says of the address outside."""
        address = self._leases.address_for(host)
        result = natpmp.Result.NETWORK_FAILURE if address is None else natpmp.Result.SUCCESS
        return natpmp.address_answer(result, self._leases.epoch_s(now), address or 0)

    def _may_change(self, host: int, now: int) -> bool:
        """Count a message that changes something, which takes milliseconds; return whether it may."""
        if self._changes.take(host, now) and self._changes_of_all.take(0, now):
            return True
        self.unanswered += 1
        return False

    # -- NAT-PMP ---------------------------------------------------------------------------------------------------

    def _answer_natpmp(self, octets: bytes, host: int, now: int) -> bytes | None:
        request = natpmp.Request.parse(octets)
        if request is None:
            return None
        if request.opcode == natpmp.ADDRESS:
            return self._address_answer(host, now)
        if request.opcode not in natpmp.PROTOCOLS:
            return natpmp.refusal(request.opcode, natpmp.Result.UNSUPPORTED_OPCODE, self._leases.epoch_s(now))
        if not self._may_change(host, now):
            return None
        wish = Wish(
            "nat-pmp", host, natpmp.PROTOCOLS[request.opcode], request.inside_port, request.outside_port,
            request.lifetime * NS_PER_SECOND,
        )  # fmt: skip
        result, outside, lifetime = natpmp.Result.SUCCESS, 0, 0
        try:
            if request.lifetime == 0:
                self._leases.delete(wish, now)
            elif request.inside_port == 0:
                result = natpmp.Result.NOT_AUTHORIZED
            else:
                lease = self._leases.grant(wish, now)
                outside, lifetime = lease.external, lease.left_s(now)
        except Refused as refused:
            result = _NATPMP[refused.why]
        return natpmp.map_answer(request, result, self._leases.epoch_s(now), outside, lifetime)

    # -- PCP -------------------------------------------------------------------------------------------------------

    def _answer_pcp(self, octets: bytes, host: int, now: int) -> bytes | None:
        lasts = None
        try:
            request = pcp.parse(octets)
            if request.client != pcp.mapped(host):
                raise pcp.Refused(pcp.Result.ADDRESS_MISMATCH)
            if request.opcode == pcp.Opcode.ANNOUNCE:
                return pcp.answer(request, 0, self._leases.epoch_s(now))
            if not self._may_change(host, now):
                return None
            does = self._peer if request.opcode == pcp.Opcode.PEER else self._map
            return does(request, request.mapping, host, now)
        except pcp.Refused as refused:
            result = refused.result
        except Refused as refused:
            result, lasts = _PCP[refused.why], refused.lasts_s
        return pcp.refusal(octets, result, self._leases.epoch_s(now), lasts)

    def _map(self, request: pcp.Request, asked: pcp.Mapping, host: int, now: int) -> bytes:
        """Do what a MAP request says (RFC 6887 sections 11.3 and 15). Raises one or the other Refused."""
        protocol = _PROTOCOLS.get(asked.protocol)
        is_deleting = request.lifetime == 0
        filters = request.filters()
        if is_deleting and filters:
            raise pcp.Refused(pcp.Result.MALFORMED_OPTION)
        if asked.protocol == 0 and asked.inside_port:
            raise pcp.Refused(pcp.Result.MALFORMED_REQUEST)
        if (protocol is None or not asked.inside_port) and not (is_deleting and asked.protocol in (0, *_PROTOCOLS)):
            raise pcp.Refused(pcp.Result.UNSUPP_PROTOCOL)
        lifetime = max(request.lifetime, SHORTEST_S)
        exactly = request.has(pcp.Code.PREFER_FAILURE)
        wish = Wish(
            "pcp", host, protocol or "", asked.inside_port, asked.outside_port, lifetime * NS_PER_SECOND, asked.nonce,
            exactly, "", *_remotes(filters),
        )  # fmt: skip
        if is_deleting:
            self._leases.delete(wish, now)
            return pcp.answer(request, 0, self._leases.epoch_s(now), asked)
        wanted = int.from_bytes(asked.outside_address[12:], "big")
        if exactly and wanted not in (0, self._leases.address_for(host)):
            raise Refused(Why.TAKEN)
        lease = self._leases.grant(wish, now)
        address = pcp.mapped(self._leases.address_for(host))
        granted = asked._replace(outside_port=lease.external, outside_address=address)
        return pcp.answer(request, lease.left_s(now), self._leases.epoch_s(now), granted)

    def _peer(self, request: pcp.Request, asked: pcp.Mapping, host: int, now: int) -> bytes:
        """Do what a PEER request says (RFC 6887 sections 12.3 and 15). Raises one or the other Refused."""
        remote_port, remote_address = request.remote
        if not (asked.protocol and asked.inside_port and remote_port):
            raise pcp.Refused(pcp.Result.MALFORMED_REQUEST)
        protocol = _PROTOCOLS.get(asked.protocol)
        if protocol is None:
            raise pcp.Refused(pcp.Result.UNSUPP_PROTOCOL)
        remote = pcp.unmapped(remote_address)
        if remote is None:
            raise Refused(Why.UNREACHABLE)
        between = Between(protocol, host, asked.inside_port, remote, remote_port)
        external = (int.from_bytes(asked.outside_address[12:], "big"), asked.outside_port)
        lifetime = max(request.lifetime, SHORTEST_S)
        wish = Towards(between, external, lifetime * NS_PER_SECOND, asked.nonce)
        if request.lifetime == 0:
            self._leases.let_go(wish, now)
            return pcp.answer(request, 0, self._leases.epoch_s(now), asked)
        peer = self._leases.prolong(wish, now)
        granted = asked._replace(outside_port=peer.external, outside_address=pcp.mapped(peer.address))
        return pcp.answer(request, peer.left_s(now), self._leases.epoch_s(now), granted)


def _remotes(filters: Iterable[pcp.Filter]) -> tuple[tuple[Remotes, ...], bool]:
    """Return whom filters, one after the other, want a lease to be for, and whether for no others that it has been for.

    RFC 6887 section 13.3.
    """
    wanted: list[Remotes] = []
    anew = False
    for each in filters:
        if each.prefix is None:
            wanted, anew = [], True
        else:
            wanted.append(Remotes(str(IPv4Network((each.address, each.prefix), strict=False)), each.port))
    return tuple(wanted), anew
