"""The queueing discipline clsact, at whose hooks eBPF classifiers judge the packets that come in or leave by a link."""

from __future__ import annotations

import socket

from fastmasq.kernel import netlink, rtnetlink

INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3

PARENT = 0xFFFFFFF1  # of the discipline, as of the older one "ingress"
_HANDLE = 0xFFFF0000
_ETH_P_ALL = 0x0003


def qdisc(ifindex: int) -> bytes:
    """Return the body of a request about the discipline of a link."""
    return rtnetlink.TCMSG.pack(ifindex=ifindex, handle=_HANDLE, parent=PARENT)


def classifier(ifindex: int, priority: int, handle: int = 0) -> bytes:
    """Return the body of a request about a classifier at a link's ingress; handle 0 is one of the kernel's choice."""
    info = priority << 16 | socket.htons(_ETH_P_ALL)
    body = rtnetlink.TCMSG.pack(ifindex=ifindex, handle=handle, parent=INGRESS, info=info)
    return body + netlink.text(rtnetlink.TCA_KIND, "bpf")


def add(requests: netlink.RequestSocket, ifindex: int) -> None:
    """Give a link the discipline. Raises OSError, FileExistsError if it has one at these hooks."""
    new = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    requests.ask(netlink.RTM_NEWQDISC, new, qdisc(ifindex) + netlink.text(rtnetlink.TCA_KIND, "clsact"))


def attach(requests: netlink.RequestSocket, body: bytes, program: int, name: str, flags: int = 0) -> None:
    """Have a loaded program be the classifier of `body`; `flags` beside NLM_F_CREATE. Raises OSError."""
    options = (
        netlink.number(rtnetlink.TCA_BPF_FD, program)
        + netlink.text(rtnetlink.TCA_BPF_NAME, name)
        + netlink.number(rtnetlink.TCA_BPF_FLAGS, rtnetlink.TCA_BPF_FLAG_ACT_DIRECT)
    )
    body += netlink.attribute(rtnetlink.TCA_OPTIONS, options)
    requests.ask(netlink.RTM_NEWTFILTER, netlink.NLM_F_CREATE | flags, body)
