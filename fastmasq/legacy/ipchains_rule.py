"""Puts together the rules that the options of one ipchains command line describe, and refuses what cannot be.

The checks stand in the order of the original: of several mistakes the same one is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from msgspec.structs import replace

from fastmasq.legacy import icmp_names
from fastmasq.legacy import names as known
from fastmasq.legacy.names import Names
from fastmasq.legacy.tokens import Misuse, number
from fastmasq.legacy.values import Values
from fastmasq.policy.chains import ANY_PORT, FORWARD, INPUT, MASQ, OUTPUT, REDIRECT, Match, Rule
from fastmasq.wire.numbers import ICMP, TCP, UDP

PROGRAM = "ipchains"
Ports = tuple[tuple[int, int], ...]
HINT = "Try `ipchains -h' or 'ipchains --help' for more information."

_TOS_OF_USE = {
    **{0x10: "Minimize Delay", 0x08: "Maximize Throughput", 0x04: "Maximize Reliability", 0x02: "Minimize Cost"},
    **{0: "Normal Service"},
}
_COUNTED_TOS = 0x0E  # the original does not count 0x10, minimize delay
_PORT_PROTOCOLS = (ICMP, TCP, UDP)
_ANYWHERE = "0.0.0.0/0"
_LONGEST_INTERFACE = 16
WHOLE_PACKET = 0xFFFF


def fail(text: str) -> NoReturn:
    raise Misuse(PROGRAM, text, HINT)


def values_of(names: Names) -> Values:
    """Return the reader of values that quotes as ipchains does."""
    return Values(names, fail, lambda text: f"`{text}'")


class RuleOptions:
    """The options of one line that describe rules.

    given: option letter -> its value ("" for none); ports of source and destination are "1" and "2". inverted: the
    letters that had a "!". redirect_port: the word behind the target REDIRECT. tos_xor: the second word of -t.
    """

    def __init__(self, names: Names) -> None:
        self.given: dict[str, str] = {}
        self.inverted: set[str] = set()
        self.redirect_port = "0"
        self.tos_xor = "0"
        self.warnings: list[str] = []
        self._values = values_of(names)

    def rules(self, command: str, chain: str | None) -> list[Rule]:
        """Return a rule for each source with each destination address, and with -b each the other way round.

        command, chain: what the rules are for. Raises Misuse.
        """
        protocol = self._protocol()
        # addresses and ports of one end, then of the other: the order in which mistakes are found
        sources = self._values.addresses(self.given.get("s", _ANYWHERE))
        source_ports = () if protocol == ICMP else self._ports("1", protocol)
        destinations = self._values.addresses(self.given.get("d", _ANYWHERE))
        destination_ports = () if protocol == ICMP else self._ports("2", protocol)
        if protocol == ICMP:
            source_ports, destination_ports = self._icmp(command == "C")
        self._check_addresses(sources, destinations)
        self._check_protocol(protocol)
        if command == "C":
            self._check_packet(protocol, source_ports, destination_ports)
        self._check_target(protocol, chain)
        if command == "R" and (len(sources) > 1 or len(destinations) > 1):
            fail("Replacement rule does not specify a unique address")
        template = self._template(protocol, source_ports, destination_ports)
        rules = [
            replace(template, match=replace(template.match, source=source, destination=destination))
            for source in sources
            for destination in destinations
        ]
        return rules + [_turned_round(rule) for rule in rules] if "b" in self.given else rules

    def _template(self, protocol: int, source_ports: Ports, destination_ports: Ports) -> Rule:
        """Return the rule, still without addresses."""
        return Rule(
            match=Match(
                protocol=protocol,
                source_ports=source_ports,
                destination_ports=destination_ports,
                interface=self._interface(),
                syn=self._flag("y"),
                fragment=self._flag("f"),
                not_source="s" in self.inverted,
                not_destination="d" in self.inverted,
                not_protocol="p" in self.inverted,
                not_source_ports="1" in self.inverted,
                not_destination_ports="2" in self.inverted,
                not_interface="i" in self.inverted,
            ),
            target=self.given.get("j", ""),
            redirect_port=self._port(self.redirect_port, protocol) if self.given.get("j") == REDIRECT else 0,
            log="l" in self.given,
            mark=self._mark(),
            tos=self._tos(),
            output=self._output(),
        )

    def _flag(self, letter: str) -> bool | None:
        return letter not in self.inverted if letter in self.given else None

    def _protocol(self) -> int:
        text = self.given.get("p", "0")
        protocol = number(text, 0, 0xFFFF)
        protocol = self._values.names.protocol(text) if protocol is None else protocol
        if protocol is None:
            fail(f"unknown protocol `{text}' specified")
        if protocol == known.ALL and "p" in self.inverted:
            fail("rule would never match protocol")
        return protocol

    def _ports(self, letter: str, protocol: int) -> Ports:
        """Return the range of one end; none when it covers all ports, which even fragments match."""
        if letter not in self.given:
            return ()
        first, colon, last = self.given[letter].partition(":")
        if not colon:
            ports = (self._port(first, protocol),) * 2
        else:
            ports = (
                self._port(first, protocol) if first else ANY_PORT[0],
                self._port(last, protocol) if last else ANY_PORT[1],
            )
        return () if ports == ANY_PORT and letter not in self.inverted else (ports,)

    def _port(self, text: str, protocol: int) -> int:
        if protocol not in _PORT_PROTOCOLS:
            fail("can only specify ports for icmp, tcp or udp")
        return self._values.port(text, protocol)

    def _icmp(self, checking: bool) -> tuple[Ports, Ports]:
        """Return type and code as ranges, from a name or from numbers in the places of ports."""
        near = icmp_names.beginning_with(self.given["1"]) if "1" in self.given else []
        if not near:
            return self._ports("1", ICMP), self._ports("2", ICMP)
        if len(near) > 1:
            fail(f"Ambiguous ICMP `{self.given['1']}' : `{near[0].name}' or `{near[1].name}'?")
        if "2" in self.given:
            fail("Can't use ICMP name and destination port together")
        name = near[0]
        codes = name.codes
        if checking:
            if not name.exact:
                fail("Must specify exact ICMP type for testing")
            codes = (codes[0], codes[0])
        if "1" in self.inverted:
            fail("Can't invert named ICMP types")
        self.given["2"] = ""
        return ((name.type, name.type),), () if codes == ANY_PORT else (codes,)

    def _interface(self) -> str:
        name = self.given.get("i", "")
        if len(name) > _LONGEST_INTERFACE:
            fail(f"interface name `{name}' must be shorter than IFNAMSIZ ({_LONGEST_INTERFACE})")
        return "" if name == "+" and "i" not in self.inverted else name

    def _mark(self) -> tuple[str, int] | None:
        if "m" not in self.given:
            return None
        text = self.given["m"]
        digits = text[1:] if text[:1] in ("+", "-") else text
        try:
            amount = int(digits, 8 if digits.startswith("0") and digits[1:].isdigit() else 0)
        except ValueError:
            amount = -1
        if not 0 <= amount <= 0xFFFFFFFF:
            fail(f"Bad value `{text}' for -m.")
        if digits is text:
            return "set", amount
        return ("add", -amount % 0x1_0000_0000 if text[0] == "-" else amount) if amount else None

    def _tos(self) -> tuple[int, int]:
        if "t" not in self.given:
            return 0xFF, 0
        tos_and, tos_xor = self._values.hexbyte(self.given["t"]), self._values.hexbyte(self.tos_xor)
        if not tos_and & 1 or tos_xor & 1:
            fail("TOS manipulation cannot alter bit 0 (RFC1349)")
        if (~tos_and & tos_xor & _COUNTED_TOS).bit_count() > 1:
            fail("TOS manipulation cannot set multiple TOS bits (RFC1349)")
        for tos, name in _TOS_OF_USE.items():
            if ((tos & tos_and ^ tos_xor) & _COUNTED_TOS).bit_count() > 1:
                self.warnings.append(f"TOS manipulation may set multiple TOS bits for {name} TOS (0x{tos:02x})")
        return tos_and, tos_xor

    def _output(self) -> int:
        if "o" not in self.given:
            return 0
        size = number(self.given["o"], 0, WHOLE_PACKET)
        return fail(f"-o argument must be 0-65535, not `{self.given['o']}'") if size is None else size

    # -- what does not go together ---------------------------------------------------------------------------------

    def _check_addresses(self, sources: Sequence[object], destinations: Sequence[object]) -> None:
        if len(sources) > 1 or len(destinations) > 1:
            if self.inverted & {"s", "d"}:
                fail("! not allowed with multiple source or destination IP addresses")
            if "b" in self.given:
                fail("-b not allowed with multiple source or destination IP addresses")

    def _check_protocol(self, protocol: int) -> None:
        has_ports = "1" in self.given or "2" in self.given
        if (protocol == known.ALL or "p" in self.inverted) and has_ports:
            fail("no ports allowed without specific protocol")
        if (protocol != TCP or "p" in self.inverted) and "y" in self.given:
            fail("-y only allowed with TCP protocol")
        if self._flag("f") and has_ports:
            fail("no ports allowed with -f")
        if self._flag("f") and "y" in self.given:
            fail("-y not allowed with -f")

    def _check_packet(self, protocol: int, *ends: Ports) -> None:
        """Refuse a check that leaves open what the packet looks like."""
        is_single = all(letter in self.given for letter in "12") and all(
            ports and ports[0][0] == ports[0][1] for ports in ends
        )
        if protocol in _PORT_PROTOCOLS and "f" not in self.given and not is_single:
            fail("one port required with source/destination address for -C")
        if self.inverted:
            fail("! not allowed with -C")

    def _check_target(self, protocol: int, chain: str | None) -> None:
        target = self.given.get("j")
        if target == REDIRECT and (protocol not in (TCP, UDP) or "p" in self.inverted):
            fail("redirecting only allowed with TCP or UDP")
        if target == MASQ and chain in (INPUT, OUTPUT):
            fail("masquerading not allowed for input and output chains")
        if target == REDIRECT and chain in (OUTPUT, FORWARD):
            fail("redirect not allowed for output and forward chains")


def _turned_round(rule: Rule) -> Rule:
    """Return a rule with both ends exchanged; the type and code of ICMP stay where they are."""
    match = rule.match
    turned = replace(
        match,
        source=match.destination,
        destination=match.source,
        not_source=match.not_destination,
        not_destination=match.not_source,
    )
    if match.protocol != ICMP:
        turned = replace(
            turned,
            source_ports=match.destination_ports,
            destination_ports=match.source_ports,
            not_source_ports=match.not_destination_ports,
            not_destination_ports=match.not_source_ports,
        )
    return replace(rule, match=turned)
