"""A second inside link: what belongs to one is refused on the other, live session or not."""

from __future__ import annotations

import pytest

from fastmasq.path.rows import INSIDE, link_row
from fastmasq.ring.ring import RxRing, TxBatch
from tests.support.harness import HOWTO_ROUTES, Harness, address, flatten, unicast
from tests.support.packets import TCP, UDP, icmp_error, ipv4, tcp, udp
from tests.support.path_network import HERE, PROTOCOLS, SERVER, THERE, answer, only, query

GUEST, GUEST_HOST, GUEST_MAC = 3, "192.168.7.2", bytes((2, 0, 0, 0, 4, 1))
STATION = bytes((2, 0, 0, 0, 4, 0x99))


class TwoInside(Harness):
    """The HOWTO's network, and a link for guests, 192.168.7.1/24."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.guest_ring, self.guest_sender = RxRing(), TxBatch()
        self.forwarder.attach(GUEST, self.guest_ring, self.guest_sender)
        row = link_row(side=INSIDE, mtu=1500, address=address("192.168.7.1"), mac=GUEST_MAC)
        self.forwarder.set_link(GUEST, row)
        self.lead_guests(GUEST)

    def lead_guests(self, link: int) -> None:
        """Route to the guests' network over a link."""
        first, routes = flatten([*HOWTO_ROUTES, ("192.168.7.0/24", unicast("inside"))])
        routes["link"][first == address("192.168.7.0")] = link
        self.forwarder.set_routes(first, routes)

    def guest(self, packet: bytes) -> list:
        """Let a packet arrive from the guests' link; return what leaves by the HOWTO's links."""
        self.guest_ring.push(GUEST_MAC + STATION + b"\x08\x00" + packet)
        return self.run()

    def to_guests(self) -> list[bytes]:
        return [frame[14:] for _, frame in self.guest_sender.pop()]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("answered", [False, True])
def test_rfc3704_a_live_session_is_no_pass_for_another_link(protocol: int, answered: bool) -> None:
    """A guest sends with the source of a session of the LAN's: refused, and the session does not move."""
    harness = TwoInside()
    assert harness.guest(query(protocol)) == []
    assert harness.drops() == {"martian_source": 1}
    assert len(harness.send("inside", query(protocol))) == 1
    if answered:
        assert len(harness.send("outside", answer(protocol))) == 1
    before = harness.table.sessions[0].tobytes()
    for _ in range(3):
        assert harness.guest(query(protocol)) == []
    assert harness.drops() == {"martian_source": 3}
    assert harness.table.sessions[0].tobytes() == before
    assert len(harness.send("inside", query(protocol))) == 1


def test_what_the_kernel_knows_may_change() -> None:
    """The guests' network moves to the other link: what came by the one is refused now, and the other way round."""
    harness = TwoInside()
    packet = udp((GUEST_HOST, 5000), THERE, b"x")
    assert len(harness.guest(packet)) == 1
    assert harness.send("inside", packet) == []
    assert harness.drops() == {"martian_source": 1}
    harness.lead_guests(0)
    assert harness.guest(packet) == []
    assert harness.drops() == {"martian_source": 1}
    assert len(harness.send("inside", packet)) == 1
    assert only(harness.send("outside", udp(THERE, ("200.200.200.200", 5000), b"y"))).link == "inside"
    harness.lead_guests(GUEST)
    harness.inject("outside", udp(THERE, ("200.200.200.200", 5000), b"y"))
    harness.forwarder.step(harness.now_ns)
    harness.forwarder.wanted_hops()
    harness.forwarder.set_neighbour(GUEST, address(GUEST_HOST), STATION)
    assert harness.run() == []
    assert len(harness.to_guests()) == 1


def test_a_hairpin_session_has_its_link() -> None:
    harness = TwoInside()
    receiver = ("10.0.0.3", 5000)
    assert len(harness.send("inside", tcp(receiver, THERE, "S"))) == 1
    turned = udp(HERE, ("200.200.200.200", 6000), b"x")
    assert len(harness.send("inside", udp(("10.0.0.3", 6000), THERE, b"x"))) == 1
    assert only(harness.send("inside", turned)).link == "inside"
    assert harness.guest(turned) == []
    assert harness.drops() == {"martian_source": 1}
    assert only(harness.send("inside", turned)).link == "inside"


def test_a_protocol_without_ports_has_its_link() -> None:
    harness = TwoInside()
    harness.forwarder.carry_by_address({89})
    packet = ipv4("10.0.0.2", SERVER, 89, bytes(20))
    assert len(harness.send("inside", packet)) == 1
    assert harness.guest(packet) == []
    assert harness.drops() == {"martian_source": 1}


def test_a_way_of_a_tunnel_has_its_link() -> None:
    """A guest may not send into the IPsec tunnel of a host of the LAN."""
    harness = TwoInside()
    harness.forwarder.follow(pptp=True, ipsec=True)
    ours, host, remote = address("200.200.200.200"), address("10.0.0.2"), address(SERVER)
    harness.forwarder.set_way(0, 0, 50, (host, remote, 0x1234), (ours, remote))
    harness.forwarder.set_way(0, 1, 50, (remote, ours, 0x99), (remote, host))
    out = ipv4("10.0.0.2", SERVER, 50, bytes.fromhex("00001234") + bytes(40))
    assert harness.guest(out) == []
    assert harness.drops() == {"martian_source": 1}
    assert only(harness.send("inside", out)).link == "outside"
    assert harness.guest(out) == []
    assert harness.drops() == {"martian_source": 1}
    assert only(harness.send("inside", out)).link == "outside"
    assert only(
        harness.send("outside", ipv4(SERVER, "200.200.200.200", 50, bytes.fromhex("00000099") + bytes(40)))
    ).link == ("inside")


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_an_error_comes_from_the_link_that_the_quoted_packet_left_by(protocol: int) -> None:
    """A guest may not end a connection of the LAN by an error about what the LAN was sent."""
    harness = TwoInside()
    harness.send("inside", query(protocol))
    received = only(harness.send("outside", answer(protocol))).packet
    forged = icmp_error(GUEST_HOST, SERVER, 3, 3, received)
    assert harness.guest(forged) == []
    assert harness.drops() == {"no_session": 1}
    assert only(harness.send("inside", icmp_error("10.0.0.2", SERVER, 3, 3, received))).link == "outside"
