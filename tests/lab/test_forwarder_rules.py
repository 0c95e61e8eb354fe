"""Chains of rules in a running fastmasq, changed over its socket, on the traffic of real programs."""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path

import msgspec
import pytest

from fastmasq.control.client import call
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.policy.chains import Match, Rule, RuleError
from fastmasq.policy.changes import Change
from fastmasq.wire.numbers import UDP
from tests.support.lab_network import ECHO_PORT, INSIDE_ADDRESS, Network, eventually, round_trip

SERVER = (SERVER_ADDRESS, ECHO_PORT)


def host(text: str) -> tuple[int, int]:
    return int(ipaddress.IPv4Address(text)), 0xFFFFFFFF


def change(net: Network, *changes: Change) -> None:
    call(str(net.fastmasq.socket), "rules.change", changes=msgspec.to_builtins(changes))


def counted(net: Network, chain: str) -> list[int]:
    """Return the packets of each rule of a chain."""
    [answer] = call(str(net.fastmasq.socket), "rules", chain=chain)["chains"]
    return [each["packets"] for each in answer["rules"]]


def test_t1_a_tight_rule_set_lets_one_service_out_and_nothing_else(net: Network) -> None:
    net.start()
    net.echo_udp()
    net.echo_tcp()
    service = Match(protocol=UDP, source=host(INSIDE_ADDRESS), destination=host(SERVER_ADDRESS))
    before = net.udp("inside")
    assert round_trip(before, SERVER, b"?")
    change(
        net,
        Change(do="policy", chain="forward", target="DENY"),
        Change(do="append", chain="forward", rule=Rule(match=service, target="MASQ")),
    )
    for _ in range(3):
        assert round_trip(before, SERVER, b"?")
    assert not net.answers("inside", SERVER_ADDRESS)
    assert not round_trip(net.udp("inside2"), SERVER, b"?", seconds=1)
    eventually(lambda: net.drops().get("forward_denied", 0) >= 2)
    assert counted(net, "forward") == [3]
    change(net, Change(do="delete", chain="forward", number=1))
    assert not round_trip(before, SERVER, b"?", seconds=1)
    assert counted(net, "forward") == []


def test_a_target_that_does_not_exist_changes_nothing(net: Network) -> None:
    net.start()
    with pytest.raises(RuleError, match="nowhere") as caught:
        change(
            net,
            Change(do="policy", chain="forward", target="DENY"),
            Change(do="append", chain="input", rule=Rule(match=Match(protocol=6), target="nowhere")),
        )
    assert caught.value.reason == "no target"
    assert call(str(net.fastmasq.socket), "rules")["default_forward"] is True


def test_what_scripts_begin_with_keeps_masquerading_and_reset_brings_it_back(net: Network) -> None:
    def said(*argv: str) -> str:
        environment = {**os.environ, "FASTMASQ_SOCKET": str(net.fastmasq.socket)}
        done = net.lab.exec("gateway", argv, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    programs = Path(sys.executable).parent
    ipchains = str(programs / "ipchains")
    net.start()
    net.echo_udp()
    outside = net.sniff("router", "eth0")
    asking = net.udp("inside")
    for line in ("-F", "-F forward", "-X", "-Z", "-P forward ACCEPT"):
        said(ipchains, *line.split())
        assert round_trip(asking, SERVER, line.encode()), line
    said(ipchains, "-P", "forward", "DENY")
    assert not round_trip(asking, SERVER, b"denied", 0.3)
    said(ipchains, "-P", "forward", "ACCEPT")
    said(str(programs / "fastmasq"), "rule", "reset")
    assert round_trip(asking, SERVER, b"again")
    assert [each for each in outside.packets() if each.source.startswith("10.")] == []


def test_a_private_source_that_rules_let_out_is_forwarded_and_reported(net: Network) -> None:
    net.start()
    outside = net.sniff("router", "eth0")
    change(net, Change(do="append", chain="forward", rule=Rule(target="ACCEPT")))
    net.udp("inside").sendto(b"?", SERVER)
    eventually(lambda: net.fastmasq.ask("status")["untranslated"]["hosts"], what="the host in the status")
    host = {"source": INSIDE_ADDRESS, "destination": SERVER_ADDRESS, "packets": 1}
    assert net.fastmasq.ask("status")["untranslated"] == {"packets": 1, "hosts": [host]}
    eventually(lambda: outside.of(source=INSIDE_ADDRESS), what="the packet, which is counted before it leaves")
    assert [each.destination for each in outside.of(source=INSIDE_ADDRESS)] == [SERVER_ADDRESS]
    assert f"{INSIDE_ADDRESS}, a private address, leaves by eth1 untranslated" in net.fastmasq.errors()


def test_the_trace_tells_what_the_packet_then_meets(net: Network) -> None:
    net.start()
    net.echo_udp()
    service = Match(protocol=UDP, source=host(INSIDE_ADDRESS), destination=host(SERVER_ADDRESS))
    change(
        net,
        Change(do="policy", chain="forward", target="DENY"),
        Change(do="append", chain="forward", rule=Rule(match=service, target="MASQ")),
    )
    ends = f"--from {INSIDE_ADDRESS}:6000 --to {SERVER_ADDRESS}:{ECHO_PORT} --in eth0 --out eth1".split()
    allowed = net.fastmasq.run_command("rule", "trace", "--protocol", "udp", *ends)
    assert "  forward rule 1: MASQ" in allowed.splitlines()
    assert f"output on eth1: udp {EXTERNAL_ADDRESS}:6000 -> {SERVER_ADDRESS}:{ECHO_PORT}" in allowed.splitlines()
    denied = net.fastmasq.run_command("rule", "trace", *ends)
    assert denied.splitlines()[-2:] == ["  forward policy: DENY", "  -> DENY"]
    assert counted(net, "forward") == [0]  # traces count nothing
    assert round_trip(net.udp("inside", port=6000), SERVER, b"?")
    listed = net.fastmasq.run_command("rule", "list", "--chain", "forward").splitlines()
    assert listed[0].startswith("chain forward: policy DENY")
    assert listed[2].split()[:6] == ["1", "MASQ", "udp", INSIDE_ADDRESS, SERVER_ADDRESS, "any"]
    assert listed[2].split()[6] == "1"


@pytest.mark.parametrize("guard", ["tc", "nftables", "iptables"])
def test_t1_a_packet_meets_the_input_chain_once_whatever_the_guard(net: Network, guard: str) -> None:
    """What is the path's is judged there, what is the host's by its kernel, and nothing by both."""
    net.start(f'[takeover]\nguard = "{guard}"')
    sender = net.udp("server", SERVER_ADDRESS)
    ours, hosts_own = 20_000, 20_500
    for port in (ours, hosts_own):
        match = Match(protocol=UDP, destination=host(EXTERNAL_ADDRESS), destination_ports=((port, port),))
        change(net, Change(do="append", chain="input", rule=Rule(match=match, target="DENY")))
        for _ in range(3):
            sender.sendto(b"?", (EXTERNAL_ADDRESS, port))
    eventually(lambda: counted(net, "input")[1] >= 3, what="the host's own")
    assert net.drops() == {"input_denied": 3}
    assert counted(net, "input") == [3, 3]
