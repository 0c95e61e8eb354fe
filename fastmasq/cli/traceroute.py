"""`fastmasq traceroute`: how far GRE or ESP gets towards a host, and UDP beside it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from fastmasq.cli.options import json_option

if TYPE_CHECKING:
    from fastmasq.tools.traceroute.probes import ProbeSockets
    from fastmasq.tools.traceroute.trace import Answer, Hop, Probes, Protocol, Trace

_WIDTH = 36  # columns of one protocol


@click.command()
@click.argument("host")
@click.option("--gre", "protocol", flag_value="gre", help="Probe with PPTP's GRE (IP protocol 47).")
@click.option("--esp", "protocol", flag_value="esp", help="Probe with IPsec's ESP (IP protocol 50).")
@click.option("--udp", "protocol", flag_value="udp", help="Probe with UDP alone, as the usual traceroute.")
@click.option("--max-hops", "most_hops", metavar="COUNT", type=click.IntRange(1, 255), default=30, show_default=True,
              help="The largest TTL to try.")  # fmt: skip
@click.option("--queries", metavar="COUNT", type=click.IntRange(1, 10), default=3, show_default=True,
              help="Tries for each hop and protocol, until one is answered.")  # fmt: skip
@click.option("--wait", "patience_s", metavar="SECONDS", type=click.FloatRange(0.01, 60), default=1.0,
              show_default=True, help="How long to wait for an answer.")  # fmt: skip
@json_option
def traceroute(
    host: str, protocol: Protocol | None, most_hops: int, queries: int, patience_s: float, as_json: bool
) -> None:
    """Show how far GRE or ESP gets, and UDP beside it.

    HOST is a name or an IPv4 address. Packets with a rising TTL go out, and each router answers the one whose TTL ends
    at it. Where UDP goes on and the protocol stops, it is filtered; where both stop, the path is broken. Needs root.
    Exit status: 0 the protocol passes as far as can be seen, 1 it does not.
    """
    from fastmasq.cli.render import print_json
    from fastmasq.tools.resolver import resolve
    from fastmasq.tools.traceroute.probes import ProbeSockets
    from fastmasq.tools.traceroute.trace import GOOD, NAMES, NUMBERS, Trace

    if protocol is None:
        raise click.UsageError("which protocol? write --gre for PPTP, --esp for IPsec, or --udp.")
    destination = resolve(host)
    protocols: list[Protocol] = [protocol] if protocol == "udp" else [protocol, "udp"]
    trace = Trace(destination, protocols, most_hops)
    with contextlib.closing(ProbeSockets(destination, [NUMBERS[each] for each in protocols])) as sockets:
        if not as_json:
            title = f" to {host} ({destination}), at most {most_hops} hops"
            click.echo(f"{' and '.join(NAMES[each] for each in protocols)}{title}")
        for hops in _run(trace, sockets, queries, patience_s):
            if not as_json:
                click.echo(_line(hops, protocols))
    finding = trace.finding()
    if as_json:
        print_json(_report(host, trace))
    else:
        click.echo(f"\n{finding.verdict}: {finding.said}")
        if finding.hint:
            click.echo(f"  {finding.hint}")
    sys.exit(0 if finding.verdict in GOOD else 1)


def _run(trace: Trace, sockets: ProbeSockets, queries: int, patience_s: float) -> Iterator[dict[Protocol, Hop]]:
    """Send and listen, hop by hop, until the trace is over; yield each hop."""
    import random

    from fastmasq.tools.traceroute.trace import Probes

    bases = {"gre": random.randrange(0x10000), "esp": 0, "udp": sockets.udp_port}
    probes = {protocol: Probes(protocol, trace.destination, bases[protocol]) for protocol in trace.hops}
    while True:
        ttl, wanted = trace.wanted()
        if not wanted:
            return
        hops = _hop([probes[protocol] for protocol in wanted], sockets, ttl, queries, patience_s)
        trace.add(hops)
        yield hops


def _hop(
    running: list[Probes], sockets: ProbeSockets, ttl: int, queries: int, patience_s: float
) -> dict[Protocol, Hop]:
    """Try one TTL until each protocol has an answer. Routers limit their ICMP errors, so no more probes are sent."""
    from fastmasq.clock import now_ns
    from fastmasq.tools.traceroute.trace import FIRST_PORT, NUMBERS, Hop
    from fastmasq.units import NS_PER_SECOND

    answers: dict[Protocol, list[Answer | None]] = {probes.protocol: [] for probes in running}
    for number in range((ttl - 1) * queries, ttl * queries):
        open_ = [probes for probes in running if not any(answers[probes.protocol])]
        sent = {}
        for probes in open_:
            sent[probes.protocol] = now_ns()
            port = FIRST_PORT + number if probes.protocol == "udp" else 0
            sockets.send(NUMBERS[probes.protocol], probes.octets(number), ttl, port)
        found = _listen(open_, sockets, number, sent, now_ns() + round(patience_s * NS_PER_SECOND))
        for probes in open_:
            answers[probes.protocol].append(found.get(probes.protocol))
        if all(map(any, answers.values())):
            break
    return {protocol: Hop(ttl, tuple(tried)) for protocol, tried in answers.items()}


def _listen(
    running: list[Probes], sockets: ProbeSockets, number: int, sent: dict[Protocol, int], deadline: int
) -> dict[Protocol, Answer]:
    """Return the answers to the probes of this number, until all have come or the time is up."""
    from fastmasq.clock import now_ns
    from fastmasq.tools.traceroute.trace import Answer, IcmpError
    from fastmasq.units import NS_PER_SECOND

    found: dict[Protocol, Answer] = {}
    while len(found) < len(running):
        packet = sockets.receive((deadline - now_ns()) / NS_PER_SECOND)
        if packet is None:
            break
        error = IcmpError.parse(packet)
        for probes in running if error is not None else ():
            if probes.number_of(error) == number:
                elapsed = now_ns() - sent[probes.protocol]
                found.setdefault(probes.protocol, Answer(error.sender, error.type, error.code, elapsed))
    return found


def _line(hops: dict[Protocol, Hop], protocols: list[Protocol]) -> str:
    """Return one hop's line: each protocol in its column."""
    from fastmasq.tools.traceroute.trace import NAMES

    words = (f"{NAMES[each]} {_answers(hops[each].answers):<{_WIDTH}}" for each in protocols if each in hops)
    return f"{next(iter(hops.values())).ttl:>3}  {''.join(words)}".rstrip()


def _answers(answers: tuple[Answer | None, ...]) -> str:
    """Return `*` for each probe without an answer, then the address that answered, its time, and its refusal."""
    return " ".join(
        f"{answer.address} {answer.elapsed_ns / 1e6:.2f} ms {answer.mark}".rstrip() if answer is not None else "*"
        for answer in answers
    )


def _report(host: str, trace: Trace) -> dict[str, Any]:
    import msgspec

    ways = {
        protocol: [
            {
                "ttl": hop.ttl,
                "answers": [
                    answer
                    and {
                        "address": answer.address,
                        "type": answer.type,
                        "code": answer.code,
                        "ms": answer.elapsed_ns / 1e6,
                    }
                    for answer in hop.answers
                ],
            }
            for hop in hops
        ]
        for protocol, hops in trace.hops.items()
    }
    return {"host": host, "address": trace.destination, "hops": ways, **msgspec.to_builtins(trace.finding())}
