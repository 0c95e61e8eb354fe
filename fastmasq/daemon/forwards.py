"""Keeps the port forwards of the running forwarder as policy says, whatever addresses its links have.

The list is policy; what of it is in force depends on the addresses of the moment, and on the ports that sessions still
hold. `place` compares the two and makes only the difference, so equal forwards and live sessions are left alone.

Control methods, with parameters and result:

    forwards
     -> [{"protocol": "tcp", "listen": "eth1", "first": 8080, "last": 8080, "address": "200.200.200.200",
          "state": "in force", "targets": [{"address": "10.0.0.2", "port": 80, "preference": 10, "left": 7}],
          "steal": false, "remotes": [], "from": "configuration", "owner": null, "left_s": null}, ...]
        each with its state, its targets beginning with the one whose turn it is; state is "in force", "waiting", "no
        address", address then null, or "taken": another forward has the port, or one of the ports, of the same address.
        One that an inside host has asked for is from "pcp", "nat-pmp" or "upnp", and has an owner and the seconds it
        has left. It is for the "remotes", such as {"network": "199.0.0.0/24", "port": 53}, port 0 being any, or for
        everybody if there are none.

    forwards.change, see daemon/policy.py
     -> {"forwards": 3, "warnings": ["udp 200.200.200.200:80: sessions still use this port; ...", ...]}
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from fastmasq.daemon.ports import no_ports
from fastmasq.errors import ConfigurationError
from fastmasq.path.forwarder import Forwarder
from fastmasq.policy import forwards
from fastmasq.policy.forwards import Endpoint, Forward, Placed
from fastmasq.table.forward_table import ForwardTable
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import FORWARD_ROWS

log = logging.getLogger("fastmasq.forwards")

AT_ONCE = 64  # endpoints changed while packets wait


class Forwards:
    """The port forwards of one gateway; `of_triggers` are those that triggers with a fixed host come to.

    `leased` are those that inside hosts have asked for; they yield to all others.
    """

    def __init__(self, table: MasqTable, forwarder: Forwarder) -> None:
        self.table = table
        self.forwarder = forwarder
        self.rows = ForwardTable(table)
        self.forwards: tuple[Forward, ...] = ()
        self.of_triggers: tuple[Forward, ...] = ()
        self.leased: tuple[Forward, ...] = ()
        self.addresses: Mapping[str, int] = {}
        self.wanted: dict[Endpoint, Placed] = {}
        self.owners: dict[Endpoint, Forward] = {}  # of what is wanted
        self.placed: dict[Endpoint, Placed] = {}
        self.waiting: set[Endpoint] = set()
        self.left: set[Endpoint] = set()  # taken away, but sessions still have them

    def check(self, wanted: Iterable[Forward]) -> None:
        """Raise ConfigurationError when two of these come to the same endpoint, or there are too many."""
        wanted = tuple(wanted)
        for forward, other in forwards.overlaps(wanted, self.addresses):
            raise ConfigurationError(f"{forward}: the same address and port as {other}; delete one of them")
        count = sum(1 for _ in forwards.endpoints(wanted, self.addresses))
        if count > FORWARD_ROWS:
            raise ConfigurationError(f"{count} ports are forwarded: at most {FORWARD_ROWS}; use smaller ranges")

    def put(
        self, wanted: tuple[Forward, ...], of_triggers: tuple[Forward, ...], leased: tuple[Forward, ...]
    ) -> None:  # fmt: skip
        """Want these from now on, which have been checked; `withdraw` and `place` put them in force."""
        for line in _changes(self.forwards, wanted):
            log.debug("%s", line)
        self.forwards, self.of_triggers, self.leased = wanted, of_triggers, leased
        self.resolve(self.addresses)

    # -- in step with addresses ------------------------------------------------------------------------------------

    def resolve(self, addresses: Mapping[str, int]) -> None:
        """Find out which endpoints are wanted: `addresses` has those of the host and its links by their spelling."""
        for forward in self.forwards:
            before, after = (_write_address(known.get(forward.listen)) for known in (self.addresses, addresses))
            if before != after:
                log.debug("%s: moved from %s to %s", forward, before, after)
        self.addresses = dict(addresses)
        self.wanted, self.owners = {}, {}
        others = (*self.forwards, *self.of_triggers)
        for endpoint, placed, forward in forwards.endpoints((*others, *self.leased), addresses):
            if endpoint in self.wanted and forward not in self.leased:
                log.warning("%s: another forward has this port of the same address; it goes first", forward)
            self.wanted.setdefault(endpoint, placed)
            self.owners.setdefault(endpoint, forward)

    def wanted_ports(self) -> dict[int, np.ndarray]:
        """Return the ports wanted on each address, see daemon/ports.py."""
        return _by_address(self.wanted)

    def held_ports(self) -> dict[int, np.ndarray]:
        """Return the ports of each address that are wanted, in force still, or left to sessions."""
        return _by_address({*self.wanted, *self.placed, *self.left})

    def listening(self) -> set[int]:
        """Return the addresses that forwards listen on."""
        return {address for address, _, _ in self.wanted}

    def target_of(self, address: int, protocol: str, port: int) -> int | None:
        """Return the first inside host that a forward of a port leads to."""
        wanted = self.wanted.get((address, forwards.PROTOCOLS.index(protocol), port))
        return wanted.targets[0][0] if wanted else None

    def withdraw(self) -> None:
        """Take away what is no longer wanted; its sessions live on."""
        self._each([endpoint for endpoint in self.placed if endpoint not in self.wanted], self._remove)
        self.waiting &= self.wanted.keys()

    def place(self) -> None:
        """Put in force what is wanted. Raises CapacityError."""
        changed = [endpoint for endpoint, wanted in self.wanted.items() if self.placed.get(endpoint) != wanted]
        self._each(changed, self._place)

    def retry(self) -> None:
        """Look whether sessions that held the ports of forwards, or had those of forwards that are gone, have ended."""
        waited = [endpoint for endpoint in self.waiting if endpoint in self.wanted]
        self._each(waited, self._place)
        self._each(list(self.left), self._let_go)
        for endpoint in waited:
            if endpoint not in self.waiting:
                log.info("the forward of %s is in force now", forwards.write_endpoint(endpoint))

    def _each(self, endpoints: list[Endpoint], action: Callable[[Endpoint], None]) -> None:
        """Do something for every endpoint with the path standing still, but let it go on after every few."""
        for at in range(0, len(endpoints), AT_ONCE):
            with self.forwarder.locked():
                for endpoint in endpoints[at : at + AT_ONCE]:
                    action(endpoint)

    def _place(self, endpoint: Endpoint) -> None:
        if self.rows.place(*endpoint, *self.wanted[endpoint]):
            self.placed[endpoint] = self.wanted[endpoint]
            self.waiting.discard(endpoint)
            self.left.discard(endpoint)
        else:
            self.waiting.add(endpoint)

    def _remove(self, endpoint: Endpoint) -> None:
        self.rows.remove(*endpoint)
        del self.placed[endpoint]
        self.left.add(endpoint)
        self._let_go(endpoint)

    def _let_go(self, endpoint: Endpoint) -> None:
        if not self.table.is_mapped(*endpoint):
            self.left.discard(endpoint)

    # -- for the control socket --------------------------------------------------------------------------------------

    def describe(self) -> Iterator[tuple[Forward, dict[str, Any]]]:
        """Yield every forward with what the control method says of it."""
        return ((forward, self._describe(forward)) for forward in (*self.forwards, *self.leased))

    def used(self) -> Iterator[tuple[Forward, int]]:
        """Yield every forward whose address there is, with how many sessions strangers have opened by it."""
        for forward in self.forwards:
            address = self.addresses.get(forward.listen)
            if address is not None:
                port_class = forwards.PROTOCOLS.index(forward.protocol)
                ports = range(forward.first, forward.last + 1)
                yield forward, sum(self.rows.opened(address, port_class, port) for port in ports)

    def reservations(self, about: Collection[Forward]) -> list[str]:
        """Return a sentence for each of some forwards that is not in force just now."""
        waiting = [
            f"{forwards.write_endpoint(endpoint)}: sessions still use this port; the forward follows them"
            for endpoint in self.waiting
            if self.owners.get(endpoint) in about
        ]
        absent = [
            f"{forward}: no such address now; it is in force as soon as there is"
            for forward in about
            if forward.listen not in self.addresses
        ]
        return [*sorted(waiting), *absent]

    def _describe(self, forward: Forward) -> dict[str, Any]:
        address = self.addresses.get(forward.listen)
        found = {**msgspec.to_builtins(forward), "address": None, "state": "no address"}
        if address is None:
            return found
        endpoint = (address, forwards.PROTOCOLS.index(forward.protocol), forward.first)
        found["address"] = str(ipaddress.IPv4Address(address))
        endpoints = [(*endpoint[:2], port) for port in range(forward.first, forward.last + 1)]
        if any(self.owners.get(each) != forward for each in endpoints):
            return {**found, "state": "taken"}
        waits = any(each in self.waiting for each in endpoints)
        with self.forwarder.locked():
            targets = self.rows.targets(*endpoint)
        if targets:
            found["targets"] = [
                {"address": str(ipaddress.IPv4Address(host)), "port": port, "preference": weight, "left": left}
                for host, port, weight, left in targets
            ]
        return {**found, "state": "waiting" if waits else "in force"}


def _changes(before: Iterable[Forward], after: Iterable[Forward]) -> Iterator[str]:
    """Yield a line for each forward that is set, or cleared."""
    old, new = ({str(one): one for one in forwards} for forwards in (before, after))
    yield from (f"{name}: cleared" for name in old if name not in new)
    for name, forward in new.items():
        if name not in old:
            yield f"{name}: set, to {_write_targets(forward)}"
        elif old[name] != forward:
            yield f"{name}: set, to {_write_targets(forward)} instead of {_write_targets(old[name])}"


def _write_address(address: int | None) -> str:
    return "no address" if address is None else str(ipaddress.IPv4Address(address))


def _write_targets(forward: Forward) -> str:
    return ", ".join(f"{target.address}:{target.port}" for target in forward.targets)


def _by_address(endpoints: Iterable[Endpoint]) -> dict[int, np.ndarray]:
    ports: dict[int, np.ndarray] = {}
    for address, port_class, port in endpoints:
        if address not in ports:
            ports[address] = no_ports()
        ports[address][port_class, port] = True
    return ports
