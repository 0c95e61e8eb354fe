"""Protocol redirection: which inside host gets an IP protocol without ports, and from whom (ipfwd of 1999)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import replace

from fastmasq.errors import ConfigurationError
from fastmasq.wire.numbers import AH, DCCP, ICMP, TCP, UDP, UDP_LITE

if TYPE_CHECKING:
    import numpy as np

EVERYWHERE = "0.0.0.0/0"
LARGEST = 64  # redirects at once: path/redirects.pxd
_WITH_PORTS = {ICMP: "ICMP has identifiers, which are masqueraded", TCP: "TCP has ports", UDP: "UDP has ports"}
_SUMMED = {DCCP: "DCCP", UDP_LITE: "UDP-Lite"}


class Redirect(Struct, frozen=True, kw_only=True):
    """Packets of `protocol` that no session and no tracker claims go to `host`, when they come from `source`.

    One that is to `steal` may take the protocol from a running program of this host.
    """

    protocol: int
    host: str
    source: str = EVERYWHERE
    steal: bool = False

    def __str__(self) -> str:
        return f"protocol {self.protocol}" + ("" if self.source == EVERYWHERE else f" from {self.source}")


class Change(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change: "set" takes the place of what has the same protocol and source; "delete" wants those; "clear" all."""

    action: Literal["set", "delete", "clear"]
    redirect: Redirect | None = None


def apply(redirects: Sequence[Redirect], changes: Iterable[Change]) -> tuple[Redirect, ...]:
    """Return the redirects after all changes. Raises ConfigurationError when one of them cannot be made."""
    result = list(redirects)
    for change in changes:
        if change.action == "clear":
            result = []
            continue
        if change.redirect is None:
            raise ConfigurationError(f"redirect {change.action}: which one? name the protocol")
        wanted = check(change.redirect)
        others = [one for one in result if (one.protocol, one.source) != (wanted.protocol, wanted.source)]
        if change.action == "delete" and len(others) == len(result):
            raise ConfigurationError(f"{wanted}: no such redirect; see `fastmasq redirect list`")
        if change.action == "delete":
            result = others
        elif wanted not in result:
            result = [*others, wanted]
    if len(result) > LARGEST:
        raise ConfigurationError(f"{len(result)} redirects: at most {LARGEST}")
    return tuple(result)


def check(redirect: Redirect) -> Redirect:
    """Return the redirect with its source spelled in one way. Raises ConfigurationError for one that cannot be."""
    if not 0 <= redirect.protocol <= 255:
        raise ConfigurationError(f"protocol {redirect.protocol} is not 0 to 255; GRE is 47, ESP is 50")
    if redirect.protocol in _WITH_PORTS:
        raise ConfigurationError(f"{redirect}: {_WITH_PORTS[redirect.protocol]}; use a port forward")
    if redirect.protocol == AH:
        raise ConfigurationError(f"{redirect}: IPsec AH signs the addresses, so no translator can carry it; use ESP")
    if redirect.protocol in _SUMMED:
        raise ConfigurationError(f"{redirect}: {_SUMMED[redirect.protocol]} has a checksum over the addresses")
    try:
        host = IPv4Address(redirect.host)
    except ValueError:
        raise ConfigurationError(
            f"{redirect}: {redirect.host!r} is not an IPv4 address; write for example 10.0.0.2"
        ) from None
    if host.is_multicast or host.is_loopback or host.is_unspecified:
        raise ConfigurationError(f"{redirect}: {host} cannot be the address of an inside host")
    try:
        source = IPv4Network(redirect.source)
    except ValueError:
        raise ConfigurationError(
            f"{redirect}: {redirect.source!r} is not a network; write for example 199.0.0.0/24"
        ) from None
    return replace(redirect, host=str(host), source=str(source))


def compile_redirects(redirects: Sequence[Redirect]) -> np.ndarray:
    """Return one rows.REDIRECT row for each, the narrowest sources first."""
    import numpy as np  # not for those who only read and write them

    from fastmasq.path.rows import REDIRECT

    ordered = sorted(redirects, key=lambda one: -IPv4Network(one.source).prefixlen)
    rows = np.zeros(len(ordered), REDIRECT)
    for row, one in zip(rows, ordered, strict=True):
        network = IPv4Network(one.source)
        row["host"], row["protocol"] = int(IPv4Address(one.host)), one.protocol
        row["source_first"], row["source_last"] = int(network.network_address), int(network.broadcast_address)
    return rows
