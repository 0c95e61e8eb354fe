"""What the specification is told and what it remembers: settings, mappings, sessions, and the verdicts it gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model import tcp

INSIDE, OUTSIDE = "inside", "outside"
SECOND = 1_000_000_000
ANY_PORT = frozenset(range(1, 65536))
USUAL_PORTS = frozenset(range(1024, 32768)) | frozenset(range(61000, 65536))

# --- what can become of a packet -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forward:
    link: str
    packets: tuple[bytes, ...]


@dataclass(frozen=True)
class Reply:
    link: str
    packet: bytes
    reason: str


@dataclass(frozen=True)
class Deliver:
    pass


@dataclass(frozen=True)
class Drop:
    reason: str


Verdict = Forward | Reply | Deliver | Drop


class WrongPort(AssertionError):
    """The external port that was given to a new mapping is not one the rules allow."""


# --- the network and the state -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What can be configured. Ports are external ports (for ICMP identifiers) that mappings may have."""

    inside_address: str = "10.0.0.1"
    inside_network: str = "10.0.0.0/8"
    outside_address: str = "200.200.200.200"
    outside_network: str = "200.200.200.0/24"
    inside_mtu: int = 1500
    outside_mtu: int = 1500
    filtering: str = "address-dependent"
    ports: frozenset[int] = USUAL_PORTS  # of TCP and of UDP
    identifiers: frozenset[int] = ANY_PORT  # of ICMP queries
    sessions: int = 1_000_000
    sessions_per_host: int = 250_000
    ports_per_host: int = 16_384  # of each protocol
    tcp_established: int = 7440 * SECOND
    tcp_transitory: int = 240 * SECOND
    udp: int = 300 * SECOND
    icmp: int = 60 * SECOND


@dataclass
class Mapping:
    """An inside endpoint and the external port it has, the same for every remote (RFC 4787 REQ-1)."""

    protocol: int
    address: int
    id: int
    external_id: int
    sessions: dict[tuple[int, int], Session] = field(default_factory=dict)  # by remote endpoint


@dataclass
class Session:
    """A mapping's traffic with one remote endpoint; dead from `expires` (ns) on. Only TCP has a `connection`."""

    mapping: Mapping
    remote: tuple[int, int]
    expires: int = 0
    connection: tcp.Connection | None = None

    @property
    def state(self) -> str:
        return self.connection.state if self.connection else "active"
