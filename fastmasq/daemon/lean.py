"""Imports for a process that is to start fast and stay small: without what libraries load for what nobody here asks."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_UNCALLED = ("numpy.linalg", "numpy._core._add_newdocs", "numpy._core._add_newdocs_scalars")
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


@contextmanager
def imports() -> Iterator[None]:
    """Import the daemon inside of this, before anything has imported asyncio or numpy.

    asyncio takes ssl if there is one, and with it libcrypto: 6 MB and 20 ms for what no Unix socket needs. numpy takes
    names from its linear algebra (15 ms), writes its docstrings (7 ms), and its BLAS begins a thread a processor. What
    is imported is there to stay: to look for garbage in it takes 10 ms, and as much at each later look.
    """
    instead = {name: _Names(name) for name in _UNCALLED}
    instead["ssl"] = None  # an import of it fails, and asyncio goes on
    instead = {name: module for name, module in instead.items() if name not in sys.modules}
    threads = os.environ.get(_BLAS_THREADS)
    os.environ.setdefault(_BLAS_THREADS, "1")
    sys.modules.update(instead)  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name in instead:
            del sys.modules[name]
        if threads is None:
            del os.environ[_BLAS_THREADS]


class _Names(ModuleType):
    """A module that has all names, for others to import them; nobody calls what they stand for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
