"""Scarcity: descriptors or memory that are not to be had just now, which is no mistake of ours and may pass."""

from __future__ import annotations

import errno
import os

SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def is_scarcity(error: BaseException) -> bool:
    """Return whether the system had no more of something when it raised this."""
    return isinstance(error, OSError) and error.errno in SCARCE


def descriptors_left(wanted: int) -> bool:
    """Return whether this process may open as many files more."""
    had: list[int] = []
    try:
        had.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        while len(had) < wanted:
            had.append(os.dup(had[0]))
    except OSError:
        return False
    finally:
        for descriptor in had:
            os.close(descriptor)
    return True
