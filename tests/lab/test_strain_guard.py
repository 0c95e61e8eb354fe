"""Under strain: what was taken over is taken away or changed by others, and what is needed is not to be had."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import ECHO_PORT, Network, eventually, round_trip

SERVER = (SERVER_ADDRESS, ECHO_PORT)
RESERVED = "net.ipv4.ip_local_reserved_ports"
FREE_PORT = 20_000  # one of ours, without a session
PUT_BACK = "somebody removed or changed the guard ({}) at {}; it is back"
TAKEN_AWAY = {
    "tc": [
        ("tc qdisc del dev eth1 clsact", "eth1"),
        ("tc filter del dev eth0 ingress", "eth0"),
    ],
    "nftables": [
        ("nft flush chain netdev fastmasq link_eth1", "eth1"),
        ("nft flush ruleset", "eth0, eth1"),
    ],
    "iptables": [("iptables-legacy -t raw -F", "eth0, eth1")],
}


def shell(net: Network, command: str) -> None:
    net.run("gateway", "sh", "-c", command)


def lines(net: Network, text: str) -> int:
    """Return how many lines of the log have a text."""
    return sum(text in line for line in net.fastmasq.errors().splitlines())


def host_answers(net: Network) -> bool:
    """Return whether the host resets what comes for one of our ports, as it does without a guard."""
    try:
        net.connect("server", (EXTERNAL_ADDRESS, FREE_PORT), timeout=0.1)
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    raise AssertionError("nobody listens there")


@pytest.mark.parametrize("guard", TAKEN_AWAY)
def test_a_guard_that_somebody_takes_away_is_put_back_with_one_line(net: Network, guard: str) -> None:
    """Connections that were quiet meanwhile live on: the host resets those alone that something came for just then."""
    net.start(f'[takeover]\nguard = "{guard}"')
    net.echo_tcp()
    connection = net.connect("inside", SERVER)
    assert round_trip(connection, None, b"before")
    before = net.status()["guard"]
    for number, (command, links) in enumerate(TAKEN_AWAY[guard], 1):
        shell(net, command)
        line = PUT_BACK.format(guard, links)
        eventually(lambda line=line: lines(net, line) == 1, what=line)
        assert lines(net, "somebody") == number
        assert not host_answers(net)
        assert round_trip(connection, None, b"after")
        assert net.status()["guard"] == before


@contextlib.contextmanager
def stopped(net: Network) -> Iterator[None]:
    """Have fastmasq notice nothing for a moment."""
    net.fastmasq.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        net.fastmasq.process.send_signal(signal.SIGCONT)


def test_status_shows_where_the_guard_is_missing_until_it_can_be_put(net: Network) -> None:
    net.start('[takeover]\nguard = "tc"')
    before = net.status()["guard"]["detail"]
    with stopped(net):
        shell(
            net, "tc filter del dev eth1 ingress; tc filter add dev eth1 ingress pref 1 protocol ip u32 match u32 0 0"
        )
    eventually(lambda: lines(net, "cannot attach a filter with priority 1 to the ingress of eth1") == 1)
    assert net.status()["guard"]["detail"] == "tc: eBPF classifier at the ingress of eth0; missing at eth1"
    assert host_answers(net)
    shell(net, "tc filter del dev eth1 ingress pref 1")
    eventually(lambda: net.status()["guard"]["detail"] == before, what="the guard")
    assert not host_answers(net)


def test_settings_that_somebody_sets_have_what_we_need_and_keep_what_he_wants(net: Network) -> None:
    net.start('[masquerade]\nports = "40000-44999"')
    assert net.sysctl("gateway", RESERVED) == "40000-44999"
    net.run("gateway", "sysctl", "-qw", f"{RESERVED}=9090")
    eventually(lambda: net.sysctl("gateway", RESERVED) == "9090,40000-44999", what="both")
    assert lines(net, f"somebody set {RESERVED}; it has our ports, too, again") == 1
    net.fastmasq.remove()
    assert net.sysctl("gateway", RESERVED) == "9090"
