"""The PPTP programs that people use, pptp and pptpd, through a running fastmasq: they need no kernel module for GRE."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from pathlib import Path

import pytest

from fastmasq.lab import hosts
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.wire.numbers import PPTP_PORT
from tests.support import ppp_echo
from tests.support.lab_network import INSIDE_ADDRESS, PATIENCE_S, Network, eventually
from tests.support.vpn_network import SECOND_INSIDE, THIRD_INSIDE, VpnNetwork

FORWARD = f"""
[[forward]]
protocol = "tcp"
listen = "eth1:{PPTP_PORT}"
to = "{THIRD_INSIDE}:{PPTP_PORT}"
"""


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
        """Send LCP echo requests with this number, twice a second, until one is answered."""
        deadline = time.monotonic() + seconds
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


@pytest.fixture
def vpn(net: Network) -> VpnNetwork:
    net.start(FORWARD)
    return VpnNetwork(net)


def test_h12_h42_pptp_and_pptpd_clients_and_a_server_at_once(vpn: VpnNetwork) -> None:
    net = vpn.net
    start_pptpd(net, "server", SERVER_ADDRESS)
    start_pptpd(net, "inside2", THIRD_INSIDE)
    clients = [Client(net, "inside", SERVER_ADDRESS), Client(net, "inside2", SERVER_ADDRESS)]
    clients.append(Client(net, "server", EXTERNAL_ADDRESS))
    for number in (1, 2, 3):
        for client in clients:
            assert client.answers(number)
    assert set(states(vpn).values()) == {"established"}
    assert [row["missing"] for row in vpn.listed("connections")] == [""] * 3
    assert net.drops() == {}
    clients[0].close()
    gone = {(INSIDE_ADDRESS, SERVER_ADDRESS): "closing", (SECOND_INSIDE, SERVER_ADDRESS): "established"}
    eventually(lambda: states(vpn) == {**gone, (THIRD_INSIDE, SERVER_ADDRESS): "established"}, what="the end of a call")
    assert clients[1].answers(4) and clients[2].answers(4)
    # A closed socket resets each segment that still comes, by that one's acknowledgment; a later one has been seen.
    assert net.drops().keys() <= {"tcp_rst_out_of_window"}


def test_pf5_pptp_inside_reaches_pptpd_inside_by_the_external_address(vpn: VpnNetwork) -> None:
    net = vpn.net
    start_pptpd(net, "inside2", THIRD_INSIDE)
    clients = [Client(net, host, EXTERNAL_ADDRESS) for host in ("inside", "inside2", "server")]
    for number in (1, 2, 3):
        for client in clients:
            assert client.answers(number)
    assert net.drops() == {}
    clients[0].close()
    eventually(
        lambda: sorted(row["state"] for row in vpn.listed("calls")) == ["closing"] * 2 + ["established"] * 3,
        what="the end of a call at both ends",
    )
    assert clients[1].answers(4) and clients[2].answers(4)
    assert net.drops().keys() <= {"tcp_rst_out_of_window"}


def states(vpn: VpnNetwork) -> dict[tuple[str, str], str]:
    """Return the states of calls by inside host and remote."""
    return {(row["inside"], row["remote"]): row["state"] for row in vpn.listed("calls")}
