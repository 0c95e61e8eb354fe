"""The FTP programs that people use, through fastmasq: clients and servers on both sides, active and passive."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
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
AT_ONCE = 4  # clients


Where = tuple[str, int]  # address and port of a server


def curl(server: Where, *options: str) -> list[str]:
    address, port = server
    names = ",".join(f"{FILE}{number}" for number in range(TIMES))
    quietly = ["curl", "--silent", "--show-error", "--fail", "--max-time", "20"]
    return [*quietly, *options, f"ftp://{address}:{port}/{{{names}}}"]


def lftp(server: Where, mode: str) -> list[str]:
    address, port = server
    files = " ".join(f"{FILE}{number}" for number in range(TIMES))
    quick = f"set net:max-retries 1; set net:timeout 10; set ftp:passive-mode {'on' if mode == 'passive' else 'off'}"
    return ["lftp", "-c", f"{quick}; open -p {port} ftp://{address}; ls; cat {files}"]


def ftp(server: Where, mode: str) -> list[str]:
    address, port = server
    script = "\n".join(f"get {FILE}{number} -" for number in range(TIMES))
    option = "p" if mode == "passive" else "A"
    return ["sh", "-c", f"printf 'ls\n{script}\nquit\n' | tnftp -a{option} -V {address} {port}"]


def clients(server: Where, mode: str) -> list[list[str]]:
    """Return all that can fetch files from a server so, in each of the two ways of a mode (RFC 959, and 2428)."""
    options = {"active": (["--ftp-port", "-"], "--disable-eprt"), "passive": ([], "--disable-epsv")}
    extended, plain = options[mode]
    return [curl(server, *extended), curl(server, *extended, plain), lftp(server, mode), ftp(server, mode)]


def fetched(net: Network, host: str, argv: list[str]) -> bool:
    """Whether a client on a host gets all files, each whole."""
    output = net.run(host, *argv)
    return all(f"content {number}\n" * 500 in output for number in range(TIMES))


@pytest.mark.parametrize("offloads", [True, False], ids=["offloads", "no offloads"])
def test_rfc959_rfc2428_programs_on_both_sides_at_once(net: Network, tmp_path: Path, offloads: bool) -> None:
    net.lab.offloads(offloads)
    for host in ("server", "inside"):
        start_vsftpd(net, host, tmp_path)
        start_pure_ftpd(net, host, tmp_path, 2121)
    net.start(FORWARDS)
    ways = [("inside", SERVER_ADDRESS), ("server", EXTERNAL_ADDRESS)]
    runs = [
        (host, argv)
        for host, address in ways
        for port in (21, 2121)
        for mode in ("active", "passive")
        for argv in clients((address, port), mode)
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = pool.map(lambda run: fetched(net, *run), runs)
        assert [run for run, is_whole in zip(runs, results, strict=True) if not is_whole] == []
    known = net.fastmasq.ask("gateways")
    assert known["opened_total"] >= TIMES * len(runs) // 2 and not known["refused"], "half of the ways need one"
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
