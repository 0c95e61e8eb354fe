"""Queueing on the outside link: the user's shaper is obeyed, and a plain queue is bypassed."""

from __future__ import annotations

import time

import pytest

from fastmasq.lab.topology import SERVER_ADDRESS
from tests.support.lab_network import Network, eventually, send_and_compare

RATE_BIT_S = 20_000_000
TRANSFER_BYTES = 3_000_000
SHAPERS = {
    "tbf": ["root tbf rate 20mbit burst 16kb latency 50ms"],
    "a narrow tbf": ["root tbf rate 1mbit burst 4kb limit 4kb"],
    "htb": ["root handle 1: htb default 1", "parent 1: classid 1:1 htb rate 20mbit"],
}


def shape(net: Network, name: str) -> None:
    """Put a shaper on the gateway's outside link."""
    for command, kind in zip(SHAPERS[name], ("qdisc", "class"), strict=False):
        net.run("gateway", "tc", kind, "add", "dev", "eth1", *command.split())


def upload_bit_s(net: Network) -> float:
    """Send TRANSFER_BYTES from the inside host to the server; return the rate."""
    near, far = net.pair()
    started = time.monotonic()
    send_and_compare(near, far, TRANSFER_BYTES)
    return TRANSFER_BYTES * 8 / (time.monotonic() - started)


@pytest.mark.machine
@pytest.mark.parametrize("offloads", [True, False], ids=["offloads", "no-offloads"])
@pytest.mark.parametrize("name", ["tbf", "htb"])
def test_a_shaper_is_obeyed(net: Network, name: str, offloads: bool) -> None:
    net.lab.offloads(offloads)
    shape(net, name)
    net.start()
    assert not net.link("eth1")["qdisc_bypass"]
    assert net.link("eth0")["qdisc_bypass"]
    rate = upload_bit_s(net)
    assert 0.6 * RATE_BIT_S < rate < 1.1 * RATE_BIT_S


@pytest.mark.machine
def test_a_shaper_that_comes_and_goes(net: Network) -> None:
    net.start()
    assert net.link("eth1")["qdisc_bypass"]
    assert upload_bit_s(net) > 2 * RATE_BIT_S
    near, far = net.pair()
    shape(net, "tbf")
    eventually(lambda: not net.link("eth1")["qdisc_bypass"], what="no bypass")
    send_and_compare(near, far, 100_000)
    assert upload_bit_s(net) < 1.1 * RATE_BIT_S
    net.run("gateway", "tc", "qdisc", "delete", "dev", "eth1", "root")
    eventually(lambda: net.link("eth1")["qdisc_bypass"], what="the bypass")
    send_and_compare(far, near, 100_000)
    assert upload_bit_s(net) > 2 * RATE_BIT_S


@pytest.mark.parametrize("feature", ["tso", "tx"])
def test_a_link_that_cannot_cut_large_sends(net: Network, feature: str) -> None:
    """What comes in large must go out in pieces: past the queue the kernel would drop it instead of cutting it."""
    net.run("gateway", "ethtool", "-K", "eth1", feature, "off")
    net.start()
    near, far = net.pair()
    send_and_compare(near, far, TRANSFER_BYTES)
    send_and_compare(far, near, TRANSFER_BYTES)
    assert net.drops() == {}
    net.run("gateway", "ethtool", "-K", "eth0", feature, "off")
    send_and_compare(near, far, TRANSFER_BYTES)
    send_and_compare(far, near, TRANSFER_BYTES)
    assert net.drops() == {}


def test_what_the_shaper_drops_is_counted(net: Network) -> None:
    shape(net, "a narrow tbf")
    net.start()
    assert net.answers("inside", SERVER_ADDRESS)
    client = net.udp("inside")
    for _ in range(100):
        client.sendto(b"x" * 1000, (SERVER_ADDRESS, 9))
    eventually(lambda: net.drops().get("tx_no_buffer", 0) > 50, what="the count")
