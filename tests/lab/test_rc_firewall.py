"""A gateway's rc.firewall of 1999, run unchanged by `sh` as init does, on a host that fastmasq was installed into.

The host is a root of its own: what `fastmasq install --root` has written, with folders for the programs of 1999 as
they were (/sbin beside /usr/sbin), and the system and Python of this machine mounted into it. Init hands on no
environment; the script sets its PATH, and calls programs by it and by absolute paths.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastmasq.advice.templates import text_of
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import ECHO_PORT, INSIDE_ADDRESS, Network, eventually, round_trip

ROOT = Path(__file__).parents[2]
FORWARD = "/proc/sys/net/ipv4/ip_forward"

HEAD = """\
#!/bin/sh
#
# /etc/rc.d/rc.firewall
#
PATH=/sbin:/bin:/usr/sbin:/usr/bin

# Load the modules for masquerading
#
/sbin/depmod -a
/sbin/modprobe ip_masq_ftp
/sbin/modprobe ip_masq_quake 26000,27000,27910,27960
/sbin/insmod /lib/modules/2.0.38/ipv4/ip_masq_irc.o
modprobe ip_masq_pptp

# Forwarding is disabled by default
#
echo "1" > /proc/sys/net/ipv4/ip_forward

# For those who dial in
#
echo "1" > /proc/sys/net/ipv4/ip_dynaddr

"""
TOOLS = {  # tool: its way to set times, a rule set of the HOWTO, and how to list forward rules
    "ipfwadm": ("/sbin/ipfwadm -M -s 7200 10 60", "3.5-ipfwadm-minimum-eth1", "-F -l -n"),
    "ipchains": ("/sbin/ipchains -M -S 7200 10 60", "3.6-ipchains-minimum-eth1", "-L forward -n"),
}

MOUNT = """
set -e
cd "$1"
for folder in bin lib lib32 lib64 share libexec; do
    [ ! -e "/usr/$folder" ] || mount --bind "/usr/$folder" "usr/$folder"
done
mount --rbind /proc proc
mount --rbind /dev dev
for folder in $2; do
    mount --bind "$folder" "./$folder"
done
mount -t tmpfs run run
touch run/fastmasq.sock
mount --bind "$3" run/fastmasq.sock
shift 3
exec env -i "$(command -v chroot)" . "$@"
"""


class Host:
    """The root of a gateway, fastmasq installed, that is put together anew for each program run in it."""

    def __init__(self, net: Network, folder: Path) -> None:
        self.net = net
        self.folder = folder
        needed = sorted({str(ROOT), sys.prefix, sys.base_prefix})
        self._mounted = [path for path in needed if not Path(path).is_relative_to("/usr")]
        for path in ("sbin", "usr/sbin", "etc/init.d", "etc/rc.d", "proc", "dev", "run", "tmp"):
            (folder / path).mkdir(parents=True)
        for name in ("bin", "lib", "lib32", "lib64", "share", "libexec"):
            if Path("/usr", name).exists():
                (folder / "usr" / name).mkdir()
            if name != "share" and Path("/", name).exists():
                (folder / name).symlink_to(f"usr/{name}")
        for path in self._mounted:
            folder.joinpath(path.lstrip("/")).mkdir(parents=True)
        done = subprocess.run(
            [sys.executable, "-m", "fastmasq", "install", "--root", folder], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program in this root, in the gateway's network, with no environment."""
        place = [str(self.folder), " ".join(self._mounted), str(self.net.fastmasq.socket)]
        return self.net.lab.exec(
            "gateway",
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNT, "sh", *place, *argv],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip


@pytest.mark.parametrize("tool", list(TOOLS))
def test_5_2_5_3_rc_firewall_runs_unchanged(net: Network, tmp_path: Path, tool: str) -> None:
    times, rules, listing = TOOLS[tool]
    net.start()
    net.echo_tcp()
    host = Host(net, tmp_path / "root")
    outside = net.sniff("router", "eth0")
    before = net.connect("inside", (SERVER_ADDRESS, ECHO_PORT), port=6000)
    assert round_trip(before, None, b"before")

    body = text_of(rules).replace(f"{tool} ", f"/sbin/{tool} ", 3)
    (host.folder / "etc/rc.d/rc.firewall").write_text(f"{HEAD}{times}\n\n{body}")
    done = host.run("/bin/sh", "/etc/rc.d/rc.firewall")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    eventually(lambda: net.run("gateway", "cat", FORWARD).strip() == "0")
    assert round_trip(before, None, b"after")
    later = net.connect("inside", (SERVER_ADDRESS, ECHO_PORT), port=6001)
    assert round_trip(later, None, b"later")
    listed = host.run(f"/sbin/{tool}", *listing.split())
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "10.0.0.0/8" in listed.stdout
    assert {session["inside"] for session in net.sessions(protocol="tcp")} == {
        f"{INSIDE_ADDRESS}:6000",
        f"{INSIDE_ADDRESS}:6001",
    }
    assert 7190 < net.sessions(protocol="tcp")[0]["expires_s"] <= 7201
    assert outside.of(source=EXTERNAL_ADDRESS), "the sniffer hears"
    assert outside.of(source=INSIDE_ADDRESS) == []
    assert net.drops() == {}


def test_5_3_modules_of_others_are_not_answered_for(net: Network, tmp_path: Path) -> None:
    net.start()
    done = Host(net, tmp_path / "root").run("/sbin/modprobe", "ppp_generic")
    assert done.returncode == 1
    assert "this host has no kernel modules" in done.stderr
