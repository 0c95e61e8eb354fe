"""Keeps port forwards and redirects of the running forwarder as policy says, whatever addresses its links have.

The list is policy; what of it is in force depends on the addresses of the moment, and on the ports that sessions still
hold. `follow` compares the two and makes only the difference, so equal forwards and live sessions are left alone.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from fastmasq.errors import ConfigurationError, FastmasqError
from fastmasq.path.forwarder import Forwarder
from fastmasq.policy import forwards, redirects
from fastmasq.policy.forwards import Endpoint, Placed, PortForward
from fastmasq.policy.redirects import Redirect
from fastmasq.table.forward_table import ForwardTable
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import FORWARD_ROWS

log = logging.getLogger("fastmasq.forwards")

AT_ONCE = 64  # endpoints changed while packets wait


class Forwards:
    """The forwards and redirects of one engine; `auto` are the forwards that are rows of autofw (daemon/demand.py).

    react is called after a change of policy: it has the guard and the table follow (see `Engine`).
    """

    def __init__(self, table: MasqTable, forwarder: Forwarder, react: Callable[[], None]) -> None:
        self.table = table
        self.forwarder = forwarder
        self.react = react
        self.rows = ForwardTable(table)
        self.forwards: tuple[PortForward, ...] = ()
        self.redirects: tuple[Redirect, ...] = ()
        self.auto: tuple[PortForward, ...] = ()
        self.addresses: dict[str, int] = {}
        self.wanted: dict[Endpoint, Placed] = {}
        self.placed: dict[Endpoint, Placed] = {}
        self.waiting: set[Endpoint] = set()
        self.left: set[Endpoint] = set()  # taken away, but sessions still have them

    def load(self, wanted: Iterable[PortForward], redirected: Iterable[Redirect]) -> None:
        """Take these to begin with; they have been checked."""
        self.forwards = tuple(wanted)
        self.redirects = tuple(redirected)
        self.forwarder.set_redirects(redirects.compile_redirects(self.redirects))

    # -- in step with addresses ------------------------------------------------------------------------------------

    def resolve(self, addresses: Mapping[str, int]) -> None:
        """Find out which endpoints are wanted: `addresses` has those of the host and its links by their spelling."""
        self.addresses = dict(addresses)
        self.wanted = {}
        for endpoint, targets, forward in forwards.endpoints((*self.forwards, *self.auto), addresses):
            if endpoint in self.wanted:
                log.warning("%s: another forward has this port of the same address; it goes first", forward)
            self.wanted.setdefault(endpoint, targets)

    def ports(self, address: int | None = None) -> np.ndarray:
        """Return bool[3][65536] by class: the ports wanted on an address, or on any."""
        ports = np.zeros((3, 65536), bool)
        for listen, port_class, port in self.wanted:
            if address in (None, listen):
                ports[port_class, port] = True
        return ports

    def held_ports(self) -> dict[int, np.ndarray]:
        """Return bool[3][65536] by class for each address: the ports wanted, in force still, or left to sessions."""
        held: dict[int, np.ndarray] = {}
        for address, port_class, port in {*self.wanted, *self.placed, *self.left}:
            held.setdefault(address, np.zeros((3, 65536), bool))[port_class, port] = True
        return held

    def listening(self) -> set[int]:
        """Return the addresses that forwards listen on."""
        return {address for address, _, _ in self.wanted}

    def protocols(self) -> list[int]:
        """Return the protocols that are redirected."""
        return sorted({one.protocol for one in self.redirects})

    def redirected(self, protocol: int, remote: int) -> int | None:
        """Return the inside host that gets a protocol from a remote address by a redirect."""
        remote_address = ipaddress.IPv4Address(remote)
        for one in self.redirects:
            if one.protocol == protocol and remote_address in ipaddress.IPv4Network(one.source):
                return int(ipaddress.IPv4Address(one.host))
        return None

    def target_of(self, address: int, protocol: str, port: int) -> int | None:
        """Return the first inside host that a forward of a port leads to."""
        targets = self.wanted.get((address, forwards.PROTOCOLS.index(protocol), port))
        return targets[0][0] if targets else None

    def withdraw(self) -> None:
        """Take away what is no longer wanted; its sessions live on."""
        self._each([endpoint for endpoint in self.placed if endpoint not in self.wanted], self._remove)
        self.waiting &= self.wanted.keys()

    def place(self, allowed: np.ndarray) -> None:
        """Put in force what is wanted; `allowed` are the ports that masquerading may use. Raises CapacityError."""
        for address in self.listening():
            with self.forwarder.locked():
                self.table.hold_external(address, allowed & ~self.ports(address))
        changed = [endpoint for endpoint, targets in self.wanted.items() if self.placed.get(endpoint) != targets]
        self._each(changed, self._place)

    def retry(self) -> None:
        """Look whether sessions that held the ports of forwards, or had those of forwards that are gone, have ended."""
        waited = list(self.waiting)
        self._each(waited, self._place)
        self._each(list(self.left), self._let_go)
        for endpoint in waited:
            if endpoint not in self.waiting:
                log.info("the forward of %s is in force now", _write(endpoint))

    def _each(self, endpoints: list[Endpoint], action: Callable[[Endpoint], None]) -> None:
        """Do something for every endpoint with the path standing still, but let it go on after every few."""
        for at in range(0, len(endpoints), AT_ONCE):
            with self.forwarder.locked():
                for endpoint in endpoints[at : at + AT_ONCE]:
                    action(endpoint)

    def _place(self, endpoint: Endpoint) -> None:
        if self.rows.place(*endpoint, self.wanted[endpoint]):
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

    def handlers(self) -> dict[str, Callable[[dict], object]]:
        return {
            "forwards": lambda _: self.list_forwards(),
            "forwards.change": self.change_forwards,
            "redirects": lambda _: [msgspec.to_builtins(one) for one in self.redirects],
            "redirects.change": self.change_redirects,
        }

    def list_forwards(self) -> list[dict[str, Any]]:
        """Return every forward with its state, and its targets beginning with the one whose turn it is."""
        return [self._describe(forward) for forward in self.forwards]

    def change_forwards(self, params: dict[str, Any]) -> dict[str, Any]:
        """Make all of the changes (forwards.Change) or none; return what to know of it. Raises ConfigurationError."""
        wanted = forwards.apply(self.forwards, read_changes(params, forwards.Change))
        self.replace(wanted, self.redirects)
        waiting = [
            f"{_write(endpoint)}: sessions still use this port; the forward follows them" for endpoint in self.waiting
        ]
        absent = [
            f"{forward}: no such address now; it is in force as soon as there is"
            for forward in wanted
            if forward.listen not in self.addresses
        ]
        return {"forwards": len(wanted), "warnings": [*sorted(waiting), *absent]}

    def change_redirects(self, params: dict[str, Any]) -> dict[str, Any]:
        """Make all of the changes (redirects.Change) or none. Raises ConfigurationError."""
        self.replace(self.forwards, redirects.apply(self.redirects, read_changes(params, redirects.Change)))
        return {"redirects": len(self.redirects)}

    def replace(
        self,
        forwards: tuple[PortForward, ...],
        redirects: tuple[Redirect, ...],
        auto: tuple[PortForward, ...] | None = None,
    ) -> None:
        """Have these from now on, all or none; those that are equal are not touched. Raises FastmasqError.

        auto: None for those there are.
        """
        before = (self.forwards, self.redirects, self.auto)
        wanted = (forwards, redirects, self.auto if auto is None else auto)
        if wanted == before:
            return
        self._check_endpoints((*forwards, *wanted[2]))
        try:
            self._follow(*wanted)
        except FastmasqError:
            self._follow(*before)
            raise

    def _follow(
        self,
        wanted: tuple[PortForward, ...],
        redirected: tuple[Redirect, ...],
        auto: tuple[PortForward, ...],
    ) -> None:
        self.forwards, self.redirects, self.auto = wanted, redirected, auto
        rows = redirects.compile_redirects(redirected)
        with self.forwarder.locked():
            self.forwarder.set_redirects(rows)
        self.resolve(self.addresses)
        self.react()

    def _check_endpoints(self, wanted: Iterable[PortForward]) -> None:
        """Raise ConfigurationError when two forwards come to the same endpoint, or there are too many."""
        owner: dict[Endpoint, PortForward] = {}
        for endpoint, _, forward in forwards.endpoints(wanted, self.addresses):
            if owner.setdefault(endpoint, forward) is not forward:
                raise ConfigurationError(
                    f"{forward}: the same address and port as {owner[endpoint]}; delete one of them"
                )
        if len(owner) > FORWARD_ROWS:
            raise ConfigurationError(f"{len(owner)} ports are forwarded: at most {FORWARD_ROWS}; use smaller ranges")

    def _describe(self, forward: PortForward) -> dict[str, Any]:
        address = self.addresses.get(forward.listen)
        found = {**msgspec.to_builtins(forward), "address": None, "state": "no address"}
        if address is None:
            return found
        endpoint = (address, forwards.PROTOCOLS.index(forward.protocol), forward.first)
        waits = any((*endpoint[:2], port) in self.waiting for port in range(forward.first, forward.last + 1))
        with self.forwarder.locked():
            targets = self.rows.targets(*endpoint)
        if targets:
            found["targets"] = [
                {"address": str(ipaddress.IPv4Address(host)), "port": port, "preference": weight, "left": left}
                for host, port, weight, left in targets
            ]
        return {**found, "address": str(ipaddress.IPv4Address(address)), "state": "waiting" if waits else "in force"}


def read_changes(params: dict[str, Any], kind: type) -> list:
    """Return the changes that the parameters of a control method hold. Raises ConfigurationError."""
    try:
        return msgspec.convert(params.get("changes"), list[kind])
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"changes: {error}") from None


def _write(endpoint: Endpoint) -> str:
    address, port_class, port = endpoint
    return f"{forwards.PROTOCOLS[port_class]} {ipaddress.IPv4Address(address)}:{port}"
