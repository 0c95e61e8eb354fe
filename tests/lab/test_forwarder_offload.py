"""The kernel carries nearly all of what is established, whole and unnoticed; and what it does not carry, and why."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from fastmasq import program
from fastmasq.lab.topology import SERVER_ADDRESS
from tests.lab.test_forwarder_life import kill
from tests.lab.test_forwarder_state import FORWARD, assert_adopted, folder, settings
from tests.lab.test_legacy_masqadm import masqadm
from tests.support.lab_network import ECHO_PORT, Network, round_trip

__all__ = ["folder"]

AUTO = '[offload]\nmode = "auto"\n'
MEGABYTES = 40


def carried(net: Network) -> dict[str, Any]:
    return net.fastmasq.ask("status")["offload"]


def share(net: Network) -> float:
    now = carried(net)
    return now["packets"] / now["forwarded"]


def download(net: Network, megabytes: int = MEGABYTES, client: str = "inside") -> None:
    """Have a client read so much from the server over a new connection, and compare."""
    near, far = net.pair(client)
    piece = hashlib.sha256(b"piece").digest() * 32768
    sent, got = hashlib.sha256(), hashlib.sha256()

    def send() -> None:
        for _ in range(megabytes):
            far.sendall(piece)
            sent.update(piece)
        far.close()

    thread = threading.Thread(target=send)
    thread.start()
    while octets := near.recv(1 << 20):
        got.update(octets)
    thread.join()
    assert got.digest() == sent.digest()
    near.close()


def test_nearly_all_is_carried(net: Network) -> None:
    net.echo_udp()
    net.start(AUTO)
    download(net)
    client = net.udp("inside")
    for number in range(200):
        assert round_trip(client, (SERVER_ADDRESS, ECHO_PORT), b"%d" % number)
    assert share(net) > 0.95
    (session,) = net.sessions(protocol="udp")
    assert (session["packets_out"], session["packets_in"]) == (200, 200)
    shown = net.run("gateway", *program.command("status", "--socket", str(net.fastmasq.socket)))
    assert re.search(r"Kernel +carried 9\d\.\d % of packets", shown)


def test_what_is_carried_outlives_a_kill(net: Network, folder: Path) -> None:
    """Whatever was said meanwhile: the copy that outlives it does not know how far the ends have come."""
    net.start(settings(folder, FORWARD + AUTO))
    near, far = net.pair()
    for piece in range(200):
        far.sendall(b"%04d" % piece * 1024)
        assert near.recv(4096, socket.MSG_WAITALL) == b"%04d" % piece * 1024
    assert share(net) > 0.9
    kill(net)
    net.start(settings(folder, FORWARD + AUTO))
    assert_adopted(net, 1)
    for one, other, word in ((far, near, b"the outside first"), (near, far, b"then the inside")):
        one.sendall(word)
        assert other.recv(100) == word


def ask(net: Network, client: Any, times: int) -> int:
    """Have a client ask the server so often; return how many of these packets and their answers were carried."""
    before = carried(net)["packets"]
    for number in range(times):
        assert round_trip(client, (SERVER_ADDRESS, ECHO_PORT), b"%d" % number)
    return carried(net)["packets"] - before


def change(net: Network, *changes: dict[str, Any]) -> None:
    net.fastmasq.ask("rules.change", changes=list(changes))


def test_rules_count_what_is_carried_and_see_what_they_log(net: Network) -> None:
    net.echo_udp()
    net.start(AUTO)
    client = net.udp("inside")
    assert ask(net, client, 10) >= 16
    change(net, {"do": "append", "chain": "input", "rule": {}})
    assert ask(net, client, 10) >= 16
    (rule,) = net.fastmasq.ask("rules", chain="input")["chains"][0]["rules"]
    assert (rule["packets"], rule["bytes"]) == (20, 20 * 29)
    change(net, {"do": "append", "chain": "output", "rule": {"log": True}})
    assert ask(net, client, 10) == 0
    rows = net.fastmasq.ask("rules", chain="output")["chains"]
    assert [row["packets"] for chain in rows for row in chain["rules"]] == [20]
    change(net, {"do": "flush", "chain": "output"})
    assert ask(net, client, 10) >= 16
    (rule,) = net.fastmasq.ask("rules", chain="input")["chains"][0]["rules"]
    assert rule["packets"] == 60


def test_triggers_see_every_packet(net: Network) -> None:
    net.echo_udp()
    net.start(AUTO)
    client = net.udp("inside")
    assert ask(net, client, 10) >= 16
    masqadm(net, "autofw -A -r udp 6970 7170 -c tcp 7070")
    assert ask(net, client, 10) == 0
    assert carried(net)["why_not"] == "triggers or marks want to see every packet"
    masqadm(net, "autofw -F")
    assert ask(net, client, 10) >= 16


@pytest.mark.parametrize(
    ("head", "why_not"),
    [
        ("", '[offload] mode is "off"'),
        (AUTO + '[takeover]\nguard = "none"\n', "only behind a guard of tc or nftables"),
        (AUTO + '[takeover]\nguard = "iptables"\n', "only behind a guard of tc or nftables"),
    ],
    ids=["off", "none", "iptables"],
)
def test_why_nothing_is_carried(net: Network, head: str, why_not: str) -> None:
    net.start(head)
    assert carried(net)["why_not"].startswith(why_not)
    assert net.fastmasq.errors().count("the kernel carries no sessions") == (1 if head else 0)
    if "none" not in head:  # without a guard the host resets what is ours
        download(net, megabytes=1)
    assert carried(net)["packets"] == 0


def test_behind_the_guard_of_nftables_it_is_carried_as_well(net: Network) -> None:
    net.start(AUTO + '[takeover]\nguard = "nftables"\n')
    download(net)
    assert share(net) > 0.95
