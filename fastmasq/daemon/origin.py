"""Where a file comes from that has outlived a process: which version wrote it, about which network namespace."""

from __future__ import annotations

from typing import Self

import msgspec
from msgspec import Struct

from fastmasq.kernel.identity import Namespace, network_namespace


class Origin(Struct, frozen=True):
    """The version of what is written, and the network namespace that it is about."""

    version: int
    namespace: int
    cookie: int
    boot: str

    @classmethod
    def here(cls, version: int, **more: object) -> Self:
        """Return that of what is written now, by this thread."""
        return cls(version, *network_namespace(), **more)

    @classmethod
    def read(cls, octets: bytes) -> Self | None:
        """Return what a file says as JSON; None if it is damaged."""
        try:
            return msgspec.json.decode(octets, type=cls)
        except (msgspec.DecodeError, RecursionError):
            return None

    def complaint(self, version: int) -> str | None:
        """Return why what it says is nothing for this version, here; None if it is."""
        if self.version != version:
            return "another version of fastmasq has written it"
        if not Namespace(self.namespace, self.cookie, self.boot).is_same(network_namespace()):
            return "it is about a network namespace that is gone"
        return None


def complaint(origin: Origin | None, version: int) -> str | None:
    """The same of what `Origin.read` has returned."""
    return "it is damaged" if origin is None else origin.complaint(version)
