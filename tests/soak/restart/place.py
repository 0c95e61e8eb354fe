"""Where the restart soak takes place: the soak's network, a forward to an inside host, and sessions kept on a tmpfs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.soak.place import ORDINARY, Place, prefix

MEMORY = Path("/dev/shm")  # a tmpfs, which /run is not everywhere
FORWARDED = 8080
TARGET = (ORDINARY["inside"][0], 8080)
# What has ended stays in the table to the end, so that sessions can be counted.
SETTINGS = """[masquerade.timeouts]
tcp_transitory = "1h"
[state]
directory = "{folder}"
[[forward]]
protocol = "tcp"
listen = "eth1:{port}"
to = "{target}"
"""


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """The network, up, with a fastmasq that keeps everything when it ends."""
    name = prefix()
    folder = MEMORY / f"fastmasq-{name}"
    settings = SETTINGS.format(folder=folder, port=FORWARDED, target="{}:{}".format(*TARGET))
    try:
        with Place(name, settings, options=["--keep"]) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
