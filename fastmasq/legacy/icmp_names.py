"""The names ipchains has for ICMP types and codes."""

from __future__ import annotations

from typing import NamedTuple

from fastmasq.policy.chains import ANY_PORT


class IcmpName(NamedTuple):
    """A type, and the codes it covers. exact: whether a check may use it, which then means the first code."""

    name: str
    type: int
    codes: tuple[int, int] = ANY_PORT
    exact: bool = True


def _with_codes(type_number: int, *names: str) -> list[IcmpName]:
    """Return a name for each code in turn; "" for a code without a name."""
    return [IcmpName(name, type_number, (code, code)) for code, name in enumerate(names) if name]


ICMP_NAMES = (
    IcmpName("echo-reply", 0),
    IcmpName("pong", 0),
    IcmpName("destination-unreachable", 3, exact=False),
    *_with_codes(
        3,
        *("network-unreachable", "host-unreachable", "protocol-unreachable", "port-unreachable"),
        *("fragmentation-needed", "source-route-failed", "network-unknown", "host-unknown", ""),
        *("network-prohibited", "host-prohibited", "TOS-network-unreachable", "TOS-host-unreachable"),
        *("communication-prohibited", "host-precedence-violation", "precedence-cutoff"),
    ),
    IcmpName("source-quench", 4),
    IcmpName("redirect", 5, exact=False),
    *_with_codes(5, "network-redirect", "host-redirect", "TOS-network-redirect", "TOS-host-redirect"),
    IcmpName("echo-request", 8),
    IcmpName("ping", 8),
    IcmpName("router-advertisement", 9),
    IcmpName("router-solicitation", 10),
    IcmpName("time-exceeded", 11, exact=False),
    IcmpName("ttl-exceeded", 11, exact=False),
    *_with_codes(11, "ttl-zero-during-transit", "ttl-zero-during-reassembly"),
    IcmpName("parameter-problem", 12, exact=False),
    *_with_codes(12, "ip-header-bad", "required-option-missing"),
    IcmpName("timestamp-request", 13),
    IcmpName("timestamp-reply", 14),
    IcmpName("address-mask-request", 17),
    IcmpName("address-mask-reply", 18),
)


def beginning_with(text: str) -> list[IcmpName]:
    """Return the names that begin with `text`, in either case."""
    return [entry for entry in ICMP_NAMES if entry.name.lower().startswith(text.lower())]


def name_of(type_ports: tuple[int, int], codes: tuple[int, int]) -> str | None:
    """Return the first name of exactly these types and codes, None when they have none."""
    for entry in ICMP_NAMES:
        if (entry.type, entry.type) == type_ports and entry.codes == codes:
            return entry.name
    return None


def overview() -> str:
    """Return the list that `ipchains -h icmp` prints: codes below their type, second names in brackets."""
    text = "Valid ICMP Types:"
    for before, entry in zip((None, *ICMP_NAMES), ICMP_NAMES, strict=False):
        if before and before[1:3] == entry[1:3]:
            text += f" ({entry.name})"
        elif before and before.type == entry.type:
            text += f"\n   {entry.name}"
        else:
            text += f"\n{entry.name}"
    return text + "\n"
