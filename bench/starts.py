"""Measures how long nobody forwards when a start follows a kill: until the first packet of an adopted session.

    python -m fastmasq_bench.starts [--sessions 10000] [--times 10]

Counted from the moment the program is called. The machine should be idle otherwise.
"""

from __future__ import annotations

import statistics
import time

import click

from fastmasq.lab.forwarder import Fastmasq
from fastmasq_bench.stream import Stream, carried

SETTLE_S = 1.0  # between two starts


def _start_again(fastmasq: Fastmasq, stream: Stream) -> float:
    """Kill it and start it again; return the seconds from the call to the first datagram."""
    fastmasq.process.kill()
    fastmasq.process.wait()
    began, before = time.perf_counter(), len(stream.arrived)
    fastmasq.install()
    while len(stream.arrived) == before:
        time.sleep(0.001)
    return stream.arrived[before][1] - began


@click.command()
@click.option("--sessions", type=click.IntRange(0, 3_000_000), default=10_000, show_default=True)
@click.option("--times", type=click.IntRange(1), default=10, show_default=True)
def main(sessions: int, times: int) -> None:
    """Print a line for each start, and the median."""
    found = []
    with carried("starts", sessions) as (fastmasq, stream):
        for _ in range(times):
            time.sleep(SETTLE_S)
            found.append(_start_again(fastmasq, stream))
            said = fastmasq.ask("status")
            anew = said["sessions"]["opened_total"]
            click.echo(f"{found[-1] * 1000:.0f} ms; adopted {said['adopted']['sessions']} sessions, {anew} anew")
    click.echo(f"median of {times}: {statistics.median(found) * 1000:.0f} ms")


if __name__ == "__main__":
    main()
