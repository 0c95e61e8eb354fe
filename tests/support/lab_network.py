"""A lab seen by its tests: sockets opened and programs run on its hosts, packets overheard, fastmasq in its gateway.

Sockets are the test process's own, made while its thread lives in the host's namespace, so both ends of a conversation
can be held in one hand. Nothing here sleeps for a fixed time: `eventually` asks until a condition holds or time is up.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import selectors
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fastmasq.kernel.run_folder import FOLDER, file_of
from fastmasq.lab import hosts
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from tests.support.namespaces import make_wire

INSIDE_ADDRESS, GATEWAY_INSIDE, ROUTER_ADDRESS = "10.0.0.2", "10.0.0.1", "200.200.200.1"
PATIENCE_S = 10.0
QUIET_S, LONGEST_QUIET_S = 0.1, 0.5  # while traffic goes on it is not waited for
ECHO_PORT = 7

ETH_P_ALL, ETH_P_ARP, ETH_P_IP = 0x0003, 0x0806, 0x0800
SOL_UDP, UDP_SEGMENT = 17, 103
IP_RECVERR, SO_EE_ORIGIN_ICMP = 11, 2

_CHUNK_BYTES = 1 << 18


def head(extra: str) -> str:
    """Return the head of a configuration, which says of offload what the environment wants of a whole run of tests."""
    mode = os.environ.get("FASTMASQ_TEST_OFFLOAD")
    return f'{extra}\n[offload]\nmode = "{mode}"\n' if mode and "[offload]" not in extra else extra


class Overheard(NamedTuple):
    """One IPv4 packet seen on an interface, and whether the host there sent it. Ports are 0 without TCP or UDP."""

    sent: bool
    source: str
    destination: str
    protocol: int
    source_port: int
    destination_port: int
    length: int
    packet: bytes

    @property
    def tcp_flags(self) -> int:
        return self.packet[(self.packet[0] & 15) * 4 + 13]

    @property
    def icmp_type_and_code(self) -> tuple[int, int]:
        start = (self.packet[0] & 15) * 4
        return self.packet[start], self.packet[start + 1]

    @property
    def payload(self) -> bytes:
        """What follows the IPv4 header."""
        return self.packet[(self.packet[0] & 15) * 4 :]


class IcmpError(NamedTuple):
    """An ICMP error as a socket was told of it; info is the MTU of a fragmentation-needed."""

    type: int
    code: int
    info: int
    offender: str


class Sniffer:
    """Hears every IPv4 packet on one interface of one host from now on."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self._heard: list[Overheard] = []

    def packets(self) -> list[Overheard]:
        """Return all packets heard so far, in order."""
        while True:
            try:
                packet, address = self._raw.recvfrom(65600, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return self._heard
            if address[1] == ETH_P_IP:
                self._heard.append(_overheard(packet, address[2] == socket.PACKET_OUTGOING))

    def of(self, **wanted: object) -> list[Overheard]:
        """Return the packets heard so far whose fields have these values."""
        return [each for each in self.packets() if all(getattr(each, name) == value for name, value in wanted.items())]


class Network:
    """A lab that is up, what the test has opened in it, and the fastmasq it has started. `close` ends all of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._open = contextlib.ExitStack()
        self._fastmasq: Fastmasq | None = None
        self._closing = False

    # -- fastmasq ------------------------------------------------------------------------------------------------

    @property
    def fastmasq(self) -> Fastmasq:
        assert self._fastmasq is not None, "the test has not started fastmasq"
        return self._fastmasq

    @property
    def journal(self) -> Path:
        """Where fastmasq in the gateway has its journal."""
        return FOLDER / file_of(hosts.inode(self.lab.namespace("gateway")), "journal")

    def start(self, extra: str = "", **interfaces: Any) -> str:
        """Start fastmasq in the gateway with this head of a configuration; return the line that says it forwards."""
        self._fastmasq = Fastmasq(self.lab, head(extra), **interfaces)
        return self._fastmasq.install()

    def adopt(self, fastmasq: Fastmasq) -> None:
        """Look at a fastmasq that somebody else has started, and ends."""
        self._fastmasq = fastmasq

    def status(self) -> dict[str, Any]:
        """Return the status as it is when what is under way has been handled: nothing has moved for QUIET_S."""
        status, moved = self.fastmasq.ask("status"), time.monotonic()
        until = moved + LONGEST_QUIET_S
        while (now := time.monotonic()) < min(moved + QUIET_S, until):
            time.sleep(QUIET_S / 5)
            before, status = status, self.fastmasq.ask("status")
            if any(before[part] != status[part] for part in ("verdicts", "drops")):
                moved = now
        return status

    def drops(self) -> dict[str, int]:
        """Return packets dropped so far by reason."""
        return {row["reason"]: row["packets"] for row in self.status()["drops"]}

    def sessions(self, **filters: str) -> list[dict[str, Any]]:
        """Return the sessions of a host, a protocol and a state, or all, when all is quiet as for `status`."""
        self.status()
        return self.fastmasq.ask("sessions", **filters)["sessions"]

    def link(self, name: str) -> dict[str, Any]:
        """Return the row of one link in the status."""
        return next(link for link in self.status()["links"] if link["name"] == name)

    # -- programs ------------------------------------------------------------------------------------------------

    def run(self, host: str, *argv: str, check: bool = True) -> str:
        """Run a program on a host and return its output; its failure fails the test, unless check is False."""
        done = self.lab.exec(host, argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or not check, f"{' '.join(argv)} on {host}: {done.stderr or done.stdout}"
        return done.stdout

    def ip(self, host: str, command: str) -> str:
        return hosts.checked(["ip", "-n", self.lab.namespace(host), *command.split()])

    def wire(self, host: str, interface: str, peer: str, peer_interface: str) -> None:
        """Connect two hosts by a new pair of interfaces, both down."""
        make_wire(self.lab.namespace(host), interface, self.lab.namespace(peer), peer_interface)

    def add_second_inside(self, address: str, prefix: int) -> None:
        """Move inside2, with this address, to a network of its own, whose first address is the gateway's eth2."""
        gateway = str(ipaddress.ip_network(f"{address}/{prefix}", strict=False).network_address + 1)
        self.ip("inside2", "link delete eth0")
        self.wire("gateway", "eth2", "inside2", "eth0")
        self.ip("gateway", f"address add {gateway}/{prefix} dev eth2")
        self.ip("gateway", "link set eth2 up")
        self.ip("inside2", f"address add {address}/{prefix} dev eth0")
        self.ip("inside2", "link set eth0 up")
        self.ip("inside2", f"route add default via {gateway}")
        hosts.wait_for_links(self.lab.namespace("gateway"), ["eth2"])
        hosts.wait_for_links(self.lab.namespace("inside2"), ["eth0"])

    def sysctl(self, host: str, name: str) -> str:
        return self.run(host, "sysctl", "-n", name).strip()

    def answers(self, host: str, address: str, seconds: float = 2, options: str = "") -> bool:
        """Return whether the address answers one ping from the host."""
        argv = ["ping", "-n", "-c", "1", "-W", f"{seconds:g}", *options.split(), address]
        return self.lab.exec(host, argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    # -- sockets -------------------------------------------------------------------------------------------------

    def on(self, host: str) -> contextlib.AbstractContextManager[None]:
        """Have this thread live on a host for a while: sockets made meanwhile are the host's."""
        return hosts.entered(self.lab.namespace(host))

    def keep(self, closable: Any) -> Any:
        """Have something closed at the end of the test; return it."""
        return self._open.enter_context(contextlib.closing(closable))

    def udp(
        self, host: str, address: str = "0.0.0.0", port: int = 0, protocol: int = socket.IPPROTO_UDP
    ) -> socket.socket:
        """Return a UDP (or UDP-Lite) socket on a host, bound; waiting on it ends after PATIENCE_S."""
        with self.on(host):
            made = self.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM, protocol))
        made.settimeout(PATIENCE_S)
        made.bind((address, port))
        return made

    def raw(self, host: str, protocol: int, timeout: float = 5) -> socket.socket:
        """Return a raw socket that sends and hears a protocol on a host; waiting on it ends after `timeout` seconds."""
        with self.on(host):
            made = self.keep(socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol))
        made.settimeout(timeout)
        return made

    def asking(self, host: str, remote: tuple[str, int], protocol: int = socket.IPPROTO_UDP) -> socket.socket:
        """Return a UDP (or UDP-Lite) socket on a host that is connected and keeps ICMP errors for `icmp_error`."""
        made = self.udp(host, protocol=protocol)
        made.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        made.connect(remote)
        return made

    def listen(self, host: str, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
        """Return a listening TCP socket on a host."""
        with self.on(host):
            made = self.keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(PATIENCE_S)
        made.bind((address, port))
        made.listen(64)
        return made

    def connect(self, host: str, remote: tuple[str, int], port: int = 0, timeout: float = PATIENCE_S) -> socket.socket:
        """Return a TCP connection from a host, from `port` if given. Raises OSError."""
        with self.on(host):
            made = self.keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(timeout)
        if port:
            made.bind(("0.0.0.0", port))
        try:
            made.connect(remote)
        except OSError:
            made.close()  # its host would go on asking, and get through later
            raise
        made.settimeout(PATIENCE_S)
        return made

    def pair(
        self, client: str = "inside", server: str = "server", address: str = SERVER_ADDRESS, client_port: int = 0
    ) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a TCP connection between two hosts: the client's and the server's."""
        listener = self.listen(server, address)
        near = self.connect(client, listener.getsockname(), client_port)
        far, _ = listener.accept()
        far.settimeout(PATIENCE_S)
        return near, self.keep(far)

    def echo_udp(self, host: str = "server", address: str = "0.0.0.0", port: int = ECHO_PORT) -> None:
        """Have a UDP port answer every datagram with itself, from now to the end of the test."""
        self.serve(self.udp(host, address, port), _echo_datagrams)

    def echo_tcp(self, host: str = "server", address: str = "0.0.0.0", port: int = ECHO_PORT) -> None:
        """Have a TCP port send back what it receives, from now to the end of the test."""
        self.serve(self.listen(host, address, port), _echo_streams)

    def greet_tcp(self, greeting: bytes, host: str, port: int) -> None:
        """Have a TCP port send a greeting on every connection and close it, from now to the end of the test."""
        self.serve(self.listen(host, port=port), lambda server, is_over: _greet(server, is_over, greeting))

    def sniff(self, host: str, interface: str) -> Sniffer:
        with self.on(host):
            raw = self.keep(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
        raw.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        raw.bind((interface, ETH_P_ALL))
        return Sniffer(raw)

    def announce(self, host: str, interface: str, address: str) -> None:
        """Send a gratuitous ARP reply: `address` is at the interface's present MAC address (RFC 5227 section 3)."""
        with self.on(host), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((interface, ETH_P_ARP))
            mac, number = raw.getsockname()[4], socket.inet_aton(address)
            arp = struct.pack(">HHBBH", 1, ETH_P_IP, 6, 4, 2) + mac + number + b"\xff" * 6 + number
            raw.send(b"\xff" * 6 + mac + struct.pack(">H", ETH_P_ARP) + arp)

    def close(self) -> None:
        """Close what was opened, and end fastmasq, which must put everything back and exit with 0."""
        self._closing = True
        self._open.close()
        if self._fastmasq is not None and self._fastmasq.is_running():
            self._fastmasq.remove()

    def serve(self, server: socket.socket, serve: Callable[[socket.socket, Callable[[], bool]], None]) -> None:
        """Have a thread serve a socket, whose waiting ends soon, until it is told that all is over."""
        server.settimeout(0.05)
        thread = threading.Thread(target=serve, args=(server, lambda: self._closing))
        thread.start()
        self._open.callback(thread.join)


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE_S, what: str = "the condition") -> float:
    """Ask until the condition holds, and return after how many seconds it did; fail the test when time is up."""
    started = time.monotonic()
    held = hosts.wait_until(lambda: bool(condition()), seconds)
    passed = time.monotonic() - started
    assert held, f"{what} did not hold within {seconds:g} s"
    return passed


def talks(net: Network, host: str, remote: tuple[str, int], seconds: float = PATIENCE_S) -> bool:
    """Return whether a TCP echo server answers a host, which may connect for so long: not long, where none should."""
    try:
        connection = net.connect(host, remote, timeout=seconds)
    except OSError:
        return False
    return round_trip(connection, None, b"hello")


def round_trip(near: socket.socket, far: tuple[str, int] | None, payload: bytes, seconds: float = PATIENCE_S) -> bool:
    """Return whether a datagram to an echo port, or octets on a connection (far is None), come back in time."""
    near.settimeout(seconds)
    try:
        if far is not None:
            near.sendto(payload, far)
            return _hears(near, payload, time.monotonic() + seconds)
        near.sendall(payload)
        received = b""
        while len(received) < len(payload):
            piece = near.recv(len(payload) - len(received))
            if not piece:
                return False
            received += piece
        return received == payload
    except OSError:
        return False


def icmp_error(asking: socket.socket, seconds: float = PATIENCE_S) -> IcmpError | None:
    """Wait for an ICMP error about what a socket has sent (ip(7), IP_RECVERR); return it, or None when time is up."""
    found: list[IcmpError] = []
    asking.settimeout(0)

    def look() -> bool:
        try:
            _, control, _, _ = asking.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            return False
        for level, kind, value in control:
            if (level, kind) == (socket.IPPROTO_IP, IP_RECVERR):
                _, origin, type_, code, info, _, offender = struct.unpack_from("=IBBBxII4x4s", value)
                if origin == SO_EE_ORIGIN_ICMP:
                    found.append(IcmpError(type_, code, info, socket.inet_ntoa(offender)))
        return bool(found)

    hosts.wait_until(look, seconds)
    return found[0] if found else None


def is_told(asking: socket.socket, error: tuple[int, int, int, str], seconds: float = 0.2) -> bool:
    """Ask, and return whether this ICMP error comes, of this question or of one before: to be asked until it does."""
    with contextlib.suppress(OSError):  # what has come meanwhile is that of the socket, too
        asking.send(b"?")
    return icmp_error(asking, seconds) == error


def send_and_compare(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """Send `size` random octets over a connection and assert that exactly they arrive; leaves the connection open."""
    payload = os.urandom(size)
    failure: list[OSError] = []

    def send() -> None:
        try:
            sender.sendall(payload)
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    digest, received = hashlib.sha256(), 0
    try:
        while received < size:
            piece = receiver.recv(min(_CHUNK_BYTES, size - received))
            assert piece, f"the connection ended after {received} of {size} octets"
            digest.update(piece)
            received += len(piece)
    finally:
        thread.join()
    assert not failure, f"sending ended with {failure[0]}"
    assert digest.digest() == hashlib.sha256(payload).digest(), f"{size} octets arrived, but not those sent"


def _hears(near: socket.socket, payload: bytes, deadline: float) -> bool:
    """Wait for a datagram; answers to earlier ones that come first are skipped."""
    while (left := deadline - time.monotonic()) > 0:
        near.settimeout(left)
        if near.recv(65536) == payload:
            return True
    return False


def _echo_datagrams(server: socket.socket, is_over: Callable[[], bool]) -> None:
    while not is_over():
        with contextlib.suppress(OSError):
            payload, sender = server.recvfrom(65536)
            server.sendto(payload, sender)


def _greet(server: socket.socket, is_over: Callable[[], bool], greeting: bytes) -> None:
    while not is_over():
        with contextlib.suppress(OSError), server.accept()[0] as connection:
            connection.sendall(greeting)


def _echo_streams(server: socket.socket, is_over: Callable[[], bool]) -> None:
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as connections:
        selector.register(server, selectors.EVENT_READ)
        while not is_over():
            for key, _ in selector.select(0.05):
                with contextlib.suppress(OSError):
                    if key.fileobj is server:
                        selector.register(connections.enter_context(server.accept()[0]), selectors.EVENT_READ)
                    elif piece := key.fileobj.recv(65536):
                        key.fileobj.sendall(piece)
                        continue
                    else:
                        selector.unregister(key.fileobj)


def _overheard(packet: bytes, sent: bool) -> Overheard:
    header = (packet[0] & 15) * 4
    source, destination = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    ports = (0, 0)
    if packet[9] in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) and len(packet) >= header + 4:
        ports = struct.unpack_from(">HH", packet, header)
    return Overheard(sent, source, destination, packet[9], *ports, len(packet), packet)
