"""The end of a program: output that cannot be written is one line on standard error, and status 1."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable

FAILED = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what a write says of a place that takes no more
_GONE = (errno.EPIPE, errno.ECONNRESET)  # the reader has seen enough, which needs no words


def end(program: str, run: Callable[[], int]) -> int:
    """Run a program, which returns its exit status, and write out what it printed; return the status to end with.

    Streams that are closed lead nowhere: else the next file, or socket, would be opened in their place.
    """
    _open_streams()
    try:
        status = _status_of(run)
        sys.stdout.flush()
        return status
    except OSError as error:
        if error.errno not in (*_FULL, *_GONE) or error.filename is not None:
            raise
        _let_go()
        if error.errno in _FULL:
            with contextlib.suppress(OSError):
                print(f"{program}: the output cannot be written: {error.strerror}", file=sys.stderr, flush=True)
        return FAILED


def _open_streams() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which is given the first number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


def _status_of(run: Callable[[], int]) -> int:
    try:
        return run()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else FAILED if ending.code else 0


def _let_go() -> None:
    """Have what a stream still holds, and does not take, go nowhere: else Python complains of it at its own end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
