"""The kernel's forwarding, switched on by others while it is held off: put back at once, or left but for our links."""

from __future__ import annotations

import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmasq.kernel.forwarding import TIMES, WITHIN_NS, Forwarding
from fastmasq.kernel.takeover import IP_FORWARD, Takeover
from fastmasq.lab.topology import SERVER_ADDRESS
from tests.support.lab_network import ECHO_PORT, INSIDE_ADDRESS, Network, eventually, round_trip
from tests.support.namespaces import Gateway

PUT_BACK = f"somebody set {IP_FORWARD} to 1; it is 0 again, since fastmasq forwards in the kernel's place"

YIELDED = """if True:
    import os, signal
    from pathlib import Path
    from fastmasq.kernel import sysctl
    from fastmasq.kernel.takeover import IP_FORWARD, Takeover
    takeover = Takeover(Path({folder!r}))
    takeover.stop_forwarding()
    sysctl.write(IP_FORWARD, "1")
    takeover.hold_links(["eth0", "eth1"])
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Held:
    """The forwarding of a gateway's host, held off for eth0 and eth1 in the namespace that its user has entered."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self.host = gateway.host
        self.takeover = Takeover(folder)
        self.forwarding = Forwarding(self.takeover, ("eth0", "eth1"))
        self.forwarding.stop()

    def switch_on(self, now_ns: int = 0, name: str = IP_FORWARD) -> str | None:
        """Set a switch to 1, as somebody else would, and return what is said about it once the kernel has told."""
        self.forwarding.read(now_ns)
        self.host.sh(f"sysctl -qw {name}=1")
        assert select.select([self.forwarding], [], [], 5)[0], "the kernel has not told"
        return self.forwarding.read(now_ns)

    def switches(self) -> dict[str, str]:
        names = ("ip_forward", *(f"conf/{link}/forwarding" for link in ("eth0", "eth1", "vm0")))
        return dict(zip(names, self.host.sh(f"cd /proc/sys/net/ipv4; cat {' '.join(names)}").split(), strict=True))


@pytest.fixture
def held(gateway: Gateway, tmp_path: Path) -> Iterator[Held]:
    gateway.host.sh("ip link add vm0 type veth peer name vm1; ip link set vm0 up")
    with gateway.host.entered():
        made = Held(gateway, tmp_path / "run")
        yield made
        made.forwarding.close()
        made.takeover.restore()


def test_what_somebody_switches_on_is_off_again_at_once(held: Held) -> None:
    assert held.switch_on() == PUT_BACK
    assert set(held.switches().values()) == {"0"}
    assert held.forwarding.read(0) is None, "our own change is no news"


def test_a_link_of_ours_is_put_back_and_another_is_not_ours_to_judge(held: Held) -> None:
    assert held.switch_on(name="net.ipv4.conf.eth1.forwarding") == (
        "somebody set net.ipv4.conf.eth1.forwarding to 1; it is 0 again"
    )
    assert held.switch_on(name="net.ipv4.conf.vm0.forwarding") is None
    assert held.switches() == {
        **{"ip_forward": "0", "conf/eth0/forwarding": "0", "conf/eth1/forwarding": "0"},
        "conf/vm0/forwarding": "1",
    }


def test_who_insists_has_other_links_forward_and_not_ours(held: Held) -> None:
    for turn in range(TIMES):
        assert held.switch_on(turn) == PUT_BACK
    assert held.switch_on(TIMES) == (
        "net.ipv4.ip_forward was set to 1 more than 3 times within a minute, perhaps for vm0: left at 1. The kernel "
        "now forwards between other links, but nothing that comes in by eth0, eth1"
    )
    assert held.switches() == {
        **{"ip_forward": "1", "conf/eth0/forwarding": "0", "conf/eth1/forwarding": "0"},
        "conf/vm0/forwarding": "1",
    }
    held.host.sh("sysctl -qw net.ipv4.ip_forward=0")
    assert held.switch_on() is None
    assert held.switches()["conf/eth0/forwarding"] == "0", "held again, without a word"


def test_three_times_in_more_than_a_minute_is_nobody_insisting(held: Held) -> None:
    for turn in range(2 * TIMES):
        assert held.switch_on(turn * WITHIN_NS // TIMES) == PUT_BACK


def test_known_links_say_who_may_need_it(held: Held) -> None:
    held.host.sh("ip link set vm0 down; ip link add docker0 type bridge; ip link set docker0 up")
    for turn in range(TIMES):
        held.switch_on(turn)
    assert "perhaps by Docker for docker0: left" in held.switch_on(TIMES)


@pytest.mark.parametrize("before", ["0", "1"])
def test_what_was_held_is_as_others_want_it_afterwards(held: Held, before: str, tmp_path: Path) -> None:
    held.takeover.restore()
    held.host.sh(f"sysctl -qw {IP_FORWARD}={before}")
    held.takeover = Takeover(tmp_path / "another")
    held.forwarding = Forwarding(held.takeover, ("eth0", "eth1"))
    held.forwarding.stop()
    for turn in range(TIMES + 1):
        held.switch_on(turn)
    held.takeover.restore()
    assert set(held.switches().values()) == {"1"}


def test_a_successor_holds_single_links_at_once(gateway: Gateway, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    gateway.host.sh(f"sysctl -qw {IP_FORWARD}=1")
    assert gateway.host.python(YIELDED.format(folder=str(folder))).wait(30) == -signal.SIGKILL
    gateway.host.sh("sysctl -qw net.ipv4.conf.eth0.forwarding=1")
    with gateway.host.entered():
        held = Held(gateway, folder)
        assert gateway.host.sysctl(IP_FORWARD) == "1"
        assert gateway.host.sysctl("net.ipv4.conf.eth0.forwarding") == "0"
        held.forwarding.close()
        held.takeover.restore()
    assert gateway.host.sysctl("net.ipv4.conf.eth0.forwarding") == "1"


def test_5_2_5_3_connections_go_on_and_nothing_leaks_while_scripts_switch_it_on(net: Network) -> None:
    """As `echo 1 >/proc/sys/net/ipv4/ip_forward` of an rc.firewall does, once and over and over."""
    net.start()
    net.echo_tcp()
    outside = net.sniff("router", "eth0")
    connection = net.connect("inside", (SERVER_ADDRESS, ECHO_PORT), port=6000)
    assert round_trip(connection, None, b"before")
    for turn in range(2 * TIMES):
        net.run("gateway", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        assert round_trip(connection, None, b"turn %d" % turn)
        if turn < TIMES:
            eventually(lambda: net.run("gateway", "cat", "/proc/sys/net/ipv4/ip_forward").strip() == "0")
    eventually(lambda: "within a minute" in net.fastmasq.errors())
    # The last writes come after that line, and each is put back once the kernel has told of it.
    eventually(lambda: net.run("gateway", "cat", "/proc/sys/net/ipv4/conf/eth0/forwarding").strip() == "0")
    assert round_trip(connection, None, b"at last")
    assert net.fastmasq.errors().count(PUT_BACK) == TIMES
    assert net.fastmasq.errors().count("within a minute") == 1
    assert outside.of(source=INSIDE_ADDRESS) == []
    assert outside.of(destination=SERVER_ADDRESS), "the sniffer hears"
    (session,) = net.sessions(protocol="tcp")
    assert session["inside"] == f"{INSIDE_ADDRESS}:6000"
