"""Where inside hosts are listened to: a link, and an address of it."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

Made = TypeVar("Made")


class Endpoint(NamedTuple):
    """An inside link with its index, which a re-created link has not, and an address of it, host order."""

    link: str
    ifindex: int
    address: int

    def dotted(self) -> str:
        return str(ipaddress.IPv4Address(self.address))

    def socket(self, kind: int) -> socket.socket:
        """Return a socket that does not block and hears nothing but what comes in by the link. Raises OSError."""
        made = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.link.encode())
        except OSError:
            made.close()
            raise
        return made


def follow(
    present: dict[Endpoint, Made],
    wanted: Iterable[Endpoint],
    begin: Callable[[Endpoint], Made],
    end: Callable[[Endpoint, Made], None],
) -> list[tuple[Endpoint, OSError]]:
    """Have `present` hold what was begun at the endpoints that are wanted, and nothing else.

    Returns where that could not be, and why; an endpoint that has gone again is none of these: we shall be told.
    """
    wanted = set(wanted)
    for endpoint in present.keys() - wanted:
        end(endpoint, present.pop(endpoint))
    refused = []
    for endpoint in sorted(wanted - present.keys()):
        try:
            present[endpoint] = begin(endpoint)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                refused.append((endpoint, error))
    return refused
