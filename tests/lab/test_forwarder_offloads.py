"""Without the virtio header nothing tells the size of merged datagrams: what merges them is off, and put back."""

from __future__ import annotations

import re

import pytest

from fastmasq import program
from fastmasq.kernel import offloads
from fastmasq.kernel.local_link import HOST_END
from fastmasq.lab.topology import SERVER_ADDRESS
from tests.support.bursts import SEGMENTS, receive_all, send_segmented
from tests.support.lab_network import INSIDE_ADDRESS, Network

MERGING = ("rx-gro-list", "rx-udp-gro-forwarding")  # those that a veth has
WITHOUT = '[rings]\nvnet_header = "off"\n'
REDIRECTED = 5353


def features(net: Network, host: str, link: str) -> dict[str, bool]:
    """Return the features of a link that are on, by ethtool's own reading."""
    listed = net.run(host, "ethtool", "-k", link)
    return {name: state == "on" for name, state in re.findall(r"^\t?([\w-]+): (on|off)", listed, re.MULTILINE)}


def switch(net: Network, host: str, link: str, *names: str, on: bool) -> None:
    net.run(host, "ethtool", "-K", link, *(word for name in names for word in (name, "on" if on else "off")))


def merges(net: Network, link: str) -> set[bool]:
    found = features(net, "gateway", link)
    return {found[name] for name in MERGING}


@pytest.fixture
def merging(net: Network) -> Network:
    """Return the network with links of the gateway that merge UDP on the way in."""
    for link in ("eth0", "eth1"):
        switch(net, "gateway", link, *MERGING, on=True)
    return net


def test_what_merges_datagrams_is_off_while_it_runs(merging: Network) -> None:
    net = merging
    before = {link: features(net, "gateway", link) for link in ("eth0", "eth1")}
    net.start(WITHOUT)
    for link in ("eth0", "eth1"):
        now = features(net, "gateway", link)
        assert {name for name in now if now[name] != before[link][name]} == set(MERGING)
    net.fastmasq.remove()
    assert {link: features(net, "gateway", link) for link in ("eth0", "eth1")} == before


def test_with_the_header_nothing_is_switched(merging: Network) -> None:
    merging.start()
    assert merges(merging, "eth0") == merges(merging, "eth1") == {True}


def test_release_switches_it_on_again(merging: Network) -> None:
    net = merging
    net.start(WITHOUT)
    net.fastmasq.process.kill()
    net.fastmasq.process.wait()
    assert merges(net, "eth1") == {False}
    said = net.run("gateway", *program.command("release", "--socket", str(net.fastmasq.socket)))
    assert "eth1: rx-gro-list, rx-udp-gro-forwarding on" in said
    assert merges(net, "eth0") == merges(net, "eth1") == {True}


def test_the_ports_of_a_bridge_that_is_a_link(merging: Network) -> None:
    net = merging
    net.ip("gateway", "link add br0 type bridge")
    net.ip("gateway", "address delete 10.0.0.1/8 dev eth0")
    net.ip("gateway", "link set eth0 master br0")
    net.ip("gateway", "address add 10.0.0.1/8 dev br0")
    net.ip("gateway", "link set br0 up")
    net.start(WITHOUT, inside=["br0"])
    assert merges(net, "eth0") == {False}


def test_bursts_of_a_program_on_the_gateway(net: Network) -> None:
    """Its link is ours, so what it sends at once comes in pieces, each of which arrives."""
    script = net.lab.directory / "rules"
    script.write_text(
        "ipchains -A forward -i eth1 -s 10.0.0.0/8 -j MASQ\n"
        f"ipchains -A input -p udp -s 10.0.0.0/8 -d 0/0 53 -j REDIRECT {REDIRECTED}\n"
    )
    net.start(f'{WITHOUT}[rules]\nfiles = ["{script}"]\n')
    assert not features(net, "gateway", HOST_END)["tx-udp-segmentation"]
    program, client = net.udp("gateway", port=REDIRECTED), net.udp("inside")
    client.sendto(b"?", (SERVER_ADDRESS, 53))
    asking = program.recvfrom(100)[1]
    assert asking[0] == INSIDE_ADDRESS
    sent = send_segmented(program, asking)
    assert receive_all(client, SEGMENTS) == sent
    assert net.drops() == {}


def test_bursts_of_a_neighbour_on_this_machine(net: Network) -> None:
    """No feature of ours changes what the other end of a veth pair does; its own `tx-udp-segmentation` does."""
    net.start(WITHOUT)
    server, client = net.udp("server", SERVER_ADDRESS, 9000), net.udp("inside")
    client.sendto(b"hello", server.getsockname())
    client_seen = server.recvfrom(100)[1]
    send_segmented(client, server.getsockname())
    send_segmented(server, client_seen)
    assert receive_all(server, SEGMENTS) == receive_all(client, SEGMENTS) == []
    assert net.drops() == {"segment_size_unknown": 2}
    for host, link in (("lan", "gateway"), ("router", "eth0")):
        switch(net, host, link, "tx-udp-segmentation", on=False)
    for sender, remote, receiver in ((client, server.getsockname(), server), (server, client_seen, client)):
        sent = send_segmented(sender, remote)
        assert receive_all(receiver, SEGMENTS) == sent
    assert net.drops() == {"segment_size_unknown": 2}


def test_a_link_that_has_gone_is_left_alone(net: Network) -> None:
    with net.on("gateway"):
        assert offloads.switched_on("nowhere", offloads.MERGING) == []
        assert offloads.switch("nowhere", offloads.MERGING, on=True) == []
        assert offloads.switched_on("lo", ("tx-udp-segmentation", "no-such-feature")) == ["tx-udp-segmentation"]


def test_datagrams_in_a_row_are_not_merged_on_their_way_in(merging: Network) -> None:
    net = merging
    switch(net, "gateway", "eth0", "gro", on=True)
    switch(net, "lan", "gateway", "tx-udp-segmentation", "tso", on=False)  # or the veth does not merge
    net.start(WITHOUT)
    server, client = net.udp("server", SERVER_ADDRESS, 9000), net.udp("inside")
    client.sendto(b"hello", server.getsockname())
    assert server.recv(100) == b"hello"
    sent = send_segmented(client, server.getsockname())
    assert receive_all(server, SEGMENTS) == sent
    assert net.drops() == {}
