"""The link of our own over which redirected packets reach programs of this host, and answers come back (rule T-10).

It is a veth pair. The host's end has the addresses that redirected packets are sent to, and takes them in as from any
interface; our end has a tap like every other link. A policy routing rule sends what comes from these addresses back
over the pair, wherever it goes. So programs need to know nothing, and no connection of the host is touched.

The addresses are from the part of 169.254.0.0/16 that nobody gives himself (RFC 3927 section 2.1), and never on a wire.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct

from fastmasq.errors import KernelError
from fastmasq.kernel import netlink, sysctl
from fastmasq.kernel.links import IFF_UP, list_interfaces

HOST_END, OUR_END = "fastmasq0", "fastmasq1"

NETWORK = ipaddress.IPv4Network("169.254.255.0/24")
FIRST, COUNT = int(NETWORK[1]), NETWORK.num_addresses - 2

_MAC = bytes.fromhex("02666d000001")  # of both ends: the host, which asks for no address, then writes the right one
_TABLE = 6160  # of routing, with one route
_PRIORITY = 1  # of the rule, next to that of the table local

_IFF_NOARP = 0x80
_IFINFOMSG = struct.Struct("=BBHiII")  # family, padding, type, ifindex, flags, changed flags
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 1, 3, 4, 18
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1

_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, ifindex
_IFA_LOCAL, _SCOPE_LINK, _SCOPE_HOST = 2, 253, 254

_RTMSG = struct.Struct("=BBBBBBBBI")  # family, destination length, -, tos, table, protocol, scope, type, flags
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_TABLE_LOCAL, _STATIC, _UNICAST, _LOCAL = 255, 4, 1, 2

_FIB_RULE = struct.Struct("=BBBBBBBBI")  # family, destination length, source length, tos, table, -, -, action, flags
_FRA_SRC, _FRA_PRIORITY, _FRA_TABLE, _TO_TABLE = 2, 6, 15, 1

_NDMSG = struct.Struct("=BBHiHBB")  # family, padding, padding, ifindex, state, flags, type
_NDA_DST, _NDA_LLADDR, _PERMANENT = 1, 2, 0x80


def make(mtu: int) -> None:
    """Make the pair, in place of one that a predecessor left. Raises KernelError; then there is none."""
    remove()
    requests = netlink.RequestSocket()
    try:
        _make(requests, mtu)
    except OSError as error:
        remove()
        raise KernelError(
            f"REDIRECT needs the link {HOST_END}, a veth pair, and the kernel refuses it: {error.strerror}"
        ) from None
    finally:
        requests.close()


def remove() -> bool:
    """Remove the pair and all that goes with it, also a predecessor's; return whether there was one."""
    requests = netlink.RequestSocket()
    try:
        with contextlib.suppress(FileNotFoundError):
            requests.ask(netlink.RTM_DELRULE, 0, _rule())
        try:
            requests.ask(netlink.RTM_DELLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0, 0) + _name(HOST_END))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise KernelError(f"the link {HOST_END} cannot be removed: {error.strerror}") from None
            return False
        return True
    finally:
        requests.close()


def put_back(mtu: int) -> bool:
    """Restore what somebody has removed: the pair, its routes, or the rule; return whether that was so. KernelError."""
    if not {HOST_END, OUR_END} <= {each.name for each in list_interfaces()}:
        make(mtu)
        return True
    requests = netlink.RequestSocket()
    try:
        return _lead(requests)
    except OSError as error:
        raise KernelError(f"the link {HOST_END} cannot be restored: {error.strerror}") from None
    finally:
        requests.close()


def _make(requests: netlink.RequestSocket, mtu: int) -> None:
    requests.ask(netlink.RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, _pair(mtu))
    for name in (HOST_END, OUR_END):
        sysctl.write_if_present(f"net.ipv6.conf.{name}.disable_ipv6", "1")
    sysctl.write(f"net.ipv4.conf.{HOST_END}.rp_filter", "2")  # the way back to a sender is never over this link
    _lead(requests)


def _lead(requests: netlink.RequestSocket) -> bool:
    """Lead packets over the pair and back, as far as that is not so already; return whether anything was missing."""
    ends = {each.name: each for each in list_interfaces() if each.name in (HOST_END, OUR_END)}
    host, ours = ends[HOST_END].ifindex, ends[OUR_END].ifindex
    down = [each.ifindex for each in ends.values() if not each.flags & IFF_UP]
    for each in down:
        requests.ask(netlink.RTM_NEWLINK, 0, _IFINFOMSG.pack(0, 0, 0, each, IFF_UP, IFF_UP))
    missing = [_is_new(requests, kind, body) for kind, body in _ways(host, ours)]
    return bool(down) or any(missing)


def _is_new(requests: netlink.RequestSocket, kind: int, body: bytes) -> bool:
    try:
        requests.ask(kind, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)
    except FileExistsError:
        return False
    return True


def _ways(host: int, ours: int) -> list[tuple[int, bytes]]:
    """Return the requests for address, routes, rule and neighbour of a pair with these interface numbers."""
    first = struct.pack(">I", FIRST)
    address = _IFADDRMSG.pack(socket.AF_INET, 32, 0, _SCOPE_LINK, host) + netlink.attribute(_IFA_LOCAL, first)
    out_there = netlink.attribute(_RTA_OIF, struct.pack("=i", host))
    to_host = _RTMSG.pack(socket.AF_INET, NETWORK.prefixlen, 0, 0, _TABLE_LOCAL, _STATIC, _SCOPE_HOST, _LOCAL, 0)
    to_host += netlink.attribute(_RTA_DST, NETWORK.network_address.packed) + out_there
    everything = _RTMSG.pack(socket.AF_INET, 0, 0, 0, 0, _STATIC, _SCOPE_LINK, _UNICAST, 0)
    everything += netlink.attribute(_RTA_TABLE, struct.pack("=I", _TABLE)) + out_there
    neighbour = _NDMSG.pack(socket.AF_INET, 0, 0, ours, _PERMANENT, 0, 0)
    neighbour += netlink.attribute(_NDA_DST, first) + netlink.attribute(_NDA_LLADDR, _MAC)
    return [
        (netlink.RTM_NEWADDR, address),
        (netlink.RTM_NEWROUTE, to_host),
        (netlink.RTM_NEWROUTE, everything),
        (netlink.RTM_NEWRULE, _rule()),
        (netlink.RTM_NEWNEIGH, neighbour),
    ]


def _pair(mtu: int) -> bytes:
    peer = netlink.attribute(_VETH_INFO_PEER, _end(OUR_END, mtu))
    kind = netlink.attribute(_IFLA_INFO_KIND, b"veth") + netlink.attribute(_IFLA_INFO_DATA, peer)
    return _end(HOST_END, mtu) + netlink.attribute(_IFLA_LINKINFO, kind)


def _end(name: str, mtu: int) -> bytes:
    header = _IFINFOMSG.pack(0, 0, 0, 0, _IFF_NOARP, _IFF_NOARP)
    size = netlink.attribute(_IFLA_MTU, struct.pack("=I", mtu))
    return header + _name(name) + netlink.attribute(_IFLA_ADDRESS, _MAC) + size


def _name(name: str) -> bytes:
    return netlink.attribute(_IFLA_IFNAME, name.encode() + b"\0")


def _rule() -> bytes:
    header = _FIB_RULE.pack(socket.AF_INET, 0, NETWORK.prefixlen, 0, 0, 0, 0, _TO_TABLE, 0)
    source = netlink.attribute(_FRA_SRC, NETWORK.network_address.packed)
    priority = netlink.attribute(_FRA_PRIORITY, struct.pack("=I", _PRIORITY))
    return header + source + priority + netlink.attribute(_FRA_TABLE, struct.pack("=I", _TABLE))
