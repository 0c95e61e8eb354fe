"""The kernel stands aside and is put back: in order, after a crash, by a successor; nobody undoes what is in use."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest

from fastmasq.errors import KernelError
from fastmasq.kernel import privileges
from fastmasq.kernel.conflicts import conflicts
from fastmasq.kernel.takeover import IP_FORWARD, Takeover, release
from fastmasq.lab import hosts
from tests.support.guarded_host import EXTERNAL, OUR_PORT, SPEC, tcp, traces
from tests.support.namespaces import Gateway, Namespace

RUNNING = """if True:
    import sys, time
    from fastmasq.kernel.takeover import Takeover
    from tests.support.guarded_host import SPEC
    takeover = Takeover({journal!r})
    takeover.stop_forwarding()
    takeover.set_sysctl("net.ipv4.ip_local_reserved_ports", "61000-65095")
    takeover.guard({backend!r}, SPEC)
    print("ready")
    time.sleep(60)
"""


@pytest.fixture
def gateway(gateway: Gateway) -> Gateway:
    gateway.host.sh(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.eth1.forwarding=0 "
        "net.ipv4.ip_local_reserved_ports=8080"
    )
    return gateway


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "fastmasq.journal"


@pytest.fixture(params=["nftables", "tc", "iptables"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def settings(host: Namespace) -> str:
    return host.sh("sysctl net.ipv4 | grep -v -e random -e stable_secret -e route.flush")


def state(host: Namespace) -> tuple[str, str]:
    """Return everything that a takeover might change."""
    return settings(host), traces(host)


def crash(host: Namespace, journal: Path, backend: str = "nftables") -> int:
    """Take over, and be killed; return the process id it was."""
    process = host.python(RUNNING.format(journal=str(journal), backend=backend))
    assert process.stdout.readline() == "ready\n"
    taken = json.loads(journal.read_text())["pid"]
    os.kill(taken, signal.SIGKILL)
    process.communicate()
    return taken


def in_force(gateway: Gateway) -> bool:
    """Tell whether the kernel stands aside."""
    quiet = tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence"
    forwards = gateway.host.sh("cat /proc/sys/net/ipv4/conf/*/forwarding").split()
    assert quiet == (set(forwards) == {"0"})
    return quiet


def test_all_is_put_back(gateway: Gateway, journal: Path, backend: str) -> None:
    before = state(gateway.host)
    with gateway.host.entered():
        takeover = Takeover(journal)
        assert takeover.adopted is False
        takeover.stop_forwarding()
        takeover.guard(backend, SPEC)
    assert in_force(gateway)
    assert state(gateway.host) != before
    with gateway.host.entered():
        lines = takeover.restore()
    assert lines[0] == f"guard ({backend}) removed"
    assert f"{IP_FORWARD} = 1" in lines
    assert state(gateway.host) == before
    assert not journal.exists()
    with gateway.host.entered():
        assert takeover.restore() == []
    assert state(gateway.host) == before


def test_interfaces_that_forward_alone_are_stopped_and_put_back(gateway: Gateway, journal: Path) -> None:
    gateway.host.sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.eth0.forwarding=1")
    before = state(gateway.host)
    with gateway.host.entered():
        takeover = Takeover(journal)
        takeover.stop_forwarding()
        assert gateway.host.sysctl("net.ipv4.conf.eth0.forwarding") == "0"
        takeover.restore()
    assert state(gateway.host) == before


def test_the_journal_is_private_and_written_before_the_change(gateway: Gateway, journal: Path) -> None:
    with gateway.host.entered():
        takeover = Takeover(journal)
        assert stat.S_IMODE(journal.stat().st_mode) == 0o600
        with pytest.raises(KernelError, match="ip_local_reserved_ports = nonsense: Invalid argument"):
            takeover.set_sysctl("net.ipv4.ip_local_reserved_ports", "nonsense")
        (entry,) = json.loads(journal.read_text())["entries"]
        assert (entry["sysctl"], entry["old"]) == ("net.ipv4.ip_local_reserved_ports", "8080")
        takeover.restore()
        assert gateway.host.sysctl("net.ipv4.ip_local_reserved_ports") == "8080"


def test_an_impossible_journal_changes_nothing(gateway: Gateway, tmp_path: Path) -> None:
    before = state(gateway.host)
    with gateway.host.entered(), pytest.raises(KernelError, match="cannot write the journal"):
        Takeover(tmp_path / "nowhere" / "journal")
    assert state(gateway.host) == before
    with gateway.host.entered():
        Takeover(tmp_path / "journal").restore()


def test_nothing_leaks_after_a_crash_and_release_puts_all_back(gateway: Gateway, journal: Path, backend: str) -> None:
    before = state(gateway.host)
    crash(gateway.host, journal, backend)
    assert in_force(gateway)
    with gateway.host.entered():
        lines = release(journal)
    assert f"guard ({backend}) removed" in lines
    assert "net.ipv4.ip_local_reserved_ports = 8080" in lines
    assert state(gateway.host) == before
    assert not journal.exists()
    with gateway.host.entered():
        assert release(journal) == []


def test_release_is_refused_while_it_runs(gateway: Gateway, journal: Path, tmp_path: Path) -> None:
    with gateway.host.entered():
        takeover = Takeover(journal)
        takeover.stop_forwarding()
        for path in (journal, tmp_path / "another"):
            with pytest.raises(
                KernelError, match=rf"another fastmasq \(pid {os.getpid()}\) runs in this network namesp"
            ):
                release(path)
        takeover.restore()


def test_a_second_instance_is_refused(gateway: Gateway, journal: Path, tmp_path: Path) -> None:
    with gateway.host.entered():
        first = Takeover(journal)
        with pytest.raises(
            KernelError, match=rf"another fastmasq \(pid {os.getpid()}\) runs in this network namespace"
        ):
            Takeover(tmp_path / "another")
    with gateway.inside.entered():
        elsewhere = Takeover(tmp_path / "another")
        with pytest.raises(KernelError, match=rf"in use by fastmasq \(pid {os.getpid()}\)"):
            try:
                elsewhere.restore()
            finally:
                Takeover(journal)
    with gateway.host.entered():
        first.restore()
        Takeover(journal).restore()


def test_a_successor_adopts_what_the_dead_recorded(gateway: Gateway, journal: Path, backend: str) -> None:
    before = state(gateway.host)
    crash(gateway.host, journal, backend)
    with gateway.host.entered():
        takeover = Takeover(journal)
        assert takeover.adopted is True
        assert in_force(gateway), "no moment without"
        takeover.stop_forwarding()
        takeover.guard(backend, SPEC)
        assert in_force(gateway)
        takeover.restore()
    assert state(gateway.host) == before


def test_a_successor_may_use_another_backend(gateway: Gateway, journal: Path) -> None:
    before = state(gateway.host)
    pairs = ("nftables", "tc"), ("tc", "nftables"), ("tc", "iptables"), ("iptables", "auto"), ("tc", "none")
    for dead, living in pairs:
        crash(gateway.host, journal, dead)
        with gateway.host.entered():
            takeover = Takeover(journal)
            guard = takeover.guard(living, SPEC)
            assert (tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence") == (living != "none")
            takeover.restore()
        assert guard.backend == living or living == "auto"
        assert state(gateway.host) == before


def test_many_crashes_in_a_row(gateway: Gateway, journal: Path) -> None:
    before = state(gateway.host)
    for backend in ("nftables", "tc", "iptables", "nftables", "tc"):
        crash(gateway.host, journal, backend)
        assert in_force(gateway)
    with gateway.host.entered():
        release(journal)
    assert state(gateway.host) == before


def test_vanished_interfaces_are_tolerated(gateway: Gateway, journal: Path, backend: str) -> None:
    crash(gateway.host, journal, backend)
    gateway.host.ip("link delete eth1")
    with gateway.host.entered():
        release(journal)
    assert gateway.host.sysctl(IP_FORWARD) == "1"
    assert gateway.host.sysctl("net.ipv4.conf.eth0.forwarding") == "1"
    assert "fastmasq" not in traces(gateway.host)


def test_a_guard_without_a_journal_is_released(gateway: Gateway, journal: Path, backend: str) -> None:
    crash(gateway.host, journal, backend)
    journal.unlink()
    with gateway.host.entered():
        assert release(journal) == [f"guard ({backend}) removed"]
    assert "fastmasq" not in traces(gateway.host)


def test_a_newer_decision_of_somebody_else_stays(gateway: Gateway, journal: Path) -> None:
    name = "net.ipv4.ip_local_reserved_ports"
    with gateway.host.entered():
        takeover = Takeover(journal)
        takeover.set_sysctl(name, "61000-65095")
        assert takeover.drifted() == []
        gateway.host.sh(f"sysctl -qw {name}=9090")
        assert takeover.drifted() == [
            f"{name} is 9090, but fastmasq needs 61000-65095: somebody changed it; set it back"
        ]
        assert takeover.restore() == [f"{name} left at 9090: somebody else changed it meanwhile"]
    assert gateway.host.sysctl(name) == "9090"


def test_a_journal_of_another_namespace_is_refused(gateway: Gateway, journal: Path) -> None:
    crash(gateway.host, journal)
    for attempt in (release, Takeover):
        with (
            gateway.inside.entered(),
            pytest.raises(KernelError, match=f"another network namespace \\({gateway.host.name}"),
        ):
            attempt(journal)
    assert in_force(gateway)
    hosts.configure([f"netns delete {gateway.host.name}"])
    other = Namespace()
    with other.entered():
        takeover = Takeover(journal)
        assert takeover.adopted is False
        takeover.restore()
    other.remove()


def test_conflicts(gateway: Gateway) -> None:
    with gateway.host.entered():
        assert conflicts(["eth0"], "eth1") == []
        gateway.host.sh("ip link add vm0 type veth peer name vm1; ip link set vm0 up")
        (sentence,) = conflicts(["eth0"], "eth1")
        assert sentence.startswith("net.ipv4.ip_forward is 1 and vm0 may depend on it")
        gateway.host.sh("sysctl -qw net.ipv4.ip_forward=0")
        gateway.host.sh("nft add table ip nat")
        gateway.host.sh("nft 'add chain ip nat post { type nat hook postrouting priority srcnat; }'")
        gateway.host.sh("nft 'add rule ip nat post oifname eth0 masquerade'")
        assert conflicts(["eth0"], "eth1") == []
        gateway.host.sh("nft 'add rule ip nat post oifname eth1 masquerade'")
        gateway.host.sh("nft 'add rule ip nat post ip saddr 10.0.0.0/8 snat to 200.200.200.200'")
        first, second = conflicts(["eth0"], "eth1")
        assert first.startswith("nftables table ip nat, chain post, handle 3 translates sources on eth1")
        assert "handle 4" in second


def test_privileges_that_were_dropped_are_missed(gateway: Gateway) -> None:
    status = gateway.host.sh("setpriv --bounding-set=-net_admin,-net_raw --inh-caps=-all cat /proc/self/status")
    assert privileges.missing(status) == ["CAP_NET_ADMIN", "CAP_NET_RAW"]
