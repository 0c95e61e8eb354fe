"""Proxies: programs of this host that rules redirect packets to, and which listen where no such packet comes."""

from __future__ import annotations

import ipaddress

from fastmasq.kernel.local_link import NETWORK
from fastmasq.kernel.ports import listeners
from fastmasq.policy.chains import REDIRECT, RuleSet
from fastmasq.wire.numbers import TCP, UDP

_NAMES = {TCP: "TCP", UDP: "UDP"}


def redirects(rule_set: RuleSet) -> set[tuple[int, int]]:
    """Return (IP protocol, local port) of every REDIRECT rule; the port is 0 where it is the packet's own."""
    return {
        (each.rule.match.protocol, each.rule.redirect_port)
        for chain in rule_set.chains.values()
        for each in chain.rules
        if each.rule.target == REDIRECT
    }


def out_of_reach(rule_set: RuleSet) -> list[str]:
    """Return a sentence for each port that packets are redirected to and whose program listens on other addresses."""
    wanted = sorted(redirects(rule_set))
    found = {protocol: listeners(protocol) for protocol in {protocol for protocol, _ in wanted}}
    return [
        f"REDIRECT to {_NAMES[protocol]} port {port}: its program listens on {', '.join(sorted(addresses))} alone; "
        "have it listen on all addresses"
        for protocol, port in wanted
        if (addresses := found[protocol].get(port)) and not any(map(_is_reached, addresses))
    ]


def _is_reached(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return address.is_unspecified or address in NETWORK
