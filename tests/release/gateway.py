"""A lab whose gateway runs the program of a package."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import psutil

from fastmasq.errors import FastmasqError
from fastmasq.lab import scenario
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.topology import Lab

PATIENCE_S = 10.0
IDLE_S = 3.0


@contextlib.contextmanager
def network() -> Iterator[Lab]:
    """Make a lab of this process."""
    with Lab(f"release-{os.getpid()}") as lab:
        yield lab


def demonstrate(command: Sequence[str]) -> str:
    """Pass all checks of the demo with this program in the gateway; return how many. Raises FastmasqError."""
    with network() as lab:
        stage = scenario.set_stage(lab)
        with Fastmasq(lab, command=command):
            return pass_checks(stage)


def pass_checks(stage: scenario.Stage) -> str:
    """Pass all checks of the demo through what forwards already; return how many. Raises FastmasqError."""
    for check in scenario.CHECKS:
        check.run(stage)
    return f"{len(scenario.CHECKS)} checks of the demo"


def start_seconds(lab: Lab, command: Sequence[str]) -> float:
    """Return the time from the start of this program in the gateway to its line that it forwards."""
    socket = f"/tmp/release-{os.getpid()}.sock"
    argv = [*command, "run", "--inside", "eth0", "--outside", "eth1", "--socket", socket]
    started = time.monotonic()
    with lab.popen("gateway", argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            seconds = time.monotonic() - started
        finally:
            process.terminate()
        if "forwarding" not in line:
            raise FastmasqError(f"{command[-1]} did not forward: {process.stderr.read().strip() or line}")
    return seconds


def idle_bytes(lab: Lab, command: Sequence[str]) -> int:
    """Return the resident memory of a forwarder with all defaults that has forwarded nothing yet."""
    with Fastmasq(lab, command=command) as forwarder:
        time.sleep(IDLE_S)
        return psutil.Process(forwarder.process.pid).memory_info().rss


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something holds. Raises FastmasqError if it does not within PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise FastmasqError(f"not within {PATIENCE_S:g} s: {what}")
        time.sleep(0.05)
