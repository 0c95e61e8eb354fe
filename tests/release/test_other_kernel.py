"""The demo's checks through a gateway that is truly another kernel: user-mode-linux 6.1, without IP of nftables."""

from __future__ import annotations

import json
import shlex
import sys

from fastmasq.kernel import features
from fastmasq.lab import scenario
from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from tests.support import candidate
from tests.support.other_kernel import OtherKernel

RULES = """ipchains -A input -i eth0 -p tcp -d 10.0.0.1 9 -j DENY
ipchains -A forward -i eth1 -s 10.0.0.0/8 -j MASQ
"""
BURST = f"""import socket, struct, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.sendto(b"the next hop becomes known", ("{SERVER_ADDRESS}", 9))
time.sleep(0.5)
sender.sendmsg([bytes(40 * 1200)], [(17, 103, struct.pack("H", 1200))], 0, ("{SERVER_ADDRESS}", 9))
"""
CONFIGURATION = """[interfaces]
inside = ["eth0"]
outside = "eth1"
[rules]
files = ["/run/rules"]
[takeover]
guard = "{guard}"
"""
VLANS = """[interfaces]
inside = ["eth0", "near0", "near0.5"]
outside = "eth1"
[takeover]
guard = "{guard}"
"""


def status(kernel: OtherKernel) -> dict:
    return json.loads(kernel.run(f"{shlex.join([*candidate.command(), 'status', '--json'])}"))


def test_the_demo_on_another_kernel(lab: Lab) -> None:
    stage = scenario.set_stage(lab)
    with OtherKernel(lab) as kernel:
        kernel.run("echo 1 >/proc/sys/net/ipv4/ip_forward")
        kernel.write("/run/rules", RULES)
        for guard in ("auto", "iptables"):
            kernel.start(candidate.command(), CONFIGURATION.format(guard=guard))
            told = status(kernel)
            assert told["guard"]["backend"] == ("tc" if guard == "auto" else guard)
            lacking = {features.UDP_BURSTS, features.RING_HEADER, features.HOST_RULES, features.IDLE_PORTS}
            assert {each["use"] for each in told["fallbacks"]} == lacking
            for check in scenario.CHECKS:
                assert check.run(stage), check.title
            assert {row["reason"] for row in status(kernel)["drops"]} <= scenario.HONEST_DROPS
            kernel.stop()
            assert kernel.run("cat /proc/sys/net/ipv4/ip_forward").strip() == "1"
            assert "fastmasq" not in kernel.run("iptables-legacy-save; tc filter show dev eth0 ingress")


def test_bursts_that_the_header_of_this_kernel_cannot_tell_of(lab: Lab) -> None:
    """Before 6.2 the tap loses what a neighbour on this machine sends as one packet, counts it, and nothing else."""
    with OtherKernel(lab) as kernel:
        kernel.run("ip netns add near && ip link add near0 type veth peer name eth0 netns near")
        kernel.run("ip address add 10.200.0.1/24 dev near0 && ip link set near0 up")
        kernel.run("ip -n near address add 10.200.0.2/24 dev eth0 && ip -n near link set eth0 up")
        kernel.run("ip -n near route add default via 10.200.0.1")
        kernel.write("/run/burst.py", BURST)
        kernel.start(candidate.command(), '[interfaces]\ninside = ["eth0", "near0"]\noutside = "eth1"\n')
        lost, arrived = [], []
        for word in ("on", "off"):
            kernel.run(f"ip netns exec near ethtool -K eth0 tx-udp-segmentation {word}")
            kernel.run(f"ip netns exec near {sys.executable} /run/burst.py")
            kernel.run("sleep 1.2")  # the ring's losses are asked for once a second
            (link,) = (each for each in status(kernel)["links"] if each["name"] == "near0")
            lost.append(link["ring_drops"])
            arrived.append(link["rx_packets"])
        assert lost == [1, 1]
        assert arrived[1] - arrived[0] >= 40
        kernel.stop()


def test_a_link_and_its_vlan_are_two_links(lab: Lab) -> None:
    """The kernel hands a tap on the link, behind the guard, also what is for the VLAN, without its tag."""
    with OtherKernel(lab) as kernel:
        kernel.run("ip netns add near && ip link add near0 type veth peer name eth0 netns near")
        kernel.run(
            "ip link add link near0 near0.5 type vlan id 5 && ip -n near link add link eth0 eth0.5 type vlan id 5"
        )
        for ours, theirs, network in (("near0", "eth0", "10.200.0"), ("near0.5", "eth0.5", "10.201.0")):
            kernel.run(f"ip address add {network}.1/24 dev {ours} && ip link set {ours} up")
            kernel.run(f"ip -n near address add {network}.2/24 dev {theirs} && ip -n near link set {theirs} up")
        for guard in ("tc", "iptables"):
            kernel.start(candidate.command(), VLANS.format(guard=guard))
            before = {link["name"]: link["rx_packets"] for link in status(kernel)["links"]}
            for network in ("10.200.0", "10.201.0"):
                kernel.run(f"ip -n near route replace default via {network}.1")
                said = kernel.run(f"ip netns exec near ping -c 3 -i 0.2 -I {network}.2 {SERVER_ADDRESS}")
                assert " 0% packet loss" in said and "DUP" not in said
            told = status(kernel)
            assert told["drops"] == []
            came = {link["name"]: link["rx_packets"] - before[link["name"]] for link in told["links"]}
            assert (came["near0"], came["near0.5"]) == (3, 3)
            kernel.stop()
