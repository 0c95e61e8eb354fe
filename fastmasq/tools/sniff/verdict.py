"""What is missing of a VPN, from the packets seen on links, and where: one finding for each pair of hosts.

The HOWTO's section 5.3 names eight points where a packet of a VPN must be seen. A gateway has four of them at a time:

    client behind the gateway     1 in from the client, 2 out to the server, 7 in from the server, 8 out to the client
    server behind the gateway     3 in from the client, 4 out to the server, 5 in from the server, 6 out to the client

The first of them, in this order, that lacks the control channel or the data channel says what is wrong. A point that is
not watched, because its link is not, or because what a forwarder sends there is hidden from packet sockets, proves
nothing and is skipped. A link whose side is not known counts as the only point of its direction.

What is missing is judged as for the forwarder itself, by `trackers/vpn/health.py`; at which point, and what to look at
there, only a sniffer knows. Times play no part: what is counted is the whole time of watching, so watch from before the
VPN is started.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from msgspec import Struct

from fastmasq.tools.sniff.packets import NAMES, Seen
from fastmasq.trackers.vpn.health import (
    CONTROL,
    FAMILIES,
    REPEATS_ENDED,
    Channel,
    Facts,
    Family,
    Kind,
    Lack,
    Stage,
    judge,
)

Side = Literal["inside", "outside", ""]

MOST_TALKS = 1024  # pairs of hosts on links; packets of others are shown, and not judged
MOST_PROBLEMS = 4  # remembered of one pair
_DATA_TAGS: dict[Kind, str] = {"natt": "data"}  # of those whose kind alone does not say that they are data
_ENDINGS = ("stop_request", "call_disconnect_notify", "call_clear_request", "rst", "fin")


class WatchedLink(NamedTuple):
    """A link, its side, and whether packets that leave by it are seen."""

    name: str
    side: Side
    sees_sent: bool = True


class Finding(Struct, frozen=True, kw_only=True):
    """What is known of one pair of hosts: `near` is on this side. `good` is None where nothing can be said.

    `missing` is the kind of packet that lacks, at the HOWTO's point `point` (0: none, or a link of unknown side).
    `lights` are packets away from and towards the near host, of each kind that was seen, where most were seen.
    """

    family: Family
    near: str
    far: str
    good: bool | None
    said: str
    hint: str = ""
    missing: Kind | None = None
    point: int = 0
    lights: dict[Kind, tuple[int, int]] = {}


class Talk(Struct, eq=False):
    """Packets of one family between two hosts on one link; `counts` has (away from the near host, kind or tag)."""

    link: WatchedLink
    family: Family
    near: str
    far: str
    counts: Counter[tuple[bool, str]]
    problems: list[str]
    client_near: bool | None = None
    ended_away: bool | None = None  # direction of the first packet that ends the control connection or its call
    ended_at: int = 0  # its number among all packets
    client_port: int = 0  # of the control connection that was begun last; 0: none that was watched


class Watch:
    """Counts packets by link, direction and pair of hosts, and judges them."""

    def __init__(self, links: Iterable[WatchedLink]) -> None:
        self.links = {link.name: link for link in links}
        self.packets = 0
        self.unjudged = 0
        self._talks: dict[tuple[str, Family, str, str], Talk] = {}

    def add(self, link: str, sent: bool, seen: Seen) -> None:
        """Count a packet that this host received or sent on a link."""
        self.packets += 1
        talk, away = self._find(self.links[link], sent, seen)
        if talk is None:
            self.unjudged += 1
            return
        if not seen.icmp_from:
            talk.counts[away, seen.kind] += 1
            if talk.client_near is None:
                talk.client_near = _client_is_near(seen, away)
        for tag in seen.tags:
            talk.counts[away, tag] += 1
        if "syn" in seen.tags or "syn_ack" in seen.tags:
            talk.ended_away, talk.client_port = None, seen.client_port
        elif talk.ended_away is None and _ends(seen, talk.client_port):
            talk.ended_away, talk.ended_at = away, self.packets
        ours = sent and talk.link.side == "outside" and seen.icmp_from == talk.near  # a packet that no host here wants
        if seen.problem and not ours and seen.problem not in talk.problems and len(talk.problems) < MOST_PROBLEMS:
            talk.problems.append(seen.problem)

    def findings(self) -> list[Finding]:
        """Return what is known of each pair, PPTP first, then by address."""
        return [_judge(view) for view in sorted(self._views(), key=View.order)]

    def _find(self, link: WatchedLink, sent: bool, seen: Seen) -> tuple[Talk | None, bool]:
        """Return the talk of a packet, and whether the packet (of an ICMP error: what it is about) goes away from near.

        On a link of known side the direction says which end is near. On others it is a PPTP client, or who spoke first.
        """
        family = FAMILIES[seen.kind]
        forth, back = (seen.source, seen.destination), (seen.destination, seen.source)
        if link.side:
            away = ((link.side == "inside") != sent) != bool(seen.icmp_from)
        elif (link.name, family, *forth) in self._talks:
            away = True
        else:
            away = seen.server != "source" and (link.name, family, *back) not in self._talks
        key = (link.name, family, *(forth if away else back))
        talk = self._talks.get(key)
        if talk is None and len(self._talks) < MOST_TALKS:
            talk = self._talks[key] = Talk(link, family, key[2], key[3], Counter(), [])
        return talk, away

    def _views(self) -> Iterator[View]:
        """Yield each pair of an inside host and a remote, with what the outside saw of that remote."""
        sides = {link.side for link in self.links.values()}
        blind = {link.side for link in self.links.values() if not link.sees_sent}
        outer: dict[tuple[Family, str], list[Talk]] = {}
        for talk in self._talks.values():
            if talk.link.side == "outside":
                outer.setdefault((talk.family, talk.far), []).append(talk)
        explained = set()
        for talk in self._talks.values():
            if talk.link.side == "inside":
                explained.add((talk.family, talk.far))
                yield View(talk, [talk], outer.get((talk.family, talk.far), []) if "outside" in sides else None, blind)
            elif not talk.link.side:
                yield View(talk, [talk], None, blind)
        for key in outer.keys() - explained:
            for talk in outer[key]:
                own = talk.client_near is not False  # the gateway is the client itself: nothing of it is inside
                yield View(talk, None if own or "inside" not in sides else [], [talk], blind)


class View:
    """The packets of one pair, by direction and point. Talks are None for a side that is not watched.

    What leaves by a side in `blind` cannot be seen.
    """

    def __init__(self, talk: Talk, inner: list[Talk] | None, outer: list[Talk] | None, blind: set[Side]) -> None:
        self._blind = blind if talk.link.side else set()
        self.family, self.near, self.far = talk.family, talk.near, talk.far
        self._inner, self._outer = inner, outer
        self._talks = [*(inner or ()), *(outer or ())]
        known = [one.client_near for one in self._talks if one.client_near is not None]
        self.client_near = known[0] if known else True
        self._numbered = bool(talk.link.side)

    def order(self) -> tuple[bool, str, str]:
        return self.family != "pptp", self.near, self.far

    def points(self, tag: str) -> list[Point]:
        """Return the four points in the order of a question and its answer, each with its packets of a kind or tag."""
        asks = self.client_near  # the question goes away from the near host
        counts = [*self._way(asks, tag), *self._way(not asks, tag)]
        numbers = ((1, 2, 7, 8) if asks else (3, 4, 5, 6)) if self._numbered else (0, 0, 0, 0)
        return [
            Point(number, index >= 2, count) for index, (number, count) in enumerate(zip(numbers, counts, strict=True))
        ]

    def seen(self, tag: str, *, answers: bool | None = None) -> int:
        """Return the packets with a tag where most were seen; of one direction, or of both."""
        return max(
            (point.count or 0 for point in self.points(tag) if answers is None or point.answers == answers), default=0
        )

    def missing(self, tag: str) -> Point | None:
        """Return the first watched point that saw none; None if all saw some."""
        return next((point for point in self.points(tag) if point.count == 0), None)

    def channel(self, tag: str) -> Channel:
        """Return what was seen of a channel, from the client's question on."""
        ways = [
            [point.count for point in self.points(tag) if point.answers == answers and point.count is not None]
            for answers in (False, True)
        ]
        forth, back = (max(counts, default=None) for counts in ways)
        return Channel(forth, back, lost=any(0 in counts and any(counts) for counts in ways))

    def only_asks(self) -> bool:
        """Return whether all that was seen is a client that asks, where no answer could be seen: it says nothing."""
        control = CONTROL[self.family]
        answers = [point.count for point in self.points(control) if point.answers]
        return bool(self.seen(control)) and answers == [None, None] and not any(map(self.seen, ("gre", "esp", "natt")))

    def lights(self) -> dict[Kind, tuple[int, int]]:
        counts: dict[Kind, tuple[int, int]] = {}
        for kind, family in FAMILIES.items():
            if family == self.family:
                away, towards = (max(talk.counts[way, kind] for talk in self._talks) for way in (True, False))
                if away or towards:
                    counts[kind] = (away, towards)
        return counts

    def server_ended(self) -> bool:
        """Return whether the server was the first to end the control connection or its call, on whatever link."""
        ends = [(talk.ended_at, talk.ended_away) for talk in self._talks if talk.ended_away is not None]
        return bool(ends) and min(ends)[1] != self.client_near

    def problems(self) -> list[str]:
        return list(dict.fromkeys(problem for talk in self._talks for problem in talk.problems))

    def _way(self, away: bool, tag: str) -> list[int | None]:
        """Return the packets at both points of one direction, in the order in which they pass them."""
        inner = None if not away and "inside" in self._blind else _count(self._inner, away, tag)
        outer = None if away and "outside" in self._blind else _count(self._outer, away, tag)
        return [inner, outer] if away else [outer, inner]


class Point(NamedTuple):
    """One of the HOWTO's points (0: unknown), whether the answer passes there, and its packets; None if not watched."""

    number: int
    answers: bool
    count: int | None


def _count(talks: list[Talk] | None, away: bool, tag: str) -> int | None:
    return None if talks is None else sum(talk.counts[away, tag] for talk in talks)


def _ends(seen: Seen, client_port: int) -> bool:
    """Whether a packet ends the control connection of this port, or its call; that of an earlier one does not."""
    if seen.icmp_from or set(_ENDINGS).isdisjoint(seen.tags):
        return False
    return client_port in (0, seen.client_port)


def _client_is_near(seen: Seen, away: bool) -> bool | None:
    """Return whether a packet shows that the near host began; None if it shows nothing."""
    if seen.server:
        return (seen.server == "destination") == away
    return away if "begins" in seen.tags else None


# -- what it means -----------------------------------------------------------------------------------------------------


def _judge(view: View) -> Finding:
    if view.only_asks():
        return _finding(view, None, "the client asks; answers are not watched", "watch the link that they come by, too")
    facts = _pptp(view) if view.family == "pptp" else _ipsec(view)
    lack, kind = judge(facts)
    if lack in _PLACED:
        return _placed(view, lack, kind)
    if lack is Lack.NOTHING:
        return _finding(view, True, _WORKS[view.family])
    said, hint = _SAID[lack]
    said = said.format(starts=view.seen("start_request"), problems="; ".join(view.problems()))
    return _finding(view, None if lack is Lack.CALL else False, said, hint)


def _pptp(view: View) -> Facts:
    data = view.channel("gre")
    starts = view.seen("start_request")
    return Facts(
        kind="gre",
        control=_seen_control(view),
        data=data,
        stage=_stage_of_call(view),
        refused=bool(view.seen("rst", answers=True) and not view.seen("syn_ack")),
        prohibited=bool(view.problems()),
        repeated=data.is_whole and starts >= REPEATS_ENDED and sum(view.seen(tag) for tag in _ENDINGS) >= starts - 1,
        server_ended=view.server_ended() and not view.seen("gre", answers=True),
    )


def _stage_of_call(view: View) -> Stage:
    """Return how far a control connection has got; one that was not watched from its SYN on has got to its call."""
    if view.seen("start_request") and not view.seen("start_reply"):
        return "unanswered"
    if not view.seen("syn") or view.seen("call_accepted"):
        return "made"
    return "asked" if view.seen("outgoing_call_request") or view.seen("incoming_call_request") else "idle"


def _ipsec(view: View) -> Facts:
    moved = view.seen("moved") or (view.seen("natt") and not view.seen("esp"))
    kind: Kind = "natt" if moved else "esp"
    tag = _tag(kind)
    is_made = view.seen(tag) or (view.seen("makes_sa", answers=False) and view.seen("makes_sa", answers=True))
    return Facts(
        kind=kind,
        control=_seen_control(view),
        data=view.channel(tag),
        stage="made" if is_made else "idle",
        prohibited=bool(view.problems()),
        uses_ah=bool(view.seen("ah") and not view.seen(tag)),
    )


def _seen_control(view: View) -> Channel | None:
    """Return what was seen of the control channel; None for nothing: watching began later."""
    kind = CONTROL[view.family]
    return view.channel(kind) if view.seen(kind) else None


def _tag(kind: Kind) -> str:
    return _DATA_TAGS.get(kind, kind)


def _finding(
    view: View, good: bool | None, said: str, hint: str = "", missing: Kind | None = None, point: int = 0
) -> Finding:
    return Finding(
        family=view.family,
        near=view.near,
        far=view.far,
        good=good,
        said=said,
        hint=hint,
        missing=missing,
        point=point,
        lights=view.lights(),
    )


def _placed(view: View, lack: Lack, kind: Kind) -> Finding:
    """Return the finding about a channel that some watched point did not see."""
    tag, control = _tag(kind), CONTROL[view.family]
    point = view.missing(tag)
    begun = f"{NAMES[control]} goes both ways, and there is " if view.seen(control) else ""
    sender = "the server" if view.client_near else "this side"
    said = _PLACED[lack].format(name=NAMES[kind], begun=begun, sender=sender)
    place = f": missing at point {point.number}, {_PLACES[point.number]}" if point.number else ""
    hidden = [str(each.number) for each in view.points(tag) if each.count is None and each.number]
    unseen = f"; not watched: point {', '.join(hidden)}" if hidden else ""
    hint = (_CONTROL_HINTS if kind == control else _DATA_HINTS)[point.number or (7 if point.answers else 1)]
    tool = f"{_TOOLS.get(kind, 'traceroute --udp')} {view.far}"
    return _finding(view, False, said + place + unseen, hint.format(name=NAMES[kind], tool=tool), kind, point.number)


_PLACED = {
    Lack.BOTH_WAYS: "{begun}no {name}",
    Lack.WAY_BACK: "{name} is sent and nothing comes back",
    Lack.WAY_FORTH: "{name} comes from {sender} alone",
    Lack.PASSAGE: "{name} is lost in this gateway",
}
_WORKS: dict[Family, str] = {"pptp": "works: both channels go both ways", "ipsec": "works: data goes both ways"}
_SAID = {
    Lack.REPEATED: (
        "both channels work, and the client began {starts} times",
        "each time the call ends again: the login fails, or only one end has 128-bit encryption; the logs of both ends "
        "say which",
    ),
    Lack.NOT_COVERABLE: (
        "AH (IP protocol 51), which covers the addresses and cannot be masqueraded",
        "let both ends use ESP with authentication instead",
    ),
    Lack.PROHIBITED: ("{problems}", "who says so must let it pass; a server's log tells more"),
    Lack.REFUSED: (
        "the server refuses the connection",
        "nothing listens on its port 1723, or the address is not the server's",
    ),
    Lack.START: (
        "the server accepts the connection and does not answer the Start request",
        "it may allow one control connection for each address, or refuse this address: look into its log",
    ),
    Lack.CALL: ("the control connection works; no call was made", ""),
    Lack.CALL_REPLY: ("a call was asked for and not answered", "the server's log says why"),
    Lack.SA: (
        "ISAKMP goes both ways, and does not get to quick mode: no SA is made",
        "keys, identities or proposals do not fit: the logs of both ends say which; main mode with a key for each "
        "address cannot work through a masquerade",
    ),
    Lack.LASTING_CALL: (
        "the server made the call and ended it without any GRE (IP protocol 47)",
        "its log says why: no address is free, it could not run PPP, or the client's GRE did not reach it",
    ),
}
_TOOLS: dict[Kind, str] = {"gre": "traceroute --gre", "control": "test pptp", "esp": "traceroute --esp"}
_PLACES = {
    1: "in from the client",
    2: "out to the server",
    3: "in from the client",
    4: "out to the inside server",
    5: "in from the inside server",
    6: "out to the client",
    7: "in from the server",
    8: "out to the inside client",
}
_CONTROL_HINTS = {
    1: "the client sends none: its settings name another server, or its default route does not lead here",
    2: "the gateway loses it: its rules must masquerade it (`fastmasq rule trace`), or `fastmasq status` says why not",
    3: "it does not get here: the client has another address for the server, or something on the way blocks it",
    4: "the gateway does not lead it to the server: see `fastmasq forward list`, and the rules (`fastmasq rule trace`)",
    5: "the server does not answer: see that its service runs, and its own packet filter",
    6: "the gateway loses the answers: see its rules (`fastmasq rule trace`); `fastmasq status` names what it drops",
    7: "the server is down, or is another, or its firewall or something on the way blocks it: `fastmasq {tool}`",
    8: "the gateway loses the answers: see its rules (`fastmasq rule trace`); `fastmasq status` names what it drops",
}
_DATA_HINTS = {
    1: "the client sends none: its own firewall drops {name}, or its log says why it gave up",
    2: "the gateway loses it: rules that masquerade the control channel alone do not cover {name}; `fastmasq status` "
    "names what it drops",
    3: "the client sends none, or something on the way blocks {name}",
    4: "the gateway does not know which host it is for: the control channel must be forwarded to the same server, or "
    "see `fastmasq redirect`",
    5: "the server sends none: see its configuration, and its own packet filter",
    6: "the gateway loses it: see its rules (`fastmasq rule trace`); `fastmasq status` names what it drops",
    7: "the server's firewall or something on the way blocks {name}, which must pass both ways: `fastmasq {tool}`",
    8: "the gateway does not know whose it is, or it is another client's: see `fastmasq vpn`; `fastmasq status` names "
    "what it drops",
}
