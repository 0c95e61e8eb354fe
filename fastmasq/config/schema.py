"""The settings as typed structs with their units, bounds and defaults.

Each section of fastmasq.toml is one struct, each key one field. A field's annotation says what may stand there:
`Bounds` are refused, a `Floor` is the least an RFC asks for and only warned about. Units are gone after loading:
durations are nanoseconds, rates events per second, ports numbers.

A default may depend on `compat`: "2.0" and "2.2" bring back the figures of those kernels (see `_MASQUERADE`).
Two defaults depend on other keys: one inside host may have a quarter of the sessions and a quarter of the ports
(see `derive`).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Struct
from msgspec.structs import replace

from fastmasq.config.values import (
    DEFAULT_SOCKET,
    SERVICE_SOCKET,
    STATUS_SOCKET,
    Addresses,
    Allowances,
    Bounds,
    Duration,
    FileNames,
    FilePath,
    Floor,
    FolderPath,
    HostPorts,
    InterfaceName,
    InterfaceNames,
    Mss,
    Openings,
    OptionalPath,
    OptionalPort,
    PortRanges,
    Ports,
    Rate,
    SocketPath,
    StatusSocket,
    UserName,
)
from fastmasq.policy.forwards import Forward
from fastmasq.policy.redirects import Redirect
from fastmasq.wire.numbers import AH, ESP, GRE, ICMP, TCP, UDP

Compat = Literal["modern", "2.0", "2.2"]

SHARE = 4  # by default one inside host may have one part in SHARE of the sessions, and of the ports


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all sections have in common: they do not change, and know all their keys."""


class Interfaces(Section, frozen=True, kw_only=True):
    """Names of links, the only keys without a default; a link may be missing for a while."""

    inside: InterfaceNames = InterfaceNames()
    outside: InterfaceName = InterfaceName()


class Timeouts(Section, frozen=True, kw_only=True):
    """How long a silent session is kept."""

    tcp_established: Annotated[Duration, Bounds("1s", "30d"), Floor("2h4m", "RFC 5382 REQ-5")] = Duration.read("2h4m")
    tcp_transitory: Annotated[Duration, Bounds("1s", "1d"), Floor("4m", "RFC 5382 REQ-5")] = Duration.read("4m")
    udp: Annotated[Duration, Bounds("1s", "1d"), Floor("2m", "RFC 4787 REQ-5")] = Duration.read("5m")
    icmp: Annotated[Duration, Bounds("1s", "1d"), Floor("60s", "RFC 5508 REQ-2")] = Duration.read("60s")


class Masquerade(Section, frozen=True, kw_only=True):
    """How inside endpoints are shown outside."""

    addresses: Addresses = Addresses()
    ports: PortRanges = PortRanges()
    host_ports: HostPorts = HostPorts("auto")
    mapping: Literal["endpoint-independent"] = "endpoint-independent"
    filtering: Literal["address-dependent", "endpoint-independent", "address-and-port-dependent"] = "address-dependent"
    hairpin: bool = True
    mss: Mss = Mss.read("auto")
    other_protocols: bool = True
    dynaddr: Annotated[int, Bounds(0, 7)] = 7
    timeouts: Timeouts = Timeouts()


class Rules(Section, frozen=True, kw_only=True):
    """Scripts of 1999 with the rules of the chains, run in this order at start."""

    files: FileNames = FileNames()
    strict: bool = False
    steal: bool = False


class Vpn(Section, frozen=True, kw_only=True):
    """Which VPN protocols are followed, and the constants of 1999's patches (original rules P-26, E-1 to E-33)."""

    pptp: bool = True
    pptp_loose_source: bool = False
    ipsec: bool = True
    ipsec_lifetime: Annotated[Duration, Bounds("15m", "7d")] = Duration.read("30m")
    ipsec_init_lifetime: Annotated[Duration, Bounds("5s", "15m")] = Duration.read("2m")
    ipsec_init_retries: Annotated[int, Bounds(1, 100)] = 5
    ipsec_squelch: Annotated[Duration, Bounds("1s", "15m")] = Duration.read("30s")
    ipsec_guess: bool = True
    ipsec_guess_hosts: Annotated[int, Bounds(1, 50)] = 5
    ipsec_guess_margin: Annotated[Duration, Bounds("0s", "15m")] = Duration.read("5m")
    ipsec_remote_phase1: bool = True
    ipsec_parallel: bool = True
    preload: OptionalPort = OptionalPort()
    preload_keys: FilePath = FilePath("/etc/fastmasq/preload.keys")


class PortMapping(Section, frozen=True, kw_only=True):
    """Which inside hosts may have ports forwarded to themselves by asking for it (RFC 6887, RFC 6886, UPnP IGD)."""

    pcp: bool = False
    upnp: bool = False
    allow: Allowances = Allowances()
    mappings_per_host: Annotated[int, Bounds(1, 1024)] = 64
    longest: Annotated[Duration, Bounds("2m", "30d")] = Duration.read("1d")


class Gateways(Section, frozen=True, kw_only=True):
    """The ports of the control connections that application gateways follow, by protocol; none: that gateway is off."""

    ftp: Ports = Ports((21,))
    irc: Ports = Ports()
    raudio: Ports = Ports()
    vdolive: Ports = Ports()


class Limits(Section, frozen=True, kw_only=True):
    """Sizes chosen at start, and what one inside host may have of them."""

    sessions: Annotated[int, Bounds(16, 50_000_000)] = 1_000_000
    sessions_per_host: Annotated[int, Bounds(1, 50_000_000)] = 250_000
    ports_per_host: Annotated[int, Bounds(1, 65_535)] = 16_384
    prefix: Annotated[int, Bounds(0, 32)] = 24
    new_sessions_per_host: Annotated[Rate, Bounds("0/s", "10000000/s")] = Rate.read("2000/s")


class Rings(Section, frozen=True, kw_only=True):
    """How packets are exchanged with the kernel."""

    mode: Literal["auto", "v3", "v2", "socket"] = "auto"
    vnet_header: Literal["auto", "off"] = "auto"
    frames: Annotated[int, Bounds(64, 1_048_576)] = 4096
    busy_poll: Annotated[Duration, Bounds("0s", "10ms")] = Duration.read("200us")


class Host(Section, frozen=True, kw_only=True):
    """What the outside gets of the host itself."""

    unsolicited: Literal["answer", "drop"] = "answer"
    open: Openings = Openings()

    @property
    def is_shut(self) -> bool:
        """Return whether nobody outside can begin anything with the host."""
        return self.unsolicited == "drop" and not self.open


class Takeover(Section, frozen=True, kw_only=True):
    """How the kernel is made to stand aside."""

    guard: Literal["auto", "tc", "nftables", "iptables", "none"] = "auto"


class Offload(Section, frozen=True, kw_only=True):
    """Whether the kernel carries packets of established sessions, and how many there may be then."""

    mode: Literal["off", "auto"] = "off"
    sessions: Annotated[int, Bounds(16, 1_048_576)] = 65_536


class State(Section, frozen=True, kw_only=True):
    """Where sessions outlive the process."""

    directory: FolderPath = FolderPath("/run/fastmasq")


class Control(Section, frozen=True, kw_only=True):
    """Where the running forwarder is reached."""

    socket: SocketPath = SocketPath(DEFAULT_SOCKET)
    status: StatusSocket = StatusSocket("auto")

    @property
    def status_socket(self) -> str | None:
        """Return where the group may read and change nothing: "auto" is STATUS_SOCKET beside a usual control socket."""
        if self.status == "auto":
            return STATUS_SOCKET if self.socket in (DEFAULT_SOCKET, SERVICE_SOCKET) else None
        return None if self.status == "off" else self.status

    @property
    def former_journal(self) -> Path:
        """Return where version 0.1 kept its journal, beside the socket."""
        return Path(self.socket).with_suffix(".journal")


class Hooks(Section, frozen=True, kw_only=True):
    """Programs that are run when something has happened, by whom, and how long each may take."""

    address_changed: OptionalPath = OptionalPath()
    up: OptionalPath = OptionalPath()
    down: OptionalPath = OptionalPath()
    vpn: OptionalPath = OptionalPath()
    user: UserName = UserName()
    timeout: Annotated[Duration, Bounds("1s", "5m")] = Duration.read("10s")


class Settings(Section, frozen=True, kw_only=True):
    """Everything that can be set, one field for each section; [[forward]] and [[redirect]] are read by `lists`."""

    compat: Compat = "modern"
    interfaces: Interfaces = Interfaces()
    masquerade: Masquerade = Masquerade()
    rules: Rules = Rules()
    vpn: Vpn = Vpn()
    port_mapping: PortMapping = PortMapping()
    gateways: Gateways = Gateways()
    limits: Limits = Limits()
    rings: Rings = Rings()
    host: Host = Host()
    takeover: Takeover = Takeover()
    offload: Offload = Offload()
    state: State = State()
    control: Control = Control()
    hooks: Hooks = Hooks()
    forward: tuple[Forward, ...] = ()
    redirect: tuple[Redirect, ...] = ()

    @property
    def sequential_ports(self) -> bool:
        """Return whether external ports are dealt out one after the other, never preserved, as in 1999."""
        return self.compat != "modern"

    @property
    def by_address(self) -> frozenset[int]:
        """Return the protocols without ports that any inside host may begin, by addresses alone.

        AH covers its addresses. ESP is its tracker's or nobody's, since it may be an IKE daemon's of this host, and GRE
        without the tracker that knows its calls is nobody's either.
        """
        if not self.masquerade.other_protocols:
            return frozenset()
        return frozenset(range(256)) - {ICMP, TCP, UDP, ESP, AH} - (set() if self.vpn.pptp else {GRE})


def _masquerade_of_1999(icmp: str) -> Masquerade:
    return Masquerade(
        ports=PortRanges.read("61000-65095"),
        filtering="address-and-port-dependent",
        hairpin=False,
        other_protocols=False,
        timeouts=Timeouts(
            tcp_established=Duration.read("15m"),
            tcp_transitory=Duration.read("2m"),
            udp=Duration.read("5m"),
            icmp=Duration.read(icmp),
        ),
    )


_MASQUERADE: dict[str, Masquerade] = {
    "modern": Masquerade(),
    "2.0": _masquerade_of_1999(icmp="125s"),
    "2.2": _masquerade_of_1999(icmp="60s"),
}


_LIMITS: dict[str, Limits] = {"modern": Limits(), "2.0": Limits(prefix=0), "2.2": Limits(prefix=0)}


_VPN: dict[str, Vpn] = {"modern": Vpn(), "2.0": Vpn(), "2.2": Vpn(ipsec_parallel=False)}


def defaults(compat: Compat = "modern") -> Settings:
    """Return the settings of a file that says nothing but `compat`: without interfaces."""
    return derive(
        Settings(compat=compat, masquerade=_MASQUERADE[compat], limits=_LIMITS[compat], vpn=_VPN[compat]), written=()
    )


def derive(settings: Settings, written: Collection[tuple[str, ...]]) -> Settings:
    """Return `settings` with the defaults that follow from other keys, where their path is not in `written`."""
    limits = settings.limits
    if ("limits", "sessions_per_host") not in written:
        limits = replace(limits, sessions_per_host=max(1, limits.sessions // SHARE))
    if ("limits", "ports_per_host") not in written and settings.masquerade.ports:
        limits = replace(limits, ports_per_host=max(1, settings.masquerade.ports.count // SHARE))
    return replace(settings, limits=limits)
