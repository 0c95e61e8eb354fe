"""An upgrade under traffic: sessions notice nothing; and whatever is wrong with the new program, somebody forwards."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastmasq.errors import FastmasqError
from fastmasq.kernel.identity import start_time
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.lab.test_forwarder_life import host_state, kill
from tests.lab.test_forwarder_service import Manager, manager
from tests.lab.test_forwarder_state import (
    DOWNLOADS,
    FORWARD,
    FORWARDED,
    Downloads,
    active,
    assert_adopted,
    folder,
    settings,
)
from tests.support.lab_network import ECHO_PORT, INSIDE_ADDRESS, Network, eventually, round_trip

__all__ = ["folder", "manager"]  # fixtures


def pid(net: Network) -> int:
    return net.fastmasq.ask("status")["pid"]


def upgrade(net: Network, *options: str) -> int:
    """Upgrade by the command; return the process that forwards then."""
    before = pid(net)
    said = net.fastmasq.run_command("upgrade", *options)
    after = pid(net)
    assert after != before and said == f"process {after} has taken over from process {before}\n"
    return after


def taken_over(net: Network) -> set[str]:
    """Return what is changed of the host; a guard that was put in force anew is the same."""
    return {re.sub(r" id \d+ |\s+", " ", line) for line in host_state(net)}


def refusal(net: Network, **wanted: str) -> str:
    """Return why an upgrade came to nothing; the same process goes on."""
    before = pid(net)
    net.fastmasq.ask("upgrade", **wanted)
    eventually(lambda: net.fastmasq.ask("upgrade.state")["why_not"], what="the reason")
    assert pid(net) == before
    return net.fastmasq.ask("upgrade.state")["why_not"]


def said_refusal(net: Network, *options: str) -> str:
    """Return the line that the command says of it."""
    with pytest.raises(FastmasqError) as failed:
        net.fastmasq.run_command("upgrade", *options)
    _, _, said = str(failed.value).partition(" ended with 1: fastmasq: not upgraded, and all goes on as it was: ")
    assert said and "\n" not in said, failed.value
    return said


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Return what makes a program that is fastmasq after these lines of Python."""

    def make(lines: str) -> str:
        path = tmp_path / "new-program"
        text = textwrap.dedent(lines)
        root = Path(__file__).parents[2]
        path.write_text(
            f"#!{sys.executable}\nimport os, signal, sys, time\nsys.path.insert(0, {str(root)!r})\n{text}\n"
            "from fastmasq.cli.main import main\nmain()\n"
        )
        path.chmod(0o755)
        return str(path)

    return make


class Talk:
    """Sessions of all kinds, each of which the table alone knows the way of."""

    def __init__(self, net: Network) -> None:
        net.echo_tcp("inside")
        self._server = net.udp("server", port=ECHO_PORT)
        self._near, self._far = net.pair()
        self._client = net.udp("inside", port=20_500)
        self._client.sendto(b"who", (SERVER_ADDRESS, ECHO_PORT))
        _, self._seen = self._server.recvfrom(100)
        assert self._seen[1] != 20_500, "the host keeps this port, so it is another one outside"
        self._stranger = net.connect("router", (EXTERNAL_ADDRESS, FORWARDED))
        self.go_on(b"before")

    def go_on(self, word: bytes) -> None:
        """All of them, the outside ends first."""
        self._far.sendall(word)
        assert self._near.recv(100) == word
        assert round_trip(self._stranger, None, word)
        self._server.sendto(word, self._seen)
        assert self._client.recv(100) == word
        self._client.sendto(word, (SERVER_ADDRESS, ECHO_PORT))
        assert self._server.recvfrom(100) == (word, self._seen)


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_sessions_go_on_through_upgrades(net: Network, folder: Path, mode: str) -> None:
    """By the command and by a signal: who waits for the first process waits for the last one, and can end it."""
    net.run("gateway", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    before = host_state(net)
    net.start(settings(folder, f'{FORWARD}[offload]\nmode = "{mode}"\n'))
    net.fastmasq.run_command("forward", "add", "tcp", "eth1:8081", f"{INSIDE_ADDRESS}:{ECHO_PORT}")
    taken = taken_over(net)
    talk, downloads = Talk(net), Downloads(net)
    sessions = active(net)
    assert sessions == DOWNLOADS + 3
    process = net.fastmasq.process
    first = upgrade(net)
    assert_adopted(net, sessions)
    talk.go_on(b"by the command")
    process.send_signal(signal.SIGUSR2)
    eventually(lambda: pid(net) != first, what="the next one")
    assert "error" not in net.fastmasq.errors()
    adopted = net.fastmasq.ask("status")["adopted"]
    assert (adopted["sessions"], adopted["dropped"]) == (sessions, {})
    assert any("8081" in str(row) for row in net.fastmasq.ask("forwards")), "policy set at run time goes on, too"
    talk.go_on(b"by a signal")
    downloads.end()
    eventually(lambda: start_time(first) is None, what="the end of the first")
    assert process.poll() is None and pid(net) != process.pid
    assert taken_over(net) == taken
    net.fastmasq.remove()
    assert host_state(net) == before
    assert list(folder.iterdir()) == []


UNFIT = {
    "raise SystemExit(7)": "new-program ended with status 7; what it said is in the log",
    "import fastmasq.daemon.path as path; del path.MasqTable": "a mistake in the new program; see fastmasq's log",
    "import fastmasq.daemon.engine as e; e.adoptable = lambda _: ('/elsewhere', '')": "it looks for /elsewhere",
    "import fastmasq.table.image as image; image.VERSION = 99": (
        "cannot be handed over: another version of fastmasq has written it; restart it, or upgrade with --force"
    ),
}


def test_a_program_that_is_unfit_leaves_the_old_one_going(net: Network, folder: Path, program: Callable) -> None:
    net.start(settings(folder))
    talk = Talk(net)
    before, files = taken_over(net), sorted(folder.iterdir())
    assert said_refusal(net, "--program", "/nowhere/fastmasq") == "/nowhere/fastmasq: No such file or directory"
    for lines, words in UNFIT.items():
        assert words in refusal(net, program=program(lines))
    text = net.fastmasq.configuration.read_text()
    net.fastmasq.configuration.write_text(f"{text}[limits]\nsession = 1\n")
    assert ":15: limits.session: unknown key; did you mean sessions?" in said_refusal(net)
    net.fastmasq.configuration.write_text(text)
    talk.go_on(b"as before")
    assert taken_over(net) ^ before == set()
    assert sorted(folder.iterdir()) == files
    upgrade(net, "--force", "--program", program([*UNFIT][-1]))
    assert net.fastmasq.ask("status")["adopted"]["sessions"] == 0
    assert "its sessions are not adopted: another version of fastmasq has written it" in net.fastmasq.errors()
    net.echo_udp(port=ECHO_PORT + 1)
    assert round_trip(net.udp("inside"), (SERVER_ADDRESS, ECHO_PORT + 1), b"forced")


ANOTHER = """
    from msgspec.structs import replace
    from fastmasq.table import image
    names = {f"flow.{way}.packets": f"flow.{way}.carried" for way in (0, 1)}
    renamed = [replace(number, name=names.get(number.name, number.name)) for number in image._NUMBERS["sessions"]]
    image._NUMBERS["sessions"] = tuple(renamed)
    image.CONVERTERS[image.VERSION] = {"sessions": {new: image.Source((old,)) for old, new in names.items()}}
    image.VERSION += 1
"""


def test_a_program_whose_rows_are_others_converts_ours(net: Network, folder: Path, program: Callable) -> None:
    """From it there is no way back: it has written what we do not know."""
    net.start(settings(folder))
    talk = Talk(net)
    sessions, packets = active(net), carried(net)
    upgrade(net, "--program", program(ANOTHER))
    assert_adopted(net, sessions)
    assert all(carried(net)[session] >= before > 0 for session, before in packets.items())
    talk.go_on(b"converted")
    assert "another version of fastmasq has written it" in refusal(net, program=program(""))
    talk.go_on(b"as before")


def carried(net: Network) -> dict[tuple[str, ...], int]:
    """Return how many packets each session has had from inside."""
    return {(row["protocol"], row["inside"], row["remote"]): row["packets_out"] for row in net.sessions()}


WAITS = """
    import fastmasq.daemon.engine as e
    relieve = e.Engine._relieve
    def wait(*words):
        open(__file__ + '.here', 'w').close()
        while not os.path.exists(__file__ + '.go'): time.sleep(0.01)
        relieve(*words)
    e.Engine._relieve = wait
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
MOMENTS = {
    "with the host": f"""
        import fastmasq.daemon.engine as e
        e.State = lambda *_: {KILLED}
        """,
    "with the table": f"""
        import fastmasq.daemon.engine as e
        e.State.adopt = lambda *_: {KILLED}
        """,
    "with everything": f"""
        import fastmasq.daemon.engine as e
        e.Engine._relieve = lambda *_: {KILLED}
        """,
}


def test_the_old_one_goes_on_when_the_new_one_is_killed(net: Network, folder: Path, program: Callable) -> None:
    """At any moment, also when it has put its own guard and rules in force by then."""
    net.start(settings(folder))
    talk, before = Talk(net), taken_over(net)
    journal, files = net.journal.read_bytes(), sorted(folder.iterdir())
    text = net.fastmasq.configuration.read_text()
    rules = folder / "rules"
    rules.write_text("ipchains -A input -p tcp -d 200.200.200.200 9 -j DENY\nipchains -P forward MASQ\n")
    other = f'{text}[takeover]\nguard = "nftables"\n[rules]\nfiles = ["{rules}"]\n[masquerade]\nports = "40000-50000"\n'
    net.fastmasq.configuration.write_text(other)
    for moment, lines in MOMENTS.items():
        assert "was killed by SIGKILL" in refusal(net, program=program(lines)), moment
        talk.go_on(moment.encode())
    rules.unlink()
    assert taken_over(net) ^ before == set()
    assert net.journal.read_bytes() == journal
    assert sorted(folder.iterdir()) == files
    net.fastmasq.configuration.write_text(text)
    upgrade(net)
    talk.go_on(b"at last")


def test_once_it_has_begun_its_death_is_as_any(net: Network, folder: Path, program: Callable) -> None:
    """Whoever waits for the first process hears of it; the next start goes on with all sessions."""
    net.start(settings(folder))
    talk, process = Talk(net), net.fastmasq.process
    sessions = active(net)
    killed = f"""
        import fastmasq.daemon.engine as e
        e.Engine._start_worker = lambda _: {KILLED}
        """
    net.fastmasq.ask("upgrade", program=program(killed))
    assert process.wait(10) == 128 + signal.SIGKILL
    net.start(settings(folder))
    assert_adopted(net, sessions)
    talk.go_on(b"again")


def test_the_new_one_ends_when_the_old_one_is_killed(net: Network, folder: Path, program: Callable) -> None:
    """With all in its hands but the word that it begins: what is left is as after any kill."""
    net.start(settings(folder))
    talk = Talk(net)
    sessions = active(net)
    waits = program(WAITS)
    process = net.fastmasq.ask("upgrade", program=waits)["process"]
    eventually(Path(waits + ".here").exists, what="the moment")
    kill(net)
    Path(waits + ".go").touch()
    eventually(lambda: start_time(process) is None, what="its end")
    net.start(settings(folder))
    assert_adopted(net, sessions)
    talk.go_on(b"again")


def test_one_upgrade_at_a_time(net: Network, folder: Path, program: Callable) -> None:
    net.start(settings(folder))
    slow = program("while not os.path.exists(__file__ + '.go'): time.sleep(0.01)")
    process = net.fastmasq.ask("upgrade", program=slow)["process"]
    with pytest.raises(FastmasqError, match=f"an upgrade is under way already: process {process} is starting"):
        net.fastmasq.run_command("upgrade")
    Path(slow + ".go").touch()
    eventually(lambda: pid(net) == process, what="the first of them")


def test_an_end_meanwhile_ends_both(net: Network, folder: Path, program: Callable) -> None:
    before = host_state(net)
    net.start(settings(folder))
    process = net.fastmasq.ask("upgrade", program=program("time.sleep(60)"))["process"]
    net.fastmasq.remove()
    assert start_time(process) is None
    assert host_state(net) == before


# -- who looks after it ------------------------------------------------------------------------------------------------


def test_a_supervisor_goes_on_with_the_new_one(net: Network, folder: Path) -> None:
    before = host_state(net)
    net.start(settings(folder), options=["--supervise"])
    talk, supervisor = Talk(net), net.fastmasq.process
    second = upgrade(net)
    talk.go_on(b"upgraded")
    os.kill(second, signal.SIGKILL)
    eventually(lambda: "was killed by SIGKILL; starting it again" in net.fastmasq.errors(), what="the line about it")
    eventually(lambda: served(net) not in (None, second), what="another forwarder")
    talk.go_on(b"killed")
    assert supervisor.poll() is None
    net.fastmasq.remove()
    assert host_state(net) == before


def served(net: Network) -> int | None:
    try:
        return pid(net)
    except FastmasqError:
        return None


def test_a_forwarder_that_was_upgraded_ends_with_its_supervisor(net: Network, folder: Path) -> None:
    net.start(settings(folder), options=["--supervise"])
    process = upgrade(net)
    net.fastmasq.process.kill()
    net.fastmasq.process.wait()
    eventually(lambda: start_time(process) is None, what="its end")


@pytest.fixture
def orphans() -> Iterator[list[int]]:
    """A list of processes that nobody waits for; they are ended after the test."""
    found: list[int] = []
    yield found
    for process in found:
        os.kill(process, signal.SIGTERM)
        eventually(lambda: start_time(process) is None, what="its end")  # noqa: B023


def test_the_service_manager_is_told(net: Network, folder: Path, manager: Manager, orphans: list[int]) -> None:
    net.start(settings(folder))
    talk = Talk(net)
    first = net.fastmasq.process
    eventually(lambda: manager.told("READY"), what="READY=1")
    manager.forget()
    orphans.append(upgrade(net))
    assert first.wait(10) == 0
    talk.go_on(b"upgraded")
    eventually(lambda: manager.told("READY") and manager.told("WATCHDOG"), what="READY=1, WATCHDOG=1")
    assert next(each for each in manager.heard if "WATCHDOG" not in each) == {"MAINPID": str(orphans[0])}
    assert not manager.told("STOPPING")


def test_clients_who_wait_are_answered_by_the_next_one(net: Network, folder: Path, program: Callable) -> None:
    """Its socket is never away: who connects while nobody accepts has an answer when somebody does."""
    net.start(settings(folder))
    waits = program(WAITS)
    process = net.fastmasq.ask("upgrade", program=waits)["process"]
    eventually(Path(waits + ".here").exists, what="the moment")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(net.fastmasq.socket))
        client.sendall(b'{"method": "upgrade.state"}\n')
        Path(waits + ".go").touch()
        assert client.recv(4096) == b'{"result":{"process":%d,"why_not":""}}\n' % process
