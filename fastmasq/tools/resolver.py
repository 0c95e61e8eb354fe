"""The IPv4 address of a host that a user has named."""

from __future__ import annotations

import socket

from fastmasq.errors import KernelError


def resolve(host: str) -> str:
    """Return the first IPv4 address of `host`, a name or an address. Raises KernelError."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such name"
        raise KernelError(f"{host}: no IPv4 address found ({reason}); check the name, or give an address") from None
    return found[0][4][0]
