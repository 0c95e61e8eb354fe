"""Reads the output of `nft -j list ruleset` (libnftables-json(5)), with its sets, maps and verdict maps."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import structs

from fastmasq.errors import ConfigurationError
from fastmasq.migrate.foreign import (
    FLOW,
    PACKET,
    POSTROUTING,
    PREROUTING,
    ForeignChain,
    ForeignRule,
    LinkIs,
    Marking,
    Never,
    Test,
    Unknown,
    by_protocol,
)
from fastmasq.migrate.nft_fields import implied_by, listed, marking_of, shown, tests_of, words

_DEVICES = re.compile(r"\bdevices? (?:= )?((?:\"[^\"]*\"|[{}, ])+)")
_FAMILIES = ("ip", "inet", "netdev")
_VERDICTS = ("accept", "drop", "reject", "return", "masquerade", "snat", "dnat", "redirect", "jump", "goto")
_HARMLESS = ("counter", "comment", "ct helper", "ct timeout", "ct expectation", "flow", "last")


_OF_LINKS = {  # hooks of links: side, the hook that they come before, or behind, and by how much
    "ingress": ("in", PREROUTING, -(1 << 32)),
    "egress": ("out", POSTROUTING, 1 << 32),
}


class _UnknownSet(Exception):
    """Why the elements of a set are not known."""


class _Case(NamedTuple):
    """One way in which a rule can match: its tests, and what a map gives for them, perhaps for all the rest."""

    tests: tuple[Test, ...]
    value: Any = None
    is_rest: bool = False


def read(text: str, written: Mapping[tuple[str, str, str, int], str] | None = None) -> Iterator[ForeignChain]:
    """Yield the chains of all IPv4 tables, and those of network devices.

    written: how nft writes it (nft_load). Raises ConfigurationError for what is not nft's, or has none of these chains.
    """
    try:
        chains = _Ruleset(json.loads(text)["nftables"], written or {}).chains
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # whatever it is, nft has not made it
        raise ConfigurationError("not the output of `nft -j list ruleset`") from None
    if not chains:
        raise ConfigurationError("there are no rules of IPv4 in it; import what `nft list ruleset` prints")
    yield from chains.values()


class _Ruleset:
    """All objects that nft lists, by their names; raises whatever comes of what is not nft's."""

    def __init__(self, objects: Sequence[Mapping[str, Any]], written: Mapping[tuple[str, str, str, int], str]) -> None:
        self.chains: dict[tuple[str, str, str], ForeignChain] = {}
        self.sets: dict[tuple[str, str, str], Mapping[str, Any]] = {}
        self.written = written
        found = [next(iter(each.items()), ("", {})) for each in objects]
        dormant: set[tuple[str, str]] = set()
        for number, (kind, content) in enumerate(found):
            if kind == "table" and self._is_dormant(content):
                dormant.add((content["family"], content["name"]))
            elif kind == "chain" and _key(content, "name")[:2] in dormant:
                continue
            elif kind == "chain" and content["family"] in _FAMILIES:
                self.chains[_key(content, "name")] = _chain(content, number)
            elif kind in ("set", "map"):
                self.sets[_key(content, "name")] = content
        for kind, content in found:
            if kind == "rule" and _key(content, "chain") in self.chains:
                chain = self.chains[_key(content, "chain")]
                chain.rules += _Rule(self, content).rules()
        for kind, content in found:
            if kind == "chain" and content.get("hook") in _OF_LINKS and _key(content, "name") in self.chains:
                chain = self.chains[_key(content, "name")]
                self.chains[*_key(content, "name"), "hook"] = _called_for(content, chain, self._devices(content))

    def _is_dormant(self, table: Mapping[str, Any]) -> bool:
        """Whether the kernel does not ask a table. Raises ConfigurationError where nft does not say it.

        As JSON, nft 1.0.6 writes the table's name in place of its flags.
        """
        flags = set(listed(table.get("flags", ())))
        if flags <= {"dormant", "owner", "persist"}:
            return "dormant" in flags
        if not self.written:
            raise ConfigurationError(
                f"nft does not say which flags table {table['name']} has; import `nft list ruleset`"
            )
        return (table["family"], table["name"], "", 0) in self.written

    def _devices(self, chain: Mapping[str, Any]) -> Sequence[str]:
        """Return the links that a chain is asked about; nft 1.0.6 writes them only as text. Without that, none."""
        if "dev" in chain:
            return listed(chain["dev"])
        written = _DEVICES.search(self.written.get((*_key(chain, "name"), 0), ""))
        return re.findall(r'"([^"]*)"', written[1]) if written else ()

    def elements(self, table: tuple[str, str], name: str) -> Sequence[Any]:
        """Return the elements of a set or map by name. Raises _UnknownSet for those that come and go."""
        content = self.sets[(*table, name)]
        if {"dynamic", "timeout"} & set(listed(content.get("flags", ()))):
            raise _UnknownSet
        return listed(content.get("elem", ()))


def _key(content: Mapping[str, Any], name: str) -> tuple[str, str, str]:
    return content["family"], content["table"], content[name]


def _chain(content: Mapping[str, Any], number: int) -> ForeignChain:
    family, table, name = _key(content, "name")
    hook = content.get("hook", "")
    return ForeignChain(
        table=f"{family} {table}",
        name=name,
        place=f"{family} {table} {name}",
        kind=content.get("type", "filter"),
        hook="" if hook in _OF_LINKS else hook,
        priority=content.get("prio", 0),
        policy=content.get("policy", "accept"),
        number=number,
    )


def _called_for(content: Mapping[str, Any], chain: ForeignChain, devices: Sequence[str]) -> ForeignChain:
    """Return what calls a chain that the kernel asks about what comes in, or leaves, by some links, first or last."""
    side, hook, offset = _OF_LINKS[content["hook"]]
    if chain.policy == "drop":
        chain.rules.append(ForeignRule(place=chain.place, text=f"the policy of {chain.name}", action="drop"))
    name = f"{content['hook']} {chain.name}"
    base = structs.replace(chain, name=name, hook=hook, priority=chain.priority + offset, policy="accept")
    test = LinkIs(side, tuple(devices)) if devices else Unknown("the links that it is for; import `nft list ruleset`")
    base.rules = [ForeignRule(place=chain.place, text=name, tests=(test,), action="goto", to=chain.name)]
    return base


class _Rule:
    """One rule, whose statements are taken from the left."""

    def __init__(self, ruleset: _Ruleset, content: Mapping[str, Any]) -> None:
        family, table, chain = _key(content, "chain")
        self.ruleset, self.table = ruleset, (family, table)
        self.expressions = content["expr"]
        self.place = f"{family} {table} {chain}"
        handle = content.get("handle", 0)
        self.text = ruleset.written.get((family, table, chain, handle), f"the rule with handle {handle}")
        self.log = False
        self.alters = ""

    def rules(self) -> list[ForeignRule]:
        """Return the rules of one kind that come to the same, one for each way in which this one can match."""
        ways: list[list[_Case]] = []
        found: list[ForeignRule] = []
        for expression in self.expressions:
            name, content = next(iter(expression.items()))
            if name == "match":
                ways.append(self._match(content))
            elif name == "vmap":
                found += self._verdicts(ways, content)
            elif name == "mangle" and (marking := _marking(content)):  # whatever follows in the rule
                found += [structs.replace(each, marking=marking) for each in self._made(ways, "", "")]
            elif name in _VERDICTS:
                for case in self._target(name, content):
                    found += self._made([*ways, [_Case(case.tests)]], name, case.value)
            elif not self._is_harmless(name, content, ways):
                found += self._made(ways, "unknown", "")
        return found or list(self._made(ways, "", ""))

    def _made(self, ways: Sequence[Sequence[_Case]], action: str, to: str) -> Iterator[ForeignRule]:
        for combination in itertools.product(*ways):
            for tests in by_protocol([test for case in combination for test in case.tests]):
                yield ForeignRule(
                    place=self.place,
                    text=self.text,
                    tests=tests,
                    action=action,
                    to=to,
                    log=self.log,
                    alters=self.alters,
                )

    def _is_harmless(self, name: str, content: Any, ways: list[list[_Case]]) -> bool:
        """Take a statement that decides nothing by itself; return False for one that might."""
        if name == "log":
            self.log = True
        elif name in ("limit", "quota", "ct count", "connlimit"):
            ways.append([_Case((Unknown(name),))])
        elif name == "mangle":
            return self._mangle(content["key"])
        elif name in ("set", "map"):  # elements are added at run time; with a limit or a count it is a condition
            if content.get("stmt"):
                ways.append([_Case((Unknown(f"{content['op']} {content['set']}"),))])
        elif name == "xt":
            name = " ".join(str(each) for each in (content or {}).values())
            ways.append([_Case((Unknown(f"the extension {name} of iptables; import what iptables-save prints"),))])
            return False
        else:
            return name in _HARMLESS
        return True

    def _mangle(self, key: Mapping[str, Any]) -> bool:
        """Note a change of the packet; return False for one that other rules, or routes, may see."""
        match key:
            case {"meta": {"key": "nftrace" | "pkttype"}}:
                return True
            case {"tcp option": {"name": "maxseg"}}:
                self.alters = "fastmasq does not lower the maximum segment size"
                return True
            case {"payload": {"protocol": "ip", "field": "dscp" | "ecn" | "ttl" | "id"}}:
                pass
            case {"payload": {"protocol": "ether" | "vlan" | "ip6"}}:
                pass
            case {"payload": _}:
                return False
        self.alters = "it changes packets; fastmasq does not"
        return True

    # -- verdicts --------------------------------------------------------------------------------------------------

    def _verdicts(self, ways: Sequence[Sequence[_Case]], content: Mapping[str, Any]) -> Iterator[ForeignRule]:
        """Yield a rule for each element of a verdict map."""
        goes_on = False
        for case in self._looked_up(content["key"], content["data"]):
            if case.value is None or (goes_on and case.is_rest):  # all but those that go on, which no test says
                yield from self._made([*ways, [_Case(case.tests)]], "unknown", "")
                continue
            name, target = next(iter(case.value.items()))
            goes_on = goes_on or name == "continue"
            to = target["target"] if name in ("jump", "goto") else ""
            if name != "continue":
                yield from self._made([*ways, [_Case(case.tests)]], name, to)

    def _target(self, name: str, content: Any) -> list[_Case]:
        """Return the ways in which a statement names a chain, or an address and a port."""
        if not isinstance(content, dict):
            return [_Case((), "")]
        if "target" in content:
            return [_Case((), content["target"])]
        addresses, ports = self._given(content.get("addr")), self._given(content.get("port"))
        cases = []
        for one, other in itertools.product(addresses, ports):
            address, port = words(one.value), words(other.value)
            if isinstance(one.value, dict) and "concat" in one.value:
                address, port = (words(part) for part in one.value["concat"])
            to = f"{address}:{port}" if port and address else address or port
            cases.append(_Case((*one.tests, *other.tests), to))
        return cases

    def _given(self, expression: Any) -> list[_Case]:
        if isinstance(expression, dict) and "map" in expression:
            content = expression["map"]
            return [
                case if case.value is not None else case._replace(value="?")
                for case in self._looked_up(content["key"], content["data"])
            ]
        return [_Case((), expression)]

    def _looked_up(self, key: Any, data: Any) -> Iterator[_Case]:
        """Yield the tests for each key of a map, with its value; None where the map is not known."""
        try:
            pairs = self._elements(data)
        except _UnknownSet:
            yield _Case((Unknown(f"the map {data}, whose elements come and go"),))
            return
        for pair in pairs:
            wanted, value = _bare(pair[0]), _bare(pair[1])
            if wanted == "*":
                # nft asks what is not named otherwise; such rules come last, behind those for what is named
                yield _Case(tuple(implied_by(key)), value, is_rest=True)
                continue
            for case in self._compare(key, "==", [wanted]):
                yield _Case(case.tests, value)

    def _elements(self, data: Any) -> Sequence[Any]:
        if isinstance(data, str) and data.startswith("@"):
            elements = self.ruleset.elements(self.table, data[1:])
        else:
            elements = listed(data["set"])
        return sorted(elements, key=lambda pair: isinstance(pair, list) and _bare(pair[0]) == "*")

    # -- conditions ------------------------------------------------------------------------------------------------

    def _match(self, content: Mapping[str, Any]) -> list[_Case]:
        """Return the ways in which a condition can hold."""
        right = content["right"]
        try:
            values = self._values(right)
        except _UnknownSet:
            return [_Case((Unknown(f"the set {right}, whose elements come and go"),))]
        if isinstance(right, list) and content["op"] in ("==", "!="):  # exactly these bits at once
            values = [right]
        return self._compare(content["left"], content["op"], values)

    def _values(self, right: Any) -> list[Any]:
        if isinstance(right, str) and right.startswith("@"):
            return [_bare(element) for element in self.ruleset.elements(self.table, right[1:])]
        if isinstance(right, dict) and "set" in right:
            return [_bare(element) for element in listed(right["set"])]
        return [_bare(element) for element in right] if isinstance(right, list) else [right]

    def _compare(self, left: Any, op: str, values: Sequence[Any]) -> list[_Case]:
        if isinstance(left, dict) and "concat" in left:
            return self._compare_together(left["concat"], op, values)
        try:
            return [_Case(tuple(tests_of(left, op, values)))]
        except (ValueError, LookupError, TypeError):
            ways = [self._compare(left, op, [value]) for value in values] if len(values) > 1 else []
        if ways and op == "==":  # one of them
            return [case for cases in ways for case in cases]
        if ways and op == "!=":  # none of them
            return [_Case(tuple(test for [case] in ways for test in case.tests))]
        named = ", ".join(shown(each) for value in values for each in listed(value))
        return [_Case((Unknown(f"{shown(left)} {op} {named}"),))]

    def _compare_together(self, parts: Sequence[Any], op: str, values: Sequence[Any]) -> list[_Case]:
        """Compare several fields at once; each element is a way of its own."""
        if op not in ("==", "in"):
            return [_Case((Unknown(f"{' . '.join(shown(part) for part in parts)} {op}"),))]
        cases = []
        for value in values:
            tests: list[Test] = []
            for part, wanted in zip(parts, value["concat"], strict=True):
                tests += self._compare(part, "==", [wanted])[0].tests
            cases.append(_Case(tuple(tests)))
        return cases or [_Case((Never(),))]


def _marking(content: Mapping[str, Any]) -> Marking | None:
    """Return what a statement makes of a mark, None for one that is about something else."""
    match content["key"]:
        case {"meta": {"key": "mark"}}:
            return marking_of(PACKET, content["value"])
        case {"ct": {"key": "mark"}}:
            return marking_of(FLOW, content["value"])
    return None


def _bare(element: Any) -> Any:
    """Return an element without its comment, counter or timeout."""
    return element["elem"]["val"] if isinstance(element, dict) and "elem" in element else element
