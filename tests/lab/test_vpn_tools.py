"""`fastmasq test pptp`, `traceroute` and `sniff` in the lab: a path that is whole, filtered or broken, and servers.

The network is the registered one, whose gateway and router forward by the kernel: 222.0.0.2 - 222.0.0.1 gateway
200.200.200.200 - 200.200.200.1 router - 199.0.0.1, three hops away.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.isakmp import ISAKMP
from scapy.layers.l2 import GRE_PPTP
from scapy.utils import RawPcapNgReader, rdpcap

from fastmasq.lab.kernel_masquerade import KernelMasquerade
from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from fastmasq.wire.numbers import PPTP_PORT
from fastmasq.wire.pptp import Type
from tests.support.lab_network import GATEWAY_INSIDE, INSIDE_ADDRESS, Network, eventually
from tests.support.pptp_server import PptpServer

CLIENT, GATEWAY, ROUTER = "222.0.0.2", "222.0.0.1", "200.200.200.1"
FASTMASQ = [sys.executable, "-m", "fastmasq"]
CONFIGURATION = '[interfaces]\ninside = ["eth0"]\noutside = "eth1"\n[control]\nsocket = "{socket}"\n'
QUICKLY = ["--wait", "0.5"]


@pytest.fixture
def routed(make_lab: Callable[..., Lab]) -> Iterator[Network]:
    network = Network(make_lab("registered"))
    yield network
    network.close()


def fastmasq(
    net: Network, *arguments: str, host: str = "inside", before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    """Run a command on a host."""
    return net.lab.exec(host, [*before, *FASTMASQ, *arguments], capture_output=True, text=True, timeout=60)


def drop(net: Network, host: str, match: str, hook: str = "forward", verdict: str = "drop") -> None:
    net.run(host, "nft", f"table ip t {{ chain c {{ type filter hook {hook} priority 0; {match} {verdict}; }}; }}")


# --- fastmasq test pptp ------------------------------------------------------------------------------------------


def test_h_61_a_server_that_works(routed: Network) -> None:
    with PptpServer(routed) as server:
        done = fastmasq(routed, "test", "pptp", SERVER_ADDRESS)
        eventually(lambda: Type.STOP_REQUEST in server.heard)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["connect", "ok"], ["start", "ok"], ["stop", "ok"]]
    assert "host name 'vpn.example', vendor 'scapy', protocol version 1.0" in lines[1]
    assert set(server.heard) == {Type.START_REQUEST, Type.ECHO_REPLY, Type.STOP_REQUEST}


def test_h_61_a_call_and_its_gre(routed: Network) -> None:
    with PptpServer(routed) as server:
        done = fastmasq(routed, "test", "pptp", SERVER_ADDRESS, "--call", "--json")
        eventually(lambda: Type.CALL_CLEAR_REQUEST in server.heard)
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert [(step["stage"], step["good"]) for step in report["steps"]] == [
        ("connect", True), ("start", True), ("call", True), ("data", True), ("stop", True),
    ]  # fmt: skip
    assert (report["address"], report["good"]) == (SERVER_ADDRESS, True)


def test_h_71_gre_that_does_not_come_back(routed: Network) -> None:
    drop(routed, "router", "ip protocol gre")
    with PptpServer(routed):
        done = fastmasq(routed, "test", "pptp", SERVER_ADDRESS, "--call", "--wait", "1")
    assert done.returncode == 1
    assert "data     FAILED  no GRE came back within 1 s" in done.stdout
    assert "fastmasq traceroute --gre" in done.stdout


@pytest.mark.parametrize(("server", "stage", "said", "hint"), [
    ({"mode": "silent"}, "start", "no answer within 1 s", "does not speak PPTP"),
    ({"mode": "closes"}, "start", "the server closed the connection without an answer", "one control connection"),
    ({"start_result": 4}, "start", "refused: the requester is not authorized", "allowed addresses"),
    ({"mode": "gives up", "sends_gre": False}, "data", "the server ended the call", "could not run PPP"),
    ({"call_result": 7}, "call", "calls are prohibited by the server's administrator", "log says why"),
])  # fmt: skip
def test_h_61_servers_that_refuse(routed: Network, server: dict[str, Any], stage: str, said: str, hint: str) -> None:
    with PptpServer(routed, **server):
        done = fastmasq(routed, "test", "pptp", SERVER_ADDRESS, "--call", "--wait", "1", "--json")
    assert done.returncode == 1
    (failed,) = [step for step in json.loads(done.stdout)["steps"] if step["good"] is False]
    assert failed["stage"] == stage
    assert said in failed["said"]
    assert hint in failed["hint"]


def test_h_64_no_server_at_all(routed: Network) -> None:
    done = fastmasq(routed, "test", "pptp", SERVER_ADDRESS)
    assert (done.returncode, "connection refused" in done.stdout) == (1, True)
    drop(routed, "router", f"tcp dport {PPTP_PORT}")
    done = fastmasq(routed, "test", "pptp", SERVER_ADDRESS, "--wait", "0.5")
    assert (done.returncode, "no answer within 0.5 s" in done.stdout) == (1, True)
    routed.greet_tcp(b"220 mail.example ESMTP\r\n", "server", 25)
    done = fastmasq(routed, "test", "pptp", SERVER_ADDRESS, "--port", "25")
    assert (done.returncode, "the answer is not PPTP" in done.stdout) == (1, True)
    routed.ip("inside", "route delete default")
    done = fastmasq(routed, "test", "pptp", SERVER_ADDRESS)
    assert (done.returncode, "Network is unreachable" in done.stdout) == (1, True)


# --- fastmasq traceroute -----------------------------------------------------------------------------------------


def trace(net: Network, *arguments: str, host: str = "inside") -> tuple[int, dict[str, Any]]:
    done = fastmasq(net, "traceroute", SERVER_ADDRESS, *QUICKLY, "--json", *arguments, host=host)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def addresses(report: dict[str, Any], protocol: str) -> list[str | None]:
    """Return who answered at each hop."""
    return [next((answer["address"] for answer in hop["answers"] if answer), None) for hop in report["hops"][protocol]]


@pytest.mark.parametrize("protocol", ["gre", "esp"])
def test_h_69_a_whole_path(routed: Network, protocol: str) -> None:
    status, report = trace(routed, f"--{protocol}")
    assert (status, report["verdict"], report["hop"]) == (0, "reached", 3)
    assert addresses(report, protocol) == addresses(report, "udp") == [GATEWAY, ROUTER, SERVER_ADDRESS]


@pytest.mark.parametrize("protocol", ["gre", "esp"])
def test_h_69_a_server_that_is_silent_about_it(routed: Network, protocol: str) -> None:
    drop(routed, "server", f"ip protocol {protocol}", hook="input")
    status, report = trace(routed, f"--{protocol}")
    assert (status, report["verdict"], report["hop"]) == (0, "passes", 2)


@pytest.mark.parametrize("protocol", ["gre", "esp"])
def test_h_69_a_filtering_hop(routed: Network, protocol: str) -> None:
    drop(routed, "gateway", f"ip protocol {protocol}")
    status, report = trace(routed, f"--{protocol}")
    assert (status, report["verdict"], report["hop"], report["address"]) == (1, "filtered", 1, GATEWAY)
    assert f"UDP goes on to hop 2, {ROUTER}" in report["said"]
    assert addresses(report, protocol) == [GATEWAY, None, None]


def test_h_69_a_hop_that_refuses_by_name(routed: Network) -> None:
    drop(routed, "router", "ip protocol gre", verdict="reject with icmp type admin-prohibited")
    status, report = trace(routed, "--gre")
    assert (status, report["verdict"], report["hop"], report["address"]) == (1, "refused", 3, ROUTER)
    assert "administratively prohibited" in report["said"]


def test_h_69_a_broken_path(routed: Network) -> None:
    routed.ip("router", "route add blackhole 199.0.0.1/32")
    status, report = trace(routed, "--gre")
    assert (status, report["verdict"], report["hop"], report["address"]) == (1, "broken", 1, GATEWAY)
    routed.ip("router", "route delete blackhole 199.0.0.1/32")
    routed.ip("router", "route add unreachable 199.0.0.1/32")
    status, report = trace(routed, "--gre")
    assert (status, report["verdict"], report["address"]) == (1, "broken", ROUTER)
    assert "host unreachable" in report["said"]


def test_a_trace_for_people(routed: Network) -> None:
    drop(routed, "gateway", "ip protocol gre")
    done = fastmasq(routed, "traceroute", "--gre", SERVER_ADDRESS, *QUICKLY)
    first, hop1, hop2, *_, verdict, hint = done.stdout.splitlines()
    assert first == f"GRE and UDP to {SERVER_ADDRESS} ({SERVER_ADDRESS}), at most 30 hops"
    assert hop1.split()[:3] == ["1", "GRE", GATEWAY]
    assert hop2.split()[:7] == ["2", "GRE", "*", "*", "*", "UDP", ROUTER]
    assert verdict.startswith("filtered: GRE gets no further than hop 1")
    assert "ask who runs them" in hint


def test_a_host_without_a_route_is_one_line(routed: Network) -> None:
    routed.ip("inside", "route delete default")
    done = fastmasq(routed, "traceroute", "--gre", SERVER_ADDRESS)
    assert done.returncode == 1
    assert done.stderr == (
        f"fastmasq: {SERVER_ADDRESS}: cannot send to it: this host has no route to it; check the default route\n"
    )


@pytest.mark.parametrize("arguments", [("traceroute", "--esp", SERVER_ADDRESS), ("sniff", "eth0")])
def test_without_privilege_there_is_one_line(routed: Network, arguments: tuple[str, ...]) -> None:
    done = fastmasq(routed, *arguments, before=("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "CAP_NET_RAW: run it as root" in line


# --- fastmasq sniff ----------------------------------------------------------------------------------------------


class Sniffing:
    """A sniffer that runs in the gateway; `end` is its Ctrl-C."""

    def __init__(self, net: Network, *arguments: str) -> None:
        command = [*FASTMASQ, "sniff", *arguments]
        listed = net.lab.namespace("gateway")
        wanted = self._sockets(listed) + len(set(arguments) & {"inside", "outside", "eth0", "eth1"})
        self._process = net.lab.popen("gateway", command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        eventually(lambda: self._sockets(listed) >= wanted or self._process.poll() is not None)

    def end(self) -> tuple[int, str]:
        """Return exit status and output."""
        self._process.send_signal(signal.SIGINT)
        output, errors = self._process.communicate(timeout=30)
        assert not errors
        return self._process.returncode, output

    def next_error(self) -> str:
        return self._process.stderr.readline()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def _sockets(self, namespace: str) -> int:
        """Return the packet sockets of the gateway that listen to everything (protocol 3)."""
        listed = subprocess.run(
            ["ip", "netns", "exec", namespace, "cat", "/proc/net/packet"], capture_output=True, text=True, check=True
        )
        return sum(line.split()[3] == "0003" for line in listed.stdout.splitlines()[1:])


@pytest.fixture
def sniff(routed: Network) -> Iterator[Callable[..., Sniffing]]:
    with contextlib.ExitStack() as started:

        def start(*arguments: str) -> Sniffing:
            made = Sniffing(routed, *arguments)
            started.callback(made.stop)
            return made

        yield start


@pytest.fixture
def configuration(tmp_path: Path) -> str:
    path = tmp_path / "fastmasq.toml"
    path.write_text(CONFIGURATION.format(socket=tmp_path / "none.sock"))
    return str(path)


def test_h_80_a_pptp_session_that_works(routed: Network, sniff: Callable[..., Sniffing], configuration: str) -> None:
    sniffing = sniff("inside", "outside", "-c", configuration)
    with PptpServer(routed):
        assert fastmasq(routed, "test", "pptp", SERVER_ADDRESS, "--call").returncode == 0
    status, output = sniffing.end()
    assert status == 0, output
    assert output.startswith("eth0, inside\neth1, outside\n")
    for link, way in (("eth0", "in "), ("eth1", "out")):
        assert f"{link} {way} {CLIENT} -> {SERVER_ADDRESS}  PPTP connects" in output
        assert f"{link} {way} {CLIENT} -> {SERVER_ADDRESS}  PPTP Outgoing call request (Call ID " in output
        assert f"{link} {way} {CLIENT} -> {SERVER_ADDRESS}  GRE Call ID 4711, sequence 0, 8 octets" in output
    assert f"eth1 in  {SERVER_ADDRESS} -> {CLIENT}  PPTP accepts the connection" in output
    assert "Start reply (host 'vpn.example', vendor 'scapy'): accepted" in output
    assert f"ok      pptp {CLIENT} <-> {SERVER_ADDRESS}: works: both channels go both ways" in output
    assert "gre 1 out 1 in" in output
    lines = [line.split(maxsplit=1) for line in output.splitlines() if line[2:3] == ":"]
    assert [time for time, _ in lines] == sorted(time for time, _ in lines)
    assert [text for _, text in lines if "PPTP connects" in text] == [
        f"eth0 in  {CLIENT} -> {SERVER_ADDRESS}  PPTP connects",
        f"eth1 out {CLIENT} -> {SERVER_ADDRESS}  PPTP connects",
    ]


@pytest.mark.parametrize(("host", "point"), [("gateway", 2), ("router", 7), ("inside", 1)])
def test_h_72_gre_that_is_lost(
    routed: Network, sniff: Callable[..., Sniffing], configuration: str, host: str, point: int
) -> None:
    drop(routed, host, "ip protocol gre", hook="output" if host == "inside" else "forward")
    sniffing = sniff("inside", "outside", "-c", configuration, "--json")
    with PptpServer(routed, sends_gre=host != "inside"):
        fastmasq(routed, "test", "pptp", SERVER_ADDRESS, "--call", "--wait", "0.5")
    status, output = sniffing.end()
    (finding,) = json.loads(output)["findings"]
    assert (status, finding["good"], finding["missing"], finding["point"]) == (1, False, "gre", point)
    assert (finding["near"], finding["far"]) == (CLIENT, SERVER_ADDRESS)


def test_h_72_a_masquerade_that_knows_no_calls(net: Network, tmp_path: Path) -> None:
    """The kernel's, without its PPTP helper: GRE of the server comes to the gateway, and no further."""
    configuration = tmp_path / "fastmasq.toml"
    configuration.write_text(CONFIGURATION.format(socket=tmp_path / "none.sock"))
    with KernelMasquerade(net.lab), PptpServer(net):
        sniffing = Sniffing(net, "inside", "outside", "-c", str(configuration), "--json")
        done = fastmasq(net, "test", "pptp", SERVER_ADDRESS, "--call", "--wait", "0.5")
        status, output = sniffing.end()
    (finding,) = json.loads(output)["findings"]
    assert "no GRE came back" in done.stdout
    assert (status, finding["near"], finding["missing"], finding["point"]) == (1, INSIDE_ADDRESS, "gre", 8)
    assert "does not know whose it is" in finding["hint"]


def test_h_71_esp_that_goes_one_way_on_a_link_of_unknown_side(
    routed: Network, sniff: Callable[..., Sniffing], tmp_path: Path
) -> None:
    """ISAKMP is real UDP from 500 to 500; ESP is sent by a raw socket, and the router drops it."""
    drop(routed, "router", "ip protocol esp")
    sniffing = sniff("eth1", "--socket", str(tmp_path / "none.sock"))
    near, far = routed.udp("inside", port=500), routed.udp("server", port=500)
    for cookie, exchange in ((bytes(8), 2), (b"respond1", 32)):
        message = ISAKMP(init_cookie=b"initiat1", resp_cookie=cookie, exch_type=exchange)
        near.sendto(bytes(message), (SERVER_ADDRESS, 500))
        _, client = far.recvfrom(2048)
        far.sendto(bytes(ISAKMP(init_cookie=b"initiat1", resp_cookie=b"respond1", exch_type=exchange)), client)
        near.recv(2048)
    raw = routed.raw("inside", socket.IPPROTO_ESP)
    raw.sendto(bytes.fromhex("abcd1234 00000001") + bytes(32), (SERVER_ADDRESS, 0))
    status, output = sniffing.end()
    assert status == 1
    assert "ISAKMP identity protection (main mode), cookies 696e697469617431/0000000000000000" in output
    assert "ISAKMP quick mode, cookies 696e697469617431/726573706f6e6431" in output
    assert f"{CLIENT} -> {SERVER_ADDRESS}  ESP SPI 0xabcd1234, sequence 1, 40 octets" in output
    assert f"MISSING ipsec {CLIENT} <-> {SERVER_ADDRESS}: ESP (IP protocol 50) is sent and nothing comes back" in output
    assert f"fastmasq traceroute --esp {SERVER_ADDRESS}" in output


def test_an_icmp_error_names_who_refuses(routed: Network, sniff: Callable[..., Sniffing], configuration: str) -> None:
    sniffing = sniff("inside", "outside", "-c", configuration)
    near = routed.asking("inside", (SERVER_ADDRESS, 500))
    near.send(bytes(ISAKMP(init_cookie=b"initiat1", exch_type=2)))
    with pytest.raises(ConnectionRefusedError):
        near.recv(2048)
    status, output = sniffing.end()
    assert status == 1
    assert f"ICMP port unreachable, about {CLIENT} -> {SERVER_ADDRESS} ISAKMP" in output
    assert f"{SERVER_ADDRESS} says port unreachable about ISAKMP (UDP port 500)" in output


def test_a_link_that_goes_down_is_heard_again(
    routed: Network, sniff: Callable[..., Sniffing], configuration: str
) -> None:
    sniffing = sniff("inside", "outside", "-c", configuration, "--json")
    routed.ip("gateway", "link set eth0 down")
    assert "eth0 went down" in sniffing.next_error()
    routed.ip("gateway", "link set eth0 up")
    fastmasq(routed, "test", "pptp", SERVER_ADDRESS, "--wait", "10")
    _, output = sniffing.end()
    (finding,) = json.loads(output)["findings"]
    assert (finding["near"], finding["said"]) == (CLIENT, "the server refuses the connection")


def test_watching_ends_by_time_and_by_count(routed: Network, sniff: Callable[..., Sniffing], tmp_path: Path) -> None:
    alone = ["--socket", str(tmp_path / "none.sock")]
    done = fastmasq(routed, "sniff", "eth0", "--seconds", "0.1", *alone)
    assert done.returncode == 1
    assert "Nothing of a VPN was seen" in done.stdout
    sniffing = sniff("eth0", "--count", "2", "--json", *alone)
    fastmasq(routed, "test", "pptp", SERVER_ADDRESS)
    eventually(lambda: sniffing._process.poll() is not None)
    status, output = sniffing.end()
    report = json.loads(output)
    assert (status, report["packets"]) == (1, 2)
    assert report["findings"][0]["said"] == "the server refuses the connection"


def test_h_81_a_capture_that_scapy_and_tcpdump_read(
    routed: Network, sniff: Callable[..., Sniffing], configuration: str, tmp_path: Path
) -> None:
    """One file for both links: what was counted, with times, links and ways, octet by octet as it was sent."""
    path = tmp_path / "vpn.pcapng"
    sniffing = sniff("inside", "outside", "-c", configuration, "--json", "--write", str(path))
    with PptpServer(routed):
        assert fastmasq(routed, "test", "pptp", SERVER_ADDRESS, "--call").returncode == 0
    status, output = sniffing.end()
    report = json.loads(output)
    packets = rdpcap(str(path))
    assert (status, len(packets)) == (0, report["packets"])
    assert [float(packet.time) for packet in packets] == sorted(float(packet.time) for packet in packets)
    opening = [packet for packet in packets if TCP in packet and packet[TCP].flags == "S"]
    assert [(packet[IP].src, packet[IP].dst, packet[TCP].dport) for packet in opening] == [
        (CLIENT, SERVER_ADDRESS, PPTP_PORT)
    ] * 2
    data = [packet[GRE_PPTP] for packet in packets if GRE_PPTP in packet and packet[IP].src == CLIENT]
    assert [(header.call_id, len(header.payload)) for header in data] == [(4711, 8)] * 2
    assert bytes(data[0]) == bytes(data[1]), "the gateway routes: GRE is the same on both sides"
    read = RawPcapNgReader(str(path))
    ways = {(meta.ifname, meta.direction) for _, meta in read}
    assert ways == {(link, way) for link in (b"eth0", b"eth1") for way in (1, 2)}, "received and sent on each"
    listed = subprocess.run(["tcpdump", "-nr", str(path)], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == len(packets)
    assert f"IP {CLIENT} > {SERVER_ADDRESS}: GREv1" in listed.stdout


def test_a_sniffer_beside_a_running_fastmasq(net: Network) -> None:
    """Sides come from the forwarder, which sends past the queue where it can: the sniffer knows and says so."""
    net.start()
    hidden = [link["name"] for link in net.status()["links"] if link["qdisc_bypass"]]
    sniffing = Sniffing(net, "inside", "outside", "--socket", str(net.fastmasq.socket))
    with PptpServer(net):
        done = net.lab.exec("inside", [*FASTMASQ, "test", "pptp", SERVER_ADDRESS], capture_output=True, text=True)
    status, output = sniffing.end()
    assert done.returncode == 0, done.stdout
    assert status == 0, output
    assert output.startswith("eth0, inside\n")
    assert [line.split(":")[0] for line in output.splitlines() if "passes no queue" in line] == hidden
    pair = f"pptp {INSIDE_ADDRESS} <-> {SERVER_ADDRESS}"
    assert f"-       {pair}: the control connection works; no call was made" in output


def test_h_69_a_trace_through_a_running_fastmasq(net: Network) -> None:
    net.start()
    status, report = trace(net, "--gre")
    assert (status, report["verdict"]) == (0, "reached"), report
    assert addresses(report, "gre") == addresses(report, "udp") == [GATEWAY_INSIDE, ROUTER, SERVER_ADDRESS]


@pytest.mark.parametrize("protocol", ["gre", "esp"])
def test_h_69_a_trace_from_the_gateway_beside_a_running_fastmasq(net: Network, protocol: str) -> None:
    net.start()
    status, report = trace(net, f"--{protocol}", host="gateway")
    assert (status, report["verdict"]) == (0, "reached"), report
    assert addresses(report, protocol) == addresses(report, "udp") == [ROUTER, SERVER_ADDRESS]


def test_h_61_a_call_through_a_running_fastmasq(net: Network) -> None:
    net.start()
    sniffing = Sniffing(net, "inside", "outside", "--socket", str(net.fastmasq.socket), "--json")
    with PptpServer(net):
        done = fastmasq(net, "test", "pptp", SERVER_ADDRESS, "--call")
    assert done.returncode == 0, done.stdout
    status, output = sniffing.end()
    (finding,) = json.loads(output)["findings"]
    assert (status, finding["good"], finding["near"]) == (0, True, INSIDE_ADDRESS)
