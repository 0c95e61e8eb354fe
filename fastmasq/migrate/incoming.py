"""Carries over DNAT from outside: into port forwards, redirects, and rules of the chain input for some senders only."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from fastmasq.migrate import foreign
from fastmasq.migrate.emit import networks
from fastmasq.migrate.files import Forward, Redirect
from fastmasq.migrate.foreign import Scene, read_ports
from fastmasq.migrate.regions import (
    DESTINATION,
    DESTINATION_PORT,
    EVERYTHING,
    PROTOCOL,
    SOURCE,
    Box,
    Entries,
    Entry,
    Fate,
    Missing,
    always,
    combined,
    common,
    is_full,
    meet,
    narrowed,
    pruned,
    replaced,
    within,
)
from fastmasq.migrate.work import Work, closed, one_port
from fastmasq.policy.chains import ACCEPT, DENY, INPUT, REJECT
from fastmasq.wire.numbers import ICMP, TCP, UDP

_NAMES = {TCP: "tcp", UDP: "udp"}
_MOST_PROTOCOLS = 8  # that one rule may send to a host


class Incoming:
    """What is translated as it comes in by the outside link."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def carry(self) -> None:
        """Make forwards and redirects of what is translated as it comes in from outside."""
        scene = Scene(self.work.outside, "", is_local=True)
        entries: Entries = []
        for entry in self.work.book.walk(self.work.book.stages(foreign.PREROUTING), scene, EVERYTHING):
            entries += self._translated(entry) if entry.fate.kind == "dnat" else [entry]
        entries = pruned(entries)
        closed = [entry for entry in entries if entry.fate.kind in ("closed", "redirect")]
        self.work.note_missing(closed)
        for entry in closed:
            if entry.fate.kind == "redirect":
                self.work.note(
                    "left out", *entry.fate.rule_at, "only inside hosts are redirected to programs of the host"
                )
        taken: dict[int, list[tuple[int, int, str]]] = {TCP: [], UDP: []}
        restricted: dict[tuple[int, str, tuple[int, int]], Fate] = {}
        for number, (box, fate) in enumerate(entries):
            if fate.kind != "forward":
                continue
            try:
                for key in self._port_forwards(box, fate, taken):
                    restricted.setdefault(key, fate)
                self._protocol_redirects(box, fate, entries[:number])
            except _DoesNotFit as reason:
                self.work.note("left out", *fate.rule_at, str(reason))
        for key, fate in restricted.items():
            self._restrict(*key, fate, entries)

    def _translated(self, entry: Entry) -> Entries:
        """Return what becomes of packets whose destination is translated: let pass to it ("forward") or not."""
        box, fate = entry
        address, _, port = fate.to.partition(":")
        try:
            host = int(IPv4Address(address))
            if "-" in port and common(box[DESTINATION_PORT], (read_ports(port, "-"),)) == box[DESTINATION_PORT]:
                port = ""  # each keeps its own
                fate = fate._replace(to=address)
            to_port = one_port(port) if port else None
        except ValueError:
            return [Entry(box, closed(fate, f"{fate.to!r} is not one endpoint"))]
        behind = replaced(box, DESTINATION, ((host, host),))
        if to_port is not None:
            behind = replaced(behind, DESTINATION_PORT, ((to_port, to_port),))
        lists = [self._behind_dnat(link, behind, fate) for link in self._links_towards(host)]
        judged = lists[0]
        for other in lists[1:]:
            judged = combined(judged, other, lambda mine, theirs: _same_or_closed(mine, theirs, fate))
        result = []
        for one, its in judged:
            before = replaced(one, DESTINATION, box[DESTINATION])
            if to_port is not None:
                before = replaced(before, DESTINATION_PORT, box[DESTINATION_PORT])
            if its.is_open:
                its = Fate("forward", fate.to, rule_at=fate.rule_at, log=its.log)
            result.append(Entry(before, its))
        return result

    def _links_towards(self, host: int) -> list[str]:
        given = [link for link, networks in self.work.networks.items() if common(networks, ((host, host),))]
        towards = given or self.work.here.towards(((host, host),))
        return [link for link in towards if link in self.work.inside] or self.work.inside

    def _behind_dnat(self, link: str, box: Box, fate: Fate) -> Entries:
        scene = Scene(self.work.outside, link, is_local=False, translated=True)
        entries = self.work.book.forwarded(scene, box, fate.marks)
        self.work.note_translation(entries, "", "the inside host sees the sender's own address")
        return within(self.work.with_later_packets(scene, entries), box)

    def _port_forwards(
        self, box: Box, fate: Fate, taken: dict[int, list[tuple[int, int, str]]]
    ) -> Iterator[tuple[int, str, tuple[int, int]]]:
        """Make the forwards of a box; yield of each its protocol, the address or link it listens on, and its ports."""
        address, _, port = fate.to.partition(":")
        for protocol in _NAMES:
            if not narrowed(box, PROTOCOL, ((protocol, protocol),)):
                continue
            if is_full(box, DESTINATION_PORT):
                raise _DoesNotFit("a forward needs its ports")
            listen = self._listens(box)
            for first, last in box[DESTINATION_PORT]:
                if port and first != last:
                    raise _DoesNotFit("a range of ports is forwarded to the same ports")
                target = f"{address}:{port or first}"
                meeting = [one for one in taken[protocol] if one[0] <= last and first <= one[1]]
                if any(one[:3] != (first, last, f"{listen} {target}") for one in meeting):
                    raise _DoesNotFit(f"a port is forwarded to one endpoint, and {first} is forwarded already")
                yield protocol, listen, (first, last)
                if not meeting:
                    taken[protocol].append((first, last, f"{listen} {target}"))
                    ports = f"{first}" if first == last else f"{first}-{last}"
                    self.work.result.forwards.append(Forward(_NAMES[protocol], f"{listen}:{ports}", target))

    def _listens(self, box: Box) -> str:
        """Return the address that packets of a box are sent to, or else the outside link."""
        if is_full(box, DESTINATION):
            return self.work.outside
        (first, last), *others = box[DESTINATION]
        if others or first != last:
            raise _DoesNotFit("a forward listens on one address, or on the outside link")
        return str(IPv4Address(first))

    def _protocol_redirects(self, box: Box, fate: Fate, earlier: Entries) -> None:
        numbers = [number for first, last in box[PROTOCOL] for number in range(first, last + 1)]
        others = [number for number in numbers if number not in _NAMES]
        if not others:
            return
        if len(others) > _MOST_PROTOCOLS or ICMP in others:
            raise _DoesNotFit("a forward is for TCP or UDP ports, a redirect for one other protocol")
        address, _, _ = fate.to.partition(":")
        sources = [""] if is_full(box, SOURCE) else [_written(*one) for one in networks(box[SOURCE])]
        if any(meet(one, box) and not its.like(fate) for one, its in earlier):
            raise _DoesNotFit("a redirect cannot have exceptions")
        for number in others:
            for source in sources:
                self.work.result.redirects.append(Redirect(number, address, source))

    def _restrict(self, protocol: int, listen: str, ports: tuple[int, int], fate: Fate, entries: Entries) -> None:
        """Have the chain input let nobody to a forward who was not let to it; they could reach the host's own port."""
        box = replaced(replaced(EVERYTHING, PROTOCOL, ((protocol, protocol),)), DESTINATION_PORT, (ports,))
        if listen != self.work.outside:
            host = int(IPv4Address(listen))
            box = replaced(box, DESTINATION, ((host, host),))
        asked = within(entries, box)
        only = always(asked)
        if only is not None and only.like(fate):
            return
        to_host = self.work.book.walk(
            self.work.book.stages(foreign.INPUT), Scene(self.work.outside, "", is_local=True), box
        )
        for one, its in asked:
            if its.kind == "accept" and any(entry.fate.is_open for entry in within(to_host, one)):
                why = "the port is the forward's for everybody: others do not reach the host's own any more"
                self.work.note("left out", *fate.rule_at, why)
            target = ACCEPT if its.like(fate) else REJECT if its.kind == "reject" else DENY
            self.work.writer.put(INPUT, one, target, interface=self.work.outside, log=its.log)


class _DoesNotFit(Exception):
    """Why a translation is left out."""


def _same_or_closed(mine: Fate, theirs: Fate, translating: Fate) -> Fate:
    if mine.like(theirs) or (mine.is_open and theirs.is_open):
        return mine
    why = Missing(*translating.rule_at, "it depends on the inside link that leads there, which is not known")
    return Fate("closed", missing=(*mine.missing, *theirs.missing, why))


def _written(address: int, mask: int) -> str:
    return f"{IPv4Address(address)}/{mask.bit_count()}"
