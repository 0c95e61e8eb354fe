"""The programs of this host that wait for packets, at a port or for a protocol without ports, by name and process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from fastmasq.kernel.ports import Waiting

_PROCESSES = Path("/proc")


class Program(NamedTuple):
    """Who has a socket; pid 0 is nobody that can be named: the kernel itself, or a process that we may not look at."""

    name: str
    pid: int

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})" if self.pid else self.name


def program_of(waiting: Waiting) -> Program:
    """Return the program that has a socket: of several, such as a server's workers, the one that is oldest."""
    found = _owners([waiting.inode]).get(waiting.inode)
    if found is not None:
        return found
    return Program("the kernel" if not waiting.inode else f"a program of user {waiting.user}", 0)


def _owners(inodes: Collection[int]) -> dict[int, Program]:
    """Return the programs that have these sockets open; those of processes that we may not look at are left out."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, Program] = {}
    for pid in sorted(int(name) for name in os.listdir(_PROCESSES) if name.isdecimal()):
        if len(found) == len(wanted):
            break
        for link in wanted.keys() & open_files(pid):
            with contextlib.suppress(OSError):
                name = (_PROCESSES / str(pid) / "comm").read_text().strip()
                found.setdefault(wanted[link], Program(name, pid))
    return found


def open_files(pid: int) -> set[str]:
    """Return what a process has open, as its folder in /proc names it; nothing of one that is not ours to look at."""
    found = set()
    with contextlib.suppress(OSError), os.scandir(_PROCESSES / str(pid) / "fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # closed meanwhile
                found.add(os.readlink(entry.path))
    return found
