"""Measures what an upgrade costs: which datagrams of a numbered stream, 1000 a second, are missing or late, ten times.

    python -m fastmasq_bench.upgrades [--sessions 10000] [--times 10] [--kill]

--kill measures a kill and a new start instead, for comparison. The machine should be idle otherwise.
"""

from __future__ import annotations

import socket
import statistics
import struct
import tempfile
import threading
import time
from itertools import pairwise

import click

from fastmasq.lab import hosts
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from fastmasq.wire.numbers import UDP

PORT = 9000
EVERY_S = 0.001
SETTLE_S = 1.0  # between two upgrades
FIRST_PORT = 1024
_CONFIGURATION = '[limits]\nnew_sessions_per_host = "0/s"\nports_per_host = 65535\n[state]\ndirectory = "{}"\n'


class Stream:
    """Numbers that inside sends to the server, and when each arrived."""

    def __init__(self, lab: Lab) -> None:
        with hosts.entered(lab.namespace("server")):
            self._far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._far.bind((SERVER_ADDRESS, PORT))
        self._far.settimeout(0.5)
        with hosts.entered(lab.namespace("inside")):
            self._near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.arrived: list[tuple[int, float]] = []
        self._is_over = False
        self._threads = [threading.Thread(target=job) for job in (self._receive, self._send)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        number, due = 0, time.perf_counter()
        while not self._is_over:
            self._near.sendto(struct.pack("!I", number), (SERVER_ADDRESS, PORT))
            number, due = number + 1, due + EVERY_S
            time.sleep(max(0.0, due - time.perf_counter()))

    def _receive(self) -> None:
        while not self._is_over:
            try:
                datagram = self._far.recv(64)
            except TimeoutError:
                continue
            self.arrived.append((struct.unpack("!I", datagram)[0], time.perf_counter()))

    def end(self) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()


def _losses(arrived: list[tuple[int, float]]) -> tuple[int, int, float]:
    """Return how many numbers are missing in a row at most, how many came twice, and the longest silence in ms."""
    numbers = sorted({number for number, _ in arrived})
    missing = max((after - before - 1 for before, after in pairwise(numbers)), default=0)
    silence = max((after - before for (_, before), (_, after) in pairwise(arrived)), default=0.0)
    return missing, len(arrived) - len(numbers), silence * 1000


def _open_sessions(lab: Lab, sessions: int) -> None:
    """Send a datagram from so many ports of the inside host."""
    with (
        hosts.entered(lab.namespace("inside")),
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw,
    ):
        for number in range(sessions):
            remote, port = divmod(number, 60_000)
            raw.sendto(struct.pack("!HHHH", FIRST_PORT + port, 10_000 + remote, 8, 0), (SERVER_ADDRESS, UDP))
            if number % 500 == 499:
                time.sleep(0.02)


@click.command()
@click.option("--sessions", type=click.IntRange(0), default=10_000, show_default=True)
@click.option("--times", type=click.IntRange(1), default=10, show_default=True)
@click.option("--kill", is_flag=True, help="Kill it and start it again instead.")
def main(sessions: int, times: int, kill: bool) -> None:
    """Print a line for each time, and the medians."""
    found = []
    lab = Lab("upgrades", "direct")
    lab.up()
    try:
        with (
            tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
            Fastmasq(lab, _CONFIGURATION.format(folder)) as fastmasq,
        ):
            _open_sessions(lab, sessions)
            stream = Stream(lab)
            try:
                for _ in range(times):
                    time.sleep(SETTLE_S)
                    first = len(stream.arrived)
                    if kill:
                        fastmasq.process.kill()
                        fastmasq.process.wait()
                        fastmasq.install()
                    else:
                        fastmasq.run_command("upgrade")
                    time.sleep(SETTLE_S)
                    found.append(_losses(stream.arrived[first - 1 :]))
                    adopted = fastmasq.ask("status")["adopted"]
                    click.echo("missing {}, twice {}, silence {:.1f} ms".format(*found[-1]) + f"; {adopted}")
            finally:
                stream.end()
    finally:
        lab.down()
    missing, _, silence = zip(*found, strict=True)
    click.echo(f"median: missing in a row {statistics.median(missing)}, silence {statistics.median(silence):.1f} ms")


if __name__ == "__main__":
    main()
