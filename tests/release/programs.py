"""The packages in dist, and how the program of each is started."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastmasq import __version__
from fastmasq.errors import FastmasqError
from tests.release.roots import CACHE, PROJECT, checked

DIST = PROJECT / "dist"
FILE = DIST / f"fastmasq-{__version__}-{platform.machine()}"
FOLDER = FILE.with_name(f"{FILE.name}.tar.xz")
SOURCE = DIST / f"fastmasq-{__version__}.tar.gz"
PYTHON = "/usr/bin/python3"
BUILDER = PROJECT / "build/packages/venv/bin/python"  # what the packages are built with
OPT = "opt/fastmasq"  # where the folder is for, from the root

# In a mount namespace of its own, where /opt has nothing but the folder: $0 is where that is unpacked.
_AT_OPT = f"""
mount --make-rprivate /
mount -t tmpfs tmpfs /opt
mkdir /{OPT}
mount --bind "$0" /{OPT}
exec "$@"
"""


def wheel() -> Path:
    """Return the wheel in dist. Raises FastmasqError unless there is one."""
    found = list(DIST.glob(f"fastmasq-{__version__}-*.whl"))
    if len(found) != 1:
        raise FastmasqError(f"{len(found)} wheels of fastmasq {__version__} in {DIST}: run scripts/build-wheel")
    return found[0]


def deb() -> Path:
    """Return the Debian package in dist. Raises FastmasqError unless there is one."""
    found = list(DIST.glob(f"fastmasq_{__version__}_*.deb"))
    if len(found) != 1:
        raise FastmasqError(f"{len(found)} Debian packages of {__version__} in {DIST}: run scripts/build-deb")
    return found[0]


def build() -> None:
    """Build what is not there or out of date. Raises FastmasqError if that fails."""
    done = subprocess.run([PROJECT / "scripts/build-deb"], stdout=sys.stderr)
    if done.returncode:
        raise FastmasqError(f"scripts/build-deb ended with {done.returncode}")


def installed(package: Path, environment: Path) -> Path:
    """Install a wheel into a fresh environment and return the program."""
    shutil.rmtree(environment, ignore_errors=True)
    checked([PYTHON, "-m", "venv", str(environment)])
    checked([str(environment / "bin/pip"), "install", "--quiet", str(package)])
    return environment / "bin/fastmasq"


def unpack_folder(root: Path) -> Path:
    """Unpack the folder where it belongs in a root; return where that is, seen from outside."""
    place = root / OPT
    place.parent.mkdir(parents=True, exist_ok=True)
    checked(["tar", "-C", str(place.parent), "-xJf", str(FOLDER)])
    return place


def at_opt(place: Path, *arguments: str) -> tuple[str, ...]:
    """Return the command line that runs the folder's program where the folder seems to be in /opt."""
    return ("unshare", "--mount", "sh", "-ec", _AT_OPT, str(place), f"/{OPT}/fastmasq", *arguments)


@contextmanager
def on_this_host() -> Iterator[dict[str, tuple[str, ...]]]:
    """Return how wheel, folder and file are started on this host, each from its package."""
    place = CACHE / "programs"
    shutil.rmtree(place, ignore_errors=True)
    try:
        program = installed(wheel(), place / "wheel")
        yield {"wheel": (str(program),), "folder": at_opt(unpack_folder(place)), "file": (str(FILE),)}
    finally:
        shutil.rmtree(place, ignore_errors=True)
