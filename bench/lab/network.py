"""The lab's direct network made ready for measuring: sources inside, a cheap sink at the server, counters, sockets.

A thread, not only a process, can be in a network namespace. Sockets, transmit rings and open files of /proc/net are
therefore made while our own thread is in a host's namespace, and used from anywhere afterwards.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import numpy as np

from fastmasq.errors import KernelError
from fastmasq.lab import hosts
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS, Lab
from fastmasq.wire.numbers import ESP, GRE
from fastmasq_bench.flows import DISCARD_PORT, INSIDE_HOSTS, REFLECT_PORT, Tunnels
from fastmasq_bench.lab import reflector
from fastmasq_bench.load import Source
from fastmasq_bench.round_trip import Echo

Result = TypeVar("Result")

ECHO_PORT = 7
RECEIVE_TIMEOUT_S = 0.2
SOURCE_PROCESSOR = 0
SOURCE_QUEUES = 2
_INSIDE = "10.0.0.0/8"
_ANSWER_EVERY_S = 0.0005  # apart, since a tracker looks at each

# Where a load ends: behind the interface's counter, before the host's own IP input.
_SINKS = {
    "server": f"udp dport {DISCARD_PORT} drop; ip protocol {{ {GRE}, {ESP} }} drop",
    "inside": f"udp sport {REFLECT_PORT} drop; ip protocol {{ {GRE}, {ESP} }} drop",
}
_SINK = """
table netdev bench {{
    chain sink {{
        type filter hook ingress device eth0 priority 0
        {rule}
    }}
}}
"""


class Counter:
    """What the kernel counts on one interface of the current thread's network namespace."""

    def __init__(self, interface: str) -> None:
        self._descriptor = os.open("/proc/thread-self/net/dev", os.O_RDONLY)
        self._label = f"{interface}:"

    def received(self) -> int:
        """Return the packets that arrived, without those dropped because a queue was full."""
        return self._field(1)

    def dropped(self) -> int:
        """Return the packets that were dropped on arrival because a queue was full."""
        return self._field(3)

    def close(self) -> None:
        os.close(self._descriptor)

    def _field(self, number: int) -> int:
        for line in os.pread(self._descriptor, 16384, 0).decode().splitlines():
            label, *fields = line.split()
            if label == self._label:
                return int(fields[number])
        raise KernelError(f"interface {self._label[:-1]} of the lab has vanished")


class Network:
    """inside --- gateway --- server under a prefix of its own, with an echo server; a context manager.

    server, inside and gateway are the counters of the interfaces where loads arrive: at the server, back at the inside
    host, and at the gateway's inside interface.
    """

    server: Counter
    inside: Counter
    gateway: Counter
    gateway_mac: bytes
    _echo: threading.Thread

    def __init__(self, prefix: str) -> None:
        self.lab = Lab(prefix, network="direct")
        self._undo = ExitStack()

    def __enter__(self) -> Network:
        with ExitStack() as undo:
            undo.enter_context(self.lab)
            self._prepare(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def enter(self, host: str, function: Callable[..., Result], *arguments: object) -> Result:
        """Call the function while this thread is in the host's network namespace; return or raise what it does."""
        with hosts.entered(self.lab.namespace(host)):
            return function(*arguments)

    def source(self, frames: np.ndarray, queue: int = 0) -> Source:
        """Return a source of these frames on the inside host; two can work at once, on queues 0 and 1."""
        return self.enter("inside", Source, "eth0", frames, queue)

    def mac(self, host: str, interface: str = "eth0") -> bytes:
        """Return the link address of a host's interface."""
        return bytes.fromhex(self._run(host, ["cat", f"/sys/class/net/{interface}/address"]).replace(":", ""))

    def show_inside(self) -> None:
        """Give the server a route to the inside hosts' own addresses, until `hide_inside`."""
        self._run("server", ["ip", "route", "add", _INSIDE, "via", EXTERNAL_ADDRESS])

    def hide_inside(self) -> None:
        """Take it away again."""
        self._run("server", ["ip", "route", "delete", _INSIDE])

    def echo_client(self) -> socket.socket:
        """Return a UDP socket of the inside host, connected to the server's echo port."""
        client = self.enter("inside", _udp_socket)
        client.connect((SERVER_ADDRESS, ECHO_PORT))
        return client

    def answer(self, tunnels: Tunnels) -> None:
        """Have every remote end of the tunnels send a packet, so that both ways are known."""

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
                for _, packet in tunnels.answers(EXTERNAL_ADDRESS):
                    raw.sendto(packet, (EXTERNAL_ADDRESS, 0))
                    time.sleep(_ANSWER_EVERY_S)

        self.enter("server", send)

    def place_echo(self, processors: set[int]) -> None:
        """Bind the echo server to these processors."""
        os.sched_setaffinity(self._echo.native_id, processors)

    def steer(self, mask: int) -> None:
        """Set receive packet steering of both interfaces of the gateway: the processors as a bit mask, 0 for none."""
        files = (f"/sys/class/net/{name}/queues/rx-0/rps_cpus" for name in ("eth0", "eth1"))
        self._run("gateway", ["sh", "-ec", "\n".join(f"echo {mask:x} > {file}" for file in files)])

    @contextmanager
    def dropping_gateway(self) -> Iterator[None]:
        """Let the gateway drop whatever comes from inside, as early as it can."""
        self._run("gateway", ["nft", "-f", "-"], _SINK.format(rule="drop"))
        try:
            yield
        finally:
            self._run("gateway", ["nft", "delete", "table", "netdev", "bench"])

    def _prepare(self, undo: ExitStack) -> None:
        for host, rule in _SINKS.items():
            self._run(host, ["nft", "-f", "-"], _SINK.format(rule=rule))
        # The hosts that a load comes from: the inside host answers ARP for them, so that replies reach its interface.
        self._run("inside", ["ip", "route", "add", "local", INSIDE_HOSTS, "dev", "lo"])
        self._run("inside", ["ethtool", "-L", "eth0", "tx", str(SOURCE_QUEUES)])
        self.enter("server", reflector.attach, "eth0", REFLECT_PORT)
        self.gateway_mac = self.mac("gateway")
        self.server, self.inside, self.gateway = (
            self.enter(host, Counter, "eth0") for host in ("server", "inside", "gateway")
        )
        for counter in (self.server, self.inside, self.gateway):
            undo.callback(counter.close)
        self._serve_echo(undo)

    def _serve_echo(self, undo: ExitStack) -> None:
        server = self.enter("server", _udp_socket)
        undo.callback(server.close)
        server.bind((SERVER_ADDRESS, ECHO_PORT))
        echo = Echo(server)
        self._echo = threading.Thread(target=echo.run)
        self._echo.start()
        undo.callback(self._echo.join)
        undo.callback(echo.stop)

    def _run(self, host: str, argv: list[str], text: str | None = None) -> str:
        return hosts.checked(hosts.command_in(self.lab.namespace(host), argv), text)


def _udp_socket() -> socket.socket:
    """Return a blocking UDP socket of the current thread's namespace, whose receive calls end after a while."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    microseconds = round(RECEIVE_TIMEOUT_S * 1e6)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", *divmod(microseconds, 1_000_000)))
    return made
