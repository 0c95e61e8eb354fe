"""A gateway host that is to be kept off what is ours: what its guard is told, and what its peers meet there."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from fastmasq.kernel.guard.specification import GuardSpec
from fastmasq.kernel.ports import parse_ports
from tests.support.harness import address
from tests.support.namespaces import Namespace

OURS = "1024-5352,5354-32767,61000-65535"
OUR_PORT, HOST_PORT, HOST_SERVICE = 20_000, 40_000, 5353
EXTERNAL, INSIDE, FOREIGN = "200.200.200.200", "10.0.0.1", "199.0.0.1"
LOCAL = (INSIDE, "10.255.255.255", EXTERNAL, "200.200.200.255")
TIMEOUT_S = 0.4
SPEC = GuardSpec(
    inside=["eth0"],
    outside=["eth1"],
    local_addresses=[address(text) for text in LOCAL],
    external={address(EXTERNAL): (parse_ports(OURS), parse_ports(OURS))},
)


def tcp(source: Namespace, destination: str, port: int) -> str:
    """Return what a TCP connection attempt meets: "connected", "refused", "silence", or the kernel's word for it."""
    with source.entered():
        connection = socket.socket()
    with connection:
        connection.settimeout(TIMEOUT_S)
        return outcome(lambda: connection.connect((destination, port)), "connected")


def udp(source: Namespace, destination: str, port: int, size: int = 5) -> str:
    """Return what a UDP datagram meets: "answered", "refused" (port unreachable) or "silence"."""
    with source.entered():
        connection = socket.socket(type=socket.SOCK_DGRAM)
    with connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect((destination, port))
        connection.send(bytes(size))
        return outcome(lambda: connection.recv(65536), "answered")


def outcome(attempt: object, success: str) -> str:
    try:
        attempt()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silence"
    except OSError as error:
        return error.strerror
    return success


def ping(source: Namespace, destination: str) -> bool:
    return ", 0% packet loss" in source.sh(f"ping -c1 -W1 {destination}", check=False)


@contextlib.contextmanager
def services(host: Namespace, addresses: tuple[str, ...], ports: tuple[int, ...]) -> Iterator[None]:
    """Accept TCP and echo UDP on some ports of some addresses."""
    program = f"""if True:
        import select, socket
        ends = [(address, port) for address in {addresses} for port in {ports}]
        listeners = [socket.create_server(end) for end in ends]
        echoes = []
        for end in ends:
            echoes.append(socket.socket(type=socket.SOCK_DGRAM))
            echoes[-1].bind(end)
        print("ready")
        while True:
            for ready in select.select(listeners + echoes, [], [])[0]:
                if ready in echoes:
                    ready.sendto(*ready.recvfrom(65536))
                else:
                    ready.accept()[0].close()
    """
    server = host.python(program)
    try:
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        server.communicate()


def traces(host: Namespace) -> str:
    """Return what nftables, iptables and tc know in a namespace, with eth0 and eth1; policies and counts aside."""
    return host.sh(
        "nft list ruleset; iptables-legacy-save | grep -e ^-A -e '^:[^ ]* -'; "
        "for dev in $(ls /sys/class/net); do tc qdisc show dev $dev; "
        "tc filter show dev $dev ingress; tc filter show dev $dev egress; done"
    )
