"""The key by which external ports are given to who cannot keep his own: a secret, and the same from run to run.

Whoever knows it can tell which port an inside endpoint will have. It is 16 random octets in a file that only root or
the service's user may read; where there is none, or something else, it is made anew, in place, since the service may
write to its own file there and make no other.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from pathlib import Path

from fastmasq.errors import KernelError
from fastmasq.kernel.run_folder import RunFolder

log = logging.getLogger("fastmasq.engine")

FOLDER = Path("/var/lib/fastmasq")
NAME = "key"
OCTETS = 16


def read_key(folder: Path = FOLDER) -> bytes:
    """Return the key. That it was made just now is said, and why it does not last beyond this run."""
    try:
        with RunFolder(folder) as opened:
            return _present(opened) or _made(opened)
    except KernelError as error:
        log.warning("%s: inside endpoints that cannot keep their ports are given others after the next start", error)
        return os.urandom(OCTETS)


def _present(folder: RunFolder) -> bytes | None:
    """Return the key if there is one as it should be. Raises KernelError."""
    descriptor = folder.open(NAME)
    if descriptor is None:
        return None
    try:
        key = os.read(descriptor, OCTETS + 1)
        return None if _complaint(descriptor, key) else key
    finally:
        os.close(descriptor)


def _made(folder: RunFolder) -> bytes:
    """Return a new key, written down, or that of another start which has just done so. Raises KernelError."""
    descriptor = folder.open_to_write(NAME)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        key = os.read(descriptor, OCTETS + 1)
        complaint = _complaint(descriptor, key)
        if complaint:
            key = os.urandom(OCTETS)
            os.fchmod(descriptor, 0o600)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, key, 0)
            os.fsync(descriptor)
            log.warning("%s: %s; a key for external ports is made anew", folder.path / NAME, complaint)
        return key
    except OSError as error:
        raise KernelError(f"{folder.path / NAME}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _complaint(descriptor: int, key: bytes) -> str:
    """Return what is wrong with a key as it was read, "" if nothing is."""
    if not key:
        return "there is none"
    if os.fstat(descriptor).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return "others may read it"
    return "" if len(key) == OCTETS else f"it has not {OCTETS} octets"
