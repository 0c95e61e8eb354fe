"""Hosts without fastmasq, for tests of what it asks of a kernel: one alone, or one with a peer on each side."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from fastmasq.lab import hosts
from fastmasq.lab.topology import Lab
from tests.support.networks import networks

_TUNSETIFF, _TUNSETLINK = 0x400454CA, 0x400454CD
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_indexes = itertools.count(1000)  # of links, which nobody else gives out


class Namespace:
    """One network namespace, with `lo` up: a host of a lab, by default of one that has no other."""

    def __init__(self, lab: Lab | None = None, host: str = "host") -> None:
        self._lab = lab or networks.take("alone")
        self.name = self._lab.namespace(host)

    def remove(self) -> None:
        """Remove the host, with its whole lab."""
        networks.give_back(self._lab)

    def ip(self, command: str) -> str:
        return hosts.checked(["ip", "-n", self.name, *command.split()])

    def sh(self, command: str, check: bool = True) -> str:
        """Run a shell command inside; return its output."""
        done = hosts.run_in(self.name, ["sh", "-c", command], check=check, capture_output=True, text=True, timeout=60)
        return done.stdout

    def python(self, program: str, **options: object) -> subprocess.Popen[str]:
        """Start a Python program inside; its output can be read from `stdout`."""
        argv = hosts.command_in(self.name, [sys.executable, "-u", "-c", program])
        root = Path(__file__).parents[2]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=root, **options)

    def sysctl(self, name: str) -> str:
        return self.sh(f"sysctl -n {name}").strip()

    def entered(self) -> AbstractContextManager[None]:
        """Have this thread live inside: sockets made, and /proc/sys/net and /proc/net read, are the namespace's."""
        return hosts.entered(self.name)


class Gateway:
    """A host with eth0 (10.0.0.1/8, inside) and eth1 (200.200.200.200/24, outside), each joined to a peer's eth0.

    The inside peer is 10.0.0.2 with its default route through the host. The outside peer is 200.200.200.1, through
    which the host reaches everything else; it also has 199.0.0.1, and a route to the inside.
    """

    def __init__(self) -> None:
        self._lab = networks.take("between")
        self.host, self.inside, self.outside = (Namespace(self._lab, name) for name in ("host", "inside", "outside"))

    def remove(self) -> None:
        networks.give_back(self._lab)


@contextlib.contextmanager
def open_tun(namespace: Namespace, name: str, hardware: int = 0xFFFE) -> Iterator[int]:
    """Make a tun interface, up, of an ARPHRD_* type; yield the descriptor of its other end."""
    with namespace.entered():
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        fcntl.ioctl(descriptor, _TUNSETLINK, hardware)
        namespace.ip(f"link set {name} up")
        yield descriptor
    finally:
        os.close(descriptor)


def make_wire(left: str, left_device: str, right: str, right_device: str) -> None:
    """Make a pair of veth interfaces, both down, in two namespaces of these names.

    Their numbers differ, as a lab's do: the kernel looks at the carrier of two with one number up to a second late.
    """
    near, far = f"{left_device} index {next(_indexes)}", f"{right_device} index {next(_indexes)}"
    hosts.configure([f"link add {near} type veth peer name {far} netns {right}"], left)


def join(left: Namespace, left_device: str, right: Namespace, right_device: str) -> None:
    """Connect two namespaces by a pair of veth interfaces, both up and carrying packets."""
    make_wire(left.name, left_device, right.name, right_device)
    left.ip(f"link set {left_device} up")
    right.ip(f"link set {right_device} up")
    hosts.wait_for_links(left.name, [left_device])
    hosts.wait_for_links(right.name, [right_device])
