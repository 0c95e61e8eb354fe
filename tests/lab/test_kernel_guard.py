"""The guard keeps what is ours from the host, and nothing else; every backend, on real interfaces."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import time
from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
import pytest

from fastmasq.errors import KernelError
from fastmasq.kernel import nft
from fastmasq.kernel.alterations import Alterations
from fastmasq.kernel.guard.backends import make_guard, open_guard
from fastmasq.kernel.guard.specification import Guard, GuardSpec
from fastmasq.kernel.ports import parse_ports
from fastmasq.lab import hosts
from fastmasq.ring.packet_socket import GUARD_MARK, attach_program
from tests.support.guarded_host import (
    EXTERNAL,
    FOREIGN,
    HOST_PORT,
    HOST_SERVICE,
    INSIDE,
    LOCAL,
    OUR_PORT,
    OURS,
    SPEC,
    TIMEOUT_S,
    outcome,
    ping,
    services,
    tcp,
    traces,
    udp,
)
from tests.support.harness import address
from tests.support.namespaces import Gateway, Namespace, join, open_tun

TCP, UDP, ICMP, GRE = socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP, socket.IPPROTO_GRE


NOTHING = np.zeros(65536, np.bool_)


@pytest.fixture(params=["nftables", "tc", "iptables"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Guarded:
    """A guard whose calls happen in the gateway host's namespace."""

    def __init__(self, host: Namespace, backend: str) -> None:
        self.host = host
        with host.entered():
            self.guard: Guard = open_guard(backend)

    def update(self, spec: GuardSpec = SPEC) -> None:
        with self.host.entered():
            self.guard.update(spec)

    def remove(self) -> bool:
        with self.host.entered():
            return self.guard.remove()


@pytest.fixture
def guarded(gateway: Gateway, backend: str) -> Guarded:
    guarded = Guarded(gateway.host, backend)
    guarded.update()
    return guarded


def test_without_a_guard_the_host_interferes(gateway: Gateway) -> None:
    """What the guard is for: none of this may happen once it is in force."""
    gateway.host.sh("sysctl -qw net.ipv4.ip_forward=1")
    with services(gateway.outside, (FOREIGN,), (80,)):
        assert tcp(gateway.inside, FOREIGN, 80) == "connected"
    assert tcp(gateway.outside, EXTERNAL, OUR_PORT) == "refused"
    assert udp(gateway.outside, EXTERNAL, OUR_PORT) == "refused"


def test_ports_of_ours_get_no_answer_from_the_host(gateway: Gateway, guarded: Guarded) -> None:
    for peer in (gateway.outside, gateway.inside):
        assert tcp(peer, EXTERNAL, OUR_PORT) == "silence"
        assert udp(peer, EXTERNAL, OUR_PORT) == "silence"
        assert udp(peer, EXTERNAL, OUR_PORT, size=4000) == "silence", "in fragments"


def test_the_host_keeps_its_own_ports(gateway: Gateway, guarded: Guarded) -> None:
    with services(gateway.host, (INSIDE, EXTERNAL), (22, HOST_PORT, HOST_SERVICE)):
        for peer, host_address in ((gateway.outside, EXTERNAL), (gateway.inside, EXTERNAL), (gateway.inside, INSIDE)):
            for port in (22, HOST_PORT, HOST_SERVICE):
                assert tcp(peer, host_address, port) == "connected"
                assert udp(peer, host_address, port) == "answered"
                assert udp(peer, host_address, port, size=4000) == "answered", "in fragments"
            assert tcp(peer, host_address, HOST_PORT + 1) == "refused"
            assert udp(peer, host_address, HOST_PORT + 1) == "refused"
    with services(gateway.host, (INSIDE,), (OUR_PORT,)):
        assert tcp(gateway.inside, INSIDE, OUR_PORT) == "connected", "ports are ours on the external address only"
    with services(gateway.outside, (FOREIGN,), (80,)):
        assert tcp(gateway.host, FOREIGN, 80) == "connected", "the host's own connections"
        assert udp(gateway.host, FOREIGN, 80) == "answered"


def test_ping_and_arp_work(gateway: Gateway, guarded: Guarded) -> None:
    for namespace in (gateway.host, gateway.inside, gateway.outside):
        namespace.sh("ip neigh flush all")
    assert ping(gateway.outside, EXTERNAL)
    assert ping(gateway.inside, INSIDE)
    assert ping(gateway.inside, EXTERNAL)
    assert ping(gateway.host, FOREIGN)
    assert ping(gateway.host, "10.0.0.2")


def test_ipv6_is_left_alone(gateway: Gateway, guarded: Guarded) -> None:
    gateway.host.ip("addr add fd00::1/64 dev eth0 nodad")
    gateway.inside.ip("addr add fd00::2/64 dev eth0 nodad")
    assert ping(gateway.inside, "fd00::1")


def test_nothing_is_forwarded_even_if_somebody_turns_it_on(gateway: Gateway, guarded: Guarded) -> None:
    gateway.host.sh("sysctl -qw net.ipv4.ip_forward=1")
    with services(gateway.outside, (FOREIGN,), (80,)), services(gateway.inside, ("10.0.0.2",), (80,)):
        assert tcp(gateway.inside, FOREIGN, 80) == "silence"
        assert udp(gateway.inside, FOREIGN, 80) == "silence"
        assert not ping(gateway.inside, FOREIGN)
        assert tcp(gateway.outside, "10.0.0.2", 80) == "silence"


def test_protocols_of_ours(gateway: Gateway, guarded: Guarded) -> None:
    def gre() -> str:
        with gateway.outside.entered():
            raw = socket.socket(type=socket.SOCK_RAW, proto=GRE)
        with raw:
            raw.settimeout(TIMEOUT_S)
            raw.setsockopt(socket.SOL_IP, 11, 1)  # IP_RECVERR
            raw.connect((EXTERNAL, 0))
            raw.send(bytes.fromhex("3001880b00000000"))
            return outcome(lambda: raw.recv(100), "answered")

    assert gre() == "Protocol not available", "an ICMP protocol unreachable of the host's"
    guarded.update(replace(SPEC, protocols=[GRE, 50]))
    assert gre() == "silence"


MARK = 0xFFFFF000 + 20  # SKF_AD_MARK
UNMARKED = [(0x20, 0, 0, MARK), (0x15, 0, 1, GUARD_MARK), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF)]


class Hook:
    """Puts IPv4 packets on the wire towards an interface of the host, and tells which get past the guard unmarked.

    A tap for one protocol, unlike one for all, sits behind the ingress hook. The host's own IP input drops what is
    marked, as another station's.
    """

    def __init__(self, host: Namespace, device: str, peer: Namespace, protocol: int = 0x0800) -> None:
        self._to = bytes.fromhex(host.sh(f"cat /sys/class/net/{device}/address").strip().replace(":", ""))
        with peer.entered():
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._wire.bind(("eth0", 0))
        with host.entered():
            self._behind = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol))
            attach_program(self._behind, UNMARKED)
            self._behind.bind((device, protocol))
            self._before = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            self._before.bind((device, 3))
        for tap in (self._behind, self._before):
            tap.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
            tap.settimeout(5)

    def close(self) -> None:
        for each in (self._wire, self._behind, self._before):
            each.close()

    def put(self, packet: bytes, to: bytes | None = None, ethertype: bytes = b"\x08\x00") -> None:
        self._wire.send((to or self._to) + b"\2\0\0\0\0\xee" + ethertype + packet)

    def passing(self, packets: list[bytes]) -> set[int]:
        """Send packets and return the identifications of those that got past; all must have been seen before it."""
        for packet in [*packets, END]:
            self.put(packet)
        seen = until_end(self._before)
        assert seen >= {identification(packet) for packet in packets}
        return until_end(self._behind)


class HookOfIp(Hook):
    """The same for a guard that IP itself asks: what gets past it comes to the next table, which remembers it."""

    def __init__(self, host: Namespace, device: str, peer: Namespace) -> None:
        super().__init__(host, device, peer)
        self._host = host
        host.sh(
            "nft add table ip seen; nft 'add set ip seen numbers { typeof ip id; size 65535; flags dynamic; }'; "
            "nft 'add chain ip seen past { type filter hook prerouting priority -290; }'; "
            "nft add rule ip seen past ip saddr 9.9.9.9 add @numbers { ip id }"
        )

    def close(self) -> None:
        super().close()
        self._host.sh("nft delete table ip seen")

    def passing(self, packets: list[bytes]) -> set[int]:
        for packet in [*packets, END]:
            self.put(packet)
        until_end(self._before)
        hosts.wait_until(lambda: END_NUMBER in self._past(), 5)
        return self._past() - {END_NUMBER}

    def _past(self) -> set[int]:
        listed = json.loads(self._host.sh("nft -j list set ip seen numbers"))["nftables"]
        return set(next(each["set"] for each in listed if "set" in each).get("elem", ()))


def hook_of(backend: str, host: Namespace, device: str, peer: Namespace) -> Hook:
    return HookOfIp(host, device, peer) if backend == "iptables" else Hook(host, device, peer)


def ipv4(number: int, destination: int, protocol: int, port: int = 0, offset: int = 0, options: int = 0) -> bytes:
    """Return a packet with `options` words of no-operations; `offset` is the fragment offset in 8 bytes.

    Whatever the protocol, 20 octets follow: iptables drops TCP with less.
    """
    header = struct.pack(
        ">BBHHHBBHII",
        0x45 + options,
        0,
        40 + 4 * options,
        number,
        offset,
        64,
        protocol,
        0,
        address("9.9.9.9"),
        destination,
    )
    header += b"\1" * 4 * options
    words = struct.unpack(f">{len(header) // 2}H", header)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack(">H", total ^ 0xFFFF) + header[12:]
    return header + struct.pack(">HHHH12x", 7, port, 8, 0)


def identification(packet: bytes) -> int:
    return int.from_bytes(packet[4:6], "big")


END_NUMBER = 0xFFFF
END = ipv4(END_NUMBER, 0xE0000001, UDP)


def until_end(tap: socket.socket) -> set[int]:
    numbers: set[int] = set()
    while END_NUMBER not in numbers:
        packet = tap.recv(2048)
        if packet[12:16] == socket.inet_aton("9.9.9.9"):
            numbers.add(identification(packet))
    return numbers - {END_NUMBER}


def should_pass(spec: GuardSpec, role: str, destination: int, protocol: int, port: int, offset: int) -> bool:
    """The guard's contract, said once more, slowly."""
    if destination in spec.external:
        if protocol in spec.protocols:
            return False
        if offset:
            return True
        ports = dict(zip((TCP, UDP), spec.external[destination], strict=True)).get(protocol)
        return ports is None or not ports[port]
    if destination in spec.local_addresses or destination >= address("224.0.0.0"):
        return True
    return role == "outside" and protocol == UDP and port == 68 and offset == 0


def ours(tcp: np.ndarray, udp: np.ndarray) -> dict:
    return {address(EXTERNAL): (tcp, udp)}


SPECS = {
    "plain": SPEC,
    "protocols": replace(SPEC, protocols=[GRE, 50], external=ours(parse_ports(OURS), parse_ports("0,7,9,33434-33534"))),
    "no address": replace(SPEC, external={}, local_addresses=SPEC.local_addresses[:2]),
    "two addresses": replace(
        SPEC, external={**SPEC.external, address("200.200.200.201"): (parse_ports("8,5353"), parse_ports("60999"))}
    ),
    "four addresses": replace(
        SPEC,
        external={
            address(f"200.200.200.{last}"): (parse_ports(tcp), parse_ports(udp))
            for last, tcp, udp in ((198, "1", ""), (200, "67-69", "0-65535"), (201, "", "1024"), (202, "8", "8"))
        },
    ),
    "no ports": replace(SPEC, external=ours(NOTHING, NOTHING)),
    "no local address": replace(SPEC, external={}, local_addresses=[]),
    "all ports, many addresses": replace(
        SPEC,
        external=ours(~NOTHING, parse_ports(OURS)),
        local_addresses=[*SPEC.local_addresses, *range(address("10.1.0.0"), address("10.1.1.0"))],
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_random_packets_meet_the_contract(gateway: Gateway, guarded: Guarded, backend: str, name: str) -> None:
    spec = SPECS[name]
    guarded.update(spec)
    chance = random.Random(name)
    destinations = [*map(address, LOCAL), *map(address, (FOREIGN, "200.200.200.201", "10.0.0.9", "10.1.0.77"))]
    destinations += map(address, ("224.0.0.251", "255.255.255.255", "223.255.255.255", "0.0.0.0", "127.0.0.1"))
    ports = [0, 7, 8, 67, 68, 69, 1023, 1024, 5352, 5353, 5354, 32767, 32768, 60999, 61000, 65535]
    for device, role, peer in (("eth0", "inside", gateway.inside), ("eth1", "outside", gateway.outside)):
        hook = hook_of(backend, gateway.host, device, peer)
        facts = [
            (
                chance.choice(destinations),
                chance.choice((TCP, TCP, UDP, UDP, ICMP, GRE, 50)),
                chance.choice([*ports, chance.randrange(65536)]),
                chance.choice((0, 0, 0, 185)),
            )
            for _ in range(3000)
        ]
        packets = [ipv4(number, *fact, options=chance.choice((0, 0, 1, 10))) for number, fact in enumerate(facts)]
        passed = hook.passing(packets)
        hook.close()
        for number, fact in enumerate(facts):
            assert (number in passed) == should_pass(spec, role, *fact), (role, str(IPv4Address(fact[0])), *fact[1:])


def test_frames_for_others_and_for_vlans_pass(gateway: Gateway, guarded: Guarded, backend: str) -> None:
    """As far as the guard sees any: IP itself drops frames for another station, and never gets those of a VLAN.

    A tag that says a priority alone is no VLAN's.
    """
    hook = hook_of(backend, gateway.host, "eth0", gateway.inside)
    transit = address(FOREIGN)
    hook.put(ipv4(1, transit, TCP, 80), to=b"\2\0\0\0\0\x99")
    hook.put(ipv4(2, transit, TCP, 80), to=b"\xff" * 6)
    hook.put(ipv4(3, transit, TCP, 80), ethertype=bytes.fromhex("810000140800"))
    hook.put(ipv4(4, transit, TCP, 80), ethertype=bytes.fromhex("88a800140800"))
    hook.put(ipv4(5, transit, TCP, 80))
    hook.put(ipv4(6, transit, TCP, 80), ethertype=bytes.fromhex("8100e0000800"))
    assert hook.passing([]) == ({2} if backend == "iptables" else {1, 2, 3, 4})
    hook.close()


def test_link_without_a_link_header(gateway: Gateway, backend: str) -> None:
    gateway.host.ip("link delete eth1")
    with open_tun(gateway.host, "tun0") as far_end:
        gateway.host.ip(f"addr add {EXTERNAL}/32 peer 200.200.200.1 dev tun0")
        gateway.host.ip("route add default dev tun0")
        guarded = Guarded(gateway.host, backend)

        def answers(packet: bytes) -> list[bytes]:
            os.write(far_end, packet)
            return read_ipv4(far_end)

        def syn(port: int) -> bytes:
            header = ipv4(1, address(EXTERNAL), TCP)[:20]
            return correct_tcp(header, struct.pack(">HHIIBBHHH", 7777, port, 1, 0, 0x50, 2, 1024, 0, 0))

        assert [packet[33] & 4 for packet in answers(syn(OUR_PORT))] == [4], "a RST from the host"
        guarded.update(replace(SPEC, inside=[], outside=["tun0"]))
        assert answers(syn(OUR_PORT)) == []
        assert [packet[33] & 4 for packet in answers(syn(HOST_PORT))] == [4]
        assert guarded.remove()


def read_ipv4(descriptor: int) -> list[bytes]:
    """Return the IPv4 packets that come out of a tun interface in a while."""
    packets = []
    while select.select([descriptor], [], [], TIMEOUT_S)[0]:
        packet = os.read(descriptor, 2048)
        if packet[0] >> 4 == 4:
            packets.append(packet)
    return packets


def correct_tcp(header: bytes, segment: bytes) -> bytes:
    """Return header + segment with the right length and checksums."""
    from scapy.layers.inet import IP

    header = header[:2] + b"\0\0" + header[4:10] + b"\0\0" + header[12:]
    packet = IP(header + segment)
    del packet.len, packet.chksum
    del packet.payload.chksum
    return bytes(packet)


def test_interface_that_appears_is_guarded_after_an_update(gateway: Gateway, backend: str) -> None:
    gateway.host.ip("link delete eth1")
    guarded = Guarded(gateway.host, backend)
    guarded.update()
    assert guarded.guard.guarded == ("eth0",)
    join(gateway.host, "eth1", gateway.outside, "eth0")
    gateway.host.ip(f"addr add {EXTERNAL}/24 dev eth1")
    gateway.outside.ip("addr add 200.200.200.1/24 dev eth0")
    guarded.update()
    assert guarded.guard.guarded == ("eth0", "eth1")
    assert tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence"
    assert tcp(gateway.outside, EXTERNAL, HOST_PORT) == "refused"


def test_interface_may_vanish_and_return(gateway: Gateway, guarded: Guarded) -> None:
    for _ in range(3):
        gateway.host.ip("link delete eth1")
        guarded.update()
        assert guarded.guard.guarded == ("eth0",)
        join(gateway.host, "eth1", gateway.outside, "eth0")
        gateway.host.ip(f"addr add {EXTERNAL}/24 dev eth1")
        gateway.outside.ip("addr add 200.200.200.1/24 dev eth0")
        guarded.update()
        assert tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence"
    gateway.host.ip("link delete eth0")
    gateway.host.ip("link delete eth1")
    guarded.update()
    assert guarded.guard.guarded == ()
    guarded.remove()


def past_the_guard(host: Namespace, backend: str) -> int:
    """Return how many IPv4 packets the host's IP input has got, or, where it asks the guard itself, has delivered."""
    names, values = host.sh("grep ^Ip: /proc/net/snmp").splitlines()
    return int(values.split()[names.split().index("InDelivers" if backend == "iptables" else "InReceives")])


def test_updates_leave_no_gap(gateway: Gateway, guarded: Guarded, backend: str) -> None:
    assert ping(gateway.outside, EXTERNAL)
    flood = gateway.outside.python(
        f"""if True:
        import socket
        wire = socket.socket(type=socket.SOCK_DGRAM)
        print("ready")
        while True:
            wire.sendto(b"x", ("{EXTERNAL}", {OUR_PORT}))
        """
    )
    try:
        assert flood.stdout.readline() == "ready\n"
        before = past_the_guard(gateway.host, backend)
        for number in range(100):
            ports = parse_ports(OURS) & (np.arange(65536) != 30_000 + number)
            others = {address(f"200.200.200.{199 + number % 4}"): (ports, NOTHING)}  # one of them is the flooded one
            guarded.update(replace(SPEC, external={**others, **ours(parse_ports(OURS), ports)}))
        assert past_the_guard(gateway.host, backend) == before
    finally:
        flood.kill()
        flood.communicate()


def test_an_address_that_goes_leaves_nothing(gateway: Gateway, guarded: Guarded, backend: str) -> None:
    before = traces(gateway.host)
    guarded.update(replace(SPEC, external={**SPEC.external, address("200.200.200.201"): (~NOTHING, ~NOTHING)}))
    guarded.update()
    if backend != "tc":  # whose programs have numbers of their own
        assert traces(gateway.host) == before
    assert "201" not in gateway.host.sh("nft list ruleset; iptables-legacy-save")


def test_other_ports_need_no_other_program_of_tc(gateway: Gateway) -> None:
    """They are in force at once, on every link; a program that somebody has taken away is another matter."""
    guarded = Guarded(gateway.host, "tc")
    guarded.update()
    before = traces(gateway.host)
    with services(gateway.host, (EXTERNAL,), (OUR_PORT,)):
        for is_ours in (False, True, False):
            ports = parse_ports(OURS) & ((np.arange(65536) != OUR_PORT) | is_ours)
            guarded.update(replace(SPEC, external=ours(ports, ports)))
            assert traces(gateway.host) == before
            for peer in (gateway.outside, gateway.inside):
                assert tcp(peer, EXTERNAL, OUR_PORT) == ("silence" if is_ours else "connected")
                assert udp(peer, EXTERNAL, OUR_PORT) == ("silence" if is_ours else "answered")
    guarded.update(replace(SPEC, external=ours(parse_ports(OURS), NOTHING), protocols=[GRE]))
    assert traces(gateway.host) != before
    assert tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence"
    assert udp(gateway.outside, EXTERNAL, OUR_PORT) == "refused"


def test_removal_leaves_no_trace(gateway: Gateway, backend: str) -> None:
    before = traces(gateway.host)
    guarded = Guarded(gateway.host, backend)
    guarded.update()
    assert traces(gateway.host) != before
    assert guarded.remove() is True
    assert traces(gateway.host) == before
    assert guarded.remove() is False


def test_what_others_installed_stays(gateway: Gateway, backend: str) -> None:
    gateway.host.sh("nft add table netdev other; tc qdisc add dev eth0 clsact; tc qdisc add dev eth1 ingress")
    gateway.host.sh("tc filter add dev eth1 ingress pref 7 protocol ip u32 match u32 0 0")
    gateway.host.sh("iptables-legacy -t raw -N fast; iptables-legacy -t raw -A PREROUTING -p udp --dport 9 -j fast")
    before = traces(gateway.host)
    guarded = Guarded(gateway.host, backend)
    guarded.update()
    assert tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence"
    guarded.remove()
    assert traces(gateway.host) == before


def test_filters_of_others_are_asked_after_ours(gateway: Gateway) -> None:
    guarded = Guarded(gateway.host, "tc")
    guarded.update()
    gateway.host.sh("tc filter add dev eth1 ingress pref 7 protocol ip bpf bytecode '1,6 0 0 2,' direct-action")  # drop
    assert not ping(gateway.outside, EXTERNAL)
    guarded.remove()
    assert "clsact" in traces(gateway.host), "the filter of others still needs it"
    assert not ping(gateway.outside, EXTERNAL)


def test_it_stays_in_force_when_the_process_is_killed(gateway: Gateway, backend: str) -> None:
    before = traces(gateway.host)
    installer = gateway.host.python(
        f"""if True:
        import time
        from fastmasq.kernel.guard.backends import make_guard
        from tests.support.guarded_host import SPEC
        make_guard({backend!r}).install(SPEC)
        print("ready")
        time.sleep(60)
        """
    )
    assert installer.stdout.readline() == "ready\n"
    installer.send_signal(signal.SIGKILL)
    installer.communicate()
    assert tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence"
    with gateway.host.entered():
        assert make_guard(backend, {"qdiscs": []}).remove() is True
    assert tcp(gateway.outside, EXTERNAL, OUR_PORT) == "refused"
    assert traces(gateway.host) == before


def test_auto_takes_one_that_works(gateway: Gateway) -> None:
    with gateway.host.entered():
        assert open_guard("auto").backend in ("nftables", "tc")
        assert open_guard("none").describe().startswith("none: the host sees our packets too")


def test_a_backend_that_does_not_work_says_why(gateway: Gateway) -> None:
    program = """if True:
        import os
        from fastmasq.errors import KernelError
        from fastmasq.kernel.guard import nftables, tc
        from fastmasq.kernel.guard.backends import open_guard
        from fastmasq.kernel.links import list_interfaces
        list_interfaces()  # imports what nobody might not be able to read
        os.setuid(65534)
        for backend in ("nftables", "tc", "iptables"):
            try:
                open_guard(backend)
            except KernelError as error:
                print(error)
        print(open_guard("auto").backend)
    """
    said = gateway.host.python(program).communicate()[0].splitlines()
    assert said[0].startswith('guard "nftables": ') and "not permitted" in said[0]
    assert said[1] == 'guard "tc": loading an eBPF program needs CAP_BPF and CAP_NET_ADMIN; run as root'
    assert said[2].startswith('guard "iptables": ') and "denied" in said[2]
    assert said[3] == "none"


def test_a_taken_priority_is_named(gateway: Gateway) -> None:
    gateway.host.sh("tc qdisc add dev eth1 clsact")
    gateway.host.sh("tc filter add dev eth1 ingress pref 1 protocol ip u32 match u32 0 0")
    guarded = Guarded(gateway.host, "tc")
    with pytest.raises(KernelError, match="cannot attach a filter with priority 1 to the ingress of eth1"):
        guarded.update()
    guarded.remove()


CLASSIC_PROGRAM = "bpf bytecode '1,6 0 0 4294967295,' direct-action"  # says: go on with the next filter
ALTERATIONS = {
    "tc": {
        "tc qdisc del dev eth1 clsact": ("eth1",),
        "tc filter del dev eth0 ingress": ("eth0",),
        f"tc filter replace dev eth1 ingress pref 1 handle 0xfa57 protocol all {CLASSIC_PROGRAM}": ("eth1",),
    },
    "nftables": {
        "nft flush ruleset": ("eth0", "eth1"),
        "nft flush chain netdev fastmasq link_eth1": ("eth1",),
        "nft flush set netdev fastmasq external": ("eth0", "eth1"),
        "nft 'add table netdev fastmasq { flags dormant; }'": ("eth0", "eth1"),
    },
    "iptables": {
        "iptables-legacy -t raw -F": ("eth0", "eth1"),
        "iptables-legacy -t raw -D PREROUTING -i eth1 -j fastmasq-outside": ("eth0", "eth1"),
    },
}


def test_what_somebody_alters_is_noticed_and_put_back(gateway: Gateway, guarded: Guarded, backend: str) -> None:
    with gateway.host.entered():
        guard = guarded.guard
        assert guard.look() == ()
        before = guard.describe()
        for command, links in ALTERATIONS[backend].items():
            gateway.host.sh(command)
            assert tuple(sorted(guard.look())) == links, command
            assert f"missing at {links[0]}" in guard.describe()
            guard.update(SPEC)
            assert guard.look() == (), command
            assert guard.describe() == before
            assert tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence", command
        gateway.host.sh("nft add table netdev other; tc qdisc replace dev eth0 root pfifo; iptables-legacy -t raw -N x")
        assert guard.look() == (), "of others"


def test_a_link_that_went_or_was_made_anew_is_not_taken_for_altered(
    gateway: Gateway, guarded: Guarded, backend: str
) -> None:
    gateway.host.ip("link delete eth1")
    with gateway.host.entered():
        assert set(guarded.guard.look()) <= {"eth0"}, "iptables' rules name it still, and nftables' set is of both"
        join(gateway.host, "eth1", gateway.outside, "eth0")
        assert "eth1" not in guarded.guard.look()
        guarded.guard.update(SPEC)
        assert guarded.guard.look() == ()


def test_a_link_that_refuses_it_takes_it_from_no_other(gateway: Gateway) -> None:
    guarded = Guarded(gateway.host, "tc")
    gateway.host.sh("tc qdisc add dev eth0 clsact")
    gateway.host.sh("tc filter add dev eth0 ingress pref 1 protocol ip u32 match u32 0 0")
    with pytest.raises(KernelError, match="priority 1 to the ingress of eth0"):
        guarded.update()
    assert guarded.guard.describe().endswith("at the ingress of eth1; missing at eth0")
    assert tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence"


@pytest.mark.parametrize(
    ("command", "is_ours"),
    [
        ("tc qdisc add dev eth0 clsact", True),
        ("tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress pref 7 protocol ip u32 match u32 0 0", True),
        ("nft add table netdev fastmasq; nft add chain netdev fastmasq x", True),
        ("nft add table ip fastmasq", True),
        ("nft add table ip other; nft add chain ip other x; nft add rule ip other x accept; nft flush ruleset", False),
        ("tc qdisc replace dev eth0 root pfifo", False),
        ("ip address add 10.1.1.1/32 dev lo", False),
    ],
)
def test_the_kernel_tells_at_once_of_what_may_be_ours(gateway: Gateway, command: str, is_ours: bool) -> None:
    with gateway.host.entered(), contextlib.closing(Alterations()) as alterations:
        assert alterations.read() is False
        gateway.host.sh(command)
        heard = bool(select.select([alterations], [], [], 5 if is_ours else 0)[0])
        assert heard or not is_ours
        assert alterations.read() is is_ours


def test_what_comes_between_a_transaction_and_the_look_at_it_is_not_taken_for_ours(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule set that somebody flushes just then (`systemctl restart nftables` while we start) is put back as well."""
    run, scripts = nft.run, []

    def run_and_flush(purpose: str, *arguments: str, script: str | None = None) -> str:
        result = run(purpose, *arguments, script=script)
        if script is not None:
            scripts.append(script)
            if len(scripts) == 1:
                gateway.host.sh("nft flush ruleset")
        return result

    guarded = Guarded(gateway.host, "nftables")
    monkeypatch.setattr(nft, "run", run_and_flush)
    guarded.update()
    assert len(scripts) == 2
    assert tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence"
    with gateway.host.entered():
        assert guarded.guard.look() == ()


@pytest.mark.machine
def test_updates_are_quick(gateway: Gateway, guarded: Guarded) -> None:
    start = time.monotonic()
    for _ in range(5):
        guarded.update()
    assert time.monotonic() - start < 2.5


def test_describe_names_backend_and_interfaces(guarded: Guarded, backend: str) -> None:
    assert guarded.guard.describe().startswith(f"{backend}: ")
    assert guarded.guard.describe().endswith("at the ingress of eth0, eth1")


def test_no_descriptors_are_leaked(guarded: Guarded) -> None:
    def count() -> int:
        return int(subprocess.run("ls /proc/$PPID/fd | wc -l", shell=True, capture_output=True, check=True).stdout)

    guarded.update()
    before = count()
    for _ in range(50):
        guarded.update()
    assert count() < before + 25, "less than one for every other update"
