"""Peers: the sessions that inside hosts have asked to be there for a time, each with one remote endpoint (PCP's PEER).

Such a session is one like any other: opened as by a packet from inside, if there is none yet, which the rules have to
let pass. As long as its host wants, its timer begins again every second; then it lives as long as its packets keep it.
A TCP connection that has ended is kept by nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from typing import Literal, NamedTuple

from msgspec import Struct, structs

from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.targets import link_towards
from fastmasq.kernel.links import Link
from fastmasq.policy.chains import ACCEPT, FORWARD, INPUT, MASQ, OUTPUT
from fastmasq.policy.evaluate import Packet, evaluate
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire.numbers import TCP, UDP

AT_ONCE = 64  # sessions whose timers begin again while packets wait

_NUMBERS = {"tcp": TCP, "udp": UDP}


class Between(NamedTuple):
    """The ends of a session of an inside host with a remote one."""

    protocol: Literal["tcp", "udp"]
    host: int
    port: int
    remote: int
    remote_port: int

    def __str__(self) -> str:
        inside, remote = IPv4Address(self.host), IPv4Address(self.remote)
        return f"{self.protocol} {inside}:{self.port} with {remote}:{self.remote_port}"


class Peer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A session that is kept until a time; `key` is what only who has asked for it knows."""

    between: Between
    address: int
    external: int
    until_ns: int
    key: bytes

    def left_s(self, now: int) -> int:
        return max(0, self.until_ns - now) // NS_PER_SECOND

    def __str__(self) -> str:
        return f"{self.between} by {IPv4Address(self.address)}:{self.external} (pcp)"


class Peers:
    """The sessions of one gateway that are kept."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._peers: dict[Between, Peer] = {}

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, between: Between) -> Peer | None:
        return self._peers.get(between)

    def keep(self, peers: Iterable[Peer]) -> None:
        """Keep these sessions, too."""
        self._peers.update((peer.between, peer) for peer in peers)

    def let_go(self, peer: Peer) -> None:
        """Leave a session to its packets; one that has had none is closed."""
        del self._peers[peer.between]
        self.close_unused(peer.between)

    def close_unused(self, between: Between) -> None:
        """Close a session that has had no packet."""
        with self._gateway.forwarder.locked():
            self._gateway.table.close_unused(*_key(between))

    # -- sessions --------------------------------------------------------------------------------------------------

    def find(self, between: Between, now: int) -> tuple[int, int] | None:
        """Return the external endpoint of a session, whose timer begins again; None if there is no such session."""
        with self._gateway.forwarder.locked():
            return self._gateway.table.prolong(*_key(between), now)

    def open(self, between: Between, address: int, wanted: int, now: int) -> tuple[int, int] | None:
        """Open a session by an external address; return its external endpoint, None where there is no room for it.

        wanted: the port there, of an endpoint that has none yet; 0 for any.
        """
        table = self._gateway.table
        with self._gateway.forwarder.locked():
            opened = table.open_towards(*_key(between), address, wanted, now)
            return None if isinstance(opened, str) else table.prolong(*_key(between), now)

    def may_open(self, between: Between) -> bool:
        """Whether a packet from inside would open the session: by its way, and by the chains input and forward."""
        snapshot, rules = self._gateway.watch.snapshot(), self._gateway.rules.rule_set
        remote = IPv4Address(between.remote)
        arriving, leaving = (link_towards(snapshot, each) for each in (between.host, between.remote))
        if remote.is_multicast or remote.is_loopback or remote.is_unspecified or remote.is_reserved:
            return False
        if arriving is None or leaving is None or leaving.role != "outside":
            return False
        if evaluate(rules, INPUT, _packet(between, (between.host, between.port), arriving)).verdict != ACCEPT:
            return False
        packet = _packet(between, (between.host, between.port), leaving)
        return rules.default_forward or evaluate(rules, FORWARD, packet).verdict == MASQ

    def may_leave(self, between: Between, external: tuple[int, int]) -> bool:
        """Whether that packet may leave by an external endpoint: by the chain output."""
        link = link_towards(self._gateway.watch.snapshot(), between.remote)
        packet = structs.replace(_packet(between, external, link), direction="out")
        return evaluate(self._gateway.rules.rule_set, OUTPUT, packet).verdict == ACCEPT

    # -- time ------------------------------------------------------------------------------------------------------

    def take_ended(self, now: int) -> list[Peer]:
        """Return those whose time is over, which are not kept from now on."""
        return self._take([peer for peer in self if peer.until_ns <= now])

    def take_lost(self, now: int) -> list[Peer]:
        """Have the timers of all begin again; return those that there are no sessions of, which are forgotten."""
        lost, peers = [], list(self)
        for at in range(0, len(peers), AT_ONCE):
            with self._gateway.forwarder.locked():
                few = peers[at : at + AT_ONCE]
                lost += [peer for peer in few if self._gateway.table.prolong(*_key(peer.between), now) is None]
        return self._take(lost)

    def _take(self, gone: list[Peer]) -> list[Peer]:
        for peer in gone:
            del self._peers[peer.between]
        return gone


def _key(between: Between) -> tuple[int, int, int, int, int]:
    """Return what the table knows a session by."""
    return (_NUMBERS[between.protocol], *between[1:])


def _packet(between: Between, source: tuple[int, int], link: Link) -> Packet:
    """Return the first packet of a session with this source, as rules see it on a link."""
    return Packet(
        source=source[0], destination=between.remote, protocol=_NUMBERS[between.protocol], source_port=source[1],
        destination_port=between.remote_port, syn=between.protocol == "tcp", interface=link.name,
        interface_address=link.addresses[0].address if link.addresses else 0,
    )  # fmt: skip
