"""The demo: the HOWTO's network, fastmasq in its gateway, and every check of the scenario, with a line for each."""

from __future__ import annotations

import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from fastmasq.errors import FastmasqError
from fastmasq.lab import scenario
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.kernel_masquerade import KernelMasquerade
from fastmasq.lab.topology import Lab

_TITLE_WIDTH = 26
_FIGURE_WIDTH = 84


def run_demo(prefix: str) -> bool:
    """Run the whole demo in a lab of this prefix; return whether all of it worked. The lab is gone afterwards."""
    started = time.monotonic()
    report = Report()
    with ending_cleanly(), Lab(prefix) as lab:
        stage = report.step("network, five servers", lambda: scenario.set_stage(lab), _describe_stage)
        if stage is not None:
            rates = _through_fastmasq(report, stage)
            if rates:
                _print_comparison(rates, _through_kernel(report, stage))
    verdict = "all of it worked" if report.failures == 0 else f"{report.failures} FAILED"
    print(f"\n{verdict}; {time.monotonic() - started:.0f} s; the network is gone again")
    return report.failures == 0


class Report:
    """Prints a line for each step, its title at once and its figure when it is known, and counts failures."""

    def __init__(self) -> None:
        self.failures = 0

    def step(self, title: str, action: Callable[[], Any], figure: Callable[[Any], str] = str) -> Any:
        """Run the action and return its result; None, and FAILED on the line, if it raises a FastmasqError."""
        print(f"{title:<{_TITLE_WIDTH}}", end="", flush=True)
        try:
            result = action()
        except FastmasqError as error:
            self.failures += 1
            print(f"FAILED: {error}", flush=True)
            return None
        print(f"{figure(result):<{_FIGURE_WIDTH}} ok", flush=True)
        return result


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into KeyboardInterrupt and ignore the next, so that clean-up ends."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe_stage(stage: scenario.Stage) -> str:
    return f"{len(stage.lab.network.hosts)} namespaces {stage.lab.prefix}-*, offloads on"


def _through_fastmasq(report: Report, stage: scenario.Stage) -> dict[str, float]:
    """Run every check with fastmasq forwarding and show its session table; return what the streams reached."""
    forwarder = Fastmasq(stage.lab)
    if report.step("fastmasq run", forwarder.install) is None:
        return {}
    try:
        for check in scenario.CHECKS:
            report.step(check.title, functools.partial(check.run, stage))
        rates = _measure_streams(report, stage)
        table = report.step("fastmasq sessions", lambda: forwarder.run_command("sessions"), lambda _: "")
        if table is not None:
            print(table, flush=True)
    finally:
        report.step("fastmasq stopped", forwarder.remove, lambda _: "")
    return rates


def _through_kernel(report: Report, stage: scenario.Stage) -> dict[str, float]:
    """Return what the same streams reach when the kernel masquerades."""
    with KernelMasquerade(stage.lab):
        return _measure_streams(report, stage, "kernel, ")


def _measure_streams(report: Report, stage: scenario.Stage, label: str = "") -> dict[str, float]:
    rates = {}
    for title, options in scenario.STREAMS.items():
        measure = functools.partial(scenario.throughput, stage, options)
        rate = report.step(label + title, measure, scenario.format_bit_rate)
        if rate is not None:
            rates[title] = rate
    return rates


def _print_comparison(rates: dict[str, float], baseline: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("on the same network", title="throughput beside kernel masquerade")
    for heading in ("fastmasq", "kernel", "ratio"):
        table.add_column(heading, justify="right")
    for title in [title for title in rates if title in baseline]:
        pair = rates[title], baseline[title]
        table.add_row(title, *map(scenario.format_bit_rate, pair), f"{pair[0] / pair[1]:.2f}")
    Console().print(table)
