"""Reports inside hosts that leave outside with private sources: rules let them, but no answer can come back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from fastmasq.log_limit import LogLimit
from fastmasq.path.forwarder import Forwarder
from fastmasq.units import NS_PER_SECOND

log = logging.getLogger("fastmasq.engine")

REPEAT_NS = 60 * NS_PER_SECOND
LINES_PER_SECOND = 5  # of the log
MOST_HOSTS = 1024  # remembered; those that have been silent longest give way
MOST_SHOWN = 20


@dataclass
class _Host:
    destination: int = 0  # of its last packet
    packets: int = 0
    unsaid: int = 0  # of these, since it was last in the log
    said_ns: int | None = None


class Untranslated:
    """What has left the outside link of this name so; `every_second` says it, each host once a minute."""

    def __init__(self, forwarder: Forwarder, outside: str) -> None:
        self._forwarder = forwarder
        self._outside = outside
        self._limit = LogLimit(log, LINES_PER_SECOND, "private sources that leave untranslated")
        self._hosts: dict[int, _Host] = {}  # by address, the one last heard of last

    def every_second(self, now: int) -> None:
        """Take note of what has left since the last call; time in nanoseconds."""
        self._limit.every_second()
        with self._forwarder.locked():
            rows = self._forwarder.take_untranslated()
        for row in rows:
            source, packets = int(row["source"]), int(row["packets"])
            host = self._hosts[source] = self._hosts.pop(source, None) or _Host()
            host.destination = int(row["destination"])
            host.packets += packets
            host.unsaid += packets
            self._say(source, host, now)
        while len(self._hosts) > MOST_HOSTS:
            del self._hosts[next(iter(self._hosts))]

    def _say(self, source: int, host: _Host, now: int) -> None:
        is_due = host.said_ns is None or now - host.said_ns >= REPEAT_NS
        if not is_due or not self._limit.allows(logging.WARNING):
            return
        log.warning(
            "%s, a private address, leaves by %s untranslated, as the rules say: last to %s, %d packets; "
            "no answer can come",
            IPv4Address(source),
            self._outside,
            IPv4Address(host.destination),
            host.unsaid,
        )
        host.said_ns, host.unsaid = now, 0

    def describe(self) -> dict[str, Any]:
        """Return what `status` tells: how many packets in all, and the hosts heard of last, the very last one first."""
        last = list(self._hosts.items())[: -MOST_SHOWN - 1 : -1]
        return {
            "packets": self._forwarder.notes()["private_untranslated"],
            "hosts": [
                {
                    "source": str(IPv4Address(source)),
                    "destination": str(IPv4Address(host.destination)),
                    "packets": host.packets,
                }
                for source, host in last
            ],
        }
