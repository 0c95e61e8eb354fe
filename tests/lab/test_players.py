"""RealAudio and VDOLive through fastmasq, by programs that speak as those of the 1990s did."""

from __future__ import annotations

import struct

from fastmasq.lab import scenario
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import Network

RAUDIO, VDOLIVE = 7070, 7000


def of_raudio(ports: list[int]) -> bytes:
    return (
        b"PNA\0\12"
        + b"".join(struct.pack(">HHH", kind, 2, port) for kind, port in zip((1, 7), ports, strict=True))
        + bytes(4)
    )


def of_vdolive(ports: list[int]) -> bytes:
    return struct.pack(">II16x8sI", 0, 6, b"VDO Live", *ports)


def read_raudio(octets: bytes) -> list[int]:
    return [int.from_bytes(octets[place : place + 2], "big") for place in (9, 15)]


def read_vdolive(octets: bytes) -> list[int]:
    return [int.from_bytes(octets[34:36], "big")]


def test_what_players_announce_is_where_their_servers_send(net: Network) -> None:
    net.start(f"[gateways]\nraudio = [{RAUDIO}]\nvdolive = [{VDOLIVE}]\n")
    for port, count, said, heard in ((RAUDIO, 2, of_raudio, read_raudio), (VDOLIVE, 1, of_vdolive, read_vdolive)):
        listener = net.listen("server", SERVER_ADDRESS, port)
        player = net.connect("inside", (SERVER_ADDRESS, port))
        server, _ = listener.accept()
        sinks = [net.udp("inside") for _ in range(count)]
        octets = said([sink.getsockname()[1] for sink in sinks])
        for cut in (octets[:10], octets[10:]):  # through the port of RealAudio
            player.sendall(cut)
        source = net.udp("server", SERVER_ADDRESS)
        arrived = b""
        while len(arrived) < len(octets):
            arrived += server.recv(100)
        for sink, external in zip(sinks, heard(arrived), strict=True):
            for word in (b"once", b"twice"):
                source.sendto(word, (EXTERNAL_ADDRESS, external))
                assert sink.recvfrom(100) == (word, source.getsockname())
    known = net.fastmasq.ask("gateways")
    assert known["opened_total"] == 3 and not known["refused"] and not known["openings"]
    assert net.drops().keys() <= scenario.HONEST_DROPS
