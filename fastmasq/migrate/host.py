"""Carries over INPUT and OUTPUT, which protect the host itself, whole or not at all: into chains for its addresses.

The chains of 1999 also see what passes through, and what belongs to sessions of inside hosts: that is let by before,
which needs a port range of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from fastmasq.migrate import foreign, links
from fastmasq.migrate.files import MASQUERADED_PORTS
from fastmasq.migrate.foreign import ESTABLISHED, NEW, RELATED, Scene
from fastmasq.migrate.regions import (
    ECHO_REPLY,
    EVERYTHING,
    PROTOCOL,
    SOURCE_PORT,
    Entries,
    Fate,
    combined,
    meet,
    replaced,
    within,
)
from fastmasq.migrate.work import TARGET_OF, Work, listening
from fastmasq.policy.chains import ACCEPT, DENY, INPUT, OUTPUT, Match, Rule
from fastmasq.wire.numbers import ESP, GRE, ICMP, TCP, UDP

HOST, HOST_OUT = "host", "hostout"
_TO_SESSIONS = (0, 3, 11)  # ICMP that the host itself needs: echo replies, unreachable, time exceeded
_DROP = Fate("drop")


class Host:
    """The chains of the host itself."""

    def __init__(self, work: Work) -> None:
        self.work = work

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
        self._write_host(hook, lists)

    def _host_lists(self, hook: str) -> list[tuple[str, bool | None, Entries]]:
        """Return (link, syn, list) in the order in which they are asked; link "" is any other.

        Later segments of TCP come first, and ICMP that belongs to sessions: both are judged by their states. Of UDP the
        chains cannot know whether it is an answer.
        """
        side = "in" if hook == foreign.INPUT else "out"
        names = links.named(self.work.book.reached_from(foreign.PREROUTING, hook), side)
        result = []
        lists = {name: self._host_list(hook, name) for name in (*dict.fromkeys([*names, "lo"]), "")}
        anything_else = lists[""]
        for name, parts in lists.items():
            if name == "" or parts != anything_else:
                result += [(name, syn, entries) for syn, entries in parts]
        return result

    def _host_list(self, hook: str, link: str) -> list[tuple[bool | None, Entries]]:
        hooks = (foreign.PREROUTING, foreign.INPUT) if hook == foreign.INPUT else (foreign.OUTPUT, foreign.POSTROUTING)
        stages = [chain for chain in self.work.book.stages(*hooks) if chain.kind != "nat"]
        ends = (link or "?", "") if hook == foreign.INPUT else ("", link or "?")
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

    def _write_host(self, hook: str, lists: list[tuple[str, bool | None, Entries]]) -> None:
        put, rules = self.work.writer.put, self.work.writer.rules
        chain = INPUT if hook == foreign.INPUT else OUTPUT
        name = self.work.writer.new_chain(HOST if chain == INPUT else HOST_OUT)
        for link, syn, entries in lists:
            for box, fate in entries:
                put(name, box, TARGET_OF.get(fate.kind, DENY), interface=link, syn=syn, log=fate.log)
        self.work.result.own_ports = True
        for address in self.work.addresses:
            for match in self._of_sessions((address, 0xFFFFFFFF)):
                rules.append(chain, Rule(match=match if chain == INPUT else _reversed(match), target=ACCEPT))
            whole = Match(destination=(address, 0xFFFFFFFF))
            rules.append(chain, Rule(match=whole if chain == INPUT else _reversed(whole), target=name))

    def _of_sessions(self, address: tuple[int, int]) -> Iterator[Match]:
        """Yield what is addressed to the gateway and belongs to sessions of inside hosts, seen from outside."""
        for protocol in (TCP, UDP):
            yield Match(protocol=protocol, destination=address, destination_ports=(MASQUERADED_PORTS,))
        for kind in _TO_SESSIONS:
            yield Match(protocol=ICMP, destination=address, source_ports=((kind, kind),))
        for protocol in (GRE, ESP):
            yield Match(protocol=protocol, destination=address)
        for forward in self.work.result.forwards:
            protocol = foreign.PROTOCOLS[forward.protocol]
            yield Match(protocol=protocol, destination=address, destination_ports=(listening(forward),))


def _only_by_state(established: Fate, new: Fate) -> Fate:
    return Fate("by state") if established.is_open and not new.is_open else _DROP


def _reversed(match: Match) -> Match:
    """Return the match for the same sessions in the other direction; ICMP types stay where they are."""
    ports = (match.source_ports, match.destination_ports)
    return structs.replace(
        match,
        source=match.destination,
        destination=match.source,
        source_ports=ports[0] if match.protocol == ICMP else ports[1],
        destination_ports=ports[1] if match.protocol == ICMP else ports[0],
    )
