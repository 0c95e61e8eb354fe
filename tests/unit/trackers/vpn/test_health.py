"""One judgement of what a VPN lacks: the first thing that is missing, in the order in which a VPN comes about."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmasq.trackers.vpn.health import WHOLE, Channel, Facts, Judgement, Kind, Lack, judge, sentence

NONE, FORTH, BACK, BOTH, LOST = Channel(0, 0), Channel(7, 0), Channel(0, 7), Channel(7, 7), Channel(7, 0, lost=True)


@pytest.mark.parametrize(("facts", "lack", "kind"), [
    ({"data": BOTH}, Lack.NOTHING, "gre"),
    ({"data": BOTH, "control": FORTH, "stage": "idle", "refused": True}, Lack.NOTHING, "gre"),
    ({"data": BOTH, "repeated": True}, Lack.REPEATED, "control"),
    ({"control": FORTH}, Lack.WAY_BACK, "control"),
    ({"control": FORTH, "refused": True}, Lack.REFUSED, "control"),
    ({"control": FORTH, "refused": True, "prohibited": True}, Lack.PROHIBITED, "control"),
    ({"control": BACK}, Lack.WAY_FORTH, "control"),
    ({"control": LOST}, Lack.PASSAGE, "control"),
    ({"control": WHOLE, "stage": "unanswered"}, Lack.START, "control"),
    ({"control": WHOLE, "stage": "idle"}, Lack.CALL, "control"),
    ({"control": WHOLE, "stage": "asked"}, Lack.CALL_REPLY, "control"),
    ({"control": WHOLE}, Lack.NOTHING, "gre"),
    ({"control": WHOLE, "data": FORTH, "server_ended": True}, Lack.LASTING_CALL, "control"),
    ({"control": WHOLE, "data": NONE}, Lack.BOTH_WAYS, "gre"),
    ({"data": FORTH}, Lack.WAY_BACK, "gre"),
    ({"data": BACK}, Lack.WAY_FORTH, "gre"),
    ({"data": LOST}, Lack.PASSAGE, "gre"),
    ({"data": Channel(7, 7, lost=True)}, Lack.PASSAGE, "gre"),
])  # fmt: skip
def test_pptp(facts: dict, lack: Lack, kind: Kind) -> None:
    assert judge(Facts(kind="gre", **facts)) == (lack, kind)


@pytest.mark.parametrize("kind", ["esp", "natt"])
@pytest.mark.parametrize(("facts", "lack", "of_control"), [
    ({"data": BOTH, "uses_ah": True}, Lack.NOTHING, False),
    ({"data": NONE, "uses_ah": True, "control": FORTH}, Lack.NOT_COVERABLE, False),
    ({"data": NONE, "control": FORTH}, Lack.WAY_BACK, True),
    ({"data": NONE, "control": WHOLE, "stage": "idle"}, Lack.SA, True),
    ({"data": NONE, "control": WHOLE}, Lack.BOTH_WAYS, False),
    ({"data": FORTH, "control": WHOLE}, Lack.WAY_BACK, False),
    ({"data": BACK}, Lack.WAY_FORTH, False),
])  # fmt: skip
def test_ipsec(kind: Kind, facts: dict, lack: Lack, of_control: bool) -> None:
    assert judge(Facts(kind=kind, **facts)) == (lack, "isakmp" if of_control else kind)


def test_what_nobody_watched_is_not_missed() -> None:
    assert Channel(7, None).is_whole and WHOLE.is_whole and not Channel(None, 0).is_whole
    assert judge(Facts(kind="gre", data=Channel(None, 0))).lack is Lack.BOTH_WAYS


@pytest.mark.parametrize(("lack", "kind"), [
    (Lack.WAY_BACK, "control"), (Lack.WAY_BACK, "gre"), (Lack.WAY_BACK, "isakmp"), (Lack.WAY_BACK, "esp"),
    (Lack.WAY_BACK, "natt"), (Lack.WAY_FORTH, "gre"), (Lack.WAY_FORTH, "esp"), (Lack.WAY_FORTH, "natt"),
])  # fmt: skip
def test_the_forwarder_has_a_sentence_for_each_way_that_is_missing(lack: Lack, kind: Kind) -> None:
    assert sentence(Judgement(lack, kind))
    assert sentence(Judgement(Lack.NOTHING, kind)) == ""


def test_each_lack_names_a_rule_of_the_howto() -> None:
    rules = (Path(__file__).parents[4] / "fastmasq" / "manual" / "howto.md").read_text()
    for lack in Lack:
        assert lack.rule or lack in (Lack.NOTHING, Lack.FOLLOWING, Lack.TURN)
        assert not lack.rule or f"| {lack.rule} (section" in rules
