"""A Harness with the VPN trackers of an engine, driven as the engine does it, and packets of tunnels to send to it."""

from __future__ import annotations

import struct
from collections import Counter

from fastmasq.config.schema import Gateways, Settings
from fastmasq.config.schema import Vpn as VpnSettings
from fastmasq.daemon.application_gateways import ApplicationGateways
from fastmasq.daemon.forwards import Forwards
from fastmasq.daemon.kept_tunnels import read_former
from fastmasq.daemon.leads import Leads
from fastmasq.daemon.punts import Punts
from fastmasq.daemon.redirects import Redirects
from fastmasq.daemon.tunnel_adoption import Adopted, adopt
from fastmasq.daemon.vpn import Vpn
from fastmasq.kernel.run_folder import RunFolder
from fastmasq.policy.chains import RuleSet
from fastmasq.table import memory
from fastmasq.wire.numbers import ESP, GRE, NATT_PORT, PPTP_PORT
from fastmasq.wire.pptp import Type, message
from tests.support.adoption import adopt_all, shared
from tests.support.harness import Harness, Out, address
from tests.support.packets import decode, dotted, ipv4, problems, tcp, udp
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OUTSIDE

REMOTE, OTHER_REMOTE = "199.0.0.2", "199.0.0.3"
THIRD_HOST = "10.0.0.4"
RESPONDER = b"RESPONDR"
CAPACITY = 256  # sessions of a gateway that is killed


class Gateway:
    """A Harness with the trackers of an engine, driven as the engine drives them."""

    def __init__(
        self, *, forwards=(), redirects=(), rules: RuleSet | None = None, vpn: VpnSettings | None = None,
        gateways: Gateways | None = None,
        folder: RunFolder | None = None, after: Gateway | None = None, **settings,
    ):  # fmt: skip
        """folder: where that lies which outlives it. after: one that was killed, with whose sessions it goes on."""
        if folder is not None:
            settings = {"buffer": shared(CAPACITY), **settings}
        if "buffer" in settings:
            settings = {"capacity": CAPACITY, **settings}
            self.rows = settings["buffer"]
        if after is not None:
            settings = {"external": None, "now_ns": after.harness.now_ns, **settings}
        self.harness = Harness(**settings)
        if after is not None:
            ports = gateways or Gateways()
            self.harness.table.follow_ports([PPTP_PORT, *ports.ftp, *ports.irc])
            left = memory.lay_out(CAPACITY, after.rows)
            adopt_all(self.harness.table, left, self.harness.now_ns)
        if rules is not None:
            self.harness.set_rule_set(rules)
        self.forwards = Forwards(self.harness.table, self.harness.forwarder)
        self.forwards.put(forwards, (), ())
        self.redirects = Redirects(self.harness.forwarder)
        self.redirects.put(redirects)
        self.listen(GATEWAY_OUT)
        self.vpn = Vpn(
            Settings(vpn=vpn or VpnSettings()),
            self.harness.table,
            self.harness.forwarder,
            Leads(self.forwards, self.redirects),
            lambda host=None: address(GATEWAY_OUT),
        )
        self.gateways = ApplicationGateways(
            self.harness.table, self.harness.forwarder, [PPTP_PORT] * self.vpn.settings.pptp
        )
        self.gateways.go_by(gateways or Gateways())
        if after is not None:
            self.gateways.go_on(left.followers)
        self.punts = Punts(self.harness.forwarder, self.vpn, self.gateways, lambda *host: self.vpn.address(*host))
        self.asked = 0  # packets that a tracker had to look at
        self.adopted = Adopted(Counter(), Counter())
        if folder is not None:
            self.adopted = adopt(read_former(folder), self.vpn, self.harness.now_ns)
            self.vpn.kept.begin(folder)

    def listen(self, *addresses: str) -> None:
        """Have these addresses, and put in force the forwards that listen on them."""
        self.forwards.resolve({text: address(text) for text in addresses})
        wanted = self.forwards.wanted_ports()
        allowed = self.harness.allowed.copy()
        allowed[1, 500] = False
        external = address(GATEWAY_OUT)
        self.harness.table.set_external(external, allowed & ~wanted.get(external, False))
        for listen, ports in wanted.items():
            self.harness.table.hold_external(listen, allowed & ~ports)
        self.forwards.place()

    def send(self, link: str, packet: bytes, vnet: bytes | None = None) -> list[Out]:
        """Let a packet arrive and return what leaves, once trackers and next hops have answered."""
        self.harness.inject(link, packet, vnet=vnet)
        return self.settle()

    def settle(self) -> list[Out]:
        """Process what has been queued, and let trackers and next hops answer; return what leaves."""
        sent = self.harness.run()
        while self.harness.forwarder.next_punt() is not None:
            self.asked += 1
            assert not self.punts.answer_waiting(self.harness.now_ns)
            sent += self.harness.run()
        return sent

    def passes(self, link: str, packet: bytes, vnet: bytes | None = None) -> bytes:
        """Send a packet that must leave on the other link; return it, whole and with right checksums."""
        self.harness.drops()
        sent = self.send(link, packet, vnet)
        assert [out.link for out in sent] == [OUTSIDE if link == INSIDE else INSIDE], (sent, self.harness.drops())
        if vnet is None:
            assert problems(sent[0].packet) == []
        return sent[0].packet

    def dropped(self, link: str, packet: bytes) -> str:
        self.harness.drops()
        assert self.send(link, packet) == []
        [(reason, count)] = self.harness.drops().items()
        assert count == 1
        return reason

    def second(self, seconds: float = 1) -> None:
        self.harness.advance(seconds)
        self.gateways.every_second()
        self.vpn.every_second(self.harness.now_ns)


def gre(source: str, destination: str, call_id: int, number: int = 1, payload: bytes = b"ppp", **ip) -> bytes:
    header = struct.pack(">BBHHHI", 0x30, 1, 0x880B, len(payload), call_id, number)
    return ipv4(source, destination, GRE, header + payload, **ip)


def esp(source: str, destination: str, spi: int, number: int = 1, payload: bytes = b"secret", **ip) -> bytes:
    return ipv4(source, destination, ESP, struct.pack(">II", spi, number) + payload, **ip)


def isakmp(source: str, destination: str, initiator: bytes, responder: bytes = bytes(8), exchange: int = 2) -> bytes:
    header = initiator.ljust(8, b".") + responder + struct.pack(">BBBBII", 1, 0x10, exchange, 0, 0, 28)
    return udp((source, 500), (destination, 500), header)


def ends(packet: bytes) -> tuple[str, str]:
    decoded = decode(packet)
    return dotted(decoded.source), dotted(decoded.destination)


def id_of(packet: bytes) -> int:
    """Return the Call ID of GRE, or the SPI of ESP."""
    body = decode(packet).body
    return int.from_bytes(body[6:8] if decode(packet).protocol == GRE else body[:4], "big")


class Control:
    """A PPTP control connection through a Gateway, segment by segment; client is inside unless server is."""

    def __init__(self, gateway: Gateway, inside: str, remote: str = REMOTE, port: int = 4000, *, serves: bool = False):
        self.gateway, self.serves = gateway, serves
        self.host, self.remote = (inside, 1723 if serves else port), (remote, port if serves else 1723)
        self.next = {INSIDE: 1000, OUTSIDE: 7000}
        first, second = (OUTSIDE, INSIDE) if serves else (INSIDE, OUTSIDE)
        opened = self.segment(first, b"", "S")
        self.external = (GATEWAY_OUT, 1723) if serves else (GATEWAY_OUT, decode(opened).source_port)
        self.segment(second, b"", "SA")
        self.segment(first, b"", "A")

    def segment(self, link: str, payload: bytes, flags: str = "PA", back: int = 0, **ip) -> bytes:
        """Send a segment that begins `back` octets before what is new; return it as it leaves."""
        other = OUTSIDE if link == INSIDE else INSIDE
        source, destination = (self.host, self.remote) if link == INSIDE else (self.remote, None)
        if destination is None:
            destination = (GATEWAY_OUT, 1723) if self.serves else self.external
        sequence = self.next[link] - back
        self.next[link] = sequence + max(back, len(payload)) + ("S" in flags or "F" in flags)
        packet = tcp(
            source, destination, flags, seq=sequence, ack=self.next[other] if "A" in flags else 0, payload=payload, **ip
        )
        return self.gateway.passes(link, packet)

    def say(self, link: str, kind: Type, *numbers: int, result: int = 1) -> tuple[int, ...]:
        """Send a message with these Call IDs; return those that arrive."""
        fields = struct.pack(f"!{len(numbers)}H", *numbers)
        if kind in (Type.OUTGOING_CALL_REPLY, Type.INCOMING_CALL_REPLY):
            fields += bytes((result,))
        arrived = self.segment(link, message(kind, fields))
        return struct.unpack_from(f"!{len(numbers)}H", arrived, 40 + 12)

    def call(self, local_id: int, remote_id: int) -> int:
        """Make a call from inside; return its external Call ID."""
        (external_id,) = self.say(INSIDE, Type.OUTGOING_CALL_REQUEST, local_id)
        assert self.say(OUTSIDE, Type.OUTGOING_CALL_REPLY, remote_id, external_id) == (remote_id, local_id)
        return external_id


def exchange(gateway: Gateway, inside: str, cookie: bytes, remote: str = REMOTE) -> None:
    """Let an inside host and a remote agree on cookies."""
    out = gateway.passes(INSIDE, isakmp(inside, remote, cookie))
    assert ends(out) == (GATEWAY_OUT, remote) and decode(out).source_port == 500
    back = gateway.passes(OUTSIDE, isakmp(remote, GATEWAY_OUT, cookie, RESPONDER))
    assert ends(back) == (remote, inside) and decode(back).destination_port == 500


def started(gateway: Gateway, inside: str, ospi: int, ispi: int, remote: str = REMOTE) -> None:
    """Let an inside host's SA with a remote begin and be answered."""
    assert ends(gateway.passes(INSIDE, esp(inside, remote, ospi))) == (GATEWAY_OUT, remote)
    assert ends(gateway.passes(OUTSIDE, esp(remote, GATEWAY_OUT, ispi))) == (remote, inside)


def natt(gateway: Gateway, inside: str = HOST, port: int = NATT_PORT, remote: str = REMOTE) -> bytes:
    """Send ESP in UDP from an inside host; return it as it leaves."""
    return gateway.passes(INSIDE, udp((inside, port), (remote, NATT_PORT), bytes((0, 0, 16, 0)) + bytes(40)))
