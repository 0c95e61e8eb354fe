"""What comes from outside for the host itself, that nobody here has asked for, gets no answer: a chain of nftables.

The kernel follows the host's own connections (conntrack), and what belongs to one passes; nothing that is forwarded
comes by here. The chain is asked after the rules of the chain input, at the hook of what is for the host: what a rule
there has accepted passes, and carries a priority of its own for that, which nothing reads on the way in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastmasq.kernel.host_rules.match import spelled

NAME = "unsolicited"
HOOK = "{ type filter hook input priority 10; policy accept; }"  # after those of others, which may drop it as well
ACCEPT_BY_RULE = "meta priority set fa57:1 accept"

Range = tuple[int, int]
Connection = tuple[str, int, int]
"""Address and port of the other end, and our port."""


@dataclass(frozen=True)
class Gate:
    """What is open on these interfaces: ports of TCP and UDP, protocols without ports, and ping.

    `known` are connections that began before, of which conntrack cannot tell.
    """

    interfaces: Sequence[str]
    tcp: Sequence[Range] = ()
    udp: Sequence[Range] = ()
    protocols: Sequence[int] = ()
    ping: bool = False
    known: Sequence[Connection] = ()


def rules(gate: Gate, *, behind_rules: bool) -> Iterator[str]:
    """Yield the rules of the chain, behind those of the chain input where there are any."""
    names = ", ".join(f'"{name}"' for name in gate.interfaces)
    yield f"iifname != {{ {names} }} accept"
    if behind_rules:
        yield "meta priority fa57:1 accept"
    yield "ct state { established, related } accept"
    if gate.known:
        known = ", ".join(" . ".join(map(str, each)) for each in gate.known)
        yield f"ip saddr . tcp sport . tcp dport {{ {known} }} accept"
    yield "udp sport 67 udp dport 68 accept"  # an answer of DHCP, whose question was no packet of IP's
    for protocol, ranges in (("tcp", gate.tcp), ("udp", gate.udp)):
        if ranges:
            yield f"{protocol} dport {{ {', '.join(map(spelled, ranges))} }} accept"
    if gate.protocols:
        yield f"ip protocol {{ {', '.join(map(str, gate.protocols))} }} accept"
    if gate.ping:
        yield "icmp type echo-request accept"
    yield "drop"
