"""Imports for a process that is to stay small: without what libraries load for what nobody here asks of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports() -> Iterator[None]:
    """Import the daemon inside of this, before anything has imported asyncio.

    asyncio takes ssl if there is one, and with it libcrypto: 6 MB and 20 ms for what no Unix socket needs.
    """
    has_ssl = "ssl" in sys.modules
    if not has_ssl:
        sys.modules["ssl"] = None  # type: ignore[assignment]  # an import of it fails, and asyncio goes on
    try:
        yield
    finally:
        if not has_ssl:
            del sys.modules["ssl"]
