"""What is unwise about a rule set: findings that say which rule, what is wrong with it, and what to do.

Every finding is asked of the chains themselves: a probe packet is evaluated, or two rules are compared; the spelling of
a script does not matter. The findings and the rows of the HOWTO they come from are listed in the manual (rules.md).
`FINDINGS` holds their names.

What the rules alone cannot tell comes in as `Surroundings`. Where something is not known, nothing is said about it.
"""

from __future__ import annotations

from fastmasq.advice import lint_rules, lint_traffic
from fastmasq.advice.lint_subject import Finding, ForwardedPort, Subject, Surroundings
from fastmasq.policy.chains import RuleSet

__all__ = ["FINDINGS", "Finding", "ForwardedPort", "Surroundings", "lint"]

FINDINGS = {
    "vpn-half": "One of the two channels of a VPN passes and the other does not.",
    "icmp-blocked": "ICMP errors that path-MTU discovery and traceroute need are blocked.",
    "loopback-blocked": "The gateway cannot talk to itself.",
    "own-dns-blocked": "The gateway itself cannot ask a name server.",
    "dhcp-blocked": "Inside hosts cannot ask the gateway for an address.",
    "open-masquerade": "Everything is masqueraded, whoever sends it.",
    "open-behind-rules": "An open rule set was put behind rules that still come first.",
    "forward-denied": "What input accepts, forward denies.",
    "private-source": "Inside hosts leave with their private addresses, which nobody can answer.",
    "forward-accepts": "What no rule masquerades is routed as it is.",
    "accept-changes-nothing": "A chain accepts everything, with and without its rules.",
    "interface-address": "A rule asks for an address that its link does not have.",
    "whole-network": "A rule takes a whole network for the one address of a link.",
    "never-reached": "An earlier rule takes every packet of a later one.",
    "other-protocols": "A rule for all protocols lets through more than was meant.",
    "ah-masqueraded": "AH is to be masqueraded, which cannot work.",
    "loop": "Chains jump in a circle.",
    "unused-chain": "No rule jumps to a chain.",
    "other-meaning": "A target means something else in the chain it is reached from.",
    "forward-without-input": "The rules keep out what a port forward should let in.",
    "forward-without-masquerade": "Answers of a forwarded service are not masqueraded.",
}


def lint(rules: RuleSet, around: Surroundings = Surroundings()) -> list[Finding]:  # noqa: B008
    """Return the findings: those about the whole set first, then chain by chain in the order of the rules."""
    looking = Subject(rules, around)
    found = [finding for look in _LOOKS for finding in look(looking)]
    order = ["", *rules.chains]
    return sorted(dict.fromkeys(found), key=lambda finding: (order.index(finding.chain), finding.number))


_LOOKS = (
    *(lint_traffic.half_vpns, lint_traffic.ah, lint_traffic.other_protocols),
    *(lint_traffic.icmp_errors, lint_traffic.own_traffic, lint_traffic.dhcp),
    *(lint_traffic.forwards, lint_traffic.half_servers),
    *(lint_rules.open_sets, lint_rules.policies, lint_rules.forward_denied, lint_rules.private_sources),
    *(lint_rules.interface_addresses, lint_rules.whole_networks),
    *(lint_rules.never_reached, lint_rules.chains, lint_rules.meanings),
)
