"""News of ports that programs of this host bind, by an eBPF program that the kernel asks after each bind.

A program that binds a port and asks somebody at once wants the answer, so the guard must know of the port before that.
The program is at the root control group, and writes no more than that there was a bind in our network namespace: what
is bound is then read as always. It goes when this process does.
"""

from __future__ import annotations

import mmap
import struct

from fastmasq.kernel.bpf import calls
from fastmasq.kernel.bpf.assembler import NETNS_COOKIE, R0, R1, R2, R3, R4, RING_OUTPUT, STACK, Assembler
from fastmasq.kernel.bpf.group import GroupPrograms
from fastmasq.kernel.identity import namespace_cookie

_SOCK = 9  # BPF_PROG_TYPE_CGROUP_SOCK
_POST_BIND4, _POST_BIND6 = 12, 13  # BPF_CGROUP_INET*_POST_BIND
_RECORD_BYTES = 8
_POSITION = struct.Struct("=Q")


class Binds(GroupPrograms):
    """The ring of news, from now until `close`; `fileno` is readable when there are some, `take` takes them all."""

    def _prepare(self) -> list[tuple[int, int]]:
        cookie = namespace_cookie()
        self._ring = self._keep(calls.make_ring(mmap.PAGESIZE))
        # linux/bpf.h: the first page has the reader's position, the second the writer's, then comes the data twice
        self._read = self._open.enter_context(mmap.mmap(self._ring, mmap.PAGESIZE))
        self._written = self._open.enter_context(
            mmap.mmap(self._ring, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        )
        code = _program(self._ring, cookie)
        return [
            (self._keep(calls.load_program(code, "binds", _SOCK, attach_type)), attach_type)
            for attach_type in (_POST_BIND4, _POST_BIND6)
        ]

    def fileno(self) -> int:
        return self._ring

    def take(self) -> None:
        """Take all news that there are: from then on only others make the descriptor readable."""
        _POSITION.pack_into(self._read, 0, *_POSITION.unpack_from(self._written))


def _program(ring: int, cookie: int) -> bytes:
    """Return the program: one record in the ring for each bind in the namespace with this cookie; all may bind."""
    code = Assembler()
    code.call(NETNS_COOKIE)
    code.store(STACK, -8, R0, 8)
    for offset, word in zip((-8, -4), struct.unpack("=II", struct.pack("=Q", cookie)), strict=True):
        code.load(R0, STACK, offset, 4)
        code.jump_if_not_equal(R0, word, "out")
    code.load_map(R1, ring)
    code.move(R2, STACK)
    code.add_value(R2, -_RECORD_BYTES)
    code.set(R3, _RECORD_BYTES)
    code.set(R4, 0)
    code.call(RING_OUTPUT)
    code.label("out")
    code.set(R0, 1)
    code.exit()
    return code.program()
