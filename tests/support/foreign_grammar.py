"""Random rule sets as administrators write them, in the words of nft and of iptables-restore: the generator's mix.

A set masquerades inside hosts (10.0.0.0/8 behind eth0) on eth1, by a rule, or by chains of its own; it filters what is
forwarded by policy and rules, jumps, returns and gotos; half of the sets have forwards, some a proxy, or marks. A few
hold what fastmasq has no counterpart of. Numbers behind draws are parts of a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st

TCP_PORTS, UDP_PORTS = (22, 25, 80, 443, 2222, 8080), (53, 123, 5000)
SERVER, OTHER_SERVER = "199.0.0.9", "203.0.113.7"
HOST, OTHER_HOST = "10.0.0.5", "10.0.1.7"


class Condition(NamedTuple):
    """One condition: what it is about, its values, and whether it is inverted."""

    about: str
    values: tuple[str, ...]
    inverted: bool = False


class Line(NamedTuple):
    """One rule: its conditions, and what it does ("accept", "jump NAME", "dnat 10.0.0.5:80", ...)."""

    conditions: tuple[Condition, ...]
    action: str


class Chain(NamedTuple):
    """A chain; a base chain has hook, type, priority and policy."""

    name: str
    lines: tuple[Line, ...]
    hook: str = ""
    kind: str = ""
    priority: int = 0
    policy: str = "accept"


class Grammar(NamedTuple):
    """A whole set."""

    nat: tuple[Chain, ...]
    filter: tuple[Chain, ...]
    wan: bool  # nft: whether links and networks are written as defines
    named_sets: bool


def often(percent: int) -> st.SearchStrategy[bool]:
    """True so often of a hundred times; hypothesis likes the ends of a range, which say nothing here."""
    return st.integers(0, 99).map(lambda number: (number + 50) % 100 < percent)


@st.composite
def conditions(draw: st.DrawFn, *, links: bool = True) -> tuple[Condition, ...]:
    """What a filter rule asks of a packet."""
    found = []
    if links and draw(often(40)):
        found.append(Condition("in", ("eth0",)))
        if draw(often(50)):
            found.append(Condition("out", ("eth1",)))
    elif links and draw(often(15)):
        found.append(Condition("in", ("eth1",), draw(often(20))))
    if draw(often(30)):
        found.append(Condition("from", (draw(st.sampled_from((HOST, "10.0.0.0/24", "10.0.0.0/8"))),), draw(often(15))))
    if draw(often(25)):
        found.append(Condition("to", (draw(st.sampled_from((SERVER, "199.0.0.0/24", OTHER_SERVER))),), draw(often(15))))
    match draw(st.integers(0, 9)):
        case 0 | 1 | 2:
            found.append(Condition("tcp", _several(draw, TCP_PORTS), draw(often(10))))
        case 3 | 4:
            found.append(Condition("udp", _several(draw, UDP_PORTS), draw(often(10))))
        case 5:
            found.append(Condition("protocol", (draw(st.sampled_from(("tcp", "udp", "icmp"))),), draw(often(20))))
        case 6:
            found.append(Condition("ping", ()))
    if draw(often(20)):
        found.append(Condition("state", ("new",)))
    if draw(often(1)):
        found.append(Condition("limit", ()))
    return tuple(found)


def _several(draw: st.DrawFn, ports: Sequence[int]) -> tuple[str, ...]:
    return tuple(str(port) for port in draw(st.lists(st.sampled_from(ports), min_size=1, max_size=3, unique=True)))


VERDICTS = ("accept",) * 5 + ("drop",) * 3 + ("reject",)


@st.composite
def filters(draw: st.DrawFn) -> tuple[Chain, ...]:
    """The chains of FORWARD, mostly with a rule for what belongs to flows that are let pass."""
    users = [f"user{number}" for number in range(draw(st.integers(0, 2)))]
    chains = []
    for number, name in enumerate(users):
        further = [*VERDICTS, "return", *(f"jump {other}" for other in users[number + 1 :])]
        lines = draw(st.lists(_lines(further, links=False), min_size=1, max_size=3))
        chains.append(Chain(name, tuple(lines)))
    verdicts = [*VERDICTS, *(f"{how} {user}" for user in users for how in ("jump", "jump", "goto"))]
    lines = draw(st.lists(_lines(verdicts), max_size=5))
    policy = draw(st.sampled_from(("accept", "drop", "drop")))
    if policy == "drop" and draw(often(70)):
        lines.append(Line((Condition("in", ("eth0",)), Condition("out", ("eth1",))), "accept"))
    if draw(often(96)):
        lines.insert(0, Line((Condition("state", ("established", "related")),), "accept"))
    base = Chain("forward", tuple(lines), "forward", "filter", draw(st.sampled_from((0, 5))), policy)
    found = [*chains, base]
    if draw(often(25)):
        second = draw(st.lists(_lines(("drop", "accept")), min_size=1, max_size=2))
        second = [Line((*line.conditions, Condition("state", ("new",))), line.action) for line in second]
        found.append(Chain("second", tuple(second), "forward", "filter", draw(st.sampled_from((-150, -20)))))
    return tuple(found)


@st.composite
def _lines(draw: st.DrawFn, actions: Sequence[str], *, links: bool = True) -> Line:
    return Line(draw(conditions(links=links)), draw(st.sampled_from(actions)))


@st.composite
def masquerading(draw: st.DrawFn, *, by_mark: bool) -> tuple[Chain, ...]:
    """The chains of postrouting."""
    sources = draw(st.sampled_from(((), (), *((("10.0.0.0/8",),) * 3), ("10.0.0.0/24", "10.0.1.0/24"))))
    asked = [Condition("from", sources)] if sources else []
    if by_mark:
        asked.append(Condition("mark", ("7",)))
    out = Condition("out", ("eth1",))
    lines = []
    if draw(often(5)):
        lines.append(Line((Condition("to", ("203.0.113.0/24",)),), draw(st.sampled_from(("accept", "return")))))
    action = draw(st.sampled_from(("masquerade", "masquerade", "snat 200.200.200.200")))
    match draw(st.integers(0, 3)):
        case 0:
            own = Chain("wan", (*lines, Line(tuple(asked), action)))
            base = [Line((out,), draw(st.sampled_from(("jump wan", "goto wan"))))]
            chains = [own]
        case 1:
            chains = [Chain("wan", (Line((), "return"),))]
            base = [*lines, Line((), "jump wan"), Line((out, *asked), action)]
        case _:
            chains = []
            base = [*lines, Line((out, *asked), action)]
    return (*chains, Chain("postrouting", tuple(base), "postrouting", "nat", 100))


@st.composite
def marking(draw: st.DrawFn) -> Chain:
    """The chain that marks what is to be masqueraded."""
    lines = [Line((Condition("in", ("eth0",)), *draw(conditions(links=False))), "mark 7")]
    if draw(often(50)):
        lines.insert(
            draw(st.integers(0, 1)), Line((Condition("in", ("eth0",)),), draw(st.sampled_from(("mark 7", "mark 8"))))
        )
    return Chain("marking", tuple(lines), "prerouting", "filter", -150)


@st.composite
def incoming(draw: st.DrawFn) -> tuple[tuple[Chain, ...], tuple[Line, ...]]:
    """The chains of prerouting, and what forward must have for them."""
    lines, needed = [], []
    for protocol, port, to in draw(
        st.lists(
            st.sampled_from((("tcp", "8080", "80"), ("tcp", "2222", "22"), ("udp", "5000", ""), ("tcp", "443", "443"))),
            max_size=2,
            unique=True,
        )
    ):
        asked = [Condition("in", ("eth1",))]
        if draw(often(15)):
            asked.append(Condition("from", ("199.0.0.0/24",)))
        target = f"{HOST}:{to}" if to else HOST
        lines.append(Line((*asked, Condition(protocol, (port,))), f"dnat {target}"))
        if draw(often(85)):
            wanted = [Condition("to", (HOST,)), Condition(protocol, (to or port,))]
            needed.append(Line((Condition("in", ("eth1",)), *wanted), "accept"))
    if draw(often(15)):
        lines.append(Line((Condition("in", ("eth0",)), Condition("tcp", ("80",))), "redirect 3128"))
    if draw(often(3)):
        lines.append(
            Line((Condition("in", ("eth1",)), Condition("limit", ()), Condition("tcp", ("25",))), f"dnat {HOST}:25")
        )
    if not lines:
        return (), ()
    if draw(often(30)):
        return (Chain("into", tuple(lines)), _prerouting([Line((), "jump into")])), tuple(needed)
    return (_prerouting(lines),), tuple(needed)


def _prerouting(lines: Sequence[Line]) -> Chain:
    return Chain("prerouting", tuple(lines), "prerouting", "nat", -100)


@st.composite
def rule_sets(draw: st.DrawFn) -> Grammar:
    into, needed = draw(incoming())
    chains = list(draw(filters()))
    place = next(number for number, chain in enumerate(chains) if chain.name == "forward")
    forward = chains[place]
    first = (
        1
        if forward.lines[:1] and forward.lines[0].conditions[:1] == (Condition("state", ("established", "related")),)
        else 0
    )
    chains[place] = forward._replace(lines=(*forward.lines[:first], *needed, *forward.lines[first:]))
    if draw(often(70)):
        own = [
            Line((Condition("state", ("established", "related")),), "accept"),
            Line((Condition("in", ("eth0",)),), "accept"),
        ]
        chains.append(Chain("input", tuple(own), "input", "filter", 0, "drop"))
    by_mark = draw(often(12))
    if by_mark:
        chains.append(draw(marking()))
    nat = (*into, *draw(masquerading(by_mark=by_mark)))
    return Grammar(nat, tuple(chains), draw(often(30)), draw(often(30)))


# -- in the words of nft -----------------------------------------------------------------------------------------------


def nft(grammar: Grammar) -> str:
    """Return a file for `nft -f`."""
    parts = []
    if grammar.wan:
        parts.append('define wan = "eth1"\ndefine lan = 10.0.0.0/8\n')
    for table, chains in (("ip nat", grammar.nat), ("inet filter", grammar.filter)):
        parts.append(f"table {table} {{\n")
        if grammar.named_sets:
            parts.append("    set servers { type ipv4_addr; flags interval; elements = { 199.0.0.0/24 }; }\n")
        for chain in chains:
            parts.append(f"    chain {chain.name} {{\n")
            if chain.hook:
                parts.append(
                    f"        type {chain.kind} hook {chain.hook} priority {chain.priority}; policy {chain.policy};\n"
                )
            for line in chain.lines:
                parts.append(f"        {_nft_line(line, grammar)}\n")
            parts.append("    }\n")
        parts.append("}\n")
    return "".join(parts)


def _nft_line(line: Line, grammar: Grammar) -> str:
    words = [_nft_condition(condition, grammar) for condition in line.conditions]
    verb, _, rest = line.action.partition(" ")
    if line.conditions[-1:] and line.conditions[-1].about == "tcp" and not line.conditions[-1].inverted:
        ports = line.conditions[-1].values
        if verb in ("accept", "drop") and len(ports) > 1:
            return f"{' '.join(words[:-1])} tcp dport vmap {{ {', '.join(f'{port} : {verb}' for port in ports)} }}"
        if verb == "dnat" and len(ports) == 1:
            address, _, port = rest.partition(":")
            return f"{' '.join(words[:-1])} dnat ip addr . port to tcp dport map {{ {ports[0]} : {address} . {port} }}"
    targets = {"dnat": f"dnat to {rest}", "snat": f"snat to {rest}", "redirect": f"redirect to :{rest}"}
    targets["mark"] = f"meta mark set {rest}"
    return " ".join([*words, targets.get(verb, line.action)])


def _nft_condition(condition: Condition, grammar: Grammar) -> str:
    about, values, inverted = condition
    unequal = "!= " if inverted else ""
    listed = values[0] if len(values) == 1 else f"{{ {', '.join(values)} }}"
    match about:
        case "in" | "out":
            name = "$wan" if grammar.wan and values == ("eth1",) else f'"{values[0]}"'
            return f"{about[0]}ifname {unequal}{name}"
        case "from" | "to":
            if grammar.named_sets and values == ("199.0.0.0/24",):
                listed = "@servers"
            elif grammar.wan and values == ("10.0.0.0/8",):
                listed = "$lan"
            return f"ip {'saddr' if about == 'from' else 'daddr'} {unequal}{listed}"
        case "tcp" | "udp":
            return f"{about} dport {unequal}{listed}"
        case "protocol":
            return f"meta l4proto {unequal}{listed}"
        case "ping":
            return "icmp type echo-request"
        case "state":
            return f"ct state {','.join(values)}"
        case "mark":
            return f"meta mark {values[0]}"
    return "limit rate 1000/second burst 1000 packets"


# -- in the words of iptables-restore ----------------------------------------------------------------------------------


def iptables(grammar: Grammar) -> str:
    """Return a file for `iptables-restore`; the second chain of forward is that of mangle."""
    tables: dict[str, list[Chain]] = {"mangle": [], "nat": list(grammar.nat), "filter": []}
    for chain in grammar.filter:
        tables["mangle" if chain.name in ("second", "marking") else "filter"].append(chain)
    parts = []
    for table, chains in tables.items():
        parts.append(f"*{table}\n")
        for chain in chains:
            parts.append(f":{_ipt_name(chain)} {chain.policy.upper() if chain.hook else '-'} [0:0]\n")
        for chain in chains:
            for line in chain.lines:
                parts.append(f"-A {_ipt_name(chain)} {_ipt_line(line, table)}\n")
        parts.append("COMMIT\n")
    return "".join(parts)


def _ipt_name(chain: Chain) -> str:
    return chain.hook.upper() if chain.hook else chain.name


def _ipt_line(line: Line, table: str) -> str:
    words = [_ipt_condition(condition) for condition in line.conditions]
    verb, _, rest = line.action.partition(" ")
    targets = {
        **{"jump": f"-j {rest}", "goto": f"-g {rest}", "dnat": f"-j DNAT --to-destination {rest}"},
        **{"snat": f"-j SNAT --to-source {rest}", "redirect": f"-j REDIRECT --to-ports {rest}"},
        "mark": f"-j MARK --set-mark {rest}",
        "reject": "-j REJECT --reject-with icmp-port-unreachable" if table == "filter" else "-j DROP",
    }
    return " ".join([*words, targets.get(verb, f"-j {line.action.upper()}")])


def _ipt_condition(condition: Condition) -> str:
    about, values, inverted = condition
    unequal = "! " if inverted else ""
    match about:
        case "in" | "out":
            return f"{unequal}-{about[0]} {values[0]}"
        case "from" | "to":
            return f"{unequal}-{'s' if about == 'from' else 'd'} {','.join(values)}"
        case "tcp" | "udp":
            return f"-p {about} -m multiport {unequal}--dports {','.join(values)}"
        case "protocol":
            return f"{unequal}-p {values[0]}"
        case "ping":
            return "-p icmp --icmp-type 8"
        case "state":
            return f"-m conntrack --ctstate {','.join(values).upper()}"
        case "mark":
            return f"-m mark --mark {values[0]}"
    return "-m limit --limit 1000/second --limit-burst 1000"
