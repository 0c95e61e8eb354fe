"""Calls, SAs and all that tells whose they are, kept in a file beside the sessions for the start after a kill.

The file is lines of JSON. The first says where it comes from. Each of the others is a row of a tracker as it is now, or
says that one is gone; the last about a row counts. It is written before the packet leaves that has made it so: whoever
has got an answer finds after a kill what the answer was about. Only the times at which packets went over a tunnel are
written less often: when those in the file are TIMES_NS older.

When most of the file no longer counts, it is written anew, and takes its own place.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from fastmasq.daemon import origin
from fastmasq.daemon.origin import Origin
from fastmasq.daemon.vpn_health import Trackers
from fastmasq.errors import KernelError
from fastmasq.kernel.identity import network_namespace
from fastmasq.kernel.run_folder import RunFolder, file_of
from fastmasq.trackers.vpn.calls import Call
from fastmasq.trackers.vpn.connection import Connection, KeptConnection
from fastmasq.trackers.vpn.evidence import Association
from fastmasq.trackers.vpn.fields import Number
from fastmasq.trackers.vpn.isakmp import Evidence, Exchange
from fastmasq.units import NS_PER_SECOND

log = logging.getLogger("fastmasq.engine")

VERSION = 1
LARGEST = 64 << 20  # octets: all rows that there can be, some times
SPARE = 1 << 20  # octets of lines that no longer count, however few do
TIMES_NS = 15 * NS_PER_SECOND

Key = tuple[str, int]  # kind of row, number


class Gone(Struct, frozen=True, tag="gone"):
    """A row that is no more; `kind` is its tag."""

    kind: Literal["call", "control", "exchange", "sa"]
    number: Number


Row = Call | KeptConnection | Association | Exchange | Evidence
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Row | Gone)


class FormerTunnels:
    """What a process before has left, the last of each row; nothing of it is believed but that it is of its type.

    torn: lines that are none. complaint: why nothing of it is for us.
    """

    def __init__(self, content: bytes = b"", complaint: str | None = None) -> None:
        self.calls: list[Call] = []
        self.connections: list[KeptConnection] = []
        self.associations: list[Association] = []
        self.exchanges: list[Exchange] = []
        self.evidence: list[Evidence] = []
        self.torn = 0
        self.complaint = complaint
        if content:
            self._read(content)

    def _read(self, content: bytes) -> None:
        first, *lines, _ = content.split(b"\n")  # what comes behind the last line was being written
        self.complaint = origin.complaint(Origin.read(first), VERSION)
        if self.complaint is None:
            for row in self._last(lines):
                self._list_of(row).append(row)

    def _last(self, lines: Iterable[bytes]) -> Iterable[Row]:
        rows: dict[Key, Row] = {}
        for line in lines:
            try:
                row = _DECODER.decode(line)
            except (msgspec.DecodeError, RecursionError):
                self.torn += 1
                continue
            if isinstance(row, Gone):
                rows.pop(_key(row), None)
            else:
                rows[_key(row)] = row
        return rows.values()

    def _list_of(self, row: Row) -> list:
        match row:
            case Call():
                return self.calls
            case KeptConnection():
                return self.connections
            case Association():
                return self.associations
            case Exchange():
                return self.exchanges
            case Evidence():
                return self.evidence


class KeptTunnels:
    """The file of the trackers of one gateway; there is none before `begin`."""

    def __init__(self, trackers: Trackers) -> None:
        self._trackers = trackers
        self._folder: RunFolder | None = None
        self._name = file_of(network_namespace().inode, "tunnels")
        self._descriptor = -1
        self._end = 0  # of the file, in octets
        self._most = 0  # octets, before it is written anew
        self._noted: dict[Key, Row | Gone] = {}
        self._times: dict[Key, tuple[int, int]] = {}  # as the file has them
        self._lacks_room = False

    def begin(self, folder: RunFolder) -> None:
        """Have a file with all there is, in place of what another process has left, and go on with it from now on."""
        self._folder = folder
        self._write_all()

    def close(self) -> None:
        """Write no more."""
        self._give_up_file()
        self._folder = None

    # -- what has changed --------------------------------------------------------------------------------------------

    def note_connection(self, connection: Connection) -> None:
        """Have `flush` write a control connection of which something was read, or that it is gone."""
        is_gone = self._trackers.connections.get(connection.row) is not connection
        kept = None if is_gone else connection.kept()
        self._note(Gone("control", connection.number) if kept is None else kept)

    def note_times(self, row: Call | Association) -> None:
        """Have `flush` write a row that packets went over, if the file does not know of them, or not for long."""
        before, now = self._times.get(_key(row)), _times_of(row)
        if before is None or max(now) - max(before) >= TIMES_NS or [*map(bool, before)] != [*map(bool, now)]:
            self._note(row)

    def flush(self) -> None:
        """Write what has changed since, before the changes of calls and SAs are taken."""
        _, calls, ipsec = self._trackers
        for row in (*calls.changed(), *ipsec.esp.changed()):
            is_gone = row.state in ("closed", "squelched")
            self._note(Gone(row.__struct_config__.tag, row.number) if is_gone else row)
        exchanges = ipsec.exchanges
        for row in exchanges.take_changes():
            self._note(row if row.number in exchanges.exchanges else Gone("exchange", row.number))
        for known in exchanges.take_evidence():
            self._note(known)
        if self._noted and self._descriptor >= 0:
            self._append(list(self._noted.values()))
        self._noted.clear()

    def every_second(self) -> None:
        """Write the file anew if most of it no longer counts, or it could not be written."""
        if self._folder is not None and (self._descriptor < 0 or self._end > self._most):
            self._write_all()

    # -- within ------------------------------------------------------------------------------------------------------

    def _note(self, row: Row | Gone) -> None:
        self._noted[_key(row)] = row

    def _rows(self) -> Iterator[Row]:
        connections, calls, ipsec = self._trackers
        kept = (connection.kept() for connection in connections.values())
        yield from (one for one in kept if one is not None)
        yield from calls.calls.values()
        yield from (row for row in ipsec.esp.rows.values() if row.state != "squelched")
        yield from ipsec.exchanges.exchanges.values()
        yield from map(ipsec.exchanges.evidence, ipsec.exchanges.remotes())

    def _write_all(self) -> None:
        """Have a new file, with every row there is, in the place of the one there; without room that one goes on."""
        fresh, rows = self._name + ".new", [Origin.here(VERSION), *self._rows()]
        self._most = 2 * self._end + SPARE  # so that it is not tried again at once
        try:
            descriptor = self._folder.make(fresh)
            try:
                end = _write(descriptor, rows, 0)
                self._folder.rename(fresh, self._name)
            except (KernelError, OSError):
                os.close(descriptor)
                self._folder.remove(fresh)
                raise
        except (KernelError, OSError) as error:
            if self._descriptor < 0:
                self._give_up(error)
            return
        self._give_up_file()
        self._descriptor, self._end, self._most = descriptor, end, 2 * end + SPARE
        self._times.clear()
        self._note_written(rows)
        self._lacks_room = False

    def _append(self, rows: list[Row | Gone]) -> None:
        """Write rows behind those that are there."""
        try:
            self._end = _write(self._descriptor, rows, self._end)
        except OSError as error:
            self._give_up(error)
        else:
            self._note_written(rows)

    def _note_written(self, rows: list[Row | Gone | Origin]) -> None:
        for row in rows:
            if isinstance(row, Gone):
                self._times.pop(_key(row), None)
            elif isinstance(row, Call | Association):
                self._times[_key(row)] = _times_of(row)

    def _give_up(self, error: KernelError | OSError) -> None:
        """Have no file rather than one that lacks a change; say so once, and try again each second."""
        if not self._lacks_room:
            reason = f"{self._folder.path / self._name}: {error.strerror}" if isinstance(error, OSError) else error
            log.warning("%s: calls and SAs do not outlive this process", reason)
        self._lacks_room = True
        self._give_up_file()
        self._folder.remove(self._name)

    def _give_up_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._end = -1, 0


def _write(descriptor: int, rows: list[Row | Gone | Origin], at: int) -> int:
    """Write rows to a place of a file; return where they end. Raises OSError unless all have room."""
    octets = _ENCODER.encode_lines(rows)
    if os.pwrite(descriptor, octets, at) < len(octets):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return at + len(octets)


def read_former(folder: RunFolder) -> FormerTunnels:
    """Return what a process before has left in a folder. Raises KernelError for a file that is not to be believed."""
    return FormerTunnels(folder.read(file_of(network_namespace().inode, "tunnels"), LARGEST) or b"")


def complaint(folder: RunFolder) -> str | None:
    """Return why nothing of what a process before has left in a folder is for us; None if it is, or there is nothing.

    Raises KernelError.
    """
    name = file_of(network_namespace().inode, "tunnels")
    descriptor = folder.open(name)
    if descriptor is None:
        return None
    try:
        first, _, _ = os.pread(descriptor, mmap.PAGESIZE, 0).partition(b"\n")
    finally:
        os.close(descriptor)
    found = origin.complaint(Origin.read(first), VERSION)
    return found and f"{folder.path / name}: {found}"


def _key(row: Row | Gone) -> Key:
    if isinstance(row, Evidence):
        return "evidence", row.remote
    return (row.kind if isinstance(row, Gone) else row.__struct_config__.tag), row.number


def _times_of(row: Call | Association) -> tuple[int, int]:
    return (row.seen_out, row.seen_in) if isinstance(row, Call) else (row.last_out, row.last_in)
