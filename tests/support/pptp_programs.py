"""The PPTP programs that people use, pptp and pptpd, on hosts of a lab; we are their pppd."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from pathlib import Path

from fastmasq.lab import hosts
from fastmasq.wire.numbers import PPTP_PORT
from tests.support import ppp_echo
from tests.support.lab_network import PATIENCE_S, Network


class Client:
    """`pptp` on a host, whose pppd we are."""

    def __init__(self, net: Network, host: str, server: str) -> None:
        # Its call manager has a socket in /run, which must not be another lab's, or another client's.
        run = net.lab.directory / host / f"pptp-{server}"
        run.mkdir(parents=True)
        script = 'mount --bind "$1" /run && exec pptp "$2" --nolaunchpppd --nohostroute'
        self._frames = ppp_echo.Frames()
        self._answers: list[bytes] = []
        self._pppd, pptp = socket.socketpair()  # it reads and writes what it takes for its terminal
        self._pppd.setblocking(False)
        with pptp, (run / "log").open("wb") as log:
            argv = ["sh", "-c", script, "sh", str(run), server]
            self._process = net.lab.popen(host, argv, stdin=pptp, stdout=log, stderr=log)
        net.keep(self)

    def answers(self, number: int, seconds: float = PATIENCE_S) -> bool:
        """Send LCP echo requests with this number (0-255), twice a second, until one is answered."""
        deadline = time.monotonic() + seconds
        self._answers.clear()
        while time.monotonic() < deadline:
            self._pppd.send(ppp_echo.stuffed(ppp_echo.lcp(9, number, b"a frame")))
            if hosts.wait_until(lambda: ppp_echo.lcp(10, number, b"a frame") in self._heard(), 0.5):
                return True
        return False

    def close(self) -> None:
        """Hang up: pptp ends the call and the connection when its pppd is gone."""
        self._pppd.close()
        self._process.wait(PATIENCE_S)

    def _heard(self) -> list[bytes]:
        with contextlib.suppress(BlockingIOError):
            self._answers += self._frames.feed(self._pppd.recv(65536))
        return self._answers


def start_pptpd(net: Network, host: str, address: str) -> None:
    """Start pptpd at an address of a host, with our stand-in for pppd."""
    directory: Path = net.lab.directory / host / "pptpd"
    directory.mkdir(parents=True)
    pppd = directory / "pppd"
    pppd.write_text(f"#!/bin/sh\nexec {sys.executable} {ppp_echo.__file__}\n")
    pppd.chmod(0o755)
    (directory / "conf").write_text("localip 192.168.9.1\nremoteip 192.168.9.2-9\n")
    files = ["-c", str(directory / "conf"), "-o", str(directory / "conf"), "-p", str(directory / "pid")]
    argv = ["/usr/sbin/pptpd", "-f", "-l", address, "-e", str(pppd), *files]
    with (directory / "log").open("wb") as log:
        process = net.lab.popen(host, argv, stdout=log, stderr=log)
    assert hosts.wait_for_port(process, PPTP_PORT, "tcp"), (directory / "log").read_text()
