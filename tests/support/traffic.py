"""Random traffic: hypothesis strategies for the packets that people, programs and attackers send through a gateway.

Few hosts, ports and remotes, so that packets meet: the interesting things happen when two hosts want one port, and when
an answer, a stranger and an ICMP error arrive at one mapping.
"""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support import packets
from tests.support.packets import BAD, with_ip_checksum
from tests.support.path_network import cut

EXTERNAL = "200.200.200.200"
PROGRAM = "169.254.255.1"  # a program of the host, as the path reaches it
HOSTS = ("10.0.0.2", "10.0.0.3", "10.200.0.4")
REMOTES = ("199.0.0.1", "199.0.0.2", "62.1.2.3")
INSIDE_PORTS = (1024, 1025, 1026, 600, 601, 40000)
REMOTE_PORTS = (53, 80, 1024)
IDENTIFIERS = (1, 8, 13, 1024, 65535)
NUMBERS = (0, 1, 1000, 2**31 - 2, 2**31, 2**32 - 2)  # sequence numbers, near all the edges

hosts = st.sampled_from(HOSTS)
remotes = st.sampled_from(REMOTES)
inside_endpoints = st.tuples(hosts, st.sampled_from(INSIDE_PORTS))
remote_endpoints = st.tuples(remotes, st.sampled_from(REMOTE_PORTS))
identifiers = st.sampled_from(IDENTIFIERS)
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(0, 2**32 - 1))
flags = st.sampled_from(["S", "SA", "A", "PA", "FA", "R", "RA", "F", "", "SF", "SR", "SEC", "UPA"])
syn_options = st.sampled_from(  # as far as they offer an MSS, or seem to
    [b"", b"\2\4\5\xb4", b"\1\2\4\5\xb4", b"\2\4\2\x18", b"\2\4\0\0", b"\2\3\5\xb4", b"\2\4\5", b"\0\2\4\5\xb4"]
)
scales = st.sampled_from([None, 0, 7, 14, 15])
payloads = st.binary(max_size=24)
long_payloads = st.sampled_from([b"", bytes(range(256)) * 2, bytes(548), b"\xff" * 700, b"ab" * 290])

lives = st.sampled_from([{}, {}, {"ttl": 1}])
ip_fields = st.one_of(
    st.just({}),
    st.just({"df": True}),
    st.fixed_dictionaries(
        {},
        optional={
            "ttl": st.sampled_from([0, 1, 2, 64, 255]),
            "tos": st.integers(0, 255),
            "identification": st.integers(0, 65535),
            "df": st.booleans(),
            "options": st.sampled_from([b"\1", bytes.fromhex("94040000"), bytes.fromhex("070b04000000000000000001")]),
        },
    ),
)
checksums = st.sampled_from([None, None, None, BAD])


@st.composite
def udp_between(draw, sources, destinations) -> bytes:
    checksum = draw(st.sampled_from([None, None, 0, BAD]))
    payload = draw(st.one_of(payloads, payloads, long_payloads))
    return packets.udp(draw(sources), draw(destinations), payload, checksum=checksum, **draw(ip_fields))


@st.composite
def tcp_between(draw, sources, destinations, some_flags=flags) -> bytes:
    return packets.tcp(
        draw(sources),
        draw(destinations),
        draw(some_flags),
        seq=draw(numbers),
        ack=draw(numbers),
        window=draw(st.sampled_from([0, 1, 1000, 65535])),
        scale=draw(scales),
        tcp_options=draw(syn_options),
        payload=draw(payloads),
        checksum=draw(checksums),
        **draw(ip_fields),
    )


@st.composite
def pings_between(draw, sources, destinations, kinds) -> bytes:
    return packets.ping(
        draw(sources),
        draw(destinations),
        draw(identifiers),
        kind=draw(st.sampled_from(kinds)),
        seq=draw(st.integers(0, 65535)),
        payload=draw(payloads),
        checksum=draw(checksums),
        **draw(ip_fields),
    )


@st.composite
def other_protocols(draw, sources, destinations) -> bytes:
    protocol = draw(st.sampled_from([0, 2, 4, 47, 50, 51, 132, 255]))
    return packets.ipv4(draw(sources), draw(destinations), protocol, draw(payloads), **draw(ip_fields))


@st.composite
def other_icmp(draw, sources, destinations) -> bytes:
    kind = draw(st.sampled_from([5, 9, 10, 6, 30, 77, 255]))
    return packets.icmp(draw(sources), draw(destinations), kind, payload=draw(payloads), **draw(ip_fields))


syns = tcp_between(inside_endpoints, remote_endpoints, st.just("S"))


def outbound() -> st.SearchStrategy[bytes]:
    """Whatever an inside host may send to the outside."""
    return st.one_of(
        udp_between(inside_endpoints, remote_endpoints),
        syns,
        tcp_between(inside_endpoints, remote_endpoints),
        pings_between(hosts, remotes, [8, 8, 13, 15, 17, 0]),
        other_protocols(hosts, remotes) | other_icmp(hosts, remotes),
    )


external_endpoints = st.tuples(st.just(EXTERNAL), st.sampled_from((*INSIDE_PORTS, 1027, 1028, 22)))


def inbound() -> st.SearchStrategy[bytes]:
    """Whatever a remote host may send to the gateway's external address."""
    external = st.just(EXTERNAL)
    return st.one_of(
        udp_between(remote_endpoints, external_endpoints),
        tcp_between(remote_endpoints, external_endpoints),
        pings_between(remotes, external, [0, 8, 13, 14, 16, 18]),
        other_protocols(remotes, external) | other_icmp(remotes, external),
    )


@st.composite
def pieces_between(draw, sources, destinations) -> bytes:
    """Fragments: first, middle and last ones."""
    fields = draw(st.sampled_from([{"mf": True}, {"mf": True, "offset": 64}, {"offset": 8}, {"offset": 1480}]))
    payload = draw(st.one_of(st.just(bytes(8)), payloads, long_payloads))
    protocol = draw(st.sampled_from([packets.UDP, packets.TCP, packets.ICMP, 47]))
    return packets.ipv4(draw(sources), draw(destinations), protocol, b"\x08" + payload, **fields, **draw(lives))


@st.composite
def long_between(draw, protocol: int, source: tuple, destination: tuple) -> bytes:
    """A datagram worth cutting up. Few identifications, so that pieces of several may be taken for one."""
    payload = bytes(range(draw(st.sampled_from([40, 256])))) * draw(st.sampled_from([1, 2, 3]))
    fields = {"identification": draw(st.sampled_from([7, 7, 8])), **draw(lives)}
    if protocol == packets.UDP:
        return packets.udp(source, destination, payload, checksum=draw(st.sampled_from([None, 0, BAD])), **fields)
    if protocol == packets.TCP:
        return packets.tcp(source, destination, draw(st.sampled_from(["S", "PA", "R"])), payload=payload, **fields)
    if protocol != packets.ICMP:
        return packets.ipv4(source[0], destination[0], protocol, payload, **fields)
    if source[1] in (8, 13, 15, 17):
        answer = {8: 0, 13: 14, 15: 16, 17: 18}[source[1]]
        return packets.ping(source[0], destination[0], destination[1], kind=answer, payload=payload, **fields)
    return packets.ping(source[0], destination[0], source[1], kind=destination[1], payload=payload, **fields)


@st.composite
def cut_up(draw, packet: bytes) -> list[bytes]:
    """The fragments of a packet, its transport header in the first."""
    return cut(packet, 24, *draw(st.lists(st.sampled_from([8, 16, 232, 480]), min_size=1, max_size=3)))


@st.composite
def long_from(draw, sources, destinations) -> bytes:
    protocol = draw(st.sampled_from([packets.UDP, packets.UDP, packets.TCP, packets.ICMP, 47]))
    source, destination = draw(sources), draw(destinations)
    if protocol == packets.ICMP:
        source, destination = (source[0], draw(identifiers)), (destination[0], 8)
    return draw(long_between(protocol, source, destination))


long_outbound = long_from(inside_endpoints, remote_endpoints | external_endpoints)
long_inbound = long_from(remote_endpoints, external_endpoints)


ADDRESSES = (
    *HOSTS,
    *REMOTES,
    EXTERNAL,
    "10.0.0.0",
    "10.0.0.1",
    "10.255.255.255",
    "200.200.200.255",
    "200.200.200.1",
    "255.255.255.255",
    "224.0.0.1",
    "127.0.0.1",
    "0.0.0.0",
    "240.0.0.1",
    PROGRAM,
)
any_address = st.sampled_from(ADDRESSES)
any_endpoint = st.tuples(any_address, st.sampled_from((*INSIDE_PORTS, *REMOTE_PORTS)))


def anywhere() -> st.SearchStrategy[bytes]:
    """Packets between any two addresses, most of them wrong on any link."""
    return st.one_of(
        udp_between(any_endpoint, any_endpoint),
        tcp_between(any_endpoint, any_endpoint),
        pings_between(any_address, any_address, [8, 0]),
        other_protocols(any_address, any_address) | other_icmp(any_address, any_address),
        pieces_between(any_address, any_address),
        pieces_between(hosts, hosts),
    )


@st.composite
def damaged(draw, whole: st.SearchStrategy[bytes]) -> bytes:
    """A packet with some octets changed, cut short or prolonged; often with a right header checksum all the same."""
    packet = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(packet) - 1))
        packet[at] = draw(st.sampled_from([0, 1, 255, packet[at] ^ 1, packet[at] ^ 128, draw(st.integers(0, 255))]))
    cut = draw(st.sampled_from([0, 0, 0, 1, 8, 20]))
    result = bytes(packet[: max(1, len(packet) - cut)]) + bytes(draw(st.sampled_from([0, 0, 3, 18])))
    repaired = draw(st.booleans()) and len(result) >= 20 and len(result) >= (result[0] & 15) * 4 >= 20
    return with_ip_checksum(result) if repaired else result


ERRORS = ((3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (4, 0), (11, 0), (11, 1), (12, 0), (5, 1))


@st.composite
def errors_about(draw, sources, destination: str, quote: bytes) -> bytes:
    """An ICMP error about a packet, whole or cut, right or subtly wrong."""
    kind, code = draw(st.sampled_from(ERRORS))
    kept = draw(st.sampled_from([None, None, 28, 30, 36, 38, 40, 27, 20, 19]))
    mtu = draw(st.sampled_from([0, 67, 68, 1280])) if (kind, code) == (3, 4) else 0
    fields = draw(ip_fields)
    return packets.icmp_error(
        draw(sources), destination, kind, code, quote[:kept], mtu=mtu, checksum=draw(checksums), **fields
    )
