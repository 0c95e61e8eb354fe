"""Whose an external port is: the host's, a forward's, a trigger's or mark's, a tracker's, or masquerading's.

An array of ports here is bool[3][65536] by port class: TCP, UDP, and the identifiers of ICMP.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from fastmasq.config.schema import Masquerade
from fastmasq.config.values import PortRanges
from fastmasq.errors import ConfigurationError
from fastmasq.kernel.guard.specification import DHCP_CLIENT_PORT
from fastmasq.kernel.ports import (
    PORT_RANGE,
    RESERVED_PORTS,
    USUAL_RANGES,
    PortSet,
    format_ports,
    host_ports,
    parse_ports,
)
from fastmasq.policy.forwards import Endpoint
from fastmasq.wire.numbers import CLASS_UDP, CLASSES

HOST_PORTS = (20480, 24575)
"""Where programs of the host connect from while we run.

Inside hosts take few of these: their kernels' own are 1024-5000 (old ones), 32768-60999 (Linux) and 49152-65535
(Windows, macOS, BSD); phones and exchanges have speech in 10000-20000, games and their servers are in 25565-29000,
Kubernetes' services in 30000-32767.
"""

_PROTOCOLS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)


def no_ports() -> np.ndarray:
    """Return an array without any port."""
    return np.zeros((len(CLASSES), 65536), bool)


class Ports:
    """The ledger of external ports: which may new mappings use, which does the guard keep, which were lost since?

    Those who know tell it, and it says:

    * `free`: what the settings name and the host does not use just now; `spare`: what the host does not use at all;
    * `reserved`: ports of triggers and marks, which lead inside and are for no outbound mapping; `keeping`:
      the classes whose outbound sessions may keep a spare port as their source (bool[3]);
    * `trackers`: ports that trackers follow by themselves, such as that of IKE;
    * `forwarded`: the ports that forwards want, by address;
    * `externals`: the addresses that masqueraded packets leave with, the usual one first, which is `external`; those
      before them are `former`.

    A port that is none of these any more is kept for as long as sessions have it: the host would reset them. `mapped`
    returns which ports of an array have a mapping on an address.
    """

    def __init__(self, mapped: Callable[[int, np.ndarray], np.ndarray]) -> None:
        self.free = no_ports()
        self.spare = no_ports()
        self.reserved = no_ports()
        self.keeping = np.zeros((len(CLASSES), 1), bool)
        self.trackers = no_ports()
        self.forwarded: Mapping[int, np.ndarray] = {}
        self.externals: tuple[int, ...] = ()
        self.former: set[int] = set()
        self._mapped = mapped
        self._claimed = no_ports()  # as of the last `take_lost`
        self._in_use = no_ports()  # nobody's any more but for their sessions
        self._left = no_ports()  # those of them that triggers and marks have left

    @property
    def external(self) -> int | None:
        return self.externals[0] if self.externals else None

    def move(self, *externals: int) -> None:
        """Masqueraded packets leave with these addresses from now on."""
        self.former |= {*self.externals}
        self.former -= {*externals}
        self.externals = externals

    def go_on(self, externals: tuple[int, ...], mapped: np.ndarray) -> None:
        """Take it from a run before: masqueraded packets left with these addresses, by these ports among others."""
        self.externals, self._in_use = externals, mapped

    def leave(self, free: np.ndarray) -> bool:
        """Take what the host leaves to us from now on; return whether that is anything else than before."""
        before, self.free = self.free, free
        return not np.array_equal(free, before)

    def leave_spare(self, spare: np.ndarray) -> None:
        """Take what the host does not use at all, so that sessions may keep it as their source."""
        self.spare = spare & ~self.trackers

    def track(self, port_class: int, port: int) -> None:
        """Have a tracker follow a port by itself."""
        self.trackers[port_class, port] = True

    def reserve(self, ports: np.ndarray, keeping: np.ndarray) -> None:
        """Have triggers and marks lead these ports inside, and sessions of the classes `keeping` keep a spare one."""
        self._left |= self.reserved & ~ports
        self.reserved, self.keeping = ports, keeping

    def forward(self, ports: Mapping[int, np.ndarray]) -> None:
        """Have forwards want these ports, by address."""
        self.forwarded = ports

    def keeps_sources(self) -> bool:
        """Whether sessions of any class may keep a spare port as their source."""
        return bool(self.keeping.any())

    def led_inside(self) -> np.ndarray:
        """Return the ports that triggers, marks, and sessions that keep their source port may use."""
        return self.reserved | (self.spare & self.keeping) if self.keeps_sources() else self.reserved

    def led_by_number(self) -> PortSet:
        """Return the ports that forwards, triggers and marks name, on whatever address, of either protocol."""
        named = np.zeros(65536, bool)
        for ports in (self.reserved, *self.forwarded.values()):
            named |= ports[: CLASS_UDP + 1].any(axis=0)
        return named

    def for_mappings(self, address: int | None) -> np.ndarray:
        """Return the ports that new outbound mappings may use on an address."""
        usable = self.free & ~self.reserved & ~self.trackers
        return usable & ~self.forwarded[address] if address in self.forwarded else usable

    def guarded(self, held: Mapping[int, np.ndarray], local: Collection[int]) -> dict[int, np.ndarray]:
        """Return the ports that the guard keeps from the host, by address.

        held: those that forwards want, have, or have left to sessions. local: the addresses of the host. Sessions of a
        former external address live on while a forward listens there.
        """
        kept = {address: ports for address, ports in held.items() if address in local}
        masqueraded = self._claim() | self._in_use | self.trackers
        for address in kept.keys() & self.former:
            kept[address] = kept[address] | masqueraded
        for address in self.externals:
            kept[address] = kept.get(address, False) | masqueraded
        return dict(sorted(kept.items()))

    def take_lost(self) -> np.ndarray:
        """Return the ports that have become nobody's since the last call but have sessions; forget those without."""
        claimed = self._claim()
        gone = (self._claimed | self._in_use) & ~claimed
        still = no_ports()
        for address in self.externals if gone.any() else ():
            still |= self._mapped(address, gone)
        lost = still & ~self._in_use
        self._claimed, self._in_use = claimed, still
        self._left &= still
        return lost

    def left(self) -> set[Endpoint]:
        """Return the external endpoints that triggers and marks had, and that sessions have still."""
        ports = np.argwhere(self._left).tolist()
        return {(address, port_class, port) for address in self.externals for port_class, port in ports}

    def _claim(self) -> np.ndarray:
        return self.free | self.led_inside()


class HostRange(NamedTuple):
    """The ports of programs of the host that connect and name none, both ends included.

    `reason` is why the range is what it is without us, empty where we move it; `is_decided`: the configuration says so.
    """

    first: int
    last: int
    reason: str = ""
    is_decided: bool = False

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def host_range(masquerade: Masquerade, own: tuple[int, int], reserved: PortSet) -> HostRange:
    """Return what the ephemeral range is to be while we run; `own` is what it is without us.

    A range that is not the kernel's is what the administrator wants, and stays; so does any where our own ports are
    named, since the host has all others then. reserved: what the kernel gives to no program in any case.
    """
    wanted = masquerade.host_ports.range
    if wanted is not None:
        return HostRange(*wanted)
    if masquerade.host_ports == "keep":
        return HostRange(*own, '[masquerade] host_ports is "keep"', is_decided=True)
    if masquerade.ports:
        return HostRange(*own, "[masquerade] ports names those of fastmasq", is_decided=True)
    if own not in (*USUAL_RANGES, HOST_PORTS):
        return HostRange(*own, f"somebody has set {PORT_RANGE}, which is 32768-60999 otherwise")
    first, last = HOST_PORTS
    if 2 * np.count_nonzero(reserved[first : last + 1]) > last + 1 - first:
        return HostRange(*own, f"{RESERVED_PORTS} has most of {first}-{last}")
    return HostRange(first, last)


def named_ports(ranges: PortRanges) -> PortSet:
    """Return the ports the settings name, none for "auto"."""
    return parse_ports(str(ranges)) if ranges else np.zeros(65536, bool)


def wanted_ports(ranges: PortRanges) -> PortSet:
    """Return the same, but "auto" is all of them."""
    if ranges:
        return named_ports(ranges)
    wanted = np.ones(65536, bool)
    wanted[0] = False
    return wanted


def allowed_ports(ranges: PortRanges, ephemeral: tuple[int, int] | None = None) -> np.ndarray:
    """Return what masquerading may use at this moment, or when the host's ephemeral range is going to be `ephemeral`.

    Ports that the settings name are taken from that range; with "auto" the host keeps all of it.
    """
    allowed = no_ports()
    wanted = wanted_ports(ranges)
    for row, protocol in enumerate(_PROTOCOLS):
        allowed[row] = wanted & ~host_ports(protocol, wanted if ranges else None, ephemeral)
    allowed[2] = wanted if ranges else True
    allowed[CLASS_UDP, DHCP_CLIENT_PORT] = False  # a client listens behind the guard, by a socket that has no port
    return allowed


def is_bound(protocol: int, port: int) -> bool:
    """Whether a program of the host has bound a port (protocol: IPPROTO_TCP or IPPROTO_UDP)."""
    return bool(host_ports(protocol, ours=np.ones(65536, bool))[port])


def reservation(ranges: PortRanges, present: PortSet, host: HostRange, led: PortSet | None = None) -> str | None:
    """Return the value ip_local_reserved_ports must have so that the host stays off our ports; None to leave it.

    present: the ports it has without us; host: where programs are to connect from; led: ports that lead inside by
    number, which are left out where programs would have none then. Raises ConfigurationError if they have none anyhow.
    """
    ephemeral = np.zeros(65536, bool)
    ephemeral[host.first : host.last + 1] = True
    wanted = named_ports(ranges)
    reserved = present | wanted
    if not (ephemeral & ~reserved).any():
        if (ephemeral & ~present).any():
            raise ConfigurationError(
                f"masquerade.ports: {ranges} leaves programs of this host none of the ports {host} that they "
                f'connect from ({PORT_RANGE}); leave some out, or use "auto"'
            )
        if not host.reason:
            raise ConfigurationError(f"masquerade.host_ports: {RESERVED_PORTS} has all of {host}; choose others")
    inside = ephemeral & ~reserved & led if led is not None else np.zeros(65536, bool)
    if (ephemeral & ~reserved & ~inside).any():
        reserved |= inside
    return format_ports(reserved) if (reserved & ~present & ephemeral).any() else None
