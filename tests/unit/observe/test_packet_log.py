"""Lines about packets that a rule wants logged, in the words of both kernels (original-systems 5.2 and 5.3)."""

from __future__ import annotations

import pytest

from fastmasq.observe.packet_log import packet_line
from fastmasq.policy.chains import RuleSet
from fastmasq.wire.numbers import ESP
from tests.support.harness import Harness
from tests.support.legacy import chains_after
from tests.support.packets import UDP, ipv4, ping, tcp, udp

LINKS = ["eth0", "eth1"]
HERE, THERE = ("10.0.0.2", 1025), ("199.0.0.1", 1723)


def logged(packet: bytes, *commands: str, link: str = "inside", compat: str = "2.2") -> list[str]:
    """Return the lines about one packet, under the rules that these commands make."""
    harness = Harness()
    rules: RuleSet = chains_after(*commands)
    harness.set_rule_set(rules)
    harness.send(link, packet)
    records, suppressed = harness.rule_table.drain_log()
    assert not suppressed
    return [packet_line(record, harness.compiled, LINKS, compat) for record in records]


# -- 2.2 ---------------------------------------------------------------------------------------------------------------


def test_s53_log_of_every_chain_with_the_addresses_it_sees():
    """T-1: output sees the masqueraded source; the time to live is counted down before forward (2.6)."""
    lines = logged(
        tcp(HERE, THERE, "S", identification=7, df=True, tos=0x10),
        "ipchains -A input -i eth0 -l -j ACCEPT",
        "ipchains -A forward -s 10.0.0.0/8",
        "ipchains -A forward -l -j MASQ",
        "ipchains -A output -p tcp -l -j ACCEPT",
    )
    rest = "L=40 S=0x10 I=7 F=0x4000 T={} SYN (#{})"
    assert lines == [
        f"Packet log: input ACCEPT eth0 PROTO=6 10.0.0.2:1025 199.0.0.1:1723 {rest.format(64, 1)}",
        f"Packet log: forward MASQ eth1 PROTO=6 10.0.0.2:1025 199.0.0.1:1723 {rest.format(63, 2)}",
        f"Packet log: output ACCEPT eth1 PROTO=6 200.200.200.200:1025 199.0.0.1:1723 {rest.format(63, 1)}",
    ]


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (udp(HERE, THERE, b"?"), "PROTO=17 10.0.0.2:1025 199.0.0.1:1723 L=29 S=0x00 I=0 F=0x0000 T=64 (#1)"),
        (tcp(HERE, THERE, "A"), "PROTO=6 10.0.0.2:1025 199.0.0.1:1723 L=40 S=0x00 I=0 F=0x0000 T=64 (#1)"),
        (ping(HERE[0], THERE[0], 5), "PROTO=1 10.0.0.2:8 199.0.0.1:0 L=28 S=0x00 I=0 F=0x0000 T=64 (#1)"),
        (
            ipv4(HERE[0], THERE[0], ESP, b"12345678"),
            "PROTO=50 10.0.0.2:65535 199.0.0.1:65535 L=28 S=0x00 I=0 F=0x0000 T=64 (#1)",
        ),
        (
            udp(HERE, THERE, b"?", options=bytes.fromhex("94040000")),
            "PROTO=17 10.0.0.2:1025 199.0.0.1:1723 L=33 S=0x00 I=0 F=0x0000 T=64 O=0x94040000 (#1)",
        ),
    ],
)
def test_s53_log_of_each_kind_of_packet(packet, said):
    assert logged(packet, "ipchains -A input -l -j DENY") == [f"Packet log: input DENY eth0 {said}"]


def test_s53_log_of_a_user_chain_and_of_a_rule_without_a_target():
    lines = logged(
        udp(HERE, THERE, b"?"),
        *("ipchains -N vpn", "ipchains -A vpn", "ipchains -A vpn -l", "ipchains -A vpn -l -j REJECT"),
        *("ipchains -A input -l -j vpn",),
    )
    assert [line.partition(" PROTO")[0] for line in lines] == [
        "Packet log: input vpn eth0",
        "Packet log: vpn - eth0",
        "Packet log: vpn REJECT eth0",
    ]
    assert [line.rpartition(" ")[2] for line in lines] == ["(#1)", "(#2)", "(#3)"]


def test_s53_log_of_a_first_fragment_speaks_for_the_others():
    """C-57: with everything put together, rules see a datagram once."""
    first = ipv4(HERE[0], THERE[0], UDP, udp(HERE, THERE, bytes(100))[20:60], identification=9, mf=True)
    assert logged(first, "ipchains -A input -l -j DENY") == [
        "Packet log: input DENY eth0 PROTO=17 10.0.0.2:1025 199.0.0.1:1723 L=60 S=0x00 I=9 F=0x2000 T=64 (#1)"
    ]


def test_s53_log_of_a_loop():
    rules = ("ipchains -N one", "ipchains -N two", "ipchains -A one -j two", "ipchains -A two -j one")
    assert logged(udp(HERE, THERE), *rules, "ipchains -A input -j one") == ["IP firewall: Loop detected at `two'."]


# -- 2.0 ---------------------------------------------------------------------------------------------------------------


def test_s52_log_of_every_chain():
    lines = logged(
        tcp(HERE, THERE, "S", identification=7, df=True, tos=0x10),
        "ipfwadm -I -a accept -W eth0 -o",
        "ipfwadm -F -a accept -m -o",
        "ipfwadm -O -a accept -P tcp -o",
        compat="2.0",
    )
    rest = "L=40 S=0x10 I=7 F=0x4000 T="
    assert lines == [
        f"IP fw-in acc eth0 TCP 10.0.0.2:1025 199.0.0.1:1723 {rest}64",
        f"IP fw-fwd acc/masq eth1 TCP 10.0.0.2:1025 199.0.0.1:1723 {rest}63",
        f"IP fw-out acc eth1 TCP 200.200.200.200:1025 199.0.0.1:1723 {rest}63",
    ]


@pytest.mark.parametrize(
    ("packet", "policy", "said"),
    [
        (udp(HERE, THERE, b"?"), "deny", "deny eth0 UDP 10.0.0.2:1025 199.0.0.1:1723 L=29"),
        (udp(HERE, THERE, b"?"), "reject", "rej eth0 UDP 10.0.0.2:1025 199.0.0.1:1723 L=29"),
        (ping(HERE[0], THERE[0], 5), "deny", "deny eth0 ICMP/8 10.0.0.2 199.0.0.1 L=28"),
        (ipv4(HERE[0], THERE[0], ESP, b"12345678"), "deny", "deny eth0 PROTO=50 10.0.0.2 199.0.0.1 L=28"),
    ],
)
def test_s52_log_of_each_kind_of_packet(packet, policy, said):
    line = f"IP fw-in {said} S=0x00 I=0 F=0x0000 T=64"
    assert logged(packet, f"ipfwadm -I -a {policy} -o", compat="2.0") == [line]


def test_s52_log_of_accounting_comes_in_and_out():
    lines = logged(udp(HERE, THERE), "ipfwadm -A -a -o", compat="2.0")
    assert [line.partition(" L=")[0] for line in lines] == [
        "IP fw-acct - eth0 UDP 10.0.0.2:1025 199.0.0.1:1723",
        "IP fw-acct - eth1 UDP 200.200.200.200:1025 199.0.0.1:1723",
    ]
    assert [line.rpartition(" ")[2] for line in lines] == ["T=64", "T=63"]


def test_s52_log_writes_out_the_options_word_by_word():
    packet = udp(HERE, THERE, b"?", options=bytes.fromhex("9404000001010101"))
    [line] = logged(packet, "ipfwadm -I -a deny -o", compat="2.0")
    assert line.endswith("T=64 O=0x94040000 O=0x01010101")


def test_s53_log_of_today_is_that_of_2_2():
    packet, rule = tcp(HERE, THERE, "S"), "ipchains -A input -l -j DENY"
    assert logged(packet, rule, compat="modern") == logged(packet, rule, compat="2.2")
    assert logged(packet, rule, compat="2.0") != logged(packet, rule, compat="2.2")
