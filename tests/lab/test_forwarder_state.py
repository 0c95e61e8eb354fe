"""What sessions notice of a kill and a new start, or of SIGTERM under --keep: a pause, and nothing else."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastmasq.kernel.run_folder import file_of
from fastmasq.lab import hosts
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.lab.test_forwarder_life import kill
from tests.support.lab_network import ECHO_PORT, INSIDE_ADDRESS, Network, eventually, round_trip
from tests.support.pptp_programs import Client, start_pptpd
from tests.support.vpn_network import SECOND_INSIDE, SECOND_SERVER, VpnNetwork

MEMORY = Path("/dev/shm")  # a tmpfs, which /run is not everywhere
FORWARDED = 8080
FORWARD = f'[[forward]]\nprotocol = "tcp"\nlisten = "eth1:{FORWARDED}"\nto = "{INSIDE_ADDRESS}:{ECHO_PORT}"\n'
DOWNLOADS, PIECE, PAUSE_S = 5, 4096, 0.005


@pytest.fixture
def folder(net: Network) -> Iterator[Path]:
    """A folder on a tmpfs, for the network's forwarders."""
    made = MEMORY / f"fastmasq-{net.lab.namespace('gateway')}"
    yield made
    shutil.rmtree(made, ignore_errors=True)


def settings(folder: Path, more: str = FORWARD) -> str:
    return f'[state]\ndirectory = "{folder}"\n{more}'


def state_file(net: Network, folder: Path) -> Path:
    return folder / file_of(hosts.inode(net.lab.namespace("gateway")), "state")


def end(net: Network) -> None:
    net.fastmasq.process.send_signal(signal.SIGTERM)
    assert net.fastmasq.process.wait(10) == 0


def active(net: Network) -> int:
    return net.status()["sessions"]["active"]


def assert_adopted(net: Network, sessions: int) -> None:
    """All sessions of the run before are there, and nobody had to open one in their place."""
    status = net.fastmasq.ask("status")
    assert (status["adopted"]["sessions"], status["adopted"]["dropped"]) == (sessions, {})
    assert status["sessions"]["opened_total"] == 0
    assert net.fastmasq.errors().count(f"adopted {sessions} sessions") == 1


class Downloads:
    """Files that the server sends to inside, at a pace, while other things happen, and until they have."""

    def __init__(self, net: Network) -> None:
        self.sent, self.received = [b""] * DOWNLOADS, [b""] * DOWNLOADS
        self._is_over = threading.Event()
        self._threads = []
        for number in range(DOWNLOADS):
            near, far = net.pair()
            for job, end in ((self._send, far), (self._receive, near)):
                self._threads.append(threading.Thread(target=job, args=(number, end)))
                self._threads[-1].start()
        net.keep(self)

    def _send(self, number: int, far: socket.socket) -> None:
        digest = hashlib.sha256()
        for piece in itertools.count():
            octets = (b"%d %d " % (number, piece)).ljust(PIECE, b".")
            digest.update(octets)
            far.sendall(octets)
            if self._is_over.wait(PAUSE_S):
                break
        far.shutdown(socket.SHUT_WR)
        self.sent[number] = digest.digest()

    def _receive(self, number: int, near: socket.socket) -> None:
        digest = hashlib.sha256()
        while octets := near.recv(65536):
            digest.update(octets)
        self.received[number] = digest.digest()

    def go_on(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def end(self) -> None:
        """Have each send its last piece; all that was sent has to come."""
        self.close()
        assert self.received == self.sent and all(self.sent)

    def close(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def test_sessions_outlive_a_kill_and_a_stop_that_keeps(net: Network, folder: Path) -> None:
    net.start(settings(folder))
    net.echo_tcp("inside")
    udp = net.udp("server", port=ECHO_PORT)
    near, far = net.pair()
    client = net.udp("inside", port=20_500)
    client.sendto(b"who", (SERVER_ADDRESS, ECHO_PORT))
    _, seen = udp.recvfrom(100)
    assert seen[1] != 20_500, "the host keeps this port, so it is another one outside: only the table knows which"
    stranger = net.connect("router", (EXTERNAL_ADDRESS, FORWARDED))
    assert round_trip(stranger, None, b"by the forward")
    downloads = Downloads(net)
    before = active(net)
    assert before == DOWNLOADS + 3

    def all_go_on(word: bytes) -> None:
        far.sendall(word)  # the outside end first
        assert near.recv(100) == word
        assert round_trip(stranger, None, word)
        udp.sendto(word, seen)
        assert client.recv(100) == word
        client.sendto(word, (SERVER_ADDRESS, ECHO_PORT))
        assert udp.recvfrom(100) == (word, seen)

    kill(net)
    net.start(settings(folder), options=("--keep",))
    assert_adopted(net, before)
    all_go_on(b"after a kill")
    end(net)
    net.start(settings(folder))
    assert_adopted(net, before)
    assert downloads.go_on()
    all_go_on(b"after a stop")
    downloads.end()
    assert round_trip(net.connect("router", (EXTERNAL_ADDRESS, FORWARDED)), None, b"again")
    assert state_file(net, folder).stat().st_mode & 0o777 == 0o600
    net.fastmasq.remove()
    assert list(folder.iterdir()) == [], "what is put back leaves no sessions"


def test_sessions_of_a_forward_that_is_gone_live_on(net: Network, folder: Path) -> None:
    net.start(settings(folder))
    net.echo_tcp("inside")
    stranger = net.connect("router", (EXTERNAL_ADDRESS, FORWARDED))
    assert round_trip(stranger, None, b"by the forward")
    kill(net)
    net.start(settings(folder, more=""))
    assert_adopted(net, 1)
    assert round_trip(stranger, None, b"by none")
    with pytest.raises(OSError):
        net.connect("router", (EXTERNAL_ADDRESS, FORWARDED), timeout=0.5)


def test_what_was_changed_at_run_time_outlives_a_kill_and_is_forgotten_by_a_stop(net: Network, folder: Path) -> None:
    def ask(method: str, **parameters: object) -> Any:
        return net.fastmasq.ask(method, **parameters)

    def changed() -> tuple:
        rules = ask("rules", chain="input")["chains"][0]["rules"]
        forwards = {row["first"]: row["from"] for row in ask("forwards")}
        return len(rules), forwards, ask("timeouts")["udp"]

    net.start(settings(folder))
    net.echo_tcp("inside")
    by_hand = {"protocol": "tcp", "listen": "eth1", "first": 9090, "last": 9090}
    target = {"address": INSIDE_ADDRESS, "port": ECHO_PORT}
    ask("forwards.change", changes=[{"action": "add", "forward": {**by_hand, "targets": [target]}}])
    refuse_udp = {"match": {"protocol": 17}, "target": "REJECT"}
    ask("rules.change", changes=[{"do": "append", "chain": "input", "rule": refuse_udp}])
    ask("timeouts", udp=77)
    was = changed()
    assert was == (1, {FORWARDED: "configuration", 9090: "command"}, 77)
    stranger = net.connect("router", (EXTERNAL_ADDRESS, 9090))
    kill(net)
    net.start(settings(folder), options=("--keep",))
    assert changed() == was
    end(net)
    net.start(settings(folder, more=""))
    assert changed() == (1, {9090: "command"}, 77), "the configuration has taken its own away"
    assert "what was changed at run time goes on: rules, timeouts, forwards" in net.fastmasq.errors()
    assert round_trip(stranger, None, b"still")
    assert round_trip(net.connect("router", (EXTERNAL_ADDRESS, 9090)), None, b"and anew")
    end(net)
    assert list(folder.iterdir()) == []


def test_calls_and_sas_outlive_a_kill(net: Network, folder: Path) -> None:
    """Two hosts call pptpd by pptp, and two have SAs with one remote: all go on, can be rekeyed, and end."""
    net.start(settings(folder, more=""))
    vpn = VpnNetwork(net)
    start_pptpd(net, "server", SERVER_ADDRESS)
    clients = [Client(net, host, SERVER_ADDRESS) for host in ("inside", "inside2")]
    vpn.ipsec(SECOND_SERVER)
    peers = []

    def all_go_on(number: int) -> None:
        assert all(client.answers(number) for client in clients)
        for peer in peers:
            peer.exchange(2)

    for address in (INSIDE_ADDRESS, SECOND_INSIDE):
        peers.append(vpn.ipsec(address).negotiate(SECOND_SERVER))
        peers[-1].exchange(1)  # so that there is no doubt whose SPI that was, and no copies
    all_go_on(1)
    kill(net)
    net.start(settings(folder, more=""))
    adopted = net.fastmasq.ask("status")["adopted"]
    assert adopted == {"sessions": 2, "calls": 2, "sas": 2, "exchanges": 2, "dropped": {}}
    assert "adopted 2 sessions, 2 calls, 2 SAs, 2 ISAKMP exchanges" in net.fastmasq.errors()
    all_go_on(2)
    assert [row["missing"] for row in vpn.listed("connections")] == [""] * 2, "they are followed"
    peers[0].rekey()
    all_go_on(3)
    assert net.fastmasq.ask("status")["sessions"]["opened_total"] == 0
    assert vpn.strays() == []
    clients[0].close()
    ended = {INSIDE_ADDRESS: "closing", SECOND_INSIDE: "established"}
    eventually(lambda: {row["inside"]: row["state"] for row in vpn.listed("calls")} == ended, what="the end of a call")


def test_without_room_there_is_a_line_and_everything_works(net: Network, folder: Path) -> None:
    """A tmpfs of 3 MB, which the mappings of one external address alone would fill."""
    folder.mkdir(mode=0o750)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=0750", "fastmasq", str(folder)], check=True)
    try:
        net.start(settings(folder))
        net.echo_udp()
        assert "No space left on device: not all sessions outlive this process" in net.fastmasq.errors()
        clients = [net.udp("inside") for _ in range(20)]
        assert all(round_trip(client, (SERVER_ADDRESS, ECHO_PORT), b"no room") for client in clients)
    finally:
        net.fastmasq.remove()
        subprocess.run(["umount", str(folder)], check=True)
