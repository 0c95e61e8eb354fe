"""What fastmasq wants of a kernel: since when there is what, how a kernel without it answers, and what is done then.

A *use* is something that fastmasq does by the kernel; it needs one or more *features*. Whoever uses a feature asks for
it, and goes on by the way that `USES` names where it is refused: nothing is decided by a version number, but for one
use that no question tells of (`UDP_BURSTS`). `fastmasq status` names the uses that a run does without, `fastmasq doctor
kernel` asks for all of them, and the manual's page is made from here.

Linux 3.2 is the oldest kernel that the C library of a Debian of today starts on (glibc 2.26 and later). What is older
than that, such as TPACKET_V2, sendmmsg, eventfd, timerfd and the iptables table `raw`, has no row.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from fastmasq.ring.packet_socket import BYPASS, HEADER, IGNORE_OUTGOING, RING_HEADER, RING_V3, VLAN_FILTER

Release = tuple[int, int]

UDP_BURSTS = "UDP bursts in the virtio header"
GUARD_TC = "guard tc"
GUARD_NFTABLES = "guard nftables"
GUARD_IPTABLES = "guard iptables"
HOST_RULES = "rules for the host itself"
ORIGINAL_DESTINATIONS = "original destinations for proxies"
BINDS = "news of bound ports"
AHEAD = "memory ahead of use"
IDLE_PORTS = "ports bound and idle"
PORT_SETTINGS = "port settings of a network namespace"
FORWARDING_NEWS = "news of the kernel's forwarding"
NAMESPACE_NUMBERS = "numbers of network namespaces"
THREAD_SELF = "the thread's own folder"


class Use(NamedTuple):
    """What is done without it, and what that costs."""

    instead: str
    cost: str


class Feature(NamedTuple):
    """`lacking` is how a kernel before `since` answers; `source` is the commit of Linux, or the page, that says so."""

    name: str
    since: str
    uses: tuple[str, ...]
    lacking: str
    source: str

    @property
    def release(self) -> Release:
        return read_release(self.since)


USES: dict[str, Use] = {
    RING_V3: Use("ring v2, else plain sockets (recvmmsg)", "nothing: ring v2 is taken first in any case"),
    HEADER: Use(
        "checksums are completed and large sends cut here; what merges UDP on our links is switched off",
        "bulk transfers are several times slower; UDP bursts that still come as one packet are dropped",
    ),
    RING_HEADER: Use("plain sockets (recvmmsg) with the virtio header", "each packet is copied once more"),
    UDP_BURSTS: Use(
        "what merges UDP on our links is switched off",
        "a burst of UDP that a container or a virtual machine of this host sends as one packet is lost by the ring",
    ),
    VLAN_FILTER: Use("tagged frames are dropped by the path (vlan_tagged)", "the time of a packet for each of them"),
    IGNORE_OUTGOING: Use("the tap's filter keeps them out", "a filter run for each packet sent"),
    BYPASS: Use("packets pass the link's queueing discipline", "its lock and its queue for each packet sent"),
    GUARD_TC: Use("guard nftables", "some 100 ns more for each packet that is ours, 200 ns for the host's own"),
    GUARD_NFTABLES: Use("guard iptables", "the kernel begins with each packet of ours before it drops it"),
    GUARD_IPTABLES: Use("no guard", "the host sees packets that are ours, and may answer them with a reset"),
    HOST_RULES: Use("nothing", "the chains input and output do not judge the host's own packets"),
    ORIGINAL_DESTINATIONS: Use("nothing", "proxies on this host do not learn whom their clients asked for"),
    BINDS: Use(
        "a look every 250 ms", "a program that binds a port of ours, and asks at once, loses answers for so long"
    ),
    AHEAD: Use("memory comes when it is first touched", "a page fault in the path for every 20 new sessions"),
    IDLE_PORTS: Use("nothing", "a TCP port that a program has bound, without listening or connecting, may be taken"),
    PORT_SETTINGS: Use(
        "32768-61000 counts as the host's own, and nothing is reserved",
        "a program of the host that binds a port of ours gets it",
    ),
    FORWARDING_NEWS: Use("a look every two seconds", "the kernel forwards for so long when somebody switches it on"),
    NAMESPACE_NUMBERS: Use(
        "all of them have one journal and one lock",
        "one fastmasq runs at a time, and its journal is taken for one of any",
    ),
    THREAD_SELF: Use("the same file below /proc/self/task", "nothing"),
}

FEATURES: tuple[Feature, ...] = (
    Feature("TPACKET_V3", "3.2", (RING_V3,), "setsockopt(PACKET_VERSION): EINVAL", "f6fb8f100b80, packet(7)"),
    Feature(
        "SKF_AD_VLAN_TAG_PRESENT",
        "3.8",
        (VLAN_FILTER,),
        "setsockopt(SO_ATTACH_FILTER): 3.7 EINVAL; before it succeeds, and the filter lets nothing through",
        "f3335031b945, aa1113d9f85d",
    ),
    Feature("RTM_NEWNETCONF", "3.8", (FORWARDING_NEWS,), "RTM_GETNETCONF: EOPNOTSUPP; no news comes", "edc9e748934c"),
    Feature(
        "links in /proc/PID/ns", "3.8", (NAMESPACE_NUMBERS,), "readlink: EINVAL; the inode says nothing",
        "98f842e675f9, bf056bfa8059, namespaces(7)",
    ),
    Feature("nf_tables", "3.13", (GUARD_NFTABLES, HOST_RULES), "nfnetlink: EINVAL, EOPNOTSUPP", "96518518cc41"),
    Feature("ip_local_port_range in namespaces", "3.13", (PORT_SETTINGS,), "open: ENOENT", "0bbf87d852d2"),
    Feature("PACKET_QDISC_BYPASS", "3.14", (BYPASS,), "setsockopt: ENOPROTOOPT", "d346a3fae3ff, packet(7)"),
    Feature("ip_local_reserved_ports in namespaces", "3.16", (PORT_SETTINGS,), "open: ENOENT", "122ff243f5f1"),
    Feature("/proc/thread-self", "3.17", (THREAD_SELF,), "readlink: ENOENT", "0097875bd415, proc(5)"),
    Feature("bpf(2)", "3.18", (GUARD_TC,), "ENOSYS", "99c55f7d47c0, bpf(2)"),
    Feature("nf_tables family netdev", "4.2", (GUARD_NFTABLES,), "nfnetlink: EAFNOSUPPORT", "ed6c4136f157"),
    Feature("nf_tables sets packet types", "4.5", (GUARD_NFTABLES,), "nfnetlink: EOPNOTSUPP", "nft_meta.c of 4.5"),
    Feature("qdisc clsact", "4.5", (GUARD_TC,), "RTM_NEWQDISC: ENOENT", "1f211a1b929c"),
    Feature(
        "PACKET_VNET_HDR on rings", "4.6", (RING_HEADER,), "setsockopt(PACKET_RX_RING) after PACKET_VNET_HDR: EINVAL",
        "58d19b19cd99",
    ),
    Feature("nf_tables fib", "4.10", (HOST_RULES,), "nfnetlink: ENOENT", "f6d0cbcf09c5"),
    Feature("names of eBPF programs", "4.15", (GUARD_TC,), "bpf(BPF_PROG_LOAD): E2BIG", "cb4d2b3f03d8"),
    Feature("eBPF asked after bind", "4.17", (BINDS,), "bpf(BPF_PROG_LOAD): EINVAL", "aac3fc320d94"),
    Feature("PACKET_IGNORE_OUTGOING", "4.20", (IGNORE_OUTGOING,), "setsockopt: ENOPROTOOPT", "fa788d986a3a, packet(7)"),
    Feature("eBPF jumps of 32 bits", "5.1", (GUARD_TC,), "bpf(BPF_PROG_LOAD): EINVAL", "092ed0968bb6"),
    Feature("eBPF addresses of map values", "5.2", (GUARD_TC,), "bpf(BPF_PROG_LOAD): EINVAL", "d8eca5bbb2be"),
    Feature("fsopen(2)", "5.2", (ORIGINAL_DESTINATIONS, BINDS), "ENOSYS", "24dcb3d90a1f"),
    Feature("eBPF links to control groups", "5.7", (ORIGINAL_DESTINATIONS, BINDS), "bpf(): EINVAL", "af6eea57437a"),
    Feature("eBPF asked by getsockname", "5.8", (ORIGINAL_DESTINATIONS,), "bpf(BPF_PROG_LOAD): EINVAL", "1b66d253610c"),
    Feature("eBPF ring buffers", "5.8", (BINDS,), "bpf(BPF_MAP_CREATE): EINVAL", "457f44363a88"),
    Feature("MADV_POPULATE_WRITE", "5.14", (AHEAD,), "madvise: EINVAL", "4ca9b3859dac, madvise(2)"),
    Feature("SO_NETNS_COOKIE", "5.14", (ORIGINAL_DESTINATIONS, BINDS), "getsockopt: ENOPROTOOPT", "e8b9eab99232"),
    Feature(
        "VIRTIO_NET_HDR_GSO_UDP_L4", "6.2", (RING_HEADER, UDP_BURSTS),
        "no answer: a tap with the header loses the packet; a ring v2 receives nothing from then on",
        "860b7f27b8f7, 61fad6816fc1",
    ),
    Feature("sock_diag of bound sockets", "6.8", (IDLE_PORTS,), "an empty list", "91051f003948"),
)  # fmt: skip


def read_release(text: str) -> Release:
    """Return the version of "6.1.0-18-amd64": (6, 1)."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def release() -> Release:
    """Return the version that the running kernel says of itself; distributions carry features back to older ones."""
    return read_release(os.uname().release)


def told_by_version() -> dict[str, str]:
    """Return the uses that this kernel lacks as far as only its version tells it, with the reason."""
    (burst,) = (each for each in FEATURES if UDP_BURSTS in each.uses)
    return {use: f"Linux {os.uname().release}" for use in burst.uses} if release() < burst.release else {}
