"""The same probe packets through the kernel with a foreign rule set, and through the path with what was made of it.

Both gateways have eth0 inside (10.0.0.1/8) and eth1 outside (200.200.200.200/24). The path is fastmasq's own on memory
links, with the configuration and rules read from the files that `fastmasq import` writes; only the daemon's loop is
missing. The kernel's gateway is a namespace; probes come in by wires on both sides, to hosts that are not there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fastmasq.config.load import load
from fastmasq.daemon.policy import declare
from fastmasq.migrate.files import RULES_FILE, Carried, script, toml
from tests.support.namespaces import Gateway
from tests.support.packets import ICMP, TCP, UDP, decode, dotted, ping, tcp, udp
from tests.support.policy_gateway import PolicyGateway

IN, OUT = "inside", "outside"
EXTERNAL = "200.200.200.200"
FAR_MAC = bytes.fromhex("0200000000ee")
_LOCAL = """
table ip probe {
    set let_in { typeof ip id; size 65535; flags dynamic; }
    set ports { typeof ip id . th dport; size 65535; flags dynamic; }
    chain input { type filter hook input priority 1000;
        add @let_in { ip id }
        meta l4proto { tcp, udp } add @ports { ip id . th dport }
    }
}
"""
_NETLINK_NETFILTER = 12
_ETH_P_IP, _ETH_P_ALL, _ARP = 0x0800, 0x0003, 0x0806
_NFNL_CONNTRACK_DELETE = 1 << 8 | 2  # without a tuple: all of them (linux/netfilter/nfnetlink_conntrack.h)


class Probe(NamedTuple):
    """The first packet of a flow: the side it comes in by, and its ends; of a ping `sport` is the identifier."""

    side: str
    protocol: int
    source: str
    sport: int
    destination: str
    dport: int

    def packet(self, number: int) -> bytes:
        here, there = (self.source, self.sport), (self.destination, self.dport)
        if self.protocol == TCP:
            return tcp(here, there, "S", seq=1000, identification=number)
        if self.protocol == UDP:
            return udp(here, there, b"question", identification=number)
        return ping(self.source, self.destination, self.sport, identification=number)


class Fate(NamedTuple):
    """What became of a packet.

    kind: "passed", "proxied" to another local port, the "host"'s own, "refused" with an answer, or "stopped". Of what
    passed: the side it left by, its protocol and ends; a port that masquerading chose is 0.
    """

    kind: str
    side: str = ""
    ends: tuple[str, int, str, int] = ("", 0, "", 0)


def answer_of(packet: bytes, number: int) -> bytes:
    """Return what the receiver of a first packet answers."""
    seen = decode(packet)
    here, there = (seen.destination, seen.destination_port), (seen.source, seen.source_port)
    if seen.protocol == TCP:
        return tcp(here, there, "SA", seq=5000, ack=1001, identification=number)
    if seen.protocol == UDP:
        return udp(here, there, b"answer", identification=number)
    return ping(dotted(seen.destination), dotted(seen.source), echo_identifier(packet), kind=0, identification=number)


def echo_identifier(packet: bytes) -> int:
    return int.from_bytes(packet[24:26], "big")


def ends_of(packet: bytes, probe: Probe, *, is_answer: bool) -> tuple[str, int, str, int]:
    """Return the ends of a packet that passed, without the port that masquerading has chosen."""
    seen = decode(packet)
    if seen.protocol == ICMP:
        return dotted(seen.source), 0, dotted(seen.destination), 0
    ends = [dotted(seen.source), seen.source_port, dotted(seen.destination), seen.destination_port]
    if not is_answer and probe.side == IN and ends[0] != probe.source:
        ends[1] = 0
    return tuple(ends)


# -- the kernel --------------------------------------------------------------------------------------------------------


class KernelGateway:
    """A gateway whose kernel forwards by the rules that were loaded last."""

    def __init__(self) -> None:
        self._network = Gateway()
        self._host = self._network.host
        self._host.sh(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratemask=0 net.ipv4.conf.all.rp_filter=0"
            " net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0 net.ipv4.conf.all.send_redirects=0"
        )
        far = FAR_MAC.hex(":")
        for host in ("10.0.0.5", "10.0.1.7"):
            self._host.ip(f"neigh replace {host} lladdr {far} dev eth0 nud permanent")
        self._host.ip(f"neigh replace 200.200.200.1 lladdr {far} dev eth1 nud permanent")
        self._wires = {IN: self._wire("eth0", self._network.inside), OUT: self._wire("eth1", self._network.outside)}

    def close(self) -> None:
        for wire, _ in self._wires.values():
            wire.close()
        self._network.remove()

    def _wire(self, device: str, peer) -> tuple[socket.socket, bytes]:
        mac = self._host.sh(f"cat /sys/class/net/{device}/address").strip().replace(":", "")
        with peer.entered():
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            wire.bind(("eth0", _ETH_P_ALL))
        wire.setblocking(False)
        return wire, bytes.fromhex(mac)

    def load(self, program: str, path: Path) -> None:
        """Put the rules of a file in force, in place of all others, and forget all flows."""
        with self._host.entered(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as flows:
            body = struct.pack("=BBH", socket.AF_INET, 0, 0)
            flows.send(struct.pack("=IHHII", 16 + len(body), _NFNL_CONNTRACK_DELETE, 5, 1, 0) + body)
            flows.recv(4096)
        probe = path.with_name("probe.nft")
        probe.write_text(_LOCAL)
        load = f"nft -f {path}" if program == "nft" else f"iptables-nft-restore {path}"
        self._host.sh(f"nft flush ruleset && {load} && nft -f {probe}")

    def fates(self, probes: Sequence[Probe]) -> list[tuple[Fate, Fate | None]]:
        """Return what becomes of each probe, and of the answer to each that passed."""
        sent = {number: probe.packet(number) for number, probe in enumerate(probes, 1)}
        seen = self._exchange({number: (probes[number - 1].side, packet) for number, packet in sent.items()})
        passed = {number: packet for number, (kind, _, packet) in seen.items() if kind == "passed"}
        answers = {number + 1000: answer_of(packet, number + 1000) for number, packet in passed.items()}
        answered = self._exchange({number: (seen[number - 1000][1], packet) for number, packet in answers.items()})
        local = self._local()
        result = []
        for number, probe in enumerate(probes, 1):
            fate, answer = self._fate(probe, number, seen.get(number), local), None
            if fate.kind == "passed":
                answer = self._fate(probe, number + 1000, answered.get(number + 1000), local)
            result.append((fate, answer))
        return result

    def _fate(self, probe: Probe, number: int, seen: tuple[str, str, bytes] | None, local: dict[int, int]) -> Fate:
        if number in local and probe.destination == EXTERNAL:
            return Fate("host")
        if number in local:
            return Fate("proxied")
        if seen is None:
            return Fate("stopped")
        kind, side, packet = seen
        return Fate(kind, side, ends_of(packet, probe, is_answer=number > 1000)) if kind == "passed" else Fate(kind)

    def _local(self) -> dict[int, int]:
        """Return what the host's rules have let in, with the port, or 0 of ICMP."""
        listed = json.loads(self._host.sh("nft -j list table ip probe"))["nftables"]
        sets = {each["set"]["name"]: each["set"].get("elem", []) for each in listed if "set" in each}
        pairs = [element["concat"] for element in sets["ports"]]
        return dict.fromkeys(map(int, sets["let_in"]), 0) | {int(number): int(port) for number, port in pairs}

    def _exchange(self, packets: dict[int, tuple[str, bytes]]) -> dict[int, tuple[str, str, bytes]]:
        """Send packets; return by number what came of them: "passed" with side and packet, or "refused"."""
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})  # what one processor puts into a veth's queue comes out in order
        try:
            for side, packet in packets.values():
                wire, mac = self._wires[side]
                wire.send(mac + FAR_MAC + struct.pack(">H", _ETH_P_IP) + packet)
            for side, (wire, _) in self._wires.items():
                own, peer = ("10.0.0.1", "10.0.0.2") if side == IN else (EXTERNAL, "200.200.200.1")
                wire.send(b"\xff" * 6 + FAR_MAC + struct.pack(">H", _ARP) + _who_has(own, peer))
        finally:
            os.sched_setaffinity(0, allowed)
        found: dict[int, tuple[str, str, bytes]] = {}
        waiting, until = set(self._wires), time.monotonic() + 5
        while waiting:
            assert time.monotonic() < until, "the gateway does not answer"
            for side in list(waiting):
                for frame in self._received(side):
                    if frame[12:14] == struct.pack(">H", _ARP):
                        if frame[20:22] == b"\0\2":
                            waiting.discard(side)
                    elif frame[12:14] == struct.pack(">H", _ETH_P_IP):
                        self._note(found, packets, side, frame[14:])
        for side in self._wires:
            for frame in self._received(side):
                if frame[12:14] == struct.pack(">H", _ETH_P_IP):
                    self._note(found, packets, side, frame[14:])
        return found

    def _received(self, side: str) -> Iterator[bytes]:
        """Yield the frames that the gateway has sent."""
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self._wires[side][0].recvfrom(4096)
                if address[2] != socket.PACKET_OUTGOING:
                    yield frame

    @staticmethod
    def _note(found: dict, packets: dict[int, tuple[str, bytes]], side: str, packet: bytes) -> None:
        number = int.from_bytes(packet[4:6], "big")
        if packet[9] == ICMP and packet[20] == 3:
            number = int.from_bytes(packet[28 + 4 : 28 + 6], "big")
            if number in packets:
                found.setdefault(number, ("refused", side, packet))
        elif number in packets and packets[number][0] != side:
            found[number] = ("passed", side, packet)


def _who_has(own: str, peer: str) -> bytes:
    """Return an ARP request for an address of the gateway."""
    header = struct.pack(">HHBBH", 1, _ETH_P_IP, 6, 4, 1)
    return header + FAR_MAC + socket.inet_aton(peer) + bytes(6) + socket.inet_aton(own)


# -- the path ----------------------------------------------------------------------------------------------------------


class ImportedGateway:
    """A gateway on memory links whose policy is read from the files that were written."""

    def __init__(self, carried: Carried, folder: Path) -> None:
        rules = folder / "fastmasq.rules"
        rules.write_text("\n".join(script(carried)) + "\n")
        configuration = folder / "fastmasq.toml"
        ports = (
            "" if carried.own_ports else '\n[masquerade]\nports = "20000-29999"\n'
        )  # those of the probes; the rest is the host's
        configuration.write_text(toml(carried).replace(RULES_FILE, str(rules)) + ports)
        settings = load(configuration).settings
        self._gateway = PolicyGateway(declared=declare(settings))
        self._delivered = 0

    def close(self) -> None:
        self._gateway.close()

    def fates(self, probes: Sequence[Probe]) -> list[tuple[Fate, Fate | None]]:
        """Return what becomes of each probe, and of the answer to each that passed."""
        result = []
        for number, probe in enumerate(probes, 1):
            fate, packet = self._send(probe, probe.side, probe.packet(number), is_answer=False)
            answer = None
            if fate.kind == "passed":
                answer, _ = self._send(probe, fate.side, answer_of(packet, number + 1000), is_answer=True)
            result.append((fate, answer))
        return result

    def _send(self, probe: Probe, side: str, packet: bytes, *, is_answer: bool) -> tuple[Fate, bytes]:
        for out in self._gateway.harness.send(side, packet):
            if out.link == side:
                return Fate("refused"), out.packet
            if out.link == "programs":
                return Fate("proxied"), out.packet
            return Fate("passed", out.link, ends_of(out.packet, probe, is_answer=is_answer)), out.packet
        delivered = self._gateway.harness.forwarder.verdicts()["deliver"]
        was_delivered, self._delivered = delivered > self._delivered, delivered
        return Fate("host" if was_delivered else "stopped"), b""
