"""Private sources that rules let leave outside as they are: they pass, and are counted for their host."""

from __future__ import annotations

import pytest

from fastmasq.path.rows import UNTRANSLATED
from fastmasq.policy.chains import RuleSet
from tests.support.harness import HOWTO_ROUTES, Harness, address, unicast
from tests.support.packets import TCP, UDP, decode, udp
from tests.support.path_network import HOST, INSIDE, OTHER_HOST, OUTSIDE, THERE, answer, cut, only, passes, query


def forward(harness: Harness, policy: str) -> None:
    """Have the forward chain do this with everything."""
    rule_set = RuleSet(default_forward=False)
    rule_set.set_policy("forward", policy)
    harness.set_rule_set(rule_set)


def accepting(**settings) -> Harness:
    harness = Harness(**settings)
    forward(harness, "ACCEPT")
    return harness


def counted(harness: Harness) -> list[tuple[str, str, int]]:
    """Return (source, destination, packets) of what has left so since the last call; the note counts the same."""
    rows = harness.forwarder.take_untranslated()
    assert rows.dtype == UNTRANSLATED
    text = {address(each): each for each in (HOST, OTHER_HOST, THERE[0], "199.0.0.2")}
    return sorted((text[row["source"]], text[row["destination"]], int(row["packets"])) for row in rows)


def noted(harness: Harness) -> int:
    return harness.forwarder.notes()["private_untranslated"]


def test_each_host_is_counted_with_the_destination_of_its_last_packet():
    harness = accepting()
    for remote in (THERE, THERE, ("199.0.0.2", 80)):
        assert decode(passes(harness, INSIDE, udp((HOST, 4000), remote))).source == address(HOST)
    passes(harness, INSIDE, query(TCP, (OTHER_HOST, 4000)))
    assert counted(harness) == [(HOST, "199.0.0.2", 3), (OTHER_HOST, THERE[0], 1)]
    assert counted(harness) == []
    passes(harness, INSIDE, query(UDP))
    assert counted(harness) == [(HOST, THERE[0], 1)]
    assert noted(harness) == 5


def test_so_is_a_session_whose_rule_has_gone():
    harness = Harness()
    passes(harness, INSIDE, query(UDP))
    assert noted(harness) == 0
    forward(harness, "ACCEPT")
    passes(harness, INSIDE, query(UDP))
    assert counted(harness) == [(HOST, THERE[0], 1)]


def test_a_datagram_in_pieces_counts_once():
    harness = accepting()
    for piece in cut(udp((HOST, 4000), THERE, bytes(3000)), 1480, 1480):
        harness.inject(INSIDE, piece)
    assert len(harness.run()) == 3
    assert noted(harness) == 1


@pytest.mark.parametrize(
    ("source", "private"),
    [
        ("9.255.255.255", False),
        ("10.0.0.2", True),
        ("10.255.255.254", True),
        ("11.0.0.1", False),
        ("100.63.255.255", False),
        ("100.64.0.0", True),
        ("100.127.255.255", True),
        ("100.128.0.0", False),
        ("172.15.255.255", False),
        ("172.16.0.1", True),
        ("172.31.255.255", True),
        ("172.32.0.0", False),
        ("192.167.255.255", False),
        ("192.168.0.1", True),
        ("192.168.255.255", True),
        ("192.169.0.0", False),
    ],
)
def test_which_sources_are_private(source, private):
    harness = accepting(routes=[*HOWTO_ROUTES, (f"{source}/32", unicast(INSIDE))])
    passes(harness, INSIDE, udp((source, 4000), THERE))
    assert noted(harness) == private


def test_what_is_translated_stays_inside_or_is_refused_does_not_count():
    harness = Harness(routes=[*HOWTO_ROUTES, ("192.168.9.0/24", unicast(INSIDE, "10.0.0.9"))])
    for policy in ("MASQ", "ACCEPT", "DENY"):
        forward(harness, policy)
        harness.send(INSIDE, udp((HOST, 4000), ("192.168.9.1", 53)))
        if policy == "MASQ":
            passes(harness, INSIDE, query(UDP))
            passes(harness, OUTSIDE, answer(UDP))
    harness.send(INSIDE, query(UDP))
    assert harness.drops() == {"forward_denied": 2}
    assert noted(harness) == 0


def test_addresses_of_the_outside_link_do_not_count():
    harness = accepting(routes=[*HOWTO_ROUTES, ("172.16.0.0/12", unicast(OUTSIDE))])
    assert only(harness.send(OUTSIDE, udp(("172.16.0.9", 4000), THERE))).link == OUTSIDE
    assert noted(harness) == 0


def test_more_hosts_than_rows_are_counted_in_all():
    harness = accepting()
    for number in range(1, 255):
        passes(harness, INSIDE, udp((f"10.0.1.{number}", 4000), THERE))
    assert noted(harness) == 254
    assert 32 < len(harness.forwarder.take_untranslated()) <= 64
