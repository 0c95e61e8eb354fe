"""A lab's gateway as a host that systemd has booted: a Debian root in namespaces of its own, with process 1.

The network is the gateway's. /sys is there to be read, so that no udev starts; what would change settings of this
machine's kernel, systemd-sysctl, is masked in the root.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from fastmasq.errors import KernelError
from fastmasq.lab import hosts
from fastmasq.lab.topology import Lab

PATIENCE_S = 30.0
_MASKED = ("systemd-sysctl", "systemd-modules-load", "systemd-binfmt", "systemd-hwdb-update", "systemd-journal-flush")

# $0 is the root, $1 the name of a control group of its own, which is seen in no other.
_ENTER = """
mount --make-rprivate /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$1"
echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"
exec unshare --mount --pid --fork --kill-child --uts --ipc --cgroup sh -ec '
    mount --bind "$0" "$0"
    cd "$0"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    for folder in dev run tmp; do mount -t tmpfs -o mode=755 tmpfs $folder; done
    for device in null zero full random urandom tty; do
        touch dev/$device
        mount --bind /dev/$device dev/$device
    done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
    mount -t tmpfs tmpfs dev/shm
    ln -s pts/ptmx dev/ptmx
    ln -s null dev/console
    pivot_root . mnt
    exec chroot . sh -c "umount -l /mnt; exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --unit=basic.target --log-target=journal"
' "$0"
"""
_CLEAN = 'mount -t cgroup2 cgroup2 /mnt; find "/mnt/$0" -depth -type d -exec rmdir {} +'


class SystemdHost:
    """A context manager: a host that has booted. The root is changed by what it runs."""

    def __init__(self, lab: Lab, root: Path) -> None:
        self._lab = lab
        self._root = root
        self._group = lab.namespace("gateway")

    def __enter__(self) -> SystemdHost:
        units = self._root / "etc/systemd/system"
        for name in _MASKED:
            (units / f"{name}.service").symlink_to("/dev/null")
        argv = ["sh", "-ec", _ENTER, str(self._root), self._group]
        self._holder = self._lab.popen("gateway", argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            self._wait_until_booted()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()  # and with it, by --kill-child, process 1 and all others there
        self._holder.communicate()
        clean = ["unshare", "--mount", "sh", "-ec", _CLEAN, self._group]
        hosts.wait_until(lambda: subprocess.run(clean, capture_output=True).returncode == 0, PATIENCE_S)

    def run(self, *argv: str, status: int = 0) -> str:
        """Run a program there that must end with this status; return all that it says."""
        done = self._inside(argv)
        assert done.returncode == status, f"{' '.join(argv)} ended with {done.returncode}: {done.stdout}"
        return done.stdout

    def _inside(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        place = ["nsenter", "--target", str(self._first()), "--all", "--root", "--wd"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.run(
            [*place, *argv], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=PATIENCE_S,
        )  # fmt: skip

    def _first(self) -> int:
        """Return the number that process 1 there has here. Raises KernelError if there is none."""
        pid = self._holder.pid
        try:
            (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except (OSError, ValueError):
            raise KernelError(f"there is no process 1 of {self._root}") from None
        return int(child)

    def _wait_until_booted(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        said = ""
        while time.monotonic() < deadline:
            if self._holder.poll() is not None:
                raise KernelError(f"systemd has ended: {self._holder.stderr.read().strip()}")
            try:
                said = self._inside(["systemctl", "is-active", "basic.target"]).stdout.strip()
            except KernelError as error:
                said = str(error)
            if said == "active":
                return
            time.sleep(0.1)
        raise KernelError(f"systemd has not booted within {PATIENCE_S:g} s: {said}")
