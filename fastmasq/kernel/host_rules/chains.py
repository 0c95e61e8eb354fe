"""Translates the chains input and output, and the user chains they reach, to chains of an nftables table.

For each of the two there is a chain `input` or `output` at a hook, which stays and holds the policy, and the rules in
a chain of their own, so that RETURN comes to the policy. User chains are translated once for each hook, since REJECT,
MASQ, REDIRECT and interfaces mean different things there. nftables refuses loops: a chain that belongs to one is
translated once for each set of chains that a packet can be in, and the rule that would close the loop denies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fastmasq.errors import ConfigurationError
from fastmasq.kernel.host_rules import unsolicited
from fastmasq.kernel.host_rules.match import Addresses, can_be_spelled, conditions
from fastmasq.kernel.host_rules.unsolicited import ACCEPT_BY_RULE, Gate
from fastmasq.kernel.local_link import HOST_END
from fastmasq.kernel.nft import escaped
from fastmasq.policy.chains import (
    ACCEPT,
    DENY,
    INPUT,
    MASQ,
    OUTPUT,
    REDIRECT,
    REJECT,
    RETURN,
    Chain,
    Counted,
    Rule,
    RuleSet,
)

CounterKey = tuple[str, Rule | None, int]
"""Chain, rule, and which of the equal rules in the chain, from 0; the rule is None for the policy."""

_DEEPEST = 14  # user chains within each other; nftables keeps 16 return addresses, and we need two
_MOST_RULES = 65536
_SHOWN = 3  # rules that a line names

# Before connection tracking puts fragments together, so that rules see them as they come. After the others' output
# chains, which may still change what leaves.
_HOOKS = {
    INPUT: "{ type filter hook prerouting priority -450; policy accept; }",
    OUTPUT: "{ type filter hook output priority 300; policy accept; }",
}

# Behind a guard of iptables, whose table `raw` is asked at -300: else the rules would judge what is the path's as well.
_BEHIND_RAW = "{ type filter hook prerouting priority -290; policy accept; }"
_BEHIND_RAW_NAME = f"{INPUT}.behind_raw"  # a chain keeps its priority for life, so this is another one

# The rest of a TCP header whose flags a first fragment has left out: put together, it would pass rules unseen.
_NO_HIDDEN_FLAGS = "ip protocol 6 ip frag-off & 0x1fff == 1 drop"

# What is redirected to programs has been judged as it came, and their answers are when they leave. Sessions live on
# when the rule that redirected them goes.
_REDIRECTED = {INPUT: f'iifname "{HOST_END}" accept', OUTPUT: f'oifname "{HOST_END}" accept'}

# What REJECT does. Nobody is told about what went to many. In output, the sender of a datagram gets EPERM for whatever
# is dropped; a connection attempt needs a RST, or it would go on trying.
_REJECTIONS = {
    INPUT: (
        "fib daddr type broadcast drop",
        "fib daddr type multicast drop",
        "reject with icmp type port-unreachable",
    ),
    OUTPUT: ("ip protocol 6 reject with tcp reset", "drop"),
}

# The RST by which REJECT in output tells the sending program: it comes to lo with the address of the other end.
_OWN_RESET = '{} "lo" tcp flags & rst == rst fib saddr type != local accept'


@dataclass
class Translation:
    """`chains`: nftables chain name -> rules. `hooks`: those at a hook -> how. `weaker`: rules by chain and reason."""

    chains: dict[str, list[str]] = field(default_factory=dict)
    hooks: dict[str, str] = field(default_factory=dict)
    counters: dict[str, CounterKey] = field(default_factory=dict)
    weaker: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    @property
    def not_enforced(self) -> list[str]:
        """What of the rules is not enforced, one line for each chain and reason."""
        return [
            f"{_numbered(numbers)} of chain {chain}: not enforced on the host's own packets: {reason}"
            for (chain, reason), numbers in self.weaker.items()
        ]


def asks_nothing(rule_set: RuleSet) -> bool:
    """Return whether the host's own packets pass without being looked at: no rules, and both policies ACCEPT."""
    return not any(_counts(rule_set.chain(name)) for name in (INPUT, OUTPUT))


def translate(
    rule_set: RuleSet,
    addresses: Addresses,
    counter_name: Callable[[CounterKey], str],
    *,
    behind_raw: bool = False,
    gate: Gate | None = None,
) -> Translation:
    """Return what nftables must do with the host's own packets, behind a guard that is or is not one of iptables.

    gate: what is open to the outside, unless all is. Raises ConfigurationError.
    """
    result = Translation()
    if gate is not None:
        behind_rules = _counts(rule_set.chain(INPUT))
        result.chains[unsolicited.NAME] = list(unsolicited.rules(gate, behind_rules=behind_rules))
        result.hooks[unsolicited.NAME] = unsolicited.HOOK
    for name in (OUTPUT, INPUT):  # output first: whether it rejects matters to input
        if _counts(rule_set.chain(name)):
            by_rule = ACCEPT_BY_RULE if gate is not None and name == INPUT else "accept"
            _Hook(rule_set, name, addresses, counter_name, result, by_rule).translate(behind_raw)
    if sum(map(len, result.chains.values())) > _MOST_RULES:
        raise ConfigurationError(f"the rules for the host itself come to more than {_MOST_RULES} rules of nftables")
    return result


def counter_keys(chain: Chain) -> Iterator[tuple[CounterKey, Counted | Chain]]:
    """Yield a chain and its rules with their counter keys."""
    yield (chain.name, None, 0), chain
    seen: dict[Rule, int] = {}
    for counted in chain.rules:
        yield (chain.name, counted.rule, seen.setdefault(counted.rule, 0)), counted
        seen[counted.rule] += 1


def _counts(chain: Chain) -> bool:
    return bool(chain.rules) or chain.policy != ACCEPT


class _Hook:
    """The translation for one built-in chain, into `result`."""

    def __init__(
        self,
        rule_set: RuleSet,
        hook: str,
        addresses: Addresses,
        counter_name: Callable[[CounterKey], str],
        result: Translation,
        accept_by_rule: str,
    ) -> None:
        self._rule_set = rule_set
        self._hook = hook
        self._addresses = addresses
        self._counter_name = counter_name
        self._result = result
        self._accept_by_rule = accept_by_rule
        self._reachable = {name: self._reached_from(name) for name in rule_set.chains}
        self._made: dict[tuple[str, frozenset[str]], str] = {}

    def translate(self, behind_raw: bool) -> None:
        chain = self._rule_set.chain(self._hook)
        body = self._chain(self._hook, ())
        name, hook = self._hook, _HOOKS[self._hook]
        if behind_raw and self._hook == INPUT:
            name, hook = _BEHIND_RAW_NAME, _BEHIND_RAW
        lines = self._result.chains[name] = [_REDIRECTED[self._hook]]
        self._result.hooks[name] = hook
        if self._hook == INPUT:
            lines.append(_NO_HIDDEN_FLAGS)
        verdict = "accept" if chain.policy == ACCEPT else self._verdict(chain.policy, ())
        if _rejection(OUTPUT) in self._result.chains:
            lines.append(_OWN_RESET.format("iifname" if self._hook == INPUT else "oifname"))
        lines += [f"jump {body}", f"{self._count((self._hook, None, 0))} {verdict}"]

    def _reached_from(self, name: str) -> set[str]:
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            targets = {counted.rule.target for counted in self._rule_set.chain(waiting.pop()).rules}
            new = targets & self._rule_set.chains.keys() - reached
            reached |= new
            waiting += new
        return reached

    def _chain(self, name: str, callers: tuple[str, ...]) -> str:
        """Translate a chain, if that has not been done, and return its name. It is called from `callers`."""
        if len(callers) > _DEEPEST:
            path = " -> ".join(callers[:4])
            raise ConfigurationError(f"chains call each other more than {_DEEPEST} deep: {path} -> ...")
        key = name, frozenset(callers) & self._reachable[name]
        if key in self._made:
            return self._made[key]
        number = sum(known == name for known, _ in self._made)
        made = self._made[key] = f"{self._hook}_{escaped(name)}" + (f".{number}" if number else "")
        lines = self._result.chains[made] = []
        keys = counter_keys(self._rule_set.chain(name))
        next(keys)
        for number, (counter, counted) in enumerate(keys, 1):
            lines += self._rule(f"{made}.{number}any", counted.rule, number, counter, (*callers, name))
        return made

    def _rule(
        self, helper: str, rule: Rule, number: int, counter: CounterKey, callers: tuple[str, ...]
    ) -> Iterator[str]:
        """Yield the rules for one. Where a packet could fit several of them and go on, they are the chain `helper`."""
        self._announce(rule, number, callers[-1])
        ways = conditions(rule.match, arriving=self._hook == INPUT, addresses=self._addresses)
        if not ways:
            return
        verdict = self._verdict(rule.target, callers)
        effect = " ".join((self._count(counter), *_changes(rule), verdict))
        log = ""
        if rule.log:
            prefix = re.sub(r'[^ -~]|["\\]', "?", f"Packet log: {callers[-1]} {rule.target or '-'} #{number} ")
            log = f'limit rate 10/second burst 20 packets log prefix "{prefix}" level info'
        if len(ways) > 1 and (not verdict or verdict.startswith("jump ")):
            effect = effect.replace("jump ", "goto ") if verdict else f"{effect}return"
            self._result.chains[helper] = [line for way in ways for line in _lines(way, log, effect)]
            yield f"jump {helper}"
            return
        for way in ways:
            yield from _lines(way, log, effect)

    def _count(self, key: CounterKey) -> str:
        name = self._counter_name(key)
        self._result.counters[name] = key
        return f'counter name "{name}"'

    def _verdict(self, target: str, callers: tuple[str, ...]) -> str:
        """Return what nftables is to do, "" for going on with the next rule."""
        if target in self._rule_set.chains:
            return "drop" if target in callers else f"jump {self._chain(target, callers)}"
        if target == REJECT:
            chain = _rejection(self._hook)
            self._result.chains[chain] = list(_REJECTIONS[self._hook])
            return f"goto {chain}"
        if target in (ACCEPT, MASQ, REDIRECT):
            return self._accept_by_rule
        return {"": "", DENY: "drop", RETURN: "return"}[target]

    def _announce(self, rule: Rule, number: int, chain: str) -> None:
        """Say what of a rule is not enforced on the host's own packets."""
        reasons = []
        if rule.target == REDIRECT and self._hook == INPUT:
            reasons.append("REDIRECT of packets to the host itself (they are accepted)")
        if rule.mark and rule.mark[0] == "add":
            reasons.append("adding to a mark (setting one is)")
        if rule.tos != (0xFF, 0) and not _sets_dscp(rule):
            reasons.append("a TOS that depends on the packet's own, or sets its lowest two bits")
        if rule.output:
            reasons.append("copying to listeners (-o)")
        if rule.match.fragment and self._hook == OUTPUT:
            reasons.append("-f in output: datagrams are judged before they are cut")
        if not can_be_spelled(rule.match.interface):
            reasons.append(f"interface {rule.match.interface!r}")
        for reason in reasons:
            numbers = self._result.weaker.setdefault((chain, reason), [])
            if number not in numbers[-1:]:  # a chain may be translated several times, each time as a whole
                numbers.append(number)


def _numbered(numbers: list[int]) -> str:
    """Return rule 1; rules 1 and 2; or rules 1, 2, 3 and 9 more."""
    each = list(dict.fromkeys(numbers))
    if len(each) == 1:
        return f"rule {each[0]}"
    shown, more = each[:_SHOWN], len(each) - _SHOWN
    if more > 0:
        return f"rules {', '.join(map(str, shown))} and {more} more"
    return f"rules {', '.join(map(str, shown[:-1]))} and {shown[-1]}"


def _rejection(hook: str) -> str:
    return f"reject_{hook}"


def _lines(way: str, log: str, effect: str) -> list[str]:
    return [f"{way} {what}".strip() for what in (log, effect) if what]


def _changes(rule: Rule) -> Iterator[str]:
    if rule.mark and rule.mark[0] == "set":
        yield f"meta mark set {rule.mark[1]}"
    if rule.tos != (0xFF, 0) and _sets_dscp(rule):
        yield f"ip dscp set {rule.tos[1] >> 2}"


def _sets_dscp(rule: Rule) -> bool:
    """Tell whether a TOS change sets bits 7 to 2 to a constant and no other; the last two are those of ECN today."""
    keep, flip = rule.tos
    return not keep & 0xFC and not flip & 0x03
