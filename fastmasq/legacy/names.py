"""Names of hosts, networks, services and protocols, looked up in the order in which the programs of 1999 did.

Addresses are integers in host order.
"""

from __future__ import annotations

import functools
import os
import socket
from ipaddress import IPv4Address
from pathlib import Path

from fastmasq.legacy.tokens import number
from fastmasq.wire.numbers import ICMP, TCP, UDP

ALL = 0
ALL_ONES = 0xFFFFFFFF

_TRY_AGAIN = 2  # of netdb.h: no name server answers

_TRANSPORT = {TCP: "tcp", UDP: "udp"}
_WELL_KNOWN = {"all": ALL, "icmp": ICMP, "tcp": TCP, "udp": UDP}  # also where there is no /etc/protocols


class Names:
    """What the host knows by name: /etc/networks, and whatever its resolver asks (files, DNS)."""

    def __init__(self, networks: Path = Path("/etc/networks")) -> None:
        self._networks_file = networks
        self._host_names: dict[int, str | None] = {}  # a listing asks for the same address many times
        self._is_answered = True  # by a name server

    def addresses(self, name: str) -> list[int]:
        """Return the address of a dotted quad or a network, or all addresses of a host; none for no such name."""
        dotted = read_dotted(name)
        if dotted is not None:
            return [dotted]
        if name in self._networks:
            return [self._networks[name]]
        return self.hosts(name)

    def hosts(self, name: str) -> list[int]:
        """Return all addresses of a host; none when it is not known."""
        try:
            found = socket.gethostbyname_ex(name)[2]
        except (OSError, UnicodeError):
            return []
        return [int(IPv4Address(address)) for address in found]

    def describe(self, address: int) -> str:
        """Return the name of a host or of a network, else the dotted quad."""
        return self._host_name(address) or self._network_names.get(address) or write_dotted(address)

    def describe_text(self, host: str) -> str:
        """Return the name of a dotted quad; any other text as it is."""
        address = read_dotted(host)
        return host if address is None else self.describe(address)

    def port(self, service: str, protocol: int) -> int | None:
        """Return the port of a service of TCP or UDP, None when it is not known."""
        try:
            return socket.getservbyname(service, _TRANSPORT[protocol])
        except (KeyError, OSError):
            return None

    def service(self, port: int, protocol: int) -> str | None:
        """Return the name of a port of TCP or UDP, None when it has none."""
        try:
            return socket.getservbyport(port, _TRANSPORT[protocol])
        except (KeyError, OSError):
            return None

    def protocol(self, name: str) -> int | None:
        """Return the number of a protocol, None when it is not known."""
        try:
            return socket.getprotobyname(name)
        except OSError:
            return _WELL_KNOWN.get(name.lower())

    def protocol_name(self, protocol: int) -> str | None:
        """Return the name of a protocol, None when it has none."""
        names = {value: name for name, value in _WELL_KNOWN.items()}
        return names.get(protocol) or self._protocol_names.get(protocol)

    @functools.cached_property
    def _networks(self) -> dict[str, int]:
        found = {}
        for fields in _rows(self._networks_file):
            address = read_dotted(".".join((fields[1].split(".") + ["0"] * 3)[:4])) if len(fields) > 1 else None
            if address is not None:
                found.update(dict.fromkeys((fields[0], *fields[2:]), address))
        return found

    @functools.cached_property
    def _network_names(self) -> dict[int, str]:
        return {address: name for name, address in reversed(self._networks.items())}

    @functools.cached_property
    def _protocol_names(self) -> dict[int, str]:
        """Python has no look-up by number: read the file that the resolver reads."""
        rows = [fields for fields in _rows(Path("/etc/protocols")) if len(fields) > 1 and fields[1].isdigit()]
        return {int(fields[1]): fields[0] for fields in reversed(rows)}

    def _host_name(self, address: int) -> str | None:
        """Return the name of a host, None when it has none; nor has any, once no name server has answered."""
        if address not in self._host_names and self._is_answered:
            os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")  # resolv.conf(5); a name is not worth 15 s
            try:
                self._host_names[address] = socket.gethostbyaddr(write_dotted(address))[0]
            except OSError as error:
                self._host_names[address] = None
                self._is_answered = error.errno != _TRY_AGAIN
        return self._host_names.get(address)


def read_dotted(text: str) -> int | None:
    """Return the address of a dotted quad, None when it is none."""
    octets = [number(part, 0, 255) for part in text.split(".")]
    if len(octets) != 4 or None in octets:
        return None
    return int.from_bytes(octets)  # type: ignore[arg-type]


def write_dotted(address: int) -> str:
    """Return the dotted quad of an address."""
    return str(IPv4Address(address))


def read_mask(text: str) -> int | None:
    """Return the mask of "24" or "255.255.255.0", None when it is neither."""
    dotted = read_dotted(text)
    if dotted is not None:
        return dotted
    bits = number(text, 0, 32)
    return None if bits is None else ALL_ONES << (32 - bits) & ALL_ONES


def write_mask(mask: int) -> str:
    """Return what listings put behind an address: "" for one host, "/24", or "/255.0.255.0" for a mask with gaps."""
    if mask == ALL_ONES:
        return ""
    bits = mask.bit_count()
    return f"/{bits}" if mask == ALL_ONES << (32 - bits) & ALL_ONES else f"/{write_dotted(mask)}"


def _rows(file: Path) -> list[list[str]]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [fields for line in lines if (fields := line.partition("#")[0].split())]
