"""Where the program is asked: at the ingress of links, ahead of the guard; it goes when this process does."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Mapping

from fastmasq.errors import KernelError
from fastmasq.kernel import privileges
from fastmasq.kernel.bpf import calls
from fastmasq.offload import program
from fastmasq.offload.arrays import Arrays
from fastmasq.path.rows import NO_LINK

ORDERED = ("x86_64",)  # processors that show reads and writes to others in their order
_NOWHERE = 0x7FFFFFFF  # the number of no interface


class Attachment:
    """The program with its arrays, at no link yet."""

    def __init__(self, sessions: int) -> None:
        """Raises KernelError if it cannot be had."""
        if platform.machine() not in ORDERED:
            raise KernelError(f"processors of {platform.machine()} show their writes to others in any order")
        if lacking := privileges.wanting():
            raise KernelError(f"fastmasq lacks {' and '.join(lacking)}")
        self._program = program.read()
        self.arrays = Arrays(sessions)
        self._links: dict[int, tuple[int, int]] = {}  # by number: interface, and the descriptor that it is held by
        try:
            self._join(NO_LINK, _NOWHERE)  # a kernel that knows the place misses the interface
        except KernelError:
            self.arrays.close()
            raise

    def follow(self, interfaces: Mapping[int, int]) -> None:
        """Be at these interfaces, given by the numbers of their links, and at no others. Raises KernelError."""
        for number, (ifindex, _) in list(self._links.items()):
            if interfaces.get(number) != ifindex:
                self._leave(number)
        for number, ifindex in interfaces.items():
            if number not in self._links:
                self._join(number, ifindex)

    def close(self) -> None:
        for number in list(self._links):
            self._leave(number)
        self.arrays.close()

    def _load(self, number: int) -> int:
        return program.load(self._program, self.arrays.descriptors, number)

    def _join(self, number: int, ifindex: int) -> None:
        loaded = self._load(number)
        try:
            self._links[number] = ifindex, calls.attach_to_interface(loaded, ifindex)
        except OSError as error:
            if error.errno == errno.ENODEV:  # it has just gone
                return
            raise KernelError(f"the program cannot be put at a link (since Linux 6.6): {error.strerror}") from None
        finally:
            os.close(loaded)

    def _leave(self, number: int) -> None:
        os.close(self._links.pop(number)[1])
