"""Whether this process may do what a forwarder has to do."""

from __future__ import annotations

from pathlib import Path

from fastmasq.errors import KernelError

_STATUS = Path("/proc/self/status")
_NEEDED = {
    "CAP_NET_ADMIN": 12,  # sysctls, the guard, neighbours
    "CAP_NET_RAW": 13,  # AF_PACKET sockets
}


def missing(status: str | None = None, *, to_observe: bool = False) -> list[str]:
    """Return the capabilities that we lack, by name; `status` is the text of /proc/self/status.

    To observe, packet sockets are enough.
    """
    lines = (status if status is not None else _STATUS.read_text()).splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    needed = ("CAP_NET_RAW",) if to_observe else _NEEDED
    return [name for name in needed if not effective >> _NEEDED[name] & 1]


def require(*, to_observe: bool = False) -> None:
    """Raise KernelError unless we have what we need to forward, or to observe."""
    lacking = missing(to_observe=to_observe)
    if lacking:
        raise KernelError(
            f"fastmasq lacks {' and '.join(lacking)}: run it as root, or under systemd with "
            "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW"
        )
