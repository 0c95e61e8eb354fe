"""Reads the output of iptables-save."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator

from fastmasq.errors import ConfigurationError
from fastmasq.migrate.foreign import ForeignChain, ForeignRule, read_icmp, read_network, read_ports, read_protocol

_ACTIONS = {
    **{"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return", "MASQUERADE": "masquerade"},
    **{"SNAT": "snat", "DNAT": "dnat", "REDIRECT": "redirect", "LOG": "", "NFLOG": ""},
}
_TARGET_OPTIONS = ("--to-destination", "--to-source", "--to-ports", "--to-port")
_IGNORED_OPTIONS = {  # what changes nothing that could be carried over: option -> number of its words
    **{"--comment": 1, "--reject-with": 1, "--log-level": 1, "--log-tcp-options": 0, "--log-ip-options": 0},
    **{"--log-tcp-sequence": 0, "--log-uid": 0, "--random": 0, "--random-fully": 0, "--persistent": 0, "-c": 2},
    **{"--nflog-group": 1},
}
_MODULES = ("tcp", "udp", "icmp", "state", "conntrack", "multiport", "comment")
_SYN_MASKS = ({"FIN", "SYN", "RST", "ACK"}, {"SYN", "RST", "ACK"})


def read(text: str) -> Iterator[ForeignChain]:
    """Yield the chains of all tables; the table is their kind, and built-in ones have their hooks.

    Raises ConfigurationError where the text is not iptables-save's.
    """
    chains: dict[tuple[str, str], ForeignChain] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#") or line == "COMMIT":
            continue
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":") and table and " " in line:
            name, policy, *_ = line[1:].split()
            hook = name.lower() if policy != "-" else ""
            chains[table, name] = ForeignChain(
                name=name, kind=table, hook=hook, policy=policy.lower() if hook else "accept", line=number
            )
        elif line.startswith(("-A ", "[")) and table:
            name, words = _words(line, number)
            if (table, name) not in chains:
                raise ConfigurationError(f"line {number}: there is no chain {name!r} in table {table!r}")
            chains[table, name].rules.append(_rule(words, number, line))
        else:
            raise ConfigurationError(f"line {number}: not a line of iptables-save: {line[:60]!r}")
    for (table, _), chain in chains.items():
        for rule in chain.rules:
            if rule.action == "jump" and (table, rule.to) not in chains:
                rule.unknown.append(f"-j {rule.to}")
        yield chain


def _words(line: str, number: int) -> tuple[str, list[str]]:
    """Return the chain of an -A line, and the words behind it. Raises ConfigurationError."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ConfigurationError(f"line {number}: {error}") from None
    if words[0].startswith("["):  # counters of iptables-save -c
        words = words[1:]
    if len(words) < 2:
        raise ConfigurationError(f"line {number}: a rule without its chain")
    return words[1], words[2:]


def _rule(words: list[str], number: int, line: str) -> ForeignRule:
    """Read the words behind `-A CHAIN`; what is not understood ends in `unknown`."""
    rule = ForeignRule(line=number, text=line)
    inverted, position = False, 0
    while position < len(words):
        word, value = words[position], words[position + 1] if position + 1 < len(words) else ""
        position += 1
        if word == "!":
            inverted = True
            continue
        if word in _IGNORED_OPTIONS:
            position += _IGNORED_OPTIONS[word]
        elif word in ("-f", "--fragment", "--syn"):
            setattr(rule, "syn" if word == "--syn" else "fragment", not inverted)
        elif word == "--tcp-flags":
            _tcp_flags(rule, value, "".join(words[position + 1 : position + 2]), inverted)
            position += 2
        elif word == "-m" and value in _MODULES:
            position += 1
        elif word in _OPTIONS:
            field, read_value = _OPTIONS[word]
            try:
                read_value(rule, value)
            except ValueError:
                rule.unknown.append(f"{word} {value}")
            if inverted:
                rule.inverted.add(field)
            position += 1
        else:
            end = next((place for place in range(position, len(words)) if words[place] in _OPTIONS), len(words))
            rule.unknown.append(" ".join(words[position - 1 : end]))
            position = end
        inverted = False
    return rule


def _tcp_flags(rule: ForeignRule, mask: str, wanted: str, inverted: bool) -> None:
    if set(mask.split(",")) in _SYN_MASKS and wanted == "SYN":
        rule.syn = not inverted
    else:
        rule.unknown.append(f"--tcp-flags {mask} {wanted}")


def _target(rule: ForeignRule, value: str) -> None:
    rule.log = rule.log or value in ("LOG", "NFLOG")
    if value in _ACTIONS:
        rule.action = _ACTIONS[value]
    else:
        rule.action, rule.to = "jump", value


def _setter(field: str, convert: Callable) -> tuple[str, Callable[[ForeignRule, str], None]]:
    return field, lambda rule, value: setattr(rule, field, convert(value))


def _port_list(value: str) -> list[tuple[int, int]]:
    return [read_ports(part, ":") for part in value.split(",")]


def _icmp(rule: ForeignRule, value: str) -> None:
    rule.icmp_type, rule.icmp_code = (None, None) if value == "any" else read_icmp(value)


_SOURCE = _setter("source", read_network)
_DESTINATION = _setter("destination", read_network)
_SOURCE_PORTS = _setter("source_ports", _port_list)
_DESTINATION_PORTS = _setter("destination_ports", _port_list)
_STATES = _setter("states", lambda value: value.lower().split(","))
_OPTIONS: dict[str, tuple[str, Callable[[ForeignRule, str], None]]] = {
    **{"-s": _SOURCE, "-d": _DESTINATION, "-i": _setter("in_link", str), "-o": _setter("out_link", str)},
    **{"-p": _setter("protocol", read_protocol), "--sport": _SOURCE_PORTS, "--sports": _SOURCE_PORTS},
    **{"--dport": _DESTINATION_PORTS, "--dports": _DESTINATION_PORTS, "--icmp-type": ("icmp_type", _icmp)},
    **{"--state": _STATES, "--ctstate": _STATES, "-j": ("action", _target)},
    **{option: _setter("to", str) for option in _TARGET_OPTIONS},
    "--log-prefix": ("log", lambda rule, value: None),
}
