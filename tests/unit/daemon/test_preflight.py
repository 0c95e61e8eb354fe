"""What a set-up lacks, found on a gateway that lacks it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastmasq.config.load import parse
from fastmasq.config.schema import Settings, defaults
from fastmasq.config.values import (
    Addresses,
    FilePath,
    HostPorts,
    InterfaceName,
    InterfaceNames,
    Openings,
    OptionalPort,
    PortRanges,
)
from fastmasq.daemon import preflight
from fastmasq.daemon.policy import declare
from fastmasq.daemon.preflight import Finding, findings
from fastmasq.policy.forwards import Forward, read
from tests.support.namespaces import Gateway


def found(
    section: str = "", /, inside: str = "eth0", outside: str = "eth1", forward: tuple[Forward, ...] = (), **keys: Any
) -> list[Finding]:
    """Return the findings with these links and forwards, and these keys of one section."""
    settings: Settings = msgspec.structs.replace(defaults(), forward=forward)
    links = msgspec.structs.replace(
        settings.interfaces, inside=InterfaceNames([inside]), outside=InterfaceName(outside)
    )
    settings = msgspec.structs.replace(settings, interfaces=links)
    if section:
        changed = msgspec.structs.replace(getattr(settings, section), **keys)
        settings = msgspec.structs.replace(settings, **{section: changed})
    return findings(declare(settings))


def texts(all_found: list[Finding], severity: str) -> list[str]:
    return [text for level, text in all_found if level == severity]


def test_a_good_gateway_has_nothing_to_complain_of(gateway: Gateway) -> None:
    assert [each for each in found() if each.severity != "note"] == []


def test_nobody_could_log_in_any_more(gateway: Gateway) -> None:
    assert texts(found("host", unsolicited="drop"), "warning") == [
        "[host] open names nothing: nobody can log in to this host over eth1"
    ]
    assert texts(found("host", unsolicited="drop", open=Openings.read(["tcp:22"])), "warning") == []


def test_an_inside_link_that_is_not_there(gateway: Gateway) -> None:
    [error] = texts(found(inside="eth7"), "error")
    assert error == "interface eth7 (inside) does not exist; there are: eth0, eth1"


def test_an_outside_link_that_may_yet_come(gateway: Gateway) -> None:
    assert "ppp0 (outside) does not exist yet; forwarding starts when it appears" in texts(
        found(outside="ppp0"), "warning"
    )


def test_a_link_that_is_down_or_without_address(gateway: Gateway) -> None:
    gateway.host.ip("link set eth0 down")
    gateway.host.ip("addr flush dev eth1")
    warnings = texts(found(), "warning")
    assert "eth0 (inside) is down" in warnings
    assert "eth1 (outside) has no IPv4 address" in warnings


@pytest.mark.parametrize(
    ("address", "private"), [("192.168.1.9", True), ("172.31.0.1", True), ("172.32.0.1", False), ("199.9.9.9", False)]
)
def test_another_nat_before_the_internet(gateway: Gateway, address: str, private: bool) -> None:
    gateway.host.ip("addr flush dev eth1")
    gateway.host.ip(f"addr add {address}/24 dev eth1")
    assert any("private address" in text for text in texts(found(), "note")) == private


def test_another_nat_is_not_where_another_address_leaves_for_the_internet(gateway: Gateway) -> None:
    """A modem's network stands beside that of the internet, and comes first."""
    gateway.host.ip("addr flush dev eth1")
    gateway.host.ip("addr add 192.168.100.2/24 dev eth1")
    gateway.host.ip("addr add 200.200.200.200/24 dev eth1")
    gateway.host.ip("route add default via 200.200.200.1")
    assert not any("private address" in text for text in texts(found(), "note"))
    gateway.host.ip("route replace default via 192.168.100.1")
    assert any("private address" in text for text in texts(found(), "note"))


def test_no_default_route_over_the_outside_link(gateway: Gateway) -> None:
    assert texts(found(), "problem") == []
    gateway.host.ip("route delete default")
    assert texts(found(), "problem") == ["no default route leads over eth1 (outside): see `ip route`"]
    assert texts(found(outside="ppp0"), "problem") == []
    for half in ("0.0.0.0/1", "128.0.0.0/1"):
        gateway.host.ip(f"route add {half} via 200.200.200.1")
    assert texts(found(), "problem") == []


def test_policy_routing_that_is_not_followed(gateway: Gateway) -> None:
    gateway.host.ip("rule add priority 77 from 10.0.0.0/24 lookup 100")
    assert texts(found(), "problem") == [
        "ip rule 77: from 10.0.0.0/24 lookup 100: not followed; packets go by the tables local, main and default"
    ]
    gateway.host.ip("rule delete priority 77")
    gateway.host.ip("rule add priority 77 from 8.8.8.8 lookup 100")
    assert texts(found(), "problem") == []


@pytest.mark.parametrize("mode", ["auto", "v2", "v3", "socket"])
def test_ring_modes_that_work_are_not_mentioned(gateway: Gateway, mode: str) -> None:
    assert not any("ring mode" in text for text in texts(found("rings", mode=mode), "error"))


def test_slow_choices_are_said(gateway: Gateway) -> None:
    assert any("vnet_header is off" in text for text in texts(found("rings", vnet_header="off"), "warning"))


def test_no_guard_is_said(gateway: Gateway) -> None:
    assert any("the host sees our packets" in text for text in texts(found("takeover", guard="none"), "warning"))


def test_ports_of_the_settings_that_the_host_uses(gateway: Gateway) -> None:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 61005))
        server.listen()
        some = found("masquerade", ports=PortRanges.read("61000-61010"))
        none = found("masquerade", ports=PortRanges.read("61005"))
    assert "the host uses tcp 61005 of [masquerade] ports; they stay with it" in texts(some, "warning")
    assert texts(none, "error") == ["no tcp port is left for masquerading: the host uses all of [masquerade] ports"]


def test_a_forward_that_would_take_the_port_of_a_running_program(gateway: Gateway) -> None:
    wanted, by_force = (read("tcp", "eth1:8080", ["10.0.0.2:80"], steal=steal) for steal in (False, True))
    with socket.create_server(("0.0.0.0", 8080)):
        [error] = texts(found(forward=(wanted,)), "error")
        assert texts(found(forward=(by_force,)), "error") == []
    assert f"(process {os.getpid()}) waits at tcp 0.0.0.0:8080" in error
    assert texts(found(forward=(wanted,)), "error") == []


def test_what_is_wrong_with_a_forward_has_its_line(gateway: Gateway) -> None:
    lines = ['[interfaces]\ninside = ["eth0"]\noutside = "eth1"\n']
    for listen in ("eth9:80", "9.9.9.9:80", "eth1:8080", "200.200.200.200:8080-8081"):
        lines.append(f'[[forward]]\nprotocol = "tcp"\nlisten = "{listen}"\nto = "10.0.0.2:80"\n')
    loaded = parse("".join(lines), "f.toml")
    with socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True):
        said = findings(declare(loaded.settings, places=loaded.places))
    [in_use, no_link] = texts(said, "error")
    assert no_link == "f.toml:4: tcp eth9:80: eth9 is no link of [interfaces]; those are eth0, eth1"
    assert in_use.startswith("f.toml:12: tcp eth1:8080: ") and "waits at tcp [::]:8080, and would" in in_use
    assert texts(said, "warning") == [
        "f.toml:8: tcp 9.9.9.9:80: the host has no address 9.9.9.9 now",
        "f.toml:16: tcp 200.200.200.200:8080-8081: the same address and port as tcp eth1:8080, which goes first; "
        "delete one of them",
    ]


def test_few_ports_are_left_beside_the_hosts(gateway: Gateway) -> None:
    gateway.host.sh("sysctl -qw net.ipv4.ip_local_port_range='1024 65000'")
    assert "only 1558 tcp ports are left beside the host's own" in texts(found(), "warning")
    assert any(text.startswith("programs of this host connect from 1024-65000, so inside hosts keep none of these")
               for text in texts(found(), "note"))  # fmt: skip
    assert texts(found("masquerade", host_ports=HostPorts("20480-24575")), "warning") == []
    assert not any("connect from" in text for text in texts(found("masquerade", host_ports=HostPorts("keep")), "note"))


def test_where_the_host_will_connect_from(gateway: Gateway) -> None:
    gateway.host.sh("sysctl -qw net.ipv4.ip_local_port_range='32768 60999'")
    said = (
        "while fastmasq runs, programs of this host connect from the ports 20480-24575 (net.ipv4.ip_local_port_range)"
    )
    assert said in texts(found(), "note")
    gateway.host.sh("sysctl -qw net.ipv4.ip_local_reserved_ports=4000-9000")
    [error] = texts(found("masquerade", host_ports=HostPorts("5000-6000")), "error")
    assert error == "masquerade.host_ports: net.ipv4.ip_local_reserved_ports has all of 5000-6000; choose others"


def test_more_sessions_than_memory(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "BYTES_PER_SESSION", 1 << 40)
    assert any(
        text.startswith("50000000 sessions would need ")
        for text in texts(found("limits", sessions=50_000_000), "warning")
    )


def test_nothing_is_changed(gateway: Gateway) -> None:
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text(), gateway.host.sh("nft list ruleset; tc qdisc show")
    found()
    assert before == (
        Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        gateway.host.sh("nft list ruleset; tc qdisc show"),
    )


def test_the_keys_of_inside_hosts(gateway: Gateway, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    wanted = {"preload": OptionalPort(4555), "preload_keys": FilePath(str(keys))}
    [error] = texts(found("vpn", **wanted), "error")
    assert error.startswith(f"[vpn] preload_keys: {keys}: No such file or directory")
    keys.touch(0o600)
    assert texts(found("vpn", **wanted), "warning") == [f"{keys} has no keys: [vpn] preload is of no use to anybody"]
    keys.write_text("10.0.0.2 a-long-secret-key\n")
    assert texts(found("vpn", **wanted), "warning") == []
    assert texts(found("vpn", ipsec=False, **wanted), "warning") == ["[vpn] preload does nothing while ipsec is off"]


def test_more_macvlans_than_the_path_knows(gateway: Gateway) -> None:
    """As keepalived makes one for a virtual router's address; of those that are down nothing comes."""
    for number in range(9):
        gateway.host.ip(f"link add link eth0 name vrrp.{number} type macvlan mode private")
    assert texts(found(), "warning") == []
    for number in range(9):
        gateway.host.ip(f"link set vrrp.{number} up")
    [warning] = texts(found(), "warning")
    assert warning.startswith("eth0 has 9 macvlans over it: nothing is forwarded for the last of them, as 8 are known")


def test_an_address_to_leave_with_that_the_outside_link_has_not(gateway: Gateway) -> None:
    [own] = [each for each in texts(found("masquerade", addresses=Addresses(["9.9.9.9"])), "warning")]
    assert own.startswith("[masquerade] addresses: eth1 has no 9.9.9.9, so nobody leaves with it (it has ")
    there = own.rpartition(" ")[2].rstrip(")")
    assert texts(found("masquerade", addresses=Addresses([there])), "warning") == []
