"""What can be done with one network namespace: run, start, set, wait and end what runs in it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastmasq.errors import KernelError
from fastmasq.kernel.programs import open_files

NAMESPACE_DIRECTORY = Path("/run/netns")
PROC = Path("/proc")
LINK_S = 5.0
PORT_S = 10.0
KILLED_S = 10.0  # what a process with much memory may take on a busy machine

_TCP_LISTEN = "0A"
_POLL_S = 0.01
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _IFF_RUNNING = 0x8913, 0x40
_FAILED_LINE = re.compile(r"^Command failed -:(\d+)$", re.MULTILINE)  # of `ip -batch -`
_libc = ctypes.CDLL(None, use_errno=True)


def inode(namespace: str) -> int:
    """Return the number that the kernel has for the namespace."""
    return (NAMESPACE_DIRECTORY / namespace).stat().st_ino


def command_in(namespace: str, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs argv in the namespace, in the same process, without a shell."""
    return ["ip", "netns", "exec", namespace, *argv]


def run_in(namespace: str, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess:
    """Run argv in the namespace to its end; options are those of subprocess.run."""
    return subprocess.run(command_in(namespace, argv), **options)


def start_in(namespace: str, argv: Sequence[str], **options: Any) -> subprocess.Popen:
    """Start argv in the namespace in a session of its own, so that a Ctrl-C at our terminal is ours to handle."""
    return subprocess.Popen(command_in(namespace, argv), **{"start_new_session": True, **options})


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """Have this thread live in the namespace for a while.

    Sockets made, programs started, and files of /proc/sys/net and /proc/thread-self/net opened meanwhile are the
    namespace's.
    """
    with open("/proc/thread-self/ns/net") as before, open(NAMESPACE_DIRECTORY / namespace) as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def set_sysctls(namespace: str, **values: int | str) -> None:
    """Set kernel parameters below net/ in the namespace, those this kernel has; in a name, __ stands for the dot."""
    with entered(namespace):
        for name, value in values.items():
            try:
                (PROC / "sys/net" / name.replace("__", "/")).write_text(str(value))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise KernelError(f"net.{name.replace('__', '.')} = {value}: {error.strerror}") from None


def configure(lines: Sequence[str], namespace: str | None = None) -> None:
    """Do these lines of `ip`, in the namespace if one is given. Raises KernelError with the line that failed."""
    place = ["-n", namespace] if namespace else []
    done = _run(["ip", *place, "-batch", "-"], "".join(f"{line}\n" for line in lines))
    if done.returncode:
        failed = _FAILED_LINE.search(done.stderr)
        command = lines[int(failed[1]) - 1] if failed else "-batch"
        raise KernelError(f"{' '.join(['ip', *place, command])}: {_complaint(done)}")


def wait_for_links(namespace: str, interfaces: Sequence[str]) -> None:
    """Wait until these interfaces carry packets. Raises KernelError if they do not within LINK_S.

    The kernel sees the carrier of a new link a little later than both ends are up, and drops what is sent before.
    """
    with entered(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:

        def is_running(interface: str) -> bool:
            request = struct.pack("16sH22x", interface.encode(), 0)
            return bool(struct.unpack_from("H", fcntl.ioctl(asked, _SIOCGIFFLAGS, request), 16)[0] & _IFF_RUNNING)

        if not wait_until(lambda: all(map(is_running, interfaces)), LINK_S):
            raise KernelError(f"a link of {namespace} did not come up within {LINK_S:g} s: {', '.join(interfaces)}")


def checked(argv: Sequence[str], text: str | None = None) -> str:
    """Run a set-up command, with text as its input; return its output. Raises KernelError with its first error line."""
    done = _run(argv, text)
    if done.returncode:
        raise KernelError(f"{' '.join(argv)}: {_complaint(done)}")
    return done.stdout


def exists(namespace: str) -> bool:
    """Return whether a namespace of this name is there."""
    return (NAMESPACE_DIRECTORY / namespace).exists()


def processes_in(namespaces: Iterable[str]) -> dict[str, list[int]]:
    """Return the process ids that live in each of the namespaces; one walk over /proc for all of them."""
    found: dict[str, list[int]] = {}
    by_inode: dict[tuple[int, int], str] = {}
    for namespace in namespaces:
        found[namespace] = []
        try:
            by_inode[_identity(NAMESPACE_DIRECTORY / namespace)] = namespace
        except FileNotFoundError:
            continue
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            namespace = by_inode.get(_identity(entry / "ns/net"))
        except OSError:  # it ended while we looked
            continue
        if namespace is not None:
            found[namespace].append(int(entry.name))
    return found


def end_processes(namespaces: Sequence[str], patience_s: float = 3.0) -> None:
    """End every process in the namespaces but our own: by SIGTERM, after patience_s by SIGKILL."""
    for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, KILLED_S)):
        for pid in _others_in(namespaces):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if wait_until(lambda: not _others_in(namespaces), wait_s):
            return
    raise KernelError(f"processes {_others_in(namespaces)} in the lab's namespaces survived SIGKILL; end them by hand")


def wait_for_port(process: subprocess.Popen, port: int, protocol: str = "tcp") -> bool:
    """Wait up to PORT_S until the process has a socket open on the port; return False if it has none, or has ended."""
    own = PROC / str(process.pid)

    def is_open() -> bool:
        sockets = open_files(process.pid)
        try:
            tables = [file.read_text().splitlines()[1:] for file in (own / "net").glob(f"{protocol}*")]
        except OSError:  # it is ending
            return False
        for fields in (row.split() for table in tables for row in table):
            local, state, inode = fields[1], fields[3], fields[9]
            if int(local.rpartition(":")[2], 16) == port and f"socket:[{inode}]" in sockets:
                return protocol != "tcp" or state == _TCP_LISTEN
        return False

    return wait_until(lambda: process.poll() is not None or is_open(), PORT_S) and process.poll() is None


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Ask the condition every 10 ms until it holds or the time is up; return whether it held."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _run(argv: Sequence[str], text: str | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, input=text, capture_output=True, text=True)
    except FileNotFoundError:
        raise KernelError(f"the lab needs the program {argv[0]!r}: install it, or run scripts/install") from None


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return the first line that a failed command says."""
    return ((done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"])[0]


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _others_in(namespaces: Sequence[str]) -> list[int]:
    """Return running processes other than our own; one that is only waiting to be reaped has left its namespace."""
    pids = [pid for group in processes_in(namespaces).values() for pid in group]
    return [pid for pid in pids if pid != os.getpid()]


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
