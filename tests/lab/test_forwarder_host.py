"""The gateway host's own traffic works all the time, and what is fastmasq's is never answered by the host."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from fastmasq.control.client import call
from fastmasq.daemon.engine import LOOK_EVERY
from fastmasq.lab import hosts, services
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import (
    ECHO_PORT,
    GATEWAY_INSIDE,
    Network,
    Overheard,
    eventually,
    round_trip,
    talks,
)

PICKED_UP_S = 3.0 * LOOK_EVERY  # how long it may take until a port that a program of the host has bound is the host's
BEFORE_PORT, AFTER_PORT, OUR_PORT, CLOSED_PORT = 8443, 9443, 5000, 20_500
TCP, UDP, ICMP = socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP

TALK = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
t = socket.create_connection(("{server}", 7))
while True:
    s.sendto(b"inside traffic" * 20, ("{server}", 7))
    t.sendall(b"x" * 1000)
    t.recv(65536)
    time.sleep(0.002)
"""


@pytest.fixture
def busy(net: Network) -> Iterator[Network]:
    """Return the network with echo servers, one on the gateway's outside address, fastmasq, and inside traffic."""
    net.echo_udp()
    net.echo_tcp()
    net.echo_tcp("gateway", EXTERNAL_ADDRESS, BEFORE_PORT)
    net.start()
    with net.lab.popen("inside", [sys.executable, "-c", TALK.format(server=SERVER_ADDRESS)]) as talk:
        eventually(lambda: net.status()["sessions"]["tcp"], what="a session of the talker")
        yield net
        assert talk.poll() is None, "the inside traffic broke off"
        talk.kill()


def start_sshd(net: Network, address: str) -> None:
    """Start a real sshd on the gateway; it gets a folder of its own as /run, as sshd insists on an empty /run/sshd."""
    folder = net.lab.directory / "gateway/ssh"
    (folder / "sshd").mkdir(parents=True)
    hosts.checked(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")])
    options = f"-D -e -f /dev/null -h /run/key -o ListenAddress={address} -o PidFile=none"
    script = f"mount --bind {folder} /run && exec /usr/sbin/sshd {options}"
    process = net.lab.popen("gateway", ["sh", "-c", script], stderr=subprocess.DEVNULL)
    assert hosts.wait_for_port(process, 22)


def change_rules(net: Network, *changes: dict[str, object]) -> None:
    with net.on("gateway"):
        call(str(net.fastmasq.socket), "rules.change", changes=list(changes))


def answers_of_the_host(heard: list[Overheard]) -> list[Overheard]:
    """Return resets and ICMP errors that came from the gateway."""
    came = [each for each in heard if not each.sent]
    resets = [each for each in came if each.protocol == TCP and each.tcp_flags & 4]
    return resets + [each for each in came if each.protocol == ICMP and each.icmp_type_and_code[0] == 3]


def test_the_gateways_own_traffic(busy: Network) -> None:
    net = busy
    services.start_dns(net.lab)
    start_sshd(net, GATEWAY_INSIDE)
    net.run("gateway", "ping", "-n", "-c", "20", "-i", "0.01", "-W", "1", SERVER_ADDRESS)
    assert SERVER_ADDRESS in net.run("gateway", "dig", "+short", "+tries=1", f"@{SERVER_ADDRESS}", services.WEB_NAME)
    assert talks(net, "gateway", (SERVER_ADDRESS, ECHO_PORT)), "TCP outwards"
    assert round_trip(net.udp("gateway"), (SERVER_ADDRESS, ECHO_PORT), b"UDP outwards")
    assert "ssh-ed25519" in net.run("inside", "ssh-keyscan", "-T", "2", GATEWAY_INSIDE)
    assert net.answers("inside", GATEWAY_INSIDE)
    assert net.answers("server", EXTERNAL_ADDRESS)
    assert talks(net, "server", (EXTERNAL_ADDRESS, BEFORE_PORT)), "its server on the outside address"
    assert talks(net, "inside", (EXTERNAL_ADDRESS, BEFORE_PORT)), "the same from inside"


def test_icmp_errors_reach_the_gateways_own_programs(busy: Network) -> None:
    net = busy
    net.run("server", "sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
    hops = net.run("gateway", "traceroute", "-n", "-q", "1", "-w", "1", SERVER_ADDRESS).splitlines()[1:]
    assert [line.split()[1] for line in hops] == ["200.200.200.1", SERVER_ADDRESS]
    asking = net.udp("gateway")
    asking.connect((SERVER_ADDRESS, 999))
    asking.send(b"nobody there")
    with pytest.raises(ConnectionRefusedError):
        asking.recv(100)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_ports_bound_while_we_run_become_the_hosts(busy: Network, kind: str) -> None:
    net = busy
    if kind == "tcp":
        net.echo_tcp("gateway", EXTERNAL_ADDRESS, AFTER_PORT)
        eventually(lambda: talks(net, "server", (EXTERNAL_ADDRESS, AFTER_PORT), 0.5), PICKED_UP_S, "the new server")
    else:
        net.echo_udp("gateway", "0.0.0.0", AFTER_PORT)
        asking = net.udp("server", SERVER_ADDRESS)
        eventually(lambda: round_trip(asking, (EXTERNAL_ADDRESS, AFTER_PORT), b"?", 0.1), PICKED_UP_S, "the new server")
        assert round_trip(net.udp("inside"), (GATEWAY_INSIDE, AFTER_PORT), b"from inside")


def test_programs_that_bind_ports_of_ours_get_their_answers_at_once(busy: Network) -> None:
    """The kernel tells of a bind. Else each but the first would wait from one look at the host's ports to the next."""
    started = time.monotonic()
    for port in range(OUR_PORT, OUR_PORT + 5):
        client = busy.udp("gateway", "0.0.0.0", port)
        eventually(lambda client=client: round_trip(client, (SERVER_ADDRESS, ECHO_PORT), b"?", 0.02), what="an answer")
    assert time.monotonic() - started < 4 * LOOK_EVERY


def test_silence_for_ports_that_are_ours(busy: Network) -> None:
    net = busy
    heard = net.sniff("router", "eth0")
    with pytest.raises(ConnectionRefusedError):  # and every host on the way knows its neighbour
        net.connect("server", (EXTERNAL_ADDRESS, CLOSED_PORT), timeout=1)
    knocking = net.udp("server", SERVER_ADDRESS)
    for port in (1, OUR_PORT, 32_768, 60_999, 65_535):
        knocking.sendto(b"?", (EXTERNAL_ADDRESS, port))
        with pytest.raises(TimeoutError):
            net.connect("server", (EXTERNAL_ADDRESS, port), timeout=0.05)
    refused = answers_of_the_host(heard.packets())
    assert {each.source_port for each in refused} == {CLOSED_PORT}
    eventually(lambda: net.drops().get("no_session", 0) >= 10, what="ten drops")


def test_a_port_bound_while_a_session_uses_it_stays_the_sessions(net: Network) -> None:
    net.start()
    net.echo_udp()
    near, far = net.pair(client_port=OUR_PORT)
    near.sendall(b"before")
    assert far.recv(100) == b"before"
    assert far.getpeername() == (EXTERNAL_ADDRESS, OUR_PORT)
    net.listen("gateway", "0.0.0.0", OUR_PORT)
    heard = net.sniff("router", "eth0")
    eventually(lambda: f"tcp port {OUR_PORT}: the host's now" in net.fastmasq.errors(), PICKED_UP_S, "a warning")
    for _ in range(5):
        far.sendall(b"down")
        assert near.recv(100) == b"down"
        near.sendall(b"up")
        assert far.recv(100) == b"up"
    assert answers_of_the_host(heard.packets()) == []


@pytest.mark.parametrize("guard", ["nftables", "tc"])
def test_the_hosts_traffic_does_not_notice_changes_of_the_guard(net: Network, guard: str) -> None:
    """Every address that comes or goes puts the guard in force anew; no datagram may be lost by it, ours or theirs."""
    net.start(f'[takeover]\nguard = "{guard}"')
    net.echo_udp()
    net.echo_udp("gateway", EXTERNAL_ADDRESS, CLOSED_PORT)
    own, near, far = net.udp("gateway"), net.udp("inside"), net.udp("server", SERVER_ADDRESS)
    heard = net.sniff("router", "eth0")
    assert round_trip(near, (SERVER_ADDRESS, ECHO_PORT), b"first")
    for number in range(25):
        net.ip("gateway", f"address add 10.1.1.{number + 1}/32 dev lo")
        for _ in range(5):
            assert round_trip(own, (SERVER_ADDRESS, ECHO_PORT), b"own")
            assert round_trip(far, (EXTERNAL_ADDRESS, CLOSED_PORT), b"to the host")
            assert round_trip(near, (SERVER_ADDRESS, ECHO_PORT), b"translated")
    assert answers_of_the_host(heard.packets()) == []


def test_t5_input_rules_protect_the_hosts_services(net: Network) -> None:
    """Its services and its own packets; what is masqueraded meets the same chains, in the path (T-1)."""
    net.echo_udp()
    net.echo_tcp()
    net.echo_tcp("gateway", EXTERNAL_ADDRESS, BEFORE_PORT)
    net.start()
    assert talks(net, "inside", (SERVER_ADDRESS, ECHO_PORT))
    change_rules(net, {"do": "policy", "chain": "output", "target": "DENY"})
    assert not net.answers("gateway", SERVER_ADDRESS, seconds=0.5)
    assert not talks(net, "inside", (SERVER_ADDRESS, ECHO_PORT), 0.3)
    assert net.drops().keys() == {"output_denied"}
    assert not talks(net, "server", (EXTERNAL_ADDRESS, BEFORE_PORT), 0.3)
    change_rules(
        net,
        {"do": "policy", "chain": "output", "target": "ACCEPT"},
        {"do": "append", "chain": "input", "rule": {"match": {"protocol": 6, "syn": True}, "target": "REJECT"}},
    )
    assert net.answers("gateway", SERVER_ADDRESS)
    assert not talks(net, "server", (EXTERNAL_ADDRESS, BEFORE_PORT), 0.3)
    assert talks(net, "gateway", (SERVER_ADDRESS, ECHO_PORT)), "-y"
    with net.on("gateway"):
        listed = call(str(net.fastmasq.socket), "rules", chain="input")
    assert listed["chains"][0]["rules"][0]["packets"] >= 1
    net.run("gateway", "nft", "flush", "ruleset")
    eventually(lambda: not talks(net, "server", (EXTERNAL_ADDRESS, BEFORE_PORT), 0.3), what="the rules, back in force")
    net.fastmasq.remove()
    assert "table" not in net.run("gateway", "nft", "list", "ruleset")
    assert talks(net, "server", (EXTERNAL_ADDRESS, BEFORE_PORT))
