"""What the specification is told and what it remembers: settings, mappings, sessions, and the verdicts it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network

from tests.support.model import tcp

INSIDE, OUTSIDE, PROGRAMS = "inside", "outside", "programs"
SECOND = 1_000_000_000
ANY_PORT = frozenset(range(1, 65536))
USUAL_PORTS = frozenset(range(1024, 20480)) | frozenset(range(24576, 65536))

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


@dataclass(frozen=True)
class Several:
    """What became of a piece of a datagram and, after it, of those that had waited for it; none: it waits itself."""

    verdicts: tuple[Forward | Reply | Deliver | Drop, ...]


Verdict = Forward | Reply | Deliver | Drop | Several


@dataclass(frozen=True)
class Observed:
    """What was seen of the choices that the specification leaves open. None: choose for yourself."""

    port: int | None = None  # the source port, or identifier, of the packet that left
    target: tuple[int, int] | None = None  # its destination
    identification: int | None = None


class WrongPort(AssertionError):
    """The external port that was given to a new mapping is not one the rules allow."""


class WrongTarget(AssertionError):
    """A packet to a port forward went to another target than the rules allow."""


# --- the network and the state -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PortForward:
    """An external port that leads inside (PF-1): `targets` are (address, port, weight); the first has the turn.

    It is for the remotes in these networks (address/length, and a port or 0 for any), for all if there are none.
    """

    protocol: int
    port: int
    targets: tuple[tuple[str, int, int], ...]
    remotes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Redirect:
    """A protocol without ports that one inside host gets (section 5.6), from the remote network `source`."""

    protocol: int
    host: str
    source: str = "0.0.0.0/0"


@dataclass(frozen=True)
class ProgramRedirect:
    """A rule of the input chain: what is for this port goes to a program of the host (T-10); 0: at the same port."""

    protocol: int
    port: int
    program_port: int = 0


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
    renumbers: bool = False  # what may be cut and leaves with another source has an identification of its own
    mss: int | str = "auto"  # that SYNs may offer
    ports: frozenset[int] = USUAL_PORTS  # of TCP and of UDP
    identifiers: frozenset[int] = ANY_PORT  # of ICMP queries
    sessions: int = 1_000_000
    sessions_per_host: int = 250_000
    ports_per_host: int = 16_384  # of each protocol
    prefix: int = 0  # length of networks whose hosts are one holder of a share; 0: nobody has a share
    tcp_established: int = 7440 * SECOND
    tcp_transitory: int = 240 * SECOND
    udp: int = 300 * SECOND
    icmp: int = 60 * SECOND
    forwards: tuple[PortForward, ...] = ()
    half_open: int = 1024  # sessions of one forward of which only one end has been heard
    redirects: tuple[Redirect, ...] = ()
    by_address: frozenset[int] = frozenset()  # protocols without ports that any inside host may begin
    programs: tuple[ProgramRedirect, ...] = ()


@dataclass
class Target:
    """An inside endpoint behind a port forward; `left`: the sessions it gets before the turn passes on."""

    endpoint: tuple[int, int]
    weight: int
    left: int


@dataclass
class Mapping:
    """An inside endpoint and the external port it has, the same for every remote (RFC 4787 REQ-1).

    That of a port forward has `targets`, the one whose turn it is first, and no inside endpoint of its own.
    """

    protocol: int
    address: int
    id: int
    external_id: int
    sessions: dict[tuple[int, int], Session] = field(default_factory=dict)  # by remote endpoint
    targets: list[Target] = field(default_factory=list)
    remotes: tuple[tuple[IPv4Network, int], ...] = ()

    @property
    def half_open(self) -> int:
        return sum(session.state in tcp.HALF_OPEN for session in self.sessions.values())


@dataclass
class Session:
    """A mapping's traffic with one remote endpoint; dead from `expires` (ns) on. Only TCP has a `connection`.

    `target` is the inside endpoint if a port forward leads to it. Of what has no connection, `answered` says that the
    inside has been heard, `heard` that the remote has.
    """

    mapping: Mapping
    remote: tuple[int, int]
    expires: int = 0
    connection: tcp.Connection | None = None
    target: tuple[int, int] | None = None
    answered: bool = True
    heard: bool = False

    @property
    def protocol(self) -> int:
        return self.mapping.protocol

    @property
    def inside(self) -> tuple[int, int]:
        return self.target or (self.mapping.address, self.mapping.id)

    @property
    def state(self) -> str:
        return state_of(self)


@dataclass
class PlainSession:
    """The traffic of a protocol without ports between an inside host and one remote address, which it has to itself.

    `answered` says that the inside has been heard, `heard` that the remote has: either may have begun.
    """

    protocol: int
    inside: tuple[int, None]
    remote: int
    expires: int = 0
    connection: None = None
    answered: bool = False
    heard: bool = False
    state: str = "active"


@dataclass
class ProgramSession:
    """What a program of the host has with a client, who takes it for the endpoint that was `asked`."""

    protocol: int
    link: str  # the client's
    client: tuple[int, int]
    asked: tuple[int, int]
    program: tuple[int, int]
    payer: int  # the address of whose share it is
    expires: int = 0
    connection: tcp.Connection | None = None
    answered: bool = False
    heard: bool = True

    @property
    def state(self) -> str:
        return state_of(self)


def state_of(session: Session | ProgramSession) -> str:
    if session.connection:
        return session.connection.state
    return "active" if session.answered else tcp.UNANSWERED
