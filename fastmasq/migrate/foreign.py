"""What rules of iptables and nftables have in common, before it is decided what fastmasq can do with them.

Their readers (iptables_save, nft_text, nft_json) turn each rule into a ForeignRule, with everything they do not know in
`unknown`; `carry` makes policy of them.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Network, NetmaskValueError

from msgspec import Struct

from fastmasq.wire.numbers import BY_NAME

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = "prerouting", "input", "forward", "output", "postrouting"

PROTOCOLS = {"all": 0, **BY_NAME}


class ForeignRule(Struct, kw_only=True):
    """One rule. line: where it stands; text: how it was written. An inverted condition has its name in `inverted`.

    states: conntrack's, in lower case. action: accept, drop, reject, return, jump, masquerade, snat, dnat, redirect, or
    "" for none. to: what the action names: a chain, "ADDRESS", "ADDRESS:PORT", ":PORT" or "PORT".
    """

    line: int
    text: str
    in_link: str = ""
    out_link: str = ""
    source: tuple[int, int] = (0, 0)
    destination: tuple[int, int] = (0, 0)
    protocol: int = 0
    source_ports: list[tuple[int, int]] = []
    destination_ports: list[tuple[int, int]] = []
    icmp_type: int | None = None
    icmp_code: int | None = None
    syn: bool | None = None
    fragment: bool | None = None
    states: list[str] = []
    inverted: set[str] = set()
    log: bool = False
    action: str = ""
    to: str = ""
    unknown: list[str] = []


class ForeignChain(Struct, kw_only=True):
    """One chain. hook: where the kernel calls it, "" for one that rules jump to. policy: of a hook: accept or drop."""

    name: str
    kind: str = "filter"
    hook: str = ""
    policy: str = "accept"
    line: int = 0
    rules: list[ForeignRule] = []


def read_network(text: str) -> tuple[int, int]:
    """Return (address, mask) of "10.0.0.0/8", "10.0.0.2" or "10.0.0.0/255.0.0.0". Raises ValueError."""
    try:
        network = IPv4Network(text, strict=False)
    except (AddressValueError, NetmaskValueError) as error:
        raise ValueError(f"{text!r} is not an IPv4 network") from error
    return int(network.network_address), int(network.netmask)


def read_ports(text: str, separator: str) -> tuple[int, int]:
    """Return the range of "80" or "2000:2010". Raises ValueError for a name of a service."""
    first, _, last = text.partition(separator)
    return int(first or 0), int(last or (first if separator not in text else 0xFFFF))


def read_protocol(text: str) -> int:
    """Return a protocol's number. Raises ValueError."""
    return PROTOCOLS[text] if text in PROTOCOLS else int(text)


ICMP_TYPES = {
    **{"echo-reply": (0, None), "destination-unreachable": (3, None), "source-quench": (4, None)},
    **{"redirect": (5, None), "echo-request": (8, None), "time-exceeded": (11, None), "ttl-exceeded": (11, None)},
    **{"parameter-problem": (12, None), "timestamp-request": (13, None), "timestamp-reply": (14, None)},
    **{"network-unreachable": (3, 0), "host-unreachable": (3, 1), "port-unreachable": (3, 3)},
    **{"fragmentation-needed": (3, 4), "router-advertisement": (9, None), "router-solicitation": (10, None)},
}


def read_icmp(text: str) -> tuple[int, int | None]:
    """Return (type, code or None) of a name, "8" or "3/4". Raises ValueError."""
    if text in ICMP_TYPES:
        return ICMP_TYPES[text]
    kind, _, code = text.partition("/")
    return int(kind), int(code) if code else None
