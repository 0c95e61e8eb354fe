"""Ports that inside hosts ask for, with real clients: natpmpc, and PCP by scapy (RFC 6886, 6887, RFC 6888 REQ-9)."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import (
    ECHO_PORT,
    GATEWAY_INSIDE,
    INSIDE_ADDRESS,
    Network,
    eventually,
    round_trip,
    talks,
)
from tests.support.pcp_client import (
    CANNOT_PROVIDE_EXTERNAL,
    NOT_AUTHORIZED,
    PORT,
    PREFER_FAILURE,
    SUCCESS,
    Answer,
    Client,
    filtered,
)

PCP = f'[port_mapping]\npcp = true\nallow = ["{INSIDE_ADDRESS}/31:{ECHO_PORT},1024-65535"]\n'
NEW_ADDRESS = "200.200.200.77"
ALL_HOSTS, CLIENT_PORT = "224.0.0.1", 5350
ASK_ADDRESS = b"\0\0"  # NAT-PMP
PUBLIC = (EXTERNAL_ADDRESS, 8080)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder on a tmpfs, which /run is not everywhere, for the network's forwarder."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        yield Path(made)


def natpmpc(net: Network, *words: str) -> str:
    return net.run("inside", "natpmpc", "-g", GATEWAY_INSIDE, *words)


def pcp(net: Network, host: str = "inside", address: str = INSIDE_ADDRESS) -> Client:
    return Client(net.udp(host, address), address, GATEWAY_INSIDE)


def is_answered(net: Network, host: str, gateway: str, seconds: float = 10) -> bool:
    asking = net.asking(host, (gateway, PORT))
    asking.settimeout(seconds)
    try:
        asking.send(ASK_ADDRESS)
        return len(asking.recv(64)) == 12
    except OSError:
        return False


def test_rfc6886_3_3_natpmpc_gets_and_gives_back_a_port(net: Network) -> None:
    net.start(PCP)
    net.echo_tcp("inside")
    net.echo_udp("inside")
    assert f"Public IP address : {EXTERNAL_ADDRESS}" in natpmpc(net)
    for protocol in ("tcp", "udp"):
        said = natpmpc(net, "-a", "8080", str(ECHO_PORT), protocol, "3600")
        assert f"Mapped public port 8080 protocol {protocol.upper()} to local port {ECHO_PORT} liftime 3600" in said
    assert talks(net, "server", PUBLIC)
    assert talks(net, "inside2", PUBLIC)
    assert round_trip(net.udp("server"), PUBLIC, b"datagram")
    listed = net.fastmasq.run_command("forward", "list")
    assert f"nat-pmp by {INSIDE_ADDRESS}, 59m" in listed
    assert net.status()["port_mapping"]["leases"] == 2
    natpmpc(net, "-a", "0", str(ECHO_PORT), "tcp", "0")
    assert not talks(net, "server", PUBLIC, 0.2)
    assert net.drops()["no_session"] > 0
    assert net.status()["port_mapping"]["granted"] == {"granted": 2, "deleted": 1}


def test_rfc6888_req9_a_pcp_client_gets_a_port_for_itself_alone_and_for_a_time(net: Network) -> None:
    net.start(PCP)
    net.echo_tcp("inside")
    client, other = pcp(net), pcp(net, "inside2", "10.0.0.3")
    natpmpc(net, "-a", "6000", "6000", "tcp", "1")
    answer, mapping = client.map(ECHO_PORT, outside_port=8080)
    assert (answer.result, answer.lifetime, mapping.outside_port) == (SUCCESS, 3600, 8080)
    assert mapping.outside_address == f"::ffff:{EXTERNAL_ADDRESS}"
    assert talks(net, "server", PUBLIC)
    assert other.map(ECHO_PORT, outside_port=8080, options=PREFER_FAILURE)[0].result == CANNOT_PROVIDE_EXTERNAL
    assert client.map(ECHO_PORT, nonce=b"another one!")[0].result == NOT_AUTHORIZED
    assert client.map(ECHO_PORT, lifetime=0)[0].result == SUCCESS
    assert not talks(net, "server", PUBLIC, 0.2)
    eventually(lambda: net.fastmasq.ask("forwards") == [], what="the end of a second")


def test_rfc6887_13_a_filter_keeps_others_out_until_it_is_taken_away(net: Network) -> None:
    net.start(PCP)
    net.echo_udp("inside")
    client = pcp(net)
    one, other = (net.udp("server", port=port) for port in (5000, 5001))
    client.map(ECHO_PORT, protocol=17, outside_port=8080, options=filtered(SERVER_ADDRESS, 32, 5000))
    assert net.fastmasq.run_command("forward", "list").rstrip().endswith(f", for {SERVER_ADDRESS}/32:5000")
    other.sendto(b"who is there?", PUBLIC)
    assert round_trip(one, PUBLIC, b"datagram")
    eventually(lambda: net.drops().get("filtered") == 1, what="the drop of the other's")
    client.map(ECHO_PORT, protocol=17, options=filtered("199.0.0.0", 8))
    assert round_trip(other, PUBLIC, b"datagram")


def test_rfc6887_12_a_peer_keeps_a_session_that_nothing_else_keeps(net: Network) -> None:
    net.start(f'{PCP}[masquerade.timeouts]\nudp = "1s"\n')
    client, inside, server = pcp(net), net.udp("inside", INSIDE_ADDRESS, 6000), net.udp("server", port=5000)
    answer, mapping = client.peer(6000, (SERVER_ADDRESS, 5000), protocol=17, outside_port=7000)
    assert (answer.result, answer.lifetime, mapping.outside_port) == (SUCCESS, 3600, 7000)
    net.udp("inside", INSIDE_ADDRESS, 6001).sendto(b"hello", (SERVER_ADDRESS, 5000))
    assert server.recv(64) == b"hello"
    eventually(lambda: [each["external"] for each in net.sessions(protocol="udp")] == [f"{EXTERNAL_ADDRESS}:7000"])
    server.sendto(b"news", (EXTERNAL_ADDRESS, 7000))
    assert inside.recv(64) == b"news"
    assert client.peer(6000, (SERVER_ADDRESS, 5000), 0, protocol=17)[0].result == SUCCESS
    eventually(lambda: net.sessions(protocol="udp") == [])


def test_rfc6887_18_nobody_outside_reaches_it_and_nobody_inside_while_it_is_off(net: Network) -> None:
    net.start()
    assert not is_answered(net, "inside", GATEWAY_INSIDE)
    net.fastmasq.remove()
    net.start(PCP)
    net.ip("router", f"route add 10.0.0.0/8 via {EXTERNAL_ADDRESS}")
    assert is_answered(net, "inside", GATEWAY_INSIDE)
    asked = net.sniff("gateway", "eth1")
    for gateway in (GATEWAY_INSIDE, EXTERNAL_ADDRESS):
        assert not is_answered(net, "router", gateway, 0.1)
        assert asked.of(destination=gateway, destination_port=PORT, sent=False)
    assert not [each for each in asked.of(sent=True) if each.source_port == PORT]


def test_rfc6887_8_leases_and_their_epoch_outlive_a_kill_and_follow_the_address(net: Network, folder: Path) -> None:
    net.start(f'{PCP}[state]\ndirectory = "{folder}"\n')
    net.echo_tcp("inside")
    client = pcp(net)
    client.map(ECHO_PORT, outside_port=8080)
    inside, server = net.udp("inside", INSIDE_ADDRESS, 6000), net.udp("server", port=5000)
    client.peer(6000, (SERVER_ADDRESS, 5000), protocol=17, outside_port=7000)
    eventually(lambda: net.fastmasq.ask("status")["port_mapping"]["epoch_s"] >= 1)
    net.fastmasq.process.kill()
    net.fastmasq.process.wait()
    heard = net.udp("inside", port=CLIENT_PORT)
    group = socket.inet_aton(ALL_HOSTS) + socket.inet_aton(INSIDE_ADDRESS)
    heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    net.fastmasq.install()
    assert talks(net, "server", PUBLIC)
    server.sendto(b"news", (EXTERNAL_ADDRESS, 7000))
    assert inside.recv(64) == b"news"
    assert net.status()["port_mapping"]["peers"] == 1
    told = Answer(_announced(heard))
    assert told.epoch >= 1
    assert net.fastmasq.ask("forwards")[0]["owner"] == INSIDE_ADDRESS
    net.ip("gateway", f"address delete {EXTERNAL_ADDRESS}/24 dev eth1")
    net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
    net.ip("gateway", "route add default via 200.200.200.1")
    eventually(lambda: Answer(_announced(heard)).epoch < told.epoch, what="another epoch")
    answer, mapping = client.map(ECHO_PORT)
    assert (answer.result, mapping.outside_port) == (SUCCESS, 8080)
    assert mapping.outside_address == f"::ffff:{NEW_ADDRESS}"
    assert talks(net, "server", (NEW_ADDRESS, 8080))
    net.fastmasq.remove()
    assert list(folder.iterdir()) == []  # all was put back, and that was the end of them


def test_a_flood_from_inside_costs_little_and_nobody_else_an_answer(net: Network) -> None:
    net.start(PCP)
    asking = net.udp("inside")
    said = len(net.fastmasq.errors())
    before, began = _processor_s(net), time.monotonic()
    while time.monotonic() < began + 1:
        for _ in range(50):
            asking.sendto(b"\0\2\0\0" + os.urandom(4) + bytes(4), (GATEWAY_INSIDE, PORT))
    assert _processor_s(net) - before < 0.5
    eventually(lambda: is_answered(net, "inside2", GATEWAY_INSIDE, 0.25), what="an answer to one who asks again")
    assert len(net.fastmasq.errors()) - said < 2000
    assert net.status()["port_mapping"]["leases"] == 0


def _announced(heard: socket.socket) -> bytes:
    """Return the next announcement of PCP."""
    while True:
        octets, sender = heard.recvfrom(64)
        assert sender == (GATEWAY_INSIDE, PORT)
        if octets[0] == 2:
            return octets


def _processor_s(net: Network) -> float:
    """Return the seconds that the main thread, which answers, has had."""
    pid = net.fastmasq.process.pid
    with open(f"/proc/{pid}/task/{pid}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
