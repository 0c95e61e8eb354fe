"""What a restart soak has found, and whether it keeps what is promised: figures, bars, and what is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from tests.soak.restart.hosts import Chat, Datagram, File, Ports, Visit
from tests.soak.restart.tunnels import Tunnel
from tests.soak.verdict import Bar, table

MEDIAN_GAP_S, LONGEST_GAP_S = 0.6, 1.5  # of the stream, when another process must start first
UPGRADE = "upgrade"
UPGRADE_GAP_S = 0.035  # two datagrams in a row, of a hundred a second
DISPLACED = 0.9  # of those who use a port that others use


@dataclass
class Restart:
    """From when to when one took, in seconds; how much there was before and was adopted, by kind; dropped by reason.

    `missing`: sessions that were not listed any more. `opened_anew`: how many more there were before the next one than
    those before and the connections begun since.
    """

    kind: str
    at: float
    until: float
    before: dict[str, int]
    adopted: dict[str, int]
    dropped: dict[str, int]
    missing: int
    opened_anew: int = 0

    @property
    def complaint(self) -> str:
        """What did not go as it should, empty if all did."""
        dropped = [f"dropped {count}: {reason}" for reason, count in self.dropped.items()]
        adopted = ((kind, self.adopted.get(kind, 0), count) for kind, count in self.before.items())
        wrong = [f"adopted {found} of {count} {kind}" for kind, found, count in adopted if not self._fits(found, count)]
        wrong += [f"{self.missing} not listed"] if self.missing else []
        return ", ".join(wrong + dropped)

    def _fits(self, adopted: int, before: int) -> bool:
        """Strangers go on until the last moment of an upgrade; the count before the next one tells if too many were."""
        return adopted >= before if self.kind == UPGRADE else adopted == before


@dataclass
class Findings:
    """All that a soak with so many downloads of so many seconds has seen."""

    seconds: float
    downloads: int
    restarts: list[Restart] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    chats: Sequence[Chat] = ()
    datagrams: Sequence[Datagram] = ()
    tunnels: Sequence[Tunnel] = ()
    visits: Sequence[Visit] = ()
    leaks: list[str] = field(default_factory=list)
    log: str = ""
    mishaps: list[str] = field(default_factory=list)  # what of the soak itself did not go as planned


def judge(found: Findings) -> list[Bar]:
    """Return the bars with what was found."""
    dead = _reasons(chat.failure for chat in found.chats)
    broken = _reasons(file.failure for file in found.files)
    refused = _reasons(visit.failure for visit in found.visits)
    silent = _reasons(f"{tunnel.name}: {tunnel.failure}" for tunnel in found.tunnels if tunnel.failure)
    pings = sum(tunnel.pings for tunnel in found.tunnels)
    lines = sum(chat.lines for chat in found.chats)
    seen = sorted({datagram.port for datagram in found.datagrams if datagram.port})
    pairs = [each.ports for each in (*found.files, *found.chats)]
    displaced = sum(_is_displaced(ports) for ports in pairs)
    complaints = [
        f"{restart.kind} at {restart.at:.0f} s: {each}" for restart in found.restarts if (each := restart.complaint)
    ]
    anew = sum(abs(restart.opened_anew) for restart in found.restarts)
    sessions = [restart.before["sessions"] for restart in found.restarts]
    tracebacks = found.log.count("Traceback")
    return [
        Bar(
            "files whole",
            _good(len(found.files), broken),
            f"all {2 * found.downloads}",
            len(found.files) == 2 * found.downloads and not broken,
        ),
        Bar(
            "TCP sessions alive",
            f"{_good(len(found.chats), dead)}, {lines} lines answered",
            "all",
            bool(found.chats) and not dead,
        ),
        Bar(
            "tunnels alive",
            f"{_good(len(found.tunnels), silent)}, {pings} pings answered",
            "all",
            bool(found.tunnels) and not silent,
        ),
        Bar("UDP endpoint's external port", ", ".join(map(str, seen)) or "none", "one", len(seen) == 1),
        Bar(
            "connections by the forward",
            _good(len(found.visits), refused),
            "all",
            bool(found.visits) and not refused,
        ),
        Bar(
            "sessions adopted",
            _first(complaints) or f"all, {min(sessions, default=0)} to {max(sessions, default=0)}",
            "as many as there were",
            bool(sessions) and not complaints,
        ),
        Bar("opened in their place", str(anew), "none", anew == 0),
        *_bars_of_gaps(found),
        Bar(
            "with another port outside",
            f"{displaced} of {len(pairs)}",
            f"at least {DISPLACED:.0%}",
            bool(pairs) and displaced >= DISPLACED * len(pairs),
        ),
        Bar("private sources outside", "; ".join(found.leaks[:3]) or "none", "none", not found.leaks),
        Bar("tracebacks", f"{tracebacks} in {len(found.log.splitlines())} lines of log", "none", tracebacks == 0),
        Bar("the soak itself", "; ".join(found.mishaps) or "as planned", "as planned", not found.mishaps),
    ]


def _bars_of_gaps(found: Findings) -> list[Bar]:
    away = gaps(found, lambda restart: restart.kind != UPGRADE)
    upgraded = gaps(found, lambda restart: restart.kind == UPGRADE)
    return [
        _median_bar("UDP gap, median", away, MEDIAN_GAP_S),
        Bar(
            "UDP gap, longest",
            f"{max(away, default=0):.2f} s",
            f"none over {LONGEST_GAP_S:g} s",
            max(away, default=0) <= LONGEST_GAP_S,
        ),
        _median_bar("UDP gap of upgrades, median", upgraded, UPGRADE_GAP_S),
    ]


def _median_bar(title: str, found: Sequence[float], limit: float) -> Bar:
    usual = median(found) if found else 0.0
    return Bar(title, f"{usual:.2f} s", f"under {limit:g} s", bool(found) and usual < limit)


def gaps(found: Findings, wanted: Callable[[Restart], bool]) -> list[float]:
    """Return for each restart that is wanted how long the stream was without an answer at most until the next one."""
    result = []
    ends = [restart.at for restart in found.restarts[1:]] + [float("inf")]
    for restart, end in zip(found.restarts, ends, strict=True):
        if wanted(restart):
            during = [datagram for datagram in found.datagrams if restart.at - 0.1 <= datagram.at < end]
            result.append(_longest_gap(during))
    return result


def _longest_gap(datagrams: Sequence[Datagram]) -> float:
    """Return the longest time from a datagram that was answered to the next, if there are others between."""
    heard = [number for number, datagram in enumerate(datagrams) if datagram.port]
    edges = [0, *heard, len(datagrams) - 1] if datagrams else []
    return max((datagrams[b].at - datagrams[a].at for a, b in pairwise(edges) if b - a > 1), default=0.0)


def _first(complaints: Sequence[str]) -> str:
    more = f"; {len(complaints) - 1} more like it" if len(complaints) > 1 else ""
    return complaints[0] + more if complaints else ""


def _is_displaced(ports: Ports) -> bool:
    return ports.seen not in (0, ports.own)


def _reasons(failures: Iterable[str]) -> Counter[str]:
    return Counter(failure for failure in failures if failure)


def _good(count: int, wrong: Counter[str]) -> str:
    """Say how many of so many were good, and what was wrong with the others."""
    return f"{count - wrong.total()} of {count}" + "".join(
        f", {each} {reason}" for reason, each in wrong.most_common(3)
    )


def describe(found: Findings, bars: Sequence[Bar]) -> str:
    """Return the table, and what was done."""
    kinds = Counter(restart.kind for restart in found.restarts)
    done = ", ".join(f"{count} by {kind}" for kind, count in kinds.items())
    away = [restart.until - restart.at for restart in found.restarts]
    took = f", forwarding again after {median(away):.2f} s, {max(away):.2f} s at most" if away else ""
    lines = [
        f"restarts: {done or 'none'}{took}",
        f"hosts: twice {found.downloads} files of {found.seconds:g} s, {len(found.chats)} chats, "
        f"{len(found.datagrams)} datagrams, {len(found.visits)} strangers",
    ]
    return "\n".join(lines + table(bars))
