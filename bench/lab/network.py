"""The lab's direct network made ready for measuring: sources inside, a cheap sink at the server, counters, sockets.

A thread, not only a process, can be in a network namespace. Sockets, AF_XDP rings and open files of /proc/net are
therefore made here in short-lived threads that have entered a host's namespace, and used from anywhere afterwards.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import numpy as np

from fastmasq.errors import KernelError
from fastmasq.lab import hosts
from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from fastmasq_bench.flows import DISCARD_PORT
from fastmasq_bench.load import Source

Result = TypeVar("Result")

ECHO_PORT = 7
RECEIVE_TIMEOUT_S = 0.2

# The sink: behind the interface's counter and before the server's own IP input.
_SINK = f"""
table netdev bench {{
    chain sink {{
        type filter hook ingress device eth0 priority 0
        udp dport {DISCARD_PORT} drop
    }}
}}
"""


class Counter:
    """What the kernel has counted on one interface since it was made."""

    def __init__(self, descriptor: int, interface: str) -> None:
        self._descriptor = descriptor
        self._label = f"{interface}:"

    def received(self) -> int:
        """Return the packets that arrived, those that a full queue dropped excluded."""
        return self._field(1)

    def dropped(self) -> int:
        """Return the packets that arrived and were dropped because a queue was full."""
        return self._field(3)

    def close(self) -> None:
        """Close the file behind it."""
        os.close(self._descriptor)

    def _field(self, number: int) -> int:
        for line in os.pread(self._descriptor, 16384, 0).decode().splitlines():
            label, _, fields = line.strip().partition(" ")
            if label == self._label:
                return int(fields.split()[number])
        raise KernelError(f"interface {self._label[:-1]} of the lab has vanished")


class Network:
    """inside --- gateway --- server under a prefix of its own; a context manager."""

    def __init__(self, prefix: str) -> None:
        self.lab = Lab(prefix, network="direct")

    def __enter__(self) -> Network:
        self.lab.up()
        try:
            hosts.checked(hosts.command_in(self.lab.namespace("server"), ["nft", "-f", "-"]), _SINK)
            self.gateway_mac = bytes.fromhex(self._interface_mac("gateway").replace(":", ""))
            self.sink = Counter(self.enter("server", _open_counters), "eth0")
            self.tap = Counter(self.enter("gateway", _open_counters), "eth0")
        except BaseException:
            self.lab.down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.sink.close()
        self.tap.close()
        self.lab.down()

    def enter(self, host: str, function: Callable[..., Result], *arguments: object) -> Result:
        """Call the function in a thread that is in the host's network namespace; return or raise what it does."""
        outcome: list[Result] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                from pyroute2 import netns

                netns.setns(self.lab.namespace(host))
                outcome.append(function(*arguments))
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def source(self, frames: np.ndarray) -> Source:
        """Return a source of these frames on the inside host's interface."""
        return self.enter("inside", Source, "eth0", frames)

    def echo_socket(self) -> socket.socket:
        """Return a UDP socket at the server's echo port."""
        return self.enter("server", _udp_socket, "bind", (SERVER_ADDRESS, ECHO_PORT))

    def client_socket(self) -> socket.socket:
        """Return a UDP socket of the inside host, connected to the server's echo port."""
        return self.enter("inside", _udp_socket, "connect", (SERVER_ADDRESS, ECHO_PORT))

    def steer(self, mask: int) -> None:
        """Set receive packet steering of both interfaces of the gateway: the processors as a bit mask, 0 for none."""
        command = "; ".join(f"echo {mask:x} > /sys/class/net/{name}/queues/rx-0/rps_cpus" for name in ("eth0", "eth1"))
        hosts.checked(hosts.command_in(self.lab.namespace("gateway"), ["sh", "-ec", command]))

    def _interface_mac(self, host: str) -> str:
        return hosts.checked(hosts.command_in(self.lab.namespace(host), ["cat", "/sys/class/net/eth0/address"])).strip()


def _open_counters() -> int:
    return os.open("/proc/thread-self/net/dev", os.O_RDONLY)


def _udp_socket(method: str, address: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    getattr(made, method)(address)
    made.settimeout(None)
    seconds, microseconds = divmod(round(RECEIVE_TIMEOUT_S * 1e6), 1_000_000)
    import struct

    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, microseconds))
    return made
