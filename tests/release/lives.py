"""Checks of a bundle's life on a host: supervised, installed from the folder, and where there is no nftables."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from fastmasq.errors import FastmasqError
from fastmasq.kernel import features
from fastmasq.lab import scenario
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.topology import Lab
from fastmasq.program import LEGACY
from tests.release import programs, roots
from tests.release.gateway import network, pass_checks, until
from tests.release.roots import folder, inside

SUPERVISOR_BYTES = 1 << 20
RULES = "ipchains -A input -i eth0 -p tcp -d 10.0.0.1 9 -j DENY\nipchains -A forward -i eth1 -j MASQ\n"

# What root does on a host without systemd; $1 is the program. It forwards until a line is read.
_LIFE = f"""
exec 2>&1
"$1" install
for name in {" ".join(LEGACY)}; do
    [ "$(readlink -f /sbin/$name)" = "$1" ] || {{ echo "/sbin/$name does not lead to $1"; exit 1; }}
done
/etc/init.d/fastmasq start
fastmasq status
/sbin/ipchains -A forward -s 10.0.0.0/8 -j MASQ
/sbin/ipchains-save | grep -e '-A forward'
echo forwards
read -r _
/etc/init.d/fastmasq restart
/etc/init.d/fastmasq stop
fastmasq uninstall
for path in /etc/init.d/fastmasq /usr/bin/fastmasq /sbin/ipchains /var/lib/fastmasq /run/fastmasq/*.journal; do
    [ ! -e "$path" ] || {{ echo "$path is left"; exit 1; }}
done
! id fastmasq
"""


def supervised() -> str:
    """A supervised bundle is started again; its parent is small, and in the end nothing is left of either."""
    said = []
    with programs.on_this_host() as commands, TemporaryDirectory() as place:
        for name in ("folder", "file"):
            with network() as lab:
                own = _supervise(lab, ["env", f"TMPDIR={place}", *commands[name]])
            if left := os.listdir(place):
                raise FastmasqError(f"{name}: left in the temporary directory: {', '.join(left)}")
            said.append(f"{name} {own / 1e6:.1f} MB")
    return f"started again; the parent's own memory: {', '.join(said)}"


def _supervise(lab: Lab, command: Sequence[str]) -> int:
    """Have a supervised forwarder killed, and started again; return the bytes that are its parent's alone."""

    def process() -> int | None:
        try:
            return forwarder.ask("status")["pid"]
        except FastmasqError:
            return None

    with Fastmasq(lab, command=command, options=["--supervise"]) as forwarder:
        first = process()
        os.kill(first, signal.SIGKILL)
        until(lambda: process() not in (None, first), "another forwarder")
        own = own_bytes(forwarder.process.pid)
    if own > SUPERVISOR_BYTES:
        raise FastmasqError(f"the supervisor has {own} bytes of its own, more than {SUPERVISOR_BYTES}")
    return own


def own_bytes(process: int) -> int:
    """Return the memory that a process shares with no other, in bytes."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def installed() -> str:
    """The folder installs itself as a service with the names of 1999, forwards, and is gone without a trace."""
    with folder(roots.debian("bullseye", "nftables")) as root, network() as lab:
        programs.unpack_folder(root)
        stage = scenario.set_stage(lab)
        argv = inside(root, "/bin/sh", "-ec", _LIFE, "sh", f"/{programs.OPT}/fastmasq")
        with lab.popen("gateway", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as life:
            line = ""
            while (said := life.stdout.readline()) != "forwards\n":
                if not said:
                    raise FastmasqError(f"it did not come to forward: {line.strip()}")
                line = said
            passed = pass_checks(stage)
            rest, _ = life.communicate("\n")
            if life.returncode:
                raise FastmasqError(f"it did not go: {rest.strip().splitlines()[-1]}")
    return f"init script and {len(LEGACY)} names on Debian 11; {passed}; uninstalled"


def without_nftables() -> str:
    """Where there is iptables-legacy and no nft, the guard is its, and what is not protected then is said."""
    with folder(roots.debian("bullseye", "iptables")) as root, network() as lab:
        if list(root.glob("usr/sbin/nft")):
            raise FastmasqError("the root has an nft")
        programs.unpack_folder(root)
        stage = scenario.set_stage(lab)
        rules = lab.directory / "rc.firewall"
        rules.write_text(RULES)
        extra = f'[takeover]\nguard = "iptables"\n[rules]\nfiles = ["{rules}"]'
        with Fastmasq(lab, extra, command=inside(root, f"/{programs.OPT}/fastmasq")) as forwarder:
            status = forwarder.ask("status")
            passed = pass_checks(stage)
        warned = forwarder.errors()
    if status["guard"]["backend"] != "iptables":
        raise FastmasqError(f"its guard is {status['guard']['backend']}")
    reasons = {each["use"]: each["reason"] for each in status["fallbacks"]}
    for said in (reasons.get(features.HOST_RULES, ""), warned):
        if "nft is not installed" not in said:
            raise FastmasqError(f"nobody is told that rules for the host itself need nft: {said}")
    return f"guard iptables; {passed}; it says that rules for the host itself want nft"
