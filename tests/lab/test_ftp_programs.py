"""The FTP programs that people use, through fastmasq: clients and servers on both sides, active and passive."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fastmasq.lab import scenario
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.lab.test_forwarder_life import kill
from tests.lab.test_forwarder_state import folder, settings
from tests.lab.test_forwarder_upgrade import upgrade
from tests.support.ftp_programs import FILE, start_pure_ftpd, start_vsftpd
from tests.support.lab_network import INSIDE_ADDRESS, Network, eventually

__all__ = ["folder"]  # a fixture

FORWARDS = f"""
[gateways]
ftp = [21, 2121]
[[forward]]
protocol = "tcp"
listen = "eth1:21"
to = "{INSIDE_ADDRESS}:21"
[[forward]]
protocol = "tcp"
listen = "eth1:2121"
to = "{INSIDE_ADDRESS}:2121"
"""
TIMES = 3  # transfers on one control connection


def curl(address: str, *options: str) -> list[str]:
    names = ",".join(f"{FILE}{number}" for number in range(TIMES))
    return ["curl", "--silent", "--show-error", "--fail", "--max-time", "20", *options, f"ftp://{address}/{{{names}}}"]


def lftp(address: str, passive: bool) -> list[str]:
    files = " ".join(f"{FILE}{number}" for number in range(TIMES))
    quick = f"set net:max-retries 1; set net:timeout 10; set ftp:passive-mode {'on' if passive else 'off'}"
    return ["lftp", "-c", f"{quick}; open ftp://{address}; ls; cat {files}"]


def ftp(address: str, active: bool) -> list[str]:
    script = "\n".join(f"get {FILE}{number} -" for number in range(TIMES))
    return ["sh", "-c", f"printf 'ls\\n{script}\\nquit\\n' | tnftp -a{'A' if active else 'p'} -V {address}"]


def fetched(net: Network, host: str, argv: list[str]) -> bool:
    """Whether a client on a host gets all files, each whole."""
    output = net.run(host, *argv)
    return all(f"content {number}\n" * 500 in output for number in range(TIMES))


@pytest.mark.parametrize("offloads", [True, False], ids=["offloads", "no offloads"])
def test_rfc959_rfc2428_programs_on_both_sides(net: Network, tmp_path: Path, offloads: bool) -> None:
    net.lab.offloads(offloads)
    start_vsftpd(net, "server", tmp_path)
    start_vsftpd(net, "inside", tmp_path)
    start_pure_ftpd(net, "inside", tmp_path, 2121)
    net.start(FORWARDS)
    active = [
        curl(SERVER_ADDRESS, "--ftp-port", "-"),  # EPRT
        curl(SERVER_ADDRESS, "--ftp-port", "-", "--disable-eprt"),  # PORT
        lftp(SERVER_ADDRESS, passive=False),
        ftp(SERVER_ADDRESS, active=True),
    ]
    for argv in active:
        assert fetched(net, "inside", argv), argv
    passive = [
        curl(EXTERNAL_ADDRESS),  # EPSV
        curl(EXTERNAL_ADDRESS, "--disable-epsv"),  # PASV
        curl(f"{EXTERNAL_ADDRESS}:2121"),
        curl(f"{EXTERNAL_ADDRESS}:2121", "--disable-epsv"),
        lftp(EXTERNAL_ADDRESS, passive=True),
        ftp(EXTERNAL_ADDRESS, active=False),
    ]
    for argv in passive:
        assert fetched(net, "server", argv), argv
    assert fetched(net, "server", curl(EXTERNAL_ADDRESS, "--ftp-port", "-"))  # needs nothing: the server connects
    assert fetched(net, "inside", curl(SERVER_ADDRESS))
    known = net.fastmasq.ask("gateways")
    assert known["opened_total"] >= TIMES * (len(active) + len(passive)) and not known["refused"]
    eventually(lambda: not net.fastmasq.ask("gateways")["connections"], what="the end of all connections")
    assert net.drops().keys() <= scenario.HONEST_DROPS


def test_an_active_client_goes_on_through_a_kill_and_an_upgrade(net: Network, folder: Path, tmp_path: Path) -> None:
    start_vsftpd(net, "server", tmp_path)
    net.start(settings(folder, ""))
    output = tmp_path / "output"
    with output.open("wb") as log:
        argv = ["tnftp", "-aA", "-V", SERVER_ADDRESS]
        client = net.lab.popen("inside", argv, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def fetch(number: int) -> None:
        client.stdin.write(f"get {FILE}{number} -\n".encode())
        client.stdin.flush()
        whole = (f"content {number}\n" * 500).encode()
        eventually(lambda: whole in output.read_bytes(), what=f"file {number}")

    fetch(0)
    [control] = net.fastmasq.ask("gateways")["connections"]
    kill(net)
    net.start(settings(folder, ""))
    fetch(1)
    upgrade(net)
    fetch(2)
    known = net.fastmasq.ask("gateways")
    assert known["connections"] == [{**control, "opened": 1}] and not known["refused"]
    client.communicate(b"quit\n", timeout=20)
    assert client.returncode == 0 and net.drops().keys() <= scenario.HONEST_DROPS
