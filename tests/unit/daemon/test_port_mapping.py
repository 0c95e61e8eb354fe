"""What PCP and NAT-PMP messages of inside hosts are answered, octet by octet, and what floods of them come to.

RFC 6887 sections 7.4, 8.2, 8.3, 11.3, 12.3, 13.2, 13.3 and 15; RFC 6886 sections 3.2 to 3.5 and RFC 6887 appendix A.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmasq.config.schema import PortMapping
from fastmasq.daemon.port_mapping import MOST_HOSTS, Bucket, Requests
from fastmasq.daemon.targets import why_not_inside
from fastmasq.policy import forwards
from fastmasq.policy.chains import Match, Rule
from fastmasq.policy.forwards import MOST_REMOTES
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire import natpmp, pcp
from fastmasq.wire.pcp import Code, Filter, Mapping, Opcode, Option, Result
from tests.support.harness import address
from tests.support.packets import decode, dotted, tcp, udp
from tests.support.path_network import HOST, OTHER_HOST, SERVER, dropped, passes
from tests.support.policy_gateway import OUTSIDE_ADDRESS, PolicyGateway

S = NS_PER_SECOND
NONCE, OTHER_NONCE = b"n" * 12, b"o" * 12
ANYWHERE = pcp.mapped(0)
OUTSIDE = address(OUTSIDE_ADDRESS)
REMOTE = ("199.0.0.1", 53)
TIMEOUT_S = 20  # of sessions of UDP in the tests of peers
PREFER_FAILURE = Option(Code.PREFER_FAILURE)
NO_FILTER = Option(Code.FILTER, Filter(None).data())


def filtered(text: str, length: int, port: int = 0) -> Option:
    return Option(Code.FILTER, Filter(length, address(text), port).data())


class Asking:
    """A gateway that inside hosts ask, each at a time in seconds."""

    def __init__(self) -> None:
        self.gateway = PolicyGateway(port_mapping=PortMapping(pcp=True, mappings_per_host=3))
        self.leases = self.gateway.leases
        self.minutes = itertools.count(0, 60)  # in seconds
        self.requests = Requests(self.leases, lambda host: why_not_inside(self.gateway.watch.snapshot(), host))

    def ask(self, octets: bytes, host: str = HOST, now: float = 100) -> bytes | None:
        return self.requests.answer(octets, address(host), int(now * S))

    def map(
        self, port: int, outside: int = 0, lifetime: int = 3600, *options: Option, host: str = HOST, now: float = 100,
        nonce: bytes = NONCE, protocol: int = 6, client: str | None = None, where: bytes = ANYWHERE,
    ) -> tuple[Result, int, int, int]:  # fmt: skip
        """Return result, lifetime, epoch and outside port of the answer to a MAP request."""
        asked = Mapping(nonce, protocol, port, outside, where)
        request = pcp.Request(Opcode.MAP, lifetime, pcp.mapped(address(client or host)), asked, options)
        answer = self.ask(request.emit(), host, now)
        assert answer is not None
        assert answer[:3] == bytes((pcp.VERSION, 0x81, 0))
        assert answer[12:24] == bytes(12)
        fields = Mapping(answer[24:36], answer[36], *(int.from_bytes(answer[at : at + 2]) for at in (40, 42)), b"")
        assert fields[:3] == asked[:3]
        if answer[3]:
            assert answer[24:] == request.emit()[24:]
        elif lifetime:
            assert answer[44:60] == pcp.mapped(OUTSIDE)
            assert answer[60:] == b"".join(option.emit() for option in options)
        return Result(answer[3]), int.from_bytes(answer[4:8]), int.from_bytes(answer[8:12]), fields.outside_port

    def peer(
        self, port: int, remote: tuple[str, int] = REMOTE, lifetime: int = 3600, *options: Option, outside: int = 0,
        where: bytes = ANYWHERE, nonce: bytes = NONCE, protocol: int = 17,
    ) -> tuple[Result, int, int]:  # fmt: skip
        """Return result, lifetime and outside port of the answer to a PEER request of HOST, at the harness' time."""
        asked = Mapping(nonce, protocol, port, outside, where)
        to = (remote[1], pcp.mapped(address(remote[0])))
        request = pcp.Request(Opcode.PEER, lifetime, pcp.mapped(address(HOST)), asked, options, to)
        answer = self.ask(request.emit(), HOST, self.gateway.harness.now_ns / S)
        assert answer is not None
        assert answer[:3] == bytes((pcp.VERSION, 0x82, 0))
        assert answer[60:80] == request.emit()[60:80]  # the remote
        if answer[3]:
            assert answer[24:] == request.emit()[24:]
        elif lifetime:
            assert answer[44:60] == pcp.mapped(OUTSIDE)
        return Result(answer[3]), int.from_bytes(answer[4:8]), int.from_bytes(answer[42:44])

    def pass_seconds(self, seconds: int) -> None:
        """Let time pass as the loop of a gateway does."""
        for _ in range(seconds):
            self.gateway.harness.advance(1)
            self.leases.follow(self.gateway.harness.now_ns)
            self.leases.every_second(self.gateway.harness.now_ns)

    def sessions(self) -> list[tuple[int, tuple[int, int], str]]:
        """Return inside port, external endpoint and state of each session."""
        return [(each["inside"][1], each["external"], each["state"]) for each in self.gateway.harness.sessions()]

    def natpmp(self, request: natpmp.Request, now: float = 100, host: str = HOST) -> bytes:
        answer = self.ask(request.emit(), host, now)
        assert answer is not None
        return answer


@pytest.fixture
def asking() -> Iterator[Asking]:
    made = Asking()
    yield made
    made.gateway.close()


# -- PCP ---------------------------------------------------------------------------------------------------------------


def test_rfc6887_11_a_mapping_is_granted_renewed_and_deleted(asking: Asking) -> None:
    assert asking.map(6000, 7000) == (Result.SUCCESS, 3600, 100, 7000)
    assert asking.map(6000, 7001, 7200, now=200) == (Result.SUCCESS, 7200, 200, 7000)
    assert asking.map(6000, 9, 0, now=200) == (Result.SUCCESS, 0, 200, 9)
    assert list(asking.leases) == []
    assert asking.map(6000, 9, 0, now=201) == (Result.SUCCESS, 0, 201, 9)  # there is none: it is deleted


def test_rfc6887_15_lifetimes_are_between_two_minutes_and_a_day(asking: Asking) -> None:
    assert asking.map(6000, lifetime=1)[1] == 120
    assert asking.map(6001, lifetime=0xFFFFFFFF)[1] == 86_400


def test_rfc6887_11_another_nonce_is_refused_for_as_long_as_the_mapping_lasts(asking: Asking) -> None:
    asking.map(6000)
    for lifetime in (0, 7200):
        assert asking.map(6000, 0, lifetime, nonce=OTHER_NONCE, now=700)[:2] == (Result.NOT_AUTHORIZED, 3000)
    assert asking.map(0, 0, 0, nonce=OTHER_NONCE, protocol=0, now=700)[0] is Result.NOT_AUTHORIZED
    assert asking.map(0, 0, 0, protocol=0, now=700)[0] is Result.SUCCESS
    assert list(asking.leases) == []


def test_rfc6887_8_only_for_the_askers_own_address(asking: Asking) -> None:
    assert asking.map(6000, client=OTHER_HOST)[:2] == (Result.ADDRESS_MISMATCH, pcp.LONG_ERROR_S)
    third_party = Option(Code.THIRD_PARTY, pcp.mapped(address(OTHER_HOST)))
    assert asking.map(6000, 0, 3600, third_party)[0] is Result.UNSUPP_OPTION
    assert list(asking.leases) == []


def test_rfc6887_13_prefer_failure(asking: Asking) -> None:
    assert asking.map(6000, 7000, 3600, PREFER_FAILURE)[3] == 7000
    assert asking.map(6000, 7000, 3600, PREFER_FAILURE, where=pcp.mapped(OUTSIDE))[3] == 7000
    cannot = (Result.CANNOT_PROVIDE_EXTERNAL, pcp.SHORT_ERROR_S)
    assert asking.map(6000, 7001, 3600, PREFER_FAILURE)[:2] == cannot
    assert asking.map(6001, 7001, 3600, PREFER_FAILURE, where=pcp.mapped(OUTSIDE + 1))[:2] == cannot
    assert asking.map(6000, 7000, 3600, PREFER_FAILURE, host=OTHER_HOST)[:2] == cannot


def visitors(asking: Asking, *ends: tuple[str, int]) -> list[tuple[str, int]]:
    """Return which of these remote endpoints reach HOST by the outside port 7000 of UDP, to which each sends once."""
    packets = [udp(remote, (OUTSIDE_ADDRESS, 7000), b"hello") for remote in ends]
    return [
        remote for remote, packet in zip(ends, packets, strict=True) if asking.gateway.harness.send("outside", packet)
    ]


def test_rfc6887_13_filters_say_who_may_use_a_mapping_until_they_are_taken_away(asking: Asking) -> None:
    ends = [("199.0.0.1", 53), ("199.0.0.2", 53), ("199.0.0.1", 54), ("62.1.2.3", 53)]
    one, network = filtered("199.0.0.1", 32, 53), filtered("62.0.0.9", 8)
    granted = (Result.SUCCESS, 3600, 100, 7000)
    assert asking.map(6000, 7000, 3600, one, protocol=17) == granted
    assert visitors(asking, *ends) == ends[:1]
    assert asking.gateway.harness.drops()["filtered"] == 3
    assert asking.map(6000, 7000, 3600, network, protocol=17) == granted  # beside the other
    assert visitors(asking, *((address, port + 100) for address, port in ends)) == [("62.1.2.3", 153)]
    assert visitors(asking, *ends) == [ends[0], ends[3]]
    assert asking.map(6000, 7000, 3600, protocol=17) == granted  # and both stay
    assert visitors(asking, ends[1]) == []
    assert asking.map(6000, 7000, 3600, one, NO_FILTER, filtered("199.0.0.2", 32), protocol=17) == granted
    assert visitors(asking, ("62.1.2.3", 54), ends[1], ends[2]) == [ends[1]]
    assert asking.map(6000, 7000, 3600, NO_FILTER, protocol=17) == granted
    assert visitors(asking, ends[2], ("62.1.2.3", 55)) == [ends[2], ("62.1.2.3", 55)]


def test_rfc6887_13_a_filter_that_cannot_be_changes_nothing(asking: Asking) -> None:
    one = filtered("199.0.0.1", 32)
    asking.map(6000, 7000, 3600, one)
    (before,) = asking.leases
    with_ipv6 = Option(Code.FILTER, Filter(24, 1).data()[:4] + bytes(16))
    assert asking.map(6000, 7000, 3600, NO_FILTER, with_ipv6)[0] is Result.MALFORMED_OPTION
    assert asking.map(6000, 7000, 0, one)[0] is Result.MALFORMED_OPTION
    many = [filtered(f"199.0.1.{host}", 32) for host in range(MOST_REMOTES)]
    assert asking.map(6000, 7000, 7200, *many)[0] is Result.EXCESSIVE_REMOTE_PEERS
    asking.gateway.host.refuses.add("guard")
    assert asking.map(6000, 7000, 7200, NO_FILTER)[0] is Result.NO_RESOURCES
    asking.gateway.host.refuses.clear()
    assert asking.map(6001, 7001, 3600, *many, one)[0] is Result.EXCESSIVE_REMOTE_PEERS
    assert list(asking.leases) == [before]
    assert asking.map(6000, 7000, 3600, NO_FILTER, *many)[0] is Result.SUCCESS


def test_rfc6887_13_what_files_forward_has_no_filter(asking: Asking) -> None:
    forward = forwards.read("tcp", "eth1:8080", [f"{HOST}:6000"])
    asking.gateway.call("forwards.change", changes=[forwards.Change(action="add", forward=forward)])
    assert asking.map(6000, 0, 3600, filtered("199.0.0.1", 32))[0] is Result.CANNOT_PROVIDE_EXTERNAL
    assert asking.map(6000, 0, 3600, NO_FILTER)[3] == 8080


ADDRESSES = st.sampled_from([0xC7000001, 0xC7000002, 0xC8000000])
FILTERS = st.just(Filter(None)) | st.builds(Filter, st.integers(0, 32), ADDRESSES, st.sampled_from([0, 5]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(FILTERS, max_size=5), min_size=1, max_size=5))
def test_rfc6887_13_filters_of_several_requests_are_as_one_list(asking: Asking, requests: list[list[Filter]]) -> None:
    """Whatever the order, a remote may come if one of the filters behind the last that takes all away is for it."""
    asking.map(0, 0, 0, protocol=0, now=next(asking.minutes))
    for wanted in requests:
        options = [Option(Code.FILTER, each.data()) for each in wanted]
        assert asking.map(6000, 7000, 3600, *options, protocol=17, now=next(asking.minutes))[0] is Result.SUCCESS
    flat = [each for wanted in requests for each in wanted]
    last = max((at for at, each in enumerate(flat) if each.prefix is None), default=-1)
    kept = flat[last + 1 :]
    for host in (0xC7000001, 0xC7000003, 0xC8000001):
        for port in (5, 6):
            allowed = not kept or any(
                host >> (32 - each.prefix) == each.address >> (32 - each.prefix) and each.port in (0, port)
                for each in kept
            )
            remote = (dotted(host), port)
            assert visitors(asking, remote) == ([remote] if allowed else [])
    for row in np.flatnonzero(asking.gateway.harness.table.sessions["state"]).tolist():
        asking.gateway.harness.table.close(row)


def test_rfc6887_7_each_refusal_has_its_result(asking: Asking) -> None:
    assert asking.map(22)[:2] == (Result.NOT_AUTHORIZED, pcp.LONG_ERROR_S)
    assert asking.map(6000, protocol=132)[0] is Result.UNSUPP_PROTOCOL
    assert asking.map(0)[0] is Result.UNSUPP_PROTOCOL
    assert asking.map(0, protocol=0)[0] is Result.UNSUPP_PROTOCOL
    assert asking.map(1, protocol=0)[0] is Result.MALFORMED_REQUEST
    for port in (6000, 6001, 6002):
        asking.map(port)
    assert asking.map(6003)[:2] == (Result.USER_EX_QUOTA, pcp.SHORT_ERROR_S)
    asking.gateway.move(None)
    assert asking.map(6003, host=OTHER_HOST)[:2] == (Result.NETWORK_FAILURE, pcp.SHORT_ERROR_S)


def test_rfc6887_14_an_announce_is_answered_with_the_epoch(asking: Asking) -> None:
    request = pcp.Request(Opcode.ANNOUNCE, 0, pcp.mapped(address(HOST)))
    assert asking.ask(request.emit(), now=7) == pcp.announcement(7)


def test_what_is_no_request_has_no_answer(asking: Asking) -> None:
    for octets in (b"", b"\2", b"\2\x81" + bytes(22), b"\0\x80", b"\0\1"):
        assert asking.ask(octets) is None


def test_who_is_no_inside_host_has_no_answer(asking: Asking) -> None:
    request = natpmp.Request(natpmp.ADDRESS).emit()
    assert asking.ask(request, HOST) is not None
    for stranger in (SERVER, "10.0.0.1", OUTSIDE_ADDRESS, "255.255.255.255"):
        assert asking.ask(request, stranger) is None


# -- peers -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def peering(asking: Asking) -> Asking:
    asking.gateway.call("timeouts", tcp=7200, tcp_fin=10, udp=TIMEOUT_S)
    return asking


def test_rfc6887_12_a_peer_may_come_before_anything_is_sent_to_it(peering: Asking) -> None:
    assert peering.peer(6000) == (Result.SUCCESS, 3600, 6000)
    harness = peering.gateway.harness
    arrived = decode(passes(harness, "outside", udp(REMOTE, (OUTSIDE_ADDRESS, 6000), b"hello")))
    assert (dotted(arrived.destination), arrived.destination_port) == (HOST, 6000)
    assert dropped(harness, "outside", udp(("199.0.0.2", 53), (OUTSIDE_ADDRESS, 6000), b"hello")) == "filtered"
    left = decode(passes(harness, "inside", udp((HOST, 6000), REMOTE, b"hello")))
    assert left.source_port == 6000
    assert peering.sessions() == [(6000, (OUTSIDE, 6000), "active")]


def test_rfc6887_12_a_session_lives_as_long_as_its_host_asks_and_then_as_any_other(peering: Asking) -> None:
    for port in (6000, 6001):
        passes(peering.gateway.harness, "inside", udp((HOST, port), REMOTE, b"hello"))
    assert peering.peer(6000, lifetime=120) == (Result.SUCCESS, 120, 6000)
    peering.pass_seconds(TIMEOUT_S + 1)
    assert [port for port, *_ in peering.sessions()] == [6000]
    assert peering.peer(6000, lifetime=200)[1] == 200
    assert peering.peer(6000, lifetime=120)[1] == 200  # never for less
    peering.pass_seconds(199)
    assert peering.leases.describe(0)["peers"] == 1
    assert len(peering.sessions()) == 1
    peering.pass_seconds(TIMEOUT_S + 2)
    assert (peering.leases.describe(0)["peers"], peering.sessions()) == (0, [])
    assert peering.leases.granted == {"granted": 1, "renewed": 2, "ended": 1}


def test_rfc6887_12_lifetime_0_leaves_a_session_to_its_packets(peering: Asking) -> None:
    for port in (6000, 6001):
        peering.peer(port)
    passes(peering.gateway.harness, "inside", udp((HOST, 6001), REMOTE, b"hello"))
    for port in (6000, 6001, 6001):
        assert peering.peer(port, lifetime=0)[:2] == (Result.SUCCESS, 0)
    assert [port for port, *_ in peering.sessions()] == [6001]
    peering.pass_seconds(TIMEOUT_S + 1)
    assert peering.sessions() == []


def test_rfc6887_12_only_who_knows_the_nonce_prolongs_or_ends(peering: Asking) -> None:
    peering.peer(6000)
    for lifetime in (0, 7200):
        assert peering.peer(6000, lifetime=lifetime, nonce=OTHER_NONCE)[:2] == (Result.NOT_AUTHORIZED, 3600)
    assert peering.peer(6000, ("199.0.0.2", 53), nonce=OTHER_NONCE)[0] is Result.SUCCESS  # another session


def test_rfc6887_12_the_endpoint_that_is_suggested_or_an_error(peering: Asking) -> None:
    cannot = (Result.CANNOT_PROVIDE_EXTERNAL, pcp.SHORT_ERROR_S)
    assert peering.peer(6000, outside=7000) == (Result.SUCCESS, 3600, 7000)
    assert peering.peer(6000, ("199.0.0.2", 53), outside=7000)[2] == 7000  # the mapping is for every remote
    assert peering.peer(6000, ("199.0.0.3", 53), outside=7001)[:2] == cannot
    assert peering.peer(6001, outside=7000)[:2] == cannot
    assert peering.peer(6001, where=pcp.mapped(OUTSIDE + 1))[:2] == cannot
    assert peering.peer(6001, outside=22)[:2] == cannot
    passes(peering.gateway.harness, "inside", udp((OTHER_HOST, 7002), REMOTE, b"hello"))
    assert peering.peer(7002, outside=7002)[:2] == cannot
    assert peering.peer(6000, outside=9)[2] == 7000  # it is there already
    assert len(peering.sessions()) == 3


def test_rfc6887_12_who_has_a_mapping_keeps_its_port(peering: Asking) -> None:
    peering.map(6000, 7000, protocol=17, now=1000)
    assert peering.peer(6000) == (Result.SUCCESS, 3600, 7000)
    assert peering.peer(6001)[0] is Result.SUCCESS
    assert peering.peer(6002)[:2] == (Result.USER_EX_QUOTA, pcp.SHORT_ERROR_S)  # three in all, of both
    assert peering.map(6002, now=1000)[0] is Result.USER_EX_QUOTA


def test_rfc6887_12_what_no_packet_could_open_is_refused(peering: Asking) -> None:
    for remote in (OTHER_HOST, OUTSIDE_ADDRESS, "224.0.0.1", "127.0.0.1", "0.0.0.0", "255.255.255.255"):
        assert peering.peer(6000, (remote, 53))[0] is Result.NOT_AUTHORIZED
    assert peering.peer(22)[0] is Result.NOT_AUTHORIZED
    assert peering.peer(0)[0] is Result.MALFORMED_REQUEST
    assert peering.peer(6000, ("199.0.0.1", 0))[0] is Result.MALFORMED_REQUEST
    assert peering.peer(6000, protocol=0)[0] is Result.MALFORMED_REQUEST
    assert peering.peer(6000, protocol=132)[0] is Result.UNSUPP_PROTOCOL
    assert peering.peer(6000, REMOTE, 3600, PREFER_FAILURE)[0] is Result.MALFORMED_OPTION
    assert peering.sessions() == []


@pytest.mark.parametrize(("chain", "source", "port"), [
    ("input", HOST, 6000), ("forward", HOST, 6000), ("output", OUTSIDE_ADDRESS, 6000),
])  # fmt: skip
def test_rfc6887_12_rules_have_their_say(peering: Asking, chain: str, source: str, port: int) -> None:
    match = Match(source=(address(source), 0xFFFFFFFF), protocol=17, source_ports=((port, port),))
    rules = [{"do": "append", "chain": chain, "rule": msgspec.to_builtins(Rule(match=match, target="DENY"))}]
    if chain == "forward":
        rules.append({"do": "policy", "chain": chain, "target": "MASQ"})
    peering.gateway.call("rules.change", changes=rules)
    assert peering.peer(6000)[0] is Result.NOT_AUTHORIZED
    assert peering.sessions() == []
    assert peering.peer(6001)[0] is Result.SUCCESS


def test_rfc6887_12_a_connection_begins_or_goes_on_and_is_not_kept_once_it_has_ended(peering: Asking) -> None:
    harness, client = peering.gateway.harness, (HOST, 6000)
    assert peering.peer(6000, outside=7000, protocol=6)[2] == 7000
    assert peering.peer(6001, outside=7001, protocol=6)[2] == 7001
    passes(harness, "inside", tcp(client, REMOTE, "S", seq=100))
    passes(harness, "outside", tcp(REMOTE, (OUTSIDE_ADDRESS, 7000), "SA", seq=900, ack=101))
    passes(harness, "inside", tcp((HOST, 6001), REMOTE, "PA", seq=5, ack=9, payload=b"one of before"))
    passes(harness, "outside", tcp(REMOTE, (OUTSIDE_ADDRESS, 7001), "A", seq=9, ack=18))
    assert sorted(peering.sessions()) == [
        (6000, (OUTSIDE, 7000), "established"), (6001, (OUTSIDE, 7001), "established")
    ]  # fmt: skip
    passes(harness, "inside", tcp(client, REMOTE, "FA", seq=101, ack=901))
    passes(harness, "outside", tcp(REMOTE, (OUTSIDE_ADDRESS, 7000), "FA", seq=901, ack=102))
    peering.pass_seconds(60)
    assert [port for port, *_ in peering.sessions()] == [6001]
    assert [peer.external for peer in peering.leases.peers] == [7001]
    assert peering.leases.granted["lost"] == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("peer"), st.sampled_from([6000, 6001]), st.sampled_from([0, 120, 150])),
        st.tuples(st.just("packet"), st.sampled_from([6000, 6001]), st.just(0)),
        st.tuples(st.just("time"), st.sampled_from([3, TIMEOUT_S + 3, 118, 140]), st.just(0)),
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(STEPS)
def test_rfc6887_12_a_session_is_there_while_it_is_asked_for_or_used(peering: Asking, steps: list[tuple]) -> None:
    peering.pass_seconds(200 + TIMEOUT_S)  # of an example before
    harness, now = peering.gateway.harness, 0
    until, used = {}, {}  # by port: when the peer ends; whether there have been packets
    alive: dict[int, int] = {}  # by port: when the session ends by itself
    for what, number, lifetime in steps:
        if what == "time":
            peering.pass_seconds(number)
            for second in range(now + 1, now + number + 1):
                alive = {port: end for port, end in alive.items() if second < end}
                until = {port: end for port, end in until.items() if second < end and port in alive}
                alive |= {port: second + TIMEOUT_S for port in until}
            now += number
        elif what == "packet":
            passes(harness, "inside", udp((HOST, number), REMOTE, b"hello"))
            alive[number], used[number] = now + TIMEOUT_S, True
        elif lifetime:
            assert peering.peer(number, lifetime=lifetime)[0] is Result.SUCCESS
            used[number] = used.get(number, False) and number in alive
            until[number] = max(now + lifetime, until.get(number, 0))
            alive[number] = now + TIMEOUT_S
        else:
            assert peering.peer(number, lifetime=0)[0] is Result.SUCCESS
            if until.pop(number, None) is not None and not used.get(number):
                del alive[number]
        if all(end > now + 1 for end in alive.values()):  # a timer may be late by a tick
            assert sorted(port for port, *_ in peering.sessions()) == sorted(alive)
        assert sorted(peer.between.port for peer in peering.leases.peers) == sorted(until)


# -- NAT-PMP -----------------------------------------------------------------------------------------------------------


def test_rfc6886_3_2_the_address_and_the_epoch(asking: Asking) -> None:
    request = natpmp.Request(natpmp.ADDRESS)
    assert asking.natpmp(request) == natpmp.address_answer(natpmp.Result.SUCCESS, 100, OUTSIDE)
    asking.gateway.move(None)
    assert asking.natpmp(request)[2:4] == bytes((0, natpmp.Result.NETWORK_FAILURE))


def test_rfc6886_3_3_a_mapping_is_granted_and_deleted(asking: Asking) -> None:
    asked = natpmp.Request(natpmp.MAP_UDP, 6000, 7000, 30)
    granted = natpmp.map_answer(asked, natpmp.Result.SUCCESS, 100, 7000, 30)
    assert asking.natpmp(asked) == granted
    asking.natpmp(natpmp.Request(natpmp.MAP_TCP, 6000, 7000, 30))
    deletion = natpmp.Request(natpmp.MAP_UDP, 0, 0, 0)
    assert asking.natpmp(deletion) == natpmp.map_answer(deletion, natpmp.Result.SUCCESS, 100, 0, 0)
    assert [lease.protocol for lease in asking.leases] == ["tcp"]


@pytest.mark.parametrize(("request_", "result"), [
    (natpmp.Request(natpmp.MAP_TCP, 22, 0, 30), natpmp.Result.NOT_AUTHORIZED),
    (natpmp.Request(natpmp.MAP_TCP, 0, 0, 30), natpmp.Result.NOT_AUTHORIZED),
    (natpmp.Request(9), natpmp.Result.UNSUPPORTED_OPCODE),
])  # fmt: skip
def test_rfc6886_3_5_each_refusal_has_its_result(
    asking: Asking, request_: natpmp.Request, result: natpmp.Result
) -> None:  # fmt: skip
    assert asking.natpmp(request_)[:4] == bytes((0, 128 + request_.opcode, 0, result))


def test_natpmp_cannot_take_away_what_pcp_has_a_nonce_for(asking: Asking) -> None:
    asking.map(6000)
    for lifetime in (0, 30):
        answer = asking.natpmp(natpmp.Request(natpmp.MAP_TCP, 6000, 0, lifetime))
        assert answer[3] == natpmp.Result.NOT_AUTHORIZED
    assert [lease.by for lease in asking.leases] == ["pcp"]


# -- floods, and whatever comes ----------------------------------------------------------------------------------------


def test_who_sends_too_many_gets_no_answer_and_others_do(asking: Asking) -> None:
    request = natpmp.Request(natpmp.ADDRESS).emit()
    answered = sum(asking.ask(request, now=100 + number / 1e6) is not None for number in range(1000))
    assert answered == 200
    assert asking.requests.unanswered == 800
    assert asking.ask(request, OTHER_HOST) is not None
    assert asking.ask(request, now=101) is not None


def test_changes_have_an_allowance_of_their_own(asking: Asking) -> None:
    requests = (natpmp.Request(natpmp.MAP_TCP, 6000, 0, 30 + number).emit() for number in range(100))
    assert sum(asking.ask(request) is not None for request in requests) == 64
    assert asking.ask(natpmp.Request(natpmp.ADDRESS).emit()) is not None
    assert asking.map(6001, host=OTHER_HOST)[0] is Result.SUCCESS


def test_an_allowance_is_of_few_hosts() -> None:
    bucket = Bucket(1, 2)
    for host in range(3 * MOST_HOSTS):
        assert bucket.take(host, 0)
    assert len(bucket._left) == MOST_HOSTS
    last = 3 * MOST_HOSTS - 1
    assert [bucket.take(last, now) for now in (0, 0, S // 2, S)] == [True, False, False, True]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=1200), st.sampled_from([b"", b"\0\1", b"\0\2", b"\2\0", b"\2\1", b"\2\2"]))
def test_any_octets_are_answered_by_few_or_not_at_all(asking: Asking, octets: bytes, beginning: bytes) -> None:
    answer = asking.ask(beginning + octets, now=0)
    assert answer is None or len(answer) <= max(24, len(beginning + octets) + 3)
