"""Root file systems to try packages in: empty ones, and those of Debian, made once and kept in build/release."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastmasq.errors import FastmasqError

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT / "build/release"
MIRRORS = ("http://deb.debian.org/debian", "http://archive.debian.org/debian")
LAB = "/run/fastmasq-lab"  # where configuration and control socket of a lab's forwarder are

# Run as a shell's script in a mount namespace of its own, so that nothing has to be unmounted: $0 is the root, $1 the
# options of what is mounted at its /tmp, $2 who runs the command that is the rest. The network namespace is the
# caller's, in sysfs too.
_ENTER = f"""
mount --make-rprivate /
for folder in proc sys dev tmp run; do mkdir -p "$0/$folder"; done
mount -t proc proc "$0/proc"
mount -t sysfs sysfs "$0/sys"
mount --rbind /dev "$0/dev"
mount -t tmpfs -o "$1" tmpfs "$0/tmp"
mount -t tmpfs tmpfs "$0/run"
if [ -d {LAB} ]; then mkdir -p "$0{LAB}"; mount --bind {LAB} "$0{LAB}"; fi
user="$2"
shift 2
exec chroot --userspec="$user" "$0" "$@"
"""


def inside(root: Path, *program: str, tmp: str = "mode=1777", user: str = "0:0") -> tuple[str, ...]:
    """Return the command line that runs a program in a root; tmp: mount options of its /tmp, user: UID:GID."""
    return ("unshare", "--mount", "sh", "-ec", _ENTER, str(root), tmp, user, *program)


def run_inside(root: Path, *program: str, tmp: str = "mode=1777", **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in a root to its end; options are those of subprocess.run."""
    return subprocess.run(inside(root, *program, tmp=tmp), capture_output=True, text=True, **options)


@contextmanager
def folder(source: Path | None = None) -> Iterator[Path]:
    """Make an empty root, or a copy of one, and remove it at the end."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="root-") as made:
        root = Path(made) / "root"
        if source is None:
            root.mkdir()
        else:
            checked(["cp", "-a", "--reflink=auto", str(source), str(root)])
        yield root


def debian(suite: str, *packages: str) -> Path:
    """Return a minimal Debian root with these packages; not to be changed. Raises FastmasqError if it cannot be had."""
    root = CACHE / "-".join((suite, *packages))
    if root.exists():
        return root
    part = root.with_name(f"{root.name}.part")
    said = ""
    include = [f"--include={','.join(packages)}"] if packages else []
    for mirror in MIRRORS:
        shutil.rmtree(part, ignore_errors=True)
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", *include, suite, str(part), mirror], capture_output=True, text=True
        )
        if done.returncode == 0:
            part.rename(root)
            return root
        said = (done.stdout + done.stderr).strip().splitlines()[-1]
    raise FastmasqError(f"debootstrap {suite}: {said}")


def checked(argv: Sequence[str], **options: Any) -> str:
    """Return what a program prints. Raises FastmasqError with the last line it says if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, **options)
    return output_of(done, argv[0])


def output_of(done: subprocess.CompletedProcess[str], name: str) -> str:
    """Return what it printed. Raises FastmasqError with the last line it said if it failed."""
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise FastmasqError(f"{name} ended with {done.returncode}: {said[-1]}")
    return done.stdout
