"""A forwarder as a service: without root, watched by its manager and by itself, and started again when it dies."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmasq.control.client import call
from fastmasq.daemon.watchdog import LOOKS
from fastmasq.kernel.run_folder import FOLDER
from fastmasq.lab.topology import SERVER_ADDRESS
from tests.lab.test_forwarder_life import host_state
from tests.support.lab_network import ECHO_PORT, GATEWAY_INSIDE, Network, eventually, round_trip

SERVICE, OTHER = 61234, 61235  # users without a name; the group of the first has the second in it, too
CAPABILITIES = ("net_admin", "net_raw", "bpf", "perfmon")
LINKS = ("--inside", "eth0", "--outside", "eth1")
FASTMASQ = (sys.executable, "-m", "fastmasq")


class Service:
    """`fastmasq run` as a user of its own, in a mount namespace where /run/fastmasq is this user's."""

    def __init__(self, net: Network, capabilities: tuple[str, ...] = CAPABILITIES) -> None:
        raised = ",".join(f"+{name}" for name in capabilities)
        mount = f"mount -t tmpfs -o mode=0750,uid={SERVICE},gid={SERVICE} fastmasq /run/fastmasq"
        user = f"setpriv --reuid={SERVICE} --regid={SERVICE} --clear-groups --inh-caps={raised} --ambient-caps={raised}"
        run = " ".join([*FASTMASQ, "run", *LINKS, "--socket", "/run/fastmasq/control.sock"])
        argv = ["unshare", "--mount", "sh", "-c", f"mkdir -p /run/fastmasq && {mount} && exec {user} {run}"]
        self._net = net
        self.process = net.lab.popen("gateway", argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @property
    def folder(self) -> Path:
        """/run/fastmasq as it sees it."""
        return Path("/proc", str(self.process.pid), "root", *FOLDER.parts[1:])

    def forwards(self) -> bool:
        line = self.process.stdout.readline()
        assert "is forwarding" in line, self.process.stderr.read()
        return True

    def client(self, *arguments: str, user: int = OTHER) -> subprocess.CompletedProcess:
        """Run a command as a user in the service's group."""
        argv = ["nsenter", f"--target={self.process.pid}", "--mount", "setpriv", f"--reuid={user}", f"--regid={user}"]
        argv += [f"--groups={SERVICE}", *FASTMASQ, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, cwd="/")

    def end(self) -> str:
        """End it in order; return what it has said."""
        self.process.terminate()
        _, said = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, said
        return said


@pytest.fixture
def start_service(net: Network) -> Iterator[object]:
    started: list[Service] = []

    def start(*arguments: object) -> Service:
        started.append(Service(net, *arguments))
        return started[-1]

    yield start
    for service in started:
        service.process.kill()
        service.process.communicate()


def test_a_user_with_four_capabilities_forwards_and_restores(net: Network, start_service) -> None:
    net.run("gateway", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    before = host_state(net)
    service = start_service()
    assert service.forwards()
    net.echo_udp()
    net.echo_tcp()
    assert round_trip(net.udp("inside"), (SERVER_ADDRESS, ECHO_PORT), b"as a user")
    assert round_trip(net.connect("inside", (SERVER_ADDRESS, ECHO_PORT)), None, b"as a user")
    assert net.sysctl("gateway", "net.ipv4.ip_forward") == "0"
    status = call(str(service.folder / "control.sock"), "status")
    assert status["guard"]["backend"] == "tc"
    call(str(service.folder / "control.sock"), "forwards.change", changes=[])
    rules = [{"do": "policy", "chain": "input", "target": "DENY"}]
    call(str(service.folder / "control.sock"), "rules.change", changes=rules)  # nft has what we have
    assert not net.answers("inside", GATEWAY_INSIDE, 0.3)
    assert "without CAP" not in service.end()
    assert host_state(net) == before


def test_what_is_missing_is_said_and_done_without(net: Network, start_service) -> None:
    service = start_service(CAPABILITIES[:2])
    assert service.forwards()
    net.echo_udp()
    assert round_trip(net.udp("inside"), (SERVER_ADDRESS, ECHO_PORT), b"?")
    assert call(str(service.folder / "control.sock"), "status")["guard"]["backend"] == "nftables"
    said = service.end()
    assert "without CAP_BPF: no guard tc" in said and "without CAP_PERFMON: perhaps" in said


def test_the_group_reads_and_changes_nothing(net: Network, start_service) -> None:
    service = start_service()
    assert service.forwards()
    shown = service.client("status", "--json")
    assert json.loads(shown.stdout)["guard"]["backend"] == "tc", shown.stderr
    for words in (["sessions"], ["rule", "list"], ["forward", "list"], ["vpn"]):
        done = service.client(*words)
        assert done.returncode == 0, done.stderr
    for words in (["reload"], ["forward", "add", "tcp", "eth1:8080", "10.0.0.2:80"]):
        done = service.client(*words)
        assert done.returncode == 2 and done.stdout == ""
        assert "the status socket only tells; use sudo" in done.stderr and done.stderr.count("\n") == 1
    assert os.stat(service.folder / "status.sock").st_mode & 0o777 == 0o660
    zeroing = {"method": "rules", "params": {"zero": True}}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(service.folder / "status.sock"))
        client.sendall(json.dumps(zeroing).encode() + b"\n")
        assert "changes something" in json.loads(client.recv(4096))["error"]["message"]


def test_a_user_outside_of_the_group_is_told_to_become_root(net: Network, start_service) -> None:
    service = start_service()
    assert service.forwards()
    argv = ["nsenter", f"--target={service.process.pid}", "--mount", "setpriv", f"--reuid={OTHER}", f"--regid={OTHER}"]
    argv += ["--clear-groups", *FASTMASQ, "status"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, cwd="/")
    assert done.returncode == 1 and "use sudo" in done.stderr and done.stderr.count("\n") == 1


# -- the manager and the watchdog --------------------------------------------------------------------------------------


class Manager:
    """A service manager's end of sd_notify(3)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def told(self, key: str) -> bool:
        """Whether it has heard a line that begins so, in all."""
        while True:
            try:
                message = self._socket.recv(4096).decode()
            except BlockingIOError:
                return any(key in each for each in self.heard)
            self.heard.append(dict(line.split("=", 1) for line in message.splitlines()))

    def forget(self) -> None:
        self.told("")
        self.heard.clear()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    made = net.keep(Manager(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(made.path))
    return made


def test_the_manager_is_told_how_we_are(net: Network, manager: Manager) -> None:
    net.start()
    eventually(lambda: manager.told("READY"), what="READY=1")
    assert "is forwarding" in manager.heard[0]["STATUS"]
    eventually(lambda: manager.told("WATCHDOG"), what="WATCHDOG=1")
    manager.forget()
    net.fastmasq.process.send_signal(signal.SIGHUP)
    eventually(lambda: manager.told("RELOADING") and manager.told("READY"), what="RELOADING=1, READY=1")
    reloading = next(each for each in manager.heard if "RELOADING" in each)
    assert 0 < int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert not manager.told("STOPPING")
    net.fastmasq.remove()
    assert manager.told("STOPPING")


PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000


def stop_worker(pid: int) -> int:
    """Have the kernel stop the worker's thread alone, wherever it is, with the path's lock or without; return it.

    It has to be waited for, or its process never ends.
    """
    worker = next(task for task in Path(f"/proc/{pid}/task").iterdir() if niceness(task) == -10)
    trace = ctypes.CDLL(None, use_errno=True).ptrace
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        assert trace(request, int(worker.name), None, None) == 0, os.strerror(ctypes.get_errno())
    return int(worker.name)


def is_over(traced: int) -> bool:
    number, status = os.waitpid(traced, os.WNOHANG | WALL)
    return number == traced and not os.WIFSTOPPED(status)


def niceness(task: Path) -> int:
    return int((task / "stat").read_text().rpartition(")")[2].split()[16])


def test_a_worker_that_is_stuck_ends_the_process_as_a_kill_would(net: Network, manager: Manager) -> None:
    net.run("gateway", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    net.start()
    flood = "import socket\ns=socket.socket(2,2)\nwhile 1: s.sendto(b'x'*100,('199.0.0.1',9))"
    process = net.fastmasq.process
    with net.lab.popen("inside", [sys.executable, "-c", flood]) as sender:
        eventually(lambda: net.fastmasq.ask("status")["verdicts"]["forward"] > 1000, what="traffic")
        worker = stop_worker(process.pid)
        sender.kill()
    stopped = time.monotonic()
    manager.forget()
    eventually(lambda: is_over(worker), LOOKS + 10, "the end of the worker")
    assert process.wait(5) == 1
    outside = net.sniff("router", "eth0")
    assert time.monotonic() - stopped > LOOKS - 2
    (line,) = [each for each in net.fastmasq.errors().splitlines() if "stuck" in each]
    assert line.startswith("fastmasq: critical: the worker is stuck: no turn has ended in 10 s, it is stopped by a tr")
    manager.told("")
    assert len([each for each in manager.heard if "WATCHDOG" in each]) < LOOKS - 2, "the manager notices, too"
    assert net.sysctl("gateway", "net.ipv4.ip_forward") == "0"
    assert not net.answers("inside", SERVER_ADDRESS, 0.3)
    assert outside.of(sent=False) == [], "the guard stands"
    net.fastmasq.install()
    assert net.answers("inside", SERVER_ADDRESS)


# -- the supervisor ----------------------------------------------------------------------------------------------------


def test_a_supervised_forwarder_is_started_again(net: Network) -> None:
    before = host_state(net)
    net.start(options=["--supervise"])
    supervisor, first = net.fastmasq.process, net.status()["pid"]
    assert first != supervisor.pid
    os.kill(first, signal.SIGKILL)
    eventually(lambda: "was killed by SIGKILL; starting it again" in net.fastmasq.errors(), what="the line about it")
    eventually(lambda: served(net) not in (None, first), what="another forwarder")
    assert net.answers("inside", SERVER_ADDRESS)
    second = net.status()["pid"]
    supervisor.send_signal(signal.SIGHUP)
    eventually(lambda: "reloaded: nothing changed" in net.fastmasq.errors(), what="a reload")
    net.fastmasq.remove()
    assert not Path(f"/proc/{second}").exists()
    assert host_state(net) == before


def served(net: Network) -> int | None:
    """Return the process that answers at the control socket, if one does."""
    try:
        return net.fastmasq.ask("status")["pid"]
    except Exception:
        return None


# -- scarcity ----------------------------------------------------------------------------------------------------------


def test_idle_clients_without_descriptors_cost_no_processor_time(net: Network) -> None:
    net.start()
    pid = net.fastmasq.process.pid
    used = len(os.listdir(f"/proc/{pid}/fd"))
    subprocess.run(["prlimit", f"--pid={pid}", f"--nofile={used + 3}:"], check=True)
    idle = []
    for _ in range(12):
        client = net.keep(socket.socket(socket.AF_UNIX))
        client.settimeout(5)
        client.connect(str(net.fastmasq.socket))
        idle.append(client)
    before = processor_time(pid)
    started = time.monotonic()
    net.echo_udp()
    assert round_trip(net.udp("inside"), (SERVER_ADDRESS, ECHO_PORT), b"it forwards")
    eventually(lambda: served(net) == pid, what="an answer to one more")
    time.sleep(max(0.0, 1.5 - (time.monotonic() - started)))
    assert processor_time(pid) - before < 0.75


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
