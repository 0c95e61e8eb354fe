"""Carries over REDIRECT from inside: into the chain input, as far as the chain INPUT lets the redirected packets in."""

from __future__ import annotations

from fastmasq.migrate import foreign
from fastmasq.migrate.foreign import Scene
from fastmasq.migrate.regions import (
    DESTINATION,
    DESTINATION_PORT,
    EVERYTHING,
    PROTOCOL,
    Entries,
    Entry,
    Fate,
    ranges_of,
    replaced,
)
from fastmasq.migrate.work import Work, closed, one_port
from fastmasq.policy.chains import DENY, INPUT, REDIRECT, REJECT, RETURN, Match, Rule
from fastmasq.wire.numbers import TCP, UDP

_NAMES = (TCP, UDP)
_OF_PROXIES = {"redirect": REDIRECT, "refused": REJECT, "denied": DENY}


class Proxies:
    """What inside hosts are redirected to."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def carry(self) -> None:
        """Write into the chain input what inside hosts are redirected to."""
        for link in self.work.inside:
            entries = self.work.book.walk(self.work.book.stages(foreign.PREROUTING), Scene(link, ""), EVERYTHING)
            asked: Entries = []
            for entry in entries:
                asked += self._redirected(link, entry) if entry.fate.kind == "redirect" else [entry]
            self.work.note_missing(entry for entry in asked if entry.fate.kind == "closed")
            while asked and asked[-1].fate.kind not in _OF_PROXIES:
                asked.pop()
            exceptions = [entry for entry in asked if entry.fate.kind not in _OF_PROXIES]
            if not asked:
                continue
            chain = self.work.writer.new_chain("proxy") if exceptions else INPUT
            for box, fate in asked:
                target = _OF_PROXIES.get(fate.kind, RETURN)
                port = int(fate.to or 0) if target == REDIRECT else 0
                self.work.writer.put(chain, box, target, interface=link, log=fate.log, redirect_port=port)
            if exceptions:
                self.work.writer.rules.append(INPUT, Rule(match=Match(interface=link), target=chain))

    def _redirected(self, link: str, entry: Entry) -> Entries:
        """Return what INPUT makes of redirected packets, which go to the host, at whichever of its addresses."""
        box, fate = entry
        port = fate.to
        if not all(first == last and first in _NAMES for first, last in box[PROTOCOL]):
            return [Entry(box, closed(fate, "only TCP and UDP can be redirected to a local port"))]
        try:
            to_port = one_port(port) if port else None
        except ValueError:
            return [Entry(box, closed(fate, "packets are redirected to one local port"))]
        own = ranges_of((one, one) for one in self.work.addresses) or EVERYTHING[DESTINATION]
        behind = replaced(box, DESTINATION, own)
        if to_port is not None:
            behind = replaced(behind, DESTINATION_PORT, ((to_port, to_port),))
        stages = self.work.book.stages(foreign.PREROUTING, foreign.INPUT, after_dnat=True)
        scene = Scene(link, "", is_local=True, translated=True)
        result = []
        for one, its in self.work.book.walk(stages, scene, behind, fate.marks):
            before = replaced(one, DESTINATION, box[DESTINATION])
            if to_port is not None:
                before = replaced(before, DESTINATION_PORT, box[DESTINATION_PORT])
            if one[DESTINATION] != own:
                its = closed(fate, "INPUT asks for the host's address; name all of them with --address")
            elif its.is_open:
                its = Fate("redirect", port, rule_at=fate.rule_at, log=its.log)
            else:
                its = its._replace(kind={"drop": "denied", "reject": "refused"}.get(its.kind, its.kind))
            result.append(Entry(before, its))
        return result
