"""The tests' own networks: fresh ones, one ready for the next test, and none left however the tests end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastmasq.errors import KernelError
from fastmasq.lab import hosts
from fastmasq.lab.topology import RUN_DIRECTORY
from tests.support.lab_network import eventually
from tests.support.networks import Networks

ROOT = Path(__file__).parents[2]
USER = """
import time
from tests.support.networks import networks

networks.expect(["alone"])
for kind in ("masquerade", "between"):
    networks.take(kind).popen("inside", ["sleep", "100"])
print("ready", flush=True)
try:
    time.sleep(100)
finally:
    networks.close()
"""


def traces(prefix: str) -> list[str]:
    """Return what is left of labs whose prefixes begin so."""
    places = [*hosts.NAMESPACE_DIRECTORY.glob(f"{prefix}*"), *RUN_DIRECTORY.glob(f"{prefix}*")]
    return [str(place) for place in places]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_is_left_when_tests_are_interrupted(root: None, number: signal.Signals) -> None:
    argv = [sys.executable, "-c", USER]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as user:
        assert user.stdout.readline() == "ready\n"
        assert len(traces(f"t{user.pid}-")) >= 11
        user.send_signal(number)
        assert user.wait(20)
    eventually(lambda: traces(f"t{user.pid}-") == [], 20, "that nothing is left")


def test_each_lab_is_another_and_is_up(root: None) -> None:
    networks = Networks()
    try:
        networks.expect(["alone"])
        first, second = networks.take("alone"), networks.take("alone")
        assert first.prefix != second.prefix
        assert first.is_up() and second.is_up()
        assert [lab.prefix for lab in networks.taken()] == [first.prefix, second.prefix]
        networks.give_back(first)
        third = networks.take("alone")
        assert third.is_up() and second.is_up()
        assert third.prefix not in (first.prefix, second.prefix)
    finally:
        networks.close()
    assert not any(lab.is_up() for lab in (first, second, third))


def test_what_cannot_be_made_is_said(root: None) -> None:
    networks = Networks()
    try:
        with pytest.raises(KernelError, match="lab network 'nosuch' is unknown"):
            networks.take("nosuch")
    finally:
        networks.close()
