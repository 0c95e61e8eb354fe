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
from fastmasq.kernel import netlink, rtnetlink, sysctl
from fastmasq.kernel.links import IFF_UP, list_interfaces

HOST_END, OUR_END = "fastmasq0", "fastmasq1"

NETWORK = ipaddress.IPv4Network("169.254.255.0/24")
FIRST, COUNT = int(NETWORK[1]), NETWORK.num_addresses - 2

_MAC = bytes.fromhex("02666d000001")  # of both ends: the host, which asks for no address, then writes the right one
TABLE = 6160  # of routing, with one route
_PRIORITY = 1  # of the rule, next to that of the table local

_IFF_NOARP = 0x80
_TO_TABLE = 1
_PERMANENT = 0x80


def make(mtu: int) -> None:
    """Make the pair, or go on with a predecessor's if it is the same. Raises KernelError; then there is none.

    Connections with programs go on over a pair that stays: what these send meanwhile goes nowhere else.
    """
    is_there = _is_there(mtu)
    if not is_there:
        remove()
    requests = netlink.RequestSocket()
    try:
        if not is_there:
            _make_pair(requests, mtu)
        _lead(requests)
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
            requests.ask(
                netlink.RTM_DELLINK, 0, rtnetlink.IFINFOMSG.pack() + netlink.text(rtnetlink.IFLA_IFNAME, HOST_END)
            )
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


def _is_there(mtu: int) -> bool:
    """Whether there is a pair just as `_make_pair` makes it."""
    ends = [each for each in list_interfaces() if each.name in (HOST_END, OUR_END)]
    return len(ends) == 2 and all((each.mtu, each.mac) == (mtu, _MAC) and each.flags & _IFF_NOARP for each in ends)


def _make_pair(requests: netlink.RequestSocket, mtu: int) -> None:
    requests.ask(netlink.RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, _pair(mtu))
    for name in (HOST_END, OUR_END):
        sysctl.write_if_present(f"net.ipv6.conf.{name}.disable_ipv6", "1")


def _lead(requests: netlink.RequestSocket) -> bool:
    """Lead packets over the pair and back, as far as that is not so already; return whether anything was missing."""
    ends = {each.name: each for each in list_interfaces() if each.name in (HOST_END, OUR_END)}
    host, ours = ends[HOST_END].ifindex, ends[OUR_END].ifindex
    down = [each.ifindex for each in ends.values() if not each.flags & IFF_UP]
    for each in down:
        requests.ask(netlink.RTM_NEWLINK, 0, rtnetlink.IFINFOMSG.pack(ifindex=each, flags=IFF_UP, changed=IFF_UP))
    missing = [_is_new(requests, kind, body) for kind, body in _ways(host, ours)]
    # the way back to a sender is never over this link
    missing.append(sysctl.write_if_present(f"net.ipv4.conf.{HOST_END}.rp_filter", "2"))
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
    address = rtnetlink.IFADDRMSG.pack(family=socket.AF_INET, length=32, scope=rtnetlink.SCOPE_LINK, ifindex=host)
    address += netlink.attribute(rtnetlink.IFA_LOCAL, first)
    out_there = netlink.number(rtnetlink.RTA_OIF, host)
    to_host = rtnetlink.RTMSG.pack(
        family=socket.AF_INET,
        length=NETWORK.prefixlen,
        table=rtnetlink.TABLE_LOCAL,
        protocol=rtnetlink.RTPROT_STATIC,
        scope=rtnetlink.SCOPE_HOST,
        kind=rtnetlink.RTN_LOCAL,
    )
    to_host += netlink.attribute(rtnetlink.RTA_DST, NETWORK.network_address.packed) + out_there
    everything = rtnetlink.RTMSG.pack(
        family=socket.AF_INET, protocol=rtnetlink.RTPROT_STATIC, scope=rtnetlink.SCOPE_LINK, kind=rtnetlink.RTN_UNICAST
    )
    everything += netlink.number(rtnetlink.RTA_TABLE, TABLE) + out_there
    neighbour = rtnetlink.NDMSG.pack(family=socket.AF_INET, ifindex=ours, state=_PERMANENT)
    neighbour += netlink.attribute(rtnetlink.NDA_DST, first) + netlink.attribute(rtnetlink.NDA_LLADDR, _MAC)
    return [
        (netlink.RTM_NEWADDR, address),
        (netlink.RTM_NEWROUTE, to_host),
        (netlink.RTM_NEWROUTE, everything),
        (netlink.RTM_NEWRULE, _rule()),
        (netlink.RTM_NEWNEIGH, neighbour),
    ]


def _pair(mtu: int) -> bytes:
    peer = netlink.attribute(rtnetlink.VETH_INFO_PEER, _end(OUR_END, mtu))
    kind = netlink.attribute(rtnetlink.IFLA_INFO_KIND, b"veth") + netlink.attribute(rtnetlink.IFLA_INFO_DATA, peer)
    return _end(HOST_END, mtu) + netlink.attribute(rtnetlink.IFLA_LINKINFO, kind)


def _end(name: str, mtu: int) -> bytes:
    header = rtnetlink.IFINFOMSG.pack(flags=_IFF_NOARP, changed=_IFF_NOARP)
    mac = netlink.attribute(rtnetlink.IFLA_ADDRESS, _MAC)
    return header + netlink.text(rtnetlink.IFLA_IFNAME, name) + mac + netlink.number(rtnetlink.IFLA_MTU, mtu)


def _rule() -> bytes:
    header = rtnetlink.FIB_RULE_HDR.pack(family=socket.AF_INET, source_length=NETWORK.prefixlen, action=_TO_TABLE)
    source = netlink.attribute(rtnetlink.FRA_SRC, NETWORK.network_address.packed)
    priority = netlink.number(rtnetlink.FRA_PRIORITY, _PRIORITY)
    return header + source + priority + netlink.number(rtnetlink.FRA_TABLE, TABLE)
