"""What a forwarder that only observes would have done, for people: in `fastmasq status`, and at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastmasq.wire.numbers import BY_NAME, ICMP

_NAMES = {number: name for name, number in BY_NAME.items()}


def sentence(report: dict[str, Any]) -> str:
    """Return the line that sums up what was observed; report is the answer of the method `status`."""
    counts = report["verdicts"]
    reasons = [(drop["packets"], drop["reason"]) for drop in report["drops"]]
    listed = ", ".join(f"{packets} {reason}" for packets, reason in sorted(reasons, key=lambda pair: -pair[0]))
    return (
        f"fastmasq only observes: would forward {counts['forward']} packets, would drop {counts['drop']}"
        f"{f' ({listed})' if listed else ''}, would open {report['sessions']['opened_total']} sessions"
    )


def tables(observed: dict[str, Any]) -> Iterator[Any]:
    """Yield the tables of what only an observer tells: sessions by protocol, forwards used, and flows dropped."""
    from fastmasq.cli.render import make_table

    opened = make_table("Protocol", ">Sessions", title="Sessions opened")
    for protocol, count in observed["opened"].items():
        opened.add_row(protocol, str(count))
    yield opened
    if observed["forwards"]:
        forwards = make_table("Forward", ">Sessions", title="Forwards used")
        for row in observed["forwards"]:
            forwards.add_row(row["forward"], str(row["sessions"]))
        yield forwards
    if observed["dropped"]:
        yield _dropped(observed)


def verdicts(report: dict[str, Any]) -> Any:
    """Return the table of packets by verdict."""
    from fastmasq.cli.render import make_table

    counts, others = report["verdicts"], report["observed"]["answers_to_host"]
    table = make_table(">Packets", "Verdict", "", title="Packets")
    table.columns[2].no_wrap = False
    answers = f"; {others} of them answer what its kernel sends or translates, in sessions that nobody here saw begin"
    for verdict, meaning in (
        ("forward", "sent on, translated or routed"),
        ("deliver", f"for the host itself{answers if others else ''}"),
        ("reply", "ICMP errors of our own, to senders of dropped packets"),
        ("drop", "see below"),
    ):
        table.add_row(str(counts[verdict]), verdict, meaning)
    return table


def _dropped(observed: dict[str, Any]) -> Any:
    from fastmasq.cli.render import make_table

    table = make_table(">Packets", "Reason", "Rule", "Link", "Protocol", "From", "To", title="Flows dropped")
    for row in observed["dropped"]:
        protocol, port = _NAMES.get(row["protocol"], str(row["protocol"])), row["port"]
        to = row["destination"]
        if port is not None and row["protocol"] == ICMP:
            protocol += f" {port}"
        elif port is not None:
            to += f":{port}"
        decided = (row["reason"], row["rule"] or "-", row["link"] or "-")
        table.add_row(str(row["packets"]), *decided, protocol, row["source"], to)
    if observed["dropped_others"]:
        table.add_row(str(observed["dropped_others"]), "of other flows", *[""] * 5)
    return table
