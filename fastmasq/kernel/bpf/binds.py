"""News of ports that programs of this host bind, by an eBPF program that the kernel asks after each bind.

A program that binds a port and asks somebody at once wants the answer, so the guard must know of the port before that.
The program is at the root control group, and writes no more than that there was a bind in our network namespace: what
is bound is then read as always. It goes when this process does.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct

from fastmasq.errors import KernelError
from fastmasq.kernel.bpf import calls
from fastmasq.kernel.bpf.assembler import NETNS_COOKIE, R0, R1, R2, R3, R4, RING_OUTPUT, STACK, Assembler
from fastmasq.kernel.identity import namespace_cookie

_SOCK = 9  # BPF_PROG_TYPE_CGROUP_SOCK
_POST_BIND4, _POST_BIND6 = 12, 13  # BPF_CGROUP_INET*_POST_BIND
_RECORD_BYTES = 8
_POSITION = struct.Struct("=Q")


class Binds:
    """The ring of news, from now until `close`; `fileno` is readable when there are some, `take` takes them all."""

    def __init__(self) -> None:
        """Raises KernelError if the kernel or the system lacks something."""
        self._open = contextlib.ExitStack()
        try:
            group, program = self._prepare()
            for attach_type in (_POST_BIND4, _POST_BIND6):
                self._keep(calls.attach_to_group(program[attach_type], group, attach_type))
        except (OSError, KernelError) as error:
            self.close()
            raise _refusal(error) from None

    @classmethod
    def check(cls) -> None:
        """Raise KernelError as making one would, but for the last step: nothing is put in force."""
        tried = cls.__new__(cls)
        tried._open = contextlib.ExitStack()
        try:
            tried._prepare()
        except (OSError, KernelError) as error:
            raise _refusal(error) from None
        finally:
            tried.close()

    def _prepare(self) -> tuple[int, dict[int, int]]:
        """Make the ring and load the programs; return a descriptor of the root control group, and the programs."""
        cookie = namespace_cookie()
        self._ring = self._keep(calls.make_ring(mmap.PAGESIZE))
        # linux/bpf.h: the first page has the reader's position, the second the writer's, then comes the data twice
        self._read = self._open.enter_context(mmap.mmap(self._ring, mmap.PAGESIZE))
        self._written = self._open.enter_context(
            mmap.mmap(self._ring, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        )
        code = _program(self._ring, cookie)
        return self._keep(calls.open_root_group()), {
            attach_type: self._keep(calls.load_program(code, "binds", _SOCK, attach_type))
            for attach_type in (_POST_BIND4, _POST_BIND6)
        }

    def fileno(self) -> int:
        return self._ring

    def take(self) -> None:
        """Take all news that there are: from then on only others make the descriptor readable."""
        _POSITION.pack_into(self._read, 0, *_POSITION.unpack_from(self._written))

    def close(self) -> None:
        self._open.close()

    def _keep(self, descriptor: int) -> int:
        self._open.callback(os.close, descriptor)
        return descriptor


def _refusal(error: OSError | KernelError) -> KernelError:
    return KernelError((error.strerror or str(error)) if isinstance(error, OSError) else str(error))


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
