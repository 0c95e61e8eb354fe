"""Network namespaces for the tests of fastmasq.net: made under unique names, entered, and removed with all in them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_TUNSETIFF, _TUNSETLINK = 0x400454CA, 0x400454CD
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


class Namespace:
    """One network namespace, with `lo` up."""

    def __init__(self) -> None:
        self.name = f"B{os.getpid()}-{next(_numbers)}"
        checked("ip", "netns", "add", self.name)
        self.ip("link set lo up")

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=False)

    def ip(self, command: str) -> str:
        return checked("ip", "-n", self.name, *command.split())

    def sh(self, command: str, check: bool = True) -> str:
        """Run a shell command inside; return its output."""
        argv = ["ip", "netns", "exec", self.name, "sh", "-c", command]
        return subprocess.run(argv, check=check, capture_output=True, text=True, timeout=60).stdout

    def python(self, program: str, **options: object) -> subprocess.Popen[str]:
        """Start a Python program inside; its output can be read from `stdout`."""
        argv = ["ip", "netns", "exec", self.name, sys.executable, "-u", "-c", program]
        root = Path(__file__).parents[2]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=root, **options)

    def sysctl(self, name: str) -> str:
        return self.sh(f"sysctl -n {name}").strip()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread live inside: sockets made, and /proc/sys/net and /proc/net read, are the namespace's."""
        with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{self.name}") as after:
            _enter(after.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())


class Gateway:
    """A host with eth0 (10.0.0.1/8, inside) and eth1 (200.200.200.200/24, outside), each joined to a peer's eth0.

    The inside peer is 10.0.0.2 with its default route through the host. The outside peer is 200.200.200.1, through
    which the host reaches everything else; it also has 199.0.0.1, and a route to the inside.
    """

    def __init__(self) -> None:
        self.host, self.inside, self.outside = Namespace(), Namespace(), Namespace()
        join(self.host, "eth0", self.inside, "eth0")
        join(self.host, "eth1", self.outside, "eth0")
        self.host.ip("addr add 10.0.0.1/8 brd + dev eth0")
        self.host.ip("addr add 200.200.200.200/24 brd + dev eth1")
        self.host.ip("route add default via 200.200.200.1")
        self.inside.ip("addr add 10.0.0.2/8 dev eth0")
        self.inside.ip("route add default via 10.0.0.1")
        self.outside.ip("addr add 200.200.200.1/24 dev eth0")
        self.outside.ip("addr add 199.0.0.1/32 dev lo")
        self.outside.ip("route add 10.0.0.0/8 via 200.200.200.200")

    def remove(self) -> None:
        for namespace in (self.host, self.inside, self.outside):
            namespace.remove()


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


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def checked(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr.strip()}"
    return done.stdout


def join(left: Namespace, left_device: str, right: Namespace, right_device: str) -> None:
    """Connect two namespaces by a pair of veth interfaces, both up."""
    left.ip(f"link add {left_device} type veth peer name {right_device} netns {right.name}")
    left.ip(f"link set {left_device} up")
    right.ip(f"link set {right_device} up")
