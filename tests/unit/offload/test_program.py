"""The program that the kernel carries flows by: what it takes, what it makes of it, and what it leaves to the path."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fastmasq.errors import KernelError
from fastmasq.offload import program
from fastmasq.path.rows import CARRIER, HOP
from fastmasq.policy.chains import Match, Rule, RuleSet
from fastmasq.table.rows import SESSION
from tests.support import packets
from tests.support.carried import CarriedHarness
from tests.support.harness import HOWTO_ROUTES, Harness, Out, address, unicast
from tests.support.packets import BAD, decode, ipv4, pattern, problems

HOST, REMOTE, EXTERNAL = "10.0.0.2:4000", "199.0.0.1:80", "200.200.200.200:4000"
SECOND = 1_000_000_000


@pytest.fixture
def net() -> Iterator[CarriedHarness]:
    harness = CarriedHarness(mtu={"outside": 1000})
    yield harness
    harness.close()


def connect(net: Harness, client: str = HOST, server: str = REMOTE, shown: str = EXTERNAL) -> None:
    """Open a connection, with windows of 64 KiB; sequence numbers of the client begin at 0, the server's at 1000."""
    net.send("inside", packets.tcp(client, server, "S", seq=0, scale=0))
    net.send("outside", packets.tcp(server, shown, "SA", seq=1000, ack=1, scale=0))
    net.send("inside", packets.tcp(client, server, "A", seq=1, ack=1001))


def from_client(flags: str = "A", seq: int = 1, ack: int = 1001, **fields) -> bytes:
    return packets.tcp(HOST, REMOTE, flags, seq=seq, ack=ack, **fields)


def from_server(flags: str = "A", seq: int = 1001, ack: int = 1, **fields) -> bytes:
    return packets.tcp(REMOTE, EXTERNAL, flags, seq=seq, ack=ack, **fields)


def ask(net: Harness, times: int = 2, host: str = HOST, remote: str = REMOTE) -> list[Out]:
    """Have a host send so many datagrams; return what leaves for the last one."""
    return [net.send("inside", packets.udp(host, remote, b"question")) for _ in range(times)][-1]


def carrier(net: CarriedHarness) -> np.ndarray:
    return np.frombuffer(net.arrays.of_path["carrier"], CARRIER, 1)[0]


def moved(net: Harness) -> np.ndarray:
    """Return the first session, but for what counts its packets."""
    row = net.table.sessions[0].copy()
    row["flow"]["packets"] = 0
    return row


# -- what it takes ---------------------------------------------------------------------------------------------------


def test_a_connection_is_carried_and_its_row_is_what_the_path_would_have_made_of_it(net: CarriedHarness) -> None:
    plain = Harness(capacity=4096, mtu={"outside": 1000})
    for each in (net, plain):
        connect(each)
    before = net.carried
    for step in range(20):
        length = 100 + 17 * step
        seconds = SECOND * (step % 3)
        for link, packet in (
            ("inside", from_client("PA", seq=1 + 3 * step, ack=1001 + step, payload=pattern(length))),
            ("outside", from_server("A", seq=1001 + step, ack=1 + 3 * step, window=500 + step)),
        ):
            sent = [each.send(link, packet, each.now_ns + seconds) for each in (net, plain)]
            assert [(one.link, one.packet) for one in sent[0]] == [(one.link, one.packet) for one in sent[1]]
    assert net.carried - before == 40
    assert moved(net) == moved(plain)
    assert net.table.carried() == (40, 20 * 40 * 2 + sum(100 + 17 * step for step in range(20)))
    assert net.table.carried_rows["packets"][0].tolist() == [20, 20]
    (session,) = net.sessions()
    assert (session["packets_out"], session["packets_in"]) == (2, 1)


def test_datagrams_are_carried_from_the_third_packet_on(net: CarriedHarness) -> None:
    answer = packets.udp(REMOTE, EXTERNAL, b"answer")
    carried = []
    for _ in range(3):
        assert len(ask(net, 1)) == 1
        carried.append(net.carried)
        assert len(net.send("outside", answer)) == 1
        carried.append(net.carried)
    assert carried == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("checksum", [None, 0, BAD])
def test_checksums_of_datagrams_are_kept_right_wrong_or_absent(checksum: int | str | None) -> None:
    """The kernel checks, too, that what a device has summed up is still that (CHECKSUM_COMPLETE)."""
    plain, own = Harness(capacity=4096, ports=range(61000, 62000)), CarriedHarness(ports=range(61000, 62000))
    for each in (plain, own):
        ask(each)
    packet = packets.udp(HOST, REMOTE, pattern(33), checksum=checksum)
    assert own.send("inside", packet)[0].packet == plain.send("inside", packet)[0].packet
    assert own.carried == 1
    own.close()


def test_what_lies_behind_a_packet_stays_there(net: CarriedHarness) -> None:
    """Ethernet pads short frames (IEEE 802.3)."""
    ask(net)
    packet = packets.udp(HOST, REMOTE, b"!")
    (out,) = net.take("inside", packet, trailer=b"padding")
    assert out.packet[len(packet) :] == b"padding"


def test_a_large_send_is_carried_if_its_segments_fit(net: CarriedHarness) -> None:
    connect(net)
    large = from_client("PA", payload=pattern(3000))
    assert net.take("inside", large) == []
    assert net.take("inside", large, gso_size=961) == []
    (out,) = net.take("inside", large, gso_size=960)
    assert len(out.packet) == len(large)
    ask(net, host="10.0.0.3:5000")
    burst = packets.udp("10.0.0.3:5000", REMOTE, pattern(2000))
    assert net.take("inside", burst, gso_size=973) == []
    assert len(net.take("inside", burst, gso_size=972)) == 1


def test_rfc6864_section_5_3_1_both_ways_take_identifications_from_one_place(net: CarriedHarness) -> None:
    """Of packets that may be cut; large sends take as many as they may be cut into."""
    net.forwarder.set_renumbering(True)
    net.advance(1)
    ask(net)
    before = net.carried
    found = []
    for number in range(100):
        (out,) = net.send("inside", packets.udp(HOST, REMOTE, b"question", identification=7))
        found.append(out.packet)
        (out,) = net.send("inside", packets.udp("10.0.0.3:5000", f"199.0.0.1:{number + 1}", b"", identification=7))
        found.append(out.packet)
    assert net.carried - before == 100
    assert [problems(packet) for packet in found if problems(packet)] == []
    identifications = [decode(packet).identification for packet in found]
    assert len(set(identifications)) == 200
    net.take("inside", packets.udp(HOST, REMOTE, pattern(3000), identification=7), gso_size=950)
    (out,) = net.take("inside", packets.udp(HOST, REMOTE, b"question", identification=7))
    assert decode(out.packet).identification - identifications[-1] & 0xFFFF == 5


def test_rfc6864_section_4_1_what_must_not_be_cut_and_what_a_remote_sends_keep_theirs(net: CarriedHarness) -> None:
    net.forwarder.set_renumbering(True)
    net.advance(1)
    ask(net)
    net.send("outside", packets.udp(REMOTE, EXTERNAL, b"answer"))
    (out,) = net.take("inside", packets.udp(HOST, REMOTE, b"question", identification=7, df=True))
    assert decode(out.packet).identification == 7
    (out,) = net.take("outside", packets.udp(REMOTE, EXTERNAL, b"answer", identification=7))
    assert decode(out.packet).identification == 7


def test_of_a_connection_that_begins_anew_nothing_is_carried_before_both_ends_are_known(net: CarriedHarness) -> None:
    """RFC 6191: what its ends said before says nothing of it."""
    connect(net)
    net.send("inside", from_client("RA"))
    far = 1 << 31
    net.send("inside", packets.tcp(HOST, REMOTE, "S", seq=far, scale=0))
    net.send("outside", packets.tcp(REMOTE, EXTERNAL, "SA", seq=far, ack=far + 1, scale=0))
    assert net.take("outside", from_server(seq=far + 1, ack=far + 1)) == []
    assert net.take("inside", from_client(seq=far + 1, ack=far + 1)) == []
    net.send("inside", from_client(seq=far + 1, ack=far + 1))
    assert len(net.take("inside", from_client(seq=far + 1, ack=far + 1))) == 1
    assert len(net.take("outside", from_server(seq=far + 1, ack=far + 1))) == 1


# -- what it leaves to the path --------------------------------------------------------------------------------------

ODD = {
    "SYN": from_client("SA"),
    "FIN": from_client("FA"),
    "RST": from_client("RA"),
    "no ACK": from_client(""),
    "beyond the window": from_client(seq=1 + 65536 + 1),
    "far behind the window": from_client(seq=1 - 66001 & 0xFFFFFFFF),
    "acknowledges what was not sent": from_client(ack=1001 + 66001),
    "acknowledges what is long past": from_client(ack=1001 - 66001),
    "options of IPv4": from_client(options=b"\1"),
    "a first piece": from_client(mf=True, payload=bytes(4)),
    "a later piece": ipv4("10.0.0.2", "199.0.0.1", 6, bytes(24), offset=64),
    "TTL 1": from_client(ttl=1),
    "TTL 0": from_client(ttl=0),
    "wrong IPv4 checksum": from_client(ip_checksum=BAD),
    "longer than the MTU": from_client(payload=pattern(961)),
    "data offset too small": from_client(data_offset=4),
    "data offset too large": from_client(data_offset=6),
    "total length too large": from_client(total_length=41),
    "total length too small": from_client(total_length=39),
    "version 6": from_client(version=6),
    "of nobody": packets.tcp("10.0.0.2:4001", REMOTE, "A", seq=1, ack=1001),
    "of another remote": packets.tcp(HOST, "199.0.0.2:80", "A", seq=1, ack=1001),
    "a ping": packets.ping("10.0.0.2", "199.0.0.1", 4000),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_is_not_plain_goes_on_as_it_came(net: CarriedHarness, odd: bytes) -> None:
    connect(net)
    before = net.table.sessions[0].copy()
    assert len(net.take("inside", from_client())) == 1
    assert net.take("inside", odd) == []
    assert moved(net) == before or before["flow"]["packets"].any()
    assert net.carried == 1


def test_what_is_for_another_station_goes_on(net: CarriedHarness) -> None:
    connect(net)
    assert net.take("inside", from_client(), mac=bytes((2, 0, 0, 0, 0, 9))) == []


def test_a_packet_by_another_link_than_its_flow_goes_on(net: CarriedHarness) -> None:
    connect(net)
    assert net.take("outside", from_client()) == []
    assert net.take("programs", from_client()) == []


@pytest.mark.parametrize("length", [7, 8 + 9, 65535])
def test_datagrams_of_another_length_than_they_say_go_on(net: CarriedHarness, length: int) -> None:
    ask(net)
    assert net.take("inside", packets.udp(HOST, REMOTE, b"question", length=length)) == []


def test_a_stranger_is_not_carried_before_the_path_has_seen_an_answer(net: CarriedHarness) -> None:
    """Whoever is heard for the first time is noted in the row, which is not the program's to do."""
    ask(net)
    answer = packets.udp(REMOTE, EXTERNAL, b"answer")
    assert net.take("outside", answer) == []
    net.send("outside", answer)
    assert len(net.take("outside", answer)) == 1


def test_answers_hold_no_session_open(net: CarriedHarness) -> None:
    """RFC 4787 REQ-6."""
    ask(net)
    answer = packets.udp(REMOTE, EXTERNAL, b"answer")
    net.send("outside", answer)
    before = int(net.table.sessions["expires"][0])
    net.advance(10)
    assert len(net.take("outside", answer)) == 1
    assert net.table.sessions["expires"][0] == before
    assert len(net.take("inside", packets.udp(HOST, REMOTE, b"question"))) == 1
    assert net.table.sessions["expires"][0] == before + 40


def test_a_session_that_only_the_program_sees_lives_on(net: CarriedHarness) -> None:
    ask(net)
    for _ in range(10):
        net.advance(200)
        assert len(net.take("inside", packets.udp(HOST, REMOTE, b"question"))) == 1
    net.advance(302)
    assert net.sessions() == []


# -- what may not be carried -----------------------------------------------------------------------------------------


def test_sessions_that_trackers_read_are_not_carried(net: CarriedHarness) -> None:
    net.forwarder.follow(pptp=True, ipsec=True)
    net.table.follow_ports([1723, 21])
    connect(net, server="199.0.0.1:1723")
    connect(net, client="10.0.0.2:21", shown="200.200.200.200:21")
    ask(net, host="10.0.0.2:500", remote="199.0.0.1:500")
    assert not net.table.carried_rows["ticket"].any()


def test_packets_that_turn_round_are_not_carried(net: CarriedHarness) -> None:
    ask(net)
    for _ in range(4):
        net.send("inside", packets.udp("10.0.0.3:6000", EXTERNAL, b"neighbour"))
    assert net.carried == 0


def test_nothing_is_carried_by_a_link_that_is_gone(net: CarriedHarness) -> None:
    ask(net)
    net.forwarder.carry_by(1, 0)
    assert net.take("inside", packets.udp(HOST, REMOTE, b"question")) == []
    net.forwarder.carry_by(1, 101)
    assert len(net.take("inside", packets.udp(HOST, REMOTE, b"question"))) == 1
    net.forwarder.attach(1, net.rings["outside"], net.senders["outside"])
    assert net.take("inside", packets.udp(HOST, REMOTE, b"question")) == []


# -- rules -----------------------------------------------------------------------------------------------------------


def chains(*rules: Rule, base: str = "input") -> RuleSet:
    """Return a rule set that masquerades, with these rules in one chain."""
    rule_set = RuleSet()
    rule_set.append("forward", Rule(target="MASQ"))
    for rule in rules:
        rule_set.append(base, rule)
    return rule_set


COUNTING = chains(Rule(), Rule(match=Match(protocol=17)), Rule(match=Match(protocol=6)))


def talk(net: Harness, times: int) -> None:
    """A question and its answer, so many times, over UDP and over TCP."""
    for number in range(times):
        net.send("inside", packets.udp(HOST, REMOTE, bytes(number)))
        net.send("outside", packets.udp(REMOTE, EXTERNAL, bytes(2 * number)))
        net.send("inside", from_client("PA", seq=1 + number, payload=b"!"))
        net.send("outside", from_server("PA", seq=1001 + number, ack=2 + number, payload=b"?"))


def test_rules_count_what_is_carried_as_if_it_were_not(net: CarriedHarness) -> None:
    plain = Harness(capacity=4096)
    counted = []
    for each in (net, plain):
        each.set_rule_set(COUNTING)
        connect(each)
        found = []
        for times in (5, 7):
            talk(each, times)
            found.append(each.rule_counts())
        for session in range(2):
            each.table.close(session)
        for _ in range(3):
            each.advance(0.25)
        connect(each, client="10.0.0.4:4000")  # in a row of one of them, of which something is still owed
        talk(each, 3)
        found.append(each.rule_counts())
        counted.append(found)
    assert net.carried > 40
    assert counted[0] == counted[1]


def test_what_is_owed_to_rules_is_paid_when_other_rules_take_their_place(net: CarriedHarness) -> None:
    net.set_rule_set(COUNTING)
    ask(net, 10)
    net.forwarder.charge_carried(for_good=True)
    assert net.take("inside", packets.udp(HOST, REMOTE, b"question")) == []
    assert net.rule_counts()["input", 2] == (10, 10 * 36)
    net.forwarder.set_chains(None)
    assert net.take("inside", packets.udp(HOST, REMOTE, b"question")) == []
    ask(net, 1)
    assert len(net.take("inside", packets.udp(HOST, REMOTE, b"question"))) == 1


@pytest.mark.parametrize(
    "rule_set",
    [
        chains(Rule(log=True)),
        chains(Rule(tos=(0x01, 0x10))),
        chains(Rule(log=True), base="output"),
        chains(Rule(match=Match(destination_ports=((80, 80),), protocol=17), target="DENY")),
    ],
    ids=["logged", "other TOS", "logged as it leaves", "denied"],
)
def test_rules_that_do_something_to_packets_see_each(net: CarriedHarness, rule_set: RuleSet) -> None:
    ask(net)
    net.set_rule_set(rule_set)
    for _ in range(5):
        net.send("inside", packets.udp(HOST, REMOTE, b"question"))
    assert net.carried == 0


def test_each_way_asks_the_rules_for_itself(net: CarriedHarness) -> None:
    net.set_rule_set(chains(Rule(match=Match(interface="eth1"), log=True)))
    answer = packets.udp(REMOTE, EXTERNAL, b"answer")
    for _ in range(5):
        net.send("inside", packets.udp(HOST, REMOTE, b"question"))
        net.send("outside", answer)
    assert net.take("outside", answer) == []
    assert len(net.take("inside", packets.udp(HOST, REMOTE, b"question"))) == 1


# -- what changes meanwhile ------------------------------------------------------------------------------------------


def test_after_a_change_of_routes_the_path_sees_the_next_packet(net: CarriedHarness) -> None:
    ask(net)
    net.set_routes([("199.0.0.0/8", unicast("outside", "200.200.200.7")), *HOWTO_ROUTES])
    assert net.take("inside", packets.udp(HOST, REMOTE, b"question")) == []
    ask(net, 1)
    assert len(net.take("inside", packets.udp(HOST, REMOTE, b"question"))) == 1


def test_another_address_of_the_next_hop_is_news(net: CarriedHarness) -> None:
    """Nobody sees half of it: the path has the next packet."""
    ask(net)
    gateway = address("200.200.200.1")
    net.forwarder.set_neighbour(1, gateway, bytes((2, 0, 0, 0, 2, 0x99)))
    assert len(net.take("inside", packets.udp(HOST, REMOTE, b"question"))) == 1
    net.forwarder.set_neighbour(1, gateway, bytes((2, 0, 0, 0, 2, 0x77)))
    assert net.take("inside", packets.udp(HOST, REMOTE, b"question")) == []
    net.forwarder.set_neighbour(1, gateway, bytes((2, 0, 0, 0, 2, 0x99)))
    ask(net, 1)
    assert len(net.take("inside", packets.udp(HOST, REMOTE, b"question"))) == 1


def test_a_next_hop_that_does_not_answer_is_the_paths(net: CarriedHarness) -> None:
    ask(net)
    net.forwarder.set_neighbour(1, address("200.200.200.1"), None)
    assert net.take("inside", packets.udp(HOST, REMOTE, b"question")) == []


def test_the_daemon_hears_of_next_hops_that_only_the_program_uses(net: CarriedHarness) -> None:
    ask(net)
    net.forwarder.used_hops()
    assert net.forwarder.used_hops() == {}
    net.take("inside", packets.udp(HOST, REMOTE, b"question"))
    assert net.forwarder.used_hops() == {(1, address("200.200.200.1")): 1}


def test_a_row_that_was_carried_is_given_to_nobody_for_a_tick(net: CarriedHarness) -> None:
    """The program may have read the ticket before it was taken, and write after."""
    ask(net)
    net.table.close(0)
    assert net.table.carried_rows["ticket"][0] == 0
    assert net.take("inside", packets.udp(HOST, REMOTE, b"question")) == []
    rows = []
    for port in (5000, 5001, 5002, 5003):
        before = net.table.sessions["state"][:8] != 0
        ask(net, 1, host=f"10.0.0.3:{port}")
        rows.append(int(np.flatnonzero((net.table.sessions["state"][:8] != 0) & ~before)[0]))
        net.advance(0.25)
    assert rows[0] != 0 and rows[1] != 0 and 0 in rows[2:]


def test_rows_that_were_not_carried_are_used_again_at_once(net: CarriedHarness) -> None:
    ask(net, 1)
    net.table.close(0)
    ask(net, 1, host="10.0.0.3:5000")
    assert net.table.sessions["state"][0]


def test_a_ticket_is_never_the_one_before(net: CarriedHarness) -> None:
    seen = []
    for _ in range(3):
        ask(net)
        seen.append(int(net.table.carried_rows["ticket"].max()))
        net.table.close(int(net.table.carried_rows["ticket"].argmax()))
    assert len(set(seen)) == 3


def test_what_was_carried_stays_counted_when_its_row_is_anothers(net: CarriedHarness) -> None:
    ask(net, 5)
    counted = net.table.carried()
    assert counted == (3, 3 * 36)
    net.table.close(0)
    for _ in range(3):
        net.advance(0.25)
    ask(net, 2, host="10.0.0.3:5000")
    assert net.table.sessions["state"][0]
    assert net.table.carried_rows["packets"][0].tolist() == [0, 0]
    assert net.table.carried() == counted


# -- the file --------------------------------------------------------------------------------------------------------


def test_the_program_and_the_path_mean_the_same_rows(net: CarriedHarness) -> None:
    """What the compiler was given is made of the .pxd files; here are the sizes that the maps have."""
    net.advance(1)
    assert (SESSION.itemsize, HOP.itemsize, CARRIER.itemsize % 8) == (128, 32, 0)
    assert carrier(net)["index_mask"] == len(np.frombuffer(net.arrays.of_table["index"], "u8")) - 1


def test_without_the_file_there_is_a_reason(tmp_path) -> None:
    with pytest.raises(KernelError, match="was not built"):
        program.read(tmp_path / "none")
