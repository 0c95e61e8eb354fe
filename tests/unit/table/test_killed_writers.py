"""Whoever writes a table may be killed anywhere: every session that was whole is adopted, and nothing else.

A release is tested with ten times as many.
"""

from __future__ import annotations

import pytest

from tests.support import killed

KILLS = 30


@pytest.mark.parametrize("seeds", [range(0, KILLS // 2), range(KILLS // 2, KILLS)], ids=["first", "second"])
def test_a_killed_writer_leaves_all_its_sessions(seeds: range) -> None:
    for seed in seeds:
        killed.check(seed)
