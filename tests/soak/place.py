"""Where the soak takes place: twenty ordinary hosts on two inside links, attackers on both sides, a way past us.

    inside    10.0.0.11-20   -+- lan (bridge) -- eth0 gateway eth1 -- router -- server 199.0.0.1
    attacker  10.9.0.66      -+                       eth2
    second    172.20.0.11-20 --------------------------+
    inside    172.31.0.1 ------------ bypass ------------------------------ server 172.31.1.1

Ten ordinary hosts are ten addresses of one namespace: a gateway sees no difference. The attacker outside sends from the
router, with whatever source it likes. What goes by `bypass`, an ordinary router, loses as much as the machine makes it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastmasq.lab import hosts
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS, Host, Lab, Network
from tests.support import candidate

ORDINARY = {
    "inside": tuple(f"10.0.0.{number}" for number in range(11, 21)),
    "second": tuple(f"172.20.0.{number}" for number in range(11, 21)),
}
ATTACKER, SECOND_GATEWAY = "10.9.0.66", "172.20.0.1"  # of no ordinary host's /24, which shares what it may have
CONTROL, CONTROL_SERVER = "172.31.0.1", "172.31.1.1"
NOWHERE = "198.18.0.1"  # the router swallows what goes there
GATEWAY_MAC = "02:00:00:00:00:01"
SERVICE_PORT, ISAKMP_PORT, CLOSED_PORT = 7, 500, 9

NETWORK = Network(
    hosts={
        "inside": Host(
            {"eth0": tuple(f"{address}/8" for address in ORDINARY["inside"]), "eth1": (f"{CONTROL}/30",)},
            ("default via 10.0.0.1", f"{CONTROL_SERVER}/32 via 172.31.0.2"),
        ),
        "attacker": Host({"eth0": (f"{ATTACKER}/8",)}, ("default via 10.0.0.1",)),
        "lan": Host({"inside": (), "attacker": (), "gateway": ()}, bridges=True),
        "second": Host(
            {"eth0": tuple(f"{address}/16" for address in ORDINARY["second"])}, (f"default via {SECOND_GATEWAY}",)
        ),
        "gateway": Host(
            {"eth0": ("10.0.0.1/8",), "eth1": (f"{EXTERNAL_ADDRESS}/24",), "eth2": (f"{SECOND_GATEWAY}/16",)},
            ("default via 200.200.200.1",),
            forwards=True,
        ),
        "router": Host(
            {"eth0": ("200.200.200.1/24",), "eth1": ("199.0.0.254/24",)},
            ("blackhole 198.18.0.0/15",),
            forwards=True,
        ),
        "server": Host(
            {"eth0": (f"{SERVER_ADDRESS}/24",), "eth1": (f"{CONTROL_SERVER}/30",)},
            ("default via 199.0.0.254", f"{CONTROL}/32 via 172.31.1.2"),
        ),
        "bypass": Host({"eth0": ("172.31.0.2/30",), "eth1": ("172.31.1.2/30",)}, forwards=True),
    },
    wires=(
        ("inside", "eth0", "lan", "inside"),
        ("attacker", "eth0", "lan", "attacker"),
        ("gateway", "eth0", "lan", "gateway"),
        ("gateway", "eth2", "second", "eth0"),
        ("gateway", "eth1", "router", "eth0"),
        ("router", "eth1", "server", "eth0"),
        ("inside", "eth1", "bypass", "eth0"),
        ("bypass", "eth1", "server", "eth1"),
    ),
)

RULES = """ipchains -A input -i eth1 -p tcp -d 200.200.200.200 22 -j DENY
ipchains -A forward -i eth1 -s 10.0.0.0/8 -j MASQ
ipchains -A forward -i eth1 -s 172.20.0.0/16 -j MASQ
"""
SESSIONS = 100_000  # so that attacks make it short, and all its memory is touched early
DISK = "/run/fastmasq"  # of the gateway alone, and small
ON_SMALL_DISK = f'mkdir -p {DISK} && mount -t tmpfs -o size=256k,mode=750 none {DISK} && exec "$@"'


def on_small_disk() -> list[str]:
    """Return the command that starts the program where DISK is small, and nobody else's."""
    return ["sh", "-c", ON_SMALL_DISK, "sh", *candidate.command()]


class Place:
    """The network, up, with fastmasq in its gateway."""

    def __init__(self, prefix: str, extra: str = "", command: Sequence[str] = (), options: Sequence[str] = ()) -> None:
        """extra: more sections of the configuration; command: how the program is started; options: those of `run`."""
        self.lab = Lab(prefix, NETWORK)
        self.rules = self.lab.directory / "rules"
        extra = f'[limits]\nsessions = {SESSIONS}\n[rules]\nfiles = ["{self.rules}"]\n{extra}'
        command = command or candidate.command()
        self.fastmasq = Fastmasq(self.lab, extra, inside=["eth0", "eth2"], command=command, options=options)

    def __enter__(self) -> Place:
        self.lab.up()
        try:
            self.ip("gateway", f"link set eth0 address {GATEWAY_MAC}")
            self.rules.write_text(RULES)
            self.fastmasq.install()
        except BaseException:
            self.lab.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.fastmasq.remove()
        finally:
            self.lab.down()

    @property
    def pid(self) -> int:
        return self.fastmasq.process.pid

    @property
    def disk(self) -> Path:
        """The gateway's small disk, as seen from here."""
        return Path(f"/proc/{self.pid}/root{DISK}")

    def log(self) -> str:
        return (self.fastmasq.directory / "stderr").read_text(errors="replace")

    def ip(self, host: str, *lines: str) -> None:
        hosts.configure(lines, self.lab.namespace(host))

    def run(self, *argv: str) -> None:
        """Run a program on the gateway. Raises KernelError if it fails."""
        hosts.checked(hosts.command_in(self.lab.namespace("gateway"), argv))

    def make_second_link(self) -> None:
        """Make the second inside link anew: another interface of the same name, as after a card was pulled."""
        second = self.lab.namespace("second")
        self.ip("gateway", "link delete eth2")
        self.ip(
            "gateway",
            f"link add eth2 type veth peer name eth0 netns {second}",
            f"address add {SECOND_GATEWAY}/16 dev eth2",
            "link set eth2 up",
        )
        addresses = [f"address add {address}/16 dev eth0" for address in ORDINARY["second"]]
        self.ip("second", *addresses, "link set eth0 up", f"route add default via {SECOND_GATEWAY}")


def prefix() -> str:
    return f"soak-{os.getpid()}"
