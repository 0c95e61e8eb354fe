"""Another kernel in the place of a lab's gateway: Debian's user-mode-linux, joined to the lab's links by tap devices.

The namespace of the gateway becomes two bridges without an address, each of a link and a tap. The kernel runs on the
files of this machine, which it can read and not change; its own are in memory. Its console is a pipe, over which it
gets commands for its shell and gives back what they print. It dies with its console.
"""

from __future__ import annotations

import os
import secrets
import selectors
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from fastmasq.errors import KernelError
from fastmasq.lab import hosts
from fastmasq.lab.topology import EXTERNAL_ADDRESS, Lab

PROGRAM = "linux.uml"
PATIENCE_S = 60.0

_MEMORY = "512M"
_MODULES = "/usr/lib/uml/modules"
_ROOT = Path(__file__).parents[2]
_INIT = f"""#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp; mount -t tmpfs run /run
mkdir -p /tmp/modules/lib && ln -s {_MODULES} /tmp/modules/lib/modules
printf '#!/bin/sh\\nexec /usr/sbin/modprobe -d /tmp/modules "$@"\\n' >/tmp/modprobe && chmod +x /tmp/modprobe
echo /tmp/modprobe >/proc/sys/kernel/modprobe
stty -echo
export PATH PYTHONDONTWRITEBYTECODE=1 PS1= PS2=
cd {_ROOT}
exec sh
"""
_SET_UP = f"""ip link set lo up
ip link set vec0 name eth0; ip link set vec1 name eth1
ip address add 10.0.0.1/8 dev eth0; ip address add {EXTERNAL_ADDRESS}/24 dev eth1
ip link set eth0 up; ip link set eth1 up
ip route add default via 200.200.200.1"""


class OtherKernel:
    """A context manager: a kernel that has booted and has the gateway's links and addresses."""

    def __init__(self, lab: Lab) -> None:
        if shutil.which(PROGRAM) is None:
            raise KernelError(f"the program {PROGRAM} is not installed; install the package user-mode-linux")
        self._lab = lab
        self._said = b""

    def __enter__(self) -> OtherKernel:
        self._join()
        init = self._lab.directory / "init"
        init.write_text(_INIT)
        init.chmod(0o755)
        argv = [PROGRAM, f"mem={_MEMORY}", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}", "quiet"]
        argv += ["con=null", "con0=fd:0,fd:1", "ssl=null"]
        argv += [f"vec{number}:transport=tap,ifname=tap{number}" for number in range(2)]
        self._process = self._lab.popen(
            "gateway", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        os.set_blocking(self._process.stdout.fileno(), False)
        for line in _SET_UP.splitlines():
            self.run(line)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.write(b"echo o >/proc/sysrq-trigger\n")
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process.stdout.close()

    def run(self, command: str) -> str:
        """Do a line of shell there; return what it prints. Raises KernelError if it fails or takes too long."""
        token = secrets.token_hex(8)
        self._process.stdin.write(f"{command}; echo {token}'' $?\n".encode())
        self._process.stdin.flush()
        said, _, status = self._read_until(f"{token} ".encode()).rpartition(token)
        if status.strip() != "0":
            raise KernelError(f"{command} ended with {status.strip()}: {said.strip()}")
        return said

    def write(self, path: str, text: str) -> None:
        self.run(f"printf %s {shlex.quote(text)} >{path}")

    def start(self, command: Sequence[str], configuration: str) -> str:
        """Start fastmasq with a configuration; return the line that says it forwards."""
        self.write("/run/fastmasq.toml", configuration)
        argv = shlex.join([*command, "run", "-c", "/run/fastmasq.toml"])
        self.run(f"{argv} >/run/said 2>/run/warned & echo $! >/run/pid")
        self.run(f"for _ in $(seq {PATIENCE_S * 5:.0f}); do grep -q forwarding /run/said && break; sleep 0.2; done")
        return self.run("cat /run/said /run/warned; grep -q forwarding /run/said")

    def stop(self) -> str:
        """End fastmasq, which must have put everything back; return what it has warned of."""
        self.run("kill $(cat /run/pid); wait $(cat /run/pid)")
        return self.run("cat /run/warned")

    def _join(self) -> None:
        lines = []
        for number, interface in enumerate(("eth0", "eth1")):
            lines += [
                f"address flush dev {interface}",
                f"tuntap add dev tap{number} mode tap",
                f"link add bridge{number} type bridge mcast_snooping 0",
                *(f"link set {port} master bridge{number}" for port in (interface, f"tap{number}")),
                *(f"link set {port} up" for port in (f"tap{number}", f"bridge{number}")),
            ]
        hosts.configure(lines, self._lab.namespace("gateway"))

    def _read_until(self, token: bytes) -> str:
        """Return what the console says up to the line with a token, and with it."""
        deadline = time.monotonic() + PATIENCE_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                head, found, rest = self._said.partition(token)
                if found and b"\n" in rest:
                    line, _, self._said = rest.partition(b"\n")
                    return (head + found + line).decode(errors="replace").replace("\r", "")
                selector.select(max(0, deadline - time.monotonic()))
                piece = self._process.stdout.read(65536)
                if piece == b"" or time.monotonic() > deadline:
                    raise KernelError(f"the other kernel {'has ended' if piece == b'' else 'hangs'}: {self._said!r}")
                self._said += piece or b""
