"""The other commands, on a forwarder that forwards: what they show is what happens."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import ECHO_PORT, INSIDE_ADDRESS, Network, eventually, round_trip

SERVER = (SERVER_ADDRESS, ECHO_PORT)
INSIDE2_ADDRESS = "10.0.0.3"


@pytest.fixture
def talking(net: Network) -> Network:
    """Return the network with fastmasq and a few sessions: UDP, TCP and ICMP from inside, UDP from inside2."""
    net.start()
    net.echo_udp()
    net.echo_tcp()
    for host in ("inside", "inside2"):
        assert round_trip(net.udp(host), SERVER, b"?")
    assert round_trip(net.connect("inside", SERVER, port=6000), None, b"?")
    net.answers("inside", SERVER_ADDRESS)
    return net


def command(net: Network, *arguments: str, host: str = "gateway") -> subprocess.CompletedProcess:
    """Run a command of fastmasq's on a host, on the socket of the running one."""
    argv = [sys.executable, "-m", "fastmasq", *arguments, "--socket", str(net.fastmasq.socket)]
    return net.lab.exec(host, argv, capture_output=True, text=True, timeout=20)


def test_sessions_are_what_was_opened(talking: Network) -> None:
    net = talking
    by_protocol = {each["protocol"]: each for each in net.sessions(host=INSIDE_ADDRESS)}
    tcp = by_protocol.pop("tcp")
    assert tcp["inside"] == f"{INSIDE_ADDRESS}:6000"
    assert tcp["external"] == f"{EXTERNAL_ADDRESS}:6000"
    assert tcp["remote"] == f"{SERVER_ADDRESS}:{ECHO_PORT}"
    assert tcp["state"] == "established"
    assert tcp["packets_out"] >= 3 and tcp["packets_in"] >= 2
    assert 7300 < tcp["expires_s"] <= 7441 and tcp["idle_s"] < 10
    assert by_protocol["udp"]["packets_out"] == by_protocol["udp"]["packets_in"] == 1
    assert 290 < by_protocol["udp"]["expires_s"] <= 301
    assert by_protocol["icmp"]["remote"] == SERVER_ADDRESS


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ([], 4),
        (["--host", INSIDE_ADDRESS], 3),
        (["--host", INSIDE2_ADDRESS], 1),
        (["--host", EXTERNAL_ADDRESS], 4),
        (["--host", "10.9.9.9"], 0),
        (["--protocol", "udp"], 2),
        (["--protocol", "tcp", "--state", "established"], 1),
        (["--state", "syn-sent"], 0),
        (["--limit", "2"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_sessions_can_be_filtered(talking: Network, filters: list[str], count: int) -> None:
    assert len(json.loads(command(talking, "sessions", "--json", *filters).stdout)) == count
    shown = command(talking, "sessions", *filters)
    assert shown.returncode == 0
    rows = [line for line in shown.stdout.splitlines() if line.startswith(("tcp", "udp", "icmp"))]
    assert len(rows) == count


def test_status_is_what_happens(talking: Network) -> None:
    net = talking
    status = net.status()
    assert status["pid"] == net.fastmasq.process.pid
    sessions = status["sessions"]
    assert {name: sessions[name] for name in ("active", "tcp", "udp", "icmp", "hosts", "mappings", "opened_total")} == {
        "active": 4, "tcp": 1, "udp": 2, "icmp": 1, "hosts": 2, "mappings": 4, "opened_total": 4,
    }  # fmt: skip
    assert {link["name"]: (link["role"], link["state"], link["addresses"]) for link in status["links"]} == {
        "eth0": ("inside", "up", ["10.0.0.1/8"]),
        "eth1": ("outside", "up", [f"{EXTERNAL_ADDRESS}/24"]),
    }
    assert status["verdicts"]["drop"] == 0 and status["verdicts"]["forward"] >= 10
    inside, outside = status["links"]
    assert inside["rx_packets"] >= outside["tx_packets"] > 0


def test_rates_follow_the_traffic(talking: Network) -> None:
    net = talking
    flood = "import socket,time\ns=socket.socket(2,2)\nwhile 1:\n s.sendto(b'x'*100,('199.0.0.1',9)); time.sleep(.001)"
    with net.lab.popen("inside", [sys.executable, "-c", flood]) as sender:
        eventually(lambda: net.link("eth1")["tx_pps"] > 100, 5, "a rate")
        assert net.link("eth1")["tx_bps"] > 100 * 142 * 8
        sender.kill()


def test_tables_for_people_say_the_same(talking: Network) -> None:
    shown = command(talking, "status").stdout
    guard = talking.status()["guard"]["backend"]
    for word in ("eth0", "eth1", "inside", "outside", "10.0.0.1/8", EXTERNAL_ADDRESS, guard, "4 of 1000000"):
        assert word in shown, word
    shown = command(talking, "sessions").stdout
    assert "established" in shown and shown.rstrip().endswith("4 sessions")


def test_the_socket_is_roots_alone(talking: Network) -> None:
    path = talking.fastmasq.socket
    mode = os.stat(path).st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600 and os.stat(path).st_uid == 0


def test_a_client_from_another_namespace_is_served(talking: Network) -> None:
    """The control socket is a file: whoever is root on this machine reaches it, wherever the network ends."""
    assert command(talking, "status", "--json", host="server").returncode == 0


def test_a_check_while_it_runs_finds_nothing_wrong(talking: Network) -> None:
    net = talking
    argv = [sys.executable, "-m", "fastmasq", "check", "-c", str(net.fastmasq.configuration)]
    done = net.lab.exec("gateway", argv, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stdout + done.stderr
    assert round_trip(net.udp("inside"), SERVER, b"it forwards still")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["sessions", "--state", "asleep"], 2, "'asleep' is not a state; there are: active, closing"),
        (["sessions", "--host", "nobody"], 2, "nobody"),
        (["sessions", "--protocol", "gre"], 2, "gre"),
    ],
)
def test_filters_that_cannot_match_are_refused(talking: Network, arguments: list[str], status: int, words: str) -> None:
    done = command(talking, *arguments)
    assert done.returncode == status
    assert words in done.stderr and done.stdout == ""


def test_clients_that_dawdle_harm_nobody(talking: Network) -> None:
    net = talking
    dawdlers = []
    for _ in range(20):
        dawdler = net.keep(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        dawdler.connect(str(net.fastmasq.socket))
        dawdler.sendall(b'{"method": "stat')
        dawdlers.append(dawdler)
    assert net.status()["sessions"]["active"] == 4
    assert round_trip(net.udp("inside"), SERVER, b"it forwards still")


def test_requests_that_are_nonsense_are_answered(talking: Network) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(str(talking.fastmasq.socket))
        for line in (b"nonsense\n", b'{"method": "dance"}\n', b'{"method": "sessions", "params": {"limit": "x"}}\n'):
            client.sendall(line)
            assert "error" in json.loads(client.recv(65536))
        client.sendall(b'{"method": "ping"}\n')
        assert json.loads(client.recv(65536))["result"] == "pong"
