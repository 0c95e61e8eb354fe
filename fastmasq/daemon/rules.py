"""The rule set of the running forwarder: listed, changed and questioned over the control socket.

Methods, with their parameters and results in JSON. Numbers are in host order; what a rule and its match hold is in
policy/chains.py, and keys at their default are left out: `{}` is the rule that counts everything.

    rules {"chain": "input", "zero": true}              both optional; zero lists first, then sets counters to zero
     -> {"generation": 7, "default_forward": false, "chains": [CHAIN, ...]}
        CHAIN is {"name": "input", "policy": "DENY", "packets": 3, "bytes": 180, "references": 0,
                  "rules": [{"rule": RULE, "packets": 1, "bytes": 60}, ...]}
        RULE is {"match": {"source": [167772160, 4278190080], "protocol": 6, "destination_ports": [[80, 80]]},
                 "target": "ACCEPT", "log": true, "mark": ["set", 1], "tos": [255, 0]}
        chains come in the order of their making: input, forward, output, then user chains; a user chain's policy is
        null. The accounting chain "acct" comes last.

    rules.change {"changes": [CHANGE, ...]}             all of them in order, or none
     -> {"generation": 8}
        CHANGE is {"do": "append", "chain": "input", "rule": RULE}
                  {"do": "insert", "chain": "input", "rule": RULE, "number": 1}
                  {"do": "replace", "chain": "input", "rule": RULE, "number": 1}
                  {"do": "delete", "chain": "input", "number": 1}
                  {"do": "delete_equal", "chain": "input", "rule": RULE}
                  {"do": "flush", "chain": "input"}, {"do": "zero", "chain": "input"}, or without chain: all
                  {"do": "policy", "chain": "forward", "target": "DENY"}
                  {"do": "new_chain", "chain": "vpn"}
                  {"do": "delete_chain", "chain": "vpn"}, or without chain: all user chains
        which is policy.changes.Change, and msgspec.to_builtins(change) makes it.

    rules.check {"chain": "input", "packet": PACKET}    counts nothing
     -> {"verdict": "REJECT", "redirect_port": 0, "mark": 0, "tos": 0,
         "steps": [{"chain": "input", "number": 2, "target": "vpn"}, {"chain": "vpn", "number": 1, "target": "REJECT"}]}
        PACKET is policy.evaluate.Packet, the result its Decision.

A change that cannot be made is a RuleError here and at the client, with the same `reason`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from fastmasq.errors import ConfigurationError
from fastmasq.observe.packet_log import packet_line
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rules import RuleTable
from fastmasq.policy.chains import Chain, RuleSet
from fastmasq.policy.changes import Change, apply
from fastmasq.policy.compile import CompiledChains, LinkView, compile_chains, is_idle
from fastmasq.policy.evaluate import Packet, evaluate

log = logging.getLogger("fastmasq.rules")

_T = TypeVar("_T")


class _List(Struct, forbid_unknown_fields=True):
    chain: str | None = None
    zero: bool = False


class _Changes(Struct, forbid_unknown_fields=True):
    changes: list[Change]


class _Check(Struct, forbid_unknown_fields=True):
    chain: str
    packet: Packet


class Rules:
    """Owns the rule set, and keeps the path's chains equal to it.

    `checks` are called with a changed set before it comes into force, and may raise to refuse it. `countings` are
    called before counters are read or changed: each adds to them what has been matched since its last call.
    """

    def __init__(self, compat: str = "modern") -> None:
        self.rule_set = RuleSet()
        self.checks: list[Callable[[RuleSet], None]] = []
        self.countings: list[Callable[[RuleSet], None]] = []
        self._compat = compat
        self._forwarder: Forwarder | None = None
        self._table: RuleTable | None = None
        self._links: list[LinkView] = []
        self._compiled: CompiledChains | None = None  # what the path has, None for nothing

    def handlers(self) -> dict[str, Callable[[dict], object]]:
        """Return the control methods."""
        return {"rules": self._list, "rules.change": self._change, "rules.check": self._check}

    # -- with the path ---------------------------------------------------------------------------------------------

    def attach(self, forwarder: Forwarder, sessions: int) -> None:
        """Put the rules in force in a forwarder, whose session table has so many rows."""
        self._forwarder = forwarder
        self._table = RuleTable(sessions)
        self._put_in_force(self.rule_set)

    def follow_links(self, links: list[LinkView]) -> None:
        """Have rules ask for these links, by number: their names, and the addresses they have just now."""
        if links != self._links:
            self._links = links
            self._put_in_force(self.rule_set)

    def print_log(self) -> None:
        """Log a line for each packet that a rule wants logged."""
        if self._compiled is None:
            return
        with self._forwarder.locked():
            records, suppressed = self._table.drain_log()
        names = [link.name for link in self._links]
        for record in records:
            log.info("%s", packet_line(record, self._compiled, names, self._compat))
        if suppressed:
            log.warning("rules: %d more packets were to be logged", suppressed)

    def _put_in_force(self, rule_set: RuleSet) -> None:
        """Make this the rule set, in the path as well. Raises RuleError for what the path cannot do; then all stays."""
        if self._forwarder is None:
            self.rule_set = rule_set
            return
        compiled = None if is_idle(rule_set) else compile_chains(rule_set, self._links)
        self.print_log()
        with self._forwarder.locked():
            counts = self._table.collect()
            if compiled is None:
                self._forwarder.set_chains(None)
            else:
                self._table.load(compiled)
                self._forwarder.set_chains(self._table)
        if self._compiled is not None:
            self._compiled.add(counts, rule_set)
        self._compiled = compiled
        self.rule_set = rule_set

    def _count(self) -> None:
        """Bring the counters of rules and policies up to date."""
        if self._compiled is not None:
            with self._forwarder.locked():
                counts = self._table.collect()
            self._compiled.add(counts, self.rule_set)
        for counting in self.countings:
            counting(self.rule_set)

    # -- for the control socket ------------------------------------------------------------------------------------

    def change(self, changes: list[Change]) -> None:
        """Make these changes, all or none. Raises RuleError, or what one of `checks` raises."""
        self._count()
        self._accept(apply(self.rule_set, changes))

    def replace(self, wanted: RuleSet) -> None:
        """Put another set in this one's place; rules that are in both keep their counters. Raises as `change` does."""
        self._count()
        self._accept(wanted.succeeding(self.rule_set))

    def judge(self) -> RuleTable | None:
        """Return a table of its own with the chains in force, to question without counting; None without rules."""
        if self._compiled is None:
            return None
        table = RuleTable(1)
        table.load(self._compiled)
        return table

    def _accept(self, changed: RuleSet) -> None:
        """Put a changed set in force unless the path or one of `checks` refuses it."""
        if self._forwarder is not None:
            compile_chains(changed, self._links)  # raises before any check acts on the changed set
        for check in self.checks:
            check(changed)
        self._put_in_force(changed)

    def _list(self, params: dict) -> dict[str, Any]:
        wanted = _read(params, _List)
        self._count()
        rules = self.rule_set
        chains = [*rules.chains.values(), rules.accounting] if wanted.chain is None else [rules.chain(wanted.chain)]
        answer = {
            "generation": rules.generation,
            "default_forward": rules.default_forward,
            "chains": [self._describe(chain) for chain in chains],
        }
        if wanted.zero:
            zeroed = rules.copy()
            zeroed.zero(wanted.chain)
            self._put_in_force(zeroed)
        return answer

    def _describe(self, chain: Chain) -> dict[str, Any]:
        return {**msgspec.to_builtins(chain), "references": self.rule_set.references(chain.name)}

    def _change(self, params: dict) -> dict[str, Any]:
        self.change(_read(params, _Changes).changes)
        return {"generation": self.rule_set.generation}

    def _check(self, params: dict) -> dict[str, Any]:
        wanted = _read(params, _Check)
        return msgspec.to_builtins(evaluate(self.rule_set, wanted.chain, wanted.packet))


def _read(params: dict, kind: type[_T]) -> _T:
    """Return the parameters as a struct. Raises ConfigurationError that says which is wrong."""
    try:
        return msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"rules: {error}") from None
