"""The one-line notation of packets: what is shown can be read back."""

from __future__ import annotations

import pytest

from tests.support.notation import NotationError, bind, read_packet, show

LINES = [
    "tcp 10.0.0.2:4000 > 199.0.0.1:80 S seq=1",
    "tcp 10.0.0.2:4000 > 199.0.0.1:80 - seq=0",
    "tcp 10.0.0.2:4000 > 199.0.0.1:80 FAPU seq=4294967295 ack=9 win=1 options=0103030700000000 len=3",
    "udp 10.0.0.2:4000 > 199.0.0.1:53 len=32 ttl=1 tos=3 ipid=77 df",
    "udp 10.0.0.2:4000 > 199.0.0.1:53 data=0102 sum=none",
    "icmp 10.0.0.2 > 199.0.0.1 echo id=7 seq=1 len=56",
    "icmp 10.0.0.2 > 199.0.0.1 77",
    "icmp 199.0.0.254 > 200.200.200.200 unreachable/4 mtu=1280 cut=28 quote={udp 10.0.0.2:40 > 199.0.0.1:53}",
    "ip 10.0.0.2 > 199.0.0.1 proto=47 len=20 opt=01010100",
    "ip 10.0.0.2 > 199.0.0.1 proto=17 len=16 mf offset=64",
]


@pytest.mark.parametrize("line", LINES)
def test_shown_packets_read_back(line: str) -> None:
    packet = read_packet(line)
    assert read_packet(show(packet)) == packet


def test_show_names_what_is_wrong() -> None:
    assert show(read_packet("udp 10.0.0.2:40 > 199.0.0.1:53 sum=bad")).endswith("[UDP checksum]")
    error = "icmp 1.1.1.1 > 2.2.2.2 unreachable/3 quote={udp 10.0.0.2:40 > 199.0.0.1:53 ipsum=bad}"
    assert "[quote: IPv4 checksum]" in show(read_packet(error))
    assert show(b"\x45").startswith("not a packet")


def test_variables_take_the_value_seen() -> None:
    variables: dict[str, int] = {}
    line = "udp 200.200.200.200:$p > 199.0.0.1:53"
    seen = read_packet("udp 200.200.200.200:1026 > 199.0.0.1:53")
    bind(line, seen, variables)
    assert variables == {"p": 1026}
    assert read_packet(line, variables) == seen


@pytest.mark.parametrize(
    "line",
    [
        "tcp 10.0.0.2:4000 199.0.0.1:80",
        "sctp 10.0.0.2:4000 > 199.0.0.1:80",
        "udp 10.0.0.2 > 199.0.0.1:80",
        "udp 10.0.0.2:$p > 199.0.0.1:80",
        "udp 10.0.0.2:1 > 199.0.0.1:80 colour=3",
        "icmp 1.1.1.1 > 2.2.2.2 unreachable/3 quote={udp 10.0.0.2:40 > 199.0.0.1:53",
    ],
)
def test_mistakes_are_named(line: str) -> None:
    with pytest.raises(NotationError):
        read_packet(line)
