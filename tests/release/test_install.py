"""A host on which fastmasq is installed, started by System V's script, used, stopped and uninstalled, as root does it.

The host is the gateway of a lab; its files are this machine's, in an overlay that keeps what is written to itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.guarded_host import traces
from tests.support.lab_network import ECHO_PORT, INSIDE_ADDRESS, Network, round_trip

ROOT = Path(__file__).parents[2]

OVERLAY = """
set -e
mount -t tmpfs overlay "$1"
cd "$1"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
for folder in proc sys dev; do mount --rbind "/$folder" "root/$folder"; done
for folder in run tmp; do mount -t tmpfs "$folder" "root/$folder"; done
mkdir -p root/etc/init.d root/var/lib
for path in $2; do
    mkdir -p "root/$path"
    mount --bind "$path" "root/$path"
done
echo ready
exec sleep 600
"""
BROUGHT = [
    *("/etc/fastmasq.toml", "/etc/init.d/fastmasq", "/sbin/ipchains", "/usr/bin/fastmasq"),
    *("/usr/lib/systemd/system/fastmasq.service", "/usr/share/man/man8/ipchains.8", "/var/lib/fastmasq"),
]


class Host:
    """A shell of root's on the gateway of a network."""

    def __init__(self, net: Network, folder: Path) -> None:
        folder.mkdir()
        needed = " ".join(sorted({str(ROOT), sys.prefix, sys.base_prefix}))  # which may be on other file systems
        self._root = folder / "root"
        self._holder = net.lab.popen(
            "gateway",
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", OVERLAY, "sh", str(folder), needed],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout.readline() == "ready\n"

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()

    def sh(self, line: str, status: int = 0) -> str:
        """Run a line of shell that must end with this status; return all that it says."""
        place = ["nsenter", "-t", str(self._holder.pid), "-m", "-n", "chroot", str(self._root)]
        done = subprocess.run(
            [*place, "sh", "-c", line],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == status, f"{line}: {done.stdout}"
        return done.stdout


@pytest.fixture
def net(lab: object) -> Iterator[Network]:
    network = Network(lab)
    yield network
    network.close()


@pytest.fixture
def host(net: Network, tmp_path: Path) -> Iterator[Host]:
    made = Host(net, tmp_path / "host")
    yield made
    made.close()


def there(host: Host) -> list[str]:
    """Return what of BROUGHT there is."""
    return host.sh(f"for path in {' '.join(BROUGHT)}; do [ ! -e $path ] || echo $path; done").split()


def test_a_host_has_its_service_and_is_as_before_without(net: Network, host: Host) -> None:
    host.sh("sysctl -qw net.ipv4.ip_forward=1")
    fastmasq = f"{sys.executable} -m fastmasq"
    assert there(host) == []
    said = host.sh(f"{fastmasq} install")
    assert "user and group fastmasq: made" in said
    assert "/etc/fastmasq.toml: inside eth0, outside eth1, as it seems" in said
    assert there(host) == BROUGHT
    assert host.sh("id -gn fastmasq") == "fastmasq\n"
    assert "all is in place" in host.sh("fastmasq install")

    host.sh("/etc/init.d/fastmasq start")
    host.sh("/etc/init.d/fastmasq status")
    net.echo_tcp()
    outside = net.sniff("router", "eth0")
    connection = net.connect("inside", (SERVER_ADDRESS, ECHO_PORT), port=6000)
    assert round_trip(connection, None, b"first")
    assert INSIDE_ADDRESS in host.sh("fastmasq sessions")
    host.sh("/sbin/ipchains -A forward -s 10.0.0.0/8 -j MASQ")
    host.sh("/etc/init.d/fastmasq reload")
    host.sh("/etc/init.d/fastmasq restart")
    assert round_trip(connection, None, b"resumed"), "TCP from inside is picked up in mid-stream"
    assert outside.of(source=EXTERNAL_ADDRESS)
    assert outside.of(source=INSIDE_ADDRESS) == []

    host.sh("/etc/init.d/fastmasq stop")
    host.sh("/etc/init.d/fastmasq status", status=3)
    assert host.sh("cat /proc/sys/net/ipv4/ip_forward") == "0\n", "it is kept"
    host.sh("/etc/init.d/fastmasq start")
    said = host.sh("fastmasq uninstall")
    assert "net.ipv4.ip_forward = 1" in said, "it was released"
    assert there(host) == []
    host.sh("id fastmasq", status=1)
    assert "fastmasq" not in traces(host)
    host.sh(f"{fastmasq} uninstall", status=1)
