"""Port forwards as data: who listens where, for which inside endpoints, and what changes do to a list of them."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from fastmasq.errors import ConfigurationError

PREFERENCE = 10  # of a target that has none of its own, as with ipmasqadm
LARGEST_PREFERENCE = 1_000_000
ANY = "0.0.0.0"
OUTSIDE = "outside"  # instead of a link's name: whatever link is the outside one
PROTOCOLS = ("tcp", "udp")
MOST_REMOTES = 16  # networks that a forward is for

_LISTEN = re.compile(r"(?P<listen>[^\s:/]+):(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?", re.ASCII)
_TARGET = re.compile(r"(?P<address>[\d.]+):(?P<port>\d{1,5})", re.ASCII)

Endpoint = tuple[int, int, int]  # address, place in PROTOCOLS, port


class Placed(NamedTuple):
    """What an external endpoint is to lead to: address, port and weight of each target.

    remotes: address, mask and port of each network that it is for, port 0 being any; none: it is for everybody.
    """

    targets: tuple[tuple[int, int, int], ...]
    remotes: tuple[tuple[int, int, int], ...] = ()


class Target(Struct, frozen=True):
    """An inside endpoint that gets `preference` new sessions in a row, before it is the next one's turn."""

    address: str
    port: int
    preference: int = PREFERENCE


class Remotes(Struct, frozen=True):
    """Hosts of a network, such as "199.0.0.0/24", at a port of theirs, 0 being any."""

    network: str
    port: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for what is no network, or no port."""
        _network(self.network)
        if not 0 <= self.port <= 65535:
            raise ValueError(f"{self.port} is no port, nor 0 for any")

    def __str__(self) -> str:
        return f"{self.network}:{self.port or 'any'}"


class Forward(Struct, frozen=True, kw_only=True):
    """Ports `first` to `last` of an address, or of a link whatever address it has, lead to the targets.

    A target's port is that for `first`; those of the other ports follow it. With `steal` it may take the ports of
    running programs of the host. With `remotes` it is for those alone.
    """

    protocol: Literal["tcp", "udp"]
    listen: str
    first: int
    last: int
    targets: tuple[Target, ...]
    steal: bool = False
    remotes: tuple[Remotes, ...] = ()

    def __str__(self) -> str:
        return f"{self.protocol} {write_ports(self.listen, self.first, self.last)}"


class Change(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change of a list of forwards.

    "add" refuses ports that are forwarded already (PF-10), "set" takes their place (ipportfw -A). "delete" wants
    protocol, listen and the ports of one forward. "clear" takes all away, or all that listen on `listen`. "prefer" adds
    the one target of `forward`, or changes its preference (ipmasqadm portfw -a); "withdraw" takes away targets, with
    0.0.0.0 and port 0 as "any" (ipmasqadm portfw -d).
    """

    action: Literal["add", "set", "delete", "clear", "prefer", "withdraw"]
    forward: Forward | None = None
    listen: str = ""


class Unknown(ConfigurationError):
    """There is no such forward."""


def apply(forwards: Sequence[Forward], changes: Iterable[Change]) -> tuple[Forward, ...]:
    """Return the forwards after all changes. Raises ConfigurationError when one of them cannot be made."""
    result = list(forwards)
    taken: Taken | None = None  # as long as forwards are only added
    for change in changes:
        if change.action == "clear":
            result, taken = [one for one in result if change.listen not in ("", one.listen)], None
        elif change.forward is None:
            raise ConfigurationError(f"forward {change.action}: which one? name protocol, listen and ports")
        elif change.action == "add":
            check(change.forward)
            taken = taken or Taken(result)
            taken.add(change.forward)
            result.append(change.forward)
        else:
            result, taken = list(_ACTIONS[change.action](tuple(result), change.forward)), None
    return tuple(result)


class Taken:
    """The ports that forwards have, so that one that wants a port of another is found without asking each of them."""

    def __init__(self, forwards: Iterable[Forward] = ()) -> None:
        """No two of these have the same port."""
        self._by_listen: dict[tuple[str, str], list[Forward]] = {}  # each in the order of ports
        for forward in sorted(forwards, key=_first):
            self._by_listen.setdefault((forward.protocol, forward.listen), []).append(forward)

    def add(self, new: Forward) -> None:
        """Raise ConfigurationError if one of them has a port of another."""
        present = self._by_listen.setdefault((new.protocol, new.listen), [])
        at = bisect.bisect_right(present, new.last, key=_first)
        if at and present[at - 1].last >= new.first:
            raise ConfigurationError(
                f"{new}: forwarded already by {present[at - 1]}; delete that first, or choose another port"
            )
        present.insert(at, new)


def _first(forward: Forward) -> int:
    return forward.first


def revoke(leased: Sequence[Forward], changes: Iterable[Change]) -> tuple[tuple[Forward, ...], list[Change]]:
    """Return what changes leave of forwards that inside hosts have asked for, and the changes that are about others."""
    left = tuple(leased)
    others = []
    for change in changes:
        if change.action == "clear":
            left = tuple(one for one in left if change.listen not in ("", one.listen))
        elif change.action == "delete" and change.forward is not None:
            without = tuple(one for one in left if not _same_ports(one, change.forward))
            if without != left:
                left = without
                continue
        others.append(change)
    return left, others


def _add(forwards: tuple[Forward, ...], new: Forward) -> tuple[Forward, ...]:
    check(new)
    Taken(forwards).add(new)
    return (*forwards, new)


def _set(forwards: tuple[Forward, ...], new: Forward) -> tuple[Forward, ...]:
    same = [present for present in forwards if _same_ports(present, new)]
    return _add(tuple(present for present in forwards if present not in same), new)


def _delete(forwards: tuple[Forward, ...], gone: Forward) -> tuple[Forward, ...]:
    left = tuple(present for present in forwards if not _same_ports(present, gone))
    if len(left) == len(forwards):
        near = next((present for present in forwards if _overlap(present, gone)), None)
        hint = f"; there is {near}" if near else "; see `fastmasq forward list`"
        raise Unknown(f"{gone}: no such forward{hint}")
    return left


def _prefer(forwards: tuple[Forward, ...], new: Forward) -> tuple[Forward, ...]:
    for number, present in enumerate(forwards):
        if _same_ports(present, new):
            target = new.targets[0]
            others = [one for one in present.targets if (one.address, one.port) != (target.address, target.port)]
            if len(others) < len(present.targets):  # only edited
                targets = tuple(target if one not in others else one for one in present.targets)
            else:
                targets = (target, *others)  # the head of the list: its turn comes at once
            changed = replace(present, targets=targets)
            check(changed)
            return (*forwards[:number], changed, *forwards[number + 1 :])
    return _add(forwards, new)


def _withdraw(forwards: tuple[Forward, ...], gone: Forward) -> tuple[Forward, ...]:
    left = []
    wanted = gone.targets[0] if gone.targets else Target(ANY, 0)
    for present in forwards:
        meant = (present.protocol, present.first, present.last) == (gone.protocol, gone.first, gone.last)
        if not meant or gone.listen not in (ANY, present.listen):
            left.append(present)
            continue
        kept = tuple(one for one in present.targets if not _is_meant(one, wanted))
        if kept:
            left.append(replace(present, targets=kept))
    if tuple(left) == tuple(forwards):
        raise Unknown(f"{gone}: no such forward; see `fastmasq forward list`")
    return tuple(left)


_ACTIONS = {"set": _set, "delete": _delete, "prefer": _prefer, "withdraw": _withdraw}


def _is_meant(target: Target, wanted: Target) -> bool:
    return wanted.address in (ANY, target.address) and wanted.port in (0, target.port)


def _same_ports(a: Forward, b: Forward) -> bool:
    return (a.protocol, a.listen, a.first, a.last) == (b.protocol, b.listen, b.first, b.last)


def _overlap(a: Forward, b: Forward) -> bool:
    return (a.protocol, a.listen) == (b.protocol, b.listen) and a.first <= b.last and b.first <= a.last


def check(forward: Forward) -> None:
    """Raise ConfigurationError for a forward that cannot be."""
    if not 1 <= forward.first <= forward.last <= 65535:
        raise ConfigurationError(
            f"{forward}: ports run from 1 to 65535, the smaller first; write for example eth1:6000-6010"
        )
    if forward.listen == ANY:
        raise ConfigurationError(f"{forward}: name one address, or the link whose address it is, for example eth1")
    if not forward.targets:
        raise ConfigurationError(f"{forward}: leads nowhere; name an inside endpoint, for example 10.0.0.2:80")
    span = forward.last - forward.first
    for target in forward.targets:
        if not 1 <= target.port <= 65535 - span:
            raise ConfigurationError(f"{forward}: no room for {span + 1} ports from {target.address}:{target.port} on")
        if not 0 <= target.preference <= LARGEST_PREFERENCE:
            raise ConfigurationError(f"{forward}: preference {target.preference} is not 0 to {LARGEST_PREFERENCE}")
        address = read_address(target.address)
        if address is None or address.is_multicast or address.is_loopback or address.is_unspecified:
            raise ConfigurationError(f"{forward}: {target.address} cannot be the address of an inside host")
    endpoints = [(target.address, target.port) for target in forward.targets]
    if len(set(endpoints)) < len(endpoints):
        raise ConfigurationError(f"{forward}: names a target twice; name it once, with the sum of the preferences")
    if len(forward.remotes) > MOST_REMOTES:
        raise ConfigurationError(f"{forward}: is for {len(forward.remotes)} networks; {MOST_REMOTES} are the most")


def endpoints(forwards: Iterable[Forward], addresses: Mapping[str, int]) -> Iterator[tuple[Endpoint, Placed, Forward]]:
    """Yield every external endpoint with its targets; `addresses` has those of the host and of its links, by spelling.

    What listens on an address that the host has not got just now is left out. Two forwards may come to the same
    endpoint by a link and by its address: both are yielded.
    """
    for forward in forwards:
        address = addresses.get(forward.listen)
        if address is None:
            continue
        protocol = PROTOCOLS.index(forward.protocol)
        targets = [(_number(one.address), one.port, one.preference) for one in forward.targets]
        remotes = tuple((*_network(one.network), one.port) for one in forward.remotes)
        for step, port in enumerate(range(forward.first, forward.last + 1)):
            placed = Placed(tuple((host, to + step, weight) for host, to, weight in targets), remotes)
            yield (address, protocol, port), placed, forward


@functools.lru_cache(1024)
def _network(text: str) -> tuple[int, int]:
    """Return address and mask of a network. Raises ValueError for what is none."""
    network = IPv4Network(text)
    return int(network.network_address), int(network.netmask)


@functools.lru_cache(1024)
def _number(address: str) -> int:
    return int(IPv4Address(address))


def overlaps(forwards: Iterable[Forward], addresses: Mapping[str, int]) -> Iterator[tuple[Forward, Forward]]:
    """Yield each forward that comes to an endpoint of another that goes before it, with that, once."""
    owners: dict[Endpoint, Forward] = {}
    found: set[tuple[Forward, Forward]] = set()
    for endpoint, _, forward in endpoints(forwards, addresses):
        pair = (forward, owners.setdefault(endpoint, forward))
        if pair[1] is not forward and pair not in found:
            found.add(pair)
            yield pair


# -- how they are written --------------------------------------------------------------------------------------------


def read(
    protocol: str, listen: str, to: Sequence[str], preferences: Sequence[int] = (), *, steal: bool = False
) -> Forward:
    """Return the forward written so: "tcp", "eth1:8080" or "200.200.200.200:6000-6010", ["10.0.0.2:80"].

    Raises ConfigurationError with what is wrong and a suggestion.
    """
    if protocol not in PROTOCOLS:
        raise ConfigurationError(f"protocol {protocol!r}: only tcp and udp have ports; others are redirected")
    where = _LISTEN.fullmatch(listen)
    if not where:
        raise ConfigurationError(f"{listen!r} is not address:port or link:port; write for example eth1:8080")
    if where["listen"][0].isdigit() and "." in where["listen"] and read_address(where["listen"]) is None:
        raise ConfigurationError(f"{listen!r}: {where['listen']} is not an IPv4 address; write for example eth1:8080")
    if preferences and len(preferences) != len(to):
        raise ConfigurationError(f"{len(preferences)} preferences for {len(to)} targets; give one for each, or none")
    weights = preferences or [PREFERENCE] * len(to)
    first, last = int(where["first"]), int(where["last"] or where["first"])
    forward = Forward(
        protocol=protocol,
        listen=where["listen"],
        first=first,
        last=last,
        targets=tuple(_read_target(text, weight) for text, weight in zip(to, weights, strict=True)),
        steal=steal,
    )
    if any(weight < 1 for weight in weights):
        raise ConfigurationError(f"{forward}: a preference is the number of sessions in a row, 1 or more")
    check(forward)
    return forward


def _read_target(text: str, preference: int) -> Target:
    match = _TARGET.fullmatch(text)
    if not match or read_address(match["address"]) is None:
        raise ConfigurationError(f"{text!r} is not the endpoint of an inside host; write for example 10.0.0.2:80")
    return Target(match["address"], int(match["port"]), preference)


def read_address(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except ValueError:
        return None


def write_endpoint(endpoint: Endpoint) -> str:
    """Return an external endpoint as people write it, such as tcp 200.200.200.200:22."""
    address, protocol, port = endpoint
    return f"{PROTOCOLS[protocol]} {IPv4Address(address)}:{port}"


def write_ports(listen: str, first: int, last: int) -> str:
    return f"{listen}:{first}" if first == last else f"{listen}:{first}-{last}"
