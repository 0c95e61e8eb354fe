"""`fastmasq run --observe` beside the kernel's masquerading: nothing is disturbed or changed, its figures are right."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmasq import program
from fastmasq.control.client import call
from fastmasq.lab import hosts
from fastmasq.lab.kernel_masquerade import KernelMasquerade
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import (
    ECHO_PORT,
    INSIDE_ADDRESS,
    ROUTER_ADDRESS,
    Network,
    eventually,
    round_trip,
    send_and_compare,
)

OBSERVE = ("--observe",)
SERVER = (SERVER_ADDRESS, ECHO_PORT)
PUBLIC_PORT, WEB_PORT = 8080, 80
ALL_PORTS = '[masquerade]\nports = "61000-65095"\n'
FORWARD = f'[[forward]]\nprotocol = "tcp"\nlisten = "eth1:{PUBLIC_PORT}"\nto = "{INSIDE_ADDRESS}:{WEB_PORT}"\n'
KERNEL_FORWARD = f"""
table ip kernel_forward {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        iifname "eth1" tcp dport {PUBLIC_PORT} dnat to {INSIDE_ADDRESS}:{WEB_PORT}
    }}
}}
"""
UNPRIVILEGED = ("setpriv", "--bounding-set=-all,+net_raw", "--inh-caps=-all", *program.command())
RST = 4


@pytest.fixture
def kernel(net: Network) -> Iterator[Network]:
    """Return the network while the gateway's kernel masquerades and forwards, with echo servers."""
    with KernelMasquerade(net.lab):
        hosts.checked(hosts.command_in(net.lab.namespace("gateway"), ["nft", "-f", "-"]), KERNEL_FORWARD)
        net.echo_udp()
        net.echo_tcp()
        yield net


def state_of_gateway(net: Network) -> dict[str, str]:
    """Return everything that a forwarder changes of its host."""
    found = {
        " ".join(command): net.run("gateway", *command)
        for command in (
            ["nft", "list", "ruleset"],
            ["ip", "rule"],
            ["ip", "route", "show", "table", "all"],
            ["ip", "-d", "link"],
            ["ip", "address"],
            ["tc", "qdisc"],
            ["tc", "filter", "show", "dev", "eth0", "ingress"],
            ["tc", "filter", "show", "dev", "eth1", "ingress"],
            ["ss", "-H", "-lntuw"],
        )
    }
    settings = net.run("gateway", "sysctl", "-a", "-r", r"^net\.")
    found["sysctl"] = "\n".join(line for line in settings.splitlines() if not re.search("conntrack_count|random", line))
    return found


def sent_by_gateway(net: Network) -> dict[str, int]:
    """Return frames sent on each link, ARP and all; see `quiet_neighbours`."""
    namespace = net.lab.namespace("gateway")
    read = "cat /sys/class/net/eth0/statistics/tx_packets /sys/class/net/eth1/statistics/tx_packets"
    counts = hosts.checked(["ip", "netns", "exec", namespace, "sh", "-c", read]).split()
    return dict(zip(("eth0", "eth1"), map(int, counts), strict=True))


def quiet_neighbours(net: Network) -> None:
    """Have hosts not ask each other, some seconds after they have met, whether they are still there."""
    for host, interfaces in (("inside", ["eth0"]), ("gateway", ["eth0", "eth1"]), ("router", ["eth0"])):
        settings = {f"ipv4__neigh__{each}__delay_first_probe_time": 600 for each in interfaces}
        hosts.set_sysctls(net.lab.namespace(host), **settings)


def exchange(near: socket.socket, count: int, mark: str) -> None:
    for number in range(count):
        assert round_trip(near, SERVER, f"{mark} {number}".encode())


def summed(report: dict) -> tuple[int, dict[str, int]]:
    """Return packets forwarded, and dropped by reason."""
    return report["verdicts"]["forward"], {drop["reason"]: drop["packets"] for drop in report["drops"]}


def test_it_says_that_it_only_observes(kernel: Network) -> None:
    assert re.fullmatch(
        r"fastmasq \S+ only observes: eth0 -> eth1 \(200\.200\.200\.200\), ring \w+, guard none",
        kernel.start(options=OBSERVE),
    )
    first = kernel.fastmasq.run_command("status").splitlines()[0]
    assert first == "fastmasq only observes: would forward 0 packets, would drop 0, would open 0 sessions"


def test_traffic_is_undisturbed_and_counted(kernel: Network) -> None:
    net = kernel
    net.start(FORWARD, options=OBSERVE)
    at_server, at_inside = net.sniff("server", "eth0"), net.sniff("inside", "eth0")
    exchange(net.udp("inside"), 50, "datagram")
    near, far = net.pair()
    send_and_compare(near, far, 1 << 20)
    send_and_compare(far, near, 1 << 20)
    near.close()
    far.close()
    assert net.answers("inside", SERVER_ADDRESS)
    net.greet_tcp(b"welcome", "inside", WEB_PORT)
    caller = net.connect("server", (EXTERNAL_ADDRESS, PUBLIC_PORT))
    assert caller.recv(100) == b"welcome"
    caller.close()
    status = net.status()
    forwarded, drops = summed(status)
    asked = [each.payload[8:] for each in at_server.of(sent=False, protocol=socket.IPPROTO_UDP)]
    answered = [each.payload[8:] for each in at_inside.of(sent=False, protocol=socket.IPPROTO_UDP)]
    assert asked == answered == [f"datagram {number}".encode() for number in range(50)], "each once, and in order"
    for heard in (at_server, at_inside):
        assert not [each for each in heard.packets() if each.protocol == socket.IPPROTO_TCP and each.tcp_flags & RST]
        errors = [each for each in heard.of(protocol=socket.IPPROTO_ICMP) if each.icmp_type_and_code[0] in (3, 11)]
        assert errors == []
    assert drops == {}
    assert forwarded > 100 + 2
    assert status["observed"]["opened"] == {"tcp": 2, "udp": 1, "icmp": 1, "other": 0}
    assert status["observed"]["forwards"] == [{"forward": f"tcp eth1:{PUBLIC_PORT}", "sessions": 1}]
    assert status["observed"]["answers_to_host"] == 0
    [datagrams] = net.sessions(protocol="udp")
    assert (datagrams["packets_out"], datagrams["packets_in"]) == (50, 50)
    assert {each["state"] for each in net.sessions(protocol="tcp")} <= {"closing", "transitory", "fin-in", "fin-out"}


def test_counts_of_datagrams_are_exact(kernel: Network) -> None:
    kernel.start(options=OBSERVE)
    exchange(kernel.udp("inside"), 20, "one")
    exchange(kernel.udp("inside2"), 30, "two")
    forwarded, drops = summed(kernel.status())
    assert (forwarded, drops) == (100, {})


def test_what_a_rule_would_deny_is_counted_as_that_and_gets_through(kernel: Network) -> None:
    net = kernel
    rules = net.lab.directory / "gateway/rules"
    rules.parent.mkdir(parents=True, exist_ok=True)
    rules.write_text(
        "ipchains -A input -i eth0 -s 10.0.0.3 -p udp -j DENY\n"
        "ipchains -P forward DENY\n"
        "ipchains -A forward -s 10.0.0.0/8 -j MASQ\n"
    )
    net.start(f'{ALL_PORTS}[rules]\nfiles = ["{rules}"]\n', options=OBSERVE)
    exchange(net.udp("inside2"), 7, "denied")
    exchange(net.udp("inside"), 5, "allowed")
    status = net.status()
    assert summed(status) == (10, {"input_denied": 7})
    [flow] = status["observed"]["dropped"]
    assert flow == {
        "packets": 7, "reason": "input_denied", "rule": "input rule 1", "link": "eth0", "protocol": socket.IPPROTO_UDP,
        "source": "10.0.0.3", "destination": SERVER_ADDRESS, "port": ECHO_PORT,
    }  # fmt: skip
    assert status["observed"]["answers_to_host"] == 7
    chain = net.fastmasq.run_command("rule", "list", "--chain", "input")
    assert re.search(r"^ *1 +DENY .* 7 +\d+$", chain, re.MULTILINE), chain
    asked = ("--protocol", "udp", "--from", "10.0.0.3", "--to", f"{SERVER_ADDRESS}:7", "--in", "eth0", "--out", "eth1")
    assert "DENY" in net.fastmasq.run_command("rule", "trace", *asked)


def test_answers_to_what_the_kernel_translated_before_are_no_drops(kernel: Network) -> None:
    net = kernel
    near, far = net.pair()
    net.start(options=OBSERVE)
    far.sendall(b"from the server, in a connection of before")
    assert near.recv(100)
    status = net.status()
    assert summed(status)[1] == {}
    assert status["observed"]["answers_to_host"] > 0
    near.sendall(b"now the inside host has spoken")
    assert far.recv(100)
    before = net.status()["observed"]["answers_to_host"]
    far.sendall(b"and its session is known")
    assert near.recv(100)
    assert net.status()["observed"]["answers_to_host"] == before


def test_the_hosts_own_traffic_is_delivered(kernel: Network) -> None:
    net = kernel
    net.start(options=OBSERVE)
    exchange(net.udp("gateway"), 10, "own")
    assert net.answers("gateway", SERVER_ADDRESS)
    assert round_trip(net.connect("gateway", SERVER), None, b"own")
    assert net.answers("server", EXTERNAL_ADDRESS)
    status = net.status()
    assert summed(status) == (0, {})
    assert status["verdicts"]["deliver"] > 12


def test_strangers_who_begin_something_are_judged(kernel: Network) -> None:
    net = kernel
    net.start(ALL_PORTS, options=OBSERVE)
    stranger = net.udp("server", SERVER_ADDRESS, 4444)
    for _ in range(3):
        stranger.sendto(b"hello", (EXTERNAL_ADDRESS, 61005))
    with pytest.raises(OSError):
        net.connect("server", (EXTERNAL_ADDRESS, 61006), timeout=1)
    eventually(lambda: summed(net.status())[1].get("no_session", 0) == 4, what="three datagrams and a SYN")
    flows = {(flow["protocol"], flow["port"]): flow["packets"] for flow in net.status()["observed"]["dropped"]}
    assert flows == {(socket.IPPROTO_UDP, 61005): 3, (socket.IPPROTO_TCP, 61006): 1}


def test_nothing_on_the_host_is_changed_before_during_or_after(kernel: Network) -> None:
    net = kernel
    before = state_of_gateway(net)
    net.start(f'{FORWARD}{ALL_PORTS}[vpn]\npreload = 4501\npreload_keys = "/nowhere"\n', options=OBSERVE)
    exchange(net.udp("inside"), 3, "during")
    run = net.fastmasq.run_command
    run("forward", "add", "udp", "eth1:5000", "10.0.0.2:5000")
    net.fastmasq.ask("rules.change", changes=[{"do": "append", "chain": "output", "rule": {"target": "DENY"}}])
    assert state_of_gateway(net) == before
    exchange(net.udp("inside"), 3, "after the changes")
    net.fastmasq.remove()
    assert state_of_gateway(net) == before
    exchange(net.udp("inside"), 3, "afterwards")


def test_it_sends_nothing_even_where_the_kernel_forwards_nothing(net: Network) -> None:
    quiet_neighbours(net)
    net.start(options=OBSERVE)
    assert net.answers("inside", "10.0.0.1")
    assert net.answers("gateway", ROUTER_ADDRESS)
    sent = sent_by_gateway(net)
    near = net.udp("inside")
    for number in range(20):
        near.sendto(b"nobody carries this", (f"199.0.0.{number + 1}", ECHO_PORT))
        near.sendto(b"nor asks for its receiver", (f"200.200.200.{number + 2}", ECHO_PORT))
    near.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
    near.sendto(b"nor says that it died here", SERVER)
    eventually(lambda: summed(net.status()) == (40, {"ttl_exceeded": 1}), what="the verdicts on all of it")
    assert net.status()["verdicts"]["reply"] == 1
    assert sent_by_gateway(net) == sent


def test_packet_sockets_are_all_that_it_needs(kernel: Network) -> None:
    net = kernel
    net.start(options=OBSERVE, command=UNPRIVILEGED)
    exchange(net.udp("inside"), 5, "watched")
    assert summed(net.status()) == (10, {})


def test_in_the_end_it_prints_what_it_has_seen(kernel: Network) -> None:
    net = kernel
    net.start(f"{FORWARD}{ALL_PORTS}", options=OBSERVE)
    exchange(net.udp("inside"), 4, "seen")
    net.greet_tcp(b"welcome", "inside", WEB_PORT)
    with contextlib.closing(net.connect("server", (EXTERNAL_ADDRESS, PUBLIC_PORT))) as caller:
        assert caller.recv(100) == b"welcome"
    net.udp("server", SERVER_ADDRESS, 4444).sendto(b"hello", (EXTERNAL_ADDRESS, 61005))
    eventually(lambda: summed(net.status())[1] == {"no_session": 1}, what="the verdict on the stranger")
    output = net.fastmasq.output
    net.fastmasq.remove()
    lines = [" ".join(line.split()) for line in output().splitlines()]
    dropped = r"would drop 1 \(1 no_session\), would open 2 sessions"
    assert re.fullmatch(rf"fastmasq only observes: would forward \d+ packets, {dropped}", lines[1])
    assert f"tcp eth1:{PUBLIC_PORT} 1" in lines
    assert f"1 no_session - eth1 udp {SERVER_ADDRESS} {EXTERNAL_ADDRESS}:61005" in lines
    assert {"tcp 1", "udp 1", "icmp 0"} <= set(lines)
    assert any(re.fullmatch(r"\d+ forward sent on, .*", line) for line in lines)


def test_a_new_configuration_is_tried_beside_a_fastmasq_that_runs(net: Network, tmp_path: Path) -> None:
    net.echo_udp()
    net.start(ALL_PORTS)
    rules, file = tmp_path / "rules", tmp_path / "other.toml"
    other = str(net.lab.directory / "gateway/other.sock")
    rules.write_text("ipchains -P forward DENY\n")
    links = '[interfaces]\ninside = ["eth0"]\noutside = "eth1"\n'
    file.write_text(f'{links}[rules]\nfiles = ["{rules}"]\n[control]\nsocket = "{other}"\n')
    argv = [*program.command(), "run", "-c", str(file), *OBSERVE]
    with net.lab.popen("gateway", argv, stdout=subprocess.PIPE, text=True) as observer:
        assert "only observes" in observer.stdout.readline()
        exchange(net.udp("inside"), 5, "carried by the other")
        denied = {"forward_denied": 5}
        eventually(lambda: summed(call(other, "status"))[1] == denied, what="what the new rules would deny")
        observer.send_signal(signal.SIGTERM)
        assert observer.wait(10) == 0
    exchange(net.udp("inside"), 5, "still")
    assert summed(net.status()) == (20, {})


def test_a_second_forwarder_is_refused_by_its_socket(kernel: Network) -> None:
    kernel.start(options=OBSERVE)
    argv = [sys.executable, "-m", "fastmasq", "run", "-c", str(kernel.fastmasq.configuration)]
    done = kernel.lab.exec("gateway", argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("fastmasq: another fastmasq is running at ")
    assert len(done.stderr.splitlines()) == 1
