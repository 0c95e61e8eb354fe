"""What a VPN lacks, by the HOWTO's sections 5.1 to 5.3 and 6.1 (H-61 to H-90): one judgement for all who see packets.

The trackers know single connections, calls and SAs; a sniffer has counted the packets of two hosts at several points.
Each gives what it knows as Facts and is told the first thing that is missing, in the order in which a VPN comes about:

    control asked -> answered -> call or SA asked -> made -> data one way -> and the other

What no fact speaks of is not missed. How long something must have been missing before anybody hears of it is for who
asks; so is where, which only a sniffer on two links sees: it says so in its own words (`tools/sniff/verdict.py`). What
the forwarder says, once (`findings.py`) and in its listing, is `sentence`.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

from msgspec import Struct

Kind = Literal["control", "gre", "isakmp", "esp", "natt", "ah"]  # natt: ESP in UDP port 4500, and its keep-alives
Family = Literal["pptp", "ipsec"]
Stage = Literal["unanswered", "idle", "asked", "made"]

FAMILIES: dict[Kind, Family] = {
    "control": "pptp", "gre": "pptp", "isakmp": "ipsec", "esp": "ipsec", "natt": "ipsec", "ah": "ipsec",
}  # fmt: skip
CONTROL: dict[Family, Kind] = {"pptp": "control", "ipsec": "isakmp"}

REPEATS, REPEATS_WITHIN_S = 5, 300  # control connections that were begun, whatever became of them: no accident
REPEATS_ENDED = 3  # the same for who sees them end, again and again, though data has gone both ways


class Lack(Enum):
    """What can be missing, with the HOWTO's rule about it."""

    NOTHING = "", "nothing: what is known goes both ways"
    REPEATED = "H-65", "an end of it: control connections are begun one after the other"
    NOT_COVERABLE = "H-90", "ESP: AH is used instead, which cannot be masqueraded"
    PROHIBITED = "H-70", "somebody's leave: an ICMP error refuses it by name"
    REFUSED = "H-64", "a listener: the control connection is reset"
    START = "H-61", "an answer to the Start request on a control connection that was accepted"
    CALL = "H-72", "a call on a control connection that works"
    CALL_REPLY = "H-72", "an answer to a request for a call"
    SA = "H-63", "an SA: the negotiation does not get to quick mode"
    LASTING_CALL = "H-72", "data before the server ended the call"
    BOTH_WAYS = "H-69", "the data channel, either way"
    WAY_BACK = "H-71", "packets back"
    WAY_FORTH = "H-66", "packets forth, though some come back"
    PASSAGE = "H-80", "what came to this host, behind it"
    FOLLOWING = "", "the tracker's knowledge of the stream"
    TURN = "", "the turn of a start that was not answered"

    def __init__(self, rule: str, _what: str) -> None:
        self.rule = rule


class Channel(NamedTuple):
    """What was seen of a channel each way, packets or times: 0 for none, None where nobody watched.

    The daemon calls what leaves the inside host forth, a sniffer what goes to the server. lost: more came to this host
    than went on.
    """

    forth: int | None
    back: int | None
    lost: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it is missing where it was watched."""
        return self.forth != 0 and self.back != 0 and not self.lost


WHOLE = Channel(None, None)


class Facts(Struct, frozen=True, kw_only=True):
    """What is known of a VPN between two hosts, or of one connection, call or SA of it.

    kind: of its data channel. control, data: None if not known, or for others to judge. stage: how far the control
    channel has got, "unanswered" being the Start request of PPTP. The rest are observations: who would serve resets
    the connection; an ICMP error is about it; connections begin again and again; AH is used and ESP is not; the server
    ended the call and sent no data.
    """

    kind: Kind
    control: Channel | None = None
    data: Channel | None = None
    stage: Stage = "made"
    refused: bool = False
    prohibited: bool = False
    repeated: bool = False
    uses_ah: bool = False
    server_ended: bool = False


class Judgement(NamedTuple):
    """What is missing, and of which channel."""

    lack: Lack
    kind: Kind


def judge(facts: Facts) -> Judgement:
    """Return the first thing that is missing."""
    family = FAMILIES[facts.kind]
    control = CONTROL[family]
    if facts.repeated:
        return Judgement(Lack.REPEATED, control)
    if facts.data is not None and facts.data.is_whole:
        return Judgement(Lack.NOTHING, facts.kind)
    if facts.uses_ah:
        return Judgement(Lack.NOT_COVERABLE, facts.kind)
    if facts.control is not None:
        lack = _of_control(facts, family)
        if lack is not Lack.NOTHING:
            return Judgement(lack, control)
    return Judgement(Lack.NOTHING if facts.data is None else _of_channel(facts.data), facts.kind)


def _of_control(facts: Facts, family: Family) -> Lack:
    """Return what is missing until there is a call or an SA."""
    if facts.prohibited:
        return Lack.PROHIBITED
    if facts.refused:
        return Lack.REFUSED
    if not facts.control.is_whole:
        return _of_channel(facts.control)
    if facts.stage == "idle":
        return Lack.CALL if family == "pptp" else Lack.SA
    if facts.stage != "made":
        return Lack.START if facts.stage == "unanswered" else Lack.CALL_REPLY
    return Lack.LASTING_CALL if facts.server_ended else Lack.NOTHING


def _of_channel(channel: Channel) -> Lack:
    if channel.is_whole:
        return Lack.NOTHING
    if not channel.forth and not channel.back:
        return Lack.BOTH_WAYS
    if channel.forth == 0:
        return Lack.WAY_FORTH
    return Lack.WAY_BACK if channel.back == 0 and not channel.lost else Lack.PASSAGE


# -- what the forwarder says of it -------------------------------------------------------------------------------------


def sentence(judgement: Judgement) -> str:
    """Return what a forwarder that follows VPNs says of a lack that it can find; empty if nothing is missing."""
    return "" if judgement.lack is Lack.NOTHING else _SENTENCES[judgement]


_SENTENCES: dict[tuple[Lack, Kind], str] = {
    (Lack.FOLLOWING, "control"): "the stream could not be followed: its Call IDs are not translated",
    (Lack.REFUSED, "control"):
        "TCP port 1723 is refused: the server's address is wrong, or nothing listens there",
    (Lack.WAY_BACK, "control"):
        "TCP port 1723 is not answered: the server's address is wrong, or a firewall drops it",
    (Lack.CALL, "control"):
        "a control connection and no call: the server does not answer, or has refused; see `fastmasq test pptp`",
    (Lack.CALL_REPLY, "control"): "the call was asked for and not answered: look at the server",
    (Lack.REPEATED, "control"):
        f"{REPEATS} control connections within {REPEATS_WITHIN_S // 60} minutes: the ends do not agree on passwords or "
        "encryption; look at both logs",
    (Lack.BOTH_WAYS, "gre"): "no GRE either way: a router or firewall between the two ends drops protocol 47",
    (Lack.WAY_BACK, "gre"):
        "GRE goes out and none comes in: the server, or a router on the way, drops protocol 47",
    (Lack.WAY_FORTH, "gre"):
        "GRE comes in and none goes out: look at the inside host, its default route and its firewall",
    (Lack.WAY_BACK, "isakmp"):
        "ISAKMP is not answered: the server is not there, or something drops UDP port 500",
    (Lack.BOTH_WAYS, "esp"):
        "ISAKMP and no ESP: the ends do not agree, or the inside host's ESP is dropped before it gets here",
    (Lack.WAY_BACK, "esp"):
        "ESP goes out and none comes in: the server, or a router on the way, drops protocol 50",
    (Lack.WAY_FORTH, "esp"):
        "ESP comes in and none goes out: look at the inside host, its default route and its firewall",
    (Lack.TURN, "esp"): "the start was not answered and lost its turn",
    (Lack.WAY_BACK, "natt"):
        "UDP port 4500 goes out and nothing comes in: the server is not there, or something on the way drops it",
    (Lack.WAY_FORTH, "natt"):
        "UDP port 4500 comes in and nothing goes out: look at the inside host and its firewall",
}  # fmt: skip
