"""News of ports that programs of this host bind, by an eBPF program that the kernel asks after each bind.

A program that binds a port and asks somebody at once wants the answer, so the guard must know of the port before that.
The eBPF program is at the root control group, and writes down protocol and port of each bind in our network namespace.
It goes when this process does.
"""

from __future__ import annotations

import mmap
import struct

from fastmasq.kernel.bpf import calls
from fastmasq.kernel.bpf.assembler import NETNS_COOKIE, R0, R1, R2, R3, R4, R6, RING_OUTPUT, STACK, Assembler
from fastmasq.kernel.bpf.group import GroupPrograms
from fastmasq.kernel.identity import namespace_cookie

_SOCK = 9  # BPF_PROG_TYPE_CGROUP_SOCK
_POST_BIND4, _POST_BIND6 = 12, 13  # BPF_CGROUP_INET*_POST_BIND
_PROTOCOL, _SOURCE_PORT = 12, 44  # in struct bpf_sock, 4 octets each, the port in host order
_POSITION = struct.Struct("=Q")
_RECORD = struct.Struct("=I4xII")  # octets that follow the header, with flags; our protocol and port
_BUSY, _DISCARDED = 1 << 31, 1 << 30  # BPF_RINGBUF_*_BIT


class Binds(GroupPrograms):
    """The ring of news, from now until `close`; `fileno` is readable when there are some, `take` takes them all."""

    def _prepare(self) -> list[tuple[int, int]]:
        cookie = namespace_cookie()
        self._ring = self._keep(calls.make_ring(mmap.PAGESIZE))
        # linux/bpf.h: the first page has the reader's position, the second the writer's, then comes the data twice
        read = self._open.enter_context(mmap.mmap(self._ring, mmap.PAGESIZE))
        # the kernel may look at any moment: written in one piece, where struct's pack_into would write 0 before
        self._read = self._open.enter_context(memoryview(read).cast("Q"))
        self._written = self._open.enter_context(
            mmap.mmap(self._ring, 3 * mmap.PAGESIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        )
        code = _program(self._ring, cookie)
        return [
            (self._keep(calls.load_program(code, "binds", _SOCK, attach_type)), attach_type)
            for attach_type in (_POST_BIND4, _POST_BIND6)
        ]

    def fileno(self) -> int:
        return self._ring

    def take(self) -> set[tuple[int, int]] | None:
        """Take all news that there are: return protocol and port of each; None if some may not have found room.

        From then on only others make the descriptor readable.
        """
        at, (end,) = self._read[0], _POSITION.unpack_from(self._written)
        has_room = end - at < mmap.PAGESIZE - _RECORD.size  # else it is full
        found = set()
        while at < end:
            header, protocol, port = _RECORD.unpack_from(self._written, mmap.PAGESIZE + at % mmap.PAGESIZE)
            if header & _BUSY:  # just being written, and told of then
                break
            if not header & _DISCARDED:
                found.add((protocol, port))
            at += _RECORD.size
        self._read[0] = at
        return found if has_room else None


def _program(ring: int, cookie: int) -> bytes:
    """Return the program: one record in the ring for each bind in the namespace with this cookie; all may bind."""
    code = Assembler()
    code.move(R6, R1)
    code.call(NETNS_COOKIE)
    code.store(STACK, -8, R0, 8)
    for offset, word in zip((-8, -4), struct.unpack("=II", struct.pack("=Q", cookie)), strict=True):
        code.load(R0, STACK, offset, 4)
        code.jump_if_not_equal(R0, word, "out")
    for offset, field in ((-8, _PROTOCOL), (-4, _SOURCE_PORT)):
        code.load(R0, R6, field, 4)
        code.store(STACK, offset, R0, 4)
    code.load_map(R1, ring)
    code.move(R2, STACK)
    code.add_value(R2, -8)
    code.set(R3, 8)
    code.set(R4, 0)
    code.call(RING_OUTPUT)
    code.label("out")
    code.set(R0, 1)
    code.exit()
    return code.program()
