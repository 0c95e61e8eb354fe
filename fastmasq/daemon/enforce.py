"""Closes the sessions that the policy in force would not let open: `fastmasq reload --enforce`.

Each session is judged as its first packet would be: by the chains, on the links that routes lead over now; by hairpin;
by the forward, the redirect, the triggered range or the mark that its endpoint belongs to. Filtering and limits close
nothing: they are about packets and hosts, not about single sessions. A session whose links are missing just now is left
alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastmasq.clock import now_ns
from fastmasq.daemon import listing
from fastmasq.daemon.forwards import Forwards
from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.marks import Marks
from fastmasq.daemon.redirects import Redirects
from fastmasq.daemon.rows import route_rows
from fastmasq.daemon.triggers import Triggers
from fastmasq.path.rows import LOCAL, NO_LINK
from fastmasq.path.rules import BASES, SHOWS, RuleTable, Shown
from fastmasq.policy.redirects import Redirect
from fastmasq.table.keys import ends_of, protocol_of, side_of
from fastmasq.table.rows import (
    CLASS_NONE,
    MAPPING_BY_SESSION,
    MAPPING_FORWARD,
    MAPPING_ORPHAN,
    OUTBOUND,
    SESSION_HAIRPIN,
)
from fastmasq.wire.numbers import CLASS_TCP, ICMP, TCP, UDP

_INPUT, _FORWARD, _OUTPUT = (BASES.index(name) for name in ("input", "forward", "output"))


class Closed(NamedTuple):
    """A line for each session that was closed, and how many inside ends have been told."""

    lines: list[str]
    reset: int


class _Ends(NamedTuple):
    """What a packet shows: addresses, and ports or type and code."""

    saddr: int
    daddr: int
    sport: int = 0
    dport: int = 0


@dataclass
class Judge:
    """The policy in force, to be asked about sessions.

    chains: as the path has them, None without rules. outside: the number of the outside link. first, links: routes, by
    first address and number of the link they lead over. in_use: state of each mapping row. by_address: the
    protocols without ports that need no redirect.
    """

    chains: RuleTable | None
    default_forward: bool
    hairpin: bool
    outside: int
    first: np.ndarray
    links: np.ndarray
    forwards: Forwards
    redirects: Redirects
    triggers: Triggers
    marks: Marks
    in_use: np.ndarray
    by_address: frozenset[int]

    def why_not(self, row: np.void) -> str | None:
        """Return why a session would not be opened today; None when it would."""
        out = row["flow"][OUTBOUND]
        inside, inside_port, remote, remote_port = ends_of(out)
        protocol, ends = protocol_of(out), _Ends(inside, remote, inside_port, remote_port)
        external = _Ends(int(out["saddr"]), ends.daddr, int(out["sid"]), ends.dport)
        turns_round = bool(row["flags"] & SESSION_HAIRPIN)
        if side_of(out) == LOCAL:
            asking = _Ends(ends.daddr, external.saddr, ends.dport, external.sport)
            return self._refused(_INPUT, protocol, asking, self._link(ends.daddr), "REDIRECT")
        if turns_round and not self.hairpin:
            return "hairpin is off"
        in_use = self.in_use[row["mapping"]] if row["port_class"] != CLASS_NONE else None
        if in_use in (MAPPING_FORWARD, MAPPING_ORPHAN):
            endpoint = (external.saddr, int(row["port_class"]), external.sport)
            wanted = self.forwards.wanted.get(endpoint)
            if wanted is None or (ends.saddr, ends.sport) not in [target[:2] for target in wanted.targets]:
                return "no forward leads there"
            return None if turns_round else self._why_not_inbound(protocol, ends, external)
        if in_use == MAPPING_BY_SESSION:
            if not (
                self.triggers.may_lead_to(int(row["port_class"]), external.sport, ends.sport)
                or self.marks.may_lead_to(external.sport, ends.saddr, ends.sport)
            ):
                return "no triggered range and no mark leads there"
            return self._why_not_inbound(protocol, ends, external)
        if in_use is None and not (ends.sport or ends.dport):
            redirects = [one for one in self.redirects.redirects if _is_about(one, protocol, ends)]
            if any(int(ipaddress.IPv4Address(one.host)) == ends.saddr for one in redirects):
                return self._why_not_inbound(protocol, ends, external)
            if redirects or protocol not in self.by_address:
                return "no redirect leads there"
        return self._why_not_outbound(protocol, ends, external, turns_round)

    def _why_not_outbound(self, protocol: int, ends: _Ends, external: _Ends, turns_round: bool) -> str | None:
        inside, outside = self._link(ends.saddr), self._link(ends.daddr)
        found = self._refused(_INPUT, protocol, ends, inside)
        if found or turns_round:
            return found
        if not self.default_forward:
            found = self._refused(_FORWARD, protocol, ends, outside, "MASQ")
        return found or self._refused(_OUTPUT, protocol, external, outside)

    def _why_not_inbound(self, protocol: int, ends: _Ends, external: _Ends) -> str | None:
        arriving = _Ends(ends.daddr, external.saddr, ends.dport, external.sport)
        leaving = _Ends(ends.daddr, ends.saddr, ends.dport, ends.sport)
        return self._refused(_INPUT, protocol, arriving, self.outside) or self._refused(
            _OUTPUT, protocol, leaving, self._link(ends.saddr)
        )

    def _refused(self, base: int, protocol: int, ends: _Ends, link: int, wanted: str = "ACCEPT") -> str | None:
        """Ask a chain about the packet that begins a session; return what it says if that is not what is wanted."""
        if self.chains is None or link == NO_LINK:
            return None
        if protocol == ICMP:
            ends = ends._replace(sport=ends.dport, dport=0)  # the type of the query, and its code
        shows = SHOWS["ports"] if protocol in (ICMP, TCP, UDP) else 0
        shows |= (SHOWS["syn"] if protocol == TCP else 0) | (SHOWS["out"] if base == _OUTPUT else 0)
        verdict = self.chains.evaluate(base, Shown(**ends._asdict(), protocol=protocol, shows=shows, link=link))[0]
        return None if verdict == wanted else f"the chain {BASES[base]} says {verdict}"

    def _link(self, address: int) -> int:
        return int(self.links[np.searchsorted(self.first, address, side="right") - 1])


def _is_about(one: Redirect, protocol: int, ends: _Ends) -> bool:
    return one.protocol == protocol and ipaddress.IPv4Address(ends.daddr) in ipaddress.IPv4Network(one.source)


def close_forbidden(gateway: Gateway) -> Closed:
    """Close every session that the gateway's policy would not let open, a part of the table at a time."""
    judge = _judge(gateway)
    lines, reset, now = [], 0, now_ns()
    for first in range(0, gateway.table.fresh, listing.CHUNK):
        with gateway.forwarder.locked():
            rows = gateway.table.sessions[first : first + listing.CHUNK].copy()
        reasons = {number: judge.why_not(rows[number]) for number in np.flatnonzero(rows["state"])}
        doomed = [number for number, reason in reasons.items() if reason]
        closed = _close(gateway, first, rows, doomed)
        for number in closed:
            shown = listing.describe(rows[number], gateway.table, now)
            lines.append(f"{shown['protocol']} {shown['inside']} -> {shown['remote']}: {reasons[number]}")
        reset += gateway.host.reset(row for row in rows[closed] if row["port_class"] == CLASS_TCP)
    return Closed(lines, reset)


def _close(gateway: Gateway, first: int, rows: np.ndarray, doomed: Sequence[int]) -> list[int]:
    """Close rows that still hold the sessions they held when they were copied; return which."""
    closed = []
    with gateway.forwarder.locked():
        for number in doomed:
            present = gateway.table.sessions[first + number]
            if present["state"] and (present["flow"]["key0"] == rows[number]["flow"]["key0"]).all():
                gateway.table.close(first + number)
                closed.append(int(number))
    return closed


def _judge(gateway: Gateway) -> Judge:
    first, routes = route_rows(gateway.watch.snapshot().routes, gateway.links.number_of())
    return Judge(
        chains=gateway.rules.judge(),
        default_forward=gateway.rules.rule_set.default_forward,
        hairpin=gateway.settings.masquerade.hairpin,
        outside=next(number for number, link in gateway.links.links.items() if link.role == "outside"),
        first=first,
        links=routes["link"],
        forwards=gateway.forwards,
        redirects=gateway.redirects,
        triggers=gateway.triggers,
        marks=gateway.marks,
        in_use=gateway.table.mappings["in_use"],
        by_address=gateway.by_address,
    )
