"""The host's own ports in its own network namespace: bound, ephemeral, reserved; and no others."""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from fastmasq.kernel import netlink
from fastmasq.kernel.bpf.binds import Binds
from fastmasq.kernel.ports import Waiting, host_ports, listeners, parse_ports, port_ranges, waiting
from tests.support.namespaces import Namespace

TCP, UDP, ICMP = socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP


@pytest.fixture
def host() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.remove()


def bound(address: str, port: int, kind: int = socket.SOCK_STREAM, listen: bool = False) -> socket.socket:
    end = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    end.bind((address, port))
    if listen:
        end.listen()
    return end


def test_an_idle_host_has_its_ephemeral_range_only(host: Namespace) -> None:
    host.sh("sysctl -qw net.ipv4.ip_local_port_range='40000 41000'")
    with host.entered():
        assert port_ranges(host_ports(TCP)) == [(40_000, 41_000)]
        assert port_ranges(host_ports(UDP)) == [(40_000, 41_000)]
        assert port_ranges(host_ports(ICMP)) == []


def test_reserved_ports_are_the_administrators(host: Namespace) -> None:
    host.sh("sysctl -qw net.ipv4.ip_local_reserved_ports=8080,9148-9150")
    with host.entered():
        assert (8080, 8080) in port_ranges(host_ports(TCP))
        assert (9148, 9150) in port_ranges(host_ports(UDP))


def test_of_ports_reserved_for_us_only_the_bound_count(host: Namespace) -> None:
    host.sh("sysctl -qw net.ipv4.ip_local_reserved_ports=8080,50000-50099")
    with host.entered():
        end = bound("0.0.0.0", 50_007, socket.SOCK_DGRAM)
        used = host_ports(UDP, ours=parse_ports("50000-50099"))
        end.close()
    assert used[[8080, 49_999, 50_007, 50_100]].all()
    assert not used[[50_000, 50_006, 50_008, 50_099]].any()


def test_who_takes_no_ipv4_waits_for_none(host: Namespace) -> None:
    with host.entered():
        ends = []
        for port, only_ipv6 in ((80, 0), (81, 1)):
            ends.append(socket.socket(socket.AF_INET6))
            ends[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
            ends[-1].bind(("::", port))
            ends[-1].listen()
        found = {each.port: each.hears(0xC8C8C8C8) for each in waiting(TCP)}
        for end in ends:
            end.close()
    assert found == {80: True, 81: False}


def test_bound_sockets(host: Namespace) -> None:
    with host.entered():
        ends = [
            bound("0.0.0.0", 22, listen=True),
            bound("127.0.0.1", 25, listen=True),
            bound("::", 80, listen=True),
            bound("0.0.0.0", 2000),  # neither listens nor connects
            bound("::", 2001),
            bound("0.0.0.0", 53, socket.SOCK_DGRAM),
            bound("::", 546, socket.SOCK_DGRAM),
        ]
        tcp, udp = host_ports(TCP), host_ports(UDP)
    assert tcp[[22, 25, 80, 2000, 2001]].all()
    assert udp[[53, 546]].all()
    assert not tcp[[53, 546]].any()
    assert not udp[[22, 25, 80, 2000]].any()
    for end in ends:
        end.close()
    with host.entered():
        assert not host_ports(TCP)[[22, 25, 80, 2000, 2001]].any()


def test_connected_sockets(host: Namespace) -> None:
    with host.entered():
        listener = bound("127.0.0.1", 7, listen=True)
        client = bound("127.0.0.1", 3000)
        client.connect(("127.0.0.1", 7))
        listener.close()
        assert host_ports(TCP)[3000]
        client.close()


@pytest.mark.parametrize("has_diagnosis", [True, False])
def test_both_ways_to_ask_for_tcp_sockets_tell_the_same(host: Namespace, monkeypatch, has_diagnosis: bool) -> None:
    if not has_diagnosis:
        monkeypatch.setattr(netlink, "NETLINK_SOCK_DIAG", 31)  # of no kernel
    with host.entered():
        listener = bound("127.0.0.1", 7, listen=True)
        ends = [bound(address, port) for address, port in (("127.0.0.1", 3000), ("::1", 3001), ("127.0.0.1", 3002))]
        ends[0].connect(("127.0.0.1", 7))
        accepted = listener.accept()[0]
        ends[1].setblocking(False)
        wide = bound("::", 8, listen=True)
        ends[1].connect_ex(("::1", 8))
        ends[2].connect(("127.0.0.1", 7))
        ends[2].close()
        listener.accept()[0].close()  # which leaves 3002 waiting for its time to pass
        ports_in_use = np.flatnonzero(host_ports(TCP, ephemeral=(1, 1))).tolist()
        user, inode = os.getuid(), os.fstat(wide.fileno()).st_ino
        waiting_there = waiting(TCP)
    for end in (listener, accepted, wide, *ends):
        end.close()
    assert ports_in_use == [1, 7, 8, 3000, 3001, 3002]
    assert Waiting("::", 8, user, inode) in waiting_there
    assert sorted((each.address, each.port) for each in waiting_there) == [("127.0.0.1", 7), ("::", 8)]


def test_listeners_are_those_that_wait_with_their_addresses(host: Namespace) -> None:
    with host.entered():
        ends = [
            bound("0.0.0.0", 22, listen=True),
            bound("127.0.0.1", 25, listen=True),
            bound("::1", 25, listen=True),
            bound("::", 80, listen=True),
            bound("0.0.0.0", 2000),
        ]
        client = socket.create_connection(("127.0.0.1", 25))
        assert listeners(TCP) == {22: {"0.0.0.0"}, 25: {"127.0.0.1", "::1"}, 80: {"::"}}
        assert listeners(UDP) == {}
        with bound("127.0.0.1", 53, socket.SOCK_DGRAM), bound("127.0.0.1", 54, socket.SOCK_DGRAM) as connected:
            connected.connect(("127.0.0.1", 53))
            assert listeners(UDP) == {53: {"127.0.0.1"}}
    for end in (*ends, client):
        end.close()


def test_ping_sockets_have_identifiers(host: Namespace) -> None:
    host.sh("sysctl -qw net.ipv4.ping_group_range='0 0'")
    with host.entered():
        ping = socket.socket(type=socket.SOCK_DGRAM, proto=ICMP)
        ping.bind(("0.0.0.0", 4321))
        assert port_ranges(host_ports(ICMP)) == [(4321, 4321)]
        ping.close()


def test_other_namespaces_do_not_count(host: Namespace) -> None:
    other = Namespace()
    try:
        with other.entered():
            end = bound("0.0.0.0", 22, listen=True)
        with host.entered():
            assert not host_ports(TCP)[22]
        end.close()
    finally:
        other.remove()


def test_from_a_child_process(host: Namespace) -> None:
    program = """if True:
        import socket
        from fastmasq.kernel.ports import host_ports
        end = socket.create_server(("", 22))
        print(host_ports(6)[22], host_ports(17)[22])
    """
    assert host.python(program).communicate()[0] == "True False\n"


@pytest.fixture
def binds(host: Namespace) -> Iterator[Binds]:
    with host.entered():
        made = Binds()
    yield made
    made.close()


def test_binds_are_told_with_protocol_and_port(host: Namespace, binds: Binds) -> None:
    """Of any address and family, and of this namespace alone."""
    assert binds.take() == set()
    with host.entered():
        ends = [bound("0.0.0.0", 22), bound("127.0.0.1", 53, socket.SOCK_DGRAM), bound("::", 500, socket.SOCK_DGRAM)]
        chosen = bound("0.0.0.0", 0)
        ends.append(chosen)
        port = chosen.getsockname()[1]
    ends.append(bound("127.0.0.1", 0))
    assert select.select([binds], [], [], 0)[0] == [binds]
    assert binds.take() == {(TCP, 22), (UDP, 53), (UDP, 500), (TCP, port)}
    assert select.select([binds], [], [], 0)[0] == []
    assert binds.take() == set()
    for end in ends:
        end.close()


def test_more_binds_than_there_is_room_for_are_told_to_be_missing(host: Namespace, binds: Binds) -> None:
    for rounds in range(3):  # and those after them, wherever in the ring they are
        with host.entered():
            for port in range(1, 400):
                bound("0.0.0.0", port).close()
        assert binds.take() is None
        with host.entered():
            for port in range(1, 60 + rounds):
                bound("0.0.0.0", port).close()
        assert binds.take() == {(TCP, port) for port in range(1, 60 + rounds)}


def test_the_reader_is_never_seen_to_step_back(host: Namespace, binds: Binds) -> None:
    """Or the kernel would find the ring full, and a bind would go unheard."""
    with host.entered():
        bound("0.0.0.0", 22).close()
    assert binds.take() == {(TCP, 22)}
    with mmap.mmap(binds.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ) as page:
        child = os.fork()
        if child == 0:
            try:
                while True:
                    binds.take()
            finally:
                os._exit(1)
        seen = {struct.unpack_from("=Q", page) for _ in range(1_000_000)}
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert seen == {(16,)}, "octets of one record, as before"
