"""The target REDIRECT in a running fastmasq: programs of the gateway answer in the place of others (rule T-10)."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fastmasq.errors import FastmasqError
from fastmasq.kernel.local_link import HOST_END, NETWORK, OUR_END
from fastmasq.lab import hosts
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.lab.test_forwarder_life import kill
from tests.lab.test_forwarder_state import assert_adopted, folder, settings
from tests.support.lab_network import (
    ECHO_PORT,
    GATEWAY_INSIDE,
    INSIDE_ADDRESS,
    Network,
    eventually,
    icmp_error,
    round_trip,
    send_and_compare,
)
from tests.support.old_programs import Old

__all__ = ["folder"]  # a fixture

SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
ELSEWHERE = "198.51.100.7"  # nobody has it
PROXY = 8080
RULES = [
    "ipchains -P forward DENY",
    "ipchains -A forward -i eth1 -s 10.0.0.0/24 -j MASQ",
    f"ipchains -A input -p tcp -s 10.0.0.0/24 -d 0/0 80 -j REDIRECT {PROXY}",
    "ipchains -A input -p udp -s 10.0.0.0/24 -d 0/0 53 -j REDIRECT 5353",
]


def start(net: Network, rules: list[str], extra: str = "") -> None:
    """Start fastmasq with a rule file of 1999."""
    net.start(f'{extra}\n[rules]\nfiles = ["{write(net, rules)}"]\n')


def write(net: Network, rules: list[str]) -> Path:
    """Have the rule file say this, and return where it is."""
    script = net.lab.directory / "rc.firewall"
    script.write_text("\n".join(rules) + "\n")
    return script


def ipchains(net: Network, arguments: str) -> list[str]:
    return Old(net).lines(f"ipchains {arguments}")


def greeting(net: Network, host: str, remote: tuple[str, int]) -> bytes:
    """Connect and return what is said until the end."""
    connection = net.connect(host, remote)
    return b"".join(iter(lambda: connection.recv(100), b""))


def asked_for(connection: socket.socket) -> tuple[str, int]:
    """Return the original destination of a program's end of a connection, as the kernel's NAT would tell it."""
    asked = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
    assert struct.unpack("=H", asked[:2]) == (socket.AF_INET,)
    return socket.inet_ntoa(asked[4:8]), *struct.unpack(">H", asked[2:4])


@pytest.fixture
def proxied(net: Network) -> Network:
    start(net, RULES)
    net.greet_tcp(b"the gateway", "gateway", PROXY)
    return net


def test_t10_any_destination_leads_to_the_program(proxied: Network) -> None:
    net = proxied
    net.greet_tcp(b"the server", "server", 80)
    net.greet_tcp(b"another service", "server", 81)
    for address in (SERVER_ADDRESS, ELSEWHERE):
        assert greeting(net, "inside", (address, 80)) == b"the gateway"
    assert greeting(net, "inside", (SERVER_ADDRESS, 81)) == b"another service"
    assert greeting(net, "inside2", (ELSEWHERE, 80)) == b"the gateway"
    assert greeting(net, "inside", (GATEWAY_INSIDE, PROXY)) == b"the gateway"  # who asks the gateway itself
    assert net.drops() == {}


def test_t10_the_program_sees_who_asks_and_the_client_whom_it_asked(net: Network) -> None:
    start(net, RULES)
    listener = net.listen("gateway", port=PROXY)
    near = net.connect("inside", (ELSEWHERE, 80))
    far, (address, port) = listener.accept()
    net.keep(far)
    assert (address, port) == (INSIDE_ADDRESS, near.getsockname()[1])
    assert near.getpeername() == (ELSEWHERE, 80)
    [session] = net.sessions()
    assert session["external"] == f"{ELSEWHERE}:80"
    assert session["remote"] == f"{INSIDE_ADDRESS}:{port}"
    assert session["inside"] == f"{NETWORK[1]}:{PROXY}"
    send_and_compare(near, far, 20 << 20)
    send_and_compare(far, near, 20 << 20)
    assert net.drops() == {}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_t10_the_program_learns_what_was_asked(net: Network, family: socket.AddressFamily) -> None:
    """As the sockets of 1999 said it, and as the kernel's NAT does; other sockets say what they always did."""
    start(net, RULES)
    with net.on("gateway"):
        listener = net.keep(socket.create_server(("", PROXY), family=family, dualstack_ipv6=family == socket.AF_INET6))
    near = net.connect("inside", (ELSEWHERE, 80))
    far, _ = listener.accept()
    net.keep(far)
    address, port = far.getsockname()[:2]
    assert (address.removeprefix("::ffff:"), port) == (ELSEWHERE, 80)
    assert asked_for(far) == (ELSEWHERE, 80)
    direct = net.connect("inside", (GATEWAY_INSIDE, PROXY))
    far, _ = listener.accept()
    net.keep(far)
    assert far.getsockname()[0].removeprefix("::ffff:") == GATEWAY_INSIDE
    assert near.getsockname()[0] == direct.getsockname()[0] == INSIDE_ADDRESS


def test_t10_curl_with_offloads_through_a_real_web_server(net: Network, tmp_path: Path) -> None:
    start(net, RULES)
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(50 << 20))
    serve = ["python3", "-m", "http.server", str(PROXY), "--directory", str(tmp_path)]
    server = net.lab.popen("gateway", serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert hosts.wait_for_port(server, PROXY, "tcp")
    fetched = tmp_path / "fetched"
    net.run("inside", "curl", "-sS", "-o", str(fetched), f"http://{ELSEWHERE}/payload")
    assert hashlib.sha256(fetched.read_bytes()).digest() == hashlib.sha256(payload.read_bytes()).digest()
    assert net.drops() == {}


def test_t10_dig_is_answered_by_the_gateways_dnsmasq(net: Network) -> None:
    start(net, RULES)
    argv = ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--port=5353", "--user=root", "--pid-file="]
    server = net.lab.popen("gateway", [*argv, "--address=/www.example.com/192.0.2.80"], stderr=subprocess.DEVNULL)
    assert hosts.wait_for_port(server, 5353, "udp")
    answer = net.run("inside", "dig", "+short", "+tries=1", f"@{ELSEWHERE}", "www.example.com")
    assert answer == "192.0.2.80\n"
    assert net.drops() == {}


def test_t10_one_source_port_to_several_destinations(proxied: Network) -> None:
    """The program's end is the same for all of them, so each gets an address of its own there."""
    net = proxied
    listener = net.listen("gateway", port=8081)
    taken = []
    ipchains(net, "-A input -p tcp -d 0/0 8000 -j REDIRECT 8081")
    for number in range(1, 5):
        near = net.connect("inside", (f"198.51.100.{number}", 8000), port=4000)
        far, peer = listener.accept()
        net.keep(far)
        assert peer == (INSIDE_ADDRESS, 4000)
        taken.append(far.getsockname()[0])
        near.sendall(b"%d" % number)
        assert far.recv(10) == b"%d" % number
    assert len(set(taken)) == 4
    assert net.drops() == {}


def test_t10_a_rule_added_and_deleted_while_running(net: Network) -> None:
    net.start()
    net.greet_tcp(b"the server", "server", 80)
    net.greet_tcp(b"the gateway", "gateway", 80)
    assert greeting(net, "inside", (SERVER_ADDRESS, 80)) == b"the server"
    assert [link["name"] for link in net.status()["links"]] == ["eth0", "eth1"]
    ipchains(net, "-A input -p tcp -d 0/0 80 -j REDIRECT")
    assert greeting(net, "inside", (SERVER_ADDRESS, 80)) == b"the gateway"
    assert net.link(OUR_END)["role"] == "local"
    ipchains(net, "-D input -p tcp -d 0/0 80 -j REDIRECT")
    assert greeting(net, "inside", (SERVER_ADDRESS, 80)) == b"the server"
    assert net.drops() == {}


def test_a_rule_whose_change_is_refused_later_leaves_no_link(net: Network) -> None:
    net.start()
    before = state(net)
    match = {"protocol": 6, "destination_ports": [[80, 80]]}
    rule = {"match": match, "target": "REDIRECT", "redirect_port": PROXY}
    targets = [{"action": "add", "target": {"mark": n, "address": INSIDE_ADDRESS, "port": 0}} for n in range(1, 300)]
    changes = {"rules.change": [{"do": "append", "chain": "input", "rule": rule}], "marks.change": targets}
    lines = [{"place": "file:1", "method": one, "params": {"changes": changes[one]}} for one in changes]
    with pytest.raises(FastmasqError, match="marks are forwarded: at most"):
        net.fastmasq.ask("policy.change", lines=lines)
    assert state(net) == before
    assert [link["name"] for link in net.status()["links"]] == ["eth0", "eth1"]
    net.greet_tcp(b"the gateway", "gateway", PROXY)
    ipchains(net, f"-A input -p tcp -d 0/0 80 -j REDIRECT {PROXY}")
    assert greeting(net, "inside", (ELSEWHERE, 80)) == b"the gateway"


def test_t10_open_sessions_live_on_when_rules_change(net: Network) -> None:
    start(net, RULES)
    net.echo_tcp("gateway", port=PROXY)
    net.echo_tcp("server", port=80)
    redirected = net.connect("inside", (SERVER_ADDRESS, 80))
    assert round_trip(redirected, None, b"one")
    ipchains(net, "-D input 1")
    direct = net.connect("inside", (SERVER_ADDRESS, 80))
    assert round_trip(direct, None, b"two") and round_trip(redirected, None, b"two")
    ipchains(net, f"-I input -p tcp -s 10.0.0.0/24 -d 0/0 80 -j REDIRECT {PROXY}")
    assert round_trip(direct, None, b"three") and round_trip(redirected, None, b"three")
    assert {row["remote"] for row in net.sessions()} == {
        f"{SERVER_ADDRESS}:80",
        f"{INSIDE_ADDRESS}:{redirected.getsockname()[1]}",
    }


def test_t10_a_session_lives_on_behind_a_policy_of_deny(net: Network) -> None:
    """On its way to the program it meets the hook of the host's own packets, where no rule fits it any more."""
    accept = "ipchains -A input -i eth0 -s 10.0.0.0/24 -j ACCEPT"
    start(net, [*RULES, accept, "ipchains -A input -i lo -j ACCEPT", "ipchains -P input DENY"])
    net.echo_tcp("gateway", port=PROXY)
    redirected = net.connect("inside", (ELSEWHERE, 80))
    assert round_trip(redirected, None, b"one")
    ipchains(net, "-D input 1")
    ipchains(net, "-D input 1")
    assert round_trip(redirected, None, b"two", seconds=3)


def test_t10_nobody_listens(net: Network) -> None:
    start(net, RULES)
    with pytest.raises(ConnectionRefusedError):
        net.connect("inside", (ELSEWHERE, 80))
    asking = net.asking("inside", (ELSEWHERE, 53))
    asking.send(b"?")
    assert icmp_error(asking) == (3, 3, 0, ELSEWHERE)
    assert net.drops() == {}


def test_t10_a_program_that_listens_on_one_address_is_named(net: Network) -> None:
    start(net, RULES)
    net.listen("gateway", GATEWAY_INSIDE, PROXY)
    said = f"REDIRECT to TCP port {PROXY}: its program listens on {GATEWAY_INSIDE} alone"
    eventually(lambda: said in net.fastmasq.errors(), what="a word about it")
    assert "UDP port 5353" not in net.fastmasq.errors()


def test_t10_input_and_output_chains_still_judge(net: Network) -> None:
    """The hook of the host's own packets does not judge again; the output chain sees the answer as it leaves."""
    rules = ["ipchains -P input DENY", "ipchains -A input -i lo -j ACCEPT", *RULES]
    start(net, [*rules, f"ipchains -A output -p tcp -s {ELSEWHERE} 80 -j DENY"])
    net.greet_tcp(b"the gateway", "gateway", PROXY)
    assert greeting(net, "inside", (SERVER_ADDRESS, 80)) == b"the gateway"
    with pytest.raises(TimeoutError):
        net.connect("inside", (ELSEWHERE, 80), timeout=1)
    with pytest.raises(TimeoutError):
        net.connect("inside", (GATEWAY_INSIDE, PROXY), timeout=1)
    assert net.drops().keys() == {"output_denied"}


def test_t10_from_outside_as_well(net: Network) -> None:
    """A rule that names no side redirects what comes from outside: here towards a host behind the gateway."""
    start(net, ["ipchains -A input -p tcp -d 10.0.0.2 80 -j REDIRECT 8080"])
    net.greet_tcp(b"the gateway", "gateway", PROXY)
    net.ip("router", f"route add 10.0.0.0/24 via {EXTERNAL_ADDRESS}")
    assert greeting(net, "server", (INSIDE_ADDRESS, 80)) == b"the gateway"


def test_nobody_else_reaches_the_addresses_of_the_link(proxied: Network) -> None:
    net = proxied
    inside, behind = str(NETWORK[1]), [str(NETWORK[1]), str(NETWORK[2])]
    for host, via in (("inside", GATEWAY_INSIDE), ("router", EXTERNAL_ADDRESS)):
        net.ip(host, f"route add {NETWORK} via {via}")
        for address in behind:
            with pytest.raises(OSError):
                net.connect(host, (address, PROXY), timeout=0.5)
    assert net.drops().keys() == {"martian_destination"}
    net.ip("inside", f"address add {inside}/32 dev eth0")
    forged = net.udp("inside", inside)
    forged.sendto(b"?", (SERVER_ADDRESS, ECHO_PORT))
    eventually(lambda: net.drops().get("martian_source"), what="a drop")


def test_a_datagram_in_pieces_and_its_answer(net: Network) -> None:
    start(net, RULES)
    program = net.udp("gateway", str(NETWORK[1]), 5353)
    client = net.udp("inside")
    payload = os.urandom(4000)
    client.sendto(payload, (ELSEWHERE, 53))
    received, peer = program.recvfrom(65535)
    assert received == payload
    program.sendto(payload[::-1], peer)
    assert client.recvfrom(65535) == (payload[::-1], (ELSEWHERE, 53))
    assert net.drops() == {}


def test_the_listings_of_1999_do_not_show_it(proxied: Network) -> None:
    net = proxied
    assert greeting(net, "inside", (ELSEWHERE, 80)) == b"the gateway"
    assert len(net.sessions()) == 1
    assert ipchains(net, "-M -L -n") == ["IP masquerading entries"]
    for name in ("ip_masquerade", "ip_masq/tcp"):
        assert len(net.fastmasq.run_command("proc", name).splitlines()) == 1


def test_enforcing_closes_what_is_no_longer_redirected(net: Network) -> None:
    start(net, RULES)
    net.echo_tcp("gateway", port=PROXY)
    connection = net.connect("inside", (ELSEWHERE, 80))
    assert round_trip(connection, None, b"one")
    net.fastmasq.run_command("reload", "--enforce")
    assert round_trip(connection, None, b"two")
    write(net, RULES[:2])
    net.fastmasq.run_command("reload", "--enforce")
    assert net.sessions() == []


@pytest.mark.parametrize("guard", ["nftables", "tc", "none"])
def test_everything_is_put_back(net: Network, guard: str) -> None:
    before = state(net)
    start(net, RULES, f'[takeover]\nguard = "{guard}"')
    net.greet_tcp(b"the gateway", "gateway", PROXY)
    assert greeting(net, "inside", (ELSEWHERE, 80)) == b"the gateway"
    assert state(net) != before
    net.fastmasq.remove()
    assert state(net) == before


@pytest.mark.parametrize(
    "command",
    [
        "rule del pref 1",
        "route flush table 6160",
        f"route del local {NETWORK} table local",
        f"address flush dev {HOST_END}",
        f"link set {HOST_END} down",
        f"link del {HOST_END}",
    ],
)
def test_what_somebody_else_takes_away_is_put_back(proxied: Network, command: str) -> None:
    """As systemd-networkd does with rules and routes that it does not know, when it starts again."""
    net = proxied
    before = state(net)
    net.ip("gateway", command)
    net.run("gateway", "sysctl", "-qwe", f"net.ipv4.conf.{HOST_END}.rp_filter=1")
    eventually(lambda: state(net) == before, what="the link as it was")
    eventually(lambda: net.sysctl("gateway", f"net.ipv4.conf.{HOST_END}.rp_filter") == "2", what="its setting")
    eventually(lambda: net.link(OUR_END)["state"] == "up", what="the tap")
    assert greeting(net, "inside", (ELSEWHERE, 80)) == b"the gateway"
    assert f"the link {HOST_END}" in net.fastmasq.errors()


def state(net: Network) -> tuple[str, ...]:
    links = json.loads(net.ip("gateway", "-json address show"))
    addresses = [each.get("local", "") for row in links for each in row["addr_info"]]
    return (
        *(row["ifname"] for row in links),
        *addresses,
        net.ip("gateway", "rule show"),
        net.ip("gateway", "route show table all"),
    )


def test_after_a_crash_it_is_adopted_and_released(net: Network) -> None:
    before = state(net)
    start(net, RULES)
    net.greet_tcp(b"the gateway", "gateway", PROXY)
    net.fastmasq.process.kill()
    net.fastmasq.process.wait()
    assert HOST_END in state(net)
    net.fastmasq.install()
    assert greeting(net, "inside", (ELSEWHERE, 80)) == b"the gateway"
    net.fastmasq.process.kill()
    net.fastmasq.process.wait()
    argv = [sys.executable, "-m", "fastmasq", "release", "--socket", str(net.fastmasq.socket)]
    assert f"link {HOST_END} removed" in net.run("gateway", *argv)
    assert state(net) == before


def test_connections_outlive_a_kill_and_an_upgrade_with_what_they_were_for(net: Network, folder: Path) -> None:
    """Also where the rule is gone: the link to programs is there for the connections that are left."""
    more = settings(folder, more="")
    start(net, RULES, more)
    listener, program = net.listen("gateway", port=PROXY), net.udp("gateway", str(NETWORK[1]), 5353)
    near, client = net.connect("inside", (ELSEWHERE, 80)), net.udp("inside")
    far = net.keep(listener.accept()[0])
    client.sendto(b"who", (ELSEWHERE, 53))
    _, peer = program.recvfrom(100)
    before = state(net)

    def all_go_on(word: bytes) -> None:
        """The programs' ends first."""
        far.sendall(word)
        assert near.recv(100) == word
        near.sendall(word)
        assert far.recv(100) == word
        program.sendto(word, peer)
        assert client.recvfrom(100) == (word, (ELSEWHERE, 53))
        assert asked_for(far) == far.getsockname() == (ELSEWHERE, 80)
        assert net.drops() == {}

    all_go_on(b"before")
    kill(net)
    assert far.getsockname() == (str(NETWORK[1]), PROXY), "nobody tells it just now"
    start(net, RULES[:2], more)
    assert_adopted(net, 2)
    all_go_on(b"after a kill")
    write(net, RULES)
    net.fastmasq.run_command("upgrade")
    all_go_on(b"after an upgrade")
    assert state(net) == before, "nobody has made another link"
    another = net.connect("inside", (ELSEWHERE, 80))
    assert asked_for(net.keep(listener.accept()[0])) == another.getpeername()
