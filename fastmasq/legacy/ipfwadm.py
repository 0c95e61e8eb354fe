"""Reads command lines of ipfwadm 2.3.0.

Strict reading takes what the program took and refuses the rest in its words. Tolerant reading also repairs what people
wrote and meant (original-systems section 7, rows A-1, A-29, A-32, A-33), with a warning for each repair.

The checks stand in the order of the original: of several mistakes the same one is reported.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NoReturn

from fastmasq.legacy import names as known
from fastmasq.legacy.names import Names
from fastmasq.legacy.requests import Changes, Check, List, ListSessions, Request, SetTimeouts, Text
from fastmasq.legacy.tokens import Misuse, Words, number, plain_dashes
from fastmasq.legacy.values import Values
from fastmasq.policy.chains import (
    ACCEPT,
    ACCOUNTING,
    DENY,
    FORWARD,
    INPUT,
    MASQ,
    MOST_PORTS,
    OUTPUT,
    REDIRECT,
    REJECT,
    Match,
    Rule,
)
from fastmasq.policy.changes import Change
from fastmasq.wire.numbers import ICMP, TCP, UDP

PROGRAM = "ipfwadm"
HINT = "Try `ipfwadm -h' for more information."
HELP = """\
ipfwadm as of 2.3.0, speaking to fastmasq

ipfwadm -F | -I | -O | -A [in|out|both]  COMMAND [OPTIONS]    forward, input, output and accounting rules
ipfwadm -M -l [-n] [-e] | -M -s TCP FIN UDP                   masqueraded sessions, their timeouts in seconds

commands: -a [POLICY] append, -i [POLICY] insert, -d [POLICY] delete, -l list, -z zero counters, -f flush,
          -p POLICY set the default policy, -c check a packet, -h this help
policies: accept, deny, reject; accept with -m masquerades
options:  -P tcp|udp|icmp|all   -S ADDRESS[/MASK] [PORT ...]   -D ADDRESS[/MASK] [PORT ...]
          -V ADDRESS and -W NAME of the interface   -b both directions   -k with ACK   -y SYN without ACK
          -m masquerade   -o log   -r [PORT] redirect   -t AND XOR type of service
          -e extended   -n numeric   -x exact counters   -v verbose
"""

_SHORT = "AFIMOadilzfs:p:chP:S:D:V:W:bekmnort:vxy"
_MASQUERADING = "masquerading"
_CATEGORIES = {"A": ACCOUNTING, "F": FORWARD, "I": INPUT, "O": OUTPUT, "M": _MASQUERADING}
_FIREWALL = (FORWARD, INPUT, OUTPUT)
_POLICIES = {"accept": ACCEPT, "deny": DENY, "reject": REJECT, "masquerade": MASQ}
_PROTOCOLS = {"all": known.ALL, "tcp": TCP, "udp": UDP, "icmp": ICMP}
_ENTRY = {"a": "append", "i": "insert", "d": "delete_equal"}  # commands about one rule
_NO_RULE = {"l", "f", "z", "p"}  # commands that take nothing of a rule
_LONGEST_INTERFACE = 16


def parse(words: Sequence[str], names: Names, *, tolerant: bool = False, chains: Collection[str] = ()) -> Request:
    """Return what the words behind the program's name ask for. Raises Misuse.

    chains: the user chains there are, which ipfwadm cannot name; the programs that are read in scripts take the same
    arguments.
    """
    line = _Line(names, tolerant)
    line.read(words)
    if line.wants_help:
        return Text(HELP)
    line.check()
    return line.request()


def fail(text: str) -> NoReturn:
    raise Misuse(PROGRAM, text, HINT)


class _Line:
    """One command line: what `read` found in it, checked by `check`, put together by `request`."""

    def __init__(self, names: Names, tolerant: bool) -> None:
        self.values = Values(names, fail, lambda text: f'"{text}"')
        self.tolerant = tolerant
        self.warnings: list[str] = []
        self.wants_help = False
        self.category = ""
        self.commands = ""  # letters; two only for -l with -z
        self.given: set[str] = set()  # letters of options
        self.policy = ""
        self.direction = "both"
        self.protocol = known.ALL
        self.ends = {"S": "0.0.0.0/0", "D": "0.0.0.0/0"}
        self.ports: dict[str, list[str]] = {"S": [], "D": []}
        self.interface = ""
        self.interface_address = 0
        self.redirect_port = "0"
        self.tos = (0xFF, 0)
        self.timeouts = (0, 0, 0)

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, words: Sequence[str]) -> None:
        if self.tolerant:
            words = [self._repair(word) for word in words]
        reading = Words(words, _SHORT, fail)
        strays = 0
        for letter, argument in reading:
            if letter in _CATEGORIES:
                self._category(letter, reading)
            elif letter and letter in "adilzfpsc":
                self._command(letter, argument, reading)
            elif letter == "h":
                self.wants_help = True
                return
            elif letter:
                self._option(letter, argument, reading)
            else:
                strays += 1
        if strays or reading.rest:
            fail("unknown arguments found on commandline")

    def _repair(self, word: str) -> str:
        plain = plain_dashes(word)
        if plain != word:
            self.warnings.append(f"{word!r} begins with a typographic dash; taken as {plain!r}")
        if plain == "-0":
            self.warnings.append("-0 (the digit) is no option; taken as -O, the output rules")
            return "-O"
        return plain

    def _category(self, letter: str, reading: Words) -> None:
        if self.category:
            fail("multiple categories specified")
        self.category = _CATEGORIES[letter]
        direction = reading.take() if letter == "A" else None
        if direction is not None:
            self.direction = self._prefixed(direction, ("in", "out", "both"), "direction")

    def _command(self, letter: str, argument: str | None, reading: Words) -> None:
        if self.commands and {letter, self.commands} != {"l", "z"}:
            fail("multiple commands specified")
        self.commands += letter
        if letter in _ENTRY:
            policy = reading.take()
            if policy is not None:
                self._take_policy(policy)
                self.given.add("policy")
        elif letter == "p":
            self._take_policy(argument or "")
        elif letter == "s":
            rest = [reading.take(), reading.take()]
            if None in rest:
                fail("-s requires 3 timeout values")
            self.timeouts = tuple(self.values.timeout(text) for text in (argument, *rest))

    def _take_policy(self, text: str) -> None:
        self.policy = _POLICIES[self._prefixed(text, tuple(_POLICIES), "policy")]
        if self.policy == MASQ:  # the old way to say accept and -m
            self._once("m")
            self.policy = ACCEPT

    def _option(self, letter: str, argument: str | None, reading: Words) -> None:
        self._once(letter)
        if letter == "P":
            self.protocol = self._protocol(argument)
        elif letter in "SD":
            self.ends[letter] = argument
            while (port := reading.take()) is not None:
                self._store_port(letter, port)
        elif letter == "V":
            self.interface_address = self._interface_address(argument)
        elif letter == "W":
            self.interface = self._interface(argument)
        elif letter == "r":
            port = reading.take()
            self.redirect_port = "0" if port is None else port
        elif letter == "t":
            xor = reading.take()
            if xor is None:
                fail("-t requires 2 hexbyte arguments")
            self.tos = (self.values.hexbyte(argument) | 1, self.values.hexbyte(xor) & 0xFE)

    def _once(self, letter: str) -> None:
        if letter in self.given:
            fail(f"multiple -{letter} flags not allowed")
        self.given.add(letter)

    def _prefixed(self, text: str, choices: Sequence[str], what: str) -> str:
        """Return the first choice that begins with `text`; the program let even "" begin all of them (A-32)."""
        for choice in choices:
            if choice.startswith(text) and (text or not self.tolerant):
                return choice
        fail(f'invalid {what} "{text}" specified')

    def _protocol(self, text: str) -> int:
        for name, protocol in _PROTOCOLS.items():
            if name.startswith(text) and (text or not self.tolerant):
                return protocol
        if self.tolerant and text:
            protocol = number(text, 0, 255)
            protocol = self.values.names.protocol(text) if protocol is None else protocol
            if protocol is not None:
                self.warnings.append(f"-P {text} is more than ipfwadm knew; taken as IP protocol {protocol}, exactly")
                return protocol
        fail(f'invalid protocol "{text}" specified')

    def _store_port(self, letter: str, port: str) -> None:
        if ":" in port and any(":" in other for other in self.ports[letter]):
            fail("multiple ranges not allowed")
        self.ports[letter].append(port)
        if self._port_count() > MOST_PORTS:
            fail(f"too many ports specified (maximum {MOST_PORTS})")

    def _port_count(self, letters: str = "SD") -> int:
        return sum(2 if ":" in port else 1 for letter in letters for port in self.ports[letter])

    def _interface_address(self, text: str) -> int:
        address = known.read_dotted(text)
        found = self.values.names.hosts(text) if address is None else [address]
        if not found:
            fail(f'host "{text}" not found')
        if len(found) > 1:
            fail(f'hostname "{text}" does not specify a unique address')
        return found[0]

    def _interface(self, text: str) -> str:
        """Return the name, cut where it did not fit. "ppp+" was one interface; a rule here takes it as a prefix."""
        if text.endswith("+"):
            if not self.tolerant:
                fail(f'interface name "{text}" ends in "+", a wildcard of ipchains; name one interface')
            self.warnings.append(f"-W {text}: ipfwadm had no wildcards; taken as all interfaces that begin so")
        return text[:_LONGEST_INTERFACE]

    # -- checking --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise Misuse unless category, command and options go together."""
        if not self.commands:
            fail("no command specified")
        self._check_category()
        is_entry = self.commands in _ENTRY
        for letter, text in (
            ("b", "bidirectional flag (-b)"),
            ("o", "kernel print flag (-o)"),
            ("r", "port redirection (-r)"),
            ("t", "tos values (-t)"),
        ):
            if letter in self.given and not is_entry:
                fail(f"{text} only allowed with insert/append/delete")
        self._check_place("P", "protocol")
        if self.commands == "c" and self.protocol == known.ALL:
            fail("specific protocol required for check command")
        self._check_place("V", "interface address")
        self._check_place("W", "interface name")
        self._check_ports()
        self._check_targets()
        self._check_place("S", "source address")
        self._check_place("D", "destination address")

    def _check_category(self) -> None:
        command, category = self.commands, self.category
        is_firewall = category in _FIREWALL
        if not category:
            fail("missing -A, -F, -I, -O, or -M flag")
        if command == "c" and not is_firewall:
            fail("specify either -F, -I, or -O for checking a packet")
        if command == "p" and not is_firewall:
            fail("specify either -F, -I, or -O for changing the policy")
        if command in _ENTRY and is_firewall and "policy" not in self.given:
            fail("policy required for firewall entries")
        if "policy" in self.given and not is_firewall:
            fail("no policy allowed with non-firewall entries")
        if category == _MASQUERADING and command != "s" and "l" not in command:
            fail("-M only allowed in combination with -s or -l command")
        if category != _MASQUERADING and command == "s":
            fail("setting masquerading timeouts requires -M flag")

    def _check_place(self, letter: str, what: str) -> None:
        """Refuse an option with a command that has no use for it, and a check without it."""
        if letter in self.given and set(self.commands) & _NO_RULE:
            fail(f"no {what} (-{letter}) allowed with this command")
        if letter not in self.given and self.commands == "c":
            fail(f"{what} (-{letter}) required for this command")

    def _check_ports(self) -> None:
        sources, destinations = self._port_count("S"), self._port_count("D")
        if self.protocol == ICMP and destinations:
            fail("ICMP types only allowed with -S, not with -D")
        if self.protocol not in (ICMP, TCP, UDP) and (sources or destinations):
            fail("no ports allowed without specific protocol")
        if self.commands == "c" and self.protocol in (TCP, UDP) and (sources, destinations) != (1, 1):
            fail("one port required with source/destination address")
        if self.commands == "c" and self.protocol == ICMP and (sources, destinations) != (1, 0):
            fail("ICMP type required after source address")

    def _check_targets(self) -> None:
        if "r" in self.given and self.category != INPUT:
            fail("redirecting only allowed in combination with -I")
        if "r" in self.given and self.protocol == ICMP:
            fail("redirecting not allowed with protocol ICMP")
        if "m" in self.given and self.category != FORWARD:
            fail("masquerading only allowed in combination with -F")
        if "m" in self.given and self.protocol == ICMP:
            fail("masquerading not allowed with protocol ICMP")
        if "m" in self.given and self.policy != ACCEPT:
            fail("masquerading only allowed with policy accept")

    # -- putting together ------------------------------------------------------------------------------------------

    def request(self) -> Request:
        warnings, command = tuple(self.warnings), self.commands
        if command in _ENTRY:
            changes = tuple(Change(do=_ENTRY[command], chain=self.category, rule=rule) for rule in self._rules())
            return Changes(changes, "v" in self.given, warnings)
        if command == "c":
            return Check(self.category, self._rules(), "v" in self.given, warnings)
        if command == "s":
            return SetTimeouts(*self.timeouts, warnings)
        if command == "p":
            return Changes((Change(do="policy", chain=self.category, target=self._target()),), warnings=warnings)
        if command in ("f", "z"):
            do = "flush" if command == "f" else "zero"
            return Changes((Change(do=do, chain=self.category),), warnings=warnings)
        numeric, extended = "n" in self.given, "e" in self.given
        if self.category == _MASQUERADING:
            return ListSessions(numeric, extended, warnings)
        exact = "x" in self.given
        return List(self.category, numeric, extended, exact, zero="z" in command, warnings=warnings)

    def _target(self) -> str:
        if self.category == ACCOUNTING or self.policy != ACCEPT:
            return "" if self.category == ACCOUNTING else self.policy
        return MASQ if "m" in self.given else REDIRECT if "r" in self.given else ACCEPT

    def _rules(self) -> tuple[Rule, ...]:
        """Return a rule for each source address with each destination address."""
        sources, source_ports = self.values.addresses(self.ends["S"]), self._port_ranges("S")
        destinations, destination_ports = self.values.addresses(self.ends["D"]), self._port_ranges("D")
        redirect_port = 0
        if "r" in self.given:
            if self._port_count() >= MOST_PORTS:
                fail(f"too many ports specified (maximum {MOST_PORTS - 1} when using -r option)")
            redirect_port = self.values.port(self.redirect_port, self.protocol)
        target = self._target()
        return tuple(
            Rule(
                match=Match(
                    source=source,
                    destination=destination,
                    protocol=self.protocol,
                    source_ports=source_ports,
                    destination_ports=destination_ports,
                    interface=self.interface,
                    interface_address=self.interface_address,
                    syn=True if "y" in self.given else None,
                    ack="k" in self.given,
                    swapped_too="b" in self.given,
                    direction=self.direction,
                ),
                target=target,
                redirect_port=redirect_port if target == REDIRECT else 0,
                log="o" in self.given,
                tos=self.tos,
            )
            for source in sources
            for destination in destinations
        )

    def _port_ranges(self, letter: str) -> tuple[tuple[int, int], ...]:
        """Return the ports of one end as ranges; the one written as a range comes first, as in the listing."""
        singles, ranges = [], []
        for text in self.ports[letter]:
            first, colon, last = text.partition(":")
            if not colon:
                singles.append((self.values.port(text, self.protocol),) * 2)
                continue
            ranges.append((self.values.port(first, self.protocol), self.values.port(last, self.protocol)))
            if ranges[0][0] > ranges[0][1]:
                fail(f"invalid range of ports ({ranges[0][0]} > {ranges[0][1]})")
        return (*ranges, *singles)
