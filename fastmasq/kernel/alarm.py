"""A descriptor that becomes readable after a while, so that `poll` can wait for time and for sockets together."""

from __future__ import annotations

import ctypes
import os

_CLOCK_MONOTONIC = 1
_NS_PER_SECOND = 1_000_000_000
_libc = ctypes.CDLL(None, use_errno=True)


class Alarm:
    """A timerfd(2); Python brings one only from 3.13 on."""

    def __init__(self) -> None:
        self._descriptor = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def fileno(self) -> int:
        return self._descriptor

    def set(self, after_ns: int) -> None:
        """Become readable once, `after_ns` from now; an earlier setting is replaced, 0 takes it back."""
        once = (ctypes.c_long * 4)(0, 0, *divmod(after_ns, _NS_PER_SECOND))  # struct itimerspec: interval, value
        if _libc.timerfd_settime(self._descriptor, 0, once, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        os.close(self._descriptor)
