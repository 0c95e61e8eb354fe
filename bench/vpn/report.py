"""The figures of one simulation, and all of them as a table and as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastmasq.trackers.vpn.isakmp import IpsecSettings
from fastmasq_bench.vpn.simulation import SECOND, Scenario, Simulation

MS = SECOND // 1000


def measure(scenario: Scenario, name: str, *, seeds: int = 1, evidence: bool) -> dict[str, Any]:
    """Return the figures of a scenario over some seeds: shares of SAs with inbound traffic, seconds a start waited.

    wrong: its inbound SPI was given to another host alone; astray: and that was so to the end. copied: its packets went
    to several hosts for a while. copies, missed: of all inbound packets, those that went to several hosts, and those
    that did not go to their own. waits: of every SA that sent anything, from its first packet at the gateway to the
    first that was let through. never: starts of which none was let through before the SA was given up, or the end.
    """
    sas = [
        sa
        for seed in range(scenario.seed, scenario.seed + seeds)
        for sa in Simulation(replace(scenario, seed=seed), IpsecSettings(evidence=evidence)).run()
    ]
    seen = [sa for sa in sas if sa.packets]
    tried = [sa for sa in sas if sa.tried is not None]
    packets = sum(sa.packets for sa in seen)
    waits = sorted((sa.passed - sa.tried) / SECOND for sa in tried if sa.passed is not None)
    return {
        "hosts": scenario.hosts,
        "rtt_ms": scenario.rtt // MS,
        "behind_ms": scenario.behind // MS,
        "loss": scenario.loss,
        "algorithm": name,
        "sas": len(seen),
        "wrong": _share(sum(sa.wrong for sa in seen), len(seen)),
        "astray": _share(sum(sa.astray for sa in seen), len(seen)),
        "copied": _share(sum(sa.copies > 0 for sa in seen), len(seen)),
        "copies": _share(sum(sa.copies for sa in seen), packets),
        "missed": _share(sum(sa.missed for sa in seen), packets),
        "waited": _share(sum(wait > 0 for wait in waits), len(waits)),
        "wait_95": _quantile(waits, 0.95),
        "wait_most": waits[-1] if waits else 0.0,
        "never": len(tried) - len(waits),
    }


def table(figures: Sequence[dict[str, Any]]) -> Any:
    """Return a rich table with one line for each simulation."""
    from rich.table import Table

    made = Table(box=None, header_style="dim", pad_edge=False)
    titles = (
        "hosts",
        "rtt ms",
        "behind ms",
        "loss",
        "rules",
        "SAs",
        "wrong",
        "to the end",
        "copied",
        "copies",
        "missed",
        "had to wait",
        "wait 95 %",
        "longest",
        "never",
    )
    for title in titles:
        made.add_column(title, justify="right")
    for one in figures:
        made.add_row(
            str(one["hosts"]), str(one["rtt_ms"]), str(one["behind_ms"]), f"{one['loss']:.0%}", one["algorithm"],
            str(one["sas"]), f"{one['wrong']:.1%}", f"{one['astray']:.1%}", f"{one['copied']:.1%}",
            f"{one['copies']:.1%}", f"{one['missed']:.1%}",
            f"{one['waited']:.1%}", f"{one['wait_95']:.1f} s", f"{one['wait_most']:.1f} s", str(one["never"]),
        )  # fmt: skip
    return made


def draw(figures: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a chart: the share of misassociated SAs over the number of hosts, one line for each condition."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    lines: dict[tuple[int, int, float, str], list[dict[str, Any]]] = {}
    for one in figures:
        lines.setdefault((one["rtt_ms"], one["behind_ms"], one["loss"], one["algorithm"]), []).append(one)
    for (rtt_ms, behind_ms, loss, name), chosen in lines.items():
        axes.plot(
            [one["hosts"] for one in chosen],
            [100 * one["wrong"] for one in chosen],
            linestyle="--" if name == "1999" else "-",
            marker=".",
            label=f"{name}, {rtt_ms} + {behind_ms} ms, {loss:.0%} lost",
        )
    axes.set_xlabel("inside hosts of one server")
    axes.set_ylabel("SAs given to the wrong host, %")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the sorted values does not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0
