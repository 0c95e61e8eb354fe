"""Port forwards and redirects with real programs: rules PF-1 to PF-10, H-36 to H-39, sections 5.4 to 5.6."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from fastmasq.errors import FastmasqError, KernelError
from fastmasq.lab import services
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.wire.numbers import GRE
from tests.support.lab_network import (
    ECHO_PORT,
    GATEWAY_INSIDE,
    INSIDE_ADDRESS,
    ROUTER_ADDRESS,
    Network,
    eventually,
    icmp_error,
    round_trip,
    send_and_compare,
)

SECOND_INSIDE = "10.0.0.3"
NEW_ADDRESS = "200.200.200.77"
PUBLIC = (EXTERNAL_ADDRESS, 8080)
FORWARD = f"""
[[forward]]
protocol = "tcp"
listen = "eth1:8080"
to = "10.0.0.2:{ECHO_PORT}"

[[forward]]
protocol = "udp"
listen = "eth1:8080"
to = "10.0.0.2:{ECHO_PORT}"
"""


@pytest.fixture
def running(net: Network) -> Network:
    """Return the network with fastmasq and its forwards, and echo servers on the first inside host."""
    net.start(FORWARD)
    net.echo_udp("inside")
    net.echo_tcp("inside")
    return net


def forward(net: Network, *arguments: str) -> str:
    return net.fastmasq.run_command("forward", *arguments)


def legacy(net: Network, program: str, *words: str) -> str:
    """Run one of the programs of 1999, as its console script would, and return what it prints."""
    code = f"from fastmasq.legacy.forwarding import main_{program} as main; main()"
    environment = {**os.environ, "FASTMASQ_SOCKET": str(net.fastmasq.socket)}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def connects(net: Network, remote: tuple[str, int], host: str = "server") -> bool:
    try:
        near = net.connect(host, remote, timeout=1)
    except OSError:
        return False
    return round_trip(near, None, b"hello")


def test_pf1_pf5_curl_from_outside_and_by_hairpin(net: Network, tmp_path: Path) -> None:
    net.start('[[forward]]\nprotocol = "tcp"\nlisten = "eth1:8080"\nto = "10.0.0.2:80"')
    payload = services.make_payload(tmp_path / "file", 1 << 20)
    services.start_http(net.lab, tmp_path, "inside")
    for host in ("server", "inside2", "inside"):
        target = tmp_path / f"from-{host}"
        url = f"http://{EXTERNAL_ADDRESS}:8080/file"
        net.run(host, "curl", "-sS", "--max-time", "20", "-o", str(target), url)
        assert target.read_bytes() == payload.path.read_bytes()


def test_pf2_the_server_sees_the_client_and_bulk_goes_both_ways(running: Network) -> None:
    net = running
    listener = net.listen("inside", port=9000)
    forward(net, "add", "tcp", "eth1:9001", "10.0.0.2:9000")
    near = net.connect("server", (EXTERNAL_ADDRESS, 9001))
    far, source = listener.accept()
    net.keep(far)
    far.settimeout(10)
    assert source == near.getsockname()
    send_and_compare(near, far, 1 << 20)
    send_and_compare(far, near, 1 << 20)


def test_pf5_hairpin_shows_the_external_address(running: Network) -> None:
    listener = running.listen("inside", port=9000)
    forward(running, "add", "tcp", "eth1:9001", "10.0.0.2:9000")
    running.connect("inside2", (EXTERNAL_ADDRESS, 9001))
    assert listener.accept()[1][0] == EXTERNAL_ADDRESS


def test_pf3_pf4_the_guard_keeps_the_host_off_the_port(running: Network) -> None:
    """A program of the gateway on the very port neither answers nor resets what is forwarded."""
    running.listen("gateway", port=8080)
    assert connects(running, PUBLIC)
    assert round_trip(running.udp("server"), PUBLIC, b"datagram")


@pytest.mark.parametrize("guard", ["tc", "nftables"])
def test_pf4_the_guard_keeps_the_host_off_the_port_of_that_address_only(net: Network, guard: str) -> None:
    net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
    limits = f'[masquerade]\nports = "20000-30000"\n[takeover]\nguard = "{guard}"\n'
    net.start(limits + FORWARD.replace("eth1:8080", f"{NEW_ADDRESS}:8080"))
    net.echo_tcp("inside")
    net.echo_tcp("gateway", port=8080)
    assert connects(net, (NEW_ADDRESS, 8080))
    assert net.sessions()[0]["inside"] == f"{INSIDE_ADDRESS}:{ECHO_PORT}"
    assert connects(net, PUBLIC), "the gateway's own program on the other address"
    with pytest.raises(ConnectionRefusedError):
        net.connect("server", (NEW_ADDRESS, 25000), timeout=2)
    with pytest.raises(TimeoutError):
        net.connect("server", (EXTERNAL_ADDRESS, 25000), timeout=1)


def test_pf9_sessions_of_a_deleted_forward_of_another_address_live_on(net: Network) -> None:
    """The guard keeps the host off their port until the last has ended."""
    net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
    net.start('[masquerade]\nports = "20000-30000"\n[masquerade.timeouts]\ntcp_transitory = "1s"\n')
    net.echo_tcp("inside")
    forward(net, "add", "tcp", f"{NEW_ADDRESS}:8080", f"{INSIDE_ADDRESS}:{ECHO_PORT}")
    near = net.connect("server", (NEW_ADDRESS, 8080))
    assert round_trip(near, None, b"before")
    forward(net, "delete", "tcp", f"{NEW_ADDRESS}:8080")
    for number in range(20):
        assert round_trip(near, None, b"after %d" % number)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    near.close()  # by a reset
    eventually(lambda: net.sessions() == [])

    def refused() -> bool:
        try:
            net.connect("server", (NEW_ADDRESS, 8080), timeout=0.5)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            pass
        return False

    eventually(refused, what="a refusal by the host")


def test_pf6_a_closed_port_is_reported_to_the_client(running: Network) -> None:
    forward(running, "add", "udp", "eth1:9999", "10.0.0.2:9999")
    asking = running.asking("server", (EXTERNAL_ADDRESS, 9999))
    asking.send(b"anybody?")
    error = icmp_error(asking)
    assert error is not None
    assert (error.type, error.code, error.offender) == (3, 3, EXTERNAL_ADDRESS)


def test_pf6_a_dead_server_is_reported_to_the_client(running: Network) -> None:
    forward(running, "add", "udp", "eth1:9999", "10.0.0.77:9999")
    asking = running.asking("server", (EXTERNAL_ADDRESS, 9999))
    asking.send(b"anybody?")
    error = icmp_error(asking)
    assert error is not None
    assert (error.type, error.code) == (3, 1)


@pytest.mark.parametrize("client", ["server", "inside2"])
def test_pf7_a_datagram_larger_than_the_mtu_comes_and_goes(running: Network, client: str) -> None:
    heard = running.sniff("inside", "eth0")
    payload = os.urandom(5000)
    assert round_trip(running.udp(client), PUBLIC, payload)
    pieces = heard.of(sent=False, protocol=socket.IPPROTO_UDP, destination=INSIDE_ADDRESS)
    assert len(pieces) == 4 and max(piece.length for piece in pieces) <= 1500


def test_pf8_two_targets_share_by_preference(running: Network) -> None:
    net = running
    net.greet_tcp(b"first", "inside", 9000)
    net.greet_tcp(b"second", "inside2", 9000)
    targets = (f"{INSIDE_ADDRESS}:9000", f"{SECOND_INSIDE}:9000")
    forward(net, "add", "tcp", "eth1:9001", *targets, "--preference", "2", "--preference", "1")
    answers = Counter(net.connect("server", (EXTERNAL_ADDRESS, 9001)).recv(10) for _ in range(12))
    assert answers == {b"first": 8, b"second": 4}


def test_pf9_changes_under_traffic_lose_nothing(running: Network) -> None:
    net = running
    near = net.connect("server", PUBLIC)
    over = threading.Event()
    failures: list[int] = []

    def talk() -> None:
        number = 0
        while not over.is_set():
            number += 1
            if not round_trip(near, None, b"%d." % number):
                failures.append(number)
                return

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        for port in range(3):
            forward(net, "add", "tcp", f"eth1:{7000 + port}", "10.0.0.2:7")
        forward(net, "delete", "tcp", "eth1:8080")
        assert not connects(net, PUBLIC)
        forward(net, "clear")
        forward(net, "add", "tcp", "eth1:8080", "10.0.0.2:7")
        assert connects(net, PUBLIC)
    finally:
        over.set()
        thread.join()
    assert failures == []


def test_h37_a_forward_of_a_link_follows_its_address(running: Network) -> None:
    net = running
    assert connects(net, PUBLIC)
    net.ip("gateway", "address flush dev eth1")
    net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
    net.ip("gateway", f"route add default via {ROUTER_ADDRESS}")
    eventually(lambda: connects(net, (NEW_ADDRESS, 8080)), what="a connection to the new address")
    [tcp, udp] = json.loads(forward(net, "list", "--json"))
    assert (tcp["address"], tcp["state"], udp["address"]) == (NEW_ADDRESS, "in force", NEW_ADDRESS)


def test_pf10_the_command_line_refuses_a_port_twice(running: Network) -> None:
    with pytest.raises(Exception, match="forwarded already by tcp eth1:8080"):
        forward(running, "add", "tcp", "eth1:8080", "10.0.0.3:80")
    assert "in force" in forward(running, "list")


def test_5_4_and_5_5_the_commands_of_1999(running: Network) -> None:
    net = running
    legacy(net, "ipportfw", "-C")
    assert not connects(net, PUBLIC)
    legacy(net, "ipportfw", "-A", f"-t{EXTERNAL_ADDRESS}/8080", "-R", f"{INSIDE_ADDRESS}/{ECHO_PORT}")
    assert connects(net, PUBLIC)
    assert f"TCP  {EXTERNAL_ADDRESS}/8080 > 10.0.0.2/7\n\n" in legacy(net, "ipportfw", "-L")
    legacy(net, "ipmasqadm", "portfw", "-f")
    words = f"portfw -a -P tcp -L {EXTERNAL_ADDRESS} 8080 -R {INSIDE_ADDRESS} {ECHO_PORT}"
    legacy(net, "ipmasqadm", *words.split())
    assert connects(net, PUBLIC)
    assert legacy(net, "ipmasqadm", "portfw", "-l", "-n").splitlines()[1].split() == [
        *("TCP", EXTERNAL_ADDRESS, INSIDE_ADDRESS, "8080", "7", "9", "10")
    ]


def test_5_6_gre_is_redirected_and_answered(running: Network) -> None:
    net = running
    legacy(net, "ipfwd", "--masq", INSIDE_ADDRESS, str(GRE), "&")
    inside, server = net.raw("inside", GRE), net.raw("server", GRE)
    question, answer = struct.pack(">HH", 0, 0x0800) + b"question", struct.pack(">HH", 0, 0x0800) + b"answer"
    server.sendto(question, (EXTERNAL_ADDRESS, 0))
    packet, source = inside.recvfrom(2048)
    assert (packet[20:], source[0]) == (question, SERVER_ADDRESS)
    inside.sendto(answer, (SERVER_ADDRESS, 0))
    packet, source = server.recvfrom(2048)
    assert (packet[20:], source[0]) == (answer, EXTERNAL_ADDRESS)
    [session] = [session for session in net.sessions() if session["protocol"] == "gre"]
    assert (session["inside"], session["external"], session["remote"]) == (
        INSIDE_ADDRESS,
        EXTERNAL_ADDRESS,
        SERVER_ADDRESS,
    )
    assert "gre" in net.fastmasq.run_command("sessions")
    assert "10.0.0.2" in net.fastmasq.run_command("redirect", "list")


def test_the_port_of_a_running_program_is_taken_only_by_force_and_given_back(net: Network) -> None:
    net.start()
    net.echo_tcp("inside")
    net.greet_tcp(b"the gateway's own", "gateway", 2222)

    def asked() -> bytes:
        return net.connect("server", (EXTERNAL_ADDRESS, 2222)).recv(100)

    add = ("add", "tcp", "eth1:2222", f"{INSIDE_ADDRESS}:{ECHO_PORT}")
    with pytest.raises(FastmasqError, match=rf"\(process {os.getpid()}\) waits at tcp \S+:2222"):
        forward(net, *add)
    assert asked() == b"the gateway's own"
    forward(net, *add, "--force")
    near = net.connect("server", (EXTERNAL_ADDRESS, 2222))
    assert round_trip(near, None, b"forwarded")
    forward(net, "clear")
    assert asked() == b"the gateway's own", "at once, though the session lived"
    with pytest.raises(ConnectionResetError):
        near.send(b"and the session is over for both ends")
        near.recv(1)
    assert net.sessions() == []


def test_a_configuration_that_takes_the_port_of_a_running_program_is_refused(net: Network) -> None:
    net.listen("gateway", port=8080)
    with pytest.raises(KernelError, match=rf"tcp eth1:8080: \S+ \(process {os.getpid()}\) waits at tcp"):
        net.start(FORWARD)
    net.start(FORWARD.replace(f'"10.0.0.2:{ECHO_PORT}"', f'"10.0.0.2:{ECHO_PORT}"\nsteal = true'))
    net.echo_tcp("inside")
    assert connects(net, PUBLIC)


def test_the_host_keeps_its_own_ports(running: Network) -> None:
    """What is not forwarded is the gateway's as before."""
    net = running
    net.echo_tcp("gateway", port=8022)
    eventually(lambda: connects(net, (EXTERNAL_ADDRESS, 8022)), what="a connection to the gateway itself")
    assert connects(net, (GATEWAY_INSIDE, 8022), "inside")
