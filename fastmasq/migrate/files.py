"""What was carried over from iptables or nftables, and how it is written down: a configuration and a script.

Where something was left out, each file begins with what.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal, NamedTuple

from msgspec import Struct

from fastmasq.legacy.save import rule_line
from fastmasq.policy.chains import ACCEPT, DENY, FORWARD, RuleSet

RULES_FILE = "/etc/fastmasq.rules"
MASQUERADED_PORTS = (61000, 65095)  # the range of 1999, set apart where rules must tell sessions from the host's own

Kind = Literal["left out", "changed", "left to the kernel"]


class Note(Struct, frozen=True):
    """What became of a rule that is not there any more, or not as it was.

    "left out": it is missing, and what it may have kept back is not let through. "changed": it is there, and not quite
    the same. "left to the kernel": it goes on there, and fastmasq does not touch it.
    """

    place: str
    kind: Kind
    text: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}: {self.text}: {self.why}"


class Forward(NamedTuple):
    """A [[forward]] of the configuration; for a range of ports, `to` names the first."""

    protocol: str
    listen: str
    to: str


class Redirect(NamedTuple):
    """A [[redirect]] of the configuration; source is "" for everybody."""

    protocol: int
    to: str
    source: str = ""


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

    @property
    def missing(self) -> list[Note]:
        return [note for note in self.notes if note.kind == "left out"]


def toml(carried: Carried) -> str:
    """Return a fastmasq.toml. Where `needs_rules`, it names RULES_FILE, which `script` is for."""
    parts = ["".join(f"{line}\n" for line in _missing(carried))] if carried.missing else []
    parts.append(f"[interfaces]\ninside = {json.dumps(carried.inside)}\noutside = {json.dumps(carried.outside)}\n")
    if carried.own_ports:
        first, last = MASQUERADED_PORTS
        parts.append(f'[masquerade]\n# The rules let exactly these ports by.\nports = "{first}-{last}"\n')
    if carried.needs_rules:
        parts.append(f'[rules]\nfiles = ["{RULES_FILE}"]\n')
    for forward in carried.forwards:
        keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in forward._asdict().items())
        parts.append(f"[[forward]]\n{keys}")
    for redirect in carried.redirects:
        source = f"from = {json.dumps(redirect.source)}\n" if redirect.source else ""
        parts.append(f"[[redirect]]\nprotocol = {redirect.protocol}\nto = {json.dumps(redirect.to)}\n{source}")
    return "\n".join(parts)


def script(carried: Carried) -> Iterator[str]:
    """Yield the lines of a script of ipchains commands; user chains come first, since rules jump to them.

    A chain forward without rules gets ACCEPT by way of DENY: added to running rules it would else stay the built-in
    policy, and all would be masqueraded.
    """
    yield from _missing(carried)
    if not carried.needs_rules:
        yield "# No rules are needed: without any, everything from inside is masqueraded."
        return
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


def _missing(carried: Carried) -> Iterator[str]:
    if carried.missing:
        yield "# Not carried over from the rules that were read; nothing passes for which they would have to be asked:"
        for note in carried.missing:
            yield f"#   {_one_line(note)}"


def _one_line(note: Note) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in str(note))
