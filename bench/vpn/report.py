"""The figures of one simulation, and all of them as a table and as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmasq.vpn.isakmp import IpsecSettings
from fastmasq_bench.vpn.simulation import SECOND, Scenario, Simulation

_MS = SECOND // 1000


def measure(
    hosts: int, rtt_ms: int, loss: float, spread_s: int, seed: int, name: str, *, evidence: bool
) -> dict[str, Any]:  # fmt: skip
    """Return the figures of one simulation: shares of SAs with inbound traffic, and seconds a start waited.

    wrong: its inbound SPI was given to another host alone. copied: its packets went to several hosts for a while.
    waits: of every SA that sent anything, from its first packet at the gateway to the first that was let through.
    never: starts of which none was let through before the SA was given up, or the end.
    """
    simulation = Simulation(
        Scenario(hosts=hosts, rtt=rtt_ms * _MS, loss=loss, seed=seed), IpsecSettings(evidence=evidence)
    )
    sas = simulation.run()
    seen = [sa for sa in sas if sa.seen]
    tried = [sa for sa in sas if sa.tried is not None]
    waits = sorted((sa.passed - sa.tried) / SECOND for sa in tried if sa.passed is not None)
    return {
        "hosts": hosts,
        "rtt_ms": rtt_ms,
        "loss": loss,
        "algorithm": name,
        "sas": len(seen),
        "wrong": _share(sum(sa.wrong for sa in seen), len(seen)),
        "copied": _share(sum(sa.copied for sa in seen), len(seen)),
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
        "loss",
        "rules",
        "SAs",
        "wrong",
        "copied",
        "had to wait",
        "wait 95 %",
        "longest",
        "never",
    )
    for title in titles:
        made.add_column(title, justify="right")
    for one in figures:
        made.add_row(
            str(one["hosts"]), str(one["rtt_ms"]), f"{one['loss']:.0%}", one["algorithm"], str(one["sas"]),
            f"{one['wrong']:.1%}", f"{one['copied']:.1%}", f"{one['waited']:.1%}",
            f"{one['wait_95']:.1f} s", f"{one['wait_most']:.1f} s", str(one["never"]),
        )  # fmt: skip
    return made


def draw(figures: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a chart: the share of misassociated SAs over the number of hosts, one line for each condition."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    conditions = dict.fromkeys((one["rtt_ms"], one["loss"], one["algorithm"]) for one in figures)
    for rtt_ms, loss, name in conditions:
        chosen = [one for one in figures if (one["rtt_ms"], one["loss"], one["algorithm"]) == (rtt_ms, loss, name)]
        axes.plot(
            [one["hosts"] for one in chosen],
            [100 * one["wrong"] for one in chosen],
            linestyle="--" if name == "1999" else "-",
            marker=".",
            label=f"{name}, {rtt_ms} ms, {loss:.0%} lost",
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
