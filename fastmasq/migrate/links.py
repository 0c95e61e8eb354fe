"""Tells from a foreign rule set which link is outside and which are inside.

Outside is where something is masqueraded; inside is where what is masqueraded comes from, by the rules that let it pass
or by the routes to their sources. Where the rules leave that open, it is asked for: a guess could take the internet's
link for an inside one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fastmasq.errors import ConfigurationError
from fastmasq.kernel import routes
from fastmasq.kernel.links import interface_addresses, list_interfaces
from fastmasq.migrate.evaluate import RuleBook
from fastmasq.migrate.foreign import (
    FORWARD,
    MASQUERADING,
    NEW,
    POSTROUTING,
    PREROUTING,
    Fact,
    ForeignChain,
    LinkIs,
    Scene,
)
from fastmasq.migrate.regions import (
    DESTINATION,
    EVERYTHING,
    PROTOCOL,
    SOURCE,
    Box,
    Entries,
    Ranges,
    common,
    complement,
    left_of,
    ranges_of,
)
from fastmasq.wire.numbers import TCP, UDP

_HALF = 1 << 31  # of all addresses
_SOMEWHERE = "?"  # a link that no rule names


class Here(NamedTuple):
    """What the host that this runs on knows, which may be the gateway or not.

    networks: behind each link, by the routes, but not where the default route leads; those of one link may lie within
    those of another. addresses: its own, by link.
    """

    networks: Mapping[str, Ranges] = {}
    addresses: Mapping[str, Sequence[int]] = {}

    def has(self, names: Iterable[str]) -> bool:
        """Whether this host has all these links, and so may be the gateway."""
        return all(name in self.addresses for name in names)

    def towards(self, ranges: Ranges) -> list[str]:
        """Return the links that the routes to these addresses lead to."""
        found = []
        for name in nested(self.networks):
            if common(self.networks[name], ranges):
                found.append(name)
                ranges = common(ranges, complement(self.networks[name], SOURCE))
        return found


def named(chains: Iterable[ForeignChain], side: str = "", *, patterns: bool = False) -> list[str]:
    """Return the links that rules name, in their order; with `patterns`, the beginnings of names with a + as well."""
    tests = [test for chain in chains for rule in chain.rules for test in rule.tests if isinstance(test, LinkIs)]
    names = [name for test in tests if side in ("", test.side) for name in test.names]
    names = [name for name in names if name != "+" and (patterns or not name.endswith("+"))]
    return [name for name in dict.fromkeys(names) if name != "lo"]


def find_outside(book: RuleBook) -> str:
    """Return the one link that something is masqueraded on. Raises ConfigurationError without one, or with several."""
    if masqueraded_on(book, _SOMEWHERE):
        raise ConfigurationError("the rules do not name the link they masquerade on; name it with --outside")
    names = named(book.reached_from(POSTROUTING, kind="nat"), "out")
    found = [name for name in names if masqueraded_on(book, name)]
    found = found or [name for name in names if masqueraded_on(book, name, perhaps=True)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigurationError("no rule masquerades on a link by name; name the outside link with --outside")
    raise ConfigurationError(f"the rules masquerade on {' and '.join(found)}; name the outside link with --outside")


def masqueraded_on(book: RuleBook, link: str, *, perhaps: bool = False) -> Ranges:
    """Return the sources of what is masqueraded on leaving by a link, whatever its destination.

    perhaps: what a rule masquerades that asks for more than the chains of postrouting know, a mark, counts as well.
    What is masqueraded on its way to a few addresses only is on its way to a forwarded service, or into a tunnel.
    """
    chains = book.reached_from(POSTROUTING) if perhaps else ()
    rules = {(rule.place, rule.text) for chain in chains for rule in chain.rules if rule.action in MASQUERADING}
    stages = book.stages(POSTROUTING)
    coming = (_SOMEWHERE, *named(book.reached_from(POSTROUTING), "in"))
    found = [
        box
        for one in coming
        for box, fate in book.walk(stages, Scene(one, link), EVERYTHING)
        if fate.kind == "masquerade" or any((place, text) in rules for place, text, _ in fate.missing)
    ]
    return tuple(source for box in found if _is_wide(box) for source in box[SOURCE])


def find_inside(book: RuleBook, outside: str, here: Here) -> list[str]:
    """Return the inside links. Raises ConfigurationError when nothing says which they are."""
    found = [name for name in _let_out(book, outside) if not _is_outside_too(book, name)]
    sources = masqueraded_on(book, outside)
    if not found and EVERYTHING[SOURCE][0] not in sources:
        found = [link for link in here.towards(ranges_of(sources)) if link not in (outside, "lo")]
    if not found:
        raise ConfigurationError(
            f"nothing says where what is masqueraded on {outside} comes from; name it with --inside"
        )
    return list(dict.fromkeys(found))


def _let_out(book: RuleBook, outside: str) -> list[str]:
    """Return the links that rules let out by name, where what they let out is masqueraded and others' is not."""
    anybodys = [entry.box for entry in _going_out(book, _SOMEWHERE, outside)]
    found = []
    for rule in (rule for chain in book.reached_from(PREROUTING, FORWARD, POSTROUTING) for rule in chain.rules):
        if rule.action not in ("accept", "jump", "goto", *MASQUERADING) or any(
            isinstance(test, Fact) and test.holds(Scene("", "", NEW)) is False for test in rule.tests
        ):
            continue
        links = [test for test in rule.tests if isinstance(test, LinkIs)]
        is_whole = rule.action == "accept" and len(links) == len(rule.tests) and LinkIs("out", (outside,)) in links
        for name in (name for test in links if test.side == "in" for name in test.singles_out()):
            going_out = [entry.box for entry in _going_out(book, name, outside)]
            if going_out and (is_whole or any(left_of(box, anybodys) for box in going_out)):
                found.append(name)
    return [name for name in dict.fromkeys(found) if name not in ("lo", outside)]


def _is_outside_too(book: RuleBook, link: str) -> bool:
    """Whether something is masqueraded on leaving by a link that is not on leaving by any."""
    return bool(masqueraded_on(book, link)) and not masqueraded_on(book, _SOMEWHERE)


def _going_out(book: RuleBook, link: str, outside: str) -> Entries:
    """Return what is masqueraded of TCP or UDP from one link to the other, whatever its destination."""
    entries = book.forwarded(Scene(link, outside), EVERYTHING)
    return [
        entry
        for entry in entries
        if entry.fate.kind == "masquerade"
        and _is_wide(entry.box)
        and any(common(entry.box[PROTOCOL], ((number, number),)) for number in (TCP, UDP))
    ]


def _is_wide(box: Box) -> bool:
    """Whether the destination of packets is more than some addresses."""
    return _size(box[DESTINATION]) > _HALF


def passed_over(book: RuleBook, ours: Sequence[str]) -> dict[str, list[str]]:
    """Return the links that rules name beside ours, with those of ours that they let exchange new flows with."""
    found: dict[str, list[str]] = {}
    for name in named(book.reached_from(PREROUTING, FORWARD, POSTROUTING), patterns=True):
        link = f"{name[:-1]}0" if name.endswith("+") else name
        if any(LinkIs("in", (name,)).holds(Scene(one, "")) for one in ours):
            continue
        for one in ours:
            ways = (Scene(link, one), Scene(one, link))
            fates = (entry.fate for way in ways for entry in book.forwarded(way, EVERYTHING))
            if any(fate.is_open or fate.missing for fate in fates):
                found.setdefault(name, []).append(one)
    return found


def nested(networks: Mapping[str, Ranges]) -> list[str]:
    """Return the links in an order in which what lies within the networks of another comes before that."""
    return sorted(networks, key=lambda name: _size(networks[name]))


def this_host() -> Here:
    """Return what this host knows."""
    names = {interface.ifindex: interface.name for interface in list_interfaces()}
    found: dict[str, list[tuple[int, int]]] = {}
    best: dict[tuple[int, int], routes.KernelRoute] = {}
    for route in sorted(routes.list_routes(), key=lambda route: route.metric, reverse=True):
        if route.kind == routes.UNICAST and route.ifindex in names:
            best[route.destination, route.length] = route
    for (first, length), route in best.items():
        found.setdefault(names[route.ifindex], []).append((first, first + (1 << (32 - length)) - 1))
    networks = {name: ranges_of(each) for name, each in found.items() if _size(ranges_of(each)) <= _HALF}
    return Here(networks, interface_addresses())


def _size(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in ranges)
