"""The packet path on memory links, in the HOWTO's network and without a kernel: what unit and model tests drive."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from fastmasq.offload.arrays import Arrays
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rows import INSIDE, LOCAL, NO_LINK, OUTSIDE, ROUTE, ROUTE_KINDS, link_row
from fastmasq.path.rules import RuleTable
from fastmasq.policy.chains import RuleSet
from fastmasq.policy.compile import LinkView, compile_chains
from fastmasq.ring.ring import RxRing, TxBatch
from fastmasq.table.keys import ends_of
from fastmasq.table.limits import Limits
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import STATES
from fastmasq.table.timeouts import Timeouts
from fastmasq.wire.numbers import CLASSES

LINKS = ("inside", "outside", "programs")
SIDES = {"inside": INSIDE, "outside": OUTSIDE, "programs": LOCAL}
GATEWAY_MAC = {name: bytes((2, 0, 0, 0, number, 0x01)) for number, name in enumerate(LINKS, 1)}
STATION_MAC = {name: bytes((2, 0, 0, 0, number, 0x99)) for number, name in enumerate(LINKS, 1)}
PROGRAMS = "169.254.255.1"
LINK_HEADER = 14


def address(text: str) -> int:
    return int(ipaddress.IPv4Address(text))


class Out(NamedTuple):
    """One frame sent: the link it left on, the IP packet, and its virtio header (None for a link without)."""

    link: str
    packet: bytes
    vnet: bytes | None


def flatten(prefixes: list[tuple[str, dict]]) -> tuple[np.ndarray, np.ndarray]:
    """Return route intervals for (prefix, fields of ROUTE) rows, the longest prefix winning."""
    networks = [(ipaddress.IPv4Network(prefix), fields) for prefix, fields in prefixes]
    edges = {0}
    for network, _ in networks:
        edges.add(int(network.network_address))
        if int(network.broadcast_address) < 0xFFFFFFFF:
            edges.add(int(network.broadcast_address) + 1)
    first = np.array(sorted(edges), "u4")
    routes = np.zeros(len(first), ROUTE)
    routes["link"] = NO_LINK
    for row, start in enumerate(first):
        covering = [
            (network.prefixlen, fields) for network, fields in networks if ipaddress.IPv4Address(int(start)) in network
        ]
        if covering:
            for name, value in max(covering, key=lambda pair: pair[0])[1].items():
                routes[row][name] = value
    return first, routes


def columns(ports: Iterable[int]) -> slice | np.ndarray:
    """Return what picks these ports out of a row for all; a range or an array is not read one by one."""
    if isinstance(ports, range):
        return slice(ports.start, ports.stop, ports.step)
    return ports if isinstance(ports, np.ndarray) else np.fromiter(ports, np.intp)


def unicast(link: str, gateway: str = "0.0.0.0", mtu: int = 0) -> dict:
    return {
        "kind": ROUTE_KINDS["unicast"],
        "link": LINKS.index(link),
        "gateway": address(gateway),
        "mtu": mtu,
    }


def plain(kind: str) -> dict:
    return {"kind": ROUTE_KINDS[kind]}


HOWTO_ROUTES = [
    ("0.0.0.0/0", unicast("outside", "200.200.200.1")),
    ("10.0.0.0/8", unicast("inside")),
    ("10.0.0.0/32", plain("broadcast")),
    ("10.0.0.1/32", plain("local")),
    ("10.255.255.255/32", plain("broadcast")),
    ("200.200.200.0/24", unicast("outside")),
    ("200.200.200.0/32", plain("broadcast")),
    ("200.200.200.200/32", plain("local")),
    ("200.200.200.255/32", plain("broadcast")),
    ("127.0.0.0/8", plain("local")),
    ("169.254.255.0/24", unicast("programs", PROGRAMS)),
    ("255.255.255.255/32", plain("broadcast")),
]


def new_table(
    capacity: int = 4096, *, timeouts: Timeouts | None = None, secret: bytes = bytes(range(16)), **settings
) -> MasqTable:
    """Return a table with a fixed secret; settings are those of MasqTable, and of its Limits."""
    own = {field.name: settings.pop(field.name) for field in fields(Limits) if field.name in settings}
    table = MasqTable(capacity, limits=Limits(**own), secret=secret, **settings)
    if timeouts is not None:
        table.set_timeouts(timeouts)
    return table


class Harness:
    """Memory links with a Forwarder between: inside 10.0.0.1/8, outside 200.200.200.200/24, default via .1.

    A third one leads to programs of the host, at two addresses from PROGRAMS on.

    ports: external ports that may be used, for TCP and UDP (default 1024 to 65535 and the low ones); routes: rows for
    `flatten`; table settings (capacity, filtering, timeouts, limits) go to `new_table`. Rate limits of generated errors
    are off unless limit_errors is set. Every next hop answers, unless its address is in `silent`. One that only
    observes has silent senders. arrays: what is shared with the kernel, which may carry sessions then (carried.py).
    """

    def __init__(
        self,
        *,
        ports=range(1, 65536),
        routes=None,
        mtu=None,
        external: str | None = "200.200.200.200",
        hairpin=True,
        limit_errors=False,
        outside_vnet=True,
        inside_vnet=True,
        header_length=None,
        observes=False,
        arrays: Arrays | None = None,
        now_ns=1_000_000_000_000,
        **table_settings,
    ):
        self.now_ns = now_ns
        self.silent: set[int] = set()
        self.header_length = dict.fromkeys(LINKS, LINK_HEADER) | (header_length or {})
        self.mtu = dict.fromkeys(LINKS, 1500) | (mtu or {})
        of_table, of_path = (arrays.of_table, arrays.of_path) if arrays else (None, None)
        self.table = new_table(now_ns=now_ns, apart=of_table, **table_settings)
        self.forwarder = Forwarder(
            self.table, hairpin=hairpin, limit_errors=limit_errors, observes=observes, apart=of_path
        )
        self.rings = {name: RxRing() for name in LINKS}
        has_vnet = {"inside": inside_vnet, "outside": outside_vnet, "programs": True}
        self.senders = {name: TxBatch(vnet=has_vnet[name], silent=observes) for name in LINKS}
        self.forwarder.set_proxies(address(PROGRAMS), 2)
        addresses = {"inside": "10.0.0.1", "outside": "200.200.200.200", "programs": "0.0.0.0"}
        for number, name in enumerate(LINKS):
            self.forwarder.attach(number, self.rings[name], self.senders[name])
            self.forwarder.set_link(
                number,
                link_row(
                    side=SIDES[name],
                    mtu=self.mtu[name],
                    address=address(addresses[name]),
                    mac=GATEWAY_MAC[name],
                    header_length=self.header_length[name],
                ),
            )
        self.set_routes(routes or HOWTO_ROUTES)
        allowed = np.zeros((3, 65536), bool)
        allowed[:2, columns(ports)] = True
        allowed[2, :] = True
        self.allowed = allowed
        if external is not None:
            self.table.set_external(address(external), allowed)
        self._drops: dict[str, int] = {}

    def set_rule_set(self, rule_set: RuleSet, *, cache: bool = True) -> None:
        """Put these chains in force; inside is eth0, outside eth1."""
        links = [LinkView("eth0", (address("10.0.0.1"),)), LinkView("eth1", (address("200.200.200.200"),))]
        self.compiled = compile_chains(rule_set, links)
        self.rule_table = RuleTable(len(self.table.sessions))
        self.rule_table.set_cache(cache)
        self.rule_table.load(self.compiled)
        self.forwarder.set_chains(self.rule_table)

    def rule_counts(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Return {(chain, rule number): (packets, octets)} of what has matched since the last call; 0 is the policy."""
        self.forwarder.charge_carried()
        counts = self.rule_table.collect()
        return {
            self.compiled.places[row]: (int(counts["packets"][row]), int(counts["octets"][row]))
            for row in np.flatnonzero(counts["packets"])
        }

    def set_routes(self, prefixes) -> None:
        self.forwarder.set_routes(*flatten(prefixes))

    def inject(self, link: str, packet: bytes, *, vnet: bytes | None = None, packet_type: int = 0) -> None:
        """Queue one packet as received on a link; nothing happens until `run`."""
        header = GATEWAY_MAC[link] + STATION_MAC[link] + b"\x08\x00" if self.header_length[link] else b""
        self.rings[link].push(header + packet, vnet, packet_type)

    def run(self) -> list[Out]:
        """Process everything queued, resolving next hops as asked, and return what was sent, in order for each link."""
        while self.forwarder.step(self.now_ns):
            pass
        while self.forwarder.hops_wanted:  # by another link, when the packet has been looked at again
            for number, hop in self.forwarder.wanted_hops():
                if hop not in self.silent:
                    self.forwarder.set_neighbour(number, hop, STATION_MAC[LINKS[number]])
            self.forwarder.step(self.now_ns)
        sent = []
        for name in LINKS:
            for vnet, frame in self.senders[name].pop():
                sent.append(Out(name, frame[self.header_length[name] :], vnet))
        return sent

    def send(self, link: str, packet: bytes, now_ns: int | None = None, vnet: bytes | None = None) -> list[Out]:
        """Let one packet arrive on a link and return what leaves."""
        if now_ns is not None:
            self.now_ns = now_ns
        self.inject(link, packet, vnet=vnet)
        return self.run()

    def advance(self, seconds: float) -> None:
        """Let time pass, and sessions with it."""
        self.now_ns += round(seconds * 1e9)
        self.table.expire(self.now_ns)
        self.forwarder.step(self.now_ns)

    def drops(self) -> dict[str, int]:
        """Return {reason: packets} dropped since the last call."""
        now = self.forwarder.drops()
        moved = {name: count - self._drops.get(name, 0) for name, count in now.items()}
        self._drops = now
        return {name: count for name, count in moved.items() if count}

    def sessions(self) -> list[dict]:
        """Return the open sessions as dicts of host-order integers and names."""
        result = []
        for row in self.table.sessions[: self.table.fresh]:
            if not row["state"]:
                continue
            out, back = row["flow"]
            ends = ends_of(out)
            result.append(
                {
                    "protocol": (*CLASSES, "other")[row["port_class"]],
                    "state": STATES[row["state"]],
                    "inside": (ends.saddr, ends.sid),
                    "external": (int(out["saddr"]), int(out["sid"])),
                    "remote": (ends.daddr, ends.did),
                    "packets_out": int(out["packets"]),
                    "packets_in": int(back["packets"]),
                }
            )
        return result
