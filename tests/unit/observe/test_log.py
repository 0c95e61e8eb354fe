"""Log lines for people and for machines."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime

import pytest

from fastmasq.observe.log import set_up


@pytest.fixture(autouse=True)
def keep_logging():
    root, ours = logging.getLogger(), logging.getLogger("fastmasq")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


def logged(action, **options):
    stream = io.StringIO()
    set_up(stream=stream, **options)
    action(logging.getLogger("fastmasq.net"))
    return stream.getvalue()


def fail(log):
    try:
        raise ValueError("odd")
    except ValueError:
        log.exception("it failed")


def test_lines():
    assert logged(lambda log: log.info("%s is up", "eth0")) == "fastmasq: eth0 is up\n"
    assert logged(lambda log: log.warning("%s is down", "eth0")) == "fastmasq: warning: eth0 is down\n"


def test_a_failure_has_its_traceback():
    first, *others = logged(fail).splitlines()
    assert first == "fastmasq: error: it failed"
    assert others[0].startswith("Traceback")
    assert others[-1] == "ValueError: odd"


def test_details_only_when_asked_for():
    assert logged(lambda log: log.debug("detail")) == ""
    assert logged(lambda log: log.debug("detail"), verbose=True) == "fastmasq: debug: detail\n"


def test_libraries_only_warn():
    def others(_):
        logging.getLogger("asyncio").info("chatter")
        logging.getLogger("asyncio").warning("trouble")

    assert logged(others, verbose=True) == "fastmasq: warning: trouble\n"


def say(log: logging.Logger, text: str, at: float, times: int = 1) -> None:
    for _ in range(times):
        record = log.makeRecord(log.name, logging.WARNING, "", 0, "%s", (text,), None)
        record.created = at
        log.handle(record)


def test_a_line_that_comes_again_and_again_is_said_ten_times_a_minute():
    def storm(log):
        say(log, "eth0 is down", 0, 100)
        say(log, "eth1 is down", 1)
        say(log, "eth0 is down", 59.9)
        say(log, "eth0 is down", 60, 2)

    lines = logged(storm).splitlines()
    assert lines[:10] == ["fastmasq: warning: eth0 is down"] * 10
    assert lines[10:] == [
        "fastmasq: warning: eth1 is down",
        "fastmasq: warning: eth0 is down (and 91 times before that were not said)",
        "fastmasq: warning: eth0 is down",
    ]


def test_packets_that_rules_log_are_all_said():
    assert logged(lambda _: say(logging.getLogger("fastmasq.rules"), "a packet", 0, 100)).count("a packet") == 100


def test_many_different_lines_do_not_fill_the_memory():
    def storm(log):
        for number in range(5000):
            say(log, f"line {number}", number / 1000)
        say(log, "line 4999", 6, 10)
        (limit,) = logging.getLogger().handlers[0].filters
        assert len(limit._known) == 1000

    assert len(logged(storm).splitlines()) == 5009


def test_json():
    entry = json.loads(logged(lambda log: log.info('a "quoted"\nline'), as_json=True))
    assert datetime.fromisoformat(entry.pop("time")).utcoffset().total_seconds() == 0
    assert entry == {"level": "info", "logger": "fastmasq.net", "message": 'a "quoted"\nline'}


def test_a_failure_as_json_is_one_line():
    text = logged(fail, as_json=True)
    assert text.count("\n") == 1
    assert "ValueError: odd" in json.loads(text)["traceback"]
