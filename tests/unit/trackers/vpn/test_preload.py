"""Preloading SAs (section 4.8): add, replace, delete, list, flush, who may, and what conflicts."""

from __future__ import annotations

import pytest

from fastmasq.trackers.vpn.ipsec import Ipsec
from fastmasq.trackers.vpn.isakmp import IpsecSettings
from fastmasq.trackers.vpn.preload import Announcement, PreloadError, add, delete, flush, listed
from tests.support.tracker_network import MINUTE, A, B, M, R

ROOT = None


def sa(inside: int = A, ispi: int = 0x5000, ospi: int = 0x1000, **values) -> Announcement:
    return Announcement(inside=inside, remote=R, masq=M, inbound_spi=ispi, outbound_spi=ospi, **values)


def refused(reason: str, action, *arguments, **values) -> None:
    with pytest.raises(PreloadError) as error:
        action(*arguments, **values)
    assert error.value.reason == reason


def test_both_directions_work_at_once_and_block_nobody() -> None:
    both = Ipsec()
    row = add(both.esp, sa(), 0, A)
    assert both.esp_outbound(A, M, R, 0x1000, 1, 0).row is row
    assert both.esp_inbound(R, M, 0x5000, 1, 0).row is row
    assert both.esp_outbound(B, M, R, 0x2000, 1, 0).to == (M,)


def test_an_unknown_outbound_spi_is_learned_from_the_next_start() -> None:
    both = Ipsec()
    row = add(both.esp, sa(ospi=0), 0, A)
    both.esp_outbound(B, M, R, 0x2000, 1, 0)
    assert both.esp_outbound(A, M, R, 0x1000, 1, 0).row is row and row.ospi == 0x1000


def test_a_pending_start_is_completed() -> None:
    both = Ipsec()
    both.esp_outbound(A, M, R, 0x1000, 1, 0)
    assert both.esp_outbound(B, M, R, 0x2000, 1, 0).drop
    add(both.esp, sa(), 0, A)
    assert both.esp.by_outbound(A, R, 0x1000).state == "established"
    assert both.esp_outbound(B, M, R, 0x2000, 1, 0).to == (M,)


def test_anothers_spi_is_refused_unless_root_replaces_it() -> None:
    both = Ipsec()
    add(both.esp, sa(), 0, A)
    refused("EEXIST", add, both.esp, sa(B, ospi=0x2000), 0, B)
    refused("EEXIST", add, both.esp, sa(B, ospi=0x2000), 0, ROOT)
    refused("EEXIST", add, both.esp, sa(B, ospi=0x2000), 0, B, replace=True)
    add(both.esp, sa(B, ospi=0x2000), 0, ROOT, replace=True)
    assert both.esp_inbound(R, M, 0x5000, 1, 0).to == (B,)


def test_rekeying_replaces_the_own_row() -> None:
    both = Ipsec()
    add(both.esp, sa(), 0, A)
    add(both.esp, sa(ispi=0x5001), 0, A)
    assert [row.ispi for row in listed(both.esp, A)] == [0x5001]
    add(both.esp, sa(ispi=0x5001, ospi=0x1001), 0, A)
    assert [(row.ispi, row.ospi) for row in both.esp.rows.values()] == [(0x5001, 0x1001)]


def test_only_the_host_itself_or_root() -> None:
    both = Ipsec()
    refused("EPERM", add, both.esp, sa(A), 0, B)
    add(both.esp, sa(A), 0, A)
    assert listed(both.esp, B) == [] and len(listed(both.esp, ROOT)) == 1
    refused("ENOENT", delete, both.esp, R, M, 0x5000, B)
    assert flush(both.esp, B) == 0 and flush(both.esp, A) == 1 and not both.esp.rows


def test_what_is_learned_later_is_told_to_the_path() -> None:
    both = Ipsec()
    row = add(both.esp, sa(ospi=0), 0, A)
    assert list(both.esp.take_changes()) == [row]
    add(both.esp, sa(), 0, A)
    assert list(both.esp.take_changes()) == [row] and row.ospi == 0x1000


def test_delete() -> None:
    both = Ipsec()
    add(both.esp, sa(), 0, A)
    delete(both.esp, R, M, 0x5000, A)
    assert both.esp_inbound(R, M, 0x5000, 1, 0).local
    refused("ENOENT", delete, both.esp, R, M, 0x5000, ROOT)


@pytest.mark.parametrize("wrong", [{"ispi": 0}, {"ispi": 255}, {"ospi": 200}, {"ispi": 1 << 32}, {"lifetime": -2}])
def test_bad_announcements(wrong: dict) -> None:
    refused("EINVAL", add, Ipsec().esp, sa(**wrong), 0, ROOT)


def test_no_room() -> None:
    refused("ENOSPC", add, Ipsec(IpsecSettings(associations=0)).esp, sa(), 0, ROOT)


def test_a_refused_replacement_takes_nothing_from_anybody() -> None:
    both = Ipsec(IpsecSettings(associations_per_host=1))
    add(both.esp, sa(A), 0, A)
    add(both.esp, sa(B, ispi=0x6000, ospi=0x2000), 0, B)
    refused("ENOSPC", add, both.esp, sa(B, ospi=0x2001), 0, ROOT, replace=True)
    assert both.esp_inbound(R, M, 0x5000, 1, 0).to == (A,)
    add(both.esp, sa(B, ospi=0x2000), 0, ROOT, replace=True)
    assert both.esp_inbound(R, M, 0x5000, 1, 0).to == (B,)


def test_no_room_but_for_what_the_host_replaces_itself() -> None:
    both = Ipsec(IpsecSettings(associations_per_host=1, associations=1))
    add(both.esp, sa(), 0, A)
    add(both.esp, sa(ispi=0x5001), 0, A)
    add(both.esp, sa(ispi=0x5001, ospi=0x1001), 0, A)
    add(both.esp, sa(B, ispi=0x5001, ospi=0x2000), 0, ROOT, replace=True)
    assert [(row.inside, row.ispi, row.ospi) for row in both.esp.rows.values()] == [(B, 0x5001, 0x2000)]


@pytest.mark.parametrize(("lifetime", "ends"), [(None, 30 * MINUTE), (5 * MINUTE, 5 * MINUTE), (-1, None)])
def test_lifetimes(lifetime: int | None, ends: int | None) -> None:
    both = Ipsec()
    add(both.esp, sa(lifetime=lifetime), 0, A)
    if ends is None:
        both.expire(10**18)
        assert both.esp.rows
        return
    both.expire(ends - 1)
    assert both.esp.rows
    both.expire(ends)
    assert not both.esp.rows
