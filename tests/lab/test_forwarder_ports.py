"""Whose ports are: clients keep theirs, or have the same again; the host connects from few of its own."""

from __future__ import annotations

import socket
import subprocess

from fastmasq.lab.topology import SERVER_ADDRESS
from tests.lab.test_forwarder_life import kill, release
from tests.support.lab_network import ECHO_PORT, PATIENCE_S, Network, round_trip

RANGE = "net.ipv4.ip_local_port_range"
AT_ONCE = 4000
OPEN_MANY = f"""
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
ends = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) for _ in range({AT_ONCE})]
print(*sorted({{end.getsockname()[1] for end in ends}}), flush=True)
sys.stdin.read()
"""


def port_range(net: Network) -> str:
    return net.sysctl("gateway", RANGE).replace("\t", "-")


def ports_seen(net: Network, clients: list[socket.socket]) -> list[int]:
    """Return the ports that a server sees of clients that send to it, one after the other."""
    server = net.udp("server", port=9000)
    server.settimeout(PATIENCE_S)
    ports = []
    for client in clients:
        client.sendto(b"from where?", (SERVER_ADDRESS, 9000))
        ports.append(server.recvfrom(100)[1][1])
    server.close()
    return ports


def test_clients_keep_their_ports_while_the_host_has_thousands_of_connections(net: Network) -> None:
    net.start()
    assert port_range(net) == "20480-24575"
    listener = net.listen("server")
    listener.listen(4096)  # which the kernel accepts by itself
    net.echo_tcp()
    command = ["python3", "-c", OPEN_MANY, SERVER_ADDRESS, str(listener.getsockname()[1])]
    with net.lab.popen("gateway", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        ports = [int(port) for port in program.stdout.readline().split()]
        assert len(ports) == AT_ONCE and ports[0] >= 20480 and ports[-1] <= 24575
        assert round_trip(net.connect("gateway", (SERVER_ADDRESS, ECHO_PORT)), None, b"and one more")
        for number in range(40):
            near, far = net.pair(client_port=50_000 + number if number % 2 else 0)
            port = near.getsockname()[1]
            assert port >= 32768 and far.getpeername()[1] == port
    clients = [net.udp(host, port=40_000) for host in ("inside", "inside2")]
    seen = ports_seen(net, clients)
    assert seen[0] == 40_000 and seen[1] < 32_768
    assert net.status()["host_ports"] == {"range": "20480-24575", "own": "32768-60999", "reason": ""}
    kill(net)
    assert port_range(net) == "20480-24575"
    assert f"{RANGE} = 32768 60999" in release(net)
    assert port_range(net) == "32768-60999"
    net.start()
    assert net.status()["adopted"]["sessions"] == 0
    assert ports_seen(net, clients) == seen, "nothing was known of them any more"
