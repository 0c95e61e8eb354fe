"""[host] unsolicited = "drop": strangers outside learn nothing of the gateway but what is open, and all else works."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fastmasq.control.client import call
from fastmasq.errors import FastmasqError
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support import packets
from tests.support.lab_network import ECHO_PORT, GATEWAY_INSIDE, Network, eventually, icmp_error, round_trip, talks

OPEN, SHUT, LATER, CLOSED = 8443, 8444, 8445, 20_500
HOST = '[host]\nunsolicited = "drop"\nopen = [{}]\n'
AT_ONCE = 0.15  # seconds in which a host of the lab has answered, if it does


def change_input(net: Network, **rule: object) -> None:
    with net.on("gateway"):
        call(str(net.fastmasq.socket), "rules.change", changes=[{"do": "append", "chain": "input", "rule": rule}])


def knock(net: Network) -> None:
    """Knock as a scanner does: at ports where nothing is, with segments and datagrams that belong to nothing."""
    with pytest.raises(TimeoutError):
        net.connect("server", (EXTERNAL_ADDRESS, CLOSED), timeout=AT_ONCE)
    with pytest.raises(TimeoutError):
        net.connect("server", (EXTERNAL_ADDRESS, SHUT), timeout=AT_ONCE)
    raw = net.raw("server", socket.IPPROTO_RAW)
    for port in (CLOSED, SHUT):
        for flags in ("A", "SA", "FA", "", "FPU"):
            segment = packets.tcp((SERVER_ADDRESS, 999), (EXTERNAL_ADDRESS, port), flags, seq=1, ack=1)
            raw.sendto(segment, (EXTERNAL_ADDRESS, 0))
    asking = net.asking("server", (EXTERNAL_ADDRESS, CLOSED))
    asking.send(b"?")
    assert icmp_error(asking, AT_ONCE) is None


@pytest.mark.parametrize("guard", ["tc", "nftables", "iptables"])
def test_rfc5382_req4_strangers_get_no_answer_but_from_what_is_open(net: Network, guard: str) -> None:
    for port in (OPEN, SHUT):
        net.echo_tcp("gateway", EXTERNAL_ADDRESS, port)
    net.echo_udp("gateway", EXTERNAL_ADDRESS, OPEN)
    net.echo_tcp()
    net.echo_udp()
    own = net.connect("gateway", (SERVER_ADDRESS, ECHO_PORT))
    net.start(f'[takeover]\nguard = "{guard}"\n' + HOST.format(f'"tcp:{OPEN}", "udp:{OPEN}"'))
    heard = net.sniff("router", "eth0")
    knock(net)
    assert not net.answers("server", EXTERNAL_ADDRESS, seconds=AT_ONCE)
    assert heard.of(sent=False, source=EXTERNAL_ADDRESS) == []
    assert talks(net, "server", (EXTERNAL_ADDRESS, OPEN))
    assert round_trip(net.udp("server", SERVER_ADDRESS), (EXTERNAL_ADDRESS, OPEN), b"open")
    assert round_trip(own, None, b"a connection of the host's that is older")
    assert round_trip(net.udp("gateway"), (SERVER_ADDRESS, ECHO_PORT), b"the host asks")
    assert talks(net, "gateway", (SERVER_ADDRESS, ECHO_PORT))
    assert net.answers("gateway", SERVER_ADDRESS)
    assert net.answers("inside", GATEWAY_INSIDE), "the inside is none of its business"
    assert talks(net, "inside", (SERVER_ADDRESS, ECHO_PORT))
    assert net.status()["host"] == {"unsolicited": "drop", "open": [f"tcp:{OPEN}", f"udp:{OPEN}"]}
    net.fastmasq.remove()
    assert net.answers("server", EXTERNAL_ADDRESS)
    assert talks(net, "server", (EXTERNAL_ADDRESS, SHUT))


def test_it_changes_at_run_time_and_rules_decide_before_it(net: Network) -> None:
    for port in (OPEN, SHUT, LATER):
        net.echo_tcp("gateway", EXTERNAL_ADDRESS, port)
    net.start(HOST.format(f'"tcp:{OPEN}-{SHUT}", "ping"'))
    assert net.answers("server", EXTERNAL_ADDRESS)
    assert talks(net, "server", (EXTERNAL_ADDRESS, SHUT))
    change_input(net, match={"protocol": 6, "destination_ports": [[OPEN, OPEN]]}, target="DENY")
    assert not talks(net, "server", (EXTERNAL_ADDRESS, OPEN), AT_ONCE), "a rule denies what is open"
    assert not talks(net, "server", (EXTERNAL_ADDRESS, LATER), AT_ONCE), "the policy accepts, which decides nothing"
    change_input(net, match={"protocol": 6, "destination_ports": [[LATER, LATER]]}, target="ACCEPT")
    assert talks(net, "server", (EXTERNAL_ADDRESS, LATER)), "a rule accepts what is not open"
    net.run("gateway", "nft", "flush", "ruleset")
    eventually(lambda: not talks(net, "server", (EXTERNAL_ADDRESS, OPEN), AT_ONCE), what="the chains, back in force")
    written = Path(net.fastmasq.configuration)
    text = written.read_text()
    written.write_text(text.replace(f'"tcp:{OPEN}-{SHUT}", "ping"', ""))
    with pytest.raises(FastmasqError, match="nobody could log in from outside any more"):
        net.fastmasq.run_command("reload")
    assert talks(net, "server", (EXTERNAL_ADDRESS, SHUT)), "nothing has changed"
    net.fastmasq.run_command("reload", "--confirm", "60")
    assert not talks(net, "server", (EXTERNAL_ADDRESS, SHUT), AT_ONCE)
    net.fastmasq.run_command("confirm", "--undo")
    assert talks(net, "server", (EXTERNAL_ADDRESS, SHUT))
    written.write_text(text.replace('unsolicited = "drop"', 'unsolicited = "answer"'))
    net.fastmasq.run_command("reload")
    with pytest.raises(ConnectionRefusedError):
        net.connect("server", (EXTERNAL_ADDRESS, CLOSED), timeout=2)
