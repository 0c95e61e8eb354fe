"""What a soak has found, and whether it keeps what is promised: figures, bars, and the table that is printed.

A ping counts unless it was sent while a fault lasted or within AFTER_FAULT_S of it, or in a second in which the machine
had no time for us: the control pair, which pings past the gateway over an ordinary router, lost a ping, too, or the
worker waited for a processor for more than a part of it. Of how many seconds that is true is a bar as well.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.soak.ordinary import Ping, Talk
from tests.soak.place import CONTROL
from tests.soak.plan import Act

AFTER_FAULT_S = 3.0
MOST_LOST = 0.005  # of pings, and of conversations
LONGEST_GAP_S = 2.0
GROWTH_BYTES = 2_000_000
BASE = 0.2  # of the time: growth counts from there
WAITED = 0.3  # of a second, on a run queue
MOST_STARVED = 0.25  # of the seconds


class Sample(NamedTuple):
    """What was seen of the process at a time: resident octets, descriptors, seconds that the worker has waited."""

    at: float
    resident: int
    descriptors: int
    waited: float


@dataclass
class Findings:
    """All that a soak of so many seconds has seen."""

    seed: int
    seconds: float
    acts: Sequence[Act]
    pings: Sequence[Ping] = ()
    talks: Sequence[Talk] = ()
    samples: list[Sample] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    log: str = ""
    ring_drops: int = 0
    mishaps: list[str] = field(default_factory=list)  # what of the soak itself did not go as planned


class Bar(NamedTuple):
    """One promise: what it is about, what was found, what the limit is, whether it was kept."""

    title: str
    figure: str
    limit: str
    is_kept: bool


def judge(found: Findings) -> list[Bar]:
    """Return the bars with what was found."""
    excused = Excused(found)
    counted = [ping for ping in found.pings if ping.host != CONTROL and not excused.at(ping.at)]
    lost = [ping for ping in counted if ping.after is None]
    talks = [talk for talk in found.talks if not excused.between(talk.at, talk.until)]
    failed = Counter(talk.kind for talk in talks if not talk.is_good)
    gap, host = max(_gaps(counted), default=(0.0, ""))
    starved = len(excused.starved) / max(1, int(found.seconds))
    base, end = _samples(found)
    usual = Counter(sample.descriptors for sample in found.samples if sample.at <= base.at).most_common(1)[0][0]
    tracebacks = found.log.count("Traceback")
    return [
        Bar(
            "pings lost",
            f"{len(lost)} of {len(counted)}" + (f" ({len(lost) / len(counted):.2%})" if counted else ""),
            f"under {MOST_LOST:.1%}",
            bool(counted) and len(lost) < MOST_LOST * len(counted),
        ),
        Bar("longest gap", f"{gap:.1f} s {host}".strip(), f"under {LONGEST_GAP_S:g} s", gap < LONGEST_GAP_S),
        Bar(
            "conversations failed",
            f"{failed.total()} of {len(talks)}" + "".join(f", {count} {kind}" for kind, count in failed.items()),
            f"under {MOST_LOST:.1%}",
            bool(talks) and failed.total() < MOST_LOST * len(talks),
        ),
        Bar(
            "memory",
            f"{base.resident / 1e6:.1f} MB after {base.at:.0f} s, {end.resident / 1e6:.1f} MB at the end",
            f"+{GROWTH_BYTES / 1e6:g} MB",
            end.resident <= base.resident + GROWTH_BYTES,
        ),
        Bar(
            "descriptors",
            f"{usual} mostly until {base.at:.0f} s, {end.descriptors} at the end",
            "no more",
            end.descriptors <= usual,
        ),
        Bar("tracebacks", f"{tracebacks} in {len(found.log.splitlines())} lines of log", "none", tracebacks == 0),
        Bar("private sources outside", "; ".join(found.leaks[:3]) or "none", "none", not found.leaks),
        Bar(
            "seconds without a verdict",
            f"{len(excused.starved)} of the machine's, {excused.faulty_s:.0f} after faults, of {found.seconds:.0f}",
            f"{MOST_STARVED:.0%} of the machine's",
            starved <= MOST_STARVED,
        ),
        Bar("the soak itself", "; ".join(found.mishaps) or "as planned", "as planned", not found.mishaps),
    ]


class Excused:
    """The times that do not count."""

    def __init__(self, found: Findings) -> None:
        faults = [act for act in found.acts if act.kind == "fault"]
        self._faults = [(act.at, act.until + AFTER_FAULT_S) for act in faults]
        self.faulty_s = sum(until - at for at, until in self._faults)
        self.starved = {int(ping.at) for ping in found.pings if ping.host == CONTROL and ping.after is None}
        for before, after in itertools.pairwise(found.samples):
            if after.waited - before.waited > WAITED * (after.at - before.at):
                self.starved |= set(range(int(before.at), int(after.at) + 1))

    def at(self, moment: float) -> bool:
        return self.between(moment, moment)

    def between(self, at: float, until: float) -> bool:
        if any(begin <= until and at < end for begin, end in self._faults):
            return True
        return not self.starved.isdisjoint(range(int(at), int(until) + 1))


def _gaps(pings: Iterable[Ping]) -> Iterable[tuple[float, str]]:
    """Yield how long each host went without an answer, from the first ping lost to the last in a row."""
    by_host: dict[str, list[Ping]] = defaultdict(list)
    for ping in pings:
        by_host[ping.host].append(ping)
    for host, own in by_host.items():
        begun = None
        for ping in own:
            if ping.after is not None:
                begun = None
                continue
            begun = ping.at if begun is None else begun
            yield ping.at - begun, host


def _samples(found: Findings) -> tuple[Sample, Sample]:
    """Return the last sample of the first fifth of the time, and the last."""
    early = [sample for sample in found.samples if sample.at <= BASE * found.seconds]
    return (early or found.samples)[-1], found.samples[-1]


def describe(found: Findings, bars: Sequence[Bar]) -> str:
    """Return the table, and what else helps to find out what went wrong."""
    lines = [f"seed {found.seed}, {found.seconds:.0f} s"]
    for kind, title in (("inside", "attacks inside"), ("outside", "attacks outside"), ("fault", "faults")):
        names = Counter(act.name for act in found.acts if act.kind == kind)
        lines.append(f"{title}: " + ", ".join(f"{name} {count}" for name, count in sorted(names.items())))
    lines += table(bars)
    if found.ring_drops:
        lines.append(f"rings were full for {found.ring_drops} packets")
    return "\n".join(lines)


def table(bars: Sequence[Bar]) -> list[str]:
    """Return a line for each bar."""
    title, figure = (max(len(bar[column]) for bar in bars) for column in (0, 1))
    limit = max(len(bar.limit) for bar in bars)
    return [
        f"{bar.title:<{title}}  {bar.figure:<{figure}}  {bar.limit:<{limit}}  {'ok' if bar.is_kept else 'FAILED'}"
        for bar in bars
    ]


def losses(found: Findings) -> list[str]:
    """Return a line for each second in which something that counts was lost: how much, and what went on."""
    excused = Excused(found)
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for ping in found.pings:
        if ping.host != CONTROL and ping.after is None and not excused.at(ping.at):
            counts[int(ping.at)]["pings"] += 1
    for talk in found.talks:
        if not talk.is_good and not excused.between(talk.at, talk.until):
            counts[int(talk.at)][talk.kind] += 1
    lines = []
    for second, lost in sorted(counts.items()):
        attacks = [act.name for act in found.acts if act.kind != "fault" and act.at - 1 < second < act.until]
        faults = [act for act in found.acts if act.kind == "fault" and act.until <= second]
        last = f"; {faults[-1].name} {second - faults[-1].until:.0f} s before" if faults else ""
        what = ", ".join(f"{count} {kind}" for kind, count in lost.items())
        lines.append(f"{second} s: lost {what}; {', '.join(attacks)}{last}")
    return lines


def growth(found: Findings) -> list[str]:
    """Return a line for each sample in which more memory was resident than ever before: how much, and what went on."""
    lines = []
    most = 0
    for sample in found.samples:
        if sample.resident > most + GROWTH_BYTES / 10:
            going = [act.name for act in found.acts if act.at - 1 < sample.at < act.until + AFTER_FAULT_S]
            lines.append(f"{sample.at:.0f} s: {sample.resident / 1e6:.1f} MB; {', '.join(going)}")
            most = sample.resident
    return lines
