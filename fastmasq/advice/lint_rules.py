"""Lint by reading: rules compared with policies, with addresses and with each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address

from msgspec.structs import replace

from fastmasq.advice.advise import is_private, network_of
from fastmasq.advice.lint_subject import (
    HIGH_PORT,
    REFUSED,
    STRANGER,
    Finding,
    Subject,
    finding,
    holds,
    is_between_hosts,
    probe,
)
from fastmasq.policy.chains import (
    ACCEPT,
    BUILT_IN,
    FORWARD,
    INPUT,
    MASQ,
    OUTPUT,
    REDIRECT,
    RETURN,
    TARGETS,
    Match,
    Rule,
)
from fastmasq.policy.coverage import covers
from fastmasq.policy.evaluate import Packet, evaluate
from fastmasq.wire.numbers import TCP, WEB_PORT

MOST_COMPARED = 2000  # rules in a chain that are compared each with each; that takes seconds


def open_sets(look: Subject) -> Iterator[Finding]:
    """H-68, A-21: the sets of HOWTO 5.2(4), meant for a quick test."""
    forward = look.rules.chains[FORWARD]
    places = [number for number, rule in look.rules_of(FORWARD) if rule.target == MASQ and covers(rule.match, Match())]
    places += [0] if forward.policy == MASQ else []
    for number in places[:1]:
        yield finding(
            "open-masquerade",
            "warning",
            FORWARD,
            number,
            "every routed packet is masqueraded, also what comes from outside; good for a test, not for good",
            "name the inside network and the outside link, as `fastmasq rule template 3.6-ipchains-minimum-ppp0` does",
        )
        before = len(forward.rules) if number == 0 else number - 1
        if before:
            yield finding(
                "open-behind-rules",
                "note",
                FORWARD,
                number,
                f"the {before} rule{'s' if before > 1 else ''} before it still decide first",
                "for a test of everything flush the chain before: ipfwadm -F -f or ipchains -F forward",
            )


def policies(look: Subject) -> Iterator[Finding]:
    """A-7, A-8: what the default policies make of the rules."""
    chains = look.rules.chains
    if _accepts_the_rest(look):
        yield finding(
            "forward-accepts",
            "warning",
            FORWARD,
            0,
            "its policy is ACCEPT: packets that no rule masquerades leave with the private address of their sender",
            "set the policy first: ipchains -P forward DENY, or ipfwadm -F -p deny",
        )
    for name in (INPUT, OUTPUT):
        reached = [rule for _, _, rule in look.rules_below(name)]
        if chains[name].policy == ACCEPT and reached and all(_only_accepts(rule, chains) for rule in reached):
            yield finding(
                "accept-changes-nothing",
                "note",
                name,
                0,
                "its policy is ACCEPT and all its rules accept, so they change nothing",
                f"to let in only what they name, set the policy first: ipchains -P {name} DENY",
            )


def _accepts_the_rest(look: Subject) -> bool:
    """Return whether forward masquerades some packets, and its policy routes the others."""
    narrow = any(rule.target == MASQ and not covers(rule.match, Match()) for _, _, rule in look.rules_below(FORWARD))
    return look.rules.chains[FORWARD].policy == ACCEPT and narrow


def _only_accepts(rule: Rule, chains: Iterable[str]) -> bool:
    harmless = rule.target in (ACCEPT, "", RETURN) or rule.target in chains
    return harmless and not rule.log and rule.mark is None and rule.tos == (0xFF, 0)


def forward_denied(look: Subject) -> Iterator[Finding]:
    """H-44, A-4: rules for registered addresses need company in the chain forward."""
    forward = look.rules.chains[FORWARD]
    if forward.policy not in REFUSED:
        return
    if not any(rule.target in (ACCEPT, MASQ) for _, _, rule in look.rules_below(FORWARD)):
        yield finding(
            "forward-denied",
            "warning",
            FORWARD,
            0,
            f"its policy is {forward.policy} and no rule accepts or masquerades: nothing is forwarded",
            "add rules for what should pass, or set the policy to ACCEPT",
        )
        return
    for number, match in _for_hosts_behind(look):
        if _forward_refuses(look, match):
            yield finding(
                "forward-denied",
                "warning",
                INPUT,
                number,
                "it accepts packets for a host behind the gateway, but the chain forward denies them",
                "add the same rule to forward, where -i (-W) is the link it leaves by",
            )


def private_sources(look: Subject) -> Iterator[Finding]:
    """H-43, A-4: a set that only routes is for registered addresses; nobody answers a private one."""
    if look.rules.default_forward:
        return
    for inside in look.inside_links():
        own = next(iter((look.around.addresses or {}).get(inside, ())), None)
        if own is None or not is_private(own):
            continue
        for outside in look.outside_links():
            number = _lets_out(look, own + 1, inside, outside)
            if number is not None and not (number == 0 and _accepts_the_rest(look)):
                yield finding(
                    "private-source",
                    "warning",
                    FORWARD,
                    number,
                    f"it lets hosts of {inside} out by {outside} with private addresses, which nobody can answer",
                    f"masquerade them before: ipchains -I forward -s {network_of(own)} -i {outside} -j MASQ",
                )


def _lets_out(look: Subject, host: int, inside: str, outside: str) -> int | None:
    """Return the rule of forward by which an ordinary connection of a host leaves unmasqueraded, None if it does not.

    0 is the policy; of a user chain it is the rule that jumps there.
    """
    packet = Packet(
        source=host,
        destination=STRANGER,
        protocol=TCP,
        source_port=HIGH_PORT,
        destination_port=WEB_PORT,
        syn=True,
        interface=outside,
        interface_address=look.own_address(outside),
    )
    arriving = replace(packet, interface=inside, interface_address=host - 1)
    if look.verdict(INPUT, arriving) in REFUSED or look.verdict(OUTPUT, packet) in REFUSED:
        return None
    decision = evaluate(look.rules, FORWARD, packet)
    own_steps = [step.number for step in decision.steps if step.chain == FORWARD]
    return own_steps[-1] if decision.verdict == ACCEPT else None


def _for_hosts_behind(look: Subject) -> Iterator[tuple[int, Match]]:
    """Yield the rules of input that accept packets for somebody who is certainly not the gateway."""
    for number, rule in look.rules_of(INPUT):
        match = rule.match
        accepts = rule.target == ACCEPT and is_between_hosts(match) and not match.not_destination
        if accepts and look.is_foreign(match.destination, match.interface_address):
            yield number, match


def _forward_refuses(look: Subject, match: Match) -> bool:
    """Return whether forward refuses a packet of this input rule on every link it could leave by."""
    links = [link for link in (*look.inside_links(), *look.outside_links()) if link != match.interface]
    wanted = [probe(match, match.protocol or TCP, interface=link) for link in links or [""]]
    return all(look.verdict(FORWARD, packet) in REFUSED for packet in wanted)


# -- single rules ------------------------------------------------------------------------------------------------------


def interface_addresses(look: Subject) -> Iterator[Finding]:
    """A-3: -V asks for the link's own address. Each is told once; nothing is said of a link that is missing."""
    known = look.around.addresses or {}
    wrong: dict[tuple[str, str, int], list[int]] = {}
    for base in BUILT_IN:
        for chain, number, rule in look.rules_below(base):
            link, wanted = rule.match.interface, rule.match.interface_address
            of_link = known.get(link, ()) if link else [address for own in known.values() for address in own]
            if wanted and of_link and wanted not in of_link:
                wrong.setdefault((chain, link, wanted), []).append(number)
    for (chain, link, wanted), numbers in wrong.items():
        others = f" (and {len(numbers) - 1} more)" if len(numbers) > 1 else ""
        yield finding(
            "interface-address",
            "warning",
            chain,
            numbers[0],
            f"-V asks for {IPv4Address(wanted)}, which is no address of {link or 'any link'}; it never fits{others}",
            "-V is the address of the link, not of the packet; correct it or leave it out",
        )


def whole_networks(look: Subject) -> Iterator[Finding]:
    """A-6: a network written for an address that is not known beforehand."""
    outside = look.around.outside
    own = (look.around.addresses or {}).get(outside, ())
    for base in (INPUT, OUTPUT):
        for chain, number, rule in look.rules_below(base):
            match = rule.match
            end = match.destination if base == INPUT else match.source
            inverted = match.not_destination if base == INPUT else match.not_source
            if match.interface != outside or inverted or end[1] in (0, 0xFFFFFFFF):
                continue
            if any(holds(end, address) for address in own):
                network = f"{IPv4Address(end[0])}/{end[1].bit_count()}"
                yield finding(
                    "whole-network",
                    "note",
                    chain,
                    number,
                    f"it takes all of {network} for the one address of {outside}",
                    "where the address does not change, write it with /32",
                )


def never_reached(look: Subject) -> Iterator[Finding]:
    """First match decides: what an earlier rule takes, a later one does not see."""
    for name, chain in look.rules.chains.items():
        if len(chain.rules) <= MOST_COMPARED:
            yield from _behind_others(look, name)
            continue
        yield finding(
            "never-reached",
            "note",
            name,
            0,
            f"it has {len(chain.rules)} rules, too many to compare each with each",
            f"only chains of up to {MOST_COMPARED} rules are looked through",
        )


def _behind_others(look: Subject, chain: str) -> Iterator[Finding]:
    deciding: list[tuple[int, Rule]] = []
    for number, rule in look.rules_of(chain):
        first = next((one for one in deciding if covers(one[1].match, rule.match)), None)
        if first is not None:
            same = first[1].target == rule.target
            yield finding(
                "never-reached",
                "note" if same else "warning",
                chain,
                number,
                f"rule {first[0]} takes every packet of it first" + (", with the same target" if same else ""),
                "delete it" if same else f"move it before rule {first[0]}, or delete it",
            )
        if rule.target in TARGETS:
            deciding.append((number, rule))


def chains(look: Subject) -> Iterator[Finding]:
    """Jumps that lead nowhere, or round."""
    reached = {name for names in look.reached_from.values() for name in names}
    for name, chain in look.rules.chains.items():
        if name not in reached:
            yield finding(
                "unused-chain", "note", name, 0, "no rule leads to it", "jump to it with -j, or delete it with -X"
            )
        for number, rule in look.rules_of(name):
            if rule.target in look.rules.chains and chain.policy is None and name in _below(look, rule.target):
                yield finding(
                    "loop",
                    "warning",
                    name,
                    number,
                    f"the jump to {rule.target} leads back to {name}; packets that go round are denied",
                    "jump to a chain that does not lead back",
                )


def _below(look: Subject, start: str) -> set[str]:
    found = [start]
    for chain in found:
        found += [
            rule.target
            for _, rule in look.rules_of(chain)
            if rule.target in look.rules.chains and rule.target not in found
        ]
    return set(found)


def meanings(look: Subject) -> Iterator[Finding]:
    """Targets of a user chain that is reached from a built-in chain where they are not allowed (5.3)."""
    for base, target, means in (
        (INPUT, MASQ, "ACCEPT"),
        (OUTPUT, MASQ, "ACCEPT"),
        (FORWARD, REDIRECT, "DENY"),
        (OUTPUT, REDIRECT, "ACCEPT"),
    ):
        for chain, number, rule in look.rules_below(base):
            if rule.target == target:
                yield finding(
                    "other-meaning",
                    "warning",
                    chain,
                    number,
                    f"for packets of the chain {base} its target {target} means {means}",
                    f"keep {target} to rules that only {INPUT if target == REDIRECT else FORWARD} reaches",
                )
