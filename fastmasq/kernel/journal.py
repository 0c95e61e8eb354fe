"""A list of changes that is on disk before each of them is made, with who made them and where.

A journal belongs to one process (id and start time), one boot and one network namespace. It is a JSON file of mode
0600, replaced as a whole; every write is followed by fsync of the file and of its folder.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from fastmasq.errors import KernelError

Entry = dict[str, Any]

_VERSION = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMED_NAMESPACES = Path("/run/netns")


class Journal:
    """The entries, oldest first, and the file they are kept in."""

    def __init__(self, path: Path, entries: list[Entry]) -> None:
        self._path = path
        self.entries = entries

    @classmethod
    def load(cls, path: Path) -> Journal:
        """Return the journal that a dead process left for this boot and network namespace, or an empty one.

        Raises KernelError if the process lives, if the journal is about another network namespace that still exists, or
        if it cannot be read.
        """
        content = _read(path)
        if content is None or content["boot"] != _boot_id():
            return cls(path, [])
        pid = content["pid"]
        if start_time(pid) == content["started"]:
            raise KernelError(f"the journal {path} is in use by fastmasq (pid {pid}); stop that first: kill {pid}")
        namespace = content["namespace"]
        if namespace != network_namespace():
            if _namespace_exists(namespace):
                raise KernelError(
                    f"the journal {path} is about another network namespace ({_describe(namespace)}); "
                    "run `fastmasq release` there, or use another path here"
                )
            return cls(path, [])
        return cls(path, content["entries"])

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.save()

    def replace(self, old: Entry, new: Entry) -> None:
        self.entries[self.entries.index(old)] = new
        self.save()

    def remove(self, entry: Entry) -> None:
        self.entries.remove(entry)
        self.save()

    def save(self) -> None:
        """Write the file in the name of this process. Raises KernelError."""
        pid = os.getpid()
        content = {
            "version": _VERSION,
            "pid": pid,
            "started": start_time(pid),
            "boot": _boot_id(),
            "namespace": network_namespace(),
            "entries": self.entries,
        }
        try:
            _write_durably(self._path, json.dumps(content, indent=1))
        except OSError as error:
            raise KernelError(f"cannot write the journal {self._path}: {error.strerror}") from None

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
        if content["version"] != _VERSION:
            raise KernelError(f"the journal {path} was written by another version of fastmasq; release with that one")
        return {key: content[key] for key in ("pid", "started", "boot", "namespace", "entries")}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError(f"cannot read the journal {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise KernelError(
            f"the journal {path} is damaged; look into it, put back what it names by hand, and delete it"
        ) from None


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if there is no such process, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, started = fields[0], fields[19]
    return None if state in "ZX" else int(started)


def network_namespace() -> list[int]:
    """Return device and inode of the current network namespace, which identify it while it exists.

    Before Linux 3.8 nothing does, and all are [0, 0].
    """
    file = thread_folder() / "ns/net"
    try:
        os.readlink(file)
    except OSError:
        return [0, 0]
    status = file.stat()
    return [status.st_dev, status.st_ino]


def thread_folder() -> Path:
    """Return the folder of /proc about this thread; before Linux 3.17 it has no name of its own."""
    try:
        return Path("/proc", os.readlink("/proc/thread-self"))
    except FileNotFoundError:
        return Path(f"/proc/self/task/{threading.get_native_id()}")


def _namespace_exists(namespace: list[int]) -> bool:
    """Tell whether a process lives in a network namespace or it has a name."""
    places = [*Path("/proc").glob("[0-9]*/ns/net"), *_NAMED_NAMESPACES.glob("*")]
    for place in places:
        try:
            status = place.stat()
        except OSError:
            continue
        if [status.st_dev, status.st_ino] == namespace:
            return True
    return False


def _describe(namespace: list[int]) -> str:
    for place in _NAMED_NAMESPACES.glob("*"):
        status = place.stat()
        if [status.st_dev, status.st_ino] == namespace:
            return place.name
    return f"net:[{namespace[1]}]"


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
