"""Where a bundle begins: undoes what its making has left in this process, then runs what it was called as."""

import atexit
import os
import shutil
import signal
import sys

from fastmasq import program

MARK = ".unpacked"  # launcher.c leaves it in the folder of the one file


def main() -> None:
    """Run the bundle."""
    _restore_environment()
    file = os.environ.pop("FASTMASQ_FILE", None)
    folder = os.path.dirname(sys.executable)
    if file and os.path.islink(os.path.join(folder, MARK)):
        sys.executable = file
        _remove_at_the_end(folder)
    program.main()


def _restore_environment() -> None:
    """Take away what PyInstaller's start has set: programs that we start have libraries of their own."""
    before = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
    os.environ.pop("LD_LIBRARY_PATH", None)
    if before is not None:
        os.environ["LD_LIBRARY_PATH"] = before
    for name in [name for name in os.environ if name.startswith("_PYI_")]:
        del os.environ[name]


def _remove_at_the_end(folder: str) -> None:
    """Remove the folder when this process ends, also by a signal that nobody handles; a child of it leaves it alone."""
    process = os.getpid()

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    atexit.register(remove)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, leave)


main()
