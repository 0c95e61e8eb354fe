"""What was carried over from iptables or nftables, and how it is written down: a configuration and a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal, NamedTuple

from msgspec import Struct

from fastmasq.legacy.save import rule_line
from fastmasq.policy.chains import ACCEPT, DENY, FORWARD, RuleSet

RULES_FILE = "/etc/fastmasq.rules"
MASQUERADED_PORTS = (61000, 65095)  # the range of 1999, set apart where rules must tell sessions from the host's own

Kind = Literal["left out", "changed", "not needed"]


class Note(Struct, frozen=True):
    """What became of a rule that is not there any more, or not as it was."""

    line: int
    kind: Kind
    text: str
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.kind}: {self.text}: {self.why}"


class Forward(NamedTuple):
    """A [[forward]] of the configuration; for a range of ports, `to` names the first."""

    protocol: str
    listen: str
    to: str


class Redirect(NamedTuple):
    """A [[redirect]] of the configuration."""

    protocol: int
    to: str


class Carried(Struct, kw_only=True):
    """What came of it. needs_rules: whether `rules` says more than that everything from inside is masqueraded."""

    inside: list[str]
    outside: str
    rules: RuleSet
    needs_rules: bool = False
    own_ports: bool = False
    forwards: list[Forward] = []
    redirects: list[Redirect] = []
    notes: list[Note] = []


def toml(carried: Carried) -> str:
    """Return a fastmasq.toml. Where `needs_rules`, it names RULES_FILE, which `script` is for."""
    parts = [f"[interfaces]\ninside = {json.dumps(carried.inside)}\noutside = {json.dumps(carried.outside)}\n"]
    if carried.own_ports:
        first, last = MASQUERADED_PORTS
        parts.append(f'[masquerade]\n# The rules let exactly these ports by.\nports = "{first}-{last}"\n')
    if carried.needs_rules:
        parts.append(f'[rules]\nfiles = ["{RULES_FILE}"]\n')
    for forward in carried.forwards:
        keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in forward._asdict().items())
        parts.append(f"[[forward]]\n{keys}")
    for redirect in carried.redirects:
        parts.append(f"[[redirect]]\nprotocol = {redirect.protocol}\nto = {json.dumps(redirect.to)}\n")
    return "\n".join(parts)


def script(carried: Carried) -> Iterator[str]:
    """Yield the lines of a script of ipchains commands; user chains come first, since rules jump to them.

    A chain forward without rules gets ACCEPT by way of DENY: added to running rules it would else stay the built-in
    policy, and all would be masqueraded.
    """
    chains = carried.rules.chains.values()
    for chain in chains:
        if chain.policy is None:
            yield f"ipchains -N {chain.name}"
        elif chain.name == FORWARD and chain.policy == ACCEPT and not chain.rules:
            yield from (f"ipchains -P {FORWARD} {policy}" for policy in (DENY, ACCEPT))
        elif chain.policy != ACCEPT or chain.rules or chain.name == FORWARD:
            yield f"ipchains -P {chain.name} {chain.policy}"
    for chain in sorted(chains, key=lambda chain: chain.policy is not None):
        for counted in chain.rules:
            yield f"ipchains {rule_line(chain.name, counted.rule)}"
