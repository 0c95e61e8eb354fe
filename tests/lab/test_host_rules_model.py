"""Random rule sets on the host's own packets: what nftables does to real packets is what plain Python says of them."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet as Frame
from scapy.packet import Raw

from fastmasq.kernel.host_rules.ruleset import HostRules
from fastmasq.policy.chains import (
    ACCEPT,
    DENY,
    INPUT,
    OUTPUT,
    REJECT,
    RETURN,
    Match,
    Rule,
    RuleSet,
)
from fastmasq.policy.evaluate import Packet, evaluate
from tests.support.harness import address
from tests.support.namespaces import Gateway

# `arrived` is filled before the rules judge, `input` and `output` behind them, `rejected` with what an answer quotes.
PROBES = """
table ip probe {
    set arrived { typeof ip id; size 65535; flags dynamic; }
    set input { typeof ip id; size 65535; flags dynamic; }
    set output { typeof ip id; size 65535; flags dynamic; }
    set rejected { typeof ip id; size 65535; flags dynamic; }
    chain before { type filter hook prerouting priority -460; add @arrived { ip id }; }
    chain behind { type filter hook prerouting priority 0; add @input { ip id }; drop; }
    chain answers { type filter hook output priority -100;
        icmp type destination-unreachable icmp code 3 add @rejected { @th,96,16 } drop
    }
    chain leaving { type filter hook postrouting priority 0; add @output { ip id }; drop; }
}
"""
ADDRESSES = {"lo": (0x7F000001,), "eth0": (0x0A000001,), "eth1": (0xC8C8C8C8,)}
ICMP_ERRORS = (3, 4, 5, 11, 12)


class Probed:
    """A gateway host whose packets are watched on both sides of the rules, and its peers' wires."""

    def __init__(self) -> None:
        self.network = Gateway()
        self.host = self.network.host
        self.host.sh(f"nft -f - <<'END'\n{PROBES}\nEND\nsysctl -qw net.ipv4.icmp_ratemask=0")
        self.wires = {"eth0": self._wire("eth0", self.network.inside), "eth1": self._wire("eth1", self.network.outside)}
        with self.host.entered():
            self.local = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self.rules = HostRules()

    def close(self) -> None:
        for each in (self.local, *(wire for wire, _ in self.wires.values())):
            each.close()
        self.network.remove()

    def _wire(self, device: str, peer: object) -> tuple[socket.socket, bytes]:
        mac = self.host.sh(f"cat /sys/class/net/{device}/address").strip().replace(":", "")
        with peer.entered():
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            wire.bind(("eth0", 0))
        return wire, bytes.fromhex(mac) + b"\2\0\0\0\0\xee\x08\x00"

    def input(self, packets: Sequence[Packet]) -> list[str]:
        """Have packets arrive and return what became of each."""
        for number, packet in enumerate(packets, 1):
            wire, header = self.wires[packet.interface]
            wire.send(header + bytes(frame(packet, number)))
        last = time.monotonic() + 5
        while len(packets) not in self._numbers("arrived"):
            assert time.monotonic() < last
        passed, rejected = self._numbers("input"), self._numbers("rejected")
        assert not passed & rejected
        return [
            ACCEPT if number in passed else REJECT if number in rejected else DENY
            for number in range(1, len(packets) + 1)
        ]

    def output(self, packets: Sequence[Packet]) -> list[bool]:
        """Have the host send packets and return which of them left."""
        for number, packet in enumerate(packets, 1):
            with contextlib.suppress(PermissionError):
                self.local.sendto(bytes(frame(packet, number)), (str(IPv4Address(packet.destination)), 0))
        passed = self._numbers("output")
        return [number in passed for number in range(1, len(packets) + 1)]

    def put_in_force(self, rule_set: RuleSet) -> None:
        self.host.sh("for each in arrived input output rejected; do nft flush set ip probe $each; done")
        with self.host.entered():
            self.rules.update(rule_set, ADDRESSES)
            self.rules.collect(rule_set)  # what an equal rule of the set before has counted
        rule_set.zero()

    def counted(self, rule_set: RuleSet) -> Counter[tuple[str, int]]:
        """Return how many packets each rule has counted by itself, and each policy (number 0)."""
        with self.host.entered():
            self.rules.collect(rule_set)
        found: Counter[tuple[str, int]] = Counter()
        for chain in rule_set.chains.values():
            found[chain.name, 0] = chain.packets
            for number, counted in enumerate(chain.rules, 1):
                found[chain.name, number] = counted.packets
        return found

    def _numbers(self, name: str) -> set[int]:
        listed = json.loads(self.host.sh(f"nft -j list set ip probe {name}"))["nftables"]
        return set(listed[1]["set"].get("elem", ()))


@pytest.fixture(scope="module")
def probed() -> Iterator[Probed]:
    probed = Probed()
    yield probed
    probed.close()


def frame(packet: Packet, number: int) -> Frame:
    """Return a packet with right checksums; a fragment is made of noise."""
    source, destination = str(IPv4Address(packet.source)), str(IPv4Address(packet.destination))
    header = IP(src=source, dst=destination, id=number, proto=packet.protocol, tos=packet.tos)
    if packet.fragment:
        header.frag = 185
        return header / Raw(bytes(range(40)))
    ports = {"sport": packet.source_port, "dport": packet.destination_port}
    match packet.protocol:
        case 1:
            return header / ICMP(type=packet.source_port, code=packet.destination_port) / Raw(bytes(28))
        case 6:
            flags = "S" if packet.syn else "A" if packet.ack else "F"
            return header / TCP(flags=flags, **ports)
        case 17:
            return header / UDP(**ports)
    return header / Raw(bytes(40))


def network(text: str) -> tuple[int, int]:
    parsed = IPv4Network(text)
    return int(parsed.network_address), int(parsed.netmask)


INSIDE = [address(text) for text in ("10.0.0.2", "10.0.1.7", "10.9.1.7")]
OUTSIDE = [address(text) for text in ("199.0.0.1", "200.200.200.1")]
OWN = [address(text) for text in ("10.0.0.1", "200.200.200.200")]
NETWORKS = st.one_of(
    st.just((0, 0)),
    st.sampled_from(
        [network(text) for text in ("10.0.0.0/8", "10.0.0.0/24", "200.200.200.0/25", "10.0.0.2", "128.0.0.0/1")]
    ),
    st.just((address("10.0.1.0"), address("255.0.255.0"))),
    st.just((address("0.0.0.1"), address("0.0.0.1"))),
)
PORTS = st.sampled_from((0, 3, 8, 11, 22, 53, 255, 256, 1024, 65535))
RANGES = st.one_of(
    st.just(()),
    st.lists(st.tuples(PORTS, PORTS).map(sorted).map(tuple), min_size=1, max_size=3).map(tuple),
    st.just(((0, 65535),)),
)
PROTOCOLS = st.sampled_from((0, 1, 6, 6, 17, 17, 47, 50, 300))
RARELY = st.sampled_from((False, False, False, True))
USERS = ("vpn", "a-b", "c")


@st.composite
def rules(draw: st.DrawFn, targets: Sequence[str]) -> Rule:
    match = Match(
        source=draw(NETWORKS),
        destination=draw(NETWORKS),
        protocol=draw(PROTOCOLS),
        source_ports=draw(RANGES),
        destination_ports=draw(RANGES),
        interface=draw(st.sampled_from(("", "", "", "eth0", "eth+", "eth1", "lo", "+", "nosuch0", "a-name-too-long0"))),
        interface_address=draw(st.sampled_from((0, 0, 0, *OWN, address("9.9.9.9")))),
        syn=draw(st.sampled_from((None, None, None, True, False))),
        ack=draw(RARELY),
        fragment=draw(st.sampled_from((None, None, None, True, False))),
        swapped_too=draw(RARELY),
        not_source=draw(RARELY),
        not_destination=draw(RARELY),
        not_protocol=draw(RARELY),
        not_source_ports=draw(RARELY),
        not_destination_ports=draw(RARELY),
        not_interface=draw(RARELY),
    )
    return Rule(match=match, target=draw(st.sampled_from(targets)))


@st.composite
def rule_sets(draw: st.DrawFn) -> RuleSet:
    """A set whose user chains call each other in any way, loops too."""
    result = RuleSet()
    for name in USERS:
        result.new_chain(name)
    result.set_policy(INPUT, draw(st.sampled_from((ACCEPT, DENY, REJECT))))
    result.set_policy(OUTPUT, draw(st.sampled_from((ACCEPT, DENY, REJECT))))
    targets = ("", ACCEPT, DENY, REJECT, RETURN, *USERS, *USERS)
    for name in (*USERS, INPUT, OUTPUT):
        for rule in draw(st.lists(rules(targets), max_size=5)):
            result.append(name, rule)
    return result


@st.composite
def packets(draw: st.DrawFn, chain: str) -> Packet:
    inside = draw(st.booleans())
    far, interface = draw(st.sampled_from(INSIDE if inside else OUTSIDE)), "eth0" if inside else "eth1"
    protocol = draw(st.sampled_from((1, 6, 6, 17, 17, 47, 50)))
    source, destination = (far, draw(st.sampled_from(OWN))) if chain == INPUT else (draw(st.sampled_from(OWN)), far)
    flags = draw(st.sampled_from(("syn", "ack", ""))) if protocol == 6 else ""
    ports = st.sampled_from((0, 3 if chain == INPUT else 5, 8, 11, 13)) if protocol == 1 else PORTS
    return Packet(
        source=source,
        destination=destination,
        protocol=protocol,
        source_port=draw(ports),
        destination_port=draw(ports),
        syn=flags == "syn",
        ack=flags == "ack",
        fragment=draw(RARELY),
        interface=interface,
        interface_address=ADDRESSES[interface][0],
    )


def expected_input(rule_set: RuleSet, packet: Packet) -> str:
    """T-9: nothing is said in answer to ICMP errors and later fragments."""
    verdict = evaluate(rule_set, INPUT, packet).verdict
    silent = packet.fragment or (packet.protocol == 1 and packet.source_port in ICMP_ERRORS)
    if verdict == REJECT and not silent:
        return REJECT
    return ACCEPT if verdict == ACCEPT else DENY


def matches_by_rule(rule_set: RuleSet, chain: str, judged: Sequence[Packet]) -> Counter[tuple[str, int]]:
    if not rule_set.chain(chain).rules and rule_set.chain(chain).policy == ACCEPT:
        return Counter()  # then nftables does not look
    steps = [step for packet in judged for step in evaluate(rule_set, chain, packet).steps]
    return Counter((step.chain, step.number) for step in steps)


def assert_equal(
    rule_set: RuleSet, chain: str, judged: Sequence[Packet], got: Sequence[object], expected: Sequence[object]
) -> None:
    """Compare, and show of the first packet that differs which rules should have matched it."""
    for packet, is_, should in zip(judged, got, expected, strict=True):
        steps = evaluate(rule_set, chain, packet).steps
        rules = [rule_set.chain(step.chain).rules[step.number - 1].rule for step in steps if step.number]
        assert is_ == should, f"{packet}\n{steps}\n{rules}"


CALM = settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.generate],
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@CALM
@given(rule_set=rule_sets(), judged=st.lists(packets(INPUT), min_size=40, max_size=60))
def test_t5_input_judges_the_hosts_packets_as_the_evaluator_does(
    probed: Probed, rule_set: RuleSet, judged: list[Packet]
) -> None:
    probed.put_in_force(rule_set)
    assert_equal(rule_set, INPUT, judged, probed.input(judged), [expected_input(rule_set, each) for each in judged])
    got, should = probed.counted(rule_set), matches_by_rule(rule_set, INPUT, judged)
    differing = [
        (*key, got[key], should[key], str(rule_set.chain(key[0]).rules)) for key in got if got[key] != should[key]
    ]
    assert not differing


@CALM
@given(rule_set=rule_sets(), judged=st.lists(packets(OUTPUT), min_size=40, max_size=60))
def test_t5_output_judges_the_hosts_packets_as_the_evaluator_does(
    probed: Probed, rule_set: RuleSet, judged: list[Packet]
) -> None:
    probed.put_in_force(rule_set)
    left = [evaluate(rule_set, OUTPUT, packet).verdict == ACCEPT for packet in judged]
    assert_equal(rule_set, OUTPUT, judged, probed.output(judged), left)
