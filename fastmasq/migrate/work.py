"""What the parts of an import share: the foreign rule set, the links, and what has been written so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

from fastmasq.migrate import foreign, links
from fastmasq.migrate.emit import Writer, describe
from fastmasq.migrate.evaluate import RuleBook
from fastmasq.migrate.files import Carried, Forward, Kind, Note, Redirect
from fastmasq.migrate.foreign import ESTABLISHED, Scene
from fastmasq.migrate.links import Here
from fastmasq.migrate.regions import (
    DESTINATION,
    DESTINATION_PORT,
    EVERYTHING,
    PROTOCOL,
    Box,
    Entries,
    Entry,
    Fate,
    Missing,
    Ranges,
    about_answers,
    always,
    combined,
    is_full,
    pruned,
    replaced,
    within,
)
from fastmasq.policy.chains import ACCEPT, MASQ, REJECT

_SHOWN = 3  # of what a note is about
TARGET_OF = {"accept": ACCEPT, "masquerade": MASQ, "reject": REJECT}  # of fates; of all others it is DENY


class Work:
    """One rule set on its way. addresses: the gateway's own; networks: behind its links, as far as the user named them.

    here: what this host knows, which may be the gateway.
    """

    def __init__(
        self,
        book: RuleBook,
        inside: list[str],
        outside: str,
        addresses: list[int],
        networks: Mapping[str, Ranges],
        here: Here,
    ) -> None:
        self.book, self.inside, self.outside, self.addresses = book, inside, outside, addresses
        self.networks, self.here = networks, here
        self.writer = Writer()
        self.result = Carried(
            inside=inside, outside=outside, rules=self.writer.rules, forwards=[], redirects=[], notes=[]
        )

    def targets(self) -> list[Box]:
        """Return what forwards and redirects send to their targets."""
        found = [*map(_target, self.result.forwards), *map(_target_of_protocol, self.result.redirects)]
        return list(dict.fromkeys(found))

    def note(self, kind: Kind, place: str, text: str, why: str) -> None:
        note = Note(place, kind, text, why)
        if note not in self.result.notes:
            self.result.notes.append(note)

    def join_notes(self) -> None:
        """Make one note of those that differ only in what they are about."""
        about: dict[tuple[str, Kind, str], list[str]] = {}
        for note in self.result.notes:
            about.setdefault((note.place, note.kind, note.why), []).append(note.text)
        self.result.notes = []
        for (place, kind, why), texts in about.items():
            more = [f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
            self.result.notes.append(Note(place, kind, "; ".join([*texts[:_SHOWN], *more]), why))

    def note_missing(self, entries: Iterable[Entry]) -> None:
        for missing in (missing for entry in entries for missing in entry.fate.missing):
            self.note("left out", *missing)

    def note_rules(self) -> None:
        """Note what rules do beside letting pass or not, and links that are not ours."""
        for chain in self.book.reached_from(foreign.PREROUTING, foreign.FORWARD, foreign.POSTROUTING):
            for rule in chain.rules:
                if rule.alters:
                    self.note("left out", rule.place, rule.text, rule.alters)
        for name in links.named(self.book.reached_from(foreign.POSTROUTING), "out"):
            if name not in (self.outside, *self.inside) and links.masqueraded_on(self.book, name):
                self.note("left out", name, "masquerading", f"{self.outside} is the outside link, and there is but one")
        for name, ours in links.passed_over(self.book, [self.outside, *self.inside]).items():
            text = f"what passes between {name} and {' or '.join(ours)}"
            self.note("left out", name, text, "fastmasq forwards between its own links; name it with --inside as well")

    def note_lost_masquerading(self, going_out: Entries) -> None:
        """Note that nothing is masqueraded, where something was and is closed: its author would look for it long."""
        is_masquerading = any(entry.fate.kind == "masquerade" for entry in going_out)
        is_missing = any(entry.fate.missing for entry in going_out)
        rules = (rule for chain in self.book.reached_from(foreign.POSTROUTING) for rule in chain.rules)
        if is_missing and not is_masquerading and any(rule.action in foreign.MASQUERADING for rule in rules):
            why = "nothing is masqueraded by what is written, so inside hosts with private addresses reach nobody"
            self.note("left out", f"to {self.outside}", "masquerading", why)

    def note_translation(self, entries: Iterable[Entry], kind: str, why: str) -> None:
        by_place = {(rule.place, rule.text): rule for chain in self.book.chains for rule in chain.rules}
        for entry in entries:
            rule = by_place.get(entry.fate.rule_at)
            if rule is not None and entry.fate.kind == "masquerade" and kind in ("", rule.action):
                self.note("changed", rule.place, rule.text, why)

    def with_later_packets(self, scene: Scene, entries: Entries) -> Entries:
        """Close what is let pass whose later packets or answers are not."""
        later = self.book.forwarded(scene._replace(state=ESTABLISHED), EVERYTHING)
        back = Scene(scene.out_link, scene.in_link, ESTABLISHED, answers=True, translated=scene.translated)
        answers = self.book.forwarded(back, EVERYTHING)
        if scene.translated:
            later = self._also_before_nat(scene._replace(state=ESTABLISHED), later)
        elif scene.out_link == self.outside:
            answers = self._also_before_nat(back, answers)
        if lets_all_pass(later) and lets_all_pass(answers):
            return entries
        result = []
        for box, fate in entries:
            if not fate.is_open:
                result.append(Entry(box, fate))
                continue
            both = combined(within(later, box), about_answers(answers, box), _less_open)
            parts = rejoined(box, [Entry(one, _if_let_pass(fate, its)) for one, its in both])
            if len(parts) == 1 and not parts[0].fate.is_open:
                place = f"{scene.in_link} to {scene.out_link}"
                self.note("changed", place, describe(box), "a first packet passed, but not what follows; it is closed")
            result += parts
        return pruned(result)

    def _also_before_nat(self, scene: Scene, entries: Entries) -> Entries:
        """Close what the chains before nat stop, whatever its destination: that is still the external address there."""
        asked = self.book.walk(self.book.before_nat(), scene, EVERYTHING)
        whatever = [entry for entry in asked if is_full(entry.box, DESTINATION)]
        return entries if lets_all_pass(whatever) else combined(entries, whatever, _less_open)


def _less_open(one: Fate, other: Fate) -> Fate:
    return one if not one.is_open else other


def _if_let_pass(fate: Fate, later: Fate) -> Fate:
    """Return the fate of a first packet, given that of what follows: a flow that would get stuck does not begin."""
    return fate if later.is_open else Fate("closed", missing=later.missing)


def closed(fate: Fate, why: str) -> Fate:
    """Return the fate of what is translated in a way that fastmasq does not."""
    return Fate("closed", missing=(Missing(*fate.rule_at, why),))


def lets_all_pass(entries: Entries) -> bool:
    return all(entry.fate.is_open for entry in entries)


def rejoined(box: Box, parts: Entries) -> Entries:
    """Return one entry for a box where all its parts have come to the same."""
    fate = always(parts) if parts else None
    return [Entry(box, fate)] if fate is not None else parts


def _target(forward: Forward) -> Box:
    """Return what a forward sends to its target."""
    address, _, port = forward.to.partition(":")
    first, last = listening(forward)
    box = _target_of_protocol(Redirect(foreign.PROTOCOLS[forward.protocol], address))
    return replaced(box, DESTINATION_PORT, ((int(port), int(port) + last - first),))


def _target_of_protocol(redirect: Redirect) -> Box:
    host = int(IPv4Address(redirect.to))
    box = replaced(EVERYTHING, DESTINATION, ((host, host),))
    return replaced(box, PROTOCOL, ((redirect.protocol, redirect.protocol),))


def listening(forward: Forward) -> tuple[int, int]:
    return foreign.read_ports(forward.listen.rpartition(":")[2], "-")


def one_port(text: str) -> int:
    """Return the number of a port. Raises ValueError."""
    first, last = foreign.read_ports(text, "-")
    if not 0 < first == last:
        raise ValueError(f"{text!r} is not one port")
    return first
