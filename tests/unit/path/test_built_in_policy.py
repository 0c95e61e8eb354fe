"""The built-in policy, while nobody has touched the forward chain: masquerade outwards, route what stays inside."""

from __future__ import annotations

from tests.support.harness import HOWTO_ROUTES, Harness, unicast
from tests.support.packets import ping, tcp, udp

HERE, THERE = ("10.0.0.2", 4000), ("199.0.0.1", 53)


def fate(harness: Harness, packet: bytes) -> tuple[str, str]:
    """Return what becomes of a packet from inside: the link and its new source, or "" and the reason of its drop."""
    out = harness.send("inside", packet)
    if not out:
        return "", next(iter(harness.drops()), "")
    return out[0].link, ".".join(map(str, out[0].packet[12:16]))


def test_it_masquerades_outwards() -> None:
    for packet in (udp(HERE, THERE), tcp(HERE, THERE, "S"), ping("10.0.0.2", "199.0.0.1", 7)):
        assert fate(Harness(), packet) == ("outside", "200.200.200.200")


def test_packets_between_inside_networks_keep_their_source() -> None:
    harness = Harness(routes=[*HOWTO_ROUTES, ("192.168.9.0/24", unicast("inside", "10.0.0.9"))])
    assert fate(harness, udp(HERE, ("192.168.9.1", 53))) == ("inside", "10.0.0.2")


def test_strangers_get_nowhere_but_where_they_answer() -> None:
    harness = Harness()
    assert harness.send("outside", udp(THERE, HERE)) == []
    assert harness.drops() == {"policy_refused": 1}
