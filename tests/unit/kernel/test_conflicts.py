"""Rule sets of others that would translate, or take away, what is ours."""

from __future__ import annotations

import pytest

from fastmasq.kernel.conflicts import judge_ruleset


def rule(*expressions: object) -> dict:
    return {"rule": {"family": "ip", "table": "nat", "chain": "postrouting", "handle": 4, "expr": list(expressions)}}


def leaves_by(name: object, op: str = "==") -> dict:
    return {"match": {"op": op, "left": {"meta": {"key": "oifname"}}, "right": name}}


MASQUERADE = {"masquerade": None}
XT_MASQUERADE = {"xt": {"type": "target", "name": "MASQUERADE"}}
SNAT = {"snat": {"addr": "200.200.200.200"}}


@pytest.mark.parametrize(
    "expressions",
    [
        (MASQUERADE,),
        (SNAT,),
        (XT_MASQUERADE,),
        (leaves_by("eth1"), MASQUERADE),
        (leaves_by("eth*"), MASQUERADE),
        (leaves_by({"set": ["eth1", "eth2"]}), MASQUERADE),
        (leaves_by("eth0", "!="), MASQUERADE),
    ],
)
def test_translation_on_the_outside_is_reported(expressions: tuple) -> None:
    (sentence,) = judge_ruleset([{"metainfo": {}}, rule(*expressions)], ["eth0"], "eth1")
    assert sentence.startswith("nftables table ip nat, chain postrouting, handle 4 translates sources on eth1")
    assert sentence.endswith("delete that rule")


@pytest.mark.parametrize(
    "expressions",
    [
        ({"accept": None},),
        (leaves_by("docker0"), MASQUERADE),
        (leaves_by("eth1", "!="), MASQUERADE),
        ({"xt": {"type": "target", "name": "DNAT"}},),
    ],
)
def test_what_is_elsewhere_is_not(expressions: tuple) -> None:
    assert list(judge_ruleset([rule(*expressions)], ["eth0"], "eth1")) == []


def test_flow_tables_on_our_links() -> None:
    flow_table = {"flowtable": {"family": "inet", "table": "t", "name": "f", "dev": ["eth1", "eth5"]}}
    (sentence,) = judge_ruleset([flow_table], ["eth0"], "eth1")
    assert sentence == "nftables flow table inet t f takes packets from eth1: remove these from its devices"
