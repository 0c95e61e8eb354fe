"""Watches that the worker gets through its turns, and ends the process when it does not: it can be started again then.

A worker that is stuck may hold the path's lock, and then the main thread waits for that: so a thread of its own looks
at the count of turns once a second. An idle worker has a turn every second. No turn in LOOKS looks, for which the
process must have been running itself, means that it is stuck: one line says where, and the process ends as by a kill.
Guard, journal and ip_forward stay, so that nothing leaks, and the next start adopts them.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("fastmasq.engine")

LOOKS = 10
EVERY_S = 1.0
ALIVE_LOOKS = 3  # for so long without a turn the service manager still hears that we are alive
_LAST_WORDS_S = 2  # if the line cannot be written, it ends all the same
_STATES = {"R": "running", "S": "asleep", "D": "waiting in the kernel", "T": "stopped", "t": "stopped by a tracer"}


class Progress:
    """How many looks in a row have found the worker in the same turn."""

    def __init__(self) -> None:
        self._turns = -1
        self.looks = 0

    def look(self, turns: int) -> bool:
        """Return whether the worker, which has ended so many turns, is stuck."""
        self.looks = self.looks + 1 if turns == self._turns else 0
        self._turns = turns
        return self.looks >= LOOKS


class Watchdog:
    """Looks at `turns` from `start` to `stop`; `thread` is the worker's number as the kernel has it."""

    def __init__(self, turns: Callable[[], int], thread: Callable[[], int]) -> None:
        self._turns = turns
        self._worker = thread
        self._progress = Progress()
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._has_ended.set()
        self._thread.join()

    def is_alive(self) -> bool:
        """Whether the worker has ended a turn lately."""
        return self._progress.looks <= ALIVE_LOOKS

    def _run(self) -> None:
        while not self._has_ended.wait(EVERY_S):
            if self._progress.look(self._turns()):
                end(f"the worker is stuck: no turn has ended in {LOOKS} s, {place(self._worker())}")


def place(thread: int) -> str:
    """Return what a thread of this process does, as the kernel sees it (proc(5), `stat`, `wchan`, `syscall`)."""
    folder = Path(f"/proc/self/task/{thread}")
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        call = (folder / "syscall").read_text().split()
    except OSError as error:
        return f"and the kernel does not say where it is ({error.strerror})"
    state = _STATES.get(fields[0], fields[0])
    where = f"in system call {call[0]}" if call[0].isdigit() else "in fastmasq's own code"
    address = f" at {call[-1]}" if len(call) > 1 else ""
    used = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return f"it is {state} {where}{address}, {used:.1f} s of processor time used"


def end(sentence: str) -> None:
    """Say why, and end the process as a kill would."""
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(_LAST_WORDS_S, exit=True, file=nowhere)
        log.critical("%s; ending, so that it can be started again", sentence)
        os._exit(1)
