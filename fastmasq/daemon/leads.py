"""Where policy leads what trackers follow: what of forwards and redirects they may ask."""

from __future__ import annotations

from fastmasq.daemon.forwards import Forwards
from fastmasq.daemon.redirects import Redirects


class Leads:
    """The forwards and redirects of one gateway, to be asked by trackers. Addresses are host-order integers."""

    def __init__(self, forwards: Forwards, redirects: Redirects) -> None:
        self._forwards = forwards
        self._redirects = redirects

    def listening(self) -> set[int]:
        """Return the addresses that forwards listen on."""
        return self._forwards.listening()

    def target_of(self, address: int, protocol: str, port: int) -> int | None:
        """Return the first inside host that a forward of a port leads to."""
        return self._forwards.target_of(address, protocol, port)

    def redirected(self, protocol: int, remote: int) -> int | None:
        """Return the inside host that gets a protocol from a remote address by a redirect."""
        return self._redirects.host_of(protocol, remote)
