"""Links with a link address of their own over one of ours (macvlan, as VRRP has): nothing is forwarded for it.

A frame for that address is another station's to the path, and the kernel forwards nothing; so it is said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from fastmasq.kernel import netlink, rtnetlink

_KINDS = ("macvlan", "macvtap")


def over(links: Collection[int]) -> list[tuple[str, int]]:
    """Return (name, ifindex of the link below) of those over the links with these interface numbers."""
    requests = netlink.RequestSocket()
    try:
        messages, _ = requests.dump(netlink.RTM_GETLINK, rtnetlink.IFINFOMSG.pack())
    finally:
        requests.close()
    return list(read(messages, links))


def read(messages: Iterable[bytes], links: Collection[int]) -> Iterator[tuple[str, int]]:
    """Yield what `over` returns of RTM_NEWLINK messages."""
    for message in messages:
        values = rtnetlink.IFINFOMSG.attributes(message)
        kind = netlink.read_text(netlink.attributes(values.get(rtnetlink.IFLA_LINKINFO, b"")), rtnetlink.IFLA_INFO_KIND)
        below = netlink.read_number(values, rtnetlink.IFLA_LINK)
        if kind in _KINDS and below in links:
            yield netlink.read_text(values, rtnetlink.IFLA_IFNAME), below
