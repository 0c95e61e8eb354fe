"""The mark `machine`: tests that measure the machine, or change what is its own, run with no other beside them.

All of them are one group for pytest-xdist, so that one worker runs them in a row, and the others wait meanwhile.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


class Turns:
    """Locks between the workers of a run: many ordinary tests at a time, or one that wants the machine for itself.

    Who waits for the machine holds the door, so that no further test begins meanwhile.
    """

    def __init__(self) -> None:
        self._door, self._room = (os.open(folder, os.O_RDONLY) for folder in (TESTS, TESTS / "support"))
        self._holds = 0

    def take(self, kind: int) -> None:
        """Take a turn: fcntl.LOCK_SH for an ordinary test, LOCK_EX to be alone; what is held already is kept."""
        if self._holds != kind:
            self.give_back()
            fcntl.flock(self._door, fcntl.LOCK_EX)
            try:
                fcntl.flock(self._room, kind)
            finally:
                fcntl.flock(self._door, fcntl.LOCK_UN)
            self._holds = kind

    def give_back(self) -> None:
        fcntl.flock(self._room, fcntl.LOCK_UN)
        self._holds = 0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "machine: measures the machine, or changes what is its own; runs alone")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("machine"):
            item.add_marker(pytest.mark.xdist_group("machine"))


class Alone:
    """The part of the plugin for a worker of pytest-xdist."""

    def __init__(self) -> None:
        self._turns = Turns()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        wants = [each.get_closest_marker("machine") is not None for each in (item, nextitem) if each is not None]
        self._turns.take(fcntl.LOCK_EX if wants[0] else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            if wants != [True, True]:
                self._turns.give_back()


def pytest_sessionstart(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(Alone())
