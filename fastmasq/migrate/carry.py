"""Makes fastmasq's policy of the rules of iptables or nftables, and says of each rule that does not fit why.

The two differ in more than words. A chain of 1999 sees every packet: `input` those that only pass through as well, with
their addresses before masquerading is undone; `forward` knows only the link a packet leaves by; and no chain knows
states. So

* FORWARD becomes the chain forward. Accepting becomes MASQ where a packet would have been masqueraded on leaving.
  Answers need no rule. A rule for the arriving link is carried over where the leaving one follows from it: with two
  links.
* INPUT and OUTPUT become the user chains `host` and `hostout`, entered by the gateway's addresses, which must be named;
  what belongs to sessions of inside hosts is let by before, which needs a port range of its own.
* DNAT becomes port forwards, and redirects of other protocols; REDIRECT stays what it is, in the chain input.

Nothing is carried over in part: what a rule asks beyond that leaves the rule out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from msgspec.structs import replace

from fastmasq.errors import ConfigurationError
from fastmasq.migrate import foreign
from fastmasq.migrate.files import MASQUERADED_PORTS, Carried, Forward, Kind, Note, Redirect
from fastmasq.migrate.foreign import ForeignChain, ForeignRule
from fastmasq.policy.chains import (
    ACCEPT,
    BUILT_IN,
    DENY,
    FORWARD,
    INPUT,
    LONGEST_NAME,
    MASQ,
    OUTPUT,
    REDIRECT,
    REJECT,
    RETURN,
    TARGETS,
    Match,
    Rule,
    RuleSet,
)
from fastmasq.policy.coverage import covers, meet
from fastmasq.wire.numbers import ESP, GRE, ICMP, TCP, UDP

_PORT = re.compile(r"\d{1,5}", re.ASCII)
HOST_CHAINS = {foreign.INPUT: "host", foreign.OUTPUT: "hostout"}

_NAMES = {TCP: "tcp", UDP: "udp"}
_TARGET_OF = {"accept": ACCEPT, "drop": DENY, "reject": REJECT, "return": RETURN}
_ANSWERS = {"established", "related"}
_ERRORS = (0, 3, 11)  # ICMP that belongs to sessions: echo replies, unreachable, time exceeded


class _DoesNotFit(Exception):
    """Why a rule is left out."""


def carry(
    chains: Iterable[ForeignChain], *, inside: tuple[str, ...] = (), outside: str = "", addresses: tuple[str, ...] = ()
) -> Carried:
    """Return the policy. Raises ConfigurationError when the links cannot be told.

    inside, outside: the links, where the rules do not show them. addresses: the gateway's own, for its host rules.
    """
    return _Carrying(list(chains), inside, outside, addresses).all()


class _Carrying:
    """One set of foreign chains on its way."""

    def __init__(
        self, chains: list[ForeignChain], inside: tuple[str, ...], outside: str, addresses: tuple[str, ...]
    ) -> None:
        self.chains = chains
        self.jumped_to = {chain.name: chain for chain in chains if not chain.hook and chain.kind != "nat"}
        self.addresses = [foreign.read_network(text) for text in addresses]
        outside = outside or self._find_outside()
        self.result = Carried(
            inside=list(inside) or self._find_inside(outside),
            outside=outside,
            rules=RuleSet(),
            forwards=[],
            redirects=[],
            notes=[],
        )
        self.masquerades: list[Match] = []
        self.user_chains: dict[tuple[str, str], str] = {}

    def all(self) -> Carried:
        rules, result = self.result.rules, self.result
        for rule in self._rules("nat", foreign.POSTROUTING):
            self._try(self._masquerade, rule)
        for rule in self._rules("nat", foreign.PREROUTING):
            self._try(self._translate, rule)
        self._forward()
        for hook in HOST_CHAINS:
            self._host(hook)
        self._others()
        plain = self.masquerades == [Match(interface=result.outside)] and rules.chains[FORWARD].policy == ACCEPT
        touched = any(rules.chains[name].rules for name in (INPUT, OUTPUT)) or len(rules.chains[FORWARD].rules) > 1
        result.needs_rules = touched or not plain
        result.notes.sort(key=lambda note: note.line)
        return result

    # -- links -----------------------------------------------------------------------------------------------------

    def _find_outside(self) -> str:
        for rule in self._rules("nat", foreign.POSTROUTING):
            if rule.out_link and "out_link" not in rule.inverted:
                return rule.out_link
        raise ConfigurationError("no rule masquerades on a link by name; name the outside link with --outside")

    def _find_inside(self, outside: str) -> list[str]:
        seen = [link for chain in self.chains for rule in chain.rules for link in (rule.in_link, rule.out_link)]
        found = list(dict.fromkeys(link for link in seen if link not in ("", "lo", outside) and "+" not in link))
        if not found:
            raise ConfigurationError("no rule names an inside link; name it with --inside")
        return found

    def _leaving(self, rule: ForeignRule) -> str:
        """Return the link a packet of a FORWARD rule leaves by, as far as the rule says."""
        if not rule.in_link:
            return rule.out_link
        links = [*self.result.inside, self.result.outside]
        if "in_link" in rule.inverted or rule.in_link not in links or len(links) != 2:
            raise _DoesNotFit(
                "the chain forward knows only the link a packet leaves by; name the sender's network instead"
            )
        other = links[1 - links.index(rule.in_link)]
        if rule.out_link not in ("", other) or "out_link" in rule.inverted:
            raise _DoesNotFit("packets that leave by the link they came in by cannot be told from others")
        return other

    # -- address translation ---------------------------------------------------------------------------------------

    def _masquerade(self, rule: ForeignRule) -> None:
        if rule.action in ("accept", "return"):
            raise _DoesNotFit("an exception before masquerading; accept these packets in forward before the MASQ rules")
        if rule.action not in ("masquerade", "snat"):
            raise _DoesNotFit("only masquerading is known on the way out")
        if rule.out_link != self.result.outside or "out_link" in rule.inverted:
            raise _DoesNotFit(f"only {self.result.outside} is the outside link")
        if rule.action == "snat":
            self._note(rule, "changed", f"the external address is {self.result.outside}'s own, whatever it is")
        self.masquerades += self._matches(rule, rule.out_link)

    def _translate(self, rule: ForeignRule) -> None:
        if rule.action == "redirect":
            if rule.protocol not in _NAMES:
                raise _DoesNotFit("only TCP and UDP can be redirected to a local port")
            port = rule.to.lstrip(":") or "0"
            if not _PORT.fullmatch(port):
                raise _DoesNotFit("packets are redirected to one local port")
            self._note(rule, "changed", "INPUT is not asked as well about what it redirects")
            for match in self._matches(rule, rule.in_link):
                self.result.rules.append(INPUT, Rule(match=match, target=REDIRECT, redirect_port=int(port)))
            return
        if rule.action != "dnat":
            raise _DoesNotFit("only DNAT and REDIRECT are known on the way in")
        if rule.in_link not in ("", self.result.outside) or rule.source[1] or rule.inverted or rule.states:
            raise _DoesNotFit("a forward is for everybody outside; restrict it by rules of the chain input")
        address, _, port = rule.to.partition(":")
        if not _is_address(address):
            raise _DoesNotFit(f"{rule.to!r} is not one address")
        if rule.protocol in _NAMES:
            self._port_forwards(rule, address, port)
        elif rule.protocol in (0, ICMP):
            raise _DoesNotFit("a forward is for TCP or UDP ports, a redirect for one other protocol")
        else:
            self.result.redirects.append(Redirect(rule.protocol, address))

    def _port_forwards(self, rule: ForeignRule, address: str, to_port: str) -> None:
        if not rule.destination_ports or rule.source_ports:
            raise _DoesNotFit("a forward needs its ports")
        listens = str(IPv4Address(rule.destination[0])) if rule.destination[1] else self.result.outside
        for first, last in rule.destination_ports:
            ports = f"{first}" if first == last else f"{first}-{last}"
            if to_port not in ("", ports) and (first != last or not _PORT.fullmatch(to_port)):
                raise _DoesNotFit("a range of ports is forwarded to the same ports")
            forward = Forward(
                _NAMES[rule.protocol],
                f"{listens}:{ports}",
                f"{address}:{to_port if first == last and to_port else first}",
            )
            self.result.forwards.append(forward)

    # -- filters ---------------------------------------------------------------------------------------------------

    def _forward(self) -> None:
        rules = self.result.rules
        base = self._base("filter", foreign.FORWARD)
        if base and base.policy == "drop":
            rules.set_policy(FORWARD, DENY)
        if base and (base.rules or base.policy == "drop"):
            self._let_answers_out()
        self._carry_chain(base, FORWARD, FORWARD)
        if not base or base.policy == "accept":
            for match in self.masquerades:
                rules.append(FORWARD, Rule(match=match, target=MASQ))

    def _let_answers_out(self) -> None:
        """Masquerade what forwarded services answer: a state did that before, here the chain forward is asked."""
        outside = self.result.outside
        wanted = []
        for forward in self.result.forwards:
            address, _, port = forward.to.partition(":")
            first, last = _listening(forward)
            ports = (int(port), int(port) + last - first)
            protocol, source = foreign.PROTOCOLS[forward.protocol], foreign.read_network(address)
            wanted.append(Match(protocol=protocol, source=source, source_ports=(ports,), interface=outside))
        for redirect in self.result.redirects:
            source = foreign.read_network(redirect.to)
            wanted.append(Match(protocol=redirect.protocol, source=source, interface=outside))
        for match in dict.fromkeys(wanted):
            self.result.rules.append(FORWARD, Rule(match=match, target=MASQ))

    def _host(self, hook: str) -> None:
        base = self._base("filter", hook)
        if base is None or not (base.rules or base.policy == "drop"):
            return
        if not self.addresses:
            why = "the chains of 1999 also see what passes through; name the gateway's addresses with --address"
            self.result.notes.append(Note(base.line, "left out", f"the chain {base.name}", why))
            return
        rules, name = self.result.rules, HOST_CHAINS[hook]
        rules.new_chain(name)
        self._carry_chain(base, name, hook)
        rules.append(name, Rule(target=self._policy(hook)))
        self.result.own_ports = True
        chain = INPUT if hook == foreign.INPUT else OUTPUT
        for address in self.addresses:
            for match in self._of_sessions(address):
                rules.append(chain, Rule(match=match if chain == INPUT else _reversed(match), target=ACCEPT))
            whole = Match(destination=address)
            rules.append(chain, Rule(match=whole if chain == INPUT else _reversed(whole), target=name))

    def _policy(self, hook: str) -> str:
        base = self._base("filter", hook)
        return DENY if base and base.policy == "drop" else ACCEPT

    def _of_sessions(self, address: tuple[int, int]) -> Iterator[Match]:
        """Yield what is addressed to the gateway and belongs to sessions of inside hosts, seen from outside."""
        for protocol in _NAMES:
            yield Match(protocol=protocol, destination=address, destination_ports=(MASQUERADED_PORTS,))
        for kind in _ERRORS:
            yield Match(protocol=ICMP, destination=address, source_ports=((kind, kind),))
        for protocol in (GRE, ESP):
            yield Match(protocol=protocol, destination=address)
        for forward in self.result.forwards:
            protocol = foreign.PROTOCOLS[forward.protocol]
            yield Match(protocol=protocol, destination=address, destination_ports=(_listening(forward),))

    def _carry_chain(self, chain: ForeignChain | None, name: str, root: str) -> None:
        for rule in chain.rules if chain else ():
            self._try(lambda rule: self._carry_rule(rule, name, root), rule)

    def _carry_rule(self, rule: ForeignRule, name: str, root: str) -> None:
        if rule.action in ("masquerade", "snat", "dnat", "redirect"):
            raise _DoesNotFit(f"{rule.action} does not belong here")
        if not rule.action and not rule.log:
            self._note(rule, "not needed", "it only counts; every rule does")
            return
        if root == FORWARD and self._is_needless(rule):
            return
        link = {foreign.INPUT: rule.in_link, foreign.OUTPUT: rule.out_link}.get(root)
        for match in self._matches(rule, self._leaving(rule) if link is None else link):
            for changed in self._with_states(rule, match, root):
                self._put(rule, changed, name, root)

    def _put(self, rule: ForeignRule, match: Match, name: str, root: str) -> None:
        target = self._user_chain(rule.to, root) if rule.action == "jump" else _TARGET_OF.get(rule.action, "")
        if target == RETURN and name in HOST_CHAINS.values():
            target = self._policy(root)  # what returning from INPUT itself comes to
        rules = self.result.rules
        if root == FORWARD and target == ACCEPT:
            for masquerade in self.masquerades:
                common = meet(match, masquerade)
                if common is not None:
                    rules.append(name, Rule(match=common, target=MASQ, log=rule.log))
            if any(covers(masquerade, match) for masquerade in self.masquerades):
                return
        rules.append(name, Rule(match=match, target=target, log=rule.log))

    def _is_needless(self, rule: ForeignRule) -> bool:
        """Return whether fastmasq does by itself what a FORWARD rule is for, and note it."""
        states = set(rule.states)
        why = ""
        if states and states <= _ANSWERS and rule.action == "accept" and self.masquerades:
            why = "answers in masqueraded sessions need no rule"
        elif states == {"invalid"} and rule.action == "drop":
            why = "what belongs to no session is dropped anyway"
        elif rule.action == "accept" and rule.in_link == self.result.outside and rule.destination[1] == 0xFFFFFFFF:
            host = str(IPv4Address(rule.destination[0]))
            targets = [forward.to.partition(":")[0] for forward in self.result.forwards]
            if host in targets or host in [redirect.to for redirect in self.result.redirects]:
                why = "the port forward lets these packets in"
        if why:
            self._note(rule, "not needed", why)
        return bool(why)

    def _with_states(self, rule: ForeignRule, match: Match, root: str) -> list[Match]:
        """Return what a rule with conntrack's states becomes without them."""
        states = set(rule.states)
        if "states" in rule.inverted:
            raise _DoesNotFit("the chains know no states")
        if root == FORWARD and rule.action == "accept" and match.syn:
            self._note(rule, "changed", "without -y: the chain forward is asked about all segments of a session")
            match = replace(match, syn=None)
        if not states or (rule.action == "accept" and "new" in states):
            return [match]
        if states <= _ANSWERS and rule.action == "accept" and root in HOST_CHAINS and match.protocol in (0, TCP):
            self._note(rule, "changed", "TCP that opens nothing (! -y) and ICMP 0, 3, 11; UDP answers need rules")
            errors = [
                replace(match, protocol=ICMP, source_ports=((kind, kind),))
                for kind in (_ERRORS if match.protocol == 0 else ())
            ]
            return [replace(match, protocol=TCP, syn=False), *errors]
        if states == {"new"} and match.protocol == TCP:
            return [replace(match, syn=True)]
        if states == {"invalid"} and rule.action == "drop":
            self._note(rule, "not needed", "the host drops such packets itself")
            return []
        raise _DoesNotFit(f"the chains know no states ({', '.join(rule.states)})")

    def _user_chain(self, name: str, root: str) -> str:
        """Return our name of a chain that rules jump to, which is made once for each hook it is reached from."""
        if (root, name) in self.user_chains:
            return self.user_chains[root, name]
        chain = self.jumped_to.get(name)
        if chain is None:
            raise _DoesNotFit(f"there is no chain {name!r} to jump to")
        taken = {*self.result.rules.chains, *TARGETS, *BUILT_IN}
        short = name[:LONGEST_NAME]
        candidates = itertools.chain([short], (f"{short[: LONGEST_NAME - 2]}{number}" for number in range(1, 100)))
        ours = next(candidate for candidate in candidates if candidate not in taken)
        self.user_chains[root, name] = ours
        self.result.rules.new_chain(ours)
        self._carry_chain(chain, ours, root)
        return ours

    # -- within ----------------------------------------------------------------------------------------------------

    def _matches(self, rule: ForeignRule, link: str) -> list[Match]:
        """Return the conditions of a rule for a link, one match for each port range: ipchains knows one of a side."""
        if rule.unknown:
            raise _DoesNotFit(f"there is nothing like {'; '.join(rule.unknown)}")
        if "*" in link or "icmp_type" in rule.inverted:
            raise _DoesNotFit("this inversion or pattern has no counterpart")
        sides = [rule.source_ports, rule.destination_ports]
        if rule.icmp_type is not None:
            sides = [[(kind, kind)] if kind is not None else [] for kind in (rule.icmp_type, rule.icmp_code)]
        for name, ports in zip(("source_ports", "destination_ports"), sides, strict=True):
            if name in rule.inverted and len(ports) > 1:
                raise _DoesNotFit("several ports cannot be inverted together")
        return [
            Match(
                source=rule.source,
                destination=rule.destination,
                protocol=rule.protocol,
                source_ports=(sport,) if sport else (),
                destination_ports=(dport,) if dport else (),
                interface=link,
                syn=rule.syn,
                fragment=rule.fragment,
                not_source="source" in rule.inverted,
                not_destination="destination" in rule.inverted,
                not_protocol="protocol" in rule.inverted,
                not_source_ports="source_ports" in rule.inverted,
                not_destination_ports="destination_ports" in rule.inverted,
                not_interface=bool({"in_link", "out_link"} & rule.inverted),
            )
            for sport, dport in itertools.product(sides[0] or [None], sides[1] or [None])
        ]

    def _base(self, kind: str, hook: str) -> ForeignChain | None:
        return next((chain for chain in self.chains if (chain.kind, chain.hook) == (kind, hook)), None)

    def _rules(self, kind: str, hook: str) -> list[ForeignRule]:
        base = self._base(kind, hook)
        return base.rules if base else []

    def _others(self) -> None:
        """Note the rules of chains that were not looked at."""
        known = {id(self._base(kind, hook)) for kind, hook in _LOOKED_AT}
        used = {name for _, name in self.user_chains}
        for chain in self.chains:
            if id(chain) in known or (not chain.hook and chain.name in used):
                continue
            why = "no rule that was carried over jumps here" if not chain.hook else "such a chain has no counterpart"
            for rule in chain.rules:
                self._leave_out(rule, f"chain {chain.name} ({chain.kind}): {why}")
            if chain.hook and chain.policy == "drop":
                policy = ForeignRule(line=chain.line, text=f"the policy of {chain.name}", action="drop")
                self._leave_out(policy, why)

    def _try(self, act, rule: ForeignRule) -> None:
        try:
            act(rule)
        except _DoesNotFit as reason:
            self._leave_out(rule, str(reason))

    def _leave_out(self, rule: ForeignRule, why: str) -> None:
        self._note(rule, "left out", why + ("; more passes than before" if rule.action in ("drop", "reject") else ""))

    def _note(self, rule: ForeignRule, kind: Kind, why: str) -> None:
        note = Note(rule.line, kind, rule.text, why)
        if note not in self.result.notes:
            self.result.notes.append(note)


_LOOKED_AT = (
    *(("nat", foreign.POSTROUTING), ("nat", foreign.PREROUTING)),
    *(("filter", foreign.FORWARD), ("filter", foreign.INPUT), ("filter", foreign.OUTPUT)),
)


def _listening(forward: Forward) -> tuple[int, int]:
    return foreign.read_ports(forward.listen.rpartition(":")[2], "-")


def _reversed(match: Match) -> Match:
    """Return the match for the same sessions in the other direction; ICMP types stay where they are."""
    ports = (match.source_ports, match.destination_ports)
    return replace(
        match,
        source=match.destination,
        destination=match.source,
        source_ports=ports[0] if match.protocol == ICMP else ports[1],
        destination_ports=ports[1] if match.protocol == ICMP else ports[0],
    )


def _is_address(text: str) -> bool:
    try:
        return IPv4Network(text).prefixlen == 32
    except ValueError:
        return False
