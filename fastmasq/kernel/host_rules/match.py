"""Spells the match of a rule of 1999 as conditions of nftables.

What a packet must look like to fit can need several alternatives (port ranges, -b, a rule for every protocol that asks
for TCP flags). They may overlap. An alternative names its protocol wherever it looks behind the IP header, and excludes
later fragments, in which nftables would take payload for ports.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Address
from itertools import product

from fastmasq.policy.chains import ANY_PORT, Match
from fastmasq.wire.numbers import ICMP, TCP, UDP

Addresses = Mapping[str, Collection[int]]
"""Interface names and the addresses, as integers in host order, that each of them has."""

_WITH_PORTS = (ICMP, TCP, UDP)
_WHOLE, _LATER_FRAGMENT = "ip frag-off & 0x1fff == 0", "ip frag-off & 0x1fff != 0"
_LONGEST_INTERFACE = 15  # characters of an interface's name (IFNAMSIZ less its zero)
_Ranges = tuple[tuple[int, int], ...]


def conditions(match: Match, *, arriving: bool, addresses: Addresses) -> list[str]:
    """Return the alternatives, "" for one that every packet fits, none if no packet can.

    `arriving` packets are matched by the interface that they came in by, others by the one they leave by.
    """
    if match.direction not in ("both", "in" if arriving else "out"):
        return []
    found: list[str] = []
    for text, protocol in _protocols(match):
        ways = (
            _interfaces(match, "iifname" if arriving else "oifname", addresses),
            [text],
            _fragments(match, looks_behind=protocol is not None),
            _flags(match) if protocol == TCP else [""],
            _ends(match, protocol),
        )
        found += _joined(product(*ways))
    return list(dict.fromkeys(found))


def can_be_spelled(interface: str) -> bool:
    """Return whether nftables has a way to write an interface name that a rule may have; others are never met."""
    return re.fullmatch(r"[A-Za-z0-9_.:@%=,+-]*", interface) is not None


def _joined(ways: Iterable[tuple[str, ...]]) -> list[str]:
    return [" ".join(part for part in way if part) for way in ways]


def _protocols(match: Match) -> list[tuple[str, int | None]]:
    """Return (condition, protocol) for each kind of packet that must be looked at in its own way.

    The protocol is None where neither ports nor flags are looked at.
    """
    own = "" if match.protocol == 0 else f"ip protocol {'!= ' if match.not_protocol else ''}{match.protocol}"
    if match.protocol > 0xFF:
        if not match.not_protocol:
            return []
        own = ""
    asks_flags = match.syn is not None or match.ack
    ranges = (match.source_ports, match.not_source_ports), (match.destination_ports, match.not_destination_ports)
    if any(_asks(*each) for each in ranges):
        found: list[tuple[str, int | None]] = [(f"ip protocol {one}", one) for one in _WITH_PORTS if _fits(match, one)]
        if all(each in ((), (ANY_PORT,)) for each, _ in ranges):  # "any port" inverted: only what shows none fits
            portless = f"ip protocol != {ICMP} ip protocol != {TCP} ip protocol != {UDP}"
            fragment = f"{_LATER_FRAGMENT} ip protocol != {TCP}" if asks_flags else _LATER_FRAGMENT
            found += [(f"{own} {portless}".strip(), None), (f"{own} {fragment}".strip(), None)]
        return found
    if asks_flags and _fits(match, TCP):
        found = [(f"ip protocol {TCP}", TCP)]
        if own != f"ip protocol {TCP}":
            found.append((f"{own} ip protocol != {TCP}".strip(), None))
        return found
    return [(own, None)]


def _fits(match: Match, protocol: int) -> bool:
    return match.protocol == 0 or (match.protocol == protocol) != match.not_protocol


def _asks(ranges: _Ranges, inverted: bool) -> bool:
    return bool(ranges) and (ranges != (ANY_PORT,) or inverted)


def _fragments(match: Match, *, looks_behind: bool) -> list[str]:
    if match.fragment:
        return [] if looks_behind else [_LATER_FRAGMENT]
    return [_WHOLE] if looks_behind or match.fragment is False else [""]


def _flags(match: Match) -> list[str]:
    conditions = []
    if match.syn is not None:
        conditions.append(f"tcp flags & (syn | ack | rst) {'==' if match.syn else '!='} syn")
    if match.ack:
        conditions.append("tcp flags & (ack | rst) != 0")
    return [" ".join(conditions)]


def _interfaces(match: Match, key: str, addresses: Addresses) -> list[str]:
    """The address of an interface (-V) is looked up now: the rules must be spelled again when addresses change."""
    if match.interface_address:
        names = [name for name, own in addresses.items() if match.interface_address in own and _named(match, name)]
        return [f'{key} "{name}"' for name in names if can_be_spelled(name)]
    if not match.interface:
        return [""]
    prefix = match.interface.removesuffix("+")
    if len(prefix) > _LONGEST_INTERFACE or not can_be_spelled(match.interface):
        return [""] if match.not_interface else []  # no interface is called so
    if not prefix:
        return [] if match.not_interface else [""]
    wildcard = "*" if match.interface.endswith("+") else ""
    return [f'{key} {"!= " if match.not_interface else ""}"{prefix}{wildcard}"']


def _named(match: Match, name: str) -> bool:
    if not match.interface:
        return True
    if match.interface.endswith("+"):
        return name.startswith(match.interface[:-1]) != match.not_interface
    return (name == match.interface) != match.not_interface


def _ends(match: Match, protocol: int | None) -> list[str]:
    """Both ends as written and, with -b, exchanged; ICMP's type and code stay where they are."""
    ports = ("icmp type", "icmp code") if protocol == ICMP else ("th sport", "th dport")
    found = _one_way(match, protocol, ("saddr", "daddr"), ports)
    if match.swapped_too:
        found += _one_way(match, protocol, ("daddr", "saddr"), ports if protocol == ICMP else ports[::-1])
    return found


def _one_way(match: Match, protocol: int | None, addresses: tuple[str, str], ports: tuple[str, str]) -> list[str]:
    return _joined(
        product(
            _network(addresses[0], match.source, match.not_source),
            _network(addresses[1], match.destination, match.not_destination),
            _ports(ports[0], match.source_ports, match.not_source_ports, protocol),
            _ports(ports[1], match.destination_ports, match.not_destination_ports, protocol),
        )
    )


def _network(key: str, network: tuple[int, int], inverted: bool) -> list[str]:
    base, mask = network[0] & network[1], network[1]
    if not mask:
        return [] if inverted else [""]
    length = mask.bit_count()
    if mask == (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF:
        return [f"ip {key} {'!= ' if inverted else ''}{IPv4Address(base)}/{length}"]
    return [f"ip {key} & {IPv4Address(mask)} {'!=' if inverted else '=='} {IPv4Address(base)}"]


def _ports(key: str, ranges: _Ranges, inverted: bool, protocol: int | None) -> list[str]:
    """A named set of ranges would be shorter, but has no elements for a moment when it is replaced."""
    if protocol is None or not _asks(ranges, inverted):
        return [""]
    highest = 0xFF if protocol == ICMP else 0xFFFF
    possible = [(first, min(last, highest)) for first, last in ranges if first <= highest]
    if (0, highest) in possible:
        return [] if inverted else [""]
    if inverted:
        return [" ".join(f"{key} != {spelled(each)}" for each in possible)]
    return [f"{key} {spelled(each)}" for each in possible]


def spelled(numbers: tuple[int, int]) -> str:
    """Return a range as nft has it."""
    first, last = numbers
    return str(first) if first == last else f"{first}-{last}"
