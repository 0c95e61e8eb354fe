"""Has the worker run before other programs of the host."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

log = logging.getLogger("fastmasq.engine")

NICENESS = -10  # packets before programs; more than -10 starves programs on the same processor
AUTOGROUP = Path("/proc/self/autogroup")  # the session's niceness among sessions, see sched(7)


def go_first() -> None:
    """Have this thread run before other programs; niceness alone does not count against those of other sessions."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        if os.getsid(0) == os.getpid():  # else the session is somebody's shell
            AUTOGROUP.write_text(f"{NICENESS}\n")
    except OSError as error:
        log.info("the worker has no more than usual priority: %s", error.strerror)
