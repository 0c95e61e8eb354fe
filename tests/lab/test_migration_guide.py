"""The manual's guide to moving to fastmasq: its commands are run as they stand, while traffic goes through it all."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastmasq
from fastmasq.lab import hosts
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import INSIDE_ADDRESS, Network, eventually

GUIDE = Path(fastmasq.__file__).parent / "manual/migration.md"
BLOCK = re.compile(r"<!-- (runs|back): ([\w ]+) -->\n```\n(.*?)```", re.DOTALL)
FOREGROUND = re.compile(r"fastmasq run\b")
GREETING = b"welcome"

IPTABLES = f"""
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -i eth1 -p tcp -m tcp --dport 8080 -j DNAT --to-destination {INSIDE_ADDRESS}:80
-A POSTROUTING -o eth1 -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i eth0 -o eth1 -j ACCEPT
-A FORWARD -d {INSIDE_ADDRESS}/32 -i eth1 -p tcp -m tcp --dport 80 -j ACCEPT
COMMIT
"""
NFTABLES = f"""
table ip nat {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname "eth1" tcp dport 8080 dnat to {INSIDE_ADDRESS}:80
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "eth1" masquerade
    }}
}}
table ip filter {{
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "eth0" oifname "eth1" accept
        ip daddr {INSIDE_ADDRESS} tcp dport 80 iifname "eth1" accept
    }}
}}
"""
RULES = {"iptables": ("iptables-restore", IPTABLES), "nftables": ("nft -f -", NFTABLES)}


class Shell:
    """A shell on the gateway with an /etc and a /run of its own; what runs in the foreground goes on."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self._folder = net.lab.directory / "gateway/shell"
        self._running: subprocess.Popen | None = None
        (self._folder / "run").mkdir(parents=True)
        shutil.copytree("/etc", self._folder / "etc", symlinks=True, ignore_dangling_symlinks=True)

    def argv(self, script: str) -> list[str]:
        mounts = " && ".join(f"mount --bind {self._folder / name} /{name}" for name in ("etc", "run"))
        programs = Path(sys.executable).parent
        return ["sh", "-c", f"{mounts} && export PATH={programs}:$PATH && set -e && {script}"]

    def do(self, script: str) -> str:
        """Do a block of the guide; one that stays in the foreground returns once it has said its line."""
        if not FOREGROUND.match(script):
            return self._net.run("gateway", *self.argv(script))
        self.interrupt()
        log = self._folder / "output"
        with log.open("wb") as output:
            self._running = self._net.lab.popen("gateway", self.argv(f"exec {script}"), stdout=output)
        assert hosts.wait_until(lambda: log.read_bytes().endswith(b"\n") or self._running.poll() is not None, 15)
        assert self._running.poll() is None
        return log.read_text()

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait for the end of what runs."""
        if self._running is not None:
            self._running.send_signal(signal.SIGINT)
            assert self._running.wait(10) == 0
            self._running = None


@pytest.fixture
def shell(net: Network) -> Iterator[Shell]:
    made = Shell(net)
    yield made
    made.interrupt()


def blocks(kind: str, route: str) -> list[str]:
    return [script.strip() for marked, routes, script in BLOCK.findall(GUIDE.read_text())
            if marked == kind and route in routes.split()]  # fmt: skip


def works(net: Network) -> None:
    """Assert that an inside host gets out and that strangers get to the forwarded server."""
    assert net.answers("inside", SERVER_ADDRESS)
    assert net.connect("server", (EXTERNAL_ADDRESS, 8080)).recv(100) == GREETING


def rules(shell: Shell) -> list[str]:
    """Return the kernel's rules without counters, and policies of filters; tables and chains in any order."""
    text = re.sub(r"counter packets \d+ bytes \d+", "counter", shell.do("nft list ruleset"))
    lines = [line.strip() for line in text.splitlines()]
    return sorted(line for line in lines if line not in ("", "}") and not re.match(r"table|chain|type nat", line))


@pytest.mark.parametrize("route", RULES)
def test_the_commands_of_the_guide(net: Network, shell: Shell, route: str) -> None:
    program, text = RULES[route]
    shell.do(f"{program} <<END\n{text}\nEND")
    hosts.set_sysctls(net.lab.namespace("gateway"), ipv4__ip_forward=1)
    net.greet_tcp(GREETING, "inside", 80)
    works(net)
    before = rules(shell)
    said = {}
    for script in blocks("runs", route):
        if script.startswith("fastmasq status"):
            works(net)
        said[script] = shell.do(script)
    observing, verifying = [text for script, text in said.items() if script.startswith("fastmasq status")]
    assert re.match(
        r"fastmasq only observes: would forward [1-9]\d* packets, would drop 0, would open [1-9]", observing
    )
    assert "-> ACCEPT" in observing or "-> MASQ" in observing, "rule trace"
    assert "ready to run" in verifying
    assert "translates sources" not in verifying
    assert "fastmasq run" in said and "is forwarding" in said["fastmasq run"]
    assert net.sysctl("gateway", "net.ipv4.ip_forward") == "0"
    works(net)
    shell.interrupt()
    for script in blocks("back", route):
        shell.do(script)
    eventually(lambda: net.sysctl("gateway", "net.ipv4.ip_forward") == "1")
    assert rules(shell) == before
    works(net)
