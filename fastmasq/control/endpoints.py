"""Where inside hosts are listened to: a link, and an address of it."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple


class Endpoint(NamedTuple):
    """An inside link with its index, which a re-created link has not, and an address of it, host order."""

    link: str
    ifindex: int
    address: int

    def dotted(self) -> str:
        return str(ipaddress.IPv4Address(self.address))
