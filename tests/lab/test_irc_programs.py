"""The IRC programs that people use, through fastmasq: files that a client inside sends by DCC, whole or what lacks."""

from __future__ import annotations

from pathlib import Path

from fastmasq.lab import scenario
from fastmasq.lab.topology import SERVER_ADDRESS
from tests.support.irc_programs import IRC_PORT, WeeChat, start_ngircd
from tests.support.lab_network import Network, eventually


def holds(file: Path, octets: bytes) -> bool:
    return file.exists() and file.read_bytes() == octets


def test_dcc_files_of_a_client_inside_arrive_and_are_resumed(net: Network, tmp_path: Path) -> None:
    log = start_ngircd(net, "server", tmp_path)
    net.start(f"[gateways]\nirc = [{IRC_PORT}]\n")
    taker = WeeChat(net, "server", tmp_path, "taker", SERVER_ADDRESS)
    sent, there = {name: f"{name}\n".encode() * 20_000 for name in ("whole", "begun")}, b"before" * 10_000
    for name, octets in sent.items():
        (tmp_path / name).write_bytes(octets)
    (taker.files / "begun.part").write_bytes(there)
    eventually(lambda: 'User "taker!' in log.read_text(), 30, "the welcome of who is to get the files")
    offers = [f"/dcc send taker {tmp_path / name}" for name in sent]
    WeeChat(net, "inside", tmp_path, "giver", SERVER_ADDRESS, *offers)
    wanted = {"whole": sent["whole"], "begun": there + sent["begun"][len(there) :]}
    eventually(lambda: all(holds(taker.files / name, octets) for name, octets in wanted.items()), 30, "all of both")
    known = net.fastmasq.ask("gateways")
    assert known["opened_total"] == len(sent) and not known["refused"]
    assert net.drops().keys() <= scenario.HONEST_DROPS
