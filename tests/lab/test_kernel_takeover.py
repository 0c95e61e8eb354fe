"""The kernel stands aside and is put back: in order, after a crash, by a successor; nobody undoes what is in use."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from fastmasq.errors import KernelError
from fastmasq.kernel import privileges
from fastmasq.kernel.conflicts import conflicts
from fastmasq.kernel.takeover import IP_FORWARD, Takeover, release
from tests.support.guarded_host import EXTERNAL, OUR_PORT, SPEC, tcp, traces
from tests.support.namespaces import Gateway, Namespace

RUNNING = """if True:
    import sys, time
    from pathlib import Path
    from fastmasq.kernel.takeover import Takeover
    from tests.support.guarded_host import SPEC
    takeover = Takeover(Path({folder!r}))
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
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def journal_in(folder: Path) -> Path:
    (journal,) = folder.glob("*.journal")
    return journal


@pytest.fixture(params=["nftables", "tc", "iptables"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def settings(host: Namespace) -> str:
    return host.sh("sysctl net.ipv4 | grep -v -e random -e stable_secret -e route.flush")


def state(host: Namespace) -> tuple[str, str]:
    """Return everything that a takeover might change."""
    return settings(host), traces(host)


def crash(host: Namespace, folder: Path, backend: str = "nftables") -> int:
    """Take over, and be killed; return the process id it was."""
    process = host.python(RUNNING.format(folder=str(folder), backend=backend))
    assert process.stdout.readline() == "ready\n"
    taken = json.loads(journal_in(folder).read_text())["pid"]
    os.kill(taken, signal.SIGKILL)
    process.communicate()
    return taken


def in_force(gateway: Gateway) -> bool:
    """Tell whether the kernel stands aside."""
    quiet = tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence"
    forwards = gateway.host.sh("cat /proc/sys/net/ipv4/conf/*/forwarding").split()
    assert quiet == (set(forwards) == {"0"})
    return quiet


def test_all_is_put_back(gateway: Gateway, folder: Path, backend: str) -> None:
    before = state(gateway.host)
    with gateway.host.entered():
        takeover = Takeover(folder)
        assert takeover.adopted is False
        takeover.stop_forwarding()
        takeover.guard(backend, SPEC)
    assert in_force(gateway)
    assert state(gateway.host) != before
    with gateway.host.entered():
        restored = takeover.restore()
    assert restored.done[-1] == f"guard ({backend}) removed", "the guard goes last"
    assert f"{IP_FORWARD} = 1" in restored.done and restored.left == []
    assert state(gateway.host) == before
    assert list(folder.iterdir()) == []
    with gateway.host.entered():
        assert takeover.restore() == ([], [])
    assert state(gateway.host) == before


def test_interfaces_that_forward_alone_are_stopped_and_put_back(gateway: Gateway, folder: Path) -> None:
    gateway.host.sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.eth0.forwarding=1")
    before = state(gateway.host)
    with gateway.host.entered():
        takeover = Takeover(folder)
        takeover.stop_forwarding()
        assert gateway.host.sysctl("net.ipv4.conf.eth0.forwarding") == "0"
        takeover.restore()
    assert state(gateway.host) == before


def test_the_journal_is_private_and_written_before_the_change(gateway: Gateway, folder: Path) -> None:
    with gateway.host.entered():
        takeover = Takeover(folder)
        journal = journal_in(folder)
        assert stat.S_IMODE(journal.stat().st_mode) == 0o600
        with pytest.raises(KernelError, match="ip_local_reserved_ports = 70000: Invalid argument"):
            takeover.set_sysctl("net.ipv4.ip_local_reserved_ports", "70000")
        (entry,) = json.loads(journal.read_text())["entries"]
        assert (entry["sysctl"], entry["old"]) == ("net.ipv4.ip_local_reserved_ports", "8080")
        takeover.restore()
        assert gateway.host.sysctl("net.ipv4.ip_local_reserved_ports") == "8080"


def test_an_impossible_journal_changes_nothing(gateway: Gateway, tmp_path: Path) -> None:
    before = state(gateway.host)
    with gateway.host.entered(), pytest.raises(KernelError, match=r"the folder .*/nowhere/run: No such file"):
        Takeover(tmp_path / "nowhere/run")
    assert state(gateway.host) == before
    with gateway.host.entered():
        Takeover(tmp_path / "run").restore()


def test_nothing_leaks_after_a_crash_and_release_puts_all_back(gateway: Gateway, folder: Path, backend: str) -> None:
    before = state(gateway.host)
    crash(gateway.host, folder, backend)
    assert in_force(gateway)
    with gateway.host.entered():
        done, left = release(folder)
    assert f"guard ({backend}) removed" in done
    assert "net.ipv4.ip_local_reserved_ports = 8080" in done
    assert left == []
    assert state(gateway.host) == before
    assert list(folder.iterdir()) == []
    with gateway.host.entered():
        assert release(folder) == ([], [])


def test_release_is_refused_while_it_runs(gateway: Gateway, folder: Path) -> None:
    with gateway.host.entered():
        takeover = Takeover(folder)
        takeover.stop_forwarding()
        with pytest.raises(KernelError, match=rf"another fastmasq \(pid {os.getpid()}\) runs in this network namesp"):
            release(folder)
        takeover.restore()


def test_a_second_instance_is_refused_and_one_elsewhere_is_not(gateway: Gateway, folder: Path) -> None:
    with gateway.host.entered():
        first = Takeover(folder)
        with pytest.raises(KernelError, match=rf"another fastmasq \(pid {os.getpid()}\) runs in this network namesp"):
            Takeover(folder)
    with gateway.inside.entered():
        elsewhere = Takeover(folder)
        assert elsewhere.adopted is False
        elsewhere.restore()
    with gateway.host.entered():
        first.restore()
        Takeover(folder).restore()


def test_a_name_that_anybody_can_take_keeps_nobody_from_starting(gateway: Gateway, folder: Path) -> None:
    with gateway.host.entered(), socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind("\0fastmasq")
        Takeover(folder).restore()


def test_a_successor_adopts_what_the_dead_recorded(gateway: Gateway, folder: Path, backend: str) -> None:
    before = state(gateway.host)
    crash(gateway.host, folder, backend)
    with gateway.host.entered():
        takeover = Takeover(folder)
        assert takeover.adopted is True
        assert in_force(gateway), "no moment without"
        takeover.stop_forwarding()
        takeover.guard(backend, SPEC)
        assert in_force(gateway)
        takeover.restore()
    assert state(gateway.host) == before


def test_a_successor_may_use_another_backend(gateway: Gateway, folder: Path) -> None:
    before = state(gateway.host)
    pairs = ("nftables", "tc"), ("tc", "nftables"), ("tc", "iptables"), ("iptables", "auto"), ("tc", "none")
    for dead, living in pairs:
        crash(gateway.host, folder, dead)
        with gateway.host.entered():
            takeover = Takeover(folder)
            guard = takeover.guard(living, SPEC)
            assert (tcp(gateway.outside, EXTERNAL, OUR_PORT) == "silence") == (living != "none")
            takeover.restore()
        assert guard.backend == living or living == "auto"
        assert state(gateway.host) == before


def test_many_crashes_in_a_row(gateway: Gateway, folder: Path) -> None:
    before = state(gateway.host)
    for backend in ("nftables", "tc", "iptables", "nftables", "tc"):
        crash(gateway.host, folder, backend)
        assert in_force(gateway)
    with gateway.host.entered():
        release(folder)
    assert state(gateway.host) == before


def test_vanished_interfaces_are_tolerated(gateway: Gateway, folder: Path, backend: str) -> None:
    crash(gateway.host, folder, backend)
    gateway.host.ip("link delete eth1")
    with gateway.host.entered():
        release(folder)
    assert gateway.host.sysctl(IP_FORWARD) == "1"
    assert gateway.host.sysctl("net.ipv4.conf.eth0.forwarding") == "1"
    assert "fastmasq" not in traces(gateway.host)


def test_a_guard_without_a_journal_is_released(gateway: Gateway, folder: Path, backend: str) -> None:
    crash(gateway.host, folder, backend)
    journal_in(folder).unlink()
    with gateway.host.entered():
        assert release(folder) == ([f"guard ({backend}) removed"], [])
    assert "fastmasq" not in traces(gateway.host)


def test_a_newer_decision_of_somebody_else_stays(gateway: Gateway, folder: Path) -> None:
    name = "net.ipv4.ip_local_reserved_ports"
    with gateway.host.entered():
        takeover = Takeover(folder)
        assert takeover.concede(name) is False, "it is not ours"
        takeover.set_sysctl(name, "61000-65095")
        assert takeover.concede(name) is False
        gateway.host.sh(f"sysctl -qw {name}=9090")
        assert takeover.concede(name) is True
        takeover.set_sysctl(name, "9090,61000-65095")
        assert takeover.restore().done == [f"{name} = 9090"]
    assert gateway.host.sysctl(name) == "9090"


def test_what_somebody_set_and_nobody_noticed_stays(gateway: Gateway, folder: Path) -> None:
    name = "net.ipv4.ip_local_reserved_ports"
    with gateway.host.entered():
        takeover = Takeover(folder)
        takeover.set_sysctl(name, "61000-65095")
        gateway.host.sh(f"sysctl -qw {name}=9090")
        assert takeover.restore().done == [f"{name} left at 9090: somebody else changed it meanwhile"]
    assert gateway.host.sysctl(name) == "9090"


def test_each_namespace_has_a_journal_of_its_own(gateway: Gateway, folder: Path) -> None:
    crash(gateway.host, folder)
    with gateway.inside.entered():
        assert release(folder) == ([], [])
        takeover = Takeover(folder)
        assert takeover.adopted is False
        takeover.restore()
    assert in_force(gateway)
    with gateway.host.entered():
        assert release(folder).left == []


def test_what_is_not_understood_is_said_at_the_end_and_stops_nothing(gateway: Gateway, folder: Path) -> None:
    """A journal of another version, with odd entries among those that are known, one of which cannot be undone."""
    before = state(gateway.host)
    crash(gateway.host, folder)
    journal = journal_in(folder)
    content = json.loads(journal.read_text())
    odd = [{"offload": "eth0"}, {"sysctl": "kernel.hostname", "old": "x", "new": "y", "dependents": {}}]
    content["entries"][1:1] = [*odd, {"guard": "ebtables", "memory": {}}]
    journal.write_text(json.dumps({**content, "version": 99}))
    with gateway.host.entered():
        done, left = release(folder)
    assert "net.ipv4.ip_forward = 1" in done and "guard (nftables) removed" in done
    assert state(gateway.host) == before
    assert len(left) == 3 and "no guard ebtables" in left[0]
    assert all(f"{journal} has an entry that this version does not know: " in line for line in left[1:])
    with gateway.host.entered():
        takeover = Takeover(folder)
        takeover.stop_forwarding()
        assert len(takeover.restore().left) == 3
    assert state(gateway.host) == before


def test_a_journal_that_is_cut_short_is_set_aside(gateway: Gateway, folder: Path) -> None:
    crash(gateway.host, folder)
    journal = journal_in(folder)
    journal.write_text(journal.read_text()[:100])
    with gateway.host.entered():
        done, left = release(folder)
    assert done == ["guard (nftables) removed"]
    assert "was damaged" in left[0] and Path(f"{journal}.old").exists()


def test_a_journal_of_a_boot_before_is_set_aside_with_a_line(gateway: Gateway, folder: Path) -> None:
    """Its settings went with that boot; only a guard can be there without one."""
    crash(gateway.host, folder)
    journal = journal_in(folder)
    journal.write_text(json.dumps({**json.loads(journal.read_text()), "boot": "another"}))
    with gateway.host.entered():
        done, left = release(folder)
    assert "about a network namespace that is gone; it is now" in done[0] and Path(f"{journal}.old").exists()
    assert (done[1:], left) == (["guard (nftables) removed"], [])


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
