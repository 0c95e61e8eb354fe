"""`ipmasqadm autofw` and `mfw` on a forwarder that forwards, with real programs' packets: section 5.5."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fastmasq.control.client import call
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.legacy import ipmasqadm_autofw, ipmasqadm_mfw
from tests.support.lab_network import ECHO_PORT, INSIDE_ADDRESS, Network, eventually, round_trip

PROGRAMS = Path(sys.executable).parent  # where console scripts are installed
SECOND_INSIDE = "10.0.0.3"
RANGE = "autofw -A -r udp 6970 7170 -c tcp 7070"
WEB = (EXTERNAL_ADDRESS, 80)


def run(net: Network, line: str) -> subprocess.CompletedProcess:
    """Run one of the old programs in the gateway."""
    program, *words = line.split()
    environment = {"FASTMASQ_SOCKET": str(net.fastmasq.socket), "PATH": "/usr/sbin:/usr/bin"}
    argv = [str(PROGRAMS / program), *words]
    return net.lab.exec("gateway", argv, capture_output=True, text=True, env=environment, timeout=30)


def do(net: Network, line: str) -> list[str]:
    """Run a program that must succeed in silence on standard error; return what it prints."""
    done = run(net, line)
    assert (done.returncode, done.stderr) == (0, ""), line
    return done.stdout.splitlines()


def masqadm(net: Network, line: str) -> list[str]:
    return do(net, f"ipmasqadm {line}")


def proc(net: Network, module: str) -> list[str]:
    """Return /proc/net/ip_masq/autofw or mfw without its header."""
    write, method = {"autofw": (ipmasqadm_autofw, "triggers"), "mfw": (ipmasqadm_mfw, "marks")}[module]
    return list(write.proc_lines(call(str(net.fastmasq.socket), method)))[1:]


def connects(net: Network, remote: tuple[str, int]) -> bool:
    try:
        return round_trip(net.connect("server", remote, timeout=1), None, b"hello")
    except OSError:
        return False


def arrives(sender: socket.socket, receiver: socket.socket, to: tuple[str, int], text: bytes) -> tuple[str, int]:
    """Send a datagram that must arrive; return where it seems to come from."""
    sender.sendto(text, to)
    received, source = receiver.recvfrom(100)
    assert received == text
    return source


def test_5_5_autofw_example_2_a_control_connection_opens_the_range_for_its_peer(net: Network) -> None:
    net.start()
    player, server, stranger = net.udp("inside", port=6970), net.udp("server"), net.udp("router")
    net.listen("server", port=7070)
    masqadm(net, RANGE)
    local = net.udp(
        "gateway", port=6970
    )  # a program of the gateway's on the very port: the guard keeps packets from it
    public = (EXTERNAL_ADDRESS, 6970)
    server.sendto(b"too early", public)
    eventually(lambda: net.drops() == {"no_session": 1})  # the links' rings are emptied one after the other
    net.connect("inside", (SERVER_ADDRESS, 7070))
    stranger.sendto(b"not asked", public)
    assert arrives(server, player, public, b"sound") == (SERVER_ADDRESS, server.getsockname()[1])
    assert arrives(player, server, (SERVER_ADDRESS, server.getsockname()[1]), b"more") == public
    assert net.drops() == {"no_session": 2}
    [row] = proc(net, "autofw")
    assert row.startswith("   1   11 1B3A-1C02/0000 0000 0A000002 C7000001 0006 1B9E ")
    assert row.endswith("    7")
    local.close()  # else it would have its port back now
    masqadm(net, "autofw -F")
    assert proc(net, "autofw") == []
    assert arrives(server, player, public, b"the session lives on")[0] == SERVER_ADDRESS


def test_5_5_autofw_example_3_direct_ports_are_kept(net: Network) -> None:
    net.start('[masquerade]\nports = "61000-65095"')
    inside, server = net.udp("inside", port=28850), net.udp("server", port=28850)
    other = net.udp("inside", port=28851)
    masqadm(net, "autofw -A -d udp 28800 28900")
    assert arrives(inside, server, (SERVER_ADDRESS, 28850), b"out") == (EXTERNAL_ADDRESS, 28850)
    assert arrives(server, inside, (EXTERNAL_ADDRESS, 28850), b"back") == (SERVER_ADDRESS, 28850)
    masqadm(net, "autofw -D -d udp 28800 28900")
    assert arrives(other, server, (SERVER_ADDRESS, 28850), b"out")[1] >= 61000


def test_5_5_autofw_examples_1_4_and_5_fixed_hosts(net: Network) -> None:
    net.start()
    net.echo_tcp("inside", port=2005)
    net.echo_tcp("inside")
    masqadm(net, f"autofw -A -r tcp 2000 2010 -h {INSIDE_ADDRESS}")
    masqadm(net, f"autofw -A -p tcp 8080 {INSIDE_ADDRESS}:{ECHO_PORT}")
    assert connects(net, (EXTERNAL_ADDRESS, 2005))
    live = net.connect("server", (EXTERNAL_ADDRESS, 8080))
    assert round_trip(live, None, b"through")
    masqadm(net, "portfw -f")
    assert connects(net, (EXTERNAL_ADDRESS, 2005))
    masqadm(net, "autofw -F")
    assert not connects(net, (EXTERNAL_ADDRESS, 2005))
    assert round_trip(live, None, b"lives on")


@pytest.fixture
def web(net: Network) -> Network:
    """A network with the rule of example 1, and servers that greet on both inside hosts and on the gateway itself."""
    for name, host in ((b"first", "inside"), (b"second", "inside2"), (b"gateway", "gateway")):
        net.greet_tcp(name, host, 80)
    net.start()
    do(net, f"ipchains -A input -p tcp -y -d {EXTERNAL_ADDRESS} 80 -m 1 -j ACCEPT")
    return net


def greetings(net: Network, count: int) -> Counter[bytes]:
    return Counter(net.connect("server", WEB).recv(10) for _ in range(count))


def test_5_5_mfw_examples_1_to_5_marked_connections_are_shared_out(web: Network) -> None:
    net = web
    assert greetings(net, 1) == {b"gateway": 1}
    refused = run(net, f"ipmasqadm mfw -A -m 1 -r {INSIDE_ADDRESS} 80")
    assert refused.returncode == 255 and "waits at tcp 0.0.0.0:80, and would hear nothing more" in refused.stderr
    assert greetings(net, 1) == {b"gateway": 1}
    masqadm(net, f"mfw --force -A -m 1 -r {INSIDE_ADDRESS} 80 -p 2")
    assert greetings(net, 3) == {b"first": 3}
    masqadm(net, f"mfw -A -m 1 -r {SECOND_INSIDE} 80 -p 4")
    assert greetings(net, 12) == {b"first": 4, b"second": 8}
    assert masqadm(net, "mfw -L -n") == [
        "fwmark   rediraddr               rport  pcnt  pref",
        f"1        {INSIDE_ADDRESS}                   80     2     2",
        f"1        {SECOND_INSIDE}                   80     4     4",
    ]
    assert [line.rstrip() for line in proc(net, "mfw")] == [
        "0x1 > 0A000002    80     2     2",
        "0x1 > 0A000003    80     4     4",
    ]
    masqadm(net, f"mfw -E -m 1 -r {INSIDE_ADDRESS} 80 -p 0")
    assert greetings(net, 9) == {b"first": 9}
    masqadm(net, "mfw -S -m 1")
    assert greetings(net, 4) == {b"second": 4}
    masqadm(net, "mfw -D -m 1")
    assert greetings(net, 1) == {b"gateway": 1}, "at once"
    done = run(net, "ipmasqadm mfw -D -m 1")
    assert (done.stderr, done.returncode) == ("mfw: setsockopt failed: No such process\n", 255)


def test_5_5_mfw_a_connection_outlives_its_mark(net: Network) -> None:
    """Where no program of the gateway waits at the port."""
    net.start()
    do(net, f"ipchains -A input -p tcp -y -d {EXTERNAL_ADDRESS} 80 -m 1 -j ACCEPT")
    net.echo_tcp("inside", port=8000)
    masqadm(net, f"mfw -A -m 1 -r {INSIDE_ADDRESS} 8000")
    live = net.connect("server", WEB)
    assert round_trip(live, None, b"marked")
    do(net, "ipchains -F input")
    assert round_trip(live, None, b"unmarked")
    masqadm(net, "mfw -F")
    assert round_trip(live, None, b"no row")
    assert round_trip(live, None, b"nor of this")


def test_rule_files_and_reloads_know_both(net: Network, tmp_path: Path) -> None:
    file = tmp_path / "rc.firewall"
    marking = f"ipchains -A input -p tcp -y -d {EXTERNAL_ADDRESS} 80 -m 1 -j ACCEPT\n"
    marking += "ipchains -P forward DENY\nipchains -A forward -i eth1 -j MASQ\n"
    file.write_text(f"{marking}ipmasqadm {RANGE}\nipmasqadm mfw -A -m 1 -r {INSIDE_ADDRESS} 80\n")
    net.start(f'[rules]\nfiles = ["{file}"]\n')
    net.greet_tcp(b"first", "inside", 80)
    net.greet_tcp(b"second", "inside2", 80)
    player, server = net.udp("inside", port=6970), net.udp("server")
    net.listen("server", port=7070)
    net.connect("inside", (SERVER_ADDRESS, 7070))
    assert arrives(server, player, (EXTERNAL_ADDRESS, 6970), b"sound")[0] == SERVER_ADDRESS
    assert greetings(net, 1) == {b"first": 1}
    masqadm(net, "autofw -A -d udp 1 2")
    assert net.fastmasq.run_command("reload") == "nothing changed\n"
    assert len(proc(net, "autofw")) == 2
    file.write_text(f"{marking}ipmasqadm mfw -A -m 1 -r {SECOND_INSIDE} 80\n")
    told = net.fastmasq.run_command("reload")
    for changed in ("trigger range udp outside:6970-7170 by tcp 7070", f"mark 1 -> {SECOND_INSIDE}:80"):
        assert changed in told
    assert greetings(net, 1) == {b"second": 1}
    assert len(proc(net, "autofw")) == 1
    assert arrives(server, player, (EXTERNAL_ADDRESS, 6970), b"the session lives on")[0] == SERVER_ADDRESS
    assert "no triggered range and no mark leads there" in net.fastmasq.run_command("reload", "--enforce")
