"""The table of kernel features: the manual shows it as it is, and all mean the same by its names."""

from __future__ import annotations

import re

import pytest

from fastmasq.kernel import features
from fastmasq.kernel.features import FEATURES, USES
from fastmasq.ring import packet_socket
from fastmasq.tools.doctor.page import PAGE, page
from tests.support import old_kernel


def test_the_manual_shows_the_table() -> None:
    assert PAGE.read_text() == page()


def test_every_feature_serves_uses_that_are_known() -> None:
    assert {use for each in FEATURES for use in each.uses} <= USES.keys()
    assert [each.release for each in FEATURES] == sorted(each.release for each in FEATURES)


def test_rings_and_the_table_name_things_alike() -> None:
    named = (packet_socket.HEADER, packet_socket.RING_HEADER, packet_socket.RING_V3, packet_socket.VLAN_FILTER)
    assert {*named, packet_socket.IGNORE_OUTGOING, packet_socket.BYPASS} <= USES.keys()


def test_old_kernels_lack_what_the_table_says() -> None:
    """The supervisor knows how each feature is refused, so that a new row in the table is tested, too."""
    assert {each.name for each in FEATURES} <= old_kernel.behaviours("3.2").keys()
    assert old_kernel.lacking("3.2") == [each.name for each in FEATURES if each.since != "3.2"]
    assert "nf_tables" in old_kernel.lacking("3.10") and "nf_tables" not in old_kernel.lacking("3.16")
    assert old_kernel.lacking("6.18") == []


def test_every_source_is_a_commit_a_page_or_a_file_of_a_release() -> None:
    pattern = re.compile(r"[0-9a-f]{12}|[a-z_]+\(\d\)|\w+\.c of \d+\.\d+")
    assert all(pattern.fullmatch(part) for each in FEATURES for part in each.source.split(", "))


@pytest.mark.parametrize(
    ("text", "release"),
    [("6.1.0-18-amd64", (6, 1)), ("3.10.0-1160.el7", (3, 10)), ("4.9", (4, 9)), ("nonsense", (0, 0))],
)
def test_releases(text: str, release: tuple[int, int]) -> None:
    assert features.read_release(text) == release
