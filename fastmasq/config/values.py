"""The kinds of values that need more than TOML's own types: how each is written, checked and kept.

`read` of each kind takes what TOML gave and raises ValueError with "what is wrong; suggestion".
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, summarize_address_range
from typing import Any, NamedTuple, Self

from fastmasq.units import format_duration, parse_duration, parse_rate

DEFAULT_SOCKET = "/run/fastmasq.sock"
SERVICE_SOCKET = "/run/fastmasq/control.sock"  # of a forwarder that is a service with a user of its own
STATUS_SOCKET = "/run/fastmasq/status.sock"
USUAL_SOCKETS = (DEFAULT_SOCKET, SERVICE_SOCKET, STATUS_SOCKET)  # in the order in which commands look for them

UNPRIVILEGED = (1024, 65_535)  # the ports that inside hosts may ask for where the settings name none
MOST_PORTS = 7  # of the control connections of one protocol

_LONGEST_INTERFACE_NAME = 15  # IFNAMSIZ less the closing zero
_LONGEST_SOCKET_PATH = 107  # sun_path less the closing zero
_LAST_PORT = 65_535
_LAST_PROTOCOL = 255
_FIRST_HOST_PORT = 1024
_FEWEST_HOST_PORTS = 256
_INTERFACE_NAME = re.compile(r"[^\s/:\x00-\x1f\x7f]+")
_PORT_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


class Duration(int):
    """Nanoseconds; written 300, "5m" or "2h4m"."""

    @classmethod
    def read(cls, written: Any) -> Self:
        try:
            return cls(parse_duration(_checked(written, str, int, float)))
        except (ValueError, OverflowError):
            raise ValueError(f"{in_toml(written)} is not a duration; write for example 300, 5m or 2h4m") from None

    def __str__(self) -> str:
        return format_duration(self)


class Rate(int):
    """Events per second; written 2000 or "2000/s"."""

    @classmethod
    def read(cls, written: Any) -> Self:
        try:
            return cls(parse_rate(_checked(written, str, int)))
        except ValueError:
            raise ValueError(f'{in_toml(written)} is not a rate; write for example "2000/s"') from None

    def __str__(self) -> str:
        return f"{int(self)}/s"


class PortRanges(tuple[tuple[int, int], ...]):
    """Disjoint ranges (first, last), rising, both ends included; none at all is written "auto"."""

    @classmethod
    def read(cls, written: Any) -> Self:
        if written == "auto":
            return cls()
        example = 'write "auto" or for example "61000-65095" or "1024-4999,61000-65095"'
        if not isinstance(written, str):
            raise ValueError(f"{in_toml(written)} is not a list of ports; {example}")
        ranges = sorted(_read_range(part.strip(), example) for part in written.split(","))
        for (_, last), (first, _) in itertools.pairwise(ranges):
            if first <= last:
                raise ValueError(f"{in_toml(written)} names port {first} twice; let the ranges not overlap")
        return cls(ranges)

    def __str__(self) -> str:
        return ",".join(f"{first}-{last}" if first != last else f"{first}" for first, last in self) or "auto"

    @property
    def count(self) -> int:
        """Return the number of ports named; 0 for "auto"."""
        return sum(last - first + 1 for first, last in self)


def _read_range(written: str, example: str) -> tuple[int, int]:
    match = _PORT_RANGE.fullmatch(written)
    if not match:
        raise ValueError(f"{in_toml(written)} is not a range of ports; {example}")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise ValueError(f"{in_toml(written)} runs backwards; write {last}-{first}")
    if first < 1 or last > _LAST_PORT:
        raise ValueError(f"{in_toml(written)} is outside 1-{_LAST_PORT}; {example}")
    return first, last


class HostPorts(str):
    """The range that programs of the host connect from, as its `range`; or "auto" or "keep", which have none."""

    @classmethod
    def read(cls, written: Any) -> Self:
        if written in ("auto", "keep"):
            return cls(written)
        example = 'write "auto", "keep" or for example "20480-24575"'
        if not isinstance(written, str):
            raise ValueError(f"{in_toml(written)} is not a range of ports; {example}")
        first, last = _read_range(written, example)
        if first < _FIRST_HOST_PORT:
            raise ValueError(
                f"{in_toml(written)} has ports under {_FIRST_HOST_PORT}, which are for services; {example}"
            )
        if last - first + 1 < _FEWEST_HOST_PORTS:
            raise ValueError(
                f"{in_toml(written)} is fewer than the {_FEWEST_HOST_PORTS} ports that a host wants; {example}"
            )
        return cls(written)

    @property
    def range(self) -> tuple[int, int] | None:
        """The first and the last port."""
        return None if self in ("auto", "keep") else _read_range(self, "")


class InterfaceName(str):
    """The name of a link as the kernel allows it."""

    @classmethod
    def read(cls, written: Any) -> Self:
        example = 'write for example "eth1"'
        if not isinstance(written, str):
            raise ValueError(f"{in_toml(written)} is not the name of one link; {example}")
        if not _INTERFACE_NAME.fullmatch(written) or written in (".", ".."):
            raise ValueError(f"{in_toml(written)} cannot be the name of a link; {example}")
        if len(written.encode()) > _LONGEST_INTERFACE_NAME:
            raise ValueError(
                f"{in_toml(written)} has {len(written.encode())} bytes, a link's name at most "
                f"{_LONGEST_INTERFACE_NAME}; see `ip link`"
            )
        return cls(written)


def _refuse_twice(names: Iterable[str]) -> None:
    """Raise ValueError for the first that stands before in its list."""
    before: set[str] = set()
    for name in names:
        if name in before:
            raise ValueError(f"names {in_toml(name)} twice; name it once")
        before.add(name)


class InterfaceNames(tuple[str, ...]):
    """One link or several, each once."""

    @classmethod
    def read(cls, written: Any) -> Self:
        if isinstance(written, str):
            raise ValueError(f"{in_toml(written)} is not a list; write [{in_toml(written)}]")
        if not isinstance(written, list) or not written:
            raise ValueError(f'{in_toml(written)} names no links; write for example ["eth0"]')
        names = [InterfaceName.read(name) for name in written]
        _refuse_twice(names)
        return cls(names)


MOST_ADDRESSES = 3  # that masqueraded packets leave with at a time


class Addresses(tuple[str, ...]):
    """IPv4 addresses of hosts, each once, at most MOST_ADDRESSES; none at all is an empty list."""

    @classmethod
    def read(cls, written: Any) -> Self:
        example = 'write for example ["200.200.200.200"]'
        if not isinstance(written, list):
            raise ValueError(f"{in_toml(written)} is not a list of addresses; {example}")
        if len(written) > MOST_ADDRESSES:
            raise ValueError(f"names {len(written)} addresses; at most {MOST_ADDRESSES} are used at a time")
        for text in written:
            try:
                address = IPv4Address(text) if isinstance(text, str) else None
            except ValueError:
                address = None
            if address is None or address.is_multicast or address.is_loopback or address.is_unspecified:
                raise ValueError(f"{in_toml(text)} is not the IPv4 address of a host; {example}")
        _refuse_twice(written)
        return cls(written)


class Allowance(NamedTuple):
    """Inside hosts, as the first and the last address of a network, and the ports that they may have outside."""

    first: int
    last: int
    ports: PortRanges

    @classmethod
    def read(cls, written: Any) -> Self:
        example = 'write for example "10.0.0.0/24:1024-65535" or "10.0.0.2:80,8000-8099"'
        network, _, ports = written.partition(":") if isinstance(written, str) else ("", "", "")
        try:
            hosts = IPv4Network(network)
            ranges = PortRanges.read(ports)
        except ValueError:
            raise ValueError(f"{in_toml(written)} is not hosts and ports; {example}") from None
        if not ranges:
            raise ValueError(f"{in_toml(written)} names no ports; {example}")
        return cls(int(hosts.network_address), int(hosts.broadcast_address), ranges)

    def __str__(self) -> str:
        (network,) = summarize_address_range(IPv4Address(self.first), IPv4Address(self.last))
        return f"{network}:{self.ports}"


class Allowances(tuple[Allowance, ...]):
    """Which inside hosts may ask for which ports; none at all is an empty list: all of them, for UNPRIVILEGED."""

    @classmethod
    def read(cls, written: Any) -> Self:
        if not isinstance(written, list):
            raise ValueError(f'{in_toml(written)} is not a list; write for example ["10.0.0.0/24:1024-65535"]')
        _refuse_twice(written)
        return cls(map(Allowance.read, written))

    def ranges_of(self, host: int) -> list[tuple[int, int]]:
        """Return the ranges of ports that an inside host may have."""
        if not self:
            return [UNPRIVILEGED]
        return [ports for one in self if one.first <= host <= one.last for ports in one.ports]


class FileNames(tuple[str, ...]):
    """Absolute paths of files, each once; none at all is an empty list."""

    @classmethod
    def read(cls, written: Any) -> Self:
        example = 'write for example ["/etc/rc.d/rc.firewall"]'
        if not isinstance(written, list):
            raise ValueError(f"{in_toml(written)} is not a list of files; {example}")
        for name in written:
            if not isinstance(name, str) or not name.startswith("/") or "\0" in name:
                raise ValueError(f"{in_toml(name)} is not the absolute path of a file; {example}")
        _refuse_twice(written)
        return cls(written)


class FilePath(str):
    """The absolute path of a file."""

    @classmethod
    def read(cls, written: Any) -> Self:
        if not isinstance(written, str) or not written.startswith("/") or written.endswith("/") or "\0" in written:
            raise ValueError(
                f'{in_toml(written)} is not the absolute path of a file; write for example "/etc/fastmasq/f"'
            )
        return cls(written)


class OptionalPath(str):
    """The absolute path of a file; none is written "off"."""

    @classmethod
    def read(cls, written: Any) -> Self:
        return cls() if written == "off" else cls(FilePath.read(written))

    def __str__(self) -> str:
        return str.__str__(self) or "off"


class UserName(str):
    """The name of a user of this host; none is written ""."""

    @classmethod
    def read(cls, written: Any) -> Self:
        if not isinstance(written, str) or re.search(r"[\s:/\x00-\x1f]", written) or written.startswith("-"):
            raise ValueError(f'{in_toml(written)} is not the name of a user; write for example "nobody"')
        return cls(written)


class FolderPath(str):
    """The absolute path of a folder."""

    @classmethod
    def read(cls, written: Any) -> Self:
        if not isinstance(written, str) or not written.startswith("/") or "\0" in written:
            raise ValueError(
                f'{in_toml(written)} is not the absolute path of a folder; write for example "/run/fastmasq"'
            )
        return cls(written)


class OptionalPort(int):
    """A TCP port; 0 is written "off"."""

    @classmethod
    def read(cls, written: Any) -> Self:
        if written == "off":
            return cls()
        if isinstance(written, bool) or not isinstance(written, int) or not 1 <= written <= _LAST_PORT:
            raise ValueError(f'{in_toml(written)} is not a port; write "off" or for example 4555')
        return cls(written)

    def __str__(self) -> str:
        return repr(int(self)) if self else "off"


class Mss(int):
    """Octets that a SYN may offer to take in one segment; 0 is written "off", AUTOMATIC "auto"."""

    AUTOMATIC = -1
    LEAST, MOST = 88, 65_495  # what Linux takes from a SYN at the least; the longest packet less both headers

    @classmethod
    def read(cls, written: Any) -> Self:
        if written in ("auto", "off"):
            return cls(cls.AUTOMATIC if written == "auto" else 0)
        if isinstance(written, bool) or not isinstance(written, int) or not cls.LEAST <= written <= cls.MOST:
            example = 'write "auto", "off" or for example 1412'
            raise ValueError(f"{in_toml(written)} is not from {cls.LEAST} to {cls.MOST} octets; {example}")
        return cls(written)

    def __str__(self) -> str:
        return {self.AUTOMATIC: "auto", 0: "off"}.get(self, repr(int(self)))

    @property
    def limit(self) -> int | None:
        """The octets, 0 for any; None: what links and routes can carry."""
        return None if self == self.AUTOMATIC else int(self)


class Opening(NamedTuple):
    """What of the host is open: ports of "tcp" or "udp", a "protocol" by its number, or "ping"."""

    kind: str
    first: int = 0
    last: int = 0

    def __str__(self) -> str:
        if self.kind == "ping":
            return self.kind
        return f"{self.kind}:{self.first}" + (f"-{self.last}" if self.last != self.first else "")


class Openings(tuple[Opening, ...]):
    """What of the host is open to the outside, each once; none at all is an empty list."""

    @classmethod
    def read(cls, written: Any) -> Self:
        example = 'write for example ["tcp:22", "udp:51820", "ping"]'
        if not isinstance(written, list):
            raise ValueError(f"{in_toml(written)} is not a list; {example}")
        _refuse_twice([each for each in written if isinstance(each, str)])
        return cls(_read_opening(each, example) for each in written)


def _read_opening(written: Any, example: str) -> Opening:
    kind, _, numbers = written.partition(":") if isinstance(written, str) else ("", "", "")
    if written == "ping":
        return Opening("ping")
    if kind in ("tcp", "udp"):
        return Opening(kind, *_read_range(numbers, example))
    if kind == "protocol" and numbers.isascii() and numbers.isdigit() and 0 < int(numbers) <= _LAST_PROTOCOL:
        return Opening(kind, int(numbers), int(numbers))
    raise ValueError(f'{in_toml(written)} is none of "tcp:PORT", "udp:PORT", "protocol:NUMBER" and "ping"; {example}')


class Ports(tuple[int, ...]):
    """TCP ports, each once, at most MOST_PORTS; none at all is an empty list."""

    @classmethod
    def read(cls, written: Any) -> Self:
        example = "write for example [21] or [21, 2121], and [] for none"
        if not isinstance(written, list):
            raise ValueError(f"{in_toml(written)} is not a list of ports; {example}")
        if len(written) > MOST_PORTS:
            raise ValueError(f"names {len(written)} ports; at most {MOST_PORTS} may be")
        for port in written:
            if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= _LAST_PORT:
                raise ValueError(f"{in_toml(port)} is not a port; {example}")
        _refuse_twice(written)
        return cls(written)


class SocketPath(str):
    """Where a unix socket can be made."""

    @classmethod
    def read(cls, written: Any) -> Self:
        example = 'write for example "/run/fastmasq.sock"'
        if not isinstance(written, str) or not written.startswith("/") or written.endswith("/") or "\0" in written:
            raise ValueError(f"{in_toml(written)} is not the absolute path of a file; {example}")
        if len(written.encode()) > _LONGEST_SOCKET_PATH:
            raise ValueError(
                f"{in_toml(written)} has {len(written.encode())} bytes, a socket's path at most "
                f"{_LONGEST_SOCKET_PATH}; choose a shorter one"
            )
        return cls(written)


class StatusSocket(str):
    """Where a unix socket can be made, "auto" or "off"."""

    @classmethod
    def read(cls, written: Any) -> Self:
        return cls(written) if written in ("auto", "off") else cls(SocketPath.read(written))


@dataclass(frozen=True)
class Bounds:
    """The least and the most a key may be, written as in the file."""

    least: int | str
    most: int | str


@dataclass(frozen=True)
class Floor:
    """The least a standard asks for; below it there is a warning."""

    least: str
    source: str


def in_toml(value: Any) -> str:
    """Return a value as it would be written in TOML, on one line, shortened when long."""
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(in_toml(element) for element in value[:4])}{', ...' if len(value) > 4 else ''}]"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _checked(written: Any, *kinds: type) -> Any:
    """Return what is of one of the kinds, else raise ValueError; true and false are no numbers."""
    if isinstance(written, bool) or not isinstance(written, kinds):
        raise ValueError
    return written
