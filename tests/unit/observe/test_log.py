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


def test_json():
    entry = json.loads(logged(lambda log: log.info('a "quoted"\nline'), as_json=True))
    assert datetime.fromisoformat(entry.pop("time")).utcoffset().total_seconds() == 0
    assert entry == {"level": "info", "logger": "fastmasq.net", "message": 'a "quoted"\nline'}


def test_a_failure_as_json_is_one_line():
    text = logged(fail, as_json=True)
    assert text.count("\n") == 1
    assert "ValueError: odd" in json.loads(text)["traceback"]
