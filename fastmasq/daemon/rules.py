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

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from fastmasq.errors import ConfigurationError
from fastmasq.policy.chains import Chain, RuleSet
from fastmasq.policy.changes import Change, apply
from fastmasq.policy.evaluate import Packet, evaluate

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
    """Owns the rule set. `checks` are called with a changed set before it comes into force, and may raise to refuse it."""

    def __init__(self) -> None:
        self.rule_set = RuleSet()
        self.checks: list[Callable[[RuleSet], None]] = []

    def handlers(self) -> dict[str, Callable[[dict], object]]:
        """Return the control methods."""
        return {"rules": self._list, "rules.change": self._change, "rules.check": self._check}

    def change(self, changes: list[Change]) -> None:
        """Make these changes, all or none. Raises RuleError, or what one of `checks` raises."""
        changed = apply(self.rule_set, changes)
        for check in self.checks:
            check(changed)
        self.rule_set = changed

    def _list(self, params: dict) -> dict[str, Any]:
        wanted = _read(params, _List)
        rules = self.rule_set
        chains = [*rules.chains.values(), rules.accounting] if wanted.chain is None else [rules.chain(wanted.chain)]
        answer = {
            "generation": rules.generation,
            "default_forward": rules.default_forward,
            "chains": [self._describe(chain) for chain in chains],
        }
        if wanted.zero:
            rules.zero(wanted.chain)
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
