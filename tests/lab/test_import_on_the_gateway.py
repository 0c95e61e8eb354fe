"""Imports on the gateway: the host keeps what INPUT kept, sessions of inside hosts work, routes tell links apart."""

from __future__ import annotations

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.migrate import iptables_save
from fastmasq.migrate.carry import carry
from fastmasq.migrate.files import script, toml
from fastmasq.migrate.foreign import read_network
from fastmasq.migrate.links import this_host
from tests.support.lab_network import ECHO_PORT, GATEWAY_INSIDE, Network, round_trip, talks
from tests.support.namespaces import Gateway

OTHER_ADDRESS = "200.200.200.201"  # the gateway's, and not named
CLOSED_PORT, MASQUERADED_PORT = 8443, 61500
SILENT_S = 0.3

IPTABLES = """
*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o eth1 -j MASQUERADE
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i eth0 -o eth1 -j ACCEPT
COMMIT
"""


def test_an_imported_input_protects_the_host_as_it_did(net: Network) -> None:
    carried = carry(iptables_save.read(IPTABLES), inside=["eth0"], addresses=[EXTERNAL_ADDRESS, GATEWAY_INSIDE])
    rules = net.lab.directory / "imported.rules"
    rules.write_text("\n".join(script(carried)) + "\n")
    assert 'ports = "61000-65095"' in toml(carried)
    net.ip("gateway", f"addr add {OTHER_ADDRESS}/24 dev eth1")
    for port in (22, CLOSED_PORT, MASQUERADED_PORT):
        net.echo_tcp("gateway", port=port)
    net.echo_tcp()
    net.echo_udp()
    net.start(f'[masquerade]\nports = "61000-65095"\n[rules]\nfiles = ["{rules}"]\n')

    for address in (EXTERNAL_ADDRESS, OTHER_ADDRESS):
        assert talks(net, "server", (address, 22))
        assert not talks(net, "server", (address, CLOSED_PORT), SILENT_S)
        assert not talks(net, "server", (address, MASQUERADED_PORT), SILENT_S)
    assert talks(net, "inside", (GATEWAY_INSIDE, 22))
    assert not talks(net, "inside", (GATEWAY_INSIDE, CLOSED_PORT), SILENT_S)
    assert talks(net, "gateway", (SERVER_ADDRESS, ECHO_PORT))
    assert talks(net, "inside", (SERVER_ADDRESS, ECHO_PORT))
    assert round_trip(net.udp("inside"), (SERVER_ADDRESS, ECHO_PORT), b"hello")
    assert set(net.drops()) <= {"input_denied"}


def test_the_routes_of_the_gateway_say_what_is_behind_its_links(gateway: Gateway) -> None:
    host = gateway.host
    host.ip("link add wg0 type veth peer name wg0-peer")
    host.ip("addr add 10.8.0.1/24 dev wg0")
    host.ip("link set wg0 up")
    host.ip("route add 192.168.5.0/24 via 10.0.0.254")
    host.ip("route add 192.168.5.0/24 dev wg0 metric 50")
    with host.entered():
        here = this_host()
    behind = {name: [read_network(text) for text in texts] for name, texts in (
        ("eth0", ("10.0.0.0/8", "192.168.5.0/24")), ("wg0", ("10.8.0.0/24",)))}  # fmt: skip
    assert {name: list(ranges) for name, ranges in here.networks.items() if name != "lo"} == behind
    assert here.has(("eth0", "eth1", "wg0")) and not here.has(("eth7",))
    assert int.from_bytes(bytes((10, 8, 0, 1))) in here.addresses["wg0"]
