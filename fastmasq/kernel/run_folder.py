"""/run/fastmasq: the folder of what must outlive a forwarder, which nobody but root and the service's user may write.

What lies there is believed, by root too: so the folder is judged before it is used, its files are opened without
following links and without waiting, and each has an owner and a size that are looked at. A lock is held by its process
alone, ends with it, and names it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

from fastmasq import files
from fastmasq.errors import KernelError
from fastmasq.kernel.identity import start_time

FOLDER = Path("/run/fastmasq")
LARGEST_FILE = 4 << 20  # octets
_OUTLIVING = ("state", "policy", "tunnels", "leases")
STATE_KINDS = tuple(kind + suffix for kind in _OUTLIVING for suffix in ("", ".new", ".old"))
"""Files with what outlives a process, of each kind: in use, being made, and set aside."""

_MODE = 0o750  # the group may reach the sockets, and see the names
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class RunFolder:
    """The folder, made if there is none, and judged. A context manager that closes it."""

    def __init__(self, path: Path = FOLDER) -> None:
        """Raises KernelError."""
        self.path = path
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, _MODE)
            self._owners = {0, os.geteuid(), *files.service_user()}
            place = files.judged(str(path), files.trusted_owners() | self._owners)
            self._folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
        except OSError as error:
            raise KernelError(f"the folder {path}: {error.strerror}") from None
        self._status = os.fstat(self._folder)
        if self._status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or self._status.st_uid not in self._owners:
            self.close()
            raise KernelError(
                f"the folder {path}: others than root and the user {files.SERVICE_USER} may write there; "
                f"chown root {path}; chmod 750 {path}"
            )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def read(self, name: str, largest: int = LARGEST_FILE) -> bytes | None:
        """Return what a file holds, None if there is none. Raises KernelError for one that is not to be believed."""
        descriptor = self._find(name)
        if descriptor is None:
            return None
        try:
            return files.read_open(descriptor, name, largest, self._owners)
        except OSError as error:
            raise self._complaint(name, error) from None
        finally:
            os.close(descriptor)

    def open(self, name: str) -> int | None:
        """Return a descriptor to read a file of any size by, None if there is none.

        Raises KernelError for one that others could have written.
        """
        descriptor = self._find(name)
        return None if descriptor is None else self._judged(name, descriptor)

    def open_to_write(self, name: str) -> int:
        """The same to read and to write it by; where there is none it is made, empty and of mode 0600."""
        try:
            return self._judged(name, os.open(name, os.O_RDWR | os.O_CREAT | _SAFE, 0o600, dir_fd=self._folder))
        except OSError as error:
            raise self._complaint(name, error) from None

    def _judged(self, name: str, descriptor: int) -> int:
        """Return a descriptor of a file that others could not have written; else close it, and raise KernelError."""
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_uid in self._owners and not status.st_mode & 0o022:
            return descriptor
        os.close(descriptor)
        raise KernelError(f"{self.path / name}: it is no regular file that only root or {files.SERVICE_USER} may write")

    def _find(self, name: str) -> int | None:
        """Return a descriptor of a file that is yet to be judged, None if there is none. Raises KernelError."""
        try:
            return os.open(name, os.O_RDONLY | _SAFE, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._complaint(name, error) from None

    def make(self, name: str) -> int:
        """Return a descriptor of a new file of mode 0600, in place of any of that name. Raises KernelError."""
        try:
            self.remove(name)
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE, 0o600, dir_fd=self._folder)
            self._own(descriptor)
        except OSError as error:
            raise self._complaint(name, error) from None
        return descriptor

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, and have it in place of what had that. Raises KernelError."""
        try:
            os.replace(old, new, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError as error:
            raise self._complaint(new, error) from None

    def is_in_memory(self) -> bool:
        """Whether the folder is on a tmpfs or ramfs, whose files are memory and nothing else."""
        device = f"{os.major(self._status.st_dev)}:{os.minor(self._status.st_dev)}"
        mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
        kinds = {mount[mount.index("-") + 1] for mount in mounts if mount[2] == device}
        return bool(kinds & {"tmpfs", "ramfs"})

    def write(self, name: str, content: bytes) -> None:
        """Have a file of mode 0600 hold this, durably: all of it, or what it held before. Raises KernelError."""
        fresh = name + ".new"
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _SAFE, 0o600, dir_fd=self._folder)
            with os.fdopen(descriptor, "wb") as file:
                self._own(descriptor)
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.replace(fresh, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except OSError as error:
            raise self._complaint(name, error) from None

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)

    def set_aside(self, name: str) -> Path:
        """Give a file another name, which it keeps until the next one is set aside; return where it is."""
        aside = name + ".old"
        with contextlib.suppress(FileNotFoundError):
            os.replace(name, aside, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        return self.path / aside

    def forget(self, inode: int) -> None:
        """Remove what lies here about a network namespace that is going to go."""
        for kind in ("journal", "journal.old", "lock", *STATE_KINDS):
            self.remove(file_of(inode, kind))

    def lock(self, name: str, what: str) -> Lock:
        """Hold a lock until it is closed or we end. Raises KernelError that begins with `what` if another has it."""
        while True:
            try:
                descriptor = os.open(name, os.O_RDWR | os.O_CREAT | _SAFE, 0o600, dir_fd=self._folder)
            except OSError as error:
                raise self._complaint(name, error) from None
            try:
                files.read_open(descriptor, name, LARGEST_FILE, self._owners)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _holder(descriptor)
                os.close(descriptor)
                if error.errno != errno.EWOULDBLOCK:
                    raise self._complaint(name, error) from None
                raise KernelError(f"another fastmasq (pid {holder}) {what}; stop that one first") from None
            if self.is_present(name, descriptor):
                break
            os.close(descriptor)  # its holder has just removed it
        self._own(descriptor)
        return self.lock_by(name, descriptor)

    def lock_by(self, name: str, descriptor: int) -> Lock:
        """Hold a lock by a descriptor that holds it already: one that another process has handed over."""
        lock = Lock(self, name, descriptor)
        lock.name_us()
        return lock

    def is_locked(self, name: str) -> bool:
        """Whether a process that lives holds a lock, by what the lock says; it is left alone. Raises KernelError."""
        return _is_alive((self.read(name) or b"").split())

    def _own(self, descriptor: int) -> None:
        """Have a file belong to whom the folder belongs to, so that the service can go on with what root began."""
        os.fchmod(descriptor, 0o600)
        if os.geteuid() == 0:
            os.fchown(descriptor, self._status.st_uid, self._status.st_gid)

    def is_present(self, name: str, descriptor: int) -> bool:
        """Whether an open file is the one of that name."""
        try:
            there = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(descriptor))

    def _complaint(self, name: str, error: OSError) -> KernelError:
        return KernelError(f"{self.path / name}: {error.strerror}")


class Lock:
    """A lock that is held."""

    def __init__(self, folder: RunFolder, name: str, descriptor: int) -> None:
        self._folder = folder
        self._name = name
        self._descriptor = descriptor

    @property
    def is_held(self) -> bool:
        return self._descriptor >= 0

    def fileno(self) -> int:
        return self._descriptor

    def name_us(self) -> None:
        """Have it name this process, which holds it."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()} {start_time(os.getpid())}\n".encode(), 0)

    def close(self) -> None:
        """Give it up; a second call does nothing."""
        if self.is_held:
            self._folder.remove(self._name)
            os.close(self._descriptor)
            self._descriptor = -1


def file_of(inode: int, kind: str) -> str:
    """Return the name of a file about the network namespace with this inode."""
    return f"net-{inode}.{kind}"


def _holder(descriptor: int) -> int | str:
    """Return the process that a lock names, if there is such a process still."""
    words = os.pread(descriptor, 64, 0).split()
    return int(words[0]) if _is_alive(words) else "unknown"


def _is_alive(words: list[bytes]) -> bool:
    """Whether the process lives whose number and start a lock says."""
    return len(words) == 2 and all(word.isdigit() for word in words) and start_time(int(words[0])) == int(words[1])
