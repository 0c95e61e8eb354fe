"""Keeps the redirects of the path as policy says: protocols without ports that go to an inside host."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from fastmasq.errors import CapacityError
from fastmasq.path.forwarder import Forwarder
from fastmasq.policy.redirects import Redirect, compile_redirects


class Redirects:
    """The redirects of one gateway."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self.redirects: tuple[Redirect, ...] = ()

    def put(self, redirects: tuple[Redirect, ...]) -> None:
        """Have these from now on, which have been checked. Raises CapacityError, and nothing has changed then."""
        rows = compile_redirects(redirects)
        try:
            with self._forwarder.locked():
                self._forwarder.set_redirects(rows)
        except ValueError as error:
            raise CapacityError(str(error)) from None
        self.redirects = redirects

    def protocols(self) -> list[int]:
        """Return the protocols that are redirected."""
        return sorted({one.protocol for one in self.redirects})

    def host_of(self, protocol: int, remote: int) -> int | None:
        """Return the inside host that gets a protocol from a remote address."""
        address = IPv4Address(remote)
        for one in self.redirects:
            if one.protocol == protocol and address in IPv4Network(one.source):
                return int(IPv4Address(one.host))
        return None
