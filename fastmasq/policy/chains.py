"""Chains: the rules of input, forward, output and user chains as both tools of 1999 know them, and the changes to them.

One `RuleSet` serves ipfwadm and ipchains: what one calls its input category is the other's chain `input`. It is plain
data: nothing here reads a name, prints a listing or sees a packet. Names are resolved before (legacy), packets are
compared with rules elsewhere (`evaluate` in slow Python, `compile` for the path).

A change either happens whole or raises RuleError and changes nothing. Counters live with their rules; the path counts
in arrays, which `compile` hands out and folds back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from msgspec import Struct
from msgspec.structs import replace

from fastmasq.errors import ConfigurationError
from fastmasq.wire.numbers import TCP, UDP

INPUT, FORWARD, OUTPUT, ACCOUNTING = "input", "forward", "output", "acct"
BUILT_IN = (INPUT, FORWARD, OUTPUT)

ACCEPT, DENY, REJECT, MASQ, REDIRECT, RETURN = "ACCEPT", "DENY", "REJECT", "MASQ", "REDIRECT", "RETURN"
TARGETS = (ACCEPT, DENY, REJECT, MASQ, REDIRECT, RETURN)

LONGEST_NAME = 8  # characters of a user chain's name (ipchains 1.3.9)
MOST_RULES = 16384  # in all chains together
MOST_PORTS = 10  # of one rule, a range counting two (ipfwadm 2.3.0)

ANY_PORT = (0, 0xFFFF)

Reason = Literal[
    "no chain", "no target", "exists", "not empty", "no rule", "busy", "bad policy", "bad target", "too many"
]
REASONS: tuple[str, ...] = get_args(Reason)


class RuleError(ConfigurationError):
    """A change that cannot be made; `reason` lets each front end say it in its own words."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Match(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a packet must look like. All integers in host order; everything at its default matches every packet.

    source, destination: (address, mask). source_ports, destination_ports: inclusive ranges, none is any port; for ICMP
    the type and (destination) code. interface: the arriving one in input, the leaving one in forward and output; a
    name ending in "+" is a prefix. interface_address: that interface's own address (ipfwadm -V), 0 is any.
    syn: SYN set, ACK and RST clear (-y); False is the opposite (! -y). ack: ACK or RST set (-k). fragment: a second or
    further fragment (-f); False is the opposite. swapped_too: also matches with both ends exchanged (ipfwadm -b).
    """

    source: tuple[int, int] = (0, 0)
    destination: tuple[int, int] = (0, 0)
    protocol: int = 0
    source_ports: tuple[tuple[int, int], ...] = ()
    destination_ports: tuple[tuple[int, int], ...] = ()
    interface: str = ""
    interface_address: int = 0
    syn: bool | None = None
    ack: bool = False
    fragment: bool | None = None
    swapped_too: bool = False
    not_source: bool = False
    not_destination: bool = False
    not_protocol: bool = False
    not_source_ports: bool = False
    not_destination_ports: bool = False
    not_interface: bool = False
    direction: Literal["in", "out", "both"] = "both"  # of accounting rules


class Rule(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A match, and what happens to a packet that it fits: first match decides, unless the target is none or RETURN.

    target: one of TARGETS, a user chain, or "" to count only. redirect_port: local port of REDIRECT, 0 the packet's.
    mark: None, ("set" | "add", number); a subtraction adds modulo 2**32. tos: (and, xor) octets, applied at each match.
    output: how many octets a match copies to listeners; 0 none.
    """

    match: Match = Match()
    target: str = ""
    redirect_port: int = 0
    log: bool = False
    mark: tuple[Literal["set", "add"], int] | None = None
    tos: tuple[int, int] = (0xFF, 0)
    output: int = 0


class Counted(Struct):
    """A rule in its chain, with what it has matched."""

    rule: Rule
    packets: int = 0
    bytes: int = 0


class Chain(Struct):
    """An ordered list of rules. policy is what happens at the end of a built-in chain, None for a user chain."""

    name: str
    policy: str | None = None
    rules: list[Counted] = []  # shared between copies of a set, and never changed but by counting
    packets: int = 0  # that met the policy
    bytes: int = 0


class RuleSet:
    """All chains. `generation` grows with every change that may alter a verdict.

    `default_forward` says that the chain `forward` is the built-in policy: everything from inside to outside is
    masqueraded, inside networks reach each other, and nothing comes in. A rule in the chain, or a policy other than
    ACCEPT, ends that. Without it a set is as a kernel of 1999 starts: all policies are ACCEPT, so what no rule
    masquerades is routed as it is.
    """

    def __init__(self, *, default_forward: bool = True) -> None:
        self.chains: dict[str, Chain] = {name: Chain(name, ACCEPT) for name in BUILT_IN}
        self.accounting = Chain(ACCOUNTING, ACCEPT)
        self.default_forward = default_forward
        self.generation = 1

    def chain(self, name: str) -> Chain:
        """Return a chain. Raises RuleError ("no chain")."""
        if name == ACCOUNTING:
            return self.accounting
        if name not in self.chains:
            raise RuleError("no chain", f"no chain {name!r}; there are {', '.join(self.chains)}")
        return self.chains[name]

    def rules_of(self, name: str) -> list[Rule]:
        """Return the rules of a chain; none of one that there is not."""
        chain = self.accounting if name == ACCOUNTING else self.chains.get(name)
        return [] if chain is None else _rules(chain)

    def copy(self) -> RuleSet:
        """Return an equal set to change. Rules keep counting in both: what is counted meanwhile is lost to neither."""
        twin = RuleSet(default_forward=self.default_forward)
        twin.chains = {name: _copy(chain) for name, chain in self.chains.items()}
        twin.accounting = _copy(self.accounting)
        twin.generation = self.generation
        return twin

    def equals(self, other: RuleSet) -> bool:
        """Whether both have the same chains with the same rules; counters and generations do not matter."""
        return self._skeleton() == other._skeleton()

    def succeeding(self, old: RuleSet) -> RuleSet:
        """Return a set equal to this one that takes the place of `old`: rules that are in both go on counting.

        So do policies. Where a rule stands several times in a chain, they are the same ones in order.
        """
        twin = self.copy()
        twin.generation = old.generation + 1
        for chain in (*twin.chains.values(), twin.accounting):
            before = old.accounting if chain is twin.accounting else old.chains.get(chain.name)
            if before is not None:
                _take_counters(chain, before)
        return twin

    def references(self, name: str) -> int:
        """Return how many rules jump to a chain."""
        return sum(counted.rule.target == name for counted in self._all_rules())

    # -- changes to rules ------------------------------------------------------------------------------------------

    def append(self, chain: str, rule: Rule) -> None:
        """Add a rule at the end (-A). Raises RuleError."""
        self._put(chain, rule, len(self.chain(chain).rules))

    def insert(self, chain: str, rule: Rule, number: int = 1) -> None:
        """Add a rule as the `number`th, counting from 1; one past the end is allowed (-I). Raises RuleError."""
        if not 1 <= number <= len(self.chain(chain).rules) + 1:
            raise RuleError("no rule", f"chain {chain} has no rule {number}")
        self._put(chain, rule, number - 1)

    def replace(self, chain: str, rule: Rule, number: int) -> None:
        """Put a rule in place of the `number`th, with counters at zero (-R). Raises RuleError."""
        self._check(chain, rule)
        self._rule(chain, number)
        self.chain(chain).rules[number - 1] = Counted(rule)
        self._changed(chain)

    def delete(self, chain: str, number: int) -> None:
        """Remove the `number`th rule (-D chain num). Raises RuleError."""
        self._rule(chain, number)
        del self.chain(chain).rules[number - 1]
        self._changed(chain)

    def delete_equal(self, chain: str, rule: Rule) -> None:
        """Remove the first rule that equals this one, marks apart (-D, ipfwadm -d). Raises RuleError."""
        wanted = replace(rule, mark=None)
        for number, counted in enumerate(self.chain(chain).rules, 1):
            if replace(counted.rule, mark=None) == wanted:
                self.delete(chain, number)
                return
        raise RuleError("no rule", f"no such rule in chain {chain}")

    def flush(self, chain: str | None = None) -> None:
        """Remove all rules of a chain, or of all chains (-F); where there are none, all stays. Raises RuleError."""
        for one in self._chosen(chain):
            if one.rules:
                one.rules.clear()
                self._changed(one.name)

    def zero(self, chain: str | None = None) -> None:
        """Set the counters of a chain, or of all chains, to zero (-Z). Raises RuleError."""
        for one in self._chosen(chain):
            one.packets = one.bytes = 0
            one.rules = [Counted(counted.rule) for counted in one.rules]

    # -- changes to chains -----------------------------------------------------------------------------------------

    def set_policy(self, chain: str, target: str) -> None:
        """Set what happens at the end of a built-in chain (-P). Raises RuleError.

        ACCEPT, which it has anyway, leaves a chain forward that is the built-in policy as it is.
        """
        allowed = (ACCEPT, DENY, REJECT, MASQ) if chain == FORWARD else (ACCEPT, DENY, REJECT)
        if self.chain(chain).policy is None:
            raise RuleError("bad policy", f"{chain} is not a built-in chain")
        if target not in allowed:
            raise RuleError("bad policy", f"policy {target!r} of chain {chain}; one of {', '.join(allowed)}")
        if self.chain(chain).policy != target:
            self.chain(chain).policy = target
            self._changed(chain)

    def reset_forward(self) -> None:
        """Have the chain forward be the built-in policy, without rules."""
        self.chains[FORWARD] = Chain(FORWARD, ACCEPT, rules=[])
        self.default_forward = True
        self.generation += 1

    def new_chain(self, name: str) -> None:
        """Make an empty user chain (-N). Raises RuleError."""
        if name in self.chains or name == ACCOUNTING:
            raise RuleError("exists", f"there is a chain {name!r} already")
        if not name or len(name) > LONGEST_NAME or name in TARGETS:
            raise RuleError("bad target", f"{name!r} cannot be the name of a chain; at most {LONGEST_NAME} characters")
        self.chains[name] = Chain(name, rules=[])
        self.generation += 1

    def delete_chain(self, name: str | None = None) -> None:
        """Remove a user chain, or all of them (-X); each must be empty and jumped to by nobody. Raises RuleError."""
        doomed = [name] if name else [one.name for one in self.chains.values() if one.policy is None]
        for one in doomed:
            if self.chain(one).policy is not None:
                raise RuleError("busy", f"{one} is a built-in chain; it cannot be deleted")
            if self.chain(one).rules:
                raise RuleError("not empty", f"chain {one} has rules; flush it first")
            if self.references(one):
                raise RuleError("busy", f"rules jump to chain {one}; delete them first")
        for one in doomed:
            del self.chains[one]
        self.generation += 1

    # -- within ----------------------------------------------------------------------------------------------------

    def _skeleton(self) -> tuple:
        chains = [(chain.name, chain.policy, _rules(chain)) for chain in self.chains.values()]
        return self.default_forward, chains, _rules(self.accounting)

    def _all_rules(self) -> Iterator[Counted]:
        for chain in self.chains.values():
            yield from chain.rules

    def _chosen(self, chain: str | None) -> list[Chain]:
        return list(self.chains.values()) if chain is None else [self.chain(chain)]

    def _rule(self, chain: str, number: int) -> Counted:
        rules = self.chain(chain).rules
        if not 1 <= number <= len(rules):
            raise RuleError("no rule", f"chain {chain} has no rule {number}")
        return rules[number - 1]

    def _put(self, chain: str, rule: Rule, position: int) -> None:
        self._check(chain, rule)
        if sum(len(one.rules) for one in (*self.chains.values(), self.accounting)) >= MOST_RULES:
            raise RuleError("too many", f"{MOST_RULES} rules are the most there can be")
        self.chain(chain).rules.insert(position, Counted(rule))
        self._changed(chain)

    def _check(self, chain: str, rule: Rule) -> None:
        """Refuse a target that does not exist or that this chain may not have."""
        target = rule.target
        if target in BUILT_IN or (target and target not in TARGETS and target not in self.chains):
            raise RuleError("no target", f"there is no target {target!r}")
        if target == MASQ and chain in (INPUT, OUTPUT):
            raise RuleError("bad target", f"masquerading is not allowed in chain {chain}")
        if target == REDIRECT and rule.match.protocol not in (TCP, UDP):
            raise RuleError("bad target", "redirecting is for TCP or UDP only")

    def _changed(self, chain: str) -> None:
        if chain == FORWARD:
            self.default_forward = False
        self.generation += 1


def _rules(chain: Chain) -> list[Rule]:
    return [counted.rule for counted in chain.rules]


def _take_counters(chain: Chain, before: Chain) -> None:
    """Put the rules of a chain's predecessor in the places of their equals."""
    present: dict[Rule, list[Counted]] = {}
    for counted in reversed(before.rules):
        present.setdefault(counted.rule, []).append(counted)
    chain.rules = [present[one.rule].pop() if present.get(one.rule) else one for one in chain.rules]
    if chain.policy == before.policy:
        chain.packets, chain.bytes = before.packets, before.bytes


def _copy(chain: Chain) -> Chain:
    return replace(chain, rules=list(chain.rules))
