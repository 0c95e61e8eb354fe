"""Log levels at run time: by subsystem, for a while, and refused as a whole."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmasq.daemon.log_levels import LogLevels
from fastmasq.errors import ConfigurationError
from fastmasq.observe.log import SUBSYSTEMS
from fastmasq.units import NS_PER_SECOND
from tests.support.path_network import HOST, INSIDE
from tests.support.vpn_gateway import REMOTE, Gateway, esp

PACKAGE = Path(__file__).parents[3] / "fastmasq"
NOW = 1_000 * NS_PER_SECOND


@pytest.fixture(autouse=True)
def keep_logging() -> Iterator[None]:
    ours = logging.getLogger("fastmasq")
    before = ours.level
    ours.setLevel(logging.INFO)
    yield
    ours.setLevel(before)
    for name in SUBSYSTEMS:
        logging.getLogger(f"fastmasq.{name}").setLevel(logging.NOTSET)


def listed(levels: LogLevels, now: int = NOW) -> dict[str, tuple[str, float | None]]:
    return {one["subsystem"]: (one["level"], one["reverts_s"]) for one in levels.handle({}, now)}


def change(levels: LogLevels, subsystem: str | None, level: str, seconds: float | None, now: int = NOW) -> None:
    levels.handle({"subsystem": subsystem, "level": level, "seconds": seconds}, now)


def test_h_82_a_level_holds_for_a_while_and_reverts_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    levels = LogLevels()
    change(levels, "vpn", "debug", 600)
    assert listed(levels, NOW + 60 * NS_PER_SECOND)["vpn"] == ("debug", 540.0)
    assert {level for name, level in listed(levels).items() if name != "vpn"} == {("info", None)}
    levels.every_second(NOW + 599 * NS_PER_SECOND)
    assert logging.getLogger("fastmasq.vpn").isEnabledFor(logging.DEBUG)
    levels.every_second(NOW + 600 * NS_PER_SECOND)
    assert listed(levels)["vpn"] == ("info", None)
    assert caplog.messages == ["log level of vpn: debug for 10m", "log level of vpn: info again"]


def test_h_82_trackers_say_more_at_level_debug(caplog: pytest.LogCaptureFixture) -> None:
    levels, gateway = LogLevels(), Gateway()
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))
    assert caplog.messages == []
    change(levels, "vpn", "debug", 600)
    gateway = Gateway()
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))
    assert caplog.messages[1:] == [f"ip_fw_masq_esp(): init {HOST} -> {REMOTE} SPI 1000"]


def test_h_82_the_last_word_counts() -> None:
    levels = LogLevels()
    change(levels, "vpn", "debug", 10)
    change(levels, "vpn", "warning", None)
    levels.every_second(NOW + 11 * NS_PER_SECOND)
    assert listed(levels)["vpn"] == ("warning", None)
    change(levels, "vpn", "debug", 10)
    levels.every_second(NOW + 10 * NS_PER_SECOND)
    assert listed(levels)["vpn"] == ("info", None), "that of the start, not the one before"


def test_h_82_all_at_once() -> None:
    levels = LogLevels()
    change(levels, None, "error", 10)
    assert listed(levels) == dict.fromkeys(SUBSYSTEMS, ("error", 10.0))
    levels.every_second(NOW + 10 * NS_PER_SECOND)
    assert listed(levels) == dict.fromkeys(SUBSYSTEMS, ("info", None))


def test_h_82_a_run_that_began_verbose_is_verbose_again() -> None:
    levels = LogLevels()
    logging.getLogger("fastmasq").setLevel(logging.DEBUG)
    change(levels, "vpn", "warning", 10)
    levels.every_second(NOW + 10 * NS_PER_SECOND)
    assert listed(levels)["vpn"] == ("debug", None)


@pytest.mark.parametrize(
    ("subsystem", "level", "seconds", "said"),
    [
        (
            "vnp",
            "debug",
            1,
            "'vnp' is not a subsystem; there are: config, control, engine, forwards, gateways, hooks, rules, vpn",
        ),
        ("vpn", "loud", 1, "'loud' is not a level; there are: debug, info, warning, error"),
        (None, "vpn", 1, "'vpn' is not a level"),
        ("vpn", "debug", 0, "a level holds for more than 0 s"),
        ("vpn", "debug", float("nan"), "a level holds for more than 0 s"),
        ("vpn", "debug", 1e12, "at most 365 days, or for ever"),
        ("vpn", "debug", "10m", "seconds: '10m' is not a number"),
        ("vpn", "debug", True, "seconds: True is not a number"),
        (["vpn"], "debug", 1, "is not a subsystem"),
        ("vpn", ["debug"], 1, "is not a level"),
    ],
)
def test_h_82_mistakes_change_nothing(subsystem, level, seconds, said) -> None:
    levels = LogLevels()
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        change(levels, subsystem, level, seconds)
    assert listed(levels) == dict.fromkeys(SUBSYSTEMS, ("info", None))


def test_every_logger_belongs_to_a_subsystem() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for name in re.findall(r"getLogger\(([^)]*)\)", path.read_text()):
            found.add(module if name == "__name__" else name.strip('"'))
    assert {name.split(".")[1] for name in found if re.fullmatch(r"fastmasq\.[\w.]+", name)} == set(SUBSYSTEMS)
