"""The gateway's own ICMP errors are limited, for each link and for each sender, while every drop is counted."""

from __future__ import annotations

from tests.support import packets
from tests.support.harness import Harness
from tests.support.model.state import INSIDE, OUTSIDE

LINK_RATE, LINK_BURST = 100, 50  # errors a second and at once, on one link
SOURCE_RATE = 10  # errors a second, and at once, to one sender


def answers(harness: Harness, sources: list[str], link: str = INSIDE) -> int:
    """Send a packet whose time runs out from each source; return how many are answered."""
    found = [harness.send(link, packets.udp((source, 4000), ("199.0.0.1", 33434), ttl=1)) for source in sources]
    return sum(len(out) for out in found)


def many_hosts(count: int) -> list[str]:
    return [f"10.7.{number // 200}.{number % 200 + 1}" for number in range(count)]


def test_one_sender_gets_its_share_and_no_more() -> None:
    harness = Harness(limit_errors=True)
    assert answers(harness, ["10.0.0.2"] * 500) == SOURCE_RATE
    assert harness.drops() == {"ttl_exceeded": 500}
    assert harness.forwarder.notes()["replies_suppressed"] == 500 - SOURCE_RATE
    harness.advance(0.5)
    assert answers(harness, ["10.0.0.2"] * 500) == SOURCE_RATE // 2


def test_a_link_answers_no_more_than_its_share() -> None:
    harness = Harness(limit_errors=True)
    assert answers(harness, many_hosts(500)) == LINK_BURST
    harness.advance(0.2)
    assert answers(harness, many_hosts(500)) <= LINK_RATE // 5
    assert harness.drops() == {"ttl_exceeded": 1000}


def test_a_noisy_sender_leaves_others_their_answers() -> None:
    """traceroute works for a host while another one loops."""
    harness = Harness(limit_errors=True)
    answers(harness, ["10.0.0.2"] * 500)
    assert answers(harness, ["10.0.0.3"] * 3) == 3


def test_the_links_have_shares_of_their_own() -> None:
    harness = Harness(limit_errors=True)
    harness.send(INSIDE, packets.udp("10.0.0.2:4000", "199.0.0.1:53"))
    answers(harness, many_hosts(500))
    [out] = harness.send(OUTSIDE, packets.udp("199.0.0.1:53", "200.200.200.200:4000", ttl=1))
    assert out.link == OUTSIDE
