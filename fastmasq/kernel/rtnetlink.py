"""The messages of rtnetlink (linux/rtnetlink.h): their fixed parts by field, and the attributes in use here."""

from __future__ import annotations

import struct

from fastmasq.kernel import netlink


class Fixed:
    """The fixed part of a kind of message, behind the header of netlink; all fields are integers in host byte order."""

    def __init__(self, layout: str, *fields: str) -> None:
        self._struct = struct.Struct(layout)
        self.fields = fields

    def pack(self, **values: int) -> bytes:
        """Return it with these values, the other fields 0."""
        return self._struct.pack(*(dict.fromkeys(self.fields, 0) | values).values())

    def read(self, message: bytes) -> tuple[int, ...]:
        """Return the fields of a message with its header, in order; all are 0 if it is too short for them."""
        if len(message) < netlink.HEADER.size + self._struct.size:
            return (0,) * len(self.fields)
        return self._struct.unpack_from(message, netlink.HEADER.size)

    def attributes(self, message: bytes) -> dict[int, bytes]:
        """Return what follows it in a message with its header."""
        return netlink.attributes(message[netlink.HEADER.size + self._struct.size :])


IFINFOMSG = Fixed("=BxHiII", "family", "hardware", "ifindex", "flags", "changed")
IFADDRMSG = Fixed("=BBBBI", "family", "length", "flags", "scope", "ifindex")
RTMSG = Fixed(
    "=BBBBBBBBI", "family", "length", "source_length", "tos", "table", "protocol", "scope", "kind", "flags"
)  # fmt: skip
FIB_RULE_HDR = Fixed("=BBBBB2xBI", "family", "length", "source_length", "tos", "table", "action", "flags")
NDMSG = Fixed("=B3xiHBB", "family", "ifindex", "state", "flags", "kind")
TCMSG = Fixed("=B3xiIII", "family", "ifindex", "handle", "parent", "info")

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_QDISC, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 5, 6, 10, 18
IFLA_EXT_MASK = 29
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH = 1, 4, 5, 6, 7, 8, 9
RTA_TABLE, RTA_VIA, RTA_ENCAP = 15, 18, 22
RTAX_MTU = 2
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK = 1, 2, 3, 4, 6, 10, 15, 16
FRA_OIFNAME, FRA_L3MDEV, FRA_UID_RANGE, FRA_IP_PROTO, FRA_SPORT_RANGE, FRA_DPORT_RANGE = 17, 19, 20, 22, 23, 24
NDA_DST, NDA_LLADDR = 1, 2
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS = 6, 7, 8
TCA_BPF_FLAG_ACT_DIRECT = 1

SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST = 0, 253, 254
TABLE_DEFAULT, TABLE_MAIN, TABLE_LOCAL = 253, 254, 255
RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST = 1, 2, 3, 4, 5
RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT, RTN_THROW = 6, 7, 8, 9
RTPROT_STATIC = 4
