"""The ports, ICMP identifiers and protocols without ports that the host itself uses: masquerading stays off them."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.kernel import netlink, sysctl
from fastmasq.kernel.links import IFF_UP, Interface
from fastmasq.wire.numbers import GRE, ICMP, IPIP, IPV6, SCTP, TCP, UDP, UDP_LITE

PortSet = np.ndarray  # of booleans: 65536, indexed by port

PORT_RANGE = "net.ipv4.ip_local_port_range"
RESERVED_PORTS = "net.ipv4.ip_local_reserved_ports"
USUAL_RANGES = ((32768, 60999), (32768, 61000))
"""What PORT_RANGE is while nobody has set it: since Linux 4.2, and before (ip-sysctl.rst, commit 07f4c90062f8)."""
_SOCKETS_OF = {
    TCP: (Path("/proc/net/tcp"), Path("/proc/net/tcp6")),
    UDP: (Path("/proc/net/udp"), Path("/proc/net/udp6")),
}
_PING_SOCKETS = Path("/proc/net/icmp")
_RAW_SOCKETS = Path("/proc/net/raw")
_PORTLESS_SOCKETS = {UDP_LITE: Path("/proc/net/udplite"), SCTP: Path("/proc/net/sctp/eps")}
_TUNNELS = {768: IPIP, 776: IPV6, 778: GRE}  # ARPHRD_* of IPIP, 6in4 and GRE links (linux/if_arp.h), their protocols

_SOCK_DIAG_BY_FAMILY = 20
_TCP_ESTABLISHED, _TCP_LISTEN, _TCP_BOUND_INACTIVE = 1, 10, 13
_ALL_STATES = (1 << _TCP_BOUND_INACTIVE + 1) - 1
_INET_DIAG_REQUEST = struct.Struct("=BBBBI48x")  # family, protocol, extensions, padding, state bits, socket id
_INET_DIAG_MESSAGE = struct.Struct("=4x2s2s16s40xII")  # of struct inet_diag_msg the ports, our address, owner, inode
_INET_DIAG_SKV6ONLY = 11  # attribute of IPv6 sockets that listen (linux/inet_diag.h)


class _Socket(NamedTuple):
    """A socket of this host: its address as octets, its port and that of the other end, the number of its owner.

    `only_ipv6`: it is known to take no IPv4.
    """

    address: bytes
    port: int
    remote_port: int
    user: int
    inode: int
    only_ipv6: bool = False


class Waiting(NamedTuple):
    """A socket of this host that waits for packets of anybody; `port` is the protocol of one that has no ports.

    `user` is the number of its owner; `inode` is what open files of processes name it by. Of TCP the kernel tells which
    take no IPv4 (IPV6_V6ONLY); a table of /proc does not.
    """

    address: str
    port: int
    user: int
    inode: int
    only_ipv6: bool = False

    def hears(self, address: int) -> bool:
        """Whether what is sent to an address of this host reaches it; one of all IPv6 addresses may take IPv4, too."""
        own = ipaddress.ip_address(self.address)
        if self.only_ipv6:
            return False
        if isinstance(own, ipaddress.IPv6Address) and own.ipv4_mapped:
            own = own.ipv4_mapped
        return own.is_unspecified or own == ipaddress.IPv4Address(address)

    def endpoint(self) -> str:
        """Return address and port as people write them, such as 0.0.0.0:22 or [::]:22."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def host_ports(protocol: int, ours: PortSet | None = None, ephemeral: tuple[int, int] | None = None) -> PortSet:
    """Return True for each port (ICMP: identifier) that the host uses or may use in this network namespace.

    For TCP and UDP these are the ephemeral range, what the administrator reserved, and every bound socket, also those
    bound to IPv6, which may take IPv4 as well. For ICMP they are the identifiers of open ping sockets.
    `ours` are ports that were reserved for us: of those only the bound ones count. `ephemeral`: the range as it is
    going to be, if not the one there is.
    """
    used = np.zeros(65536, dtype=np.bool_)
    if protocol == ICMP:
        used[_ping_identifiers()] = True
        return used
    first, last = ephemeral or ephemeral_range()
    used[first : last + 1] = True
    used |= reserved_ports()
    if ours is not None:
        used &= ~ours
    used[_bound_ports(protocol)] = True
    return used


def ephemeral_range() -> tuple[int, int]:
    """Return the first and the last port that the kernel gives to programs here which name none."""
    try:
        return parse_range(sysctl.read(PORT_RANGE))
    except FileNotFoundError:  # the kernel has one for all network namespaces, told in the first alone
        return USUAL_RANGES[-1]


def parse_range(text: str) -> tuple[int, int]:
    """Read the spelling of ip_local_port_range: "32768 60999"."""
    first, last = map(int, text.split())
    return first, last


def reserved_ports() -> PortSet:
    """Return what the kernel gives to no program that names no port."""
    try:
        return parse_ports(sysctl.read(RESERVED_PORTS))
    except FileNotFoundError:
        return np.zeros(65536, dtype=np.bool_)


def why_no_settings() -> str:
    """Return why the ports of this network namespace cannot be set here, "" if they can."""
    for setting in (PORT_RANGE, RESERVED_PORTS):
        try:
            sysctl.read(setting)
        except OSError as error:
            return f"{sysctl.path(setting)}: {error.strerror}"
    return ""


def host_protocols(interfaces: Iterable[Interface]) -> frozenset[int]:
    """Return the protocols without ports that the host itself uses: tunnels that are up, and sockets of any program."""
    used = {_TUNNELS[each.hardware] for each in interfaces if is_tunnel(each)}
    used.update(each.port for each in _listed(_RAW_SOCKETS))
    used.update(protocol for protocol, sockets in _PORTLESS_SOCKETS.items() if _rows(sockets))
    return frozenset(used)


def tunnels(interfaces: Iterable[Interface], protocol: int) -> list[str]:
    """Return the names of the tunnels that are up and use a protocol."""
    return [each.name for each in interfaces if is_tunnel(each) and _TUNNELS[each.hardware] == protocol]


def is_tunnel(interface: Interface) -> bool:
    return interface.hardware in _TUNNELS and bool(interface.flags & IFF_UP)


def _rows(*tables: Path) -> list[list[str]]:
    """Return the columns of tables of /proc/net, proc_net(5); nothing of a table that is not there."""
    return [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]]


def _listed(*tables: Path) -> list[_Socket]:
    """Return the sockets in such tables; their ends are "address:port" in hexadecimal."""
    return [
        _Socket(_octets(local), _port(local), _port(remote), int(user), int(inode))
        for _, local, remote, _, _, _, _, user, _, inode, *_ in _rows(*tables)
    ]


def _port(end: str) -> int:
    return int(end.rpartition(":")[2], 16)


def _octets(end: str) -> bytes:
    """Return the address of an end; each of its words of 32 bits is written as a number in host byte order."""
    digits = end.partition(":")[0]
    words = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    return b"".join(word.to_bytes(4, sys.byteorder) for word in words)


def _sockets(protocol: int, states: int = _ALL_STATES) -> list[_Socket]:
    """Return the sockets of a protocol; those of TCP in these states (a bit each), if the kernel tells them apart."""
    diagnosed = _diagnosed(states) if protocol == TCP else None
    return _listed(*_SOCKETS_OF.get(protocol, (_RAW_SOCKETS,))) if diagnosed is None else diagnosed


def waiting(protocol: int) -> list[Waiting]:
    """Return the sockets where programs wait to be asked over TCP or UDP, or for a protocol without ports."""
    found = [
        Waiting(str(ipaddress.ip_address(each.address)), each.port, each.user, each.inode, each.only_ipv6)
        for each in _sockets(protocol, 1 << _TCP_LISTEN)
        if each.port and not each.remote_port
    ]
    return found if protocol in _SOCKETS_OF else [each for each in found if each.port == protocol]


def listeners(protocol: int) -> dict[int, set[str]]:
    """Return, by port, the addresses where programs wait to be asked over TCP or UDP."""
    found: dict[int, set[str]] = {}
    for each in waiting(protocol):
        found.setdefault(each.port, set()).add(each.address)
    return found


def connections() -> list[tuple[str, int, int]]:
    """Return (address and port of the other end, our port) of the TCP connections over IPv4 that are established."""
    found = []
    for _, local, remote, state, *_ in _rows(*_SOCKETS_OF[TCP]):
        other = ipaddress.ip_address(_octets(remote))
        if isinstance(other, ipaddress.IPv6Address):
            other = other.ipv4_mapped
        if other is not None and int(state, 16) == _TCP_ESTABLISHED:
            found.append((str(other), _port(remote), _port(local)))
    return sorted(found)


def _bound_ports(protocol: int) -> list[int]:
    return [each.port for each in _sockets(protocol)]


def _diagnosed(states: int) -> list[_Socket] | None:
    """Return the TCP sockets in these states by sock_diag(7); None of a kernel that was built without inet_diag.

    /proc/net/tcp leaves out those that are bound, but neither listen nor connect (as sock_diag does before Linux 6.8),
    and looks through a table that is as large as the host: that takes 20 ms with 24 GB, this half a millisecond.
    """
    try:
        diagnosis = netlink.RequestSocket(netlink.NETLINK_SOCK_DIAG)
    except KernelError:
        return None
    found = []
    try:
        for family, octets in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
            request = _INET_DIAG_REQUEST.pack(family, TCP, 0, 0, states)
            for message in diagnosis.dump(_SOCK_DIAG_BY_FAMILY, request)[0]:
                end = netlink.HEADER.size + _INET_DIAG_MESSAGE.size
                if len(message) >= end:
                    port, remote, address, *owner = _INET_DIAG_MESSAGE.unpack_from(message, netlink.HEADER.size)
                    ports = (int.from_bytes(each, "big") for each in (port, remote))
                    only_ipv6 = netlink.attributes(message[end:]).get(_INET_DIAG_SKV6ONLY, b"\0")[:1] == b"\1"
                    found.append(_Socket(address[:octets], *ports, *owner, only_ipv6))
    except OSError:
        return None
    finally:
        diagnosis.close()
    return found


def why_idle_ports_are_unknown() -> str:
    """Return why the kernel does not tell of TCP ports that are bound and idle, "" if it does. Binds one meanwhile."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as idle:
        idle.bind(("127.0.0.1", 0))
        told = (each.port for each in _diagnosed(1 << _TCP_BOUND_INACTIVE) or ())
        return "" if idle.getsockname()[1] in told else "sock_diag does not list a socket that is bound"


def _ping_identifiers() -> list[int]:
    return [each.port for each in _listed(_PING_SOCKETS)]


def parse_ports(text: str) -> PortSet:
    """Read the spelling of ip_local_reserved_ports: "8080,9148-9150", or nothing. Raises ConfigurationError."""
    ports = np.zeros(65536, dtype=np.bool_)
    for part in text.replace("\n", "").split(","):
        if not part.strip():
            continue
        first, dash, last = part.partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            low, high = 1, 0
        if not 0 <= low <= high <= 65535:
            raise ConfigurationError(f"{part.strip()!r} is not a port or a range; write for example 61000-65095")
        ports[low : high + 1] = True
    return ports


def port_ranges(ports: PortSet) -> list[tuple[int, int]]:
    """Return the runs of True as (first, last)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], ports, [False])).astype(np.int8)))
    return [(int(first), int(after) - 1) for first, after in zip(edges[::2], edges[1::2], strict=True)]


def format_ports(ports: PortSet) -> str:
    """Return the spelling that `parse_ports`, nftables and ip_local_reserved_ports read: "8080,9148-9150"."""
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in port_ranges(ports))
