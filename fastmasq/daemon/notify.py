"""Tells the service manager that started us how we are (sd_notify(3)); without one it says nothing."""

from __future__ import annotations

import contextlib
import os
import socket

from fastmasq.clock import now_ns


class Notifier:
    """Sends lines such as READY=1 to the datagram socket in NOTIFY_SOCKET; one that begins with @ is abstract."""

    def __init__(self) -> None:
        """Take the socket's name, so that programs that we start do not speak for us."""
        self._name = os.environ.pop("NOTIFY_SOCKET", "")
        if self._name.startswith("@"):
            self._name = "\0" + self._name[1:]

    def ready(self, status: str) -> None:
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload begins; `ready` says that it has ended, well or not."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now_ns() // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1", "STATUS=putting everything back")

    def environment(self) -> dict[str, str]:
        """Return what a program must have in its environment to speak in our place."""
        name = self._name.replace("\0", "@", 1)
        return {"NOTIFY_SOCKET": name} if name else {}

    def hand_over(self, pid: int) -> None:
        """Say that a process is the service's from now on, and that we shall end."""
        self._tell(f"MAINPID={pid}")

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if self._name:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._name)
