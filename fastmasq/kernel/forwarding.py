"""Keeps the kernel from forwarding while fastmasq does, also when other programs of the host switch it on again.

Scripts of 1999 write 1 to ip_forward, and so do Docker and libvirt when they start. The kernel tells at once
(RTM_NEWNETCONF, since 3.8; before, and for what is lost, there are looks), and 0 is written again: the guard has
dropped meanwhile what would have been forwarded. Who insists wins but for our own links: whether the kernel forwards a
packet is a setting of the link that it comes in by (`conf/LINK/forwarding`), so others may go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from fastmasq.kernel import links, netlink, sysctl
from fastmasq.kernel.takeover import IP_FORWARD, Takeover

TIMES = 3  # within this time it is put back, not more often
WITHIN_NS = 60_000_000_000

_RECEIVE_BUFFER = 1 << 16  # an event is only a hint
_EVENTS_AT_ONCE = 1000
_MAKERS = {
    **{"docker": "Docker", "br-": "Docker", "virbr": "libvirt", "lxcbr": "LXC", "lxdbr": "LXD", "incusbr": "Incus"},
    **{"podman": "Podman", "cni": "Kubernetes", "flannel": "Kubernetes", "cali": "Kubernetes", "cilium": "Kubernetes"},
}


class Forwarding:
    """The kernel's forwarding, held off for our links in the network namespace this was made in."""

    def __init__(self, takeover: Takeover, our_links: Sequence[str]) -> None:
        self._takeover = takeover
        self._links = tuple(our_links)
        self._events = netlink.EventSocket(netlink.GROUP_IPV4_NETCONF, _RECEIVE_BUFFER)
        self._put_back: deque[int] = deque(maxlen=TIMES)  # when that was, in nanoseconds

    def close(self) -> None:
        self._events.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `read` has something to do."""
        return self._events.fileno()

    def stop(self) -> None:
        """Have the kernel forward nothing, or nothing of our links if a predecessor has yielded. Raises KernelError."""
        if self._takeover.holds_links():
            self._takeover.hold_links(self._links)
        else:
            self._takeover.stop_forwarding()

    def read(self, now_ns: int) -> str | None:
        """Stop what has been switched on since; return the one line about it, if there is news. Raises KernelError."""
        self._events.read(_EVENTS_AT_ONCE)
        if self._takeover.holds_links():
            self._takeover.hold_links(self._links)
            return None
        if sysctl.read(IP_FORWARD) == "0":
            names = [sysctl.of_interface(link, "forwarding") for link in self._links]
            changed = [name for name in names if sysctl.write_if_present(name, "0")]
            return f"somebody set {', '.join(changed)} to 1; it is 0 again" if changed else None
        if len(self._put_back) == TIMES and now_ns - self._put_back[0] < WITHIN_NS:
            self._takeover.hold_links(self._links)
            return (
                f"{IP_FORWARD} was set to 1 more than {TIMES} times within a minute, {self._by_whom()}: left at 1. The "
                f"kernel now forwards between other links, but nothing that comes in by {', '.join(self._links)}"
            )
        self._put_back.append(now_ns)
        self._takeover.stop_forwarding()
        return f"somebody set {IP_FORWARD} to 1; it is 0 again, since fastmasq forwards in the kernel's place"

    def _by_whom(self) -> str:
        """Name the links that may need it, with those who are known to make such."""
        others = [
            each.name
            for each in links.list_interfaces()
            if each.flags & links.IFF_UP and not each.flags & links.IFF_LOOPBACK and each.name not in self._links
        ]
        if not others:
            return "by a program of this host"
        makers = sorted({maker for name in others for start, maker in _MAKERS.items() if name.startswith(start)})
        return f"perhaps {'by ' + ' or '.join(makers) + ' ' if makers else ''}for {', '.join(others)}"
