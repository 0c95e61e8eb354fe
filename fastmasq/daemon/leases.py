"""Leases: the forwards that inside hosts have asked for, each with its owner and the time it has left.

A lease is an ordinary forward of one port (`Policy.leased`) to the host that asked. It yields to all that files and
commands say: whoever forwards its port otherwise, or clears forwards, ends it. Which port it gets is for the ledger of
ports to say: one that neither the host, nor another forward, nor another inside host has, or has just had.

Beside leases there are peers (daemon/peers.py), single sessions that last as long as their hosts want; who may have
any, and how many, is as for leases.

All of both are in a file beside the sessions before their owners hear of them, with the epoch: since when none was lost
(RFC 6887 section 8.5). A start that does not go on with all of them begins another epoch, and so does another address
outside. Times are nanoseconds of `clock.now_ns`, which begins anew with the machine.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct, structs

from fastmasq.config.schema import PortMapping
from fastmasq.config.values import PortRanges
from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.origin import Origin
from fastmasq.daemon.peers import Between, Peer, Peers
from fastmasq.errors import FastmasqError, KernelError
from fastmasq.kernel.run_folder import RunFolder, file_of
from fastmasq.log_limit import LogLimit
from fastmasq.policy.forwards import MOST_REMOTES, OUTSIDE, PROTOCOLS, Endpoint, Forward, Remotes, Target
from fastmasq.units import NS_PER_SECOND, format_duration

log = logging.getLogger("fastmasq.forwards")

VERSION = 1
LARGEST = 4 << 20  # octets of the file
MOST = 2048  # leases: each change walks all of them
TRIES = 3  # ports, when sessions take the one that was chosen just then
LINES_PER_SECOND = 5  # of the log


class Why(StrEnum):
    """Why a lease is refused, with the sentence that `status` has for it."""

    FORBIDDEN = "forbidden"
    FOREIGN = "foreign"
    QUOTA = "quota"
    FULL = "full"
    NO_ADDRESS = "no_address"
    TAKEN = "taken"
    FAILED = "failed"
    REMOTES = "remotes"
    UNREACHABLE = "unreachable"


SENTENCES = {
    Why.FORBIDDEN: "the host, or the port, is none that [port_mapping] allow has",
    Why.FOREIGN: "another program of the host has the port: one that knows another nonce",
    Why.QUOTA: "the host has as many as [port_mapping] mappings_per_host says",
    Why.FULL: f"there are {MOST} in all, or no port that the host may have is free",
    Why.NO_ADDRESS: "the outside link has no address just now",
    Why.TAKEN: "somebody else has the very port that was asked for, or the session has another",
    Why.FAILED: "the gateway could not put it in force, see the log",
    Why.REMOTES: f"it would be for more than {MOST_REMOTES} remote networks",
    Why.UNREACHABLE: "rules, or routes, have the host open no session with that remote endpoint",
}


By = Literal["pcp", "nat-pmp", "upnp"]  # a protocol


class Refused(Exception):
    """No lease, `why`, and for how long that is known to last, in seconds."""

    def __init__(self, why: Why, lasts_s: int | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.lasts_s = lasts_s


class Wish(NamedTuple):
    """What an inside host asks for: an external port, 0 for any, that leads to a port of its own, for so long.

    `exactly`: that port or none. `about` is what the host says of it. `key` is what only its owner knows of a lease;
    those without a key are of all programs of a host. It is to be for these `remotes` as well as those that it is for
    already; with `anew`, for these alone, and for everybody if there are none.
    """

    by: By
    host: int
    protocol: Literal["tcp", "udp"]
    port: int
    external: int
    lifetime_ns: int
    key: bytes = b""
    exactly: bool = False
    about: str = ""
    remotes: tuple[Remotes, ...] = ()
    anew: bool = False

    def remotes_after(self, before: tuple[Remotes, ...]) -> tuple[Remotes, ...]:
        """Return whom a lease is for that has been for those. Raises Refused."""
        after = tuple(dict.fromkeys((*(() if self.anew else before), *self.remotes)))
        if len(after) > MOST_REMOTES:
            raise Refused(Why.REMOTES)
        return after


class Towards(NamedTuple):
    """What an inside host asks for: that a session be there for so long.

    external: what a new one is to have as its external address and port, 0 for any; else it is refused. `key` is what
    only its owner knows.
    """

    between: Between
    external: tuple[int, int]
    lifetime_ns: int
    key: bytes


class Lease(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An external port that leads to a port of an inside host until a time."""

    by: By
    host: int
    protocol: Literal["tcp", "udp"]
    port: int
    listen: str
    external: int
    until_ns: int
    key: bytes = b""
    about: str = ""
    remotes: tuple[Remotes, ...] = ()

    def forward(self) -> Forward:
        target = Target(str(IPv4Address(self.host)), self.port)
        return Forward(
            protocol=self.protocol, listen=self.listen, first=self.external, last=self.external, targets=(target,),
            remotes=self.remotes,
        )  # fmt: skip

    def left_s(self, now: int) -> int:
        return max(0, self.until_ns - now) // NS_PER_SECOND

    @property
    def inside(self) -> tuple[int, str, int]:
        return self.host, self.protocol, self.port

    def __str__(self) -> str:
        return f"{self.protocol} {self.listen}:{self.external} to {IPv4Address(self.host)}:{self.port} ({self.by})"


class Image(Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds, as JSON."""

    origin: Origin
    epoch_ns: int
    externals: tuple[int, ...]
    leases: tuple[Lease, ...]
    peers: tuple[Peer, ...] = ()


class Leases:
    """The leases of one gateway, kept in a folder, None where nothing can be kept."""

    def __init__(self, folder: RunFolder | None, gateway: Gateway, settings: PortMapping, now: int) -> None:
        self._folder = folder
        self._gateway = gateway
        self._settings = settings
        self._origin = Origin.here(VERSION)
        self._name = file_of(self._origin.namespace, "leases")
        self._leases: dict[Forward, Lease] = {}
        self.peers = Peers(gateway)
        self._former: dict[Endpoint, int] = {}  # whose leases ended, where sessions by them go on
        self.epoch_ns = now
        self._externals: tuple[int, ...] = ()
        self._changes = -1  # of the gateway's policy, as of the last comparison
        self._lacks_room = False
        self._limit = LogLimit(log, LINES_PER_SECOND, "leases")
        self.granted: Counter[str] = Counter()
        self.refused: Counter[Why] = Counter()

    # -- what a run before has left --------------------------------------------------------------------------------

    def take_up(self, now: int, *, goes_on: bool) -> None:
        """Have the gateway, which has not begun, go on with what a run before has left, if all else of that goes on."""
        if self._folder is None:
            return
        image = self._read() if goes_on else None
        if image is None:
            self._forget_file()
            return
        going_on = [lease for lease in image.leases if lease.until_ns > now and self._allows(lease)]
        gateway = self._gateway
        gateway.take_up(replace(gateway.policy(), leased=tuple(lease.forward() for lease in going_on)))
        self._leases = {lease.forward(): lease for lease in going_on}
        peers = [peer for peer in image.peers if peer.until_ns > now and self._allows_peer(peer)]
        self.peers.keep(peers)
        wanted = [each for each in (*image.leases, *image.peers) if each.until_ns > now]
        if len(wanted) == len(going_on) + len(peers):
            self.epoch_ns, self._externals = image.epoch_ns, image.externals
        if wanted:
            log.info("leases that go on: %d, and peers: %d", len(going_on), len(peers))

    def _read(self) -> Image | None:
        """Return what the file says; nothing of one that is damaged or not about us, which is set aside."""
        try:
            content = self._folder.read(self._name, LARGEST)
            if content is None:
                return None
            image = msgspec.json.decode(content, type=Image)
            complaint = image.origin.complaint(VERSION)
            if complaint is None:
                return image
        except (msgspec.DecodeError, RecursionError) as error:
            complaint = f"it is damaged: {error}"
        except KernelError as error:
            complaint = str(error)
        aside = self._folder.set_aside(self._name)
        log.warning("%s: leases do not go on: %s; it is now %s", self._folder.path / self._name, complaint, aside)
        return None

    def _allows(self, lease: Lease) -> bool:
        """Whether the settings have a lease go on."""
        is_on = self._settings.upnp if lease.by == "upnp" else self._settings.pcp
        return is_on and self._may(lease.host, lease.port) and self._may(lease.host, lease.external)

    def _allows_peer(self, peer: Peer) -> bool:
        return self._settings.pcp and self._may(peer.between.host, peer.between.port)

    # -- what inside hosts ask -------------------------------------------------------------------------------------

    def epoch_s(self, now: int) -> int:
        """Return for how many seconds no lease has been lost."""
        return (now - self.epoch_ns) // NS_PER_SECOND

    def address_for(self, host: int) -> int | None:
        """Return the address outside that leases of an inside host are on; None while there is none."""
        return self._endpoint_of(host)[1]

    def _endpoint_of(self, host: int) -> tuple[str, int | None]:
        """Return what a lease of an inside host listens on, and its address."""
        address = self._gateway.table.external_for(host)
        if len(self._gateway.settings.masquerade.addresses) > 1 and address is not None:
            return str(IPv4Address(address)), address
        return OUTSIDE, self._gateway.ports.external

    def grant(self, wish: Wish, now: int) -> Lease:
        """Return the lease that is granted: a new one, or the one there is for longer. Raises Refused."""
        try:
            return self._grant(wish, now)
        except Refused as refused:
            self._note_refusal(wish, refused)
            raise

    def _grant(self, wish: Wish, now: int) -> Lease:
        self.follow(now)
        if not self._may(wish.host, wish.port):
            raise Refused(Why.FORBIDDEN)
        listen, address = self._endpoint_of(wish.host)
        if address is None:
            raise Refused(Why.NO_ADDRESS)
        until = now + min(wish.lifetime_ns, self._settings.longest)
        present = next((each for each in self._leases.values() if each.inside == (wish.host, *wish[2:4])), None)
        if present is not None and present.key != wish.key:
            raise Refused(Why.FOREIGN, present.left_s(now))
        if present is not None and not self._is_in_force(present):
            self._without([present])  # others have its port on an address that is new
            present = None
        if present is not None:
            if wish.exactly and wish.external not in (0, present.external):
                raise Refused(Why.TAKEN)
            lease = structs.replace(present, until_ns=until, remotes=wish.remotes_after(present.remotes))
            self._replace(present, lease)
            self._note(lease, "renewed", now)
        else:
            lease = self._lease(wish, listen, address, until)
            if lease.forward() in self._leases:
                self._note(lease, "granted", now)
        self._write()
        return lease

    def delete(self, wish: Wish, now: int) -> None:
        """End the lease of an inside endpoint, or with port 0 all of a host that its key is for, if there are any.

        Without a protocol, "", those of both. Raises Refused.
        """
        self.follow(now)
        found = [
            lease
            for lease in self._leases.values()
            if lease.host == wish.host and wish.protocol in ("", lease.protocol) and wish.port in (0, lease.port)
        ]
        own = [lease for lease in found if lease.key == wish.key]
        if found and not own:
            foreign = Refused(Why.FOREIGN, found[0].left_s(now))
            self._note_refusal(wish, foreign)
            raise foreign
        if not own:
            return
        if not self._without(own):
            raise Refused(Why.FAILED)
        for lease in own:
            self._note(lease, "deleted", now)
        self._write()

    def _may(self, host: int, port: int) -> bool:
        return any(first <= port <= last for first, last in self._settings.allow.ranges_of(host))

    # -- peers -----------------------------------------------------------------------------------------------------

    def prolong(self, wish: Towards, now: int) -> Peer:
        """Return the session that is there as long as is wished: a new one, or one there is already. Raises Refused."""
        try:
            peer, what = self._prolong(wish, now)
        except Refused as refused:
            self._count_refusal(refused, f"{wish.between} (pcp)")
            raise
        self.peers.keep([peer])
        self._note(peer, what, now)
        self._write()
        return peer

    def _prolong(self, wish: Towards, now: int) -> tuple[Peer, str]:
        self.follow(now)
        between = wish.between
        if not self._may(between.host, between.port):
            raise Refused(Why.FORBIDDEN)
        _, address = self._endpoint_of(between.host)
        if address is None:
            raise Refused(Why.NO_ADDRESS)
        present = self.peers.get(between)
        if present is None:
            self._check_quota(between.host)
        elif present.key != wish.key:
            raise Refused(Why.FOREIGN, present.left_s(now))
        external = self.peers.find(between, now) or self._open(wish, address, now)
        until = now + min(wish.lifetime_ns, self._settings.longest)
        what = "granted"
        if present is not None:
            until, what = max(until, present.until_ns), "renewed"
        return Peer(between=between, address=external[0], external=external[1], until_ns=until, key=wish.key), what

    def _open(self, wish: Towards, address: int, now: int) -> tuple[int, int]:
        """Return the external endpoint of a session that is opened. Raises Refused."""
        between, (wanted_address, wanted) = wish.between, wish.external
        if not self.peers.may_open(between):
            raise Refused(Why.UNREACHABLE)
        port_class = PROTOCOLS.index(between.protocol)
        with self._gateway.forwarder.locked():
            had = self._gateway.table.external_of(port_class, between.host, between.port)
        if wanted_address not in (0, had[0] if had else address):
            raise Refused(Why.TAKEN)
        if wanted and had and had[1] != wanted:
            raise Refused(Why.TAKEN)
        if wanted and not had:
            usable = self._usable(address, port_class, between.host) & self._gateway.ports.free[port_class]
            if not (usable[wanted] and self._is_free((address, port_class), wanted, between.host)):
                raise Refused(Why.TAKEN)
        external = self.peers.open(between, address, wanted, now)
        if external is None:
            raise Refused(Why.FULL)
        refusal = None if self.peers.may_leave(between, external) else Why.UNREACHABLE
        if wanted not in (0, external[1]):
            refusal = Why.TAKEN  # somebody was faster
        if refusal is not None:
            self.peers.close_unused(between)
            raise Refused(refusal)
        return external

    def let_go(self, wish: Towards, now: int) -> None:
        """Leave a session to its packets, if it was kept. Raises Refused."""
        self.follow(now)
        present = self.peers.get(wish.between)
        if present is None:
            return
        if present.key != wish.key:
            foreign = Refused(Why.FOREIGN, present.left_s(now))
            self._count_refusal(foreign, f"{wish.between} (pcp)")
            raise foreign
        self.peers.let_go(present)
        self._note(present, "deleted", now)
        self._write()

    # -- which port ------------------------------------------------------------------------------------------------

    def _lease(self, wish: Wish, listen: str, address: int, until: int) -> Lease:
        """Return a new lease that is in force, or what a forward of files and commands comes to. Raises Refused."""
        port_class = PROTOCOLS.index(wish.protocol)
        gateway = self._gateway
        with gateway.forwarder.locked():
            external = gateway.table.external_of(port_class, wish.host, wish.port)
        own = Lease(
            by=wish.by, host=wish.host, protocol=wish.protocol, port=wish.port, listen=listen, external=wish.external,
            until_ns=until, key=wish.key, about=wish.about, remotes=wish.remotes_after(()),
        )  # fmt: skip
        if external in {endpoint[::2] for endpoint in gateway.forwards.placed if endpoint[1] == port_class}:
            if own.remotes or (wish.exactly and wish.external not in (0, external[1])):
                raise Refused(Why.TAKEN)
            return structs.replace(own, external=external[1])  # which is no lease, and lasts
        self._check_quota(wish.host)
        usable = self._usable(address, port_class, wish.host)
        for _ in range(TRIES):
            if external is not None and external[0] == address and self._may(wish.host, external[1]):
                port = external[1]
                if wish.exactly and wish.external not in (0, port):
                    raise Refused(Why.TAKEN)
            else:
                port = self._choose(wish, usable, (address, port_class))
            lease = structs.replace(own, external=port)
            if self._put(lease):
                return lease
            usable[port], external = False, None
        raise Refused(Why.FULL)

    def _check_quota(self, host: int) -> None:
        """Raise Refused if a host may have no more."""
        hosts = [*(lease.host for lease in self), *(peer.between.host for peer in self.peers)]
        if hosts.count(host) >= self._settings.mappings_per_host:
            raise Refused(Why.QUOTA)
        if len(hosts) >= MOST:
            raise Refused(Why.FULL)

    def _usable(self, address: int, port_class: int, host: int) -> np.ndarray:
        """Return which ports of a class a host may have but for the sessions of others, bool[65536]."""
        ledger, gateway = self._gateway.ports, self._gateway
        usable = ledger.free[port_class] | gateway.host.free_ports(PortRanges())[port_class]
        usable &= ~(ledger.led_inside() | ledger.trackers)[port_class]
        held = gateway.forwards.held_ports().get(address)
        if held is not None:
            usable &= ~held[port_class]
        for endpoint, former in self._former.items():
            if endpoint[:2] == (address, port_class) and former == host:
                usable[endpoint[2]] = True
        for lease in self._leases.values():
            if lease.host != host:  # the other protocol's, too (RFC 6886 section 3.3)
                usable[lease.external] = False
        allowed = np.zeros(65536, bool)
        for first, last in self._settings.allow.ranges_of(host):
            allowed[first : last + 1] = True
        return usable & allowed

    def _choose(self, wish: Wish, usable: np.ndarray, pool: tuple[int, int]) -> int:
        """Return the port that is wished, or that of the inside endpoint, or any. Raises Refused."""
        wished = [port for port in (wish.external, 0 if wish.exactly and wish.external else wish.port) if port]
        for port in wished:
            if usable[port] and self._is_free(pool, port, wish.host):
                return port
        if wish.exactly and wish.external:
            raise Refused(Why.TAKEN)
        left = np.flatnonzero(usable & ~self._gateway.table.mapped_ports(pool[0])[pool[1]])
        start = int.from_bytes(os.urandom(8), "little") % len(left) if len(left) else 0
        for port in np.roll(left, -start).tolist():
            if self._is_free(pool, port, wish.host):
                return port
        raise Refused(Why.FULL)

    def _is_free(self, pool: tuple[int, int], port: int, host: int) -> bool:
        with self._gateway.forwarder.locked():
            is_free = self._gateway.table.is_free(*pool, port, host)
        return is_free or self._former.get((*pool, port)) == host

    # -- in force --------------------------------------------------------------------------------------------------

    def _put(self, lease: Lease) -> bool:
        """Have a lease in force besides the others; return whether it is. Raises Refused."""
        if not self._hold({**self._leases, lease.forward(): lease}):
            raise Refused(Why.FAILED)
        if self._is_in_force(lease):
            return True
        self._without([lease])
        return False

    def _replace(self, present: Lease, lease: Lease) -> None:
        """Have another lease of a port in the place of one. Raises Refused, and that one stays."""
        if lease.remotes == present.remotes:
            self._leases[lease.forward()] = lease
            return
        others = {each: other for each, other in self._leases.items() if other is not present}
        if not self._hold({**others, lease.forward(): lease}):
            raise Refused(Why.FAILED)

    def _without(self, gone: Iterable[Lease]) -> bool:
        """Have these leases no longer, if there are any; return whether that could be."""
        without = {lease.forward() for lease in gone}
        if not without:
            return True
        return self._hold({each: lease for each, lease in self._leases.items() if each not in without})

    def _hold(self, leases: dict[Forward, Lease]) -> bool:
        """Have the gateway forward for these leases and no others; return whether it does."""
        old = self._gateway.policy()
        try:
            self._gateway.apply(old, replace(old, leased=tuple(leases)))
        except FastmasqError as error:
            if self._limit.allows(logging.WARNING):
                log.warning("leases are as they were: %s", error)
            return False
        for forward in self._leases.keys() - leases.keys():
            endpoint = self._endpoint(forward)
            if endpoint is not None:
                self._former[endpoint] = self._leases[forward].host
        left = self._gateway.forwards.left
        self._former = {endpoint: host for endpoint, host in self._former.items() if endpoint in left}
        self._leases = leases
        self._changes = self._gateway.changes
        return True

    def follow(self, now: int) -> None:
        """Give up leases whose time is over, or whose ports files and commands have taken or taken away.

        On other addresses than before there is another epoch.
        """
        externals = self._gateway.ports.externals
        if externals and externals != self._externals:
            if self._externals:
                self.epoch_ns = now
            self._externals = externals
            self._write()
        if self._gateway.changes != self._changes:
            self._compare(now)
        ended = [lease for lease in self._leases.values() if lease.until_ns <= now]
        if not self._without(ended):
            ended = []
        self._tell_gone([*ended, *self.peers.take_ended(now)], "ended", now)

    def _compare(self, now: int) -> None:
        gateway, changes = self._gateway, self._gateway.changes
        leased = gateway.forwards.leased
        kept = {each: lease for each, lease in self._leases.items() if each in leased and self._is_whole(each)}
        lost = [lease for each, lease in self._leases.items() if each not in kept]
        if (lost or len(kept) != len(leased)) and self._hold(kept):
            self._tell_gone(lost, "taken away", now)
        self._changes = max(changes, self._changes)

    def _is_whole(self, forward: Forward) -> bool:
        """Whether no other forward has the port."""
        endpoint = self._endpoint(forward)
        return endpoint is None or self._gateway.forwards.owners.get(endpoint) == forward

    def _is_in_force(self, lease: Lease) -> bool:
        return self._endpoint(lease.forward()) in self._gateway.forwards.placed

    def _endpoint(self, forward: Forward) -> Endpoint | None:
        """Return the external endpoint of a forward, None while there is no such address."""
        address = self._gateway.forwards.addresses.get(forward.listen)
        return None if address is None else (address, PROTOCOLS.index(forward.protocol), forward.first)

    def _tell_gone(self, gone: Iterable[Lease | Peer], what: str, now: int) -> None:
        """Say what there is no longer, and have the file have it no longer."""
        for each in gone:
            self._note(each, what, now)
        if gone:
            self._write()

    def every_second(self, now: int) -> None:
        """Have the sessions that are kept be there for some time more; those that have gone all the same are lost."""
        self._limit.every_second()
        self._tell_gone(self.peers.take_lost(now), "lost", now)

    # -- the file --------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Have the file hold all leases; where it cannot, none, so that the next run begins another epoch."""
        if self._folder is None:
            return
        image = Image(self._origin, self.epoch_ns, self._externals, tuple(self), tuple(self.peers))
        try:
            self._folder.write(self._name, msgspec.json.encode(image))
        except (KernelError, OSError) as error:
            if not self._lacks_room:
                log.warning("leases do not outlive this process: %s", error)
            self._lacks_room = True
            self._forget_file()
        else:
            self._lacks_room = False

    def _forget_file(self) -> None:
        try:
            self._folder.remove(self._name)
        except OSError as error:
            log.warning("%s: %s", self._folder.path / self._name, error.strerror)

    # -- what is told ----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    def at(self, protocol: str, external: int) -> Lease | None:
        """Return the lease of an external port, whoever has it."""
        return next((each for each in self if (each.protocol, each.external) == (protocol, external)), None)

    def describe(self, now: int) -> dict[str, Any] | None:
        """Return what `status` says of leases; None where nobody may ask for any."""
        if not (self._settings.pcp or self._settings.upnp):
            return None
        return {
            "leases": len(self._leases),
            "peers": len(self.peers),
            "epoch_s": self.epoch_s(now),
            "granted": dict(self.granted),
            "refused": [
                {"reason": why, "count": count, "sentence": SENTENCES[why]} for why, count in self.refused.items()
            ],
        }

    def _note(self, lease: Lease | Peer, what: str, now: int) -> None:
        self.granted[what] += 1
        level = logging.DEBUG if what == "renewed" else logging.INFO
        if self._limit.allows(level):
            left = (
                f" for {format_duration(lease.left_s(now) * NS_PER_SECOND)}" if what in ("granted", "renewed") else ""
            )
            log.log(level, "%s: %s%s", lease, what, left)

    def _note_refusal(self, wish: Wish, refused: Refused) -> None:
        inside = f"{IPv4Address(wish.host)}:{wish.port}"
        self._count_refusal(refused, f"{wish.protocol} {wish.external or 'any'} to {inside} ({wish.by})")

    def _count_refusal(self, refused: Refused, asked: str) -> None:
        self.refused[refused.why] += 1
        if self._limit.allows(logging.INFO):
            log.info("%s: refused: %s", asked, SENTENCES[refused.why])
