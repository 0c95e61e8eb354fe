"""Packets that come are those forwarded, delivered, dropped and waiting, also where the kernel refuses to send."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support import packets
from tests.support.harness import Harness
from tests.support.path_network import GSO_TCPV4, HERE, OTHER_HOST, THERE, body, large, partial

KINDS = {
    "small": (packets.udp(HERE, THERE, b"x"), None),
    "cut in three": (packets.udp(HERE, THERE, body(1300)), None),
    "told of it": (packets.udp(HERE, THERE, b"x", ttl=1), None),
    "segments": (
        partial(packets.tcp(HERE, THERE, "A", seq=1, ack=1, payload=body(40_000), df=True)),
        large(GSO_TCPV4, 500),
    ),
    "gathered": (packets.tcp((OTHER_HOST, 7), THERE, "A", seq=1, ack=1, payload=body(400)), None),
    "for the host": (packets.udp(HERE, ("10.0.0.1", 53), b"x"), None),
    "malformed": (b"\x45", None),
}


@given(
    sent=st.lists(st.sampled_from(sorted(KINDS)), max_size=40),
    refusals=st.integers(0, 2**64 - 1),
    replies=st.integers(0, 2**64 - 1),
    vnet=st.booleans(),
    together=st.booleans(),
)
def test_the_law_of_sums_holds_under_senders_that_fail(
    sent: list[str], refusals: int, replies: int, vnet: bool, together: bool
) -> None:
    """One packet counts once, however many pieces of it were refused; so nothing passes below none."""
    harness = Harness(mtu={"inside": 65535, "outside": 600}, outside_vnet=vnet)
    harness.senders["outside"].refuse(refusals)
    harness.senders["inside"].refuse(replies)
    for name in sent:
        packet, header = KINDS[name]
        harness.inject("inside", packet, vnet=header)
        if not together:
            harness.run()
    out = harness.run()
    verdicts, drops = harness.forwarder.verdicts(), harness.forwarder.drops()
    assert verdicts["forward"] + verdicts["deliver"] + verdicts["drop"] + verdicts["punt"] == len(sent)
    assert all(0 <= count <= len(sent) for count in verdicts.values())
    assert verdicts["reply"] + harness.forwarder.notes()["replies_suppressed"] == sent.count("told of it")
    assert drops.get("tx_refused", 0) <= len(sent)
    if together:
        assert verdicts["reply"] == sum(each.link == "inside" for each in out)


def test_a_packet_that_lost_a_piece_is_a_drop() -> None:
    """The second of three pieces is refused: the others have left, and the datagram is lost all the same."""
    harness = Harness(mtu={"inside": 1500, "outside": 600})
    harness.senders["outside"].refuse(0b10)
    out = harness.send("inside", packets.udp(HERE, THERE, body(1300)))
    assert len(out) == 2
    assert harness.drops() == {"tx_refused": 1}
    assert harness.forwarder.verdicts()["forward"] == 0


def test_a_sender_that_takes_nothing() -> None:
    harness = Harness(mtu={"inside": 1500, "outside": 68})
    harness.senders["outside"].refuse(2**64 - 1)
    for _ in range(64):
        harness.inject("inside", packets.udp(HERE, THERE, body(1300)))
    assert harness.run() == []
    assert harness.drops() == {"tx_refused": 64}
    assert harness.forwarder.verdicts()["forward"] == 0
