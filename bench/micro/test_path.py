"""Nanoseconds per packet of checksum, parse, lookup, rewrite, session opening and the whole path over memory."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rows import ROUTE, ROUTE_KINDS, link_row
from fastmasq.path.rules import SHOWS, RuleTable, Shown
from fastmasq.policy.chains import Match, Rule, RuleSet
from fastmasq.policy.compile import LinkView, compile_chains
from fastmasq.ring.ring import RxRing, TxBatch
from fastmasq.table.limits import Limits
from fastmasq.table.masq import MasqTable
from fastmasq.wire.numbers import TCP, UDP
from fastmasq.wire.sums import internet_checksum, pseudo_header_sum
from fastmasq_bench.micro import drive

SECOND = 1_000_000_000
NOW_NS = 1000 * SECOND
ROUNDS = 10_000
GATEWAY, PEER = b"\x02\x00\x00\x00\x01\x01", b"\x02\x00\x00\x00\x01\x02"
INSIDE_NET, REMOTE, EXTERNAL = 0x0A000000, 0xC7000001, 0xC8C8C8C8
FRAME_OCTETS = 60
FEW = 4096  # sessions


def udp_frame(source: int, source_port: int, destination: int) -> bytes:
    """Return an Ethernet frame of 60 octets with a UDP datagram, checksums right."""
    payload = bytes(FRAME_OCTETS - 42)
    udp = struct.pack(">HHHH", source_port, 9, 8 + len(payload), 0) + payload
    checksum = internet_checksum(udp, pseudo_header_sum(source, destination, UDP, len(udp)))
    udp = udp[:6] + struct.pack(">H", checksum or 0xFFFF) + udp[8:]
    header = struct.pack(">BBHHHBBHII", 0x45, 0, 20 + len(udp), 1, 0x4000, 64, UDP, 0, source, destination)
    header = header[:10] + struct.pack(">H", internet_checksum(header)) + header[12:]
    return GATEWAY + PEER + b"\x08\x00" + header + udp


def flows(count: int) -> np.ndarray:
    """Return one frame for each of `count` flows of 100 ports a host, in random order."""
    frames = [udp_frame(INSIDE_NET + 2 + flow // 100, 10_000 + flow % 100, REMOTE) for flow in range(count)]
    order = np.random.default_rng(1).permutation(count)
    return np.frombuffer(b"".join(frames), "u1").reshape(count, FRAME_OCTETS)[order].copy()


class Path:
    """A forwarder between two memory links, with the routes of the HOWTO's network and both next hops known."""

    def __init__(self, capacity: int = 1_000_000) -> None:
        self.table = MasqTable(capacity, limits=Limits(ports_per_host=65535), now_ns=NOW_NS)
        self.forwarder = Forwarder(self.table)
        self.forwarder.set_renumbering(True)  # as the daemon does
        self.ring, self.sender = RxRing(), TxBatch()
        others = RxRing(), TxBatch()
        for number, (ring, sender) in enumerate(((self.ring, others[1]), (others[0], self.sender))):
            self.forwarder.attach(number, ring, sender)
            address = (INSIDE_NET + 1, EXTERNAL)[number]
            self.forwarder.set_link(number, link_row(side=number, mtu=1500, address=address, mac=GATEWAY))
        first = np.array([0, INSIDE_NET, INSIDE_NET + (1 << 24)], "u4")
        rows = np.zeros(3, ROUTE)
        rows["kind"] = ROUTE_KINDS["unicast"]
        rows["link"], rows["gateway"] = (1, 0, 1), (EXTERNAL + 1, 0, EXTERNAL + 1)
        self.forwarder.set_routes(first, rows)
        self.table.set_external(EXTERNAL, np.ones((3, 65536), bool))

    def run(self, frames: np.ndarray, rounds: int = 1) -> int:
        sent = drive.whole_path(self.forwarder, self.ring, self.sender, frames, rounds, NOW_NS)
        for link, hop in self.forwarder.wanted_hops():
            self.forwarder.set_neighbour(link, hop, PEER)
        return sent

    def open(self, frames: np.ndarray) -> None:
        """Open the sessions of these frames, with memory made ready when the table wants it, as the daemon does."""
        for first in range(0, len(frames), FEW):
            self.run(frames[first : first + FEW])
            if self.table.wants_memory:
                self.table.make_ready()
        self.run(frames)


def per_packet(benchmark, packets: int) -> None:
    """Have the report show the figure that matters."""
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_packet"] = round(benchmark.stats.stats.median * 1e9 / packets, 1)


@pytest.mark.parametrize("octets", [20, 40, 1480])
def test_checksum(benchmark, octets):
    data = np.arange(octets, dtype="u1") if octets < 256 else np.resize(np.arange(256, dtype="u1"), octets)
    benchmark(drive.checksum, data, ROUNDS)
    per_packet(benchmark, ROUNDS)


def test_parse(benchmark):
    frame = np.frombuffer(udp_frame(INSIDE_NET + 2, 4000, REMOTE), "u1").copy()
    assert benchmark(drive.parse, frame, ROUNDS) == ROUNDS
    per_packet(benchmark, ROUNDS)


def test_rewrite(benchmark):
    frame = np.frombuffer(udp_frame(INSIDE_NET + 2, 4000, REMOTE), "u1").copy()
    benchmark(drive.rewrite, Forwarder(MasqTable(1)), frame, ROUNDS)
    per_packet(benchmark, ROUNDS)


@pytest.mark.parametrize("count", [1, 1000, 50_000])
def test_lookup(benchmark, count):
    table = MasqTable(1_000_000, limits=Limits(ports_per_host=65535), now_ns=NOW_NS)
    table.set_external(EXTERNAL, np.ones((3, 65536), bool))
    keys = np.zeros((count, 2), "u8")
    for flow in range(count):
        source, port = INSIDE_NET + 2 + flow // 100, 10_000 + flow % 100
        assert isinstance(table.open(UDP, source, port, REMOTE, 9, NOW_NS), int)
        keys[flow] = (source << 32 | REMOTE, UDP << 56 | port << 32 | 9)
    keys = keys[np.random.default_rng(1).permutation(count)].copy()
    assert benchmark(table.find_many, keys) == count
    per_packet(benchmark, count)


@pytest.mark.parametrize("count", [1, 1000, 50_000])
def test_whole_path(benchmark, count):
    path = Path()
    frames = flows(count)
    rounds = max(1, 50_000 // count)
    path.open(frames)
    sent = benchmark(path.run, frames, rounds)
    assert sent >= count * rounds
    per_packet(benchmark, sent)


def numbered(count: int) -> RuleTable:
    """Return chains that accept and masquerade all, behind so many rules in each that fit nothing the bench sends."""
    rule_set = RuleSet()
    for chain in ("input", "forward", "output"):
        for number in range(count):
            rule_set.append(chain, Rule(match=Match(protocol=TCP, source=(number, 0xFFFFFFFF)), target="DENY"))
    rule_set.set_policy("forward", "MASQ")
    table = RuleTable(1_000_000)
    table.load(compile_chains(rule_set, [LinkView("eth0"), LinkView("eth1")]))
    return table


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_evaluate_chain(benchmark, count):
    table = numbered(count)
    shown = Shown(saddr=INSIDE_NET + 2, daddr=REMOTE, protocol=UDP, sport=4000, dport=9, shows=SHOWS["ports"])
    assert benchmark(lambda: table.rounds(0, ROUNDS, shown)) == ROUNDS
    per_packet(benchmark, ROUNDS)


@pytest.mark.parametrize("count", [0, 10, 100, 1000])
def test_whole_path_with_rules(benchmark, count):
    path = Path()
    if count:
        path.forwarder.set_chains(numbered(count))
    frames = flows(1000)
    path.open(frames)
    sent = benchmark(path.run, frames, 50)
    assert sent >= 50 * 1000
    per_packet(benchmark, sent)


def test_open_sessions(benchmark):
    frames = flows(50_000)

    def fresh() -> tuple[tuple, dict]:
        path = Path()
        path.run(frames[:64])
        return (path,), {}

    sent = benchmark.pedantic(lambda path: path.run(frames), setup=fresh, rounds=5)
    assert sent >= len(frames)
    per_packet(benchmark, sent)
