"""INPUT of another rule set, imported and in force: the host keeps what it kept, and sessions of inside hosts work."""

from __future__ import annotations

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.migrate import iptables_save
from fastmasq.migrate.carry import carry
from fastmasq.migrate.files import script, toml
from tests.support.lab_network import ECHO_PORT, GATEWAY_INSIDE, Network, round_trip

OTHER_ADDRESS = "200.200.200.201"  # the gateway's, and not named
CLOSED_PORT, MASQUERADED_PORT = 8443, 61500

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


def talks(net: Network, host: str, remote: tuple[str, int]) -> bool:
    """Return whether a TCP echo server answers a host."""
    try:
        connection = net.connect(host, remote, timeout=0.3)
    except OSError:
        return False
    return round_trip(connection, None, b"hello")


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
        assert not talks(net, "server", (address, CLOSED_PORT))
        assert not talks(net, "server", (address, MASQUERADED_PORT))
    assert talks(net, "inside", (GATEWAY_INSIDE, 22))
    assert not talks(net, "inside", (GATEWAY_INSIDE, CLOSED_PORT))
    assert talks(net, "gateway", (SERVER_ADDRESS, ECHO_PORT))
    assert talks(net, "inside", (SERVER_ADDRESS, ECHO_PORT))
    assert round_trip(net.udp("inside"), (SERVER_ADDRESS, ECHO_PORT), b"hello")
    assert set(net.drops()) <= {"input_denied"}
