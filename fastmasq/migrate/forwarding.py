"""Carries over what is forwarded between links: into the chain forward, or no rules where the default does as much.

The chain knows the link a packet leaves by, inside addresses, and no states.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastmasq.migrate import foreign, links
from fastmasq.migrate.emit import describe, describe_addresses
from fastmasq.migrate.foreign import RELATED, LinkIs, Scene
from fastmasq.migrate.regions import (
    DESTINATION,
    DESTINATION_PORT,
    ECHO_REQUEST,
    EVERYTHING,
    PROTOCOL,
    SOURCE,
    SOURCE_PORT,
    Box,
    Entries,
    Entry,
    Fate,
    Missing,
    Ranges,
    about_answers,
    answer_to,
    combined,
    common,
    complement,
    covers,
    kinds_of,
    left_of,
    meet,
    narrowed,
    pruned,
    ranges_of,
    replaced,
    within,
)
from fastmasq.migrate.work import TARGET_OF, Work, closed, lets_all_pass, listening, rejoined
from fastmasq.policy.chains import ACCEPT, DENY, FORWARD, MASQ
from fastmasq.wire.numbers import ICMP, TCP

_ERRORS = (3, 4, 11, 12)  # ICMP about packets of a session: destination unreachable to parameter problem
_NO_UNICAST = (0xE0000000, 0xFFFFFFFF)
_DROP, _SHUT = Fate("drop"), Fate("shut")  # "shut": nobody's, so that no rule of 1999 has to tell it from others
_OPEN = {"accept", "masquerade"}
_DIFFERS = "differs"  # by the link a packet comes in by
_ONLY_THE_LEAVING_LINK = (
    "the chain forward knows only the link a packet leaves by; import on the gateway, or say what is behind each link: "
    "--inside LINK=NETWORK"
)

Pairs = dict[tuple[str, str], Entries]
"""What becomes of packets, by the link they come in by and the one they leave by."""


class Forwarding:
    """What is forwarded, and the rules for it."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.answers: dict[str, list[Box]] = {}  # TCP and echo replies by the link they leave by
        self.networks: dict[str, Ranges] = {}  # behind each inside link; empty where they are not known

    def pairs(self, told: dict[str, Ranges] | None = None) -> Pairs:
        """Return what becomes of packets by the links that they come in and leave by.

        told: what is behind each inside link; only such packets are asked about.
        """
        told = told or {}
        self.answers.clear()
        ours = [*self.work.inside, self.work.outside]
        pairs = [(one, other) for one in ours for other in ours if one != other]
        pairs += [(link, link) for link in self.work.inside if self._is_named_both_ways(link)]
        new = {}
        for one, other in pairs:
            box = replaced(EVERYTHING, SOURCE, told.get(one, EVERYTHING[SOURCE]))
            box = replaced(box, DESTINATION, told.get(other, EVERYTHING[DESTINATION]))
            entries = self._carriable((one, other), self.work.book.forwarded(Scene(one, other), box))
            new[one, other] = self.work.with_later_packets(Scene(one, other), entries)
        for inside in self.work.inside:
            new[self.work.outside, inside] = self._shut(new[self.work.outside, inside], new[inside, self.work.outside])
        return {pair: self._with_answers_routed(pair, entries, new) for pair, entries in new.items()}

    def _is_named_both_ways(self, link: str) -> bool:
        """Whether a rule is about what comes in and leaves by a link, beside what others send there."""
        rules = (rule for chain in self.work.book.reached_from(foreign.FORWARD) for rule in chain.rules)
        named = ([test for test in rule.tests if isinstance(test, LinkIs) and link in test.names] for rule in rules)
        return any({test.side for test in tests if not test.inverted} == {"in", "out"} for tests in named)

    def settled(self, pairs: Pairs) -> tuple[Pairs, dict[str, Entries]]:
        """Return what becomes of packets by both links, and by the link that they leave by.

        The chain forward knows no other. Where it makes a difference, and it is known what is behind each inside link,
        they are told apart by their sources: the path drops a source on a link that its route does not lead over.
        """
        lists: dict[str, Entries] = {}
        told: dict[str, Ranges] = {}
        for link, entries in self._by_leaving_link(pairs):
            lists[link] = entries
            if _differs(entries) and (told := self._told()):
                break
        if told:
            text = ", ".join(f"{link} ({describe_addresses(ranges)})" for link, ranges in told.items())
            self.work.note("changed", "forward", text, "told apart by their sources, not by their links")
            pairs = self.pairs(told)
            lists = dict(self._by_leaving_link(pairs, told))
        lists = {link: _closed_where_it_differs(entries) for link, entries in lists.items()}
        for entries in lists.values():
            self.work.note_missing(entries)
        return pairs, lists

    def _by_leaving_link(self, pairs: Pairs, told: dict[str, Ranges] | None = None) -> Iterator[tuple[str, Entries]]:
        for link in (self.work.outside, *self.work.inside):
            coming = {one: entries for (one, leaving), entries in pairs.items() if leaving == link}
            yield link, self._from_each(coming, told) if told else self._from_any(coming, link)

    def _from_each(self, coming: dict[str, Entries], told: dict[str, Ranges]) -> Entries:
        """Return one list for what comes in by any link, by what is behind each inside one."""
        from_outside = coming.pop(self.work.outside, [])
        found: Entries = []
        for one in (link for link in links.nested(told) if link in coming):
            found += [*coming[one], Entry(replaced(EVERYTHING, SOURCE, told[one]), _SHUT)]
        return pruned([*found, *from_outside])

    def _from_any(self, coming: dict[str, Entries], leaving: str) -> Entries:
        """Return one list for what comes in by any link, or that it differs.

        What comes in from outside does not have the source of an inside network: the path drops that.
        """
        from_outside = coming.pop(self.work.outside, None)
        first, *others = coming.items() if coming else [("", from_outside or [])]
        entries = first[1]
        for one, other in others:
            entries = _same(entries, other, one, leaving)
        if from_outside is None or not coming:
            return entries
        if not all(self.networks.values()):
            return _same(entries, from_outside, self.work.outside, leaving)
        named = ranges_of(each for ranges in self.networks.values() for each in ranges)
        left = [entry for entry in entries if not entry.fate.is_open or not narrowed(entry.box, SOURCE, named)]
        rest = _same([*left, Entry(EVERYTHING, _SHUT)], from_outside, self.work.outside, leaving)
        return pruned([*within(entries, replaced(EVERYTHING, SOURCE, named)), *rest])

    def _told(self) -> dict[str, Ranges]:
        """Return what is behind each inside link, as the user says, the rules or the routes; {} if they overlap.

        {} as well where it is not known of all of them. The user's networks, and those of routes, may lie within each
        other.
        """
        given, here = self.work.networks, self.work.here
        named = ranges_of(each for ranges in given.values() for each in ranges)
        ours = (self.work.outside, *self.work.inside)
        by_rules = {link: common(ranges, complement(named, SOURCE)) for link, ranges in self.networks.items()}
        for known, may_nest in ((by_rules, False), (here.networks if here.has(ours) else {}, True)):
            found = {link: given.get(link) or known.get(link, ()) for link in self.work.inside}
            may_nest |= all(link in given for link in found)
            if all(found.values()) and _are_apart(list(found.values()), may_nest=may_nest):
                return found
        return {}

    def _carriable(self, pair: tuple[str, str], entries: Entries) -> Entries:
        """Return the list with fates that the chain forward can have."""
        inside: Ranges = ()
        if pair[1] == self.work.outside:
            why = f"the external address is {self.work.outside}'s own, whatever it is"
            self.work.note_translation(entries, "snat", why)
            inside = self.networks[pair[0]] = self._inside_networks(pair, entries)
        elif pair[0] != self.work.outside:
            self.work.note_translation(entries, "", f"nothing is masqueraded on leaving by {pair[1]}, an inside link")
        result: Entries = []
        for box, fate in entries:
            if fate.kind == "accept":
                box = narrowed(box, SOURCE, inside) or box
            left = left_of(box, (earlier.box for earlier in result))
            if all(common(one[DESTINATION], ranges_of((*inside, _NO_UNICAST))) == one[DESTINATION] for one in left):
                continue  # such packets do not leave here
            if fate.kind == "dnat" and pair[0] != self.work.outside:
                if self._turns_round(box, fate):
                    continue
                fate = closed(fate, f"a forward is for what comes in by {self.work.outside}")
            elif fate.kind in ("dnat", "redirect"):
                fate = _SHUT
            elif fate.kind == "masquerade" and pair[1] != self.work.outside:
                fate = fate._replace(kind="accept")
            result.append(Entry(box, fate))
        return result

    def _turns_round(self, box: Box, fate: Fate) -> bool:
        """Whether a forward, which inside hosts reach by the external address as well, does what DNAT does for them."""
        (first, last), *others = box[DESTINATION]
        if first != last or others:
            return False
        forwarded = {
            listening(forward)
            for forward in self.work.result.forwards
            if forward.to in (fate.to, f"{fate.to}:{listening(forward)[0]}")
            and box[PROTOCOL] == ((foreign.PROTOCOLS[forward.protocol],) * 2,)
        }
        return forwarded >= set(box[DESTINATION_PORT])

    def _inside_networks(self, pair: tuple[str, str], entries: Entries) -> Ranges:
        """Return the sources of all that is masqueraded, if the rules name them: these are the inside networks."""
        sources = [entry.box[SOURCE] for entry in entries if entry.fate.kind == "masquerade"]
        if EVERYTHING[SOURCE] in sources:
            return ()
        named = ranges_of(one for source in sources for one in source)
        accepted = [entry.box[SOURCE] for entry in entries if entry.fate.kind == "accept"]
        if any(common(each, named) not in ((), each) for each in accepted):
            why = "what is masqueraded is taken for all that there is inside; other sources are not let out"
            self.work.note("changed", f"{pair[0]} to {pair[1]}", f"sources {describe_addresses(named)}", why)
        return named

    def _shut(self, coming_in: Entries, going_out: Entries) -> Entries:
        """Close what comes in straight to addresses whose answers would be masqueraded, forwards' targets included."""
        result = [Entry(box, _SHUT) for box in self.work.targets()]
        for box, fate in coming_in:
            if not fate.is_open and fate.kind != "closed":
                result.append(Entry(box, fate))
                continue
            answers = about_answers(going_out, box)
            parts = [Entry(one, fate if its.kind == "accept" else _SHUT) for one, its in answers]
            parts += [Entry(one, _SHUT) for one in left_of(box, [each.box for each in answers])]
            result += rejoined(box, parts)
        return pruned(result)

    def _with_answers_routed(self, pair: tuple[str, str], entries: Entries, new: Pairs) -> Entries:
        """Let answers to what is only routed through, or close it where they cannot be told from new flows."""
        result: Entries = []
        backwards = new[pair[1], pair[0]]
        for place, (box, fate) in enumerate(entries):
            if fate.kind != "accept":
                result.append(Entry(box, fate))
                continue
            left = left_of(box, (earlier.box for earlier in entries[:place]))
            kinds = [part for one in left for part in kinds_of(one)]
            parts = [entry for part in kinds for entry in self._answered(pair, part, fate, backwards)]
            result += rejoined(box, parts)
        return pruned(result)

    def _answered(self, pair: tuple[str, str], part: Box, fate: Fate, backwards: Entries) -> Iterator[Entry]:
        for one, its in within(backwards, answer_to(part)):
            box = answer_to(one)
            is_echo = box[SOURCE_PORT] == ((ECHO_REQUEST, ECHO_REQUEST),) and box[PROTOCOL] == ((ICMP, ICMP),)
            if its.kind == "accept" or (box[PROTOCOL] == ((ICMP, ICMP),) and not is_echo):
                yield Entry(box, fate)
            elif box[PROTOCOL] == ((TCP, TCP),) or is_echo:
                self.answers.setdefault(pair[0], []).append(one)
                yield Entry(box, fate)
            else:
                why = "the chains know no states: answers to what is not masqueraded cannot be told from new flows"
                yield Entry(box, Fate("closed", missing=(Missing(f"{pair[0]} to {pair[1]}", describe(box), why),)))

    def is_plain(self, pairs: Pairs) -> bool:
        """Whether the rules come to what fastmasq does without any; it routes between inside hosts, on one link too."""
        if not all(lets_all_pass(self.work.book.forwarded(Scene(one, one), EVERYTHING)) for one in self.work.inside):
            return False
        for (one, other), entries in pairs.items():
            kinds = {entry.fate.kind for entry in entries}
            if any(entry.fate.log for entry in entries):
                return False
            if other == self.work.outside and (
                kinds != {"masquerade"} or left_of(EVERYTHING, [entry.box for entry in entries])
            ):
                return False
            if other != self.work.outside and (kinds & _OPEN if one == self.work.outside else kinds != {"accept"}):
                return False
        return True

    def write(self, lists: dict[str, Entries]) -> None:
        """Write the chain forward, whose policy is DENY.

        It is asked about what forwarded services answer as well, as if that were new flows (T-6).
        """
        put, rules = self.work.writer.put, self.work.writer.rules
        rules.set_policy(FORWARD, DENY)
        going_out = lists[self.work.outside]
        for box in [*self._errors(going_out), *map(answer_to, self.work.targets())]:
            if not _masquerades(going_out, box):
                syn = False if box[PROTOCOL] == ((TCP, TCP),) else None
                put(FORWARD, box, MASQ, interface=self.work.outside, syn=syn)
        for link, entries in lists.items():
            for box in dict.fromkeys(self.answers.get(link, ())):
                is_tcp = box[PROTOCOL] == ((TCP, TCP),)
                put(FORWARD, box, ACCEPT, interface=link, syn=False if is_tcp else None)
            for box, fate in _needed(entries):
                put(FORWARD, box, TARGET_OF.get(fate.kind, DENY), interface=link, log=fate.log)

    def _errors(self, going_out: Entries) -> list[Box]:
        """Return the ICMP that is sent about packets of a session, if all of it was let out: it opens nothing."""
        scenes = (Scene(inside, self.work.outside, RELATED) for inside in self.work.inside)
        if not any(entry.fate.kind == "masquerade" for entry in going_out) or not all(
            lets_all_pass(self.work.book.forwarded(scene, EVERYTHING)) for scene in scenes
        ):
            return []
        sources = ranges_of(each for ranges in self.networks.values() for each in ranges)
        known = replaced(EVERYTHING, SOURCE, sources) if all(self.networks.values()) else EVERYTHING
        icmp = replaced(known, PROTOCOL, ((ICMP, ICMP),))
        return [replaced(icmp, SOURCE_PORT, ((kind, kind),)) for kind in _ERRORS]


def _masquerades(entries: Entries, box: Box) -> bool:
    """Whether a list masquerades all packets of a box."""
    asked = within(entries, box)
    masquerading = all(entry.fate.kind == "masquerade" for entry in asked)
    return masquerading and not left_of(box, (entry.box for entry in asked))


def _are_apart(networks: list[Ranges], *, may_nest: bool) -> bool:
    """Whether no address is in two of these; may_nest: or one lies within the other."""
    pairs = [(one, other) for place, one in enumerate(networks) for other in networks[:place]]
    both = [(common(one, other), one, other) for one, other in pairs]
    return all(not shared or (may_nest and one != other and shared in (one, other)) for shared, one, other in both)


def _differs(entries: Entries) -> bool:
    return any(entry.fate.kind == _DIFFERS for entry in entries)


def _closed_where_it_differs(entries: Entries) -> Entries:
    return [Entry(box, fate._replace(kind="closed") if fate.kind == _DIFFERS else fate) for box, fate in entries]


def _same(entries: Entries, others: Entries, one: str, leaving: str) -> Entries:
    """Return what two lists say, or that it differs; the second is for what comes in by link `one`."""

    def judge(mine: Fate, theirs: Fate) -> Fate:
        if mine.like(theirs):
            return mine
        if _SHUT.kind in (mine.kind, theirs.kind):
            return theirs if mine.kind == _SHUT.kind else mine
        if _DIFFERS not in (mine.kind, theirs.kind) and not mine.is_open and not theirs.is_open:
            return _DROP._replace(missing=tuple(dict.fromkeys((*mine.missing, *theirs.missing))))
        text = f"what comes in by {one} is not treated as what comes in by others"
        missing = (*mine.missing, *theirs.missing, Missing(f"to {leaving}", text, _ONLY_THE_LEAVING_LINK))
        return Fate(_DIFFERS, missing=tuple(dict.fromkeys(missing)))

    return combined(entries, others, judge)


def _is_written_alike(one: Fate, other: Fate) -> bool:
    return TARGET_OF.get(one.kind) == TARGET_OF.get(other.kind) and one.log == other.log


def _needed(entries: Entries) -> Entries:
    """Return a list without what nobody comes to, or what the next entry, or the policy DENY, says as well."""
    reached = [
        entry for place, entry in enumerate(entries) if left_of(entry.box, (earlier.box for earlier in entries[:place]))
    ]
    kept: Entries = []
    for entry in reversed(reached):
        following = next((later for later in kept if meet(entry.box, later.box)), None)
        if following and covers(following.box, entry.box) and _is_written_alike(following.fate, entry.fate):
            continue
        is_denied = entry.fate.kind in ("drop", "closed", "shut") and not entry.fate.log
        if not is_denied or any(meet(entry.box, later.box) for later in kept):
            kept.insert(0, entry)
    return kept
