"""The file that sessions outlive this process in: a page that says whose it is and what it holds, then a table's rows.

It lies in `[state] directory`, which must be a tmpfs: the path writes to it as to any memory, and nothing reads it but
a start after a kill, a crash, or SIGTERM under `--keep`. That copies what is to go on (table/adoption.pyx) into a file
of its own, which takes the place of the one before when all is ready. So whoever dies meanwhile has lost nothing, and
the table may have another size, or its rows another layout (table/image.py).

The file is mapped as a whole and has memory only where `back` was called (table/masq.pyx says when). Where there is no
room, that part of the rows is memory of this process alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from fastmasq.daemon import kept_tunnels, origin
from fastmasq.daemon.kept_tunnels import FormerTunnels, read_former
from fastmasq.daemon.origin import Origin
from fastmasq.daemon.tunnel_adoption import adopt as adopt_tunnels
from fastmasq.daemon.vpn import Vpn
from fastmasq.errors import KernelError
from fastmasq.kernel import local_link
from fastmasq.kernel.identity import network_namespace
from fastmasq.kernel.run_folder import RunFolder, file_of
from fastmasq.table import image, memory, rows
from fastmasq.table.adoption import adopt
from fastmasq.table.image import Image
from fastmasq.table.masq import MasqTable

log = logging.getLogger("fastmasq.engine")

_NAMES = {"session": "sessions", "call": "calls", "sa": "SAs", "exchange": "ISAKMP exchanges"}  # by kind of row
_AT_ONCE = 4096  # rows read: half a megabyte, which stays in a cache
_MAP_FIXED = 0x10  # mmap(2)


class Identity(Origin, frozen=True, kw_only=True):
    """What the first page says, as JSON: also what the rows behind it are; `version` is that of the image."""

    arrays: image.Description = msgspec.field(default_factory=dict)


def adoptable(directory: Path) -> tuple[Path, str]:
    """Return the file that a start would adopt sessions from, and what is wrong with it, or with that of tunnels."""
    name = file_of(network_namespace().inode, "state")
    try:
        with RunFolder(directory) as folder:
            descriptor = folder.open(name)
            if descriptor is None:
                return directory / name, "there is no file with them"
            try:
                _, complaint = _look_into(descriptor)
            finally:
                os.close(descriptor)
            return directory / name, complaint or kept_tunnels.complaint(folder) or ""
    except KernelError as error:
        return directory / name, str(error)


def _look_into(descriptor: int) -> tuple[Identity | None, str | None]:
    """Return what the first page of a file says, and why the rows behind it are nothing for us, if so."""
    octets = os.pread(descriptor, mmap.PAGESIZE, 0).rstrip(b"\0")
    identity = Identity.read(octets)
    if identity is None:  # perhaps it is of a version that says other things there
        return None, origin.complaint(Origin.read(octets), image.VERSION) or "it is damaged"
    return identity, image.complaint(identity.version, identity.arrays) or identity.complaint(identity.version)


class Former:
    """The rows that a process before has left, read from its file; nothing of them is believed."""

    def __init__(self, descriptor: int, identity: Identity) -> None:
        def read(octets: np.ndarray, at: int) -> None:
            os.preadv(descriptor, [octets], mmap.PAGESIZE + at)

        self._image = Image(identity.version, identity.arrays, read)
        self.header = np.zeros(1, rows.HEADER)

    def adopt(self, table: MasqTable, now_ns: int, used: int | None = None) -> dict[str, int]:
        """Open its sessions in an empty table; return how many were dropped, by reason.

        used: how many rows of sessions were ever used, if whoever has written them says so.
        """
        self.header = self._image.rows("header", 0, 1)
        proxies = local_link.FIRST, local_link.COUNT
        return adopt(
            table, self.header[0], self._mappings(), self._sessions(used), now_ns, proxies, self._streams()
        )  # fmt: skip

    @property
    def externals(self) -> tuple[int, ...]:
        """The external addresses that new mappings were made on, the usual one first; known once it was adopted."""
        found = [int(self.header["current"][0]), *self.header["pool"][0].tolist()]
        return tuple(dict.fromkeys(address for address in found if address))

    def _mappings(self) -> np.ndarray:
        """Return all rows of mappings; those without an external address were never used."""
        mappings = np.zeros(rows.POOLS * rows.PORTS, rows.MAPPING)
        span = len(mappings) // len(self.header["external"][0])
        for external, address in enumerate(self.header["external"][0]):
            if address:
                first = external * span
                mappings[first : first + span] = self._image.rows("mappings", first, span)
        return mappings

    def followers(self) -> np.ndarray:
        """Return the rows that say how far its followed connections were read."""
        return self._image.rows("followers", 0, self._image.count("followers"))

    def _streams(self) -> Iterator[tuple[np.void, np.ndarray]]:
        """Yield the connections whose streams are edited, and their edits."""
        streams = self._image.rows("streams", 0, self._image.count("streams"))
        for place in np.flatnonzero(streams["key0"]).tolist():
            first = place * memory.EDITS_OF_STREAM
            yield streams[place], self._image.rows("edits", first, memory.EDITS_OF_STREAM)

    def _sessions(self, used: int | None) -> Iterator[np.ndarray]:
        """Yield the rows of sessions that were used, some at once.

        A new row is the one after the last: where one was never used, there are none behind it.
        """
        stop = min(int(self.header["rows"][0]), self._image.count("sessions"))
        if used is not None:
            stop = min(stop, used)
        for first in range(0, stop, _AT_ONCE):
            piece = self._image.rows("sessions", first, min(_AT_ONCE, stop - first))
            yield piece
            if not piece[-1:].view("u1").any():
                return


class State:
    """The file of one run, if it can be had: `buffer` and `back` are for its table; `former` is what there was before.

    Nothing of what was there is gone before `begin`. `adopted`: how many rows go on, by kind; `dropped`: how many do
    not, by reason. `folder`: where it lies, with what else is to outlive this process; `place`: its name there. Both
    are None if nothing can be kept.
    """

    def __init__(self, directory: Path, capacity: int) -> None:
        """Make a file for a table of so many sessions. What cannot be had is said in a line, and done without."""
        self.buffer: mmap.mmap | None = None
        self.former: Former | None = None
        self.path: Path | None = None
        self.folder: RunFolder | None = None
        self.place: Path | None = None
        self.adopted: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        inode = network_namespace().inode
        self._name = file_of(inode, "state")
        self._new = file_of(inode, "state.new")
        self._tunnels_name = file_of(inode, "tunnels")
        self._lacks_room = False
        self._lacking = ""  # why there is no file
        self._complaints: dict[str, str] = {}  # about files of before, by their names
        self._open = contextlib.ExitStack()
        try:
            folder = self._open.enter_context(RunFolder(directory))
            if not folder.is_in_memory():
                raise KernelError(f"{directory} is no tmpfs ([state] directory)")
            self.folder, self.place = folder, folder.path / self._name
            self.former = self._find_former()
            self._make(capacity)
        except (KernelError, OSError) as error:  # only its words are kept: its frames hold all that there is
            self._lacking = f"{directory}: {error.strerror}" if isinstance(error, OSError) else str(error)

    def _find_former(self) -> Former | None:
        descriptor = self.folder.open(self._name)
        if descriptor is None:
            return None
        self._open.callback(os.close, descriptor)
        identity, complaint = _look_into(descriptor)
        if complaint is not None:
            self._complaints[self._name] = complaint
            return None
        return Former(descriptor, identity)

    def _make(self, capacity: int) -> None:
        octets = mmap.PAGESIZE + memory.size_of(capacity)
        identity = Identity.here(image.VERSION, arrays=image.describe(capacity))
        self._descriptor = self.folder.make(self._new)
        self._open.callback(os.close, self._descriptor)
        self._open.callback(self.folder.remove, self._new)
        os.ftruncate(self._descriptor, octets)
        os.posix_fallocate(self._descriptor, 0, 2 * mmap.PAGESIZE)  # with the table's header
        os.pwrite(self._descriptor, msgspec.json.encode(identity), 0)
        self.buffer = mmap.mmap(self._descriptor, octets - mmap.PAGESIZE, offset=mmap.PAGESIZE)
        self.path = self.folder.path / self._name

    def back(self, offset: int, octets: int) -> None:
        """Have memory for a part of the buffer: of the file, or else of this process alone."""
        try:
            os.posix_fallocate(self._descriptor, mmap.PAGESIZE + offset, octets)
        except OSError as error:
            self._take_own_memory(offset, octets)
            if not self._lacks_room:
                log.warning("%s: %s: not all sessions outlive this process", self.path, error.strerror)
            self._lacks_room = True

    def _take_own_memory(self, offset: int, octets: int) -> None:
        """Have memory of our own in place of a part of the file, which was not touched yet."""
        assert self.buffer is not None
        map_ = ctypes.CDLL(None, use_errno=True).mmap
        map_.restype = ctypes.c_void_p
        map_.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        place = np.frombuffer(self.buffer, "u1").ctypes.data + offset
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        if map_(place, octets, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != place:
            raise KernelError(f"no memory for sessions: {os.strerror(ctypes.get_errno())}")

    def adopt(self, table: MasqTable, now_ns: int, used: int | None = None) -> None:
        """Open the sessions of the run before in a table, see `Former.adopt`."""
        if self.former is not None:
            self.dropped.update(self.former.adopt(table, now_ns, used))
            self.adopted["session"] = table.counts()["adopted"]

    def adopt_tunnels(self, vpn: Vpn, now_ns: int) -> None:
        """Have trackers go on with the calls and SAs of the run before; its sessions have been adopted."""
        if self.folder is None:
            return
        try:
            former = read_former(self.folder)
        except KernelError as error:
            former = FormerTunnels(complaint=str(error))
        if former.complaint is not None:
            self._complaints[self._tunnels_name] = former.complaint
            return
        rows, dropped = adopt_tunnels(former, vpn, now_ns)
        self.adopted.update(rows)
        self.dropped.update(dropped)

    @property
    def lacking(self) -> str:
        """Why not all sessions outlive this process; empty if they do."""
        return self._lacking or ("there was no room for all of them" if self._lacks_room else "")

    def remove_successors(self) -> None:
        """Have no file but ours, after a process that was to take our place and could not."""
        if self._lacking:
            return
        self.folder.remove(self._new)
        if not self.folder.is_present(self._name, self._descriptor):
            self.folder.remove(self._name)
            self._lacking = f"{self.path} was replaced by a process that is gone"
            log.warning("sessions do not outlive this process: %s", self._lacking)

    def begin(self, vpn: Vpn | None = None) -> None:
        """Have the files in the place of what was there before, and say what has become of that. Raises KernelError."""
        self._say()
        if self.path is not None:
            self.folder.rename(self._new, self._name)
        elif self.former is not None:
            self.folder.remove(self._name)  # it has been adopted, and would be again
        if vpn is not None and self.folder is not None:
            vpn.kept.begin(self.folder)
            self._open.callback(vpn.kept.close)
        elif self.folder is not None:
            self.folder.remove(self._tunnels_name)

    def _say(self) -> None:
        """Say what was adopted, set aside, or cannot be had; what was there and is nothing for us is set aside."""
        if self.former is not None or self.adopted or self.dropped:
            rows = ", ".join(f"{self.adopted[kind]} {name}" for kind, name in _NAMES.items() if self._is_said(kind))
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.dropped.items())
            dropped = f"; {sum(self.dropped.values())} dropped: {reasons}" if reasons else ""
            log.info("adopted %s%s", rows, dropped)
        for name, complaint in self._complaints.items():
            path, aside = self.folder.path / name, self.folder.set_aside(name)
            what = "sessions" if name == self._name else "calls and SAs"
            log.warning("%s: its %s are not adopted: %s; it is now %s", path, what, complaint, aside)
        if self._lacking:
            log.warning("sessions do not outlive this process: %s", self._lacking)

    def _is_said(self, kind: str) -> bool:
        return kind == "session" or self.adopted[kind] > 0

    def close(self) -> None:
        """Give up what is open, but for the buffer; a file that has not begun goes."""
        self._open.close()
