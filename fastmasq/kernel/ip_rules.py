"""Policy routing: the rules of `ip rule` that packets of our links would meet in the kernel, and we do not follow.

The path routes by the tables local, main and default alone, see routes.py. What leads elsewhere is said, so that nobody
looks for his packets in vain. A rule about sources that neither inside hosts have nor we concerns nobody here, but for
one about what comes in by the outside link.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address

from fastmasq.kernel import local_link, netlink, rtnetlink
from fastmasq.kernel.routes import LOCAL, UNICAST
from fastmasq.kernel.rtnetlink import TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN
from fastmasq.kernel.watch import Snapshot

_TO_TABLE, _GOTO = 1, 2
_ACTIONS = {6: "blackhole", 7: "unreachable", 8: "prohibit"}  # FR_ACT_* (linux/fib_rules.h)
_INVERT = 0x2  # FIB_RULE_INVERT
_RANGE = struct.Struct("=HH")
_LAST = 0xFFFFFFFF  # address
_FOLLOWED = (TABLE_LOCAL, TABLE_MAIN, TABLE_DEFAULT)


Range = tuple[int, int]  # addresses, from the first to the last


def concerning(snapshot: Snapshot) -> list[str]:
    """Return the rules that packets of our links may meet and that lead elsewhere, as `ip rule` writes them."""
    requests = netlink.RequestSocket()
    try:
        messages, _ = requests.dump(netlink.RTM_GETRULE, rtnetlink.FIB_RULE_HDR.pack(family=socket.AF_INET))
    except OSError:  # a kernel without policy routing
        return []
    finally:
        requests.close()
    return list(read_rules(messages, {link.name: link.role for link in snapshot.links}, sources(snapshot)))


def sources(snapshot: Snapshot) -> list[Range]:
    """Return the addresses of inside hosts, and those of this host; all there are while an inside link is missing."""
    inside = [link for link in snapshot.links if link.role == "inside"]
    if not all(link.ifindex and link.addresses for link in inside):
        return [(0, _LAST)]
    numbers = [link.ifindex for link in inside]
    return [
        (route.first, route.last)
        for route in snapshot.routes
        if route.kind == LOCAL or (route.kind == UNICAST and route.ifindex in numbers)
    ]


def read_rules(messages: Iterable[bytes], roles: Mapping[str, str], ours: Collection[Range]) -> Iterator[str]:
    """Yield what `concerning` returns of RTM_NEWRULE messages; roles: "inside" or "outside", by the name of a link."""
    for message in messages:
        family, _, _, _, _, action, flags = rtnetlink.FIB_RULE_HDR.read(message)
        values = rtnetlink.FIB_RULE_HDR.attributes(message)
        if family != socket.AF_INET or not _leads_elsewhere(message, action, values):
            continue
        if _is_met(message, flags, roles, ours):
            yield _describe(message, values)


def _is_met(message: bytes, flags: int, roles: Mapping[str, str], ours: Collection[Range]) -> bool:
    """Whether a rule may be about a packet that is forwarded: it comes by a link, and no program has sent it."""
    values = rtnetlink.FIB_RULE_HDR.attributes(message)
    if rtnetlink.FRA_L3MDEV in values:
        return False
    if flags & _INVERT:
        return True
    by_link = netlink.read_text(values, rtnetlink.FRA_IIFNAME)
    if rtnetlink.FRA_OIFNAME in values or rtnetlink.FRA_UID_RANGE in values or (by_link and by_link not in roles):
        return False
    return roles.get(by_link) == "outside" or _is_from(message, values, ours)


def _is_from(message: bytes, values: dict[int, bytes], ours: Collection[Range]) -> bool:
    """Whether a rule may be about a packet from one of these addresses."""
    length = rtnetlink.FIB_RULE_HDR.read(message)[2]
    first = netlink.read_address(values, rtnetlink.FRA_SRC) if length else 0
    last = first | _LAST >> length
    return any(first <= highest and lowest <= last for lowest, highest in ours)


def _leads_elsewhere(message: bytes, action: int, values: dict[int, bytes]) -> bool:
    if action == _TO_TABLE:
        return _table(message, values) not in (*_FOLLOWED, local_link.TABLE)
    return action == _GOTO or action in _ACTIONS


def _table(message: bytes, values: dict[int, bytes]) -> int:
    return netlink.read_number(values, rtnetlink.FRA_TABLE) or rtnetlink.FIB_RULE_HDR.read(message)[4]


def _describe(message: bytes, values: dict[int, bytes]) -> str:
    _, length, source_length, tos, _, action, flags = rtnetlink.FIB_RULE_HDR.read(message)
    words = [f"{netlink.read_number(values, rtnetlink.FRA_PRIORITY)}:"]
    words += ["not"] if flags & _INVERT else []
    words.append(f"from {_network(values, rtnetlink.FRA_SRC, source_length)}")
    if length:
        words.append(f"to {_network(values, rtnetlink.FRA_DST, length)}")
    words += [f"tos {tos:#04x}"] if tos else []
    if mark := netlink.read_number(values, rtnetlink.FRA_FWMARK):
        mask = netlink.read_number(values, rtnetlink.FRA_FWMASK)
        words.append(f"fwmark {mark:#x}" + (f"/{mask:#x}" if mask != 0xFFFFFFFF else ""))
    for word, kind in (("iif", rtnetlink.FRA_IIFNAME), ("oif", rtnetlink.FRA_OIFNAME)):
        if name := netlink.read_text(values, kind):
            words.append(f"{word} {name}")
    if protocol := values.get(rtnetlink.FRA_IP_PROTO):
        words.append(f"ipproto {protocol[0]}")
    for word, kind in (("sport", rtnetlink.FRA_SPORT_RANGE), ("dport", rtnetlink.FRA_DPORT_RANGE)):
        if len(ports := values.get(kind, b"")) == _RANGE.size:
            first, last = _RANGE.unpack(ports)
            words.append(f"{word} {first}" + (f"-{last}" if last != first else ""))
    if action == _TO_TABLE:
        words.append(f"lookup {_table(message, values)}")
    elif action == _GOTO:
        words.append(f"goto {netlink.read_number(values, rtnetlink.FRA_GOTO)}")
    else:
        words.append(_ACTIONS[action])
    return " ".join(words)


def _network(values: dict[int, bytes], kind: int, length: int) -> str:
    if not length:
        return "all"
    address = IPv4Address(netlink.read_address(values, kind))
    return str(address) if length == 32 else f"{address}/{length}"
