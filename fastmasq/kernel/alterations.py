"""Hears at once when somebody alters what keeps the kernel off: filters at the ingress of links, tables of nftables.

The kernel tells of each such change, whoever makes it, we ourselves included; so what is heard is only a hint to look.
Of what it tells nothing of (chains of iptables, settings), and of events that were lost, there are looks.
"""

from __future__ import annotations

import contextlib
import select

from fastmasq.errors import KernelError
from fastmasq.kernel import netlink, nft, rtnetlink
from fastmasq.kernel.bpf import clsact
from fastmasq.kernel.guard.specification import NAME

_RECEIVE_BUFFER = 1 << 18  # when it overflows there is a look
_EVENTS_AT_ONCE = 1000
_QDISCS = (netlink.RTM_NEWQDISC, netlink.RTM_DELQDISC)
_FILTERS = (netlink.RTM_NEWTFILTER, netlink.RTM_DELTFILTER)


class Alterations:
    """What has been altered in the network namespace this was made in."""

    def __init__(self) -> None:
        """Raises KernelError."""
        self._parts = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.push(self._parts)
            self._wakeup = self._parts.enter_context(contextlib.closing(select.epoll()))
            self._of_links = self._hear(netlink.EventSocket(netlink.GROUP_TC, _RECEIVE_BUFFER))
            self._of_nftables: netlink.EventSocket | None = None
            with contextlib.suppress(KernelError):  # a kernel without them tells nothing
                self._of_nftables = self._hear(
                    netlink.EventSocket(netlink.GROUP_NFTABLES, _RECEIVE_BUFFER, netlink.NETLINK_NETFILTER)
                )
            undo.pop_all()

    def close(self) -> None:
        self._parts.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `read` has something to do."""
        return self._wakeup.fileno()

    def read(self) -> bool:
        """Take in what the kernel has told; return whether that may be about something of ours."""
        messages, is_ours = self._of_links.read(_EVENTS_AT_ONCE)
        is_ours |= any(map(_is_of_ingress, messages))
        if self._of_nftables is not None:
            messages, lost = self._of_nftables.read(_EVENTS_AT_ONCE)
            is_ours |= lost or any(map(_is_of_our_table, messages))
        return is_ours

    def _hear(self, events: netlink.EventSocket) -> netlink.EventSocket:
        self._parts.callback(events.close)
        self._wakeup.register(events, select.EPOLLIN)
        return events


def _is_of_our_table(message: bytes) -> bool:
    return netlink.read_text(nft.table_attributes(message), nft.FIRST_ATTRIBUTE) == NAME


def _is_of_ingress(message: bytes) -> bool:
    kind = netlink.message_type(message)
    return kind in _FILTERS or (kind in _QDISCS and rtnetlink.TCMSG.read(message)[3] == clsact.PARENT)
