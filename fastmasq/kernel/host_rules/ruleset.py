"""The chains input and output in force on the host's own packets, by a table of nftables: `ip fastmasq`.

The guard drops at ingress what is ours, so the table sees what is for the host, from every interface and from `lo`, and
what the host's programs send. It sees no packet that is forwarded, as those leave below the hooks of IP. ARP and IPv6
do not meet it.

An update is one transaction that replaces the rules within the chains: a packet meets the old rules or the new ones,
and there is no moment without (see `guard/nftables.py`). Each rule counts in a counter with a name, which stays through
updates as long as an equal rule is in the same chain.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

from fastmasq.errors import KernelError
from fastmasq.kernel import nft
from fastmasq.kernel.host_rules.chains import CounterKey, Translation, counter_keys, translate
from fastmasq.kernel.host_rules.match import Addresses
from fastmasq.kernel.host_rules.unsolicited import Gate
from fastmasq.policy.chains import RuleSet

NAME = "fastmasq"
_TABLE = f"ip {NAME}"
_PURPOSE = "rules for the host itself"


class HostRules:
    """Everything is done by the program nft in the current network namespace."""

    def __init__(self) -> None:
        self.behind_raw = False  # whether the guard is one of iptables, from the next update on
        self._translation = Translation()
        self._names: dict[CounterKey, str] = {}
        self._start, self._serial = os.urandom(3).hex(), 0  # a predecessor's counters have other names
        self._table = nft.Table(_PURPOSE, "ip", NAME)
        self._seen: dict[str, tuple[int, int]] = {}  # counter -> packets and bytes as of the last `collect`

    def check(self, *, gated: bool = False) -> None:
        """Raise KernelError, saying what is missing, if nftables cannot do it here, or a gate. Changes nothing."""
        chain = f"{_TABLE} probe"
        nft.run(
            _PURPOSE,
            "--check",
            script=f"add table {_TABLE}\n"
            f"add chain {chain} {{ type filter hook prerouting priority -450; }}\n"
            f"add rule {chain} fib saddr type local limit rate 1/second log reject with icmp type port-unreachable\n"
            + (f"add rule {chain} ct state {{ established, related }} accept\n" if gated else ""),
        )

    def update(self, rule_set: RuleSet, addresses: Addresses, gate: Gate | None = None) -> list[str]:
        """Put the chains input and output in force, and a gate; return a line for each thing that cannot be enforced.

        Counters go on; those of rules that have gone are given up. Raises KernelError or ConfigurationError; then what
        was in force stays.
        """
        wanted = translate(rule_set, addresses, self._counter_name, behind_raw=self.behind_raw, gate=gate)
        if wanted != self._translation:
            self._put_in_force(wanted)
        return wanted.not_enforced

    def collect(self, rule_set: RuleSet) -> None:
        """Add what the host's packets have matched since the last call to the counters of the rules and policies.

        To be called before a listing, and before counters are set to zero. Raises KernelError.
        """
        if not self._translation.counters:
            return
        try:
            listed = _counters()
        except KernelError:
            if not self.put_back():
                raise
            return
        counts = {each["name"]: (each["packets"], each["bytes"]) for each in listed}
        keyed = dict(pair for chain in rule_set.chains.values() for pair in counter_keys(chain))
        for name, key in self._translation.counters.items():
            now, before = counts.get(name, (0, 0)), self._seen.get(name, (0, 0))
            if key in keyed and now >= before:  # else somebody has set it to zero, or removed the table
                keyed[key].packets += now[0] - before[0]
                keyed[key].bytes += now[1] - before[1]
            self._seen[name] = now

    def put_back(self) -> bool:
        """Install again what somebody has removed (`nft flush ruleset`) or changed; return whether that was so.

        Raises KernelError.
        """
        if not self._translation.chains or not self._table.altered():
            return False
        left = nft.names(self._table.objects(), "counter")
        self._seen = {name: seen for name, seen in self._seen.items() if name in left}
        self._table.write(partial(_script, self._translation))
        return True

    def remove(self) -> bool:
        """Take the table away, also one that another process installed; return whether there was one. KernelError."""
        self._translation = Translation()
        self._names.clear()
        self._seen.clear()
        return self._table.delete()

    def _counter_name(self, key: CounterKey) -> str:
        """Return the name of a rule's counter, which no other rule has had before."""
        if key not in self._names:
            self._serial += 1
            self._names[key] = f"rule_{nft.escaped(key[0])}.{self._start}.{self._serial}"
        return self._names[key]

    def _put_in_force(self, wanted: Translation) -> None:
        self._table.write(partial(_script, wanted))
        self._translation = wanted
        self._names = {key: name for name, key in wanted.counters.items()}
        self._seen = {name: seen for name, seen in self._seen.items() if name in wanted.counters}


def _counters() -> list[dict[str, Any]]:
    """Return the counters of the table."""
    listed = json.loads(nft.run(_PURPOSE, "-j", "list", "counters", "table", "ip", NAME))["nftables"]
    return [each["counter"] for each in listed if "counter" in each]


def _script(wanted: Translation, objects: nft.Objects) -> str:
    """Return the transaction that makes the table, which has these objects now, what is `wanted`."""
    chains, counters = nft.names(objects, "chain"), nft.names(objects, "counter")
    lines = [f"add table {_TABLE}"]
    lines += [f"add counter {_TABLE} {name}" for name in wanted.counters if name not in counters]
    lines += [f"add chain {_TABLE} {name} {wanted.hooks.get(name, '')}" for name in wanted.chains]
    lines += [f"flush chain {_TABLE} {name}" for name in {**dict.fromkeys(chains), **wanted.chains}]
    lines += [f"delete chain {_TABLE} {name}" for name in chains if name not in wanted.chains]
    lines += [f"delete counter {_TABLE} {name}" for name in counters if name not in wanted.counters]
    lines += [f"add rule {_TABLE} {name} {rule}" for name, rules in wanted.chains.items() for rule in rules]
    return "\n".join(lines) + "\n"
