"""The ledgers of the manual say what the tests prove, no more and no less."""

from __future__ import annotations

import pytest

from tests.source.ledger import MANUAL, PAGES, Proof, all_tests, carries, entries, normal, page


@pytest.mark.parametrize("name", PAGES)
def test_a_ledger_is_as_the_tests_are(name: str) -> None:
    assert (MANUAL / name).read_text() == page(name), "run scripts/dev docs"


@pytest.mark.parametrize("name", PAGES)
def test_what_is_marked_met_has_a_test(name: str) -> None:
    rows = [entry for _, chapter in entries(PAGES[name][0], all_tests()) for entry in chapter]
    assert not [complaint for entry in rows if (complaint := entry.complaint())]
    assert len({entry.id for entry in rows}) == len(rows)


@pytest.mark.parametrize(
    ("test", "rule", "carried"),
    [
        ("test_rfc4787_req1_the_same_for_all", "rfc4787-req1", True),
        ("rfc4787-req1-same-port", "rfc4787-req1", True),
        ("rfc4787-req13-too-big", "rfc4787-req1", False),
        ("rfc4787-req13a-fragmented", "rfc4787-req13", False),
        ("rfc1812-5.2.2-header-checks", "rfc1812-5.2.2", True),
        ("rfc1812-5.2.2-header-checks", "rfc1812-5.2", False),
        ("rfc1812-5.2-between-inside-hosts", "rfc1812-5.2", True),
        ("C-45-error-from-inside", "C-45", True),
        ("test_c45_every_type", "C-45", True),
        ("test_C45_every_type", "c45", True),
        ("test_c450_is_another", "C-45", False),
        ("test_h30_minimal_set", "h30", True),
        ("test_want_04_wan_address_change", "want04", True),
        ("test_rfc3022_udp_without_checksum", "rfc3022-4.1", False),
        ("rfc4787-req6a-inbound-does-not-refresh", "rfc4787-req6", False),
    ],
)
def test_which_names_carry_an_id(test: str, rule: str, carried: bool) -> None:
    assert carries(Proof(test, ""), rule) == carried, normal(test)
