"""The lab: networks come up, work, live side by side, and leave nothing behind."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.lab import hosts, scenario, services
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.kernel_masquerade import KernelMasquerade
from fastmasq.lab.topology import RUN_DIRECTORY, Lab


def answers(lab: Lab, host: str, address: str, seconds: int = 2) -> bool:
    """Return whether the address answers a ping from the host."""
    done = lab.exec(host, ["ping", "-n", "-c", "1", "-W", str(seconds), address], stdout=subprocess.DEVNULL)
    return done.returncode == 0


def fastmasq(*arguments: str) -> subprocess.CompletedProcess:
    """Run the command line as a user would."""
    return subprocess.run([sys.executable, "-m", "fastmasq", *arguments], capture_output=True, text=True)


def traces(prefix: str) -> list[str]:
    """Return what is left of a lab: namespaces, and files in its run directory."""
    namespaces = [path.name for path in hosts.NAMESPACE_DIRECTORY.glob(f"{prefix}-*")]
    return namespaces + [str(path) for path in RUN_DIRECTORY.glob(prefix)]


def test_up_and_down_are_clear_about_what_is_there(lab_prefix: Callable[[], str]) -> None:
    lab = Lab(lab_prefix())
    assert lab.down() is False
    lab.up()
    try:
        assert lab.is_up()
        with pytest.raises(KernelError, match=f"is up already; end it with: fastmasq lab down --prefix {lab.prefix}"):
            Lab(lab.prefix, "direct").up()
        assert lab.is_up(), "the refused second lab must not harm the first"
    finally:
        assert lab.down() is True
    assert not lab.is_up()
    assert lab.down() is False


def test_same_prefix_is_free_again_after_down(lab: Lab) -> None:
    lab.down()
    lab.up()
    assert answers(lab, "inside", "10.0.0.1")


@pytest.mark.machine
def test_up_is_quick_and_ready(lab_prefix: Callable[[], str]) -> None:
    started = time.monotonic()
    with Lab(lab_prefix()) as lab:
        assert answers(lab, "inside", "10.0.0.1")
        assert answers(lab, "gateway", "199.0.0.1")
        assert time.monotonic() - started < 1.0, "a link or a bridge port came up late"


def test_unknown_names_are_refused_with_the_known_ones(lab: Lab) -> None:
    with pytest.raises(ConfigurationError, match="choose one of masquerade, registered, direct"):
        Lab("x", "nosuch")
    with pytest.raises(ConfigurationError, match="a letter first"):
        Lab("../etc")
    with pytest.raises(ConfigurationError, match="no host 'nosuch'; choose one of inside, inside2, lan, gateway"):
        lab.exec("nosuch", ["true"])


def test_two_labs_side_by_side(make_lab: Callable[..., Lab]) -> None:
    first, second = make_lab(), make_lab("registered")
    assert answers(first, "inside", "10.0.0.1")
    assert answers(second, "inside", "222.0.0.1")
    in_first = first.popen("server", ["sleep", "100"])
    in_second = second.popen("server", ["sleep", "100"])
    for lab, process in ((first, in_first), (second, in_second)):
        assert hosts.wait_until(
            lambda lab=lab, pid=process.pid: any(pid in pids for pids in lab.processes().values()), 5.0
        )
    assert {Lab.find(lab.prefix).kind for lab in (first, second)} == {"masquerade", "registered"}
    second.down()
    assert in_second.wait(1) == -signal.SIGTERM
    assert first.is_up() and answers(first, "inside", "10.0.0.1")
    assert in_first.poll() is None, "only the processes of the lab that goes down may end"
    first.down()
    assert in_first.wait(1) == -signal.SIGTERM


def test_gateway_of_the_masquerade_network_forwards_nothing_by_itself(lab: Lab) -> None:
    assert not answers(lab, "inside", "199.0.0.1", seconds=1)


@pytest.mark.parametrize("network", ["masquerade", "direct"])
def test_kernel_masquerade_is_a_working_baseline(make_lab: Callable[..., Lab], network: str) -> None:
    lab = make_lab(network)
    with KernelMasquerade(lab):
        assert answers(lab, "inside", "199.0.0.1")
    assert not answers(lab, "inside", "199.0.0.1", seconds=1)
    rules = lab.exec("gateway", ["nft", "list", "ruleset"], capture_output=True, text=True)
    assert rules.stdout == ""


def test_inside_hosts_reach_each_other_over_the_lan(lab: Lab) -> None:
    assert answers(lab, "inside", "10.0.0.3")
    assert answers(lab, "inside2", "10.0.0.2")


def test_registered_network_is_routed_by_the_kernel_both_ways(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("registered")
    for address in ("199.0.0.1", "199.0.0.2", "199.0.0.3"):
        assert answers(lab, "inside", address)
    assert answers(lab, "server", "222.0.0.2"), "registered addresses are reachable from outside"


def test_offloads_are_switched_everywhere(lab: Lab) -> None:
    def features(host: str, interface: str) -> set[str]:
        shown = lab.exec(host, ["ethtool", "-k", interface], capture_output=True, text=True, check=True).stdout
        wanted = ("tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload")
        return {line.split(":")[1].strip() for line in shown.splitlines() if line.startswith(wanted)}

    interfaces = [(host, name) for host, spec in lab.network.hosts.items() for name in spec.interfaces]
    assert all(features(*place) == {"on"} for place in interfaces)
    lab.offloads(False)
    assert all(features(*place) == {"off"} for place in interfaces)
    lab.offloads(True)
    assert all(features(*place) == {"on"} for place in interfaces)


def test_exec_ends_with_the_status_of_its_command(lab: Lab) -> None:
    def status(*arguments: str) -> int:
        return fastmasq("lab", "exec", "--prefix", lab.prefix, *arguments).returncode

    assert status("inside", "true") == 0
    assert status("inside", "sh", "-c", "exit 7") == 7
    assert status("inside", "sh", "-c", "kill -TERM $$") == -signal.SIGTERM
    assert status("nosuch", "true") == 2
    assert fastmasq("lab", "exec", "--prefix", "nosuch", "inside", "true").returncode == 1


def test_exec_hands_options_on_to_the_command(lab: Lab) -> None:
    done = fastmasq("lab", "exec", "--prefix", lab.prefix, "gateway", "ip", "-br", "address", "show", "dev", "eth1")
    assert done.stdout.split()[2] == "200.200.200.200/24"


def test_command_line_makes_and_removes_a_lab(lab_prefix: Callable[[], str]) -> None:
    prefix = lab_prefix()
    up = fastmasq("lab", "up", "--network", "direct", "--prefix", prefix)
    try:
        assert up.returncode == 0, up.stderr
        again = fastmasq("lab", "up", "--prefix", prefix)
        assert again.returncode == 1
        assert again.stderr.count("\n") == 1 and "is up already" in again.stderr
        rows = [row for row in json.loads(fastmasq("lab", "status", "--json").stdout) if row["prefix"] == prefix]
        assert [row["host"] for row in rows] == ["inside", "gateway", "server"]
        assert rows[1]["addresses"] == ["10.0.0.1/8", "200.200.200.200/24"]
        assert prefix in fastmasq("lab", "status").stdout
    finally:
        down = fastmasq("lab", "down", "--prefix", prefix)
    assert down.stdout == f"lab {prefix!r} is down\n"
    assert traces(prefix) == []


def test_nothing_is_left_of_a_lab_with_servers(lab_prefix: Callable[[], str]) -> None:
    with Lab(lab_prefix()) as lab:
        scenario.set_stage(lab)
        script = "trap '' TERM; echo ready; while :; do sleep 1; done"
        stubborn = lab.popen("router", ["sh", "-c", script], stdout=subprocess.PIPE, text=True)
        assert stubborn.stdout.readline() == "ready\n"
        pids = [pid for group in lab.processes().values() for pid in group]
        assert len(pids) >= 6
    assert stubborn.wait(1) == -signal.SIGKILL
    assert traces(lab.prefix) == []
    assert hosts.wait_until(lambda: not any(_is_running(pid) for pid in pids), 2.0)


def test_a_failed_up_leaves_nothing(lab_prefix: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(lab_prefix())
    last = lab.network.wires[-1]
    broken = dataclasses.replace(lab.network, wires=(*lab.network.wires, last))
    monkeypatch.setattr(lab, "network", broken)
    with pytest.raises(KernelError, match=r"ip .* link add"):
        lab.up()
    assert traces(lab.prefix) == []


def test_a_server_that_cannot_start_says_why(lab: Lab) -> None:
    services.start_iperf(lab)
    with pytest.raises(KernelError, match=r"iperf server on server did not open tcp port 5201: .*in use"):
        services.start_iperf(lab)


def test_checks_pass_through_the_kernel_and_fail_without_a_forwarder(lab: Lab) -> None:
    stage = scenario.set_stage(lab)
    with KernelMasquerade(lab):
        for check in scenario.CHECKS:
            assert check.run(stage), check.title
        other = dataclasses.replace(stage, download=dataclasses.replace(stage.download, sha256="0" * 64))
        for check in (scenario.check_http, scenario.check_ftp_download):
            with pytest.raises(scenario.CheckFailed, match="SHA-256 differs"):
                check(other)
    with pytest.raises(scenario.CheckFailed, match="ping ended with status 1"):
        scenario.check_ping(stage)


def test_a_port_is_found_while_its_program_closes_other_files(lab: Lab) -> None:
    busy = """import os, socket, threading
port = socket.socket(type=socket.SOCK_DGRAM)
port.bind(("", 53))
def churn():
    while True:
        for file in [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]:
            os.close(file)
for _ in range(2):
    threading.Thread(target=churn).start()
"""
    program = lab.popen("server", [sys.executable, "-c", busy])
    assert [hosts.wait_for_port(program, 53, "udp") for _ in range(20)] == [True] * 20


def test_fastmasq_runs_in_two_labs_at_once(masquerade_lab: Callable[..., Fastmasq]) -> None:
    for forwarder in [masquerade_lab(), masquerade_lab(network="direct")]:
        assert answers(forwarder.lab, "inside", "199.0.0.1")
        assert forwarder.process.pid in forwarder.lab.processes()["gateway"]
        assert "icmp" in forwarder.run_command("sessions")


def test_fastmasq_that_does_not_start_shows_its_own_words(lab: Lab) -> None:
    forwarder = Fastmasq(lab, extra="colour = 'green'")
    with pytest.raises(KernelError, match=r"ended with status 2 before it forwarded: fastmasq: .*colour"):
        forwarder.install()
    assert not forwarder.is_running()


@pytest.mark.parametrize("step", ["network", "HTTP download"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(lab_prefix: Callable[[], str], step: str, number: signal.Signals) -> None:
    prefix = lab_prefix()
    argv = [sys.executable, "-m", "fastmasq", "demo", "--prefix", prefix]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as demo:
        shown = ""
        while step not in shown:
            character = demo.stdout.read(1)
            assert character, f"the demo ended before {step!r}:\n{shown}"
            shown += character
        demo.send_signal(number)
        demo.send_signal(number)  # an impatient user
        demo.stdout.read()
        assert demo.wait() == 130
    assert traces(prefix) == []


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
