"""Inside hosts that tell the gateway their SPIs over the lab, and the ESP that passes at once for it (section 4.8)."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastmasq
from fastmasq.advice.templates import FOLDER
from fastmasq.errors import FastmasqError
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.wire.numbers import ESP
from tests.support.lab_network import GATEWAY_INSIDE, INSIDE_ADDRESS, Network, eventually

PORT = 4555
INSIDE2_ADDRESS = "10.0.0.3"
KEYS = {"inside": "the-key-of-the-first", "inside2": "the-key-of-the-other"}
SA = {"remote": SERVER_ADDRESS, "inbound_spi": 0x5000, "outbound_spi": 0x1000}
OTHER_SA = {"remote": SERVER_ADDRESS, "inbound_spi": 0x6000, "outbound_spi": 0x2000}


def start(net: Network, more: str = "") -> Path:
    """Start fastmasq with the keys of both inside hosts; return their file."""
    keys = net.lab.directory / "preload.keys"
    keys.touch(0o600)
    keys.write_text(f"{INSIDE_ADDRESS} {KEYS['inside']}\n{INSIDE2_ADDRESS} {KEYS['inside2']}\n")
    net.start(f'[vpn]\npreload = {PORT}\npreload_keys = "{keys}"\n{more}')
    return keys


@pytest.fixture
def gateway(net: Network) -> Network:
    start(net)
    return net


class Asking:
    """A connection of an inside host to the gateway, by the description of the protocol."""

    def __init__(self, net: Network, host: str, gateway: str = GATEWAY_INSIDE) -> None:
        self.key = KEYS[host]
        self.connection = net.connect(host, (gateway, PORT))
        self.stream = self.connection.makefile("rb")
        self.challenge = json.loads(self.stream.readline())["challenge"]

    def line(self, method: str, key: str | None = None, **params: object) -> bytes:
        request = json.dumps({"method": method, "params": params})
        text = f"fastmasq-spi 1\n{self.challenge}\n{request}".encode()
        mac = hmac.new((key or self.key).encode(), text, hashlib.sha256).hexdigest()
        return json.dumps({"request": request, "mac": mac}).encode() + b"\n"

    def send(self, line: bytes) -> dict[str, Any]:
        self.connection.sendall(line)
        return json.loads(self.stream.readline())


def ask(net: Network, host: str, method: str, **params: object) -> dict[str, Any]:
    asking = Asking(net, host)
    return asking.send(asking.line(method, **params))


def add(net: Network, host: str, **sa: object) -> dict[str, Any]:
    return ask(net, host, "esp.change", do="add", **sa)


def hear(raw: socket.socket) -> tuple[str, int]:
    """Return source and SPI of the next ESP packet."""
    packet, (source, _) = raw.recvfrom(2048)
    return source, struct.unpack_from(">I", packet, 20)[0]


def send(raw: socket.socket, to: str, spi: int) -> None:
    raw.sendto(struct.pack(">II", spi, 1) + b"secret", (to, 0))


def reason(answer: dict[str, Any]) -> str:
    return answer["error"]["reason"]


# -- the socket --------------------------------------------------------------------------------------------------------


def test_h103_announced_sas_pass_both_ways_at_once(gateway: Network) -> None:
    """Two hosts start with one server at the same time: without preloading one of them would wait."""
    net = gateway
    assert add(net, "inside", **SA) == add(net, "inside2", **OTHER_SA) == {"result": {"changed": 1}}
    hosts = {host: net.raw(host, ESP) for host in ("inside", "inside2", "server")}
    for _ in range(2):  # what comes in first goes first, too
        send(hosts["server"], EXTERNAL_ADDRESS, 0x6000)
        send(hosts["server"], EXTERNAL_ADDRESS, 0x5000)
        assert hear(hosts["inside"]) == (SERVER_ADDRESS, 0x5000)
        assert hear(hosts["inside2"]) == (SERVER_ADDRESS, 0x6000)
        for host, spi in (("inside", 0x1000), ("inside2", 0x2000)):
            send(hosts[host], SERVER_ADDRESS, spi)
            assert hear(hosts["server"]) == (EXTERNAL_ADDRESS, spi)
    assert net.drops() == {}


def test_a_host_speaks_for_its_own_address_alone(gateway: Network) -> None:
    net = gateway
    assert reason(add(net, "inside2", **SA, inside=INSIDE_ADDRESS)) == "EPERM"
    assert add(net, "inside", **SA, inside=INSIDE_ADDRESS) == {"result": {"changed": 1}}
    assert reason(add(net, "inside2", **SA)) == "EEXIST"
    assert ask(net, "inside2", "esp") == {"result": []}
    assert ask(net, "inside2", "esp.change", do="flush") == {"result": {"changed": 0}}
    assert len(ask(net, "inside", "esp")["result"]) == 1


def test_a_wrong_key_and_a_replay_are_refused(gateway: Network) -> None:
    net = gateway
    asking = Asking(net, "inside2")
    assert reason(asking.send(asking.line("esp", key=KEYS["inside"]))) == "EPERM"
    asking = Asking(net, "inside")
    line = asking.line("esp.change", do="add", **SA)
    assert "result" in asking.send(line)
    assert ask(net, "inside", "esp.change", do="flush") == {"result": {"changed": 1}}
    assert reason(Asking(net, "inside").send(line)) == "EPERM"
    assert ask(net, "inside", "esp") == {"result": []}
    assert "has another key than in" in net.fastmasq.errors()


def test_an_address_without_a_key_is_refused(gateway: Network) -> None:
    gateway.ip("inside2", f"address del {INSIDE2_ADDRESS}/8 dev eth0")
    gateway.ip("inside2", "address add 10.0.0.4/8 dev eth0")
    connection = gateway.connect("inside2", (GATEWAY_INSIDE, PORT))
    with connection.makefile("rb") as stream:
        assert "10.0.0.4 has no key on this gateway" in json.loads(stream.readline())["error"]["message"]
        assert stream.readline() == b""


def test_nobody_outside_is_listened_to(gateway: Network) -> None:
    """Not even who routes an inside address through the gateway; another program there is reached that way."""
    net = gateway
    net.ip("router", f"route add {GATEWAY_INSIDE} via {EXTERNAL_ADDRESS}")
    net.listen("gateway", GATEWAY_INSIDE, PORT + 1)
    net.connect("router", (GATEWAY_INSIDE, PORT + 1))
    for address in (GATEWAY_INSIDE, EXTERNAL_ADDRESS):
        with pytest.raises(OSError):
            net.connect("router", (address, PORT), timeout=1)


def test_a_tight_input_chain_needs_the_line_of_the_manual(net: Network) -> None:
    line = f"ipchains -A input -i eth0 -s 10.0.0.0/8 -d {GATEWAY_INSIDE}/32 {PORT} -p tcp -j ACCEPT"
    assert line in (Path(fastmasq.__file__).parent / "manual/vpn.md").read_text()
    rules = net.lab.directory / "rc.firewall"
    rules.write_text(f"ipchains -P input DENY\n{line}\n")
    start(net, f'[rules]\nfiles = ["{rules}"]')
    net.listen("gateway", GATEWAY_INSIDE, PORT + 1)
    assert "result" in add(net, "inside", **SA)
    with pytest.raises(TimeoutError):
        net.connect("inside", (GATEWAY_INSIDE, PORT + 1), timeout=0.5)


def test_listeners_follow_the_inside_addresses(gateway: Network) -> None:
    net = gateway

    def answers(address: str) -> bool:
        try:
            return bool(Asking(net, "inside", address).challenge)
        except OSError:
            return False

    net.ip("gateway", "address add 10.0.0.9/8 dev eth0")
    eventually(lambda: answers("10.0.0.9"), what="an answer on the new address")
    net.ip("gateway", "address del 10.0.0.9/8 dev eth0")
    eventually(lambda: not answers("10.0.0.9"), what="silence")
    assert answers(GATEWAY_INSIDE)


def test_slow_hosts_do_not_stop_the_gateway(gateway: Network) -> None:
    net = gateway
    slow = [Asking(net, "inside") for _ in range(4)]
    slow[0].connection.sendall(b'{"request": ')
    assert net.status()["version"]
    assert "result" in ask(net, "inside2", "esp")
    assert b"no request within" in slow[3].stream.readline()


@pytest.mark.parametrize(
    ("keys", "said"), [(None, "No such file or directory; write a line"), ("10.0.0.2\n", ":1: not ADDRESS KEY")]
)
def test_no_start_without_a_key_file(net: Network, keys: str | None, said: str) -> None:
    path = net.lab.directory / "preload.keys"
    if keys is not None:
        path.touch(0o600)
        path.write_text(keys)
    with pytest.raises(FastmasqError, match=said):
        net.start(f'[vpn]\npreload = {PORT}\npreload_keys = "{path}"\n')


def test_a_port_that_is_taken(net: Network) -> None:
    net.listen("gateway", GATEWAY_INSIDE, PORT)
    with pytest.raises(
        FastmasqError, match=rf"preload: {GATEWAY_INSIDE}:{PORT}: Address already in use; choose another"
    ):
        start(net)


# -- the command line --------------------------------------------------------------------------------------------------


def test_h103_fastmasq_esp(gateway: Network) -> None:
    run = gateway.fastmasq.run_command
    ends = ("--inside", INSIDE_ADDRESS, "--remote", SERVER_ADDRESS)
    assert run("esp", "add", *ends, "--inbound", "0x5000", "--outbound", "0x1000", "--lifetime", "until-deleted") == ""
    with pytest.raises(FastmasqError, match=f"ended with 1: fastmasq: SPI 5000 from {SERVER_ADDRESS} belongs to"):
        run("esp", "add", "--inside", INSIDE2_ADDRESS, *ends[2:], "--inbound", "0x5000")
    run("esp", "replace", "--inside", INSIDE2_ADDRESS, *ends[2:], "--inbound", "0x5000")
    [row] = json.loads(run("esp", "list", "--json"))
    assert (row["inside"], row["masq"], row["inbound_spi"]) == (INSIDE2_ADDRESS, EXTERNAL_ADDRESS, 0x5000)
    server, inside2 = gateway.raw("server", ESP), gateway.raw("inside2", ESP)
    send(server, EXTERNAL_ADDRESS, 0x5000)
    assert hear(inside2) == (SERVER_ADDRESS, 0x5000)
    run("esp", "delete", "--remote", SERVER_ADDRESS, "--inbound", "0x5000")
    with pytest.raises(FastmasqError, match="ended with 1: fastmasq: no SA with SPI 5000"):
        run("esp", "delete", "--remote", SERVER_ADDRESS, "--inbound", "0x5000")
    run("esp", "add", *ends, "--inbound", "0x5001")
    run("esp", "flush")
    assert json.loads(run("esp", "list", "--json")) == []


def test_with_ipsec_off(net: Network) -> None:
    net.start("[vpn]\nipsec = false")
    with pytest.raises(FastmasqError, match="ended with 1: fastmasq: IPsec is not followed"):
        net.fastmasq.run_command("esp", "list")


# -- the programs for inside hosts -------------------------------------------------------------------------------------

FAKE_IP = """#!/bin/sh
case "$*" in
    "-s xfrm state") exec cat {folder}/state ;;
    "xfrm monitor SA expire") exec cat {folder}/changes ;;
esac
exit 1
"""
FAKE_IPSEC = '#!/bin/sh\necho "$*" "$PLUTO_VERB" >> {folder}/routed\nexit 3\n'


class InsideHost:
    """An inside host with fastmasq-spi and an IKE daemon's scripts; what its kernel knows is played by a program."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.folder = net.lab.directory / "spi"
        self.folder.mkdir()
        self.install("fastmasq-spi", (FOLDER / "updown/fastmasq-spi").read_text())
        self.install("ip", FAKE_IP.format(folder=self.folder))
        self.install("ipsec", FAKE_IPSEC.format(folder=self.folder))
        self.configure("inside")
        os.mkfifo(self.folder / "changes")
        self.changes = os.open(self.folder / "changes", os.O_RDWR | os.O_NONBLOCK)
        self.sas()

    def install(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def configure(self, key_of: str) -> None:
        path = self.folder / "spi.conf"
        path.touch(0o600)
        path.write_text(f"gateway = {GATEWAY_INSIDE}  # the near end\nport = {PORT}\nkey = {KEYS[key_of]}\n")

    def sas(self, *pairs: tuple[int, int]) -> None:
        """Have the kernel know these pairs of inbound and outbound SPIs, oldest first, and tell of the change."""
        blocks = [
            f"src {source} dst {destination}\n\tproto esp spi 0x{spi:08x} reqid 1 mode tunnel\n"
            f"\tlifetime current:\n\t  add 2026-11-26 19:00:{number:02d} use -\n"
            for number, pair in enumerate(pairs)
            for source, destination, spi in zip(
                (SERVER_ADDRESS, INSIDE_ADDRESS), (INSIDE_ADDRESS, SERVER_ADDRESS), pair, strict=True
            )
            if spi
        ]
        new = self.folder / "state.new"
        new.write_text("".join(blocks))
        new.rename(self.folder / "state")
        os.write(self.changes, b"Updated src ...\n")

    def run(self, *argv: str, **environment: str) -> subprocess.CompletedProcess:
        variables = [f"{name}={value}" for name, value in self.environment(environment).items()]
        argv = ("env", "-i", *variables, *argv)
        return self.net.lab.exec("inside", argv, capture_output=True, text=True, timeout=20)

    def spi(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.run(str(self.folder / "fastmasq-spi"), *arguments)

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        return {
            "PATH": f"{self.folder}:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "FASTMASQ_SPI": str(self.folder / "fastmasq-spi"),
            "FASTMASQ_SPI_CONF": str(self.folder / "spi.conf"),
            "FASTMASQ_SPI_LOCK": str(self.folder / "lock"),
            **more,
        }

    def told(self) -> list[tuple[int, int]]:
        """Return what the gateway was told, as pairs of inbound and outbound SPI."""
        rows = json.loads(self.net.fastmasq.run_command("esp", "list", "--json"))
        assert all((row["inside"], row["remote"]) == (INSIDE_ADDRESS, SERVER_ADDRESS) for row in rows)
        return sorted((row["inbound_spi"], row["outbound_spi"] or 0) for row in rows)

    def watchers(self) -> list[int]:
        """Return the processes of `fastmasq-spi watch` on the host."""
        found = []
        for pid in self.net.lab.processes()["inside"]:
            with contextlib.suppress(OSError):
                if "watch" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                    found.append(pid)
        return found

    def close(self) -> None:
        for pid in self.watchers():
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: not self.watchers(), what="the end of the watcher")
        os.close(self.changes)


@pytest.fixture
def inside(gateway: Network) -> Iterator[InsideHost]:
    host = InsideHost(gateway)
    yield host
    host.close()


def test_the_client_adds_lists_and_deletes(inside: InsideHost) -> None:
    assert inside.spi("add", SERVER_ADDRESS, "0x5000", "0x1000", "--lifetime", "600").returncode == 0
    [row] = json.loads(inside.spi("list").stdout)
    assert (row["inside"], row["inbound_spi"], row["lifetime_s"]) == (INSIDE_ADDRESS, 0x5000, 600)
    assert inside.told() == [(0x5000, 0x1000)]
    assert inside.spi("delete", SERVER_ADDRESS, "0x5000").returncode == 0
    gone = inside.spi("delete", SERVER_ADDRESS, "0x5000")
    assert (gone.returncode, gone.stderr) == (
        1,
        f"fastmasq-spi: the gateway says: no SA with SPI 5000 from {SERVER_ADDRESS}\n",
    )
    inside.spi("add", SERVER_ADDRESS, "0x5001", "--lifetime", "until-deleted")
    assert inside.spi("flush").returncode == 0 and inside.told() == []


def test_the_client_with_a_wrong_key(inside: InsideHost) -> None:
    inside.configure("inside2")
    done = inside.spi("list")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"the key is not that of {INSIDE_ADDRESS}" in done.stderr


def test_the_client_follows_the_kernel(inside: InsideHost) -> None:
    inside.sas((0x5000, 0x1000))
    assert inside.spi("sync").returncode == 0 and inside.told() == [(0x5000, 0x1000)]
    inside.sas((0x5000, 0x1000), (0x5001, 0x1001))  # a rekeying begins
    assert inside.spi("sync").returncode == 0 and inside.told() == [(0x5000, 0x1000), (0x5001, 0x1001)]
    inside.sas((0x5001, 0x1001))
    assert inside.spi("sync").returncode == 0 and inside.told() == [(0x5001, 0x1001)]


def listens_to_xfrm(net: Network, host: str) -> bool:
    """Return whether a program on a host has subscribed to changes of SAs (protocol 6 of netlink)."""
    rows = [line.split() for line in net.run(host, "cat", "/proc/net/netlink").splitlines()[1:]]
    return any(protocol == "6" and int(groups, 16) for _, protocol, _, groups, *_ in rows)


def test_the_client_with_a_real_kernel(inside: InsideHost) -> None:
    """As far as a kernel without ESP goes: an SPI that is allocated, and given up again."""
    (inside.folder / "ip").unlink()
    ends = ("src", SERVER_ADDRESS, "dst", INSIDE_ADDRESS, "proto", "esp")
    allocate = ("ip", "xfrm", "state", "allocspi", *ends, "mode", "tunnel", "min", "0x5000", "max", "0x5000")
    inside.net.run("inside", *allocate)
    done = inside.spi("sync")
    assert (done.returncode, done.stderr, inside.told()) == (0, "", [(0x5000, 0)])
    inside.spi("watch", "--background")
    eventually(lambda: listens_to_xfrm(inside.net, "inside"), what="the watcher")
    inside.net.run("inside", "ip", "xfrm", "state", "delete", *ends, "spi", "0x5000")
    eventually(lambda: inside.told() == [], what="the end of the SA")


def strongswan(verb: str, **more: str) -> dict[str, str]:
    """Return what the plugin updown of strongSwan 5.9 puts into the environment, as far as it matters."""
    return {
        "PLUTO_VERSION": "1.1",
        "PLUTO_VERB": verb,
        "PLUTO_CONNECTION": "home",
        "PLUTO_INTERFACE": "eth0",
        "PLUTO_REQID": "1",
        "PLUTO_PROTO": "esp",
        "PLUTO_ME": INSIDE_ADDRESS,
        "PLUTO_PEER": SERVER_ADDRESS,
        "PLUTO_PEER_CLIENT": "192.168.7.0/24",
        **more,
    }


def libreswan(verb: str, **more: str) -> dict[str, str]:
    """Return the same for libreswan 4.10; SPI_IN is the SPI of what goes out."""
    return {
        "PLUTO_VERB": verb,
        "PLUTO_CONNECTION": "home",
        "PLUTO_SA_REQID": "16389",
        "PLUTO_SA_TYPE": "ESP",
        "PLUTO_ME": INSIDE_ADDRESS,
        "PLUTO_PEER": SERVER_ADDRESS,
        "SPI_IN": "0x1000",
        "SPI_OUT": "0x5000",
        **more,
    }


@pytest.mark.parametrize(("name", "variables"), [("strongswan", strongswan), ("libreswan", libreswan)])
def test_updown_scripts(inside: InsideHost, name: str, variables: Callable[..., dict[str, str]]) -> None:
    """Up, a rekeying that only the kernel tells of, and down; what the scripts are told of SPIs is not used."""
    net, status = inside.net, {"strongswan": 0, "libreswan": 3}[name]
    inside.install("updown", (FOLDER / f"updown/{name}.sh").read_text())
    updown = str(inside.folder / "updown")
    inside.sas((0x5000, 0x1000))
    done = inside.run(updown, **variables("up-client"))
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    assert inside.told() == [(0x5000, 0x1000)]
    server, host = net.raw("server", ESP), net.raw("inside", ESP)
    send(server, EXTERNAL_ADDRESS, 0x5000)
    assert hear(host) == (SERVER_ADDRESS, 0x5000)
    eventually(lambda: len(inside.watchers()) == 1, what="the watcher")
    inside.sas((0x5000, 0x1000), (0x5001, 0x1001))
    eventually(lambda: inside.told() == [(0x5000, 0x1000), (0x5001, 0x1001)], what="the rekeyed SA")
    inside.sas((0x5001, 0x1001))
    eventually(lambda: inside.told() == [(0x5001, 0x1001)], what="the end of the old SA")
    assert inside.run(updown, **variables("up-client")).returncode == status
    assert len(inside.watchers()) == 1
    inside.sas()
    assert inside.run(updown, **variables("down-client")).returncode == status
    assert inside.told() == []
    if name == "libreswan":
        routed = (inside.folder / "routed").read_text().splitlines()
        assert routed == ["_updown up-client", "_updown up-client", "_updown down-client"]


def test_a_gateway_that_is_away_keeps_no_tunnel_down(inside: InsideHost) -> None:
    inside.net.fastmasq.remove()
    inside.sas((0x5000, 0x1000))
    inside.install("updown", (FOLDER / "updown/strongswan.sh").read_text())
    done = inside.run(str(inside.folder / "updown"), **strongswan("up-host"))
    assert done.returncode == 0
    assert done.stderr.startswith("fastmasq-spi: 10.0.0.1 port 4555: Connection refused")


def test_esp_in_udp_and_ah_are_left_alone(inside: InsideHost) -> None:
    inside.sas((0x5000, 0x1000))
    inside.install("updown", (FOLDER / "updown/strongswan.sh").read_text())
    for more in ({"PLUTO_UDP_ENC": "4500"}, {"PLUTO_PROTO": "ah"}):
        assert inside.run(str(inside.folder / "updown"), **strongswan("up-client", **more)).returncode == 0
    assert inside.told() == [] and inside.watchers() == []
