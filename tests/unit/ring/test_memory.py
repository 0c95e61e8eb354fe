"""The memory of rings: what large packets would need is not taken before there are any."""

from __future__ import annotations

import psutil

from fastmasq.ring.ring import RxRing

MOST = 1_000_000  # octets


def resident() -> int:
    return psutil.Process().memory_info().rss


def test_a_ring_made_anew_takes_no_memory_before_it_is_used() -> None:
    """Malloc keeps what is given back, and fills it with zeros when as much is wanted again."""
    before = resident()
    for _ in range(3):
        RxRing()
    ring = RxRing()
    assert resident() - before < MOST
    del ring
