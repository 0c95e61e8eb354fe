"""The benchmark: its packets, its searches and its table, and one short run of it with real forwarders."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from fastmasq.lab import hosts
from fastmasq_bench import chart
from fastmasq_bench.flows import LARGE_FRAME, SMALL_FRAME, Flows
from fastmasq_bench.lab.figures import Figure, Goal, Sample
from fastmasq_bench.lab.forwarders import Kernel
from fastmasq_bench.lab.measure import MEASUREMENTS, Lengths
from fastmasq_bench.lab.rounds import Series
from fastmasq_bench.lab.run import run
from fastmasq_bench.lab.traffic import Delivery, best_delivery, lossless_delivery
from fastmasq_bench.report import Line, Report, describe_machine

GATEWAY = bytes.fromhex("020000000101")
SHORT = Lengths(
    0.05, 0.1, 1, 1, tcp_s=1, idle_s=0.2, round_trips=200, pauses_s=0.1, session_remotes=1, memory_remotes=1
)
SOURCE_RATE = 2_000_000.0


@pytest.mark.parametrize("length", [SMALL_FRAME, LARGE_FRAME])
def test_every_flow_has_a_valid_frame_of_its_own(length: int) -> None:
    flows = Flows(hosts=3, remotes=2, ports=5)
    frames = flows.frames(GATEWAY, length)
    assert frames.shape == (flows.count, length) == (30, length)
    seen = set()
    for row in frames:
        packet = Ether(row.tobytes())
        assert packet.dst == "02:00:00:00:01:01"
        seen.add((packet[IP].src, packet[UDP].sport, packet[IP].dst))
        del packet[IP].chksum, packet[UDP].chksum, packet[IP].len, packet[UDP].len
        assert bytes(packet) == row.tobytes(), "lengths and checksums are those scapy computes"
    assert len(seen) == flows.count
    assert len({port for _, port, _ in seen}) == 15, "every inside endpoint has a port of its own"


def forwarder_of(capacity: float, overload_loss: float) -> Callable[[float], Delivery]:
    """Return how a forwarder answers offers that loses a share of its capacity for what it is offered beyond."""

    def offer(rate: float) -> Delivery:
        offered = min(rate or SOURCE_RATE, SOURCE_RATE)
        excess = max(0.0, offered - capacity)
        delivered = max(0.0, min(offered, capacity) - overload_loss * excess)
        return Delivery(offered, delivered, 1 - delivered / offered)

    return offer


@pytest.mark.parametrize("capacity", [300_000.0, 900_000.0, 1_700_000.0])
@pytest.mark.parametrize("overload_loss", [0.0, 0.3])
def test_the_searches_find_what_a_forwarder_can_do(capacity: float, overload_loss: float) -> None:
    offer = forwarder_of(capacity, overload_loss)
    assert best_delivery(offer, 6).delivered == pytest.approx(capacity, abs=SOURCE_RATE / 2**6)
    assert lossless_delivery(offer, 10).delivered == pytest.approx(capacity, rel=0.02)


def test_a_forwarder_faster_than_the_source_is_asked_once() -> None:
    asked: list[float] = []

    def offer(rate: float) -> Delivery:
        asked.append(rate)
        return Delivery(SOURCE_RATE, SOURCE_RATE, 0.0)

    assert best_delivery(offer, 5).delivered == SOURCE_RATE
    assert asked == [0]


def test_steerings_clearly_behind_leave_the_race() -> None:
    series = Series(Figure("rate", "rate", "packets/s"), "kernel")
    assert series.in_the_race("off") and series.best is None and series.median is None
    series.samples = {"off": [Sample(100.0), Sample(104.0)], "others": [Sample(90.0)], "all": [Sample(50.0)]}
    assert series.best == "off"
    assert series.median == 102.0
    assert [series.in_the_race(steering) for steering in ("off", "others", "all")] == [True, True, False]


def test_where_lower_is_better_the_race_turns_round() -> None:
    series = Series(Figure("delay", "delay", "us", higher_is_better=False), "kernel")
    series.samples = {"off": [Sample(100.0)], "others": [Sample(5.0)]}
    assert series.best == "others"
    assert not series.in_the_race("off")


def make_line(kernel: float | None, fastmasq: float | None, **figure: object) -> Line:
    """Return a line with one sample for each program that has a value."""
    spec = Figure("figure", "some figure", "packets/s", **figure)
    programs = []
    for name, value in (("kernel", kernel), ("fastmasq", fastmasq)):
        samples = {} if value is None else {"off": [Sample(value, loss=0.25, drops=7)]}
        programs.append(Series(spec, name, samples, [] if samples else [f"{name}: it hung"]))
    return Line(spec, *programs)


@pytest.mark.parametrize(
    ("kernel", "fastmasq", "figure", "met"),
    [
        (100.0, 120.0, {"goal": Goal(1.15)}, True),
        (100.0, 110.0, {"goal": Goal(1.15)}, False),
        (10.0, 25.0, {"goal": Goal(3.0), "higher_is_better": False}, True),
        (10.0, 35.0, {"goal": Goal(3.0), "higher_is_better": False}, False),
        (None, 0.5, {"goal": Goal(1.0, relative=False), "higher_is_better": False}, True),
        (None, 120.0, {"goal": Goal(1.15)}, None),
        (100.0, None, {"goal": Goal(1.15)}, None),
        (100.0, 120.0, {}, None),
    ],
)
def test_goals(kernel: float | None, fastmasq: float | None, figure: dict, met: bool | None) -> None:
    assert make_line(kernel, fastmasq, **figure).met is met


def test_the_report_says_what_was_missed_lost_and_failed(tmp_path: Path) -> None:
    lines = [make_line(100.0, 90.0, goal=Goal(1.15)), make_line(100.0, None)]
    report = Report(lines, describe_machine(), 1e6, 1)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    for expected in ("0.90", ">= 1.15 missed", "25 % / 25 %", "7 / 7", "failed"):
        assert expected in text
    assert report.failures() == ["some figure: fastmasq: it hung"]
    document = json.loads(json.dumps(report.document()))
    assert document["figures"][0]["fastmasq"]["samples"]["off"][0]["value"] == 90.0
    chart.draw(report, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.machine
def test_a_short_run_measures_both_and_leaves_nothing(
    lab_prefix: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kernel, "steerings", ("off", "all"))
    conntrack_maximum = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    before = conntrack_maximum.read_text()
    prefix = lab_prefix()
    only = ("packets-1000", "answered", "sessions", "tcp-up-plain", "rtt-first", "idle", "memory")
    report = run(prefix, SHORT, rounds=1, only=only, forwarders=("kernel", "fastmasq"))
    assert report.failures() == []
    assert report.source_alone > 100_000
    for line in report.lines:
        assert line.ours.median is not None, line.figure.name
        assert line.figure.name == "idle" or line.ratio > 0, line.figure.name
    assert not list(hosts.NAMESPACE_DIRECTORY.glob(f"{prefix}-*"))
    assert conntrack_maximum.read_text() == before


@pytest.mark.machine
def test_what_bounds_the_figures_is_measured_beside_them(
    lab_prefix: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as they can be: a kernel may be without flow tables, and what looks nothing up has no sessions."""
    prefix = lab_prefix()
    only = ("packets-1000", "tcp-up", "rtt-200us", "memory")
    report = run(prefix, SHORT, rounds=1, only=only, forwarders=("flowtable", "offload", "limit"))
    assert report.failures() == []
    for name in ("offload", "limit"):
        figures = {line.figure.name: line.beside[name].median for line in report.lines if name in line.beside}
        assert figures.keys() == {"packets_1000", "tcp_up", "tcp_up_cost", "rtt_200us_median", "rtt_200us_99"}
        assert min(figures.values()) > 0
    has_flowtable = any("flowtable" in line.beside for line in report.lines)
    assert has_flowtable is not ("flowtable is left out: " in capsys.readouterr().err)
    assert not list(hosts.NAMESPACE_DIRECTORY.glob(f"{prefix}-*"))


def bench(*arguments: str) -> subprocess.CompletedProcess:
    """Run `fastmasq bench` as a user would."""
    return subprocess.run([sys.executable, "-m", "fastmasq", "bench", *arguments], capture_output=True, text=True)


def test_help_names_every_figure() -> None:
    words = bench("--help").stdout.split()
    assert [measurement.name for measurement in MEASUREMENTS if measurement.name not in words] == []


def test_an_unknown_figure_is_refused_with_the_known_ones() -> None:
    done = bench("--only", "warp")
    assert done.returncode == 2
    assert "'warp' is none of packets-1, packets-1000," in done.stderr


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    done = bench("--json", str(tmp_path / "nowhere/result.json"))
    assert done.returncode == 2
    assert "there is no such directory" in done.stderr
