"""Reads the output of iptables-save."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import structs

from fastmasq import files
from fastmasq.errors import ConfigurationError
from fastmasq.migrate.foreign import (
    FLOW,
    HOOKS,
    PACKET,
    WHOLE_MARK,
    Fact,
    Flags,
    ForeignChain,
    ForeignRule,
    LinkIs,
    Mark,
    Marking,
    Never,
    Test,
    Unknown,
    Within,
    by_protocol,
    read_icmp,
    read_network,
    read_ports,
    read_protocol,
)
from fastmasq.migrate.regions import (
    DESTINATION,
    DESTINATION_PORT,
    PROTOCOL,
    SOURCE,
    SOURCE_PORT,
    complement,
    ranges_of,
)
from fastmasq.wire.numbers import ICMP

_PRIORITIES = {
    "raw": -300,
    "mangle": -150,
    "nat": 0,
    "filter": 0,
    "security": 50,
}  # of nat, where it stands among itself
_ACTIONS = {
    **{"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return", "MASQUERADE": "masquerade"},
    **{"SNAT": "snat", "DNAT": "dnat", "REDIRECT": "redirect"},
}
_LOGGING = ("LOG", "NFLOG", "ULOG")
_HARMLESS = ("", "AUDIT", "TRACE", "CHECKSUM", "SET", "RATEEST", "CT --helper", "LED", "IDLETIMER")
_MARKING = {"MARK": PACKET, "CONNMARK": FLOW}
_MARK_OPTIONS = {  # -> number of its words
    **dict.fromkeys(("--set-mark", "--set-xmark", "--and-mark", "--or-mark", "--xor-mark"), 1),
    **dict.fromkeys(("--nfmask", "--ctmask", "--mask"), 1),
    **dict.fromkeys(("--save-mark", "--restore-mark"), 0),
}
_ALTERING = {
    "TCPMSS": "fastmasq does not lower the maximum segment size",
    **dict.fromkeys(("TOS", "DSCP", "TTL", "CLASSIFY", "ECN", "TCPOPTSTRIP", "SECMARK", "CONNSECMARK"),
                    "it changes packets; fastmasq does not"),
}  # fmt: skip
_TARGET_OPTIONS = ("--to-destination", "--to-source", "--to-ports", "--to-port")
_IGNORED_OPTIONS = {  # what changes nothing that could be carried over: option -> number of its words
    **{"--comment": 1, "--reject-with": 1, "--log-level": 1, "--log-prefix": 1, "--log-tcp-options": 0},
    **{"--log-ip-options": 0, "--log-tcp-sequence": 0, "--log-uid": 0, "--random": 0, "--random-fully": 0},
    **{"--persistent": 0, "-c": 2, "--nflog-group": 1, "--nflog-prefix": 1, "--nflog-threshold": 1},
    **{"--nflog-size": 1, "--nflog-range": 1},
}
_USUAL_TCP_OPTIONS = (0, 1, 2, 3, 4, 5, 8, 19, 28, 29, 30, 34)  # IANA's of TCP that are in use
_MODULES = (
    *("tcp", "udp", "icmp", "state", "conntrack", "multiport", "comment", "mark", "connmark", "addrtype", "iprange"),
    *("pkttype", "policy", "rpfilter", "physdev"),
)


def read(text: str) -> Iterator[ForeignChain]:
    """Yield the chains of all tables; built-in ones have their hooks.

    Raises ConfigurationError where the text is not iptables-save's.
    """
    chains: dict[tuple[str, str], ForeignChain] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#") or line == "COMMIT":
            continue
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":") and table and " " in line:
            name, policy, *_ = line[1:].split()
            chains[table, name] = _chain(table, name, policy, number)
        elif line.startswith(("-A ", "[")) and table:
            name, words = _words(line, number)
            if (table, name) not in chains:
                raise ConfigurationError(f"line {number}: there is no chain {name!r} in table {table!r}")
            chains[table, name].rules += _Rule(words, number, line).read()
        else:
            shown = f": {line[:60]!r}" if files.caller_may_see() else ""
            raise ConfigurationError(f"line {number}: not a line of iptables-save{shown}")
    yield from chains.values()


def _chain(table: str, name: str, policy: str, line: int) -> ForeignChain:
    hook = name.lower() if policy != "-" and name.lower() in HOOKS else ""
    return ForeignChain(
        table=table,
        name=name,
        place=f"line {line}",
        kind="nat" if table == "nat" else "filter",
        hook=hook,
        priority=_PRIORITIES.get(table, 0),
        policy=policy.lower() if hook else "accept",
        number=line,
    )


def _words(line: str, number: int) -> tuple[str, list[str]]:
    """Return the chain of an -A line, and the words behind it. Raises ConfigurationError."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ConfigurationError(f"line {number}: {error}") from None
    if words[0].startswith("["):  # counters of iptables-save -c
        words = words[1:]
    if len(words) < 2 or words[0] != "-A":
        raise ConfigurationError(f"line {number}: a rule without its chain")
    return words[1], words[2:]


class _Rule:
    """The words behind `-A CHAIN`, taken from the left."""

    def __init__(self, words: list[str], number: int, line: str) -> None:
        self.words = words
        self.line, self.number = line, number
        self.tests: list[Test] = []
        self.target = self.to = self.module = ""
        self.marking: dict[str, str] = {}
        self.inverted = False

    def read(self) -> list[ForeignRule]:
        """Return the rule, in parts where `by_protocol` makes some."""
        while self.words:
            word = self.words.pop(0)
            if word == "!":
                self.inverted = True
                continue
            if word in _IGNORED_OPTIONS:
                del self.words[: _IGNORED_OPTIONS[word]]
            elif word == "-m" and self.words[:1] and self.words[0] in _MODULES:
                self.module = self.words.pop(0)
            elif self.target in _MARKING and word in _MARK_OPTIONS:
                self.marking[word] = self.words.pop(0) if self.words and _MARK_OPTIONS[word] else ""
            elif word in ("-j", "-g", *_TARGET_OPTIONS):
                self._target(word)
            elif word == "--helper" and self.target == "CT":
                self.target = "CT --helper"
                del self.words[:1]
            elif word in _OPTIONS:
                count, make = _OPTIONS[word]
                values, self.words = self.words[:count], self.words[count:]
                self._test(word, values, make)
            else:
                self._not_known(word)
            self.inverted = False
        rule = self._made()
        return [structs.replace(rule, tests=tests) for tests in by_protocol(self.tests)]

    def _target(self, word: str) -> None:
        value = self.words.pop(0) if self.words else ""
        if word in _TARGET_OPTIONS:
            self.to = value.lstrip(":")
        else:
            self.target = value if word == "-j" else f"-g {value}"

    def _test(self, word: str, values: Sequence[str], make: Callable[[Sequence[str]], Any]) -> None:
        """Add the tests that an option makes."""
        shown = " ".join([*(["!"] if self.inverted else []), word, *values])
        try:
            made = make(values)
        except (ValueError, LookupError):
            self.tests.append(Unknown(shown))
            return
        if isinstance(made, Mark) and self.module == "connmark":
            made = made._replace(of=FLOW)
        if isinstance(made, Within):
            made = [made]
        if isinstance(made, list):  # fields of the packet: only the last of several is inverted
            *others, last = made
            if self.inverted and last.field == DESTINATION_PORT and others and others[-1].field == SOURCE_PORT:
                self.tests.append(Unknown(shown))  # a type and a code of ICMP, which are inverted together
                return
            if self.inverted:
                last = Within(last.field, complement(last.ranges, last.field))
            self.tests += [*others, last] if last.ranges else [Never()]
        elif self.inverted and isinstance(made, Never):
            return
        else:
            self.tests.append(made._replace(inverted=True) if self.inverted and not isinstance(made, Never) else made)

    def _not_known(self, word: str) -> None:
        """Note what is not understood, up to the next word that is."""
        unknown = ["!"] if self.inverted else []
        unknown.append(word)
        known = (*_OPTIONS, *_TARGET_OPTIONS, "-j", "-g", "-m", "!")
        while self.words and self.words[0] not in known:
            unknown.append(self.words.pop(0))
        if word == "-m" or not self.target or self.target in _ACTIONS:
            self.tests.append(Unknown(" ".join(unknown)))

    def _made(self) -> ForeignRule:
        target, action, alters = self.target, "", ""
        if target in _ACTIONS:
            action = _ACTIONS[target]
        elif target.startswith("-g "):
            action, self.to = "goto", target[3:]
        elif target in _ALTERING:
            alters = _ALTERING[target]
        elif target not in (*_LOGGING, *_HARMLESS, *_MARKING):
            action, self.to = "jump", target
        return ForeignRule(
            place=f"line {self.number}",
            text=self.line,
            action=action,
            to=self.to,
            log=target in _LOGGING,
            alters=alters,
            marking=_marking(_MARKING[target], self.marking) if target in _MARKING else None,
        )


# -- options -----------------------------------------------------------------------------------------------------------


def _within(field: int, convert: Callable[[str], tuple[int, int]]) -> Callable[[Sequence[str]], Within]:
    return lambda values: Within(field, ranges_of(convert(part) for part in values[0].split(",")))


def _ports(field: int) -> Callable[[Sequence[str]], Within]:
    return _within(field, lambda text: read_ports(text, ":"))


def _icmp(values: Sequence[str]) -> list[Within]:
    if values[0] in ("any", "255"):
        return [Within(PROTOCOL, ((ICMP, ICMP),))]
    kinds, codes = read_icmp(values[0])
    tests = [Within(PROTOCOL, ((ICMP, ICMP),)), Within(SOURCE_PORT, kinds)]
    return tests if codes == ((0, 0xFFFF),) else [*tests, Within(DESTINATION_PORT, codes)]


def _fact(name: str) -> Callable[[Sequence[str]], Fact]:
    return lambda values: Fact(name, frozenset(values[0].lower().split(",")))


def _holds(name: str, value: str) -> Callable[[Sequence[str]], Fact]:
    return lambda values: Fact(name, frozenset({value}))


def _flags(values: Sequence[str]) -> Flags:
    mask, wanted = (_flag_names(value) for value in values)
    return Flags(mask, wanted)


def _tcp_option(values: Sequence[str]) -> Never:
    """Return that no ordinary packet has an option, where that is so. Raises ValueError for those that have it."""
    if int(values[0]) in _USUAL_TCP_OPTIONS:
        raise ValueError(values)
    return Never()


def _flag_names(text: str) -> frozenset[str]:
    named = {"ALL": "FIN,SYN,RST,PSH,ACK,URG", "NONE": ""}.get(text, text)
    return frozenset(name.lower() for name in named.split(",") if name)


def _mark(values: Sequence[str]) -> Mark:
    value, mask = _value_and_mask(values[0])
    return Mark(value, mask, False, f"--mark {values[0]}")


def _value_and_mask(text: str) -> tuple[int, int]:
    value, _, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if mask else WHOLE_MARK


def _marking(of: str, options: Mapping[str, str]) -> Marking:
    """Return what MARK or CONNMARK do (iptables-extensions(8)); without knowing it, that it is not known."""
    try:
        match options:
            case {"--set-mark": text}:
                value, mask = _value_and_mask(text)
                return Marking(of, of, ~(value | mask) & WHOLE_MARK, value)
            case {"--set-xmark": text}:
                value, mask = _value_and_mask(text)
                return Marking(of, of, ~mask & WHOLE_MARK, value)
            case {"--and-mark": text}:
                return Marking(of, of, int(text, 0))
            case {"--or-mark": text}:
                return Marking(of, of, ~int(text, 0) & WHOLE_MARK, int(text, 0))
            case {"--xor-mark": text}:
                return Marking(of, of, WHOLE_MARK, int(text, 0))
            case {"--save-mark": _, **masks} if {int(text, 0) for text in masks.values()} <= {WHOLE_MARK}:
                return Marking(FLOW, PACKET, WHOLE_MARK)
            case {"--restore-mark": _, **masks} if {int(text, 0) for text in masks.values()} <= {WHOLE_MARK}:
                return Marking(PACKET, FLOW, WHOLE_MARK)
    except ValueError:
        pass
    return Marking(PACKET if "--restore-mark" in options else of)


def _policy(values: Sequence[str]) -> Fact:
    return Fact("ipsec", frozenset({{"none": "no", "ipsec": "yes"}[values[0]]}))


def _link(side: str) -> Callable[[Sequence[str]], LinkIs]:
    return lambda values: LinkIs(side, (values[0],))


_OPTIONS: dict[str, tuple[int, Callable[[Sequence[str]], Any]]] = {
    **{"-s": (1, _within(SOURCE, read_network)), "-d": (1, _within(DESTINATION, read_network))},
    **{"--src-range": (1, _within(SOURCE, read_network)), "--dst-range": (1, _within(DESTINATION, read_network))},
    **{"-i": (1, _link("in")), "-o": (1, _link("out"))},
    "-p": (1, lambda values: Within(PROTOCOL, read_protocol(values[0]))),
    **{option: (1, _ports(SOURCE_PORT)) for option in ("--sport", "--source-port", "--sports", "--source-ports")},
    **{
        option: (1, _ports(DESTINATION_PORT))
        for option in ("--dport", "--destination-port", "--dports", "--destination-ports")
    },
    "--icmp-type": (1, _icmp),
    **{"--syn": (0, lambda values: Flags(frozenset({"fin", "syn", "rst", "ack"}), frozenset({"syn"})))},
    **{"--tcp-flags": (2, _flags), "--tcp-option": (1, _tcp_option)},
    **{"-f": (0, _holds("fragment", "yes")), "--fragment": (0, _holds("fragment", "yes"))},
    **{"--state": (1, _fact("ctstate")), "--ctstate": (1, _fact("ctstate")), "--ctdir": (1, _fact("ct direction"))},
    **{"--src-type": (1, _fact("saddr type")), "--dst-type": (1, _fact("daddr type"))},
    "--pkt-type": (1, _fact("pkttype")),
    "--mark": (1, _mark),
    **{"--validmark": (0, _holds("path back", "exists")), "--loose": (0, _holds("path back", "exists"))},
    "--invert": (0, _holds("path back", "missing")),
    "--physdev-is-bridged": (0, _holds("bridged", "yes")),
    "--pol": (1, _policy),
    "--dir": (1, lambda values: Fact("nfproto", frozenset({"ipv4"}))),
}
