"""What goes wrong is said once a minute, with its place, however often it comes."""

from __future__ import annotations

import errno
import logging

import pytest

from fastmasq.errors import KernelError
from fastmasq.mishaps import MOST_KINDS, REPEAT_NS, Mishaps


@pytest.fixture
def mishaps() -> Mishaps:
    return Mishaps(logging.getLogger("fastmasq.test"))


def fail() -> Exception:
    try:
        return int("x")
    except ValueError as error:
        return error


def test_a_mistake_of_ours_has_its_place_and_its_traceback_once(mishaps: Mishaps, caplog) -> None:
    for now in range(1000):
        mishaps.report("a step", fail(), now)
    (record,) = caplog.records
    assert "a step: ValueError at unit/test_mishaps.py:" in record.getMessage()
    assert " in fail: invalid literal" in record.getMessage()
    assert record.exc_info
    mishaps.report("a step", fail(), REPEAT_NS)
    assert caplog.records[-1].getMessage().endswith("(999 times more in the minute before)")


def test_what_was_foreseen_is_said_in_its_own_words(mishaps: Mishaps, caplog) -> None:
    mishaps.report("a step", KernelError("eth0: gone"), 0)
    mishaps.report("a step", KernelError("eth1: gone"), 0)
    mishaps.report("another", KernelError("eth0: gone"), 0)
    assert [(record.getMessage(), record.exc_info) for record in caplog.records] == [
        ("eth0: gone", None),
        ("eth1: gone", None),
    ]


def test_many_kinds_at_once_are_no_storm(mishaps: Mishaps, caplog) -> None:
    for number in range(10 * MOST_KINDS):
        mishaps.report("a step", KernelError(f"link {number}: gone"), number)
    assert len(caplog.records) == MOST_KINDS
    mishaps.report("a step", KernelError("later"), REPEAT_NS + 10 * MOST_KINDS)
    assert caplog.records[-1].getMessage() == "later"


def test_a_text_without_end_is_cut(mishaps: Mishaps, caplog) -> None:
    mishaps.report("a step", KernelError("x" * 100_000), 0)
    assert len(caplog.records[0].getMessage()) == 400


def test_want_of_descriptors_is_no_mistake_of_ours(mishaps: Mishaps, caplog) -> None:
    for now in range(10):
        mishaps.report("not reloaded", OSError(errno.EMFILE, "whatever"), now)
    (record,) = caplog.records
    assert (record.getMessage(), record.exc_info) == ("not reloaded: Too many open files", None)


def test_what_others_do_is_a_warning_once_a_minute(mishaps: Mishaps, caplog) -> None:
    for now in range(10):
        mishaps.warn("somebody removed it; it is back", now)
    mishaps.warn("somebody removed it; it is back", REPEAT_NS)
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("WARNING", "somebody removed it; it is back"),
        ("WARNING", "somebody removed it; it is back (9 times more in the minute before)"),
    ]
