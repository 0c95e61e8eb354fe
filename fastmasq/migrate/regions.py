"""Regions of the space of packets, and lists of them that say first what becomes of a packet.

A `Box` has for each of five fields the values that a packet may have: source, destination, protocol, and two ports,
which of ICMP are type and code. A list of boxes with fates is read like a chain: the first box that a packet is in
decides. So what becomes of all packets can be written down without cutting one box out of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from fastmasq.errors import ConfigurationError
from fastmasq.wire.numbers import ICMP, TCP, UDP

Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint, not empty: the values of a field, first and last of each range."""

SOURCE, DESTINATION, PROTOCOL, SOURCE_PORT, DESTINATION_PORT = range(5)
TOP = (0xFFFFFFFF, 0xFFFFFFFF, 0xFF, 0xFFFF, 0xFFFF)

_BY_DIFFERENCE = (DESTINATION, DESTINATION_PORT, SOURCE, SOURCE_PORT, PROTOCOL)  # the fields, as boxes often differ in

Box = tuple[Ranges, Ranges, Ranges, Ranges, Ranges]
EVERYTHING: Box = tuple(((0, top),) for top in TOP)

MOST_PIECES = 200
MOST_ENTRIES = 20_000  # of one list; beyond that nobody could read the result
ECHO_REPLY, ECHO_REQUEST = 0, 8


class Missing(NamedTuple):
    """A rule that was not wholly understood: where it stands, how it was written, what is not understood."""

    place: str
    text: str
    why: str


class Fate(NamedTuple):
    """What becomes of a packet.

    kind: "accept", "masquerade", "dnat" or "redirect" (with `to`), "drop", "reject", or "closed": not known, so not let
    pass. missing: the rules for which that is so. log: whether the rules log it. rule_at: the place and the text of the
    rule that translates. marks: those of a packet where its destination is translated (`foreign.Marks`).
    """

    kind: str
    to: str = ""
    missing: tuple[Missing, ...] = ()
    log: bool = False
    rule_at: tuple[str, str] = ("", "")
    marks: tuple[int | None, int | None] | None = None

    @property
    def is_open(self) -> bool:
        return self.kind in ("accept", "masquerade")

    def like(self, other: Fate) -> bool:
        """Whether both are the same to a packet."""
        return (self.kind, self.to) == (other.kind, other.to)


class Entry(NamedTuple):
    """A box of a list, and its fate."""

    box: Box
    fate: Fate


Entries = list[Entry]


# -- values of one field ---------------------------------------------------------------------------------------------


def ranges_of(values: Iterable[tuple[int, int]]) -> Ranges:
    """Return the same values, sorted and joined where they touch."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(values):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        elif first <= last:
            joined.append((first, last))
    return tuple(joined)


def complement(ranges: Ranges, field: int) -> Ranges:
    """Return the values of a field that are not in the ranges."""
    left, following = [], 0
    for first, last in ranges:
        if first > following:
            left.append((following, first - 1))
        following = last + 1
    if following <= TOP[field]:
        left.append((following, TOP[field]))
    return tuple(left)


def common(one: Ranges, other: Ranges) -> Ranges:
    """Return the values that both have."""
    if not one or not other:
        return ()
    if len(one) == 1 and one[0][0] <= other[0][0] and other[-1][1] <= one[0][1]:
        return other
    if len(one) == len(other) == 1:
        first, last = max(one[0][0], other[0][0]), min(one[0][1], other[0][1])
        return ((first, last),) if first <= last else ()
    found, left, right = [], 0, 0
    while left < len(one) and right < len(other):
        first, last = max(one[left][0], other[right][0]), min(one[left][1], other[right][1])
        if first <= last:
            found.append((first, last))
        if one[left][1] < other[right][1]:
            left += 1
        else:
            right += 1
    return tuple(found)


def has_all(wide: Ranges, narrow: Ranges) -> bool:
    """Whether the first ranges have every value of the second."""
    if narrow[0][0] < wide[0][0] or wide[-1][1] < narrow[-1][1]:
        return False
    return len(wide) == 1 or common(wide, narrow) == narrow


# -- boxes -----------------------------------------------------------------------------------------------------------


def meet(one: Box, other: Box) -> Box | None:
    """Return the packets that are in both, None for none."""
    if one[DESTINATION][-1][1] < other[DESTINATION][0][0] or other[DESTINATION][-1][1] < one[DESTINATION][0][0]:
        return None  # which is most often so
    fields = []
    for mine, theirs in zip(one, other, strict=True):
        both = mine if mine is theirs else common(mine, theirs)
        if not both:
            return None
        fields.append(both)
    return tuple(fields)


def covers(wide: Box, narrow: Box) -> bool:
    """Whether every packet of `narrow` is in `wide`."""
    for field in _BY_DIFFERENCE:
        mine, theirs = wide[field], narrow[field]
        if mine is not theirs and not has_all(mine, theirs):
            return False
    return True


def narrowed(box: Box, field: int, ranges: Ranges) -> Box | None:
    """Return the packets of a box that have these values, None for none."""
    both = common(box[field], ranges)
    return (*box[:field], both, *box[field + 1 :]) if both else None


def replaced(box: Box, field: int, ranges: Ranges) -> Box:
    """Return the box with other values of a field."""
    return (*box[:field], ranges, *box[field + 1 :])


def left_of(box: Box, taken: Iterable[Box]) -> list[Box]:
    """Return the packets of a box that are in no other one, cut in pieces; the box itself if that takes too many."""
    pieces = [box]
    for other in taken:
        pieces = [part for piece in pieces for part in _without(piece, other)]
        if len(pieces) > MOST_PIECES:
            return [box]
    return pieces


def _without(box: Box, other: Box) -> Iterator[Box]:
    """Yield the packets of a box that are not in the other, field by field."""
    if meet(box, other) is None:
        yield box
        return
    for field in range(len(TOP)):
        outside = common(box[field], complement(other[field], field))
        if outside:
            yield replaced(box, field, outside)
        box = replaced(box, field, common(box[field], other[field]))


def is_full(box: Box, field: int) -> bool:
    return box[field] == EVERYTHING[field]


def kinds_of(box: Box) -> list[Box]:
    """Return a box in parts whose packets all have ports, an ICMP type, or neither."""
    icmp = narrowed(box, PROTOCOL, ((ICMP, ICMP),))
    parts = [narrowed(box, PROTOCOL, ((number, number),)) for number in (TCP, UDP)]
    parts.append(narrowed(box, PROTOCOL, complement(ranges_of(((ICMP, ICMP), (TCP, TCP), (UDP, UDP))), PROTOCOL)))
    echo = ((ECHO_REQUEST, ECHO_REQUEST),)
    if icmp:
        parts += [narrowed(icmp, SOURCE_PORT, echo), narrowed(icmp, SOURCE_PORT, complement(echo, SOURCE_PORT))]
    return [part for part in parts if part]


def answer_to(box: Box) -> Box:
    """Return the answers to the packets of a box as `kinds_of` makes them: ends exchanged, a reply for an echo request.

    Of other ICMP types and codes stay; a second answer turns each box back.
    """
    if box[PROTOCOL] != ((ICMP, ICMP),):
        return (box[DESTINATION], box[SOURCE], box[PROTOCOL], box[DESTINATION_PORT], box[SOURCE_PORT])
    kinds = box[SOURCE_PORT]
    turned = {
        ((ECHO_REQUEST, ECHO_REQUEST),): ((ECHO_REPLY, ECHO_REPLY),),
        ((ECHO_REPLY, ECHO_REPLY),): ((ECHO_REQUEST, ECHO_REQUEST),),
    }
    return (box[DESTINATION], box[SOURCE], box[PROTOCOL], turned.get(kinds, kinds), box[DESTINATION_PORT])


def about_answers(entries: Iterable[Entry], box: Box) -> Entries:
    """Return what a list says about the answers to the packets of a box, by these packets."""
    swapped = (box[DESTINATION], box[SOURCE], box[PROTOCOL], box[SOURCE_PORT], box[DESTINATION_PORT])
    ports = (SOURCE_PORT, DESTINATION_PORT)
    listed = list(entries)
    if all(is_full(box, field) for field in ports):
        whole = within(listed, swapped)
        if all(is_full(entry.box, field) for entry in whole for field in ports):
            return [Entry((one[1], one[0], *one[2:]), fate) for one, fate in whole]
    return [Entry(answer_to(one), fate) for part in kinds_of(box) for one, fate in within(listed, answer_to(part))]


# -- lists -----------------------------------------------------------------------------------------------------------


def pruned(entries: Iterable[Entry]) -> Entries:
    """Return the list without entries that an earlier one covers. Raises ConfigurationError for too long a list."""
    kept: Entries = []
    for entry in entries:
        if not any(covers(earlier.box, entry.box) for earlier in kept):
            kept.append(entry)
        if len(kept) > MOST_ENTRIES:
            raise ConfigurationError(f"the rules make more than {MOST_ENTRIES} cases; too many to be carried over")
    return kept


def within(entries: Iterable[Entry], box: Box) -> Entries:
    """Return what a list says about the packets of a box."""
    cut = ((meet(entry.box, box), entry.fate) for entry in entries)
    return pruned(Entry(both, fate) for both, fate in cut if both)


def combined(one: Iterable[Entry], other: Iterable[Entry], judge: Callable[[Fate, Fate], Fate]) -> Entries:
    """Return the list of what `judge` makes of the two fates that two lists have for a packet."""
    others = list(other)
    pairs = (
        Entry(both, judge(mine.fate, theirs.fate))
        for mine in one
        for theirs in others
        if (both := meet(mine.box, theirs.box))
    )
    return pruned(pairs)


def either(one: Iterable[Entry], other: Iterable[Entry], why: Missing) -> Entries:
    """Return the list for packets of which it is not known which of two lists is right: what both say, else closed."""

    def judge(mine: Fate, theirs: Fate) -> Fate:
        if mine.like(theirs) and mine.kind != "closed":
            return mine._replace(log=mine.log or theirs.log)
        missing = dict.fromkeys((*mine.missing, *theirs.missing, why))
        return Fate("closed", missing=tuple(missing), log=mine.log or theirs.log)

    return combined(one, other, judge)


def always(entries: Entries) -> Fate | None:
    """Return the one fate of every packet; None when they differ."""
    first = entries[0].fate
    return first if all(entry.fate.like(first) for entry in entries) else None
