"""Ports that inside hosts ask for by UPnP, with a real client: upnpc."""

from __future__ import annotations

import socket

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS
from tests.support.lab_network import ECHO_PORT, GATEWAY_INSIDE, INSIDE_ADDRESS, Network, talks

UPNP = f'[port_mapping]\nupnp = true\nallow = ["10.0.0.0/24:{ECHO_PORT},1024-65535"]\n'
PORT, GROUP, SSDP = 5351, "239.255.255.250", 1900
PUBLIC = (EXTERNAL_ADDRESS, 8080)
SEARCH = (
    f"M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}:{SSDP}\r\nMAN: \"ssdp:discover\"\r\nMX: 2\r\n"
    "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:{}\r\n\r\n"
)  # fmt: skip


def upnpc(net: Network, version: int, *words: str, host: str = "inside") -> str:
    """Run upnpc, which says of a failure what it is, and of its status nothing."""
    description = f"http://{GATEWAY_INSIDE}:{PORT}/igd{version}/root.xml"
    return net.run(host, "upnpc", "-u", description, *words, check=False)


def found(net: Network, host: str, to: str, version: int = 1, seconds: float = 10) -> str | None:
    """Return where a host finds a gateway that it searches there, None if it does not."""
    searching = net.udp(host)
    searching.settimeout(seconds)
    searching.sendto(SEARCH.format(version).encode(), (to, SSDP))
    try:
        answer = searching.recv(2048).decode()
    except TimeoutError:
        return None
    return next(line.partition(":")[2].strip() for line in answer.splitlines() if line.upper().startswith("LOCATION"))


@pytest.mark.parametrize("version", [1, 2])
def test_upnpc_gets_a_port_for_its_own_host_alone(net: Network, version: int) -> None:
    net.start(UPNP)
    net.echo_tcp("inside")
    assert found(net, "inside", GROUP, version) == f"http://{GATEWAY_INSIDE}:{PORT}/igd{version}/root.xml"
    said = upnpc(net, version, "-e", "a game", "-a", INSIDE_ADDRESS, str(ECHO_PORT), "8080", "tcp", "600")
    assert f"external {EXTERNAL_ADDRESS}:8080 TCP is redirected to internal {INSIDE_ADDRESS}:{ECHO_PORT}" in said
    assert talks(net, "server", PUBLIC)
    assert f"upnp by {INSIDE_ADDRESS}, 9m" in net.fastmasq.run_command("forward", "list")
    assert "8080->10.0.0.2:7     'a game'" in upnpc(net, version, "-l")
    assert "failed with code 606" in upnpc(net, version, "-a", "10.0.0.3", "6000", "6000", "tcp")
    assert "failed with code : 606" in upnpc(net, version, "-d", "8080", "tcp", host="inside2")
    assert talks(net, "server", PUBLIC)
    upnpc(net, version, "-d", "8080", "tcp")
    assert not talks(net, "server", PUBLIC, 0.2)
    assert net.fastmasq.ask("forwards") == []


def test_nobody_outside_finds_it_or_reaches_it(net: Network) -> None:
    net.start(UPNP)
    net.ip("router", f"route add 10.0.0.0/8 via {EXTERNAL_ADDRESS}")
    net.ip("router", "route add 239.0.0.0/8 dev eth0")
    heard = net.sniff("gateway", "eth1")
    for to in (GROUP, GATEWAY_INSIDE, EXTERNAL_ADDRESS):
        assert found(net, "router", to, seconds=0.1) is None
        assert heard.of(destination=to, destination_port=SSDP, sent=False)
    for to in (GATEWAY_INSIDE, EXTERNAL_ADDRESS):
        with pytest.raises(OSError):
            net.connect("router", (to, PORT), timeout=0.3)
    assert not [each for each in heard.of(sent=True) if each.source_port == SSDP]


def test_a_page_that_calls_us_by_a_name_of_its_own_is_refused(net: Network) -> None:
    net.start(UPNP)
    for name, status in ((f"{GATEWAY_INSIDE}:{PORT}", b" 200 "), ("attacker.example", b" 403 ")):
        asking = net.connect("inside", (GATEWAY_INSIDE, PORT))
        asking.sendall(f"GET /igd1/root.xml HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        assert status in asking.recv(64)


def test_who_holds_many_connections_keeps_nobody_else_out(net: Network) -> None:
    net.start(UPNP)
    held = [net.connect("inside", (GATEWAY_INSIDE, PORT)) for _ in range(50)]
    assert f"ExternalIPAddress = {EXTERNAL_ADDRESS}" in upnpc(net, 1, "-s", host="inside2")
    assert sum(map(_has_ended, held)) >= 10


def _has_ended(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
