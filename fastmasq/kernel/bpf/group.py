"""Programs at the root control group, which the kernel asks about all sockets; they go when this process does."""

from __future__ import annotations

import contextlib
import os

from fastmasq.errors import KernelError
from fastmasq.kernel.bpf import calls


class GroupPrograms:
    """Such programs with what they share, in force from now until `close`; a class of them says in `_prepare` which."""

    _without = ""  # said before the reason, where they cannot be had

    def __init__(self, *, attach: bool = True) -> None:
        """Raises KernelError if the kernel or the system lacks something."""
        self._open = contextlib.ExitStack()
        try:
            programs = self._prepare()
            group = self._keep(calls.open_root_group())
            for program, attach_type in programs if attach else ():
                self._keep(calls.attach_to_group(program, group, attach_type))
        except (OSError, KernelError) as error:
            self.close()
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            raise KernelError(f"{self._without}{reason}") from None

    @classmethod
    def check(cls) -> None:
        """Raise KernelError as making one would, but for the last step: nothing is put in force."""
        cls(attach=False).close()

    def close(self) -> None:
        self._open.close()

    def _prepare(self) -> list[tuple[int, int]]:
        """Load the programs, and make what they share; return the descriptor of each, and what it is asked about."""
        raise NotImplementedError

    def _keep(self, descriptor: int) -> int:
        """Have a descriptor open until `close`, and return it."""
        self._open.callback(os.close, descriptor)
        return descriptor
