"""The Debian package's service under a systemd that has booted the gateway: started, watched, reloaded and stopped."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from fastmasq.lab import scenario
from fastmasq.lab.topology import Lab
from tests.release import programs, roots
from tests.support.lab_network import eventually
from tests.support.systemd_host import SystemdHost

CONFIGURATION = """[interfaces]
inside = ["eth0"]
outside = "eth1"
[control]
socket = "/run/fastmasq/control.sock"
"""
CAPABILITIES = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39  # NET_ADMIN, NET_RAW, PERFMON, BPF: linux/capability.h
FASTMASQ = "fastmasq.service"


@pytest.fixture
def host(lab: Lab) -> Iterator[SystemdHost]:
    """Return a host on which the package is installed and configured, and its service not started."""
    with roots.folder(roots.debian("bookworm", "systemd", "nftables")) as root:
        shutil.copy(programs.deb(), root / "package.deb")
        roots.checked(roots.inside(root, "/usr/bin/dpkg", "--install", "/package.deb"))
        (root / "etc/fastmasq.toml").write_text(CONFIGURATION)
        with SystemdHost(lab, root) as booted:
            yield booted


def shown(host: SystemdHost, name: str) -> str:
    """Return what systemd says of the service."""
    return host.run("systemctl", "show", "--value", "--property", name, FASTMASQ).strip()


def main_process(host: SystemdHost) -> int:
    """Return the number that the service's process has there."""
    return int(shown(host, "MainPID"))


def test_the_service_lives_under_systemd(lab: Lab, host: SystemdHost) -> None:
    stage = scenario.set_stage(lab)
    host.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
    host.run("systemctl", "enable", "--now", FASTMASQ)
    assert shown(host, "ActiveState") == "active", "it has said READY=1"
    assert "forwarding" in shown(host, "StatusText")
    status = host.run("cat", f"/proc/{main_process(host)}/status")
    assert int(re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE)[1], 16) & ~CAPABILITIES == 0
    user = host.run("id", "-u", "fastmasq").strip()
    assert re.search(r"^Uid:\s*(\d+)", status, re.MULTILINE)[1] == user != "0"
    assert host.run("stat", "-c", "%U:%G %a", "/run/fastmasq").strip() == "fastmasq:fastmasq 750"
    host.run("mountpoint", "/run/fastmasq/bpf")
    assert host.run("stat", "-c", "%U %a %s", "/var/lib/fastmasq/key").strip() == "fastmasq 600 16"
    for check in scenario.CHECKS:
        assert check.run(stage), check.title

    of_the_group = ["setpriv", "--reuid", "65534", "--regid", "fastmasq", "--clear-groups"]
    assert "eth1" in host.run(*of_the_group, "fastmasq", "status")
    assert "only tells" in host.run(*of_the_group, "fastmasq", "reload", status=2)

    host.run("systemctl", "reload", FASTMASQ)
    host.run("sh", "-c", "echo '[limits' >>/etc/fastmasq.toml")
    host.run("systemctl", "reload", FASTMASQ, status=1)
    assert shown(host, "ActiveState") == "active", "a mistake in the configuration ends nothing"
    before = main_process(host)
    said = host.run("dpkg", "--install", "/package.deb")
    assert "not upgraded, and all goes on as it was: /etc/fastmasq.toml" in said and main_process(host) == before
    host.run("sed", "-i", "$d", "/etc/fastmasq.toml")
    for upgrade in (["dpkg", "--install", "/package.deb"], ["fastmasq", "upgrade"]):
        before = main_process(host)
        host.run(*upgrade)
        assert main_process(host) not in (0, before), "another process goes on"
        assert (shown(host, "ActiveState"), shown(host, "NRestarts")) == ("active", "0")
        assert scenario.check_ping(stage)
    eventually(lambda: "forwarding" in shown(host, "StatusText"), 10, "it speaks for the service")
    first = main_process(host)
    host.run("sh", "-c", f"kill -KILL {first}")
    eventually(lambda: shown(host, "ActiveState") == "active" and main_process(host) not in (0, first), 10, "a restart")
    second = main_process(host)
    host.run("sh", "-c", f"kill -STOP {second}")
    eventually(lambda: main_process(host) not in (0, second), 30, "a restart by the watchdog")
    eventually(lambda: shown(host, "ActiveState") == "active", 10, "it forwards again")
    assert shown(host, "NRestarts") == "2"
    assert scenario.check_ping(stage)

    host.run("systemctl", "stop", FASTMASQ)
    assert host.run("cat", "/proc/sys/net/ipv4/ip_forward") == "0\n", "it is kept"
    assert "net.ipv4.ip_forward = 1" in host.run("fastmasq", "release")
