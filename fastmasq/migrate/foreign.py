"""What rules of iptables and nftables have in common once they are read: chains of rules, and what a rule asks.

Their readers (iptables_save, nft_json) make these; `evaluate` asks them. A rule asks by tests, all of which must hold.
A test knows in which scene (`Scene`) it holds, or which values of a field of the packet it wants; what a reader does
not know becomes a test that may hold or not (`Unknown`), and an action that may do anything ("unknown").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError
from typing import NamedTuple

from msgspec import Struct

from fastmasq.migrate.regions import (
    DESTINATION_PORT,
    EVERYTHING,
    PROTOCOL,
    SOURCE_PORT,
    Ranges,
    common,
    complement,
    ranges_of,
)
from fastmasq.wire.numbers import BY_NAME, ICMP, TCP, UDP

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = "prerouting", "input", "forward", "output", "postrouting"
HOOKS = (PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING)
NAT_PRIORITY = {PREROUTING: -100, OUTPUT: -100, INPUT: 100, POSTROUTING: 100}  # where the kernel calls all nat chains

PROTOCOLS = {
    **{"all": 0, "ip": 0, "igmp": 2, "ipencap": 4, "ipip": 4, "egp": 8, "igp": 9, "dccp": 33, "ipv6": 41, "rsvp": 46},
    **{"ipv6-icmp": 58, "icmpv6": 58, "eigrp": 88, "ospf": 89, "pim": 103, "ipcomp": 108, "comp": 108, "vrrp": 112},
    **{"l2tp": 115, "sctp": 132, "udplite": 136, **BY_NAME},
}
VERDICTS = ("accept", "drop", "reject", "return", "jump", "goto", "masquerade", "snat", "dnat", "redirect", "unknown")
MASQUERADING = ("masquerade", "snat")

NEW, ESTABLISHED, RELATED = "new", "established", "related"


class Scene(NamedTuple):
    """What is known of a packet beside its fields: its links ("" for none), and what conntrack makes of it.

    state: NEW for the first packet of a flow, ESTABLISHED for those behind, RELATED for ICMP errors about them.
    answers: whether it goes the other way. is_local: whether it is addressed to the host. translated: whether its
    destination has been changed. from_host: whether the host sends it. flags: of a TCP segment.
    """

    in_link: str
    out_link: str
    state: str = NEW
    answers: bool = False
    is_local: bool = False
    translated: bool = False
    from_host: bool = False

    @property
    def flags(self) -> frozenset[str]:
        if self.state == NEW:
            return frozenset({"syn"})
        return frozenset({"syn", "ack"} if self.answers else {"ack"})

    def facts(self, name: str) -> frozenset[str] | None:
        """Return all that is true of the packet under a name; None where that cannot be told."""
        match name:
            case "ct state":
                return frozenset({self.state})
            case "ctstate":
                return frozenset({self.state, *(["dnat"] if self.translated else [])})
            case "ct status":
                return frozenset({"dnat"} if self.translated else {"none"})
            case "ct direction":
                return frozenset({"reply" if self.answers else "original"})
            case "daddr type":
                return frozenset({"local" if self.is_local else "unicast"})
            case "saddr type":
                return frozenset({"local" if self.from_host else "unicast"})
            case "pkttype":
                return frozenset({"host", "unicast"})
            case "nfproto":
                return frozenset({"ipv4", "ip"})
            case "fragment" | "bridged" | "ipsec":
                return frozenset({"no"})
            case "path back":
                return frozenset({"exists"})
        return None


class Within(NamedTuple):
    """The values that a field of the packet may have; `regions` numbers the fields."""

    field: int
    ranges: Ranges


class LinkIs(NamedTuple):
    """The link of a side ("in" or "out") has one of these names, of which a + at the end stands for any rest."""

    side: str
    names: tuple[str, ...]
    inverted: bool = False

    def holds(self, scene: Scene) -> bool:
        name = scene.in_link if self.side == "in" else scene.out_link
        return any(is_named(name, wanted) for wanted in self.names) != self.inverted

    def singles_out(self) -> tuple[str, ...]:
        """Return the links that are named, one by one."""
        return () if self.inverted else tuple(name for name in self.names if not name.endswith("+"))


class Fact(NamedTuple):
    """One of these values is true of the packet (`Scene.facts`)."""

    name: str
    values: frozenset[str]
    inverted: bool = False

    def holds(self, scene: Scene) -> bool | None:
        facts = scene.facts(self.name)
        return None if facts is None else bool(facts & self.values) != self.inverted


class Flags(NamedTuple):
    """Of these flags of a TCP segment, exactly those wanted are set."""

    mask: frozenset[str]
    wanted: frozenset[str]
    inverted: bool = False

    def holds(self, scene: Scene) -> bool:
        return (scene.flags & self.mask == self.wanted) != self.inverted


class Never(NamedTuple):
    """What no IPv4 packet is."""

    def holds(self, scene: Scene) -> bool:
        return False


PACKET, FLOW = "packet", "flow"  # what has a mark
WHOLE_MARK = 0xFFFFFFFF


class Marks(NamedTuple):
    """The marks of a packet under way and of its flow (conntrack's); None where it cannot be known."""

    packet: int | None = 0
    flow: int | None = 0


class Mark(NamedTuple):
    """The mark of a packet or a flow is a value under a mask."""

    value: int
    mask: int
    inverted: bool
    text: str
    of: str = PACKET

    def holds(self, marks: Marks) -> bool | None:
        mark = marks.packet if self.of == PACKET else marks.flow
        return None if mark is None else (mark & self.mask == self.value) != self.inverted


class Marking(NamedTuple):
    """The mark of a packet or a flow becomes (what one of both was & mask) ^ value.

    by: PACKET, FLOW, or "" for a mark that becomes the value; "?" for what is not known.
    """

    of: str
    by: str = "?"
    mask: int = 0
    value: int = 0

    def changed(self, marks: Marks) -> Marks:
        before = {PACKET: marks.packet, FLOW: marks.flow, "": 0}.get(self.by)
        after = None if before is None else (before & self.mask) ^ self.value
        return marks._replace(**{self.of: after})


class Unknown(NamedTuple):
    """What the reader does not know, as it is written."""

    text: str

    def holds(self, scene: Scene) -> None:
        return None


Test = Within | LinkIs | Fact | Flags | Never | Mark | Unknown

_PORTS = (SOURCE_PORT, DESTINATION_PORT)
_WITH_PORTS = ranges_of(((TCP, TCP), (UDP, UDP)))


def by_protocol(tests: Sequence[Test]) -> Iterator[tuple[Test, ...]]:
    """Yield the tests of a rule, or of its parts where it asks for ports of protocols whose ports nobody knows here."""
    protocols = EVERYTHING[PROTOCOL]
    for test in tests:
        if isinstance(test, Within) and test.field == PROTOCOL:
            protocols = common(protocols, test.ranges)
    others = common(protocols, complement(_WITH_PORTS, PROTOCOL))
    without = [test for test in tests if not (isinstance(test, Within) and test.field in _PORTS)]
    if len(without) == len(tests) or not others or protocols == ((ICMP, ICMP),):
        yield tuple(tests)
        return
    if known := common(protocols, _WITH_PORTS):
        yield (Within(PROTOCOL, known), *tests)
    yield (Within(PROTOCOL, others), *without, Unknown("ports of other protocols than TCP and UDP"))


class ForeignRule(Struct, frozen=True, kw_only=True):
    """One rule. place: where it stands; text: how it is written.

    action: one of VERDICTS, or "" for a rule that decides nothing. to: what the action names: a chain, "ADDRESS",
    "ADDRESS:PORT" or "PORT". log: whether it logs. alters: why what it changes in packets is left out. marking: what
    it makes of marks.
    """

    place: str
    text: str
    tests: tuple[Test, ...] = ()
    action: str = ""
    to: str = ""
    log: bool = False
    alters: str = ""
    marking: Marking | None = None


class ForeignChain(Struct, kw_only=True, eq=False):
    """One chain of a table. hook: where the kernel calls it, "" for one that rules jump to.

    policy: of a hook: accept or drop. number: in the order in which the chains were made.
    """

    table: str
    name: str
    place: str
    kind: str = "filter"
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    number: int = 0
    rules: list[ForeignRule] = []


def is_named(name: str, wanted: str) -> bool:
    """Whether a link has a name, of which a + at the end stands for any rest."""
    return name.startswith(wanted[:-1]) if wanted.endswith("+") else name == wanted


# -- words that both have ---------------------------------------------------------------------------------------------


def read_network(text: str) -> tuple[int, int]:
    """Return the first and last address of "10.0.0.0/8", "10.0.0.2" or "10.0.0.2-10.0.0.9". Raises ValueError.

    A mask with holes is refused: such addresses are no range.
    """
    try:
        if "-" in text:
            first, last = (int(IPv4Address(end)) for end in text.split("-"))
            if first > last:
                raise ValueError(f"{text!r} runs backwards")
            return first, last
        network = IPv4Network(text, strict=False)
    except (AddressValueError, NetmaskValueError) as error:
        raise ValueError(f"{text!r} is not an IPv4 network") from error
    return int(network.network_address), int(network.broadcast_address)


def read_ports(text: str, separator: str) -> tuple[int, int]:
    """Return the range of "80" or "2000:2010". Raises ValueError for a name of a service."""
    first, _, last = text.partition(separator)
    ports = int(first or 0), int(last or (first if separator not in text else 0xFFFF))
    if not 0 <= ports[0] <= ports[1] <= 0xFFFF:
        raise ValueError(f"{text!r} are no ports")
    return ports


def read_protocol(text: str) -> Ranges:
    """Return the numbers of a protocol, of which "all" has every one. Raises ValueError."""
    number = PROTOCOLS[text.lower()] if text.lower() in PROTOCOLS else int(text, 0)
    if not 0 <= number <= 0xFF:
        raise ValueError(f"{text!r} is no protocol")
    return ((number, number),) if number else ((0, 0xFF),)


ICMP_TYPES = {
    **{"echo-reply": (0, None), "pong": (0, None), "destination-unreachable": (3, None), "source-quench": (4, None)},
    **{"redirect": (5, None), "echo-request": (8, None), "ping": (8, None), "time-exceeded": (11, None)},
    **{"ttl-exceeded": (11, None), "ttl-zero-during-transit": (11, 0), "ttl-zero-during-reassembly": (11, 1)},
    **{"parameter-problem": (12, None), "timestamp-request": (13, None), "timestamp-reply": (14, None)},
    **{"info-request": (15, None), "info-reply": (16, None), "address-mask-request": (17, None)},
    **{"address-mask-reply": (18, None), "network-unreachable": (3, 0), "host-unreachable": (3, 1)},
    **{"protocol-unreachable": (3, 2), "port-unreachable": (3, 3), "fragmentation-needed": (3, 4)},
    **{"network-prohibited": (3, 9), "host-prohibited": (3, 10), "communication-prohibited": (3, 13)},
    **{"router-advertisement": (9, None), "router-solicitation": (10, None)},
}


def read_icmp(text: str) -> tuple[Ranges, Ranges]:
    """Return the types and codes of a name, "8" or "3/4". Raises ValueError."""
    if text in ICMP_TYPES:
        kind, code = ICMP_TYPES[text]
    else:
        first, _, second = text.partition("/")
        kind, code = int(first), int(second) if second else None
    if not 0 <= kind <= 0xFF or not 0 <= (code or 0) <= 0xFF:
        raise ValueError(f"{text!r} is no type of ICMP")
    return ranges_of([(kind, kind)]), ranges_of([(0, 0xFFFF) if code is None else (code, code)])
