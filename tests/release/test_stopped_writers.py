"""Twenty thousand writes, after each of which a table stops: nothing whole is lost, and nothing else is adopted."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.stopped import StoppedPath, stop_story

STOPS = 10_000  # of a table, and of a path

pytestmark = pytest.mark.timeout(1800)


def test_a_table_that_stops_leaves_all_its_sessions() -> None:
    count, seeds = 0, itertools.count()
    while count < STOPS:
        count += stop_story(next(seeds), steps=100)


def test_a_path_that_stops_leaves_all_its_sessions() -> None:
    few = settings(
        max_examples=10,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    while StoppedPath.count < STOPS:
        run_state_machine_as_test(StoppedPath, settings=few)
