"""Imports for a process that is to start fast and stay small: without what libraries load for what nobody here asks."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_BLAS_THREADS = "OPENBLAS_NUM_THREADS"
_M_MMAP_THRESHOLD = -3  # mallopt(3)
_LARGE = 1 << 16  # octets


@contextmanager
def imports() -> Iterator[None]:
    """Import the daemon inside of this, before anything has imported asyncio or numpy.

    asyncio takes ssl if there is one, and with it libcrypto: 6 MB and 20 ms for what no Unix socket needs. numpy's BLAS
    begins a thread for each processor. And what is imported is there to stay: to look for garbage in it takes 10 ms,
    and as much at each later look.

    From here on malloc takes each large piece of memory from the kernel, and gives it back there. By itself it would
    keep such as were freed, and write zeros into what numpy wants zeroed, most of which is never touched: 2 MB.
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
    has_ssl, threads = "ssl" in sys.modules, os.environ.get(_BLAS_THREADS)
    if not has_ssl:
        sys.modules["ssl"] = None  # type: ignore[assignment]  # an import of it fails, and asyncio goes on
    os.environ.setdefault(_BLAS_THREADS, "1")
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        if not has_ssl:
            del sys.modules["ssl"]
        if threads is None:
            del os.environ[_BLAS_THREADS]
