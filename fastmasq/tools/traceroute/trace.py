"""Traces GRE, ESP or UDP hop by hop: probes, which one an ICMP error is about, and what two protocols' ways mean.

Nothing here has a socket or a clock. Probes of a protocol differ in their first 8 octets, which every ICMP error quotes
(RFC 792), so an answer finds its probe also when translators changed the rest. A probe whose TTL ends at a router
brings a time exceeded from it. If UDP goes on where the protocol stops, something there drops the protocol; if both
stop, the path is broken, or what follows answers nobody.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Literal, NamedTuple

from msgspec import Struct

from fastmasq.wire.numbers import ESP, GRE, UDP

Protocol = Literal["gre", "esp", "udp"]
Verdict = Literal["reached", "passes", "refused", "filtered", "broken", "silent", "undecided"]

NUMBERS: dict[Protocol, int] = {"gre": GRE, "esp": ESP, "udp": UDP}
NAMES: dict[Protocol, str] = {"gre": "GRE", "esp": "ESP", "udp": "UDP"}
GOOD: tuple[Verdict, ...] = ("reached", "passes")

FIRST_PORT = 33_434  # UDP, where nobody listens
SPI = 0x74726163  # of every trace: a gateway takes another SPI for another start, and lets one wait for the other
MOST_SILENT = 5  # hops in a row without any answer, after which a trace ends

UNREACHABLE, TIME_EXCEEDED = 3, 11  # RFC 792
_PROTOCOL_UNREACHABLE, _PORT_UNREACHABLE = 2, 3
_REFUSALS = {
    _PROTOCOL_UNREACHABLE: "protocol unreachable",
    _PORT_UNREACHABLE: "port unreachable",
    9: "network administratively prohibited",
    10: "host administratively prohibited",
    13: "administratively prohibited",
}  # from a router: what a firewall says that rejects (RFC 1812 section 5.2.7.1, and the REJECT targets of today)
_PROHIBITED = (9, 10, 13)
_MARKS = {0: "!N", 1: "!H", 2: "!P", 4: "!F", 5: "!S", 13: "!X", 14: "!V", 15: "!C"}  # as traceroute(8) writes them

_GRE = struct.Struct("!HHHHI")  # flags with acknowledgment, PPP, payload length 0, Call ID, acknowledgment
_ESP = struct.Struct("!II")
_ESP_BODY = bytes(24)  # octets that look encrypted enough: an empty packet of the usual ciphers is as long


class Probes(NamedTuple):
    """The probes of one protocol towards one host. `base` is the first Call ID, or UDP's source port; ESP has none."""

    protocol: Protocol
    destination: str
    base: int

    def octets(self, number: int) -> bytes:
        """Return what follows the IPv4 header of a probe, for UDP its payload; probes are numbered from 0.

        GRE: a bare acknowledgment (RFC 2637 section 4.1), with a Call ID of its own. ESP: sequence numbers from 1 (RFC
        4303 section 2.2).
        """
        if self.protocol == "gre":
            return _GRE.pack(0x2081, 0x880B, 0, (self.base + number) & 0xFFFF, 0)
        if self.protocol == "esp":
            return _ESP.pack(SPI, number + 1) + _ESP_BODY
        return bytes(8)

    def number_of(self, error: IcmpError) -> int | None:
        """Return which probe an ICMP error is about; None if none of these."""
        if (error.destination, error.protocol) != (self.destination, NUMBERS[self.protocol]) or len(error.quoted) < 8:
            return None
        if self.protocol == "gre":
            flags, kind, _, call_id = struct.unpack_from("!HHHH", error.quoted)
            return (call_id - self.base) & 0xFFFF if (flags, kind) == (0x2081, 0x880B) else None
        if self.protocol == "esp":
            spi, sequence = _ESP.unpack_from(error.quoted)
            return sequence - 1 if spi == SPI else None
        source, destination = struct.unpack_from("!HH", error.quoted)
        return destination - FIRST_PORT if source == self.base else None


class IcmpError(NamedTuple):
    """An ICMP error: its sender, type and code, and of the packet it is about destination, protocol, first octets."""

    sender: str
    type: int
    code: int
    destination: str
    protocol: int
    quoted: bytes

    @classmethod
    def parse(cls, packet: bytes) -> IcmpError | None:
        """Read a destination unreachable or time exceeded from an IPv4 packet; None if it is none, or cut."""
        header = (packet[0] & 15) * 4 if packet else 0
        icmp, inner = packet[header:], packet[header + 8 :]
        if header < 20 or len(inner) < 20 or packet[9] != 1 or icmp[0] not in (UNREACHABLE, TIME_EXCEEDED):
            return None
        quoted = inner[(inner[0] & 15) * 4 :]
        return cls(dotted(packet[12:16]), icmp[0], icmp[1], dotted(inner[16:20]), inner[9], quoted)


class Answer(Struct, frozen=True):
    """An ICMP error about one probe, and how long it took, in nanoseconds."""

    address: str
    type: int
    code: int
    elapsed_ns: int

    @property
    def mark(self) -> str:
        """Return what traceroute writes behind the time: !X for prohibited, nothing for a time exceeded."""
        if self.type != UNREACHABLE or self.code == _PORT_UNREACHABLE:
            return ""
        return _MARKS.get(self.code, f"!{self.code}")


class Hop(Struct, frozen=True):
    """The answers to the probes of one TTL, None for each that got none."""

    ttl: int
    answers: tuple[Answer | None, ...]

    def first(self, *types: int) -> Answer | None:
        return next((answer for answer in self.answers if answer is not None and answer.type in types), None)


class Finding(Struct, frozen=True, kw_only=True):
    """What a trace means. `hop` is the last TTL the protocol was seen at, and `address` who answered there."""

    verdict: Verdict
    hop: int
    address: str
    said: str
    hint: str = ""


class Trace:
    """The ways of one or two protocols to a host, as far as they are known."""

    def __init__(self, destination: str, protocols: Iterable[Protocol], most_hops: int) -> None:
        self.destination = destination
        self.hops: dict[Protocol, list[Hop]] = {protocol: [] for protocol in protocols}
        self._most_hops = most_hops
        self._ttl = 0
        self._silent = 0

    def wanted(self) -> tuple[int, list[Protocol]]:
        """Return the next TTL, and the protocols to try with it: none when the trace is over."""
        ends = {protocol: self._end(protocol) for protocol in self.hops}
        arrived = any(end is not None and end.address == self.destination for end in ends.values())
        ended = ends[next(iter(ends))] is not None
        if arrived or ended or self._ttl >= self._most_hops or self._silent >= MOST_SILENT:
            return self._ttl + 1, []
        return self._ttl + 1, [protocol for protocol, end in ends.items() if end is None]

    def add(self, hops: dict[Protocol, Hop]) -> None:
        """Take the answers of the TTL that `wanted` returned."""
        self._ttl += 1
        for protocol, hop in hops.items():
            self.hops[protocol].append(hop)
        answered = any(answer for hop in hops.values() for answer in hop.answers)
        self._silent = 0 if answered else self._silent + 1

    def finding(self) -> Finding:
        """Return what is known now about the first protocol, by comparison with UDP."""
        main, *others = self.hops
        return judge(main, self.hops[main], self.hops[others[0]] if others else None, self.destination)

    def _end(self, protocol: Protocol) -> Answer | None:
        hops = self.hops[protocol]
        return _final(hops[-1], self.destination) if hops else None


def judge(protocol: Protocol, hops: list[Hop], udp: list[Hop] | None, destination: str) -> Finding:
    """Return what the way of a protocol means, beside the way of UDP if that was tried."""
    name = NAMES[protocol]
    end = _final(hops[-1], destination) if hops else None
    last, address = _last_router(hops)

    def finding(verdict: Verdict, said: str, hint: str = "") -> Finding:
        return Finding(verdict=verdict, hop=last, address=address, said=said, hint=hint)

    if end is not None:
        last, address = hops[-1].ttl, end.address
        return finding(*_ended(protocol, end, last, destination))
    if udp is None:
        if not last:
            return finding("silent", "no answer at all", _SILENT_HINT)
        return finding("undecided", f"{name} gets to hop {last}, {address}, and no further")
    udp_end = _final(udp[-1], destination) if udp else None
    udp_last, _ = _last_router(udp)
    number = NUMBERS[protocol]
    if udp_last > last:
        after, after_address = next(
            (hop.ttl, answer.address) for hop in udp if hop.ttl > last and (answer := hop.first(TIME_EXCEEDED))
        )
        before = f"hop {last}, {address}" if last else "this host"
        return finding(
            "filtered",
            f"{name} gets no further than {before}, and UDP goes on to hop {after}, {after_address}",
            f"one of these two drops IP protocol {number}: ask who runs them to let it pass, both ways",
        )
    if udp_end is not None and udp_end.address == destination:
        return finding(
            "passes",
            f"{name} passes every router that answers, up to hop {last}, {address or 'none'}; {destination} "
            "answers UDP and is silent about it",
            _SILENT_SERVER[protocol],
        )
    if last > udp_last:
        return finding(
            "undecided",
            f"{name} gets to hop {last}, {address}, and UDP {f'only to hop {udp_last}' if udp_last else 'nowhere'}: "
            "nothing to compare with",
            "a firewall drops UDP earlier, so the path may be whole behind it",
        )
    if udp_end is not None:
        return finding(
            "broken",
            f"{udp_end.address} says of UDP: {_word(udp_end)}; {name} ends there too",
            "the path is broken there for everything, so this is no matter of the VPN",
        )
    if not last:
        return finding("silent", f"neither {name} nor UDP gets any answer", _SILENT_HINT)
    return finding(
        "broken",
        f"{name} and UDP both end behind hop {last}, {address}",
        "the path is broken there for everything, or what follows answers nobody; try `ping` to tell these apart",
    )


_SILENT_HINT = "ICMP does not come back: a firewall near this host drops it, or the default route leads nowhere"
_SILENT_SERVER: dict[Protocol, str] = {
    "gre": "a PPTP server ignores calls it does not know, and a firewall in front of it is silent as well: "
    "`fastmasq test pptp --call` tells which",
    "esp": "an IPsec host ignores SPIs it does not know, and a firewall in front of it is silent as well: "
    "`fastmasq sniff` during a real negotiation tells which",
    "udp": "",
}


def _ended(protocol: Protocol, end: Answer, ttl: int, destination: str) -> tuple[Verdict, str, str]:
    """Return verdict, sentence and hint of a way that ended by an answer."""
    name, there = NAMES[protocol], f"{end.address} (hop {ttl})"
    if end.type == UNREACHABLE and end.code in _PROHIBITED:
        return "refused", f"{there} refuses {name}: {_word(end)}", "its firewall must let it pass, both ways"
    if end.address == destination:
        unknown = end.type == UNREACHABLE and end.code == _PROTOCOL_UNREACHABLE
        spoken = f"; it does not speak {name} itself ({_word(end)})" if unknown else ""
        hint = "if it should be the VPN's server: the service does not run there" if unknown else ""
        return "reached", f"{name} reaches {there}{spoken}", hint
    if end.code in _REFUSALS:
        return "refused", f"{there} refuses {name}: {_word(end)}", "its firewall must let it pass, both ways"
    return "broken", f"{there} says: {_word(end)}", "it has no route to the host; this is no matter of the VPN"


def _final(hop: Hop, destination: str) -> Answer | None:
    """Return the answer that ends a way: anything from the host itself, or a destination unreachable."""
    own = (answer for answer in hop.answers if answer is not None and answer.address == destination)
    return next(own, None) or hop.first(UNREACHABLE)


def _last_router(hops: list[Hop]) -> tuple[int, str]:
    """Return TTL and address of the last router that answered by a time exceeded; (0, "") if none did."""
    answered = [(hop.ttl, answer.address) for hop in hops if (answer := hop.first(TIME_EXCEEDED))]
    return answered[-1] if answered else (0, "")


def _word(answer: Answer) -> str:
    if answer.type == TIME_EXCEEDED:
        return "time exceeded"
    plain = {0: "network unreachable", 1: "host unreachable", 4: "fragmentation needed"}
    return {**plain, **_REFUSALS}.get(answer.code, f"destination unreachable, code {answer.code}")


def dotted(octets: bytes) -> str:
    return ".".join(map(str, octets))
