"""The arrays that the path shares with the program: BPF maps of the kernel's, mapped into our memory.

All rows are there at once and stay in memory. They live as long as anybody has them: this process, or a program that is
attached to a link.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Mapping

from fastmasq.errors import KernelError
from fastmasq.kernel.bpf import calls
from fastmasq.path import rows
from fastmasq.table import memory


class Arrays:
    """For a table of so many sessions; `buffers` are for MasqTable and Forwarder, `descriptors` for the program."""

    def __init__(self, capacity: int) -> None:
        """Raises KernelError where the kernel has no such maps, or no memory for them."""
        self.descriptors: dict[str, int] = {}
        self._buffers: dict[str, mmap.mmap] = {}
        self._open = contextlib.ExitStack()
        try:
            for name, (dtype, (count,)) in {**memory.shared(capacity), **rows.shared()}.items():
                descriptor = calls.make_array(name, dtype.itemsize, count)
                self._open.callback(os.close, descriptor)
                self.descriptors[name] = descriptor
                self._buffers[name] = mmap.mmap(descriptor, -(-count * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE)
        except OSError as error:
            self.close()
            raise KernelError(f"the kernel has no arrays for {capacity} sessions: {error.strerror}") from None

    @property
    def of_table(self) -> Mapping[str, mmap.mmap]:
        return {name: self._buffers[name] for name in self._buffers.keys() - rows.shared().keys()}

    @property
    def of_path(self) -> Mapping[str, mmap.mmap]:
        return {name: self._buffers[name] for name in rows.shared()}

    def close(self) -> None:
        """Close the descriptors; what is mapped stays for as long as it is used."""
        self._open.close()
