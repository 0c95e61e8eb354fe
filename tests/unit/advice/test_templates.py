"""The rule sets that ship: complete, word for word where they are the HOWTO's, and filled with real networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmasq.advice.templates import FOLDER, NAMES, Places, fill, text_of
from fastmasq.errors import ConfigurationError
from fastmasq.policy.evaluate import Packet, evaluate
from tests.support.harness import address
from tests.support.scripts import rules_of

SETS = [name for name in NAMES if not name.startswith("3.8")]


def test_h5_every_file_is_a_template_and_every_template_has_its_file():
    put_together = {name for name in NAMES if name.endswith("-eth1")}
    assert {path.stem for path in FOLDER.glob("*.rules")} == set(NAMES) - put_together


@pytest.mark.parametrize("name", SETS)
def test_h5_templates_load(name, tmp_path):
    assert rules_of(text_of(name), tmp_path).generation > 1


def test_a1_the_misprint_stays_until_a_template_is_filled():
    text = text_of("3.9-ipfwadm-registered-server")
    assert "ipfwadm -0 -a accept" in text
    assert "ipfwadm -O -a accept" in fill(text, Places())
    assert "-0 " not in fill(text, Places())


@pytest.mark.parametrize("kind", ["3.5-ipfwadm-tight", "3.6-ipchains-tight"])
def test_a7_a_set_put_together_has_the_policies(kind, tmp_path):
    rules = rules_of(text_of(f"{kind}-eth1"), tmp_path)
    assert [chain.policy for chain in rules.chains.values()] == ["DENY", "DENY", "DENY"]
    assert "ppp0" not in text_of(f"{kind}-eth1")


def test_h46_the_ipchains_forms_let_through_what_the_ipfwadm_forms_do(tmp_path):
    """The two forms of 3.9 and 3.10, asked about the same packets from outside to the registered host."""
    for section, role, control in (("3.9", "server", (40000, 1723)), ("3.10", "client", (1723, 40000))):
        sets = [rules_of(text_of(f"{section}-{tool}-registered-{role}"), tmp_path) for tool in ("ipfwadm", "ipchains")]
        for source in ("199.0.0.1", "199.0.0.2", "199.0.0.3", "199.0.0.9"):
            for protocol, ports in ((17, (500, 500)), (17, (53, 40000)), (6, control), (47, (0, 0)), (50, (0, 0))):
                packet = Packet(
                    source=address(source),
                    destination=address("222.0.0.2"),
                    protocol=protocol,
                    source_port=ports[0],
                    destination_port=ports[1],
                    ack=True,
                    interface="eth1",
                    interface_address=address("200.200.200.200"),
                )
                verdicts = {evaluate(rules, "input", packet).verdict for rules in sets}
                assert len(verdicts) == 1, (section, source, protocol, ports)


def test_filling_repeats_lines_for_each_peer_and_host():
    text = "ipchains -A forward -j MASQ -p 47 -s 10.0.0.2/32 -d 199.0.0.1/32 -i ppp0\n"
    filled = fill(text, Places(hosts=("10.1.0.5", "10.1.0.6"), peers=("203.0.113.0/24",), outside="wan0"))
    assert filled.splitlines() == [
        "ipchains -A forward -j MASQ -p 47 -s 10.1.0.5/32 -d 203.0.113.0/24 -i wan0",
        "ipchains -A forward -j MASQ -p 47 -s 10.1.0.6/32 -d 203.0.113.0/24 -i wan0",
    ]


def test_filling_one_address_for_a_dynamic_network_and_a_network_for_one_address():
    dialled = "ipchains -A input -j ACCEPT -p 47 -s 199.0.0.1/32 -d 200.200.200.0/24 -i ppp0\n"
    assert "-d 203.0.113.9/32 -i" in fill(dialled, Places(public="203.0.113.9"))
    permanent = "ipfwadm -I -a deny -W eth1 -V 200.200.200.200 -P tcp\n"
    assert fill(permanent, Places(public="0.0.0.0/0")) == "ipfwadm -I -a deny -W eth1 -P tcp\n"


def test_an_unknown_template_is_refused_with_the_nearest():
    with pytest.raises(ConfigurationError, match=r"did you mean 5.2-ipchains-open\?"):
        text_of("5.2-ipchains-opne")


def test_h5_the_howtos_sets_are_word_for_word():
    originals = sorted((Path(__file__).parents[2] / "data" / "howto-rules").glob("*.rules"))
    assert originals
    for original in originals:
        assert (FOLDER / f"{original.stem}.rules").read_text() == original.read_text(), original.stem
