"""DHCP clients on the outside link of a gateway: they get a lease, and renew it, through the guard."""

from __future__ import annotations

import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.dhcp_server import DISCOVER, REQUEST, Asked, DhcpServer
from tests.support.lab_network import ECHO_PORT, ROUTER_ADDRESS, Network, eventually, round_trip

# dhcpcd knows the lease of an eth1 from the time before, and with it asks for no other; here each lab has one.
OF_ITS_OWN = " && ".join(f"mkdir -p {at} && mount -t tmpfs lab {at}" for at in ("/var/lib/dhcpcd", "/run/dhcpcd"))
CLIENTS = {
    "udhcpc": "udhcpc -f -n -i eth1 -s /bin/true",
    "dhclient": "dhclient -4 -d -sf /bin/true -cf {folder}/conf -lf {folder}/leases -pf {folder}/pid eth1",
    "dhcpcd": f"sh -c '{OF_ITS_OWN} && exec dhcpcd -4 -B -p -A -t 20 -c /bin/true -f {{folder}}/conf eth1'",
}
ON_SIGNAL = {"udhcpc": signal.SIGUSR1}  # renews when told to; the others when the server says that it is time


@pytest.mark.parametrize(
    ("client", "guard"), [("udhcpc", "tc"), ("udhcpc", "nftables"), ("dhclient", "tc"), ("dhcpcd", "tc")]
)
def test_a_lease_is_got_and_renewed(net: Network, tmp_path: Path, client: str, guard: str) -> None:
    net.start(f'[takeover]\nguard = "{guard}"')
    net.echo_udp()
    server = DhcpServer(net, "router", "eth0", ROUTER_ADDRESS, EXTERNAL_ADDRESS, lease=60, renewal=1)
    (tmp_path / "conf").write_text("")
    (tmp_path / "leases").write_text("")
    argv = shlex.split(CLIENTS[client].format(folder=tmp_path))
    with net.lab.popen("gateway", argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:

        def renews() -> bool:
            if client in ON_SIGNAL and server.asked and server.asked[-1].kind == REQUEST:
                program.send_signal(ON_SIGNAL[client])
            return server.asked.count(Asked(REQUEST, EXTERNAL_ADDRESS)) > 0

        try:
            eventually(renews, 30, "a renewal")  # clients pause between their questions, by chance and longer each time
        finally:
            program.kill()
    assert round_trip(net.udp("inside"), (SERVER_ADDRESS, ECHO_PORT), b"masqueraded as before")
    assert DISCOVER in [asked.kind for asked in server.asked]
