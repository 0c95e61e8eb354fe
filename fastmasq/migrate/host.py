"""Carries over INPUT and OUTPUT, which protect the host itself, whole or not at all: into the chains `host`, `hostout`.

The chains of 1999 also see what passes through, and what belongs to sessions of inside hosts: that is let by before,
which needs a port range of its own. All else is the host's, whichever of its addresses it has: from outside, what is
not let through to inside hosts; from inside, what goes to the addresses that are named, or to many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address

from msgspec import structs

from fastmasq.migrate import foreign, links
from fastmasq.migrate.files import MASQUERADED_PORTS
from fastmasq.migrate.foreign import ESTABLISHED, NEW, RELATED, ForeignChain, Scene
from fastmasq.migrate.forwarding import Pairs
from fastmasq.migrate.regions import (
    DESTINATION_PORT,
    ECHO_REPLY,
    EVERYTHING,
    PROTOCOL,
    SOURCE_PORT,
    Box,
    Entries,
    Fate,
    combined,
    common,
    meet,
    replaced,
    within,
)
from fastmasq.migrate.work import TARGET_OF, Work, lets_all_pass, listening
from fastmasq.policy.chains import ACCEPT, DENY, INPUT, OUTPUT, Match, Rule
from fastmasq.wire.numbers import ESP, GRE, ICMP, TCP, UDP

HOST, HOST_OUT = "host", "hostout"
_TO_SESSIONS = (0, 3, 11)  # ICMP that the host itself needs: echo replies, unreachable, time exceeded
_TO_MANY = ((0xE0000000, 0xF0000000), (0xFFFFFFFF, 0xFFFFFFFF))  # multicast and broadcast, which nobody forwards
_ISAKMP = ((500, 500),)  # which is followed at its own port
_SET_APART = {  # what nobody has begun from inside comes to the host: in words, and as a box
    f"UDP to the ports {MASQUERADED_PORTS[0]} to {MASQUERADED_PORTS[1]}": replaced(
        replaced(EVERYTHING, PROTOCOL, ((UDP, UDP),)), DESTINATION_PORT, (MASQUERADED_PORTS,)
    ),
    "UDP from port 500 to 500": replaced(
        replaced(replaced(EVERYTHING, PROTOCOL, ((UDP, UDP),)), SOURCE_PORT, _ISAKMP), DESTINATION_PORT, _ISAKMP
    ),
    "GRE": replaced(EVERYTHING, PROTOCOL, ((GRE, GRE),)),
    "ESP": replaced(EVERYTHING, PROTOCOL, ((ESP, ESP),)),
}
_DROP = Fate("drop")
_ONE = 0xFFFFFFFF  # the mask of one address
_ANY = (0, 0)

Lists = list[tuple[str, bool | None, Entries]]
"""What is let to the host: link ("" is any other), whether it is about first segments of TCP only, list."""


class Host:
    """The chains of the host itself, beside what is forwarded (`Forwarding.pairs`, `Forwarding.answers`)."""

    def __init__(self, work: Work, pairs: Pairs, answers: Mapping[str, list[Box]]) -> None:
        self.work, self.pairs, self.answers = work, pairs, answers

    def carry(self, hook: str) -> None:
        """Write what protects the host itself, whole or not at all."""
        bases = [chain for chain in self.work.book.stages(hook) if chain.rules or chain.policy == "drop"]
        bases = [chain for chain in bases if chain.kind != "nat"]
        if not bases:
            return
        if not self.work.addresses:
            for base in bases:
                why = "it goes on protecting the host; to carry it over, name the host's addresses with --address"
                self.work.note("left to the kernel", base.place, f"the chain {base.name}", why)
            return
        lists = self._host_lists(hook)
        missing = [entry for _, _, entries in lists for entry in entries if entry.fate.missing]
        if missing:
            self.work.note_missing(missing)
            for base in bases:
                why = "not all of it is understood, so all of it stays the kernel's"
                self.work.note("left out", base.place, f"the chain {base.name}", why)
            return
        if all(lets_all_pass(entries) and not any(each.fate.log for each in entries) for _, _, entries in lists):
            return
        self._note_opened(bases[0], hook, lists)
        self._write_host(hook, lists)
        if any(base.policy == "drop" for base in bases):
            self.work.writer.rules.set_policy(INPUT if hook == foreign.INPUT else OUTPUT, DENY)

    def _note_opened(self, base: ForeignChain, hook: str, lists: Lists) -> None:
        """Note what the chains of 1999 do not keep from the host, or from others, as these rules did."""
        is_input = hook == foreign.INPUT
        addresses = self._not_named()
        if addresses:
            open_way = "what inside hosts send there" if is_input else "what inside hosts are sent from there"
            why = f"{open_way} is not kept back; name them with --address as well"
            self.work.note("left out", base.place, f"the chain {base.name} for {addresses}", why)
        named = {link for link, _, _ in lists}
        link = self.work.outside if self.work.outside in named else ""
        from_outside = next(entries for one, _, entries in reversed(lists) if one == link)
        closed = [name for name, box in _SET_APART.items() if not lets_all_pass(within(from_outside, box))]
        if is_input and closed:
            why = "that belongs to sessions of inside hosts; a program of the host that listens there gets it as well"
            self.work.note("left out", base.place, f"the chain {base.name} for {', '.join(closed)}", why)

    def _not_named(self) -> str:
        """Return in words which addresses of the gateway the user has not named, as far as can be told; "" for none."""
        ours = (self.work.outside, *self.work.inside)
        if not self.work.here.has(ours):
            return "the addresses of its other links" if len(self.work.addresses) < len(ours) else ""
        own = [address for link, each in self.work.here.addresses.items() if link != "lo" for address in each]
        return ", ".join(str(IPv4Address(each)) for each in own if each not in self.work.addresses)

    def _host_lists(self, hook: str) -> Lists:
        """Return (link, syn, list) in the order in which they are asked; link "" is any other.

        Later segments of TCP come first, and ICMP that belongs to sessions: both are judged by their states. Of UDP the
        chains cannot know whether it is an answer.
        """
        side = "in" if hook == foreign.INPUT else "out"
        named = links.named(self.work.book.reached_from(foreign.PREROUTING, hook), side, patterns=True)
        patterns = [name for name in named if name.endswith("+")]
        ours = (self.work.outside, *self.work.inside)
        names = [name for name in (*named, *ours, "lo") if name not in patterns]
        result = []
        lists = {name: self._host_list(hook, name) for name in dict.fromkeys([*names, *patterns, ""])}
        for name, parts in lists.items():
            alike = [pattern for pattern in patterns if name != pattern and foreign.is_named(name, pattern)]
            if name == "" or parts != lists[alike[0] if alike else ""]:
                result += [(name, syn, entries) for syn, entries in parts]
        return result

    def _host_list(self, hook: str, link: str) -> list[tuple[bool | None, Entries]]:
        hooks = (foreign.PREROUTING, foreign.INPUT) if hook == foreign.INPUT else (foreign.OUTPUT, foreign.POSTROUTING)
        stages = [chain for chain in self.work.book.stages(*hooks) if chain.kind != "nat"]
        link = link.replace("+", "0") or "?"
        ends = (link, "") if hook == foreign.INPUT else ("", link)
        scene = Scene(*ends, is_local=hook == foreign.INPUT or link == "lo", from_host=hook == foreign.OUTPUT)
        judged = {
            state: self.work.book.walk(stages, scene._replace(state=state, answers=state != NEW), EVERYTHING)
            for state in (NEW, ESTABLISHED, RELATED)
        }
        tcp = replaced(EVERYTHING, PROTOCOL, ((TCP, TCP),))
        icmp = replaced(EVERYTHING, PROTOCOL, ((ICMP, ICMP),))
        sessions: Entries = []
        for kind in _TO_SESSIONS:
            of_kind = replaced(icmp, SOURCE_PORT, ((kind, kind),))
            sessions += within(judged[ESTABLISHED if kind == ECHO_REPLY else RELATED], of_kind)
        udp = replaced(EVERYTHING, PROTOCOL, ((UDP, UDP),))
        closed = [
            box for box, fate in combined(judged[ESTABLISHED], judged[NEW], _only_by_state) if fate.kind == "by state"
        ]
        if hook == foreign.INPUT and link != "lo" and any(meet(box, udp) for box in closed):
            why = "answers to what the host itself asks by UDP: the chains know no states; accept them by source port"
            self.work.note("left out", "INPUT", "established, UDP", why)
        return [(False, within(judged[ESTABLISHED], tcp)), (None, sessions), (None, judged[NEW])]

    def _write_host(self, hook: str, lists: Lists) -> None:
        put, rules = self.work.writer.put, self.work.writer.rules
        chain = INPUT if hook == foreign.INPUT else OUTPUT
        name = self.work.writer.new_chain(HOST if chain == INPUT else HOST_OUT)
        for link, syn, entries in lists:
            for box, fate in entries:
                put(name, box, TARGET_OF.get(fate.kind, DENY), interface=link, syn=syn, log=fate.log)
        self.work.result.own_ports = True

        def add(match: Match, target: str) -> None:
            rules.append(chain, Rule(match=match if chain == INPUT else _reversed(match), target=target))

        outside = [(address, _ONE) for address in self.work.addresses if not self._is_inside(address)]
        for address in self.work.addresses:
            if (address, _ONE) not in outside:
                add(Match(destination=(address, _ONE)), name)
        for match in self._of_sessions(_ANY):  # the link's address may change
            add(structs.replace(match, interface=self.work.outside), ACCEPT)
        for address in outside:
            for match in self._of_sessions(address):
                add(match, ACCEPT)
            add(Match(destination=address), name)
        for link in self.work.inside:
            for many in _TO_MANY if chain == INPUT else ():
                add(Match(destination=many, interface=link), name)
            add(Match(interface=link), ACCEPT)
        for box, is_answer in self._passing(chain):
            is_tcp = box[PROTOCOL] == ((TCP, TCP),)
            put(chain, box, ACCEPT, interface=self.work.outside, syn=False if is_answer and is_tcp else None)
        add(Match(), name)

    def _is_inside(self, address: int) -> bool:
        """Whether an address is known to be that of an inside link, where no session is masqueraded."""
        here, networks = self.work.here, self.work.networks
        own = (address in here.addresses.get(link, ()) for link in self.work.inside)
        return any(own) or any(common(each, ((address, address),)) for each in networks.values())

    def _passing(self, chain: str) -> Iterator[tuple[Box, bool]]:
        """Yield what passes through unmasqueraded by the outside link, and whether it is an answer."""
        outside = self.work.outside
        for link in self.work.inside:
            pair = (outside, link) if chain == INPUT else (link, outside)
            for box in self.answers.get(pair[1], ()):
                yield box, True
            for box, fate in self.pairs[pair]:
                if fate.kind == "accept":
                    yield box, False

    def _of_sessions(self, address: tuple[int, int]) -> Iterator[Match]:
        """Yield what is addressed to the gateway, or _ANY, and belongs to sessions of inside hosts, seen from outside.

        Nobody but inside hosts begins their TCP sessions.
        """
        for protocol in (TCP, UDP):
            syn = False if protocol == TCP else None
            yield Match(protocol=protocol, destination=address, destination_ports=(MASQUERADED_PORTS,), syn=syn)
        yield Match(protocol=UDP, destination=address, source_ports=_ISAKMP, destination_ports=_ISAKMP)
        for kind in _TO_SESSIONS:
            yield Match(protocol=ICMP, destination=address, source_ports=((kind, kind),))
        for protocol in (GRE, ESP):
            yield Match(protocol=protocol, destination=address)
        for forward in self.work.result.forwards:
            protocol, (place, _, _) = foreign.PROTOCOLS[forward.protocol], forward.listen.rpartition(":")
            if place in (self.work.outside, str(IPv4Address(address[0]))):
                yield Match(protocol=protocol, destination=address, destination_ports=(listening(forward),))
        for redirect in self.work.result.redirects:
            yield Match(protocol=redirect.protocol, destination=address)


def _only_by_state(established: Fate, new: Fate) -> Fate:
    return Fate("by state") if established.is_open and not new.is_open else _DROP


def _reversed(match: Match) -> Match:
    """Return the match for the same sessions in the other direction; ICMP types stay where they are.

    There, inside hosts begin them.
    """
    ports = (match.source_ports, match.destination_ports)
    return structs.replace(
        match,
        syn=None,
        source=match.destination,
        destination=match.source,
        source_ports=ports[0] if match.protocol == ICMP else ports[1],
        destination_ports=ports[1] if match.protocol == ICMP else ports[0],
    )
