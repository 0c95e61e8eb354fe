"""Next hops in short supply: what one sender wants does not cost others what they have."""

from __future__ import annotations

import pytest

from fastmasq.path.rows import LOCAL, link_row
from fastmasq.table.forward_table import ForwardTable
from tests.support.adoption import HELD_DOWN
from tests.support.harness import HOWTO_ROUTES, LINKS, STATION_MAC, Harness, address, unicast
from tests.support.packets import decode, udp
from tests.support.path_network import GATEWAY_OUT, HERE, OTHER_HOST, THERE, only
from tests.support.tables import CLASS, EXTERNAL, UDP

ROUTES = [*HOWTO_ROUTES, ("172.16.0.0/12", unicast("outside"))]  # neighbours outside, without a router between
ROWS = 16384
WAITING_OF_SOURCE, WAITING_OF_LINK, HELD_OF_SOURCE = 32, 512, 64
INSIDE, OUTSIDE = 0, 1


def neighbour(number: int) -> tuple[str, int]:
    return (f"172.{16 + (number >> 16)}.{number >> 8 & 255}.{number & 255}", 53)


def wants(harness: Harness, source: str, numbers, answered: bool = False) -> list[tuple[int, int]]:
    """Send a datagram from a source to each of these neighbours; return the next hops that the daemon was asked for."""
    asked = []
    for number in numbers:
        harness.inject("inside", udp((source, 4000), neighbour(number), b"x"))
        harness.forwarder.step(harness.now_ns)
        for link, hop in harness.forwarder.wanted_hops():
            asked.append((link, hop))
            if answered:
                harness.forwarder.set_neighbour(link, hop, STATION_MAC["outside"])
        harness.forwarder.step(harness.now_ns)
        for sender in harness.senders.values():
            sender.forget()
    return asked


def flooded(**settings) -> Harness:
    """Return a network whose default gateway is known, and whose host HERE has asked for 5000 neighbours in vain."""
    harness = Harness(routes=ROUTES, **settings)
    assert only(harness.send("inside", udp(HERE, THERE, b"x"))).link == "outside"
    wants(harness, HERE[0], range(1, 5001))
    harness.drops()
    return harness


def test_packets_do_not_wait_for_a_neighbour_that_is_expected() -> None:
    """A burst is forwarded whole, and nobody is asked; a neighbour that has moved since is found all the same."""
    harness = Harness(routes=ROUTES)
    hop = address(neighbour(1)[0])
    for _ in range(2):
        harness.forwarder.expect_neighbour(OUTSIDE, hop, STATION_MAC["outside"])
    for number in range(100):
        harness.inject("inside", udp(HERE, neighbour(1), b"x"))
        if number % 50 == 49:
            harness.forwarder.step(harness.now_ns)
    assert len(harness.senders["outside"].pop()) == 100 and harness.drops() == {}
    assert harness.forwarder.used_hops() == {(OUTSIDE, hop): 100}
    assert harness.forwarder.set_neighbour(OUTSIDE, hop, bytes(5) + b"\x07")
    assert only(harness.send("inside", udp(HERE, neighbour(1), b"x"))).link == "outside"


@pytest.mark.parametrize("sender", ["10.0.1.0", "10.0.1.1", "10.0.1.2"])
def test_a_packet_that_turns_round_and_waits_has_the_port_that_it_was_given_first(sender: str) -> None:
    """While a forward has no room, who serves a packet depends on the port it was given: the hop may be another one."""
    harness = Harness(ports=(1024, 40001))
    targets = [(address("10.0.0.2"), 55, 1), (address("10.0.0.3"), 53, 1)]
    ForwardTable(harness.table, half_open_limit=1).place(EXTERNAL, CLASS[UDP], 1025, targets)
    assert only(harness.send("outside", udp(THERE, ("200.200.200.200", 1025), b"x"))).link == "inside"
    turned = only(harness.send("inside", udp((sender, 1025), ("200.200.200.200", 1025), b"x")))
    assert decode(turned.packet).source_port == 40001, "of the same parity"
    assert not (harness.table.mappings["in_use"] == HELD_DOWN).any()


def test_most_rows_are_left_for_neighbours_that_packets_want() -> None:
    """Whoever forges ARP can make the kernel know all addresses of a link."""
    harness = Harness(routes=ROUTES)
    for number in range(ROWS):
        harness.forwarder.expect_neighbour(OUTSIDE, address(neighbour(number)[0]), STATION_MAC["outside"])
    wanted = wants(harness, OTHER_HOST, [0, ROWS // 4 - 1, ROWS // 4])
    assert wanted == [(OUTSIDE, address(neighbour(ROWS // 4)[0]))]
    assert harness.drops() == {}


def test_a_host_waits_for_so_many_next_hops() -> None:
    harness = Harness(routes=ROUTES)
    assert len(wants(harness, HERE[0], range(1, 1000))) == WAITING_OF_SOURCE
    assert harness.drops() == {"neighbour_limit": 999 - WAITING_OF_SOURCE}
    assert harness.forwarder.verdicts()["punt"] == WAITING_OF_SOURCE


def test_what_is_known_stays_known_in_a_flood() -> None:
    """The issue's: the default gateway is never given up, and nobody else loses a packet."""
    harness = flooded()
    assert only(harness.send("inside", udp((OTHER_HOST, 5000), THERE, b"y"))).link == "outside"
    wants(harness, OTHER_HOST, [70_000], answered=True)
    assert harness.drops() == {}
    assert len(harness.sessions()) == 3


def test_hops_that_do_not_answer_in_time_have_failed() -> None:
    """Then the host may wait for others; and for the same, if it still wants them."""
    harness = flooded()
    harness.now_ns += 3_900_000_000
    assert wants(harness, HERE[0], [6000]) == []
    harness.now_ns += 200_000_000
    assert wants(harness, HERE[0], [6000]) == [(OUTSIDE, address(neighbour(6000)[0]))]
    assert wants(harness, HERE[0], [1]) == [(OUTSIDE, address(neighbour(1)[0]))]


def test_all_who_come_by_one_link_wait_for_so_many() -> None:
    """Sources are easily forged: those who come by another link still have their share."""
    harness = Harness(routes=ROUTES)
    asked = 0
    for host in range(1, 201):
        asked += len(wants(harness, f"10.0.1.{host}", range(host * 100, host * 100 + 20)))
    assert asked == WAITING_OF_LINK
    assert set(harness.drops()) == {"neighbour_limit", "neighbour_unresolved"}


def test_the_daemon_is_asked_once_a_second_for_each() -> None:
    harness = Harness(routes=ROUTES)
    assert len(wants(harness, HERE[0], [1, 1, 1, 1])) == 1
    harness.now_ns += 1_100_000_000
    assert len(wants(harness, HERE[0], [1, 1, 1])) == 1


@pytest.mark.parametrize("turn", [1, 2, None])
def test_while_a_packet_waits_the_daemon_is_asked_each_second_until_the_kernel_is(turn: int | None) -> None:
    """So many others may have been asked for that it has no turn at first."""
    harness = Harness(routes=ROUTES)
    wanted = wants(harness, HERE[0], [1])
    for second in (1, 2, 3):
        harness.now_ns += 500_000_000
        harness.forwarder.step(harness.now_ns)
        assert harness.forwarder.wanted_hops() == []
        if second == turn:
            assert harness.forwarder.may_ask(*wanted[0])
        harness.now_ns += 600_000_000
        harness.forwarder.step(harness.now_ns)
        is_asked = turn is not None and second >= turn
        assert harness.forwarder.wanted_hops() == ([] if is_asked or second == 3 else wanted)
    assert harness.drops() == {"neighbour_unresolved": 1}, "it waits for three seconds"


def test_the_kernel_is_asked_so_often_for_each_sender() -> None:
    """And for all that come by one link; another time it may be asked again."""
    harness = Harness(routes=ROUTES)
    asked = wants(harness, HERE[0], range(1, 21))
    assert all(harness.forwarder.may_ask(link, hop) for link, hop in asked)
    assert sum(harness.forwarder.may_ask(link, hop) for link, hop in asked) == 32 - 20
    [(link, hop)] = wants(harness, OTHER_HOST, [77])
    assert harness.forwarder.may_ask(link, hop)
    harness.now_ns += 500_000_000
    harness.forwarder.step(harness.now_ns)
    assert sum(harness.forwarder.may_ask(link, hop) for link, hop in asked) == 10
    assert not harness.forwarder.may_ask(link, address("1.2.3.4"))


def test_a_known_hop_may_be_asked_for_while_it_is_used() -> None:
    harness = Harness(routes=ROUTES)
    harness.send("inside", udp(HERE, THERE, b"x"))
    router = address("200.200.200.1")
    assert harness.forwarder.may_ask(OUTSIDE, router)
    assert harness.forwarder.used_hops() == {(OUTSIDE, router): 1}
    assert not harness.forwarder.may_ask(OUTSIDE, router)


@pytest.mark.parametrize("answers", ["never", "late"])
def test_with_all_rows_in_use_the_oldest_that_does_not_answer_goes(answers: str) -> None:
    harness = Harness(routes=ROUTES, capacity=65536)
    first = udp(HERE, THERE, b"x")
    assert len(harness.send("inside", first)) == 1
    known = ROWS - 40 - 1 + 10
    for block, start in enumerate(range(10, known, 4000)):  # of several senders: none may have more than a quarter
        wants(harness, f"10.0.2.{block}", range(start, min(start + 4000, known)), answered=True)
    assert harness.drops() == {}
    lost = wants(harness, "10.0.3.1", range(100_000, 100_020)) + wants(harness, "10.0.3.2", range(100_020, 100_040))
    if answers == "late":
        for link, hop in lost:
            harness.forwarder.set_neighbour(link, hop, None)
    more = wants(harness, "10.0.3.3", range(110_000, 110_030)) + wants(harness, "10.0.3.4", range(110_030, 110_060))
    assert len(more) == 60
    assert set(harness.drops()) <= {"neighbour_failed", "neighbour_unresolved"}
    assert len(harness.send("inside", first)) == 1
    for link, hop in more[-40:]:
        assert harness.forwarder.set_neighbour(link, hop, STATION_MAC["outside"])
    assert not harness.forwarder.set_neighbour(*lost[0], STATION_MAC["outside"])
    harness.run()
    harness.drops()
    wants(harness, "10.0.3.5", [120_000])
    assert harness.drops() == {"neighbour_table_full": 1}
    assert len(harness.send("inside", first)) == 1


def test_a_source_may_have_a_quarter_of_all_known_hops() -> None:
    """A neighbour who answers for a whole network does not fill the table with the help of one inside host."""
    harness = Harness(routes=ROUTES, capacity=65536)
    wants(harness, HERE[0], range(1, ROWS // 4 + 100), answered=True)
    assert harness.drops() == {"neighbour_limit": 99}
    wants(harness, OTHER_HOST, [200_000], answered=True)
    assert harness.drops() == {}


def test_hops_that_are_not_used_make_room() -> None:
    """Where more than half of the rows are in use; a flow whose hop went looks it up anew."""
    harness = Harness(routes=ROUTES, capacity=65536)
    for block in range(3):
        wants(harness, f"10.0.2.{block}", range(1 + block * 4000, 4000 + block * 4000), answered=True)
    used = 0
    for _ in range(10):
        assert len(harness.send("inside", udp(HERE, THERE, b"x"))) == 1
        used = len(harness.forwarder.used_hops())
    assert used == 1
    [(link, hop)] = wants(harness, "10.0.2.0", [1])
    assert (link, hop) == (OUTSIDE, address(neighbour(1)[0]))
    harness.forwarder.set_neighbour(link, hop, bytes(5) + b"\x07")
    harness.forwarder.step(harness.now_ns)
    [(_, frame)] = harness.senders["outside"].pop()
    assert frame[:6] == bytes(5) + b"\x07"
    assert decode(frame[14:]).destination == hop


def test_packets_that_wait_are_not_all_of_one_source() -> None:
    """Its hops are silent; another host's packet still finds room to wait in, and goes on when its hop answers."""
    harness = Harness(routes=ROUTES)
    for number in range(1, 9):
        wants(harness, HERE[0], [number] * 20)
    assert harness.drops()["neighbour_unresolved"] == 160 - HELD_OF_SOURCE
    harness.inject("inside", udp((OTHER_HOST, 5000), THERE, b"y"))
    assert only(harness.run()).link == "outside"


def test_a_link_address_of_another_length_is_none() -> None:
    harness = Harness(routes=ROUTES)
    [(link, hop)] = wants(harness, HERE[0], [1])
    assert harness.forwarder.set_neighbour(link, hop, bytes(20))
    harness.forwarder.step(harness.now_ns)
    assert harness.drops() == {"neighbour_failed": 1}


def test_answers_to_forged_sources_cost_no_host_its_own() -> None:
    """One server answers a hundred hosts that are not there; another host's first answer still comes in."""
    harness = Harness(routes=ROUTES)
    harness.silent = {address(f"10.9.0.{number}") for number in range(1, 101)}
    for number in range(1, 101):
        sent = only(harness.send("inside", udp((f"10.9.0.{number}", 4000), THERE, b"x")))
        harness.send("outside", udp(THERE, (GATEWAY_OUT, decode(sent.packet).source_port), b"y"))
    harness.drops()
    sent = only(harness.send("inside", udp((OTHER_HOST, 5000), THERE, b"x")))
    external = (GATEWAY_OUT, decode(sent.packet).source_port)
    assert only(harness.send("outside", udp(THERE, external, b"y"))).link == "inside"
    assert harness.drops() == {}


def test_a_link_that_changes_costs_others_no_next_hop() -> None:
    harness = Harness(routes=ROUTES)
    assert only(harness.send("inside", udp(HERE, THERE, b"x"))).link == "outside"
    harness.silent = {address("200.200.200.1")}
    for mtu in (1400, 1500):
        harness.forwarder.set_link(LINKS.index("programs"), link_row(side=LOCAL, mtu=mtu, mac=bytes(6)))
        assert only(harness.send("inside", udp((OTHER_HOST, 5000), THERE, b"y"))).link == "outside"
    assert harness.drops() == {}
    harness.forwarder.set_link(OUTSIDE, link_row(side=OUTSIDE, mtu=1400, mac=bytes(6)))
    assert harness.send("inside", udp((OTHER_HOST, 5000), THERE, b"y")) == []
