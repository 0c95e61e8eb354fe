"""Three hundred writers of a table, each killed somewhere: nothing whole is lost, and nothing else is adopted."""

from __future__ import annotations

from tests.support import killed

KILLS = range(1000, 1300)


def test_a_killed_writer_leaves_all_its_sessions() -> None:
    for seed in KILLS:
        killed.check(seed)
