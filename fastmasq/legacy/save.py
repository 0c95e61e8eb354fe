"""Writes chains in the format of ipchains-save, and reads it back (original-systems 5.3)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence

from fastmasq.errors import ConfigurationError
from fastmasq.legacy import ipchains
from fastmasq.legacy.names import Names, write_dotted
from fastmasq.policy.chains import ACCOUNTING, ANY_PORT, BUILT_IN, REDIRECT, Chain, Rule
from fastmasq.policy.changes import Change

_WHOLE_PACKET = 0xFFFF
_WHOLE_TOS = (0xFF, 0)


def policy_line(chain: Chain) -> str:
    return f":{chain.name} {chain.policy or '-'}"


def rule_line(chain: str, rule: Rule) -> str:
    """Return the command that adds a rule. Raises ConfigurationError for what only ipfwadm has words for."""
    match = rule.match
    if match.swapped_too or match.ack or match.interface_address or _has_several_ports(rule):
        raise ConfigurationError(
            f"chain {chain}: a rule of ipfwadm with -b, -k, -V or several ports has no ipchains form"
        )
    words = ["-A", chain, *_end("-s", match.source, match.not_source)]
    words += _ports(match.source_ports, match.not_source_ports)
    words += _end("-d", match.destination, match.not_destination)
    words += _ports(match.destination_ports, match.not_destination_ports)
    if match.interface:
        words += ["-i", *_not(match.not_interface), match.interface]
    if match.protocol:
        words += ["-p", *_not(match.not_protocol), str(match.protocol)]
    words += [] if match.syn is None else [*_not(not match.syn), "-y"]
    words += [] if match.fragment is None else [*_not(not match.fragment), "-f"]
    words += _actions(rule)
    return " ".join(words)


def restore(
    lines: Iterable[str], names: Names, present: Sequence[str], shall_flush: Callable[[str], bool]
) -> tuple[list[Change], list[str], list[str]]:
    """Return (changes, restored chains, skipped chains) of a saved file.

    present: the chains there are. shall_flush: asked for each user chain among them, whether to replace its rules;
    otherwise it stays as it is. Raises ConfigurationError with the number of the line.
    """
    changes: list[Change] = []
    restored: list[str] = []
    skipped: list[str] = []
    for number, line in enumerate(lines, 1):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0].startswith(":") and len(words) == 2:
            name = words[0][1:]
            if name in present and name not in BUILT_IN and not shall_flush(name):
                skipped.append(name)
                continue
            restored.append(name)
            changes += _chain_changes(name, words[1], name in present)
        elif words[0] == "-A" and len(words) > 1:
            if words[1] not in skipped:
                changes += _rule_changes(words, names, number)
        else:
            raise ConfigurationError(f"line {number}: {line.strip()!r} is not a line of ipchains-save")
    return changes, restored, skipped


def _chain_changes(name: str, policy: str, is_present: bool) -> list[Change]:
    if name not in BUILT_IN:
        return [Change(do="flush" if is_present else "new_chain", chain=name)]
    return [Change(do="flush", chain=name), Change(do="policy", chain=name, target=policy)]


def _rule_changes(words: Sequence[str], names: Names, number: int) -> Sequence[Change]:
    try:
        return ipchains.parse(words, names).changes
    except ConfigurationError as error:
        raise ConfigurationError(f"line {number}: {str(error).splitlines()[0]}") from None


def savable(chains: Iterable[Chain]) -> list[Chain]:
    """Return the chains ipchains knows."""
    return [chain for chain in chains if chain.name != ACCOUNTING]


def _has_several_ports(rule: Rule) -> bool:
    return len(rule.match.source_ports) > 1 or len(rule.match.destination_ports) > 1


def _end(option: str, end: tuple[int, int], is_inverted: bool) -> list[str]:
    return [option, *_not(is_inverted), f"{write_dotted(end[0])}/{write_dotted(end[1])}"]


def _ports(ranges: Sequence[tuple[int, int]], is_inverted: bool) -> list[str]:
    return (
        [*_not(is_inverted), f"{ranges[0][0]}:{ranges[0][1]}"]
        if ranges and (ranges[0] != ANY_PORT or is_inverted)
        else []
    )


def _not(is_inverted: bool) -> list[str]:
    return ["!"] if is_inverted else []


def _actions(rule: Rule) -> list[str]:
    words = ["-l"] if rule.log else []
    if rule.output:
        words += ["-o"] if rule.output == _WHOLE_PACKET else ["-o", str(rule.output)]
    if rule.mark is not None:
        words += ["-m", f"{'+' if rule.mark[0] == 'add' else ''}{rule.mark[1]}"]
    if rule.tos != _WHOLE_TOS:
        words += ["-t", f"0x{rule.tos[0]:02X}", f"0x{rule.tos[1]:02X}"]
    if rule.target:
        words += ["-j", rule.target]
    if rule.target == REDIRECT:
        words.append(str(rule.redirect_port))
    return words
