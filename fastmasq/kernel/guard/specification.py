"""The ingress guard: keeps what is ours from the host's IP input, so that the host neither answers nor forwards it.

A tap bound to ETH_P_ALL sees a packet before the ingress hook of nftables and tc, one bound to ETH_P_IP behind it.
A guard that *marks* sits at that hook, and taps behind it: what is ours it calls another station's (PACKET_OTHERHOST),
which the host's IP input drops before all else, and gives it GUARD_MARK, by which the taps know it. Any other guard
drops it, and taps come before. Either way it judges IPv4 alone, addressed to this station and of no VLAN; ARP, IPv6 and
all else pass, and a priority tag (VLAN 0) counts for nothing. Ours is

* on every link what is not addressed to the host (the host would forward it, or answer that it cannot); on the outside
  a DHCP answer to an address not yet configured is let through;
* what is addressed to an external address and to a TCP or UDP port of it that is ours: the host would send a RST or a
  port unreachable. Likewise IP protocols that are ours as a whole. On inside links this is hairpin traffic;
* on the link to programs of the host everything: the host is its other end;
* of neither kind fragments without a port, as the host may need them, nor ICMP: the host ignores what it did not cause.

A guard lives in the kernel and stays in force when the process dies; `remove` is for the orderly end and for
`fastmasq release`. `install` and `update` are the same: they replace whatever is in force, without a moment between in
which nothing is. Interfaces that do not exist are left out; call `update` when one has appeared. `look` finds out what
somebody else has removed or changed, and `update` puts it back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastmasq.kernel.links import UNSUPPORTED, Interface, header_length, list_interfaces
from fastmasq.kernel.ports import PortSet

NAME = "fastmasq"
FIRST_GROUP_ADDRESS = 0xE0000000  # 224.0.0.0: from here on multicast, reserved, limited broadcast: never forwarded
DHCP_CLIENT_PORT = 68


@dataclass(frozen=True)
class GuardSpec:
    """What is ours. Addresses are host-order integers.

    `local_addresses` are the host's addresses on any link and its subnet broadcasts, the external ones among them or
    not. `external` has the external addresses, and of each the TCP and the UDP ports that are ours. `protocols` are IP
    protocols without ports that are ours as a whole, on all of these.
    """

    inside: Sequence[str]
    outside: Sequence[str]
    local_addresses: Sequence[int]
    external: Mapping[int, tuple[PortSet, PortSet]]
    protocols: Sequence[int] = ()
    local: Sequence[str] = ()

    def roles(self) -> list[tuple[str, str]]:
        """Return (interface name, role) for every link."""
        of_role = {"inside": self.inside, "outside": self.outside, "local": self.local}
        return [(name, role) for role, names in of_role.items() for name in names]

    def accepted_addresses(self) -> list[int]:
        """Return, sorted, all unicast and broadcast addresses for which a packet may go to the host."""
        return sorted({*self.local_addresses, *self.external})


class Guard(ABC):
    """One way to keep packets from the host; see the module's text for what all of them do."""

    backend: str
    marks = False  # whether taps stand behind it

    def __init__(self) -> None:
        self.guarded: tuple[str, ...] = ()  # interfaces it was put in force on by the last update
        self.absent: tuple[str, ...] = ()  # those of them where it is not as it was put, as of the last look
        self._numbers: dict[str, int] = {}  # of those that are guarded, by name
        self.refused: dict[str, str] = {}  # backends that come before it and do not work here, with the reason

    @abstractmethod
    def check(self) -> None:
        """Raise KernelError, saying what is missing, if this backend cannot work here. Changes nothing."""

    @abstractmethod
    def update(self, spec: GuardSpec) -> None:
        """Put the guard in force as `spec` says, replacing what was, atomically on each link. Raises KernelError."""

    def install(self, spec: GuardSpec) -> None:
        self.update(spec)

    @abstractmethod
    def remove(self) -> bool:
        """Take the guard away, also one that another process installed; return whether there was one."""

    def close(self) -> None:  # noqa: B027 (most have nothing open)
        """Close what this process has open of it; it stays in force. The next `update` puts it in force as a whole."""

    def memory(self) -> dict[str, Any]:
        """Return what the journal must keep so that another process can remove this guard without a trace."""
        return {}

    def look(self) -> tuple[str, ...]:
        """Return the interfaces where it is no longer as the last `update` has put it. Raises KernelError.

        One that has gone, or was made anew since, is none of them: that is for the next `update` to follow.
        """
        altered = self._altered()
        if altered:
            present = {each.name: each.ifindex for each in list_interfaces()}
            altered = [name for name in altered if self._numbers.get(name) == present.get(name)]
        self.absent = tuple(altered)
        return self.absent

    @abstractmethod
    def _altered(self) -> Collection[str]:
        """Return the names of those that were guarded by the last `update` and are no longer so. Raises KernelError."""

    @abstractmethod
    def describe(self) -> str:
        """Return one line for `fastmasq status`."""

    def _put_on(self, interfaces: Iterable[Interface]) -> None:
        """Take note of where it is in force now."""
        self._numbers = {each.name: each.ifindex for each in interfaces}
        self.guarded, self.absent = tuple(self._numbers), ()

    def _where(self) -> str:
        """Return where it is in force, for `describe`, and where it should be."""
        present = ", ".join(name for name in self.guarded if name not in self.absent)
        missing = ", ".join(self.absent)
        return f"{present or 'nothing'}; missing at {missing}" if missing else present or "no interface yet"


def present(spec: GuardSpec) -> list[tuple[Interface, str]]:
    """Return (interface, role) for the links of `spec` that exist now and are of a kind that we can use."""
    usable = (each for each in list_interfaces() if header_length(each.hardware) != UNSUPPORTED)
    interfaces = {interface.name: interface for interface in usable}
    return [(interfaces[name], role) for name, role in spec.roles() if name in interfaces]
