"""The limit of what an eBPF program at a gateway's ingress can carry: one that sends all IPv4 on as it is, unread.

It looks nothing up and translates nothing: what comes for the gateway leaves by its other interface, with the link
addresses of that. So the server sees the inside hosts' own addresses, and needs a route to them.
"""

from __future__ import annotations

import os
import socket
import sys

from fastmasq.kernel import netlink
from fastmasq.kernel.bpf import calls, clsact
from fastmasq.kernel.bpf.assembler import R0, R1, R2, R3, R6, R7, R8, Assembler

_SKB_PACKET_TYPE, _SKB_PROTOCOL, _SKB_DATA, _SKB_DATA_END = 4, 16, 76, 80  # offsets in struct __sk_buff
_REDIRECT = 23  # helper function
_ETHERNET_OCTETS = 14
_ETH_P_IP = 0x0800
_TC_ACT_UNSPEC = -1
_PRIORITY = 1


def attach(interface: str, out: str, destination: bytes, source: bytes) -> None:
    """Send what comes by one interface of this thread's network namespace out of another. Raises OSError."""
    index = socket.if_nametoindex(interface)
    program = _program(socket.if_nametoindex(out), destination + source)
    descriptor = calls.load_classifier(program, "bench_limit")
    kernel = netlink.RequestSocket()
    try:
        clsact.add(kernel, index)
        clsact.attach(kernel, clsact.classifier(index, _PRIORITY), descriptor, "limit", netlink.NLM_F_EXCL)
    finally:
        kernel.close()
        os.close(descriptor)


def detach(interface: str) -> None:
    """Undo what `attach` did with an interface. Raises OSError."""
    kernel = netlink.RequestSocket()
    try:
        kernel.ask(netlink.RTM_DELQDISC, 0, clsact.qdisc(socket.if_nametoindex(interface)))
    finally:
        kernel.close()


def _program(out: int, addresses: bytes) -> bytes:
    """Return the machine code; `addresses` are those of the Ethernet header that it writes."""
    code = Assembler()
    code.move(R6, R1)
    for field, wanted in ((_SKB_PROTOCOL, socket.htons(_ETH_P_IP)), (_SKB_PACKET_TYPE, socket.PACKET_HOST)):
        code.load(R0, R6, field, 4)
        code.jump_if_not_equal(R0, wanted, "pass")
    code.load(R7, R6, _SKB_DATA, 4)
    code.load(R3, R6, _SKB_DATA_END, 4)
    code.move(R8, R7)
    code.add_value(R8, _ETHERNET_OCTETS)
    code.jump_if_above(R8, R3, "pass")
    for offset in range(0, len(addresses), 4):
        code.store_value(R7, offset, int.from_bytes(addresses[offset : offset + 4], sys.byteorder), 4)
    code.set(R1, out)
    code.set(R2, 0)
    code.call(_REDIRECT)
    code.exit()
    code.label("pass")
    code.set(R0, _TC_ACT_UNSPEC)
    code.exit()
    return code.program()
