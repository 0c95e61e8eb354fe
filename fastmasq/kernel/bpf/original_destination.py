"""The original destination of redirected connections, told to proxies: by getsockname(2) and SO_ORIGINAL_DST.

A transparent proxy wants to know whom its client meant. In the kernels of 1999 the socket itself had that address
(section 5.3, T-10); programs of later days ask the kernel's NAT for it. Here the socket has an address of the local
link, and eBPF programs at the root control group answer in its place, for sockets with such an address and for no
others. They look into a map that the path fills when it opens a session, and go when this process does.

Addresses and ports are in network byte order here, as the kernel shows them to such programs.
"""

from __future__ import annotations

import socket
import sys

from fastmasq.kernel.bpf import calls
from fastmasq.kernel.bpf.assembler import MAP_LOOKUP, NETNS_COOKIE, R0, R1, R2, R3, R6, R7, R8, STACK, Assembler
from fastmasq.kernel.bpf.group import GroupPrograms
from fastmasq.kernel.identity import namespace_cookie
from fastmasq.kernel.local_link import NETWORK

ENTRIES = 65536  # connections whose programs have yet to ask

_SO_ORIGINAL_DST = 80
_SOCK_ADDR, _SOCKOPT = 18, 25  # BPF_PROG_TYPE_CGROUP_*
_GETSOCKOPT, _GETSOCKNAME4, _GETSOCKNAME6 = 21, 31, 32  # BPF_CGROUP_*

# struct bpf_sock, bpf_sock_addr, bpf_sockopt (linux/bpf.h)
_SOCK_SOURCE, _SOCK_SOURCE_PORT, _SOCK_DESTINATION_PORT, _SOCK_DESTINATION = 24, 44, 48, 52
_ADDR_IP4, _ADDR_IP6_LAST, _ADDR_PORT, _ADDR_SOCK = 4, 20, 24, 64
_OPT_SOCK, _OPT_VALUE, _OPT_END, _OPT_LEVEL, _OPT_NAME, _OPT_LENGTH, _OPT_RESULT = 0, 8, 16, 24, 28, 32, 36

# key: namespace u64, our address u32, the client's u32, our port u32 in host order, the client's port u32
# value: address u32, port u16, padding
_KEY_BYTES, _VALUE_BYTES = 24, 8
_SOCKADDR_BYTES = 16


class OriginalDestinations(GroupPrograms):
    """The map and the programs, in force from now until `close`. `map` is the descriptor, `cookie` our namespace's."""

    DESCRIPTORS = 8  # at most, that it has open at a time

    _without = "proxies cannot learn the original destination of their connections: "

    def _prepare(self) -> list[tuple[int, int]]:
        self.cookie = namespace_cookie()
        self.map = self._keep(calls.make_cache(_KEY_BYTES, _VALUE_BYTES, ENTRIES))
        return [
            (self._keep(calls.load_program(code, name, kind, attach_type)), attach_type)
            for code, name, kind, attach_type in (
                (_name_program(self.map, _ADDR_IP4), "original_name4", _SOCK_ADDR, _GETSOCKNAME4),
                (_name_program(self.map, _ADDR_IP6_LAST), "original_name6", _SOCK_ADDR, _GETSOCKNAME6),
                (_option_program(self.map), "original_option", _SOCKOPT, _GETSOCKOPT),
            )
        ]


def _look_up(code: Assembler, map_descriptor: int) -> None:
    """Emit: R0 = the value for the socket R7, or on to "out" without one. R6 is the context; changes R8."""
    network, mask = (int.from_bytes(part.packed, sys.byteorder) for part in (NETWORK.network_address, NETWORK.netmask))
    code.jump_if_zero(R7, "out")
    code.load(R8, R7, _SOCK_SOURCE, 4)
    code.store(STACK, -16, R8, 4)
    code.bit_and(R8, mask)
    code.jump_if_not_equal(R8, network, "out")
    code.load(R8, R7, _SOCK_DESTINATION, 4)
    code.store(STACK, -12, R8, 4)
    code.load(R8, R7, _SOCK_SOURCE_PORT, 4)
    code.store(STACK, -8, R8, 4)
    code.load(R8, R7, _SOCK_DESTINATION_PORT, 2)
    code.store(STACK, -4, R8, 4)
    code.move(R1, R6)
    code.call(NETNS_COOKIE)
    code.store(STACK, -24, R0, 8)
    code.load_map(R1, map_descriptor)
    code.move(R2, STACK)
    code.add_value(R2, -_KEY_BYTES)
    code.call(MAP_LOOKUP)
    code.jump_if_zero(R0, "out")


def _end(code: Assembler) -> bytes:
    code.label("out")
    code.set(R0, 1)
    code.exit()
    return code.program()


def _name_program(map_descriptor: int, address: int) -> bytes:
    """Return the program that getsockname(2) asks; `address` is where the last four octets of the name are."""
    code = Assembler()
    code.move(R6, R1)
    code.load(R7, R6, _ADDR_SOCK, 8)
    _look_up(code, map_descriptor)
    code.load(R1, R0, 0, 4)
    code.store(R6, address, R1, 4)
    code.load(R1, R0, 4, 2)
    code.store(R6, _ADDR_PORT, R1, 4)
    return _end(code)


def _option_program(map_descriptor: int) -> bytes:
    """Return the program that getsockopt(2) asks: for SO_ORIGINAL_DST, a struct sockaddr_in."""
    code = Assembler()
    code.move(R6, R1)
    for field, wanted in ((_OPT_LEVEL, socket.SOL_IP), (_OPT_NAME, _SO_ORIGINAL_DST)):
        code.load(R1, R6, field, 4)
        code.jump_if_not_equal(R1, wanted, "out")
    code.load(R7, R6, _OPT_SOCK, 8)
    _look_up(code, map_descriptor)
    code.load(R2, R6, _OPT_VALUE, 8)
    code.load(R3, R6, _OPT_END, 8)
    code.move(R8, R2)
    code.add_value(R8, _SOCKADDR_BYTES)
    code.jump_if_above(R8, R3, "out")
    code.store_value(R2, 0, socket.AF_INET, 2)
    code.load(R1, R0, 4, 2)
    code.store(R2, 2, R1, 2)
    code.load(R1, R0, 0, 4)
    code.store(R2, 4, R1, 4)
    code.store_value(R2, 8, 0, 4)
    code.store_value(R2, 12, 0, 4)
    code.set(R1, _SOCKADDR_BYTES)
    code.store(R6, _OPT_LENGTH, R1, 4)
    code.set(R1, 0)
    code.store(R6, _OPT_RESULT, R1, 4)
    return _end(code)
