"""The watch follows the kernel: links by name, addresses, routes, neighbours; bursts and lost events included."""

from __future__ import annotations

import random
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from fastmasq.kernel import netlink
from fastmasq.kernel.addresses import primary
from fastmasq.kernel.links import UNSUPPORTED
from fastmasq.kernel.routes import BLACKHOLE, BROADCAST, LOCAL, NONE, PROHIBIT, UNICAST, Route
from fastmasq.kernel.watch import Watch
from tests.support.harness import address
from tests.support.namespaces import Gateway, Namespace, join, open_tun
from tests.support.netlink_messages import RECORDED, damaged

PATIENCE_S = 10


class Watched(Gateway):
    """A gateway host and the watches over it."""

    def __init__(self) -> None:
        super().__init__()
        self.watches: list[Watch] = []

    def remove(self) -> None:
        for watch in self.watches:
            watch.close()
        super().remove()

    def watch(self, outside: str = "eth1", **options: int) -> Watch:
        with self.host.entered():
            self.watches.append(Watch(["eth0"], outside, **options))
        return self.watches[-1]


@pytest.fixture
def watched() -> Iterator[Watched]:
    network = Watched()
    yield network
    network.remove()


def follow(watch: Watch, until: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Read events as the daemon does, when the descriptor says so, until a condition holds."""
    poll = select.poll()
    poll.register(watch.fileno(), select.POLLIN)
    deadline = time.monotonic() + patience_s
    while not until():
        assert time.monotonic() < deadline, "the watch did not notice in time"
        if poll.poll(100):
            watch.read(time.monotonic_ns())


def settle(watch: Watch) -> None:
    """Read until nothing more comes."""
    poll = select.poll()
    poll.register(watch.fileno(), select.POLLIN)
    while poll.poll(200):
        watch.read(time.monotonic_ns())


def find(watch: Watch, text: str) -> Route:
    wanted = address(text)
    return next(route for route in watch.snapshot().routes if route.first <= wanted <= route.last)


def test_first_look(watched: Watched) -> None:
    watch = watched.watch()
    snapshot = watch.snapshot()
    eth0, eth1 = snapshot.links
    assert (eth0.name, eth0.role, eth0.up, eth0.mtu, eth0.header_length) == ("eth0", "inside", True, 1500, 14)
    assert eth0.qdisc == "noqueue"
    assert ":".join(f"{byte:02x}" for byte in eth0.mac) in watched.host.ip("link show eth0")
    assert [str(each) for each in eth0.addresses] == ["10.0.0.1/8"]
    assert external(watch) == address("200.200.200.200")
    assert find(watch, "10.0.0.2")[2:4] == (UNICAST, eth0.ifindex)
    assert find(watch, "10.0.0.1")[2] == LOCAL
    assert find(watch, "10.255.255.255")[2] == BROADCAST
    assert find(watch, "199.0.0.1")[2:5] == (UNICAST, eth1.ifindex, address("200.200.200.1"))
    assert find(watch, "199.0.0.1").mtu == 0
    assert watch.complaints() == []
    settle(watch)
    assert watch.read(time.monotonic_ns()) is False


def test_a_networks_own_address_is_a_broadcast(watched: Watched) -> None:
    """Also where the kernel says otherwise, as it does from 5.14 on; it is told apart by the prefixes of addresses."""
    watched.host.ip("address add 10.4.0.0/31 dev eth0")
    watched.host.ip("address add 10.5.0.1/24 dev eth0")
    watch = watched.watch()
    found = {text: find(watch, text).kind for text in ("10.0.0.0", "200.200.200.0", "10.4.0.0", "10.4.0.1", "10.5.0.0")}
    wanted = [BROADCAST, BROADCAST, LOCAL, UNICAST, BROADCAST]
    assert list(found.values()) == wanted
    watched.host.ip("address del 10.5.0.1/24 dev eth0")
    settle(watch)
    assert find(watch, "10.5.0.0").kind == UNICAST


def test_outside_may_come_later_and_go(watched: Watched) -> None:
    watched.host.ip("link delete eth1")
    watch = watched.watch()
    assert external(watch) is None
    assert watch.snapshot().links[1].ifindex == 0
    assert find(watch, "199.0.0.1").kind == NONE
    assert watch.complaints() == []
    join(watched.host, "eth1", watched.outside, "eth0")
    watched.host.ip("addr add 200.200.200.200/24 dev eth1")
    follow(watch, lambda: external(watch) == address("200.200.200.200"))
    follow(watch, lambda: watch.snapshot().links[1].up)
    watched.host.ip("link delete eth1")
    follow(watch, lambda: watch.snapshot().links[1].ifindex == 0 and external(watch) is None)


def test_link_is_followed_by_name(watched: Watched) -> None:
    watch = watched.watch()
    first = watch.snapshot().links[1].ifindex
    watched.host.ip("link set eth1 down")
    follow(watch, lambda: not watch.snapshot().links[1].up)
    watched.host.ip("link set eth1 name old1")
    follow(watch, lambda: watch.snapshot().links[1].ifindex == 0)
    watched.host.ip("link set old1 name eth1")
    watched.host.ip("link set eth1 up")
    follow(watch, lambda: watch.snapshot().links[1].up)
    assert watch.snapshot().links[1].ifindex == first
    watched.host.ip("link delete eth1")
    join(watched.host, "eth1", watched.outside, "eth0")
    follow(watch, lambda: watch.snapshot().links[1].ifindex not in (0, first))


def test_carrier_mtu_mac_and_qdisc(watched: Watched) -> None:
    watch = watched.watch()
    watched.inside.ip("link set eth0 down")
    follow(watch, lambda: not watch.snapshot().links[0].up)
    watched.inside.ip("link set eth0 up")
    follow(watch, lambda: watch.snapshot().links[0].up)
    watched.host.ip("link set eth0 mtu 1400")
    follow(watch, lambda: watch.snapshot().links[0].mtu == 1400)
    watched.host.ip("link set eth0 address 02:00:00:00:00:07")
    follow(watch, lambda: watch.snapshot().links[0].mac == b"\2\0\0\0\0\7")
    watched.host.sh("tc qdisc replace dev eth0 root pfifo_fast")
    follow(watch, lambda: watch.snapshot().links[0].qdisc == "pfifo_fast")


def external(watch: Watch) -> int | None:
    """Return the first address of the outside link."""
    [outside] = (link for link in watch.snapshot().links if link.role == "outside")
    return primary(outside.addresses)


def test_external_address_changes(watched: Watched) -> None:
    watch = watched.watch()
    generation = watch.snapshot().generation
    watched.host.ip("addr add 200.200.200.201/24 dev eth1")
    follow(watch, lambda: len(watch.snapshot().links[1].addresses) == 2)
    assert external(watch) == address("200.200.200.200"), "a secondary address changes nothing"
    watched.host.ip("addr flush dev eth1")
    follow(watch, lambda: external(watch) is None)
    watched.host.ip("addr add 203.0.113.7/32 dev eth1 peer 203.0.113.1")
    follow(watch, lambda: external(watch) == address("203.0.113.7"))
    assert watch.snapshot().generation > generation


def test_routes_and_their_attributes(watched: Watched) -> None:
    watch = watched.watch()
    eth0 = watch.snapshot().links[0].ifindex
    watched.host.ip("route add 172.16.0.0/12 via 10.0.0.2 mtu 1300 src 10.0.0.1")
    watched.host.ip("route add blackhole 198.18.0.0/15")
    watched.host.ip("route add prohibit 198.51.100.0/24")
    watched.host.ip("route add 192.0.2.0/24 nexthop via 10.0.0.3 weight 1 nexthop via 200.200.200.1 weight 5")
    watched.host.ip("route add 203.0.113.0/24 via 10.0.0.9 table 77")
    watched.host.ip("route add 100.64.0.0/10 via 10.0.0.9 table default")
    watched.host.ip("route add 203.0.113.0/24 tos 0x10 via 10.0.0.9")
    watched.host.ip("route add 100.100.0.0/16 via inet6 fe80::1 dev eth0")
    follow(watch, lambda: find(watch, "192.0.2.1").gateway == address("10.0.0.3"))
    settle(watch)
    assert find(watch, "172.16.0.1")[2:] == (UNICAST, eth0, address("10.0.0.2"), 1300, address("10.0.0.1"))
    assert find(watch, "198.18.0.1").kind == BLACKHOLE
    assert find(watch, "198.51.100.1").kind == PROHIBIT
    assert find(watch, "203.0.113.1").gateway == address("200.200.200.1"), "other tables and TOS are policy routing"
    assert find(watch, "100.100.0.1").kind == NONE, "no next hop over IPv6"
    assert find(watch, "100.64.0.1").gateway == address("200.200.200.1"), "table main comes before default"
    watched.host.ip("route delete default")
    follow(watch, lambda: find(watch, "199.0.0.1").kind == NONE)
    assert find(watch, "100.64.0.1").gateway == address("10.0.0.9")
    watched.host.ip("route replace 172.16.0.0/12 via 10.0.0.4")
    follow(watch, lambda: find(watch, "172.16.0.1")[3:6] == (eth0, address("10.0.0.4"), 0))


@pytest.mark.parametrize("attempt", range(5))
def test_routes_that_vanish_without_a_word(watched: Watched, attempt: int) -> None:
    """The kernel announces only that eth1 went down, before it removes what leads there."""
    watched.host.ip("route add default via 10.0.0.2 metric 100")
    batch = "".join(f"route add 44.0.{number}.0/24 via 200.200.200.1\n" for number in range(200))
    subprocess.run(["ip", "-n", watched.host.name, "-batch", "-"], input=batch, text=True, check=True)
    watch = watched.watch()
    assert find(watch, "199.0.0.1").gateway == address("200.200.200.1")
    watched.host.ip("link set eth1 down")
    follow(watch, lambda: find(watch, "199.0.0.1").gateway == address("10.0.0.2"), patience_s=1)
    follow(watch, lambda: find(watch, "44.0.7.1").gateway == address("10.0.0.2"), patience_s=1)


def add_routes(namespace: Namespace, count: int) -> None:
    """Add /24 routes from 44.0.0.0 on, by turns through 200 gateways."""
    lines = (f"route add 44.{n >> 8}.{n & 255}.0/24 via 10.0.0.{2 + n % 200}\n" for n in range(count))
    subprocess.run(["ip", "-n", namespace.name, "-batch", "-"], input="".join(lines), text=True, check=True)


@pytest.mark.machine
def test_ten_thousand_route_events(watched: Watched) -> None:
    watch = watched.watch()
    add_routes(watched.host, 10_000)
    start = time.process_time()
    follow(watch, lambda: find(watch, "44.39.15.1").gateway == address("10.0.0.201"))
    settle(watch)
    assert time.process_time() - start < 2
    assert len(watch.snapshot().routes) > 10_000
    assert all(find(watch, f"44.{n >> 8}.{n & 255}.1").gateway == 0x0A000002 + n % 200 for n in range(0, 10_000, 997))
    generation = watch.snapshot().generation
    start = time.process_time()
    watched.host.ip("route add 55.0.0.0/8 via 10.0.0.2")
    follow(watch, lambda: find(watch, "55.1.1.1").gateway == address("10.0.0.2"))
    assert time.process_time() - start < 0.5, "one more route is not decoded with all others again"
    assert watch.snapshot().generation == generation + 1


def test_lost_events_lead_to_a_new_look(watched: Watched) -> None:
    watch = watched.watch(receive_buffer=4096)
    generation = watch.snapshot().generation
    add_routes(watched.host, 2000)
    watched.host.ip("link set eth0 mtu 1400")
    watched.host.ip("addr flush dev eth1")
    watched.host.ip("addr add 203.0.113.7/24 dev eth1")
    watched.host.ip("neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0")
    assert watch.read(time.monotonic_ns()) is True
    snapshot = watch.snapshot()
    assert snapshot.generation > generation
    assert snapshot.links[0].mtu == 1400
    assert external(watch) == address("203.0.113.7")
    assert find(watch, "44.7.207.1").gateway == 0x0A000002 + 1999 % 200
    assert watch.neighbour(snapshot.links[0].ifindex, address("10.0.0.77")).mac == b"\2\0\0\0\0\x77"


def test_loss_alone_makes_a_new_generation(watched: Watched) -> None:
    watch = watched.watch(receive_buffer=4096)
    generation = watch.snapshot().generation
    batch = "route add 44.0.0.0/8 via 10.0.0.2\nroute delete 44.0.0.0/8\n" * 100
    subprocess.run(["ip", "-n", watched.host.name, "-batch", "-"], input=batch, text=True, check=True)
    assert watch.read(time.monotonic_ns()) is True
    assert watch.snapshot().generation > generation
    assert find(watch, "44.0.0.1").gateway == address("200.200.200.1")


def test_damaged_messages_do_not_stop_the_watch(watched: Watched) -> None:
    watch = watched.watch(receive_buffer=4096)
    (to, _), chance = watch._events._socket.getsockname(), random.Random(1)
    with watched.host.entered():
        sender = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    for whole in [*RECORDED.values()] * 50:
        body = damaged(whole, chance)[netlink.HEADER.size :]
        kind = netlink.message_type(whole)
        length = netlink.HEADER.size + len(body) + chance.choice((0, 0, 0, -1, 1, 1000))
        sender.sendto(netlink.HEADER.pack(length, kind, 0, 1, 0) + body, (to, 0))
        watch.read(time.monotonic_ns())
        watch.changed_neighbours()
    sender.close()
    add_routes(watched.host, 2000)  # more than is held: all is looked at anew
    assert watch.read(time.monotonic_ns()) is True
    assert replace(watch.snapshot(), generation=0) == replace(watched.watch().snapshot(), generation=0)


def test_neighbours_resolve_fail_change_and_go(watched: Watched) -> None:
    watch = watched.watch()
    eth0 = watch.snapshot().links[0].ifindex
    host, nobody = address("10.0.0.2"), address("10.0.0.99")
    mac = bytes.fromhex(watched.inside.sh("cat /sys/class/net/eth0/address").strip().replace(":", ""))

    assert watch.neighbour(eth0, host) is None
    watch.resolve(eth0, host)
    watch.resolve(eth0, nobody)
    follow(watch, lambda: (found := watch.neighbour(eth0, host)) and found.mac == mac)
    assert watch.neighbour(eth0, host).state == "reachable"
    assert (eth0, host, mac, "reachable") in watch.changed_neighbours()
    assert watch.changed_neighbours() == []

    follow(watch, lambda: (found := watch.neighbour(eth0, nobody)) and found.state == "failed")
    assert (eth0, nobody, None, "failed") in watch.changed_neighbours()

    watched.inside.ip("link set eth0 address 02:00:00:00:00:22")
    watched.host.ip("neigh flush dev eth0")
    watch.resolve(eth0, host)
    follow(watch, lambda: (found := watch.neighbour(eth0, host)) and found.mac == b"\2\0\0\0\0\x22")

    watched.host.ip("neigh delete 10.0.0.2 dev eth0")
    follow(watch, lambda: (eth0, host, None, "gone") in watch.changed_neighbours())
    assert watch.neighbour(eth0, host) is None


def test_gratuitous_arp_changes_a_mac(watched: Watched) -> None:
    watched.host.sh("ping -c1 -W1 10.0.0.2")
    watch = watched.watch()
    eth0 = watch.snapshot().links[0].ifindex
    assert watch.neighbour(eth0, address("10.0.0.2")) is not None
    watched.host.ip("neigh change 10.0.0.2 dev eth0 nud stale")  # a fresh entry is locked against changes for a second
    time.sleep(1.1)
    announcement = """if True:
        import socket
        mac, ip = bytes.fromhex("020000000033"), bytes([10, 0, 0, 2])
        frame = b"\\xff" * 6 + mac + bytes.fromhex("0806" "0001" "0800" "06" "04" "0001") + mac + ip + b"\\0" * 6 + ip
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        tap.bind(("eth0", 0x0806))
        tap.send(frame)
    """
    watched.inside.python(announcement).wait()
    follow(watch, lambda: watch.neighbour(eth0, address("10.0.0.2")).mac == bytes.fromhex("020000000033"))


def test_resolving_a_stale_neighbour_probes_it(watched: Watched) -> None:
    watched.host.sh("ping -c1 -W1 10.0.0.2")
    watched.host.sh("sysctl -qw net.ipv4.neigh.eth0.delay_first_probe_time=1")
    watch = watched.watch()
    eth0, host = watch.snapshot().links[0].ifindex, address("10.0.0.2")
    watched.host.ip("neigh change 10.0.0.2 dev eth0 nud stale")
    follow(watch, lambda: watch.neighbour(eth0, host).state == "stale")
    watch.resolve(eth0, host)
    follow(watch, lambda: watch.neighbour(eth0, host).state == "reachable")


def test_neighbours_of_a_recreated_link_are_forgotten(watched: Watched) -> None:
    watched.host.sh("ping -c1 -W1 200.200.200.1")
    watch = watched.watch()
    before = watch.snapshot().links[1].ifindex
    assert watch.neighbour(before, address("200.200.200.1")) is not None
    watched.host.ip("link delete eth1")
    join(watched.host, "eth1", watched.outside, "eth0")
    follow(watch, lambda: watch.snapshot().links[1].ifindex not in (0, before))
    assert watch.neighbour(before, address("200.200.200.1")) is None


def test_neighbours_of_a_renamed_link_are_known(watched: Watched) -> None:
    watch = watched.watch(outside="wan0")
    watched.host.sh("ping -c1 -W1 200.200.200.1")
    watched.host.ip("link set eth1 down")
    watched.host.ip("link set eth1 name wan0")
    watched.host.ip("link set wan0 up")
    watched.host.ip("neigh replace 200.200.200.1 lladdr 02:00:00:00:00:09 dev wan0")
    follow(watch, lambda: watch.snapshot().links[1].ifindex)
    settle(watch)
    found = watch.neighbour(watch.snapshot().links[1].ifindex, address("200.200.200.1"))
    assert found.mac == b"\2\0\0\0\0\x09"


def test_resolving_on_a_missing_interface_does_no_harm(watched: Watched) -> None:
    watch = watched.watch()
    for _ in range(500):
        watch.resolve(9999, address("10.0.0.2"))
    watched.host.ip("route add 44.0.0.0/8 via 10.0.0.2")
    follow(watch, lambda: find(watch, "44.0.0.1").gateway == address("10.0.0.2"))


def test_tun_starts_at_the_ip_header(watched: Watched) -> None:
    with open_tun(watched.host, "tun0"):
        watched.host.ip("addr add 200.1.1.1/32 dev tun0")
        watch = watched.watch(outside="tun0")
        link = watch.snapshot().links[1]
        assert (link.header_length, link.mac, link.up) == (0, b"", True)
        assert external(watch) == address("200.1.1.1")
        assert watch.complaints() == []


def test_complaints(watched: Watched) -> None:
    watched.host.ip("link add br0 type bridge")
    watched.host.ip("link set eth0 master br0")
    with open_tun(watched.host, "odd0", hardware=768):
        watch = watched.watch(outside="odd0")
        first, second = watch.complaints()
        assert watch.snapshot().links[1].header_length == UNSUPPORTED
    assert first == "interface eth0 (inside) belongs to br0; name br0 instead"
    assert second.startswith("interface odd0 (outside) is of hardware type 768")


def test_leaving_a_bridge_is_not_taken_for_deletion(watched: Watched) -> None:
    watched.host.ip("link add br0 type bridge")
    watched.host.ip("link set eth0 master br0")
    watch = watched.watch()
    watched.host.ip("link set eth0 nomaster")
    settle(watch)
    assert watch.snapshot().links[0].ifindex
    assert watch.complaints() == []


@pytest.mark.machine
def test_read_does_not_wait(watched: Watched) -> None:
    watch = watched.watch()
    settle(watch)
    start = time.monotonic()
    for _ in range(1000):
        assert watch.read(time.monotonic_ns()) is False
    assert time.monotonic() - start < 1
