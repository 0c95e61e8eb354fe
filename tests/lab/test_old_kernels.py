"""Kernels that lack what fastmasq wants: every step back is taken because such a kernel says so, and traffic passes."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from fastmasq import program
from fastmasq.kernel import features
from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from tests.support import old_kernel, old_line
from tests.support.lab_network import ECHO_PORT, Network, eventually, round_trip, send_and_compare
from tests.support.old_kernel import OldKernel

Kernels = Callable[..., OldKernel]
SERVER = (SERVER_ADDRESS, ECHO_PORT)


@pytest.fixture
def kernel_without(lab: Lab) -> Iterator[Kernels]:
    """Return a function that makes a kernel without features. It outlives what runs on it: ask for it before `net`."""
    with contextlib.ExitStack() as made:
        yield lambda *features: made.enter_context(OldKernel(lab.directory, without=features))


def assert_traffic_passes(net: Network) -> None:
    assert net.answers("inside", SERVER_ADDRESS)
    client = net.udp("inside")
    for size in (0, 1, 1472, 8000):
        assert round_trip(client, SERVER, b"x" * size), f"a datagram of {size} octets"
    near, far = net.pair()
    send_and_compare(near, far, 1 << 20)
    send_and_compare(far, near, 1 << 20)


def taps(net: Network) -> dict[str, set[str]]:
    """Return for what protocol each link has a tap: all (before the ingress hook) or IP (behind it)."""
    names = {"0003": "all", "0800": "IP"}
    rows = [line.split() for line in net.run("gateway", "cat", "/proc/net/packet").splitlines()[1:]]
    numbers = {str(link["ifindex"]): link["name"] for link in net.status()["links"]}
    found: dict[str, set[str]] = {}
    for _, _, _, protocol, number, *_ in rows:
        if protocol in names:
            found.setdefault(numbers[number], set()).add(names[protocol])
    return found


def start_on(kernel: OldKernel, net: Network, extra: str = "") -> None:
    net.start(extra, command=(*kernel.command, *program.command()))
    net.echo_udp()


def fallbacks(net: Network) -> dict[str, dict]:
    return {each["use"]: each for each in net.status()["fallbacks"]}


def test_a_kernel_of_the_line_3_10(net: Network) -> None:
    """All that is newer is refused at once; the other lines are tried before a release."""
    net.echo_udp()
    with old_line.running(net.lab, "3.10") as (kernel, fastmasq):
        net.adopt(fastmasq)
        old_line.assert_told(kernel, fastmasq, "3.10")
        assert net.status()["guard"]["backend"] == "iptables"
        assert {(link["ring"], link["vnet_header"]) for link in net.status()["links"] if link["role"] != "local"} == {
            ("socket", True)
        }
        assert_traffic_passes(net)
        assert net.drops() == {}


def test_nothing_is_missed_on_this_kernel(net: Network) -> None:
    net.start()
    assert fallbacks(net) == {}
    assert "does without" not in net.fastmasq.errors()
    assert taps(net) == {"eth0": {"IP"}, "eth1": {"IP"}}


@pytest.mark.parametrize(
    ("refused", "ring", "missed"),
    [
        (("PACKET_VNET_HDR on rings",), ("socket", True), {features.RING_HEADER}),
        (("PACKET_VNET_HDR",), ("v2", False), {features.HEADER}),
        (("PACKET_VNET_HDR", "TPACKET_V2"), ("v3", False), {features.HEADER}),
        (("PACKET_VNET_HDR", "TPACKET_V2", "TPACKET_V3"), ("socket", False), {features.HEADER, features.RING_V3}),
    ],
    ids=["no-header-on-rings", "no-header", "no-v2", "no-ring"],
)
def test_rings_step_by_step(
    kernel_without: Kernels, net: Network, refused: tuple[str, ...], ring: tuple[str, bool], missed: set[str]
) -> None:
    kernel = kernel_without(*refused)
    start_on(kernel, net)
    assert {(link["ring"], link["vnet_header"]) for link in net.status()["links"]} == {ring}
    assert fallbacks(net).keys() == missed
    assert all(kernel.answers[name] for name in refused)
    assert_traffic_passes(net)


@pytest.mark.parametrize(
    ("refused", "guard", "missed"),
    [
        (("qdisc clsact",), "nftables", {features.GUARD_TC}),
        (
            ("bpf(2)", "nf_tables family netdev"),
            "iptables",
            {features.GUARD_TC, features.GUARD_NFTABLES, features.BINDS},
        ),
        (
            ("qdisc clsact", "nf_tables sets packet types"),
            "iptables",
            {features.GUARD_TC, features.GUARD_NFTABLES},
        ),
    ],
    ids=["no-clsact", "no-bpf-no-netdev", "no-clsact-no-types"],
)
def test_guards_step_by_step(
    kernel_without: Kernels, net: Network, refused: tuple[str, ...], guard: str, missed: set[str]
) -> None:
    """Also where only putting the guard in force shows that it cannot be; taps stand behind one that marks."""
    kernel = kernel_without(*refused)
    start_on(kernel, net)
    assert net.status()["guard"]["backend"] == guard
    assert fallbacks(net).keys() == missed
    assert all(kernel.answers[name] for name in refused)
    assert taps(net) == {link: {"all" if guard == "iptables" else "IP"} for link in ("eth0", "eth1")}
    assert_traffic_passes(net)
    journal = json.loads(net.journal.read_text())
    assert [entry["guard"] for entry in journal["entries"] if "guard" in entry] == [guard]


@pytest.mark.parametrize(
    ("refused", "missed"),
    [
        ("SO_NETNS_COOKIE", {features.ORIGINAL_DESTINATIONS, features.BINDS}),
        ("fsopen(2)", {features.ORIGINAL_DESTINATIONS, features.BINDS}),
        ("eBPF asked by getsockname", {features.ORIGINAL_DESTINATIONS}),
        ("eBPF links to control groups", {features.ORIGINAL_DESTINATIONS, features.BINDS}),
    ],
)
def test_proxies_do_without_the_original_destination(
    kernel_without: Kernels, net: Network, refused: str, missed: set[str]
) -> None:
    rules = net.lab.directory / "rules"
    rules.write_text(old_line.RULES)
    kernel = kernel_without(refused)
    net.start(f'[rules]\nfiles = ["{rules}"]', command=(*kernel.command, *program.command()))
    assert fallbacks(net).keys() == missed
    assert kernel.answers[refused]
    net.greet_tcp(b"the proxy", "gateway", 3128)
    connection = net.connect("inside", ("199.0.0.77", 8080))
    assert connection.recv(100) == b"the proxy"


def test_frames_with_a_tag_where_filters_cannot_ask_for_it(kernel_without: Kernels, net: Network) -> None:
    """The path drops them instead, and everything else arrives; taps behind the guard have no need of it."""
    kernel = kernel_without("SKF_AD_VLAN_TAG_PRESENT")
    start_on(kernel, net, '[takeover]\nguard = "iptables"')
    assert fallbacks(net).keys() == {features.VLAN_FILTER}
    assert_traffic_passes(net)
    with net.on("router"):
        wire = net.keep(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    wire.bind(("eth0", 0))
    mac = net.run("gateway", "cat", "/sys/class/net/eth1/address").strip().replace(":", "")
    ping = bytes.fromhex("4500001c00010000400100000a0000010a00000208000000000000000000")
    wire.send(bytes.fromhex(mac) + wire.getsockname()[4] + bytes.fromhex("810000050800") + ping)
    eventually(lambda: net.drops() == {"vlan_tagged": 1}, what="the drop")


def test_doctor_names_what_a_kernel_lacks(net: Network) -> None:
    """The same table, the same questions: it says of each line what a run on it would do without."""
    line = "3.2"
    with OldKernel(net.lab.directory, line) as kernel:
        argv = [*kernel.command, sys.executable, "-m", "fastmasq", "doctor", "kernel", "--json"]
        done = net.lab.exec("gateway", argv, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["release"] == "3.2.0"
    assert {each["use"] for each in report["lacking"]} == old_line.expected_uses(line)
    assert kernel.answers.keys() <= set(old_kernel.lacking(line))
