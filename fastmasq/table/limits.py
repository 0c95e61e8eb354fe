"""What one inside host may have of a table, and the hosts of one network together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sessions (None: as many as there is room for), external ports of each class, and new sessions a second (0: any).

    prefix: the length of the networks whose hosts are one holder: none may have more than is left (hosts.pxd); 0: any
    may.
    """

    sessions_per_host: int | None = None
    ports_per_host: int = 16384
    rate_per_host: int = 0
    prefix: int = 0
