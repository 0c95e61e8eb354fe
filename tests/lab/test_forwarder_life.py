"""Start, stop and crash: the host is exactly as before, or as safe as it was while fastmasq ran."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import (
    ECHO_PORT,
    GATEWAY_INSIDE,
    Network,
    Overheard,
    eventually,
    round_trip,
)

SETTINGS = '[masquerade]\nports = "40000-44999,61000-65095"'  # some of the host's own ephemeral ports among them
RULESET = """table inet mine {
	chain input {
		type filter hook input priority filter; policy accept;
		tcp dport 9 drop
	}
}
"""


def host_state(net: Network) -> set[str]:
    """Return everything a program could have changed on the gateway, line by line."""
    looks = {
        "sysctl": "sysctl -a -r '^net\\.ipv4\\.' 2>/dev/null | grep -v '_key ='",
        "rule": "nft list ruleset",
        "queue": "tc qdisc show; for link in eth0 eth1; do tc filter show dev $link ingress; done",
        "link": "ip -details address",
        "route": "ip route show table all",
        "file": f"ls -l {net.lab.directory}/gateway/fastmasq | grep -v -e std -e total -e toml",
    }
    return {
        f"{name}: {line}"
        for name, command in looks.items()
        for line in net.run("gateway", "sh", "-c", f"{command}; true").splitlines()
    }


def run_to_its_end(net: Network, *arguments: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess:
    """Run `fastmasq run` in the gateway as it is expected to fail; `before` is a program that starts it."""
    argv = [*before, sys.executable, "-m", "fastmasq", "run", *arguments]
    return net.lab.exec("gateway", argv, capture_output=True, text=True, timeout=20)


def assert_one_clear_line(done: subprocess.CompletedProcess, status: int, *words: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("fastmasq: "), done.stderr
    for word in words:
        assert word in done.stderr


def leaks(heard: list[Overheard]) -> list[Overheard]:
    """Return packets that came to the router with a source which is not the gateway's."""
    return [each for each in heard if not each.sent and each.source != EXTERNAL_ADDRESS]


@pytest.fixture(params=["0", "1"], ids=["router-off", "router-on"])
def used_host(request: pytest.FixtureRequest, net: Network) -> Network:
    """Return the network with a gateway that has settings, rules and queues of its own."""
    settings = (f"ip_forward={request.param}", "conf.eth0.log_martians=1", "ip_local_reserved_ports=33333")
    net.run("gateway", "sysctl", "-qw", *(f"net.ipv4.{setting}" for setting in settings))
    net.lab.exec("gateway", ["nft", "-f", "-"], input=RULESET, text=True, check=True)
    net.run("gateway", "tc", "qdisc", "add", "dev", "eth0", "clsact")
    return net


@pytest.mark.parametrize("guard", ["nftables", "tc"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_orderly_end_puts_everything_back(used_host: Network, number: signal.Signals, guard: str) -> None:
    net = used_host
    before = host_state(net)
    net.start(f'{SETTINGS}\n[takeover]\nguard = "{guard}"')
    assert net.sysctl("gateway", "net.ipv4.ip_forward") == "0"
    assert "40000" in net.sysctl("gateway", "net.ipv4.ip_local_reserved_ports")
    assert net.status()["guard"]["backend"] == guard
    assert net.answers("inside", SERVER_ADDRESS)
    process = net.fastmasq.process
    process.send_signal(number)
    assert process.wait(5) == 0
    assert host_state(net) == before


@pytest.mark.parametrize("after_s", [0.05, 0.15, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6])
def test_an_end_while_it_starts_puts_everything_back(net: Network, tmp_path: Path, after_s: float) -> None:
    net.run("gateway", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    before = host_state(net)
    links = ["--inside", "eth0", "--outside", "eth1", "--socket", str(tmp_path / "control.sock")]
    argv = [sys.executable, "-m", "fastmasq", "run", *links]
    with net.lab.popen("gateway", argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after_s)
        process.terminate()
        assert process.wait(5) in (0, -signal.SIGTERM), process.stderr.read()
    assert host_state(net) == before
    assert list(tmp_path.iterdir()) == []


def test_an_idle_gateway_is_small(net: Network) -> None:
    """All defaults, some packets, and a status: 69 MB, of which the rings have 14."""
    net.start()
    assert net.answers("inside", SERVER_ADDRESS)
    net.status()
    process = Path(f"/proc/{net.fastmasq.process.pid}")
    resident_kb = int(process.joinpath("smaps_rollup").read_text().partition("Rss:")[2].split()[0])
    assert resident_kb < 72_000
    mapped = process.joinpath("maps").read_text()
    assert [name for name in ("libcrypto", "libssl", "libsqlite3") if name in mapped] == []


LINKS = "[interfaces]\ninside = ['eth0']\noutside = 'eth1'\n"
FAILING_STARTS = {
    "no such inside link": (1, ["--inside", "eth7", "--outside", "eth1"], "eth7", "there are: eth0, eth1"),
    "inside is loopback": (1, ["--inside", "lo", "--outside", "eth1"], "lo", "loopback"),
    "no folder for the socket": (1, ["--inside", "eth0", "--outside", "eth1", "--socket", "/nowhere/s"], "/nowhere"),
    "no such configuration": (2, ["-c", "/nowhere/fastmasq.toml"], "/nowhere/fastmasq.toml"),
    "not TOML": (2, [LINKS + "ports: 1"], ".toml:4:"),
    "a misspelt key": (2, [LINKS + "[rings]\nframe = 100"], ".toml:5:", "rings.frame: unknown key"),
    "a link on both sides": (2, [LINKS.replace("eth1", "eth0")], ".toml:3:", "eth0"),
    "too large a ring": (2, [LINKS + "[rings]\nframes = 100_000"], "frames"),
}


@pytest.mark.parametrize("name", FAILING_STARTS)
def test_a_start_that_fails_says_why_and_changes_nothing(used_host: Network, tmp_path: Path, name: str) -> None:
    net = used_host
    status, arguments, *words = FAILING_STARTS[name]
    before = host_state(net)
    if arguments[0].startswith(LINKS[:12]):
        file = tmp_path / "fastmasq.toml"
        file.write_text(arguments[0] + "\n")
        arguments = ["-c", str(file)]
    if "--socket" not in arguments:
        arguments = [*arguments, "--socket", str(tmp_path / "control.sock")]
    done = run_to_its_end(net, *arguments)
    assert_one_clear_line(done, status, *words)
    assert host_state(net) == before
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".toml"] == []


@pytest.mark.parametrize(
    "before",
    [
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"],
        ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"],
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
    ],
    ids=["without-net_admin", "without-net_raw", "nobody"],
)
def test_a_start_without_privileges_changes_nothing(used_host: Network, tmp_path: Path, before: list[str]) -> None:
    net = used_host
    state = host_state(net)
    tmp_path.chmod(0o777)
    arguments = ["--inside", "eth0", "--outside", "eth1", "--socket", str(tmp_path / "control.sock")]
    done = run_to_its_end(net, *arguments, before=before)
    assert_one_clear_line(done, 1, "root")
    assert host_state(net) == state
    assert list(tmp_path.iterdir()) == []


def test_a_second_instance_leaves_the_first_alone(net: Network, tmp_path: Path) -> None:
    net.start()
    net.echo_udp()
    client = net.udp("inside")
    assert round_trip(client, (SERVER_ADDRESS, ECHO_PORT), b"before")
    before = host_state(net)
    pid = str(net.fastmasq.process.pid)
    same = run_to_its_end(net, "-c", str(net.fastmasq.configuration))
    assert_one_clear_line(same, 1, str(net.fastmasq.socket))
    other = run_to_its_end(net, "--inside", "eth0", "--outside", "eth1", "--socket", str(tmp_path / "control.sock"))
    assert_one_clear_line(other, 1, "another fastmasq", pid)
    assert list(tmp_path.iterdir()) == []
    assert host_state(net) == before
    assert round_trip(client, (SERVER_ADDRESS, ECHO_PORT), b"after")
    assert net.status()["pid"] == int(pid)


def kill(net: Network) -> None:
    net.fastmasq.process.kill()
    net.fastmasq.process.wait()


def release(net: Network) -> str:
    return net.run("gateway", sys.executable, "-m", "fastmasq", "release", "--socket", str(net.fastmasq.socket))


@pytest.mark.parametrize("guard", ["nftables", "tc"])
def test_nothing_leaks_while_dead_and_release_restores(used_host: Network, guard: str) -> None:
    net = used_host
    before = host_state(net)
    net.start(f'{SETTINGS}\n[takeover]\nguard = "{guard}"')
    net.echo_udp()
    client, (near, far) = net.udp("inside"), net.pair()
    assert round_trip(client, (SERVER_ADDRESS, ECHO_PORT), b"alive")
    outside, inside = net.sniff("router", "eth0"), net.sniff("inside", "eth0")
    kill(net)

    assert net.sysctl("gateway", "net.ipv4.ip_forward") == "0"
    near.sendall(b"up")
    far.sendall(b"down")
    for number in range(20):
        client.sendto(b"leak?", (SERVER_ADDRESS, 9000 + number))
    assert not net.answers("inside", SERVER_ADDRESS, 0.5)
    with pytest.raises(OSError):
        net.connect("inside", (SERVER_ADDRESS, 80), timeout=0.5)
    # the host itself lives on
    assert net.answers("gateway", SERVER_ADDRESS)
    assert net.answers("inside", GATEWAY_INSIDE)
    assert round_trip(net.udp("gateway"), (SERVER_ADDRESS, ECHO_PORT), b"the gateway's own")
    assert leaks(outside.packets()) == []
    assert [each for each in outside.of(sent=False, protocol=socket.IPPROTO_TCP) if each.tcp_flags & 4] == [], "a reset"
    answers = [each for each in inside.of(sent=False) if each.source != GATEWAY_INSIDE]
    assert answers == [], "somebody answered for the server"

    told = release(net)
    assert f"guard ({guard}) removed" in told
    assert host_state(net) == before
    assert "nothing to restore" in release(net)


@pytest.mark.parametrize("guard", ["nftables", "tc"])
def test_a_start_after_a_crash_adopts_and_sessions_go_on(used_host: Network, guard: str) -> None:
    net = used_host
    before = host_state(net)
    settings = f'{SETTINGS}\n[takeover]\nguard = "{guard}"'
    net.start(settings)
    near, far = net.pair(client_port=40_001)  # a port of ours: it stays the same outside, also the second time
    near.sendall(b"one")
    assert far.recv(100) == b"one"
    outside = net.sniff("router", "eth0")
    kill(net)
    near.sendall(b"two")
    net.start(settings)
    assert "adopted" in net.fastmasq.errors()
    assert far.recv(100) == b"two", "a connection from before the crash goes on"
    far.sendall(b"three")
    assert near.recv(100) == b"three"
    assert net.answers("inside", SERVER_ADDRESS)
    assert leaks(outside.packets()) == []
    net.fastmasq.remove()
    assert host_state(net) == before


def test_a_start_after_a_crash_with_other_settings(used_host: Network) -> None:
    """What the first run had changed counts as changed, whatever the second needs."""
    net = used_host
    before = host_state(net)
    net.start(f'{SETTINGS}\n[takeover]\nguard = "tc"')
    kill(net)
    net.start('[takeover]\nguard = "nftables"')
    assert net.answers("inside", SERVER_ADDRESS)
    net.fastmasq.remove()
    assert host_state(net) == before


@pytest.mark.parametrize("guard", ["nftables", "tc"])
def test_after_a_kill_status_and_check_say_what_is_left(net: Network, guard: str) -> None:
    def said(*arguments: str) -> str:
        argv = [sys.executable, "-m", "fastmasq", *arguments]
        done = net.lab.exec("gateway", argv, capture_output=True, text=True)
        return done.stdout + done.stderr

    net.start(f'[takeover]\nguard = "{guard}"')
    asked = {
        "status": ("status", "--socket", str(net.fastmasq.socket)),
        "check": ("check", "-c", str(net.fastmasq.configuration)),
    }
    left = f"has left its guard ({guard}), net.ipv4.ip_forward = 0: nothing is forwarded. Start it again, or give the"
    assert [name for name, arguments in asked.items() if "has left" in said(*arguments)] == []
    kill(net)
    for name, arguments in asked.items():
        lines = [line for line in said(*arguments).splitlines() if left in line]
        assert len(lines) == 1, f"{name}: {said(*arguments)}"
        assert "fastmasq release" in lines[0]
    assert "no fastmasq is running at" in said(*asked["status"])
    release(net)
    assert [name for name, arguments in asked.items() if "has left" in said(*arguments)] == []


def test_release_refuses_while_fastmasq_runs(net: Network) -> None:
    net.start()
    before = host_state(net)
    argv = [sys.executable, "-m", "fastmasq", "release", "--socket", str(net.fastmasq.socket)]
    done = net.lab.exec("gateway", argv, capture_output=True, text=True)
    assert_one_clear_line(done, 1, "is running")
    assert host_state(net) == before


def test_a_kernel_that_forwards_again_is_noticed(net: Network) -> None:
    net.start()
    net.run("gateway", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    eventually(lambda: "somebody set net.ipv4.ip_forward to 1; it is 0 again" in net.fastmasq.errors())
    outside = net.sniff("router", "eth0")
    assert net.answers("inside", SERVER_ADDRESS)
    assert leaks(outside.packets()) == [], "the guard stands even so"
