"""A stop and a start under traffic: what leaks, what lives on, and what the host is like in between."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

from fastmasq.lab.topology import SERVER_ADDRESS
from tests.lab.test_forwarder_life import host_state, leaks, release
from tests.support.lab_network import ECHO_PORT, Network, eventually, round_trip

TCP_CLOSE = 7  # linux/tcp_states.h
PAUSE_S = 0.002  # between two pieces of a stream: all of them together leave the processor to the gateway
FIRST_PORT = 20_000
DIRECTIONS = {
    0: lambda near, far: [(far, near)],
    1: lambda near, far: [(near, far)],
    2: lambda near, far: [(near, far), (far, near)],
}


@pytest.fixture
def router(net: Network) -> Network:
    """Return the network with a gateway that routed for others before, and would again."""
    net.run("gateway", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    return net


class Traffic:
    """TCP connections of inside hosts, with data one way, the other and both, all the time until they end.

    Their ports are such as masquerading keeps, so that the next run finds the same, which has no table of them.
    """

    def __init__(self, net: Network, pairs: int = 6) -> None:
        self._is_over = threading.Event()
        self.pairs = [net.pair(client_port=FIRST_PORT + number) for number in range(pairs)]
        self.moved = [0] * pairs
        self._threads: list[threading.Thread] = []
        for number, (near, far) in enumerate(self.pairs):
            near.settimeout(0.2)
            far.settimeout(0.2)
            for sender, receiver in DIRECTIONS[number % 3](near, far):
                self._start(self._send, sender)
                self._start(self._receive, receiver, number)

    def _start(self, *job: object) -> None:
        thread = threading.Thread(target=job[0], args=job[1:])
        thread.start()
        self._threads.append(thread)

    def _send(self, sender: socket.socket) -> None:
        while not self._is_over.wait(PAUSE_S):
            try:
                sender.send(bytes(8192))
            except TimeoutError:
                continue
            except OSError:
                return

    def _receive(self, receiver: socket.socket, number: int) -> None:
        while not self._is_over.is_set():
            try:
                piece = receiver.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return
            if not piece:
                return
            self.moved[number] += len(piece)

    def flows(self, *, from_inside: bool = False) -> bool:
        """Wait until each, or each in which inside hosts send, has moved more than it has now."""
        before = [(number, moved) for number, moved in enumerate(self.moved) if number % 3 or not from_inside]
        eventually(lambda: all(self.moved[number] > moved for number, moved in before), what="data in each connection")
        return True

    def inside_ends_reset(self) -> int:
        """Return how many inside ends are told that their connection was reset."""
        states = [near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] for near, _ in self.pairs]
        return states.count(TCP_CLOSE)

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def traffic(router: Network) -> Traffic:
    router.start()
    made = Traffic(router)
    yield made
    made.end()


def test_a_stop_leaks_nothing_of_open_connections(router: Network, traffic: Traffic) -> None:
    """Without --keep the kernel forwards again afterwards, but their ends inside have been reset before."""
    net = router
    assert traffic.flows()
    outside = net.sniff("router", "eth0")
    net.fastmasq.remove()
    assert net.sysctl("gateway", "net.ipv4.ip_forward") == "1"
    eventually(lambda: traffic.inside_ends_reset() == len(traffic.pairs), what="all inside ends are reset")
    net.fastmasq.install()
    net.echo_udp()
    assert round_trip(net.udp("inside"), (SERVER_ADDRESS, ECHO_PORT), b"it forwards again")
    assert outside.packets(), "the sniffer hears"
    assert leaks(outside.packets()) == []


@pytest.fixture
def kept(router: Network) -> Network:
    router.start(options=["--keep"])
    return router


def test_with_keep_everything_lives_on_and_nothing_leaks(kept: Network) -> None:
    """TCP, UDP and pings run through a stop and a start."""
    net = kept
    traffic = Traffic(net)
    try:
        net.echo_udp()
        ask = net.udp("inside")
        assert traffic.flows() and round_trip(ask, (SERVER_ADDRESS, ECHO_PORT), b"before")
        outside = net.sniff("router", "eth0")
        net.fastmasq.remove()
        assert net.sysctl("gateway", "net.ipv4.ip_forward") == "0"
        for number in range(20):
            ask.sendto(b"leak?", (SERVER_ADDRESS, 9000 + number))
        assert not net.answers("inside", SERVER_ADDRESS, 0.3)
        net.fastmasq.install()
        assert "journal of the run before is adopted" in net.fastmasq.errors()
        assert traffic.flows(from_inside=True)
        assert net.answers("inside", SERVER_ADDRESS)
        assert traffic.inside_ends_reset() == 0
        assert outside.packets(), "the sniffer hears"
        assert leaks(outside.packets()) == []
    finally:
        traffic.end()


def test_release_gives_back_what_was_kept(router: Network) -> None:
    net = router
    before = host_state(net)
    net.start(options=["--keep"])
    taken = host_state(net)
    net.fastmasq.remove()
    sockets = {line for line in taken if ".sock" in line}
    assert host_state(net) == taken - sockets, "as a kill would leave it"
    told = release(net)
    assert told.splitlines()[-1].endswith("removed"), "the guard goes last"
    assert host_state(net) == before


def test_another_socket_finds_the_journal(kept: Network, tmp_path) -> None:
    """There is one place for it, whatever the control socket."""
    net = kept
    process = net.fastmasq.process
    process.kill()
    process.wait()
    argv = [sys.executable, "-m", "fastmasq", "run", "--inside", "eth0", "--outside", "eth1"]
    argv += ["--socket", str(tmp_path / "other.sock")]
    with net.lab.popen("gateway", argv, stdout=-1, stderr=-1, text=True) as other:
        assert "is forwarding" in other.stdout.readline()
        other.terminate()
        assert other.wait(10) == 0
    assert net.sysctl("gateway", "net.ipv4.ip_forward") == "1"


def test_a_start_that_fails_keeps_nothing(router: Network) -> None:
    net = router
    before = host_state(net)
    argv = [sys.executable, "-m", "fastmasq", "run", "--keep", "--inside", "eth0", "--outside", "lo"]
    assert net.lab.exec("gateway", [*argv, "--socket", "/run/fastmasq-lab/x.sock"], capture_output=True).returncode == 1
    assert host_state(net) == before
