"""Evaluates a foreign rule set as the kernel would, for all packets of a scene at once.

The kernel calls the base chains of a hook in the order of their priorities; an accept ends one chain, and the next is
asked. Chains of nat are called at a fixed place among the others, for the first packet of a flow only, until one of
them translates. A walk goes along these stages and returns a list of boxes with fates (`regions`); what comes behind a
box that a rule takes, a jump or a return leads to, is walked for that box alone: nothing is subtracted from anything.

A rule that may match or not is taken both ways, and the packets are `closed` unless both end alike. The marks that
rules set are followed where a rule asks for one, so far as they are known: from where a packet comes in, and for its
flow's, for the first packet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fastmasq.errors import ConfigurationError
from fastmasq.migrate import foreign
from fastmasq.migrate.foreign import (
    FORWARD,
    NAT_PRIORITY,
    POSTROUTING,
    PREROUTING,
    ForeignChain,
    ForeignRule,
    Marks,
    Scene,
)
from fastmasq.migrate.regions import (
    PROTOCOL,
    SOURCE,
    SOURCE_PORT,
    Box,
    Entries,
    Entry,
    Fate,
    Missing,
    covers,
    either,
    narrowed,
    pruned,
)
from fastmasq.wire.numbers import ICMP

DEEPEST_JUMP = 16  # as in the kernel (NFT_JUMP_STACK_SIZE)
DEEPEST_CALLS = 8000
MOST_STEPS = 300_000  # rules looked at for one scene
MOST_STEPS_WITH_MARKS = 15_000

_Then = Callable[[Box, Marks], Entries]


_NOT_KNOWN = Marks(None, None)


class _TooManyCases(ConfigurationError):
    """More than MOST_STEPS."""


class _Ways(NamedTuple):
    """What an accept and the end of a chain lead to, whether a rule may translate, and whether something has before.

    is_behind: whether sources are seen as nat has left them. Boxes have them as they were.
    """

    accepted: Callable[..., Entries]
    at_the_end: _Then
    is_nat: bool
    is_behind: bool


class RuleBook:
    """All chains of a rule set."""

    def __init__(self, chains: Iterable[ForeignChain]) -> None:
        self.chains = list(chains)
        self.by_name = {(chain.table, chain.name): chain for chain in self.chains}
        rules = [rule for chain in self.chains for rule in chain.rules]
        self.follows_marks = any(isinstance(test, foreign.Mark) for rule in rules for test in rule.tests)
        self.translates = any(rule.action in foreign.MASQUERADING for rule in rules)
        self.marks_flows = any(rule.marking and rule.marking.of == foreign.FLOW for rule in rules)

    def stages(self, *hooks: str, after_dnat: bool = False) -> list[ForeignChain]:
        """Return the base chains of these hooks as the kernel calls them; after_dnat: only those behind that."""
        found = [chain for hook in hooks for chain in self._of_hook(hook)]
        if after_dnat:
            found = [
                chain
                for chain in found
                if chain.hook != PREROUTING or (chain.kind != "nat" and chain.priority > NAT_PRIORITY[PREROUTING])
            ]
        return found

    def before_nat(self) -> list[ForeignChain]:
        """Return the base chains that see a packet before its destination is translated, or translated back."""
        behind = self.stages(PREROUTING, after_dnat=True)
        return [chain for chain in self.stages(PREROUTING) if chain.kind != "nat" and chain not in behind]

    def _of_hook(self, hook: str) -> list[ForeignChain]:
        of_hook = [chain for chain in self.chains if chain.hook == hook]

        def place(chain: ForeignChain) -> tuple[int, bool, int, int]:
            is_nat = chain.kind == "nat"
            return NAT_PRIORITY[hook] if is_nat else chain.priority, is_nat, chain.priority, -chain.number

        return sorted(of_hook, key=place)

    def reached_from(self, *hooks: str, kind: str = "") -> list[ForeignChain]:
        """Return the chains that packets of these hooks may come to; kind: only from base chains of this kind."""
        return self._reached(chain for chain in self.chains if chain.hook in hooks and kind in ("", chain.kind))

    def _reached(self, bases: Iterable[ForeignChain]) -> list[ForeignChain]:
        waiting = list(bases)
        found: list[ForeignChain] = []
        while waiting:
            chain = waiting.pop(0)
            if chain in found:
                continue
            found.append(chain)
            for rule in chain.rules:
                target = self.by_name.get((chain.table, rule.to))
                if rule.action in ("jump", "goto") and target is not None:
                    waiting.append(target)
        return found

    # -- walks -----------------------------------------------------------------------------------------------------

    def forwarded(self, scene: Scene, box: Box, marks: Marks | None = None) -> Entries:
        """Return the fates of packets that are routed from one link to another; marks: what they have before.

        In prerouting, what comes before nat sees other addresses than the box has: those of what is translated there,
        and those of answers to what is masqueraded: these chains (`before_nat`) are left out then.
        """
        hooks = (PREROUTING, FORWARD, POSTROUTING)
        return self.walk(self.stages(*hooks, after_dnat=scene.translated != scene.answers), scene, box, marks)

    def walk(self, stages: Sequence[ForeignChain], scene: Scene, box: Box, marks: Marks | None = None) -> Entries:
        """Return the fates of the packets of a box on their way along the stages; marks: what they have before.

        Marks are not followed where that makes too many cases. Raises ConfigurationError for what no kernel would have
        taken, or what is too much.
        """
        try:
            return self._walked(_Walk(self, stages, scene, follows_marks=self.follows_marks), box, marks)
        except _TooManyCases:
            if not self.follows_marks:
                raise
            self.follows_marks = False
        return self._walked(_Walk(self, stages, scene, follows_marks=False), box, None)

    def _walked(self, walk: _Walk, box: Box, marks: Marks | None) -> Entries:
        usual = sys.getrecursionlimit()
        sys.setrecursionlimit(usual + DEEPEST_CALLS)  # what comes behind each jump is a call within that for the jump
        try:
            return pruned(walk.stage(0, box, marks or walk.marks_at_first))
        except RecursionError:
            raise ConfigurationError("the rules jump too often to be carried over") from None
        finally:
            sys.setrecursionlimit(usual)

    def marks_at_first(self, stages: Sequence[ForeignChain], scene: Scene) -> Marks:
        """Return what is known of marks where a walk begins, which may be behind chains that set them."""
        hooks = [] if scene.from_host else [PREROUTING]
        if hooks and all(chain.hook == POSTROUTING for chain in stages):
            hooks.append(FORWARD)
        passed = [chain for chain in self.stages(*hooks) if chain not in stages]
        passed = [chain for chain in passed if chain.kind != "nat" or scene.state == foreign.NEW]
        if any(rule.marking for chain in self._reached(passed) for rule in chain.rules):
            return _NOT_KNOWN
        return Marks(0, None if self.marks_flows and scene.state != foreign.NEW else 0)


class _Walk:
    """One walk of the packets of one scene."""

    def __init__(self, book: RuleBook, stages: Sequence[ForeignChain], scene: Scene, *, follows_marks: bool) -> None:
        self.book, self.scene, self.follows_marks = book, scene, follows_marks
        self.marks_at_first = book.marks_at_first(stages, scene) if follows_marks else _NOT_KNOWN
        self.stages = [chain for chain in stages if chain.kind != "nat" or scene.state == foreign.NEW]
        self.steps = 0

    def stage(self, number: int, box: Box, marks: Marks, masquerading: tuple[str, str] | None = None) -> Entries:
        """Walk from a stage on. masquerading: the rule that will translate the source: nat is not asked any more."""
        while number < len(self.stages) and masquerading and self.stages[number].kind == "nat":
            number += 1
        if number == len(self.stages):
            return [Entry(box, Fate("masquerade", rule_at=masquerading) if masquerading else Fate("accept"))]
        base = self.stages[number]

        def accepted(inner: Box, its: Marks, translating: tuple[str, str] | None = masquerading) -> Entries:
            return self.stage(number + 1, inner, its, translating)

        def at_the_end(inner: Box, its: Marks) -> Entries:
            return accepted(inner, its) if base.policy == "accept" else [Entry(inner, Fate("drop"))]

        is_behind = self.book.translates and base.hook == POSTROUTING and base.priority > NAT_PRIORITY[POSTROUTING]
        return self.chain(base, 0, box, marks, _Ways(accepted, at_the_end, base.kind == "nat", is_behind), 0)

    def chain(self, chain: ForeignChain, start: int, box: Box, marks: Marks, ways: _Ways, depth: int) -> Entries:
        """Walk from a rule of a chain on."""
        if depth > DEEPEST_JUMP:
            raise ConfigurationError(f"{chain.place}: rules jump in a circle, or too deep")
        found: Entries = []
        for number in range(start, len(chain.rules)):
            self.steps += 1
            if self.steps > (MOST_STEPS_WITH_MARKS if self.follows_marks else MOST_STEPS):
                raise _TooManyCases("the rules make too many cases to be carried over")
            rule = chain.rules[number]
            its = self.marked(rule, marks)
            if not rule.action and not rule.log and its == marks:
                continue
            inner, doubts = self.match(rule, box, marks, ways)
            if inner is None:
                continue

            def rest(inside: Box, behind: Marks, following: int = number + 1) -> Entries:
                return self.chain(chain, following, inside, behind, ways, depth)

            if not rule.action:  # it only marks or logs, perhaps more of them than before
                if doubts and its != marks:
                    its = foreign.Marking(rule.marking.of).changed(marks)
                log = {"log": True} if rule.log else {}
                found += [entry._replace(fate=entry.fate._replace(**log)) for entry in rest(inner, its)]
            elif doubts:
                why = Missing(rule.place, rule.text, f"there is nothing like {'; '.join(doubts)}")
                found += either(self.act(chain, rule, inner, its, rest, ways, depth), rest(inner, marks), why)
            else:
                found += self.act(chain, rule, inner, its, rest, ways, depth)
            if covers(inner, box):
                return pruned(found)
        return pruned([*found, *ways.at_the_end(box, marks)])

    def marked(self, rule: ForeignRule, marks: Marks) -> Marks:
        """Return the marks of packets that a rule matches."""
        return rule.marking.changed(marks) if rule.marking and self.follows_marks else marks

    def match(self, rule: ForeignRule, box: Box, marks: Marks, ways: _Ways) -> tuple[Box | None, list[str]]:
        """Return the packets of a box that a rule matches, and what it asks beside that is not known."""
        doubts = []
        inner: Box | None = box
        for test in rule.tests:
            if isinstance(test, foreign.Within):
                if ways.is_behind and _is_translated(test.field, inner):
                    doubts.append("a source as nat has left it")
                    continue
                inner = narrowed(inner, test.field, test.ranges)
                if inner is None:
                    return None, []
                continue
            holds = test.holds(marks) if isinstance(test, foreign.Mark) else test.holds(self.scene)
            if holds is False:
                return None, []
            if holds is None:
                doubts.append(test.text if isinstance(test, foreign.Unknown | foreign.Mark) else test.name)
        return inner, doubts

    def act(
        self,
        chain: ForeignChain,
        rule: ForeignRule,
        box: Box,
        marks: Marks,
        rest: _Then,
        ways: _Ways,
        depth: int,
    ) -> Entries:
        """Return the fates of packets that a rule matches."""
        match rule.action:
            case "accept":
                entries = ways.accepted(box, marks)
            case "drop" | "reject":
                entries = [Entry(box, Fate(rule.action))]
            case "return":
                entries = ways.at_the_end(box, marks)
            case "jump" | "goto" if (chain.table, rule.to) in self.book.by_name:
                target = self.book.by_name[chain.table, rule.to]
                behind = rest if rule.action == "jump" else ways.at_the_end
                entries = self.chain(target, 0, box, marks, ways._replace(at_the_end=behind), depth + 1)
            case "masquerade" | "snat" if ways.is_nat:
                entries = ways.accepted(box, marks, (rule.place, rule.text))
            case "dnat" | "redirect" if ways.is_nat:
                entries = [Entry(box, Fate(rule.action, rule.to, rule_at=(rule.place, rule.text), marks=marks))]
            case _:
                why = Missing(rule.place, rule.text, "what it does is not known")
                entries = [Entry(box, Fate("closed", missing=(why,)))]
        if rule.log:
            entries = [entry._replace(fate=entry.fate._replace(log=True)) for entry in entries]
        return entries


def _is_translated(field: int, box: Box) -> bool:
    """Whether masquerading packets changes a field: their source, or its port where they have one."""
    return field == SOURCE or (field == SOURCE_PORT and box[PROTOCOL] != ((ICMP, ICMP),))
